"""What is told, in which words: facts of jobs with their numbers, and nothing that a provider, a row or an answer says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import notices, watching
from canwait.notices import (
    ALARMS,
    ENDS,
    KINDS,
    Outdated,
    Standing,
    from_payload,
    letter,
    of_event,
    of_finding,
    payload,
    proof,
)
from canwait.types import Event, JobState
from canwait.watching import AtRisk, Finding, Reached, Slow, Stuck, Unconsumed

AT = datetime(2026, 11, 22, 7, tzinfo=UTC)
MONEY = Standing(1_230_000, 400, 40_000_000, 118, 120, 60, 9)


def event(kind: str = "job_state", reason: str = "", job: str | None = "labels", **facts: Any) -> Event:
    return Event(7, "evt_1_7", AT, job, None, kind, reason, facts)


@pytest.mark.parametrize(
    ("state", "kind", "type", "command"),
    [
        (JobState.COMPLETED, "done", "job.completed", "canwait status labels"),
        (JobState.COMPLETED_WITH_FAILURES, "done", "job.completed_with_failures", "canwait why labels"),
        (JobState.EXPIRED, "done", "job.expired", "canwait why labels"),
        (JobState.CANCELLED, "done", "job.cancelled", "canwait status labels"),
        (JobState.GATE, "gate", "gate.pending", "canwait inspect labels"),
        (JobState.REFUSED, "refused", "gate.refused", "canwait inspect labels"),
    ],
)
def test_every_end_of_a_job_is_told(state: JobState, kind: str, type: str, command: str) -> None:
    """Each end has its kind, its event type and its command, and whoever waits for an end hears of it."""
    notice = of_event(event(state=state.value), MONEY)
    assert notice is not None
    assert (notice.kind, notice.type, notice.command, notice.id) == (kind, type, command, "evt_1_7")
    assert kind in ENDS
    assert "Spent $1.23 of $40.00, $0.000400 held." in notice.text


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.IN_PROGRESS])
def test_a_job_on_its_way_is_no_news(state: JobState) -> None:
    """Nothing is told of a job that runs, nor of events that are nobody's business."""
    assert of_event(event(state=state.value), MONEY) is None
    assert of_event(event("settled"), MONEY) is None


def test_the_numbers_are_there() -> None:
    """Rows, money and what the gate knows stand in the text and in the facts."""
    done = of_event(event(reason="118 ok, 2 failed, 0 missing of 120", state="completed_with_failures"), MONEY)
    assert done is not None
    assert done.text.startswith("118 ok, 2 failed, 0 missing of 120; 118 rows stand in its target.")
    assert done.facts == {
        "ok": 118, "failed": 2, "missing": 0, "rows": 120, "spent_micros": 1_230_000, "held_micros": 400,
        "limit_micros": 40_000_000,
    }  # fmt: skip
    gate = of_event(event(state="gate"), MONEY)
    assert gate is not None
    assert "120 answers wait to be judged, 60 of the sample are" in gate.text
    refused = of_event(event(state="refused"), MONEY)
    assert refused is not None
    assert "9 of 60 judged answers were bad" in refused.text


@given(
    st.sampled_from(["job_state", "job_paused", "budget_refused"]), st.sampled_from(list(JobState)), st.text(min_size=1)
)
def test_no_words_of_others_are_told(kind: str, state: JobState, words: str) -> None:
    """Whatever a reason of the journal says beyond our own form is not in what is told."""
    hostile = f"row 17 says <{words}> sk-secret"
    notice = of_event(event(kind, hostile, state=state.value), MONEY)
    assert notice is None or "sk-secret" not in json.dumps(payload(notice)) + letter(notice) + notice.title


def test_a_refusal_by_the_budget_says_its_numbers() -> None:
    """Our own words of what was needed and what was free get through; a bill past its reservation says how to go on."""
    why = "plan p_1 in the worst case needs $5.000000; $1.000000 of $40.000000 are free in job:labels."
    notice = of_event(event("budget_refused", why), Standing())
    assert notice is not None
    assert (notice.type, notice.text) == ("budget.refused", f"{why} Nothing was sent.")
    frozen = of_event(event("budget_frozen", "x", None, budget="project:a b"), Standing())
    assert frozen is not None
    assert (frozen.job, frozen.command) == (None, "canwait budget thaw 'project:a b'")


FINDINGS: list[tuple[Finding, str]] = [
    (Stuck("s1", 9e3, 8e3, 7e3, True, 64, "64 past batches"), "stuck"),
    (AtRisk("s1", 9e3, 1e3, 500, 0.2, 12, "64 past batches"), "at_risk"),
    (Outdated("labels", "dash", "25 h old, counted from when its input was read; dash accepts 24 h"), "stale"),
    (Unconsumed("labels", "dash", 9e4, 8e4, 41_000_000, "the contract"), "unread"),
    (Reached("job:labels", "spent", Decimal("0.8"), 32_000_000, 40_000_000), "budget"),
]


@pytest.mark.parametrize(("finding", "kind"), FINDINGS)
def test_every_alarm_is_a_notice(finding: Finding, kind: str) -> None:
    """An alarm is told in its own words; its id is that of its rising, so that a later one is another notice."""
    first = of_finding(finding, "labels", AT, "ledger")
    again = of_finding(finding, "labels", AT + timedelta(hours=1), "ledger")
    assert first is not None
    assert again is not None
    assert (first.kind, first.text, first == of_finding(finding, "labels", AT, "ledger")) == (kind, finding.words, True)
    assert first.id != again.id
    assert first.command.startswith("canwait ")


def test_slow_is_no_alarm() -> None:
    """What is within what was seen is not told."""
    assert of_finding(Slow("s1", 1, 0.1, 0.9, 5, "64"), "labels", AT, "ledger") is None
    kinds = {found.kind for found in vars(watching).values() if isinstance(getattr(found, "kind", None), str)}
    assert kinds - ALARMS == {"slow", "blocked", "idle", "growing"}


def test_a_body_reads_back() -> None:
    """What the outbox keeps is the notice itself, and its kinds are those a job file may name."""
    made = [of_event(event(state=s.value), MONEY) for s in JobState] + [
        of_finding(f, "labels", AT, "l") for f, _ in FINDINGS
    ]
    for notice in filter(None, [*made, of_event(event("job_paused"), MONEY), proof("tst_1", AT)]):
        assert from_payload(json.loads(json.dumps(payload(notice)))) == notice
        assert notice.kind in (*KINDS, "test")
    assert notices.KINDS[0] == "done"
