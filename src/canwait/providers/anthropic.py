"""Anthropic's Message Batches: one inline create, no metadata, so mark class C.

A batch whose create reply was lost is recognised by its age, its exact row count and, once it has ended, the custom ids
of its results; until then `find` raises CannotTell. Facts: Anthropic's own SDK 2.12.0, documentation and live captures
read until 2026-11-21.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import orjson

from ..errors import Ambiguous, BatchUnknown, Busy, CannotTell, Garbled, Rejected
from ..types import Answer, Batch, BatchStatus, Limits, MarkClass, Outcome, Plain, ShardFile, Usage
from . import Guard
from .decoding import read_line
from .http import (
    MAX_REPLY_BYTES,
    MAX_ROW_TOKENS,
    Body,
    Json,
    Phase,
    Wire,
    count,
    encodable,
    encoded_lines,
    error_of,
    identifier,
    moment,
    no_credit,
    patience,
    segment,
    tidy,
    usage_of,
)

if TYPE_CHECKING:
    import httpx2

Variable = Literal["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"]  # where the key comes from decides its header

BASE_URL = "https://api.anthropic.com"
_BATCHES = "/v1/messages/batches"
_SKEW = timedelta(seconds=60)  # their clock against ours

_CAUSES = {
    "invalid_request_error": "invalid_request",
    "authentication_error": "permission",
    "permission_error": "permission",
    "billing_error": "out_of_credit",
    "not_found_error": "not_found",
    "request_too_large": "too_large",
    "rate_limit_error": "rate_limit",
    "timeout_error": "timeout",
    "api_error": "server_error",
    "overloaded_error": "overloaded",
}
_STOPPED = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "refused"}


class Anthropic:
    name = "anthropic"
    mark = MarkClass.UNMARKED

    def __init__(
        self,
        key: str,
        base_url: str = BASE_URL,
        *,
        settle_s: float | None = None,
        variable: Variable = "ANTHROPIC_API_KEY",
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        auth = {"x-api-key": key} if variable == "ANTHROPIC_API_KEY" else {"authorization": f"Bearer {key}"}
        headers = {"anthropic-version": "2023-06-01", **auth}
        self._wire = Wire(self.name, base_url, headers, variable=variable, key=key, transport=transport)
        self._settle_s, self._create_timeout_s = patience(settle_s)
        self.account = self._wire.account()

    def limits(self, model: str) -> Limits:
        return Limits(
            max_rows=100_000,
            max_bytes=256_000_000,
            max_line_bytes=256_000_000,  # no limit of its own is documented
            max_enqueued_tokens=None,  # the queue is counted in rows: 200,000 to 500,000 by usage tier
            window_s=86_400,
            settle_s=math.ceil(self._settle_s),
            create_timeout_s=int(self._create_timeout_s),
            source="Anthropic batch guide and rate limits, read 2026-11-21",
        )

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return b'{"custom_id":%s,"params":%s}' % (json.dumps(custom_id).encode(), body)

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        body = Body(lambda: self._requests(shard))
        guard()
        reply = self._wire.call(Phase.CREATE, "POST", _BATCHES, body, timeout_s=self._create_timeout_s)
        try:
            return _batch(reply.body, reply.retry_after_s)
        except Garbled as exc:
            raise Ambiguous(f"anthropic: the reply to the create names no batch: {exc}") from exc

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        since = shard.first_try - _SKEW if shard.first_try else None
        found: dict[str, Batch] = {}
        for row in self._wire.listing(_BATCHES, cursor="after_id", since=since, created=_created):
            if row["id"] in shard.known:
                continue
            try:
                batch = _batch(row, None)
            except Garbled as exc:
                raise CannotTell(f"anthropic: batch {row['id']} cannot be read: {exc}") from exc
            if batch.n_rows not in (None, 0, shard.n_rows):  # a count not stated, or not stated yet, excludes nothing
                continue
            if self._is_ours(batch, shard):
                found[batch.id] = batch
        return sorted(found.values(), key=lambda batch: (batch.created_at, batch.id))

    def poll(self, batch_id: str) -> Batch:
        reply = self._wire.call(Phase.READ, "GET", f"{_BATCHES}/{segment(batch_id)}")
        batch = _batch(reply.body, reply.retry_after_s)
        if batch.id != batch_id:
            raise Garbled(f"anthropic: asked for batch {batch_id}, told about {batch.id}")
        return batch

    def results(self, batch: Batch) -> Iterator[bytes]:
        return self._wire.download(_results(batch.id))  # not `results_url`: it may name another host

    def decode(self, line: bytes) -> Answer:
        match read_line(line):
            case {"custom_id": str(name), "result": {"type": "succeeded", "message": {"content": list()} as message}}:
                return _succeeded(encodable(name), message)
            case {"custom_id": str(name), "result": {"type": "errored"} as result}:
                error = error_of(result)
                cause = "out_of_credit" if no_credit(error) else _CAUSES.get(str(error.get("type")), "unknown")
                words = " ".join(str(error[part]) for part in ("type", "message") if error.get(part))
                return _ended(encodable(name), Outcome.FAILED, cause, tidy(words, 2_000))
            case {"custom_id": str(name), "result": {"type": "canceled"}}:
                return _ended(encodable(name), Outcome.CANCELLED, "cancelled")
            case {"custom_id": str(name), "result": {"type": "expired"}}:
                return _ended(encodable(name), Outcome.EXPIRED, "expired")
            case {"custom_id": str(name)}:
                return _ended(encodable(name), Outcome.FAILED, "malformed", "no known type of result")
        return _ended("", Outcome.FAILED, "malformed", "not a result line")

    def plain(self, line: bytes) -> Plain | None:
        """A message that ended of itself, in one block of text; None for every other line."""
        try:
            row = orjson.loads(line)
            name, result = row["custom_id"], row["result"]
            message = result["message"]
            [block] = message["content"]
            text, model, usage = block["text"], message["model"], message["usage"]
            n_plain, n_output = usage["input_tokens"], usage["output_tokens"]
            cached, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
            if (
                type(name) is type(text) is type(model) is str
                and type(n_plain) is type(n_output) is type(cached) is type(written) is int
                and result["type"] == "succeeded"
                and block["type"] == "text"
                and message["stop_reason"] == "end_turn"
                and type(message["content"]) is list
                and text.strip()
                and min(n_plain, n_output, cached, written) >= 0
                and max(n_plain + cached + written, n_output) <= MAX_ROW_TOKENS
            ):
                return name, text, model, n_plain + cached + written, n_output, cached, written
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
            pass
        return None

    def cancel(self, batch_id: str) -> None:
        try:
            self._wire.call(Phase.CANCEL, "POST", f"{_BATCHES}/{segment(batch_id)}/cancel")
        except Rejected as exc:
            status = self.poll(batch_id).status
            if not status.ended and status is not BatchStatus.CANCELLING:
                raise Busy(f"anthropic does not cancel batch {batch_id} now: {exc}") from exc

    def _requests(self, shard: ShardFile) -> Iterator[bytes]:
        separator = b'{"requests":['
        for line in encoded_lines(shard, self.encode):
            yield separator + line
            separator = b","
        yield b"]}"

    def _is_ours(self, batch: Batch, shard: ShardFile) -> bool:
        """Whether a batch of the right age and size is ours, by its first result."""
        if not batch.status.ended:
            raise CannotTell(f"anthropic: batch {batch.id} may be ours; its ids show when it has ended")
        head = bytearray()
        try:
            for piece in self._wire.download(_results(batch.id)):
                head += piece
                if b"\n" in piece or len(head) > MAX_REPLY_BYTES:
                    break
        except (BatchUnknown, Garbled) as exc:
            raise CannotTell(f"anthropic: batch {batch.id} may be ours and its results cannot be read: {exc}") from exc
        first = self.decode(bytes(head.partition(b"\n")[0])).custom_id
        if not first:
            raise CannotTell(f"anthropic: batch {batch.id} may be ours and its first result cannot be read")
        return shard.line(first) is not None


def _results(batch_id: str) -> str:
    return f"{_BATCHES}/{segment(batch_id)}/results"


def _created(row: Json) -> Any:
    return moment(row.get("created_at"))


def _batch(row: Json, retry_after_s: float | None) -> Batch:
    """A batch object. Raises Garbled without id, creation time or status; an unknown status counts as running."""
    stated = row.get("processing_status")
    if not isinstance(stated, str):
        raise Garbled("anthropic: the batch has no status")
    counts = row["request_counts"] if isinstance(row.get("request_counts"), dict) else {}
    waiting = count(counts.get("processing"), 10**9)
    done = [count(counts.get(name), 10**9) for name in ("succeeded", "errored", "canceled", "expired")]
    n_done = sum(n for n in done if n is not None) if None not in done else None
    batch_id = identifier(row)
    status = {"in_progress": BatchStatus.RUNNING, "canceling": BatchStatus.CANCELLING}.get(stated)
    if stated == "ended":
        cancelled, expired = row.get("cancel_initiated_at") is not None, bool(done[3])
        status = BatchStatus.CANCELLED if cancelled else BatchStatus.EXPIRED if expired else BatchStatus.COMPLETED
    return Batch(
        id=batch_id,
        status=status or BatchStatus.RUNNING,
        created_at=_created(row),
        n_rows=waiting + n_done if waiting is not None and n_done is not None else None,
        n_done=n_done,
        outputs=(f"{batch_id}/results",) if stated == "ended" else (),
        error=None if status else f"unknown status {tidy(stated, 100)!r}",
        retry_after_s=retry_after_s,
    )


def _succeeded(custom_id: str, message: Json) -> Answer:
    """A message: its text blocks joined; thinking and tool blocks are billed but are no answer."""
    blocks = (block for block in message["content"] if isinstance(block, dict) and block.get("type") == "text")
    text = "".join(encodable(block["text"]) for block in blocks if isinstance(block.get("text"), str))
    stop, model = (
        encodable(v) if isinstance(v := message.get(part), str) else None for part in ("stop_reason", "model")
    )
    cause = _STOPPED.get(stop or "") or (None if text.strip() else "empty")
    outcome = Outcome.FAILED if cause else Outcome.OK
    return Answer(custom_id, outcome, cause, None, text, _usage(message.get("usage")), model, stop)


def _ended(custom_id: str, outcome: Outcome, cause: str, detail: str | None = None) -> Answer:
    """A row without an answer; nothing is billed for it."""
    return Answer(custom_id, outcome, cause, detail, None, None, None)


def _usage(stated: Any) -> Usage | None:
    """Their `input_tokens` leaves out what was read from the cache and written to it; ours does not."""
    if not isinstance(stated, dict):
        return None
    read, written = stated.get("cache_read_input_tokens"), stated.get("cache_creation_input_tokens")
    parts = [count(0 if n is None else n, MAX_ROW_TOKENS) for n in (stated.get("input_tokens", -1), read, written)]
    if any(n is None for n in parts):
        return None
    return usage_of(sum(n or 0 for n in parts), stated.get("output_tokens"), read, written, MAX_ROW_TOKENS)
