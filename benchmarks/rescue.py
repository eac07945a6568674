"""What keeping a deadline costs, and how often it is missed: `python benchmarks/rescue.py --rows 40000`.

Simulates canwait.drills.waiting, a made-up provider: first one batch under six policies at deadlines from 2 to 24 hours,
each policy on the same runs, then 40 shards that are moved at once or one by one. Cost is a share of all rows on standard.
`--rows` is the number of simulated runs; CPU and wall are medians of `--runs`, the baseline is `standard only`.
"""

from __future__ import annotations

import argparse

from measure import measured, ratio, table

from canwait.drills.waiting import HOUR, rescues, spilled

DEADLINES_H = (2, 3, 4, 6, 8, 12, 16, 20, 24)
OURS = "latest start, q99 of the redo"


def policies(n_runs: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Of each policy, cost and misses at each deadline."""
    found: dict[str, list[tuple[float, float]]] = {}
    for hours in DEADLINES_H:
        for name, shares in rescues(hours * HOUR, n_runs, seed).items():
            found.setdefault(name, []).append((shares.cost, shares.missed))
    return found


def shards(n_runs: int, seed: int) -> list[tuple[int, float, float, float, float]]:
    found = []
    for hours in (3, 6, 12):
        at_once, spill = (spilled(hours * HOUR, n_runs, seed, at_once=at_once) for at_once in (True, False))
        found.append((hours, at_once.cost, at_once.missed, spill.cost, spill.missed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000, help="simulated runs at each deadline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    one = measured(policies, options.rows, options.seed, runs=options.runs)
    many = measured(shards, options.rows // 10, options.seed, runs=options.runs)

    print(f"one batch, {options.rows:,} runs at each deadline; cost / missed")
    cells = [[name, *(f"{cost:.3f} / {missed:.2%}" for cost, missed in found)] for name, found in one.returned.items()]
    print(table(["policy", *(f"{hours} h" for hours in DEADLINES_H)], cells))
    print(f"\n40 shards, {options.rows // 10:,} runs; cost / missed")
    pairs = [[f"{h} h", f"{a:.3f} / {b:.2%}", f"{c:.3f} / {d:.2%}"] for h, a, b, c, d in many.returned]
    print(table(["deadline", "all at once", "shard by shard"], pairs))

    simulated = options.rows * len(DEADLINES_H)
    timed = [("one batch", one, simulated), ("40 shards", many, 6 * (options.rows // 10))]
    rows = [[name, m.cpu_s, m.wall_s, m.peak_mb, n / m.cpu_s] for name, m, n in timed]
    print()
    print(table(["simulation", "CPU s", "wall s", "peak MB", "runs / CPU s"], rows))
    for hours, (cost, _) in zip(DEADLINES_H, one.returned[OURS], strict=True):
        ratio("rescue", f"standard only / ours, {hours} h", 1 / cost)


if __name__ == "__main__":
    main()
