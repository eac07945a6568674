"""How rows lie in a file of each format: from Arrow to it, and back.

A merge handles every format alike, because each has a *stored form*: record batches that its files can be read into and
written from without loss. CSV stores text columns; JSONL stores the key and the line itself, so that lines which a load
does not concern keep their bytes; Parquet stores what it gets.
"""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ..compression import reading
from ..errors import SinkError

pc: Any = pyarrow.compute  # its stubs want scalars where it takes plain values

READ_ROWS = 8192
ROW_GROUP_ROWS = 65_536  # `take` out of smaller batches costs several times as much (performance.md 1)
ROW_GROUP_BYTES = 32 << 20
MAX_FIELD_CHARS = 128 << 20


class Format(Protocol):
    def stored_schema(self, schema: pa.Schema, key: str) -> pa.Schema: ...

    def stored(self, batch: pa.RecordBatch, key: str) -> pa.RecordBatch: ...

    def read(self, path: Path, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """What an existing target holds, in the stored form. Raises SinkError where it is not a file of this format."""
        ...

    def write(self, file: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
        """All of a file, from batches in the stored form; returns the number of rows."""
        ...

    def table(self, path: Path) -> pa.Table:
        """All of a file as a reader sees it."""
        ...


class Csv:
    r"""UTF-8, rows end with \n, quotes only where they are needed. Null and empty text are both an empty field.

    Values are exact; `=1+1` is not defused, because that would change data for every reader that is not a spreadsheet.
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        # \ufeff: a byte order mark at the very start would be taken for the file's own.
        self._needs_quotes = f'["\r\n\ufeff{delimiter}]'

    def stored_schema(self, schema: pa.Schema, key: str) -> pa.Schema:
        return pa.schema([(name, pa.string()) for name in schema.names])

    def stored(self, batch: pa.RecordBatch, key: str) -> pa.RecordBatch:
        columns = [_texts(column) for column in batch.columns]
        columns = [pc.if_else(pc.equal(column, ""), None, column) for column in columns]
        return pa.RecordBatch.from_arrays(columns, schema=self.stored_schema(batch.schema, key))

    def read(self, path: Path, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        rows = self._rows(path)
        schema = pa.schema([(name, pa.string()) for name in next(rows, [])])
        return schema, self._batches(rows, schema)

    def write(self, file: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
        file.write(self._lines([pa.array([name], pa.string()) for name in schema.names]))
        n_rows = 0
        for batch in batches:
            file.write(self._lines(batch.columns))
            n_rows += batch.num_rows
        return n_rows

    def table(self, path: Path) -> pa.Table:
        schema, batches = self.read(path, "")
        table = pa.Table.from_batches(batches, schema)
        return pa.table([column.fill_null(pa.scalar("", pa.string())) for column in table.columns], schema=schema)

    def _lines(self, columns: Sequence[Any]) -> memoryview:
        """The rows of some text columns, each with its line end."""
        lines = pc.binary_join_element_wise(*map(self._cells, columns), self._delimiter)
        lines = pc.if_else(pc.equal(lines, ""), '""', lines)  # an empty line would be no row
        return _bytes(pc.binary_join_element_wise(lines, "", "\n"))

    def _cells(self, column: Any) -> Any:
        column = column.fill_null("")
        quoting = pc.match_substring_regex(column, self._needs_quotes)
        if not pc.any(quoting).as_py():
            return column
        doubled = pc.replace_substring(column, '"', '""')
        return pc.if_else(quoting, pc.binary_join_element_wise('"', doubled, '"', ""), column)

    def _batches(self, rows: Iterator[list[str]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        while chunk := list(islice(rows, READ_ROWS)):
            columns = [
                pa.array([value or None for value in column], pa.string()) for column in zip(*chunk, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _rows(self, path: Path) -> Iterator[list[str]]:
        """The header and every row. Unlike a source this reads NUL: an answer may hold one and was written as it is."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))  # one limit per process; only ever raised
        with reading(path) as file:
            if file.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
                file.read(len(BOM_UTF8))
            reader = csv.reader((line.decode() for line in file), delimiter=self._delimiter, strict=True)
            n_fields = None
            try:
                for row in reader:
                    if row and len(row) != (n_fields := n_fields or len(row)):
                        why = f"expected {n_fields} fields, found {len(row)}"
                        raise SinkError(f"line {reader.line_num}: {why}")
                    if row:
                        yield row
            except UnicodeDecodeError as error:
                raise SinkError(f"line {reader.line_num + 1}: invalid UTF-8") from error
            except csv.Error as error:
                raise SinkError(f"line {reader.line_num}: {error}") from error


class Jsonl:
    """One object a line, in column order. Decimals, such as costs, are strings; times are ISO 8601 in UTC."""

    def stored_schema(self, schema: pa.Schema, key: str) -> pa.Schema:
        return _jsonl_schema(key)

    def stored(self, batch: pa.RecordBatch, key: str) -> pa.RecordBatch:
        columns = [_texts(c) if _is_worded(c.type) else c for c in batch.columns]
        names, rows = batch.schema.names, zip(*(column.to_pylist() for column in columns), strict=True)
        lines = [_json(dict(zip(names, row, strict=True))) for row in rows]
        columns = [batch.column(batch.schema.get_field_index(key)), pa.array(lines, pa.binary())]
        return pa.RecordBatch.from_arrays(columns, schema=self.stored_schema(batch.schema, key))

    def read(self, path: Path, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        schema = _jsonl_schema(key)
        return schema, self._batches(path, key, schema)

    def write(self, file: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
        n_rows = 0
        for batch in batches:
            file.write(_bytes(pc.binary_join_element_wise(batch.column(1), b"", b"\n")))
            n_rows += batch.num_rows
        return n_rows

    def table(self, path: Path) -> pa.Table:
        rows = [row for _, _, row in self._objects(path)]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {}
        for name in names:
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except pa.ArrowException as error:
                raise SinkError(f"column {name!r} is of mixed types: {error}") from error
        return pa.table(columns)

    def _batches(self, path: Path, key: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        objects = self._objects(path)
        while chunk := list(islice(objects, READ_ROWS)):
            keys = []
            for number, _, row in chunk:
                if key not in row:
                    raise missing_key(key, list(row), f"line {number}: ")
                if not isinstance(row[key], str):
                    raise SinkError(
                        f"line {number}: key {row[key]!r} is not text", hint="keys are text: load into another file"
                    )
                keys.append(row[key])
            lines = pa.array([line for _, line, _ in chunk], pa.binary())
            yield pa.RecordBatch.from_arrays([pa.array(keys, pa.string()), lines], schema=schema)

    def _objects(self, path: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
        with reading(path) as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(BOM_UTF8).strip()
                if not line:
                    continue
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise SinkError(f"line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise SinkError(f"line {number}: expected one JSON object a line")
                yield number, line, row


class Parquet:
    """Types as they are, zstd, row groups of up to ROW_GROUP_ROWS rows."""

    def stored_schema(self, schema: pa.Schema, key: str) -> pa.Schema:
        # A merge may leave any column empty, and dictionaries differ from file to file.
        kinds = [f.type.value_type if isinstance(f.type, pa.DictionaryType) else f.type for f in schema]
        return pa.schema(list(zip(schema.names, kinds, strict=True)))

    def stored(self, batch: pa.RecordBatch, key: str) -> pa.RecordBatch:
        return aligned(batch, self.stored_schema(batch.schema, key))

    def read(self, path: Path, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        file = pq.ParquetFile(path, pre_buffer=False)
        schema = self.stored_schema(file.schema_arrow, key)
        return schema, (aligned(batch, schema) for batch in file.iter_batches(READ_ROWS))

    def write(self, file: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
        n_rows = 0
        writer = pq.ParquetWriter(file, schema, compression="zstd")
        try:
            for held in _held(batches):
                group = pa.Table.from_batches(held, schema)
                writer.write_table(group, row_group_size=max(1, group.num_rows))
                n_rows += group.num_rows
            writer.close()
        except BaseException:
            writer.is_open = False  # or it would go on writing when it is collected
            raise
        return n_rows

    def table(self, path: Path) -> pa.Table:
        return pq.ParquetFile(path, pre_buffer=False).read()


FORMATS: dict[str, Format] = {"csv": Csv(","), "tsv": Csv("\t"), "jsonl": Jsonl(), "parquet": Parquet()}
ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def as_text(value: Any) -> str | None:
    """A value as a text format holds it: JSON's words, decimals in full, times ISO 8601 in UTC, nested values JSON."""
    match value:
        case None | str():
            return value
        case Decimal() | date():
            return _jsonable(value)
        case _:
            return _json(value).decode()


def _texts(column: Any) -> Any:
    """A column as `as_text` has each of its values. Words are made once for values that repeat themselves."""
    if column.type == pa.string():
        return column
    if not _is_worded(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    different = column.dictionary_encode()
    words = pa.array([as_text(value) for value in different.dictionary.to_pylist()], pa.string())
    return words.take(different.indices)


def _is_worded(kind: pa.DataType) -> bool:
    """Whether JSON has no value of this type, so that a text stands for it."""
    return pa.types.is_decimal(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def _bytes(texts: Any) -> memoryview:
    """The bytes of all texts, one after the other, not copied."""
    _, offsets, data = texts.buffers()
    ends = memoryview(offsets).cast("i")[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data or b"")[ends[0] : ends[-1]] if len(texts) else memoryview(b"")


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_jsonable, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError as error:
        raise SinkError(f"a value cannot be written as text: {error}", hint="load into a .parquet file") from error


def _jsonable(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError


def _jsonl_schema(key: str) -> pa.Schema:
    columns: list[tuple[str, pa.DataType]] = [(key, pa.string()), ("", pa.binary())]
    return pa.schema(columns)


def aligned(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with exactly these columns; those it lacks are null. Raises ArrowInvalid where a value does not fit."""
    columns = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        columns.append(pa.nulls(batch.num_rows, field.type) if place < 0 else batch.column(place).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def grouped(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of ROW_GROUP_ROWS rows, or fewer where they are big."""
    for held in _held(batches):
        yield from pa.Table.from_batches(held, schema).combine_chunks().to_batches()


def _held(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The same rows in lists of batches that together make a row group; at least one list."""
    held: list[pa.RecordBatch] = []
    n_rows = n_bytes = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROW_GROUP_ROWS):
            held.append(part := batch.slice(start, ROW_GROUP_ROWS))
            n_rows += part.num_rows
            n_bytes += part.nbytes
            if n_rows >= ROW_GROUP_ROWS or n_bytes >= ROW_GROUP_BYTES:
                yield held
                held, n_rows, n_bytes = [], 0, 0
    yield held


def missing_key(key: str, names: list[str], where: str = "") -> SinkError:
    return SinkError(
        f"{where}no column {key!r} to merge on; it has {', '.join(names) or 'no columns'}",
        hint="load into another file, or use `mode: replace`",
    )
