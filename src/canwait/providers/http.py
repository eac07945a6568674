"""What the HTTP adapters share: requests that are never repeated, and what a failure proves in each phase.

Nothing here follows a redirect, keeps a connection for a second request (a create that rides on a connection the server
has just closed would be ambiguous for nothing) or lets a key into an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import httpx2

from ..environment import secret
from ..errors import (
    Ambiguous,
    BatchUnknown,
    BlobError,
    Busy,
    CannotTell,
    CanwaitError,
    Garbled,
    KeyRefused,
    OutOfCredit,
    Problem,
    Rejected,
    SpecError,
    TooLarge,
    Unreachable,
)
from ..lines import read_lines
from ..types import ShardFile, Usage

SETTLE_S = 120.0  # providers.md 5: "none after 60-120 s settle"; no provider states a listing lag of its own
MAX_REPLY_BYTES = 16 * 2**20  # of a control call; a page of 100 batches is under 1 MB
MAX_ROW_TOKENS = 10**9  # a row that claims more is not believed; the longest context sold is 10**7
MAX_BATCH_TOKENS = 10**13
_IO_TIMEOUT_S = 60.0  # of one read or write of a call that spends nothing
_PIECE_BYTES = 64 * 1024
_MAX_PAGES = 1_000

# 4xx that say "not done". 408, 409, 425 and 499 may follow a request that was carried out, so they prove nothing.
_REFUSALS = frozenset({301, 307, 308, 400, 404, 405, 406, 407, 410, 411, 413, 414, 415, 422, 426, 431, 451})
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit", "billing_not_active", "billing_error", "enforced_spend_limit")

# httpcore2 raises these before the first byte of a request; ProxyError is a tunnel that was not opened.
_NEVER_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)

Json = Mapping[str, Any]


class Phase(StrEnum):
    """What was being done when something failed; decides what the failure proves."""

    UPLOAD = "upload"  # costs nothing and creates nothing that runs: a failure is always certain
    CREATE = "create"  # spends
    READ = "read"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Reply:
    body: Json
    retry_after_s: float | None


class Body:
    """A request body made piece by piece from disk; measured first, so that its Content-Length is exact."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]], content_type: str = "application/json") -> None:
        self.headers = {"content-type": content_type, "content-length": str(sum(map(len, pieces())))}
        self.deadline = math.inf  # time.monotonic() after which no further piece is handed over
        self._pieces = pieces
        self._left = int(self.headers["content-length"])

    @property
    def handed_over(self) -> bool:
        """Whether the last byte may have left: before that no server can have understood the request."""
        return self._left <= 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in _joined(self._pieces()):
            if time.monotonic() > self.deadline:
                raise httpx2.WriteTimeout("the request could not be sent whole in time")
            self._left -= len(piece)
            yield piece


def is_near(host: str) -> bool:
    """Whether a host name or address means this machine."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def json_body(value: Json) -> Body:
    return Body(lambda: iter([json.dumps(value, separators=(",", ":")).encode()]))


def encoded_lines(shard: ShardFile, encode: Callable[[str, bytes, str], bytes]) -> Iterator[bytes]:
    """The shard's lines as they go over the wire, without newlines. Raises BlobError unless there are `n_rows`."""
    n = 0
    for body in read_lines(shard.path):
        yield encode(shard.custom_id(n), body, shard.endpoint)
        n += 1
    if n != shard.n_rows:
        raise BlobError(f"the request file of {shard.token} holds {n} lines, not {shard.n_rows}; nothing was sent")


class Wire:
    """One account at one host."""

    def __init__(
        self,
        provider: str,
        base_url: str,
        headers: Mapping[str, str],
        *,
        variable: str,  # where the key comes from, for messages
        key: str,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        url = _checked_url(provider, base_url)
        self.provider = provider
        self.host = url.netloc.decode("ascii")
        self.base_url = str(url).rstrip("/")
        self.headers, self.variable, self.key = headers, variable, key
        self._client = httpx2.Client(
            base_url=url,
            headers={"user-agent": "canwait", "accept-encoding": "identity", **headers},
            limits=httpx2.Limits(max_keepalive_connections=0),
            follow_redirects=False,
            transport=transport,  # None: httpx2's own, with retries=0 and the proxies of the environment
        )

    def __repr__(self) -> str:
        return f"Wire({self.provider!r}, {self.host!r})"

    def account(self, *scope: str | None) -> str:
        """Tells accounts apart without telling the key.

        On this machine the port is no part of it: a server here that is started again is often found at another one.
        """
        host = self.host.rpartition(":")[0] or self.host if is_near(self._client.base_url.host) else self.host
        digest = hashlib.sha256("\0".join([self.key, *(s or "" for s in scope)]).encode()).hexdigest()
        return f"{host}#{digest[:12]}"

    def call(
        self,
        phase: Phase,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """One request, sent once. Raises what the failure proves in this phase.

        `timeout_s` bounds the sending as a whole: the last byte leaves within 1.25 x `timeout_s` or not at all.
        """
        timeout = httpx2.Timeout(_IO_TIMEOUT_S)
        if timeout_s is not None and body is not None:
            body.deadline = time.monotonic() + timeout_s
            timeout = httpx2.Timeout(connect=timeout_s / 2, write=timeout_s / 4, read=timeout_s, pool=timeout_s / 2)
        try:
            with self._client.stream(
                method, path, params=params, content=body, headers=body.headers if body else None, timeout=timeout
            ) as response:
                raw = _bounded(response)
        except httpx2.RequestError as exc:
            raise self._lost(phase, exc, body) from exc
        if raw is None:
            raise self._garbled(phase, f"its reply is longer than {MAX_REPLY_BYTES} bytes")
        if not response.is_success:
            raise self._refused(phase, response, raw)
        reply = parse(raw) if phase is not Phase.CANCEL else {}  # what a cancel did, the next poll says
        if not isinstance(reply, dict):
            raise self._garbled(phase, f"its reply is not a JSON object: {_shown(raw)}")
        return Reply(reply, retry_after_s(response.headers))

    def download(self, path: str) -> Iterator[bytes]:
        """A file, whole or an error, as sent; ends with a newline (a truncated last line stays a line of its own)."""
        last = b""
        try:
            with self._client.stream("GET", path, timeout=_IO_TIMEOUT_S) as response:
                if not response.is_success:
                    raise self._refused(Phase.READ, response, _bounded(response) or b"")
                for piece in response.iter_bytes():
                    last = piece[-1:] or last
                    yield piece
                promised = response.headers.get("content-length")
                if promised is not None and promised != str(response.num_bytes_downloaded):
                    raise Unreachable(f"{self.provider}: {response.num_bytes_downloaded} of {promised} bytes arrived")
                if promised is None and "transfer-encoding" not in response.headers and last not in (b"", b"\n"):
                    raise Unreachable(f"{self.provider}: the connection closed in the middle of a line")
        except httpx2.RequestError as exc:
            raise Unreachable(f"{self.provider}: the download broke off: {self._clean(str(exc))}") from exc
        if last not in (b"", b"\n"):
            yield b"\n"

    def listing(
        self, path: str, *, cursor: str, since: datetime | None, created: Callable[[Json], datetime]
    ) -> Iterator[Json]:
        """The rows of a newest-first listing created since then, page by page; `cursor` names the paging parameter.

        Reading stops early only in a listing that has been seen to descend: a host that lists oldest first is read to
        its end. Raises CannotTell where that end cannot be reached.
        """
        params = {"limit": "100"}
        seen: set[str] = set()
        newest: datetime | None = None
        oldest: datetime | None = None
        descending = True
        for _ in range(_MAX_PAGES):
            try:
                page = self.call(Phase.READ, "GET", path, params=params).body
                rows, more = page.get("data"), page.get("has_more")
                if not isinstance(rows, list) or not (more is None or isinstance(more, bool)):
                    raise Garbled("it holds no list of rows")
                found = [(identifier(row), created(row), row) for row in rows]
            except (Garbled, Rejected, BatchUnknown) as exc:
                raise CannotTell(f"{self.provider}: its list of batches cannot be read: {exc}") from exc
            for _, at, row in found:
                descending = descending and (oldest is None or at <= oldest)
                newest, oldest = newest or at, at
                if since is None or at >= since:
                    yield row
            if more is False or (more is None and not rows):
                return
            if since and newest and oldest and descending and newest > oldest < since:
                return
            if not found or found[-1][0] in seen:
                break
            seen.update(name for name, _, _ in found)
            params[cursor] = found[-1][0]
        raise CannotTell(f"{self.provider}: its list of batches does not come to an end")

    def _lost(self, phase: Phase, exc: httpx2.RequestError, body: Body | None) -> CanwaitError:
        what = f"{self.provider} at {self.host}: {type(exc).__name__}: {self._clean(str(exc))}"
        never = isinstance(exc, _NEVER_SENT)
        if phase is Phase.CREATE and not never and body is not None and not body.handed_over:
            return Unreachable(what, hint="smaller shards (`shard.max_rows`) or a longer CANWAIT_SETTLE_S give it time")
        if phase in (Phase.CREATE, Phase.CANCEL) and not never:
            return Ambiguous(what)
        return Unreachable(what)

    def _refused(self, phase: Phase, response: httpx2.Response, raw: bytes) -> CanwaitError:
        status, error = response.status_code, error_of(parse(raw))
        words = self._clean(str(error.get("message") or "") or _shown(raw))
        what = f"{self.provider} answered {status}: {words}"
        wait_s = retry_after_s(response.headers)
        if status in (401, 403):
            return KeyRefused(provider=self.provider, variable=self.variable, why=words)
        if status == 402 or (status < 500 and no_credit(error)):
            return OutOfCredit(what)
        if status == 429 or (status == 400 and error.get("code") == "token_limit_exceeded"):
            return Busy(what, retry_after_s=wait_s)
        if status == 404 and phase in (Phase.READ, Phase.CANCEL):
            return BatchUnknown(what)
        if status in _REFUSALS or (status == 409 and phase is Phase.CANCEL):
            if phase is Phase.READ:
                return Garbled(what)
            return TooLarge(what) if status == 413 else Rejected(what)
        return Ambiguous(what) if phase is Phase.CREATE else Busy(what, retry_after_s=wait_s)

    def _garbled(self, phase: Phase, why: str) -> CanwaitError:
        what = f"{self.provider} at {self.host}: {self._clean(why)}"
        if phase is Phase.CREATE:
            return Ambiguous(what)
        return Busy(what) if phase is Phase.UPLOAD else Garbled(what)

    def _clean(self, text: str) -> str:
        return tidy(text.replace(self.key, "[key]"), 500)


# ------------------------------------------------------------------------------------------------ keys and addresses


def read_key(variable: str, env: Mapping[str, str], *, provider: str) -> str:
    """What `variable` holds, or the file named by `{variable}_FILE`, without its newline. Raises KeyRefused."""
    try:
        key = secret(variable, env)
    except ValueError as error:
        raise KeyRefused(str(error), provider=provider, variable=variable, why=str(error)) from None
    if not key:
        raise KeyRefused(f"{provider} needs a key: {variable} is not set", provider=provider, variable=variable, why="")
    if not (key.isascii() and key.isprintable()) or " " in key:
        why = "it holds spaces or characters that no key has"
        raise KeyRefused(provider=provider, variable=variable, why=why)
    return key


def patience(settle_s: float | None) -> tuple[float, float]:
    """(settle, create timeout) in seconds; the create timeout stays well below settle, whatever settle is."""
    settle = SETTLE_S if settle_s is None else settle_s
    if not 0 < settle < 10**9:
        raise ValueError(f"settle_s must be above 0, not {settle_s}")
    return settle, min(60.0, settle / 2)


def _checked_url(provider: str, base_url: str) -> httpx2.URL:
    problem = "expected an address like https://host/path"
    try:
        url = httpx2.URL(base_url.strip())
        url.raw_host.decode("ascii").encode("idna")  # as the socket library will: empty and endless labels fail here
        if url.scheme in ("http", "https") and url.host and (url.port or 0) < 65_536:
            return url.copy_with(username=None, password=None)
    except (httpx2.InvalidURL, UnicodeError) as exc:
        problem = f"{exc}; {problem}"
    place = Problem(f"{provider.upper()}_BASE_URL", None, None, None, f"{base_url!r} is not an address: {problem}")
    raise SpecError([place], hint=f"correct {provider.upper()}_BASE_URL")


# ----------------------------------------------------------------------------------------------- reading hostile text


def parse(raw: bytes) -> Any:
    """The JSON value, or None: also for text that is not JSON, nests without end or has numbers of endless length."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def tidy(text: str, limit: int) -> str:
    """One printable line of at most `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in cut).strip()


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which UTF-8 cannot hold; a model's answer cut short may end in one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def error_of(reply: Any) -> Json:
    """The error object of a failed call or row: the innermost `error`, which may be plain text, or the reply itself."""
    error: Any = reply
    while isinstance(error, dict) and isinstance(error.get("error"), dict | str):
        error = error["error"]
    return error if isinstance(error, dict) else {"message": error if isinstance(error, str) else ""}


def no_credit(error: Json) -> bool:
    """Whether an error object says that the account is out of credit or at its spend limit."""
    details = error.get("details")
    names = f"{error.get('code')} {error.get('type')} {details.get('error_code') if isinstance(details, dict) else ''}"
    message = str(error.get("message")).lower()
    return any(name in names for name in _NO_CREDIT) or "credit balance is too low" in message


def identifier(row: Any) -> str:
    """The provider's id of a thing. Raises Garbled for what cannot be one."""
    name = row.get("id") if isinstance(row, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= 512 or not name.isprintable() or not name.strip("."):
        raise Garbled("a row of the reply has no usable id")
    return name


def segment(name: str) -> str:
    """A provider's id as one segment of a path."""
    return quote(name, safe="")


def moment(value: Any) -> datetime:
    """A time as providers state it: Unix seconds, also as text, or ISO 8601. Raises Garbled."""
    try:
        if isinstance(value, str) and not value.isdigit():
            at = datetime.fromisoformat(value)
            return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        if isinstance(value, int | str) and not isinstance(value, bool):
            return datetime.fromtimestamp(int(value), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise Garbled("a row of the reply does not say when it was created")


def count(value: Any, limit: int) -> int | None:
    """A count that can be believed, or None; JSON's true, 1.0 and -1 are not counts."""
    return value if type(value) is int and 0 <= value <= limit else None


def usage_of(total_input: Any, output: Any, cached: Any, written: Any, limit: int) -> Usage | None:
    """Usage if every number can be believed and the parts of the input fit into it; an absent part is 0."""
    parts = (0 if part is None else part for part in (cached, written))
    match [count(n, limit) for n in (total_input, output, *parts)]:
        case [int(i), int(o), int(c), int(w)] if c + w <= i:
            return Usage(i, o, c, w)
    return None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds, 0 to 86,400; a date counts from the reply's own Date."""
    stated = headers.get("retry-after", "").strip()
    try:
        wait = float(stated)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(stated) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(wait, 0.0), 86_400.0) if math.isfinite(wait) else None


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces worth a system call each."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


def _bounded(response: httpx2.Response) -> bytes | None:
    """The whole body, or None where it is longer than a control call's reply may be."""
    raw = bytearray()
    for piece in response.iter_bytes():
        raw += piece
        if len(raw) > MAX_REPLY_BYTES:
            return None
    return bytes(raw)


def _shown(raw: bytes) -> str:
    return tidy(raw[:200].decode("utf-8", "replace"), 120) or "nothing"
