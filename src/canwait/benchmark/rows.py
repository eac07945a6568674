"""A seeded random sample of a source's different requests, by stratum, in one pass and in memory of its own size.

Each request gets a random number from the seed and its bytes, and the smallest numbers are the sample: equal requests get
equal numbers, so they count once, and the order of the rows does not matter. How many different ones there are is told by
how small the smallest are (Bar-Yossef et al. 2002); of strata that fit in the sample it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Any

from ..errors import Problem, SourceError, SpecError
from ..render import RowProblem, compile_job, did_you_mean
from ..sources import RowSource
from ..types import Job

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_STRATA = 100
_SPAN = 1 << 64


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample, and what it was drawn from."""

    table: pa.Table  # the columns that the job needs, in random order
    strata: Mapping[str, int]  # rows drawn of each; one nameless stratum where none was asked for
    n_rows: int  # of the source
    n_different: int  # requests among those that could be drawn; estimated unless `counted`
    counted: bool
    n_unusable: int  # rows that cannot become requests
    n_unlabelled: int  # rows without a gold label


def draw(job: Job, source: RowSource, n: int, *, seed: int, by: str | None = None, gold: str | None = None) -> Drawn:
    """`n` rows, or all there are, in proportion to the strata. Raises SourceError and SpecError, as planning does."""
    renderer = compile_job(job)
    names = list(dict.fromkeys((job.source.key, *sorted(renderer.columns), *filter(None, (by, gold)))))
    must_have(names, source)
    strata: dict[str, _Smallest] = {}
    n_rows = n_unusable = n_unlabelled = 0
    for batch in source.batches(names):
        for values in zip(*(batch.columns[name] for name in names), strict=True):
            n_rows += 1
            row = dict(zip(names, values, strict=True))
            if gold is not None and row[gold] in (None, ""):
                n_unlabelled += 1
                continue
            try:
                body = renderer.render(row).body
            except RowProblem:
                n_unusable += 1
                continue
            stratum = "" if by is None or row[by] is None else str(row[by])
            if stratum not in strata:
                if len(strata) == _MAX_STRATA:
                    raise _too_many(source, by or "")
                strata[stratum] = _Smallest(n)
            strata[stratum].add(_number(body, seed), row)
    if not strata:
        why = "has no row that could be drawn"
        why += f": {n_unlabelled} have no label, {n_unusable} cannot become requests" if n_rows else ""
        raise SourceError([Problem(source.name, None, None, None, why)])
    shares = allocate({name: kept.n_different for name, kept in strata.items()}, n)
    taken = sorted(pair for name, kept in strata.items() for pair in kept.smallest(min(shares[name], len(kept))))
    return Drawn(
        table=_table([row for _, _, row in taken], names, source),
        strata={name: min(shares[name], len(kept)) for name, kept in sorted(strata.items())},
        n_rows=n_rows,
        n_different=sum(kept.n_different for kept in strata.values()),
        counted=all(kept.counted for kept in strata.values()),
        n_unusable=n_unusable,
        n_unlabelled=n_unlabelled,
    )


def allocate(sizes: Mapping[str, int], n: int) -> dict[str, int]:
    """`n` rows in proportion to the sizes of strata, rounded by largest remainder, none above its size."""
    total = sum(sizes.values())
    if total <= n:
        return dict(sizes)
    shares = {name: n * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(n * sizes[name] % total), name))
    for name in by_remainder[: n - sum(shares.values())]:
        shares[name] += 1
    return shares


class _Smallest:
    """The rows of one stratum with the `most` smallest numbers; of equal requests the first row."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, Any]] = []  # the largest number on top, negated; then the order of arrival
        self._numbers: set[int] = set()
        self._arrived = 0
        self.counted = True

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, number: int, row: Any) -> None:
        if number in self._numbers:
            return
        if len(self._heap) == self._most:
            self.counted = False
            if number > -self._heap[0][0]:
                return
        self._arrived += 1
        self._numbers.add(number)
        entry = (-number, -self._arrived, row)
        if len(self._heap) < self._most:
            heappush(self._heap, entry)
        else:
            self._numbers.discard(-heappushpop(self._heap, entry)[0])

    @property
    def n_different(self) -> int:
        """Different requests that were added."""
        if self.counted:
            return len(self._heap)
        return max(len(self._heap) + 1, (self._most - 1) * _SPAN // max(1, -self._heap[0][0]))

    def smallest(self, n: int) -> list[tuple[int, int, Any]]:
        return [(-number, -arrived, row) for number, arrived, row in sorted(self._heap, reverse=True)[:n]]


def _number(body: bytes, seed: int) -> int:
    return int.from_bytes(blake2b(body, digest_size=8, key=seed.to_bytes(8, "big", signed=True)).digest(), "big")


def _table(rows: list[dict[str, Any]], names: list[str], source: RowSource) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.table({name: [row[name] for row in rows] for name in names})
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        why = f"a column holds values of several kinds, and a sample of it has none: {' '.join(str(error).split())}"
        raise SourceError([Problem(source.name, None, None, None, why)]) from error


def must_have(names: Sequence[str], source: RowSource) -> None:
    """Raises SourceError for columns that a source does not have."""
    problems = [
        Problem(source.name, None, None, name, f"there is no such column{did_you_mean(name, source.columns)}")
        for name in names
        if name not in source.columns
    ]
    if problems:
        raise SourceError(problems, hint="mend the job file, or name another column; nothing was sent")


def _too_many(source: RowSource, by: str) -> SpecError:
    why = (
        f"has more than {_MAX_STRATA} different values; rows are drawn by a column of few, such as a task or a language"
    )
    return SpecError([Problem(source.name, None, None, by, why)])
