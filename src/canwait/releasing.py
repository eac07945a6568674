"""What of a shard is sent when the money left cannot hold all of it: a part now, all of it later, or no more. Pure.

Reserve each shard at its worst case, shrink the last ones, settle (methods.md 1.4). The room a decision rests on was read a
moment before, so it is advice: nothing is granted by it, for only the reservation grants (ledger.begin_submit). Rows keep
their order. The cheapest first would answer more of them for the same money, and leave a sample of short rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from .price import format_usd, worst_micros
from .types import Price

SLIVER = 4  # less than a quarter of a shard is not sent while money is coming back
LAST_MILE = 400  # less than a 400th of a limit is not trickled away (benchmarks/hard_cap.py)

Bounds = Sequence[tuple[int, int]]
"""Of each line: the most input and the most output tokens it can be billed."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of one limit."""

    budget: str
    unit: Literal["micros", "tokens"]
    limit: int
    left: int  # below 0 where more was billed than was reserved
    coming: bool  # shards on their way hold some of it, which may come back

    def needed(self, bounds: Bounds, price: Price) -> int:
        """What requests within these bounds may take of it, at their worst."""
        return worst_micros(bounds, price) if self.unit == "micros" else sum(i + o for i, o in bounds)

    def holds(self, bounds: Bounds, price: Price) -> bool:
        return self.needed(bounds, price) <= self.left

    def __str__(self) -> str:
        left = max(0, self.left)
        if self.unit == "micros":
            return f"${format_usd(left)} of ${format_usd(self.limit)} is left in {self.budget}"
        return f"{left:,} of {self.limit:,} tokens are left in {self.budget}"


@dataclass(frozen=True, slots=True)
class Wait:
    """More of it will fit when what is on its way has ended."""


@dataclass(frozen=True, slots=True)
class Part:
    """So many of the first lines are sent now, the others when there is room for them."""

    n_lines: int


@dataclass(frozen=True, slots=True)
class Stranded:
    """These lines will never fit, for nothing comes back; the others may."""

    lines: Sequence[int]  # ascending
    why: str


def release(
    bounds: Bounds, price: Price, rooms: Sequence[Room], *, taken: Collection[int] | None = None
) -> Wait | Part | Stranded:
    """What becomes of a shard, of at least one line, that was refused as a whole.

    `taken`: how many lines other batches of the account have, where nothing else tells batches apart (MarkClass.UNMARKED);
    the part and the rest then have other numbers, if there are any.
    """
    enough = -(-len(bounds) // SLIVER)
    fixed = [room for room in rooms if not room.coming]
    n = _prefix(bounds, price, rooms)
    if n < enough and n < _prefix(bounds, price, fixed):
        return Wait()
    if n == 0:
        return _stranded(bounds, price, fixed)
    if n < enough:
        for room in fixed:
            if room.left * LAST_MILE < room.limit and not room.holds(bounds[: n + 1], price):
                return Stranded(range(len(bounds)), f"{room}: too little to go on with, row by row")
    return Part(n if taken is None or n == len(bounds) else _untaken(n, len(bounds), taken))


def _prefix(bounds: Bounds, price: Price, rooms: Sequence[Room]) -> int:
    """How many of the first lines fit all of the rooms at once."""
    lengths = range(1, len(bounds) + 1)
    return bisect_right(lengths, 0, key=lambda n: not all(room.holds(bounds[:n], price) for room in rooms))


def _stranded(bounds: Bounds, price: Price, rooms: Sequence[Room]) -> Stranded:
    """The lines that do not fit even alone; the first is one of them."""
    alone = {bound: all(room.holds([bound], price) for room in rooms) for bound in set(bounds)}
    lines = [line for line, bound in enumerate(bounds) if not alone[bound]]
    least = min((bound for bound, fits in alone.items() if not fits), key=lambda bound: worst_micros([bound], price))
    room = next(room for room in rooms if not room.holds([least], price))
    needed = room.needed([least], price)
    words = f"cost ${format_usd(needed)}" if room.unit == "micros" else f"need {needed:,} tokens"
    return Stranded(lines, f"{room}; the cheapest row may {words}")


def _untaken(most: int, n_lines: int, taken: Collection[int]) -> int:
    """The largest part that is told from all other batches, as its rest is; `most` where there is none."""
    free = (n for n in range(most, 0, -1) if n not in taken and n_lines - n not in taken and n_lines != 2 * n)
    return next(free, most)
