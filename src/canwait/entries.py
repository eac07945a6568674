"""Money inside a transaction: reservations, movements, freezes, and the journal line beside each.

`budget` holds the running sums, `entry` every movement they came from; nothing here ever changes one without the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .clock import to_us
from .db import Row, Tx
from .errors import BudgetExceeded, BudgetFrozen, LedgerError
from .price import format_usd


def chain(tx: Tx, below: Sequence[str], now: datetime) -> list[str]:
    """The budgets a reservation passes, from the narrowest: job <= project <= month. They exist from here on."""
    month = f"month:{now:%Y-%m}"
    for budget in below:
        tx.run("budget_ensure", id=budget)
    tx.run("budget_ensure_month", id=month)
    return [*below, month]


def reserve(
    tx: Tx, now: datetime, budgets: Sequence[str], job: str, shard: str, /, *, micros: int, tokens: int
) -> None:
    """Hold a worst case in every one of the budgets. Raises BudgetExceeded or BudgetFrozen; the caller rolls back."""
    for budget in budgets:
        if not tx.count("budget_reserve", id=budget, micros=micros, tokens=tokens):
            row = tx.run("budget", id=budget)[0]
            if row["frozen"]:
                raise BudgetFrozen(budget=budget, why=row["frozen"])
            raise exceeded(row, f"shard {shard}", micros, tokens)
        _entry(tx, now, budget, job, shard, "reserve", "worst case", held_micros=micros, held_tokens=tokens)


def exceeded(budget: Row, what: str, micros: int, tokens: int) -> BudgetExceeded:
    """The error that says how much was asked of a budget and how much of it is free."""
    limit = budget["limit_micros"]
    if limit is not None and budget["spent_micros"] + budget["held_micros"] + micros > limit:
        free = limit - budget["spent_micros"] - budget["held_micros"]
        return BudgetExceeded(
            what=what,
            needed=format_usd(micros),
            free=format_usd(max(0, free)),
            limit=format_usd(limit),
            budget=budget["id"],
        )
    free = budget["limit_tokens"] - budget["spent_tokens"] - budget["held_tokens"]
    text = f"{what} needs {tokens} tokens; {max(0, free)} of {budget['limit_tokens']} are free in {budget['id']}."
    return BudgetExceeded(
        text, what=what, needed=tokens, free=max(0, free), limit=budget["limit_tokens"], budget=budget["id"]
    )


def move(
    tx: Tx, now: datetime, budget: str, job: str, shard: str | None, kind: str, reason: str, /, **amounts: int
) -> None:
    """A movement that is a fact: into the budget and into the entries, unless it moves nothing."""
    if any(amounts.values()):
        full = {k: amounts.get(k, 0) for k in ("held_micros", "spent_micros", "held_tokens", "spent_tokens")}
        tx.run("budget_move", id=budget, **full)
        _entry(tx, now, budget, job, shard, kind, reason, **full)


def _entry(
    tx: Tx,
    now: datetime,
    budget: str,
    job: str,
    shard: str | None,
    kind: str,
    reason: str,
    /,
    *,
    held_micros: int = 0,
    spent_micros: int = 0,
    held_tokens: int = 0,
    spent_tokens: int = 0,
) -> None:
    tx.run(
        "entry",
        at=to_us(now),
        budget=budget,
        job=job,
        shard=shard,
        kind=kind,
        reason=reason,
        held_micros=held_micros,
        spent_micros=spent_micros,
        held_tokens=held_tokens,
        spent_tokens=spent_tokens,
    )


def freeze(tx: Tx, budget: str, why: str, now: datetime) -> None:
    if tx.count("budget_freeze", id=budget, why=why):
        journal(tx, now, None, None, "budget_frozen", why, budget=budget)


def freeze_if_passed(tx: Tx, budget: str, why: str, now: datetime) -> None:
    row = tx.run("budget", id=budget)[0]
    micros, tokens = row["spent_micros"] + row["held_micros"], row["spent_tokens"] + row["held_tokens"]
    over_micros = row["limit_micros"] is not None and micros > row["limit_micros"]
    if over_micros or (row["limit_tokens"] is not None and tokens > row["limit_tokens"]):
        freeze(tx, budget, why, now)


def journal(tx: Tx, now: datetime, job: str | None, shard: str | None, kind: str, reason: str, /, **facts: Any) -> None:
    tx.run("journal", at=to_us(now), job=job, shard=shard, kind=kind, reason=reason, facts=dumps(facts))


def dumps(value: Mapping[str, Any]) -> str:
    """In the order of the value: that of an output schema's fields is the order of its columns."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    raise LedgerError(f"our own mistake: {type(value).__name__} in a ledger text")
