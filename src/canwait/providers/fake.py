"""A provider in memory, with a bill and every way of failing that the engine must survive. Real behaviour, no canned replies.

It keeps what a real one keeps (batches, their rows, what was billed) and misbehaves by `Temper`, drawn from an injected
Random. The histories drill runs the engine against it; the simulator is the same thing on a real wire.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

import orjson

from ..clock import Clock
from ..errors import Ambiguous, BatchUnknown, Busy, CannotTell, OutOfCredit, TooLarge, Unreachable
from ..lines import read_lines
from ..types import Answer, Batch, BatchStatus, Limits, MarkClass, Outcome, ShardFile, Usage
from . import Guard

RowFate = Literal["ok", "error", "expired", "missing", "missing_billed", "truncated", "out_of_credit"]


@dataclass(frozen=True, slots=True)
class Temper:
    """Probabilities of each misbehaviour, 0..1."""

    unreachable: float = 0.0
    busy: float = 0.0
    out_of_credit: float = 0.0
    too_large: float = 0.0  # of two lines or more
    lost_reply: float = 0.0  # the batch is there, its reply is not
    lost_request: float = 0.0  # the same error, and no batch
    slow_upload: float = 0.0  # the upload takes up to 4 x settle_s, others may act meanwhile, then comes the create
    slow_create: float = 0.0  # the create lands long after it was sent, others may act meanwhile
    listing_lag_s: int = 0  # at most; a new batch is listed this much later
    poll_error: float = 0.0
    results_error: float = 0.0
    batch_fails: float = 0.0  # refused after validation because the queue is full
    batch_expires: float = 0.0
    states_usage: float = 1.0  # the batch states its own bill
    row_fails: float = 0.0  # each row: error, expired, missing, truncated ...
    cancel_lag_s: int = 60  # at most
    cancel_deaf: float = 0.0  # a cancel is answered, and the batch goes on
    cancel_lost: float = 0.0  # a cancel is not answered; it may have been heard
    repeats: float = 0.0  # a result line comes twice
    strangers: float = 0.0  # a result line of nobody


@dataclass(slots=True)
class FakeBatch:
    id: str
    token: str
    custom_ids: list[str]
    bodies: list[bytes]
    created_at: datetime
    listed_at: datetime
    ends_at: datetime
    fates: list[RowFate]
    final: BatchStatus
    states_usage: bool
    cancelled_at: datetime | None = None


@dataclass(slots=True)
class FakeProvider:
    """The provider. `batches` and `billed` are the truth that a ledger is compared with."""

    clock: Clock
    rng: random.Random
    mark: MarkClass = MarkClass.FINDABLE
    temper: Temper = Temper()
    settle_s: int = 120
    during_create: Callable[[], None] = lambda: None  # what the rest of the world does while a slow create travels
    batches: dict[str, FakeBatch] = field(default_factory=dict)
    name: str = "fake"
    account: str = "fake:account"
    max_enqueued_tokens: int | None = None
    max_rows: int = 50_000

    def limits(self, model: str) -> Limits:
        return Limits(
            self.max_rows,
            200_000_000,
            1_000_000,
            self.max_enqueued_tokens,
            86_400,
            self.settle_s,
            self.settle_s // 2,
            "fake",
            30.0,
        )

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        return b'{"custom_id":' + orjson.dumps(custom_id) + b',"body":' + body + b"}"

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        bodies = list(read_lines(shard.path))
        if self._happens(self.temper.unreachable):
            raise Unreachable("connection refused")
        if self.temper.slow_upload and self._happens(self.temper.slow_upload):
            self.clock.sleep(self.rng.uniform(0, 4 * self.settle_s))
            self.during_create()
        guard()
        if self._happens(self.temper.busy):
            raise Busy("429", retry_after_s=self.rng.choice([None, 5.0]))
        if self._happens(self.temper.out_of_credit):
            raise OutOfCredit("the account is out of credit")
        if shard.n_rows > 1 and self._happens(self.temper.too_large):
            raise TooLarge("413: the file is too large")
        if self._happens(self.temper.lost_request):
            raise Ambiguous("timed out")
        if self._happens(self.temper.slow_create):
            self.clock.sleep(self.rng.uniform(0, self.settle_s // 2))
            self.during_create()
        if self.mark is MarkClass.IDEMPOTENT and shard.token in self.batches:
            return self._seen(self.batches[shard.token])
        batch = self._create(shard, bodies)
        if self._happens(self.temper.lost_reply):
            raise Ambiguous("connection reset")
        return self._seen(batch)

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        if self._happens(self.temper.poll_error):
            raise CannotTell("the listing answered 500")
        now = self.clock.now()
        listed = sorted(
            (b for b in self.batches.values() if b.listed_at <= now and b.id not in shard.known),
            key=lambda b: b.created_at,
        )
        if self.mark is not MarkClass.UNMARKED:
            return [self._seen(b) for b in listed if b.token == shard.token]
        since = (shard.first_try or now) - timedelta(seconds=60)
        candidates = [b for b in listed if b.created_at >= since and len(b.bodies) == shard.n_rows]
        if any(not self._seen(b).status.ended for b in candidates):
            raise CannotTell("a batch of the same size is running; its custom ids are known when it ends")
        return [self._seen(b) for b in candidates if any(shard.line(c) is not None for c in b.custom_ids)]

    def poll(self, batch_id: str) -> Batch:
        if self._happens(self.temper.poll_error):
            raise self.rng.choice([Busy("429", retry_after_s=3.0), Ambiguous("502"), Unreachable("no route")])
        return self._seen(self._batch(batch_id))

    def results(self, batch: Batch) -> Iterator[bytes]:
        if self._happens(self.temper.results_error):
            raise Unreachable("the download broke off")
        made = self._batch(batch.id)
        lines = [
            line
            for pair in zip(made.custom_ids, made.bodies, self._fates(made), strict=True)
            for line in self._lines(*pair)
        ]
        self.rng.shuffle(lines)
        for line in lines:
            if self._happens(self.temper.results_error / 4):
                raise Unreachable("the download broke off midway")
            yield line + b"\n"

    def decode(self, line: bytes) -> Answer:
        try:
            raw = orjson.loads(line)
            usage = Usage(*raw["usage"]) if raw["usage"] else None
            return Answer(raw["custom_id"], Outcome(raw["outcome"]), raw["cause"], None, raw["text"], usage, "fake-1")
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return Answer("", Outcome.FAILED, "malformed", None, None, None, None)

    def plain(self, line: bytes) -> None:
        return None

    def cancel(self, batch_id: str) -> None:
        batch, t = self._batch(batch_id), self.temper
        heard = not (t.cancel_deaf and self._happens(t.cancel_deaf))
        if heard and self.clock.now() < batch.ends_at and batch.cancelled_at is None:
            batch.cancelled_at = self.clock.now()
            batch.ends_at = min(batch.ends_at, self.clock.now() + timedelta(seconds=t.cancel_lag_s))
            cut = self.rng.randrange(len(batch.fates) + 1)  # rows before it are answered first
            batch.fates = [f if i < cut else "expired" for i, f in enumerate(batch.fates)]
            batch.final = BatchStatus.CANCELLED
        if t.cancel_lost and self._happens(t.cancel_lost):
            raise Ambiguous("504")

    # ----------------------------------------------------------------------------------------------------- the truth

    def ran(self, batch: FakeBatch) -> list[tuple[bytes, Usage]]:
        """The rows of a batch that were executed and billed, with their usage."""
        billed = ("ok", "truncated", "missing_billed")
        return [
            (body, self.usage(body))
            for body, fate in zip(batch.bodies, self._fates(batch), strict=True)
            if fate in billed
        ]

    @staticmethod
    def usage(body: bytes) -> Usage:
        """What one row is billed: a fixed function of its body, never above its bounds in the drills."""
        return Usage(len(body) // 2 + 1, 1 + body[-2] % 5)

    def _fates(self, batch: FakeBatch) -> list[RowFate]:
        return ["missing"] * len(batch.fates) if batch.final is BatchStatus.FAILED else batch.fates

    def _lines(self, custom_id: str, body: bytes, fate: RowFate) -> list[bytes]:
        kinds: dict[str, tuple[Outcome, str | None]] = {
            "ok": (Outcome.OK, None),
            "truncated": (Outcome.FAILED, "length"),
            "error": (Outcome.FAILED, "server_error"),
            "expired": (Outcome.EXPIRED, "expired"),
            "out_of_credit": (Outcome.FAILED, "out_of_credit"),
        }
        if fate not in kinds:
            return []
        outcome, cause = kinds[fate]
        usage = self.usage(body) if fate in ("ok", "truncated") else None
        line = orjson.dumps(
            {
                "custom_id": custom_id,
                "outcome": int(outcome),
                "cause": cause,
                "text": f"answer to {body.decode()}" if fate == "ok" else None,
                "usage": [usage.input_tokens, usage.output_tokens] if usage else None,
            }
        )
        lines = [line] * (2 if self._happens(self.temper.repeats) else 1)
        if self._happens(self.temper.strangers):
            lines.append(line.replace(orjson.dumps(custom_id), b'"stranger-1"'))
        return lines

    def _create(self, shard: ShardFile, bodies: list[bytes]) -> FakeBatch:
        now, t = self.clock.now(), self.temper
        final = BatchStatus.COMPLETED
        if self._happens(t.batch_fails):
            final = BatchStatus.FAILED
        elif self._happens(t.batch_expires):
            final = BatchStatus.EXPIRED
        bad: list[RowFate] = ["error", "expired", "missing", "missing_billed", "truncated", "out_of_credit"]
        fates: list[RowFate] = [self.rng.choice(bad) if self._happens(t.row_fails) else "ok" for _ in bodies]
        if final is BatchStatus.EXPIRED:
            fates = ["expired" if self._happens(0.5) else f for f in fates]
        batch = FakeBatch(
            id=shard.token if self.mark is MarkClass.IDEMPOTENT else f"batch_{len(self.batches)}",
            token=shard.token if self.mark is not MarkClass.UNMARKED else "",
            custom_ids=[shard.custom_id(i) for i in range(len(bodies))],
            bodies=bodies,
            created_at=now,
            listed_at=now + timedelta(seconds=self.rng.uniform(0, t.listing_lag_s)),
            ends_at=now + timedelta(seconds=self.rng.uniform(1, 7200)),
            fates=fates,
            final=final,
            states_usage=self._happens(t.states_usage),
        )
        self.batches[batch.id] = batch
        return batch

    def _seen(self, batch: FakeBatch) -> Batch:
        ended = self.clock.now() >= batch.ends_at
        usage = None
        if ended and batch.states_usage:
            usage = sum((u for _, u in self.ran(batch)), Usage(0, 0))
        failed = batch.final is BatchStatus.FAILED
        return Batch(
            id=batch.id,
            status=batch.final if ended else BatchStatus.CANCELLING if batch.cancelled_at else BatchStatus.RUNNING,
            created_at=batch.created_at,
            n_rows=len(batch.bodies),
            usage=usage,
            outputs=("output",) if ended and not failed else (),
            error_code="token_limit_exceeded" if ended and failed else None,
        )

    def _batch(self, batch_id: str) -> FakeBatch:
        if batch_id not in self.batches:
            raise BatchUnknown(f"no batch {batch_id}")
        return self.batches[batch_id]

    def _happens(self, probability: float) -> bool:
        return self.rng.random() < probability
