"""Rows that are asked again: those that failed, and those that a gate refused; because a person says so, or the job file.

What the job file has asked again (`on_refuse: rerun`) is asked once for each plan: that it was is written in the transaction
that opens the shards and withdraws the refused answers. Whoever dies before has asked nothing, and the next run does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial

import pyarrow as pa

from . import judging, landing
from .blobs import Blobs
from .clock import from_us
from .db import Tx
from .errors import NotFound
from .inspection import rejected
from .ledger import Ledger, NewShard
from .lots import Lot, Verdict
from .price import format_usd
from .resend import is_rejected, parse, select
from .types import Shard, Terms

FollowUp = Callable[[Shard, pa.Table, list[int], int, Terms, str], NewShard]
"""A shard that asks for lines of an older one again: of its manifest, at this attempt, under these terms, and why."""


def check(selector: str) -> None:
    """Raises SpecError for what selects nothing."""
    if not is_rejected(selector):
        parse(selector)


def again(ledger: Ledger, blobs: Blobs, job: str, selector: str, follow_up: FollowUp, now: datetime) -> None:
    """Open shards for the rows that a person selects. Raises NotFound where there are none, SpecError."""
    why, withdraw = f"a person asked for `{selector}` again", None
    if is_rejected(selector):
        lot, chosen = rejected(ledger, blobs, job, selector.partition(":")[2])
        withdraw = partial(_withdrawn, lot=lot)
    else:
        chosen = select(ledger, blobs, job, selector)
    shards = _shards(ledger, blobs, chosen, selector, follow_up)
    if not shards:
        raise NotFound(what="rows", name=f"`{selector}`", hint="`canwait status` says what failed, and why")
    ledger.add_shards(job, shards, why, now, withdraw)


def rerun(ledger: Ledger, blobs: Blobs, job: str, follow_up: FollowUp, now: datetime) -> str | None:
    """Open shards for all that the gate of a job refused, where its file says so and it was not done before; in words, also
    where the budgets have no room for it. None: there is nothing to ask; or it was given up, or would come too late.
    """
    row = ledger.job(job)
    plan = ledger.query("plan", job=job, digest=row["plan"])[0]
    if plan["rerun"] or row["cancelled"] or row["given_up"] or now >= from_us(row["deadline_us"]):
        return None
    lot = judging.standing(ledger, job).lot if judging.is_rerun(plan) else None
    if lot is None or lot.verdict is not Verdict.REFUSED or not lot.n_rows:
        return None
    chosen = rejected(ledger, blobs, job, "")[1]
    shards = _shards(ledger, blobs, chosen, "rerun", follow_up)
    if not shards:
        return None
    if why := _lacking(ledger, chosen[0][0], [new for new, _ in shards], now):
        return f"what was refused is not asked again by this run: {why}"
    why = f"{sum(len(lines) for _, lines in shards)} refused requests are sent again, as the job file says, this once"
    ledger.add_shards(job, shards, why, now, partial(_withdrawn, lot=lot, unasked=True))
    return why


def _lacking(ledger: Ledger, root: Shard, shards: Sequence[NewShard], now: datetime) -> str | None:
    """What the budgets lack to hold all of these; for what was answered is withdrawn only where it can be asked again."""
    worst = sum(new.worst_micros for new in shards)
    needed = {"micros": worst, "tokens": sum(new.input_bound + new.output_bound for new in shards)}
    for room in ledger.rooms(root, now):
        if room.left < needed[room.unit]:
            free = f"{max(0, room.left)} tokens" if room.unit == "tokens" else f"${format_usd(max(0, room.left))}"
            return f"it costs at most ${format_usd(worst)}, and {free} are free in {room.budget}"
    return None


def _shards(
    ledger: Ledger, blobs: Blobs, chosen: Iterable[tuple[Shard, list[int]]], selector: str, follow_up: FollowUp
) -> list[tuple[NewShard, list[int]]]:
    shards = []
    for root, lines in chosen:
        manifest = landing.read_manifest(blobs.path(root.manifest_blob))
        tried = len(ledger.query("shards_of_root", root=root.id))
        shards.append((follow_up(root, manifest, lines, 1, ledger.terms(root), f"{selector} {tried}"), lines))
    return shards


def _withdrawn(tx: Tx, lot: Lot, *, unasked: bool = False) -> bool:
    """Whether what a lot holds is withdrawn, so that its rows can be asked again; once where nobody asked for it."""
    if not judging.stands(tx, lot):
        return False
    is_first = bool(tx.count("plan_rerun", job=lot.job, plan=lot.plan, lot=lot.id))
    return is_first or not unasked
