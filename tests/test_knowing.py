"""`status` and `why`: what is so of a job in words with their numbers, what each way out costs, and commands that work."""

from __future__ import annotations

import json
import re
import shlex
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from canwait import landing, notifying, publishing
from canwait.blobs import Blobs
from canwait.client import Client
from canwait.clock import from_us, to_us
from canwait.codec import terms_to_json
from canwait.db import connect
from canwait.drills.histories import TERMS, VirtualClock
from canwait.engine import Pace
from canwait.freshness import Contract
from canwait.knowing import Knowing, Looking, known
from canwait.ledger import Ledger, NewShard, OpenPlan
from canwait.schedule import clock
from canwait.settings import settings
from canwait.simulator import ManualClock, Scenario
from canwait.spec import job_from_dict
from canwait.turnaround import Progress
from canwait.types import (
    Batch,
    BatchStatus,
    BudgetSpec,
    JobState,
    MarkClass,
    Notify,
    Outcome,
    Rescue,
    Shard,
    Terms,
    Tier,
)
from canwait.watching import Reached
from listeners import Kept, mail_server
from opened import LIMITS, new_shard, settlement
from simulated import START, Desk, Said, desk, simulated
from test_cli import valid

HOUR_S = 3600.0
ME = Notify("mailto:me@example.com")
OFFERS = [{"chosen": True, "limits": {"window_s": 86_400}}]


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Past:
    """A ledger whose batches are sent, polled and ended by hand, on a clock that jumps."""

    ledger: Ledger
    blobs: Blobs
    clock: VirtualClock = field(default_factory=VirtualClock)
    provider: str = "fake"
    model: str = "fake-1"

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def wait(self, hours: float) -> None:
        self.clock.at += timedelta(hours=hours)

    def open(self, job: str, *shards: NewShard, deadline_h: float = 24, micros: int | None = 10**9, terms: Terms = TERMS,
             revision: int = 0) -> None:  # fmt: skip
        n_rows = sum(shard.n_lines for shard in shards)
        digest = f"{abs(hash(tuple(shard.id for shard in shards))):012x}"[:12]
        body = {
            "id": f"p_{digest}", "n_rows": n_rows, "n_duplicates": 0, "n_reused": 0, "expected_micros": 100,
            "worst_micros": 100 * len(shards), "offers": OFFERS, "tier": "batch",
        }  # fmt: skip
        plan = OpenPlan(
            job, digest, body, terms_to_json(replace(terms, provider=self.provider, model=self.model)), "team",
            BudgetSpec(micros, None, None), self.now + timedelta(hours=deadline_h),
            [replace(shard, provider=self.provider, next_at=self.now, manifest_blob=self.manifest()) for shard in shards],
            [(shard.id, array("I", [1] * shard.n_lines).tobytes()) for shard in shards], revision,
        )  # fmt: skip
        assert self.ledger.open_plan(plan, self.now)

    def manifest(self) -> str:
        """Of three lines that nobody asks for."""
        with self.blobs.scratch() as folder:
            table = pa.table([[0, 1, 2], [b"%016d" % n for n in range(3)], *[[1] * 3] * 3], schema=landing.MANIFEST)
            pq.write_table(table, folder / "manifest.parquet")
            return self.blobs.adopt(folder / "manifest.parquet")

    def claim(self, shard: str) -> Shard:
        return self.ledger.claim_one(shard, "caller", self.now, 10)

    def send(self, shard: str) -> None:
        self.ledger.begin_submit(self.claim(shard), LIMITS, MarkClass.FINDABLE, self.now)
        held = self.claim(shard)
        self.ledger.begin_try(held, "acct", 10, self.now)
        self.ledger.submitted(held, Batch(f"b-{shard}", BatchStatus.RUNNING, self.now), self.now, "accepted", self.now)

    def poll(self, shard: str, n_done: int | None = None) -> None:
        """Somebody asks its provider, and will do so again in a minute."""
        held, later = self.claim(shard), self.now + timedelta(minutes=1)
        self.ledger.polled(held, Batch(f"b-{shard}", BatchStatus.RUNNING, self.now, n_done=n_done), later, self.now)

    def end(self, shard: str, outcomes: Sequence[Outcome] = (Outcome.OK,) * 3) -> None:
        self.ledger.ended(self.claim(shard), Batch(f"b-{shard}", BatchStatus.COMPLETED, self.now), self.now)
        self.ledger.settle(self.claim(shard), settlement(outcomes), self.now)

    def history(self, n: int = 100, *, counts: bool = True) -> None:
        """`n` batches that took up to 10 hours, evenly, and stood still for the first half of it."""
        self.open("old", *(new_shard(f"old{i}") for i in range(n)), deadline_h=10_000)
        for i in range(1, n + 1):
            half = i * 5 / n
            self.send(f"old{i - 1}")
            self.wait(half)
            for n_done in (0, 1):
                self.poll(f"old{i - 1}", n_done if counts else None)
            self.wait(half)
            self.end(f"old{i - 1}")
        self.ledger.set_job_state("old", JobState.COMPLETED, f"{3 * n} ok, 0 failed, 0 missing of {3 * n}", self.now)

    def out(self, *rose_h: float, hours: float, deadline_h: float, **terms: object) -> None:
        """A job of as many batches, each out for `hours`, whose count rose last after so many; polled a moment ago."""
        names = [f"s{n}" for n in range(len(rose_h))]
        self.open("job", *map(new_shard, names), deadline_h=deadline_h, terms=replace(TERMS, **terms))  # type: ignore[arg-type]
        for name in names:
            self.send(name)
        for hour, name in sorted(zip(rose_h, names, strict=True)):
            self.wait(hour - (self.now - self.began).total_seconds() / HOUR_S)
            self.poll(name, 1)
        self.wait(hours - (self.now - self.began).total_seconds() / HOUR_S)
        for name in names:
            self.poll(name, 1)

    @property
    def began(self) -> datetime:
        return from_us(min(s["submitted_us"] for s in self.ledger.query("shards", job="job")))

    def look(self, job: str = "job") -> Knowing:
        return known(self.ledger, self.blobs, job, self.now)


@pytest.fixture
def past(ledger_url: str, tmp_path: Path) -> Iterator[Past]:
    with closing(Ledger(connect(ledger_url))) as ledger:
        yield Past(ledger, Blobs(tmp_path / "blobs"))


# -------------------------------------------------------------------------------------------------------- the progress


def counted(ledger: Ledger, shard: str = "s0") -> Progress | None:
    text = ledger.shard_row(shard)["progress"]
    return Progress(*json.loads(text)) if text else None


def test_a_poll_keeps_how_a_batch_gets_on(past: Past) -> None:
    """Three numbers a shard: the most that was counted, when it rose, and how long it is known to have stood still before.

    A provider that counts back, or counts more than there is, makes no progress; one that counts nothing has none.
    """
    past.open("job", new_shard("s0"))
    past.send("s0")
    seen = []
    for n_done in (None, 0, 2, 1, 2, 99):
        past.poll("s0", n_done)
        seen.append(counted(past.ledger))
        past.wait(1)
    hour = HOUR_S
    assert seen == [
        None, Progress(0, 0.0, 0.0), *[Progress(2, 2 * hour, hour)] * 3, Progress(3, 5 * hour, 2 * hour),
    ]  # fmt: skip
    assert past.ledger.shard_row("s0")["looked_us"] is not None


def test_a_poll_that_dies_is_no_poll(past: Past) -> None:
    """Progress and the poll it comes from are one transaction: a crash keeps both or neither."""
    past.open("job", new_shard("s0"))
    past.send("s0")
    past.poll("s0", 1)
    before = dict(past.ledger.shard_row("s0"))
    past.wait(1)

    def kill(where: str) -> None:
        if where == "before polled":
            raise Killed

    past.ledger.db.fault = kill
    with pytest.raises(Killed):
        past.poll("s0", 2)
    past.ledger.db.fault = lambda where: None
    after = dict(past.ledger.shard_row("s0"))
    same = ("progress", "looked_us", "batch", "next_us")
    assert [after[name] for name in same] == [before[name] for name in same]
    past.wait(1)
    past.poll("s0", 2)
    assert counted(past.ledger) == Progress(2, 2 * HOUR_S, 0.0)


# ------------------------------------------------------------------------------------------------------- what is so


def test_running_says_when_it_is_ready(past: Past) -> None:
    """On course: ready by the median of those that were out for as long, and by their 95 %, with the sample."""
    past.history()
    past.out(1.0, hours=1, deadline_h=24)
    now = past.look()
    assert (now.word, now.command, now.found) == ("running", None, ())
    assert now.ready is not None
    assert now.ready.p50 is not None
    assert now.ready.p95 is not None
    hours = [(at - past.began).total_seconds() / HOUR_S for at in (now.ready.p50, now.ready.p95)]
    assert hours == pytest.approx([5.5, 9.6], abs=0.01)  # of 90 that took longer than an hour
    assert (
        now.words
        == f"ready {at(now.ready.p50, past)} (p95 {at(now.ready.p95, past)}): 101 past batches; 1 still unfinished are counted"
    )


def test_before_there_is_history_the_window_speaks(past: Past) -> None:
    """With fewer than 20 past batches nothing is called slow or stuck, and the provider's window is all that is promised."""
    past.history(5)
    past.out(0.0, hours=9, deadline_h=72)
    now = past.look()
    end = past.began + timedelta(days=1)
    assert (now.word, now.words) == ("running", f"back by {at(end, past)} by the provider's window (6 past batches)")
    assert (
        "How long it takes is not known: the provider's window of 24 h; 6 past batches are too few (20 needed)."
        in now.sentences[1]
    )


def test_slow_is_no_alarm(past: Past) -> None:
    """Later than most and likely in time: said with the share and the odds, and nothing has to be typed."""
    past.history()
    past.out(8.4, hours=8.5, deadline_h=9.5)
    now = past.look()
    assert (now.word, now.command) == ("slow", None)
    assert now.words == (
        "within what was seen: 16% were still out after 8 h 30 min (101 past batches; 1 still unfinished are counted); "
        "in time with about 67% (16 earlier cases)"
    )
    assert [f.kind for _, f in Looking(past.ledger, past.now).alarms()] == ["slow"]


def test_stuck_is_told_with_its_numbers(past: Past) -> None:
    """No row for longer than 99 % ever stood still, at any age; what batches like it take, and on how many that rests."""
    past.history()
    past.out(1.0, hours=6.5, deadline_h=9)
    now = past.look()
    assert (now.word, now.command) == ("stuck", "canwait why job")
    assert now.words.startswith(
        "no row for 5 h 30 min; 99 % never stood still for more than 4 h 57 min (100 past batches)"
    )
    assert list(now.sentences[:2]) == [
        "3 of 3 rows are not answered yet, in 1 batch at fake.",
        "Submitted 6 h 30 min ago. Batches like it (fake/fake-1 on batch, 1 to 9 rows) take 5 h 6 min (p50), 10 h (p99): "
        "101 past batches; 1 still unfinished are counted.",
    ]


def at(time: datetime, past: Past) -> str:
    return clock(time, past.now)


def test_an_outage_hides_no_batch(past: Past) -> None:
    """Batches that stand still together are all stuck: what stands still now is no measure of how long that is normal."""
    past.history()
    past.out(*[1.0] * 4, hours=7, deadline_h=24)
    (stuck,) = [each for each in past.look().found if each.finding.kind == "stuck"]
    assert (stuck.n, stuck.finding.subject) == (4, "job")
    assert past.look().words.startswith("4 of 4 batches; the worst no row for 6 h; ")


def test_without_counts_time_tells(past: Past) -> None:
    """Of a provider that counts nothing a batch is stuck once it is out for longer than 99 % took."""
    past.history(counts=False)
    past.open("job", new_shard("s0"), deadline_h=48)
    past.send("s0")
    past.wait(9.85)
    past.poll("s0")
    assert past.look().word == "slow"
    past.wait(0.1)
    past.poll("s0")
    now = past.look()
    assert (now.word, now.words) == ("stuck", "out for 9 h 57 min; 99 % were back in 9 h 54 min (100 past batches)")


def test_at_risk_names_odds_and_readers(past: Past) -> None:
    """Less than even odds of being in time, with the earlier cases, the deadline, and by when readers need it."""
    past.history()
    past.out(1.9, hours=2, deadline_h=5)
    publish(past, source_age_h=15)
    publishing.declare(past.ledger, Contract("job", "dash", 24 * 3600, "serve"), "me", past.now)
    now = past.look()
    assert (now.word, now.command) == ("at risk", "canwait why job")
    assert now.words == (
        "out for 2 h, 3 h left; in time by itself with about 38% (81 earlier cases; 101 past batches; 1 still unfinished are "
        "counted)"
    )
    assert list(now.sentences[3:]) == [
        f"The deadline is {at(past.began + timedelta(hours=5), past)}, in 3 h.",
        "dash needs the next publication in 9 h: it accepts 24 h.",
    ]
    wait = now.choices[0]
    assert (wait.what, wait.price, wait.micros, wait.then) == (
        "wait",
        "free",
        0,
        "in time with about 38% (81 earlier cases)",
    )


def test_a_deadline_of_minutes_is_not_at_risk_from_the_start(past: Past) -> None:
    """Half an hour before the end everything is at risk; of a deadline of 40 minutes that is the last ten."""
    past.open("job", new_shard("s0"), deadline_h=40 / 60)
    past.send("s0")
    past.wait(25 / 60)
    past.poll("s0", 0)
    assert past.look().word == "running"
    past.wait(6 / 60)
    past.poll("s0", 0)
    now = past.look()
    assert (now.word, now.words) == (
        "at risk",
        "out for 31 min, 9 min left; its odds are unknown (the provider's window of 24 h; 1 past batches are too few (20 needed))",
    )


def test_blocked_names_the_limit_and_since_when(past: Past) -> None:
    """A job is blocked when nothing of it goes on; while others are on their way, what waits for them is no trouble."""
    past.open("job", new_shard("s0"), new_shard("s1"))
    for hours in (1, 2):
        held, until = past.claim("s1"), past.now + timedelta(hours=hours)
        past.ledger.wait(held, until, f"{hours} batches are in flight, the most acct takes at a time", past.now)
        past.wait(hours)
    past.send("s0")
    past.poll("s0", 0)
    now = past.look()
    assert (now.word, now.found[0].finding.words) == (
        "running", "blocked for 3 h by 2 batches are in flight, the most acct takes at a time",
    )  # fmt: skip
    past.ledger.wait(past.claim("s0"), past.now + timedelta(minutes=6), "cannot be polled: answered 500", past.now)
    past.wait(0.1)
    now = past.look()
    assert (now.word, now.command, now.ready) == ("blocked", "canwait why job", None)
    assert now.words.startswith("2 of 2 batches; the worst for 3 h 6 min by 2 batches")
    assert [f.words for f in now.batches["s0"]] == ["blocked for 6 min by cannot be polled: answered 500"]


def test_a_paused_job_is_blocked_by_what_paused_it(past: Past) -> None:
    """Its reason, since when, and that running it again goes on."""
    past.open("job", new_shard("s0"))
    past.ledger.pause_job("job", "out of credit", past.now)
    past.wait(3)
    now = past.look()
    assert (now.word, now.words) == ("blocked", "for 3 h by: out of credit")
    assert ("go on", "canwait run JOB.YAML") in [(c.what, c.command) for c in now.choices]


def test_of_what_nobody_watches_nothing_is_claimed(past: Past) -> None:
    """A batch whose runner died is idle, not stuck; and the hours in which nobody looked are no gap of its own."""
    past.history()
    past.out(1.0, hours=2, deadline_h=48)
    past.wait(5)
    now = past.look()
    assert (now.word, now.words) == ("idle", "nobody has looked at it for 4 h 59 min")
    assert (now.command, now.batches["s0"][0].kind) == ("canwait run JOB.YAML", "idle")
    past.poll("s0", 2)
    assert past.look().word == "running"
    assert counted(past.ledger) == Progress(2, 7 * HOUR_S, HOUR_S)


def test_somebody_who_works_on_it_is_no_nobody(past: Past) -> None:
    """While a caller holds one of its shards, a job is looked at, however long that step takes."""
    past.open("job", new_shard("s0"), new_shard("s1"))
    past.wait(2)
    assert past.look().word == "idle"
    past.claim("s0")
    assert past.look().word == "running"


def test_rows_that_will_be_moved(past: Past) -> None:
    """With a rescue stated, waiting says what is moved when, at what price at most; the risk begins before that."""
    standard = replace(TERMS.price, tier=Tier.STANDARD, output=10 * TERMS.price.output)
    rescue = {"rescues": (Rescue("fake/standard", standard, 0.001),), "rescue": "fake/standard"}
    past.history()
    past.out(0.9, hours=1, deadline_h=20, **rescue)
    wait = past.look().choices[0]
    needs = timedelta(seconds=3 / 0.001 * 1.4 + 600)
    moved = at(past.began + timedelta(hours=20) - needs, past)
    assert wait.then.endswith(f"; what is not back by {moved} is moved to standard")
    assert (wait.price, wait.micros) == ("free; at most $0.000079 for what is moved", 79)
    assert past.look().word == "running"
    past.wait(17.3)
    past.poll("s0", 2)
    assert past.look().word == "at risk"


def test_unread_results_are_unconsumed(past: Past) -> None:
    """Paid, ready and unread for longer than its reader accepts: by whom, how long, how much."""
    past.open("job", new_shard("s0"))
    past.send("s0")
    past.end("s0")
    past.ledger.set_job_state("job", JobState.COMPLETED, "3 ok, 0 failed, 0 missing of 3", past.now)
    publish(past)
    assert past.look().word == "completed"
    publishing.declare(past.ledger, Contract("job", "dash", 3600, "serve"), "me", past.now)
    past.wait(144)
    now = past.look()
    assert (now.word, now.command) == ("unconsumed", "canwait fresh job")
    assert now.words == "$4.40 of results unread by dash for 6 d, more than 1 h (the contract)"
    assert [c.command for c in now.choices] == ["canwait fresh job"]


def test_a_reader_without_a_contract_is_known_by_its_habit(past: Past) -> None:
    """Who read each of 19 publications within an hour and a later one not for two has not read it, by 95 % of his past."""
    past.open("job", new_shard("s0"))
    past.send("s0")
    past.end("s0")
    past.ledger.set_job_state("job", JobState.COMPLETED, "3 ok, 0 failed, 0 missing of 3", past.now)
    for version in range(1, 20):
        publish(past, version)
        past.wait(1)
        publishing.record(past.ledger, "job", "ann", publishing.Reads(version, 1, 3, 0, timedelta(0)), past.now)
    past.wait(1)
    publish(past, 20)
    past.wait(0.9)
    assert past.look().unread == ()
    past.wait(1)
    (late,) = past.look().unread
    assert late.words.endswith(
        "unread by ann for 1 h 54 min, more than 1 h (95 % of 19 past publications were read by then)"
    )


# ------------------------------------------------------------------------------------------------------------ alarms


def test_an_alarm_of_a_job_is_told_once(past: Past) -> None:
    """However many of its batches are stuck and however often it is looked at; again only after it had ceased."""
    kept = Kept()
    past.history()
    notifying.note(past.ledger, past.now)
    notifying.note(past.ledger, past.now, everyone=[ME])
    past.out(1.0, 1.5, hours=6.2, deadline_h=48)

    def looks(of: str | None) -> list[str]:
        found = notifying.findings(past.ledger, past.now, past.blobs, of)
        notifying.note(past.ledger, past.now, everyone=[ME], found=found, of=of)
        before = len(kept.sent)
        notifying.deliver(past.ledger, {}, past.clock, opened=kept.open)
        return sorted(m.body["type"] for _, m in kept.sent[before:])

    assert looks("job") == ["job.stuck"]
    assert looks(None) == looks("job") == []
    past.wait(1)
    past.poll("s0", 1)
    past.poll("s1", 1)
    assert looks("job") == []
    for n_done in (2, 3):
        past.wait(0.5)
        past.poll("s0", n_done)
        past.poll("s1", n_done)
        assert looks(None) == []
    past.wait(5.5)
    past.poll("s0", 3)
    past.poll("s1", 3)
    assert looks("job") == ["job.at_risk", "job.stuck"]  # none was ever out for so long


def test_one_jobs_look_leaves_the_alarms_of_others(past: Past) -> None:
    """A run looks at its own job: what stands of another is neither told again nor forgotten."""
    kept = Kept()
    past.history()
    notifying.note(past.ledger, past.now)
    notifying.note(past.ledger, past.now, everyone=[ME])
    past.out(1.0, hours=7, deadline_h=48)
    past.open("other", new_shard("t0"))

    def looks(of: str | None) -> int:
        found = notifying.findings(past.ledger, past.now, past.blobs, of)
        notifying.note(past.ledger, past.now, everyone=[ME], found=found, of=of)
        return len(notifying.deliver(past.ledger, {}, past.clock, opened=kept.open))

    assert [looks(None), looks("other"), looks(None)] == [1, 0, 0]


def test_what_is_held_rings_where_jobs_share_a_budget(past: Past) -> None:
    """Of a shared budget what is spent and reserved counts together, told once with its highest share; a job's own holds
    what its plan said."""
    past.ledger.set_budget("project:team", micros=210, tokens=None, now=past.now)
    past.open("job", new_shard("s0"), new_shard("s1"), micros=200)
    past.send("s0")
    assert [f.words for _, f in notifying.findings(past.ledger, past.now)] == []
    past.send("s1")
    (found,) = notifying.findings(past.ledger, past.now)
    assert (found[0], found[1].words) == (None, "project:team: $0.00 of $0.00 (95%) spent or reserved")


@pytest.mark.parametrize("budget", ["project:team", "month"])
def test_it_is_told_at_the_shares_that_were_chosen(past: Past, budget: str) -> None:
    """Half of a limit is a notice where somebody asked for one there, and four fifths then are none."""
    half = [Decimal("0.5")]
    past.ledger.set_budget(budget, micros=210, tokens=None, tell_at=half, now=past.now)
    past.open("job", new_shard("s0"), new_shard("s1"), micros=200)
    assert [*notifying.findings(past.ledger, past.now)] == []
    past.send("s0")
    past.send("s1")
    (found,) = notifying.findings(past.ledger, past.now)
    assert isinstance(found[1], Reached)
    assert (found[1].budget.partition(":")[0], found[1].share) == (budget.partition(":")[0], half[0])


def test_a_run_waits_for_no_target(past: Past) -> None:
    """A look of a run makes the notice and leaves; what is sent beside it may take long, and the end waits for it."""
    past.history()
    notifying.listen(past.ledger, "old", [ME], past.now)
    past.out(1.0, hours=7, deadline_h=48)
    notifying.listen(past.ledger, "job", [ME], past.now)
    kept, answers, watched = Kept(), threading.Event(), []

    class Slow(Kept):
        def open(self, target: Any, env: Any) -> Any:
            assert answers.wait(30)
            return kept.open(target, env)

    def watch() -> None:
        watched.append(past.now)

    with notifying.feeding(past.ledger, past.blobs, {}, past.clock, "job", watch, Slow().open) as look:
        for _ in range(5):
            look()
            past.clock.at += timedelta(seconds=61)
        assert (len(watched), kept.sent) == (5, [])
        answers.set()
    assert [m.body["type"] for _, m in kept.sent] == ["job.stuck"]


def publish(past: Past, version: int = 1, source_age_h: float = 0) -> None:
    with past.ledger.db.transaction("publish") as tx:
        tx.run(
            "publication_insert", job="job", version=version, content=str(version), plan="p", tier="batch",
            as_of=to_us(past.now - timedelta(hours=source_age_h)), produced=to_us(past.now), until=None, components="{}",
            n_rows=3, n_failed=0, cost_micros=4_400_000, verdict="no gate", rows_blob="b", key_column="id",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- what is said can be typed


@contextmanager
def at_the_desk(folder: Path, scenario: str = "", **fields: Any) -> Iterator[Desk]:
    with desk(folder, scenario, speed=3_600) as office:
        office.write(12, **fields)
        yield office


def choices(office: Desk) -> dict[str, dict[str, Any]]:
    return {choice["what"]: choice for choice in valid(office.canwait("why", "labels", "--json"))["knowing"]["choices"]}


def choices_when(office: Desk, what: str, **env: str) -> dict[str, dict[str, Any]]:
    """A job runs, a second at a time, until there is a choice that begins so."""
    for _ in range(60):
        assert office.run("job.yaml", "--timeout", "1s", **env).code == 9
        found = choices(office)
        if any(each.startswith(what) for each in found):
            return found
    raise AssertionError(f"there never was {what}")


def type_in(office: Desk, choice: dict[str, Any], **env: str) -> Said:
    """A choice's command, exactly as it stands there; a run is approved and watched for a second."""
    program, verb, *rest = shlex.split(choice["command"])
    assert program == "canwait"
    assert choice["command"] in office.canwait("why", "labels").out
    return office.canwait(verb, *rest, *(["--yes", "--timeout", "1s"] if verb == "run" else []), **env)


def test_choices_while_a_job_runs(tmp_path: Path) -> None:
    """Waiting, loading what is there and giving up: each command does what it says, and money comes back as it says."""
    with at_the_desk(tmp_path, "never_ends=1", shard={"max_rows": 6}) as office:
        found = choices_when(office, "load")
        assert list(found) == ["wait", "give it up", "load what is there"]
        assert [c["most_usd"] for c in found.values()] == ["0.000000"] * 3
        assert type_in(office, found["wait"]).code == 9
        assert type_in(office, found["load what is there"]).code == 0
        assert pq.read_table(office.folder / "labels.parquet").num_rows == int(
            found["load what is there"]["then"].split()[0]
        )
        held = valid(office.canwait("status", "--json"))["jobs"][0]["reserved_usd"]
        assert found["give it up"]["then"].endswith(f"up to ${held} comes back")
        assert type_in(office, found["give it up"]).code == 0
        assert valid(office.run())["reserved_usd"] == "0.000000"


def test_choices_after_failures(tmp_path: Path) -> None:
    """Failed and missing rows are sent again for at most what was said; what a lost row was billed can be said."""
    with at_the_desk(tmp_path, "row_400=3,row_missing=2,old_style", retry={"attempts": 1}) as office:
        before = valid(office.run())
        assert (before["failed"], before["missing"]) > (0, 0)
        found = choices(office)
        shard = valid(office.canwait("why", "labels", "--json"))["shards"][0]["id"]
        assert list(found) == [f"say what {shard} was billed", "send failed rows again", "send missing rows again"]
        assert type_in(office, {"command": found[f"say what {shard} was billed"]["command"]}).code == 2  # USD is no sum
        for what in ("send failed rows again", "send missing rows again"):
            with closing(office.ledger()) as ledger:
                spent = ledger.query("budget", id="job:labels")[0]
                type_in(office, found[what])
                office.run()
                after = ledger.query("budget", id="job:labels")[0]
                most = Decimal(found[what]["most_usd"]).scaleb(6)
                assert 0 < after["spent_micros"] - spent["spent_micros"] <= most
        assert valid(office.canwait("status", "labels", "--json"))["jobs"][0]["ok"] > before["ok"]
        assert office.canwait("resolve", shard, "--billed", "0.01").code == 0
        assert f"say what {shard} was billed" not in choices(office)


def test_choices_of_a_fate_unknown(tmp_path: Path) -> None:
    """A create that nobody can find: a person says that there is no batch, and it is sent again."""
    with at_the_desk(tmp_path, "lost_create_reply=1,listing_lag=300d") as office:
        found = choices_when(office, "say", CANWAIT_SETTLE_S="600")
        absent, batch, *others = found
        assert others == ["wait", "give it up"]
        assert valid(office.canwait("status", "--json"))["knowing"][0]["word"] == "blocked"
        known = found[batch]["command"].replace("--batch ID", "--batch batch_nobody")
        assert type_in(office, {"command": known} | {"command": found[batch]["command"]}).code == 1
        assert type_in(office, found[absent]).code == 0
        assert valid(office.run())["state"] == "completed"


def test_choices_of_a_budget(tmp_path: Path) -> None:
    """A batch that its budget has no room for waits for it, named with its limit; the command raises it just enough."""
    with at_the_desk(tmp_path, "never_ends=9", shard={"max_rows": 6}) as office:
        assert office.canwait("budget", "set", "month", "--usd", "0.0003").code == 0
        office.write(12, shard={"max_rows": 6}, budget={"usd": 1, "on_exceed": "trim"})
        raised = choices_when(office, "raise")["raise the budget"]
        assert type_in(office, raised).code == 0
        found = choices_when(office, "wait")
        assert "raise the budget" not in found
        with closing(office.ledger()) as ledger:
            (month,) = [b for b in ledger.query("budgets") if b["id"].startswith("month:")]
            assert month["held_micros"] + month["spent_micros"] <= month["limit_micros"]


def test_choices_of_a_frozen_budget(tmp_path: Path) -> None:
    """A bill above its reservation freezes budgets; each is thawed by the command that stands there, and the job goes on."""
    with at_the_desk(tmp_path, "overbill=4", output=None, shard={"max_rows": 4}, budget={"usd": 50}) as office:
        if office.run().code != 5:  # all batches were on their way before the bill came
            office.write(13, output=None, shard={"max_rows": 4}, budget={"usd": 50})
            assert office.run().code == 5
        assert valid(office.canwait("status", "--json"))["knowing"][0]["word"] == "blocked"
        while thaw := choices(office).get("thaw a budget"):
            assert type_in(office, thaw).code == 0
        assert type_in(office, choices(office)["go on"]).code in (0, 9)
        assert office.run().code == 0


def test_choices_at_the_gate_and_behind_it(tmp_path: Path) -> None:
    """A sample waits to be judged, then rows to be loaded: `status` names the next command, and it works."""
    with at_the_desk(tmp_path, quality={"refuse_if_bad_rate": "20%", "rows": 12}) as office:
        assert office.run().code == 3
        found = choices(office)
        (listed,) = valid(office.canwait("status", "--json"))["knowing"]
        assert (listed["word"], listed["next"]) == ("gate", "canwait inspect labels")
        assert type_in(office, found["judge its sample"]).code == 3
        rows = valid(office.canwait("inspect", "labels", "--json"))
        accepted = [word for row in rows["sample"] for word in ("--accept", row["place"])]
        assert office.canwait("inspect", "labels", *accepted).code == 0
        assert type_in(office, choices(office)["load its rows"]).code == 0
        assert choices(office) == {}
        assert valid(office.canwait("status", "--json"))["knowing"][0]["next"] is None


def test_commands_in_a_rehearsal_are_of_the_rehearsal(tmp_path: Path) -> None:
    """With --sim every command that is shown has --sim, and names the job file from where one stands."""
    with at_the_desk(tmp_path) as office:
        office.canwait("run", "job.yaml", "--sim", "--scenario", "never_ends=9", "--timeout", "1s", "--yes")
        (elsewhere := office.folder / "else where").mkdir()
        office.env["CANWAIT_HOME"] = str(office.folder / ".canwait")
        there = Desk(elsewhere, office.simulator, office.url, office.env)
        for place, file in ((office, "job.yaml"), (there, shlex.quote(str(office.folder / "job.yaml")))):
            said = valid(place.canwait("why", "labels", "--sim", "--json"))["knowing"]["choices"]
            assert [c["command"] for c in said] == [f"canwait run {file} --sim", "canwait cancel labels --sim"]


def test_status_is_one_line_a_job(tmp_path: Path) -> None:
    """The word, the job, its rows and money, what is so and what to type, one line each; a provider's words cannot break it."""
    with at_the_desk(tmp_path) as office:
        assert office.run().code == 0
        head, line = office.canwait("status").out.splitlines()
        assert re.split("  +", head) == ["STATE", "JOB", "ROWS", "SPENT / CAP", "NOTE", "NEXT"]
        spent = valid(office.canwait("status", "--json"))["jobs"][0]["confirmed_usd"]
        assert re.split("  +", line) == [
            "completed",
            "labels",
            "12 / 12",
            f"${spent} / $1.000000",
            "12 ok, 0 failed, 0 missing of 12",
        ]
        with closing(office.ledger()) as ledger:
            ledger.pause_job("labels", "row refused:\n\x1b[2Jdone", datetime.now(UTC))
            ledger.set_job_state("labels", JobState.IN_PROGRESS, "x\ny", datetime.now(UTC))
        assert len(office.canwait("status").out.splitlines()) == 2
        assert "\x1b" not in office.canwait("why", "labels").out


# --------------------------------------------------------------------------------------------------------- end to end


class Jumping:
    """The simulator's clock, which a run that waits a second moves by a minute."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now()

    def sleep(self, seconds: float) -> None:
        self._clock.advance(60 * seconds)


def test_a_frozen_batch_is_told_while_its_job_runs_and_a_slow_one_is_not(tmp_path: Path) -> None:
    """After 100 past batches of up to 10 hours: a batch of the simulator that never moves is told as stuck, once, while it
    runs, and the run waits for no target; one that is late and gets on is slow, and nobody is told."""
    clock = ManualClock(START)
    url = f"sqlite:///{tmp_path}/ledger.db"
    jumping = Jumping(clock)
    with closing(Ledger(connect(url))) as ledger:
        past = Past(ledger, Blobs(tmp_path / "blobs"), VirtualClock(), provider="openai", model="gpt-6-luna")
        past.history()
        clock.advance((past.now - clock.now()).total_seconds())
    scenario = Scenario(never_ends=1, turnaround=timedelta(hours=14))
    with simulated(tmp_path / "provider", scenario, clock=clock) as there:
        env = {
            "CANWAIT_DB": url, "CANWAIT_HOME": str(tmp_path), "OPENAI_BASE_URL": f"{there.url}/v1", "OPENAI_API_KEY": "k",
            "CANWAIT_POLL_S": "300",
        }  # fmt: skip
        with Client(replace(settings(env), pace=Pace(poll_s=300, heartbeat=False)), jumping) as client:
            words = {}
            for name, n_rows in (("frozen", 2), ("slow", 9)):
                (tmp_path / f"{name}.csv").write_text("id,text\n" + "".join(f"{i},{name} {i}\n" for i in range(n_rows)))
                spec = {
                    "version": 1, "name": name, "source": {"uri": f"{name}.csv", "key": "id"}, "model": "openai/gpt-6-luna",
                    "prompt": "Say: {{ text }}", "max_output_tokens": 9, "urgency": "batch", "budget": {"usd": 1},
                    "deadline": "48h", "notify": ["mailto:me@example.com"],
                }  # fmt: skip
                job = client.job(job_from_dict(spec, base_dir=tmp_path))
                began = jumping.now()
                job.run(until=began + timedelta(hours=9))
                words[name] = known(client.ledger, client.blobs, name, jumping.now()).word
            assert words == {"frozen": "stuck", "slow": "slow"}
            told = [(d.notice.job, d.notice.type) for d in notifying.deliveries(client.ledger)]
            assert told == [("frozen", "job.stuck")]
            (told_at,) = [d.notice.at for d in notifying.deliveries(client.ledger)]
            assert timedelta(hours=4.9) < told_at - (began - timedelta(hours=9)) < timedelta(hours=9)


def test_who_asked_is_told_by_whoever_brings_the_end(tmp_path: Path) -> None:
    """`--tell` of a run that stopped watching: another process that ends the job later sends the mail, once."""
    with at_the_desk(tmp_path) as office, mail_server() as mails:
        env = {"CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{mails.port}", "CANWAIT_SMTP_FROM": "c@example.com"}
        away = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
        assert office.run("job.yaml", "--tell", "mailto:me@example.com", "--timeout", "1s", **env, **away).code == 9
        assert mails.mails == []
        other = office.start("run", "job.yaml", "--yes", "-q", **env)
        other.communicate(timeout=60)
        assert other.returncode == 0
        assert office.run(**env).code == 0
        assert [(to, mail["subject"]) for _, to, mail in mails.mails] == [(["me@example.com"], "labels is done")]


def test_a_person_who_judges_or_cancels_tells_at_once(tmp_path: Path) -> None:
    """What `inspect` decides and what `cancel` ends is told by them, not by the next look."""
    with at_the_desk(tmp_path, quality={"refuse_if_bad_rate": "20%", "rows": 12}) as office, mail_server() as mails:
        env = {"CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{mails.port}", "CANWAIT_SMTP_FROM": "c@example.com"}
        env["CANWAIT_NOTIFY"] = "mailto:me@example.com"
        assert office.run(**env).code == 3
        rejected = [word for place in range(12) for word in ("--reject", f"{place}=wrong")]
        assert office.canwait("inspect", "labels", *rejected, **env).code == 7
        office.write(5, "other", load=None, prompt="Other: {{ text }}")
        away = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
        assert office.run("other.yaml", "--timeout", "1s", **env, **away).code == 9
        assert office.canwait("cancel", "other", **env, **away).code == 0
        subjects = [mail["subject"] for _, _, mail in mails.mails]
        assert subjects == ["labels waits at its gate", "labels was refused by its gate", "other is cancelled"]
