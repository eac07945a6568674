"""Promises of inspection.py: samples nobody can choose, gates that open only for what was judged, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from canwait import gate, judging
from canwait import inspection as shell
from canwait.checks import Rules
from canwait.client import Client, Failed, Ok
from canwait.errors import AlreadyJudged, GatePending, GateRefused, NotFound, SpecError
from canwait.judging import Verdict, Word
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
    """Its order follows from ledger, job and plan alone: other answers to the same rows have the same rows judged."""
    orders: list[list[str]] = []
    for answer in (right, bad_by_text):
        with client_of(tmp_path / "same", answer) as client:
            handle = job(client, tmp_path)
            if not orders:
                plan = handle.open()
                seed = hashlib.sha256("\0".join((client.ledger.id, "labels", plan.digest)).encode()).digest()
                keys = sorted((f"k{n}" for n in range(100)), key=lambda key: gate.rank(seed, key))
                orders.append(keys[:60])
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
            assert {(row.cause, row.detail) for row in handle.failed} == {("gate", "stratum rare")}


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
        assert more.run().state is JobState.GATE
        with pytest.raises(GatePending):
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


@pytest.mark.parametrize("n_lot", [40, 300, 5000])
def test_a_bad_lot_is_refused_as_surely_as_stated(n_lot: int) -> None:
    """Through drawing and judging themselves: lots with 10 % bad rows are refused at least 90 times in 100."""
    quality = Quality(Decimal("0.1"), Decimal("0.9"), "human")
    rng, refused, runs = random.Random(n_lot), 0, 400
    rows = [(f"k{n}", "good") for n in range(n_lot)]
    for run in range(runs):
        bad = set(rng.sample(range(n_lot), n_lot // 10))
        drawing = shell._Drawing(Rules((), is_json=False), None, run.to_bytes(4), shell.most_rows(quality))
        drawing.see((key, "bad" if n in bad else text) for n, (key, text) in enumerate(rows))
        (part,), sample = drawing.done(quality)
        words = {place: Word.GOOD if text == "good" else Word.BAD for place, (_, _, text) in enumerate(sample)}
        refused += part.standing(words)[0] is gate.Decision.REFUSE
    assert refused >= 0.9 * runs - 1.65 * (0.09 * runs) ** 0.5


def test_drawing_holds_two_bytes_a_row_and_the_sample() -> None:
    """However many rows there are, only those that may come to be judged are kept."""
    drawing = shell._Drawing(Rules((), is_json=False), None, b"seed", 60)
    drawing.see((f"k{n}", "x" * 100) for n in range(50_000))
    assert (drawing.rows.itemsize * len(drawing.rows), len(drawing._heaps[0])) == (100_000, 60)


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
