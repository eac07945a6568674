"""An output schema -> the part of a request that asks a provider for it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .types import Endpoint


def structured_output(provider: str, schema: Mapping[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> dict[str, Any]:
    """The part of a body that asks for an answer of this schema.

    Raises ValueError for a schema the provider cannot be asked for. What it cannot enforce is checked on return.
    """
    if endpoint is Endpoint.EMBEDDINGS:
        raise ValueError("an embedding is a vector and has no schema")
    sent = {k: v for k, v in schema.items() if k not in ("$schema", "$id", "$comment")}
    if provider == "anthropic":
        return {"output_config": {"format": {"schema": _closed(sent), "type": "json_schema"}}}
    named = {"name": "answer", "schema": sent, "strict": _is_strict(sent)}
    if endpoint is Endpoint.RESPONSES:
        return {"text": {"format": {**named, "type": "json_schema"}}}
    return {"response_format": {"json_schema": named, "type": "json_schema"}}


# Keywords OpenAI's strict mode takes; any other, and the whole request is refused. Missing here only costs strictness.
_STRICT = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"}
    | {"definitions", "description", "title", "pattern", "format", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "multipleOf", "minItems", "maxItems"}
)
_STRICT_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})


def _is_strict(schema: Mapping[str, Any], *, root: bool = True) -> bool:
    """Whether OpenAI's strict mode takes it: every object closed, every property required, all the way down."""
    if not schema.keys() <= _STRICT or schema.get("format", "uuid") not in _STRICT_FORMATS:
        return False
    if "$ref" in schema:
        return not root and len(schema) == 1
    if (root and schema.get("type") != "object") or not schema.keys() & {"type", "anyOf"}:
        return False
    properties = schema.get("properties", {})
    if _is_object(schema) and (
        schema.get("additionalProperties") is not False or set(properties) != set(schema.get("required", ()))
    ):
        return False
    return all(isinstance(s, Mapping) and _is_strict(s, root=False) for s in _subschemas(schema))


def _subschemas(schema: Mapping[str, Any]) -> Iterator[Any]:
    for keyword in ("properties", "$defs", "definitions"):
        yield from schema.get(keyword, {}).values()
    if "items" in schema:
        yield schema["items"]
    yield from schema.get("anyOf", ())


def _is_object(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema


_CLOSED = frozenset(
    {"type", "enum", "const", "anyOf", "oneOf", "allOf", "properties", "required", "items", "$defs"}
    | {"description", "title"}
)


def _closed(schema: Any) -> Any:
    """The schema as Anthropic takes it: objects closed, and constraints it does not take told in the description.

    The same reading as `transform_schema` of the anthropic SDK 2.12.0. An object that names no properties would be
    closed to everything, so it is refused instead: ValueError.
    """
    if not isinstance(schema, Mapping):
        raise ValueError("anthropic needs every part of the schema to state a type; found true or false")
    if "definitions" in schema:
        raise ValueError("anthropic takes `$defs`, not `definitions`")
    kept = {k: v for k, v in schema.items() if k in (("$ref", "$defs") if "$ref" in schema else _CLOSED)}
    if not kept.keys() & {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}:
        raise ValueError(f"anthropic needs every part of the schema to state a type; found {_json(schema)[:60]}")
    if schema.get("format") in _STRICT_FORMATS | {"uri"}:
        kept["format"] = schema["format"]
    if schema.get("minItems") in (0, 1):
        kept["minItems"] = schema["minItems"]
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    for keyword in ("properties", "$defs"):
        if keyword in kept:
            kept[keyword] = {name: _closed(part) for name, part in kept[keyword].items()}
    for keyword in ("anyOf", "allOf"):
        if keyword in kept:
            kept[keyword] = [_closed(part) for part in kept[keyword]]
    if "items" in kept:
        kept["items"] = _closed(kept["items"])
    if "$ref" in kept:
        return kept
    if _is_object(schema):
        if not kept.get("properties"):
            raise ValueError("anthropic takes only objects that name their properties")
        kept["additionalProperties"] = False
    told = {k: v for k, v in schema.items() if k not in kept and k not in ("additionalProperties", "oneOf")}
    if told:
        kept["description"] = "\n\n".join(filter(None, (schema.get("description"), _json(told))))
    return kept


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
