"""What is kept of a stream too long to keep: bounded, seeded, and uniform where it is a sample.

Values are sampled by a reservoir; sessions, callers and requests by their hash, so that whatever is kept of one of them
is kept completely.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from random import Random
from zlib import crc32

from .facts import EMPTY, Sample

VALUES = 512  # of a reservoir
DISTINCT = 2000  # counted exactly
SESSIONS = 512  # followed at once
ACTORS = 16  # followed at once
CHUNK = 128  # calls of one actor whose overlaps are counted together
REQUESTS = 8192  # compared exactly
TEXTS, TEXT_BYTES = 64, 8192  # texts of a site, and how much of each is kept
ALL_TEXT_BYTES = 48 << 20  # of all sites together; beyond it every text is kept shorter

_IDLE_US = 6 * 3_600_000_000  # a session that is silent for longer is over


def name_hash(name: str) -> int:
    """32 bits, the same in every run; surrogates and all."""
    return crc32(name.encode("utf-8", "surrogatepass"))


class Seen:
    """Which numbers were met before: exact for some millions, then only the latest; 32 MB however many there are."""

    FEW, WAYS, BUCKETS = 50_000, 8, 1 << 19

    def __init__(self) -> None:
        self.n_forgotten = 0
        self._few: set[int] = set()
        self._table = array("q")  # BUCKETS of WAYS numbers, the latest first; 0 is an empty place

    def again(self, number: int) -> bool:
        number = number or 1
        if self._table:
            return self._is_in_table(number)
        if number in self._few:
            return True
        self._few.add(number)
        if len(self._few) > self.FEW:
            self._table = array("q", bytes(8 * self.WAYS * self.BUCKETS))
            for known in self._few:
                self._is_in_table(known)
            self._few.clear()
        return False

    def _is_in_table(self, number: int) -> bool:
        start = (number & (self.BUCKETS - 1)) * self.WAYS
        bucket = self._table[start : start + self.WAYS]
        if number in bucket:
            return True
        if bucket.pop():
            self.n_forgotten += 1
        bucket.insert(0, number)
        self._table[start : start + self.WAYS] = bucket
        return False


class Distinct:
    """How many different numbers there were: exact up to DISTINCT, then at least that."""

    __slots__ = ("numbers",)

    def __init__(self) -> None:
        self.numbers: set[int] = set()

    def add(self, number: int) -> None:
        if len(self.numbers) < DISTINCT:
            self.numbers.add(number)


class Reservoir:
    """A uniform sample of values (Li's algorithm L, which draws only when it takes one)."""

    __slots__ = ("_next", "_random", "_weight", "n", "values")

    def __init__(self, random: Random) -> None:
        self.n = 0
        self.values = array("d")
        self._random = random
        self._next = 0  # the count at which a value is taken; 0 while there is room
        self._weight = 1.0

    def add(self, value: float) -> None:
        n = self.n = self.n + 1
        if n < self._next:
            return
        if self._next:
            self.values[self._random.randrange(VALUES)] = value
        else:
            self.values.append(value)
            if n < VALUES:
                return
        self._weight *= math.exp(math.log(1 - self._random.random()) / VALUES)
        self._next = n + 1 + int(math.log(1 - self._random.random()) / math.log1p(-self._weight))

    def sample(self) -> Sample:
        return Sample(self.n, tuple(sorted(self.values))) if self.n else EMPTY


class Sessions:
    """The rhythm of conversations: how many calls each has, and the time from an answer to the next call."""

    __slots__ = ("_followed", "_mask", "distinct", "gap_s", "turns")

    def __init__(self, random: Random) -> None:
        self.distinct = Distinct()
        self.turns, self.gap_s = Reservoir(random), Reservoir(random)
        self._followed: dict[int, list[int]] = {}  # -> [last start or answer, last answer or -1, calls]
        self._mask = 0  # those are followed whose hash has none of these bits

    def add(self, session: int, start_us: int, end_us: int | None) -> None:
        self.distinct.add(session)
        if session & self._mask:
            return
        last = self._followed.get(session)
        if last is not None and start_us - last[0] > _IDLE_US:
            self.turns.add(last[2])
            del self._followed[session]
            last = None
        end = start_us if end_us is None else end_us
        if last is None:
            if len(self._followed) >= SESSIONS:
                self._make_room(start_us)
                if session & self._mask:
                    return
            self._followed[session] = [end, -1 if end_us is None else end_us, 1]
            return
        if 0 <= last[1] <= start_us:
            self.gap_s.add((start_us - last[1]) / 1e6)
        last[0] = max(last[0], end)
        last[1] = -1 if end_us is None else max(last[1], end_us)
        last[2] += 1

    def all_turns(self) -> Sample:
        """Also of the sessions that may not be over."""
        open_now = [float(last[2]) for last in self._followed.values()]
        known = self.turns.sample()
        return Sample(known.n_seen + len(open_now), tuple(sorted((*known.values, *open_now)))) if open_now else known

    def _make_room(self, now_us: int) -> None:
        for session in [s for s, last in self._followed.items() if now_us - last[0] > _IDLE_US]:
            self.turns.add(self._followed.pop(session)[2])
        while len(self._followed) > SESSIONS // 2:
            self._mask = self._mask * 2 + 1
            self._followed = {s: last for s, last in self._followed.items() if not s & self._mask}


class InFlight:
    """How many calls of one actor are under way in the middle of each of them, itself included.

    Not as each starts: calls that are sent together would see fewer than there are. Logs are often in the order in
    which calls end, so a chunk is sorted before it is counted; its first and last quarter are there to overlap with.
    """

    __slots__ = ("_followed", "_mask", "at_once")

    def __init__(self, random: Random) -> None:
        self.at_once = Reservoir(random)
        self._followed: dict[int, list[tuple[int, int]]] = {}
        self._mask = 0

    def add(self, actor: int, start_us: int, end_us: int) -> None:
        if actor & self._mask:
            return
        calls = self._followed.get(actor)
        if calls is None:
            calls = self._followed[actor] = []
            while len(self._followed) > ACTORS and self._mask < 0xFFFF_FFFF:
                self._mask = self._mask * 2 + 1
                self._followed = {a: c for a, c in self._followed.items() if not a & self._mask}
        calls.append((start_us, end_us))
        if len(calls) == CHUNK:
            calls.sort()
            for n in _overlaps(calls)[CHUNK // 4 : -CHUNK // 4]:
                self.at_once.add(n)
            del calls[: CHUNK // 2]

    def sample(self) -> Sample:
        """Also of chunks that are not full: all of a short log."""
        known = self.at_once.sample()
        rest = [float(n) for calls in self._followed.values() for n in _overlaps(calls)]
        if not rest or known.n_seen >= VALUES:
            return known
        return Sample(known.n_seen + len(rest), tuple(sorted((*known.values, *rest))))


def _overlaps(calls: Sequence[tuple[int, int]]) -> list[int]:
    """For each call, how many are under way in its middle."""
    starts, ends = sorted(start for start, _ in calls), sorted(end for _, end in calls)
    middles = ((start + end) // 2 for start, end in calls)
    return [bisect_right(starts, at) - bisect_right(ends, at - 1) for at in middles]


class Equals:
    """Requests that were sent before: exact up to REQUESTS different ones, then of a share of all hashes."""

    __slots__ = ("_failed", "_mask", "n", "n_again", "n_retries", "usage")

    def __init__(self) -> None:
        self.n = self.n_again = self.n_retries = 0
        self.usage = [0, 0, 0, 0]  # of those sent again though the last time had not failed
        self._failed: dict[int, bool] = {}  # -> whether its last call failed
        self._mask = 0

    def add(self, request: bytes, failed: bool, usage: tuple[int, int, int, int]) -> None:
        self.n += 1
        key = int.from_bytes(request[:8], "little")
        if key & self._mask:
            return
        before = self._failed.get(key)
        self._failed[key] = failed
        if before is None:
            if len(self._failed) > REQUESTS:
                self._thin_out()
            return
        weight = self._mask + 1
        self.n_again += weight
        if before:
            self.n_retries += weight
            return
        for i, n in enumerate(usage):
            self.usage[i] += n * weight

    @property
    def exact(self) -> bool:
        return self._mask == 0

    def _thin_out(self) -> None:
        while len(self._failed) > REQUESTS // 2:
            self._mask = self._mask * 2 + 1
            self._failed = {key: failed for key, failed in self._failed.items() if not key & self._mask}


class Room:
    """How much of a text is kept, and how much of all texts is."""

    def __init__(self) -> None:
        self.each = TEXT_BYTES
        self.n_bytes = 0


class Texts:
    """A uniform sample of texts, each cut to the room there is."""

    __slots__ = ("_random", "_room", "kept", "lengths", "n")

    def __init__(self, random: Random, room: Room) -> None:
        self.n = 0
        self.kept: list[bytes] = []
        self.lengths: list[int] = []  # of the whole texts, in bytes
        self._random = random
        self._room = room

    def add(self, text: str) -> None:
        self.n += 1
        if len(self.kept) < TEXTS:
            place = len(self.kept)
            self.kept.append(b"")
            self.lengths.append(0)
        else:
            place = int(self._random.random() * self.n)
            if place >= TEXTS:
                return
        whole = text.encode("utf-8", "surrogatepass")
        self._room.n_bytes -= len(self.kept[place])
        self.kept[place] = whole[: self._room.each]
        self._room.n_bytes += len(self.kept[place])
        self.lengths[place] = len(whole)

    def shorten(self) -> None:
        self.kept = [text[: self._room.each] for text in self.kept]
        self._room.n_bytes += sum(map(len, self.kept))
