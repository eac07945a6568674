"""A contract x a publication x now -> fresh, stale, blocked or never built, and whether a cadence can keep it. Pure.

Age is measured from `source_as_of`, when the input was read, and never from when the answer was made: an answer that took a
day to make was a day old when it was born (age of information; methods.md 6).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

OnStale = Literal["serve", "block", "refresh", "live"]
COMPONENTS = ("prompt", "model", "params", "schema", "input")  # of a fingerprint, in the order a report names them


@dataclass(frozen=True, slots=True)
class Contract:
    """What one reader accepts of one job."""

    job: str
    reader: str  # who reads: "dash/support"
    max_age_s: int
    on_stale: OnStale
    missed_runs: int = 0  # failed runs in a row that it must survive


@dataclass(frozen=True, slots=True)
class Publication:
    """An accepted set of results, readable. Immutable; a later one takes its place, an older one never does."""

    job: str
    version: int
    source_as_of: datetime
    produced_at: datetime
    effective_until: datetime | None  # when its input is known to change; None: not known
    components: Mapping[str, str]  # name -> digest of each part that decides the answers
    rows: int
    failed: int
    cost_micros: int
    verdict: str  # of the gate, in words; "no gate" where the job has none
    blob: str  # Parquet of its rows
    key: str  # the key column


@dataclass(frozen=True, slots=True)
class Fresh:
    """Within the contract."""

    publication: Publication
    age: timedelta


@dataclass(frozen=True, slots=True)
class Stale:
    """Past the contract, and served all the same because the reader said so."""

    publication: Publication
    age: timedelta
    why: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Past the contract, and not served."""

    publication: Publication
    age: timedelta
    why: str


@dataclass(frozen=True, slots=True)
class NeverBuilt:
    """Nothing was ever accepted."""

    job: str
    why: str


Answer: TypeAlias = Fresh | Stale | Blocked | NeverBuilt


def judge(contract: Contract, newest: Publication | None, now: datetime) -> Answer:
    """What a reader gets now. `on_stale: refresh` serves the stale one while somebody makes the next; `live` blocks here,
    for what is asked of a provider instead is no publication."""
    if newest is None:
        return NeverBuilt(contract.job, "nothing of this job was accepted yet")
    age, most = now - newest.source_as_of, timedelta(seconds=contract.max_age_s)
    if newest.effective_until is not None and now > newest.effective_until:
        why = f"its input changed at {newest.effective_until:%Y-%m-%d %H:%M} UTC"
    elif age > most:
        why = f"{span(age)} old, counted from when its input was read; {contract.reader} accepts {span(most)}"
    else:
        return Fresh(newest, age)
    return Stale(newest, age, why) if contract.on_stale in ("serve", "refresh") else Blocked(newest, age, why)


def newest(publications: Iterable[Publication]) -> Publication | None:
    """The one readers see: of the latest input, however late an older one arrives; of one input the last made."""
    return max(publications, key=lambda p: (p.source_as_of, p.version), default=None)


# -------------------------------------------------------------------------------------------------------- feasibility


@dataclass(frozen=True, slots=True)
class Cadence:
    """Whether refreshing every `period` can keep a contract, with the arithmetic."""

    holds: bool
    worst_age_s: int
    arithmetic: str


def cadence(contract: Contract, period_s: int, turnaround_s: int, basis: str) -> Cadence:
    """P + q(T) <= S, and (1 + k) P + q(T) <= S where k failed runs in a row must be survived (methods.md 6).

    `turnaround_s`: the quantile q(T) of what a run takes; `basis` says of how many, or that it is the provider's window.
    """
    worst = (1 + contract.missed_runs) * period_s + turnaround_s
    runs = f"{1 + contract.missed_runs} x {_s(period_s)}" if contract.missed_runs else _s(period_s)
    holds = worst <= contract.max_age_s
    relation = "<=" if holds else ">"
    sum_ = f"every {runs} + {_s(turnaround_s)} to make it ({basis}) = {_s(worst)}"
    return Cadence(holds, worst, f"{sum_} {relation} {_s(contract.max_age_s)} for {contract.reader}")


def mean_age_s(period_s: float, mean_turnaround_s: float) -> float:
    """Of an answer as readers see it, averaged over time: P/2 + E[T] (P=6 h, T=1.5 h: 4.5 h; at most P + T = 7.5 h)."""
    return period_s / 2 + mean_turnaround_s


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Which parts of a fingerprint differ, in the order of COMPONENTS."""
    names = [*COMPONENTS, *sorted((before.keys() | after.keys()) - set(COMPONENTS))]
    return tuple(name for name in names if before.get(name) != after.get(name))


# ------------------------------------------------------------------------------------------------------ refresh budget


def refreshes(change_rates: Sequence[float], budget: float, weights: Sequence[float] | None = None) -> list[float]:
    """How often to refresh each row, a period, so that most of what is read is fresh: maximise the sum of
    w f/r (1 - exp(-r/f)) with frequencies f that sum to `budget` (Cho & Garcia-Molina, TODS 2003).

    What changes too fast gets nothing: refreshing it is money for an answer that is stale at once. Known answer:
    rates 1..5, budget 5 -> 1.15, 1.36, 1.35, 1.14, 0.00. Rates that are not known are best treated alike: uniform.
    """
    weights = weights or [1.0] * len(change_rates)
    if len(weights) != len(change_rates) or budget < 0 or min(change_rates, default=0) < 0:
        raise ValueError("expected a rate and a weight of each row, none below 0")
    moving = [i for i, rate in enumerate(change_rates) if rate > 0 and weights[i] > 0]
    if not moving or budget == 0:
        return [0.0] * len(change_rates)

    def bought(price: float) -> list[float]:
        """Frequencies at which one refresh more of any row would be worth just this price."""
        found = [0.0] * len(change_rates)
        for i in moving:
            found[i] = _frequency(change_rates[i], price * change_rates[i] / weights[i])
        return found

    low, high = 0.0, max(weights[i] / change_rates[i] for i in moving)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(bought(middle)) > budget else (low, middle)
    more, less = bought(low), bought(high)  # as close as floats come: the budget lies between them
    part = (budget - sum(less)) / (sum(more) - sum(less)) if sum(more) > sum(less) else 0.0
    return [part * f + (1 - part) * g for f, g in zip(more, less, strict=True)]


def _frequency(rate: float, marginal: float) -> float:
    """f at which 1 - (1 + r/f) exp(-r/f), the worth of a refresh more, is `marginal`; it falls as f grows."""
    if marginal >= 1:
        return 0.0
    low, high = 0.0, 1e3  # of r/f
    for _ in range(100):
        x = (low + high) / 2
        low, high = (x, high) if 1 - (1 + x) * math.exp(-x) < marginal else (low, x)
    return rate / high


def span(time: timedelta) -> str:
    """A time as a person reads it: 45 s, 12 min, 9 h, 3 h 20 min, 2 d 4 h."""
    return _s(round(time.total_seconds()))


def _s(seconds: int) -> str:
    if seconds < 0:
        return f"-{_s(-seconds)}"
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 24 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
