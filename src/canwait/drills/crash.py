"""A real process is killed by SIGKILL at every ledger write and around every effect, and run again until its job ends.

Each point has a job and a simulated provider of its own. The simulator lives in the drill's process, so it survives, and
its bill and its count of executed requests are the witness that the ledger is compared with.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..db import connect
from ..ledger import Ledger
from ..price import worst_micros
from ..prices import lookup
from ..simulator import ScaledClock, Scenario, Simulator
from ..types import Outcome, Terms, Tier
from . import child
from .child import Orders
from .small import chat_body, chat_bounds, outcomes, scratch_folder

MODEL = "gpt-4o-mini"
SPEED = 1e6  # a day of the provider's passes in 86 ms
# Two shards; the first batch's reply is lost and it expires with part of its rows done, so a third is sent.
SIZES = (3, 2)
N_BATCHES = 3
BAD_DAY = Scenario(lost_create_reply=1, expiry=1, retention=timedelta(days=36_500))

_PACE = {"poll_s": 0.1, "lease_s": 0.5, "settle_s": 3.0}
# Children are forked by a server that has imported everything and holds no thread: 20 ms each instead of a second.
# The last two are imported late by httpx2 and, where it is installed, by pyarrow's first array.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([child.__name__, "httpcore2", "pandas"])


@dataclass(slots=True)
class Report:
    """What a drill found. Every count of `broken` should be 0."""

    n_points: int = 0
    n_kills: int = 0  # processes that died of SIGKILL
    n_rows: int = 0
    n_batches: int = 0
    seconds: float = 0.0
    broken: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fault(self, kind: str, what: str) -> None:
        self.broken[kind] += 1
        self.examples = [*self.examples, f"{kind}: {what}"][:10]

    def add(self, other: Report) -> None:
        self.n_points += other.n_points
        self.n_kills += other.n_kills
        self.n_rows += other.n_rows
        self.n_batches += other.n_batches
        self.broken += other.broken
        self.examples = [*self.examples, *other.examples][:10]

    def result(self, name: str, words: str) -> dict[str, Any]:
        """JSON-ready, for the command line."""
        counts = {kind.replace(" ", "_"): self.broken[kind] for kind in KINDS}
        return {
            "name": name, "ok": not self.broken.total(),
            "counts": {"points": self.n_points, "kills": self.n_kills, "rows": self.n_rows, "batches": self.n_batches, **counts},
            "seconds": round(self.seconds, 1), "words": words, "examples": self.examples,
        }  # fmt: skip


KINDS = ("paid twice", "lost", "over cap", "bill", "books", "submissions", "not ended")


def run(url: str | None = None) -> dict[str, Any]:
    """The whole drill, in a temporary folder; `url`: the ledger, else an SQLite file there."""
    with scratch_folder() as folder:
        report = drill_crash(url or f"sqlite:///{folder}/ledger.db", folder=folder)
    b = report.broken
    words = (
        f"{report.n_kills} processes killed at {report.n_points} points: {b['paid twice']} rows paid twice, {b['lost']} lost, "
        f"{b['over cap']} times over the cap, {b['bill']} bills that differ"
    )
    return report.result("crash", words)


def drill_crash(url: str, *, folder: Path, sample: int | None = None, seed: int = 0, workers: int = 6) -> Report:
    """Kill one process at each point, or at a seeded sample of them; the points are what an undisturbed run passes."""
    began, report = time.monotonic(), Report()
    trace = folder / "points"
    report.add(_trial(url, folder / "undisturbed", "undisturbed", trace=trace))
    points = list(dict.fromkeys(trace.read_text().splitlines()))
    if sample is not None and sample < len(points):
        points = random.Random(seed).sample(points, sample)
    with ThreadPoolExecutor(workers) as pool:
        trials = [pool.submit(_trial, url, folder / str(n), f"crash-{n}", kill_at=p) for n, p in enumerate(points)]
        for trial in trials:
            report.add(trial.result())
    report.seconds = time.monotonic() - began
    return report


def drill_race(
    url: str, *, folder: Path, n_processes: int = 8, sizes: Sequence[int] = (3,) * 12, kills: int = 4, seed: int = 0
) -> Report:
    """Processes advance one job together, against a provider that fails in every way, while some of them are killed.

    The budget holds about half of the job at a time, so reservations are refused all along.
    """
    began, report, rng = time.monotonic(), Report(), random.Random(seed)
    scenario = replace(
        BAD_DAY, lost_create_reply=0.2, create_5xx_live=0.1, create_429=0.1, create_5xx_no_effect=0.1, expiry=0.3, poll_5xx=0.1,
        results_5xx=0.1, results_cut=0.1, row_500=0.1, listing_lag=timedelta(seconds=0.5 * SPEED), retry_after=timedelta(0),
    )  # fmt: skip
    with simulated(folder, scenario, seed) as (simulator, host):
        orders = orders_for(url, folder, host, "race", sizes, most_s=120)
        worst = worst_micros([chat_bounds(body) for shard in orders.shards for body in shard], orders.terms.price)
        orders = replace(orders, micros=worst * 3 // 2, terms=replace(orders.terms, attempts=30))
        running = [_start(orders) for _ in range(n_processes)]
        for _ in range(kills):
            time.sleep(rng.uniform(0.3, 0.8))
            victim = rng.randrange(n_processes)
            running[victim].kill()
            running[victim].join()
            report.n_kills += running[victim].exitcode == -signal.SIGKILL
            running[victim] = _start(orders)
        for process in running:
            process.join()
            if process.exitcode != 0:
                report.fault("not ended", f"a process left with {process.exitcode}")
        compare(report, url, orders, simulator)
    report.seconds = time.monotonic() - began
    return report


def _trial(url: str, folder: Path, job: str, *, kill_at: str | None = None, trace: Path | None = None) -> Report:
    """One job, whose first process dies at a point; others follow until one has ended it."""
    report = Report(n_points=kill_at is not None)
    with simulated(folder, BAD_DAY, 1) as (simulator, host):
        orders = orders_for(url, folder, host, job, SIZES)
        exits = [_wait(replace(orders, kill_at=kill_at, trace=trace))]
        while exits[-1] != 0 and len(exits) < 4:
            exits.append(_wait(orders))
        report.n_kills = exits.count(-signal.SIGKILL)
        if exits[-1] != 0:
            report.fault("not ended", f"{kill_at}: processes left with {exits}")
        compare(report, url, orders, simulator, at=kill_at)
        if len(simulator.batches()) != N_BATCHES:
            report.fault("submissions", f"{kill_at}: {len(simulator.batches())} batches, not {N_BATCHES}")
    return report


def compare(report: Report, url: str, orders: Orders, simulator: Simulator, at: str | None = None) -> None:
    """The ledger against what the provider executed and billed."""
    ledger = Ledger(connect(url))
    executed = simulator.executed()
    report.n_batches += len(simulator.batches())
    for body, outcome in zip([b for shard in orders.shards for b in shard], outcomes(ledger, orders.job), strict=True):
        n = executed.get(hashlib.sha256(body).hexdigest(), 0)
        report.n_rows += 1
        if n > 1:
            report.fault("paid twice", f"{at}: a row ran {n} times")
        if outcome is not Outcome.OK:
            report.fault("lost", f"{at}: a row that ran {n} times is {outcome.name}")
    money = {name: int(value) for name, value in ledger.query("job_money", job=orders.job)[0].items()}
    if money["confirmed_micros"] != simulator.bill_micros() or money["unknown_micros"] or money["reserved_micros"]:
        report.fault("bill", f"{at}: billed {simulator.bill_micros()}, the ledger says {money}")
    budget = ledger.query("budget", id=f"job:{orders.job}")[0]
    if budget["frozen"] or budget["spent_micros"] + budget["held_micros"] > budget["limit_micros"]:
        report.fault("over cap", f"{at}: {dict(budget)}")
    for problem in ledger.check():
        report.fault("books", f"{at}: {problem}")
    ledger.close()


@contextmanager
def simulated(folder: Path, scenario: Scenario, seed: int) -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator(seed=seed, clock=ScaledClock(SPEED), scenario=scenario, folder=folder / "provider")
    try:
        with simulator.serve() as host:
            yield simulator, host
    finally:
        simulator.close()


def orders_for(url: str, folder: Path, host: str, job: str, sizes: Sequence[int], **facts: Any) -> Orders:
    price = lookup("openai", MODEL, Tier.BATCH, today=datetime.now(UTC).date())
    terms = Terms("openai", MODEL, "/v1/chat/completions", Tier.BATCH, price, None, 3, "id", True)
    texts = [[f"{job}: message {i}-{line}" for line in range(size)] for i, size in enumerate(sizes)]
    shards = [[chat_body(MODEL, text, 20) for text in shard] for shard in texts]
    worst = worst_micros([chat_bounds(body) for shard in shards for body in shard], price)
    pace: Mapping[str, Any] = {**_PACE, **facts}
    return Orders(url, folder / "blobs", host, job, shards, terms, micros=2 * worst, **pace)


def _start(orders: Orders) -> Any:
    process = _FORKS.Process(target=child.main, args=(orders,), daemon=True)
    process.start()
    return process


def _wait(orders: Orders) -> int:
    """A process's exit code; minus the signal it died of."""
    process = _start(orders)
    process.join()
    return int(process.exitcode)
