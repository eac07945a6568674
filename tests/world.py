"""What the engine's tests share: a provider in memory whose rows, ends and faults a test writes down, and time that jumps."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from canwait import landing
from canwait.blobs import Blobs
from canwait.db import Fault as DbFault
from canwait.db import connect
from canwait.drills.histories import PRICE, TERMS, VirtualClock
from canwait.drills.small import SmallJob, outcomes, plan_small
from canwait.engine import Engine, Pace
from canwait.errors import CannotTell
from canwait.ledger import Ledger
from canwait.price import cost_micros, worst_micros
from canwait.providers.fake import FakeBatch, FakeProvider
from canwait.providers.wrap import Fault, Faulty
from canwait.types import Answer, Batch, BatchStatus, MarkClass, Outcome, Shard, ShardFile, Usage

RUNS_S = 600  # a batch runs this long
BUDGETS = ("job:job", "project:team", "month:2026-11")


class Dead(BaseException):
    """A process was killed here."""


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of a row in one batch."""

    outcome: Outcome = Outcome.OK
    cause: str | None = None
    billed: bool = True
    lines: int = 1  # how often it is returned
    text: str | None = "an answer"
    other_text: str | None = None  # of a second line
    usage_stated: bool = True


OK = Row()
EXPIRED = Row(Outcome.EXPIRED, "expired", billed=False)
MISSING = Row(lines=0, billed=False)
LOST = Row(lines=0)  # ran, is billed, and was never returned


def failed(cause: str, *, billed: bool = False) -> Row:
    return Row(Outcome.FAILED, cause, billed=billed, text=None)


@dataclass(frozen=True, slots=True)
class End:
    """How one batch ends."""

    status: BatchStatus = BatchStatus.COMPLETED
    code: str | None = None
    error: str | None = None
    has_output: bool = True
    states_usage: bool = True
    runs_s: float = RUNS_S


class Scripted(FakeProvider):
    """The n-th time a row runs it meets the n-th `Row` written down for it; the n-th batch ends as the n-th `End`."""

    def __init__(
        self, clock: VirtualClock, mark: MarkClass, rows: Mapping[int, Sequence[Row]], ends: Sequence[End]
    ) -> None:
        super().__init__(clock, random.Random(0), mark=mark)
        self.coming = {number: list(script) for number, script in rows.items()}
        self.ends = list(ends)
        self.rows: dict[str, list[Row]] = {}
        self.ending: dict[str, End] = {}
        self.extra: list[bytes] = []  # raw lines that come with every output
        self.upload_s = 0.0  # how long an upload takes
        self.travels_s = 0.0  # how long a create takes to land after it was sent
        self.lag_s = 0.0  # a batch is listed this much later
        self.unread = 0  # so many listings cannot be read
        self.listing_s = 0.0  # how long a listing travels after it was taken
        self.factor = 1  # what is billed of a batch created now, times this
        self.factors: dict[bytes, int] = {}
        self.cancel_s = 60.0  # a cancel takes so long
        self.deaf = 0  # so many cancels are answered and have no effect
        self.finishes = 0.5  # of the rows of a batch that is cancelled, so many are answered first
        self.seen: Counter[str] = Counter()  # calls by verb

    def submit(self, shard: ShardFile, guard: Any) -> Batch:
        self.seen["submit"] += 1
        self.clock.sleep(self.upload_s)

        def then() -> None:
            guard()
            self.clock.sleep(self.travels_s)
            if self.travels_s:
                self.during_create()

        return super().submit(shard, then)

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        self.seen["find"] += 1
        if self.unread:
            self.unread -= 1
            raise CannotTell("the listing answered 500")
        found = super().find(shard)
        self.clock.sleep(self.listing_s)
        return found

    def poll(self, batch_id: str) -> Batch:
        self.seen["poll"] += 1
        return super().poll(batch_id)

    def cancel(self, batch_id: str) -> None:
        self.seen["cancel"] += 1
        batch = self._batch(batch_id)
        self.deaf -= 1
        if self.deaf < 0 and not self._seen(batch).status.ended and batch.cancelled_at is None:
            batch.cancelled_at = self.clock.now()
            batch.ends_at = self.clock.now() + timedelta(seconds=self.cancel_s)
            done = int(len(batch.bodies) * self.finishes)
            self.rows[batch.id][done:] = [Row(Outcome.CANCELLED, "cancelled", billed=False)] * (
                len(batch.bodies) - done
            )
            self.ending[batch.id] = End(BatchStatus.CANCELLED)

    def results(self, batch: Batch) -> Iterator[bytes]:
        self.seen["results"] += 1
        made = self._batch(batch.id)
        for custom_id, body, row in zip(made.custom_ids, made.bodies, self.rows[batch.id], strict=True):
            for n in range(row.lines):
                usage = self.bill_of(body) if row.billed and row.usage_stated else None
                text = row.other_text if n and row.other_text else row.text
                yield _line(custom_id, row, usage, text)
        for line in self.extra:
            yield line + b"\n"

    def decode(self, line: bytes) -> Answer:
        return replace(super().decode(line), finish_reason="stop")

    def ran(self, batch: FakeBatch) -> list[tuple[bytes, Usage]]:
        rows = zip(batch.bodies, self.rows[batch.id], strict=True)
        return [(body, self.bill_of(body)) for body, row in rows if row.billed]

    def bill_of(self, body: bytes) -> Usage:
        usage = self.usage(body)
        factor = self.factors[body]
        return Usage(usage.input_tokens * factor, usage.output_tokens * factor)

    def _create(self, shard: ShardFile, bodies: list[bytes]) -> FakeBatch:
        batch = super()._create(shard, bodies)
        end = self.ends.pop(0) if self.ends else End()
        batch.ends_at = batch.created_at + timedelta(seconds=end.runs_s)
        batch.listed_at = batch.created_at + timedelta(seconds=self.lag_s)
        self.ending[batch.id] = end
        scripts = [self.coming.get(number_of(body)) for body in bodies]
        self.rows[batch.id] = [script.pop(0) if script else OK for script in scripts]
        self.factors |= dict.fromkeys(bodies, self.factor)
        if end.status is BatchStatus.FAILED:
            self.rows[batch.id] = [MISSING] * len(bodies)
        return batch

    def _seen(self, batch: FakeBatch) -> Batch:
        end = self.ending[batch.id]
        if self.clock.now() < batch.ends_at:
            return Batch(
                batch.id, BatchStatus.CANCELLING if batch.cancelled_at else BatchStatus.RUNNING, batch.created_at
            )
        usage = sum((usage for _, usage in self.ran(batch)), Usage(0, 0)) if end.states_usage else None
        outputs = ("output",) if end.has_output and end.status is not BatchStatus.FAILED else ()
        return Batch(
            batch.id, end.status, batch.created_at, usage=usage, outputs=outputs, error_code=end.code, error=end.error
        )


def _line(custom_id: str, row: Row, usage: Usage | None, text: str | None) -> bytes:
    return (
        json.dumps(
            {"custom_id": custom_id, "outcome": int(row.outcome), "cause": row.cause, "text": text,
             "usage": [usage.input_tokens, usage.output_tokens] if usage else None}
        ).encode() + b"\n"
    )  # fmt: skip


def body_of(number: int) -> bytes:
    return json.dumps({"row": number, "text": "y" * 30}).encode()


def number_of(body: bytes) -> int:
    return int(json.loads(body)["row"])


def bounds(body: bytes) -> tuple[int, int]:
    return len(body), 5


@dataclass
class World:
    """A job of rows 0, 1, 2, ... in shards of the given sizes, a provider, a ledger, and a caller."""

    folder: Path
    sizes: Sequence[int] = (3,)
    rows: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    ends: Sequence[End] = ()
    faults: Mapping[str, Iterable[Fault | None]] = field(default_factory=dict)
    mark: MarkClass = MarkClass.FINDABLE
    attempts: int = 3
    micros: int | None = None
    deadline_s: int = 86_400
    schema: Mapping[str, Any] | None = None
    url: str = "sqlite://"

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.provider = Scripted(self.clock, self.mark, self.rows, self.ends)
        self.front = Faulty(self.provider, self.faults)
        self.ledger = Ledger(connect(self.url))
        self.blobs = Blobs(self.folder / "blobs")
        self.engine = self.caller("first")
        numbers = iter(range(sum(self.sizes)))
        self.shards = [[body_of(next(numbers)) for _ in range(size)] for size in self.sizes]
        self.terms = replace(TERMS, attempts=self.attempts, output_schema=self.schema)
        self.open()

    def open(self, *, micros: int | None = None, revision: int = 0) -> None:
        job = SmallJob("job", self.shards, self.terms, bounds, self.provider.account, micros=micros or self.micros,
                       owner="team", deadline_s=self.deadline_s)  # fmt: skip
        assert self.ledger.open_plan(plan_small(self.blobs, job, self.now, revision=revision), self.now)

    def caller(self, name: str) -> Engine:
        pace = Pace(poll_s=30, lease_s=10, heartbeat=False)
        return Engine(self.ledger, self.blobs, lambda _: self.front, self.clock, holder=name, pace=pace)

    # ------------------------------------------------------------------------------------------------------ what happens

    def run(self, *, most_s: float = 30 * 86_400) -> World:
        """Until nothing of the job is open; time jumps to whatever is due."""
        limit = self.now + timedelta(seconds=most_s)
        while self.now <= limit:
            self.engine.tick("job")
            due, n_open = self.ledger.next_due("job")
            if not n_open and not self.engine.sweep("job"):
                break
            self.clock.at = max(self.now + timedelta(milliseconds=1), due or self.now)
        assert self.ledger.check() == []
        return self

    def until(self, state: str) -> Shard:
        """Until the first shard is in that state."""
        for _ in range(1000):
            found = [s for s in self.ledger.query("shards", job="job") if s["state"] == state]
            if found:
                return self.ledger.shard(found[0]["id"])
            self.step()
        raise AssertionError(f"no shard came to be {state}: {self.states}")

    def step(self) -> None:
        """One step of whatever is due next."""
        due, _ = self.ledger.next_due("job")
        self.clock.at = max(self.now, due or self.now)
        shard = self.ledger.claim("first", self.now, 10, "job")
        if shard is not None:
            self.engine.advance(shard)

    def dies_at(self, where: str) -> None:
        """Run until a ledger write, and be killed there."""

        def kill(here: str) -> None:
            if here == where:
                self.ledger.db.fault = lambda _: None
                raise Dead(where)

        fault: DbFault = kill
        self.ledger.db.fault = fault
        try:
            self.run()
        except Dead:
            return
        raise AssertionError(f"there was no {where}")

    # --------------------------------------------------------------------------------------------------- what came of it

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def outcomes(self) -> list[str]:
        return [outcome.name for outcome in outcomes(self.ledger, "job")]

    @property
    def states(self) -> list[str]:
        return [str(s["state"]) for s in self.ledger.query("shards", job="job")]

    @property
    def money(self) -> tuple[int, int]:
        """(held, spent) micros; the same in the job's budget, its project's and its month's."""
        rows = [self.ledger.query("budget", id=budget)[0] for budget in BUDGETS]
        assert len({(row["held_micros"], row["spent_micros"]) for row in rows}) == 1
        return rows[0]["held_micros"], rows[0]["spent_micros"]

    @property
    def figures(self) -> dict[str, int]:
        return {name: int(value) for name, value in self.ledger.query("job_money", job="job")[0].items()}

    @property
    def billed(self) -> int:
        """Micros on the provider's bill by now: of every batch, rounded up once."""
        return sum(cost_micros([u for _, u in self.provider.ran(b)], PRICE) for b in self.provider.batches.values())

    @property
    def executed(self) -> Counter[int]:
        """How often each row ran and was billed."""
        return Counter(
            number_of(body) for batch in self.provider.batches.values() for body, _ in self.provider.ran(batch)
        )

    @property
    def sent(self) -> list[list[int]]:
        """The rows of each batch, oldest first."""
        return [[number_of(body) for body in batch.bodies] for batch in self.provider.batches.values()]

    def worst(self, *numbers: int) -> int:
        return worst_micros([bounds(body_of(n)) for n in numbers], PRICE)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.ledger.events(count=10_000)]

    def causes(self) -> list[str | None]:
        """Of the last results of each row of the first shard's root."""
        import pyarrow.parquet as pq

        last: dict[int, str | None] = {}
        root = self.ledger.query("plan_shards", job="job", plan=self.ledger.job("job")["plan"])[0]["shard"]
        tried = [s for s in self.ledger.query("shards_of_root", root=root) if s["results_blob"]]
        for shard in sorted(tried, key=lambda s: (s["settled_us"], s["attempt"])):
            table = pq.read_table(self.blobs.path(shard["results_blob"]), schema=landing.SCHEMA).to_pydict()
            last.update(zip(table["line"], table["cause"], strict=True))
        return [last[line] for line in sorted(last)]
