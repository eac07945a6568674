"""When calls came: counts in slots, and the period at which runs repeat, if they do."""

from __future__ import annotations

from itertools import accumulate, pairwise
from statistics import median

from .facts import Arrivals

SLOTS = 4096  # busy ones that are told apart; beyond it slots become wider
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

    __slots__ = ("_counts", "_hours", "_step", "_width_us")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._hours = [0] * 168
        self._step = 0
        self._width_us = WIDTHS_S[0] * 1_000_000

    def add(self, start_us: int) -> None:
        slot = start_us // self._width_us
        counts = self._counts
        if slot in counts:
            counts[slot] += 1
        else:
            counts[slot] = 1
            if len(counts) > SLOTS:
                self._widen()
        self._hours[(start_us // _HOUR_US + _THURSDAY) % 168] += 1

    def arrivals(self) -> Arrivals | None:
        """None for fewer than two calls."""
        n_calls = sum(self._hours)
        if n_calls < 2:
            return None
        width_s = WIDTHS_S[self._step]
        slots = sorted(self._counts)
        counts = [self._counts[slot] for slot in slots]
        n_slots = slots[-1] - slots[0] + 1
        busiest = sorted(counts, reverse=True)[: max(1, n_slots // 10)]
        pauses = [(b - a - 1) * width_s for a, b in pairwise(slots)]
        period_s, share = _period(slots, counts, width_s)
        night = sum(n for hour, n in enumerate(self._hours) if not 6 <= hour % 24 < 22)
        return Arrivals(
            slot_s=width_s,
            n_slots=n_slots,
            n_busy=len(slots),
            hour_of_week=tuple(self._hours),
            busiest_share=sum(busiest) / n_calls,
            period_s=period_s,
            period_share=share,
            n_runs=1 + sum(pause >= _PAUSE_S for pause in pauses),
            longest_pause_s=float(max(pauses, default=0)),
            night_share=night / n_calls,
            weekend_share=sum(self._hours[120:]) / n_calls,
            run_s=_run_s(slots, counts, width_s),
        )

    def _widen(self) -> None:
        if self._step + 1 == len(WIDTHS_S):  # no log spans that: its clock is broken
            self._counts.popitem()
            return
        factor = WIDTHS_S[self._step + 1] // WIDTHS_S[self._step]
        self._step += 1
        self._width_us *= factor
        wider: dict[int, int] = {}
        for slot, n in self._counts.items():
            wider[slot // factor] = wider.get(slot // factor, 0) + n
        self._counts = wider
        if len(wider) > SLOTS:
            self._widen()


def _run_s(slots: list[int], counts: list[int], width_s: int) -> float:
    runs: list[list[int]] = []  # [slots from first to last, calls]
    previous = None
    for slot, n in zip(slots, counts, strict=True):
        if previous is None or (slot - previous - 1) * width_s >= _PAUSE_S:
            runs.append([1, n])
        else:
            runs[-1][0] += slot - previous
            runs[-1][1] += n
        previous = slot
    left = sum(counts) / 2
    for wide, n in sorted(runs, reverse=True):
        left -= n
        if left <= 0:
            return float(wide * width_s)
    return 0.0


def _period(slots: list[int], counts: list[int], width_s: int) -> tuple[float | None, float]:
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


def _densest(slots: list[int], counts: list[int], wide: int) -> tuple[float, int]:
    """The largest share of calls within an arc of `_RUN_SHARE` of the circle of `wide` slots, and where it starts."""
    circle = [0] * wide
    for slot, n in zip(slots, counts, strict=True):
        circle[slot % wide] += n
    arc = max(1, int(wide * _RUN_SHARE))
    sums = [0, *accumulate(circle * 2)]
    best = max(range(wide), key=lambda at: sums[at + arc] - sums[at])
    return (sums[best + arc] - sums[best]) / sums[wide], best
