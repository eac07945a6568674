"""plan, run, status, why, cancel, load, results, resolve, events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import publishing, views
from ..errors import BudgetFrozen, GatePending, GateRefused, JobPaused, NotFinished
from ..holding import CANARY_IS_BACK
from ..knowing import Looking, known
from ..price import format_usd
from ..types import JobState
from .face import Face, money, options, printable, report, table, usd_option
from .knowing import diagnosis, diagnosis_json, known_json, listing, now, shard_json

if TYPE_CHECKING:
    from ..client import Client, JobHandle, JobPlan
    from ..forecast import Outlook


@contextmanager
def opened(face: Face, sim: bool = False, scenario: str | None = None) -> Iterator[Client]:
    """The ledger of this environment, or the rehearsal's with --sim."""
    from ..client import connect

    with ExitStack() as stack:
        if sim or scenario:
            from ..rehearsal import rehearsal

            face.simulated = True
            yield stack.enter_context(stack.enter_context(rehearsal(scenario or "")))
        else:
            yield stack.enter_context(connect())


simulated = click.option("--sim", is_flag=True, help="Run against the simulator, in a ledger of its own.")
scenario_option = click.option(
    "--scenario", metavar="FAULTS", help="What the simulator does wrong, such as expiry=0.2,429=2."
)


@click.command()
@click.argument("spec", metavar="JOB.YAML")
@click.option("--exit-code", is_flag=True, help="Exit with 10 when there is new paid work.")
@simulated
@options()
def plan(face: Face, spec: str, exit_code: bool, sim: bool) -> None:
    """Show what a job would do and cost. Never spends."""
    from ..codec import plain, plan_to_json

    with opened(face, sim) as client:
        planned = client.job(spec).plan()
        value = plan_to_json(planned.value)
        for name in ("shard_ids", "rows_blob"):
            value.pop(name)
        drawn = planned.value.canary
        value["canary"] = drawn and {"shard": drawn.shard, "n_rows": len(drawn.homes)}
        for name in ("worst", "standard"):
            micros = getattr(planned.value, f"{name}_micros")
            value[f"{name}_usd"] = None if micros is None else format_usd(micros)
        value["since"] = None if planned.since is None else plain(planned.since)
        ready = planned.ready
        value["ready"] = ready and {"p50_s": ready.p50_s, "p95_s": ready.p95_s, "basis": ready.basis}
        value["late"] = planned.late
        value["judge"] = _judge_json(planned)
        value |= outlook_json(planned.outlook)
        run = f"canwait run --plan {planned.id}"
        face.show("canwait.plan/1", value, planned.explain().replace(run, f"{run} --sim" if sim else run))
        if planned.value.n_bad_rows:
            face.note(f"{planned.value.n_bad_rows} rows cannot be sent; `run` refuses until they are mended")
            raise click.exceptions.Exit(2)
        raise click.exceptions.Exit(10 if exit_code and planned.value.n_new else 0)


@click.command()
@click.argument("spec", metavar="[JOB.YAML]", required=False)
@click.option("--plan", "plan_id", metavar="ID", help="Run exactly this plan; refuse if anything has changed.")
@click.option("--budget", "budget_usd", metavar="USD", help="The job's limit, instead of the job file's.")
@click.option("--only", metavar="SELECTOR", help="Send rows again: failed, failed:CAUSE, expired, missing, cancelled, "
              "or what the gate refused: rejected, rejected:STRATUM, rejected:RULE, rejected:CAUSE.")  # fmt: skip
@click.option("--past-canary", is_flag=True, help="Go on though the free checks, or who judged its canary, stopped it.")
@click.option("--timeout", metavar="DURATION", help="Stop watching after this long (90s, 6h); the job goes on.")
@click.option(
    "--tell", metavar="TARGET", multiple=True, help="Tell once when it has ended, like mailto:me@example.com."
)
@simulated
@scenario_option
@options(spends=True)
def run(
    face: Face,
    spec: str | None,
    plan_id: str | None,
    budget_usd: str | None,
    only: str | None,
    past_canary: bool,
    timeout: str | None,
    tell: tuple[str, ...],
    sim: bool,
    scenario: str | None,
) -> None:
    """Run a job to its end, or go on with it. Running again resumes, and pays for nothing twice.

    With --plan the job file may be left out: it is the one that was planned.
    """
    if spec is None and plan_id is None:
        raise click.UsageError("name a JOB.YAML, or a plan with --plan ID")
    until_s = _duration(timeout) if timeout else None
    with opened(face, sim, scenario) as client:
        job = _budgeted(client.job(spec) if spec is not None else client.planned(plan_id or ""), budget_usd)
        rehearsed = " --sim" if face.simulated else ""
        face.goes_on = (
            "interrupted; what was already sent goes on at the provider, and nothing is lost.\n"
            f"  go on:  canwait run {spec or f'--plan {plan_id}'}{rehearsed}\n  stop:   canwait cancel {job.name}{rehearsed}"
        )
        until = None if until_s is None else client.clock.now() + timedelta(seconds=until_s)
        from .progress import progress

        with progress(face, client, job.name) as watch:
            figures = job.run(
                plan=plan_id, approve=lambda p: _approve(face, p), only=only, until=until, watch=watch, tell=tell,
                past_canary=past_canary,
            )  # fmt: skip
        for said in filter(None, (job.gate_kept, job.asked_again)):
            face.note(said)
        words = publishing.last_words(client.ledger, job.name)
        published = f"\n  published {words}" if words else ""
        face.show("canwait.run/1", *told(client, figures, published))
        raise click.exceptions.Exit(_ending(figures))


def _budgeted(job: JobHandle, budget_usd: str | None) -> JobHandle:
    from dataclasses import replace

    if budget_usd is not None:
        micros = usd_option(budget_usd, "--budget")
        job.value = replace(job.value, budget=replace(job.value.budget, micros=micros))
    return job


def _duration(text: str) -> int:
    from ..errors import Problem, SpecError
    from ..fields import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise SpecError([Problem("--timeout", None, None, None, str(error))]) from error


def _approve(face: Face, plan: JobPlan) -> bool:
    if not face.yes:
        face.note(plan.explain())
    limit = plan.job.budget.micros
    cap = f" of cap {money(limit)}" if limit is not None else ""
    return face.ask(
        f"Plan {plan.id}: worst case {money(plan.value.worst_micros)}{cap}. Send {plan.value.n_new} requests?", "--yes"
    )


def _ending(figures: views.Figures) -> int:
    """The exit code of interface.md 2.3, with the reason on stderr where the job is not simply done."""
    if not figures.finished:
        if figures.paused and "is frozen" in figures.paused:
            hint: str | None = "`canwait budget show` says which; look why, then `canwait budget thaw NAME`"
            error: Any = BudgetFrozen(figures.paused, hint=hint)
        elif figures.paused and figures.state is JobState.GATE:
            hint = f"canwait inspect {figures.job}"
            error = GatePending(f"Job {figures.job} sends no more: {figures.paused}", job=figures.job, hint=hint)
        elif figures.paused:
            asked = "what is paid is kept; `on_exceed: trim` in the job file sends as far as the money goes"
            hint = asked if figures.paused.startswith(CANARY_IS_BACK) else None
            error = JobPaused(job=figures.job, why=figures.paused, hint=hint)
        else:
            error = NotFinished(job=figures.job)
        report(error)
        return int(error.exit_code)
    if figures.withheld:
        return 6 if figures.served is None else 0
    if figures.state is JobState.GATE:
        report(GatePending(job=figures.job))
        return GatePending.exit_code
    if figures.state is JobState.REFUSED:
        report(GateRefused(job=figures.job, why=(figures.reason or "").removeprefix("refused: ")))
        return GateRefused.exit_code
    return 0 if figures.ok == figures.rows else 6


def told(client: Client, f: views.Figures, more: str = "") -> tuple[dict[str, Any], str]:
    """A job as JSON and in words, `more` behind these."""
    from ..outlook import outlook

    seen, report = outlook(client.ledger, client.blobs, f.job), views.report(client.ledger, f.job)
    return figures_json(f, seen, report), summary(f, seen, report) + more


def figures_json(f: views.Figures, o: Outlook, report: views.Report | None) -> dict[str, Any]:
    """A job as JSON: USD are decimal strings with 6 places, times are ISO 8601 UTC."""
    return {
        "job": f.job,
        "plan": f.plan,
        "state": f.state.value,
        "reason": f.reason,
        "rows": f.rows,
        "ok": f.ok,
        "failed": f.failed,
        "missing": f.missing,
        "pending": f.pending,
        "expired": f.expired,
        "cancelled": f.cancelled,
        "duplicates": f.duplicates,
        "reused": f.reused,
        "submissions": f.submissions,
        "confirmed_usd": format_usd(f.confirmed_micros),
        "reserved_usd": format_usd(f.reserved_micros),
        "unknown_usd": format_usd(f.unknown_micros),
        "wasted_usd": format_usd(f.wasted_micros),
        "booked_usd": format_usd(f.booked_micros),
        **outlook_json(o),
        "worst_usd": format_usd(f.worst_micros),
        "budget_usd": None if f.limit_micros is None else format_usd(f.limit_micros),
        "input_tokens": f.input_tokens,
        "output_tokens": f.output_tokens,
        "deadline": f.deadline.isoformat(),
        "paused": f.paused,
        "blocked": list(f.blocked),
        "next_at": f.next_at.isoformat() if f.next_at else None,
        "loaded": f.loaded,
        "gate": f.gate
        and {
            "lot": f.gate.lot,
            "verdict": f.gate.verdict and f.gate.verdict.value,
            "reason": f.gate.reason,
            "rows": f.gate.rows,
            "left_out": f.gate.left_out,
        },
        "report": report and _report_json(report),
    }


def _judge_json(plan: JobPlan) -> dict[str, Any] | None:
    if (judge := plan.judge) is None:
        return None
    rows = min(judge.rows, plan.value.n_rows)
    return {"provider": judge.provider, "model": judge.model, "budget_usd": format_usd(judge.micros), "rows": rows}


def outlook_json(o: Outlook) -> dict[str, Any]:
    """What new work costs in all, whether it runs already or not."""
    return {
        "expected_usd": format_usd(o.expected_micros),
        "likely_usd": _usd(o.likely_micros),
        "guaranteed_usd": _usd(o.guaranteed_micros),
        "cannot_exceed_usd": format_usd(o.cannot_exceed_micros),
        "basis": o.basis,
        "cost_notes": o.notes,
    }


def _report_json(r: views.Report) -> dict[str, Any]:
    rates = ("sent_again", "duplicates", "paid_attempts", "paid_attempts_by_failures")
    each = None if r.per_accepted_micros is None else r.per_accepted_micros.scaleb(-6)
    return {
        "useful_usd": format_usd(r.useful_micros),
        "wasted_usd": format_usd(r.wasted_micros),
        "waste_usd": {cause: format_usd(micros) for cause, micros in sorted(r.waste.items())},
        "paid_twice_usd": format_usd(r.paid_twice_micros),
        "usd_for_each_accepted": None if each is None else f"{each:f}",
        **{name: None if (rate := getattr(r, name)) is None else f"{rate:f}" for name in rates},
    }


def _usd(micros: int | None) -> str | None:
    return None if micros is None else format_usd(micros)


def summary(f: views.Figures, o: Outlook, report: views.Report | None) -> str:
    """A job in a few lines."""
    cap = f" of cap {money(f.limit_micros)}" if f.limit_micros is not None else ""
    lines = [
        f"{f.job}  {f.state.value}{f': {printable(f.reason)}' if f.reason else ''}",
        f"  rows      {f.rows}: {f.ok} ok, {f.failed} failed, {f.missing} missing   "
        f"({f.duplicates} duplicates merged, {f.reused} reused)",
        f"  money     {money(f.confirmed_micros)} confirmed, {money(f.reserved_micros)} reserved, "
        f"{money(f.unknown_micros)} unknown, {money(f.wasted_micros)} wasted{cap}",
        f"  batches   {f.submissions} submitted   tokens  {f.input_tokens} in, {f.output_tokens} out",
    ]
    if not f.finished:
        lines += [f"  cost      {o}", *(f"            {note}" for note in o.notes)]
    if report:
        lines += _reported(report)
    if f.gate:
        lines.append(f"  gate      {printable(f.gate.reason)}")
    if f.loaded:
        beside = f", {f.loaded['failed']} failed beside it" if f.loaded["failed"] else ""
        lines.append(f"  loaded    {f.loaded['rows']} rows in {f.loaded['to']}{beside}")
    if f.gate and f.gate.verdict is None:
        lines.append(f"  next      canwait inspect {f.job}: nothing is loaded or can be read before")
    elif f.gate and f.state is JobState.REFUSED:
        lines.append(
            f"  next      canwait inspect {f.job} shows why; mend the prompt and run it again: that is another lot"
        )
    elif f.gate and not f.loaded and f.state is not JobState.GATE:
        lines.append("  next      canwait load JOB.YAML")
    again = f.failed - (f.gate.left_out if f.gate else 0)  # what the gate left out has an answer
    if f.finished and (again or f.missing):
        which = "failed" if again else "missing"
        lines.append(f"  next      canwait why {f.job}   ·   send them again: canwait run JOB.YAML --only {which}")
    return "\n".join(lines)


def _reported(r: views.Report) -> Iterator[str]:
    """What a job came to; what has no meaning, such as a share of nothing, is left out."""
    causes = ", ".join(f"{money(n)} {cause}" for cause, n in sorted(r.waste.items(), key=lambda c: -c[1]) if n)
    twice = f"; {money(r.paid_twice_micros)} of it for rows paid once more" if r.paid_twice_micros else ""
    yield f"  came to   {money(r.useful_micros)} useful, {money(r.wasted_micros)} wasted{f': {causes}{twice}' if causes else ''}"
    rates = ((r.sent_again, "of the rows sent were sent again"), (r.duplicates, "of the dataset are duplicates"))
    if shown := [f"{rate:.1%} {words}" for rate, words in rates if rate is not None]:
        yield f"  again     {', '.join(shown)}"
    if r.per_accepted_micros is not None:
        each = f"${r.per_accepted_micros.scaleb(-6).normalize():f} for each accepted row"
        by = f" ({r.paid_attempts_by_failures:.2f} by its failures)" if r.paid_attempts_by_failures is not None else ""
        paid = "" if r.paid_attempts is None else f", {r.paid_attempts:.2f} answers paid for it{by}"
        yield f"  each      {each}{paid}"


@click.command()
@click.argument("job", required=False)
@click.option("--watch", is_flag=True, help="Show it again every two seconds until nothing is open.")
@simulated
@options()
def status(face: Face, job: str | None, watch: bool, sim: bool) -> None:
    """Show where jobs stand."""
    with opened(face, sim) as client:
        while True:
            names = [_named(job)] if job else views.jobs(client.ledger)
            found = [views.figures(client.ledger, name) for name in names]
            looking = Looking(client.ledger, client.clock.now(), found[0].job if job else None)
            known = [looking.known(f) for f in found]
            value = {"knowing": [known_json(face, k) for k in known]}
            if job:
                figures, words = told(client, found[0], now(face, found[0], known[0]))
                face.show("canwait.status/1", {"jobs": [figures], **value}, words)
            else:
                jobs = [told(client, f)[0] for f in found] if face.as_json else []
                face.show("canwait.status/1", {"jobs": jobs, **value}, listing(face, found, known))
            if not watch or all(f.finished or f.paused for f in found):
                return
            time.sleep(2)


def _named(job: str) -> str:
    """A job's name, also told by its file."""
    path = Path(job)
    if path.suffix not in (".yaml", ".yml", ".json", ".toml") or not path.is_file():
        return job
    from ..spec import load_job

    return load_job(path).name


@click.command()
@click.argument("job")
@simulated
@options()
def why(face: Face, job: str, sim: bool) -> None:
    """Show what holds a job, shard by shard, and what can be done about it."""
    with opened(face, sim) as client:
        job = _named(job)
        figures, shards = views.figures(client.ledger, job), views.shards(client.ledger, job)
        causes = views.causes(client.ledger, client.blobs, job)
        found = known(client.ledger, client.blobs, job, client.clock.now())
        as_json, words = told(client, figures)
        value = {
            "job": as_json,
            "knowing": diagnosis_json(face, found),
            "causes": causes,
            "shards": [
                {
                    "id": s.id,
                    "state": s.state.value,
                    "attempt": s.attempt,
                    "role": s.role,
                    "lines": s.n_lines,
                    "batch": s.batch_id,
                    "provider_says": s.provider_says,
                    "blocked": s.blocked,
                    "next_at": s.next_at.isoformat(),
                    "held_usd": format_usd(s.held_micros),
                    "confirmed_usd": format_usd(s.confirmed_micros),
                    "fate_unknown": s.fate_unknown,
                    **shard_json(s, found.batches),
                }
                for s in shards
            ],
        }
        reasons = _reasons([words, "", *diagnosis(face, found), ""], shards, causes)
        face.show("canwait.why/1", value, reasons)


def _reasons(lines: list[str], shards: list[views.ShardView], causes: dict[str, int]) -> str:
    rows = [("SHARD", "STATE", "TRY", "ROWS", "MONEY", "NOTE")]
    rows += [
        (
            s.id,
            s.state.value if s.role == "work" else f"{s.state.value} (twin)",
            str(s.attempt),
            str(s.n_lines),
            money(s.confirmed_micros or s.held_micros),
            printable(s.blocked or s.provider_says)
            + (f", {s.n_done} of {s.n_lines} counted as done" if s.n_done is not None and s.is_out else ""),
        )
        for s in shards
        if s.state.value not in ("settled",) or s.held_micros or s.attempt > 1
    ]
    if len(rows) > 1:
        lines += [table(rows, right=frozenset({2, 3, 4})), ""]
    lines += [f"  {n} rows: {cause}" for cause, n in sorted(causes.items(), key=lambda c: -c[1])]
    return "\n".join(lines).rstrip()


@click.command()
@click.argument("job")
@simulated
@options()
def cancel(face: Face, job: str, sim: bool) -> None:
    """Send nothing more of a job and stop what is on its way. Finished rows are kept, and paid."""
    with opened(face, sim) as client:
        figures = client.cancel(_named(job))
        stopping = "\n  batches on their way are being stopped; `canwait run` again collects what they finished"
        face.show("canwait.run/1", *told(client, figures, "" if figures.finished else stopping))


@click.command()
@click.argument("spec", metavar="JOB.YAML")
@simulated
@options()
def load(face: Face, spec: str, sim: bool) -> None:
    """Load a job's usable rows again, in one atomic step."""
    with opened(face, sim) as client:
        job = client.job(spec)
        job.load()
        figures = job.figures()
        face.show("canwait.run/1", *told(client, figures))


@click.command()
@click.argument("spec", metavar="JOB.YAML")
@simulated
@options()
def results(face: Face, spec: str, sim: bool) -> None:
    """Print every row that has ended, one JSON object a line, also while the job runs."""
    import json

    from ..outcomes import Failed

    with opened(face, sim) as client:
        found = client.job(spec).results()
        whole = "" if found.complete else "; the others are still to come"
        face.note(f"{found.state.value}: {found.n_ended} of {found.n_rows} rows have ended ({found.share:.1%}){whole}")
        for row in found.rows:
            value = {
                "schema": "canwait.result/1",
                "simulated": face.simulated,
                "key": row.key,
                **(
                    {"outcome": row.outcome, "cause": row.cause, "detail": row.detail, "value": None}
                    if isinstance(row, Failed)
                    else {"outcome": "ok", "cause": None, "detail": None, "value": row.value}
                ),
            }
            click.echo(json.dumps(value))


@click.command()
@click.argument("shard")
@click.option("--absent", is_flag=True, help="No batch of this shard exists at the provider.")
@click.option("--batch", "batch_id", metavar="ID", help="This batch is the shard's.")
@click.option(
    "--billed", metavar="USD", help="What the rows that never came back were billed, by the provider's invoice."
)
@simulated
@options()
def resolve(face: Face, shard: str, absent: bool, batch_id: str | None, billed: str | None, sim: bool) -> None:
    """Answer what a provider cannot tell: does the batch of a lost reply exist, what did lost rows cost?"""
    if [absent, batch_id is not None, billed is not None].count(True) != 1:
        raise click.UsageError("say one of --absent, --batch ID or --billed USD")
    with opened(face, sim) as client:
        if billed is not None:
            micros = usd_option(billed, "--billed")
            client.ledger.resolve_billed(shard, micros, client.clock.now())
            said = f"was billed {money(micros)} for what was unknown"
        else:
            client.resolve(shard, batch_id)
            said = (f"is batch {printable(batch_id)}" if batch_id else "has no batch") + "; `canwait run` goes on"
        value = {"shard": shard, "absent": absent, "batch": batch_id, "billed_usd": billed and format_usd(micros)}
        face.show("canwait.resolve/1", value, f"{shard} {said}")


@click.command()
@click.option("--since", default=0, metavar="CURSOR", help="The `seq` of the last event you have seen.")
@click.option("--job", metavar="NAME", help="Only this job's.")
@click.option("--limit", default=10_000, show_default=True, help="At most this many.")
@simulated
@options()
def events(face: Face, since: int, job: str | None, limit: int, sim: bool) -> None:
    """Print every change after a cursor, one JSON object a line, each with a stable id."""
    import json

    with opened(face, sim) as client:
        while limit > 0:
            found = client.ledger.events(since, job, min(limit, 1000))
            for event in found:
                value = {
                    "schema": "canwait.event/1",
                    "simulated": face.simulated,
                    "seq": event.seq,
                    "id": event.id,
                    "at": event.at.isoformat(),
                    "job": event.job,
                    "shard": event.shard,
                    "kind": event.kind,
                    "reason": event.reason,
                    "facts": dict(event.facts),
                }
                click.echo(json.dumps(value))
            if not found:
                return
            since, limit = found[-1].seq, limit - len(found)
