"""What each change to a call site would save a month, alone and together. Pure; docs/audit-levers.md says it in words.

A lever is counted where it is proved or likely. One that is unclear says at most what it could save, from nothing up.
Savings are rounded down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, log

from ..price import format_usd
from ..types import Price, Tier, Usage
from .facts import ModelUse, Prefix, Repeats, SiteFacts
from .findings import Lever, Moved, Needs, Proof, Range, Smaller, Spend, Verdict
from .spend import NOTHING, REPORTED, Exact, Line, Prices, charge, flat, lines_of, percent

_TIERS = {Needs.BATCH: (Tier.BATCH, Tier.BACKGROUND, Tier.FLEX), Needs.NEAR_REAL_TIME: (Tier.FLEX,)}
_TIERS |= {Needs.HYBRID: _TIERS[Needs.BATCH], Needs.ASK: (Tier.BATCH,)}
_TIER_KINDS = frozenset({Tier.BATCH.value, Tier.BACKGROUND.value, Tier.FLEX.value})  # a call has one of them
_STAYS = frozenset({Tier.BATCH, Tier.OWN})  # nothing slower to move to

# Input tokens from which a prefix is cached: of some model, of every model (docs/audit-levers.md has the sources).
_CACHED_FROM = {"openai": (1_024, 1_024), "anthropic": (512, 4_096), "google": (1_024, 4_096)}
_CACHED_WHEN_ASKED = frozenset({"anthropic"})  # the others cache by themselves: nothing to switch on
_CACHE_LASTS_S = 300
_FEWEST_HITS = Fraction(30, 100)  # the lowest that Anthropic documents for rows of a batch (providers.md 3.3)

_MOVE = "Move what varies behind what does not"
_SAME_ANSWERS = "the same answers with the text moved: `canwait benchmark plan`"

_ATTEMPTS = 3  # of a row in a batch, as planned by default
_FEW = 20  # requests; what fewer of them repeat is likely at most
_CAP_IS_FAR = 4  # times what 99.5 % of answers need
_ROOM = 1.3  # a budget, as a multiple of what is expected


@dataclass(frozen=True, slots=True)
class _Bill:
    """A model at a site whose tokens and price are known."""

    line: Line
    price: Price
    now: Fraction  # micros of its metered calls in the window, by the price
    n_metered: int
    month: Exact  # micros of a month, all its calls, as paid
    moves: ModelUse | None  # the part of its calls that can go to a slower tier; None: no call can


@dataclass(frozen=True, slots=True)
class _Cost:
    facts: SiteFacts
    verdict: Verdict
    month: Exact
    bills: tuple[_Bill, ...]
    rest: tuple[Line, ...]  # without tokens or without a price
    price_of: Prices

    def at(self, bill: _Bill, price: Price, usage: Usage) -> Fraction:
        return charge(price, usage, self.facts.input_tokens, bill.n_metered).likely


def levers_of(
    facts: SiteFacts,
    verdict: Verdict,
    spend: Spend,
    price_of: Prices,
    *,
    may_share: bool = False,
    smaller: Mapping[str, Smaller] | None = None,
    lints: Sequence[str] = (),
) -> tuple[Lever, ...]:
    """Every lever that a site offers; none where nobody knows what it costs.

    `may_share`: the owner says that equal requests may have one answer. `smaller`: "provider/model" -> the model that a
    benchmark of the owner held against it. `lints`: what its code is known to put before text that never changes.
    """
    if spend.month is None or not spend.month.high:
        return ()
    cost = _cost(facts, verdict, spend.month, price_of)
    found = [_tier(cost, tier) for tier in _TIERS.get(verdict.needs, ())]
    found.append(_dedupe(cost, may_share))
    if facts.prefix is not None and (per_byte := _tokens_per_byte(cost, facts.prefix)):
        found += [*_prefix(cost, facts.prefix, per_byte, lints), _boilerplate(cost, facts.prefix, per_byte)]
    elif lints:
        found.append(Lever("cached prefix", _MOVE, None, Proof.UNCLEAR, "; ".join(lints), _SAME_ANSWERS))
    found += [_cap(cost), _smaller(cost, smaller or {}), _own_gpu(cost)]
    return tuple(lever for lever in found if lever is not None)


def together(levers: Sequence[Lever], spend: Spend) -> Range | None:
    """What the counted levers save when all that help are pulled, each on what the others leave; never more than the
    site costs. Of the tiers a call has one: the best, or none where another lever is worth more without it.

    `high` is that of the combination which may save most. None: nobody knows what the site costs.
    """
    if spend.month is None:
        return None
    counted = [lever for lever in levers if lever.proof is not Proof.UNCLEAR]
    tiers = [lever for lever in counted if lever.kind in _TIER_KINDS and _helps(lever.saves)]
    others = [lever for lever in counted if lever.kind not in _TIER_KINDS]
    stacks = [_stacked(tier, others, spend.month) for tier in (None, *tiers)]
    best = max(stacks, key=lambda stack: (stack.likely, stack.low))
    return Range(best.low, best.likely, max(stack.high for stack in stacks))


def proved_and_likely(levers: Sequence[Lever], spend: Spend) -> tuple[Range, Range]:
    """What the proved levers save together, and what the likely ones add to that: never a micro in both."""
    zero = Range(0, 0, 0)
    proved = together([lever for lever in levers if lever.proof is Proof.PROVED], spend) or zero
    both = together(levers, spend) or zero
    more = both.likely - proved.likely
    return proved, Range(min(both.low - proved.low, more), more, max(both.high - proved.high, more))


def _stacked(tier: Lever | None, others: Sequence[Lever], month: Range) -> Range:
    """A tier first, then every other lever that helps on the rest."""

    def at(end: str) -> int:
        whole = Fraction(getattr(month, end))
        left = rest = max(whole - getattr(tier.saves, end), Fraction(0)) if tier else whole
        for lever in others:
            saves, of = lever.saves, whole
            if tier and tier.kind in lever.after:
                saves, of = lever.after[tier.kind], rest
            if _helps(saves) and of:
                left *= 1 - min(getattr(saves, end) / of, Fraction(1))
        return floor(whole - left)

    low, likely, high = at("low"), at("likely"), at("high")
    return Range(min(low, likely), likely, max(likely, high))


def _helps(saves: Range | None) -> bool:
    return saves is not None and saves.likely > 0


def _cost(facts: SiteFacts, verdict: Verdict, month: Range, price_of: Prices) -> _Cost:
    lines = lines_of(facts, price_of)
    moving = [use for group in verdict.moves.groups for use in group.models] if verdict.moves else []
    paid = sum((line.paid for line in lines if line.paid is not None), NOTHING)
    totals = paid.low, paid.likely, paid.high
    bills, rest = [], []
    for line in lines:
        if isinstance(line.price, Price) and line.priced and line.paid is not None:
            share = (month.low * line.paid.low, month.likely * line.paid.likely, month.high * line.paid.high)
            a_month = Exact(*(n / total if total else n for n, total in zip(share, totals, strict=True)))
            part = _part(line.use, moving) if verdict.needs is Needs.HYBRID else line.use
            bills.append(_Bill(line, line.price, line.priced, _n_metered(line.use), a_month, part))
        else:
            rest.append(line)
    whole = Exact(Fraction(month.low), Fraction(month.likely), Fraction(month.high))
    return _Cost(facts, verdict, whole, tuple(bills), tuple(rest), price_of)


def _part(use: ModelUse, moving: Iterable[ModelUse]) -> ModelUse | None:
    """What the calls that move used of one model on one tier; None: none of their tokens is known."""

    def of(use: ModelUse) -> tuple[str, str, Tier | str | None, str]:
        return use.provider, use.model, use.tier, use.operation

    parts = [part for part in moving if of(part) == of(use)]
    if not sum(map(_n_metered, parts)):
        return None
    return replace(
        use,
        n_calls=sum(part.n_calls for part in parts),
        n_unmetered=sum(part.n_unmetered for part in parts),
        usage=_sum(part.usage for part in parts),
        n_reported=sum(part.n_reported for part in parts),
        reported_usd=sum((part.reported_usd for part in parts), Decimal(0)),
        failed_usage=_sum(part.failed_usage for part in parts),
    )


def _sum(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(*(astuple(usage) for usage in usages), strict=True)))


def _n_metered(use: ModelUse) -> int:
    return use.n_calls - use.n_unmetered


# ----------------------------------------------------------------------------------------------------------- the tiers


def _tier(cost: _Cost, tier: Tier) -> Lever | None:
    """The calls that can wait, at a tier's price, against what is paid for them now.

    The low end has no cache hits there and every failure sent again. Where the log reports what was paid, the ends
    also hold the list price against that: a contract may not reach the slower tier.
    """
    failed = Fraction(min(cost.facts.n_failed, cost.facts.n_calls), cost.facts.n_calls)
    moves, unknown = list[_Move](), list[str]()
    for bill in cost.bills:
        if bill.moves is None or bill.line.tier is tier or bill.line.tier in _STAYS:
            continue
        target = cost.price_of(bill.moves.provider, bill.moves.model, tier)
        if isinstance(target, str):
            unknown.append(target)
        elif (move := _move(cost, bill, bill.moves, target)).now:
            moves.append(move)
    unknown += [f"{line.use.provider}/{line.use.model}: its tokens or its price are not known" for line in cost.rest]
    title = f"Move to the {tier.value} tier"
    if not moves:
        why = "; ".join(dict.fromkeys(unknown))
        return Lever(tier.value, title, None, Proof.UNCLEAR, why) if why and tier is Tier.BATCH else None
    saves = _saves((move.bill.month, move.saves(failed)) for move in moves)
    if saves == Range(0, 0, 0):
        return None
    says = _says(cost, moves)
    if _off(moves) <= 0:
        title = f"Stay: the {tier.value} tier is no cheaper here"
    if failed:
        says.append(f"{percent(failed)} of calls failed: the low end pays for up to {_ATTEMPTS} attempts")
    if unknown:
        says.append(f"not counted: {'; '.join(dict.fromkeys(unknown))}")
    basis = [
        said
        for move in moves
        for said in (f"now {move.bill.line.basis}", f"{tier.value} {move.target.source}, {move.target.as_of}")
    ]
    why, sources = "; ".join(says), "; ".join(dict.fromkeys(basis))
    if cost.verdict.needs is Needs.ASK or cost.verdict.proof is Proof.UNCLEAR:
        return _unclear(tier.value, title, saves, why, "the owner's word on who waits", sources)
    return Lever(tier.value, title, saves, cost.verdict.proof, why, None, sources, move=_moved(moves))


@dataclass(frozen=True, slots=True)
class _Move:
    """The calls of one bill that go to a slower tier: micros of their metered calls in the window."""

    bill: _Bill
    part: ModelUse
    target: Price
    now: Fraction
    new: Fraction  # there, with the cache hits of now
    cold: Fraction  # there, with none
    useful: tuple[Fraction, Fraction]  # the same two of the calls that did not fail

    def saves(self, failed: Fraction) -> Exact:
        """As a share of the bill, where failed calls are sent again."""
        attempts, bill = sum(failed**n for n in range(_ATTEMPTS)), self.bill.now
        likely = (self.now - self.new) / bill
        ends = [likely, (self.now - max(self.new, self.cold) * attempts) / bill]
        if paid := self.paid:
            ends.append(paid - self.in_dollars(self.new))
        return Exact(min(ends), likely, max(ends))

    @property
    def paid(self) -> Fraction | None:
        """What the log reports that these calls cost, as a share of the bill; None: it does not."""
        use = self.bill.line.use
        if self.bill.line.basis != REPORTED or not use.reported_usd:
            return None
        return Fraction(self.part.reported_usd) / Fraction(use.reported_usd)

    def in_dollars(self, there: Fraction) -> Fraction:
        """The list price there, as a share of what the bill is reported to be."""
        paid = self.bill.line.paid
        assert paid is not None
        return there * self.part.n_calls / _n_metered(self.part) / paid.likely


def _move(cost: _Cost, bill: _Bill, part: ModelUse, target: Price) -> _Move:
    def at(price: Price, usage: Usage) -> Fraction:
        return charge(price, usage, cost.facts.input_tokens, _n_metered(part)).likely

    now, used, failed = min(at(bill.price, part.usage), bill.now), part.usage, part.failed_usage
    useful = Usage(*(max(0, a - b) for a, b in zip(astuple(used), astuple(failed), strict=True)))
    new = at(target, used), at(target, _cold(used))
    return _Move(bill, part, target, now, *new, (at(target, useful), at(target, _cold(useful))))


def _moved(moves: Sequence[_Move]) -> Moved:
    """What moves, for a worksheet: there failures have a line of their own, so the calls that failed are left out here."""

    def a_month(share: Callable[[_Move], Fraction]) -> Fraction:
        return sum((move.bill.month.likely * share(move) for move in moves), Fraction(0))

    now = a_month(lambda move: move.now / move.bill.now)
    likely = a_month(lambda move: move.useful[0] / move.bill.now) / now
    cold = a_month(lambda move: move.useful[1] / move.bill.now) / now
    listed = a_month(lambda m: m.in_dollars(m.useful[0]) if m.paid else m.useful[0] / m.bill.now) / now
    ends = [min(likely, cold, listed), likely, max(likely, cold, listed)]
    return Moved(
        sum((move.bill.month * flat(move.now / move.bill.now) for move in moves), NOTHING).rounded_up(),
        *(Decimal(end.numerator) / end.denominator for end in ends),
    )


def _off(moves: Sequence[_Move]) -> Fraction:
    """What is off the price of the tokens that move."""
    return 1 - sum((move.new for move in moves), Fraction(0)) / sum((move.now for move in moves), Fraction(0))


def _says(cost: _Cost, moves: Sequence[_Move]) -> list[str]:
    """How much cheaper it is there, and what could erase that."""
    off, notes = _off(moves), [note for move in moves for note in _about_the_cache(move)]
    if off <= 0:
        return [f"these tokens cost {percent(-off)} more there" if off else "these tokens cost the same there", *notes]
    n_moved, n = sum(move.part.n_calls for move in moves), cost.facts.n_calls
    share = (
        f", for the {percent(Fraction(n_moved, n))} of calls that can wait"
        if cost.verdict.needs is Needs.HYBRID
        else ""
    )
    pays = f"worth it until {percent(off)} of its rows miss the window and are paid twice"
    return [f"{percent(off)} off what these tokens cost now{share}", pays, *notes]


def _about_the_cache(move: _Move) -> list[str]:
    """What reads from the cache change."""
    usage, target = move.part.usage, move.target
    if not usage.cached_input_tokens or not usage.input_tokens:
        return []
    said = f"{percent(Fraction(usage.cached_input_tokens, usage.input_tokens))} of input is read from the cache now"
    if target.cached_input is None:
        return [f"{said}, for which no {target.tier.value} rate is published: as input that is not cached"]
    if move.bill.price.cached_input is not None and target.cached_input >= move.bill.price.cached_input:
        said += f", which is no cheaper in {target.tier.value}"
    if move.new < move.now < move.cold:
        needed = (move.cold - move.now) / (move.cold - move.new)
        said += f": where fewer than {percent(needed)} of those reads hit the cache in {target.tier.value}, it loses"
    return [said]


# ------------------------------------------------------------------------------------------------------------ requests


def _dedupe(cost: _Cost, may_share: bool) -> Lever | None:
    """Requests that were paid for again. A retry after a failure is none of them."""
    facts, repeats = cost.facts, cost.facts.repeats
    if repeats is None or repeats.n_duplicates <= repeats.n_retries:
        return None
    n_saved = repeats.n_duplicates - repeats.n_retries
    says = [f"{n_saved:,} of {repeats.n_hashed:,} requests equal an earlier one in every byte"]
    if not repeats.exact:
        says.append("estimated from a sample")
    if repeats.n_retries:
        says.append(f"{repeats.n_retries:,} more are retries after a failure and not counted")
    if repeats.n_near and repeats.n_near_compared:
        alike = percent(Fraction(repeats.n_near, repeats.n_near_compared))
        says.append(f"{alike} of {repeats.n_near_compared:,} compared texts are nearly alike: never merged")
    title, saves = "Send equal requests once", _saves([(cost.month, _repeated(cost, repeats, n_saved))])
    one_answer = facts.n_sampled_hot == 0 or all(use.operation == "embeddings" for use in facts.models)
    if may_share or (one_answer and facts.n_users <= 1):
        surely = repeats.exact and repeats.n_hashed >= _FEW
        return Lever("dedupe", title, saves, Proof.PROVED if surely else Proof.LIKELY, "; ".join(says))
    says.append(f"{facts.n_users:,} users ask" if one_answer else "answers are sampled, so they may differ")
    return _unclear("dedupe", title, saves, "; ".join(says), "the owner's word that equal requests may have one answer")


def _repeated(cost: _Cost, repeats: Repeats, n_saved: int) -> Exact:
    """The share of a site's cost that its repeated requests are: by their tokens, else by their number.

    Which model they went to is not known: from the cheapest to the dearest of the site's. What could not be compared
    is taken by the high end to repeat itself as much.
    """
    share = flat(Fraction(n_saved, cost.facts.n_calls))
    if repeats.duplicate_usage != Usage(0, 0) and cost.bills:
        whole = sum((bill.now for bill in cost.bills), Fraction(0))
        each = [cost.at(bill, bill.price, repeats.duplicate_usage) / whole for bill in cost.bills]
        n_calls = [bill.line.use.n_calls for bill in cost.bills]
        mean = sum((e * n for e, n in zip(each, n_calls, strict=True)), Fraction(0)) / sum(n_calls)
        kept = Fraction(n_saved, repeats.n_duplicates)
        share = Exact(min(each) * kept, mean * kept, max(each) * kept)
    unseen = max(Fraction(cost.facts.n_calls, max(1, repeats.n_hashed)), Fraction(1))
    return Exact(*(min(end, Fraction(1)) for end in (share.low, share.likely, share.high * unseen)))


# --------------------------------------------------------------------------------------------------------------- texts


def _prefix(cost: _Cost, prefix: Prefix, per_byte: Fraction, lints: Sequence[str]) -> Iterable[Lever]:
    """What a cache would save on the prefix as it is, and with the text that varies moved behind what does not."""
    hits = _hits(cost)
    stands = int(prefix.shared_bytes * per_byte)
    now = _gain(cost, stands, hits)
    if now is not None and now.high > 0:
        yield _cached(cost, now, stands, hits, prefix.n_texts)
    moved = _gain(cost, int((prefix.shared_bytes + prefix.shared_later_bytes) * per_byte), hits)
    more = moved.high - (max(now.high, 0) if now else 0) if moved else 0
    if prefix.broken_by and more > 0:
        why = (
            f"text that varies ({prefix.broken_by}) stands at byte {prefix.at_byte or 0:,}, before "
            f"{prefix.shared_later_bytes:,} bytes or more that are alike: a cache ends where texts part"
        )
        yield _unclear("cached prefix", _MOVE, Range(0, 0, more), "; ".join([why, *lints]), _SAME_ANSWERS)


def _cached(cost: _Cost, saves: Range, tokens: int, hits: Exact, n_texts: int) -> Lever:
    title, providers = "Cache the shared prefix", {bill.line.use.provider for bill in cost.bills}
    why = (
        f"about {tokens:,} tokens begin 9 of 10 texts alike ({n_texts:,} sampled), and {percent(hits.likely)} of calls "
        "come while a cache would hold them; what is written to it is paid"
    )
    least, surely = _bounds(cost)
    if not providers <= set(_CACHED_FROM):
        needs = "this provider's rules: what it caches, and from how many tokens"
    elif not providers <= _CACHED_WHEN_ASKED:
        needs = "a look at why it is not: this provider caches by itself, so no change is certain to help"
    elif tokens < surely:
        needs = f"this model's minimum: {least:,} to {surely:,} tokens, by model"
    else:
        gains = {tier.value: _gain(cost, tokens, hits, tier) for tier in _TIERS.get(cost.verdict.needs, ())}
        after = {kind: gain for kind, gain in gains.items() if gain is not None}
        basis = "; ".join(dict.fromkeys(f"{bill.price.source}, {bill.price.as_of}" for bill in cost.bills))
        return Lever("cached prefix", title, saves, Proof.LIKELY, why, None, basis, after)
    return _unclear("cached prefix", title, saves, why, needs)


def _hits(cost: _Cost) -> Exact:
    """The share of calls that find the prefix in the cache: all but one in five minutes with any call; at best all but
    one in a run of calls."""
    arrivals, n_calls = cost.facts.arrivals, cost.facts.n_calls
    if arrivals is None:
        return NOTHING
    n_cold = min(n_calls, arrivals.n_busy * max(1, -(-arrivals.slot_s // _CACHE_LASTS_S)))
    likely, best = (1 - Fraction(n, n_calls) for n in (n_cold, min(n_cold, arrivals.n_runs)))
    return Exact(min(_FEWEST_HITS, likely), likely, best)


def _gain(cost: _Cost, tokens: int, hits: Exact, tier: Tier | None = None) -> Range | None:
    """What caching that many tokens of every call saves a month; with a tier, beyond what that saves.

    None: no rate is published, or the prefix is shorter than any that is cached.
    """
    if tokens < _bounds(cost)[0]:
        return None
    shares = []
    for bill in cost.bills:
        use, parts = bill.line.use, [(bill.price, Fraction(1))]
        if tier is not None and bill.line.tier is not tier and bill.line.tier not in _STAYS:
            target = cost.price_of(use.provider, use.model, tier)
            if isinstance(target, Price) and bill.moves is not None:
                moved = Fraction(_n_metered(bill.moves), bill.n_metered)
                parts = [(bill.price, 1 - moved), (target, moved)]
        if use.operation != "embeddings" and any(price.cached_input is not None for price, _ in parts):
            ends = [
                sum((part * _saved(cost, bill, price, tokens, hit) for price, part in parts), Fraction(0)) / bill.now
                for hit in (hits.low, hits.likely, hits.high)
            ]
            shares.append((bill.month, Exact(min(ends), ends[1], max(ends))))
    return _saves(shares) if shares else None


def _saved(cost: _Cost, bill: _Bill, price: Price, tokens: int, hit: Fraction) -> Fraction:
    """Micros of the window: hits become reads, misses become writes, both beyond today's."""
    if price.cached_input is None:
        return Fraction(0)
    use = bill.line.use.usage
    plain = use.input_tokens - use.cached_input_tokens - use.cache_write_tokens
    reads = max(0, min(floor(bill.n_metered * tokens * hit) - use.cached_input_tokens, plain))
    writes = max(0, min(ceil(bill.n_metered * tokens * (1 - hit)) - use.cache_write_tokens, plain - reads))
    cached, written = use.cached_input_tokens + reads, use.cache_write_tokens + writes
    then = replace(use, cached_input_tokens=cached, cache_write_tokens=written)
    return cost.at(bill, price, use) - cost.at(bill, price, then)


def _boilerplate(cost: _Cost, prefix: Prefix, per_byte: Fraction) -> Lever | None:
    """The text that every call repeats, where it is most of it: what it costs is the most that shortening it saves."""
    alike = prefix.shared_bytes + prefix.shared_later_bytes
    tokens, share = int(alike * per_byte), Fraction(alike) / Fraction(prefix.mean_bytes)
    if share < Fraction(1, 2) or not tokens:
        return None
    shares = []
    for bill in cost.bills:
        use = bill.line.use.usage
        gone = min(bill.n_metered * tokens, use.input_tokens)
        cached = max(0, use.cached_input_tokens - gone)
        written = max(0, use.cache_write_tokens - max(0, gone - use.cached_input_tokens))
        then = Usage(use.input_tokens - gone, use.output_tokens, cached, written)
        shares.append((bill.month, flat(max(Fraction(0), 1 - cost.at(bill, bill.price, then) / bill.now))))
    why = f"about {tokens:,} tokens of a call, {percent(share)} of its text, are alike in 9 of 10; this is all of them"
    needs = "the same quality with fewer: `canwait benchmark plan`"
    return _unclear("boilerplate", "Shorten what every call repeats", _saves(shares), why, needs)


def _cap(cost: _Cost) -> Lever | None:
    """A cap far above the answers. It holds money back and costs time under a budget; the bill stays what it is."""
    answers, caps = cost.facts.output_tokens, cost.facts.max_output_tokens
    if len(answers.values) < 200 or not caps.values:
        return None
    cap, enough = int(caps.quantile(0.5)), max(16, 1 << (ceil(answers.quantile(0.995)) - 1).bit_length())
    if cap < _CAP_IS_FAR * enough:
        return None
    mean = sum(answers.values) / len(answers.values)
    why = (
        f"no saving by itself: answers are billed as long as they are. The cap is {cap:,} tokens, and 99.5 % of "
        f"{answers.n_seen:,} answers end within {enough:,}: a budget of {_ROOM} times the expected cost then needs about "
        f"{_rounds(mean / enough)} instead of {_rounds(mean / cap)}"
    )
    if cost.bills:
        then, now = (f"${format_usd(ceil(Fraction(cost.bills[0].price.output) * n))}" for n in (enough, cap))
        why += f", and holds at most {then} for an answer instead of {now}"
    return Lever("output cap", f"Cap answers at {enough:,} tokens", Range(0, 0, 0), Proof.LIKELY, why)


def _rounds(share: float) -> str:
    """Of a job under such a budget, where a row costs `share` of its worst case (methods.md 1.5)."""
    n = ceil(log(1 - 1 / _ROOM) / log(1 - share)) if 0 < share < 1 else 1
    return f"{n:,} round{'' if n == 1 else 's'}"


# ------------------------------------------------------------------------------------------------ models and machines


def _smaller(cost: _Cost, smaller: Mapping[str, Smaller]) -> Lever:
    """What the model that was measured beside this one would cost for the same tokens; its quality is the benchmark's word."""
    kind, title = "smaller model", "Use a smaller model"
    shares, said, basis, benched = [], [], [], []
    for bill in cost.bills:
        use = bill.line.use
        found = smaller.get(f"{use.provider}/{use.model}")
        target = (
            cost.price_of(found.provider, found.model, bill.line.tier)
            if found and isinstance(bill.line.tier, Tier)
            else ""
        )
        if found is None or isinstance(target, str):
            continue
        benched.append(found)
        share = flat(max(Fraction(0), 1 - cost.at(bill, target, use.usage) / bill.now))
        shares.append((bill.month, share if found.accepted else NOTHING))
        said.append(
            f"{found.provider}/{found.model} instead of {use.provider}/{use.model}, with as many tokens: {found.words}"
        )
        basis.append(f"{found.source}; {target.source}, {target.as_of}")
    if not benched:
        needs = "evidence that it is good enough: `canwait benchmark plan`, and its report in audit-decisions.yaml"
        return Lever(kind, title, None, Proof.UNCLEAR, "which smaller model would do here is not known", needs)
    why, sources = "; ".join(dict.fromkeys(said)), "; ".join(dict.fromkeys(basis))
    if any(found.accepted for found in benched):
        return Lever(kind, title, _saves(shares), Proof.LIKELY, why, None, sources)
    return Lever(kind, title, None, Proof.UNCLEAR, why, "a benchmark that finds it good enough", sources)


def _own_gpu(cost: _Cost) -> Lever | None:
    if all(use.tier is Tier.OWN for use in cost.facts.models):
        return None
    why = "what a token costs on your own servers depends on their hours, which no log of calls holds"
    needs = "the worksheet, filled in, and a quality check"
    return Lever("own gpu", "Run it on your own GPUs", None, Proof.UNCLEAR, why, needs)


# ------------------------------------------------------------------------------------------------------------ in common


def _saves(shares: Iterable[tuple[Exact, Exact]]) -> Range:
    """Amounts x the shares of them that are saved."""
    total = sum((amount * share for amount, share in shares), NOTHING)
    return Range(floor(total.low), floor(total.likely), floor(total.high))


def _unclear(kind: str, title: str, saves: Range, why: str, needs: str, basis: str = "") -> Lever:
    return Lever(kind, title, Range(0, 0, max(0, saves.high)), Proof.UNCLEAR, f"at most; {why}", needs, basis)


def _cold(usage: Usage) -> Usage:
    """The same tokens where nothing is read from a cache or written to one."""
    return Usage(usage.input_tokens, usage.output_tokens)


def _tokens_per_byte(cost: _Cost, prefix: Prefix) -> Fraction | None:
    """Of this site's texts: at most 1, for a token is a byte or longer. None: no tokens."""
    n_metered = sum(bill.n_metered for bill in cost.bills)
    tokens = sum(bill.line.use.usage.input_tokens for bill in cost.bills)
    if not n_metered or not tokens or not prefix.mean_bytes:
        return None
    return min(Fraction(tokens, n_metered) / Fraction(prefix.mean_bytes), Fraction(1))


def _bounds(cost: _Cost) -> tuple[int, int]:
    """Tokens from which some model, and from which every model, of the site's providers caches a prefix."""
    found = [_CACHED_FROM.get(bill.line.use.provider, (1_024, 1_024)) for bill in cost.bills]
    return max((least for least, _ in found), default=0), max((surely for _, surely in found), default=0)
