"""People are told once, it is known whether it arrived, and neither a crash nor a deaf target changes that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

import canwait
from canwait import entries, notifying, publishing, views
from canwait.channels import Undelivered
from canwait.clock import to_us
from canwait.db import connect
from canwait.drills.histories import VirtualClock
from canwait.errors import SpecError
from canwait.freshness import Contract
from canwait.knowing import known
from canwait.ledger import Ledger
from canwait.notifying import deliver, deliveries, listen, note, pass_once, ping, tell, wait_s
from canwait.types import JobState, Notify
from listeners import SECRET, Kept, mail_server, web
from opened import new_shard, plan_of
from shelf import Shelf, shelf
from simulated import Desk, changed, desk

ME, YOU, HOOK = Notify("mailto:me@example.com"), Notify("mailto:you@example.com"), Notify("https://hook.test/x")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with closing(Ledger(connect(ledger_url))) as ledger:
        assert ledger.open_plan(plan_of(new_shard("s")), VirtualClock().now())
        yield ledger


def ends(ledger: Ledger, clock: VirtualClock, state: JobState = JobState.COMPLETED, job: str = "job") -> None:
    clock.at += timedelta(seconds=1)
    ledger.set_job_state(job, JobState.IN_PROGRESS, "shards are open", clock.now())
    ledger.set_job_state(job, state, "3 ok, 0 failed, 0 missing of 3", clock.now())


def sent(kept: Kept) -> list[tuple[str, str]]:
    return [(to, m.body["type"]) for to, m in kept.sent]


# ----------------------------------------------------------------------------------------------------- made once


def test_an_event_is_told_once(ledger: Ledger) -> None:
    """However often and by whomever the journal is looked through, each target gets each notice once."""
    clock, kept = VirtualClock(), Kept()
    listen(ledger, "job", [ME, HOOK], clock.now())
    ends(ledger, clock)
    for _ in range(3):
        note(ledger, clock.now(), ended="job")
        deliver(ledger, {}, clock, opened=kept.open)
    assert sorted(sent(kept)) == [(HOOK.to, "job.completed"), (ME.to, "job.completed")]
    assert {d.state for d in deliveries(ledger)} == {"arrived"}


def test_what_was_before_is_no_news(ledger: Ledger) -> None:
    """Whoever is named later is told of what happens from then on, and who is named no longer of nothing."""
    clock, kept = VirtualClock(), Kept()
    ends(ledger, clock)
    listen(ledger, "job", [ME], clock.now())
    note(ledger, clock.now(), everyone=[YOU])
    listen(ledger, "job", [HOOK], clock.now())
    ends(ledger, clock, JobState.EXPIRED)
    note(ledger, clock.now(), everyone=[YOU])
    deliver(ledger, {}, clock, opened=kept.open)
    assert sorted(sent(kept)) == [(HOOK.to, "job.expired"), (YOU.to, "job.expired")]


def test_kinds_are_chosen(ledger: Ledger) -> None:
    """A target that names kinds is told of these and no others."""
    clock, kept = VirtualClock(), Kept()
    listen(ledger, "job", [Notify(ME.to, kinds=("paused",)), Notify(YOU.to, kinds=("done", "gate"))], clock.now())
    ledger.pause_job("job", "row refused: hostile words", clock.now())
    ends(ledger, clock)
    note(ledger, clock.now())
    deliver(ledger, {}, clock, opened=kept.open)
    assert sorted(sent(kept)) == [(ME.to, "job.paused"), (YOU.to, "job.completed")]
    assert "hostile" not in "".join(m.text + json.dumps(m.body) for _, m in kept.sent)


def test_everyone_is_told_of_every_job_by_who_knows_of_them(ledger: Ledger) -> None:
    """A process without CANWAIT_NOTIFY makes the notice; one with it finds it later and delivers it."""
    clock, kept = VirtualClock(), Kept()
    note(ledger, clock.now(), everyone=[YOU])
    ends(ledger, clock)
    note(ledger, clock.now())
    deliver(ledger, {}, clock, opened=kept.open)
    assert sent(kept) == []
    note(ledger, clock.now(), everyone=[YOU])
    deliver(ledger, {}, clock, opened=kept.open)
    assert sent(kept) == [(YOU.to, "job.completed")]


def test_a_targets_kinds_and_secret_follow_the_job_file(ledger: Ledger) -> None:
    """Naming the same target otherwise changes what it is told, and repeats nothing."""
    clock, kept = VirtualClock(), Kept()
    listen(ledger, "job", [HOOK], clock.now())
    ends(ledger, clock)
    note(ledger, clock.now())
    listen(ledger, "job", [Notify(HOOK.to, "MINE", ("gate",))], clock.now())
    ends(ledger, clock)
    ends(ledger, clock, JobState.GATE)
    note(ledger, clock.now())
    deliver(ledger, {}, clock, opened=kept.open)
    assert sent(kept) == [(HOOK.to, "job.completed"), (HOOK.to, "gate.pending")]


# ------------------------------------------------------------------------------------------------ one job, one mail


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.CANCELLED, JobState.GATE, JobState.REFUSED])
def test_whoever_asked_for_one_end_is_told_of_one(ledger: Ledger, state: JobState) -> None:
    """The next end of the job is told, whoever sees it first, and the one after it is not."""
    clock, kept = VirtualClock(), Kept()
    ends(ledger, clock)
    tell(ledger, "job", [ME], clock.now())
    ledger.set_job_state("job", JobState.IN_PROGRESS, "x", clock.now())
    note(ledger, clock.now())
    assert deliver(ledger, {}, clock, opened=kept.open) == []
    for _ in range(2):
        ends(ledger, clock, state)
        note(ledger, clock.now())
        note(ledger, clock.now(), ended="job")
    deliver(ledger, {}, clock, opened=kept.open)
    assert len(kept.sent) == len(deliveries(ledger)) == 1


def test_an_end_that_was_there_already_is_told(ledger: Ledger) -> None:
    """Running a finished job again changes nothing, and who asked is told all the same; of one end once."""
    clock, kept = VirtualClock(), Kept()
    ends(ledger, clock)
    for _ in range(2):
        tell(ledger, "job", [ME], clock.now())
        note(ledger, clock.now())
        deliver(ledger, {}, clock, opened=kept.open)
        assert len(kept.sent) <= 1
        note(ledger, clock.now(), ended="job")
        deliver(ledger, {}, clock, opened=kept.open)
    assert sent(kept) == [(ME.to, "job.completed")]


# ----------------------------------------------------------------------------------------------------------- delivering


def test_a_deaf_target_is_tried_again_and_given_up(ledger: Ledger) -> None:
    """Each try is in the log with its outcome, further and further apart, under one id; after the last there is none."""
    clock, kept = VirtualClock(), Kept(*[Undelivered("answered 500")] * 99)
    listen(ledger, "job", [HOOK], clock.now())
    ends(ledger, clock)
    note(ledger, clock.now())
    began = clock.now()
    while (found := deliveries(ledger)[0]).state == "waiting":
        clock.at = max(clock.at, found.next_at)
        assert deliver(ledger, {}, clock, opened=kept.open) == [found.id]
        assert deliver(ledger, {}, clock, opened=kept.open) == []
    assert found.state == "failed"
    assert [t.number for t in found.tries] == list(range(1, notifying.MOST_TRIES + 1))
    assert {(t.outcome, t.words) for t in found.tries} == {("later", "answered 500"), ("failed", "answered 500")}
    assert {m.id for _, m in kept.sent} == {found.id}
    assert timedelta(days=1) < clock.now() - began < timedelta(days=3)
    assert pass_once(ledger, {}, clock) == []


@given(st.text(max_size=9), st.integers(1, 12), st.floats(0, 1e9))
def test_waits_grow_and_are_bounded(delivery: str, number: int, after_s: float) -> None:
    """A wait is at least half of 5 s times 5 to the tries before, at most 12 hours, and as long as was asked within that."""
    full = min(43_200.0, 5.0**number)
    assert full / 2 <= wait_s(delivery, number) <= full
    assert min(after_s, 43_200) <= wait_s(delivery, number, after_s) <= 43_200
    assert wait_s(delivery, number) == wait_s(delivery, number)


def test_waits_differ() -> None:
    """What failed together does not come back together."""
    assert len({wait_s(f"msg_{n}", 5) for n in range(100)}) == 100


def test_who_wants_nothing_more_gets_nothing_more(ledger: Ledger) -> None:
    """After a 410 nothing is sent to that target, waiting or new, until a test has reached it."""
    clock, kept = VirtualClock(), Kept(Undelivered("answered 410", gone=True))
    listen(ledger, "job", [HOOK, ME], clock.now())
    for _ in range(2):
        ends(ledger, clock)
    note(ledger, clock.now())
    deliver(ledger, {}, clock, opened=kept.open)
    ends(ledger, clock)
    note(ledger, clock.now())
    deliver(ledger, {}, clock, opened=kept.open)
    first = kept.sent[0][0]
    assert [to for to, _ in kept.sent].count(first) == 1
    silent = Notify(first)
    assert ping(ledger, silent, {}, clock, kept.open).state == "arrived"
    ends(ledger, clock)
    note(ledger, clock.now())
    assert len(deliver(ledger, {}, clock, opened=kept.open)) == 2


def test_what_cannot_help_is_not_repeated(ledger: Ledger) -> None:
    """A fault that stays is one try; our own mistake in a channel is one that may pass, and is raised by nobody."""
    clock, kept = VirtualClock(), Kept(Undelivered("550", again=False), RuntimeError("sk-secret"))
    for state in (JobState.COMPLETED, JobState.EXPIRED):
        listen(ledger, "job", [ME], clock.now())
        ends(ledger, clock, state)
        note(ledger, clock.now())
        deliver(ledger, {}, clock, opened=kept.open)
    log = {d.notice.type: (d.state, d.tries[0].words) for d in deliveries(ledger)}
    assert log == {"job.completed": ("failed", "550"), "job.expired": ("waiting", "our own mistake: RuntimeError")}


@pytest.mark.parametrize("where", ["before delivered", "after claim_delivery"])
def test_a_process_that_dies_while_it_sends(ledger: Ledger, where: str) -> None:
    """The try stays in the log without an outcome; after a while the delivery goes out again under the same id."""
    clock, kept = VirtualClock(), Kept()
    listen(ledger, "job", [HOOK], clock.now())
    ends(ledger, clock)
    note(ledger, clock.now())

    def kill(here: str) -> None:
        if here == where:
            raise Killed

    ledger.db.fault = kill
    with pytest.raises(Killed):
        deliver(ledger, {}, clock, opened=kept.open)
    ledger.db.fault = lambda here: None
    (dead,) = deliveries(ledger)
    assert (dead.state, [t.outcome for t in dead.tries]) == ("waiting", [None])
    assert deliver(ledger, {}, clock, opened=kept.open) == []
    clock.at += timedelta(minutes=4)
    assert deliver(ledger, {}, clock, opened=kept.open) == [dead.id]
    (done,) = deliveries(ledger)
    assert (done.state, [t.outcome for t in done.tries]) == ("arrived", [None, "arrived"])
    assert {m.id for _, m in kept.sent} == {done.id}
    assert len(kept.sent) == (2 if where == "before delivered" else 1)


def test_a_process_that_dies_while_it_notes(ledger: Ledger) -> None:
    """Notices, outbox and cursor are one transaction: nothing is half told, and nothing is lost."""
    clock, kept = VirtualClock(), Kept()
    listen(ledger, "job", [ME], clock.now())
    tell(ledger, "job", [YOU], clock.now())
    ends(ledger, clock)

    def kill(here: str) -> None:
        if here == "before note":
            raise Killed

    ledger.db.fault = kill
    with pytest.raises(Killed):
        note(ledger, clock.now(), ended="job")
    ledger.db.fault = lambda here: None
    assert deliveries(ledger) == []
    note(ledger, clock.now())
    deliver(ledger, {}, clock, opened=kept.open)
    assert sorted(to for to, _ in kept.sent) == [ME.to, YOU.to]


def test_a_late_answer_counts(ledger: Ledger) -> None:
    """A try that outlived its lease and arrived ends the delivery, though another had begun."""
    clock = VirtualClock()
    listen(ledger, "job", [HOOK], clock.now())
    ends(ledger, clock)
    note(ledger, clock.now())
    kept = Kept()

    class Slow(Kept):
        def open(self, target: Any, env: Any) -> Any:
            clock.at += timedelta(minutes=4)
            deliver(ledger, {}, clock, opened=Kept(Undelivered("answered 500")).open)
            return kept.open(target, env)

    deliver(ledger, {}, clock, opened=Slow().open)
    (done,) = deliveries(ledger)
    assert (done.state, [t.outcome for t in done.tries]) == ("arrived", ["arrived", "later"])


def test_two_processes_send_each_delivery_once(ledger: Ledger, ledger_url: str) -> None:
    """An outbox that several empty at the same time is sent once."""
    clock, kept = VirtualClock(), Kept()
    many = [Notify(f"mailto:p{n}@example.com") for n in range(30)]
    listen(ledger, "job", many, clock.now())
    ends(ledger, clock)

    def work() -> None:
        with closing(Ledger(connect(ledger_url))) as own:
            note(own, clock.now(), ended="job")
            deliver(own, {}, clock, opened=kept.open)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result()
    assert sorted(to for to, _ in kept.sent) == sorted(n.to for n in many)
    assert all(len(d.tries) == 1 for d in deliveries(ledger))


def test_only_one_jobs_news_and_only_so_long(ledger: Ledger) -> None:
    """A run sends its own job's news, and begins nothing after its time."""
    clock, kept = VirtualClock(), Kept()
    assert ledger.open_plan(plan_of(new_shard("t"), job="other"), clock.now())
    for job in ("job", "other"):
        listen(ledger, job, [ME, YOU], clock.now())
        ends(ledger, clock, job=job)
    note(ledger, clock.now())

    class Slow(Kept):
        def open(self, target: Any, env: Any) -> Any:
            clock.at += timedelta(seconds=15)
            return kept.open(target, env)

    deliver(ledger, {}, clock, job="other", until=clock.now() + timedelta(seconds=10), opened=Slow().open)
    assert [m.body["data"]["job"] for _, m in kept.sent] == ["other"]


# --------------------------------------------------------------------------------------------------------------- alarms


def test_a_budgets_shares_are_told_once_each(ledger: Ledger) -> None:
    """At 80 % and at all of a cap, once, until less than nine tenths of that is spent."""
    clock, kept = VirtualClock(), Kept()
    note(ledger, clock.now(), everyone=[ME])

    def spend(micros: int) -> list[str]:
        with ledger.db.transaction("spend") as tx:
            entries.move(tx, clock.now(), "job:job", "job", None, "book", "x", spent_micros=micros)
        for _ in range(2):
            clock.at += timedelta(seconds=1)
            found = notifying.findings(ledger, clock.now())
            note(ledger, clock.now(), everyone=[ME], found=found)
        before = len(kept.sent)
        deliver(ledger, {}, clock, opened=kept.open)
        return [m.body["data"]["text"] for _, m in kept.sent[before:]]

    assert spend(790) == []
    assert len(spend(20)) == 1
    assert len(spend(300)) == 1
    assert spend(-150) == []
    assert spend(100) == []
    assert spend(-400) == []
    assert len(spend(200)) == 1


def test_stale_and_unread_are_told_once(tmp_path: Path, ledger_url: str) -> None:
    """A broken contract, and results that nobody read in time, are told when they come to be so, and again the next time."""
    with shelf(tmp_path, ledger_url) as here:
        ledger, kept = here.client.ledger, Kept()
        note(ledger, here.now, everyone=[ME])
        publishing.declare(ledger, Contract("job", "dash", 3600, "block"), "me", here.now)

        def look() -> list[str]:
            found = notifying.findings(ledger, here.now)
            note(ledger, here.now, everyone=[ME], found=found)
            before = len(kept.sent)
            deliver(ledger, {}, here.clock, opened=kept.open)
            return sorted(m.body["type"] for _, m in kept.sent[before:])

        for _ in range(2):
            here.open(here.now)
            here.load({"a": "x"})
            assert look() == []
            here.wait(hours=2)
            assert look() == ["result.stale", "result.unread"]
            assert look() == []


def test_an_old_look_takes_no_alarm_back(tmp_path: Path, ledger_url: str) -> None:
    """What somebody else has told since a look began is not taken for something that has ceased, and told again."""
    with shelf(tmp_path, ledger_url) as here:
        ledger = here.client.ledger
        note(ledger, here.now, everyone=[ME])
        publishing.declare(ledger, Contract("job", "dash", 3600, "block"), "me", here.now)
        here.open(here.now)
        here.load({"a": "x"})
        stood, found = notifying.alarms(ledger), notifying.findings(ledger, here.now)
        here.wait(hours=2)
        late = notifying.findings(ledger, here.now)
        assert note(ledger, here.now, everyone=[ME], found=late, stood=notifying.alarms(ledger)) == 2
        assert note(ledger, here.now, everyone=[ME], found=found, stood=stood) == 0
        assert note(ledger, here.now, everyone=[ME], found=late, stood=notifying.alarms(ledger)) == 0


def test_reading_the_set_before_is_not_reading_this_one(tmp_path: Path, ledger_url: str) -> None:
    """A read of the older version that is recorded late leaves the newer unread; what others read costs what it cost."""
    with shelf(tmp_path, ledger_url) as here:
        ledger = here.client.ledger
        publishing.declare(ledger, Contract("job", "dash", 3600, "serve"), "me", here.now)
        here.open(here.now)
        here.load({"a": "x"})
        here.open(here.now)
        here.load({"a": "y"})
        for version in (1, 2):
            reads = publishing.Reads(version, 1, 1, 0, timedelta(0))
            publishing.record(ledger, "job", "dash" if version == 1 else "other", reads, here.now)
        here.wait(hours=2)
        found = [f.words for _, f in notifying.findings(ledger, here.now) if f.kind == "unconsumed"]
        assert [words for words in found if "dash" in words]
        publishing.record(ledger, "job", "dash", publishing.Reads(2, 1, 1, 0, timedelta(0)), here.now)
        assert not [
            f.words for _, f in notifying.findings(ledger, here.now) if f.kind == "unconsumed" and "dash" in f.words
        ]


def stale_words(here: Shelf) -> list[str]:
    return [finding.words for _, finding in notifying.findings(here.client.ledger, here.now) if finding.kind == "stale"]


def test_a_set_that_counts_no_more_is_told(tmp_path: Path, ledger_url: str) -> None:
    """A reader whose only set was refused has nothing; one whose set was never there waits for the first, and that is no news."""
    with shelf(tmp_path, ledger_url) as here:
        ledger = here.client.ledger
        publishing.declare(ledger, Contract("job", "dash", 86_400, "serve"), "me", here.now)
        assert stale_words(here) == []
        for version, why in (
            (1, "stale: there is nothing left for dash to read: version 1, the last, counts no more"),
            (2, None),
        ):
            here.open(here.now)
            here.load({"a": f"x{version}"})
            assert stale_words(here) == []
            if why is not None:
                with ledger.db.transaction("refuse") as tx:
                    assert tx.count("publication_refuse", job="job", version=version, why="judged again")
                assert stale_words(here) == [why]


def test_a_wrong_clock_is_named(tmp_path: Path, ledger_url: str) -> None:
    """Of a set whose date lies ahead no age is told, neither by an alarm nor by `why`; and readers are said to go on with the
    one that they get."""
    with shelf(tmp_path, ledger_url) as here:
        ledger = here.client.ledger
        publishing.declare(ledger, Contract("job", "dash", 3600, "block"), "me", here.now)
        here.open(here.now + timedelta(days=2))
        here.load({"a": "x"})
        (words,) = stale_words(here)
        assert words.startswith("stale: of no known age: by its date its input was read 2 d")
        assert words.endswith("so a clock was wrong")
        assert not any("needs the next" in s for s in known(ledger, here.client.blobs, "job", here.now).sentences)
        here.open(here.now)
        here.load({"a": "y"})
        assert stale_words(here) == []
        with ledger.db.transaction("missed") as tx:
            entries.journal(
                tx, here.now, "job", None, "deadline_missed", "it has passed", n_open=1, at_deadline="last_publication"
            )
            tx.run("job_missed", name="job", now=to_us(here.now + timedelta(days=9)), given_up="last_publication")
        seen = publishing.newest(ledger, "job", here.now)
        assert seen is not None
        assert views.figures(ledger, "job").served == seen.version == 2


# ----------------------------------------------------------------------------------------------------------- end to end


def test_a_run_tells(tmp_path: Path) -> None:
    """`notify:` of the job file and `--tell` of one run: one signed webhook, one mail, in the log; running again is no news."""
    with desk(tmp_path) as office, web() as hook, mail_server() as mails:
        env = {
            "CANWAIT_WEBHOOK_SECRET": SECRET, "CANWAIT_WEBHOOK_ALLOW_PRIVATE": "1", "CANWAIT_SMTP_FROM": "c@example.com",
            "CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{mails.port}",
        }  # fmt: skip
        office.write(6, notify=[{"to": f"{hook.url}/in", "kinds": ["done"]}])
        assert office.run("job.yaml", "--tell", "mailto:me@example.com", **env).code == 0
        assert office.run(**env).code == 0
        (post,), (mail,) = hook.got, mails.mails
        body = standardwebhooks.Webhook(SECRET).verify(post.body, post.headers)
        assert (body["type"], body["data"]["job"], body["data"]["facts"]["ok"]) == ("job.completed", "labels", 6)
        assert "message 0" not in post.body.decode()
        assert (mail[1], mail[2]["subject"]) == (["me@example.com"], "labels is done")
        log = office.canwait("notify", "--log", "--json", **env).json["deliveries"]
        assert sorted((d["target"], d["state"]) for d in log) == sorted(
            [(hook.url + "/...", "arrived"), ("mailto:me@example.com", "arrived")]
        )
        assert SECRET not in office.canwait("notify", "--log", **env).out
        assert office.canwait("notify", "--once", **env).out == "Nothing to tell.\n"


def test_a_run_is_not_failed_by_its_news(tmp_path: Path) -> None:
    """Targets that cannot be reached, no secret, a wrong CANWAIT_NOTIFY: the run ends as it does, and the log says why."""
    with desk(tmp_path) as office:
        office.write(4, notify=["https://127.0.0.1:9/x", "mailto:me@example.com", "apprise:NOT_SET"])
        assert office.run(CANWAIT_NOTIFY="nonsense", CANWAIT_WEBHOOK_SECRET=SECRET).code == 0
        assert office.canwait("notify", "--once", CANWAIT_NOTIFY="nonsense").code == 2
        assert office.canwait("notify", "--once", CANWAIT_WEBHOOK_SECRET=SECRET).code == 0
        log = office.canwait("notify", "--log", "--json").json["deliveries"]
        words = {d["target"].partition(":")[0]: d["tries"][0]["words"] for d in log}
        assert "not public" in words["https"]
        assert "CANWAIT_SMTP_URL is not set" in words["mailto"]
        assert "NOT_SET is not set" in words["apprise"]


def test_a_run_that_its_budget_refuses_is_told(tmp_path: Path) -> None:
    """What a cron line cannot do is told to whom it concerns, once for the same reason, and nothing was sent."""
    with desk(tmp_path) as office:
        office.write(4, notify="mailto:me@example.com", budget={"usd": "0.000001"})
        for _ in range(2):
            assert office.run().code == 5
        (told,) = office.canwait("notify", "--log", "--json").json["deliveries"]
        assert (told["type"], told["job"]) == ("budget.refused", "labels")
        assert "needs $" in told["text"]


def test_tell_from_python_and_its_faults(tmp_path: Path) -> None:
    """`job.run(tell=...)` says at once what is no target, before anything is sent."""
    with desk(tmp_path) as office:
        office.write(3)
        with changed(office.folder, office.env), canwait.connect() as client:
            job = client.job("job.yaml")
            with pytest.raises(SpecError, match="no way to tell"):
                job.run(tell="me@example.com")
            assert office.bill_usd() == "0.000000"
            job.run(tell=["mailto:me@example.com", "mailto:you@example.com"])
            assert len(deliveries(client.ledger)) == 2


def test_a_rehearsal_tells_nobody(tmp_path: Path) -> None:
    """What is simulated is nobody's news."""
    with desk(tmp_path) as office, web() as hook:
        env = {"CANWAIT_WEBHOOK_SECRET": SECRET, "CANWAIT_WEBHOOK_ALLOW_PRIVATE": "1"}
        office.write(3, notify=hook.url)
        assert office.run("job.yaml", "--sim", "--tell", hook.url, **env).code == 0
        assert hook.got == []


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as office:
        yield office


def test_a_test_message(office: Desk) -> None:
    """`--test` sends one message and says by its exit code whether it arrived; it is not tried again."""
    with web(204, 500) as hook:
        env = {"MINE": SECRET, "CANWAIT_WEBHOOK_ALLOW_PRIVATE": "1"}
        said = office.canwait("notify", "--test", f"{hook.url}/secret", "--secret", "MINE", **env)
        assert (said.code, "secret" in said.out.replace("--secret", "")) == (0, False)
        failed = office.canwait("notify", "--test", hook.url, "--secret", "MINE", "--json", **env)
        assert (failed.code, failed.json["deliveries"][0]["state"]) == (1, "failed")
        assert [json.loads(post.body)["type"] for post in hook.got] == ["canwait.test"] * 2
    assert office.canwait("notify", "--once", **env).out == "Nothing to tell.\n"


@pytest.mark.parametrize(
    "args", [["--once", "--log"], ["--secret", "X"], ["--test", "nobody"], ["--test", "mailto:a@b mailto:c@d"]]
)
def test_what_cannot_be_meant(office: Desk, args: list[str]) -> None:
    """Flags that exclude each other, and targets that are none, are usage."""
    assert office.canwait("notify", *args).code == 2
