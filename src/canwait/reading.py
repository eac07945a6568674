"""A reader of a job's publications: it says how old an answer it accepts, and gets a fresh one or is told otherwise.

with canwait.reader("labels", as_="dash/support", max_age="24h", on_stale="serve") as labels:
    hit = labels.get("T-1042")      # value, age, stale, live, version, gate; None: no such row
    table = labels.frame("polars")
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from . import publishing
from .clock import Clock
from .errors import CanwaitError, NotBuilt, NotFound, Problem, SpecError, StaleResult
from .freshness import (
    MAX_AGE_S,
    MAX_MISSED_RUNS,
    Answer,
    Blocked,
    Contract,
    Fresh,
    Live,
    NeverBuilt,
    OnStale,
    Publication,
    Stale,
    judge,
    span,
    stricter,
)
from .ledger import Ledger
from .sinks import PROVENANCE
from .types import Job

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

    from .client import Client
    from .live import Asking
    from .published import PublishedRows

_log = logging.getLogger("canwait")
_TOGETHER, _APART = 1000, timedelta(minutes=1)  # reads by key that are recorded together, and how long one may wait
_LEASE_S = 600.0  # of a refresh; it is renewed while the job runs
_FRAMES = ("pyarrow", "pandas", "polars", "duckdb")
_refreshes = count()

Refresh = str | Path | Job | Callable[[Stale | Blocked | NeverBuilt], object]


def reader(
    name: str,
    *,
    as_: str,
    max_age: str | timedelta | None = None,
    on_stale: str | None = None,
    missed_runs: int = 0,
    refresh: Refresh | None = None,
    live: str | Path | Job | None = None,
    live_budget_usd: str | int | Decimal | None = None,
    live_within: str | timedelta = "60s",
    output: type[BaseModel] | None = None,
    client: Client | None = None,
) -> Reader:
    """A reader of what a job publishes; its contract is declared in the ledger, so that the job's owner knows it.

    as_: who reads, as in "dash/support". max_age: the oldest answer it accepts, counted from when the job's input was read,
    like "24h"; None: what `canwait fresh` says of this reader. on_stale: past that age it is served and says so (`serve`),
    StaleResult is raised (`block`), it is served while one of the readers makes the next (`refresh`), or the row is asked
    for now (`live`); None: `block`, or with the age what was stated. A person's revision counts where it is stricter.
    refresh: how: a job, or its file, which is run in the background within its budget; or a function that is told, and
    sees to it. live: the job that publishes here, or its file: what a row is asked by, for at most `live_budget_usd` in
    all, and waited for so long as `live_within` says. output: what values become, instead of mappings. Raises SpecError,
    NotFound where no contract is known, and for `live` UnknownPrice.
    """
    from .client import connect

    if on_stale not in (None, "serve", "block", "refresh", "live"):
        raise _wrong("on_stale", f"found {on_stale!r}; expected serve, block, refresh or live")
    if not as_ or not 0 <= missed_runs <= MAX_MISSED_RUNS:
        most = f"from 0 to {MAX_MISSED_RUNS} missed runs"
        raise _wrong("as_", f"expected who reads, as in 'dash/support', and {most}")
    seconds = None if max_age is None else _seconds(max_age)
    own = connect() if client is None else None
    opened = client or cast("Client", own)
    try:
        stated = publishing.contract_of(opened.ledger, name, as_) if seconds is None else None
        if seconds is None and stated is None:
            raise NotFound(what=f"contract of a reader of {name}", name=as_, hint="say `max_age=`")
        then = on_stale or (stated.on_stale if stated else "block")
        asking = _asking(opened, name, then, live, live_budget_usd, live_within)
        if (then == "refresh") != (refresh is not None) and (on_stale or refresh) is not None:
            raise _wrong("refresh", "`on_stale='refresh'` and `refresh=`, a job or a function, are stated together")
        if stated is not None:
            contract = replace(stated, on_stale=cast(OnStale, then))
        else:
            contract = Contract(name, as_, cast(int, seconds), cast(OnStale, then), missed_runs)
            publishing.declare(opened.ledger, contract, opened.engine.holder, opened.clock.now())
    except BaseException:
        if own is not None:
            own.close()
        raise
    return Reader(opened, contract, refresh, output, own=own is not None, asking=asking)


def _asking(
    client: Client, job: str, on_stale: str, live: str | Path | Job | None, budget_usd: str | int | Decimal | None,
    within: str | timedelta,
) -> Asking | None:  # fmt: skip
    """What asks live, where a reader's terms say so. Raises SpecError, UnknownPrice."""
    from .fields import parse_usd

    if (on_stale == "live") != (live is not None) or (live is None) != (budget_usd is None):
        what = "`on_stale='live'`, `live=`, the job that publishes here or its file, and `live_budget_usd=` are stated together"
        raise _wrong("live", what, "without them, read with `on_stale='block'` or 'serve'")
    if live is None:
        return None
    from .live import Asking

    try:
        micros = parse_usd(budget_usd)
    except ValueError as error:
        raise _wrong("live_budget_usd", str(error)) from None
    return Asking(client, job, live, micros, timedelta(seconds=_seconds(within, "live_within")))


def _seconds(age: str | timedelta, field: str = "max_age") -> int:
    """Whole seconds, rounded down. Raises SpecError."""
    from .fields import parse_duration

    try:
        if not isinstance(age, timedelta):
            return parse_duration(age)
        if not timedelta(0) < age <= timedelta(seconds=MAX_AGE_S):
            raise ValueError(f"found {age}; expected more than nothing and at most {MAX_AGE_S // 86_400}d")
    except ValueError as error:
        raise _wrong(field, str(error)) from None
    return int(age.total_seconds())


def _wrong(field: str, why: str, hint: str | None = None) -> SpecError:
    return SpecError([Problem("reader", None, None, field, why)], hint=hint)


@dataclass(frozen=True, slots=True)
class Hit:
    """One row, as it was accepted."""

    key: str
    value: Any  # the output model, a mapping of the output's fields, text, or the numbers of an embedding
    age: timedelta  # since the job's input was read; of a live answer since its row was
    stale: bool  # past what this reader accepts
    version: int | None  # of the publication; None: it was asked live
    gate: str  # the verdict on it, in words
    model: str  # that answered
    effective_until: datetime | None  # when its input was found changed; None: it is not known to have
    live: bool = False  # asked for by this reader, and of no publication


class Reader:
    """One reader of one job. Safe to share between threads; close it, or leave its `with`, to have its reads recorded."""

    def __init__(
        self, client: Client, contract: Contract, refresh: Refresh | None, output: type[BaseModel] | None, *, own: bool,
        asking: Asking | None = None,
    ) -> None:  # fmt: skip
        self._asking = asking
        self._client, self._contract, self._refresh, self._output = client, contract, refresh, output
        self._lock = threading.Lock()
        self._rows: tuple[str, PublishedRows] | None = None  # of the blob that was read last
        self._tally = _Tally(client.ledger, client.clock, contract)
        self._said = _Once(f"refreshing {contract.job} could not be asked for")
        client.closing(self._tally.close)
        self._end = weakref.finalize(self, client.close) if own else None  # also when the process ends

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Record the reads that are not recorded yet."""
        self._tally.close()
        if self._end is not None:
            self._end()

    @property
    def contract(self) -> Contract:
        """What counts now: what this reader states, or a person's revision where that is stricter."""
        return self._look()[1]

    @property
    def outcome(self) -> Answer:
        """What reading would get now: Fresh, Stale, Blocked, Live or NeverBuilt. It is not recorded, and raises nothing."""
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

    def get(self, key: str, row: Mapping[str, Any] | None = None) -> Hit | None:
        """The row of that key; None where there is none. Raises StaleResult and NotBuilt as the contract says.

        A reader with `live` asks for what the publication does not have, or is too old to say: by `row`, a mapping as the
        job's source would have it; None: it is looked up there, which reads the source up to that row.
        """
        newest, contract = self._look()
        outcome = judge(contract, newest, self._client.clock.now())
        if isinstance(outcome, Live):
            return self._asked(outcome, contract, key, row)
        served = self._served(outcome)
        rows = self._opened(served.publication)
        found = rows.find(key)
        if found is None and contract.on_stale == "live":
            why = f"version {served.publication.version} has no such row"
            return self._asked(Live(served.publication, why), contract, key, row)
        self._tally.add(
            served.publication.version, served.age, 0 if found is None else 1, stale=isinstance(served, Stale)
        )
        return None if found is None else self._hit(served, rows, found)

    def rows(self) -> Iterator[Hit]:
        """All rows one by one, in bounded memory. Raises as `get`."""
        served = self._served(self.outcome)
        rows = self._opened(served.publication)
        for batch in self._passing(served, rows):
            for found in batch.to_pylist():
                yield self._hit(served, rows, found)

    def frame(self, kind: Any = None) -> Any:
        """All rows: a table of pyarrow, or a frame of "pandas", "polars" or "duckdb", by name or module. Raises as `get`."""
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", "pyarrow" if kind is None else repr(kind))
        if name not in _FRAMES:
            raise SpecError([Problem("frame", None, None, None, f"found {name}; expected {', '.join(_FRAMES)}")])
        served = self._served(self.outcome)
        path = self._client.blobs.path(served.publication.blob)
        frame = _frame(name, path)
        self._record(served, served.publication.rows)
        return frame

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in record batches, in bounded memory. Raises as `get`."""
        served = self._served(self.outcome)
        yield from self._passing(served, self._opened(served.publication))

    # ------------------------------------------------------------------------------------------------------------ parts

    def _look(self) -> tuple[Publication | None, Contract]:
        c, ours = self._client, self._contract
        newest, stated = publishing.look(c.ledger, ours.job, ours.reader, c.clock.now())
        return newest, stricter(ours, stated)

    def _served(self, outcome: Answer) -> Fresh | Stale:
        """What of a publication may be read now. Raises StaleResult and NotBuilt."""
        match outcome:
            case Fresh() as fresh:
                return fresh
            case Stale() as stale:
                self._ask(stale)
                return stale
            case Blocked(publication, age, why) as blocked:
                self._ask(blocked)
                raise StaleResult(
                    job=publication.job, version=publication.version, why=why, reader=self._contract.reader,
                    age_s=round(age.total_seconds()), outcome=blocked,
                )  # fmt: skip
            case Live(Publication() as publication, why):
                raise StaleResult(
                    job=publication.job, version=publication.version, why=f"{why}; only single rows are asked live",
                    reader=self._contract.reader, outcome=outcome,
                )  # fmt: skip
            case Live(_, why):
                raise NotBuilt(job=self._contract.job, why=f"{why}; only single rows are asked live", outcome=outcome)
            case NeverBuilt(job, why) as never:
                self._ask(never)
                raise NotBuilt(job=job, why=why, outcome=never)

    def _asked(self, outcome: Live, contract: Contract, key: str, row: Mapping[str, Any] | None) -> Hit | None:
        """The row, asked for now. Raises StaleResult with what stands in the way."""
        from .live import Answered, Unanswered

        assert self._asking is not None  # no other contract is `live`
        most = timedelta(seconds=contract.max_age_s)
        found = self._asking.ask(key, row, most)
        age = self._client.clock.now() - found.as_of if isinstance(found, Answered) else timedelta(0)
        if age > most:
            found = Unanswered(f"the answer took {span(age)}, and is that old")
        if isinstance(found, Unanswered):
            raise StaleResult(
                f"Nothing of {contract.job} that {contract.reader} accepts was served. {outcome.why}. Asked live: {found.why}",
                hint=found.hint, job=contract.job, reader=contract.reader, cause=found.why, outcome=outcome,
                version=outcome.publication and outcome.publication.version,
            )  # fmt: skip
        self._tally.add(publishing.LIVE, age, 0 if found is None else 1)
        if found is None:
            return None
        value = self._value(found.row, found.kind, found.key)
        return Hit(found.row[found.key], value, age, False, None, found.gate, found.row["_model"], None, live=True)

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
        value = self._value(row, rows.answer, published.key)
        return Hit(
            row[published.key], value, served.age, isinstance(served, Stale), published.version, published.verdict, row["_model"],
            published.effective_until,
        )  # fmt: skip

    def _value(self, row: Mapping[str, Any], kind: str, key: str) -> Any:
        value: Any = {name: value for name, value in row.items() if name != key and name not in PROVENANCE}
        if kind != "fields":
            return next(iter(value.values()))
        return value if self._output is None else self._output.model_validate(value)

    def _record(self, served: Fresh | Stale, n_rows: int) -> None:
        self._tally.flush()
        self._tally.add(served.publication.version, served.age, n_rows, stale=isinstance(served, Stale))
        self._tally.flush()

    # ---------------------------------------------------------------------------------------------------------- refresh

    def _ask(self, outcome: Stale | Blocked | NeverBuilt) -> None:
        """Have the next publication made, unless somebody is making it. A ledger that cannot be written stops no read."""
        if self._refresh is None:
            return
        c, job = self._client, self._contract.job
        holder = f"{c.engine.holder}:{next(_refreshes)}"
        try:
            if not publishing.begin_refresh(c.ledger, job, holder, _LEASE_S, c.clock.now()):
                return
        except CanwaitError as error:
            self._said.failed(error)
            return
        self._said.worked()
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
    """Run a job on a connection of its own. Where nothing came of it the lease stays, so that it is not tried all the time.

    Whatever goes wrong, also in the user's own rules, is an event of the job, for nobody waits for this thread.
    """
    try:
        with client.again() as own:
            before = publishing.newest(own.ledger, job, own.clock.now())
            try:
                own.job(spec).run(
                    watch=lambda: publishing.keep_refresh(own.ledger, job, holder, _LEASE_S, own.clock.now())
                )
            except Exception as error:
                words = str(error) if isinstance(error, CanwaitError) else f"{type(error).__name__}: {error}"
                publishing.refresh_failed(own.ledger, job, words, own.clock.now())
            if publishing.newest(own.ledger, job, own.clock.now()) != before:
                publishing.end_refresh(own.ledger, job, holder)
    except CanwaitError as error:
        _log.warning("%s was not refreshed: %s", job, error)


class _Once:
    """Words that are logged when something begins to fail, and not again before it has worked."""

    def __init__(self, what: str) -> None:
        self._what, self._failing = what, False

    def failed(self, error: Exception) -> None:
        if not self._failing:
            _log.warning("%s: %s", self._what, error)
        self._failing = True

    def worked(self) -> None:
        self._failing = False


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
    """Reads that are not recorded yet: a ledger that cannot be written stops no read, and loses none."""

    def __init__(self, ledger: Ledger, clock: Clock, contract: Contract) -> None:
        self._ledger, self._clock, self._contract = ledger, clock, contract
        self._lock = threading.Lock()
        self._groups: dict[int, _Group] = {}  # by version
        self._said = _Once(
            f"reads of {contract.job} by {contract.reader} could not be recorded, and are kept till they can"
        )
        self._not_before: datetime | None = None  # after a failure
        self._timer: threading.Timer | None = None  # for reads after which no other comes

    def add(self, version: int, age: timedelta, n_rows: int, *, stale: bool = False) -> None:
        now = self._clock.now()
        with self._lock:
            if version != publishing.LIVE and self._groups.keys() - {version, publishing.LIVE}:
                self._flush(now)
            since, r = self._groups.get(version) or _Group(now, publishing.Reads(version, 0, 0, 0, age))
            reads = publishing.Reads(version, r.n_reads + 1, r.n_rows + n_rows, r.n_stale + stale, max(r.oldest, age))
            self._groups[version] = _Group(since, reads)
            if reads.n_reads >= _TOGETHER or now - since >= _APART:
                self._flush(now)
            self._wake()

    def flush(self) -> None:
        with self._lock:
            self._flush(self._clock.now())

    def close(self) -> None:
        with self._lock:
            self._not_before = None
            self._flush(self._clock.now())
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wake(self) -> None:
        """See to it that what is not recorded yet is looked at in a minute, though nobody reads any more."""
        if self._groups and self._timer is None:
            self._timer = threading.Timer(_APART.total_seconds(), self._later)
            self._timer.daemon = True
            self._timer.start()

    def _later(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # else it was closed just now
                self._timer = None
                self._flush(self._clock.now())
                self._wake()

    def _flush(self, now: datetime) -> None:
        """Record the groups, each once. Where that fails they are kept, and tried again in a minute."""
        if self._not_before is not None and now < self._not_before:
            return
        try:
            for version, group in list(self._groups.items()):
                publishing.record(self._ledger, self._contract.job, self._contract.reader, group.reads, now)
                del self._groups[version]
        except CanwaitError as error:
            self._not_before = now + _APART
            self._said.failed(error)
        else:
            self._not_before = None
            self._said.worked()
