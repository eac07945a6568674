"""From results to rows: the dataset's rows joined to their answers by position, in source order, in bounded memory.

It is a join by position: `rows_blob` says for each row which line of which shard answers it. The final record of each
line is copied once for every row it answers into a file whose parts each belong to one *stretch* of consecutive rows;
then one stretch after the other is read, put in order and handed on. Memory is some 10 bytes a row and a few stretches,
whatever the order of the results.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from .blobs import Blobs
from .clock import from_us
from .codec import terms_from_json
from .errors import Problem, SinkError, SpecError
from .landing import EMBEDDINGS
from .ledger import Ledger
from .sinks import PROVENANCE
from .sinks.rows import field_types, fitted
from .types import Endpoint, Job, Outcome, Terms

pc: Any = pyarrow.compute  # its stubs do not know all of it

_STRETCH_BYTES, _STRETCH_ROWS = 16 << 20, 65_536  # of answers
_BATCH_ROWS = 8192
_PARSED_ROWS = 256  # whose JSON is held as objects: more of them fall out of the processor's cache
_STAMP = pa.timestamp("us", "UTC")
_USD = pa.decimal128(24, 12)
_MICROS, _MICROS_AS_USD = pa.decimal128(28, 12), pa.decimal128(34, 18)  # the same number, read in another unit
_ROW = pa.int32()
_TAKEN_EXACTLY = pa.string(), pa.list_(pa.string()), pa.float64(), pa.bool_()  # `pa.array` takes nothing else for them


@dataclass(frozen=True, slots=True)
class Columns:
    """How an answer becomes columns: the fields of the output schema, one text column `output`, or `embedding`."""

    key: str
    fields: tuple[tuple[str, Any], ...]  # name, Arrow type; empty: no schema
    tier: str
    embeds: bool = False
    dimensions: int | None = None  # of an embedding; None: there is none

    @property
    def answer(self) -> list[tuple[str, Any]]:
        """Name and type of what an answer holds."""
        if self.embeds:
            return [("embedding", pa.list_(pa.float32(), -1 if self.dimensions is None else self.dimensions))]
        return list(self.fields) or [("output", pa.string())]

    @property
    def loaded(self) -> pa.Schema:
        tail = [("_model", pa.string()), ("_tier", pa.string()), ("_cost_usd", _USD), ("_produced_at", _STAMP)]
        return pa.schema([pa.field(self.key, pa.string()), *(pa.field(n, t) for n, t in [*self.answer, *tail])])

    @property
    def failed(self) -> pa.Schema:
        return pa.schema([(n, pa.string()) for n in (self.key, "_outcome", "_cause", "_detail")])


def columns_of(terms: Terms) -> Columns:
    fields = tuple(field_types(terms.output_schema).items())
    return Columns(terms.key, fields, terms.tier.value, terms.endpoint == EMBEDDINGS)


def check_columns(job: Job) -> None:
    """Raises SpecError when two columns of what is loaded would have one name."""
    names = [job.source.key, *answer_names(job), *PROVENANCE]
    if taken := {name for name in names if names.count(name) > 1}:
        what = f"field {', '.join(sorted(taken))} has the name of the key column or of one of canwait's"
        raise SpecError([Problem("job", None, None, "output", what)])


def answer_names(job: Job) -> list[str]:
    """The columns that hold a row's answer."""
    if job.endpoint is Endpoint.EMBEDDINGS:
        return ["embedding"]
    return list(field_types(job.output_schema)) or ["output"]


@dataclass(frozen=True, slots=True)
class _Answering:
    """A planned shard that rows of the dataset point to."""

    n_lines: int
    foreign: bool  # paid by another job
    files: Sequence[tuple[Path, datetime]]  # what each of its sendings brought, and when, in the order of settling


class Answers:
    """The answers of a job's latest plan. `loaded`, `texts` and `failed` each stream its rows in source order."""

    def __init__(self, ledger: Ledger, blobs: Blobs, job: str, folder: Path) -> None:
        row = ledger.job(job)
        plan = ledger.query("plan", job=job, digest=row["plan"])[0]
        self._rows = blobs.path(json.loads(plan["body"])["rows_blob"])
        self.columns = columns_of(terms_from_json(json.loads(plan["terms"])))
        self._body, kind = ("vector", pa.binary()) if self.columns.embeds else ("output", pa.string())
        shards = [_answering(ledger, blobs, job, row) for row in ledger.query("plan_shards", job=job, plan=row["plan"])]
        wanted = _wanted(self._rows, [shard.n_lines for shard in shards])
        n_rows = _stretch_rows([path for shard in shards for path, _ in shard.files], self._body)
        usable: list[tuple[str, pa.DataType]] = [
            ("row", _ROW),
            (self._body, kind),
            ("model", pa.string()),
            ("cost_micros", _MICROS),
            ("at", _STAMP),
        ]
        failed: list[tuple[str, pa.DataType]] = [
            ("row", _ROW),
            ("outcome", pa.int8()),
            ("cause", pa.string()),
            ("detail", pa.string()),
        ]
        self._usable = _Spool(folder / "usable.arrow", pa.schema(usable), n_rows)
        self._failed = _Spool(folder / "failed.arrow", pa.schema(failed), n_rows)
        first_line = 0
        for shard in shards:
            self._copy(shard, wanted.slice(first_line, shard.n_lines))
            first_line += shard.n_lines
        self._usable.close()
        self._failed.close()
        pa.default_memory_pool().release_unused()  # or the sink's memory comes on top of it

    def loaded(self) -> Iterator[pa.RecordBatch]:
        """Rows with a usable answer."""
        schema = self.columns.loaded
        for keys, part in self._joined(self._usable):
            tier = pa.repeat(pa.scalar(self.columns.tier), len(keys))
            rest = part["model"], tier, _usd(part["cost_micros"]), part["at"]
            for start in range(0, len(keys), _BATCH_ROWS):
                answers = self._columns(part[self._body].slice(start, _BATCH_ROWS))
                key, *tail = (column.slice(start, _BATCH_ROWS) for column in (keys, *rest))
                yield pa.RecordBatch.from_arrays([key, *answers, *tail], schema=schema)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Key and answer, as the model wrote it, of every row with a usable one; an embedding is a JSON array."""
        for keys, part in self._joined(self._usable):
            for start in range(0, len(keys), _BATCH_ROWS):
                texts: list[Any] = part[self._body].slice(start, _BATCH_ROWS).to_pylist()
                if self.columns.embeds:
                    texts = [orjson.dumps(memoryview(vector).cast("f").tolist()).decode() for vector in texts]
                yield from zip(keys.slice(start, _BATCH_ROWS).to_pylist(), texts, strict=True)

    def failed(self) -> Iterator[pa.RecordBatch]:
        """Rows without one, with their cause."""
        names = pa.array([outcome.name.lower() for outcome in Outcome])
        for keys, part in self._joined(self._failed):
            columns = [keys, names.take(part["outcome"]), part["cause"], part["detail"]]
            yield pa.RecordBatch.from_arrays(columns, schema=self.columns.failed)

    def _columns(self, answers: Any) -> list[Any]:
        """What some answers hold."""
        if self.columns.embeds:
            return [_vectors(answers, self.columns.dimensions or 0)]
        if not self.columns.fields:
            return [answers]
        parts = [self._parsed(answers.slice(i, _PARSED_ROWS).to_pylist()) for i in range(0, len(answers), _PARSED_ROWS)]
        return [pa.concat_arrays(column) for column in zip(*parts, strict=True)]

    def _parsed(self, texts: list[Any]) -> list[Any]:
        answers = [orjson.loads(text) if text else None for text in texts]
        return [_column(answers, name, kind) for name, kind in self.columns.fields]

    def _joined(self, spool: _Spool) -> Iterator[tuple[Any, pa.RecordBatch]]:
        """Keys and records of the rows that have one there, in source order, a stretch of rows at a time."""
        for number, keys in enumerate(_in_stretches(self._rows, spool.n_rows)):
            if part := spool.stretch(number):
                yield keys.take(pc.subtract(part["row"], number * spool.n_rows)), part

    def _copy(self, shard: _Answering, wanted: Any) -> None:
        """Copy the final record of each of a shard's lines once for every row that wants it."""
        final = None if _all_final(shard) else pa.array(_final(shard), pa.int64())
        ok, free = pa.scalar(int(Outcome.OK), pa.int8()), pa.scalar(Decimal(0), _MICROS)
        number = 0
        for path, settled_at in shard.files:
            at = pa.scalar(settled_at, _STAMP)
            for records in _groups(path, ["line", "outcome", "cause", "detail", "model", "cost_micros", self._body]):
                n_records = records.num_rows
                if final is not None:
                    ours = pa.array(range(number, number + n_records), pa.int64())
                    records = records.filter(pc.equal(final.take(records["line"]), ours))
                number += n_records
                is_ok = pc.equal(records["outcome"], ok)
                usable = pc.indices_nonzero(is_ok)
                if self.columns.embeds:
                    self._measure(records["vector"].take(usable))
                rows = wanted.take(records["line"].take(usable))
                copies = pc.list_parent_indices(rows)
                taken = usable.take(copies)
                # An answer that many rows share is charged to the first of them; what another job paid is free here.
                is_first = pc.fill_null(pc.not_equal(pc.pairwise_diff(copies), 0), True)
                is_charged = pa.repeat(False, len(copies)) if shard.foreign else is_first
                costs = pc.if_else(is_charged, records["cost_micros"].take(taken), free)
                self._usable.add(
                    rows.flatten(), taken, records, {"cost_micros": costs, "at": pa.repeat(at, len(taken))}
                )
                failed = pc.indices_nonzero(pc.invert(is_ok))
                rows = wanted.take(records["line"].take(failed))
                self._failed.add(rows.flatten(), failed.take(pc.list_parent_indices(rows)), records)

    def _measure(self, vectors: Any) -> None:
        """Raises SinkError unless all embeddings of the job are of one length."""
        for n_bytes in pc.unique(pc.binary_length(vectors)).to_pylist():
            known = self.columns.dimensions or n_bytes // 4
            if n_bytes != 4 * known:
                raise SinkError(
                    f"the job has embeddings of {known} and of {n_bytes // 4} numbers, and a column holds one length",
                    hint="state `dimensions` in the job's `params:`, and send the rows again under a new job name",
                )
            self.columns = replace(self.columns, dimensions=known)


class _Spool:
    """Records on disk, by the stretch of `n_rows` rows that they belong to."""

    def __init__(self, path: Path, schema: pa.Schema, n_rows: int) -> None:
        self.n_rows = n_rows
        self._path, self._schema = path, schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._n_parts = 0
        self._parts: dict[int, list[int]] = {}  # by stretch

    def add(
        self, rows: Any, taken: Any, records: pa.RecordBatch, extra: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Row `rows[i]` gets the record of number `taken[i]`, and the i-th value of each extra column."""
        order = pc.sort_indices(rows)
        rows, taken = rows.take(order), taken.take(order)
        extra = {name: column.take(order) for name, column in extra.items()}
        ends = pc.run_end_encode(pc.divide(rows, self.n_rows))
        start = 0
        for stretch, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
            numbers = taken.slice(start, end - start)
            columns = [
                extra[name].slice(start, end - start) if name in extra else records[name].take(numbers)
                for name in self._schema.names[1:]
            ]
            columns.insert(0, rows.slice(start, end - start))
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            self._parts.setdefault(stretch, []).append(self._n_parts)
            self._n_parts += 1
            start = end

    def close(self) -> None:
        """No more is added; now it can be read."""
        self._writer.close()
        self._file.close()
        # Not mapped: pages that were read would count as our memory.
        self._reader = pa.ipc.open_file(pa.OSFile(str(self._path), "rb"))

    def stretch(self, number: int) -> pa.RecordBatch | None:
        """The records of a stretch in the order of their rows; None where it has none."""
        parts = [self._reader.get_batch(part) for part in self._parts.get(number, ())]
        if len(parts) < 2:
            return parts[0] if parts else None
        whole = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        del parts
        return whole.take(pc.sort_indices(whole["row"]))


def _answering(ledger: Ledger, blobs: Blobs, job: str, row: Mapping[str, Any]) -> _Answering:
    sent = [s for s in ledger.query("shards_of_root", root=row["shard"]) if s["results_blob"]]
    sent.sort(key=lambda s: (s["settled_us"], s["attempt"]))
    files = [(blobs.path(s["results_blob"]), from_us(s["settled_us"])) for s in sent]
    return _Answering(row["n_lines"], row["owner_job"] != job, files)


def _wanted(rows: Path, n_lines: Sequence[int]) -> Any:
    """For each line of all the shards, one after the other: the rows of the dataset that it answers, ascending."""
    starts = pa.array([0, *accumulate(n_lines)], pa.int32())
    found = [
        pc.add(starts.take(batch["shard"]), batch["line"].cast(pa.int32()))
        for batch in pq.ParquetFile(rows, pre_buffer=False).iter_batches(_STRETCH_ROWS, columns=["shard", "line"])
    ]
    lines = pa.concat_arrays(found) if found else pa.array([], pa.int32())
    del found
    order = pc.sort_indices(lines).cast(_ROW)  # stable: rows of one line stay in their order
    offsets = pc.search_sorted(lines.take(order), pa.array(range(sum(n_lines) + 1), pa.int32()))
    return pa.ListArray.from_arrays(offsets.cast(pa.int32()), order)


def _stretch_rows(results: Sequence[Path], body: str) -> int:
    """How many rows make a stretch, by the size of their answers."""
    n_rows = n_bytes = 0
    for path in results:
        metadata = pq.read_metadata(path)
        n_rows += metadata.num_rows
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            n_bytes += sum(column.total_uncompressed_size for column in columns if column.path_in_schema == body)
    return max(1, min(_STRETCH_ROWS, _STRETCH_BYTES * n_rows // max(1, n_bytes)))


def _all_final(shard: _Answering) -> bool:
    """Whether the lines were sent once, and each was answered once at most."""
    if len(shard.files) != 1:
        return False
    lines = pq.read_table(shard.files[0][0], columns=["line"])["line"]
    return bool(pc.count_distinct(lines).as_py() == len(lines))


def _final(shard: _Answering) -> array[int]:
    """By line: the number, counted through all its files, of the record that says what became of it; -1 for none.

    Within one output a later record supersedes an earlier one; a later attempt supersedes anything but an OK answer.
    """
    final = array("q", [-1]) * shard.n_lines
    is_ok = bytearray(shard.n_lines)
    number = 0
    for path, _ in shard.files:
        before = bytes(is_ok)
        for records in _groups(path, ["line", "outcome"]):
            for line, outcome in zip(*(_list(column) for column in records.columns), strict=True):
                if not before[line]:
                    final[line], is_ok[line] = number, outcome == Outcome.OK
                number += 1
    return final


def _groups(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A results file in the row groups it was written in."""
    file = pq.ParquetFile(path, pre_buffer=False)
    for number in range(file.num_row_groups):
        yield from file.read_row_group(number, columns=columns).combine_chunks().to_batches()


def _in_stretches(rows: Path, n_rows: int) -> Iterator[Any]:
    """The keys of the dataset's rows, so many at a time."""
    held: list[Any] = []
    n_held = 0
    for batch in pq.ParquetFile(rows, pre_buffer=False).iter_batches(n_rows, columns=["key"]):
        held.append(batch["key"])
        n_held += len(batch)
        if n_held >= n_rows:
            keys = pa.concat_arrays(held)
            yield keys.slice(0, n_rows)
            held = [keys.slice(n_rows)]
            n_held -= n_rows
    if n_held:
        yield pa.concat_arrays(held)


def _usd(micros: Any) -> Any:
    """The same money in USD, rounded to 12 places."""
    exact = pa.Array.from_buffers(_MICROS_AS_USD, len(micros), micros.buffers(), offset=micros.offset)
    return pc.round(exact, 12, round_mode="half_to_even").cast(_USD)


def _vectors(vectors: Any, dimensions: int) -> Any:
    """Embeddings of one length as a list column, not copied."""
    start = vectors.offset * 4 * dimensions
    numbers = pa.Array.from_buffers(pa.float32(), len(vectors) * dimensions, [None, vectors.buffers()[2].slice(start)])
    return pa.FixedSizeListArray.from_arrays(numbers, dimensions)


def _column(answers: Sequence[Any], name: str, kind: Any) -> Any:
    try:
        values = [answer.get(name) for answer in answers]
    except AttributeError:  # a schema that is not of an object lets other answers through
        values = [answer.get(name) if isinstance(answer, dict) else None for answer in answers]
    try:
        if (column := _as_they_are(values, kind)) is not None:
            return column
        return pa.array([fitted(value, kind) for value in values], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise SinkError(
            f"field {name} has a value that is not {kind}: {error}", hint=f"bound `{name}` in the output schema"
        ) from error


def _as_they_are(values: Sequence[Any], kind: Any) -> Any:
    """The column where every value is of its type already, as `fitted` would leave it; None where one may not be."""
    try:
        if kind in _TAKEN_EXACTLY:
            return pa.array(values, kind)
        column = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return None
    return column if column.type == kind else None


def _list(column: Any) -> list[Any]:
    return list(column.to_pylist())


@contextmanager
def answers(ledger: Ledger, blobs: Blobs, job: str) -> Iterator[Answers]:
    with blobs.scratch() as folder:
        yield Answers(ledger, blobs, job, folder)
