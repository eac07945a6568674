"""What the readers' tests share: a ledger with a clock that a test moves, and publications made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

import canwait
from canwait import publishing
from canwait.client import Client
from canwait.drills.histories import VirtualClock
from canwait.freshness import Publication
from canwait.published import keeping
from canwait.settings import settings
from canwait.spec import job_from_dict
from canwait.types import Job
from opened import plan_of

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("_model", pa.string()),
        ("_tier", pa.string()),
        ("_cost_usd", pa.decimal128(24, 12)),
        ("_produced_at", pa.timestamp("us", "UTC")),
    ]
)


def job_of(folder: Path, **fields: object) -> Job:
    spec = {
        "version": 1, "name": "job", "source": {"uri": "rows.csv", "key": "id"}, "model": "openai/gpt-6-luna",
        "prompt": "Classify: {{ text }}", "max_output_tokens": 40, "urgency": "batch", "budget": {"usd": 1},
    }  # fmt: skip
    return job_from_dict({**spec, **fields}, base_dir=folder)


def batch_of(rows: Mapping[str, str], at: datetime) -> pa.RecordBatch:
    n = len(rows)
    columns = [list(rows), list(rows.values()), ["m-1"] * n, ["batch"] * n, [Decimal(0)] * n, [at] * n]
    return pa.RecordBatch.from_pydict(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


@dataclass
class Shelf:
    """One job that is published from, by hand."""

    folder: Path
    url: str
    clock: VirtualClock = field(default_factory=VirtualClock)
    n_plans: int = 0

    def __post_init__(self) -> None:
        self.client = Client(settings({"CANWAIT_DB": self.url, "CANWAIT_HOME": str(self.folder / "home")}), self.clock)
        self.job = job_of(self.folder)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def wait(self, **span: float) -> None:
        self.clock.at += timedelta(**span)

    def open(self, as_of: datetime, **fields: object) -> None:
        """The next plan of the job, over an input that was read then."""
        ledger = self.client.ledger
        digest = f"plan {self.n_plans}"
        body = {
            "id": digest, "n_rows": 0, "n_duplicates": 0, "n_reused": 0, "expected_micros": 0, "worst_micros": 0,
            "tier": "batch", "source_as_of": as_of.isoformat(),
        }  # fmt: skip
        plan = replace(plan_of(digest=digest, revision=self.n_plans), body=body)
        assert ledger.open_plan(plan, self.now)
        self.n_plans += 1
        self.see(as_of, **fields)

    def see(self, as_of: datetime, *, tier: str = "batch", window_s: int = 86_400, source: str | None = None) -> None:
        """Its input was read then, and is what the latest plan was made of."""
        digest = f"plan {self.n_plans - 1}"
        publishing.opened(
            self.client.ledger, self.job, digest, as_of=as_of, source=source or digest, tier=tier, window_s=window_s,
            now=self.now,
        )  # fmt: skip

    def load(self, rows: Mapping[str, str], verdict: str = "no gate") -> Publication:
        """Publish the job as it stands."""
        c = self.client
        draft = publishing.draft(c.ledger, "job", verdict)
        with keeping(c.blobs, SCHEMA, "fields", draft.same.blob if draft.same else None) as kept:
            for _ in kept.passing([batch_of(rows, self.now)]):
                pass
        made = publishing.publish(
            c.ledger, draft, self.job, blob=kept.blob, rows=kept.n_rows, failed=0, models=kept.models, now=self.now
        )
        assert made is not None
        return made

    def publish(self, rows: Mapping[str, str], *, as_of: datetime | None = None) -> Publication:
        """A new plan of the job, over an input that was read then, and all of it answered."""
        self.open(as_of or self.now)
        return self.load(rows)

    def reader(self, as_: str = "dash", **terms: object) -> canwait.reading.Reader:  # type: ignore[name-defined]
        return canwait.reader("job", as_=as_, client=self.client, **terms)  # type: ignore[arg-type]


@contextmanager
def shelf(folder: Path, url: str | None = None) -> Iterator[Shelf]:
    made = Shelf(folder, url or f"sqlite:///{folder}/ledger.db")
    try:
        yield made
    finally:
        made.client.close()


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
