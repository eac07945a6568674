"""Batches that expire in part: finished rows are kept and paid, only the rest is sent again, and the bill is equal."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..simulator import Scenario
from . import child, crash
from .crash import Report
from .small import scratch_folder

SIZES = (8, 8, 8)


def run() -> dict[str, Any]:
    """Three shards of 8 rows, of which two batches expire with part of their rows done; at the simulator, offline."""
    with scratch_folder() as folder:
        report, n_sent = drill_expiry(f"sqlite:///{folder}/ledger.db", folder=folder)
    b = report.broken
    words = (
        f"{report.n_batches} batches, 2 of them expired in part: {n_sent} rows sent for {report.n_rows}, {b['paid twice']} paid "
        f"twice, {b['lost']} lost, {b['bill']} bills that differ"
    )
    return report.result("expiry", words)


def drill_expiry(url: str, *, folder: Path) -> tuple[Report, int]:
    """What was found, and how many rows were sent in all."""
    began, report = time.monotonic(), Report()
    scenario = Scenario(expiry=2, retention=timedelta(days=36_500))
    with crash.simulated(folder, scenario, seed=0) as (simulator, host):
        orders = replace(crash.orders_for(url, folder, host, "expiry", SIZES), settle_s=60)
        child.work(orders)
        crash.compare(report, url, orders, simulator)
        batches = simulator.batches()
        expired = {batch.id for batch in batches if batch.status == "expired"}
        done = {line.id: line.n_rows for line in simulator.bill()}
        rest = sum(batch.n_rows - done[batch.id] for batch in batches if batch.id in expired)
        n_sent = sum(batch.n_rows for batch in batches)
        if len(expired) != 2 or n_sent != sum(SIZES) + rest or not all(0 < done[batch] < SIZES[0] for batch in expired):
            report.fault("submissions", f"{n_sent} rows sent, {rest} unfinished in {len(expired)} expired batches")
    report.seconds = time.monotonic() - began
    return report, n_sent
