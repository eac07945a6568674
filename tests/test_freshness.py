"""Promises of freshness.py: age counts from the input, an older snapshot never wins, and a cadence is arithmetic."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.freshness import (
    Blocked,
    Contract,
    Fresh,
    Live,
    NeverBuilt,
    OnStale,
    Publication,
    Stale,
    cadence,
    changed,
    judge,
    latest,
    span,
    stricter,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def publication(version: int, as_of: datetime, made: datetime | None = None) -> Publication:
    return Publication("labels", version, as_of, made or as_of + HOUR, None, {}, 10, 0, 5, "no gate", "b", "id")


def contract(hours: float, on_stale: OnStale = "block") -> Contract:
    return Contract("labels", "dash/support", int(hours * 3600), on_stale)


def test_age_counts_from_the_input() -> None:
    """An answer made a minute ago from input of 25 hours ago is 25 hours old, and past a contract of 24."""
    late = publication(1, NOON - 25 * HOUR, NOON - timedelta(minutes=1))
    found = judge(contract(24), late, NOON)
    assert isinstance(found, Blocked)
    assert found.age == 25 * HOUR
    assert found.why == "25 h old, counted from when its input was read; dash/support accepts 24 h"


@pytest.mark.parametrize(
    ("on_stale", "kind"), [("serve", Stale), ("refresh", Stale), ("block", Blocked), ("live", Live)]
)
def test_past_its_contract_an_answer_is_never_fresh(on_stale: OnStale, kind: type) -> None:
    """Each way of dealing with staleness has its own typed outcome, and none of them is Fresh."""
    old = publication(1, NOON - 24 * HOUR - timedelta(seconds=1))
    assert type(judge(contract(24, on_stale), old, NOON)) is kind
    assert type(judge(contract(24, on_stale), replace(old, source_as_of=NOON - 24 * HOUR), NOON)) is Fresh


def test_an_input_known_to_have_changed_breaks_no_contract() -> None:
    """What a reader accepts is an age: P + q(T) <= S leaves a run the time to make the next, so it is told, and served."""
    ended = replace(publication(1, NOON - HOUR), effective_until=NOON - timedelta(minutes=1))
    assert judge(contract(24), ended, NOON) == Fresh(ended, HOUR)


@pytest.mark.parametrize(("on_stale", "kind"), [("serve", Stale), ("block", Blocked)])
@pytest.mark.parametrize("hours", [1, 40, 10_000])
def test_what_was_read_in_the_future_is_not_fresh(on_stale: OnStale, kind: type, hours: int) -> None:
    """An input cannot have been read later than now: a clock was wrong, the age is not known, and the reader is told so."""
    ahead = publication(1, NOON + hours * HOUR)
    found = judge(contract(1, on_stale), ahead, NOON)
    assert type(found) is kind
    assert found.why == (  # type: ignore[union-attr]
        f"of no known age: by its date its input was read {span(hours * HOUR)} from now, so a clock was wrong"
    )


def test_clocks_of_two_machines_may_differ_a_little() -> None:
    """Up to a minute ahead is as good as now, and a moment more is not."""
    ahead = publication(1, NOON + timedelta(minutes=1))
    assert isinstance(judge(contract(1), ahead, NOON), Fresh)
    assert isinstance(judge(contract(1), ahead, NOON - timedelta(microseconds=1)), Blocked)


def test_a_wrong_date_stays_wrong_when_its_time_has_come() -> None:
    """What was replaced before its input was read, by its date, has no known age then either."""
    wrong = replace(publication(1, NOON + 40 * HOUR), effective_until=NOON + HOUR)
    found = judge(contract(1), wrong, NOON + 40 * HOUR)
    assert isinstance(found, Blocked)
    assert "its input was read after it was replaced" in found.why


@pytest.mark.parametrize(
    ("stated", "gets"),
    [
        (None, (24, "serve")), ((48, "serve"), (24, "serve")), ((6, "refresh"), (6, "serve")), ((48, "block"), (24, "block")),
        ((24, "live"), (24, "block")),
    ],
)  # fmt: skip
def test_of_two_contracts_the_stricter_counts(stated: tuple[int, OnStale] | None, gets: tuple[int, OnStale]) -> None:
    """In each of its terms: the lower age, and what is blocked by either is."""
    assert stricter(contract(24, "serve"), None if stated is None else contract(*stated)) == contract(*gets)


def test_before_the_first_publication_there_is_an_outcome_too() -> None:
    """A reader of a job that never published gets NeverBuilt, not an error and not an empty set."""
    assert judge(contract(24), None, NOON) == NeverBuilt("labels", "nothing of this job was accepted yet")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_an_older_snapshot_never_overwrites_a_newer_one(inputs: list[int]) -> None:
    """Whatever the order in which runs end, readers see the latest input, and of one input what was made last."""
    made = [publication(version, NOON + hours * HOUR) for version, hours in enumerate(inputs)]
    seen = latest(made, NOON + 9 * HOUR)
    assert seen is not None
    assert (seen.source_as_of, seen.version) == max((p.source_as_of, p.version) for p in made)


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), max_size=7))
def test_what_is_wrongly_dated_hides_nothing_that_was_made_later(inputs: list[tuple[int, bool]]) -> None:
    """Of those with a credible date the latest is seen, or one with a wrong date that was made after it; none is refused."""
    made = [
        replace(publication(version, NOON + hours * HOUR), refused="bad" if refused else None)
        for version, (hours, refused) in enumerate(inputs)
    ]
    readable = [p for p in made if p.refused is None]
    right = [p for p in readable if p.source_as_of <= NOON]
    seen = latest(made, NOON)
    if seen is None:
        assert readable == []
    elif seen.source_as_of > NOON:
        assert all(seen.version > p.version for p in right if p.source_as_of == max(r.source_as_of for r in right))
    else:
        best = max(right, key=lambda p: (p.source_as_of, p.version))
        assert seen == best
        assert not [p for p in readable if p.source_as_of > NOON and p.version > best.version]


def test_a_cadence_is_refused_with_its_arithmetic() -> None:
    """P + q(T) <= S: every 6 h and 1 h 30 min keep 8 h, and not 7 h; a run that may fail needs another period."""
    kept = cadence(contract(8), 6 * 3600, 5400, "p95 of 64 runs")
    assert (kept.holds, kept.worst_age_s) == (True, 27_000)
    assert kept.arithmetic == (
        "every 6 h + 1 h 30 min to make it (p95 of 64 runs) = 7 h 30 min <= 8 h for dash/support"
    )
    assert not cadence(contract(7), 6 * 3600, 5400, "p95 of 64 runs").holds
    twice = cadence(replace(contract(8), missed_runs=1), 6 * 3600, 5400, "the provider's window")
    assert (twice.holds, twice.arithmetic[:14]) == (False, "every 2 x 6 h ")


def test_a_report_names_what_changed() -> None:
    """Components that differ are named in a fixed order, new ones included."""
    before = {"prompt": "a", "model": "m", "input": "x"}
    assert changed(before, {"prompt": "b", "model": "m", "input": "y", "zone": "1"}) == ("prompt", "input", "zone")
    assert changed(before, before) == ()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h"), (3600, "1 h"), (12_000, "3 h 20 min"), (86_400, "24 h"),
     (187_200, "2 d 4 h"), (-60, "-1 min")],
)  # fmt: skip
def test_times_read_as_people_say_them(seconds: int, shown: str) -> None:
    """Two units at most, and never a bare number."""
    assert span(timedelta(seconds=seconds)) == shown
