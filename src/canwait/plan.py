"""What a job would do and cost, decided: which offer, where shards are cut, what they cost, how it all reads. Pure.

prepare.py streams the rows through these decisions and writes the blobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from hashlib import sha256
from itertools import count, pairwise
from types import MappingProxyType
from typing import Literal

from .codec import plain
from .errors import Problem, SpecError, UnknownPrice
from .price import EXACT, cost_micros, format_usd, worst_micros
from .tokens import Counter
from .types import Endpoint, Job, Limits, MarkClass, Offer, Plan, Price, Tier, Urgency, Usage

MAX_BAD_ROWS = 1_000  # all are counted, so many are kept
MAX_GROUPS = 500  # values of `shard.by`: each one is a batch at least
_BATCH_ROWS = 5_000  # a batch that fails costs this many rows' time at most
_ENVELOPE_BYTES = 64  # what an adapter writes around all lines, at most
IDENTITY_BYTES = 16
_MIN_EARLIER_ROWS = 20  # fewer tell nothing about the next
_OURS = frozenset({"own", "local"})


@dataclass(frozen=True, slots=True)
class Earlier:
    """What rows of this job that are already answered tell about the next."""

    n_rows: int
    mean_output_tokens: Decimal
    tokens_per_bound: Decimal | None = None  # input tokens billed for each token of their bound


# --------------------------------------------------------------------------------------------------------- what to buy


def offers_for(job: Job, provider: str, limits: Limits, price_of: Callable[[Tier], Price]) -> tuple[Offer, ...]:
    """Every tier that was considered, and why one was chosen or not: the job's own, and `standard` for comparison.

    At most one is chosen: what `tier_for` says, if its price is known; `limits` are of that one. A window that ends after
    the deadline is said and not refused: most batches end hours before their window does.
    """
    runs = tier_for(job, provider, price_of)
    considered = dict.fromkeys(job.tiers or (_runs(provider) if _in_minutes(job) else (runs,)))
    if provider not in _OURS:
        considered[Tier.STANDARD] = None
    offers = []
    for tier in filter(None, considered):
        try:
            price, why_not = price_of(tier), None
        except UnknownPrice as error:
            price, why_not = None, str(error)
        if tier is not runs:
            why_not = _why_not(job, tier, provider, runs)
        why = why_not or _merits(job, tier, limits)
        offers.append(Offer(provider, job.model, tier, price, limits, why_not is None, why))
    return tuple(offers)


def tier_for(job: Job, provider: str, price_of: Callable[[Tier], Price]) -> Tier | None:
    """The tier a job runs on: the first of its own that can run and has a price; within minutes, the cheapest of them.

    None where it names none that can run. Without a price for any, the first: then its price is what is missing.
    """
    wanted = _wanted(job, provider)
    priced: dict[Tier, Price] = {}
    for tier in wanted:
        with suppress(UnknownPrice):
            priced[tier] = price_of(tier)
    if _in_minutes(job) and priced:
        return min(priced, key=lambda tier: priced[tier].input + priced[tier].output)
    return next(iter([*priced, *wanted]), None)


def _wanted(job: Job, provider: str) -> list[Tier]:
    """Tiers the job may run on, in its order."""
    runs = _runs(provider)
    if _in_minutes(job):
        return [tier for tier in job.tiers or runs if tier in runs and tier is not Tier.BATCH]
    return [tier for tier in job.tiers or runs[:1] if tier in runs]


def _in_minutes(job: Job) -> bool:
    return job.urgency is Urgency.NEAR_REAL_TIME


def _runs(provider: str) -> tuple[Tier, ...]:
    """The tiers this version runs a provider on."""
    match provider:
        case "own" | "local":
            return (Tier.OWN,)
        case "openai":
            return (Tier.BATCH, Tier.FLEX, Tier.STANDARD)
        case "anthropic":
            return (Tier.BATCH, Tier.STANDARD)
    return (Tier.BATCH,)


def _why_not(job: Job, tier: Tier, provider: str, runs: Tier | None) -> str:
    if tier not in _runs(provider):
        only = " and ".join(known.value for known in _runs(provider))
        return f"this version runs {provider} on {only} only"
    if tier is Tier.BATCH and _in_minutes(job):
        return "takes hours, and near_real_time means minutes"
    if tier in _wanted(job, provider) and runs:
        return f"{runs.value} is cheaper" if _in_minutes(job) else f"{runs.value} comes first"
    return "shown for comparison"


def choose(job: Job, offers: Sequence[Offer]) -> Offer:
    """The chosen offer. Raises UnknownPrice or SpecError with the reasons when none could be."""
    for offer in offers:
        if offer.chosen:
            if job.endpoint is Endpoint.EMBEDDINGS and offer.price and _bills_output(offer.price):
                why = f"found 'embeddings'; {offer.provider}/{offer.model} bills output, so it makes no embeddings"
                raise SpecError([Problem(f"job {job.name}", None, None, "endpoint", why)])
            return offer
    for offer in offers:
        if offer.price is None and offer.tier in _wanted(job, offer.provider):
            raise UnknownPrice(offer.reason, provider=offer.provider, model=offer.model, tier=offer.tier.value)
    asked = [offer for offer in offers if not job.tiers or offer.tier in job.tiers]
    raise SpecError(
        [Problem(f"job {job.name}", None, None, "tier", f"{offer.tier.value}: {offer.reason}") for offer in asked],
        hint="allow a later `deadline` or another `tier`, then plan again",
    )


def _bills_output(price: Price) -> bool:
    return bool(price.output) or any(step.output for step in price.steps)


def _merits(job: Job, tier: Tier, limits: Limits) -> str:
    if tier in (Tier.OWN, Tier.STANDARD, Tier.FLEX):
        return "starts at once" + (", and waits while the provider has no room" if tier is Tier.FLEX else "")
    window = f"answers or gives up within {_hours(limits.window_s)}"
    if limits.window_s <= job.deadline_s:
        return window
    late = f"{window}, LATER than the deadline of {_hours(job.deadline_s)}"
    return late if job.fallback else f"{late}: after it nothing more is sent, what is sent is waited for"


# -------------------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True, slots=True)
class Room:
    """What one shard may hold. A single request that is larger still is a shard of its own."""

    max_lines: int
    max_bytes: int  # of its lines as they go over the wire
    max_line_bytes: int
    max_tokens: int | None  # input tokens, at their bound


def room_for(job: Job, provider: str, limits: Limits) -> Room:
    usual = limits.max_rows if provider in _OURS else _BATCH_ROWS
    return Room(
        max_lines=min(job.shard.max_rows or usual, limits.max_rows),
        max_bytes=limits.max_bytes - _ENVELOPE_BYTES,
        max_line_bytes=min(limits.max_line_bytes, limits.max_bytes - _ENVELOPE_BYTES - 1),
        max_tokens=limits.max_enqueued_tokens,
    )


class Sizes:
    """At how many lines the shards of one plan are closed.

    Where a provider keeps no mark of ours (class C), a batch is told by its exact number of lines, so no two shards of
    a plan may have the same: a shard is closed at the largest number not taken yet, and lines beyond it go on into the
    next shard. Shards stay equal only where no smaller numbers are left to divide them into; the ledger then sends
    them one after the other.
    """

    def __init__(self, max_lines: int, mark: MarkClass) -> None:
        self.full = max_lines  # a shard with so many lines is closed
        self._max_lines = max_lines
        self._distinct = mark is MarkClass.UNMARKED
        self._taken: set[int] = set()

    def cut(self, n_lines: int, *, last: bool) -> int:
        """How many lines of a shard stay in it. Of the last one, the others become a shard of their own."""
        if n_lines not in self._taken:
            return n_lines
        free = (n for n in range(n_lines - 1, 0, -1) if n not in self._taken)
        if last:
            free = (n for n in free if n_lines - n not in self._taken and n_lines != 2 * n)
        return next(free, n_lines)

    def take(self, n_lines: int) -> None:
        """A shard was closed with so many lines."""
        if self._distinct:
            self._taken.add(n_lines)
            self.full = next((n for n in range(self.full, 0, -1) if n not in self._taken), self._max_lines)


def shard_id(job: str, requests_blob: str, identities: bytes, taken: Container[str]) -> str:
    """The same shard has the same id in every plan of the job, unless an older shard has it already."""
    seed = f"{job}\0{requests_blob}\0{sha256(identities).hexdigest()}"
    ids = ("s" + sha256(f"{seed}\0{n}".encode()).hexdigest()[:20] for n in count())
    return next(name for name in ids if name not in taken)


# -------------------------------------------------------------------------------------------------- tokens and money


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is expected of rows that are only bounded so far, and on what grounds."""

    max_output_tokens: int
    mean_output_tokens: Decimal | None  # None: nothing is known, the bound stands for it
    output_basis: str
    tokens_per_bound: Decimal | None
    tokens_kind: Literal["counted", "bounded", "estimated"]
    tokens_by: str

    def input(self, expected: list[int], bounds: list[int]) -> tuple[list[int], list[int]]:
        """Expected and bound input tokens of each row. Bounds alone say less than what earlier rows were billed for theirs."""
        if self.tokens_per_bound is None:
            return expected, bounds
        times, by = self.tokens_per_bound.as_integer_ratio()
        return [min(bound, -(-bound * times // by)) for bound in bounds], bounds

    def output(self, n_rows: int) -> int:
        """Output tokens of so many rows together."""
        bound = n_rows * self.max_output_tokens
        return bound if self.mean_output_tokens is None else min(bound, _up(n_rows * self.mean_output_tokens))


def expect(job: Job, counter: Counter, earlier: Earlier | None) -> Expectation:
    n_rows = earlier.n_rows if earlier else 0
    if earlier is None or n_rows < _MIN_EARLIER_ROWS:
        rows = f"{n_rows} earlier rows tell too little" if n_rows else "no earlier rows"
        basis = _basis(job, f"{rows}: at its bound")
        return Expectation(job.max_output_tokens, None, basis, None, counter.kind, counter.by)
    basis = _basis(job, f"mean of {n_rows:,} earlier rows of this job")
    ratio = earlier.tokens_per_bound if counter.kind == "bounded" else None
    if ratio is None:
        return Expectation(job.max_output_tokens, earlier.mean_output_tokens, basis, None, counter.kind, counter.by)
    by = f"{counter.by} x {ratio:.4f}, as {n_rows:,} earlier rows of this job were billed"
    return Expectation(job.max_output_tokens, earlier.mean_output_tokens, basis, ratio, "estimated", by)


def _basis(job: Job, otherwise: str) -> str:
    return "an embedding has none" if job.endpoint is Endpoint.EMBEDDINGS else otherwise


def expected_micros(inputs: Sequence[int], n_output: int, price: Price) -> int:
    """What requests of so many input tokens each cost, with so much output together, rounded up once."""
    if not price.steps:
        return cost_micros([Usage(sum(inputs), n_output)], price)
    ends = [n_output * i // len(inputs) for i in range(len(inputs) + 1)]
    outputs = (end - start for start, end in pairwise(ends))
    return cost_micros((Usage(n, m) for n, m in zip(inputs, outputs, strict=True)), price)


def bound_micros(bounds: Sequence[int], max_output_tokens: int, price: Price) -> int:
    """The most that requests of so many input tokens each can cost, rounded up once. Raises UnboundedRequest."""
    if not price.steps:
        return worst_micros([(sum(bounds), len(bounds) * max_output_tokens)], price)
    return worst_micros(((n, max_output_tokens) for n in bounds), price)


def _up(tokens: Decimal) -> int:
    return int(tokens.to_integral_value(ROUND_CEILING, EXACT))


# ------------------------------------------------------------------------------------------------------------ identity


def identity_of(request_key: bytes, job: Job, key: str) -> bytes:
    """16 bytes that name a request: equal requests are one, unless the job asks every row for itself."""
    if not job.dedupe:
        request_key = sha256(request_key + f"{job.name}\0{key}".encode()).digest()
    return request_key[:IDENTITY_BYTES]


def digest_of(job: Job, endpoint: str, price: Price, rows: bytes) -> str:
    """sha256 (hex) over what a plan does and what it costs: its rates, but not the day they were last checked.

    `rows` is the digest of every row's key and request, in order.
    """
    return _sha256([decisive(job), endpoint, rates(price), rows.hex()])


def rates(price: Price) -> object:
    """A price without who said it and when: what of it a plan's digest is made of."""
    return plain(replace(price, source="", as_of=price.as_of.min))


def once_more(plan: Plan) -> Plan:
    """A plan whose shards are open already: nothing in it is new, so nothing is left to be held for it."""
    return replace(
        plan, n_reused=plan.n_reused + plan.n_new, n_new=0, input_expected=0, input_bound=0, output_expected=0,
        output_bound=0, expected_micros=0, worst_micros=0, standard_micros=plan.standard_micros and 0, shards=(),
    )  # fmt: skip


def decisive(job: Job) -> list[object]:
    """Everything in a job that decides its requests and how they are cut."""
    params = sorted(job.params.items())
    prompt = [job.provider, job.model, job.endpoint, job.prompt, job.output_schema, params, job.max_output_tokens]
    return [job.name, job.source.key, prompt, job.dedupe, job.shard, job.attempts]


def fingerprint_of(job: Job, source: str) -> str:
    """sha256 (hex) over the source's own fingerprint and what turns its rows into requests."""
    return _sha256([source, decisive(job)])


def plan_id(digest: str) -> str:
    return f"p_{digest[:12]}"


def _sha256(value: object) -> str:
    return sha256(json.dumps(plain(value), ensure_ascii=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------- how a plan reads


def explain(plan: Plan, job: Job, more: Mapping[str, str | None] = MappingProxyType({})) -> str:
    """The plan in plain text, for a person to approve or not. `more`: words on further matters, by name."""
    facts = [*_facts(plan, job), *(f"  {name:<10} {words}" for name, words in more.items() if words)]
    return "\n".join([*_heading(plan), "", *_offers(plan), "", *facts, *_bad_rows(plan), "", *_next(plan)])


def _heading(plan: Plan) -> Iterator[str]:
    counts = f"{plan.n_rows:,} rows   {plan.n_duplicates:,} duplicates   {plan.n_reused:,} reused   {plan.n_new:,} new"
    yield f"{plan.job}   {counts}" + (f"   {plan.n_bad_rows:,} bad" if plan.n_bad_rows else "")


def _offers(plan: Plan) -> list[str]:
    table = [("TIER", "MODEL", "INPUT / M", "OUTPUT / M", "EXPECTED", "WORST CASE", "")]
    for offer in plan.offers:
        rates = (_rate(offer.price.input), _rate(offer.price.output)) if offer.price else ("unknown", "unknown")
        costs, why = ("-", "-"), offer.reason
        if offer.chosen:
            costs, why = (_usd(plan.expected_micros), _usd(plan.worst_micros)), f"<- chosen: {offer.reason}"
        elif offer.tier is Tier.STANDARD and plan.standard_micros is not None:
            costs = (_usd(plan.standard_micros), "-")
        table.append((offer.tier.value, offer.model, *rates, *costs, why))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  " + "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _facts(plan: Plan, job: Job) -> Iterator[str]:
    price, spec = plan.price, job.budget
    rates = f"{_rate(price.input)} / M input, {_rate(price.output)} / M output"
    measured = f"{plan.tokens_kind}: {plan.tokens_by}"
    yield f"  input      {plan.input_expected:,} tokens expected, {plan.input_bound:,} at most   {measured}"
    yield f"  output     {plan.output_expected:,} tokens expected, {plan.output_bound:,} at most   {plan.output_basis}"
    yield f"  price      {rates}{', more in long requests' if price.steps else ''}   {price.source}, {price.as_of}"
    yield f"  worst      {_usd(plan.worst_micros)} for one attempt of every new row{_again(plan.attempts)}"
    if spec.micros is not None:
        yield f"  budget     {_usd(spec.micros)}   {_fit(spec.micros - plan.worst_micros, _usd)}"
    if spec.tokens is not None:
        tokens = plan.input_bound + plan.output_bound
        yield f"  budget     {spec.tokens:,} tokens   {_fit(spec.tokens - tokens, '{:,} tokens'.format)}"
    if spec.rows is not None:
        yield f"  budget     {spec.rows:,} rows   {_fit(spec.rows - plan.n_new, '{:,} rows'.format)}"
    if plan.tier is not Tier.OWN:
        cost, what = plan.standard_micros, "for the expected tokens at the standard tier"
        yield f"  standard   {'no price is known' if cost is None else f'{_usd(cost)} {what}'}"
    largest = max((shard.n_lines for shard in plan.shards), default=0)
    first = f"; {plan.shards[0].n_lines:,} random ones go first" if plan.canary and plan.shards else ""
    yield f"  shards     {len(plan.shards):,}" + (f", of at most {largest:,} requests{first}" if plan.shards else "")


def _bad_rows(plan: Plan) -> Iterator[str]:
    if not plan.n_bad_rows:
        return
    yield ""
    yield f"  {plan.n_bad_rows:,} bad rows: nothing can be sent before they are mended"
    for row in plan.bad_rows:
        yield f"    line {row.line:,}: " + (f"key {row.key!r}: " if row.key is not None else "") + row.problem
    if more := plan.n_bad_rows - len(plan.bad_rows):
        yield f"    ... and {more:,} more"


def _next(plan: Plan) -> Iterator[str]:
    yield "Nothing was sent. Nothing was spent."
    if plan.n_bad_rows:
        yield "Mend the rows, or the template, and plan again."
    else:
        yield f"Plan {plan.id} is valid until the rows, the prompt or the prices change."
        yield f"Run exactly this:   canwait run --plan {plan.id}"


def _again(attempts: int) -> str:
    return (
        f"; up to {attempts} are made, each reserved anew within the budget" if attempts > 1 else "; none is sent again"
    )


def _fit(spare: int, words: Callable[[int], str]) -> str:
    return (
        f"the worst case fits, {words(spare)} spare"
        if spare >= 0
        else f"the worst case does not fit: {words(-spare)} over"
    )


def _usd(micros: int) -> str:
    return f"${format_usd(micros)}"


def _rate(rate: Decimal) -> str:
    return f"${rate.normalize():f}"


def _hours(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    parts = [
        f"{hours} h" if hours else "",
        f"{rest // 60} min" if rest >= 60 else "",
        f"{rest % 60} s" if rest % 60 else "",
    ]
    return " ".join(filter(None, parts)) or "0 s"
