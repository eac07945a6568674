"""What a call site costs a month: as the log reports it, else its tokens at a dated price. Pure; exact until rounded.

A month is what the window cost, at the length of 30 days: no forecast. Between files money is a fraction of micros, so
shares and scales lose nothing; a `Range` is rounded up once, at the end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import ceil, isqrt

from ..price import scaled_rates
from ..types import Price, Tier, Usage
from .calls import Bucket
from .facts import ModelUse, Sample, SiteFacts
from .findings import Range, Spend

Prices = Callable[[str, str, Tier], Price | str]  # provider, model, tier -> the price, or why none is known

REPORTED = "reported by the log"

_DAY_S, _DAY_US, _WEEK_S, _MONTH_DAYS = 86_400, 86_400_000_000, 604_800, 30
_MOST_DAYS = 4_000  # of one bucket: what is longer is a clock that lies
_WHOLE_WEEK_S = _WEEK_S * 98 // 100  # a week's log spans a little less, from its first call to its last
_NEARLY_ALL = Fraction(95, 100)
_WORTH_SAYING = Fraction(5, 100)  # by how much two figures of one thing may differ


@dataclass(frozen=True, slots=True)
class Exact:
    """Micros, or shares of them, before rounding."""

    low: Fraction
    likely: Fraction
    high: Fraction

    def __add__(self, other: Exact) -> Exact:
        return Exact(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, other: Exact) -> Exact:
        """The product of amounts, which are never negative, with shares, which may be."""
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Exact(min(corners), self.likely * other.likely, max(corners))

    def rounded_up(self) -> Range:
        return Range(ceil(self.low), ceil(self.likely), ceil(self.high))


def flat(amount: Fraction) -> Exact:
    return Exact(amount, amount, amount)


NOTHING = flat(Fraction(0))


@dataclass(frozen=True, slots=True)
class Line:
    """One model on one tier at a site, with what its calls of the window cost."""

    use: ModelUse
    tier: Tier | str  # standard where the log does not say
    price: Price | str
    priced: Fraction | None  # its metered calls at the price
    paid: Exact | None  # all its calls; None: neither tokens with a price nor a reported cost
    n_covered: int  # calls that `paid` was taken from
    basis: str
    warning: str | None = None


def spend_of(facts: SiteFacts, price_of: Prices, window_s: float, *, start_us: int | None = None) -> Spend:
    """The cost of a site, from the log's own figures where nearly all calls have one, else from tokens x price.

    `window_s` is the time that the whole audit covers, `start_us` when that began: known, every weekday counts as often
    as a month has it. Calls without tokens are covered at the mean of the others by `high`, by `likely` as far as they
    are more than the calls that failed, and by `low` not at all.
    """
    lines = lines_of(facts, price_of)
    known = [line.paid for line in lines if line.paid is not None]
    unknown = [line for line in lines if line.paid is None]
    n_missing = facts.n_calls - sum(line.n_covered for line in lines)
    scale, shape = _month(facts, window_s, start_us)
    why = [f"{_calls(line.use.n_calls)} of {_name(line.use)} are not in it: {line.basis}" for line in unknown]
    if scale is None or not known:
        why = [shape] if scale is None and shape else [f"{_name(line.use)}: {line.basis}" for line in unknown]
        return Spend(None, "", facts.n_calls, "; ".join(why) or "the log holds no call of it")
    uncovered = n_missing - sum(line.use.n_calls for line in unknown)
    if uncovered > 0:
        why.append(f"{_calls(uncovered)} without tokens or cost: the high end counts them at the mean of the others")
    warnings = [line.warning for line in lines if line.warning]
    if shape:
        warnings.append(shape)
    return Spend(
        (sum(known, NOTHING) * scale).rounded_up(),
        "; ".join(dict.fromkeys(line.basis for line in lines if line.paid is not None)),
        n_missing,
        "; ".join(why) or None,
        tuple(warnings),
    )


def lines_of(facts: SiteFacts, price_of: Prices) -> tuple[Line, ...]:
    """What each model of a site costs in the window."""
    lines = tuple(_line(use, price_of, facts.input_tokens) for use in facts.models)
    missing = sum(line.use.n_calls - line.n_covered for line in lines if line.paid is not None)
    answered = Fraction(max(0, missing - facts.n_failed), missing) if missing else Fraction(0)
    return tuple(_with_the_missing(line, answered) for line in lines)


def charge(price: Price, usage: Usage, inputs: Sample, n_calls: int) -> Exact:
    """Micros of the summed usage of several calls.

    Where long requests have rates of their own, `inputs` says how many are long: within two standard errors, for it
    is a sample. Without one all calls are taken to be as long as their mean.
    """
    scale, levels = _rates(price)
    plain = max(usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens, 0)
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    cost_in = [Fraction(plain * p + cached * c + written * w, scale) for _, p, c, w, _ in levels]
    cost_out = [Fraction(usage.output_tokens * o, scale) for *_, o in levels]
    thresholds = [above for above, *_ in levels[1:]]
    lengths = inputs.values or ((usage.input_tokens / n_calls,) if n_calls else ())
    cuts = [0, *(bisect_right(lengths, above) for above in thresholds), len(lengths)]
    held = [lengths[a:b] for a, b in pairwise(cuts)]  # by level, for a sample is sorted
    n_long = len(lengths) - len(held[0])
    if not n_long:
        return flat(cost_in[0] + cost_out[0])
    whole = Fraction(sum(lengths))
    by_tokens = [Fraction(sum(level)) / whole for level in held]
    by_calls = [Fraction(len(level), len(lengths)) for level in held]

    def mixed(factor: Fraction) -> Fraction:
        return _mean(cost_in, by_tokens, factor) + _mean(cost_out, by_calls, factor)

    error = Fraction(0) if inputs.n_seen == len(lengths) else Fraction(2, isqrt(n_long))
    likely, *ends = (mixed(factor) for factor in (Fraction(1), max(1 - error, Fraction(0)), 1 + error))
    return Exact(min(likely, *ends), likely, max(likely, *ends))


@lru_cache(maxsize=1_024)
def _rates(price: Price) -> tuple[int, list[tuple[int, int, int, int, int]]]:
    """As `price.scaled_rates` has them, with how many of their units are a micro."""
    places, levels = scaled_rates(price)
    return 10**places, levels


@dataclass(frozen=True, slots=True)
class Sized:
    """What a provider's own sums say about one model on one tier. It proves nothing about who waits."""

    provider: str
    model: str
    tier: Tier | str | None
    month: Range | None
    n_calls: int
    why: str | None = None  # what is missing
    counted: bool = True  # False: the same money stands in its provider's costs


def sized(buckets: Iterable[Bucket], price_of: Prices) -> tuple[Sized, ...]:
    """Spend summed per provider, model and tier, dearest first; a month of each at the time its provider's sums cover.

    A provider exports tokens and costs apart, about the same money: of the days of which its costs are there, its tokens
    are not counted.
    """
    sums: dict[tuple[str, str, Tier | str | None, bool, int, int], Bucket] = {}  # of days, so that files may overlap
    for b in buckets:
        key = b.provider, b.model, b.tier, b.cost_usd is not None, b.start_us // _DAY_US, -(-b.end_us // _DAY_US)
        sums[key] = _joined(sums[key], b) if key in sums else replace(b, label="")
    costed: dict[str, set[int]] = {}
    covers: dict[str, tuple[int, int]] = {}
    for (provider, _, _, has_cost, first_day, end_day), b in sums.items():
        if has_cost:
            costed.setdefault(provider, set()).update(range(first_day, min(end_day, first_day + _MOST_DAYS)))
        start_us, end_us = covers.get(provider, (b.start_us, b.end_us))
        covers[provider] = min(start_us, b.start_us), max(end_us, b.end_us)
    parts: dict[tuple[str, str, Tier | str | None, bool, bool], list[tuple[Bucket, Fraction]]] = {}
    for (provider, model, tier, has_cost, first_day, end_day), b in sums.items():
        again = Fraction(0)  # the share of its days whose cost stands elsewhere
        if not has_cost and end_day > first_day:
            days = costed.get(provider, set())
            n_days = min(end_day - first_day, _MOST_DAYS)
            again = Fraction(sum(day in days for day in range(first_day, first_day + n_days)), n_days)
        for counted, share in ((True, 1 - again), (False, again)):
            if share:
                parts.setdefault((provider, model, tier, has_cost, counted), []).append((b, share))
    found = []
    for (provider, *_, counted), of_days in parts.items():
        start_us, end_us = covers[provider]
        found.append(_size(of_days, price_of, (end_us - start_us) / 1e6, counted))
    return tuple(sorted(found, key=lambda s: (-(s.month.likely if s.month else 0), s.provider, s.model, str(s.tier))))


def aggregates(found: Iterable[Sized]) -> Mapping[str, Range]:
    """provider/model -> spend, of those that could be priced; no money twice."""
    totals: dict[str, Range] = {}
    for s in found:
        if s.month is not None and s.counted:
            name = f"{s.provider}/{s.model}"
            totals[name] = totals.get(name, Range(0, 0, 0)) + s.month
    return totals


def batch_share(found: Iterable[Sized]) -> Fraction | None:
    """The share of the spend that is on the batch tier already, of the sums that name their tier. None: none does."""
    named = [(s.month.likely, s.tier is Tier.BATCH) for s in found if s.month is not None and s.tier is not None]
    total = sum(micros for micros, _ in named)
    return Fraction(sum(micros for micros, is_batch in named if is_batch), total) if total else None


# ------------------------------------------------------------------------------------------------------------ one line


def _line(use: ModelUse, price_of: Prices, inputs: Sample) -> Line:
    """A model's cost as far as the log covers it; calls that it does not cover come later."""
    tier = use.tier or Tier.STANDARD
    price = _price(price_of, use.provider, use.model, tier)
    n_metered = use.n_calls - use.n_unmetered
    priced = charge(price, use.usage, inputs, n_metered) if isinstance(price, Price) and n_metered > 0 else None
    likely = priced.likely if priced else None
    reported = Fraction(use.reported_usd) * 1_000_000
    believed = use.n_reported > 0 and (reported > 0 or not likely)  # a 0 beside tokens that cost: a price not known
    all_reported = believed and use.n_reported >= _NEARLY_ALL * use.n_calls
    if all_reported or (priced is None and believed):
        warning = _difference(use, reported, likely, n_metered) if all_reported else None
        covered = min(use.n_reported, use.n_calls)
        return Line(use, tier, price, likely, flat(reported), covered, REPORTED, warning)
    if priced is not None:
        assert isinstance(price, Price)
        assumed = "" if use.tier else ", as standard: the log names no tier"
        return Line(use, tier, price, likely, priced, n_metered, f"{price.source}, {price.as_of}{assumed}")
    why = price if isinstance(price, str) else "the log holds neither tokens nor cost"
    return Line(use, tier, price, None, None, 0, why)


def _price(price_of: Prices, provider: str, model: str, tier: Tier | str) -> Price | str:
    """Nobody publishes rates of a tier that is none of ours where prices are looked up, and no other's rates are its."""
    return price_of(provider, model, tier) if isinstance(tier, Tier) else f"no price of the {tier} tier is known"


def _with_the_missing(line: Line, answered: Fraction) -> Line:
    n_missing = line.use.n_calls - line.n_covered
    if line.paid is None or n_missing == 0 or line.n_covered == 0:
        return line
    more = Fraction(n_missing, line.n_covered)
    return replace(line, paid=line.paid * Exact(Fraction(1), 1 + answered * more, 1 + more))


def _difference(use: ModelUse, reported: Fraction, priced: Fraction | None, n_metered: int) -> str | None:
    if not priced or n_metered < _NEARLY_ALL * use.n_calls:
        return None
    ratio = (reported / use.n_reported) / (priced / n_metered)
    if abs(ratio - 1) <= _WORTH_SAYING:
        return None
    return (
        f"{_name(use)}: the log reports {percent(abs(ratio - 1))} {'more' if ratio > 1 else 'less'} than its tokens cost at "
        "list prices: a contract, another tier, or cached tokens that one of the two does not know"
    )


def _mean(costs: Sequence[Fraction], weights: Sequence[Fraction], factor: Fraction) -> Fraction:
    """The mean cost over the levels, where all above the first weigh `factor` times what was seen."""
    above = sum(weights[1:])
    if above:
        factor = min(factor, 1 / above)
    long = sum((factor * w * c for w, c in zip(weights[1:], costs[1:], strict=True)), Fraction(0))
    return (1 - factor * above) * costs[0] + long


# ----------------------------------------------------------------------------------------------------------- the month


def _month(facts: SiteFacts, window_s: float, start_us: int | None) -> tuple[Exact | None, str | None]:
    """By what the window is multiplied to be a month, and what is to be said about it."""
    if not window_s > 0:
        return None, "the log covers no time: state its window"
    days = Fraction(window_s) / _DAY_S
    plain = _MONTH_DAYS / days
    if window_s >= _WHOLE_WEEK_S:
        if start_us is not None and window_s >= _WEEK_S and facts.arrivals is not None:
            plain = _by_weekday(facts.arrivals.hour_of_week, window_s, start_us) or plain
        return flat(plain), None
    return _short(days, facts), f"{_age(window_s)} of log: the other days of the week are not known"


def _short(days: Fraction, facts: SiteFacts) -> Exact:
    """Less than a week: at least this once a week, at most every day as busy as the busiest that was seen."""
    plain = _MONTH_DAYS / days
    once_a_week = Fraction(_MONTH_DAYS, 7)
    counts = facts.arrivals.hour_of_week if facts.arrivals else ()
    total = sum(counts)
    busiest = max((sum(counts[d : d + 24]) for d in range(0, len(counts), 24)), default=0)
    daily = Fraction(_MONTH_DAYS * busiest, total) if total else plain
    return Exact(min(once_a_week, plain), plain, max(daily, plain))


def _by_weekday(counts: Sequence[int], window_s: float, start_us: int) -> Fraction | None:
    """30 days with every hour of the week as busy as it was, however often the window holds it; None without calls."""
    total = sum(counts)
    if not total:
        return None
    weeks, rest_s = divmod(Fraction(window_s), _WEEK_S)
    start_s = Fraction(start_us, 1_000_000) - 345_600  # 1970 began on a Thursday: the first Monday is four days later
    seen = [Fraction(weeks)] * 168
    at_s, end_s = start_s, start_s + rest_s
    while at_s < end_s:
        hour_end = min(end_s, Fraction(at_s // 3600 + 1) * 3600)
        seen[int(at_s // 3600) % 168] += (hour_end - at_s) / 3600
        at_s = hour_end
    a_week = sum((n / times for n, times in zip(counts, seen, strict=True)), Fraction(0))
    return Fraction(_MONTH_DAYS, 7) * a_week / total


# ------------------------------------------------------------------------------------------------------------- buckets


def _joined(a: Bucket, b: Bucket) -> Bucket:
    def both(x: int | None, y: int | None) -> int | None:
        return y if x is None else x if y is None else x + y

    cost = None if a.cost_usd is None or b.cost_usd is None else a.cost_usd + b.cost_usd
    return replace(
        a,
        start_us=min(a.start_us, b.start_us),
        end_us=max(a.end_us, b.end_us),
        n_calls=both(a.n_calls, b.n_calls),
        input_tokens=both(a.input_tokens, b.input_tokens),
        cached_tokens=both(a.cached_tokens, b.cached_tokens),
        cache_write_tokens=both(a.cache_write_tokens, b.cache_write_tokens),
        output_tokens=both(a.output_tokens, b.output_tokens),
        cost_usd=cost,
    )


def _size(of_days: Sequence[tuple[Bucket, Fraction]], price_of: Prices, window_s: float, counted: bool) -> Sized:
    """Of buckets of one model and tier, each with the share of it that is meant."""
    bills = [(_bill(b, price_of), share) for b, share in of_days]
    known = [bill * share for (bill, _), share in bills if bill is not None]
    why = next((why for (_, why), _ in bills if why), None)
    month = None
    if known and window_s > 0:
        plain = _MONTH_DAYS * _DAY_S / Fraction(window_s)
        least = plain if window_s >= _WHOLE_WEEK_S else min(plain, Fraction(_MONTH_DAYS, 7))
        bill = sum(known, Fraction(0))
        month = Exact(bill * least, bill * plain, bill * plain).rounded_up()
    elif known:
        why = "it covers no time"
    b = of_days[0][0]
    n_calls = round(sum((b.n_calls or 0) * share for b, share in of_days))
    return Sized(b.provider, b.model, b.tier, month, n_calls, why, counted)


def _bill(b: Bucket, price_of: Prices) -> tuple[Fraction | None, str | None]:
    if b.cost_usd is not None:
        return Fraction(b.cost_usd) * 1_000_000, None
    if b.input_tokens is None and b.output_tokens is None:
        return None, "it holds neither tokens nor cost"
    price = _price(price_of, b.provider, b.model, b.tier or Tier.STANDARD)
    if isinstance(price, str):
        return None, price
    usage = Usage(b.input_tokens or 0, b.output_tokens or 0, b.cached_tokens or 0, b.cache_write_tokens or 0)
    missing = [name for name in ("input_tokens", "output_tokens") if getattr(b, name) is None]
    why = f"it holds no {missing[0].replace('_', ' ')}: at least this" if missing else None
    return charge(price, usage, Sample(0, ()), b.n_calls or 0).likely, why


# ------------------------------------------------------------------------------------------------------------ in words


def _name(use: ModelUse) -> str:
    return f"{use.provider or 'unknown provider'}/{use.model or 'unknown model'}"


def percent(share: Fraction) -> str:
    return f"{100 * float(share):.{0 if abs(share) >= Fraction(1, 100) or not share else 1}f} %"


def _calls(n: int) -> str:
    return f"{n:,} call{'' if n == 1 else 's'}"


def _age(seconds: float) -> str:
    return f"{seconds / _DAY_S:.1f} days" if seconds >= _DAY_S else f"{seconds / 3600:.1f} hours"
