"""How often the forecast's bounds hold on real answer lengths: `python benchmarks/forecast_coverage.py DATA`.

DATA is a folder with traces/ (azure_llm_2023_code.csv, mooncake_conversation.jsonl, vidur_arxiv_summarization_lengths.csv,
servegen_token_pmf.csv). Of each set a population is made, random pilots are drawn from it, and the bounds compared with
the truth. `--seeds`, `--pilot`, `--rows`.

`--under-way` asks of jobs that are under way instead: a canary of `--pilot` rows is drawn, the others are cut into ten shards
in the source's order, as the trace has it and sorted by length (shortest first: what has ended says the least of the rest),
and the outlook on the whole is compared with the truth after the canary, after half of the shards, and before the last.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from statistics import median

from measure import table

from canwait.forecast import forecast, rest


def length_sets(data: Path) -> Iterator[tuple[str, list[int]]]:
    """Output tokens of real answers, by source."""
    traces = data / "traces"
    with (traces / "azure_llm_2023_code.csv").open() as file:
        yield "code (Azure 2023)", [int(row["GeneratedTokens"]) for row in csv.DictReader(file)]
    with (traces / "mooncake_conversation.jsonl").open() as file:
        yield "conversation (Mooncake)", [json.loads(line)["output_length"] for line in file]
    with (traces / "vidur_arxiv_summarization_lengths.csv").open() as file:
        yield "summaries (arXiv)", [int(float(row["num_decode_tokens"])) for row in csv.DictReader(file)]
    shapes: dict[str, tuple[list[int], list[float]]] = {}
    with (traces / "servegen_token_pmf.csv").open() as file:
        for row in csv.DictReader(file):
            if row["field"] == "output_tokens":
                values, weights = shapes.setdefault(row["model"], ([], []))
                values.append(int(row["token_bin_lo"]))
                weights.append(float(row["prob"]))
    for model, (values, weights) in shapes.items():
        if model.startswith(("language", "reason")):
            yield f"{model} (ServeGen)", Random(model).choices(values, weights, k=20_000)


def held(lengths: Sequence[int], n_rows: int, n_pilot: int, cap: int, seed: int) -> tuple[bool, bool, float, float]:
    """Whether the likely and the guaranteed bound held, and how far above the truth they were."""
    rng = Random(seed)
    population = rng.sample(lengths, n_rows)
    truth = sum(population)
    made = forecast(population[:n_pilot], n_rows, cap, rng)
    return truth <= made.likely, truth <= made.guaranteed, made.likely / truth, made.guaranteed / truth


def shares(name: str, lengths: list[int], n_rows: int, n_pilot: int, seeds: int) -> list[object]:
    n_rows = min(n_rows, len(lengths))
    found = [held(lengths, n_rows, n_pilot, max(lengths), seed) for seed in range(seeds)]
    likely, guaranteed, above, far_above = zip(*found, strict=True)
    return [name, n_rows, sum(likely) / seeds, median(above), sum(guaranteed) / seeds, median(far_above)]


_SHARDS = 10
_LOOKS = {"canary": 0, "half": _SHARDS // 2, "last": _SHARDS - 1}  # how many shards have ended


def seen(rows: Sequence[int], n_pilot: int, n_ended: int, cap: int, seed: int) -> tuple[bool, bool, float, float]:
    """As `held`, of a job of these rows in this order after its canary and `n_ended` of its shards."""
    size = -(-len(rows) // _SHARDS)
    drawn = Random(seed).sample(range(len(rows)), n_pilot)
    pending = {home: min(size, len(rows) - home * size) for home in range(_SHARDS)}
    for row in drawn:
        pending[row // size] -= 1
    for home in range(n_ended):
        pending[home] = 0
    known = sum(rows[: n_ended * size]) + sum(rows[row] for row in drawn if row >= n_ended * size)
    lengths, homes = [rows[row] for row in drawn], [row // size for row in drawn]
    whole = range(n_ended, _SHARDS)
    still = rest(lengths, homes, pending, whole, n_rows=len(rows), known=known, cap=cap, rng=Random(seed))
    truth = sum(rows)
    likely, guaranteed = known + still.likely, known + still.guaranteed
    return truth <= likely, truth <= guaranteed, likely / truth, guaranteed / truth


def looks(name: str, lengths: list[int], n_rows: int, n_pilot: int, seeds: int) -> list[list[object]]:
    n_rows, cap = min(n_rows, len(lengths)), max(lengths)
    found: list[list[object]] = []
    for order in ("as is", "sorted"):
        for look, n_ended in _LOOKS.items():
            made = []
            for seed in range(seeds):
                start = Random(seed).randrange(len(lengths) - n_rows + 1)
                rows = lengths[start : start + n_rows]
                made.append(seen(sorted(rows) if order == "sorted" else rows, n_pilot, n_ended, cap, seed))
            likely, guaranteed, above, far_above = zip(*made, strict=True)
            shares = sum(likely) / seeds, median(above), sum(guaranteed) / seeds, median(far_above)
            found.append([name, order, look, *shares])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--pilot", type=int, default=200)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--under-way", action="store_true")
    asked = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        if asked.under_way:
            parts = [
                pool.submit(looks, name, lengths, asked.rows, asked.pilot, asked.seeds)
                for name, lengths in length_sets(asked.data)
            ]
            print(f"{asked.seeds} canaries of {asked.pilot} rows each")
            heads = ["lengths", "order", "after", "likely held", "x truth", "guaranteed held", "x truth"]
            print(table(heads, [line for part in parts for line in part.result()]))
            return
        jobs = [
            pool.submit(shares, name, lengths, asked.rows, asked.pilot, asked.seeds)
            for name, lengths in length_sets(asked.data)
        ]
        print(f"{asked.seeds} pilots of {asked.pilot} rows each")
        print(
            table(
                ["lengths", "rows", "likely held", "x truth", "guaranteed held", "x truth"], [j.result() for j in jobs]
            )
        )


if __name__ == "__main__":
    main()
