"""A load is a publication: recorded once, after its rows are on the disk, and never taken back by an older snapshot."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import canwait
from canwait import changes, errors, loading, published, publishing
from canwait.blobs import Blobs
from canwait.cron import longest_gap_s, next_fire
from canwait.freshness import Blocked, Contract
from canwait.published import PublishedRows, keeping
from canwait.simulator import schema_answer
from gated import client_of, inspection, job, judged, model
from shelf import SCHEMA, batch_of, shelf, utc
from simulated import changed, desk

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Killed(BaseException):
    """The process ends here."""


# ------------------------------------------------------------------------------------------------------ from a real run


def test_a_run_that_loads_is_a_publication(tmp_path: Path) -> None:
    """Its version, times, parts, counts and cost are recorded, and its rows are those of the target, in one Parquet file."""
    with desk(tmp_path, "row_refusal=1") as office:
        office.write(12)
        assert office.run().code == 6
        with changed(office.folder, office.env), canwait.connect() as client:
            (made,) = publishing.publications(client.ledger, "labels")
            figures = client.job("job.yaml").figures()
            plan_read = client.job("job.yaml").plan().value.source_as_of
            assert (made.version, made.verdict, made.key, made.effective_until) == (1, "no gate", "id", None)
            assert made.source_as_of < made.produced_at < client.clock.now()
            assert made.source_as_of < plan_read
            assert (made.rows, made.failed) == (figures.ok, figures.failed)
            assert made.cost_micros == figures.confirmed_micros > 0
            assert set(made.components) == {"prompt", "model", "params", "schema", "input", "snapshot"}
            assert len(set(made.components.values())) == 6
            kept = pq.read_table(client.blobs.path(made.blob))
            assert kept.equals(pq.read_table(office.folder / "labels.parquet"))


def test_loading_again_publishes_nothing_and_running_again_renews_the_age(tmp_path: Path) -> None:
    """The same answers to the same reading of the input are one publication; a later reading that finds it unchanged is
    another, of the same rows, for nothing."""
    with desk(tmp_path) as office:
        office.write(6)
        assert office.run().code == 0
        assert office.canwait("load", "job.yaml").code == 0
        with changed(office.folder, office.env), canwait.connect() as client:
            (first,) = publishing.publications(client.ledger, "labels")
        assert office.run().code == 0
        with changed(office.folder, office.env), canwait.connect() as client:
            again, second = publishing.publications(client.ledger, "labels")
        assert again == replace(first, effective_until=second.produced_at)
        assert (second.version, second.cost_micros, second.blob) == (2, 0, first.blob)
        assert second.source_as_of > first.source_as_of
        assert second.components == first.components


def test_rows_that_were_lost_are_kept_again_by_the_next_load(tmp_path: Path) -> None:
    """A publication whose file is gone says so to its readers, and loading the job again brings the same file back."""
    with desk(tmp_path) as office:
        office.write(6)
        office.run()
        with changed(office.folder, office.env), canwait.connect() as client:
            made = publishing.newest(client.ledger, "labels", client.clock.now())
            assert made is not None
            client.blobs.path(made.blob).unlink()
            with pytest.raises(errors.BlobError, match="is missing from"):
                canwait.reader("labels", as_="me", max_age="1h", client=client).get("000001")
            client.job("job.yaml").load()
            assert publishing.publications(client.ledger, "labels") == [made]
            assert canwait.reader("labels", as_="me", max_age="1h", client=client).get("000001") is not None


def test_parts_say_what_changed(tmp_path: Path) -> None:
    """Another prompt, model, parameter, schema or input changes its own digest and no other."""
    other_schema = {
        "type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"], "additionalProperties": False,
    }  # fmt: skip
    with desk(tmp_path) as office, changed(office.folder, office.env):
        for change in (
            {}, {"prompt": "Label: {{ text }}"}, {"model": "openai/gpt-6-sol"}, {"params": {"temperature": 0}},
            {"output": other_schema}, {"n": 7},
        ):  # fmt: skip
            fields: dict[str, object] = {"load": {"to": "labels.parquet", "mode": "replace"}, **change}
            office.write(**fields)  # type: ignore[arg-type]
            with canwait.connect() as client:
                client.job("job.yaml").run()
        with canwait.connect() as client:
            first, *others = publishing.publications(client.ledger, "labels")
    found = [publishing.because([first], other.components) for other in others]
    assert [[word.partition(" ")[0] for word in words] for words in found] == [
        ["prompt"], ["model", "snapshot"], ["params"], ["schema"], ["input"],
    ]  # fmt: skip
    assert publishing.because([first, others[0]], first.components) == ("prompt v2 -> v1",)
    assert publishing.because([first, others[0]], others[0].components) == ()


@pytest.mark.parametrize("where", ["before publish", "after publish", "before loaded"])
def test_a_crash_around_the_record_publishes_once(tmp_path: Path, where: str) -> None:
    """Killed between the rows' file and the ledger, or just behind it, a job that is run again has one publication of all
    its rows."""

    def kill(here: str) -> None:
        if here == where:
            raise Killed

    with desk(tmp_path) as office:
        office.write(6)
        with changed(office.folder, office.env):
            with canwait.connect() as client:
                client.ledger.db.fault = kill
                with pytest.raises(Killed):
                    client.job("job.yaml").run()
            with canwait.connect() as client:
                client.job("job.yaml").load()
                (made,) = publishing.publications(client.ledger, "labels")
                assert made.version == 1
                assert pq.read_table(client.blobs.path(made.blob)).num_rows == made.rows == 6


def test_a_job_that_failed_or_was_given_up_takes_nothing_from_its_readers(tmp_path: Path) -> None:
    """Where no row is usable, or a person cancelled the job, readers go on seeing the publication before."""

    def answer(body: Any, rng: random.Random) -> str:
        return "no JSON at all" if "Label:" in json.dumps(body) else schema_answer(body, rng)

    with desk(tmp_path, answer=answer) as office:
        office.write(6)
        office.run()
        path = office.write_job(prompt="Label: {{ text }}")
        assert office.run(path).code == 6
        office.write(9)
        with changed(office.folder, office.env), canwait.connect() as client:
            assert client.job(path).figures().ok == 0
            client.job(path).open()
            assert client.cancel("labels").cancelled > 0
            assert client.job(path).load() > 0
            assert [p.rows for p in publishing.publications(client.ledger, "labels")] == [6]
            assert canwait.reader("labels", as_="me", max_age="1h", client=client).get("000001") is not None


def test_a_load_that_fails_publishes_nothing(tmp_path: Path) -> None:
    """Where the target refuses the rows there is no publication, and no file is left behind."""
    with desk(tmp_path) as office:
        office.write(6)
        office.run()
        (office.folder / "labels.parquet").write_bytes(b"not Parquet")
        with changed(office.folder, office.env), canwait.connect() as client:
            before = sorted(client.blobs.folder.rglob("*"))
            client.ledger.db.fault = lambda where: None
            with pytest.raises(errors.SinkError):
                client.job("job.yaml").load()
            assert len(publishing.publications(client.ledger, "labels")) == 1
            assert sorted(client.blobs.folder.rglob("*")) == before


@pytest.mark.parametrize("load", ["labels.parquet", {"to": "sqlite:///labels.db", "table": "labels"}])
@pytest.mark.parametrize("moment", ["before its first row", "behind its last row"])
def test_a_load_that_began_earlier_never_overwrites_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any, moment: str
) -> None:
    """Two runs of a job at once, of an older and of a newer plan: whichever is slow, the target ends with what the newest
    publication has."""

    def answer(text: str) -> dict[str, str]:
        return {"label": "new" if "Anew" in text else "old"}

    with client_of(tmp_path, answer) as ours, ours.again() as other:
        terms: dict[str, Any] = {"quality": None, "load": load}
        older = job(ours, tmp_path, ["one", "two"], **terms)
        newer = job(other, tmp_path, ["one", "two"], prompt="Anew: {{ text }}", **terms)
        order: list[str] = []

        def overtake() -> None:
            if not order:
                order.append("newer")
                newer.run()

        def behind(kept: published.Kept, batches: Any) -> Any:
            yield from passing(kept, batches)
            if not order:
                order.append("newer")
                newer.open()  # its rows are back, and its load is waiting for this one
                other.engine.run("labels")

        def before(*args: Any) -> Any:
            overtake()
            return keep(*args)

        passing, keep = published.Kept.passing, loading.keeping
        if moment == "before its first row":
            monkeypatch.setattr(loading, "keeping", before)
        else:
            monkeypatch.setattr(published.Kept, "passing", behind)
        older.run()
        assert order == ["newer"]
        published_rows = canwait.reader("labels", as_="me", max_age="24h", client=ours)
        assert {hit.value["label"] for hit in published_rows.rows()} == {"new"}
        if isinstance(load, str):
            assert set(pq.read_table(tmp_path / load)["label"].to_pylist()) == {"new"}
        else:
            with closing(sqlite3.connect(tmp_path / "labels.db")) as base:
                assert base.execute("SELECT DISTINCT label FROM labels").fetchall() == [("new",)]
        assert ours.ledger.job("labels")["state"] == "completed"


def test_a_load_by_hand_says_that_the_answers_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is as it was, in one sentence with what to do."""
    with client_of(tmp_path) as client:
        older = job(client, tmp_path, ["one"], quality=None)
        older.run()
        before = (tmp_path / "labels.parquet").read_bytes()
        keep = loading.keeping

        def overtaken(*args: Any) -> Any:
            job(client, tmp_path, ["one", "two"], quality=None).open()
            return keep(*args)

        monkeypatch.setattr(loading, "keeping", overtaken)
        with pytest.raises(errors.SinkBusy, match="changed while they were loaded"):
            older.load()
        assert (tmp_path / "labels.parquet").read_bytes() == before


# -------------------------------------------------------------------------------------------------- jobs without a target


def test_a_frame_that_was_answered_is_read_by_its_name(tmp_path: Path) -> None:
    """`canwait.map` loads nothing, and what it made is a publication all the same; only the frame that is given anew
    renews its age, for nothing, and with the same file."""
    frame = pd.DataFrame({"id": ["a", "b"], "text": ["one", "two"]})
    terms: dict[str, Any] = {"model": "openai/gpt-6-luna", "key": "id", "prompt": "{{ text }}", "budget_usd": 1}
    with client_of(tmp_path, lambda text: {"label": text}) as client:
        schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
        work = canwait.map(frame, "mapped", max_output_tokens=9, output=schema, client=client, **terms)
        model(client).failing = {"two"}
        work.run()
        first = canwait.reader("mapped", as_="me", max_age="24h", client=client)
        made = publishing.newest(client.ledger, "mapped", client.clock.now())
        assert made is not None
        assert (made.rows, made.failed, made.version) == (1, 1, 1)
        assert [(hit.key, hit.value) for hit in first.rows()] == [("a", {"label": "one"})]
        client.clock.sleep(60)
        work.run()
        same = publishing.newest(client.ledger, "mapped", client.clock.now())
        assert same is not None
        assert same.source_as_of == made.source_as_of  # a frame is copied once
        canwait.map(frame, "mapped", max_output_tokens=9, output=schema, client=client, **terms).run()
        again = publishing.newest(client.ledger, "mapped", client.clock.now())
        assert again is not None
        assert (again.version, again.blob, again.rows, again.failed, again.cost_micros) == (2, made.blob, 1, 1, 0)
        assert again.components == made.components
        assert again.source_as_of > made.source_as_of


def test_a_job_without_a_target_publishes_behind_its_gate_and_only_what_is_usable(tmp_path: Path) -> None:
    """Nothing before it is accepted; nothing of a job that was given up, or that has no usable row."""
    with client_of(tmp_path) as client:
        gated = job(client, tmp_path, 30, load=None)
        gated.run()
        assert publishing.publications(client.ledger, "labels") == []
        judged(inspection(gated), lambda text, answer: True, client)
        gated.run()
        (made,) = publishing.publications(client.ledger, "labels")
        assert (made.rows, made.verdict[:8]) == (30, "accepted")
        refused = job(client, tmp_path, 30, load=None, name="refused")
        refused.run()
        judged(inspection(refused), lambda text, answer: False, client)
        refused.run()
        empty = job(client, tmp_path, ["one"], load=None, quality=None, name="empty")
        model(client).failing = {"one"}
        empty.run()
        ended = job(client, tmp_path, ["two"], load=None, quality=None, name="ended")
        ended.open()
        client.cancel("ended")
        ended.run()
        for name in ("refused", "empty", "ended"):
            assert publishing.publications(client.ledger, name) == []


# ----------------------------------------------------------------------------------------------------------- the ledger


def test_a_publication_is_effective_until_its_input_is_known_to_have_changed(tmp_path: Path, ledger_url: str) -> None:
    """From the moment another input was read, though its answers are not there yet; what is read says so, and is no staler."""
    with shelf(tmp_path, ledger_url) as s:
        s.publish({"a": "bug"})
        labels = s.reader(max_age="24h")
        s.wait(hours=1)
        s.see(s.now, source="plan 0")
        hit = labels.get("a")
        assert hit is not None
        assert hit.effective_until is None
        s.wait(hours=1)
        changed_at = s.now
        s.open(changed_at)
        s.wait(hours=1)
        s.see(s.now)
        hit = labels.get("a")
        assert hit is not None
        assert (hit.effective_until, hit.stale, hit.age) == (changed_at, False, 3 * HOUR)
        (said,) = [e.reason for e in s.client.ledger.events(job="job") if e.kind == "outdated"]
        assert said == "version 1: its input has changed"
        s.load({"a": "account"})
        assert publishing.publications(s.client.ledger, "job")[0].effective_until == changed_at
        hit = labels.get("a")
        assert hit is not None
        assert (hit.version, hit.effective_until) == (2, None)


def test_a_clock_that_was_ahead_hides_nothing(tmp_path: Path, ledger_url: str) -> None:
    """What it dated into the future is not fresh; the same job run with a right clock publishes again, is read at once, and
    is what is read when the wrong date has come."""
    with shelf(tmp_path, ledger_url) as s:
        s.publish({"a": "first"})
        labels = s.reader(max_age="1h", on_stale="serve")
        s.wait(minutes=10)
        right = s.now
        s.wait(hours=40)
        s.publish({"a": "second"})
        s.clock.at = right
        hit = labels.get("a")
        assert hit is not None
        assert (hit.version, hit.stale) == (2, True)
        assert isinstance(s.reader("strict", max_age="1h").outcome, Blocked)
        s.see(s.now)
        assert s.load({"a": "second"}).version == 3
        for hours in (0, 1, 39):
            s.wait(hours=hours)
            hit = labels.get("a")
            assert hit is not None
            assert (hit.version, hit.age) == (3, s.now - right)
        told = [e.reason for e in s.client.ledger.events(job="job") if e.kind == "outdated"]
        assert told[1:] == [f"version 2: it cannot have been read at {right + 40 * HOUR:%Y-%m-%d %H:%M} UTC"]


def test_rows_that_nobody_can_need_are_removed(tmp_path: Path, ledger_url: str) -> None:
    """Thirty days after they were replaced, or as long as a reader accepts; never those of the newest, nor of a file that
    another publication has, too; a reader that has one open reads on."""
    with shelf(tmp_path, ledger_url) as s:
        blobs, ledger = s.client.blobs, s.client.ledger

        def sweep() -> list[bool]:
            publishing.forget(ledger, "job", s.now, lambda blob: published.remove(blobs, blob))
            made = publishing.publications(ledger, "job")
            assert all(p.kept == published.is_there(blobs, p.blob) for p in made)
            return [p.kept for p in made]

        first = s.publish({"a": "1"})
        labels = s.reader(max_age="1h", on_stale="serve")
        assert labels.get("a") is not None
        opened = PublishedRows(blobs, first.blob, "id")
        s.wait(days=400)
        assert sweep() == [True]
        s.publish({"a": "2"})
        assert sweep() == [True, True]
        s.wait(days=29)
        assert sweep() == [True, True]
        s.wait(days=2)
        publishing.declare(ledger, Contract("job", "archive", 40 * 86_400, "serve"), "ada", s.now)
        assert sweep() == [True, True]
        s.wait(days=10)
        assert sweep() == [False, True]
        assert (opened.find("a") or {})["label"] == "1"
        assert list((blobs.folder / "keys").glob(f"{first.blob}*")) == []
        assert labels.get("a") is not None
        assert [e.reason for e in ledger.events(job="job") if e.kind == "forgotten"] == [
            f"1 publications from before {s.now - timedelta(days=40):%Y-%m-%d} have their rows removed"
        ]


@pytest.mark.parametrize("where", ["before forget", "after forget", "before forgotten", "after forgotten"])
def test_a_crash_while_rows_are_removed_leaves_none_that_is_missing(tmp_path: Path, where: str) -> None:
    """What readers can see always has its file, and the next call finishes what a dead one began."""

    def kill(here: str) -> None:
        if here == where:
            raise Killed

    with shelf(tmp_path) as s:
        blobs, ledger = s.client.blobs, s.client.ledger
        old = s.publish({"a": "1"})
        s.wait(days=1)
        s.publish({"a": "2"})
        s.wait(days=31)
        ledger.db.fault = kill
        with pytest.raises(Killed):
            publishing.forget(ledger, "job", s.now, lambda blob: published.remove(blobs, blob))
        ledger.db.fault = lambda here: None
        made = publishing.publications(ledger, "job")
        assert all(published.is_there(blobs, p.blob) for p in made if p.kept)
        publishing.forget(ledger, "job", s.now, lambda blob: published.remove(blobs, blob))
        assert not published.is_there(blobs, old.blob)
        assert s.reader(max_age="90d").get("a") is not None


def test_answers_whose_rows_were_removed_are_published_with_a_file_again(tmp_path: Path) -> None:
    """An input that comes back after its publication was forgotten is another publication, whose rows are there."""
    with client_of(tmp_path) as client:
        for texts in (["one"], ["one", "two"], ["one", "two", "three"], ["one"]):
            for _ in range(2):  # the one before is forgotten by the next publication
                client.clock.sleep(31 * 86_400)
                job(client, tmp_path, texts, quality=None, load=None).run()
        made = publishing.publications(client.ledger, "labels")
        assert [p.kept for p in made[:4]] == [False] * 4
        assert made[-1].kept
        assert canwait.reader("labels", as_="me", max_age="1h", client=client).get("k0") is not None
        assert made[-1].blob == made[0].blob


def test_versions_rise_and_the_newest_input_is_what_readers_see(tmp_path: Path, ledger_url: str) -> None:
    """A snapshot that arrives late is recorded, and readers go on seeing the newer one; on both databases."""
    with shelf(tmp_path, ledger_url) as s:
        s.wait(days=10)
        now = s.publish({"a": "now"}, as_of=s.now - HOUR)
        s.wait(minutes=5)
        late = s.publish({"a": "older"}, as_of=s.now - DAY)
        ledger = s.client.ledger
        assert [p.version for p in publishing.publications(ledger, "job")] == [1, 2]
        assert publishing.newest(ledger, "job", s.now) == now
        assert late.produced_at > now.produced_at
        assert (now.effective_until, late.effective_until) == (None, late.produced_at)
        s.wait(minutes=5)
        newer = s.publish({"a": "newer"})
        assert publishing.newest(ledger, "job", s.now) == newer
        assert publishing.publications(ledger, "job")[0].effective_until == newer.produced_at


def test_answers_that_changed_meanwhile_are_not_published(tmp_path: Path) -> None:
    """A load that began before another plan was opened records nothing: its rows are not what the job has now."""
    with shelf(tmp_path) as s:
        s.open(s.now)
        draft = publishing.draft(s.client.ledger, "job", "no gate")
        s.open(s.now)
        blob = s.client.blobs.put(b"rows")
        found = publishing.publish(s.client.ledger, draft, s.job, blob=blob, rows=1, failed=0, models=(), now=s.now)
        assert (found, publishing.newest(s.client.ledger, "job", s.now)) == (None, None)


def test_another_verdict_is_another_publication(tmp_path: Path) -> None:
    """What was judged anew is published anew."""
    with shelf(tmp_path) as s:
        s.publish({"a": "x"})
        assert s.load({"a": "x"}, "accepted, 0/31 rejected").version == 2


# ---------------------------------------------------------------------------------------------------------- what changed


def test_a_plan_says_what_it_changes_and_so_does_the_publication(tmp_path: Path) -> None:
    """Rows unchanged, changed, new and removed against the last publication, and which part changed; reused rows are
    unchanged, and only the others are paid."""
    with desk(tmp_path) as office:
        path = office.write(8, load={"to": "labels.parquet", "mode": "replace"})
        assert "since " not in office.canwait("plan", path).out
        office.run()
        rows = office.folder / "rows.csv"
        head, *lines = rows.read_text("utf-8").splitlines()
        lines = [*lines[2:6], lines[6] + " indeed", "000020,another", "000021,a third"]
        rows.write_text("\n".join([head, *lines]) + "\n", "utf-8")
        said = office.canwait("plan", path, "--json").json
        assert said["since"] == {
            "version": 1, "counts": {"unchanged": 4, "changed": 1, "new": 2, "removed": 3}, "because": ["input v1 -> v2"],
        }  # fmt: skip
        assert said["n_new"] == 3
        assert (
            "since      version 1: 4 unchanged, 1 changed, 2 new, 3 removed   input v1 -> v2"
            in office.canwait("plan", path).out
        )
        said = office.canwait("run", path, "--yes").out
        assert "published version 2: 7 rows; since version 1: 4 unchanged, 1 changed, 2 new, 3 removed   input" in said
        office.write_job("job", prompt="Label: {{ text }}", load={"to": "labels.parquet", "mode": "replace"})
        assert "since      version 2: all rows changed   prompt v1 -> v2" in office.canwait("plan", path).out
        office.run()
        assert "since      version 3: all rows unchanged" in office.canwait("plan", path).out
        with changed(office.folder, office.env), canwait.connect() as client:
            told = [e for e in client.ledger.events(job="labels") if e.kind == "published"]
    assert [e.reason for e in told] == [
        "version 1: 8 rows",
        "version 2: 7 rows; since version 1: 4 unchanged, 1 changed, 2 new, 3 removed   input v1 -> v2",
        "version 3: 7 rows; since version 2: all rows changed   prompt v1 -> v2",
    ]
    assert [e.facts["because"] for e in told] == [[], ["input v1 -> v2"], ["prompt v1 -> v2"]]


@pytest.mark.parametrize("part_rows", [1 << 20, 7])
@given(
    before=st.dictionaries(st.text(max_size=3), st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=40),
    after=st.dictionaries(st.text(max_size=3), st.tuples(st.sampled_from("bcd"), st.integers(0, 3)), max_size=40),
)
def test_changes_are_counted_as_a_dictionary_would(
    part_rows: int, before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]
) -> None:
    """However the rows are parted: by key, a row is unchanged exactly if the same line of the same shard answers it."""
    with tempfile.TemporaryDirectory() as name, patch.object(changes, "_PART_ROWS", part_rows):
        sides = []
        for number, rows in enumerate((before, after)):
            shards = sorted({shard for shard, _ in rows.values()}, reverse=bool(number))
            path = Path(name) / str(number)
            columns = [list(rows), [shards.index(s) for s, _ in rows.values()], [line for _, line in rows.values()]]
            kinds = [pa.string(), pa.int32(), pa.int32()]
            arrays = [pa.array(c, kind) for c, kind in zip(columns, kinds, strict=True)]
            pq.write_table(pa.table(arrays, ["key", "shard", "line"]), path)
            sides.append(changes.Rows(path, shards))
        found = changes.count_changes(sides[0], sides[1], Path(name))
    both = before.keys() & after.keys()
    same = sum(before[key] == after[key] for key in both)
    assert found == changes.Counts(same, len(both) - same, len(after) - len(both), len(before) - len(both))


# -------------------------------------------------------------------------------------------------------------- the file


@given(
    keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), unique=True, max_size=60),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_every_row_is_found_by_its_key(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], sizes: list[int], seed: int
) -> None:
    """Whatever the keys, their order and how they arrive: each is found with its own answer, and no other key is."""
    blobs = Blobs(tmp_path_factory.mktemp("blobs"))
    random.Random(seed).shuffle(keys)
    at = utc("2026-11-01")
    with keeping(blobs, SCHEMA, "fields") as kept:
        start = 0
        for n in [*sizes, len(keys)]:
            rows = {key: f"of {key}" for key in keys[start : start + n]}
            list(kept.passing([batch_of(rows, at)]))
            start += n
    rows_of = PublishedRows(blobs, kept.blob, "id")
    assert rows_of.n_rows == kept.n_rows == len(keys)
    found = {key: rows_of.find(key) for key in keys}
    assert {key: row and row["label"] for key, row in found.items()} == {key: f"of {key}" for key in keys}
    assert rows_of.find("no such key") is None


def test_keys_of_many_row_groups_are_found_and_a_damaged_index_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is sorted in ranges, kept beside the blobs, read by the next process, and made again when it is cut off."""
    monkeypatch.setattr("canwait.published._SORTED_ROWS", 1000)
    blobs, at = Blobs(tmp_path), utc("2026-11-01")
    keys = [f"k{n}" for n in range(10_000)]
    random.Random(1).shuffle(keys)
    with keeping(blobs, SCHEMA, "fields") as kept:
        for start in range(0, len(keys), 3000):
            list(kept.passing([batch_of({k: k[1:] for k in keys[start : start + 3000]}, at)]))
    assert pq.ParquetFile(blobs.path(kept.blob)).metadata.num_row_groups > 2
    first = PublishedRows(blobs, kept.blob, "id")
    assert all((first.find(k) or {})["label"] == k[1:] for k in keys[::97])
    (index,) = (tmp_path / "keys").iterdir()
    assert index.stat().st_size == 12 * len(keys)
    index.write_bytes(index.read_bytes()[:-5])
    assert (PublishedRows(blobs, kept.blob, "id").find("k77") or {})["label"] == "77"
    assert index.stat().st_size == 12 * len(keys)


def test_an_index_is_on_the_disk_before_it_is_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves none or a whole one: its bytes are synced before it gets its name, and the name after."""
    blobs = Blobs(tmp_path)
    with keeping(blobs, SCHEMA, "fields") as kept:
        list(kept.passing([batch_of({"a": "1"}, utc("2026-11-01"))]))
    said: list[str] = []
    sync, replace_ = os.fsync, os.replace

    def synced(handle: int) -> None:
        said.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        sync(handle)

    def replaced(source: Any, target: Any) -> None:
        said.append(f"{Path(source).name} -> {Path(target).parent.name}")
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    assert PublishedRows(blobs, kept.blob, "id").find("a") is not None
    assert said == ["index", "index -> keys", "keys"]


# -------------------------------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [
        ("0 22 * * *", 24), ("*/15 * * * *", 0.25), ("0 2 * * mon-fri", 72), ("0 0 1 * *", 31 * 24), ("0 */6 * * *", 6),
        ("0 0 29 2 *", 2921 * 24), ("0 0 1,15 * mon", 7 * 24), ("30 0-4/2 * * 7", 164), ("0 0 */2 * 1", 21 * 24),
    ],
)  # fmt: skip
def test_the_longest_gap_of_a_schedule(schedule: str, hours: float) -> None:
    """Over weekends, short months, leap years and the century without one; day and weekday as cron has them."""
    assert longest_gap_s(schedule) == hours * 3600


def test_a_schedule_that_never_fires() -> None:
    """30 February has no next time, and no gap."""
    assert (longest_gap_s("0 0 30 2 *"), next_fire("0 0 30 2 *", utc("2026-01-01"))) == (None, None)


@settings(max_examples=30)
@given(
    minute=st.sampled_from(["*", "*/20", "7", "1,31"]),
    hour=st.sampled_from(["*", "*/5", "22", "1-3"]),
    day=st.sampled_from(["*", "13", "1,15"]),
    weekday=st.sampled_from(["*", "fri", "0", "1-5"]),
    hours=st.integers(0, 100_000),
)
def test_no_gap_is_longer_than_the_longest(minute: str, hour: str, day: str, weekday: str, hours: int) -> None:
    """From any moment the next two firings are rising, and at most the longest gap apart."""
    schedule = f"{minute} {hour} {day} * {weekday}"
    start = utc("2020-01-01") + timedelta(hours=hours)
    first = next_fire(schedule, start)
    assert first is not None
    second = next_fire(schedule, first)
    assert second is not None
    assert start < first < second
    assert (second - first).total_seconds() <= (longest_gap_s(schedule) or 0)
