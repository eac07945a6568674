"""The source seam: rows in, in batches of bounded size, each row with the line a person would look at.

A source never sees the ledger. It yields text as text: `"000123"` stays `"000123"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BATCH_ROWS = 1024  # 512-1,024 rows measured best (performance.md 3)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Up to BATCH_ROWS rows, column by column."""

    columns: Mapping[str, Sequence[Any]]  # every column as long as `lines`
    lines: Sequence[int]  # where each row starts in the file, counted from 1 (frames: row number from 1)


class RowSource(Protocol):
    name: str  # as printed in errors: the path as the user wrote it, or "frame"
    columns: tuple[str, ...]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        """All rows once, in order, with these columns of the source, or all of them.

        Raises SourceError with file:line for what cannot be read (all problems at once).
        """
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) over the bytes the rows come from: equal fingerprints mean equal rows."""
        ...
