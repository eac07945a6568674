"""What the faces print is counted from what the ledger keeps."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from canwait import views
from canwait.db import connect
from canwait.ledger import Ledger
from canwait.types import Outcome
from opened import NOW, new_shard, over, plan_of, settlement


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.integers(1, 3)), max_size=60))
def test_every_line_counts_as_often_as_rows_wait_for_it(lines: list[tuple[Outcome, int]]) -> None:
    """The outcomes of a shard's lines, each times its weight, are the outcomes of the rows it answers."""
    outcomes, weights = [o for o, _ in lines], [w for _, w in lines]
    counted: Counter[Outcome] = Counter()
    for outcome, weight in lines:
        counted[outcome] += weight
    assert views._counted(zlib.compress(bytes(outcomes)), zlib.compress(array("I", weights).tobytes())) == [
        (outcome, counted[outcome]) for outcome in Outcome if counted[outcome]
    ]


@given(
    st.lists(st.sampled_from(Outcome), max_size=60),
    st.lists(st.integers(0, 3), min_size=60, max_size=60),
    st.booleans(),
)
def test_no_short_way_counts_otherwise(outcomes: list[Outcome], weights: list[int], once: bool) -> None:
    """Whatever the lines and their weights, one row each or not, what is counted is what adding one by one gives."""
    weights = [1] * len(outcomes) if once else weights[: len(outcomes)]
    counted = dict.fromkeys(outcomes, 0)
    for outcome, weight in zip(outcomes, weights, strict=True):
        counted[outcome] += weight
    packed = zlib.compress(array("I", weights).tobytes(), 9 if once and len(outcomes) % 2 else -1)
    assert dict(views._counted(zlib.compress(bytes(outcomes)), packed)) == counted


def test_figures_follow_the_ledger() -> None:
    """What was counted before a shard was settled is not what is shown after it."""
    with closing(Ledger(connect("sqlite://"))) as ledger:
        ledger.open_plan(plan_of(new_shard("a"), new_shard("b", n_lines=2)), NOW)
        assert views.count_rows(ledger, "job", "digest") == {**dict.fromkeys(Outcome, 0), Outcome.PENDING: 5}
        shard = over(ledger)
        ledger.settle(shard, settlement([Outcome.OK, Outcome.FAILED, Outcome.OK][: shard.n_lines]), NOW)
        after = views.count_rows(ledger, "job", "digest")
        assert (after[Outcome.PENDING], sum(after.values())) == (5 - shard.n_lines, 5)
        assert after[Outcome.FAILED] == 1
