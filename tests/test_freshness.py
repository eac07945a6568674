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
    NeverBuilt,
    OnStale,
    Publication,
    Stale,
    cadence,
    changed,
    judge,
    mean_age_s,
    newest,
    refreshes,
    span,
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
    ("on_stale", "kind"), [("serve", Stale), ("refresh", Stale), ("block", Blocked), ("live", Blocked)]
)
def test_past_its_contract_an_answer_is_never_fresh(on_stale: OnStale, kind: type) -> None:
    """Each way of dealing with staleness has its own typed outcome, and none of them is Fresh."""
    old = publication(1, NOON - 24 * HOUR - timedelta(seconds=1))
    assert type(judge(contract(24, on_stale), old, NOON)) is kind
    assert type(judge(contract(24, on_stale), replace(old, source_as_of=NOON - 24 * HOUR), NOON)) is Fresh


def test_an_input_known_to_have_changed_is_stale_at_once() -> None:
    """`effective_until` ends freshness whatever the age."""
    ended = replace(publication(1, NOON - HOUR), effective_until=NOON - timedelta(minutes=1))
    assert isinstance(judge(contract(24), ended, NOON), Blocked)


def test_before_the_first_publication_there_is_an_outcome_too() -> None:
    """A reader of a job that never published gets NeverBuilt, not an error and not an empty set."""
    assert judge(contract(24), None, NOON) == NeverBuilt("labels", "nothing of this job was accepted yet")


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_an_older_snapshot_never_overwrites_a_newer_one(order: list[int], inputs: list[int]) -> None:
    """Whatever the order in which runs end, readers see the latest input."""
    made = [publication(version, NOON + inputs[version] * HOUR) for version in order]
    seen = newest(made)
    assert seen is not None
    assert seen.source_as_of == NOON + max(inputs) * HOUR


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


def test_mean_age_has_its_known_answer() -> None:
    """methods.md 6: every 6 h, 1.5 h to make: 4.5 h on average."""
    assert mean_age_s(6, 1.5) == 4.5


def test_a_report_names_what_changed() -> None:
    """Components that differ are named in a fixed order, new ones included."""
    before = {"prompt": "a", "model": "m", "input": "x"}
    assert changed(before, {"prompt": "b", "model": "m", "input": "y", "zone": "1"}) == ("prompt", "input", "zone")
    assert changed(before, before) == ()


def test_a_refresh_budget_has_its_known_answer() -> None:
    """Cho & Garcia-Molina: rates 1 to 5, five refreshes: 1.15, 1.36, 1.35, 1.14 and nothing for the fastest."""
    assert refreshes([1, 2, 3, 4, 5], 5) == pytest.approx([1.15, 1.36, 1.35, 1.14, 0.0], abs=0.006)


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=12), st.floats(0.1, 30))
def test_a_refresh_budget_is_spent_and_not_passed(rates: list[float], budget: float) -> None:
    """Frequencies sum to the budget, and none is negative."""
    found = refreshes(rates, budget)
    assert min(found) >= 0
    assert sum(found) == pytest.approx(budget, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h"), (3600, "1 h"), (12_000, "3 h 20 min"), (86_400, "24 h"),
     (187_200, "2 d 4 h"), (-60, "-1 min")],
)  # fmt: skip
def test_times_read_as_people_say_them(seconds: int, shown: str) -> None:
    """Two units at most, and never a bare number."""
    assert span(timedelta(seconds=seconds)) == shown
