"""What requests and answers say, in the dialects of the providers, which logs hold as they were sent.

Dialects of usage differ in what includes what (providers.md 7.2, 9). As `Counts` all mean the same:
    OpenAI        prompt_tokens | input_tokens   with the cached;     completion_tokens | output_tokens with the reasoning
    xAI, batch    as OpenAI's                                         completion_tokens without it: the total tells
    Anthropic     input_tokens without what was read from or written to a cache           output_tokens with the thinking
    Gemini        promptTokenCount with the cached, without the tools' prompts     candidatesTokenCount without thoughts
    Bedrock       inputTokens without what was read from or written to a cache     outputTokens
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from ...types import Tier
from .values import Fields, count, fields_of, first_named, flag, items_of, limit_of, number, tier_of

MAX_NESTED = 8  # parts inside parts of a message

_ANSWERED_ALIKE = frozenset(  # fields of a request that no model reads
    (
        "stream stream_options user safety_identifier metadata store service_tier serviceTier background labels timeout "
        "requestMetadata prompt_cache_key prompt_cache_retention extra_headers api_key litellm_metadata litellm_call_id "
        "proxy_server_request num_retries fallbacks"
    ).split()
)
_HOLDS_TEXT = ("content", "parts", "text", "thinking", "output", "result", "response")  # the first found is read


class Counts(NamedTuple):
    """Tokens as billed, as in Call."""

    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None

    def called(self, operation: str) -> Counts:
        """As a call of that kind has them: embeddings have no output, and their logs do not say so."""
        embeds = operation == "embeddings" and self.output is None and self.input is not None
        return self._replace(output=0) if embeds else self


NONE = Counts()


class Asking(NamedTuple):
    """What a request says."""

    model: str | None
    stream: bool | None
    max_output_tokens: int | None
    temperature: float | None
    tools: bool
    user: str | None
    session: str | None
    tier: Tier | str | None
    prompt: str | None
    operation: str
    tags: Fields
    text: str | None  # None, as the hash, where the log holds the settings of a request and not what was asked
    text_hash: bytes | None


class Reply(NamedTuple):
    """What an answer says."""

    id: str | None
    model: str | None
    counts: Counts
    finish_reason: str | None
    tier: Tier | str | None
    error: str | None
    failed: bool


# ---------------------------------------------------------------------------------------------------------- counts


def counts_of(usage: Fields) -> Counts:
    """The tokens of a usage object of any dialect."""
    if "promptTokenCount" in usage or "candidatesTokenCount" in usage or "totalTokenCount" in usage:
        return _gemini(usage)
    if "inputTokens" in usage or "outputTokens" in usage:
        return beside_cache(
            count(usage.get("inputTokens"), "inputTokens"),
            count(_first(usage, "cacheReadInputTokens", "cacheReadInputTokenCount"), "cacheReadInputTokens"),
            count(_first(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount"), "cacheWriteInputTokens"),
            count(usage.get("outputTokens"), "outputTokens"),
            None,
        )
    if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:
        read = count(usage.get("cache_read_input_tokens"), "cache_read_input_tokens")
        written = count(usage.get("cache_creation_input_tokens"), "cache_creation_input_tokens")
        if "prompt_tokens" not in usage:
            output = count(usage.get("output_tokens"), "output_tokens")
            thinking = fields_of(usage.get("output_tokens_details")).get("thinking_tokens")
            asked = count(usage.get("input_tokens"), "input_tokens")
            return beside_cache(asked, read, written, output, count(thinking, "thinking_tokens"))
        said = _openai(usage)  # LiteLLM: Anthropic's names beside OpenAI's totals, which include them
        return within_cache(said.input, _larger(said.cached, read), written, said.output, said.reasoning)
    return _openai(usage)


def beside_cache(
    asked: int | None, read: int | None, written: int | None, output: int | None, reasoning: int | None
) -> Counts:
    """Where the input is stated without what was read from or written to a cache."""
    total = asked if asked is None else asked + (read or 0) + (written or 0)
    return Counts(total, read, written, output, reasoning)


def within_cache(
    asked: int | None, read: int | None, written: int | None, output: int | None, reasoning: int | None
) -> Counts:
    """Where the input is said to include the cache. More from a cache than input at all shows that it does not."""
    if asked is not None and (read or 0) + (written or 0) > asked:
        return beside_cache(asked, read, written, output, reasoning)
    return Counts(asked, read, written, output, reasoning)


def _openai(usage: Fields) -> Counts:
    asked = count(_first(usage, "prompt_tokens", "input_tokens"), "input tokens")
    output = count(_first(usage, "completion_tokens", "output_tokens"), "output tokens")
    details = fields_of(_first(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details"))
    cached = count(
        _first(details, "cached_tokens", "cache_read")
        if details
        else _first(usage, "prompt_cache_hit_tokens", "cached_tokens"),  # DeepSeek; Moonshot
        "cached tokens",
    )
    written = count(_first(details, "cache_write_tokens", "cache_creation_tokens", "cache_creation"), "cache writes")
    details = fields_of(_first(usage, "completion_tokens_details", "output_tokens_details", "output_token_details"))
    reasoning = count(_first(details, "reasoning_tokens", "reasoning"), "reasoning tokens")
    total = count(usage.get("total_tokens"), "total tokens")
    if reasoning and asked is not None and output is not None and total == asked + output + reasoning:
        output += reasoning  # which was stated beside the output
    if output is None and asked is not None and total == asked:
        output = 0  # embeddings have none, and their usage does not say so
    return within_cache(asked, cached, written, output, reasoning)


def _gemini(usage: Fields) -> Counts:
    asked = count(usage.get("promptTokenCount"), "promptTokenCount")
    tools = count(usage.get("toolUsePromptTokenCount"), "toolUsePromptTokenCount")
    output = count(usage.get("candidatesTokenCount"), "candidatesTokenCount")
    thoughts = count(usage.get("thoughtsTokenCount"), "thoughtsTokenCount")
    cached = count(usage.get("cachedContentTokenCount"), "cachedContentTokenCount")
    if output is not None or thoughts is not None:
        output = (output or 0) + (thoughts or 0)
    return Counts(asked if asked is None else asked + (tools or 0), cached, None, output, thoughts)


# -------------------------------------------------------------------------------------------------------- requests


def asking(body: Fields) -> Asking:
    """A request of OpenAI (chat, responses, embeddings), Anthropic, Gemini or Bedrock (converse)."""
    config = fields_of(body.get("inferenceConfig")) or fields_of(body.get("generationConfig"))
    limit = _first(body, "max_completion_tokens", "max_output_tokens", "max_tokens", "max_tokens_to_sample")
    if limit is None and config:
        limit = _first(config, "maxTokens", "maxOutputTokens", "max_output_tokens")
    heat = body.get("temperature") if body.get("temperature") is not None else config.get("temperature")
    tools = body.get("tools") or body.get("functions") or fields_of(body.get("toolConfig")).get("tools")
    metadata = fields_of(body.get("metadata"))
    conversation = body.get("conversation")
    prompt = fields_of(body.get("prompt"))
    text = text_of(body)
    return Asking(
        first_named(body.get("model")),
        flag(body.get("stream")),
        limit_of(limit),
        number(heat),
        bool(tools),
        first_named(body.get("safety_identifier"), body.get("user"), metadata.get("user_id")),
        first_named(fields_of(conversation).get("id"), conversation),
        Tier.BACKGROUND if body.get("background") is True else tier_of(_first(body, "service_tier", "serviceTier")),
        version_of(prompt.get("id"), prompt.get("version")),
        _operation(body),
        metadata or fields_of(body.get("labels")) or fields_of(body.get("requestMetadata")),
        text,
        hash_of({k: v for k, v in body.items() if k not in _ANSWERED_ALIKE}) if text else None,
    )


def text_of(body: Fields) -> str | None:
    """All that a request has the model read: system text, then messages in order, joined by newlines."""
    system = _first(body, "system", "instructions", "systemInstruction", "system_instruction")
    messages = _first(body, "messages", "input", "contents", "inputText", "prompt")
    return None if messages is None or type(messages) is dict else joined((system, messages))


def joined(values: Iterable[object]) -> str | None:
    """The texts of messages, one a line; None where there is none."""
    return "\n".join(text for value in values for text in texts(value)) or None


def texts(value: object, nested: int = 0) -> Iterator[str]:
    """The texts of a message, its parts or several messages, in order. Roles, images and calls of tools are none."""
    if type(value) is str:
        if value:
            yield value
    elif nested > MAX_NESTED:
        return
    elif type(value) is list:
        for part in value:
            yield from texts(part, nested + 1)
    elif type(value) is dict:
        for name in _HOLDS_TEXT:
            if (held := value.get(name)) is not None:
                yield from texts(held, nested + 1)
                return


def hash_of(request: object) -> bytes | None:
    """16 bytes that two requests share when they are equal in every byte a model reads; None: nested too deeply to tell."""
    try:
        return sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).digest()[:16]
    except (TypeError, orjson.JSONEncodeError):
        pass  # half a surrogate, a number beyond 64 bits; or a depth that repr does not stand either
    try:
        return sha256(repr(request).encode(errors="replace")).digest()[:16]
    except RecursionError:
        return None


def version_of(name: object, version: object) -> str | None:
    """A prompt's name and version."""
    found, tail = first_named(name), first_named(version)
    return f"{found}@{tail}" if found and tail else found


# --------------------------------------------------------------------------------------------------------- answers


def reply(body: Fields) -> Reply:
    """An answer of one of those APIs, or the error that stands in its place."""
    usage = fields_of(body.get("usage")) or fields_of(body.get("usageMetadata"))
    error = body.get("error")
    kind = fields_of(error)
    status = body.get("status")
    failed = bool(error) or body.get("type") == "error" or status in ("failed", "cancelled")
    return Reply(
        first_named(body.get("id"), body.get("responseId")),
        first_named(body.get("model"), body.get("modelVersion")),
        counts_of(usage) if usage else NONE,
        _finish(body),
        tier_of(_first(body, "service_tier", "serviceTier") or _first(usage, "service_tier", "serviceTier")),
        first_named(kind.get("code"), kind.get("type"), kind.get("status")) if failed else None,
        failed,
    )


def _finish(body: Fields) -> str | None:
    for name in ("choices", "candidates"):
        for choice in items_of(body.get(name)):
            if type(choice) is dict:
                return first_named(choice.get("finish_reason"), choice.get("finishReason"))
    cut = fields_of(body.get("incomplete_details")).get("reason")
    return first_named(body.get("stop_reason"), body.get("stopReason"), cut, body.get("status"))


def _operation(body: Fields) -> str:
    if "messages" in body or "contents" in body:
        return "chat"
    if "input" in body:
        responds = "instructions" in body or "max_output_tokens" in body or "tools" in body or "text" in body
        embeds = "encoding_format" in body or "dimensions" in body or "embed" in str(body.get("model"))[:200]
        return "responses" if responds or not embeds else "embeddings"
    return "embeddings" if "inputText" in body or "texts" in body else "chat"


def operation_of(value: object) -> str:
    """A log's own word for what was called, in ours: chat, responses, embeddings or other."""
    text = value[:100].lower() if type(value) is str else ""
    if "embed" in text:
        return "embeddings"
    if "response" in text:
        return "responses"
    if any(word in text for word in ("image", "speech", "transcription", "rerank", "moderation", "file", "batch")):
        return "other"
    return "chat"


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if (value := fields.get(name)) is not None:
            return value
    return None


def _larger(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)
