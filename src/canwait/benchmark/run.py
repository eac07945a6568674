"""A benchmark through the engine: every arm and wave is a job of its own, and they run side by side, under one budget.

Nothing here submits, polls or holds money: the engine's one loop runs the first open job and ticks the others meanwhile.
So a benchmark that is interrupted goes on where it was, and a row that is paid is never paid twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from .. import views
from ..clock import from_us
from ..compare import surely_exceeds
from ..errors import BudgetExceeded, HumanNeeded
from ..price import format_usd
from ..sources.frames import from_frame
from ..types import Job, JobState, Plan
from .plan import Arm, Benchmark, Run, runs

if TYPE_CHECKING:
    import pyarrow as pa

    from ..client import Client, JobHandle

_LOOK = timedelta(seconds=1)  # between looks at what fails
_FEW = 10  # rows that have ended: fewer stop nothing


@dataclass(frozen=True, slots=True)
class Started:
    """One arm in one wave, and the job that it is."""

    run: Run
    handle: JobHandle


def handles(client: Client, benchmark: Benchmark, job: Job, table: pa.Table) -> list[Started]:
    """Every job of a benchmark, wave by wave. Nothing is opened."""
    return [Started(run, client.job(run.job, source=from_frame(run.table))) for run in runs(benchmark, job, table)]


def plans(started: Sequence[Started]) -> dict[Arm, list[Plan]]:
    """What each arm would cost, by the planner that a job has. Never spends."""
    found: dict[Arm, list[Plan]] = {}
    for one in started:
        found.setdefault(one.run.arm, []).append(one.handle.plan().value)
    return found


def run(
    client: Client,
    benchmark: Benchmark,
    job: Job,
    table: pa.Table,
    *,
    approve: Callable[[int, int], bool] | None = None,
    until: datetime | None = None,
    watch: Callable[[], None] = lambda: None,
) -> list[views.Figures]:
    """Run a benchmark to its end, or go on with it; the figures of every job that was started.

    approve: asked once, with the worst case in micros and the rows that would be sent, before money is held. Stops where
    the plan says so: an arm that fails, what takes too long; `until` stops watching only. Raises BudgetExceeded before
    anything is sent, SourceError for bad rows, KeyRefused.
    """
    started = handles(client, benchmark, job, table)
    _afford(client, benchmark, started, approve)
    watcher = _Watcher(client, benchmark, started, watch)
    for one in started:
        while not watcher.due(one) and (until is None or client.clock.now() < until):
            watcher.beat()
            client.clock.sleep(min(1.0, client.settings.pace.poll_s or 1.0))
        if not watcher.due(one) or one.run.arm in watcher.stopped:
            continue
        watcher.open()
        last = watcher.ends(one)
        one.handle.run(until=last if until is None else min(until, last), watch=watcher.beat)
    return list(figures(client, started))


def figures(client: Client, started: Sequence[Started]) -> Iterator[views.Figures]:
    """Of every job that has been opened."""
    known = set(views.jobs(client.ledger))
    for one in started:
        if one.handle.name in known:
            yield one.handle.figures()


def counted(found: Sequence[views.Figures]) -> tuple[int, int, int]:
    """Rows with an answer, rows that failed, and rows that ended without either: cancelled, or never returned. The last say
    nothing of an arm."""
    ok, failed = sum(f.ok for f in found), sum(f.failed - f.cancelled for f in found)
    return ok, failed, sum(f.rows - f.pending for f in found) - ok - failed


def fails_surely(found: Sequence[views.Figures], share: Decimal) -> bool:
    """Whether surely more than this share of an arm's rows fails, at every look since its first row."""
    ok, failed, _ = counted(found)
    return ok + failed >= _FEW and surely_exceeds(failed, ok + failed, float(share))


def _afford(
    client: Client, benchmark: Benchmark, started: Sequence[Started], approve: Callable[[int, int], bool] | None
) -> None:
    """Set the budget that all arms share, if the worst case of what is not open yet fits into it."""
    new = [plan for of_arm in plans(started).values() for plan in of_arm]
    worst, n_new = sum(plan.worst_micros for plan in new), sum(plan.n_new for plan in new)
    name, limit = f"project:{benchmark.owner}", benchmark.budget_micros
    held = next((b for b in views.budgets(client.ledger) if b.id == name), None)
    free = limit - (held.spent_micros + held.held_micros if held else 0)
    if worst > free:
        raise BudgetExceeded(
            what=f"benchmark {benchmark.name} in the worst case",
            needed=format_usd(worst),
            free=format_usd(max(0, free)),
            limit=format_usd(limit),
            budget=name,
            hint="raise the budget, or take fewer rows or arms; nothing was sent",
        )
    if n_new and approve is not None and not approve(worst, n_new):
        raise HumanNeeded(f"Benchmark {benchmark.name} was not approved; nothing was sent.")
    if held is None or held.limit_micros != limit:
        client.ledger.set_budget(name, micros=limit, tokens=None, now=client.clock.now())


class _Watcher:
    """What goes on while one job of a benchmark is run: the others move too, waves begin, and failing arms are stopped."""

    def __init__(
        self, client: Client, benchmark: Benchmark, started: Sequence[Started], watch: Callable[[], None]
    ) -> None:
        self._client, self._benchmark, self._started, self._watch = client, benchmark, started, watch
        self._waiting = list(started)
        self._open: list[Started] = []
        self._began = self._look_at = client.clock.now()
        self.stopped: set[Arm] = set()
        known = set(views.jobs(client.ledger))
        if earlier := [s.handle.name for s in started if s.handle.name in known and s.run.wave == 1]:
            self._began = min(from_us(client.ledger.job(name)["created_us"]) for name in earlier)
        for arm in benchmark.arms:  # an arm that was stopped stays so
            self._stop_if_failing(arm)

    def due(self, one: Started) -> bool:
        """Whether its wave has begun. A rehearsal waits for nothing: its hours are not the provider's."""
        return self._client.settings.simulated or self._client.clock.now() >= self._begins(one)

    def ends(self, one: Started) -> datetime:
        """When nobody waits for it any more."""
        return self._begins(one) + timedelta(seconds=self._benchmark.stop_after_s)

    def _begins(self, one: Started) -> datetime:
        return self._began + timedelta(seconds=(one.run.wave - 1) * self._benchmark.every_s)

    def open(self) -> None:
        """Open every job whose wave has begun."""
        for one in [one for one in self._waiting if self.due(one)]:
            self._waiting.remove(one)
            if one.run.arm not in self.stopped:
                one.handle.open()
                self._open.append(one)

    def beat(self) -> None:
        """Once in a while."""
        self.open()
        for one in self._open:
            if self._client.clock.now() < self.ends(one):
                self._client.engine.tick(one.handle.name)
        now = self._client.clock.now()
        if now >= self._look_at:  # a look reads every figure
            self._look_at = now + _LOOK
            for arm in self._benchmark.arms:
                self._stop_if_failing(arm)
        self._watch()

    def _stop_if_failing(self, arm: Arm) -> None:
        if arm in self.stopped:
            return
        found = list(figures(self._client, [one for one in self._started if one.run.arm == arm]))
        if fails_surely(found, self._benchmark.stop_failed):
            self.stopped.add(arm)
            for f in found:
                if not f.finished and f.state is not JobState.CANCELLED:
                    self._client.cancel(f.job)
