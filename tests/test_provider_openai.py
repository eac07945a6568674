"""The `openai` adapter: what it sends, what each failure proves, and what it makes of every reply."""

from __future__ import annotations

import json
import math
import struct
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx2
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import (
    Ambiguous,
    BatchUnknown,
    BlobError,
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
from canwait.providers.openai import OpenAI
from canwait.types import Batch, BatchStatus, Outcome, Usage
from provider_host import HANG_UP, TOKEN, Reply, Seen, serving, shard_of

KEY = "sk-test-0123456789"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FILE = Reply({"id": "file-1", "object": "file"})


def error(message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def batch(name: str = "batch_1", status: str = "validating", at: datetime = NOW, **fields: Any) -> dict[str, Any]:
    return {"id": name, "object": "batch", "status": status, "created_at": int(at.timestamp()), **fields}


def creating(reply: Reply) -> Callable[[Seen], Reply]:
    """A host whose uploads work and whose create answers so."""
    return lambda seen: FILE if seen.path == "/files" else reply


def provider(url: str, **options: Any) -> OpenAI:
    return OpenAI(KEY, url, **options)


def hold() -> None:
    """A guard that always holds."""


# ------------------------------------------------------------------------------------------------------------- submit


def test_the_token_rides_in_the_metadata_and_the_file_name(tmp_path: Path) -> None:
    """What is uploaded is the shard under its token, line by line as encoded, and the create carries the token too."""
    shard = shard_of(tmp_path)
    with serving(creating(Reply(batch()))) as host:
        sent = provider(host.url, organization="org-1", project="proj-1").submit(shard, hold)

    upload, create = host.seen
    head = f"content-type: {upload.headers['content-type']}\n\n".encode()
    purpose, file = message_from_bytes(head + upload.body).get_payload()
    assert "batch" == purpose.get_payload()
    assert f"{TOKEN}.jsonl" == file.get_filename()
    lines = [json.loads(line) for line in file.get_payload(decode=True).split(b"\n") if line.strip()]
    assert [f"{TOKEN}-{n}" for n in range(3)] == [line["custom_id"] for line in lines]
    assert [json.loads(body) for body in shard.path.read_bytes().split(b"\n") if body] == [li["body"] for li in lines]
    assert {("POST", "/v1/chat/completions")} == {(line["method"], line["url"]) for line in lines}
    assert {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"canwait_token": TOKEN},
    } == create.json
    assert f"Bearer {KEY}" == create.headers["authorization"]
    assert ("org-1", "proj-1") == (create.headers["openai-organization"], create.headers["openai-project"])
    assert ("batch_1", BatchStatus.RUNNING, NOW) == (sent.id, sent.status, sent.created_at)


def test_a_big_shard_is_never_in_memory(tmp_path: Path) -> None:
    """An upload streams in pieces far smaller than the file, and its Content-Length is exact."""
    shard = shard_of(tmp_path, rows=30_000)
    size = shard.path.stat().st_size
    largest, total, stated = 0, 0, 0

    class Sink(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            nonlocal largest, total, stated
            if request.url.path.endswith("/files"):
                stated = int(request.headers["content-length"])
                for piece in request.stream:  # type: ignore[union-attr]
                    largest, total = max(largest, len(piece)), total + len(piece)
                return httpx2.Response(200, json={"id": "file-1"})
            return httpx2.Response(200, json=batch())

    provider("http://127.0.0.1", transport=Sink()).submit(shard, hold)

    assert total == stated > size > 3_000_000
    assert largest < 100_000


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error(code="invalid_value"), Rejected),
        (400, error(code="token_limit_exceeded"), Busy),
        (400, error(code="billing_hard_limit_reached"), OutOfCredit),
        (401, error(code="invalid_api_key"), KeyRefused),
        (402, error(), OutOfCredit),
        (403, error(code="unsupported_country"), KeyRefused),
        (404, error(), Rejected),
        (405, b"", Rejected),
        (408, error(), Ambiguous),
        (409, error(), Ambiguous),
        (413, b"too large", TooLarge),
        (418, b"", Ambiguous),
        (422, error(), Rejected),
        (429, error(code="rate_limit_exceeded"), Busy),
        (429, error(type="insufficient_quota"), OutOfCredit),
        (429, error(code="enforced_spend_limit_reached"), OutOfCredit),
        (302, b"", Ambiguous),
        (307, b"", Rejected),
        (500, error(code="insufficient_quota"), Ambiguous),
        (502, b"<html>", Ambiguous),
        (503, b"", Ambiguous),
        (529, b"", Ambiguous),
        (200, b"<html>ok</html>", Ambiguous),
        (200, b"[" * 50_000, Ambiguous),
        (200, [], Ambiguous),
        (200, {"status": "validating", "created_at": 1}, Ambiguous),
        (200, {"id": "", "status": "validating", "created_at": 1}, Ambiguous),
        (200, {"id": 7, "status": "validating", "created_at": 1}, Ambiguous),
        (204, b"", Ambiguous),
    ],
)
def test_what_a_reply_to_the_create_proves(tmp_path: Path, status: int, body: Any, expected: type) -> None:
    """Each reply to a create raises what it proves, and no create is ever sent twice."""
    headers = {"location": "/elsewhere"} if status in (302, 307) else {}
    with serving(creating(Reply(body, status, headers))) as host, pytest.raises(CanwaitError) as caught:
        provider(host.url).submit(shard_of(tmp_path), hold)

    assert expected is type(caught.value)
    assert 1 == host.count("POST", "/batches")
    assert 0 == host.count("POST", "/elsewhere") == host.count("GET", "/elsewhere")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error(), Rejected),
        (401, error(), KeyRefused),
        (402, error(), OutOfCredit),
        (404, b"", Rejected),
        (408, b"", Busy),
        (409, b"", Busy),
        (413, b"", TooLarge),
        (429, error(), Busy),
        (429, error(code="insufficient_quota"), OutOfCredit),
        (500, b"", Busy),
        (503, b"", Busy),
        (200, b"<html>", Busy),
        (200, {"object": "file"}, Busy),
    ],
)
def test_a_failed_upload_is_certain(tmp_path: Path, status: int, body: Any, expected: type) -> None:
    """Nothing was created while uploading, so no failure of it is ever ambiguous, and the create is not sent."""
    with serving(lambda seen: Reply(body, status)) as host, pytest.raises(CanwaitError) as caught:
        provider(host.url).submit(shard_of(tmp_path), pytest.fail)

    assert expected is type(caught.value)
    assert 0 == host.count("POST", "/batches")


def test_a_create_that_may_have_arrived_is_ambiguous(tmp_path: Path) -> None:
    """A connection that closes, a reply cut short and a reply that takes too long prove nothing."""

    def slow(seen: Seen) -> Reply:
        time.sleep(0.5)
        return Reply(batch())

    replies: list[Callable[[Seen], Reply]] = [
        lambda seen: HANG_UP,
        lambda seen: Reply(raw=b"HTTP/1.1 200"),
        lambda seen: Reply(batch(), cut=10),
        slow,
    ]
    for reply in replies:
        with (
            serving(lambda seen, reply=reply: FILE if seen.path == "/files" else reply(seen)) as host,
            pytest.raises(Ambiguous),
        ):
            provider(host.url, settle_s=0.4).submit(shard_of(tmp_path), hold)
        assert 1 == host.count("POST", "/batches")


def test_an_upload_that_breaks_never_arrived(tmp_path: Path) -> None:
    """A connection that closes during the upload costs nothing and is certain."""
    with serving(lambda seen: HANG_UP) as host, pytest.raises(Unreachable):
        provider(host.url).submit(shard_of(tmp_path), pytest.fail)
    assert 1 == len(host.seen)


def test_the_guard_stands_between_upload_and_create(tmp_path: Path) -> None:
    """The guard is asked when only the create is left to send, which then has a connection of its own."""
    seen: list[list[str]] = []
    with serving(creating(Reply(batch()))) as host:
        provider(host.url).submit(shard_of(tmp_path), lambda: seen.append([s.path for s in host.seen]))
    assert seen == [["/files"]]
    assert [s.path for s in host.seen] == ["/files", "/batches"]
    assert len({s.connection for s in host.seen}) == 2


def test_a_guard_that_takes_long_does_not_eat_the_create_s_time(tmp_path: Path) -> None:
    """The create's time starts after the guard."""
    with serving(creating(Reply(batch()))) as host:
        provider(host.url, settle_s=1).submit(shard_of(tmp_path), lambda: time.sleep(0.7))
    assert 1 == host.count("POST", "/batches")


def test_a_damaged_request_file_is_not_sent(tmp_path: Path) -> None:
    """A file with fewer or more lines than the shard has rows is our damage, and nothing leaves."""
    shard = shard_of(tmp_path)
    shard.path.write_bytes(b"{}\n{}\n")
    with serving(creating(Reply(batch()))) as host, pytest.raises(BlobError, match="2 lines, not 3"):
        provider(host.url).submit(shard, hold)
    assert [] == host.seen


def test_retry_after_is_passed_on(tmp_path: Path) -> None:
    """How long a busy provider asks us to wait arrives with the error: in seconds or as a date."""
    dates = {"date": "Sat, 21 Nov 2026 12:00:00 GMT", "retry-after": "Sat, 21 Nov 2026 12:01:30 GMT"}
    for headers, wait_s in [({"retry-after": "12.5"}, 12.5), (dates, 90), ({"retry-after": "soon"}, None), ({}, None)]:
        with serving(creating(Reply(error(), 429, headers))) as host, pytest.raises(Busy) as caught:
            provider(host.url).submit(shard_of(tmp_path), hold)
        assert wait_s == caught.value.retry_after_s


def test_the_key_is_in_no_error(tmp_path: Path) -> None:
    """Neither an error nor a repr shows the key, also when the provider repeats it."""
    with serving(creating(Reply(error(f"Incorrect API key provided: {KEY}\x1b[31m"), 401))) as host:
        it = provider(host.url)
        with pytest.raises(KeyRefused) as caught:
            it.submit(shard_of(tmp_path), hold)

    assert "[key]" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    for text in (str(caught.value), str(caught.value.problem), repr(it), it.account, repr(it._wire)):
        assert KEY not in text


def test_the_key_is_in_no_error_of_a_page_either(tmp_path: Path) -> None:
    """A proxy's page that repeats our headers does not put the key into an error."""
    page = f"<pre>Authorization: Bearer {KEY}</pre>".encode()
    with serving(creating(Reply(page, 403))) as host, pytest.raises(KeyRefused) as caught:
        provider(host.url).submit(shard_of(tmp_path), hold)
    assert "Bearer [key]" in str(caught.value)


def test_accounts_differ_by_key_host_and_scope() -> None:
    """Two keys, hosts or projects are two accounts; one of each is always the same one."""
    accounts = [
        OpenAI("a", "http://h").account,
        OpenAI("b", "http://h").account,
        OpenAI("a", "http://i").account,
        OpenAI("a", "http://h:81").account,
        OpenAI("a", "http://h", project="p").account,
        OpenAI("a", "http://h", organization="p").account,
    ]
    assert 6 == len(set(accounts))
    assert accounts[0] == OpenAI("a", "http://user:secret@h").account


# --------------------------------------------------------------------------------------------------------------- find


def listing(
    rows: list[dict[str, Any]], *, page: int = 2, files: dict[str, str] | None = None
) -> Callable[[Seen], Reply]:
    """A host that lists these rows in this order, `page` at a time."""

    def answer(seen: Seen) -> Reply:
        if seen.path.startswith("/files/"):
            name = (files or {}).get(seen.path.removeprefix("/files/"))
            return Reply({"id": "f", "filename": name}) if name else Reply(error(), 404)
        start = next((i + 1 for i, row in enumerate(rows) if row["id"] == seen.query.get("after")), 0)
        found = rows[start : start + page]
        return Reply({"object": "list", "data": found, "has_more": start + page < len(rows)})

    return answer


def ours(name: str, at: datetime = NOW) -> dict[str, Any]:
    return batch(name, at=at, metadata={"canwait_token": TOKEN})


def theirs(name: str, at: datetime = NOW) -> dict[str, Any]:
    return batch(name, at=at, metadata={"canwait_token": "cwother"})


def find(tmp_path: Path, answer: Callable[[Seen], Reply], **facts: Any) -> tuple[list[str], list[Seen]]:
    with serving(answer) as host:
        found = provider(host.url).find(shard_of(tmp_path, **{"first_try": NOW, **facts}))
    return [b.id for b in found], host.seen


def test_find_reads_every_page_since_the_first_try(tmp_path: Path) -> None:
    """All batches of the token are found over all pages, oldest first; reading stops behind the first try."""
    minute = timedelta(minutes=1)
    rows = [theirs("b9", NOW + 9 * minute), ours("b8", NOW + 8 * minute), theirs("b7", NOW + 7 * minute)]
    rows += [ours("b1", NOW - 4 * minute), theirs("b0", NOW - 9 * minute), ours("old", NOW - 99 * minute)]
    rows += [theirs(f"older{n}", NOW - (100 + n) * minute) for n in range(50)]

    found, seen = find(tmp_path, listing(rows))

    assert ["b1", "b8"] == found
    assert [None, "b8", "b1"] == [s.query.get("after") for s in seen]
    assert {"100"} == {s.query["limit"] for s in seen}


def test_a_host_that_lists_oldest_first_is_read_to_its_end(tmp_path: Path) -> None:
    """Old rows at the front of a listing that does not descend do not hide a new batch behind them."""
    rows = [theirs(f"b{n}", NOW - timedelta(days=9 - n)) for n in range(9)] + [ours("b9")]
    for page in (1, 2, 100):
        assert ["b9"] == find(tmp_path, listing(rows, page=page))[0]


def test_find_leaves_out_batches_of_other_shards(tmp_path: Path) -> None:
    """A batch another shard owns is never offered, even with our token on it."""
    assert ["b2"] == find(tmp_path, listing([ours("b1"), ours("b2")]), known=frozenset({"b1"}))[0]


def test_a_host_that_keeps_no_metadata_is_searched_by_file_name(tmp_path: Path) -> None:
    """Without metadata the input file's name is the mark; with it, no file is asked for."""
    rows = [batch("b1", metadata=None, input_file_id="f1"), batch("b2", metadata={}, input_file_id="f2"), theirs("b3")]
    found, seen = find(tmp_path, listing(rows, files={"f1": f"{TOKEN}.jsonl", "f2": "other.jsonl"}))
    assert ["b1"] == found
    assert 2 == sum(s.path.startswith("/files/") for s in seen)


@pytest.mark.parametrize(
    "answer",
    [
        lambda seen: Reply(b"<html>"),
        lambda seen: Reply({"object": "list"}),
        lambda seen: Reply({"data": {}, "has_more": False}),
        lambda seen: Reply({"data": [], "has_more": True}),
        lambda seen: Reply({"data": [{"id": "b"}], "has_more": False}),
        lambda seen: Reply({"data": [batch("b", at=NOW) | {"created_at": True}], "has_more": False}),
        lambda seen: Reply({"data": [{**ours("b"), "id": None}], "has_more": False}),
        lambda seen: Reply({"data": [{**ours("b"), "status": None}], "has_more": False}),
        lambda seen: Reply({"data": [theirs("b")], "has_more": "yes"}),
        lambda seen: Reply({"data": [theirs("b")], "has_more": True}),  # the same page for ever
        lambda seen: Reply({"data": [theirs("b")]}),  # neither an end nor another page
        lambda seen: Reply(error(), 404),
        lambda seen: Reply(error(), 400),
        listing([batch("b", metadata=None, input_file_id="gone")]),
        listing([batch("b", metadata=None)]),
    ],
)
def test_a_listing_that_cannot_be_read_proves_nothing(tmp_path: Path, answer: Callable[[Seen], Reply]) -> None:
    """An unreadable listing or candidate is CannotTell, never an empty answer, and never an endless search."""
    with serving(answer) as host, pytest.raises(CannotTell):
        provider(host.url).find(shard_of(tmp_path, first_try=NOW))
    assert len(host.seen) <= 2


def test_a_listing_without_has_more_ends_with_an_empty_page(tmp_path: Path) -> None:
    """A host that does not say whether there is more is asked until there is none."""

    def answer(seen: Seen) -> Reply:
        return Reply({"data": [] if seen.query.get("after") else [ours("b1")]})

    assert ["b1"] == find(tmp_path, answer)[0]


@pytest.mark.parametrize(
    ("reply", "expected"), [(Reply(b"", 503), Busy), (HANG_UP, Unreachable), (Reply(b"", 401), KeyRefused)]
)
def test_a_listing_that_fails_in_passing_says_so(tmp_path: Path, reply: Reply, expected: type) -> None:
    """A listing that may work the next time raises what a wrapper repeats."""
    with pytest.raises(expected):
        find(tmp_path, lambda seen: reply)


# --------------------------------------------------------------------------------------------------------------- poll


def poll(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Batch:
    with serving(lambda seen: Reply(body, status, headers or {})) as host:
        return provider(host.url).poll("batch_1")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("validating", BatchStatus.RUNNING),
        ("in_progress", BatchStatus.RUNNING),
        ("finalizing", BatchStatus.RUNNING),
        ("cancelling", BatchStatus.CANCELLING),
        ("completed", BatchStatus.COMPLETED),
        ("Completed", BatchStatus.COMPLETED),
        ("failed", BatchStatus.FAILED),
        ("expired", BatchStatus.EXPIRED),
        ("cancelled", BatchStatus.CANCELLED),
        ("canceled", BatchStatus.CANCELLED),
    ],
)
def test_every_status_has_a_word(stated: str, expected: BatchStatus) -> None:
    """Each status of the provider, in any casing, is one of ours."""
    assert expected is poll(batch(status=stated)).status


def test_a_status_of_the_future_is_running() -> None:
    """A status nobody knows keeps the batch open, and its name is shown."""
    got = poll(batch(status="hibernating"))
    assert BatchStatus.RUNNING is got.status
    assert "hibernating" in (got.error or "")


def test_a_poll_says_what_the_provider_says() -> None:
    """Counts, the bill, the output files, the error and the time to wait are read from the batch object."""
    usage = {
        "input_tokens": 36,
        "output_tokens": 224,
        "total_tokens": 260,
        "input_tokens_details": {"cached_tokens": 8},
    }
    got = poll(
        batch(
            status="failed",
            request_counts={"total": 9, "completed": 2, "failed": 3},
            usage=usage,
            output_file_id="f1",
            error_file_id="",
            errors={"data": [{"code": "token_limit_exceeded", "message": "Enqueued"}]},
        ),
        headers={"retry-after": "30"},
    )
    assert (9, 5, Usage(36, 224, 8), ("f1",)) == (got.n_rows, got.n_done, got.usage, got.outputs)
    assert ("token_limit_exceeded", "Enqueued", 30) == (got.error_code, got.error, got.retry_after_s)
    assert poll(batch(status="in_progress", usage=usage)).usage is None, "a running batch's bill is not one"
    assert got.created_at == poll(batch() | {"created_at": NOW.isoformat()}).created_at


@pytest.mark.parametrize(
    "usage",
    [None, [], {}, {"input_tokens": -1, "output_tokens": 1}, {"input_tokens": 1.0, "output_tokens": 1},
     {"input_tokens": True, "output_tokens": 1}, {"input_tokens": 10**14, "output_tokens": 1}, {"input_tokens": "1"},
     {"input_tokens": 1, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 2}}],
)  # fmt: skip
def test_a_bill_that_cannot_be_right_is_no_bill(usage: Any) -> None:
    """Token numbers that are negative, fractional, huge, not numbers or contradictory are not believed."""
    assert poll(batch(status="completed", usage=usage)).usage is None


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (error("No batch found with id"), 404, BatchUnknown),
        (error(), 401, KeyRefused),
        (error(), 429, Busy),
        (error(), 500, Busy),
        (error(), 400, Garbled),
        (b"<html>", 200, Garbled),
        ({"id": "batch_1"}, 200, Garbled),
        (batch(name="batch_2"), 200, Garbled),
        (batch() | {"created_at": 10**30}, 200, Garbled),
        (json.dumps(batch()).encode() + b" " * 17 * 2**20, 200, Garbled),
    ],
)
def test_what_a_failed_poll_says(body: Any, status: int, expected: type) -> None:
    """Each failed poll raises its own error; none of them ends a batch."""
    with pytest.raises(expected):
        poll(body, status)


def test_an_odd_id_stays_one_segment_of_the_path() -> None:
    """An id is text: it never leads to another place of the host."""
    with serving(lambda seen: Reply(error(), 404)) as host, pytest.raises(BatchUnknown):
        provider(host.url + "/v1").poll("../files/x?y#z")
    assert "/v1/batches/..%2Ffiles%2Fx%3Fy%23z" == host.seen[0].path


# ------------------------------------------------------------------------------------------------------------ results


def results(files: dict[str, Reply], outputs: tuple[str, ...] = ("out", "err")) -> bytes:
    ended = Batch("batch_1", BatchStatus.COMPLETED, NOW, outputs=outputs)
    with serving(lambda seen: files.get(seen.path.split("/")[2], Reply(error(), 404))) as host:
        return b"".join(provider(host.url).results(ended))


def test_both_files_are_read_and_a_cut_line_stays_alone() -> None:
    """Output and error file come one after another as sent, each ending in a newline."""
    assert b'{"a":1}\n{"b\n{"c":1}\n' == results({"out": Reply(b'{"a":1}\n{"b'), "err": Reply(b'{"c":1}\n')})
    assert b"" == results({"out": Reply(b""), "err": Reply(b"")})
    assert b"" == results({}, outputs=())


def test_a_download_is_whole_or_an_error() -> None:
    """A file that arrives short is never taken for a short file."""
    long = b'{"a":1}\n' * 40_000
    unframed = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}\n{}\r\n"
    for reply in (Reply(long, cut=200_000), HANG_UP, Reply(raw=chunked), Reply(raw=unframed + b'{"a":1}\n{"b')):
        with pytest.raises(Unreachable):
            results({"out": reply}, outputs=("out",))
    assert b'{"a":1}\n' == results({"out": Reply(raw=unframed + b'{"a":1}\n')}, outputs=("out",))
    assert long == results({"out": Reply(long)}, outputs=("out",))


def test_a_missing_file_is_said() -> None:
    """Files that are gone are unknown; one file of two is not taken for both."""
    with pytest.raises(BatchUnknown):
        results({})
    with pytest.raises(Garbled):
        results({"out": Reply(b"{}\n")})
    with pytest.raises(Busy):
        results({"out": Reply(b"", 503)})


def test_cancelling_leaves_an_ended_batch_alone() -> None:
    """A refused cancel is fine when the batch has ended or is being cancelled, and Busy when it goes on running."""
    for status, fine in [("completed", True), ("cancelling", True), ("in_progress", False)]:
        answer = lambda seen, s=status: Reply(batch(status=s)) if seen.method == "GET" else Reply(error(), 409)  # noqa: E731
        with serving(answer) as host:
            if fine:
                provider(host.url).cancel("batch_1")
            else:
                with pytest.raises(Busy):
                    provider(host.url).cancel("batch_1")
    with serving(lambda seen: Reply(error(), 404)) as host, pytest.raises(BatchUnknown):
        provider(host.url).cancel("batch_1")
    with serving(lambda seen: HANG_UP) as host, pytest.raises(Ambiguous):
        provider(host.url).cancel("batch_1")


# ------------------------------------------------------------------------------------------------------------- decode

PURE = OpenAI(KEY, "http://127.0.0.1")
DECODE = PURE.decode
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25,
         "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4}}  # fmt: skip


def row(body: Any = None, status: Any = 200, **fields: Any) -> bytes:
    line = {"id": "r", "custom_id": "a-1", "response": {"status_code": status, "body": body}, "error": None, **fields}
    return json.dumps(line).encode()


def chat(content: Any = "Hello", finish: Any = "stop", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"object": "chat.completion", "model": "gpt-x", "choices": [choice], "usage": usage}


def response_of(
    *items: Any, status: Any = "completed", reason: str | None = None, error: Any = None, usage: Any = None
) -> dict[str, Any]:
    details = {"reason": reason} if reason else None
    stated = {"status": status, "incomplete_details": details, "error": error, "usage": usage}
    return {"object": "response", "model": "gpt-x", "output": list(items), **stated}


def said(*texts: str, refusal: str | None = None, **facts: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    content += [{"type": "refusal", "refusal": refusal}] if refusal else []
    return {"type": "message", "role": "assistant", "status": "completed", "content": content, **facts}


THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Let me see."}]}


def unexecuted(code: str) -> bytes:
    return row(response=None, error={"code": code, "message": "m"})


@pytest.mark.parametrize(
    ("line", "outcome", "cause"),
    [
        (row(chat()), Outcome.OK, None),
        (row(chat(finish="tool_calls")), Outcome.OK, None),
        (row(chat([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}])), Outcome.OK, None),
        (row(chat(finish="length")), Outcome.FAILED, "length"),
        (row(chat(content=None, finish="length")), Outcome.FAILED, "length"),
        (row(chat(finish="content_filter")), Outcome.FAILED, "content_filter"),
        (row(chat(content=None, refusal="I cannot")), Outcome.FAILED, "refused"),
        (row(chat(content="")), Outcome.FAILED, "empty"),
        (row(chat(content=None)), Outcome.FAILED, "empty"),
        (row(chat(content=" \n")), Outcome.FAILED, "empty"),
        (row({"choices": []}), Outcome.FAILED, "malformed"),
        (row({"choices": [{}]}), Outcome.FAILED, "malformed"),
        (row(None), Outcome.FAILED, "malformed"),
        (row(error(), 400), Outcome.FAILED, "invalid_request"),
        (row(error(code="content_filter"), 400), Outcome.FAILED, "content_filter"),
        (row(error(), 401), Outcome.FAILED, "permission"),
        (row(error(), 402), Outcome.FAILED, "out_of_credit"),
        (row(error(), 403), Outcome.FAILED, "permission"),
        (row(error(), 404), Outcome.FAILED, "not_found"),
        (row(error(), 408), Outcome.FAILED, "timeout"),
        (row(error(), 409), Outcome.FAILED, "server_error"),
        (row(error(), 413), Outcome.FAILED, "too_large"),
        (row(error(), 422), Outcome.FAILED, "invalid_request"),
        (row(error(), 429), Outcome.FAILED, "rate_limit"),
        (row(error(code="insufficient_quota"), 429), Outcome.FAILED, "out_of_credit"),
        (row(error(), 500), Outcome.FAILED, "server_error"),
        (row(error(), 503), Outcome.FAILED, "server_error"),
        (row(error(), 0), Outcome.FAILED, "server_error"),
        (row(response={"body": chat()}), Outcome.FAILED, "server_error"),
        (row(error(), "200"), Outcome.FAILED, "malformed"),
        (row(chat(), 204), Outcome.FAILED, "malformed"),
        (unexecuted("batch_expired"), Outcome.EXPIRED, "expired"),
        (unexecuted("batch_cancelled"), Outcome.CANCELLED, "cancelled"),
        (unexecuted("request_timeout"), Outcome.FAILED, "timeout"),
        (unexecuted("insufficient_quota"), Outcome.FAILED, "out_of_credit"),
        (unexecuted("a_code_of_the_future"), Outcome.FAILED, "unknown"),
        (row(response=None), Outcome.FAILED, "malformed"),
        (row(response=[], error={}), Outcome.FAILED, "unknown"),
        (row(response_of(said("Hi"))), Outcome.OK, None),
        (row(response_of(said("Hi"), status=None)), Outcome.FAILED, "malformed"),
        (row(response_of(THOUGHT, said("Hi", phase="final_answer"))), Outcome.OK, None),
        (row(response_of(said("Hm", phase="commentary"))), Outcome.FAILED, "empty"),
        (row(response_of(THOUGHT)), Outcome.FAILED, "empty"),
        (row(response_of({"type": "function_call", "arguments": "{}"})), Outcome.FAILED, "empty"),
        (row(response_of(said("H"), status="incomplete", reason="max_output_tokens")), Outcome.FAILED, "length"),
        (row(response_of(status="incomplete", reason="content_filter")), Outcome.FAILED, "content_filter"),
        (row(response_of(said("H"), status="incomplete", reason="new")), Outcome.FAILED, "malformed"),
        (row(response_of(said("H"), status="in_progress")), Outcome.FAILED, "malformed"),
        (row(response_of(said(refusal="No."))), Outcome.FAILED, "refused"),
        (row(response_of(status="failed", error=error(code="server_error")["error"])), Outcome.FAILED, "server_error"),
        (row(response_of(status="failed", error={"code": "rate_limit_exceeded"})), Outcome.FAILED, "rate_limit"),
        (row(response_of(status="failed", error={"code": "invalid_prompt"})), Outcome.FAILED, "invalid_request"),
        (row(response_of(status="failed", error={"code": "bio_policy"})), Outcome.FAILED, "content_filter"),
        (row(response_of(said("H"), status="failed")), Outcome.FAILED, "malformed"),
        (row({"output": "Hi"}), Outcome.FAILED, "malformed"),
        (row({"data": {"embedding": [1.0]}}), Outcome.FAILED, "malformed"),
    ],
)
def test_every_row_has_an_outcome_and_a_cause(line: bytes, outcome: Outcome, cause: str | None) -> None:
    """Each way a row can end is one outcome and one cause of the table in lifecycle.py, under its own id."""
    answer = DECODE(line)
    assert ("a-1", outcome, cause) == (answer.custom_id, answer.outcome, answer.cause)
    assert cause is None or cause in CAUSES


def test_an_answer_is_read_whole() -> None:
    """Text, usage, model and why it stopped are read; an answer cut at its bound keeps all of them."""
    billed = Usage(20, 5, 8, 4)
    good, cut = DECODE(row(chat())), DECODE(row(chat("Hel", "length")))
    assert ("Hello", billed, "gpt-x", "stop") == (good.text, good.usage, good.model, good.finish_reason)
    assert ("Hel", billed, "length") == (cut.text, cut.usage, cut.finish_reason)
    assert billed == DECODE(row(error() | {"usage": USAGE}, 400)).usage, "a failed row that was billed says so"


def test_a_response_is_read_whole() -> None:
    """Texts of all messages, usage by its own names, model and status are read; reasoning and commentary are not text."""
    usage = {
        "input_tokens": 20,
        "output_tokens": 5,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4},
    }
    items = THOUGHT, said("Hm.", phase="commentary"), said("Hel", "lo"), said("!")
    answer = DECODE(row(response_of(*items, usage=usage)))
    assert ("Hello!", Usage(20, 5, 8, 4), "gpt-x") == (answer.text, answer.usage, answer.model)
    assert (answer.finish_reason, answer.vector) == ("completed", None)
    cut = DECODE(row(response_of(said("Hel"), status="incomplete", reason="max_output_tokens", usage=usage)))
    assert ("Hel", Usage(20, 5, 8, 4), "max_output_tokens") == (cut.text, cut.usage, cut.finish_reason)
    failed = DECODE(row(response_of(status="failed", error={"code": "server_error", "message": "Try\nagain."})))
    assert (failed.detail, failed.usage) == ("server_error Try again.", None)


# ---------------------------------------------------------------------------------------------------------- embeddings

VECTOR = struct.pack("<3f", 0.1, -2.5, 3e38)


def embedding(stated: Any, *more: Any, **item: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": 0, "embedding": stated, **item}, *more]
    return {"object": "list", "data": data, "model": "embed-x", "usage": {"prompt_tokens": 6, "total_tokens": 6}}


def test_a_vector_is_read_from_base64_and_from_numbers() -> None:
    """Both spellings give the same 32-bit floats, with the input that was billed and no output."""
    for stated in (b64encode(VECTOR).decode(), list(struct.unpack("<3f", VECTOR))):
        answer = DECODE(row(embedding(stated)))
        assert (answer.outcome, answer.cause, answer.text, answer.vector) == (Outcome.OK, None, None, VECTOR)
        assert (answer.usage, answer.model) == (Usage(6, 0), "embed-x")
    assert DECODE(row(embedding([1, 0.5]))).vector == struct.pack("<2f", 1, 0.5)


BAD_FLOATS = [struct.pack("<2f", 1, math.nan), struct.pack("<2f", -math.inf, 1), b"\x01\x00\x80\xff", b"\0" * 5, b""]


@pytest.mark.parametrize(
    "body",
    [
        *(embedding(b64encode(raw).decode()) for raw in BAD_FLOATS),
        *(embedding(text) for text in ("AAAA*AAA", "AAAAAA", "é", "AA==AA==", " AAAA")),
        *(embedding(numbers) for numbers in ([], [math.nan], [math.inf], [1e39], [10**400], [True], ["1"], [[1.0]], [None])),
        *(embedding(other) for other in (None, {}, 1.5, True)),
        embedding([1.0], index=1), embedding([1.0], index=-1), embedding([1.0], index=False), embedding([1.0], index="0"),
        embedding([1.0], {"index": 1, "embedding": [1.0]}), embedding([1.0], None),
        {"data": []}, {"data": [None]}, {"data": ["AAAA"]}, {"data": [{}]},
    ],
    ids=lambda body: str(body["data"])[:60],
)  # fmt: skip
def test_what_is_no_vector_is_a_failed_row(body: dict[str, Any]) -> None:
    """NaN, infinities, cut bytes, several vectors, another text's vector: malformed, never an exception, still billed."""
    answer = DECODE(row(body))
    assert (answer.outcome, answer.cause, answer.vector, answer.text) == (Outcome.FAILED, "malformed", None, None)
    assert answer.usage == (Usage(6, 0) if "usage" in body else None)
    assert answer.detail


GOOD = [
    row(embedding(b64encode(VECTOR).decode())),
    row(embedding([0.5, -1, 2e-40])),
    row(response_of(THOUGHT, said("Hello"))),
    row(response_of(said("H"), status="incomplete", reason="max_output_tokens")),
]


@given(st.sampled_from(GOOD), st.data())
def test_no_mutated_line_breaks_the_decoder(line: bytes, data: st.DataObject) -> None:
    """Bytes changed, cut out or repeated anywhere: an answer comes out, and a vector only of finite 32-bit floats."""
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line)))
        end = data.draw(st.integers(at, min(len(line), at + 8)))
        line = line[:at] + data.draw(st.binary(max_size=4) | st.sampled_from(MUTATIONS)) + line[end:]
    answer = DECODE(line)
    assert (answer.outcome is Outcome.OK) == (answer.cause is None)
    assert answer.cause in CAUSES or answer.vector or (answer.text or "").strip()
    if answer.vector:
        assert answer.text is None
        assert numpy.isfinite(numpy.frombuffer(answer.vector, "<f4")).all()


MUTATIONS = (b"1e999", b"NaN", b"-Infinity", b"null", b"[", b"{", b'"', b"1,", b"true", b"9" * 400)


def test_a_line_with_awkward_text_keeps_it() -> None:
    """Escapes, line separators and a half emoji at a cut survive, and every text fits into UTF-8."""
    awkward = 'a\u2028b\x85c\\"d\n😀'
    assert awkward == DECODE(row(chat(awkward))).text
    half = DECODE(row(chat("cut \ud83d", "length")))
    assert "cut ?" == half.text


NAMES = (
    "custom_id response error status_code body choices message content usage prompt_tokens completion_tokens code "
    "finish_reason refusal output data embedding index text type prompt_tokens_details cached_tokens model status phase "
    "incomplete_details reason"
).split()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=30,
)  # fmt: skip


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_line_breaks_the_decoder(line: bytes) -> None:
    """Whatever a line holds, it becomes an answer with a known cause, usable text and believable usage."""
    answer = DECODE(line)
    assert (answer.outcome is Outcome.OK) == (answer.cause is None)
    assert answer.cause is None or answer.cause in CAUSES
    for text in (answer.custom_id, answer.text, answer.model, answer.finish_reason, answer.detail):
        assert text is None or text.encode() is not None
    if answer.usage:
        assert all(type(n) is int and 0 <= n <= 10**9 for n in (answer.usage.input_tokens, answer.usage.output_tokens))


@given(st.integers(0, 10**6), st.text(st.characters(codec="utf-8")))
def test_encode_then_decode_names_the_same_row(line: int, text: str) -> None:
    """A custom id sent is the custom id read, whatever the body holds."""
    body = json.dumps({"messages": [{"content": text}]}, ensure_ascii=False, separators=(",", ":")).encode()
    sent = PURE.encode(f"{TOKEN}-{line}", body, "/v1/chat/completions")
    assert b"\n" not in sent
    assert text == json.loads(sent)["body"]["messages"][0]["content"]
    assert f"{TOKEN}-{line}" == PURE.decode(json.dumps(json.loads(sent) | {"error": None}).encode()).custom_id
