"""Promises of gate.py: risks that are exact, plans with their known answers, samples nobody can choose."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from random import Random

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from canwait.gate import (
    Decision,
    Inspection,
    Stratum,
    curve,
    drawing,
    estimate,
    fixed,
    good_rate,
    mean_rows,
    passes,
    rank,
    sequential,
    smallest,
)


@pytest.mark.parametrize(
    ("n_lot", "good", "bad", "wanted"),
    [
        (300, 0.02, 0.08, (76, 3)), (5000, 0.02, 0.08, (98, 4)), (300, 0.01, 0.05, (94, 2)), (5000, 0.01, 0.05, (131, 3)),
        (300, 0.005, 0.02, (200, 2)), (5000, 0.005, 0.02, (390, 4)),
    ],
)  # fmt: skip
def test_the_presets_are_the_smallest_samples(n_lot: int, good: float, bad: float, wanted: tuple[int, int]) -> None:
    """methods.md 5.1: a good lot passes 95 times in 100, a bad one is stopped 90 times, with the fewest rows."""
    assert smallest(n_lot, good, bad) == wanted


def test_the_characteristic_is_exact() -> None:
    """methods.md 5.1: 98 rows with 4 allowed pass .954392 of lots at 2 % and .097232 at 8 %; curtailing changes nothing."""
    plan = fixed(5000, 98, 4, 0.08, 0.9)
    assert passes(plan, 100) == pytest.approx(0.954392, abs=1e-6)
    assert passes(plan, 400) == pytest.approx(0.097232, abs=1e-6)
    assert mean_rows(plan, 1000) == pytest.approx(25, abs=0.1)  # at 20 % bad, methods.md 5.2


def judged(plan: Inspection, n_bad: int, rng: Random) -> tuple[Decision, int]:
    """One inspection of a lot with so many bad rows."""
    lot = [1] * n_bad + [0] * (plan.n_lot - n_bad)
    seen = 0
    for k, bad in enumerate(rng.sample(lot, plan.most_rows), 1):
        seen += bad
        if (said := plan.decide(k, seen)) is not Decision.GO_ON:
            return said, k
    raise AssertionError("the plan did not end")


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.02, 0.05, 0.1, 0.15])
def test_the_characteristic_is_what_a_simulation_finds(rate: float) -> None:
    """Exact chance to pass and mean rows judged agree with 4,000 simulated inspections, within 2 points and 1 row."""
    plan, rng = sequential(2000, 0.1, 0.9), Random(int(rate * 1000))
    found = [judged(plan, round(rate * 2000), rng) for _ in range(4000)]
    passed = sum(said is Decision.ACCEPT for said, _ in found) / len(found)
    assert passed == pytest.approx(passes(plan, round(rate * 2000)), abs=0.025)
    assert sum(k for _, k in found) / len(found) == pytest.approx(mean_rows(plan, round(rate * 2000)), abs=1)


@pytest.mark.parametrize("n_lot", [12, 40, 60, 61, 300, 5000, 1_000_000])
def test_the_default_refuses_a_bad_lot(n_lot: int) -> None:
    """At most 60 rows, and a lot with 10 % bad rows is refused at least 9 times in 10, whatever its size."""
    plan = sequential(n_lot, 0.1, 0.9)
    assert plan.most_rows <= 60
    assert 1 - passes(plan, -(-n_lot // 10)) >= 0.9


def test_the_default_is_kind_to_good_lots() -> None:
    """A lot of 5,000 without a bad row passes after 28 rows; one with 1 % bad passes 98 times in 100."""
    plan = sequential(5000, 0.1, 0.9)
    assert passes(plan, 0) == pytest.approx(1)
    assert mean_rows(plan, 0) == pytest.approx(28)
    assert passes(plan, 50) > 0.98
    assert 0.014 < good_rate(plan) < 0.016


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 400), st.sampled_from([0.05, 0.1, 0.2, 0.3]), st.sampled_from([0.8, 0.9, 0.95]))
def test_a_worse_lot_never_passes_more_often(n_lot: int, bad: float, sure: float) -> None:
    """The characteristic falls as lots get worse, every plan ends, and its promise holds."""
    try:
        plan = sequential(n_lot, bad, sure)
    except ValueError:
        reject()
    chances = [passes(plan, n) for n in range(0, n_lot + 1, max(1, n_lot // 40))]
    assert all(a >= b - 1e-9 for a, b in pairwise(chances))
    assert all(a < r for a, r in zip(plan.accept, plan.refuse, strict=True))
    assert plan.accept[-1] + 1 == plan.refuse[-1]
    assert passes(plan, ceil(n_lot * bad - 1e-9)) <= 1 - sure + 1e-9


def test_a_large_plan_is_found_soon() -> None:
    """A plan of 2,000 rows keeps its promise too, and judges a good lot after a part of them."""
    plan = sequential(50_000, 0.01, 0.9, 2000)
    assert (plan.most_rows, passes(plan, 500) <= 0.1 + 1e-9) == (2000, True)
    assert mean_rows(plan, 0) < 500


def test_what_so_few_rows_cannot_promise_is_refused() -> None:
    """60 rows cannot refuse 2 % bad rows with 90 % certainty; the error says how many can."""
    with pytest.raises(ValueError, match=r"60 rows cannot refuse a lot with 2.0% bad rows 90% sure; 113 can"):
        sequential(5000, 0.02, 0.9)


def test_a_lot_that_cannot_be_bad_needs_no_judge() -> None:
    """An empty lot is accepted without a row."""
    assert sequential(0, 0.1, 0.9).decide(0, 0) is Decision.ACCEPT


@pytest.mark.parametrize(("n_judged", "n_bad"), [(61, 0), (3, 4), (-1, 0)])
def test_a_plan_is_never_extended(n_judged: int, n_bad: int) -> None:
    """Judging past the end of a plan, or more bad rows than rows, is an error: its risk would be another."""
    with pytest.raises(ValueError, match="judges at most"):
        sequential(5000, 0.1, 0.9).decide(n_judged, n_bad)


def test_the_order_of_rows_is_fixed_by_the_seed() -> None:
    """The same seed ranks rows the same, another seed otherwise, and ranks look random to the keys."""
    keys = [f"{i:05d}" for i in range(2000)]
    first, again, other = (sorted(keys, key=lambda k: rank(seed, k)) for seed in (b"a", b"a", b"b"))
    assert first == again != other
    assert 800 < sum(map(int, first[:200])) / 200 < 1200  # half of 2000, give or take four standard errors


def test_people_decide_and_the_judge_only_sorts() -> None:
    """The estimate covers the truth where the judge model is wrong in both directions, 9 times in 10 at least."""
    covered = 0
    for seed in range(200):
        rng = Random(seed)
        rows = [(bad := rng.random() < 0.084, rng.random() < (0.9 if bad else 0.03)) for _ in range(4000)]
        strata = []
        for flagged, n in ((True, 60), (False, 140)):
            members = [bad for bad, said in rows if said is flagged]
            looked = rng.sample(members, n)
            strata.append(Stratum(len(members), n, sum(looked)))
        _, low, high = estimate(strata)
        covered += low <= sum(bad for bad, _ in rows) / len(rows) <= high
    assert covered >= 180


def test_a_stratum_nobody_saw_gives_no_estimate() -> None:
    """Rows that were never looked at cannot be spoken for."""
    with pytest.raises(ValueError, match="without a judged row"):
        estimate([Stratum(10, 5, 1), Stratum(10, 0, 0)])


def test_the_curve_is_drawn() -> None:
    """The drawing starts at certainty for a clean lot, ends near zero, and has the rates under it."""
    plan = sequential(5000, 0.1, 0.9)
    lines = list(drawing(plan))
    assert lines[0].startswith(" 100% |**")
    assert lines[-1].split() == ["0%", "10.0%", "20.0%", "bad", "rows"]
    assert [rate for rate, _, _ in curve(plan, 3)] == [0, 0.1, 0.2]
