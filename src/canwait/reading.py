"""A reader of a job's publications: it says how old an answer it accepts, and gets a fresh one or is told otherwise.

with canwait.reader("labels", as_="dash/support", max_age="24h", on_stale="serve") as labels:
    hit = labels.get("T-1042")      # value, age, stale, version, gate; None: no such row
    table = labels.frame("polars")
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from . import publishing
from .clock import Clock
from .errors import CanwaitError, NotBuilt, NotFound, Problem, SpecError, StaleResult
from .freshness import Answer, Blocked, Contract, Fresh, NeverBuilt, OnStale, Publication, Stale, judge
from .ledger import Ledger
from .sinks import PROVENANCE
from .types import Job

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

    from .client import Client
    from .published import PublishedRows

_TOGETHER, _APART = 1000, timedelta(minutes=1)  # reads by key that are recorded together, and how long one may wait
_LEASE_S = 600.0  # of a refresh; it is renewed while the job runs
_FRAMES = ("pyarrow", "pandas", "polars", "duckdb")
_refreshes = count()

Refresh = str | Path | Job | Callable[[Stale | NeverBuilt], object]


def reader(
    name: str,
    *,
    as_: str,
    max_age: str | timedelta | None = None,
    on_stale: str = "block",
    missed_runs: int = 0,
    refresh: Refresh | None = None,
    output: type[BaseModel] | None = None,
    client: Client | None = None,
) -> Reader:
    """A reader of what a job publishes; its contract is declared in the ledger, so that the job's owner knows it.

    as_: who reads, as in "dash/support". max_age: the oldest answer it accepts, counted from when the job's input was read,
    like "24h"; None: what `canwait fresh` says of this reader. on_stale: past that age it is served and says so (`serve`),
    StaleResult is raised (`block`), or it is served while one of the readers makes the next (`refresh`). refresh: how: a
    job, or its file, which is run in the background within its budget; or a function that is told, and sees to it. output:
    what values become, instead of mappings. Raises SpecError, and NotFound where no contract is known.
    """
    from .client import connect
    from .spec import parse_duration

    def wrong(field: str, why: str, hint: str | None = None) -> SpecError:
        return SpecError([Problem("reader", None, None, field, why)], hint=hint)

    if on_stale == "live":
        raise wrong(
            "on_stale",
            "`live` is not served: a row's answer is made from the row, which a reader does not have, and within a stated "
            "budget",
            "use `refresh`, or run a job over those rows with `tier: standard`",
        )
    if on_stale not in ("serve", "block", "refresh"):
        raise wrong("on_stale", f"found {on_stale!r}; expected serve, block or refresh")
    if (on_stale == "refresh") != (refresh is not None):
        raise wrong("refresh", "`on_stale='refresh'` and `refresh=`, a job or a function, are stated together")
    if not as_ or missed_runs < 0:
        raise wrong("as_", "expected who reads, as in 'dash/support', and no fewer than 0 missed runs")
    try:
        seconds = max_age.total_seconds() if isinstance(max_age, timedelta) else max_age and parse_duration(max_age)
    except ValueError as error:
        raise wrong("max_age", str(error)) from None
    own = connect() if client is None else None
    opened = client or cast("Client", own)
    try:
        if seconds is not None:
            contract = Contract(name, as_, int(seconds), cast(OnStale, on_stale), missed_runs)
            publishing.declare(opened.ledger, contract, opened.engine.holder, opened.clock.now())
        elif found := publishing.contract_of(opened.ledger, name, as_):
            contract = replace(found, on_stale=cast(OnStale, on_stale))
        else:
            raise NotFound(what=f"contract of a reader of {name}", name=as_, hint="say `max_age=`")
    except BaseException:
        if own is not None:
            own.close()
        raise
    return Reader(opened, contract, refresh, output, own=own is not None)


@dataclass(frozen=True, slots=True)
class Hit:
    """One row, as it was accepted."""

    key: str
    value: Any  # the output model, a mapping of the output's fields, text, or the numbers of an embedding
    age: timedelta  # since the job's input was read
    stale: bool  # past what this reader accepts, or its input is known to have changed
    version: int  # of the publication
    gate: str  # the verdict on it, in words
    model: str  # that answered


class Reader:
    """One reader of one job. Safe to share between threads; close it, or leave its `with`, to have its reads recorded."""

    def __init__(
        self, client: Client, contract: Contract, refresh: Refresh | None, output: type[BaseModel] | None, *, own: bool
    ) -> None:
        self._client, self._contract, self._refresh, self._output = client, contract, refresh, output
        self._lock = threading.Lock()
        self._rows: tuple[str, PublishedRows] | None = None  # of the blob that was read last
        self._tally = _Tally(client.ledger, client.clock, contract)
        client.closing(self._tally.flush)
        self._end = weakref.finalize(self, client.close) if own else None  # also when the process ends

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Record the reads that are not recorded yet."""
        self._tally.flush()
        if self._end is not None:
            self._end()

    @property
    def contract(self) -> Contract:
        """What counts now: what this reader states, or a person's revision where that is stricter."""
        return self._look()[1]

    @property
    def outcome(self) -> Answer:
        """What reading would get now: Fresh, Stale, Blocked or NeverBuilt. It is not recorded, and raises nothing."""
        newest, contract = self._look()
        return judge(contract, newest, self._client.clock.now())

    @property
    def publication(self) -> Publication | None:
        """The newest by its input; None before there is one."""
        return self._look()[0]

    @property
    def age(self) -> timedelta | None:
        """Since the input of the newest publication was read; None before there is one."""
        newest = self.publication
        return None if newest is None else self._client.clock.now() - newest.source_as_of

    def get(self, key: str) -> Hit | None:
        """The row of that key; None where the publication has none. Raises StaleResult and NotBuilt as the contract says."""
        served = self._served()
        rows = self._opened(served.publication)
        found = rows.find(key)
        self._tally.add(served, 0 if found is None else 1)
        return None if found is None else self._hit(served, rows, found)

    def rows(self) -> Iterator[Hit]:
        """All rows one by one, in bounded memory. Raises as `get`."""
        served = self._served()
        rows = self._opened(served.publication)
        for batch in self._passing(served, rows):
            for found in batch.to_pylist():
                yield self._hit(served, rows, found)

    def frame(self, kind: Any = None) -> Any:
        """All rows: a table of pyarrow, or a frame of "pandas", "polars" or "duckdb", by name or module. Raises as `get`."""
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", "pyarrow" if kind is None else repr(kind))
        if name not in _FRAMES:
            raise SpecError([Problem("frame", None, None, None, f"found {name}; expected {', '.join(_FRAMES)}")])
        served = self._served()
        path = self._client.blobs.path(served.publication.blob)
        frame = _frame(name, path)
        self._record(served, served.publication.rows)
        return frame

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in record batches, in bounded memory. Raises as `get`."""
        served = self._served()
        yield from self._passing(served, self._opened(served.publication))

    # ------------------------------------------------------------------------------------------------------------ parts

    def _look(self) -> tuple[Publication | None, Contract]:
        newest, stated = publishing.look(self._client.ledger, self._contract.job, self._contract.reader)
        contract = self._contract
        return newest, replace(
            contract, max_age_s=min(contract.max_age_s, stated.max_age_s if stated else contract.max_age_s)
        )

    def _served(self) -> Fresh | Stale:
        """What may be read now. Raises StaleResult and NotBuilt."""
        match self.outcome:
            case Fresh() as fresh:
                return fresh
            case Stale() as stale:
                self._ask(stale)
                return stale
            case Blocked(publication, age, why) as blocked:
                raise StaleResult(
                    job=publication.job, version=publication.version, why=why, reader=self._contract.reader,
                    age_s=round(age.total_seconds()), outcome=blocked,
                )  # fmt: skip
            case NeverBuilt(job, why) as never:
                self._ask(never)
                raise NotBuilt(job=job, why=why, outcome=never)

    def _opened(self, publication: Publication) -> PublishedRows:
        from .published import PublishedRows

        with self._lock:
            if self._rows is None or self._rows[0] != publication.blob:
                self._rows = publication.blob, PublishedRows(self._client.blobs, publication.blob, publication.key)
            return self._rows[1]

    def _passing(self, served: Fresh | Stale, rows: PublishedRows) -> Iterator[pa.RecordBatch]:
        """Batches, recorded as one read of as many rows as were taken."""
        n_rows = 0
        try:
            for batch in rows.batches():
                n_rows += batch.num_rows
                yield batch
        finally:
            self._record(served, n_rows)

    def _hit(self, served: Fresh | Stale, rows: PublishedRows, row: Mapping[str, Any]) -> Hit:
        published = served.publication
        value: Any = {name: value for name, value in row.items() if name != published.key and name not in PROVENANCE}
        if rows.answer != "fields":
            value = next(iter(value.values()))
        elif self._output is not None:
            value = self._output.model_validate(value)
        stale = isinstance(served, Stale)
        return Hit(row[published.key], value, served.age, stale, published.version, published.verdict, row["_model"])

    def _record(self, served: Fresh | Stale, n_rows: int) -> None:
        self._tally.flush()
        self._tally.add(served, n_rows)
        self._tally.flush()

    # ---------------------------------------------------------------------------------------------------------- refresh

    def _ask(self, outcome: Stale | NeverBuilt) -> None:
        """Have the next publication made, unless somebody is making it."""
        if self._refresh is None:
            return
        c, job = self._client, self._contract.job
        holder = f"{c.engine.holder}:{next(_refreshes)}"
        if not publishing.begin_refresh(c.ledger, job, holder, _LEASE_S, c.clock.now()):
            return
        if callable(self._refresh):
            try:
                self._refresh(outcome)  # the lease stays: who was told has that long, before anybody else is told
            except BaseException:
                publishing.end_refresh(c.ledger, job, holder)
                raise
            return
        work = threading.Thread(target=_run, args=(c, self._refresh, job, holder), name=f"refresh {job}", daemon=True)
        work.start()


def _run(client: Client, spec: str | Path | Job, job: str, holder: str) -> None:
    """Run a job on a connection of its own. Where nothing came of it the lease stays, so that it is not tried all the time."""
    with client.again() as own:
        before = publishing.newest(own.ledger, job)
        try:
            own.job(spec).run(watch=lambda: publishing.keep_refresh(own.ledger, job, holder, _LEASE_S, own.clock.now()))
        except CanwaitError as error:
            publishing.refresh_failed(own.ledger, job, str(error), own.clock.now())
        if publishing.newest(own.ledger, job) != before:
            publishing.end_refresh(own.ledger, job, holder)


def _frame(name: str, path: Path) -> Any:
    """All of a Parquet file, in the library of that name."""
    if name == "polars":
        import polars

        return polars.read_parquet(path)
    if name == "duckdb":
        import duckdb

        return duckdb.read_parquet(os.fspath(path))
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return table.to_pandas() if name == "pandas" else table


# -------------------------------------------------------------------------------------------------- what was read, when


class _Group(NamedTuple):
    """Reads of one publication that are recorded together."""

    since: datetime
    reads: publishing.Reads


class _Tally:
    """Reads that are not recorded yet."""

    def __init__(self, ledger: Ledger, clock: Clock, contract: Contract) -> None:
        self._ledger, self._clock, self._contract = ledger, clock, contract
        self._lock = threading.Lock()
        self._group: _Group | None = None

    def add(self, served: Fresh | Stale, n_rows: int) -> None:
        now, version = self._clock.now(), served.publication.version
        with self._lock:
            if self._group is not None and self._group.reads.version != version:
                self._flush(now)
            since, r = self._group or _Group(now, publishing.Reads(version, 0, 0, 0, served.age))
            n_stale = r.n_stale + isinstance(served, Stale)
            reads = publishing.Reads(version, r.n_reads + 1, r.n_rows + n_rows, n_stale, max(r.oldest, served.age))
            self._group = _Group(since, reads)
            if reads.n_reads >= _TOGETHER or now - since >= _APART:
                self._flush(now)

    def flush(self) -> None:
        with self._lock:
            self._flush(self._clock.now())

    def _flush(self, now: datetime) -> None:
        if self._group is not None:
            group, self._group = self._group, None
            publishing.record(self._ledger, self._contract.job, self._contract.reader, group.reads, now)
