"""The ledger on both databases: what each method promises, and that a refused one has written nothing."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from canwait.db import connect
from canwait.errors import BudgetExceeded, BudgetFrozen, Crowded, InvalidMove, LeaseLost, LedgerError, NotFound
from canwait.ledger import Ledger
from canwait.types import BatchStatus, Event, JobState, MarkClass, Outcome, Shard, ShardState
from opened import (
    LIMITS,
    NOW,
    after,
    claimed,
    dump,
    money,
    new_shard,
    over,
    plan_of,
    raw,
    reserved,
    running,
    sent,
    settlement,
    state,
)

S = ShardState
B = MarkClass.FINDABLE


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(connect(ledger_url))
    yield ledger
    assert ledger.check() == []  # whatever a test did, the books balance
    ledger.close()


@pytest.fixture
def opened(ledger: Ledger) -> Ledger:
    """One job of one shard: 3 rows, at most 100 micros and 90 tokens, under a limit of 1,000 micros."""
    ledger.open_plan(plan_of(new_shard("s1")), NOW)
    return ledger


def kinds(ledger: Ledger, job: str | None = None) -> list[str]:
    return [event.kind for event in ledger.events(job=job)]


def vector(ledger: Ledger, shard: str) -> list[Outcome]:
    return [Outcome(byte) for byte in zlib.decompress(ledger.shard_row(shard)["vector"])]


# ------------------------------------------------------------------------------------------------------------- plans


def test_a_plan_opened_twice_is_opened_once(ledger: Ledger) -> None:
    """Opening the plan that is open already adds no shard and no event; only the deadline is the new one."""
    plan = plan_of(new_shard("s1"), new_shard("s2"))
    assert ledger.open_plan(plan, NOW)
    assert ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2"), deadline=after(5)), NOW)

    assert [s["id"] for s in ledger.query("shards", job="job")] == ["s1", "s2"]
    assert kinds(ledger) == ["plan_opened"]
    assert ledger.job("job")["deadline_us"] == int(after(5).timestamp()) * 1_000_000


def test_a_planner_that_saw_an_older_job_opens_nothing(ledger: Ledger, ledger_url: str) -> None:
    """Two planners of one job cannot both open their next plan: the second one's reuse would be out of date."""
    assert ledger.open_plan(plan_of(new_shard("s1")), NOW)
    assert ledger.open_plan(plan_of(new_shard("s2"), digest="two", revision=1), NOW)
    before = dump(ledger_url)

    assert not ledger.open_plan(plan_of(new_shard("s3"), digest="three", revision=1), NOW)
    assert not ledger.open_plan(plan_of(new_shard("s4"), job="new", revision=3), NOW)
    assert dump(ledger_url) == before


def test_a_plan_seen_before_answers_from_its_old_shards(ledger: Ledger) -> None:
    """Going back to an older plan of a job opens none of its shards a second time."""
    ledger.open_plan(plan_of(new_shard("s1")), NOW)
    ledger.open_plan(plan_of(new_shard("s2"), digest="two", revision=1), NOW)
    assert ledger.open_plan(plan_of(new_shard("s1"), revision=2), NOW)

    assert ledger.job("job")["plan"] == "digest"
    assert len(ledger.query("shards", job="job")) == 2


def test_a_new_plan_of_a_cancelled_job_runs(opened: Ledger) -> None:
    """A job that was given up is taken up by its next plan, and only by that."""
    opened.cancel_job("job", NOW)
    opened.open_plan(plan_of(new_shard("s1")), NOW)
    assert opened.job("job")["cancelled"]
    opened.open_plan(plan_of(new_shard("s2"), digest="two", revision=1), NOW)
    assert not opened.job("job")["cancelled"]


def test_rows_sent_again_are_opened_once(opened: Ledger) -> None:
    """Asking twice to send the same rows again opens one shard, and the job is not cancelled or paused any more."""
    opened.settle(over(opened), settlement([Outcome.OK, Outcome.FAILED, Outcome.FAILED]), NOW)
    opened.cancel_job("job", NOW)
    opened.pause_job("job", "out of credit", NOW)
    for name in ("s1-again", "s1-other"):
        opened.add_shards("job", [(new_shard(name, root="s1", attempt=2, n_lines=2), [1, 2])], "a person asked", NOW)

    row = opened.job("job")
    assert [s["id"] for s in opened.query("shards", job="job")] == ["s1", "s1-again"]
    assert vector(opened, "s1") == [Outcome.OK, Outcome.PENDING, Outcome.PENDING]
    assert (row["cancelled"], row["paused"], row["state"]) == (0, None, "in_progress")


def test_an_answered_row_is_never_sent_again(opened: Ledger, ledger_url: str) -> None:
    """A shard that would ask for a row that is OK is not opened, even when a person asks."""
    opened.settle(over(opened), settlement([Outcome.OK, Outcome.FAILED, Outcome.FAILED]), NOW)
    before = dump(ledger_url)
    opened.add_shards("job", [(new_shard("s1-again", root="s1", attempt=2, n_lines=2), [0, 1])], "a person asked", NOW)
    assert dump(ledger_url) == before


# ----------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("tight", ["job:job", "project:team", "month:2026-11"])
@pytest.mark.parametrize("unit", ["micros", "tokens"])
def test_every_budget_above_a_job_can_refuse_it(ledger: Ledger, ledger_url: str, tight: str, unit: str) -> None:
    """A reservation stands in all nested budgets or in none, and each refuses in money as in tokens, by name."""
    ledger.open_plan(plan_of(new_shard("s1", worst=100), micros=None), NOW)
    limit: dict[str, int | None] = {"micros": None, "tokens": None} | {unit: 99 if unit == "micros" else 89}
    ledger.set_budget(tight, **limit, now=NOW)
    shard = claimed(ledger)
    before = dump(ledger_url)

    with pytest.raises(BudgetExceeded) as refused:
        ledger.begin_submit(shard, LIMITS, B, NOW)

    assert refused.value.fields["budget"] == tight
    assert refused.value.exit_code == 5
    assert dump(ledger_url)["budget"] == before["budget"]
    assert dump(ledger_url)["entry"] == []
    assert dump(ledger_url)["intent"] == []
    assert state(ledger, shard) is S.PLANNED

    ledger.set_budget(tight, **{u: n + 1 if n else None for u, n in limit.items()}, now=NOW)
    ledger.begin_submit(shard, LIMITS, B, NOW)
    assert [money(ledger, b) for b in ("job:job", "project:team", "month:2026-11")] == [(100, 0)] * 3


def test_a_budget_admits_the_last_micro_and_not_one_more(ledger: Ledger) -> None:
    """A limit is exact: two shards of 100 fit into 200, and into 199 only one."""
    ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2"), micros=200), NOW)
    for _ in range(2):
        reserved(ledger)
    assert money(ledger) == (200, 0)

    ledger.open_plan(plan_of(new_shard("t1"), new_shard("t2"), job="other", micros=199), NOW)
    first, second = claimed(ledger, job="other"), claimed(ledger, job="other")
    ledger.begin_submit(first, LIMITS, B, NOW)
    with pytest.raises(BudgetExceeded, match=r"needs \$0\.000100; \$0\.000099 of \$0\.000199 are free in job:other"):
        ledger.begin_submit(second, LIMITS, B, NOW)


def test_a_limit_on_the_month_holds_in_the_month_that_has_begun(opened: Ledger) -> None:
    """`month` limits every month from this one on: a later one, and this one although it was reserved in already."""
    reserved(opened)
    opened.set_budget("month:2026-10", micros=5, tokens=None, now=NOW)
    opened.set_budget("month", micros=150, tokens=None, now=NOW)
    limits = {row["id"]: row["limit_micros"] for row in opened.query("budgets")}
    assert (limits["month:2026-10"], limits["month:2026-11"]) == (5, 150)

    in_december = after(40 * 86_400)
    opened.open_plan(plan_of(new_shard("s2", worst=151), digest="two", revision=1), NOW)
    with pytest.raises(BudgetExceeded, match="month:2026-12"):
        opened.begin_submit(opened.claim_one("s2", "caller", in_december, 10), LIMITS, B, in_december)


def test_settling_goes_to_the_month_that_was_reserved_in(opened: Ledger) -> None:
    """Money held in November is settled and released there, also when its batch ends in December."""
    shard = over(opened)
    opened.settle(shard, settlement(confirmed=40), after(40 * 86_400))
    assert money(opened, "month:2026-11") == (0, 40)
    assert not opened.query("budget", id="month:2026-12")


def test_a_booked_cost_leaves_that_much_less(opened: Ledger) -> None:
    """A cost booked by hand stands in every budget above the job, even past its limit, and nothing is free after it."""
    opened.book("job", 950, "labelling store", NOW)
    with pytest.raises(BudgetExceeded):
        opened.begin_submit(claimed(opened), LIMITS, B, NOW)
    opened.book("job", 100, "people's hours", NOW)

    assert [money(opened, b) for b in ("job:job", "project:team", "month:2026-11")] == [(0, 1050)] * 3
    assert opened.query("booked", budget="job:job")[0]["micros"] == 1050
    with pytest.raises(NotFound):
        opened.book("nobody", 1, "nothing", NOW)


def test_a_bill_above_its_reservation_is_recorded_and_freezes_the_budgets(opened: Ledger) -> None:
    """The bill stands as it is, every budget it passed through is frozen by name, and only a person thaws it."""
    opened.settle(over(opened), settlement(confirmed=140), NOW)
    assert money(opened) == (0, 140)
    frozen = {row["id"]: row["frozen"] for row in opened.query("budgets")}
    assert all(
        "was billed $0.000140 against $0.000100" in frozen[b] for b in ("job:job", "project:team", "month:2026-11")
    )

    opened.open_plan(plan_of(new_shard("s2"), digest="two", revision=1), NOW)
    shard = claimed(opened)
    with pytest.raises(BudgetFrozen, match="job:job is frozen"):
        opened.begin_submit(shard, LIMITS, B, NOW)
    for budget in ("job:job", "project:team", "month:2026-11"):
        opened.thaw(budget, NOW)
    opened.begin_submit(shard, LIMITS, B, NOW)
    with pytest.raises(NotFound):
        opened.thaw("job:job", NOW)


def test_a_person_says_what_lost_rows_were_billed(opened: Ledger, ledger_url: str) -> None:
    """Unknown money is settled once by a person's word: so much was wasted, the rest is free again."""
    opened.settle(over(opened), settlement(confirmed=40, unknown=25), NOW)
    opened.resolve_billed("s1", 10, NOW)
    assert money(opened) == (0, 50)
    figures = opened.query("job_money", job="job")[0]
    assert (figures["confirmed_micros"], figures["wasted_micros"], figures["unknown_micros"]) == (50, 10, 0)
    before = dump(ledger_url)
    with pytest.raises(NotFound):
        opened.resolve_billed("s1", 10, NOW)
    assert dump(ledger_url) == before


def test_a_word_above_what_was_held_freezes_a_limit_that_it_passes(opened: Ledger) -> None:
    """A bill is recorded as it is also when a person states it, and a limit passed by it is frozen."""
    opened.settle(over(opened), settlement(confirmed=40, unknown=25), NOW)
    opened.resolve_billed("s1", 1000, NOW)
    assert money(opened) == (0, 1040)
    assert opened.query("budget", id="job:job")[0]["frozen"]
    assert opened.query("budget", id="project:team")[0]["frozen"] is None


def test_tokens_above_the_reservation_freeze_too(opened: Ledger) -> None:
    """A bill of more tokens than were held freezes the budgets, whatever it cost."""
    opened.settle(over(opened), settlement(confirmed=40, tokens=91), NOW)
    assert opened.query("budget", id="job:job")[0]["frozen"]


def test_what_may_have_been_billed_stays_held(opened: Ledger) -> None:
    """Money whose bill is not provable stays held when the rest is released, and never more than was held."""
    opened.settle(over(opened), settlement(confirmed=40, unknown=25), NOW)
    assert money(opened) == (25, 40)
    assert opened.query("job_money", job="job")[0]["unknown_micros"] == 25


def reserve_at_once(callers: list[Ledger]) -> tuple[int, int]:
    """Each caller reserves 100 micros at the same moment, under a limit of 350: how many were granted, and what is held."""
    callers[0].open_plan(plan_of(*(new_shard(f"s{i}") for i in range(8)), micros=350), NOW)
    shards = [claimed(callers[0]) for _ in callers]
    start = threading.Barrier(len(callers))
    granted = []

    def reserve(caller: Ledger, shard: Shard) -> None:
        start.wait()
        with suppress(BudgetExceeded):
            caller.begin_submit(shard, LIMITS, B, NOW)
            granted.append(shard.id)

    threads = [threading.Thread(target=reserve, args=pair) for pair in zip(callers, shards, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert callers[0].check() == []
    return len(granted), money(callers[0])[0]


@pytest.fixture
def eight(ledger_url: str) -> Iterator[list[Ledger]]:
    callers = [Ledger(connect(ledger_url)) for _ in range(8)]
    yield callers
    for caller in callers:
        caller.close()


def test_two_callers_cannot_both_have_the_last_money(eight: list[Ledger]) -> None:
    """Eight connections reserve at once under one limit: exactly as many succeed as fit."""
    assert reserve_at_once(eight) == (3, 300)


def test_it_is_the_compare_and_swap_that_holds_the_limit(eight: list[Ledger]) -> None:
    """Take the condition out of the reservation, and on either database the same eight pass the limit."""
    for caller in eight:
        sql = caller.db._statements["budget_reserve"]
        caller.db._statements["budget_reserve"] = sql[: sql.index("AND frozen")]
    assert reserve_at_once(eight) == (8, 800)


# ---------------------------------------------------------------------------------------------------------- claiming


def test_a_shard_has_one_holder_until_its_lease_ends(opened: Ledger) -> None:
    """A claimed shard is given to nobody else before its lease is over, and then with a higher fence."""
    first = claimed(opened, lease_s=10)
    assert opened.claim("other", after(9.9), 10, "job") is None
    with pytest.raises(LeaseLost):
        opened.claim_one("s1", "other", after(9.9), 10)
    second = opened.claim("other", after(10), 10, "job")
    assert second is not None
    assert second.fence > first.fence


def test_a_lease_is_renewed_only_while_it_lasts(opened: Ledger) -> None:
    """A caller that slept past its lease cannot hold on to the shard, even when nobody has taken it."""
    shard = claimed(opened, lease_s=10)
    opened.renew(shard, after(9), 10)
    assert opened.claim("other", after(18), 10) is None
    with pytest.raises(LeaseLost):
        opened.renew(shard, after(19), 10)


def test_a_paused_job_sends_nothing_and_finishes_what_is_on_its_way(ledger: Ledger) -> None:
    """While a job is paused its planned shards are not due; those at the provider are."""
    ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2")), NOW)
    ledger.wait(sent(ledger), NOW, None, NOW)
    ledger.pause_job("job", "out of credit", NOW)
    assert claimed(ledger).id == "s1"
    assert ledger.claim("other", NOW, 10) is None
    assert ledger.next_due("job")[1] == 1

    ledger.resume_job("job", NOW)
    assert claimed(ledger).id == "s2"


def test_the_longest_due_shard_comes_first(ledger: Ledger) -> None:
    """Shards are claimed in the order in which they fell due, none before, and `next_due` says when the next one is."""
    ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2")), NOW)
    ledger.wait(claimed(ledger), after(60), "a limit", NOW)
    ledger.wait(claimed(ledger), after(30), None, NOW)
    assert ledger.claim("caller", after(29), 10) is None
    assert ledger.next_due() == (after(30), 2)
    assert [claimed(ledger, at=after(60)).id for _ in range(2)] == ["s2", "s1"]
    assert ledger.next_due("nobody") == (None, 0)


# ----------------------------------------------------------------------------------------------------- submitting once


def test_a_token_is_safe_everywhere_and_the_same_for_ever(opened: Ledger, ledger_url: str) -> None:
    """The mark is a function of ledger, job, shard, attempt and payload, so that a restored backup finds its batches."""
    shard = opened.shard("s1")
    token = opened.token(shard)
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,40}", token)
    again = Ledger(connect(ledger_url))
    assert again.token(shard) == token
    again.close()


def test_intent_and_reservation_stand_or_fall_together(opened: Ledger, ledger_url: str) -> None:
    """The money, the intent and the state appear in one transaction: none of them before, all of them after."""
    shard = claimed(opened)

    def die(where: str) -> None:
        raise RuntimeError(where)

    before = dump(ledger_url)
    opened.db.fault = die
    with pytest.raises(RuntimeError, match="before begin_submit"):
        opened.begin_submit(shard, LIMITS, B, NOW)
    assert dump(ledger_url) == before

    opened.db.fault = lambda where: None
    token = opened.begin_submit(shard, LIMITS, B, NOW)
    intent, absent = opened.intent(token)
    assert (intent.tries, intent.open, absent) == (0, False, False)
    assert (state(opened, "s1"), money(opened)) == (S.SUBMITTING, (100, 0))


def test_a_try_is_open_until_something_proves_its_fate(opened: Ledger) -> None:
    """Beginning a try opens the intent; the batch's name or its certain absence closes it."""
    shard = reserved(opened)
    token = shard.token or ""
    opened.begin_try(shard, "acct", 10, NOW)
    assert opened.intent(token)[0].open
    assert opened.query("job_money", job="job")[0]["unknown_micros"] == 100

    opened.not_arrived(shard, NOW, "connection refused", NOW)
    assert (opened.intent(token)[0].open, money(opened)) == (False, (100, 0))

    shard = claimed(opened)
    opened.begin_try(shard, "acct", 10, after(5))
    opened.submitted(shard, running("b1"), NOW, "accepted", NOW)
    intent, _ = opened.intent(token)
    assert (intent.tries, intent.open, intent.first_try, intent.last_try) == (2, False, NOW, after(5))
    assert opened.shard("s1").batch_id == "b1"


def test_the_settle_wait_counts_from_the_create_and_not_from_the_upload(opened: Ledger) -> None:
    """A create that leaves long after its try began moves the last try; one whose lease is over may not leave."""
    shard = reserved(opened)
    opened.begin_try(shard, "acct", 10, NOW)
    opened.renew(shard, after(9), 200)
    opened.sending(shard, 10, after(150))
    intent, _ = opened.intent(shard.token or "")
    assert (intent.tries, intent.last_try) == (1, after(150))
    with pytest.raises(LeaseLost):
        opened.sending(shard, 10, after(161))


def test_a_try_needs_a_lease(opened: Ledger) -> None:
    """A caller that slept past its lease does not begin a try, so nothing becomes ambiguous for its sake."""
    shard = reserved(opened)
    with pytest.raises(LeaseLost):
        opened.begin_try(shard, "acct", 10, after(11))
    assert opened.intent(shard.token or "")[0].tries == 0


def test_giving_back_releases_the_money_and_plans_the_shard_again(opened: Ledger) -> None:
    """A create that certainly failed and is not repeated yet holds nothing; the shard can be reserved again later."""
    shard = reserved(opened)
    opened.begin_try(shard, "acct", 10, NOW)
    opened.give_back(shard, after(5), "out of credit", "out of credit", NOW)
    assert (state(opened, "s1"), money(opened)) == (S.PLANNED, (0, 0))
    assert opened.job("job")["paused"] == "out of credit"
    opened.resume_job("job", NOW)
    shard = reserved(opened, at=after(5))
    assert (money(opened), opened.intent(shard.token or "")[0].tries) == ((100, 0), 1)


def test_a_person_may_say_that_a_batch_is_absent(opened: Ledger) -> None:
    """It counts for an open fate only, not while a caller may be sending, and only until the next try."""
    with pytest.raises(NotFound):
        opened.resolve_absent("s1", NOW)
    shard = reserved(opened)
    opened.begin_try(shard, "acct", 10, NOW)
    with pytest.raises(LeaseLost):
        opened.resolve_absent("s1", after(9))
    opened.wait(shard, after(3600), "fate unknown", NOW)
    opened.resolve_absent("s1", after(10))
    shard = claimed(opened, at=after(10))  # due at once
    assert opened.intent(shard.token or "")[1]
    opened.begin_try(shard, "acct", 10, after(10))
    assert not opened.intent(shard.token or "")[1]


def test_a_batch_belongs_to_one_shard(ledger: Ledger, ledger_url: str) -> None:
    """A batch that another shard owns cannot be taken over, by mistake or by a person."""
    ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2")), NOW)
    sent(ledger, batch="b1")
    other = reserved(ledger)
    ledger.begin_try(other, "acct", 10, NOW)
    before = dump(ledger_url)
    with pytest.raises(LedgerError, match="batch b1 is shard s1's"):
        ledger.submitted(other, running("b1"), NOW, "a person says so", NOW)
    assert dump(ledger_url) == before


@pytest.mark.parametrize(
    ("limits", "mark", "words"),
    [
        ({"max_in_flight": 1}, B, "1 batches are in flight"),
        ({"max_enqueued_tokens": 119}, B, "60 prompt tokens are queued"),
        ({}, MarkClass.UNMARKED, "another shard of 3 rows"),
    ],
)
def test_a_named_limit_of_the_account_holds_a_shard(
    ledger: Ledger, limits: dict[str, Any], mark: MarkClass, words: str
) -> None:
    """What is in flight on the same account holds a shard back, by name, and holds no money for it."""
    ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2"), new_shard("s3", account="other")), NOW)
    narrow = replace(LIMITS, **limits)
    first, second, third = claimed(ledger), claimed(ledger), claimed(ledger)
    ledger.begin_submit(first, narrow, mark, NOW)
    with pytest.raises(Crowded, match=words):
        ledger.begin_submit(second, narrow, mark, NOW)
    ledger.begin_submit(third, narrow, mark, NOW)
    assert money(ledger) == (200, 0)


def test_one_shard_may_be_longer_than_the_queue(opened: Ledger) -> None:
    """A shard that exceeds the enqueued-token limit alone is sent when nothing else is queued: the provider decides."""
    opened.begin_submit(claimed(opened), replace(LIMITS, max_enqueued_tokens=10), B, NOW)
    assert state(opened, "s1") is S.SUBMITTING


# ---------------------------------------------------------------------------------------------------- ending, settling


def test_settling_is_one_transaction(opened: Ledger, ledger_url: str) -> None:
    """Results, cost, release and the shard that retries are all there or none of them."""
    shard = over(opened)
    opened.fetched(shard, ["raw"], NOW)
    retry = new_shard("s1-2", n_lines=1, root="s1", attempt=2)
    what = settlement([Outcome.OK, Outcome.FAILED, Outcome.PENDING], retries=(retry,))

    def die(where: str) -> None:
        raise RuntimeError(where)

    before = dump(ledger_url)
    opened.db.fault = die
    with pytest.raises(RuntimeError):
        opened.settle(shard, what, NOW)
    assert dump(ledger_url) == before

    opened.db.fault = lambda where: None
    opened.settle(shard, what, NOW)
    assert money(opened) == (0, 40)
    assert vector(opened, "s1") == [Outcome.OK, Outcome.FAILED, Outcome.PENDING]
    assert claimed(opened).id == "s1-2"
    row = opened.shard_row("s1")
    assert (row["state"], row["raw_blobs"], row["results_blob"]) == ("settled", '["raw"]', "results")


def test_settling_twice_pays_once(opened: Ledger, ledger_url: str) -> None:
    """The second of two callers that settle one shard is told so and writes nothing."""
    shard = over(opened)
    opened.settle(shard, settlement(), NOW)
    before = dump(ledger_url)
    with pytest.raises(LeaseLost):
        opened.settle(shard, settlement(confirmed=90), NOW)
    assert dump(ledger_url) == before


def test_an_answer_is_never_unanswered(opened: Ledger) -> None:
    """A row that is OK stays OK, whatever a later attempt says; any other outcome is superseded."""
    opened.settle(over(opened), settlement([Outcome.OK, Outcome.FAILED, Outcome.MISSING]), NOW)
    opened.add_shards("job", [(new_shard("s1-2", root="s1", attempt=2), [1, 2])], "again", NOW)
    opened.settle(over(opened, batch="b2"), settlement([Outcome.FAILED, Outcome.OK, Outcome.EXPIRED]), NOW)
    assert vector(opened, "s1") == [Outcome.OK, Outcome.OK, Outcome.EXPIRED]


def test_a_refused_shard_gives_its_money_back(opened: Ledger) -> None:
    """A shard that certainly never arrived and is not sent again ends its rows, holds nothing, and its intent is closed."""
    shard = reserved(opened)
    opened.begin_try(shard, "acct", 10, NOW)
    opened.refused(shard, settlement([Outcome.FAILED] * 3, confirmed=0, tokens=0), NOW)
    assert (state(opened, "s1"), money(opened)) == (S.REFUSED, (0, 0))
    assert not opened.intent(shard.token or "")[0].open
    assert opened.next_due("job") == (None, 0)


def test_a_dropped_shard_never_held_anything(opened: Ledger, ledger_url: str) -> None:
    """A shard given up before it was sent ends its rows and moves no money."""
    opened.dropped(claimed(opened), settlement([Outcome.CANCELLED] * 3, confirmed=0, tokens=0), NOW)
    assert (state(opened, "s1"), vector(opened, "s1")) == (S.CANCELLED, [Outcome.CANCELLED] * 3)
    assert dump(ledger_url)["entry"] == []


def test_a_second_batch_of_one_token_is_held_whatever_the_limit_says(opened: Ledger) -> None:
    """It was spent without a reservation: its worst case is held at once, and a limit that it passes is frozen."""
    opened.set_budget("job:job", micros=150, tokens=None, now=NOW)
    shard = sent(opened)
    opened.duplicate(shard, running("b2"), NOW)
    opened.duplicate(shard, running("b2"), NOW)
    assert money(opened) == (200, 0)
    frozen = {row["id"]: row["frozen"] for row in opened.query("budgets")}
    assert "was sent twice" in frozen["job:job"]
    assert frozen["project:team"] is None

    twin = claimed(opened)
    assert (twin.role, twin.batch_id) == ("duplicate", "b2")
    opened.ended(twin, running("b2", BatchStatus.CANCELLED), NOW)
    opened.settle(claimed(opened), settlement((), confirmed=7, wasted_micros=7), NOW)
    assert money(opened) == (100, 7)
    assert opened.query("job_money", job="job")[0]["wasted_micros"] == 7


def test_a_move_the_table_does_not_know_is_our_own_mistake(opened: Ledger, ledger_url: str) -> None:
    """No state is skipped: a planned shard cannot be settled, an ended one cannot be sent."""
    shard = claimed(opened)
    before = dump(ledger_url)
    with pytest.raises(InvalidMove):
        opened.settle(shard, settlement(), NOW)
    with pytest.raises(InvalidMove):
        opened.submitted(shard, running(), NOW, "?", NOW)
    assert dump(ledger_url) == before


FENCED: dict[str, tuple[Callable[[Ledger], Shard], Callable[[Ledger, Shard], object]]] = {
    "wait": (claimed, lambda ledger, shard: ledger.wait(shard, NOW, "a limit", NOW)),
    "renew": (claimed, lambda ledger, shard: ledger.renew(shard, NOW, 10)),
    "begin_submit": (claimed, lambda ledger, shard: ledger.begin_submit(shard, LIMITS, B, NOW)),
    "dropped": (claimed, lambda ledger, shard: ledger.dropped(shard, settlement(), NOW)),
    "begin_try": (reserved, lambda ledger, shard: ledger.begin_try(shard, "acct", 10, NOW)),
    "sending": (reserved, lambda ledger, shard: ledger.sending(shard, 10, NOW)),
    "submitted": (reserved, lambda ledger, shard: ledger.submitted(shard, running(), NOW, "accepted", NOW)),
    "not_arrived": (reserved, lambda ledger, shard: ledger.not_arrived(shard, NOW, "refused", NOW)),
    "give_back": (reserved, lambda ledger, shard: ledger.give_back(shard, NOW, "credit", "credit", NOW)),
    "refused": (reserved, lambda ledger, shard: ledger.refused(shard, settlement(), NOW)),
    "polled": (sent, lambda ledger, shard: ledger.polled(shard, running(), NOW, NOW)),
    "ended": (sent, lambda ledger, shard: ledger.ended(shard, running(), NOW)),
    "fetched": (over, lambda ledger, shard: ledger.fetched(shard, ["raw"], NOW)),
    "settle": (over, lambda ledger, shard: ledger.settle(shard, settlement(), NOW)),
}


@pytest.mark.parametrize("method", FENCED)
def test_a_caller_that_lost_a_shard_writes_nothing(opened: Ledger, ledger_url: str, method: str) -> None:
    """Every write about a shard names a fence; with an old one it raises LeaseLost and leaves the ledger as it was."""
    until, act = FENCED[method]
    stale = until(opened)
    assert opened.claim("other", after(10), 10) is not None
    before = dump(ledger_url)
    with pytest.raises(LeaseLost):
        act(opened, stale)
    assert dump(ledger_url) == before


@pytest.mark.parametrize("method", FENCED)
def test_the_holder_writes(opened: Ledger, ledger_url: str, method: str) -> None:
    """The same writes by the caller that holds the shard do happen."""
    until, act = FENCED[method]
    shard = until(opened)
    before = dump(ledger_url)
    act(opened, shard)
    assert dump(ledger_url) != before or method in ("renew", "sending")


# ------------------------------------------------------------------------------------------------------------- reading


def test_events_can_be_followed_without_counting_twice(opened: Ledger) -> None:
    """A cursor yields every change once, in order, under an id that never changes; a job's own on request."""
    opened.open_plan(plan_of(new_shard("t1"), job="other"), NOW)
    opened.settle(over(opened), settlement(), NOW)
    whole = opened.events()
    paged: list[Event] = []
    while page := opened.events(since=paged[-1].seq if paged else 0, count=2):
        paged += page
    assert paged == whole
    assert [e.seq for e in whole] == sorted({e.seq for e in whole})
    assert len({e.id for e in whole}) == len(whole)
    assert kinds(opened, "job") == ["plan_opened", "reserved", "submitted", "ended", "settled"]
    assert kinds(opened, "other") == ["plan_opened"]
    assert whole[-1].facts["confirmed_micros"] == 40


def test_a_change_of_state_and_its_event_are_one(opened: Ledger) -> None:
    """A job's state is journalled with its reason when it changes, and only then."""
    for _ in range(2):
        opened.set_job_state("job", JobState.COMPLETED, "every row is ok", NOW)
    assert kinds(opened).count("job_state") == 1
    assert opened.events()[-1].reason == "every row is ok"
    opened.loaded("job", {"to": "out.parquet", "rows": 3}, NOW)
    assert opened.events()[-1].facts == {"to": "out.parquet", "rows": 3}


def test_cancelling_asks_for_every_open_shard_at_once(ledger: Ledger) -> None:
    """Cancelling a job makes its waiting shards due now and is journalled once; a job that is not there is NotFound."""
    ledger.open_plan(plan_of(new_shard("s1"), new_shard("s2")), NOW)
    ledger.wait(sent(ledger), after(3600), None, NOW)
    for _ in range(2):
        ledger.cancel_job("job", NOW)
    assert {claimed(ledger).id, claimed(ledger).id} == {"s1", "s2"}
    assert all(s["cancel_asked"] for s in ledger.query("shards", job="job"))
    assert kinds(ledger).count("cancel_asked") == 1
    with pytest.raises(NotFound):
        ledger.cancel_job("nobody", NOW)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE budget SET held_micros = held_micros + 1 WHERE id = 'job:job'", "job:job: held_micros is 101"),
        (
            "UPDATE entry SET held_tokens = 1 WHERE budget = 'month:2026-11'",
            "month:2026-11: held_tokens is 90, its entries",
        ),
        ("UPDATE shard SET held_micros = 0", "project:team: held_micros is 100, its shards hold 0"),
        ("UPDATE budget SET spent_micros = -1 WHERE id = 'job:job'", "job:job: spent_micros is -1"),
    ],
)
def test_the_two_sides_of_the_books_are_compared(ledger_url: str, change: str, words: str) -> None:
    """Money changed behind the ledger's back is found, whether in a budget, in an entry or on a shard."""
    ledger = Ledger(connect(ledger_url))
    ledger.open_plan(plan_of(new_shard("s1")), NOW)
    reserved(ledger)
    assert ledger.check() == []
    with raw(ledger_url) as connection:
        connection.execute(change)
    assert any(words in problem for problem in ledger.check())
    ledger.close()


def test_a_ledger_keeps_its_name(ledger_url: str) -> None:
    """Opened again it is the same ledger, so that its tokens and event ids stay what they were."""
    first = Ledger(connect(ledger_url))
    again = Ledger(connect(ledger_url))
    assert first.id == again.id
    first.close()
    again.close()
