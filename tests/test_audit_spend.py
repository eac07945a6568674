"""What a call site costs a month."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.audit.calls import Bucket
from canwait.audit.facts import Arrivals, ModelUse, Sample, SiteFacts
from canwait.audit.findings import Range
from canwait.audit.spend import aggregates, batch_share, charge, sized, spend_of
from canwait.price import exact_micros
from canwait.types import Price, PriceStep, Tier, Usage

D = Decimal
DAY_S, WEEK_S = 86_400, 604_800
MONDAY_US = 1_762_732_800_000_000  # 2025-11-10 00:00 UTC
STANDARD = Price("openai", "m", Tier.STANDARD, D("1"), D("5"), D("0.1"), None, "a price list", date(2026, 11, 1))
NO_PRICE = "nobody says what it costs"


def price_of(provider: str, model: str, tier: Tier) -> Price | str:
    return STANDARD if (model, tier) == ("m", Tier.STANDARD) else NO_PRICE


def a_use(n_calls: int = 1_000, usage: Usage | None = None, **changed: object) -> ModelUse:
    """Calls of 1,000 tokens in and 100 out: 1,500 micros each."""
    billed = usage or Usage(1_000 * n_calls, 100 * n_calls)
    use = ModelUse("openai", "m", Tier.STANDARD, n_calls, 0, billed, 0, D(0), Usage(0, 0))
    return replace(use, **changed)  # type: ignore[arg-type]


def a_site(*uses: ModelUse, **changed: object) -> SiteFacts:
    n = sum(use.n_calls for use in uses)
    facts = SiteFacts("s", n, MONDAY_US, MONDAY_US + WEEK_S * 10**6, uses, 0, 0, 0, 0, 0, 0)
    return replace(facts, **changed)  # type: ignore[arg-type]


def arrivals(by_day: list[int]) -> Arrivals:
    """Calls at noon of each weekday, Monday first."""
    hours = tuple(n if hour == 12 else 0 for n in by_day for hour in range(24))
    return Arrivals(300, 2_016, 7, hours, 1.0, None, 0.0, 7, DAY_S, 0.0, 0.0)


def test_a_week_of_tokens_is_a_month_at_thirty_days() -> None:
    """1,000 calls of 1,500 micros a week are 30/7 of that a month, rounded up once, with the price's source and date."""
    spend = spend_of(a_site(a_use()), price_of, WEEK_S)

    assert spend.month == Range(6_428_572, 6_428_572, 6_428_572)  # 1,500,000 x 30 / 7 = 6,428,571.43
    assert (spend.basis, spend.n_unpriced) == ("a price list, 2026-11-01", 0)
    assert (spend.why, spend.warnings) == (None, ())


def test_a_reported_cost_goes_before_a_priced_one() -> None:
    """Where the log has a cost for nearly every call, that is what was paid; a rest is at the mean of it at most."""
    spend = spend_of(a_site(a_use(n_reported=990, reported_usd=D("1.485"))), price_of, 30 * DAY_S)

    assert spend.month == Range(1_485_000, 1_500_000, 1_500_000)
    assert (spend.basis, spend.n_unpriced) == ("reported by the log", 10)
    assert spend.warnings == ()


@pytest.mark.parametrize(("reported", "says"), [("1.2", "20 % less"), ("1.8", "20 % more"), ("1.56", None)])
def test_a_reported_cost_that_differs_from_the_price_list_is_said(reported: str, says: str | None) -> None:
    """More than 5 % between the log's figure and its tokens at list prices is a warning, less is not."""
    spend = spend_of(a_site(a_use(n_reported=1_000, reported_usd=D(reported))), price_of, WEEK_S)

    assert len(spend.warnings) == (says is not None)
    assert all(says in text for text in spend.warnings if says)


def test_a_reported_zero_beside_tokens_is_a_price_the_log_did_not_know() -> None:
    """A gateway that reports 0 for a model it does not know made nothing free: the tokens are priced."""
    spend = spend_of(a_site(a_use(n_reported=1_000)), price_of, 30 * DAY_S)

    assert spend.month == Range(1_500_000, 1_500_000, 1_500_000)
    assert spend.basis == "a price list, 2026-11-01"


def test_calls_without_tokens_are_covered_by_the_high_end_only() -> None:
    """250 of 1,000 calls hold no tokens: low leaves them out, high counts each at the mean, and it is said."""
    use = a_use(1_000, Usage(750_000, 75_000), n_unmetered=250)
    spend = spend_of(a_site(use, n_failed=100), price_of, 30 * DAY_S)

    assert spend.month == Range(1_125_000, 1_350_000, 1_500_000)  # likely: all but the 100 that failed
    assert spend.n_unpriced == 250
    assert spend.why is not None
    assert "250 calls without tokens" in spend.why


def test_an_unknown_price_is_not_zero() -> None:
    """A site whose only model nobody can price costs an unknown amount, with the reason."""
    spend = spend_of(a_site(a_use(model="x")), price_of, WEEK_S)

    assert (spend.month, spend.n_unpriced) == (None, 1_000)
    assert spend.why == f"openai/x: {NO_PRICE}"


def test_one_unknown_model_leaves_the_others_known() -> None:
    """What can be priced is, and what is missing from the sum is named with its calls."""
    spend = spend_of(a_site(a_use(), a_use(3, model="x")), price_of, 30 * DAY_S)

    assert spend.month == Range(1_500_000, 1_500_000, 1_500_000)
    assert spend.n_unpriced == 3
    assert spend.why == f"3 calls of openai/x are not in it: {NO_PRICE}"


def test_a_log_without_a_tier_is_priced_as_standard_and_says_so() -> None:
    """An assumption about what was bought stands beside the figure."""
    assert "no tier" in spend_of(a_site(a_use(tier=None)), price_of, WEEK_S).basis


def test_a_day_of_log_is_a_wide_month() -> None:
    """Of one day nobody knows the other six: at least that day once a week, at most every day like it."""
    spend = spend_of(a_site(a_use(), arrivals=arrivals([1_000, 0, 0, 0, 0, 0, 0])), price_of, DAY_S)

    assert spend.month == Range(6_428_572, 45_000_000, 45_000_000)
    assert spend.warnings == ("1.0 days of log: the other days of the week are not known",)


def test_the_busiest_day_bounds_a_short_log() -> None:
    """Three days with 100, 200 and 700 of the calls: the high end has the third one every day."""
    spend = spend_of(a_site(a_use(), arrivals=arrivals([100, 200, 700, 0, 0, 0, 0])), price_of, 3 * DAY_S)

    assert spend.month == Range(6_428_572, 15_000_000, 31_500_000)


def test_a_log_without_a_length_has_no_month() -> None:
    """A single moment cannot be scaled to 30 days."""
    spend = spend_of(a_site(a_use(1)), price_of, 0)

    assert spend.month is None
    assert spend.why is not None
    assert "no time" in spend.why


def test_weekdays_count_as_often_as_a_month_has_them() -> None:
    """Ten days from a Monday hold eight working days; a week has five, whatever days the log begins and ends on."""
    facts = a_site(a_use(800), arrivals=arrivals([200, 200, 200, 100, 100, 0, 0]))
    spend = spend_of(facts, price_of, 10 * DAY_S, start_us=MONDAY_US)

    assert spend.month == Range(3_214_286, 3_214_286, 3_214_286)  # 500 calls a week x 1,500 x 30 / 7


def test_long_requests_have_their_own_rates() -> None:
    """A tenth of calls is beyond the step and holds half of the tokens: those are billed at its rates, whole."""
    steps = (PriceStep(200_000, D("2"), D("10"), None, None),)
    inputs = Sample(10, tuple([50_000.0] * 9 + [450_000.0]))
    billed = charge(replace(STANDARD, steps=steps), Usage(900_000, 1_000), inputs, 10)

    assert billed.likely == 450_000 * 1 + 450_000 * 2 + 900 * 5 + 100 * 10
    assert (billed.low, billed.high) == (billed.likely, billed.likely)  # all were seen
    sample = charge(replace(STANDARD, steps=steps), Usage(900_000, 1_000), replace(inputs, n_seen=100), 10)
    assert sample.low < sample.likely == billed.likely < sample.high


counts = st.integers(0, 10**7)


@given(counts, counts, counts, counts)
def test_without_steps_a_sum_costs_what_its_calls_cost(n_in: int, cached: int, written: int, n_out: int) -> None:
    """Summed usage is billed exactly as price.py bills it."""
    usage = Usage(n_in + cached + written, n_out, cached, written)

    assert charge(STANDARD, usage, Sample(0, ()), 7).likely == Fraction(exact_micros(usage, STANDARD))


@given(
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(60, 60 * DAY_S),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
)
def test_more_calls_never_cost_less(n: int, more: int, blind: int, window_s: int, failed: int, each: int) -> None:
    """A month is ordered, whole micros, and grows with the volume."""

    def month(n_calls: int) -> Range:
        usage = Usage(each * n_calls, 3 * n_calls)
        use = a_use(n_calls + blind, usage, n_unmetered=blind)
        spend = spend_of(a_site(use, n_failed=min(failed, n_calls)), price_of, window_s)
        assert spend.month is not None
        return spend.month

    few, many = month(n), month(n + more)
    assert 0 <= few.low <= few.likely <= few.high
    assert few.low <= many.low
    assert few.high <= many.high
    assert {type(x) for x in (few.low, few.likely, few.high)} == {int}


def a_bucket(**changed: object) -> Bucket:
    bucket = Bucket(MONDAY_US, MONDAY_US + 30 * DAY_S * 10**6, "openai", "m", tier=Tier.STANDARD)
    return replace(bucket, **changed)  # type: ignore[arg-type]


def test_a_providers_sums_are_sized() -> None:
    """Buckets of one model and tier add up, costs as reported and tokens at their price; the batch share is known."""
    buckets = [
        a_bucket(n_calls=10, input_tokens=1_000_000, output_tokens=0),
        a_bucket(n_calls=5, input_tokens=500_000, output_tokens=100_000, label="project b"),
        a_bucket(provider="anthropic", model="c", cost_usd=D("6"), tier=Tier.BATCH),
    ]
    found = sized(buckets, price_of)

    assert [(s.model, s.month, s.n_calls) for s in found] == [
        ("c", Range(6_000_000, 6_000_000, 6_000_000), 0),
        ("m", Range(2_000_000, 2_000_000, 2_000_000), 15),
    ]
    assert batch_share(found) == Fraction(3, 4)
    assert aggregates(found) == {"anthropic/c": found[0].month, "openai/m": found[1].month}


def test_tokens_and_costs_of_one_provider_are_not_added() -> None:
    """A usage export and a cost export are about the same money: it is counted once, as billed; the tokens still tell
    the batch share."""
    found = sized([a_bucket(input_tokens=10**6, output_tokens=0), a_bucket(cost_usd=D("0.8"), tier=None)], price_of)

    assert aggregates(found) == {"openai/m": Range(800_000, 800_000, 800_000)}
    assert batch_share(found) == 0
    assert batch_share([s for s in found if s.counted]) is None


def days(first: int, last: int, **changed: object) -> list[Bucket]:
    """A bucket of each of these days, from a Monday on."""
    day_us = DAY_S * 10**6
    return [
        a_bucket(start_us=MONDAY_US + n * day_us, end_us=MONDAY_US + (n + 1) * day_us, **changed)
        for n in range(first, last)
    ]


def test_each_provider_has_a_window_of_its_own() -> None:
    """$10 a day for a week of OpenAI are $300 a month, also beside 23 days of Anthropic."""
    openai, anthropic = days(0, 7, cost_usd=D("10")), days(7, 30, provider="anthropic", cost_usd=D("1"))

    assert aggregates(sized([*openai, *anthropic], price_of)) == {
        "openai/m": Range(300_000_000, 300_000_000, 300_000_000),
        "anthropic/m": Range(30_000_000, 30_000_000, 30_000_000),
    }


def test_costs_stand_for_tokens_only_where_they_are() -> None:
    """A cost file of one day beside 30 days of usage: that day as billed, the other 29 by their tokens."""
    usage = days(0, 30, input_tokens=200_000_000, output_tokens=0)  # $200 a day
    found = sized([*usage, *days(3, 4, cost_usd=D("150"))], price_of)

    assert aggregates(found) == {"openai/m": Range(*[(29 * 200 + 150) * 10**6] * 3)}
    assert [(s.month, s.counted) for s in found if s.month] == [
        (Range(*[5_800_000_000] * 3), True),
        (Range(*[200_000_000] * 3), False),
        (Range(*[150_000_000] * 3), True),
    ]


def test_a_bucket_that_costs_cover_in_part_counts_for_the_rest() -> None:
    """One bucket of 30 days beside the costs of ten of them: two thirds of its tokens are counted."""
    found = sized([a_bucket(input_tokens=3_000_000, output_tokens=0), *days(0, 10, cost_usd=D("0.1"))], price_of)

    assert aggregates(found) == {"openai/m": Range(*[2_000_000 + 1_000_000] * 3)}


@pytest.mark.parametrize("tier", ["priority", "provisioned_throughput"])
def test_a_tier_that_is_none_of_ours_has_no_price(tier: str) -> None:
    """What was bought as another tier is not priced as standard, as calls or as a provider's sums."""
    spend = spend_of(a_site(a_use(tier=tier)), price_of, WEEK_S)
    assert (spend.month, spend.why) == (None, f"openai/m: no price of the {tier} tier is known")
    (found,) = sized([a_bucket(tier=tier, input_tokens=5, output_tokens=5)], price_of)
    assert (found.tier, found.month, found.why) == (tier, None, f"no price of the {tier} tier is known")


def test_what_another_tier_cost_is_told_where_the_log_reports_it() -> None:
    """A reported cost stands, whatever the tier: it is what was paid."""
    spend = spend_of(a_site(a_use(tier="priority", n_reported=1_000, reported_usd=D("3"))), price_of, 30 * DAY_S)

    assert spend.month == Range(3_000_000, 3_000_000, 3_000_000)


def test_a_day_of_sums_is_a_wide_month() -> None:
    """As with calls: under a week, the low end has that day once a week."""
    bucket = a_bucket(end_us=MONDAY_US + DAY_S * 10**6, cost_usd=D("0.7"))

    assert sized([bucket], price_of)[0].month == Range(3_000_000, 21_000_000, 21_000_000)
    assert [(s.month, s.why) for s in sized([replace(bucket, end_us=MONDAY_US)], price_of)] == [
        (None, "it covers no time")
    ]


@pytest.mark.parametrize(
    ("bucket", "why"),
    [
        (a_bucket(model="x", input_tokens=5, output_tokens=5), NO_PRICE),
        (a_bucket(), "it holds neither tokens nor cost"),
    ],
)
def test_a_sum_that_cannot_be_priced_is_named(bucket: Bucket, why: str) -> None:
    """It has no money, a reason, and no place in the totals."""
    found = sized([bucket], price_of)

    assert [(s.month, s.why) for s in found] == [(None, why)]
    assert aggregates(found) == {}
