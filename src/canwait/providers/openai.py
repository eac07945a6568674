"""OpenAI's Files and Batches, and any host of that shape: class B, our token rides in the metadata and the file name.

Facts: OpenAI's own SDK 3.54.0 and OpenAPI file, documentation and live captures read until 2026-11-21.
"""

from __future__ import annotations

import json
import math
import struct
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import Ambiguous, BatchUnknown, Busy, CannotTell, Garbled, Rejected
from ..types import Answer, Batch, BatchStatus, Limits, MarkClass, Outcome, Plain, ShardFile, Usage
from . import Guard
from .decoding import read_line
from .http import (
    MAX_BATCH_TOKENS,
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
    json_body,
    moment,
    no_credit,
    patience,
    segment,
    tidy,
    usage_of,
)

if TYPE_CHECKING:
    import httpx2

BASE_URL = "https://api.openai.com/v1"
_SKEW = timedelta(seconds=300)  # their clock against ours

_STATUSES = {
    "validating": BatchStatus.RUNNING,
    "in_progress": BatchStatus.RUNNING,
    "finalizing": BatchStatus.RUNNING,
    "cancelling": BatchStatus.CANCELLING,
    "canceling": BatchStatus.CANCELLING,
    "completed": BatchStatus.COMPLETED,
    "failed": BatchStatus.FAILED,
    "expired": BatchStatus.EXPIRED,
    "cancelled": BatchStatus.CANCELLED,
    "canceled": BatchStatus.CANCELLED,
}
_UNEXECUTED = {
    "batch_expired": (Outcome.EXPIRED, "expired"),
    "batch_cancelled": (Outcome.CANCELLED, "cancelled"),
    "request_timeout": (Outcome.FAILED, "timeout"),
    "reply_lost": (Outcome.MISSING, "missing"),  # ours, of a row that is asked by itself and paid (rows.py)
}
_HTTP_CAUSES = {
    401: "permission",
    402: "out_of_credit",
    403: "permission",
    404: "not_found",
    408: "timeout",
    409: "server_error",  # passing trouble, providers.md 6
    413: "too_large",
    429: "rate_limit",
    529: "overloaded",
}
_RESPONSE_ERRORS = {  # openai-python 3.54.0, ResponseError; the other codes there are about the request
    "server_error": "server_error",
    "rate_limit_exceeded": "rate_limit",
    "vector_store_timeout": "timeout",
    "bio_policy": "content_filter",
    "misalignment_policy_violation": "content_filter",
}
_STOPPED = {"length": "length", "max_output_tokens": "length", "content_filter": "content_filter"}


class OpenAI:
    name = "openai"
    mark = MarkClass.FINDABLE

    def __init__(
        self,
        key: str,
        base_url: str = BASE_URL,
        *,
        settle_s: float | None = None,
        organization: str | None = None,
        project: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {key}"}
        headers |= {"openai-organization": organization} if organization else {}
        headers |= {"openai-project": project} if project else {}
        self._wire = Wire(self.name, base_url, headers, variable="OPENAI_API_KEY", key=key, transport=transport)
        self._settle_s, self._create_timeout_s = patience(settle_s)
        self.account = self._wire.account(organization, project)

    def limits(self, model: str) -> Limits:
        return Limits(
            max_rows=50_000,
            max_bytes=200_000_000,
            max_line_bytes=200_000_000,  # no limit of its own is documented
            max_enqueued_tokens=None,  # per model and usage tier, shown in the account only
            window_s=86_400,
            settle_s=math.ceil(self._settle_s),
            create_timeout_s=int(self._create_timeout_s),
            source="OpenAI batch guide, read 2026-11-21",
        )

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return encode_line(custom_id, body, endpoint)

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        upload = Body(lambda: _multipart(shard, self.encode), f"multipart/form-data; boundary={_boundary(shard)}")
        try:
            file_id = identifier(self._wire.call(Phase.UPLOAD, "POST", "/files", upload).body)
        except Garbled as exc:
            raise Busy(f"openai: the upload was not confirmed: {exc}") from exc
        create = {
            "input_file_id": file_id,
            "endpoint": shard.endpoint,
            "completion_window": "24h",  # the only one there is
            "metadata": {"canwait_token": shard.token},
        }
        body = json_body(create)
        guard()
        reply = self._wire.call(Phase.CREATE, "POST", "/batches", body, timeout_s=self._create_timeout_s)
        try:
            return _batch(reply.body, reply.retry_after_s)
        except Garbled as exc:
            raise Ambiguous(f"openai: the reply to the create names no batch: {exc}") from exc

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        since = shard.first_try - _SKEW if shard.first_try else None
        found: dict[str, Batch] = {}
        for row in self._wire.listing("/batches", cursor="after", since=since, created=_created):
            if row["id"] not in shard.known and self._is_ours(row, shard):
                try:
                    found[row["id"]] = _batch(row, None)
                except Garbled as exc:
                    raise CannotTell(f"openai: batch {row['id']} is ours but cannot be read: {exc}") from exc
        return sorted(found.values(), key=lambda batch: (batch.created_at, batch.id))

    def poll(self, batch_id: str) -> Batch:
        reply = self._wire.call(Phase.READ, "GET", f"/batches/{segment(batch_id)}")
        batch = _batch(reply.body, reply.retry_after_s)
        if batch.id != batch_id:
            raise Garbled(f"openai: asked for batch {batch_id}, told about {batch.id}")
        return batch

    def results(self, batch: Batch) -> Iterator[bytes]:
        begun = False
        for file_id in batch.outputs:
            try:
                for piece in self._wire.download(f"/files/{segment(file_id)}/content"):
                    begun = True
                    yield piece
            except BatchUnknown as exc:
                if begun:  # what is there is paid for; only all of it gone is gone
                    raise Garbled(f"openai: batch {batch.id} has one of its files and not the other: {exc}") from exc
                raise

    def decode(self, line: bytes) -> Answer:
        return decode_line(line)

    def plain(self, line: bytes) -> Plain | None:
        return plain_line(line)

    def cancel(self, batch_id: str) -> None:
        try:
            self._wire.call(Phase.CANCEL, "POST", f"/batches/{segment(batch_id)}/cancel")
        except Rejected as exc:
            status = self.poll(batch_id).status
            if not status.ended and status is not BatchStatus.CANCELLING:
                raise Busy(f"openai does not cancel batch {batch_id} now: {exc}") from exc

    def _is_ours(self, row: Json, shard: ShardFile) -> bool:
        """By metadata; where a host keeps none, by the input file's name. Raises CannotTell if that cannot be read."""
        metadata, file_id = row.get("metadata"), row.get("input_file_id")
        if isinstance(metadata, dict) and metadata:
            return metadata.get("canwait_token") == shard.token
        if not isinstance(file_id, str) or not file_id:
            raise CannotTell(f"openai: batch {row['id']} has neither metadata nor an input file")
        try:
            file = self._wire.call(Phase.READ, "GET", f"/files/{segment(file_id)}").body
        except (BatchUnknown, Garbled) as exc:
            what = f"openai: batch {row['id']} has no metadata, and its input file cannot be read: {exc}"
            raise CannotTell(what) from exc
        return file.get("filename") == _file_name(shard)


def encode_line(custom_id: str, body: bytes, endpoint: str) -> bytes:
    """One line of a request file in OpenAI's shape, without the newline."""
    return b'{"custom_id":%s,"method":"POST","url":%s,"body":%s}' % (
        json.dumps(custom_id).encode(),
        json.dumps(endpoint).encode(),
        body,
    )


def decode_line(line: bytes) -> Answer:
    """One line of an output or error file in OpenAI's shape."""
    match read_line(line):
        case {"custom_id": str(name), "error": {"code": str(code)} as error} if code in _UNEXECUTED:
            outcome, cause = _UNEXECUTED[code]
            return Answer(encodable(name), outcome, cause, _words(error), None, None, None)
        case {"custom_id": str(name), "response": {} as response}:
            return _answered(encodable(name), response)
        case {"custom_id": str(name), "error": {} as error}:
            return _failed(encodable(name), "out_of_credit" if no_credit(error) else "unknown", _words(error))
        case {"custom_id": str(name)}:
            return _failed(encodable(name), "malformed", "neither a response nor an error")
    return _failed("", "malformed", "not a result line")


def plain_line(line: bytes) -> Plain | None:
    """A chat completion that stopped of itself, as `decode_line` reads it; None for every other line."""
    try:
        row = orjson.loads(line)
        name, response = row["custom_id"], row["response"]
        body, status = response["body"], response["status_code"]
        choice, usage, model = body["choices"][0], body["usage"], body["model"]
        message = choice["message"]
        text, details = message["content"], usage.get("prompt_tokens_details") or {}
        n_input, n_output = usage["prompt_tokens"], usage["completion_tokens"]
        cached, written = details.get("cached_tokens", 0), details.get("cache_write_tokens", 0)
        if (
            type(name) is type(text) is type(model) is str
            and type(status) is type(n_input) is type(n_output) is type(cached) is type(written) is int
            and status == 200
            and choice.get("finish_reason") == "stop"
            and model
            and text.strip()
            and not message.get("refusal")
            and row.get("error") is None
            and 0 <= n_output <= MAX_ROW_TOKENS
            and cached >= 0 <= written
            and cached + written <= n_input <= MAX_ROW_TOKENS
        ):
            return name, text, model, n_input, n_output, cached, written
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        pass
    return None


def _created(row: Json) -> Any:
    return moment(row.get("created_at"))


def _batch(row: Json, retry_after_s: float | None) -> Batch:
    """A batch object. Raises Garbled without id, creation time or status; an unknown status counts as running."""
    stated = row.get("status")
    if not isinstance(stated, str):
        raise Garbled("openai: the batch has no status")
    status = _STATUSES.get(stated.lower())
    counts = row["request_counts"] if isinstance(row.get("request_counts"), dict) else {}
    done = [count(counts.get(name), 10**9) for name in ("completed", "failed")]
    code, words = _first_error(row.get("errors"))
    files = row.get("output_file_id"), row.get("error_file_id")  # null or "" where a file would be empty
    return Batch(
        id=identifier(row),
        status=status or BatchStatus.RUNNING,
        created_at=_created(row),
        n_rows=count(counts.get("total"), 10**9),
        n_done=sum(n for n in done if n is not None) if None not in done else None,
        # While it runs, the bill reads 0.
        usage=_usage(row.get("usage"), MAX_BATCH_TOKENS) if status and status.ended else None,
        outputs=tuple(dict.fromkeys(f for f in files if f and isinstance(f, str))),
        error_code=code,
        error=words if status else f"unknown status {tidy(stated, 100)!r}",
        retry_after_s=retry_after_s,
    )


def _first_error(errors: Any) -> tuple[str | None, str | None]:
    """Validation stops at the first bad line, so there is one error or none."""
    listed = errors.get("data") if isinstance(errors, dict) else None
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else None
    if first is None:
        return None, None
    return tidy(str(first.get("code") or "unknown"), 100), tidy(str(first.get("message") or ""), 2_000)


def _answered(custom_id: str, response: Json) -> Answer:
    """A row that got an HTTP reply: a usable answer, an unusable one that is billed all the same, or an error."""
    status, body = response.get("status_code", 0), response.get("body")
    body = body if isinstance(body, dict) else {}
    usage = _usage(body.get("usage"), MAX_ROW_TOKENS)
    model = _text(body.get("model"))
    if status != 200 or type(status) is not int:
        error = error_of(body)
        return _failed(
            custom_id, _http_cause(status, error), tidy(f"{status}: {_words(error)}", 2_000), usage=usage, model=model
        )
    if isinstance(items := body.get("data"), list) and "choices" not in body:
        vector = _vector(items)
        if isinstance(vector, bytes):
            return Answer(custom_id, Outcome.OK, None, None, None, usage, model, vector=vector)
        return _failed(custom_id, "malformed", vector, usage=usage, model=model)
    text, stop, refusal = _content(body)
    cause, detail = _STOPPED.get(stop or ""), refusal
    if cause is None and isinstance(body.get("output"), list) and body.get("status", "completed") != "completed":
        cause, detail = _unfinished(body)
    elif cause is None and refusal:
        cause = "refused"
    elif cause is None and text is None:
        cause = "malformed"
    elif cause is None and not (text or "").strip():
        cause = "empty"
    outcome = Outcome.FAILED if cause else Outcome.OK
    return Answer(custom_id, outcome, cause, tidy(detail, 2_000) if detail else None, text, usage, model, stop)


def _failed(custom_id: str, cause: str, detail: str, *, usage: Usage | None = None, model: str | None = None) -> Answer:
    return Answer(custom_id, Outcome.FAILED, cause, detail, None, usage, model)


def _usage(stated: Any, limit: int) -> Usage | None:
    """Chat's prompt and completion tokens, or the input and output tokens of responses and batches."""
    if not isinstance(stated, dict):
        return None
    into, out = ("prompt", "completion") if "prompt_tokens" in stated else ("input", "output")
    n_input = stated.get(f"{into}_tokens")
    n_output = stated.get(f"{out}_tokens", 0 if stated.get("total_tokens") == n_input else None)  # embeddings have none
    details = stated.get(f"{into}_tokens_details")
    details = details if isinstance(details, dict) else {}
    return usage_of(n_input, n_output, details.get("cached_tokens"), details.get("cache_write_tokens"), limit)


def _content(body: Json) -> tuple[str | None, str | None, str | None]:
    """(text, why it stopped, refusal) of a chat completion or a response; all None: neither of them."""
    match body:
        case {"choices": [{"message": {} as message} as choice, *_]}:
            text = "".join(_texts(message.get("content")))
            return text, _text(choice.get("finish_reason")), _text(message.get("refusal"))
        case {"output": list(items)}:
            said = [item for item in _dicts(items) if item.get("phase") != "commentary"]  # the answer alone
            parts = [part for item in said for part in _dicts(item.get("content"))]
            details = body.get("incomplete_details")
            stop = details.get("reason") if isinstance(details, dict) else body.get("status")
            text = "".join(_texts([part for part in parts if part.get("type") == "output_text"]))
            return text, _text(stop), next((r for part in parts if (r := _text(part.get("refusal")))), None)
    return None, None, None


def _unfinished(body: Json) -> tuple[str, str]:
    """Cause and words of a response that is not completed, for a reason that is not the bound or a filter."""
    error = body.get("error")
    if body.get("status") == "failed" and isinstance(error, dict):
        return _RESPONSE_ERRORS.get(str(error.get("code")), "invalid_request"), _words(error)
    details = body.get("incomplete_details")
    return "malformed", f"the response is {body.get('status')}: {details}"


def _vector(items: Sequence[Any]) -> bytes | str:
    """The one embedding of a reply as little-endian float32, or what is wrong with it."""
    if len(items) != 1 or not isinstance(items[0], dict):
        return f"{len(items)} embeddings for one text" if len(items) != 1 else "not an embedding"
    index, stated = items[0].get("index", 0), items[0].get("embedding")
    if type(index) is not int or index != 0:
        return "the embedding of another text"
    try:
        if isinstance(stated, str):
            raw = a2b_base64(stated, strict_mode=True)
        elif isinstance(stated, list) and {float, int}.issuperset(map(type, stated)):
            raw = struct.pack(f"<{len(stated)}f", *stated)
        else:
            return "neither base64 nor a list of numbers"
    except (ValueError, OverflowError, struct.error) as exc:
        return f"not a vector of 32-bit floats: {exc}"
    if not raw or len(raw) % 4:
        return f"{len(raw)} bytes are no vector of 32-bit floats"
    high = raw[3::4]  # NaN and infinities have all exponent bits set; the first look rules them out at little cost
    if (b"\x7f" in high or b"\xff" in high) and any(
        h & 127 == 127 and m > 127 for h, m in zip(high, raw[2::4], strict=True)
    ):
        return "the vector holds NaN or an infinity"
    return raw


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(content: Any) -> list[str]:
    """Content is text, or a list of parts with text in them."""
    parts = [content] if isinstance(content, str) else [part.get("text") for part in _dicts(content)]
    return [encodable(part) for part in parts if isinstance(part, str)]


def _text(value: Any) -> str | None:
    return encodable(value) if isinstance(value, str) and value else None


def _http_cause(status: Any, error: Json) -> str:
    """The cause of a row that ended with an HTTP status; 0 is OpenAI's for a row its servers lost."""
    if type(status) is not int:
        return "malformed"
    if status < 500 and no_credit(error):
        return "out_of_credit"
    if error.get("code") == "content_filter":
        return "content_filter"
    if status == 0 or (status >= 500 and status not in _HTTP_CAUSES):
        return "server_error"
    return _HTTP_CAUSES.get(status, "invalid_request" if 400 <= status < 500 else "malformed")


def _words(error: Json) -> str:
    return tidy(" ".join(str(error[name]) for name in ("code", "message") if error.get(name)), 2_000)


def _file_name(shard: ShardFile) -> str:
    return f"{shard.token}.jsonl"


def _boundary(shard: ShardFile) -> str:
    return f"canwait-{shard.token}"  # cannot occur: a line of JSON holds no raw CR LF


def _multipart(shard: ShardFile, encode: Any) -> Iterator[bytes]:
    edge = _boundary(shard)
    yield (
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{_file_name(shard)}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    ).encode()
    for line in encoded_lines(shard, encode):
        yield line + b"\n"
    yield f"\r\n--{edge}--\r\n".encode()
