"""A reader gets an answer no older than it accepts, or is told so by type; what it read is recorded, never what stood there."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import BaseModel

import canwait
from canwait import errors, publishing
from canwait.drills.histories import VirtualClock
from canwait.freshness import Blocked, Contract, Fresh, Live, NeverBuilt, OnStale, Publication, Stale
from canwait.providers.fake import Temper
from canwait.types import Limits
from gated import Model, client_of, job, right
from prompted import adopted
from shelf import Shelf, shelf
from simulated import changed, desk

HOUR = timedelta(hours=1)


class Label(BaseModel):
    label: Literal["billing", "bug", "account"]
    urgency: int


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Shelf]:
    with shelf(tmp_path) as made:
        yield made


# ------------------------------------------------------------------------------------------------------- what is served


def test_a_row_says_how_old_it_is_and_what_it_passed(books: Shelf) -> None:
    """Value, age since the input was read, version and verdict; None for a key that is not there."""
    books.publish({"a": "bug", "b": "billing"}, as_of=books.now - HOUR)
    with books.reader(max_age="24h") as labels:
        hit = labels.get("a")
        assert hit is not None
        assert (hit.key, hit.value, hit.age, hit.stale) == ("a", {"label": "bug"}, HOUR, False)
        assert (hit.version, hit.gate, hit.model) == (1, "no gate", "m-1")
        assert labels.get("c") is None
        assert labels.age == HOUR
        assert labels.publication == publishing.newest(books.client.ledger, "job", books.now)
        assert [h.key for h in labels.rows()] == ["a", "b"]


def test_past_the_contract_it_is_served_or_blocked_as_the_reader_said(books: Shelf) -> None:
    """`serve` says it is stale; `block` raises with the age, the version and exit code 8, and reads nothing."""
    books.publish({"a": "bug"})
    books.wait(hours=25)
    serving, blocking = books.reader("s", max_age="24h", on_stale="serve"), books.reader("b", max_age="24h")
    hit = serving.get("a")
    assert hit is not None
    assert (hit.stale, hit.age) == (True, 25 * HOUR)
    assert isinstance(serving.outcome, Stale)
    for read in (lambda: blocking.get("a"), blocking.frame, lambda: list(blocking.batches())):
        with pytest.raises(errors.StaleResult, match=r"25 h old.* b accepts 24 h") as caught:
            read()
    assert (caught.value.exit_code, caught.value.fields["version"]) == (8, 1)
    assert isinstance(caught.value.fields["outcome"], Blocked)
    blocking.close()
    assert books.client.ledger.query("readings", job="job", reader="b", count=9) == []


def test_exactly_the_accepted_age_is_fresh_and_a_microsecond_more_is_not(books: Shelf) -> None:
    """The bound is inclusive, and nothing is rounded."""
    books.publish({"a": "bug"})
    labels = books.reader(max_age="24h")
    books.wait(hours=24)
    assert isinstance(labels.outcome, Fresh)
    books.wait(microseconds=1)
    assert isinstance(labels.outcome, Blocked)


def test_nothing_accepted_yet_is_a_type_of_its_own(books: Shelf) -> None:
    """Before the first publication the outcome is NeverBuilt, and reading raises NotBuilt with exit code 8."""
    labels = books.reader(max_age="1h", on_stale="serve")
    assert isinstance(labels.outcome, NeverBuilt)
    assert (labels.age, labels.publication) == (None, None)
    with pytest.raises(errors.NotBuilt) as caught:
        labels.get("a")
    assert caught.value.exit_code == 8


def test_the_next_publication_is_read_without_opening_again(books: Shelf) -> None:
    """A reader that is open sees every publication as soon as it is recorded."""
    books.publish({"a": "bug"})
    labels = books.reader(max_age="24h")
    assert labels.get("a") is not None
    books.wait(hours=1)
    books.publish({"a": "billing"})
    hit = labels.get("a")
    assert hit is not None
    assert (hit.value, hit.version, hit.age) == ({"label": "billing"}, 2, timedelta(0))


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        (None, pa.Table), ("pandas", pd.DataFrame), (pd, pd.DataFrame), ("polars", pl.DataFrame), (pl, pl.DataFrame),
    ],
)  # fmt: skip
def test_whole_frames_in_the_readers_own_library(books: Shelf, kind: Any, type_: type) -> None:
    """pyarrow, pandas and polars, by name or by module, straight from the file."""
    books.publish({"a": "bug", "b": "billing"})
    frame = books.reader(max_age="24h").frame(kind)
    assert isinstance(frame, type_)
    assert len(frame) == 2


_DUCK = """
import sys
import duckdb
import canwait
with canwait.connect(sys.argv[1], env={"CANWAIT_HOME": sys.argv[2]}) as client:
    labels = canwait.reader("job", as_="duck", max_age="87600h", client=client)
    print([relation.select("id", "label").fetchall() for relation in (labels.frame(duckdb), labels.frame("duckdb"))])
"""


def test_duckdb_gets_a_relation(books: Shelf) -> None:
    """In a process of its own, for DuckDB's binding complains when the tests' process ends."""
    books.publish({"a": "bug", "b": "billing"})
    command = [sys.executable, "-c", _DUCK, books.url, str(books.folder / "home")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.stdout.strip() == str([[("a", "bug"), ("b", "billing")]] * 2), said.stderr


def test_an_unknown_kind_of_frame_is_refused(books: Shelf) -> None:
    """Before anything is read."""
    with pytest.raises(errors.SpecError, match="expected pyarrow, pandas, polars, duckdb"):
        books.reader(max_age="24h").frame("spark")


def test_readers_of_real_answers_get_their_model(tmp_path: Path) -> None:
    """From a job file through the simulator to a pydantic model; a text answer is text, an embedding its numbers."""
    with desk(tmp_path) as office:
        office.write(6)
        office.write_job("texts", output=None, load="texts.parquet")
        office.write_job(
            "vectors", endpoint="embeddings", model="openai/text-embedding-3-small", output=None, max_output_tokens=None,
            load="vectors.parquet",
        )  # fmt: skip
        for name in ("job", "texts", "vectors"):
            assert office.run(f"{name}.yaml").code == 0
        with changed(office.folder, office.env):
            with canwait.reader("labels", as_="me", max_age="1h", output=Label) as labels:
                hit = labels.get("000001")
                assert hit is not None
                assert isinstance(hit.value, Label)
                assert hit.model.startswith("gpt-6-luna")
            with canwait.reader("texts", as_="me", max_age="1h") as texts:
                hit = texts.get("000001")
                assert hit is not None
                assert isinstance(hit.value, str)
            with canwait.reader("vectors", as_="me", max_age="1h") as vectors:
                hit = vectors.get("000001")
                assert hit is not None
                assert {type(number) for number in hit.value} == {float}


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"max_age": "1h", "on_stale": "live"}, "are stated together"),
        ({"max_age": "1h", "on_stale": "maybe"}, "expected serve, block, refresh or live"),
        ({"max_age": "1h", "on_stale": "refresh"}, "are stated together"),
        ({"max_age": "1h", "refresh": "job.yaml"}, "are stated together"),
        ({"max_age": "soon"}, "max_age"),
        ({"max_age": ""}, "max_age"),
        ({"max_age": timedelta(0)}, "more than nothing"),
        ({"max_age": timedelta(days=-1)}, "more than nothing and at most 3650d"),
        ({"max_age": timedelta(days=3651)}, "at most 3650d"),
        ({"max_age": "3651d"}, "at most 3650d"),
        ({"max_age": 24}, "max_age"),
        ({"max_age": "1h", "missed_runs": 1001}, "from 0 to 1000"),
        ({"max_age": "1h", "missed_runs": -1}, "from 0 to 1000 missed runs"),
    ],
)
def test_terms_that_mean_nothing_are_refused(books: Shelf, terms: dict[str, Any], says: str) -> None:
    """With what was found and what to say instead; nothing is declared."""
    with pytest.raises(errors.SpecError, match=says):
        books.reader(**terms)
    assert books.client.ledger.query("contracts", job="") == []


@pytest.mark.parametrize(
    ("revised", "gets"), [("block", Blocked), ("live", Blocked), ("serve", Stale), ("refresh", Stale)]
)
def test_a_revision_to_block_counts_though_the_code_says_serve(books: Shelf, revised: Any, gets: type) -> None:
    """What is done past the age is a term like the age: the stricter of the two counts, at once, in a reader that is open."""
    books.publish({"a": "bug"})
    serving, blocking = books.reader("s", max_age="1h", on_stale="serve"), books.reader("b", max_age="1h")
    books.wait(hours=2)
    assert isinstance(serving.outcome, Stale)
    for name in ("s", "b"):
        contract = Contract("job", name, 3600, revised)
        publishing.revise(books.client.ledger, contract, "ada", books.now)
    assert type(serving.outcome) is gets
    assert isinstance(blocking.outcome, Blocked)


def test_without_terms_a_reader_has_those_that_were_stated(books: Shelf) -> None:
    """Its age, and what is done past it; what code says beside counts where it is stricter. `live` needs to know how."""
    books.publish({"a": "bug"})
    books.wait(hours=2)
    ledger = books.client.ledger
    publishing.declare(ledger, Contract("job", "dash", 3600, "serve"), "ada", books.now)
    assert books.reader().contract == Contract("job", "dash", 3600, "serve")
    assert isinstance(books.reader().outcome, Stale)
    assert isinstance(books.reader(on_stale="block").outcome, Blocked)
    publishing.declare(ledger, Contract("job", "quick", 3600, "live"), "ada", books.now)
    with pytest.raises(errors.SpecError, match="live_budget_usd"):
        books.reader("quick")
    publishing.declare(ledger, Contract("job", "again", 3600, "refresh"), "ada", books.now)
    assert isinstance(books.reader("again").outcome, Stale)
    told: list[object] = []
    assert books.reader("again", refresh=told.append).get("a") is not None
    assert [type(outcome) for outcome in told] == [Stale]


# ------------------------------------------------------------------------------------------------------- what is recorded


def test_reads_are_recorded_without_what_stood_there(books: Shelf) -> None:
    """Who, when, which version, how many and how old; one record a frame, and one for many rows by key."""
    secret = "a-secret-answer"
    books.publish({"secret-key": secret})
    books.wait(hours=30)
    with books.reader("dash/support", max_age="24h", on_stale="serve") as labels:
        for _ in range(5):
            labels.get("secret-key")
        labels.get("not there")
        labels.frame()
    counted, frame = reversed(books.client.ledger.query("readings", job="job", reader="dash/support", count=9))
    assert (counted["n_reads"], counted["n_rows"], counted["n_stale"], counted["version"]) == (6, 5, 6, 1)
    assert (frame["n_reads"], frame["n_rows"], frame["age_us"]) == (1, 1, 30 * 3600 * 10**6)
    ledger = Path(books.url.removeprefix("sqlite:///"))
    stored = b"".join(path.read_bytes() for path in ledger.parent.glob("ledger.db*"))
    assert b"dash/support" in stored
    assert b"secret-key" not in stored
    assert secret.encode() not in stored


def test_reads_by_key_are_recorded_in_groups(books: Shelf) -> None:
    """A thousand of them, or those of a minute, are one row of the ledger; none is lost when the reader is closed."""
    books.publish({"a": "bug"})
    labels = books.reader(max_age="24h")

    def recorded() -> list[int]:
        return [
            r["n_reads"] for r in reversed(books.client.ledger.query("readings", job="job", reader="dash", count=99))
        ]

    for _ in range(1999):
        labels.get("a")
    assert recorded() == [1000]
    books.wait(minutes=1)
    labels.get("a")
    assert recorded() == [1000, 1000]
    labels.get("a")
    labels.close()
    assert recorded() == [1000, 1000, 1]


def failing(books: Shelf, *transactions: str) -> None:
    """From now on these cannot be committed."""

    def fault(where: str) -> None:
        if where.removeprefix("before ") in transactions:
            raise errors.LedgerError("the disk is full")

    books.client.ledger.db.fault = fault


def test_a_ledger_that_cannot_be_written_stops_no_read_and_loses_none(
    books: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads go on, of one version and of the next; it is said once; when it can be written again every read is counted."""
    books.publish({"a": "bug"})
    with books.reader(max_age="24h") as labels:
        failing(books, "record")
        for _ in range(2100):
            assert labels.get("a") is not None
        books.wait(minutes=5)
        assert labels.frame() is not None
        assert labels.get("a") is not None
        books.publish({"a": "billing"})
        assert labels.get("a") is not None
        assert [r.message.partition(":")[0] for r in caplog.records] == [
            "reads of job by dash could not be recorded, and are kept till they can"
        ]
        failing(books)
        books.wait(minutes=1)
        assert labels.get("a") is not None
    found = books.client.ledger.query("readings", job="job", reader="dash", count=99)
    assert {r["version"]: sum(r2["n_reads"] for r2 in found if r2["version"] == r["version"]) for r in found} == {
        1: 2102, 2: 2,
    }  # fmt: skip


def test_a_lone_read_is_recorded_though_no_other_comes(books: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its minute, without another read and without the reader being closed; also if the first try failed."""
    monkeypatch.setattr("canwait.reading._APART", timedelta(milliseconds=20))
    books.publish({"a": "bug"})
    failing(books, "record")
    labels = books.reader(max_age="24h")
    labels.get("a")
    books.wait(seconds=1)
    failing(books)
    for _ in range(500):
        if books.client.ledger.query("readings", job="job", reader="dash", count=9):
            break
        time.sleep(0.01)
    assert [r["n_reads"] for r in books.client.ledger.query("readings", job="job", reader="dash", count=9)] == [1]


def test_a_closed_reader_leaves_no_timer(books: Shelf) -> None:
    """What waits to be recorded is, and nothing of it runs on."""
    books.publish({"a": "bug"})
    with books.reader(max_age="24h") as labels:
        labels.get("a")
        assert sum(isinstance(t, threading.Timer) for t in threading.enumerate()) == 1
    for t in threading.enumerate():
        if isinstance(t, threading.Timer):
            t.join(5)
    assert sum(isinstance(t, threading.Timer) for t in threading.enumerate()) == 0


def test_threads_share_a_reader(books: Shelf) -> None:
    """Every read gets its own row and is counted once."""
    rows = {f"k{n}": f"v{n}" for n in range(50)}
    books.publish(rows)
    wrong: list[str] = []
    with books.reader(max_age="24h") as labels:

        def read() -> None:
            for key, label in rows.items():
                hit = labels.get(key)
                if hit is None or hit.value != {"label": label}:
                    wrong.append(key)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    found = books.client.ledger.query("readings", job="job", reader="dash", count=99)
    assert sum(r["n_reads"] for r in found) == 200


# ------------------------------------------------------------------------------------------------------------- refreshing


def test_one_reader_is_told_to_refresh_and_all_are_served(books: Shelf, tmp_path: Path) -> None:
    """While one makes the next the others serve the stale one; when its lease has ended, the next reader is told."""
    told: list[str] = []
    books.publish({"a": "bug"})
    first = books.reader("first", max_age="1h", on_stale="refresh", refresh=lambda _: told.append("first"))
    second = books.reader("second", max_age="1h", on_stale="refresh", refresh=lambda _: told.append("second"))
    assert [r.get("a") is not None for r in (first, second)] == [True, True]
    assert told == []
    books.wait(hours=2)
    for labels in (first, second, first):
        hit = labels.get("a")
        assert hit is not None
        assert hit.stale
    assert told == ["first"]
    books.wait(minutes=11)
    assert second.get("a") is not None
    assert told == ["first", "second"]


def test_a_refresh_that_raises_gives_the_turn_back(books: Shelf) -> None:
    """The caller sees what went wrong, and the next reader is asked at once."""

    def fails(_: object) -> None:
        raise RuntimeError("the queue is down")

    told: list[object] = []
    books.publish({"a": "bug"})
    books.wait(hours=2)
    with pytest.raises(RuntimeError, match="queue"):
        books.reader("first", max_age="1h", on_stale="refresh", refresh=fails).get("a")
    books.reader("second", max_age="1h", on_stale="refresh", refresh=told.append).get("a")
    assert [type(outcome) for outcome in told] == [Stale]


def test_a_refresh_that_cannot_be_asked_for_stops_no_read(books: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """The stale answer is served, it is said once, and the next reader asks when it can."""
    told: list[object] = []
    books.publish({"a": "bug"})
    books.wait(hours=2)
    labels = books.reader(max_age="1h", on_stale="refresh", refresh=told.append)
    failing(books, "begin_refresh")
    assert [labels.get("a") is not None for _ in range(3)] == [True] * 3
    assert [r.message for r in caplog.records] == ["refreshing job could not be asked for: the disk is full"]
    failing(books)
    labels.get("a")
    assert len(told) == 1


def test_what_a_person_had_blocked_is_refreshed_all_the_same(books: Shelf) -> None:
    """A reader that would have it made again has it made, though it is not served meanwhile."""
    told: list[object] = []
    books.publish({"a": "bug"})
    labels = books.reader(max_age="1h", on_stale="refresh", refresh=told.append)
    publishing.revise(books.client.ledger, Contract("job", "dash", 3600, "block"), "ada", books.now)
    books.wait(hours=2)
    with pytest.raises(errors.StaleResult):
        labels.get("a")
    assert [type(outcome) for outcome in told] == [Blocked]


def test_nothing_built_yet_is_built_by_the_first_reader(books: Shelf) -> None:
    """The first reader of a job that never ran is told, too."""
    told: list[object] = []
    labels = books.reader(max_age="1h", on_stale="refresh", refresh=told.append)
    for _ in range(2):
        with pytest.raises(errors.NotBuilt):
            labels.get("a")
    assert [type(outcome) for outcome in told] == [NeverBuilt]


@contextmanager
def refreshed_by(file: str, folder: Path) -> Iterator[tuple[Any, canwait.Client]]:
    """A reader for whom everything is stale, of a job that has run; it is refreshed by that job file."""
    with desk(folder) as office:
        office.write(6)
        assert office.run().code == 0
        with changed(office.folder, office.env), canwait.connect() as client:
            moment = timedelta(microseconds=1)
            labels = canwait.reader("labels", as_="me", max_age=moment, on_stale="refresh", refresh=file, client=client)
            yield labels, client


def test_a_job_is_run_in_the_background_and_its_publication_is_read(tmp_path: Path) -> None:
    """With a job file, the first stale read starts the job within its budget; the stale answer is served meanwhile."""
    with refreshed_by("job.yaml", tmp_path) as (labels, client):
        hit = labels.get("000001")
        assert hit is not None
        assert (hit.stale, hit.version) == (True, 1)
        (work,) = [t for t in threading.enumerate() if t.name == "refresh labels"]
        work.join()
        newest = labels.publication
        assert newest is not None
        assert newest.version == 2
        assert client.ledger.query("refreshing", job="labels", now=0) == []


def test_a_job_that_cannot_be_refreshed_is_not_tried_all_the_time(tmp_path: Path) -> None:
    """What went wrong stands in the journal, the lease stays, and readers are served what there is."""
    with refreshed_by("gone.yaml", tmp_path) as (labels, client):
        for _ in range(3):
            hit = labels.get("000001")
            assert hit is not None
            assert hit.stale
            for work in [t for t in threading.enumerate() if t.name == "refresh labels"]:
                work.join()
        failed = [e for e in client.ledger.events(job="labels") if e.kind == "refresh_failed"]
        assert ["no such job file" in e.reason for e in failed] == [True]


class Broken(Model):
    """An adapter with a mistake in it."""

    def limits(self, model: str) -> Limits:
        raise TypeError("a mistake")


def test_a_refresh_that_breaks_is_an_event(tmp_path: Path) -> None:
    """Also where it is no error of canwait's: what went wrong in the background stands in the journal, and reads go on."""
    with client_of(tmp_path) as client:
        work = job(client, tmp_path, ["one"], quality=None)
        work.run()
        client.clock.sleep(7200)
        client.adopt(Broken(VirtualClock(), right))
        labels = canwait.reader("labels", as_="me", max_age="1h", on_stale="refresh", refresh=work.value, client=client)
        for _ in range(2):
            assert labels.get("k0") is not None
            for thread in [t for t in threading.enumerate() if t.name == "refresh labels"]:
                thread.join()
        failed = [e.reason for e in client.ledger.events(job="labels") if e.kind == "refresh_failed"]
    assert failed == ["TypeError: a mistake"]


_ASK = """
import sys
from datetime import datetime, timedelta, UTC
from canwait import publishing
from canwait.db import connect
from canwait.ledger import Ledger
url, holder = sys.argv[1:]
ledger = Ledger(connect(url))
print("ready", flush=True)
sys.stdin.readline()
won = [publishing.begin_refresh(ledger, f"job {n}", holder, 600, datetime.now(UTC)) for n in range(50)]
print(sum(w << n for n, w in enumerate(won)), flush=True)
"""


def test_two_processes_refresh_once(ledger_url: str) -> None:
    """Of two processes that find fifty sets stale at the same moment exactly one refreshes each; on both databases."""
    canwait.connect(ledger_url, env={"CANWAIT_HOME": "unused"}).close()
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", _ASK, ledger_url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    for process in asking:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    one, two = (int(process.communicate()[0]) for process in asking)
    assert (one & two, one | two) == (0, (1 << 50) - 1)


# ------------------------------------------------------------------------------------------------------- over all of time


@dataclass
class Made:
    """What the machine knows of a publication: truly, and by its writer's clock."""

    version: int
    as_of: datetime  # by that clock
    read: datetime  # in truth
    until: datetime | None = None


class Reading(RuleBasedStateMachine):
    """Publications of any input in any order, by writers whose clocks are right or wrong, inputs that are found changed,
    rows that change, a provider that is down and up again, revisions, new terms and reads, while time passes."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.books = Shelf(Path(self.folder.name), f"sqlite:///{self.folder.name}/ledger.db")
        self.prompt = adopted(self.books.client, right, "openai/standard")
        self.rows: list[tuple[datetime, str]] = []  # as the source has the one row, since when
        self.gives_row = True
        self.change_the_row(0)
        self.made: list[Made] = []
        self.code: dict[str, Contract] = {}  # by reader: what its code accepts
        self.declared: dict[str, Contract] = {}
        self.stated: dict[str, Contract] = {}  # what counts in the ledger
        self.open: dict[str, Any] = {}

    def reader(self, name: str, stale: OnStale, **terms: Any) -> Any:
        if stale == "live":
            terms |= {"live": self.books.job, "live_budget_usd": 1, "live_within": "2s"}
        return self.books.reader(name, **terms)

    @rule(n=st.integers(1, 3))
    def change_the_row(self, n: int) -> None:
        self.books.wait(microseconds=1)  # what was read before is no later than this
        self.rows.append((self.books.now, f"row {n}"))
        (self.books.folder / "rows.csv").write_text(f"id,text\nrow,row {n}\n", "utf-8")

    @rule(gives_row=st.booleans())
    def give_the_row_or_have_it_looked_up(self, gives_row: bool) -> None:
        self.gives_row = gives_row

    @rule(is_down=st.booleans())
    def take_the_provider_down(self, is_down: bool) -> None:
        self.prompt.temper = Temper(unreachable=float(is_down))

    def seen(self, now: datetime) -> Made | None:
        """The one of the latest input, of those that may be dated so; or what was made after it and may not."""
        right = [m for m in self.made if not self.is_wrong(m, now)]
        best = max(right, key=lambda m: (m.as_of, m.version), default=None)
        wrong = [
            m for m in self.made
            if self.is_wrong(m, now) and (best is None or (m.version > best.version and m.as_of >= best.as_of))
        ]  # fmt: skip
        return wrong[-1] if wrong else best

    def is_wrong(self, m: Made, now: datetime) -> bool:
        return m.as_of - min(now, m.until or now) > timedelta(minutes=1)

    def publish(self, as_of: datetime, read: datetime, load: Callable[[], Publication]) -> None:
        now = self.books.now
        before = self.seen(now)
        made = load()
        if made.version > len(self.made):
            self.made.append(Made(made.version, as_of, read))
            for m in (before, self.made[-1]):
                if m is not None and m is not self.seen(now) and m.until is None:
                    m.until = now

    def opened(self, as_of: datetime, *, other: bool) -> None:
        """An input was read, which is another than the one that was published last, or the same."""
        last = self.seen(self.books.now)
        if last is None or last.until is not None:
            return
        if self.is_wrong(last, self.books.now):
            last.until = self.books.now
        elif other and as_of > last.as_of:
            last.until = as_of

    @rule(hours=st.integers(0, 30), micros=st.integers(0, 2))
    def pass_time(self, hours: int, micros: int) -> None:
        self.books.wait(hours=hours, microseconds=micros)

    @rule(age_h=st.integers(0, 60), ahead=st.sampled_from([timedelta(0), timedelta(seconds=30), 5 * HOUR, 40 * HOUR]))
    def publish_another(self, age_h: int, ahead: timedelta) -> None:
        now = self.books.now
        self.books.clock.at = now + ahead
        as_of = now - age_h * HOUR + ahead
        self.opened(as_of, other=True)
        self.books.open(as_of)
        row = {"row": f"{len(self.made) + 1}"}
        self.publish(as_of, now - age_h * HOUR, lambda: self.books.load(row))
        self.books.clock.at = now

    @precondition(lambda self: self.made)
    @rule()
    def read_the_input_again(self) -> None:
        now = self.books.now
        last = self.seen(now)
        self.opened(now, other=last is None or last.version < self.made[-1].version)
        self.books.see(now)
        self.publish(now, now, lambda: self.books.load({"row": "the same"}))

    @rule()
    def find_it_changed(self) -> None:
        self.opened(self.books.now, other=True)
        self.books.open(self.books.now)

    @rule(
        name=st.sampled_from(["one", "two"]), hours=st.sampled_from([1, 24, 48]),
        stale=st.sampled_from(["serve", "block", "live"]),
    )  # fmt: skip
    def declare(self, name: str, hours: int, stale: OnStale) -> None:
        self.open[name] = self.reader(name, stale, max_age=f"{hours}h", on_stale=stale)
        self.code[name] = Contract("job", name, hours * 3600, stale)
        if self.declared.get(name) != self.code[name]:  # saying the same again leaves a revision as it is
            self.declared[name] = self.stated[name] = self.code[name]

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(), hours=st.sampled_from([1, 24, 72]), stale=st.sampled_from(["serve", "block", "refresh", "live"])
    )
    def revise(self, data: st.DataObject, hours: int, stale: OnStale) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.stated[name] = Contract("job", name, hours * 3600, stale)
        publishing.revise(self.books.client.ledger, self.stated[name], "a person", self.books.now)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def take_what_is_stated(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.open[name] = self.reader(name, self.stated[name].on_stale)
        self.code[name] = self.stated[name]

    def kind(self, name: str) -> type:
        """What this reader gets past its contract."""
        terms = {self.code[name].on_stale, self.stated[name].on_stale}
        if "block" in terms:
            return Blocked
        if self.code[name].on_stale == "live":
            return Live
        return Blocked if "live" in terms else Stale

    @invariant()
    def nothing_older_than_its_contract_is_fresh(self) -> None:
        for name, labels in self.open.items():
            now = self.books.now  # asking live takes time
            limit = timedelta(seconds=min(self.code[name].max_age_s, self.stated[name].max_age_s))
            outcome, seen, kind = labels.outcome, self.seen(now), self.kind(name)
            if seen is None:
                assert type(outcome) is (Live if kind is Live else NeverBuilt)
            else:
                age = now - seen.as_of
                fresh = age <= limit and not self.is_wrong(seen, now)
                assert type(outcome) is (Fresh if fresh else kind)
                assert outcome.publication.version == seen.version
                assert outcome.publication.effective_until == seen.until
                if fresh and seen.as_of == seen.read:
                    assert now - seen.read <= limit
            try:
                hit = labels.get("row", {"text": self.rows[-1][1]} if self.gives_row else None)
            except errors.NotBuilt:
                assert isinstance(outcome, NeverBuilt)
                continue
            except errors.StaleResult:
                assert isinstance(outcome, Blocked) or (isinstance(outcome, Live) and self.prompt.temper.unreachable)
                continue
            if isinstance(outcome, Live):
                assert (hit.live, hit.stale, hit.version) == (True, False, None)
                assert timedelta(0) <= hit.age <= limit
                read_at = self.books.now - hit.age
                stood = [text for since, text in self.rows if since <= read_at][-1]
                assert json.loads(hit.value)["why"] == f"Classify: {stood}"
                continue
            assert isinstance(outcome, Fresh | Stale)
            assert seen is not None
            assert outcome.age == age
            assert (hit.live, hit.stale, hit.age, hit.version) == (False, not fresh, age, seen.version)
            assert hit.effective_until == seen.until

    def teardown(self) -> None:
        if hasattr(self, "books"):
            self.books.client.close()
            self.folder.cleanup()


Reading.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
test_no_read_older_than_its_contract_is_fresh = Reading.TestCase


# --------------------------------------------------------------------------------------------------------- the command


def test_reading_on_the_command_line(tmp_path: Path) -> None:
    """Rows as JSON lines, all or by key; a missing key ends with 2, a contract that is broken with 8 and no row."""
    with desk(tmp_path) as office:
        office.write(6)
        assert office.canwait("read", "labels", "--as", "me", "--max-age", "1h").code == 8
        assert office.run().code == 0
        said = office.canwait("read", "job.yaml", "--as", "me", "--max-age", "1h")
        rows = [json.loads(line) for line in said.out.splitlines()]
        assert (said.code, [r["key"] for r in rows]) == (0, [f"{n:06d}" for n in range(6)])
        assert {(r["stale"], r["version"], r["gate"]) for r in rows} == {(False, 1, "no gate")}
        said = office.canwait("read", "labels", "000003", "nope", "--as", "me")
        assert (said.code, json.loads(said.out)["key"]) == (2, "000003")
        said = office.canwait("read", "labels", "--as", "me", "--max-age", "1s", "--on-stale", "serve")
        blocked = office.canwait("read", "labels", "--as", "strict", "--max-age", "1s", "--json")
        if blocked.code == 0:  # within a second of the run
            time.sleep(1)
            blocked = office.canwait("read", "labels", "--as", "strict", "--json")
        assert (blocked.code, blocked.out, blocked.problem["code"]) == (8, "", "stale")
