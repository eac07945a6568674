"""The command line end to end, against a simulator on a real socket: what it promises when all goes as it should."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pyarrow.parquet as pq
import pytest

from canwait import errors, views
from canwait.cli import cli
from simulated import Desk, Said, desk

ROOT = Path(__file__).parent.parent
FIELDS_OF_H = (
    "job plan state rows ok failed missing duplicates reused submissions confirmed_usd reserved_usd unknown_usd wasted_usd "
    "input_tokens output_tokens"
).split()  # issue 2, letter H


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """A provider on a good day."""
    with desk(tmp_path) as d:
        yield d


def valid(said: Said) -> dict[str, Any]:
    """The object on stdout, which is all that stands there and fits the published schema it names."""
    value = said.json
    name, _, version = value["schema"].removeprefix("canwait.").partition("/")
    check(name, version, value)
    return value


def check(name: str, version: str, value: Any) -> None:
    text = resources.files("canwait").joinpath("schemas", f"{name}.v{version}.json").read_text("utf-8")
    jsonschema_rs.Draft202012Validator(json.loads(text), validate_formats=True).validate(value)


def balanced(office: Desk, value: dict[str, Any]) -> None:
    """Every row is accounted for, and the ledger is the provider's bill to the micro."""
    assert value["ok"] + value["failed"] + value["missing"] == value["rows"]
    assert value["confirmed_usd"] == office.bill_usd()
    with closing(office.ledger()) as ledger:
        assert ledger.check() == []


# ----------------------------------------------------------------------------------------------------------- planning


def test_plan_spends_nothing_and_needs_no_key(office: Desk) -> None:
    """`plan` needs no key, sends nothing, writes nothing to the tables of money, and its JSON fits its schema."""
    office.write(12)
    said = office.canwait("plan", "job.yaml", "--json", OPENAI_API_KEY=None)
    plan = valid(said)
    assert (said.code, plan["n_rows"], plan["n_duplicates"], plan["n_new"], plan["n_bad_rows"]) == (0, 12, 1, 11, 0)
    assert Decimal(plan["worst_usd"]) * 1_000_000 == plan["worst_micros"] > 0
    assert office.money() == (0, 0)
    assert office.simulator.batches() == []


def test_plan_tells_a_script_whether_there_is_new_paid_work(office: Desk) -> None:
    """`plan --exit-code` is 10 while something would be paid for, and 0 once everything is."""
    office.write(4)
    assert office.canwait("plan", "job.yaml", "--exit-code").code == 10
    assert office.run().code == 0
    assert office.canwait("plan", "job.yaml", "--exit-code").code == 0


def test_the_plan_can_be_run_by_its_id_alone(office: Desk) -> None:
    """The command that `plan` prints runs exactly that plan, from any folder."""
    office.write(4)
    words = office.canwait("plan", "job.yaml").out
    command = words.split("Run exactly this:")[1].split()
    (elsewhere := office.folder / "elsewhere").mkdir()
    there = Desk(
        elsewhere, office.simulator, office.url, office.env | {"CANWAIT_HOME": str(office.folder / ".canwait")}
    )
    done = valid(there.run(*command[2:]))
    assert (command[:2], done["plan"], done["ok"]) == (["canwait", "run"], command[3], 4)
    assert (office.folder / "labels.parquet").exists()


@pytest.mark.parametrize("what", ["row", "prompt", "price"])
def test_a_stale_plan_is_refused(office: Desk, what: str) -> None:
    """`run --plan` refuses once a row, the prompt or a price has changed: exit code 2, nothing sent."""
    office.write(4)
    plan = office.canwait("plan", "job.yaml", "--json").json["id"]
    match what:
        case "row":
            (office.folder / "rows.csv").write_text("id,text\n000000,another message\n")
        case "prompt":
            office.write(4, prompt="Label: {{ text }}")
        case "price":
            line = '[[price]]\nprovider = "openai"\nmodel = "gpt-6-luna"\ntier = "batch"\ninput = "9"\noutput = "9"\n'
            (office.folder / "prices.toml").write_text(f'{line}since = 2026-01-01\nsource = "contract"\n')
    said = office.run("job.yaml", "--plan", plan)
    assert (said.code, said.problem["code"], said.out) == (2, "plan_stale", "")
    assert "canwait plan" in said.problem["hint"]
    assert (office.simulator.batches(), office.money()) == ([], (0, 0))


# ------------------------------------------------------------------------------------------------------------ running


def test_run_brings_every_row_back(office: Desk) -> None:
    """`run` ends with all fields of letter H, typed rows loaded beside the job file, and the bill to the micro."""
    office.write(12)
    said = office.run()
    value = valid(said)
    assert said.code == 0
    assert set(FIELDS_OF_H) <= set(value)
    assert {k: value[k] for k in ("state", "rows", "ok", "duplicates", "reused", "submissions")} == {
        "state": "completed", "rows": 12, "ok": 12, "duplicates": 1, "reused": 0, "submissions": 1,
    }  # fmt: skip
    balanced(office, value)
    table = pq.read_table(office.folder / "labels.parquet")
    names = ["id", "label", "urgency", "_model", "_tier", "_cost_usd", "_produced_at"]
    assert (table.column_names, table.num_rows) == (names, 12)
    assert [str(table.schema.field(n).type) for n in ("id", "label", "urgency")] == ["string", "string", "int64"]
    assert table["id"].to_pylist() == [f"{i:06d}" for i in range(12)]
    assert set(table["_tier"].to_pylist()) == {"batch"}
    costs = table["_cost_usd"].to_pylist()
    assert costs[11] == 0 < costs[0]
    assert abs(sum(costs) - Decimal(value["confirmed_usd"])) < Decimal("0.000001")


def test_running_again_repeats_the_figures_and_sends_nothing(office: Desk) -> None:
    """A second run prints what the first one did, and the provider hears nothing of it."""
    office.write(12, shard={"max_rows": 5})
    first = office.run().json
    again = office.run().json
    moving = {"deadline"}
    assert {k: v for k, v in again.items() if k not in moving} == {k: v for k, v in first.items() if k not in moving}
    assert len(office.simulator.batches()) == first["submissions"] == 3


def test_run_asks_once_and_names_the_flag(office: Desk) -> None:
    """Without a terminal `run` fails with 3 and names --yes; once approved, the same plan is not asked about again."""
    office.write(4)
    said = office.canwait("run", "job.yaml")
    assert said.code == 3
    assert "--yes" in said.err
    assert "worst case" in said.err
    assert (office.simulator.batches(), office.money()) == ([], (0, 0))
    assert office.run().code == 0
    assert office.canwait("run", "job.yaml").code == 0


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("expiry=1,shuffled=1", 0),
        ("expiry_empty=1", 0),
        ("lost_create_reply=1", 0),
        ("create_5xx_live=1,create_not_json=1", 0),
        ("row_500=2,row_timeout=1,row_429=1", 0),
        ("row_dropped=2,row_duplicate=2,row_unknown_id=1", 0),
        ("row_refusal=1,row_length=1,row_empty=1,row_invalid_json=1,row_400=1", 6),
        ("bad_line=1", 6),
        ("poll_429=1,poll_5xx=2,poll_reset=1,poll_not_json=1,results_5xx=1,results_cut=1,upload_5xx=1", 0),
        ("truncated_last_line=1,capitalised_status=1,empty_file_ids=1", 0),
    ],
)
def test_whatever_goes_wrong_the_books_balance(tmp_path: Path, scenario: str, code: int) -> None:
    """Whatever the provider does, every row is accounted for and the ledger is its bill to the micro."""
    with desk(tmp_path, scenario) as office:
        office.write(24, shard={"max_rows": 12})
        said = office.run()
        value = valid(said)
        assert (said.code, value["missing"]) == (code, 0), said
        balanced(office, value)
        assert Decimal(value["unknown_usd"]) == 0
        assert max(office.simulator.executed().values()) == 1 or "truncated" in scenario


def test_rows_the_provider_never_returns_hold_their_money(tmp_path: Path) -> None:
    """Rows that ran and never came back are missing, what they may have cost is unknown, and together they cover the bill."""
    with desk(tmp_path, "row_missing=0.2,old_style=true") as office:
        office.write(24, retry={"attempts": 1})
        said = office.run()
        value = valid(said)
        confirmed, unknown = Decimal(value["confirmed_usd"]), Decimal(value["unknown_usd"])
        assert (said.code, value["state"]) == (6, "completed_with_failures")
        assert value["missing"] > 0 < unknown
        assert value["ok"] + value["missing"] == 24
        assert confirmed < Decimal(office.bill_usd()) <= confirmed + unknown

        shard = next(
            s for s in valid(office.canwait("why", "labels", "--json"))["shards"] if s["held_usd"] != "0.000000"
        )
        rest = f"{Decimal(office.bill_usd()) - confirmed:.6f}"
        resolved = valid(office.canwait("resolve", shard["id"], "--billed", rest, "--json"))
        assert (resolved["billed_usd"], resolved["absent"], resolved["batch"]) == (rest, False, None)
        settled = valid(office.canwait("status", "labels", "--json"))["jobs"][0]
        assert (settled["confirmed_usd"], settled["unknown_usd"]) == (office.bill_usd(), "0.000000")


def test_a_job_without_an_answer_ends_with_six(tmp_path: Path) -> None:
    """When every row fails, the exit code is 6, nothing but the failures is loaded, and each has its cause."""
    with desk(tmp_path, "all_failed=9") as office:
        office.write(6)
        said = office.run()
        value = valid(said)
        assert (said.code, value["ok"], value["failed"]) == (6, 0, 6)
        beside = pq.read_table(office.folder / "labels.failed.parquet").to_pylist()
        assert [row["id"] for row in beside] == [f"{i:06d}" for i in range(6)]
        assert {row["_outcome"] for row in beside} == {"failed"}
        assert None not in {row["_cause"] for row in beside}
        balanced(office, value)


def test_out_of_credit_pauses_and_goes_on(tmp_path: Path) -> None:
    """Without credit the job pauses with 3 and nothing held; run again after mending the account, it ends."""
    with desk(tmp_path, "create_out_of_credit=1") as office:
        office.write(6)
        paused = office.run()
        value = valid(paused)
        assert (paused.code, paused.problem["code"], value["reserved_usd"]) == (3, "paused", "0.000000")
        assert "quota" in value["paused"]
        done = office.run()
        assert (done.code, done.json["ok"]) == (0, 6)
        balanced(office, done.json)


def test_only_failed_sends_only_failed_rows(tmp_path: Path) -> None:
    """`--only failed` sends the failed rows again and no others; a plain re-run sends none of them."""
    with desk(tmp_path, "row_400=3") as office:
        office.write(12)
        first = office.run().json
        assert (first["failed"], first["duplicates"], office.run().json["submissions"]) == (
            4,
            1,
            1,
        )  # a twin failed too
        done = valid(office.run("job.yaml", "--only", "failed"))
        assert (done["ok"], done["failed"], done["submissions"]) == (12, 0, 2)
        assert [b.n_rows for b in office.simulator.batches()] == [11, 3]
        balanced(office, done)
        assert not (office.folder / "labels.failed.parquet").exists()


def test_only_takes_a_cause(tmp_path: Path) -> None:
    """`--only failed:CAUSE` sends the rows that failed for that cause, and leaves the others."""
    with desk(tmp_path, "row_400=2,row_refusal=1") as office:
        office.write(12)
        office.run()
        done = office.run("job.yaml", "--only", "failed:refused").json
        assert (done["ok"], done["failed"]) == (9, 3)
        assert office.simulator.batches()[1].n_rows == 1


def test_a_budget_is_never_passed(office: Desk) -> None:
    """`--budget` in place of the file's: too small refuses with 5, and `budget show` says what a job left of it."""
    office.write(6)
    worst = office.canwait("plan", "job.yaml", "--json").json["worst_usd"]
    refused = office.run("job.yaml", "--budget", "0.000001")
    assert (refused.code, refused.problem["code"]) == (5, "budget_exceeded")
    assert worst in refused.problem["detail"]
    assert office.simulator.batches() == []
    assert office.run("job.yaml", "--budget", worst).code == 0


def test_trim_goes_as_far_as_the_money(office: Desk) -> None:
    """`on_exceed: trim` sends what the budget truly pays for; the other rows end as failed with the cause `budget`."""
    office.write(12, shard={"max_rows": 4})
    one = office.canwait("plan", "job.yaml", "--json").json["shards"][0]["worst_micros"]
    office.write(12, shard={"max_rows": 4}, budget={"usd": f"{one / 3e6:.6f}", "on_exceed": "trim"})
    done = valid(office.run())
    assert 1 <= done["ok"] < 12
    assert Decimal(done["confirmed_usd"]) <= Decimal(done["budget_usd"])
    why = valid(office.canwait("why", "labels", "--json"))
    assert list(why["causes"]) == ["budget"]
    balanced(office, done)


def test_project_and_month_have_the_last_word(office: Desk) -> None:
    """A project's and a month's limit refuse a job that its own budget allows, with 5, and nothing is sent."""
    office.write(6, owner="support")
    assert office.run().code == 0  # from here on the month has a budget of its own
    office.write(20, owner="support")
    for name in ("project:support", "month"):
        limited = valid(office.canwait("budget", "set", name, "--usd", "0.00002", "--json"))
        assert limited["limit_usd"] == "0.000020"
        refused = office.run()
        assert (refused.code, refused.problem["budget"].partition(":")[0]) == (5, name.partition(":")[0])
        assert office.canwait("budget", "set", name).code == 0
    assert office.canwait("budget", "set", "month", "--tokens", "10").code == 0
    refused = office.run()
    assert (refused.code, "tokens" in refused.problem["detail"]) == (5, True)
    assert len(office.simulator.batches()) == 1
    assert office.canwait("budget", "set", "month").code == 0
    assert office.run().code == 0


def test_the_shell_has_a_ceiling(office: Desk) -> None:
    """CANWAIT_BUDGET_USD is a ceiling over the job file's budget, also when that is 0."""
    office.write(6)
    assert office.run(CANWAIT_BUDGET_USD="0.000001").code == 5
    office.write(6, budget={"usd": 0})
    assert office.run(CANWAIT_BUDGET_USD="5").code == 5
    assert office.simulator.batches() == []
    office.write(6)
    assert office.run(CANWAIT_BUDGET_USD="0.5").json["budget_usd"] == "0.500000"


# ------------------------------------------------------------------------------------------------- stopping, crashing


def test_cancel_sends_nothing_more(tmp_path: Path) -> None:
    """`cancel` stops a job: finished rows are kept and paid, the others end as cancelled, the books balance."""
    with desk(tmp_path, "never_ends=9", speed=3_600) as office:
        office.write(12, shard={"max_rows": 5})
        assert office.run("job.yaml", "--timeout", "1s").code == 9
        cancelled = valid(office.canwait("cancel", "labels", "--json"))
        done = valid(office.run())
        assert cancelled["cancelled"] + done["cancelled"] > 0
        assert (done["state"], done["pending"], done["reserved_usd"]) == ("cancelled", 0, "0.000000")
        balanced(office, done)


def test_a_cancelled_job_says_so_at_once(office: Desk) -> None:
    """A job cancelled before anything was sent is over: status says cancelled, and a new plan of it runs."""
    office.write(6)
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    assert office.run("job.yaml", "--timeout", "1s", **nowhere).code == 9
    cancelled = valid(office.canwait("cancel", "labels", "--json", **nowhere))
    assert (cancelled["state"], cancelled["cancelled"], cancelled["reserved_usd"]) == ("cancelled", 6, "0.000000")
    assert valid(office.canwait("status", "labels", "--json"))["jobs"][0]["state"] == "cancelled"
    assert office.run().code == 6
    office.write(7)
    done = office.run().json
    assert (done["state"], done["ok"], done["cancelled"]) == ("completed_with_failures", 1, 6)
    assert office.canwait("cancel", "labels", "--json").json["state"] == "completed_with_failures"


def test_timeout_leaves_the_job_going(tmp_path: Path) -> None:
    """`--timeout` ends watching with 9 while the batch goes on; run again, it is found and not sent twice."""
    with desk(tmp_path, speed=400) as office:  # half an hour is four seconds
        office.write(6)
        early = office.run("job.yaml", "--timeout", "1s")
        assert (early.code, early.problem["code"], valid(early)["pending"]) == (9, "not_finished", 6)
        assert "canwait cancel labels" in early.problem["hint"]
        done = valid(office.run())
        assert (done["ok"], done["submissions"], len(office.simulator.batches())) == (6, 1, 1)


def test_interrupting_says_how_to_go_on_and_how_to_stop(tmp_path: Path) -> None:
    """Ctrl-C ends with 130, and stderr names the command that goes on and the one that stops; going on pays once."""
    with desk(tmp_path, "never_ends=1", speed=3_600) as office:
        office.write(6)
        with office.start("run", "job.yaml", "--yes", "--json") as process:
            wait_until(lambda: office.simulator.batches() != [], process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "")
        assert "canwait run job.yaml" in err
        assert "canwait cancel labels" in err
        assert "Traceback" not in err
        assert office.canwait("cancel", "labels").code == 0
        done = office.run().json
        assert len(office.simulator.batches()) == 1
        balanced(office, done)


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_job_pays_nothing_twice(tmp_path: Path, kills: int) -> None:
    """Killed by SIGKILL again and again at arbitrary moments, the same command ends the job: no request ran twice."""
    with desk(tmp_path, "lost_create_reply=1,expiry=1,listing_lag=5m") as office:
        office.write(60, shard={"max_rows": 10})
        for n in range(kills):
            with office.start("run", "job.yaml", "--yes", "-q") as process:
                seen = len(office.simulator.batches())
                while process.poll() is None and len(office.simulator.batches()) == seen:
                    time.sleep(0.01)
                time.sleep(0.05 * n)
                process.kill()
        done = valid(office.run())
        assert (done["ok"], done["rows"]) == (60, 60)
        assert set(office.simulator.executed().values()) == {1}
        balanced(office, done)


def test_a_killed_resend_pays_nothing_twice(tmp_path: Path) -> None:
    """`--only failed`, killed after its batch was sent, and given again: the failed rows are sent once."""
    with desk(tmp_path, "row_400=3", speed=2_000) as office:
        office.write(12)
        assert office.run().json["failed"] == 4
        with office.start("run", "job.yaml", "--yes", "-q", "--only", "failed") as process:
            wait_until(lambda: len(office.simulator.batches()) == 2, process)
            process.kill()
        assert office.run("job.yaml", "--only", "failed").code == 2  # nothing is left to select
        done = office.run().json
        assert (done["ok"], len(office.simulator.batches())) == (12, 2)
        balanced(office, done)


def test_two_processes_share_one_job(tmp_path: Path) -> None:
    """The same command given twice at the same time is one job: both end well, and no request runs twice."""
    with desk(tmp_path, "lost_create_reply=2,expiry=1") as office:
        office.write(40, shard={"max_rows": 5})
        with (
            office.start("run", "job.yaml", "--yes", "--json") as one,
            office.start("run", "job.yaml", "--yes", "--json") as two,
        ):
            said = [process.communicate(timeout=90) for process in (one, two)]
        assert (one.returncode, two.returncode) == (0, 0), said
        assert {json.loads(out)["ok"] for out, _ in said} == {40}
        assert set(office.simulator.executed().values()) == {1}
        balanced(office, office.run().json)


def test_the_ledger_may_be_postgres(office: Desk, postgres_url: str) -> None:
    """With CANWAIT_DB=postgresql://... the same job runs to the same end, and a re-run costs nothing."""
    office.write(6)
    done = valid(office.run(CANWAIT_DB=postgres_url))
    assert (done["ok"], done["confirmed_usd"]) == (6, office.bill_usd())
    assert valid(office.run(CANWAIT_DB=postgres_url))["submissions"] == len(office.simulator.batches()) == 1
    assert office.canwait("doctor", CANWAIT_DB=postgres_url).code == 0


def test_the_local_model_says_where_it_is(office: Desk) -> None:
    """`local install` of an installed model fetches nothing and says where it lies."""
    from canwait.local_model import locate

    if (path := locate()) is None:
        pytest.skip("the local model is not installed: canwait local install")
    assert valid(office.canwait("local", "install", "--json"))["model"] == str(path)


def test_the_simulator_can_be_served(office: Desk) -> None:
    """`canwait sim serve` prints its address, and a job runs against it."""
    office.write(4)
    with office.start("sim", "serve", "--folder", "kept", "--clock", "40000x") as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert office.run(OPENAI_BASE_URL=f"{url}/v1").json["ok"] == 4
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.slow
def test_the_demo_balances_its_books(office: Desk) -> None:
    """`canwait demo`, offline and without a key: within 60 s, one process killed, nothing paid twice, the bill met."""
    started = time.monotonic()
    with office.start("demo", "--json", OPENAI_API_KEY="", OPENAI_BASE_URL="") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check("demo", "1", value := json.loads(out))
    assert (value["simulated"], value["ok"], value["ledger_equals_bill"]) == (True, True, True)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("args", [["cap", "-n", "3"], ["expiry"]])
def test_a_drill_says_what_it_found(office: Desk, args: list[str]) -> None:
    """A drill ends well only if nothing was broken, and its JSON fits its schema."""
    with office.start("drill", *args, "--json") as process:
        out, err = process.communicate(timeout=60)
    check("drill", "1", value := json.loads(out))
    assert (process.returncode, value["name"], value["ok"], value["examples"]) == (0, args[0], True, []), err


@pytest.mark.slow
def test_the_main_job_for_real(tmp_path: Path, shared: Path) -> None:
    """All 3,080 rows of banking77, with a kill, a lost reply and expiring batches: each accounted for, paid once."""
    source = shared / "data" / "text" / "banking77_test.csv"
    with desk(tmp_path, "lost_create_reply=1,expiry=0.3", seed=3) as office:
        with source.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        labels = sorted({row["category"] for row in rows})
        with (office.folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows((f"{i:05d}", row["text"]) for i, row in enumerate(rows))
        kept = (office.folder / "rows.csv").read_bytes()
        output = {"type": "object", "properties": {"label": {"type": "string", "enum": labels}}, "required": ["label"],
                  "additionalProperties": False}  # fmt: skip
        office.write(1, output=output, shard={"max_rows": 500}, retry={"attempts": 10}, budget={"usd": 5})
        (office.folder / "rows.csv").write_bytes(kept)
        with office.start("run", "job.yaml", "--yes", "-q") as process:
            wait_until(lambda: len(office.simulator.batches()) >= 2, process)
            process.kill()
        done = valid(office.run())
        assert (done["rows"], done["ok"]) == (3080, 3080)
        balanced(office, done)
        assert pq.read_table(office.folder / "labels.parquet")["id"].to_pylist() == [f"{i:05d}" for i in range(3080)]
        assert office.run().json["submissions"] == done["submissions"] == len(office.simulator.batches())


def wait_until(happened: Any, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


# --------------------------------------------------------------------------------------------------- looking, deciding


def test_looking_is_published(office: Desk) -> None:
    """What `status`, `why`, `doctor`, `schema`, `init` and `budget` print with --json fits the published schemas."""
    (office.folder / "mine.csv").write_text("id,text\n1,hello\n")
    assert valid(office.canwait("init", "mine.csv", "--json"))["key"] == "id"
    assert valid(office.canwait("status", "--json"))["jobs"] == []
    assert valid(office.canwait("budget", "show", "--json"))["budgets"] == []
    office.write(6)
    office.run()
    assert valid(office.canwait("status", "--json"))["jobs"][0]["ok"] == 6
    assert valid(office.canwait("why", "job.yaml", "--json"))["causes"] == {}  # by its file as by its name
    assert all(c["ok"] for c in valid(office.canwait("doctor", "--json"))["checks"])
    assert set(valid(office.canwait("schema", "--json"))["schemas"]) > {"job", "plan", "run", "event"}
    assert (
        valid(office.canwait("budget", "book", "labels", "--usd", "0.25", "--reason", "a store", "--json"))["spent_usd"]
        > "0.25"
    )
    assert valid(office.canwait("load", "job.yaml", "--json"))["loaded"]["rows"] == 6
    assert valid(office.canwait("status", "labels", "--json"))["jobs"][0]["booked_usd"] == "0.250000"


def test_every_schema_is_strict() -> None:
    """Each published schema of an output is valid 2020-12, closed, and requires all it names; shared parts are equal."""
    shared: dict[str, Any] = {}
    for file in resources.files("canwait").joinpath("schemas").iterdir():
        schema = json.loads(file.read_text("utf-8"))
        jsonschema_rs.meta.validate(schema)
        if file.name == "job.v1.json":
            continue
        name = file.name.removesuffix(".v1.json")
        assert schema["properties"]["schema"] == {"const": f"canwait.{name}/1"}
        for part in objects(schema):
            assert (part["additionalProperties"], part["required"]) == (False, list(part["properties"])), name
        for common in ("usd", "loaded"):
            if common in schema.get("$defs", {}):
                assert shared.setdefault(common, schema["$defs"][common]) == schema["$defs"][common]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)


@pytest.mark.parametrize("name", ["rows", "Größe 1: x", "sub/rows"])
def test_the_first_job_file_can_be_planned(office: Desk, name: str) -> None:
    """`init` writes a job file that plans, whatever the rows and their columns are called; it overwrites nothing."""
    rows = office.folder / f"{name}.csv"
    rows.parent.mkdir(exist_ok=True)
    rows.write_text('Ticket ID,the "body"\n007,hello\n', "utf-8")
    assert office.canwait("init", rows, "--model", "openai/gpt-6-luna").code == 0
    job = rows.with_suffix(".yaml")
    assert office.canwait("plan", job, "--json").json["n_new"] == 1
    before = job.read_bytes()
    assert office.canwait("init", rows).code == 2
    assert job.read_bytes() == before
    assert (
        office.canwait("init", rows, "-o", "mine.yaml", "--key", 'the "body"', "--model", "claude-haiku-5-5").code == 0
    )
    assert office.canwait("plan", "mine.yaml", "--json").json["n_new"] == 1
    assert office.canwait("init", rows, "-o", "bad.yaml", "--model", "gtp/4").code == 2
    assert not (office.folder / "bad.yaml").exists()


def test_events_have_stable_ids_and_no_gaps(office: Desk) -> None:
    """Two readings of `events --since`, split anywhere, are one: each change once, in order, under the same id."""
    office.write(6)
    office.run()
    lines = office.canwait("events").out.splitlines()
    whole = [json.loads(line) for line in lines]
    for event in whole:
        check("event", "1", event)
    assert [e["seq"] for e in whole] == sorted({e["seq"] for e in whole})
    assert len({e["id"] for e in whole}) == len(whole) > 5
    first = office.canwait("events", "--limit", 4).out.splitlines()
    rest = office.canwait("events", "--since", json.loads(first[-1])["seq"], "--job", "labels").out.splitlines()
    assert first + rest == lines


def test_a_person_can_say_what_a_listing_cannot(tmp_path: Path) -> None:
    """While a lost create is not listed its fate is unknown; `resolve --absent` sends it again, `--batch` adopts it."""
    with desk(tmp_path, "lost_create_reply=2,listing_lag=300d") as office:
        for name in ("one", "two"):
            job = office.write(4, name, load=None, prompt=name + ": {{ text }}")
            waiting = office.run(job, "--timeout", "1s", CANWAIT_SETTLE_S="600")
            assert waiting.code == 9
            assert Decimal(waiting.json["unknown_usd"]) > 0
        why = {name: valid(office.canwait("why", name, "--json"))["shards"][0] for name in ("one", "two")}
        assert all(shard["fate_unknown"] for shard in why.values())
        assert f"canwait resolve {why['one']['id']} --absent" in office.canwait("why", "one").out

        found = next(b.id for b in office.simulator.batches())
        adopted = office.canwait("resolve", why["one"]["id"], "--batch", found, "--json", CANWAIT_SETTLE_S="600")
        assert valid(adopted)["batch"] == found
        assert office.run("one.yaml", CANWAIT_SETTLE_S="600").json["submissions"] == 1
        assert valid(office.canwait("resolve", why["two"]["id"], "--absent", "--json"))["batch"] is None
        assert office.run("two.yaml", CANWAIT_SETTLE_S="600").json["ok"] == 4
        assert len(office.simulator.batches()) == 3  # the person was wrong about the second one, and it is two batches


def test_a_frozen_budget_is_thawed_by_a_person(tmp_path: Path) -> None:
    """A bill above the reservation freezes the budget: exit code 5 until `budget thaw`, then the job goes on."""
    with desk(tmp_path, "overbill=4") as office:
        office.write(12, shard={"max_rows": 4}, budget={"usd": 50}, output=None)
        frozen = office.run()
        seen = {b["id"]: b["frozen"] for b in valid(office.canwait("budget", "show", "--json"))["budgets"]}
        assert seen["job:labels"]
        if frozen.code != 5:  # all batches were on their way before the bill came
            office.write(13, shard={"max_rows": 4}, budget={"usd": 50}, output=None)
            frozen = office.run()
        assert (frozen.code, frozen.problem["code"]) == (5, "budget_frozen")
        for name, why in seen.items():
            if why:
                assert valid(office.canwait("budget", "thaw", name, "--json"))["frozen"] is None
        assert office.run().code == 0
        assert office.canwait("budget", "thaw", "job:labels").code == 2


# ------------------------------------------------------------------------------------------------------------ rehearsal


def test_a_rehearsal_says_so_everywhere_and_touches_nothing(office: Desk) -> None:
    """With --sim every screen says SIMULATED, no key is needed, and the real ledger never hears of it."""
    office.write(6)
    bare = {"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None}
    screens = [("plan", "job.yaml"), ("run", "job.yaml", "--yes"), ("status",), ("why", "labels"), ("budget", "show"),
               ("load", "job.yaml"), ("cancel", "labels")]  # fmt: skip
    for screen in screens:
        said = office.canwait(*screen, "--sim", **bare)
        assert (said.code, said.out.splitlines()[0]) == (0, "SIMULATED"), said
    value = valid(office.canwait("status", "labels", "--sim", "--json", **bare))
    assert (value["simulated"], value["jobs"][0]["ok"]) == (True, 6)
    event = json.loads(office.canwait("events", "--sim", "--limit", 1, **bare).out)
    assert event["simulated"] is True
    assert not (office.folder / ".canwait" / "ledger.db").exists()
    assert office.simulator.batches() == []
    assert valid(office.canwait("status", "--json"))["jobs"] == []


def test_a_rehearsal_plays_its_scenario(office: Desk) -> None:
    """`--scenario` rehearses against a provider that misbehaves as asked."""
    office.write(6)
    said = office.run("job.yaml", "--scenario", "row_400=5", OPENAI_API_KEY=None)
    assert (said.code, valid(said)["failed"], said.json["simulated"]) == (6, 6, True)


# --------------------------------------------------------------------------------------------------------- how it talks


def test_stdout_has_only_data(tmp_path: Path) -> None:
    """With --json a process without a terminal writes one line to stdout, whatever happens, and no colour anywhere."""
    with desk(tmp_path, "lost_create_reply=1,listing_lag=18h") as office:
        office.write(6)
        with office.start("run", "job.yaml", "--yes", "--json", TERM="xterm-256color", CANWAIT_SETTLE_S="9") as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert len(out.splitlines()) == 1
        assert "waiting: fate unknown" in err
        assert "\x1b" not in out + err
        check("run", "1", json.loads(out))


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 3)])
def test_a_person_at_a_terminal_is_asked_once(tmp_path: Path, answer: str, code: int) -> None:
    """On a terminal `run` shows the plan, asks, and draws progress on stderr; no is no, and stdout has the answer alone."""
    with desk(tmp_path, speed=3_000) as office:
        office.write(6)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "canwait", "run", "job.yaml", "--json"]
        with subprocess.Popen(
            command, cwd=office.folder, env=os.environ | office.env, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
        ) as process:  # fmt: skip
            os.close(theirs)
            seen = b""
            while b"[y/N]" not in seen:
                seen += os.read(ours, 4096)
            os.write(ours, answer.encode() + b"\n")
            with contextlib.suppress(OSError):  # EIO: the other side has closed
                while more := os.read(ours, 4096):
                    seen += more
            out = process.communicate(timeout=30)[0]
        os.close(ours)
        screen = seen.decode()
        assert process.returncode == code, screen
        assert screen.count("[y/N]") == 1
        assert "worst case $" in screen
        if code == 0:
            assert json.loads(out)["ok"] == 6
        else:
            assert out == ""
            assert "not approved" in screen
            assert office.simulator.batches() == []


def test_progress_is_drawn_on_a_terminal_only(tmp_path: Path) -> None:
    """Where a person watches, rows, confirmed, reserved and forecast are drawn over one line; in a pipe nothing is."""
    with desk(tmp_path, speed=1_500) as office:
        office.write(6)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "canwait", "run", "job.yaml", "--yes"]
        with subprocess.Popen(
            command, cwd=office.folder, env=os.environ | office.env | {"NO_COLOR": "1", "COLUMNS": "200"}, stdin=theirs,
            stderr=theirs, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            os.close(theirs)
            seen = b""
            with contextlib.suppress(OSError):
                while more := os.read(ours, 4096):
                    seen += more
            out = process.communicate(timeout=30)[0]
        os.close(ours)
        screen = seen.decode()
        assert process.returncode == 0
        assert "0 / 6 rows" in screen
        for word in ("confirmed", "reserved", "forecast"):
            assert word in screen
        assert re.search(r"\x1b\[[0-9;]*m", screen) is None  # NO_COLOR
        assert "\x1b" not in out
        assert "completed" in out


def test_words_of_any_script_are_printed_anywhere(office: Desk) -> None:
    """Where the terminal's character set lacks a sign, it is escaped: no verb ends in an encoding error."""
    office.write(4, prompt="日本 {{ text }}", owner="日本")
    for args in (
        ["plan", "job.yaml"],
        ["run", "job.yaml", "--yes", "--json"],
        ["budget", "show"],
        ["plan", "日本\udcff.yaml"],
    ):
        with office.start(*args, PYTHONIOENCODING="iso8859-5") as process:
            out, err = process.communicate(timeout=30)
        assert process.returncode == (2 if "日本" in args[-1] else 0), err
        assert "Traceback" not in err
        assert out.isascii()


def test_quiet_is_quiet(office: Desk) -> None:
    """`--quiet` leaves stderr empty when nothing is wrong."""
    office.write(6)
    assert office.canwait("run", "job.yaml", "--yes", "--quiet").err == ""


def test_help_costs_little_cpu() -> None:
    """`canwait --help` takes at most 150 ms of CPU, median of five."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # as a user has it, without our guard

    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [Path(sys.executable).with_name("canwait"), "--help"], env=environment, check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert sorted(cpu_s() for _ in range(5))[2] <= 0.150


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


def test_the_page_names_every_verb_and_flag() -> None:
    """docs/cli.md has a heading for every verb and names each of its flags, and no flag that does not exist."""
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    head, *sections = re.split(
        r"^### `canwait ([a-z ]+?)(?: [^a-z\n]+)?`$", page.partition("## Exit codes")[0], flags=re.M
    )
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    verbs = {" ".join(path): command for path, command in commands(cli) if not isinstance(command, click.Group)}
    assert set(texts) == set(verbs)
    for words, command in verbs.items():
        flags = {flag for param in command.params for flag in param.opts if flag.startswith("--")}
        everywhere = {flag for flag in flags if f"`{flag}" in head}
        assert {flag for flag in flags - everywhere if f"`{flag}" not in texts[words]} == set(), words
        known = flags | (
            {"--port", "--seed", "--clock", "--scenario", "--folder", "--answer"} if "sim" in words else set()
        )
        assert set(re.findall(r"`(--[a-z-]+)", texts[words])) <= known | {"--json"}, words


def test_every_verb_explains_itself(office: Desk) -> None:
    """`canwait VERB --help` says in one sentence what the verb does, and ends well."""
    for path, command in commands(cli):
        said = office.canwait(*path, "--help")
        assert said.code == 0
        assert command.help
        assert command.help.splitlines()[0] in " ".join(said.out.split())


def test_every_error_has_its_code_on_the_page() -> None:
    """docs/cli.md says what each exit code of an error means."""
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.CanwaitError)}
    assert all(f"| {code} |" in page for code in codes | {0, 6, 10, 130})


def test_every_variable_is_on_the_page() -> None:
    """docs/cli.md names every environment variable of ours that the code reads."""
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    source = "".join(p.read_text("utf-8") for p in (ROOT / "src" / "canwait").rglob("*.py"))
    assert {name for name in re.findall(r"CANWAIT_[A-Z_]+[A-Z]", source) if f"`{name}`" not in page} == set()


def test_status_of_everything_is_a_view(office: Desk) -> None:
    """`status` prints what `views` answers: one number has one source."""
    office.write(6)
    office.run()
    with closing(office.ledger()) as ledger:
        figures = views.figures(ledger, "labels")
    said = office.canwait("status", "labels", "--json").json["jobs"][0]
    assert (said["ok"], said["input_tokens"], said["submissions"]) == (figures.ok, figures.input_tokens, 1)
