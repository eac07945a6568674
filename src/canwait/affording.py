"""Whether what a plan may cost fits the budgets above its job, before anything of it is opened. It reserves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from .entries import exceeded
from .errors import BudgetExceeded, HumanNeeded
from .ledger import Ledger
from .types import Job, Plan

_BLANK = dict.fromkeys(("held_micros", "spent_micros", "held_tokens", "spent_tokens"), 0)


def must_ask(ledger: Ledger, job: Job, plan: Plan, limit_micros: int | None, now: datetime) -> bool:
    """Whether a person must be asked after the canary, of a job that asks. `trim` sends as far as the money goes.

    `limit_micros`: of the job. Raises BudgetExceeded when the plan's worst case cannot be held; HumanNeeded where no canary
    can go first.
    """
    if job.budget.rows is not None and plan.n_new > job.budget.rows:
        why = f"plan {plan.id} asks for {plan.n_new} rows; the budget allows {job.budget.rows}"
        raise BudgetExceeded(why, budget=f"job:{job.name}")
    if job.budget.on_exceed == "trim":
        return False
    tokens, ask = plan.input_bound + plan.output_bound, False
    for row in _budgets(ledger, job, limit_micros, now):
        over, more = _is_passed(row, "micros", plan.worst_micros), _is_passed(row, "tokens", tokens)
        if over or more:
            error = exceeded(row, f"plan {plan.id} in the worst case", plan.worst_micros, tokens)
            if row["id"] != f"job:{job.name}" or job.budget.on_exceed != "ask":
                raise error
            canary = next((s for s in plan.shards if plan.canary and s.id == plan.canary.shard), None)
            if more or canary is None or _is_passed(row, "micros", canary.worst_micros):
                raise HumanNeeded(str(error), hint="approve a larger limit with `--budget USD`; nothing was sent")
            ask = True
    return ask


def _budgets(ledger: Ledger, job: Job, limit_micros: int | None, now: datetime) -> Iterator[dict[str, Any]]:
    """The job's, with the limits it is about to get; its project's; and the month's, with those that every month gets."""
    rows = {row["id"]: dict(row) for row in ledger.query("budgets")}
    own, month = f"job:{job.name}", f"month:{now:%Y-%m}"
    limits = {"limit_micros": limit_micros, "limit_tokens": job.budget.tokens}
    yield {**rows.get(own, {**_BLANK, "frozen": None}), "id": own, **limits}
    if (project := f"project:{job.owner}") in rows:
        yield rows[project]
    every = rows.get("month", {"limit_micros": None, "limit_tokens": None})
    yield rows.get(month, {**every, **_BLANK, "id": month, "frozen": None})


def _is_passed(row: dict[str, Any], unit: str, needed: int) -> bool:
    limit = row[f"limit_{unit}"]
    return limit is not None and row[f"spent_{unit}"] + row[f"held_{unit}"] + needed > limit
