"""Promises of canary_gate.py: where the job file says so, people accept the canary before anything else of its plan is sent."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canwait import canary_gate, judging, notices, publishing
from canwait.client import Client, JobHandle
from canwait.drills.small import scratch_folder
from canwait.errors import AlreadyJudged, GatePending, GateRefused, NotFound
from canwait.lots import REFUSED_BEFORE, Verdict, Word
from canwait.types import JobState
from gated import GATE, client_of, failing_canary, inspection, job, judged, model, right
from simulated import desk
from test_cli import valid
from world import Dead

JUDGED = {**GATE, "canary": "judged"}


@pytest.fixture
def client(tmp_path: Path, ledger_url: str) -> Iterator[Client]:
    with client_of(tmp_path, url=ledger_url) as c:
        yield c


def wrong(text: str) -> dict[str, str]:
    """A valid answer that is not right, which no free check finds."""
    return {"label": "wrong", "why": text}


def is_right(_: str, answer: str) -> bool:
    return bool(json.loads(answer)["label"] == "right")


def sharded(client: Client, folder: Path, texts: int = 300, **fields: Any) -> JobHandle:
    return job(client, folder, texts, **{"shard": {"max_rows": 50}, "quality": JUDGED, **fields})


def sizes(client: Client) -> list[int]:
    """Rows of each batch that was sent, in order."""
    return [len(batch.bodies) for batch in model(client).batches.values()]


def kinds(client: Client) -> list[str]:
    return [event.kind for event in client.ledger.events(count=10_000)]


def killed_at(where: str, client: Client) -> None:
    """The process dies there, once."""

    def kill(here: str) -> None:
        if here == where:
            client.ledger.db.fault = lambda _: None
            raise Dead(where)

    client.ledger.db.fault = kill


# ------------------------------------------------------------------------------------------------------------ accepted


def test_nothing_more_is_sent_before_people_accept_the_canary(client: Client, tmp_path: Path) -> None:
    """One shard is sent, its answers wait to be judged, and so does the rest; accepted, all is sent and judged anew."""
    handle = sharded(client, tmp_path)
    for _ in range(2):  # running it again does not get around it
        figures = handle.run()
        assert (figures.state, figures.pending, sizes(client)) == (JobState.GATE, 250, [50])
    assert figures.paused is not None
    assert figures.paused.startswith("the canary waits to be judged: its 50 rows cost $")
    assert figures.paused.endswith("it goes on with: canwait inspect labels")
    at_gate = inspection(handle)
    assert (at_gate.lot.n_rows, at_gate.lot.canary is not None) == (50, True)
    assert judged(at_gate, is_right, client) is Verdict.ACCEPTED

    figures = handle.figures()
    assert (figures.state, figures.paused) == (JobState.IN_PROGRESS, None)
    assert kinds(client)[-4:] == ["judged", "canary_accepted", "job_resumed", "job_state"]
    for read in (handle.load, handle.results, lambda: list(handle.rows())):
        with pytest.raises(GatePending):
            read()
    figures = handle.run()
    assert (figures.state, figures.reason) == (JobState.GATE, "0 of at most 60 rows judged, 0 bad")
    assert sizes(client) == [50] * 6
    assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
    assert handle.run().loaded == {"to": "labels.parquet", "rows": 300, "failed": 0}
    assert client.ledger.check() == []


def test_who_ticks_needs_no_second_run(client: Client, tmp_path: Path) -> None:
    """The verdict itself lets the rest go: whatever advances shards goes on with it."""
    handle = sharded(client, tmp_path)
    handle.open()
    client.engine.run("labels")
    assert sizes(client) == [50]
    assert client.ledger.job("labels")["state"] == JobState.GATE.value
    judged(inspection(handle), is_right, client)
    client.engine.run("labels")
    assert sizes(client) == [50] * 6


def test_the_drawn_canary_is_judged_and_nothing_else(client: Client, tmp_path: Path) -> None:
    """The lot is the random sample that went first, in an order that its answers do not decide."""
    handle = job(client, tmp_path, 1100, budget={"usd": 5}, quality=JUDGED)
    handle.run()
    assert sizes(client) == [200]
    (batch,) = model(client).batches.values()
    texts = {json.loads(body)["messages"][-1]["content"] for body in batch.bodies}
    at_gate = inspection(handle)
    assert at_gate.lot.n_rows == 200
    assert {row.input for row in at_gate.sample} <= texts
    judged(at_gate, is_right, client)
    assert handle.run().submissions == 2
    final = inspection(handle)
    assert (final.lot.n_rows, final.lot.canary, final.said) == (1100, None, {})


def test_a_single_shard_is_not_asked_about(client: Client, tmp_path: Path) -> None:
    """Where nothing waits for it nothing is asked before the job has finished."""
    handle = job(client, tmp_path, 100, quality=JUDGED)
    assert handle.run().finished
    assert inspection(handle).lot.canary is None


def test_a_canary_is_judged_whole(tmp_path: Path) -> None:
    """Rows of it that are sent again are waited for: what people accept is all that came of it."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        failing_canary(client, handle)
        figures = handle.run()
        assert (figures.state, figures.failed, sizes(client)) == (JobState.GATE, 10, [50, 10, 10])
        assert inspection(handle).lot.n_rows == 40


def test_rules_alone_judge_at_once(tmp_path: Path) -> None:
    """With `by: rule` nobody is asked: the same run sends the rest, or is stopped."""
    gate = {**JUDGED, "by": "rule", "rules": ["key != 'k1' and why != 'text 2'"]}
    with client_of(tmp_path) as client:
        assert sharded(client, tmp_path, quality=gate).run().finished
        assert sizes(client) == [50] * 6
        assert kinds(client).count("canary_accepted") == 1
    (tmp_path / "bad").mkdir()
    with client_of(tmp_path / "bad") as client:
        gate["rules"] = ["key == 'nobody'"]  # needs the key: no free check of what lands
        figures = sharded(client, tmp_path / "bad", quality=gate).run()
        assert (sizes(client), figures.state) == ([50], JobState.IN_PROGRESS)
        assert "the canary was refused: 50 of 50 rows break a rule (100%)" in (figures.paused or "")


def test_people_judge_the_canary_without_the_judge_model(tmp_path: Path) -> None:
    """With `by: judge` the canary is judged plainly; the judge model is asked once the job has finished."""
    judge = {"model": "openai/gpt-6-luna", "prompt": "JUDGE {{ answer }}", "budget": {"usd": 1}}

    def answer(text: str) -> Any:
        return {"verdict": "good"} if text.startswith("JUDGE") else right(text)

    with client_of(tmp_path, answer) as client:
        handle = sharded(client, tmp_path, quality={**JUDGED, "by": "judge", "judge": judge})
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
        assert client.ledger.query("job", name="labels.judge") == []
        handle.run()
        assert inspection(handle).by_word is not None


# ------------------------------------------------------------------------------------------------------------- refused


def test_a_wrong_prompt_costs_the_canary(tmp_path: Path, ledger_url: str) -> None:
    """Valid answers that are wrong stop the plan by what people say, with what it cost and what can be done."""
    with client_of(tmp_path, wrong, url=ledger_url) as client:
        handle = sharded(client, tmp_path)
        handle.run()
        at_gate = inspection(handle)
        assert judged(at_gate, is_right, client) is Verdict.REFUSED
        for figures in (handle.figures(), handle.run()):
            assert (figures.state, figures.pending, sizes(client)) == (JobState.IN_PROGRESS, 250, [50])
            words = figures.paused or ""
            assert words.startswith("the canary was refused: ")
            assert "These 50 rows cost $" in words
            assert words.endswith("canwait run JOB.YAML --past-canary")
        assert inspection(handle).lot.verdict is Verdict.REFUSED  # what was found can still be seen
        with pytest.raises(AlreadyJudged):
            at_gate.judge(49, Word.GOOD, None, client.clock.now())
        assert client.ledger.check() == []


def test_who_goes_past_it_has_its_rows_refused_still(tmp_path: Path) -> None:
    """The rest is sent all the same, and the refused answers stay refused until they are asked again."""
    with client_of(tmp_path, lambda text: wrong(text) if int(text[5:]) < 50 else right(text)) as client:
        handle = sharded(client, tmp_path, 1000)
        handle.run()
        judged(inspection(handle), is_right, client)
        figures = handle.run(past_canary=True)
        assert (figures.finished, figures.submissions) == (True, 20)
        at_gate = inspection(handle)
        assert at_gate.lot.broken == {REFUSED_BEFORE: 50}
        assert judged(at_gate, is_right, client) is Verdict.ACCEPTED
        assert handle.load() == 950
        model(client).answer = right
        handle.run(only="rejected")
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
        assert handle.load() == 1000


def test_another_prompt_is_another_plan(tmp_path: Path) -> None:
    """With a mended prompt another canary is judged; of the plan that was left, judged or not, nothing more is sent."""
    for is_judged in (False, True):
        folder = tmp_path / str(is_judged)
        folder.mkdir()
        with client_of(folder, lambda text: right(text) if "Please" in text else wrong(text)) as client:
            handle = sharded(client, folder)
            handle.run()
            if is_judged:
                judged(inspection(handle), is_right, client)
            mended = sharded(client, folder, prompt="Please: {{ text }}")
            assert mended.run().state is JobState.GATE
            assert judged(inspection(mended), is_right, client) is Verdict.ACCEPTED
            figures = mended.run()
            assert (figures.state, figures.ok, sizes(client)) == (JobState.GATE, 300, [50] * 7)
            assert client.ledger.check() == []


def test_a_canary_without_an_answer_is_refused(tmp_path: Path) -> None:
    """Where none of its rows came back with an answer nothing speaks for sending the rest."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        model(client).failing = {f"text {n}" for n in range(300)}
        model(client).cause = "server_error"
        figures = handle.run()
        assert "the canary was refused: none of its rows has a usable answer" in (figures.paused or "")
        assert sum(sizes(client)) == 150  # of the 50 rows each attempt


def test_what_the_free_checks_stop_is_not_asked_about(tmp_path: Path) -> None:
    """A canary that is surely bad stops its plan as it does without being judged."""
    with client_of(tmp_path, lambda text: {"lable": text}) as client:
        handle = sharded(client, tmp_path)
        assert "bad by the free checks" in (handle.run().paused or "")
        assert kinds(client).count("lot_drawn") == 0
        with pytest.raises(GatePending):
            handle.inspect()


# ------------------------------------------------------------------------------------------------- two people, crashes


def test_two_people_judge_one_canary(client: Client, tmp_path: Path) -> None:
    """Each row is judged once, and the word that decides it decides it once."""
    handle = sharded(client, tmp_path)
    handle.run()
    ann, bob = inspection(handle, "ann"), inspection(handle, "bob")
    ann.judge(0, Word.GOOD, None, client.clock.now())
    with pytest.raises(AlreadyJudged, match="ann says it is good"):
        bob.judge(0, Word.BAD, "wrong", client.clock.now())
    assert judged(bob, is_right, client) is Verdict.ACCEPTED
    with pytest.raises(AlreadyJudged, match="its lot is accepted"):
        ann.judge(40, Word.BAD, "wrong", client.clock.now())
    assert kinds(client).count("canary_accepted") == 1


@pytest.mark.parametrize("answer", [right, wrong])
@pytest.mark.parametrize("where", ["before judge", "after judge"])
def test_a_kill_around_the_deciding_word_sends_nothing_unasked(
    tmp_path: Path, ledger_url: str, where: str, answer: Any
) -> None:
    """Word, verdict and what the job does by it are written together, or none of them: the next one comes to the same end."""
    with client_of(tmp_path, answer, url=ledger_url) as client:
        handle = sharded(client, tmp_path)
        handle.run()
        at_gate, word = inspection(handle), Word.GOOD if answer is right else Word.BAD
        plan = at_gate.lot.parts[0].plan
        n_words = plan.accept.index(0) + 1 if answer is right else plan.refuse[1]
        for place in range(n_words - 1):
            at_gate.judge(place, word, None, client.clock.now())
        killed_at(where, client)
        with pytest.raises(Dead):
            judging.judge(client.ledger, at_gate.lot.id, n_words - 1, word, None, "ann", client.clock.now())
        at_gate.look()
        is_kept = where == "after judge"
        paused = client.ledger.job("labels")["paused"]
        assert (at_gate.lot.verdict is not None) == is_kept
        assert bool(paused and paused.startswith("the canary waits")) != is_kept
        judged(at_gate, is_right, client)
        handle.run()
        assert sizes(client) == ([50] * 6 if answer is right else [50])
        assert client.ledger.check() == []


@pytest.mark.parametrize(
    "where", ["before ask_about_canary", "after ask_about_canary", "before draw_lot", "after draw_lot"]
)
def test_a_kill_around_the_question_asks_it_again(tmp_path: Path, where: str) -> None:
    """Whoever dies while asking has sent nothing; the question is the same for the next one."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        killed_at(where, client)
        with pytest.raises(Dead):
            handle.run()
        client.clock.sleep(60)
        assert handle.run().state is JobState.GATE
        assert sizes(client) == [50]
        assert kinds(client).count("lot_drawn") == 1
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED


def test_who_asks_at_the_moment_of_the_answer_holds_nothing(tmp_path: Path) -> None:
    """A question that people have answered meanwhile is not asked: nothing stays paused for it."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        handle.run()
        held = next(row["id"] for row in client.ledger.query("shards", job="labels") if row["state"] == "planned")
        shard = client.ledger.shard(held)
        assert canary_gate.is_held(client.ledger, shard)
        judged(inspection(handle), is_right, client)
        assert canary_gate.ask(client.ledger, shard, client.clock.now()) is None
        assert client.ledger.job("labels")["paused"] is None


steps = st.sampled_from(
    [
        *["run", "tick", "good", "good", "bad", "unsure", "undo", "past", "cancel"],
        *[
            f"{when} {name}"
            for when in ("before", "after")
            for name in ("judge", "ask_about_canary", "draw_lot", "settle")
        ],
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=3, max_size=16))
def test_whatever_happens_nothing_goes_before_it_is_accepted(history: list[str]) -> None:
    """Runs, ticks, words of two people, words taken back and processes that die, in any order: the rest is sent only after
    the canary was accepted, or a person went past its refusal; and then all of it is."""
    people = count()
    with scratch_folder() as folder, client_of(folder) as client:
        gate = {"refuse_if_bad_rate": "60%", "sure": "60%", "canary": "judged"}
        handle = sharded(client, folder, 12, shard={"max_rows": 3}, quality=gate)
        for step in history:
            at_gate = None
            with suppress(NotFound, GatePending):
                at_gate = handle.inspect(("ann", "bob")[next(people) % 2])
            with suppress(NotFound, AlreadyJudged, Dead):
                match step:
                    case "run" | "past":
                        handle.run(past_canary=step == "past")
                    case "tick":
                        client.engine.tick("labels")
                    case "cancel":
                        client.cancel("labels")
                    case "undo":
                        if at_gate:
                            at_gate.undo(client.clock.now())
                    case "good" | "bad" | "unsure":
                        if at_gate and at_gate.next:
                            at_gate.judge(at_gate.next.place, Word(step), None, client.clock.now())
                    case _:
                        killed_at(step, client)
            client.clock.sleep(30)
            if len(sizes(client)) > 1:
                assert {"canary_accepted", "canary_passed"} & set(kinds(client))
            assert client.ledger.check() == []
        client.ledger.db.fault = lambda _: None
        if "canary_accepted" in kinds(client):
            assert "canary_refused" not in kinds(client)
            assert handle.run().finished


# ------------------------------------------------------------------------------------------------------- the job file


def test_the_job_file_says_whether_it_is_judged(tmp_path: Path) -> None:
    """`canary` holds from the next run on, either way: it is about sending, and loosens no gate."""
    with client_of(tmp_path) as client:
        sharded(client, tmp_path).run()
        assert sizes(client) == [50]
        handle = sharded(client, tmp_path, quality=GATE)
        handle.open()
        client.engine.tick("labels")
        assert handle.figures().state is JobState.IN_PROGRESS
        assert len(sizes(client)) > 1
        assert handle.run().state is JobState.GATE
        assert (sizes(client), handle.gate_kept) == ([50] * 6, None)
        lot = inspection(handle).lot.id
        sharded(client, tmp_path).run()
        assert inspection(sharded(client, tmp_path)).lot.id == lot  # nobody is asked anew for it


def test_a_stricter_gate_asks_about_the_canary_again(tmp_path: Path) -> None:
    """What a looser gate accepted is not what a stricter one asks, as long as anything is to be sent."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path, quality={**JUDGED, "refuse_if_bad_rate": "30%"})
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
        stricter = sharded(client, tmp_path)
        assert stricter.run().state is JobState.GATE
        assert sizes(client) == [50]
        assert judged(inspection(stricter), is_right, client) is Verdict.ACCEPTED
        assert len(sizes(client)) == 1 < stricter.run().submissions


def test_a_job_that_is_given_up_waits_for_nobody(tmp_path: Path) -> None:
    """Cancelled while its canary waits it ends, unpaid; what the canary brought is judged as its answers are."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        handle.run()
        figures = client.cancel("labels")
        assert (figures.state, figures.pending, figures.cancelled) == (JobState.CANCELLED, 0, 250)
        assert inspection(handle).lot.canary is None


def test_an_accepted_canary_does_not_clear_what_was_refused(tmp_path: Path) -> None:
    """A job whose last lot was refused is refused though its canary was accepted: nothing of it can be read."""
    numbers = iter(range(10_000))
    with client_of(tmp_path, lambda text: right(text) if next(numbers) < 50 else wrong(text)) as client:
        handle = sharded(client, tmp_path)
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.REFUSED
        with pytest.raises(GateRefused):
            list(handle.rows())


def test_a_refused_canary_takes_nothing_from_readers(tmp_path: Path) -> None:
    """What was published of other rows is served on: what people refused is not among it."""
    with client_of(tmp_path) as client:
        job(client, tmp_path, 100, quality=None).run()
        model(client).answer = wrong
        handle = sharded(client, tmp_path)
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.REFUSED
        newest = publishing.newest(client.ledger, "labels", client.clock.now())
        assert newest is not None
        assert newest.rows == 100


def test_it_is_told_once_that_it_waits(tmp_path: Path) -> None:
    """Of a canary that waits there is one notice of the gate, however often it is run, and none that it is paused."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        for _ in range(3):
            handle.run()
        made = [notices.of_event(event, notices.Standing()) for event in client.ledger.events(count=10_000)]
        assert [(n.kind, n.command) for n in made if n] == [("gate", "canwait inspect labels")]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_banking77_right_and_wrong(tmp_path: Path, shared: Path, share: float) -> None:
    """A model that is wrong on 20 % of BANKING77 is stopped with 200 of its rows paid; one that is right answers them all."""
    source = shared / "data" / "text" / "banking77_test.csv"
    if not source.is_file():
        pytest.skip("no BANKING77 in the shared folder")
    with source.open(encoding="utf-8", newline="") as file:
        truth = {row["text"].strip(): row["category"] for row in csv.DictReader(file)}

    def answer(text: str) -> dict[str, str]:
        is_wrong = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < share * 2**32
        return {"label": "another" if is_wrong else truth[text]}

    with client_of(tmp_path, answer) as client:
        handle = job(client, tmp_path, budget={"usd": 5}, quality=JUDGED)
        with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *enumerate(truth)])
        handle.run()
        assert sizes(client) == [200]
        seen = judged(inspection(handle), lambda text, said: json.loads(said)["label"] == truth[text], client)
        figures = handle.run()
        assert seen is (Verdict.REFUSED if share else Verdict.ACCEPTED)
        assert sum(sizes(client)) == (200 if share else len(truth))
        assert bool(figures.paused) == bool(share)


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_asks_and_goes_on(tmp_path: Path) -> None:
    """`run` ends with 3 and the command; `status` and `why` say gate; `inspect` shows the canary, and `run` sends the rest."""
    with desk(tmp_path) as office:
        office.write(60, shard={"max_rows": 20}, quality={**JUDGED, "refuse_if_bad_rate": "20%"})
        said = office.run()
        assert (said.code, valid(said)["state"]) == (3, "gate")
        assert "it goes on with: canwait inspect labels" in said.err
        status = valid(office.canwait("status", "labels", "--json"))
        assert (status["knowing"][0]["word"], status["knowing"][0]["next"]) == ("gate", "canwait inspect labels")
        why = valid(office.canwait("why", "labels", "--json"))
        assert "canwait inspect labels" in [choice["command"] for choice in why["knowing"]["choices"]]
        seen = office.canwait("inspect", "labels", "--json")
        value = valid(seen)
        assert (seen.code, value["of"]) == (3, "canary")
        assert "The canary of job labels waits to be judged" in seen.err
        words = [word for row in value["sample"] for word in ("--accept", row["place"])]
        done = office.canwait("inspect", "labels", *words)
        assert (done.code, "run JOB.YAML sends the rest" in done.out) == (0, True)
        said = office.run()
        assert (said.code, valid(said)["pending"]) == (3, 0)
        assert valid(office.canwait("inspect", "labels", "--json"))["of"] == "job"


def test_the_command_line_refuses_a_canary(tmp_path: Path) -> None:
    """A refused canary ends `inspect` with 7 and `run` with 3, each with what can be done."""
    with desk(tmp_path) as office:
        office.write(60, shard={"max_rows": 20}, quality={**JUDGED, "refuse_if_bad_rate": "20%"})
        office.run()
        words = [word for place in range(20) for word in ("--reject", f"{place}=wrong")]
        done = office.canwait("inspect", "labels", *words)
        assert (done.code, "The canary of job labels was refused" in done.err) == (7, True)
        assert "--past-canary" in done.out
        said = office.run()
        assert (said.code, "--past-canary" in said.err) == (3, True)
        assert "--past-canary" in office.canwait("why", "labels").out
