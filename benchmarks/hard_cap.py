"""How much of a job a hard cap lets through, and at what overspend: `python benchmarks/hard_cap.py DATA`.

DATA is a folder with traces/, as for forecast_coverage.py. Jobs of `--rows` real requests in 20 shards, at .7 and 1.3 of what
they truly cost, `--seeds` orders of the rows each. Decisions are the package's (releasing.py, price.py); batches take half to
one and a half turnarounds, so a *round* is one turnaround. `--engine-rows` of them then go through the engine itself, against
the simulator, whose bill is the truth.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from statistics import fmean

from measure import table

from canwait import connect, releasing
from canwait.client import Client
from canwait.drills.histories import PRICE
from canwait.forecast import rounds
from canwait.price import cost_micros, format_usd, worst_micros
from canwait.releasing import Bounds, Part, Room, Stranded, Wait, release
from canwait.simulator import ScaledClock, Simulator
from canwait.types import Usage

SHARDS = 20
SHARES = (0.7, 1.3)  # of the true cost
PILOT = 200
BAR = 0.698
LAST_MILE = releasing.LAST_MILE
LAST_MILES = (10**9, 1000, LAST_MILE, 200, 50)

Row = tuple[int, int]  # (input, output) tokens billed
Decide = Callable[[Bounds, Room], Wait | Part | Stranded]


def request_sets(data: Path) -> Iterator[tuple[str, list[Row]]]:
    """Real requests by source; where only the distributions of their tokens are known, drawn from those."""
    traces = data / "traces"
    with (traces / "azure_llm_2023_code.csv").open() as file:
        yield "code", [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)]
    with (traces / "mooncake_conversation.jsonl").open() as file:
        yield "conversation", [(r["input_length"], r["output_length"]) for r in map(json.loads, file)]
    with (traces / "vidur_arxiv_summarization_lengths.csv").open() as file:
        found = csv.DictReader(file)
        yield "summaries", [(int(float(r["num_prefill_tokens"])), int(float(r["num_decode_tokens"]))) for r in found]
    shapes: dict[str, tuple[list[int], list[float]]] = {}
    with (traces / "servegen_token_pmf.csv").open() as file:
        for r in csv.DictReader(file):
            if r["model"] == "reason/deepseek-r1":
                values, weights = shapes.setdefault(r["field"], ([], []))
                values.append(int(r["token_bin_lo"]))
                weights.append(float(r["prob"]))
    drawn = [Random(field).choices(*shapes[field], k=20_000) for field in ("input_tokens", "output_tokens")]
    yield "reasoning", list(zip(*drawn, strict=True))


# ---------------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True, slots=True)
class Played:
    done: float  # of the rows
    over: float  # of the limit, spent past it
    rounds: float


def shrinking(bounds: Bounds, room: Room) -> Wait | Part | Stranded:
    """Ours."""
    return release(bounds, PRICE, [room])


def fixed(bounds: Bounds, room: Room) -> Wait | Part | Stranded:
    return Wait() if room.coming else Stranded(range(len(bounds)), "it does not fit")


def reserving(
    rows: Sequence[Row], cap: int, limit: int, rng: Random, *, decide: Decide = shrinking, last_mile: int | None = None
) -> Played:
    """Every shard is reserved at its worst case and settled at its cost; `decide` says what becomes of one that does not fit."""
    releasing.LAST_MILE = last_mile or LAST_MILE
    size = -(-len(rows) // SHARDS)
    planned = [rows[start : start + size] for start in range(0, len(rows), size)]
    out: list[tuple[float, int, int, Sequence[Row]]] = []  # ends at, number, held, rows
    numbers = count()
    now, held, spent, most, n_done = 0.0, 0, 0, 0, 0
    while planned or out:
        due, planned = planned[::-1], []
        while due:
            shard = due.pop()
            bounds = [(n_input, cap) for n_input, _ in shard]
            worst = worst_micros(bounds, PRICE)
            if spent + held + worst <= limit:
                held += worst
                heapq.heappush(out, (now + rng.uniform(0.5, 1.5), next(numbers), worst, shard))
                continue
            match decide(bounds, Room("job", "micros", limit, limit - spent - held, bool(out))):
                case Wait():
                    planned.append(shard)
                case Part(n):
                    due.append(shard[:n])
                    planned.append(shard[n:])
                case Stranded(lines):
                    if kept := [row for line, row in enumerate(shard) if line not in lines]:
                        due.append(kept)
        if out:
            now, _, worst, shard = heapq.heappop(out)
            held, spent, n_done = held - worst, spent + cost(shard), n_done + len(shard)
            most = max(most, spent + held)
    return Played(n_done / len(rows), max(0, most - limit) / limit, now)


def whole(rows: Sequence[Row], cap: int, limit: int, rng: Random) -> Played:
    """As many rows as the limit holds at their worst case, once."""
    bounds = [(n_input, cap) for n_input, _ in rows]
    fits = release(bounds, PRICE, [Room("job", "micros", limit, limit, coming=False)])
    n = fits.n_lines if isinstance(fits, Part) else 0
    return Played(n / len(rows), 0.0, rng.uniform(0.5, 1.5))


def estimating(rows: Sequence[Row], cap: int, limit: int, rng: Random) -> Played:
    """As many rows as the limit holds at the mean of a pilot, all at once."""
    n = min(len(rows), limit * PILOT // cost(rows[:PILOT]))
    over = max(0, cost(rows[:n]) - limit) / limit
    return Played(n / len(rows), over, max(rng.uniform(0.5, 1.5) for _ in range(SHARDS)))


POLICIES: dict[str, Callable[[Sequence[Row], int, int, Random], Played]] = {
    "estimate once, send all": estimating,
    "whole job at its worst case": whole,
    "fixed shards at their worst case": partial(reserving, decide=fixed),
    "the last shards shrink (ours)": reserving,
}


def cost(rows: Sequence[Row]) -> int:
    return cost_micros((Usage(*row) for row in rows), PRICE)


def orders(rows: Sequence[Row], n_rows: int, seed: int) -> tuple[list[Row], int]:
    """A random order of so many of the rows, and what each may answer at most."""
    return Random(seed).sample(rows, min(n_rows, len(rows))), max(n_output for _, n_output in rows)


@dataclass(frozen=True, slots=True)
class Compared:
    policies: list[list[object]]  # lines of a table
    last_miles: list[object]  # a line of another
    kept: bool  # whether ours answers BAR of the rows at the smaller limit, and passes none


def compared(name: str, rows: list[Row], n_rows: int, seeds: int) -> Compared:
    lines: list[list[object]] = []
    kept = True
    for share in SHARES:
        found: dict[str, list[Played]] = {policy: [] for policy in POLICIES}
        predicted = []
        for seed in range(seeds):
            sample, cap = orders(rows, n_rows, seed)
            truth, worst = cost(sample), worst_micros([(n_input, cap) for n_input, _ in sample], PRICE)
            limit = int(truth * share)
            predicted.append(rounds(limit, truth, worst))
            for policy, play in POLICIES.items():
                found[policy].append(play(sample, cap, limit, Random(seed)))
        for policy, played in found.items():
            mean = fmean(p.done for p in played)
            is_ours = POLICIES[policy] is reserving
            said = f"{fmean(predicted):.1f}" if is_ours and share > 1 else "-"
            over = f"{max(p.over for p in played):.1%}"
            lines.append([name, f"{share}", policy, f"{mean:.3f}", over, fmean(p.rounds for p in played), said])
            kept &= not is_ours or (mean >= BAR and not any(p.over for p in played))
    return Compared(lines, _last_mile(name, rows, n_rows, seeds), kept)


def _last_mile(name: str, rows: list[Row], n_rows: int, seeds: int) -> list[object]:
    cells: list[object] = [name]
    for last_mile in LAST_MILES:
        played = []
        for seed in range(seeds):
            sample, cap = orders(rows, n_rows, seed)
            limit = int(cost(sample) * SHARES[0])
            played.append(reserving(sample, cap, limit, Random(seed), last_mile=last_mile))
        cells.append(f"{fmean(p.done for p in played):.4f} / {fmean(p.rounds for p in played):.0f}")
    return cells


# -------------------------------------------------------------------------------------------------- the engine itself


def through_the_engine(rows: list[Row], n_rows: int, share: float) -> list[object]:
    """A job of so many rows under a limit, run by the engine; what it costs is known from a run without one."""
    lengths = [n_output for _, n_output in rows]
    with tempfile.TemporaryDirectory() as folder:
        with office(Path(folder) / "free", lengths) as (client, simulator):
            truth = _run(client, Path(folder), n_rows, max(lengths), "1000000", simulator)[1]
        limit = int(truth * share)
        with office(Path(folder) / "capped", lengths) as (client, simulator):
            ok, bill = _run(client, Path(folder), n_rows, max(lengths), format_usd(limit), simulator)
            over, left = max(0, bill - limit), max(0, limit - bill)
            return [n_rows, f"{share}", f"{ok / n_rows:.3f}", over, left, len(simulator.batches())]


@contextmanager
def office(folder: Path, lengths: Sequence[int]) -> Iterator[tuple[Client, Simulator]]:
    def answer(body: object, rng: Random) -> str:
        return "four" * rng.choice(lengths)  # of 4 bytes are a token

    simulator = Simulator(clock=ScaledClock(40_000), answer=answer, folder=folder / "provider")
    with simulator.serve() as url:
        env = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "key", "CANWAIT_HOME": str(folder)}
        env |= {"CANWAIT_DB": f"sqlite:///{folder / 'ledger.db'}", "CANWAIT_POLL_S": "0.05", "CANWAIT_SETTLE_S": "1.5"}
        with connect(env=env) as client:
            yield client, simulator
    simulator.close()


def _run(client: Client, folder: Path, n_rows: int, cap: int, usd: str, simulator: Simulator) -> tuple[int, int]:
    """Rows answered, and the provider's bill in micros."""
    (folder / "rows.csv").write_text("id,text\n" + "".join(f"{n},message number {n}\n" for n in range(n_rows)))
    job = {
        "version": 1, "name": "capped", "source": {"uri": "rows.csv", "key": "id"}, "model": "openai/gpt-6-luna",
        "prompt": "Answer: {{ text }}", "max_output_tokens": cap, "urgency": "batch", "deadline": "30d",
        "budget": {"usd": usd, "on_exceed": "trim"}, "shard": {"max_rows": -(-n_rows // SHARDS)},
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(job))
    figures = client.job(folder / "job.yaml").run()
    assert figures.confirmed_micros == simulator.bill_micros()
    return figures.ok, simulator.bill_micros()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--engine-rows", type=int, default=3_000)
    asked = parser.parse_args()
    sets = dict(request_sets(asked.data))
    with ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(compared, name, rows, asked.rows, asked.seeds) for name, rows in sets.items()]
        found = [job.result() for job in jobs]
    headings = ["requests", "x true cost", "policy", "rows done", "worst overspend", "rounds", "predicted"]
    print(f"{asked.rows:,} rows, {SHARDS} shards, {asked.seeds} orders")
    print(table(headings, [line for each in found for line in each.policies]))
    print(
        f"bar: {BAR} of the rows at {SHARES[0]}, nothing overspent: {'kept' if all(e.kept for e in found) else 'NOT KEPT'}"
    )
    print(f"\nrows done / rounds at {SHARES[0]} of the true cost, by the share of the limit below which it stops")
    print(table(["requests", "0", *(f"1/{n}" for n in LAST_MILES[1:])], [each.last_miles for each in found]))
    print("\nthrough the engine, against the simulator")
    engine = through_the_engine(sets["summaries"], asked.engine_rows, SHARES[0])
    print(table(["rows", "x true cost", "rows done", "overspend", "left, micros", "batches"], [engine]))


if __name__ == "__main__":
    main()
