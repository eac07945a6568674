"""Look up which of a plan's requests are paid already: 1,000,000 keys, of which half are, among 10,000,000.

    python benchmarks/reuse_lookup.py [--rows 10000000] [--keys 1000000] [--shards 200] [--runs 5]

Keys are looked up as a plan does it, 1,024 at a time. The baselines are a dict of the same places, which every plan would
build anew, and a table of SQLite (blob primary key, without rowid) asked with `IN` of 500 keys. Each run is a process of its
own; CPU is user + system, of the lookups alone and of what comes before the first one. Memory is what the process holds of
its own then, above what imports took; pages of a mapped file are the file's, and are told beside it.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from measure import measured, ratio, table

Found = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="stored")
    parser.add_argument("--keys", type=int, default=1_000_000, help="looked up")
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as folder:
        measured(make, folder, args.rows, args.shards, args.keys)
        built = measured(build, folder)
        added = measured(build, folder, 1)
        measured(fill, folder)
        found = {name: runs_of(look, args.runs, folder) for name, look in LOOKS.items()}
    print(f"{args.rows:,} stored in {args.shards} shards, {args.keys:,} looked up, medians of {args.runs} runs")
    print(
        f"index built from all manifests: {built.returned['cpu_s']:.2f} CPU s, peak {built.peak_mb:,.0f} MB; ", end=""
    )
    print(
        f"a shard more: {added.returned['cpu_s']:.2f} CPU s; {built.returned['bytes'] / args.rows:.1f} bytes a row on disk"
    )
    rows = [
        (name, f["before_s"], f["find_s"], f["find_s"] * 1e6 / args.keys, f["own_mb"], f["own_mb"] * 1e6 / args.rows,
         f["mapped_mb"], f["find_s"] / found["known"]["find_s"])
        for name, f in found.items()
    ]  # fmt: skip
    head = ("", "before s", "lookups s", "us/key", "own MB", "own B/row", "mapped MB", "lookups / known")
    print(table(head, rows))
    for name, f in found.items():
        if name != "known":
            ratio("reuse_lookup", f"{name} / known", f["find_s"] / found["known"]["find_s"])
    if len({f["n_found"] for f in found.values()}) != 1:
        raise SystemExit(f"they differ: { {name: f['n_found'] for name, f in found.items()} }")


def runs_of(look: Callable[[str], Found], n_runs: int, folder: str) -> Found:
    runs = [measured(look, folder).returned for _ in range(n_runs)]
    return {name: median(run[name] for run in runs) for name in runs[0]}


# --------------------------------------------------------------------------------------------------------- what is stored


def make(folder: str, n_rows: int, n_shards: int, n_keys: int) -> None:
    """Manifests of one shard more than asked for, and the keys to look up."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from canwait.landing import MANIFEST

    rng = random.Random(0)
    keys = []
    for shard in range(n_shards + 1):
        n = n_rows // n_shards
        identities = rng.randbytes(16 * n)
        if shard < n_shards:
            keys += [identities[16 * at : 16 * at + 16] for at in rng.sample(range(n), n_keys // n_shards // 2)]
        tokens = pa.array([100] * n, pa.int64())
        columns = [
            pa.array(range(n), pa.int32()), pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(identities)]),
            tokens, tokens, tokens,
        ]  # fmt: skip
        path = Path(folder, f"{shard:05}.manifest")
        pq.write_table(pa.Table.from_arrays(columns, schema=MANIFEST), path, compression="zstd", compression_level=1)
    keys += [rng.randbytes(16) for _ in range(n_keys - len(keys))]
    rng.shuffle(keys)
    Path(folder, "keys").write_bytes(b"".join(keys))


def shards(folder: str, more: int = 0) -> list[tuple[str, Path, Callable[[int], bool]]]:
    paths = sorted(Path(folder).glob("*.manifest"))
    return [(path.stem, path, lambda line: True) for path in paths[: len(paths) - 1 + more]]


def build(folder: str, more: int = 0) -> dict[str, float]:
    from canwait.known import Known

    index = Path(folder, "index")
    given, began = shards(folder, more), time.process_time()
    Known(given, index)
    return {"cpu_s": time.process_time() - began, "bytes": sum(path.stat().st_size for path in index.iterdir())}


def fill(folder: str) -> None:
    """The table, filled in the order of its keys."""
    with closing(sqlite3.connect(Path(folder, "known.db"))) as db, db:
        db.execute("CREATE TABLE known (identity BLOB PRIMARY KEY, shard INTEGER, line INTEGER) WITHOUT ROWID")
        db.executemany("INSERT INTO known VALUES (?, ?, ?)", sorted(every(folder)))


def every(folder: str) -> Iterable[tuple[bytes, int, int]]:
    from canwait.landing import read_manifest

    for number, (_, path, _) in enumerate(shards(folder)):
        for line, identity in enumerate(read_manifest(path)["identity"].to_pylist()):
            yield identity, number, line


# ---------------------------------------------------------------------------------------------------------- looking it up


def known(folder: str) -> Found:
    import pyarrow as pa

    from canwait.known import Known

    pa.array([0])  # the first one imports pandas where it is installed

    def opened() -> Callable[[list[bytes]], Iterable[object]]:
        return Known(shards(folder, 1), Path(folder, "index")).find

    return timed(folder, opened, 1024)


def a_dict(folder: str) -> Found:
    import pyarrow as pa

    import canwait.landing  # noqa: F401  what reads the manifests

    pa.array([0])

    def opened() -> Callable[[list[bytes]], Iterable[object]]:
        places = {identity: shard << 32 | line for identity, shard, line in every(folder)}
        return lambda keys: [places.get(key) for key in keys]

    return timed(folder, opened, 1024)


def sqlite_in(folder: str) -> Found:
    def opened() -> Callable[[list[bytes]], Iterable[object]]:
        db = sqlite3.connect(Path(folder, "known.db"))
        asked = f"SELECT identity, shard, line FROM known WHERE identity IN ({','.join('?' * 500)})"

        def find(keys: list[bytes]) -> list[object]:
            return db.execute(asked, keys + [b""] * (500 - len(keys))).fetchall()

        return find

    return timed(folder, opened, 500)


LOOKS: dict[str, Callable[[str], Found]] = {"known": known, "dict": a_dict, "SQLite IN": sqlite_in}


def timed(folder: str, opened: Callable[[], Callable[[list[bytes]], Iterable[object]]], n_together: int) -> Found:
    content = Path(folder, "keys").read_bytes()
    keys = [content[at : at + 16] for at in range(0, len(content), 16)]
    before, began = resident_mb(), time.process_time()
    find = opened()
    ready = time.process_time()
    n_found = 0
    for at in range(0, len(keys), n_together):
        n_found += sum(place is not None for place in find(keys[at : at + n_together]))
    done, after = time.process_time(), resident_mb()
    return {
        "before_s": ready - began, "find_s": done - ready, "n_found": n_found,
        "own_mb": max(0.0, after["RssAnon"] - before["RssAnon"]), "mapped_mb": max(0.0, after["RssFile"] - before["RssFile"]),
    }  # fmt: skip


def resident_mb() -> dict[str, Any]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1e3 for words in lines if words[0].startswith("Rss")}


if __name__ == "__main__":
    main()
