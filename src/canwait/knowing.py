"""What is known of a job, and what can be done: slow, at risk, stuck, blocked, idle, unconsumed, each with its numbers and
the sample they rest on; each choice with its price, its odds and the command to type. Read-only; one look reads what jobs
share once.

Nothing is claimed of a time in which nobody looked: a batch whose runner died an hour ago is not stuck for that hour.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from . import history, publishing, schedule, views
from .blobs import Blobs
from .clock import from_us, to_us
from .codec import terms_from_json
from .db import Row
from .freshness import Blocked as BlockedRead
from .freshness import judge, span
from .holding import CANARY_IS_BACK
from .ledger import Ledger
from .notices import Outdated
from .price import worst_micros
from .turnaround import Past, Progress, Seen, Survival, alike, survival
from .types import JobState, Rescue, ShardState, Terms, Tier
from .watching import (
    FEWEST,
    SOON_S,
    AtRisk,
    Blocked,
    Finding,
    History,
    Idle,
    Slow,
    State,
    Stuck,
    Unconsumed,
    unread,
    watch,
)

IDLE_S = 900.0  # a shard that is due for so long is looked at by nobody
_DAY_S = 86_400.0  # the window of a plan that does not say one
_NO_FILE = "JOB.YAML"  # of a job that was opened without one
_OPEN = frozenset({JobState.QUEUED.value, JobState.IN_PROGRESS.value, JobState.GATE.value})
_GRAVEST = (Stuck, AtRisk, Blocked, Idle, Slow)


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that can be done now."""

    what: str
    price: str
    micros: int | None  # the most it costs beyond what is held for the job already; None: nobody can say
    then: str  # what it brings, with its odds and what they rest on
    command: str  # as it is typed


@dataclass(frozen=True, slots=True)
class Found:
    """What is so of a job's batches: of the worst of them, with the job as its subject."""

    finding: State
    n: int  # batches of which it is so


@dataclass(frozen=True, slots=True)
class Ready:
    """When the last batch that is out will be back, if none of its rows is sent again."""

    p50: datetime | None  # None: nothing that was seen reaches so far
    p95: datetime | None
    words: str


@dataclass(frozen=True, slots=True)
class Knowing:
    """What is known of one job."""

    job: str
    word: str  # running, slow, at risk, stuck, blocked, idle; gate, refused, unconsumed; or the state of a job that has ended
    words: str  # why, in numbers; empty: there is nothing to say
    command: str | None  # what to type next; None: nothing has to be done
    found: tuple[Found, ...]  # of its batches, the gravest first
    unread: tuple[Unconsumed, ...]
    ready: Ready | None  # None: nothing is out, or a limit holds it
    batches: dict[str, tuple[State, ...]]  # of each unfinished shard
    sentences: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()


def known(ledger: Ledger, blobs: Blobs, job: str, now: datetime) -> Knowing:
    """Everything that can be said of one job. Raises NotFound."""
    return Looking(ledger, now, job).diagnosed(views.figures(ledger, job), blobs)


class Looking:
    """One look at the ledger, for one job or for all."""

    def __init__(self, ledger: Ledger, now: datetime, job: str | None = None) -> None:
        self.ledger, self.now = ledger, now
        self._only = job
        self._histories: dict[tuple[object, ...], tuple[History, str]] = {}
        self._paces: dict[tuple[Rescue, str], schedule.Pace | None] = {}

    def known(self, figures: views.Figures) -> Knowing:
        """What is known of a job, without its diagnosis."""
        return _Job(self, figures.job, figures).known()

    def diagnosed(self, figures: views.Figures, blobs: Blobs) -> Knowing:
        """The same with sentences and choices."""
        job = _Job(self, figures.job, figures)
        known = job.known()
        return replace(known, sentences=tuple(job.sentences(known)), choices=tuple(job.choices(known, blobs)))

    def alarms(self) -> Iterator[tuple[str, Finding]]:
        """What may be worth telling of every job that is not at its end, and of every reader; each with its job."""
        for job in self.unfinished:
            if self.ledger.job(job)["state"] in _OPEN:
                yield from ((job, found.finding) for found in _Job(self, job).found)
        for job, standings in self.readers.items():
            yield from ((job, finding) for finding in self._stale(job, standings))
            yield from ((job, finding) for finding in self.unread(job))

    # ------------------------------------------------------------------------------------------------ what jobs share

    @cached_property
    def unfinished(self) -> dict[str, list[Row]]:
        """Shards that are not at their end, by job."""
        rows: dict[str, list[Row]] = {}
        for row in self.ledger.query("unfinished", job=self._only or ""):
            rows.setdefault(row["job"], []).append(row)
        return rows

    @cached_property
    def readers(self) -> dict[str, list[publishing.Standing]]:
        """Who reads which job, and what they get."""
        found: dict[str, list[publishing.Standing]] = {}
        for standing in publishing.standings(self.ledger, self.now):
            if standing.reader is not None and self._only in (None, standing.job):
                found.setdefault(standing.job, []).append(standing)
        return found

    @cached_property
    def _past(self) -> Sequence[Past]:
        return history.past(self.ledger, self.now)

    def history(self, adapter: str, terms: Terms, n_rows: int, window_s: float) -> tuple[History, str]:
        """What batches of a kind did before, and what that kind is called. `adapter`: as in `Shard.provider`."""
        kind = (adapter, terms.model, terms.tier, len(str(n_rows)), window_s)
        if kind not in self._histories:
            provider, _, tier = adapter.partition("/")
            seen, name = alike(self._past, provider, terms.model, Tier(tier) if tier else terms.tier, n_rows)
            took = schedule.turnaround([p.seen for p in seen], window_s)
            # What stands still now, or did so until its window closed, does not tell how long it is normal to.
            gaps = [p.longest_gap for p in seen if p.longest_gap and p.longest_gap.ended]
            whole = [p.seen for p in seen if p.seen.ended]
            self._histories[kind] = History(took, survival(gaps), survival(whole)), name
        return self._histories[kind]

    def pace(self, rescue: Rescue, model: str) -> schedule.Pace | None:
        """How fast rows go where they would be moved to; None: nothing is known of it, so nothing is moved."""
        if (rescue, model) not in self._paces:
            rates = history.rates(self.ledger, rescue.adapter, model)
            self._paces[rescue, model] = schedule.pace(rates, rescue.rows_per_s)
        return self._paces[rescue, model]

    def _stale(self, job: str, standings: Iterable[publishing.Standing]) -> Iterator[Outdated]:
        """The contracts that what readers get does not keep. What was never there is awaited, and no news."""
        for s in standings:
            if s.reader is None or s.contract is None or not s.broken:
                continue
            answer = judge(replace(s.contract, on_stale="block"), s.publication, self.now)
            if isinstance(answer, BlockedRead):
                yield Outdated(job, s.reader, answer.why)
            elif made := publishing.publications(self.ledger, job):
                last = f"version {made[-1].version}, the last, counts no more"
                yield Outdated(job, s.reader, f"there is nothing left for {s.reader} to read: {last}")

    def unread(self, job: str) -> list[Unconsumed]:
        """Results of a job that are ready and that somebody who reads them has not read, the longest first."""
        found = []
        for s in self.readers.get(job, ()):
            if s.publication is None or s.reader is None:
                continue
            produced, version = s.publication.produced_at, s.publication.version
            if any(row["version"] == version and row["read_us"] for row in self._pickups(job, s.reader)):
                continue
            micros = s.unread_micros or s.publication.cost_micros  # others may have read it
            pickup_s = float(s.contract.max_age_s) if s.contract else None
            delays = [] if s.contract else self._delays(job, s.reader)
            late = unread(job, s.reader, produced, self.now, micros, pickup_s=pickup_s, delays=delays)
            found += [late] if late else []
        return sorted(found, key=lambda late: -late.unread_s)

    def _pickups(self, job: str, reader: str) -> list[Row]:
        return self.ledger.query("pickups", job=job, reader=reader)

    def _delays(self, job: str, reader: str) -> list[Seen]:
        """How long this reader took to read each publication; one that a later one took the place of was never read."""
        rows = self._pickups(job, reader)
        delays = []
        for row, following in zip(rows, [*(r["produced_us"] for r in rows[1:]), None], strict=True):
            end = row["read_us"] if row["read_us"] is not None else following
            if end is not None and len(rows) >= FEWEST:
                delays.append(Seen((end - row["produced_us"]) / 1e6, row["read_us"] is not None))
        return delays


@dataclass(frozen=True, slots=True)
class _Batch:
    """One unfinished shard, looked at."""

    row: Row
    history: History
    kind: str  # of batch, in words
    submitted: datetime | None
    looked: datetime  # until when anything is known of it
    findings: tuple[State, ...]

    @property
    def elapsed_s(self) -> float:
        return 0.0 if self.submitted is None else (self.looked - self.submitted).total_seconds()

    def odds(self, deadline: datetime) -> float:
        return self.history.took.odds(self.elapsed_s, (deadline - self.looked).total_seconds())


class _Job:
    """One job, looked at."""

    def __init__(self, looking: Looking, name: str, figures: views.Figures | None = None) -> None:
        self.looking, self.name, self._figures = looking, name, figures
        self.ledger, self.now = looking.ledger, looking.now
        self.rows = looking.unfinished.get(name, [])
        self._row = self.ledger.job(name)
        self.deadline = from_us(self._row["deadline_us"])
        self._plans: dict[str, tuple[Terms, dict[str, Any], datetime]] = {}

    @property
    def f(self) -> views.Figures:
        """Read where more is asked than how its batches are."""
        self._figures = self._figures or views.figures(self.ledger, self.name)
        return self._figures

    # ------------------------------------------------------------------------------------------------------ in one line

    def known(self) -> Knowing:
        found, unread = self.found, self.looking.unread(self.name)
        word, words, command = self._word(found, unread)
        batches = {batch.row["id"]: batch.findings for batch in self.batches}
        ready = None if word in ("gate", "blocked") else self._ready()
        if not words and word == "running" and ready is not None:
            words = ready.words
        return Knowing(self.name, word, words, command, found, tuple(unread), ready, batches)

    def _word(self, found: Sequence[Found], unread: Sequence[Unconsumed]) -> tuple[str, str, str | None]:
        f, why = self.f, f"canwait why {self.name}"
        if f.state in (JobState.GATE, JobState.REFUSED):
            return f.state.value, f.reason or "", f"canwait inspect {self.name}"
        if f.finished and not self.rows:
            if unread:
                return "unconsumed", _bare(unread[0]), f"canwait fresh {self.name}"
            if f.state in (JobState.QUEUED, JobState.IN_PROGRESS):
                return "idle", "every row has ended, and nobody has brought it to its end", self.run
            bad = f.ok < f.rows
            return f.state.value, f.reason or "", why if bad else None
        if f.paused:
            since = self.ledger.query("paused_since", job=self.name)[0]["at_us"]
            held = f"for {span(self.now - from_us(since))} by: " if since else ""
            return "blocked", f"{held}{f.paused}", why
        for each in found:
            state = each.finding
            if isinstance(state, Blocked) and each.n < len(self.batches):
                continue  # others are on their way, and this one waits for them
            command = self.run if isinstance(state, Idle) else None if isinstance(state, Slow) else why
            return state.kind, self._counted(each) + _bare(state), command
        return "running", "", None

    @cached_property
    def found(self) -> tuple[Found, ...]:
        found = []
        for kind in _GRAVEST:
            states = [state for batch in self.batches for state in batch.findings if isinstance(state, kind)]
            if states:
                found.append(Found(replace(max(states, key=_gravity), subject=self.name), len(states)))
        return tuple(found)

    def _counted(self, found: Found) -> str:
        n_out = len(self.batches)
        return f"{found.n} of {n_out} batches; the worst " if n_out > 1 else ""

    def _ready(self) -> Ready | None:
        """The last of the batches that are out, each as long as those that were out for as long before."""
        if not self._out or any(batch.row["blocked"] for batch in self._out):
            return None
        n = len(self._out)
        if not all(batch.history.took.known for batch in self._out):
            late = max((b.submitted or self.now) + timedelta(seconds=self._window_s(b.row)) for b in self._out)
            fewest = min(batch.history.took.curve.n for batch in self._out)
            return Ready(None, None, f"back by {self._clock(late)} by the provider's window ({fewest} past batches)")
        p50, p95 = (self._last(share ** (1 / n)) for share in (0.5, 0.95))
        basis = schedule.based_on(min((b.history.took.curve for b in self._out), key=lambda curve: curve.n))
        halves = f"ready {self._clock(p50)}" if p50 else "ready later than was ever seen"
        most = f" (p95 {self._clock(p95)})" if p95 else ""
        return Ready(p50, p95, f"{halves}{most}: {basis}")

    def _last(self, share: float) -> datetime | None:
        """When `share` of batches like each of these were back, of the last of them."""
        ends = []
        for batch in self._out:
            left_s = batch.history.left_s(batch.elapsed_s, share)
            if left_s is None:
                return None
            ends.append(batch.looked + timedelta(seconds=left_s))
        return max(ends)

    # ---------------------------------------------------------------------------------------------------- each batch

    @cached_property
    def batches(self) -> list[_Batch]:
        return [self._batch(row) for row in self.rows if row["role"] == "work"]

    def _batch(self, row: Row) -> _Batch:
        terms, _, opened = self._plan(row["plan"])
        history, kind = self.looking.history(row["provider"], terms, row["n_lines"], self._window_s(row))
        submitted = from_us(row["submitted_us"]) if row["submitted_us"] else None
        looked = from_us(row["looked_us"]) if row["looked_us"] else submitted or self.now
        finished = row["state"] == ShardState.ENDED.value
        soon_s = min(SOON_S, (self.deadline - opened).total_seconds() / 4)  # of a deadline that is minutes away
        states: list[State] = [] if finished else watch(
            row["id"], history, self.now, submitted or self.now,
            progress=Progress(*json.loads(row["progress"])) if row["progress"] else None,
            deadline=self.deadline, latest_start=self._latest_start, looked=looked, soon_s=soon_s,
            blocked=(row["blocked"], self._held_since(row)) if row["blocked"] else None,
        )  # fmt: skip
        if self._idle_s is not None:
            states = [*(state for state in states if not isinstance(state, Slow)), Idle(row["id"], self._idle_s)]
        return _Batch(row, history, kind, submitted, looked, tuple(states))

    @property
    def _out(self) -> list[_Batch]:
        """Those that are not back."""
        return [batch for batch in self.batches if batch.row["state"] != ShardState.ENDED.value]

    @cached_property
    def _idle_s(self) -> float | None:
        """For how long something has been due that nobody looks at; None: somebody does, or nothing is due."""
        if self._row["paused"] or any(row["lease_us"] > self._now_us for row in self.rows):
            return None
        due_us = min((max(row["next_us"], row["lease_us"]) for row in self.rows), default=self._now_us)
        late_s = (self._now_us - due_us) / 1e6
        return late_s if late_s > IDLE_S else None

    def _held_since(self, row: Row) -> datetime:
        """Since when a limit holds a shard: what is not sent yet since it was first named, what is out since the last time."""
        first, last = self._holds.get(row["id"], (self._now_us, self._now_us))
        return from_us(last if row["submitted_us"] else first)

    @cached_property
    def _holds(self) -> dict[str, tuple[int, int]]:
        rows = self.ledger.query("held_since", job=self.name)
        return {row["shard"]: (row["first_us"], row["last_us"]) for row in rows}

    @cached_property
    def _latest_start(self) -> datetime | None:
        """Until when what is out may be waited for; None: nothing of it is moved."""
        pace = self._rescue and self.looking.pace(self._rescue, self._terms.model)
        n_rows = sum(row["n_lines"] for row in self._staying)
        return schedule.latest_start(self.deadline, n_rows, pace) if pace and n_rows else None

    @cached_property
    def _rescue(self) -> Rescue | None:
        """Where rows are moved that would be late, as the job file says."""
        return next((r for r in self._terms.rescues if r.adapter == self._terms.rescue), None)

    @property
    def _staying(self) -> list[Row]:
        """Shards that are where the plan put them."""
        return [r for r in self.rows if r["role"] == "work" and r["moving_us"] is None and "/" not in r["provider"]]

    @property
    def _terms(self) -> Terms:
        return self._plan(self._row["plan"])[0]

    def _window_s(self, row: Row) -> float:
        """What the provider promised when the plan was made."""
        offers = self._plan(row["plan"])[1].get("offers", ())
        return float(next((o["limits"]["window_s"] for o in offers if o["chosen"]), _DAY_S))

    def _plan(self, digest: str) -> tuple[Terms, dict[str, Any], datetime]:
        """Terms, body and opening of one of its plans."""
        if digest not in self._plans:
            row = self.ledger.query("plan", job=self.name, digest=digest)[0]
            self._plans[digest] = (
                terms_from_json(json.loads(row["terms"])),
                json.loads(row["body"]),
                from_us(row["opened_us"]),
            )
        return self._plans[digest]

    # ------------------------------------------------------------------------------------------------------ the diagnosis

    def sentences(self, known: Knowing) -> Iterator[str]:
        """The diagnosis, each sentence with the sample it rests on."""
        f = self.f
        if not f.finished:
            where = ", ".join(sorted({row["provider"] for row in self.rows}))
            yield f"{f.pending:,} of {f.rows:,} rows are not answered yet, in {_n(len(self.batches), 'batch')} at {where}."
        if f.paused:
            yield f"It is paused: {f.paused}"
        if worst := self._worst:
            yield self._took(worst)
        yield from (f"{_n(each.n, 'batch')}: {each.finding.words}." for each in known.found)
        if not f.finished:
            left = self.deadline - self.now
            late = f"was {self._clock(self.deadline)}, {span(-left)} ago" if left < timedelta(0) else ""
            yield f"The deadline {late or f'is {self._clock(self.deadline)}, in {span(left)}'}."
            yield from self._needs()
            if known.ready and known.word in ("running", "slow"):
                yield f"{known.ready.words[0].upper()}{known.ready.words[1:]}."
        yield from (f"{late.words[0].upper()}{late.words[1:]}." for late in known.unread)

    @cached_property
    def _worst(self) -> _Batch | None:
        """The batch that what is said rests on: of the gravest finding, else the one that is out for longest."""

        def gravity(batch: _Batch) -> tuple[float, ...]:
            states = ((-_GRAVEST.index(type(state)), *_gravity(state)) for state in batch.findings)
            return max(states, default=(-len(_GRAVEST), batch.elapsed_s))

        return max(self.batches, key=gravity, default=None)

    def _took(self, batch: _Batch) -> str:
        sent = f"Submitted {span(self.now - batch.submitted)} ago." if batch.submitted else "Not sent yet."
        took = batch.history.took
        if not took.known:
            return f"{sent} How long it takes is not known: {took.basis}."
        return f"{sent} Batches like it ({batch.kind}) take {_takes(took.curve)}: {took.basis}."

    def _needs(self) -> Iterator[str]:
        """By when readers need the next publication."""
        for s in self.looking.readers.get(self.name, ()):
            if s.contract is None or s.age is None or s.publication is None or s.publication.is_misdated(self.now):
                continue  # else nothing is known of when
            left = timedelta(seconds=s.contract.max_age_s) - s.age
            when = f"in {span(left)}" if left > timedelta(0) else f"since {span(-left)}"
            yield f"{s.reader} needs the next publication {when}: it accepts {span(timedelta(seconds=s.contract.max_age_s))}."

    # -------------------------------------------------------------------------------------------------------- choices

    def choices(self, known: Knowing, blobs: Blobs) -> Iterator[Choice]:
        """What can be done now, the least first."""
        yield from self._resolutions()
        if self.f.state is JobState.GATE or self.f.state is JobState.REFUSED:
            what = "judge its sample" if self.f.state is JobState.GATE else "see what was rejected"
            then = "nothing is loaded or can be read before" if self.f.finished else "accepted, the rest is sent"
            yield Choice(what, "free", 0, then, f"canwait inspect {self.name}")
            if not self.f.finished:
                yield Choice("give it up", "free", 0, self._kept(), f"canwait cancel {self.name}")
        elif not self.f.finished:
            yield from self._waits()
            yield from self._budgets()
            yield Choice("give it up", "free", 0, self._kept(), f"canwait cancel {self.name}")
            if self._row["load_to"] and not self.f.gated and self.f.ok:
                rows = f"{self.f.ok:,} of {self.f.rows:,} rows now; the others when they come"
                yield Choice("load what is there", "free", 0, rows, f"canwait load {self.file}")
        else:
            yield from self._endings(blobs)
        for late in known.unread:
            fresh = f"canwait fresh {self.name}"
            yield Choice("see who reads it", "free", 0, f"{late.reader} has not for {_s(late.unread_s)}", fresh)

    def _waits(self) -> Iterator[Choice]:
        if self.f.paused:
            yield from self._goes_on(self.f.paused)
            return
        micros, moved = self._moved()
        price = f"free; at most {_usd(micros)} for what is moved" if micros else "free"
        yield Choice("wait", price, micros, self._odds() + moved, self.run)

    def _goes_on(self, paused: str) -> Iterator[Choice]:
        """Of a paused job: what lets it go on."""
        micros = sum(row["worst_micros"] for row in self.rows if row["state"] == ShardState.PLANNED.value)
        rest = f"at most {_usd(micros)} a try"
        command = paused.rpartition("it goes on with: ")[2]
        if self.ledger.query("halted", job=self.name, plan=self._row["plan"]):
            mended = "another plan, with a canary of its own; nothing more of this one is sent"
            yield Choice("run it with a mended prompt", "as planned then", None, mended, self.run)
            yield Choice("go on all the same", rest, micros, "the rest is sent as it is", f"{self.run} --past-canary")
        elif self._terms.ask and paused.startswith(CANARY_IS_BACK) and command.startswith("canwait run "):
            yield Choice("answer its question", rest, micros, "the rest is sent", command)
        else:
            yield Choice("go on", "free", 0, "once what paused it is mended", self.run)

    def _moved(self) -> tuple[int, str]:
        """What moving rows that would be late costs at most, and when they are."""
        if self._rescue is None or not self._staying:
            return 0, ""
        tier = self._rescue.price.tier.value
        if self._latest_start is None:
            return 0, f"; no rate of {tier} is known, so nothing is moved in time"
        sums = ((row["input_bound"], row["output_bound"]) for row in self._staying)
        micros = sum(worst_micros([each], self._rescue.price) for each in sums)
        when = f"not back by {self._clock(self._latest_start)}" if self._latest_start > self.now else "not back yet"
        return micros, f"; what is {when} is moved to {tier}"

    def _odds(self) -> str:
        if not self._out:
            return "what is left is being settled"
        if unknown := [batch.history.took for batch in self._out if not batch.history.took.known]:
            return f"its odds are unknown ({unknown[0].basis})"
        if self.deadline <= self.now:
            return "its deadline has passed"
        worst = min(self._out, key=lambda batch: batch.odds(self.deadline))
        n, basis = worst.history.n_like(worst.elapsed_s), worst.history.took.basis
        if not n:
            return f"none was ever out for so long ({basis})"
        of = f", the slowest of {len(self._out)} batches" if len(self._out) > 1 else ""
        return f"in time with about {worst.odds(self.deadline):.0%} ({n} earlier cases{of})"

    def _kept(self) -> str:
        held = self.f.reserved_micros
        return f"{self.f.ok:,} rows are kept and paid" + (f", up to {_usd(held)} comes back" if held else "")

    def _budgets(self) -> Iterator[Choice]:
        """For each budget in which what waits has no room: what it must be, or that a person has looked."""
        waiting = [row for row in self.rows if row["state"] == ShardState.PLANNED.value]
        chain = [*json.loads(self._row["chain"]), f"month:{self.now:%Y-%m}"]
        for row in (row for id in chain for row in self.ledger.query("budget", id=id)):
            if row["frozen"]:
                yield Choice("thaw a budget", "free", 0, row["frozen"], f"canwait budget thaw {shlex.quote(row['id'])}")
            limit, used = row["limit_micros"], row["spent_micros"] + row["held_micros"]
            blocked = [r["worst_micros"] for r in waiting if r["blocked"]]
            if limit is None or not blocked or used + min(blocked) <= limit:
                continue
            needed = used + sum(r["worst_micros"] for r in waiting)
            usd = f"{_cents(needed):f}"
            own = row["id"] == f"job:{self.name}"
            command = (
                f"{self.run} --budget {usd}" if own else f"canwait budget set {shlex.quote(row['id'])} --usd {usd}"
            )
            then = f"{_n(len(waiting), 'batch')} can be sent; {row['id']} is {_usd(limit)} now"
            yield Choice("raise the budget", f"at most {_usd(needed - limit)} more", needed - limit, then, command)

    def _resolutions(self) -> Iterator[Choice]:
        """What only a person can find out."""
        for row in self.rows:
            if row["is_open"]:
                say = f"canwait resolve {row['id']}"
                price = "free" if row["held_micros"] == 0 else f"gives back {_usd(row['held_micros'])}, or spends it"
                then = "whether its batch exists cannot be told; look at the provider"
                yield Choice(
                    f"say that {row['id']} has no batch", price, 0, f"{then}; then it is sent again", f"{say} --absent"
                )
                yield Choice(f"say which batch {row['id']} is", "free", 0, then, f"{say} --batch ID")
        for shard in views.shards(self.ledger, self.name):
            if shard.state is ShardState.SETTLED and shard.held_micros:
                then = f"rows never came back, and what they cost is unknown, at most {_usd(shard.held_micros)}"
                command = f"canwait resolve {shard.id} --billed USD"
                yield Choice(f"say what {shard.id} was billed", "as invoiced", 0, then, command)

    def _endings(self, blobs: Blobs) -> Iterator[Choice]:
        """Of a job whose rows have all ended."""
        f = self.f
        if f.state in (JobState.QUEUED, JobState.IN_PROGRESS):
            yield Choice("bring it to its end", "free", 0, "its rows are judged or loaded", self.run)
        elif self._row["load_to"] and f.readable and not f.loaded:
            yield Choice("load its rows", "free", 0, f"{f.ok:,} rows", f"canwait load {self.file}")
        for selector, n in (("failed", f.failed - (f.gate.left_out if f.gate else 0)), ("missing", f.missing)):
            if n:
                micros = self._worst_micros(selector, blobs)
                twice = "; what they cost the first time is not known" if selector == "missing" else ""
                price = f"at most {_usd(micros)} a try"
                yield Choice(
                    f"send {selector} rows again", price, micros, f"{n:,} rows{twice}", f"{self.run} --only {selector}"
                )

    def _worst_micros(self, selector: str, blobs: Blobs) -> int:
        """What sending rows again costs at most, one time."""
        from . import landing
        from .resend import select

        micros = 0
        for root, lines in select(self.ledger, blobs, self.name, selector):
            part = landing.read_manifest(blobs.path(root.manifest_blob)).take(lines)
            bounds = zip(_ints(part["input_bound"]), _ints(part["output_bound"]), strict=True)
            micros += worst_micros(bounds, self._plan(root.plan)[0].price)
        return micros

    # ------------------------------------------------------------------------------------------------------- commands

    @property
    def run(self) -> str:
        return f"canwait run {self.file}"

    @cached_property
    def file(self) -> str:
        """The job's file as it is typed here."""
        path = self._row["file"]
        if not path or not Path(path).is_file():
            return _NO_FILE
        here = Path.cwd()
        return shlex.quote(str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path)

    @cached_property
    def _now_us(self) -> int:
        return to_us(self.now)

    def _clock(self, at: datetime) -> str:
        return schedule.clock(at, self.now)


def _gravity(state: State) -> tuple[float, ...]:
    """What makes one batch worse than another of which the same is so."""
    match state:
        case Stuck():
            return (state.still_s,)
        case AtRisk():
            return (-1.0 if state.odds is None else 1 - state.odds, state.elapsed_s)
        case Blocked() | Idle():
            return (state.since_s,)
        case Slow():
            return (state.elapsed_s,)


def _takes(curve: Survival) -> str:
    """ "1 h 10 min (p50), 6 h 40 min (p99)": of few batches the longest, and of one that is still out that it takes longer."""
    name = "p99" if curve.n >= 100 else "the longest"

    def quantile(share: float) -> str:
        seconds = curve.quantile(share)
        return f"more than {_s(curve.times[-1])}" if seconds is None else _s(seconds)

    return f"{quantile(0.5)} (p50), {quantile(0.99)} ({name})"


def _bare(finding: Finding) -> str:
    """Its words, without the word itself."""
    return finding.words.removeprefix(finding.kind).lstrip(":, ")


def _ints(column: Any) -> list[int]:
    found: list[int] = column.to_pylist()
    return found


def _n(n: int, what: str) -> str:
    plural = {"batch": "batches"}.get(what, f"{what}s")
    return f"{n:,} {what if n == 1 else plural}"


def _s(seconds: float) -> str:
    return span(timedelta(seconds=seconds))


def _cents(micros: int) -> Decimal:
    """USD, rounded up to a cent; below one cent as it is."""
    return Decimal(-(-micros // 10_000)) / 100 if micros >= 10_000 else Decimal(micros).scaleb(-6)


def _usd(micros: int) -> str:
    return f"${_cents(micros):,f}"
