"""Any OpenAI-compatible server of our own: class A. Rows are asked one by one, from a folder that outlives the process.

The batch id is our token, so a repeated create is the same batch. Whoever submits or polls a batch that no living process
is asking goes on with it: a row that has an answer is never asked again, a row whose answer was lost is, which an own
server does not bill. A host that has gone away stops the rows and fails none of them.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

import httpx2

from ..errors import BatchUnknown, Busy, KeyRefused, Problem, Rejected, SpecError, Unreachable
from ..types import Answer, Batch, BatchStatus, Limits, MarkClass, ShardFile
from . import Guard
from .http import encoded_lines, error_of, parse, read_key, retry_after_s, tidy
from .openai import decode_line, encode_line
from .spool import COMMIT_S, Answers, Folder, Row

TRIES = 5  # of one row, in place
CONNECT_TIMEOUT_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_PASSING = frozenset({408, 409, 425, 429})  # and every 5xx
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Told = bytes | Exception | None  # an answer line; why no row can be asked now; nothing: stopped before there was one


def own_from_env(env: Mapping[str, str], spool: Path) -> Own:
    """OWN_BASE_URL, OWN_API_KEY or OWN_API_KEY_FILE if the server wants a key, CANWAIT_OWN_CONCURRENCY. Raises SpecError."""
    base_url, concurrency = env.get("OWN_BASE_URL", "").strip(), env.get("CANWAIT_OWN_CONCURRENCY", "16")
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    problems = []
    if url.scheme not in ("http", "https") or not url.host:
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

    At most `concurrency` rows are in flight over all batches, the oldest batch first.
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
        self.account = name if callable(base_url) else httpx2.URL(base_url).netloc.decode("ascii")
        self._base_url, self._key, self._spool = base_url, key, spool
        self._concurrency, self._settle_s, self._max_rows, self._timeout_s = concurrency, settle_s, max_rows, timeout_s
        self._mutex = threading.Lock()  # over the next four
        self._thread: threading.Thread | None = None  # the only one that touches the runs
        self._queue: deque[Folder] = deque()
        self._runs: dict[str, _Run] = {}
        self._stopped: dict[str, Exception] = {}  # why a batch is not asked any more; told once, by poll
        self._told: SimpleQueue[tuple[_Run, int, Told]] = SimpleQueue()

    def limits(self, model: str) -> Limits:
        return Limits(
            max_rows=self._max_rows,  # money is reserved a block at a time (design.md 5a)
            max_bytes=200_000_000,
            max_line_bytes=200_000_000,
            max_enqueued_tokens=None,
            window_s=30 * 86_400,
            settle_s=self._settle_s,
            create_timeout_s=0,  # a create is a folder on this disk
            source="your own server: a folder on this disk, which never expires",
            poll_s=1.0,
        )

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return encode_line(custom_id, body, endpoint)

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        folder = Folder(self._spool, shard.token)
        try:
            if folder.exists():
                guard()
            else:
                self._probe()
                guard()
                folder.create(self._checked(shard))
        except OSError as exc:
            raise Busy(f"{self.name}: {folder.path} cannot be written: {exc.strerror}") from exc
        self._start(folder)
        return self._look(folder)

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        folder = Folder(self._spool, shard.token)
        return [self._look(folder)] if folder.exists() and shard.token not in shard.known else []

    def poll(self, batch_id: str) -> Batch:
        folder = self._folder(batch_id)
        with self._mutex:
            stopped = self._stopped.pop(batch_id, None)
        if stopped:
            raise stopped
        if not self._is_here(folder):
            if folder.cancelled:
                self._cancel_the_rest(folder)
            elif not self._look(folder).status.ended:
                self._probe()
                self._start(folder)
        return self._look(folder)

    def results(self, batch: Batch) -> Iterator[bytes]:
        yield from self._folder(batch.id).output()

    def decode(self, line: bytes) -> Answer:
        return decode_line(line)

    def cancel(self, batch_id: str) -> None:
        folder = self._folder(batch_id)
        if not self._look(folder).status.ended:
            folder.cancel()
            self._cancel_the_rest(folder)

    # ---------------------------------------------------------------------------------------------- looking and asking

    def _folder(self, batch_id: str) -> Folder:
        folder = Folder.of(self._spool, batch_id)
        if folder is None:
            raise BatchUnknown(f"{self.name}: no batch {tidy(batch_id, 100)!r} in {self._spool}")
        return folder

    def _look(self, folder: Folder) -> Batch:
        with self._mutex:
            run = self._runs.get(folder.token)
        n_done = len(run.answers.done) if run else len(folder.answered()[0])
        ended, cancelled = n_done == folder.n_rows, folder.cancelled
        over = BatchStatus.CANCELLED if cancelled else BatchStatus.COMPLETED
        under_way = BatchStatus.CANCELLING if cancelled else BatchStatus.RUNNING
        return Batch(folder.token, over if ended else under_way, folder.created_at, folder.n_rows, n_done)

    def _checked(self, shard: ShardFile) -> Iterator[bytes]:
        """The lines of the request file. Raises Rejected for a chat without messages, which some servers would answer."""
        for line, encoded in enumerate(encoded_lines(shard, self.encode)):
            body = parse(encoded)["body"]
            if shard.endpoint.endswith("/chat/completions") and not body.get("messages"):
                raise Rejected(f"{self.name}: request {line} of {shard.token} has no messages")
            yield encoded

    def _probe(self) -> None:
        """Raises Unreachable, Busy or KeyRefused while rows cannot be asked. A server need not know /models to be there."""
        try:
            reply = self._client.get(f"{self._base()}/models", timeout=CONNECT_TIMEOUT_S)
        except httpx2.RequestError as exc:
            raise self._gone(exc) from exc
        if reply.status_code in (401, 403):
            raise self._key_refused(reply)
        if reply.status_code == 429 or reply.status_code >= 500:
            what = f"{self.name} answered {reply.status_code}: {self._words(reply)}"
            raise Busy(what, retry_after_s=retry_after_s(reply.headers))

    def _base(self) -> str:
        return (self._base_url() if callable(self._base_url) else self._base_url).rstrip("/")

    @cached_property
    def _client(self) -> httpx2.Client:
        away = callable(self._base_url) or httpx2.URL(self._base_url).host in _LOOPBACK
        return httpx2.Client(
            headers={"user-agent": "canwait", **({"authorization": f"Bearer {self._key}"} if self._key else {})},
            timeout=httpx2.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self._concurrency),
            trust_env=not away,  # a proxy does not reach this machine's own loopback
        )

    def _ask(self, run: _Run, row: Row) -> None:
        """One row, in a thread of its own (0.1 ms, against a request of 10 ms and more)."""
        told: Told
        try:
            told = self._answer(row, run.stop)
        except Exception as exc:  # also a mistake of ours: poll raises it, rather than a thread dying of it unheard
            told = exc
        self._told.put((run, run.folder.line(row), told))

    def _answer(self, row: Row, stop: threading.Event) -> bytes | None:
        """The answer line of one row; passing trouble is met again in place, for nothing is billed."""
        url = self._base() + row.endpoint.removeprefix("/v1")
        for attempt in range(1, TRIES + 1):
            wait_s = None
            try:
                reply = self._client.post(url, content=row.body, headers={"content-type": "application/json"})
            except _NEVER_SENT as exc:
                raise self._gone(exc) from exc
            except httpx2.TimeoutException:
                words = f"no answer within {self._timeout_s:g} s"
                return _line(row, error={"code": "request_timeout", "message": words})
            except httpx2.RequestError as exc:
                line = _line(row, status=0, body=_error(f"{type(exc).__name__}: {self._clean(str(exc))}"))
            else:
                if reply.status_code in (401, 403):
                    raise self._key_refused(reply)
                line = _line(row, status=reply.status_code, body=_one_line(reply.content))
                if reply.status_code < 500 and reply.status_code not in _PASSING:
                    return line
                wait_s = retry_after_s(reply.headers)
            if wait_s is None:
                wait_s = min(_FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S)
            if attempt < TRIES and stop.wait(min(wait_s, self._timeout_s)):
                return None
        return line

    def _gone(self, exc: httpx2.RequestError) -> Unreachable:
        return Unreachable(f"{self.name} at {self.account}: {type(exc).__name__}: {self._clean(str(exc))}")

    def _key_refused(self, reply: httpx2.Response) -> KeyRefused:
        return KeyRefused(provider=self.name, variable="OWN_API_KEY", why=self._words(reply))

    def _words(self, reply: httpx2.Response) -> str:
        return self._clean(str(error_of(parse(reply.content)).get("message") or reply.reason_phrase))

    def _clean(self, text: str) -> str:
        return tidy(text.replace(self._key, "[key]") if self._key else text, 500)

    # ------------------------------------------------------------------------------------------------------- the crew

    def _is_here(self, folder: Folder) -> bool:
        """Whether this process is asking the batch's rows, or is about to."""
        with self._mutex:
            return folder.token in self._runs or any(folder.token == queued.token for queued in self._queue)

    def _start(self, folder: Folder) -> None:
        """See that the rows without an answer are asked, here or wherever they are being asked already."""
        if self._is_here(folder):
            return
        with self._mutex:
            self._queue.append(folder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"canwait-{self.name}", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        """Hand out rows and write down answers until there is nothing left to do."""
        while True:
            while sum(run.in_flight for run in self._runs.values()) < self._concurrency and self._hand_out_one():
                pass
            for run in list(self._runs.values()):
                self._see_to(run)
            with self._mutex:
                if not self._runs and not self._queue:
                    self._thread = None
                    return
            if not self._runs:
                continue
            try:
                run, line, told = self._told.get(timeout=COMMIT_S)
            except Empty:
                continue
            run.in_flight -= 1
            if isinstance(told, bytes):
                run.answers.add(line, told)
            elif told is not None:
                self._halt(told)

    def _hand_out_one(self) -> bool:
        """Ask one more row of the oldest batch that has one; False when none has."""
        for run in self._runs.values():
            row = run.next_row()
            if row:
                run.in_flight += 1
                threading.Thread(target=self._ask, args=(run, row), daemon=True).start()
                return True
        with self._mutex:
            folder = self._queue[0] if self._queue else None
        if folder is None:
            return False
        run_or_why = self._open(folder)
        with self._mutex:
            self._queue.popleft()
            if isinstance(run_or_why, _Run):
                self._runs[folder.token] = run_or_why
            elif run_or_why:
                self._stopped[folder.token] = run_or_why
        return self._hand_out_one()
