"""What each change to a call site would save, alone and together; what texts have alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from datetime import date
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.audit.facts import Arrivals, Group, ModelUse, Prefix, Repeats, Sample, SiteFacts
from canwait.audit.findings import Lever, Needs, Part, Proof, Range, Smaller, Spend, Verdict
from canwait.audit.levers import levers_of, proved_and_likely, together
from canwait.audit.prefixes import near_duplicates, prefix_of
from canwait.audit.spend import Prices, spend_of
from canwait.types import Price, PriceStep, Tier, Usage

D = Decimal
DAY_S = 86_400
MONTH_S = 30 * DAY_S
NO_PRICE = "nobody says what it costs"


def a_price(input: str, output: str, cached: str | None = None, write: str | None = None) -> Price:
    cached_input, cache_write = (None if x is None else D(x) for x in (cached, write))
    return Price("", "", Tier.STANDARD, D(input), D(output), cached_input, cache_write, "a list", date(2026, 11, 1))


def priced(prices: dict[tuple[str, Tier], Price]) -> Prices:
    """Prices by model and tier."""

    def price_of(provider: str, model: str, tier: Tier) -> Price | str:
        found = prices.get((model, tier))
        return replace(found, provider=provider, model=model, tier=tier) if found else NO_PRICE

    return price_of


HALF = priced(
    {
        ("m", Tier.STANDARD): a_price("1", "5", "0.1"),
        ("m", Tier.BATCH): a_price("0.5", "2.5", "0.05"),
        ("m", Tier.FLEX): a_price("0.5", "2.5", "0.05"),
        ("m", Tier.BACKGROUND): a_price("0.7", "3.5", "0.07"),
        ("small", Tier.STANDARD): a_price("0.1", "0.5", "0.01"),
    }
)


def a_use(n_calls: int, usage: Usage, provider: str = "openai", model: str = "m", **changed: object) -> ModelUse:
    use = ModelUse(provider, model, Tier.STANDARD, n_calls, 0, usage, 0, D(0), Usage(0, 0))
    return replace(use, **changed)  # type: ignore[arg-type]


def a_site(*uses: ModelUse, **changed: object) -> SiteFacts:
    n = sum(use.n_calls for use in uses)
    return replace(SiteFacts("s", n, 0, MONTH_S * 10**6, uses, 0, 0, 0, 0, 0, 0), **changed)  # type: ignore[arg-type]


def needs(needs: Needs, proof: Proof = Proof.PROVED) -> Verdict:
    return Verdict(needs, proof, (), None, 1.0)


def hybrid(*moves: ModelUse, proof: Proof = Proof.PROVED) -> Verdict:
    """Of a site of which these calls can wait."""
    group = Group("cron", False, None, sum(use.n_calls for use in moves), 0, 0, 0, 0, models=moves)
    return Verdict(Needs.HYBRID, proof, (), None, 0.5, moves=Part("trigger", ("cron",), (group,)))


def found(facts: SiteFacts, verdict: Verdict, price_of: Prices = HALF, **more: bool) -> tuple[dict[str, Lever], Spend]:
    """The levers of a month of log by kind, the first of each, and what the site costs."""
    spend = spend_of(facts, price_of, MONTH_S)
    levers = levers_of(facts, verdict, spend, price_of, may_share=more.get("may_share", False))
    return {lever.kind: lever for lever in reversed(levers)}, spend


THOUSAND = a_use(1_000, Usage(1_000_000, 100_000))  # $1.50 a month
BUSY = Arrivals(300, 8_640, 100, (0,) * 168, 1.0, None, 0.0, 10, 0.0, 0.0, 0.0)  # 100 slots of 5 minutes, in 10 runs


# -------------------------------------------------------------------------------------------------------- worked examples


def test_the_batch_tier_halves_what_can_wait() -> None:
    """$1.50 a month at half the rates saves 75 cents, as surely as it is known that nobody waits."""
    levers, spend = found(a_site(THOUSAND), needs(Needs.BATCH, Proof.LIKELY))

    assert spend.month == Range(1_500_000, 1_500_000, 1_500_000)
    assert levers["batch"].saves == Range(750_000, 750_000, 750_000)
    assert levers["batch"].proof is Proof.LIKELY
    assert "50 % off" in levers["batch"].why
    assert "a list, 2026-11-01" in levers["batch"].basis
    assert levers["background"].saves == Range(450_000, 450_000, 450_000)


def test_only_the_share_that_can_wait_moves() -> None:
    """Of a hybrid site with 60 % that can wait, all alike, 60 % of the saving counts."""
    part = replace(THOUSAND, n_calls=600, usage=Usage(600_000, 60_000))
    levers, _ = found(a_site(THOUSAND), hybrid(part))

    assert levers["batch"].saves == Range(450_000, 450_000, 450_000)
    assert "60 % of calls" in levers["batch"].why


def test_of_a_hybrid_the_money_of_the_calls_that_wait_moves() -> None:
    """900 small calls of a night and 100 large ones of a page: what moves is the cost of the small ones, not 90 %."""
    small, large = a_use(900, Usage(90_000, 9_000)), a_use(100, Usage(10_000_000, 100_000))
    both = replace(large, n_calls=1_000, usage=Usage(10_090_000, 109_000))
    levers, spend = found(a_site(both), hybrid(small))

    assert spend.month == Range(10_635_000, 10_635_000, 10_635_000)
    assert levers["batch"].saves == Range(67_500, 67_500, 67_500)  # half of 90,000 + 45,000
    assert "90 % of calls" in levers["batch"].why


def test_of_a_hybrid_that_is_partly_in_batches_nothing_of_the_rest_moves() -> None:
    """Where the calls that wait are in batches already, the others, for which somebody waits, stay as they are."""
    night = a_use(700, Usage(700_000, 70_000), tier=Tier.BATCH)
    levers, spend = found(a_site(night, replace(THOUSAND, n_calls=300)), hybrid(night))

    assert "batch" not in levers
    assert together(tuple(levers.values()), spend) == Range(0, 0, 0)


def test_of_a_hybrid_each_model_moves_by_its_own_part() -> None:
    """What can wait uses a dear model, what cannot a cheap one: the dear one's money moves, whatever the calls are."""
    dear, cheap = a_use(10, Usage(1_000_000, 0)), a_use(990, Usage(990_000, 0), model="small")
    levers, _ = found(a_site(dear, cheap), hybrid(dear))

    assert levers["batch"].saves == Range(500_000, 500_000, 500_000)


def test_a_tier_that_is_none_of_ours_moves_nowhere() -> None:
    """What was bought as priority has no known price, so there is no saving to state, and none is."""
    use = replace(THOUSAND, tier="priority", n_reported=1_000, reported_usd=D("3"))
    levers, spend = found(a_site(use), needs(Needs.BATCH))

    assert spend.month == Range(3_000_000, 3_000_000, 3_000_000)
    assert levers["batch"].saves is None
    assert together(tuple(levers.values()), spend) == Range(0, 0, 0)


def test_what_moves_is_told_without_what_is_sent_again() -> None:
    """A worksheet has failures in a line of their own: a tenth of the tokens were failed calls', so 45 % are there."""
    use = replace(THOUSAND, failed_usage=Usage(100_000, 10_000))
    levers, _ = found(a_site(use, n_failed=100), needs(Needs.BATCH))
    moved = levers["batch"].move

    assert moved is not None
    assert (moved.month, moved.low, moved.likely, moved.high) == (
        Range(1_500_000, 1_500_000, 1_500_000),
        *[D("0.45")] * 3,
    )


def test_what_moves_of_a_hybrid_is_what_it_costs_now() -> None:
    """Of $10.50, the dollar and a half of the calls that can wait, at half there."""
    both = a_use(1_100, Usage(10_000_000, 100_000))
    moved = found(a_site(both), hybrid(THOUSAND))[0]["batch"].move

    assert moved is not None
    assert (moved.month.likely, moved.likely) == (1_500_000, D("0.5"))


def test_reads_from_a_cache_can_be_cheaper_than_the_batch_tier() -> None:
    """900 of 1,000 input tokens at a tenth now, at half in batch: it costs $2.85 more, is reported so, never counted."""
    price_of = priced({("m", Tier.STANDARD): a_price("1", "5", "0.1"), ("m", Tier.BATCH): a_price("0.5", "2.5")})
    facts = a_site(a_use(10_000, Usage(10_000_000, 100_000, cached_input_tokens=9_000_000)))
    levers, spend = found(facts, needs(Needs.BATCH), price_of)

    assert spend.month == Range(2_400_000, 2_400_000, 2_400_000)  # 1,000,000 + 900,000 + 500,000
    assert levers["batch"].saves == Range(-2_850_000, -2_850_000, -2_850_000)  # 5,000,000 + 250,000 there
    assert levers["batch"].title.startswith("Stay")
    assert "90 % of input is read from the cache now" in levers["batch"].why
    assert together(tuple(levers.values()), spend) == Range(0, 0, 0)


def test_a_batch_may_miss_the_cache() -> None:
    """With a cached rate in batch the saving holds as far as rows hit the cache there; the low end has none."""
    facts = a_site(a_use(10_000, Usage(10_000_000, 100_000, cached_input_tokens=9_000_000)))
    levers, _ = found(facts, needs(Needs.BATCH))

    assert levers["batch"].saves == Range(-2_850_000, 1_200_000, 1_200_000)
    # 5,250,000 without a hit, 1,200,000 with all: even at 2,400,000 with 2,850,000 / 4,050,000 of them
    assert "fewer than 70 % of those reads hit" in levers["batch"].why


def test_failed_calls_cost_again_in_a_batch() -> None:
    """Where a tenth of calls fails, the low end pays 1 + 0.1 + 0.01 attempts a row."""
    levers, _ = found(a_site(THOUSAND, n_failed=100), needs(Needs.BATCH))

    assert levers["batch"].saves == Range(1_500_000 - 832_500, 750_000, 750_000)


def test_a_contract_may_not_reach_the_batch_tier() -> None:
    """$1.20 is paid for what lists say is $1.50: half of that is saved if the contract holds in batch, 45 cents if not."""
    use = replace(THOUSAND, n_reported=1_000, reported_usd=D("1.2"))
    levers, _ = found(a_site(use), needs(Needs.BATCH))

    assert levers["batch"].saves == Range(450_000, 600_000, 600_000)


def test_an_unknown_batch_price_saves_an_unknown_amount() -> None:
    """No rate is derived from another: the lever is there without a figure, and with the reason."""
    levers, spend = found(a_site(THOUSAND), needs(Needs.BATCH), priced({("m", Tier.STANDARD): a_price("1", "5")}))

    assert (levers["batch"].saves, levers["batch"].proof, levers["batch"].why) == (None, Proof.UNCLEAR, NO_PRICE)
    assert together(tuple(levers.values()), spend) == Range(0, 0, 0)


def test_a_site_that_nobody_can_price_offers_nothing() -> None:
    """Without a cost there is no saving, not a saving of 0."""
    levers, spend = found(a_site(THOUSAND), needs(Needs.BATCH), priced({}))

    assert levers == {}
    assert together((), spend) is None


@pytest.mark.parametrize(
    ("need", "kinds"),
    [
        (Needs.SYNC, set()),
        (Needs.NEAR_REAL_TIME, {"flex"}),
        (Needs.BATCH, {"batch", "background", "flex"}),
        (Needs.ASK, {"batch"}),
    ],
)
def test_a_tier_is_offered_to_those_who_can_wait_that_long(need: Needs, kinds: set[str]) -> None:
    """Nothing slower for a person who waits, minutes only where minutes do."""
    levers, _ = found(a_site(THOUSAND), needs(need))

    assert set(levers) & {"batch", "background", "flex"} == kinds


def test_what_is_unclear_says_at_most() -> None:
    """While the owner has not said who waits, moving saves from nothing to half, and counts as nothing."""
    levers, spend = found(a_site(THOUSAND), needs(Needs.ASK, Proof.UNCLEAR))

    assert levers["batch"].saves == Range(0, 0, 750_000)
    assert (levers["batch"].proof, levers["batch"].needs) == (Proof.UNCLEAR, "the owner's word on who waits")
    assert together(tuple(levers.values()), spend) == Range(0, 0, 0)


def repeats(n_duplicates: int, usage: Usage, **changed: object) -> Repeats:
    return replace(Repeats(1_000, n_duplicates, True, 0, usage, 0, 0), **changed)  # type: ignore[arg-type]


def test_duplicates_then_the_tier() -> None:
    """A fifth sent twice and half price: 60 % saved, not 70."""
    facts = a_site(THOUSAND, repeats=repeats(200, Usage(200_000, 20_000)))
    levers, spend = found(facts, needs(Needs.BATCH))

    assert levers["dedupe"].saves == Range(300_000, 300_000, 300_000)
    assert levers["dedupe"].proof is Proof.PROVED
    assert together(tuple(levers.values()), spend) == Range(900_000, 900_000, 900_000)


def test_a_retry_after_a_failure_is_no_duplicate() -> None:
    """Of 200 equal requests 50 had to be sent again: 150 count."""
    facts = a_site(THOUSAND, repeats=repeats(200, Usage(200_000, 20_000), n_retries=50))
    levers, _ = found(facts, needs(Needs.SYNC))

    assert levers["dedupe"].saves == Range(225_000, 225_000, 225_000)
    assert "150 of 1,000 requests" in levers["dedupe"].why


@pytest.mark.parametrize("why_not", [{"n_sampled_hot": 1}, {"n_users": 2}])
def test_answers_are_shared_only_where_they_may_be(why_not: dict[str, int]) -> None:
    """A temperature above 0, or more than one user, needs the owner's word; with it the same money counts."""
    facts = a_site(THOUSAND, repeats=repeats(200, Usage(200_000, 20_000)), **why_not)
    levers, _ = found(facts, needs(Needs.SYNC))
    allowed, _ = found(facts, needs(Needs.SYNC), may_share=True)

    assert (levers["dedupe"].proof, levers["dedupe"].saves) == (Proof.UNCLEAR, Range(0, 0, 300_000))
    assert (allowed["dedupe"].proof, allowed["dedupe"].saves) == (Proof.PROVED, Range(300_000, 300_000, 300_000))


def test_few_requests_prove_no_duplicates() -> None:
    """Of fewer than twenty requests a repetition is likely at most."""
    use = a_use(19, Usage(19_000, 1_900))
    levers, _ = found(a_site(use, repeats=repeats(3, Usage(3_000, 300), n_hashed=19)), needs(Needs.SYNC))

    assert levers["dedupe"].proof is Proof.LIKELY


def test_an_embedding_has_one_answer() -> None:
    """One text has one vector, whatever the log says of a temperature."""
    facts = a_site(
        replace(THOUSAND, operation="embeddings"), repeats=repeats(10, Usage(10_000, 1_000)), n_sampled_hot=1_000
    )

    assert found(facts, needs(Needs.SYNC))[0]["dedupe"].proof is Proof.PROVED


def test_what_could_not_be_compared_may_repeat_itself() -> None:
    """Half of the calls could be compared: the high end has as many duplicates in the other half."""
    facts = a_site(THOUSAND, repeats=repeats(200, Usage(200_000, 20_000), n_hashed=500, exact=False))
    lever = found(facts, needs(Needs.SYNC))[0]["dedupe"]

    assert (lever.saves, lever.proof) == (Range(300_000, 300_000, 600_000), Proof.LIKELY)


CLAUDE = priced(
    {("m", Tier.STANDARD): a_price("1", "5", "0.1", "1.25"), ("m", Tier.BATCH): a_price("0.5", "2.5", "0.05", "0.625")}
)
LONG = a_use(1_000, Usage(10_000_000, 100_000), "anthropic")  # $10.50
ALIKE = Prefix(200, 40_000.0, 32_000, 0, "text", 32_000)  # 4 bytes a token: 8,000 of 10,000 tokens alike


def test_a_cached_prefix_pays_its_writes() -> None:
    """900 of 1,000 calls read 8,000 tokens at a tenth, 100 write them at 1.25 times: 6.48 - 0.2 dollars."""
    levers, _ = found(a_site(LONG, prefix=ALIKE, arrivals=BUSY), needs(Needs.SYNC), CLAUDE)

    assert levers["cached prefix"].saves == Range(760_000, 6_280_000, 7_108_000)  # 30 %, 90 % and 99 % hits
    assert levers["cached prefix"].proof is Proof.LIKELY
    assert "about 8,000 tokens" in levers["cached prefix"].why


def test_a_cache_and_the_batch_tier_multiply_where_both_rates_are_halved() -> None:
    """$10.50 at half, and half of $6.28 off that: $2.11 is left."""
    levers, spend = found(a_site(LONG, prefix=ALIKE, arrivals=BUSY), needs(Needs.BATCH), CLAUDE)
    both = together(tuple(levers.values()), spend)

    assert levers["cached prefix"].after["batch"].likely == 3_140_000
    assert both is not None
    assert both.likely == 5_250_000 + 3_140_000


def test_a_cache_that_a_batch_does_not_know_is_left_out_there() -> None:
    """Without a cached rate in batch, one of the two is had: the cache saves more here, so it alone counts."""
    price_of = priced(
        {("m", Tier.STANDARD): a_price("1", "5", "0.1", "1.25"), ("m", Tier.BATCH): a_price("0.5", "2.5")}
    )
    levers, spend = found(a_site(LONG, prefix=ALIKE, arrivals=BUSY), needs(Needs.BATCH), price_of)
    both = together(tuple(levers.values()), spend)

    assert levers["batch"].saves == Range(5_250_000, 5_250_000, 5_250_000)
    assert "batch" not in levers["cached prefix"].after or levers["cached prefix"].after["batch"].likely == 0
    assert both is not None
    assert both.likely == 6_280_000


@pytest.mark.parametrize(
    ("provider", "shared_bytes", "says"),
    [("openai", 32_000, "caches by itself"), ("anthropic", 8_000, "512 to 4,096"), ("who", 32_000, "rules")],
)
def test_a_cache_that_may_not_help_is_unclear(provider: str, shared_bytes: int, says: str) -> None:
    """A provider that caches anyway, a prefix below some model's minimum, and an unknown provider prove no saving."""
    facts = a_site(replace(LONG, provider=provider), prefix=replace(ALIKE, shared_bytes=shared_bytes), arrivals=BUSY)
    lever = found(facts, needs(Needs.SYNC), CLAUDE)[0]["cached prefix"]

    assert lever.proof is Proof.UNCLEAR
    assert lever.needs is not None
    assert says in lever.needs


def test_a_short_prefix_is_not_cached() -> None:
    """Below every published minimum there is nothing to save."""
    facts = a_site(LONG, prefix=replace(ALIKE, shared_bytes=2_000), arrivals=BUSY)

    assert "cached prefix" not in found(facts, needs(Needs.SYNC), CLAUDE)[0]


def test_what_varies_before_what_does_not_is_named() -> None:
    """A time at byte 12 before 32,000 bytes alike: the lint says so and what moving it could save at most."""
    prefix = Prefix(200, 40_000.0, 20, 32_000, "time", 12)
    lever = found(a_site(LONG, prefix=prefix, arrivals=BUSY), needs(Needs.SYNC), CLAUDE)[0]["cached prefix"]

    assert lever.title == "Move what varies behind what does not"
    assert "(time) stands at byte 12, before 32,000 bytes" in lever.why
    assert lever.proof is Proof.UNCLEAR
    assert lever.saves is not None
    assert (lever.saves.low, lever.saves.likely) == (0, 0)
    assert lever.saves.high > 7_000_000


def test_a_lint_of_the_code_stands_without_texts() -> None:
    """What the code puts before its fixed text is said where the log holds no texts; what it would save is not known."""
    spend = spend_of(a_site(LONG), CLAUDE, MONTH_S)
    levers = levers_of(a_site(LONG), needs(Needs.SYNC), spend, CLAUDE, lints=["datetime.now() at a.py:3"])
    lever = next(lever for lever in levers if lever.kind == "cached prefix")

    assert (lever.saves, lever.proof, lever.why) == (None, Proof.UNCLEAR, "datetime.now() at a.py:3")


def test_what_is_cached_already_saves_nothing_more() -> None:
    """A prefix that is read from the cache today is no lever."""
    used = replace(LONG, usage=Usage(10_000_000, 100_000, 7_920_000, 80_000))

    assert "cached prefix" not in found(a_site(used, prefix=ALIKE, arrivals=BUSY), needs(Needs.SYNC), CLAUDE)[0]


def test_boilerplate_costs_at_most_what_it_costs() -> None:
    """8,000 of 10,000 tokens are alike: without any of them the call would cost $8 less in a month, quality unknown."""
    levers, _ = found(a_site(LONG, prefix=ALIKE, arrivals=BUSY), needs(Needs.SYNC), CLAUDE)

    assert (levers["boilerplate"].saves, levers["boilerplate"].proof) == (Range(0, 0, 8_000_000), Proof.UNCLEAR)


def test_an_output_cap_saves_time_and_not_money() -> None:
    """A cap of 4,096 over answers of 100: nothing on the bill, less held and fewer rounds."""
    answers, caps = Sample(1_000, tuple([100.0] * 1_000)), Sample(1_000, (4_096.0,) * 1_000)
    lever = found(a_site(THOUSAND, output_tokens=answers, max_output_tokens=caps), needs(Needs.BATCH))[0]["output cap"]

    assert (lever.title, lever.saves) == ("Cap answers at 128 tokens", Range(0, 0, 0))
    assert "no saving by itself" in lever.why
    assert "needs about 1 round instead of 60 rounds" in lever.why  # ln(1 - 1/1.3) / ln(1 - 100/4096) = 59.3
    assert "$0.000640 for an answer instead of $0.020480" in lever.why


def test_a_cap_close_to_the_answers_is_no_lever() -> None:
    """Answers that come near their cap need it."""
    answers, caps = Sample(1_000, tuple([400.0] * 1_000)), Sample(1_000, (1_024.0,) * 1_000)

    assert (
        "output cap" not in found(a_site(THOUSAND, output_tokens=answers, max_output_tokens=caps), needs(Needs.SYNC))[0]
    )


@pytest.mark.parametrize(
    ("accepted", "saves", "proof"),
    [(True, Range(1_350_000, 1_350_000, 1_350_000), Proof.LIKELY), (False, None, Proof.UNCLEAR)],
)
def test_a_smaller_model_counts_once_a_benchmark_found_it_good_enough(
    accepted: bool, saves: Range | None, proof: Proof
) -> None:
    """It costs a tenth for the same tokens: likely with the benchmark's word and file, nothing without."""
    spend = spend_of(a_site(THOUSAND), HALF, MONTH_S)
    smaller = {"openai/m": Smaller("openai", "small", accepted, "the verdict (600 rows)", "report.json, 2026-11-20")}
    levers = levers_of(a_site(THOUSAND), needs(Needs.SYNC), spend, HALF, smaller=smaller)
    lever = next(lever for lever in levers if lever.kind == "smaller model")

    assert (lever.saves, lever.proof) == (saves, proof)
    assert "openai/small instead of openai/m, with as many tokens: the verdict (600 rows)" in lever.why
    assert "report.json, 2026-11-20; a list, 2026-11-01" in lever.basis
    unnamed = found(a_site(THOUSAND), needs(Needs.SYNC))[0]
    assert (unnamed["smaller model"].saves, unnamed["own gpu"].saves) == (None, None)
    assert unnamed["smaller model"].needs is not None
    assert "canwait benchmark" in unnamed["smaller model"].needs


def test_proved_and_likely_never_share_a_micro() -> None:
    """A proved fifth and a likely half: 20 % proved, 40 % likely, which is what both save together."""
    facts = a_site(THOUSAND, repeats=repeats(200, Usage(200_000, 20_000)))
    levers, spend = found(facts, needs(Needs.BATCH, Proof.LIKELY))

    assert proved_and_likely(tuple(levers.values()), spend) == (
        Range(300_000, 300_000, 300_000),
        Range(600_000, 600_000, 600_000),
    )


def a_lever(kind: str, low: int, likely: int, high: int, proof: Proof = Proof.LIKELY, **after: Range) -> Lever:
    return Lever(kind, "", Range(low, likely, high), proof, "", after=after)


DOLLAR = Spend(Range(1_000_000, 1_000_000, 1_000_000), "", 1, 0)


@pytest.mark.parametrize(
    ("levers", "saved"),
    [
        ([], (0, 0, 0)),
        ([a_lever("batch", 400_000, 500_000, 500_000), a_lever("flex", 500_000, 500_000, 500_000)], (500, 500, 500)),
        # less on average, more at best: the high end is that of what may save most
        ([a_lever("batch", 0, 300_000, 900_000), a_lever("flex", 300_000, 400_000, 500_000)], (300, 400, 900)),
        # what is unclear counts nothing, whatever it says
        (
            [a_lever("batch", 500_000, 500_000, 500_000, Proof.UNCLEAR), a_lever("dedupe", 1, 1, 1, Proof.UNCLEAR)],
            (0, 0, 0),
        ),
        # one that loses is not pulled
        (
            [a_lever("batch", -900_000, -800_000, 900_000), a_lever("dedupe", 100_000, 100_000, 100_000)],
            (100, 100, 100),
        ),
        # beyond the tier, what cannot be there is not saved
        (
            [
                a_lever("batch", 500_000, 500_000, 500_000),
                a_lever("cached prefix", 0, 0, 0, batch=Range(900_000, 900_000, 900_000)),
            ],
            (1_000, 1_000, 1_000),
        ),
        ([a_lever("dedupe", 500_000, 500_000, 500_000), a_lever("other", 500_000, 500_000, 500_000)], (750, 750, 750)),
    ],
)
def test_savings_stack(levers: list[Lever], saved: tuple[int, int, int]) -> None:
    """Of a dollar a month, in thousandths: tiers exclude each other, all else multiplies, only what helps is pulled."""
    assert together(levers, DOLLAR) == Range(*(1_000 * n for n in saved))


# ------------------------------------------------------------------------------------------------------------------ laws

rates = st.integers(1, 10**7).map(lambda n: D(n) / 10**6)
numbers = st.integers(0, 10**6)


@st.composite
def price_books(draw: st.DrawFn) -> Prices:
    """Any prices of two models on any tiers, some missing, some with long-context rates."""
    maybe = st.none() | rates
    prices = {}
    for model in ("m", "n"):
        for tier in (Tier.STANDARD, Tier.BATCH, Tier.FLEX, Tier.BACKGROUND):
            if draw(st.booleans()):
                step = PriceStep(draw(numbers), draw(rates), draw(rates), draw(maybe), draw(maybe))
                price = Price(
                    "", "", tier, draw(rates), draw(rates), draw(maybe), draw(maybe), "any", date(2026, 1, 1), (step,)
                )
                prices[model, tier] = price if draw(st.booleans()) else replace(price, steps=())
    return priced(prices)


@st.composite
def uses(draw: st.DrawFn, model: str) -> ModelUse:
    n = draw(st.integers(1, 10**5))
    blind = draw(st.integers(0, n - 1))
    n_in, cached, written = (draw(numbers) for _ in range(3))
    reported = draw(st.sampled_from([0, n]))
    return a_use(
        n,
        Usage(n_in + cached + written, draw(numbers), cached, written),
        draw(st.sampled_from(["openai", "anthropic"])),
        model,
        n_unmetered=blind,
        n_reported=reported,
        reported_usd=D(draw(numbers)) / 10**4 if reported else D(0),
        tier=draw(st.sampled_from([None, *Tier])),
    )


@st.composite
def sites(draw: st.DrawFn) -> SiteFacts:
    used = [draw(uses("m")), *([draw(uses("n"))] if draw(st.booleans()) else [])]
    n = sum(use.n_calls for use in used)
    n_same = draw(st.integers(0, n))
    mean = draw(st.integers(1, 10**5))
    shared = draw(st.integers(0, mean))
    later = draw(st.integers(0, mean - shared))
    lengths = tuple(sorted(map(float, draw(st.lists(numbers, max_size=5)))))
    return a_site(
        *used,
        n_failed=draw(st.integers(0, n)),
        n_users=draw(st.integers(0, 2)),
        n_sampled_hot=draw(st.integers(0, 1)),
        input_tokens=Sample(len(lengths) * 2, lengths),
        repeats=Repeats(
            draw(st.integers(n_same, n)),
            n_same,
            draw(st.booleans()),
            draw(st.integers(0, n_same)),
            Usage(draw(numbers), draw(numbers)),
            0,
            0,
        ),
        prefix=Prefix(10, float(mean), shared, later, draw(st.sampled_from([None, "id"])), shared),
        arrivals=replace(BUSY, n_busy=draw(st.integers(1, n)), n_runs=draw(st.integers(1, n))),
    )


def some_of(facts: SiteFacts, verdict: Verdict, tenths: int) -> Verdict:
    """A hybrid of which so many tenths of each model's calls can wait."""
    if verdict.needs is not Needs.HYBRID:
        return verdict
    parts = [
        replace(
            use,
            n_calls=use.n_calls * tenths // 10,
            n_unmetered=use.n_unmetered * tenths // 10,
            usage=Usage(*(n * tenths // 10 for n in astuple(use.usage))),
            n_reported=use.n_reported * tenths // 10,
            reported_usd=use.reported_usd * tenths / 10,
        )
        for use in facts.models
    ]
    return replace(hybrid(*parts), proof=verdict.proof)


verdicts = st.builds(needs, st.sampled_from(Needs), st.sampled_from(Proof))
tenths = st.integers(0, 10)
windows = st.integers(3_600, 60 * DAY_S)


@given(sites(), verdicts, tenths, price_books(), windows, st.booleans())
def test_no_saving_exceeds_what_is_paid(
    facts: SiteFacts, verdict: Verdict, part: int, price_of: Prices, window_s: int, may_share: bool
) -> None:
    """Alone and together savings are ordered whole micros, at most the site's cost; unknown costs save None."""
    verdict = some_of(facts, verdict, part)
    spend = spend_of(facts, price_of, window_s)
    levers = levers_of(facts, verdict, spend, price_of, may_share=may_share)
    total = together(levers, spend)
    if spend.month is None:
        assert (levers, total) == ((), None)
        return
    assert total is not None
    ranges = [total, *proved_and_likely(levers, spend), *(lever.saves for lever in levers if lever.saves)]
    for saves in ranges:
        assert saves.low <= saves.likely <= saves.high
        assert {type(x) for x in (saves.low, saves.likely, saves.high)} == {int}
        assert saves.high <= spend.month.high
        assert saves.likely <= spend.month.likely
    assert total.likely >= 0
    proved, likely = proved_and_likely(levers, spend)
    assert proved.likely + likely.likely == total.likely


@given(sites(), verdicts, tenths, price_books(), windows, st.booleans())
def test_what_is_unclear_never_counts(
    facts: SiteFacts, verdict: Verdict, part: int, price_of: Prices, window_s: int, may_share: bool
) -> None:
    """Totals are the same without the unclear levers, none of which claims a likely saving; a tier's proof is at most
    the verdict's."""
    verdict = some_of(facts, verdict, part)
    spend = spend_of(facts, price_of, window_s)
    levers = levers_of(facts, verdict, spend, price_of, may_share=may_share)
    unclear = [lever for lever in levers if lever.proof is Proof.UNCLEAR]

    assert together(levers, spend) == together([lever for lever in levers if lever not in unclear], spend)
    assert all(lever.saves is None or (lever.saves.low, lever.saves.likely) == (0, 0) for lever in unclear)
    tiers = [lever for lever in levers if lever.kind in {"batch", "flex", "background"}]
    assert all(lever.proof in {verdict.proof, Proof.UNCLEAR} for lever in tiers)
    assert not tiers or verdict.needs is not Needs.SYNC


@st.composite
def any_levers(draw: st.DrawFn) -> tuple[list[Lever], Spend]:
    """Any levers of a site of any cost, some that lose, some that do not stack."""
    low, likely, high = sorted(draw(st.tuples(numbers, numbers, numbers)))

    def saves() -> Range:
        ends = (draw(st.integers(-(10**6), most)) for most in (low, likely, high))
        a, b, c = sorted(ends)
        return Range(min(a, low), min(b, likely), c)

    levers = [
        Lever(
            kind, "", saves(), draw(st.sampled_from(Proof)), "", after={"batch": saves()} if draw(st.booleans()) else {}
        )
        for kind in draw(st.lists(st.sampled_from(["batch", "flex", "dedupe", "cached prefix"]), unique=True))
    ]
    return levers, Spend(Range(low, likely, high), "", 1, 0)


@given(any_levers(), st.data())
def test_one_lever_more_never_promises_less(drawn: tuple[list[Lever], Spend], data: st.DataObject) -> None:
    """The likely and the high end of the best combination only grow with what may be combined."""
    levers, spend = drawn
    some = together([lever for lever in levers if data.draw(st.booleans())], spend)
    everything = together(levers, spend)

    assert some is not None
    assert everything is not None
    assert spend.month is not None
    assert 0 <= some.likely <= everything.likely <= spend.month.likely
    assert some.high <= everything.high <= spend.month.high


@given(sites(), price_books(), st.integers(2, 50))
def test_savings_grow_with_the_volume(facts: SiteFacts, price_of: Prices, times: int) -> None:
    """The same traffic in a shorter time is at least as much money a month."""
    saved = []
    for window_s in (MONTH_S, MONTH_S // times):
        spend = spend_of(facts, price_of, window_s)
        total = together(levers_of(facts, needs(Needs.BATCH), spend, price_of), spend)
        saved.append(total.likely if total else 0)

    assert saved[0] <= saved[1]


# --------------------------------------------------------------------------------------------------------------- prefixes


def numbered(make: Callable[[int], str], n: int = 50) -> list[str]:
    return [make(i) for i in range(n)]


@pytest.mark.parametrize(
    ("make", "kind", "at_byte"),
    [
        (lambda i: f"Now: 2026-11-22T10:{i:02}:00Z. Answer.", "time", 5),
        (lambda i: f"Today is 2026-11-{i % 28 + 1:02} 10:{i:02}, hello", "time", 9),
        (lambda i: f"It is 10:{i:02} now", "time", 6),
        (lambda i: f"at {1_763_800_000 + i * 977} go", "time", 3),
        (lambda i: f"id=123e4567-e89b-12d3-a456-4266141740{i:02} go", "id", 3),
        (lambda i: f"trace {Random(i).getrandbits(128):032x} go", "id", 6),
        (lambda i: f"for TCK-{1_000 + i * 37}: go", "id", 4),
        (lambda i: f"Row {i * 7_919}. Classify", "number", 4),
        (lambda i: f"Question: {'abcdefghij'[i % 10]}{'xyz'[i % 3]} whatever", "text", 10),
    ],
)
def test_a_prefix_ends_where_texts_part(make: Callable[[int], str], kind: str, at_byte: int) -> None:
    """What breaks it is named, and the byte is where that begins, not the last digit in common."""
    prefix = prefix_of(numbered(make))

    assert prefix is not None
    assert (prefix.broken_by, prefix.at_byte) == (kind, at_byte)


def test_a_tenth_of_the_texts_may_be_different() -> None:
    """The prefix is that of nine in ten texts, and what they part at is theirs."""
    prefix = prefix_of([*numbered(lambda i: f"Rules of the house. {'abc'[i % 3]}", 45), *["other"] * 5])

    assert prefix is not None
    assert (prefix.n_texts, prefix.shared_bytes, prefix.broken_by) == (50, 20, "text")


def test_text_alike_after_what_varies_is_counted() -> None:
    """Rules behind a time are found wherever they stand; the text of each call is not."""
    rules = " ".join(f"Rule {i}: never do what rule {i * i} forbids." for i in range(100))
    prefix = prefix_of(
        numbered(lambda i: f"Time 2026-11-22T10:{i:02}:00Z\n{'x' * (i % 5)}{rules}\n{Random(i).random()}")
    )

    assert prefix is not None
    assert len(rules) - 64 <= prefix.shared_later_bytes <= len(rules)


def test_alike_means_in_nearly_all_texts() -> None:
    """Rules that one text in twenty lacks still count."""
    rules = "".join(f"<{i * 7_919:08x}>" for i in range(64))
    texts = [f"Id {Random(i).getrandbits(64):016x} {rules if i else ''}" for i in range(20)]
    prefix = prefix_of(texts)

    assert prefix is not None
    assert len(rules) - 64 <= prefix.shared_later_bytes <= len(rules)


def test_a_prefix_ends_between_characters() -> None:
    """Two letters of which the first byte is one are not half alike."""
    prefix = prefix_of([f"na{letter}!" for letter in "éèêë" * 5])

    assert prefix is not None
    assert (prefix.shared_bytes, prefix.broken_by, prefix.at_byte) == (2, "text", 2)


def test_equal_texts_are_one_prefix() -> None:
    """Nothing breaks what is all alike."""
    assert prefix_of(["héllo"] * 20) == Prefix(20, 6.0, 6, 0, None, None)
    assert prefix_of(["alone"]) is None


hostile = st.lists(st.text(max_size=60), min_size=2, max_size=40)


@given(hostile, st.text(max_size=30))
def test_a_prefix_is_shared_by_nine_in_ten(texts: list[str], start: str) -> None:
    """Whatever texts hold, the prefix is that of enough of them."""
    texts = [start + text for text in texts]
    prefix = prefix_of(texts)
    assert prefix is not None
    raw = [text.encode("utf-8", "replace") for text in texts]
    starts = {text[: prefix.shared_bytes] for text in raw if len(text) >= prefix.shared_bytes}
    held = max(sum(text.startswith(s) for text in raw) for s in starts)

    assert held * 10 >= len(texts) * 9
    assert prefix.shared_bytes >= len(start.encode("utf-8", "replace"))
    assert prefix.at_byte is None or 0 <= prefix.at_byte <= prefix.shared_bytes


def jaccard_near(texts: Sequence[str]) -> int:
    """By every pair: how many texts share 8 in 10 of their 4-byte shingles with an earlier, different one."""
    sets = [
        {raw[i : i + 4] for i in range(max(1, len(raw) - 3))} for raw in dict.fromkeys(text.encode() for text in texts)
    ]
    return sum(any(len(a & b) >= 0.8 * len(a | b) for b in sets[:i]) for i, a in enumerate(sets))


def test_near_duplicates_are_those_of_every_pair() -> None:
    """Of questions with single words changed, the sketch finds what comparing every pair finds, and no equal text."""
    random = Random(5)
    words = [f"{random.getrandbits(20):x}" for _ in range(400)]
    texts = [" ".join(random.choices(words, k=20)) for _ in range(80)]
    for text in texts[:60]:
        changed = text.split()
        for _ in range(random.randrange(1, 3)):
            changed[random.randrange(20)] = random.choice(words)
        texts.append(" ".join(changed))
    n_near, n_compared = near_duplicates([*texts, *texts[:9]])

    assert n_compared == len(set(texts))
    assert jaccard_near(texts) >= 30
    assert abs(n_near - jaccard_near(texts)) <= 2


def test_a_shared_instruction_makes_no_two_questions_alike() -> None:
    """Ninety-nine parts template and one part question: only the question is compared."""
    random = Random(2)
    template = " ".join(f"{random.getrandbits(32):x}" for _ in range(500))
    texts = [f"{template} {random.getrandbits(200):x} {template[::-1]}" for _ in range(40)]

    assert jaccard_near(texts[:5]) == 4
    assert near_duplicates(texts) == (0, 40)


@given(hostile, st.integers(0, 3))
def test_near_duplicates_are_bounded_and_repeatable(texts: list[str], seed: int) -> None:
    """No text counts twice, equal ones count once, and one seed gives one answer."""
    n_near, n_compared = near_duplicates(texts, seed=seed)

    assert n_compared == len({text.encode("utf-8", "replace") for text in texts})
    assert 0 <= n_near <= max(0, n_compared - 1)
    assert near_duplicates(texts, seed=seed) == (n_near, n_compared)
