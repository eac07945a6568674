"""Usage x dated price -> money."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from math import ceil
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import UnboundedRequest
from canwait.price import cost_micros, exact_micros, format_usd, parse_usd, worst_micros
from canwait.types import Price, PriceStep, Tier, Usage

D = Decimal


def price(
    input: str,
    output: str,
    cached_input: str | None = None,
    cache_write: str | None = None,
    steps: tuple[PriceStep, ...] = (),
    provider: str = "openai",
) -> Price:
    return Price(
        provider,
        "m",
        Tier.BATCH,
        D(input),
        D(output),
        None if cached_input is None else D(cached_input),
        None if cache_write is None else D(cache_write),
        "a test",
        date(2026, 11, 21),
        steps,
    )


LUNA = price("0.05", "0.25", "0.005", "0.0625", (PriceStep(272_000, D("0.1"), D("0.375"), D("0.01"), D("0.125")),))

rates = st.integers(0, 10**8).map(lambda n: D(n) / 10**6)
maybe_rates = st.none() | rates
counts = st.integers(0, 2_000_000)


@st.composite
def prices(draw: st.DrawFn, rising: bool = False) -> Price:
    """Any price; `rising` ones never get cheaper for longer requests, nor for a token that is written to a cache."""
    base = Price("openai", "m", Tier.BATCH, *(draw(rates) for _ in range(2)), None, None, "a test", date(2026, 11, 21))
    if not rising:
        base = replace(base, cached_input=draw(maybe_rates), cache_write=draw(maybe_rates))
    steps: list[PriceStep] = []
    floor = base.input, base.output
    for above in sorted(draw(st.sets(st.integers(1, 1_000_000), max_size=3))):
        step = PriceStep(above, draw(rates), draw(rates), draw(maybe_rates), draw(maybe_rates))
        if rising:
            floor = floor[0] + step.input, floor[1] + step.output
            step = PriceStep(above, *floor, None, None)
        steps.append(step)
    return replace(base, steps=tuple(draw(st.permutations(steps))))


@st.composite
def usages(draw: st.DrawFn, input_bound: int = 2_000_000, output_bound: int = 2_000_000) -> Usage:
    """What a provider may report within the bounds: cached and written tokens are part of the input."""
    tokens = draw(st.integers(0, input_bound))
    cached = draw(st.integers(0, tokens))
    return Usage(tokens, draw(st.integers(0, output_bound)), cached, draw(st.integers(0, tokens - cached)))


@pytest.mark.parametrize(
    ("usage", "micros"),
    [
        (Usage(200_000, 0), "10000"),
        (Usage(0, 1_000_000), "250000"),
        (Usage(1, 1), "0.30"),
        (Usage(100_000, 0, cached_input_tokens=100_000), "500"),
        (Usage(100_000, 0, cache_write_tokens=100_000), "6250"),
        (Usage(1_000, 10, cached_input_tokens=600, cache_write_tokens=300), "29.25"),  # 100 x .05 + 600 x .005 + ...
        (Usage(272_000, 10), "13602.5"),  # the threshold itself is not above it
        (Usage(272_001, 10), "27203.85"),  # one more, and the whole request has the other rates
    ],
)
def test_every_token_has_its_rate(usage: Usage, micros: str) -> None:
    """Plain, cached, written and output tokens are priced apart, and a long request as a whole."""
    assert exact_micros(usage, LUNA) == D(micros)


def test_tokens_without_a_published_rate_are_input() -> None:
    """A cached or written token costs what an input token costs where no other rate is published."""
    plain = price("1", "4")
    assert exact_micros(Usage(1_000, 0, 700, 200), plain) == exact_micros(Usage(1_000, 0), plain) == 1_000


def test_a_report_that_does_not_add_up_never_lowers_the_bill() -> None:
    """More cached than input tokens are billed as cached; plain input is then 0, not negative."""
    assert exact_micros(Usage(10, 0, cached_input_tokens=1_000), price("1", "4", "0.5")) == 500


def test_a_negative_count_is_refused() -> None:
    """A bill cannot be lowered by a negative count."""
    with pytest.raises(ValueError, match="negative"):
        exact_micros(Usage(10, -1), LUNA)


def test_money_is_rounded_up_once() -> None:
    """A thousand requests of 0.3 micros cost 300 micros together, and one alone costs 1."""
    assert cost_micros([Usage(1, 1)] * 1_000, LUNA) == 300
    assert cost_micros([Usage(1, 1)], LUNA) == 1
    assert cost_micros([], LUNA) == 0


def test_each_request_reaches_its_own_step() -> None:
    """Two short requests stay cheap although their sum is long."""
    short = Usage(200_000, 0)
    assert cost_micros([short, short], LUNA) == 20_000
    assert cost_micros([short + short], LUNA) == 40_000


@given(prices(), st.lists(usages(), max_size=20))
def test_cost_is_the_exact_sum_rounded_up(price: Price, billed: list[Usage]) -> None:
    """Cost equals the sum of the exact costs in rational arithmetic, rounded up."""
    total = Fraction(0)
    for usage in billed:
        reached = [step for step in price.steps if usage.input_tokens > step.above_input_tokens]
        at = max(reached, key=lambda step: step.above_input_tokens) if reached else price
        cached = at.input if at.cached_input is None else at.cached_input
        written = at.input if at.cache_write is None else at.cache_write
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        total += plain * Fraction(at.input) + usage.output_tokens * Fraction(at.output)
        total += usage.cached_input_tokens * Fraction(cached) + usage.cache_write_tokens * Fraction(written)
    assert cost_micros(billed, price) == ceil(total)


@given(prices(), st.lists(st.lists(usages(), max_size=5), max_size=5))
def test_shards_rounded_apart_cover_the_whole(price: Price, shards: list[list[Usage]]) -> None:
    """The sum of rounded shards is at least the rounded sum, and at most one micro a shard above it."""
    whole = cost_micros([usage for shard in shards for usage in shard], price)
    assert whole <= sum(cost_micros(shard, price) for shard in shards) <= whole + len(shards)


@given(prices(rising=True), usages(), counts, counts)
def test_more_tokens_never_cost_less(price: Price, usage: Usage, more_input: int, more_output: int) -> None:
    """Cost rises with input and output wherever the published rates rise with length."""
    larger = usage + Usage(more_input, more_output)
    assert cost_micros([larger], price) >= cost_micros([usage], price)


@given(prices(), st.data())
def test_worst_covers_every_usage_within_the_bounds(price: Price, data: st.DataObject) -> None:
    """No report within the bounds costs more than the worst case, whatever was cached, written or long."""
    bounds = data.draw(st.lists(st.tuples(counts, st.integers(1, 2_000_000)), max_size=8))
    billed = [data.draw(usages(*bound)) for bound in bounds]
    assert cost_micros(billed, price) <= worst_micros(bounds, price)


@given(prices(), st.lists(st.tuples(counts, st.integers(1, 2_000_000)), max_size=8), st.integers(0, 8))
def test_worst_of_parts_covers_the_whole(price: Price, bounds: list[tuple[int, int]], cut: int) -> None:
    """A job's shards reserve at least what the job reserves, wherever it is cut."""
    parts = worst_micros(bounds[:cut], price) + worst_micros(bounds[cut:], price)
    assert worst_micros(bounds, price) <= parts


def test_the_worst_case_is_reached() -> None:
    """The bound is tight: it is the price of every token at its dearest rate."""
    assert worst_micros([(1_000, 100)], LUNA) == 88  # 1,000 x .0625 + 100 x .25 = 87.5
    assert worst_micros([(272_000, 0 + 1)], LUNA) == 17_001
    assert worst_micros([(300_000, 100)], LUNA) == 37_538  # 300,000 x .125 + 100 x .375 = 37,537.5
    assert worst_micros([(1_000, 100)], price("1", "4", "0.5")) == 1_400


def test_a_cheaper_step_is_not_counted_on() -> None:
    """Where long requests are cheaper, one that may be long may also be short, and is bound by the dearer rates."""
    falling = price("2", "8", steps=(PriceStep(1_000, D("1"), D("4"), None, None),))
    assert worst_micros([(2_000, 10)], falling) == 2_000 * 2 + 10 * 8


def test_anthropic_writes_a_cache_only_when_asked() -> None:
    """canwait sends no `cache_control`, so Anthropic's dearer writes are not reserved; others' automatic writes are."""
    written = price("1", "5", "0.1", "1.25", provider="anthropic")
    assert worst_micros([(1_000, 100)], written) == 1_500
    assert worst_micros([(1_000, 100)], replace(written, provider="openai")) == 1_750


@pytest.mark.parametrize("output_bound", [0, -1])
def test_no_bound_no_worst_case(output_bound: int) -> None:
    """A request that could answer without end has no worst case and is refused."""
    with pytest.raises(UnboundedRequest, match="openai/m"):
        worst_micros([(10, 5), (10, output_bound)], LUNA)


def test_an_embedding_needs_no_bound() -> None:
    """Where output costs nothing, the worst case is the input's."""
    assert worst_micros([(1_000, 0), (500, 0)], price("0.01", "0")) == 15


def test_a_negative_input_bound_is_refused() -> None:
    """A reservation cannot be lowered by a bound that is no bound."""
    with pytest.raises(ValueError, match="-1 tokens"):
        worst_micros([(-1, 5)], LUNA)


def test_a_hundred_thousand_rows_are_priced_at_once() -> None:
    """The worst case of 100,000 rows takes well under 0.3 s of CPU."""
    bounds = [(150 + n % 50, 64) for n in range(100_000)]
    start = process_time()
    worst = worst_micros(bounds, LUNA)
    assert process_time() - start < 0.3
    assert worst == ceil(sum(i for i, _ in bounds) * Fraction("0.0625") + 64 * 100_000 * Fraction("0.25"))


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0.000000"), (1, "0.000001"), (-1, "-0.000001"), (12_500_000, "12.500000"), (-1_000_001, "-1.000001")],
)
def test_usd_has_six_places(micros: int, text: str) -> None:
    """Money is printed as a decimal string with exactly six places, and read back."""
    assert format_usd(micros) == text
    assert parse_usd(text) == micros


@given(st.integers(-(10**20), 10**20))
def test_usd_survives_the_round_trip(micros: int) -> None:
    """What is printed is read back as it was."""
    assert parse_usd(format_usd(micros)) == micros


@pytest.mark.parametrize(("text", "micros"), [("5", 5_000_000), ("0.25", 250_000), ("007.1", 7_100_000)])
def test_usd_may_be_written_short(text: str, micros: int) -> None:
    """A person need not write six places."""
    assert parse_usd(text) == micros


@pytest.mark.parametrize(
    "text", ["", "$5", "5.", ".5", "1e3", "NaN", "1,000", "0.0000001", "٥", " 5", "5\n", "--5", "+5"]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Nothing is guessed from a text that is not a plain decimal, and nothing finer than a micro is dropped."""
    with pytest.raises(ValueError, match="not an amount in USD"):
        parse_usd(text)
