"""Langfuse observations: pages of the API, JSONL, or the files of the blob export (snake case).

Usage details are parts that exclude each other: Langfuse sums every key with "input" in it, and so do we. Where a total
shows that an integration sent the cached part inside the input as well, the input is taken as it is: unless it is smaller than
that part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..calls import Asked, Call
from .bodies import NONE, Counts, counts_of, hash_of, joined, version_of
from .sites import declared, site_of
from .values import (
    Fields,
    after_us,
    count,
    dollars,
    fields_of,
    first_named,
    flag,
    items_of,
    json_of,
    limit_of,
    must_start,
    number,
    provider_of,
    tags_of,
    tier_of,
    when_us,
)

_CALLS = {"GENERATION": "chat", "EMBEDDING": "embeddings"}
_GIVEN_BY_SDKS = re.compile(  # names of observations that integrations give to every call
    r"(openai|azureopenai|anthropic|litellm|chatopenai|chatanthropic|llm|chat|generation|completion)([-_ .]\w+)?\Z",
    re.I,
)
_ERROR = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Timeout))\b")


class Langfuse:
    name = "langfuse"
    title = "Langfuse observations"

    def claims(self, record: Mapping[str, object]) -> bool:
        if "type" not in record or "id" not in record:
            return False
        return ("traceId" in record and "startTime" in record) or ("trace_id" in record and "start_time" in record)

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        def get(camel: str, snake: str) -> Any:
            value = record.get(camel)
            return record.get(snake) if value is None else value

        operation = _CALLS.get(str(record.get("type"))[:20].upper())
        if operation is None:
            return
        start_us = must_start(when_us(get("startTime", "start_time"), "startTime"), "startTime")
        first_us = when_us(get("completionStartTime", "completion_start_time"), "completionStartTime")
        if first_us is None:
            first_us = after_us(start_us, number(get("timeToFirstToken", "time_to_first_token")))
        metadata = fields_of(record.get("metadata"))
        tags = tags_of(items_of(record.get("tags")))
        settings = fields_of(get("modelParameters", "model_parameters"))
        name, trace = first_named(record.get("name")), first_named(get("traceName", "trace_name"))
        prompt = get("promptName", "prompt_name")
        held = json_of(record.get("input"))
        messages = held.get("messages", held) if type(held) is dict else held
        text = joined([messages])
        failed = str(record.get("level")).upper() == "ERROR"
        said = declared(metadata, tags)
        model = first_named(record.get("model"), get("providedModelName", "provided_model_name")) or ""
        heat, limit = number(settings.get("temperature")), _limit(settings)
        yield Call(
            start_us,
            site_of(
                asked,
                (metadata, tags, record),
                prompt,
                None if name and _GIVEN_BY_SDKS.match(name) else name,
                trace,
                name,
            ),
            model,
            provider_of(metadata.get("ls_provider") or metadata.get("provider")) or asked.provider,
            operation,
            first_named(record.get("id")),
            when_us(get("endTime", "end_time"), "endTime"),
            first_us,
            said.first_used_us,
            None,
            *_counts(fields_of(get("usageDetails", "usage_details")), fields_of(record.get("usage"))).called(operation),
            limit,
            _cost(get("totalCost", "total_cost"), fields_of(get("costDetails", "cost_details"))),
            tier_of(settings.get("service_tier")),
            True if first_us is not None else flag(settings.get("stream")),
            failed,
            _error(get("statusMessage", "status_message")) if failed else None,
            None,
            heat,
            bool(held["tools"]) if type(held) is dict and "tools" in held else None,
            first_named(get("userId", "user_id")),
            first_named(get("sessionId", "session_id"), get("traceId", "trace_id")),
            None,
            said.trigger,
            said.deadline_s,
            version_of(prompt, get("promptVersion", "prompt_version")),
            text,
            hash_of((model, heat, limit, held)) if text else None,
        )


def _error(message: object) -> str | None:
    """The type that a message names."""
    found = _ERROR.search(str(message)[:500])
    return first_named(found[1]) if found else None


def _limit(settings: Fields) -> int | None:
    return limit_of(settings.get("max_tokens", settings.get("max_completion_tokens", settings.get("maxTokens"))))


def _counts(parts: Fields, before: Fields) -> Counts:
    """The newer details, else the older usage, whose input includes the cached."""
    if not parts:
        asked = count(before.get("input", before.get("promptTokens")), "usage.input")
        output = count(before.get("output", before.get("completionTokens")), "usage.output")
        return Counts(asked, None, None, output, None) if before else NONE
    if "prompt_tokens" in parts or "completion_tokens" in parts:  # sent in OpenAI's form and kept as it was
        return counts_of(parts)
    sums: dict[str, int] = {}
    for name, value in parts.items():
        tokens = count(value, f"usageDetails.{str(name)[:40]}")
        if tokens is not None and (part := _part(str(name).lower())):
            sums[part] = sums.get(part, 0) + tokens
    asked, output = sums.get("input", 0), sums.get("output", 0)
    beside, reasoning = sums.get("cached", 0) + sums.get("written", 0), sums.get("reasoning", 0)
    total = sums.get("total")
    if beside > asked or (beside and total not in (asked + output, asked + output + reasoning)):
        asked += beside
    if reasoning and total not in (sums.get("input", 0) + output, asked + output):
        output += reasoning
    return Counts(
        asked if sums.keys() & {"input", "cached", "written"} else None,
        sums.get("cached"),
        sums.get("written"),
        output if sums.keys() & {"output", "reasoning"} else None,
        sums.get("reasoning"),
    )


def _part(key: str) -> str | None:
    """Which part of the tokens a key of usage details counts."""
    if "total" in key:
        return "total"
    if "cache" in key:
        return "written" if "creat" in key or "write" in key else "cached"
    if "reasoning" in key or "thought" in key or "thinking" in key:
        return "reasoning"
    return "input" if "input" in key else "output" if "output" in key else None


def _cost(total: object, details: Fields) -> Any:
    return dollars(details.get("total") if total is None else total, "cost")
