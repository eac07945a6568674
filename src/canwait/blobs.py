"""Content-addressed files: shard inputs, raw outputs, results. Written tmp + fsync + rename before the ledger names them.

A blob's name is the sha256 of its bytes in hex; nothing else is ever used as a path here, so no text from outside can
lead out of the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import methodcaller
from pathlib import Path
from typing import IO

from .durable import sync_folder, writing
from .errors import BlobError

_NAME = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_line = methodcaller("removesuffix", b"\n")  # run once a line of output


class Blobs:
    """A folder of blobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        return self.put_stream([data])

    def put_stream(self, pieces: Iterable[bytes]) -> str:
        """Store the pieces as one blob; its name. Nothing is left behind when a piece cannot be had or written."""
        with self.writer() as out:
            for piece in pieces:
                out.write(piece)
        return out.name

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A blob to be written; it exists, under its name, once the block is left without an exception."""
        with writing(self.folder):
            (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self.folder / "tmp")
        out = BlobWriter(os.fdopen(handle, "wb", buffering=_CHUNK), self.folder)
        try:
            yield out
            with writing(self.folder):
                out.file.flush()
                os.fsync(out.file.fileno())
                out.file.close()
                self._publish(Path(path), out.name)
        except BaseException:
            with suppress(OSError):
                out.file.close()
            with suppress(OSError):
                os.unlink(path)
            raise

    def adopt(self, path: Path) -> str:
        """Take a finished file in as a blob: hashed, fsynced and renamed. The file must be on the same file system."""
        with writing(self.folder):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    digest.update(piece)
                os.fsync(file.fileno())
            self._publish(path, digest.hexdigest())
        return digest.hexdigest()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder on the same file system, for files that may become blobs. What is left in it goes."""
        with writing(self.folder):
            (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(dir=self.folder / "tmp", ignore_cleanup_errors=True)
        with made as folder, writing(self.folder):
            yield Path(folder)

    def path(self, name: str) -> Path:
        """Where a blob lies. Raises BlobError when it is not there."""
        place = self._place(name)
        if not place.is_file():
            raise BlobError(
                f"blob {name} is missing from {self.folder}", hint="restore it from a backup of that folder"
            )
        return place

    def read(self, name: str) -> bytes:
        """A small blob's bytes, checked against its name."""
        data = self.path(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise BlobError(f"blob {name} in {self.folder} is damaged", hint="restore it from a backup of that folder")
        return data

    def lines(self, name: str) -> Iterator[bytes]:
        """A blob's lines without their newline, streamed; the last one also when it has no newline.

        As they are: what a provider wrote is never unpacked (`read_lines` is for what is ours).
        """
        with self.path(name).open("rb", buffering=_CHUNK) as file:
            yield from map(_line, file)

    def _publish(self, path: Path, name: str) -> None:
        target = self._place(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        for folder in (target.parent, self.folder):  # the second holds the name of the first, which may be new
            sync_folder(folder)

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BlobError(f"{name!r} is not the name of a blob")
        return self.folder / name[:2] / name


class BlobWriter:
    """Bytes on their way to becoming a blob; `name` and `size` grow with them."""

    def __init__(self, file: IO[bytes], folder: Path) -> None:
        self.file = file
        self.size = 0
        self._folder = folder
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> int:
        with writing(self._folder):
            self.file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)
        return len(piece)

    @property
    def name(self) -> str:
        return self._digest.hexdigest()
