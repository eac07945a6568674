"""LiteLLM_SpendLogs: rows of the proxy's table, as JSON or CSV (JSON columns as text), or from its /spend/logs API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...types import Tier
from ..calls import Asked, Call
from .bodies import NONE, Counts, asking, counts_of, hash_of, joined, operation_of
from .sites import declared, site_of
from .values import (
    Fields,
    count,
    dollars,
    fields_of,
    first_named,
    flag,
    items_of,
    json_of,
    must_start,
    provider_of,
    tags_of,
    tier_of,
    when_us,
)


class LiteLLM:
    name = "litellm"
    title = "LiteLLM spend logs"

    def claims(self, record: Mapping[str, object]) -> bool:
        return "call_type" in record and "request_id" in record and ("startTime" in record or "spend" in record)

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        start_us = must_start(when_us(record.get("startTime"), "startTime"), "startTime")
        end_us = when_us(record.get("endTime"), "endTime")
        first_us = when_us(record.get("completionStartTime"), "completionStartTime")
        metadata = fields_of(record.get("metadata"))
        tags = tags_of(items_of(record.get("request_tags")))
        body = fields_of(record.get("proxy_server_request"))
        request = asking(fields_of(body.get("body")) or body) if body else None
        messages = json_of(record.get("messages"))
        text = joined([messages]) or (request.text if request else None)
        kind = first_named(record.get("call_type")) or ""
        streamed = _streamed(kind, start_us, first_us, end_us)
        error = fields_of(metadata.get("error_information"))
        failed = record.get("status") == "failure" or metadata.get("status") == "failure"
        provider = first_named(record.get("custom_llm_provider"))
        model = first_named(record.get("model")) or ""
        own = fields_of(metadata.get("spend_logs_metadata"))
        group, alias = first_named(record.get("model_group")), first_named(metadata.get("user_api_key_alias"))
        said = declared(tags, own, metadata)
        yield Call(
            start_us,
            site_of(
                asked,
                (tags, own, metadata, record),
                f"{alias}/{group or model}" if alias else _own_tag(tags),
                group,
                model,
            ),
            model.removeprefix(f"{provider}/"),
            provider_of(provider) or asked.provider,
            operation_of(kind),
            first_named(record.get("request_id")),
            end_us,
            first_us if streamed else None,
            said.first_used_us,
            None,
            *_counts(record, metadata),
            request.max_output_tokens if request else None,
            dollars(record.get("spend"), "spend"),
            tier_of(fields_of(metadata.get("usage_object")).get("service_tier"))
            or (request.tier if request else None)
            or (Tier.BATCH if "batch" in kind else None),
            (request.stream if request else None) or streamed,
            failed,
            first_named(error.get("error_class"), error.get("error_code")) if failed else None,
            None,
            request.temperature if request else None,
            request.tools if request else None,
            first_named(record.get("end_user")),
            first_named(record.get("session_id")),
            first_named(record.get("api_key"), record.get("user")),
            said.trigger,
            said.deadline_s,
            None,
            text,
            request.text_hash if request and request.text_hash else hash_of((model, messages)) if text else None,
        )


def _streamed(kind: str, start_us: int, first_us: int | None, end_us: int | None) -> bool | None:
    """A proxy without a first chunk stamps the end instead; for responses it does so for streams, too."""
    if first_us is None or end_us is None:
        return None
    if start_us <= first_us < end_us:
        return True
    return False if first_us == end_us and "response" not in kind else None


def _counts(record: Fields, metadata: Fields) -> Counts:
    """The table's totals include the cache; what was in it stands in the usage that the provider sent."""
    if flag(record.get("cache_hit")):  # answered by the proxy's own cache: nobody was asked, and nothing is billed
        return Counts(0, 0, 0, 0, 0)
    usage = fields_of(metadata.get("usage_object")) or fields_of(metadata.get("additional_usage_values"))
    sent = counts_of(usage) if usage else NONE
    asked = count(record.get("prompt_tokens"), "prompt_tokens")
    output = count(record.get("completion_tokens"), "completion_tokens")
    if not asked and not output and (not count(record.get("total_tokens"), "total_tokens")) and sent.input is None:
        return NONE  # the table's default is zero, which a call that was answered never uses
    return sent._replace(
        input=sent.input if not asked else max(asked, sent.input or 0),
        output=sent.output if output is None else max(output, sent.output or 0),
    )


def _own_tag(tags: Fields) -> str | None:
    """A tag that somebody wrote: the proxy adds those of the client's user agent itself."""
    mine = {name: value for name, value in tags.items() if not name.lower().startswith(("user-agent", "canwait."))}
    return next((f"{name}:{value}" if name != "tag" else value for name, value in mine.items()), None)
