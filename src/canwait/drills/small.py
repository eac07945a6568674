"""A small job opened by hand: rows in memory become blobs and a plan, without a job file. Drills and tests run it."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .. import landing
from ..blobs import Blobs
from ..codec import terms_to_json
from ..ledger import Ledger, NewShard, OpenPlan
from ..price import worst_micros
from ..types import BudgetSpec, Outcome, Terms

Bounds = Callable[[bytes], tuple[int, int]]
"""The most tokens a request body can be billed: (input, output)."""


@dataclass(frozen=True, slots=True)
class SmallJob:
    """What to run: each item of `shards` is one shard's request bodies."""

    name: str
    shards: Sequence[Sequence[bytes]]
    terms: Terms
    bounds: Bounds
    account: str  # of the provider that runs it
    micros: int | None = None  # the job's budget; None: twice its worst case
    tokens: int | None = None
    owner: str | None = None
    deadline_s: int = 86_400


def plan_small(blobs: Blobs, job: SmallJob, now: datetime, *, revision: int = 0) -> OpenPlan:
    """Write the blobs of a job and say what is to be opened. The same job is the same plan."""
    digest = hashlib.sha256(b"\n".join(body for shard in job.shards for body in shard)).hexdigest()
    new = [_shard(blobs, job, f"{job.name}-{digest[:6]}-{i}", bodies, now) for i, bodies in enumerate(job.shards)]
    worst = sum(shard.worst_micros for shard in new)
    n_rows = sum(map(len, job.shards))
    return OpenPlan(
        job=job.name,
        digest=digest,
        body={"id": f"p_{digest[:12]}", "n_rows": n_rows, "n_duplicates": 0, "n_reused": 0, "expected_micros": worst,
              "worst_micros": worst},
        terms=terms_to_json(job.terms),
        owner=job.owner,
        budget=BudgetSpec(2 * worst if job.micros is None else job.micros, job.tokens, None),
        deadline=now + timedelta(seconds=job.deadline_s),
        new=new,
        answering=[(shard.id, array("I", [1] * shard.n_lines).tobytes()) for shard in new],
        revision=revision,
    )  # fmt: skip


def outcomes(ledger: Ledger, job: str) -> list[Outcome]:
    """What became of each row of a job's latest plan, in order."""
    found = ledger.query("plan_shards", job=job, plan=ledger.job(job)["plan"])
    return [Outcome(byte) for shard in found for byte in zlib.decompress(shard["vector"])]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for one drill, in memory where there is such a place: a killed process loses nothing there either."""
    memory = Path("/dev/shm")  # noqa: S108 (a folder of our own in it; an fsync costs nothing there)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def _shard(blobs: Blobs, job: SmallJob, name: str, bodies: Sequence[bytes], now: datetime) -> NewShard:
    bounds = [job.bounds(body) for body in bodies]
    n = len(bodies)
    inputs, outputs = [i for i, _ in bounds], [o for _, o in bounds]
    table = pa.table(
        {"line": range(n), "identity": [hashlib.sha256(body).digest()[:16] for body in bodies], "input_expected": inputs,
         "input_bound": inputs, "output_bound": outputs}, schema=landing.MANIFEST,
    )  # fmt: skip
    with blobs.scratch() as folder:
        pq.write_table(table, folder / "manifest.parquet")
        manifest = blobs.adopt(folder / "manifest.parquet")
    requests = blobs.put(b"".join(body + b"\n" for body in bodies))
    return NewShard(
        name, name, 1, job.terms.provider, job.account, n, requests, manifest, sum(inputs), sum(outputs),
        worst_micros(bounds, job.terms.price), now,
    )  # fmt: skip


def chat_body(model: str, text: str, max_output_tokens: int) -> bytes:
    """A canonical chat request of one message."""
    body = {"max_completion_tokens": max_output_tokens, "messages": [{"content": text, "role": "user"}], "model": model}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def chat_bounds(body: bytes) -> tuple[int, int]:
    """Bounds of a `chat_body`: its UTF-8 bytes, with the room a provider's template may take (tokens.py)."""
    request = json.loads(body)
    text = sum(len(message["content"].encode()) + 8 for message in request["messages"])
    return 32 + text, request["max_completion_tokens"]
