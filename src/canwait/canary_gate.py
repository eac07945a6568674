"""The gate before the rest of a plan: of a job that says so its canary is judged before anything else of the plan is sent.

The usable answers of the canary are a lot of their own, drawn once every line of it has ended. Its order has a seed of its
own, and no word on it is a word on the job's lot, which is judged anew when the job has finished: a sample that was looked
at and stopped for what it showed is not one that may be extended. So a verdict here opens nothing for readers. Each function
is one transaction; what a verdict does to the job is written with it (halting.judged).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from . import halting
from .codec import terms_from_json
from .db import Row, Tx
from .gates import as_strict
from .judging import Standing, lot_of, stated_in
from .ledger import Ledger
from .lifecycle import OPEN
from .lots import Verdict
from .types import Outcome, Quality, Shard

_OPEN = frozenset(state.value for state in OPEN)


def waiting(ledger: Ledger, job: str) -> Standing | None:
    """What stands of a canary that holds back rows of a job: it waits to be judged, or was refused; None: none does."""
    with ledger.db.reading() as tx:
        for plan in tx.run("plans_to_send", job=job):
            found = _standing(tx, plan)
            if found is not None:
                return found
    return None


def is_held(ledger: Ledger, shard: Shard) -> bool:
    """Whether a planned shard must not be sent before people have accepted the canary of its plan."""
    if shard.id != shard.root:
        return False
    with ledger.db.reading() as tx:
        return _standing(tx, tx.run("plan", job=shard.job, digest=shard.plan)[0]) is not None


def ask(ledger: Ledger, shard: Shard, now: datetime) -> str | None:
    """Pause the job of a held shard until people have judged; why, in words. None: they have by now."""
    with ledger.db.transaction("ask_about_canary") as tx:
        found = _standing(tx, tx.run("plan", job=shard.job, digest=shard.plan)[0])
        if found is None or found.canary is None:
            return None
        if found.lot is not None and found.lot.verdict is Verdict.REFUSED:  # then the plan has been stopped
            return found.lot.reason
        return halting.ask(tx, shard, found.canary, now)


def _standing(tx: Tx, plan: Row) -> Standing | None:
    """The same of one plan; None, too, while lines of the canary have not ended."""
    gate, names = terms_from_json(json.loads(plan["terms"])).quality, {"job": plan["job"], "plan": plan["digest"]}
    if gate is None or gate.canary != "judged" or plan["past"]:
        return None
    drawn, roots = json.loads(plan["body"]).get("canary"), tx.run("first_root", **names)
    if not drawn and not roots:
        return None
    canary = str(drawn["shard"] if drawn else roots[0]["id"])
    tried, alone = tx.run("shards_of_root", root=canary), _alone(gate)
    if any(row["state"] in _OPEN for row in tried):
        return None
    lots = [lot for lot in map(lot_of, tx.run("lots_of", **names)) if lot.canary is not None]
    if any(lot.verdict is Verdict.ACCEPTED and as_strict(lot.quality, alone) for lot in lots):
        return None
    lot_id = _identity(canary, tried, names, alone)
    kept = tx.run("lot", id=lot_id)
    if not kept and tx.run("halted", **names):  # by the free checks: there is nothing more to ask
        return None
    return Standing(plan["digest"], alone, lot_id, True, lot_of(kept[0]) if kept else None, canary)


def _identity(canary: str, tried: Sequence[Row], names: dict[str, str], gate: Quality) -> str:
    """A digest over the canary's answers and what they are judged by: others are another lot."""
    (root,) = (row for row in tried if row["id"] == canary)
    usable = zlib.decompress(root["vector"]).translate(bytes(byte == Outcome.OK for byte in range(256)))
    digest = hashlib.sha256("\0".join(("canary", *names.values(), canary, stated_in(gate))).encode() + b"\0" + usable)
    for row in sorted(tried, key=lambda row: (row["settled_us"] or 0, row["attempt"], row["id"])):
        digest.update(f"\0{row['results_blob']}".encode())
    return digest.hexdigest()


def _alone(gate: Quality) -> Quality:
    """What a canary is judged by: the same, as one part, and by people where a judge model is to help them later."""
    if gate.by == "judge":
        gate = replace(gate, by="human", judge=None, rows=None)
    return replace(gate, strata=None, on_refuse="quarantine")
