"""The sink seam: accepted rows out, all of them or none.

A loaded row is the key under its own name, then the output's fields, then what they cost and where they come from
(PROVENANCE). Sinks never see the ledger. Loading the same rows twice leaves what loading them once leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

PROVENANCE = ("_model", "_tier", "_cost_usd", "_produced_at")


class Sink(Protocol):
    name: str  # the target as the user wrote it

    def load(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
        """Bring all rows into the target in one atomic step; returns the rows the target has afterwards.

        `batches` all have `schema`; its key column is text, and no key stands twice in them. Raises SinkError, and
        whatever `batches` raises; either way the target is as it was.
        """
        ...
