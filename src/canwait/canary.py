"""Which requests of a plan go first: a simple random sample, drawn in one pass and without a seed. Pure.

A request's identity is a digest (plan.identity_of), so that the requests of smallest identity are as good as drawn by lot,
and ascending is a random order. The same requests give the same sample, in whatever order and how often they come.
"""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

from .plan import Room
from .types import Endpoint, Job

CANARY_ROWS = 200  # methods.md 1.2
FEW_ROWS = 5 * CANARY_ROWS  # of no more no sample is drawn: it would be much of what it is to tell about

_LAST = b"\xff" * 17  # behind every identity


def has_canary(job: Job) -> bool:
    """Whether one is drawn where there are enough rows: not of rows that are kept together, nor of embeddings, whose
    cost is known and of whose answers nothing can be said."""
    return job.shard.by is None and job.endpoint is not Endpoint.EMBEDDINGS


class Drawn(NamedTuple):
    """A request in the sample."""

    identity: bytes
    middle: bytes  # of its body, see bodies.py
    expected: int  # input tokens
    bound: int


class Sample:
    """Of all requests offered those of smallest identity: as many as fit a shard, and at most CANARY_ROWS."""

    def __init__(self, room: Room, around_bytes: int) -> None:
        """`around_bytes`: what stands around a middle on the wire."""
        self.held: list[Drawn] = []  # ascending
        self.below = _LAST  # whoever is not, is not in the sample and never will be
        self._room, self._around_bytes = room, around_bytes
        self._most = min(CANARY_ROWS, room.max_lines)
        self._n_bytes = self._n_tokens = 0

    def add(self, request: Drawn) -> list[Drawn]:
        """Take in a request that is `below`; who leaves for it, which may be itself."""
        insort(self.held, request)
        self._n_bytes += len(request.middle) + self._around_bytes
        self._n_tokens += request.bound
        left = []
        while len(self.held) > 1 and self._is_too_much():
            left.append(self.drop())
        return left

    def drop(self) -> Drawn:
        """The last one leaves."""
        last = self.held.pop()
        self.below = last.identity
        self._n_bytes -= len(last.middle) + self._around_bytes
        self._n_tokens -= last.bound
        return last

    def _is_too_much(self) -> bool:
        room = self._room
        tokens_fit = room.max_tokens is None or self._n_tokens <= room.max_tokens
        return len(self.held) > self._most or self._n_bytes > room.max_bytes or not tokens_fit
