"""People judge, and a judge model chooses what they look at: its word is the stratum, and never counts as an answer. Pure.

A fixed plan: so many rows of those it called good, so many of the others, whatever is found. Its risk holds for a judge of
any quality, also for one that knows the truth and lies: the limit is set for the worst way in which the bad rows of a lot
can lie among what it passed and what it flagged. methods.md 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from statistics import NormalDist

from .gate import Decision, Stratum, estimate, first

LABELS = 100  # rows that people look at, unless the job says otherwise
FLAGGED_SHARE = 0.3  # of them, among those that the judge model did not call good
GOOD, BAD, UNSURE, NOTHING = "gbu-"  # what it said of a row, in one letter
_SPENT = 5  # a fifth of the risk is for the judged rows being better than the lot they are drawn from
_LEAST_BAD = 5  # fewer bad rows than these make no normal interval


@dataclass(frozen=True, slots=True)
class Stratified:
    """How many rows people judge of those that a judge model flagged and passed, and with how many bad ones a lot is accepted."""

    n_lot: int
    bad_rate: float  # the lot that must be refused
    sure: float  # how often, at least
    said: str  # by place, a letter: what the judge model said of a random sample of the lot, or of all of it
    n_flagged: int  # rows that people judge, of those it did not call good
    n_passed: int  # and of those it did
    allowed: tuple[int, ...]  # by bad rows among the flagged: so many bad ones among the passed are accepted; -1: none
    missed: float  # how often a lot of `bad_rate` is accepted at most, whatever the judge model says

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows that it flagged and passed."""
        n_passed = self.said.count(GOOD)
        return len(self.said) - n_passed, n_passed

    @property
    def places(self) -> tuple[int, ...]:
        """What people look at, in the order of the sample, which says nothing of what the judge model thinks."""
        return _places(self.said, self.n_flagged, self.n_passed)

    def decide(self, bad: Sequence[bool]) -> Decision:
        """After judging so many of `places`. What stops early is decided already, so it makes no difference to the risk."""
        flagged, passed = self._found(bad)
        if passed > self.allowed[flagged]:
            return Decision.REFUSE
        return Decision.ACCEPT if len(bad) == len(self.places) else Decision.GO_ON

    def estimated(self, bad: Sequence[bool]) -> Estimated | None:
        """What the judged rows say of the lot; None before all are judged."""
        if len(bad) < len(self.places):
            return None
        flagged, passed = self._found(bad)
        parts = zip(self.sizes, (self.n_flagged, self.n_passed), (flagged, passed), strict=True)
        strata = [Stratum(*numbers) for numbers in parts]
        rate, low, high = estimate(strata, n_lot=self.n_lot)
        if len(bad) < LABELS or flagged + passed < _LEAST_BAD:
            low, high = self.at_least(bad), self._at_most(flagged, passed)
        between = sum(s.n_rows * (s.n_bad / s.n_judged - rate) ** 2 for s in strata if s.n_rows)
        explained = between / len(self.said) / (rate * (1 - rate)) if 0 < rate < 1 else 0.0
        return Estimated(rate, low, high, explained)

    def at_least(self, bad: Sequence[bool], doubt: float = 0.025) -> float:
        """The lowest bad rate of the lot that what was judged so far does not contradict; exact for any judge model."""
        score = self._score(*self._found(bad))
        if not score:
            return 0.0
        doubt /= 1 + (len(self.said) < self.n_lot)
        labels, known = (self.n_flagged, self.n_passed), len(self.said)
        found = _climb(0, known, lambda n: 1 - _passing(n, self.sizes, labels, score - 1)[0] > doubt)
        if known < self.n_lot:
            found = first(found, self.n_lot, lambda n: math.fsum(_chances(self.n_lot, n, known)[found:]) > doubt)
        return found / self.n_lot

    def _at_most(self, flagged: int, passed: int, doubt: float = 0.025) -> float:
        """The highest such rate, once all are judged."""
        score, known = self._score(flagged, passed), len(self.said)
        doubt *= 1 + (not score)
        doubt /= 1 + (known < self.n_lot)
        labels = (self.n_flagged, self.n_passed)
        over = _climb(0, known + 1, lambda n: _passing(n, self.sizes, labels, score)[1] <= doubt)
        most = over - 1
        if known < self.n_lot:
            over = first(most, self.n_lot + 1, lambda n: math.fsum(_chances(self.n_lot, n, known)[: most + 1]) <= doubt)
            most = over - 1
        return most / self.n_lot

    def _found(self, bad: Sequence[bool]) -> tuple[int, int]:
        """Bad rows among the flagged and the passed ones."""
        found = [self.said[place] == GOOD for place, is_bad in zip(self.places, bad, strict=False) if is_bad]
        return len(found) - sum(found), sum(found)

    def _score(self, flagged: int, passed: int) -> int:
        a, b = _weights(self.sizes, (self.n_flagged, self.n_passed))
        return a * flagged + b * passed


@dataclass(frozen=True, slots=True)
class Estimated:
    """The bad rate of a lot, from what people said of rows that a judge model sorted."""

    rate: float
    low: float  # of the 95 % interval
    high: float
    explained: float  # by the judge model, of what rows differ in: the share of labels that it saves (rho squared)


def stratified(n_lot: int, bad_rate: float, sure: float, said: str, n_rows: int = LABELS) -> Stratified | None:
    """The plan that refuses a lot of `bad_rate` so surely, whatever the judge model said; None: so few rows cannot.

    `said`: of all rows of the lot, or of a random sample of them.
    """
    known, passed = len(said), said.count(GOOD)
    sizes = known - passed, passed
    n_rows = min(n_rows, known)
    n_flagged = min(sizes[0], max(round(FLAGGED_SHARE * n_rows), n_rows - sizes[1]))
    labels = n_flagged, n_rows - n_flagged
    least = math.ceil(bad_rate * n_lot - 1e-9)
    spent = (1 - sure) / _SPENT if known < n_lot else 0.0
    if known < n_lot:  # hardly ever so few bad rows are among those the judge model saw
        below = 0.0
        for n_bad, chance in enumerate(_chances(n_lot, least, known)):
            below += chance
            if below > spent:
                least = n_bad
                break
    tables = _tables(least, sizes, labels)
    bounds = _bounds(sizes, labels, NormalDist().inv_cdf(sure))
    limits = sorted({bound for row in bounds for bound in row})
    over = first(0, len(limits), lambda n: _most(tables, _allowed(bounds, limits[n])) > 1 - sure - spent)
    if not over:
        return None
    allowed = _allowed(bounds, limits[over - 1])
    return Stratified(n_lot, bad_rate, sure, said, *labels, allowed, spent + _most(tables, allowed))


def _bounds(sizes: tuple[int, int], labels: tuple[int, int], z: float) -> list[list[float]]:
    """By bad rows among the flagged and among the passed: the upper end of the estimate, by which lots are ordered."""
    return [
        [
            estimate([Stratum(n, k, x) for n, k, x in zip(sizes, labels, found, strict=True)], z)[2]
            for found in product((flagged,), range(labels[1] + 1))
        ]
        for flagged in range(labels[0] + 1)
    ]


def _allowed(bounds: Sequence[Sequence[float]], limit: float) -> tuple[int, ...]:
    """More bad rows are never better: whatever the order of the bounds says of them."""
    most, allowed = len(bounds[0]) - 1, []
    for row in bounds:
        most = min(most, next((n for n, bound in enumerate(row) if bound > limit), len(row)) - 1)
        allowed.append(most)
    return tuple(allowed)


@cache
def _places(said: str, n_flagged: int, n_passed: int) -> tuple[int, ...]:
    flagged = [place for place, word in enumerate(said) if word != GOOD][:n_flagged]
    passed = [place for place, word in enumerate(said) if word == GOOD][:n_passed]
    return tuple(sorted(flagged + passed))


def _weights(sizes: tuple[int, int], labels: tuple[int, int]) -> tuple[int, int]:
    """What a bad row adds to the score."""
    return sizes[0] * max(1, labels[1]), sizes[1] * max(1, labels[0])


# ---------------------------------------------------------------------------------------------------- exact probabilities

_Tables = list[tuple[list[float], list[float]]]


def _tables(n_bad: int, sizes: tuple[int, int], labels: tuple[int, int]) -> _Tables:
    """For every way that so many bad rows can lie in both strata: chances of bad labels among the flagged, and of at most so
    many among the passed."""
    tables = []
    for flagged in range(max(0, n_bad - sizes[1]), min(sizes[0], n_bad) + 1):
        passed = _chances(sizes[1], n_bad - flagged, labels[1])
        total = 0.0
        tables.append((_chances(sizes[0], flagged, labels[0]), [total := total + chance for chance in passed]))
    return tables


def _at_most(table: tuple[list[float], list[float]], allowed: Sequence[int]) -> float:
    """P(no more bad rows among the passed than are allowed by those among the flagged)."""
    return math.fsum(chance * table[1][most] for chance, most in zip(table[0], allowed, strict=True) if most >= 0)


def _most(tables: _Tables, allowed: Sequence[int]) -> float:
    return max(_at_most(table, allowed) for table in tables)


def _passing(n_bad: int, sizes: tuple[int, int], labels: tuple[int, int], limit: int) -> tuple[float, float]:
    """The least and the greatest P(score <= limit) of judged rows with so many bad ones."""
    a, b = _weights(sizes, labels)
    allowed = [max(-1, min((limit - a * x) // b if b else limit - a * x, labels[1])) for x in range(labels[0] + 1)]
    chances = [_at_most(table, allowed) for table in _tables(n_bad, sizes, labels)]
    return min(chances), max(chances)


def _climb(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """`first`, from small numbers up: they are cheap."""
    step = 1
    while low + step < high and not holds(low + step):
        low, step = low + step, 2 * step
    return first(low, min(low + step, high), holds)


def _chances(n_rows: int, n_bad: int, n_drawn: int) -> list[float]:
    """P(x bad ones among draws without replacement), x = 0..n_drawn: outwards from the likeliest, so that nothing underflows."""
    low, high = max(0, n_drawn - (n_rows - n_bad)), min(n_drawn, n_bad)
    mode = min(high, max(low, (n_drawn + 1) * (n_bad + 1) // (n_rows + 2)))
    chances = [0.0] * (n_drawn + 1)
    chances[mode] = 1.0
    for x in range(mode, high):
        more = (n_bad - x) * (n_drawn - x) / ((x + 1) * (n_rows - n_bad - n_drawn + x + 1))
        chances[x + 1] = chances[x] * more
    for x in range(mode, low, -1):
        fewer = x * (n_rows - n_bad - n_drawn + x) / ((n_bad - x + 1) * (n_drawn - x + 1))
        chances[x - 1] = chances[x] * fewer
    total = math.fsum(chances)
    return [chance / total for chance in chances]
