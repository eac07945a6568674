"""What came of a benchmark, as a value: turnaround, money, failures, quality, and what the rows are too few to tell.

Read from the ledger and the results of its jobs, also while they run: what has not ended is censored, never left out of
the turnaround and never counted as wrong. Every share carries the rows it rests on.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from .. import views
from ..clock import to_us
from ..codec import price_from_json
from ..compare import Decision, Interval, Pairs, clopper_pearson, cost_per_accepted, decide, pairs
from ..load import answers
from ..outcomes import Failed
from ..render import key_text
from ..turnaround import Bound, Seen, next_batch, survival
from ..types import BatchStatus, Job, ShardState, Tier
from .cascade import Threshold, choose_threshold, expected
from .plan import Arm, Benchmark, Gold
from .run import Started, counted, fails_surely, handles

if TYPE_CHECKING:
    import pyarrow as pa

    from ..client import Client
    from ..db import Row

_OVER = frozenset({ShardState.SETTLED.value, ShardState.REFUSED.value, ShardState.CANCELLED.value})


@dataclass(frozen=True, slots=True)
class Turnaround:
    """From sending a batch to seeing its end; of row-by-row tiers, a batch is a block of rows."""

    n: int  # batches that were sent
    n_ended: int  # with their answers
    n_censored: int  # running still, expired, failed or cancelled: they take longer than they were watched
    median_s: float | None  # Kaplan-Meier; None: not seen yet
    p90_s: float | None
    next_90: Bound  # when the next one is back, 90 times of 100
    next_95: Bound
    slowest_wave_s: float | None  # from its first batch sent to its last one seen back; None: one is still out
    sent_over_s: float | None  # from the first batch sent to the last: close ones say little about other hours


@dataclass(frozen=True, slots=True)
class Money:
    """What an arm cost. Confirmed is the tokens that the provider reported, at the price book's rates."""

    expected_micros: int
    worst_micros: int
    confirmed_micros: int
    unknown_micros: int  # sent, bill not provable yet
    wasted_micros: int  # of the confirmed: paid for nothing usable
    against_plan: Decimal | None  # confirmed / expected of what has ended; None: nothing has, or nothing was expected
    input_expected: int
    input_billed: int
    output_expected: int
    output_billed: int
    tokens_kind: str
    price_source: str
    price_as_of: str
    invoiced_micros: int | None  # as the user read it from the invoice; None: nobody has said
    against_book: Decimal | None  # invoiced / confirmed: 1 is what the price book says
    n_row_bills: int  # rows whose cost is known one by one
    row_mean_micros: Decimal | None
    row_sd_micros: Decimal | None  # how much they vary
    n_batch_bills: int  # batches for which the provider also stated the sum
    n_batch_bills_differ: int  # of them: it is not the sum of the rows


@dataclass(frozen=True, slots=True)
class Right:
    """How many answers are right, by the gold labels; a row without a usable answer is not."""

    n: int  # rows that have ended, but for cancelled ones and those that never came back
    right: int
    share: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One model on one tier."""

    arm: str
    model: str
    rows: int
    ended: int  # with an answer, or with a failure of their own
    left_out: int  # ended otherwise: cancelled, or never returned; they say nothing of the arm
    ok: int
    causes: Mapping[str, int]  # of rows without a usable answer
    stopped: bool  # surely more than the plan allows has failed
    edited: bool  # its requests were planned more than once
    turnaround: Turnaround
    money: Money
    right: Right | None  # None: no gold labels, or nothing has ended
    accepted: int  # right answers; without gold labels usable ones
    accepted_cost_micros: Decimal | None  # for each accepted answer; None: there is none


@dataclass(frozen=True, slots=True)
class Stratum:
    """A comparison within one value of the strata's column."""

    value: str
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms on the rows that have ended in both."""

    candidate: str
    reference: str
    n: int
    n_same: int  # rows both answered alike
    agreement: Interval  # 95 %
    decision: Decision | None  # None: no gold labels, so nobody knows which is right
    strata: tuple[Stratum, ...]


@dataclass(frozen=True, slots=True)
class CascadeReport:
    """Small first, large where its score is low."""

    small: str
    large: str
    threshold: Threshold
    right: float | None  # share of the labelled rows that it gets right; None: nothing was chosen
    caught: float | None  # of the small one's wrong answers, escalated
    passed: float | None  # of its right ones, kept
    row_cost_micros: Decimal | None
    against_large: Decimal | None  # its cost / that of the large model alone


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark, by now."""

    name: str
    at: datetime
    finished: bool
    rows: int
    budget_micros: int
    spent_micros: int
    held_micros: int
    gold: bool
    arms: tuple[ArmReport, ...]
    comparisons: tuple[Comparison, ...]
    cascade: CascadeReport | None
    notes: tuple[str, ...]


def report(client: Client, benchmark: Benchmark, job: Job, table: pa.Table) -> Report:
    """What is known by now. Raises nothing for arms that have not begun: they have no rows yet."""
    known = set(views.jobs(client.ledger))
    opened: dict[Arm, list[Started]] = {arm: [] for arm in benchmark.arms}
    for one in handles(client, benchmark, job, table):
        if one.handle.name in known:
            opened[one.run.arm].append(one)
    labels = _Labels(benchmark, job, table)
    answered = {arm: _answers(started) for arm, started in opened.items()}
    said = {arm: values for arm, (values, _) in answered.items()}
    arms = tuple(
        _arm(client, benchmark, arm, opened[arm], *answered[arm], labels, table.num_rows) for arm in benchmark.arms
    )
    held = next((b for b in views.budgets(client.ledger) if b.id == f"project:{benchmark.owner}"), None)
    return Report(
        name=benchmark.name,
        at=client.clock.now(),
        finished=all(_finished(arm) for arm in arms),
        rows=table.num_rows,
        budget_micros=benchmark.budget_micros,
        spent_micros=held.spent_micros if held else 0,
        held_micros=held.held_micros if held else 0,
        gold=benchmark.gold is not None,
        arms=arms,
        comparisons=tuple(_comparisons(benchmark, said, labels)),
        cascade=_cascade(benchmark, said, labels, {a.arm: a for a in arms}),
        notes=tuple(_notes(benchmark, arms)),
    )


# ------------------------------------------------------------------------------------------------------------ answers

_Said = Mapping[str, Any]  # by key: the answer's value; None: ended without a usable one


_LEFT_OUT = frozenset({"cancelled", "missing"})  # outcomes


def _answers(started: Sequence[Started]) -> tuple[_Said, Counter[str]]:
    """What was answered, and why rows have no usable answer."""
    said: dict[str, Any] = {}
    causes: Counter[str] = Counter()
    for one in started:
        for row in one.handle.rows():
            if not isinstance(row, Failed):
                said[row.key] = row.value
            elif row.outcome not in _LEFT_OUT:
                said[row.key] = None
                causes[row.cause or "unknown"] += 1
    return said, causes


class _Labels:
    """Gold labels and strata of the rows, by key."""

    def __init__(self, benchmark: Benchmark, job: Job, table: pa.Table) -> None:
        keys = [key_text(key) for key in table[job.source.key].to_pylist()]
        self.gold: Gold | None = benchmark.gold
        self._gold = dict(zip(keys, table[benchmark.gold.column].to_pylist(), strict=True)) if benchmark.gold else {}
        strata = table[benchmark.by].to_pylist() if benchmark.by else [None] * len(keys)
        self.stratum = {k: "" if s is None else str(s) for k, s in zip(keys, strata, strict=True)}

    def right(self, key: str, value: Any) -> bool:
        assert self.gold is not None
        return value is not None and same(_field(value, self.gold.field), self._gold[key])

    def same(self, one: Any, other: Any) -> bool:
        """Whether two answers agree: in the gold field, or else altogether."""
        name = self.gold.field if self.gold else None
        return one is not None and other is not None and same(_field(one, name), _field(other, name))


def _field(value: Any, name: str | None) -> Any:
    return value if name is None else value.get(name) if isinstance(value, Mapping) else None


def same(answer: Any, gold: Any) -> bool:
    """Whether an answer is the label: numbers by value, text without regard to case and surrounding space. Labels of a CSV
    file are text, so `true` is "true" and 1 is "1.0"."""
    if answer is None or gold is None:
        return False
    return _canonical(answer) == _canonical(gold)


def _canonical(value: Any) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping | list):
        return json.dumps(value, sort_keys=True)
    text = str(value).strip().casefold()
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return number if number.is_finite() else text


# --------------------------------------------------------------------------------------------------------------- arms


def _arm(
    client: Client,
    benchmark: Benchmark,
    arm: Arm,
    started: Sequence[Started],
    said: _Said,
    causes: Counter[str],
    labels: _Labels,
    rows: int,
) -> ArmReport:
    found = [one.handle.figures() for one in started]
    ok, failed, left_out = counted(found)
    ended = ok + failed
    right = None
    if labels.gold is not None and said:
        k = sum(labels.right(key, value) for key, value in said.items())
        right = Right(len(said), k, k / len(said), clopper_pearson(k, len(said)))
    accepted = right.right if right else ok
    money = _money(client, benchmark, arm, started, found)
    provider, model = benchmark.models[arm.role]
    return ArmReport(
        arm=str(arm),
        model=f"{provider}/{model}",
        rows=rows,
        ended=ended,
        left_out=left_out,
        ok=ok,
        causes=dict(causes),
        stopped=fails_surely(found, benchmark.stop_failed),
        edited=any(client.ledger.job(one.handle.name)["revision"] > 1 for one in started),
        turnaround=_turnaround(client, started),
        money=money,
        right=right,
        accepted=accepted,
        accepted_cost_micros=cost_per_accepted(
            money.confirmed_micros if money.invoiced_micros is None else money.invoiced_micros,
            accepted,
            check_micros=(benchmark.check_micros or 0) * ok,
            rejected=ended - accepted,
            reject_micros=benchmark.rejected_micros or 0,
        ),
    )


def _turnaround(client: Client, started: Sequence[Started]) -> Turnaround:
    now = to_us(client.clock.now())
    seen: list[tuple[int, Seen]] = []
    waves: list[float | None] = []
    for one in started:
        of_wave = [found for shard in _sent(client, one) if (found := _seen(shard, now))]
        seen += of_wave
        if of_wave:
            first = min(sent for sent, _ in of_wave)
            last = max(sent / 1e6 + s.seconds for sent, s in of_wave)
            waves.append(last - first / 1e6 if one.handle.figures().finished else None)
    seen.sort(key=lambda pair: pair[0])
    watched = [s for _, s in seen]
    curve = survival(watched)
    return Turnaround(
        n=curve.n,
        n_ended=curve.n_ended,
        n_censored=curve.n - curve.n_ended,
        median_s=curve.quantile(0.5),
        p90_s=curve.quantile(0.9),
        next_90=next_batch(watched, Decimal("0.9")),
        next_95=next_batch(watched, Decimal("0.95")),
        slowest_wave_s=None if None in waves or not waves else max(w for w in waves if w is not None),
        sent_over_s=(seen[-1][0] - seen[0][0]) / 1e6 if seen else None,
    )


def _sent(client: Client, one: Started) -> list[Row]:
    """The batches of a job that reached the provider; a second batch of one token is no other measurement."""
    rows = client.ledger.query("shards", job=one.handle.name)
    return [row for row in rows if row["role"] == "work" and row["submitted_us"]]


def _seen(shard: Row, now: int) -> tuple[int, Seen] | None:
    """When a batch was sent, and how long it took or was watched; None for one that was given up unseen."""
    sent, ended = shard["submitted_us"], shard["ended_us"]
    if ended is None:
        return None if shard["state"] in _OVER else (sent, Seen((now - sent) / 1e6, ended=False))
    batch = json.loads(shard["batch"]) if shard["batch"] else {}
    return sent, Seen((ended - sent) / 1e6, ended=batch.get("status") == BatchStatus.COMPLETED.value)


def _money(
    client: Client, benchmark: Benchmark, arm: Arm, started: Sequence[Started], found: Sequence[views.Figures]
) -> Money:
    bodies = []
    for one in started:
        digest = client.ledger.job(one.handle.name)["plan"]
        bodies.append(json.loads(client.ledger.query("plan", job=one.handle.name, digest=digest)[0]["body"]))
    price = price_from_json(bodies[0]["price"]) if bodies else None
    confirmed = sum(f.confirmed_micros for f in found)
    expected = sum(f.expected_micros for f in found)
    ended, rows = sum(counted(found)[:2]), sum(f.rows for f in found)
    invoiced = benchmark.billed_micros.get(str(arm))
    bills = [cost for one in started for cost in _row_bills(client, one)]
    mean, sd = _spread(bills)
    stated = [
        (usage["input_tokens"], usage["output_tokens"]) != (shard["input_tokens"], shard["output_tokens"])
        for one in started
        for shard in _sent(client, one)
        if shard["state"] == ShardState.SETTLED.value and (usage := json.loads(shard["batch"] or "{}").get("usage"))
    ]
    return Money(
        expected_micros=expected,
        worst_micros=sum(f.worst_micros for f in found),
        confirmed_micros=confirmed,
        unknown_micros=sum(f.unknown_micros for f in found),
        wasted_micros=sum(f.wasted_micros for f in found),
        against_plan=_ratio(confirmed * rows, expected * ended),
        input_expected=sum(body["input_expected"] for body in bodies),
        input_billed=sum(f.input_tokens for f in found),
        output_expected=sum(body["output_expected"] for body in bodies),
        output_billed=sum(f.output_tokens for f in found),
        tokens_kind=bodies[0]["tokens_kind"] if bodies else "estimated",
        price_source=price.source if price else "",
        price_as_of=price.as_of.isoformat() if price else "",
        invoiced_micros=invoiced,
        against_book=None if invoiced is None else _ratio(invoiced, confirmed),
        n_row_bills=len(bills),
        row_mean_micros=mean,
        row_sd_micros=sd,
        n_batch_bills=len(stated),
        n_batch_bills_differ=sum(stated),
    )


def _row_bills(client: Client, one: Started) -> Iterator[Decimal]:
    """Micros of each usable row."""
    with answers(client.ledger, client.blobs, one.handle.name) as rows:
        for batch in rows.loaded():
            yield from (usd.scaleb(6) for usd in batch["_cost_usd"].to_pylist() if usd is not None)


def _spread(values: Sequence[Decimal]) -> tuple[Decimal | None, Decimal | None]:
    """Mean and standard deviation, to a thousandth; None of what needs more values."""
    if not values:
        return None, None
    mean, place = sum(values, Decimal(0)) / len(values), Decimal("0.001")
    if len(values) < 2:
        return mean.quantize(place), None
    variance = sum(((v - mean) ** 2 for v in values), Decimal(0)) / (len(values) - 1)
    return mean.quantize(place), variance.sqrt().quantize(place)


def _ratio(value: int | Decimal, to: int | Decimal) -> Decimal | None:
    return (Decimal(value) / Decimal(to)).quantize(Decimal("0.0001")) if to else None


# -------------------------------------------------------------------------------------------------------- comparisons


def _comparisons(benchmark: Benchmark, said: Mapping[Arm, _Said], labels: _Labels) -> Iterator[Comparison]:
    """Small against large on each tier, batch against realtime for each model."""
    for candidate in benchmark.arms:
        for reference in benchmark.arms:
            sizes = (candidate.role, reference.role) == ("small", "large") and candidate.tier is reference.tier
            tiers = (candidate.tier, reference.tier) == (Tier.BATCH, Tier.STANDARD) and candidate.role == reference.role
            if sizes or tiers:
                yield _compared(benchmark, candidate, reference, said[candidate], said[reference], labels)


def _compared(
    benchmark: Benchmark, candidate: Arm, reference: Arm, ours: _Said, theirs: _Said, labels: _Labels
) -> Comparison:
    keys = [key for key in ours if key in theirs]
    n_same = sum(labels.same(ours[key], theirs[key]) for key in keys)
    decision, strata = None, []
    if labels.gold is not None:
        decision = decide(_paired(keys, ours, theirs, labels), benchmark.margin)
    if labels.gold is not None and benchmark.by:
        for value in sorted(set(labels.stratum.values())):
            within = [key for key in keys if labels.stratum[key] == value]
            strata.append(Stratum(value, _paired(within, ours, theirs, labels)))
    agreement = clopper_pearson(n_same, len(keys))
    return Comparison(str(candidate), str(reference), len(keys), n_same, agreement, decision, tuple(strata))


def _paired(keys: Sequence[str], ours: _Said, theirs: _Said, labels: _Labels) -> Pairs:
    return pairs((labels.right(k, ours[k]) for k in keys), (labels.right(k, theirs[k]) for k in keys))


def _cascade(
    benchmark: Benchmark, said: Mapping[Arm, _Said], labels: _Labels, arms: Mapping[str, ArmReport]
) -> CascadeReport | None:
    """The threshold that keeps the promise, on the first tier that both models were measured on."""
    aim = benchmark.cascade
    both = [(s, g) for s in said for g in said if (s.role, g.role) == ("small", "large") and s.tier is g.tier]
    if aim is None or labels.gold is None or not both:
        return None
    small, large = both[0]
    keys = [key for key in said[small] if key in said[large]]
    scores = [_score(said[small][key], aim.score) for key in keys]
    small_ok, large_ok = ([labels.right(key, said[arm][key]) for key in keys] for arm in (small, large))
    threshold = choose_threshold(scores, small_ok, large_ok, float(aim.loss), float(1 - aim.sure))
    each = [_ratio(arms[str(arm)].money.confirmed_micros, arms[str(arm)].ended) for arm in (small, large)]
    if threshold.score is None or each[0] is None or each[1] is None:
        return CascadeReport(str(small), str(large), threshold, None, None, None, None, None)
    asks = [score < threshold.score for score in scores]
    caught = _share(ask for ask, ok in zip(asks, small_ok, strict=True) if not ok)
    passed = _share(not ask for ask, ok in zip(asks, small_ok, strict=True) if ok)
    found = expected(
        _share(small_ok),
        caught,
        passed,
        escalated_accuracy=_share(ok for ask, ok in zip(asks, large_ok, strict=True) if ask),
        small=each[0],
        large=each[1],
    )
    cost = found.cost.quantize(Decimal("0.001"))
    return CascadeReport(str(small), str(large), threshold, found.accuracy, caught, passed, cost, _ratio(cost, each[1]))


def _share(said: Iterable[bool]) -> float:
    """Of truths; 0 of none."""
    told = list(said)
    return sum(told) / max(1, len(told))


def _score(value: Any, name: str) -> float:
    """How sure the small model is; an answer that does not say is surely escalated."""
    found = _field(value, name) if value is not None else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return -math.inf
    return float(found)


def _finished(arm: ArmReport) -> bool:
    return arm.ended + arm.left_out == arm.rows or arm.stopped


def _notes(benchmark: Benchmark, arms: Sequence[ArmReport]) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    if benchmark.gold is None:
        yield "no gold labels: agreement of arms is no proof that either is right"
    if not benchmark.billed_micros:
        yield "no invoice was stated: money is reported tokens x price book, and whether that is billed is not measured"
    if benchmark.check_micros is None or benchmark.rejected_micros is None:
        yield "what checking costs, or what a wrong answer costs, is not stated and is in no figure"
    if benchmark.waves == 1:
        yield "one wave: the turnaround of one hour says little about others"
    if not all(_finished(arm) for arm in arms):
        yield "not finished: who stops as soon as a figure pleases will be misled by it; judge at the end"
    for arm in arms:
        if arm.edited:
            yield f"{arm.arm}: the plan was edited after it ran; its money includes what was paid before"
        if arm.left_out:
            yield f"{arm.arm}: {arm.left_out:,} rows were cancelled or never came back; they count neither as failed nor as wrong"
        if arm.stopped:
            yield f"{arm.arm} was stopped: surely more than {benchmark.stop_failed:.0%} of its rows fail"
        if arm.money.n_batch_bills_differ:
            yield f"{arm.arm}: {arm.money.n_batch_bills_differ} batches were billed otherwise than the sum of their rows"
