"""The columns of an answer: Arrow types by its JSON Schema, values that fit them, and rows taken by their numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import orjson
import pyarrow as pa

_MAX_DEPTH = 16  # of nested types; what is deeper, as a schema that contains itself, is JSON text
_SCALARS: Mapping[Any, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}


def field_types(output_schema: Mapping[str, Any] | None) -> dict[str, pa.DataType]:
    """The type of each field that the schema names; none where an answer is not an object with named fields.

    What has no single type (a union, an array or object without a stated shape) is text.
    """
    schema = output_schema or {}
    properties = _resolved(schema, schema).get("properties") or {}
    return {name: _arrow_type(field, schema, depth=0) for name, field in properties.items()}


def fitted(value: Any, kind: pa.DataType) -> Any:
    """A JSON value as `pa.array` takes it for this type: JSON text where the type is text and the value is not.

    Raises ArrowInvalid for a number that is no integer where one is wanted: Arrow would cut 3.5 to 3.
    """
    if value is None or (isinstance(value, str) and kind == pa.string()):
        return value
    if kind == pa.string():
        return orjson.dumps(value).decode()
    if kind == pa.int64() and isinstance(value, float):  # 3.0 is an integer in JSON
        if not value.is_integer():
            raise pa.ArrowInvalid(f"{value} is no integer")
        return int(value)
    if kind == pa.float64() and type(value) is int:  # Arrow refuses 2**60, which JSON's readers take for a number
        return float(value)
    if isinstance(kind, pa.ListType):
        return [fitted(item, kind.value_type) for item in value]
    if isinstance(kind, pa.StructType):
        return {field.name: fitted(value.get(field.name), field.type) for field in kind}
    return value


class Chunks:
    """Record batches, read by row number. Grouped by batch, for Arrow's own `take` slows with the number of batches."""

    def __init__(self, batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
        self.batches, self.schema = batches, schema
        self.starts = [0, *accumulate(batch.num_rows for batch in batches)]

    def take(self, rows: Sequence[int]) -> pa.Table:
        """These rows, in this order."""
        by_batch: dict[int, list[int]] = {}
        for row in rows:
            by_batch.setdefault(bisect_right(self.starts, row) - 1, []).append(row)
        found = [
            self.batches[number].take(pa.array([row - self.starts[number] for row in wanted], pa.int64()))
            for number, wanted in by_batch.items()
        ]
        place = {row: i for i, row in enumerate(chain.from_iterable(by_batch.values()))}
        return pa.Table.from_batches(found, self.schema).take(pa.array([place[row] for row in rows], pa.int64()))


def _arrow_type(schema: Any, root: Mapping[str, Any], depth: int) -> pa.DataType:
    schema = _resolved(schema, root)
    if depth == _MAX_DEPTH:
        return pa.string()
    options = [option for option in schema.get("anyOf") or schema.get("oneOf") or () if option != {"type": "null"}]
    if len(options) == 1:
        return _arrow_type(options[0], root, depth + 1)
    kinds = schema.get("type")
    if isinstance(kinds, list):
        kinds = [kind for kind in kinds if kind != "null"]
        kinds = kinds[0] if len(kinds) == 1 else None
    if kinds == "array" and "items" in schema:
        return pa.list_(_arrow_type(schema["items"], root, depth + 1))
    if kinds == "object" and schema.get("properties"):
        fields = schema["properties"].items()
        return pa.struct([(name, _arrow_type(field, root, depth + 1)) for name, field in fields])
    return _SCALARS.get(kinds, pa.string())


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a local `$ref` (pydantic writes `#/$defs/Name`) points to; {} for what is no object."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(reference := schema.get("$ref"), str):
            return schema
        schema = root
        for step in reference.removeprefix("#").split("/")[1:]:
            schema = schema.get(step.replace("~1", "/").replace("~0", "~"), {})
    return {}
