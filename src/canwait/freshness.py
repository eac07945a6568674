"""A contract x a publication x now -> fresh, stale, blocked or never built, and whether a cadence can keep it. Pure.

Age is measured from `source_as_of`, when the input was read, and never from when the answer was made: an answer that took a
day to make was a day old when it was born (age of information; methods.md 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

OnStale = Literal["serve", "block", "refresh", "live"]
_SERVES = ("serve", "refresh")  # what is stale
MAX_AGE_S, MAX_MISSED_RUNS = 3650 * 86_400, 1000  # of a contract
COMPONENTS = ("prompt", "model", "params", "schema", "input")  # of a fingerprint, in the order a report names them
_CLOCKS_APART = timedelta(minutes=1)  # two machines' clocks, at most; more is a clock that is wrong
_BEGINNING = datetime.min.replace(tzinfo=UTC)


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
    """An accepted set of results, readable; a later one takes its place, an older one never does."""

    job: str
    version: int
    source_as_of: datetime
    produced_at: datetime
    effective_until: datetime | None  # when its input was found changed, or the next one was made; None: neither yet
    components: Mapping[str, str]  # name -> digest of each part that decides the answers
    rows: int
    failed: int
    cost_micros: int
    verdict: str  # of the gate, in words; "no gate" where the job has none
    blob: str  # Parquet of its rows
    key: str  # the key column
    kept: bool = True  # whether its rows still are
    refused: str | None = None  # why nobody is served it any more

    def is_misdated(self, now: datetime) -> bool:
        """Whether its `source_as_of` cannot be: it lies ahead, or what ended the publication came before it."""
        latest = min(now, self.effective_until or now)
        return self.source_as_of - latest > _CLOCKS_APART


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
class Live:
    """Past the contract, or not there: what is read is asked for now, row by row, and paid."""

    publication: Publication | None  # the newest, which is not served; None: nothing was accepted yet
    why: str


@dataclass(frozen=True, slots=True)
class NeverBuilt:
    """Nothing was ever accepted."""

    job: str
    why: str


Answer: TypeAlias = Fresh | Stale | Blocked | Live | NeverBuilt


def judge(contract: Contract, newest: Publication | None, now: datetime) -> Answer:
    """What a reader gets now. `on_stale: refresh` serves the stale one while somebody makes the next; `live` serves none.

    An input that is known to have changed (`effective_until`) breaks no contract: P + q(T) <= S leaves a run its time.
    """
    is_live = contract.on_stale == "live"
    if newest is None:
        why = "nothing of this job was accepted yet"
        return Live(None, why) if is_live else NeverBuilt(contract.job, why)
    age, most = now - newest.source_as_of, timedelta(seconds=contract.max_age_s)
    if newest.is_misdated(now):
        when = f"{span(-age)} from now" if age < timedelta(0) else "after it was replaced"
        why = f"of no known age: by its date its input was read {when}, so a clock was wrong"
    elif age > most:
        why = f"{span(age)} old, counted from when its input was read; {contract.reader} accepts {span(most)}"
    else:
        return Fresh(newest, age)
    if is_live:
        return Live(newest, why)
    return Stale(newest, age, why) if contract.on_stale in _SERVES else Blocked(newest, age, why)


def latest(publications: Iterable[Publication], now: datetime) -> Publication | None:
    """The one readers see, of all in the order of their versions: of the latest input, however late an older one arrives;
    of one input the last made. One whose date cannot be stands where it was made, until an input is read after that."""
    found, as_of = None, _BEGINNING
    for publication in publications:
        if publication.source_as_of < as_of or publication.refused is not None or not publication.kept:
            continue
        found = publication
        if not publication.is_misdated(now):
            as_of = publication.source_as_of
    return found


def stricter(ours: Contract, stated: Contract | None) -> Contract:
    """What a reader gets by its own terms, or by those a person revised where they accept less.

    A revision to `live` blocks who serves what is stale: how to ask live, and for how much, is for a reader's code to say.
    """
    if stated is None:
        return ours
    on_stale = ours.on_stale
    if stated.on_stale == "block" or (stated.on_stale == "live" and ours.on_stale in _SERVES):
        on_stale = "block"
    return replace(ours, max_age_s=min(ours.max_age_s, stated.max_age_s), on_stale=on_stale)


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


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Which parts of a fingerprint differ, in the order of COMPONENTS."""
    names = [*COMPONENTS, *sorted((before.keys() | after.keys()) - set(COMPONENTS))]
    return tuple(name for name in names if before.get(name) != after.get(name))


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
