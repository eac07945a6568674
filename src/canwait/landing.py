"""Raw provider output -> the results of a shard. Streams: memory is some 25 bytes a line and one chunk of records.

The results blob is Parquet, one record a line in the order it came; a later record of a line supersedes an earlier one.
    line int32 (of the root shard) · outcome int8 · cause · detail · output · input_tokens · output_tokens ·
    cached_input_tokens · cache_write_tokens · model · cost_micros decimal(28, 12): exact, unrounded ·
    vector: an embedding, little-endian float32
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, cast

import jsonschema_rs
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .lines import read_lines
from .price import EXACT, exact_micros, scaled_rates
from .settling import Fate, Fates, fate_of
from .sinks.rows import field_types
from .types import Answer, Outcome, Plain, Price, ShardFile, Usage

_COST = pa.decimal128(28, 12)
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
    pa.field("cost_micros", _COST),
    pa.field("vector", pa.binary()),
]
SCHEMA = pa.schema(_FIELDS)
EMBEDDINGS = "/v1/embeddings"
# Few different values.
_REPEATING = ["outcome", "cause", "detail", "model", "cached_input_tokens", "cache_write_tokens"]
_PACK_ROWS = 256  # whose texts are held as objects: more of them fall out of the processor's cache
_CHUNK_ROWS = 4096
_GROUP_ROWS, _GROUP_BYTES = 8192, 8 << 20
_DETAIL_CHARS = 500
_EXACT = Decimal("0.000000000001")

ORDINARY = Fate(Outcome.OK, None, None, "stated")


@dataclass(slots=True)
class Landed:
    """What an output brought. Lines are the shard's own, counted from 0."""

    fates: Fates
    usage: Usage = Usage(0, 0)
    exact_micros: Decimal = Decimal(0)
    exact_wasted_micros: Decimal = Decimal(0)  # of rows that cannot be used
    n_strangers: int = 0  # lines that name no row of this shard
    n_repeats: int = 0  # rows returned more than once


class ResultsWriter:
    """A results file being written, in row groups."""

    def __init__(self, path: Path, root_lines: Sequence[int]) -> None:
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            compression="lz4",  # two thirds of the time of zstd, on a file that is a fraction of the raw output
            use_dictionary=cast(Any, _REPEATING),
            write_statistics=["line"],
        )
        self._root_lines = pa.array(root_lines, pa.int32())
        self._waiting: list[pa.RecordBatch] = []
        self._n_rows = self._n_bytes = 0

    def write(self, records: pa.RecordBatch) -> None:
        """Records in SCHEMA, their lines being the shard's own."""
        root_lines = self._root_lines.take(records.column(0))
        records = pa.RecordBatch.from_arrays([root_lines, *records.columns[1:]], schema=SCHEMA)
        self._waiting.append(records)
        self._n_rows += records.num_rows
        self._n_bytes += records.nbytes
        if self._n_rows >= _GROUP_ROWS or self._n_bytes >= _GROUP_BYTES:
            self._flush()

    def fill(self, lines: Sequence[int], fate: Fate) -> None:
        """These lines all ended so, without an answer."""
        ends = {
            "outcome": int(fate.outcome),
            "cause": fate.cause,
            "detail": fate.detail and fate.detail[:_DETAIL_CHARS],
        }
        for start in range(0, len(lines), _GROUP_ROWS):
            part = pa.array(lines[start : start + _GROUP_ROWS], pa.int32())
            ended = [pa.repeat(pa.scalar(ends.get(f.name), f.type), len(part)) for f in _FIELDS[1:]]
            self.write(pa.RecordBatch.from_arrays([part, *ended], schema=SCHEMA))

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._waiting, SCHEMA), row_group_size=max(1, self._n_rows))
        self._waiting.clear()
        self._n_rows = self._n_bytes = 0

    def close(self) -> None:
        if self._waiting:
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
    plain: Callable[[bytes], Plain | None] = lambda raw: None,
) -> Landed:
    """Decode, check and record every line of a shard's output; strangers are counted and never joined to a row.

    `check` says what is wrong with an answer's text, or None. A row answered twice with the same text is one answer; with
    two different texts it is FAILED/conflict, for nobody can say which is right. `plain` reads the lines that need no
    such care; for any other it says None.
    """
    n_rows, token = shard.n_rows, shard.token
    if shard.endpoint == EMBEDDINGS:
        plain = _never  # it reads texts
    book = _Book(shard, decode, check, price, writer)
    begin = len(token) + 1
    # What follows is run once a line: it does for an ordinary one what `_Book.take` does for every one.
    fates, seen, paid, inputs, outputs = book.landed.fates.codes, book.seen, book.paid, book.inputs, book.outputs
    ordinary = book.landed.fates.code(ORDINARY)
    numbers, rows = book.lines, book.rows
    for raw in lines:
        if found := plain(raw):
            name, text, _, n_input, n_output, cached, written = found
            try:
                line = int(name[begin:])
            except ValueError:
                line = -1
            if 0 <= line < n_rows and not fates[line] and name == f"{token}-{line}":
                problem = check(text)
                fates[line] = ordinary if problem is None else book.misfit(problem)
                seen[line] = hash(text)
                paid[line] = 1
                inputs[line] = n_input
                outputs[line] = n_output
                if cached or written:
                    book.cached[line], book.written[line] = cached, written
                numbers.append(line)
                rows.append(found)
            else:
                book.take(raw)
        elif raw.strip():
            book.take(raw)
        if len(rows) >= _PACK_ROWS:
            book.pack()
    return book.closed()


def _never(raw: bytes) -> None:
    return None


class _Book:
    """What is known of a shard's lines while its output is read, and the records not written yet."""

    def __init__(
        self,
        shard: ShardFile,
        decode: Callable[[bytes], Answer],
        check: Callable[[str], str | None],
        price: Price,
        writer: ResultsWriter,
    ) -> None:
        self.landed = Landed(Fates(shard.n_rows))
        self._shard, self._decode, self._check, self._price, self._writer = shard, decode, check, price, writer
        self._places, self._levels = scaled_rates(price)
        self._dimensions = _dimensions(shard)
        # by line of the shard; hashes differ from process to process and are compared in this one only
        self.seen = array("q", bytes(8 * shard.n_rows))  # of its answer
        self.paid = bytearray(shard.n_rows)  # whether it has a bill; then how many tokens:
        self.inputs, self.outputs, self.cached, self.written = (array("I", bytes(4 * shard.n_rows)) for _ in range(4))
        # by record
        self.lines: list[int] = []
        # As Plain, parts of which may be None. These are of the last records only; what follows is of those before them.
        self.rows: list[Plain | tuple[Any, ...]] = []
        self._texts: list[pa.Array[Any]] = []
        self._others: list[list[Any]] = [[], [], [], [], []]  # model, and the tokens in the order of `Usage`
        self.odd: dict[int, tuple[int, str | None, bytes | None]] = {}  # record: code of its fate, detail, vector

    def misfit(self, problem: str) -> int:
        """The next record is an answer that `check` refuses; the code of its fate."""
        code = self.landed.fates.code(Fate(Outcome.FAILED, "schema", problem, "stated"))
        self.odd[len(self.lines)] = code, problem[:_DETAIL_CHARS], None
        return code

    def take(self, raw: bytes) -> None:
        """Record one line of output, whatever it is."""
        landed, fates = self.landed, self.landed.fates
        answer = self._decode(raw)
        line = self._shard.line(answer.custom_id)
        if line is None:
            landed.n_strangers += 1
            return
        answer = self._checked(answer)
        if line in fates:
            landed.n_repeats += 1
            changed = self._second(answer, line)
            if changed is None:
                return
            answer = changed
        fate = fate_of(answer)
        fates[line] = fate
        self.seen[line] = _hash(answer)
        tokens: Sequence[int | None] = (None,) * 4
        if usage := answer.usage:
            self.paid[line] = 1
            self.inputs[line], self.outputs[line] = usage.input_tokens, usage.output_tokens
            self.cached[line], self.written[line] = usage.cached_input_tokens, usage.cache_write_tokens
            tokens = usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.cache_write_tokens
        detail = fate.detail and fate.detail[:_DETAIL_CHARS].encode("utf-8", "replace").decode()  # hostile text
        self.odd[len(self.lines)] = fates.codes[line], detail, answer.vector
        self.lines.append(line)
        self.rows.append((None, answer.text, answer.model, *tokens))

    def pack(self) -> None:
        """Put the last records into columns, and write them when they are many."""
        if self.rows:
            _, texts, *others = zip(*self.rows, strict=True)
            self._texts.append(pa.array(texts, pa.string()))
            for column, part in zip(self._others, others, strict=True):
                column += part
            self.rows.clear()
        if len(self.lines) >= _CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        kinds, n = self.landed.fates.kinds, len(self.lines)
        codes = bytearray([self.landed.fates.code(ORDINARY)]) * n
        for place, (code, _, _) in self.odd.items():
            codes[place] = code
        ends = _column(codes, pa.uint8())
        models, *counts = self._others
        tokens = [pa.array(column, pa.int64()) for column in counts]
        odd = [self.odd.get(place, (0, None, None)) for place in range(n)] if self.odd else []
        columns: list[pa.Array[Any]] = [
            pa.array(self.lines, pa.int32()),
            pa.array([kind.outcome for kind in kinds], pa.int8()).take(ends),
            pa.array([kind.cause for kind in kinds], pa.string()).take(ends),
            pa.array([detail for _, detail, _ in odd], pa.string()) if odd else pa.nulls(n, pa.string()),
            pa.concat_arrays(self._texts),
            *tokens,
            pa.array(models, pa.string()),
            self._costs(tokens),
            pa.array([vector for _, _, vector in odd], pa.binary()) if odd else pa.nulls(n, pa.binary()),
        ]
        self._writer.write(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self.lines.clear()
        self.odd.clear()
        self._texts.clear()
        for column in self._others:
            column.clear()

    def closed(self) -> Landed:
        """Write what waits, and add up what the lines cost."""
        self.pack()
        if self.lines:
            self._flush()
        landed, outcomes = self.landed, self.landed.fates.outcomes()
        bills = [self.inputs, self.outputs, self.cached, self.written]
        for start in range(0, len(outcomes), _GROUP_ROWS):
            part = slice(start, start + _GROUP_ROWS)
            tokens = [_column(bill[part], pa.uint32()).cast(pa.int64()) for bill in bills]
            landed.usage += Usage(*(pc.sum(column).as_py() for column in tokens))
            unusable = pc.not_equal(_column(outcomes[part], pa.uint8()), pa.scalar(int(Outcome.OK), pa.uint8()))
            with localcontext(EXACT):
                landed.exact_micros += self._sum(tokens)
                landed.exact_wasted_micros += self._sum([column.filter(unusable) for column in tokens])
        return landed

    def _checked(self, answer: Answer) -> Answer:
        if answer.outcome is not Outcome.OK:
            return answer
        if (answer.vector is not None) is not (self._shard.endpoint == EMBEDDINGS):
            what = "the answer is no embedding" if answer.vector is None else "the answer is an embedding"
            return replace(answer, outcome=Outcome.FAILED, cause="malformed", detail=what, text=None, vector=None)
        problem = None
        if answer.vector is not None:
            problem = self._misfit(answer.vector)
        elif answer.text is not None:
            problem = self._check(answer.text)
        return replace(answer, outcome=Outcome.FAILED, cause="schema", detail=problem) if problem else answer

    def _misfit(self, vector: bytes) -> str | None:
        """What is wrong with an embedding: the request says its length, or else the first one of the shard does."""
        numbers, rest = divmod(len(vector), 4)
        if rest or not numbers:
            return f"an embedding of {len(vector)} bytes"
        if not math.isfinite(sum(memoryview(vector).cast("f"))):
            return "an embedding with a number that is not finite"
        self._dimensions = self._dimensions or numbers
        return None if numbers == self._dimensions else f"an embedding of {numbers} numbers, not {self._dimensions}"

    def _second(self, answer: Answer, line: int) -> Answer | None:
        """What a second answer for a line changes: nothing (None), an answer after an error, or a conflict."""
        before = self.landed.fates[line]
        if before.cause == "conflict" or answer.outcome is not Outcome.OK:
            return None
        if before.outcome is not Outcome.OK:
            return answer
        if _hash(answer) == self.seen[line]:
            return None
        usage = answer.usage
        if self.paid[line]:
            usage = Usage(self.inputs[line], self.outputs[line], self.cached[line], self.written[line])
        why = "the provider returned two different answers for this row"
        return replace(
            answer, outcome=Outcome.FAILED, cause="conflict", detail=why, text=None, vector=None, usage=usage
        )

    def _costs(self, tokens: Sequence[pa.Array[Any]]) -> pa.Array[Any]:
        """Exact costs in micros, by record; null where there is no bill."""
        charges = self._charges(tokens)
        if charges is not None and self._places == _COST.scale:  # then it is the same number under another type
            whole = charges.cast(pa.decimal128(19, 0))
            return pa.Array.from_buffers(_COST, len(whole), whole.buffers(), offset=whole.offset)
        bills = zip(*(column.to_pylist() for column in tokens), strict=True)
        costs = (None if bill[0] is None else exact_micros(Usage(*bill), self._price) for bill in bills)
        return pa.array([cost if cost is None else cost.quantize(_EXACT) for cost in costs], _COST)

    def _sum(self, tokens: Sequence[pa.Array[Any]]) -> Decimal:
        """The exact cost of all, in micros."""
        if (charges := self._charges(tokens)) is None:
            bills = zip(*(column.to_pylist() for column in tokens), strict=True)
            return sum((exact_micros(Usage(*bill), self._price) for bill in bills), Decimal(0))
        return Decimal(pc.sum(charges.cast(pa.decimal128(19, 0)), min_count=0).as_py()).scaleb(-self._places)

    def _charges(self, tokens: Sequence[pa.Array[Any]]) -> pa.Array[Any] | None:
        """Costs in 10**-places micros; None where one is beyond 64 bits."""
        n_input, n_output, cached, written = tokens
        plain = pc.max_element_wise(
            pc.subtract(pc.subtract(n_input, cached), written), pa.scalar(0, pa.int64()), skip_nulls=False
        )
        charges: pa.Array[Any] | None = None
        try:
            for above, *rates in self._levels:
                parts = [
                    pc.multiply_checked(count, pa.scalar(rate, pa.int64()))
                    for count, rate in zip((plain, cached, written, n_output), rates, strict=True)
                ]
                level = pc.add_checked(pc.add_checked(parts[0], parts[1]), pc.add_checked(parts[2], parts[3]))
                reached = pc.greater(n_input, pa.scalar(above, pa.int64()))
                charges = level if charges is None else pc.if_else(reached, level, charges)
        except (pa.ArrowInvalid, OverflowError):
            return None
        return charges


def _column(numbers: bytes | bytearray | array[int], kind: pa.DataType) -> pa.Array[Any]:
    """Machine numbers as a column of their type, not copied."""
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _hash(answer: Answer) -> int:
    return hash(answer.text if answer.vector is None else answer.vector)


def _dimensions(shard: ShardFile) -> int | None:
    """How many numbers the embeddings of a shard were asked to have, if that was asked."""
    if shard.endpoint != EMBEDDINGS:
        return None
    stated = orjson.loads(next(iter(read_lines(shard.path)), b"{}")).get("dimensions")
    return stated if isinstance(stated, int) else None


def checker(schema: Mapping[str, Any] | None) -> Callable[[str], str | None]:
    """What is wrong with an answer's text by its JSON Schema (2020-12); without a schema nothing is."""
    if schema is None:
        return lambda text: None
    # One integer beyond its column's 64 bits must not keep a whole job from being loaded.
    integers = [name for name, kind in field_types(schema).items() if kind == pa.int64()]
    bounds = {"properties": {name: {"minimum": -(2**63), "maximum": 2**63 - 1} for name in integers}}
    validator = jsonschema_rs.Draft202012Validator({**schema, "allOf": [*schema.get("allOf", ()), bounds]})
    is_valid, loads = validator.is_valid, orjson.loads

    def check(text: str) -> str | None:
        try:
            value = loads(text)
        except orjson.JSONDecodeError as error:
            return f"not JSON: {error}"
        if is_valid(value):
            return None
        found = next(validator.iter_errors(value))
        place = "/".join(str(p) for p in found.instance_path)
        return f"{place or 'answer'}: {found.message}"

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
