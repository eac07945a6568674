"""Bedrock's invocation logs: the .json.gz files it writes to S3, or its events as CloudWatch exports them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..calls import Asked, Call
from .bodies import Counts, asking, beside_cache, reply
from .sites import declared, site_of
from .values import Fields, after_us, count, fields_of, first_named, items_of, must_start, number, tier_of, when_us

_SCHEMA = "ModelInvocationLog"
_METRICS = "amazon-bedrock-invocationMetrics"  # in the last piece of a streamed answer


class Bedrock:
    name = "bedrock"
    title = "Bedrock invocation logs"

    def claims(self, record: Mapping[str, object]) -> bool:
        return _event(record).get("schemaType") == _SCHEMA

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        event = _event(record)
        if event.get("schemaType") != _SCHEMA:
            raise ValueError(f"no {_SCHEMA}")
        start_us = must_start(when_us(event.get("timestamp"), "timestamp"), "timestamp")
        given, made = fields_of(event.get("input")), fields_of(event.get("output"))
        body, answer, metrics = fields_of(given.get("inputBodyJson")), _answer(made), _metrics(made)
        request = asking(body)
        replied = reply(answer)
        tags = fields_of(event.get("requestMetadata"))
        arn, method = first_named(fields_of(event.get("identity")).get("arn")), first_named(event.get("operation"))
        latency_ms = number(fields_of(answer.get("metrics")).get("latencyMs", metrics.get("invocationLatency")))
        first_ms = number(metrics.get("firstByteLatency"))
        error = first_named(event.get("errorCode"))
        said = declared(tags)
        model = first_named(event.get("modelId")) or ""
        operation = "embeddings" if "embed" in model or request.operation == "embeddings" else "chat"
        counts = _counts(given, made, replied.counts).called(operation)
        yield Call(
            start_us,
            site_of(asked, (tags, event), tags.get("traceName"), _role(arn)),
            model.rpartition("/")[2],
            "bedrock",
            operation,
            first_named(event.get("requestId")),
            None if latency_ms is None else after_us(start_us, latency_ms / 1_000),
            None if first_ms is None else after_us(start_us, first_ms / 1_000),
            said.first_used_us,
            None,
            *counts,
            request.max_output_tokens,
            None,
            tier_of(event.get("serviceTier")) or replied.tier or request.tier,
            "Stream" in method if method else None,
            error is not None or replied.failed,
            error or replied.error,
            replied.finish_reason,
            request.temperature,
            request.tools if body else None,
            first_named(tags.get("userId"), tags.get("user_id"), request.user),
            first_named(tags.get("sessionId"), tags.get("session_id"), tags.get("traceId")),
            arn,
            said.trigger,
            said.deadline_s,
            None,
            request.text,
            request.text_hash,
        )


def _event(record: Mapping[str, object]) -> Fields:
    """The event itself, or the one that CloudWatch wrapped."""
    if "schemaType" in record:
        return record
    return fields_of(record.get("message")) or fields_of(record.get("@message"))


def _answer(made: Fields) -> Fields:
    """The answer; of a stream the pieces that say how it ended."""
    body = made.get("outputBodyJson")
    pieces = items_of(body)
    if not pieces:
        return fields_of(body)
    merged: dict[str, object] = {}
    for piece in pieces:
        held = fields_of(piece)
        for part in (
            held,
            fields_of(held.get("message")),
            fields_of(held.get("delta")),
            fields_of(held.get("metadata")),
        ):
            merged.update(
                {k: part[k] for k in ("id", "model", "stop_reason", "stopReason", "metrics", "error") if part.get(k)}
            )
            if usage := fields_of(part.get("usage")):
                merged["usage"] = {**fields_of(merged.get("usage")), **usage}
    return merged


def _metrics(made: Fields) -> Fields:
    pieces = items_of(made.get("outputBodyJson"))
    return fields_of(fields_of(pieces[-1]).get(_METRICS)) if pieces else {}


def _counts(given: Fields, made: Fields, said: Counts) -> Counts:
    """The log's own counts, whose input is without the cache; what they lack, from the answer."""

    def own(place: Fields, name: str, otherwise: int | None) -> int | None:
        found = count(place.get(name), name)
        return otherwise if found is None else found

    asked = count(given.get("inputTokenCount"), "inputTokenCount")
    read = own(given, "cacheReadInputTokenCount", said.cached)
    written = own(given, "cacheWriteInputTokenCount", said.cache_write)
    output = own(made, "outputTokenCount", said.output)
    if asked is None:
        return Counts(said.input, read, written, output, said.reasoning)
    return beside_cache(asked, read, written, output, said.reasoning)


def _role(arn: str | None) -> str | None:
    """arn:aws:sts::1:assumed-role/app/session -> app."""
    parts = (arn or "").rpartition(":")[2].split("/")
    return parts[1] if len(parts) > 1 else None
