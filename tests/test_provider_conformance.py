"""The promises of every provider, checked for `openai` and `anthropic` against the simulator, on a real socket."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from canwait.errors import Ambiguous, Busy, CannotTell, CanwaitError, OutOfCredit, Unreachable
from canwait.providers import Provider
from canwait.providers.anthropic import Anthropic
from canwait.providers.conformance import CHECKS, Broken, Check, Rig, round_trip
from canwait.providers.openai import OpenAI
from canwait.providers.wrap import LOST_REPLY, Faulty
from canwait.simulator import ManualClock, Scenario, Simulator
from canwait.types import MarkClass, ShardFile
from provider_host import shard_of

ENDPOINTS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "anthropic": "/v1/messages",
}


def adapter(name: str, url: str) -> Provider:
    return OpenAI("sk-sim", f"{url}/v1", settle_s=1) if name == "openai" else Anthropic("sk-sim", url, settle_s=1)


@dataclass
class Simulated:
    """A rig for the conformance suite: one adapter, one simulator with its clock in our hand."""

    provider: Provider
    simulator: Simulator
    clock: ManualClock
    folder: Path
    url: str
    asked: str = "openai"  # one of ENDPOINTS
    tokens: Iterator[str] = field(default_factory=lambda: (f"cw{n:016x}" for n in range(99)))

    def shard(self, rows: int) -> ShardFile:
        endpoint = ENDPOINTS[self.asked]
        shard = shard_of(self.folder, rows, token=next(self.tokens), endpoint=endpoint, first_try=self.simulator.now())
        shard.path.write_bytes(
            b"".join(self._in_its_words(json.loads(line)) for line in shard.path.read_bytes().splitlines())
        )
        return shard

    def _in_its_words(self, chat: dict[str, Any]) -> bytes:
        messages, most = chat["messages"], chat["max_completion_tokens"]
        body = {
            "openai": chat,
            "anthropic": {"max_tokens": most, "messages": messages, "model": "m"},
            "responses": {"input": messages, "max_output_tokens": most, "model": "m", "store": False},
            "embeddings": {"encoding_format": "base64", "input": messages[0]["content"], "model": "m"},
        }[self.asked]
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    def finish(self) -> None:
        self.clock.advance(23 * 3600)
        for batch in self.simulator.batches():  # their rows are answered in the background
            for _ in range(1000):
                if self.provider.poll(batch.id).status.ended:
                    break
                time.sleep(0.005)

    def n_batches(self) -> int:
        return len(self.simulator.batches())

    def unreachable(self) -> Provider:
        return adapter(self.provider.name, "http://127.0.0.1:1")


@pytest.fixture(params=list(ENDPOINTS))
def simulated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Simulated]:
    scenario = next((m.args[0] for m in request.node.iter_markers("scenario")), Scenario())
    if hasattr(request.node, "callspec") and "scenario" in request.node.callspec.params:
        scenario = request.node.callspec.params["scenario"]
    clock = ManualClock()
    simulator = Simulator(seed=7, clock=clock, folder=tmp_path / "simulator", scenario=scenario)
    with ExitStack() as stack:
        stack.callback(simulator.close)
        url = stack.enter_context(simulator.serve())
        name = "anthropic" if request.param == "anthropic" else "openai"
        yield Simulated(adapter(name, url), simulator, clock, tmp_path, url, request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_adapter_keeps_its_promise(check: Check, simulated: Simulated) -> None:
    """Each promise of the suite holds."""
    check(simulated)


def hold() -> None:
    """A guard that always holds."""


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(lost_create_reply=1),
        Scenario(create_5xx_live=1),
        Scenario(create_not_json=1),
        Scenario(late_create_reply=1),
    ],
    ids=["lost", "5xx", "html", "late"],
)
def test_a_live_batch_behind_a_lost_reply_is_found(scenario: Scenario, simulated: Simulated) -> None:
    """However the reply to a create is lost, the create is ambiguous, it was sent once, and its batch is found."""
    shard = simulated.shard(5)
    with pytest.raises(Ambiguous):
        simulated.provider.submit(shard, hold)
    (accepted,) = simulated.simulator.batches()
    if simulated.provider.mark is MarkClass.UNMARKED:
        with pytest.raises(CannotTell):
            simulated.provider.find(shard)
        simulated.finish()
    assert [batch.id for batch in simulated.provider.find(shard)] == [accepted.id]


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (Scenario(create_429=1), Busy),
        (Scenario(create_5xx_no_effect=1), Ambiguous),
        (Scenario(create_closed=1), (Ambiguous, Unreachable)),
        (Scenario(create_out_of_credit=1), OutOfCredit),
        (Scenario(create_spend_cap=1), OutOfCredit),
        (Scenario(create_token_limit=1), Busy),
    ],
    ids=["429", "5xx", "closed", "credit", "cap", "queue"],
)
def test_a_create_without_effect_says_what_it_proves(
    scenario: Scenario, expected: type[CanwaitError], simulated: Simulated
) -> None:
    """A create that had no effect raises what it proves, leaves nothing behind, and the next one works."""
    shard = simulated.shard(5)
    with pytest.raises(expected):
        simulated.provider.submit(shard, hold)
    assert simulated.n_batches() == 0
    assert simulated.provider.find(shard) == []
    simulated.provider.submit(shard, hold)
    assert simulated.n_batches() == 1


@pytest.mark.parametrize("scenario", [Scenario(listing_lag=timedelta(minutes=1))], ids=["60s"])
def test_a_lagging_list_shows_the_batch_later(scenario: Scenario, simulated: Simulated) -> None:
    """While a new batch is not listed yet, find sees nothing: absence is for the engine to judge, by time."""
    shard = simulated.shard(5)
    sent = simulated.provider.submit(shard, hold)
    assert simulated.provider.find(shard) == []
    simulated.clock.advance(61)
    if simulated.provider.mark is MarkClass.UNMARKED:
        simulated.finish()
    assert [batch.id for batch in simulated.provider.find(shard)] == [sent.id]


def test_the_suite_notices_a_broken_promise(simulated: Simulated) -> None:
    """An adapter that loses a row, or its reply, fails the suite."""

    class Losing(type(simulated.provider)):  # type: ignore[misc]
        def results(self, batch):  # type: ignore[no-untyped-def]
            yield b"".join(super().results(batch)).partition(b"\n")[2]

    losing: Rig = Simulated(
        Losing("k", _url(simulated)),
        simulated.simulator,
        simulated.clock,
        simulated.folder,
        simulated.url,
        simulated.asked,
    )
    with pytest.raises(Broken, match="came back of 5 sent"):
        round_trip(losing)

    simulated.provider = Faulty(simulated.provider, {"submit": [LOST_REPLY]})
    with pytest.raises(Ambiguous):
        round_trip(simulated)


def _url(simulated: Simulated) -> str:
    return f"{simulated.url}/v1" if simulated.provider.name == "openai" else simulated.url
