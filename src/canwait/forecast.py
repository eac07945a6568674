"""A random pilot -> what the whole will cost: expected, likely at most, guaranteed at most. Pure; methods.md 1.

The fourth number, what it cannot exceed, comes from bounds and limits alone (outlook.py).
Lengths are output tokens of settled rows in RANDOM order, as a random pilot gives them. A pilot that is the first rows of a
sorted file says nothing, however large it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, TypeVar

from .price import format_usd, worst_micros
from .types import Plan, Price, PriceStep

Home = TypeVar("Home")  # a shard that rows were planned for, however the caller names it

ALPHA = 0.05
_RESAMPLES = 499
_RESAMPLED = 500  # values at most: what the skew does to the quantile is gone beyond
_STEP = 1e-4  # of the bound, as a share of the cap


class Chance(Protocol):
    """Seeded chance, such as random.Random(7): handed in, so the same pilot gives the same numbers."""

    def choices(self, population: Sequence[int], /, *, k: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """Output tokens of all rows of a job together."""

    n_rows: int
    n_pilot: int  # rows whose length is known
    expected: int
    likely: int  # about 19 jobs in 20 stay below; nominal 95 %, measured 90-97 % (methods.md 1.3)
    guaranteed: int  # at least 95 % of jobs stay below, whatever the lengths are distributed like
    bound: int  # every row at its cap


def forecast(lengths: Sequence[int], n_rows: int, cap: int, rng: Chance) -> Forecast:
    """What `n_rows` answers of at most `cap` tokens need, of which `lengths` are known; in random order.

    Raises ValueError for fewer than two lengths, more than `n_rows`, and a length outside 0..cap.
    """
    _check(lengths, n_rows, cap)
    n, total = len(lengths), sum(lengths)
    most = total + (n_rows - n) * cap
    expected = -(-total * n_rows // n)
    likely = max(expected, math.ceil(likely_mean(lengths, n_rows, rng) * n_rows))
    guaranteed = min(most, math.ceil(guaranteed_mean(lengths, n_rows, cap) * n_rows))
    return Forecast(n_rows, n, expected, min(likely, guaranteed, most), guaranteed, n_rows * cap)


# ------------------------------------------------------------------------------------------------ while a job goes on

_FEW = 50  # the bootstrap of fewer lengths holds too seldom (methods.md 1.3)
_LIKELY_ALPHA = 0.035  # nominal: at .05 it held 88-98 % of the time on real traces under way, and it is to be 19 in 20


@dataclass(frozen=True, slots=True)
class Rest:
    """Output tokens still to come of a job that is under way, in order."""

    expected: int
    likely: int
    guaranteed: int
    n_pilot: int  # random rows that speak for what is still to come


def rest(
    lengths: Sequence[int],
    homes: Sequence[Home],
    pending: Mapping[Home, int],
    whole: Collection[Home],
    *,
    n_rows: int,
    known: int,
    cap: int,
    rng: Chance,
    aside: Mapping[Home, int] = MappingProxyType({}),
) -> Rest:
    """What the rows of a plan that have not ended still need, from its canary and from what has ended.

    lengths, homes: output tokens billed for each line of the canary, and the shard that it was drawn from; in random order.
    pending: rows that have not ended, by such a shard; whole: shards of which none has. n_rows: all new rows.
    known: output tokens of all that has ended. aside: rows of a shard that stand in the last one, which has not ended.
    Raises ValueError for a canary of fewer than two lines.

    Shards follow the source's order, so those that have ended are no sample of the others, and their lengths are never
    pooled with the canary's: of a sorted source they would be the short ones. They are known exactly instead. The lines
    drawn from a set of shards are a simple random sample of the rows of just those, whichever shards ended first, and
    they speak for them. Of a shard that ended in part, nobody drew by lot which rows are left (long ones expire first):
    for `guaranteed` those stand at their bound; and so do rows aside of a shard that has ended. These are random rows of it,
    so for the others its own lines speak for them.

    The guarantee is the better of two, each at half the risk once they differ: what the lines of the open shards say, and
    what all lines said of all rows, less what has been billed since. The second keeps it from rising near the end, when few
    lines are left to speak for few rows; for the same reason `likely` rests on all lines then. Each is the promise of one look.
    """
    n_pending = sum(pending.values())
    if not n_pending:
        return Rest(0, 0, 0, len(lengths))
    cap = max(cap, *lengths)
    most = n_pending * cap
    near = [length for length, home in zip(lengths, homes, strict=True) if pending.get(home)]
    ours = [length for length, home in zip(lengths, homes, strict=True) if home in whole]
    n_whole = sum(pending[home] for home in whole) - sum(n for home, n in aside.items() if home not in whole)
    alone = len(ours) == len(lengths) and n_whole == n_pending
    alpha = ALPHA if alone else ALPHA / 2
    guaranteed = _still(ours, max(0, n_whole), cap, alpha) + (n_pending - max(0, n_whole)) * cap
    if not alone:
        everything = guaranteed_mean(lengths, n_rows, cap, alpha) * n_rows
        guaranteed = min(guaranteed, max(0, math.ceil(everything) - known))
    guaranteed = min(guaranteed, most)
    gone = {home: n for home, n in aside.items() if not pending.get(home)} if len(near) >= 2 else {}
    n_gone = min(sum(gone.values()), n_pending)
    theirs = _of_homes(gone, lengths, homes)
    speaking = near if len(near) >= 2 else lengths
    expected = min(guaranteed, -(-sum(speaking) * (n_pending - n_gone) // len(speaking)) + theirs)
    if len(near) >= _FEW:
        n_near = n_pending - n_gone + len(near)
        likely = math.ceil(likely_mean(near, n_near, rng, _LIKELY_ALPHA) * n_near) - sum(near) + theirs
    else:
        likely = math.ceil(likely_mean(lengths, n_rows, rng, _LIKELY_ALPHA) * n_rows) - known
    return Rest(expected, max(expected, min(likely, guaranteed)), guaranteed, len(near))


def _of_homes(rows: Mapping[Home, int], lengths: Sequence[int], homes: Sequence[Home]) -> int:
    """What so many random rows of each shard are expected to need; of one without a line as any row."""
    drawn: dict[Home, list[int]] = {}
    for length, home in zip(lengths, homes, strict=True):
        drawn.setdefault(home, []).append(length)
    of_home = {home: drawn.get(home) or lengths for home in rows}
    return sum(-(-n * sum(of_home[home]) // len(of_home[home])) for home, n in rows.items())


def _still(lengths: Sequence[int], n_more: int, cap: int, alpha: float) -> int:
    """The guarantee for so many more rows than the ones drawn from among them."""
    if len(lengths) < 2:
        return n_more * cap
    n_rows = len(lengths) + n_more
    bound = math.ceil(guaranteed_mean(lengths, n_rows, cap, alpha) * n_rows) - sum(lengths)
    return min(n_more * cap, bound)


def likely_mean(lengths: Sequence[int], n_rows: int, rng: Chance, alpha: float = ALPHA) -> float:
    """Upper end of the one-sided bootstrap-t interval of the mean of all rows (Efron & Tibshirani 1993, ch. 12), or of the
    one by Hall's transformation (J. R. Statist. Soc. B 54, 1992) where that is less.

    The t interval that assumes a normal mean held 77-94 % of the time on real lengths where it promised 95 %: lengths
    are skewed, and the studentised bootstrap learns the skew from the pilot. Of lengths that lie in two lumps, most short
    and a few near the cap, it learns too much of it: resamples without a long one count as far below. Hall's does not.
    """
    n = len(lengths)
    mean, deviation = _moments(lengths)
    if deviation == 0 or n == n_rows:
        return mean
    values, m = lengths[:_RESAMPLED], min(n, _RESAMPLED)
    centre, _, skew = _three_moments(values)
    studentised, transformed = [], []
    for _ in range(_RESAMPLES):
        middle, variance, lean = _three_moments(rng.choices(values, k=m))
        t = (middle - centre) / math.sqrt(variance) if variance > 0 else -math.inf
        studentised.append(t)
        transformed.append(_straight(t, lean, m))
    lows = _quantile(studentised, alpha), _bent(_quantile(transformed, alpha), skew, m)
    return mean - max(lows) * deviation * math.sqrt(m / n * (1 - n / n_rows))  # what was seen is certain


def _three_moments(values: Sequence[int]) -> tuple[float, float, float]:
    """Mean, variance and skewness; exact sums, for lengths are integers."""
    n, total = len(values), sum(values)
    squares, cubes = sum(v * v for v in values), sum(v * v * v for v in values)
    spread = squares - total * total / n
    if n * squares == total * total:
        return total / n, 0.0, 0.0
    third = cubes / n - 3 * total * squares / n**2 + 2 * (total / n) ** 3
    return total / n, spread / (n - 1), third / (spread / n) ** 1.5


def _straight(t: float, skew: float, n: int) -> float:
    """Hall's cubic, which takes the skew out of t (in standard deviations of one value) and is monotone in it."""
    return t + skew * t * t / 3 + skew * skew * t**3 / 27 + skew / (6 * n) if t > -math.inf else t


def _bent(straight: float, skew: float, n: int) -> float:
    """The t that it came from."""
    if abs(skew) < 1e-9:
        return straight
    return 3 / skew * (math.cbrt(1 + skew * (straight - skew / (6 * n))) - 1)


def _quantile(values: list[float], alpha: float) -> float:
    """Of resamples; where so many of them had no spread at all, the least of the others."""
    values.sort()
    low = values[max(0, math.floor(alpha * (_RESAMPLES + 1)) - 1)]
    return low if low > -math.inf else next((t for t in values if t > -math.inf), 0.0)


def guaranteed_mean(lengths: Sequence[int], n_rows: int, cap: int, alpha: float = ALPHA) -> float:
    """An upper bound of the mean of all rows that holds with 1 - alpha whatever the distribution, sampled without
    replacement; looked at once. Betting on the mean being smaller (Waudby-Smith & Ramdas, JRSS-B 2024).
    """
    n, budget = len(lengths), 2 * math.log(1 / alpha)

    def stakes() -> Iterator[float]:
        for variance in _variances(lengths, cap):
            yield math.sqrt(budget / (n * variance))

    return _bet(lengths, n_rows, cap, alpha, list(stakes()), once=True)


def running_mean(lengths: Sequence[int], n_rows: int, cap: int, alpha: float = ALPHA) -> float:
    """The same bound, for a band that is looked at after every shard: it holds at all looks together."""
    budget = 2 * math.log(1 / alpha)
    stakes = [
        math.sqrt(budget / (variance * i * math.log(i + 1))) for i, variance in enumerate(_variances(lengths, cap), 1)
    ]
    return _bet(lengths, n_rows, cap, alpha, stakes, once=False)


def _bet(lengths: Sequence[int], n_rows: int, cap: int, alpha: float, stakes: Sequence[float], *, once: bool) -> float:
    """The largest mean that is not refuted, on a grid of `_STEP`, its next point: the last survivor would be too low."""
    if len(lengths) == n_rows:
        return sum(lengths) / n_rows
    enough = math.log(1 / alpha)
    shares = [length / cap for length in lengths]

    def refuted(mean: float) -> bool:
        seen = wealth = 0.0
        for i, (share, stake) in enumerate(zip(shares, stakes, strict=True)):
            left = (n_rows * mean - seen) / (n_rows - i)  # the mean of the rows not drawn yet, were `mean` true
            if left > 1:
                return True  # no rows are that long
            wealth += math.log1p(-min(stake, 0.9 / max(1 - left, 1e-9)) * (share - left))
            seen += share
            if not once and wealth >= enough:
                return True
        return wealth >= enough

    low, high = sum(shares) / len(shares), 1.0
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    # What is known stays known: no row that was not drawn is longer than the cap.
    return min(high * cap, (sum(lengths) + (n_rows - len(lengths)) * cap) / n_rows)


def _variances(lengths: Sequence[int], cap: int) -> Iterator[float]:
    """Of the shares drawn BEFORE each one, shrunk towards 1/4: a stake must not know its own draw."""
    total, squares = 0.5, 0.25
    for i, length in enumerate(lengths, 1):
        yield squares / i
        share = length / cap
        total += share
        squares += (share - total / (i + 1)) ** 2


def _moments(lengths: Sequence[int]) -> tuple[float, float]:
    mean = sum(lengths) / len(lengths)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in lengths) / (len(lengths) - 1))


def _check(lengths: Sequence[int], n_rows: int, cap: int) -> None:
    if not 2 <= len(lengths) <= n_rows:
        raise ValueError(f"{len(lengths)} known lengths of {n_rows} rows; expected 2 to {n_rows}")
    if min(lengths) < 0 or max(lengths) > cap:
        raise ValueError(f"lengths from {min(lengths)} to {max(lengths)}; expected 0 to {cap}")


# ------------------------------------------------------------------------------------------------------- four numbers


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the new work of a plan costs in all, paid and still to be paid together, in micros.

    expected <= likely <= guaranteed <= cannot exceed, always: a budget that is too small ends the work and the cost with
    it. What finishing every row takes is told apart. Money whose fate is unknown counts as paid.
    """

    expected_micros: int
    likely_micros: int | None  # about 19 in 20 stay below; None: nothing random is known yet
    guaranteed_micros: int | None  # at least 95 % stay below, whatever the lengths are distributed like, at this look
    cannot_exceed_micros: int  # every row at its bound, at every attempt that is left, within the job's limit
    finish_micros: int  # expected, whatever the limit
    finish_guaranteed_micros: int | None
    paid_micros: int  # of all of them
    n_rows: int  # new requests
    n_pending: int  # of them: not ended yet
    n_pilot: int  # random rows that speak for those
    attempts: int
    basis: str  # what the numbers rest on, or why one is missing
    is_limited: bool  # the job's limit is what it cannot exceed
    advice: Advice | None = None
    rounds: float | None = None  # how often money must come back before all is sent; None: no limit is set

    def __str__(self) -> str:
        """One line of words."""
        if not self.n_pending and self.cannot_exceed_micros == self.paid_micros:
            return f"{usd(self.paid_micros)} in all" if self.n_rows else f"{usd(0)}: nothing is new"
        parts = [f"{usd(self.paid_micros)} paid"] if self.paid_micros else []
        parts.append(f"expected {usd(self.expected_micros)}")
        if self.likely_micros is None or self.guaranteed_micros is None:
            parts.append(f"likely and guaranteed {self.basis}")
        else:
            parts.append(f"likely at most {usd(self.likely_micros)} ({self.basis})")
            parts.append(f"guaranteed 95 % at most {usd(self.guaranteed_micros)}")
        attempts = f"{self.attempts} attempts" if self.attempts > 1 else "one attempt"
        within = ", within the budget" if self.is_limited else ""
        most = f"cannot exceed {usd(self.cannot_exceed_micros)} (every row at max_output_tokens, {attempts}{within})"
        return " · ".join([*parts, most])

    @property
    def notes(self) -> list[str]:
        """What the budget does to the work, and what a lower bound would do, in words."""
        notes = []
        if self.finish_micros > self.cannot_exceed_micros:
            notes.append(
                f"the budget ends before the rows do: finishing them is expected to take {usd(self.finish_micros)}"
            )
        elif self.rounds is not None and self.rounds > 1:
            notes.append(f"the budget holds part of it at a time: about {math.ceil(self.rounds)} rounds")
        return notes + ([str(self.advice)] if self.advice else [])


@dataclass(frozen=True, slots=True)
class Advice:
    """A lower bound on one answer that would cost little."""

    max_output_tokens: int  # as it is
    times_the_mean: float
    bound: Bound
    rounds: float | None  # as it is; None: no limit is set
    bound_rounds: float | None

    def __str__(self) -> str:
        cut, more = self.bound.truncated, self.bound.rerun_factor - 1
        cost = (
            f"cut {cut:.1%} of answers (sent again with the old bound: +{more:.0%} cost)"
            if cut
            else "have cut none of them"
        )
        words = (
            f"max_output_tokens is {self.times_the_mean:.0f} times the mean answer of the canary: "
            f"{self.bound.max_output_tokens:,} would {cost}"
        )
        if self.rounds is None or self.bound_rounds is None or not math.isfinite(self.rounds) or self.rounds <= 1:
            return words
        return f"{words} and bring {math.ceil(self.rounds)} rounds down to {math.ceil(self.bound_rounds)}"


def before(plan: Plan, limit_micros: int | None, rescue: Price | None = None) -> Outlook:
    """The outlook on a plan nothing of which has run. `limit_micros`: what the job's limit leaves for it; None: no limit.

    rescue: the price where rows may be moved to be in time.
    """
    moved = 0 if rescue is None else moved_micros(plan.input_bound, plan.output_bound, rescue)
    most = most_micros(plan.worst_micros, moved, plan.attempts)
    cannot = most if limit_micros is None else min(most, max(0, limit_micros))
    expected = min(plan.expected_micros, cannot)
    certain = expected if not plan.n_new else None
    room = None if limit_micros is None else rounds(limit_micros, plan.expected_micros, plan.worst_micros)
    why = awaited(plan.n_new, None if plan.canary is None else len(plan.canary.homes))
    return Outlook(
        expected, certain, certain, cannot, plan.expected_micros, certain, 0, plan.n_new, plan.n_new, 0, plan.attempts,
        why if plan.n_new else "nothing is new", cannot < most, None, room if plan.n_new else None,
    )  # fmt: skip


def most_micros(here: int, moved: int, attempts: int) -> int:
    """What lines can cost that cost so much an attempt here, and where they may be moved once (0: they are not). Being
    moved is no attempt: of that one both copies may be billed."""
    return max(here + moved * attempts, here * attempts + moved)


def moved_micros(input_bound: int, output_bound: int, price: Price) -> int:
    """The most that requests of so many tokens together cost where they are moved; 0 for none."""
    levels: list[Price | PriceStep] = [price, *price.steps]
    writes = [level.cache_write for level in levels if level.cache_write is not None]
    dearest = replace(
        price, steps=(), input=max(level.input for level in levels), output=max(level.output for level in levels),
        cache_write=max(writes, default=None),
    )  # fmt: skip
    return worst_micros([(input_bound, output_bound)], dearest) if input_bound else 0


def awaited(n_new: int, n_canary: int | None) -> str:
    """Why likely and guaranteed are not known yet, and when they will be."""
    if n_canary is None:
        return f"unknown: no random sample is drawn of {n_new:,} new rows"
    return f"known after the canary: {n_canary:,} random rows"


def usd(micros: int) -> str:
    """An amount for a sentence: rounded up to a cent from a dollar on, else exact."""
    return f"${format_usd(micros)}" if micros < 1_000_000 else f"${-(-micros // 10_000) / 100:,.2f}"


# ---------------------------------------------------------------------------------------------------- what a cap costs


def rounds(cap_micros: int, expected_micros: int, worst_micros: int) -> float:
    """How many times a job must wait for money to come back before it is done, when each round may hold no more than
    the cap has room for at the worst case: ln(1 - 1/b) / ln(1 - r), b = cap / expected, r = expected / worst
    (methods.md 1.5; known answers: b=1.3, r=.2 -> 6.571; b=2, r=.5 -> 1). Infinite when the cap cannot pay the job.
    """
    if expected_micros <= 0 or worst_micros <= cap_micros:
        return 1.0
    if cap_micros <= expected_micros:
        return math.inf
    if worst_micros <= expected_micros:
        return 1.0
    return max(1.0, math.log1p(-expected_micros / cap_micros) / math.log1p(-expected_micros / worst_micros))


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on one answer, and what it would do."""

    max_output_tokens: int
    truncated: float  # the share of the pilot it would cut
    rerun_factor: float  # cost, when truncated rows are sent again with the old bound


def suggest_bound(lengths: Sequence[int], cap: int) -> Bound | None:
    """The next round number above the pilot's 99.5 % quantile (methods.md 1.5). None where that is no less than the cap,
    or the pilot is too small to know that quantile (200 rows)."""
    if len(lengths) < 200:
        return None
    ranked = sorted(lengths)
    bound = _round_up(ranked[math.ceil(0.995 * len(ranked)) - 1] + 1)
    if bound >= cap:
        return None
    cut = [length for length in lengths if length >= bound]
    total = sum(lengths)
    return Bound(bound, len(cut) / len(lengths), (total + len(cut) * bound) / total if total else 1.0)


def _round_up(tokens: int) -> int:
    """The next multiple of a power of two that is a quarter to a half of it, at least 16: 96, 128, 192, 1536."""
    power = 1 << max(4, tokens.bit_length() - 2)
    return -(-tokens // power) * power


def paid_per_useful(failure: float, poison: float, billed: float, attempts: int) -> float:
    """Rows paid for each useful one: `failure` of an attempt by chance, `poison` rows that fail always, the `billed`
    share of a failed attempt, at most `attempts` (methods.md 1.6; (.05, .01, 1, 3) -> 1.0829).

    Raises ValueError when nothing can become useful.
    """
    if not (0 <= failure < 1 and 0 <= poison < 1 and 0 <= billed <= 1 and attempts >= 1):
        raise ValueError("expected shares below 1 and at least one attempt")
    chance = (1 - poison) * sum(failure**k * ((1 - failure) + failure * billed) for k in range(attempts))
    return (chance + poison * attempts * billed) / ((1 - poison) * (1 - failure**attempts))
