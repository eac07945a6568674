"""The process that a drill kills: it opens a small job, runs it to its end, and dies by SIGKILL where it is told to."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext

import httpx2

from ..blobs import Blobs, BlobWriter
from ..clock import SystemClock
from ..db import Fault, connect
from ..engine import Engine, Pace
from ..ledger import Ledger
from ..providers import Guard, Provider
from ..providers.openai import OpenAI
from ..types import Answer, Batch, Limits, Plain, ShardFile, Terms
from .small import SmallJob, chat_bounds, plan_small


@dataclass(frozen=True, slots=True)
class Orders:
    """What one process is to do."""

    ledger: str  # URL
    blobs: Path
    host: str  # where the simulator serves
    job: str
    shards: Sequence[Sequence[bytes]]
    terms: Terms
    micros: int  # the job's budget
    settle_s: float
    poll_s: float
    lease_s: float
    most_s: float = 60.0  # then it stops, and the job goes on
    kill_at: str | None = None  # the point to die at: "before submitted #2"
    trace: Path | None = None  # the points passed are appended, one a line


def main(orders: Orders) -> None:
    """Leaves with exit code 0 when the job has ended, 9 when time is up."""
    raise SystemExit(0 if work(orders) else 9)


def work(orders: Orders) -> bool:
    """Run the job, or go on with it; whether it has ended."""
    points = Points(orders)
    clock = SystemClock()
    ledger = Ledger(connect(orders.ledger, fault=points))
    blobs = MortalBlobs(orders.blobs, points)
    # As the adapter's own, but for the certificates, which take 60 ms to load.
    once = httpx2.Limits(max_keepalive_connections=0)
    plain = httpx2.HTTPTransport(verify=SSLContext(PROTOCOL_TLS_CLIENT), limits=once)
    provider = Mortal(OpenAI("drill", f"{orders.host}/v1", settle_s=orders.settle_s, transport=plain), points)
    job = SmallJob(orders.job, orders.shards, orders.terms, chat_bounds, provider.account, micros=orders.micros)
    ledger.open_plan(plan_small(blobs, job, clock.now()), clock.now())
    pace = Pace(poll_s=orders.poll_s, lease_s=orders.lease_s)
    engine = Engine(ledger, blobs, lambda name: provider, clock, holder=str(os.getpid()), pace=pace)
    ended = engine.run(orders.job, until=clock.now() + timedelta(seconds=orders.most_s))
    ledger.close()
    return ended


class Points:
    """Every place where the process may die, by name and how often it was passed."""

    def __init__(self, orders: Orders) -> None:
        self._kill_at, self._trace = orders.kill_at, orders.trace
        self._passed: Counter[str] = Counter()

    def __call__(self, where: str) -> None:
        if where.endswith(" renew"):
            return  # the lease's own thread passes here, whenever it does
        self._passed[where] += 1
        point = f"{where} #{self._passed[where]}"
        if self._trace is not None:
            with self._trace.open("a") as trace:
                trace.write(point + "\n")
        if point == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalBlobs(Blobs):
    """Blobs whose writer may die when every byte is written and nothing is renamed, and right after the rename."""

    def __init__(self, folder: Path, point: Fault) -> None:
        super().__init__(folder)
        self._point = point

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        with super().writer() as out:
            yield out
            self._point("before blob")
        self._point("after blob")

    def adopt(self, path: Path) -> str:
        self._point("before adopt")
        name = super().adopt(path)
        self._point("after adopt")
        return name


class Mortal:
    """A provider around which the caller may die: before a request is made, amid a download, after the reply came."""

    def __init__(self, provider: Provider, point: Fault) -> None:
        self.name, self.account, self.mark = provider.name, provider.account, provider.mark
        self._provider, self._point = provider, point

    def limits(self, model: str) -> Limits:
        return self._provider.limits(model)

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return self._provider.encode(custom_id, body, endpoint)

    def decode(self, line: bytes) -> Answer:
        return self._provider.decode(line)

    def plain(self, line: bytes) -> Plain | None:
        return self._provider.plain(line)

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        def then() -> None:
            guard()
            self._point("before create")

        batch = self._provider.submit(shard, then)
        self._point("after create")
        return batch

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        found = self._provider.find(shard)
        self._point("after find")
        return found

    def poll(self, batch_id: str) -> Batch:
        batch = self._provider.poll(batch_id)
        self._point("after poll")
        return batch

    def results(self, batch: Batch) -> Iterator[bytes]:
        self._point("before results")
        for piece in self._provider.results(batch):
            yield piece
            self._point("amid results")
        self._point("after results")

    def cancel(self, batch_id: str) -> None:
        self._point("before cancel")
        self._provider.cancel(batch_id)
        self._point("after cancel")
