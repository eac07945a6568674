"""Paired comparison: known answers, exact laws, and coverage on outcomes of real models."""

from __future__ import annotations

import csv
import random
from decimal import Decimal
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.compare import (
    Pairs,
    binomial_cdf,
    bonett_price,
    clopper_pearson,
    cost_per_accepted,
    decide,
    mcnemar,
    pairs,
    power,
    rows_needed,
    surely_exceeds,
)

counts = st.integers(0, 60)


def test_mcnemar_has_its_known_answers() -> None:
    """Ten against two has the p-value of the book; the others are statsmodels 0.15.0's exact test."""
    known = {(10, 2): 0.03857421875, (97, 86): 0.4598669609706072, (0, 5): 0.0625, (400, 300): 0.0001784763144856244}
    assert {pair: mcnemar(*pair) for pair in known} == pytest.approx(known, rel=1e-9)
    assert mcnemar(0, 0) == 1


def test_clopper_pearson_has_its_known_answers() -> None:
    """Exact intervals agree with scipy 1.17.1 (`binomtest(k, n).proportion_ci(method="exact")`), up to millions of rows."""
    known = {
        (0, 60): (0.0, 0.05962949228633472),
        (4, 98): (0.011231317560249298, 0.10121781888876644),
        (1, 1): (0.025, 1.0),
        (250, 500): (0.4552855693242274, 0.5447144306757725),
        (9999, 10000): (0.999442963002013, 0.9999974682224367),
        (3, 3_000_000): (2.062239582108195e-07, 2.922421620075665e-06),
    }
    for (k, n), interval in known.items():
        assert tuple(clopper_pearson(k, n)) == pytest.approx(interval, rel=1e-6)
    assert clopper_pearson(0, 60, confidence=0.90).high == pytest.approx(
        0.0487, abs=1e-4
    )  # none of 60 bad: at most 4.9 %


@pytest.mark.parametrize(
    ("discordant", "margin", "rows"),
    [("0.15", "0.05", 372), ("0.22", "0.05", 545), ("0.10", "0.03", 688), ("0.25", "0.02", 3866)],
)
def test_sample_sizes_have_their_known_answers(discordant: str, margin: str, rows: int) -> None:
    """(1.645 + 0.842)^2 x discordant / margin^2, rounded up exactly, and the power it was made for."""
    assert rows_needed(Decimal(margin), Decimal(discordant)) == rows
    assert power(rows, float(margin), float(discordant)) == pytest.approx(0.80, abs=0.001)


@given(n=st.integers(1, 60), data=st.data(), p=st.fractions(0, 1, max_denominator=50))
def test_the_binomial_is_exact(n: int, data: st.DataObject, p: Fraction) -> None:
    """The continued fraction agrees with the sum of the binomial's own terms."""
    k = data.draw(st.integers(-1, n))
    exact = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_cdf(k, n, float(p)) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


@given(n=st.integers(1, 25), p=st.fractions(0, 1, max_denominator=40))
def test_clopper_pearson_covers_at_least_what_it_says(n: int, p: Fraction) -> None:
    """Summed over everything that can be seen, the interval holds the truth with at least 95 %."""
    covered = sum(
        comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if clopper_pearson(k, n).low - 1e-12 <= p <= clopper_pearson(k, n).high + 1e-12
    )
    assert covered >= Fraction(95, 100)


@given(both=counts, b=counts, c=counts, neither=counts)
def test_swapping_the_two_turns_the_interval_round(both: int, b: int, c: int, neither: int) -> None:
    """What one loses the other wins: the interval is mirrored, and holds what was seen where anything was."""
    n = both + b + c + neither
    one, other = bonett_price(b, c, n), bonett_price(c, b, n)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert -1 <= one.low <= (b - c) / (n + 2) <= one.high <= 1


@given(both=counts, b=counts, c=counts, neither=counts, margin=st.decimals("0.001", "0.999", places=3))
def test_a_decision_is_what_its_bound_says(both: int, b: int, c: int, neither: int, margin: Decimal) -> None:
    """`accept` exactly where the upper bound is within the margin, and `not enough rows` asks for more than there are."""
    decision = decide(Pairs(both, b, c, neither), margin)
    within = decision.upper is not None and decision.upper <= margin
    assert (decision.verdict == "accept") == (within and both + c > 0)
    if decision.verdict == "not enough rows":
        assert decision.needs is None or decision.needs > decision.pairs.n
    else:
        assert decision.needs is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_pairs_count_every_row_once(rows: list[tuple[bool, bool]]) -> None:
    """The four cells add up to the rows, and each is what it is called."""
    found = pairs([small for small, _ in rows], [large for _, large in rows])
    assert found == Pairs(*(rows.count(cell) for cell in [(True, True), (False, True), (True, False), (False, False)]))
    assert found.n == len(rows)


def test_two_that_are_never_right_are_not_good_enough() -> None:
    """Where both get nothing right no loss can be seen, and the words say so instead of praising it."""
    decision = decide(Pairs(0, 0, 0, 145), Decimal("0.05"))
    assert decision.verdict == "refuse"
    assert decision.words.startswith("nothing it answers is right")
    assert decide(Pairs(0, 1, 0, 299), Decimal("0.05")).verdict == "refuse"
    assert decide(Pairs(0, 0, 1, 299), Decimal("0.05")).verdict == "accept"


def looked_at_all(share: float, n: int, times: int, limit: float, seed: int) -> float:
    """How often so many rows, of which a share fails, are said to surely fail more than the limit, at any of all looks."""
    rng, said = random.Random(seed), 0
    for _ in range(times):
        failed = 0
        for row in range(1, n + 1):
            failed += rng.random() < share
            if failed > limit * row and surely_exceeds(failed, row, limit):
                said += 1
                break
    return said / times


def test_looking_at_every_row_misleads_nobody() -> None:
    """Of arms that fail exactly as often as allowed at most one in twenty is ever stopped; of worse ones nearly all are."""
    assert looked_at_all(0.2, 400, 400, 0.2, seed=3) <= 0.05
    assert looked_at_all(0.1, 400, 200, 0.2, seed=4) <= 0.01
    assert looked_at_all(0.35, 400, 100, 0.2, seed=5) >= 0.95


@given(st.integers(1, 400), st.integers(0, 400), st.floats(0.01, 0.99))
def test_what_surely_exceeds_is_more_than_was_allowed(n: int, k: int, share: float) -> None:
    """More failures never make it less sure, and what is said of all looks holds for one."""
    k = min(k, n)
    if surely_exceeds(k, n, share):
        assert clopper_pearson(k, n, confidence=0.90).low >= share - 1e-9
        assert k == n or surely_exceeds(k + 1, n, share)
    assert not surely_exceeds(0, n, share)


def test_a_limit_of_nothing_or_of_all() -> None:
    """One failure is more than none, and nothing is more than all."""
    assert surely_exceeds(1, 10, 0.0)
    assert not surely_exceeds(0, 10, 0.0)
    assert not surely_exceeds(10, 10, 1.0)


def test_words_say_what_was_told_and_what_was_not() -> None:
    """A good small model, a bad one, too few rows and none at all each get their own words, with the rows."""
    assert decide(Pairs(900, 20, 20, 60), Decimal("0.05")).words.startswith(
        "good enough: 95 % sure that it loses at most"
    )
    assert decide(Pairs(500, 300, 50, 150), Decimal("0.05")).verdict == "refuse"
    few = decide(Pairs(60, 8, 7, 25), Decimal("0.05"))
    assert (few.verdict, few.needs, few.words) == (
        "not enough rows",
        413,
        "not enough rows to tell (needs 413); 100 were compared",
    )
    assert decide(Pairs(0, 0, 0, 0), Decimal("0.05")).words == "not enough rows to tell: none was compared"
    near = decide(Pairs(900_000, 100_000, 50_000, 0), Decimal(50_000) / Decimal(1_050_000))
    assert (near.verdict, near.needs) == ("not enough rows", None)
    assert "too close to the margin" in near.words


@pytest.mark.parametrize("margin", ["0", "1", "-0.1"])
def test_a_margin_is_a_share(margin: str) -> None:
    """A margin of nothing, of everything or below nothing is refused."""
    with pytest.raises(ValueError, match="margin"):
        decide(Pairs(1, 1, 1, 1), Decimal(margin))


def test_cost_per_accepted_is_exact() -> None:
    """All that was paid, for what was accepted, in decimals; nothing accepted has no price."""
    assert cost_per_accepted(1_000_000, 3) == Decimal("333333.333")
    assert cost_per_accepted(1000, 4, check_micros=100, rejected=2, reject_micros=50) == Decimal("300.000")
    assert cost_per_accepted(1000, 0) is None


def coverage(small: list[bool], large: list[bool], n: int, times: int, seed: int) -> float:
    """How often the interval of `n` rows drawn from these holds their loss."""
    rng, truth, held = random.Random(seed), pairs(small, large).loss, 0
    for _ in range(times):
        rows = rng.choices(range(len(small)), k=n)
        found = pairs((small[i] for i in rows), (large[i] for i in rows))
        low, high = bonett_price(found.only_large, found.only_small, n)
        held += low <= truth <= high
    return held / times


def test_the_interval_covers_on_made_up_outcomes() -> None:
    """On two models that fail together half of the time, the 95 % interval of 100 rows holds the loss nearly always."""
    rng = random.Random(5)
    large = [rng.random() < 0.85 for _ in range(2000)]
    small = [(ok and rng.random() < 0.8) or rng.random() < 0.1 for ok in large]
    assert 0.92 <= coverage(small, large, 100, 600, seed=6) <= 0.98


def gsm8k(shared: Path) -> tuple[list[bool], list[bool]]:
    file = shared / "data" / "text" / "routellm_gsm8k_two_model_responses.csv"
    if not file.is_file():
        pytest.skip("no recorded outcomes in the shared folder")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    small, large = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
    return [r[small] == "True" for r in rows], [r[large] == "True" for r in rows]


def llmbar(shared: Path) -> tuple[list[bool], list[bool]]:
    """Two real judges on the same pairs: is the verdict the gold one?"""
    file = shared / "data" / "text" / "llmbar_judge_vs_gold.csv"
    if not file.is_file():
        pytest.skip("no recorded outcomes in the shared folder")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    right = {(r["judge"], r["subset"], r["item"]): r["winner_ab"] == r["gold"] for r in rows}
    items = sorted({key[1:] for key in right} - {key[1:] for key in right if ("ChatGPT", *key[1:]) not in right})
    items = [item for item in items if ("GPT-4", *item) in right]
    return [right["ChatGPT", *item] for item in items], [right["GPT-4", *item] for item in items]


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("outcomes", [gsm8k, llmbar])
def test_the_interval_covers_on_real_outcomes(shared: Path, outcomes: object, n: int) -> None:
    """On recorded answers of two real models the 95 % interval holds their true difference in 94 to 97 % of samples."""
    small, large = gsm8k(shared) if outcomes is gsm8k else llmbar(shared)
    assert 0.94 <= coverage(small, large, n, 3000, seed=n) <= 0.97


@pytest.mark.slow
def test_the_power_on_real_outcomes(shared: Path) -> None:
    """A gap of 22 points is seen with 75 rows in nearly nine of ten samples, and such a small model is not accepted."""
    small, large = gsm8k(shared)
    rng, seen, accepted = random.Random(3), 0, 0
    for _ in range(1000):
        rows = rng.choices(range(len(small)), k=75)
        found = pairs((small[i] for i in rows), (large[i] for i in rows))
        seen += mcnemar(found.only_large, found.only_small) < 0.05
        accepted += decide(found, Decimal("0.05")).verdict == "accept"
    assert 0.84 <= seen / 1000 <= 0.92
    assert accepted <= 5
