"""Files of lines, plain or packed. Requests of one job begin and end alike, and are text that repeats itself.

A packed file states once what all its lines begin and end with, in a skippable frame (RFC 8878, 3.1.2), then holds what
stands between in zstd frames of whole lines: less than half the time of packing whole lines, and of support tickets
under one prompt a twentieth of the bytes.
    magic · size of the rest, uint32 · size of the beginning, uint32 · beginning · end     (little-endian)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import IOBase
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any, BinaryIO, cast

from .errors import BlobError

_CHUNK_BYTES = 1 << 20
_MAGIC = b"\x5c\x2a\x4d\x18"  # no JSON and no text begins so
_SIZES = Struct("<II")
_LEVEL = 1  # 1.1 GB a CPU second (performance.md 2)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without their newline, streamed; the last one also when it has no newline.

    Raises BlobError for a damaged file, when the damage is reached.
    """
    with path.open("rb", buffering=_CHUNK_BYTES) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            file.seek(0)
            for line in file:
                yield line.removesuffix(b"\n")
            return
        try:
            size, n_before = _SIZES.unpack(file.read(_SIZES.size))
            ends = file.read(size - 4)
            if len(ends) != size - 4 or n_before > len(ends):
                raise OSError("its first frame is cut short")
            before, after = ends[:n_before], ends[n_before:]
            for middle in _unpacked(file):
                yield before + middle + after
        except (OSError, StructError) as error:
            raise BlobError(f"{path} is damaged: {error}", hint="restore it from a backup") from error


class LinesFile:
    """A packed file being written. Lines at its end can be taken out again.

    All lines begin with `before` and end with `after`; what is appended and taken out is what stands between.
    """

    def __init__(self, path: Path, before: bytes = b"", after: bytes = b"") -> None:
        self.path = path
        self.n_lines = 0
        ends = before + after
        self._start = _MAGIC + _SIZES.pack(len(ends) + 4, len(before)) + ends
        self._frames: list[tuple[int, int]] = []  # of each: the line and the byte it starts at
        self._n_bytes = 0

    def append(self, middles: list[bytes]) -> None:
        """As one frame; some hundred kilobytes pack well."""
        frame = _codec().compress(b"\n".join([*middles, b""]), asbytes=True)
        with self.path.open("ab") as file:  # opened anew each time, for many may be written at once
            if not self._n_bytes:
                file.write(self._start)
                self._n_bytes = len(self._start)
            file.write(frame)
        self._frames.append((self.n_lines, self._n_bytes))
        self.n_lines += len(middles)
        self._n_bytes += len(frame)

    def cut(self, keep: int) -> list[bytes]:
        """Take the lines after the first `keep` out; what stood in them."""
        at = max(i for i, (line, _) in enumerate(self._frames) if line <= keep)
        first, start = self._frames[at]
        with self.path.open("rb") as file:
            file.seek(start)
            middles = list(_unpacked(file))
        os.truncate(self.path, start)
        del self._frames[at:]
        self.n_lines, self._n_bytes = first, start
        if kept := middles[: keep - first]:
            self.append(kept)
        return middles[keep - first :]


def _codec() -> Any:
    import pyarrow as pa  # here, for whoever sends a plain file needs none of it

    return pa.Codec("zstd", compression_level=_LEVEL)


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """The lines of the frames that follow."""
    import pyarrow as pa

    rest = b""
    with pa.CompressedInputStream(cast("IOBase", file), "zstd") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    if rest:
        raise OSError("its last line has no end")
