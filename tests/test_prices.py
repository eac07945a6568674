"""Which dated, sourced price holds: the user's file over our overlay over the price book under its guard."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

import pytest
from genai_prices import Usage as BookUsage
from genai_prices import calc_price

from canwait.errors import SpecError, UnknownPrice
from canwait.price import exact_micros
from canwait.prices import age_days, book, find_overrides, lines, lookup, snapshot
from canwait.types import Price, PriceStep, Tier, Usage

D = Decimal
TODAY = date(2026, 11, 21)
OVERLAY = Path(lines.__file__).with_name("overlay.toml")

CONTRACT = """
[[price]]
provider = "openai"
model = "gpt-6-luna"
tier = "batch"
input = "0.04"
output = "0.2"
since = 2026-11-01
checked = 2026-11-10
source = "contract 2026-117"
"""


def overrides(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


def rates(price: Price) -> tuple[Decimal | None, ...]:
    return price.input, price.cached_input, price.cache_write, price.output


def usd(*texts: str | None) -> tuple[Decimal | None, ...]:
    return tuple(None if text is None else D(text) for text in texts)


def step(above_input_tokens: int, input: str, output: str, cached: str | None, written: str | None) -> PriceStep:
    return PriceStep(above_input_tokens, D(input), D(output), *usd(cached, written))


# USD per million tokens: input, cached input, cache write, output; standard, then batch. Source: providers.json
# `prices.rows`, documentation copies and two price books compared on 2026-11-21. None: not published.
FACTS = [
    ("openai", "gpt-6-luna", usd("0.1", "0.01", "0.125", "0.5"), usd("0.05", "0.005", "0.0625", "0.25")),
    ("openai", "gpt-6.1-sol", usd("2", "0.1", "2.5", "10"), usd("1", "0.05", "1.25", "5")),
    ("openai", "gpt-6.1-terra", usd("1", "0.05", "1.25", "5"), usd("0.5", "0.025", "0.625", "2.5")),
    ("openai", "gpt-6-astra", usd("10", "1", "12.5", "50"), usd("5", "0.5", "6.25", "25")),
    ("openai", "gpt-5.5", usd("5", "0.5", None, "30"), usd("2.5", "0.25", None, "15")),
    ("openai", "gpt-4.1", usd("2", "0.5", None, "8"), usd("1", None, None, "4")),
    ("openai", "gpt-4o-mini", usd("0.15", "0.075", None, "0.6"), usd("0.075", None, None, "0.3")),
    ("openai", "o3", usd("2", "0.5", None, "8"), usd("1", None, None, "4")),
    ("openai", "text-embedding-3-small", usd("0.02", None, None, "0"), usd("0.01", None, None, "0")),
    ("anthropic", "claude-opus-5-5", usd("4", "0.2", "5", "20"), usd("2", "0.1", "2.5", "10")),
    ("anthropic", "claude-sonnet-5-5", usd("2", "0.1", "2.5", "10"), usd("1", "0.05", "1.25", "5")),
    ("anthropic", "claude-haiku-5-5", usd("0.1", "0.01", "0.125", "0.5"), usd("0.05", "0.005", "0.0625", "0.25")),
    ("anthropic", "claude-haiku-4-5", usd("1", "0.1", "1.25", "5"), usd("0.5", "0.05", "0.625", "2.5")),
    ("google", "gemini-4-argon", usd("2", "0.1", None, "10"), usd("1", "0.05", None, "5")),
    ("google", "gemini-3.8-flash", usd("0.75", "0.075", None, "3.75"), usd("0.375", "0.0375", None, "1.875")),
    ("google", "gemini-2.5-flash", usd("0.3", "0.03", None, "2.5"), usd("0.15", "0.03", None, "1.25")),
    ("google", "gemini-2.5-pro", usd("1.25", "0.125", None, "10"), usd("0.625", "0.125", None, "5")),
    ("google", "gemini-embedding-001", usd("0.15", None, None, "0"), usd("0.075", None, None, "0")),
    ("mistral", "mistral-medium-latest", usd("1.5", "0.15", None, "7.5"), usd("0.75", "0.075", None, "3.75")),
    ("groq", "openai/gpt-oss-120b", usd("0.15", "0.075", None, "0.6"), usd("0.075", "0.075", None, "0.3")),
    ("xai", "grok-4.3", usd("1.25", "0.2", None, "2.5"), usd("1", "0.16", None, "2")),
    ("xai", "grok-4.7", usd("2", "0.5", None, "6"), None),
    # The table gives no cached rates for Bedrock; the book has them at the standard tier.
    (
        "bedrock",
        "global.anthropic.claude-haiku-4-5-20251001-v1:0",
        usd("1", "0.1", "1.25", "5"),
        usd("0.5", None, None, "2.5"),
    ),
    ("bedrock", "amazon.nova-pro-v1:0", usd("0.8", "0.2", None, "3.2"), usd("0.4", None, None, "1.6")),
]


@pytest.mark.parametrize(("provider", "model", "standard", "batch"), FACTS, ids=[fact[1] for fact in FACTS])
def test_prices_are_what_the_vendors_publish(
    provider: str, model: str, standard: tuple[Decimal | None, ...], batch: tuple[Decimal | None, ...] | None
) -> None:
    """24 models of 7 providers have the published rates at both tiers, and none where the sources conflict."""
    found = lookup(provider, model, Tier.STANDARD, today=TODAY)
    assert rates(found) == standard
    assert found.source
    assert found.as_of <= TODAY
    if batch is None:
        with pytest.raises(UnknownPrice):
            lookup(provider, model, Tier.BATCH, today=TODAY)
    else:
        assert rates(lookup(provider, model, Tier.BATCH, today=TODAY)) == batch


def test_long_requests_have_their_own_rates() -> None:
    """The long-context rates hold in batch as well, for the whole request, from the published threshold."""
    luna = lookup("openai", "gpt-6-luna", Tier.BATCH, today=TODAY)
    assert luna.steps == (step(272_000, "0.1", "0.375", "0.01", "0.125"),)
    gemini = lookup("google", "gemini-2.5-pro", Tier.BATCH, today=TODAY)
    assert gemini.steps == (step(200_000, "1.25", "7.5", "0.25", None),)


@pytest.mark.parametrize("tier", [Tier.STANDARD, Tier.FLEX])
@pytest.mark.parametrize("input_tokens", [1_000, 272_000, 272_001])
def test_our_arithmetic_is_the_books(tier: Tier, input_tokens: int) -> None:
    """Where nothing is overlaid, a request costs what the price book itself calculates."""
    usage = Usage(input_tokens, 77, cached_input_tokens=512, cache_write_tokens=128)
    theirs = calc_price(
        BookUsage(input_tokens=input_tokens, output_tokens=77, cache_read_tokens=512, cache_write_tokens=128),
        "gpt-6-luna",
        provider_id="openai",
        price_context={"service_tier": "flex"} if tier is Tier.FLEX else None,
    )
    assert exact_micros(usage, lookup("openai", "gpt-6-luna", tier, today=TODAY)) == theirs.total_price * 10**6


@pytest.mark.parametrize(
    ("provider", "model", "tier", "why"),
    [
        ("openai", "text-embedding-ada-002", Tier.BATCH, "has none for this model"),  # the book answers: standard
        ("openai", "gpt-6-luna", Tier.BACKGROUND, "has no background prices"),
        ("openai", "gpt-6-luna", Tier.OWN, "has no own prices"),
        ("openai", "gpt-5.5-pro", Tier.BATCH, "states no long-context rates"),
        ("openai", "gpt-3.5-turbo-1106", Tier.BATCH, "states no rate for input or for output"),
        ("azure", "gpt-4o", Tier.STANDARD, "has no such model"),  # the book answers: OpenAI's
        ("anthropic", "claude-haiku-4-5-turbo", Tier.BATCH, "has no such model"),  # the book answers: claude-haiku-4-5
        ("deepseek", "deepseek-chat", Tier.STANDARD, "depends on the hour"),
        ("perplexity", "sonar", Tier.STANDARD, "requests_kcount"),
        ("google", "gemma-3", Tier.STANDARD, "states no rate"),  # the book answers: 0
        ("own", "m", Tier.BATCH, "has no provider own"),
        ("nobody", "m", Tier.BATCH, "has no provider nobody"),
    ],
)
def test_what_is_not_published_is_unknown(provider: str, model: str, tier: Tier, why: str) -> None:
    """What nobody published has no price: never the standard tier's, never another model's, never 0."""
    with pytest.raises(UnknownPrice, match=why) as error:
        lookup(provider, model, tier, today=TODAY)
    assert error.value.problem["model"] == model


def test_a_tier_has_no_price_before_it_was_verified() -> None:
    """A batch rate verified in October is not used for September."""
    with pytest.raises(UnknownPrice):
        lookup("openai", "gpt-4o", Tier.BATCH, today=date(2026, 9, 1))
    assert lookup("openai", "gpt-4o", Tier.BATCH, today=date(2026, 10, 14)).input == D("1.25")


@pytest.mark.parametrize("model", ["claude-haiku-4-5-20251001", "claude-haiku-4-5-latest", "claude-haiku-4-5"])
def test_a_version_of_a_model_has_its_price(model: str) -> None:
    """A dated name is the same model."""
    assert lookup("anthropic", model, Tier.BATCH, today=TODAY).input == D("0.5")


def test_a_misspelt_model_is_met_with_names_that_look_alike() -> None:
    """The error says what may have been meant, also from the user's own file."""
    with pytest.raises(UnknownPrice, match="look alike: gpt-6-luna"):
        lookup("openai", "gpt-6-lunar", Tier.BATCH, today=TODAY)
    with pytest.raises(UnknownPrice) as error:
        lookup("xai", "grok-4.7", Tier.BATCH, today=TODAY)
    assert "look alike" not in str(error.value)  # the model is right, its price is missing


@pytest.mark.parametrize("provider", ["own", "local"])
def test_our_own_servers_bill_nothing(tmp_path: Path, provider: str) -> None:
    """A token of our own server costs 0, says why, and may be given a price."""
    own = lookup(provider, "m", Tier.OWN, today=TODAY)
    assert (own.input, own.output, own.as_of) == (0, 0, TODAY)
    assert own.source == "your own server: nothing is billed per token"
    text = CONTRACT.replace("openai", provider).replace("gpt-6-luna", "m").replace('"batch"', '"own"')
    assert lookup(provider, "m", Tier.OWN, today=TODAY, overrides=overrides(tmp_path, text)).input == D("0.04")


def test_the_users_file_wins(tmp_path: Path) -> None:
    """A contract's rates stand over every other layer, with their own source and date, and for that offer only."""
    file = overrides(tmp_path, CONTRACT)
    found = lookup("openai", "gpt-6-luna", Tier.BATCH, today=TODAY, overrides=file)
    assert rates(found) == usd("0.04", None, None, "0.2")
    assert (found.source, found.as_of) == ("contract 2026-117", date(2026, 11, 10))
    assert lookup("openai", "gpt-6-luna", Tier.STANDARD, today=TODAY, overrides=file).input == D("0.1")


@pytest.mark.parametrize(("since", "as_of"), [("2026-01-01", date(2026, 1, 1)), ("2026-11-20", book()[2])])
def test_a_multiplier_scales_every_rate_of_the_layer_below(tmp_path: Path, since: str, as_of: date) -> None:
    """A contract discount applies exactly, to long-context rates too, and the price says over what."""
    file = overrides(
        tmp_path,
        f"""
        [[price]]
        provider = "openai"
        model = "gpt-6-luna"
        tier = "batch"
        multiplier = "0.9"
        since = {since}
        source = "contract 2026-117"
        """,
    )
    found = lookup("openai", "gpt-6-luna", Tier.BATCH, today=TODAY, overrides=file)
    assert rates(found) == usd("0.045", "0.0045", "0.05625", "0.225")
    assert found.steps == (step(272_000, "0.09", "0.3375", "0.009", "0.1125"),)
    assert found.source.startswith("contract 2026-117: 0.9 x genai-prices")
    assert found.as_of == as_of  # as old as the older of the two


def test_a_multiplier_of_nothing_is_unknown(tmp_path: Path) -> None:
    """A discount on a price that nobody knows is no price."""
    file = overrides(
        tmp_path,
        '[[price]]\nprovider="xai"\nmodel="grok-4.7"\ntier="batch"\nmultiplier="0.8"\nsince=2026-01-01\nsource="s"\n',
    )
    with pytest.raises(UnknownPrice):
        lookup("xai", "grok-4.7", Tier.BATCH, today=TODAY, overrides=file)


def test_a_line_is_superseded_by_a_later_one(tmp_path: Path) -> None:
    """The youngest line that has begun holds, in any order of the file; one from the future is not used yet."""
    newer = CONTRACT.replace("2026-11-01", "2026-11-21").replace("0.04", "0.03")
    future = CONTRACT.replace("2026-11-01", "2026-11-22").replace("0.04", "0.02")
    file = overrides(tmp_path, future + newer + CONTRACT)

    def on(day: date) -> Decimal:
        return lookup("openai", "gpt-6-luna", Tier.BATCH, today=day, overrides=file).input

    assert on(date(2026, 10, 31)) == D("0.05")  # none has begun: the book
    assert on(date(2026, 11, 1)) == on(date(2026, 11, 20)) == D("0.04")
    assert on(date(2026, 11, 21)) == D("0.03")
    assert on(date(2026, 11, 22)) == D("0.02")


def test_long_context_rates_can_be_stated(tmp_path: Path) -> None:
    """A line may hold the rates above a number of input tokens."""
    long = 'steps = [{ above_input_tokens = 272000, input = "0.08", output = "0.3" }]\n'
    found = lookup("openai", "gpt-6-luna", Tier.BATCH, today=TODAY, overrides=overrides(tmp_path, CONTRACT + long))
    assert found.steps == (step(272_000, "0.08", "0.3", None, None),)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (('"0.04"', "0.04"), 6, "input: found 0.04, expected plain digits in quotes"),
        (('"0.04"', '"-0.04"'), 6, "input: found '-0.04', expected plain digits"),
        (('"0.04"', '"NaN"'), 6, "input: found 'NaN'"),
        (('"0.04"', '"1e3"'), 6, "input: found '1e3'"),
        (('output = "0.2"', 'output = "0,2"'), 7, "output: found '0,2'"),
        (('"batch"', '"bulk"'), 5, "tier: found 'bulk', expected one of batch, background, flex, standard, own"),
        (("2026-11-01", '"2026-11-01"'), 8, "since: found '2026-11-01', expected a day, without quotes"),
        (("2026-11-10", "2026-11-10T00:00:00Z"), 9, "checked: found datetime"),
        (("source", "sorce"), 10, "sorce: is not known here; did you mean `source`?"),
        (('source = "contract 2026-117"', ""), 2, "source: is missing"),
        (('"contract 2026-117"', '""'), 10, "source:"),
        (('output = "0.2"', ""), 2, "expected `input` and `output`, or a `multiplier`"),
        (('output = "0.2"', 'multiplier = "0.9"'), 2, "found rates and a `multiplier`"),
        (('input = "0.04"\noutput = "0.2"', 'multiplier = "0"'), 2, "found the multiplier 0"),
        (("[[price]]", "[price]"), 2, "expected [[price]], with two brackets"),
        (("[[price]]", "[[prices]]"), 2, "prices: is not known here; did you mean `price`?"),
        (('output = "0.2"', 'output = "0.2'), 7, "Illegal character"),
        (
            ('output = "0.2"', 'output = "0.2"\nsteps = [{ above_input_tokens = "9" }]'),
            8,
            "steps.0.above_input_tokens:",
        ),
    ],
)
def test_bad_lines_are_refused_at_their_place(tmp_path: Path, change: tuple[str, str], line: int, message: str) -> None:
    """A price that is not exact, dated and sourced is refused with file and line; none of the file is used."""
    file = overrides(tmp_path, CONTRACT.replace(*change))
    with pytest.raises(SpecError) as error:
        lookup("anthropic", "claude-haiku-5-5", Tier.BATCH, today=TODAY, overrides=file)
    assert f"{file}:{line}:" in str(error.value)
    assert message in str(error.value)


def test_all_problems_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    """Two bad lines are two problems, each at its own place."""
    file = overrides(tmp_path, CONTRACT.replace('"0.04"', "1") + CONTRACT.replace('"0.2"', '"x"'))
    with pytest.raises(SpecError) as error:
        lookup("openai", "gpt-4o", Tier.BATCH, today=TODAY, overrides=file)
    assert [(p.line, p.field) for p in error.value.problems] == [(6, "input"), (17, "output")]


def test_the_manuals_example_is_a_price_file(tmp_path: Path) -> None:
    """What docs/prices.md shows can be copied into a job's folder and used."""
    manual = (Path(__file__).parent.parent / "docs" / "prices.md").read_text(encoding="utf-8")
    file = overrides(tmp_path, manual.split("```toml")[1].split("```")[0])
    assert lookup("openai", "gpt-6-luna", Tier.BATCH, today=TODAY, overrides=file).cached_input == D("0.004")
    assert lookup("anthropic", "claude-haiku-5-5", Tier.BATCH, today=TODAY, overrides=file).input == D("0.045")


def test_two_lines_for_one_day_are_refused(tmp_path: Path) -> None:
    """Which of two would hold is nobody's guess."""
    with pytest.raises(SpecError, match=r"\[\[price\]\] 1 and 2 both give openai/gpt-6-luna batch since 2026-11-01"):
        lookup("openai", "gpt-4o", Tier.BATCH, today=TODAY, overrides=overrides(tmp_path, CONTRACT * 2))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A named file that is missing or not UTF-8 is never taken for an empty one."""
    with pytest.raises(SpecError, match=r"missing\.toml: cannot be read"):
        lookup("openai", "gpt-4o", Tier.BATCH, today=TODAY, overrides=tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe9"')
    with pytest.raises(SpecError, match=r"latin\.toml: is not UTF-8"):
        lookup("openai", "gpt-4o", Tier.BATCH, today=TODAY, overrides=tmp_path / "latin.toml")


def test_the_file_beside_the_job_comes_first(tmp_path: Path) -> None:
    """prices.toml beside the job file, else the one that is named, else none."""
    named = tmp_path / "elsewhere.toml"
    assert find_overrides(tmp_path) is None
    assert find_overrides(tmp_path, "") is None
    assert find_overrides(tmp_path, str(named)) == named
    beside = overrides(tmp_path, CONTRACT)
    assert find_overrides(tmp_path, str(named)) == beside


def test_our_overlay_is_dated_and_sourced_and_not_empty() -> None:
    """Every line of the overlay was checked, and is about a batch tier of a provider with published rates."""
    ours = lines.read(OVERLAY)
    assert len(ours) >= 6
    for line in ours:
        assert line.source
        assert line.price is not None
        assert line.since <= line.as_of <= TODAY


@pytest.mark.skipif(version("genai-prices") != "0.2.3", reason="the overlay was compared with genai-prices 0.2.3")
def test_the_overlay_repeats_nothing_of_the_book() -> None:
    """A line is there only because the book is silent or differs; else it would hide the book's later corrections."""
    for line in lines.read(OVERLAY):
        said = snapshot.find(line.provider, line.model, line.tier, line.as_of)
        assert isinstance(said, str) or (rates(said), said.steps) != (
            line.price and rates(line.price),
            line.price.steps,
        )


def test_a_price_knows_its_age_and_its_book() -> None:
    """Provenance: the book's name, version and date, and how many days ago a price was known to hold."""
    name, book_version, as_of = book()
    assert (name, book_version) == ("genai-prices", version("genai-prices"))
    found = lookup("openai", "gpt-4o", Tier.BATCH, today=TODAY)
    assert found.as_of == as_of
    assert found.source.startswith(f"genai-prices {book_version}")
    assert age_days(replace(found, as_of=TODAY - timedelta(days=40)), TODAY) == 40


def test_pricing_and_counting_load_nothing_heavy() -> None:
    """Neither the arithmetic nor a lookup for our own server loads the price book."""
    code = (
        "import sys, canwait.price, canwait.tokens; assert 'pydantic' not in sys.modules;"
        "from datetime import date; from canwait.prices import lookup; from canwait.types import Tier;"
        "lookup('own', 'm', Tier.OWN, today=date(2026, 11, 21)); assert 'genai_prices' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
