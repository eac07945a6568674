"""What a plan says of time: when its rows are back by what was seen before, and what is done about those that are late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from pathlib import Path

from . import history, ramp, schedule
from .errors import SpecError
from .freshness import span
from .ledger import Ledger
from .price import cost_micros, format_usd, worst_micros
from .rescue import DONE
from .schedule import CANCEL_S, LOOK_S, Net, Pace, Ready, Way
from .turnaround import Past, alike
from .types import AtDeadline, Fallback, Job, Offer, Plan, Price, Rescue, Tier, Usage

Stated = tuple[Rescue | None, AtDeadline | None]


def fallback_of(job: Job, plan: Plan, price_of: Callable[[Tier], Price], file: Path | None) -> Stated:
    """What a job file says is done about late rows. Raises SpecError, UnknownPrice."""
    stated = job.fallback or Fallback()
    if stated.rescue is None or plan.tier is not Tier.BATCH:  # rows that are answered one by one wait for no batch
        return None, stated.at_deadline
    from .providers.registry import ROW_BY_ROW, name_of

    if stated.rescue.value not in (tiers := ROW_BY_ROW[plan.provider]):
        from .spec import problems_at

        what = f"{plan.provider} has no tier {stated.rescue.value}; expected {' or '.join(tiers)}"
        raise SpecError(problems_at(file, "fallback", [what]))
    rescue = Rescue(name_of(plan.provider, stated.rescue), price_of(stated.rescue), stated.rows_per_s)
    return rescue, stated.at_deadline


def in_time(
    ledger: Ledger, job: Job, plan: Plan, adapter: str, stated: Stated, now: datetime
) -> tuple[Ready | None, str | None]:
    """When a plan's rows are back, and what is done about late ones, in words; None where nothing is known or done."""
    if not plan.shards:
        return None, None
    past, (rescue, at_deadline) = history.past(ledger, now), stated
    known = _pace(ledger, plan, rescue) if rescue else None
    words = [_promise(plan, rescue, known, past, job.deadline_s, now)] if rescue else []
    words += [f"At the deadline {DONE[at_deadline]}."] if at_deadline else []
    if plan.tier in ramp.ROW_BY_ROW:
        ready = schedule.ready_in_a_row(history.rates(ledger, adapter, plan.model), None, plan.n_new)
    elif job.quality is None:
        ready = _round(past, plan, [shard.n_lines for shard in plan.shards])
    else:
        redo_s = known.redo_s(plan.n_new) + CANCEL_S if known else 0.0
        ready = _in_waves(past, plan, job.deadline_s - redo_s)
    return ready, " ".join(words) or None


def _in_waves(past: Sequence[Past], plan: Plan, left_s: float) -> Ready:
    """Of a job with a gate: one shard first, and the others in waves, as long as there is time for that."""
    canary = plan.canary.shard if plan.canary else plan.shards[0].id
    sizes = [shard.n_lines for shard in sorted(plan.shards, key=lambda shard: shard.id != canary)]
    n_waves = ramp.waves(len(sizes))
    starts = list(accumulate(n_waves, initial=0))
    waves = [_round(past, plan, sizes[start:end]) for start, end in pairwise(starts)]
    if len(waves) == 1:
        return waves[0]
    rests = [_round(past, plan, sizes[start:]) for start in starts[:-1]]
    like, _ = alike(past, plan.provider, plan.model, plan.tier, max(sizes))
    over_s = left_s - 2 * ramp.turnaround_s(like, _offer(plan).limits.window_s)
    p50_s = ramp.back_s([wave.p50_s for wave in waves], [rest.p50_s for rest in rests], over_s)
    p95_s = ramp.back_s([wave.p95_s for wave in waves], [rest.p95_s for rest in rests], over_s)
    return schedule.in_turn(waves[0], rests[1], p50_s, p95_s, n_waves[1:] if waves[0].p50_s <= over_s else [])


def _round(past: Sequence[Past], plan: Plan, sizes: Sequence[int]) -> Ready:
    """Of batches that are sent together; the largest says which past ones are like them."""
    like, kind = alike(past, plan.provider, plan.model, plan.tier, max(sizes))
    found = schedule.ready_by([batch.seen for batch in like], len(sizes), _offer(plan).limits.window_s)
    return replace(found, basis=kind)


def _pace(ledger: Ledger, plan: Plan, rescue: Rescue) -> Pace | None:
    return schedule.pace(history.rates(ledger, rescue.adapter, plan.model), rescue.rows_per_s)


def _promise(
    plan: Plan, rescue: Rescue, known: Pace | None, past: Sequence[Past], deadline_s: int, now: datetime
) -> str:
    offer = _offer(plan)
    like, _ = alike(past, plan.provider, plan.model, plan.tier, max(shard.n_lines for shard in plan.shards))
    seen = schedule.turnaround([batch.seen for batch in like], offer.limits.window_s)
    net = None
    if known is not None:
        expected = cost_micros([Usage(plan.input_expected, plan.output_expected)], rescue.price)
        worst = worst_micros([(plan.input_bound, plan.output_bound)], rescue.price)  # at the dearest rate of any length
        net = Net(rescue.price.tier, plan.n_new, expected, worst, known, CANCEL_S + LOOK_S)
        if net.needs_s >= deadline_s:
            return _at_once(net, deadline_s)
    return schedule.report(schedule.choose([Way(offer, plan.expected_micros, seen)], deadline_s, net), net, now)


def _at_once(net: Net, deadline_s: int) -> str:
    """There is no time to wait for a batch first."""
    needs_s, to = net.pace.redo_s(net.n_rows), net.tier.value
    most = f"at most +${format_usd(net.worst_micros)} ({net.pace.basis})"
    if needs_s <= deadline_s:
        return f"A batch leaves no time for a rescue: what is not back is moved to {to} from the start, {most}."
    return (
        f"Some rows will be late: {net.n_rows:,} need {span(timedelta(seconds=needs_s))} on {to}, and the deadline is "
        f"{span(timedelta(seconds=deadline_s))} away. They are moved from the start, {most}."
    )


def _offer(plan: Plan) -> Offer:
    return next(offer for offer in plan.offers if offer.chosen)
