"""Helicone: what `npx @helicone/export` writes, as JSONL or CSV, and pages of its request API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..calls import Asked, Call
from .bodies import NONE, Counts, asking, beside_cache, reply, within_cache
from .sites import declared, site_of
from .values import Fields, after_us, count, dollars, fields_of, first_named, must_start, number, provider_of, when_us


class Helicone:
    name = "helicone"
    title = "Helicone requests"

    def claims(self, record: Mapping[str, object]) -> bool:
        return "request_created_at" in record and ("response_status" in record or "response_id" in record)

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        start_us = must_start(when_us(record.get("request_created_at"), "request_created_at"), "request_created_at")
        body = fields_of(record.get("request_body"))
        request = asking(body) if body else None
        answer = reply(fields_of(record.get("response_body")))
        tags = fields_of(record.get("request_properties"))
        provider = provider_of(record.get("provider")) or asked.provider
        model = first_named(record.get("request_model"), record.get("model"), request.model if request else None) or ""
        latency_ms, first_ms = number(record.get("latency")), number(record.get("time_to_first_token"))
        status = count(record.get("response_status"), "response_status")
        said = declared(tags)
        counts = answer.counts if answer.counts.input is not None else _counts(record, provider, model)
        yield Call(
            start_us,
            site_of(
                asked,
                (tags, record),
                tags.get("Helicone-Prompt-Id"),
                tags.get("Helicone-Session-Name"),
                tags.get("Helicone-Session-Path"),
                record.get("request_path"),
            ),
            model,
            provider,
            request.operation if request else "chat",
            first_named(record.get("request_id"), record.get("response_id")),
            when_us(record.get("response_created_at"), "response_created_at")
            if latency_ms is None
            else after_us(start_us, latency_ms / 1_000),
            None if not first_ms else after_us(start_us, first_ms / 1_000),
            said.first_used_us,
            first_named(record.get("response_model"), answer.model),
            *counts,
            request.max_output_tokens if request else None,
            dollars(record.get("cost"), "cost"),
            answer.tier or (request.tier if request else None),
            request.stream if request and request.stream is not None else True if first_ms else None,
            answer.failed or (status is not None and not 200 <= status < 400),
            answer.error or (str(status) if status is not None and not 200 <= status < 400 else None),
            answer.finish_reason,
            request.temperature if request else None,
            request.tools if request else None,
            first_named(record.get("request_user_id"), record.get("user_id"), request.user if request else None),
            first_named(tags.get("Helicone-Session-Id")),
            None,
            said.trigger,
            said.deadline_s,
            first_named(tags.get("Helicone-Prompt-Id")),
            request.text if request else None,
            request.text_hash if request else None,
        )


def _counts(record: Fields, provider: str, model: str) -> Counts:
    """Columns hold what the provider sent: Anthropic's input is without its cache, that of others with it."""
    columns = ("prompt_tokens", "prompt_cache_read_tokens", "prompt_cache_write_tokens", "completion_tokens")
    sent, read, written, output = (count(record.get(name), name) for name in columns)
    if sent is None and output is None:
        return NONE
    told = beside_cache if provider == "anthropic" or "claude" in model.lower() else within_cache
    return told(sent, read, written, output, count(record.get("reasoning_tokens"), "reasoning_tokens"))
