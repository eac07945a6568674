"""What a job has ended with comes to its target and to its readers, and never over something newer.

Whatever brings rows into a target holds its lock, or finds out at the end that it was not alone. So before the last step of
a load, with all rows seen, it is asked whether they still are the job's answers: what is loaded later waits for the lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import pyarrow as pa

from . import publishing, views
from .blobs import Blobs
from .changes import Counts, Rows, Since, count_changes
from .clock import Clock
from .errors import BlobError, SinkBusy
from .inspection import let_through
from .ledger import Ledger
from .lots import Lot
from .published import is_there, keeping, remove
from .publishing import Draft
from .sinks import Sink
from .sinks.opening import discard, failed_rows
from .types import Job, Load

_log = logging.getLogger("canwait")


def load(
    ledger: Ledger, blobs: Blobs, clock: Clock, job: Job, lot: Lot | None, to: Load, opened: Callable[[Load], Sink]
) -> int:
    """Bring usable rows into the target and failed ones beside it, then publish; how many rows the target has then.

    `lot`: what its gate let through. Raises SinkBusy, too, where the job's answers changed meanwhile, and SinkError; either
    way nothing older stands in the target than before. GatePending where they have to be judged by now.
    """
    draft = _draft(ledger, job, lot)
    checked = partial(_checked, ledger, draft)
    with (
        let_through(ledger, blobs, job.name, clock.now(), job.base_dir) as rows,
        keeping(blobs, rows.columns.loaded, rows.columns.kind, draft.same.blob if draft.same else None) as kept,
    ):
        n = opened(to).load(checked(kept.passing(rows.loaded())), rows.columns.loaded)
        beside = failed_rows(to)
        n_failed = opened(beside).load(checked(rows.failed()), rows.columns.failed)
        if not n_failed:
            _check(ledger, draft)
            discard(beside, job.base_dir)
    ledger.loaded(job.name, {"to": to.to, "rows": n, "failed": n_failed}, clock.now())
    _publish(ledger, blobs, clock, job, draft, blob=kept.blob, rows=kept.n_rows, failed=n_failed, models=kept.models)
    return n


def publish(ledger: Ledger, blobs: Blobs, clock: Clock, job: Job, lot: Lot | None) -> None:
    """Give its readers what a finished job without a target has. Raises SinkBusy and GatePending as `load`."""
    draft = _draft(ledger, job, lot)
    if (same := draft.same) is not None and is_there(blobs, same.blob):
        _publish(ledger, blobs, clock, job, draft, blob=same.blob, rows=same.rows, failed=same.failed, models=())
        return
    with (
        let_through(ledger, blobs, job.name, clock.now(), job.base_dir) as rows,
        keeping(blobs, rows.columns.loaded, rows.columns.kind) as kept,
    ):
        for _ in kept.passing(rows.loaded()):
            pass
        n_failed = sum(batch.num_rows for batch in rows.failed())
    _publish(ledger, blobs, clock, job, draft, blob=kept.blob, rows=kept.n_rows, failed=n_failed, models=kept.models)


def since(
    ledger: Ledger, blobs: Blobs, clock: Clock, job: str, digest: str, n_rows: int, rows: publishing.PlanRows,
    parts: Mapping[str, str],
) -> Since | None:  # fmt: skip
    """What a plan changes of the last publication; None before there is one."""
    last = publishing.last_rows(ledger, job, clock.now())
    if last is None:
        return None
    publication, plan, before = last
    if plan == digest:
        return Since(publication.version, Counts(n_rows, 0, 0, 0), ())
    with blobs.scratch() as folder:
        then, now = (Rows(blobs.path(r.rows_blob), r.shards) for r in (before, rows))
        counts = count_changes(then, now, folder)
    because = publishing.because(publishing.publications(ledger, job), parts)
    return Since(publication.version, counts, because)


def _draft(ledger: Ledger, job: Job, lot: Lot | None) -> Draft:
    return publishing.draft(ledger, job.name, lot.reason if lot else "no gate", lot)


def _checked(ledger: Ledger, draft: Draft, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same, and behind the last a look at whether they still are what the job has."""
    yield from batches
    _check(ledger, draft)


def _check(ledger: Ledger, draft: Draft) -> None:
    if not publishing.is_current(ledger, draft):
        why = f"the answers of job {draft.job} changed while they were loaded"
        raise SinkBusy(why, hint="run again: what is loaded then is what it has by then")


def _publish(
    ledger: Ledger, blobs: Blobs, clock: Clock, job: Job, draft: Draft, *, blob: str, rows: int, failed: int,
    models: Iterable[str],
) -> None:  # fmt: skip
    """Record the publication, unless that would take rows from readers: of a job that goes on, was given up, or has none."""
    if not rows or not views.figures(ledger, job.name).finished or ledger.job(job.name)["cancelled"]:
        return
    try:
        publishing.forget(ledger, job.name, clock.now(), partial(remove, blobs))
    except BlobError as error:  # the next publication tries again
        _log.warning("old rows of %s could not be removed: %s", job.name, error)
    found = since(ledger, blobs, clock, job.name, *publishing.planned(ledger, job))
    words = str(found) if found else ""
    publishing.publish(
        ledger, draft, job, blob=blob, rows=rows, failed=failed, models=models, now=clock.now(), since=words
    )
    _check(ledger, draft)
    if not is_there(blobs, blob):  # an old publication had these rows, too, and they were removed with it just then
        raise SinkBusy(f"the rows of job {job.name} were removed while they were published", hint="run again")
