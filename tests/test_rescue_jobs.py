"""Deadlines end to end: a job file's fallback against the simulator, by the command line and from Python."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from canwait.client import Client, JobHandle
from canwait.clock import SystemClock
from canwait.engine import Pace
from canwait.errors import SpecError, UnknownPrice
from canwait.settings import settings
from canwait.types import JobState
from simulated import Desk, desk
from test_cli import valid

NEVER = "never_ends=9"


@contextmanager
def hurried(office: Desk, cancel_s: float = 0.5) -> Iterator[Client]:
    """A client to whom a cancel takes a second at most: the simulator's ten minutes pass in a tenth of that."""
    env = office.env | {"CANWAIT_HOME": str(office.folder / ".canwait")}
    pace = Pace(poll_s=0.05, cancel_s=cancel_s, look_s=0.2)
    with Client(replace(settings(env), pace=pace), SystemClock()) as client:
        yield client


def soon(client: Client) -> datetime:
    """When a test that does not end is given up."""
    return client.clock.now() + timedelta(minutes=1)


def rounded(office: Desk) -> bool:
    """Whether the ledger holds the bill: the simulator rounds up every synchronous call, the ledger every shard."""
    with closing(office.ledger()) as ledger:
        spent = sum(r["confirmed_micros"] for r in ledger.query("shards", job="labels"))
        n_calls = sum(r["n_lines"] for r in ledger.query("shards", job="labels") if "/" in r["provider"])
        assert ledger.check() == []
    return 0 <= office.simulator.bill_micros() - spent <= n_calls


def events(office: Desk, kind: str) -> list[dict[str, Any]]:
    with closing(office.ledger()) as ledger:
        return [dict(e.facts) for e in ledger.events(count=10_000) if e.kind == kind]


# ------------------------------------------------------------------------------------------------------------- rescue


@pytest.mark.parametrize("rescue", ["standard", "flex"])
def test_a_stuck_batch_is_moved_and_the_job_is_done_in_time(tmp_path: Path, rescue: str) -> None:
    """Rows of batches that never end are answered row by row before the deadline, and the books are the provider's bill."""
    with desk(tmp_path, f"{NEVER},cancel_finishes=9") as office:
        fallback = {"rescue": rescue, "rows_per_s": 50}
        path = office.write(40, deadline="9s", fallback=fallback, shard={"max_rows": 20})
        with hurried(office, cancel_s=4) as client:
            job = client.job(path)
            figures = job.run(until=soon(client))
            assert (figures.state, figures.ok, figures.unknown_micros) == (JobState.COMPLETED, 40, 0)
            assert client.clock.now() < figures.deadline
        with closing(office.ledger()) as ledger:
            rows = ledger.query("shards", job="labels")
            assert {r["provider"] for r in rows} == {"openai", f"openai/{rescue}"}
        assert rounded(office)
        assert set(office.simulator.executed().values()) == {1}
        assert len(events(office, "rescued")) == 1


def test_anthropics_batches_are_moved_too(tmp_path: Path) -> None:
    """Where a batch bears no mark of ours, it is cancelled, harvested and moved all the same."""
    with desk(tmp_path, f"{NEVER},cancel_lag=1s") as office:
        fallback = {"rescue": "standard", "rows_per_s": 50}
        path = office.write(20, model="anthropic/claude-haiku-5-5", deadline="15s", fallback=fallback)
        with hurried(office, cancel_s=6) as client:  # it wants to be polled every 10 s
            figures = client.job(path).run(until=soon(client))
            assert (figures.state, figures.ok) == (JobState.COMPLETED, 20)
            assert client.clock.now() < figures.deadline
        assert set(office.simulator.executed().values()) == {1}
        assert rounded(office)


def test_a_deadline_that_no_batch_can_meet_is_met_row_by_row(tmp_path: Path) -> None:
    """From the command line: ten seconds are too few for any batch, and the plan said what would happen."""
    with desk(tmp_path, NEVER) as office:
        office.write(12, deadline="30s", fallback={"rescue": "standard", "rows_per_s": 20})
        plan = valid(office.canwait("plan", "job.yaml", "--json"))
        assert "moved to standard from the start, at most +$0.0" in plan["late"]
        assert valid(office.run())["ok"] == 12
        assert office.simulator.batches() == []
        with closing(office.ledger()) as ledger:
            assert {r["provider"] for r in ledger.query("shards", job="labels") if r["batch_id"]} == {"openai/standard"}


def test_a_job_is_done_by_batch_where_that_is_back_in_time(tmp_path: Path) -> None:
    """A rescue that is not needed costs nothing and sends nothing."""
    with desk(tmp_path) as office:
        office.write(12, fallback={"rescue": "standard", "rows_per_s": 20})
        assert valid(office.run())["ok"] == 12
        assert len(office.simulator.batches()) == 1
        assert events(office, "rescue") == []


# -------------------------------------------------------------------------------------------------------- the deadline


def run_late(office: Desk, word: str, **fields: Any) -> Any:
    office.write(12, deadline="2s", fallback=word, **fields)
    return office.run()


def test_fail_loads_nothing(tmp_path: Path) -> None:
    """`fail`: what is out is stopped, what was answered is kept and paid, nothing is loaded, exit 6; also when run again."""
    with desk(tmp_path, NEVER) as office:
        for said in (run_late(office, "fail"), office.run()):
            value = valid(said)
            assert (said.code, value["state"], value["loaded"]) == (6, "expired", None)
            assert value["reason"].endswith("late: nothing is loaded")
            assert value["confirmed_usd"] == office.bill_usd()
        assert not (office.folder / "labels.parquet").exists()
        assert len(events(office, "deadline_missed")) == 1


def test_load_without_loads_what_is_there(tmp_path: Path) -> None:
    """`load_without`: what is out is stopped, and what was answered by then is loaded, the others beside it; exit 6."""
    with desk(tmp_path, NEVER) as office:
        said = run_late(office, "load_without")
        value = valid(said)
        assert (said.code, value["state"]) == (6, "completed_with_failures")
        assert value["loaded"]["rows"] == value["ok"] > 0
        assert value["ok"] + value["failed"] == 12
        assert value["cancelled"] > 0


def test_last_publication_goes_on_serving(tmp_path: Path) -> None:
    """`last_publication`: readers keep what they have, and that is no failure of the run; without one it is."""
    with desk(tmp_path) as office:
        office.write(6)
        assert office.run().code == 0
        before = (office.folder / "labels.parquet").read_bytes()
    with desk(tmp_path / "later", NEVER) as later:
        env = {"CANWAIT_HOME": str(office.folder / ".canwait")}
        later.folder = office.folder
        office.env = later.env
        office.write(12, deadline="2s", fallback="last_publication", prompt="Classify again: {{ text }}")
        said = office.run(**env)
        value = valid(said)
        assert (said.code, value["state"]) == (0, "expired")
        assert value["reason"].endswith("late: readers go on with publication 1")
        assert (office.folder / "labels.parquet").read_bytes() == before
        assert office.run(**env).code == 0


def test_without_any_publication_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    """`last_publication` before there is one ends as `fail` does."""
    with desk(tmp_path, NEVER) as office:
        said = run_late(office, "last_publication")
        assert (said.code, valid(said)["reason"].rpartition("; ")[2]) == (6, "late: nothing is loaded")


def test_rows_asked_for_again_may_be_loaded(tmp_path: Path) -> None:
    """A person who sends late rows again takes back that they were given up."""
    with desk(tmp_path, "never_ends=1") as office:
        assert run_late(office, "fail").code == 6
        office.write(12, deadline="1h", fallback="fail")
        value = valid(office.run("job.yaml", "--only", "cancelled"))
        assert (value["ok"], value["state"]) == (12, "completed")
        assert value["loaded"]["rows"] == 12


def test_a_finished_job_is_not_late(tmp_path: Path) -> None:
    """A job that was done before its deadline is run again after it: nothing has changed."""
    with desk(tmp_path) as office:
        office.write(12, deadline="20s", fallback="fail")
        assert office.run().code == 0
        time.sleep(0.1)
        assert valid(office.run())["state"] == "completed"


def test_it_is_told(tmp_path: Path) -> None:
    """Whom the job file names is told of a missed deadline, by what was done about it, and of a move once."""
    with desk(tmp_path, NEVER) as office:
        run_late(office, "fail", notify="https://127.0.0.1:1/hook")
        log = office.canwait("notify", "--log", "--json")
        assert "missed its deadline" in log.out


# -------------------------------------------------------------------------------------------------------------- plans


def test_a_plan_says_when_it_is_ready_and_what_is_done_then(tmp_path: Path) -> None:
    """Before anything was seen the window stands; after twenty batches their times do, with their number."""
    with desk(tmp_path) as office:
        office.write(12, fallback={"rescue": "standard", "rows_per_s": 20, "at_deadline": "load_without"})
        plan = valid(office.canwait("plan", "job.yaml", "--json"))
        assert plan["ready"] == {"p50_s": 86_400, "p95_s": 86_400, "basis": "openai on batch, any model"}
        assert plan["late"].startswith("Batch first. If not finished by ")
        assert plan["late"].endswith("At the deadline what is out is stopped, and what is there is loaded.")
        text = office.canwait("plan", "job.yaml").out
        assert "\n  ready      in 24 h (the provider's window; 0 past batches, 19 needed)" in text
        assert "\n  late       Batch first." in text
        assert valid(office.run())["ok"] == 12
        office.write(13, fallback="fail")
        again = valid(office.canwait("plan", "job.yaml", "--json"))
        assert again["ready"]["p50_s"] < 60 < again["ready"]["p95_s"]
        assert again["late"] == "At the deadline what is out is stopped, and nothing is loaded."


def test_a_rescue_without_a_rate_is_said_to_promise_nothing(tmp_path: Path) -> None:
    """Where neither the job file nor a past run tells how fast rows go, the plan says so."""
    with desk(tmp_path) as office:
        office.write(12, fallback={"rescue": "standard"})
        late = valid(office.canwait("plan", "job.yaml", "--json"))["late"]
        assert late.startswith("Batch only: no rate of another tier is known, so nothing can be moved in time.")


def test_more_rows_than_can_be_redone_are_said_to_be_late(tmp_path: Path) -> None:
    """A redo that takes longer than the deadline is said before it is run."""
    with desk(tmp_path) as office:
        office.write(12, deadline="1h", fallback={"rescue": "standard", "rows_per_s": 0.001})
        late = valid(office.canwait("plan", "job.yaml", "--json"))["late"]
        assert late.startswith("Some rows will be late: 11 need 4 h 17 min on standard")


def test_a_fallback_changes_no_plan(tmp_path: Path) -> None:
    """What is done about late rows is no part of what is sent: the plan keeps its name, and running goes on with it."""
    with desk(tmp_path) as office:
        office.write(12)
        before = valid(office.canwait("plan", "job.yaml", "--json"))["id"]
        assert office.run().code == 0
        office.write(12, fallback={"rescue": "standard", "rows_per_s": 20})
        assert valid(office.canwait("plan", "job.yaml", "--json"))["id"] == before
        assert office.run().code == 0
        with closing(office.ledger()) as ledger:
            job = ledger.job("labels")
            terms = json.loads(ledger.query("plan", job="labels", digest=job["plan"])[0]["terms"])
        assert terms["rescue"] == "openai/standard"
        assert Decimal(terms["rescues"][0]["price"]["input"]) == 2 * Decimal(terms["price"]["input"])


def test_a_tier_the_provider_does_not_have_is_refused(tmp_path: Path) -> None:
    """A rescue on a tier that a provider is not asked on is a problem of the job file, at its place."""
    with desk(tmp_path) as office:
        path = office.write(12, model="anthropic/claude-haiku-5-5", fallback={"rescue": "flex"})
        with hurried(office) as client, pytest.raises(SpecError, match=r"fallback: anthropic has no tier flex"):
            client.job(path).plan()


def test_a_tier_without_a_price_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rescue would cost is known before it may be used."""
    from canwait.types import Tier

    with desk(tmp_path) as office:
        path = office.write(12, fallback={"rescue": "standard"})
        priced = JobHandle._price

        def unknown(self: JobHandle, tier: Tier) -> Any:
            if tier is Tier.STANDARD:
                raise UnknownPrice(provider="openai", model="m", tier="standard")
            return priced(self, tier)

        monkeypatch.setattr(JobHandle, "_price", unknown)
        with hurried(office) as client, pytest.raises(UnknownPrice):
            client.job(path).run()
        assert office.simulator.batches() == []


def test_a_job_without_batches_has_nothing_to_move(tmp_path: Path) -> None:
    """On a tier that answers row by row a rescue is no promise, and nothing is said of it."""
    with desk(tmp_path) as office:
        office.write(12, tier="standard", fallback={"rescue": "flex"})
        plan = valid(office.canwait("plan", "job.yaml", "--json"))
        assert (plan["late"], plan["ready"]) == (None, None)
