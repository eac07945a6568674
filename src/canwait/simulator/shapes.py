"""The two wire formats: what a batch, a row, a reply and an error look like at OpenAI and at Anthropic.

At OpenAI a request and its reply look different at each endpoint; chat is OpenAI's own shape, the others stand below it.

Facts: OpenAI's and Anthropic's SDKs and specifications, and recorded exchanges; docs/simulator.md names the sources.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC
from typing import Any, NoReturn

import orjson

from ..clock import from_us
from ..types import Usage
from .answers import Body, full_length
from .life import ENDED, SECOND, Batch, Phase
from .rows import Answered, NotAnswered
from .scenario import ENDINGS

DAY_US = 86_400 * SECOND


class Refusal(Exception):
    """The provider says no, over HTTP."""

    def __init__(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body)
        self.status, self.body, self.headers = status, body, headers or {}


# ----------------------------------------------------------------------------------------------------------- OpenAI


class OpenAI:
    """With chat completions."""

    name = "openai"
    endpoint = "/v1/chat/completions"
    embeds = False  # whether it answers with vectors
    endings = ENDINGS
    models = ("gpt-6-luna", "gpt-6.1-terra", "gpt-4o-mini", "text-embedding-3-small")  # shown; any name is served
    window_us = DAY_US
    retention_us = 30 * DAY_US
    max_rows = 50_000

    _REFUSALS: Mapping[str, tuple[int, str, str | None, str]] = {
        "invalid": (400, "invalid_request_error", None, "Invalid request."),
        "token_limit": (400, "invalid_request_error", "token_limit_exceeded", "Enqueued token limit reached."),
        "bad_key": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
        "not_found": (404, "invalid_request_error", None, "Not found."),
        "conflict": (409, "invalid_request_error", None, "Conflict."),
        "too_large": (413, "invalid_request_error", None, "The request is too large."),
        "rate_limit": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests."),
        "out_of_credit": (
            429,
            "insufficient_quota",
            "credit_balance_exhausted",
            "You exceeded your current quota, please check your plan and billing details.",
        ),
        "spend_cap": (
            429,
            "insufficient_quota",
            "organization_spend_limit_exceeded",
            "Your organization has reached its enforced monthly spend limit.",
        ),
        "server_error": (500, "server_error", None, "The server had an error while processing your request."),
        "unavailable": (503, "server_error", None, "The server is currently overloaded with other requests."),
    }
    _ROW_ERRORS: Mapping[str, tuple[int, str]] = {
        "invalid": (400, "invalid"),
        "rate_limit": (429, "rate_limit"),
        "server_error": (500, "server_error"),
        "out_of_credit": (429, "out_of_credit"),
    }
    _NOT_RUN: Mapping[str, tuple[str, str]] = {
        "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
        "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
        "timeout": ("request_timeout", "This request timed out."),
    }

    def error(self, kind: str, message: str | None = None, param: str | None = None) -> dict[str, Any]:
        _, type_, code, words = self._REFUSALS[kind]
        return {"error": {"message": message or words, "type": type_, "param": param, "code": code}}

    def refuse(self, kind: str, message: str | None = None, *, param: str | None = None, **facts: str) -> NoReturn:
        raise Refusal(self._REFUSALS[kind][0], self.error(kind, message, param), facts)

    def unpack(self, line: Mapping[str, Any]) -> tuple[str, Body]:
        return line["custom_id"], line["body"]

    def pack(self, ident: str, custom_id: str, line: bytes | None, error: NotAnswered | None) -> bytes:
        record: dict[str, Any] = {"id": f"batch_req_{ident}", "custom_id": custom_id, "response": None, "error": None}
        if error and error.kind in self._NOT_RUN:
            code, message = self._NOT_RUN[error.kind]
            record["error"] = {"code": code, "message": error.message or message}
        elif error:
            status, kind = self._ROW_ERRORS[error.kind]
            body: Any = self.error(kind, error.message)
            record["response"] = {"status_code": status, "request_id": f"req_{ident}", "body": body}
        else:
            body = orjson.Fragment(line or b"null")
            record["response"] = {"status_code": 200, "request_id": f"req_{ident}", "body": body}
        return orjson.dumps(record)

    def most(self, body: Body) -> int | None:
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        return most if isinstance(most, int) else None

    def invalid(self, body: Body) -> str | None:
        messages = body.get("messages")
        if not isinstance(body.get("model"), str):
            return "you must provide a model parameter"
        if not isinstance(messages, list) or not messages:
            return "Missing required parameter: 'messages'."
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                return f"Missing required parameter: 'messages[{number}].role'."
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        if most is not None and (not isinstance(most, int) or most < 1):
            return f"Invalid 'max_completion_tokens': expected an integer of at least 1, but got {most}."
        return None

    def reply(self, ident: str, body: Body, answered: Answered, now_us: int, tier: str, *, old_style: bool) -> bytes:
        refused = answered.finish == "refusal"
        usage = answered.usage
        return orjson.dumps(
            {
                "id": f"chatcmpl-{ident}",
                "object": "chat.completion",
                "created": now_us // SECOND,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": {
                            "role": "assistant",
                            "content": None if refused else answered.text,
                            "refusal": answered.text if refused else None,
                        },
                        "logprobs": None,
                        "finish_reason": "stop" if refused else answered.finish,
                    }
                ],
                "usage": {
                    "prompt_tokens": usage.input_tokens,
                    "completion_tokens": usage.output_tokens,
                    "total_tokens": usage.input_tokens + usage.output_tokens,
                    "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens, "audio_tokens": 0},
                    "completion_tokens_details": {
                        "reasoning_tokens": 0,
                        "audio_tokens": 0,
                        "accepted_prediction_tokens": 0,
                        "rejected_prediction_tokens": 0,
                    },
                },
                "service_tier": "default",  # also in batch rows
                "system_fingerprint": None,
            }
        )

    def model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "simulator"}

    def file(self, ident: str, doc: Mapping[str, Any], *, old_style: bool) -> dict[str, Any]:
        expires_us = doc["expires_us"]
        return {
            "object": "file",
            "id": ident,
            "purpose": doc["purpose"],
            "filename": doc["filename"],
            "bytes": doc["bytes"],
            "created_at": doc["created_us"] // SECOND,
            **({} if old_style else {"expires_at": None if expires_us is None else expires_us // SECOND}),
            "status": "processed",
            "status_details": None,
        }

    def batch(self, batch: Batch, phase: Phase, now_us: int, *, old_style: bool) -> dict[str, Any]:
        """The batch object; `phase` may lag behind the clock while rows are still being answered."""
        ended = batch.outcome if phase in ENDED else None
        none = "" if "empty_file_ids" in batch.traits else None
        started = batch.validated_us if phase not in ("validating", "failed") and not batch.problem else None
        if batch.cancel_us is not None and batch.cancel_us < batch.validated_us:
            started = None
        over = batch.terminal_us if phase in ENDED else None
        finalizing = batch.finalizing_us if phase in ("finalizing", "completed", "expired") else None
        counts = {"total": batch.n_rows if started is not None else 0, "completed": 0, "failed": 0}
        if ended and "cancel_race" not in batch.traits:
            counts |= {"completed": ended["n_ok"], "failed": ended["n_failed"]}
        elif not ended and started is not None and "cancel_race" not in batch.traits:
            counts["completed"] = batch.rows_run(now_us)
        errors = {"object": "list", "data": [dict(batch.problem)]} if batch.problem and phase == "failed" else None
        status = phase.capitalize() if "capitalised_status" in batch.traits else phase

        def at(when_us: int | None) -> int | None:
            return None if when_us is None else when_us // SECOND

        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            **({} if old_style else {"model": batch.model if started is not None else None}),
            "errors": errors,
            "input_file_id": batch.input_file_id,
            "completion_window": "24h",
            "status": status,
            "output_file_id": (ended["output_file_id"] if ended else None) or none,
            "error_file_id": (ended["error_file_id"] if ended else None) or none,
            "created_at": at(batch.created_us),
            "in_progress_at": at(started),
            "expires_at": at(batch.expires_us),
            "finalizing_at": at(finalizing),
            "completed_at": at(over) if phase == "completed" else None,
            "failed_at": at(over) if phase == "failed" else None,
            "expired_at": at(over) if phase == "expired" else None,
            "cancelling_at": at(batch.cancel_us),
            "cancelled_at": at(over) if phase == "cancelled" else None,
            "request_counts": counts,
            **({} if old_style else {"usage": self._usage(Usage(**ended["usage"]) if ended else Usage(0, 0))}),
            "metadata": None if batch.metadata is None else dict(batch.metadata),
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "output_tokens_details": {"reasoning_tokens": 0},
        }

    def rows(self, lines: Iterable[bytes]) -> Iterator[tuple[str, Body] | dict[str, Any]]:
        """(custom id, body) of every line; a first bad line ends it with {code, line, message, param}."""
        seen: set[str] = set()
        model: str | None = None

        def bad(number: int, code: str, message: str, param: str | None) -> dict[str, Any]:
            return {"code": code, "line": number, "message": message, "param": param}

        n_inputs = 0
        for number, raw in enumerate(lines, 1):
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError:
                line = None
            if not isinstance(line, dict):
                yield bad(number, "invalid_json_line", "This line is not parseable as valid JSON.", None)
                return
            problem = self._problem(line, model, seen)
            n_inputs += 1 if problem else self._n_inputs(line["body"])
            if problem is None and n_inputs > self.max_rows:
                what = "embedding inputs" if self.embeds else "requests"
                problem = "invalid_request", f"A batch holds at most {self.max_rows} {what}.", None
            if problem:
                yield bad(number, *problem)
                return
            seen.add(line["custom_id"])
            model = line["body"]["model"]
            yield line["custom_id"], line["body"]
        if not seen:
            yield {"code": "invalid_request", "line": None, "message": "The input file is empty.", "param": None}

    def _n_inputs(self, body: Body) -> int:
        """What a request counts for in its batch."""
        return 1

    def _problem(
        self, line: Mapping[str, Any], model: str | None, seen: Collection[str]
    ) -> tuple[str, str, str | None] | None:
        """(code, message, param) of the first thing wrong with a line."""
        custom_id, body = line.get("custom_id"), line.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            return self._missing("custom_id")
        if custom_id in seen:
            return "duplicate_custom_id", f"The custom_id '{custom_id}' is used twice.", "custom_id"
        if line.get("method") != "POST":
            return self._missing("method")
        if line.get("url") != self.endpoint:
            return "invalid_url", f"The URL provided for this request does not match '{self.endpoint}'.", "url"
        if not isinstance(body, dict):
            return self._missing("body")
        if not isinstance(body.get("model"), str):
            return self._missing("body.model")
        if model is not None and body["model"] != model:
            return "mismatched_model", f"The model must be '{model}' on every line.", "body.model"
        if body.get("stream"):
            return "streaming_unsupported", "Streaming is not supported in a batch.", "body.stream"
        return None

    def _missing(self, param: str) -> tuple[str, str, str]:
        return "missing_required_parameter", f"Missing required parameter: '{param}'.", param


class Responses(OpenAI):
    endpoint = "/v1/responses"

    _MOVED: Mapping[str, str] = {  # chat's words
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
    }

    def most(self, body: Body) -> int | None:
        most = body.get("max_output_tokens")
        return most if isinstance(most, int) else None

    def invalid(self, body: Body) -> str | None:
        said, most = body.get("input"), body.get("max_output_tokens")
        if not isinstance(body.get("model"), str):
            return "you must provide a model parameter"
        for name, moved in self._MOVED.items():
            if name in body:
                return f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved to '{moved}'."
        if not said or not isinstance(said, str | list):
            return "Missing required parameter: 'input'."
        for number, item in enumerate(said if isinstance(said, list) else ()):
            if not isinstance(item, dict) or item.get("role") not in ("system", "developer", "user", "assistant"):
                return f"Invalid value: 'input[{number}].role'."
        if most is not None and (not isinstance(most, int) or most < 16):
            return f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {most}."
        return None

    def reply(self, ident: str, body: Body, answered: Answered, now_us: int, tier: str, *, old_style: bool) -> bytes:
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answered.finish)
        status = "incomplete" if cut else "completed"
        said: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": [], "text": answered.text}
        if answered.finish == "refusal":
            said = {"type": "refusal", "refusal": answered.text}
        message = {"id": f"msg_{ident}", "type": "message", "status": status, "role": "assistant", "content": [said]}
        usage = self._usage(answered.usage)
        stated = {"temperature": 1.0, "top_p": 1.0, "tools": [], "tool_choice": "auto", "metadata": {}, "store": True}
        return orjson.dumps(
            {
                "id": f"resp_{ident}",
                "object": "response",
                "created_at": now_us // SECOND,
                "status": status,
                "background": False,
                "error": None,
                "incomplete_details": {"reason": cut} if cut else None,
                "instructions": body.get("instructions"),
                "max_output_tokens": self.most(body),
                "model": body["model"],
                "output": [{"id": f"rs_{ident}", "type": "reasoning", "content": [], "summary": []}, message],
                "parallel_tool_calls": True,
                "previous_response_id": None,
                "text": {"format": {"type": "text"}, **body.get("text", {})},
                "truncation": "disabled",
                **{name: body.get(name, usual) for name, usual in stated.items()},
                "usage": usage | {"input_tokens_details": {**usage["input_tokens_details"], "cache_write_tokens": 0}},
                "service_tier": "default",
            }
        )


class Embeddings(OpenAI):
    endpoint = "/v1/embeddings"
    embeds = True

    _PARAMS = frozenset({"model", "input", "dimensions", "encoding_format", "user"})

    def most(self, body: Body) -> int | None:
        return None

    def invalid(self, body: Body) -> str | None:
        dimensions, spoken = body.get("dimensions", 1), body.get("input")
        if unknown := sorted(body.keys() - self._PARAMS):
            return f"Unrecognized request argument supplied: {unknown[0]}"
        if not isinstance(body.get("model"), str):
            return "you must provide a model parameter"
        listed = spoken if isinstance(spoken, list) else [spoken]
        if not listed or not all(isinstance(text, str) and text for text in listed):
            return "'$.input' is invalid. Please check the API reference."
        if type(dimensions) is not int or not 0 < dimensions <= full_length(body):
            return f"Invalid value for 'dimensions' = {dimensions}."
        if body.get("encoding_format", "float") not in ("float", "base64"):
            return f"Invalid value: '{body['encoding_format']}'. Supported values are: 'float' and 'base64'."
        return None

    def reply(self, ident: str, body: Body, answered: Answered, now_us: int, tier: str, *, old_style: bool) -> bytes:
        usage = {"prompt_tokens": answered.usage.input_tokens, "total_tokens": answered.usage.input_tokens}
        data = [
            {"object": "embedding", "index": i, "embedding": self._written(vector, body)}
            for i, vector in enumerate(answered.vectors)
        ]
        return orjson.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage})

    def _written(self, vector: bytes, body: Body) -> str | list[float]:
        if body.get("encoding_format") == "base64":
            return b64encode(vector).decode()
        return [number for (number,) in struct.iter_unpack("<f", vector[: len(vector) // 4 * 4])]

    def _n_inputs(self, body: Body) -> int:
        return len(body["input"]) if isinstance(body.get("input"), list) else 1


# -------------------------------------------------------------------------------------------------------- Anthropic


class Anthropic:
    name = "anthropic"
    endpoint = "/v1/messages"
    embeds = False
    models = ("claude-haiku-5-5", "claude-sonnet-5-5")  # shown; any name is served
    endings = tuple(name for name in ENDINGS if name not in ("bad_line", "token_limit_late"))  # a batch cannot fail
    window_us = DAY_US
    retention_us = 29 * DAY_US
    max_rows = 100_000

    _REFUSALS: Mapping[str, tuple[int, str, str]] = {
        "invalid": (400, "invalid_request_error", "Invalid request."),
        "out_of_credit": (
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. "
            "Please go to Plans & Billing to upgrade or purchase credits.",
        ),
        "bad_key": (401, "authentication_error", "invalid x-api-key"),
        "not_found": (404, "not_found_error", "Not found."),
        "too_large": (413, "request_too_large", "Request exceeds the maximum size"),
        "rate_limit": (429, "rate_limit_error", "This request would exceed your account's rate limit."),
        "token_limit": (429, "rate_limit_error", "Too many batch requests are waiting in your account's queue."),
        "spend_cap": (429, "rate_limit_error", "Your organization has reached its monthly spend limit."),
        "server_error": (500, "api_error", "Internal server error"),
        "unavailable": (529, "overloaded_error", "Overloaded"),
        "timeout": (504, "timeout_error", "Request timed out"),
    }

    def error(self, kind: str, message: str | None = None) -> dict[str, Any]:
        _, type_, words = self._REFUSALS[kind]
        error = {"type": type_, "message": message or words}
        details = {"details": {"error_code": "enforced_spend_limit_reached"}} if kind == "spend_cap" else {}
        return {"type": "error", "error": error | details, "request_id": None}

    def refuse(self, kind: str, message: str | None = None, *, param: str | None = None, **facts: str) -> NoReturn:
        raise Refusal(self._REFUSALS[kind][0], self.error(kind, message), facts)

    def unpack(self, line: Mapping[str, Any]) -> tuple[str, Body]:
        return line["custom_id"], line["params"]

    def pack(self, ident: str, custom_id: str, line: bytes | None, error: NotAnswered | None) -> bytes:
        result: dict[str, Any]
        if error is None:
            result = {"type": "succeeded", "message": orjson.Fragment(line or b"null")}
        elif error.kind in ("expired", "cancelled"):
            result = {"type": "expired" if error.kind == "expired" else "canceled"}
        else:
            result = {"type": "errored", "error": self.error(error.kind, error.message)}
        return orjson.dumps({"custom_id": custom_id, "result": result})

    def most(self, body: Body) -> int | None:
        most = body.get("max_tokens")
        return most if isinstance(most, int) else None

    def invalid(self, body: Body) -> str | None:
        messages = body.get("messages")
        most = body.get("max_tokens")
        if not isinstance(body.get("model"), str):
            return "model: Field required"
        if not isinstance(most, int) or most < 1:
            return "max_tokens: Field required" if most is None else "max_tokens: Input should be at least 1"
        if not isinstance(messages, list) or not messages:
            return "messages: at least one message is required"
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
                return f"messages.{number}.role: Input should be 'user' or 'assistant'"
            if not message.get("content"):
                return f"messages.{number}: all messages must have non-empty content"
        return None

    def reply(self, ident: str, body: Body, answered: Answered, now_us: int, tier: str, *, old_style: bool) -> bytes:
        stop = {"stop": "end_turn", "length": "max_tokens"}.get(answered.finish, "refusal")
        usage = answered.usage
        return orjson.dumps(
            {
                "id": f"msg_{ident}",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": [{"type": "text", "text": answered.text}] if answered.text else [],
                "stop_reason": stop,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": usage.input_tokens - usage.cached_input_tokens,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": usage.cached_input_tokens,
                    "output_tokens": usage.output_tokens,
                    **({} if old_style else {"service_tier": tier}),
                },
            }
        )

    def model(self, name: str) -> dict[str, Any]:
        shown = {"display_name": name, "created_at": "2026-01-01T00:00:00Z", "lifecycle": "active"}
        return {"id": name, "type": "model", **shown}

    def batch(self, batch: Batch, phase: Phase, base_url: str, archived_us: int | None) -> dict[str, Any]:
        """The batch object; `archived_us`: when its results were put away, None while they are there."""
        ended = batch.outcome if phase in ENDED else None
        counts = {"processing": batch.n_rows, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        if ended:
            counts = {
                "processing": 0,
                "succeeded": ended["n_ok"],
                "errored": ended["n_failed"],
                "canceled": ended["n_cancelled"],
                "expired": ended["n_expired"],
            }

        def at(when_us: int | None) -> str | None:
            return None if when_us is None else from_us(when_us).astimezone(UTC).isoformat(timespec="microseconds")

        url = f"{base_url}/v1/messages/batches/{batch.id}/results"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "canceling" if batch.cancel_us is not None else "in_progress",
            "request_counts": counts,
            "ended_at": at(batch.terminal_us) if ended else None,
            "created_at": at(batch.created_us),
            "expires_at": at(batch.expires_us),
            "archived_at": at(archived_us),
            "cancel_initiated_at": at(batch.cancel_us),
            "results_url": url if ended and archived_us is None else None,
        }


OPENAI, ANTHROPIC = OpenAI(), Anthropic()
OPENAI_AT: Mapping[str, OpenAI] = {shape.endpoint: shape for shape in (OPENAI, Responses(), Embeddings())}
