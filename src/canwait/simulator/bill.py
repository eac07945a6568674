"""What the provider charges: its usage at the dated price, rounded up once a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from ..errors import UnknownPrice
from ..types import Tier, Usage


@dataclass(frozen=True, slots=True)
class BilledBatch:
    """One line of the bill: a batch, or a synchronous call."""

    id: str
    provider: str
    model: str | None  # None: rows of several models
    tier: Tier
    token: str  # what the custom ids begin with; "" for a synchronous call
    n_rows: int  # rows billed
    usage: Usage
    micros: int | None  # None: no price is known for a model in it


def charge(provider: str, tier: Tier, usages: Mapping[str, Iterable[Usage]], today: date) -> int | None:
    """Micros for the requests of each model; None where a price is not known, because unknown is not zero."""
    from ..price import cost_micros  # the price book is heavy; nothing but a bill needs it
    from ..prices import lookup

    try:
        return sum(
            cost_micros(requests, lookup(provider, model, tier, today=today)) for model, requests in usages.items()
        )
    except UnknownPrice:
        return None
