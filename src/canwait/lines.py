"""Files of lines, plain or as zstd: requests are text that repeats itself and take an eighth of the disk.

A file written here is a row of zstd frames, each of whole lines, as `zstdcat` reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from .errors import BlobError

_CHUNK_BYTES = 1 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"  # no JSON and no text begins so (RFC 8878, 3.1.1)
_LEVEL = 1  # 1.1 GB a CPU second, an eighth of the bytes (performance.md 2)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without their newline, streamed; the last one also when it has no newline.

    Raises BlobError for a damaged file, when the damage is reached.
    """
    with path.open("rb", buffering=_CHUNK_BYTES) as file:
        is_zstd = file.read(len(_ZSTD)) == _ZSTD
        file.seek(0)
        if not is_zstd:
            for line in file:
                yield line.removesuffix(b"\n")
            return
        try:
            yield from _split(_unpacked(file))
        except OSError as error:
            raise BlobError(f"{path} is damaged: {error}", hint="restore it from a backup") from error


class LinesFile:
    """A file being written, in frames of whole lines. Lines at its end can be taken out again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_lines = 0
        self._frames: list[tuple[int, int]] = []  # of each: the line and the byte it starts at
        self._n_bytes = 0

    def append(self, data: bytes, n_lines: int) -> None:
        """`data`: whole lines, each with its newline."""
        frame = _codec().compress(data, asbytes=True)
        with self.path.open("ab") as file:  # opened anew each time, for many may be written at once
            file.write(frame)
        self._frames.append((self.n_lines, self._n_bytes))
        self.n_lines += n_lines
        self._n_bytes += len(frame)

    def cut(self, keep: int) -> list[bytes]:
        """Take the lines after the first `keep` out; they are those, without newlines."""
        at = max(i for i, (line, _) in enumerate(self._frames) if line <= keep)
        first, start = self._frames[at]
        with self.path.open("rb") as file:
            file.seek(start)
            lines = list(_split(_unpacked(file)))
        os.truncate(self.path, start)
        del self._frames[at:]
        self.n_lines, self._n_bytes = first, start
        kept, rest = lines[: keep - first], lines[keep - first :]
        if kept:
            self.append(b"\n".join([*kept, b""]), len(kept))
        return rest


def _codec() -> Any:
    import pyarrow as pa  # here, for whoever sends a plain file needs none of it

    return pa.Codec("zstd", compression_level=_LEVEL)


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    import pyarrow as pa

    with pa.CompressedInputStream(cast("IOBase", file), "zstd") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
