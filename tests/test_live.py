"""What is stale, missing or never built is asked live: paid once, within its budget, behind the gate, or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import canwait
from canwait import errors, publishing
from canwait.client import Client
from canwait.drills.histories import Killed
from canwait.freshness import Contract, Fresh, Live
from canwait.inspection import let_through
from canwait.live import job_of
from canwait.providers.fake import Temper
from canwait.types import Fallback, Job, Tier
from gated import LABEL, client_of, inspection, job, judged, right
from prompted import Prompt, adopted
from simulated import changed, desk

RULES = {"refuse_if_bad_rate": "10%", "by": "rule", "rules": ["label == 'right'"]}


class Label(BaseModel):
    label: Literal["billing", "bug", "account"]
    urgency: int


@dataclass
class World:
    """A job that has run in a batch, a reader that may ask live, and a clock that jumps."""

    folder: Path
    client: Client
    batch: Prompt
    prompt: Prompt  # row by row

    def run(self, texts: list[str], **fields: Any) -> Job:
        work = job(self.client, self.folder, texts, **{"quality": None, **fields})
        work.run()
        return work.value

    def wait(self, **time: float) -> None:
        self.client.clock.sleep(timedelta(**time).total_seconds())

    def reader(self, value: Job, **terms: Any) -> Any:
        asked: dict[str, Any] = {
            "as_": "dash",
            "max_age": "1h",
            "on_stale": "live",
            "live": value,
            "live_budget_usd": "0.50",
        }
        return canwait.reader("labels", client=self.client, **asked | terms)

    def spent(self) -> tuple[int, int]:
        """What live answers have cost and hold, in micros."""
        (row,) = self.client.ledger.query("budget", id="job:labels.live")
        return row["spent_micros"], row["held_micros"]


@contextmanager
def world(folder: Path, answer: Callable[[str], Any] = right, *, url: str = "") -> Iterator[World]:
    with client_of(folder, answer, url=url) as client:
        batch, prompt = (adopted(client, answer, name) for name in ("openai", "openai/standard"))
        yield World(folder, client, batch, prompt)
        assert client.ledger.check() == []


@pytest.fixture
def live(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


# ------------------------------------------------------------------------------------------------------ what is answered


def test_what_is_fresh_is_read_and_nothing_is_asked(live: World) -> None:
    """Within the contract `live` is a reader as any other."""
    labels = live.reader(live.run(["one", "two"]))
    hit = labels.get("k0", {"text": "another"})
    assert isinstance(labels.outcome, Fresh)
    assert (hit.version, hit.live, hit.value["why"]) == (1, False, "one")
    assert live.prompt.asked == []


def test_past_the_contract_the_row_is_asked_as_it_stands_now(ledger_url: str, tmp_path: Path) -> None:
    """The answer is of no publication and no older than its row; it is paid from the budget of NAME.live; on both databases."""
    with world(tmp_path, url=ledger_url) as live:
        labels = live.reader(live.run(["one", "two"]))
        live.wait(hours=2)
        outcome = labels.outcome
        assert isinstance(outcome, Live)
        assert outcome.why.startswith("2 h")
        hit = labels.get("k0", {"text": "one, changed"})
        assert (hit.key, hit.value["why"], hit.live, hit.stale, hit.version) == (
            "k0",
            "one, changed",
            True,
            False,
            None,
        )
        assert timedelta(0) < hit.age < timedelta(seconds=2)
        assert (hit.gate, hit.model, hit.effective_until) == ("no gate", "fake-1", None)
        assert live.prompt.asked == ["one, changed"]
        spent, held = live.spent()
        assert (spent > 0, held) == (True, 0)
        row = live.client.ledger.job("labels.live")
        assert (row["state"], row["reason"]) == ("completed", "a row was asked live, and answered")


def test_reads_are_counted_as_live_ones(live: World) -> None:
    """Who, when, how many and how old, of no version; never the key, and a refused one is no read."""
    with live.reader(live.run(["one"])) as labels:
        labels.get("k0")
        live.wait(hours=2)
        for _ in range(3):
            labels.get("k0", {"text": "a secret text"})
        live.prompt.failing.add("bad")
        with pytest.raises(errors.StaleResult):
            labels.get("k0", {"text": "bad"})
    found = live.client.ledger.query("readings", job="labels", reader="dash", count=9)
    assert {r["version"]: (r["n_reads"], r["n_rows"], r["n_stale"]) for r in found} == {1: (1, 1, 0), 0: (3, 3, 0)}
    assert publishing.standings(live.client.ledger, live.client.clock.now(), "labels")[0].last_read is not None


def test_a_row_is_looked_up_by_its_key(live: World) -> None:
    """Without a row the job's source is read as it is now; a key it does not have is None."""
    labels = live.reader(live.run(["one", "two"]))
    live.wait(hours=2)
    (live.folder / "labels.csv").write_text("id,text\nk0,one\n7,changed\n", "utf-8")
    hit = labels.get("7")
    assert (hit.value["why"], hit.live) == ("changed", True)
    assert labels.get("k1") is None
    assert live.prompt.asked == ["changed"]


def test_a_key_that_was_not_published_is_asked(live: World) -> None:
    """Of a fresh publication, too: the row came after it, or failed in it."""
    labels = live.reader(live.run(["one"]))
    hit = labels.get("new", {"text": "new"})
    assert (hit.live, hit.value["why"]) == (True, "new")
    assert labels.get("k0").version == 1
    assert labels.get("nowhere") is None


def test_before_the_first_publication_rows_are_asked(live: World) -> None:
    """Nothing built is an outcome of its own for everybody else; a live reader asks."""
    never = job(live.client, live.folder, ["one"], quality=None).value
    labels = live.reader(never)
    assert labels.outcome == Live(None, "nothing of this job was accepted yet")
    assert labels.get("k0").value["why"] == "one"
    with pytest.raises(errors.NotBuilt, match="only single rows are asked live"):
        labels.frame()


def test_whole_sets_are_not_asked_live(live: World) -> None:
    """A frame, all rows and batches are blocked past the contract, and say so; nothing is spent."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)
    for read in (labels.frame, lambda: list(labels.rows()), lambda: list(labels.batches())):
        with pytest.raises(errors.StaleResult, match="only single rows are asked live"):
            read()
    assert live.prompt.asked == []


def test_answers_become_the_readers_model(tmp_path: Path) -> None:
    """A pydantic model, text or an embedding's numbers, as from a publication; through a real wire, with the money booked."""
    with desk(tmp_path) as office:
        office.write(6)
        office.write_job("texts", output=None, load=None)
        office.write_job(
            "vectors", endpoint="embeddings", model="openai/text-embedding-3-small", output=None, max_output_tokens=None,
            load=None,
        )  # fmt: skip
        with changed(office.folder, office.env), canwait.connect() as client:

            def asked(name: str, file: str, output: Any = None) -> Any:
                return canwait.reader(
                    name,
                    as_="me",
                    max_age="1h",
                    on_stale="live",
                    live=file,
                    live_budget_usd=1,
                    output=output,
                    client=client,
                ).get("000001")

            assert isinstance(asked("labels", "job.yaml", Label).value, Label)
            assert isinstance(asked("texts", "texts.yaml").value, str)
            assert {type(number) for number in asked("vectors", "vectors.yaml").value} == {float}
            spent = sum(b["spent_micros"] for b in client.ledger.query("budgets") if b["id"].startswith("job:"))
            assert 0 < spent <= office.simulator.bill_micros()
            assert client.ledger.check() == []


# ---------------------------------------------------------------------------------------------------------- paid once


def test_a_row_that_did_not_change_is_answered_for_nothing(live: World) -> None:
    """What a batch was asked is asked no more: the row was read now, and its answer is known."""
    labels = live.reader(live.run(["one", "two"]))
    live.wait(hours=2)
    for hit in (labels.get("k0"), labels.get("k1", {"text": "two"})):
        assert (hit.live, hit.stale, hit.age < timedelta(seconds=2)) == (True, False, True)
    assert live.prompt.asked == []
    assert live.spent() == (0, 0)


def test_the_same_request_is_paid_once(live: World) -> None:
    """By another reader, under another key, and by the next batch of the job."""
    value = live.run(["one"])
    live.wait(hours=2)
    live.reader(value).get("k0", {"text": "new"})
    live.reader(value, as_="other").get("k1", {"text": "new"})
    assert live.prompt.asked == ["new"]
    live.run(["new"])
    hit = live.reader(value).get("k0")
    assert (hit.version, hit.value["why"]) == (2, "new")
    assert live.batch.asked == ["one"]


def test_an_answer_serves_until_it_is_too_old_itself(live: World) -> None:
    """Its age counts from when its row was read; then the row is read again, and paid only if it has changed."""
    labels = live.reader(live.run(["one"]), max_age="1h")
    live.wait(hours=2)
    (live.folder / "labels.csv").write_text("id,text\nk0,changed\n", "utf-8")
    assert labels.get("k0").value["why"] == "changed"
    (live.folder / "labels.csv").write_text("id,text\nk0,changed again\n", "utf-8")
    live.wait(minutes=50)
    kept = labels.get("k0")
    assert (kept.value["why"], kept.age >= timedelta(minutes=50), kept.stale) == ("changed", True, False)
    live.wait(minutes=10)
    assert labels.get("k0").value["why"] == "changed again"
    assert live.prompt.asked == ["changed", "changed again"]


def test_threads_that_ask_the_same_rows_pay_once(tmp_path: Path) -> None:
    """Eight threads of one reader, two rows: each gets its answer, and each row runs once."""
    with desk(tmp_path) as office:
        office.write(2)
        with changed(office.folder, office.env), canwait.connect() as client:
            labels = canwait.reader(
                "labels", as_="me", max_age="1h", on_stale="live", live="job.yaml", live_budget_usd=1, client=client
            )
            got: dict[str, list[Any]] = {"a": [], "b": []}

            def ask(key: str) -> None:
                hit = labels.get(key, {"text": key})
                assert hit is not None
                got[key].append(hit.value)

            threads = [threading.Thread(target=ask, args=(key,)) for key in ["a", "b"] * 4]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [len(values) for values in got.values()] == [4, 4]
            assert all(value == values[0] for values in got.values() for value in values)
            assert sorted(office.simulator.executed().values()) == [1, 1]
            assert client.ledger.check() == []


_ASK = """
import sys
import canwait
labels = canwait.reader("labels", as_=sys.argv[1], max_age="1h", on_stale="live", live="job.yaml", live_budget_usd="0.5")
print("ready", flush=True)
sys.stdin.readline()
print(*[labels.get(f"k{n}", {"text": f"text {n}"}).value["label"] for n in range(4)], flush=True)
"""


def test_two_processes_pay_once(ledger_url: str, tmp_path: Path) -> None:
    """Of two processes that ask the same rows at the same moment each gets every answer, and each row runs once."""
    with desk(tmp_path) as office:
        office.write(2)
        env = office.env | {"CANWAIT_DB": ledger_url, "CANWAIT_HOME": str(tmp_path / "home")}
        with changed(office.folder, env):
            canwait.connect().close()
            asking = [
                subprocess.Popen(
                    [sys.executable, "-c", _ASK, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                for name in ("one", "two")
            ]
            for process in asking:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            said = []
            for process in asking:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            said = [process.communicate()[0].split() for process in asking]
            assert said[0] == said[1]
            assert len(said[0]) == 4
            assert set(office.simulator.executed().values()) == {1}
            assert len(office.simulator.executed()) == 4
            with canwait.connect() as client:
                assert client.ledger.check() == []


def dying_at(place: int) -> tuple[Callable[[str], None], list[str]]:
    """A process that dies before or after its write number `place`, and the writes it came to."""
    seen: list[str] = []

    def fault(where: str) -> None:
        seen.append(where)
        if len(seen) == place:
            raise Killed(where)

    return fault, seen


def test_a_crash_anywhere_loses_no_answer_and_pays_once(tmp_path: Path) -> None:
    """Whoever asks dies before or after any of its writes; whoever asks next gets the answer, and it was billed once."""
    for place in range(1, 100):
        folder = tmp_path / str(place)
        folder.mkdir()
        with world(folder) as live:
            value = live.run(["one"])
            live.wait(hours=2)
            live.prompt.delay_s = 0
            labels = live.reader(value)
            live.client.ledger.db.fault, seen = dying_at(place)
            with suppress(Killed):
                labels.get("k0", {"text": "new"})
            live.client.ledger.db.fault = lambda where: None
            live.wait(minutes=5)
            assert live.reader(value).get("k0", {"text": "new"}).value["why"] == "new"
            assert live.prompt.asked == ["new"]
            assert live.spent()[1] == 0
        if len(seen) < place:
            break
    assert 20 < place < 99


# ------------------------------------------------------------------------------------------------ what stands in the way


def blocked(labels: Any, text: str, says: str) -> errors.StaleResult:
    with pytest.raises(errors.StaleResult, match=says) as caught:
        labels.get("k0", {"text": text})
    assert caught.value.exit_code == 8
    assert isinstance(caught.value.fields["outcome"], Live)
    return caught.value


def test_no_money_no_answer_and_nothing_old(live: World) -> None:
    """What its budget does not hold in the worst case is not sent; the cause is in words, also in the error's fields."""
    labels = live.reader(live.run(["one"]), live_budget_usd="0.000001")
    live.wait(hours=2)
    error = blocked(labels, "new", r"2 h old.*Asked live: .* needs \$")
    assert "labels.live" in error.fields["cause"]
    assert live.prompt.asked == []


@pytest.mark.parametrize("budget", ["project:shop", "month"])
def test_it_stays_below_the_budgets_above(live: World, budget: str) -> None:
    """The owner's project and the month hold a live answer as any other."""
    labels = live.reader(replace(live.run(["one"], owner="shop"), owner="shop"))
    live.wait(hours=2)
    live.client.ledger.set_budget(budget, micros=1, tokens=None, now=live.client.clock.now())
    blocked(labels, "new", budget)
    assert live.prompt.asked == []


def test_the_budget_is_for_the_life_of_the_job(live: World) -> None:
    """It is no allowance for each row: rows are answered until it is used up, by this reader or the next."""
    value = live.run(["one"])
    live.wait(hours=2)
    live.reader(value).get("k0", {"text": "row"})
    each = live.spent()[0]
    labels = live.reader(value, live_budget_usd=f"0.{20 * each:06d}")
    n_answered = 0
    with suppress(errors.StaleResult):
        for n in range(100):
            n_answered += labels.get(f"k{n}", {"text": f"row {n}"}).live
    assert 0 < n_answered < 20
    assert sum(live.spent()) <= 20 * each


def test_a_provider_that_is_down_blocks_and_holds_nothing(live: World) -> None:
    """What never left is given up after the time a reader waits; its money is free, and it is asked anew the next time."""
    labels = live.reader(live.run(["one"]), live_within="5s")
    live.wait(hours=2)
    live.prompt.temper = Temper(unreachable=1)
    before = live.client.clock.now()
    blocked(labels, "new", "no answer came within 5 s: never arrived: connection refused")
    assert live.client.clock.now() - before < timedelta(seconds=7)
    assert live.spent() == (0, 0)
    live.prompt.temper = Temper()
    assert labels.get("k0", {"text": "new"}).value["why"] == "new"
    assert live.prompt.asked == ["new"]


def test_a_refused_key_is_told(live: World) -> None:
    """Without waiting."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)

    def refuses(name: str) -> Any:
        raise errors.KeyRefused(provider=name, variable="OPENAI_API_KEY", why="it has expired")

    live.client.provider = refuses  # type: ignore[method-assign]
    before = live.client.clock.now()
    blocked(labels, "new", "refused the key")
    assert live.client.clock.now() == before


def test_an_account_without_credit_is_told_at_once(live: World) -> None:
    """The job is paused, its money is free, and the next ask tries again."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)
    live.prompt.temper = Temper(out_of_credit=1)
    before = live.client.clock.now()
    blocked(labels, "new", "paused: the account is out of credit")
    assert live.client.clock.now() - before < timedelta(seconds=2)
    assert live.spent() == (0, 0)
    live.prompt.temper = Temper()
    assert labels.get("k0", {"text": "new"}).live


def test_a_row_that_fails_for_good_is_not_asked_twice(live: World) -> None:
    """What the model declines it declines again: the cause is told, and the second time nothing is sent."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)
    live.prompt.failing.add("new")
    live.prompt.cause = "content_filter"
    for _ in range(2):
        blocked(labels, "new", "the row failed: content_filter")
    assert live.prompt.asked == ["new"]


def test_a_row_that_failed_in_passing_is_asked_again(live: World) -> None:
    """After the attempts of the job it is blocked; the next ask is a new one, and gets the answer."""
    labels = live.reader(replace(live.run(["one"]), attempts=2))
    live.wait(hours=2)
    live.prompt.failing.add("new")
    live.prompt.cause = "server_error"
    blocked(labels, "new", "the row failed: server_error")
    assert live.prompt.asked == ["new"] * 2
    live.prompt.failing.clear()
    assert labels.get("k0", {"text": "new"}).value["why"] == "new"


def test_a_late_answer_is_kept_and_paid_once(live: World) -> None:
    """What is not back in time blocks; it is found when somebody asks again."""
    labels = live.reader(live.run(["one"]), live_within="2s")
    live.wait(hours=2)
    live.prompt.delay_s = 30
    blocked(labels, "new", "no answer came within 2 s")
    live.wait(seconds=60)
    assert labels.get("k0", {"text": "new"}).value["why"] == "new"
    assert live.prompt.asked == ["new"]


def test_an_answer_older_than_the_contract_is_not_given(live: World) -> None:
    """A reader that accepts two seconds does not get the answer to a row it gave a minute ago; of one it gives now it does."""
    labels = live.reader(live.run(["one"]), max_age="2s")
    live.wait(hours=2)
    live.prompt.temper, live.prompt.delay_s = Temper(slow_create=1), 0
    blocked(labels, "new", "took .* s, and is that old")
    hit = labels.get("k0", {"text": "new"})
    assert (hit.value["why"], hit.age) == ("new", timedelta(0))
    assert live.prompt.asked == ["new"]


def test_a_row_that_cannot_be_asked_is_the_callers(live: World) -> None:
    """A given row without its columns, or of another key, is told as such; one in the source blocks."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)
    with pytest.raises(errors.SourceError, match="no column 'text'"):
        labels.get("k0", {"words": "new"})
    with pytest.raises(errors.SourceError, match="expected the key 'k0'"):
        labels.get("k0", {"id": "k1", "text": "new"})
    (live.folder / "labels.csv").write_text("id,text\nk0,\n", "utf-8")
    with pytest.raises(errors.StaleResult, match="cannot be asked"):
        labels.get("k0")
    (live.folder / "labels.csv").write_text("name,text\nk0,new\n", "utf-8")
    with pytest.raises(errors.StaleResult, match="no column 'id'"):
        labels.get("k0")
    (live.folder / "labels.csv").unlink()
    with pytest.raises(errors.StaleResult, match=r"labels\.csv"):
        labels.get("k0")


# ---------------------------------------------------------------------------------------------------------------- gates


def test_a_gate_that_people_judge_refuses_live(live: World) -> None:
    """A live answer has passed nobody: nothing is declared, and nothing is asked."""
    value = job(live.client, live.folder, ["one"]).value
    with pytest.raises(errors.SpecError, match="people judge the answers of labels"):
        live.reader(value)
    assert live.client.ledger.query("contracts", job="labels") == []


def test_a_gate_put_later_stops_live(live: World) -> None:
    """Also what this reader was answered before it."""
    value = live.run(["one"])
    labels = live.reader(value)
    live.wait(hours=2)
    assert labels.get("k0", {"text": "new"}).live
    gated = job(live.client, live.folder, ["one", "more"])
    gated.run()
    judged(inspection(gated), lambda asked, answer: True, live.client)
    live.wait(hours=2)
    blocked(labels, "new", "people judge")
    with pytest.raises(errors.SpecError, match="people judge"):
        live.reader(value)


def test_a_gate_put_while_a_row_is_out_counts(live: World) -> None:
    """What comes home after it is not given."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)
    live.prompt.temper, live.prompt.delay_s = Temper(slow_create=1), 0

    def put_gate() -> None:
        job(live.client, live.folder, ["one"]).open()

    live.prompt.during_create = put_gate
    blocked(labels, "new", "its gate is another by now")
    blocked(labels, "new", "people judge")


def test_rules_are_asked_of_a_live_answer(tmp_path: Path) -> None:
    """One that keeps them says so; one that breaks one is blocked, and no other face gives it either."""
    with world(tmp_path, lambda text: {"label": "right" if "good" in text else "wrong", "why": text}) as live:
        labels = live.reader(live.run(["good one"], quality=RULES))
        live.wait(hours=2)
        hit = labels.get("k0", {"text": "good two"})
        assert (hit.gate, hit.live) == ("asked live: it keeps all 1 rules, and nobody has looked at it", True)
        for _ in range(2):
            blocked(labels, "bad", "breaks the rule `label == 'right'`")
        assert live.prompt.asked == ["good two", "bad"]
        c = live.client
        with (
            pytest.raises(errors.GateRefused),
            let_through(c.ledger, c.blobs, "labels.live", c.clock.now(), live.folder),
        ):
            pass
        live.run(["good two"], quality=RULES)
        assert live.batch.asked == ["good one"]


# ---------------------------------------------------------------------------------------------------------------- terms


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"live": None}, "stated together"),
        ({"live_budget_usd": None}, "stated together"),
        ({"on_stale": "block"}, "stated together"),
        ({"live": None, "live_budget_usd": None}, "stated together"),
        ({"live_budget_usd": "ten"}, "live_budget_usd"),
        ({"live_budget_usd": "-1"}, "live_budget_usd"),
        ({"live_within": "soon"}, "live_within"),
        ({"live": "nowhere.yaml"}, "no such job file"),
        ({"refresh": "job.yaml"}, "`on_stale='refresh'`"),
    ],
)
def test_terms_that_mean_nothing_are_refused(live: World, terms: dict[str, Any], says: str) -> None:
    """With what to give instead; nothing is declared."""
    value = job(live.client, live.folder, ["one"], quality=None).value
    with pytest.raises(errors.SpecError, match=says):
        live.reader(value, **terms)
    assert live.client.ledger.query("contracts", job="labels") == []


def test_a_contract_stated_as_live_needs_to_know_how(live: World) -> None:
    """What a job file or a person states says neither by what to ask nor for how much: code does."""
    value = live.run(["one"])
    publishing.declare(live.client.ledger, Contract("labels", "dash", 3600, "live"), "ada", live.client.clock.now())
    with pytest.raises(errors.SpecError, match="live_budget_usd"):
        live.reader(value, max_age=None, on_stale=None, live=None, live_budget_usd=None)
    live.wait(hours=2)
    assert live.reader(value, max_age=None, on_stale=None).get("k0").live
    (standing,) = publishing.standings(live.client.ledger, live.client.clock.now(), "labels")
    assert standing.state == "blocked"


def test_another_job_is_not_asked(live: World) -> None:
    """A reader's rows are asked by the job that publishes them, at a price that is known."""
    value = live.run(["one"])
    with pytest.raises(errors.SpecError, match="called other; expected labels"):
        live.reader(replace(value, name="other"))
    with pytest.raises(errors.UnknownPrice):
        live.reader(replace(value, model="no-such-model"))


def test_a_job_of_somebody_elses_is_not_used(live: World) -> None:
    """Rows would be asked as `labels.live`; where a job with rows of its own is called so, nothing is asked."""
    value = live.run(["one"])
    live.run(["one"], name="labels.live", load="other.parquet")
    with pytest.raises(errors.SpecError, match=r"another job is called labels\.live"):
        live.reader(value)


def test_a_persons_block_stops_live_at_once(live: World) -> None:
    """A revision that accepts less counts, and costs nothing; `serve` does not turn a live reader into one that serves."""
    labels = live.reader(live.run(["one"]))
    live.wait(hours=2)
    publishing.revise(live.client.ledger, Contract("labels", "dash", 3600, "serve"), "ada", live.client.clock.now())
    assert labels.get("k0", {"text": "new"}).live
    publishing.revise(live.client.ledger, Contract("labels", "dash", 3600, "block"), "ada", live.client.clock.now())
    with pytest.raises(errors.StaleResult):
        labels.get("k0", {"text": "newer"})
    assert live.prompt.asked == ["new"]


def test_the_tier_is_one_that_answers_row_by_row(live: World) -> None:
    """The job file's own, or that of its rescue; else `standard`; a server of our own is asked as ever."""
    value = job(live.client, live.folder, ["one"], quality=None).value

    def tiers(**fields: Any) -> list[str]:
        return [tier.value for tier in job_of(replace(value, **fields), 1, 60, None).tiers]

    assert tiers() == ["standard"]
    assert tiers(tiers=(Tier.BATCH, Tier.FLEX)) == ["flex"]
    assert tiers(fallback=Fallback(rescue=Tier.FLEX)) == ["flex"]
    assert tiers(provider="own") == []
    assert LABEL == job_of(value, 1, 60, None).output_schema
