"""Parquet: values as Python values of their type, dictionaries decoded; a line is the row's number from 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Problem, SourceError
from . import BATCH_ROWS, RowBatch
from .files import SourceFile


class ParquetSource:
    def __init__(self, file: SourceFile) -> None:
        self.name = file.name
        self._file = file
        with file.open() as stream:
            try:
                names = pq.ParquetFile(stream, pre_buffer=False).schema_arrow.names
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(self.name, error) from error
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SourceError([Problem(self.name, None, None, None, f"column {name!r} stands twice") for name in twice])
        self.columns = tuple(names)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        names = list(self.columns if columns is None else columns)
        first = 1
        with self._file.open() as stream:
            try:
                # pre_buffer keeps what it has read: 444 MiB more for a file of 375 MB (performance.md 3).
                for batch in pq.ParquetFile(stream, pre_buffer=False).iter_batches(BATCH_ROWS, columns=names):
                    yield row_batch(batch.select(names), first)  # "a.b" also reads field b of a column a
                    first += batch.num_rows
            except (pa.ArrowException, OSError, ValueError) as error:
                raise _unreadable(self.name, error, after=first - 1) from error

    def fingerprint(self) -> str:
        return self._file.fingerprint()


def row_batch(rows: pa.RecordBatch | pa.Table, first: int) -> RowBatch:
    """Rows of an Arrow table, of which the first has this number."""
    columns = {name: _values(rows.column(i)) for i, name in enumerate(rows.schema.names)}
    return RowBatch(columns, range(first, first + rows.num_rows))


def _values(column: Any) -> list[Any]:
    """Python values. Nanoseconds are cut to microseconds, the finest Python has, whether or not pandas is there."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif pa.types.is_time64(kind) and kind.unit == "ns":
        column = column.cast(pa.time64("us"), safe=False)
    elif pa.types.is_duration(kind) and kind.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    values: list[Any] = column.to_pylist()
    return values


def _unreadable(name: str, error: Exception, after: int = 0) -> SourceError:
    where = f"cannot be read after row {after:,}" if after else "is not a Parquet file that can be read"
    why = " ".join(str(error).split())
    return SourceError(
        [Problem(name, None, None, None, f"{where}: {why}")], hint="write the file again, then plan again"
    )
