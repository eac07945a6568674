"""Data frames as rows, and back into the same kind of frame. Neither pandas nor polars is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from ..errors import Problem, SourceError
from . import BATCH_ROWS, RowBatch, RowSource
from .digest import RowDigest
from .parquet import row_batch


def from_frame(frame: Any) -> RowSource:
    """The rows of a frame, read as often as needed. Raises SourceError as `to_table` does."""
    return _FrameSource(to_table(frame))


def to_table(frame: Any) -> pa.Table:
    """A pandas or polars frame, a pyarrow Table or RecordBatchReader, or any other Arrow stream, as a Table.

    A named pandas index is a column; missing values (None, NaN, NaT) are None. A RecordBatchReader can be read
    only once, so its rows are held in memory. Raises SourceError for anything else, and for a column of mixed types.
    """
    try:
        if _family(frame) == "pandas":
            named = any(name is not None for name in frame.index.names)
            table = pa.Table.from_pandas(frame, preserve_index=named)
        elif hasattr(frame, "__arrow_c_stream__"):
            table = pa.RecordBatchReader.from_stream(frame).read_all()  # pa.table would import pandas
        else:
            kind = f"{type(frame).__module__}.{type(frame).__qualname__}"
            raise _refused(
                f"found {kind}, expected a pandas or polars DataFrame, or a pyarrow Table or RecordBatchReader"
            )
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise _refused(f"has no Arrow form: {' '.join(str(error).split())}") from error
    if twice := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
        raise SourceError([Problem("frame", None, None, None, f"column {name!r} stands twice") for name in twice])
    return table


def to_frame_like(frame: Any, table: pa.Table) -> Any:
    """`table` as the kind of frame that `frame` is; a pyarrow Table where the kind is not known.

    In pandas, integers and booleans are the nullable types: a failed row must not turn 1 into 1.0.
    """
    match _family(frame):
        case "pandas":
            pd = sys.modules["pandas"]  # loaded: the frame is its own
            nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
            return table.to_pandas(types_mapper=nullable.get)
        case "polars":
            return sys.modules["polars"].from_arrow(table)
        case _:
            return table.to_reader() if isinstance(frame, pa.RecordBatchReader) else table


class _FrameSource:
    name = "frame"

    def __init__(self, table: pa.Table) -> None:
        self.columns = tuple(table.column_names)
        self._table = table

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        names = list(self.columns if columns is None else columns)
        # Not to_batches: its pieces follow the table's chunks, and equal rows would have different fingerprints.
        for start in range(0, self._table.num_rows, BATCH_ROWS):
            yield row_batch(self._table.slice(start, BATCH_ROWS).select(names), start + 1)

    def fingerprint(self) -> str:
        """sha256 over names and values, so it does not depend on the kind of frame."""
        digest = RowDigest(self.columns)
        for batch in self.batches():
            digest.add(map(list, batch.columns.values()))
        return digest.hexdigest()


def _family(frame: Any) -> str | None:
    """The library a DataFrame belongs to, subclasses included."""
    for cls in type(frame).__mro__:
        if cls.__name__ == "DataFrame":
            return cls.__module__.partition(".")[0]
    return None


def _refused(why: str) -> SourceError:
    return SourceError([Problem("frame", None, None, None, why)], hint="nothing was sent")
