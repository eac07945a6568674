"""The file behind a source: the same bytes at every reading, and all of its problems at once."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ..compression import Codec, Damaged, decompressed
from ..errors import Problem, SourceError

CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 128 << 20  # longer than any request a provider takes; keeps a file without newlines out of memory
MAX_PROBLEMS = 1_000


class SourceFile:
    """A regular file that must not change from now on: its fingerprint and its rows are of the same bytes.

    A change is seen by inode, size or modification time, before and after every reading.
    """

    def __init__(self, name: str, path: Path, codec: Codec | None = None) -> None:
        self.name = name  # as the user wrote it
        self._path = path
        self._codec = codec
        with self._reading() as file:
            self._identity = _identity(os.fstat(file.fileno()))

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's text from its beginning, decompressed.

        Raises SourceError when the file is not what it was, also at the end of the block, and where it is damaged.
        """
        with self._stored() as file:
            try:
                yield decompressed(file, self._codec) if self._codec else file
            except Damaged as error:
                self._must_be_unchanged(file)
                raise SourceError([Problem(self.name, error.line, None, None, error.what)]) from error

    def fingerprint(self) -> str:
        """sha256 (hex) of its bytes as they are stored."""
        with self._stored() as file:
            return hashlib.file_digest(cast("io.BufferedReader", file), "sha256").hexdigest()

    @contextmanager
    def _stored(self) -> Iterator[BinaryIO]:
        with self._reading() as file:
            self._must_be_unchanged(file)
            yield file
            self._must_be_unchanged(file)

    def _must_be_unchanged(self, file: BinaryIO) -> None:
        try:
            seen = {_identity(os.fstat(file.fileno())), _identity(self._path.stat())}
        except FileNotFoundError:
            seen = set()
        if seen != {self._identity}:
            raise SourceError(
                [Problem(self.name, None, None, None, "changed while it was read")],
                hint="wait until nothing writes it, then plan again; nothing was sent",
            )

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            file = self._path.open("rb")
        except OSError as error:
            why = error.strerror or str(error)
            raise SourceError([Problem(self.name, None, None, None, f"cannot be read: {why}")]) from error
        with file:
            yield file


class Problems:
    """What is wrong with one file, in the order found. The first MAX_PROBLEMS are kept, all are counted."""

    def __init__(self, name: str) -> None:
        self.count = 0
        self._name = name
        self._kept: list[Problem] = []

    def add(self, line: int | None, message: str, column: int | None = None) -> None:
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self._kept.append(Problem(self._name, line, column, None, message))

    def check(self) -> None:
        """Raise SourceError with all of them, if there are any."""
        if more := self.count - len(self._kept):
            self._kept.append(Problem(self._name, None, None, None, f"... and {more:,} more"))
        if self._kept:
            raise SourceError(self._kept)


def text_lines(file: BinaryIO, problems: Problems, first: int = 1) -> Iterator[str]:
    r"""The physical lines of a UTF-8 file from line `first`, each with its end; a line ends at \n, as `sed` counts it.

    A byte order mark is dropped. A line with invalid bytes or NUL is a problem and is yielded all the same, mended, so
    that the lines after it are read as what they are. Raises SourceError where going on would make no sense.
    """
    number = first - 1
    while raw := file.readline(MAX_LINE_BYTES):
        number += 1
        if number == 1:
            if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                problems.add(1, "UTF-16 text, expected UTF-8: save it as UTF-8")
                problems.check()
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
            problems.add(number, f"longer than {MAX_LINE_BYTES:,} bytes")
            problems.check()
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            column = len(raw[: error.start].decode()) + 1
            problems.add(number, f"invalid UTF-8: byte 0x{raw[error.start]:02x}; expected UTF-8 text", column)
            text = raw.decode(errors="replace")
        if "\0" in text:
            problems.add(number, "a NUL character, expected text", text.index("\0") + 1)
        yield text


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
