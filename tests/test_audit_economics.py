"""What moving a call site is worth: known answers by hand, the laws of ranges, and the words of a verdict."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.audit.capacity import Replica, Target, Trace, Work, warm_capacity
from canwait.audit.economics import GAINS, Economics, assess, saving, warm_hours, words
from canwait.audit.worksheet import INPUTS, Case, Stated, Unit, Worksheet, answered, applicable

TODAY = date(2026, 11, 22)

TOKENS = {
    "realtime_cost": "$1000/month",
    "batch_share": "50 %",
    "failure_rate": "0 %",
    "timeout_rate": "0 %",
    "staging_volume": "10 GB/month",
    "staging_price": "$1/GB",
    "storage_transfer": "$10/month",
    "operations_hours": "2 h/month",
    "operations_rate": "$80/h",
    "missed_rate": "1 /month",
    "missed_cost": "$20",
}  # 1000 - 500 - 10 - 10 - 160 - 20 = 300
SUMMED = [*TOKENS, "batch_cost", "warm_hours_avoided", "hour_price"]


def sheet(inputs: Mapping[str, str], case: Case = Case.TOKENS) -> Worksheet:
    worksheet = Worksheet("a", case)
    for name, text in inputs.items():
        worksheet = answered(worksheet, name, text, source="stated for this test", as_of=TODAY)
    return worksheet


def ask(
    changes: Mapping[str, str | None] = {}, base: Mapping[str, str] = TOKENS, case: Case = Case.TOKENS
) -> Economics:
    """The base with some inputs changed, or missing where None."""
    return assess(
        sheet({name: text for name, text in {**base, **changes}.items() if text is not None}, case), Random(1)
    )


@st.composite
def stated(draw: st.DrawFn, name: str) -> Stated:
    scale = {Unit.SHARE: Decimal(3000), Unit.TIMES: Decimal(600)}.get(INPUTS[name].unit, Decimal(10))
    numbers = sorted(draw(st.lists(st.integers(0, 1000), min_size=3, max_size=3)))
    low, likely, high = (number / scale for number in numbers)
    return Stated(low, likely, high, "drawn", TODAY)


@st.composite
def worksheets(draw: st.DrawFn, whole: bool = False) -> Worksheet:
    case = draw(st.sampled_from(Case))
    names = [name for name in SUMMED if name in applicable(case)]
    chosen = names if whole else draw(st.sets(st.sampled_from(names)))
    return Worksheet("a", case, {name: draw(stated(name)) for name in chosen})


# ------------------------------------------------------------------------------------------------- known answers


def test_the_sum_is_what_it_says() -> None:
    """1000 - 500 - 10 - 10 - 160 - 20 = 300, and every end of the interval is that where nothing is a range."""
    found = ask()
    assert (found.known.low, found.known.likely, found.known.high) == (300, 300, 300)
    assert found.verdict == "saves in every stated case"
    assert found.gaps == ()


def test_rows_that_fail_are_paid_for_until_they_do_not() -> None:
    """Of rows that fail one time in five, every useful one is paid for 1.25 times: 500 become 625."""
    found = ask({"failure_rate": "15 %", "timeout_rate": "5 %"})
    assert found.known.likely == 300 - 125


PROTOTYPE = {
    "warm_hours_avoided": "150-300-420 h/month",
    "hour_price": "$2.60/h",
    "batch_cost": "$200-220-300/month",
    "failure_rate": "0-0-10 %",
    "timeout_rate": "0 %",
    "staging_volume": "120-240-400 GB",
    "staging_price": "$0.10/GB",
    "operations_hours": "2-4-12 h/month",
    "operations_rate": "$80/h",
}  # 780 - 220 - 24 - 320 = 216; storage and transfer and missed deadlines are missing


def test_the_prototype_says_what_could_erase_216_a_month() -> None:
    """methods.md 2: 216 a month is known; 217 of 300 warm hours or 6.7 of 4 hours of work erase it, and so may 216 more.

    Its prices follow from its break-evens (216 / 83 h and 216 / 2.7 h); the rest of its inputs it does not state.
    """
    found = ask({}, PROTOTYPE, Case.OWN_GPU)
    assert found.known.likely == 216
    # 150 x 2.6 - 300 / .9 - 40 - 960 and 420 x 2.6 - 200 - 12 - 160
    assert found.known.low == pytest.approx(Decimal("390") - Decimal(1000) / 3 - 1000)
    assert found.known.high == 720
    erasing = {swing.name: swing.break_even for swing in found.tornado if swing.can_erase}
    assert {name: round(float(x or 0), 1) for name, x in erasing.items()} == {
        "warm_hours_avoided": 216.9,
        "operations_hours": 6.7,
    }
    assert [(gap.name, gap.limit) for gap in found.gaps] == [("storage_transfer", 216), ("missed deadlines", 216)]
    assert found.verdict == (
        "cannot say: storage and transfer, missed deadlines missing; together they may be at most $216 per month"
    )
    assert found.chance
    assert 0.3 < found.chance.saves < 0.7  # "you save 216" would have been a point


def test_a_chance_prints_with_what_it_was_given() -> None:
    """No probability stands alone: its draws, its ranges and what is missing from it are in the same words."""
    chance = ask({"storage_transfer": None, "operations_hours": "0-2-9 h"}).chance
    assert str(chance) == (
        f"{chance.saves:.0%} of 20,000 draws save, given the stated ranges, each drawn on its own (triangular)"
        "; not in it, because missing: storage and transfer"
    )


@pytest.mark.parametrize(
    ("realtime", "batch", "share"),
    [
        ("$0-100-200/month", "$100/month", 0.5),  # symmetric
        ("$0-100-100/month", "$50/month", 0.75),  # 1 - (50/100)^2
        ("$0-0-100/month", "$50/month", 0.25),
        ("$0-60-100/month", "$30/month", 0.85),  # 1 - 30^2 / (100 x 60)
    ],
)
def test_draws_are_triangular(realtime: str, batch: str, share: float) -> None:
    """The share of draws that save is what the triangle's area says, within three standard errors."""
    nothing = {name: re.sub("[0-9]+", "0", text) for name, text in TOKENS.items()}
    chance = ask({"realtime_cost": realtime, "storage_transfer": batch}, nothing).chance
    assert chance.saves == pytest.approx(share, abs=3 * 0.5 / 20_000**0.5)


# ---------------------------------------------------------------------------------------------------------- laws


@given(worksheets(whole=True), st.data())
def test_the_saving_is_monotone_in_each_input(worksheet: Worksheet, data: st.DataObject) -> None:
    """More of a gain never saves less, unless batches cost more than what they replace; more of anything else never more."""
    likely = {name: x.likely for name, x in worksheet.stated().items()}
    name = data.draw(st.sampled_from(sorted(likely)))
    more = {**likely, name: worksheet.stated()[name].high}
    costs_more = likely.get("batch_share", 0) > 1 - likely["failure_rate"] - likely["timeout_rate"]
    gains = name in GAINS and not (name == "realtime_cost" and costs_more)
    assert (saving(more) - saving(likely)) * (1 if gains else -1) >= 0


@given(worksheets(whole=True), st.integers(1, 9))
def test_batch_cost_rises_with_the_realtime_cost(worksheet: Worksheet, times: int) -> None:
    """With nothing else in the sum, so many times the calls save so many times as much: no draw has one without the other."""
    if worksheet.case is not Case.TOKENS:
        return
    inputs = {name: x.likely for name, x in worksheet.stated().items() if name in ("realtime_cost", "batch_share")}
    assert saving({**inputs, "realtime_cost": times * inputs["realtime_cost"]}) == times * saving(inputs)


def test_a_range_of_the_realtime_cost_widens_nothing_that_is_not_there() -> None:
    """$900 to $1,100 at half are $450 to $550 saved, not 350 to 650: the batch costs half of whatever the calls cost."""
    nothing = {name: re.sub("[0-9]+", "0", text) for name, text in TOKENS.items()}
    found = ask({"realtime_cost": "$900-1100/month", "batch_share": "50 %"}, nothing)
    assert (found.known.low, found.known.likely, found.known.high) == (450, 500, 550)


def test_a_batch_that_costs_more_is_worse_the_more_there_is_of_it() -> None:
    """At 120 % the worst end is the most calls, and the limit of their cost stands on the right side."""
    nothing = {name: re.sub("[0-9]+", "0", text) for name, text in TOKENS.items()}
    found = ask({"realtime_cost": "$900-1000-1100/month", "batch_share": "120 %"}, nothing)
    assert (found.known.low, found.known.high) == (-220, -180)
    assert found.verdict == "loses in every stated case"


@settings(max_examples=25)
@given(worksheets(whole=True))
def test_the_interval_is_that_of_all_corners(worksheet: Worksheet) -> None:
    """No combination of ends lies outside the interval, and its ends are such combinations."""
    inputs = worksheet.stated()
    corners = itertools.product(*({x.low, x.high} for x in inputs.values()))
    savings = [saving(dict(zip(inputs, corner, strict=True))) for corner in corners]
    known = assess(worksheet, Random(0), n_draws=100).known
    assert (known.low, known.high) == (min(savings), max(savings))
    assert known.low <= known.likely <= known.high


@settings(max_examples=25)
@given(worksheets(), st.integers())
def test_a_chance_agrees_with_the_interval_and_its_seed(worksheet: Worksheet, seed: int) -> None:
    """Every draw saves where the worst case does, none where the best does not, and the same seed draws the same."""
    found = assess(worksheet, Random(seed), n_draws=100)
    assert found == assess(worksheet, Random(seed), n_draws=100)
    assert (found.chance is None) == any(gap.gains for gap in found.gaps)
    if found.chance and found.known.low > 0:
        assert found.chance.saves == 1
    if found.chance and found.known.high <= 0:
        assert found.chance.saves == 0


@settings(max_examples=50)
@given(worksheets())
def test_at_its_break_even_an_input_saves_nothing(worksheet: Worksheet) -> None:
    """With all others at likely, the saving changes sign there: of stated inputs and of missing ones."""
    found = assess(worksheet, Random(0), n_draws=100)
    likely = {name: x.likely for name, x in worksheet.stated().items()}
    limits = {swing.name: swing.break_even for swing in found.tornado}
    limits |= {gap.name: gap.limit for gap in found.gaps if gap.name in INPUTS}
    for name, limit in limits.items():
        if limit is not None:
            step = max(limit, Decimal(1)) * Decimal("1e-8")
            below, above = (saving({**likely, name: limit + s}) for s in (-step, step))
            assert below * above <= 0, name


@settings(max_examples=50)
@given(worksheets(), st.data())
def test_an_answer_narrows_what_can_be_said(worksheet: Worksheet, data: st.DataObject) -> None:
    """What is missing is never zero: stating it at zero is another answer, and stating a cost never saves more."""
    missing = sorted(set(SUMMED) & worksheet.missing().keys() - GAINS)
    if not missing:
        return
    name = data.draw(st.sampled_from(missing))
    before = assess(worksheet, Random(0), n_draws=100)
    after = assess(
        replace(worksheet, entries={**worksheet.entries, name: data.draw(stated(name))}), Random(0), n_draws=100
    )
    assert after.known.likely <= before.known.likely
    if before.gaps:
        assert before.verdict.startswith("cannot say") or before.verdict == "loses in every stated case"
    if before.verdict == "loses in every stated case":
        assert after.verdict == before.verdict


# ------------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "saves in every stated case"),
        ({"batch_share": "90-100 %"}, "loses in every stated case"),
        ({"operations_hours": "1-2-9 h"}, "saves unless operations hours > 5.75 h per month"),
        (
            {"operations_hours": "1-2-9 h", "realtime_cost": "$300-1000-1100/month"},
            "saves unless operations hours > 5.75 h per month or realtime cost < $400 per month",
        ),
        (
            {"operations_hours": "1-6-9 h"},
            "saves unless operations hours > 5.75 h per month; at the likely values it loses $20 per month",
        ),
        (  # 300 - 300 x s: neither erases it alone, both do at their worse ends
            {"batch_share": "50-50-75 %", "storage_transfer": "$10-10-260/month"},
            "saves unless all inputs together > 60% of the way to their worse ends",
        ),
        (
            {"batch_share": "50-100-100 %", "realtime_cost": "$1000-1000-1200/month"},
            "saves unless batch cost > 80 %; at the likely values it loses $200 per month",
        ),
        (  # -300 + 500 x s
            {
                "batch_share": "85-110-110 %",
                "storage_transfer": "$0-10-10/month",
                "operations_hours": "0-2-2 h",
                "missed_rate": "0-1-1 /month",
                "staging_volume": "4-10-10 GB/month",
            },
            "saves unless all inputs together < 67% of the way to their better ends"
            "; at the likely values it loses $300 per month",
        ),
        ({"storage_transfer": None}, "cannot say: storage and transfer missing; it may be at most $310 per month"),
        ({"operations_rate": None}, "cannot say: operations rate missing; it may be at most $230/h"),
        ({"operations_hours": None}, "cannot say: operations hours missing; it may be at most 5.75 h per month"),
        ({"timeout_rate": None}, "cannot say: timeout rate missing; it may be at most 37.5 %"),
        (
            {"missed_rate": None, "missed_cost": None},
            "cannot say: missed deadlines missing; it may be at most $320 per month",
        ),
        ({"realtime_cost": None}, "cannot say: realtime cost missing; it must be at least $400 per month"),
        (
            {"realtime_cost": None, "batch_share": None},
            "cannot say: realtime cost, batch cost missing; realtime cost must be at least $200 per month",
        ),
        (
            {"storage_transfer": None, "batch_share": "50-100-100 %"},
            "cannot say: storage and transfer missing; at the likely values it loses $190 per month even without",
        ),
        ({"storage_transfer": None, "batch_share": "100 %"}, "loses in every stated case"),
        ({"operations_rate": None, "operations_hours": "0 h"}, "saves in every stated case"),
        ({"failure_rate": None, "batch_share": "0 %"}, "saves in every stated case"),
    ],
)
def test_verdicts(changes: Mapping[str, str | None], verdict: str) -> None:
    """Each verdict in its exact words, with the limit that decides."""
    assert ask(changes).verdict == verdict


def test_own_servers_ask_for_hours_and_price() -> None:
    """Where nothing of the gain is known it is asked for whole, and no chance is given."""
    costs = {name: text for name, text in TOKENS.items() if name not in ("realtime_cost", "batch_share")}
    costs["batch_cost"] = "$500/month"
    found = ask({}, costs, Case.OWN_GPU)
    assert found.verdict == ("cannot say: realtime capacity avoided missing; it must be at least $700 per month")
    assert found.chance is None
    hours = ask({"hour_price": "$2/h"}, costs, Case.OWN_GPU)
    assert hours.verdict == "cannot say: warm hours avoided missing; it must be at least 350 h per month"


def test_nothing_stated_is_no_saving_of_zero() -> None:
    """An empty worksheet cannot say, and names all that it would need."""
    found = assess(Worksheet("a", Case.TOKENS), Random(0), n_draws=100)
    assert found.verdict.startswith("cannot say: realtime cost, batch cost, failure rate")
    assert found.chance is None
    assert [gap.name for gap in found.gaps] == [
        "realtime_cost", "batch_share", "failure_rate", "timeout_rate", "storage_transfer", "staging", "operations",
        "missed deadlines",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "warning"),
    [
        (
            {"acceptable_delay": "4-8 h", "batch_window": "24 h"},
            "A batch may take 24 h, and answers may be wanted within 4 h.",
        ),
        (
            {"acceptable_delay": "36 h", "batch_window": "24 h", "retry_window": "1-24 h"},
            "A batch and its retries may take 2 d, and answers may be wanted within 36 h.",
        ),
        ({"acceptable_delay": "24-36 h", "batch_window": "24 h"}, None),
        ({"batch_window": "24 h"}, None),
    ],
)
def test_a_window_beyond_the_delay_is_said(inputs: Mapping[str, str], warning: str | None) -> None:
    """The sum knows no deadline, so a batch that may end after it is a warning beside the sum."""
    owned = {"operations_owner": "Ana", "fallback_path": "standard tier"}
    assert ask({**inputs, **owned}).warnings == ((warning,) if warning else ())


def test_an_owner_and_a_fallback_are_asked_for() -> None:
    """Operations that nobody owns are not free."""
    assert ask().warnings == ("No operations owner is named.", "No fallback path is named.")


def test_words_say_everything_once() -> None:
    """Verdict, interval, chance, tornado, what is missing and warnings, in lines."""
    lines = words(ask({"operations_hours": "1-2-9 h", "missed_cost": None}))
    assert lines[0] == "cannot say: cost of a miss missing; it may be at most $320"
    assert lines[1] == (
        "stated: -$240 per month to $400 per month, likely $320 per month; not in it, because missing: cost of a miss"
    )
    assert lines[2].endswith("draws save, given the stated ranges, each drawn on its own (triangular)"
                             "; not in it, because missing: cost of a miss")  # fmt: skip
    assert lines[3] == "operations hours: -$240 per month to $400 per month, break-even 6 h/month; can erase it"
    assert "missing: cost of a miss: at most $320. What does one late delivery cost?" in lines
    assert lines[-1] == "No fallback path is named."


# ------------------------------------------------------------------------------------------ where inputs come from

DAY_S = 86_400.0


def test_warm_hours_range_from_the_worst_to_the_best_day() -> None:
    """Two calls at once that can wait on one day, three on the other, beside one that cannot: 2 to 3 slots, 720 h each."""
    work, can_wait = [], []
    for day, n in ((0, 2), (1, 3), (2, 9)):  # the third day is not whole, and counts only in the overall figure
        work += [Work(day * DAY_S, 60)] * (n + 1)
        can_wait += [True] * n + [False]
    trace = Trace.of(work, can_wait)
    found = warm_hours(trace, Replica(1), source="calls.jsonl", as_of=TODAY)
    assert (found.low, found.likely, found.high) == (2 * 720, 9 * 720, 9 * 720)
    assert found.likely == warm_capacity(trace, Replica(1)).hours_avoided
    assert found.source == (
        "calls.jsonl: 17 calls simulated, at most 1.0% wait longer than 1 s, 1 slots a replica, at least 1 kept"
    )
    few = warm_hours(Trace.of(work[:3], can_wait[:3]), Replica(1), Target(1, 0.0), source="calls.jsonl", as_of=TODAY)
    assert few.low == few.likely == few.high == 2 * 720
    with pytest.raises(ValueError, match="no calls"):
        warm_hours(Trace.of([]), Replica(1), source="calls.jsonl", as_of=TODAY)


@pytest.mark.parametrize(
    ("changes", "delay_h"),
    [
        ({"waiting_cost": "$20-30-60/h"}, 10),  # 300 / 30
        ({"waiting_cost": "$0/h"}, None),
        ({}, None),
        ({"waiting_cost": "$30/h", "storage_transfer": None}, None),
        ({"waiting_cost": "$30/h", "batch_share": "100 %"}, None),
    ],
)
def test_a_saving_is_worth_so_much_delay(changes: Mapping[str, str | None], delay_h: int | None) -> None:
    """Where waiting costs so much an hour, answers may come as many hours later as the saving pays; else nobody can say."""
    found = ask(changes)
    assert found.delay_h == delay_h
    said = [line for line in words(found) if "later before waiting costs" in line]
    assert said == (["answers may come 10 h later before waiting costs what is likely saved"] if delay_h else [])
