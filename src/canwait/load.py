"""From results to rows: the dataset's rows joined to their answers by position, in source order, in bounded memory.

It is a join by position: `rows_blob` says for each row which line of which shard answers it. The rows are cut into
*stretches*, and the shards are read in the order of the first row that each answers. So when a stretch is due, whatever
answers it has been read: what belongs to it was kept in memory, what belongs to a later one waits on disk. A shard's
rows mostly lie together, and then nothing waits. Memory is some 10 bytes a row and a few stretches, whatever the order.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from io import IOBase
from itertools import accumulate, pairwise
from operator import itemgetter, or_
from pathlib import Path
from typing import IO, Any, Literal, cast

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

_STRETCH_BYTES, _STRETCH_ROWS = 32 << 20, 65_536  # of answers
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
    def kind(self) -> Literal["fields", "text", "vector"]:
        return "vector" if self.embeds else "fields" if self.fields else "text"

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


@dataclass(frozen=True)
class _Answering:
    """A planned shard that rows of the dataset point to."""

    n_lines: int
    foreign: bool  # paid by another job
    files: Sequence[tuple[Path, datetime]]  # what each of its sendings brought, and when, in the order of settling
    withdrawn: Sequence[
        bytes
    ]  # of each, a byte a line: 1: it was asked again since, and counts no more; empty: all counts
    wanted: Any  # by line: the rows of the dataset that it answers, ascending
    first: int  # of those rows
    vector: bytes  # by line: its outcome

    @cached_property
    def final(self) -> Any:
        """By line: the number, counted through all its files, of the record that says what became of it.

        None: each record is the final one of its line.
        """
        return None if not any(self.withdrawn) and _all_final(self) else pa.array(_final(self), _ROW)

    @cached_property
    def ended(self) -> Any:
        """By line: whether its record is the last word. None: that of each line is."""
        if Outcome.PENDING not in self.vector:
            return None
        return pc.not_equal(pa.array(array("b", self.vector), pa.int8()), int(Outcome.PENDING))


class Answers:
    """The answers of a job's plan. `loaded`, `texts` and `failed` each stream its rows in source order."""

    def __init__(self, ledger: Ledger, blobs: Blobs, job: str, folder: Path, digest: str | None = None) -> None:
        digest = digest or ledger.job(job)["plan"]
        plan = ledger.query("plan", job=job, digest=digest)[0]
        self._folder = folder
        self._rows = blobs.path(json.loads(plan["body"])["rows_blob"])
        self.columns = columns_of(terms_from_json(json.loads(plan["terms"])))
        self._body = "vector" if self.columns.embeds else "output"
        planned = ledger.query("plan_shards", job=job, plan=digest)
        wanted = _wanted(self._rows, [shard["n_lines"] for shard in planned])
        shards = [
            _answering(ledger, blobs, job, shard, rows)
            for shard, rows in zip(planned, wanted, strict=True)
            if len(rows.flatten())
        ]
        self._shards = sorted(shards, key=lambda shard: shard.first)
        most = _stretch_rows([path for shard in shards for path, _ in shard.files], self._body)
        self._cuts = _cuts([shard.first for shard in self._shards], pq.read_metadata(self._rows).num_rows, most)
        if self.columns.embeds:
            self.columns = replace(self.columns, dimensions=self._dimensions())

    def loaded(self) -> Iterator[pa.RecordBatch]:
        """Rows with a usable answer."""
        schema = self.columns.loaded
        for keys, part in self._joined(ok=True):
            tier = pa.repeat(pa.scalar(self.columns.tier), len(keys))
            costs = pc.if_else(part["pays"], part["cost_micros"], pa.scalar(Decimal(0), _MICROS))
            columns = [keys, *self._columns(part[self._body]), part["model"], tier, _usd(costs), part["at"]]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Key and answer, as the model wrote it, of every row with a usable one; an embedding is a JSON array."""
        for keys, part in self._joined(ok=True):
            texts: list[Any] = part[self._body].to_pylist()
            if self.columns.embeds:
                texts = [orjson.dumps(memoryview(vector).cast("f").tolist()).decode() for vector in texts]
            yield from zip(keys.to_pylist(), texts, strict=True)

    def failed(self) -> Iterator[pa.RecordBatch]:
        """Rows without one, with their cause."""
        names = pa.array([outcome.name.lower() for outcome in Outcome])
        for keys, part in self._joined(ok=False):
            columns = [keys, names.take(part["outcome"]), part["cause"], part["detail"]]
            yield pa.RecordBatch.from_arrays(columns, schema=self.columns.failed)

    def _columns(self, answers: Any) -> list[Any]:
        """What some answers hold. Raises SinkError where an embedding is not as long as the first one."""
        if self.columns.embeds:
            return [_vectors(answers, self.columns.dimensions or 0)]
        if not self.columns.fields:
            return [answers]
        parts = [self._parsed(answers.slice(i, _PARSED_ROWS).to_pylist()) for i in range(0, len(answers), _PARSED_ROWS)]
        return [pa.concat_arrays(column) for column in zip(*parts, strict=True)]

    def _parsed(self, texts: list[Any]) -> list[Any]:
        answers = [orjson.loads(text) if text else None for text in texts]
        return [_column(answers, name, kind) for name, kind in self.columns.fields]

    def _joined(self, *, ok: bool) -> Iterator[tuple[Any, pa.RecordBatch]]:
        """Keys and records of the rows with, or without, a usable answer; in source order, at most _BATCH_ROWS at a time."""
        names = ["model", "cost_micros", self._body] if ok else ["cause", "detail"]
        waiting = deque(self._shards)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            spool = _Spool(file, self._cuts)
            for number, keys in enumerate(_in_stretches(self._rows, self._cuts)):
                while waiting and waiting[0].first < self._cuts[number + 1]:
                    for part in _parts(waiting.popleft(), names, ok=ok):
                        spool.add(part, number)
                for found in spool.stretch(number):
                    yield keys.take(pc.subtract(found["row"], self._cuts[number])), found

    def _dimensions(self) -> int | None:
        """How many numbers the first embedding has; None where there is none."""
        for shard in self._shards:
            for part in _parts(shard, ["vector"], ok=True):
                if len(part.rows):
                    return len(part.records["vector"][part.taken[0].as_py()].as_buffer()) // 4
        return None


@dataclass(frozen=True, slots=True)
class _Part:
    """Records, and the rows that get one of them."""

    rows: Any
    taken: Any  # by row: the number of its record
    pays: Any  # by row: whether it is charged for it
    records: pa.RecordBatch

    def split(self, numbers: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        """For each number, which rise as the rows do: `row`, `pays` and the record of its rows, in their order."""
        order = pc.array_sort_indices(self.rows)
        rows, taken, pays = (column.take(order) for column in (self.rows, self.taken, self.pays))
        runs = pc.run_end_encode(numbers.take(order))
        start = 0
        for number, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            n = end - start
            columns = [rows.slice(start, n), pays.slice(start, n), *self.records.take(taken.slice(start, n)).columns]
            yield number, pa.RecordBatch.from_arrays(columns, ["row", "pays", *self.records.schema.names])
            start = end


class _Spool:
    """Records on their way to the rows they belong to: those of the stretch that is due in memory, later ones on disk."""

    def __init__(self, file: IO[bytes], cuts: Sequence[int]) -> None:
        self._file = cast(IOBase, file)
        self._cuts, self._ends = cuts, pa.array(cuts[1:], _ROW)
        self._due: dict[int, list[pa.RecordBatch]] = {}  # by batch of the stretch
        self._later: dict[int, list[int]] = {}  # by stretch: where in the file they are

    def add(self, part: _Part, due: int) -> None:
        """No row of `part` is of a stretch before the one that is due."""
        start, end = self._cuts[due], self._cuts[due + 1]
        n_batches = -(-(end - start) // _BATCH_ROWS)
        batches = pc.divide(pc.subtract(part.rows, start), _BATCH_ROWS)
        stretches = pc.search_sorted(self._ends, part.rows, side="right").cast(_ROW)
        later = pc.add(stretches, n_batches - due - 1)
        for number, records in part.split(pc.if_else(pc.less(part.rows, end), batches, later)):
            if number < n_batches:
                self._due.setdefault(number, []).append(records)
                continue
            at = self._file.seek(0, os.SEEK_END)
            self._later.setdefault(number - n_batches + due + 1, []).append(at)
            with pa.ipc.new_stream(self._file, records.schema) as stream:
                stream.write_batch(records)

    def stretch(self, due: int) -> Iterator[pa.RecordBatch]:
        """The records of the stretch that is due, in the order of their rows."""
        for at in self._later.pop(due, ()):
            self._file.seek(at)
            with pa.ipc.open_stream(self._file) as stream:
                read = stream.read_next_batch()
            records = pa.RecordBatch.from_arrays(read.columns[2:], read.schema.names[2:])
            self.add(_Part(read["row"], _count(len(read)), read["pays"], records), due)
        for number in sorted(self._due):
            found = self._due.pop(number)
            if len(found) > 1:
                whole = pa.Table.from_batches(found).combine_chunks().to_batches()[0]
                found = [whole.take(pc.array_sort_indices(whole["row"]))]
            yield found[0]


def _count(n: int) -> Any:
    """0 to n - 1."""
    return pa.Array.from_buffers(_ROW, n, [None, pa.py_buffer(array("i", range(n)))])


def _parts(shard: _Answering, names: Sequence[str], *, ok: bool) -> Iterator[_Part]:
    """The final records of a shard's lines, those that are OK or all others, with the rows that want them."""
    number = 0
    for path, settled_at in shard.files:
        at = pa.scalar(settled_at, _STAMP)
        for group in _groups(path, ["line", "outcome", *names]):
            n_records = group.num_rows
            chosen = pc.equal(group["outcome"], pa.scalar(int(Outcome.OK), pa.int8()))
            if not ok:
                chosen = pc.invert(chosen)
            if shard.final is not None:
                ours = pc.equal(shard.final.take(group["line"]), pc.add(_count(n_records), number))
                chosen = pc.and_(chosen, ours)
            if shard.ended is not None:  # some are being sent again
                chosen = pc.and_(chosen, shard.ended.take(group["line"]))
            number += n_records
            places = pc.indices_nonzero(chosen).cast(_ROW)
            wanted = shard.wanted.take(group["line"].take(places))
            copies = pc.list_parent_indices(wanted)
            # An answer that many rows share is charged to the first of them; what another job paid is free here.
            is_first = pc.fill_null(pc.not_equal(pc.pairwise_diff(copies), 0), True)
            pays = pa.repeat(False, len(copies)) if shard.foreign else is_first
            records = pa.RecordBatch.from_arrays(
                [*(group[name] for name in ["outcome", *names]), pa.repeat(at, n_records)], ["outcome", *names, "at"]
            )
            yield _Part(wanted.flatten(), places.take(copies), pays, records)


def _answering(ledger: Ledger, blobs: Blobs, job: str, row: Mapping[str, Any], wanted: Any) -> _Answering:
    sent = [s for s in ledger.query("shards_of_root", root=row["shard"]) if s["results_blob"]]
    sent.sort(key=lambda s: (s["settled_us"], s["attempt"]))
    files = [(blobs.path(s["results_blob"]), from_us(s["settled_us"])) for s in sent]
    withdrawn = _withdrawn(ledger, row["shard"], [s["id"] for s in sent])
    first, vector = pc.min(wanted.flatten()).as_py(), zlib.decompress(row["vector"])
    return _Answering(row["n_lines"], row["owner_job"] != job, files, withdrawn, wanted, first, vector)


def _withdrawn(ledger: Ledger, root: str, shards: Sequence[str]) -> list[bytes]:
    """Of what each of these brought for a planned shard: a byte a line, 1 where it counts no more; empty: all of it counts."""
    masks = dict.fromkeys(shards, b"")
    for row in ledger.query("withdrawals", root=root):
        lines = zlib.decompress(row["lines"])
        for shard in set(json.loads(row["shards"])) & masks.keys():
            masks[shard] = bytes(map(or_, masks[shard] or bytes(len(lines)), lines))
    return [masks[shard] for shard in shards]


def _wanted(rows: Path, n_lines: Sequence[int]) -> list[Any]:
    """For each shard, and each line of it: the rows of the dataset that it answers, ascending."""
    starts = [0, *accumulate(n_lines)]
    begin = pa.array(starts, pa.int32())
    found = [
        pc.add(begin.take(batch["shard"]), batch["line"].cast(pa.int32()))
        for batch in pq.ParquetFile(rows, pre_buffer=False).iter_batches(_STRETCH_ROWS, columns=["shard", "line"])
    ]
    lines = pa.concat_arrays(found) if found else pa.array([], pa.int32())
    del found
    order = pc.sort_indices(lines).cast(_ROW)  # stable: rows of one line stay in their order
    offsets = pc.search_sorted(lines.take(order), _count(starts[-1] + 1))
    wanted = pa.ListArray.from_arrays(offsets.cast(pa.int32()), order)
    return [wanted.slice(start, n) for start, n in zip(starts, n_lines, strict=False)]


def _cuts(firsts: Sequence[int], n_rows: int, most: int) -> list[int]:
    """Where stretches begin, and the end of the last: at the first row of a shard, or else at `most` rows."""
    cuts = [0]
    for first, following in pairwise([*firsts, n_rows]):
        if following - cuts[-1] > most and first > cuts[-1]:
            cuts.append(first)
        while following - cuts[-1] > most:
            cuts.append(cuts[-1] + most)
    return [*cuts, n_rows] if n_rows else [0]


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
    with pq.ParquetFile(shard.files[0][0], pre_buffer=False) as file:
        lines = file.read(columns=["line"])["line"]
    return bool(pc.count_distinct(lines).as_py() == len(lines))


def _final(shard: _Answering) -> array[int]:
    """By line: the number, counted through all its files, of the record that says what became of it; -1 for none.

    Within one output a later record supersedes an earlier one; a later attempt supersedes anything but an OK answer that
    was not withdrawn.
    """
    final = array("i", [-1]) * shard.n_lines
    is_ok = bytearray(shard.n_lines)
    number = 0
    for (path, _), withdrawn in zip(shard.files, shard.withdrawn, strict=True):
        before = bytes(map(or_, is_ok, withdrawn)) if withdrawn else bytes(is_ok)
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


def _in_stretches(rows: Path, cuts: Sequence[int]) -> Iterator[Any]:
    """The keys of the dataset's rows, from each cut to the next."""
    batches = pq.ParquetFile(rows, pre_buffer=False).iter_batches(_STRETCH_ROWS, columns=["key"])
    keys: Any = pa.nulls(0, pa.string())
    for start, end in pairwise(cuts):
        while len(keys) < end - start:
            keys = pa.concat_arrays([keys, next(batches)["key"]])
        yield keys.slice(0, end - start)
        keys = keys.slice(end - start)


def _usd(micros: Any) -> Any:
    """The same money in USD, rounded to 12 places."""
    exact = pa.Array.from_buffers(_MICROS_AS_USD, len(micros), micros.buffers(), offset=micros.offset)
    return pc.round(exact, 12, round_mode="half_to_even").cast(_USD)


def _vectors(vectors: Any, dimensions: int) -> Any:
    """Embeddings of that length as a list column, not copied. Raises SinkError for one of another length."""
    for n_bytes in pc.unique(pc.binary_length(vectors)).to_pylist():
        if n_bytes != 4 * dimensions:
            raise SinkError(
                f"the job has embeddings of {dimensions} and of {n_bytes // 4} numbers, and a column holds one length",
                hint="state `dimensions` in the job's `params:`, and send the rows again under a new job name",
            )
    start = vectors.offset * 4 * dimensions
    numbers = pa.Array.from_buffers(pa.float32(), len(vectors) * dimensions, [None, vectors.buffers()[2].slice(start)])
    return pa.FixedSizeListArray.from_arrays(numbers, dimensions)


def _column(answers: Sequence[Any], name: str, kind: Any) -> Any:
    try:
        values = list(map(itemgetter(name), answers))
    except (KeyError, TypeError):  # where it is not required, or the schema lets through what is no object
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
def answers(ledger: Ledger, blobs: Blobs, job: str, plan: str | None = None) -> Iterator[Answers]:
    """`plan`: whose rows they answer; None: the job's latest."""
    with blobs.scratch() as folder:
        yield Answers(ledger, blobs, job, folder, plan)
