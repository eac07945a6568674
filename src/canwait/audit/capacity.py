"""How many warm slots traffic needs, with and without the calls that can wait: simulated over the trace itself.

A slot serves one call at a time; a replica is a whole number of slots, and a contract may keep some running whatever
the load. Formulas for random arrivals stand here as checks only: bursts come together, and they see none of it.
Loads by the step (`valley_capacity` and below it) are fluid: slots busy on average, one figure a step of equal width.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import accumulate, compress, pairwise, repeat
from statistics import NormalDist
from typing import NamedTuple

HOURS_A_MONTH = 720  # a month is 30 days, here and in the worksheet


class Work(NamedTuple):
    """One call, as a server sees it."""

    at_s: float  # when it arrives
    service_s: float  # how long it holds a slot, waiting not included


@dataclass(frozen=True, slots=True)
class Trace:
    """Calls in the order of their arrival, in 17 bytes each; `of` makes one."""

    at_s: array[float]
    service_s: array[float]
    can_wait: bytearray  # 1 where a call can

    @classmethod
    def of(cls, work: Iterable[Work], can_wait: Iterable[bool] | None = None) -> Trace:
        """Raises ValueError for more of the one than of the other."""
        at_s, service_s, flags = array("d"), array("d"), bytearray()
        for (at, held), leaves in zip(
            work, repeat(False) if can_wait is None else can_wait, strict=can_wait is not None
        ):
            at_s.append(at)
            service_s.append(held)
            flags.append(leaves)
        if any(later < at for at, later in pairwise(at_s)):
            order = sorted(range(len(at_s)), key=at_s.__getitem__)
            at_s, service_s = array("d", (at_s[i] for i in order)), array("d", (service_s[i] for i in order))
            flags = bytearray(flags[i] for i in order)
        return cls(at_s, service_s, flags)

    def __len__(self) -> int:
        return len(self.at_s)

    def staying(self) -> Trace:
        """Without the calls that can wait."""
        stays = self.can_wait.translate(_NOT)
        at_s, service_s = (array("d", compress(column, stays)) for column in (self.at_s, self.service_s))
        return Trace(at_s, service_s, bytearray(len(at_s)))

    def between(self, start_s: float, end_s: float) -> Trace:
        """The calls that arrive from the one time to before the other."""
        here = slice(bisect_left(self.at_s, start_s), bisect_left(self.at_s, end_s))
        return Trace(self.at_s[here], self.service_s[here], self.can_wait[here])


_NOT = bytes([1, 0]) + bytes(254)


@dataclass(frozen=True, slots=True)
class Target:
    """At most a share `late` of calls waits longer than `wait_s` for a slot."""

    wait_s: float
    late: float


TARGET = Target(wait_s=1.0, late=0.01)


@dataclass(frozen=True, slots=True)
class Replica:
    """What one server runs at once, and how many of them the contract keeps whatever the load."""

    slots: int
    at_least: int = 1

    def whole(self, slots: int) -> int:
        """Replicas that hold so many slots."""
        return max(self.at_least, -(-slots // self.slots))


@dataclass(frozen=True, slots=True)
class Staffing:
    """How many slots a trace needs, and what two rules for random arrivals would have said."""

    n_calls: int
    offered: float  # slots busy on average
    mean_service_s: float
    simulated: int  # the smallest number that meets the target over the trace
    erlang: int
    square_root: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long calls waited for a slot."""

    n_calls: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    late: float  # the share that waited longer than the target's `wait_s`


@dataclass(frozen=True, slots=True)
class WarmCapacity:
    """What the servers of a trace are, and what they would be without the calls that can wait."""

    slots_before: int
    slots_after: int
    replicas_before: int  # whole, and never below the contract
    replicas_after: int
    queue_before: Waiting  # of the calls that stay, on the slots of before, beside the calls that can wait
    queue_after: Waiting  # of the same calls on the same slots, alone
    queue_shrunk: Waiting  # of the same calls on the replicas of after

    @property
    def hours_avoided(self) -> int:
        """Replica-hours a month that need not be warm; none when the calls that stay are the ones that crowd."""
        return max(0, self.replicas_before - self.replicas_after) * HOURS_A_MONTH


# -------------------------------------------------------------------------------------------------- call by call


def warm_capacity(trace: Trace, replica: Replica, target: Target = TARGET) -> WarmCapacity:
    """What happens to the servers and to the queue when the calls that can wait leave. Raises ValueError for no calls."""
    stay = trace.staying()
    before, after = slots_needed(trace, target), slots_needed(stay, target) if len(stay) else 0
    n_before, n_after = replica.whole(before), replica.whole(after)
    beside = (
        wait for wait, leaves in zip(waits(trace, n_before * replica.slots), trace.can_wait, strict=True) if not leaves
    )
    return WarmCapacity(
        before,
        after,
        n_before,
        n_after,
        _waiting(beside, target),
        _waiting(waits(stay, n_before * replica.slots), target),
        _waiting(waits(stay, n_after * replica.slots), target),
    )


def staffing(trace: Trace, target: Target = TARGET) -> Staffing:
    """What a trace needs, beside what the rules say. Raises ValueError where all arrive at one instant."""
    if not len(trace) or trace.at_s[-1] == trace.at_s[0]:
        raise ValueError("arrivals at no or one instant have no rate")
    busy_s = math.fsum(trace.service_s)
    offered, mean_s = busy_s / (trace.at_s[-1] - trace.at_s[0]), busy_s / len(trace)
    rules = erlang_slots(offered, mean_s, target), square_root_slots(offered, target)
    return Staffing(len(trace), offered, mean_s, slots_needed(trace, target), *rules)


def slots_needed(trace: Trace, target: Target = TARGET) -> int:
    """The smallest number of slots with which the trace meets the target. Raises ValueError for no calls.

    One more slot lets no call wait longer, so the number is found by doubling and halving.
    """
    if not len(trace):
        raise ValueError("no calls need no slots")
    allowed = math.floor(target.late * len(trace) + 1e-9)
    low, high = 0, 1
    while not _meets(trace, high, target.wait_s, allowed):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _meets(trace, middle, target.wait_s, allowed) else (middle, high)
    return high


def waits(trace: Trace, n_slots: int) -> Iterator[float]:
    """Seconds each call waits for one of the slots, first come, first served."""
    free = [-math.inf] * n_slots  # when each slot is free again: a heap
    for at_s, held_s in zip(trace.at_s, trace.service_s, strict=True):
        start_s = max(free[0], at_s)
        heapreplace(free, start_s + held_s)
        yield start_s - at_s


def _meets(trace: Trace, n_slots: int, wait_s: float, allowed: int) -> bool:
    """Whether at most `allowed` calls wait longer: `waits` that ends as soon as it is known."""
    free = [-math.inf] * n_slots
    for at_s, held_s in zip(trace.at_s, trace.service_s, strict=True):
        start_s = free[0]
        if start_s <= at_s:
            start_s = at_s
        elif start_s - at_s > wait_s:
            allowed -= 1
            if allowed < 0:
                return False
        heapreplace(free, start_s + held_s)
    return True


def _waiting(waited: Iterable[float], target: Target) -> Waiting:
    found = sorted(waited)
    n = len(found)
    if not n:
        return Waiting(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p95, p99 = (found[math.ceil(q * n) - 1] for q in (0.5, 0.95, 0.99))
    return Waiting(n, math.fsum(found) / n, p50, p95, p99, sum(wait > target.wait_s for wait in found) / n)


# ----------------------------------------------------------------------------------- rules for random arrivals


def erlang_c(n_servers: int, offered: float) -> float:
    """The share of calls that wait at all, for random arrivals and service; 1 where the load is too much."""
    if offered >= n_servers:
        return 1.0
    blocked = 1.0  # Erlang's B, by its recursion
    for n in range(1, n_servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return n_servers * blocked / (n_servers - offered * (1 - blocked))


def erlang_slots(offered: float, mean_service_s: float, target: Target = TARGET) -> int:
    """The smallest number of slots that Erlang's C gives for the target."""
    n = math.floor(offered) + 1
    while erlang_c(n, offered) * math.exp(-(n - offered) * target.wait_s / mean_service_s) > target.late:
        n += 1
    return n


def square_root_slots(offered: float, target: Target = TARGET) -> float:
    """The load and a margin of its square root times the normal quantile of the target."""
    return offered + NormalDist().inv_cdf(1 - target.late) * math.sqrt(offered)


# ------------------------------------------------------------------------------------------------- step by step


@dataclass(frozen=True, slots=True)
class Avoided:
    """Shares of the peak that need not be warm when some of the load can wait."""

    moved_off: float  # when it leaves for another tier
    within_log: float  # when the same servers do it in time: what is due after the log's end is not counted
    sustained: float  # the same, when the log repeats for ever: no capacity below the mean keeps up


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What the load that can wait costs when it runs in the slack of replicas that run anyway."""

    replica_steps_before: int  # all of it at once
    replica_steps_after: int  # with what had to be started for work that came due
    fitted: float  # the share of the waiting load that found slack; 1 where there was none

    @property
    def saved(self) -> float:
        """The share of replica-hours that need not run."""
        return 1 - self.replica_steps_after / self.replica_steps_before


def load_by_step(trace: Trace, step_s: float) -> list[float]:
    """Slots busy on average in each step from the first arrival on, were every call served at once."""
    load: list[float] = []
    for at_s, held_s in zip(trace.at_s, trace.service_s, strict=True):
        start, end = at_s - trace.at_s[0], at_s - trace.at_s[0] + held_s
        step = int(start // step_s)
        load.extend([0.0] * (max(int(end // step_s), step) + 1 - len(load)))
        while start < end:
            until = min((step + 1) * step_s, end)
            load[step] += (until - start) / step_s
            start, step = until, step + 1
    return load


def avoided(online: Sequence[float], deferred: Sequence[float], wait_steps: int) -> Avoided:
    """What letting the deferred load wait so many steps avoids. Raises ValueError where there is no load."""
    total = [a + b for a, b in zip(online, deferred, strict=True)]
    peak = max(total, default=0.0)
    if peak <= 0:
        raise ValueError("there is no load")
    capacity = valley_capacity(online, deferred, wait_steps)
    mean = math.fsum(total) / len(total)
    return Avoided(1 - max(online) / peak, 1 - capacity / peak, 1 - max(capacity, min(mean, peak)) / peak)


def valley_capacity(online: Sequence[float], deferred: Sequence[float], wait_steps: int) -> float:
    """The smallest constant capacity that runs the online load at once and the deferred load within `wait_steps`.

    Work that comes due after the last step is not asked for. A capacity is enough if in every stretch of steps it holds
    the online load and what both arrives and comes due there (earliest deadline first does it then). So it is the
    largest mean of such a stretch, which Dinkelbach's iteration finds: take the stretch that overflows the most, raise
    the capacity to its mean, and repeat until none overflows.
    """
    arrived = list(accumulate(deferred, initial=0.0))
    at_once = list(accumulate(online, initial=0.0))
    capacity = max(online, default=0.0)
    while True:
        least, first, most, demand, length = math.inf, 0, 0.0, 0.0, 1
        for last in range(wait_steps, len(online)):
            begin = last - wait_steps  # the latest step whose work comes due by `last`
            before = at_once[begin] + arrived[begin] - capacity * begin
            if before < least:
                least, first = before, begin
            over = at_once[last + 1] + arrived[begin + 1] - capacity * (last + 1) - least
            if over > most:
                most, length = over, last + 1 - first
                demand = at_once[last + 1] - at_once[first] + arrived[begin + 1] - arrived[first]
        if demand / length <= capacity * (1 + 1e-12):
            return capacity
        capacity = demand / length


def hybrid(
    online: Sequence[float],
    deferred: Sequence[float],
    wait_steps: int,
    *,
    replica_load: float,
    target_use: float = 1.0,
    at_least: int = 1,
) -> Hybrid:
    """Replicas follow the online load; what can wait runs in their slack, and on more only when it comes due.

    A replica holds `replica_load`; for load that is served at once it is filled to `target_use` of that, and the rest
    is slack. Raises ValueError where there is no load.
    """

    def running(load: float) -> int:
        return max(at_least, math.ceil(load / (replica_load * target_use) - 1e-9))

    before = sum(running(a + b) for a, b in zip(online, deferred, strict=True))
    if not before:
        raise ValueError("there is no load")
    arrived = list(accumulate(deferred, initial=0.0))
    after, served, fitted = 0, 0.0, 0.0
    for step, load in enumerate(online):
        replicas = running(load)
        fits = min(arrived[step + 1] - served, max(0.0, replicas * replica_load - load))
        served, fitted = served + fits, fitted + fits
        due = arrived[max(0, step + 1 - wait_steps)] - served
        more = max(0, math.ceil(due / replica_load - 1e-9))
        served += min(arrived[step + 1] - served, more * replica_load)
        after += replicas + more
    after += max(0, math.ceil((arrived[-1] - served) / replica_load - 1e-9))  # what the log's end left waiting
    return Hybrid(before, after, fitted / arrived[-1] if arrived[-1] else 1.0)
