"""Calls become facts: exact where they can be, bounded whatever is read, and the same for the same calls."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.audit.calls import Call
from canwait.audit.facts import SiteFacts
from canwait.audit.gather import MAX_NAMES, MAX_SITES, OTHER, OTHER_SITES, Gatherer
from canwait.audit.sampling import ALL_TEXT_BYTES, DISTINCT, REQUESTS, SLOTS, VALUES, Reservoir, Room, Seen, name_hash
from canwait.audit.triggers import kind_of
from canwait.types import Tier, Usage

SECOND_US, HOUR_US, DAY_US = 1_000_000, 3_600_000_000, 86_400_000_000
MONDAY_US = 1_760_918_400 * SECOND_US


def call(at_s: float = 0, **held: Any) -> Call:
    return Call(MONDAY_US + round(at_s * SECOND_US), held.pop("site", "s"), held.pop("model", "m"), **held)


def gathered(calls: Iterable[Call], seed: int = 0) -> tuple[SiteFacts, ...]:
    gatherer = Gatherer(seed)
    for one in calls:
        gatherer.add(one)
    return tuple(gatherer.facts())


def only(calls: Iterable[Call]) -> SiteFacts:
    (facts,) = gathered(calls)
    return facts


def test_counts_tokens_and_costs_are_exact() -> None:
    """What is billed is summed per model, tier and operation; what the log lacks is counted as lacking."""
    facts = only(
        [
            call(0, provider="p", input_tokens=100, cached_tokens=40, output_tokens=7, cost_usd=Decimal("0.1")),
            call(1, provider="p", input_tokens=50, cache_write_tokens=9, output_tokens=3, failed=True),
            call(2, provider="p", output_tokens=3),
            call(3, provider="p", tier=Tier.BATCH, input_tokens=1, output_tokens=1),
            call(4, provider="p", operation="embeddings", input_tokens=12),
            call(5, provider="p", model="", model_served="m-2026", input_tokens=5, output_tokens=5),
        ]
    )
    uses = {(u.model, u.tier, u.operation): u for u in facts.models}
    plain = uses["m", None, "chat"]
    assert (plain.n_calls, plain.n_unmetered, plain.n_reported, plain.reported_usd) == (3, 1, 1, Decimal("0.1"))
    assert plain.usage == Usage(150, 10, 40, 9)
    assert plain.failed_usage == Usage(50, 3, 0, 9)
    assert uses["m", None, "embeddings"].n_unmetered == 0
    assert uses["m", Tier.BATCH, "chat"].usage == Usage(1, 1)
    assert uses["m-2026", None, "chat"].n_calls == 1
    assert facts.operations == {"chat": 5, "embeddings": 1}
    assert (facts.n_calls, facts.n_failed, facts.window_s) == (6, 1, 5)


def test_a_second_record_of_a_call_is_the_same_call() -> None:
    """Equal ids with one start are one call; row numbers that begin anew in another file are not."""
    gatherer = Gatherer()
    assert gatherer.add(call(0, record_id="1"))
    assert not gatherer.add(call(0, record_id="1"))
    assert gatherer.add(call(1, record_id="1"))
    assert gatherer.add(call(0))
    assert gatherer.add(call(0))
    assert gatherer.n_calls == 4


def test_ids_are_kept_for_whole_files() -> None:
    """A file that is read twice counts once, also beyond what a small set holds."""
    gatherer = Gatherer()
    for _ in range(2):
        for i in range(3 * Seen.FEW):
            gatherer.add(call(i, record_id=f"id{i}"))
    assert gatherer.n_calls == 3 * Seen.FEW
    assert gatherer.n_ids_forgotten == 0


def test_times_that_cannot_be_are_counted_and_not_used() -> None:
    """A call that ends before it starts has no latency, one used before it starts no first use; the rest is kept."""
    facts = only(
        [
            call(0, end_us=MONDAY_US - 5, first_used_us=MONDAY_US + HOUR_US),
            call(0, end_us=MONDAY_US + 9 * SECOND_US, first_used_us=MONDAY_US - 1),
            call(0, end_us=MONDAY_US + 9 * SECOND_US, first_used_us=MONDAY_US + SECOND_US),
            call(0, end_us=MONDAY_US + SECOND_US, first_used_us=MONDAY_US + 3 * SECOND_US),
        ]
    )
    assert facts.n_clock_skew == 2
    assert [*facts.first_use_s.values] == [0, 2]
    assert [*facts.latency_s.values] == [1, 9, 9]
    assert sum(group.n_used for group in facts.groups) == 2


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from([None, "cron", "http"]),
            st.sampled_from([None, "ana", "bo"]),
            st.sampled_from([None, True, False]),
            st.sampled_from([None, 0, 59, 61, 899, 901, 3599, 3601, 90_000]),
        ),
        min_size=1,
        max_size=60,
    ),
    seed=st.integers(0, 3),
)
def test_order_does_not_change_what_is_counted(kinds: list[tuple[Any, ...]], seed: int) -> None:
    """Calls in any order give the same facts, and groups partition them."""
    calls = [
        call(
            i,
            trigger=trigger,
            user=user,
            stream=stream,
            end_us=MONDAY_US + (i + 1) * SECOND_US,
            first_used_us=None if used is None else MONDAY_US + (i + 1 + used) * SECOND_US,
            text_hash=bytes([i % 7]) * 16,
        )
        for i, (trigger, user, stream, used) in enumerate(kinds)
    ]
    shuffled = calls.copy()
    Random(seed).shuffle(shuffled)
    facts = only(calls)
    assert facts == only(shuffled)
    assert sum(g.n_calls for g in facts.groups) == facts.n_calls == len(calls)
    waits = [used for *_, used in kinds if used is not None]
    assert sum(g.n_used for g in facts.groups) == len(waits)
    assert sum(g.n_within_minute for g in facts.groups) == sum(w <= 60 for w in waits)
    assert sum(g.n_within_quarter for g in facts.groups) == sum(w <= 900 for w in waits)
    assert sum(g.n_within_hour for g in facts.groups) == sum(w <= 3600 for w in waits)
    assert facts.n_users == len({user for _, user, *_ in kinds if user})


def test_duplicates_are_exact_while_requests_fit() -> None:
    """Equal requests are counted with their tokens; one after a failure is a retry, and its tokens are no waste."""
    a, b = b"a" * 16, b"b" * 16
    facts = only(
        [
            call(0, text_hash=a, failed=True, input_tokens=5),
            call(1, text_hash=a, input_tokens=5, output_tokens=1),
            call(2, text_hash=a, input_tokens=5, output_tokens=2, cached_tokens=4),
            call(3, text_hash=b, input_tokens=9),
            call(4),
        ]
    )
    repeats = facts.repeats
    assert repeats is not None
    assert (repeats.n_hashed, repeats.n_duplicates, repeats.n_retries, repeats.exact) == (4, 2, 1, True)
    assert repeats.duplicate_usage == Usage(5, 2, 4)
    assert only([call(0)]).repeats is None


def test_duplicates_beyond_what_fits_are_estimated() -> None:
    """With many more requests than are compared, the estimate is within a tenth, and says that it is one."""
    random = Random(5)
    different = [random.randbytes(16) for _ in range(10 * REQUESTS)]
    facts = only(call(i, text_hash=request) for i, request in enumerate([*different, *different[::2]]))
    assert facts.repeats is not None
    assert not facts.repeats.exact
    assert facts.repeats.n_duplicates == pytest.approx(len(different) / 2, rel=0.1)


def test_a_reservoir_is_a_uniform_sample() -> None:
    """Every value of a long stream has the same chance, and quantiles come out within three standard errors."""
    random, means = Random(1), []
    for _ in range(20):
        reservoir = Reservoir(random, Room(VALUES, 10**6))
        for value in range(20_000):
            reservoir.add(value)
        sample = reservoir.sample()
        assert (sample.n_seen, len(sample.values)) == (20_000, VALUES)
        assert [*sample.values] == sorted(sample.values)
        means.append(sum(sample.values) / VALUES)
    error = 20_000 / 12**0.5 / (VALUES * 20) ** 0.5
    assert abs(sum(means) / 20 - 9999.5) < 3 * error


def test_one_seed_gives_one_answer() -> None:
    """Samples depend on the seed and the calls, on nothing else."""
    calls = [call(i, input_tokens=i, output_tokens=1) for i in range(3 * VALUES)]
    assert gathered(calls, 1) == gathered(calls, 1)
    assert gathered(calls, 1) != gathered(calls, 2)
    assert replace(only(calls), input_tokens=only([call()]).input_tokens) != only(calls)


def test_sessions_are_followed_in_whole() -> None:
    """Turns and gaps are those of the sessions, also of several at once and of more than are followed."""
    calls = []
    for i in range(3000):
        for turn in range(4):
            at = i * 7 + turn * 100
            calls.append(call(at, session=f"s{i}", end_us=MONDAY_US + round((at + 10) * SECOND_US)))
    calls.sort(key=lambda c: c.start_us)
    facts = only(calls)
    assert set(facts.turns.values) == {4}
    assert set(facts.turn_gap_s.values) == {90}
    assert facts.n_sessions == DISTINCT
    few = only(c for c in calls if c.session in ("s1", "s2"))
    assert (few.n_sessions, few.turns.n_seen, few.turn_gap_s.n_seen) == (2, 2, 6)


def test_a_pause_of_hours_begins_a_session_anew() -> None:
    """A session id that comes back the next day has no gap of a day."""
    facts = only(call(at, session="s", end_us=MONDAY_US + (at + 1) * SECOND_US) for at in (0, 10, 90_000, 90_010))
    assert [*facts.turns.values] == [2, 2]
    assert [*facts.turn_gap_s.values] == [9, 9]


@pytest.mark.parametrize("by", ["start_us", "end_us"])
def test_calls_in_flight_are_those_of_one_actor(by: str) -> None:
    """A pool of eight shows eight, whether logged as calls start or as they end; two actors are not added up."""
    random, calls = Random(3), []
    for actor in ("a", "b"):
        free = [0.0] * 8
        for _ in range(2000):
            worker = min(range(8), key=free.__getitem__)
            took = random.uniform(1, 30)
            end = MONDAY_US + round((free[worker] + took) * SECOND_US)
            calls.append(call(free[worker], actor=actor, end_us=end))
            free[worker] += took
    facts = only(sorted(calls, key=lambda c: getattr(c, by)))
    assert facts.concurrency.quantile(0.5) == 8
    assert facts.concurrency.share(6) < 0.05
    assert only(c._replace(actor=None) for c in calls).concurrency.n_seen == 0


def test_calls_sent_together_are_in_flight_together() -> None:
    """Ten that start at one moment, again and again, are ten at once."""
    ends = [(start, MONDAY_US + (start + 5) * SECOND_US) for start in range(0, 1000, 10) for _ in range(10)]
    facts = only(call(start, actor="a", end_us=end) for start, end in ends)
    assert facts.concurrency.quantile(0.05) == 10


def at_hours(hours: Iterable[float]) -> SiteFacts:
    return only(call(hour * 3600) for hour in hours)


@pytest.mark.parametrize(
    ("hours", "period_s"),
    [
        ([h + i / 60 for h in range(100) for i in range(5)], 3600),
        ([h / 4 for h in range(400)], 900),
        ([d * 24 + 2 + i / 30 for d in range(14) for i in range(60)], 86_400),
        ([d * 24 + 2 + i / 30 for d in range(14) if d % 7 < 5 for i in range(60)], 86_400),
        ([w * 168 + 5 + i / 30 for w in range(4) for i in range(60)], 604_800),
        ([d * 18 + i / 30 for d in range(20) for i in range(30)], 18 * 3600),
        ([h / 12 for h in range(4000)], None),
        ([h * h * 0.37 for h in range(60)], None),
    ],
    ids=["hourly", "quarterly", "daily", "weekdays", "weekly", "every 18 h", "always", "never the same"],
)
def test_a_period_is_found_where_there_is_one(hours: list[float], period_s: float | None) -> None:
    """Runs that repeat have a period, the shortest that explains them."""
    arrivals = at_hours(hours).arrivals
    assert arrivals is not None
    assert arrivals.period_s == period_s


def test_people_at_random_have_no_period_below_a_day() -> None:
    """Calls of office hours repeat daily at most, whatever the seed."""
    for seed in range(20):
        random = Random(seed)
        hours = sorted(d * 24 + random.gauss(13, 2.5) for d in range(14) for _ in range(30) if d % 7 < 5)
        arrivals = at_hours(hours).arrivals
        assert arrivals is not None
        assert arrivals.period_s in (None, 86_400)


def test_the_shape_of_a_week_is_that_of_the_calendar() -> None:
    """Hours of the week begin on Monday at 00:00 UTC; nights and weekends are theirs."""
    arrivals = at_hours([0.5, 23, 24 * 5 + 12, 24 * 6 + 12]).arrivals
    assert arrivals is not None
    assert [hour for hour, n in enumerate(arrivals.hour_of_week) if n] == [0, 23, 132, 156]
    assert (arrivals.night_share, arrivals.weekend_share) == (0.5, 0.5)
    assert arrivals.longest_pause_s == pytest.approx((132 - 23) * 3600, abs=2 * arrivals.slot_s)
    assert arrivals.n_runs == 4
    assert at_hours([1]).arrivals is None


def test_a_run_lasts_from_its_first_to_its_last_call() -> None:
    """The run in which the median call lies is the typical one."""
    arrivals = at_hours([*(i / 12 for i in range(24)), 50, 100]).arrivals
    assert arrivals is not None
    assert arrivals.run_s == 7200


def test_memory_is_bounded_whatever_a_log_holds() -> None:
    """Users, sessions, actors, triggers, prompts, models and sites without end take no more room than many do."""
    gatherer = Gatherer()
    long = "x" * 3000
    for i in range(12_000):
        held = {"user": f"u{i}", "session": f"s{i}", "actor": f"a{i}", "trigger": f"t{i}", "prompt": f"p{i}"}
        at = i * 40_000  # 15 years
        gatherer.add(call(at, model=f"m{i}", end_us=MONDAY_US + (at + 1) * SECOND_US, **held, text=f"{i}{long}"))
    tracemalloc.start()
    for i in range(12_000, 16_000):
        held = {"user": f"u{i}", "session": f"s{i}", "actor": f"a{i}", "trigger": f"t{i}", "prompt": f"p{i}"}
        at = i * 40_000
        gatherer.add(call(at, model=f"m{i}", end_us=MONDAY_US + (at + 1) * SECOND_US, **held, text=f"{i}{long}"))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 300_000
    (facts,) = gatherer.facts()
    assert facts.n_users == facts.n_sessions == DISTINCT
    assert len(facts.triggers) == len(facts.prompts) == len(facts.models) == MAX_NAMES + 1
    assert facts.triggers[OTHER] == facts.n_calls - MAX_NAMES
    assert facts.arrivals is not None
    assert facts.arrivals.n_busy <= SLOTS


def test_sites_without_end_are_summed() -> None:
    """Beyond MAX_SITES a new site's calls are counted under one name, and the gatherer says how many."""
    gatherer = Gatherer()
    for i in range(MAX_SITES + 500):
        gatherer.add(call(i, site=f"s{i}", input_tokens=1, output_tokens=1))
    facts = {f.site: f for f in gatherer.facts()}
    assert len(facts) == MAX_SITES + 1
    assert facts[OTHER_SITES].n_calls == gatherer.n_other_calls == 500
    assert sum(f.n_calls for f in facts.values()) == gatherer.n_calls


def test_texts_of_many_sites_are_kept_shorter() -> None:
    """However many sites there are, their texts take no more than the room there is; lengths stay those of the whole."""
    gatherer = Gatherer()
    text = "policy " * 2000
    n_sites = 2 * ALL_TEXT_BYTES // (8192 * 64)
    for i in range(n_sites * 64):
        gatherer.add(call(i, site=f"s{i % n_sites}", text=text))
    kept = sum(len(t) for site in gatherer._sites.values() for t in site.texts.kept)
    assert 0 < kept <= ALL_TEXT_BYTES
    prefix = next(gatherer.facts()).prefix
    assert prefix is not None
    assert prefix.mean_bytes == len(text)


def test_hostile_names_are_only_names() -> None:
    """Half surrogates, NULs and broken clocks are counted like anything else."""
    facts = only(
        [
            call(0, user="\ud800", session="\0", actor="\udfff", trigger="\ud800", prompt="\0", text="\ud800"),
            Call(-(2**62), "s", "m", end_us=2**62),
            Call(2**62, "s", "m", end_us=-(2**62), text_hash=b""),
        ]
    )
    assert facts.n_calls == 3
    assert name_hash("\ud800") != name_hash("\udfff")


def test_retries_are_found_in_the_order_they_come() -> None:
    """Each call after a failure of the same request is a retry; one after a success is a duplicate."""
    outcomes = [True, True, False, False]
    facts = only(call(i, text_hash=b"x" * 16, failed=failed) for i, failed in enumerate(outcomes))
    assert facts.repeats is not None
    assert (facts.repeats.n_duplicates, facts.repeats.n_retries) == (3, 2)


def test_who_waits_is_known_of_triggers_beyond_count() -> None:
    """Of more triggers than are told apart, it is still known which are schedules and which are requests."""
    names = [f"{kind} {i}" for i in range(2 * MAX_NAMES) for kind in ("cron", "http", "airflow", "ci", "queue")]
    facts = only(call(i, trigger=name) for i, name in enumerate(names))
    kinds = Counter[object]()
    for name, n in facts.triggers.items():
        kinds[kind_of(name)] += n
    assert len(facts.triggers) <= MAX_NAMES + 5
    assert set(kinds.values()) == {2 * MAX_NAMES}
    assert len(kinds) == 5
