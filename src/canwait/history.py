"""What the ledger saw: how long batches took, how fast rows went one by one. What that tells is for turnaround.py and
schedule.py."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from .clock import to_us
from .db import Row
from .ledger import Ledger
from .turnaround import Past, Progress, Seen
from .types import BatchStatus, Tier

MOST = 400  # of each adapter that have ended, and that are out: ten windows of turnaround.py
RUN_ROWS = 200  # answered one by one: fewer at a time show how long a row takes, and not how many go at once


def past(ledger: Ledger, now: datetime) -> list[Past]:
    """The last batches of the whole ledger, in the order they were sent.

    One that still runs, expired or was cancelled was only watched for so long. One that failed as a whole was refused, and
    tells nothing of how long work takes.
    """
    terms: dict[tuple[str, str], dict[str, Any]] = {}
    found = []
    for adapter in ledger.query("adapters"):
        names = {"adapter": adapter["provider"], "count": MOST}
        for row in ledger.query("sent", ended=1, **names) + ledger.query("sent", ended=0, **names):
            status = _status(row)
            if status is not BatchStatus.FAILED:
                if (plan := (row["job"], row["plan"])) not in terms:
                    terms[plan] = json.loads(row["terms"])
                found.append((row["submitted_us"], _past(row, terms[plan], status, now)))
    return [batch for _, batch in sorted(found, key=lambda each: each[0])]


def _past(row: Row, terms: dict[str, Any], status: BatchStatus, now: datetime) -> Past:
    provider, _, tier = row["provider"].partition("/")
    elapsed_s = ((row["ended_us"] or to_us(now)) - row["submitted_us"]) / 1e6
    ended = row["ended_us"] is not None and status is BatchStatus.COMPLETED
    counted = Progress(*json.loads(row["progress"])) if row["progress"] else None
    looked_s = ((row["looked_us"] or row["submitted_us"]) - row["submitted_us"]) / 1e6  # nobody saw how it went on
    gap = counted.longest(looked_s, ended=ended) if counted else None
    return Past(
        provider, terms["model"], Tier(tier or terms["tier"]), row["n_lines"], Seen(max(0.0, elapsed_s), ended), gap
    )


def _status(row: Row) -> BatchStatus:
    return BatchStatus(json.loads(row["batch"])["status"]) if row["batch"] else BatchStatus.RUNNING


def rates(ledger: Ledger, adapter: str, model: str) -> list[float]:
    """Rows per second of past runs on an adapter that answers row by row, oldest first.

    Shards of one model that were out together on one account are one run, whatever jobs they are of, for they share what the
    account allows; those of two accounts are two, for together they show what neither allows. One of few rows is left out.
    """
    runs: list[list[int]] = []  # began, ended (us), rows
    latest: dict[str, list[int]] = {}  # of each account
    for row in reversed(ledger.query("sent", adapter=adapter, ended=1, count=MOST)):
        if _status(row) is not BatchStatus.COMPLETED or json.loads(row["terms"])["model"] != model:
            continue
        run = latest.get(row["account"])
        if run is None or row["submitted_us"] > run[1]:
            run = latest[row["account"]] = [row["submitted_us"], row["ended_us"], 0]
            runs.append(run)
        run[1] = max(run[1], row["ended_us"])
        run[2] += row["n_lines"]
    return [n * 1e6 / max(1, ended - began) for began, ended, n in runs if n >= RUN_ROWS]
