"""The rows of a publication as one Parquet file: written while they are loaded, read whole or by key.

A row is found by key through an index beside the blobs: the hash of every key, ascending, and the number of its row, 12
bytes a row, memory-mapped. It is a cache, made by the first reader that asks for a key and made again where it is missing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from .blobs import Blobs
from .durable import sync_folder, writing
from .errors import BlobError

pc: Any = pyarrow.compute  # its stubs do not know all of it

Answer = Literal["fields", "text", "vector"]  # what the columns between key and provenance are

_GROUP_ROWS = 2048  # what is decoded to read one row
_CACHED_GROUPS = 8
_SORTED_ROWS = 1 << 20  # of the index, at a time
_ENTRY_BYTES = 12
_META = b"canwait.answer"


class Kept:
    """Rows on their way through a load, kept as they pass."""

    def __init__(self, path: Path | None, schema: pa.Schema, answer: Answer) -> None:
        self.blob = ""  # once the block of `keeping` is left
        self.n_rows = 0
        self.models: set[str] = set()  # that served them
        self._schema = schema.with_metadata({_META: answer.encode()})
        self._folder = path.parent if path else Path()
        self._writer = _writer(path, self._schema) if path else None
        self._held: list[pa.RecordBatch] = []
        self._n_held = 0

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.n_rows += batch.num_rows
            self.models.update(name for name in pc.unique(batch["_model"]).to_pylist() if name)
            if self._writer is not None:
                self._held.append(batch)
                self._n_held += batch.num_rows
                if self._n_held >= _GROUP_ROWS:
                    self._write()
            yield batch

    def _write(self) -> None:
        assert self._writer is not None
        if self._held:
            rows = pa.Table.from_batches(self._held).replace_schema_metadata(self._schema.metadata)
            with writing(self._folder):
                self._writer.write_table(rows, row_group_size=_GROUP_ROWS)
        self._held, self._n_held = [], 0

    def close(self, *, whole: bool) -> None:
        if self._writer is None:
            return
        if whole:
            self._write()
            with writing(self._folder):
                self._writer.close()
        else:
            self._writer.is_open = False  # or it would go on writing when it is collected


@contextmanager
def keeping(blobs: Blobs, schema: pa.Schema, answer: Answer, blob: str | None = None) -> Iterator[Kept]:
    """Keep what passes as a blob, which is on the disk when the block has been left; where `blob` has it, write nothing."""
    if blob is not None and is_there(blobs, blob):
        kept = Kept(None, schema, answer)
        yield kept
        kept.blob = blob
        return
    with blobs.scratch() as folder:
        path = folder / "rows.parquet"
        with writing(blobs.folder):
            kept = Kept(path, schema, answer)
        whole = False
        try:
            yield kept
            whole = True
        finally:
            kept.close(whole=whole)
        kept.blob = blobs.adopt(path)


def is_there(blobs: Blobs, blob: str) -> bool:
    try:
        blobs.path(blob)
    except BlobError:
        return False
    return True


def remove(blobs: Blobs, blob: str) -> None:
    """Take the rows away, which may be gone already; who has them open reads on. Raises BlobError."""
    with writing(blobs.folder):
        _index_of(blobs, blob).unlink(missing_ok=True)
        if is_there(blobs, blob):
            blobs.path(blob).unlink()


def _index_of(blobs: Blobs, blob: str) -> Path:
    return blobs.folder / "keys" / f"{blob}.{sys.byteorder}"


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    repeating: Any = [name for name in schema.names[1:] if name not in ("output", "embedding")]
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=repeating)


class PublishedRows:
    """The rows of one publication."""

    def __init__(self, blobs: Blobs, blob: str, key: str) -> None:
        """Raises BlobError when the blob is not there."""
        self.path = blobs.path(blob)
        self._blobs, self._key = blobs, key
        self._index_path = _index_of(blobs, blob)
        self._lock = threading.Lock()  # a Parquet file is read by one thread at a time
        self._file = pq.ParquetFile(self.path, pre_buffer=False)
        metadata = self._file.metadata
        self.n_rows: int = metadata.num_rows
        self._starts = [0, *accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._index: tuple[memoryview, memoryview] | None = None  # hashes, row numbers

    @property
    def answer(self) -> Answer:
        return cast(Answer, (self._file.schema_arrow.metadata or {}).get(_META, b"fields").decode())

    def find(self, key: str) -> dict[str, Any] | None:
        """The row of a key, by column; None where there is none."""
        wanted = _hashed(key)
        with self._lock:
            if self._index is None:
                self._index = self._opened()
            hashes, rows = self._index
            at = bisect_left(hashes, wanted)
            while at < len(hashes) and hashes[at] == wanted:
                number = bisect_right(self._starts, rows[at]) - 1
                row: dict[str, Any] = self._group(number).slice(rows[at] - self._starts[number], 1).to_pylist()[0]
                if row[self._key] == key:
                    return row
                at += 1
        return None

    def batches(self, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """All rows; another file is opened, so `find` goes on beside it."""
        yield from pq.ParquetFile(self.path, pre_buffer=False).iter_batches(rows)

    def _group(self, number: int) -> pa.Table:
        if number not in self._groups:
            self._groups[number] = self._file.read_row_group(number)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        return self._groups[number]

    def _opened(self) -> tuple[memoryview, memoryview]:
        size = _ENTRY_BYTES * self.n_rows
        if not size:
            return memoryview(b"").cast("Q"), memoryview(b"").cast("I")
        path = self._index_path
        if path.is_file() and path.stat().st_size == size:
            return self._mapped(path)
        with self._blobs.scratch() as folder, writing(path.parent):
            self._build(made := folder / "index")
            if not self.path.is_file():  # removed, and so is what is kept beside it
                return self._mapped(made)
            path.parent.mkdir(exist_ok=True)
            os.replace(made, path)  # whole, for it is on the disk already
            sync_folder(path.parent)
        return self._mapped(path)

    def _mapped(self, path: Path) -> tuple[memoryview, memoryview]:
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return mapped[: 8 * self.n_rows].cast("Q"), mapped[8 * self.n_rows :].cast("I")

    def _build(self, path: Path) -> None:
        """Sort the hashes, a range of them at a time: what it holds does not grow with the rows."""
        n = self.n_rows
        with path.with_name("hashes").open("w+b") as spool, path.open("wb") as out:
            for batch in self._file.iter_batches(65_536, columns=[self._key]):
                keys: list[Any] = batch.column(0).to_pylist()
                spool.write(b"".join(map(_digest, keys)))
            spool.flush()
            mapped = pa.py_buffer(mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ))
            hashes: Any = pa.Array.from_buffers(pa.uint64(), n, [None, mapped])
            n_parts, done = 1 + n // _SORTED_ROWS, 0
            step = -(-(1 << 64) // n_parts)
            for part in range(n_parts):
                low, high = step * part, min(step * (part + 1), 1 << 64) - 1
                inside = pc.and_(
                    pc.greater_equal(hashes, pa.scalar(low, pa.uint64())),
                    pc.less_equal(hashes, pa.scalar(high, pa.uint64())),
                )
                rows = pc.indices_nonzero(inside)
                found = hashes.take(rows)
                order = pc.array_sort_indices(found)
                out.seek(8 * done)
                out.write(_bytes(found.take(order)))
                out.seek(8 * n + 4 * done)
                out.write(_bytes(rows.take(order).cast(pa.uint32())))
                done += len(rows)
            out.flush()
            os.fsync(out.fileno())


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def _hashed(key: str) -> int:
    return int.from_bytes(_digest(key), sys.byteorder)


def _bytes(column: Any) -> memoryview:
    """Of numbers, none of which is missing."""
    buffer = column.buffers()[1]
    width = column.type.bit_width // 8
    return memoryview(buffer or b"")[width * column.offset : width * (column.offset + len(column))]
