"""What a ramp saves of a model that goes bad half way, and the time it takes: `python benchmarks/ramp.py`.

A job of `--shards` equal shards whose first one is its canary. Every shard sent after the n-th is bad throughout, and the
first of them that comes home stops the job. Wasted is the share of the whole job's spend that is paid for bad shards: with n
= 20, and the mean over n drawn by lot. Time is that of a job which never goes bad, against sending all at once after the
canary. Three made-up providers: every batch takes an hour; 30 to 90 minutes; or as in benchmarks/rescue.py, 70 % up to 1
hour, 20 % up to 4, 10 % 8 to 24. `--seeds` runs each.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable
from random import Random
from statistics import mean

from measure import table

from canwait.ramp import GROWTH, free

Free = Callable[[int, int], int]
"""How many more shards may go, by how many came home and how many are out."""

WAYS: dict[str, Free] = {
    "all at once": lambda n_home, n_out: 10**9 if n_home else 1 - n_out,
    "4 out for each that is home": lambda n_home, n_out: max(GROWTH * n_home, 1) - n_out,
    "5 at a time": lambda n_home, n_out: (5 if n_home > 1 else GROWTH if n_home else 1) - n_out,
    "waves (canwait)": free,
}


def hour(rng: Random) -> float:
    return 1.0


def spread(rng: Random) -> float:
    return rng.uniform(0.5, 1.5)


def tailed(rng: Random) -> float:
    kind = rng.random()
    return rng.uniform(0.2, 1) if kind < 0.7 else rng.uniform(1, 4) if kind < 0.9 else rng.uniform(8, 24)


def run(way: Free, hours: list[float], good: int) -> tuple[float, float]:
    """The share of all shards that were bad and paid, and the hours until the job was over, stopped or done."""
    out: list[tuple[float, int]] = []
    sent = home = 0
    now = 0.0
    while True:
        n_free = max(way(home, len(out)), int(not out))
        for shard in range(sent, min(sent + n_free, len(hours))):
            heapq.heappush(out, (now + hours[shard], shard))
            sent = shard + 1
        if not out:
            return 0.0, now
        now = out[0][0]
        came = []
        while out and out[0][0] == now:  # what comes home at one moment is seen together
            came.append(heapq.heappop(out)[1])
        home += len(came)
        if max(came) >= good:
            return max(0, sent - good) / len(hours), now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1000)
    asked = parser.parse_args()
    lines: list[list[object]] = []
    for provider in (hour, spread, tailed):
        base = 0.0
        for name, way in WAYS.items():
            rng = Random(1)
            at_20, anywhere, times = [], [], []
            for _ in range(asked.seeds):
                hours = [provider(rng) for _ in range(asked.shards)]
                at_20.append(run(way, hours, 20)[0])
                anywhere.append(run(way, hours, rng.randrange(1, asked.shards))[0])
                times.append(run(way, hours, asked.shards)[1])
            base = base or mean(times)
            lines.append([provider.__name__, name, mean(at_20), mean(anywhere), mean(times), mean(times) / base])
    print(f"{asked.shards} shards, {asked.seeds} runs each")
    print(table(["provider", "way", "wasted, n = 20", "wasted, any n", "hours", "x all at once"], lines))


if __name__ == "__main__":
    main()
