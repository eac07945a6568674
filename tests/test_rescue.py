"""Rows that would not be back in time move to a tier that answers row by row: none is lost, none is paid for twice unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import repeat
from pathlib import Path

import pytest

from canwait import judging, rescue, settling, views
from canwait.blobs import Blobs
from canwait.db import connect
from canwait.errors import Ambiguous, Busy, CanwaitError, KeyRefused, Unreachable
from canwait.ledger import Ledger
from canwait.lifecycle import CAUSES
from canwait.price import cost_micros, worst_micros
from canwait.providers.wrap import Fault, Faulty
from canwait.settling import Fate, Fates
from canwait.types import Batch, BatchStatus, MarkClass, Outcome, Quality, Usage
from moving import ADAPTER, HOUR_S, SLOW, STANDARD, Moving
from world import LOST, Dead, End, Row, body_of, bounds, failed

SLOWLY = 0.01  # rows a second


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., Moving]:
    return partial(Moving, tmp_path)


def balanced(world: Moving) -> None:
    """Each row ran once, and the ledger says what both bills say, to the micro."""
    assert set(world.executed.values()) == {1}
    assert world.money == (0, world.billed)
    assert world.ledger.check() == []


# ------------------------------------------------------------------------------------------------------ the deadline met


def test_what_would_be_late_is_moved_and_the_deadline_is_met(world: Callable[..., Moving]) -> None:
    """A batch that takes a day is given up in time for its rows to be answered one by one, by the deadline."""
    w = world(sizes=(4, 4), ends=[SLOW, SLOW], rate=SLOWLY, rows_per_s=SLOWLY, micros=1000).run()
    assert w.outcomes == ["OK"] * 8
    assert -HOUR_S < w.late_s < 0
    assert sorted(w.moved) == [[2, 3], [6, 7]]  # the half that was answered while it was cancelled is kept
    balanced(w)


def test_without_a_rescue_the_same_job_is_late(tmp_path: Path) -> None:
    """The scenario of the test above misses its deadline by hours where nothing is moved, and that is told once."""
    w = Moving(tmp_path, sizes=(4, 4), ends=[SLOW, SLOW], moves=False).run()
    assert (w.outcomes, w.moved) == (["OK"] * 8, [])
    assert w.late_s > 10 * HOUR_S
    assert w.told("deadline_missed") == [{"n_open": 2, "at_deadline": None}]
    balanced(w)


def test_nothing_is_moved_while_waiting_is_safe(world: Callable[..., Moving]) -> None:
    """A batch that is back before the latest safe start is waited for and costs what a batch costs."""
    w = world(sizes=(4,), ends=[End(runs_s=3.5 * HOUR_S)]).run()
    assert (w.moved, w.told("rescue")) == ([], [])
    balanced(w)


def test_only_as_many_are_moved_as_the_other_tier_needs(world: Callable[..., Moving]) -> None:
    """Batches are moved one by one, so those that come back meanwhile are not."""
    ends = [End(runs_s=3 * HOUR_S)] * 30 + [SLOW] * 10
    w = world(sizes=(30,) * 40, ends=ends, rate=0.3, rows_per_s=0.3, deadline_s=4 * HOUR_S, micros=100_000).run()
    assert set(w.outcomes) == {"OK"}
    assert w.late_s < 0
    assert 10 <= len(w.told("rescue")) <= 30  # at 3 hours the others came back
    balanced(w)


def test_what_is_not_sent_yet_and_would_be_late_goes_there_at_once(world: Callable[..., Moving]) -> None:
    """A shard that waits for its turn is never sent as a batch that could not be back in time."""
    w = world(
        sizes=(4, 4), ends=[SLOW, SLOW], mark=MarkClass.UNMARKED, rate=SLOWLY, rows_per_s=SLOWLY, micros=1000
    ).run()
    assert (w.sent, sorted(w.moved)) == ([[0, 1, 2, 3]], [[2, 3], [4, 5, 6, 7]])
    assert (w.outcomes, w.late_s < 0) == (["OK"] * 8, True)
    balanced(w)


def test_what_no_batch_was_ever_quick_enough_for_is_not_sent_as_one(world: Callable[..., Moving]) -> None:
    """Where every batch before took hours, a shard with minutes to spare goes to the other tier without a cancel."""
    w = world(sizes=(1,) * 20, ends=[End(runs_s=3 * HOUR_S)] * 20, moves=False, micros=100_000).run()
    w.deadline_s = 2 * HOUR_S
    w.shards = [[body_of(n) for n in range(100, 104)]]
    w.open(micros=100_000, revision=1)
    w.state(True)
    w.run()
    assert w.moved == [[100, 101, 102, 103]]
    assert w.told("rescue")[0]["rows"] == 4
    balanced(w)


def test_what_waits_for_a_canary_moves_after_it(world: Callable[..., Moving]) -> None:
    """Behind a gate the first shard alone is out: it is the one that moves, and nothing passes it by moving."""
    w = world(sizes=(2, 6, 6), ends=[SLOW], rate=SLOWLY, rows_per_s=SLOWLY, micros=10_000)
    gate = Quality(Decimal("0.1"), Decimal("0.9"), "human")
    judging.put_gate(w.ledger, "job", w.ledger.job("job")["plan"], gate, w.now)
    w.run()
    assert w.moved[0] == [1]  # although the others are larger
    first, *others = [*w.net.batches.values(), *w.provider.batches.values()][:1] + [
        batch for batch in (*w.net.batches.values(), *w.provider.batches.values()) if len(batch.bodies) > 2
    ]
    assert first.ends_at <= min(batch.created_at for batch in others)
    assert (w.outcomes, w.late_s < 0) == (["OK"] * 14, True)
    balanced(w)


def test_a_deadline_too_close_for_any_batch_sends_none(world: Callable[..., Moving]) -> None:
    """Where a cancel alone takes longer than there is, rows are asked one by one from the start."""
    w = world(sizes=(4,), deadline_s=300).run()
    assert (w.sent, w.moved) == ([], [[0, 1, 2, 3]])
    balanced(w)


def test_rows_that_are_moved_keep_no_other_batch_from_being_looked_at(world: Callable[..., Moving]) -> None:
    """While the other tier works, and is asked often how far it is, the batches that are still out are moved in their turn."""
    w = world(
        sizes=(10,) * 8,
        ends=[SLOW] * 8,
        deadline_s=6 * HOUR_S,
        rate=SLOWLY,
        rows_per_s=SLOWLY,
        max_rows=10,
        micros=10_000,
    )
    w.provider.finishes, w.provider.cancel_s = 0.0, 590
    w.run()
    assert sum(map(len, w.moved)) == 80
    assert (w.outcomes, w.late_s < 0) == (["OK"] * 80, True)
    balanced(w)


@pytest.mark.parametrize("sizes", [(4,), (4, 4)])
@pytest.mark.parametrize("error", [Busy("429"), Unreachable("no route")])
def test_what_a_provider_never_takes_is_moved(
    world: Callable[..., Moving], sizes: tuple[int, ...], error: CanwaitError
) -> None:
    """While no batch can be created, its rows are answered row by row in time, and held once."""
    w = world(sizes=sizes, faults={"submit": repeat(Fault(lambda: error))}, rate=SLOWLY, rows_per_s=SLOWLY, micros=1000)
    w.run()
    assert (w.sent, w.outcomes, w.late_s < 0) == ([], ["OK"] * sum(sizes), True)
    balanced(w)


def test_what_was_moved_is_reserved_at_the_price_of_its_sending(world: Callable[..., Moving]) -> None:
    """A tier that got dearer while rows waited for it is reserved at its new price, not at the one of their move."""
    w = world(sizes=(4,), deadline_s=300, micros=1000)
    while w.ledger.query("shards", job="job")[-1]["provider"] != ADAPTER:
        w.step()
    dear = replace(STANDARD, input=5 * STANDARD.input, output=5 * STANDARD.output)
    w.state(True, price=dear)
    w.until("submitted")
    assert w.money == (worst_micros([bounds(body_of(n)) for n in range(4)], dear), 0)
    w.state(True)  # cheap again, while rows hold money at the dear price
    w.run()
    assert w.money == (0, sum(cost_micros([u for _, u in w.net.ran(b)], dear) for b in w.net.batches.values()))


def test_without_a_rate_nothing_is_moved(world: Callable[..., Moving]) -> None:
    """Where no rate is stated and no run was seen, nothing can be promised, so nothing is cancelled."""
    w = world(sizes=(4,), ends=[SLOW], rows_per_s=None).run()
    assert (w.moved, w.outcomes) == ([], ["OK"] * 4)


@pytest.mark.parametrize("mark", list(MarkClass))
def test_batches_of_every_class_are_moved(world: Callable[..., Moving], mark: MarkClass) -> None:
    """However a provider's batches are found again, what is unanswered is asked once more, and nothing else."""
    w = world(sizes=(4, 3), ends=[SLOW, SLOW], mark=mark, micros=1000).run()
    assert (w.outcomes, w.late_s < 0) == (["OK"] * 7, True)
    balanced(w)


# ------------------------------------------------------------------------------------------------------ money and limits


def test_the_redo_is_held_beside_the_batch_until_that_has_ended(world: Callable[..., Moving]) -> None:
    """From the decision on both copies are held at worst case; what the redo does not need is free when the batch has ended."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    held = []
    w.provider.cancel_s = 300
    while w.states != ["settled", "settled"]:
        w.step()
        held.append((w.told("rescue") != [], w.states, w.money[0]))
    both, own = w.worst(0, 1, 2, 3) + w.redo(0, 1, 2, 3), w.worst(0, 1, 2, 3)
    assert {h for moving, states, h in held if not moving and states != ["planned"]} == {own}
    assert {h for moving, states, h in held if moving and states == ["submitted"]} == {both}
    assert [h for _, states, h in held if states == ["settled", "planned"]] == [w.redo(2, 3)]
    assert {h for _, states, h in held if states in (["settled", "submitting"], ["settled", "submitted"])} == {
        w.redo(2, 3)
    }
    balanced(w)


def test_a_budget_with_room_for_both_and_not_one_micro_more_is_enough(world: Callable[..., Moving]) -> None:
    """What was held for the redo is carried over to it: it is not reserved a second time."""
    w = world(sizes=(4,), ends=[SLOW], micros=1)
    w.ledger.set_budget("job:job", micros=w.worst(0, 1, 2, 3) + w.redo(0, 1, 2, 3), tokens=None, now=w.now)
    w.run()
    assert (w.outcomes, w.late_s < 0) == (["OK"] * 4, True)
    balanced(w)


@pytest.mark.parametrize("budget", ["job:job", "project:team", "month:2026-11"])
def test_without_room_for_the_redo_nothing_is_cancelled_and_it_is_told_once(
    world: Callable[..., Moving], budget: str
) -> None:
    """A redo that any budget above it has no room for is not begun: the batch is waited for, late, and one event says so."""
    w = world(sizes=(4, 4), ends=[SLOW, SLOW], micros=1000)
    limit = w.worst(*range(8)) + w.redo(0, 1, 2, 3) - 1
    w.ledger.set_budget(budget, micros=limit, tokens=None, now=w.now)
    w.run()
    assert (w.provider.seen["cancel"], w.moved, w.outcomes) == (0, [], ["OK"] * 8)
    assert [t["rows"] for t in w.told("rescue_refused")] == [4]
    assert len(w.told("deadline_missed")) == 1
    balanced(w)


def test_a_smaller_shard_is_moved_where_the_larger_has_no_room(world: Callable[..., Moving]) -> None:
    """Room for one redo is used by the shard it is enough for."""
    w = world(sizes=(6, 2), ends=[SLOW, SLOW], micros=1000)
    w.ledger.set_budget("month", micros=w.worst(*range(8)) + w.redo(6, 7), tokens=None, now=w.now)
    w.run(most_s=4 * HOUR_S)
    assert w.moved == [[7]]
    w.run()
    balanced(w)


def test_a_frozen_budget_moves_nothing(world: Callable[..., Moving]) -> None:
    """What a person must look at first is not reserved in."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    w.until("submitted")
    with w.ledger.db.transaction("freeze") as tx:
        tx.run("budget_freeze", id="job:job", why="a test")
    w.run()
    assert (w.moved, len(w.told("rescue_refused"))) == ([], 1)


def test_the_redo_is_cut_by_what_the_other_tier_takes(world: Callable[..., Moving]) -> None:
    """Shards there are as large as its limits allow, each rounded up for itself, and all of them on what is held."""
    w = world(sizes=(10,), ends=[SLOW], micros=1, max_rows=2)
    w.provider.finishes = 0.1
    adapter_shards = 5
    w.ledger.set_budget(
        "job:job", micros=w.worst(*range(10)) + w.redo(*range(10)) + adapter_shards - 1, tokens=None, now=w.now
    )
    w.run()
    assert sorted(len(rows) for rows in w.moved) == [1, 2, 2, 2, 2]
    assert w.outcomes == ["OK"] * 10
    assert w.ledger.check() == []


def test_both_tiers_settle_at_their_own_price(world: Callable[..., Moving]) -> None:
    """What was answered by the batch costs the batch's rate, what was moved the other's."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000).run()
    by = {s["provider"]: s["confirmed_micros"] for s in w.ledger.query("shards", job="job")}
    assert by[ADAPTER] * 10 > by["fake"] * 17  # twice the rate for as many rows, each sum rounded up
    assert sum(by.values()) == w.billed


# ------------------------------------------------------------------------------------------------- the cancel misbehaves


@pytest.mark.parametrize("finishes", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lag_s", [1, 590])
def test_rows_that_finish_while_the_batch_is_cancelled_are_kept(
    world: Callable[..., Moving], finishes: float, lag_s: int
) -> None:
    """A cancel that takes ten minutes answers some rows first: these are harvested and never asked again."""
    w = world(sizes=(8,), ends=[SLOW], micros=1000)
    w.provider.cancel_s, w.provider.finishes = lag_s, finishes
    w.run()
    n_kept = int(8 * finishes)
    assert w.moved == ([[*range(n_kept, 8)]] if n_kept < 8 else [])
    assert (w.outcomes, w.late_s < 0) == (["OK"] * 8, True)
    balanced(w)


def test_a_cancel_that_is_not_heard_is_repeated(world: Callable[..., Moving]) -> None:
    """Until the batch has ended it is asked to stop at every poll, and its copy stays held."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    w.provider.deaf = 5
    w.run()
    assert w.provider.seen["cancel"] > 5
    assert w.moved == [[2, 3]]
    balanced(w)


@pytest.mark.parametrize("error", [Ambiguous("504"), Busy("429")])
@pytest.mark.parametrize("heard", [True, False])
def test_a_cancel_whose_reply_is_lost_changes_nothing(
    world: Callable[..., Moving], error: Exception, heard: bool
) -> None:
    """Whether a lost cancel was heard is seen at the next poll; it is asked again while the batch runs."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000, faults={"cancel": [Fault(lambda: error, after=heard)] * 3})
    w.run()
    assert (w.outcomes, w.moved) == (["OK"] * 4, [[2, 3]])
    balanced(w)


def test_cancels_that_are_never_answered_do_not_keep_the_end_from_being_seen(world: Callable[..., Moving]) -> None:
    """A batch that ends by itself while its cancels fail is harvested whole, and what was held for its redo is free."""
    faults = {"cancel": [Fault(lambda: Ambiguous("504"))] * 10_000}
    w = world(sizes=(4,), ends=[End(runs_s=3.9 * HOUR_S)], micros=1000, faults=faults).run()
    assert (w.outcomes, w.moved, len(w.told("rescue"))) == (["OK"] * 4, [], 1)
    balanced(w)


def test_a_key_that_is_missing_for_the_other_tier_cancels_nothing(
    world: Callable[..., Moving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the other tier cannot be asked at all, the batch is not given up for it."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    opened = w.engine._provider_of

    def refuses(adapter: str) -> object:
        if adapter == ADAPTER:
            raise KeyRefused(provider="fake", variable="FAKE_KEY", why="it is not set")
        return opened(adapter)

    monkeypatch.setattr(w.engine, "_provider_of", refuses)
    w.run()
    assert (w.provider.seen["cancel"], w.outcomes, len(w.told("rescue_refused"))) == (0, ["OK"] * 4, 1)


# ----------------------------------------------------------------------------------------------------------- crashes


WRITES = (
    "state_fallback",
    "rescue",
    "polled",
    "ended",
    "fetched",
    "settle",
    "begin_submit",
    "begin_try",
    "sending",
    "submitted",
)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("where", [f"{when} {write}" for write in WRITES[1:] for when in ("before", "after")])
def test_a_crash_at_any_write_of_a_move_changes_nothing(world: Callable[..., Moving], where: str, nth: int) -> None:
    """Whoever comes after a crash finds in the ledger what is to be done: the same rows are answered, at the same cost."""
    w = world(sizes=(4, 2), ends=[SLOW, SLOW], micros=1000)
    seen, moving = 0, False

    def kill(here: str) -> None:
        nonlocal seen, moving
        moving = moving or here.endswith("rescue")
        if here == where and moving:
            seen += 1
            if seen == nth:
                raise Dead(where)

    w.ledger.db.fault = kill
    while True:
        try:
            w.run()
            break
        except Dead:
            w.engine = w.caller("second")
    assert (w.outcomes, w.late_s < 0, sorted(w.moved)) == (["OK"] * 6, True, [[2, 3], [5]])
    balanced(w)


def test_two_callers_move_a_shard_once(tmp_path: Path, ledger_url: str) -> None:
    """Two processes that look at one job at the same time hold the redo once, and ask for its rows once."""
    w = Moving(tmp_path, sizes=(4, 4, 4), ends=[SLOW] * 3, micros=10_000, url=ledger_url)
    other = Moving.__new__(Moving)
    other.__dict__ |= w.__dict__
    other.ledger = Ledger(connect(ledger_url))
    other.blobs = Blobs(tmp_path / "blobs")
    other.engine = other.caller("second")
    while w.ledger.next_due("job")[1]:
        for caller in (w, other):
            if shard := caller.ledger.claim(caller.engine.holder, w.now, 10, "job"):
                caller.engine.advance(shard)
        due, _ = w.ledger.next_due("job")
        w.clock.at = max(w.now, due or w.now)
    assert (w.outcomes, len(w.told("rescue"))) == (["OK"] * 12, 3)
    assert w.ledger.check() == []
    assert set(w.executed.values()) == {1}
    assert w.money == (0, w.billed)
    other.ledger.close()
    w.ledger.close()


def test_a_stale_caller_marks_nothing_that_has_ended(world: Callable[..., Moving]) -> None:
    """A shard that ended since the decision was made is left as it is, and nothing is held for it."""
    w = world(sizes=(4,), micros=1000).run()
    shard = w.ledger.query("shards", job="job")[0]["id"]
    before = w.money
    with w.ledger.db.transaction("rescue") as tx:
        assert tx.count("shard_move_on", id=shard, at=0, micros=5, tokens=5) == 0
    assert w.money == before


# --------------------------------------------------------------------------------------------------- what rows become


def test_a_rescue_is_no_attempt(world: Callable[..., Moving]) -> None:
    """Rows that a cancelled batch did not come to are asked even where each row may be sent once."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000, attempts=1).run()
    assert (w.outcomes, w.moved) == (["OK"] * 4, [[2, 3]])
    assert {s["attempt"] for s in w.ledger.query("shards", job="job")} == {1}


def test_rows_that_failed_in_the_batch_go_on_counting(world: Callable[..., Moving]) -> None:
    """An error before the cancel is an attempt as ever; the row is asked again on the other tier while attempts last."""
    rows = {0: [failed("server_error")], 1: [failed("invalid_request")]}
    w = world(sizes=(4,), ends=[SLOW], micros=1000, rows=rows).run()
    assert (w.outcomes, w.moved) == (["OK", "FAILED", "OK", "OK"], [[2, 3], [0]])
    assert [s["attempt"] for s in w.ledger.query("shards", job="job")] == [1, 1, 2]


def test_what_a_cancelled_batch_bills_for_nothing_is_reported(world: Callable[..., Moving]) -> None:
    """A row that ran and never came back is paid once more: the ledger says how much, as wasted, and of which shard."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000, rows={0: [LOST]}).run()
    assert w.executed == {0: 2, 1: 1, 2: 1, 3: 1}
    assert w.outcomes == ["OK"] * 4
    shards = w.ledger.query("plan_money", job="job", plan=w.ledger.job("job")["plan"])
    twice = [shard for shard in shards if shard["twice_micros"]]
    assert [t["provider"] for t in twice] == ["fake"]
    settled = [t for t in w.told("settled") if t.get("paid_twice_micros")]
    assert settled[0]["paid_twice_micros"] == twice[0]["twice_micros"] > 0
    assert twice[0]["twice_micros"] <= w.figures["wasted_micros"]
    assert w.money == (0, w.billed)


def test_what_a_cancelled_batch_may_have_billed_stays_held(world: Callable[..., Moving]) -> None:
    """Where the batch states no bill, a row that never came back may have been paid: its worst case is unknown, and held."""
    silent = replace(SLOW, states_usage=False)
    w = world(sizes=(4,), ends=[silent], micros=1000, rows={0: [LOST]})
    w.provider.cancel = partial(_cancel_silently, w)  # type: ignore[method-assign]
    w.run()
    assert w.outcomes == ["OK"] * 4
    assert w.figures["unknown_micros"] == w.worst(0)
    assert w.money[1] <= w.billed <= sum(w.money)


def _cancel_silently(w: Moving, batch_id: str) -> None:
    type(w.provider).cancel(w.provider, batch_id)
    w.provider.ending[batch_id] = End(BatchStatus.CANCELLED, states_usage=False)


def test_a_batch_that_expires_on_its_move_is_moved_all_the_same(world: Callable[..., Moving]) -> None:
    """However a batch ends that was given up, what it did not answer is asked on the other tier."""
    ends = [End(BatchStatus.EXPIRED, runs_s=3.9 * HOUR_S)]
    expired = Row(Outcome.EXPIRED, "expired", billed=False)
    faults = {"cancel": [Fault(lambda: Ambiguous("504"))] * 10_000}
    w = world(sizes=(4,), ends=ends, micros=1000, rows={3: [expired]}, faults=faults, attempts=1).run()
    assert (w.outcomes, w.moved) == (["OK"] * 4, [[3]])
    balanced(w)


def test_after_a_persons_cancel_nothing_is_moved(world: Callable[..., Moving]) -> None:
    """A job that was cancelled while a shard is on its move asks for nothing more, and what was held for it is free."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    while not w.told("rescue"):
        w.step()
    w.ledger.cancel_job("job", w.now)
    w.run()
    assert (w.moved, w.outcomes) == ([], ["OK", "OK", "CANCELLED", "CANCELLED"])
    balanced(w)


def test_a_moved_shard_that_is_not_sent_by_the_deadline_gives_its_money_back(world: Callable[..., Moving]) -> None:
    """What is carried over to a redo that comes too late is free again."""
    unreachable = [Fault(lambda: Busy("429"))] * 100_000
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    opened, net = w.engine._provider_of, Faulty(w.net, {"submit": unreachable})
    w.engine._provider_of = lambda adapter: net if adapter == ADAPTER else opened(adapter)  # type: ignore[assignment,return-value]
    w.run()
    assert w.outcomes == ["OK", "OK", "EXPIRED", "EXPIRED"]
    assert len(w.told("deadline_missed")) == 1
    assert w.money == (0, w.billed)


@pytest.mark.parametrize("cause", sorted(CAUSES))
def test_only_rows_that_were_cut_off_are_moved_for_nothing(cause: str) -> None:
    """Of an ended batch on its move, a row is moved without an attempt only if the batch did not come to it."""
    fates = Fates(2)
    fates[0] = Fate(Outcome.OK, None, None, "stated")
    fates[1] = Fate(Outcome.FAILED, cause, None, "nothing")
    verdict = settling.decide(fates, _ended(), attempt=1, attempts=1, sending=True, moving=True)
    assert verdict.moved == ()
    fates[1] = Fate(Outcome.CANCELLED, "cancelled", None, "nothing")
    verdict = settling.decide(fates, _ended(), attempt=1, attempts=1, sending=True, moving=True)
    assert (verdict.moved, verdict.again, verdict.outcomes) == ((1,), (), bytes([Outcome.OK, Outcome.PENDING]))
    assert settling.decide(fates, _ended(), attempt=1, attempts=1, sending=False, moving=True).moved == ()


def _ended() -> Batch:
    return Batch("b", BatchStatus.CANCELLED, datetime(2026, 11, 1, tzinfo=UTC), usage=Usage(1, 1))


# ------------------------------------------------------------------------------------------------------ the job file


def test_a_rescue_that_is_stated_later_holds_for_what_is_out(world: Callable[..., Moving]) -> None:
    """A job file that names a rescue by now has it for shards that are out already."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000, moves=False)
    w.until("submitted")
    w.state(True)
    w.run()
    assert (w.outcomes, w.moved) == (["OK"] * 4, [[2, 3]])
    balanced(w)


def test_a_rescue_that_is_taken_back_still_settles_what_is_on_its_way(world: Callable[..., Moving]) -> None:
    """Shards that were moved before the job file changed its mind are finished there, at that price."""
    w = world(sizes=(4,), ends=[SLOW], micros=1000)
    while not w.told("rescue"):
        w.step()
    w.state(False)
    w.run()
    assert (w.outcomes, w.moved) == (["OK"] * 4, [[2, 3]])
    balanced(w)


def test_saying_the_same_again_writes_nothing(world: Callable[..., Moving]) -> None:
    """A run that goes on with an unchanged job file changes no terms."""
    w = world(sizes=(4,))
    n = len(w.kinds())
    w.state(True)
    assert len(w.kinds()) == n


@pytest.mark.parametrize(("word", "n_open"), [("load_without", 1), ("last_publication", 1), ("fail", 1)])
def test_what_is_out_at_the_deadline_is_stopped_and_harvested(
    world: Callable[..., Moving], word: str, n_open: int
) -> None:
    """Where the job file says what is done at the deadline, nothing is waited for: finished rows are kept, the others end."""
    w = world(sizes=(4, 3), ends=[SLOW, End()], moves=False, at_deadline=word).run()
    assert w.outcomes == ["OK", "OK", "CANCELLED", "CANCELLED", "OK", "OK", "OK"]
    assert w.told("deadline_missed") == [{"n_open": n_open, "at_deadline": word}]
    assert w.ledger.job("job")["given_up"] == word
    balanced(w)


def test_a_paused_job_ends_at_its_deadline_too(world: Callable[..., Moving]) -> None:
    """What the job file says is done at the deadline is done to shards that a pause keeps from being sent."""
    w = world(sizes=(4, 3), ends=[SLOW], mark=MarkClass.UNMARKED, moves=False, at_deadline="load_without", micros=20)
    w.until("submitted")
    w.ledger.pause_job("job", "out of credit", w.now)
    w.run()
    assert w.outcomes == ["OK", "OK", "CANCELLED", "CANCELLED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert w.money == (0, w.billed)


def test_a_job_that_is_done_in_time_misses_nothing(world: Callable[..., Moving]) -> None:
    """What is done at a deadline is done to no job that met it, even if somebody looks at it later."""
    w = world(sizes=(4,), moves=False, at_deadline="fail").run()
    rescue.missed(w.ledger, "job", w.now)
    assert (w.told("deadline_missed"), w.ledger.job("job")["given_up"]) == ([], None)


def test_a_batch_that_ended_before_the_deadline_and_is_seen_after_it_is_in_time(world: Callable[..., Moving]) -> None:
    """Nothing is given up over the seconds between two polls."""
    w = world(sizes=(4,), ends=[End(runs_s=4 * HOUR_S - 1)], moves=False, at_deadline="fail").run()
    assert (w.told("deadline_missed"), w.outcomes) == ([], ["OK"] * 4)


def test_the_figures_say_what_was_given_up(world: Callable[..., Moving]) -> None:
    """Views tell a job that loads nothing from one that does, and new work takes it back."""
    w = world(sizes=(4,), ends=[SLOW], moves=False, at_deadline="fail").run()
    job = w.ledger.job("job")
    assert job["given_up"] == "fail"
    assert job["missed_us"] == job["deadline_us"]
    assert views.count_rows(w.ledger, "job", job["plan"])[Outcome.OK] == 2
    with w.ledger.db.transaction("again") as tx:
        tx.run("job_uncancel", name="job")
    assert w.ledger.job("job")["given_up"] is None
