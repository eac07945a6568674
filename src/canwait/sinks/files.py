"""Rows into a file: merge, append or replace, in one atomic step."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa

from ..compression import Codec, compressing
from ..errors import SinkError
from . import PROVENANCE
from .atomic import replacing
from .formats import Format, aligned, grouped, missing_key
from .rows import Chunks


class FileSink:
    """Rows stream; memory holds the keys of the new rows and a chunk.

    merge    a row whose key is new is added at the end; any other replaces its row in the target, in its place
    append   a row is added at the end unless the target has one that is equal in every column; nothing is replaced
    replace  the target holds exactly the new rows

    Columns: the key, fields, provenance. A merge or append into other columns keeps both; what a row lacks is null.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        format: Format,
        mode: Literal["merge", "append", "replace"],
        key: str,
        codec: Codec | None = None,
    ) -> None:
        self.name = name
        self._path = path
        self._format = format
        self._codec = codec
        self._mode = mode
        self._key = key

    def load(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
        if schema.names.count(self._key) != 1 or not _is_text(schema.field(self._key).type):
            raise SinkError(
                f"{self.name}: the rows to load have no text column {self._key!r}: {', '.join(schema.names)}"
            )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as file, compressing(file, self._codec) as text:
                return self._write(text, batches, schema)
        except SinkError as error:
            raise type(error)(f"{self.name}: {error}", hint=error.own_hint) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise SinkError(
                f"{self.name}: {why}; the target is as it was", hint="mend it and run again: what is paid is kept"
            ) from error
        except pa.ArrowException as error:
            raise SinkError(
                f"{self.name}: {error}; the target is as it was", hint="load into another file, or use `mode: replace`"
            ) from error

    def _write(self, file: BinaryIO, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
        index: dict[str, int] = {}  # key -> number of the new row
        new = self._unique(batches, index)
        new_schema = self._format.stored_schema(schema, self._key)
        if self._mode == "replace" or not self._path.exists() or not self._path.stat().st_size:
            return self._format.write(file, new_schema, new)
        old_schema, old = self._format.read(self._path, self._key)
        out_schema = self._united(old_schema, new_schema)
        spool = _Spool((aligned(batch, out_schema) for batch in new), out_schema, self._path.parent)
        combined = self._appended if self._mode == "append" else self._merged
        return self._format.write(file, out_schema, combined((aligned(b, out_schema) for b in old), spool, index))

    def _unique(self, batches: Iterable[pa.RecordBatch], index: dict[str, int]) -> Iterator[pa.RecordBatch]:
        """The new rows in the stored form, numbered in `index` by their keys."""
        for batch in batches:
            for key in batch.column(self._key).to_pylist():
                if not key or key in index:  # CSV would read an empty key back as none
                    problem = f"key {key!r} stands twice in" if key else "a key is missing in"
                    raise SinkError(f"{problem} the rows to load")
                index[key] = len(index)
            yield self._format.stored(batch, self._key)

    def _united(self, old: pa.Schema, new: pa.Schema) -> pa.Schema:
        """The columns of both: the key, fields as they stood and then new ones, provenance."""
        if twice := [name for name in old.names if old.names.count(name) > 1]:
            raise SinkError(f"column {twice[0]!r} stands twice", hint="load into another file, or use `mode: replace`")
        if self._key not in old.names:
            raise missing_key(self._key, old.names)
        if not _is_text(kind := old.field(self._key).type):
            raise SinkError(
                f"key column {self._key!r} is {kind}, not text", hint="keys are text: load into another file"
            )
        united = pa.unify_schemas([old, new], promote_options="permissive")
        names = sorted(united.names, key=lambda name: 0 if name == self._key else 2 if name in PROVENANCE else 1)
        return pa.schema([united.field(name) for name in names])

    def _merged(self, old: Iterator[pa.RecordBatch], new: _Spool, index: dict[str, int]) -> Iterator[pa.RecordBatch]:
        placed = bytearray(len(index))
        for batch in old:
            places, rows = self._shared(batch, index)
            if not rows:
                yield batch
                continue
            for row in rows:
                if placed[row]:
                    key = next(key for key, number in index.items() if number == row)
                    raise SinkError(
                        f"key {key!r} stands twice",
                        hint="a merge needs one row per key: mend it, or use `mode: replace`",
                    )
                placed[row] = 1
            order = list(range(batch.num_rows))
            for place, replacement in zip(places, range(batch.num_rows, batch.num_rows + len(rows)), strict=True):
                order[place] = replacement
            yield from _picked(pa.Table.from_batches([batch, *new.take(rows).to_batches()]), order)
        yield from new.others(placed)

    def _appended(self, old: Iterator[pa.RecordBatch], new: _Spool, index: dict[str, int]) -> Iterator[pa.RecordBatch]:
        placed = bytearray(len(index))
        for batch in old:
            places, rows = self._shared(batch, index)
            pairs = zip(batch.take(pa.array(places, pa.int64())).to_pylist(), new.take(rows).to_pylist(), strict=True)
            for row, (there, ours) in zip(rows, pairs, strict=True):
                placed[row] |= repr(there) == repr(ours)  # not ==, by which a NaN differs from itself
            yield batch
        yield from new.others(placed)

    def _shared(self, batch: pa.RecordBatch, index: dict[str, int]) -> tuple[list[int], list[int]]:
        """Where this part of the target has keys that the new rows have too, and the numbers of those rows."""
        keys = enumerate(batch.column(self._key).to_pylist())
        shared = [(place, index[key]) for place, key in keys if key in index]
        return [place for place, _ in shared], [row for _, row in shared]


class _Spool:
    """New rows on disk, read by their numbers."""

    def __init__(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in grouped(batches, schema):
                    writer.write_batch(batch)
            file.flush()
            mapped = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        reader = pa.ipc.open_file(mapped)
        self._chunks = Chunks([reader.get_batch(i) for i in range(reader.num_record_batches)], schema)
        self.take = self._chunks.take

    def others(self, placed: bytearray) -> Iterator[pa.RecordBatch]:
        """The rows that are not marked."""
        for batch, start in zip(self._chunks.batches, self._chunks.starts, strict=False):
            mask = pa.array([not done for done in placed[start : start + batch.num_rows]])
            yield batch.filter(mask)


def _picked(table: pa.Table, order: list[int]) -> list[pa.RecordBatch]:
    return table.take(pa.array(order, pa.int64())).combine_chunks().to_batches()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
