"""What the ledger's tests share: plans without files, limits without a provider, and a witness that reads the database."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from canwait.codec import terms_to_json
from canwait.drills.histories import TERMS
from canwait.ledger import Ledger, NewShard, OpenPlan, Settlement
from canwait.types import Batch, BatchStatus, BudgetSpec, Limits, MarkClass, Outcome, Shard, ShardState

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LIMITS = Limits(1000, 10**8, 10**6, None, 86_400, 120, 60, "test")
TABLES = ("budget", "entry", "job", "plan", "plan_shard", "shard", "intent", "journal")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def new_shard(
    name: str, *, n_lines: int = 3, worst: int = 100, account: str = "acct", root: str | None = None, attempt: int = 1
) -> NewShard:
    """A shard of `n_lines` whose tokens are bounded by 20 in and 10 out a line."""
    return NewShard(name, root or name, attempt, "fake", account, n_lines, f"requests of {name}", f"manifest of {name}",
                    20 * n_lines, 10 * n_lines, worst, NOW)  # fmt: skip


def plan_of(
    *shards: NewShard,
    job: str = "job",
    digest: str = "digest",
    micros: int | None = 1000,
    tokens: int | None = None,
    owner: str | None = "team",
    revision: int = 0,
    deadline: datetime = NOW + timedelta(days=1),
) -> OpenPlan:
    answering = [(s.id, array("I", [1] * s.n_lines).tobytes()) for s in shards]
    budget = BudgetSpec(micros, tokens, None)
    return OpenPlan(
        job, digest, {"id": digest}, terms_to_json(TERMS), owner, budget, deadline, shards, answering, revision
    )


def claimed(ledger: Ledger, *, job: str = "job", at: datetime = NOW, lease_s: float = 10) -> Shard:
    shard = ledger.claim("caller", at, lease_s, job)
    assert shard is not None
    return shard


def reserved(ledger: Ledger, *, mark: MarkClass = MarkClass.FINDABLE, at: datetime = NOW) -> Shard:
    """A due shard with its money held, claimed again."""
    shard = claimed(ledger, at=at)
    ledger.begin_submit(shard, LIMITS, mark, at)
    return ledger.claim_one(shard.id, "caller", at, 10)


def sent(ledger: Ledger, *, batch: str = "b1", at: datetime = NOW) -> Shard:
    """A due shard with a batch at the provider, claimed again."""
    shard = reserved(ledger, at=at)
    ledger.begin_try(shard, "acct", 10, at)
    ledger.submitted(shard, running(batch), at, "accepted", at)
    return ledger.claim_one(shard.id, "caller", at, 10)


def over(ledger: Ledger, *, batch: str = "b1", at: datetime = NOW) -> Shard:
    """A due shard whose batch has ended, claimed again."""
    shard = sent(ledger, batch=batch, at=at)
    ledger.ended(shard, running(batch, BatchStatus.COMPLETED), at)
    return ledger.claim_one(shard.id, "caller", at, 10)


def running(batch: str = "b1", status: BatchStatus = BatchStatus.RUNNING) -> Batch:
    return Batch(batch, status, NOW)


def settlement(
    outcomes: Sequence[Outcome] = (Outcome.OK,) * 3,
    *,
    confirmed: int = 40,
    unknown: int = 0,
    tokens: int = 30,
    **facts: Any,
) -> Settlement:
    known = dict(outcomes=dict(enumerate(outcomes)), results_blob="results", confirmed_micros=confirmed, wasted_micros=0,
                 unknown_micros=unknown, input_tokens=tokens, output_tokens=0, unknown_tokens=0, retries=(), pause=None,
                 reason="batch completed", facts={})  # fmt: skip
    return Settlement(**{**known, **facts})


def money(ledger: Ledger, budget: str = "job:job") -> tuple[int, int]:
    """(held, spent) micros of a budget."""
    row = ledger.query("budget", id=budget)[0]
    return row["held_micros"], row["spent_micros"]


def state(ledger: Ledger, shard: str | Shard) -> ShardState:
    return ledger.shard(shard if isinstance(shard, str) else shard.id).state


@contextmanager
def raw(url: str) -> Iterator[Any]:
    """A connection past the code under test; what it did is committed at the end."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"))
    else:
        connection = psycopg.connect(url)
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()


def dump(url: str) -> dict[str, list[Any]]:
    """Every row of the ledger."""
    with raw(url) as connection:
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in TABLES}
