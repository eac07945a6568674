"""What a person asks of canwait, as plain calls: plan, run, load, cancel, resolve. CLI, notebooks and servers call these.

with canwait.connect() as client:
    job = client.job("jobs/classify.yaml")
    job.plan()          # never spends
    job.run()           # safe to interrupt, safe to repeat
    job.failed, job.cost
"""

from __future__ import annotations

import json
import os
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache, cached_property, partial
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import deadlines, gates, halting, holding, judging, notifying, publishing, rescue, resume, views
from .affording import must_ask
from .blobs import Blobs
from .clock import Clock, SystemClock
from .codec import plan_to_json, terms_to_json
from .db import Row
from .db import connect as connect_db
from .engine import Engine
from .errors import (
    BudgetExceeded,
    GatePending,
    HumanNeeded,
    JobPaused,
    KeyRefused,
    NotFinished,
    NotFound,
    PlanStale,
    Problem,
    SinkBusy,
    SinkError,
    SourceError,
    SpecError,
)
from .forecast import Outlook, before
from .ledger import Ledger, NewShard, OpenPlan
from .outcomes import Failed, Ok, Results, failed_rows, standing
from .outlook import outlook
from .plan import choose, offers_for, once_more
from .planned import Prepared
from .quoted import Cost as Cost
from .quoted import JobPlan as JobPlan
from .quoted import cost_of
from .settings import Settings, settings
from .types import AtDeadline, Endpoint, Job, JobState, Outcome, Plan, Price, Rescue, Shard, ShardState, Terms, Tier

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .changes import Since
    from .inspection import Inspecting, Through
    from .known import Known
    from .lots import Lot
    from .plan import Earlier
    from .providers import Provider
    from .schedule import Ready
    from .sources import RowSource


def connect(url: str | None = None, *, env: Mapping[str, str] = os.environ, clock: Clock | None = None) -> Client:
    """Open the ledger: `url`, else CANWAIT_DB, else `.canwait/ledger.db`. Raises LedgerUnreadable."""
    return Client(settings({**env, **({"CANWAIT_DB": url} if url else {})}), clock or SystemClock())


class Client(AbstractContextManager["Client"]):
    """One ledger and the blobs beside it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self.blobs = Blobs(settings.home / "blobs")
        self.ledger = Ledger(connect_db(settings.db_url))
        holder = f"{socket.gethostname()}:{os.getpid()}"
        self.engine = Engine(self.ledger, self.blobs, self.provider, clock, holder=holder, pace=settings.pace)
        self._providers: dict[str, Provider] = {}
        self._exits = ExitStack()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._exits.close()
        self.ledger.close()

    def again(self) -> Client:
        """Another connection to the same ledger, with the same adapters: for work beside this client's."""
        other = Client(self.settings, self.clock)
        other._providers |= self._providers
        return other

    def closing(self, call: Callable[[], object]) -> None:
        """Have something closed with this client."""
        self._exits.callback(call)

    def provider(self, name: str) -> Provider:
        """The adapter of that name, opened from the environment once. Raises KeyRefused when its key is missing."""
        if name not in self._providers:
            from .providers.registry import open_provider

            spool = self.settings.home / "spool"
            self._providers[name] = open_provider(name, self.settings.env, spool=spool, settle_s=self.settings.settle_s)
        return self._providers[name]

    def adopt(self, provider: Provider) -> None:
        """Use this adapter for the provider of its name."""
        self._providers[provider.name] = provider

    def job(
        self, spec: str | Path | Job, *, source: RowSource | None = None, output: type[BaseModel] | None = None
    ) -> JobHandle:
        """A job by its file, or by its value. Raises SpecError.

        `source` overrides where its rows come from; `output` is what its answers become, instead of mappings.
        """
        if isinstance(spec, Job):
            return JobHandle(self, spec, source, output=output)
        from .spec import load_job

        path = Path(spec)
        if not path.is_file():
            raise SpecError(
                [Problem(str(spec), None, None, None, "no such job file")], hint="`canwait init` writes one"
            )
        return JobHandle(self, load_job(path, output=output), source, output=output, file=path.resolve())

    def planned(self, plan: str) -> JobHandle:
        """The job that a plan was made for, its file read anew. Raises NotFound, SpecError."""
        from .planned import planned_file

        file = planned_file(self.blobs, plan)
        if file is None:
            raise NotFound(f"Plan {plan} was made without a job file.", what="job file of plan", name=plan)
        return self.job(file)

    def cancel(self, job: str) -> views.Figures:
        """Send nothing more of a job and stop what is on its way; finished rows are kept, and paid. Raises NotFound.

        A job that has ended is left as it is.
        """
        if not views.figures(self.ledger, job).finished:
            self.ledger.cancel_job(job, self.clock.now())
            self.engine.tick(job)
            figures = views.figures(self.ledger, job)
            self.ledger.set_job_state(job, *standing(figures, cancelled=True), self.clock.now())
            if not self.settings.simulated:
                env, ended = self.settings.env, figures.finished
                notifying.after_run(self.ledger, env, self.clock, job, ended=ended, blobs=self.blobs)
        return views.figures(self.ledger, job)

    def inspect(self, job: str, who: str | None = None, *, base_dir: Path = Path()) -> Inspecting | None:
        """The inspection of what stands at a job's gate, by this person; None for a job without a gate.

        `base_dir`: where functions that its rules name lie. Raises NotFound, and GatePending while the job runs.
        """
        from .inspection import inspecting

        return inspecting(self.ledger, self.blobs, job, who or getuser(), self.clock.now(), base_dir)

    def resolve(self, shard: str, batch_id: str | None) -> None:
        """A person's answer to what a provider's listing cannot tell: no batch of the shard exists, or this one is it.

        Raises NotFound unless the shard's fate is open, and BatchUnknown when the provider does not know the batch.
        """
        if batch_id is None:
            self.ledger.resolve_absent(shard, self.clock.now())
            return
        held = self.ledger.shard(shard)
        if held.state is not ShardState.SUBMITTING or not self.ledger.intent(held.token or "")[0].open:
            raise NotFound(what="shard with an open submission", name=shard)
        batch = self.engine.provider(held).poll(batch_id)
        claimed = self.ledger.claim_one(shard, self.engine.holder, self.clock.now(), self.settings.pace.lease_s)
        self.ledger.submitted(claimed, batch, self.clock.now(), "a person says this is its batch", self.clock.now())


class JobHandle:
    """A job under its durable name."""

    def __init__(
        self,
        client: Client,
        job: Job,
        source: RowSource | None = None,
        frame: Any = None,
        table: Any = None,
        *,
        output: type[BaseModel] | None = None,
        file: Path | None = None,
    ) -> None:
        self.client, self.value, self._source, self._frame, self._table = client, job, source, frame, table
        self._output, self._file = output, file
        self._taken_at = None if frame is None else client.clock.now()  # of rows that come once, and are kept
        self.gate_kept: str | None = None  # what was opened last stands behind another gate than the file's: in words
        self.asked_again: str | None = None  # what the last run asked again by itself: in words

    @property
    def name(self) -> str:
        return self.value.name

    # ------------------------------------------------------------------------------------------------------- planning

    def plan(self) -> JobPlan:
        """What running would do and cost. Writes blobs, never money; needs no key. Raises SpecError, SourceError, UnknownPrice."""
        from .planned import keep_plan

        provider = self._quoting()
        self._read_anew()
        prepared = self._prepare(provider)
        self._keep_contracts(prepared.plan, provider)
        keep_plan(self.client.blobs, prepared.plan.id, self._file)
        rows = publishing.PlanRows(prepared.plan.rows_blob, prepared.plan.shard_ids)
        parts = publishing.components(self.value, prepared.source)
        since = self._since(prepared.plan.digest, prepared.plan.n_rows, rows, parts)
        return JobPlan(prepared.plan, self.value, self._cost_of(prepared.plan), since, *self._in_time(prepared.plan))

    def _cost_of(self, plan: Plan) -> Outlook:
        """The four numbers of a plan; of one that runs already, as its run tells them."""
        c, limit = self.client, self._limit_micros
        if any(row["plan"] == plan.digest for row in c.ledger.query("job", name=self.name)):
            return outlook(c.ledger, c.blobs, self.name)
        used = sum(b["spent_micros"] + b["held_micros"] for b in c.ledger.query("budget", id=f"job:{self.name}"))
        rescue, _ = self._fallback(plan)
        return before(plan, None if limit is None else limit - used, rescue.price if rescue else None)

    def _in_time(self, plan: Plan) -> tuple[Ready | None, str | None]:
        """When a plan's rows are back, and what is done about those that are late. Raises SpecError, UnknownPrice."""
        c = self.client
        return deadlines.in_time(c.ledger, self.value, plan, self._adapter(), self._fallback(plan), c.clock.now())

    def _fallback(self, plan: Plan) -> tuple[Rescue | None, AtDeadline | None]:
        return deadlines.fallback_of(self.value, plan, self._price, self._file)

    def _since(self, digest: str, n_rows: int, rows: publishing.PlanRows, parts: Mapping[str, str]) -> Since | None:
        """What a plan changes of the last publication; None before there is one."""
        from .loading import since

        c = self.client
        return since(c.ledger, c.blobs, c.clock, self.name, digest, n_rows, rows, parts)

    def _prepare(self, provider: Provider) -> Prepared:
        from .prepare import prepare

        c, job = self.client, self.value
        self._check_target()
        return prepare(
            job,
            source=self.source,
            provider=provider,
            blobs=c.blobs,
            known=self._known(),
            price_of=self._price,
            earlier=self._earlier(),
            now=c.clock.now(),
        )

    def _quoting(self) -> Provider:
        """The provider, for its limits: a plan needs no key, for it sends nothing."""
        from .providers.registry import open_provider

        name = self._adapter()
        try:
            return self.client.provider(name)
        except KeyRefused as error:
            s = self.client.settings
            env = {**s.env, str(error.fields["variable"]): "planning-sends-nothing"}
            return open_provider(name, env, spool=s.home / "spool", settle_s=s.settle_s)

    def _adapter(self) -> str:
        """What the job's rows go through: its provider's batches, or rows one by one."""
        from .plan import tier_for
        from .providers.registry import name_of

        tier = tier_for(self.value, self.value.provider, self._price)
        return name_of(self.value.provider, tier) if tier else self.value.provider

    @cached_property
    def source(self) -> RowSource:
        if self._source is not None:
            return self._source
        from .sources.opening import keep_stdin, open_source

        source = self.value.source
        if source.uri == "-":
            with ExitStack() as kept:
                folder = kept.enter_context(self.client.blobs.scratch())
                self.client.closing(kept.pop_all().close)
            self._taken_at = self.client.clock.now()
            source = keep_stdin(source, sys.stdin.buffer, folder)
        s = self.client.settings
        return open_source(source, self.value.base_dir, env=s.env, scratch=s.scratch)

    def _read_anew(self) -> None:
        """The source's rows may be others since this handle last read them; what came by stdin comes once."""
        if self.value.source.uri != "-":
            self.__dict__.pop("source", None)

    def _price(self, tier: Tier) -> Price:
        from .prices import find_overrides, lookup

        given = self.client.settings.env.get("CANWAIT_PRICES")
        overrides = Path(given) if given else find_overrides(self.value.base_dir)
        today = self.client.clock.now().date()
        return lookup(self.value.provider, self.value.model, tier, today=today, overrides=overrides)

    def _known(self) -> Known:
        """What need not be paid again: every line this job ever planned, and usable answers of others no gate holds."""
        from .known import Known

        blobs, ledger = self.client.blobs, self.client.ledger
        roots = sorted(ledger.query("roots"), key=lambda r: r["job"] != self.name)
        passed = cache(judging.openness(ledger))
        shards = [(r["id"], blobs.path(r["manifest_blob"]), _reusable(r, self.name, passed)) for r in roots]
        return Known(shards, blobs.folder / "index")

    def _earlier(self) -> Earlier | None:
        """What this job's answered rows tell about the next ones; None before there are any."""
        from .plan import Earlier

        row = self.client.ledger.query("answered", job=self.name)[0]
        if not row["n"]:
            return None
        per_bound = Decimal(int(row["input_tokens"])) / int(row["input_bound"]) if row["input_bound"] else None
        return Earlier(int(row["n"]), Decimal(int(row["output_tokens"])) / int(row["n"]), per_bound)

    # -------------------------------------------------------------------------------------------------------- running

    def run(
        self,
        *,
        plan: str | JobPlan | None = None,
        approve: Callable[[JobPlan], bool] | None = None,
        only: str | None = None,
        until: datetime | None = None,
        watch: Callable[[], None] = lambda: None,
        tell: str | Sequence[str] = (),
        past_canary: bool = False,
    ) -> views.Figures | Any:
        """Run the job to its end, or go on with it; the figures since its first run (of a frame: the frame, answered).

        plan: run exactly this plan, or raise PlanStale. approve: asked once before the first money is held; None approves,
        for the budget is stated. only: send failed rows again and no others: `failed`, `failed:CAUSE`, `expired`,
        `missing`, `cancelled`; or what its gate refused: `rejected`, `rejected:STRATUM`, `rejected:RULE`, `rejected:CAUSE`.
        tell: whom to tell of its end, once, like `mailto:me@example.com` (docs/notifications.md). past_canary: go on though
        the free checks, or who judged its canary, stopped it (docs/gate.md).

        Raises BudgetExceeded before anything is sent, SourceError for bad rows, KeyRefused; of a
        frame, JobPaused or NotFinished when there is no frame to return yet, which figures say otherwise.
        """
        c = self.client
        asked = notifying.targets(tell if isinstance(tell, str) else " ".join(tell), "tell")
        self.asked_again = None
        if only is None:
            self.open(plan=plan, approve=approve)
        else:
            self._again(only, plan)
        if past_canary:
            halting.go_past(c.ledger, self.name, getuser(), c.clock.now())
        notifying.tell(c.ledger, self.name, asked, c.clock.now())
        feeding = notifying.feeding(c.ledger, c.blobs, c.settings.env, c.clock, self.name, watch)
        with nullcontext(watch) if c.settings.simulated else feeding as look:
            figures = self._run(until, look)
        if not c.settings.simulated:
            ended = figures.finished
            notifying.after_run(c.ledger, c.settings.env, c.clock, self.name, ended=ended, blobs=c.blobs)
        if self._frame is None:
            return figures
        if figures.paused:
            raise JobPaused(job=self.name, why=figures.paused)
        if not figures.finished:
            raise NotFinished(job=self.name)
        return self.frame()

    def open(
        self,
        *,
        plan: str | JobPlan | None = None,
        approve: Callable[[JobPlan], bool] | None = None,
        again: bool = False,
    ) -> Plan:
        """Open the plan's shards in the ledger: from here on any caller may run them.

        again: only if this plan is the job's latest already, or raise PlanStale.
        """
        wanted = plan.id if isinstance(plan, JobPlan) else plan
        c = self.client
        provider = c.provider(self._adapter())
        self._read_anew()
        while True:
            jobs = c.ledger.query("job", name=self.name)
            began, file = c.clock.now(), self._file_state()
            kept = self._resumed(jobs[0]["plan"], provider, file) if jobs else None
            prepared = Prepared(kept, ()) if kept else self._prepare(provider)
            value = prepared.plan
            self._is_wanted(value, wanted, jobs[0]["plan"] if jobs else None, again=again)
            self._keep_contracts(value, provider)
            is_new = value.n_new and not c.ledger.query("plan", job=self.name, digest=value.digest)
            ask = self._agreed(value, approve) if is_new else False
            trusted = resume.trusted(file, began) if file == self._file_state() else None
            late = self._fallback(value)
            terms = rescue.stated(replace(self._terms(prepared), ask=ask), *late)
            now = c.clock.now()
            opened = self._opening(prepared, terms, provider, resume.grounds(self.value, trusted), jobs, now)
            judging.put_gate(c.ledger, self.name, value.digest, self.value.quality, now)
            if c.ledger.open_plan(opened, now):
                rescue.state(c.ledger, self.name, value.digest, *late, now)
                notifying.listen(c.ledger, self.name, self.value.notify, now)
                if self.value.budget.on_exceed == "trim":
                    holding.answered(c.ledger, self.name, value.digest, "the job file asks no more", now)
                gate = judging.quality_of(c.ledger, self.name, value.digest)
                self.gate_kept = gates.unlike(gate, self.value.quality)
                publishing.opened(
                    c.ledger, self.value, value.digest, as_of=self._taken_at or (began if kept else value.source_as_of),
                    source=prepared.source, tier=value.tier.value, window_s=self._window_s(provider), now=now,
                )  # fmt: skip
                return value

    def _is_wanted(self, plan: Plan, wanted: str | None, latest: str | None, *, again: bool) -> None:
        """Raises PlanStale for another plan than was asked for, SourceError for one with bad rows."""
        if wanted is not None and plan.id != wanted:
            why = f"rows, prompt, model or prices changed; now it is {plan.id}"
            raise PlanStale(plan=wanted, why=why, spec=self._file or self.name)
        if plan.n_bad_rows:
            raise _bad_rows(plan, self.source.name)
        if again and plan.digest != latest:
            why = "rows, prompt, model or prices are not those that ran; run the job without --only first"
            raise PlanStale(plan=plan.id, why=why, spec=self._file or self.name)

    def _agreed(self, plan: Plan, approve: Callable[[JobPlan], bool] | None) -> bool:
        """Whether a person must be asked after the canary. Raises BudgetExceeded, and HumanNeeded for one who says no."""
        c = self.client
        try:
            ask = must_ask(c.ledger, self.value, plan, self._limit_micros, c.clock.now())
        except BudgetExceeded as error:
            if not c.settings.simulated:
                notifying.refused(c.ledger, c.settings.env, c.clock, self.value, str(error))
            raise
        if approve is not None:
            told = JobPlan(plan, self.value, self._cost_of(plan), None, *self._in_time(plan))
            if not approve(told):
                raise HumanNeeded(f"Plan {plan.id} was not approved; nothing was sent.")
        return ask

    def _opening(
        self, prepared: Prepared, terms: Terms, provider: Provider, grounds: Mapping[str, Any], jobs: Sequence[Row],
        now: datetime,
    ) -> OpenPlan:  # fmt: skip
        """`jobs`: the job's row as the planner saw it, if there was one."""
        job, plan = self.value, prepared.plan
        return OpenPlan(
            job=self.name, digest=plan.digest,
            body={**plan_to_json(plan), "shards": [], "shard_ids": [], "grounds": grounds},
            terms=terms_to_json(terms), owner=job.owner, budget=replace(job.budget, micros=self._limit_micros),
            deadline=now + timedelta(seconds=job.deadline_s),
            new=_new_shards(plan, self._adapter(), provider.account, now), answering=prepared.answering,
            revision=jobs[0]["revision"] if jobs else 0, file=str(self._file) if self._file else None,
            load=job.load.to if job.load else None,
        )  # fmt: skip

    def _terms(self, prepared: Prepared) -> Terms:
        """What is asked for under a gate stays behind it, whatever the job file says by now."""
        job, plan = self.value, prepared.plan
        new = {shard.id for shard in plan.shards}
        older = [shard for shard, _ in prepared.answering if shard not in new]
        return Terms(
            plan.provider, plan.model, plan.endpoint, plan.tier, plan.price, job.output_schema, job.attempts,
            job.source.key, job.dedupe, judging.gate_for(self.client.ledger, self.name, older, job.quality),
        )  # fmt: skip

    def _keep_contracts(self, plan: Plan, provider: Provider) -> None:
        """Raises SpecError where a change of schedule, tier or deadline breaks what a reader was promised."""
        broken = publishing.breaks(self.client.ledger, self.value, plan.tier.value, self._window_s(provider))
        if broken:
            from .spec import problems_at

            words = [f"would break what a reader accepts: {found.arithmetic}" for found in broken]
            raise SpecError(
                problems_at(self._file, "schedule", words),
                hint=f"run it more often, or have it revised: canwait fresh {self.name} --reader NAME --revise --max-age AGE",
            )

    def _window_s(self, provider: Provider) -> int:
        """The most a run takes by what was promised."""
        return min(provider.limits(self.value.model).window_s, self.value.deadline_s)

    def _resumed(self, digest: str, provider: Provider, file: resume.FileState | None) -> Plan | None:
        """The job's latest plan, where planning again would make the same; then no row is read.

        What it would reuse by now makes no difference: of a plan that is open already nothing is opened again.
        """
        job = self.value
        kept = resume.kept(self.client.ledger.query("plan", job=self.name, digest=digest)[0]["body"], job)
        if kept is None:
            return None
        self._check_target()
        plan, read = kept
        price = choose(job, offers_for(job, provider.name, provider.limits(job.model), self._price)).price
        if price is None or not resume.holds(plan, read, job, price, file, lambda: self.source.fingerprint()):
            return None
        return once_more(plan)

    def _file_state(self) -> resume.FileState | None:
        return resume.state_of(self.value) if self._source is None else None

    def _check_target(self) -> None:
        """Raises SpecError for a target that rows could not be loaded into, or a check that cannot be made here: before
        anything is paid."""
        from .addresses import local_path
        from .language import fault_of
        from .load import check_columns
        from .sinks.opening import open_sink
        from .spec import problems_at

        job, s = self.value, self.client.settings
        check_columns(job)
        if job.quality is not None and (fault := fault_of(job.quality.rules)):
            raise SpecError(problems_at(self._file, "quality.language", [fault]), hint="nothing was sent")
        if job.load is not None:
            path = local_path(job.source.uri, job.base_dir)
            source = path if self._source is None and path is not None and path.is_file() else None
            try:
                open_sink(job.load, job.base_dir, job.source.key, source=source, env=s.env)
            except SinkError as error:
                raise SpecError([Problem(self.name, None, None, "load", str(error))], hint=error.own_hint) from error

    @property
    def _limit_micros(self) -> int | None:
        """The job's own limit, or the ceiling of this shell where that is lower."""
        limits = (self.value.budget.micros, self.client.settings.ceiling_micros)
        return min((m for m in limits if m is not None), default=None)

    def _again(self, selector: str, plan: str | JobPlan | None) -> None:
        """Open shards for rows that failed and that a person wants sent again. Raises NotFound when there are none."""
        from . import asking

        asking.check(selector)
        self.open(plan=plan, again=True)
        c = self.client
        asking.again(c.ledger, c.blobs, self.name, selector, self._follow_up, c.clock.now())
        self._gate_next()

    def _gate_next(self) -> None:
        """Of answers that are asked again nobody has said anything: they stand before the gate as the job file has it now."""
        ledger, stated = self.client.ledger, self.value.quality
        plan = ledger.job(self.name)["plan"]
        judging.put_gate(ledger, self.name, plan, stated, self.client.clock.now())
        self.gate_kept = gates.unlike(judging.quality_of(ledger, self.name, plan), stated)

    def _follow_up(
        self, root: Shard, manifest: Any, lines: Sequence[int], attempt: int, terms: Terms, why: str
    ) -> NewShard:
        return self.client.engine.follow_up(root, manifest, lines, attempt, terms, why=why)

    def _run(self, until: datetime | None, watch: Callable[[], None]) -> views.Figures:
        """Until nothing of it is open, also of what the gate has sent, or sent again, by itself."""
        from .asking import rerun

        c = self.client
        while True:
            ended = c.engine.run(self.name, until=until, watch=watch)
            figures = self._finish(until)
            if ended and figures.state is JobState.REFUSED and not self.asked_again:
                self.asked_again = rerun(c.ledger, c.blobs, self.name, self._follow_up, c.clock.now())
                if self.asked_again:
                    self._gate_next()
            if not ended or not c.ledger.next_due(self.name)[1]:
                return figures

    def _finish(self, until: datetime | None = None) -> views.Figures:
        """Where the job stands now; when nothing is open its rows are loaded, unless a gate stands before them."""
        from .inspection import canary, opened

        c = self.client
        figures = views.figures(c.ledger, self.name)
        if not figures.finished:
            canary(c.ledger, c.blobs, self.name, c.clock.now(), self.value.base_dir)
        elif not figures.withheld:
            lot = opened(c.ledger, c.blobs, self.name, c.clock.now(), self.value.base_dir)
            if lot is not None and lot.awaits_judge:
                self._hear_judge(lot, until)
        figures = self._brought()
        state, why = standing(figures, cancelled=bool(c.ledger.job(self.name)["cancelled"]))
        c.ledger.set_job_state(self.name, state, why, c.clock.now())
        return views.figures(c.ledger, self.name)

    def _hear_judge(self, lot: Lot, until: datetime | None) -> None:
        """Have the judge model of the gate look at a lot's sample, as a job of its own, until its word is heard."""
        from . import judge

        c, asked = self.client, judge.job_of(lot, self.value.owner, self.value.base_dir)

        def run() -> bool:
            c.engine.run(asked.name, until=until)
            figures = views.figures(c.ledger, asked.name)
            is_cancelled = bool(c.ledger.job(asked.name)["cancelled"])
            c.ledger.set_job_state(asked.name, *standing(figures, cancelled=is_cancelled), c.clock.now())
            return figures.finished

        handle = JobHandle(c, asked, judge.rows_of(c.blobs, lot))
        judge.hear(c.ledger, c.blobs, lot, handle.open, run, c.clock)

    def _brought(self) -> views.Figures:
        """Where the job stands, its rows loaded or published if they may be: once nobody else does, for processes that
        ran the job together end it together. Who opened another plan of it meanwhile brings the rows of that."""
        for left in range(600, -1, -1):
            figures = views.figures(self.client.ledger, self.name)
            if not figures.finished or not figures.readable or figures.withheld:
                break
            try:
                self.load() if self.value.load is not None else self._publish()
                break
            except SinkBusy:
                if not left:
                    raise
                self.client.clock.sleep(0.1)
        return figures

    def _publish(self) -> None:
        """Give readers what a job without a target has; `load` does of one with a target."""
        from .loading import publish

        c = self.client
        publish(c.ledger, c.blobs, c.clock, self.value, self._passed())

    # ---------------------------------------------------------------------------------------------------------- rows

    def load(self) -> int:
        """Bring the usable rows into the target in one atomic step, the failed ones beside it; rows the target has then.

        Safe to repeat. Raises GatePending when the job must be judged first, GateRefused when it was judged and refused,
        SinkError with the target as it was.
        """
        from .loading import load
        from .sinks.opening import open_sink

        c, job = self.client, self.value
        if job.load is None:
            raise SpecError(
                [Problem(self.name, None, None, "load", "the job file names no target")],
                hint="add `load: labels.parquet`",
            )
        s, key = c.settings, job.source.key
        opened = partial(open_sink, base_dir=job.base_dir, key=key, env=s.env, scratch=s.scratch)
        return load(c.ledger, c.blobs, c.clock, job, self._passed(), job.load, opened)

    def results(self) -> Results:
        """The ended rows, and how much of the job they are; also while it runs.

        Of a job with a gate only once it has opened: raises GatePending, GateRefused; and NotFound before the first run.
        """
        self._passed()
        figures = self.figures()
        return Results(figures.state, figures.rows, figures.rows - figures.pending, self.rows())

    def rows(self) -> Iterator[Ok | Failed]:
        """Every ended row of the dataset. Raises GatePending when the job must be judged first, GateRefused."""
        with self._readable() as rows:
            for key, text in rows.texts():
                yield Ok(key, self._value(text))
            yield from failed_rows(rows)

    def _passed(self) -> Lot | None:
        """What the gate has let through; None without one. Raises GatePending, GateRefused."""
        from .inspection import passed

        c = self.client
        stated, gate = self.value.quality, judging.standing(c.ledger, self.name).quality
        if stated is not None and (gate is None or not gates.as_strict(gate, stated)):
            raise GatePending(
                job=self.name, hint="the job file's gate is stricter now: run the job again, which costs nothing"
            )
        return passed(c.ledger, c.blobs, self.name, c.clock.now(), self.value.base_dir)

    @contextmanager
    def _readable(self) -> Iterator[Through]:
        """The answers of the latest plan, as far as its gate let them through. Raises GatePending, GateRefused."""
        from .inspection import let_through

        self._passed()
        c = self.client
        with let_through(c.ledger, c.blobs, self.name, c.clock.now(), self.value.base_dir) as rows:
            yield rows

    def _value(self, text: str) -> Any:
        if self._output is not None:
            return self._output.model_validate_json(text)
        is_json = self.value.output_schema is not None or self.value.endpoint is Endpoint.EMBEDDINGS
        return json.loads(text) if is_json else text

    @property
    def failed(self) -> list[Failed]:
        """Rows without a usable answer, with their cause; also before their gate has opened."""
        from .inspection import left_out

        with left_out(self.client.ledger, self.client.blobs, self.name) as rows:
            return list(failed_rows(rows))

    def inspect(self, who: str | None = None) -> Inspecting | None:
        """The inspection of what stands at the gate, as `Client.inspect`."""
        return self.client.inspect(self.name, who, base_dir=self.value.base_dir)

    @property
    def cost(self) -> Cost:
        """Raises NotFound before the first run."""
        return cost_of(self.figures(), outlook(self.client.ledger, self.client.blobs, self.name))

    def figures(self) -> views.Figures:
        """Raises NotFound before the first run."""
        return views.figures(self.client.ledger, self.name)

    def frame(self) -> Any:
        """The frame that went in, with the output's columns added; rows without a usable answer hold nulls."""
        import pyarrow as pa

        from .render import key_text
        from .sources.frames import to_frame_like

        table = self._table
        with self._readable() as rows:
            found = pa.Table.from_batches(list(rows.loaded()), rows.columns.loaded)
            names = [n for n, _ in rows.columns.answer]
        places = {key: place for place, key in enumerate(found[self.value.source.key].to_pylist())}
        taken = pa.array([places.get(key_text(k)) for k in table[self.value.source.key].to_pylist()], pa.int64())
        for name in names:
            table = table.append_column(name, found[name].take(taken))
        return to_frame_like(self._frame, table)


def map(
    frame: Any,
    name: str,
    *,
    model: str,
    key: str,
    prompt: str,
    budget_usd: Any,
    max_output_tokens: int | None = None,
    output: type[BaseModel] | Mapping[str, Any] | None = None,
    deadline: str = "24h",
    urgency: str = "batch",
    client: Client | None = None,
    **fields: Any,
) -> JobHandle:
    """A job over the rows of a pandas, polars or Arrow frame; nothing is sent before `run`.

    The same name with the same rows is the same job: running it again costs nothing. `fields` are the job file's others;
    every endpoint but `embeddings` needs `max_output_tokens`.
    """
    from .load import answer_names
    from .sources.frames import from_frame, to_table
    from .spec import job_from_dict

    spec = {
        "version": 1,
        "name": name,
        "source": {"uri": "frame:", "key": key},
        "model": model,
        "prompt": prompt,
        "deadline": deadline,
        "urgency": urgency,
        "max_output_tokens": max_output_tokens,
        "budget": {"usd": budget_usd},
        **fields,
    }
    if output is not None:
        spec["output"] = output
    job = job_from_dict(spec, base_dir=Path.cwd())
    table = to_table(frame)  # once, for a RecordBatchReader can be read only once
    if taken := set(answer_names(job)) & set(table.column_names):
        what = f"the frame has a column {', '.join(sorted(taken))} already; name the output's field otherwise"
        raise SpecError([Problem("frame", None, None, "output", what)])
    answer = None if isinstance(output, Mapping) else output
    return JobHandle(client or connect(), job, from_frame(table), frame, table, output=answer)


def _reusable(root: Row, job: str, passed: Callable[[str], bool]) -> Callable[[int], bool]:
    """`passed`: whether no gate stands before a shard's answers."""
    if root["job"] == job:
        return lambda line: True
    vector = b""

    def is_ok(line: int) -> bool:
        nonlocal vector
        if not vector:  # of most shards no line is looked for
            is_open = passed(root["id"])
            vector = zlib.decompress(root["vector"]) if is_open else bytes([Outcome.PENDING]) * root["n_lines"]
        return vector[line] == Outcome.OK

    return is_ok


def _new_shards(plan: Plan, adapter: str, account: str, now: datetime) -> list[NewShard]:
    return [
        NewShard(
            s.id, s.id, 1, adapter, account, s.n_lines, s.requests_blob, s.manifest_blob, s.input_bound, s.output_bound,
            s.worst_micros, now - timedelta(microseconds=bool(plan.canary and plan.canary.shard == s.id)),  # goes first
        )
        for s in plan.shards
    ]  # fmt: skip


def _bad_rows(plan: Plan, source: str) -> SourceError:
    problems = [Problem(source, bad.line, None, bad.key, bad.problem) for bad in plan.bad_rows]
    if plan.n_bad_rows > len(plan.bad_rows):
        problems.append(Problem(source, None, None, None, f"... and {plan.n_bad_rows - len(plan.bad_rows)} more"))
    return SourceError(problems)
