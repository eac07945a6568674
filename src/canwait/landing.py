"""Raw provider output -> the results of a shard. Streams: memory is a few bytes a line and one chunk of records.

The results blob is Parquet, one record a line in the order it came; a later record of a line supersedes an earlier one.
    line int32 (of the root shard) · outcome int8 · cause · detail · output · input_tokens · output_tokens ·
    cached_input_tokens · cache_write_tokens · model · cost_micros decimal(28, 12): exact, unrounded
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .price import exact_micros
from .settling import Fate, fate_of
from .sinks.rows import field_types
from .types import Answer, Outcome, Price, ShardFile, Usage

_FIELDS: list[pa.Field[Any]] = [
    pa.field("line", pa.int32(), nullable=False),
    pa.field("outcome", pa.int8(), nullable=False),
    pa.field("cause", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("output", pa.string()),
    pa.field("input_tokens", pa.int64()),
    pa.field("output_tokens", pa.int64()),
    pa.field("cached_input_tokens", pa.int64()),
    pa.field("cache_write_tokens", pa.int64()),
    pa.field("model", pa.string()),
    pa.field("cost_micros", pa.decimal128(28, 12)),
]
SCHEMA = pa.schema(_FIELDS)
_CHUNK_ROWS = 2048
_DETAIL_CHARS = 500
_EXACT = Decimal("0.000000000001")


@dataclass(slots=True)
class Landed:
    """What an output brought. Lines are the shard's own, counted from 0."""

    fates: dict[int, Fate] = field(default_factory=dict)
    usage: Usage = Usage(0, 0)
    exact_micros: Decimal = Decimal(0)
    exact_wasted_micros: Decimal = Decimal(0)  # of rows that cannot be used
    n_strangers: int = 0  # lines that name no row of this shard
    n_repeats: int = 0  # rows returned more than once


class ResultsWriter:
    """A results file being written, in chunks."""

    def __init__(self, path: Path, root_lines: Sequence[int]) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1)
        self._root_lines = root_lines
        self._records: list[tuple[Any, ...]] = []

    def add(self, line: int, fate: Fate, answer: Answer | None, cost: Decimal | None) -> None:
        usage = answer.usage if answer else None
        tokens = (
            (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.cache_write_tokens)
            if usage
            else (None,) * 4
        )
        self._records.append(
            (self._root_lines[line], int(fate.outcome), fate.cause, fate.detail and fate.detail[:_DETAIL_CHARS],
             answer.text if answer else None, *tokens, answer.model if answer else None, cost and cost.quantize(_EXACT))
        )  # fmt: skip
        if len(self._records) >= _CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._records, strict=True)) if self._records else [()] * len(SCHEMA)
        self._writer.write_batch(
            pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        )
        self._records.clear()

    def close(self) -> None:
        if self._records:
            self._flush()
        self._writer.close()


def land(
    lines: Iterable[bytes],
    shard: ShardFile,
    *,
    decode: Callable[[bytes], Answer],
    check: Callable[[str], str | None],
    price: Price,
    writer: ResultsWriter,
) -> Landed:
    """Decode, check and record every line of a shard's output; strangers are counted and never joined to a row.

    `check` says what is wrong with an answer's text, or None. A row answered twice with the same text is one answer; with
    two different texts it is FAILED/conflict, for nobody can say which is right.
    """
    landed = Landed()
    texts: dict[int, bytes] = {}
    paid: dict[int, Usage] = {}
    for raw in lines:
        if not raw.strip():
            continue
        answer = _checked(decode(raw), check)
        line = shard.line(answer.custom_id)
        if line is None:
            landed.n_strangers += 1
            continue
        if line in landed.fates:
            landed.n_repeats += 1
            changed = _second(answer, landed.fates[line], texts.get(line), paid.get(line))
            if changed is None:
                continue
            answer = changed
        fate = fate_of(answer)
        cost = exact_micros(answer.usage, price) if answer.usage else None
        landed.fates[line] = fate
        if answer.text is not None:
            texts[line] = _digest(answer.text)
        if answer.usage:
            paid[line] = answer.usage
        writer.add(line, fate, answer, cost)
    for line, usage in paid.items():
        cost = exact_micros(usage, price)
        landed.usage += usage
        landed.exact_micros += cost
        if landed.fates[line].outcome is not Outcome.OK:
            landed.exact_wasted_micros += cost
    return landed


def _second(answer: Answer, before: Fate, text: bytes | None, usage: Usage | None) -> Answer | None:
    """What a second line for one row changes: nothing (None), an answer after an error, or a conflict."""
    if before.cause == "conflict" or answer.outcome is not Outcome.OK:
        return None
    if before.outcome is not Outcome.OK:
        return answer
    if answer.text is not None and _digest(answer.text) == text:
        return None
    why = "the provider returned two different answers for this row"
    return replace(answer, outcome=Outcome.FAILED, cause="conflict", detail=why, text=None, usage=usage or answer.usage)


def _checked(answer: Answer, check: Callable[[str], str | None]) -> Answer:
    if answer.outcome is Outcome.OK and answer.text is not None and (problem := check(answer.text)):
        return replace(answer, outcome=Outcome.FAILED, cause="schema", detail=problem)
    return answer


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def checker(schema: Mapping[str, Any] | None) -> Callable[[str], str | None]:
    """What is wrong with an answer's text by its JSON Schema (2020-12); without a schema nothing is."""
    if schema is None:
        return lambda text: None
    validator = jsonschema_rs.Draft202012Validator(dict(schema))
    integers = [name for name, kind in field_types(schema).items() if kind == pa.int64()]

    def check(text: str) -> str | None:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return f"not JSON: {error}"
        for found in validator.iter_errors(value):
            place = "/".join(str(p) for p in found.instance_path)
            return f"{place or 'answer'}: {found.message}"
        for name in integers:  # one such answer must not keep a whole job from being loaded
            if not -(2**63) <= (value.get(name) or 0) < 2**63:
                return f"{name}: {value[name]} is beyond 64 bits"
        return None

    return check


_MANIFEST_FIELDS: list[pa.Field[Any]] = [
    pa.field("line", pa.int32(), nullable=False),  # of the root shard
    pa.field("identity", pa.binary(16), nullable=False),  # what reuse looks for
    pa.field("input_expected", pa.int64(), nullable=False),
    pa.field("input_bound", pa.int64(), nullable=False),
    pa.field("output_bound", pa.int64(), nullable=False),
]
MANIFEST = pa.schema(_MANIFEST_FIELDS)


def read_manifest(path: Path) -> pa.Table:
    return pq.read_table(path, schema=MANIFEST)


def subset(lines: Iterable[bytes], wanted: Sequence[int]) -> Iterator[bytes]:
    """The wanted lines (ascending) of a request file, each with its newline."""
    order = iter(wanted)
    following = next(order, None)
    for number, line in enumerate(lines):
        if following is None:
            return
        if number == following:
            yield line + b"\n"
            following = next(order, None)
