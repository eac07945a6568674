"""A whole job over real questions, from the plan to the reader, on the command line: what people refuse nobody reads."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import canwait
from canwait import errors, publishing
from canwait.canary import CANARY_ROWS
from canwait.freshness import Fresh, NeverBuilt
from canwait.simulator import replay
from simulated import Desk, changed, desk

PROMPT = "Which intent has this message?\n\n{{ text }}"
OLD = "id,label\nold,card_arrival\n"  # what the target held before
MOST = 2_000  # questions: a canary, and two shards that follow it


@pytest.fixture(scope="module")
def questions(shared: Path) -> dict[str, str]:
    """Messages of a bank's customers, each once, with what they are about."""
    file = shared / "data" / "text" / "banking77_test.csv"
    if not file.is_file():
        pytest.skip("no data/text/banking77_test.csv in the shared folder")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = {row["text"]: row["category"] for row in csv.DictReader(lines)}
    return dict(list(rows.items())[:MOST])


@contextmanager
def office(folder: Path, questions: dict[str, str], wrong: float) -> Iterator[Desk]:
    """A job about them, and a model that is wrong on this share of them: it names an intent, and not the right one."""
    rng, labels = random.Random(77), sorted(set(questions.values()))

    def said(label: str) -> str:
        if rng.random() < wrong:
            label = rng.choice([other for other in labels if other != label])
        return json.dumps({"label": label})

    answers = {PROMPT.replace("{{ text }}", text): said(label) for text, label in questions.items()}
    schema = {
        "type": "object", "properties": {"label": {"type": "string", "enum": labels}}, "required": ["label"],
        "additionalProperties": False,
    }  # fmt: skip
    with desk(folder, answer=replay(answers, otherwise=lambda body, rng: "no such question")) as d:
        with (d.folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *((f"q{n}", text) for n, text in enumerate(questions))])
        (d.folder / "labels.csv").write_text(OLD, "utf-8")
        d.write_job(
            prompt=PROMPT, output=schema, max_output_tokens=20, load="labels.csv", shard={"max_rows": 1_000},
            quality={"preset": "standard"}, budget={"usd": 1},
        )  # fmt: skip
        yield d


def run_to_the_gate(d: Desk, n_rows: int) -> None:
    """Planned, then run: a random sample is sent first and alone, and everything stands at the gate."""
    planned = d.canwait("plan", "job.yaml", "--json").json
    assert (planned["n_new"], planned["canary"]["n_rows"]) == (n_rows, CANARY_ROWS)
    assert d.simulator.batches() == []
    ran = d.run("job.yaml", "--plan", planned["id"])
    assert (ran.code, ran.json["state"], ran.json["ok"]) == (3, "gate", n_rows)
    assert float(ran.json["confirmed_usd"]) <= float(planned["worst_usd"])
    assert ran.json["confirmed_usd"] == d.bill_usd()
    first, *others = d.simulator.batches()
    assert (first.n_rows, sum(batch.n_rows for batch in others)) == (CANARY_ROWS, n_rows - CANARY_ROWS)
    with changed(d.folder, d.env), canwait.connect() as client:
        steps = [(e.kind, e.shard) for e in client.ledger.events(job="labels") if e.kind in ("reserved", "settled")]
    canary = planned["canary"]["shard"]
    assert steps[:2] == [("reserved", canary), ("settled", canary)]
    assert {shard for _, shard in steps[2:]} == {shard for _, shard in steps} - {canary}
    assert len(others) == 2


def nothing_is_readable(d: Desk, gate: int) -> None:
    """By any face; `gate`: the exit code of those that ask the gate. The target is as it was."""
    for verb in (("load", "job.yaml"), ("results", "job.yaml")):
        said = d.canwait(*verb)
        assert (said.code, said.out) == (gate, "")
    said = d.canwait("read", "labels", "q0", "--as", "shell", "--max-age", "24h")
    assert (said.code, said.out) == (8, "")
    with changed(d.folder, d.env), canwait.connect() as client:
        job = client.job("job.yaml")
        labels = canwait.reader("labels", as_="dash", max_age="24h", on_stale="serve", client=client)
        assert isinstance(labels.outcome, NeverBuilt)
        for read in (lambda: labels.get("q0"), lambda: labels.frame("polars"), lambda: next(labels.rows())):
            with pytest.raises(errors.NotBuilt):
                read()
        for ask in (lambda: next(job.rows()), job.results, job.load):
            with pytest.raises((errors.GatePending, errors.GateRefused)):
                ask()
        assert publishing.publications(client.ledger, "labels") == []
    assert (d.folder / "labels.csv").read_text("utf-8") == OLD
    assert not (d.folder / "labels.failed.csv").exists()


def judge(d: Desk, questions: dict[str, str]) -> dict[str, Any]:
    """Somebody who knows the answers judges the sample, thirty rows at a time, until it is decided."""
    while (seen := d.canwait("inspect", "labels", "--json").json)["next"] is not None:
        words: list[object] = []
        for row in seen["sample"][seen["next"] : seen["next"] + 30]:
            text = row["input"].removeprefix(PROMPT.partition("{{")[0])
            good = json.loads(row["answer"])["label"] == questions[text]
            words += ["--accept", row["place"]] if good else ["--reject", f"{row['place']}=wrong"]
        d.canwait("inspect", "labels", *words, "--as", "ann")
    return seen


def test_what_is_wrong_on_a_fifth_of_the_rows_reaches_nobody(tmp_path: Path, questions: dict[str, str]) -> None:
    """plan -> canary -> gate: the sample shows it, the job is refused, nothing is readable and nothing was touched."""
    with office(tmp_path, questions, wrong=0.2) as d:
        run_to_the_gate(d, len(questions))
        nothing_is_readable(d, gate=3)
        seen = judge(d, questions)
        assert (seen["verdict"], seen["reason"][:8]) == ("refused", "refused:")
        again = d.run()
        assert (again.code, again.problem["code"]) == (7, "gate_refused")
        nothing_is_readable(d, gate=7)
        assert len(d.simulator.batches()) == 3


def test_what_is_right_is_published_and_read_fresh(tmp_path: Path, questions: dict[str, str]) -> None:
    """plan -> canary -> gate -> publish -> read: every row with its right label, its age, its version and its verdict."""
    with office(tmp_path, questions, wrong=0) as d:
        run_to_the_gate(d, len(questions))
        nothing_is_readable(d, gate=3)
        seen = judge(d, questions)
        assert seen["verdict"] == "accepted"
        done = d.run()
        assert (done.code, done.json["state"], len(d.simulator.batches())) == (0, "completed", 3)
        truth = {f"q{n}": label for n, label in enumerate(questions.values())}
        with changed(d.folder, d.env), canwait.connect() as client:
            labels = canwait.reader("labels", as_="dash", max_age="24h", client=client)
            fresh = labels.outcome
            assert isinstance(fresh, Fresh)
            made = fresh.publication
            assert (made.version, made.rows, made.failed, made.verdict) == (1, len(truth), 0, seen["reason"])
            assert made.cost_micros == client.job("job.yaml").figures().confirmed_micros > 0
            hit = labels.get("q7")
            assert hit is not None
            assert (hit.value, hit.stale, hit.version, hit.gate) == ({"label": truth["q7"]}, False, 1, seen["reason"])
            assert timedelta(0) < hit.age <= client.clock.now() - made.source_as_of
            assert {h.key: h.value["label"] for h in labels.rows()} == truth
            assert len(labels.frame("polars")) == len(truth)
        with (d.folder / "labels.csv").open(encoding="utf-8", newline="") as file:
            assert {row["id"]: row["label"] for row in csv.DictReader(file)} == {"old": "card_arrival", **truth}
        read = d.canwait("read", "labels", "q7", "--as", "shell", "--max-age", "24h")
        assert (read.code, json.loads(read.out)["value"]) == (0, {"label": truth["q7"]})
        stands = d.canwait("fresh", "labels", "--json")
        assert (stands.code, {s["state"] for s in stands.json["sets"]}) == (0, {"fresh"})
