"""Rows into a file: merge, append or replace, in one atomic step."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson
import pyarrow as pa

from ..compression import Codec, compressing
from ..errors import SinkError
from ..places import Keys
from . import PROVENANCE
from .atomic import replacing
from .formats import Format, aligned, grouped, missing_key
from .rows import Chunks


class FileSink:
    """Rows stream; memory holds a chunk, and the keys of the new rows where they meet those of a target.

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
        new_schema = self._format.stored_schema(schema, self._key)
        if self._mode == "replace" or not self._path.exists() or not self._path.stat().st_size:
            with closing(self._unique(batches)) as unique:
                return self._format.write(file, new_schema, unique)
        index: dict[str, int] = {}  # key -> number of the new row
        new = self._indexed(batches, index)
        old_schema, old = self._format.read(self._path, self._key)
        out_schema = self._united(old_schema, new_schema)
        spool = _Spool((aligned(batch, out_schema) for batch in new), out_schema, self._path.parent)
        combined = self._appended if self._mode == "append" else self._merged
        return self._format.write(file, out_schema, combined((aligned(b, out_schema) for b in old), spool, index))

    def _unique(self, batches: Iterable[pa.RecordBatch]) -> Generator[pa.RecordBatch, None, None]:
        """The new rows in the stored form. Raises SinkError for a key that is missing or, after the last, stands twice.

        In memory is a chunk: the hashes of the keys are on disk, and the keys too, for two whose hashes are alike.
        """
        scratch = self._path.with_name(f".{self._path.name}.keys")  # ours alone, for the target is
        with closing(Keys(scratch)) as hashes, tempfile.TemporaryFile(dir=self._path.parent) as file:
            scratch.unlink()  # it goes when it is closed, or this process dies
            for batch in batches:
                keys = _keys(batch.column(self._key))
                hashes.add(keys)
                file.write(orjson.dumps(keys) + b"\n")
                yield self._format.stored(batch, self._key)
            if suspects := hashes.twice():
                file.seek(0)
                seen: set[str] = set()
                for key in chain.from_iterable(map(orjson.loads, file)):
                    if hash(key) in suspects:
                        if key in seen:
                            raise _twice(key)
                        seen.add(key)

    def _indexed(self, batches: Iterable[pa.RecordBatch], index: dict[str, int]) -> Iterator[pa.RecordBatch]:
        """The same, numbered in `index` by their keys."""
        for batch in batches:
            for key in _keys(batch.column(self._key)):
                if key in index:
                    raise _twice(key)
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


def _keys(column: pa.Array[Any]) -> list[str]:
    """Raises SinkError where one is missing; CSV would read an empty one back as none."""
    keys: list[Any] = column.to_pylist()
    if not all(keys):
        raise SinkError("a key is missing in the rows to load")
    return keys


def _twice(key: str) -> SinkError:
    return SinkError(f"key {key!r} stands twice in the rows to load")


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
