"""A shard's lines apart from their shard: asked for by another one, or ended without being sent. Writes blobs, no ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from . import landing
from .blobs import Blobs
from .ledger import NewShard, Settlement
from .lines import read_lines
from .price import worst_micros
from .settling import Fate
from .types import Outcome, Price, Shard


def manifest_of(blobs: Blobs, shard: Shard) -> pa.Table:
    return landing.read_manifest(blobs.path(shard.manifest_blob))


def column(manifest: pa.Table, name: str) -> list[int]:
    return cast("list[int]", manifest[name].to_pylist())


def bounds(manifest: pa.Table, lines: Sequence[int]) -> list[tuple[int, int]]:
    """Of some lines: the most input and output tokens each can be billed."""
    part = manifest.take(pa.array(lines, pa.int64()))
    return list(zip(column(part, "input_bound"), column(part, "output_bound"), strict=True))


def halves(lines: Sequence[int]) -> list[Sequence[int]]:
    return [lines[: len(lines) // 2], lines[len(lines) // 2 :]]


def follow_up(
    blobs: Blobs, shard: Shard, manifest: pa.Table, lines: Sequence[int], *, attempt: int, adapter: str, account: str,
    price: Price, why: str, at: datetime,
) -> NewShard:  # fmt: skip
    """A new shard that asks for some lines of an older one. Its id is a function of what it follows and why, so that a
    repeat makes the same."""
    requests = blobs.put_stream(landing.subset(read_lines(blobs.path(shard.requests_blob)), lines))
    part = manifest.take(pa.array(lines, pa.int64()))
    with blobs.scratch() as folder:
        pq.write_table(part, folder / "manifest.parquet", compression="zstd", compression_level=1)
        manifest_blob = blobs.adopt(folder / "manifest.parquet")
    most = bounds(part, range(len(lines)))
    seed = "\0".join((shard.id, str(attempt), why, requests))
    return NewShard(
        id=f"{shard.root[:16]}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}",
        root=shard.root,
        attempt=attempt,
        provider=adapter,
        account=account,
        n_lines=len(lines),
        requests_blob=requests,
        manifest_blob=manifest_blob,
        input_bound=sum(i for i, _ in most),
        output_bound=sum(o for _, o in most),
        worst_micros=worst_micros(most, price),
        next_at=at,
    )


def into(shards: Sequence[NewShard], reason: str) -> Settlement:
    """A shard that is not sent as it is, but as these."""
    return Settlement({}, None, 0, 0, 0, 0, 0, 0, tuple(shards), None, reason, {})


def unsent(blobs: Blobs, shard: Shard, outcome: Outcome, cause: str, detail: str, lines: Sequence[int]) -> Settlement:
    """Lines (ascending) of a shard that was not sent end so; nothing was spent."""
    root_lines = column(manifest_of(blobs, shard), "line")
    with blobs.scratch() as folder:
        writer = landing.ResultsWriter(folder / "results.parquet", root_lines)
        writer.fill(lines, Fate(outcome, cause, detail, "nothing"))
        writer.close()
        results = blobs.adopt(folder / "results.parquet")
    ends = {root_lines[line]: outcome for line in lines}
    return Settlement(ends, results, 0, 0, 0, 0, 0, 0, (), None, detail, {"cause": cause})
