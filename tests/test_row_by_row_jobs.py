"""Jobs on the row-by-row tiers, whole: planned, run against the simulator or a server, billed, read while they run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from click.testing import CliRunner

from canwait.cli import cli
from canwait.cli.progress import Pace, duration
from canwait.client import Client, JobHandle, connect
from canwait.errors import NotFound
from canwait.outcomes import Failed, Ok, Results
from canwait.simulator import ScaledClock, Scenario, Simulator
from canwait.spec import job_from_dict
from canwait.types import JobState, Tier
from canwait.views import Figures
from provider_host import Reply, Seen, serving
from test_provider_own import answering, chat, content_of


def job(folder: Path, rows: int, **fields: Any) -> Any:
    text = "id,text\n" + "".join(f"{n},row {n}\n" for n in range(rows))
    (folder / "rows.csv").write_text(text)
    spec = {
        "version": 1,
        "name": "rows",
        "source": {"uri": "rows.csv", "key": "id"},
        "model": "openai/gpt-5-mini",
        "prompt": "say {{ text }}",
        "deadline": "1h",
        "urgency": "near_real_time",
        "max_output_tokens": 50,
        "budget": {"usd": 5},
    }
    return job_from_dict({**spec, **fields}, base_dir=folder)


@contextmanager
def against(folder: Path, scenario: str = "") -> Iterator[tuple[Simulator, Client]]:
    simulator = Simulator(seed=3, clock=ScaledClock(1), scenario=Scenario.parse(scenario), folder=folder / "provider")
    with simulator.serve() as url:
        env = {
            "CANWAIT_HOME": str(folder / "home"),
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "k",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "k",
        }
        with connect(env=env) as client:
            yield simulator, client


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({}, Tier.FLEX),
        ({"tier": ["batch", "standard"]}, Tier.STANDARD),
        ({"tier": "standard", "urgency": "batch"}, Tier.STANDARD),
        ({"model": "anthropic/claude-haiku-4-5"}, Tier.STANDARD),
    ],
)
def test_a_job_runs_row_by_row_on_the_tier_it_was_planned_for(
    fields: dict[str, Any], tier: Tier, tmp_path: Path
) -> None:
    """Each row is a call of its own at the planned tier and price; the ledger agrees with the provider's bill."""
    with against(tmp_path) as (simulator, client):
        handle = client.job(job(tmp_path, 60, **fields))
        plan = handle.plan().value
        figures = handle.run()
        bill = simulator.bill()
    assert (plan.tier, figures.tier, figures.state, figures.ok) == (tier, tier, JobState.COMPLETED, 60)
    assert {entry.tier for entry in bill} == {tier}
    assert len(bill) == 60
    # The simulator rounds up each call, the ledger each shard.
    assert 0 <= simulator.bill_micros() - figures.confirmed_micros < 60
    assert figures.confirmed_micros <= plan.worst_micros
    assert figures.reserved_micros == figures.unknown_micros == 0


def test_an_answer_that_was_billed_and_lost_stays_held_and_is_paid_again_once(tmp_path: Path) -> None:
    """A row whose reply was lost is asked again under a new reservation, and the money of the first stays held."""
    with against(tmp_path, "sync_reset=4") as (simulator, client):
        handle = client.job(job(tmp_path, 80, tier="standard"))
        figures = handle.run()
        executed, bill = simulator.executed(), simulator.bill_micros()
    assert figures.ok == 80
    assert sum(executed.values()) == 84
    assert max(executed.values()) == 2
    assert figures.unknown_micros > 0
    assert figures.confirmed_micros + figures.unknown_micros + 84 >= bill


def test_refused_rows_cost_patience_and_no_money(tmp_path: Path) -> None:
    """Rate limits are waited out; every row is answered and paid once, and none is left in doubt."""
    with against(tmp_path, "sync_429=9,retry_after=0s") as (simulator, client):
        figures = client.job(job(tmp_path, 80)).run()
        executed = simulator.executed()
    assert (figures.ok, figures.unknown_micros) == (80, 0)
    assert set(executed.values()) == {1}
    assert len(executed) == 80


def own(folder: Path, url: str) -> dict[str, str]:
    return {"CANWAIT_HOME": str(folder / "home"), "OWN_BASE_URL": f"{url}/v1", "CANWAIT_POLL_S": "0.05"}


def test_what_has_ended_is_read_while_the_job_runs(tmp_path: Path) -> None:
    """Rows settle shard by shard; `results` tells state and share, and gives the rows that have ended and no other."""
    more = threading.Event()

    def reply(seen: Seen) -> Reply:
        if int(content_of(seen).split()[-1]) >= 20:
            assert more.wait(20)
        return Reply(chat(content_of(seen)))

    spec = job(tmp_path, 30, model="own/m", tier="own", shard={"max_rows": 10}, prompt="row {{ id }}", params={})
    with serving(answering(reply)) as host:
        env = own(tmp_path, host.url)

        def run() -> None:
            with connect(env=env) as client:
                client.job(spec).run()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            with connect(env=env) as client:
                handle = client.job(spec)
                part = until_ended(handle, 20)
                keys = [row.key for row in part.rows]
                assert (part.state, part.n_rows, part.complete) == (JobState.IN_PROGRESS, 30, False)
                assert part.share == pytest.approx(20 / 30)
                assert keys == [str(n) for n in range(20)]
        finally:
            more.set()
            thread.join(30)
        with connect(env=env) as client:
            whole = client.job(spec).results()
            assert whole.complete
            assert [row.value for row in whole.rows if isinstance(row, Ok)] == [f"row {n}" for n in range(30)]


def until_ended(handle: JobHandle, n_rows: int) -> Results:
    for _ in range(400):
        with suppress(NotFound):  # not opened yet
            if (found := handle.results()).n_ended >= n_rows:
                return found
        time.sleep(0.05)
    raise AssertionError("no partial results")


def test_results_are_lines_of_the_published_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`canwait results` prints a JSON object for every ended row, ok or not, and how much of the job that is on stderr."""
    bad = Reply({"error": {"message": "no"}}, 400)
    (tmp_path / "rows.csv").write_text("id,text\n1,one\n2,two\n")
    file = {
        "version": 1, "name": "rows", "source": {"uri": "rows.csv", "key": "id"}, "model": "own/m", "deadline": "1h",
        "prompt": "{{ text }}", "urgency": "near_real_time", "max_output_tokens": 9, "budget": {"usd": 1},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(file))
    with serving(answering(lambda seen: bad if "two" in content_of(seen) else Reply(chat("uno")))) as host:
        for name, value in own(tmp_path, host.url).items():
            monkeypatch.setenv(name, value)
        with connect() as client:
            client.job(tmp_path / "job.json").run()
        said = CliRunner().invoke(cli, ["results", str(tmp_path / "job.json")])
    assert said.exit_code == 0
    assert said.stderr == "completed_with_failures: 2 of 2 rows have ended (100.0%)\n"
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    schema = json.loads((Path(__file__).parent.parent / "src/canwait/schemas/result.v1.json").read_text())
    for line in lines:
        jsonschema_rs.validate(schema, line)
    assert [(line["key"], line["outcome"], line["cause"], line["value"]) for line in lines] == [
        ("1", "ok", None, "uno"),
        ("2", "failed", "invalid_request", None),
    ]
    with connect() as client:
        assert [type(row) for row in client.job(tmp_path / "job.json").rows()] == [Ok, Failed]


def test_shards_beyond_what_an_account_takes_wait_together(tmp_path: Path) -> None:
    """Of a job of many shards only so many are in flight at a time, and the others are not looked at one by one meanwhile."""
    most = 0

    def reply(seen: Seen) -> Reply:
        time.sleep(0.002)
        return Reply(chat())

    spec = job(tmp_path, 120, model="own/m", shard={"max_rows": 2})
    with serving(answering(reply)) as host, connect(env=own(tmp_path, host.url)) as client:

        def watch() -> None:
            nonlocal most
            rows = client.ledger.query("shards", job="rows")
            most = max(most, sum(row["state"] in ("submitting", "submitted") for row in rows))

        figures = client.job(spec).run(watch=watch)
        waited = [event.shard or "" for event in client.ledger.events(0, "rows", 10_000) if event.kind == "blocked"]
    assert figures.ok == 120
    assert most == 16
    assert 0 < len(waited) < 44  # one stands for all that wait


# ------------------------------------------------------------------------------------------------------------ progress


def figures(done: int, of: int, tier: Tier = Tier.OWN) -> Figures:
    blank: dict[str, Any] = dict.fromkeys(Figures.__dataclass_fields__)
    return Figures(**{**blank, "rows": of, "pending": of - done, "tier": tier})


def test_progress_tells_the_rate_and_when_all_is_ready() -> None:
    """Where rows are asked one by one, progress says how fast they settle by the last minute, and how long that takes."""
    pace = Pace()
    assert pace.of(figures(0, 10_000), 0.0) == ""
    assert pace.of(figures(2_000, 10_000), 20.0) == "  100 rows/s, ready in 80 s"
    assert pace.of(figures(2_060, 10_000), 80.0) == "  1.0 rows/s, ready in 2 h 13 min"
    assert pace.of(figures(10_000, 10_000), 100.0) == "  397 rows/s"
    assert Pace().of(figures(0, 10, Tier.BATCH), 0.0) == ""
    batch = Pace()
    batch.of(figures(0, 10, Tier.BATCH), 0.0)
    assert batch.of(figures(9, 10, Tier.BATCH), 1.0) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (99, "99 s"), (100, "2 min"), (5_940, "99 min"), (6_000, "1 h 40 min")]
)
def test_a_wait_is_told_in_the_unit_that_matters(seconds: float, words: str) -> None:
    """A wait is never told as shorter than it is."""
    assert duration(seconds) == words
