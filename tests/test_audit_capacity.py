"""How many warm slots traffic needs: the simulation, its laws, and known answers on real traces."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.audit.capacity import (
    HOURS_A_MONTH,
    TARGET,
    Avoided,
    Replica,
    Target,
    Trace,
    Work,
    avoided,
    erlang_c,
    erlang_slots,
    hybrid,
    load_by_step,
    slots_needed,
    square_root_slots,
    staffing,
    valley_capacity,
    waits,
    warm_capacity,
)

TRACES = Path(__file__).parent.parent.parent / "shared" / "data" / "traces"
RATES = TRACES / "servegen_rates_10min_14d.csv"
with_traces = pytest.mark.skipif(not RATES.exists(), reason="../shared/data/traces is missing")

times = st.integers(0, 400).map(lambda n: n / 8)  # eighths add up exactly
works = st.lists(st.builds(Work, times, times), min_size=1, max_size=40)
loads = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=16)

# -------------------------------------------------------------------------------------------------- call by call


@given(works, st.data())
def test_a_trace_holds_its_calls_in_order(work: list[Work], data: st.DataObject) -> None:
    """However they came: each with its service and whether it can wait, and its parts hold what they say."""
    flags = data.draw(st.lists(st.booleans(), min_size=len(work), max_size=len(work)))
    trace = Trace.of(work, flags)
    both = sorted(zip(work, flags, strict=True), key=lambda call: call[0].at_s)
    assert list(zip(trace.at_s, trace.service_s, trace.can_wait, strict=True)) == [(*call, flag) for call, flag in both]
    stay = trace.staying()
    assert list(zip(stay.at_s, stay.service_s, strict=True)) == [call for call, flag in both if not flag]
    with pytest.raises(ValueError, match="zip"):
        Trace.of(work, [*flags, True])
    some = trace.between(10, 20)
    assert list(zip(some.at_s, some.can_wait, strict=True)) == [(c.at_s, flag) for c, flag in both if 10 <= c.at_s < 20]


def test_a_call_waits_for_the_slot_that_is_free_first() -> None:
    """First come, first served: the third call of two slots starts when the shorter of the two before it ends."""
    assert list(waits(Trace.of([Work(0, 10), Work(1, 4), Work(2, 1), Work(3, 1)]), 2)) == [0, 0, 3, 3]


@given(works, st.integers(1, 6))
def test_one_more_slot_lets_no_call_wait_longer(work: list[Work], n_slots: int) -> None:
    """Waits fall in the number of slots, call by call: what the search for the smallest number rests on."""
    trace = Trace.of(work)
    assert all(more <= less for more, less in zip(waits(trace, n_slots + 1), waits(trace, n_slots), strict=True))


@given(works, st.sampled_from([0.0, 0.01, 0.1, 0.5]), times)
def test_the_slots_needed_are_the_fewest_that_meet_the_target(work: list[Work], late: float, wait_s: float) -> None:
    """With that number at most the share of the target waits too long; with one less more do."""
    trace = Trace.of(work)
    n_slots = slots_needed(trace, Target(wait_s, late))

    def share(n: int) -> float:
        return sum(wait > wait_s for wait in waits(trace, n)) / len(work)

    assert share(n_slots) <= late
    assert n_slots == 1 or share(n_slots - 1) > late


@pytest.mark.parametrize(
    ("replica", "slots", "replicas"),
    [
        (Replica(8), 1, 1),
        (Replica(8), 8, 1),
        (Replica(8), 9, 2),
        (Replica(8, at_least=3), 9, 3),
        (Replica(8, at_least=3), 25, 4),
        (Replica(8, at_least=0), 0, 0),
        (Replica(8, at_least=1), 0, 1),
    ],
)
def test_replicas_are_whole_and_the_contract_keeps_its_minimum(replica: Replica, slots: int, replicas: int) -> None:
    """A started replica is paid for whole, and the contract's minimum is paid for whatever the load."""
    assert replica.whole(slots) == replicas


def test_what_leaves_frees_whole_replicas_and_shortens_the_queue() -> None:
    """Ten calls at once of which eight can wait: five replicas of two slots become one, 4 x 720 hours a month."""
    work = [Work(0, 60)] * 10
    found = warm_capacity(Trace.of(work, [n >= 2 for n in range(10)]), Replica(2))
    assert (found.slots_before, found.slots_after) == (10, 2)
    assert (found.replicas_before, found.replicas_after) == (5, 1)
    assert found.hours_avoided == 4 * HOURS_A_MONTH == 2880
    assert found.queue_shrunk.n_calls == 2
    assert found.queue_shrunk.p99_s == 0


def test_the_queue_of_what_stays_is_shown_before_and_after() -> None:
    """A person's call behind a long job waits for it before the job is moved, and not after."""
    trace = Trace.of([Work(0, 100), Work(1, 1), Work(2, 1)], [True, False, False])
    found = warm_capacity(trace, Replica(1), Target(99, 0.0))
    assert found.slots_before == 1
    assert (found.queue_before.mean_s, found.queue_before.p99_s, found.queue_before.late) == (99, 99, 0)
    assert (found.queue_after.mean_s, found.queue_after.p50_s, found.queue_after.late) == (0, 0, 0)
    assert warm_capacity(trace, Replica(1), Target(98.5, 1.0)).queue_before.late == 1


def test_nothing_is_avoided_when_the_calls_that_stay_are_the_ones_that_crowd() -> None:
    """Few of all calls are late, but many of those that stay: then no hour is called avoided."""
    work = [Work(n * 10, 1) for n in range(98)] + [Work(2000, 5)] * 2
    found = warm_capacity(Trace.of(work, [n < 98 for n in range(100)]), Replica(1))
    assert found.slots_before == 1 < found.slots_after == 2
    assert found.hours_avoided == 0


@given(works, st.data())
def test_moving_everything_leaves_what_the_contract_keeps(work: list[Work], data: st.DataObject) -> None:
    """When every call can wait, only the minimum stays warm; when none can, nothing changes."""
    replica = Replica(data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3)))
    gone = warm_capacity(Trace.of(work, [True] * len(work)), replica)
    assert (gone.slots_after, gone.replicas_after) == (0, replica.at_least)
    kept = warm_capacity(Trace.of(work), replica)
    assert kept.hours_avoided == 0
    assert kept.queue_before == kept.queue_after == kept.queue_shrunk


@pytest.mark.parametrize("ask", [staffing, slots_needed])
def test_no_calls_have_no_answer(ask: Callable[[Trace], object]) -> None:
    """Nothing logged is not a load of zero."""
    with pytest.raises(ValueError, match="no"):
        ask(Trace.of([]))


# ------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(("n", "offered", "waits_at_all"), [(10, 8, 0.4092), (2, 1, 1 / 3), (1, 0.5, 0.5), (3, 3, 1)])
def test_erlang_c_known_answers(n: int, offered: float, waits_at_all: float) -> None:
    """The share that waits at all agrees with published values, and is everything where the load is too much."""
    assert erlang_c(n, offered) == pytest.approx(waits_at_all, abs=5e-5)


@given(st.integers(1, 30), st.integers(1, 99))
def test_erlang_c_is_what_its_sum_says(n: int, percent: int) -> None:
    """The recursion agrees with the textbook's sum, done in fractions."""
    a = Fraction(percent * n, 100)
    last = a**n / math.factorial(n) * n / (n - a)
    exact = last / (sum(a**k / math.factorial(k) for k in range(n)) + last)
    assert erlang_c(n, float(a)) == pytest.approx(float(exact), rel=1e-9)


def test_the_rules_for_a_chat_of_24_busy_slots() -> None:
    """Load 24.147 of 4.366 s a call: Erlang's C gives 33 slots, the square-root rule 35.6."""
    assert erlang_slots(24.147, 4.366) == 33
    assert square_root_slots(24.147) == pytest.approx(35.6, abs=0.05)


def test_random_arrivals_need_what_erlang_says() -> None:
    """Where arrivals and service are random, the simulation and the formula agree to a slot."""
    rng = random.Random(7)
    at = accumulate(rng.expovariate(4) for _ in range(40_000))
    found = staffing(Trace.of(Work(at_s, rng.expovariate(1 / 5)) for at_s in at))
    assert abs(found.simulated - found.erlang) <= 1
    assert found.offered == pytest.approx(20, rel=0.03)


# ---------------------------------------------------------------------------------------------------- step by step


def feasible(capacity: Fraction, online: Sequence[int], deferred: Sequence[int], wait_steps: int) -> bool:
    """methods.md 2, word for word: serve the earliest deadline first, and look whether anything is late."""
    arrived, served = list(accumulate(deferred)), Fraction(0)
    for t, load in enumerate(online):
        served += min(arrived[t] - served, capacity - load)
        if capacity < load or (t >= wait_steps and served < arrived[t - wait_steps]):
            return False
    return True


@given(loads, st.integers(0, 17))
def test_the_valley_is_filled_exactly(steps: list[tuple[int, int]], wait_steps: int) -> None:
    """The capacity is enough by the step-by-step simulation, and a thousandth less is not."""
    online, deferred = [a for a, _ in steps], [b for _, b in steps]
    found = Fraction(valley_capacity(online, deferred, wait_steps)).limit_denominator(1000)
    assert feasible(found, online, deferred, wait_steps)
    assert found == 0 or not feasible(found * Fraction(999, 1000), online, deferred, wait_steps)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.integers(0, 10), st.integers(0, 25))
def test_laws_of_what_is_avoided(load: list[int], tenths: int, wait_steps: int) -> None:
    """No wait avoids nothing; nothing avoids more than the share that waits; a longer wait or a larger share no less."""

    def of(tenths: int, wait_steps: int) -> Avoided:
        return avoided([x * (10 - tenths) / 10 for x in load], [x * tenths / 10 for x in load], wait_steps)

    here = of(tenths, wait_steps)
    assert -1e-9 <= here.sustained <= here.within_log + 1e-9 <= here.moved_off + 2e-9
    assert here.moved_off == pytest.approx(tenths / 10)
    assert of(tenths, 0).within_log == pytest.approx(0, abs=1e-9)
    longer, more = of(tenths, wait_steps + 1), of(min(10, tenths + 1), wait_steps)
    assert min(longer.within_log, more.within_log) >= here.within_log - 1e-9
    assert min(longer.sustained, more.sustained) >= here.sustained - 1e-9


def test_a_flat_load_avoids_its_share_only_when_it_leaves() -> None:
    """Moved off, a flat load's share is avoided whole; on the same servers waiting gains nothing that lasts."""
    flat = avoided([7.0] * 20, [3.0] * 20, 5)
    assert (flat.moved_off, flat.sustained) == (pytest.approx(0.3), pytest.approx(0))
    assert flat.within_log == pytest.approx(0.3 * 5 / 20)  # the last five steps' work is left behind
    assert avoided([7.0] * 20, [3.0] * 20, 20).within_log == pytest.approx(0.3)  # all of it is


def test_no_load_has_no_answer() -> None:
    """Shares of a peak of nothing are refused."""
    with pytest.raises(ValueError, match="no load"):
        avoided([0.0], [0.0], 1)
    with pytest.raises(ValueError, match="no load"):
        hybrid([], [], 1, replica_load=1)


def test_hybrid_serving_fills_slack_and_starts_replicas_when_due() -> None:
    """Of 4 deferred, 1 fits beside 9 of 10; the rest comes due at the next step and starts one replica."""
    found = hybrid([9.0, 10.0], [4.0, 0.0], 1, replica_load=10)
    assert (found.replica_steps_before, found.replica_steps_after, found.fitted) == (3, 3, 0.25)
    patient = hybrid([9.0, 10.0, 7.0], [4.0, 0.0, 0.0], 2, replica_load=10)
    assert (patient.replica_steps_before, patient.replica_steps_after, patient.fitted) == (4, 3, 1.0)
    assert patient.saved == 0.25


@given(loads, st.integers(0, 17), st.integers(1, 12), st.sampled_from([0.5, 0.7, 1.0]))
def test_hybrid_serving_does_all_the_work(
    steps: list[tuple[int, int]], wait_steps: int, replica: int, target_use: float
) -> None:
    """Its replicas hold at least the whole load, and no more than all that waits finds slack."""
    online, deferred = [a for a, _ in steps], [b for _, b in steps]
    found = hybrid(online, deferred, wait_steps, replica_load=replica, target_use=target_use)
    assert found.replica_steps_after * replica >= sum(online) + sum(deferred) - 1e-9
    assert 0 <= found.fitted <= 1 + 1e-9


@given(works, st.sampled_from([1.0, 7.5, 100.0]))
def test_the_load_by_step_holds_all_service(work: list[Work], step_s: float) -> None:
    """No second of service is lost or counted twice between steps."""
    assert math.fsum(load_by_step(Trace.of(work), step_s)) * step_s == pytest.approx(
        math.fsum(w.service_s for w in work)
    )


def test_the_load_by_step_lies_where_it_is_served() -> None:
    """A call over three steps is busy in each for the time it is there."""
    assert load_by_step(Trace.of([Work(105, 20), Work(100, 0)]), 10) == [0.5, 1.0, 0.5]


# ---------------------------------------------------------------------------------------------------- real traces


def chat() -> list[Work]:
    with (TRACES / "mooncake_conversation.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    return [work(row["timestamp"] / 1000, row["input_length"], row["output_length"]) for row in rows]


def code() -> list[Work]:
    with (TRACES / "azure_llm_2023_code.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    start = datetime.fromisoformat(rows[0]["TIMESTAMP"][:26])
    return [
        work(
            (datetime.fromisoformat(row["TIMESTAMP"][:26]) - start).total_seconds(),
            int(row["ContextTokens"]),
            int(row["GeneratedTokens"]),
        )
        for row in rows
    ]


def work(at_s: float, input_tokens: int, output_tokens: int) -> Work:
    """methods.md states no speeds; these give its load for the chat trace it used, which is not in ../shared."""
    return Work(at_s, input_tokens / 8000 + output_tokens / 50)


@with_traces
def test_real_traffic_needs_more_slots_than_formulas_say() -> None:
    """An hour of chat needs 46 slots where Erlang says 40; an hour of code completion 32 where it says 5."""
    of_chat, of_code = staffing(Trace.of(chat())), staffing(Trace.of(code()))
    assert (of_chat.simulated, of_chat.erlang, round(of_chat.square_root, 1)) == (46, 40, 40.8)
    assert (of_code.simulated, of_code.erlang, round(of_code.square_root, 1)) == (32, 5, 5.5)


@with_traces
@pytest.mark.parametrize("trace", [chat, code])
def test_36_slots_where_erlang_says_33_are_of_neither_trace_here(trace: Callable[[], list[Work]]) -> None:
    """At the load of 35.6 by the square-root rule, both traces' calls are too long for Erlang's C to say 33."""
    calls = trace()
    a_second = len(calls) / (calls[-1].at_s - calls[0].at_s)
    loads = [a / 100 for a in range(2300, 2500) if 35.55 <= square_root_slots(a / 100) <= 35.65]
    assert {erlang_slots(load, 4.366) for load in loads} == {33}
    assert all(erlang_slots(load, load / a_second) > 33 for load in loads)


def rates(model: str) -> tuple[list[float], int]:
    """Requests a second in each 10 min of the days the trace holds, and how many steps of the 14 days it lacks."""
    with RATES.open(newline="") as file:
        cells = [row[model] for row in csv.DictReader(file)]
    return [float(cell) for cell in cells if cell], cells.count("")


VALLEYS = [
    ("language_m-large", [0.30, 0.30, 0.455, 0.50, 0.47, 0.66], [0.30, 0.30, 0.455, 0.50, 0.47, 0.66]),
    ("reason_deepseek-r1", [0.30, 0.30, 0.425, 0.50, 0.46, 0.70], [0.30, 0.30, 0.425, 0.50, 0.46, 0.623]),
    ("multimodal_mm-image", [0.15, 0.30, 0.18, 0.50, 0.20, 0.64], [0.154, 0.287, 0.176, 0.287, 0.196, 0.287]),
]


def split(load: Sequence[float], wait_hours: int, share: float) -> Avoided:
    return avoided([(1 - share) * x for x in load], [share * x for x in load], 6 * wait_hours)


@with_traces
@pytest.mark.parametrize(("model", "table", "lasting"), VALLEYS)
def test_valleys_of_fourteen_days(model: str, table: list[float], lasting: list[float]) -> None:
    """The table of methods.md 2 within 2 %, where days without figures are idle; and what lasts if days are as logged.

    Only the first model has 14 days. The other two have one, and nothing can wait 24 h for a night that was not logged.
    """
    load, n_lacking = rates(model)
    cases = [(share, hours) for share in (0.3, 0.5, 0.7) for hours in (1, 24)]
    idle = [*load, *[0.0] * n_lacking]
    found = [split(idle, hours, share).within_log for share, hours in cases]
    assert found == [pytest.approx(x, rel=0.02, abs=0.005) for x in table]  # it is printed to half a hundredth
    assert [split(load, hours, share).sustained for share, hours in cases] == [
        pytest.approx(x, rel=0.02, abs=0.001) for x in lasting
    ]


@with_traces
@pytest.mark.parametrize("model", [model for model, *_ in VALLEYS])
def test_hybrid_serving_of_fourteen_days(model: str) -> None:
    """With replicas filled to 75 %, ten at peak: 26-29 % of their hours saved, 97-100 % of what waits found slack."""
    load, _ = rates(model)
    found = hybrid([0.7 * x for x in load], [0.3 * x for x in load], 144, replica_load=max(load) / 10, target_use=0.75)
    assert 0.26 <= found.saved <= 0.29
    assert 0.97 <= found.fitted <= 1


@with_traces
def test_moving_half_the_chat_frees_replicas_and_its_queue() -> None:
    """Without a random half of an hour of chat fewer replicas meet the target, and the rest never waits longer."""
    calls, rng = chat(), random.Random(5)
    found = warm_capacity(Trace.of(calls, [rng.random() < 0.5 for _ in calls]), Replica(8))
    assert (found.replicas_before, found.replicas_after) == (6, 4)
    assert found.queue_after.p99_s <= found.queue_before.p99_s
    assert found.queue_shrunk.late <= TARGET.late
