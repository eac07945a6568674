"""Sends the shards of a gated job in growing waves: a model that goes bad half way has not been sent all of it.

The free checks test each shard when it settles (halting.py), which can stop only what was not sent yet. So one shard goes
first, then 4, 20, 100: a wave goes once three quarters of all before it are tested, so that a straggler holds up nobody
(benchmarks/ramp.py measures both). It is given up where waiting could cost the deadline. Tiers that answer row by row have
no waves: few of their shards are out at a time anyway, for their host's sake.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from . import history, schedule
from .clock import from_us
from .ledger import Ledger
from .turnaround import Past, alike
from .types import Limits, Shard, Tier

GROWTH = 4  # shards out for each that was tested, at most (methods.md 5.3: x2 to x4)
ROW_BY_ROW = frozenset({Tier.STANDARD, Tier.FLEX, Tier.OWN})
_ALL = sys.maxsize


def most(n_tested: int) -> int:
    """How many shards may have been sent once so many of them are tested."""
    wave = 1
    while 4 * n_tested >= 3 * wave:
        wave *= 1 + GROWTH
    return max(1, min(wave, (1 + GROWTH) * n_tested))


def is_over(now: datetime, deadline: datetime, turnaround_s: float) -> bool:
    """Whether what is held now, and whatever waits for it, might be late."""
    return now + timedelta(seconds=2 * turnaround_s) > deadline


def free(n_tested: int, n_out: int) -> int:
    """How many more shards may go. With nothing out one always may, so nothing ever waits for nobody."""
    return max(most(n_tested) - n_tested - n_out, int(not n_out))


def waves(n_shards: int) -> list[int]:
    """How many shards go together, one wave after the other."""
    sizes: list[int] = []
    while (n_sent := sum(sizes)) < n_shards:
        sizes.append(min(most(n_sent), n_shards) - n_sent)
    return sizes


def back_s(waves_s: Sequence[float], rests_s: Sequence[float], over_s: float) -> float:
    """When the last of a plan is back, if its waves take so long; each rest is all from that wave on, were it sent together,
    as happens `over_s` from the start on."""
    back = canary = waves_s[0]
    for wave, rest in zip(waves_s[1:], rests_s[1:], strict=True):
        if back > over_s:
            return max(back, max(canary, over_s) + rest)
        back += wave
    return back


def turnaround_s(like: Sequence[Past], window_s: float) -> float:
    """By when 95 of 100 batches are back, by past ones that are like them; the provider's window where that is not known.

    Of batches that are out nobody knows, this plan's among them; Kaplan & Meier's estimate leaves them out from then on.
    """
    back_s = schedule.turnaround([batch.seen for batch in like], window_s).curve.quantile(0.95)
    return window_s if back_s is None else min(back_s, window_s)


class Ramp:
    """The ramps of one ledger's plans, as one caller sees them.

    Several callers may each send what was free when they looked: a wave is then larger, and no promise is broken by that.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._free: dict[str, int] = {}  # by plan: shards that may go before the ledger is asked again

    def first(self, shard: Shard, limits: Callable[[str], Limits], now: datetime) -> tuple[str, str] | None:
        """As halting.first, once the canary is home: the shard itself, and what it waits for in words; None: it may go."""
        if shard.id != shard.root or shard.moving:
            return None
        if not self._free.get(shard.plan):
            seen = self._ledger.query("ramp", job=shard.job, plan=shard.plan)[0]
            n_free = free(seen["n_tested"], seen["n_out"])
            if n_free <= 0 and not seen["past"] and not self._is_over(shard, limits, int(seen["n_rows"]), now):
                n_sent = seen["n_tested"] + seen["n_out"]
                return shard.id, f"waits for the first {n_sent} of {seen['n_shards']} shards to be tested"
            self._free[shard.plan] = n_free if n_free > 0 else _ALL
        self._free[shard.plan] -= 1
        return None

    def _is_over(self, shard: Shard, limits: Callable[[str], Limits], n_rows: int, now: datetime) -> bool:
        """`n_rows`: not answered yet; where they may be moved, the time which that takes cannot be waited for."""
        ledger, terms = self._ledger, self._ledger.terms(shard)
        if terms.tier in ROW_BY_ROW:
            return True
        deadline = from_us(ledger.job(shard.job)["deadline_us"])
        if rescue := next((rescue for rescue in terms.rescues if rescue.adapter == terms.rescue), None):
            pace = schedule.pace(history.rates(ledger, rescue.adapter, terms.model), rescue.rows_per_s)
            deadline = schedule.latest_start(deadline, n_rows, pace) if pace else deadline
        window_s = limits(terms.model).window_s
        like, _ = alike(history.past(ledger, now), terms.provider, terms.model, terms.tier, shard.n_lines)
        return is_over(now, deadline, turnaround_s(like, window_s))
