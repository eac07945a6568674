"""Plan short rows durably: CPU seconds, wall, peak RSS, rows/s, and the ratio to a naive baseline in the same run.

    python benchmarks/plan_short_rows.py [--rows 100000] [--runs 5]

Rows are a system line and about 115 characters, at most 64 tokens of answer. "Above 1 row" takes away what importing and
one row cost. The baseline reads with csv.DictReader, renders with Jinja, encodes with json.dumps and writes: it checks no
key, finds no duplicate, counts no token and syncs no file.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
from pathlib import Path

from measure import measured, ratio, table
from planning import plan_into

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
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as folder:
        for n in (1, args.rows):
            measured(write_rows, folder, n)
        found = {
            (what.__name__, n): measured(what, folder, n, runs=args.runs)
            for n in (1, args.rows)
            for what in (plan, naive)
        }
        above = {what: found[what, args.rows].cpu_s - found[what, 1].cpu_s for what in ("plan", "naive")}
        rows: list[list[object]] = [
            [
                f"{what}, {n:,} rows",
                m.cpu_s,
                m.wall_s,
                m.peak_mb,
                above[what] if n > 1 else "",
                n / above[what] if n > 1 else "",
            ]
            for (what, n), m in found.items()
        ]
        print(f"medians of {args.runs} runs")
        print(table(["", "CPU s", "wall s", "peak MB", "CPU s above 1 row", "rows/CPU s above"], rows))
        ratio("plan_short_rows", "naive / plan, CPU above 1 row", above["naive"] / above["plan"])


def plan(folder: str, n_rows: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as blobs:
        prompt = (("system", SYSTEM), ("user", USER))
        made = plan_into(blobs, Path(folder) / f"{n_rows}.csv", MODEL, prompt, MAX_OUTPUT_TOKENS).plan
    if (made.n_new, made.n_bad_rows) != (n_rows, 0):
        raise SystemExit(f"planned {made.n_new} of {n_rows} rows")


def naive(folder: str, n_rows: int) -> None:
    import jinja2

    template = jinja2.Environment(autoescape=False).from_string(USER)
    path = Path(folder) / f"{n_rows}.csv"
    with path.open(newline="", encoding="utf-8") as source, tempfile.TemporaryFile("w", dir=folder) as out:
        for row in csv.DictReader(source):
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": template.render(**row)}]
            body = {"model": MODEL, "messages": messages, "max_completion_tokens": MAX_OUTPUT_TOKENS}
            line = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")


def write_rows(folder: str, n_rows: int) -> None:
    rng = random.Random(0)
    with (Path(folder) / f"{n_rows}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "message"])
        for n in range(n_rows):
            writer.writerow([f"{n:06}", f"{' '.join(rng.choices(WORDS, k=18))} #{n}"[-115:]])


if __name__ == "__main__":
    main()
