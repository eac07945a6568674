"""What facts, code and owners make of a call site: the matrix, its laws, and the decisions file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.audit.calls import Call
from canwait.audit.decisions import load_decisions, save_decisions
from canwait.audit.facts import SiteFacts
from canwait.audit.findings import Needs, Proof, Reason, Verdict
from canwait.audit.gather import Gatherer
from canwait.audit.verdict import MATRIX, Decision, contradicted, judge
from canwait.errors import SpecError
from canwait.types import Tier

DAY_US, HOUR_US, MINUTE_US, SECOND_US = 86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000
MONDAY_US = 1_760_918_400 * SECOND_US
DOCS = Path(__file__).parent.parent / "docs"

# What a log may or may not say of a call, and what it is when it does not.
OPTIONAL: dict[str, Any] = {
    name: Call._field_defaults[name]
    for name in Call._fields
    if name not in {"start_us", "site", "model", "provider", "record_id", "failed"}
}


def calls(n: int, every_s: float = 7200, latency_s: float = 2, used_s: float | None = None, **held: Any) -> list[Call]:
    """`n` calls of one site, evenly; `used_s` is the time from an answer to its first use."""
    found = []
    for i in range(n):
        start = MONDAY_US + round(i * every_s * SECOND_US)
        end = start + round(latency_s * SECOND_US)
        used = None if used_s is None else end + round((used_s + i % 97) * SECOND_US)
        found.append(Call(start, "site", "m", end_us=end, first_used_us=used, **held))
    return found


def open_ended(found: Sequence[Call]) -> list[Call]:
    """The same in a log that does not say when answers were there."""
    return [call._replace(end_us=None) for call in found]


def runs(n_days: int, n: int, every_s: float, **held: Any) -> list[Call]:
    """`n` calls from eight o'clock on, every so often, on each day."""
    return [call for day in range(n_days) for call in later(calls(n, every_s, **held), (day * 24 + 8) * 3600)]


def later(found: Sequence[Call], s: float) -> list[Call]:
    """The same, so much later."""
    us = round(s * SECOND_US)
    return [c._replace(start_us=c.start_us + us, end_us=(c.end_us or 0) + us) for c in found]


def facts_of(found: Sequence[Call]) -> SiteFacts:
    gatherer = Gatherer()
    for call in found:
        gatherer.add(call)
    (facts,) = gatherer.facts()
    return facts


def verdict_of(found: Sequence[Call], *code: Reason, decision: Decision | None = None) -> Verdict:
    return judge(facts_of(found), code, decision)


def session(turn_gaps_s: Sequence[float], n: int, **held: Any) -> list[Call]:
    """`n` sessions whose calls follow the answers before them after these gaps, in turn, with some scatter."""
    random, found = Random(0), []
    for i in range(n):
        at = MONDAY_US + i * HOUR_US
        for gap in (0, *turn_gaps_s):
            at += round(gap * random.uniform(0.5, 2) * SECOND_US)
            found.append(Call(at, "site", "m", end_us=at + SECOND_US, session=f"s{i}", **held))
            at += SECOND_US
    return found


def pool(n: int, workers: int, latency_s: float, **held: Any) -> list[Call]:
    """A pool of workers that is kept full, twice in a week."""
    found = []
    for burst in range(2):
        for i in range(n):
            start = MONDAY_US + burst * 5 * DAY_US + round(i // workers * latency_s * SECOND_US)
            found.append(Call(start, "site", "m", end_us=start + round(latency_s * SECOND_US), actor="pool", **held))
    return found


HANDLER = Reason("code", Needs.SYNC, Proof.LIKELY, "a request handler", 0)
TASK = Reason("code", Needs.BATCH, Proof.LIKELY, "a DAG task starts it", 0)
SCRIPT = Reason("code", Needs.ASK, Proof.UNCLEAR, "a script", 0)

CASES: list[tuple[str, list[Call], tuple[Needs, Proof]]] = [
    ("nothing is logged", calls(100), (Needs.ASK, Proof.UNCLEAR)),
    ("used at once", calls(100, used_s=2), (Needs.SYNC, Proof.PROVED)),
    ("used at once, of few calls", calls(5, used_s=2), (Needs.SYNC, Proof.LIKELY)),
    ("used while it was written", calls(100, latency_s=20, used_s=-10), (Needs.SYNC, Proof.PROVED)),
    ("used within minutes", calls(100, used_s=300), (Needs.NEAR_REAL_TIME, Proof.PROVED)),
    ("used within the hour", calls(100, used_s=2400), (Needs.NEAR_REAL_TIME, Proof.PROVED)),
    ("used hours later", calls(100, used_s=9 * 3600 + 700), (Needs.BATCH, Proof.PROVED)),
    ("used hours later, of few calls", calls(15, used_s=9 * 3600 + 700), (Needs.BATCH, Proof.LIKELY)),
    ("used hours later, known of nearly all", calls(96, used_s=30_000) + calls(4), (Needs.BATCH, Proof.PROVED)),
    ("used hours later, known of half", calls(100, used_s=30_000) + calls(100), (Needs.ASK, Proof.UNCLEAR)),
    ("used hours later, known of a tenth", calls(100, used_s=30_000) + calls(900), (Needs.ASK, Proof.UNCLEAR)),
    (
        "used hours later, known of one trigger",
        calls(100, used_s=30_000, trigger="queue") + calls(900, trigger="job"),
        (Needs.HYBRID, Proof.LIKELY),
    ),
    (
        "used hours later, known of one trigger, the rest untold",
        calls(100, used_s=30_000, trigger="queue") + calls(900),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    ("used at once, known of most", calls(85, used_s=2) + calls(15), (Needs.SYNC, Proof.PROVED)),
    ("used at once, known of some", calls(70, used_s=2) + calls(30), (Needs.ASK, Proof.UNCLEAR)),
    ("used in minutes, known of most", calls(85, used_s=300) + calls(15), (Needs.ASK, Proof.UNCLEAR)),
    ("used hours later, known of too few", calls(40, used_s=30_000) + calls(360), (Needs.ASK, Proof.UNCLEAR)),
    ("used at once, known of few", calls(3, used_s=2) + calls(97), (Needs.ASK, Proof.UNCLEAR)),
    ("used at once, no end is logged", open_ended(calls(100, used_s=2)), (Needs.SYNC, Proof.PROVED)),
    ("used in minutes, no end is logged", open_ended(calls(100, used_s=300)), (Needs.ASK, Proof.UNCLEAR)),
    ("used hours later, no end is logged", open_ended(calls(100, used_s=30_000)), (Needs.ASK, Proof.UNCLEAR)),
    (
        "used at once, no end is logged, from a schedule",
        open_ended(calls(100, used_s=2, trigger="cron")),
        (Needs.SYNC, Proof.PROVED),
    ),
    (
        "used hours later, known of a hundredth",
        calls(30, used_s=9 * 3600) + calls(2700, 60),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    ("used exactly two hours later", calls(100, used_s=7200), (Needs.ASK, Proof.UNCLEAR)),
    (
        "used hours later, by broken clocks",
        calls(90, used_s=30_000) + calls(10, used_s=-30_000),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    (
        "12 % opened within four minutes, nothing tells them apart",
        calls(12, used_s=100) + calls(88, used_s=30_000),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    (
        "some soon, some late, told apart by the trigger",
        calls(40, used_s=3, trigger="job") + calls(60, used_s=30_000, trigger="queue"),
        (Needs.HYBRID, Proof.PROVED),
    ),
    (
        "some soon, some late, and who names no user is silent",
        calls(40, used_s=3, user="ana") + calls(60, used_s=30_000),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    (
        "some soon, some late, told apart, by broken clocks",
        calls(34, used_s=3, trigger="job")
        + calls(6, used_s=-30_000, trigger="job")
        + calls(60, used_s=30_000, trigger="queue"),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    (
        "some soon, some late, told apart by streaming",
        calls(40, used_s=3, stream=True) + calls(60, used_s=30_000, stream=False),
        (Needs.HYBRID, Proof.PROVED),
    ),
    ("partly from a schedule", calls(50, trigger="http") + calls(50, trigger="cron"), (Needs.HYBRID, Proof.LIKELY)),
    (
        "partly from a schedule, and that part is used at once",
        calls(50, trigger="job") + calls(50, used_s=3, trigger="cron") + calls(100, used_s=30_000, trigger="job"),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    (
        "partly from a schedule, the rest nearly known",
        calls(48, trigger="http") + calls(50, trigger="cron") + calls(2),
        (Needs.SYNC, Proof.LIKELY),
    ),
    ("partly from a schedule, the rest unknown", calls(50) + calls(50, trigger="cron"), (Needs.ASK, Proof.UNCLEAR)),
    ("streams to a user", calls(100, stream=True, user="ana"), (Needs.SYNC, Proof.PROVED)),
    ("streams", calls(100, stream=True), (Needs.SYNC, Proof.LIKELY)),
    (
        "streams to a user from a schedule",
        calls(100, stream=True, user="a", trigger="cron"),
        (Needs.SYNC, Proof.PROVED),
    ),
    (
        "streams to a user, used within minutes",
        calls(100, used_s=90, stream=True, user="a"),
        (Needs.SYNC, Proof.PROVED),
    ),
    ("names users", calls(100, user="ana"), (Needs.ASK, Proof.UNCLEAR)),
    ("a user types", session((20, 30, 40), 30, user="ana"), (Needs.SYNC, Proof.PROVED)),
    ("somebody types", session((20, 30, 40), 30), (Needs.SYNC, Proof.LIKELY)),
    ("a chain", session((0.1,) * 8, 30), (Needs.SYNC, Proof.LIKELY)),
    ("somebody may type", [*session((20, 30, 40), 30), *calls(1)], (Needs.ASK, Proof.UNCLEAR)),
    ("a loop over rows is no chain", session((0.1,) * 300, 2), (Needs.ASK, Proof.UNCLEAR)),
    ("a rhythm is no typing", calls(100, every_s=600, session="one"), (Needs.ASK, Proof.UNCLEAR)),
    ("a request starts it", calls(100, trigger="HTTP POST /reply"), (Needs.SYNC, Proof.LIKELY)),
    ("a build starts it", calls(100, trigger="pull_request"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a queue starts it", calls(100, trigger="queue"), (Needs.ASK, Proof.UNCLEAR)),
    ("a schedule starts it", calls(100, trigger="airflow: scheduled__2026"), (Needs.BATCH, Proof.PROVED)),
    ("a schedule starts it in runs of half an hour", runs(30, 10, 300, trigger="cron"), (Needs.BATCH, Proof.PROVED)),
    ("a workflow starts it", calls(100, trigger="dag"), (Needs.BATCH, Proof.LIKELY)),
    ("a workflow starts it every ten minutes", calls(1000, 600, trigger="dag"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a person starts the workflow", calls(100, trigger="airflow: manual__2026"), (Needs.ASK, Proof.UNCLEAR)),
    ("a schedule starts it every ten minutes", calls(1000, 600, trigger="cron"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a schedule starts it every 20 minutes", calls(1000, 1200, trigger="cron"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a schedule starts it every 40 minutes", calls(1000, 2400, trigger="cron"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    (
        "a schedule starts it every ten minutes of a working day",
        runs(14, 60, 600, trigger="cron"),
        (Needs.NEAR_REAL_TIME, Proof.LIKELY),
    ),
    ("a schedule starts it all day from eight to six", runs(14, 120, 300, trigger="cron"), (Needs.ASK, Proof.UNCLEAR)),
    ("one run of a schedule is seen", calls(50, 20, trigger="cron"), (Needs.ASK, Proof.UNCLEAR)),
    ("one run of hours of a schedule is seen", calls(200, 300, trigger="cron"), (Needs.ASK, Proof.UNCLEAR)),
    (
        "a schedule fills a pool of workers for hours",
        pool(400, 8, 120, trigger="cron", stream=False),
        (Needs.BATCH, Proof.LIKELY),
    ),
    (
        "a request starts most, a schedule some every ten minutes",
        calls(500, 1000, trigger="http") + calls(500, 600, trigger="cron"),
        (Needs.SYNC, Proof.LIKELY),
    ),
    ("a schedule starts it every five minutes", calls(2000, 300, trigger="cron"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a schedule starts it every 15 minutes", calls(2000, 900, trigger="cron"), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a schedule, used within minutes", calls(100, trigger="cron", used_s=200), (Needs.NEAR_REAL_TIME, Proof.PROVED)),
    ("ten seconds are declared", calls(100, deadline_s=10.0), (Needs.SYNC, Proof.LIKELY)),
    ("half an hour is declared", calls(100, deadline_s=1800.0), (Needs.NEAR_REAL_TIME, Proof.LIKELY)),
    ("a day is declared", calls(100, deadline_s=86_400.0), (Needs.BATCH, Proof.LIKELY)),
    ("a day is declared, by most", calls(96, deadline_s=86_400.0) + calls(4), (Needs.BATCH, Proof.LIKELY)),
    ("a day is declared, by some", calls(90, deadline_s=86_400.0) + calls(10), (Needs.ASK, Proof.UNCLEAR)),
    ("ten seconds are declared, by one", calls(1, deadline_s=10.0) + calls(99), (Needs.ASK, Proof.UNCLEAR)),
    ("a day is declared, by few", calls(20, deadline_s=86_400.0) + calls(80), (Needs.ASK, Proof.UNCLEAR)),
    (
        "a day is declared, and a request waits",
        calls(99, deadline_s=86_400.0, trigger="http"),
        (Needs.SYNC, Proof.LIKELY),
    ),
    ("in batches already", calls(100, tier=Tier.BATCH), (Needs.BATCH, Proof.PROVED)),
    ("a full pool that does not stream", pool(400, 8, 120, stream=False), (Needs.BATCH, Proof.LIKELY)),
    (
        "a full pool that does not stream, of which a call does not say its caller",
        [*pool(400, 8, 120, stream=False), *calls(1, stream=False)],
        (Needs.ASK, Proof.UNCLEAR),
    ),
    ("at eight every morning, for minutes", runs(9, 10, 30, stream=False), (Needs.BATCH, Proof.LIKELY)),
    (
        "at eight every morning but one",
        runs(5, 10, 30, stream=False) + later(runs(5, 10, 30, stream=False), 6 * 86_400),
        (Needs.ASK, Proof.UNCLEAR),
    ),
    ("at eight every morning, for a user", runs(9, 10, 30, stream=False, user="ana"), (Needs.ASK, Proof.UNCLEAR)),
    ("at eight every morning, perhaps streaming", runs(9, 10, 30), (Needs.ASK, Proof.UNCLEAR)),
    ("a full pool that may stream", pool(400, 8, 120), (Needs.ASK, Proof.UNCLEAR)),
    ("a full pool, for users", pool(400, 8, 120, stream=False, user="ana"), (Needs.ASK, Proof.UNCLEAR)),
    ("a full pool for ten minutes", pool(400, 8, 12, stream=False), (Needs.ASK, Proof.UNCLEAR)),
    ("hourly, day and night", calls(400, 3600, operation="embeddings"), (Needs.BATCH, Proof.LIKELY)),
    ("hourly, day and night, maybe streaming", calls(400, 3600), (Needs.ASK, Proof.UNCLEAR)),
]


@pytest.mark.parametrize(("found", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_a_log_says_decides(found: list[Call], expected: tuple[Needs, Proof]) -> None:
    """Each kind of evidence leads to its verdict, and silence to a question."""
    verdict = verdict_of(found)
    assert (verdict.needs, verdict.proof) == expected, verdict.reasons
    assert (verdict.asks is not None) == (verdict.needs is Needs.ASK)


def test_every_row_of_the_matrix_decides_some_case() -> None:
    """No row is there without a case that it decides."""
    first = {(v.reasons[0].kind, v.needs) for v in (verdict_of(found) for _, found, _ in CASES) if v.reasons}
    code = {("code", judge(None, [r]).needs) for r in (HANDLER, TASK, SCRIPT)} | {("code", Needs.NEAR_REAL_TIME)}
    assert {(row.kind, row.says) for row in MATRIX} - first == code


def test_the_code_decides_where_no_log_does() -> None:
    """Code alone is likely at most, and a request handler stands above a task of a DAG."""
    assert judge(None, [TASK]).needs is Needs.BATCH
    assert judge(None, [TASK]).proof is Proof.LIKELY
    assert judge(None, [TASK, HANDLER]).needs is Needs.SYNC
    assert judge(None, [SCRIPT]).needs is Needs.ASK
    assert judge(None).needs is Needs.ASK
    assert verdict_of(calls(100), TASK).needs is Needs.BATCH
    assert verdict_of(calls(100, used_s=30_000), HANDLER).needs is Needs.SYNC


def test_of_a_hybrid_only_the_calls_that_wait_are_movable() -> None:
    """The share that can move is that of the late calls."""
    verdict = verdict_of(calls(40, used_s=3, trigger="job") + calls(60, used_s=30_000, trigger="queue"))
    assert verdict.movable_share == pytest.approx(0.6)
    assert verdict_of(calls(30, trigger="http") + calls(70, trigger="cron")).movable_share == pytest.approx(0.7)
    by_owner = verdict_of(calls(150, used_s=30_000) + calls(50, user="ana"), decision=Decision(Needs.HYBRID))
    assert by_owner.movable_share == pytest.approx(0.75)
    moves = verdict_of(calls(30, trigger="http") + calls(70, trigger="cron")).moves
    assert moves is not None
    assert (moves.by, moves.values, moves.n_calls) == ("trigger", ("cron",), 70)
    assert verdict_of(calls(100, trigger="cron")).movable_share == 1
    assert verdict_of(calls(100, stream=True)).movable_share == 0
    assert verdict_of(calls(100)).movable_share == 0


# ----------------------------------------------------------------------------------------------------------- the laws

TRIGGERS = st.sampled_from([None, None, "cron", "http", "ci", "queue", "timer", "\N{SNOWMAN}"])


HELD: dict[str, st.SearchStrategy[Any]] = {
    "user": st.sampled_from(["ana", "bo"]),
    "stream": st.booleans(),
    "session": st.sampled_from(["one", "two"]),
    "actor": st.just("worker"),
    "trigger": TRIGGERS,
    "deadline_s": st.sampled_from([1.0, 59.0, 60.0, 1800.0, 3600.0, 86_400.0]),
    "tier": st.sampled_from([*Tier]),
    "operation": st.sampled_from(["chat", "embeddings"]),
    "output_tokens": st.integers(0, 100),
}


@st.composite
def logs(draw: st.DrawFn) -> list[Call]:
    """A site of some kinds of calls, each with whatever a log may say."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        n, every_s = draw(st.integers(1, 120)), draw(st.sampled_from([1, 60, 300, 3600, 7200, 86_400]))
        used_s = draw(st.sampled_from([None, -5000, -1, 0, 5, 70, 1000, 4000, 7200, 30_000, 30_000]))
        names = draw(st.lists(st.sampled_from(sorted(HELD)), max_size=3, unique=True))
        held = {name: draw(HELD[name]) for name in names}
        found += calls(n, every_s, draw(st.sampled_from([-1, 0.5, 0.5, 30, 4000])), used_s, **held)
    if draw(st.integers(0, 3)) == 0:
        held = {"user": draw(st.sampled_from([None, "ana"]))}
        found += session(draw(st.sampled_from([(20, 30, 40), (0.1,) * 8])), draw(st.integers(1, 20)), **held)
    if draw(st.integers(0, 3)) == 0:
        found += pool(draw(st.sampled_from([50, 100])), 8, draw(st.sampled_from([10, 600])), stream=draw(st.booleans()))
    return found


def claims(verdict: Verdict) -> dict[Needs, Proof]:
    """What the reasons speak for, and the strongest proof of each."""
    return {
        says: max((r.proof for r in verdict.reasons if r.says is says), key=STRENGTH.index)
        for says in {r.says for r in verdict.reasons} - {Needs.ASK}
    }


STRENGTH = [Proof.UNCLEAR, Proof.LIKELY, Proof.PROVED]
# Whom the log loses sight of: any, or just those that tell.
KINDS: dict[str, Callable[[Call], bool]] = {
    "all": lambda c: True,
    "used soon": lambda c: c.first_used_us is not None and c.first_used_us <= (c.end_us or c.start_us) + HOUR_US,
    "used at once": lambda c: (
        c.first_used_us is not None and c.first_used_us <= (c.end_us or c.start_us) + 100 * SECOND_US
    ),
    "used late": lambda c: c.first_used_us is not None and c.first_used_us > (c.end_us or c.start_us) + HOUR_US,
    "skewed": lambda c: (c.first_used_us or c.start_us) < c.start_us or (c.end_us or c.start_us) < c.start_us,
    "scheduled": lambda c: c.trigger in ("cron", "timer"),
    "not scheduled": lambda c: c.trigger not in ("cron", "timer"),
    "streaming": lambda c: c.stream is True,
    "in a hurry": lambda c: c.deadline_s is not None and c.deadline_s < 3600,
    "in great hurry": lambda c: c.deadline_s is not None and c.deadline_s < 60,
    "with a user": lambda c: c.user is not None,
    "by timer": lambda c: c.trigger == "timer",
    "for hours": lambda c: (c.end_us or 0) - c.start_us > HOUR_US,
    "by the minute": lambda c: c.start_us // MINUTE_US % 2 == 0,
    "by the second": lambda c: c.start_us // SECOND_US % 2 == 0,
}
LOSSES = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.sets(st.sampled_from([*HELD, "first_used_us", "first_used_us", "end_us"]), min_size=1, max_size=3)
        | st.sets(st.sampled_from(sorted(OPTIONAL)), min_size=1),
        st.sampled_from([0.03, 0.1, 0.5, 0.9, 0.97, 1]),
    ),
    min_size=1,
    max_size=3,
)


def without(found: list[Call], losses: list[tuple[str, set[str], float]], chance: Random) -> list[Call]:
    """The log, of which some of some kinds of calls have lost fields."""
    for kind, fields, share in losses:
        lost = {name: OPTIONAL[name] for name in fields}
        told = [KINDS[kind](call) for call in found]
        found = [
            call._replace(**lost) if of_kind and chance.random() < share else call
            for call, of_kind in zip(found, told, strict=True)
        ]
    return found


def assert_towards_ask(before: Verdict, after: Verdict) -> None:
    """Nothing is spoken for that was not before, and nothing more strongly; a part of what waits is less than all of it.

    So where all evidence agrees, what is left decides the same, or for a part, or asks; and where it does not, what decides
    then was listed before, below what decided against it.
    """
    said = claims(before)
    for needs, proof in claims(after).items():
        as_before = [said[n] for n in (needs, Needs.BATCH) if n in said and (n is needs or needs is Needs.HYBRID)]
        assert as_before, (before.reasons, after.reasons)
        assert STRENGTH.index(proof) <= max(map(STRENGTH.index, as_before)), (before.reasons, after.reasons)
    if {r.says for r in before.reasons} <= {before.needs}:
        part = {Needs.HYBRID} if before.needs is Needs.BATCH else set()
        assert after.needs in {before.needs, Needs.ASK, *part}
        assert STRENGTH.index(after.proof) <= STRENGTH.index(before.proof)


# A log, and of which calls it loses what: each of these made a verdict look more certain once.
HALF_HOURS = [
    *calls(100, 360, trigger="http"),
    *(c for hour in range(10) for c in later(calls(10, 1, trigger="cron"), hour * 3600)),
    *(c for hour in range(9) for c in later(calls(1, 1, trigger="timer"), hour * 3600 + 1800)),
]
TELLING: list[tuple[str, list[Call], str, set[str]]] = [
    ("the soon ones of some", calls(120, used_s=100) + calls(880, used_s=30_000), "used soon", {"first_used_us"}),
    ("the late ones of nearly all", calls(30, used_s=2) + calls(970, used_s=30_000), "used late", {"first_used_us"}),
    ("the late ones of most", calls(40, used_s=2) + calls(60, used_s=30_000), "used late", {"first_used_us"}),
    ("those at once of those soon", calls(10, used_s=2) + calls(90, used_s=1500), "used at once", {"first_used_us"}),
    ("the user of the late", calls(40, used_s=2, user="a") + calls(60, used_s=30_000, user="a"), "used late", {"user"}),
    (
        "the trigger of the soon",
        calls(40, used_s=2, trigger="queue") + calls(60, used_s=30_000, trigger="queue"),
        "used soon",
        {"trigger"},
    ),
    (
        "that they stream, of the soon",
        calls(40, used_s=2, stream=False) + calls(60, used_s=30_000, stream=False),
        "used soon",
        {"stream"},
    ),
    ("the ends that are skewed", calls(6, latency_s=-5) + calls(94, used_s=30_000), "skewed", {"end_us"}),
    ("every other step of a chain", session((3.0,) * 20, 30, user="ana"), "by the second", {"session"}),
    (
        "the short deadlines",
        calls(10, deadline_s=1800.0) + calls(90, deadline_s=86_400.0),
        "in a hurry",
        {"deadline_s"},
    ),
    (
        "the shortest deadlines",
        calls(10, deadline_s=5.0) + calls(90, deadline_s=1800.0),
        "in great hurry",
        {"deadline_s"},
    ),
    ("every other run of a schedule", HALF_HOURS, "by timer", {"trigger"}),
    (
        "the callers at the peak",
        [*pool(400, 8, 120, stream=False), *(c for i in range(8) for c in pool(4, 8, 7000, stream=False))],
        "for hours",
        {"actor"},
    ),
]


@pytest.mark.parametrize(("found", "of", "fields"), [case[1:] for case in TELLING], ids=[case[0] for case in TELLING])
def test_what_told_is_missed(found: list[Call], of: str, fields: set[str]) -> None:
    """A log that lost just what spoke against it is no stronger than it was."""
    assert_towards_ask(verdict_of(found), verdict_of(without(found, [(of, fields, 1)], Random(0))))


@settings(max_examples=500, deadline=None)
@given(
    found=logs(),
    losses=LOSSES,
    code=st.lists(st.sampled_from([TASK, HANDLER, SCRIPT]), max_size=2),
    chance=st.randoms(use_true_random=False),
)
def test_less_evidence_only_moves_a_verdict_towards_ask(
    found: list[Call], losses: list[tuple[str, set[str], float]], code: list[Reason], chance: Random
) -> None:
    """Whatever calls lose whatever fields, nothing is spoken for that was not before, and nothing more strongly."""
    assert_towards_ask(verdict_of(found, *code), verdict_of(without(found, losses, chance), *code))


@settings(max_examples=200, deadline=None)
@given(found=logs(), code=st.lists(st.sampled_from([TASK, HANDLER, SCRIPT])))
def test_whoever_waits_decides(found: list[Call], code: list[Reason]) -> None:
    """No site is called batch while anything says that somebody waits."""
    verdict = verdict_of(found, *code)
    if verdict.needs is Needs.BATCH:
        assert {r.says for r in verdict.reasons} <= {Needs.BATCH, Needs.HYBRID, Needs.ASK}
    if verdict.needs is Needs.NEAR_REAL_TIME:
        assert Needs.SYNC not in {r.says for r in verdict.reasons}


# ------------------------------------------------------------------------------------------------------- the owner's word


def test_an_owner_decides_and_is_told_what_the_log_proves() -> None:
    """A decision stands above the log, as likely; what the log proves against it is said."""
    decision = Decision(Needs.BATCH, 8 * 3600, "ana", "nobody looks before noon", date(2026, 11, 22))
    verdict = verdict_of(calls(100, used_s=2), decision=decision)
    assert (verdict.needs, verdict.proof, verdict.by_owner) == (Needs.BATCH, Proof.LIKELY, True)
    assert verdict.movable_share == 1
    said = contradicted(verdict)
    assert said is not None
    assert "used within a minute" in said
    assert "ana decided on 2026-11-22: batch, answers due in 8 h (nobody looks before noon)" == verdict.reasons[0].text


def test_an_owner_is_likely_unless_the_log_proves_the_same() -> None:
    """What an owner says is proved only by a log that proves it."""
    batch = Decision(Needs.BATCH)
    assert verdict_of(calls(100), decision=batch).proof is Proof.LIKELY
    assert verdict_of(calls(100, used_s=30_000), decision=batch).proof is Proof.PROVED
    assert contradicted(verdict_of(calls(100, used_s=30_000), decision=batch)) is None
    assert judge(None, (), batch).proof is Proof.LIKELY


def test_an_owner_may_ask_for_more_care_than_the_log() -> None:
    """A site that could wait by its log stays where it is when its owner says so."""
    verdict = verdict_of(calls(100, used_s=30_000), decision=Decision(Needs.SYNC))
    assert (verdict.needs, verdict.movable_share, contradicted(verdict)) == (Needs.SYNC, 0, None)
    asked = verdict_of(calls(100, used_s=30_000), decision=Decision(Needs.ASK))
    assert (asked.needs, asked.proof) == (Needs.ASK, Proof.UNCLEAR)
    assert asked.asks


DECISIONS = st.builds(
    Decision,
    st.sampled_from([*Needs]),
    st.none() | st.integers(1, 10 * 86_400),
    st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.none() | st.dates(),
    st.booleans(),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=1500)


@settings(max_examples=200)
@given(decisions=st.dictionaries(NAMES, DECISIONS, max_size=5))
def test_decisions_are_read_as_they_were_saved(decisions: dict[str, Decision], tmp_path_factory: Any) -> None:
    """Whatever a log calls its sites, a decision saved is the decision that the next audit reads."""
    path = tmp_path_factory.mktemp("decisions") / "audit-decisions.yaml"
    save_decisions(path, decisions)
    assert load_decisions(path) == decisions
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("sites:\n  a:\n    needs: bach\n", "3:12", "did you mean 'batch'?"),
        ("sites:\n  a:\n    owner: ana\n", "2:3", "is missing"),
        ("sites:\n  a:\n    needs: batch\n    dedline: 8h\n", "4:5", "did you mean 'deadline'?"),
        ("sites:\n  a:\n    needs: batch\n    deadline: 8\n", "4:15", "a duration states its unit"),
        ("sites:\n  a:\n    needs: batch\n    date: yesterday\n", "4:11", "expected a date"),
        ("sites:\n  a:\n    needs: batch\n    owner: [1]\n", "4:12", "expected text"),
        ("sites:\n  a:\n    needs: batch\n    may_share: 1\n", "4:16", "expected true or false"),
        ("sites:\n  a: batch\n", "2:6", "expected a mapping"),
        ("sites: [a]\n", "1:8", "expected a mapping of call sites"),
        ("site: {}\n", "1:1", "did you mean 'sites'?"),
        ("- a\n", "1:1", "expected a mapping"),
        ("sites: {\n", "2:1", "not YAML"),
    ],
)
def test_a_wrong_decision_is_told_at_its_place(text: str, at: str, says: str, tmp_path: Path) -> None:
    """A mistake in the file stops the audit, with file, line and column."""
    path = tmp_path / "audit-decisions.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(SpecError) as caught:
        load_decisions(path)
    assert f"{path}:{at}: " in str(caught.value), str(caught.value)
    assert says in str(caught.value)


def test_a_file_without_decisions_decides_nothing(tmp_path: Path) -> None:
    """An empty file, and one of comments only, holds no decision; one that is not there is told."""
    path = tmp_path / "audit-decisions.yaml"
    for text in ("", "# nothing yet\n", "sites:\n", "sites: {}\n"):
        path.write_text(text, "utf-8")
        assert load_decisions(path) == {}
    with pytest.raises(SpecError, match="cannot be read"):
        load_decisions(tmp_path / "missing.yaml")


def test_urgencies_of_a_job_file_are_needs_too(tmp_path: Path) -> None:
    """The words of a job file mean the same in a decision."""
    path = tmp_path / "audit-decisions.yaml"
    path.write_text("sites:\n  a: {needs: sync}\n  b: {needs: near_real_time}\n  c: {needs: ask}\n", "utf-8")
    assert [d.needs for d in load_decisions(path).values()] == [Needs.SYNC, Needs.NEAR_REAL_TIME, Needs.ASK]


def test_the_matrix_in_the_docs_is_the_matrix() -> None:
    """docs/audit.md lists the rows in order, as the code has them."""
    text = (DOCS / "audit.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)
    assert rows[1:] == [(row.kind, row.when, row.says.value, row.proof.value) for row in MATRIX]
