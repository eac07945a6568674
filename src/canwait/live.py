"""What a reader asks for while it waits: one row, as it stands now, by a job of its own (NAME.live) with a limit of its own.

It goes through the one door: planned, reserved, sent and settled as any job is, so that a crash loses no answer and no
request is paid twice. Answers are found again by what was asked: a row that has not changed since it was last answered, by
this job or by a batch, is answered at no cost, and as of now, for it is this row's answer. Whatever stops it, money, the
provider, the row, a rule, time, is told in words; nothing older is given instead.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from . import gates, judging, publishing
from .affording import must_ask
from .client import Client, JobHandle, JobPlan
from .engine import Engine
from .errors import CanwaitError, GatePending, Problem, SourceError, SpecError
from .inspection import opened, rules_of
from .lifecycle import Retry, retry
from .load import Answers, answers
from .parts import manifest_of
from .plan import tier_for
from .providers.registry import ROW_BY_ROW
from .render import compile_job
from .resend import final_causes
from .sources import RowBatch
from .sources.digest import RowDigest
from .types import BudgetSpec, Job, Outcome, Plan, Quality, ShardSpec, Source, Tier, Urgency

_KEPT = 256  # answers of one reader that it need not ask for again
_SOONEST_S, _LATEST_S = 0.02, 1.0  # between two looks at what is out
_EIGHTH = 8  # of the time waited so far: what looking late may add
_TURN_S = 0.2  # for what others asked of the job and left open
_JUDGED = "by now people judge the answers of this job before anybody reads them"
_NOT_SENT = frozenset({"budget", "deadline"})  # causes of rows that were never sent


@dataclass(frozen=True, slots=True)
class Answered:
    """One row, answered."""

    row: Mapping[str, Any]  # by column, as a publication has it
    kind: Literal["fields", "text", "vector"]  # what the columns between key and provenance are
    key: str  # the key column
    as_of: datetime  # when the row was read
    gate: str  # what the answer passed, in words


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Why there is no answer that may be given."""

    why: str
    hint: str | None = None


def name_of(job: str) -> str:
    """What rows of a job that are asked live run as."""
    return f"{job}.live"


def job_of(job: Job, micros: int, within_s: int, gate: Quality | None) -> Job:
    """What is asked: the same, of the same model, row by row. `micros`: all that it may ever cost."""
    paid = ROW_BY_ROW.get(job.provider)  # of others every tier is asked row by row
    rescue = (job.fallback.rescue,) if job.fallback and job.fallback.rescue else ()
    tiers = tuple(tier for tier in (*job.tiers, *rescue) if tier.value in paid) or (Tier.STANDARD,) if paid else ()
    return replace(
        job, name=name_of(job.name), source=Source("frame:", job.source.key), tiers=tiers, urgency=Urgency.SYNC,
        budget=BudgetSpec(micros, None, None), deadline_s=within_s, shard=ShardSpec(), load=None, quality=gate,
        freshness=None, schedule=None, fallback=None, notify=(),
    )  # fmt: skip


class Asking:
    """Asks rows of one job live. Safe to share between threads."""

    def __init__(self, client: Client, job: str, spec: str | Path | Job, micros: int, within: timedelta) -> None:
        """`within`: how long a row is waited for. Raises SpecError for a job that cannot be asked so, UnknownPrice."""
        handle = client.job(spec)
        self._client, self._job, self._micros, self._within = client, handle.value, micros, within
        if handle.name != job:
            raise _wrong(f"the job is called {handle.name}; expected {job}, whose rows this reader reads")
        self._columns = (self._job.source.key, *sorted(compile_job(self._job).columns - {self._job.source.key}))
        if (gate := self._gate()) is not None and gate.by != "rule":
            raise _wrong(
                f"people judge the answers of {job} before anybody reads them, and a live one has been seen by nobody",
                "use `block`, `serve` or `refresh`; a gate with `by: rule` can be asked of a live answer",
            )
        self._check_price()
        if any(row["file"] or row["load_to"] for row in client.ledger.query("job", name=name_of(job))):
            raise _wrong(f"another job is called {name_of(job)}, as which its rows would be asked", "rename that job")
        self._lock = threading.Lock()  # over what follows
        self._kept: OrderedDict[str, tuple[Mapping[str, Any], Quality | None, Answered]] = OrderedDict()  # by key
        self._opening = threading.Lock()  # plans of one job are opened one after the other

    def ask(self, key: str, row: Mapping[str, Any] | None, most: timedelta) -> Answered | Unanswered | None:
        """The answer to a row; None: the job's source has no row of that key. Who waited longer than `most` got an old one.

        `row`: as the source would have it; None: it is looked up there, in one pass. Raises SourceError for a given row
        that cannot be asked.
        """
        as_of, gate = self._client.clock.now(), self._gate()
        if gate is not None and gate.by != "rule":
            return Unanswered(_JUDGED)
        given = None if row is None else self._of(key, row)
        if (kept := self._again(key, gate, given, most, as_of)) is not None:
            return kept
        try:
            asked = given or self._looked_up(key)
            if asked is None:
                return None
            found = self._answer(asked, gate, most, as_of)
        except SourceError as error:
            if row is not None:
                raise
            return Unanswered(f"its row cannot be asked: {error}", error.own_hint)
        except CanwaitError as error:
            return Unanswered(str(error), error.own_hint)
        if isinstance(found, Answered):
            with self._lock:
                self._kept[key] = asked, gate, found
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return found

    # ---------------------------------------------------------------------------------------------------------- the row

    def _of(self, key: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The columns that are asked of a row, in their order; one that is missing is told by the plan."""
        name = self._job.source.key
        if name in row and str(row[name]) != key:
            raise SourceError([Problem("row", None, None, name, f"found {row[name]!r}; expected the key {key!r}")])
        return {column: {**row, name: key}[column] for column in self._columns if column in row or column == name}

    def _again(
        self, key: str, gate: Quality | None, given: Mapping[str, Any] | None, most: timedelta, now: datetime
    ) -> Answered | None:
        """What this reader was answered before: to the same row, or to the row of this key read no longer ago than `most`."""
        with self._lock:
            asked, passed, found = self._kept.get(key, (None, None, None))
            if found is None or passed != gate:
                return None
            if given is not None and given == asked:
                found = replace(found, as_of=now)
                self._kept[key] = given, gate, found
                return found
            return found if given is None and timedelta(0) <= now - found.as_of <= most else None

    def _looked_up(self, key: str) -> Mapping[str, Any] | None:
        """The row of a key, by one pass over the source that ends where it stands."""
        from .sources.opening import open_source

        job, s = self._job, self._client.settings
        if job.source.uri in ("-", "frame:"):
            raise _wrong("its rows cannot be looked up", "give the row: get(key, row={...})")
        source, name = open_source(job.source, job.base_dir, env=s.env, scratch=s.scratch), job.source.key
        if name not in source.columns:
            raise SourceError([Problem(source.name, None, None, "source.key", f"there is no column {name!r}")])
        for batch in source.batches([column for column in self._columns if column in source.columns]):
            for at, value in enumerate(batch.columns[name]):
                if value == key or (type(value) is int and str(value) == key):
                    return {column: values[at] for column, values in batch.columns.items()} | {name: key}
        return None

    # ------------------------------------------------------------------------------------------------------- the answer

    def _answer(
        self, row: Mapping[str, Any], gate: Quality | None, most: timedelta, as_of: datetime
    ) -> Answered | Unanswered:
        c = self._client
        within_s = max(1, -(-min(self._within, most) // timedelta(seconds=1)))
        handle = _Handle(c, job_of(self._job, self._micros, within_s, gate), OneRow(row))
        with self._opening:
            plan = handle.open()
            self._once_more(handle.name, plan)
        ended, held = self._wait(handle.name, plan, c.clock.now() + timedelta(seconds=within_s))
        late = f"no answer came within {within_s} s" + (f": {held}" if held else "")
        if ended is None:
            if paused := c.ledger.job(handle.name)["paused"]:
                return Unanswered(f"{handle.name} is paused: {paused}")
            return Unanswered(late, "ask again: what has come by then is not paid again")
        publishing.asked_live(c.ledger, handle.name, ended is Outcome.OK, c.clock.now())
        if gate is not None:
            with suppress(GatePending):  # others are out, or another plan is the latest: who is last opens it
                opened(c.ledger, c.blobs, handle.name, c.clock.now(), self._job.base_dir)
        if ended is Outcome.EXPIRED:
            return Unanswered(late)
        if self._gate() != gate:
            return Unanswered("its gate is another by now", "ask again")
        with answers(c.ledger, c.blobs, handle.name, plan.digest) as found:
            return self._judged(found, gate, as_of)

    def _once_more(self, name: str, plan: Plan) -> None:
        """Where this was asked before and failed in passing, or was never sent, send it again; anything else stays."""
        c, place = self._client, self._place(name, plan)
        if place.outcome in (Outcome.PENDING, Outcome.OK):
            return
        cause = final_causes(c.ledger, c.blobs, place.shard).get(place.line)
        if retry(place.outcome, cause) is Retry.NEVER and cause not in _NOT_SENT:
            return
        root = c.ledger.shard(place.shard)
        tried = len(c.ledger.query("shards_of_root", root=root.id))
        new = c.engine.follow_up(
            root, manifest_of(c.blobs, root), [place.line], 1, c.ledger.terms(root), why=f"live {tried}"
        )
        c.ledger.add_shards(name, [(new, [place.line])], "its reader asks again", c.clock.now())

    def _wait(self, name: str, plan: Plan, until: datetime) -> tuple[Outcome | None, str | None]:
        """Advance what the job has open until the row has ended, None: it had not by then; and what held it last."""
        c, held = self._client, None
        engine = Engine(c.ledger, c.blobs, c.provider, c.clock, holder=c.engine.holder, pace=c.settings.pace)
        began = c.clock.now()
        while True:
            now = c.clock.now()
            look_s = min(max(_SOONEST_S, (now - began).total_seconds() / _EIGHTH), _LATEST_S)
            look_s = max(0.001, min(look_s, (until - now).total_seconds()))  # the last look is not missed
            engine.pace = replace(engine.pace, poll_s=look_s)
            engine.tick(name, until=now + timedelta(seconds=_TURN_S))
            place = self._place(name, plan)
            if place.outcome is not Outcome.PENDING:
                return place.outcome, held
            tried = c.ledger.query("shards_of_root", root=place.shard)
            held = next((shard["blocked"] for shard in reversed(tried) if shard["blocked"]), held)
            if now >= until or c.ledger.job(name)["paused"]:
                return None, held
            due, _ = c.ledger.next_due(name)
            wait_s = look_s if due is None else (due - c.clock.now()).total_seconds()
            c.clock.sleep(max(0.001, min(wait_s, look_s)))

    def _judged(self, found: Answers, gate: Quality | None, as_of: datetime) -> Answered | Unanswered:
        """The one row of a plan that has ended, as the job's rules find it."""
        rows = [row for batch in found.loaded() for row in batch.to_pylist()]
        if not rows:
            (_, outcome, cause, detail), *_ = (row.values() for batch in found.failed() for row in batch.to_pylist())
            return Unanswered(f"the row failed: {': '.join(word for word in (cause or outcome, detail) if word)}")
        words = "no gate"
        if gate is not None:
            job = self._job
            rules = rules_of(gate, job.base_dir, job.name, job.output_schema)
            for key, text in found.texts():
                if (broken := rules.broken(key, text)) is not None:
                    return Unanswered(f"its answer breaks the rule `{rules.words[broken]}`")
            untold = "; its language could not be told" if rules.n_untold else ""
            words = f"asked live: it keeps all {len(rules.words)} rules{untold}, and nobody has looked at it"
        return Answered(rows[0], found.columns.kind, found.columns.key, as_of, words)

    def _place(self, name: str, plan: Plan) -> _Place:
        """Where the row of a plan is answered, and what became of it so far."""
        (shard,) = self._client.ledger.query("plan_shards", job=name, plan=plan.digest)
        line = array("I", zlib.decompress(shard["weights"])).index(1)
        return _Place(shard["shard"], line, Outcome(zlib.decompress(shard["vector"])[line]))

    def _gate(self) -> Quality | None:
        """What stands before the job's answers: by its file, and by its last run."""
        ledger, name = self._client.ledger, self._job.name
        ran = [judging.quality_of(ledger, name, row["plan"]) for row in ledger.query("job", name=name)]
        return gates.strictest([gate for gate in (*ran, self._job.quality) if gate is not None])

    def _check_price(self) -> None:
        """Raises UnknownPrice."""
        handle = JobHandle(self._client, job_of(self._job, self._micros, 1, None))
        if tier := tier_for(handle.value, handle.value.provider, handle._price):
            handle._price(tier)


class _Handle(JobHandle):
    """One row that is asked live."""

    def _agreed(self, plan: Plan, approve: Callable[[JobPlan], bool] | None) -> bool:
        """Raises BudgetExceeded, which its reader is told, and nobody else: there may be as many as there are reads."""
        return must_ask(self.client.ledger, self.value, plan, self._limit_micros, self.client.clock.now())


@dataclass(frozen=True, slots=True)
class _Place:
    shard: str  # a root
    line: int
    outcome: Outcome


class OneRow:
    """A source of one row."""

    name = "row"

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.columns = tuple(row)
        self._row = row

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        yield RowBatch({name: [self._row[name]] for name in (self.columns if columns is None else columns)}, [1])

    def fingerprint(self) -> str:
        digest = RowDigest(self.columns)
        digest.add([value] for value in self._row.values())
        return digest.hexdigest()


def _wrong(why: str, hint: str | None = None) -> SpecError:
    return SpecError([Problem("reader", None, None, "live", why)], hint=hint)
