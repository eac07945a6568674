"""What goes wrong quietly, from what was seen before: slow, at risk, stuck, blocked, unconsumed; queues, budgets. Pure.

Each finding is a frozen value with its numbers, and says in words what they mean and how many batches they rest on
(methods.md 7). Slow is no alarm; stuck is told by the time without progress, for a time limit on the whole batch finds a
frozen one hours later at the same rate of false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import ClassVar, Literal, NamedTuple, Protocol

from .forecast import Chance, likely_mean, running_mean
from .freshness import span
from .schedule import Turnaround, based_on
from .turnaround import Progress, Seen, Survival, survival

FEWEST = 19  # past batches; with fewer only the deadline raises an alarm
SLOW_OUT = 0.20  # a batch is slow when no more of those before it were still out
EVEN = 0.50  # odds of being in time, below which it is at risk
STILL = 0.99  # of past longest gaps
PICKUP = 0.95  # of past delays until results were read
SOON_S = 1800.0  # before the latest safe start, a person still has time to decide


class Finding(Protocol):
    """One thing that is so now, about one subject."""

    kind: ClassVar[str]

    @property
    def subject(self) -> str: ...

    @property
    def words(self) -> str: ...


def key(finding: Finding) -> str:
    """What makes two findings the same one, whatever their numbers have become."""
    return f"{finding.kind} {finding.subject}"


class Alarms(NamedTuple):
    """What to tell now, and what is known to have been told."""

    fresh: tuple[Finding, ...]
    standing: frozenset[str]  # keys, to be handed in the next time


def fresh_alarms(before: Collection[str], now: Iterable[Finding]) -> Alarms:
    """An alarm fires once, until what it says is no longer so; then it may fire again. `before`: the `standing` keys of
    the last time."""
    found = {key(finding): finding for finding in now}
    return Alarms(tuple(f for name, f in found.items() if name not in before), frozenset(found))


# ------------------------------------------------------------------------------------------------------ one batch


@dataclass(frozen=True, slots=True)
class Blocked:
    """A named limit holds it; nothing is wrong with the batch."""

    kind: ClassVar[str] = "blocked"
    subject: str
    limit: str
    since_s: float

    @property
    def words(self) -> str:
        return f"blocked for {_span(self.since_s)} by {self.limit}"


@dataclass(frozen=True, slots=True)
class Stuck:
    """No progress for longer than all but one in a hundred batches ever stood still."""

    kind: ClassVar[str] = "stuck"
    subject: str
    elapsed_s: float
    still_s: float  # without progress; the whole time where the provider counts nothing
    limit_s: float
    counted: bool
    n: int  # past batches; of fewer than 100 the limit is the longest time, and 1 of n + 1 healthy batches passes it
    basis: str

    @property
    def words(self) -> str:
        few = self.n < 100
        if self.counted:
            seen = "none ever stood still" if few else "99 % never stood still"
            return f"stuck: no row for {_span(self.still_s)}; {seen} for more than {_span(self.limit_s)} ({self.basis})"
        seen = "all that ended were back" if few else "99 % were back"
        return f"stuck: out for {_span(self.elapsed_s)}; {seen} in {_span(self.limit_s)} ({self.basis})"


@dataclass(frozen=True, slots=True)
class AtRisk:
    """It may miss its deadline: by the odds, or because there is hardly time left to do anything else."""

    kind: ClassVar[str] = "at risk"
    subject: str
    elapsed_s: float
    left_s: float  # to the deadline
    decide_s: float  # to the latest safe start of a redo, or to the deadline where nothing can be redone; below 0: past
    odds: float | None  # of being back in time by itself; None: too few past batches
    n_like: int
    basis: str

    @property
    def words(self) -> str:
        left = f"{_span(self.left_s)} left" if self.left_s > 0 else f"{_span(-self.left_s)} late"
        out = f"at risk: out for {_span(self.elapsed_s)}, {left}"
        if self.odds is None:
            return f"{out}; its odds are unknown ({self.basis})"
        if not self.n_like:
            return f"{out}; none was ever out for so long ({self.basis})"
        return f"{out}; in time by itself with about {self.odds:.0%} ({self.n_like} earlier cases; {self.basis})"


@dataclass(frozen=True, slots=True)
class Slow:
    """Slower than most, within what was seen before, and more likely than not in time."""

    kind: ClassVar[str] = "slow"
    subject: str
    elapsed_s: float
    share_out: float  # of past batches still out after so long
    odds: float | None  # of being back in time; None: no deadline
    n_like: int
    basis: str

    @property
    def words(self) -> str:
        seen = f"slow, within what was seen: {self.share_out:.0%} were still out after {_span(self.elapsed_s)}"
        odds = "" if self.odds is None else f"; in time with about {self.odds:.0%} ({self.n_like} earlier cases)"
        return f"{seen} ({self.basis}){odds}"


@dataclass(frozen=True, slots=True)
class Idle:
    """It is due, and nobody looks at it: what it did since then is not known."""

    kind: ClassVar[str] = "idle"
    subject: str
    since_s: float

    @property
    def words(self) -> str:
        return f"idle: nobody has looked at it for {_span(self.since_s)}"


State = Blocked | Stuck | AtRisk | Idle | Slow


@dataclass(frozen=True, slots=True)
class History:
    """What batches of this kind did before."""

    took: Turnaround
    gaps: Survival  # of the longest time each stood still
    whole: Survival | None = None  # how long those took that ended; None: as `took`

    def n_like(self, elapsed_s: float) -> int:
        """Past batches that were out for so long, too: what the odds rest on."""
        return round(self.took.curve.at(elapsed_s) * self.took.curve.n)

    def left_s(self, elapsed_s: float, share: float) -> float | None:
        """In how many seconds `share` of those that were out for so long were back; None: nothing seen reaches so far."""
        curve = self.took.curve
        within = 1 - curve.at(elapsed_s) * (1 - share)
        found = curve.quantile(within) if curve.at(elapsed_s) else None
        return None if found is None else max(0.0, found - elapsed_s)


def watch(
    shard: str,
    history: History,
    now: datetime,
    submitted: datetime,
    *,
    progress: Progress | None,
    deadline: datetime | None,
    latest_start: datetime | None,
    blocked: tuple[str, datetime] | None = None,
    looked: datetime | None = None,
    soon_s: float = SOON_S,
) -> list[State]:
    """What is to be said of one unfinished batch, the gravest first; nothing while it is on course.

    `progress`: what its polls counted, None where the provider counts nothing. `latest_start`: of a redo (schedule.py),
    None where it cannot be redone. `blocked`: the limit and since when; then it is not called stuck or slow. `looked`:
    when its provider last said that it is out, None: now; of the time since nothing is claimed. `soon_s`: how long before
    the latest start it is at risk whatever its odds.
    """
    looked = looked or now
    elapsed_s = (looked - submitted).total_seconds()
    left_s = None if deadline is None else (deadline - looked).total_seconds()
    odds = history.took.odds(elapsed_s, left_s) if history.took.known and left_s is not None else None
    risk: list[State] = []
    if deadline is not None:
        decide_s = ((latest_start or deadline) - now).total_seconds()
        if decide_s < soon_s or (odds is not None and odds < EVEN):
            n_like, basis = history.n_like(elapsed_s), history.took.basis
            risk.append(AtRisk(shard, elapsed_s, (deadline - now).total_seconds(), decide_s, odds, n_like, basis))
    if blocked:
        limit, since = blocked
        return [Blocked(shard, limit, (now - since).total_seconds()), *risk]
    return [*_stuck(shard, history, elapsed_s, progress), *risk] or _slow(shard, history, elapsed_s, odds)


def _stuck(shard: str, history: History, elapsed_s: float, progress: Progress | None) -> list[State]:
    counted = progress is not None and history.gaps.n >= FEWEST
    if not (counted or history.took.known):
        return []
    curve = history.gaps if counted else history.whole or history.took.curve
    limit_s = curve.quantile(STILL)
    still_s = elapsed_s - progress.rose_s if counted and progress else elapsed_s
    if limit_s is None or still_s <= limit_s:
        return []
    return [Stuck(shard, elapsed_s, still_s, limit_s, counted, curve.n, based_on(curve))]


def _slow(shard: str, history: History, elapsed_s: float, odds: float | None) -> list[State]:
    share_out = history.took.curve.at(elapsed_s)
    if not history.took.known or share_out >= SLOW_OUT:
        return []
    return [Slow(shard, elapsed_s, share_out, odds, history.n_like(elapsed_s), history.took.basis)]


# ------------------------------------------------------------------------------------------------------ unread results


@dataclass(frozen=True, slots=True)
class Unconsumed:
    """Paid, ready, and not read by one who said he would."""

    kind: ClassVar[str] = "unconsumed"
    job: str
    reader: str
    unread_s: float
    limit_s: float
    cost_micros: int
    basis: str

    @property
    def subject(self) -> str:
        return f"{self.job} {self.reader}"

    @property
    def words(self) -> str:
        cost = f"${Decimal(self.cost_micros).scaleb(-6):,.2f}"
        return (
            f"unconsumed: {cost} of results unread by {self.reader} for {_span(self.unread_s)}, more than "
            f"{_span(self.limit_s)} ({self.basis})"
        )


def unread(
    job: str,
    reader: str,
    ready_at: datetime,
    now: datetime,
    cost_micros: int,
    *,
    pickup_s: float | None,
    delays: Sequence[Seen] = (),
) -> Unconsumed | None:
    """Of results that this reader has not read since they were ready; each reader has a clock of his own.

    `pickup_s`: what the contract says; else the 95 % quantile of past `delays` until he read (censored: never did), known
    from 19 on. None: read soon enough so far, or nobody can say.
    """
    unread_s = (now - ready_at).total_seconds()
    limit_s, basis = pickup_s, "the contract"
    if limit_s is None:
        curve = survival(delays)
        limit_s = curve.quantile(PICKUP) if curve.n >= FEWEST else None
        basis = f"95 % of {curve.n} past publications were read by then"
    if limit_s is None or unread_s <= limit_s:
        return None
    return Unconsumed(job, reader, unread_s, limit_s, cost_micros, basis)


# -------------------------------------------------------------------------------------------------------------- queues

QUEUE_LIMIT = 60.0  # items; divided by the rate at which they leave, the age that none should reach
CUSUM_SLACK = 0.5  # items a step by which arrivals may exceed departures
CUSUM_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Growing:
    """More arrives than leaves."""

    kind: ClassVar[str] = "growing"
    queue: str
    oldest_s: float
    limit_s: float
    surplus: float | None  # the CUSUM, a second opinion, where it was kept

    @property
    def subject(self) -> str:
        return self.queue

    @property
    def words(self) -> str:
        second = f"; arrivals exceed departures, too (CUSUM {self.surplus:.0f})" if self.confirmed else ""
        return f"growing: the oldest waits {_span(self.oldest_s)}, more than {_span(self.limit_s)}{second}"

    @property
    def confirmed(self) -> bool:
        return self.surplus is not None and self.surplus > CUSUM_LIMIT


def growing(
    queue: str, oldest_s: float, leave_per_s: float, *, surplus: float | None = None, limit: float = QUEUE_LIMIT
) -> Growing | None:
    """Whether the oldest item waits longer than `limit` items take to leave."""
    limit_s = limit / leave_per_s
    return Growing(queue, oldest_s, limit_s, surplus) if oldest_s > limit_s else None


def cusum(before: float, arrived: int, left: int, slack: float = CUSUM_SLACK) -> float:
    """Page's sum after one more step (a minute): above `CUSUM_LIMIT` the queue grows. It starts at 0."""
    return max(0.0, before + arrived - left - slack)


# -------------------------------------------------------------------------------------------------------------- budgets

SHARES = (Decimal("0.8"), Decimal(1))
CLEARS = Decimal("0.9")  # of the threshold: what is held goes up and down, and an alarm should not

# Of what was likely, nominal: of 300 jobs of each of seven real sets of lengths at most 4.7 % exceeded it by chance before
# their last shard; at .05 it were up to 11 %.
_UNLIKELY = 0.02

What = Literal["spent", "held", "guaranteed"]


@dataclass(frozen=True, slots=True)
class Reached:
    """A share of a budget's cap is reached."""

    kind: ClassVar[str] = "budget"
    budget: str
    what: What
    share: Decimal
    micros: int
    cap_micros: int

    @property
    def subject(self) -> str:
        return f"{self.budget} {self.what} {self.share:%}"

    @property
    def words(self) -> str:
        is_ = {
            "spent": "spent",
            "held": "spent or reserved",
            "guaranteed": "the most that the job will cost, 95 times in 100",
        }[self.what]
        part = f"{Decimal(self.micros) / self.cap_micros:.0%}" if self.cap_micros else "all"
        return f"{self.budget}: {_usd(self.micros)} of {_usd(self.cap_micros)} ({part}) {is_}"


def budget_alarms(
    budget: str,
    cap_micros: int,
    *,
    spent_micros: int,
    held_micros: int,
    guaranteed_micros: int | None = None,
    shares: Sequence[Decimal] = SHARES,
    standing: Collection[str] = (),
) -> list[Reached]:
    """The shares of the cap that are reached: by what is spent, by what is spent and reserved together (`held_micros`),
    by the forecast's guaranteed bound of the whole.

    Raised at the threshold; one that stands (`standing`, the keys of the last time) is cleared below nine tenths of it.
    """
    amounts: dict[What, int | None] = {"spent": spent_micros, "held": held_micros, "guaranteed": guaranteed_micros}
    found = []
    for what, micros in amounts.items():
        for share in shares:
            if micros is None:
                continue
            reached = Reached(budget, what, share, micros, cap_micros)
            threshold = share * cap_micros * (CLEARS if key(reached) in standing else 1)
            if micros >= threshold:
                found.append(reached)
    return found


@dataclass(frozen=True, slots=True)
class Drift:
    """Answers are longer than planned, and that is no chance."""

    kind: ClassVar[str] = "drift"
    subject: str
    at_least: int  # output tokens of the whole job, 95 times in 100
    planned: int  # at most so many
    n_ended: int  # rows whose length is known
    basis: str  # what was planned by

    @property
    def words(self) -> str:
        return (
            f"drift: the job needs at least {self.at_least:,} output tokens ({self.n_ended:,} rows have ended); planned were "
            f"at most {self.planned:,} by {self.basis}"
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """What is known of the output of a plan's new rows while it is under way. In tokens."""

    canary: tuple[int, ...]  # of a random sample of them all, in random order
    n_rows: int
    n_ended: int
    known: int  # of all that have ended, the sample among them
    near: tuple[int, ...] = ()  # of the sample: drawn from shards of which nothing else has ended
    n_near: int = 0  # rows that have not ended in those


def most_planned(canary: Sequence[int], n_rows: int, rng: Chance, expected: int | None) -> int:
    """The output of all rows that is likely at most, by a random sample of them and by what was expected before it.

    expected: by earlier rows; what is likely is as far above it as the bootstrap puts it for this sample. None: nothing was.
    """
    mean = sum(canary) / len(canary)
    likely = likely_mean(canary, n_rows, rng, _UNLIKELY)
    return math.ceil(likely * n_rows if expected is None else expected * likely / mean if mean else expected)


def drift(job: str, seen: Lengths, cap: int, planned: int, basis: str, *, stands: bool = False) -> Drift | None:
    """Whether the output of all rows surely exceeds what was planned at most. None, too, of a sample of one.

    `basis`: of what was planned, in words. stands: it was told, and is over below nine tenths.

    Shards end in the source's order, so no sample but the canary's is random. What has ended is known, though, and the lines
    drawn from the shards that have not speak for these: so a source sorted by length raises no alarm.
    """
    if len(seen.canary) < 2:
        return None
    cap, still = max(cap, *seen.canary), 0.0
    if len(seen.near) >= 2:
        n = len(seen.near) + seen.n_near
        still = max(0.0, _least_mean(seen.near, n, cap) * n - sum(seen.near))
    at_least = int(max(seen.known + still, _least_mean(seen.canary, seen.n_rows, cap) * seen.n_rows))
    if at_least <= (planned * CLEARS if stands else planned):
        return None
    return Drift(job, at_least, planned, seen.n_ended, basis)


def _least_mean(lengths: Sequence[int], n_rows: int, cap: int) -> float:
    """A lower bound of lengths is an upper bound of what they leave of the cap."""
    return cap - running_mean([cap - length for length in lengths], n_rows, cap)


def _usd(micros: int) -> str:
    return f"${Decimal(micros).scaleb(-6):,.2f}"


def _span(seconds: float) -> str:
    return span(timedelta(seconds=seconds))
