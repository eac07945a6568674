"""The only loop body: `advance` takes one shard one step, `tick` advances what is due, `run` ticks until nothing is open.

Between two states of a shard lies at most one effect on the outside, and its intent is recorded first. What may go wrong
in between is answered by asking the provider, never by assuming (design.md 2, 5a). Everything that runs work calls this.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import halting, holding, landing, rescue, settling
from .blobs import Blobs
from .clock import Clock, from_us
from .codec import batch_from_json
from .errors import (
    Ambiguous,
    BatchUnknown,
    BudgetExceeded,
    BudgetFrozen,
    Busy,
    CannotTell,
    CanwaitError,
    Crowded,
    KeyRefused,
    LeaseLost,
    LedgerError,
    OutOfCredit,
    ProviderError,
    Rejected,
    TooLarge,
    Unreachable,
)
from .ledger import Ledger, NewShard, Settlement
from .lines import read_lines
from .outlook import outlook
from .price import cost_micros, worst_micros
from .providers import Provider
from .releasing import Part, Stranded, release
from .schedule import CANCEL_S, LOOK_S
from .settling import Fate
from .types import Batch, Intent, MarkClass, Outcome, Price, Shard, ShardFile, ShardState, Terms

S = ShardState
_SWEEPS = 5  # a listing that cannot be read so often does not keep a finished job open; the next run asks again
_GONE_S = 3600  # a batch whose results the provider does not know this long after its end is taken as lost


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the engine goes."""

    poll_s: float | None = None  # None: what the provider finds worth asking
    lease_s: float = 10.0  # after a crash another caller takes over this much later
    heartbeat: bool = True  # renew the lease while a step takes long; off under a virtual clock
    cancel_s: float = CANCEL_S  # what a cancel may take, where rows are moved to be in time
    look_s: float = LOOK_S  # how often it is looked whether they must be


class Engine:
    """Advances shards. `provider_of` opens the adapter of a provider's name; it is called once per name."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: Blobs,
        provider_of: Callable[[str], Provider],
        clock: Clock,
        *,
        holder: str,
        pace: Pace = Pace(),
    ) -> None:
        self.ledger, self.blobs, self.clock, self.holder, self.pace = ledger, blobs, clock, holder, pace
        self._provider_of = provider_of
        self._providers: dict[str, Provider] = {}
        self._look_at: dict[str, datetime] = {}  # by plan: not before

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self, job: str, *, until: datetime | None = None, watch: Callable[[], None] = lambda: None) -> bool:
        """Tick until nothing of a job is open. False: `until` came first, and the job goes on. Never spends twice on a re-run."""
        unread = 0
        while True:
            self.tick(job, until=until, watch=watch)
            due, n_open = self.ledger.next_due(job)
            if not n_open:
                found = self.sweep(job)
                unread += found is None
                if found is False or unread == _SWEEPS:
                    return True
                if found:
                    continue
            now = self.clock.now()
            if until is not None and now >= until:
                return False
            watch()
            wait_s = (due - now).total_seconds() if due else 1.0
            self.clock.sleep(max(0.001, min(wait_s, self.pace.poll_s or 1.0, 1.0)))

    def tick(
        self, job: str | None = None, *, until: datetime | None = None, watch: Callable[[], None] = lambda: None
    ) -> int:
        """Advance every shard that is due and free, once each at least; how many steps were taken."""
        steps = 0
        while until is None or self.clock.now() < until:
            shard = self.ledger.claim(self.holder, self.clock.now(), self.pace.lease_s, job)
            if shard is None:
                break
            with self._held(shard):
                self.advance(shard)
            steps += 1
            watch()
        return steps

    def advance(self, shard: Shard) -> None:
        """One idempotent step of a shard this caller holds. A lost lease writes nothing and is no error.

        Raises KeyRefused after the shard has been put back; every other answer of a provider is recorded, not raised.
        """
        steps = {S.PLANNED: self._begin, S.SUBMITTING: self._submit, S.SUBMITTED: self._poll, S.ENDED: self._settle}
        try:
            shard = self._look(shard)
            step = self._move_on if shard.state is S.PLANNED and shard.moving else steps[shard.state]
            step(shard)
            self._missed(shard)
        except LeaseLost:
            return

    def sweep(self, job: str) -> bool | None:
        """Look for second batches of one token before a job ends; found ones are cancelled and their bill is booked.

        Whether any was found; None when a listing could not be read. Only a shard with more creates begun than batches
        known can have one.
        """
        found, unread = False, False
        for row in self.ledger.query("tried_again", job=job):
            shard = self.ledger.shard(row["id"])
            provider = self.provider(shard)
            if provider.mark is MarkClass.IDEMPOTENT:
                continue
            try:
                batches = provider.find(self._file(shard, provider))
            except ProviderError:
                unread = True
                continue
            for batch in batches:
                if batch.id != shard.batch_id:
                    self.ledger.duplicate(shard, batch, self.clock.now())
                    found = True
        return True if found else None if unread else False

    # --------------------------------------------------------------------------------------------------- the deadline

    def _look(self, shard: Shard) -> Shard:
        """The shard, after what would not be back in time was told to move, itself perhaps among it."""
        now = self.clock.now()
        waits = shard.role == "work" and shard.state in (S.PLANNED, S.SUBMITTED)
        if not waits or now < self._look_at.get(shard.plan, now):
            return shard
        self._look_at[shard.plan] = now + timedelta(
            seconds=self.pace.look_s / 2
        )  # polls come between, so each `look_s`
        terms = self.ledger.terms(shard)
        if terms.rescue is None or shard.provider == terms.rescue:
            return shard
        window_s = self.provider(shard).limits(terms.model).window_s

        def worst(other: str) -> tuple[int, int]:
            return self._redo(self.ledger.shard(other), terms)

        def held(other: str) -> bool:
            return self._waits_for_canary(self.ledger.shard(other), terms)

        pace = {"cancel_s": self.pace.cancel_s, "look_s": self.pace.look_s}
        rescue.look(self.ledger, shard, terms, worst, held, now, window_s=window_s, **pace)
        return replace(shard, moving=self.ledger.shard(shard.id).moving)

    def _waits_for_canary(self, shard: Shard, terms: Terms) -> bool:
        canary = holding.canary_of(self.ledger, shard)
        if terms.quality is not None and (
            halting.stands(self.ledger, shard) or halting.first(self.ledger, shard, canary)
        ):
            return True
        asks = terms.ask and shard.id == shard.root and canary not in (None, shard.id)
        return asks and holding.is_out(self.ledger, canary or "")

    def _redo(self, shard: Shard, terms: Terms) -> tuple[int, int]:
        """(micros, tokens) that asking all lines of a shard where they are moved to costs at most."""
        bounds = self._bounds(landing.read_manifest(self.blobs.path(shard.manifest_blob)), range(shard.n_lines))
        adapter, size = self._moves_to(terms)
        n_shards = -(-shard.n_lines // size)  # each is rounded up for itself
        return worst_micros(bounds, terms.price_of(adapter)) + n_shards - 1, sum(i + o for i, o in bounds)

    def _moves_to(self, terms: Terms) -> tuple[str, int]:
        """The adapter that lines are moved to, and how many of them one shard there may have."""
        adapter = terms.rescue or terms.rescues[0].adapter  # a job file edited meanwhile moves nothing back
        return adapter, self._open(adapter).limits(terms.model).max_rows

    def _move_on(self, shard: Shard) -> None:
        """PLANNED, and it would be back too late: its lines are planned where they are moved to."""
        now = self.clock.now()
        if self._over(shard, now):
            self._begin(shard)
            return
        if self._held_for_canary(shard, self.provider(shard), now):
            return
        manifest, terms = landing.read_manifest(self.blobs.path(shard.manifest_blob)), self.ledger.terms(shard)
        moved = self._moved(shard, manifest, range(shard.n_lines), shard.attempt, terms)
        why = "moved to another tier before it was sent"
        self.ledger.dropped(shard, Settlement({}, None, 0, 0, 0, 0, 0, 0, tuple(moved), None, why, {}), now)

    def _moved(
        self, shard: Shard, manifest: pa.Table, lines: Sequence[int], attempt: int, terms: Terms
    ) -> Iterator[NewShard]:
        """Shards of lines of a shard that is on its move, as large as they may be there, on what it holds for them."""
        adapter, size = self._moves_to(terms)
        for start in range(0, len(lines), size):
            part = lines[start : start + size]
            new = self.follow_up(shard, manifest, part, attempt, terms, why=f"moved {start}", to=adapter)
            yield replace(new, carries=True)

    def _missed(self, before: Shard) -> None:
        """After a step: whether the deadline has passed over rows that it found on their way, or could not send."""
        if before.role != "work" or before.state is S.ENDED:
            return
        after = self.ledger.shard(before.id).state
        if after is S.ENDED or (before.state, after) == (S.SUBMITTING, S.SUBMITTED):  # its batch may have ended in time
            return
        rescue.missed(self.ledger, before.job, self.clock.now())

    # ------------------------------------------------------------------------------------------------------ the steps

    def _begin(self, shard: Shard) -> None:
        """PLANNED: reserve and record the intent, or leave it, or give it up."""
        now = self.clock.now()
        if why := self._over(shard, now):
            self.ledger.dropped(shard, self._all_lines(shard, *why), now)
            return
        provider = self.provider(shard)
        if self._held_for_canary(shard, provider, now):
            return
        try:
            shard = self._at_latest_rates(shard, now)
            self.ledger.begin_submit(shard, provider.limits(self.ledger.terms(shard).model), provider.mark, now)
        except Crowded as error:
            wait = self.ledger.crowded if error.fields.get("everybody") else self.ledger.wait
            wait(shard, self._later(provider, shard), str(error), now)
        except BudgetFrozen as error:
            self.ledger.pause_job(shard.job, str(error), now)
            self.ledger.wait(shard, self._later(provider, shard), str(error), now)
        except BudgetExceeded as error:
            self._release(shard, provider, str(error), now)

    def _at_latest_rates(self, shard: Shard, now: datetime) -> Shard:
        """What is sent is reserved at the rates its job was last planned at: those it was planned for may be history."""
        latest = self.ledger.job(shard.job)["plan"]
        if latest == shard.plan or shard.held_micros:  # what another shard held for it was told as what it costs
            return shard
        before, after = self.ledger.terms(shard), self.ledger.terms(replace(shard, plan=latest))
        old, new = before.price_of(shard.provider), after.price_of(shard.provider)
        asks_the_same = all(
            getattr(before, name) == getattr(after, name) for name in ("provider", "model", "endpoint", "tier")
        )
        if not asks_the_same or new == replace(old, source=new.source, as_of=new.as_of):
            return shard
        manifest = landing.read_manifest(self.blobs.path(shard.manifest_blob))
        worst = worst_micros(self._bounds(manifest, range(shard.n_lines)), new)
        return self.ledger.repriced(shard, latest, worst, now)

    def _held_for_canary(self, shard: Shard, provider: Provider, now: datetime) -> bool:
        """Whether a planned shard waits for its plan's canary, or for a person to whom that left a question; so recorded."""
        terms = self.ledger.terms(shard)
        if terms.quality is not None and self._held_by_gate(shard, provider, now):
            return True
        asks = shard.id == shard.root and terms.ask
        canary = holding.canary_of(self.ledger, shard) if asks else None
        if canary is None or canary == shard.id:
            return False
        later = self._later(provider, shard)
        if holding.is_out(self.ledger, canary):
            first = "the canary comes first: it says what the other rows will cost"
            holding.hold(self.ledger, shard, canary, later, first, now)
        elif why := self._question(shard, now):
            self.ledger.pause_job(shard.job, why, now)
            self.ledger.wait(shard, later, why, now)
        else:
            holding.answered(self.ledger, shard.job, shard.plan, "the limit surely covers the rest", now)
            return False
        return True

    def _held_by_gate(self, shard: Shard, provider: Provider, now: datetime) -> bool:
        """The same for a job with a gate: for what the free checks say of the canary, and of whatever came home after it."""
        if why := halting.stands(self.ledger, shard):
            if halting.is_left_behind(self.ledger, shard):
                stopped = self._all_lines(shard, Outcome.CANCELLED, "cancelled", f"its plan was stopped: {why}")
                self.ledger.dropped(shard, stopped, now)
                return True
            self.ledger.pause_job(shard.job, why, now)
            self.ledger.wait(shard, self._later(provider, shard), why, now)
            return True
        if first := halting.first(self.ledger, shard, holding.canary_of(self.ledger, shard)):
            canary, why = first
            holding.hold(self.ledger, shard, canary, self._later(provider, shard), why, now)
        return first is not None

    def _question(self, shard: Shard, now: datetime) -> str | None:
        rooms = (room for room in self.ledger.rooms(shard, now) if room.budget == f"job:{shard.job}")
        room = next((room for room in rooms if room.unit == "micros"), None)
        worst = self.ledger.query("to_be_sent", job=shard.job, plan=shard.plan)[0]["micros"]
        job = self.ledger.job(shard.job)
        seen = outlook(self.ledger, self.blobs, shard.job) if job["plan"] == shard.plan else None
        return None if room is None else holding.question(seen, room, int(worst), job["file"])

    def _release(self, shard: Shard, provider: Provider, refused: str, now: datetime) -> None:
        """PLANNED, and more than the money left can hold: send a part of it, wait for money, or end rows unsent."""
        manifest, terms = landing.read_manifest(self.blobs.path(shard.manifest_blob)), self.ledger.terms(shard)
        where = {"account": shard.account, "id": shard.id}
        told_by_size = provider.mark is MarkClass.UNMARKED
        taken = {r["n_lines"] for r in self.ledger.query("open_sizes", **where)} if told_by_size else None
        lines = range(shard.n_lines)
        bounds, price = self._bounds(manifest, lines), terms.price_of(shard.provider)
        later = self._later(provider, shard)
        match release(bounds, price, self.ledger.rooms(shard, now), taken=taken):
            case Part(n) if n < shard.n_lines:  # its turn comes next: before any other that is due, and before its rest
                parts = self._in_parts(shard, manifest, terms, [lines[:n], lines[n:]], f"{n} rows fit: {refused}")
                part, rest = parts.retries
                retries = replace(part, next_at=shard.next_at), replace(rest, next_at=later)
                self.ledger.dropped(shard, replace(parts, retries=retries), now)
            case Stranded(ends, why):
                kept = sorted(set(lines).difference(ends))
                others = self._in_parts(shard, manifest, terms, [kept] if kept else [], why)
                ended = self._unsent(shard, Outcome.FAILED, "budget", why, ends)
                self.ledger.dropped(shard, replace(ended, retries=others.retries), now)
            case _:
                self.ledger.wait(shard, later, refused, now)

    def _submit(self, shard: Shard) -> None:
        """SUBMITTING: settle the fate of an earlier try, then send."""
        provider = self.provider(shard)
        intent, absent = self.ledger.intent(shard.token or "")
        file = self._file(shard, provider, intent)
        if intent.open and provider.mark is not MarkClass.IDEMPOTENT and not absent:
            self._find(shard, provider, file, intent)
            return
        now = self.clock.now()
        paused = self.ledger.job(shard.job)["paused"]
        if intent.open and not absent:  # class A: its batch may exist; only sending it again can tell
            self._send(shard, provider, file, earlier_open=True)
        elif why := self._over(shard, now):
            self.ledger.refused(shard, self._all_lines(shard, *why), now)
        elif paused:
            self.ledger.give_back(shard, now, f"the job is paused: {paused}", None, now)
        else:
            self._send(shard, provider, file, earlier_open=False)

    def _find(self, shard: Shard, provider: Provider, file: ShardFile, intent: Intent) -> None:
        """A create's reply was lost: here it is, certainly absent, or not to be told yet. Until then the money stays held."""
        asked_at = self.clock.now()  # a slow listing shows what was there when it was asked for, not when it came
        try:
            batches = provider.find(file)
        except KeyRefused:
            self.ledger.wait(
                shard,
                self._later(provider, shard),
                "the key was refused while asking for a lost reply",
                self.clock.now(),
            )
            raise
        except ProviderError as error:
            why = str(error) if isinstance(error, CannotTell) else f"the listing cannot be read: {error}"
            self.ledger.wait(shard, self._later(provider, shard), f"fate unknown: {why}", self.clock.now())
            return
        now = self.clock.now()
        if batches:
            self.ledger.submitted(shard, batches[0], now, "found by its token after its reply was lost", now)
            for twin in batches[1:]:
                self.ledger.duplicate(shard, twin, now)
            return
        settled = (intent.last_try or now) + timedelta(seconds=provider.limits(self.ledger.terms(shard).model).settle_s)
        if asked_at < settled:
            why = f"fate unknown: not listed; certain at {settled:%H:%M:%S} UTC"
            self.ledger.wait(shard, min(self._later(provider, shard), settled), why, now)
        else:
            self.ledger.not_arrived(shard, now, "certainly absent: sent again", now)

    def _send(self, shard: Shard, provider: Provider, file: ShardFile, *, earlier_open: bool) -> None:
        """The one place that sends. The try is recorded before, its fate after; what cannot be told stays open.

        `earlier_open`: an idempotent create is repeated because the fate of an earlier one is not known. Then a refusal of
        this one says nothing about that one, and the money stays held.
        """
        self.ledger.begin_try(shard, provider.account, self.pace.lease_s, self.clock.now())
        file = replace(file, first_try=file.first_try or self.clock.now())

        def guard() -> None:
            self.ledger.sending(shard, self.pace.lease_s, self.clock.now())

        try:
            batch = provider.submit(file, guard)
        except Ambiguous as error:
            self._unknown(shard, provider, error)
        except (Unreachable, Busy, OutOfCredit, KeyRefused, Rejected) as error:
            if earlier_open:
                self._unknown(shard, provider, error)
            else:
                self._not_sent(shard, provider, error)
            if isinstance(error, KeyRefused):
                raise
        else:
            until = self._later(provider, shard)
            self.ledger.submitted(shard, batch, until, "accepted by the provider", self.clock.now())

    def _unknown(self, shard: Shard, provider: Provider, error: CanwaitError) -> None:
        self.ledger.wait(shard, self._later(provider, shard), f"fate unknown: {error}", self.clock.now())

    def _not_sent(self, shard: Shard, provider: Provider, error: CanwaitError) -> None:
        """The create certainly made no batch: send it again later, plan it again, or end its rows."""
        now = self.clock.now()
        match error:
            case Unreachable():
                self.ledger.not_arrived(shard, self._later(provider, shard), f"never arrived: {error}", now)
            case Busy() if not settling.never_fits(shard, str(error)):
                until = self._later(provider, shard, error.retry_after_s)
                self.ledger.not_arrived(shard, until, f"not accepted now: {error}", now)
            case OutOfCredit():
                self.ledger.give_back(shard, now, str(error), str(error), now)
            case KeyRefused():
                self.ledger.give_back(shard, now, str(error), None, now)
            case Busy() | TooLarge() if shard.n_lines > 1:
                self.ledger.refused(shard, self._halves(shard, str(error)), now)
            case _:
                self.ledger.refused(shard, self._all_lines(shard, Outcome.FAILED, "invalid_request", str(error)), now)

    def _poll(self, shard: Shard) -> None:
        """SUBMITTED: ask; cancel when that was asked for or the provider's own window has long passed."""
        provider = self.provider(shard)
        batch_id = shard.batch_id or ""
        stop = shard.cancel_asked or shard.moving or shard.role == "duplicate" or self._past_window(shard, provider)
        try:
            if stop:
                with suppress(
                    Busy, Ambiguous, Unreachable
                ):  # it is asked again at the next poll; this one tells the end
                    provider.cancel(batch_id)
            batch = provider.poll(batch_id)
        except KeyRefused:
            self.ledger.wait(shard, self._later(provider, shard), "the key was refused while polling", self.clock.now())
            raise
        except ProviderError as error:
            until = self._later(provider, shard, error.retry_after_s if isinstance(error, Busy) else None)
            self.ledger.wait(shard, until, f"cannot be polled: {error}", self.clock.now())
            return
        now = self.clock.now()
        if batch.status.ended:
            self.ledger.ended(shard, batch, now)
        else:
            self.ledger.polled(shard, batch, self._later(provider, shard, batch.retry_after_s), now)

    def _settle(self, shard: Shard) -> None:
        """ENDED: store the raw output, then record results, cost, release and the retry in one transaction."""
        provider = self.provider(shard)
        batch = batch_from_json(json.loads(shard.batch or "{}"))
        if not shard.raw_blobs:
            try:
                raw = self.blobs.put_stream(provider.results(batch))
            except KeyRefused:
                self.ledger.wait(
                    shard, self._later(provider, shard), "the key was refused while fetching results", self.clock.now()
                )
                raise
            except ProviderError as error:
                if not (isinstance(error, BatchUnknown) and self._gone(shard)):
                    until = self._later(provider, shard, error.retry_after_s if isinstance(error, Busy) else None)
                    self.ledger.wait(shard, until, f"results cannot be fetched: {error}", self.clock.now())
                    return
                raw = self.blobs.put(b"")
            self.ledger.fetched(shard, [raw], self.clock.now())
            shard = replace(shard, raw_blobs=(raw,))
        settlement = self._settlement(shard, provider, batch)
        self.ledger.settle(shard, settlement, self.clock.now())

    # ------------------------------------------------------------------------------------------------------- the parts

    def _settlement(self, shard: Shard, provider: Provider, batch: Batch) -> Settlement:
        """Read a shard's stored output into results, money and the rows to send again."""
        terms = self.ledger.terms(shard)
        price = terms.price_of(shard.provider)
        manifest = landing.read_manifest(self.blobs.path(shard.manifest_blob))
        root_lines = _ints(manifest, "line")
        watch = halting.Watch(landing.checker(terms.output_schema), terms)
        with self.blobs.scratch() as folder:
            writer = landing.ResultsWriter(folder / "results.parquet", root_lines)
            landed = landing.land(
                self._raw_lines(shard),
                self._file(shard, provider),
                decode=provider.decode,
                plain=provider.plain,
                check=watch.check,
                price=price,
                writer=writer,
            )
            absent, fate = landed.fates.absent(), settling.fate_of_absent(batch)
            for line in absent:
                landed.fates[line] = fate
            writer.fill(absent, fate)
            writer.close()
            results = self.blobs.adopt(folder / "results.parquet")

        usage, confirmed = landed.usage, _ceil(landed.exact_micros)
        unknown = landed.fates.lines(lambda fate: fate.billed == "unknown")
        flat = _flat(price, max(_ints(manifest, "input_bound"), default=0))
        if batch.usage is not None and flat is not None and settling.batch_usage_counts(batch, usage):
            confirmed, usage = max(confirmed, cost_micros([batch.usage], flat)), batch.usage
            unknown = []  # the batch's own bill covers what its rows do not state
        bounds = self._bounds(manifest, unknown)
        wasted = min(confirmed, _ceil(landed.exact_wasted_micros) + max(0, confirmed - _ceil(landed.exact_micros)))
        work = shard.role == "work"
        job = self.ledger.job(shard.job)
        sending = work and not shard.cancel_asked and not self._over(shard, self.clock.now()) and not job["cancelled"]
        tries = {"attempt": shard.attempt, "attempts": terms.attempts}
        verdict = settling.decide(landed.fates, batch, **tries, sending=sending, moving=shard.moving)
        again = sorted((*verdict.again, *verdict.moved))
        twice = _paid_for(self.blobs.path(results), [root_lines[line] for line in again]) if wasted and again else 0
        if any(landed.fates[line].outcome is Outcome.MISSING for line in again):
            twice += max(0, confirmed - _ceil(landed.exact_micros))  # billed beyond all that came back
        return Settlement(
            outcomes=dict(zip(root_lines, map(tuple(Outcome).__getitem__, verdict.outcomes), strict=True))
            if work
            else {},
            results_blob=results,
            confirmed_micros=confirmed,
            wasted_micros=wasted if work else confirmed,
            unknown_micros=worst_micros(bounds, price) if bounds else 0,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            unknown_tokens=sum(i + o for i, o in bounds),
            retries=tuple(self._retries(shard, manifest, verdict, terms, batch)),
            pause=verdict.pause if sending else None,
            reason=f"batch {batch.status.value}",
            facts={
                "n_strangers": landed.n_strangers,
                "n_repeats": landed.n_repeats,
                **landed.fates.tally(),
                "n_billed": len(landed.fates.lines(lambda fate: fate.billed == "stated")),
                "wasted": {cause: f"{micros:f}" for cause, micros in landed.exact_wasted.items()},
            },
            twice_micros=min(twice, wasted),
            halt=halting.halt(self.ledger, shard, terms.quality, landed.fates.tally(), watch.n_broken, confirmed)
            if terms.quality and sending
            else None,
        )

    def _retries(
        self, shard: Shard, manifest: pa.Table, verdict: settling.Verdict, terms: Terms, batch: Batch
    ) -> Iterator[NewShard]:
        """Shards of the lines that are sent again. Their ids are a function of what they follow, so a repeat makes the same.

        Lines that were not tried, because the provider's queue was full, wait for it: that is no attempt of theirs.
        """
        if shard.moving:
            yield from self._moved(shard, manifest, verdict.moved, shard.attempt, terms)
            yield from self._moved(shard, manifest, verdict.again, verdict.attempt, terms)
            return
        untried = verdict.attempt == shard.attempt
        parts = [list(verdict.again)]
        if settling.was_never_run(batch) and settling.never_fits(shard, batch.error):
            parts = _halves(parts[0])
        for n, lines in enumerate(parts):
            if lines:
                why = f"{shard.batch_id or ''}{f' half {n}' if len(parts) > 1 else ''}"
                new = self.follow_up(shard, manifest, lines, verdict.attempt, terms, why=why)
                yield replace(new, next_at=self._later(self.provider(shard), shard)) if untried else new

    def follow_up(
        self, shard: Shard, manifest: pa.Table, lines: Sequence[int], attempt: int, terms: Terms, *, why: str,
        to: str | None = None,
    ) -> NewShard:  # fmt: skip
        """A new shard that asks for some lines of an older one again; `to`: by another adapter."""
        requests = self.blobs.put_stream(landing.subset(read_lines(self.blobs.path(shard.requests_blob)), lines))
        part = manifest.take(pa.array(lines, pa.int64()))
        with self.blobs.scratch() as folder:
            pq.write_table(part, folder / "manifest.parquet", compression="zstd", compression_level=1)
            manifest_blob = self.blobs.adopt(folder / "manifest.parquet")
        bounds = self._bounds(part, list(range(len(lines))))
        seed = "\0".join((shard.id, str(attempt), why, requests))
        return NewShard(
            id=f"{shard.root[:16]}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}",
            root=shard.root,
            attempt=attempt,
            provider=to or shard.provider,
            account=self._open(to).account if to else shard.account,
            n_lines=len(lines),
            requests_blob=requests,
            manifest_blob=manifest_blob,
            input_bound=sum(i for i, _ in bounds),
            output_bound=sum(o for _, o in bounds),
            worst_micros=worst_micros(bounds, terms.price_of(to or shard.provider)),
            next_at=self.clock.now(),
        )

    def _all_lines(self, shard: Shard, outcome: Outcome, cause: str, detail: str) -> Settlement:
        """A shard that ended without being sent: every line ends the same way."""
        return self._unsent(shard, outcome, cause, detail, range(shard.n_lines))

    def _unsent(self, shard: Shard, outcome: Outcome, cause: str, detail: str, lines: Sequence[int]) -> Settlement:
        """Lines (ascending) of a shard that was not sent end so; nothing was spent."""
        fate = Fate(outcome, cause, detail, "nothing")
        root_lines = _ints(landing.read_manifest(self.blobs.path(shard.manifest_blob)), "line")
        with self.blobs.scratch() as folder:
            writer = landing.ResultsWriter(folder / "results.parquet", root_lines)
            writer.fill(lines, fate)
            writer.close()
            results = self.blobs.adopt(folder / "results.parquet")
        ends = {root_lines[line]: outcome for line in lines}
        return Settlement(ends, results, 0, 0, 0, 0, 0, 0, (), None, detail, {"cause": cause})

    def _halves(self, shard: Shard, reason: str) -> Settlement:
        """A shard that is too large to be sent: two of half its lines."""
        manifest, terms = landing.read_manifest(self.blobs.path(shard.manifest_blob)), self.ledger.terms(shard)
        halves = _halves(range(shard.n_lines))
        return self._in_parts(shard, manifest, terms, halves, f"sent in two halves: {reason}")

    def _in_parts(
        self, shard: Shard, manifest: pa.Table, terms: Terms, parts: Sequence[Sequence[int]], reason: str
    ) -> Settlement:
        """A shard that is not sent as it is: shards of some of its lines, at the same attempt, for nothing was tried."""
        shards = tuple(
            self.follow_up(shard, manifest, lines, shard.attempt, terms, why=f"part {n}")
            for n, lines in enumerate(parts)
        )
        return Settlement({}, None, 0, 0, 0, 0, 0, 0, shards, None, reason, {})

    def _over(self, shard: Shard, now: datetime) -> tuple[Outcome, str, str] | None:
        """Why a shard is not sent any more, as outcome, cause and words; None while it may be."""
        job = self.ledger.job(shard.job)
        if job["cancelled"] or shard.cancel_asked:
            return Outcome.CANCELLED, "cancelled", "the job was cancelled before this row was sent"
        deadline = from_us(job["deadline_us"])
        if now >= deadline:
            return (
                Outcome.EXPIRED,
                "deadline",
                f"the job's deadline {deadline:%Y-%m-%d %H:%M} UTC passed before this row was sent",
            )
        return None

    def _past_window(self, shard: Shard, provider: Provider) -> bool:
        submitted = self.ledger.shard_row(shard.id)["submitted_us"]
        window = timedelta(seconds=provider.limits(self.ledger.terms(shard).model).window_s + _GONE_S)
        return submitted is not None and self.clock.now() > from_us(submitted) + window

    def _gone(self, shard: Shard) -> bool:
        ended = self.ledger.shard_row(shard.id)["ended_us"]
        return ended is not None and self.clock.now() > from_us(ended) + timedelta(seconds=_GONE_S)

    def _file(self, shard: Shard, provider: Provider, intent: Intent | None = None) -> ShardFile:
        terms = self.ledger.terms(shard)
        if intent is None and shard.token:
            intent = self.ledger.intent(shard.token)[0]
        known = frozenset(r["batch_id"] for r in self.ledger.query("batch_ids", account=shard.account, id=shard.id))
        return ShardFile(
            token=shard.token or "",
            path=self.blobs.path(shard.requests_blob),
            n_rows=shard.n_lines,
            endpoint=terms.endpoint,
            model=terms.model,
            window_s=provider.limits(terms.model).window_s,
            first_try=intent.first_try if intent else None,
            known=known,
        )

    def _raw_lines(self, shard: Shard) -> Iterator[bytes]:
        for blob in shard.raw_blobs:
            yield from self.blobs.lines(blob)

    @staticmethod
    def _bounds(manifest: pa.Table, lines: Sequence[int]) -> list[tuple[int, int]]:
        part = manifest.take(pa.array(lines, pa.int64()))
        return list(zip(_ints(part, "input_bound"), _ints(part, "output_bound"), strict=True))

    def _later(self, provider: Provider, shard: Shard, retry_after_s: float | None = None) -> datetime:
        """When to look again: no later than the poll interval, unless the provider asked for more."""
        pace = (
            self.pace.poll_s if self.pace.poll_s is not None else provider.limits(self.ledger.terms(shard).model).poll_s
        )
        return self.clock.now() + timedelta(seconds=max(pace, retry_after_s or 0.0))

    def provider(self, shard: Shard) -> Provider:
        """The adapter of a shard's provider.

        Keys are rotated, so another account than the shard was planned for is no fault: what it does not know is held. But
        where a lost reply is to be asked for, another account's listing would prove an absence that is none: LedgerError.
        """
        provider = self._open(shard.provider)
        if (
            provider.account != shard.account
            and shard.state is S.SUBMITTING
            and self.ledger.intent(shard.token or "")[0].open
        ):
            raise LedgerError(
                f"shard {shard.id} may have been sent on {shard.account}, and the environment now names {provider.account}",
                hint="set the key and base URL it was sent with, or say `canwait resolve` what became of it",
            )
        return provider

    def _open(self, adapter: str) -> Provider:
        if adapter not in self._providers:
            self._providers[adapter] = self._provider_of(adapter)
        return self._providers[adapter]

    @contextmanager
    def _held(self, shard: Shard) -> Iterator[None]:
        """Renew the lease in the background while a step takes long."""
        if not self.pace.heartbeat:
            yield
            return
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.pace.lease_s / 3):
                try:
                    self.ledger.renew(shard, self.clock.now(), self.pace.lease_s)
                except LedgerError:
                    return  # lost, or given back by the step itself: the fence decides, not this thread

        thread = threading.Thread(target=beat, daemon=True, name=f"lease {shard.id}")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _halves(lines: Sequence[int]) -> list[list[int]]:
    return [list(lines[: len(lines) // 2]), list(lines[len(lines) // 2 :])]


def _ceil(exact: Decimal) -> int:
    return int(exact.to_integral_value(ROUND_CEILING))


def _paid_for(results: Path, root_lines: Sequence[int]) -> int:
    """Micros that were billed for these lines, by a file of results."""
    found = pq.read_table(results, columns=["line", "cost_micros"])
    of_these = found.filter(pc.is_in(found["line"], pa.array(root_lines, pa.int32())))
    return _ceil(pc.sum(of_these["cost_micros"], min_count=0).as_py() or Decimal(0))


def _ints(table: pa.Table, column: str) -> list[int]:
    return cast("list[int]", table[column].to_pylist())


def _flat(price: Price, longest_input: int) -> Price | None:
    """The price of a sum of requests; None where some may be long enough for other rates, so that a sum has no price."""
    if any(longest_input > step.above_input_tokens for step in price.steps):
        return None
    return replace(price, steps=())
