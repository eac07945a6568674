"""The Python face, and what goes in and comes out of a job: every format, every provider, typed and priced."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

import canwait
from canwait import errors
from canwait.client import Client
from simulated import Desk, changed, desk

ROOT = Path(__file__).parent.parent


class Label(BaseModel):
    label: Literal["billing", "bug", "account"]
    urgency: int


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """A provider on a good day."""
    with desk(tmp_path) as d:
        yield d


def connected(office: Desk, **env: str) -> Client:
    return canwait.connect(f"sqlite:///{office.folder}/.canwait/ledger.db", env=office.env | env)


# ------------------------------------------------------------------------------------------------------- the Python face


def test_a_job_from_python(tmp_path: Path) -> None:
    """A job file is planned, run and read in Python: answers are the pydantic model, failures say their cause."""
    with desk(tmp_path, "row_refusal=1,row_400=1") as office:
        path = office.write(12)
        with connected(office) as client:
            job = client.job(path, output=Label)
            plan = job.plan()
            assert plan.worst_usd > plan.expected_usd / 2 > 0
            assert str(plan) == repr(plan)
            assert "Nothing was spent" in repr(plan)
            figures = job.run(plan=plan)
            assert (figures.ok, figures.failed) == (9, 3)
            good, bad = {}, {}
            for row in job.rows():
                match row:
                    case canwait.Ok(key, value):
                        good[key] = value
                    case canwait.Failed(key, cause):
                        bad[key] = cause
            assert len(good) == 9
            assert all(isinstance(value, Label) for value in good.values())
            assert set(bad.values()) == {"invalid_request", "refused"}
            assert {row.key for row in job.failed} == set(bad)
            assert job.cost.confirmed == Decimal(office.bill_usd()) > 0
            assert (job.cost.reserved, job.cost.unknown) == (0, 0)


def test_rows_without_a_model_are_mappings_or_text(office: Desk) -> None:
    """Without a pydantic model an answer is a mapping; without a schema it is the text."""
    with connected(office) as client:
        for name, output, kind in (("one", {}, dict), ("two", {"output": None}, str)):
            job = client.job(office.write(4, name, **output))
            job.run()
            assert {type(row.value) for row in job.rows() if isinstance(row, canwait.Ok)} == {kind}


def test_a_job_can_be_a_value(office: Desk) -> None:
    """The Job that a file describes is the same job under the same name: run as either, it is paid once."""
    with connected(office) as client:
        job = client.job(office.write(4))
        job.run()
        again = client.job(job.value)
        assert again.run().submissions == 1
        assert again.figures().ok == 4


def test_a_plan_made_elsewhere_is_refused_when_stale(office: Desk) -> None:
    """`run(plan=)` raises PlanStale once the rows have changed, and says what would run now."""
    with connected(office) as client:
        plan = client.job(office.write(4)).plan()
        job = client.job(office.write(5))
        with pytest.raises(errors.PlanStale, match=plan.id):
            job.run(plan=plan)
        assert office.simulator.batches() == []


def test_a_plan_that_is_not_approved_is_not_run(office: Desk) -> None:
    """`approve` sees the plan before any money is held; its no is final."""
    with connected(office) as client:
        job = client.job(office.write(4))
        seen = []

        def no(plan: Any) -> bool:
            seen.append(plan.worst_usd)
            return False

        with pytest.raises(errors.HumanNeeded, match="not approved"):
            job.run(approve=no)
        assert (len(seen), office.simulator.batches()) == (1, [])
        with pytest.raises(errors.NotFound):
            job.figures()


def test_a_budget_that_asks_needs_a_person(office: Desk) -> None:
    """`on_exceed: ask` does not refuse for good: it says how much is missing, and how a person approves it."""
    with connected(office) as client:
        job = client.job(office.write(4, budget={"usd": "0.000001", "on_exceed": "ask"}))
        with pytest.raises(errors.HumanNeeded, match="needs") as caught:
            job.run()
        assert "--budget" in (caught.value.own_hint or "")
        assert office.simulator.batches() == []


@pytest.mark.parametrize(("budget", "word"), [({"rows": 3}, "3"), ({"tokens": 100}, "100 are free")])
def test_a_budget_may_be_of_rows_or_tokens(office: Desk, budget: dict[str, int], word: str) -> None:
    """A limit in rows or tokens refuses as one in dollars does; a job with only such a limit runs below it."""
    with connected(office) as client:
        with pytest.raises(errors.BudgetExceeded, match=word):
            client.job(office.write(6, budget=budget)).run()
        assert office.simulator.batches() == []
        figures = client.job(office.write(6, budget=dict.fromkeys(budget, 10**6))).run()
        assert (figures.ok, figures.limit_micros) == (6, None)


def test_waiting_can_be_bounded(tmp_path: Path) -> None:
    """`until` leaves the job going; a later call finds its batch and pays once."""
    with desk(tmp_path, speed=600) as office, connected(office) as client:
        job = client.job(office.write(4))
        early = job.run(until=client.clock.now() + timedelta(seconds=0.5))
        assert (early.finished, early.pending) == (False, 4)
        assert job.run().ok == 4
        assert len(office.simulator.batches()) == 1


def test_another_account_is_not_asked_about_this_ones_batches(tmp_path: Path) -> None:
    """A job half done under one key is not sent again under another: it waits, and says for what, until the key is back."""
    with desk(tmp_path, keys={"one": "acct-1", "two": "acct-2"}, speed=600) as office:
        path = office.write(4)
        with connected(office, OPENAI_API_KEY="one") as client:
            client.job(path).run(until=client.clock.now() + timedelta(seconds=0.4))
        with connected(office, OPENAI_API_KEY="two") as client:
            waiting = client.job(path).run(until=client.clock.now() + timedelta(seconds=0.5))
            assert (waiting.pending, [why.partition(":")[0] for why in waiting.blocked]) == (4, ["cannot be polled"])
        with connected(office, OPENAI_API_KEY="one") as client:
            assert client.job(path).run().ok == 4
        assert len(office.simulator.batches()) == 1


def test_closing_lets_go(office: Desk) -> None:
    """A closed client has closed its ledger: a later call is an error, not a hang."""
    with connected(office) as client:
        pass
    with pytest.raises(Exception, match="closed"):
        client.ledger.query("jobs")


# -------------------------------------------------------------------------------------------------------- rows in and out


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        case suffix:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = path.read_text("utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize(
    ("source", "target"), [("csv", "tsv"), ("tsv", "csv"), ("jsonl", "parquet"), ("parquet", "jsonl")]
)
def test_every_format_in_and_out(office: Desk, source: str, target: str) -> None:
    """Keys survive exactly through every format, and each loaded row has its fields and where they come from."""
    keys = ["000123", "e1", "1e5", " padded ", "日本"]
    path = office.write(2, source={"uri": f"in.{source}", "key": "id"}, load=f"out.{target}")
    write_rows(office.folder / f"in.{source}", [{"id": key, "text": f"text of {key}"} for key in keys])
    with connected(office) as client:
        assert client.job(path).run().ok == 5
    rows = read_rows(office.folder / f"out.{target}")
    assert [row["id"] for row in rows] == keys
    for row in rows:
        assert list(row) == ["id", "label", "urgency", "_model", "_tier", "_cost_usd", "_produced_at"]
        assert row["label"] in ("billing", "bug", "account")
        assert Decimal(str(row["_cost_usd"])) > 0


def test_a_load_is_a_merge_relative_to_the_job_file(office: Desk) -> None:
    """A load keeps rows and columns of the target it does not concern, and repeating it changes no byte."""
    (office.folder / "out").mkdir()
    (office.folder / "out" / "labels.csv").write_text("id,note\nold,kept\n000001,was here\n")
    path = office.write(3, load="out/labels.csv")
    with changed(office.folder.parent, {}), connected(office) as client:
        job = client.job(path)
        job.run()
        rows = read_rows(office.folder / "out" / "labels.csv")
        assert [(row["id"], row["note"]) for row in rows] == [
            ("old", "kept"), ("000001", ""), ("000000", ""), ("000002", ""),
        ]  # fmt: skip
        assert (rows[0]["label"], bool(rows[1]["label"])) == ("", True)
        before = (office.folder / "out" / "labels.csv").read_bytes()
        assert job.load() == 4
        assert (office.folder / "out" / "labels.csv").read_bytes() == before
    assert {p.name for p in (office.folder / "out").iterdir()} == {"labels.csv"}


def test_every_cent_stands_at_a_row(tmp_path: Path) -> None:
    """The costs of the loaded rows and what was wasted make up what is confirmed; a shared answer is charged once."""
    with desk(tmp_path, "row_refusal=2,row_length=1,expiry=1") as office, connected(office) as client:
        figures = client.job(office.write(24, shard={"max_rows": 6})).run()
        table = pq.read_table(office.folder / "labels.parquet")
        loaded = sum((cost for cost in table["_cost_usd"].to_pylist()), Decimal(0)) * 1_000_000
        assert figures.wasted_micros > 0
        n_shards = len(client.ledger.query("shards", job="labels"))
        assert abs(loaded + figures.wasted_micros - figures.confirmed_micros) <= n_shards  # each was rounded up once


def test_another_jobs_answers_are_reused(office: Desk) -> None:
    """A second job with the same requests pays for none of them, and its rows say that they cost nothing."""
    with connected(office) as client:
        client.job(office.write(6)).run()
        second = client.job(office.write(6, "second", load="second.parquet"))
        assert second.plan().value.n_new == 0
        figures = second.run()
        assert (figures.ok, figures.submissions, figures.confirmed_micros) == (6, 0, 0)
        assert set(pq.read_table(office.folder / "second.parquet")["_cost_usd"].to_pylist()) == {Decimal(0)}


def test_new_rows_are_all_that_is_paid(office: Desk) -> None:
    """When rows are added, only they are sent; when they are taken away, nothing is, and the figures follow."""
    with connected(office) as client:
        client.job(office.write(6)).run()
        grown = client.job(office.write(9)).run()
        assert (grown.rows, grown.ok, grown.submissions) == (9, 9, 2)
        assert [b.n_rows for b in office.simulator.batches()] == [5, 3]
        shrunk = client.job(office.write(4)).run()
        assert (shrunk.rows, shrunk.ok, shrunk.submissions) == (4, 4, 2)
        assert pq.read_table(office.folder / "labels.parquet").num_rows == 9  # a merge deletes nothing


def test_sampling_asks_every_row(office: Desk) -> None:
    """With `dedupe: false` equal rows are asked one by one."""
    with connected(office) as client:
        client.job(office.write(6, dedupe=False)).run()
        assert [b.n_rows for b in office.simulator.batches()] == [6]
        assert client.job(office.write(6, dedupe=False)).run().submissions == 1


def test_rows_of_one_kind_stay_together(office: Desk) -> None:
    """`shard.by` makes batches of one value each."""
    path = office.write(2, source={"uri": "in.csv", "key": "id"}, shard={"by": "team"})
    write_rows(office.folder / "in.csv", [{"id": str(i), "text": f"t{i}", "team": "ab"[i % 2]} for i in range(7)])
    with connected(office) as client:
        plan = client.job(path).plan().value
        assert {(s.by, s.n_lines) for s in plan.shards} == {("a", 4), ("b", 3)}
        assert client.job(path).run().submissions == 2


# -------------------------------------------------------------------------------------------------------------- providers


def test_anthropic_end_to_end(tmp_path: Path) -> None:
    """Message Batches: every row comes back typed, and the ledger is the bill to the micro."""
    # Its running batches ask to be polled every 10 s, so they end before the first poll.
    faults, slow = "row_refusal=1,expiry=1,shuffled=1", {"CANWAIT_POLL_S": "0.6"}
    with desk(tmp_path, faults, speed=200_000) as office, connected(office, **slow) as client:
        figures = client.job(office.write(12, model="anthropic/claude-haiku-5-5")).run()
        assert (figures.ok + figures.failed, 1 <= figures.failed <= 2) == (12, True)  # the refused one may have a twin
        assert figures.confirmed_micros == office.simulator.bill_micros() > 0
        assert client.ledger.check() == []


def test_an_unmarked_batch_is_not_sent_again_while_it_may_exist(tmp_path: Path) -> None:
    """Where nothing of ours stands on a batch, a lost create is not repeated while a candidate runs; it is adopted."""
    with desk(tmp_path, "lost_create_reply=1", speed=1_500) as office, connected(office) as client:
        job = client.job(office.write(6, model="anthropic/claude-haiku-5-5"))
        early = job.run(until=client.clock.now() + timedelta(seconds=1))
        assert (early.finished, early.unknown_micros > 0, len(office.simulator.batches())) == (False, True, 1)
        done = job.run()
        assert (done.ok, done.submissions, len(office.simulator.batches())) == (6, 1, 1)
        assert done.confirmed_micros == office.simulator.bill_micros()


def test_a_server_of_our_own_end_to_end(office: Desk) -> None:
    """`own/NAME` asks any OpenAI-compatible server row by row: every row comes back, at no price, and is asked once."""
    with connected(office) as client:
        figures = client.job(office.write(12, model="own/some-model")).run()
        assert (figures.ok, figures.confirmed_micros) == (12, 0)
        assert pq.read_table(office.folder / "labels.parquet")["_tier"].to_pylist() == ["own"] * 12
        assert set(office.simulator.executed().values()) == {1}
        assert client.job(office.folder / "job.yaml").run().ok == 12
        assert sum(office.simulator.executed().values()) == 11


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_runs(office: Desk) -> None:
    """Every snippet of docs/python.md runs as it stands, one after the other, in a folder with its files."""
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    for name, text in re.findall(r"^```\w+ title=\"([\w.]+)\"\n(.*?)^```", page, re.M | re.S):
        (office.folder / name).write_text(text, "utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(snippets) >= 3
    names: dict[str, Any] = {}
    with changed(office.folder, office.env):
        for snippet in snippets:
            exec(compile(snippet, "docs/python.md", "exec", dont_inherit=True), names)
    with closing(office.ledger()) as ledger:
        assert ledger.check() == []
        assert len(ledger.query("jobs")) >= 2
