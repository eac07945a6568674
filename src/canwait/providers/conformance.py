"""What every provider promises, as checks that any adapter enrols in; needs no test framework.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_mine(check: Check, rig: Rig) -> None:
        check(rig)

A rig is an adapter and the backing it talks to: a simulator, a fake, a test account. Every check wants a fresh one. A
broken promise raises Broken, whose text says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from ..errors import BatchUnknown, CannotTell, LeaseLost, Unreachable
from ..types import Answer, Batch, MarkClass, Outcome, ShardFile
from . import Provider

ROWS = 5
LONGEST_ID = "a" * 54 + "-99999999"  # 63 characters, the most that is safe everywhere (providers.md 2)
HOSTILE = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"custom_id":1}', b"[" * 100_000, b'{"custom_id":"a","result":[]}'),
    b'{"custom_id":"a","response":{"status_code":200,"body":{"output":[{"content":{}}],"status":[]}}}',
    b'{"custom_id":"a","response":{"status_code":200,"body":{"data":[{"index":0,"embedding":[1e999]}]}}}',
    b'{"custom_id":"a","response":{"status_code":200,"body":{"data":[{"index":0,"embedding":"AAA="}]}}}',
)


class Broken(AssertionError):
    """A provider does not keep its promise."""


class Rig(Protocol):
    provider: Provider

    def shard(self, rows: int) -> ShardFile:
        """A new shard of that many good requests under a token of its own; `first_try` is now, at the backing."""
        ...

    def finish(self) -> None:
        """Let the backing complete every batch it has been sent, every row answered."""
        ...

    def n_batches(self) -> int:
        """How many batches the backing has ever accepted."""
        ...

    def unreachable(self) -> Provider:
        """The same adapter, pointed at an address where nobody listens."""
        ...


Check = Callable[[Rig], None]


def round_trip(rig: Rig) -> None:
    """Every row sent comes back once, under its own id, answered, with what it cost."""
    shard = rig.shard(ROWS)
    sent = rig.provider.submit(shard, _hold)
    rig.finish()
    batch = rig.provider.poll(sent.id)
    _promise(batch.id == sent.id, "poll names another batch than was asked for")
    _promise(batch.status.ended, f"a finished batch is {batch.status.value}")
    answers = _answers(rig.provider, batch)
    lines = sorted(line for a in answers if (line := shard.line(a.custom_id)) is not None)
    _promise(lines == list(range(ROWS)), f"lines {lines} came back of {ROWS} sent")
    _promise(all(a.outcome is Outcome.OK and (a.text or a.vector) for a in answers), "a good request was not answered")
    _promise(all(a.usage and a.usage.input_tokens for a in answers), "an answer has no usage")
    _promise(
        all(a.usage and bool(a.usage.output_tokens) == (a.vector is None) for a in answers),
        "an answer has no usage of output, or a vector has",
    )


def the_guard_is_asked_once_before_the_create(rig: Rig) -> None:
    """The guard is called once, when nothing has been created yet."""
    seen: list[int] = []
    rig.provider.submit(rig.shard(ROWS), lambda: seen.append(rig.n_batches()))
    _promise(seen == [0], f"the guard was called with {seen} batches there, not once with none")
    _promise(rig.n_batches() == 1, f"one submit made {rig.n_batches()} batches")


def a_lost_lease_sends_nothing(rig: Rig) -> None:
    """A guard that raises stops the create, and its error comes out as it is."""

    def lost() -> None:
        raise LeaseLost(shard="s")

    try:
        rig.provider.submit(rig.shard(ROWS), lost)
    except LeaseLost:
        _promise(rig.n_batches() == 0, "a batch was created although the lease was lost")
        return
    raise Broken("submit went on although the lease was lost")


def a_batch_is_found_by_its_token(rig: Rig) -> None:
    """What was created is found again, once; without a mark only when it has ended, until then CannotTell."""
    shard = rig.shard(ROWS)
    sent = rig.provider.submit(shard, _hold)
    if rig.provider.mark is MarkClass.UNMARKED:
        _raises(CannotTell, lambda: rig.provider.find(shard), "find answers while a running batch may be ours")
        rig.finish()
    found = [batch.id for batch in rig.provider.find(shard)]
    _promise(found == [sent.id], f"find says {found}, the batch is {sent.id}")


def another_shard_s_batch_is_not_found(rig: Rig) -> None:
    """A token that was never sent is not found, whatever else of the same size is there."""
    rig.provider.submit(rig.shard(ROWS), _hold)
    rig.finish()
    found = rig.provider.find(rig.shard(ROWS))
    _promise(not found, f"find says {[batch.id for batch in found]} for a token that was never sent")


def known_batches_are_not_found(rig: Rig) -> None:
    """Batches that other shards own are never offered again."""
    shard = rig.shard(ROWS)
    sent = rig.provider.submit(shard, _hold)
    found = rig.provider.find(replace(shard, known=frozenset({sent.id})))
    _promise(not found, "find offers a batch that is known to be another shard's")


def an_old_try_is_still_found(rig: Rig) -> None:
    """The time of the first try bounds how far back find looks, and never hides a batch that was created after it."""
    shard = rig.shard(ROWS)
    sent = rig.provider.submit(shard, _hold)
    rig.finish()
    assert shard.first_try is not None
    for first_try in (None, shard.first_try - timedelta(days=2)):
        found = [batch.id for batch in rig.provider.find(replace(shard, first_try=first_try))]
        _promise(found == [sent.id], f"find says {found}, first tried {first_try}")


def a_second_submit_is_a_second_batch_or_the_same(rig: Rig) -> None:
    """Class A makes one batch of two submits; B and C make two, and find shows both."""
    shard = rig.shard(ROWS)
    ids = {rig.provider.submit(shard, _hold).id for _ in range(2)}
    expected = 1 if rig.provider.mark is MarkClass.IDEMPOTENT else 2
    _promise(len(ids) == expected == rig.n_batches(), f"two submits of one token made {len(ids)} batches")
    rig.finish()
    _promise({batch.id for batch in rig.provider.find(shard)} == ids, "find does not show every batch of the token")


def nobody_listening_is_certain(rig: Rig) -> None:
    """A create at an address where nobody listens certainly never arrived."""
    provider = rig.unreachable()
    _raises(
        Unreachable, lambda: provider.submit(rig.shard(ROWS), _hold), "a create that nobody heard is not Unreachable"
    )


def an_unknown_batch_is_said_to_be_unknown(rig: Rig) -> None:
    """A batch the provider does not know is BatchUnknown, not a failure of ours."""
    nobody = "batch_nobody_made"
    _raises(BatchUnknown, lambda: rig.provider.poll(nobody), "polling an unknown batch is not BatchUnknown")
    _raises(BatchUnknown, lambda: rig.provider.cancel(nobody), "cancelling an unknown batch is not BatchUnknown")


def cancelling_twice_is_harmless(rig: Rig) -> None:
    """A cancel may be repeated, also when the batch has ended."""
    sent = rig.provider.submit(rig.shard(ROWS), _hold)
    rig.provider.cancel(sent.id)
    rig.provider.cancel(sent.id)
    rig.finish()
    rig.provider.cancel(sent.id)
    _promise(rig.provider.poll(sent.id).status.ended, "a cancelled batch does not end")


def hostile_lines_are_answers(rig: Rig) -> None:
    """Decoding never raises: what cannot be understood is a failed row."""
    for line in HOSTILE:
        answer = rig.provider.decode(line)
        _promise(answer.outcome is Outcome.FAILED and answer.cause is not None, f"{line[:40]!r} is not a failed row")


def one_request_is_one_line(rig: Rig) -> None:
    """An encoded request is one line with the body as it is, whatever the text in it."""
    shard = rig.shard(1)
    sent = shard.path.read_bytes().rstrip(b"\n")
    for body in (sent, '{"messages":[{"content":"a\\nb\u2028\x85","role":"user"}],"model":"m"}'.encode()):
        line = rig.provider.encode(LONGEST_ID, body, shard.endpoint)
        _promise(
            b"\n" not in line and body in line and LONGEST_ID.encode() in line, "an encoded request is not one line"
        )


def limits_leave_time_for_the_reply(rig: Rig) -> None:
    """A create has given up before its batch may count as absent."""
    limits = rig.provider.limits("any")
    _promise(limits.create_timeout_s < limits.settle_s, "the create timeout is not below the settle time")
    _promise(min(limits.max_rows, limits.max_bytes, limits.window_s) > 0, "a limit is 0")
    _promise(bool(limits.source), "the limits have no source")


CHECKS: tuple[Check, ...] = (
    round_trip,
    the_guard_is_asked_once_before_the_create,
    a_lost_lease_sends_nothing,
    a_batch_is_found_by_its_token,
    another_shard_s_batch_is_not_found,
    known_batches_are_not_found,
    an_old_try_is_still_found,
    a_second_submit_is_a_second_batch_or_the_same,
    nobody_listening_is_certain,
    an_unknown_batch_is_said_to_be_unknown,
    cancelling_twice_is_harmless,
    hostile_lines_are_answers,
    one_request_is_one_line,
    limits_leave_time_for_the_reply,
)


def _answers(provider: Provider, batch: Batch) -> list[Answer]:
    raw = b"".join(provider.results(batch))
    return [provider.decode(line) for line in raw.split(b"\n") if line]


def _hold() -> None:
    """A guard that always holds."""


def _promise(kept: bool, otherwise: str) -> None:
    if not kept:
        raise Broken(otherwise)


def _raises(error: type[Exception], call: Callable[[], object], otherwise: str) -> None:
    try:
        call()
    except error:
        return
    except Exception as exc:
        raise Broken(f"{otherwise}: it is {type(exc).__name__}: {exc}") from exc
    raise Broken(otherwise)
