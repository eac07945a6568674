"""What the simulator's tests share: a running simulator, its two official clients, and rows to send."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai

from canwait.simulator import AnswerFn, ManualClock, Scenario, Simulator

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY_S = 86_400


@dataclass
class Simulated:
    """A simulator being served, and everything that talks to it."""

    simulator: Simulator
    clock: ManualClock
    url: str
    openai: openai.OpenAI
    anthropic: anthropic.Anthropic
    http: httpx2.Client

    def upload(self, content: bytes, name: str = "tok.jsonl") -> str:
        return self.openai.files.create(file=(name, content), purpose="batch").id

    def submit(self, content: bytes | int = 3) -> Any:
        """A batch of these lines, or of this many rows."""
        lines = chat_lines(content) if isinstance(content, int) else content
        return self.openai.batches.create(
            input_file_id=self.upload(lines),
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"canwait_token": "tok"},
        )

    def finish(self, batch: Any, seconds: float = DAY_S) -> Any:
        """The batch after so much more virtual time."""
        self.clock.advance(seconds)
        return self.openai.batches.retrieve(batch.id)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id
        return [json.loads(line) for line in self.openai.files.content(file_id).text.splitlines()]

    def submit_messages(self, n: int = 3, **params: Any) -> Any:
        requests: Any = [{"custom_id": f"tok-{i}", "params": message(i, **params)} for i in range(n)]
        return self.anthropic.messages.batches.create(requests=requests)

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        reply = self.http.get(f"/v1/messages/batches/{batch_id}/results")
        assert reply.status_code == 200, reply.text
        return [json.loads(line) for line in reply.text.splitlines()]


@contextmanager
def simulated(
    folder: Path,
    scenario: Scenario | None = None,
    *,
    seed: int = 0,
    clock: ManualClock | None = None,
    answer: AnswerFn | None = None,
    keys: dict[str, str] | None = None,
) -> Iterator[Simulated]:
    clock = clock or ManualClock(START)
    simulator = Simulator(
        seed=seed, clock=clock, answer=answer, scenario=scenario or Scenario(), folder=folder, keys=keys
    )
    with simulator.serve() as url:
        clients = (
            openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0),
            anthropic.Anthropic(base_url=url, api_key="key", max_retries=0),
            httpx2.Client(base_url=url, headers={"authorization": "Bearer key"}, timeout=30),
        )
        yield Simulated(simulator, clock, url, *clients)
        for client in clients:
            client.close()
    simulator.close()


def chat(i: int, **params: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Classify."}, {"role": "user", "content": f"message {i}"}]
    return {"model": "gpt-4o-mini", "messages": messages, "max_completion_tokens": 64} | params


def message(i: int, **params: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"message {i}"}]
    return {"model": "claude-haiku-5-5", "max_tokens": 64, "system": "Classify.", "messages": messages} | params


def chat_lines(n: int, **params: Any) -> bytes:
    return join([line(i, **params) for i in range(n)])


def line(i: int, **params: Any) -> dict[str, Any]:
    return {"custom_id": f"tok-{i}", "method": "POST", "url": "/v1/chat/completions", "body": chat(i, **params)}


def join(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
