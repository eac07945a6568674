"""Promises of watching.py: stuck is told from slow, each finding says its numbers, and an alarm fires once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.drills.waiting import HOUR, alarms, queue_alarms
from canwait.schedule import turnaround
from canwait.turnaround import Progress, Seen, survival
from canwait.watching import (
    CUSUM_LIMIT,
    AtRisk,
    Blocked,
    Growing,
    History,
    Lengths,
    Reached,
    Slow,
    State,
    Stuck,
    budget_alarms,
    cusum,
    drift,
    fresh_alarms,
    growing,
    key,
    unread,
    watch,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
WINDOW_S = 24 * HOUR


def after(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def history(n: int = 100, gaps: int = 100) -> History:
    """Batches that took up to 10 hours, evenly, and stood still for up to 5."""
    took = turnaround([Seen(10 * HOUR * (i + 1) / n) for i in range(n)], WINDOW_S)
    return History(took, survival([Seen(5 * HOUR * (i + 1) / gaps) for i in range(gaps)]))


def look(
    hours: float,
    deadline_h: float | None,
    *,
    past: History | None = None,
    rose_h: float | None = None,
    latest_h: float | None = None,
) -> list[State]:
    """A batch sent at noon, looked at after `hours`; its count last rose after `rose_h`."""
    return watch(
        "s1",
        past or history(),
        after(hours),
        NOON,
        progress=None if rose_h is None else Progress(5, rose_h * HOUR, 0.0),
        deadline=None if deadline_h is None else after(deadline_h),
        latest_start=None if latest_h is None else after(latest_h),
    )


# ---------------------------------------------------------------------------------------------------------- progress


def test_progress_keeps_the_longest_gap_with_the_first_lag() -> None:
    """Waiting for the first row is a gap, too; a count that falls back or repeats is no progress; the end ends a gap."""
    progress = Progress()
    for at_s, n_done in [(10.0, 0), (40.0, 3), (50.0, 1), (60.0, 3), (65.0, None), (90.0, 4)]:
        progress = progress.after(n_done, at_s)
    assert progress == Progress(4, 90.0, 50.0)
    assert progress.longest(100.0, ended=True) == Seen(50.0, True)
    assert progress.longest(190.0, ended=False) == Seen(100.0, False)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 50)), max_size=30))
def test_no_gap_is_longer_than_the_longest(polls: list[tuple[float, int]]) -> None:
    """Three numbers a shard give the same longest gap as its whole history does."""
    at_s, most, rises, progress = 0.0, 0, [0.0], Progress()
    for wait_s, n_done in polls:
        at_s += wait_s
        progress = progress.after(n_done, at_s)
        if n_done > most:
            most = n_done
            rises.append(at_s)
    gaps = [later - earlier for earlier, later in zip(rises, [*rises[1:], at_s], strict=True)]
    assert progress.longest(at_s, ended=True).seconds == pytest.approx(max(gaps))


# ------------------------------------------------------------------------------------------------------ one batch


def test_on_course_nothing_is_said() -> None:
    """Within what 80 % took, with even odds or better and time to decide: no finding."""
    assert look(5, 9, rose_h=4.9, latest_h=7) == []
    assert look(7.9, 10, rose_h=7.8, latest_h=9) == []


def test_slow_is_within_what_was_seen() -> None:
    """After 8.5 of at most 10 hours 15 % were still out, and of those 10 in 15 are back in an hour more: slow, not stuck."""
    (found,) = look(8.5, 9.5, rose_h=8.4, latest_h=9.2)
    assert isinstance(found, Slow)
    assert [found.share_out, found.odds, found.n_like] == pytest.approx([0.15, 10 / 15, 15])
    assert found.words == (
        "slow, within what was seen: 15% were still out after 8 h 30 min (100 past batches); "
        "in time with about 67% (15 earlier cases)"
    )
    (endless,) = look(8.5, None, rose_h=8.4)
    assert isinstance(endless, Slow)
    assert endless.odds is None


def test_at_risk_by_the_odds_or_by_the_clock() -> None:
    """Less than even odds, or less than 30 minutes to the latest safe start, whatever the odds."""
    (by_odds,) = look(2, 5, rose_h=1.9, latest_h=4)
    assert isinstance(by_odds, AtRisk)
    assert [by_odds.odds, by_odds.n_like] == pytest.approx([30 / 80, 80])
    assert by_odds.words == (
        "at risk: out for 2 h, 3 h left; in time by itself with about 38% (80 earlier cases; 100 past batches)"
    )
    (by_clock,) = look(2, 9, rose_h=1.9, latest_h=2.4)
    assert isinstance(by_clock, AtRisk)
    assert by_clock.decide_s == pytest.approx(0.4 * HOUR)
    assert look(2, 9, rose_h=1.9, latest_h=2.6) == []


def test_beyond_all_that_was_seen_there_are_no_odds() -> None:
    """A batch older than every one before it is at risk, and nobody claims a chance for it; past its deadline it is late."""
    (found,) = look(11, 30, rose_h=10.9, latest_h=29)
    assert isinstance(found, AtRisk)
    assert found.words == "at risk: out for 11 h, 19 h left; none was ever out for so long (100 past batches)"
    (late,) = look(11, 10, rose_h=10.9)
    assert late.words.startswith("at risk: out for 11 h, 1 h late; ")


def test_stuck_is_no_progress_for_longer_than_past_gaps() -> None:
    """99 of 100 batches stood still for at most 4 h 57 min: 5 hours without a row is stuck, at any age."""
    stuck, risk = look(6, 7, rose_h=1)
    assert isinstance(stuck, Stuck)
    assert isinstance(risk, AtRisk)
    assert stuck.counted
    assert [stuck.still_s, stuck.limit_s] == pytest.approx([5 * HOUR, 4.95 * HOUR])
    assert stuck.words == "stuck: no row for 5 h; 99 % never stood still for more than 4 h 57 min (100 past batches)"
    assert look(5.95, 9, rose_h=1, latest_h=8) == []


def test_without_counts_stuck_is_longer_than_99_percent_took() -> None:
    """No counts from the provider, or no gaps on record: then the whole time counts; few batches are never called 99 %."""
    (stuck,) = look(9.95, None)
    assert isinstance(stuck, Stuck)
    assert stuck.words == "stuck: out for 9 h 57 min; 99 % were back in 9 h 54 min (100 past batches)"
    (no_gaps,) = look(9.95, None, past=history(gaps=18), rose_h=1)
    assert isinstance(no_gaps, Stuck)
    assert not no_gaps.counted
    (few,) = look(5.1, None, past=history(gaps=19), rose_h=0)
    assert few.words == "stuck: no row for 5 h 6 min; none ever stood still for more than 5 h (19 past batches)"


def test_with_little_history_only_the_deadline_alarms() -> None:
    """18 past batches: neither slow nor stuck nor odds, however long it takes; 30 minutes before the end it is at risk."""
    few = history(18, 18)
    assert look(23, None, past=few, rose_h=1) == []
    assert look(22.9, 24, past=few, rose_h=1, latest_h=23.5) == []
    (found,) = look(23.1, 24, past=few, rose_h=1, latest_h=23.5)
    assert isinstance(found, AtRisk)
    assert found.odds is None
    assert "its odds are unknown (the provider's window of 24 h; 18 past batches are too few" in found.words


def test_a_named_limit_is_no_fault_of_the_batch() -> None:
    """Blocked is said instead of stuck and slow, with the limit and since when; the risk to the deadline stays."""
    limit = ("provider openai: queued-token limit 2,000,000", after(3))
    found = watch(
        "s1", history(), after(9.9), NOON, progress=Progress(), deadline=after(9.95), latest_start=None, blocked=limit
    )
    assert [type(f) for f in found] == [Blocked, AtRisk]
    assert found[0].words == "blocked for 6 h 54 min by provider openai: queued-token limit 2,000,000"


# ------------------------------------------------------------------------------------------------------ unread results


def test_unread_results_are_counted_against_each_readers_own_clock() -> None:
    """By the contract; else by 95 % of past delays, from 19 on; results read in that time, or never timed, are no alarm."""
    delays = [Seen(HOUR * (i + 1)) for i in range(20)]

    def of(hours: float, pickup_s: float | None, known: int = 20) -> str | None:
        found = unread("labels", "dash", NOON, after(hours), 44_100_000, pickup_s=pickup_s, delays=delays[20 - known :])
        return None if found is None else found.words

    assert of(25, 24 * HOUR) == "unconsumed: $44.10 of results unread by dash for 25 h, more than 24 h (the contract)"
    assert of(24, 24 * HOUR) is None
    assert of(20, None) == (
        "unconsumed: $44.10 of results unread by dash for 20 h, more than 19 h "
        "(95 % of 20 past publications were read by then)"
    )
    assert of(19, None) is None
    assert of(1000, None, known=18) is None


# -------------------------------------------------------------------------------------------------------- fires once


def test_an_alarm_fires_once_until_it_was_cleared() -> None:
    """The same finding with newer numbers is no news; when it was gone it may fire again; another subject is its own."""
    stuck, older = (Stuck("s1", h, h, 1.0, True, 100, "x") for h in (2.0, 3.0))
    risk, other = AtRisk("s1", 1.0, 1.0, 1.0, None, 0, "x"), Stuck("s2", 2.0, 2.0, 1.0, True, 100, "x")
    first = fresh_alarms((), [stuck])
    second = fresh_alarms(first.standing, [older, risk, other])
    third = fresh_alarms(second.standing, [])
    assert first.fresh == (stuck,)
    assert second.fresh == (risk, other)
    assert second.standing == {"stuck s1", "at risk s1", "stuck s2"}
    assert (third.fresh, third.standing) == ((), frozenset())
    assert fresh_alarms(third.standing, [older]).fresh == (older,)


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=20))
def test_alarms_fire_as_often_as_something_begins(states: list[set[str]]) -> None:
    """Over any history an alarm fires exactly when its finding holds and did not hold the time before."""
    standing: frozenset[str] = frozenset()
    was: set[str] = set()
    for now in states:
        told = fresh_alarms(standing, [Growing(name, 2.0, 1.0, None) for name in sorted(now)])
        assert {f.subject for f in told.fresh} == now - was
        standing, was = told.standing, now


# ------------------------------------------------------------------------------------------------------ frozen batches


def check_frozen(n_runs: int, tolerance: float) -> None:
    """The table of methods.md 7: false alarms, and hours until a batch that never moves is found."""
    known = {
        "out for 2 h": (0.24, 2),
        "out for mean + 3 sd": (0.039, 18),
        "out longer than 95 %": (0.053, 16),
        "out longer than 99 %": (0.009, 23),
        "no progress for longer than 95 % of gaps": (0.055, 5),
        "no progress for longer than 99 % of gaps": (0.014, 12),
    }
    found = alarms(n_runs, seed=2)
    assert found.keys() == known.keys()
    for rule, (false_alarms, hours) in known.items():
        assert found[rule].false_alarms == pytest.approx(false_alarms, abs=0.01 + tolerance)
        assert found[rule].found_s / HOUR == pytest.approx(hours, abs=1.5)
    assert found["no progress for longer than 99 % of gaps"].false_alarms <= 0.015 + tolerance


def test_frozen_batches_are_found_and_healthy_ones_left_alone() -> None:
    """1,600 healthy batches in 80 histories, with a tolerance for so few."""
    check_frozen(80, 0.01)


@pytest.mark.slow
def test_frozen_batches_are_found_and_healthy_ones_left_alone_at_length() -> None:
    """20,000 healthy batches in 1,000 histories: at most 1.5 % of them are called stuck."""
    check_frozen(1_000, 0.0)


# -------------------------------------------------------------------------------------------------------------- queues


def test_a_queue_grows_when_its_oldest_waits_too_long() -> None:
    """60 items at 2 a second may take 30 seconds; the CUSUM is named where it agrees."""
    assert growing("judge", 30.0, 2.0) is None
    found = growing("judge", 31.0, 2.0, surplus=CUSUM_LIMIT + 1)
    assert found is not None
    assert found.words == ("growing: the oldest waits 31 s, more than 30 s; arrivals exceed departures, too (CUSUM 61)")
    alone = growing("judge", 31.0, 2.0, surplus=CUSUM_LIMIT)
    assert alone is not None
    assert not alone.confirmed


def test_the_cusum_forgets_what_was_balanced() -> None:
    """Equal arrivals and departures bring it to 0; a surplus of 2 a step adds 1.5."""
    surplus = 0.0
    for arrived, left in [(5, 3), (5, 3), (4, 4), (4, 4)]:
        surplus = cusum(surplus, arrived, left)
    assert surplus == 2.0
    assert cusum(surplus, 0, 9) == 0.0


def test_overload_is_found_in_about_an_hour() -> None:
    """10 % more than can leave: by age in 46 minutes and by CUSUM in 76 (methods.md 7); false in 10 hours at most 10 %."""
    steady, over = ([queue_alarms(600, seed, overload=x) for seed in range(100)] for x in (None, 1.1))
    assert [sum(told[i] < inf for told in steady) <= 10 for i in (0, 1)] == [True, True]
    assert median(told[0] for told in over) == pytest.approx(46, abs=10)
    assert median(told[1] for told in over) == pytest.approx(76, abs=15)


# -------------------------------------------------------------------------------------------------------------- budgets


def shares(spent: int, held: int, guaranteed: int | None = None, standing: frozenset[str] = frozenset()) -> list[str]:
    found = budget_alarms(
        "team:evals",
        10_000_000,
        spent_micros=spent * 1_000_000,
        held_micros=held * 1_000_000,
        guaranteed_micros=None if guaranteed is None else guaranteed * 1_000_000,
        standing=standing,
    )
    return [f.subject for f in found]


def test_budgets_tell_at_their_shares() -> None:
    """80 and 100 % of the cap: by what is spent, by what is held, by the bound of the whole; in words with both sums."""
    assert shares(7, 7, 7) == []
    assert shares(8, 9, 10) == [
        "team:evals spent 80%",
        "team:evals held 80%",
        "team:evals guaranteed 80%",
        "team:evals guaranteed 100%",
    ]
    assert Reached("team:evals", "held", Decimal("0.8"), 8_130_000, 10_000_000).words == (
        "team:evals: $8.13 of $10.00 (81%) spent or reserved"
    )


def test_a_reservation_that_comes_and_goes_rings_once() -> None:
    """Held money falls from 80 % to 75 and rises again: one alarm. Below nine tenths of the threshold it is cleared."""
    rings, standing = [], frozenset[str]()
    for held in (8, 7.5, 8, 7, 8):
        found = budget_alarms("b", 10_000_000, spent_micros=0, held_micros=int(held * 1_000_000), standing=standing)
        told = fresh_alarms(standing, found)
        rings.append(len(told.fresh))
        standing = told.standing
    assert rings == [1, 0, 0, 0, 1]


def test_drift_is_told_only_when_it_is_no_chance() -> None:
    """Answers of 60 tokens where 50 were planned at most are told; of 50 on average hardly ever, at 200 looks together."""
    rng = Random(4)

    def answers(mean: int) -> Lengths:
        lengths = tuple(min(100, max(0, round(rng.gauss(mean, 15)))) for _ in range(200))
        return Lengths(lengths, 10_000, 200, sum(lengths))

    found = drift("labels", answers(60), 100, 500_000, "500 earlier rows")
    assert found is not None
    assert 500_000 < found.at_least < 600_000
    assert found.words == (
        f"drift: the job needs at least {found.at_least:,} output tokens (200 rows have ended); planned were at most 500,000 by "
        "500 earlier rows"
    )
    assert sum(drift("labels", answers(50), 100, 500_000, "b") is not None for _ in range(40)) <= 5


@given(st.floats(0, 40), st.floats(0, 40), st.floats(0.1, 40), st.integers(0, 60))
def test_the_gravest_is_said_first_and_once(hours: float, rose_h: float, deadline_h: float, n: int) -> None:
    """Whatever is looked at: at most stuck and at risk together, slow only alone, each under a key of its own."""
    found = look(hours, deadline_h, past=history(max(n, 1), max(n, 1)), rose_h=min(rose_h, hours))
    kinds = [f.kind for f in found]
    assert kinds in ([], ["stuck"], ["at risk"], ["stuck", "at risk"], ["slow"])
    assert len({key(f) for f in found}) == len(found)
    assert all(f.words.startswith(f.kind) for f in found)
