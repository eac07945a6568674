"""From answers to Arrow: the columns of a load and their types, and the rows in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from ..errors import SinkError
from ..types import LoadedRow
from . import PROVENANCE

OUTPUT = "output"  # the one field of an answer that is not an object with named fields

_BATCH_ROWS = 1024
_MAX_DEPTH = 16  # of nested types; what is deeper, as a schema that contains itself, is JSON text
_SCALARS: Mapping[Any, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}


def loaded_schema(key: str, output_schema: Mapping[str, Any] | None) -> pa.Schema:
    """The columns of a load: key, the output's fields, provenance. Raises SinkError when two would have one name."""
    fields = field_types(output_schema)
    names = [key, *fields, *PROVENANCE]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SinkError(
            f"the loaded rows would have two columns named {twice[0]!r}",
            hint=f"rename the field of the output: {key!r} is the key, and {', '.join(PROVENANCE)} are always loaded",
        )
    provenance: list[pa.DataType] = [pa.string(), pa.string(), pa.decimal128(18, 9), pa.timestamp("us", "UTC")]
    return pa.schema(list(zip(names, [pa.string(), *fields.values(), *provenance], strict=True)))


def field_types(output_schema: Mapping[str, Any] | None) -> dict[str, pa.DataType]:
    """The Arrow types of an answer's fields by its JSON Schema; fields that the schema does not name are not loaded.

    What has no single type (a union, an array or object without a stated shape) is JSON text.
    """
    if output_schema is None:
        return {OUTPUT: pa.string()}
    properties = _resolved(output_schema, output_schema).get("properties")
    return {
        name: _arrow_type(schema, output_schema, depth=0)
        for name, schema in (properties or {OUTPUT: output_schema}).items()
    }


def output_values(output: str, output_schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """One answer's fields, named as in `field_types`. With a schema the answer must be JSON that fits it."""
    if output_schema is None:
        return {OUTPUT: output}
    value = orjson.loads(output)
    properties = _resolved(output_schema, output_schema).get("properties")
    return {name: value.get(name) for name in properties} if properties else {OUTPUT: value}


def loaded_batches(
    rows: Iterable[LoadedRow], schema: pa.Schema, misfit: Callable[[LoadedRow, str], None]
) -> Iterator[pa.RecordBatch]:
    """The rows as `loaded_schema` has them. A row that cannot be stored, as with an integer beyond 64 bits, goes to
    `misfit` with the reason, so that one odd answer does not keep the others from being loaded.
    """
    rows = iter(rows)
    while chunk := list(islice(rows, _BATCH_ROWS)):
        try:
            yield _batch(chunk, schema)
        except (pa.ArrowException, OverflowError, TypeError):
            fitting = []
            for row in chunk:
                try:
                    _batch([row], schema)
                except (pa.ArrowException, OverflowError, TypeError) as error:
                    misfit(row, f"cannot be stored: {error}")
                else:
                    fitting.append(row)
            yield _batch(fitting, schema)


def _batch(rows: list[LoadedRow], schema: pa.Schema) -> pa.RecordBatch:
    fields = list(schema)[1 : -len(PROVENANCE)]
    columns: list[list[Any]] = [[row.key for row in rows]]
    for field in fields:
        columns.append([_fitted(row.values.get(field.name), field.type) for row in rows])
    columns += [[row.model for row in rows], [row.tier for row in rows]]
    columns += [[_to_nanos(row.cost_usd) for row in rows], [row.produced_at for row in rows]]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _to_nanos(usd: Decimal | None) -> Decimal | None:
    """A share of a cost may have any number of digits; a column has nine after the point."""
    return None if usd is None else usd.quantize(Decimal("1e-9"))


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """A JSON value for an Arrow type: text where the type is text, and the fields that a struct has."""
    if value is None or (isinstance(value, str) and kind == pa.string()):
        return value
    if kind == pa.string():
        return orjson.dumps(value).decode()
    if kind == pa.int64() and isinstance(value, float):  # 3.0 is an integer in JSON; Arrow would cut 3.5 to 3
        if not value.is_integer():
            raise pa.ArrowInvalid(f"{value} is no integer")
        return int(value)
    if isinstance(kind, pa.ListType):
        return [_fitted(item, kind.value_type) for item in value]
    if isinstance(kind, pa.StructType):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    return value


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
