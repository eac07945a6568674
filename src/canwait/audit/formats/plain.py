"""Plain tables and JSON lines: any column may be any field of a Call, by a map or by a name that says what it is.

canwait's own recorder writes JSON lines of Call's fields by their names (`Recorded`); a time may be ISO 8601, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..calls import Asked, Call
from .bodies import NONE, Counts, beside_cache, counts_of, hash_of, joined, operation_of, version_of, within_cache
from .sites import declared, site_of, trigger_of
from .values import (
    Fields,
    after_us,
    ahead_s,
    count,
    dollars,
    fields_of,
    first_named,
    flag,
    json_of,
    must_start,
    number,
    provider_of,
    tags_of,
    tier_of,
    when_us,
)

# Field of a Call, or what one is made of -> names it is found by, the best first, in lower case with `_` for all marks.
NAMES: Mapping[str, Sequence[str]] = {
    "start": (
        "start_us start start_time starttime started_at request_time requested_at request_timestamp timestamp "
        "time ts datetime date_time created_at created date"
    ).split(),
    "site": "site canwait_site call_site callsite feature use_case task component app".split(),
    "model": "model model_requested request_model model_name model_id deployment".split(),
    "provider": "provider provider_name vendor system".split(),
    "operation": "operation endpoint call_type".split(),
    "record_id": "record_id request_id requestid call_id generation_id id".split(),
    "end": "end_us end end_time endtime ended_at finished_at completed_at response_time".split(),
    "first_token": "first_token_us first_token first_token_at completion_start_time".split(),
    "first_used": "first_used_us first_used first_used_at canwait_first_used_at first_read_at read_at".split(),
    "model_served": "model_served response_model".split(),
    "input_tokens": (
        "input_tokens prompt_tokens tokens_prompt tokens_in tokens_input inputtokens n_input_tokens "
        "num_input_tokens contexttokens context_tokens"
    ).split(),
    "cached_tokens": (
        "cached_tokens cached_input_tokens input_cached_tokens cache_read_tokens cache_read_input_tokens "
        "prompt_cache_read_tokens"
    ).split(),
    "cache_write_tokens": (
        "cache_write_tokens cache_creation_tokens cache_creation_input_tokens input_cache_write_tokens "
        "prompt_cache_write_tokens"
    ).split(),
    "output_tokens": (
        "output_tokens completion_tokens tokens_completion tokens_out tokens_output outputtokens "
        "n_output_tokens num_output_tokens generatedtokens generated_tokens"
    ).split(),
    "reasoning_tokens": "reasoning_tokens thinking_tokens native_tokens_reasoning".split(),
    "max_output_tokens": "max_output_tokens max_tokens max_completion_tokens".split(),
    "cost_usd": "cost_usd cost usd cost_total total_cost spend".split(),
    "tier": "tier service_tier".split(),
    "stream": "stream streamed streaming is_stream".split(),
    "failed": "failed is_error".split(),
    "error": "error error_type error_code".split(),
    "finish_reason": "finish_reason stop_reason finish_reason_normalized".split(),
    "temperature": "temperature".split(),
    "tools": "tools has_tools".split(),
    "user": "user user_id end_user enduser customer_id".split(),
    "session": "session session_id conversation_id thread_id trace_id".split(),
    "actor": "actor api_key_name api_key_id key_alias service worker host hostname pod".split(),
    "trigger": "trigger canwait_trigger triggered_by".split(),
    "deadline_s": "deadline_s canwait_deadline_s deadline_seconds".split(),
    "prompt": "prompt_name prompt_id prompt_template".split(),
    "text": "text prompt messages prompt_text input_text".split(),
    "text_hash": "text_hash request_hash".split(),  # of the whole request: a hash of a prompt alone is none
    # not fields of a Call, but some of them are made of these
    "latency_ms": "latency_ms duration_ms elapsed_ms request_duration_ms generation_time".split(),
    "latency_s": "latency_s duration_s latency_seconds duration_seconds elapsed_s".split(),
    "first_token_ms": "time_to_first_token_ms ttft_ms".split(),
    "status": "status status_code http_status".split(),
    "usage": "usage".split(),
    "tags": "tags metadata labels".split(),
}
ALIASES = {"start_us": "start", "end_us": "end", "first_token_us": "first_token", "first_used_us": "first_used"}

_MARKS = re.compile(r"[^a-z0-9]+")
_BESIDE = frozenset({"cache_read_input_tokens", "cache_creation_input_tokens"})  # Anthropic's: not in its input_tokens
_SAYS_BESIDE = frozenset(
    {"", "anthropic", "bedrock"}
)  # whoever else has such columns copied the names, not the meaning
_COUNTS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_FAILURES = ("error", "failed", "failure", "timeout", "exception")
_HEX = re.compile(r"[0-9a-fA-F]{32,128}\Z")


class Plain:
    name = "plain"
    title = "plain columns"

    def claims(self, record: Mapping[str, object]) -> bool:
        """Where a call, its time and what it asked can be told by the columns' names."""
        found = columns_of(record, {})
        return "start" in found and bool(found.keys() & {"model", "input_tokens", "output_tokens", "usage", "text"})

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        yield _call(record, columns_of(record, asked.columns), asked)


class Recorded(Plain):
    name = "canwait"
    title = "canwait's own record"

    def claims(self, record: Mapping[str, object]) -> bool:
        return "start_us" in record and "model" in record and "site" in record


def columns_of(record: Mapping[str, object], stated: Mapping[str, str]) -> Mapping[str, str]:
    """Which column holds which field: as stated, else by its name."""
    return _columns(tuple(record), tuple(stated.items()))


@lru_cache(256)  # of different headers; in JSON lines a few alternate
def _columns(header: tuple[str, ...], stated: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    found = {ALIASES.get(field, field): column for field, column in stated}
    taken = set(found.values())
    by_name: dict[str, str] = {}
    for column in header:
        if column not in taken and type(column) is str and len(column) <= 100:
            by_name.setdefault(_plain(column), column)
    for field, names in NAMES.items():
        if field not in found and (name := next((n for n in names if n in by_name), None)):
            found[field] = by_name[name]
    return found


def _plain(column: str) -> str:
    return _MARKS.sub("_", column.lower()).strip("_")


def _call(record: Fields, columns: Mapping[str, str], asked: Asked) -> Call:
    get = {field: record.get(column) for field, column in columns.items()}.get

    def time(field: str) -> int | None:
        value = get(field)
        return None if value is None else when_us(value, columns[field])

    start_us = must_start(time("start"), columns.get("start", "time"))
    tags = _tags(get("tags"))
    said = declared(tags, record)
    failed, error = _failure(get)
    text = joined([json_of(get("text"))]) if "text" in columns else None
    model, provider = first_named(get("model")) or "", provider_of(get("provider")) or asked.provider
    operation = operation_of(get("operation")) if get("operation") else "embeddings" if "embed" in model else "chat"
    max_output_tokens, deadline_s = get("max_output_tokens"), ahead_s(get("deadline_s"))
    return Call(
        start_us,
        site_of(asked, (record, tags), get("site"), get("prompt")),
        model,
        provider,
        operation,
        first_named(get("record_id")),
        _later(start_us, get, "latency_ms", "latency_s") if (end_us := time("end")) is None else end_us,
        _later(start_us, get, "first_token_ms") if (first_us := time("first_token")) is None else first_us,
        time("first_used") or said.first_used_us,
        first_named(get("model_served")),
        *_counts(get, columns, provider).called(operation),
        None if max_output_tokens is None else count(max_output_tokens, columns["max_output_tokens"]),
        dollars(get("cost_usd"), columns.get("cost_usd", "")),
        tier_of(get("tier")),
        flag(get("stream")),
        failed,
        error,
        first_named(get("finish_reason")),
        number(get("temperature")),
        _offered(get("tools")),
        first_named(get("user")),
        first_named(get("session")),
        first_named(get("actor")),
        trigger_of(get("trigger")) or said.trigger,
        said.deadline_s if deadline_s is None else deadline_s,
        version_of(get("prompt"), record.get("prompt_version")),
        text,
        _hash(get("text_hash"), model, text),
    )


def _counts(get: Callable[[str], Any], columns: Mapping[str, str], provider: str) -> Counts:
    """The columns of counts, else those of a usage object."""
    if "input_tokens" not in columns and "output_tokens" not in columns:
        usage = fields_of(get("usage"))
        return counts_of(usage) if usage else NONE
    found = [None if (value := get(field)) is None else count(value, columns[field]) for field in _COUNTS]
    return (beside_cache if provider in _SAYS_BESIDE and _is_beside(*map(columns.get, _COUNTS[:3])) else within_cache)(
        *found
    )


@lru_cache(256)
def _is_beside(asked: str | None, *caches: str | None) -> bool:
    """Whether columns are named as Anthropic names its own: LiteLLM puts such beside prompt_tokens, which include them."""
    return _plain(asked or "") == "input_tokens" and not _BESIDE.isdisjoint(_plain(c) for c in caches if c)


def _later(start_us: int, get: Callable[[str], Any], ms: str, s: str = "") -> int | None:
    if (length := number(get(ms))) is not None:
        return after_us(start_us, length / 1_000)
    return after_us(start_us, number(get(s)))


def _tags(value: object) -> Fields:
    found = json_of(value)
    return tags_of(found) if type(found) is list else fields_of(found)


def _failure(get: Callable[[str], Any]) -> tuple[bool, str | None]:
    """Whether a call failed, and its error's type, from a flag, a status or an error's name."""
    held = get("error")
    kind = fields_of(held)
    error = first_named(kind.get("type"), kind.get("code"), None if type(held) is int else held)
    if error and error.lower() in ("none", "null", "false", "-", "0"):
        error = None
    status = get("status")
    code = number(status)
    bad = 400 <= code < 600 if code is not None else str(status)[:40].lower() in _FAILURES
    told = flag(get("failed"))
    return (bool(error) or bad) if told is None else told, error or (first_named(status) if bad else None)


def _offered(value: object) -> bool | None:
    held = json_of(value)
    return bool(held) if type(held) in (list, dict) else flag(held)


def _hash(stated: object, model: str, text: str | None) -> bytes | None:
    if type(stated) is str and stated:
        return bytes.fromhex(stated[:32]) if _HEX.match(stated) else hash_of(stated)
    return hash_of((model, text)) if text else None
