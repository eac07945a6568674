"""Usage x dated price -> money: what was billed, and the most that can be billed. Pure, exact, rounded up once.

A rate of USD per million tokens is also micros per token, so tokens x rate is micros. Nothing here is a float and
nothing is rounded but the final sum: a result that Decimal could not hold exactly raises `decimal.Inexact`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from decimal import ROUND_CEILING, Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow, localcontext

from .errors import UnboundedRequest
from .types import Price, PriceStep, Usage

EXACT = Context(prec=100, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])

# Anthropic writes its cache only for a request that carries `cache_control`, and canwait sends none. Elsewhere a rate
# for writing is taken as "the provider may write when it likes": OpenAI does since GPT-5.6 (providers.md 7.2).
_WRITES_CACHE_ONLY_WHEN_ASKED = frozenset({"anthropic"})

_UNITS = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))  # plain, cached, cache-written, output

_USD = re.compile(r"(-?)([0-9]{1,15})(?:\.([0-9]{1,6}))?")


def exact_micros(usage: Usage, price: Price) -> Decimal:
    """What one request costs, in micros, unrounded. Raises ValueError for a negative count."""
    thresholds, levels = _levels(price)
    with localcontext(EXACT):
        return _charge(levels[bisect_left(thresholds, usage.input_tokens)], _parts(usage))


def cost_micros(usages: Iterable[Usage], price: Price) -> int:
    """What these requests cost together: the exact sum, rounded up once. One `Usage` is one request, never a sum of
    several where the price has long-context steps."""
    thresholds, levels = _levels(price)
    billed = [[0, 0, 0, 0] for _ in levels]
    for usage in usages:
        total = billed[bisect_left(thresholds, usage.input_tokens)]
        plain, cached, written, output = _parts(usage)
        total[0] += plain
        total[1] += cached
        total[2] += written
        total[3] += output
    with localcontext(EXACT):
        return _up(sum((_charge(level, tokens) for level, tokens in zip(levels, billed, strict=True)), Decimal(0)))


def scaled_rates(price: Price) -> tuple[int, list[tuple[int, int, int, int, int]]]:
    """The rates as integers of 10**-places micros a token: `places`, at least 12, and the levels, rising.

    A level is the input tokens that a request of it exceeds, and what a plain, cached, cache-written and output token
    costs there. The highest level that a request reaches prices all of it.
    """
    thresholds, levels = _levels(price)
    with localcontext(EXACT):
        rates = [[_charge(level, unit) for unit in _UNITS] for level in levels]
        places = max(12, *(-int(rate.as_tuple().exponent) for level in rates for rate in level))
        scaled = [[int(rate.scaleb(places)) for rate in level] for level in rates]
    return places, [(above, p, c, w, o) for above, (p, c, w, o) in zip([-1, *thresholds], scaled, strict=True)]


def worst_micros(bounds: Iterable[tuple[int, int]], price: Price) -> int:
    """The most that requests within these (input, output) token bounds can cost together, rounded up once.

    Every input token is priced at the dearest rate it may be billed at (plain, cached or written to a cache), at the
    dearest long-context step the request can reach. Raises UnboundedRequest where an output has no bound but costs
    something; an embedding's output costs nothing. Raises ValueError for a negative input bound.
    """
    thresholds, levels = _levels(price)
    output_costs = any(level.output for level in levels)
    inputs, outputs = [0] * len(levels), [0] * len(levels)
    for input_bound, output_bound in bounds:
        if output_bound <= 0 and output_costs:
            raise UnboundedRequest(what=f"a request to {price.provider}/{price.model}")
        if input_bound < 0:
            raise ValueError(f"an input bound of {input_bound} tokens")
        reached = bisect_left(thresholds, input_bound)
        inputs[reached] += input_bound
        outputs[reached] += output_bound
    may_write = price.provider not in _WRITES_CACHE_ONLY_WHEN_ASKED
    worst = worst_input = worst_output = Decimal(0)
    with localcontext(EXACT):
        for level, n_input, n_output in zip(levels, inputs, outputs, strict=True):
            # a request that may reach this level may also stay on a lower one, so the dearest so far counts
            worst_input = max(worst_input, _dearest_input(level, may_write))
            worst_output = max(worst_output, level.output)
            worst += n_input * worst_input + n_output * worst_output
        return _up(worst)


def format_usd(micros: int) -> str:
    """USD with exactly 6 places: 1 is "0.000001"."""
    dollars, rest = divmod(abs(micros), 1_000_000)
    return f"{'-' if micros < 0 else ''}{dollars}.{rest:06d}"


def parse_usd(text: str) -> int:
    """Micros of a plain decimal ("5", "0.25", "-0.000001"). Raises ValueError for all else, also finer than a micro."""
    match = _USD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount in USD: expected digits and at most 6 decimal places, as in 12.50")
    sign, dollars, rest = match.groups()
    micros = int(dollars) * 1_000_000 + int((rest or "").ljust(6, "0"))
    return -micros if sign else micros


def _levels(price: Price) -> tuple[list[int], list[Price | PriceStep]]:
    """Thresholds in rising order, and the rates below the first, between each two and above the last.

    `bisect_left(thresholds, n)` is the level of a request with n input tokens: it counts the thresholds below n.
    """
    steps = sorted(price.steps, key=lambda step: step.above_input_tokens)
    return [step.above_input_tokens for step in steps], [price, *steps]


def _parts(usage: Usage) -> tuple[int, int, int, int]:
    """Plain, cached, cache-written and output tokens. Plain is never below zero, so no report lowers a bill twice."""
    cached, written, output = usage.cached_input_tokens, usage.cache_write_tokens, usage.output_tokens
    if usage.input_tokens < 0 or cached < 0 or written < 0 or output < 0:
        raise ValueError(f"a negative token count: {usage}")
    return max(usage.input_tokens - cached - written, 0), cached, written, output


def _charge(rates: Price | PriceStep, tokens: Iterable[int]) -> Decimal:
    plain, cached, written, output = tokens
    return (
        plain * rates.input
        + cached * (rates.input if rates.cached_input is None else rates.cached_input)
        + written * (rates.input if rates.cache_write is None else rates.cache_write)
        + output * rates.output
    )


def _dearest_input(rates: Price | PriceStep, may_write: bool) -> Decimal:
    """USD per million input tokens when every one is billed in the dearest way the provider may choose."""
    written = rates.cache_write if may_write else None
    return max(rate for rate in (rates.input, rates.cached_input, written) if rate is not None)


def _up(micros: Decimal) -> int:
    return int(micros.to_integral_value(ROUND_CEILING))  # by definition never signals Inexact
