"""Wrappers keep the Protocol: reading verbs are asked again, a submit never; faults strike as scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from canwait.errors import Ambiguous, BatchUnknown, Busy, CannotTell, LeaseLost, Rejected, Unreachable
from canwait.providers import Provider
from canwait.providers.wrap import LONGEST_WAIT_S, LOST_REPLY, UNREACHABLE, Fault, Faulty, Retrying
from canwait.types import Answer, Batch, BatchStatus, Limits, MarkClass, Outcome, ShardFile

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SHARD = ShardFile("t", Path("none"), 1, "/v1/chat/completions", "m", 86_400)
DONE = Batch("b1", BatchStatus.COMPLETED, NOW)


class Shelf:
    """A provider that keeps batches in a list and counts its calls."""

    name, account, mark = "shelf", "shelf#1", MarkClass.FINDABLE

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.calls: list[str] = []

    def limits(self, model: str) -> Limits:
        return Limits(1, 1, 1, None, 1, 2, 1, "this test")

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return body

    def submit(self, shard: ShardFile, guard: Callable[[], None]) -> Batch:
        self.calls.append("submit")
        guard()
        self.batches.append(Batch(f"b{len(self.batches) + 1}", BatchStatus.COMPLETED, NOW))
        return self.batches[-1]

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        self.calls.append("find")
        return tuple(self.batches)

    def poll(self, batch_id: str) -> Batch:
        self.calls.append("poll")
        return next(b for b in self.batches if b.id == batch_id)

    def results(self, batch: Batch) -> Iterator[bytes]:
        self.calls.append("results")
        yield from (b"1\n", b"2\n")

    def decode(self, line: bytes) -> Answer:
        return Answer("a", Outcome.OK, None, None, line.decode(), None, None)

    def plain(self, line: bytes) -> None:
        return None

    def cancel(self, batch_id: str) -> None:
        self.calls.append("cancel")


VERBS: dict[str, Callable[[Provider], object]] = {
    "find": lambda provider: provider.find(SHARD),
    "poll": lambda provider: provider.poll("b1"),
    "results": lambda provider: list(provider.results(DONE)),
    "cancel": lambda provider: provider.cancel("b1"),
}


def retrying(provider: Provider, attempts: int = 3) -> tuple[Retrying, list[float]]:
    slept: list[float] = []
    return Retrying(provider, slept.append, Random(7), attempts=attempts), slept


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", [Busy, Unreachable, Ambiguous])
def test_a_passing_failure_is_asked_again(verb: str, error: type[Exception]) -> None:
    """A reading verb or a cancel that fails in passing succeeds at the third time, after two growing waits."""
    shelf = Shelf()
    shelf.submit(SHARD, lambda: None)
    again, slept = retrying(Faulty(shelf, {verb: [Fault(lambda: error("passing"))] * 2}))

    assert VERBS[verb](again) == VERBS[verb](shelf)
    assert len(slept) == 2
    assert 0 <= slept[0] <= 0.5
    assert 0 <= slept[1] <= 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_attempts_come_to_an_end(verb: str) -> None:
    """After the last attempt the error itself comes out."""
    again, slept = retrying(Faulty(Shelf(), {verb: [UNREACHABLE] * 9}))
    with pytest.raises(Unreachable, match="refused"):
        VERBS[verb](again)
    assert len(slept) == 2


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", [BatchUnknown, CannotTell, Rejected])
def test_what_will_not_pass_is_not_asked_again(verb: str, error: type[Exception]) -> None:
    """An answer that will stay the same is not asked for twice."""
    again, slept = retrying(Faulty(Shelf(), {verb: [Fault(lambda: error("so it is"))]}))
    with pytest.raises(error):
        VERBS[verb](again)
    assert slept == []


@pytest.mark.parametrize("error", [Busy, Unreachable, Ambiguous])
def test_a_submit_is_never_repeated(error: type[Exception]) -> None:
    """Whatever a submit raises comes out at once, and it was sent once."""
    shelf = Shelf()
    for fault in (Fault(lambda: error("no")), Fault(lambda: error("no"), after=True)):
        before = len(shelf.batches)
        again, slept = retrying(Faulty(shelf, {"submit": [fault]}))
        with pytest.raises(error):
            again.submit(SHARD, lambda: None)
        assert slept == []
        assert len(shelf.batches) - before == fault.after


def test_the_provider_s_wish_is_respected() -> None:
    """A wait the provider asks for is kept if it is short, and left to the engine's timer if it is long."""
    asked = [Fault(lambda: Busy("later", retry_after_s=3))]
    again, slept = retrying(Faulty(Shelf(), {"find": asked}))
    assert again.find(SHARD) == ()
    assert slept == [3]

    long = [Fault(lambda: Busy("later", retry_after_s=LONGEST_WAIT_S + 1))]
    again, slept = retrying(Faulty(Shelf(), {"find": long}))
    with pytest.raises(Busy):
        again.find(SHARD)
    assert slept == []


def test_a_stream_that_has_begun_is_not_begun_again() -> None:
    """Results that break off are raised, for bytes that were handed on cannot be taken back."""
    shelf = Shelf()
    again, slept = retrying(Faulty(shelf, {"results": [Fault(lambda: Unreachable("cut"), after=True)]}))
    stream = again.results(DONE)
    assert [next(stream), next(stream)] == [b"1\n", b"2\n"]
    with pytest.raises(Unreachable):
        next(stream)
    assert (shelf.calls, slept) == (["results"], [])


def test_a_lost_reply_leaves_a_batch_behind() -> None:
    """LOST_REPLY is the case that must not be paid twice: the batch is there, and its submit was Ambiguous."""
    shelf = Shelf()
    faulty = Faulty(shelf, {"submit": [LOST_REPLY, None, UNREACHABLE]})
    with pytest.raises(Ambiguous):
        faulty.submit(SHARD, lambda: None)
    assert len(faulty.find(SHARD)) == 1
    faulty.submit(SHARD, lambda: None)
    with pytest.raises(Unreachable):
        faulty.submit(SHARD, lambda: None)
    faulty.submit(SHARD, lambda: None)
    assert len(shelf.batches) == 3


def test_a_guard_that_raises_is_heard_through_wrappers() -> None:
    """The guard reaches the adapter through every wrapper."""

    def lost() -> None:
        raise LeaseLost(shard="s")

    shelf = Shelf()
    again, _ = retrying(Faulty(shelf, {}))
    with pytest.raises(LeaseLost):
        again.submit(SHARD, lost)
    assert shelf.batches == []


def test_wrappers_pass_for_what_they_wrap() -> None:
    """Name, account, mark, limits and the encoding of a line are the provider's own."""
    shelf = Shelf()
    wrapped, _ = retrying(Faulty(shelf, {}))
    assert (wrapped.name, wrapped.account, wrapped.mark) == ("shelf", "shelf#1", MarkClass.FINDABLE)
    assert wrapped.limits("m") == shelf.limits("m")
    assert wrapped.encode("a", b"{}", "/") == b"{}"
    assert wrapped.decode(b"x") == shelf.decode(b"x")


def test_a_script_for_an_unknown_verb_is_a_mistake() -> None:
    """A misspelt verb would be a fault that never strikes."""
    with pytest.raises(ValueError, match="sumbit"):
        Faulty(Shelf(), {"sumbit": [LOST_REPLY]})
