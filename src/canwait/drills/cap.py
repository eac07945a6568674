"""Random histories: no budget is passed, nothing is paid twice or lost, and the books say what the bill says."""

from __future__ import annotations

import time
from typing import Any

from . import histories


def run(n: int = 300, *, seed: int = 0) -> dict[str, Any]:
    """`n` histories with seeds from `seed` on; a broken promise names the seed with which it is seen again."""
    began = time.monotonic()
    result = histories.run(n, seed=seed)
    v = result.violations
    words = (
        f"{n} histories, {result.n_kills} kills, {result.n_batches} batches, {result.n_rows} rows: {v['over cap']} times over a "
        f"cap, {v['paid twice']} rows paid twice, {v['lost']} lost, {v['bill'] + v['books']} books that differ from the bill"
    )
    counts = {kind.replace(" ", "_"): v[kind] for kind in ("paid twice", "lost", "over cap", "bill", "books")}
    return {
        "name": "cap", "ok": not v.total(),
        "counts": {"histories": n, "kills": result.n_kills, "batches": result.n_batches, "rows": result.n_rows, **counts},
        "seconds": round(time.monotonic() - began, 1), "words": words, "examples": result.examples,
    }  # fmt: skip
