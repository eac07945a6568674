"""The drills that anyone can run: real processes, killed for real, against a simulated provider that keeps the bill."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import canwait
from canwait.db import connect
from canwait.drills import cap, crash, expiry
from canwait.drills.crash import KINDS, Report
from canwait.drills.small import scratch_folder
from canwait.ledger import Ledger


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as path:
        yield path


def nothing_is_broken(report: Report) -> None:
    assert report.broken == Counter(), report.examples


# --------------------------------------------------------------------------------------------------------------- crash


@pytest.mark.slow
def test_a_process_killed_anywhere_loses_nothing_on_sqlite(folder: Path) -> None:
    """SIGKILL at every ledger write and around every effect: 0 paid twice, 0 lost, the bill equal, no batch too many."""
    report = crash.drill_crash(f"sqlite:///{folder}/ledger.db", folder=folder)
    nothing_is_broken(report)
    assert report.n_points > 100
    assert report.n_kills >= report.n_points * 0.9  # a point may be passed by in a run that is faster than the first


@pytest.mark.slow
def test_a_process_killed_anywhere_loses_nothing_on_postgres(folder: Path, postgres_url: str) -> None:
    """The same on PostgreSQL, at a seeded sample of the points."""
    report = crash.drill_crash(postgres_url, folder=folder, sample=25)
    nothing_is_broken(report)
    assert report.n_kills >= 22


def test_the_points_surround_every_write_and_every_effect(folder: Path) -> None:
    """The sweep has a point before and after each ledger write of a run, and around create, find, poll, download and rename."""
    trace = folder / "trace"
    nothing_is_broken(crash._trial(f"sqlite:///{folder}/ledger.db", folder, "job", trace=trace))
    passed = {line.rsplit(" #", 1)[0] for line in trace.read_text().splitlines()}
    writes = "migrate name_ledger open_plan claim begin_submit begin_try sending submitted wait ended fetched settle"
    assert passed >= {f"{when} {write}" for write in writes.split() for when in ("before", "after")}
    assert passed >= {"before create", "after create", "after find", "after poll"}
    assert passed >= {"before results", "amid results", "after results"}
    assert passed >= {"before blob", "after blob", "before adopt", "after adopt"}


def test_a_kill_is_a_kill(folder: Path) -> None:
    """A process told to die at a point dies there of SIGKILL, and the next one ends the job."""
    report = crash._trial(f"sqlite:///{folder}/ledger.db", folder, "job", kill_at="after create #1")
    nothing_is_broken(report)
    assert (report.n_kills, report.n_batches) == (1, crash.N_BATCHES)


def test_the_drill_sees_a_batch_that_was_sent_twice(folder: Path) -> None:
    """The witness is not the ledger: a batch the ledger never heard of shows as rows paid twice and a bill that differs."""
    url = f"sqlite:///{folder}/ledger.db"
    with crash.simulated(folder, crash.BAD_DAY, 1) as (simulator, host):
        orders = crash.orders_for(url, folder, host, "job", crash.SIZES)
        assert crash._wait(orders) == 0
        again = replace(orders, ledger=f"sqlite:///{folder}/other.db")
        assert crash._wait(again) == 0
        report = Report()
        crash.compare(report, url, orders, simulator)
    assert set(report.broken) == {"paid twice", "bill"}
    assert report.broken["paid twice"] == sum(crash.SIZES)


def test_the_drill_sees_a_row_that_was_lost(folder: Path) -> None:
    """A job that was stopped before its end shows as rows lost."""
    url = f"sqlite:///{folder}/ledger.db"
    with crash.simulated(folder, crash.BAD_DAY, 1) as (simulator, host):
        orders = crash.orders_for(url, folder, host, "job", crash.SIZES, most_s=0.0)
        assert crash._wait(orders) == 9
        report = Report()
        crash.compare(report, url, orders, simulator)
    assert report.broken["lost"] == sum(crash.SIZES)


@pytest.mark.slow
def test_eight_processes_advance_one_ledger(folder: Path, postgres_url: str) -> None:
    """Eight processes on one job, some of them killed, against a provider that fails in every way: 0 / 0 / 0."""
    report = crash.drill_race(postgres_url, folder=folder)
    nothing_is_broken(report)
    assert report.n_kills == 4
    ledger = Ledger(connect(postgres_url))
    assert [event.seq for event in ledger.events(count=100_000)] == sorted(e.seq for e in ledger.events(count=100_000))
    ledger.close()


@pytest.mark.slow
def test_eight_processes_advance_one_file(folder: Path) -> None:
    """The same on one SQLite file."""
    nothing_is_broken(crash.drill_race(f"sqlite:///{folder}/ledger.db", folder=folder, seed=1))


# --------------------------------------------------------------------------------------------------------- cap, expiry


def published(result: dict[str, Any]) -> dict[str, Any]:
    """A drill's result as the command line prints it, checked against its published schema."""
    schema = json.loads((Path(canwait.__file__).parent / "schemas" / "drill.v1.json").read_text("utf-8"))
    jsonschema.validate(json.loads(json.dumps({"schema": "canwait.drill/1", "simulated": False, **result})), schema)
    return result


def test_the_cap_drill_reports_what_it_did() -> None:
    """`drill cap` says how many histories it ran and how often each promise was broken, and the seed decides them."""
    result = published(cap.run(20, seed=5))
    assert result["ok"]
    assert result["counts"]["histories"] == 20
    again = cap.run(20, seed=5)
    assert again["counts"] == result["counts"]
    assert cap.run(20, seed=6)["counts"] != result["counts"]


def test_the_expiry_drill_keeps_finished_rows() -> None:
    """`drill expiry`: two batches expire in part, every row is answered once, only unfinished rows are sent again."""
    result = published(expiry.run())
    assert result["ok"], result
    assert (result["counts"]["rows"], result["counts"]["batches"]) == (24, 5)


def test_a_drill_that_finds_something_is_not_ok() -> None:
    """One broken promise of any kind makes the result fail, counted under its name with an example."""
    for kind in KINDS:
        report = Report()
        report.fault(kind, "a row")
        result = published(report.result("crash", "words"))
        assert not result["ok"]
        assert result["counts"][kind.replace(" ", "_")] == 1
        assert result["examples"] == [f"{kind}: a row"]


def test_the_witness_counts_bodies_as_they_were_sent(folder: Path) -> None:
    """The simulator's count of executed requests is by the very bytes of the drill's rows, so that it cannot miss one."""
    with crash.simulated(folder, crash.BAD_DAY, 1) as (simulator, host):
        orders = crash.orders_for(f"sqlite:///{folder}/l.db", folder, host, "job", crash.SIZES)
        assert crash._wait(orders) == 0
        bodies = [body for shard in orders.shards for body in shard]
        assert dict(simulator.executed()) == {hashlib.sha256(body).hexdigest(): 1 for body in bodies}
