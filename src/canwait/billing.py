"""What a shard was billed, from its landed rows and the batch's own bill: confirmed, wasted, and what may have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import parts, settling
from .landing import Landed
from .price import cost_micros, worst_micros
from .types import Batch, Outcome, Price, Usage


@dataclass(frozen=True, slots=True)
class Bill:
    """Money in micros, rounded up once."""

    usage: Usage
    confirmed: int
    wasted: int  # of the confirmed: for rows that cannot be used
    beyond: int  # of the confirmed: more than the rows that came back state
    unknown: int  # may have been billed besides
    unknown_tokens: int


def bill(landed: Landed, batch: Batch, price: Price, manifest: pa.Table) -> Bill:
    """Where rows may have been billed and do not say so, their worst case is unknown, unless the batch states its own bill."""
    usage, stated = landed.usage, _ceil(landed.exact_micros)
    confirmed, unknown = stated, landed.fates.lines(lambda fate: fate.billed == "unknown")
    flat = _flat(price, max(parts.column(manifest, "input_bound"), default=0))
    if batch.usage is not None and flat is not None and settling.batch_usage_counts(batch, usage):
        confirmed, usage, unknown = max(confirmed, cost_micros([batch.usage], flat)), batch.usage, []
    bounds = parts.bounds(manifest, unknown)
    wasted = min(confirmed, _ceil(landed.exact_wasted_micros) + confirmed - stated)
    held = worst_micros(bounds, price) if bounds else 0
    return Bill(usage, confirmed, wasted, confirmed - stated, held, sum(i + o for i, o in bounds))


def paid_twice(found: Bill, landed: Landed, results: Path, root_lines: Sequence[int], again: Sequence[int]) -> int:
    """Of the wasted, what was billed for lines that are asked again, and so are paid once more."""
    if not (found.wasted and again):
        return 0
    twice = _paid_for(results, [root_lines[line] for line in again])
    if any(landed.fates[line].outcome is Outcome.MISSING for line in again):
        twice += found.beyond
    return min(twice, found.wasted)


def _paid_for(results: Path, root_lines: Sequence[int]) -> int:
    """Micros that were billed for these lines, by a file of results."""
    found = pq.read_table(results, columns=["line", "cost_micros"])
    of_these = found.filter(pc.is_in(found["line"], pa.array(root_lines, pa.int32())))
    return _ceil(pc.sum(of_these["cost_micros"], min_count=0).as_py() or Decimal(0))


def _ceil(exact: Decimal) -> int:
    return int(exact.to_integral_value(ROUND_CEILING))


def _flat(price: Price, longest_input: int) -> Price | None:
    """The price of a sum of requests; None where some may be long enough for other rates, so that a sum has no price."""
    if any(longest_input > step.above_input_tokens for step in price.steps):
        return None
    return replace(price, steps=())
