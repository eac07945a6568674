"""Rows -> a plan and the blobs it runs from, in one streaming pass. Spends nothing and tells the ledger nothing.

Memory is a batch of rows, the requests that go first (canary.py), the lines of the shards still open (40 bytes each), and
two digests and a counter for every row of the dataset, whatever the rows weigh.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import chain, compress, count, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from .blobs import Blobs
from .bodies import Bodies
from .canary import FEW_ROWS, Drawn, Sample, has_canary
from .columns import integers, strings
from .durable import writing
from .errors import Problem, SourceError
from .known import Known
from .landing import MANIFEST
from .lines import LinesFile, read_lines
from .places import LINE_BITS, MAX_LINES, MAX_SHARDS, Keys, Places
from .plan import (
    IDENTITY_BYTES,
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
from .planned import Prepared
from .providers import Provider
from .render import Renderer, RowProblem, compile_job, did_you_mean, endpoint, key_text, keyed
from .sources import RowBatch, RowSource
from .tokens import CHAT, EMBEDDING, Measure, counter
from .types import BadRow, Canary, Endpoint, Job, MarkClass, Offer, Plan, PlannedShard, Price, Tier

pc: Any = pyarrow.compute  # its stubs do not know all of it

_KEY: pa.Field[Any] = pa.field("key", pa.string(), nullable=False)
_ROWS_COLUMNS: list[pa.Field[Any]] = [
    _KEY,
    pa.field("shard", pa.int32(), nullable=False),  # index into Plan.shard_ids
    pa.field("line", pa.int32(), nullable=False),
]
_ROWS, _PLACED = pa.schema(_ROWS_COLUMNS), pa.schema([_KEY, pa.field("place", pa.int64(), nullable=False)])
_ROW_GROUP = 16_384
_PIECE_BYTES = 2 << 20  # of bodies made at a time
_FIRST_PIECE_ROWS = 64  # whose size nobody knows
_FRAME_BYTES = 1 << 20  # of a shard, written at a time
_WAITING_BYTES = 64 << 20  # of all open shards
_ASIDE_LINES = 64  # placed at a time
_CUSTOM_ID = "c" + "0" * 20 + "-999999"  # none is longer
_LINE = MAX_LINES - 1  # of a place
_BOUNDLESS = Room(sys.maxsize, sys.maxsize, sys.maxsize, None)


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
    with blobs.scratch() as folder, writing(blobs.folder, "plan again; nothing was sent"):
        read = _read(setup, source, folder / "once", frozenset())
        if read.suspects:  # keys that stand twice are bad rows; now it is known which keys to watch
            read = _read(setup, source, folder / "again", read.suspects)
        requests, shards = read.requests, read.shards
        rows_blob = blobs.adopt(read.rows_file)
    planned, expected = read.planned, setup.expected
    digest = digest_of(job, setup.endpoint, setup.price, requests.digest)
    fingerprint = source.fingerprint()
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
        source_fingerprint=fingerprint_of(job, fingerprint), source_as_of=now, created_at=now,
        canary=shards.canary,
    )  # fmt: skip
    return Prepared(made, tuple(zip(shards.ids, map(_uint32, shards.weights), strict=True)), fingerprint)


class _Read(NamedTuple):
    """What reading all rows once brought."""

    requests: _Requests
    shards: _Shards
    planned: tuple[PlannedShard, ...]
    rows_file: Path
    suspects: frozenset[int]


def _read(setup: _Setup, source: RowSource, folder: Path, suspects: frozenset[int]) -> _Read:
    folder.mkdir()
    job = setup.job
    wanted = dict.fromkeys((job.source.key, *setup.renderer.columns, *([job.shard.by] if job.shard.by else [])))
    with closing(Keys(folder / "keys")) as keys, closing(Places(folder / "places")) as places, _Rows(folder) as rows:
        requests, shards = _Requests(setup, keys, suspects), _Shards(setup, folder, places)
        for batch in source.batches(tuple(wanted)):
            for piece in requests.of(batch):
                rows.add(piece.keys, shards.answer(piece))
        return _Read(requests, shards, shards.finish(), rows.finish(shards.shifts()), keys.twice())


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
    bodies: Bodies
    measure: Measure
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
    bodies = Bodies(renderer)
    overhead = EMBEDDING if job.endpoint is Endpoint.EMBEDDINGS else CHAT
    return _Setup(
        job=job, source=source.name, provider=provider.name, endpoint=endpoint(job),
        # Every body goes over the wire as it is (providers/conformance.py), so this is the same for all of them.
        around_bytes=len(provider.encode(_CUSTOM_ID, b"", endpoint(job))) + 1,
        offers=offers, price=price, standard=next((o.price for o in offers if o.tier is Tier.STANDARD), None),
        renderer=renderer, bodies=bodies, measure=measuring.measurer(bodies.frames, renderer.fixed_bytes, overhead),
        expected=expect(job, measuring, earlier),
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


class _Piece(NamedTuple):
    """Requests of some rows, column by column."""

    keys: list[str]
    identities: list[bytes]
    middles: list[bytes]  # bodies without what all of them begin and end with
    texts: list[list[str]]  # of each message that depends on the row
    groups: list[str] | None  # the values of `shard.by`


class _Requests:
    """Rows become requests; those that cannot are kept, each with its reason.

    Whole pieces are made at once. Only where a row of a piece cannot become a request are its rows looked at one by one.
    """

    def __init__(self, setup: _Setup, keys: Keys, suspects: frozenset[int]) -> None:
        """`suspects`: hashes of keys that may stand on more than one row."""
        self.n_rows = self.n_bad_rows = 0
        self.bad_rows: list[BadRow] = []
        self._setup, self._job, self._names = setup, setup.job, sorted(setup.renderer.columns)
        self._base = keyed(setup.job.model, setup.endpoint, setup.bodies.head)
        self._all_keys, self._suspects = keys, suspects
        self._lines: dict[str, int] = {}  # of keys under suspicion: the line each stands on
        self._piece_rows = _FIRST_PIECE_ROWS
        self._key_digest, self._request_digest = sha256(), sha256()

    @property
    def digest(self) -> bytes:
        """sha256 over key and request of every good row, in order."""
        return sha256(self._key_digest.digest() + self._request_digest.digest()).digest()

    def of(self, batch: RowBatch) -> Iterator[_Piece]:
        """The requests of a batch's good rows, in pieces of some megabytes."""
        n_rows = len(batch.lines)
        self.n_rows += n_rows
        start = 0
        while start < n_rows:
            rows = slice(start, min(start + self._piece_rows, n_rows))
            piece = self._whole(batch, rows) or self._one_by_one(batch, rows)
            self._all_keys.add(piece.keys)
            self._key_digest.update("\0".join([*piece.keys, ""]).encode())  # a key holds no NUL
            self._request_digest.update(b"".join(piece.identities))
            yield piece
            start = rows.stop
            mean_bytes = sum(map(len, piece.middles)) // (len(piece.middles) or 1)
            self._piece_rows = _PIECE_BYTES // max(mean_bytes, 1) + 1

    def _whole(self, batch: RowBatch, rows: slice) -> _Piece | None:
        """None when a row of them may be a bad one."""
        keys = batch.columns[self._job.source.key][rows]
        if not _are_keys(keys) or (self._suspects and any(hash(key) in self._suspects for key in keys)):
            return None
        columns = {name: batch.columns[name][rows] for name in self._names}
        if (made := self._setup.bodies.render(columns, len(keys))) is None:
            return None
        middles, texts = made
        if max(map(len, middles)) > self._most_bytes:
            return None
        return _Piece(list(keys), self._identities(keys, middles), middles, texts, self._groups(batch, rows))

    def _one_by_one(self, batch: RowBatch, rows: slice) -> _Piece:
        job, setup, columns = self._job, self._setup, batch.columns
        good: list[int] = []
        keys: list[str] = []
        middles: list[bytes] = []
        texts: list[list[str]] = [[] for _ in setup.bodies.variable]
        for at in range(rows.start, rows.stop):
            key = None
            try:
                key = _key(columns[job.source.key][at])
                if hash(key) in self._suspects:
                    line = batch.lines[at]
                    if (first := self._lines.setdefault(key, line)) != line:
                        raise RowProblem(f"the key stands on line {first} already; a key names one row")
                body, messages = setup.renderer.render({name: columns[name][at] for name in self._names})
                n_bytes, most = len(body) + setup.around_bytes, setup.room.max_line_bytes
                if n_bytes > most:
                    raise RowProblem(f"the request is {n_bytes:,} bytes long; {setup.provider} takes at most {most:,}")
            except RowProblem as problem:
                self._refuse(BadRow(batch.lines[at], key, str(problem)))
                continue
            good.append(at)
            keys.append(key)
            middles.append(setup.bodies.middle(body))
            for column, text in zip(texts, setup.bodies.varying(messages), strict=True):
                column.append(text)
        groups = self._groups(batch, slice(0, None))
        return _Piece(keys, self._identities(keys, middles), middles, texts, groups and [groups[at] for at in good])

    @property
    def _most_bytes(self) -> int:
        """Of a middle."""
        setup = self._setup
        return setup.room.max_line_bytes - setup.around_bytes - len(setup.bodies.head) - len(setup.bodies.tail)

    def _identities(self, keys: Sequence[str], middles: Sequence[bytes]) -> list[bytes]:
        found, copy, tail = [], self._base.copy, self._setup.bodies.tail
        for middle in middles:
            digest = copy()
            digest.update(middle)
            digest.update(tail)
            found.append(digest.digest())
        if self._job.dedupe:
            return [request[:IDENTITY_BYTES] for request in found]
        return [identity_of(request, self._job, key) for request, key in zip(found, keys, strict=True)]

    def _groups(self, batch: RowBatch, rows: slice) -> list[str] | None:
        if self._job.shard.by is None:
            return None
        return ["" if value is None else str(value) for value in batch.columns[self._job.shard.by][rows]]

    def _refuse(self, row: BadRow) -> None:
        self.n_bad_rows += 1
        if len(self.bad_rows) < MAX_BAD_ROWS:
            self.bad_rows.append(row)


def _key(value: object) -> str:
    try:
        return key_text(value)
    except ValueError as error:
        raise RowProblem(str(error)) from None


def _are_keys(values: Sequence[object]) -> bool:
    """Whether each is text that can be a key as it stands."""
    if set(map(type, values)) != {str} or "" in values:
        return False
    try:
        together = "".join(cast("Sequence[str]", values)).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return b"\0" not in together


# -------------------------------------------------------------------------------------------------------------- shards


class _Fresh(NamedTuple):
    """Requests nobody answers yet, column by column."""

    identities: list[bytes]
    middles: list[bytes]
    expected: list[int]  # input tokens
    bounds: list[int]

    def without(self, rows: Sequence[int]) -> _Fresh:
        """All but these."""
        if not rows:
            return self
        keep = bytearray(b"\1" * len(self.identities))
        for row in rows:
            keep[row] = 0
        return _Fresh(*(list(compress(column, keep)) for column in cast("tuple[list[Any], ...]", self)))


def _fresh(drawn: Sequence[Drawn]) -> _Fresh:
    return _Fresh(*map(list, zip(*drawn, strict=True)))


class _Shard:
    """A shard that still takes lines. What came since the last `write` waits in `_middles`, all else is in the file."""

    def __init__(self, ordinal: int, group: str | None, path: Path, setup: _Setup, room: Room | None = None) -> None:
        self.ordinal, self.group = ordinal, group
        self.n_lines = 0
        self.n_bytes = 0  # as it goes over the wire
        self.n_tokens = 0  # at their bound
        self.n_waiting_bytes = 0
        self.identities = bytearray()
        self.expected, self.bounds = array("q"), array("q")  # input tokens of each line
        self.file = LinesFile(path, setup.bodies.head, setup.bodies.tail)
        self._middles: list[bytes] = []
        self._room, self._middle = room or setup.room, setup.bodies.middle
        self._around_bytes = setup.around_bytes + len(setup.bodies.head) + len(setup.bodies.tail)

    def take(self, fresh: _Fresh, start: int, full: int) -> int:
        """Append requests from `start` on, until one does not fit; how many. An empty shard takes at least one."""
        n = max(0, min(len(fresh.middles) - start, full - self.n_lines))  # other groups' shards may have lowered `full`
        middles, bounds = fresh.middles[start : start + n], fresh.bounds[start : start + n]
        n_bytes = self.n_bytes + sum(map(len, middles)) + n * self._around_bytes
        n_tokens = self.n_tokens + sum(bounds)
        most_tokens = sys.maxsize if self._room.max_tokens is None else self._room.max_tokens
        while n > (not self.n_lines) and (n_bytes > self._room.max_bytes or n_tokens > most_tokens):
            n -= 1
            n_bytes -= len(middles[n]) + self._around_bytes
            n_tokens -= bounds[n]
        self._middles += middles[:n]
        self.identities += b"".join(fresh.identities[start : start + n])
        self.expected.extend(fresh.expected[start : start + n])
        self.bounds.extend(bounds[:n])
        self.n_lines += n
        self.n_waiting_bytes += n_bytes - self.n_bytes
        self.n_bytes, self.n_tokens = n_bytes, n_tokens
        return n

    def write(self) -> None:
        if self._middles:
            self.file.append(self._middles)
            self._middles.clear()
            self.n_waiting_bytes = 0

    def parts(self, n_lines: int) -> Iterator[_Fresh]:
        """What is written, so many lines at a time."""
        bodies = read_lines(self.file.path) if self.n_lines else iter(())
        for start in range(0, self.n_lines, n_lines):
            yield self._part(start, [self._middle(body) for body in islice(bodies, n_lines)])

    def cut(self, keep: int) -> _Fresh:
        """Take the lines after the first `keep` out."""
        cut = self._part(keep, middles := self.file.cut(keep))
        self.n_bytes -= sum(map(len, middles)) + len(middles) * self._around_bytes
        self.n_tokens -= sum(cut.bounds)
        self.n_lines = keep
        del self.identities[IDENTITY_BYTES * keep :], self.expected[keep:], self.bounds[keep:]
        return cut

    def _part(self, start: int, middles: list[bytes]) -> _Fresh:
        """The lines from `start` on that have these middles."""
        lines, size = slice(start, start + len(middles)), IDENTITY_BYTES
        identities = [bytes(self.identities[size * n : size * n + size]) for n in range(lines.start, lines.stop)]
        return _Fresh(identities, middles, self.expected[lines].tolist(), self.bounds[lines].tolist())


class _Shards:
    """Finds where each request is answered; new ones are written to shard files, in order and within every limit.

    A place is one integer: the shard's ordinal and the line (places.py).
    """

    def __init__(self, setup: _Setup, folder: Path, places: Places) -> None:
        self.n_duplicates = self.n_reused = self.output_expected = self.standard_micros = 0
        self.ids: list[str] = []  # by ordinal; that of a new shard is known once it is closed
        self.weights: list[array[int]] = []  # by ordinal, by line: how many rows wait for it
        self.moves: dict[int, tuple[int, int]] = {}  # ordinal -> first line that moved, and the ordinal it moved to
        self._setup, self._job, self._folder, self._places = setup, setup.job, folder, places
        self.sizes = Sizes(min(setup.room.max_lines, MAX_LINES), setup.mark)  # a place has no room for more
        self.open: dict[str | None, _Shard] = {}
        self._reused: dict[str, int] = {}  # ordinals of older shards
        self._closed: dict[int, PlannedShard] = {}
        self.spare: int | None = None  # an ordinal for the next new shard
        self._lot = _Lot(self, setup, folder) if has_canary(setup.job) else None

    @property
    def canary(self) -> Canary | None:
        """Once all is finished."""
        return self._lot.canary if self._lot else None

    def answer(self, piece: _Piece) -> list[int]:
        """The place of each request."""
        identities = piece.identities
        answers, missing = self._places.find(identities)
        again = [place for place in answers if place >= 0]
        if missing:
            # Of rows that ask the same the first one stays here, for it comes last.
            first = dict(zip([identities[row] for row in reversed(missing)], reversed(missing), strict=True))
            new = sorted(first.values())
            placed = self._reuse(identities, new)
            fresh = [row for row in new if row not in placed] if placed else new
            placed |= zip(fresh, self._add(piece, fresh), strict=True)
            self._places.add([identities[row] for row in placed], list(placed.values()))
            for row, place in placed.items():
                answers[row] = place
            for row in set(missing).difference(new):
                answers[row] = answers[first[identities[row]]]
                again.append(answers[row])
        for place in again:
            self.weights[place >> LINE_BITS][place & _LINE] += 1
        self.n_duplicates += len(again)
        return answers

    def finish(self) -> tuple[PlannedShard, ...]:
        """All new shards, in order."""
        if self._lot:
            self._lot.finish()
        for shard in sorted(self.open.values(), key=lambda shard: shard.n_lines):  # small ones can be divided least
            self._close(shard, last=True)
        for ordinal, (first, other) in sorted(self.moves.items()):
            for line, weight in enumerate(self.weights[ordinal][first:]):
                self.weights[other][line] += weight
            del self.weights[ordinal][first:]
        return tuple(shard for _, shard in sorted(self._closed.items()))

    def shifts(self) -> list[tuple[int, int]]:
        """Once all is finished: from which place on, ascending, a row's place is how much further on than was answered."""
        shifts: dict[int, int] = {}
        for ordinal in self.moves:
            start, at = 0, ordinal
            while True:
                begin = ordinal << LINE_BITS | start
                shifts[begin] = (at << LINE_BITS) - begin
                if at not in self.moves:
                    break
                n_lines, at = self.moves[at]
                start += n_lines
            shifts.setdefault(ordinal + 1 << LINE_BITS, 0)
        if self._lot:
            for begin, place in self._lot.places():
                shifts[begin] = self._followed(place) - begin
                shifts.setdefault((begin >> LINE_BITS) + 1 << LINE_BITS, 0)
        return sorted(shifts.items())

    def _followed(self, place: int) -> int:
        """Where a line went."""
        shard, line = place >> LINE_BITS, place & _LINE
        while (move := self.moves.get(shard)) and line >= move[0]:
            shard, line = move[1], line - move[0]
        return shard << LINE_BITS | line

    def _reuse(self, identities: list[bytes], rows: list[int]) -> dict[int, int]:
        """The places of those rows that an older shard answers."""
        if not self._setup.known:
            return {}
        found = zip(rows, self._setup.known.find([identities[row] for row in rows]), strict=True)
        places = {row: self._older(*answered) for row, answered in found if answered}
        for place in places.values():
            self.weights[place >> LINE_BITS][place & _LINE] += 1
        self.n_reused += len(places)
        return places

    def _older(self, shard: str, line: int) -> int:
        if shard not in self._reused:
            n_lines = self._setup.known.n_lines[shard]
            assert n_lines <= MAX_LINES  # no plan makes larger ones
            self._reused[shard] = self.next_ordinal(shard, n_lines)
        return self._reused[shard] << LINE_BITS | line

    def _add(self, piece: _Piece, rows: list[int]) -> list[int]:
        """The places of new requests: rows of a piece."""
        if not rows:
            return []
        middles, texts = piece.middles, piece.texts
        if len(rows) < len(middles):
            middles, texts = [middles[row] for row in rows], [[column[row] for row in rows] for column in texts]
        expected, bounds = self._setup.expected.input(*self._setup.measure(texts))
        if not texts:  # all rows are one request
            expected, bounds = expected * len(rows), bounds * len(rows)
        fresh = _Fresh([piece.identities[row] for row in rows], middles, expected, bounds)
        if piece.groups is None:
            return self._lot.draw(fresh) if self._lot else self.append(None, fresh)
        by_group: dict[str, list[int]] = {}
        for n, row in enumerate(rows):
            by_group.setdefault(piece.groups[row], []).append(n)
        places = [0] * len(rows)
        for group, members in by_group.items():
            part = _Fresh(*[[column[n] for n in members] for column in cast("tuple[list[Any], ...]", fresh)])
            for n, place in zip(members, self.append(group, part), strict=True):
                places[n] = place
        return places

    def append(self, group: str | None, fresh: _Fresh) -> list[int]:
        """The places of new requests, after closing the shards that are full before them."""
        places: list[int] = []
        shard = self.open.get(group)
        while len(places) < len(fresh.middles):
            if shard is None:
                shard = self.begin(group)
            line, n = shard.n_lines, shard.take(fresh, len(places), self.sizes.full)
            self.weights[shard.ordinal].extend(repeat(1, n))
            first = shard.ordinal << LINE_BITS | line
            places += range(first, first + n)
            if len(places) < len(fresh.middles):
                shard = self._close(shard, last=False)
        if shard and shard.n_waiting_bytes >= _FRAME_BYTES:
            shard.write()
        elif sum(s.n_waiting_bytes for s in self.open.values()) > _WAITING_BYTES:
            for waiting in self.open.values():
                waiting.write()
        return places

    def begin(self, group: str | None) -> _Shard:
        if len(self.open) == MAX_GROUPS:
            found = f"more than {MAX_GROUPS} different values of '{self._job.shard.by}', and each is a batch of its own"
            problem = Problem(self._setup.source, None, None, "shard.by", found)
            raise SourceError([problem], hint="name a column with fewer values; nothing was sent")
        ordinal = self.next_ordinal("", 0) if self.spare is None else self.spare
        self.spare = None
        self.open[group] = _Shard(ordinal, group, self._folder / str(ordinal), self._setup)
        return self.open[group]

    def next_ordinal(self, name: str, n_lines: int) -> int:
        if len(self.ids) == MAX_SHARDS:
            problem = Problem(self._setup.source, None, None, "shard", f"more than {MAX_SHARDS:,} shards")
            raise SourceError([problem], hint="make shards larger, or several jobs of it; nothing was sent")
        self.ids.append(name)
        self.weights.append(array("I", bytes(4 * n_lines)))
        return len(self.ids) - 1

    def _close(self, shard: _Shard, *, last: bool) -> _Shard | None:
        """Close a shard; the one that took lines over from it, if there is one."""
        shard.write()
        del self.open[shard.group]
        rest = None
        keep = self.sizes.cut(shard.n_lines, last=last)
        if keep < shard.n_lines:
            rest = self.begin(shard.group)
            moved = shard.cut(keep)
            rest.take(moved, 0, len(moved.middles))
            self.weights[rest.ordinal].extend(repeat(0, len(moved.middles)))
            self.moves[shard.ordinal] = (keep, rest.ordinal)  # rows that wait for them are told at the end
        self.seal(shard)
        return self._close(rest, last=True) if rest and last else rest

    def seal(self, shard: _Shard) -> None:
        self.sizes.take(shard.n_lines)
        self._closed[shard.ordinal] = self._sealed(shard)
        self.ids[shard.ordinal] = self._closed[shard.ordinal].id

    def _sealed(self, shard: _Shard) -> PlannedShard:
        job, setup, n = self._job, self._setup, shard.n_lines
        requests_blob = setup.blobs.adopt(shard.file.path)
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
            integers(array("i", range(n))),
            pa.Array.from_buffers(pa.binary(IDENTITY_BYTES), n, [None, pa.py_buffer(shard.identities)]),
            integers(shard.expected),
            integers(shard.bounds),
            integers(array("q", [self._job.max_output_tokens]) * n),
        ]
        path = shard.file.path.with_suffix(".parquet")
        pq.write_table(
            pa.Table.from_arrays(columns, schema=MANIFEST), path, compression="zstd", compression_level=1,
            use_dictionary=False, write_statistics=False,
        )  # fmt: skip
        return self._setup.blobs.adopt(path)


class _Lot:
    """New requests of which some may go first, drawn by lot (canary.py).

    Which ones is not known before all are read. Until then the line of one that may go first is a serial number, and its
    shard the first new one, whichever that will be. One that may no longer goes back where it was drawn from; where that
    shard is closed, to the end: one shard with rows from everywhere is landed more easily than many.
    """

    def __init__(self, shards: _Shards, setup: _Setup, folder: Path) -> None:
        self.canary: Canary | None = None
        self._shards, self._setup, self._folder = shards, setup, folder
        self._sample = Sample(setup.room, setup.around_bytes + len(setup.bodies.head) + len(setup.bodies.tail))
        self._drawn: dict[bytes, tuple[int, int]] = {}  # identities in the sample: serial, and the shard open then
        self._early: list[_Fresh] | None = []  # while they are so few that none may go first
        self._aside = _Shard(-1, None, folder / "aside", setup, _BOUNDLESS)  # those that go to the end
        self._aside_serials: list[int] = []
        self._aside_homes: Counter[int] = Counter()  # shards that they were drawn from
        self._ordinal = -1
        self._placed: list[int] = []  # by serial

    def draw(self, fresh: _Fresh) -> list[int]:
        """The places of new requests, or what stands for them."""
        if self._ordinal < 0:
            self._ordinal = self._shards.next_ordinal("", 0)
        if self._early is None:
            return self._draw(fresh, 0)
        n_early = len(self._placed)
        if n_early + len(fresh.middles) <= FEW_ROWS:
            self._early.append(fresh)
            return [self._serial() for _ in fresh.middles]
        columns = zip(*self._early, fresh, strict=True)
        self._early = None
        self._shards.begin(None)
        places = self._draw(_Fresh(*(list(chain(*column)) for column in columns)), n_early)
        for serial, place in enumerate(places[:n_early]):
            if place >> LINE_BITS != self._ordinal:
                self._place(serial, place)
        return places[n_early:]

    def finish(self) -> None:
        """Place all that have a serial."""
        if not self._placed:
            return
        weights, ordinal = self._shards.weights, self._ordinal
        by_serial, weights[ordinal] = weights[ordinal], array("I")
        if self._early is None:
            self._place_canary()
            self._place_aside()
        else:
            serials, self._shards.spare = count(), ordinal
            for fresh in self._early:
                for place in self._shards.append(None, fresh):
                    self._place(next(serials), place)
        for place, weight in zip(self._placed, by_serial, strict=True):
            weights[place >> LINE_BITS][place & _LINE] += weight

    def places(self) -> Iterator[tuple[int, int]]:
        """What stood for a place, ascending, and the place."""
        return zip(count(self._ordinal << LINE_BITS), self._placed)

    def _draw(self, fresh: _Fresh, n_early: int) -> list[int]:
        """As `draw`. The first `n_early` of them have serials already: 0, 1, 2, ..."""
        sample, identities, offered, left = self._sample, fresh.identities, [], []
        for n, identity in enumerate(identities):
            if identity < sample.below:
                offered.append(n)
                left += sample.add(Drawn(identity, fresh.middles[n], fresh.expected[n], fresh.bounds[n]))
        self._put_back([request for request in left if request.identity in self._drawn])  # others were never away
        drawn = [n for n in offered if identities[n] < sample.below]
        places = self._shards.append(None, fresh.without(drawn))
        for n in drawn:
            home = places[n] >> LINE_BITS if n < len(places) else self._shards.open[None].ordinal
            places.insert(n, self._ordinal << LINE_BITS | n if n < n_early else self._serial())
            self._drawn[identities[n]] = (places[n] & _LINE, home)
        return places

    def _put_back(self, left: Sequence[Drawn]) -> None:
        for request in left:
            serial, home = self._drawn.pop(request.identity)
            if home == self._shards.open[None].ordinal:
                self._place(serial, *self._shards.append(None, _fresh([request])))
            else:
                self._aside_serials.append(serial)
                self._aside_homes[home] += 1
                self._aside.take(_fresh([request]), 0, sys.maxsize)
        if self._aside.n_waiting_bytes >= _FRAME_BYTES:
            self._aside.write()

    def _serial(self) -> int:
        """What stands for a place."""
        serial = len(self._placed)
        assert serial <= _LINE
        self._placed.append(-1)
        self._shards.weights[self._ordinal].append(1)
        return self._ordinal << LINE_BITS | serial

    def _place(self, serial: int, place: int) -> None:
        self._placed[serial] = place
        self._shards.weights[place >> LINE_BITS][place & _LINE] = 0  # its rows are counted by the serial

    def _place_canary(self) -> None:
        sample, ordinal, shards = self._sample, self._ordinal, self._shards
        keep = shards.sizes.cut(len(sample.held), last=False)
        left = [sample.drop() for _ in range(len(sample.held) - keep)]
        shard = _Shard(ordinal, None, self._folder / str(ordinal), self._setup)
        shard.take(_fresh(sample.held), 0, keep)
        shard.write()
        shards.weights[ordinal].extend(repeat(0, keep))
        shards.seal(shard)
        self._put_back(left)
        serials, homes = zip(*(self._drawn[request.identity] for request in sample.held), strict=True)
        for line, serial in enumerate(serials):
            self._placed[serial] = ordinal << LINE_BITS | line
        self.canary = Canary(shards.ids[ordinal], homes, tuple(sorted(self._aside_homes.items())))

    def _place_aside(self) -> None:
        self._aside.write()
        serials = iter(self._aside_serials)
        for fresh in self._aside.parts(_ASIDE_LINES):
            for place in self._shards.append(None, fresh):
                self._place(next(serials), place)


# ---------------------------------------------------------------------------------------------------------------- rows


class _Rows:
    """Which line of which shard answers each good row, in source order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._placed = pa.OSFile(str(folder / "placed"), "wb")
        self._writer = pa.ipc.new_stream(self._placed, _PLACED)
        self._keys: list[str] = []
        self._places = array("q")

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._placed.close()

    def add(self, keys: Sequence[str], places: Sequence[int]) -> None:
        self._keys += keys
        self._places.extend(places)
        if len(self._keys) >= _ROW_GROUP:
            self._write()

    def finish(self, shifts: Sequence[tuple[int, int]]) -> Path:
        """The finished file. `shifts`: from which place on, ascending, rows are answered how much further on."""
        self._write()
        self._writer.close()
        self._placed.close()
        begins = integers(array("q", [begin for begin, _ in shifts]))
        further = integers(array("q", [0, *(by for _, by in shifts)]))
        bits, mask = integers(array("q", [LINE_BITS, _LINE]))  # scalars; `pa.scalar` would import pandas
        path = self._folder / "rows.parquet"
        with (
            pa.OSFile(str(self._folder / "placed"), "rb") as file,
            pa.ipc.open_stream(file) as placed,
            pq.ParquetWriter(
                path, _ROWS, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
            ) as writer,
        ):
            for batch in placed:
                places = batch["place"]
                places = pc.add(places, further.take(pc.search_sorted(begins, places, side="right")))
                shards, lines = pc.shift_right(places, bits), pc.bit_wise_and(places, mask)
                columns = [batch["key"], shards.cast(pa.int32()), lines.cast(pa.int32())]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_ROWS))
        return path

    def _write(self) -> None:
        columns = [strings(self._keys), integers(self._places)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_PLACED))
        self._keys, self._places = [], array("q")


def _uint32(weights: array[int]) -> bytes:
    if sys.byteorder == "big":
        weights.byteswap()
    return weights.tobytes()
