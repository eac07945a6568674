"""Rows -> a plan and the blobs it runs from, in one streaming pass. Spends nothing and tells the ledger nothing.

Memory is a batch of rows, the lines of the shards still open (40 bytes each), and two digests and a counter for every
row of the dataset, whatever the rows weigh.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shutil
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from .blobs import Blobs
from .codec import plan_from_json, plan_to_json
from .errors import BlobError, NotFound, Problem, SourceError
from .landing import MANIFEST, read_manifest
from .plan import (
    MAX_BAD_ROWS,
    MAX_GROUPS,
    Earlier,
    Expectation,
    Room,
    Sizes,
    bound_micros,
    choose,
    digest_of,
    expect,
    expected_micros,
    fingerprint_of,
    identity_of,
    offers_for,
    plan_id,
    room_for,
    shard_id,
)
from .providers import Provider
from .render import Renderer, RowProblem, compile_job, did_you_mean, endpoint, key_text, request_key
from .sources import RowBatch, RowSource
from .tokens import Counter, counter
from .types import BadRow, Job, MarkClass, Offer, Plan, PlannedShard, Price, Tier, Tokens

_FIELDS: list[pa.Field[Any]] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("shard", pa.int32(), nullable=False),  # index into Plan.shard_ids
    pa.field("line", pa.int32(), nullable=False),
]
_ROWS = pa.schema(_FIELDS)
_ROW_GROUP = 16_384
_PIECE_BYTES = 8 << 20  # of bodies held at a time
_CUSTOM_ID = "c" + "0" * 20 + "-999999"  # none is longer
_PLAN_ID = re.compile("p_[0-9a-f]{12}")
_LINE = 0xFFFFFFFF  # of a place, which is shard ordinal << 32 | line


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan, and how many dataset rows wait for each line of the shards that answer it."""

    plan: Plan
    answering: tuple[tuple[str, bytes], ...]  # by ordinal: shard id, weights as uint32 LE per line


class Known:
    """Requests that are paid or on their way, and which line of which shard answers each."""

    def __init__(self, shards: Iterable[tuple[str, Path, Callable[[int], bool]]] = ()) -> None:
        """`shards`: id and manifest of every root shard, and which of its lines may be reused; the first one counts."""
        self.n_lines: dict[str, int] = {}  # by shard, of all of them: none of these ids is given again
        self._ids: list[str] = []
        self._places: dict[bytes, int] = {}
        for ordinal, (shard, manifest, may_reuse) in enumerate(shards):
            identities = cast("list[bytes]", read_manifest(manifest)["identity"].to_pylist())
            self.n_lines[shard] = len(identities)
            self._ids.append(shard)
            for line, identity in enumerate(identities):
                if identity not in self._places and may_reuse(line):
                    self._places[identity] = ordinal << 32 | line

    def get(self, identity: bytes) -> tuple[str, int] | None:
        """Shard and line."""
        place = self._places.get(identity)
        return None if place is None else (self._ids[place >> 32], place & _LINE)


def prepare(
    job: Job,
    *,
    source: RowSource,
    provider: Provider,
    blobs: Blobs,
    known: Known,
    price_of: Callable[[Tier], Price],
    earlier: Earlier | None,
    now: datetime,
) -> Prepared:
    """Plan a job over the rows of its source.

    Bad rows are counted, not raised: a plan that has any must not be run. Raises SourceError for a file that cannot be
    read and for columns that are missing, SpecError for a prompt with faults and a deadline nobody meets, UnknownPrice,
    and BlobError for a full disk. Then there is no plan.
    """
    setup = _set_up(job, source, provider, blobs, known, price_of, earlier)
    requests, expected = _Requests(setup), setup.expected
    with _scratch(blobs) as folder, _Rows(folder) as rows:
        shards = _Shards(setup, folder)
        for batch in source.batches():
            for wanted in requests.of(batch):
                rows.add([request.key for request in wanted], shards.answer(wanted))
        planned = shards.finish()
        rows_blob = blobs.adopt(rows.finish(shards.moves))

    digest = digest_of(job, setup.endpoint, setup.price, requests.digest)
    made = Plan(
        id=plan_id(digest), digest=digest, job=job.name, provider=provider.name, model=job.model, tier=setup.price.tier,
        endpoint=setup.endpoint, price=setup.price, standard_price=setup.standard, n_rows=requests.n_rows,
        n_duplicates=shards.n_duplicates, n_reused=shards.n_reused, n_new=sum(s.n_lines for s in planned),
        bad_rows=tuple(requests.bad_rows), n_bad_rows=requests.n_bad_rows,
        input_expected=sum(s.input_expected for s in planned), input_bound=sum(s.input_bound for s in planned),
        output_expected=shards.output_expected, output_bound=sum(s.output_bound for s in planned),
        tokens_kind=expected.tokens_kind, tokens_by=expected.tokens_by, output_basis=expected.output_basis,
        expected_micros=sum(s.expected_micros for s in planned), worst_micros=sum(s.worst_micros for s in planned),
        standard_micros=None if setup.standard is None else shards.standard_micros, attempts=job.attempts,
        shards=planned, offers=setup.offers, rows_blob=rows_blob, shard_ids=tuple(shards.ids),
        source_fingerprint=fingerprint_of(job, source.fingerprint()), source_as_of=now, created_at=now,
    )  # fmt: skip
    return Prepared(made, tuple(zip(shards.ids, map(_uint32, shards.weights), strict=True)))


@dataclass(frozen=True, slots=True)
class _Setup:
    """What is settled before the first row is read."""

    job: Job
    source: str
    provider: str
    endpoint: str
    around_bytes: int  # what stands around a body on the wire, newline included
    offers: tuple[Offer, ...]
    price: Price
    standard: Price | None
    renderer: Renderer
    counter: Counter
    expected: Expectation
    room: Room
    mark: MarkClass
    known: Known
    blobs: Blobs


def _set_up(
    job: Job, source: RowSource, provider: Provider, blobs: Blobs, known: Known, price_of: Callable[[Tier], Price],
    earlier: Earlier | None,
) -> _Setup:  # fmt: skip
    limits = provider.limits(job.model)
    offers = offers_for(job, provider.name, limits, price_of)
    price = choose(job, offers).price
    assert price is not None
    renderer, measuring = compile_job(job), counter(provider.name, job.model)
    _check_columns(job, source, renderer)
    return _Setup(
        job=job, source=source.name, provider=provider.name, endpoint=endpoint(job),
        # Every body goes over the wire as it is (providers/conformance.py), so this is the same for all of them.
        around_bytes=len(provider.encode(_CUSTOM_ID, b"", endpoint(job))) + 1,
        offers=offers, price=price, standard=next((o.price for o in offers if o.tier is Tier.STANDARD), None),
        renderer=renderer, counter=measuring, expected=expect(job, measuring, earlier),
        room=room_for(job, provider.name, limits), mark=provider.mark, known=known, blobs=blobs,
    )  # fmt: skip


def _check_columns(job: Job, source: RowSource, renderer: Renderer) -> None:
    """Raises SourceError with every column that is asked for and not there."""
    asked = [("source.key", job.source.key), *([("shard.by", job.shard.by)] if job.shard.by else [])]
    asked += [("prompt", column) for column, _ in renderer.missing(source.columns)]
    problems = [
        Problem(source.name, None, None, where, f"there is no column '{name}'{did_you_mean(name, source.columns)}")
        for where, name in asked
        if name not in source.columns
    ]
    if problems:
        raise SourceError(problems)


# ------------------------------------------------------------------------------------------------------ rows, requests


class _Request(NamedTuple):
    key: str
    identity: bytes
    body: bytes
    texts: tuple[str, ...]
    group: str | None  # the value of `shard.by`


class _Requests:
    """Rows become requests; those that cannot are kept, each with its reason."""

    def __init__(self, setup: _Setup) -> None:
        self.n_rows = self.n_bad_rows = 0
        self.bad_rows: list[BadRow] = []
        self._setup, self._job, self._names = setup, setup.job, sorted(setup.renderer.columns)
        self._lines: dict[bytes, int] = {}  # digest of a key -> the line it stands on
        self._digest = sha256()

    @property
    def digest(self) -> bytes:
        """sha256 over key and request of every good row, in order."""
        return self._digest.digest()

    def of(self, batch: RowBatch) -> Iterator[list[_Request]]:
        """The requests of a batch's good rows, in pieces of some megabytes."""
        n = len(batch.lines)
        self.n_rows += n
        columns = [batch.columns[name] for name in self._names]
        rows: Iterable[tuple[Any, ...]] = zip(*columns, strict=True) if columns else repeat((), n)
        groups = batch.columns[self._job.shard.by] if self._job.shard.by else repeat(None, n)
        found: list[_Request] = []
        n_bytes = 0
        for line, value, group, row in zip(batch.lines, batch.columns[self._job.source.key], groups, rows, strict=True):
            key = None
            try:
                key = _key(value)
                request = self._request(line, key, group, dict(zip(self._names, row, strict=True)))
            except RowProblem as problem:
                self._refuse(BadRow(line, key, str(problem)))
                continue
            found.append(request)
            n_bytes += len(request.body)
            if n_bytes > _PIECE_BYTES:
                yield self._good(found)
                found, n_bytes = [], 0
        yield self._good(found)

    def _request(self, line: int, key: str, group: object, row: Mapping[str, Any]) -> _Request:
        """Raises RowProblem."""
        setup = self._setup
        first = self._lines.setdefault(sha256(key.encode()).digest()[:16], line)
        if first != line:
            raise RowProblem(f"the key stands on line {first} already; a key names one row")
        body, texts = setup.renderer.render(row)
        n_bytes, most = len(body) + setup.around_bytes, setup.room.max_line_bytes
        if n_bytes > most:
            raise RowProblem(f"the request is {n_bytes:,} bytes long; {setup.provider} takes at most {most:,}")
        identity = identity_of(request_key(body, self._job.model, setup.endpoint), self._job, key)
        where = None if self._job.shard.by is None else "" if group is None else str(group)
        return _Request(key, identity, body, texts, where)

    def _good(self, found: list[_Request]) -> list[_Request]:
        self._digest.update(b"".join([b"%d:%b%b" % (len(k := r.key.encode()), k, r.identity) for r in found]))
        return found

    def _refuse(self, row: BadRow) -> None:
        self.n_bad_rows += 1
        if len(self.bad_rows) < MAX_BAD_ROWS:
            self.bad_rows.append(row)


def _key(value: object) -> str:
    try:
        return key_text(value)
    except ValueError as error:
        raise RowProblem(str(error)) from None


# -------------------------------------------------------------------------------------------------------------- shards


@dataclass(slots=True)
class _Shard:
    """A shard that still takes lines. What came since the last `write` waits in `pending`, all else is in the file."""

    ordinal: int
    group: str | None
    path: Path
    around_bytes: int
    weights: array[int]  # by line: how many rows wait for it
    n_lines: int = 0
    n_bytes: int = 0  # as it goes over the wire
    n_tokens: int = 0  # at their bound
    pending: list[tuple[bytes, bytes, int, int]] = field(default_factory=list)  # body, identity, expected, bound
    identities: bytearray = field(default_factory=bytearray)  # 16 bytes a line
    lengths: array[int] = field(default_factory=lambda: array("I"))  # of each line in the file
    expected: array[int] = field(default_factory=lambda: array("q"))
    bounds: array[int] = field(default_factory=lambda: array("q"))

    def fits(self, body: bytes, bound: int, room: Room, full: int) -> bool:
        return (
            self.n_lines < full
            and self.n_bytes + len(body) + self.around_bytes <= room.max_bytes
            and (room.max_tokens is None or self.n_tokens + bound <= room.max_tokens)
        )

    def append(self, body: bytes, identity: bytes, expected: int, bound: int) -> None:
        self.n_lines += 1
        self.n_bytes += len(body) + self.around_bytes
        self.n_tokens += bound
        self.pending.append((body, identity, expected, bound))

    def write(self) -> None:
        if not self.pending:
            return
        bodies, identities, expected, bounds = zip(*self.pending, strict=True)
        with self.path.open("ab") as file:  # opened anew each time, for many shards may be open
            file.write(b"\n".join([*bodies, b""]))
        self.lengths.extend([len(body) + 1 for body in bodies])
        self.identities += b"".join(identities)
        self.expected.extend(expected)
        self.bounds.extend(bounds)
        self.weights.frombytes(bytes(4 * len(bodies)))
        self.pending.clear()

    def cut(self, keep: int) -> Iterator[tuple[bytes, bytes, int, int]]:
        """Take the lines after the first `keep` out."""
        with self.path.open("r+b") as file:
            file.seek(sum(self.lengths[:keep]))
            for line in range(keep, self.n_lines):
                identity = bytes(self.identities[16 * line : 16 * line + 16])
                yield file.read(self.lengths[line])[:-1], identity, self.expected[line], self.bounds[line]
            file.truncate(sum(self.lengths[:keep]))
        self.n_bytes -= sum(self.lengths[keep:]) + (self.n_lines - keep) * (self.around_bytes - 1)
        self.n_tokens -= sum(self.bounds[keep:])
        self.n_lines = keep
        del self.lengths[keep:], self.identities[16 * keep :], self.expected[keep:], self.bounds[keep:]


class _Shards:
    """Finds where each request is answered; new ones are written to shard files, in order and within every limit.

    A place is one integer: the shard's ordinal and the line.
    """

    def __init__(self, setup: _Setup, folder: Path) -> None:
        self.n_duplicates = self.n_reused = self.output_expected = self.standard_micros = 0
        self.ids: list[str] = []  # by ordinal; that of a new shard is known once it is closed
        self.weights: list[array[int]] = []  # by ordinal, by line
        self.moves: dict[int, tuple[int, int]] = {}  # ordinal -> first line that moved, and the ordinal it moved to
        self._setup, self._job, self._folder = setup, setup.job, folder
        self._sizes = Sizes(setup.room.max_lines, setup.mark)
        self._places: dict[bytes, int] = {}  # by identity
        self._open: dict[str | None, _Shard] = {}
        self._reused: dict[str, int] = {}  # ordinals of older shards
        self._closed: dict[int, PlannedShard] = {}

    def answer(self, wanted: Sequence[_Request]) -> list[int]:
        """The place of each request."""
        setup, places = self._setup, self._places
        fresh: dict[bytes, _Request] = {}
        for request in wanted:
            if request.identity in places or request.identity in fresh:
                self.n_duplicates += 1
            elif answered := setup.known.get(request.identity):
                self.n_reused += 1
                places[request.identity] = self._reuse(*answered)
            else:
                fresh[request.identity] = request
        measured = setup.counter.measure([request.texts for request in fresh.values()], setup.renderer.fixed_bytes)
        for request, tokens in zip(fresh.values(), setup.expected.input(measured), strict=True):
            places[request.identity] = self._add(request, tokens)
        for shard in self._open.values():
            shard.write()
        answers = [places[request.identity] for request in wanted]
        for place in answers:
            self.weights[place >> 32][place & _LINE] += 1
        return answers

    def finish(self) -> tuple[PlannedShard, ...]:
        """All new shards, in order."""
        for shard in sorted(self._open.values(), key=lambda shard: shard.n_lines):  # small ones can be divided least
            self._close(shard, last=True)
        for ordinal, (first, other) in sorted(self.moves.items()):
            for line, weight in enumerate(self.weights[ordinal][first:]):
                self.weights[other][line] += weight
            del self.weights[ordinal][first:]
        return tuple(shard for _, shard in sorted(self._closed.items()))

    def _reuse(self, shard: str, line: int) -> int:
        if shard not in self._reused:
            self._reused[shard] = self._next(shard, self._setup.known.n_lines[shard])
        return self._reused[shard] << 32 | line

    def _add(self, request: _Request, tokens: Tokens) -> int:
        """The place of a new request, after closing the shard that is full before it."""
        shard = self._open.get(request.group)
        while shard and not shard.fits(request.body, tokens.bound, self._setup.room, self._sizes.full):
            shard = self._close(shard, last=False)
        if shard is None:
            shard = self._begin(request.group)
        shard.append(request.body, request.identity, tokens.expected, tokens.bound)
        return shard.ordinal << 32 | shard.n_lines - 1

    def _begin(self, group: str | None) -> _Shard:
        if len(self._open) == MAX_GROUPS:
            found = f"more than {MAX_GROUPS} different values of '{self._job.shard.by}', and each is a batch of its own"
            problem = Problem(self._setup.source, None, None, "shard.by", found)
            raise SourceError([problem], hint="name a column with fewer values; nothing was sent")
        ordinal = self._next("", 0)
        path = self._folder / str(ordinal)
        self._open[group] = _Shard(ordinal, group, path, self._setup.around_bytes, self.weights[ordinal])
        return self._open[group]

    def _next(self, name: str, n_lines: int) -> int:
        self.ids.append(name)
        self.weights.append(array("I", bytes(4 * n_lines)))
        return len(self.ids) - 1

    def _close(self, shard: _Shard, *, last: bool) -> _Shard | None:
        """Close a shard; the one that took lines over from it, if there is one."""
        shard.write()
        del self._open[shard.group]
        rest = None
        keep = self._sizes.cut(shard.n_lines, last=last)
        if keep < shard.n_lines:
            rest = self._begin(shard.group)
            for line in shard.cut(keep):
                rest.append(*line)
            rest.write()
            self.moves[shard.ordinal] = (keep, rest.ordinal)  # rows that wait for them are told at the end
        self._sizes.take(keep)
        self._closed[shard.ordinal] = self._sealed(shard)
        self.ids[shard.ordinal] = self._closed[shard.ordinal].id
        return self._close(rest, last=True) if rest and last else rest

    def _sealed(self, shard: _Shard) -> PlannedShard:
        job, setup, n = self._job, self._setup, shard.n_lines
        requests_blob = setup.blobs.adopt(shard.path)
        n_output = setup.expected.output(n)
        self.output_expected += n_output
        if setup.standard:
            self.standard_micros += expected_micros(shard.expected, n_output, setup.standard)
        return PlannedShard(
            id=shard_id(job.name, requests_blob, bytes(shard.identities), setup.known.n_lines), n_lines=n,
            n_bytes=shard.n_bytes, requests_blob=requests_blob, manifest_blob=self._manifest(shard),
            input_expected=sum(shard.expected), input_bound=shard.n_tokens, output_bound=n * job.max_output_tokens,
            expected_micros=expected_micros(shard.expected, n_output, setup.price),
            worst_micros=bound_micros(shard.bounds, job.max_output_tokens, setup.price), by=shard.group,
        )  # fmt: skip

    def _manifest(self, shard: _Shard) -> str:
        n = shard.n_lines
        columns: list[Any] = [
            pa.array(range(n), pa.int32()),
            pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(shard.identities)]),
            pa.Array.from_buffers(pa.int64(), n, [None, pa.py_buffer(shard.expected)]),
            pa.Array.from_buffers(pa.int64(), n, [None, pa.py_buffer(shard.bounds)]),
            pa.repeat(pa.scalar(self._job.max_output_tokens, pa.int64()), n),
        ]
        path = shard.path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_arrays(columns, schema=MANIFEST), path, compression="zstd", compression_level=1)
        return self._setup.blobs.adopt(path)


# ---------------------------------------------------------------------------------------------------------------- rows


class _Rows:
    """Which line of which shard answers each good row, in source order."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rows.parquet"
        self._writer = _parquet(self._path)
        self._keys: list[str] = []
        self._places = array("Q")

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, keys: Sequence[str], places: Iterable[int]) -> None:
        self._keys += keys
        self._places.extend(places)
        if len(self._keys) >= _ROW_GROUP:
            self._write()

    def finish(self, moves: Mapping[int, tuple[int, int]]) -> Path:
        """The finished file. Lines that moved to another shard are followed there."""
        self._write()
        self._writer.close()
        if not moves:
            return self._path
        moved = self._path.with_name("moved.parquet")
        with _parquet(moved) as writer:
            for group in pq.ParquetFile(self._path, pre_buffer=False).iter_batches(_ROW_GROUP):
                places: Iterable[Any] = zip(group["shard"].to_pylist(), group["line"].to_pylist(), strict=True)
                shards, lines = zip(*(_followed(shard, line, moves) for shard, line in places), strict=True)
                writer.write_batch(_records(group["key"], shards, lines))
        return moved

    def _write(self) -> None:
        shards, lines = [p >> 32 for p in self._places], [p & _LINE for p in self._places]
        self._writer.write_batch(_records(pa.array(self._keys, pa.string()), shards, lines))
        self._keys.clear()
        del self._places[:]


def _parquet(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, _ROWS, compression="zstd", compression_level=1)


def _records(keys: Any, shards: Sequence[int], lines: Sequence[int]) -> pa.RecordBatch:
    return pa.record_batch([keys, pa.array(shards, pa.int32()), pa.array(lines, pa.int32())], schema=_ROWS)


def _followed(shard: int, line: int, moves: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    while (move := moves.get(shard)) and line >= move[0]:
        shard, line = move[1], line - move[0]
    return shard, line


# ------------------------------------------------------------------------------------------------------- kept by name


def save_plan(blobs: Blobs, prepared: Prepared, job_file: Path | None = None) -> None:
    """Keep a plan, so that it can be run by its id. A later plan of the same id takes its place."""
    answering = [[shard, base64.b64encode(zlib.compress(w)).decode()] for shard, w in prepared.answering]
    blob = blobs.put(json.dumps({"plan": plan_to_json(prepared.plan), "answering": answering}).encode())
    path = _path(blobs, prepared.plan.id)
    with _scratch(blobs) as folder:
        draft = folder / path.name
        with draft.open("wb") as file:
            file.write(json.dumps({"blob": blob, "job_file": job_file and str(job_file)}).encode())
            file.flush()
            os.fsync(file.fileno())
        path.parent.mkdir(exist_ok=True)
        draft.replace(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_plan(blobs: Blobs, plan: str) -> Prepared:
    """The plan kept under an id. Raises NotFound when there is none, BlobError when it is damaged."""
    with _kept(blobs, plan) as kept:
        saved = json.loads(blobs.read(kept["blob"]))
        answering = tuple((shard, zlib.decompress(base64.b64decode(weights))) for shard, weights in saved["answering"])
        return Prepared(plan_from_json(saved["plan"]), answering)


def planned_file(blobs: Blobs, plan: str) -> Path | None:
    """The job file a kept plan was made from; None for a job that has none. Raises as `load_plan`."""
    with _kept(blobs, plan) as kept:
        return Path(kept["job_file"]) if kept["job_file"] else None


@contextmanager
def _kept(blobs: Blobs, plan: str) -> Iterator[Mapping[str, Any]]:
    """What is kept under a plan's id; whatever is found wrong with it is damage."""
    path = _path(blobs, plan)
    if not path.is_file():
        raise NotFound(
            f"No plan {plan} is kept in {blobs.folder}.", what="plan", name=plan, hint="`canwait plan` makes one"
        )
    try:
        yield json.loads(path.read_bytes())
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise BlobError(f"{path} is damaged: {error}", hint="`canwait plan` makes it again") from error


def _path(blobs: Blobs, plan: str) -> Path:
    if not _PLAN_ID.fullmatch(plan):
        raise NotFound(f"{plan!r} is not the id of a plan.", what="plan", name=plan, hint="`canwait plan` prints one")
    return blobs.folder / "plans" / f"{plan}.json"


# --------------------------------------------------------------------------------------------------------------- files


@contextmanager
def _scratch(blobs: Blobs) -> Iterator[Path]:
    """A folder for files that become blobs; whatever is left in it goes."""
    folder = blobs.scratch()
    try:
        yield folder
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, then plan again; nothing was sent" if full else None
        raise BlobError(f"{blobs.folder} could not be written: {error.strerror or error}", hint=hint) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _uint32(weights: array[int]) -> bytes:
    if sys.byteorder == "big":
        weights.byteswap()
    return weights.tobytes()
