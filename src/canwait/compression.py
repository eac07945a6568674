"""Compressed text, gzip and zstd, as streams: memory is a chunk, whatever a file unpacks to."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import pyarrow as pa

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Codec = Literal["gzip", "zstd"]

ENDINGS: dict[str, Codec] = {".gz": "gzip", ".zst": "zstd"}

_MAGIC: dict[bytes, Codec] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # no text in UTF-8 begins so
_CHUNK_BYTES = 1 << 20
_FRAME_BYTES = 4 << 20  # of text; every frame is a whole zstd file, and a file may hold many


def bare(name: str) -> tuple[str, Codec | None]:
    """`rows.csv.gz` -> (`rows.csv`, `gzip`); what has no ending of ours is as it is, and not compressed."""
    for ending, codec in ENDINGS.items():
        if name.lower().endswith(ending):
            return name[: -len(ending)], codec
    return name, None


class Damaged(OSError):
    """A compressed file that ends too early, or whose bytes are no longer what was written."""

    def __init__(self, codec: Codec, n_bytes: int, line: int, why: str) -> None:
        self.line = line  # of the text, counted from 1, in which what can be read ends
        self.what = f"the {codec} data is cut off or damaged after {n_bytes:,} bytes of text: {why}"
        super().__init__(f"line {line}: {self.what}")


def decompressed(file: BinaryIO, codec: Codec) -> io.BufferedReader:
    """The text of a file, with all its members or frames. Reading raises Damaged; `file` stays open."""
    return io.BufferedReader(_Text(file, codec), _CHUNK_BYTES)


@contextmanager
def reading(path: Path) -> Iterator[io.BufferedReader]:
    """A file's text, compressed or not: its first bytes say. Reading raises Damaged."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        codec = next((codec for magic, codec in _MAGIC.items() if start.startswith(magic)), None)
        yield decompressed(file, codec) if codec else file


@contextmanager
def compressing(file: BinaryIO, codec: Codec | None) -> Iterator[BinaryIO]:
    """Where text is written that `file` shall hold compressed. The same text is always the same bytes."""
    if codec is None:
        yield file
        return
    packed = _Packed(file, codec)
    yield cast(BinaryIO, packed)
    packed.finish()


class _Text(io.RawIOBase):
    """Arrow reads gzip 1.5 times as fast as Python's own reader, and zstd without another package (docs/rows.md)."""

    def __init__(self, file: BinaryIO, codec: Codec) -> None:
        self._file = file
        self._codec = codec
        self._stream: Any = self._opened()

    def _opened(self) -> pa.NativeFile:
        return pa.CompressedInputStream(pa.PythonFile(_Lent(self._file), "r"), self._codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except OSError as error:
            raise self._damaged(" ".join(str(error).split())) from error

    def _damaged(self, why: str) -> Damaged:
        """Read it again in small steps, to tell where."""
        self._file.seek(0)
        stream = self._opened()
        n_bytes = n_lines = 0
        try:
            while piece := stream.read(64):
                n_bytes += len(piece)
                n_lines += piece.count(b"\n")
        except OSError:
            pass
        return Damaged(self._codec, n_bytes, n_lines + 1, why)


class _Lent(io.RawIOBase):
    """A file that Arrow, which closes what it has read, cannot close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, n_bytes: int = -1) -> bytes:
        return self._file.read(n_bytes)


class _Packed(io.RawIOBase):
    """Text in, compressed bytes out. Nothing is written in `close`, so that a load that fails leaves no trace."""

    def __init__(self, file: BinaryIO, codec: Codec) -> None:
        self._file = file
        self._held = bytearray()
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16) if codec == "gzip" else None  # mtime 0
        self._zstd = pa.Codec("zstd", 3)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        if len(self._held) >= _FRAME_BYTES:
            self._pack()
        return len(data)

    def finish(self) -> None:
        self._pack()
        if self._gzip:
            self._file.write(self._gzip.flush())

    def _pack(self) -> None:
        if self._gzip:
            self._file.write(self._gzip.compress(self._held))
        elif self._held:
            self._file.write(self._zstd.compress(bytes(self._held), asbytes=True))
        self._held.clear()
