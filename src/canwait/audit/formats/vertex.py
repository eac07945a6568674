"""Vertex AI request-response logs: the BigQuery table, exported as JSON lines (JSON columns as objects or as text)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..calls import Asked, Call
from .bodies import Reply, asking, reply
from .sites import declared, site_of
from .values import Fields, after_us, fields_of, first_named, items_of, json_of, must_start, number, tier_of, when_us


class Vertex:
    name = "vertex"
    title = "Vertex AI request-response logs"

    def claims(self, record: Mapping[str, object]) -> bool:
        if "logging_time" not in record:
            return False
        return any(name in record for name in ("full_request", "full_response", "request_payload", "api_method"))

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        logged_us = must_start(when_us(record.get("logging_time"), "logging_time"), "logging_time")
        body = fields_of(record.get("full_request")) or _payload(record.get("request_payload"))
        request, answer = asking(body), _reply(record)
        metadata, labels = fields_of(record.get("metadata")), fields_of(body.get("labels"))
        latency_ms = number(metadata.get("request_latency"))
        method = str(record.get("api_method"))[:60]
        model = first_named(record.get("model"), record.get("endpoint"), request.model) or ""
        operation = "embeddings" if "embed" in model else "chat"
        said = declared(labels, metadata)
        yield Call(
            logged_us,
            site_of(asked, (labels, metadata, record), record.get("deployed_model_id")),
            model.rpartition("/")[2],
            "google",
            operation,
            first_named(record.get("request_id"), answer.id),
            None if latency_ms is None else after_us(logged_us, latency_ms / 1_000),
            None,
            said.first_used_us,
            answer.model,
            *answer.counts.called(operation),
            request.max_output_tokens,
            None,
            answer.tier or request.tier,
            method.lower().startswith("stream") if record.get("api_method") else request.stream,
            answer.failed,
            answer.error,
            answer.finish_reason,
            request.temperature,
            request.tools if body else None,
            request.user,
            first_named(labels.get("session_id"), labels.get("session")),
            None,
            said.trigger,
            said.deadline_s,
            None,
            request.text,
            request.text_hash,
        )


def _reply(record: Fields) -> Reply:
    """The answer; a streamed one is an array of pieces, of which the last says what was used."""
    held = json_of(record.get("full_response"))
    pieces = items_of(held)
    body = fields_of(pieces[-1]) if pieces else fields_of(held) or _payload(record.get("response_payload"))
    answer = reply(body)
    kind = fields_of(body.get("usageMetadata")).get("trafficType")
    if type(kind) is str:  # ON_DEMAND, ON_DEMAND_FLEX, PROVISIONED_THROUGHPUT ...
        answer = answer._replace(tier=tier_of(kind.removeprefix("ON_DEMAND_")))
    return answer


def _payload(value: object) -> Fields:
    """The older columns: an array of texts, of which the last is whole."""
    texts = items_of(value)
    return fields_of(texts[-1]) if texts else {}
