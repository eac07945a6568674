"""Which dated, sourced price holds today. Three layers, the first that knows wins, and nothing is guessed:

the user's file  prices.toml beside the job file, or CANWAIT_PRICES: rates, or a factor on what is known below
overlay.toml     ours: what the book below lacks or has wrong, each line with its source
genai-prices     the maintained price book, asked only through the guard in snapshot.py
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal, localcontext
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TypeVar

from ..errors import UnknownPrice
from ..price import EXACT
from ..types import Price, PriceStep, Tier
from .lines import Line, current, read

OVERRIDES = "prices.toml"
_OVERLAY = Path(__file__).with_name("overlay.toml")
_OWN_SOURCE = "your own server: nothing is billed per token"
_OURS = frozenset({"own", "local"})

_Rates = TypeVar("_Rates", Price, PriceStep)


def lookup(provider: str, model: str, tier: Tier, *, today: date, overrides: Path | None = None) -> Price:
    """The price that holds today. Raises UnknownPrice with the reason, SpecError for a bad file of the user's."""
    stated = read(overrides) if overrides else ()
    line = current(stated, provider, model, tier, today)
    if line and line.price:
        return line.price
    price = _published(provider, model, tier, today, stated)
    return _scaled(price, line) if line else price


def find_overrides(base_dir: Path, named: str | None = None) -> Path | None:
    """The user's file: beside the job file, else the one `named` (the value of CANWAIT_PRICES), else none."""
    beside = base_dir / OVERRIDES
    if beside.is_file():
        return beside
    return Path(named) if named else None


def age_days(price: Price, today: date) -> int:
    """Days since the price was last known to hold."""
    return (today - price.as_of).days


def book() -> tuple[str, str, date]:
    """Name, version and date of the price book, for provenance."""
    from . import snapshot  # loads the price book

    return snapshot.identity()


def _published(provider: str, model: str, tier: Tier, today: date, stated: tuple[Line, ...]) -> Price:
    if provider in _OURS and tier is Tier.OWN:
        free = Decimal(0)
        return Price(provider, model, tier, free, free, None, None, _OWN_SOURCE, today)
    line = current(_overlay(), provider, model, tier, today)
    if line and line.price:
        return line.price
    from . import snapshot  # loads the price book: not needed above

    found = snapshot.find(provider, model, tier, today)
    if isinstance(found, Price):
        return found
    known = {x.model for x in (*stated, *_overlay()) if x.provider == provider} | snapshot.models(provider)
    near = [] if model in known else get_close_matches(model, known, n=3, cutoff=0.7)
    alike = f"; names that look alike: {', '.join(near)}" if near else ""
    raise UnknownPrice(
        f"No {tier.value} price is known for {provider}/{model}: {found}{alike}.",
        provider=provider,
        model=model,
        tier=tier.value,
    )


@cache
def _overlay() -> tuple[Line, ...]:
    return read(_OVERLAY)


def _scaled(price: Price, line: Line) -> Price:
    """The price under a contract's multiplier."""
    assert line.multiplier is not None
    with localcontext(EXACT):
        return replace(
            _times(price, line.multiplier),
            steps=tuple(_times(step, line.multiplier) for step in price.steps),
            source=f"{line.source}: {line.multiplier} x {price.source}",
            as_of=min(price.as_of, line.as_of),
        )


def _times(rates: _Rates, multiplier: Decimal) -> _Rates:
    return replace(
        rates,
        input=rates.input * multiplier,
        output=rates.output * multiplier,
        cached_input=None if rates.cached_input is None else rates.cached_input * multiplier,
        cache_write=None if rates.cache_write is None else rates.cache_write * multiplier,
    )
