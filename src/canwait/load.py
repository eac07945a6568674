"""From results to rows: the dataset's rows joined to their answers by position, in source order, in chunks.

It is a join by position: `rows_blob` says for each row which line of which shard answers it. The final records of all
shards are copied once, in order, into an Arrow file that is memory-mapped and `take`n from; memory is 8 bytes a line.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import compress
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .blobs import Blobs
from .clock import from_us
from .codec import terms_from_json
from .errors import Problem, SinkError, SpecError
from .ledger import Ledger
from .sinks import PROVENANCE
from .sinks.rows import Chunks, field_types, fitted
from .types import Outcome, Terms

_CHUNK_ROWS = 16_384
_STAMP = pa.timestamp("us", "UTC")
_USD = pa.decimal128(24, 12)
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("outcome", pa.int8()),
    ("cause", pa.string()),
    ("detail", pa.string()),
    ("output", pa.string()),
    ("model", pa.string()),
    ("cost_micros", pa.decimal128(28, 12)),
    ("produced_at", _STAMP),
]
_SPOOL = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True)
class Columns:
    """How an answer becomes columns: the fields of the output schema, or one text column `output`."""

    key: str
    fields: tuple[tuple[str, Any], ...]  # name, Arrow type; empty: no schema
    tier: str

    @property
    def loaded(self) -> pa.Schema:
        body = [pa.field(n, t) for n, t in self.fields] or [pa.field("output", pa.string())]
        tail = [("_model", pa.string()), ("_tier", pa.string()), ("_cost_usd", _USD), ("_produced_at", _STAMP)]
        return pa.schema([pa.field(self.key, pa.string()), *body, *(pa.field(n, t) for n, t in tail)])

    @property
    def failed(self) -> pa.Schema:
        return pa.schema([(n, pa.string()) for n in (self.key, "_outcome", "_cause", "_detail")])


def columns_of(terms: Terms) -> Columns:
    return Columns(terms.key, tuple(field_types(terms.output_schema).items()), terms.tier.value)


def check_columns(output_schema: Mapping[str, Any] | None, key: str) -> None:
    """Raises SpecError when an output field has the name of the key column or of one of ours."""
    if taken := {key, *PROVENANCE} & set(field_types(output_schema)):
        what = f"field {', '.join(sorted(taken))} has the name of the key column or of one of canwait's"
        raise SpecError([Problem("job", None, None, "output", what)])


class Answers:
    """The answers of a job's latest plan. `loaded` and `failed` each stream its rows once, in source order."""

    def __init__(self, ledger: Ledger, blobs: Blobs, job: str, folder: Path) -> None:
        row = ledger.job(job)
        plan = ledger.query("plan", job=job, digest=row["plan"])[0]
        self._rows = blobs.path(json.loads(plan["body"])["rows_blob"])
        self.columns = columns_of(terms_from_json(json.loads(plan["terms"])))
        self._places: list[array[int]] = []  # by ordinal, by line: position in the spool, -1 for none
        self._foreign: list[bool] = []  # by ordinal: paid by another job
        path = folder / "answers.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SPOOL) as spool:
            n = 0
            for answering in ledger.query("plan_shards", job=job, plan=row["plan"]):
                tried = ledger.query("shards_of_root", root=answering["shard"])
                tried = sorted((s for s in tried if s["results_blob"]), key=lambda s: (s["settled_us"], s["attempt"]))
                files = [(blobs.path(s["results_blob"]), from_us(s["settled_us"])) for s in tried]
                places, n = _copy_final(spool, files, answering["n_lines"], n)
                self._places.append(places)
                self._foreign.append(answering["owner_job"] != job)
        spooled = pa.ipc.open_file(pa.memory_map(str(path)))
        self._spool = Chunks([spooled.get_batch(i) for i in range(spooled.num_record_batches)], _SPOOL)
        self._charged = bytearray(n)  # the first row of an answer carries its cost

    def loaded(self) -> Iterator[pa.RecordBatch]:
        """Rows with a usable answer."""
        schema = self.columns.loaded
        for keys, ordinals, part in self._chunks(ok=True):
            texts = part["output"].to_pylist()
            values = [orjson.loads(t) if t else None for t in texts] if self.columns.fields else []
            fields: list[Any] = [_column(values, n, k) for n, k in self.columns.fields] or [
                pa.array(texts, pa.string())
            ]
            tier = pa.repeat(pa.scalar(self.columns.tier), len(keys))
            costs = [
                self._cost(p, o, c)
                for p, o, c in zip(_list(part["_place"]), ordinals, part["cost_micros"].to_pylist(), strict=True)
            ]
            stamps = part["produced_at"].combine_chunks()
            models = part["model"].combine_chunks()
            yield pa.record_batch(
                [pa.array(keys, pa.string()), *fields, models, tier, pa.array(costs, _USD), stamps], schema=schema
            )

    def texts(self) -> Iterator[tuple[str, str]]:
        """Key and answer, as the model wrote it, of every row with a usable one."""
        for keys, _, part in self._chunks(ok=True):
            yield from zip(keys, part["output"].to_pylist(), strict=True)

    def failed(self) -> Iterator[pa.RecordBatch]:
        """Rows without one, with their cause."""
        for keys, _, part in self._chunks(ok=False):
            names = [Outcome(o).name.lower() for o in _list(part["outcome"])]
            texts = [
                pa.array(keys, pa.string()),
                pa.array(names, pa.string()),
                part["cause"].combine_chunks(),
                part["detail"].combine_chunks(),
            ]
            yield pa.record_batch(texts, schema=self.columns.failed)

    def _chunks(self, *, ok: bool) -> Iterator[tuple[list[str], list[int], pa.Table]]:
        """Keys, ordinals and spooled records of the rows whose answer is, or is not, usable."""
        if not self._charged:
            return
        for batch in pq.ParquetFile(self._rows, pre_buffer=False).iter_batches(_CHUNK_ROWS):
            keys, ordinals, lines = (_list(batch[column]) for column in ("key", "shard", "line"))
            places = [self._places[o][line] for o, line in zip(ordinals, lines, strict=True)]
            part = self._spool.take([max(place, 0) for place in places])
            part = part.append_column("_place", pa.array(places, pa.int64()))
            ended = zip(places, _list(part["outcome"]), strict=True)
            keep = [place >= 0 and (outcome == Outcome.OK) is ok for place, outcome in ended]
            if any(keep):
                yield list(compress(keys, keep)), list(compress(ordinals, keep)), part.filter(pa.array(keep))

    def _cost(self, place: int, ordinal: int, micros: Decimal | None) -> Decimal | None:
        """USD of one row. An answer many rows share is charged to the first; one another job paid costs nothing here."""
        if self._charged[place] or self._foreign[ordinal]:
            return Decimal(0)
        self._charged[place] = 1
        return None if micros is None else (micros / 1_000_000).quantize(Decimal("0.000000000001"))


def _copy_final(spool: Any, files: Sequence[tuple[Path, datetime]], n_lines: int, n: int) -> tuple[array[int], int]:
    """Append the final record of each line to the spool; where each line's lies, and the spool's new length.

    Within one output a later record supersedes an earlier one; a later attempt supersedes anything but an OK answer.
    """
    final: list[tuple[int, int] | None] = [None] * n_lines
    is_ok = bytearray(n_lines)
    for index, (path, _) in enumerate(files):
        seen = pq.read_table(path, columns=["line", "outcome"]).to_pydict()
        own = {line: (row, outcome) for row, (line, outcome) in enumerate(zip(*seen.values(), strict=True))}
        for line, (row, outcome) in own.items():
            if not is_ok[line]:
                final[line], is_ok[line] = (index, row), outcome == Outcome.OK
    places = array("q", [-1] * n_lines)
    for index, (path, produced) in enumerate(files):
        wanted = {where[1]: line for line, where in enumerate(final) if where and where[0] == index}
        start = 0
        for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(_CHUNK_ROWS):
            rows = [r for r in range(batch.num_rows) if start + r in wanted]
            part = batch.take(pa.array(rows, pa.int64()))
            stamp = pa.repeat(pa.scalar(produced, _STAMP), len(rows))
            spool.write_batch(pa.record_batch([*(part[c] for c in _SPOOL.names[:-1]), stamp], schema=_SPOOL))
            for position, row in enumerate(rows):
                places[wanted[start + row]] = n + position
            n += len(rows)
            start += batch.num_rows
    return places, n


def _list(column: Any) -> list[Any]:
    return list(column.to_pylist())


def _column(answers: list[Any], name: str, kind: Any) -> Any:
    values = [a.get(name) if isinstance(a, dict) else None for a in answers]
    try:
        return pa.array([fitted(v, kind) for v in values], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise SinkError(
            f"field {name} has a value that is not {kind}: {error}", hint=f"bound `{name}` in the output schema"
        ) from error


@contextmanager
def answers(ledger: Ledger, blobs: Blobs, job: str) -> Iterator[Answers]:
    folder = blobs.scratch()
    try:
        yield Answers(ledger, blobs, job, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
