"""Which place a request has by its identity, exactly, in 11 to 16 bytes an entry of many; and which keys may stand twice.

Open addressing over 64-bit slots: 24 bits of the identity, then 40 bits of place. Identities are hashes and so spread
evenly. What a slot cannot tell apart the whole identity does, which lies in a scratch file at 16 x place.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from struct import unpack
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

LINE_BITS = 20  # of a place; the bits above are the shard's ordinal
MAX_LINES = 1 << LINE_BITS
MAX_SHARDS = (1 << 40 - LINE_BITS) - 1

_PLACE = (1 << 40) - 1
_SLOTS = 2048  # of each table, at first
_MANY = 250_000  # entries from which memory counts more than moving them
_TABLES = 64  # which grow one after the other, so that little is held twice
_FULL = 0.75
_IDENTITY_BYTES = 16
_RUN_KEYS = 1 << 16  # sorted at a time
_PARTS = 64  # of the range of a hash, looked at one after the other


class Places:
    """Identities (16 bytes, hashes) and their places (below 2^40 - 1). Close it; the file is the caller's to remove."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._tables = [array("Q", bytes(8 * _SLOTS)) for _ in range(_TABLES)]
        self._n = 0

    def close(self) -> None:
        os.close(self._file)
        self._tables.clear()

    def find(self, identities: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """The place of each, -1 where it has none; and which of them have none."""
        tables, size = self._tables, len(self._tables[0])
        found, missing = [-1] * len(identities), []
        for n, head in enumerate(_heads(identities)):
            table = tables[head & 63]
            tag = head >> 8
            at = tag * size >> 24
            while slot := table[at]:
                if slot >> 40 == tag and self._read((slot & _PLACE) - 1) == identities[n]:
                    found[n] = (slot & _PLACE) - 1
                    break
                at -= 1  # below 0 it goes on at the table's end
            else:
                missing.append(n)
        return found, missing

    def add(self, identities: Sequence[bytes], places: list[int]) -> None:
        """Give new identities their places; no two are the same, and none has one."""
        self._write(identities, places)
        self._n += len(identities)
        # One size for all: of n hashes each table gets n / 64 give or take 6 standard deviations; a third is to spare.
        while self._n > _FULL * _TABLES * (size := len(self._tables[0])):
            for number, table in enumerate(self._tables):
                self._tables[number] = _moved(table, size * 3 // 2 if self._n > _MANY else size * 4)
        tables, size = self._tables, len(self._tables[0])
        for head, place in zip(_heads(identities), places, strict=True):
            table = tables[head & 63]
            tag = head >> 8
            at = tag * size >> 24
            while table[at]:
                at -= 1
            table[at] = tag << 40 | place + 1

    def _read(self, place: int) -> bytes:
        return os.pread(self._file, _IDENTITY_BYTES, _IDENTITY_BYTES * place)

    def _write(self, identities: Sequence[bytes], places: list[int]) -> None:
        """Written in runs of places that follow each other, which they nearly always do."""
        start = 0
        while start < len(places):
            first, end = places[start], start + 1
            if places[-1] - first == len(places) - 1 and places == list(range(first, first + len(places))):
                end = len(places)
            while end < len(places) and places[end] == places[end - 1] + 1:
                end += 1
            data, offset = b"".join(identities[start:end]), _IDENTITY_BYTES * first
            while data:
                n = os.pwrite(self._file, data, offset)
                data, offset = data[n:], offset + n
            start = end


def _heads(identities: Sequence[bytes]) -> Sequence[int]:
    """Four bytes of each, as an integer: six bits for the table, the upper 24 for the tag."""
    return unpack("<" + "I12x" * len(identities), b"".join(identities))


def _moved(table: array[int], size: int) -> array[int]:
    """Its entries in a larger one."""
    larger = array("Q", bytes(8 * size))
    for slot in filter(None, table):
        at = (slot >> 40) * size >> 24
        while larger[at]:
            at -= 1
        larger[at] = slot
    return larger


class Keys:
    """Which keys may stand twice: sorted runs of their 64-bit hashes in a scratch file, which the caller removes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._held = array("q")
        self._runs: list[list[int]] = []  # of each run: where in the file its parts begin, and its end

    def close(self) -> None:
        self._file.close()

    def add(self, keys: Sequence[str]) -> None:
        self._held.extend(map(hash, keys))
        if len(self._held) >= _RUN_KEYS:
            self._flush()

    def twice(self) -> frozenset[int]:
        """The hashes (Python's, of this process) that more than one key has: of equal keys, and of nearly no others."""
        self._flush()
        found: set[int] = set()
        for part in range(_PARTS):
            data = [self._read(run[part], run[part + 1]) for run in self._runs]
            values = _sorted(b"".join(data))
            again = values[1:].filter(pc.equal(values[1:], values[:-1]))
            found.update(cast("list[int]", pc.unique(again).to_pylist()))
        return frozenset(found)

    def _flush(self) -> None:
        values = memoryview(_sorted(self._held).buffers()[1] or b"").cast("q")
        step, start = (1 << 64) // _PARTS, self._file.tell()
        parts = [bisect_left(values, step * part - (1 << 63)) for part in range(_PARTS)]
        self._runs.append([start + 8 * at for at in (*parts, len(values))])
        self._file.write(values)
        self._held = array("q")

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)


def _sorted(values: Any) -> pa.Array[Any]:
    """64-bit integers of a buffer, ascending."""
    data = pa.py_buffer(values)
    column: pa.Array[Any] = pa.Array.from_buffers(pa.int64(), data.size // 8, [None, data])
    return column.take(pc.array_sort_indices(column))
