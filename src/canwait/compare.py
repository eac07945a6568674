"""Is the small one good enough? Paired outcomes of two ways to answer the same rows -> intervals and a decision. Pure.

What is decided is non-inferiority: the loss, the share of rows that only the large one gets right less the share that
only the small one does, is at most a margin. Methods: Bonett & Price 2012 (interval of a paired difference), exact
McNemar, Clopper & Pearson 1934. Shares are floats; money never is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, exp, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

_SURE = 0.95  # of a decision, one-sided; of an interval, two-sided
_Z_SURE, _Z_POWER = (
    Fraction("1.645"),
    Fraction("0.842"),
)  # 95 % sure, 80 % of the times: as sample-size tables round them
_TOO_MANY = 1_000_000  # rows: nobody labels so many


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """The same rows, answered twice. A row without a usable answer is one that is not right."""

    both: int
    only_large: int
    only_small: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_large + self.only_small + self.neither

    @property
    def loss(self) -> float:
        """What the small one loses, as a share of the rows. Raises ZeroDivisionError without rows."""
        return (self.only_large - self.only_small) / self.n


def pairs(small: Iterable[bool], large: Iterable[bool]) -> Pairs:
    """Outcomes row by row, in one order. Raises ValueError for unequal lengths."""
    counts = [0, 0, 0, 0]
    for small_ok, large_ok in zip(small, large, strict=True):
        counts[2 * (not small_ok) + (not large_ok)] += 1
    return Pairs(both=counts[0], only_small=counts[1], only_large=counts[2], neither=counts[3])


# ------------------------------------------------------------------------------------------------------- the decision


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the small one may stand in for the large one."""

    verdict: Literal["accept", "refuse", "not enough rows"]
    margin: float
    pairs: Pairs
    loss: float | None  # None: there are no rows
    interval: Interval | None  # 95 %, two-sided
    upper: float | None  # 95 % sure that the loss is at most this: what the margin is held against
    p_value: float  # exact McNemar: how often two equal ones would differ so much
    needs: int | None  # rows to tell, 8 times of 10; None: told, or more than anybody would label
    words: str


def decide(found: Pairs, margin: Decimal) -> Decision:
    """Accept the small one if its loss is surely at most the margin, refuse it if it is surely more, else say how many
    rows it would take. Raises ValueError unless 0 < margin < 1."""
    if not 0 < margin < 1:
        raise ValueError(f"a margin of {margin}: expected a share above 0 and below 1")
    p_value = mcnemar(found.only_large, found.only_small)
    if not found.n:
        words = "not enough rows to tell: none was compared"
        return Decision("not enough rows", float(margin), found, None, None, None, p_value, None, words)
    interval = bonett_price(found.only_large, found.only_small, found.n)
    one_sided = bonett_price(found.only_large, found.only_small, found.n, confidence=2 * _SURE - 1)
    needs = None
    if one_sided.high <= margin:
        verdict: Literal["accept", "refuse", "not enough rows"] = "accept"
        words = f"good enough: 95 % sure that it loses at most {one_sided.high:.1%}, allowed is {margin:.1%}"
    elif one_sided.low > margin:
        verdict, words = "refuse", f"not good enough: 95 % sure that it loses more than {margin:.1%}"
    else:
        verdict, needs = "not enough rows", _needs(found, margin)
        words = f"not enough rows to tell (needs {needs:,})" if needs else "too close to the margin to tell"
    if verdict == "accept" and not found.both + found.only_small:
        verdict, words = (
            "refuse",
            "nothing it answers is right, and next to nothing that it is held against: look at labels and prompt",
        )
    words += f" ({found.n:,} rows)" if needs is None else f"; {found.n:,} were compared"
    return Decision(verdict, float(margin), found, found.loss, interval, one_sided.high, p_value, needs, words)


def _needs(found: Pairs, margin: Decimal) -> int | None:
    """Rows to tell, going by what was seen: by the margin, or where there were as many, by how near the loss lies to it."""
    discordant = Fraction(found.only_large + found.only_small + 2, found.n + 2)
    needs = rows_needed(margin, discordant)
    if needs <= found.n:
        distance = abs(Fraction(margin) - Fraction(found.only_large - found.only_small, found.n))
        needs = max(found.n + 1, rows_needed(distance, discordant)) if distance else _TOO_MANY
    return needs if needs < _TOO_MANY else None


def rows_needed(margin: Decimal | Fraction, discordant: Decimal | Fraction) -> int:
    """Rows that show, 8 times of 10, with 95 % sureness, that nothing more than `margin` is lost where nothing is.

    `discordant`: the share of rows that only one of the two gets right.
    """
    return ceil((_Z_SURE + _Z_POWER) ** 2 * Fraction(discordant) / Fraction(margin) ** 2)


def power(n: int, margin: float, discordant: float, loss: float = 0.0) -> float:
    """How often `n` rows lead to `accept` where the true loss is `loss`, by the normal approximation."""
    spread = sqrt(max(discordant - loss * loss, 0.0) / n)
    if not spread:
        return float(loss <= margin)
    return NormalDist().cdf((margin - loss) / spread - float(_Z_SURE))


# --------------------------------------------------------------------------------------------------------- statistics


def bonett_price(only_large: int, only_small: int, n: int, *, confidence: float = _SURE) -> Interval:
    """Two-sided interval of the loss; nearly all of [-1, 1] without rows."""
    p12, p21 = (only_large + 1) / (n + 2), (only_small + 1) / (n + 2)
    d = p12 - p21
    half = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt((p12 + p21 - d * d) / (n + 2))
    return Interval(max(-1.0, d - half), min(1.0, d + half))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of b against c discordant pairs; 1 where there are none."""
    return min(1.0, 2 * binomial_cdf(min(b, c), b + c, 0.5)) if b + c else 1.0


def clopper_pearson(k: int, n: int, *, confidence: float = _SURE) -> Interval:
    """Exact two-sided interval of a share of which `k` of `n` were seen; all of [0, 1] for no rows."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n}")
    tail = (1 - confidence) / 2
    return Interval(_lower(k, n, tail), 1 - _lower(n - k, n, tail))


def surely_exceeds(k: int, n: int, share: float, *, sure: float = _SURE) -> bool:
    """Whether a proportion is surely above `share`, `k` of `n` having been seen so far: however often somebody looks, of one
    that is not this is ever said with probability 1 - sure at most.

    The wealth of whoever bets on every larger proportion alike, which no stopping can make grow (Ville 1939).
    """
    if not 0 < share < 1:
        return k > 0 if share <= 0 else False
    above = 1 - _beta_cdf(share, k + 1, n - k + 1)
    if above <= 0:
        return False
    won = lgamma(k + 1) + lgamma(n - k + 1) - lgamma(n + 2) + log(above) - log1p(-share)
    return won - k * log(share) - (n - k) * log1p(-share) >= log(1 / (1 - sure))


def _lower(k: int, n: int, tail: float) -> float:
    """The share at which `k` or more of `n` are seen with probability `tail`."""
    if k == 0:
        return 0.0
    low, high = 0.0, k / n
    while (middle := (low + high) / 2) not in (low, high):
        if _beta_cdf(middle, k, n - k + 1) < tail:
            low = middle
        else:
            high = middle
    return low


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) of X successes in n trials."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else _beta_cdf(1 - p, n - k, k + 1)


def _beta_cdf(x: float, a: int, b: int) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), with Lentz's method."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # there the fraction converges fast for the other tail only
        return 1.0 - _beta_cdf(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    total = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + numerator * d) or tiny)
            c = (1 + numerator / c) or tiny
            total *= c * d
        if math.isclose(c * d, 1.0, rel_tol=1e-15):
            break
    return front * total


# -------------------------------------------------------------------------------------------------------------- money


def cost_per_accepted(
    paid_micros: int, accepted: int, *, check_micros: int = 0, rejected: int = 0, reject_micros: int = 0
) -> Decimal | None:
    """Micros for each accepted output, to a thousandth: all that was paid, checking it, and what each rejected row
    costs downstream where somebody has said so. None where nothing was accepted."""
    if not accepted:
        return None
    total = paid_micros + check_micros + rejected * reject_micros
    return (Decimal(total) / accepted).quantize(Decimal("0.001"))
