"""The cascade: its arithmetic on real outcomes, and a threshold whose promise is kept where the naive one's is not."""

from __future__ import annotations

import csv
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.benchmark.cascade import choose_threshold, expected

TWENTIETH = Decimal("0.05")
rows = st.lists(st.tuples(st.integers(0, 9).map(float), st.booleans(), st.booleans()), min_size=1, max_size=80)


def columns(sample: Sequence[tuple[float, bool, bool]]) -> tuple[list[float], list[bool], list[bool]]:
    return [s for s, _, _ in sample], [a for _, a, _ in sample], [b for _, _, b in sample]


def test_a_cascade_costs_what_it_escalates() -> None:
    """Of 64 % right answers a verifier (.8, .9) escalates 35.2 %; who stops nothing escalates nothing."""
    found = expected(0.64, 0.8, 0.9, escalated_accuracy=0.8, small=TWENTIETH, large=Decimal(1), verifier=TWENTIETH)
    assert (found.escalated, float(found.cost)) == pytest.approx((0.352, 0.452))
    assert found.accuracy == pytest.approx(0.64 * 0.9 + 0.352 * 0.8)
    idle = expected(0.64, 0.0, 1.0, escalated_accuracy=0.8, small=TWENTIETH, large=Decimal(1))
    assert (idle.escalated, idle.accuracy, idle.cost) == (0, 0.64, TWENTIETH)


@pytest.mark.parametrize(("se", "sp", "accuracy", "cost"), [(0.8, 0.9, 0.863, 0.46), (0.5, 0.5, 0.748, 0.60)])
def test_the_cascade_on_real_outcomes(shared: Path, se: float, sp: float, accuracy: float, cost: float) -> None:
    """On recorded answers of two models a good verifier keeps .863 of .857 at 46 % of the cost; a coin loses, at 60 %.

    The small model and the verifier together cost a tenth of the large one, as the recorded prices of its day had it.
    """
    file = shared / "data" / "text" / "routellm_gsm8k_two_model_responses.csv"
    if not file.is_file():
        pytest.skip("no recorded outcomes in the shared folder")
    with file.open(newline="", encoding="utf-8") as lines:
        read = list(csv.DictReader(lines))
    small = [r["mistralai/Mixtral-8x7B-Instruct-v0.1"] == "True" for r in read]
    large = [r["gpt-4-1106-preview"] == "True" for r in read]
    reach = [se if not a else 1 - sp for a in small]  # how often each row reaches the large model
    rate = sum(r * b for r, b in zip(reach, large, strict=True)) / sum(reach)
    found = expected(
        sum(small) / len(small), se, sp, escalated_accuracy=rate, small=TWENTIETH, large=Decimal(1), verifier=TWENTIETH
    )
    assert found.accuracy == pytest.approx(accuracy, abs=0.001)
    assert float(found.cost) == pytest.approx(cost, abs=0.01)


@given(rows, st.floats(0.005, 0.5), st.floats(0.01, 0.4))
def test_a_threshold_keeps_what_it_tested(sample: list[tuple[float, bool, bool]], epsilon: float, delta: float) -> None:
    """The figures are those of the rows at or above the score, the bound is within epsilon, and nothing else is kept."""
    found = choose_threshold(*columns(sample), epsilon, delta)
    if found.score is None:
        assert (found.kept, found.loss) == (0, 0)
        return
    kept = [(a, b) for s, a, b in sample if s >= found.score]
    assert found.kept == len(kept) / len(sample)
    assert found.loss == pytest.approx(sum(b - a for a, b in kept) / len(sample))
    assert found.upper <= epsilon


@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(sample: list[tuple[float, bool, bool]], rng: random.Random) -> None:
    """The same labelled rows give the same threshold, also where scores tie."""
    shuffled = rng.sample(sample, len(sample))
    assert choose_threshold(*columns(sample), 0.1, 0.1) == choose_threshold(*columns(shuffled), 0.1, 0.1)


@given(rows, st.floats(0.01, 0.3), st.floats(0.0, 0.3))
def test_a_larger_allowance_never_keeps_fewer(
    sample: list[tuple[float, bool, bool]], epsilon: float, more: float
) -> None:
    """Who allows a larger loss escalates no more."""
    assert (
        choose_threshold(*columns(sample), epsilon, 0.1).kept
        <= choose_threshold(*columns(sample), epsilon + more, 0.1).kept
    )


def test_a_row_without_a_score_is_escalated() -> None:
    """However good everything else is, a score of minus infinity is never kept, and one that is no number is refused."""
    scores = [-math.inf] * 50 + [1.0] * 50
    found = choose_threshold(scores, [True] * 100, [False] * 100, 0.1, 0.1)
    assert (found.score, found.kept) == (1.0, 0.5)
    with pytest.raises(ValueError, match="no number"):
        choose_threshold([math.nan], [True], [True], 0.1, 0.1)
    with pytest.raises(ValueError, match="delta"):
        choose_threshold([1.0], [True], [True], 0.1, 0.7)


def test_too_few_rows_escalate_all() -> None:
    """Ten labelled rows promise nothing at 2 %: everything goes to the large model."""
    assert choose_threshold([1.0] * 10, [True] * 10, [True] * 10, 0.02, 0.1).score is None
    assert choose_threshold([], [], [], 0.02, 0.1).score is None


def naive(scores: Sequence[float], small: Sequence[bool], large: Sequence[bool], epsilon: float) -> float | None:
    """The lowest score that looks good enough on the sample."""
    best, loss = None, 0
    ranked = sorted(zip(scores, small, large, strict=True), key=lambda row: -row[0])
    for i, (score, a, b) in enumerate(ranked):
        loss += b - a
        if (i + 1 == len(ranked) or ranked[i + 1][0] != score) and loss <= epsilon * len(ranked):
            best = score
    return best


def violations(
    population: Sequence[tuple[float, bool, bool]], n: int, times: int, epsilon: float, delta: float, seed: int
) -> tuple[float, float, float]:
    """How often the tested and the naive threshold lose more than epsilon on everybody, and what share is escalated."""
    rng, tested, looked, escalated = random.Random(seed), 0, 0, 0.0

    def lost(score: float | None) -> bool:
        kept = [b - a for s, a, b in population if score is not None and s >= score]
        return sum(kept) > epsilon * len(population)

    for _ in range(times):
        sample = columns(rng.sample(population, n))
        found = choose_threshold(*sample, epsilon, delta)
        tested += lost(found.score)
        looked += lost(naive(*sample, epsilon))
        escalated += 1 - sum(s >= found.score for s, _, _ in population) / len(population) if found.score else 1
    return tested / times, looked / times, escalated / times


def test_the_promise_is_kept_on_made_up_models() -> None:
    """With scores that tell a little, the tested threshold breaks the promise at most 10 % of the time, the naive often."""
    rng = random.Random(2)
    population = []
    for _ in range(1500):
        sure = rng.random()
        population.append((sure, rng.random() < 0.4 + 0.55 * sure, rng.random() < 0.9))
    tested, looked, escalated = violations(population, 200, 150, 0.03, 0.1, seed=4)
    assert tested <= 0.10
    assert looked >= 0.35
    assert escalated < 0.95


# -------------------------------------------------------------------------------- two classifiers that stand in for models


def features(text: str, *, pairs: bool) -> list[str]:
    words = re.findall("[a-z]+", text.lower())
    return words + [f"{a} {b}" for a, b in pairwise(words)] if pairs else words


def naive_bayes(train: Sequence[tuple[str, str]], *, pairs: bool, alpha: float) -> Callable[[str], tuple[str, float]]:
    """text -> label, and by how much it beats the second best (log odds)."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for text, label in train:
        seen[label].update(features(text, pairs=pairs))
    n_words = len({word for words in seen.values() for word in words})
    totals = {label: sum(words.values()) + alpha * n_words for label, words in seen.items()}
    n_texts = Counter(label for _, label in train)
    prior = {label: math.log(n / len(train)) for label, n in n_texts.items()}
    absent = {label: math.log(alpha / total) for label, total in totals.items()}
    gains: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for label, words in seen.items():
        for word, n in words.items():
            gains[word].append((label, math.log((n + alpha) / alpha)))

    def classify(text: str) -> tuple[str, float]:
        words = [word for word in features(text, pairs=pairs) if word in gains]
        scores = {label: prior[label] + len(words) * absent[label] for label in prior}
        for word in words:
            for label, gain in gains[word]:
                scores[label] += gain
        best, second = sorted(scores.values(), reverse=True)[:2]
        return max(scores, key=lambda label: scores[label]), best - second

    return classify


def read_banking(folder: Path, name: str) -> list[tuple[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as lines:
        return [(row["text"], row["category"]) for row in csv.DictReader(lines)]


@pytest.mark.slow
def test_the_promise_is_kept_on_banking77(shared: Path) -> None:
    """Two classifiers on 3,080 real messages: tested thresholds break the promise at most 10 % of the time and save more
    than a tenth at every size, naive ones break it 38 % of the time or more."""
    folder = shared / "data" / "text"
    if not (folder / "banking77_train.csv").is_file():
        pytest.skip("no BANKING77 in the shared folder")
    train, test = read_banking(folder, "banking77_train.csv"), read_banking(folder, "banking77_test.csv")
    small = naive_bayes(random.Random(0).sample(train, 2000), pairs=False, alpha=1.0)
    large = naive_bayes(train, pairs=True, alpha=0.03)
    population = []
    for text, label in test:
        said, sure = small(text)
        population.append((sure, said == label, large(text)[0] == label))
    saved = []
    for n in (100, 200, 400):
        tested, looked, escalated = violations(population, n, 300, 0.03, 0.1, seed=n)
        assert tested <= 0.10
        assert looked >= 0.38
        saved.append(1 - (0.06 + escalated))  # the small model costs 6 % of the large one
    assert 0.10 <= saved[0] <= saved[1] <= saved[2] <= 0.25
