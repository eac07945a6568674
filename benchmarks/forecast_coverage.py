"""How often the forecast's bounds hold on real answer lengths: `python benchmarks/forecast_coverage.py DATA`.

DATA is a folder with traces/ (azure_llm_2023_code.csv, mooncake_conversation.jsonl, vidur_arxiv_summarization_lengths.csv,
servegen_token_pmf.csv). Of each set a population is made, random pilots are drawn from it, and the bounds compared with
the truth. `--seeds`, `--pilot`, `--rows`.
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

from canwait.forecast import forecast


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--pilot", type=int, default=200)
    parser.add_argument("--rows", type=int, default=5000)
    asked = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
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
