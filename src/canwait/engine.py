"""The only loop body: `advance` takes one shard one step, `tick` advances what is due, `run` ticks until nothing is open.

Between two states of a shard lies at most one effect on the outside, and its intent is recorded first. What may go wrong
in between is answered by asking the provider, never by assuming (design.md 2, 5a). Everything that runs work calls this.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pyarrow as pa

from . import billing, canary_gate, halting, holding, landing, parts, ramp, rescue, settling
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
from .outlook import outlook
from .price import worst_micros
from .providers import Provider
from .releasing import Part, Stranded, release
from .schedule import CANCEL_S, LOOK_S
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
        self._ramp = ramp.Ramp(ledger)

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
                batches = provider.find(self._file(shard, provider, finds=True))
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
        waits = shard.role == "work" and shard.state is not S.ENDED
        if not waits or now < self._look_at.get(shard.plan, now):
            return shard
        terms = self.ledger.terms(shard)
        if terms.rescue is None or shard.provider == terms.rescue:  # polled so often, those would take every look
            return shard
        # Polls come between, so each `look_s`.
        self._look_at[shard.plan] = now + timedelta(seconds=self.pace.look_s / 2)
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
        judged = terms.is_canary_judged
        if terms.quality is not None and (
            halting.stands(self.ledger, shard)
            or halting.first(self.ledger, shard, canary, whole=judged)
            or (judged and canary_gate.is_held(self.ledger, shard))
        ):
            return True
        asks = terms.ask and shard.id == shard.root and canary not in (None, shard.id)
        return asks and holding.is_out(self.ledger, canary or "")

    def _redo(self, shard: Shard, terms: Terms) -> tuple[int, int]:
        """(micros, tokens) that asking all lines of a shard where they are moved to costs at most."""
        bounds = parts.bounds(parts.manifest_of(self.blobs, shard), range(shard.n_lines))
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
        manifest, terms = parts.manifest_of(self.blobs, shard), self.ledger.terms(shard)
        moved = self._moved(shard, manifest, range(shard.n_lines), shard.attempt, terms)
        self.ledger.dropped(shard, parts.into([*moved], "moved to another tier before it was sent"), now)

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
        if shard.held_micros:  # what another shard held for it was told as what it costs
            return shard
        if latest == shard.plan:
            return self._at_rescue_rates(shard, now)
        before, after = self.ledger.terms(shard), self.ledger.terms(replace(shard, plan=latest))
        old, new = before.price_of(shard.provider), after.price_of(shard.provider)
        asks_the_same = all(
            getattr(before, name) == getattr(after, name)
            for name in ("provider", "model", "endpoint", "tier", "output_schema")
        )
        if not asks_the_same or new == replace(old, source=new.source, as_of=new.as_of):
            return shard
        manifest = parts.manifest_of(self.blobs, shard)
        worst = worst_micros(parts.bounds(manifest, range(shard.n_lines)), new)
        return self.ledger.repriced(shard, latest, worst, now)

    def _at_rescue_rates(self, shard: Shard, now: datetime) -> Shard:
        """What was moved, and holds nothing, is reserved at what the job file says by now that its tier costs."""
        terms = self.ledger.terms(shard)
        if all(rescue.adapter != shard.provider for rescue in terms.rescues):
            return shard
        bounds = parts.bounds(parts.manifest_of(self.blobs, shard), range(shard.n_lines))
        worst = worst_micros(bounds, terms.price_of(shard.provider))
        return shard if worst == shard.worst_micros else self.ledger.repriced(shard, shard.plan, worst, now)

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
        judged = self.ledger.terms(shard).is_canary_judged
        first = halting.first(self.ledger, shard, holding.canary_of(self.ledger, shard), whole=judged)
        if not first and judged and self._held_by_people(shard, provider, now):
            return True
        if first := first or self._ramp.first(shard, provider.limits, now):
            canary, why = first
            holding.hold(self.ledger, shard, canary, self._later(provider, shard), why, now)
        return first is not None

    def _held_by_people(self, shard: Shard, provider: Provider, now: datetime) -> bool:
        """The same for what people say of a canary that is home."""
        if not canary_gate.is_held(self.ledger, shard):
            return False
        if halting.is_left_behind(self.ledger, shard):
            why = "its plan was left for another before its canary was accepted"
            self.ledger.dropped(shard, self._all_lines(shard, Outcome.CANCELLED, "cancelled", why), now)
        elif why := canary_gate.ask(self.ledger, shard, now) or "":
            self.ledger.wait(shard, self._later(provider, shard), why, now)
        else:  # accepted at this moment
            return False
        return True

    def _question(self, shard: Shard, now: datetime) -> str | None:
        rooms = (room for room in self.ledger.rooms(shard, now) if room.budget == f"job:{shard.job}")
        room = next((room for room in rooms if room.unit == "micros"), None)
        worst = self.ledger.query("to_be_sent", job=shard.job, plan=shard.plan)[0]["micros"]
        job = self.ledger.job(shard.job)
        seen = outlook(self.ledger, self.blobs, shard.job) if job["plan"] == shard.plan else None
        return None if room is None else holding.question(seen, room, int(worst), job["file"])

    def _release(self, shard: Shard, provider: Provider, refused: str, now: datetime) -> None:
        """PLANNED, and more than the money left can hold: send a part of it, wait for money, or end rows unsent."""
        manifest, terms = parts.manifest_of(self.blobs, shard), self.ledger.terms(shard)
        where = {"account": shard.account, "id": shard.id}
        told_by_size = provider.mark is MarkClass.UNMARKED
        taken = {r["n_lines"] for r in self.ledger.query("open_sizes", **where)} if told_by_size else None
        lines = range(shard.n_lines)
        bounds, price = parts.bounds(manifest, lines), terms.price_of(shard.provider)
        later = self._later(provider, shard)
        match release(bounds, price, self.ledger.rooms(shard, now), taken=taken):
            case Part(n) if n < shard.n_lines:  # its turn comes next: before any other that is due, and before its rest
                part, rest = self._shards_of(shard, [lines[:n], lines[n:]])
                shards = replace(part, next_at=shard.next_at), replace(rest, next_at=later)
                self.ledger.dropped(shard, parts.into(shards, f"{n} rows fit: {refused}"), now)
            case Stranded(ends, why):
                kept = sorted(set(lines).difference(ends))
                others = self._shards_of(shard, [kept] if kept else [])
                ended = parts.unsent(self.blobs, shard, Outcome.FAILED, "budget", why, ends)
                self.ledger.dropped(shard, replace(ended, retries=tuple(others)), now)
            case _:
                self.ledger.wait(shard, later, refused, now)

    def _submit(self, shard: Shard) -> None:
        """SUBMITTING: settle the fate of an earlier try, then send."""
        provider = self.provider(shard)
        intent, absent = self.ledger.intent(shard.token or "")
        file = self._file(shard, provider, intent, finds=intent.open)
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
        elif shard.moving:  # a provider that takes no batches keeps none of them from being in time
            moved = self._moved(
                shard,
                parts.manifest_of(self.blobs, shard),
                range(shard.n_lines),
                shard.attempt,
                self.ledger.terms(shard),
            )
            self.ledger.refused(shard, parts.into([*moved], "moved to another tier before it was sent"), now)
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
        terms, manifest = self.ledger.terms(shard), parts.manifest_of(self.blobs, shard)
        price, root_lines = terms.price_of(shard.provider), parts.column(manifest, "line")
        watch = halting.Watch(landing.checker(terms.output_schema), terms)
        landed, results = self._land(shard, provider, batch, price, watch.check, root_lines)
        bill = billing.bill(landed, batch, price, manifest)

        work, tally = shard.role == "work", landed.fates.tally()
        job = self.ledger.job(shard.job)
        sending = work and not shard.cancel_asked and not self._over(shard, self.clock.now()) and not job["cancelled"]
        tries = {"attempt": shard.attempt, "attempts": terms.attempts}
        verdict = settling.decide(landed.fates, batch, **tries, sending=sending, moving=shard.moving)
        again = sorted((*verdict.again, *verdict.moved))
        halt = None
        if terms.quality and sending:
            halt = halting.halt(self.ledger, shard, terms.quality, tally, watch.broken, bill.confirmed)
        ends = dict(zip(root_lines, map(tuple(Outcome).__getitem__, verdict.outcomes), strict=True))
        return Settlement(
            outcomes=ends if work else {},
            results_blob=results,
            confirmed_micros=bill.confirmed,
            wasted_micros=bill.wasted if work else bill.confirmed,
            unknown_micros=bill.unknown,
            input_tokens=bill.usage.input_tokens,
            output_tokens=bill.usage.output_tokens,
            unknown_tokens=bill.unknown_tokens,
            retries=tuple(self._retries(shard, manifest, verdict, terms, batch)),
            pause=verdict.pause if sending else None,
            reason=f"batch {batch.status.value}",
            facts={
                "n_strangers": landed.n_strangers,
                "n_repeats": landed.n_repeats,
                **tally,
                "n_billed": len(landed.fates.lines(lambda fate: fate.billed == "stated")),
                "wasted": {cause: f"{micros:f}" for cause, micros in landed.exact_wasted.items()},
            },
            twice_micros=billing.paid_twice(bill, landed, self.blobs.path(results), root_lines, again),
            halt=halt,
        )

    def _land(
        self, shard: Shard, provider: Provider, batch: Batch, price: Price, check: Callable[[str], str | None],
        root_lines: Sequence[int],
    ) -> tuple[landing.Landed, str]:  # fmt: skip
        """What the stored output says of each line, and the results blob; of lines that it lacks, what that means."""
        with self.blobs.scratch() as folder:
            writer = landing.ResultsWriter(folder / "results.parquet", root_lines)
            landed = landing.land(
                self._raw_lines(shard),
                self._file(shard, provider),
                decode=provider.decode,
                plain=provider.plain,
                check=check,
                price=price,
                writer=writer,
            )
            absent, fate = landed.fates.absent(), settling.fate_of_absent(batch)
            for line in absent:
                landed.fates[line] = fate
            writer.fill(absent, fate)
            writer.close()
            return landed, self.blobs.adopt(folder / "results.parquet")

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
        lots: list[Sequence[int]] = [verdict.again]
        if settling.was_never_run(batch) and settling.never_fits(shard, batch.error):
            lots = parts.halves(verdict.again)
        for n, lines in enumerate(lots):
            if lines:
                why = f"{shard.batch_id or ''}{f' half {n}' if len(lots) > 1 else ''}"
                new = self.follow_up(shard, manifest, lines, verdict.attempt, terms, why=why)
                yield replace(new, next_at=self._later(self.provider(shard), shard)) if untried else new

    def follow_up(
        self, shard: Shard, manifest: pa.Table, lines: Sequence[int], attempt: int, terms: Terms, *, why: str,
        to: str | None = None,
    ) -> NewShard:  # fmt: skip
        """A new shard that asks for some lines of an older one again; `to`: by another adapter."""
        adapter, account = (to, self._open(to).account) if to else (shard.provider, shard.account)
        return parts.follow_up(
            self.blobs, shard, manifest, lines, attempt=attempt, adapter=adapter, account=account,
            price=terms.price_of(adapter), why=why, at=self.clock.now(),
        )  # fmt: skip

    def _all_lines(self, shard: Shard, outcome: Outcome, cause: str, detail: str) -> Settlement:
        """A shard that ended without being sent: every line ends the same way."""
        return parts.unsent(self.blobs, shard, outcome, cause, detail, range(shard.n_lines))

    def _halves(self, shard: Shard, reason: str) -> Settlement:
        """A shard that is too large to be sent: two of half its lines."""
        halves = parts.halves(range(shard.n_lines))
        return parts.into(self._shards_of(shard, halves), f"sent in two halves: {reason}")

    def _shards_of(self, shard: Shard, each: Sequence[Sequence[int]]) -> list[NewShard]:
        """Shards of some lines of one that is not sent as it is, at the same attempt, for nothing was tried."""
        manifest, terms = parts.manifest_of(self.blobs, shard), self.ledger.terms(shard)
        return [
            self.follow_up(shard, manifest, lines, shard.attempt, terms, why=f"part {n}")
            for n, lines in enumerate(each)
        ]

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

    def _file(
        self, shard: Shard, provider: Provider, intent: Intent | None = None, *, finds: bool = False
    ) -> ShardFile:
        """`finds`: it is looked for among batches of which others are known; these are many, so else they are not read."""
        terms = self.ledger.terms(shard)
        if intent is None and shard.token:
            intent = self.ledger.intent(shard.token)[0]
        others = self.ledger.query("batch_ids", account=shard.account, id=shard.id) if finds else []
        return ShardFile(
            token=shard.token or "",
            path=self.blobs.path(shard.requests_blob),
            n_rows=shard.n_lines,
            endpoint=terms.endpoint,
            model=terms.model,
            window_s=provider.limits(terms.model).window_s,
            first_try=intent.first_try if intent else None,
            known=frozenset(row["batch_id"] for row in others),
        )

    def _raw_lines(self, shard: Shard) -> Iterator[bytes]:
        for blob in shard.raw_blobs:
            yield from self.blobs.lines(blob)

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
