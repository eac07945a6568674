"""genai-prices under a guard. The book answers an unknown tier with the standard price, lets a half-stated tier inherit
the other half, and finds some models by a piece of their name; here each of these is "not known".

Reads the data bundled with the package, never an updated or custom snapshot: a price is from the book `identity` names.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from importlib.metadata import version

from genai_prices import types as book
from genai_prices.data import providers

from ..types import Price, PriceStep, Tier

_PROVIDERS = {"xai": "x-ai", "bedrock": "aws"}  # our name -> theirs, where they differ
_CONTEXTS = {  # how a request of a tier is described there
    Tier.STANDARD: None,
    Tier.BATCH: {"processing": "batch"},
    Tier.FLEX: {"service_tier": "flex"},
}
_RATES = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
_ONLY_WHEN_ASKED = re.compile("audio|image|video|document|searches|cache_write_1h")  # not billed for plain text
_VERSION = re.compile(r"[-@](latest|[0-9]{3,4}|20[0-9]{6}|20[0-9]{2}-[0-9]{2}-[0-9]{2})\Z")
_VERIFIED = re.compile(r"\bverified on (20[0-9]{2}-[0-9]{2}-[0-9]{2})")


def find(provider: str, model: str, tier: Tier, today: date) -> Price | str:
    """The book's price, or why it is not known."""
    theirs = _provider(provider)
    if theirs is None:
        return f"{_name()} has no provider {provider}"
    info = theirs.find_model(model)  # without its fallback to other vendors' prices
    if info is None or not (model.lower() == info.id.lower() or _names(info.match, model.lower())):
        return f"{_name()} has no such model"
    if tier not in _CONTEXTS:
        return f"{_name()} has no {tier.value} prices"
    if _by_the_hour(info):
        return "it depends on the hour"
    noon = datetime.combine(today, time(12), UTC)
    standard = stated = info.get_prices(noon)
    if context := _CONTEXTS[tier]:
        variants = [v for v in info.price_variants or () if v.when == context]
        active = [v.prices for v in variants if v.constraint is None or v.constraint.active(noon)]
        if not active:
            return f"{_name()} has none for this model"
        stated = active[0]  # as there: the first wins
    if why := _incomplete(stated, standard):
        return why
    thresholds = _thresholds(stated)
    base, *steps = (_rates_above(stated, n) for n in (0, *thresholds))
    _, book_version, as_of = identity()
    page = f", after {theirs.pricing_urls[0]}" if theirs.pricing_urls else ""
    return Price(
        provider,
        model,
        tier,
        base.input,
        base.output,
        base.cached_input,
        base.cache_write,
        f"genai-prices {book_version}{page}",
        as_of,
        tuple(steps),
    )


def models(provider: str) -> set[str]:
    theirs = _provider(provider)
    return {info.id for info in theirs.models} if theirs else set()


@cache
def identity() -> tuple[str, str, date]:
    """Name, version, and the last day on which the book says that a rate was verified: it states no date of its own."""
    comments = (info.price_comments or "" for provider in providers for info in provider.models)
    days = (date.fromisoformat(day) for comment in comments for day in _VERIFIED.findall(comment))
    return "genai-prices", version("genai-prices"), max(days, default=date.min)


def _name() -> str:
    return " ".join(identity()[:2])


def _provider(provider: str) -> book.Provider | None:
    theirs = _PROVIDERS.get(provider, provider)
    return next((p for p in providers if p.id == theirs), None)


def _names(match: book.MatchLogic, model: str) -> bool:
    """Whether this is a model's own name, or that and a version. A longer name is another model, at another price."""
    match match:
        case book.ClauseEquals() | book.ClauseRegex():
            return match.is_match(model)
        case book.ClauseStartsWith(part) | book.ClauseContains(part) | book.ClauseEndsWith(part):
            return model.startswith(part.lower()) and len(_VERSION.sub("", model)) <= len(part)
        case book.ClauseOr(clauses):
            return any(_names(clause, model) for clause in clauses)
        case book.ClauseAnd(clauses):  # its regexes only exclude
            named = (_names(clause, model) for clause in clauses if not isinstance(clause, book.ClauseRegex))
            return match.is_match(model) and any(named)


def _by_the_hour(info: book.ModelInfo) -> bool:
    prices = [] if isinstance(info.prices, book.ModelPrice) else info.prices
    return any(isinstance(p.constraint, book.TimeOfDateConstraint) for p in (*prices, *(info.price_variants or ())))


def _incomplete(stated: book.ModelPrice, standard: book.ModelPrice) -> str | None:
    """Why these rates cannot bound a request, if they cannot. A missing rate is never taken from the standard tier."""
    keys = {key for key, rate in vars(stated).items() if rate is not None}
    other = {key for key in keys if key not in _RATES and not _ONLY_WHEN_ASKED.search(key)}
    if other:
        return f"it bills {', '.join(sorted(other))} as well, which a price per token cannot hold"
    if stated.input_mtok is None or (stated.output_mtok is None and standard.output_mtok is not None):
        return f"{_name()} states no rate for input or for output"
    if stated.cache_write_mtok is None and standard.cache_write_mtok is not None:
        return f"{_name()} states no rate for writing the cache"  # not left out: it may be dearer than input
    if set(_thresholds(standard)) - set(_thresholds(stated)):
        return f"{_name()} states no long-context rates"
    return None


def _thresholds(prices: book.ModelPrice) -> list[int]:
    """Input tokens above which other rates hold for the whole request."""
    rates = (getattr(prices, key) for key in _RATES)
    return sorted({tier.start for rate in rates if isinstance(rate, book.TieredPrices) for tier in rate.tiers})


def _rates_above(prices: book.ModelPrice, input_tokens: int) -> PriceStep:
    """The rates of a request with more input tokens than that, up to the next threshold."""

    def rate(key: str) -> Decimal | None:
        stated: Decimal | book.TieredPrices | None = getattr(prices, key)
        if not isinstance(stated, book.TieredPrices):
            return stated
        return next((tier.price for tier in reversed(stated.tiers) if tier.start <= input_tokens), stated.base)

    tokens_in, tokens_out, cached, written = map(rate, _RATES)
    assert tokens_in is not None
    # No output rate at the standard tier either: a model that only reads, such as one for embeddings.
    return PriceStep(input_tokens, tokens_in, Decimal(0) if tokens_out is None else tokens_out, cached, written)
