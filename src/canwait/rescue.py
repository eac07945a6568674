"""Rows that would not be back in time go to a tier that answers them one by one: the decision, and the ledger's part of it.

The redo is reserved while the batch copy is still held. Then the batch is cancelled until it has ended, what it finished is
harvested, and what it did not answer is asked again on the money that is held for it. Each function is one transaction a
shard; a crash between two leaves shards of which the ledger says that they are on their move.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, cast

from . import entries, history
from .clock import from_us, to_us
from .codec import plain, terms_from_json
from .db import Row, Tx
from .errors import BudgetExceeded, BudgetFrozen, KeyRefused
from .ledger import Ledger
from .price import format_usd
from .schedule import CANCEL_S, LOOK_S, Out, Spill, pace, spill, turnaround
from .turnaround import alike
from .types import AtDeadline, Rescue, Shard, ShardState, Terms

S = ShardState
_OUT = frozenset({S.PLANNED.value, S.SUBMITTING.value, S.SUBMITTED.value})
_HELD = frozenset({S.SUBMITTING.value, S.SUBMITTED.value})

Worst = Callable[[str], tuple[int, int]]
"""What asking all lines of a shard costs at most where they are moved to: (micros, tokens). Raises KeyRefused."""


def stated(terms: Terms, rescue: Rescue | None, at_deadline: AtDeadline | None) -> Terms:
    """With what a job file says is done about late rows; shards may be on every rescue that was ever stated."""
    others = [known for known in terms.rescues if rescue is None or known.adapter != rescue.adapter]
    rescues, adapter = ((rescue, *others), rescue.adapter) if rescue else (tuple(others), None)
    return replace(terms, rescues=rescues, rescue=adapter, at_deadline=at_deadline)


def state(
    ledger: Ledger, job: str, plan: str, rescue: Rescue | None, at_deadline: AtDeadline | None, now: datetime
) -> None:
    """What the job file says by now is done about late rows, of a plan that is open already."""
    with ledger.db.transaction("state_fallback") as tx:
        raw = json.loads(tx.run("plan", job=job, digest=plan)[0]["terms"])
        before = terms_from_json(raw)
        after = _settling(tx, job, plan, before, stated(before, rescue, at_deadline))
        if after != before:
            changed = {name: plain(getattr(after, name)) for name in ("rescues", "rescue", "at_deadline")}
            tx.run("plan_terms", job=job, digest=plan, terms=entries.dumps({**raw, **changed}))
            words = "the job file says something else of rows that are late"
            entries.journal(tx, now, job, None, "fallback_stated", words, rescue=after.rescue, at_deadline=at_deadline)


def _settling(tx: Tx, job: str, plan: str, before: Terms, after: Terms) -> Terms:
    """With the prices as they were of tiers for which rows of the plan hold money: what is held is what may be billed."""
    holding = [row for row in tx.run("open_shards") if (row["job"], row["plan"]) == (job, plan) and row["held_micros"]]
    out = {row["provider"] for row in holding} | {before.rescue for row in holding if row["moving_us"] is not None}
    price = {known.adapter: known.price for known in before.rescues if known.adapter in out}
    return replace(after, rescues=tuple(replace(r, price=price.get(r.adapter, r.price)) for r in after.rescues))


# ---------------------------------------------------------------------------------------------------- what is to be moved


def look(
    ledger: Ledger,
    shard: Shard,
    terms: Terms,
    worst: Worst,
    held: Callable[[str], bool],
    now: datetime,
    *,
    window_s: float,
    cancel_s: float = CANCEL_S,
    look_s: float = LOOK_S,
) -> None:
    """Move what must not be waited for any longer, of the plan this shard is of. Somebody must call it each `look_s`.

    What the budgets have no room for stays where it is, others are moved in its place, and it is told once. `held`: whether
    a planned shard waits for another, which then must move before it.
    """
    job = ledger.job(shard.job)
    rescue = next((r for r in terms.rescues if r.adapter == terms.rescue), None)
    if rescue is None or job["cancelled"] or job["paused"] or job["given_up"]:
        return
    rows, deadline = ledger.query("open_shards"), from_us(job["deadline_us"])
    out = [_out(row, now) for row in rows if _may_move(row, shard, terms)]
    moved_rows = sum(_unanswered(row, rescue.adapter) for row in rows)
    known = pace(history.rates(ledger, rescue.adapter, terms.model), rescue.rows_per_s)
    decide = partial(spill, now=now, deadline=deadline, pace=known, cancel_s=cancel_s, look_s=look_s)
    found = decide(out, moved_rows, turnaround=turnaround([], window_s))
    planned = {row["id"] for row in rows if row["state"] == S.PLANNED.value} & {each.shard for each in out}
    if not found.cancel and not planned:
        return
    largest = max(each.n_rows for each in out)
    like, _ = alike(history.past(ledger, now), terms.provider, terms.model, terms.tier, largest)
    seen = turnaround([batch.seen for batch in like], window_s)
    if not found.cancel:  # time is left to wait, perhaps too little for what is not sent yet
        left_s = (found.again_at - now).total_seconds() if found.again_at else 0.0
        if seen.known and not found.tight and found.again_at and not seen.back(left_s):
            why = f"no batch of those before was ever back in that time; {found.why}"
            for each in sorted(planned):
                if not held(each):
                    _move(ledger, each, rescue, worst, replace(found, why=why), now)
        return
    out = [replace(each, may_move=not (each.shard in planned and held(each.shard))) for each in out]
    move = partial(_move, ledger, rescue=rescue, worst=worst, now=now)
    _move_instead(out, moved_rows, partial(decide, turnaround=seen), move)


def _move_instead(
    out: list[Out], moved_rows: int, decide: Callable[[list[Out], int], Spill], move: Callable[..., bool]
) -> None:
    """Move what must be; in place of what could not be, others, as long as there are any."""
    while out:
        found = decide(out, moved_rows)
        unmoved = {each for each in found.cancel if not move(each, found=found)}
        if not unmoved:
            return
        going = set(found.cancel) - unmoved
        moved_rows += sum(each.n_rows for each in out if each.shard in going)
        out = [each for each in out if each.shard not in found.cancel]


def _may_move(row: Row, shard: Shard, terms: Terms) -> bool:
    of_plan = (row["job"], row["plan"], row["provider"]) == (shard.job, shard.plan, shard.provider)
    return of_plan and row["state"] in _OUT and row["moving_us"] is None


def _out(row: Row, now: datetime) -> Out:
    elapsed_s = (to_us(now) - row["submitted_us"]) / 1e6 if row["submitted_us"] else 0.0
    return Out(row["id"], row["n_lines"], elapsed_s, _n_done(row))


def _unanswered(row: Row, adapter: str) -> int:
    """Rows that the other tier has yet to answer, of any job: they share what the account allows."""
    if row["provider"] == adapter:
        return max(0, int(row["n_lines"]) - (_n_done(row) or 0))  # counted on our own disk
    moves = row["moving_us"] is not None and adapter.startswith(f"{row['provider']}/")
    return int(row["n_lines"]) if moves else 0


def _n_done(row: Row) -> int | None:
    return cast("int | None", json.loads(row["batch"])["n_done"]) if row["batch"] else None


def _move(ledger: Ledger, shard: str, rescue: Rescue, worst: Worst, found: Spill, now: datetime) -> bool:
    """Reserve the redo beside the batch copy and mark the shard, or do neither. Whether it is on its move."""
    facts: dict[str, Any] = {"to": rescue.adapter}
    try:
        micros, tokens = worst(shard)
        facts["worst_micros"] = micros
        with ledger.db.transaction("rescue") as tx:
            row = tx.run("shard", id=shard)[0]
            held = row["state"] in _HELD
            amounts = {"micros": micros if held else 0, "tokens": tokens if held else 0}
            first = not tx.run("moved_before", job=row["job"], plan=row["plan"])[0]["n_moved"]
            if not tx.count("shard_move_on", id=shard, at=to_us(now), **amounts):
                return True  # it has ended, or was given up, meanwhile
            if held:
                entries.reserve(tx, now, json.loads(row["budgets"]), row["job"], shard, **amounts)
            words = f"moved to {rescue.price.tier.value}, at most +${format_usd(micros)}: {found.why}"
            facts["rows"] = row["n_lines"]
            entries.journal(tx, now, row["job"], shard, "rescue", words, **facts)
            if first:
                entries.journal(tx, now, row["job"], None, "rescued", found.why, **facts)
    except (BudgetExceeded, BudgetFrozen, KeyRefused) as error:
        _unmoved(ledger, shard, str(error), now, **facts)
        return False
    return True


def _unmoved(ledger: Ledger, shard: str, why: str, now: datetime, /, **facts: Any) -> None:
    """A shard that should be moved cannot be: nothing is cancelled, and of the first of a plan it is told."""
    with ledger.db.transaction("unmoved") as tx:
        row = tx.run("shard", id=shard)[0]
        first = not tx.run("moved_before", job=row["job"], plan=row["plan"])[0]["n_unmoved"]
        if tx.count("shard_unmoved", id=shard, why=why) and first:
            entries.journal(
                tx, now, row["job"], shard, "rescue_refused", f"not moved: {why}", rows=row["n_lines"], **facts
            )


# ------------------------------------------------------------------------------------------------------- the deadline


def missed(ledger: Ledger, name: str, now: datetime) -> None:
    """Rows of a job were still out at its deadline: once for each deadline, what the job file says is done."""
    job = ledger.job(name)
    if job["cancelled"] or now < from_us(job["deadline_us"]) or job["missed_us"] == job["deadline_us"]:
        return
    with ledger.db.transaction("deadline_missed") as tx:
        plan = tx.run("job", name=name)[0]["plan"]
        at_deadline = json.loads(tx.run("plan", job=name, digest=plan)[0]["terms"]).get("at_deadline")
        if tx.count("job_missed", name=name, now=to_us(now), given_up=at_deadline):
            n_open = sum(row["job"] == name and row["state"] in _OUT for row in tx.run("open_shards"))
            if at_deadline:
                tx.run("shard_ask_cancel", job=name, now=to_us(now))
            words = f"the deadline {from_us(job['deadline_us']):%Y-%m-%d %H:%M} UTC has passed: {DONE[at_deadline]}"
            entries.journal(tx, now, name, None, "deadline_missed", words, n_open=n_open, at_deadline=at_deadline)


DONE: Mapping[str | None, str] = {
    None: "what is out is waited for",
    "load_without": "what is out is stopped, and what is there is loaded",
    "last_publication": "what is out is stopped, and readers go on with the last publication",
    "fail": "what is out is stopped, and nothing is loaded",
}
