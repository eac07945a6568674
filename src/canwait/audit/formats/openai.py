"""Requests and answers as an application logs them: pairs of {request, response} of OpenAI, Anthropic, Gemini or Bedrock, and
the listings of OpenAI's stored completions and responses, whose objects hold both.

An answer says in whole seconds when it was created; a time that the log adds is better, and is taken first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...types import Tier
from ..calls import Asked, Call
from .bodies import Asking, asking, operation_of, reply
from .sites import declared, site_of
from .values import Fields, after_us, dollars, fields_of, first_named, must_start, number, provider_of, when_us

_ANSWERS = ("chat.completion", "response", "text_completion")  # `object` of an answer that stands alone
_REQUEST = ("request", "request_body", "req", "body", "input_body")
_RESPONSE = ("response", "response_body", "resp", "output_body", "completion")
_STARTS = ("start_time", "started_at", "request_time", "requested_at", "timestamp", "time", "ts", "created_at")
_ENDS = ("end_time", "ended_at", "finished_at", "completed_at", "response_time", "responded_at")
_BATCH = ("custom_id", "recordId", "processed_time")  # what a line of a batch file has


class Requests:
    name = "openai"
    title = "requests and answers (OpenAI, Anthropic, Gemini)"

    def claims(self, record: Mapping[str, object]) -> bool:
        if any(name in record for name in _BATCH):
            return False
        if record.get("object") in _ANSWERS:
            return True
        request, response = _held(record, _REQUEST), _held(record, _RESPONSE)
        return _asks(request) and (bool(response) or "error" in record or any(name in record for name in _STARTS))

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        alone = record.get("object") in _ANSWERS
        body = record if alone else _held(record, _RESPONSE)
        wrapped = fields_of(body.get("body"))  # {"status_code": 200, "body": {...}}
        answer = reply(wrapped or body) if body else reply({"error": record.get("error")})
        sent = _held(record, _REQUEST)
        request = asking(sent or body)
        if not alone and not sent and not body:
            raise ValueError("neither a request nor an answer")
        start_us, end_us = _times(record, wrapped or body)
        metadata = fields_of(record.get("metadata")) or request.tags
        error = record.get("error")
        said = declared(record, metadata)
        provider = first_named(record.get("provider"))
        yield Call(
            start_us,
            site_of(asked, (record, metadata), request.prompt, record.get("name")),
            first_named(request.model, answer.model, record.get("model")) or "",
            provider_of(provider) or asked.provider or _provider(wrapped or body, sent),
            _operation(record, wrapped or body, request),
            answer.id or first_named(record.get("request_id"), record.get("id")),
            end_us,
            when_us(record.get("first_token_at"), "first_token_at"),
            said.first_used_us,
            answer.model,
            *answer.counts,
            request.max_output_tokens,
            dollars(record.get("cost_usd"), "cost_usd"),
            Tier.BACKGROUND if request.tier is Tier.BACKGROUND else answer.tier or request.tier,
            request.stream,
            answer.failed or bool(error),
            answer.error or first_named(fields_of(error).get("type"), fields_of(error).get("code"))
            if answer.failed or error
            else None,
            answer.finish_reason,
            request.temperature,
            request.tools,
            first_named(record.get("user"), record.get("user_id"), request.user),
            first_named(record.get("session_id"), record.get("conversation_id"), request.session),
            first_named(record.get("api_key_id"), record.get("service"), record.get("host")),
            said.trigger,
            said.deadline_s,
            request.prompt,
            request.text,
            request.text_hash,
        )


def _held(record: Mapping[str, Any], names: tuple[str, ...]) -> Fields:
    return next((found for name in names if (found := fields_of(record.get(name)))), {})


def _asks(request: Fields) -> bool:
    return any(name in request for name in ("messages", "input", "contents", "prompt"))


def _times(record: Fields, body: Fields) -> tuple[int, int | None]:
    start_us = next((us for name in _STARTS if (us := when_us(record.get(name), name))), None)
    created_us = when_us(body.get("created", body.get("created_at")), "created")
    end_us = next((us for name in _ENDS if (us := when_us(record.get(name), name))), None)
    start_us = must_start(created_us if start_us is None else start_us, "time")
    if end_us is None:
        end_us = when_us(body.get("completed_at"), "completed_at")
    for name, parts in (("latency_ms", 1_000), ("duration_ms", 1_000), ("latency_s", 1), ("duration_s", 1)):
        if end_us is None and (length := number(record.get(name))) is not None:
            end_us = after_us(start_us, length / parts)
    return start_us, end_us


def _operation(record: Fields, body: Fields, request: Asking) -> str:
    url = first_named(record.get("endpoint"), record.get("url"), record.get("path"))
    if body.get("object") == "response":
        return "responses"
    return operation_of(url) if url else request.operation


def _provider(body: Fields, sent: Fields) -> str:
    """Whose form the bodies have. OpenAI's is spoken by many, so it names nobody unless OpenAI stored them."""
    if body.get("type") == "message" or "anthropic_version" in sent:
        return "anthropic"
    if "candidates" in body or "contents" in sent:
        return "google"
    model = first_named(body.get("model"), sent.get("model")) or ""
    return "openai" if body.get("object") in _ANSWERS and model.startswith(("gpt-", "o1", "o3", "o4", "ft:gpt")) else ""
