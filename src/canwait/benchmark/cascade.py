"""The small model answers, a verifier scores it, and what scores low goes to the large model: what that costs and keeps.

Pure. The threshold comes with a promise: with probability 1 - delta over the labelled rows it was chosen by, the cascade
loses at most epsilon against the large model alone. It is kept by testing thresholds in one fixed order, from "escalate
all" on, and stopping at the first that fails (Learn then Test: Angelopoulos, Bates, Candes et al. 2021). The best-looking
threshold of a sample keeps no such promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from math import inf, isnan

from ..compare import bonett_price

_STEPS = 20  # thresholds that are tried, each keeping a twentieth more of the rows


@dataclass(frozen=True, slots=True)
class Cascade:
    """What a cascade does on average, for each row."""

    escalated: float  # share of rows that the large model answers too
    accuracy: float
    cost: Decimal  # in the unit of the costs that went in


def expected(
    accuracy: float,
    sensitivity: float,
    specificity: float,
    *,
    escalated_accuracy: float,
    small: Decimal,
    large: Decimal,
    verifier: Decimal = Decimal(0),
) -> Cascade:
    """accuracy: of the small model. sensitivity: share of its wrong answers that the verifier stops; specificity: share of
    its right ones that it lets pass. escalated_accuracy: of the large model, on the rows that reach it. Costs a row."""
    escalated = (1 - accuracy) * sensitivity + accuracy * (1 - specificity)
    kept_right = accuracy * specificity
    cost = small + verifier + Decimal(repr(escalated)) * large
    return Cascade(escalated, kept_right + escalated * escalated_accuracy, cost)


@dataclass(frozen=True, slots=True)
class Threshold:
    """From which score on the small model's answer is kept."""

    score: float | None  # None: escalate all, nothing could be promised
    kept: float  # share of the labelled rows that reach it
    loss: float  # of the cascade on them, against the large model alone
    upper: float  # surely at most this, with probability 1 - delta
    epsilon: float
    delta: float
    n: int  # labelled rows


def choose_threshold(
    scores: Sequence[float], small_ok: Sequence[bool], large_ok: Sequence[bool], epsilon: float, delta: float
) -> Threshold:
    """The lowest score that keeps the promise: P(the cascade loses more than `epsilon`) <= `delta`.

    A higher score speaks for the small model's answer; one of minus infinity is always escalated. Rows of one score are
    kept or escalated together. Raises ValueError for unequal lengths, and for a score that is no number.
    """
    if any(isnan(score) for score in scores):
        raise ValueError("a score that is no number")
    if not (0 < epsilon < 1 and 0 < delta < 0.5):
        raise ValueError(f"epsilon {epsilon}, delta {delta}: expected 0 < epsilon < 1 and 0 < delta < 0.5")
    ranked = sorted(zip(scores, small_ok, large_ok, strict=True), key=lambda row: -row[0])
    n, kept, only_large, only_small = len(ranked), 0, 0, 0
    best = Threshold(None, 0.0, 0.0, 0.0, epsilon, delta, n)
    for score, rows in groupby(ranked, key=lambda row: row[0]):
        if score == -inf:  # no answer, or none that says how sure it is: never kept
            break
        steps = kept * _STEPS // n
        for _, small, large in rows:
            kept += 1
            only_large += large and not small
            only_small += small and not large
        if kept * _STEPS // n == steps:  # not a step further yet: the order is fixed by scores alone, never by outcomes
            continue
        upper = bonett_price(only_large, only_small, n, confidence=1 - 2 * delta).high
        if upper > epsilon:
            break
        best = Threshold(score, kept / n, (only_large - only_small) / n, upper, epsilon, delta, n)
    return best
