"""A load is a publication: recorded once, after its rows are on the disk, and never taken back by an older snapshot."""

from __future__ import annotations

import json
import random
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import canwait
from canwait import changes, errors, publishing
from canwait.blobs import Blobs
from canwait.cron import longest_gap_s, next_fire
from canwait.published import PublishedRows, keeping
from canwait.simulator import schema_answer
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
        assert again == first
        assert (second.version, second.cost_micros, second.blob) == (2, 0, first.blob)
        assert second.source_as_of > first.source_as_of
        assert second.components == first.components


def test_rows_that_were_lost_are_kept_again_by_the_next_load(tmp_path: Path) -> None:
    """A publication whose file is gone says so to its readers, and loading the job again brings the same file back."""
    with desk(tmp_path) as office:
        office.write(6)
        office.run()
        with changed(office.folder, office.env), canwait.connect() as client:
            made = publishing.newest(client.ledger, "labels")
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


# ----------------------------------------------------------------------------------------------------------- the ledger


def test_versions_rise_and_the_newest_input_is_what_readers_see(tmp_path: Path, ledger_url: str) -> None:
    """A snapshot that arrives late is recorded, and readers go on seeing the newer one; on both databases."""
    with shelf(tmp_path, ledger_url) as s:
        s.wait(days=10)
        now = s.publish({"a": "now"}, as_of=s.now - HOUR)
        s.wait(minutes=5)
        late = s.publish({"a": "older"}, as_of=s.now - DAY)
        ledger = s.client.ledger
        assert [p.version for p in publishing.publications(ledger, "job")] == [1, 2]
        assert publishing.newest(ledger, "job") == now
        assert late.produced_at > now.produced_at
        s.wait(minutes=5)
        newer = s.publish({"a": "newer"})
        assert publishing.newest(ledger, "job") == newer


def test_answers_that_changed_meanwhile_are_not_published(tmp_path: Path) -> None:
    """A load that began before another plan was opened records nothing: its rows are not what the job has now."""
    with shelf(tmp_path) as s:
        s.open(s.now)
        draft = publishing.draft(s.client.ledger, "job", "no gate")
        s.open(s.now)
        blob = s.client.blobs.put(b"rows")
        found = publishing.publish(s.client.ledger, draft, s.job, blob=blob, rows=1, failed=0, models=(), now=s.now)
        assert (found, publishing.newest(s.client.ledger, "job")) == (None, None)


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
