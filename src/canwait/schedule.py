"""Offers x deadline x turnaround -> which tier, when its rows are back, and until when it may still be waited for. Pure.

Cheap and slow first, with a safety net: what is not back by the latest safe start of the redo is moved to a tier that
answers row by row (methods.md 3). How long things take is learned from what was seen; where too little was seen, the
provider's window or a rate limit stands in, as one step, and the words say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from statistics import median

from .freshness import span
from .turnaround import ENOUGH, WINDOW, Seen, Survival, adaptive, batches_needed, next_batch, survival
from .types import Offer, Tier

CANCEL_S = 600.0  # a cancel may take ten minutes and rows in progress still finish (OpenAI, Anthropic; providers.md)
LOOK_S = 60.0  # between two looks at what is out
SURE = Decimal("0.99")  # of a redo's time; with fewer than 99 past runs not measurable, see `pace`
MARGIN = 1.4  # below a rate limit, or the slowest run, where the 99 % quantile is not known (methods.md 3.3)
MISSES = 0.01  # deadlines that may be missed, as a share


# -------------------------------------------------------------------------------------------------- how long it takes


@dataclass(frozen=True, slots=True)
class Turnaround:
    """How long rows take on one offer: as it was seen, or one step."""

    curve: Survival
    known: bool  # False: too few were seen, and the curve is one step at the latest time
    basis: str  # what it rests on, in words

    def back(self, seconds: float) -> float:
        """The share of batches that is back by then."""
        return 1 - self.curve.at(seconds)

    def odds(self, elapsed_s: float, within_s: float) -> float:
        """Of batches out for `elapsed_s`, the share that is back `within_s` later. 0 where none was out so long."""
        out = self.curve.at(elapsed_s)
        return 1 - self.curve.at(elapsed_s + max(0.0, within_s)) / out if out else 0.0


def turnaround(seen: Sequence[Seen], window_s: float) -> Turnaround:
    """Of a batch, by the Kaplan-Meier estimate; with fewer than `ENOUGH` batches, a step at the provider's window."""
    curve = survival(seen)
    if curve.n_ended and curve.n >= ENOUGH:
        return Turnaround(curve, True, based_on(curve))
    why = f"the provider's window of {_span(window_s)}; {curve.n} past batches are too few ({ENOUGH} needed)"
    return Turnaround(_step(window_s, curve), False, why)


def based_on(curve: Survival) -> str:
    """The sample in words: no share is shown without it."""
    n_out = curve.n - curve.n_ended
    return f"{curve.n} past batches" + (f"; {n_out} still unfinished are counted" if n_out else "")


def _step(seconds: float, curve: Survival) -> Survival:
    return Survival((seconds,), (0.0,), curve.n, curve.n_ended)


@dataclass(frozen=True, slots=True)
class Ready:
    """When all batches of a plan are back."""

    p50_s: float
    p95_s: float
    words: str
    basis: str = ""  # which past ones it rests on


def in_turn(canary: Ready, others: Ready, p50_s: float, p95_s: float, sizes: Sequence[int]) -> Ready:
    """The canary, and the others when it is back, in waves of so many batches."""
    first, then = (r.words.removeprefix("ready in ") for r in (canary, others))
    if len(sizes) > 1:
        *most, last = map(str, sizes)
        then = f"waves of {', '.join(most)} and {last} batches, each once those before it are tested"
    else:
        then = f"the others in {then}"
    words = f"ready in {_span(p50_s)} (p50), {_span(p95_s)} (p95): the canary in {first}; then {then}"
    return Ready(p50_s, p95_s, words, "; then ".join(dict.fromkeys((canary.basis, others.basis))))


def ready_in_a_row(rates: Sequence[float], limit_rows_per_s: float | None, n_rows: int) -> Ready | None:
    """Rows answered one by one, by the rates of past runs; None where nothing is known."""
    known = pace(rates, limit_rows_per_s)
    if known is None:
        return None
    p95_s = known.redo_s(n_rows)
    p50_s = min(p95_s, n_rows / median(rates)) if rates else p95_s
    return Ready(p50_s, p95_s, f"ready in {_span(p50_s)} (p50), {_span(p95_s)} (p95): {known.basis}", known.basis)


def ready_by(seen: Sequence[Seen], n_batches: int, window_s: float) -> Ready:
    """The last of `n_batches` sent together, by the conformal bound of the last batches seen; after misses p95 is later
    (adaptive), up to the longest seen. The window where too few were seen. `seen` is in the order they were sent.

    Each must be back with probability p^(1/n). Batches of one day are slow together, so this is late rather than early.
    """
    p50_s, p50 = _last_of(seen, Decimal("0.5"), n_batches, window_s)
    p95_s, p95 = _last_of(seen, Decimal("0.95"), n_batches, window_s)
    if p50_s == p95_s:  # of too few the window is all there is to say
        return Ready(p50_s, p95_s, f"ready in {_span(p95_s)} ({p95})")
    return Ready(p50_s, p95_s, f"ready in {_span(p50_s)} (p50: {p50}), {_span(p95_s)} (p95: {p95})")


def _last_of(seen: Sequence[Seen], share: Decimal, n_batches: int, window_s: float) -> tuple[float, str]:
    each = share ** (1 / Decimal(n_batches))
    needs = batches_needed(each)
    n_recent = max(WINDOW, needs)
    recent = seen[-n_recent:]
    bound = next_batch(recent, each)
    if bound.seconds is None:
        why = "too many never ended" if bound.n >= needs else f"{needs} needed"
        return window_s, f"the provider's window; {bound.n} past batches, {why}"
    seconds = bound.seconds
    if share > Decimal("0.5"):  # a median needs no help: half of all batches miss it
        late = adaptive(
            seen[-4 * n_recent :], each, window=n_recent
        )  # unknown where it asks for more than was ever seen
        seconds = max(seconds, late.seconds or max(s.seconds for s in recent if s.ended))
    return min(seconds, window_s), f"{bound.n} past batches"


# ---------------------------------------------------------------------------------------------------------- the redo


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast rows go on a tier that answers them one by one; slower one time in a hundred."""

    rows_per_s: float
    n: int  # past runs it rests on
    basis: str

    def redo_s(self, n_rows: int) -> float:
        return n_rows / self.rows_per_s


def pace(rates: Sequence[float], limit_rows_per_s: float | None) -> Pace | None:
    """From the rows per second of past runs, and the rate that the account's limit allows. None: nothing is known.

    The rate that 99 % of runs kept, from 99 runs on. With fewer, the slowest run or the limit, whichever is less, and a
    margin: learning the rate with a thin margin missed 24 % of deadlines (methods.md 3.3). Never above the limit.
    """
    limit = [] if limit_rows_per_s is None else [limit_rows_per_s]
    slow = next_batch([Seen(1 / rate) for rate in rates], SURE).seconds
    if slow is not None:
        return Pace(min(1 / slow, *limit) if limit else 1 / slow, len(rates), f"99 % of {len(rates)} past runs kept it")
    if not rates and not limit:
        return None
    least = min([*rates, *limit])
    what = "the rate limit" if limit == [least] else f"the slowest of {len(rates)} past runs"
    return Pace(least / MARGIN, len(rates), f"{what} / {MARGIN}; {batches_needed(SURE)} past runs would tell more")


def latest_start(deadline: datetime, n_rows: int, pace: Pace, cancel_s: float = CANCEL_S) -> datetime:
    """Until when rows may still be waited for: from then on, redoing them takes until the deadline."""
    return deadline - timedelta(seconds=pace.redo_s(n_rows) + cancel_s)


# ---------------------------------------------------------------------------------------------------- choosing a tier


@dataclass(frozen=True, slots=True)
class Net:
    """What unfinished rows are moved to: the tier, and all rows of the plan on it."""

    tier: Tier
    n_rows: int
    micros: int  # expected
    worst_micros: int
    pace: Pace
    cancel_s: float = CANCEL_S

    @property
    def needs_s(self) -> float:
        """From asking to cancel to the last row, 99 times in 100."""
        return self.pace.redo_s(self.n_rows) + self.cancel_s


@dataclass(frozen=True, slots=True)
class Way:
    """One offer as a way to do all rows of a plan."""

    offer: Offer
    micros: int  # expected
    turnaround: Turnaround
    waste_micros: int = 0  # what a cancelled batch bills for rows that are then paid once more


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a way costs and risks, its rescue counted in."""

    way: Way
    expected_micros: int  # misses not counted in
    p_miss: float
    rescue_s: float | None  # what is not back after so long is moved; None: nothing is moved
    weight_micros: int  # with the penalty of a miss


@dataclass(frozen=True, slots=True)
class Choice:
    """The way to take, the others beside it, and the reason."""

    taken: Weighed
    safe: bool  # it misses no more often than was allowed
    weighed: tuple[Weighed, ...]  # in the order given
    why: str


def choose(
    ways: Sequence[Way], deadline_s: float, net: Net | None, *, miss_micros: int = 0, misses: float = MISSES
) -> Choice:
    """The least E = c F(t) + (1 - F(t)) (c_net + waste) + M P(miss) among ways with P(miss) <= misses; where no way is
    that safe, the one that misses least. Ties go to the way named first. Raises ValueError without a way.
    """
    if not ways:
        raise ValueError("no offer to choose from")
    weighed = tuple(weigh(way, deadline_s, net, miss_micros) for way in ways)
    safe = any(w.p_miss <= misses for w in weighed)
    taken = min(weighed, key=lambda w: (max(w.p_miss, misses), w.weight_micros))
    tier, basis = taken.way.offer.tier.value, taken.way.turnaround.basis
    risk = f"misses the deadline about {_percent(taken.p_miss)} of the time ({basis})"
    if not safe:
        return Choice(taken, False, weighed, f"no tier is sure to be in time; {tier} {risk}, least of all")
    return Choice(taken, True, weighed, f"{tier} is the cheapest that is safe: {risk}")


def weigh(way: Way, deadline_s: float, net: Net | None, miss_micros: int = 0) -> Weighed:
    """One way. It is rescued on the net where that is another tier and time enough is left to wait at all."""
    rescue_s = None
    back, moved, p_miss = Fraction(1), 0, 1 - way.turnaround.back(deadline_s)
    if net is not None and net.tier is not way.offer.tier and (left := deadline_s - net.needs_s) > 0:
        out = 1 - way.turnaround.back(left)
        rescue_s, back, moved = left, 1 - Fraction(out), net.micros + way.waste_micros
        p_miss = out * float(1 - SURE)
    expected = math.ceil(way.micros * back + moved * (1 - back))
    return Weighed(way, expected, p_miss, rescue_s, expected + math.ceil(miss_micros * Fraction(p_miss)))


def report(choice: Choice, net: Net | None, start: datetime) -> str:
    """What will happen, in words: "Batch first. If not finished by 14:20 UTC we move what is left to standard, at most
    +$31.00. Based on 64 past batches; 7 still unfinished are counted."
    """
    taken = choice.taken
    tier, basis = taken.way.offer.tier.value.capitalize(), taken.way.turnaround.basis
    if taken.rescue_s is not None and net is not None:
        by = clock(start + timedelta(seconds=taken.rescue_s), start)
        first = f"{tier} first. If not finished by {by} we move what is left to {net.tier.value}, at most "
        return f"{first}+{_usd(net.worst_micros)}. Based on {basis}."
    late = f"In time about {_percent(1 - taken.p_miss)} of the time. Based on {basis}."
    if net is None:
        return f"{tier} only: no rate of another tier is known, so nothing can be moved in time. {late}"
    if net.tier is taken.way.offer.tier:
        return f"{tier} from the start. {late}"
    return f"{tier} only: moving rows to {net.tier.value} takes {_span(net.needs_s)}, longer than there is. {late}"


# --------------------------------------------------------------------------------------------------- shard by shard


@dataclass(frozen=True, slots=True)
class Out:
    """A shard whose batch is out."""

    shard: str
    n_rows: int  # all of them: what a provider counts as done frees no time
    elapsed_s: float
    n_done: int | None = None  # as the provider counts; it only decides who goes first
    may_move: bool = True  # False: it waits for something else first, and its rows only count


@dataclass(frozen=True, slots=True)
class Spill:
    """What to move now, and when to ask again."""

    cancel: tuple[str, ...]  # shards, in this order
    again_at: datetime | None  # at the latest; None: there is nothing to move, or no use in it
    tight: bool  # the net has no time to lose
    why: str


def spill(
    out: Sequence[Out],
    moved_rows: int,
    now: datetime,
    deadline: datetime,
    turnaround: Turnaround,
    pace: Pace | None,
    *,
    cancel_s: float = CANCEL_S,
    look_s: float = LOOK_S,
) -> Spill:
    """Which batches to give up now: none while redoing all that is left would still be in time; then only as many as keep
    the net busy until the next look, for the others may yet come back.

    `moved_rows`: already moved or being cancelled, and not answered. As long as the net keeps its pace, a cancel takes no
    longer than `cancel_s`, and somebody looks each `look_s`, all rows are back by the deadline.
    """
    n_out = sum(shard.n_rows for shard in out)
    if not out:
        return Spill((), None, False, "nothing is out")
    if pace is None:
        return Spill((), None, False, "no rate of another tier is known, so nothing can be moved in time")
    if now >= deadline:
        return Spill((), None, False, f"the deadline was {clock(deadline, now)}: what is out is waited for")
    needs_s = pace.redo_s(n_out + moved_rows)
    spare_s = (deadline - now).total_seconds() - cancel_s - look_s - needs_s
    facts = f"{n_out + moved_rows:,} rows need {_span(needs_s)} at {pace.rows_per_s:.3g} rows/s ({pace.basis})"
    if spare_s > 0:
        again_at = now + timedelta(seconds=spare_s)
        return Spill((), again_at, False, f"waiting is safe until {clock(again_at, now)}: {facts}")

    def last(shard: Out) -> tuple[bool, float, int]:
        """The least likely to come back before it alone could no longer be redone comes first; then the largest."""
        within_s = (deadline - now).total_seconds() - cancel_s - pace.redo_s(shard.n_rows)
        on_course = bool(shard.n_done) and shard.elapsed_s * (shard.n_rows / (shard.n_done or 1) - 1) <= within_s
        return on_course, turnaround.odds(shard.elapsed_s, within_s), -shard.n_rows

    queued = moved_rows
    enough = pace.rows_per_s * (cancel_s + look_s)
    cancel = []
    for shard in sorted((each for each in out if each.may_move), key=last):
        if queued >= enough:
            break
        cancel.append(shard.shard)
        queued += shard.n_rows
    what = f"{len(cancel)} of {len(out)} batches are cancelled and moved" if cancel else "what was moved comes first"
    why = f"{what}: {facts}, and the deadline is {clock(deadline, now)}"
    return Spill(tuple(cancel), now + timedelta(seconds=look_s), True, why)


# --------------------------------------------------------------------------------------------------------------- words


def clock(at: datetime, now: datetime) -> str:
    """A time as a person reads it at `now`: 14:20 UTC; 2026-11-23 14:20 UTC on any other day."""
    return f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 or 0.9 < share < 1 else f"{share:.0%}"


def _usd(micros: int) -> str:
    """Rounded up to a cent: it says "at most"."""
    dollars, cents = divmod(-(-micros // 10_000), 100)
    return f"${dollars:,}.{cents:02}"


def _span(seconds: float) -> str:
    return span(timedelta(seconds=seconds))
