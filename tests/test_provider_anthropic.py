"""The `anthropic` adapter: what it sends, how it looks for a batch that carries no mark, what it makes of each row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import (
    Ambiguous,
    BatchUnknown,
    Busy,
    CannotTell,
    CanwaitError,
    Garbled,
    KeyRefused,
    OutOfCredit,
    Rejected,
    TooLarge,
    Unreachable,
)
from canwait.lifecycle import CAUSES
from canwait.providers.anthropic import Anthropic
from canwait.types import Batch, BatchStatus, Outcome, Usage
from provider_host import HANG_UP, TOKEN, Reply, Seen, serving, shard_of

KEY = "sk-ant-test-0123456789"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BATCHES = "/v1/messages/batches"


def error(type_: str = "invalid_request_error", message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type_, "message": message, **fields}, "request_id": None}


def batch(name: str = "msgbatch_1", status: str = "in_progress", rows: int = 3, **fields: Any) -> dict[str, Any]:
    counts = dict.fromkeys(["processing", "succeeded", "errored", "canceled", "expired"], 0)
    counts["succeeded" if status == "ended" else "processing"] = rows
    at = fields.pop("at", NOW).isoformat()
    return {"id": name, "processing_status": status, "request_counts": counts, "created_at": at,
            "cancel_initiated_at": None, "results_url": None, **fields}  # fmt: skip


def provider(url: str, **options: Any) -> Anthropic:
    return Anthropic(KEY, url, **options)


def hold() -> None:
    """A guard that always holds."""


# ------------------------------------------------------------------------------------------------------------- submit


def test_the_rows_ride_inline_under_our_ids(tmp_path: Path) -> None:
    """One request creates the batch, and holds every row's body under its custom id."""
    shard = shard_of(tmp_path, endpoint="/v1/messages")
    with serving(lambda seen: Reply(batch())) as host:
        sent = provider(host.url).submit(shard, hold)
        provider(host.url, variable="ANTHROPIC_AUTH_TOKEN").submit(shard, hold)

    first, second = host.seen
    bodies = [json.loads(line) for line in shard.path.read_bytes().split(b"\n") if line]
    expected = [{"custom_id": f"{TOKEN}-{n}", "params": body} for n, body in enumerate(bodies)]
    assert first.json == {"requests": expected}
    assert ("POST", BATCHES, "2023-06-01", KEY) == (
        first.method,
        first.path,
        first.headers["anthropic-version"],
        first.headers["x-api-key"],
    )
    assert second.headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in second.headers
    assert (sent.id, sent.status, sent.created_at) == ("msgbatch_1", BatchStatus.RUNNING, NOW)


def test_a_big_batch_is_never_in_memory(tmp_path: Path) -> None:
    """The body streams in pieces far smaller than itself, and its Content-Length is exact."""
    shard = shard_of(tmp_path, rows=30_000)
    pieces: list[int] = []
    stated: list[int] = []

    class Sink(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            stated.append(int(request.headers["content-length"]))
            pieces.extend(len(piece) for piece in request.stream)  # type: ignore[union-attr]
            return httpx2.Response(200, json=batch())

    provider("http://127.0.0.1", transport=Sink()).submit(shard, hold)

    assert [sum(pieces)] == stated
    assert sum(pieces) > 3_000_000
    assert max(pieces) < 100_000


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error(), Rejected),
        (400, error(message="Your credit balance is too low to access the Anthropic API."), OutOfCredit),
        (401, error("authentication_error"), KeyRefused),
        (402, error("billing_error"), OutOfCredit),
        (403, error("permission_error"), KeyRefused),
        (404, error("not_found_error"), Rejected),
        (413, error("request_too_large"), TooLarge),
        (429, error("rate_limit_error"), Busy),
        (429, error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}), OutOfCredit),
        (500, error("api_error"), Ambiguous),
        (504, error("timeout_error"), Ambiguous),
        (529, error("overloaded_error"), Ambiguous),
        (200, b"<html>", Ambiguous),
        (200, {"type": "message_batch"}, Ambiguous),
    ],
)
def test_what_a_reply_to_the_create_proves(tmp_path: Path, status: int, body: Any, expected: type) -> None:
    """Each reply to a create raises what it proves, and no create is ever sent twice."""
    with serving(lambda seen: Reply(body, status)) as host, pytest.raises(CanwaitError) as caught:
        provider(host.url).submit(shard_of(tmp_path), hold)
    assert type(caught.value) is expected
    assert len(host.seen) == 1


def test_a_create_whose_reply_is_lost_is_ambiguous(tmp_path: Path) -> None:
    """A connection that closes after the last byte, and a reply that takes too long, prove nothing."""

    def slow(seen: Seen) -> Reply:
        time.sleep(0.5)
        return Reply(batch())

    for answer in (lambda seen: HANG_UP, lambda seen: Reply(batch(), cut=9), slow):
        with serving(answer) as host, pytest.raises(Ambiguous):
            provider(host.url, settle_s=0.4).submit(shard_of(tmp_path), hold)
        assert len(host.seen) == 1


def test_a_body_that_was_not_sent_whole_never_arrived(tmp_path: Path) -> None:
    """When time runs out before the last byte has left, no server can have read the request: that is certain."""

    class Slow(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            for _ in request.stream:  # type: ignore[union-attr]
                time.sleep(0.1)
            return httpx2.Response(200, json=batch())

    with pytest.raises(Unreachable) as caught:
        provider("http://127.0.0.1", settle_s=0.3, transport=Slow()).submit(shard_of(tmp_path, rows=5_000), hold)
    assert "shard.max_rows" in (caught.value.own_hint or "")


# --------------------------------------------------------------------------------------------------------------- find


def host_of(rows: list[dict[str, Any]], results: dict[str, Reply], *, page: int = 100) -> Callable[[Seen], Reply]:
    """A host that lists these batches in this order and has these results."""

    def answer(seen: Seen) -> Reply:
        if seen.path.endswith("/results"):
            return results.get(seen.path.split("/")[-2], Reply(error("not_found_error"), 404))
        start = next((i + 1 for i, row in enumerate(rows) if row["id"] == seen.query.get("after_id")), 0)
        return Reply({"data": rows[start : start + page], "has_more": start + page < len(rows)})

    return answer


def result_of(token: str, line: int = 0) -> Reply:
    return Reply(json.dumps({"custom_id": f"{token}-{line}", "result": {"type": "expired"}}).encode() + b"\n")


def find(tmp_path: Path, answer: Callable[[Seen], Reply], **facts: Any) -> list[str]:
    with serving(answer) as host:
        return [b.id for b in provider(host.url).find(shard_of(tmp_path, **{"first_try": NOW, **facts}))]


def test_an_ended_batch_is_known_by_its_results(tmp_path: Path) -> None:
    """Of the batches with our row count only those whose results carry our ids are ours, oldest first."""
    rows = [batch(f"m{n}", "ended", at=NOW + timedelta(seconds=9 - n)) for n in range(4)]
    rows += [batch("size", "ended", rows=4), batch("size2", rows=2)]
    results = {
        "m0": result_of(TOKEN, 2),
        "m1": result_of("cwother"),
        "m2": result_of(TOKEN),
        "m3": result_of(f"x{TOKEN}"),
    }
    for page in (1, 2, 100):
        assert find(tmp_path, host_of(rows, results, page=page)) == ["m2", "m0"]


def test_only_the_first_result_is_read(tmp_path: Path) -> None:
    """Recognising a batch does not download its results."""
    endless = result_of(TOKEN).payload + b'{"custom_id":"x"}\n' * 10**6
    rows = [batch("m", "ended")]

    class Counting(httpx2.BaseTransport):
        read = 0

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if not request.url.path.endswith("/results"):
                return httpx2.Response(200, json={"data": rows, "has_more": False})

            def pieces() -> Any:
                for start in range(0, len(endless), 4096):
                    self.read += 4096
                    yield endless[start : start + 4096]

            return httpx2.Response(200, content=pieces())

    transport = Counting()
    found = provider("http://127.0.0.1", transport=transport).find(shard_of(tmp_path, first_try=NOW))
    assert [b.id for b in found] == ["m"]
    assert transport.read < 100_000


def test_other_batches_exclude_themselves(tmp_path: Path) -> None:
    """Another size, an older batch and a batch of another shard are no candidates, also while they run."""
    rows = [
        batch("size", rows=4),
        batch("known"),
        batch("old", at=NOW - timedelta(seconds=61)),
        batch("older", at=NOW - timedelta(days=1)),
    ]
    assert find(tmp_path, host_of(rows, {}), known=frozenset({"known"})) == []


@pytest.mark.parametrize(
    "answer",
    [
        host_of([batch("m")], {}),
        host_of([batch("m")], {"m": result_of("cwother")}),
        host_of([batch("m", "canceling")], {}),
        host_of([batch("m", "a_status_of_the_future")], {}),
        host_of([batch("m", rows=0)], {}),
        host_of([batch("m") | {"request_counts": None}], {}),
        host_of([batch("m") | {"request_counts": {"processing": -3}}], {}),
        host_of([batch("m", at=NOW - timedelta(seconds=59))], {}),
        host_of([batch("m", "ended"), batch("n")], {"m": result_of(TOKEN)}),
        host_of([batch("m", "ended")], {}),
        host_of([batch("m", "ended")], {"m": Reply(b"")}),
        host_of([batch("m", "ended")], {"m": Reply(b"<html>\n")}),
        lambda seen: Reply(b"<html>"),
        lambda seen: Reply({"data": [batch("m", rows=9)], "has_more": True}),
        lambda seen: Reply({"data": [{**batch("m"), "created_at": "soon"}], "has_more": False}),
        lambda seen: Reply({"data": [{**batch("m"), "processing_status": None}], "has_more": False}),
    ],
)
def test_what_cannot_be_excluded_is_cannot_tell(tmp_path: Path, answer: Callable[[Seen], Reply]) -> None:
    """While a batch of our size may be ours, or the listing is unreadable, absence is never claimed."""
    with pytest.raises(CannotTell):
        find(tmp_path, answer)


def test_results_that_fail_in_passing_say_so(tmp_path: Path) -> None:
    """A candidate whose results may be readable the next time raises what a wrapper repeats."""
    for reply, expected in [(Reply(b"", 503), Busy), (HANG_UP, Unreachable)]:
        with pytest.raises(expected):
            find(tmp_path, host_of([batch("m", "ended")], {"m": reply}))


# ------------------------------------------------------------------------------------------------------ poll, results


def test_every_status_has_a_word() -> None:
    """A batch that ended is named by how it ended; a status nobody knows is running."""
    expired = {"processing": 0, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 2}
    cases = [
        (batch(), BatchStatus.RUNNING, 3, 0),
        (batch(status="canceling"), BatchStatus.CANCELLING, 3, 0),
        (batch(status="ended"), BatchStatus.COMPLETED, 3, 3),
        (batch(status="ended", request_counts=expired), BatchStatus.EXPIRED, 3, 3),
        (batch(status="ended", cancel_initiated_at=NOW.isoformat()), BatchStatus.CANCELLED, 3, 3),
        (batch(status="paused"), BatchStatus.RUNNING, 3, 0),
        (batch(request_counts={}), BatchStatus.RUNNING, None, None),
    ]
    for body, status, n_rows, n_done in cases:
        with serving(lambda seen, body=body: Reply(body, headers={"retry-after": "10"})) as host:
            got = provider(host.url).poll("msgbatch_1")
        assert (got.status, got.n_rows, got.n_done, got.retry_after_s) == (status, n_rows, n_done, 10)


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (error("not_found_error"), 404, BatchUnknown),
        (error(), 401, KeyRefused),
        (error(), 529, Busy),
        (b"<html>", 200, Garbled),
        (batch("msgbatch_2"), 200, Garbled),
        ({"id": "msgbatch_1"}, 200, Garbled),
    ],
)
def test_what_a_failed_poll_says(body: Any, status: int, expected: type) -> None:
    """Each failed poll raises its own error; none of them ends a batch."""
    with serving(lambda seen: Reply(body, status)) as host, pytest.raises(expected):
        provider(host.url).poll("msgbatch_1")


def test_results_come_from_our_own_host() -> None:
    """The address a provider gives for its results is never followed: our key goes to the host we were told."""
    with serving(lambda seen: Reply(b"stolen\n")) as other:
        ended = batch(status="ended", results_url=f"{other.url}/steal")

        def answer(seen: Seen) -> Reply:
            return Reply(b'{"a":1}\n{"b') if seen.path == f"{BATCHES}/msgbatch_1/results" else Reply(ended)

        with serving(answer) as host:
            it = provider(host.url)
            assert b"".join(it.results(it.poll("msgbatch_1"))) == b'{"a":1}\n{"b\n'
    assert other.seen == []


def test_results_are_whole_or_an_error() -> None:
    """A stream that breaks off, a redirect and missing results are errors, never a short answer."""
    long = b'{"a":1}\n' * 40_000
    elsewhere = Reply(b"", 302, {"location": "http://127.0.0.1:9/"})
    for reply, expected in [
        (Reply(long, cut=200_000), Unreachable),
        (Reply(error(), 404), BatchUnknown),
        (elsewhere, Busy),
    ]:
        with (
            serving(lambda seen, r=reply: r if seen.path.endswith("results") else Reply(batch(status="ended"))) as host,
            pytest.raises(expected),
        ):
            list(provider(host.url).results(Batch("msgbatch_1", BatchStatus.COMPLETED, NOW)))


# ------------------------------------------------------------------------------------------------------------- decode

PURE = Anthropic(KEY, "http://127.0.0.1")
USAGE = {"input_tokens": 9, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 30, "output_tokens": 4}


def row(type_: str, **fields: Any) -> bytes:
    return json.dumps({"custom_id": "a-1", "result": {"type": type_, **fields}}).encode()


def message(*blocks: Any, stop: Any = "end_turn", usage: Any = USAGE) -> bytes:
    content = list(blocks) or [{"type": "text", "text": "Hello"}]
    return row("succeeded", message={"model": "claude-x", "content": content, "stop_reason": stop, "usage": usage})


@pytest.mark.parametrize(
    ("line", "outcome", "cause"),
    [
        (message(), Outcome.OK, None),
        (message(stop="stop_sequence"), Outcome.OK, None),
        (message(stop="max_tokens"), Outcome.FAILED, "length"),
        (message(stop="model_context_window_exceeded"), Outcome.FAILED, "length"),
        (message(stop="refusal"), Outcome.FAILED, "refused"),
        (message({"type": "text", "text": " "}), Outcome.FAILED, "empty"),
        (message({"type": "thinking", "thinking": "hm"}), Outcome.FAILED, "empty"),
        (message("text", {"type": "text", "text": None}), Outcome.FAILED, "empty"),
        (row("errored", error=error("invalid_request_error")), Outcome.FAILED, "invalid_request"),
        (row("errored", error=error("authentication_error")), Outcome.FAILED, "permission"),
        (row("errored", error=error("permission_error")), Outcome.FAILED, "permission"),
        (row("errored", error=error("billing_error")), Outcome.FAILED, "out_of_credit"),
        (row("errored", error=error(message="Your credit balance is too low")), Outcome.FAILED, "out_of_credit"),
        (row("errored", error=error("not_found_error")), Outcome.FAILED, "not_found"),
        (row("errored", error=error("request_too_large")), Outcome.FAILED, "too_large"),
        (row("errored", error=error("rate_limit_error")), Outcome.FAILED, "rate_limit"),
        (row("errored", error=error("timeout_error")), Outcome.FAILED, "timeout"),
        (row("errored", error=error("api_error")), Outcome.FAILED, "server_error"),
        (row("errored", error=error("overloaded_error")), Outcome.FAILED, "overloaded"),
        (row("errored", error=error("error_of_the_future")), Outcome.FAILED, "unknown"),
        (row("errored", error=None), Outcome.FAILED, "unknown"),
        (row("expired"), Outcome.EXPIRED, "expired"),
        (row("canceled"), Outcome.CANCELLED, "cancelled"),
        (row("succeeded"), Outcome.FAILED, "malformed"),
        (row("result_of_the_future"), Outcome.FAILED, "malformed"),
    ],
)
def test_every_row_has_an_outcome_and_a_cause(line: bytes, outcome: Outcome, cause: str | None) -> None:
    """Each way a row can end is one outcome and one cause of the table in lifecycle.py, under its own id."""
    answer = PURE.decode(line)
    assert (answer.custom_id, answer.outcome, answer.cause) == ("a-1", outcome, cause)
    assert cause is None or cause in CAUSES


def test_an_answer_is_its_text_blocks_and_its_whole_bill() -> None:
    """Text blocks are joined, thinking is left out, and the cached part is added to the input, where we count it."""
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "Hel"},
        {"type": "text", "text": "lo\ud83d"},
    ]
    answer = PURE.decode(message(*blocks))
    assert (answer.text, answer.model, answer.finish_reason) == ("Hello?", "claude-x", "end_turn")
    assert answer.usage == Usage(input_tokens=44, output_tokens=4, cached_input_tokens=30, cache_write_tokens=5)
    assert PURE.decode(message(stop="max_tokens")).usage == answer.usage


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {**USAGE, "input_tokens": -1},
        {**USAGE, "output_tokens": 4.0},
        {**USAGE, "output_tokens": None},
        {**USAGE, "cache_read_input_tokens": True},
        {**USAGE, "input_tokens": 10**12},
    ],
)
def test_a_bill_that_cannot_be_right_is_no_bill(usage: Any) -> None:
    """Token numbers that are missing, negative, fractional, huge or not numbers are not believed."""
    assert PURE.decode(message(usage=usage)).usage is None


NAMES = (
    "custom_id result type message content text stop_reason usage input_tokens output_tokens error model "
    "cache_read_input_tokens"
).split()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
JSON = st.recursive(
    SCALARS | st.sampled_from(["succeeded", "errored", "expired", "canceled", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=30,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_line_breaks_the_decoder(line: bytes) -> None:
    """Whatever a line holds, it becomes an answer with a known cause and text that fits into UTF-8."""
    answer = PURE.decode(line)
    assert (answer.outcome is Outcome.OK) == (answer.cause is None)
    assert answer.cause is None or answer.cause in CAUSES
    for text in (answer.custom_id, answer.text, answer.model, answer.finish_reason, answer.detail):
        assert text is None or text.encode() is not None
