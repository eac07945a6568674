"""The engine against a provider in memory: each way in which batch clients have lost rows or money, and what happens here.

Numbers in brackets are places of the project's field notes, where the same failure was reproduced in another tool.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from canwait import landing, resend
from canwait.blobs import Blobs
from canwait.clock import SystemClock
from canwait.engine import Engine, Pace
from canwait.errors import (
    Ambiguous,
    BatchUnknown,
    Busy,
    CannotTell,
    Garbled,
    KeyRefused,
    LedgerError,
    NotFound,
    OutOfCredit,
    Rejected,
    TooLarge,
    Unreachable,
)
from canwait.lifecycle import CAUSES, Retry
from canwait.providers import Guard
from canwait.providers.wrap import LOST_REPLY, UNREACHABLE, Fault
from canwait.types import Batch, BatchStatus, MarkClass, Outcome, ShardFile, Usage
from world import EXPIRED, LOST, MISSING, OK, RUNS_S, Dead, End, Row, World, body_of, bounds, failed

LOST_REQUEST = Fault(lambda: Ambiguous("502 Bad Gateway"))
SETTLE_S = 120


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    return partial(World, tmp_path)


def broken(error: Exception, times: int = 3) -> list[Fault]:
    return [Fault(lambda: error)] * times


def nothing_was_paid_twice(world: World) -> None:
    """Each row ran once, and the ledger says what the provider's bill says, to the micro."""
    assert set(world.executed.values()) == {1}
    assert world.money == (0, world.billed)


# ------------------------------------------------------------------------------------------------------ the good day


def test_a_job_runs_to_its_end(world: Callable[..., World]) -> None:
    """Every row is answered, in one batch a shard, and nothing stays held."""
    w = world(sizes=(3, 2)).run()
    assert w.outcomes == ["OK"] * 5
    assert w.sent == [[0, 1, 2], [3, 4]]
    nothing_was_paid_twice(w)


def test_running_again_costs_nothing(world: Callable[..., World]) -> None:
    """A finished job run again sends nothing, asks the provider nothing and writes nothing."""
    w = world().run()
    asked, events = w.provider.seen.copy(), w.kinds()
    w.open()
    w.run()
    assert (w.provider.seen, w.kinds()) == (asked, events)


def test_the_worst_case_is_held_while_a_batch_runs(world: Callable[..., World]) -> None:
    """From before the create until the end every row is held at its bounds, in every budget above the job."""
    w = world()
    w.until("submitting")
    assert w.money == (w.worst(0, 1, 2), 0)
    assert w.sent == []
    w.until("ended")
    assert w.money == (w.worst(0, 1, 2), 0)


# -------------------------------------------------------------------------------------------------- submitting once


@pytest.mark.parametrize("error", [Ambiguous("timed out"), Ambiguous("500"), Ambiguous("connection reset")])
def test_a_lost_reply_is_adopted(world: Callable[..., World], error: Exception) -> None:
    """A batch whose create reply was lost is found by its mark and never sent again (batchwizard, steadybatch)."""
    w = world(faults={"submit": [Fault(lambda: error, after=True)]}).run()
    assert w.sent == [[0, 1, 2]]
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


@pytest.mark.parametrize("mark", MarkClass)
@pytest.mark.parametrize("where", ["after begin_try", "after sending", "before submitted", "after submitted"])
def test_a_crash_around_the_create_pays_once(world: Callable[..., World], mark: MarkClass, where: str) -> None:
    """A process killed between the intent and the record of the batch is followed by one that finds out (steadybatch)."""
    w = world(mark=mark)
    w.dies_at(where)
    w.run()
    assert w.sent == [[0, 1, 2]]
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


def test_an_unlisted_batch_is_not_absent_before_it_must_be_listed(world: Callable[..., World]) -> None:
    """While a listing may still lag, an empty answer proves nothing; after the settle time the create is repeated."""
    w = world(faults={"submit": [LOST_REQUEST]})
    shard = w.until("submitting")
    w.step()
    tried = w.ledger.intent(shard.token or "")[0].last_try
    w.run()
    (batch,) = w.provider.batches.values()
    assert tried is not None
    assert batch.created_at >= tried + timedelta(seconds=SETTLE_S)
    nothing_was_paid_twice(w)


def test_a_batch_listed_late_is_still_found(world: Callable[..., World]) -> None:
    """A listing that lags almost as long as the settle time does not make a second batch."""
    w = world(faults={"submit": [LOST_REPLY]})
    w.provider.lag_s = SETTLE_S - 1
    w.run()
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


def test_the_settle_time_counts_from_the_create(world: Callable[..., World]) -> None:
    """An upload of many minutes does not eat the time in which a lost create may still turn up."""
    w = world(faults={"submit": [LOST_REPLY]})
    w.engine.pace = replace(w.engine.pace, lease_s=20 * SETTLE_S)
    w.provider.upload_s, w.provider.lag_s = 10 * SETTLE_S, SETTLE_S - 1
    w.run()
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


def test_a_slow_listing_proves_only_what_it_showed_when_it_was_asked_for(world: Callable[..., World]) -> None:
    """A listing asked for before the settle time and answered after it is no proof of absence."""
    w = world(faults={"submit": [LOST_REPLY]})
    w.engine.pace = replace(w.engine.pace, lease_s=20 * SETTLE_S)
    w.provider.lag_s, w.provider.listing_s = SETTLE_S - 1, 2 * SETTLE_S
    w.run()
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


@pytest.mark.parametrize("mark", [MarkClass.FINDABLE, MarkClass.UNMARKED])
def test_while_the_fate_is_unknown_nothing_is_sent_and_the_money_is_held(
    world: Callable[..., World], mark: MarkClass
) -> None:
    """A listing that cannot be read is no absence: the money counts as unknown until an answer comes."""
    w = world(mark=mark, faults={"submit": [LOST_REPLY], "find": broken(CannotTell("the listing answered 500"), 50)})
    w.until("submitting")
    for _ in range(20):
        w.step()
    assert (w.provider.seen["submit"], w.money) == (1, (w.worst(0, 1, 2), 0))
    assert w.figures["unknown_micros"] == w.worst(0, 1, 2)
    assert w.figures["reserved_micros"] == 0
    w.run()
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


def test_a_create_that_never_arrived_is_no_attempt(world: Callable[..., World]) -> None:
    """A refused connection is repeated until the deadline and takes no attempt from its rows."""
    w = world(attempts=1, faults={"submit": [UNREACHABLE] * 10}).run()
    assert w.provider.seen["submit"] == 1
    assert w.outcomes == ["OK"] * 3
    assert w.ledger.query("shards", job="job")[0]["attempt"] == 1
    nothing_was_paid_twice(w)


def test_a_full_queue_is_waited_for(world: Callable[..., World]) -> None:
    """A 429 on create is no attempt, and the provider's own wait is kept to."""
    w = world(faults={"submit": [Fault(lambda: Busy("429", retry_after_s=900))]})
    began = w.now
    w.run()
    (batch,) = w.provider.batches.values()
    assert batch.created_at >= began + timedelta(seconds=900)
    nothing_was_paid_twice(w)


def test_a_rejected_batch_ends_its_rows_and_frees_its_money(world: Callable[..., World]) -> None:
    """A 400 on create is final: the rows fail with the provider's words, nothing is held, nothing is sent again."""
    w = world(faults={"submit": broken(Rejected("400: no such model"), 1)}).run()
    assert (w.outcomes, w.states, w.money) == (["FAILED"] * 3, ["refused"], (0, 0))
    assert w.causes() == ["invalid_request"] * 3
    assert w.sent == []


@pytest.mark.parametrize("mark", MarkClass)
def test_a_shard_too_large_is_sent_in_halves(world: Callable[..., World], mark: MarkClass) -> None:
    """A 413 on create ends no row: the shard is refused, its money comes back, and its halves are sent instead."""
    w = world(mark=mark, faults={"submit": broken(TooLarge("413: too large"), 2)}).run()
    assert (w.outcomes, w.states.count("refused")) == (["OK"] * 3, 2)
    nothing_was_paid_twice(w)


def test_a_row_that_is_too_large_alone_ends(world: Callable[..., World]) -> None:
    """When even single rows are too large they fail with the provider's words, and nothing is held."""
    w = world(faults={"submit": broken(TooLarge("413: too large"), 99)}).run()
    assert (w.outcomes, w.causes(), w.money) == (["FAILED"] * 3, ["invalid_request"] * 3, (0, 0))


def test_a_refused_key_stops_and_holds_nothing(world: Callable[..., World]) -> None:
    """A 401 on create is raised to the caller; the shard is planned again and goes on with a better key."""
    w = world(faults={"submit": broken(KeyRefused(provider="fake", variable="KEY", why="401"), 1)})
    with pytest.raises(KeyRefused):
        w.run()
    assert (w.states, w.money) == (["planned"], (0, 0))
    w.run()
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


@pytest.mark.parametrize("verb", ["poll", "results", "find"])
def test_a_key_refused_on_the_way_releases_nothing(world: Callable[..., World], verb: str) -> None:
    """A 401 while asking is raised, and what was sent stays held until an answer comes."""
    key = broken(KeyRefused(provider="fake", variable="KEY", why="401"), 1)
    w = world(faults={verb: key} | ({"submit": [LOST_REPLY]} if verb == "find" else {}))
    with pytest.raises(KeyRefused):
        w.run()
    assert w.money == (w.worst(0, 1, 2), 0)
    w.run()
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


def test_another_account_is_not_asked_for_a_lost_reply(world: Callable[..., World]) -> None:
    """Under another key the listing would prove an absence that is none: a clear error, and the money stays held."""
    w = world(faults={"submit": [LOST_REPLY]})
    w.until("submitting")
    w.step()
    w.front.account = "fake:another"
    with pytest.raises(LedgerError, match="may have been sent on fake:account"):
        w.run()
    assert (w.provider.seen["submit"], w.money) == (1, (w.worst(0, 1, 2), 0))


# ---------------------------------------------------------------------------------------------------------- class C


def test_without_a_mark_nothing_ambiguous_is_sent_again(world: Callable[..., World]) -> None:
    """While a batch of the same size runs, it may be ours: nothing is sent until its custom ids tell."""
    w = world(mark=MarkClass.UNMARKED, faults={"submit": [LOST_REPLY]})
    w.run(most_s=RUNS_S - 60)
    assert (w.provider.seen["submit"], w.states) == (1, ["submitting"])
    w.run()
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


def test_without_a_mark_two_shards_of_one_size_are_never_on_their_way_together(world: Callable[..., World]) -> None:
    """On an account without marks the row count tells batches apart, so equal shards go one after the other."""
    w = world(mark=MarkClass.UNMARKED, sizes=(2, 2, 3)).run()
    flights = [(b.created_at, b.ends_at, len(b.bodies)) for b in w.provider.batches.values()]
    twos = sorted((start, end) for start, end, n in flights if n == 2)
    assert twos[0][1] <= twos[1][0]
    assert w.outcomes == ["OK"] * 7
    nothing_was_paid_twice(w)


def test_somebody_elses_batch_of_the_same_size_is_not_adopted(world: Callable[..., World]) -> None:
    """A stranger's batch on the same account is looked at by its custom ids, left alone, and ours is sent after it."""
    w = world(mark=MarkClass.UNMARKED, faults={"submit": [LOST_REQUEST]})
    shard = w.until("submitting")
    path = w.blobs.path(shard.requests_blob)
    theirs = ShardFile("stranger", path, 3, "/v1/chat/completions", "m", 86_400)
    w.provider.submit(theirs, lambda: None)
    w.run()
    assert len(w.provider.batches) == 2
    assert w.figures["submissions"] == 1
    assert w.outcomes == ["OK"] * 3


def test_a_person_can_say_that_nothing_arrived(world: Callable[..., World]) -> None:
    """What no listing answers a person can: `--absent` sends again at once, once."""
    w = world(faults={"submit": [LOST_REQUEST], "find": broken(CannotTell("no listing"), 1000)})
    shard = w.until("submitting")
    w.step()
    with pytest.raises(NotFound):
        w.ledger.resolve_absent("nobody", w.now)
    w.ledger.resolve_absent(shard.id, w.now)
    w.step()
    assert w.states == ["submitted"]
    w.run()
    nothing_was_paid_twice(w)


def test_a_person_can_name_the_batch(world: Callable[..., World]) -> None:
    """`--batch ID` adopts the batch, and the job goes on from there."""
    w = world(faults={"submit": [LOST_REPLY], "find": broken(CannotTell("no listing"), 1000)})
    shard = w.until("submitting")
    w.step()
    (batch_id,) = w.provider.batches
    held = w.ledger.claim_one(shard.id, "a person", w.now, 10)
    w.ledger.submitted(held, w.provider.poll(batch_id), w.now, "a person says so", w.now)
    w.run()
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


# ------------------------------------------------------------------------------------------------------ zombies, twins


def test_a_caller_that_lost_its_lease_sends_nothing(world: Callable[..., World]) -> None:
    """A caller that sleeps through its lease during the upload is stopped right before the create."""
    w = world()
    w.until("submitting")
    w.provider.upload_s = 11
    zombie = w.ledger.claim("zombie", w.now, 10, "job")
    assert zombie is not None
    w.caller("zombie").advance(zombie)
    assert w.sent == []
    w.provider.upload_s = 0
    w.run()
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


def test_a_create_that_lands_after_takeover_is_cancelled_and_its_bill_is_booked(world: Callable[..., World]) -> None:
    """A create slower than its provider allows lands beside a second one: found by the sweep, stopped, and paid as waste."""
    w = world(sizes=(4,))
    w.until("submitting")

    def others_act() -> None:
        w.provider.travels_s = 0
        w.run(most_s=SETTLE_S + 100)  # another caller takes over, finds nothing listed, and sends

    w.provider.travels_s, w.provider.during_create = 5.0, others_act
    zombie = w.ledger.claim("zombie", w.now, 10, "job")
    assert zombie is not None
    w.caller("zombie").advance(zombie)
    assert len(w.sent) == 2
    assert w.kinds().count("submitted") == 1

    w.provider.unread = 3  # a listing that cannot be read at the end is asked for again
    w.engine.run("job")
    first, second = w.provider.batches.values()
    assert {first.cancelled_at is None, second.cancelled_at is None} == {True, False}
    assert w.outcomes == ["OK"] * 4
    assert w.money == (0, w.billed)
    assert w.figures["wasted_micros"] > 0
    assert w.figures["submissions"] == 2
    assert "duplicate" in w.kinds()


def test_a_listing_that_is_never_read_does_not_keep_a_finished_job_open(world: Callable[..., World]) -> None:
    """The search for twins is given up after some tries; the job ends, and the next run asks again."""
    w = world(faults={"submit": broken(Ambiguous("timed out"), 1)})
    w.until("settled")
    w.provider.unread, before = 10_000, w.provider.seen["find"]
    assert w.engine.run("job", until=w.now + timedelta(hours=1))
    assert 1 < w.provider.seen["find"] - before < 10
    w.provider.unread = 0
    assert w.engine.run("job")
    nothing_was_paid_twice(w)


def test_a_create_that_lands_after_the_shard_was_given_up_is_found(world: Callable[..., World]) -> None:
    """A batch that appears after its shard was taken as absent and given up is stopped and booked, not forgotten."""
    w = world(sizes=(4,), deadline_s=SETTLE_S - 60, faults={"submit": [LOST_REPLY]})
    w.provider.lag_s = SETTLE_S + 100  # longer than the provider is known to lag
    w.run()
    assert w.outcomes == ["EXPIRED"] * 4
    w.clock.sleep(SETTLE_S)
    w.run()
    (batch,) = w.provider.batches.values()
    assert batch.cancelled_at is not None
    assert w.money == (0, w.billed)
    assert w.figures["wasted_micros"] == w.billed > 0


def test_two_batches_of_one_token_are_both_paid_and_one_is_used(world: Callable[..., World]) -> None:
    """When the listing shows two batches of one mark, the oldest is kept and the other is stopped and booked."""
    w = world(faults={"submit": [LOST_REPLY]})
    shard = w.until("submitting")
    w.step()
    file = w.engine._file(shard, w.front)  # as a proxy would that repeats a request
    w.clock.sleep(1)
    w.provider.submit(file, lambda: None)
    w.run()
    oldest, second = w.provider.batches.values()
    assert oldest.cancelled_at is None
    assert second.cancelled_at is not None
    assert w.outcomes == ["OK"] * 3
    assert w.money == (0, w.billed)


# ------------------------------------------------------------------------------------------------------------- polling


@pytest.mark.parametrize(
    "error",
    [
        BatchUnknown("404"),
        Ambiguous("500"),
        Garbled("an HTML page"),
        Unreachable("no route"),
        Busy("429", retry_after_s=7),
    ],
)
def test_no_answer_to_a_poll_ends_a_batch(world: Callable[..., World], error: Exception) -> None:
    """A 404, three 500s or nonsense on a poll neither ends the batch nor releases its money (batchata, curator, firming)."""
    w = world(faults={"poll": broken(error, 3)})
    w.until("submitted")
    for _ in range(3):
        w.step()
        assert (w.states, w.money) == (["submitted"], (w.worst(0, 1, 2), 0))
    w.run()
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


def test_a_provider_is_not_polled_more_often_than_it_asks(world: Callable[..., World]) -> None:
    """Between two polls lies the poll interval, or what Retry-After says when that is longer."""
    w = world(faults={"poll": [Fault(lambda: Busy("429", retry_after_s=400))]})
    w.until("submitted")
    w.step()
    assert w.ledger.next_due("job")[0] == w.now + timedelta(seconds=400)


def test_a_batch_beyond_its_window_is_stopped_and_harvested(world: Callable[..., World]) -> None:
    """A batch that its provider never ends is cancelled after the provider's own window, and what it did is kept."""
    w = world(sizes=(4,), deadline_s=86_400, ends=[End(runs_s=10**7)]).run()
    (batch,) = w.provider.batches.values()
    assert batch.cancelled_at is not None
    assert w.outcomes == ["OK", "OK", "CANCELLED", "CANCELLED"]
    nothing_was_paid_twice(w)


# ----------------------------------------------------------------------------------------------------------- results


def test_raw_output_is_asked_for_once(world: Callable[..., World]) -> None:
    """A process killed after the raw output was stored is followed by one that reads the stored bytes."""
    w = world(sizes=(3,))
    w.dies_at("after fetched")
    w.run()
    assert w.provider.seen["results"] == 1
    nothing_was_paid_twice(w)


@pytest.mark.parametrize("where", ["before fetched", "before settle", "after settle", "after ended"])
def test_a_crash_while_settling_counts_once(world: Callable[..., World], where: str) -> None:
    """Killed at any write of the end, the job is settled once: one bill, one retry of what is to be sent again."""
    w = world(sizes=(3,), rows={1: [failed("server_error")]})
    w.dies_at(where)
    w.run()
    assert w.outcomes == ["OK"] * 3
    assert w.sent == [[0, 1, 2], [1]]
    nothing_was_paid_twice(w)


def test_a_download_that_breaks_off_is_repeated_whole(world: Callable[..., World]) -> None:
    """Half an output is never stored: no row of it counts, and the whole of it is fetched again."""
    w = world(faults={"results": [Fault(lambda: Unreachable("broke off midway"), after=True)] * 2}).run()
    assert w.provider.seen["results"] == 3
    assert w.kinds().count("fetched") == 1
    nothing_was_paid_twice(w)


def test_results_that_are_gone_are_missing_and_their_money_is_not_free(world: Callable[..., World]) -> None:
    """An output the provider no longer has is waited for an hour; then its rows are missing and what they cost is unknown."""
    w = world(attempts=1, ends=[End(states_usage=False)], faults={"results": broken(BatchUnknown("404"), 1000)}).run()
    assert w.outcomes == ["MISSING"] * 3
    assert w.money == (w.worst(0, 1, 2), 0)
    ended = next(e.at for e in w.ledger.events() if e.kind == "ended")
    assert next(e.at for e in w.ledger.events() if e.kind == "settled") > ended + timedelta(hours=1)


def test_one_bad_row_does_not_hurt_the_others(world: Callable[..., World]) -> None:
    """A row answered with HTTP 400, one that expired and one unparseable line leave every other row as it is (inspect_ai)."""
    w = world(sizes=(4,), attempts=1, rows={1: [failed("invalid_request")], 2: [EXPIRED]})
    w.provider.extra = [b"not json at all", b"", b"[]", b'{"custom_id": 7}']
    w.run()
    assert w.outcomes == ["OK", "FAILED", "EXPIRED", "OK"]
    nothing_was_paid_twice(w)


def test_a_completed_batch_of_nothing_but_errors_says_so(world: Callable[..., World]) -> None:
    """A batch that is completed with every row failed ends the job, each row with its cause, nothing polled for ever."""
    w = world(rows={n: [failed("invalid_request")] for n in range(3)}).run()
    assert (w.outcomes, w.causes(), w.money) == (["FAILED"] * 3, ["invalid_request"] * 3, (0, 0))
    assert len(w.sent) == 1


def test_an_expired_batch_is_harvested(world: Callable[..., World]) -> None:
    """The finished rows of an expired batch are kept, and only the others are sent again (steadybatch paid 27 for 0)."""
    w = world(sizes=(4,), rows={1: [EXPIRED], 3: [EXPIRED]}, ends=[End(BatchStatus.EXPIRED)]).run()
    assert w.sent == [[0, 1, 2, 3], [1, 3]]
    assert w.outcomes == ["OK"] * 4
    nothing_was_paid_twice(w)


def test_an_expired_batch_without_any_file_ends(world: Callable[..., World]) -> None:
    """A batch that expired with nothing done, and no file at all, is not polled for ever (inspect_ai): its rows go again."""
    w = world(rows={n: [MISSING] for n in range(3)}, ends=[End(BatchStatus.EXPIRED, has_output=False)]).run()
    assert w.sent == [[0, 1, 2]] * 2
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


def test_a_missing_row_is_sent_again_and_what_it_cost_is_unknown(world: Callable[..., World]) -> None:
    """A row never returned is sent again; where the batch states no bill its worst case stays held (batchwizard)."""
    w = world(rows={1: [LOST]}, ends=[End(states_usage=False)]).run()
    assert w.sent == [[0, 1, 2], [1]]
    assert w.outcomes == ["OK"] * 3
    held, spent = w.money
    assert held == w.worst(1) == w.figures["unknown_micros"]
    assert spent < w.billed <= spent + held


def test_a_batchs_own_bill_settles_what_its_missing_rows_cost(world: Callable[..., World]) -> None:
    """Where the batch states its usage, a lost row's cost is known from it, and wasted."""
    w = world(rows={1: [LOST]}).run()
    assert w.outcomes == ["OK"] * 3
    assert w.executed == {0: 1, 1: 2, 2: 1}
    assert w.money == (0, w.billed)
    assert 0 < w.figures["wasted_micros"] < w.billed


def test_a_row_missing_at_every_attempt_ends_as_missing(world: Callable[..., World]) -> None:
    """Attempts last three times, then the row is left as missing: it neither waits for ever nor counts as done."""
    w = world(rows={1: [MISSING] * 5}).run()
    assert w.sent == [[0, 1, 2], [1], [1]]
    assert w.outcomes == ["OK", "MISSING", "OK"]


def test_an_answer_without_a_bill_is_unknown_money(world: Callable[..., World]) -> None:
    """A row answered without usage, in a batch without usage, is not free: its worst case stays held."""
    w = world(rows={1: [Row(usage_stated=False)]}, ends=[End(states_usage=False)]).run()
    assert w.outcomes == ["OK"] * 3
    assert w.money[0] == w.worst(1)


@pytest.mark.parametrize("cause", sorted(CAUSES))
def test_a_row_is_sent_again_by_its_cause_alone(world: Callable[..., World], cause: str) -> None:
    """What passes is sent three times, what cannot change once, what needs the account mended stops the job (curator)."""
    w = world(rows={1: [failed(cause)] * 9}).run()
    expected = {Retry.AGAIN: 3, Retry.NEVER: 1, Retry.PAUSE: 1}[CAUSES[cause]]
    assert len(w.sent) == expected
    assert w.outcomes == ["OK", "PENDING" if CAUSES[cause] is Retry.PAUSE else "FAILED", "OK"]
    assert bool(w.ledger.job("job")["paused"]) is (CAUSES[cause] is Retry.PAUSE)


def test_a_truncated_row_is_paid_once(world: Callable[..., World]) -> None:
    """An answer cut at its bound is not sent again unchanged: curator paid for it ten times over."""
    w = world(rows={1: [failed("length", billed=True)] * 9}).run()
    assert (w.sent, w.outcomes, w.causes()) == ([[0, 1, 2]], ["OK", "FAILED", "OK"], [None, "length", None])
    assert 0 < w.figures["wasted_micros"] < w.figures["confirmed_micros"] == w.billed


def test_an_answer_that_does_not_fit_its_schema_is_paid_once(world: Callable[..., World]) -> None:
    """A paid answer that fails the check is kept as failed with its cause, wasted, and not sent again (curator threw it away)."""
    schema = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
    good, bad = Row(text='{"label": "a"}'), Row(text='{"label": "c"}')
    w = world(schema=schema, rows={0: [good], 1: [bad], 2: [Row(text="not json")]}).run()
    assert w.outcomes == ["OK", "FAILED", "FAILED"]
    assert w.causes() == [None, "schema", "schema"]
    assert w.money == (0, w.billed)
    assert len(w.sent) == 1


def test_unknown_ids_are_counted_and_never_joined(world: Callable[..., World]) -> None:
    """Lines that name no row of the shard, by another token or beyond its end, answer nothing (sourcelibrary)."""
    w = world(rows={1: [MISSING] * 3})
    token = w.until("submitting").token
    forged = '{"custom_id": "%s", "outcome": 1, "cause": null, "text": "forged", "usage": [1, 1]}'
    names = ("stranger-1", f"{token}-3", f"{token}-01", f"{token}--1", f"{token}-1 ", "", f"{token}-१")
    w.provider.extra = [(forged % name).encode() for name in names]
    w.run()
    assert w.outcomes == ["OK", "MISSING", "OK"]
    settled = [e for e in w.ledger.events() if e.kind == "settled"]
    assert settled[0].facts["n_strangers"] == len(names)


def test_a_row_returned_twice_is_one_answer(world: Callable[..., World]) -> None:
    """The same answer twice is one answer and one bill."""
    w = world(rows={1: [Row(lines=2)]}, ends=[End(states_usage=False)]).run()
    assert w.outcomes == ["OK"] * 3
    assert next(e for e in w.ledger.events() if e.kind == "settled").facts["n_repeats"] == 1
    nothing_was_paid_twice(w)


def test_two_different_answers_for_one_row_are_none(world: Callable[..., World]) -> None:
    """Nobody can say which is right: the row fails with cause conflict, is paid once, and is not sent again."""
    w = world(rows={1: [Row(lines=2, other_text="another answer")]}, ends=[End(states_usage=False)]).run()
    assert (w.outcomes, w.causes()) == (["OK", "FAILED", "OK"], [None, "conflict", None])
    nothing_was_paid_twice(w)


def test_rows_come_back_in_any_order(world: Callable[..., World]) -> None:
    """Results are joined by id and never by position: 17,148 pages got another page's text that way."""
    w = world(sizes=(5,))
    results = w.provider.results
    w.provider.results = lambda batch: iter(sorted(results(batch), reverse=True))  # type: ignore[method-assign]
    w.run()
    shard = w.ledger.query("shards", job="job")[0]
    import pyarrow.parquet as pq

    table = pq.read_table(w.blobs.path(shard["results_blob"]), schema=landing.SCHEMA).to_pydict()
    assert table["line"] == [4, 3, 2, 1, 0]
    assert w.outcomes == ["OK"] * 5


# -------------------------------------------------------------------------------------------------------------- money


def test_a_bill_above_the_reservation_freezes_the_budget(world: Callable[..., World]) -> None:
    """What was billed is recorded as it is, the budget is frozen, the job paused, and it says why."""
    w = world(sizes=(3, 3))
    w.provider.factor = 10
    w.clock.at += timedelta(seconds=1)
    w.provider.max_enqueued_tokens = 1  # so that the second shard waits for the first
    w.run()
    assert w.money == (0, w.billed)
    assert w.billed > w.worst(0, 1, 2)
    assert len(w.sent) == 1
    frozen = w.ledger.query("budget", id="job:job")[0]["frozen"]
    assert "was billed" in frozen
    assert frozen in w.ledger.job("job")["paused"]

    w.provider.factor = 1
    w.open(micros=10**6)
    w.ledger.set_budget("job:job", micros=10**6, tokens=None, now=w.now)
    for budget in ("job:job", "project:team", "month:2026-11"):
        w.ledger.thaw(budget, w.now)
    w.run()
    assert w.outcomes == ["OK"] * 6
    assert w.money == (0, w.billed)


def test_out_of_credit_on_create_pauses_the_job(world: Callable[..., World]) -> None:
    """Nothing more is sent or held until somebody has looked; run again, it goes on where it was."""
    w = world(sizes=(2, 3), faults={"submit": broken(OutOfCredit("the account is out of credit"), 1)}).run()
    assert (w.sent, w.money) == ([], (0, 0))
    assert "out of credit" in w.ledger.job("job")["paused"]
    w.open()
    w.run()
    assert w.outcomes == ["OK"] * 5
    nothing_was_paid_twice(w)


def test_out_of_credit_in_the_middle_keeps_what_is_paid(world: Callable[..., World]) -> None:
    """Rows that failed because credit ran out wait for it, and only they are sent again (curator 296)."""
    w = world(sizes=(4,), rows={2: [failed("out_of_credit")], 3: [failed("out_of_credit")]}).run()
    assert w.outcomes == ["OK", "OK", "PENDING", "PENDING"]
    assert w.ledger.job("job")["paused"]
    w.open()
    w.run()
    assert w.sent == [[0, 1, 2, 3], [2, 3]]
    assert w.outcomes == ["OK"] * 4
    assert {s["attempt"] for s in w.ledger.query("shards", job="job")} == {1}  # an empty account is nobody's attempt
    nothing_was_paid_twice(w)


def test_a_budget_that_cannot_hold_a_shard_ends_its_rows_unsent(world: Callable[..., World]) -> None:
    """Where nothing on its way can free money, rows beyond the budget end with cause budget; the others are answered."""
    w = world(sizes=(1, 3), micros=None)
    w.ledger.set_budget("job:job", micros=w.worst(0), tokens=None, now=w.now)
    w.run()
    assert w.outcomes == ["OK"] + ["FAILED"] * 3
    assert w.sent == [[0]]
    nothing_was_paid_twice(w)


def test_money_that_comes_back_is_waited_for(world: Callable[..., World]) -> None:
    """Two shards of which one fits at a time both run, one after the other, and the limit is never passed."""
    w = world(sizes=(3, 2))
    limit = w.worst(0, 1, 2) + w.worst(3) - 1  # beside the first not even a row of the second fits
    w.ledger.set_budget("project:team", micros=limit, tokens=None, now=w.now)
    w.run()
    first, second = w.provider.batches.values()
    assert second.created_at >= first.ends_at
    assert w.outcomes == ["OK"] * 5
    nothing_was_paid_twice(w)


def test_unknown_money_is_not_waited_for(world: Callable[..., World]) -> None:
    """Money held for rows that were never returned does not come back by itself, so nobody waits for it until the deadline."""
    w = world(rows={1: [LOST]}, ends=[End(states_usage=False)], micros=None)
    w.ledger.set_budget("job:job", micros=w.worst(0, 1, 2), tokens=None, now=w.now)
    w.run()
    began = w.ledger.events()[0].at
    assert w.now < began + timedelta(hours=2)
    assert w.outcomes == ["OK", "FAILED", "OK"]
    assert w.causes()[1] == "budget"


def test_rows_beyond_the_budget_go_when_it_is_raised(world: Callable[..., World]) -> None:
    """After the limit was raised a person sends exactly the rows that it had kept back."""
    w = world(sizes=(1, 2))
    w.ledger.set_budget("job:job", micros=w.worst(0), tokens=None, now=w.now)
    w.run()
    w.ledger.set_budget("job:job", micros=10**6, tokens=None, now=w.now)
    chosen = resend.select(w.ledger, w.blobs, "job", "failed:budget")
    assert [lines for _, lines in chosen] == [[0, 1]]
    for root, lines in chosen:
        manifest = landing.read_manifest(w.blobs.path(root.manifest_blob))
        new = w.engine.follow_up(root, manifest, lines, 1, w.ledger.terms(root), why="a person asked")
        w.ledger.add_shards("job", [(new, lines)], "a person asked", w.now)
    w.run()
    assert w.sent == [[0], [1, 2]]
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


@pytest.mark.parametrize("budget", ["project:team", "month", "month:2026-11"])
def test_a_budget_above_the_job_stops_it(world: Callable[..., World], budget: str) -> None:
    """A job with money of its own sends nothing past what its project or the month has left."""
    w = world()
    w.ledger.set_budget(budget, micros=w.worst(0) - 1, tokens=None, now=w.now)
    w.run()
    assert (w.sent, w.money, w.causes()) == ([], (0, 0), ["budget"] * 3)


def test_a_token_limit_stops_a_job_as_money_does(world: Callable[..., World]) -> None:
    """A budget in tokens refuses by tokens, whatever they cost."""
    w = world()
    w.ledger.set_budget("project:team", micros=None, tokens=10, now=w.now)
    w.run()
    assert (w.sent, w.causes()) == ([], ["budget"] * 3)


# ----------------------------------------------------------------------------------------------- queues and deadlines


def test_a_full_queue_after_the_create_is_no_attempt_and_is_waited_for(world: Callable[..., World]) -> None:
    """A batch accepted and then failed with token_limit_exceeded tried nothing: its rows go again, later, with no attempt less."""
    full = End(BatchStatus.FAILED, "token_limit_exceeded", has_output=False, states_usage=False, runs_s=5)
    w = world(attempts=1, ends=[full, full, full]).run()
    assert w.sent == [[0, 1, 2]] * 4
    assert w.outcomes == ["OK"] * 3
    assert {s["attempt"] for s in w.ledger.query("shards", job="job")} == {1}
    assert w.money == (0, w.billed)
    created = [b.created_at for b in w.provider.batches.values()]
    ended = [b.ends_at for b in w.provider.batches.values()]
    assert all(later >= end + timedelta(seconds=30) for later, end in zip(created[1:], ended[:-1], strict=True))


def over(limit: int) -> str:
    """OpenAI's words for a full queue (providers.md 3.1)."""
    return (
        f"Enqueued token limit reached for m in organization o. Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )


@pytest.mark.parametrize("when", ["at the create", "after the create"])
@pytest.mark.parametrize(
    ("spare", "sent"),
    [(-1, [[0, 1], [2, 3]]), (0, [[0, 1, 2, 3]]), (-(10**9), [[0, 1, 2, 3]])],
    ids=["less than the shard", "as much as the shard", "less than a row"],
)
def test_a_shard_that_no_queue_takes_is_sent_in_halves(
    world: Callable[..., World], when: str, spare: int, sent: list[list[int]]
) -> None:
    """Where the queue says that it never holds so many tokens, halves go at the same attempt; else the shard waits."""
    said = over(max(1, sum(bounds(body_of(n))[0] for n in range(4)) + spare))
    full = End(BatchStatus.FAILED, "token_limit_exceeded", said, has_output=False, states_usage=False)
    if when == "at the create":
        w = world(sizes=(4,), attempts=1, faults={"submit": [Fault(lambda: Busy(f"openai answered 400: {said}"))]})
    else:
        w = world(sizes=(4,), attempts=1, ends=[full])
    w.run()
    assert w.outcomes == ["OK"] * 4
    assert sorted(w.sent[-len(sent) :]) == sent
    assert len(w.sent) == len(sent) + (when == "after the create")
    assert {s["attempt"] for s in w.ledger.query("shards", job="job")} == {1}
    nothing_was_paid_twice(w)


@pytest.mark.parametrize("code", ["invalid_json_line", "model_not_found"])
def test_a_batch_refused_for_its_content_is_not_sent_again(world: Callable[..., World], code: str) -> None:
    """A batch that failed validation ran nothing, costs nothing and would fail again."""
    w = world(ends=[End(BatchStatus.FAILED, code, has_output=False, states_usage=False)]).run()
    assert (len(w.sent), w.outcomes, w.money) == (1, ["FAILED"] * 3, (0, 0))
    assert w.causes() == ["validation"] * 3


def test_a_batch_that_failed_for_no_known_reason_keeps_its_money(world: Callable[..., World]) -> None:
    """A failed batch whose code says nothing about its rows may have run: they go again, its money is unknown."""
    w = world(attempts=2, ends=[End(BatchStatus.FAILED, "internal_error", has_output=False, states_usage=False)]).run()
    assert w.sent == [[0, 1, 2]] * 2
    assert w.outcomes == ["OK"] * 3
    assert w.money[0] == w.worst(0, 1, 2)


def test_after_the_deadline_nothing_is_sent(world: Callable[..., World]) -> None:
    """Rows whose deadline passed before they were sent expire unpaid; a batch on its way is still harvested."""
    w = world(sizes=(2, 3), deadline_s=RUNS_S // 2, rows={0: [failed("server_error")]})
    w.provider.max_enqueued_tokens = 1  # so that the second shard waits for the first
    w.run()
    assert w.sent == [[0, 1]]
    assert w.outcomes == ["FAILED", "OK", "EXPIRED", "EXPIRED", "EXPIRED"]
    nothing_was_paid_twice(w)


def test_an_unreachable_provider_is_tried_until_the_deadline(world: Callable[..., World]) -> None:
    """A create that never arrives ends its rows at the deadline, holding nothing."""
    w = world(deadline_s=1000, faults={"submit": [UNREACHABLE] * 10_000}).run()
    assert (w.outcomes, w.states, w.money) == (["EXPIRED"] * 3, ["refused"], (0, 0))


# ---------------------------------------------------------------------------------------------------------- cancelling


def test_cancelling_before_anything_was_sent_costs_nothing(world: Callable[..., World]) -> None:
    """A job cancelled while its shards are planned or being reserved sends nothing and holds nothing."""
    for state in ("planned", "submitting"):
        w = world()
        w.until(state)
        w.ledger.cancel_job("job", w.now)
        w.run()
        assert (w.sent, w.outcomes, w.money) == ([], ["CANCELLED"] * 3, (0, 0))


def test_cancelling_while_a_create_is_unanswered_finds_it_and_stops_it(world: Callable[..., World]) -> None:
    """A cancel during SUBMITTING does not forget the batch that may exist: it is found, stopped, harvested and booked."""
    w = world(sizes=(4,), faults={"submit": [LOST_REPLY]})
    w.until("submitting")
    w.step()
    w.ledger.cancel_job("job", w.now)
    w.run()
    (batch,) = w.provider.batches.values()
    assert batch.cancelled_at is not None
    assert w.outcomes == ["OK", "OK", "CANCELLED", "CANCELLED"]
    nothing_was_paid_twice(w)


def test_cancelling_a_running_batch_keeps_what_it_finished(world: Callable[..., World]) -> None:
    """Finished rows of a cancelled batch are kept and paid, the others are cancelled and not sent again (litellm 37205)."""
    w = world(sizes=(4,))
    w.until("submitted")
    w.ledger.cancel_job("job", w.now)
    w.run()
    assert w.outcomes == ["OK", "OK", "CANCELLED", "CANCELLED"]
    assert len(w.sent) == 1
    nothing_was_paid_twice(w)


def test_cancelled_by_the_provider_is_sent_again(world: Callable[..., World]) -> None:
    """Rows the provider cancelled on its own are sent again: nobody here asked for it."""
    w = world(rows={1: [Row(Outcome.CANCELLED, "cancelled", billed=False)]}, ends=[End(BatchStatus.CANCELLED)]).run()
    assert w.sent == [[0, 1, 2], [1]]
    assert w.outcomes == ["OK"] * 3


# ------------------------------------------------------------------------------------------------------------- callers


def test_a_crashed_callers_shard_is_taken_over(world: Callable[..., World]) -> None:
    """A shard whose holder died is advanced by any other caller once the lease is over, and by nobody before."""
    w = world()
    assert w.ledger.claim("dead", w.now, 10, "job") is not None
    assert w.caller("second").tick("job") == 0
    w.clock.sleep(10)
    assert w.caller("second").tick("job") > 0


def test_a_long_step_keeps_its_shard(tmp_path: Path) -> None:
    """While an upload takes longer than the lease, the lease is renewed, so nobody else sends the same rows."""
    w = World(tmp_path, url=f"sqlite:///{tmp_path}/ledger.db", deadline_s=10**9)
    w.until("submitting")
    taken: list[object] = []

    def slowly(shard: ShardFile, guard: Guard) -> Batch:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            taken.append(w.ledger.claim("other", clock.now(), 10, "job"))
            time.sleep(0.05)
        return w.provider.submit(shard, guard)

    clock = SystemClock()
    w.front.submit = slowly  # type: ignore[method-assign]
    engine = Engine(w.ledger, w.blobs, lambda _: w.front, clock, holder="slow", pace=Pace(poll_s=60, lease_s=0.6))
    assert engine.tick("job") == 1
    assert len(taken) > 5
    assert not any(taken)
    assert w.states == ["submitted"]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lease")]


def test_a_killed_process_leaves_no_half_blob(world: Callable[..., World], tmp_path: Path) -> None:
    """A process that dies between storing a blob and the ledger leaves a whole blob that nothing refers to, and no harm."""
    w = world()
    put = Blobs.put_stream

    def dies(self: Blobs, pieces: object) -> str:
        put(self, pieces)  # type: ignore[arg-type]
        raise Dead

    w.until("ended")
    w.blobs.put_stream = partial(dies, w.blobs)  # type: ignore[method-assign]
    with pytest.raises(Dead):
        w.step()
    w.blobs = w.engine.blobs = Blobs(tmp_path / "blobs")
    w.clock.sleep(10)
    w.run()
    assert w.outcomes == ["OK"] * 3
    nothing_was_paid_twice(w)


def test_a_run_stops_when_it_is_told_to(world: Callable[..., World]) -> None:
    """`until` ends a run in time; the job goes on from there whenever it is run again."""
    w = world()
    assert not w.engine.run("job", until=w.now + timedelta(seconds=5))
    assert w.states == ["submitted"]
    assert w.engine.run("job")
    assert w.outcomes == ["OK"] * 3


def test_a_usage_that_is_less_than_its_rows_is_not_believed(world: Callable[..., World]) -> None:
    """A batch whose own bill is below the sum of its rows' does not lower what was spent."""
    w = world(rows={1: [LOST]})
    w.until("ended")
    seen = w.provider._seen
    w.provider._seen = lambda batch: replace(seen(batch), usage=Usage(1, 1))  # type: ignore[method-assign]
    w.run()
    assert w.outcomes == ["OK"] * 3


def test_ok_rows_are_all_that_is_used(world: Callable[..., World]) -> None:
    """Money is useful or wasted, and the two are all that was confirmed."""
    w = world(sizes=(4,), rows={1: [failed("length", billed=True)], 2: [LOST], 3: [OK]}).run()
    useful = w.figures["confirmed_micros"] - w.figures["wasted_micros"]
    assert useful > 0
    assert w.figures["wasted_micros"] > 0
    assert w.money == (0, w.billed)
