"""Random histories at scale: `python benchmarks/histories.py --n 10000 --seed 0 --processes 2`.

Prints the counts of `canwait.drills.histories` as one JSON object; exits with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from canwait.drills.histories import Result, run

CHUNK = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="how many histories")
    parser.add_argument("--seed", type=int, default=0, help="of the first one; each has the next")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began, total = time.monotonic(), Result()
    ends = options.seed + options.n
    chunks = [(min(CHUNK, ends - first), first) for first in range(options.seed, ends, CHUNK)]
    with ProcessPoolExecutor(options.processes) as pool:
        for result in pool.map(_chunk, chunks):
            total.add(result)
            print(f"\r{total.n_histories} histories, {total.violations.total()} violations", end="", file=sys.stderr)
    print(file=sys.stderr)
    kinds = ("paid twice", "unreported", "lost", "over cap", "stranded", "bill", "books")
    counts = {kind: total.violations[kind] for kind in kinds}
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({
        "histories": total.n_histories, "kills": total.n_kills, "batches": total.n_batches, "rows": total.n_rows,
        **counts, "examples": total.examples, "seconds": seconds,
    }))  # fmt: skip
    return 1 if total.violations else 0


def _chunk(chunk: tuple[int, int]) -> Result:
    n, seed = chunk
    return run(n, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
