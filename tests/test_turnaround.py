"""Turnaround: the textbook's survival curve, bounds that hold for any distribution, and a provider that gets slow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.turnaround import WINDOW, Seen, adaptive, batches_needed, next_batch, survival

NINETY = Decimal("0.9")
watched = st.lists(st.builds(Seen, st.floats(0, 1e6), st.booleans()), max_size=40)


def test_survival_is_the_textbooks() -> None:
    """Freireich's 21 patients on 6-MP (1963), as every textbook prints them; ties of an end and a censoring included."""
    ends = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    curve = survival([Seen(t) for t in ends] + [Seen(t, ended=False) for t in censored])
    assert curve.times == (6, 7, 10, 13, 16, 22, 23)
    assert curve.shares == pytest.approx((0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448), abs=0.0005)
    assert (curve.n, curve.n_ended, curve.quantile(0.5), curve.quantile(0.9)) == (21, 9, 23, None)
    assert (curve.at(5.9), curve.at(6), curve.at(1000)) == (1.0, curve.shares[0], curve.shares[-1])


def test_survival_agrees_with_lifelines() -> None:
    """40 random durations with many ties, against KaplanMeierFitter of lifelines 0.30.3 to 12 digits."""
    durations = [11, 5, 13, 21, 2, 3, 27, 18, 4, 12, 19, 2, 30, 17, 7, 2, 3, 14, 14, 3]
    durations += [8, 3, 18, 14, 2, 27, 19, 4, 8, 21, 21, 19, 2, 19, 19, 13, 2, 8, 2, 18]
    ended = [0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1]
    ended += [0, 0, 1, 0, 1]
    curve = survival([Seen(t, bool(e)) for t, e in zip(durations, ended, strict=True)])
    known = {1: 1.0, 5: 0.764232361934, 10: 0.733663067456, 15: 0.553158661971}
    known |= {20: 0.295017953051, 25: 0.147508976526, 30: 0.0}
    assert {t: curve.at(t) for t in known} == pytest.approx(known, abs=1e-12)


@given(watched)
def test_leaving_out_what_still_runs_flatters(seen: list[Seen]) -> None:
    """The curve falls from 1 to 0, and is nowhere below the one of finished batches alone."""
    curve, flattering = survival(seen), survival([s for s in seen if s.ended])
    steps = (1.0, *curve.shares)
    assert all(before > after >= 0 for before, after in pairwise(steps))
    assert all(curve.at(t) >= flattering.at(t) - 1e-12 for t, _ in seen)


@pytest.mark.parametrize(("share", "needs"), [("0.9", 9), ("0.95", 19), ("0.99", 99)])
def test_too_few_batches_tell_nothing(share: str, needs: int) -> None:
    """90, 95 and 99 % need 9, 19 and 99 batches; with one fewer the bound is unknown, and says how many it takes."""
    batches = [Seen(float(i)) for i in range(needs)]
    few, enough = next_batch(batches[1:], Decimal(share)), next_batch(batches, Decimal(share))
    assert batches_needed(Decimal(share)) == needs
    assert (few.seconds, few.known, few.needs, few.n) == (None, False, needs, needs - 1)
    assert (enough.seconds, enough.known) == (float(needs - 1), True)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60), st.sampled_from(["0.5", "0.8", "0.9", "0.95"]))
def test_the_bound_holds_for_any_distribution(seconds: list[float], share: str) -> None:
    """Of any batches, leave one out and bound it by the others: the bound holds for at least the share of them."""
    held = 0
    for i, own in enumerate(seconds):
        bound = next_batch([Seen(t) for t in seconds[:i] + seconds[i + 1 :]], Decimal(share))
        held += bound.seconds is None or own <= bound.seconds
    assert held >= float(share) * len(seconds) - 1e-9


@given(watched, st.integers(0, 39))
def test_a_batch_that_still_runs_never_makes_the_bound_earlier(seen: list[Seen], i: int) -> None:
    """Not having seen a batch come back can only raise the bound, or make it unknown."""
    if i >= len(seen):
        return
    before = next_batch(seen, NINETY).seconds
    after = next_batch([*seen[:i], seen[i]._replace(ended=False), *seen[i + 1 :]], NINETY).seconds
    assert after is None or (before is not None and after >= before)


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.1, 10), min_size=60, max_size=100),
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.1, 5.0, 50.0])), max_size=3),
)
def test_the_adaptive_bound_keeps_its_long_run_share(seconds: list[float], changes: list[tuple[int, float]]) -> None:
    """Whatever a provider does, misses stay within Gibbs and Candes' bound: share + (share + gamma) / (gamma T)."""
    for start, factor in changes:
        seconds = [t * factor if i >= start else t for i, t in enumerate(seconds)]
    seen = [Seen(t) for t in seconds]
    bounds = [adaptive(seen[:i], NINETY).seconds for i in range(len(seen))]
    misses = sum(bound is not None and s.seconds > bound for bound, s in zip(bounds, seen, strict=True))
    assert misses / len(seen) <= 0.1 + (0.1 + 0.03) / (0.03 * len(seen)) + 1e-9


def test_the_adaptive_bound_follows_a_slow_week() -> None:
    """When batches take five times as long, the bound of all history fails most, and the adaptive one least."""
    rng = random.Random(11)
    held = {"all": 0, "recent": 0, "adaptive": 0}
    n = 0
    for _ in range(6):
        seen = [Seen(rng.lognormvariate(8, 1)) for _ in range(150)]
        for _ in range(80):
            new = Seen(5 * rng.lognormvariate(8, 1))
            held["all"] += within(new, seen)
            held["recent"] += within(new, seen[-WINDOW:])
            bound = adaptive(seen, NINETY).seconds
            held["adaptive"] += bound is None or new.seconds <= bound
            seen.append(new)
            n += 1
    assert held["all"] / n < 0.78
    assert held["all"] + 0.05 * n < held["recent"] <= held["adaptive"]
    assert held["adaptive"] / n > 0.80


def within(new: Seen, seen: Sequence[Seen]) -> bool:
    bound = next_batch(seen, NINETY).seconds
    return bound is None or new.seconds <= bound


def test_adaptive_without_a_history_is_unknown() -> None:
    """No history, and a history of batches that never came back, give no bound."""
    assert adaptive([], NINETY).seconds is None
    lost = adaptive([Seen(10.0, ended=False)] * 30, NINETY)
    assert (lost.seconds, lost.n, lost.n_censored) == (None, 30, 30)


@pytest.mark.parametrize("share", ["0", "1", "1.5"])
def test_a_share_is_a_share(share: str) -> None:
    """Nothing and everything cannot be bounded."""
    with pytest.raises(ValueError, match="share"):
        next_batch([], Decimal(share))
