"""Planning as values: offers, sizes of shards, money, digests, and how a plan reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import plan
from canwait.codec import plan_from_json, plan_to_json
from canwait.errors import SpecError, UnknownPrice
from canwait.tokens import counter
from canwait.types import (
    BadRow,
    BudgetSpec,
    Endpoint,
    Job,
    Limits,
    MarkClass,
    Offer,
    Plan,
    PlannedShard,
    Price,
    PriceStep,
    ShardSpec,
    Source,
    Tier,
    Urgency,
)

LIMITS = Limits(50_000, 1_000_000, 10_000, None, 86_400, 120, 60, "test")
JOB = Job(
    "tickets", Source("tickets.csv", "id"), "openai", "m-1", (("user", "{{ text }}"),), 16, Urgency.BATCH,
    BudgetSpec(2_000_000, None, None),
)  # fmt: skip


def price(tier: Tier = Tier.BATCH, into: str = "0.5", out: str = "2", **facts: Any) -> Price:
    return Price(
        "openai", "m-1", tier, Decimal(into), Decimal(out), None, None, "vendor page", date(2026, 11, 1), **facts
    )


def priced(*tiers: Tier) -> Callable[[Tier], Price]:
    def price_of(tier: Tier) -> Price:
        if tier not in tiers:
            raise UnknownPrice(provider="openai", model="m-1", tier=tier.value)
        return price(tier)

    return price_of


# --------------------------------------------------------------------------------------------------------- what to buy


def test_batch_is_chosen_and_standard_shown_beside_it() -> None:
    """Without stated tiers a batch provider offers batch, and standard only for comparison."""
    batch, standard = plan.offers_for(JOB, "openai", LIMITS, priced(Tier.BATCH, Tier.STANDARD))
    assert (batch.tier, batch.chosen, batch.reason) == (Tier.BATCH, True, "answers or gives up within 24 h")
    assert (standard.tier, standard.chosen, standard.price) == (Tier.STANDARD, False, price(Tier.STANDARD))
    assert standard.reason == "shown for comparison"
    assert plan.choose(JOB, [standard, batch]) is batch


EMBEDDING = replace(JOB, endpoint=Endpoint.EMBEDDINGS, max_output_tokens=0)


@pytest.mark.parametrize(
    "rates", [{"out": "2"}, {"out": "0", "steps": (PriceStep(9, Decimal(1), Decimal(1), None, None),)}]
)
def test_embeddings_are_bought_only_where_output_costs_nothing(rates: dict[str, Any]) -> None:
    """A model that bills output, also only in long requests, is refused at the endpoint; one that bills none is taken."""

    def offers(**facts: Any) -> tuple[Offer, ...]:
        return plan.offers_for(EMBEDDING, "openai", LIMITS, lambda tier: price(tier, **facts))

    free, paid = offers(out="0"), offers(**rates)
    assert plan.choose(EMBEDDING, free).tier is Tier.BATCH
    with pytest.raises(SpecError, match="openai/m-1 bills output, so it makes no embeddings") as caught:
        plan.choose(EMBEDDING, paid)
    assert [problem.field for problem in caught.value.problems] == ["endpoint"]
    assert plan.choose(JOB, paid).tier is Tier.BATCH


def test_an_embedding_is_expected_to_have_no_output() -> None:
    """Whatever earlier rows tell, output is none, at its bound too, and that costs nothing."""
    bytes_ = counter("openai", "unheard-of")
    for earlier in (None, plan.Earlier(5, Decimal(0)), plan.Earlier(500, Decimal(0), Decimal("0.25"))):
        expected = plan.expect(EMBEDDING, bytes_, earlier)
        assert (expected.output(1_000), expected.output_basis) == (0, "an embedding has none")
    assert plan.bound_micros([100, 200], 0, price(into="0.01", out="0")) == 3


def test_the_endpoint_is_part_of_what_is_approved() -> None:
    """The same prompt at another endpoint is another plan, and its rows are read anew."""
    responses = replace(JOB, endpoint=Endpoint.RESPONSES)
    assert plan.fingerprint_of(JOB, "f") != plan.fingerprint_of(responses, "f")
    digests = {plan.digest_of(job, "/v1/x", price(), b"") for job in (JOB, responses, EMBEDDING)}
    assert len(digests) == 3


@pytest.mark.parametrize("provider", ["own", "local"])
def test_our_own_servers_are_their_only_offer(provider: str) -> None:
    """Own servers are bought at the own tier, however near the deadline: they start at once."""
    (own,) = plan.offers_for(replace(JOB, deadline_s=60), provider, LIMITS, priced(Tier.OWN))
    assert (own.tier, own.chosen, own.reason) == (Tier.OWN, True, "starts at once")


def test_a_window_past_the_deadline_is_said() -> None:
    """A batch that may end after the deadline is bought, and the plan says so with both durations."""
    job = replace(JOB, deadline_s=5_400)
    offers = plan.offers_for(job, "openai", LIMITS, priced(Tier.BATCH, Tier.STANDARD))
    chosen = plan.choose(job, offers)
    assert chosen.tier is Tier.BATCH
    assert "within 24 h, LATER than the deadline of 1 h 30 min" in chosen.reason


def test_a_tier_without_a_price_is_not_bought() -> None:
    """An unknown batch price is never replaced by another tier's: it is the error."""
    offers = plan.offers_for(JOB, "openai", LIMITS, priced(Tier.STANDARD))
    assert [offer.chosen for offer in offers] == [False, False]
    with pytest.raises(UnknownPrice, match="No batch price is known for openai/m-1") as raised:
        plan.choose(JOB, offers)
    assert raised.value.fields["tier"] == "batch"


def test_tiers_that_this_version_does_not_run_are_refused() -> None:
    """A job that allows only other tiers is told which one there is."""
    job = replace(JOB, tiers=(Tier.BACKGROUND,))
    offers = plan.offers_for(job, "openai", LIMITS, priced(Tier.BACKGROUND, Tier.BATCH, Tier.STANDARD))
    assert [offer.tier for offer in offers] == [Tier.BACKGROUND, Tier.STANDARD]
    with pytest.raises(SpecError, match=r"background: .* runs openai on batch and flex and standard only"):
        plan.choose(job, offers)


def cheaper(**cost: str) -> Any:
    """Prices of some tiers; of others none is known."""
    prices = {Tier(name): price(Tier(name), into, into) for name, into in cost.items()}
    return lambda tier: prices[tier] if tier in prices else priced()(tier)


@pytest.mark.parametrize(
    ("urgency", "tiers", "cost", "chosen"),
    [
        ("batch", (), {"batch": "1", "flex": "0.5", "standard": "2"}, "batch"),
        ("batch", ("standard", "batch"), {"batch": "1", "standard": "2"}, "standard"),
        ("batch", ("flex", "batch"), {"batch": "1", "standard": "2"}, "batch"),
        ("near_real_time", (), {"batch": "1", "flex": "1", "standard": "2"}, "flex"),
        ("near_real_time", (), {"batch": "1", "flex": "3", "standard": "2"}, "standard"),
        ("near_real_time", (), {"batch": "1", "standard": "2"}, "standard"),
        ("near_real_time", ("batch", "standard"), {"batch": "1", "flex": "1", "standard": "2"}, "standard"),
        ("near_real_time", ("batch",), {"batch": "1", "standard": "2"}, None),
        ("near_real_time", (), {"batch": "1"}, None),
    ],
)
def test_the_tier_follows_the_urgency(
    urgency: str, tiers: tuple[str, ...], cost: dict[str, str], chosen: str | None
) -> None:
    """Without hurry the job's first tier with a price; within minutes the cheapest that keeps them, never a batch."""
    job = replace(JOB, urgency=Urgency(urgency), tiers=tuple(map(Tier, tiers)))
    offers = plan.offers_for(job, "openai", LIMITS, cheaper(**cost))
    assert [offer.tier.value for offer in offers if offer.chosen] == ([chosen] if chosen else [])
    if chosen:
        assert plan.choose(job, offers).tier is plan.tier_for(job, "openai", cheaper(**cost))
    else:
        with pytest.raises((SpecError, UnknownPrice)):
            plan.choose(job, offers)


def test_a_batch_is_said_to_be_too_slow_for_minutes() -> None:
    """A job that wants minutes and allows batches only is told why there is nothing to buy."""
    job = replace(JOB, urgency=Urgency.NEAR_REAL_TIME, tiers=(Tier.BATCH,))
    with pytest.raises(SpecError, match="batch: takes hours, and near_real_time means minutes"):
        plan.choose(job, plan.offers_for(job, "openai", LIMITS, priced(Tier.BATCH, Tier.STANDARD)))


# -------------------------------------------------------------------------------------------------------------- shards


def test_room_is_the_smallest_of_all_limits() -> None:
    """The job's own limit never widens the provider's, and what stands around the lines is kept free."""
    assert plan.room_for(JOB, "openai", LIMITS) == plan.Room(5_000, 999_936, 10_000, None)
    small = replace(JOB, shard=ShardSpec(max_rows=70))
    assert plan.room_for(small, "openai", LIMITS).max_lines == 70
    assert plan.room_for(replace(JOB, shard=ShardSpec(max_rows=70_000)), "openai", LIMITS).max_lines == 50_000
    assert plan.room_for(JOB, "own", LIMITS).max_lines == 50_000


@given(st.integers(1, 40), st.data())
def test_shards_without_a_mark_have_different_sizes(max_lines: int, data: st.DataObject) -> None:
    """Cut by rows alone, no two shards are equal as long as different sizes can hold the lines at all."""
    n_lines = data.draw(st.integers(0, max_lines * (max_lines + 1) // 2))
    sizes, closed = plan.Sizes(max_lines, MarkClass.UNMARKED), []
    while n_lines:
        n = min(n_lines, sizes.full)
        assert sizes.cut(n, last=n == n_lines) == n
        sizes.take(n)
        closed.append(n)
        n_lines -= n
    assert len(set(closed)) == len(closed)
    assert all(n > m for n, m in pairwise(closed))


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=12))
def test_equal_sizes_are_those_that_cannot_be_divided(max_lines: int, shards: list[tuple[int, bool]]) -> None:
    """However other limits cut them, two shards are equal only where no two free sizes add up to theirs."""
    sizes, closed = plan.Sizes(max_lines, MarkClass.UNMARKED), []
    for n, last in shards:
        keep = sizes.cut(n, last=last)
        assert 1 <= keep <= n
        assert not last or n - keep != keep
        parts = [keep, n - keep] if last and keep < n else [keep]
        for part in parts:
            sizes.take(part)
        closed += parts
    for n in {n for n in closed if closed.count(n) > 1}:
        assert not [m for m in range(1, n) if m != n - m and m not in closed and n - m not in closed]


@pytest.mark.parametrize("mark", [MarkClass.IDEMPOTENT, MarkClass.FINDABLE])
def test_marked_shards_may_have_equal_sizes(mark: MarkClass) -> None:
    """Where a batch carries our mark, every shard is as large as it may be."""
    sizes = plan.Sizes(5, mark)
    sizes.take(5)
    assert (sizes.full, sizes.cut(5, last=True), sizes.cut(5, last=False)) == (5, 5, 5)


def test_when_every_size_is_taken_shards_are_full_again() -> None:
    """More lines than different sizes can hold go into full shards."""
    sizes = plan.Sizes(2, MarkClass.UNMARKED)
    sizes.take(2)
    sizes.take(1)
    assert (sizes.full, sizes.cut(2, last=False)) == (2, 2)


def test_a_shard_keeps_its_id_unless_an_older_one_has_it() -> None:
    """An id is a function of the job and the requests, and never given twice."""
    first = plan.shard_id("tickets", "b" * 64, b"identities", ())
    assert first == plan.shard_id("tickets", "b" * 64, b"identities", ())
    others = [
        plan.shard_id("other", "b" * 64, b"identities", ()),
        plan.shard_id("tickets", "c" * 64, b"identities", ()),
        plan.shard_id("tickets", "b" * 64, b"others", ()),
        plan.shard_id("tickets", "b" * 64, b"identities", {first}),
    ]
    assert len({first, *others}) == 5
    assert (len(first), first[0]) == (21, "s")


# --------------------------------------------------------------------------------------------------- tokens and money


def test_without_earlier_rows_the_bound_is_expected() -> None:
    """Nothing is guessed: too few earlier rows count as none, and the words say so."""
    bounded = counter("anthropic", "claude")
    for earlier, words in [
        (None, "no earlier rows: at its bound"),
        (plan.Earlier(19, Decimal(1)), "19 earlier rows tell too little: at its bound"),
    ]:
        found = plan.expect(JOB, bounded, earlier)
        assert (found.output(10), found.output_basis) == (160, words)
        assert (found.tokens_kind, found.tokens_by) == ("bounded", "UTF-8 bytes")


def test_earlier_rows_narrow_what_is_expected() -> None:
    """The mean output of earlier rows and their bill for each bounded token count, rounded up, within the bounds."""
    found = plan.expect(JOB, counter("anthropic", "claude"), plan.Earlier(240, Decimal("2.55"), Decimal("0.25")))
    assert (found.output(3), found.output(0), found.output_basis) == (8, 0, "mean of 240 earlier rows of this job")
    assert found.input([102], [102]) == ([26], [102])
    assert found.tokens_kind == "estimated"
    assert found.tokens_by == "UTF-8 bytes x 0.2500, as 240 earlier rows of this job were billed"
    above = plan.expect(JOB, counter("anthropic", "claude"), plan.Earlier(240, Decimal(99), Decimal(3)))
    assert (above.output(3), above.input([5], [5])) == (48, ([5], [5]))


def test_counted_tokens_are_never_scaled() -> None:
    """Where the tokenizer is known, earlier rows say nothing about the input."""
    counted = replace(counter("anthropic", "claude"), kind="counted", by="a tokenizer")
    found = plan.expect(JOB, counted, plan.Earlier(240, Decimal(2), Decimal("0.5")))
    assert found.input([10], [20]) == ([10], [20])
    assert (found.tokens_kind, found.tokens_by) == ("counted", "a tokenizer")


LONG = price(steps=(PriceStep(100, Decimal("1.5"), Decimal("7"), None, None),))


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=20),
    st.integers(1, 50),
    st.integers(0, 50),
    st.sampled_from([price(), LONG]),
)
def test_the_worst_case_is_never_below_the_expected(
    rows: list[tuple[int, int]], max_output: int, mean: int, rates: Price
) -> None:
    """Whatever is expected within the bounds costs no more than the bounds."""
    inputs = [min(pair) for pair in rows]
    n_output = min(mean, max_output) * len(rows)
    worst = plan.bound_micros([max(pair) for pair in rows], max_output, rates)
    assert plan.expected_micros(inputs, n_output, rates) <= worst


def test_money_is_rounded_up_once_for_a_shard() -> None:
    """Three rows of 1/3 of a micro and less are one micro, not three."""
    cheap = price(into="0.1", out="0.2")
    assert plan.expected_micros([1, 1, 1], 3, cheap) == 1
    assert plan.bound_micros([1, 1, 1], 1, cheap) == 1


def test_long_requests_are_priced_one_by_one() -> None:
    """Past the step all of a request is dearer: 50 tokens at .5 and 2, 150 at 1.5 and 7, outputs 2 and 3 of 5."""
    assert plan.expected_micros([50, 150], 5, LONG) == 25 + 2 * 2 + 225 + 3 * 7
    assert plan.bound_micros([50, 150], 3, LONG) == 25 + 3 * 2 + 225 + 3 * 7


# ------------------------------------------------------------------------------------------------------------ identity


def test_equal_requests_are_one_unless_rows_are_asked_for_themselves() -> None:
    """With dedupe the key does not count; without it every row of every job is a request of its own."""
    again = replace(JOB, dedupe=False)
    assert plan.identity_of(b"k" * 32, JOB, "1") == plan.identity_of(b"k" * 32, replace(JOB, name="other"), "2")
    own = [
        plan.identity_of(b"k" * 32, job, key)
        for job, key in [(JOB, "1"), (again, "1"), (again, "2"), (replace(again, name="other"), "1")]
    ]
    assert (len(set(own)), {len(i) for i in own}) == (4, {16})


CHANGES: list[dict[str, Any]] = [
    {"name": "other"}, {"source": Source("tickets.csv", "key")}, {"provider": "anthropic"}, {"model": "m-2"},
    {"prompt": (("user", "{{ text }}!"),)}, {"prompt": (("system", "s"), ("user", "{{ text }}"))},
    {"max_output_tokens": 17}, {"output_schema": {"type": "object"}}, {"params": {"temperature": 0}},
    {"dedupe": False}, {"shard": ShardSpec(max_rows=9)}, {"attempts": 1},
]  # fmt: skip


def test_a_plan_is_named_by_all_that_decides_it() -> None:
    """Each change of prompt, model, params, schema, rows, rates or tier gives another digest."""
    here = plan.digest_of(JOB, "/v1/chat/completions", price(), b"rows")
    others = [plan.digest_of(replace(JOB, **change), "/v1/chat/completions", price(), b"rows") for change in CHANGES]
    others += [
        plan.digest_of(JOB, "/v1/messages", price(), b"rows"),
        plan.digest_of(JOB, "/v1/chat/completions", price(), b"other"),
        plan.digest_of(JOB, "/v1/chat/completions", price(into="0.51"), b"rows"),
        plan.digest_of(JOB, "/v1/chat/completions", price(out="2.01"), b"rows"),
        plan.digest_of(JOB, "/v1/chat/completions", price(Tier.FLEX), b"rows"),
        plan.digest_of(JOB, "/v1/chat/completions", LONG, b"rows"),
    ]
    assert len({here, *others}) == len(others) + 1
    assert plan.plan_id(here) == f"p_{here[:12]}"


def test_what_decides_nothing_leaves_a_plan_as_it_is() -> None:
    """A price seen again on a later day, another budget and the order of params change no digest."""
    one = replace(JOB, params={"a": 1, "b": 2})
    other = replace(JOB, params={"b": 2, "a": 1}, budget=BudgetSpec(1, None, None), owner="team")
    later = replace(price(), as_of=date(2026, 11, 20), source="vendor page, seen again")
    assert plan.digest_of(one, "/e", price(), b"") == plan.digest_of(other, "/e", later, b"")


def test_a_fingerprint_follows_source_and_job() -> None:
    """Equal fingerprints mean the same rows through the same prompt."""
    here = plan.fingerprint_of(JOB, "a" * 64)
    assert here == plan.fingerprint_of(replace(JOB, owner="team"), "a" * 64)
    others = {plan.fingerprint_of(replace(JOB, **change), "a" * 64) for change in CHANGES}
    assert len({here, plan.fingerprint_of(JOB, "b" * 64), *others}) == len(CHANGES) + 2


# --------------------------------------------------------------------------------------------------- how a plan reads

SHARD = PlannedShard("s" + "0" * 20, 1_758, 400_000, "a" * 64, "b" * 64, 123_456, 400_000, 28_128, 70_000, 256_256)
PLAN = Plan(
    id="p_0123456789ab", digest="0123456789ab" + "0" * 52, job="tickets", provider="openai", model="m-1",
    tier=Tier.BATCH, endpoint="/v1/chat/completions", price=price(), standard_price=price(Tier.STANDARD, "1", "4"),
    n_rows=2_000, n_duplicates=240, n_reused=2, n_new=1_758, bad_rows=(), n_bad_rows=0, input_expected=123_456,
    input_bound=400_000, output_expected=4_136, output_bound=28_128, tokens_kind="counted",
    tokens_by="o200k_base by toktok-rs 0.3.0", output_basis="mean of 240 earlier rows of this job",
    expected_micros=70_000, worst_micros=256_256, standard_micros=140_000, attempts=3, shards=(SHARD,),
    offers=(
        Offer("openai", "m-1", Tier.BATCH, price(), LIMITS, True, "answers or gives up within 24 h"),
        Offer("openai", "m-1", Tier.STANDARD, price(Tier.STANDARD, "1", "4"), LIMITS, False, "shown for comparison"),
    ),
    rows_blob="c" * 64, shard_ids=(SHARD.id,), source_fingerprint="d" * 64,
    source_as_of=datetime(2026, 11, 21, tzinfo=UTC), created_at=datetime(2026, 11, 21, tzinfo=UTC),
)  # fmt: skip

TEXT = """\
tickets   2,000 rows   240 duplicates   2 reused   1,758 new

  TIER       MODEL   INPUT / M   OUTPUT / M   EXPECTED    WORST CASE
  batch      m-1     $0.5        $2           $0.070000   $0.256256    <- chosen: answers or gives up within 24 h
  standard   m-1     $1          $4           $0.140000   -            shown for comparison

  input      123,456 tokens expected, 400,000 at most   counted: o200k_base by toktok-rs 0.3.0
  output     4,136 tokens expected, 28,128 at most   mean of 240 earlier rows of this job
  price      $0.5 / M input, $2 / M output   vendor page, 2026-11-01
  worst      $0.256256 for one attempt of every new row; up to 3 are made, each reserved anew within the budget
  budget     $2.000000   the worst case fits, $1.743744 spare
  standard   $0.140000 for the expected tokens at the standard tier
  shards     1, of at most 1,758 requests

Nothing was sent. Nothing was spent.
Plan p_0123456789ab is valid until the rows, the prompt or the prices change.
Run exactly this:   canwait run --plan p_0123456789ab"""


def test_a_plan_reads_as_a_table() -> None:
    """What it does, what it may cost, how each number is known, and the next command."""
    assert plan.explain(PLAN, JOB) == TEXT


def test_a_plan_with_bad_rows_offers_no_way_to_run_it() -> None:
    """Every kept bad row stands there with line, key and reason, the rest is counted, and no run is suggested."""
    bad = (BadRow(7, None, "the key is empty"), BadRow(9, "a\x1b[2J", "the user message is empty"))
    text = plan.explain(replace(PLAN, bad_rows=bad, n_bad_rows=1_002), JOB)
    assert "1,758 new   1,002 bad\n" in text
    assert "  1,002 bad rows: nothing can be sent before they are mended\n    line 7: the key is empty\n" in text
    assert "    line 9: key 'a\\x1b[2J': the user message is empty\n    ... and 1,000 more\n" in text
    assert text.endswith("Nothing was sent. Nothing was spent.\nMend the rows, or the template, and plan again.")
    assert "canwait run" not in text


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (BudgetSpec(256_255, None, None), "  budget     $0.256255   the worst case does not fit: $0.000001 over"),
        (BudgetSpec(None, 428_128, None), "  budget     428,128 tokens   the worst case fits, 0 tokens spare"),
        (BudgetSpec(None, None, 1_000), "  budget     1,000 rows   the worst case does not fit: 758 rows over"),
    ],
)
def test_a_plan_says_whether_the_worst_case_fits(budget: BudgetSpec, line: str) -> None:
    """Each stated limit stands beside what is spare or over."""
    assert line in plan.explain(PLAN, replace(JOB, budget=budget)).splitlines()


def test_unknown_figures_read_as_unknown() -> None:
    """A price nobody knows is never shown as a number, and a single attempt is not promised again."""
    unknown = replace(PLAN.offers[1], price=None, reason="No standard price is known")
    text = plan.explain(replace(PLAN, offers=(PLAN.offers[0], unknown), standard_micros=None, attempts=1), JOB)
    assert "  standard   m-1     unknown     unknown      -           -            No standard price is known\n" in text
    assert "  standard   no price is known\n" in text
    assert "for one attempt of every new row; none is sent again\n" in text


def test_a_plan_survives_being_kept_as_json() -> None:
    """A plan read back from its JSON is the same value, long-context rates included."""
    kept = replace(PLAN, price=LONG, bad_rows=(BadRow(1, None, "x"),), standard_price=None)
    assert plan_from_json(plan_to_json(kept)) == kept
