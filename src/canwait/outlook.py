"""The four numbers of a job under way, read from the ledger and from its canary's results. Writes nothing.

What has ended is known exactly. For what has not, the canary speaks (forecast.rest): a random sample of all new requests
whose lines remember the shard they were drawn from.

The length of a line is the output billed for it, over every shard that was sent for it: an answer that cannot be used counts
with what was billed, a refused request with nothing, and a line whose bill is unknown with its bound. A line that never ran
(expired, cancelled, given up before it was sent) tells nothing and is no part of the sample.

Expected and likely stand on expected input, guaranteed on its bound. The three are for one paid attempt of each row on the
tier of the plan: what is paid twice, or dearer after a rescue, is in them once it has happened, and in `cannot_exceed` before.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import pyarrow.parquet as pq

from .blobs import Blobs
from .codec import canary_from_json, terms_from_json
from .db import Row
from .forecast import Advice, Outlook, Rest, awaited, most_micros, moved_micros, rest, rounds, suggest_bound
from .ledger import Ledger
from .lifecycle import OPEN
from .price import cost_micros, worst_micros
from .types import Canary, Outcome, Price, PriceStep, Terms, Usage
from .watching import Drift, Lengths, drift, most_planned

_OPEN = frozenset(state.value for state in OPEN)
_NEVER_RAN = frozenset({Outcome.EXPIRED, Outcome.CANCELLED})
_NEVER_SENT = frozenset({"budget", "deadline"})


def outlook(ledger: Ledger, blobs: Blobs, job: str) -> Outlook:
    """The four numbers for the new work of a job's latest plan: what is paid, and what is still to be paid. Raises NotFound."""
    plan, work, pilot = _seen(ledger, blobs, job)
    budget = ledger.query("budget", id=f"job:{job}")[0]
    ceiling = None
    if budget["limit_micros"] is not None:
        others = budget["spent_micros"] + budget["held_micros"] - work.paid - work.held
        ceiling = max(work.paid + work.held, budget["limit_micros"] - others)
    return _told(plan, work, pilot, ceiling)


def drifted(ledger: Ledger, blobs: Blobs, job: str, *, stands: bool = False) -> Drift | None:
    """Whether the new work of a job's latest plan surely has longer answers than was planned; None, too, before its canary
    is home. Raises NotFound. `stands`: as of watching.drift.
    """
    plan, work, pilot = _seen(ledger, blobs, job)
    n_output, n_lines = work.sum("output_bound"), work.sum("n_lines")
    if pilot is None or not n_output:
        return None
    speaking = [length for length, home in zip(pilot.lengths, pilot.homes, strict=True) if home in work.whole]
    lengths = Lengths(
        canary=pilot.lengths,
        n_rows=plan.n_new,
        n_ended=plan.n_new - work.n_pending,
        known=work.n_output,
        near=tuple(speaking),
        n_near=sum(work.pending[home] for home in work.whole),
    )
    n_earlier = int(ledger.query("answered_before", job=job, plan=ledger.job(job)["plan"])[0]["n"])
    expected, basis = plan.output_expected, f"{n_earlier:,} earlier rows"
    if expected is None or n_earlier < len(pilot.lengths):  # less certain than what the canary says
        expected, basis = None, "its canary"
    return _drift(job, lengths, -(-n_output // n_lines), expected, basis, stands)


@lru_cache(256)  # nothing changes while nothing settles, and many jobs may be out
def _drift(job: str, lengths: Lengths, cap: int, expected: int | None, basis: str, stands: bool) -> Drift | None:
    planned = most_planned(lengths.canary, lengths.n_rows, Random(0), expected)
    return drift(job, lengths, cap, planned, basis, stands=stands)


def _seen(ledger: Ledger, blobs: Blobs, job: str) -> tuple[_Planned, _Work, _Pilot | None]:
    digest = ledger.job(job)["plan"]
    kept = ledger.query("plan", job=job, digest=digest)[0]
    work = _work(ledger.query("plan_money", job=job, plan=digest))
    body = json.loads(kept["body"])
    plan = _planned(body, terms_from_json(json.loads(kept["terms"])), work)
    pilot = None
    # Shards of an earlier plan may have come to this one for its prices (ledger.repriced): of those no canary speaks.
    is_sampled = plan.n_new == body.get("n_new") and all(shard["root"] in work.pending for shard in work.open)
    if is_sampled and plan.canary is not None and work.n_pending and not work.pending[plan.canary.shard]:
        names = {row["ordinal"]: row["shard"] for row in ledger.query("plan_order", job=job, plan=digest)}
        pilot = _pilot(blobs, plan.canary, names, work)
    return plan, work, pilot


# ---------------------------------------------------------------------------------------------------- what has happened


@dataclass(frozen=True, slots=True)
class _Work:
    """The shards of one plan."""

    shards: Sequence[Row]
    open: Sequence[Row]  # work that is not settled
    pending: Counter[str]  # by planned shard: lines that have not ended
    whole: frozenset[str]  # planned shards none of whose lines has ended
    paid: int  # confirmed, and what is held for what is unknown
    held: int  # by the open ones

    @property
    def n_pending(self) -> int:
        return self.pending.total()

    @property
    def n_output(self) -> int:
        """Output tokens of all that has ended; not of shards of which some was paid twice, for those lines are still out."""
        ended = (shard for shard in self.shards if shard["role"] == "work" and not shard["twice_micros"])
        return sum(shard["output_tokens"] for shard in ended)

    def sum(self, column: str) -> int:
        """Over the open shards."""
        return sum(shard[column] for shard in self.open)


@dataclass(frozen=True, slots=True)
class _Planned:
    """What the plan said of all its new requests."""

    terms: Terms
    canary: Canary | None
    n_new: int
    input_expected: int
    input_bound: int
    is_bounded: bool  # nothing but bounds was known of the input
    output_expected: int | None  # None: nothing but its bound is known
    expected_micros: int
    worst_micros: int


def _planned(body: Mapping[str, Any], terms: Terms, work: _Work) -> _Planned:
    roots = [shard for shard in work.shards if shard["vector"]]
    bound, worst = (sum(shard[column] for shard in roots) for column in ("input_bound", "worst_micros"))
    drawn, n_output = body.get("canary"), body.get("output_expected", math.inf)
    return _Planned(
        terms=terms,
        canary=canary_from_json(drawn) if drawn else None,
        n_new=sum(shard["n_lines"] for shard in roots),
        input_expected=body.get("input_expected", bound),
        input_bound=bound,
        is_bounded=body.get("tokens_kind", "bounded") == "bounded",
        output_expected=n_output if n_output < sum(shard["output_bound"] for shard in roots) else None,
        expected_micros=body.get("expected_micros", worst),
        worst_micros=worst,
    )


def _work(shards: Sequence[Row]) -> _Work:
    going = [shard for shard in shards if shard["state"] in _OPEN and shard["role"] == "work"]
    pending = Counter({s["id"]: zlib.decompress(s["vector"]).count(Outcome.PENDING) for s in shards if s["vector"]})
    whole = frozenset(s["id"] for s in shards if s["vector"] and pending[s["id"]] == s["n_lines"])
    held = sum(shard["held_micros"] for shard in going)
    paid = sum(shard["confirmed_micros"] + shard["held_micros"] for shard in shards) - held
    return _Work(shards, going, pending, whole, paid, held)


@dataclass(frozen=True, slots=True)
class _Pilot:
    """The canary's lines that ran, in random order."""

    lengths: tuple[int, ...]  # output tokens billed
    homes: tuple[str, ...]  # the planned shard that each was drawn from
    per_bound: Fraction | None  # input tokens billed for each token of their bound; None: none were billed
    aside: tuple[tuple[str, int], ...] = ()  # rows of such a shard that stand in the last one, unless that has ended


def _pilot(blobs: Blobs, canary: Canary, names: Mapping[int, str], work: _Work) -> _Pilot | None:
    """None where too few of its lines ran to say anything."""
    ran: dict[int, bool] = {}
    billed, n_input = Counter[int](), Counter[int]()
    bounds: Sequence[int] = ()
    for shard in work.shards:  # in the order they settled
        if shard["id"] == canary.shard:
            bounds = _bounds(blobs.path(shard["manifest_blob"]))
        if shard["root"] == canary.shard and shard["role"] == "work" and shard["results_blob"]:
            bound = shard["output_bound"] // shard["n_lines"]
            for line, end in _ends(blobs.path(shard["results_blob"])).items():
                ran[line] = end.ran or ran.get(line, False)
                if end.billed is not None:
                    n_input[line], billed[line] = end.billed[0], billed[line] + end.billed[1]
                elif end.ran and shard["held_micros"]:
                    billed[line] += bound
    lines = [line for line in range(len(canary.homes)) if ran.get(line)]
    if len(lines) < 2:
        return None
    per_bound = Fraction(n_input.total(), sum(bounds[line] for line in n_input)) if n_input.total() else None
    homes = tuple(names.get(canary.homes[line], "") for line in lines)
    last = names[max(ordinal for ordinal, name in names.items() if name in work.pending)]
    aside = tuple((names.get(home, ""), n) for home, n in canary.aside) if work.pending[last] else ()
    return _Pilot(tuple(billed[line] for line in lines), homes, per_bound, aside)


class _End(NamedTuple):
    """What became of a line in one shard."""

    ran: bool
    billed: tuple[int, int] | None  # tokens, input and output; None: no bill was stated


@lru_cache(64)  # a blob never changes, and who watches a job asks every two seconds
def _ends(path: Path) -> Mapping[int, _End]:
    """By line of its root, of a file of results."""
    ends: dict[int, _End] = {}
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = file.read(["line", "outcome", "cause", "input_tokens", "output_tokens"]).to_pydict()
    for line, outcome, cause, n_input, n_output in zip(*columns.values(), strict=True):
        ran = outcome not in _NEVER_RAN and cause not in _NEVER_SENT
        billed = ends[line].billed if line in ends else None  # a later bill of a line takes an earlier one's place
        ends[line] = _End(ran, billed if n_output is None else (n_input, n_output))
    return ends


@lru_cache(64)
def _bounds(path: Path) -> Sequence[int]:
    """The most input tokens of each line of a manifest."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        return cast("list[int]", file.read(["input_bound"])["input_bound"].to_pylist())


# --------------------------------------------------------------------------------------------------- what is still to come


def _told(plan: _Planned, work: _Work, pilot: _Pilot | None, ceiling: int | None) -> Outlook:
    """`ceiling`: what the job's limit leaves for all of this plan; None: there is no limit."""
    worst = _worst(plan.terms, work)
    still = _still(plan, work, pilot)
    guaranteed = min(worst, still.guaranteed)
    likely = min(guaranteed, still.likely)
    expected = min(likely, still.expected)
    cannot = worst if ceiling is None else min(worst, ceiling - work.paid)
    room = None if ceiling is None else ceiling - work.paid

    def told(micros: int) -> int | None:
        return work.paid + micros if still.is_known else None

    return Outlook(
        expected_micros=work.paid + min(expected, cannot),
        likely_micros=told(min(likely, cannot)),
        guaranteed_micros=told(min(guaranteed, cannot)),
        cannot_exceed_micros=work.paid + cannot,
        finish_micros=work.paid + expected,
        finish_guaranteed_micros=told(guaranteed),
        paid_micros=work.paid,
        n_rows=plan.n_new,
        n_pending=work.n_pending,
        n_pilot=still.n_pilot,
        attempts=plan.terms.attempts,
        basis=_basis(plan, work, still),
        is_limited=cannot < worst,
        advice=_advice(plan, work, pilot, expected, room),
        rounds=None if room is None else rounds(room, expected, work.sum("worst_micros")),
    )


@dataclass(frozen=True, slots=True)
class _Still:
    """Micros still to be paid."""

    expected: int
    likely: int
    guaranteed: int
    n_pilot: int = 0  # random rows that speak for them
    is_known: bool = True  # else only `expected` is


def _still(plan: _Planned, work: _Work, pilot: _Pilot | None) -> _Still:
    n_lines, n_input, n_output = (work.sum(c) for c in ("n_lines", "input_bound", "output_bound"))
    worst = work.sum("worst_micros")
    if not n_lines:
        return _Still(0, 0, 0)
    if n_output and pilot is None:
        expected = -(-plan.expected_micros * worst // plan.worst_micros) if plan.worst_micros else 0
        return _Still(expected, worst, worst, is_known=False)
    tokens = Rest(0, 0, 0, 0)  # of embeddings
    if pilot is not None:
        cap = -(-n_output // n_lines)
        tokens = _rest(pilot, tuple(work.pending.items()), work.whole, plan.n_new, work.n_output, cap)
    flat = replace(plan.terms.price, steps=())
    flat_worst = worst_micros([(n_input, n_output)], flat)
    n_expected = _input(plan, work, pilot)

    def dear(n_tokens: int) -> int:
        """Where some requests are long enough for higher rates, all are taken to be dearer in that proportion."""
        return -(-cost_micros([Usage(n_expected, n_tokens)], flat) * worst // flat_worst) if flat_worst else 0

    # The worst case less the output that is not written of it, at the lowest rate: exact where there is one rate, and
    # never below the truth where there are more.
    spared = _output_micros(n_output - min(n_output, tokens.guaranteed), plan.terms.price)
    return _Still(dear(tokens.expected), dear(tokens.likely), worst - spared, tokens.n_pilot)


@lru_cache(64)
def _rest(
    pilot: _Pilot, pending: tuple[tuple[str, int], ...], whole: frozenset[str], n_rows: int, known: int, cap: int
) -> Rest:
    """One seed: the same job is told the same numbers."""
    rng = Random(0)
    facts = {"n_rows": n_rows, "known": known, "cap": cap}
    return rest(pilot.lengths, pilot.homes, dict(pending), whole, **facts, rng=rng, aside=dict(pilot.aside))


def _output_micros(n_tokens: int, price: Price) -> int:
    """What so much output costs at the lowest rate, rounded down."""
    return int(n_tokens * min(level.output for level in _levels(price)))


def _levels(price: Price) -> list[Price | PriceStep]:
    return [price, *price.steps]


def _input(plan: _Planned, work: _Work, pilot: _Pilot | None) -> int:
    """Input tokens expected of the open shards: as the canary was billed for its bounds, where these are all that is known."""
    bound = work.sum("input_bound")
    by = pilot.per_bound if pilot is not None and plan.is_bounded else None
    if by is None:
        by = Fraction(plan.input_expected, plan.input_bound or 1)
    return min(bound, -(-bound * by.numerator // by.denominator))


def _worst(terms: Terms, work: _Work) -> int:
    """Every open line at its bound, at each attempt that is left, wherever these are made."""
    rescue = next((r for r in terms.rescues if r.adapter == terms.rescue), None)
    total = 0
    for shard in work.open:
        moved = 0
        if rescue is not None and shard["provider"] != rescue.adapter:
            moved = moved_micros(shard["input_bound"], shard["output_bound"], rescue.price)
        left = max(1, terms.attempts - shard["attempt"] + 1)
        total += most_micros(shard["worst_micros"], max(moved, shard["redo_micros"]), left)
    return total


def _advice(plan: _Planned, work: _Work, pilot: _Pilot | None, expected: int, room: int | None) -> Advice | None:
    """`room`: what the job's limit leaves for what is still to be paid."""
    if pilot is None or not work.open or not sum(pilot.lengths):
        return None
    cap = -(-work.sum("output_bound") // work.sum("n_lines"))
    if (bound := suggest_bound(pilot.lengths, cap)) is None:
        return None
    worst, times = work.sum("worst_micros"), cap * len(pilot.lengths) / sum(pilot.lengths)
    if room is None:
        return Advice(cap, times, bound, None, None)
    spared = _output_micros(work.sum("output_bound") // cap * (cap - bound.max_output_tokens), plan.terms.price)
    then = rounds(room, int(expected * bound.rerun_factor), worst - spared)
    return Advice(cap, times, bound, rounds(room, expected, worst), then)


def _basis(plan: _Planned, work: _Work, still: _Still) -> str:
    if not work.open:
        return "every row has ended"
    if not still.is_known:
        return awaited(plan.n_new, None if plan.canary is None else len(plan.canary.homes))
    known = plan.n_new - work.n_pending
    more = f", {known:,} rows known" if still.n_pilot < known else ""
    return f"{still.n_pilot:,} random rows{more}" if still.n_pilot else "its rows have no output"
