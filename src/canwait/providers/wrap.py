"""Providers around a provider: one that asks again, one that fails on purpose. A `submit` is never repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from ..errors import Ambiguous, Busy, Unreachable
from ..types import Batch, ShardFile
from . import Guard, Provider

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0  # a longer wait is the engine's: it holds a timer, not a process


class Retrying:
    """Asks again when a reading verb or a cancel fails in passing, `attempts` times in all; a `submit` passes through.

    Waits a random part of 0.5, 1, 2, ... seconds, or as long as the provider asks if that is at most LONGEST_WAIT_S.
    """

    def __init__(
        self, provider: Provider, sleep: Callable[[float], None], random: Random, *, attempts: int = 3
    ) -> None:
        self.name, self.account, self.mark = provider.name, provider.account, provider.mark
        self.limits, self.encode, self.decode = provider.limits, provider.encode, provider.decode
        self.plain = provider.plain
        self.submit = provider.submit
        self._provider, self._sleep, self._random, self._attempts = provider, sleep, random, attempts

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        return self._again(lambda: self._provider.find(shard))

    def poll(self, batch_id: str) -> Batch:
        return self._again(lambda: self._provider.poll(batch_id))

    def results(self, batch: Batch) -> Iterator[bytes]:
        """Asks again only before the first piece: what was handed on cannot be taken back."""
        pieces, first = self._again(lambda: _begun(self._provider.results(batch)))
        yield from first
        yield from pieces

    def cancel(self, batch_id: str) -> None:
        self._again(lambda: self._provider.cancel(batch_id))

    def _again(self, ask: Callable[[], T]) -> T:
        for attempt in range(1, self._attempts):
            try:
                return ask()
            except (Busy, Unreachable, Ambiguous) as exc:
                asked = exc.retry_after_s if isinstance(exc, Busy) else None
                if asked is not None and asked > LONGEST_WAIT_S:
                    raise
                backoff = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
                self._sleep(asked if asked is not None else self._random.uniform(0, backoff))
        return ask()


def _begun(pieces: Iterator[bytes]) -> tuple[Iterator[bytes], list[bytes]]:
    """The stream and its first piece, if it has one, so that a stream that cannot begin fails here."""
    return pieces, [piece for piece in [next(pieces, b"")] if piece]


@dataclass(frozen=True, slots=True)
class Fault:
    """An error in one call: before the provider hears of it, or after it has done what was asked."""

    error: Callable[[], Exception]
    after: bool = False


LOST_REPLY = Fault(lambda: Ambiguous("the reply was lost"), after=True)
UNREACHABLE = Fault(lambda: Unreachable("connection refused"))


class Faulty:
    """Fails as scripted: the n-th call of a verb meets the n-th fault of its list; None, and past its end, no fault."""

    def __init__(self, provider: Provider, script: Mapping[str, Iterable[Fault | None]]) -> None:
        self.name, self.account, self.mark = provider.name, provider.account, provider.mark
        self.limits, self.encode, self.decode = provider.limits, provider.encode, provider.decode
        self.plain = provider.plain
        self._provider = provider
        self._script = {verb: iter(faults) for verb, faults in script.items()}
        if unknown := set(self._script) - {"submit", "find", "poll", "results", "cancel"}:
            raise ValueError(f"no such verbs: {sorted(unknown)}")

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        return self._meet("submit", lambda: self._provider.submit(shard, guard))

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        return self._meet("find", lambda: self._provider.find(shard))

    def poll(self, batch_id: str) -> Batch:
        return self._meet("poll", lambda: self._provider.poll(batch_id))

    def results(self, batch: Batch) -> Iterator[bytes]:
        """A fault after it strikes when every byte has been handed on."""
        fault = self._next("results")
        if fault and not fault.after:
            raise fault.error()
        yield from self._provider.results(batch)
        if fault:
            raise fault.error()

    def cancel(self, batch_id: str) -> None:
        self._meet("cancel", lambda: self._provider.cancel(batch_id))

    def _meet(self, verb: str, call: Callable[[], T]) -> T:
        fault = self._next(verb)
        if fault and not fault.after:
            raise fault.error()
        done = call()
        if fault:
            raise fault.error()
        return done

    def _next(self, verb: str) -> Fault | None:
        return next(self._script.get(verb, iter(())), None)
