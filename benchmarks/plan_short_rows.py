"""Plan short rows durably: CPU seconds, wall, peak RSS, rows/s, and the ratio to a naive baseline in the same run.

    python benchmarks/plan_short_rows.py [--rows 100000] [--runs 3] [--profile]

Rows are a system line and about 115 characters, at most 64 tokens of answer. Every run is a process of its own; CPU is
user + system of the whole process, and "above 1 row" takes away what importing and one row cost. The baseline reads
with csv.DictReader, renders with Jinja, encodes with json.dumps and writes: it checks no key, finds no duplicate, counts
no token and syncs no file.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import json
import pstats
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median

SYSTEM = "Classify the support message as billing, bug, account or other. Answer with one word."
USER = "Message: {{ message }}"
MODEL = "gpt-4o-mini"
MAX_OUTPUT_TOKENS = 64
WORDS = (
    "the invoice I was charged twice for my account cannot log in since update app crashes when opening settings help "
    "please refund password reset email never arrives order number delivery late broken screen button does nothing thanks"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3, help="medians of this many")
    parser.add_argument("--profile", action="store_true", help="where the time of one plan goes")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure_here({"plan": plan, "naive": naive}[args.one[0]], args.folder, int(args.one[1]))
        return
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as name:
        folder = Path(name)
        for n in (1, 10_000, args.rows):
            write_rows(folder / f"{n}.csv", n)
        if args.profile:
            profile(folder, args.rows)
        else:
            compare(folder, args.rows, args.runs)


def compare(folder: Path, n_rows: int, n_runs: int) -> None:
    cases = [(what, n) for n in (1, 10_000, n_rows) for what in ("plan", "naive")]
    runs = {case: [measure(folder, *case) for _ in range(n_runs)] for case in cases}
    mid = {case: {name: median(run[name] for run in found) for name in found[0]} for case, found in runs.items()}
    print(f"medians of {n_runs} runs")
    print(f"{'':8}{'rows':>9}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}{'CPU s above 1 row':>19}{'rows/CPU s':>12}")
    for what, n in cases:
        m = mid[what, n]
        above = m["cpu_s"] - mid[what, 1]["cpu_s"]
        rate = f"{n / above:,.0f}" if n > 1 else ""
        print(f"{what:8}{n:>9,}{m['cpu_s']:>8.2f}{m['wall_s']:>8.2f}{m['peak_mb']:>9.1f}{above:>19.2f}{rate:>12}")
    above = {what: mid[what, n_rows]["cpu_s"] - mid[what, 1]["cpu_s"] for what in ("plan", "naive")}
    growth = mid["plan", n_rows]["peak_mb"] - mid["plan", 10_000]["peak_mb"]
    print(f"naive / plan, CPU above 1 row: {above['naive'] / above['plan']:.2f}x")
    each = growth * 1e6 / max(1, n_rows - 10_000)
    print(f"peak RSS from 10,000 to {n_rows:,} rows: +{growth:.1f} MB = {each:.0f} bytes a row")


def measure(folder: Path, what: str, n_rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, str(n_rows), "--folder", str(folder)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure_here(work: Callable[[Path, int], None], folder: Path, n_rows: int) -> None:
    start = time.monotonic()
    work(folder, n_rows)
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.monotonic() - start, "peak_mb": peak}))


def plan(folder: Path, n_rows: int) -> None:
    from canwait.blobs import Blobs
    from canwait.prepare import Known, prepare, save_plan
    from canwait.providers.openai import OpenAI
    from canwait.sources.opening import open_source
    from canwait.types import BudgetSpec, Job, Price, Source, Tier, Urgency

    job = Job(
        "short-rows", Source(f"{n_rows}.csv", "id"), "openai", MODEL, (("system", SYSTEM), ("user", USER)),
        MAX_OUTPUT_TOKENS, Urgency.BATCH, BudgetSpec(100_000_000, None, None), base_dir=folder,
    )  # fmt: skip

    def price_of(tier: Tier) -> Price:
        rates = Decimal("0.075"), Decimal("0.3"), None, None
        return Price("openai", MODEL, tier, *rates, "stated for this benchmark", date(2026, 11, 21))

    with tempfile.TemporaryDirectory(dir=folder) as blobs_folder:
        blobs = Blobs(Path(blobs_folder))
        prepared = prepare(
            job, source=open_source(job.source, folder), provider=OpenAI("none"), blobs=blobs, known=Known(),
            price_of=price_of, earlier=None, now=datetime(2026, 11, 21, tzinfo=UTC),
        )  # fmt: skip
        save_plan(blobs, prepared)
    if (prepared.plan.n_new, prepared.plan.n_bad_rows) != (n_rows, 0):
        raise SystemExit(f"planned {prepared.plan.n_new} of {n_rows} rows")


def naive(folder: Path, n_rows: int) -> None:
    import jinja2

    template = jinja2.Environment(autoescape=False).from_string(USER)
    path = folder / f"{n_rows}.csv"
    with path.open(newline="", encoding="utf-8") as source, tempfile.TemporaryFile("w", dir=folder) as out:
        for row in csv.DictReader(source):
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": template.render(**row)}]
            body = {"model": MODEL, "messages": messages, "max_completion_tokens": MAX_OUTPUT_TOKENS}
            line = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")


def write_rows(path: Path, n_rows: int) -> None:
    rng = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "message"])
        for n in range(n_rows):
            writer.writerow([f"{n:06}", f"{' '.join(rng.choices(WORDS, k=18))} #{n}"[-115:]])


def profile(folder: Path, n_rows: int) -> None:
    plan(folder, 1)  # imports are no part of it
    profiler = cProfile.Profile()
    profiler.runcall(plan, folder, n_rows)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
