"""What keeps the shards of a plan back until its canary is back.

Of a job that asks (`budget: {on_exceed: ask}`) no more than the canary is sent before its limit surely covers the rest, or a
person raised it so far. That the question is open stands in the plan's terms.
"""

from __future__ import annotations

import json
from datetime import datetime
from shlex import quote

from . import entries
from .clock import to_us
from .forecast import Outlook, usd
from .ledger import Ledger
from .lifecycle import OPEN
from .price import format_usd
from .releasing import Room
from .types import Shard

CANARY_IS_BACK = "the canary is back"  # what the words of a question begin with
_OPEN = frozenset(state.value for state in OPEN)


def canary_of(ledger: Ledger, shard: Shard) -> str | None:
    """The canary's shard in the plan that a shard belongs to; None: it has none."""
    canary = json.loads(ledger.query("plan", job=shard.job, digest=shard.plan)[0]["body"]).get("canary")
    return str(canary["shard"]) if canary else None


def is_out(ledger: Ledger, canary: str) -> bool:
    """Whether lines of it have not ended: they are to be sent, on their way, or sent again."""
    return any(row["state"] in _OPEN for row in ledger.query("shards_of_root", root=canary))


def hold(ledger: Ledger, shard: Shard, canary: str, until: datetime, why: str, now: datetime) -> None:
    """Every planned shard of the plan but the canary waits; the caller holds this one of them."""
    ledger.wait(shard, until, why, now)
    with ledger.db.transaction("hold") as tx:
        names = {"job": shard.job, "plan": shard.plan, "canary": canary}
        tx.run("hold_for_canary", next=to_us(until), why=why, now=to_us(now), **names)


def question(outlook: Outlook | None, room: Room, worst: int, file: str | None) -> str | None:
    """What to ask of a person before more than the canary is sent; None: the limit surely covers the rest.

    `room`: what is left of the job's own limit; `worst`: micros that the rest costs at most, each row asked once; `file`: the
    job's.
    """
    most = outlook.finish_guaranteed_micros if outlook else None
    rest = worst if outlook is None or most is None else min(worst, most - outlook.paid_micros)
    if rest <= room.left:
        return None
    if outlook is None or most is None:
        known = f"what the rest costs is not known, at worst {usd(worst)}"
    else:
        likely = outlook.likely_micros
        known = f"all of it is expected to cost {usd(outlook.finish_micros)}"
        known += f", likely at most {usd(likely)}" if likely and likely < outlook.cannot_exceed_micros else ""
        known += f", guaranteed (95 %) at most {usd(most)}"
    enough = format_usd(room.limit - room.left + rest)
    going_on = f"canwait run {quote(file)} --budget {enough}" if file else f"a budget of {enough} USD"
    return f"{CANARY_IS_BACK}: {known}; the limit is {usd(room.limit)}; it goes on with: {going_on}"


def answered(ledger: Ledger, job: str, plan: str, why: str, now: datetime) -> None:
    """A plan asks no more: from here on it is sent as far as the money goes."""
    with ledger.db.transaction("answered") as tx:
        terms = json.loads(tx.run("plan", job=job, digest=plan)[0]["terms"])
        if terms.get("ask"):
            tx.run("plan_terms", job=job, digest=plan, terms=entries.dumps({**terms, "ask": False}))
            entries.journal(tx, now, job, None, "budget_answered", why, plan=plan)
