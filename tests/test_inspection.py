"""Promises of inspection.py: samples nobody can choose, gates that open only for what was judged, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import canwait
from canwait import gate, judging, lots, publishing
from canwait import inspection as shell
from canwait.checks import Rules
from canwait.client import Client
from canwait.errors import AlreadyJudged, GatePending, GateRefused, NotBuilt, NotFound, SpecError
from canwait.lots import Part, Verdict, Word, risk
from canwait.outcomes import Failed, Ok
from canwait.types import JobState, Quality
from gated import client_of, inspection, job, judged, model, right


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with client_of(tmp_path) as c:
        yield c


def bad_by_text(text: str) -> dict[str, str]:
    return {"label": "wrong" if int(text.split()[-1]) % 5 == 0 else "right", "why": text}


def is_right(_: str, answer: str) -> bool:
    return bool(json.loads(answer)["label"] == "right")


# ----------------------------------------------------------------------------------------------------------- before


def test_nothing_can_be_read_before_it_is_judged(client: Client, tmp_path: Path) -> None:
    """A finished job with a gate is loaded by nothing and read by no face; its failed rows may be looked at."""
    handle = job(client, tmp_path)
    model(client).failing = {"text 3"}
    figures = handle.run()
    assert (figures.state, figures.loaded, figures.reason) == (
        JobState.GATE,
        None,
        "0 of at most 60 rows judged, 0 bad",
    )
    for read in (handle.load, handle.results, lambda: list(handle.rows())):
        with pytest.raises(GatePending, match="waits to be judged"):
            read()
    assert [row.key for row in handle.failed] == ["k3"]
    assert not (tmp_path / "labels.parquet").exists()


def test_nothing_is_judged_before_the_job_has_finished(client: Client, tmp_path: Path) -> None:
    """While rows are on their way there is no sample, and nothing to read."""
    handle = job(client, tmp_path)
    handle.open()
    with pytest.raises(GatePending, match="has not finished"):
        handle.inspect()
    with pytest.raises(GatePending):
        list(handle.rows())
    with pytest.raises(NotFound):
        client.inspect("another")


def test_a_good_lot_is_accepted_and_loads(client: Client, tmp_path: Path) -> None:
    """Once enough rows were good the gate opens: run loads, every face reads, and the verdict says its risk."""
    handle = job(client, tmp_path)
    handle.run()
    assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
    figures = handle.figures()
    assert (figures.state, figures.ok) == (JobState.COMPLETED, 100)
    assert figures.reason is not None
    assert figures.reason.startswith("accepted: 0 of ")
    assert "at most" in figures.reason
    assert handle.run().loaded == {"to": "labels.parquet", "rows": 100, "failed": 0}
    assert pq.read_table(tmp_path / "labels.parquet").num_rows == 100
    assert len([row for row in handle.rows() if isinstance(row, Ok)]) == 100


def test_a_bad_lot_is_refused_for_good(tmp_path: Path) -> None:
    """A refused lot can be read by no face, however often it is run or inspected; what was found stays."""
    with client_of(tmp_path, bad_by_text) as client:
        handle = job(client, tmp_path)
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.REFUSED
        assert handle.run().state is JobState.REFUSED
        for read in (handle.load, handle.results, lambda: list(handle.rows())):
            with pytest.raises(GateRefused, match="judged rows bad") as caught:
                read()
            assert caught.value.exit_code == 7
        again = inspection(handle)
        assert (again.next, {said.cause for said in again.said.values()}) == (None, {None, "wrong"})
        assert not (tmp_path / "labels.parquet").exists()


# ----------------------------------------------------------------------------------------------------------- sample


def test_the_sample_is_fixed_before_there_is_an_answer(tmp_path: Path) -> None:
    """Its order follows from ledger, job and shards alone: other answers to the same rows have the same rows judged."""
    orders: list[list[str]] = []
    for answer in (right, bad_by_text):
        with client_of(tmp_path / "same", answer) as client:
            handle = job(client, tmp_path)
            if not orders:
                plan = handle.open()
                seed = hashlib.sha256("\0".join((client.ledger.id, "labels")).encode()).digest()
                places = [f"{plan.shards[0].id}\0{line}\0{0}" for line in range(100)]  # one shard, in the order of rows
                lines = sorted(range(100), key=lambda line: gate.rank(seed, places[line]))
                orders.append([f"k{line}" for line in lines[:60]])
            handle.run()
            orders.append([row.key for row in inspection(handle).sample])
        for blob in (tmp_path / "same").glob("ledger.db*") if answer is bad_by_text else ():
            blob.unlink()
    assert orders[0] == orders[1]


def test_the_sample_shows_what_was_asked_and_answered(client: Client, tmp_path: Path) -> None:
    """Each row of the sample stands with its own key, its own input and its own answer, whatever the shards."""
    handle = job(client, tmp_path, shard={"max_rows": 30})
    handle.run()
    for row in inspection(handle).sample:
        assert row.input == f"text {row.key[1:]}"
        assert json.loads(row.answer) == right(row.input)


def test_an_answer_that_comes_later_makes_another_lot(client: Client, tmp_path: Path) -> None:
    """A failed row that is sent again and answered was not in the lot that was accepted: it is judged anew."""
    handle = job(client, tmp_path)
    model(client).failing = {"text 3"}
    handle.run()
    first = inspection(handle)
    judged(first, is_right, client)
    assert handle.load() == 99
    model(client).failing = set()
    assert handle.run(only="failed").state is JobState.GATE
    with pytest.raises(GatePending):
        list(handle.rows())
    second = inspection(handle)
    assert (second.lot.id != first.lot.id, second.lot.n_rows, second.said) == (True, 100, {})
    judged(second, is_right, client)
    assert handle.load() == 100


# ------------------------------------------------------------------------------------------------------------ rules


def test_a_row_that_breaks_a_rule_is_never_loaded(tmp_path: Path) -> None:
    """Such a row is left out of the lot and stands beside the failed ones with its rule; the others are judged."""

    def answer(text: str) -> dict[str, str]:
        return {"label": "odd" if text in ("text 7", "text 50") else "right", "why": text}

    with client_of(tmp_path, answer) as client:
        handle = job(
            client, tmp_path, quality={"refuse_if_bad_rate": "10%", "rules": ["label != 'odd'", "why|length > 3"]}
        )
        handle.run()
        at_gate = inspection(handle)
        assert not {"k7", "k50"} & {row.key for row in at_gate.sample}
        assert at_gate.lot.broken == {"label != 'odd'": 2, "why|length > 3": 0}
        judged(at_gate, is_right, client)
        figures = handle.run()
        assert (figures.ok, figures.failed, figures.state) == (98, 2, JobState.COMPLETED_WITH_FAILURES)
        assert figures.loaded == {"to": "labels.parquet", "rows": 98, "failed": 2}
        keys = pq.read_table(tmp_path / "labels.parquet")["id"].to_pylist()
        assert keys == [f"k{n}" for n in range(100) if n not in (7, 50)]
        beside = pq.read_table(tmp_path / "labels.failed.parquet").to_pylist()
        assert [(row["id"], row["_cause"], row["_detail"]) for row in beside] == [
            ("k7", "rule", "label != 'odd'"), ("k50", "rule", "label != 'odd'")
        ]  # fmt: skip
        assert {row.key for row in handle.rows() if isinstance(row, Failed)} == {"k7", "k50"}
        assert [row.key for row in handle.failed] == ["k7", "k50"]


def test_too_many_broken_rules_refuse_without_a_sample(tmp_path: Path) -> None:
    """Where as many rows break rules as must be refused, nobody is asked."""
    with client_of(tmp_path, bad_by_text) as client:
        handle = job(client, tmp_path, quality={"refuse_if_bad_rate": "10%", "rules": ["label != 'wrong'"]})
        figures = handle.run()
        assert (figures.state, figures.reason) == (JobState.REFUSED, "refused: 20 of 100 rows break a rule (20%)")
        with pytest.raises(GateRefused):
            handle.load()
        assert len(handle.failed) == 20


def test_rules_alone_may_decide(tmp_path: Path) -> None:
    """By rule: every row is checked, no one is asked, and the rows that hold the rules are loaded by the run itself."""
    answer = {"text 1": {"label": "odd"}}
    with client_of(tmp_path, lambda text: answer.get(text, right(text))) as client:
        quality = {"refuse_if_bad_rate": "10%", "by": "rule", "rules": ["label == 'right'"]}
        figures = job(client, tmp_path, quality=quality).run()
        assert figures.loaded == {"to": "labels.parquet", "rows": 99, "failed": 1}
        assert figures.gate is not None
        assert figures.gate.reason == (
            "accepted: every row was checked by 1 rules; 1 of 100 rows break a rule (1%) and are left out"
        )


def test_a_rule_may_be_a_function(client: Client, tmp_path: Path) -> None:
    """`module:function` beside the job file is called with answer and key; one that is gone is said, not passed over."""
    (tmp_path / "gate_rules_of_mine.py").write_text("def ends(answer, key):\n    return not key.endswith('9')\n")
    quality = {"refuse_if_bad_rate": "20%", "by": "rule", "rules": ["gate_rules_of_mine:ends"]}
    handle = job(client, tmp_path, quality=quality)
    assert handle.run().loaded == {"to": "labels.parquet", "rows": 90, "failed": 10}
    other = job(client, tmp_path, 30, name="other", quality=quality)
    other.open()
    client.engine.run("other")
    with pytest.raises(SpecError, match="cannot be imported"):
        shell._functions(["gone_rules:ends"], tmp_path, "other")


# ----------------------------------------------------------------------------------------------------------- strata


def _strata(text: str) -> dict[str, str]:
    number = int(text.split()[-1])
    return {"label": "rare" if number % 4 == 0 else "often", "why": "bad" if number % 8 == 0 else "good"}


def _is_good(_: str, answer: str) -> bool:
    return bool(json.loads(answer)["why"] == "good")


@pytest.mark.parametrize(
    "later",
    [
        {"refuse_if_bad_rate": "10%", "strata": "label", "on_refuse": "load_accepted_strata"},
        {"refuse_if_bad_rate": "90%", "by": "rule", "rules": ["why == 'good'"]},
    ],
)
def test_what_a_later_gate_leaves_out_is_served_no_more(tmp_path: Path, later: dict[str, Any]) -> None:
    """A publication from before its gate is withdrawn by a verdict that leaves some of its rows out, and made again without."""
    with client_of(tmp_path, _strata) as client:
        job(client, tmp_path, 200, quality=None, load=None).run()
        reader = canwait.reader("labels", as_="me", max_age="24h", client=client)
        assert reader.get("k0") is not None
        handle = job(client, tmp_path, 200, quality=later, load=None)
        handle.run()
        if later.get("by") != "rule":
            judged(inspection(handle), _is_good, client)
            with pytest.raises(NotBuilt):
                reader.get("k0")
            handle.run()
        assert reader.get("k0") is None
        assert reader.get("k1") is not None


def test_other_strata_are_another_gate_that_can_be_passed(tmp_path: Path) -> None:
    """A job file that names another field for its strata has accepted answers judged anew, and then they are loaded."""
    with client_of(tmp_path, lambda text: {"label": text[-1], "why": "good"}) as client:
        for field in ("label", "why"):
            handle = job(client, tmp_path, 200, quality={"refuse_if_bad_rate": "10%", "strata": field})
            handle.run()
            assert judged(inspection(handle), _is_good, client) is Verdict.ACCEPTED
            assert handle.load() == 200


def test_refused_strata_are_not_named_in_the_verdict(tmp_path: Path) -> None:
    """The name of a stratum is a part of its answers: of a refused one it stands where rows are judged, and nowhere else."""
    with client_of(tmp_path, _strata) as client:
        handle = job(client, tmp_path, 200, quality={"refuse_if_bad_rate": "10%", "strata": "label"})
        handle.run()
        judged(inspection(handle), _is_good, client)
        with pytest.raises(GateRefused) as refused:
            handle.load()
        assert "stratum" in str(refused.value)
        told = [str(refused.value), *(event.reason for event in client.ledger.events(count=10_000))]
        assert not any("rare" in words for words in told)


@given(st.integers(60, 5000), st.sampled_from([0.08, 0.1, 0.15, 0.2]), st.sampled_from([0.8, 0.9]))
def test_the_risk_is_never_told_lower_than_it_is(n_rows: int, rate: float, sure: float) -> None:
    """The times in 100 that bad answers slip through are rounded up."""
    part = Part("", n_rows, 0, gate.sequential(n_rows, rate, sure))
    told = int(re.search(r"at most (\d+) times", risk(part))[1])  # type: ignore[index]
    assert told >= 100 * gate.passes(part.plan, ceil(part.plan.bad_rate * n_rows - 1e-9)) - 1e-6


def test_strata_are_judged_for_themselves(tmp_path: Path) -> None:
    """A bad stratum refuses the lot, or alone is left out: `on_refuse` says which."""

    def answer(text: str) -> dict[str, str]:
        number = int(text.split()[-1])
        return {"label": "rare" if number % 4 == 0 else "often", "why": "bad" if number % 8 == 0 else "good"}

    def is_good(_: str, answer: str) -> bool:
        return bool(json.loads(answer)["why"] == "good")

    for on_refuse, wanted in (("quarantine", 0), ("load_accepted_strata", 150)):
        with client_of(tmp_path / on_refuse, answer) as client:
            (tmp_path / on_refuse).mkdir(exist_ok=True)
            handle = job(
                client,
                tmp_path / on_refuse,
                200,
                quality={"refuse_if_bad_rate": "10%", "strata": "label", "on_refuse": on_refuse},
            )
            handle.run()
            at_gate = inspection(handle)
            assert {part.name: part.n_rows for part in at_gate.lot.parts} == {"rare": 50, "often": 150}
            verdict = judged(at_gate, is_good, client)
            if not wanted:
                assert verdict is Verdict.REFUSED
                continue
            assert (verdict, at_gate.lot.taken) == (Verdict.ACCEPTED, ("often",))
            assert handle.load() == 150
            labels = pq.read_table(tmp_path / on_refuse / "labels.parquet")["label"].to_pylist()
            assert set(labels) == {"often"}
            assert {(row.cause, row.detail) for row in handle.failed} == {("gate", "its stratum was refused")}


def test_answers_cannot_make_strata_without_end(tmp_path: Path) -> None:
    """A field whose values are all different makes a hundred strata and one of the rest, not one a row."""
    with client_of(tmp_path, lambda text: {"label": text}) as client:
        handle = job(client, tmp_path, 150, quality={"refuse_if_bad_rate": "10%", "strata": "label"})
        handle.run()
        parts = inspection(handle).lot.parts
        assert (len(parts), parts[-1].name, sum(part.n_rows for part in parts)) == (101, "(others)", 150)


# ---------------------------------------------------------------------------------------------------------- judging


def test_a_skipped_row_is_bad_unless_somebody_is_sure_in_time(client: Client, tmp_path: Path) -> None:
    """Unsure rows never let a lot pass; before they refuse it they are shown again, and a word then counts."""
    handle = job(client, tmp_path)
    handle.run()
    at_gate = inspection(handle)
    seen: list[int] = []
    while (row := at_gate.next) is not None and row.place not in seen:
        seen.append(row.place)
        at_gate.judge(row.place, Word.UNSURE, None, client.clock.now())
    assert (at_gate.lot.verdict, row and row.place) == (None, 0)  # refused but for the unsure: they come again
    for place in seen:
        at_gate.judge(place, Word.GOOD, None, client.clock.now())
    assert judged(at_gate, is_right, client) is Verdict.ACCEPTED


def test_a_row_nobody_is_sure_of_is_bad(client: Client, tmp_path: Path) -> None:
    """Skipped twice is bad, and that is written down as its cause."""
    handle = job(client, tmp_path)
    handle.run()
    at_gate = inspection(handle)
    for _ in range(200):
        if (row := at_gate.next) is None:
            break
        at_gate.judge(row.place, Word.UNSURE, None, client.clock.now())
    assert at_gate.lot.verdict is Verdict.REFUSED
    assert "unsure" in {said.cause for said in at_gate.said.values()}


def test_undo_takes_ones_own_last_word_back(client: Client, tmp_path: Path) -> None:
    """Undo reaches the last word of who asks, not another's, and nothing once the lot is decided."""
    handle = job(client, tmp_path)
    handle.run()
    ann, bob = inspection(handle, "ann"), inspection(handle, "bob")
    now = client.clock.now()
    ann.judge(0, Word.BAD, "wrong", now)
    bob.judge(1, Word.GOOD, None, now)
    assert ann.undo(now)
    assert set(ann.said) == {1}
    assert not ann.undo(now)
    judged(ann, is_right, client)
    with pytest.raises(AlreadyJudged, match="its lot is accepted"):
        bob.undo(now)


def test_a_lot_without_answers_needs_no_judge(client: Client, tmp_path: Path) -> None:
    """Where no row has a usable answer there is nothing to judge: the failed rows are told, as without a gate."""
    model(client).failing = {f"text {n}" for n in range(5)}
    figures = job(client, tmp_path, 5).run()
    assert (figures.state, figures.loaded) == (
        JobState.COMPLETED_WITH_FAILURES, {"to": "labels.parquet", "rows": 0, "failed": 5}
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- what a gate cannot lose


def test_a_gate_cannot_be_loosened_after_answers_exist(tmp_path: Path) -> None:
    """Taking the gate out of the file, adding rows, or renaming the job brings no refused answer into the open."""
    with client_of(tmp_path, bad_by_text) as client:
        handle = job(client, tmp_path)
        handle.run()
        judged(inspection(handle), is_right, client)
        same = job(client, tmp_path, quality=None)
        assert same.run().state is JobState.REFUSED
        with pytest.raises(GateRefused):
            list(same.rows())
        more = job(client, tmp_path, 101, quality=None)  # another plan, answered by what was refused
        assert more.run().state is JobState.REFUSED
        with pytest.raises(GateRefused, match="100 of 101 rows were refused before, and not asked again"):
            more.load()
        paid = len(model(client).batches)
        renamed = job(client, tmp_path, name="renamed", quality=None)
        assert renamed.run().ok == 100
        assert len(model(client).batches) == paid + 1  # it was paid for itself


def test_a_looser_gate_is_not_taken(tmp_path: Path) -> None:
    """A plan that older answers help to fill keeps the strictest of their gates; a new prompt takes the file's."""
    with client_of(tmp_path, bad_by_text) as client:
        handle = job(client, tmp_path)
        handle.run()
        judged(inspection(handle), is_right, client)
        loose = {"refuse_if_bad_rate": "60%"}
        rates = []
        for fields in ({"texts": 101}, {"prompt": "Again: {{ text }}"}):
            other = job(client, tmp_path, **{"quality": loose, **fields})  # type: ignore[arg-type]
            other.run()
            quality = judging.standing(client.ledger, "labels").quality
            assert quality is not None
            rates.append(str(quality.refuse_if_bad_rate))
        assert rates == ["0.1", "0.6"]


def test_a_gate_may_be_put_up_later(client: Client, tmp_path: Path) -> None:
    """`quality:` added to a job that ran without it holds from the next run on, and until then nothing is read."""
    free = job(client, tmp_path, quality=None)
    assert free.run().loaded is not None
    gated = job(client, tmp_path)
    with pytest.raises(GatePending, match="judged"):
        list(gated.rows())
    assert gated.run().state is JobState.GATE
    with pytest.raises(GatePending):
        list(free.rows())


def test_an_accepted_lot_is_reused_by_others(client: Client, tmp_path: Path) -> None:
    """Once a gate has opened its answers are worth as much to another job as any: nothing is paid twice."""
    handle = job(client, tmp_path)
    handle.run()
    judged(inspection(handle), is_right, client)
    other = job(client, tmp_path, name="other", quality=None)
    assert (other.run().reused, len(model(client).batches)) == (100, 1)


def test_a_stricter_gate_is_taken(client: Client, tmp_path: Path) -> None:
    """Stated for a plan that has a gate already it holds from the next run on: the same answers are judged anew."""
    handle = job(client, tmp_path, 100)
    handle.run()
    judged(inspection(handle), is_right, client)
    assert handle.run().loaded
    for stricter in ({"refuse_if_bad_rate": "5%"}, {"refuse_if_bad_rate": "5%", "rules": ["why|length > 1"]}):
        strict = job(client, tmp_path, 100, quality=stricter)
        with pytest.raises(GatePending, match="judged"):
            list(strict.rows())
        assert strict.run().state is JobState.GATE
        assert strict.gate_kept is None
        with pytest.raises(GatePending):
            list(handle.rows())
        assert judged(inspection(strict), is_right, client) is Verdict.ACCEPTED
        assert strict.load() == 100


@pytest.mark.parametrize("looser", [{"refuse_if_bad_rate": "20%"}, {"refuse_if_bad_rate": "10%", "rows": 100}, None])
def test_a_looser_gate_changes_nothing_and_says_so(
    client: Client, tmp_path: Path, looser: dict[str, Any] | None
) -> None:
    """The verdict that was given stands; what holds is said in words, where it is more than the file states."""
    handle = job(client, tmp_path)
    handle.run()
    judged(inspection(handle), is_right, client)
    loose = job(client, tmp_path, quality=looser)
    assert loose.run().state is JobState.COMPLETED
    said = loose.gate_kept
    assert (said is None) == (looser is not None and "rows" in looser)
    assert said is None or "10% bad refused, 90% sure, by human" in said


def test_refused_rows_are_not_got_around_by_another_plan(tmp_path: Path) -> None:
    """Rows that an ungated plan paid and a gated one refused stay refused in every plan of the job, also in the first one."""
    with client_of(tmp_path, bad_by_text) as client:
        free = job(client, tmp_path, quality=None)
        free.run()
        gated = job(client, tmp_path, 120)
        gated.run()
        assert judged(inspection(gated), is_right, client) is Verdict.REFUSED
        for texts in (130, 100, 90):
            again = job(client, tmp_path, texts, quality=None)
            assert again.run().state is JobState.REFUSED
            assert again.gate_kept is not None
            with pytest.raises(GateRefused):
                list(again.rows())


def test_what_any_gate_holds_is_reused_by_no_other_job(tmp_path: Path) -> None:
    """Answers that one plan paid without a gate and a later one refused are paid anew by another job."""
    with client_of(tmp_path, bad_by_text) as client:
        job(client, tmp_path, quality=None).run()
        gated = job(client, tmp_path, 120)
        gated.run()
        other = job(client, tmp_path, name="other", quality=None)
        assert other.plan().value.n_reused == 0
        judged(inspection(gated), is_right, client)
        assert other.run().reused == 0


def test_dropping_rows_brings_no_fresh_luck(tmp_path: Path) -> None:
    """A refused lot is refused without any judging when rows go, wherever the bad ones among them, and when some come."""
    with client_of(tmp_path, bad_by_text) as client:
        texts = [f"text {n}" for n in range(300)]
        handle = job(client, tmp_path, texts)
        handle.run()
        at_gate = inspection(handle)
        assert judged(at_gate, is_right, client) is Verdict.REFUSED
        bad = {at_gate.sample[place].input for place, said in at_gate.said.items() if said.word is Word.BAD}
        fewer = [text for text in texts if text not in bad]
        for kept in (texts[1:], texts[2:], fewer, fewer[:20], [*fewer, *(f"more {n}" for n in range(20))]):
            again = job(client, tmp_path, kept)
            assert again.run().state is JobState.REFUSED
            assert inspection(again).said == {}
        renamed = {"load": None, "source": {"uri": "other.csv", "key": "id"}}
        (tmp_path / "other.csv").write_text("id,text\n" + "".join(f"z{n},{text}\n" for n, text in enumerate(fewer)))
        assert job(client, tmp_path, texts, **renamed).run().state is JobState.REFUSED


def test_few_refused_rows_are_left_out_of_a_good_lot(tmp_path: Path) -> None:
    """Beside many new answers the refused ones do not count as good: they stay out, and the others are judged."""
    with client_of(tmp_path, lambda text: right(text) if "more" in text else {"label": "wrong"}) as client:
        texts = [f"text {n}" for n in range(20)]
        handle = job(client, tmp_path, texts)
        handle.run()
        judged(inspection(handle), is_right, client)
        more = job(client, tmp_path, [*texts, *(f"more {n}" for n in range(400))])
        assert more.run().state is JobState.GATE
        assert judged(inspection(more), is_right, client) is Verdict.ACCEPTED
        figures = more.run()
        assert (figures.ok, figures.failed, figures.loaded and figures.loaded["rows"]) == (400, 20, 400)
        assert {(row.cause, row.detail) for row in more.failed} == {("gate", lots.REFUSED_BEFORE)}


def test_what_a_strict_gate_accepted_is_not_refused_with_others(tmp_path: Path) -> None:
    """Rows accepted yesterday and refused today, together with new bad ones, may be read again without those."""
    with client_of(tmp_path, lambda text: right(text) if "more" not in text else {"label": "wrong"}) as client:
        texts = [f"text {n}" for n in range(60)]
        handle = job(client, tmp_path, texts)
        handle.run()
        judged(inspection(handle), is_right, client)
        more = [f"more {n}" for n in range(60)]
        mixed = job(client, tmp_path, [*texts, *more])
        mixed.run()
        assert judged(inspection(mixed), is_right, client) is Verdict.REFUSED
        assert job(client, tmp_path, texts).run().state is JobState.COMPLETED
        fewer = job(client, tmp_path, [*texts[1:], more[0]])
        fewer.run()
        lot = inspection(fewer).lot
        assert (lot.n_rows, lot.broken, lot.verdict) == (60, {lots.REFUSED_BEFORE: 1}, None)


def test_a_copy_of_a_request_has_a_place_of_its_own(client: Client, tmp_path: Path) -> None:
    """Rows that share an answer are drawn each for itself, so that a sample of rows is one."""
    handle = job(client, tmp_path, ["same"] * 150 + [f"text {n}" for n in range(150)])
    handle.run()
    sample = inspection(handle).sample
    n_same = sum(row.input == "same" for row in sample)
    assert (len({row.key for row in sample}), 15 < n_same < 45) == (60, True)


def test_a_field_with_a_name_of_ours_is_refused_where_rules_are(client: Client, tmp_path: Path) -> None:
    """A rule that says `key` would be read two ways, so the job file is refused, with a sentence."""
    schema = {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}
    closed = schema | {"additionalProperties": False}
    with pytest.raises(SpecError, match="`key` is the row's key; call the answer's field otherwise"):
        job(client, tmp_path, output=closed, quality={"refuse_if_bad_rate": "10%", "rules": ["key != 'x'"]})


def test_a_verdict_on_older_answers_ends_nothing(client: Client, tmp_path: Path) -> None:
    """Whoever still judges a lot that is no longer what the job has decides that lot, and not where the job stands."""
    handle = job(client, tmp_path)
    model(client).failing = {"text 3"}
    handle.run()
    old = inspection(handle)
    model(client).failing = set()
    assert handle.run(only="failed").state is JobState.GATE
    assert judged(old, is_right, client) is Verdict.ACCEPTED
    assert handle.figures().state is JobState.GATE
    with pytest.raises(GatePending):
        handle.load()


# --------------------------------------------------------------------------------------------------- asking them again


def moods(*answers: Any) -> Any:
    """A model that answers each text by the first of these when it is asked first, then by the next."""
    asked: dict[str, int] = {}

    def answer(text: str) -> Any:
        asked[text] = asked.get(text, -1) + 1
        return answers[min(asked[text], len(answers) - 1)](text)

    return answer


def test_refused_rows_are_asked_again(tmp_path: Path, ledger_url: str) -> None:
    """`--only rejected` pays for them anew; their new answers take the place of the refused ones, and are judged."""
    with client_of(tmp_path, moods(bad_by_text, right), url=ledger_url) as client:
        handle = job(client, tmp_path, 100)
        handle.run()
        judged(inspection(handle), is_right, client)
        paid = handle.figures().confirmed_micros
        assert handle.run(only="rejected").state is JobState.GATE
        assert handle.figures().confirmed_micros == 2 * paid
        with pytest.raises(GatePending):
            list(handle.rows())
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
        assert handle.load() == 100
        assert {row.value["label"] for row in handle.rows() if isinstance(row, Ok)} == {"right"}
        assert client.ledger.check() == []


def test_asked_again_and_still_bad_is_refused_again(tmp_path: Path) -> None:
    """The second answers are judged as the first were; a model that does not mend gets nothing through."""
    with client_of(tmp_path, bad_by_text) as client:
        handle = job(client, tmp_path, 100)
        handle.run()
        for _ in range(2):
            assert judged(inspection(handle), is_right, client) is Verdict.REFUSED
            handle.run(only="rejected")
        assert len(model(client).batches) == 3


def test_a_stratum_a_rule_or_a_cause_is_asked_again(tmp_path: Path) -> None:
    """Each names its rows: those of a refused stratum, those that break a rule, those of strata judged to be so."""

    def first(text: str) -> dict[str, str]:
        number = int(text.split()[-1])
        return {"label": "rare" if number % 4 == 0 else "often", "why": "odd" if number == 3 else "bad"}

    def then(text: str) -> dict[str, str]:
        return {"label": "often", "why": "good"}

    def is_good(_: str, answer: str) -> bool:
        return json.loads(answer) != {"label": "rare", "why": "bad"}

    quality = {"refuse_if_bad_rate": "10%", "strata": "label", "rules": ["why != 'odd'"]}
    for selector, n_again in (("rare", 50), ("why != 'odd'", 1), ("wrong", 50), ("", 51)):
        folder = tmp_path / f"{n_again}{len(selector)}"
        folder.mkdir()
        with client_of(folder, moods(first, then)) as client:
            handle = job(client, folder, 200, quality=quality)
            handle.run()
            assert judged(inspection(handle), is_good, client) is Verdict.REFUSED
            with pytest.raises(SpecError, match="expected rejected, rejected:wrong"):
                handle.run(only="rejected:often")  # it was accepted
            figures = handle.run(only=f"rejected:{selector}" if selector else "rejected")
            assert len(list(model(client).batches.values())[-1].bodies) == n_again
            refused = selector == "why != 'odd'"
            assert figures.state is (JobState.REFUSED if refused else JobState.GATE)
            if not refused:
                lot = inspection(handle).lot
                assert lot.broken["why != 'odd'"] == (1 if selector else 0)
                assert [part.name for part in lot.parts] == ["often"]


def test_asking_again_needs_a_verdict(client: Client, tmp_path: Path) -> None:
    """Nothing was refused before it was judged, and what was accepted is not asked again."""
    handle = job(client, tmp_path)
    handle.run()
    with pytest.raises(NotFound, match="No verdict"):
        handle.run(only="rejected")
    judged(inspection(handle), is_right, client)
    with pytest.raises(NotFound, match="`rejected`"):
        handle.run(only="rejected")
    assert len(model(client).batches) == 1


def test_a_job_that_shares_an_answer_stands_at_its_gate_when_it_is_asked_again(tmp_path: Path) -> None:
    """What another job took while it was open, and its owner asks again under a stricter gate, is read there only once that
    gate has let it through."""
    with client_of(tmp_path, moods(right, lambda text: {"label": "second"})) as client:
        owner = job(client, tmp_path)
        owner.run()
        judged(inspection(owner), is_right, client)
        other = job(client, tmp_path, name="other", quality=None)
        assert other.run().reused == 100
        strict = job(client, tmp_path, quality={"refuse_if_bad_rate": "5%"})
        strict.run()
        judged(inspection(strict), lambda *_: False, client)
        strict.run(only="rejected")
        with pytest.raises(GatePending):
            list(other.rows())
        assert other.run().state is JobState.GATE
        judged(inspection(strict), lambda *_: True, client)
        assert {row.value["label"] for row in other.rows() if isinstance(row, Ok)} == {"second"}


# ------------------------------------------------------------------------------------------- what was published before


def test_a_publication_of_refused_answers_is_served_no_more(tmp_path: Path) -> None:
    """Published without a gate and refused under one that came later; one that a gate as strict accepted stays."""
    with client_of(tmp_path, bad_by_text) as client:
        free = job(client, tmp_path, quality=None)
        free.run()
        assert publishing.newest(client.ledger, "labels", client.clock.now()) is not None
        gated = job(client, tmp_path)
        gated.run()
        assert (
            publishing.newest(client.ledger, "labels", client.clock.now()) is not None
        )  # as it was, until it is judged
        judged(inspection(gated), is_right, client)
        assert publishing.newest(client.ledger, "labels", client.clock.now()) is None
        (old,) = publishing.publications(client.ledger, "labels")
        assert "were refused: " in (old.refused or "")


def test_what_was_accepted_is_served_on(tmp_path: Path) -> None:
    """Later answers that are refused take no publication back that their gate had accepted."""
    with client_of(tmp_path, lambda text: right(text) if "more" not in text else {"label": "wrong"}) as client:
        texts = [f"text {n}" for n in range(60)]
        handle = job(client, tmp_path, texts)
        handle.run()
        judged(inspection(handle), is_right, client)
        handle.run()
        mixed = job(client, tmp_path, [*texts, *(f"more {n}" for n in range(60))])
        mixed.run()
        assert judged(inspection(mixed), is_right, client) is Verdict.REFUSED
        newest = publishing.newest(client.ledger, "labels", client.clock.now())
        assert newest is not None
        assert newest.rows == 60


# ------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("quality", "rows"),
    [({"preset": "relaxed"}, 98), ({"preset": "standard"}, 131), ({"preset": "strict"}, 390), ({"preset": "zero"}, 59),
     ({"preset": "zero", "refuse_if_bad_rate": "1%"}, 299), ({"refuse_if_bad_rate": "10%"}, 60),
     ({"refuse_if_bad_rate": "2%"}, 114), ({"refuse_if_bad_rate": "10%", "rows": 30}, 30)],
)  # fmt: skip
def test_the_job_file_chooses_the_plan(tmp_path: Path, quality: dict[str, Any], rows: int) -> None:
    """A preset is its fixed sample (methods.md 5.1); else a sequential plan of at most 60 rows, or as many as it takes."""
    with client_of(tmp_path) as client:
        stated = job(client, tmp_path, 1, quality=quality).value.quality
    assert stated is not None
    plan = shell.plan_for(stated, 5000)
    assert plan.most_rows == rows
    assert shell.most_rows(stated) >= rows


def placed(key: str, text: str, line: int) -> shell._Answer:
    return shell._Answer(key, text, "s", 0, line, 0)


@pytest.mark.parametrize("n_lot", [40, 300, 5000])
def test_a_bad_lot_is_refused_as_surely_as_stated(n_lot: int) -> None:
    """Through drawing and judging themselves: lots with 10 % bad rows are refused at least 90 times in 100."""
    quality = Quality(Decimal("0.1"), Decimal("0.9"), "human")
    rng, refused, runs = random.Random(n_lot), 0, 400
    rows = [(f"k{n}", "good") for n in range(n_lot)]
    for run in range(runs):
        bad = set(rng.sample(range(n_lot), n_lot // 10))
        drawing = shell._Drawing(Rules((), is_json=False), None, run.to_bytes(4), shell.most_rows(quality))
        drawing.see((placed(key, "bad" if n in bad else text, n) for n, (key, text) in enumerate(rows)), {})
        (part,), sample = drawing.done(quality)
        words = {place: Word.GOOD if text == "good" else Word.BAD for place, (_, _, text) in enumerate(sample)}
        refused += part.standing(words)[0] is gate.Decision.REFUSE
    assert refused >= 0.9 * runs - 1.65 * (0.09 * runs) ** 0.5


def test_drawing_holds_ten_bytes_a_row_and_the_sample() -> None:
    """However many rows there are, only those that may come to be judged are kept."""
    drawing = shell._Drawing(Rules((), is_json=False), None, b"seed", 60)
    drawing.see((placed(f"k{n}", "x" * 100, n) for n in range(50_000)), {})
    held = sum(column.itemsize * len(column) for column in (drawing.rows, *drawing.places))
    assert (held, len(drawing._heaps[0])) == (500_000, 60)


def test_what_is_left_out_is_left_out_of_every_batch(tmp_path: Path) -> None:
    """Rows are matched to the gate's word by their position, across all the batches of a larger job."""

    def answer(text: str) -> dict[str, str]:
        return {"label": "odd" if int(text.split()[-1]) % 100 == 7 else "right"}

    with client_of(tmp_path, answer) as client:
        quality = {"refuse_if_bad_rate": "10%", "by": "rule", "rules": ["label != 'odd'"]}
        assert job(client, tmp_path, 20_000, quality=quality).run().ok == 19_800
        keys = pq.read_table(tmp_path / "labels.parquet")["id"].to_pylist()
        assert keys == [f"k{n}" for n in range(20_000) if n % 100 != 7]
        beside = pq.read_table(tmp_path / "labels.failed.parquet")["id"].to_pylist()
        assert beside == [f"k{n}" for n in range(7, 20_000, 100)]
