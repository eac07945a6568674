"""A job goes on from the plan it was sent by, without reading its rows, for as long as that plan is what would run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import canwait
from canwait import errors, resume
from canwait.client import Client, JobHandle
from canwait.clock import SystemClock
from simulated import Desk, desk


class Later(SystemClock):
    """The time an hour from now, when no file of these tests was changed a moment ago."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


@dataclass
class Watch:
    """What this process did while it was watched."""

    opened: list[str] = field(default_factory=list)  # files, by name
    scratches: int = 0  # folders that planning writes in

    def read(self, name: str = "rows.csv") -> bool:
        return name in self.opened

    @property
    def planned(self) -> bool:
        return self.scratches > 0


_watching: list[Watch] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    for watch in _watching:
        if event == "open" and isinstance(args[0], str | os.PathLike):
            watch.opened.append(Path(args[0]).name)
        watch.scratches += event == "tempfile.mkdtemp"


sys.addaudithook(_hear)


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """A provider that takes some seconds over a batch."""
    with desk(tmp_path, speed=600) as d:
        yield d


def connected(office: Desk, clock: SystemClock | None = None, **env: str) -> Client:
    return canwait.connect(
        f"sqlite:///{office.folder}/.canwait/ledger.db", env=office.env | env, clock=clock or Later()
    )


def begun(office: Desk, clock: SystemClock | None = None, **fields: Any) -> Path:
    """A job of four rows whose batch is on its way; nobody is running it."""
    path = office.write(4, **fields)
    with connected(office, clock) as client:
        job = client.job(path)
        job.open()
        client.engine.tick(job.name)
        assert (job.figures().pending, job.figures().submissions) == (4, 1)
    return path


def gone_on(office: Desk, path: Path, **env: str) -> tuple[Watch, JobHandle]:
    """The job opened again as a new process would, and what that took."""
    with connected(office, **env) as client, watched() as watch:
        job = client.job(path)
        job.open()
    return watch, job


def plans(office: Desk) -> int:
    with connected(office) as client:
        return int(client.ledger.job("labels")["revision"])


# ------------------------------------------------------------------------------------------------------ nothing changed


def test_a_job_goes_on_without_a_look_at_its_rows(office: Desk) -> None:
    """On the same host, with everything as it was, the file of the rows is not even opened; the job ends, paid once."""
    path = begun(office)
    with connected(office) as client:
        job = client.job(path)
        with watched() as watch:
            plan = job.open()
        assert (watch.read(), watch.planned) == (False, False)
        assert (plan.digest, plan.n_rows, plan.n_new, plan.worst_micros) == (
            client.ledger.job("labels")["plan"], 4, 0, 0,
        )  # fmt: skip
        assert job.run().ok == 4
    assert (plans(office), len(office.simulator.batches())) == (1, 1)


def test_going_on_says_what_planning_again_would(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan that `open` returns is the one that reading every row again gives, but for when it was made."""
    path = begun(office)
    with connected(office) as client:
        kept = client.job(path).open()
        monkeypatch.setattr(resume, "__version__", "another")
        made = client.job(path).open()
    same = [name for name in type(made).__dataclass_fields__ if getattr(made, name) == getattr(kept, name)]
    differ = set(type(made).__dataclass_fields__) - set(same)
    assert differ <= {"created_at", "source_as_of", "shard_ids", "rows_blob", "output_basis"}


def test_a_new_limit_and_deadline_hold_at_once(office: Desk) -> None:
    """Budget, deadline and target decide nothing of a plan: the job goes on from it, under the new ones."""
    begun(office)
    path = office.write_job(budget={"usd": 7}, deadline="30h", load="other.parquet")
    watch, _ = gone_on(office, path)
    assert (watch.read(), watch.planned) == (False, False)
    with connected(office) as client:
        figures = client.job(path).figures()
        assert figures.limit_micros == 7_000_000
        assert figures.deadline - client.clock.now() > timedelta(hours=29)
        client.job(path).run()
    assert (office.folder / "other.parquet").exists()


def test_a_killed_process_is_gone_on_with(office: Desk) -> None:
    """After SIGKILL `canwait run` goes on: one plan, one batch, every row answered."""
    office.write(4)
    process = office.start("run", "job.yaml", "--yes")
    while not office.simulator.batches():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert office.run().code == 0
    assert (plans(office), len(office.simulator.batches())) == (1, 1)


def test_a_plan_is_gone_on_with_by_its_id(office: Desk) -> None:
    """`run --plan ID` of the plan that is running reads no row; of any other plan it is refused."""
    path = begun(office)
    with connected(office) as client:
        plan = client.job(path).plan()
    with connected(office) as client, watched() as watch:
        job = client.planned(plan.id)
        job.open(plan=plan.id)
        assert (watch.read(), watch.planned) == (False, False)
        with pytest.raises(errors.PlanStale, match=f"now it is {plan.id}"):
            job.open(plan="p_0123456789ab")


def test_failed_rows_are_sent_again_without_a_look_at_the_others(tmp_path: Path) -> None:
    """`--only failed` of a job that has not changed reads its requests from where they lie, not from the source."""
    with desk(tmp_path, "row_400=1") as office:
        path = office.write(6)
        with connected(office) as client:
            assert client.job(path).run().failed >= 1
        with connected(office) as client, watched() as watch:
            figures = client.job(path).run(only="failed")
        assert (figures.ok, figures.failed, figures.submissions) == (6, 0, 2)
        assert not watch.read()


def test_an_ended_job_is_loaded_again_without_a_look_at_its_rows(tmp_path: Path) -> None:
    """Running a job that has ended loads its rows again; nothing is read of the source and nothing is sent."""
    with desk(tmp_path) as office:
        path = office.write(6)
        with connected(office) as client:
            client.job(path).run()
        (office.folder / "labels.parquet").unlink()
        with connected(office) as client, watched() as watch:
            assert client.job(path).run().submissions == 1
        assert not watch.read()
        assert (office.folder / "labels.parquet").exists()


# ------------------------------------------------------------------------------------------------------- is it the same?


def touch(path: Path) -> None:
    path.touch()


def write_again(path: Path) -> None:
    text = path.read_bytes()
    path.unlink()
    path.write_bytes(text)


@pytest.mark.parametrize("change", [touch, write_again])
def test_equal_bytes_are_equal_rows(office: Desk, change: Callable[[Path], None]) -> None:
    """A file that was touched or written again with the same bytes is read once for its fingerprint, and not planned."""
    path = begun(office)
    change(office.folder / "rows.csv")
    watch, _ = gone_on(office, path)
    assert (watch.read(), watch.planned, plans(office)) == (True, False, 1)


def test_a_file_changed_a_moment_before_it_was_read_is_not_trusted(office: Desk) -> None:
    """Where a later change could fall into the same tick of the clock, the bytes decide and not the times."""
    path = begun(office, SystemClock())
    watch, _ = gone_on(office, path)
    assert (watch.read(), watch.planned) == (True, False)


def test_a_change_that_hides_its_time_is_seen(office: Desk) -> None:
    """Other bytes of the same length under the old modification time are other rows."""
    path = begun(office)
    rows = office.folder / "rows.csv"
    before = rows.stat()
    with rows.open("r+b") as file:
        file.write(rows.read_bytes().replace(b"message 1", b"message 7"))
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (rows.stat().st_size, rows.stat().st_mtime_ns, rows.stat().st_ino) == (
        before.st_size, before.st_mtime_ns, before.st_ino,
    )  # fmt: skip
    watch, _ = gone_on(office, path)
    assert (watch.planned, plans(office)) == (True, 2)


def rows_are_added(office: Desk) -> Mapping[str, str]:
    office.write(6)
    return {}


def job_is(**fields: Any) -> Callable[[Desk], Mapping[str, str]]:
    def change(office: Desk) -> Mapping[str, str]:
        office.write_job(**fields)
        return {}

    return change


def price_rises(office: Desk) -> Mapping[str, str]:
    prices = office.folder / "prices.toml"
    prices.write_text(
        '[[price]]\nprovider = "openai"\nmodel = "gpt-6-luna"\ntier = "batch"\ninput = "9"\noutput = "99"\n'
        'since = 2026-01-01\nchecked = 2026-11-01\nsource = "a test"\n'
    )
    return {"CANWAIT_PRICES": str(prices)}


def source_is_moved(office: Desk) -> Mapping[str, str]:
    (office.folder / "rows.csv").rename(office.folder / "moved.tsv")
    office.write_job(source={"uri": "moved.tsv", "key": "id", "format": "csv"})
    return {}


CHANGES: dict[str, tuple[Callable[[Desk], Mapping[str, str]], int]] = {
    "rows": (rows_are_added, 2),
    "prompt": (job_is(prompt="Which? {{ text }}"), 2),
    "params": (job_is(params={"temperature": 0}), 2),
    "model": (job_is(model="openai/gpt-4o-mini"), 2),
    "max_output_tokens": (job_is(max_output_tokens=41), 2),
    "attempts": (job_is(retry={"attempts": 2}), 2),
    "dedupe": (job_is(dedupe=False), 2),
    "price": (price_rises, 2),
    "where the rows lie": (source_is_moved, 1),  # which are the same
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_planned(office: Desk, what: str) -> None:
    """Anything that may decide what is sent or what it costs has the rows read, and a plan that differs is a new one."""
    path = begun(office)
    change, revision = CHANGES[what]
    watch, _ = gone_on(office, path, **change(office))
    assert (watch.planned, plans(office)) == (True, revision)


def test_what_is_sent_is_reserved_at_the_prices_of_today(office: Desk) -> None:
    """Shards opened at other prices are told as what they cost now: the limit holds for the bill that comes."""
    with connected(office) as client:
        planned = client.job(office.write(4)).open().worst_micros
        tight = office.write_job("tight", prompt="Which? {{ text }}", budget={"usd": 2 * planned / 1e6}, load="t.csv")
        client.job(tight).open()
    env = price_rises(office)
    with connected(office, **env) as client:
        figures = client.job(office.folder / "job.yaml").run()
        (reserved,) = [e for e in client.ledger.query("entries", budget="job:labels") if e["kind"] == "reserve"]
        usage = figures.input_tokens * 9 + figures.output_tokens * 99  # micros: USD a million tokens
        assert (figures.ok, figures.confirmed_micros) == (4, usage)
        assert reserved["held_micros"] > 10 * planned
        figures = client.job(tight).run()
    assert (figures.ok, figures.failed, figures.submissions, figures.confirmed_micros) == (0, 4, 0, 0)


def test_another_versions_plan_is_made_again(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that another version kept is not gone on with blindly: requests may be rendered otherwise by now."""
    path = begun(office)
    monkeypatch.setattr(resume, "__version__", "0.0.1")
    watch, _ = gone_on(office, path)
    assert (watch.planned, plans(office)) == (True, 1)


def test_another_host_compares_the_bytes(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inode means nothing on another host: there the fingerprint decides."""
    path = begun(office)
    monkeypatch.setattr(resume.socket, "gethostname", lambda: "elsewhere")
    watch, _ = gone_on(office, path)
    assert (watch.read(), watch.planned) == (True, False)


def test_rows_that_are_gone_are_missed(office: Desk) -> None:
    """A job whose file is not there any more says so, as it always did."""
    path = begun(office)
    (office.folder / "rows.csv").unlink()
    with pytest.raises(errors.SourceError, match="no such file"):
        gone_on(office, path)


def test_another_plan_opened_meanwhile_is_seen(office: Desk) -> None:
    """When the job's rows change and are opened by another process at the last moment, what is run is planned anew."""
    path = begun(office)
    with connected(office) as client, connected(office) as other:
        ledger_open, called = client.ledger.open_plan, []

        def late(*args: Any) -> bool:
            if not called:
                office.write(6)
                other.job(path).open()
            called.append(args)
            return ledger_open(*args)

        client.ledger.open_plan = late  # type: ignore[method-assign]
        assert client.job(path).open().n_rows == 6
        assert len(called) == 2
    assert plans(office) == 2


# ------------------------------------------------------------------------------------------------------ rows from frames


def test_a_frame_is_compared_by_its_values(office: Desk) -> None:
    """Equal frames go on from the plan, other values are planned."""

    def open_(**columns: list[str]) -> bool:
        with connected(office) as client:
            job = canwait.map(
                pa.table(columns), "labels", model="openai/gpt-6-luna", key="id", prompt="Classify: {{ text }}",
                budget_usd=1, max_output_tokens=40, client=client,
            )  # fmt: skip
            with watched() as watch:
                job.open()
            return watch.planned

    assert open_(id=["a", "b"], text=["x", "y"])
    assert not open_(id=["a", "b"], text=["x", "y"])
    assert open_(id=["a", "b"], text=["x", "z"])
