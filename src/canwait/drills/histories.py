"""Random histories: a job runs against a provider that misbehaves, callers die at any write and around any effect, two of
them race, leases run out, a person cancels, what would be late moves to another tier. After each one the books must say
what the provider's bill says.

    paid twice   a row answered OK was sent again
    lost         a row that was answered is not OK in the ledger, or a row has no end
    over cap     a budget's spent + held passed its limit at any moment
    unreported   a row was billed twice, and the ledger neither says so nor holds money for it
    stranded     a row ended unsent for want of money that every budget still has
    bill         what the ledger says is confirmed and unknown does not cover the provider's bill exactly
"""

from __future__ import annotations

import json
import random
import tempfile
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .. import landing
from ..blobs import Blobs
from ..codec import terms_to_json
from ..db import Row, connect
from ..engine import Engine, Pace
from ..ledger import Ledger, NewShard, OpenPlan
from ..price import cost_micros, exact_micros, worst_micros
from ..providers.fake import FakeProvider, Temper
from ..releasing import LAST_MILE
from ..types import AtDeadline, BudgetSpec, MarkClass, Outcome, Price, Rescue, Shard, ShardState, Terms, Tier

START = datetime(2026, 11, 1, tzinfo=UTC)
PRICE = Price("fake", "fake-1", Tier.BATCH, Decimal("0.0625"), Decimal("0.25"), None, None, "drill", date(2026, 11, 1))
ADAPTER = "fake/standard"  # answers row by row, for twice as much
STANDARD = replace(PRICE, tier=Tier.STANDARD, input=2 * PRICE.input, output=2 * PRICE.output)
TERMS = Terms("fake", "fake-1", "/v1/chat/completions", Tier.BATCH, PRICE, None, 3, "id", True)


class Killed(BaseException):
    """A process died here."""


class VirtualClock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass(slots=True)
class Result:
    """What one or many histories showed."""

    n_histories: int = 0
    n_kills: int = 0
    n_batches: int = 0
    n_rows: int = 0
    n_moved: int = 0  # shards, to another tier
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        self.n_histories += other.n_histories
        self.n_kills += other.n_kills
        self.n_batches += other.n_batches
        self.n_rows += other.n_rows
        self.n_moved += other.n_moved
        self.violations += other.violations
        self.examples = (self.examples + other.examples)[:10]


def run(n: int, *, seed: int = 0, url: str = "sqlite://") -> Result:
    """n histories; each has its own seed, named in its violations, so that one can be run again alone."""
    total = Result()
    memory = Path("/dev/shm")  # noqa: S108 (a folder of our own in it; an fsync costs nothing there)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        blobs = Blobs(Path(folder))
        for number in range(seed, seed + n):
            total.add(History(number, blobs, url).play())
    return total


class History:
    """One history, decided by its seed."""

    def __init__(self, seed: int, blobs: Blobs, url: str = "sqlite://") -> None:
        self.seed, self.blobs = seed, blobs
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.result = Result(n_histories=1)
        self.kill_probability = self.rng.choice([0.0, 0.02, 0.1])
        self.job = f"history-{seed}"
        self.ledger = Ledger(connect(url))
        self.ledger.db.fault = self._fault
        self.calm = self.rng.random() < 0.2
        self.provider = FakeProvider(
            self.clock,
            self.rng,
            mark=self.rng.choice(list(MarkClass)),
            temper=self._temper(),
            during_create=self._others_act,
        )
        self.provider.account = f"fake:{seed}"
        self._second_tier(random.Random(seed + 2))
        self.engines = [self._engine(i) for i in range(self.rng.choice([1, 2]))]
        self.stale: list[Shard] = []
        self.depth = 0
        self.bodies: dict[str, list[bytes]] = {}

    def play(self) -> Result:
        self._quietly(self._open)
        for _ in range(20_000):  # a day of polls, each of them killed now and then
            _, n_open = self.ledger.next_due(self.job)
            if not n_open and not self._resume():
                if self._swept():
                    break
                self.clock.sleep(30)
            self._events()
            if not self._step(self.rng.randrange(len(self.engines))):
                due, _ = self.ledger.next_due(self.job)
                self.clock.at = max(self.clock.at + timedelta(milliseconds=1), due or self.clock.at)
            self._check_caps()
        else:
            self._violation("lost", "the job never ended")
        self._check_end()
        self.ledger.close()
        return self.result

    # ------------------------------------------------------------------------------------------------------ the world

    def _second_tier(self, rng: random.Random) -> None:
        """What a job of every other history says of late rows, and the tier that answers row by row."""
        self.rows_per_s = rng.choice([None, None, 0.01, 1.0])
        self.ease = rng.choice([1, 10]) if self.rows_per_s else 1  # in half of them a redo has room in the budgets
        self.at_deadline: AtDeadline | None = rng.choice([None, None, "load_without", "last_publication", "fail"])
        temper = self.provider.temper
        if not self.calm:
            deaf, lost = (rng.choice([0.0, 0.0, 0.5, 0.95]) for _ in range(2))
            lag_s = rng.choice([60, 600, 3600])
            self.provider.temper = temper = replace(temper, cancel_lag_s=lag_s, cancel_deaf=deaf, cancel_lost=lost)
        self.net = FakeProvider(self.clock, rng, MarkClass.IDEMPOTENT, replace(temper, listing_lag_s=0), settle_s=2)
        self.net.account, self.net.max_rows = f"fake:{self.seed}@disk", rng.choice([2, 500])

    def _adapter(self, name: str) -> FakeProvider:
        return self.net if name == ADAPTER else self.provider

    def _price(self, adapter: str) -> Price:
        return STANDARD if adapter == ADAPTER else PRICE

    def _temper(self) -> Temper:
        def some(most: float) -> float:
            return 0.0 if self.calm or self.rng.random() < 0.5 else self.rng.uniform(0, most)

        return Temper(
            unreachable=some(0.5),
            busy=some(0.5),
            out_of_credit=some(0.2),
            too_large=some(0.2),
            lost_reply=some(0.5),
            lost_request=some(0.5),
            slow_create=some(0.6),
            listing_lag_s=0 if self.calm else self.rng.choice([0, 10, 59]),
            poll_error=some(0.4),
            results_error=some(0.4),
            batch_fails=some(0.3),
            batch_expires=some(0.4),
            states_usage=self.rng.choice([0.0, 0.5, 1.0]),
            row_fails=some(0.6),
            repeats=some(0.3),
            strangers=some(0.3),
        )

    def _engine(self, index: int) -> Engine:
        return Engine(
            self.ledger,
            self.blobs,
            self._adapter,
            self.clock,
            holder=f"caller-{index}-{self.result.n_kills}",
            pace=Pace(poll_s=30.0, lease_s=10.0, heartbeat=False),
        )

    def _fault(self, where: str) -> None:
        if self.rng.random() < self.kill_probability:
            raise Killed(where)

    def _quietly(self, act: object) -> None:
        """A caller that dies is started again until it gets through."""
        while True:
            try:
                act()  # type: ignore[operator]
                return
            except Killed:
                self.result.n_kills += 1

    def _open(self) -> None:
        rng = random.Random(self.seed + 1)
        shards = [self._new_shard(i, rng.randint(1, 8), rng) for i in range(rng.randint(1, 4))]
        micros = sum(s.worst_micros for s in shards)
        tokens = sum(s.input_bound + s.output_bound for s in shards)
        most = 3.0
        if rng.random() < 0.5:  # tight: of what one attempt of every row truly costs, not of its worst case
            most = 1.5
            usages = [self.provider.usage(body) for bodies in self.bodies.values() for body in bodies]
            micros, tokens = cost_micros(usages, PRICE), sum(u.input_tokens + u.output_tokens for u in usages)

        def limit(of: int) -> int:
            return max(1, int(of * rng.uniform(0.3, most)) * self.ease)

        if rng.random() < 0.5:
            self.ledger.set_budget("month", micros=limit(micros), tokens=None, now=self.clock.now())
        if rng.random() < 0.5:
            self.ledger.set_budget("project:team", micros=None, tokens=limit(tokens), now=self.clock.now())
        weights = [(s.id, array("I", [1] * s.n_lines).tobytes()) for s in shards]
        budget = BudgetSpec(limit(micros), None, None)
        deadline = self.clock.now() + timedelta(hours=rng.choice([1, 4, 24]) if self.rows_per_s is None else 1)
        self.ledger.open_plan(
            OpenPlan(
                self.job,
                "digest",
                {},
                terms_to_json(self._terms(rng.choice([1, 2, 3]))),
                "team",
                budget,
                deadline,
                shards,
                weights,
                0,
            ),
            self.clock.now(),
        )

    def _terms(self, attempts: int) -> Terms:
        terms = replace(TERMS, attempts=attempts, at_deadline=self.at_deadline)
        if self.rows_per_s is None:
            return terms
        return replace(terms, rescue=ADAPTER, rescues=(Rescue(ADAPTER, STANDARD, self.rows_per_s),))

    def _new_shard(self, index: int, n_lines: int, rng: random.Random) -> NewShard:
        """The same whenever it is made: a caller that was killed after it opened the plan opens it once more."""
        bodies = [
            json.dumps({"row": f"{self.seed}-{index}-{line}", "x": "y" * rng.randrange(40)}).encode()
            for line in range(n_lines)
        ]
        shard = f"s{self.seed}-{index}"
        self.bodies[shard] = bodies
        bounds = [_bound(b) for b in bodies]
        table = pa.table(
            {
                "line": range(n_lines),
                "identity": [b[:16].ljust(16) for b in bodies],
                "input_expected": [len(b) for b in bodies],
                "input_bound": [i for i, _ in bounds],
                "output_bound": [o for _, o in bounds],
            },
            schema=landing.MANIFEST,
        )
        with self.blobs.scratch() as folder:
            pq.write_table(table, folder / "manifest.parquet")
            manifest = self.blobs.adopt(folder / "manifest.parquet")
        return NewShard(
            shard,
            shard,
            1,
            "fake",
            self.provider.account,
            n_lines,
            self.blobs.put(b"".join(b + b"\n" for b in bodies)),
            manifest,
            sum(i for i, _ in bounds),
            sum(o for _, o in bounds),
            worst_micros(bounds, PRICE),
            self.clock.now(),
        )

    # --------------------------------------------------------------------------------------------------- what happens

    def _step(self, index: int) -> bool:
        """One caller claims and advances one shard, and may die of it; False when there is nothing to do now."""
        engine = self.engines[index]
        try:
            shard = self.ledger.claim(engine.holder, self.clock.now(), 10.0, self.job)
            if shard is None:
                return False
            self.stale.append(shard)
            engine.advance(shard)
        except Killed:
            self.result.n_kills += 1
            self.engines[index] = self._engine(index)
        return True

    def _events(self) -> None:
        if self.rng.random() < (0.003 if self.rows_per_s is None else 0.0005):
            self._quietly(lambda: self.ledger.cancel_job(self.job, self.clock.now()))
        if self.stale and self.rng.random() < 0.05:  # a caller that slept through its lease acts on what it remembers
            try:
                self.engines[0].advance(self.rng.choice(self.stale))
            except Killed:
                self.result.n_kills += 1

    def _others_act(self) -> None:
        """While one caller's create travels, its lease may run out and another may take the shard over.

        Their own creates are quick meanwhile: a create that travels longer than its timeout is no provider's.
        """
        if self.depth == 0 and len(self.engines) > 1:
            self.depth += 1
            temper = self.provider.temper
            self.provider.temper = replace(temper, slow_create=0.0, slow_upload=0.0)
            for _ in range(self.rng.randrange(4)):
                self._step(1)
            self.provider.temper = temper
            self.depth -= 1

    def _resume(self) -> bool:
        """A person mends the account; a frozen budget stays frozen, for nobody has looked at it."""
        paused = self.ledger.job(self.job)["paused"]
        if paused and "credit" in paused:
            for provider in (self.provider, self.net):
                provider.temper = replace(provider.temper, out_of_credit=0.0)
            self._quietly(lambda: self.ledger.resume_job(self.job, self.clock.now()))
            return True
        return False

    def _swept(self) -> bool:
        try:
            return self.engines[0].sweep(self.job) is False
        except Killed:
            self.result.n_kills += 1
            return False

    # ------------------------------------------------------------------------------------------------------ the checks

    def _check_caps(self) -> None:
        for budget in self.ledger.query("budgets"):
            if budget["frozen"] or budget["id"] == "month":
                continue
            for kind in ("micros", "tokens"):
                limit = budget[f"limit_{kind}"]
                if limit is not None and budget[f"spent_{kind}"] + budget[f"held_{kind}"] > limit:
                    self._violation("over cap", f"{budget['id']} {kind}")

    def _check_end(self) -> None:
        for problem in self.ledger.check():
            self._violation("books", problem)
        rows = self.ledger.query("shards", job=self.job)
        known = {r["batch_id"] for r in rows}
        batches = {adapter: [*self._adapter(adapter).batches.values()] for adapter in ("fake", ADAPTER)}
        every = [batch for made in batches.values() for batch in made]
        self.result.n_batches += len(every)
        self.result.n_moved += sum(r["moving_us"] is not None for r in rows)
        for batch in every:
            if batch.id not in known:
                self._violation("lost", f"batch {batch.id} is not in the ledger")
        paid: Counter[bytes] = Counter()  # answers of every batch there is
        answered: Counter[bytes] = Counter()  # those whose batch is settled
        costs: dict[bytes, list[Decimal]] = defaultdict(list)  # of each row, each time that it was billed
        bill = n_short = 0
        for adapter, batch in ((adapter, batch) for adapter, made in batches.items() for batch in made):
            ran = self.provider.ran(batch)
            bill += cost_micros([usage for _, usage in ran], self._price(adapter))
            for body, usage in ran:
                costs[body].append(exact_micros(usage, self._price(adapter)))
            fates = self.provider._fates(batch)
            n_short += "missing_billed" in fates
            ok = [body for body, fate in zip(batch.bodies, fates, strict=True) if fate == "ok"]
            paid.update(ok)
            if any(r["batch_id"] == batch.id and r["state"] == "settled" for r in rows):
                answered.update(ok)
        for shard, bodies in self.bodies.items():
            vector = zlib.decompress(next(r["vector"] for r in rows if r["id"] == shard))
            self.result.n_rows += len(bodies)
            for line, body in enumerate(bodies):
                if paid[body] > 1:
                    self._violation("paid twice", f"{shard} line {line}: {paid[body]} answers")
                if answered[body] and vector[line] != Outcome.OK:
                    self._violation("lost", f"{shard} line {line} was answered and is {Outcome(vector[line]).name}")
                paused = self.ledger.job(self.job)["paused"]
                if vector[line] == Outcome.PENDING and not paused:
                    self._violation("lost", f"{shard} line {line} has no end")
        confirmed = sum(r["confirmed_micros"] for r in rows)
        held = sum(r["held_micros"] for r in rows if r["state"] == ShardState.SETTLED.value)
        # Each shard is rounded up once, so where nothing is unknown the two agree to the micro.
        if not confirmed <= bill <= confirmed + held or (not held and confirmed != bill):
            self._violation("bill", f"billed {bill}, confirmed {confirmed}, unknown {held}")

        twice = sum(sum(each) - max(each) for each in costs.values())
        told = sum(r["twice_micros"] + (r["confirmed_micros"] if r["role"] == "duplicate" else 0) for r in rows)
        if twice > told + held + n_short:  # each batch that returned less than it billed is rounded once
            self._violation("unreported", f"{twice} billed for rows a second time; {told} told, {held} unknown")
        self._check_stranded(rows)

    def _check_stranded(self, shards: Sequence[Row]) -> None:
        """Where nothing is on its way any more, what is left of some budget cannot hold the row, or is its last mile."""
        budgets = [b for b in self.ledger.query("budgets") if b["id"] != "month"]
        for shard in shards:
            if shard["state"] != ShardState.CANCELLED.value or not shard["results_blob"]:
                continue
            ended = pq.read_table(self.blobs.path(shard["results_blob"])).to_pylist()
            for line in (record["line"] for record in ended if record["cause"] == "budget"):
                n_input, n_output = bound = _bound(self.bodies[shard["root"]][line])
                needed = {"micros": worst_micros([bound], self._price(shard["provider"])), "tokens": n_input + n_output}
                if not any(_is_short(budget, unit, n) for budget in budgets for unit, n in needed.items()):
                    self._violation("stranded", f"{shard['root']} line {line} fits every budget")

    def _violation(self, kind: str, what: str) -> None:
        self.result.violations[kind] += 1
        self.result.examples.append(f"seed {self.seed}: {kind}: {what}")


def _bound(body: bytes) -> tuple[int, int]:
    """The most tokens a row can be billed: (input, output)."""
    return len(body), 5


def _is_short(budget: Row, unit: str, needed: int) -> bool:
    limit = budget[f"limit_{unit}"]
    if limit is None:
        return False
    left = limit - budget[f"spent_{unit}"] - budget[f"held_{unit}"]
    return bool(left < needed or left * LAST_MILE < limit)
