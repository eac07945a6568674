"""How long batches take, from those that were watched: what share is back by when, and when the next one will be. Pure.

A batch that is still running, was cancelled or expired says only that it takes longer than it was watched: it is
*censored*. Leaving such batches out makes a provider look faster than it is. Methods: Kaplan & Meier 1958; conformal
prediction (Vovk et al.); adaptive conformal inference (Gibbs & Candes 2021). No built-in distribution: nothing is known
before it was seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, inf
from typing import NamedTuple

from .types import Tier

WINDOW = 50  # batches: older ones tell little of a provider's bad week
GAMMA = 0.03  # how fast the level follows what was missed


class Seen(NamedTuple):
    """One batch: how long it took, or how long it was watched without an end."""

    seconds: float
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Survival:
    """The share of batches that is still out after so many seconds: a step function that starts at 1."""

    times: tuple[float, ...]  # where it falls, rising
    shares: tuple[float, ...]  # what it falls to
    n: int  # batches watched
    n_ended: int  # of them

    def at(self, seconds: float) -> float:
        """The share still out after `seconds`."""
        place = bisect_right(self.times, seconds)
        return self.shares[place - 1] if place else 1.0

    def quantile(self, share: float) -> float | None:
        """The seconds by which at least `share` of all batches are back; None: nothing seen reaches so far."""
        return next((t for t, out in zip(self.times, self.shares, strict=True) if out <= 1 - share + 1e-12), None)


def survival(seen: Sequence[Seen]) -> Survival:
    """The Kaplan-Meier estimate. A batch censored at the moment another ends was still out then."""
    ends: dict[float, int] = {}
    leaves: dict[float, int] = {}
    for seconds, ended in seen:
        leaves[seconds] = leaves.get(seconds, 0) + 1
        if ended:
            ends[seconds] = ends.get(seconds, 0) + 1
    at_risk, out = len(seen), Fraction(1)
    times, shares = [], []
    for seconds in sorted(leaves):
        if d := ends.get(seconds, 0):
            out *= Fraction(at_risk - d, at_risk)
            times.append(seconds)
            shares.append(float(out))
        at_risk -= leaves[seconds]
    return Survival(tuple(times), tuple(shares), len(seen), sum(ends.values()))


@dataclass(frozen=True, slots=True)
class Bound:
    """When the next batch will be back, `share` of the times."""

    share: float  # as asked
    seconds: float | None  # None: unknown
    n: int  # batches it rests on
    n_censored: int  # of them: taken as never back, for nobody saw it
    needs: int  # batches before it can be known at all

    @property
    def known(self) -> bool:
        return self.seconds is not None


def batches_needed(share: Decimal) -> int:
    """Below so many batches nothing can be said about that share of them: 9, 19 and 99 for 90, 95 and 99 %."""
    return ceil(1 / (1 - Fraction(share))) - 1


def next_batch(seen: Sequence[Seen], share: Decimal) -> Bound:
    """The order statistic that a next batch of the same kind stays below with probability `share`, whatever the
    distribution. Raises ValueError unless 0 < share < 1."""
    if not 0 < share < 1:
        raise ValueError(f"a share of {share}: expected above 0 and below 1")
    seconds = _order_statistic(seen, Fraction(share))
    n_censored = sum(not s.ended for s in seen)
    return Bound(float(share), None if seconds == inf else seconds, len(seen), n_censored, batches_needed(share))


def adaptive(seen: Sequence[Seen], share: Decimal, *, window: int = WINDOW, gamma: float = GAMMA) -> Bound:
    """As `next_batch`, for a provider that changes: by the last `window` batches, at a level that rises after each miss.

    `seen` is in the order the batches were sent. Over any long history `share` of them stayed below their bound.
    """
    allowed, level = 1 - float(share), 1 - float(share)
    for i, batch in enumerate(seen):
        bound = _at_level(seen[max(0, i - window) : i], level)
        if batch.seconds > bound:
            level += gamma * (allowed - 1)
        elif batch.ended:  # of a censored one below its bound nobody knows whether it was a miss
            level += gamma * allowed
    recent = seen[-window:]
    seconds = _at_level(recent, level)
    n_censored = sum(not s.ended for s in recent)
    known = 0 <= seconds < inf
    return Bound(float(share), seconds if known else None, len(recent), n_censored, batches_needed(share))


def _at_level(seen: Sequence[Seen], miss: float) -> float:
    """The bound that may be missed with probability `miss`: never below 0, always from 1 on."""
    if miss <= 0:
        return inf
    return -1.0 if miss >= 1 else _order_statistic(seen, 1 - Fraction(miss))


def _order_statistic(seen: Sequence[Seen], share: Fraction) -> float:
    """The ceil((n + 1) share)-th smallest of n; what is censored, or beyond n, is infinite."""
    k = ceil((len(seen) + 1) * share)
    if k > len(seen):
        return inf
    return sorted(s.seconds if s.ended else inf for s in seen)[k - 1]


# ------------------------------------------------------------------------------------------------- which batches count


class Past(NamedTuple):
    """One batch of the ledger: what it was, how long it took, and the longest time in which its count stood still."""

    provider: str
    model: str
    tier: Tier
    n_rows: int
    seen: Seen
    longest_gap: Seen | None = None  # None: nothing was counted


ENOUGH = 20  # batches of a kind, before it is told apart from others


def alike(past: Sequence[Past], provider: str, model: str, tier: Tier, n_rows: int) -> tuple[list[Past], str]:
    """The narrowest kind of batch of which there are `ENOUGH`, in the order given, and what the kind is called.

    The same model and size (as many digits of rows); else the model at any size; else the tier with any model, however
    few there are. One provider says nothing about another.
    """
    tiers = [p for p in past if (p.provider, p.tier) == (provider, tier)]
    models = [p for p in tiers if p.model == model]
    sizes = [p for p in models if len(str(p.n_rows)) == len(str(n_rows))]
    low = 10 ** (len(str(n_rows)) - 1)
    if len(sizes) >= ENOUGH:
        return sizes, f"{provider}/{model} on {tier.value}, {low:,} to {10 * low - 1:,} rows"
    if len(models) >= ENOUGH:
        return models, f"{provider}/{model} on {tier.value}, any size"
    return tiers, f"{provider} on {tier.value}, any model"


# ----------------------------------------------------------------------------------------------------------- progress


class Progress(NamedTuple):
    """What was seen of one batch's count: three numbers, brought up to date at each poll. Start with `Progress()`."""

    n_done: int = 0  # the most that was ever counted; providers count back, and that is no progress
    rose_s: float = 0.0  # after how many seconds it last rose
    longest_s: float = 0.0  # the longest time it stood still before it rose, waiting for the first row included

    def after(self, n_done: int | None, elapsed_s: float, looked_s: float | None = None) -> Progress:
        """With one more poll. `looked_s`: the poll before; it is known to have stood still until then, and after it nobody
        looked. None: it was watched all the time."""
        if n_done is None or n_done <= self.n_done:
            return self
        still_s = (elapsed_s if looked_s is None else max(looked_s, self.rose_s)) - self.rose_s
        return Progress(n_done, elapsed_s, max(self.longest_s, still_s))

    def longest(self, elapsed_s: float, *, ended: bool) -> Seen:
        """The longest gap of a batch that ended then, or still runs: then it may yet become longer."""
        return Seen(max(self.longest_s, elapsed_s - self.rose_s), ended)
