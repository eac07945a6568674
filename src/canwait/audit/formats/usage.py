"""Usage and cost reports of OpenAI's and Anthropic's organization APIs: spend over a time, which proves nothing of who waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from ...types import Tier
from ..calls import Asked, Bucket
from .values import Fields, count, dollars, fields_of, first_named, must_start, tier_of, when_us

_TOKENS = ("input_tokens", "num_model_requests", "output_tokens")


class OpenAIUsage:
    name = "openai-usage"
    title = "OpenAI usage and costs"

    def claims(self, record: Mapping[str, object]) -> bool:
        return record.get("object") == "bucket" and "start_time" in record and _results(record) is not None

    def items(self, record: Fields, asked: Asked) -> Iterator[Bucket]:
        start_us, end_us = _span(record, "start_time", "end_time")
        for result in _must_hold(record):
            label = first_named(result.get("project_name"), result.get("project_id"), result.get("api_key_id")) or ""
            if "amount" in result:
                amount = fields_of(result.get("amount"))
                _must_be_dollars(amount.get("currency"))
                model = (first_named(result.get("line_item")) or "").partition(",")[0]
                cost = dollars(amount.get("value"), "amount")
                yield Bucket(start_us, end_us, "openai", model, cost_usd=cost, label=label)
            elif any(name in result for name in _TOKENS):
                asks, reads = (count(result.get(n), n) for n in ("input_tokens", "input_cached_tokens"))
                batch = result.get("batch") is True
                yield Bucket(
                    start_us,
                    end_us,
                    "openai",
                    first_named(result.get("model")) or "",
                    count(result.get("num_model_requests"), "num_model_requests"),
                    asks,
                    reads,
                    count(result.get("input_cache_write_tokens"), "input_cache_write_tokens"),
                    count(result.get("output_tokens"), "output_tokens"),
                    None,
                    Tier.BATCH if batch else tier_of(result.get("service_tier")),
                    label,
                )


class AnthropicUsage:
    name = "anthropic-usage"
    title = "Anthropic usage and cost reports"

    def claims(self, record: Mapping[str, object]) -> bool:
        return "starting_at" in record and "ending_at" in record and _results(record) is not None

    def items(self, record: Fields, asked: Asked) -> Iterator[Bucket]:
        start_us, end_us = _span(record, "starting_at", "ending_at")
        for result in _must_hold(record):
            label = first_named(result.get("workspace_id"), result.get("api_key_id")) or ""
            model, tier = first_named(result.get("model")) or "", tier_of(result.get("service_tier"))
            if "amount" in result:
                _must_be_dollars(result.get("currency"))
                cents = dollars(result.get("amount"), "amount")  # in the currency's smallest unit
                cost = None if cents is None else cents / Decimal(100)
                yield Bucket(start_us, end_us, "anthropic", model, cost_usd=cost, tier=tier, label=label)
                continue
            fresh = count(result.get("uncached_input_tokens"), "uncached_input_tokens")
            reads = count(result.get("cache_read_input_tokens"), "cache_read_input_tokens")
            kinds = fields_of(result.get("cache_creation"))
            writes = [count(kinds.get(n), n) for n in ("ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens")]
            written = sum(w or 0 for w in writes) if any(w is not None for w in writes) else None
            yield Bucket(
                start_us,
                end_us,
                "anthropic",
                model,
                None,
                None if fresh is None else fresh + (reads or 0) + (written or 0),
                reads,
                written,
                count(result.get("output_tokens"), "output_tokens"),
                None,
                tier,
                label,
            )


def _results(record: Mapping[str, object]) -> list[Fields] | None:
    found = record.get("results", record.get("result"))
    return found if type(found) is list else None


def _must_hold(record: Fields) -> list[Fields]:
    found = _results(record)
    if found is None or not all(type(x) is dict for x in found):
        raise ValueError("results is no array of objects")
    return found


def _span(record: Fields, start: str, end: str) -> tuple[int, int]:
    return must_start(when_us(record.get(start), start), start), must_start(when_us(record.get(end), end), end)


def _must_be_dollars(currency: object) -> None:
    if str(currency)[:10].lower() != "usd":
        raise ValueError("an amount that is not in US dollars")
