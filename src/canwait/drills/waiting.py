"""What deadlines cost and what alarms find, where the truth is known: a made-up provider, its batches drawn by a seed.

70 % of batches take 2 minutes to 1 hour (evenly in the logarithm), 20 % 1 to 4 hours and 10 % 8 to 24 hours (evenly): the
scenario of methods.md 3.3, which rests on one unverified claim. What holds here is the order of the ways to deal with a
deadline, not the figures. Redoing all rows on standard takes 40 minutes (lognormal, sigma 0.35) and costs twice as much.
A cancel takes up to 10 minutes, and of a cancelled batch nothing was finished: that is the dearest case.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random
from statistics import NormalDist, fmean, median, stdev

from ..schedule import CANCEL_S, LOOK_S, Out, Pace, Turnaround, latest_start, pace, spill, turnaround
from ..turnaround import Progress, Seen, survival
from ..watching import CUSUM_LIMIT, History, Stuck, cusum, growing, watch

HOUR = 3600.0
START = datetime(2026, 1, 1, tzinfo=UTC)
BATCH_PRICE = 0.5  # of standard
REDO = NormalDist(math.log(40 * 60), 0.35)  # of the logarithm of seconds, all rows
ROWS = 10_000


def took_s(quantile: float) -> float:
    """How long a batch takes: the inverse of the distribution above."""
    if quantile < 0.7:
        return 120 * math.pow(30, quantile / 0.7)
    if quantile < 0.9:
        return HOUR * (1 + 3 * (quantile - 0.7) / 0.2)
    return HOUR * (8 + 16 * (quantile - 0.9) / 0.1)


def back_by(seconds: float) -> float:
    """The share of batches back by then: the distribution itself."""
    hours = seconds / HOUR
    if hours <= 1:
        return 0.7 * max(0.0, math.log(seconds / 120) / math.log(30)) if seconds > 0 else 0.0
    return 0.7 + 0.2 * min(1.0, (hours - 1) / 3) + 0.1 * min(1.0, max(0.0, (hours - 8) / 16))


def redo_s(rng: Random) -> float:
    return rng.lognormvariate(REDO.mean, REDO.stdev)


# ------------------------------------------------------------------------------------------- one batch, one deadline

# When to move a batch that is still out, in seconds after it was sent: from the deadline and the past redos of all rows.
Policy = Callable[[float, list[float]], float]
NEVER, AT_ONCE = math.inf, -math.inf


def by_q99(deadline_s: float, redos: list[float]) -> float:
    """What canwait does: schedule.latest_start."""
    known = pace([ROWS / redo for redo in redos], None)
    assert known is not None
    return (latest_start(START + timedelta(seconds=deadline_s), ROWS, known) - START).total_seconds()


def by_mean(deadline_s: float, redos: list[float]) -> float:
    return deadline_s - fmean(redos) - CANCEL_S


@cache
def known_best_s(deadline_s: float, penalty: float = 20.0) -> float:
    """The best moment were the distributions known, a miss costing `penalty` times the rows on standard."""

    def expected(moment_s: float) -> float:
        left_s, out = deadline_s - moment_s - CANCEL_S, 1 - back_by(moment_s)
        late = 1 - REDO.cdf(math.log(left_s)) if left_s > 0 else 1.0
        return BATCH_PRICE * (1 - out) + out * (1 + penalty * late)

    return min((60.0 * minute for minute in range(int(deadline_s / 60))), key=expected)


POLICIES: Mapping[str, Policy] = {
    "batch only": lambda deadline_s, redos: NEVER,
    "standard only": lambda deadline_s, redos: AT_ONCE,
    "cancel at half time": lambda deadline_s, redos: deadline_s / 2,
    "latest start, mean redo": by_mean,
    "latest start, q99 of the redo": by_q99,
    "best were all known, M=20": lambda deadline_s, redos: known_best_s(deadline_s),
}


@dataclass(frozen=True, slots=True)
class Shares:
    """Of many runs."""

    cost: float  # of standard
    missed: float  # of deadlines


def rescues(deadline_s: float, n_runs: int, seed: int, n_past: int = 199) -> dict[str, Shares]:
    """Cost and misses of each policy on the same runs. Ten runs at a time know the same `n_past` redos of the past."""
    rng = Random(seed)
    cost, missed = dict.fromkeys(POLICIES, 0.0), dict.fromkeys(POLICIES, 0)
    moments: dict[str, float] = {}
    for run in range(n_runs):
        if run % 10 == 0:
            past = [redo_s(rng) for _ in range(n_past)]
            moments = {name: policy(deadline_s, past) for name, policy in POLICIES.items()}
        took, redo, cancel = took_s(rng.random()), redo_s(rng), CANCEL_S * rng.random()
        for name, moment_s in moments.items():
            if moment_s == AT_ONCE:
                price, done_s = 1.0, redo
            elif took <= moment_s:
                price, done_s = BATCH_PRICE, took
            else:
                price, done_s = 1.0, max(0.0, moment_s) + cancel + redo
            cost[name] += price
            missed[name] += done_s > deadline_s
    return {name: Shares(cost[name] / n_runs, missed[name] / n_runs) for name in POLICIES}


# ----------------------------------------------------------------------------------------------- many, shard by shard

N_SHARDS = 40
SHARD_ROWS = 500
NET_S = 2 * HOUR  # in which standard redoes all of them, at its rate limit
NET_SIGMA = 0.145  # of the logarithm of a run's rate: one run in a hundred is slower than the limit / 1.4
TOGETHER = 0.5  # correlation of shards of one run: days are slow as a whole


def spilled(deadline_s: float, n_runs: int, seed: int, *, at_once: bool = False) -> Shares:
    """Shards moved one by one by schedule.spill, or `at_once`: all that are out when there is no more time to lose."""
    rng = Random(seed)
    limit = N_SHARDS * SHARD_ROWS / NET_S
    known = pace([], limit)
    assert known is not None
    history = turnaround([Seen(took_s(rng.random())) for _ in range(150)], 24 * HOUR)
    runs = [_spilled(deadline_s, rng, history, known, limit, at_once=at_once) for _ in range(n_runs)]
    return Shares(fmean(run.cost for run in runs), fmean(run.missed for run in runs))


def _spilled(
    deadline_s: float, rng: Random, history: Turnaround, known: Pace, limit: float, *, at_once: bool
) -> Shares:
    """One run. Standard answers at its own rate what was cancelled, as soon as the cancel has settled."""
    day, normal = rng.gauss(0, 1), NormalDist()
    ends = [
        took_s(normal.cdf(math.sqrt(TOGETHER) * day + math.sqrt(1 - TOGETHER) * rng.gauss(0, 1)))
        for _ in range(N_SHARDS)
    ]
    rate = limit * rng.lognormvariate(0, NET_SIGMA)
    deadline = START + timedelta(seconds=deadline_s)
    out, settling = dict(enumerate(ends)), list[float]()  # when each comes back; when each cancel settles
    at_s = free_s = last_s = 0.0  # standard has nothing to do from free_s on
    n_moved = 0
    while out or settling:
        for settled_s in sorted(s for s in settling if s <= at_s):
            free_s = max(free_s, settled_s) + SHARD_ROWS / rate
        settling = [s for s in settling if s > at_s]
        last_s = max([last_s, *(end for end in out.values() if end <= at_s)])
        out = {shard: end for shard, end in out.items() if end > at_s}
        moved = SHARD_ROWS * len(settling) + math.ceil(rate * max(0.0, free_s - at_s))
        now = START + timedelta(seconds=at_s)
        made = spill([Out(str(i), SHARD_ROWS, at_s) for i in out], moved, now, deadline, history, known)
        for shard in list(out) if at_once and made.cancel else map(int, made.cancel):
            del out[shard]
            settling.append(at_s + CANCEL_S * rng.random())
            n_moved += 1
        wait_s = (made.again_at - now).total_seconds() if made.again_at else LOOK_S
        at_s += LOOK_S if settling or not out else max(LOOK_S, min(wait_s, max(out.values()) - at_s))
    cost = (BATCH_PRICE * (N_SHARDS - n_moved) + n_moved) / N_SHARDS
    return Shares(cost, float(max(free_s, last_s) > deadline_s))


# -------------------------------------------------------------------------------------------------------------- alarms

POLL_S = 300.0
RISES = 20  # of a batch's count
FIRST_AT_MOST = 0.75  # of its time passes before the first row is counted

Polls = list[tuple[float, int]]  # of one batch: seconds since it was sent, rows counted; the last is its end


@dataclass(frozen=True, slots=True)
class Told:
    """What a rule did on many batches."""

    false_alarms: float  # share of healthy batches that it called frozen
    found_s: float  # median time until it called a batch that never moves; infinite where it never did


def alarms(n_runs: int, seed: int, *, n_past: int = 150, n_healthy: int = 20) -> dict[str, Told]:
    """Rules that tell a frozen batch, each run with a history of its own. The last one is canwait's: watching.watch."""
    rng = Random(seed)
    called: dict[str, list[int]] = {}
    found: dict[str, list[float]] = {}
    for _ in range(n_runs):
        past = [_ended(polls(rng)) for _ in range(n_past)]
        took, gaps = survival([seen for seen, _ in past]), survival([gap for _, gap in past])
        seconds = [seen.seconds for seen, _ in past]
        elapsed_rules = {
            "out for 2 h": 2 * HOUR,
            "out for mean + 3 sd": fmean(seconds) + 3 * stdev(seconds),
            "out longer than 95 %": took.quantile(0.95) or math.inf,
            "out longer than 99 %": took.quantile(0.99) or math.inf,
        }
        still = gaps.quantile(0.95) or math.inf
        history = History(turnaround([seen for seen, _ in past], 24 * HOUR), gaps)
        healthy = [polls(rng) for _ in range(n_healthy)]
        for rule, limit_s in elapsed_rules.items():
            called.setdefault(rule, []).append(sum(batch[-1][0] > limit_s for batch in healthy))
            found.setdefault(rule, []).append(limit_s)
        rule = "no progress for longer than 95 % of gaps"
        called.setdefault(rule, []).append(sum(_ended(batch)[1].seconds > still for batch in healthy))
        found.setdefault(rule, []).append(still)
        rule = "no progress for longer than 99 % of gaps"
        called.setdefault(rule, []).append(sum(stuck_after(batch, history) < math.inf for batch in healthy))
        frozen = [(POLL_S * i, 0) for i in range(1, math.ceil(36 * HOUR / POLL_S))]
        found.setdefault(rule, []).append(stuck_after(frozen, history))
    return {rule: Told(sum(n) / (n_runs * n_healthy), median(found[rule])) for rule, n in called.items()}


def polls(rng: Random) -> Polls:
    """A healthy batch: nothing is counted for a while, then the count rises at chance times until the end."""
    took = took_s(rng.random())
    first = FIRST_AT_MOST * rng.random() * took
    rises = sorted([first, *(first + rng.random() * (took - first) for _ in range(RISES - 1))])
    times = (i * POLL_S for i in range(1, math.ceil(took / POLL_S)))
    return [*((at_s, bisect_right(rises, at_s)) for at_s in times), (took, RISES)]


def _ended(batch: Polls) -> tuple[Seen, Seen]:
    """What is kept of a batch that was watched to its end: how long it took, and its longest gap."""
    progress = Progress()
    for at_s, n_done in batch:
        progress = progress.after(n_done, at_s)
    end_s = batch[-1][0]
    return Seen(end_s), progress.longest(end_s, ended=True)


def stuck_after(batch: Polls, history: History) -> float:
    """When watching.watch first calls a batch stuck that is polled so; infinite if never."""
    progress = Progress()
    for at_s, n_done in batch:
        now = START + timedelta(seconds=at_s)
        states = watch("s1", history, now, START, progress=progress, deadline=None, latest_start=None)
        if any(isinstance(state, Stuck) for state in states):
            return at_s
        progress = progress.after(n_done, at_s)
    return math.inf


# --------------------------------------------------------------------------------------------------------------- queues

ARRIVE, LEAVE = 9.05, 10.26  # items a minute; 0.83 minutes in the system on average (methods.md 7)


def queue_alarms(minutes: int, seed: int, *, overload: float | None = None) -> tuple[float, float]:
    """After how many minutes the oldest item's age and the CUSUM first tell; infinite if never.

    One queue, Poisson arrivals and departures, in its steady state at the start. `overload`: arrivals as a multiple of what
    can leave.
    """
    rng = Random(seed)
    arrive = ARRIVE if overload is None else overload * LEAVE
    load, told = ARRIVE / LEAVE, {"age": math.inf, "cusum": math.inf}
    waiting = deque([0.0] * int(math.log(1 - rng.random()) / math.log(load)))
    surplus, arrived, left, minute, at = 0.0, 0, 0, 1, 0.0
    while at < minutes and math.inf in told.values():
        at += rng.expovariate(arrive + LEAVE)
        while at >= minute:
            surplus = cusum(surplus, arrived, left)
            if surplus > CUSUM_LIMIT:
                told["cusum"] = min(told["cusum"], minute)
            oldest_s = 60 * (minute - waiting[0]) if waiting else 0.0
            if growing("q", oldest_s, LEAVE / 60):
                told["age"] = min(told["age"], minute)
            arrived = left = 0
            minute += 1
        if rng.random() * (arrive + LEAVE) < arrive:
            waiting.append(at)
            arrived += 1
        elif waiting:
            waiting.popleft()
            left += 1
    return told["age"], told["cusum"]
