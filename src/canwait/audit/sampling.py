"""What is kept of a stream too long to keep: bounded, seeded, and uniform where it is a sample.

Values are sampled by a reservoir; sessions, callers and requests by their hash, so that whatever is kept of one of them
is kept completely. A site alone keeps much of each; all sites together share a room for each kind of thing, and when that is
full every site keeps half as much of it.
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
SLOTS = 4096  # busy ones that are told apart; beyond it slots become wider
TEXTS, TEXT_BYTES = 64, 8192  # texts of a site, and how much of each is kept
ALL_TEXT_BYTES = 48 << 20  # of all sites together

_IDLE_US = 6 * 3_600_000_000  # a session that is silent for longer is over
_ALL_BITS = 0xFFFF_FFFF  # of a hash


def name_hash(name: str) -> int:
    """32 bits, the same in every run; surrogates and all."""
    return crc32(name.encode("utf-8", "surrogatepass"))


class Room:
    """How much of one kind all sites together keep, and how much each of them may."""

    __slots__ = ("each", "most", "taken")

    def __init__(self, each: int, most: int) -> None:
        self.each, self.most, self.taken = each, most, 0


class Rooms:
    """One for each kind of thing that is kept: 250 MB when all of them are full."""

    def __init__(self) -> None:
        self.values = Room(VALUES, 8_000_000)  # 8 bytes each, in all reservoirs
        self.distinct = Room(DISTINCT, 300_000)  # 100 bytes
        self.sessions = Room(SESSIONS, 120_000)  # 250 bytes
        self.actors = Room(ACTORS, 8_000)  # up to 16 bytes for each of CHUNK calls
        self.requests = Room(REQUESTS, 300_000)  # 110 bytes
        self.slots = Room(SLOTS, 2_000_000)  # 16 bytes
        self.text_bytes = Room(TEXT_BYTES, ALL_TEXT_BYTES)

    def crowded(self) -> bool:
        """Whether one was full, and each site now has to keep half as much of its kind."""
        full = [room for room in vars(self).values() if room.taken > room.most and room.each > 1]
        for room in full:
            room.each //= 2
        return bool(full)


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
    """How many different numbers there were: exact as far as there is room, then at least that."""

    __slots__ = ("_least", "_numbers", "_room")

    def __init__(self, room: Room) -> None:
        self._numbers: set[int] = set()
        self._least = 0
        self._room = room

    @property
    def n(self) -> int:
        return max(self._least, len(self._numbers))

    def add(self, number: int) -> None:
        if number not in self._numbers and len(self._numbers) < self._room.each:
            self._numbers.add(number)
            self._room.taken += 1

    def shrink(self) -> None:
        if (gone := len(self._numbers) - self._room.each) > 0:
            self._least = self.n
            self._numbers = set(sorted(self._numbers)[gone:])
            self._room.taken -= gone


class Reservoir:
    """A uniform sample of values (Li's algorithm L, which draws only when it takes one)."""

    __slots__ = ("_next", "_random", "_room", "_weight", "n", "values")

    def __init__(self, random: Random, room: Room) -> None:
        self.n = 0
        self.values = array("d")
        self._random, self._room = random, room
        self._next = 0  # the count at which a value is taken; 0 while there is room
        self._weight = 1.0  # the largest of the random keys that the values were kept by

    def add(self, value: float) -> None:
        n = self.n = self.n + 1
        if n < self._next:
            return
        if self._next:
            self.values[self._random.randrange(len(self.values))] = value
        else:
            self.values.append(value)
            self._room.taken += 1
            if n < self._room.each:
                return
        self._weight *= math.exp(math.log(1 - self._random.random()) / len(self.values))
        self._skip()

    def shrink(self) -> None:
        """A part of a uniform sample is one: the values with the smallest keys, whose largest key follows a beta law."""
        n, most, is_full = len(self.values), self._room.each, self._next > 0
        if n > most or (n == most and not is_full):
            self._weight *= self._random.betavariate(most, n - most + (not is_full))
            self.values = array("d", self._random.sample(self.values, most))
            self._room.taken -= n - most
            self._skip()

    def sample(self) -> Sample:
        return Sample(self.n, array("d", sorted(self.values))) if self.n else EMPTY

    def _skip(self) -> None:
        self._next = self.n + 1 + int(math.log(1 - self._random.random()) / math.log1p(-self._weight))


class Sessions:
    """The rhythm of conversations: how many calls each has, and the time from an answer to the next call."""

    __slots__ = ("_followed", "_mask", "_room", "distinct", "gap_s", "turns")

    def __init__(self, random: Random, rooms: Rooms) -> None:
        self.distinct = Distinct(rooms.distinct)
        self.turns, self.gap_s = Reservoir(random, rooms.values), Reservoir(random, rooms.values)
        self._room = rooms.sessions
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
            self._room.taken -= 1
            last = None
        end = start_us if end_us is None else end_us
        if last is None:
            if len(self._followed) >= self._room.each:
                self._make_room(start_us)
                if session & self._mask:
                    return
            self._followed[session] = [end, -1 if end_us is None else end_us, 1]
            self._room.taken += 1
            return
        if 0 <= last[1] <= start_us:
            self.gap_s.add((start_us - last[1]) / 1e6)
        last[0] = max(last[0], end)
        last[1] = -1 if end_us is None else max(last[1], end_us)
        last[2] += 1

    def all_turns(self) -> Sample:
        """Also of the sessions that may not be over."""
        return _with(self.turns.sample(), [float(last[2]) for last in self._followed.values()])

    def shrink(self) -> None:
        for part in (self.distinct, self.turns, self.gap_s):
            part.shrink()
        self._follow(self._room.each)

    def _make_room(self, now_us: int) -> None:
        for session in [s for s, last in self._followed.items() if now_us - last[0] > _IDLE_US]:
            self.turns.add(self._followed.pop(session)[2])
            self._room.taken -= 1
        self._follow(self._room.each // 2)

    def _follow(self, most: int) -> None:
        before = len(self._followed)
        while len(self._followed) > most and self._mask < _ALL_BITS:
            self._mask = self._mask * 2 + 1
            self._followed = {s: last for s, last in self._followed.items() if not s & self._mask}
        self._room.taken -= before - len(self._followed)


class InFlight:
    """How many calls of one actor are under way in the middle of each of them, itself included.

    Not as each starts: calls that are sent together would see fewer than there are. Logs are often in the order in
    which calls end, so a chunk is sorted before it is counted; its first and last quarter are there to overlap with.
    """

    __slots__ = ("_followed", "_mask", "_room", "at_once")

    def __init__(self, random: Random, rooms: Rooms) -> None:
        self.at_once = Reservoir(random, rooms.values)
        self._room = rooms.actors
        self._followed: dict[int, array[int]] = {}  # -> start, end, start, end ...
        self._mask = 0

    def add(self, actor: int, start_us: int, end_us: int) -> None:
        if actor & self._mask:
            return
        calls = self._followed.get(actor)
        if calls is None:
            calls = self._followed[actor] = array("q")
            self._room.taken += 1
            if len(self._followed) > self._room.each:
                self._follow()
        calls.append(start_us)
        calls.append(end_us)
        if len(calls) == 2 * CHUNK:
            pairs = sorted(_pairs(calls))
            for n in _overlaps(pairs)[CHUNK // 4 : -CHUNK // 4]:
                self.at_once.add(n)
            calls[:] = array("q", [time for pair in pairs[CHUNK // 2 :] for time in pair])

    def sample(self) -> Sample:
        """Also of chunks that are not full: all of a short log."""
        known = self.at_once.sample()
        if known.n_seen >= VALUES:
            return known
        return _with(known, [float(n) for calls in self._followed.values() for n in _overlaps(_pairs(calls))])

    def shrink(self) -> None:
        self.at_once.shrink()
        self._follow()

    def _follow(self) -> None:
        before = len(self._followed)
        while len(self._followed) > self._room.each and self._mask < _ALL_BITS:
            self._mask = self._mask * 2 + 1
            self._followed = {a: c for a, c in self._followed.items() if not a & self._mask}
        self._room.taken -= before - len(self._followed)


def _pairs(times: array[int]) -> list[tuple[int, int]]:
    return list(zip(times[::2], times[1::2], strict=True))


def _overlaps(calls: Sequence[tuple[int, int]]) -> list[int]:
    """For each call, how many are under way in its middle."""
    starts, ends = sorted(start for start, _ in calls), sorted(end for _, end in calls)
    middles = ((start + end) // 2 for start, end in calls)
    return [bisect_right(starts, at) - bisect_right(ends, at - 1) for at in middles]


def _with(known: Sample, more: Sequence[float]) -> Sample:
    """A sample and all of what was not in its stream yet."""
    return Sample(known.n_seen + len(more), array("d", sorted((*known.values, *more)))) if more else known


class Equals:
    """Requests that were sent before: exact as far as there is room for different ones, then of a share of all hashes."""

    __slots__ = ("_failed", "_mask", "_room", "n", "n_again", "n_retries", "usage")

    def __init__(self, room: Room) -> None:
        self._room = room
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
            self._room.taken += 1
            if len(self._failed) > self._room.each:
                self.shrink(self._room.each // 2)
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

    def shrink(self, most: int | None = None) -> None:
        n, most = len(self._failed), self._room.each if most is None else most
        while len(self._failed) > most and self._mask < _ALL_BITS:
            self._mask = self._mask * 2 + 1
            self._failed = {key: failed for key, failed in self._failed.items() if not key & self._mask}
        self._room.taken -= n - len(self._failed)


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
        self._room.taken -= len(self.kept[place])
        self.kept[place] = whole[: self._room.each]
        self._room.taken += len(self.kept[place])
        self.lengths[place] = len(whole)

    def shrink(self) -> None:
        self._room.taken -= sum(map(len, self.kept))
        self.kept = [text[: self._room.each] for text in self.kept]
        self._room.taken += sum(map(len, self.kept))
