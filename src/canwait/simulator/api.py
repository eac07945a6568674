"""The routes: what each request does, and where a scenario lets it go wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import orjson

from .clock import ManualClock
from .life import ENDED, SECOND, Batch
from .rows import NotAnswered, input_tokens
from .server import Dropped, Reply, Request, json_reply
from .shapes import ANTHROPIC, OPENAI, OPENAI_AT, Anthropic, OpenAI, Refusal
from .state import OverQuota, State
from .wire import BadRequest, array_items, parts

MAX_UPLOAD_BYTES = 200_000_000  # OpenAI's batch file
MAX_INLINE_BYTES = 256_000_000  # Anthropic's batch body
MAX_CALL_BYTES = 32_000_000
PATIENCE_S = 5.0  # how long a poll waits for an ended batch's rows to be answered before it says "finalizing"

_HTML = Reply(200, b"<!doctype html><title>Just a moment...</title>", content_type="text/html")
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)

# Before the effect; the rate limit, which carries a header, apart.
_REFUSED_CREATES = {
    "create_5xx_no_effect": "unavailable",
    "create_out_of_credit": "out_of_credit",
    "create_spend_cap": "spend_cap",
    "create_token_limit": "token_limit",
}

Shape = OpenAI | Anthropic
T = TypeVar("T")
Route = Callable[..., Reply]


class Api:
    """The simulated providers as one function of a request. `keys`: API key -> account; None lets everybody in."""

    def __init__(self, state: State, clock: object, keys: Mapping[str, str] | None) -> None:
        self._state, self._clock, self._keys = state, clock, keys
        self._closing = threading.Event()
        self._routes: list[tuple[str, re.Pattern[str], Route]] = [
            (method, re.compile(path.replace("{id}", "([^/]+)")), route)
            for method, path, route in (
                ("POST", "/v1/files", self._create_file),
                ("GET", "/v1/files", self._list_files),
                ("GET", "/v1/files/{id}", self._get_file),
                ("DELETE", "/v1/files/{id}", self._delete_file),
                ("GET", "/v1/files/{id}/content", self._file_content),
                ("POST", "/v1/batches", self._create_openai),
                ("GET", "/v1/batches", self._list_openai),
                ("GET", "/v1/batches/{id}", self._get_openai),
                ("POST", "/v1/batches/{id}/cancel", self._cancel_openai),
                ("POST", "/v1/chat/completions", self._call),
                ("POST", "/v1/responses", self._call),
                ("POST", "/v1/embeddings", self._call),
                ("POST", "/v1/messages/batches", self._create_anthropic),
                ("GET", "/v1/messages/batches", self._list_anthropic),
                ("GET", "/v1/messages/batches/{id}", self._get_anthropic),
                ("DELETE", "/v1/messages/batches/{id}", self._delete_anthropic),
                ("GET", "/v1/messages/batches/{id}/results", self._results_anthropic),
                ("POST", "/v1/messages/batches/{id}/cancel", self._cancel_anthropic),
                ("POST", "/v1/messages", self._call),
                ("POST", "/v1/messages/count_tokens", self._count_tokens),
                ("GET", "/v1/models", self._models),
                ("GET", "/v1/models/{id}", self._model),
            )
        ]

    def close(self) -> None:
        """Let go of held replies."""
        self._closing.set()

    def __call__(self, request: Request) -> Reply:
        now_us = self._state.tick()
        shape: Shape = OPENAI_AT.get(request.path, OPENAI)
        if request.path.startswith("/v1/messages") or "anthropic-version" in request.headers:
            shape = ANTHROPIC
        try:
            reply = self._control(request) or self._dispatch(shape, request)
        except Refusal as refusal:
            reply = json_reply(refusal.body, refusal.status, refusal.headers)
        ident = f"req_{self._state.ident('request', now_us, threading.get_ident())}"
        named = {"request-id" if shape is ANTHROPIC else "x-request-id": ident}
        return Reply(reply.status, reply.body, {**reply.headers, **named}, reply.content_type, reply.cut)

    def _control(self, request: Request) -> Reply | None:
        """What no provider has: the bill, and the hand on the clock."""
        match request.method, request.path:
            case "GET", "/sim/bill":
                return json_reply(self._bill())
            case "POST", "/sim/advance":
                seconds = _object(request).get("seconds")
                if not isinstance(self._clock, ManualClock):
                    return json_reply({"error": "this simulator's clock is not moved by hand"}, 409)
                if not isinstance(seconds, int | float) or seconds < 0:
                    return json_reply({"error": 'expected {"seconds": n}, n at least 0'}, 400)
                self._clock.advance(seconds)
                self._state.tick()
                return json_reply({"now": self._state.now().isoformat()})
        return None

    def _bill(self) -> dict[str, Any]:
        lines = self._state.bill()
        known = [line.micros for line in lines if line.micros is not None]
        return {
            "now": self._state.now().isoformat(),
            "micros": sum(known) if len(known) == len(lines) else None,  # null: a price is not known
            "batches": [
                {
                    "id": line.id,
                    "provider": line.provider,
                    "model": line.model,
                    "tier": line.tier,
                    "token": line.token,
                    "rows": line.n_rows,
                    "input_tokens": line.usage.input_tokens,
                    "cached_input_tokens": line.usage.cached_input_tokens,
                    "output_tokens": line.usage.output_tokens,
                    "micros": line.micros,
                }
                for line in lines
            ],
        }

    def _dispatch(self, shape: Shape, request: Request) -> Reply:
        for method, path, route in self._routes:
            found = path.fullmatch(request.path) if method == request.method else None
            if found:
                return route(shape, request, self._account(shape, request), *found.groups())
        return shape.refuse("not_found", f"Unknown request URL: {request.method} {request.path}.")

    def _account(self, shape: Shape, request: Request) -> str:
        bearer = (request.headers.get("authorization") or "").removeprefix("Bearer ")
        key = request.headers.get("x-api-key") or bearer
        account = "" if self._keys is None else self._keys.get(key)
        if account is None or self._state.strikes("bad_key"):
            shape.refuse("bad_key")
        return account

    # ---------------------------------------------------------------------------------------------------------- faults

    def _may_fail(self, shape: Shape, *faults: str) -> None:
        """A request that fails without an effect, in the way each fault's name says."""
        for fault in faults:
            if self._state.strikes(fault):
                match fault.rpartition("_")[2]:
                    case "429":
                        self._rate_limit(shape)
                    case "5xx":
                        shape.refuse("server_error")
                raise Dropped

    def _rate_limit(self, shape: Shape) -> NoReturn:
        seconds = self._state.scenario.retry_after.total_seconds()
        shape.refuse("rate_limit", **{"retry-after": f"{seconds:g}"})

    def _create(self, shape: Shape, effect: Callable[[], Batch], reply: Callable[[Batch], Reply]) -> Reply:
        """A create: what goes wrong before it, the effect, and what goes wrong after it."""
        strikes = self._state.strikes
        if strikes("create_closed"):
            raise Dropped
        if strikes("create_429"):
            self._rate_limit(shape)
        for fault, kind in _REFUSED_CREATES.items():
            if strikes(fault):
                shape.refuse(kind)
        try:
            batch = effect()
        except OverQuota as error:
            shape.refuse("token_limit", str(error))
        if strikes("lost_create_reply"):
            raise Dropped
        if strikes("create_5xx_live"):
            shape.refuse("server_error")
        if strikes("create_not_json"):
            return _HTML
        if strikes("late_create_reply"):
            self._closing.wait(self._state.scenario.hold.total_seconds())
        return reply(batch)

    def _polled(self, shape: Shape, reply: Callable[[], Reply]) -> Reply:
        self._may_fail(shape, "poll_429", "poll_5xx", "poll_reset")
        return _HTML if self._state.strikes("poll_not_json") else reply()

    def _download(self, shape: Shape, content: str | None, content_type: str) -> Reply:
        self._may_fail(shape, "results_5xx")
        body = self._state.path(content) if content else b""
        return Reply(200, body, {}, content_type, cut=self._state.strikes("results_cut"))

    # --------------------------------------------------------------------------------------------------- OpenAI: files

    def _create_file(self, shape: Shape, request: Request, account: str) -> Reply:
        if request.body.declared_bytes > MAX_UPLOAD_BYTES + 100_000:
            shape.refuse("too_large")
        fields: dict[str, str] = {}
        filename = None
        with self._state.writing() as (content, out):
            for part in parts(request.body.read, request.headers.get("content-type") or ""):
                if part.name == "file":
                    filename = part.filename or "upload"
                    out.writelines(part.content)
                else:
                    fields[part.name] = b"".join(part.content).decode("utf-8", "replace")
            if filename is None or not fields.get("purpose"):
                name = "purpose" if filename else "file"
                OPENAI.refuse("invalid", f"Missing required parameter: '{name}'.", param=name)
            self._may_fail(shape, "upload_5xx")
        now_us = self._state.now_us()
        seconds = fields.get("expires_after[seconds]", "")
        kept_us = self._state.retention_us(OPENAI) if fields["purpose"] == "batch" else None
        kept_us = int(seconds) * SECOND if seconds.isascii() and seconds.isdigit() else kept_us
        file_id, doc = self._state.add_file(
            account,
            content,
            purpose=fields["purpose"],
            filename=filename,
            expires_us=None if kept_us is None else now_us + kept_us,
        )
        return self._file(file_id, doc)

    def _file(self, file_id: str, doc: Mapping[str, Any]) -> Reply:
        return json_reply(OPENAI.file(file_id, doc, old_style=self._state.scenario.old_style))

    def _found_file(self, account: str, file_id: str) -> dict[str, Any]:
        doc = self._state.file(account, file_id)
        if doc is None:
            OPENAI.refuse("not_found", f"No such File object: {file_id}", param="id")
        return doc

    def _get_file(self, shape: Shape, request: Request, account: str, file_id: str) -> Reply:
        return self._file(file_id, self._found_file(account, file_id))

    def _delete_file(self, shape: Shape, request: Request, account: str, file_id: str) -> Reply:
        self._found_file(account, file_id)
        self._state.delete_file(account, file_id)
        return json_reply({"id": file_id, "object": "file", "deleted": True})

    def _file_content(self, shape: Shape, request: Request, account: str, file_id: str) -> Reply:
        return self._download(shape, self._found_file(account, file_id)["content"], "application/octet-stream")

    def _list_files(self, shape: Shape, request: Request, account: str) -> Reply:
        purpose = request.query.get("purpose")
        found = [(i, doc) for i, doc in self._state.files(account) if purpose in (None, doc["purpose"])]
        if request.query.get("order") == "asc":
            found.reverse()
        shown, more = _page(shape, found, request.query, lambda item: item[0], most=10_000, usual=10_000)
        old_style = self._state.scenario.old_style
        return _openai_list([OPENAI.file(i, doc, old_style=old_style) for i, doc in shown], more)

    # ------------------------------------------------------------------------------------------------- OpenAI: batches

    def _create_openai(self, shape: Shape, request: Request, account: str) -> Reply:
        def effect() -> Batch:
            asked = _object(request)
            doc = self._state.file(account, str(asked.get("input_file_id")))
            if doc is None or doc["purpose"] != "batch":
                words = f"Cannot find file {asked.get('input_file_id')}, or organization does not have access to it."
                OPENAI.refuse("invalid", words, param="file_id")
            served = OPENAI_AT.get(str(asked.get("endpoint")))
            if served is None:
                words = f"Invalid value: '{asked.get('endpoint')}'. This simulator serves {', '.join(OPENAI_AT)}."
                OPENAI.refuse("invalid", words, param="endpoint")
            if asked.get("completion_window") != "24h":
                words = f"Invalid value: '{asked.get('completion_window')}'. Value must be '24h'."
                OPENAI.refuse("invalid", words, param="completion_window")
            metadata = asked.get("metadata")
            if metadata is not None and not _is_metadata(metadata):
                words = "Invalid 'metadata': at most 16 pairs of text, keys up to 64 and values up to 512 characters."
                OPENAI.refuse("invalid", words, param="metadata")
            with self._state.path(doc["content"]).open("rb") as lines:
                return self._state.accept(
                    served,
                    account,
                    doc["content"],
                    served.rows(lines),
                    input_file_id=asked["input_file_id"],
                    metadata=metadata,
                )

        return self._create(shape, effect, self._openai_batch)

    def _openai_batch(self, batch: Batch) -> Reply:
        return json_reply(self._openai_object(batch))

    def _openai_object(self, batch: Batch, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        batch, phase = self._state.settled(batch, patience_s)
        return OPENAI.batch(batch, phase, self._state.now_us(), old_style=self._state.scenario.old_style)

    def _openai_found(self, account: str, batch_id: str) -> Batch:
        batch = self._state.batch("openai", account, batch_id)
        if batch is None:
            OPENAI.refuse("not_found", f"No batch found with id '{batch_id}'.")
        return batch

    def _get_openai(self, shape: Shape, request: Request, account: str, batch_id: str) -> Reply:
        return self._polled(shape, lambda: self._openai_batch(self._openai_found(account, batch_id)))

    def _cancel_openai(self, shape: Shape, request: Request, account: str, batch_id: str) -> Reply:
        batch = self._openai_found(account, batch_id)
        if self._state.strikes("cancel_deaf"):
            return self._openai_batch(batch)
        batch = self._state.cancel(batch)
        self._may_fail(shape, "cancel_5xx")
        if batch.cancel_us is None:
            phase = batch.phase(self._state.now_us())
            OPENAI.refuse("conflict", f"Cannot cancel a batch with status '{phase}'.")
        return self._openai_batch(batch)

    def _list_openai(self, shape: Shape, request: Request, account: str) -> Reply:
        self._may_fail(shape, "list_5xx")
        found = self._state.listed("openai", account)
        shown, more = _page(shape, found, request.query, lambda batch: batch.id, most=100, usual=20)
        return _openai_list([self._openai_object(batch, patience_s=0) for batch in shown], more)

    # ------------------------------------------------------------------------------------------------------- Anthropic

    def _create_anthropic(self, shape: Shape, request: Request, account: str) -> Reply:
        def effect() -> Batch:
            if request.body.declared_bytes > MAX_INLINE_BYTES:
                ANTHROPIC.refuse("too_large")
            with self._state.writing() as (content, out):
                for line in self._inline_rows(request):
                    out.write(line + b"\n")
            with self._state.path(content).open("rb") as lines:
                rows = (ANTHROPIC.unpack(orjson.loads(line)) for line in lines)
                return self._state.accept(ANTHROPIC, account, content, rows)

        return self._create(shape, effect, lambda batch: self._anthropic_batch(request, batch))

    def _inline_rows(self, request: Request) -> Iterator[bytes]:
        """Each request as one line. Refuses the whole batch for a bad custom id; bad `params` only fail their row."""
        seen: set[str] = set()
        try:
            for number, row in enumerate(array_items(request.body.read, "requests")):
                custom_id = row.get("custom_id") if isinstance(row, dict) else None
                if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
                    words = f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
                    ANTHROPIC.refuse("invalid", words)
                if custom_id in seen:
                    ANTHROPIC.refuse("invalid", f"requests.{number}.custom_id: '{custom_id}' is used twice")
                if not isinstance(row.get("params"), dict):
                    ANTHROPIC.refuse("invalid", f"requests.{number}.params: Field required")
                if number >= ANTHROPIC.max_rows:
                    ANTHROPIC.refuse("too_large", f"requests: at most {ANTHROPIC.max_rows} are allowed")
                seen.add(custom_id)
                yield orjson.dumps({"custom_id": custom_id, "params": row["params"]})
        except (BadRequest, orjson.JSONEncodeError) as error:
            ANTHROPIC.refuse("invalid", f"The request body is not valid JSON: {error}")
        if not seen:
            ANTHROPIC.refuse("invalid", "requests: at least one request is required")

    def _anthropic_object(self, request: Request, batch: Batch, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        batch, phase = self._state.settled(batch, patience_s)
        return ANTHROPIC.batch(batch, phase, request.host, self._state.archived_us(batch, ANTHROPIC))

    def _anthropic_batch(self, request: Request, batch: Batch, *, polled: bool = False) -> Reply:
        shown = self._anthropic_object(request, batch)
        again = {"retry-after": "10"} if polled and shown["processing_status"] != "ended" else {}  # as recorded
        return json_reply(shown, headers=again)

    def _anthropic_found(self, account: str, batch_id: str) -> Batch:
        batch = self._state.batch("anthropic", account, batch_id)
        if batch is None:
            ANTHROPIC.refuse("not_found", f"No batch found with id '{batch_id}'.")
        return batch

    def _get_anthropic(self, shape: Shape, request: Request, account: str, batch_id: str) -> Reply:
        def reply() -> Reply:
            return self._anthropic_batch(request, self._anthropic_found(account, batch_id), polled=True)

        return self._polled(shape, reply)

    def _results_anthropic(self, shape: Shape, request: Request, account: str, batch_id: str) -> Reply:
        batch, phase = self._state.settled(self._anthropic_found(account, batch_id), PATIENCE_S)
        if phase not in ENDED or batch.outcome is None:
            ANTHROPIC.refuse("not_found", f"Batch {batch_id} has not ended, so it has no results yet.")
        if self._state.archived_us(batch, ANTHROPIC) is not None:
            ANTHROPIC.refuse("not_found", f"The results of batch {batch_id} are no longer available.")
        return self._download(shape, batch.outcome["results"], "application/x-jsonl")

    def _cancel_anthropic(self, shape: Shape, request: Request, account: str, batch_id: str) -> Reply:
        batch = self._anthropic_found(account, batch_id)
        if self._state.strikes("cancel_deaf"):
            return self._anthropic_batch(request, batch)
        batch = self._state.cancel(batch)
        self._may_fail(shape, "cancel_5xx")
        if batch.cancel_us is None:
            ANTHROPIC.refuse("invalid", f"Batch {batch_id} has ended and cannot be canceled.")
        return self._anthropic_batch(request, batch)

    def _delete_anthropic(self, shape: Shape, request: Request, account: str, batch_id: str) -> Reply:
        batch, phase = self._state.settled(self._anthropic_found(account, batch_id), PATIENCE_S)
        if phase not in ENDED:
            ANTHROPIC.refuse("invalid", f"Batch {batch_id} is still in progress; cancel it first.")
        self._state.delete(batch)
        return json_reply({"id": batch_id, "type": "message_batch_deleted"})

    def _list_anthropic(self, shape: Shape, request: Request, account: str) -> Reply:
        self._may_fail(shape, "list_5xx")
        found = self._state.listed("anthropic", account)
        shown, more = _page(shape, found, request.query, lambda batch: batch.id, most=1000, usual=20)
        data = [self._anthropic_object(request, batch, patience_s=0) for batch in shown]
        return json_reply({"data": data, "has_more": more, **_ends(data)})

    # ----------------------------------------------------------------------------------------------------- synchronous

    def _call(self, shape: Shape, request: Request, account: str) -> Reply:
        self._may_fail(shape, "sync_429", "sync_5xx")
        body = _object(request)
        if body.get("stream"):
            shape.refuse("invalid", "Streaming is not simulated.", param="stream")
        result, reply = self._state.call(shape, body)
        if isinstance(result, NotAnswered):
            shape.refuse("server_error" if result.kind == "timeout" else result.kind, result.message)
        self._may_fail(shape, "sync_reset")
        return Reply(200, reply)

    def _count_tokens(self, shape: Shape, request: Request, account: str) -> Reply:
        return json_reply({"input_tokens": input_tokens(shape.name, _object(request))})

    def _models(self, shape: Shape, request: Request, account: str) -> Reply:
        data = [shape.model(name) for name in shape.models]
        if shape is not ANTHROPIC:
            return json_reply({"object": "list", "data": data})
        return json_reply({"data": data, "has_more": False, **_ends(data)})

    def _model(self, shape: Shape, request: Request, account: str, name: str) -> Reply:
        return json_reply(shape.model(name))


def _object(request: Request) -> dict[str, Any]:
    try:
        found = orjson.loads(request.body.all(MAX_CALL_BYTES))
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadRequest("The request body is not a JSON object")
    return found


def _page(
    shape: Shape, found: Sequence[T], query: Mapping[str, str], key: Callable[[T], str], *, most: int, usual: int
) -> tuple[Sequence[T], bool]:
    """(the page, whether more follow in its direction). `found` is in the order it is listed."""
    text = query.get("limit", str(usual))
    limit = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= limit <= most:
        shape.refuse("invalid", f"Invalid 'limit': expected a value between 1 and {most}.", param="limit")
    keys = [key(item) for item in found]
    after, before = query.get("after") or query.get("after_id"), query.get("before_id")
    cursor = after or before
    if cursor and cursor not in keys:
        shape.refuse("invalid", f"Invalid cursor: '{cursor}'.", param="after")
    if before and not after:
        end = keys.index(before)
        return found[max(0, end - limit) : end], end > limit
    start = keys.index(after) + 1 if after else 0
    return found[start : start + limit], start + limit < len(found)


def _openai_list(data: list[dict[str, Any]], more: bool) -> Reply:
    return json_reply({"object": "list", "data": data, "has_more": more, **_ends(data)})


def _ends(data: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    return {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 16
        and all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in value.items())
    )
