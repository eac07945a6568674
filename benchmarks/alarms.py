"""How often alarms are false, and how soon they find what is wrong: `python benchmarks/alarms.py --rows 2000`.

Simulates canwait.drills.waiting, a made-up provider: rules that tell a frozen batch, each with a history of its own, and
two that tell a growing queue. `--rows` is the number of histories; CPU and wall are medians of `--runs`, the baseline is a
fixed limit of 2 hours.
"""

from __future__ import annotations

import argparse
from math import inf
from statistics import median

from measure import measured, ratio, table

from canwait.drills.waiting import HOUR, alarms, queue_alarms

OURS, BASELINE = "no progress for longer than 99 % of gaps", "out for 2 h"


def frozen(n_runs: int, seed: int, n_past: int) -> list[tuple[str, float, float]]:
    return [(rule, told.false_alarms, told.found_s) for rule, told in alarms(n_runs, seed, n_past=n_past).items()]


def queues(n_runs: int, seed: int) -> list[tuple[str, float, float]]:
    """Of 10 hours in steady state, the share with an alarm; the median minute in which 10 % too much is told."""
    steady = [queue_alarms(600, seed + i) for i in range(n_runs)]
    over = [queue_alarms(600, seed + i, overload=1.1) for i in range(n_runs)]
    return [
        (name, sum(told[i] < inf for told in steady) / n_runs, median(told[i] for told in over))
        for i, name in enumerate(("the oldest waits too long", "CUSUM of arrivals - departures"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000, help="histories; each judges 20 healthy batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for n_past in (150, 50, 19):
        runs = options.runs if n_past == 150 else 1
        found = measured(frozen, options.rows, options.seed, n_past, runs=runs)
        rows = [[rule, f"{false:.2%}", f"{found_s / HOUR:.1f} h"] for rule, false, found_s in found.returned]
        print(f"{n_past} past batches, {options.rows * 20:,} healthy ones")
        print(table(["a batch is called frozen when", "false alarms", "found after"], rows), end="\n\n")
        if n_past == 150:
            frozen_150 = found
    queued = measured(queues, options.rows, options.seed, runs=options.runs)
    print(f"queues, {options.rows:,} runs")
    cells = [[rule, f"{false:.1%}", f"{minutes:.0f} min"] for rule, false, minutes in queued.returned]
    print(table(["a queue is called growing when", "false in 10 h", "+10 % found after"], cells), end="\n\n")
    timed = [("frozen batches", frozen_150, options.rows * 170), ("queues", queued, options.rows * 2)]
    cells = [[name, m.cpu_s, m.wall_s, m.peak_mb, n / m.cpu_s] for name, m, n in timed]
    print(table(["simulation", "CPU s", "wall s", "peak MB", "batches, queues / CPU s"], cells))
    false = {rule: share for rule, share, _ in frozen_150.returned}
    ratio("alarms", "false alarms, 2 h limit / ours", false[BASELINE] / false[OURS])


if __name__ == "__main__":
    main()
