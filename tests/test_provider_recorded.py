"""Exchanges recorded at the real providers, replayed through the adapters: every row is accounted for."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy
import pytest

from canwait.providers import Provider
from canwait.providers.anthropic import Anthropic
from canwait.providers.openai import OpenAI
from canwait.types import Answer, BatchStatus, Outcome, Usage
from provider_host import Reply, Seen, serving, shard_of

pytestmark = pytest.mark.recorded

ADAPTERS: dict[str, Callable[[str], Provider]] = {
    "openai": lambda url: OpenAI("sk-none", f"{url}/v1"),
    "anthropic": lambda url: Anthropic("sk-none", url),
}


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Path:
    folder = shared / "data" / "recorded"
    if not folder.is_dir():
        pytest.skip("no recorded exchanges beside the repository")
    return folder


class Replay:
    """Answers each call with what was recorded for it, in order; the last recorded reply stays."""

    def __init__(self, file: Path) -> None:
        self.exchanges = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        self._left: dict[tuple[str, str], list[Reply]] = defaultdict(list)
        for exchange in self.exchanges:
            reply = Reply(exchange["response"].encode(), exchange["status"], exchange["headers"])
            self._left[exchange["method"], urlsplit(exchange["url"]).path].append(reply)

    def __call__(self, seen: Seen) -> Reply:
        replies = self._left[seen.method, seen.path]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    @property
    def sent(self) -> list[str]:
        """The custom ids of every row that was sent."""
        requests = (e["request"] for e in self.exchanges if e["method"] == "POST")
        return [name for request in requests for name in re.findall(r'"custom_id": ?"([^"]+)"', request)]

    @property
    def n_polls(self) -> int:
        return sum(e["method"] == "GET" for e in self.exchanges)


def run(replay: Replay, name: str, folder: Path) -> tuple[Any, list[Answer]]:
    """Submit, poll as often as was recorded, and read the results."""
    with serving(replay) as host:
        provider = ADAPTERS[name](host.url)
        batch = provider.submit(shard_of(folder), lambda: None)
        for _ in range(replay.n_polls):
            batch = provider.poll(batch.id)
            if batch.status.ended:
                break
        raw = b"".join(provider.results(batch))
    return batch, [provider.decode(line) for line in raw.split(b"\n") if line]


@pytest.mark.parametrize(
    ("file", "n_rows", "usage"),
    [
        ("openai-batch-3-rows", 3, None),
        ("openai-batch-responses-2026", 2, Usage(36, 224)),
        ("openai-batch-embeddings-2026", 2, Usage(13, 0)),
        ("anthropic-batch-3-rows", 3, None),
        ("anthropic-batch-thinking", 2, None),
    ],
)
def test_every_recorded_row_is_accounted_for(
    recorded: Path, tmp_path: Path, file: str, n_rows: int, usage: Usage | None
) -> None:
    """Each row that was sent comes back once, answered, with its bill; the batch's own bill is the sum of its rows."""
    replay = Replay(recorded / f"{file}.jsonl")
    batch, answers = run(replay, file.partition("-")[0], tmp_path)

    assert batch.status is BatchStatus.COMPLETED
    assert sorted(a.custom_id for a in answers) == sorted(replay.sent)
    assert batch.n_rows == batch.n_done == n_rows == len(answers)
    for answer in answers:
        assert (answer.outcome, answer.cause) == (Outcome.OK, None), answer
        assert answer.text or answer.vector
        assert answer.model
        assert answer.usage
        assert answer.usage.input_tokens > 0
    assert batch.usage == usage
    if usage:
        assert sum((a.usage for a in answers if a.usage), Usage(0, 0)) == usage


@pytest.mark.parametrize("file", ["openai-batch-cancel", "anthropic-batch-cancel"])
def test_a_recorded_cancel_is_understood(recorded: Path, tmp_path: Path, file: str) -> None:
    """A cancel as it was recorded is accepted; the batch runs on until a poll says otherwise."""
    replay = Replay(recorded / f"{file}.jsonl")
    with serving(replay) as host:
        provider = ADAPTERS[file.partition("-")[0]](host.url)
        sent = provider.submit(shard_of(tmp_path), lambda: None)
        polled = provider.poll(sent.id)
        provider.cancel(sent.id)
    assert not polled.status.ended
    assert host.seen[-1].path.endswith(f"{sent.id}/cancel")


def test_recorded_vectors_are_read_to_the_bit(recorded: Path, tmp_path: Path) -> None:
    """Every number of the recorded vectors is a 32-bit float, and comes out as that float."""
    replay = Replay(recorded / "openai-batch-embeddings-2026.jsonl")
    _, answers = run(replay, "openai", tmp_path)
    output = next(e["response"] for e in replay.exchanges if e["url"].endswith("/content"))
    stated = [json.loads(line)["response"]["body"]["data"][0]["embedding"] for line in output.splitlines()]

    assert [len(vector) for vector in stated] == [1536, 256]
    for answer, numbers in zip(answers, stated, strict=True):
        assert answer.vector == numpy.array(numbers, "<f4").tobytes()
        assert numpy.frombuffer(answer.vector, "<f4").tolist() == numbers


def test_thinking_is_billed_and_is_no_answer(recorded: Path, tmp_path: Path) -> None:
    """The text of a thinking block stays out of the answer, and its tokens stay in the bill."""
    _, answers = run(Replay(recorded / "anthropic-batch-thinking.jsonl"), "anthropic", tmp_path)
    raw = (recorded / "anthropic-batch-thinking.jsonl").read_text("utf-8")
    assert "thinking" in raw
    for answer in answers:
        assert "Let's think step by step about this problem." not in (answer.text or "")
        assert answer.usage is not None
        assert answer.usage.output_tokens > 500


# ------------------------------------------------------------------------------------- objects quoted in public issues


@pytest.fixture(scope="session")
def quoted(recorded: Path) -> dict[str, Any]:
    lines = (json.loads(line) for line in (recorded / "quoted-lines.jsonl").read_text("utf-8").splitlines())
    return {line["what"]: line["line"] for line in lines}


def _one(quoted: dict[str, Any], words: str) -> Any:
    return next(line for what, line in quoted.items() if words in what)


def _polled(batch: dict[str, Any]) -> Any:
    whole = {"id": "batch_1", "created_at": 1774437191, **batch}
    with serving(lambda seen: Reply(whole)) as host:
        return ADAPTERS["openai"](host.url).poll("batch_1")


def test_the_row_of_an_account_out_of_credit(quoted: dict[str, Any]) -> None:
    """A row refused for want of credit pauses the job, although its error type says invalid request."""
    line = json.dumps(_one(quoted, "out of credit")).encode()
    answer = Anthropic("k", "http://127.0.0.1").decode(line)
    assert (answer.custom_id, answer.outcome, answer.cause) == ("999974", Outcome.FAILED, "out_of_credit")


def test_a_batch_over_the_queue_limit(quoted: dict[str, Any]) -> None:
    """The whole batch failed and its error code says that waiting helps."""
    batch = _polled({"status": "failed", "errors": {"object": "list", "data": [_one(quoted, "errors.data")]}})
    assert (batch.status, batch.error_code) == (BatchStatus.FAILED, "token_limit_exceeded")
    assert batch.error.startswith("Enqueued token limit reached for gpt-4o-mini")


def test_a_completed_batch_of_which_every_row_failed(quoted: dict[str, Any]) -> None:
    """Completed without an output file: the error file alone holds the rows."""
    batch = _polled(_one(quoted, "every row failed"))
    assert (batch.status, batch.outputs, batch.n_rows, batch.n_done) == (BatchStatus.COMPLETED, ("file-...",), 9, 9)


def test_a_cancelled_batch_has_an_output(quoted: dict[str, Any]) -> None:
    """What a cancelled batch had finished is there to be read, for it is billed."""
    batch = _polled(_one(quoted, "after cancel"))
    assert (batch.status, batch.outputs) == (BatchStatus.CANCELLED, ("file-...",))


def test_an_expired_row(quoted: dict[str, Any]) -> None:
    """A row whose window closed is expired, and costs nothing."""
    answer = OpenAI("k", "http://127.0.0.1").decode(json.dumps(_one(quoted, "expired batch")).encode())
    assert (answer.custom_id, answer.outcome, answer.usage) == ("request-3", Outcome.EXPIRED, None)
