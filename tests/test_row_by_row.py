"""Rows one by one: the client below it, the pressure on a host, and what is never paid twice."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import KeyRefused, SpecError, Unreachable
from canwait.providers import posting
from canwait.providers.anthropic import Anthropic
from canwait.providers.conformance import CHECKS, Check
from canwait.providers.crew import TRIES, Ask, Crew, Stopped, Told
from canwait.providers.openai import OpenAI, encode_line
from canwait.providers.own import Own
from canwait.providers.paid import paid_rows
from canwait.providers.posting import Connections, NotSent, ReplyLost, TimedOut, TooLong, poster
from canwait.providers.pressure import Pressure, used_up_s
from canwait.providers.registry import name_of, open_provider
from canwait.providers.rows import RowByRow, _one_line
from canwait.providers.spool import Asked, Folder, Row, answer_line
from canwait.types import BatchStatus, Outcome, Tier
from provider_host import HANG_UP, TOKEN, Reply, Seen, serving, shard_of
from test_provider_own import AT_ONCE, Spooled, answering, answers, asked, chat, ended, hold, row_of, stops_with, until

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

# ------------------------------------------------------------------------------------------------------------ the wire


@contextmanager
def raw_server(serve: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server of sockets: `serve(connection, its number)`, one after the other, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_served, args=(serve, connection, number), daemon=True).start()
                number += 1

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        listening.shutdown(socket.SHUT_RDWR)


def _served(serve: Callable[[socket.socket, int], None], connection: socket.socket, number: int) -> None:
    with connection, suppress(OSError):  # the client may have gone away
        serve(connection, number)


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"content-length: (\d+)", head.lower())
    while match and len(body) < int(match[1]):
        body += _some(connection)
    return body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionResetError
    return data


def replying(*pieces: bytes, pause_s: float = 0.0) -> Callable[[socket.socket, int], None]:
    """Each request gets these pieces, and its connection is closed."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)

    return serve


def post(url: str, body: bytes = b"{}", *, timeout_s: float = 5.0, times: int = 1) -> list[posting.Reply]:
    async def run() -> list[posting.Reply]:
        wire = poster(url, {}, timeout_s=timeout_s, connect_timeout_s=5.0)
        assert isinstance(wire, Connections)
        try:
            replies = []
            for _ in range(times):
                replies.append(await wire.post(url, body))
                await asyncio.sleep(0.02)  # what comes behind a reply is seen before the next request
            return replies
        finally:
            await wire.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (GOOD, 200, b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, 200, b"{}"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\nTrailer: a\r\n\r\n",
            200,
            b"{}",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", 200, b"{}"),  # as long as the connection
        (b"HTTP/1.0 200 OK\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 302, b""),
        (b"HTTP/1.1 500 \r\ncontent-length: 3\r\n\r\nbad", 500, b"bad"),
    ],
)
@pytest.mark.parametrize("by_byte", [False, True])
def test_a_reply_is_read_however_it_is_framed(reply: bytes, status: int, body: bytes, by_byte: bool) -> None:
    """Content-Length, chunks, the end of a connection, no body at all: each is read as HTTP says, in any pieces."""
    pieces = [reply[i : i + 1] for i in range(len(reply))] if by_byte else [reply]
    with raw_server(replying(*pieces)) as url:
        (found,) = post(url)
    assert (found.status, found.body) == (status, body)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000,
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\0" * 100,
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_what_is_no_whole_reply_is_lost(reply: bytes) -> None:
    """A reply that is cut off, contradicts itself, never ends its headers or is no HTTP is not taken for an answer."""
    with raw_server(replying(reply)) as url, pytest.raises(ReplyLost):
        post(url)


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(garbage: bytes) -> None:
    """Whatever a host sends, the request ends: with a reply or as lost."""

    async def run() -> None:
        connection = posting._Connection()
        connection._reply = asyncio.get_running_loop().create_future()
        connection._h11.send(_REQUEST)
        connection._h11.send(posting.h11.EndOfMessage())
        connection.data_received(b"HTTP/1.1 200 OK\r\n" + garbage)
        connection.connection_lost(None)
        assert connection._reply.done()
        assert not connection.usable
        connection._reply.exception()

    asyncio.run(run())


_REQUEST = posting.h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")])


def test_a_reply_without_end_is_not_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply beyond the limit is given up when the limit is passed, not when it ends."""
    monkeypatch.setattr(posting, "MAX_REPLY_BYTES", 100_000)
    sent = 0

    def serve(connection: socket.socket, number: int) -> None:
        nonlocal sent
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 10_000)
            sent += 10_000

    with raw_server(serve) as url, pytest.raises(TooLong):
        post(url)
    assert sent < 50_000_000


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"])
def test_a_reply_that_does_not_come_is_given_up(said: bytes) -> None:
    """The whole exchange is bounded, also where a host sends a byte now and then."""
    with raw_server(replying(said, *[b"x"] * 40, pause_s=0.05) if said else lambda c, n: time.sleep(3)) as url:
        start = time.monotonic()
        with pytest.raises(TimedOut):
            post(url, timeout_s=0.3)
    assert time.monotonic() - start < 2


def test_nobody_there_means_not_sent() -> None:
    """A refused connection proves that nothing was sent."""
    with pytest.raises(NotSent):
        post("http://127.0.0.1:1/v1")


def test_a_certificate_nobody_vouches_for_is_not_trusted() -> None:
    """Over TLS nothing is sent to a host that cannot prove its name."""
    with raw_server(lambda connection, number: connection.sendall(GOOD)) as url, pytest.raises(NotSent):
        post(url.replace("http:", "https:"))


def test_connections_are_kept_and_a_closed_one_is_not_used() -> None:
    """One connection serves many requests, until the host closes it or sends what nobody asked for."""
    numbers: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        for _ in range(2):
            read_request(connection)
            numbers.append(number)
            connection.sendall(GOOD if number else GOOD + b"junk")

    with raw_server(serve) as url:
        post(url, times=4)
    assert numbers == [0, 1, 1, 2]


def test_an_idle_connection_is_not_trusted_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection unused for some seconds may be closed on the other side, so a new one is made."""
    monkeypatch.setattr(posting, "IDLE_S", 0.0)
    seen: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        while True:
            read_request(connection)
            seen.append(number)
            connection.sendall(GOOD)

    with raw_server(serve) as url:
        post(url, times=3)
    assert seen == [0, 1, 2]


def test_a_proxy_of_the_environment_is_used_but_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a proxy rows go through it; what is on this machine is reached directly."""
    with raw_server(replying(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy")) as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        async def run() -> posting.Reply:
            wire = poster("http://gpu.invalid/v1", {}, timeout_s=5.0, connect_timeout_s=5.0)
            try:
                return await wire.post("http://gpu.invalid/v1/x", b"{}")
            finally:
                await wire.close()

        assert asyncio.run(run()).body == b"proxy"
        assert isinstance(poster("http://127.0.0.1/v1", {}, timeout_s=5.0, connect_timeout_s=5.0), Connections)


# -------------------------------------------------------------------------------------------------------- the pressure


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 3)), max_size=60),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_a_host_is_never_given_more_than_the_most_nor_less_than_one(
    steps: list[tuple[bool, float, float]], start: int, most: int
) -> None:
    """Whatever a host says, between one row and the most are let in, and none while it asked to wait."""
    pressure, now = Pressure(start=start, most=most), 0.0
    for refused, passes_s, wait_s in steps:
        now += passes_s
        if refused:
            pressure.pressed(wait_s, now - 0.1, now)
            assert pressure.room(0, now) == 0 or now + wait_s == now
        else:
            pressure.taken()
        assert 1 <= pressure.limit <= most
        assert pressure.room(pressure.limit, now + 10) == 0


def test_a_burst_of_refusals_halves_once_and_what_is_taken_raises_slowly() -> None:
    """All that was sent before a cut counts for that cut; afterwards one more is let in for each round that is taken."""
    pressure = Pressure(start=64, most=64)
    for _ in range(40):
        pressure.pressed(0.0, 1.0, 2.0)
    assert pressure.limit == 32
    pressure.pressed(0.0, 2.5, 3.0)
    assert pressure.limit == 16
    for _ in range(16):
        pressure.taken()
    assert pressure.limit == 17


def test_until_a_refusal_a_host_is_given_twice_as_much_each_round() -> None:
    """The most a host takes is found in a few rounds."""
    pressure = Pressure(start=8, most=64)
    for _ in range(8 + 16 + 32):
        pressure.taken()
    assert pressure.limit == 64


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 0),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1s"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"}, 0),
        ({"x-ratelimit-remaining-tokens": "0"}, 0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-22T10:00:07Z",
                "date": "Sun, 22 Nov 2026 10:00:00 GMT",
            },
            7,
        ),
        ({"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "x"}, 0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9999h"}, 3600),
    ],
)
def test_rate_limit_headers_say_when_more_is_taken(headers: dict[str, str], wait_s: float) -> None:
    """A host that says nothing is left and until when is given nothing until then."""
    assert used_up_s(headers) == pytest.approx(wait_s)


def test_too_many_at_once_slows_down_and_every_row_is_answered(tmp_path: Path) -> None:
    """A host that takes four rows at a time and refuses more is given fewer, and answers all of them in the end."""
    here, refused, lock = 0, 0, threading.Lock()

    def reply(seen: Seen) -> Reply:
        nonlocal here, refused
        with lock:
            here += 1
            many = here > 4
            refused += many
        if not many:
            time.sleep(0.01)
        with lock:
            here -= 1
        return Reply({"error": {"message": "slow down"}}, 429, {"retry-after": "0.05"}) if many else Reply(chat())

    with serving(answering(reply)) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool", concurrency=32)
        own.submit(shard_of(tmp_path, 300), hold)
        batch = ended(own, within_s=60)
        found = answers(own, batch)
    assert Counter(answer.outcome for answer in found.values()) == {Outcome.OK: 300}
    assert 0 < refused < 200


@asynccontextmanager
async def host_that_goes() -> AsyncIterator[Ask]:
    """The first row finds it gone, and then the second one is refused for now."""

    async def ask(row: Row) -> Told:
        await asyncio.sleep(0.05 * (1 + row.line))
        if row.line == 0:
            raise Stopped(Unreachable("gone"))
        return Told(answer_line(row, error={"code": "server_error", "message": "busy"}), again=True)

    yield ask


@pytest.mark.parametrize("paid", [False, True])
def test_a_row_refused_while_its_batch_stops_is_not_answered(tmp_path: Path, paid: bool) -> None:
    """A row that may be asked again, told after another row found the host gone, waits like the others."""
    folder = Folder(tmp_path / "spool", TOKEN)
    folder.create(encode_line(f"{TOKEN}-{n}", b"{}", "/v1/chat/completions") for n in range(2))
    crew = Crew(host_that_goes, Pressure(start=2, most=2), paid=paid, name="test")
    crew.start(folder)
    assert isinstance(until(lambda: crew.why_stopped(folder)), Unreachable)
    until(lambda: True if not crew.has(folder) else None)
    assert folder.answered()[0] == set()
    if paid:
        with closing(Asked(folder)) as said:
            assert said.lines == set()


def test_a_disk_that_fills_while_a_batch_closes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That rows were not carried out cannot be written down: whoever polls hears it, and when the batch is started again
    those rows count as lost, for their money may be spent."""

    def full(self: Asked, lines: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder(tmp_path / "spool", TOKEN)
    folder.create(encode_line(f"{TOKEN}-{n}", b"{}", "/v1/chat/completions") for n in range(2))
    crew = Crew(host_that_goes, Pressure(start=2, most=2), paid=True, name="test")
    with monkeypatch.context() as patch:
        patch.setattr(Asked, "were_not", full)
        crew.start(folder)
        assert isinstance(until(lambda: crew.why_stopped(folder)), OSError)
    assert not crew.has(folder)
    crew.start(folder)
    until(lambda: True if not crew.has(folder) else None)
    assert folder.answered()[0] == {0, 1}


def test_a_reply_in_another_encoding_spoils_no_other(tmp_path: Path) -> None:
    """JSON in UTF-16 holds NULs, which would end our file of answers: it is one row's error, as what is no JSON is."""
    said = json.dumps({"id": "x", "choices": []})
    lines = [_one_line(said.encode(encoding)) for encoding in ("utf-8", "utf-16", "utf-32-le", "utf-8")]
    assert [b"\0" in line for line in lines] == [False] * 4
    assert [b"is not JSON" in line for line in lines] == [False, True, True, False]


# ---------------------------------------------------------------------------------------------------------- paid rows

KEY = "sk-paid"


def openai_at(url: str, spool: Path, tier: Tier = Tier.STANDARD) -> RowByRow:
    return paid_rows(OpenAI(KEY, f"{url}/v1"), tier, {}, spool)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_paid_rows_keep_the_promises_of_a_provider(check: Check, tmp_path: Path) -> None:
    """What every provider promises holds for rows that are paid one by one."""

    class Paid(Spooled):
        def n_batches(self) -> int:
            return len(list(self.spool.glob("cw*")))

        def finish(self) -> None:
            for path in self.spool.glob("cw*"):
                ended(self.provider, path.name)

        def unreachable(self) -> RowByRow:
            return openai_at("http://127.0.0.1:1", self.folder / "elsewhere")

    with serving(answering()) as host:
        check(Paid(openai_at(host.url, tmp_path / "spool"), tmp_path))


@pytest.mark.parametrize(
    ("tier", "endpoint", "adds"),
    [
        (Tier.STANDARD, "/v1/chat/completions", b"}"),
        (Tier.FLEX, "/v1/chat/completions", b',"service_tier":"flex"}'),
        (Tier.FLEX, "/v1/responses", b',"service_tier":"flex"}'),
        (Tier.FLEX, "/v1/embeddings", b"}"),
    ],
)
def test_a_tier_is_asked_for_in_the_body(tier: Tier, endpoint: str, adds: bytes, tmp_path: Path) -> None:
    """The bytes that were priced go out as they are, with the tier behind them where it has a name, at their endpoint."""
    shard = shard_of(tmp_path, 2, endpoint=endpoint)
    with serving(answering()) as host:
        rows = openai_at(host.url, tmp_path / "spool", tier)
        rows.submit(shard, hold)
        ended(rows)
    posts = [seen for seen in host.seen if seen.method == "POST"]
    assert sorted(seen.body for seen in posts) == sorted(b[:-1] + adds for b in shard.path.read_bytes().splitlines())
    assert {(seen.path, seen.headers["authorization"]) for seen in posts} == {(endpoint, f"Bearer {KEY}")}


def message(text: str = "fine") -> dict[str, Any]:
    usage = {"input_tokens": 7, "output_tokens": 2}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": usage,
    }


def error(kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": "no"}}


@pytest.mark.parametrize(
    ("reply", "outcome", "cause"),
    [
        (Reply(message()), Outcome.OK, None),
        (Reply(error("invalid_request_error"), 400), Outcome.FAILED, "invalid_request"),
        (Reply(error("overloaded_error"), 529, AT_ONCE), Outcome.FAILED, "overloaded"),
        (Reply(b"<html>busy</html>", 503, AT_ONCE), Outcome.FAILED, "server_error"),
        (Reply(b"<html>slow</html>", 429, AT_ONCE), Outcome.FAILED, "rate_limit"),
        (Reply(b"<html>gone</html>", 502), Outcome.MISSING, "missing"),
        (HANG_UP, Outcome.MISSING, "missing"),
        (Reply(b"<html>fine</html>"), Outcome.FAILED, "malformed"),
    ],
)
def test_messages_are_asked_and_read_in_anthropic_s_shape(
    reply: Reply, outcome: Outcome, cause: str | None, tmp_path: Path
) -> None:
    """Anthropic's standard tier posts to its messages with its own headers, and every ending has its cause."""
    shard = shard_of(tmp_path, 1, endpoint="/v1/messages")
    with serving(answering(lambda seen: reply)) as host:
        rows = paid_rows(Anthropic(KEY, host.url), Tier.STANDARD, {}, tmp_path / "spool")
        rows.submit(shard, hold)
        answer = answers(rows, ended(rows))[0]
    (first, *_) = [seen for seen in host.seen if seen.method == "POST"]
    assert (first.path, first.headers["x-api-key"]) == ("/v1/messages", KEY)
    assert "anthropic-version" in first.headers
    assert (answer.outcome, answer.cause) == (outcome, cause)
    assert (answer.usage is not None) == (outcome is Outcome.OK)


@pytest.mark.parametrize(
    ("reply", "times", "outcome", "cause"),
    [
        (Reply({"error": {"message": "slow down"}}, 429, AT_ONCE), TRIES, "FAILED", "rate_limit"),
        (Reply(b"<html>overloaded</html>", 503, AT_ONCE), TRIES, "FAILED", "server_error"),
        (Reply({"error": {"message": "no"}}, 400), 1, "FAILED", "invalid_request"),
        (Reply({"error": {"message": "oops"}}, 500), 1, "FAILED", "server_error"),
        (Reply(b"oops", 500), 1, "MISSING", "missing"),
        (Reply(b"<html>bad gateway</html>", 502), 1, "MISSING", "missing"),
        (Reply({"error": {"message": "timed out upstream"}}, 504), 1, "MISSING", "missing"),
        (Reply({"status": "queued"}, 202), 1, "MISSING", "missing"),
        (Reply({"error": {"message": "conflict"}}, 409), 1, "MISSING", "missing"),
        (HANG_UP, 1, "MISSING", "missing"),
        (Reply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"), 1, "MISSING", "missing"),
        (Reply(b"<html>it works!</html>"), 1, "FAILED", "malformed"),
    ],
)
def test_a_paid_row_that_may_have_been_carried_out_is_asked_once(
    reply: Reply, times: int, outcome: str, cause: str, tmp_path: Path
) -> None:
    """Only what was certainly refused unread is asked again in place; what may be billed without an answer is missing."""
    with serving(answering(lambda seen: reply if row_of(seen) == 1 else Reply(chat()))) as host:
        rows = openai_at(host.url, tmp_path / "spool")
        rows.submit(shard_of(tmp_path, 3), hold)
        found = answers(rows, ended(rows))
    assert (found[1].outcome.name, found[1].cause) == (outcome, cause)
    assert [found[0].outcome, found[2].outcome] == [Outcome.OK, Outcome.OK]
    assert asked(host) == {0: 1, 1: times, 2: 1}


def test_out_of_credit_ends_every_row_and_asks_no_more(tmp_path: Path) -> None:
    """When the account is empty the rows that were not asked end as it says, so that the job pauses and loses none."""
    empty = Reply({"error": {"code": "insufficient_quota", "message": "add credit"}}, 429)
    with serving(answering(lambda seen: Reply(chat()) if row_of(seen) < 3 else empty)) as host:
        rows = openai_at(host.url, tmp_path / "spool")
        rows.submit(shard_of(tmp_path, 400), hold)
        found = answers(rows, ended(rows))
    assert len(found) == 400
    assert {found[line].cause for line in range(3, 400)} == {"out_of_credit"}
    assert {found[line].outcome for line in range(3)} == {Outcome.OK}
    assert max(asked(host).values()) == 1
    assert len(asked(host)) < 100


def test_a_refused_key_leaves_no_paid_row_in_doubt(tmp_path: Path) -> None:
    """Rows that a wrong key kept out were certainly not asked: with the right one they are, once, and none is missing."""
    good = threading.Event()
    refusal = Reply({"error": {"message": f"{KEY} is no key"}}, 401)
    with serving(answering(lambda seen: Reply(chat()) if good.is_set() else refusal)) as host:
        rows = openai_at(host.url, tmp_path / "spool")
        rows.submit(shard_of(tmp_path, 30), hold)
        error = stops_with(rows, KeyRefused)
        assert KEY not in str(error)
        good.set()
        host.seen.clear()
        found = answers(rows, ended(rows))
    assert {answer.outcome for answer in found.values()} == {Outcome.OK}
    assert asked(host) == dict.fromkeys(range(30), 1)


def test_a_host_that_went_away_leaves_no_paid_row_in_doubt(tmp_path: Path) -> None:
    """Rows that no connection was made for were not sent; when the host is back they are asked."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    folder = Folder(tmp_path / "spool", TOKEN)
    rows = openai_at(f"http://127.0.0.1:{port}", tmp_path / "spool")
    shard = shard_of(tmp_path, 20)
    folder.create(
        rows.encode(shard.custom_id(n), line, shard.endpoint)
        for n, line in enumerate(shard.path.read_bytes().splitlines())
    )
    rows._crew.start(folder)
    stops_with(rows, Unreachable)
    with serving(answering()) as host:
        again = openai_at(host.url, tmp_path / "spool")
        found = answers(again, ended(again))
    assert {answer.outcome for answer in found.values()} == {Outcome.OK}


CHILD = """
import sys, time
from pathlib import Path
from canwait.providers.openai import OpenAI
from canwait.providers.paid import paid_rows
from canwait.types import ShardFile, Tier
url, spool, path, rows = sys.argv[1:]
provider = paid_rows(OpenAI("sk-paid", url), Tier.STANDARD, {}, Path(spool))
shard = ShardFile(token=Path(path).stem, path=Path(path), n_rows=int(rows), endpoint="/v1/chat/completions", model="m", window_s=1)
provider.submit(shard, lambda: None)
while not provider.poll(shard.token).status.ended:
    time.sleep(0.01)
"""


def test_after_a_kill_no_paid_row_is_asked_twice(tmp_path: Path) -> None:
    """Killed in the middle: what is on disk is kept, what may have been asked is missing, the rest is asked, nothing twice."""
    shard, n_rows = shard_of(tmp_path, 400), 400
    folder = Folder(tmp_path / "spool", TOKEN)

    def slowly(seen: Seen) -> Reply:
        time.sleep(0.03)
        return Reply(chat())

    with serving(answering(slowly)) as host:
        command = [sys.executable, "-c", CHILD, f"{host.url}/v1", str(tmp_path / "spool"), str(shard.path), str(n_rows)]
        with subprocess.Popen(command) as process:
            until(lambda: True if len(folder.answered()[0]) >= 60 else None)
            process.send_signal(signal.SIGKILL)
        kept = folder.answered()[0]
        time.sleep(0.1)  # what is in flight arrives
        before = set(asked(host))
        rows = openai_at(host.url, tmp_path / "spool")
        found = answers(rows, ended(rows))
    times = asked(host)
    missing = {line for line, answer in found.items() if answer.outcome is Outcome.MISSING}
    assert len(found) == n_rows
    assert max(times.values()) == 1
    assert {line for line, answer in found.items() if answer.outcome is Outcome.OK} >= kept
    assert before - kept <= missing
    assert missing
    assert len(missing) < 300
    assert set(times) == set(range(n_rows)) - (missing - before)


def test_a_cancel_keeps_what_was_paid_and_leaves_nothing_in_doubt(tmp_path: Path) -> None:
    """Rows in flight are answered, the others cancelled: announced rows that were not asked are not counted as missing."""

    def slowly(seen: Seen) -> Reply:
        time.sleep(0.05)
        return Reply(chat())

    with serving(answering(slowly)) as host:
        rows = openai_at(host.url, tmp_path / "spool")
        rows.submit(shard_of(tmp_path, 200), hold)
        until(lambda: True if len(asked(host)) >= 10 else None)
        rows.cancel(TOKEN)
        batch = ended(rows)
        found = answers(rows, batch)
    assert batch.status is BatchStatus.CANCELLED
    assert {line for line, answer in found.items() if answer.outcome is Outcome.OK} == set(asked(host))
    assert {answer.outcome for answer in found.values()} == {Outcome.OK, Outcome.CANCELLED}


@given(
    steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 40), min_size=1)), max_size=8),
    cut=st.integers(0, 60),
)
def test_what_may_have_been_asked_is_never_forgotten(
    steps: list[tuple[bool, set[int]]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Announced rows are read back as announced, those taken back are not, and a torn tail costs the tail alone."""
    folder = Folder(tmp_path_factory.mktemp("asked"), TOKEN)
    folder.path.mkdir()
    wanted: set[int] = set()
    marks: list[tuple[int, set[int]]] = [(0, set())]
    record = Asked(folder)
    path = folder.path / "asked"
    for about_to, lines in steps:
        if about_to:
            record.about_to(sorted(lines))
            wanted |= lines
        else:
            record.were_not(sorted(lines & wanted))
            wanted -= lines
        marks.append((path.stat().st_size, set(wanted)))
    record.close()
    again = Asked(folder)
    again.close()
    assert again.lines == wanted
    os.truncate(path, max(0, path.stat().st_size - cut))
    size = path.stat().st_size
    torn = Asked(folder)
    torn.close()
    whole, known = max((mark for mark in marks if mark[0] <= size), key=lambda mark: mark[0])
    if whole == size:
        assert torn.lines == known or any(mark == (size, torn.lines) for mark in marks)


def test_two_spools_are_two_accounts(tmp_path: Path) -> None:
    """On another machine, whose spool is another, a paid shard is on another account, and so is never sent again there."""
    here, there = (openai_at("http://127.0.0.1:1", tmp_path / name) for name in ("here", "there"))
    again = openai_at("http://127.0.0.1:1", tmp_path / "here")
    assert here.account == again.account != there.account
    assert KEY not in here.account


def test_paid_rows_are_opened_by_their_tier(tmp_path: Path) -> None:
    """The registry opens a provider's row-by-row tiers by name, and names what is wrong with a setting."""
    env = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
    for provider, tier in (("openai", Tier.FLEX), ("openai", Tier.STANDARD), ("anthropic", Tier.STANDARD)):
        opened = open_provider(name_of(provider, tier), env, spool=tmp_path)
        assert isinstance(opened, RowByRow)
        assert (opened.name, opened.limits("m").max_rows) == (provider, 500)
    assert name_of("openai", Tier.BATCH) == "openai"
    with pytest.raises(SpecError) as caught:
        open_provider("openai/flex", {**env, "CANWAIT_CONCURRENCY": "x"}, spool=tmp_path)
    assert [problem.file for problem in caught.value.problems] == ["CANWAIT_CONCURRENCY"]
