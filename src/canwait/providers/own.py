"""Any OpenAI-compatible server of our own: class A. Rows are asked one by one, from a folder that outlives us.

The batch id is our token, so a repeated create is the same batch. Whoever submits or polls a batch that no living
process is asking goes on with it: a row that has an answer is never asked again; a row whose answer was lost is, which
a server of one's own does not bill. A host that has gone away stops the rows and fails none of them.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

from ..errors import BatchUnknown, Busy, KeyRefused, Problem, Rejected, SpecError, Unreachable
from ..types import Answer, Batch, BatchStatus, Limits, MarkClass, ShardFile
from . import Guard
from .crew import Crew, cancel_unasked
from .http import encoded_lines, error_of, parse, read_key, retry_after_s, tidy
from .openai import decode_line, encode_line
from .spool import Folder, Row, answer_line

TRIES = 5  # of one row, in place
CONNECT_TIMEOUT_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_PASSING = frozenset({408, 409, 425, 429})  # and every 5xx
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def own_from_env(env: Mapping[str, str], spool: Path) -> Own:
    """OWN_BASE_URL; OWN_API_KEY or OWN_API_KEY_FILE where the server wants a key; CANWAIT_OWN_CONCURRENCY, default 16.

    Raises SpecError for an address or a number that is none, KeyRefused for a key that cannot be one.
    """
    base_url, concurrency = env.get("OWN_BASE_URL", "").strip(), env.get("CANWAIT_OWN_CONCURRENCY") or "16"
    problems = []
    if not _is_address(base_url):
        what = f"{base_url!r} is not an address, expected one like http://host:8000/v1"
        problems.append(Problem("OWN_BASE_URL", None, None, None, what))
    if not (concurrency.isascii() and concurrency.isdigit() and 0 < int(concurrency) <= 4096):
        what = f"{concurrency!r} is not a number of requests, expected 1 to 4096"
        problems.append(Problem("CANWAIT_OWN_CONCURRENCY", None, None, None, what))
    if problems:
        raise SpecError(problems, hint="correct the environment (docs/local.md)")
    wants_key = env.get("OWN_API_KEY") or env.get("OWN_API_KEY_FILE")
    key = read_key("OWN_API_KEY", env, provider="own") if wants_key else None
    return Own(base_url, key, spool, concurrency=int(concurrency))


class Own:
    """`base_url` ends in /v1; a callable is asked for it whenever rows are about to be sent, and may start the server.

    At most `concurrency` rows are in flight over all batches, those of the oldest batch first.
    """

    mark = MarkClass.IDEMPOTENT

    def __init__(
        self,
        base_url: str | Callable[[], str],
        key: str | None,
        spool: Path,
        *,
        concurrency: int = 16,
        settle_s: int = 1,
        max_rows: int = 500,
        name: str = "own",
        timeout_s: float = 600.0,
    ) -> None:
        self.name = name
        self._base_url, self._key, self._spool = base_url, key, spool
        self._settle_s, self._max_rows, self._timeout_s = settle_s, max_rows, timeout_s
        url = None if callable(base_url) else httpx2.URL(base_url)
        near = url is None or url.host in _LOOPBACK
        # On this machine the port is no part of it: a server here is often found at another one when started again.
        self.account = name if url is None else url.host if near else url.netloc.decode("ascii")
        self._client = httpx2.Client(
            headers={"user-agent": "canwait", **({"authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_keepalive_connections=concurrency),
            trust_env=not near,  # a proxy cannot reach this machine's own loopback
        )
        weakref.finalize(self, self._client.close)
        self._crew = Crew(self._answer, concurrency=concurrency, name=name)

    def limits(self, model: str) -> Limits:
        return Limits(
            max_rows=self._max_rows,  # money is reserved a block at a time (design.md 5a)
            max_bytes=200_000_000,
            max_line_bytes=200_000_000,
            max_enqueued_tokens=None,
            window_s=30 * 86_400,
            settle_s=self._settle_s,
            create_timeout_s=0,  # a create is a folder on this disk
            source="a folder on this disk, which does not expire",
            poll_s=1.0,
        )

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return encode_line(custom_id, body, endpoint)

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        folder = Folder(self._spool, shard.token)
        with self._disk():
            new = not folder.exists()
            if new:
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
            if not self._crew.has(folder) and not self._look(folder).status.ended:
                if folder.cancelled:
                    cancel_unasked(folder)
                else:
                    self._probe()
                    self._crew.start(folder)
            return self._look(folder)

    def results(self, batch: Batch) -> Iterator[bytes]:
        with self._disk():
            yield from self._folder(batch.id).output()

    def decode(self, line: bytes) -> Answer:
        return decode_line(line)

    def cancel(self, batch_id: str) -> None:
        folder = self._folder(batch_id)
        with self._disk():
            if not self._look(folder).status.ended:
                folder.cancel()
                cancel_unasked(folder)

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
        for line, encoded in enumerate(encoded_lines(shard, self.encode)):
            if shard.endpoint.endswith("/chat/completions") and not json.loads(encoded)["body"].get("messages"):
                raise Rejected(f"{self.name}: request {line} of {shard.token} has no messages; nothing was sent")
            yield encoded

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """A disk that is full or broken stops the rows for now; nothing is lost by it but answers that were not written."""
        try:
            yield
        except OSError as exc:
            raise Busy(f"{self.name}: {self._spool} cannot be used: {exc.strerror or exc}") from exc

    # ------------------------------------------------------------------------------------------------------- the server

    def _probe(self) -> None:
        """Raises Unreachable, Busy or KeyRefused while rows cannot be asked; a server need not know /models."""
        try:
            reply = self._client.get(f"{self._base()}/models", timeout=CONNECT_TIMEOUT_S)
        except httpx2.RequestError as exc:
            raise self._gone(exc) from exc
        if reply.status_code in (401, 403):
            raise self._key_refused(reply)
        if reply.status_code == 429 or reply.status_code >= 500:
            what = f"{self.name} answered {reply.status_code}: {self._words(reply)}"
            raise Busy(what, retry_after_s=retry_after_s(reply.headers))

    def _answer(self, row: Row, stop: threading.Event) -> bytes | None:
        """A row's answer line; passing trouble is met again in place, for nothing is billed. None: stopped meanwhile.

        Raises Unreachable and KeyRefused, which concern every row.
        """
        for attempt in range(TRIES):
            url = self._base() + row.endpoint.removeprefix("/v1")
            wait_s: float | None = None
            try:
                reply = self._client.post(url, content=row.body, headers={"content-type": "application/json"})
            except _NEVER_SENT as exc:
                raise self._gone(exc) from exc
            except httpx2.TimeoutException:
                error = {"code": "request_timeout", "message": f"no answer within {self._timeout_s:g} s"}
                return answer_line(row, error=error)
            except httpx2.RequestError as exc:
                line = answer_line(row, status=0, body=_error(f"{type(exc).__name__}: {self._clean(str(exc))}"))
            else:
                if reply.status_code in (401, 403):
                    raise self._key_refused(reply)
                line = answer_line(row, status=reply.status_code, body=_one_line(reply.content))
                if reply.status_code < 500 and reply.status_code not in _PASSING:
                    return line
                wait_s = retry_after_s(reply.headers)
            if attempt == TRIES - 1:
                break
            if wait_s is None:
                wait_s = min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S)
            if stop.wait(min(wait_s, self._timeout_s)):
                return None
        return line

    def _base(self) -> str:
        return (self._base_url() if callable(self._base_url) else self._base_url).rstrip("/")

    def _gone(self, exc: httpx2.RequestError) -> Unreachable:
        return Unreachable(f"{self.name} at {self.account}: {type(exc).__name__}: {self._clean(str(exc))}")

    def _key_refused(self, reply: httpx2.Response) -> KeyRefused:
        return KeyRefused(provider=self.name, variable="OWN_API_KEY", why=self._words(reply))

    def _words(self, reply: httpx2.Response) -> str:
        return self._clean(str(error_of(parse(reply.content)).get("message") or reply.reason_phrase))

    def _clean(self, text: str) -> str:
        return tidy(text.replace(self._key, "[key]") if self._key else text, 500)


def _is_address(text: str) -> bool:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _one_line(reply: bytes) -> bytes:
    """A reply's JSON as it is, but on one line (raw line ends are layout there); what is not JSON, as an error."""
    try:
        json.loads(reply.decode())
    except (ValueError, RecursionError):
        return _error(f"the reply is not JSON: {tidy(reply[:2_000].decode(errors='replace'), 500)}")
    return reply.replace(b"\n", b" ").replace(b"\r", b" ")


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()
