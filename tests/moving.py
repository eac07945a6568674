"""A world with a second tier: what would be late on batches moves to rows that are answered one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from math import ceil
from typing import Any

from canwait import rescue
from canwait.drills.histories import PRICE
from canwait.engine import Engine, Pace
from canwait.price import cost_micros, worst_micros
from canwait.providers.fake import FakeBatch
from canwait.types import AtDeadline, Batch, Limits, MarkClass, Price, Rescue, ShardFile, Tier
from world import RUNS_S, End, Scripted, World, body_of, bounds, number_of

ADAPTER = "fake/standard"
STANDARD = replace(PRICE, tier=Tier.STANDARD, input=2 * PRICE.input, output=2 * PRICE.output)
HOUR_S = 3600


class OneByOne(Scripted):
    """Answers its batches one after the other, at a rate."""

    def __init__(self, world: Moving) -> None:
        super().__init__(world.clock, MarkClass.IDEMPOTENT, {}, ())
        self.account = "fake:account@disk"
        self.rate, self.max_rows = world.rate, world.max_rows
        self.free_at = world.clock.now()

    def limits(self, model: str) -> Limits:
        return replace(super().limits(model), max_rows=self.max_rows, poll_s=0.5, settle_s=1)

    def _create(self, shard: ShardFile, bodies: list[bytes]) -> FakeBatch:
        batch = super()._create(shard, bodies)
        self.free_at = max(self.free_at, self.clock.now()) + timedelta(seconds=len(bodies) / self.rate)
        batch.ends_at = self.free_at
        return batch

    def _seen(self, batch: FakeBatch) -> Batch:
        left = max(0.0, (batch.ends_at - self.clock.now()).total_seconds()) * self.rate
        return replace(super()._seen(batch), n_done=max(0, len(batch.bodies) - ceil(left)))


@dataclass
class Moving(World):
    """`rate`: rows a second that the other tier really answers; `rows_per_s`: what the job file says of it."""

    deadline_s: int = 4 * HOUR_S
    rate: float = 1.0
    rows_per_s: float | None = 1.0
    max_rows: int = 500
    moves: bool = True
    at_deadline: AtDeadline | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.net = OneByOne(self)
        self.state(self.moves)

    def state(self, moves: bool, at_deadline: AtDeadline | None = None, price: Price = STANDARD) -> None:
        """What the job file says by now, and the price list."""
        to = Rescue(ADAPTER, price, self.rows_per_s) if moves else None
        plan = self.ledger.job("job")["plan"]
        rescue.state(self.ledger, "job", plan, to, at_deadline or self.at_deadline, self.now)

    def caller(self, name: str) -> Engine:
        def provider(adapter: str) -> Any:
            return self.net if adapter == ADAPTER else self.front

        pace = Pace(poll_s=30, lease_s=10, heartbeat=False)
        return Engine(self.ledger, self.blobs, provider, self.clock, holder=name, pace=pace)

    @property
    def billed(self) -> int:
        batches = self.net.batches.values()
        return super().billed + sum(cost_micros([u for _, u in self.net.ran(b)], STANDARD) for b in batches)

    @property
    def executed(self) -> Counter[int]:
        ran = (body for batch in self.net.batches.values() for body, _ in self.net.ran(batch))
        return super().executed + Counter(map(number_of, ran))

    @property
    def moved(self) -> list[list[int]]:
        """The rows of each batch on the other tier, oldest first."""
        return [[number_of(body) for body in batch.bodies] for batch in self.net.batches.values()]

    @property
    def late_s(self) -> float:
        """How long after the deadline the last shard was settled; below 0: before it."""
        last = max(s["settled_us"] for s in self.ledger.query("shards", job="job") if s["settled_us"])
        return float(last - self.ledger.job("job")["deadline_us"]) / 1e6

    def redo(self, *numbers: int) -> int:
        """What these rows cost there at most."""
        return worst_micros([bounds(body_of(n)) for n in numbers], STANDARD)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [dict(e.facts) for e in self.ledger.events(count=10_000) if e.kind == kind]


SLOW = End(runs_s=20 * HOUR_S)
__all__ = ["ADAPTER", "HOUR_S", "RUNS_S", "SLOW", "STANDARD", "Decimal", "Moving"]
