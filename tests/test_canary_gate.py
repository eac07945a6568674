"""Promises of halting.py: of a job with a gate one shard goes first, and a broken prompt costs that shard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import judging
from canwait.client import Client, JobHandle
from canwait.errors import NotFound
from canwait.gate import tail
from canwait.halting import FAULTS, surely_bad
from canwait.lifecycle import CAUSES, Retry
from canwait.types import JobState, Quality
from gated import client_of, failing_canary, inspection, job, judged, model, right
from world import Dead

GATE = Quality(Decimal("0.1"), Decimal("0.9"), "human")


@pytest.fixture
def client(tmp_path: Path, ledger_url: str) -> Iterator[Client]:
    with client_of(tmp_path, url=ledger_url) as c:
        yield c


def broken(text: str) -> dict[str, str]:
    """What a prompt that is misunderstood brings: no answer fits the schema."""
    return {"lable": text}


def sharded(client: Client, folder: Path, texts: int = 300, **fields: Any) -> JobHandle:
    return job(client, folder, texts, shard={"max_rows": 50}, **fields)


def sizes(client: Client) -> list[int]:
    """Rows of each batch that was sent, in order."""
    return [len(batch.bodies) for batch in model(client).batches.values()]


def kinds(client: Client) -> list[str]:
    return [event.kind for event in client.ledger.events(count=10_000)]


# ------------------------------------------------------------------------------------------------------------ the test


@given(st.integers(1, 60), st.data())
def test_the_tail_is_exact(n: int, data: st.DataObject) -> None:
    """The chance of so many bad rows or more is the binomial one, against fractions."""
    n_bad, rate = data.draw(st.integers(0, n)), data.draw(st.sampled_from([Fraction(1, 10), Fraction(1, 3)]))
    exact = sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n_bad, n + 1))
    assert tail(n, n_bad, float(rate)) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("n_bad", "n_before", "stops"), [(27, 0, False), (28, 0, True), (28, 3, False), (37, 3, True)])
def test_only_what_is_surely_bad_stops_a_plan(n_bad: int, n_before: int, stops: bool) -> None:
    """Of 200 rows and 10 %: 28 bad ones are too many at first; after more tests it takes more, so that all together err 1 in 10."""
    said = surely_bad(GATE, {"ok": 200 - n_bad, "schema": n_bad}, {}, n_before)
    assert (said is not None) == stops


def test_passing_trouble_stops_nothing() -> None:
    """Rows that a provider did not run say nothing of a prompt, and neither do ours that were not sent."""
    tally = {"ok": 10, "rate_limit": 200, "expired": 50, "server_error": 50, "budget": 20, "deadline": 5}
    assert surely_bad(GATE, tally, {}, 0) is None
    assert all(CAUSES[cause] is Retry.NEVER for cause in FAULTS)


def test_a_job_as_bad_as_allowed_is_seldom_stopped() -> None:
    """Answers just as bad as the gate refuses, 40 shards after one another: at most 1 job in 10 is stopped by any of them."""
    import random

    rng, stopped = random.Random(3), 0
    for _ in range(300):
        bad = [sum(rng.random() < 0.1 for _ in range(100)) for _ in range(40)]
        stopped += any(surely_bad(GATE, {"ok": 100 - n, "schema": n}, {}, k) for k, n in enumerate(bad))
    assert stopped <= 30 + 1.65 * 27**0.5


# ---------------------------------------------------------------------------------------------------------- the canary


def test_a_broken_prompt_costs_one_shard(tmp_path: Path, ledger_url: str) -> None:
    """Where no answer of the first shard can be used nothing else is sent, and the words say what, why and what to do."""
    with client_of(tmp_path, broken, url=ledger_url) as client:
        handle = sharded(client, tmp_path)
        figures = handle.run()
        assert sizes(client) == [50]
        assert figures.paused is not None
        assert figures.paused.startswith(
            "50 of 50 answers are bad by the free checks (50 schema); 10% are refused. These 50 rows cost $"
        )
        assert "--past-canary" in figures.paused
        assert (figures.pending, figures.submissions) == (250, 1)
        assert handle.run().submissions == 1  # and running it again does not get around it
        assert client.ledger.check() == []


def test_the_others_wait_in_words(client: Client, tmp_path: Path) -> None:
    """While the canary is out the other shards are blocked, and say by what."""
    handle = sharded(client, tmp_path)
    handle.open()
    client.engine.tick("labels")
    assert sizes(client) == [50]
    assert handle.figures().blocked == ("waits for the first 50 rows",)
    assert handle.run().ok == 300
    assert sizes(client) == [50] * 6


def test_the_drawn_canary_goes_first(client: Client, tmp_path: Path) -> None:
    """Of more than a thousand rows the random sample of the plan is the canary, and says so."""
    handle = job(client, tmp_path, 1100, budget={"usd": 5})
    plan = handle.open()
    client.engine.tick("labels")
    assert plan.canary is not None
    assert sizes(client) == [200]
    assert handle.figures().blocked == ("waits for the canary: 200 random rows",)
    assert handle.run().ok == 1100


def test_a_job_without_a_gate_waits_for_nothing(client: Client, tmp_path: Path) -> None:
    """Nobody asked for its answers to be judged, so all of its shards are sent at once."""
    sharded(client, tmp_path, quality=None).open()
    client.engine.tick("labels")
    assert sizes(client) == [50] * 6


def test_a_person_may_have_it_go_on(tmp_path: Path, ledger_url: str) -> None:
    """`past_canary` sends the rest in spite of it, and the journal says who; where nothing was stopped it is an error."""
    with client_of(tmp_path, broken, url=ledger_url) as client:
        handle = sharded(client, tmp_path)
        with pytest.raises(NotFound):
            handle.run(past_canary=True)
        assert handle.run().paused
        figures = handle.run(past_canary=True)
        assert (figures.finished, figures.submissions) == (True, 6)
        (event,) = [e for e in client.ledger.events(count=10_000) if e.kind == "canary_passed"]
        assert event.facts["who"]


def test_a_mended_prompt_is_another_plan(tmp_path: Path, ledger_url: str) -> None:
    """A plan with another prompt has a canary of its own; what the stopped one did not send is given up, unpaid."""
    with client_of(tmp_path, lambda text: right(text) if "Please" in text else broken(text), url=ledger_url) as client:
        sharded(client, tmp_path).run()
        figures = sharded(client, tmp_path, prompt="Please: {{ text }}").run()
        assert (figures.state, figures.ok, figures.paused) == (JobState.GATE, 300, None)
        assert sizes(client) == [50] * 7
        states = [row["state"] for row in client.ledger.query("shards", job="labels")]
        assert (states.count("settled"), states.count("cancelled")) == (7, 5)
        assert client.ledger.check() == []


def test_more_rows_do_not_start_a_stopped_prompt_again(tmp_path: Path) -> None:
    """The rows that were not sent yet belong to the new plan as well, and stay where they were stopped."""
    with client_of(tmp_path, broken) as client:
        sharded(client, tmp_path).run()
        figures = sharded(client, tmp_path, 310).run()
        assert figures.paused
        assert sizes(client)[:1] == [50]
        assert sum(sizes(client)) <= 60


def test_drift_stops_a_plan_where_it_is_seen(tmp_path: Path) -> None:
    """A model that breaks after the third shard stops the job with the shard that shows it, where one goes at a time."""
    numbers = count()

    def drifting(text: str) -> Any:
        return right(text) if next(numbers) < 150 else broken(text)

    with client_of(tmp_path, drifting) as client:
        handle = sharded(client, tmp_path)
        handle.open()
        model(client).max_enqueued_tokens = 1  # so that a batch goes when none is out
        client.engine.run("labels")
        figures = handle.figures()
        assert (figures.submissions, bool(figures.paused)) == (4, True)
        assert figures.pending == 100


def test_rules_are_among_the_free_checks(tmp_path: Path) -> None:
    """Answers that break a rule count while they land; rules that need the key, and functions, wait for the gate."""
    (tmp_path / "rules_of_canaries.py").write_text("def never(answer, key):\n    return False\n")
    rules = ["label != 'wrong'", "key != 'k1'", "rules_of_canaries:never"]
    for rule, stops in zip(rules, (True, False, False), strict=True):
        with client_of(tmp_path / rule[:5], lambda text: {"label": "wrong", "why": text}) as client:
            (tmp_path / rule[:5]).mkdir(exist_ok=True)
            gate = {"refuse_if_bad_rate": "10%", "rules": [rule]}
            handle = sharded(client, tmp_path, quality=gate)
            handle.open()
            client.engine.run("labels")
            figures = handle.figures()
            assert (bool(figures.paused), sum(sizes(client))) == (stops, 50 if stops else 300)
            if stops:
                assert "(50 break a rule)" in (figures.paused or "")


@pytest.mark.parametrize("where", ["before settle", "after settle"])
def test_a_kill_around_the_settling_releases_nothing(tmp_path: Path, where: str) -> None:
    """The verdict on the canary is written with its results: whoever dies beside it, nothing more is sent."""

    def kill(here: str) -> None:
        if here == where:
            client.ledger.db.fault = lambda _: None
            raise Dead(where)

    with client_of(tmp_path, broken) as client:
        handle = sharded(client, tmp_path)
        client.ledger.db.fault = kill
        with pytest.raises(Dead):
            handle.run()
        client.clock.sleep(60)
        assert handle.run().paused
        assert sizes(client) == [50]


def test_a_canary_that_never_ran_holds_nobody_up(tmp_path: Path) -> None:
    """Rows that failed in passing are sent again, and the rest does not wait for that once most of the canary is home."""
    with client_of(tmp_path) as client:
        handle = sharded(client, tmp_path)
        failing_canary(client, handle)
        figures = handle.run()
        assert (figures.ok, figures.failed, figures.submissions) == (290, 10, 8)
        assert sizes(client)[-1] == 10  # the last try of those rows; all others had been sent by then
        assert judging.standing(client.ledger, "labels").is_whole


def test_a_good_canary_changes_nothing_else(client: Client, tmp_path: Path) -> None:
    """After it the job ends, is judged and loads as any other."""
    handle = sharded(client, tmp_path)
    assert handle.run().state is JobState.GATE
    judged(inspection(handle), lambda _, answer: json.loads(answer)["label"] == "right", client)
    assert handle.load() == 300
    assert "canary_passed" not in kinds(client)
