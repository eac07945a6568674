"""Keep, read whole and read by key: a publication of 1,000,000 rows.

    python benchmarks/reader.py [--rows 1000000] [--gets 2000] [--runs 5]

Rows are a key, a label, a text of some 60 characters and their provenance, in no order of their keys. *keep* writes them as a
load does beside its target; its baseline is that target alone. *get* is `Reader.get` of keys at random, the look at the
ledger and the record of the read included; the first one makes the index. Its baseline is a read of the same file with a
filter on the key, as one would write it without a reader. *frame* is `Reader.frame`; its baseline is pyarrow alone. Each
run is a process of its own; CPU is user + system, wall ms a get are told too.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from measure import measured, ratio, table

_BATCH = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gets", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as folder:
        measured(publish, folder, args.rows)
        idle = measured(make, args.rows, runs=args.runs)
        target = measured(load, folder, args.rows, False, runs=args.runs)
        kept = measured(load, folder, args.rows, True, runs=args.runs)
        opening = measured(get, folder, args.rows, 0, runs=args.runs)
        first = measured(get_first, folder, args.rows, runs=args.runs)
        gets = measured(get, folder, args.rows, args.gets, runs=args.runs)
        n_filtered = max(1, args.gets // 100)
        filtered = measured(get_filtered, folder, args.rows, n_filtered, runs=args.runs)
        frames = {kind: measured(frame, folder, kind, runs=args.runs) for kind in ("pyarrow", "polars", "alone")}
    ms, ms_filtered = gets.returned["ms"], filtered.returned["ms"]
    print(
        f"{args.rows:,} rows, medians of {args.runs} runs; a row is kept in {kept.returned['bytes'] / args.rows:.0f} bytes"
    )
    rows = [
        ("target alone", target.cpu_s - idle.cpu_s, target.wall_s, target.peak_mb, "", ""),
        ("target and publication", kept.cpu_s - idle.cpu_s, kept.wall_s, kept.peak_mb, "", ""),
        ("open a reader", opening.cpu_s, opening.wall_s, opening.peak_mb, "", ""),
        ("... and the first get, with index", first.cpu_s, first.wall_s, first.peak_mb, first.returned["ms"], ""),
        (f"... and {args.gets:,} gets", gets.cpu_s, gets.wall_s, gets.peak_mb, ms, f"{gets.returned['worst_ms']:.2f}"),
        (f"... {n_filtered} filtered reads", filtered.cpu_s, filtered.wall_s, filtered.peak_mb, ms_filtered, ""),
        *((f"frame: {kind}", f.cpu_s, f.wall_s, f.peak_mb, "", "") for kind, f in frames.items()),
    ]
    print(table(("", "CPU s", "wall s", "peak MB", "ms a get", "p99 ms"), rows))
    ratio("reader", "filtered read / get, wall", ms_filtered / ms)
    ratio("reader", "target / target and publication, CPU", (target.cpu_s - idle.cpu_s) / (kept.cpu_s - idle.cpu_s))
    ratio("reader", "pyarrow / frame, CPU", frames["alone"].cpu_s / frames["pyarrow"].cpu_s)


def _schema() -> Any:
    import pyarrow as pa

    columns = [("id", pa.string()), ("label", pa.string()), ("reason", pa.string()), ("_model", pa.string())]
    columns += [
        ("_tier", pa.string()),
        ("_cost_usd", pa.decimal128(24, 12)),
        ("_produced_at", pa.timestamp("us", "UTC")),
    ]
    return pa.schema(columns)


def _batches(n_rows: int) -> Iterator[Any]:
    import pyarrow as pa

    rng, schema, at = random.Random(0), _schema(), datetime(2026, 11, 1, tzinfo=UTC)
    numbers = list(range(n_rows))
    rng.shuffle(numbers)
    for start in range(0, n_rows, _BATCH):
        part = numbers[start : start + _BATCH]
        n = len(part)
        reasons = [f"the message of customer {rng.randrange(10**9)} says so in line {rng.randrange(100)}" for _ in part]
        values = [[f"T-{i:08d}" for i in part], rng.choices(["billing", "bug", "account"], k=n), reasons, ["m-1"] * n]
        yield pa.RecordBatch.from_pydict(
            dict(zip(schema.names, [*values, ["batch"] * n, [Decimal("0.000012")] * n, [at] * n], strict=True)), schema
        )


def make(n_rows: int) -> int:
    """Only make the rows: what the other two spend besides."""
    return sum(batch.num_rows for batch in _batches(n_rows))


def load(folder: str, n_rows: int, publishes: bool) -> dict[str, Any]:
    from canwait.blobs import Blobs
    from canwait.published import keeping
    from canwait.sinks.opening import open_sink
    from canwait.types import Load

    with tempfile.TemporaryDirectory(dir=folder) as own:
        blobs = Blobs(Path(own))
        sink = open_sink(Load("target.parquet", "replace"), Path(own), "id")
        if not publishes:
            return {"rows": sink.load(_batches(n_rows), _schema())}
        with keeping(blobs, _schema(), "fields") as kept:
            sink.load(kept.passing(_batches(n_rows)), _schema())
        return {"rows": kept.n_rows, "bytes": blobs.path(kept.blob).stat().st_size}


def _client(folder: str) -> Any:
    from canwait.client import connect

    return connect(f"sqlite:///{folder}/ledger.db", env={"CANWAIT_HOME": folder})


def publish(folder: str, n_rows: int) -> None:
    from canwait import publishing
    from canwait.drills.histories import TERMS
    from canwait.drills.small import SmallJob, plan_small
    from canwait.published import keeping
    from canwait.spec import job_from_dict

    spec = {
        "version": 1, "name": "job", "key": "id", "source": "rows.csv", "model": "openai/gpt-6-luna", "prompt": "{{ text }}",
        "max_output_tokens": 40, "urgency": "batch", "budget": {"usd": 1},
    }  # fmt: skip
    with _client(folder) as client:
        ledger, now = client.ledger, client.clock.now()
        small = SmallJob("job", [[b'{"text": "one"}']], TERMS, lambda body: (len(body), 5), "fake")
        assert ledger.open_plan(plan_small(client.blobs, small, now), now)
        draft = publishing.draft(ledger, "job", "no gate")
        with keeping(client.blobs, _schema(), "fields") as kept:
            for _ in kept.passing(_batches(n_rows)):
                pass
        publishing.publish(
            ledger, draft, job_from_dict(spec, base_dir=Path(folder)), blob=kept.blob, rows=n_rows, failed=0,
            models=kept.models, now=now,
        )  # fmt: skip


def _keys(n_rows: int, n: int) -> list[str]:
    rng = random.Random(1)
    return [f"T-{rng.randrange(n_rows):08d}" for _ in range(n)]


def get(folder: str, n_rows: int, n_gets: int) -> dict[str, float]:
    from canwait.reading import reader

    with _client(folder) as client, reader("job", as_="bench", max_age="24h", client=client) as labels:
        if not n_gets:
            return {}
        labels.get("T-00000000")
        spent = []
        for key in _keys(n_rows, n_gets):
            start = time.perf_counter()
            hit = labels.get(key)
            spent.append(1e3 * (time.perf_counter() - start))
            assert hit is not None
            assert hit.key == key
        spent.sort()
        return {"ms": sum(spent) / n_gets, "worst_ms": spent[n_gets * 99 // 100]}


def get_first(folder: str, n_rows: int) -> dict[str, float]:
    from canwait.reading import reader

    for index in (Path(folder) / "blobs" / "keys").glob("*"):
        index.unlink()
    with _client(folder) as client, reader("job", as_="bench", max_age="24h", client=client) as labels:
        start = time.perf_counter()
        assert labels.get("T-00000000") is not None
        return {"ms": 1e3 * (time.perf_counter() - start)}


def get_filtered(folder: str, n_rows: int, n_gets: int) -> dict[str, float]:
    import pyarrow.parquet as pq

    from canwait import publishing

    with _client(folder) as client:
        found = publishing.newest(client.ledger, "job", client.clock.now())
        path = client.blobs.path(found.blob)
    start = time.perf_counter()
    for key in _keys(n_rows, n_gets):
        assert pq.read_table(path, filters=[("id", "==", key)]).num_rows == 1
    return {"ms": 1e3 * (time.perf_counter() - start) / n_gets}


def frame(folder: str, kind: str) -> int:
    from canwait import publishing
    from canwait.reading import reader

    with _client(folder) as client:
        if kind == "alone":
            import pyarrow.parquet as pq

            found = publishing.newest(client.ledger, "job", client.clock.now())
            return pq.read_table(client.blobs.path(found.blob)).num_rows
        with reader("job", as_="bench", max_age="24h", client=client) as labels:
            return len(labels.frame(kind))


if __name__ == "__main__":
    main()
