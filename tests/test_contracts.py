"""A contract is stated once, kept by the schedule or refused with the arithmetic, and revised by somebody who is named."""

from __future__ import annotations

import json
from datetime import timedelta
from importlib import resources
from pathlib import Path

import jsonschema_rs
import pytest

import canwait
from canwait import errors, publishing
from canwait.freshness import Contract
from canwait.types import Job
from shelf import Shelf, job_of, shelf
from simulated import changed, desk

DAY_S = 86_400


def contract(hours: int, reader: str = "dash", *, missed_runs: int = 0) -> Contract:
    return Contract("job", reader, hours * 3600, "serve", missed_runs)


def broken(s: Shelf, job: Job, tier: str = "batch", window_h: float = 24) -> list[str]:
    found = publishing.breaks(s.client.ledger, job, tier, round(window_h * 3600))
    return [f.arithmetic for f in found]


# ------------------------------------------------------------------------------------------------------------ stated


def test_a_contract_is_declared_by_reading_and_kept_with_who_and_when(tmp_path: Path, ledger_url: str) -> None:
    """Saying the same again adds nothing; other terms, and a person's revision, are added; on both databases."""
    with shelf(tmp_path, ledger_url) as s:
        ledger = s.client.ledger
        for hours in (24, 24, 12):
            s.reader(max_age=f"{hours}h", on_stale="serve")
            s.wait(hours=1)
        publishing.revise(ledger, contract(48), "ada", s.now)
        history = publishing.contract_history(ledger, "job", "dash")
        assert [(h.contract.max_age_s // 3600, h.said) for h in history] == [
            (24, "declared"), (12, "declared"), (48, "revised"),
        ]  # fmt: skip
        assert (history[-1].who, history[-1].at) == ("ada", s.now)
        assert publishing.contract_of(ledger, "job", "dash") == contract(48)
        kinds = [e.kind for e in ledger.events(job="job")]
        assert kinds == ["contract_declared", "contract_declared", "contract_revised"]


def test_a_revision_stands_though_the_code_says_the_old_terms_again(tmp_path: Path) -> None:
    """What the job owes is the revision; what that code is told is still by its own, stricter terms."""
    with shelf(tmp_path) as s:
        s.reader(max_age="24h", on_stale="serve")
        publishing.revise(s.client.ledger, contract(48), "ada", s.now)
        again = s.reader(max_age="24h", on_stale="serve")
        assert publishing.contract_of(s.client.ledger, "job", "dash") == contract(48)
        assert again.contract.max_age_s == DAY_S
        publishing.revise(s.client.ledger, contract(6), "ada", s.now)
        assert again.contract.max_age_s == 6 * 3600


def test_without_an_age_a_reader_has_the_contract_that_is_known(tmp_path: Path) -> None:
    """Stated with `canwait fresh`; where none is known, it says how to state one."""
    with shelf(tmp_path) as s:
        publishing.declare(s.client.ledger, contract(24), "ada", s.now)
        assert s.reader(on_stale="serve").contract == contract(24)
        with pytest.raises(errors.NotFound, match="other"):
            s.reader("other")


def test_only_what_was_declared_is_revised(tmp_path: Path) -> None:
    """A revision of nothing is a mistake in a name."""
    with shelf(tmp_path) as s, pytest.raises(errors.NotFound, match="reader of job named dash"):
        publishing.revise(s.client.ledger, contract(48), "ada", s.now)


# -------------------------------------------------------------------------------------------------------- the arithmetic


def test_a_schedule_that_cannot_keep_a_contract_is_named_with_the_sum(tmp_path: Path, ledger_url: str) -> None:
    """P + q(T) <= S, each number shown: the longest gap of the schedule, what a run takes, what the reader accepts."""
    with shelf(tmp_path, ledger_url) as s:
        publishing.declare(s.client.ledger, contract(36), "dash", s.now)
        publishing.declare(s.client.ledger, contract(24 * 9, "weekly"), "weekly", s.now)
        assert broken(s, job_of(tmp_path, schedule="0 2 * * *"), window_h=12) == []
        assert broken(s, job_of(tmp_path, schedule="0 2 * * *"), window_h=24) == [
            "every 24 h + 24 h to make it (at most, by the batch tier and the deadline) = 2 d > 36 h for dash"
        ]
        weekly = broken(s, job_of(tmp_path, schedule="0 2 * * mon"), window_h=24)
        assert [w.rpartition("> ")[2] for w in weekly] == ["36 h for dash"]
        assert broken(s, job_of(tmp_path), window_h=24) == []


def test_missed_runs_count_as_periods(tmp_path: Path) -> None:
    """(1 + k) P + q(T) where k failed runs in a row must be survived."""
    with shelf(tmp_path) as s:
        publishing.declare(s.client.ledger, contract(48, missed_runs=1), "dash", s.now)
        assert broken(s, job_of(tmp_path, schedule="0 2 * * *"), window_h=1) == [
            "every 2 x 24 h + 1 h to make it (at most, by the batch tier and the deadline) = 2 d 1 h > 2 d for dash"
        ]


def test_nineteen_runs_say_how_long_a_run_takes(tmp_path: Path) -> None:
    """With 18 the window counts, with 19 what 95 % of them took; loads of the same answers and other tiers do not."""
    with shelf(tmp_path) as s:
        publishing.declare(s.client.ledger, contract(36), "dash", s.now)
        daily = job_of(tmp_path, schedule="0 2 * * *")
        for n in range(19):
            assert len(broken(s, daily)) == 1
            s.open(s.now)
            s.wait(hours=2)
            s.load({"a": f"{n}"})
            s.see(s.now)
            s.load({"a": f"{n}"})
        assert broken(s, daily) == []
        assert len(broken(s, daily, tier="flex")) == 1
        publishing.revise(s.client.ledger, contract(25), "ada", s.now)
        (words,) = broken(s, daily)
        assert "24 h + 2 h to make it (95 % of 19 runs) = 26 h > 25 h" in words


def test_a_contract_that_was_never_kept_does_not_stop_the_job(tmp_path: Path) -> None:
    """Only a change that breaks what held is refused: a reader cannot stop a job by asking for what it never had."""
    with shelf(tmp_path) as s:
        s.job = job_of(tmp_path, schedule="0 2 * * *")
        s.open(s.now, window_s=3600)
        publishing.declare(s.client.ledger, contract(1, "greedy"), "greedy", s.now)
        publishing.declare(s.client.ledger, contract(36), "dash", s.now)
        assert broken(s, s.job, window_h=1) == []
        (words,) = broken(s, job_of(tmp_path, schedule="0 2 * * mon"), window_h=1)
        assert words.endswith("for dash")


# ------------------------------------------------------------------------------------------------ at plan time, in a file


def test_a_change_that_breaks_a_reader_is_refused_in_the_job_file(tmp_path: Path) -> None:
    """`plan` and `run` refuse it with the file's line, the readers' names and the sum; a revision lets it through."""
    with desk(tmp_path) as office:
        office.write(6, schedule="0 */6 * * *", deadline="24h")
        assert office.run().code == 0
        assert (
            office.canwait("fresh", "job.yaml", "--reader", "dash", "--max-age", "30h", "--on-stale", "serve").code == 0
        )
        assert office.run().code == 0
        office.write(6, schedule="0 2 * * *", deadline="24h")
        spent = office.money()
        for verb in (("plan", "job.yaml"), ("run", "job.yaml", "--yes")):
            said = office.canwait(*verb)
            assert said.code == 2
            assert "job.yaml:1:" in said.err
            assert "schedule: would break what a reader accepts: every 24 h + 24 h to make it" in said.err
            assert "> 30 h for dash" in said.err
            assert "canwait fresh labels --reader NAME --revise" in said.err
        assert office.money() == spent
        again = office.canwait("fresh", "labels", "--reader", "dash", "--max-age", "48h")
        assert (again.code, "say --revise" in again.err) == (2, True)
        assert office.canwait("fresh", "labels", "--reader", "dash", "--max-age", "48h", "--revise").code == 0
        assert office.run().code == 0
        with changed(office.folder, office.env), canwait.connect() as client:
            history = publishing.contract_history(client.ledger, "labels", "dash")
        assert [(h.said, h.contract.max_age_s, h.contract.on_stale) for h in history] == [
            ("declared", 30 * 3600, "serve"), ("revised", 48 * 3600, "serve"),
        ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- where sets stand


def test_every_set_and_reader_stands_in_one_table(tmp_path: Path, ledger_url: str) -> None:
    """Fresh, stale by how much, blocked, never built, unconsumed with its money, and the age that was read; no line is
    invented and none is missing."""
    with shelf(tmp_path, ledger_url) as s:
        ledger = s.client.ledger
        publishing.declare(ledger, Contract("later", "dash", 3600, "serve"), "dash", s.now)
        s.publish({"a": "bug"})
        (later, alone) = sorted(publishing.standings(ledger, s.now), key=lambda f: f.job, reverse=True)
        assert (later.job, later.state, later.broken) == ("later", "never_built", True)
        assert (alone.reader, alone.state, alone.broken) == (None, "unconsumed", False)
        with s.reader("dash", max_age="24h", on_stale="serve") as labels:
            for hours in (1, 2, 24):
                s.wait(hours=hours)
                labels.get("a")
        s.reader("strict", max_age="26h")
        s.wait(hours=1)
        dash, strict = publishing.standings(ledger, s.now, "job")
        assert (dash.reader, dash.state, dash.late, dash.age) == (
            "dash", "stale", timedelta(hours=4), timedelta(hours=28),
        )  # fmt: skip
        assert (dash.p95_age, dash.last_read) == (timedelta(hours=27), s.now - timedelta(hours=1))
        assert (strict.state, strict.late, strict.last_read) == ("blocked", timedelta(hours=2), None)
        s.publish({"a": "new"})
        assert [f.state for f in publishing.standings(ledger, s.now, "job")] == ["fresh", "fresh"]
        with pytest.raises(errors.NotFound, match="nothing"):
            publishing.standings(ledger, s.now, "nothing")


def test_money_that_nobody_reads_is_counted_from_the_last_read(tmp_path: Path) -> None:
    """UNCONSUMED is what was paid for publications since the last one anybody read."""
    with desk(tmp_path) as office:
        office.write(6)
        office.run()
        with changed(office.folder, office.env), canwait.connect() as client:
            (alone,) = publishing.standings(client.ledger, client.clock.now())
            spent = client.job("job.yaml").figures().confirmed_micros
            assert (alone.unread_micros, alone.state) == (spent, "unconsumed")
            canwait.reader("labels", as_="me", max_age="1h", client=client).frame()
            (read,) = publishing.standings(client.ledger, client.clock.now())
            assert read.unread_micros == 0
        office.write(9, load={"to": "labels.parquet", "mode": "replace"})
        office.run()
        with changed(office.folder, office.env), canwait.connect() as client:
            (read,) = publishing.standings(client.ledger, client.clock.now())
            assert read.unread_micros == client.job("job.yaml").figures().confirmed_micros - spent > 0


def test_fresh_prints_what_the_schema_says(tmp_path: Path) -> None:
    """The table for people, the object for programs, and exit code 8 while a contract is broken."""
    schema = json.loads(resources.files("canwait").joinpath("schemas/fresh.v1.json").read_text("utf-8"))
    with desk(tmp_path) as office:
        assert "Nothing is published yet" in office.canwait("fresh").out
        office.write(6, schedule="0 2 * * *")
        office.run()
        assert "UNCONSUMED $0.0000" in office.canwait("fresh").out
        said = office.canwait("fresh", "labels", "--reader", "dash", "--max-age", "48h")
        assert said.code == 0
        assert ["SET", "READER", "CONTRACT"] == said.out.split()[:3]
        assert "<= 2 d, block" in said.out
        assert office.canwait("fresh", "--reader", "dash").code == 2
        assert office.canwait("fresh", "labels", "--revise").code == 2
        assert office.canwait("fresh", "labels", "--reader", "x", "--max-age", "soon").code == 2
        assert office.canwait("fresh", "labels", "--reader", "fast", "--max-age", "1s").code in (0, 8)
        said = office.canwait("fresh", "--json")
        jsonschema_rs.validate(schema, said.json)
        dash, fast = said.json["sets"]
        assert (dash["reader"], dash["state"], dash["can_be_kept"], dash["max_age_s"]) == (
            "dash",
            "fresh",
            True,
            172_800,
        )
        assert (fast["reader"], fast["can_be_kept"]) == ("fast", False)
        assert "> 1 s for fast" in fast["arithmetic"]
        assert said.code == (8 if fast["state"] == "blocked" else 0)
        assert "cannot be kept" in office.canwait("fresh", "labels").out


def test_fresh_of_a_job_shows_what_was_stated_and_what_is_kept(tmp_path: Path) -> None:
    """Every declaration and revision with who, when and its sum; every publication, and until when it was effective."""
    schema = json.loads(resources.files("canwait").joinpath("schemas/fresh.v1.json").read_text("utf-8"))
    with desk(tmp_path) as office:
        office.write(6, schedule="0 2 * * *")
        office.run()
        office.canwait("fresh", "labels", "--reader", "dash", "--max-age", "48h", "--on-stale", "serve")
        office.write(7, schedule="0 2 * * *", load={"to": "labels.parquet", "mode": "replace"})
        office.run()
        office.canwait("fresh", "labels", "--reader", "dash", "--max-age", "36h", "--on-stale", "block", "--revise")
        said = office.canwait("fresh", "labels")
        assert "kept: 2 of 2 publications, the last is version 2" in said.out
        tail = said.out.partition("stated:")[2].splitlines()
        assert ["declared by" in line for line in tail if "dash" in line] == [True, False]
        assert "<= 36 h, block" in tail[-1]
        assert (
            "every 24 h + 24 h to make it (at most, by the batch tier and the deadline) = 2 d > 36 h for dash"
            in tail[-1]
        )
        shown = office.canwait("fresh", "labels", "--json").json
        jsonschema_rs.validate(schema, shown)
        first, second = shown["publications"]
        assert (first["rows"], first["kept"], second["effective_until"]) == (6, True, None)
        assert second["source_as_of"] == first["effective_until"]
        assert [s["said"] for s in shown["stated"]] == ["declared", "revised"]
        assert [s["can_be_kept"] for s in shown["stated"]] == [True, False]
        everything = office.canwait("fresh", "--json").json
        assert (everything["publications"], everything["stated"]) == ([], [])
        (row,) = [
            json.loads(line) for line in office.canwait("read", "labels", "000001", "--as", "dash").out.splitlines()
        ]
        assert row["effective_until"] is None


def test_a_reader_that_is_gone_holds_nothing_up(tmp_path: Path, ledger_url: str) -> None:
    """Its contract is withdrawn by somebody who is named, breaks nothing any more, and stands again when it reads again."""
    with shelf(tmp_path, ledger_url) as s:
        ledger, weekly = s.client.ledger, job_of(tmp_path, schedule="0 2 * * mon")
        s.reader(max_age="24h", on_stale="serve")
        assert len(broken(s, weekly)) == 1
        publishing.withdraw(ledger, "job", "dash", "ada", s.now)
        assert (broken(s, weekly), publishing.contract_of(ledger, "job", "dash")) == ([], None)
        with pytest.raises(errors.NotFound):
            publishing.standings(ledger, s.now, "job")
        with pytest.raises(errors.NotFound):
            publishing.withdraw(ledger, "job", "dash", "ada", s.now)
        s.reader(max_age="24h", on_stale="serve")
        assert len(broken(s, weekly)) == 1
        said = [(h.said, h.who) for h in publishing.contract_history(ledger, "job", "dash")]
        assert [word for word, _ in said] == ["declared", "withdrawn", "declared"]
        assert said[1][1] == "ada"


def test_a_reader_may_take_its_terms_from_the_job_file(tmp_path: Path) -> None:
    """`fresh FILE --reader NAME` states the file's `freshness:`; without one, and of a bare name, an age must be said."""
    with desk(tmp_path) as office:
        office.write(6, freshness={"max_age": "36h", "on_stale": "serve"})
        office.run()
        assert office.canwait("fresh", "labels", "--reader", "dash").code == 2
        (dash,) = office.canwait("fresh", "job.yaml", "--reader", "dash", "--json").json["sets"]
        assert (dash["max_age_s"], dash["on_stale"]) == (36 * 3600, "serve")
        assert office.canwait("fresh", "labels", "--reader", "dash", "--withdraw").code == 0
        assert "UNCONSUMED" in office.canwait("fresh", "labels").out
