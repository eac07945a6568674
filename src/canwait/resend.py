"""Which ended rows a person asks to have sent again: `run --only SELECTOR`."""

from __future__ import annotations

import zlib

import pyarrow.parquet as pq

from .blobs import Blobs
from .errors import Problem, SpecError
from .ledger import Ledger
from .lifecycle import CAUSES
from .types import Outcome, Shard

SELECTORS: dict[str, frozenset[Outcome]] = {
    "failed": frozenset({Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED}),
    "expired": frozenset({Outcome.EXPIRED}),
    "cancelled": frozenset({Outcome.CANCELLED}),
    "missing": frozenset({Outcome.MISSING}),
}


def parse(selector: str) -> tuple[frozenset[Outcome], str | None]:
    """`failed`, `failed:CAUSE`, `expired`, `cancelled` or `missing`, as outcomes and a cause. Raises SpecError."""
    word, colon, cause = selector.partition(":")
    if word not in SELECTORS or (colon and (word != "failed" or cause not in CAUSES)):
        words = f"expected {', '.join(SELECTORS)}, rejected, rejected:STRATUM, rejected:RULE, rejected:CAUSE, "
        words += f"or failed:CAUSE with a cause of: {', '.join(CAUSES)}"
        raise SpecError([Problem("--only", None, None, None, f"{selector!r} selects nothing; {words}")])
    return SELECTORS[word], cause or None


def is_rejected(selector: str) -> bool:
    """Whether it selects what a gate did not let through: `rejected`, or `rejected:` and a stratum, a rule or a cause."""
    return selector.partition(":")[0] == "rejected"


def select(ledger: Ledger, blobs: Blobs, job: str, selector: str) -> list[tuple[Shard, list[int]]]:
    """Planned shards of a job's latest plan with their selected lines, ascending; shards without one are left out."""
    outcomes, cause = parse(selector)
    chosen = []
    for answering in ledger.query("plan_shards", job=job, plan=ledger.job(job)["plan"]):
        if answering["owner_job"] != job:
            continue  # only answers are reused from other jobs, so nothing of them failed
        lines = [line for line, byte in enumerate(zlib.decompress(answering["vector"])) if Outcome(byte) in outcomes]
        if lines and cause is not None:
            causes = final_causes(ledger, blobs, answering["shard"])
            lines = [line for line in lines if causes.get(line) == cause]
        if lines:
            chosen.append((ledger.shard(answering["shard"]), lines))
    return chosen


def final_causes(ledger: Ledger, blobs: Blobs, root: str) -> dict[int, str | None]:
    """Why each line of a planned shard ended as it did last."""
    causes: dict[int, str | None] = {}
    tried = [s for s in ledger.query("shards_of_root", root=root) if s["results_blob"]]
    for shard in sorted(tried, key=lambda s: (s["settled_us"], s["attempt"])):
        part = pq.read_table(blobs.path(shard["results_blob"]), columns=["line", "cause"]).to_pydict()
        causes.update(zip(part["line"], part["cause"], strict=True))
    return causes
