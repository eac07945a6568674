"""A random pilot -> what the whole will cost: expected, likely at most, guaranteed at most. Pure; methods.md 1.

The fourth number, what it cannot exceed, is not here: it is the plan's worst case (price.worst_micros).
Lengths are output tokens of settled rows in RANDOM order, as a random pilot gives them. A pilot that is the first rows of a
sorted file says nothing, however large it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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


def likely_mean(lengths: Sequence[int], n_rows: int, rng: Chance, alpha: float = ALPHA) -> float:
    """Upper end of the one-sided bootstrap-t interval of the mean of all rows (Efron & Tibshirani 1993, ch. 12).

    The t interval that assumes a normal mean held 77-94 % of the time on real lengths where it promised 95 %: lengths
    are skewed, and the studentised bootstrap learns the skew from the pilot.
    """
    n = len(lengths)
    mean, deviation = _moments(lengths)
    if deviation == 0 or n == n_rows:
        return mean
    values = lengths[:_RESAMPLED]
    centre, m = sum(values) / len(values), len(values)
    studentised = []
    for _ in range(_RESAMPLES):
        again = rng.choices(values, k=m)
        total, squares = sum(again), sum(v * v for v in again)
        variance = (squares - total * total / m) / (m - 1)
        studentised.append((total / m - centre) / math.sqrt(variance / m) if variance > 0 else -math.inf)
    studentised.sort()
    low = studentised[max(0, math.floor(alpha * (_RESAMPLES + 1)) - 1)]
    finite = next((t for t in studentised if t > -math.inf), 0.0)
    error = deviation / math.sqrt(n) * math.sqrt(1 - n / n_rows)  # what was seen is certain
    return mean - (low if low > -math.inf else finite) * error


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
