"""Rows asked one by one, behind the six verbs: class A. A batch is a folder that outlives us, and its id is our token.

Whoever submits or polls a batch that no living process is asking goes on with it, and a row that has an answer is never
asked again. Of what is free (`own`) a row whose answer was lost is asked again; of what is paid (`standard`, `flex`) it
ends as lost, with its money held, and the engine asks again under a reservation of its own (docs/decisions/0007). A host
that has gone away stops the rows and fails none of them.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx2
import orjson

from ..errors import BatchUnknown, Busy, CanwaitError, KeyRefused, Rejected, Unreachable
from ..types import Answer, Batch, BatchStatus, Limits, MarkClass, Plain, ShardFile
from . import Guard
from .crew import Ask, Crew, Stopped, Told, cancel_unasked
from .http import encoded_lines, error_of, no_credit, parse, retry_after_s, tidy
from .openai import decode_line, encode_line
from .posting import NotSent, Poster, Reply, ReplyLost, TimedOut, TooLong, poster
from .pressure import Pressure, used_up_s
from .spool import Folder, Row, answer_line

CONNECT_TIMEOUT_S = 10.0
_PASSING = frozenset({408, 409, 425, 429})  # and every 5xx
_TOO_MANY = frozenset({429, 503, 529})  # refused unread (providers.md 4: never charged)
_PROVES_NOTHING = frozenset({408, 409, 425, 499, 502, 504})  # of a request that spends: it may have been carried out
_REMAINING = frozenset({b"x-ratelimit-remaining-requests", b"anthropic-ratelimit-requests-remaining"})
_OUR_WORDS = b'","response":null,"error":'  # how a line begins that no host had a part in, behind its custom id


class Shape(Protocol):
    """How a host's replies are kept and read."""

    def line(self, row: Row, status: int, body: bytes) -> bytes:
        """`body` is JSON on one line."""
        ...

    def decode(self, line: bytes) -> Answer: ...

    def plain(self, line: bytes) -> Plain | None: ...


@dataclass(frozen=True, slots=True)
class Host:
    """Where rows are asked, and on what terms."""

    name: str
    account: str
    base_url: str | Callable[[], str]  # ends in /v1; a callable is asked whenever rows are about to be; it may start it
    headers: Mapping[str, str]
    shape: Shape
    variable: str  # where the key comes from, for messages
    key: str | None
    paid: bool
    start: int  # rows in flight over all batches: at first, and at most
    most: int
    max_rows: int  # of a batch
    adds: bytes = b""  # goes to the end of every body: b',"service_tier":"flex"'
    settle_s: int = 1
    timeout_s: float = 600.0
    near: bool = False  # on this machine, where no proxy reaches


class RowByRow:
    """Rows of the oldest batch are asked first, as many at a time as the host takes (pressure.py)."""

    mark = MarkClass.IDEMPOTENT

    def __init__(self, host: Host, spool: Path) -> None:
        self.name, self.account = host.name, host.account
        self._host, self._spool = host, spool
        self._client = httpx2.Client(
            headers={"user-agent": "canwait", **host.headers},
            timeout=httpx2.Timeout(host.timeout_s, connect=CONNECT_TIMEOUT_S),
            trust_env=not host.near,
        )
        weakref.finalize(self, self._client.close)
        pressure = Pressure(start=host.start, most=host.most)
        self._crew = Crew(partial(_asking, host), pressure, paid=host.paid, name=host.name)

    def limits(self, model: str) -> Limits:
        return Limits(
            max_rows=self._host.max_rows,  # money is reserved a block at a time (design.md 5a)
            max_bytes=200_000_000,
            max_line_bytes=200_000_000,
            max_enqueued_tokens=None,
            window_s=30 * 86_400,
            settle_s=self._host.settle_s,
            create_timeout_s=0,  # a create is a folder on this disk
            source="a folder on this disk, which does not expire",
            poll_s=0.5,
            max_in_flight=16,  # enough for a second of the fastest host; the others wait in the ledger, not on this disk
        )

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return encode_line(custom_id, body, endpoint)

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        folder = Folder(self._spool, shard.token)
        with self._disk():
            new = not folder.exists()
            if new and not self._crew.busy:
                self._probe()
            guard()
            if new:
                folder.create(self._checked(shard))
            self._crew.start(folder)
            return self._look(folder)

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        folder = Folder(self._spool, shard.token)
        with self._disk():
            return [self._look(folder)] if folder.exists() and shard.token not in shard.known else []

    def poll(self, batch_id: str) -> Batch:
        folder = self._folder(batch_id)
        with self._disk():
            if why := self._crew.why_stopped(folder):
                raise why
            batch = self._look(folder)
            if not self._crew.has(folder) and not batch.status.ended:
                if folder.cancelled:
                    cancel_unasked(folder, paid=self._host.paid)
                    return self._look(folder)
                self._probe()
                self._crew.start(folder)
            return batch

    def results(self, batch: Batch) -> Iterator[bytes]:
        with self._disk():
            yield from self._folder(batch.id).output()

    def decode(self, line: bytes) -> Answer:
        return decode_line(line) if _OUR_WORDS in line[:120] else self._host.shape.decode(line)

    def plain(self, line: bytes) -> Plain | None:
        return self._host.shape.plain(line)

    def cancel(self, batch_id: str) -> None:
        folder = self._folder(batch_id)
        with self._disk():
            if not self._look(folder).status.ended:
                folder.cancel()
                cancel_unasked(folder, paid=self._host.paid)

    # ------------------------------------------------------------------------------------------------------- the folder

    def _folder(self, batch_id: str) -> Folder:
        folder = Folder.of(self._spool, batch_id)
        if folder is None:
            raise BatchUnknown(f"{self.name}: no batch {tidy(batch_id, 100)!r} in {self._spool}")
        return folder

    def _look(self, folder: Folder) -> Batch:
        n_done, cancelled = self._crew.done(folder), folder.cancelled
        if n_done == folder.n_rows:
            status = BatchStatus.CANCELLED if cancelled else BatchStatus.COMPLETED
        else:
            status = BatchStatus.CANCELLING if cancelled else BatchStatus.RUNNING
        return Batch(folder.token, status, folder.created_at, folder.n_rows, n_done)

    def _checked(self, shard: ShardFile) -> Iterator[bytes]:
        """The lines to keep. Raises Rejected for a chat without messages, which some servers answer all the same."""
        chat = shard.endpoint.endswith("/chat/completions")
        for line, encoded in enumerate(encoded_lines(shard, self.encode)):
            suspect = chat and (b'"messages":[]' in encoded or b'"messages":[' not in encoded)
            if suspect and not json.loads(encoded)["body"].get("messages"):
                raise Rejected(f"{self.name}: request {line} of {shard.token} has no messages; nothing was sent")
            yield encoded

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """A disk that is full or broken stops the rows for now; nothing is lost by it but answers that were not written."""
        try:
            yield
        except OSError as exc:
            raise Busy(f"{self.name}: {self._spool} cannot be used: {exc.strerror or exc}") from exc

    def _probe(self) -> None:
        """Raises Unreachable, Busy or KeyRefused while rows cannot be asked; a server need not know /models."""
        try:
            reply = self._client.get(f"{_base(self._host)}/models", timeout=CONNECT_TIMEOUT_S)
        except httpx2.RequestError as exc:
            raise _gone(self._host, f"{type(exc).__name__}: {exc}") from exc
        if reply.status_code in (401, 403):
            raise _key_refused(self._host, reply.content)
        if reply.status_code == 429 or reply.status_code >= 500:
            what = f"{self.name} answered {reply.status_code}: {_words(self._host, reply.content)}"
            raise Busy(what, retry_after_s=retry_after_s(reply.headers))


# ---------------------------------------------------------------------------------------------------------- one row


@asynccontextmanager
async def _asking(host: Host) -> AsyncIterator[Ask]:
    wires: list[Poster] = []

    async def ask(row: Row) -> Told:
        try:
            base = _base(host) if isinstance(host.base_url, str) else await asyncio.to_thread(_base, host)
        except CanwaitError as exc:
            raise Stopped(exc) from exc
        if not wires:
            wires.append(poster(base, host.headers, timeout_s=host.timeout_s, connect_timeout_s=CONNECT_TIMEOUT_S))
        body = row.body[:-1] + host.adds + b"}" if host.adds and row.endpoint in _TIERED else row.body
        try:
            reply = await wires[0].post(base + row.endpoint.removeprefix("/v1"), body)
        except NotSent as exc:
            raise Stopped(_gone(host, str(exc))) from exc
        except ReplyLost as exc:
            return _lost(host, row, exc)
        return _told(host, row, reply)

    try:
        yield ask
    finally:
        for wire in wires:
            await wire.close()


_TIERED = frozenset({"/v1/chat/completions", "/v1/responses"})  # embeddings have no service tier


def _told(host: Host, row: Row, reply: Reply) -> Told:
    """What a whole reply means. Raises Stopped where it concerns every row."""
    status = reply.status
    if status == 200:
        stated = not _REMAINING.isdisjoint(reply.raw_headers)
        wait_s = used_up_s(reply.headers) or None if stated else None
        return Told(host.shape.line(row, 200, _one_line(reply.body)), wait_s=wait_s)
    if status in (401, 403):
        raise Stopped(_key_refused(host, reply.body))
    wait_s = retry_after_s(reply.headers)
    line = partial(host.shape.line, row, status, _one_line(reply.body))
    if not host.paid:
        again = status >= 500 or status in _PASSING
        return Told(line(), again, again and status in _TOO_MANY, wait_s)
    stated = parse(reply.body)
    if status == 402 or (status < 500 and no_credit(error_of(stated))):
        return Told(line(), ends=True)
    if status in _TOO_MANY:
        return Told(line(), again=True, pressed=True, wait_s=wait_s)
    if status in _PROVES_NOTHING or 200 < status < 300 or (status >= 500 and not isinstance(stated, dict)):
        return Told(_unknown(row, f"{status}: {_words(host, reply.body)}"))
    return Told(line())


def _lost(host: Host, row: Row, exc: ReplyLost) -> Told:
    """What a request without a whole reply means."""
    why = _clean(host, str(exc))
    if isinstance(exc, TooLong):
        return Told(host.shape.line(row, 200, _error(why)))
    if host.paid:
        return Told(_unknown(row, why))
    if isinstance(exc, TimedOut):
        return Told(answer_line(row, error={"code": "request_timeout", "message": why}))
    return Told(host.shape.line(row, 0, _error(why)), again=True)


def _unknown(row: Row, why: str) -> bytes:
    """A paid row that may have been carried out: it counts as missing, with its money held."""
    words = f"no answer came, and it may be billed all the same; asked again, it may be paid twice: {why}"
    return answer_line(row, error={"code": "reply_lost", "message": words})


def _base(host: Host) -> str:
    return (host.base_url if isinstance(host.base_url, str) else host.base_url()).rstrip("/")


def _gone(host: Host, why: str) -> Unreachable:
    return Unreachable(f"{host.name} at {host.account}: {_clean(host, why)}")


def _key_refused(host: Host, body: bytes) -> KeyRefused:
    return KeyRefused(provider=host.name, variable=host.variable, why=_words(host, body))


def _words(host: Host, body: bytes) -> str:
    stated = error_of(parse(body)).get("message")
    return _clean(host, str(stated or body[:200].decode("utf-8", "replace") or "nothing more"))


def _clean(host: Host, text: str) -> str:
    return tidy(text.replace(host.key, "[key]") if host.key else text, 500)


def _one_line(body: bytes) -> bytes:
    """A reply's JSON as it is, but on one line (raw line ends are layout there); what is not JSON, as an error."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        # NaN, which some servers write, is read by the other, and so is UTF-16, which cannot stand among our lines.
        if b"\0" in body or (parse(body) is None and body.strip() != b"null"):
            return _error(f"the reply is not JSON: {tidy(body[:2_000].decode(errors='replace'), 500)}")
    if b"\n" in body or b"\r" in body:
        return body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body


def _error(message: str) -> bytes:
    return orjson.dumps({"error": {"message": message}})
