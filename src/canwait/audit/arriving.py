"""When calls came: counts in slots, the runs they lie in, and the period at which runs repeat, if they do."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median

from .facts import Arrivals
from .sampling import Room

WIDTHS_S = (300, 600, 1200, 3600, 14_400, 86_400, 604_800, 604_800 * 52)

_PERIODS_S = (900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 28_800, 43_200, 86_400, 604_800)
_PAUSE_S = 1800  # calls that are further apart belong to two runs
_IN_RUN = 0.9  # of all calls, within the same part of every period
_RUN_SHARE = 0.5  # of a period, at most: what fills more of it is no run
_CYCLES = 3  # fewer are no repetition
_CYCLES_BUSY = 0.7  # five days of seven
_HOUR_US = 3_600_000_000
_THURSDAY = 72  # the hours from a Monday 00:00 to the first hour of 1970


class Slots:
    """Counts of arrivals; memory is bounded whatever the clock of the log says."""

    __slots__ = ("_counts", "_hours", "_room", "_slots", "_step", "_width_us")

    def __init__(self, room: Room) -> None:
        self._slots, self._counts = array("q"), array("Q")  # busy ones in order, and the calls in each
        self._hours = array("Q", bytes(8 * 168))
        self._room = room
        self._step = 0
        self._width_us = WIDTHS_S[0] * 1_000_000

    def add(self, start_us: int) -> None:
        slot, slots = start_us // self._width_us, self._slots
        # Logs are nearly in order, so it is the last slot or a new one.
        place = len(slots) if not slots or slot > slots[-1] else bisect_left(slots, slot)
        if place < len(slots) and slots[place] == slot:
            self._counts[place] += 1
        else:
            slots.insert(place, slot)
            self._counts.insert(place, 1)
            self._room.taken += 1
            self.shrink()
        self._hours[(start_us // _HOUR_US + _THURSDAY) % 168] += 1

    def shrink(self) -> None:
        """Wider slots, as far as there are too many."""
        n = len(self._slots)
        while len(self._slots) > self._room.each:
            if self._step + 1 == len(WIDTHS_S):  # no log spans that: its clock is broken
                self._slots.pop()
                self._counts.pop()
                continue
            wider = _wider([self], self._step + 1)
            self._step += 1
            self._width_us = WIDTHS_S[self._step] * 1_000_000
            self._slots, self._counts = array("q", wider), array("Q", wider.values())
        self._room.taken += len(self._slots) - n

    def arrivals(self, *others: Slots) -> Arrivals | None:
        """Of these calls and of others together; None for fewer than two."""
        parts = (self, *others)
        hours = tuple(map(sum, zip(*(part._hours for part in parts), strict=True)))
        n_calls = sum(hours)
        if n_calls < 2:
            return None
        step = max(part._step for part in parts if part._slots)
        width_s = WIDTHS_S[step]
        by_slot = sorted(_wider(parts, step).items())
        slots, counts = [slot for slot, _ in by_slot], [n for _, n in by_slot]
        n_slots = slots[-1] - slots[0] + 1
        busiest = sorted(counts, reverse=True)[: max(1, n_slots // 10)]
        period_s, share = _period(slots, counts, width_s)
        runs = _runs(slots, counts, width_s)
        begins = [b.first - a.first for a, b in pairwise(runs)]
        night = sum(n for hour, n in enumerate(hours) if not 6 <= hour % 24 < 22)
        return Arrivals(
            slot_s=width_s,
            n_slots=n_slots,
            n_busy=len(slots),
            hour_of_week=hours,
            busiest_share=sum(busiest) / n_calls,
            period_s=period_s,
            period_share=share,
            n_runs=len(runs),
            longest_pause_s=float(max(((b - a - 1) * width_s for a, b in pairwise(slots)), default=0)),
            night_share=night / n_calls,
            weekend_share=sum(hours[120:]) / n_calls,
            run_s=_run_s(runs) * width_s,
            apart_s=float(median(begins) * width_s) if begins else None,
            run_busy=len(slots) / sum(run.wide for run in runs),
            apart_least_s=float(min(begins) * width_s) if begins else None,
            apart_most_s=float(max(begins) * width_s) if begins else None,
        )


def _wider(parts: Sequence[Slots], step: int) -> dict[int, int]:
    """The counts of several, in slots of a width that each of theirs divides."""
    wider: dict[int, int] = {}
    for part in parts:
        factor = WIDTHS_S[step] // WIDTHS_S[part._step]
        for slot, n in zip(part._slots, part._counts, strict=True):
            wider[slot // factor] = wider.get(slot // factor, 0) + n
    return wider


@dataclass(slots=True)
class _Run:
    """Calls without a pause of `_PAUSE_S` between them."""

    first: int  # slot
    wide: int  # slots from the first to the last
    n_calls: int


def _runs(slots: Sequence[int], counts: Sequence[int], width_s: int) -> list[_Run]:
    runs: list[_Run] = []
    for slot, n in zip(slots, counts, strict=True):
        last = runs[-1] if runs else None
        if last is None or (slot - last.first - last.wide) * width_s >= _PAUSE_S:
            runs.append(_Run(slot, 1, n))
        else:
            last.wide = slot - last.first + 1
            last.n_calls += n
    return runs


def _run_s(runs: Sequence[_Run]) -> float:
    """Slots that the runs are wide, at least, in which half of the calls lie."""
    left = sum(run.n_calls for run in runs) / 2
    for run in sorted(runs, key=lambda run: (-run.wide, -run.n_calls)):
        left -= run.n_calls
        if left <= 0:
            return float(run.wide)
    return 0.0


def _period(slots: Sequence[int], counts: Sequence[int], width_s: int) -> tuple[float | None, float]:
    """The shortest period by which nearly all calls lie in the same part of it, and the share that does."""
    starts = [b for a, b in pairwise(slots) if (b - a - 1) * width_s >= _PAUSE_S]
    typical = [round(median(b - a for a, b in pairwise(starts))) * width_s] if len(starts) >= _CYCLES else []
    for period_s in sorted({*_PERIODS_S, *typical}):
        wide = period_s // width_s
        if wide < 3 or period_s % width_s or (slots[-1] - slots[0]) < (_CYCLES - 1) * wide:
            continue
        share, phase = _densest(slots, counts, wide)
        cycles = {(slot - phase) // wide for slot in slots}
        if share >= _IN_RUN and len(cycles) >= max(_CYCLES, _CYCLES_BUSY * (max(cycles) - min(cycles) + 1)):
            return float(period_s), share
    return None, 0.0


def _densest(slots: Sequence[int], counts: Sequence[int], wide: int) -> tuple[float, int]:
    """The largest share of calls within an arc of `_RUN_SHARE` of the circle of `wide` slots, and where it starts."""
    circle = [0] * wide
    for slot, n in zip(slots, counts, strict=True):
        circle[slot % wide] += n
    arc = max(1, int(wide * _RUN_SHARE))
    sums = [0, *accumulate(circle * 2)]
    best = max(range(wide), key=lambda at: sums[at + arc] - sums[at])
    return (sums[best + arc] - sums[best]) / sums[wide], best
