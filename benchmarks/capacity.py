"""How many warm slots traffic needs: the known answers on real traces, and what finding them costs.

    python benchmarks/capacity.py [--rows 200000] [--runs 5] [--traces ../shared/data/traces]

The baseline for slots adds one at a time from the offered load on and simulates every call; the one for valleys is the
bisection over a step-by-step simulation of methods.md 2, to one part in a million. Rows are calls of a seeded generator:
Poisson arrivals at 20 busy slots, and every ten minutes one in which they come five times as fast. CPU is that of the
search alone; peak memory is the process with the trace in it. Without the traces only the generated rows are measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path

from measure import measured, ratio, table

from canwait.audit.capacity import Trace, Work, avoided, slots_needed, staffing, valley_capacity, waits

TRACES = Path(__file__).parent.parent.parent / "shared" / "data" / "traces"
MODELS = {"large LLM": "language_m-large", "reasoning": "reason_deepseek-r1", "image": "multimodal_mm-image"}
CASES = [(share, hours) for share in (0.3, 0.5, 0.7) for hours in (1, 24)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="calls made up")
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    parser.add_argument("--traces", type=Path, default=TRACES)
    args = parser.parse_args()
    ours, one_by_one = (measured(f, args.rows, runs=args.runs) for f in (search, adding))
    rows = [
        (
            name,
            found.returned["slots"],
            found.returned["cpu_s"],
            args.rows / found.returned["cpu_s"],
            found.wall_s,
            found.peak_mb,
        )
        for name, found in (("canwait", ours), ("one at a time", one_by_one))
    ]
    print(f"fewest slots for {args.rows:,} calls, P(wait > 1 s) <= 1 %; wall and peak with making the calls")
    print(table(("", "slots", "CPU s", "calls/s", "wall s", "peak MB"), rows))
    ratio("capacity", "one at a time / canwait, slots", one_by_one.returned["cpu_s"] / ours.returned["cpu_s"])
    if args.traces.is_dir():
        known_answers(str(args.traces), args.runs)
    else:
        print(f"\nno traces in {args.traces}: their known answers are left out")


def known_answers(folder: str, runs: int) -> None:
    staffed = measured(staff, folder, runs=runs)
    print("\nslots of an hour of calls, at 8,000 input and 50 output tokens a second")
    print(table(("trace", "calls", "load", "simulated", "Erlang C", "square root", "CPU s"), staffed.returned))
    exact, halved = (measured(f, folder, runs=runs) for f in (valleys, halved_valleys))
    print("\nshare of the peak avoided when a share of the load may wait; steps without figures are idle")
    print(table(("", *(f"{share} {hours} h" for share, hours in CASES)), exact.returned["found"]))
    print("\nthe same if the steps with figures repeat for ever")
    print(table(("", *(f"{share} {hours} h" for share, hours in CASES)), measured(lasting, folder).returned))
    ours, theirs = exact.returned["cpu_s"], halved.returned["cpu_s"]
    print(f"\n18 valleys: {ours:.3f} CPU s, by bisection {theirs:.3f}")
    ratio("capacity", "bisection / canwait, valleys", theirs / ours)


# ------------------------------------------------------------------------------------------ each run in a process


def search(n_rows: int) -> dict[str, float]:
    calls = made_up(n_rows)
    began = time.process_time()
    slots = slots_needed(calls)
    return {"slots": slots, "cpu_s": time.process_time() - began}


def adding(n_rows: int) -> dict[str, float]:
    calls = made_up(n_rows)
    began = time.process_time()
    slots = int(sum(calls.service_s) / calls.at_s[-1])
    while sum(wait > 1 for wait in waits(calls, slots)) > len(calls) // 100:
        slots += 1
    return {"slots": slots, "cpu_s": time.process_time() - began}


def staff(folder: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, calls in (("chat (Mooncake)", chat(folder)), ("code (Azure)", code(folder))):
        began = time.process_time()
        s = staffing(Trace.of(calls))
        cpu_s = f"{time.process_time() - began:.3f}"
        rows.append([name, s.n_calls, s.offered, s.simulated, s.erlang, round(s.square_root, 1), cpu_s])
    return rows


def valleys(folder: str) -> dict[str, object]:
    return all_valleys(folder, valley_capacity)


def halved_valleys(folder: str) -> dict[str, object]:
    return all_valleys(folder, halve)


def lasting(folder: str) -> list[list[object]]:
    return [
        [name, *(f"{avoided(*split(load, share), 6 * hours).sustained:.3f}" for share, hours in CASES)]
        for name, load, _ in rates(folder)
    ]


def all_valleys(folder: str, capacity: Callable[[Sequence[float], Sequence[float], int], float]) -> dict[str, object]:
    loads = [(name, load + [0.0] * n_lacking) for name, load, n_lacking in rates(folder)]
    began = time.process_time()
    found = [[1 - capacity(*split(load, share), 6 * hours) / max(load) for share, hours in CASES] for _, load in loads]
    cpu_s = time.process_time() - began
    return {
        "cpu_s": cpu_s,
        "found": [[name, *(f"{x:.3f}" for x in row)] for (name, _), row in zip(loads, found, strict=True)],
    }


def halve(online: Sequence[float], deferred: Sequence[float], wait_steps: int) -> float:
    arrived = list(accumulate(deferred))

    def feasible(capacity: float) -> bool:
        served = 0.0
        for t, load in enumerate(online):
            served += min(arrived[t] - served, capacity - load)
            if t >= wait_steps and served < arrived[t - wait_steps] - 1e-9:
                return False
        return True

    low, high = max(online), max(a + b for a, b in zip(online, deferred, strict=True))
    if feasible(low):
        return low
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


# ------------------------------------------------------------------------------------------------------------ data


def made_up(n_rows: int) -> Trace:
    rng = random.Random(1)

    def calls() -> Iterator[Work]:
        at_s = 0.0
        for _ in range(n_rows):
            at_s += rng.expovariate(20 if at_s % 600 < 60 else 4)
            yield Work(at_s, rng.expovariate(1 / 5))

    return Trace.of(calls())


def chat(folder: str) -> list[Work]:
    with Path(folder, "mooncake_conversation.jsonl").open() as lines:
        rows = map(json.loads, lines)
        return [work(row["timestamp"] / 1000, row["input_length"], row["output_length"]) for row in rows]


def code(folder: str) -> list[Work]:
    with Path(folder, "azure_llm_2023_code.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    at = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        work((then - at[0]).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for then, row in zip(at, rows, strict=True)
    ]


def work(at_s: float, input_tokens: int, output_tokens: int) -> Work:
    return Work(at_s, input_tokens / 8000 + output_tokens / 50)


def rates(folder: str) -> list[tuple[str, list[float], int]]:
    with Path(folder, "servegen_rates_10min_14d.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ((name, [row[column] for row in rows]) for name, column in MODELS.items())
    return [(name, [float(cell) for cell in cells if cell], cells.count("")) for name, cells in columns]


def split(load: Sequence[float], share: float) -> tuple[list[float], list[float]]:
    return [(1 - share) * x for x in load], [share * x for x in load]


if __name__ == "__main__":
    main()
