"""What the simulated model says. An answer is a function of the request and of randomness seeded by it."""

from __future__ import annotations

import hashlib
import json
import math
import random
import string
import struct
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

Body = Mapping[str, Any]
AnswerFn = Callable[[Body, random.Random], str]
"""(request body, randomness that depends on seed and body only) -> the answer's text. Raising fails the row."""


def schema_answer(body: Body, rng: random.Random) -> str:
    """An instance of the JSON Schema the request asks for; without one, a short sentence."""
    schema = output_schema(body)
    if schema is None:
        return _sentence(rng)
    return json.dumps(_instance(schema, schema, rng, 0), ensure_ascii=False)


def echo(body: Body, rng: random.Random) -> str:
    """The last user message."""
    return last_user_text(body)


def replay(source: Path | Mapping[str, str], otherwise: AnswerFn = schema_answer) -> AnswerFn:
    """Answers written down before: a mapping from the last user message, or a JSONL file of {"match", "text"}.

    `match` is the sha256 (hex) of the compact body, or the last user message. What is not found goes to `otherwise`.
    """
    if isinstance(source, Path):
        with source.open(encoding="utf-8") as lines:
            known = {entry["match"]: entry["text"] for entry in map(json.loads, filter(str.strip, lines))}
    else:
        known = dict(source)

    def answer(body: Body, rng: random.Random) -> str:
        for match in (last_user_text(body), body_sha256(body)):
            if match in known:
                return str(known[match])
        return otherwise(body, rng)

    return answer


def openai_upstream(base_url: str, *, model: str | None = None, key: str = "none", timeout_s: float = 600) -> AnswerFn:
    """Asks a real model behind an OpenAI-compatible server, such as a local one; `model` overrides the request's."""

    def answer(body: Body, rng: random.Random) -> str:
        request = urllib.request.Request(
            base_url.rstrip("/") + "/chat/completions",
            data=json.dumps(_as_chat(body) | ({"model": model} if model else {})).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"] or "")

    return answer


# ----------------------------------------------------------------------------------------------------- the request


def compact(body: Body) -> bytes:
    """The body as it was sent, without white space; for a canwait request, byte for byte `Request.body`."""
    return orjson.dumps(body)


def body_sha256(body: Body) -> str:
    return hashlib.sha256(compact(body)).hexdigest()


def messages(body: Body) -> list[dict[str, Any]]:
    """Of a chat or Messages request as they are; of what has an `input`, a text in it is a message of the user."""
    said = body.get("messages") or body.get("input") or []
    items = [said] if isinstance(said, str) else said
    found = [{"role": "user", "content": item} if isinstance(item, str) else item for item in items]
    return [message for message in found if isinstance(message, dict)]


def texts(body: Body) -> list[str]:
    """Every text of a request, one a message; `system` (Anthropic) and `instructions` (responses) count as one."""
    above = body.get("system") or body.get("instructions")
    return [_text(part) for part in ([above] if above else []) + [m.get("content") for m in messages(body)]]


def last_user_text(body: Body) -> str:
    spoken = (_text(message.get("content")) for message in reversed(messages(body)) if message.get("role") == "user")
    return next(spoken, "")


def output_schema(body: Body) -> Any:
    """The JSON Schema asked for: `response_format` or `text.format` (OpenAI), `output_config.format` (Anthropic)."""
    match body:
        case {"text": {"format": {"type": "json_schema", "schema": schema}}}:
            return schema
        case {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}:
            return schema
        case {"output_config": {"format": {"type": "json_schema", "schema": schema}}}:
            return schema
        case {"response_format": {"type": "json_object"}}:
            return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _as_chat(body: Body) -> dict[str, Any]:
    """A Messages request or one for a response as a chat request; a chat request as it is."""
    if not body.keys() & _NOT_CHAT:
        return dict(body)
    above = body.get("system") or body.get("instructions")
    system = [{"role": "system", "content": _text(above)}] if above else []
    schema = output_schema(body)
    chat = {k: v for k, v in body.items() if k not in _NOT_CHAT}
    chat["messages"] = [*system, *messages(body)]
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    if schema is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return chat


_NOT_CHAT = frozenset({"system", "output_config", "input", "instructions", "max_output_tokens", "text", "store"})


# --------------------------------------------------------------------------------------------------------- embeddings


def full_length(body: Body) -> int:
    """How many numbers the model's vectors have when the request does not say."""
    return 3072 if body.get("model") == "text-embedding-3-large" else 1536


def embedding(text: str, dimensions: int) -> bytes:
    """A vector of length 1 that depends on the text alone, as little-endian float32."""
    numbers = struct.unpack(
        f"<{dimensions}h", hashlib.shake_128(text.encode("utf-8", "replace")).digest(2 * dimensions)
    )
    length = math.hypot(*numbers) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


# ------------------------------------------------------------------------------------------- instances of a schema

_WORDS = "the order was late and support said it would ship soon but nothing came so please help".split()
_DEPTH = 5  # deeper, only what is required: recursive schemas must end


def _instance(schema: Any, root: Any, rng: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict):
        return _sentence(rng)
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, rng, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            options = schema[choice]
            return _instance(rng.choice(options) if depth < _DEPTH else options[-1], root, rng, depth + 1)
    if "allOf" in schema:
        return _instance(_merged(schema, root), root, rng, depth + 1)
    match _type(schema, rng):
        case "object":
            required = schema.get("required", ())
            return {
                name: _instance(part, root, rng, depth + 1)
                for name, part in schema.get("properties", {}).items()
                if name in required or depth < _DEPTH
            }
        case "array":
            least = schema.get("minItems", 0 if depth >= _DEPTH else 1)
            length = rng.randint(least, max(least, min(schema.get("maxItems", 3), 3 if depth < _DEPTH else least)))
            return [_instance(schema.get("items"), root, rng, depth + 1) for _ in range(length)]
        case "integer":
            step = schema.get("multipleOf", 1)
            low, high = _range(schema, 1)
            return rng.randint(-(-low // step), max(-(-low // step), high // step)) * step
        case "number":
            low, high = _range(schema, 1e-3)
            return round(rng.uniform(low, high), 3)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
    return _string(schema, rng)


def _type(schema: dict[str, Any], rng: random.Random) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return str(rng.choice(kind) if isinstance(kind, list) else kind)


def _range(schema: dict[str, Any], step: float) -> tuple[Any, Any]:
    low = schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else None)
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100
    return low, max(low, low + 100 if high is None else high)


_FORMATS = {
    "date": "2026-0{0}-1{0}",
    "date-time": "2026-0{0}-1{0}T0{0}:00:00Z",
    "time": "0{0}:00:00Z",
    "email": "person{0}@example.com",
    "uri": "https://example.com/{0}",
    "uuid": "00000000-0000-4000-8000-00000000000{0}",
}


def _string(schema: dict[str, Any], rng: random.Random) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]].format(rng.randint(1, 9))
    text = _sentence(rng)
    least, most = schema.get("minLength", 0), schema.get("maxLength", 10_000)
    while len(text) < least:
        text += " " + rng.choice(_WORDS)
    return text[:most]


def _sentence(rng: random.Random) -> str:
    words = rng.choices(_WORDS, k=rng.randint(4, 12))
    return string.capwords(words[0]) + " " + " ".join(words[1:]) + "."


def _resolve(pointer: str, root: Any) -> Any:
    found = root
    for part in pointer.removeprefix("#").split("/")[1:]:
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def _merged(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    parts: Sequence[Any] = [*schema["allOf"], {k: v for k, v in schema.items() if k != "allOf"}]
    merged: dict[str, Any] = {}
    for part in parts:
        full = _resolve(part["$ref"], root) if "$ref" in part else part
        merged |= full | {
            "properties": merged.get("properties", {}) | full.get("properties", {}),
            "required": [*merged.get("required", ()), *full.get("required", ())],
        }
    return merged
