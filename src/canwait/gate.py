"""What a sample must show before anything is loaded: plans of inspection, their risk, the verdict. Pure; methods.md 5.

A plan says after every judged row whether to accept, to refuse or to go on. Its risk is exact: draws without
replacement from a lot of known size, summed over every path. Nothing here looks at results twice: the sample and its order
are fixed by a seed before there are any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from functools import cache
from hashlib import sha256

MOST_ROWS = 60  # that a person is asked to judge, unless the job says otherwise
_PASS = 0.95  # how often a lot as good as a plan calls good must pass
_DOWN = 12  # how far below the drift Wald's line of acceptance may begin
_FINE_ROWS = 128  # of so many rows plans are told apart by eighths of a bad row; of more it makes no difference
_GOOD_PART = 5  # a lot is good at a fifth of the rate it must be refused at: what Wald's lines are drawn for


class Decision(str, Enum):
    """What a sample says so far."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    GO_ON = "go on"


@dataclass(frozen=True, slots=True)
class Inspection:
    """A plan of inspection for one lot. After k rows (counted from 1): accept at most `accept[k-1]` bad ones (-1: not yet),
    refuse at least `refuse[k-1]`."""

    n_lot: int
    bad_rate: float  # the lot that must be refused
    sure: float  # how often, at least
    accept: tuple[int, ...]
    refuse: tuple[int, ...]

    @property
    def most_rows(self) -> int:
        return len(self.accept)

    def decide(self, n_judged: int, n_bad: int) -> Decision:
        """After judging so many rows in the order of the sample. Raises ValueError past the plan's end."""
        if not 0 <= n_bad <= n_judged <= self.most_rows:
            raise ValueError(f"{n_bad} bad of {n_judged} judged rows; this plan judges at most {self.most_rows}")
        if n_judged == 0:
            return Decision.GO_ON if self.most_rows else Decision.ACCEPT
        if n_bad <= self.accept[n_judged - 1]:
            return Decision.ACCEPT
        return Decision.REFUSE if n_bad >= self.refuse[n_judged - 1] else Decision.GO_ON


def passes(plan: Inspection, n_bad: int) -> float:
    """The probability that a lot with exactly so many bad rows is accepted: the operating characteristic."""
    if not plan.most_rows:
        return 1.0
    passed, fewest = 0.0, 0
    at = [1.0]  # by bad rows seen, from the fewest: probability of being here undecided
    for k, (accept, refuse) in enumerate(zip(plan.accept, plan.refuse, strict=True)):
        left, after = plan.n_lot - k, [0.0, *at]
        for i, chance in enumerate(at):
            worse = chance * (n_bad - fewest - i) / left if n_bad > fewest + i else 0.0
            after[i + 1] -= chance - worse
            after[i] += chance - worse
        n_accepted = max(0, accept + 1 - fewest)
        passed += math.fsum(after[:n_accepted])
        at = after[n_accepted : max(n_accepted, refuse - fewest)]
        fewest += n_accepted
        if not at:
            break
    return passed


def mean_rows(plan: Inspection, n_bad: int) -> float:
    """How many rows are judged on average."""
    return _walk(plan, n_bad)[1]


def curve(plan: Inspection, n_points: int = 41) -> list[tuple[float, float, float]]:
    """(bad rate, chance to pass, mean rows judged) from 0 to twice the rate that must be refused."""
    most = min(1.0, 2 * plan.bad_rate)
    rates = [most * i / (n_points - 1) for i in range(n_points)]
    return [(rate, *_walk(plan, round(rate * plan.n_lot))) for rate in rates]


def interval(plan: Inspection, n_judged: int, n_bad: int, level: float = 0.95) -> tuple[float, float]:
    """The bad rates of a lot that a decided inspection does not contradict; exact also where it stopped early.

    Ends are ordered by the share of bad rows seen. Where none was bad all doubt lies on one side: 0 of 60 is "at most 4.9 %".
    """
    doubt = (1 - level) / (1 if n_bad in (0, n_judged) else 2)
    seen = n_bad / n_judged if n_judged else 0.0

    def chance(lot_bad: int, *, fewer: bool) -> float:
        ends = _ends(plan, lot_bad)
        return math.fsum(p for k, bad, p in ends if (bad / k <= seen + 1e-12 if fewer else bad / k >= seen - 1e-12))

    least, most = n_bad, plan.n_lot - (n_judged - n_bad)
    lowest = first(least, most, lambda lot_bad: chance(lot_bad, fewer=False) > doubt) if n_bad else 0
    highest = most
    if n_bad < n_judged:
        highest = first(lowest, most, lambda lot_bad: chance(lot_bad, fewer=True) <= doubt)
        highest -= chance(highest, fewer=True) <= doubt
    return (lowest / plan.n_lot, max(lowest, highest) / plan.n_lot) if plan.n_lot else (0.0, 0.0)


def first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number of a range from which on something holds; `high` where it never does before."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _walk(plan: Inspection, n_bad: int) -> tuple[float, float]:
    """How often a lot passes, and the rows judged on average."""
    if not plan.most_rows:
        return 1.0, 0.0
    ends = _ends(plan, n_bad)
    passed = sum(p for k, bad, p in ends if plan.decide(k, bad) is Decision.ACCEPT)
    return passed, sum(k * p for k, _, p in ends)


def _ends(plan: Inspection, n_bad: int) -> list[tuple[int, int, float]]:
    """Where an inspection ends, (rows judged, bad ones, probability): every path of draws, together where they meet."""
    at = {0: 1.0}  # bad rows seen -> probability of being here undecided
    ends = []
    for k in range(plan.most_rows):
        after: dict[int, float] = {}
        for bad, chance in at.items():
            worse = max(0, n_bad - bad) / (plan.n_lot - k)
            for seen, part in ((bad + 1, chance * worse), (bad, chance * (1 - worse))):
                if part:
                    after[seen] = after.get(seen, 0.0) + part
        at = {}
        for bad, chance in after.items():
            if plan.decide(k + 1, bad) is Decision.GO_ON:
                at[bad] = chance
            else:
                ends.append((k + 1, bad, chance))
    return ends


# ------------------------------------------------------------------------------------------------------------- plans


def fixed(n_lot: int, n_rows: int, allowed: int, bad_rate: float, sure: float) -> Inspection:
    """Judge `n_rows`, accept at most `allowed` bad ones; stop as soon as that is decided. Same risk, fewer rows."""
    n_rows = min(n_rows, n_lot)
    accept = tuple(allowed - (n_rows - k) for k in range(1, n_rows + 1))  # even if all that follow were bad
    return Inspection(n_lot, bad_rate, sure, accept, (allowed + 1,) * n_rows)


def smallest(n_lot: int, good_rate: float, bad_rate: float, sure: float = 0.90) -> tuple[int, int]:
    """The smallest sample (rows, allowed bad ones) by which a good lot passes 95 times in 100 and a bad one is refused
    `sure`: (98, 4) for a lot of 5,000 at 2 % and 8 % (methods.md 5.1). All rows where none is small enough."""
    good, bad = _count(n_lot, good_rate), _count(n_lot, bad_rate)
    allowed = 0
    for n in range(1, n_lot):
        while _hypergeometric(n_lot, good, n, allowed) < _PASS:
            allowed += 1
        if _hypergeometric(n_lot, bad, n, allowed) <= 1 - sure:
            return n, allowed
    return n_lot, max(0, bad - 1)


@cache
def sequential(n_lot: int, bad_rate: float, sure: float, most_rows: int = MOST_ROWS) -> Inspection:
    """The default: look at one row after another and stop as soon as the lot is clearly good or clearly bad.

    Wald's lines, cut off at `most_rows`, with the largest acceptance numbers by which a lot of `bad_rate` is still refused
    `sure`. Raises ValueError where so few rows cannot be that sure, with how many can.
    """
    if not (0 < bad_rate < 1 and 0 < sure < 1 and n_lot >= 0 and most_rows >= 1):
        raise ValueError("expected a rate and a sureness between 0 and 1")
    bad = _count(n_lot, bad_rate)
    if bad == 0 or n_lot == 0:
        return Inspection(n_lot, bad_rate, sure, (), ())  # no lot of this size can be that bad
    n = min(most_rows, n_lot)
    if _hypergeometric(n_lot, bad, n, 0) > 1 - sure:
        needed = next(k for k in range(n, n_lot + 1) if _hypergeometric(n_lot, bad, k, 0) <= 1 - sure)
        raise ValueError(f"{n} rows cannot refuse a lot with {bad_rate:.1%} bad rows {sure:.0%} sure; {needed} can")
    kind = bad_rate / _GOOD_PART
    drift = math.log((1 - kind) / (1 - bad_rate))
    scale = math.log(bad_rate / kind) + drift
    good = _count(n_lot, kind)
    slope, up = drift / scale, math.log(sure / (1 - _PASS)) / scale
    refuse = [max(1, math.ceil(up + slope * k)) for k in range(1, n + 1)]
    best: tuple[float, Inspection] | None = None
    # From the boldest line of acceptance to the most careful one.
    fine = 8 if n <= _FINE_ROWS else 1
    for step in range(_DOWN * fine):
        accept = [max(-1, math.floor(slope * k - step / fine)) for k in range(1, n + 1)]
        plan = _sure_enough(Inspection(n_lot, bad_rate, sure, tuple(accept), tuple(refuse)), bad)
        if plan is not None and (kindness := passes(plan, good)) > (best[0] if best else -1) + 1e-12:
            best = kindness, plan  # of equals the boldest, which judges fewer rows
    assert best is not None
    return best[1]


def _sure_enough(plan: Inspection, bad: int) -> Inspection | None:
    """These lines with the highest number of bad rows at the end by which a lot with so many is refused; None: none."""

    def ending(last: int) -> Inspection:
        accept, refuse = (min(a, last) for a in plan.accept[:-1]), plan.refuse[:-1]
        return replace(plan, accept=(*accept, last), refuse=(*refuse, last + 1))

    highest = min(plan.refuse[-1] - 1, plan.most_rows)
    less = first(0, highest + 1, lambda less: passes(ending(highest - less), bad) <= 1 - plan.sure)
    return ending(highest - less) if less <= highest else None


def needed(bad_rate: float, sure: float) -> int:
    """How many rows are always enough to refuse a lot of `bad_rate` so surely, with none of them allowed to be bad."""
    return math.ceil(math.log1p(-sure) / math.log1p(-bad_rate) - 1e-9)


def good_rate(plan: Inspection) -> float:
    """The highest bad rate by which a lot still passes 95 times in 100: what the plan is kind to."""
    worse = first(1, plan.n_lot + 1, lambda n_bad: passes(plan, n_bad) < _PASS)
    return (worse - 1) / plan.n_lot if plan.n_lot else 0.0


def _count(n_lot: int, rate: float) -> int:
    """Bad rows of a lot with this rate, at least; a hair below a whole number is that number."""
    return math.ceil(rate * n_lot - 1e-9)


def tail(n: int, n_bad: int, rate: float) -> float:
    """P(at least `n_bad` bad ones among n rows, each bad with that chance), exact to rounding."""
    if n_bad <= 0:
        return 1.0
    ways, odds = math.lgamma(n + 1), math.log(rate) - math.log1p(-rate)
    none = n * math.log1p(-rate)
    logs = (ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) + none + k * odds for k in range(n_bad, n + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


def _hypergeometric(n_lot: int, n_bad: int, n: int, most: int) -> float:
    """P(at most `most` bad ones among n draws without replacement)."""
    lowest = max(0, n - (n_lot - n_bad))
    total = math.comb(n_lot, n)
    ways = sum(math.comb(n_bad, k) * math.comb(n_lot - n_bad, n - k) for k in range(lowest, min(most, n, n_bad) + 1))
    return ways / total


# --------------------------------------------------------------------------------------------------- which rows, whose


def rank(seed: bytes, key: str) -> bytes:
    """A row's place in the order of inspection: rows are judged from the smallest rank on. Nobody can choose it."""
    return sha256(seed + b"\0" + key.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows that a judge model called the same, and what people said of those they looked at."""

    n_rows: int
    n_judged: int
    n_bad: int


def estimate(strata: Sequence[Stratum], z: float = 1.959964, *, n_lot: int | None = None) -> tuple[float, float, float]:
    """Bad rate and its 95 % interval where people judge and a judge model only sorts (methods.md 5.4).

    `n_lot`: rows of which the strata are a random sample. The judge's own word is never counted: alone it gave a confident
    wrong number in every run. Raises ValueError for a stratum nobody has looked at.
    """
    total = sum(s.n_rows for s in strata)
    mean = variance = 0.0
    for s in strata:
        if s.n_rows and not s.n_judged:
            raise ValueError("a stratum without a judged row")
        if not s.n_rows:
            continue
        weight, smoothed = s.n_rows / total, (s.n_bad + 0.5) / (s.n_judged + 1)
        mean += weight * s.n_bad / s.n_judged
        variance += weight**2 * smoothed * (1 - smoothed) / s.n_judged * (1 - s.n_judged / s.n_rows)
    if n_lot is not None:
        variance += mean * (1 - mean) / total * (1 - total / n_lot)
    reach = z * math.sqrt(variance)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def drawing(plan: Inspection, *, width: int = 61, height: int = 12) -> Iterator[str]:
    """The operating characteristic as text: how often a lot passes, by how bad it is."""
    points = curve(plan, width)
    for level in range(height, -1, -1):
        share = level / height
        dots = "".join("*" if round(passed * height) == level else " " for _, passed, _ in points)
        yield f"{share:>5.0%} |{dots}".rstrip()
    yield f"      +{'-' * width}"
    half, end = f"{points[width // 2][0]:.1%}", f"{points[-1][0]:.1%}"
    to_half = width // 2 + len(half) // 2 - 2
    yield f"       0%{half.rjust(to_half)}{end.rjust(width - 2 - to_half)}  bad rows"


def percent(rate: float | Decimal) -> str:
    """A share of 1 as people read it: "4.5%", and "0.012%" of a small one."""
    places = Decimal("0.1") if rate >= 0.001 else Decimal("0.001")
    return f"{Decimal(100 * rate).quantize(places).normalize():f}%"
