"""Requests that are paid or on their way, found by identity: an index over the manifests of every planned shard.

The index is a cache. It holds nothing that the manifests do not, and what is missing or damaged of it is made again. It
lies beside the blobs as sorted runs, which are memory-mapped, so a lookup costs no memory for what it does not touch; each
plan adds a run of the shards that are new to it, and runs of like size are merged, so there are few.

A run is one file, in the byte order of the machine that wrote it:
    magic, length and CRC-32 of the header · the header, JSON: [[manifest blob, lines], ...] · zeros up to a multiple of 64
    prefix uint64 a line: the first half of its identity, ascending
    rest   uint64 a line: the second half
    place  uint64 a line: the manifest's position in the header << 32 | line
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import tempfile
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .durable import sync_folder, writing
from .errors import BlobError

Place = tuple[str, int]  # shard, line
Columns: TypeAlias = "list[pa.Array[Any]]"  # prefix, rest, place

_MAGIC = 0x63616E77_61697431  # "canwait1"; bytes the other way round are another machine's
_HEAD = struct.Struct("=QII")
_ALIGN = 64
_LINE = 0xFFFFFFFF
_NOWHERE = 1 << 64  # behind every place
_SORTED_ROWS = 1 << 20  # sorted at a time: what building holds, at some 60 bytes each


class Known:
    """Which line of which shard answers a request that need not be paid again."""

    def __init__(
        self, shards: Iterable[tuple[str, Path, Callable[[int], bool]]] = (), folder: Path | None = None
    ) -> None:
        """`shards`: id and manifest blob of every root shard, and which of its lines may be reused; the first one counts.

        `folder` keeps the index for the next plan; without it the index is made in memory. Raises BlobError when the
        folder cannot be written.
        """
        given = list(shards)
        self._shards = [shard for shard, _, _ in given]
        self._may_reuse = [may_reuse for _, _, may_reuse in given]
        manifests = {manifest.name: manifest for _, manifest, _ in given}
        if folder is not None and given:
            self._runs = _opened(folder, manifests)
        else:
            self._runs = [_Run(*fresh) for fresh in _sorted(manifests.values())]
        owners: dict[str, list[int]] = {}
        for order, (_, manifest, _) in enumerate(given):
            owners.setdefault(manifest.name, []).append(order)
        self._owners = [[owners.get(name, []) for name in run.manifests] for run in self._runs]
        n_lines = {name: n for run in self._runs for name, n in run.manifests.items()}
        self.n_lines: Mapping[str, int] = {shard: n_lines.get(manifest.name, 0) for shard, manifest, _ in given}

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self._runs)

    def find(self, identities: Sequence[bytes]) -> list[Place | None]:
        """Shard and line of each: of the first shard that has a line of this identity which may be reused.

        Some hundreds at a time are found much faster than one by one.
        """
        if not (identities and self._runs):
            return [None] * len(identities)
        halves = memoryview(b"".join(identities)).cast("Q")
        prefix, rest = (_uint64(halves[half::2].tobytes()) for half in (0, 1))
        order = pc.sort_indices(prefix)  # neighbours lie on the same pages
        wanted = order, prefix.take(order), rest.take(order)
        best = [_NOWHERE] * len(identities)  # the shard's order << 32 | line
        may_reuse = self._may_reuse
        for run, owners in zip(self._runs, self._owners, strict=True):
            for which, places in run.matches(*wanted):
                for i, place in zip(which, places, strict=True):
                    line = place & _LINE
                    for shard in owners[place >> 32]:
                        found = shard << 32 | line
                        if found < best[i] and may_reuse[shard](line):
                            best[i] = found
        return [None if at == _NOWHERE else (self._shards[at >> 32], at & _LINE) for at in best]


class _Run:
    """Lines of some manifests, sorted by the first half of their identity."""

    def __init__(self, manifests: Mapping[str, int], columns: Columns, path: Path | None = None) -> None:
        self.manifests, self.columns, self.path = manifests, columns, path
        self.n = len(columns[0])

    def matches(
        self, order: pa.Array[Any], prefix: pa.Array[Any], rest: pa.Array[Any]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Which of these identities, by `order`, are those of lines here, and the lines' places."""
        prefixes, rests, places = self.columns
        end = pa.scalar(self.n, pa.uint64())
        at = cast("Any", pc).search_sorted(prefixes, prefix)  # newer than pyarrow's stubs
        while True:  # prefixes may collide: as long as the next line has the prefix, too
            here = pc.equal(prefixes.take(pc.min_element_wise(at, pa.scalar(self.n - 1, pa.uint64()))), prefix)
            here = pc.and_(here, pc.less(at, end))
            if not here.true_count:
                return
            order, prefix, rest, at = (column.filter(here) for column in (order, prefix, rest, at))
            same = pc.equal(rests.take(at), rest)
            yield _ints(order.filter(same)), _ints(places.take(at.filter(same)))
            at = pc.add(at, pa.scalar(1, pa.uint64()))

    def part(self, low: int, high: int) -> Columns:
        """The columns of the lines with low <= prefix < high."""
        prefix = _bytes(self.columns[0]).cast("Q")
        first, last = bisect_left(prefix, low), bisect_left(prefix, high)
        return [column.slice(first, last - first) for column in self.columns]


# -------------------------------------------------------------------------------------------------------- what is kept


def _opened(folder: Path, manifests: Mapping[str, Path]) -> list[_Run]:
    """Runs that hold every line of these manifests once, kept in a folder. One process at a time looks after it."""
    with _locked(folder):
        runs = _kept(folder)
        held = {name for run in runs for name in run.manifests}
        missing = [path for name, path in manifests.items() if name not in held]
        runs += [_written(folder, lines, [columns]) for lines, columns in _sorted(missing)]
        runs.sort(key=lambda run: run.n)
        small = 1  # how many runs become one: until the next is more than twice as long as all before it
        for before, run in zip(accumulate(run.n for run in runs), runs[1:], strict=False):
            if run.n > 2 * before:
                break
            small += 1
        if missing and small > 1:
            merged = _merged(folder, runs[:small])
            for run in runs[:small]:
                cast("Path", run.path).unlink()
            runs[:small] = [merged]
    return runs


def _kept(folder: Path) -> list[_Run]:
    """The runs in a folder, none of which holds a manifest that another one does; what else lies there is removed."""
    found: list[_Run] = []
    for path in folder.iterdir():
        if path.suffix == ".run" and (run := _read(path)):
            found.append(run)
        elif path.suffix in (".run", ".part"):
            path.unlink()  # damaged, or left by a process that was killed
    runs: list[_Run] = []
    held: set[str] = set()
    for run in sorted(found, key=lambda run: run.n, reverse=True):
        if held.isdisjoint(run.manifests):
            runs.append(run)
            held |= run.manifests.keys()
        else:
            cast("Path", run.path).unlink()  # it became part of a larger one
    return runs


def _read(path: Path) -> _Run | None:
    """A kept run, memory-mapped; None when it is damaged or another machine's."""
    size = path.stat().st_size
    if size < _HEAD.size:
        return None
    whole = pa.memory_map(str(path)).read_buffer()
    view = memoryview(whole)
    magic, length, crc = _HEAD.unpack(view[: _HEAD.size])
    header = bytes(view[_HEAD.size : _HEAD.size + length])
    if magic != _MAGIC or zlib.crc32(header) != crc:
        return None
    manifests = dict(json.loads(header))
    n, start = sum(manifests.values()), _aligned(_HEAD.size + length)
    if not n or size != start + 24 * n:
        return None
    return _Run(manifests, [_uint64(whole.slice(start + 8 * n * c, 8 * n)) for c in range(3)], path)


def _merged(folder: Path, runs: Sequence[_Run]) -> _Run:
    """The lines of these runs as one, kept."""
    n = sum(run.n for run in runs)
    bases = [0, *accumulate(len(run.manifests) for run in runs)]

    def parts() -> Iterator[Columns]:
        n_parts = -(-n // _SORTED_ROWS)
        for k in range(n_parts):  # digests are uniform, so equal parts of their range hold equal shares of the lines
            pieces = [run.part((k << 64) // n_parts, (k + 1 << 64) // n_parts) for run in runs]
            for piece, base in zip(pieces, bases, strict=False):
                piece[2] = pc.add(piece[2], pa.scalar(base << 32, pa.uint64()))
            yield _by_prefix([pa.concat_arrays(column) for column in zip(*pieces, strict=True)])

    return _written(folder, {name: lines for run in runs for name, lines in run.manifests.items()}, parts())


def _written(folder: Path, manifests: Mapping[str, int], parts: Iterable[Columns]) -> _Run:
    """A run of these columns, in ascending parts. Its file is there as a whole or not at all."""
    n, header = sum(manifests.values()), json.dumps(list(manifests.items())).encode()
    start, done = _aligned(_HEAD.size + len(header)), 0
    handle, draft = tempfile.mkstemp(dir=folder, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(_HEAD.pack(_MAGIC, len(header), zlib.crc32(header)) + header)
        for columns in parts:
            for c, column in enumerate(columns):
                file.seek(start + 8 * (n * c + done))
                file.write(_bytes(column))
            done += len(columns[0])
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"{sha256(header).hexdigest()[:32]}.run"
    os.replace(draft, path)
    sync_folder(folder)
    run = _read(path)
    assert run is not None
    return run


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with writing(folder, "plan again; nothing was sent"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


# ------------------------------------------------------------------------------------------------------------- sorting


def _sorted(manifests: Iterable[Path]) -> Iterator[tuple[dict[str, int], Columns]]:
    """Whole manifests, some _SORTED_ROWS lines at a time: their lines, and the columns of a run."""
    counts: dict[str, int] = {}
    identities, places = bytearray(), array("Q")
    for manifest in manifests:
        lines = _identities(manifest)
        n, first = len(lines) // 16, len(counts) << 32
        counts[manifest.name] = n
        identities += lines
        places.extend(range(first, first + n))
        if len(places) >= _SORTED_ROWS:
            yield counts, _columns(identities, places)
            counts, identities, places = {}, bytearray(), array("Q")
    if places:
        yield counts, _columns(identities, places)


def _identities(manifest: Path) -> bytes:
    """16 bytes a line. Raises BlobError for a manifest that cannot be read."""
    try:
        with pq.ParquetFile(manifest, pre_buffer=False) as file:
            column = file.read(["identity"])["identity"]
        pieces = [(c.buffers()[1], c.offset, len(c)) for c in column.chunks]
        return b"".join(memoryview(cast("Any", b)).cast("B")[16 * at : 16 * (at + n)] for b, at, n in pieces)
    except (pa.ArrowException, OSError, KeyError) as error:
        what = f"manifest {manifest.name} cannot be read: {' '.join(str(error).split())}"
        raise BlobError(what, hint="restore it from a backup of the blobs") from error


def _columns(identities: bytearray, places: array[int]) -> Columns:
    halves = memoryview(identities).cast("Q")
    return _by_prefix([_uint64(b) for b in (halves[::2].tobytes(), halves[1::2].tobytes(), places.tobytes())])


def _by_prefix(columns: Columns) -> Columns:
    order = pc.sort_indices(columns[0])
    return [column.take(order) for column in columns]


def _uint64(values: bytes | pa.Buffer) -> pa.Array[Any]:
    return pa.Array.from_buffers(pa.uint64(), len(values) // 8, [None, pa.py_buffer(values)])


def _ints(column: pa.Array[Any]) -> list[int]:
    return cast("list[int]", column.to_pylist())


def _bytes(column: pa.Array[Any]) -> memoryview:
    """Of a column that starts where its buffer does."""
    return memoryview(cast("Any", column.buffers()[1])).cast("B")[: 8 * len(column)]
