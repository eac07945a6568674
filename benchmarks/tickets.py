"""Support tickets for benchmarks: English that ships with Python, made unequal by a seeded generator.

Sentences come from the reference text of `help()`. Every fifth carries something never seen before (an order number, an
address, a hex id), a few have a typo, some are in another script, and every seventh ticket repeats an earlier one.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

HEADER = ("id", "customer", "product", "language", "body")
DUPLICATES = 0.15
_OTHER = (
    "Das Gerät startet nicht mehr, bitte um Hilfe.", "订单还没有收到，请尽快处理。", "Не могу войти в аккаунт 🙁",
    "ログインできません。👍🏽",
)  # fmt: skip


def sentences() -> list[str]:
    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    return [s for s in re.split(r"(?<=[.:;]) ", text) if 20 < len(s) < 240 and s.isascii() and not set(s) & set('"\\')]


def tickets(n_rows: int, seed: int = 0) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of about 0.8 kB. The id of each is its own; everything else of a duplicate is that of another."""
    rng, known = random.Random(seed), sentences()
    recent: list[tuple[str, str, str, str]] = []
    for n in range(n_rows):
        if recent and rng.random() < DUPLICATES:
            ticket = recent[rng.randrange(len(recent))]
        else:
            body = " ".join(_said(rng, known) for _ in range(min(40, max(1, round(rng.lognormvariate(1.75, 0.5))))))
            ticket = (f"Customer {n}", rng.choice(("router", "phone", "app")), rng.choice(("en", "de", "zh")), body)
            recent.append(ticket)
            if len(recent) > 50_000:
                recent[rng.randrange(50_000)] = recent.pop()
        yield f"T{n:08}", *ticket


def _said(rng: random.Random, known: list[str]) -> str:
    chance = rng.random()
    if chance < 0.03:
        return rng.choice(_OTHER)
    said = rng.choice(known)
    if chance < 0.21:
        fresh = (f"order {rng.getrandbits(40):x}", f"u{rng.getrandbits(30)}@mail.example", f"#{rng.randrange(10**8)}")
        return f"{said} {rng.choice(fresh)}"
    if chance < 0.33:
        at = rng.randrange(len(said) - 1)
        return said[:at] + said[at + 1] + said[at] + said[at + 2 :]
    return said


def write_csv(path: Path, n_rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(tickets(n_rows))


def write_parquet(path: Path, n_rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in HEADER])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = []
        for n, row in enumerate(tickets(n_rows), 1):
            rows.append(row)
            if len(rows) == 50_000 or n == n_rows:
                columns = [pa.array(column) for column in zip(*rows, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                rows.clear()
