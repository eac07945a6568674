"""Publications, contracts, reads and refreshes in the ledger. Each function is one transaction, or one consistent view."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from .clock import from_us, to_us
from .codec import plain
from .cron import longest_gap_s, next_fire
from .db import Row, Tx
from .entries import dumps, journal
from .errors import NotFound
from .freshness import Cadence, Contract, NeverBuilt, Publication, cadence, changed, judge, latest, span
from .judging import is_still_open
from .ledger import Ledger
from .lots import Lot
from .turnaround import Seen, next_batch
from .types import Job, JobState

_SURE = Decimal("0.95")  # of a run's turnaround: 19 runs must have been seen
_READS = 1000  # the latest, whose ages are looked at
_KEPT = timedelta(days=30)  # rows of what was replaced, at least
LIVE = 0  # stands for a version where no publication was read

# ------------------------------------------------------------------------------------------------------- publications


@dataclass(frozen=True, slots=True)
class Draft:
    """What would be published of a job as it stands: nothing is written yet."""

    job: str
    content: str  # digest of the answers and the verdict
    verdict: str
    same: Publication | None  # which has these answers already, and still has its rows
    lot: Lot | None = None  # what its gate let through; None: there is none


def draft(ledger: Ledger, job: str, verdict: str, lot: Lot | None = None) -> Draft:
    with ledger.db.reading() as tx:
        content = _content(tx, job, verdict)
        same = tx.run("publication_same", job=job, content=content)
        return Draft(job, content, verdict, _publication(same[0]) if same else None, lot)


def is_current(ledger: Ledger, draft: Draft) -> bool:
    """Whether a job's answers are those of the draft, and stand behind the same gate."""
    with ledger.db.reading() as tx:
        return _is_current(tx, draft)


def _is_current(tx: Tx, draft: Draft) -> bool:
    return _content(tx, draft.job, draft.verdict) == draft.content and is_still_open(tx, draft.job, draft.lot)


def _content(tx: Tx, job: str, verdict: str) -> str:
    """Which answers a job's latest plan has by now, and what was said of them."""
    plan = tx.run("job", name=job)[0]["plan"]
    answers = [[row["root"], row["results_blob"]] for row in tx.run("lot_answers", job=job, plan=plan)]
    return _sha256([plan, answers, verdict])


def publish(
    ledger: Ledger,
    draft: Draft,
    job: Job,
    *,
    blob: str,
    rows: int,
    failed: int,
    models: Iterable[str],
    now: datetime,
    since: str = "",
) -> Publication | None:
    """Record what was loaded as the job's next publication, its rows being on the disk.

    The same answers to the same reading of the input are one publication, however often they are loaded. None: the job's
    answers are no longer those of the draft, or another gate stands before them; whoever brought that publishes them.
    `models`: that served the rows; none are asked for where the draft knows the same answers.
    """
    with ledger.db.transaction("publish") as tx:
        if not _is_current(tx, draft):
            return None
        row = tx.run("job", name=draft.job)[0]
        plan = tx.run("plan", job=draft.job, digest=row["plan"])[0]
        read = tx.run("input_read", job=draft.job, plan=row["plan"])
        as_of = read[0]["as_of_us"] if read else _planned_us(plan)
        rows_same = tx.run("publication_same", job=draft.job, content=draft.content)
        same = _publication(rows_same[0]) if rows_same else None
        if same is not None and to_us(same.source_as_of) >= as_of and not same.is_misdated(now):
            return same
        parts = json.loads(read[0]["components"]) if read else components(job, None)
        parts["snapshot"] = same.components["snapshot"] if same else _sha256(sorted(models))
        before = [] if same else publications_of(tx, draft.job)
        seen = _newest(tx, draft.job, now)
        sums = tx.run("publication_sums", job=draft.job)[0]
        spent = int(tx.run("job_money", job=draft.job)[0]["confirmed_micros"])
        tx.run(
            "publication_insert", job=draft.job, version=int(sums["n"]) + 1, content=draft.content, plan=row["plan"],
            tier=json.loads(plan["terms"])["tier"], as_of=as_of, produced=to_us(now), until=None, components=dumps(parts),
            n_rows=rows, n_failed=failed, cost_micros=spent - int(sums["cost_micros"]), verdict=draft.verdict,
            rows_blob=blob, key_column=json.loads(plan["terms"])["key"],
        )  # fmt: skip
        made = _publication(tx.run("publication_version", job=draft.job, version=int(sums["n"]) + 1)[0])
        newest = _newest(tx, draft.job, now)
        for other in {p.version for p in (seen, made) if p is not None and p != newest}:
            tx.run("publication_until", job=draft.job, version=other, until=to_us(now))
        words = f"{rows:,} rows" + (f"; since {since}" if since else "")
        journal(
            tx, now, draft.job, None, "published", f"version {made.version}: {words}", version=made.version, rows=rows,
            failed=failed, source_as_of=from_us(as_of).isoformat(), verdict=draft.verdict,
            because=list(because(before, parts)),
        )  # fmt: skip
        return made if newest == made else replace(made, effective_until=now)


def _planned_us(plan: Row) -> int:
    """When the input of a plan was read for it."""
    as_of = json.loads(plan["body"]).get("source_as_of")
    return to_us(datetime.fromisoformat(as_of)) if as_of else int(plan["opened_us"])


def components(job: Job, source: str | None) -> dict[str, str]:
    """The digest of each part that decides a job's answers; `source`: the fingerprint of its rows, if it is known."""
    return {
        "prompt": _sha256(job.prompt),
        "model": _sha256([job.provider, job.model]),
        "params": _sha256([sorted(job.params.items()), job.max_output_tokens, job.endpoint]),
        "schema": _sha256(job.output_schema),
        "input": source or "",
    }


def opened(
    ledger: Ledger, job: Job, plan: str, *, as_of: datetime, source: str | None, tier: str, window_s: int, now: datetime
) -> None:
    """A plan was opened, or gone on with, after its input had been read at `as_of`; the job runs like this from now on.

    Where that input is known to be another than that of the newest publication, this was effective until then.
    """
    with ledger.db.transaction("opened") as tx:
        parts = dumps(components(job, source))
        tx.run(
            "input_seen", job=job.name, plan=plan, as_of=to_us(as_of), components=parts, known=int(source is not None),
            now=to_us(now),
        )  # fmt: skip
        last = _newest(tx, job.name, now)
        if last is not None and last.effective_until is None:
            if last.is_misdated(now):
                _ended(tx, last, f"it cannot have been read at {last.source_as_of:%Y-%m-%d %H:%M} UTC", now, now)
            elif source and last.components["input"] not in ("", source) and as_of > last.source_as_of:
                _ended(tx, last, "its input has changed", as_of, now)
        tx.run("cadence_set", job=job.name, schedule=job.schedule, tier=tier, window_s=window_s, at=to_us(now))


def _ended(tx: Tx, publication: Publication, why: str, until: datetime, now: datetime) -> None:
    """A publication was effective until then, though nothing takes its place yet."""
    facts = {"job": publication.job, "version": publication.version}
    tx.run("publication_until", **facts, until=to_us(until))
    words = f"version {publication.version}: {why}"
    journal(tx, now, publication.job, None, "outdated", words, version=publication.version, until=until.isoformat())


def newest(ledger: Ledger, job: str, now: datetime) -> Publication | None:
    """The one that readers see."""
    with ledger.db.reading() as tx:
        return _newest(tx, job, now)


def _newest(tx: Tx, job: str, now: datetime) -> Publication | None:
    """As freshness.latest; but all are looked at only where a date is wrong."""
    rows = tx.run("publication_newest", job=job)
    found = _publication(rows[0]) if rows else None
    return latest(publications_of(tx, job), now) if found is not None and found.is_misdated(now) else found


def publications(ledger: Ledger, job: str) -> list[Publication]:
    """All of a job, oldest first."""
    with ledger.db.reading() as tx:
        return publications_of(tx, job)


def last_words(ledger: Ledger, job: str) -> str | None:
    """What was said of the publication made last: its version, its rows, and what is different from the one before."""
    rows = ledger.query("publication_words", job=job)
    return str(rows[0]["reason"]) if rows else None


def publications_of(tx: Tx, job: str) -> list[Publication]:
    return [_publication(row) for row in tx.run("publications", job=job)]


def because(before: Sequence[Publication], after: Mapping[str, str]) -> tuple[str, ...]:
    """Which parts differ from the last publication, as "prompt v4 -> v5": each digest a job ever had is a version of that
    part. What is not known of either is not told."""
    if not before:
        return ()
    last = max(before, key=lambda p: (p.source_as_of, p.version)).components
    words = []
    for name in changed(last, after):
        if last.get(name) and after.get(name):
            versions = list(dict.fromkeys(p.components[name] for p in before if p.components.get(name)))
            number = versions.index(after[name]) + 1 if after[name] in versions else len(versions) + 1
            words.append(f"{name} v{versions.index(last[name]) + 1} -> v{number}")
    return tuple(words)


@dataclass(frozen=True, slots=True)
class PlanRows:
    """Where the rows of a plan stand, and which shards answer them."""

    rows_blob: str
    shards: tuple[str, ...]


def last_rows(ledger: Ledger, job: str, now: datetime) -> tuple[Publication, str, PlanRows] | None:
    """The newest publication, the digest of its plan, and the rows of that; None before there is one."""
    with ledger.db.reading() as tx:
        found = _newest(tx, job, now)
        if found is None:
            return None
        plan = tx.run("publication_version", job=job, version=found.version)[0]["plan"]
        return found, plan, rows_of(tx, job, plan)


# ------------------------------------------------------------------------------------------------- what is kept of them


def forget(ledger: Ledger, job: str, now: datetime, remove: Callable[[str], None]) -> None:
    """Have the rows removed of publications that were replaced longer ago than 30 days, and than any reader accepts.

    Never of the newest. What is to go is recorded first, so that a call that died is finished by the next one; `remove`
    gets the name of a blob, which may be gone already, while nobody can record a publication that needs it.
    """
    with ledger.db.transaction("forget") as tx:
        newest = _newest(tx, job, now)
        longest = max((row["max_age_s"] for row in tx.run("contracts", job=job)), default=0)
        since = now - max(_KEPT, timedelta(seconds=longest))
        facts = {"job": job, "newest": newest.version if newest else 0, "since": to_us(since)}
        if n := tx.count("publications_leave", **facts):
            words = f"{n} publications from before {since:%Y-%m-%d} have their rows removed"
            journal(tx, now, job, None, "forgotten", words, count=n)
    with ledger.db.transaction("forgotten") as tx:
        for row in tx.run("publications_going", job=job):
            remove(row["rows_blob"])
        tx.run("publications_gone", job=job)


def statements(ledger: Ledger, job: str) -> tuple[list[Contract], int]:
    """The contract of every reader of a job, and how many were ever stated: the version of these terms."""
    with ledger.db.reading() as tx:
        contracts = [_contract(row) for row in tx.run("contracts", job=job)]
        return contracts, sum(len(tx.run("contract_history", job=job, reader=c.reader)) for c in contracts)


def terms_of(ledger: Ledger, job: str) -> dict[str, Any]:
    """Of a job: its owner, schedule, key column and what its answers hold; all None before it ran."""
    with ledger.db.reading() as tx:
        rows, runs = tx.run("job", name=job), tx.run("cadence", job=job)
        terms = json.loads(tx.run("plan", job=job, digest=rows[0]["plan"])[0]["terms"]) if rows else {}
        return {
            "owner": rows[0]["owner"] if rows else None,
            "schedule": runs[0]["schedule"] if runs else None,
            "key": terms.get("key"),
            "output_schema": terms.get("output_schema"),
            "embeds": str(terms.get("endpoint", "")).endswith("/embeddings"),
        }


def planned(ledger: Ledger, job: Job) -> tuple[str, int, PlanRows, dict[str, str]]:
    """Of a job's latest plan: its digest, how many rows it has, where they stand, and the parts that decide its answers."""
    with ledger.db.reading() as tx:
        digest = tx.run("job", name=job.name)[0]["plan"]
        n_rows = json.loads(tx.run("plan", job=job.name, digest=digest)[0]["body"])["n_rows"]
        read = tx.run("input_read", job=job.name, plan=digest)
        parts = json.loads(read[0]["components"]) if read else components(job, None)
        return digest, n_rows, rows_of(tx, job.name, digest), parts


def rows_of(tx: Tx, job: str, plan: str) -> PlanRows:
    body = json.loads(tx.run("plan", job=job, digest=plan)[0]["body"])
    return PlanRows(body["rows_blob"], tuple(row["shard"] for row in tx.run("plan_shards", job=job, plan=plan)))


def _publication(row: Row) -> Publication:
    return Publication(
        job=row["job"], version=row["version"], source_as_of=from_us(row["as_of_us"]),
        produced_at=from_us(row["produced_us"]),
        effective_until=None if row["until_us"] is None else from_us(row["until_us"]),
        components=json.loads(row["components"]), rows=row["n_rows"], failed=row["n_failed"],
        cost_micros=row["cost_micros"], verdict=row["verdict"], blob=row["rows_blob"], key=row["key_column"],
        kept=row["rows_state"] == "kept", refused=row["refused"],
    )  # fmt: skip


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- contracts


@dataclass(frozen=True, slots=True)
class Stated:
    """A contract as it was stated once."""

    contract: Contract
    said: str  # declared, revised, withdrawn
    who: str
    at: datetime
    cadence: Cadence | None  # whether the job, as it runs now, can keep it; None: no schedule is known


def declare(ledger: Ledger, contract: Contract, who: str, now: datetime) -> Contract:
    """A reader says what it accepts; the contract that counts from here on.

    Saying again what was said before changes nothing, so that a person's revision stands until the reader says another.
    """
    with ledger.db.transaction("declare") as tx:
        history = tx.run("contract_history", job=contract.job, reader=contract.reader)
        before = [row for row in history if row["said"] == "declared"]
        if before and _contract(before[-1]) == contract and history[-1]["said"] != "withdrawn":
            return _contract(history[-1])
        return _state(tx, contract, "declared", who, now)


def revise(ledger: Ledger, contract: Contract, who: str, now: datetime) -> Contract:
    """A person changes what a reader accepts. Raises NotFound where the reader has declared nothing."""
    with ledger.db.transaction("revise") as tx:
        _declared(tx, contract.job, contract.reader)
        return _state(tx, contract, "revised", who, now)


def withdraw(ledger: Ledger, job: str, reader: str, who: str, now: datetime) -> None:
    """A person says that a reader is gone; it has a contract again when it reads again. Raises NotFound as `revise`."""
    with ledger.db.transaction("withdraw") as tx:
        _state(tx, _declared(tx, job, reader), "withdrawn", who, now)


def _declared(tx: Tx, job: str, reader: str) -> Contract:
    """What counts. Raises NotFound where there is nothing."""
    found = _last(tx, job, reader)
    if found is None:
        raise NotFound(what=f"reader of {job}", name=reader, hint="`canwait fresh` lists readers and what they accept")
    return found


def _last(tx: Tx, job: str, reader: str) -> Contract | None:
    rows = tx.run("contract_last", job=job, reader=reader)
    return _contract(rows[0]) if rows and rows[0]["said"] != "withdrawn" else None


def _state(tx: Tx, contract: Contract, said: str, who: str, now: datetime) -> Contract:
    facts = {"max_age_s": contract.max_age_s, "on_stale": contract.on_stale, "missed_runs": contract.missed_runs}
    tx.run("contract_insert", job=contract.job, reader=contract.reader, said=said, who=who, at=to_us(now), **facts)
    accepts = f"{contract.reader} accepts {span(timedelta(seconds=contract.max_age_s))}"
    journal(tx, now, contract.job, None, f"contract_{said}", accepts, reader=contract.reader, who=who, **facts)
    return contract


def contract_of(ledger: Ledger, job: str, reader: str) -> Contract | None:
    """What counts now."""
    with ledger.db.reading() as tx:
        return _last(tx, job, reader)


def contract_history(ledger: Ledger, job: str, reader: str | None = None) -> list[Stated]:
    """Everything that was ever stated of a job's contracts, or of one reader's, oldest first."""
    with ledger.db.reading() as tx:
        runs = tx.run("cadence", job=job)
        found = []
        for row in tx.run("contracts_stated", job=job):
            if reader in (None, row["reader"]):
                contract = _contract(row)
                holds = _cadence(tx, contract, runs[0]) if runs else None
                found.append(Stated(contract, row["said"], row["who"], from_us(row["at_us"]), holds))
        return found


def _contract(row: Row) -> Contract:
    return Contract(row["job"], row["reader"], row["max_age_s"], row["on_stale"], row["missed_runs"])


def breaks(ledger: Ledger, job: Job, tier: str, window_s: int) -> list[Cadence]:
    """The contracts that running a job like this cannot keep, and that running it as it did before could.

    `window_s`: the most a run takes by what was promised, where history does not know better.
    """
    with ledger.db.reading() as tx:
        contracts = [_contract(row) for row in tx.run("contracts", job=job.name)]
        if job.schedule is None or not contracts:
            return []
        before = tx.run("cadence", job=job.name)
        broken = []
        for contract in contracts:
            held = not before or (was := _cadence(tx, contract, before[0])) is None or was.holds
            planned = {"schedule": job.schedule, "tier": tier, "window_s": window_s}
            now = _cadence(tx, contract, planned)
            if now is not None and not now.holds and held:
                broken.append(now)
        return broken


def _cadence(tx: Tx, contract: Contract, runs: Mapping[str, Any]) -> Cadence | None:
    """Whether that cadence keeps a contract; None where no schedule says how often the job runs."""
    period_s = longest_gap_s(runs["schedule"]) if runs["schedule"] else None
    if period_s is None:
        return None
    seen = [Seen(row["us"] / 1e6) for row in tx.run("turnarounds", job=contract.job, tier=runs["tier"])]
    bound = next_batch(seen, _SURE)
    if bound.seconds is not None:
        return cadence(contract, period_s, round(bound.seconds), f"95 % of {bound.n} runs")
    return cadence(contract, period_s, runs["window_s"], f"at most, by the {runs['tier']} tier and the deadline")


# -------------------------------------------------------------------------------------------------- reads, refreshes


@dataclass(frozen=True, slots=True)
class Reads:
    """Some reads of one publication by one reader; never what stood in it."""

    version: int  # LIVE: of answers that were asked live
    n_reads: int
    n_rows: int
    n_stale: int
    oldest: timedelta


def record(ledger: Ledger, job: str, reader: str, reads: Reads, now: datetime) -> None:
    with ledger.db.transaction("record") as tx:
        tx.run(
            "reading_insert", job=job, version=reads.version, reader=reader, at=to_us(now), n_reads=reads.n_reads,
            n_rows=reads.n_rows, n_stale=reads.n_stale, age=reads.oldest // timedelta(microseconds=1),
        )  # fmt: skip


def look(ledger: Ledger, job: str, reader: str, now: datetime) -> tuple[Publication | None, Contract | None]:
    """What a reader sees, and the contract that counts for it, at one moment."""
    with ledger.db.reading() as tx:
        return _newest(tx, job, now), _last(tx, job, reader)


def begin_refresh(ledger: Ledger, job: str, holder: str, lease_s: float, now: datetime) -> bool:
    """Whether this caller makes the next publication: nobody else does, until the lease ends."""
    lease = to_us(now + timedelta(seconds=lease_s))
    with ledger.db.transaction("begin_refresh") as tx:
        return tx.count("refresh_begin", job=job, holder=holder, lease=lease, now=to_us(now)) == 1


def keep_refresh(ledger: Ledger, job: str, holder: str, lease_s: float, now: datetime) -> None:
    with ledger.db.transaction("keep_refresh") as tx:
        tx.run("refresh_keep", job=job, holder=holder, lease=to_us(now + timedelta(seconds=lease_s)))


def end_refresh(ledger: Ledger, job: str, holder: str) -> None:
    with ledger.db.transaction("end_refresh") as tx:
        tx.run("refresh_end", job=job, holder=holder)


def asked_live(ledger: Ledger, job: str, is_ok: bool, now: datetime) -> None:
    """A row that a reader asked live has ended, and its job with it where no other is out. Nobody is told that it is done:
    a reader has waited for it."""
    with ledger.db.transaction("asked_live") as tx:
        words = "a row was asked live, and answered" if is_ok else "a row was asked live, and failed"
        if not tx.run("next_due", job=job)[0]["n_open"]:
            state = JobState.COMPLETED if is_ok else JobState.COMPLETED_WITH_FAILURES
            tx.run("job_state", name=job, state=state.value, reason=words)
        journal(tx, now, job, None, "asked_live", words)


def refresh_failed(ledger: Ledger, job: str, why: str, now: datetime) -> None:
    with ledger.db.transaction("refresh_failed") as tx:
        journal(tx, now, job, None, "refresh_failed", why)


# --------------------------------------------------------------------------------------------------- where sets stand


@dataclass(frozen=True, slots=True)
class Standing:
    """One set and one of its readers, now."""

    job: str
    reader: str | None  # None: nobody has said that it reads this
    contract: Contract | None  # None: it reads, and has said nothing
    publication: Publication | None
    age: timedelta | None
    state: str  # fresh, stale, blocked, never_built, unconsumed, read: without a contract
    late: timedelta | None  # by how much the age is above what is accepted
    p95_age: timedelta | None  # of what was read, each as old as it was
    last_read: datetime | None
    unread_micros: int  # paid since the last publication that anybody read
    refreshing: bool
    next_at: datetime | None  # by the job's schedule
    cadence: Cadence | None  # None: no schedule is known

    @property
    def broken(self) -> bool:
        return self.state in ("stale", "blocked") or (self.state == "never_built" and self.contract is not None)


def standings(ledger: Ledger, now: datetime, job: str | None = None) -> list[Standing]:
    """Every set with every reader of it, declared or seen reading. Raises NotFound for a job of which there is neither."""
    with ledger.db.reading() as tx:
        jobs = [row["job"] for row in tx.run("published_jobs") if job in (None, row["job"])]
        if job is not None and not jobs:
            raise NotFound(what="publication or reader of a job", name=job, hint="run it, or declare a reader")
        return [found for name in jobs for found in _standings(tx, name, now)]


def _standings(tx: Tx, job: str, now: datetime) -> Iterable[Standing]:
    newest, runs = _newest(tx, job, now), tx.run("cadence", job=job)
    contracts = {row["reader"]: _contract(row) for row in tx.run("contracts", job=job)}
    seen = {row["reader"]: from_us(row["at_us"]) for row in tx.run("readers", job=job)}
    unread = int(tx.run("unread", job=job)[0]["micros"])
    schedule = runs[0]["schedule"] if runs else None
    nobody = Standing(
        job=job, reader=None, contract=None, publication=newest, age=now - newest.source_as_of if newest else None,
        state="unconsumed" if newest else "never_built", late=None, p95_age=None, last_read=None, unread_micros=unread,
        refreshing=bool(tx.run("refreshing", job=job, now=to_us(now))),
        next_at=next_fire(schedule, now) if schedule else None, cadence=None,
    )  # fmt: skip
    if not contracts and not seen:
        yield nobody
    for reader in sorted({*contracts, *seen}):
        contract = contracts.get(reader)
        late, state = None, "read"
        if contract is not None:
            terms = replace(contract, on_stale="block") if contract.on_stale == "live" else contract
            answer = judge(terms, newest, now)  # what is asked live instead is nothing of the set
            state = "never_built" if isinstance(answer, NeverBuilt) else type(answer).__name__.lower()
            if state in ("stale", "blocked") and newest is not None and not newest.is_misdated(now):
                late = now - newest.source_as_of - timedelta(seconds=contract.max_age_s)
        yield replace(
            nobody, reader=reader, contract=contract, state=state, late=late, last_read=seen.get(reader),
            p95_age=_p95(tx.run("readings", job=job, reader=reader, count=_READS)),
            cadence=_cadence(tx, contract, runs[0]) if contract and runs else None,
        )  # fmt: skip


def _p95(readings: Iterable[Row]) -> timedelta | None:
    """The age that 95 % of the reads stayed below; reads counted together are as old as the oldest of them."""
    ages = sorted((row["age_us"], row["n_reads"]) for row in readings)
    left = -(-sum(n for _, n in ages) * 95 // 100)
    for age, n in ages:
        left -= n
        if left <= 0:
            return timedelta(microseconds=age)
    return None
