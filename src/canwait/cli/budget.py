"""budget: show, set, book, thaw."""

from __future__ import annotations

from typing import Any

import click

from .. import views
from ..price import format_usd
from .face import Face, money, options, percent_option, printable, table, usd_option
from .jobs import opened, simulated


@click.group()
def budget() -> None:
    """Show, set, book to and thaw budgets.

    A budget is job:NAME (set by the job file), project:OWNER, month (this one and every later one) or month:2026-11.
    """


@budget.command()
@simulated
@options()
def show(face: Face, sim: bool) -> None:
    """Every budget: its limit, what is spent, held and free."""
    with opened(face, sim) as client:
        found = list(views.budgets(client.ledger))
    value = {"budgets": [_json(b) for b in found]}
    rows = [("BUDGET", "LIMIT", "SPENT", "HELD", "FREE", "")]
    rows += [
        (
            b.id,
            _or_none(b.limit_micros),
            money(b.spent_micros),
            money(b.held_micros),
            _or_none(b.free_micros),
            f"frozen: {printable(b.frozen)}" if b.frozen else "",
        )
        for b in found
    ]
    face.show("canwait.budgets/1", value, table(rows, right=frozenset({1, 2, 3, 4})) if found else "No budgets yet.")


def _or_none(micros: int | None) -> str:
    return "none" if micros is None else money(micros)


def _json(b: views.BudgetView) -> dict[str, Any]:
    def usd(micros: int | None) -> str | None:
        return None if micros is None else format_usd(micros)

    return {
        "id": b.id,
        "limit_usd": usd(b.limit_micros),
        "limit_tokens": b.limit_tokens,
        "spent_usd": usd(b.spent_micros),
        "held_usd": usd(b.held_micros),
        "free_usd": usd(b.free_micros),
        "spent_tokens": b.spent_tokens,
        "held_tokens": b.held_tokens,
        "free_tokens": b.free_tokens,
        "frozen": b.frozen,
    }


@budget.command(name="set")
@click.argument("name")
@click.option("--usd", help="Limit in USD.")
@click.option("--tokens", type=click.IntRange(min=0), help="Limit in tokens, input and output together.")
@click.option(
    "--tell-at", metavar="PERCENT", multiple=True, help="Tell when so much of --usd is used; 80% and 100% if left out."
)
@simulated
@options()
def set_(face: Face, name: str, usd: str | None, tokens: int | None, tell_at: tuple[str, ...], sim: bool) -> None:
    """Limit project:OWNER, month or month:YYYY-MM; without --usd and --tokens, lift the limit."""
    import re

    if not re.fullmatch(r"project:\S{1,100}|month(:\d{4}-\d{2})?", name):
        raise click.UsageError(f"{name!r} is not a budget to set: expected project:OWNER, month or month:YYYY-MM")
    micros = usd_option(usd, "--usd") if usd is not None else None
    if tell_at and micros is None:
        raise click.UsageError("--tell-at is of a limit in US dollars: expected --usd beside it")
    shares = [percent_option(share, "--tell-at") for share in tell_at]
    with opened(face, sim) as client:
        client.ledger.set_budget(name, micros=micros, tokens=tokens, tell_at=shares, now=client.clock.now())
        found = next(b for b in views.budgets(client.ledger) if b.id == name)
    face.show(
        "canwait.budget/1",
        _json(found),
        f"{name}: limit {_or_none(micros)}, {tokens if tokens is not None else 'no'} tokens limit",
    )


@budget.command()
@click.argument("job")
@click.option("--usd", required=True, help="What was spent.")
@click.option("--reason", required=True, help="On what: a store, staging, people's hours.")
@simulated
@options()
def book(face: Face, job: str, usd: str, reason: str, sim: bool) -> None:
    """Book a cost that is not a model's to a job, so that one budget holds the whole pipeline."""
    micros = usd_option(usd, "--usd")
    with opened(face, sim) as client:
        client.ledger.book(job, micros, reason, client.clock.now())
        found = next(b for b in views.budgets(client.ledger) if b.id == f"job:{job}")
    face.show("canwait.budget/1", _json(found), f"{money(micros)} booked to {job}: {reason}")


@budget.command()
@click.argument("name")
@simulated
@options()
def thaw(face: Face, name: str, sim: bool) -> None:
    """Let a frozen budget be used again, after looking at why it was frozen."""
    with opened(face, sim) as client:
        client.ledger.thaw(name, client.clock.now())
        found = next(b for b in views.budgets(client.ledger) if b.id == name)
    face.show("canwait.budget/1", _json(found), f"{name} may be used again")
