"""Raw provider output -> the results of a shard. Streams: memory is some 35 bytes a line and one chunk of records.

The results blob is Parquet, one record a line in the order it came; a later record of a line supersedes an earlier one.
    line int32 (of the root shard) · outcome int8 · cause · detail · output · input_tokens · output_tokens ·
    cached_input_tokens · cache_write_tokens · model · cost_micros decimal(28, 12): exact, unrounded ·
    vector: an embedding, little-endian float32
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    exact_wasted: dict[str, Decimal] = field(default_factory=dict)  # of it, by the cause why a row cannot be used
    n_strangers: int = 0  # lines that name no row of this shard
    n_repeats: int = 0  # rows returned more than once

    @property
    def exact_wasted_micros(self) -> Decimal:
        with localcontext(EXACT):
            return sum(self.exact_wasted.values(), Decimal(0))


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
    if shard.endpoint == EMBEDDINGS:
        plain = _never  # it reads texts
    book = _Book(shard, check, price, writer)
    rows = book.rows
    for raw in lines:
        if found := plain(raw):
            rows.append(found)
            if len(rows) >= _PACK_ROWS:
                book.pack()
        elif raw.strip():
            book.pack()
            book.take(decode(raw))
    return book.closed()


def _never(raw: bytes) -> None:
    return None


class _Book:
    """What is known of a shard's lines while its output is read, and the records not written yet."""

    def __init__(
        self, shard: ShardFile, check: Callable[[str], str | None], price: Price, writer: ResultsWriter
    ) -> None:
        self.landed = Landed(Fates(shard.n_rows))
        self.rows: list[Plain] = []  # read, and not recorded yet
        self._shard, self._check, self._price, self._writer = shard, check, price, writer
        self._places, self._levels = scaled_rates(price)
        self._dimensions = _dimensions(shard)
        self._ordinary = self.landed.fates.code(ORDINARY)
        # by line of the shard
        self._seen = array("q", bytes(8 * shard.n_rows))  # hash of its answer: differs from process to process
        self._billed = array("i", [-1]) * shard.n_rows  # the record that says what it costs
        # by record
        self._lines = array("i")
        self._bills = array("I"), array("I"), array("I"), array("I")  # tokens in the order of `Usage`
        self._counts = (
            bytearray()
        )  # 0: it has no bill; 1: its bill counts; 2: the bill of a later record of the line does
        # by record, from the first that is not written yet
        self._n_written = 0
        self._texts: list[pa.Array[Any]] = []
        self._odd_texts: list[str | None] = []  # of the records after those
        self._models: list[str | None] = []
        self._odd: dict[int, tuple[int, str | None, bytes | None]] = {}  # code of its fate, detail, vector

    def pack(self) -> None:
        """Record the rows: what `take` does with each, at once, where none needs its care."""
        if not self.rows:
            return
        names, texts, models, *bills = zip(*self.rows, strict=True)
        self.rows.clear()
        if (lines := self._new_lines(names)) is None:
            for name, text, model, *bill in zip(names, texts, models, *bills, strict=True):
                self.take(Answer(name, Outcome.OK, None, None, text, Usage(*bill), model))
            return
        fates, seen, billed = self.landed.fates.codes, self._seen, self._billed
        for record, (line, text) in enumerate(zip(lines, texts, strict=True), len(self._lines)):
            fates[line], seen[line], billed[line] = self._ordinary, hash(text), record
        for place, problem in enumerate(map(self._check, texts)):
            if problem:
                fates[lines[place]] = code = self.landed.fates.code(Fate(Outcome.FAILED, "schema", problem, "stated"))
                self._odd[len(self._models) + place] = code, _detail(problem), None
        self._lines.extend(lines)
        self._counts += b"\1" * len(lines)
        for column, part in zip(self._bills, bills, strict=True):
            column.extend(part)
        self._models += models
        self._pack_odd()
        self._texts.append(pa.array(texts, pa.string()))
        if len(self._models) >= _CHUNK_ROWS:
            self._flush()

    def take(self, answer: Answer) -> None:
        """Record one line of output, whatever it is."""
        landed, fates = self.landed, self.landed.fates
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
        self._seen[line] = _hash(answer)
        usage = answer.usage
        if usage:
            if (before := self._billed[line]) >= 0:
                self._counts[before] = 2
            self._billed[line] = len(self._lines)
        bill = usage or Usage(0, 0)
        tokens = bill.input_tokens, bill.output_tokens, bill.cached_input_tokens, bill.cache_write_tokens
        for column, n_tokens in zip(self._bills, tokens, strict=True):
            column.append(n_tokens)
        self._counts.append(usage is not None)
        self._odd[len(self._models)] = fates.codes[line], _detail(fate.detail), answer.vector
        self._lines.append(line)
        self._models.append(answer.model)
        self._odd_texts.append(answer.text)
        if len(self._models) >= _CHUNK_ROWS:
            self._flush()

    def _new_lines(self, names: Sequence[str]) -> list[int] | None:
        """The lines that are named, if each is one of the shard's and of none anything is known."""
        token, fates = self._shard.token, self.landed.fates.codes
        begin = len(token) + 1
        try:
            lines = [int(name[begin:]) for name in names]
        except ValueError:
            return None
        ours = tuple([f"{token}-{line}" for line in lines]) == names and 0 <= min(lines) and max(lines) < len(fates)
        return lines if ours and len({*lines}) == len(lines) and not any(map(fates.__getitem__, lines)) else None

    def _pack_odd(self) -> None:
        if self._odd_texts:
            self._texts.append(pa.array(self._odd_texts, pa.string()))
            self._odd_texts.clear()

    def _flush(self) -> None:
        """Write the records that are not yet."""
        self._pack_odd()
        kinds, n = self.landed.fates.kinds, len(self._models)
        since = slice(self._n_written, None)
        codes = bytearray([self._ordinary]) * n
        details: list[str | None] = [None] * n
        vectors: list[bytes | None] = [None] * n
        for place, (code, detail, vector) in self._odd.items():
            codes[place], details[place], vectors[place] = code, detail, vector
        ends = _column(codes, pa.uint8())
        tokens = [_column(bill[since], pa.uint32()).cast(pa.int64()) for bill in self._bills]
        if 0 in (counts := self._counts[since]):
            has_bill = _column(counts, pa.uint8()).cast(pa.bool_())
            tokens = [pc.if_else(has_bill, column, pa.scalar(None, pa.int64())) for column in tokens]
        columns: list[pa.Array[Any]] = [
            _column(self._lines[since], pa.int32()),
            pa.array([kind.outcome for kind in kinds], pa.int8()).take(ends),
            pa.array([kind.cause for kind in kinds], pa.string()).take(ends),
            pa.array(details, pa.string()),
            pa.concat_arrays(self._texts),
            *tokens,
            pa.array(self._models, pa.string()),
            self._costs(tokens),
            pa.array(vectors, pa.binary()),
        ]
        self._writer.write(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self._n_written += n
        for held in (self._texts, self._models, self._odd):
            held.clear()

    def closed(self) -> Landed:
        """Write what waits, and add up what the lines cost."""
        self.pack()
        if self._models:
            self._flush()
        landed, n_records = self.landed, len(self._lines)
        codes = _column(landed.fates.codes, pa.uint8())
        unusable = [(n, k.cause or "unknown") for n, k in enumerate(landed.fates.kinds) if k.outcome is not Outcome.OK]
        for start in range(0, n_records, _GROUP_ROWS):
            part = slice(start, start + _GROUP_ROWS)
            counts = pc.equal(_column(self._counts[part], pa.uint8()), pa.scalar(1, pa.uint8()))
            tokens = [_column(bill[part], pa.uint32()).cast(pa.int64()).filter(counts) for bill in self._bills]
            landed.usage += Usage(*(pc.sum(column, min_count=0).as_py() for column in tokens))
            ends = codes.take(_column(self._lines[part], pa.int32()).filter(counts))
            with localcontext(EXACT):
                landed.exact_micros += self._sum(tokens)
                for code, cause in unusable:
                    ended_so = pc.equal(ends, pa.scalar(code, pa.uint8()))
                    if cost := self._sum([column.filter(ended_so) for column in tokens]):
                        landed.exact_wasted[cause] = landed.exact_wasted.get(cause, Decimal(0)) + cost
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
        if _hash(answer) == self._seen[line]:
            return None
        usage = answer.usage
        if (billed := self._billed[line]) >= 0:
            usage = Usage(*(column[billed] for column in self._bills))
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


def _detail(words: str | None) -> str | None:
    """Hostile text, cut and without halves of surrogate pairs."""
    return words and words[:_DETAIL_CHARS].encode("utf-8", "replace").decode()


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
    with pq.ParquetFile(path, pre_buffer=False) as file:  # `read_table` takes twice as long, and a library more
        return file.read().cast(MANIFEST)


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
