"""Promises of forecast.py: known answers of methods.md 1, bounds that hold, and their laws."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.forecast import (
    forecast,
    guaranteed_mean,
    likely_mean,
    paid_per_useful,
    rest,
    rounds,
    running_mean,
    suggest_bound,
)


@pytest.mark.parametrize(("lengths", "n_rows", "wanted"), [([0] * 200, 10**6, 0.0168), ([300] * 200, 10**6, 0.3119)])
def test_the_guarantee_has_its_known_answers(lengths: list[int], n_rows: int, wanted: float) -> None:
    """methods.md 1.3: 200 zeros of a million rows promise at most .0168 of the cap, 200 x .3 at most .3119."""
    assert guaranteed_mean(lengths, n_rows, 1000) / 1000 == pytest.approx(wanted, abs=1e-4)


def test_no_guarantee_beats_the_rule_of_three() -> None:
    """Without a capped row among n, nobody can promise less than about 3 caps in n above the mean (exact: .0149)."""
    assert guaranteed_mean([0] * 200, 10**6, 4096) >= 4096 * (1 - 0.05 ** (1 / 200))


lengths_of = st.lists(st.integers(0, 1000), min_size=2, max_size=60)


@given(lengths_of, st.integers(0, 500), st.randoms(use_true_random=False))
def test_the_four_numbers_stand_in_order(lengths: list[int], more: int, rng: Random) -> None:
    """Expected <= likely <= guaranteed <= every row at its cap, and none is below what is spent already."""
    made = forecast(lengths, len(lengths) + more, 1000, rng)
    assert sum(lengths) <= made.expected + 1
    assert made.expected <= made.likely + 1
    assert made.likely <= made.guaranteed <= made.bound


@given(lengths_of, st.randoms(use_true_random=False))
def test_what_is_known_whole_is_certain(lengths: list[int], rng: Random) -> None:
    """Once every row has settled all numbers are the truth."""
    made = forecast(lengths, len(lengths), 1000, rng)
    assert (made.expected, made.likely, made.guaranteed) == (sum(lengths),) * 3


@given(lengths_of, st.integers(1, 500))
def test_a_higher_cap_never_promises_less(lengths: list[int], more: int) -> None:
    """The guarantee grows with the cap: longer answers become possible."""
    n_rows = len(lengths) + more
    assert guaranteed_mean(lengths, n_rows, 1000) <= guaranteed_mean(lengths, n_rows, 4000) + 0.4 + 1e-6


@given(lengths_of, st.integers(1, 500))
def test_more_certainty_costs_more(lengths: list[int], more: int) -> None:
    """A smaller risk never lowers the bound."""
    n_rows = len(lengths) + more
    assert guaranteed_mean(lengths, n_rows, 1000, 0.05) <= guaranteed_mean(lengths, n_rows, 1000, 0.01) + 0.1


def test_a_longer_pilot_promises_less() -> None:
    """Ten times the pilot brings the guarantee and the likely bound closer to the truth."""
    rng = Random(5)
    rows = [min(2000, int(rng.lognormvariate(4.5, 0.9))) for _ in range(5000)]
    short, long = (forecast(rows[:n], 5000, 2000, Random(1)) for n in (200, 2000))
    truth = sum(rows)
    assert truth <= long.likely < short.likely
    assert long.guaranteed < short.guaranteed


def skewed(rng: Random) -> list[int]:
    return [min(4096, int(rng.lognormvariate(4.6, 1.0))) for _ in range(2000)]


def test_the_bounds_hold_as_often_as_they_say() -> None:
    """On 200 skewed populations `likely` holds 90-98 times in 100 and `guaranteed` at least 95."""
    held = []
    for seed in range(200):
        rng = Random(seed)
        rows = skewed(rng)
        made = forecast(rows[:100], 2000, 4096, rng)
        held.append((sum(rows) <= made.likely, sum(rows) <= made.guaranteed))
    likely, guaranteed = (sum(column) / len(held) for column in zip(*held, strict=True))
    assert 0.87 <= likely <= 0.99  # 200 populations: two standard errors are 4 points
    assert guaranteed >= 0.95


def test_the_running_band_holds_at_every_look() -> None:
    """Looked at after every 25 rows, the running bound is broken at some look in at most 5 of 100 populations."""
    broken = 0
    for seed in range(100):
        rows = skewed(Random(seed))
        mean = sum(rows) / len(rows)
        broken += any(running_mean(rows[:n], len(rows), 4096) < mean for n in range(25, 400, 25))
    assert broken <= 5


def under_way(rows: list[int], n_ended: int, seed: int, n_pilot: int = 100, size: int = 200) -> dict[str, object]:
    """What `rest` is told of rows in this order, in shards of `size`, of which the first `n_ended` are over."""
    drawn = Random(seed).sample(range(len(rows)), n_pilot)
    pending = dict.fromkeys(range(-(-len(rows) // size)), size)
    for row in drawn:
        pending[row // size] -= 1
    for home in range(n_ended):
        pending[home] = 0
    return {
        "lengths": [rows[row] for row in drawn],
        "homes": [row // size for row in drawn],
        "pending": pending,
        "whole": [home for home, n in pending.items() if n],
        "n_rows": len(rows),
        "known": sum(rows[: n_ended * size]) + sum(rows[row] for row in drawn if row >= n_ended * size),
        "cap": 4096,
        "rng": Random(seed),
    }


@pytest.mark.parametrize("n_ended", [0, 5, 9])
def test_the_bounds_hold_while_a_sorted_job_is_under_way(n_ended: int) -> None:
    """On 100 skewed populations, shortest rows first, both bounds of the whole hold as often as they say at every look,
    where what has ended, taken for a sample of the rest, would be far below it."""
    held = []
    for seed in range(100):
        rows = sorted(skewed(Random(seed)))
        told = under_way(rows, n_ended, seed)
        still, known = rest(**told), told["known"]  # type: ignore[arg-type]
        assert isinstance(known, int)
        held.append((sum(rows) - known <= still.likely, sum(rows) - known <= still.guaranteed))
        if n_ended == 5:
            naive = sum(rows[:1000]) * 2
            assert naive < 0.5 * sum(rows) < 0.8 * (known + still.expected)
    likely, guaranteed = (sum(column) for column in zip(*held, strict=True))
    assert likely >= 85  # of 100 populations: three standard errors below 95
    assert guaranteed >= 95


def test_the_guarantee_does_not_rise_as_shards_end() -> None:
    """When few lines are left to speak for few rows, what all lines said of all rows still stands."""
    for seed in range(10):
        rows = skewed(Random(seed))
        looks = []
        for n_ended in range(1, 10):
            told = under_way(rows, n_ended, seed)
            looks.append(told["known"] + rest(**told).guaranteed)  # type: ignore[arg-type,operator]
        first = under_way(rows, 0, seed)
        start = first["known"] + rest(**first).guaranteed  # type: ignore[arg-type,operator]
        assert max(looks) <= 1.25 * start


def test_rows_left_of_a_shard_are_no_random_rows() -> None:
    """Of a shard that ended in part the guarantee takes the rest at their bound, whatever its canary lines say."""
    lengths, homes = [10] * 100, [n % 2 for n in range(100)]
    still = rest(lengths, homes, {0: 5, 1: 0}, [], n_rows=10**6, known=0, cap=1000, rng=Random(0))
    assert (still.expected, still.guaranteed) == (50, 5000)


def test_rows_that_went_to_the_end_are_those_of_their_shards() -> None:
    """Longest rows first, three shards, and 140 rows of the first two stand in the third, which alone is still out: told of
    them, the forecast of the whole is right and `likely` holds; not told, it takes them for the short rows around them."""
    held, errors = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for seed in range(60):
        rng, n_rows = Random(seed), 6_000
        rows = sorted((min(4096, int(rng.lognormvariate(4.6, 1.0))) for _ in range(n_rows)), reverse=True)
        lots = rng.sample(range(n_rows), 340)  # the canary, and those that left it again
        drawn, aside = lots[:200], [row for row in lots[200:] if row < 4_000]
        last = [row for row in range(4_000, n_rows) if row not in drawn] + aside
        truth, still = sum(rows), sum(rows[row] for row in last)
        for is_told in held:
            seen = rest(
                [rows[row] for row in drawn], [row // 2_000 for row in drawn], {2: len(last)}, [2], n_rows=n_rows,
                known=truth - still, cap=4096, rng=Random(seed), aside=Counter(row // 2_000 for row in aside if is_told),
            )  # fmt: skip
            held[is_told] += still <= seen.likely
            errors[is_told] += (seen.expected - still) / truth / 60
            assert still <= seen.guaranteed
    assert held[True] >= 52 > held[False]  # of 60: three standard errors below 95 %
    assert abs(errors[True]) < 0.003 < 0.01 < -errors[False]


few_shards = st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=4)
few_aside = st.dictionaries(st.integers(0, 3), st.integers(1, 50))


@given(lengths_of, few_shards, few_aside, st.randoms())
def test_what_is_still_to_come_stands_in_order(
    lengths: list[int], shards: list[tuple[int, bool]], aside: dict[int, int], rng: Random
) -> None:
    """Expected <= likely <= guaranteed <= every row at its cap, whichever shards have ended, in whole or in part."""
    pending = {home: n for home, (n, _) in enumerate(shards)}
    homes = [rng.randrange(len(shards)) for _ in lengths]
    whole = [home for home, (n, is_whole) in enumerate(shards) if n and is_whole]
    n_rows = len(lengths) + sum(pending.values())
    facts = {"n_rows": n_rows, "known": sum(lengths), "cap": 1000}
    still = rest(lengths, homes, pending, whole, **facts, rng=rng, aside=aside)
    assert 0 <= still.expected <= still.likely <= still.guaranteed <= 1000 * sum(pending.values())


def test_equal_answers_need_no_margin() -> None:
    """A pilot without spread makes the likely bound its mean."""
    assert likely_mean([7] * 50, 1000, Random(0)) == 7


@pytest.mark.parametrize(("lengths", "n_rows"), [([5], 10), ([1, 2, 3], 2), ([1, 11], 10), ([-1, 2], 10)])
def test_lengths_that_cannot_be_are_refused(lengths: list[int], n_rows: int) -> None:
    """Too few, more than there are rows, or outside the cap: ValueError, with what was found."""
    with pytest.raises(ValueError, match="expected"):
        forecast(lengths, n_rows, 10, Random(0))


@pytest.mark.parametrize(
    ("cap", "expected", "worst", "wanted"),
    [
        (130, 100, 500, 6.571),
        (200, 100, 200, 1.0),
        (600, 100, 500, 1.0),
        (100, 100, 500, math.inf),
        (50, 100, 500, math.inf),
    ],
)
def test_rounds_under_a_cap_have_their_known_answers(cap: int, expected: int, worst: int, wanted: float) -> None:
    """methods.md 1.5: a cap of 1.3 times the cost and rows at a fifth of their bound take 6.571 rounds."""
    assert rounds(cap, expected, worst) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ((0.05, 0, 1, 5), 1.0526),
        ((0.05, 0.01, 1, 3), 1.0829),
        ((0.05, 0.01, 1, 10), 1.1536),
        ((0.2, 0.02, 1, 3), 1.3117),
    ],
)
def test_paid_rows_for_each_useful_one_have_their_known_answers(
    given_: tuple[float, float, float, int], wanted: float
) -> None:
    """methods.md 1.6, checked there by simulation: a percent of poison rows costs more than five of bad luck."""
    assert paid_per_useful(*given_) == pytest.approx(wanted, abs=5e-5)
    assert paid_per_useful(*given_[:2], 0, given_[3]) == pytest.approx(1)  # failures that nobody bills cost nothing


def test_a_bound_is_suggested_only_where_it_helps() -> None:
    """A bound far above what answers need is lowered to just above the longest 0.5 %; a tight one stays."""
    rows = [*range(100, 299), 1900]
    found = suggest_bound(rows, 4096)
    assert found is not None
    assert 298 < found.max_output_tokens <= 384
    assert found.truncated == 1 / 200
    assert found.rerun_factor == pytest.approx(1 + found.max_output_tokens / sum(rows))
    assert suggest_bound(rows, 300) is None
    assert suggest_bound(rows[:100], 4096) is None
