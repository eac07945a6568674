"""Which rows of a plan are those of an earlier one: a row is unchanged where the same line of a shard answers its key.

Rows are matched by 64-bit hashes of their keys, some of them at a time: memory does not grow with the rows.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from .columns import integers

pc: Any = pyarrow.compute  # its stubs do not know all of it

_PART_ROWS = 1 << 20  # matched at a time
_BATCH_ROWS = 65_536
_LINE_BITS = 32
_PLACED = pa.schema([("key", pa.int64()), ("place", pa.int64())])


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a plan."""

    path: Path  # its `rows_blob`
    shards: Sequence[str]  # what the shard index in it points to


@dataclass(frozen=True, slots=True)
class Counts:
    """The rows of a later plan, and those that it has no longer."""

    unchanged: int
    changed: int
    new: int
    removed: int

    def __str__(self) -> str:
        counts = {"unchanged": self.unchanged, "changed": self.changed, "new": self.new, "removed": self.removed}
        all_ = [name for name, n in counts.items() if n == sum(counts.values())]
        return f"all rows {all_[0]}" if all_ else ", ".join(f"{n:,} {name}" for name, n in counts.items())


@dataclass(frozen=True, slots=True)
class Since:
    """What is different from the last publication, and which parts of the job made it so."""

    version: int
    counts: Counts
    because: tuple[str, ...]

    def __str__(self) -> str:
        why = f"   {', '.join(self.because)}" if self.because else ""
        return f"version {self.version}: {self.counts}{why}"


def count_changes(before: Rows, after: Rows, folder: Path) -> Counts:
    """`folder`: for files that are gone when it returns."""
    numbers = {shard: number for number, shard in enumerate({*before.shards, *after.shards})}
    n_before, n_after = (pq.read_metadata(rows.path).num_rows for rows in (before, after))
    n_parts = 1 << (max(n_before, n_after) // _PART_ROWS).bit_length()
    kept = unchanged = 0
    with ExitStack() as stack:
        old, new = (_parted(rows, numbers, n_parts, folder, stack) for rows in (before, after))
        for older, newer in zip(old, new, strict=True):
            was, now = _read(older), _read(newer)
            at = pc.index_in(now["key"], value_set=was["key"])
            kept += len(at) - at.null_count
            unchanged += pc.equal(was["place"].take(at), now["place"]).true_count
    return Counts(unchanged, kept - unchanged, n_after - kept, n_before - kept)


def _parted(rows: Rows, numbers: Mapping[str, int], n_parts: int, folder: Path, stack: ExitStack) -> list[IO[bytes]]:
    """Hashes of keys, and what answers them, in files: a key is in the same part of either plan."""
    files: list[IO[bytes]] = []
    for _ in range(n_parts):
        files.append(stack.enter_context(tempfile.TemporaryFile(dir=folder)))  # noqa: SIM115 the stack closes it
    shards = integers(array("q", [numbers[shard] << _LINE_BITS for shard in rows.shards]))
    with ExitStack() as writing:
        outs = [writing.enter_context(pa.ipc.new_stream(cast(IOBase, file), _PLACED)) for file in files]
        for batch in pq.ParquetFile(rows.path, pre_buffer=False).iter_batches(_BATCH_ROWS):
            keys = integers(array("q", map(hash, batch["key"].to_pylist())))
            places = pc.add(shards.take(batch["shard"]), batch["line"].cast(pa.int64()))
            placed = pa.RecordBatch.from_arrays([keys, places], schema=_PLACED)
            part = pc.bit_wise_and(keys, n_parts - 1)
            for number, out in enumerate(outs):
                out.write_batch(placed if n_parts == 1 else placed.filter(pc.equal(part, number)))
    return files


def _read(file: IO[bytes]) -> pa.RecordBatch:
    file.seek(0)
    with pa.ipc.open_stream(cast(IOBase, file)) as stream:
        batches = stream.read_all().combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], _PLACED)
