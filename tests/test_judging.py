"""Promises of judging.py, on both databases: one word a row, one verdict a lot, and nothing between the two."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import gate, judging
from canwait.client import Client
from canwait.db import connect
from canwait.errors import AlreadyJudged, GatePending, NotFound
from canwait.gates import strictest
from canwait.ledger import Ledger
from canwait.lots import Part, Verdict, Word
from canwait.types import JobState, Quality
from gated import client_of, inspection, job, judged
from world import Dead


@pytest.fixture
def client(tmp_path: Path, ledger_url: str) -> Iterator[Client]:
    with client_of(tmp_path, url=ledger_url) as c:
        yield c


def kinds(client: Client) -> list[str]:
    return [event.kind for event in client.ledger.events(count=10_000)]


def good(*_: str) -> bool:
    return True


# ------------------------------------------------------------------------------------------------------------ a word


def test_a_row_is_judged_once(client: Client, tmp_path: Path) -> None:
    """The first word stands; who says another learns whose it is. Only what nobody was sure of may still be said."""
    handle = job(client, tmp_path)
    handle.run()
    ann, bob = inspection(handle, "ann"), inspection(handle, "bob")
    now = client.clock.now()
    ann.judge(0, Word.BAD, "format", now)
    with pytest.raises(AlreadyJudged, match="ann says it is bad"):
        bob.judge(0, Word.GOOD, None, now)
    ann.judge(1, Word.UNSURE, None, now)
    bob.judge(1, Word.GOOD, None, now)
    assert [(said.word, said.cause, said.who) for said in bob.said.values()] == [
        (Word.BAD, "format", "ann"), (Word.GOOD, None, "bob")
    ]  # fmt: skip
    with pytest.raises(NotFound):
        ann.judge(60, Word.GOOD, None, now)
    with pytest.raises(NotFound):
        ann.judge(-1, Word.GOOD, None, now)


def test_the_verdict_is_written_with_the_last_word(client: Client, tmp_path: Path) -> None:
    """Verdict, job state and journal come in the transaction of the judgement they follow from, once."""
    handle = job(client, tmp_path)
    handle.run()
    assert judged(inspection(handle), good, client) is Verdict.ACCEPTED
    assert kinds(client)[-3:] == ["judged", "gate_accepted", "job_state"]
    assert client.ledger.job("labels")["state"] == JobState.COMPLETED.value
    with pytest.raises(AlreadyJudged, match="its lot is accepted"):
        inspection(handle).judge(59, Word.BAD, "wrong", client.clock.now())
    assert kinds(client).count("gate_accepted") == 1
    assert client.ledger.check() == []


def killed_at(where: str, client: Client) -> None:
    """The process dies there, once."""

    def kill(here: str) -> None:
        if here == where:
            client.ledger.db.fault = lambda _: None
            raise Dead(where)

    client.ledger.db.fault = kill


@pytest.mark.parametrize("where", ["before judge", "after judge"])
def test_a_kill_around_the_deciding_word_loses_nothing(client: Client, tmp_path: Path, where: str) -> None:
    """Whoever dies between word and verdict leaves both or neither: the next one goes on to the same end."""
    handle = job(client, tmp_path)
    handle.run()
    at_gate = inspection(handle)
    n_rows = at_gate.lot.parts[0].plan.accept.index(0) + 1  # so many good ones are enough
    for place in range(n_rows - 1):
        at_gate.judge(place, Word.GOOD, None, client.clock.now())

    killed_at(where, client)
    with pytest.raises(Dead):
        judging.judge(client.ledger, at_gate.lot.id, n_rows - 1, Word.GOOD, None, "ann", client.clock.now())
    at_gate.look()
    is_kept = where == "after judge"
    assert (n_rows - 1 in at_gate.said, at_gate.lot.verdict is Verdict.ACCEPTED) == (is_kept, is_kept)
    if not is_kept:
        with pytest.raises(GatePending):
            handle.load()
    assert judged(at_gate, good, client) is Verdict.ACCEPTED
    assert kinds(client).count("gate_accepted") == 1
    assert handle.load() == 100


@pytest.mark.parametrize("where", ["before draw_lot", "after draw_lot"])
def test_a_kill_around_the_drawing_draws_the_same_lot(client: Client, tmp_path: Path, where: str) -> None:
    """A sample that was drawn and not kept is drawn again as it was; nothing is readable meanwhile."""
    handle = job(client, tmp_path)

    killed_at(where, client)
    with pytest.raises(Dead):
        handle.run()
    with pytest.raises(GatePending):
        list(handle.rows())
    before = [row.key for row in inspection(handle).sample]
    assert handle.run().state is JobState.GATE
    assert [row.key for row in inspection(handle).sample] == before
    assert kinds(client).count("lot_drawn") == 1


def _judge_all(url: str, lot: str, who: str, start: Any, told: Any) -> None:
    ledger = Ledger(connect(url))
    start.wait()
    said = refused = 0
    for place in range(60):
        try:
            judging.judge(ledger, lot, place, Word.GOOD, None, who, judging_at())
            said += 1
        except AlreadyJudged:
            refused += 1
    told.put((who, said, refused))
    ledger.close()


def judging_at() -> Any:
    from datetime import UTC, datetime

    return datetime(2026, 11, 2, tzinfo=UTC)


def test_two_people_at_once_are_safe(client: Client, tmp_path: Path, ledger_url: str) -> None:
    """Two processes that judge the same rows at the same time: each place has one word, the lot one verdict."""
    handle = job(client, tmp_path)
    handle.run()
    lot = inspection(handle).lot
    context = multiprocessing.get_context("spawn")
    start, told = context.Event(), context.Queue()
    people = [context.Process(target=_judge_all, args=(ledger_url, lot.id, who, start, told)) for who in ("ann", "bob")]
    for person in people:
        person.start()
    start.set()
    said = [told.get(timeout=60) for _ in people]
    for person in people:
        person.join()
    lot, words = judging.look(client.ledger, lot.id)
    assert lot.verdict is Verdict.ACCEPTED
    assert len(words) == sum(n for _, n, _ in said) == lot.parts[0].plan.accept.index(0) + 1
    assert all(said + refused == 60 for _, said, refused in said)
    assert (kinds(client).count("judged"), kinds(client).count("gate_accepted")) == (len(words), 1)


# -------------------------------------------------------------------------------------------------------- the decision


@given(
    n_rows=st.integers(1, 400),
    said=st.lists(st.sampled_from([*Word, Word.GOOD, Word.GOOD, Word.GOOD]), max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_words_does_not_matter(n_rows: int, said: list[Word], order: Any) -> None:
    """What words come to depends on the rows they are of, not on when or by whom they were said; unsure never helps."""
    part = Part("", n_rows, 5, gate.sequential(n_rows, 0.1, 0.9))
    words = {5 + n: word for n, word in enumerate(said[: part.plan.most_rows])}
    mixed = dict(order.sample(sorted(words.items()), len(words)))
    assert part.standing(mixed) == part.standing(words)
    decision, following = part.standing(words)
    assert (following is None) == (decision is not gate.Decision.GO_ON)
    if decision is gate.Decision.ACCEPT:
        worse = {place: Word.BAD if word is Word.UNSURE else word for place, word in words.items()}
        assert part.standing(worse)[0] is gate.Decision.ACCEPT
    if decision is gate.Decision.REFUSE:
        better = {place: Word.GOOD if word is Word.UNSURE else word for place, word in words.items()}
        assert part.standing(better)[0] is gate.Decision.REFUSE
    assert following is None or words.get(following) in (None, Word.UNSURE)


gates = st.builds(
    Quality,
    st.sampled_from([Decimal("0.05"), Decimal("0.1"), Decimal("0.5")]),
    st.sampled_from([Decimal("0.8"), Decimal("0.95")]),
    st.sampled_from(["human", "rule"]),
    rows=st.none() | st.just(200),
    rules=st.sampled_from([("label",), ("why", "label"), ("key",)]),
)


@given(st.lists(gates, min_size=1, max_size=4))
def test_a_merged_gate_is_no_looser_than_any(several: list[Quality]) -> None:
    """Of several gates the lowest rate, the highest sureness, every rule, and a person where one of them asks one."""
    merged = strictest(several)
    assert merged is not None
    assert merged.refuse_if_bad_rate == min(g.refuse_if_bad_rate for g in several)
    assert merged.sure == max(g.sure for g in several)
    assert {rule for g in several for rule in g.rules} == set(merged.rules)
    assert (merged.by == "human") == any(g.by == "human" for g in several)
    assert strictest([merged, *several]) == merged or len(set(several)) == 1
