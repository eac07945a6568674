"""The only writer. Each method is one transaction: when it returns it has happened, on either database.

Three invariants hold in every committed state, and `check` proves them from the two sides they are stored in:
    1. for every budget, held and spent equal the sums of its entries;
    2. no reservation was ever granted that took spent + held past the limit;
    3. what the shards hold is what their budgets hold.
A write about a shard names the fence its caller got by `claim`; a caller that lost the shard gets LeaseLost and has
written nothing.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from . import entries, lifecycle
from .clock import from_us, to_us
from .codec import batch_to_json, terms_from_json
from .db import Db, Row, Tx
from .errors import Crowded, InvalidMove, LeaseLost, LedgerError, NotFound
from .price import format_usd
from .releasing import Room
from .turnaround import Progress
from .types import Batch, BudgetSpec, Event, Intent, JobState, Limits, MarkClass, Outcome, Shard, ShardState, Terms

S = ShardState


@dataclass(frozen=True, slots=True)
class NewShard:
    """A shard to be opened."""

    id: str
    root: str
    attempt: int
    provider: str
    account: str
    n_lines: int
    requests_blob: str
    manifest_blob: str
    input_bound: int
    output_bound: int
    worst_micros: int
    next_at: datetime
    carries: bool = False  # what it needs is held already, by the shard it follows


@dataclass(frozen=True, slots=True)
class OpenPlan:
    """A plan to be run, as the ledger keeps it."""

    job: str
    digest: str
    body: Mapping[str, Any]  # the plan, JSON-ready
    terms: Mapping[str, Any]  # what its shards run under, JSON-ready
    owner: str | None
    budget: BudgetSpec
    deadline: datetime
    new: Sequence[NewShard]
    answering: Sequence[tuple[str, bytes]]  # shard id and weights (uint32 LE per line), by ordinal
    revision: int  # how many plans of this job the planner saw
    file: str | None = None  # the job's file, where it has one
    load: str | None = None  # where its rows are loaded to


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an ended shard brought and cost."""

    outcomes: Mapping[int, Outcome]  # by line of the root
    results_blob: str | None
    confirmed_micros: int
    wasted_micros: int  # of the confirmed: paid for rows that cannot be used
    unknown_micros: int  # may have been billed beyond that: stays held
    input_tokens: int
    output_tokens: int
    unknown_tokens: int
    retries: tuple[NewShard, ...]  # which ask for its pending rows again
    pause: str | None  # why the job must stop sending
    reason: str
    facts: Mapping[str, Any]
    twice_micros: int = 0  # of the wasted: for rows that are asked again, and then paid once more
    halt: str | None = None  # why nothing more of its plan is sent


class Ledger:
    """The ledger over one database."""

    def __init__(self, db: Db) -> None:
        self.db = db
        with db.transaction("name_ledger") as tx:
            tx.run("name_ledger", value=uuid.uuid4().hex)
            self.id = str(tx.run("ledger_id")[0]["value"])

    def close(self) -> None:
        self.db.close()

    # ------------------------------------------------------------------------------------------------------- budgets

    def set_budget(
        self, budget: str, *, micros: int | None, tokens: int | None, tell_at: Sequence[Decimal] = (), now: datetime
    ) -> None:
        """Set the limits of `project:NAME`, `month`, `month:2026-11` or `job:NAME`; None: no limit.

        `month` is every month from this one on: also those that have been reserved in already. `tell_at`: as of BudgetSpec.
        """
        limits = {"micros": micros, "tokens": tokens, "tell_at": _shares(tell_at)}
        with self.db.transaction("set_budget") as tx:
            tx.run("budget_limit", id=budget, **limits)
            if budget == "month":
                tx.run("budget_limit_months", since=f"month:{now:%Y-%m}", **limits)
            entries.journal(
                tx, now, None, None, "budget_set", f"{budget} is limited", budget=budget, micros=micros, tokens=tokens
            )

    def thaw(self, budget: str, now: datetime) -> None:
        """A person has looked at why the budget was frozen. Raises NotFound unless it is."""
        with self.db.transaction("thaw") as tx:
            if not tx.count("budget_thaw", id=budget):
                raise NotFound(what="frozen budget", name=budget)
            entries.journal(tx, now, None, None, "budget_thawed", f"{budget} may be used again", budget=budget)

    def book(self, job: str, micros: int, reason: str, now: datetime) -> None:
        """Book a cost that is not a model's (a store, staging, people's hours) to a job and every budget above it.

        It is recorded as it is, even past a limit: it has been spent. Then what is left is that much less.
        """
        with self.db.transaction("book") as tx:
            for budget in _chain(tx, job, now):
                entries.move(tx, now, budget, job, None, "book", reason, spent_micros=micros)
            entries.journal(tx, now, job, None, "booked", reason, micros=micros)

    # ---------------------------------------------------------------------------------------------------------- jobs

    def open_plan(self, plan: OpenPlan, now: datetime) -> bool:
        """Open a plan's shards, or find it open already; the job's limits and deadline are the plan's from now on.

        Returns False, having written nothing, when another plan of this job was opened since the planner looked.
        """
        with self.db.transaction("open_plan") as tx:
            jobs = tx.run("job", name=plan.job)
            chain = json.dumps([f"job:{plan.job}", *([f"project:{plan.owner}"] if plan.owner else [])])
            facts: dict[str, Any] = dict(
                name=plan.job, plan=plan.digest, owner=plan.owner, chain=chain, deadline=to_us(plan.deadline)
            )
            if not jobs:
                if plan.revision != 0:
                    return False
                tx.run("job_insert", at=to_us(now), **facts)
            elif jobs[0]["plan"] == plan.digest:
                tx.run("job_deadline", name=plan.job, deadline=to_us(plan.deadline))
            elif not tx.count("job_reopen", revision=plan.revision, **facts):
                return False
            if tx.count("job_resume", name=plan.job):
                entries.journal(tx, now, plan.job, None, "job_resumed", "a person ran it again")
            limits = {
                "micros": plan.budget.micros,
                "tokens": plan.budget.tokens,
                "tell_at": _shares(plan.budget.tell_at),
            }
            tx.run("budget_limit", id=f"job:{plan.job}", **limits)
            tx.run("job_file", name=plan.job, file=plan.file, load=plan.load)
            _chain(tx, plan.job, now)
            if tx.run("plan", job=plan.job, digest=plan.digest):
                return True
            tx.run(
                "plan_insert", job=plan.job, digest=plan.digest, body=entries.dumps(plan.body),
                terms=entries.dumps(plan.terms), at=to_us(now),
            )  # fmt: skip
            for new in plan.new:
                _insert_shard(tx, plan.job, plan.digest, new)
            for ordinal, (shard, weights) in enumerate(plan.answering):
                tx.run(
                    "plan_shard_insert", job=plan.job, plan=plan.digest, ordinal=ordinal, shard=shard,
                    weights=zlib.compress(weights),
                )  # fmt: skip
            tx.run("job_uncancel", name=plan.job)  # what was given up stays so; these shards are new
            tx.run("job_state", name=plan.job, state=JobState.IN_PROGRESS.value, reason=None)
            entries.journal(
                tx, now, plan.job, None, "plan_opened", f"{len(plan.new)} shards to run", plan=plan.digest,
                n_shards=len(plan.new),
            )  # fmt: skip
            return True

    def add_shards(
        self,
        job: str,
        shards: Sequence[tuple[NewShard, Sequence[int]]],
        reason: str,
        now: datetime,
        withdraw: Callable[[Tx], bool] | None = None,
    ) -> None:
        """Open more shards of a job's latest plan, each for some ended lines of its root that a person wants sent again.

        The lines are pending from now on. A shard of lines that somebody else has sent again meanwhile is left out.
        `withdraw`: whether what lines were answered shall count no more; else, and without it, no answered line is taken.
        """
        with self.db.transaction("add_shards") as tx:
            _one(tx, "job", "job", name=job)
            kept = {Outcome.PENDING} if withdraw is not None and withdraw(tx) else {Outcome.PENDING, Outcome.OK}
            added = []
            for new, lines in shards:
                root = tx.run("shard", id=new.root)[0]
                vector = bytearray(zlib.decompress(root["vector"]))
                if kept.intersection(vector[line] for line in lines):
                    continue
                if Outcome.OK not in kept:
                    _withdraw(tx, job, new.root, len(vector), lines, now)
                for line in lines:
                    vector[line] = Outcome.PENDING
                tx.run("shard_vector", id=new.root, vector=zlib.compress(bytes(vector)))
                _insert_shard(tx, job, root["plan"], new)
                added.append(new.id)
            if added:
                tx.run("job_uncancel", name=job)
                tx.run("job_resume", name=job)
                tx.run("job_state", name=job, state=JobState.IN_PROGRESS.value, reason=None)
                entries.journal(tx, now, job, None, "shards_added", reason, shards=added)

    def pause_job(self, job: str, why: str, now: datetime) -> None:
        with self.db.transaction("pause_job") as tx:
            _pause(tx, job, why, now)

    def resume_job(self, job: str, now: datetime) -> None:
        with self.db.transaction("resume_job") as tx:
            if tx.count("job_resume", name=job):
                entries.journal(tx, now, job, None, "job_resumed", "a person ran it again")

    def cancel_job(self, job: str, now: datetime) -> None:
        """Send nothing more of a job and stop what is on its way; what is finished is kept and paid."""
        with self.db.transaction("cancel_job") as tx:
            _one(tx, "job", "job", name=job)
            tx.run("shard_ask_cancel", job=job, now=to_us(now))
            if tx.count("job_cancel", name=job):
                entries.journal(tx, now, job, None, "cancel_asked", "a person asked for it")

    def set_job_state(self, job: str, state: JobState, reason: str, now: datetime) -> None:
        """Where a job stands; journalled only when it changes."""
        with self.db.transaction("set_job_state") as tx:
            row = _one(tx, "job", "job", name=job)
            if (row["state"], row["reason"]) != (state.value, reason):
                tx.run("job_state", name=job, state=state.value, reason=reason)
                entries.journal(tx, now, job, None, "job_state", reason, state=state.value)

    def loaded(self, job: str, facts: Mapping[str, Any], now: datetime) -> None:
        with self.db.transaction("loaded") as tx:
            tx.run("job_loaded", name=job, loaded=entries.dumps(facts))
            entries.journal(tx, now, job, None, "loaded", f"rows loaded to {facts['to']}", **facts)

    # ------------------------------------------------------------------------------------------------------ claiming

    def claim(self, holder: str, now: datetime, lease_s: float, job: str | None = None) -> Shard | None:
        """A due shard that nobody holds, held by this caller until `now + lease_s`; None when there is none."""
        with self.db.transaction("claim") as tx:
            found = tx.run("due", now=to_us(now), job=job or "")
            if not found:
                return None
            lease = to_us(now + timedelta(seconds=lease_s))
            shard, fence = found[0]["id"], found[0]["fence"]
            if not tx.count("claim", id=shard, fence=fence, holder=holder, lease=lease, now=to_us(now)):
                return None
            return _shard(tx.run("shard", id=shard)[0])

    def claim_one(self, shard: str, holder: str, now: datetime, lease_s: float) -> Shard:
        """That shard, held by this caller. Raises LeaseLost while another holds it."""
        with self.db.transaction("claim_one") as tx:
            row = _one(tx, "shard", "shard", id=shard)
            lease = to_us(now + timedelta(seconds=lease_s))
            if not tx.count("claim", id=shard, fence=row["fence"], holder=holder, lease=lease, now=to_us(now)):
                raise LeaseLost(shard=shard)
            return _shard(tx.run("shard", id=shard)[0])

    def renew(self, shard: Shard, now: datetime, lease_s: float) -> None:
        """Hold a shard for `lease_s` from now. Raises LeaseLost when this caller no longer holds it."""
        with self.db.transaction("renew") as tx:
            _renew(tx, shard, now, lease_s)

    def wait(self, shard: Shard, until: datetime, blocked: str | None, now: datetime) -> None:
        """Leave a shard as it is until `until`; `blocked` names the limit that holds it."""
        with self.db.transaction("wait") as tx:
            self._hold(tx, shard)
            tx.run(
                "shard_wait", id=shard.id, fence=shard.fence, old=shard.state.value, next=to_us(until), blocked=blocked
            )
            if blocked and blocked != shard.blocked:
                entries.journal(tx, now, shard.job, shard.id, "blocked", blocked)

    def crowded(self, shard: Shard, until: datetime, why: str, now: datetime) -> None:
        """As `wait`, for every planned shard of the job on this account: no other would be let in before, nor is then."""
        self.wait(shard, until, why, now)
        with self.db.transaction("crowded") as tx:
            facts = {"job": shard.job, "account": shard.account, "id": shard.id}
            tx.run("crowd_out", next=to_us(until) + 1, now=to_us(now), **facts)

    def polled(self, shard: Shard, batch: Batch, until: datetime, now: datetime) -> None:
        """Keep what the provider said of a batch that is still running, and how it gets on."""
        with self.db.transaction("polled") as tx:
            facts = {"batch": _batch_json(batch), "progress": _progress(self._hold(tx, shard), batch, now)}
            tx.run("shard_batch", id=shard.id, fence=shard.fence, at=to_us(now), **facts)
            tx.run("shard_wait", id=shard.id, fence=shard.fence, old=shard.state.value, next=to_us(until), blocked=None)

    # ------------------------------------------------------------------------------------------- submitting once (5a)

    def token(self, shard: Shard) -> str:
        """The mark of a shard: the same for ever, so that a restored backup finds its own batches.

        A letter first, 21 characters of `[a-z0-9]`: safe at every provider, even with a line number behind it.
        """
        seed = "\0".join((self.id, shard.job, shard.id, str(shard.attempt), shard.requests_blob))
        return "c" + hashlib.sha256(seed.encode()).hexdigest()[:20]

    def begin_submit(self, shard: Shard, limits: Limits, mark: MarkClass, now: datetime) -> str:
        """Reserve a shard's worst case in every budget above it and record the intent to send it: both or neither.

        Returns its token. Raises BudgetExceeded, BudgetFrozen, or Crowded when the provider's limits on what is in
        flight hold it; then nothing is written.
        """
        token = self.token(shard)
        tokens = shard.input_bound + shard.output_bound
        with self.db.transaction("begin_submit") as tx:
            self._step(tx, shard, S.SUBMITTING, now)
            _room(tx, shard, limits, mark)
            row = tx.run("shard", id=shard.id)[0]
            chain = json.loads(row["budgets"])
            if not (row["held_micros"] or row["held_tokens"]):  # else the shard that it follows held it until then
                chain = _chain(tx, shard.job, now)
                entries.reserve(tx, now, chain, shard.job, shard.id, micros=shard.worst_micros, tokens=tokens)
            tx.run("intent_insert", token=token, shard=shard.id)
            tx.run(
                "shard_reserved", id=shard.id, token=token, micros=shard.worst_micros, tokens=tokens,
                budgets=json.dumps(chain),
            )  # fmt: skip
            entries.journal(
                tx, now, shard.job, shard.id, "reserved", f"${format_usd(shard.worst_micros)} held at worst case",
                token=token,
            )  # fmt: skip
        return token

    def repriced(self, shard: Shard, plan: str, worst_micros: int, now: datetime) -> Shard:
        """A planned shard under the terms of a later plan of its job, which asks the same at other rates."""
        with self.db.transaction("repriced") as tx:
            self._hold(tx, shard)
            tx.run("shard_repriced", id=shard.id, fence=shard.fence, plan=plan, worst_micros=worst_micros)
            why = f"prices have changed: at worst ${format_usd(worst_micros)}, not ${format_usd(shard.worst_micros)}"
            entries.journal(tx, now, shard.job, shard.id, "repriced", why, plan=plan)
        return replace(shard, plan=plan, worst_micros=worst_micros)

    def rooms(self, shard: Shard, now: datetime) -> list[Room]:
        """What is left of every limit above a shard. Advice, no more: others may reserve it before this caller does."""
        found = []
        with self.db.transaction("rooms") as tx:
            for budget in _chain(tx, shard.job, now):
                row = tx.run("budget", id=budget)[0]
                n_open = tx.run("money_on_its_way", id=shard.id, quoted=json.dumps(budget))[0]["n"]
                for unit in ("micros", "tokens"):
                    if (limit := row[f"limit_{unit}"]) is not None:
                        left = limit - row[f"spent_{unit}"] - row[f"held_{unit}"]
                        found.append(Room(budget, unit, limit, left, n_open > 0))
        return found

    def begin_try(self, shard: Shard, account: str, lease_s: float, now: datetime) -> None:
        """Record that a create is about to be sent on an account. From here on its fate is unknown until it is proved."""
        with self.db.transaction("begin_try") as tx:
            self._hold(tx, shard)
            _renew(tx, shard, now, lease_s)
            tx.run("intent_try", token=shard.token, at=to_us(now))
            tx.run("shard_account", id=shard.id, account=account)

    def sending(self, shard: Shard, lease_s: float, now: datetime) -> None:
        """The create leaves now, after its upload: hold the shard, and count the settle wait from here.

        Raises LeaseLost when this caller no longer holds it; then nothing may be sent.
        """
        with self.db.transaction("sending") as tx:
            _renew(tx, shard, now, lease_s)
            tx.run("intent_sending", token=shard.token, at=to_us(now))

    def submitted(self, shard: Shard, batch: Batch, until: datetime, reason: str, now: datetime) -> None:
        """The provider named the batch: by its reply, by `find`, or by a person."""
        with self.db.transaction("submitted") as tx:
            self._step(tx, shard, S.SUBMITTED, now, next_at=until)
            for other in tx.run("batch_owner", id=shard.id, batch_id=batch.id):
                raise LedgerError(f"batch {batch.id} is shard {other['id']}'s; nothing was written")
            tx.run("shard_submitted", id=shard.id, batch_id=batch.id, batch=_batch_json(batch), at=to_us(now))
            tx.run("intent_close", token=shard.token)
            entries.journal(tx, now, shard.job, shard.id, "submitted", reason, batch=batch.id)

    def not_arrived(self, shard: Shard, until: datetime, reason: str, now: datetime) -> None:
        """The last create certainly made no batch; the money stays held and it is sent again at `until`."""
        with self.db.transaction("not_arrived") as tx:
            self._hold(tx, shard)
            tx.run(
                "shard_wait", id=shard.id, fence=shard.fence, old=shard.state.value, next=to_us(until), blocked=reason
            )
            tx.run("intent_close", token=shard.token)
            if reason != shard.blocked:
                entries.journal(tx, now, shard.job, shard.id, "not_arrived", reason)

    def give_back(self, shard: Shard, until: datetime, reason: str, pause: str | None, now: datetime) -> None:
        """The last create certainly made no batch and will not be repeated yet: release the money, plan it again."""
        with self.db.transaction("give_back") as tx:
            self._step(tx, shard, S.PLANNED, now, next_at=until)
            self._release(tx, shard, reason, now)
            tx.run("intent_close", token=shard.token)
            if pause:
                _pause(tx, shard.job, pause, now)
            entries.journal(tx, now, shard.job, shard.id, "given_back", reason)

    def resolve_absent(self, shard: str, now: datetime) -> None:
        """A person says that no batch of this shard exists.

        Raises NotFound unless its fate is open, LeaseLost while a caller holds the shard.
        """
        with self.db.transaction("resolve_absent") as tx:
            row = _one(tx, "shard", "shard", id=shard)
            if row["lease_us"] > to_us(now):  # a caller may be sending it at this moment
                raise LeaseLost(shard=shard)
            if row["state"] != S.SUBMITTING.value or not tx.count("intent_resolve", token=row["token"]):
                raise NotFound(what="shard with an open submission", name=shard)
            tx.run("shard_due_now", id=shard, now=to_us(now))
            entries.journal(tx, now, row["job"], shard, "resolved", "a person says no batch of it exists")

    def resolve_billed(self, shard: str, micros: int, now: datetime) -> None:
        """A person says what the unknown of a settled shard was billed: it is confirmed as wasted, the rest comes back.

        Raises NotFound unless the shard holds money whose fate is unknown.
        """
        with self.db.transaction("resolve_billed") as tx:
            row = _one(tx, "shard", "shard", id=shard)
            held, held_tokens = row["held_micros"], row["held_tokens"]
            if row["state"] != S.SETTLED.value or not (held or held_tokens):
                raise NotFound(what="settled shard with unknown money", name=shard)
            why = "a person says what it was billed"
            for budget in json.loads(row["budgets"]):
                entries.move(
                    tx, now, budget, row["job"], shard, "settle", why, held_micros=-min(micros, held),
                    spent_micros=micros,
                )  # fmt: skip
                rest = {"held_micros": min(micros, held) - held, "held_tokens": -held_tokens}
                entries.move(tx, now, budget, row["job"], shard, "release", why, **rest)
                entries.freeze_if_passed(tx, budget, f"shard {shard} was billed more than was held for it", now)
            tx.run("shard_billed", id=shard, micros=micros)
            entries.journal(tx, now, row["job"], shard, "billed", why, micros=micros)

    # ------------------------------------------------------------------------------------------------ ending, settling

    def ended(self, shard: Shard, batch: Batch, now: datetime) -> None:
        """The provider says the batch is over. What it brought is not known yet."""
        with self.db.transaction("ended") as tx:
            self._step(tx, shard, S.ENDED, now)
            tx.run("shard_ended", id=shard.id, batch=_batch_json(batch), at=to_us(now))
            entries.journal(
                tx, now, shard.job, shard.id, "ended", f"the provider says {batch.status.value}", batch=batch.id
            )

    def fetched(self, shard: Shard, raw_blobs: Sequence[str], now: datetime) -> None:
        """The raw output is stored; from here on nothing of it can be lost. The caller keeps the shard."""
        with self.db.transaction("fetched") as tx:
            if not tx.count("shard_fetched", id=shard.id, fence=shard.fence, raw_blobs=json.dumps(list(raw_blobs))):
                raise LeaseLost(shard=shard.id)
            entries.journal(tx, now, shard.job, shard.id, "fetched", "raw output stored", blobs=list(raw_blobs))

    def settle(self, shard: Shard, settlement: Settlement, now: datetime) -> None:
        """Results, cost, release and the shards that retry what may be retried: one transaction."""
        with self.db.transaction("settle") as tx:
            self._step(tx, shard, S.SETTLED, now)
            self._settle(tx, shard, settlement, now)

    def refused(self, shard: Shard, settlement: Settlement, now: datetime) -> None:
        """A shard that certainly never arrived and will not be sent again: its rows end, its money comes back."""
        with self.db.transaction("refused") as tx:
            self._step(tx, shard, S.REFUSED, now)
            self._settle(tx, shard, settlement, now)
            if shard.token:
                tx.run("intent_close", token=shard.token)

    def dropped(self, shard: Shard, settlement: Settlement, now: datetime) -> None:
        """A shard given up before anything of it was sent."""
        with self.db.transaction("dropped") as tx:
            self._step(tx, shard, S.CANCELLED, now)
            self._settle(tx, shard, settlement, now)

    def duplicate(self, shard: Shard, batch: Batch, now: datetime) -> None:
        """A second batch of one token exists: hold what it may cost, so that its bill is booked when it ends.

        It was spent without a reservation, so it is held whatever the limits say, and a limit passed by it is frozen.
        """
        with self.db.transaction("duplicate") as tx:
            twin = f"{shard.id}-{hashlib.sha256(batch.id.encode()).hexdigest()[:8]}"
            if tx.run("shard", id=twin):
                return
            row = _one(tx, "shard", "shard", id=shard.id)
            new = NewShard(
                twin, shard.root, shard.attempt, row["provider"], row["account"], shard.n_lines, shard.requests_blob,
                shard.manifest_blob, shard.input_bound, shard.output_bound, shard.worst_micros, now,
            )  # fmt: skip
            _insert_shard(tx, shard.job, row["plan"], new, role="duplicate", state=S.SUBMITTED, token=shard.token)
            chain = _chain(tx, shard.job, now)
            tokens = shard.input_bound + shard.output_bound
            for budget in chain:
                why = "a second batch of one shard"
                entries.move(
                    tx, now, budget, shard.job, twin, "reserve", why, held_micros=shard.worst_micros, held_tokens=tokens
                )
                entries.freeze_if_passed(tx, budget, f"shard {shard.id} was sent twice", now)
            tx.run(
                "shard_reserved", id=twin, token=shard.token, micros=shard.worst_micros, tokens=tokens,
                budgets=json.dumps(chain),
            )  # fmt: skip
            tx.run("shard_submitted", id=twin, batch_id=batch.id, batch=_batch_json(batch), at=to_us(now))
            entries.journal(
                tx, now, shard.job, twin, "duplicate", "a second batch of one shard was found", batch=batch.id,
                shard_of=shard.id,
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- reading

    def job(self, name: str) -> Row:
        """A job's row. Raises NotFound."""
        with self.db.reading() as tx:
            return _one(tx, "job", "job", name=name)

    def shard(self, shard: str) -> Shard:
        with self.db.reading() as tx:
            return _shard(_one(tx, "shard", "shard", id=shard))

    def shard_row(self, shard: str) -> Row:
        with self.db.reading() as tx:
            return _one(tx, "shard", "shard", id=shard)

    def intent(self, token: str) -> tuple[Intent, bool]:
        """An intent, and whether a person said that no batch of it exists."""
        with self.db.reading() as tx:
            row = _one(tx, "intent", "intent", token=token)
        first, last = (from_us(row[k]) if row[k] is not None else None for k in ("first_us", "last_us"))
        return Intent(row["token"], row["shard"], row["tries"], first, last, bool(row["is_open"])), row[
            "resolved"
        ] == "absent"

    def terms(self, shard: Shard) -> Terms:
        """What a shard runs under."""
        with self.db.reading() as tx:
            return terms_from_json(json.loads(_one(tx, "plan", "plan", digest=shard.plan, job=shard.job)["terms"]))

    def query(self, statement: str, /, **params: Any) -> list[Row]:
        """Rows of a reading statement of ledger.sql, for views."""
        with self.db.reading() as tx:
            return tx.run(statement, **params)

    def events(self, since: int = 0, job: str | None = None, count: int = 1000) -> list[Event]:
        """The journal after a cursor, oldest first. An event's id never changes."""
        with self.db.reading() as tx:
            rows = tx.run("events", since=since, job=job or "", count=count)
        return [
            Event(
                r["seq"], f"evt_{self.id[:12]}_{r['seq']}", from_us(r["at_us"]), r["job"], r["shard"], r["kind"],
                r["reason"], json.loads(r["facts"]),
            )
            for r in rows
        ]  # fmt: skip

    def next_due(self, job: str | None = None) -> tuple[datetime | None, int]:
        """When something can be done next, and how many shards are open."""
        with self.db.reading() as tx:
            row = tx.run("next_due", job=job or "")[0]
        return (from_us(row["next_us"]) if row["next_us"] is not None else None), row["n_open"]

    def check(self) -> list[str]:
        """Every broken invariant of the module's docstring; empty means the books balance."""
        broken: list[str] = []
        with self.db.reading() as tx:
            sums = {r["budget"]: r for r in tx.run("entry_sums")}
            held: Counter[tuple[str, str]] = Counter()
            for job in tx.run("jobs"):
                for shard in tx.run("shards", job=job["name"]):
                    for budget in json.loads(shard["budgets"]):
                        for column in ("held_micros", "held_tokens"):
                            held[budget, column] += shard[column]
            for budget in tx.run("budgets"):
                for column in ("held_micros", "spent_micros", "held_tokens", "spent_tokens"):
                    said = int(sums[budget["id"]][column]) if budget["id"] in sums else 0
                    if budget[column] != said:
                        broken.append(f"{budget['id']}: {column} is {budget[column]}, its entries say {said}")
                    if budget[column] < 0:
                        broken.append(f"{budget['id']}: {column} is {budget[column]}")
                for column in ("held_micros", "held_tokens"):
                    if budget[column] != held[budget["id"], column]:
                        broken.append(
                            f"{budget['id']}: {column} is {budget[column]}, its shards hold {held[budget['id'], column]}"
                        )
        return broken

    # ------------------------------------------------------------------------------------------------------- the parts

    def _hold(self, tx: Tx, shard: Shard) -> Row:
        """The shard's row. Raises LeaseLost unless the caller's fence and the state it saw are still the shard's."""
        row = tx.run("shard", id=shard.id)[0]
        if row["fence"] != shard.fence or row["state"] != shard.state.value:
            raise LeaseLost(shard=shard.id)
        return row

    def _step(self, tx: Tx, shard: Shard, new: ShardState, now: datetime, next_at: datetime | None = None) -> None:
        if not lifecycle.allowed(shard.state, new):
            raise InvalidMove(shard=shard.id, old=shard.state.value, new=new.value)
        due = to_us(next_at or now)
        if not tx.count("shard_move", id=shard.id, fence=shard.fence, old=shard.state.value, new=new.value, next=due):
            raise LeaseLost(shard=shard.id)

    def _release(self, tx: Tx, shard: Shard, reason: str, now: datetime) -> None:
        row = tx.run("shard", id=shard.id)[0]
        for budget in json.loads(row["budgets"]):
            entries.move(
                tx, now, budget, shard.job, shard.id, "release", reason, held_micros=-row["held_micros"],
                held_tokens=-row["held_tokens"],
            )  # fmt: skip
        tx.run("shard_reserved", id=shard.id, token=row["token"], micros=0, tokens=0, budgets="[]")

    def _settle(self, tx: Tx, shard: Shard, s: Settlement, now: datetime) -> None:
        row = tx.run("shard", id=shard.id)[0]
        redo, redo_tokens = row["redo_micros"], row["redo_tokens"]
        held, held_tokens = row["held_micros"] - redo, row["held_tokens"] - redo_tokens
        tokens = s.input_tokens + s.output_tokens
        # What stays held can never be more than what was; a bill above the reservation is recorded as it is.
        unknown = max(0, min(s.unknown_micros, held - s.confirmed_micros))
        unknown_tokens = max(0, min(s.unknown_tokens, held_tokens - tokens))
        paid, paid_tokens = min(s.confirmed_micros, held), min(tokens, held_tokens)
        for budget in json.loads(row["budgets"]):
            entries.move(
                tx, now, budget, shard.job, shard.id, "settle", s.reason, held_micros=-paid,
                spent_micros=s.confirmed_micros, held_tokens=-paid_tokens, spent_tokens=tokens,
            )  # fmt: skip
            entries.move(
                tx, now, budget, shard.job, shard.id, "release", s.reason, held_micros=paid + unknown - held - redo,
                held_tokens=paid_tokens + unknown_tokens - held_tokens - redo_tokens,
            )  # fmt: skip
            if s.confirmed_micros > held or tokens > held_tokens:
                entries.freeze(
                    tx,
                    budget,
                    f"shard {shard.id} was billed ${format_usd(s.confirmed_micros)} against "
                    f"${format_usd(held)} reserved",
                    now,
                )
        tx.run(
            "shard_settled", id=shard.id, results_blob=s.results_blob, held_micros=unknown, held_tokens=unknown_tokens,
            confirmed_micros=s.confirmed_micros, wasted_micros=s.wasted_micros, twice_micros=s.twice_micros,
            input_tokens=s.input_tokens, output_tokens=s.output_tokens, at=to_us(now),
        )  # fmt: skip
        if s.outcomes:
            root = tx.run("shard", id=shard.root)[0]
            vector = bytearray(zlib.decompress(root["vector"]))
            for line, outcome in s.outcomes.items():
                if vector[line] != Outcome.OK:  # an answer is never un-answered
                    vector[line] = outcome
            tx.run("shard_vector", id=shard.root, vector=zlib.compress(bytes(vector)))
        for new in s.retries:
            _insert_shard(tx, shard.job, row["plan"], new)
            tokens = new.input_bound + new.output_bound
            if new.carries and new.worst_micros <= redo and tokens <= redo_tokens:
                redo, redo_tokens = redo - new.worst_micros, redo_tokens - tokens
                _carry_over(tx, now, row, new, tokens)
        if s.halt:
            tx.run("shard_halted", id=shard.id, why=s.halt)
        if why := s.pause or s.halt:
            _pause(tx, shard.job, why, now)
        facts = {
            **s.facts,
            "confirmed_micros": s.confirmed_micros,
            "unknown_micros": unknown,
            **({"paid_twice_micros": s.twice_micros} if s.twice_micros else {}),
            "retries": [new.id for new in s.retries],
        }
        entries.journal(tx, now, shard.job, shard.id, "settled", s.reason, **facts)


# ------------------------------------------------------------------------------------------------------------- helpers


def _shares(tell_at: Sequence[Decimal]) -> str | None:
    return json.dumps(list(map(str, tell_at))) if tell_at else None


def _one(tx: Tx, statement: str, what: str, **params: Any) -> Row:
    rows = tx.run(statement, **params)
    if not rows:
        raise NotFound(what=what, name=next(iter(params.values())))
    return rows[0]


def _chain(tx: Tx, job: str, now: datetime) -> list[str]:
    return entries.chain(tx, json.loads(_one(tx, "job", "job", name=job)["chain"]), now)


def _renew(tx: Tx, shard: Shard, now: datetime, lease_s: float) -> None:
    lease = to_us(now + timedelta(seconds=lease_s))
    if not tx.count("renew", id=shard.id, fence=shard.fence, now=to_us(now), lease=lease):
        raise LeaseLost(shard=shard.id)


def _pause(tx: Tx, job: str, why: str, now: datetime) -> None:
    if tx.count("job_pause", name=job, why=why):
        entries.journal(tx, now, job, None, "job_paused", why)


def _room(tx: Tx, shard: Shard, limits: Limits, mark: MarkClass) -> None:
    """Raises Crowded when a named limit of the account holds the shard."""
    where = {"account": shard.account, "id": shard.id}
    if limits.max_in_flight is not None and tx.run("in_flight", **where)[0]["n"] >= limits.max_in_flight:
        why = f"{limits.max_in_flight} batches are in flight, the most {shard.account} takes at a time"
        raise Crowded(why=why, everybody=True)
    if limits.max_enqueued_tokens is not None:
        queued = int(tx.run("in_flight_tokens", **where)[0]["tokens"])
        if queued and queued + shard.input_bound > limits.max_enqueued_tokens:
            raise Crowded(
                why=f"{queued} prompt tokens are queued of the {limits.max_enqueued_tokens} {shard.account} takes"
            )
    # Without a mark of ours the row count is what tells two batches apart (design.md 5a).
    if mark is MarkClass.UNMARKED and tx.run("in_flight_like", n_lines=shard.n_lines, **where):
        raise Crowded(
            why=f"another shard of {shard.n_lines} rows is in flight on {shard.account}, where only the count tells them apart"
        )


def _withdraw(tx: Tx, job: str, root: str, n_lines: int, lines: Iterable[int], now: datetime) -> None:
    """What these lines of a planned shard were answered so far counts no more."""
    mask = bytearray(n_lines)
    for line in lines:
        mask[line] = 1
    answered = json.dumps([row["id"] for row in tx.run("shards_of_root", root=root) if row["results_blob"]])
    tx.run("withdrawal_insert", root=root, job=job, shards=answered, lines=zlib.compress(bytes(mask)), at=to_us(now))


def _insert_shard(
    tx: Tx,
    job: str,
    plan: str,
    new: NewShard,
    *,
    role: str = "work",
    state: ShardState = S.PLANNED,
    token: str | None = None,
) -> None:
    root = new.id == new.root
    tx.run(
        "shard_insert",
        id=new.id,
        job=job,
        plan=plan,
        root=new.root,
        attempt=new.attempt,
        role=role,
        provider=new.provider,
        account=new.account,
        state=state.value,
        n_lines=new.n_lines,
        requests_blob=new.requests_blob,
        manifest_blob=new.manifest_blob,
        input_bound=new.input_bound,
        output_bound=new.output_bound,
        worst_micros=new.worst_micros,
        vector=zlib.compress(bytes(new.n_lines)) if root else None,
        token=token,
        next=to_us(new.next_at),
    )


def _carry_over(tx: Tx, now: datetime, row: Row, new: NewShard, tokens: int) -> None:
    """What a settled shard held for the redo of its lines, and has just released, is held by the shard that does it."""
    amounts = {"held_micros": new.worst_micros, "held_tokens": tokens}
    for budget in json.loads(row["budgets"]):
        entries.move(tx, now, budget, row["job"], new.id, "reserve", f"carried over from shard {row['id']}", **amounts)
    tx.run("shard_reserved", id=new.id, token=None, micros=new.worst_micros, tokens=tokens, budgets=row["budgets"])


def _shard(row: Row) -> Shard:
    return Shard(
        id=row["id"],
        job=row["job"],
        state=S(row["state"]),
        root=row["root"],
        attempt=row["attempt"],
        role=row["role"],
        n_lines=row["n_lines"],
        requests_blob=row["requests_blob"],
        manifest_blob=row["manifest_blob"],
        input_bound=row["input_bound"],
        output_bound=row["output_bound"],
        worst_micros=row["worst_micros"],
        token=row["token"],
        batch_id=row["batch_id"],
        fence=row["fence"],
        next_at=from_us(row["next_us"]),
        blocked=row["blocked"],
        raw_blobs=tuple(json.loads(row["raw_blobs"])),
        results_blob=row["results_blob"],
        held_micros=row["held_micros"],
        confirmed_micros=row["confirmed_micros"],
        provider=row["provider"],
        account=row["account"],
        plan=row["plan"],
        batch=row["batch"],
        cancel_asked=bool(row["cancel_asked"]),
        moving=row["moving_us"] is not None,
    )


def _progress(row: Row, batch: Batch, now: datetime) -> str | None:
    """What a shard's polls counted, this one included; None while its provider counts nothing."""
    kept: str | None = row["progress"]
    if batch.n_done is None:
        return kept
    began = row["submitted_us"]
    before = Progress(*json.loads(kept or "[]"))
    looked_s = ((row["looked_us"] or began) - began) / 1e6
    return json.dumps(before.after(min(batch.n_done, row["n_lines"]), (to_us(now) - began) / 1e6, looked_s))


def _batch_json(batch: Batch) -> str:
    return entries.dumps(batch_to_json(batch))
