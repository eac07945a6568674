"""Promises of ramp.py: a gated job goes out in growing waves, unless waiting could cost its deadline."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.client import Client, JobHandle
from canwait.engine import Pace
from canwait.providers.fake import Temper
from canwait.ramp import GROWTH, Ramp, back_s, free, is_over, most, waves
from canwait.schedule import Ready
from canwait.types import MarkClass
from gated import client_of, job, model, right
from test_canary_gate import broken

NOW = datetime(2026, 11, 1, tzinfo=UTC)
RULE = {"refuse_if_bad_rate": "10%", "by": "rule", "rules": ["label == 'right'"]}
DAYS = "72h"  # three windows: there is time for the ramp, whatever was seen

# ---------------------------------------------------------------------------------------------------------------- laws

counts = st.integers(0, 10_000)


@given(counts, counts)
def test_with_nothing_out_something_may_always_go(n_tested: int, n_out: int) -> None:
    """Nobody waits for nobody; and where something waits, something is out that will end."""
    assert free(n_tested, 0) >= 1
    assert free(n_tested, n_out) >= 1 or n_out


@given(counts, st.integers(1, 10_000))
def test_a_shard_that_settles_makes_room(n_tested: int, n_out: int) -> None:
    """What was free before a shard came home is free after it."""
    assert free(n_tested + 1, n_out - 1) >= free(n_tested, n_out)


@given(st.integers(1, 10_000))
def test_no_more_than_four_times_what_is_tested_is_out(n_tested: int) -> None:
    """Also where all that was free has gone."""
    assert most(n_tested) - n_tested <= GROWTH * n_tested


@given(st.integers(1, 3_000))
def test_waves_are_what_goes_together(n_shards: int) -> None:
    """The first is one shard, and the next ones make it 5, 25, 125 in all, whatever is left in the last."""
    sizes = waves(n_shards)
    assert sum(sizes) == n_shards
    assert [sum(sizes[:n]) for n in range(1, len(sizes))] == [5**n for n in range(len(sizes) - 1)]


@given(st.integers(0, 6), st.data())
def test_a_wave_waits_for_three_quarters_of_what_went_before(n: int, data: st.DataObject) -> None:
    """With more than a quarter of it still out nothing goes; from then on something does."""
    n_sent = 5**n
    n_tested = data.draw(st.integers(0, n_sent))
    assert (free(n_tested, n_sent - n_tested) > 0) == (4 * n_tested >= 3 * n_sent)


@given(
    st.integers(0, 10**6),
    st.floats(0, 10**6),
    st.integers(0, 10**6).map(lambda s: NOW + timedelta(seconds=s)),
    st.integers(1),
)
def test_nothing_is_held_past_the_time_for_two_rounds(left_s: int, wave_s: float, now: datetime, later: int) -> None:
    """The ramp is over as soon as what is held and one more wave might be late, and then it stays over."""
    deadline = now + timedelta(seconds=left_s)
    assert is_over(now, deadline, wave_s) == (timedelta(seconds=left_s) < timedelta(seconds=2 * wave_s))
    if is_over(now, deadline, wave_s):
        assert is_over(now + timedelta(seconds=min(later, 10**6)), deadline, wave_s)


@given(st.lists(st.floats(1, 1e5), min_size=2, max_size=7), st.floats(-1e5, 1e6))
def test_a_ramp_that_is_given_up_costs_no_more_than_waiting_for_it(waves_s: list[float], over_s: float) -> None:
    """A plan is back when its waves are, or sooner: when all the rest is, from the moment that it may go at once."""
    rests_s = [max(waves_s[n:]) for n in range(len(waves_s))]
    back = back_s(waves_s, rests_s, over_s)
    assert waves_s[0] + rests_s[1] <= back + 1e-6
    assert back <= max(sum(waves_s), max(waves_s[0], over_s) + rests_s[1]) + 1e-6
    assert back_s(waves_s, rests_s, float("inf")) == pytest.approx(sum(waves_s))


# ---------------------------------------------------------------------------------------------------------- a job's ramp


def sharded(client: Client, folder: Path, n_shards: int = 30, **fields: Any) -> JobHandle:
    client.engine.pace = Pace(poll_s=300, heartbeat=False)
    return job(
        client, folder, 10 * n_shards, **{"shard": {"max_rows": 10}, "deadline": DAYS, "quality": RULE, **fields}
    )


def states(client: Client) -> Counter[str]:
    return Counter(row["state"] for row in client.ledger.query("shards", job="labels"))


def out(client: Client) -> int:
    seen = states(client)
    return seen["submitting"] + seen["submitted"] + seen["ended"]


def driven(client: Client, look: Callable[[], None] = lambda: None) -> None:
    """Tick every five minutes until nothing more can be done."""
    while True:
        client.engine.tick()
        look()
        if client.ledger.next_due()[0] is None:
            return
        client.clock.sleep(300)


@pytest.fixture
def client(tmp_path: Path, ledger_url: str) -> Iterator[Client]:
    with client_of(tmp_path, url=ledger_url) as c:
        yield c


def test_a_gated_job_goes_out_in_waves(client: Client, tmp_path: Path) -> None:
    """One shard, four, the others; never more than four for each that came home, and all of it in the end."""
    handle = sharded(client, tmp_path)
    handle.open()
    most_out, blocked = [], []

    def look() -> None:
        seen = states(client)
        most_out.append(out(client))
        blocked.extend(handle.figures().blocked)
        assert out(client) <= max(1, GROWTH * seen["settled"])

    driven(client, look)
    figures = handle.figures()
    assert (figures.ok, figures.submissions) == (300, 30)
    assert list(dict.fromkeys(blocked))[:2] == [
        "waits for the first 10 rows",
        "waits for the first 5 of 30 shards to be tested",
    ]
    assert max(most_out) >= 8
    assert client.ledger.check() == []


@pytest.mark.parametrize(("deadline", "most_sent"), [(DAYS, 25), ("24h", 30)])
def test_a_model_that_goes_bad_has_not_been_sent_everything(tmp_path: Path, deadline: str, most_sent: int) -> None:
    """Bad from the 7th batch of 30 on: the wave that shows it is the last. Where there is no time, all were sent by then."""
    n_answers = count()

    def drifting(text: str) -> Any:
        return right(text) if next(n_answers) < 60 else broken(text)

    with client_of(tmp_path, drifting) as client:
        handle = sharded(client, tmp_path, deadline=deadline)
        handle.open()
        driven(client)
        figures = handle.figures()
        assert (figures.submissions, bool(figures.paused)) == (most_sent, most_sent < 30)


def test_whoever_had_it_go_on_had_all_of_it_go_on(tmp_path: Path) -> None:
    """Past the canary there is no ramp: a person has said that the tests decide nothing."""
    with client_of(tmp_path, broken) as client:
        handle = sharded(client, tmp_path)
        handle.open()
        driven(client)
        assert handle.figures().paused
        assert handle.run(past_canary=True, until=client.clock.now() + timedelta(seconds=400)).submissions == 30


def test_what_a_rescue_takes_is_not_there_to_wait(client: Client, tmp_path: Path) -> None:
    """Where rows may be moved, the ramp leaves the time which that takes: of three days it leaves none if it takes two."""
    rescue = {"rescue": "standard", "rows_per_s": 300 * 1.4 / (48 * 3600)}
    sharded(client, tmp_path, fallback=rescue).open()
    assert _after_the_canary(client) == 29


def test_what_is_moved_and_what_is_answered_row_by_row_waits_for_no_wave(client: Client, tmp_path: Path) -> None:
    """A shard on its way to another tier has no time to lose, and a tier without rounds has no waves."""
    handle = sharded(client, tmp_path)
    plan = handle.open()
    _after_the_canary(client)
    last = client.ledger.query("shards", job="labels")
    shard = client.ledger.shard(next(row["id"] for row in last if row["state"] == "planned"))
    ramp, limits, now = Ramp(client.ledger), client.provider("openai").limits, client.clock.now()
    assert ramp.first(shard, limits, now) == (shard.id, "waits for the first 5 of 30 shards to be tested")
    assert ramp.first(replace(shard, moving=True), limits, now) is None
    terms = json.loads(client.ledger.query("plan", job="labels", digest=plan.digest)[0]["terms"])
    with client.ledger.db.transaction("test") as tx:
        tx.run("plan_terms", job="labels", digest=plan.digest, terms=json.dumps({**terms, "tier": "flex"}))
    assert ramp.first(shard, limits, now) is None


@pytest.mark.parametrize("mark", MarkClass)
def test_whatever_a_provider_does_every_row_comes_to_an_end(tmp_path: Path, mark: MarkClass) -> None:
    """Lost replies, full queues, batches that fail or expire, a limit that cuts shards in parts: nothing waits for ever."""
    with client_of(tmp_path) as client:
        provider = model(client)
        provider.rng, provider.mark = random.Random(7), mark
        provider.temper = Temper(
            unreachable=0.1, busy=0.1, too_large=0.05, lost_reply=0.1, lost_request=0.1, poll_error=0.1, results_error=0.1,
            batch_fails=0.1, batch_expires=0.1, row_fails=0.05,
        )  # fmt: skip
        gate = {"refuse_if_bad_rate": "99%", "by": "rule", "rules": ["label == 'right'"]}
        handle = sharded(client, tmp_path, 12, quality=gate, budget={"usd": 0.003, "on_exceed": "trim"})
        handle.open()
        driven(client)
        figures = handle.figures()
        assert figures.finished
        assert figures.pending == 0
        assert client.ledger.check() == []


def test_a_job_without_a_gate_has_no_ramp(client: Client, tmp_path: Path) -> None:
    """Nothing tests its shards, so there is nothing to wait for."""
    sharded(client, tmp_path, quality=None).open()
    client.engine.tick("labels")
    assert out(client) == 30


def test_what_is_known_of_turnarounds_decides(client: Client, tmp_path: Path) -> None:
    """A deadline of a day leaves no time for two windows; once 30 batches took two hours at most, it does for the ramp, and
    the plan counts its waves."""
    handle = sharded(client, tmp_path, deadline="24h")
    assert ready(handle).words.startswith("ready in 2 d (p50), 2 d (p95): the canary in 24 h (")
    assert "; then the others in 24 h" in ready(handle).words
    handle.open()
    before = _after_the_canary(client)
    driven(client)
    handle = sharded(client, tmp_path, deadline="24h", prompt="Please: {{ text }}")
    told = ready(handle)
    assert told.words.endswith("; then waves of 4, 20 and 5 batches, each once those before it are tested")
    assert 3 * 3600 < told.p50_s < 4 * 7200 < told.p95_s < 2 * 86_400
    handle.open()
    assert (before, _after_the_canary(client)) == (29, 4)


def ready(handle: JobHandle) -> Ready:
    found = handle.plan().ready
    assert found is not None
    return found


def _after_the_canary(client: Client) -> int:
    """Shards out once its canary was tested."""
    before = states(client)["settled"]
    while states(client)["settled"] == before:
        client.engine.tick("labels")
        client.clock.sleep(300)
    client.engine.tick("labels")
    return out(client)
