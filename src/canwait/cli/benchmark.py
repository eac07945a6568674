"""benchmark: plan, run, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .. import views
from ..codec import plain
from ..errors import Problem, SpecError
from ..price import format_usd
from .face import Face, money, options, printable, table, usd_option
from .jobs import opened, scenario_option, simulated, told

if TYPE_CHECKING:
    from ..benchmark.draft import Draft
    from ..benchmark.report import ArmReport, Comparison, Report
    from ..client import Client
    from ..turnaround import Bound


@click.group()
def benchmark() -> None:
    """Measure a job on small and large models, batch and realtime: plan, run, report."""


_T = TypeVar("_T")
_EVERY = timedelta(seconds=10)


def _percent(ctx: click.Context, parameter: click.Parameter, text: str) -> Decimal:
    from ..fields import parse_percent

    return _parsed(parameter, text, parse_percent)


def _duration(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    from ..fields import parse_duration

    return None if text is None else _parsed(parameter, text, parse_duration)


def _parsed(parameter: click.Parameter, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise SpecError([Problem(parameter.opts[0], None, None, None, str(error))]) from error


@benchmark.command("plan")
@click.argument("spec", metavar="JOB.YAML")
@click.option("--small", metavar="MODEL", help="A smaller model than the job's, to see whether it would do.")
@click.option("--large", metavar="MODEL", help="A larger model than the job's, to see what it would add.")
@click.option("--gold", metavar="COLUMN", help="The column of the rows that holds the right answer.")
@click.option("--field", metavar="FIELD", help="The field of the answer that --gold is held against.")
@click.option("--by", metavar="COLUMN", help="Draw rows in proportion to this column's values, and report each.")
@click.option("--score", metavar="FIELD", help="The field of the answer that says how sure it is: plans a cascade.")
@click.option("--margin", default="5%", show_default=True, callback=_percent, help="How much worse small may be.")
@click.option(
    "--discordant", default="15%", show_default=True, callback=_percent, help="A guess: rows only one arm gets right."
)
@click.option("--rows", "n", type=click.IntRange(1, 100_000), help="Rows to draw, instead of what the margin needs.")
@click.option("--waves", type=click.IntRange(1, 100), default=1, show_default=True, help="Parts that are sent apart.")
@click.option("--every", default="1h", show_default=True, callback=_duration, help="From wave to wave.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which rows are drawn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write it; else JOB.benchmark.yaml.")
@simulated
@options()
def plan(
    face: Face,
    spec: str,
    small: str | None,
    large: str | None,
    gold: str | None,
    field: str | None,
    by: str | None,
    score: str | None,
    margin: Decimal,
    discordant: Decimal,
    n: int | None,
    waves: int,
    every: int,
    seed: int,
    output: Path | None,
    sim: bool,
) -> None:
    """Draft a benchmarking plan to read and edit: rows, arms, sizes, budget. Never spends."""
    from ..benchmark.draft import Asked, draft

    job_file = Path(spec)
    target = output or job_file.with_name(f"{job_file.stem}.benchmark.yaml")
    rows_file = target.with_suffix(".parquet")
    for path in (target, rows_file):
        if path.exists():
            raise SpecError([Problem(str(path), None, None, None, "exists already")], hint="name another file with -o")
    with opened(face, sim) as client:
        asked = Asked(
            small=small, large=large, gold=gold, field=field, by=by, score=score, margin=margin, discordant=discordant,
            n=n, waves=waves, every_s=every, seed=seed,
        )  # fmt: skip
        made = draft(client, spec, asked, job=Path(os.path.relpath(job_file, target.parent)), rows=Path(rows_file.name))
    made.write(target, rows_file)
    _drafted(face, made, target, rows_file, sim)


def _drafted(face: Face, made: Draft, target: Path, rows_file: Path, sim: bool) -> None:
    """Tell what was written."""
    b, n_rows = made.benchmark, made.drawn.table.num_rows
    arms = [
        (
            str(arm),
            "/".join(b.models[arm.role]),
            format_usd(sum(p.expected_micros for p in plans)),
            format_usd(sum(p.worst_micros for p in plans)),
        )
        for arm, plans in made.planned.items()
    ]
    value = {
        "plan": str(target),
        "rows_file": str(rows_file),
        "rows": n_rows,
        "wanted": made.wanted,
        "strata": dict(made.drawn.strata),
        "arms": [dict(zip(("arm", "model", "expected_usd", "worst_usd"), arm, strict=True)) for arm in arms],
        "budget_usd": format_usd(b.budget_micros),
    }
    lines = [("ARM", "MODEL", "EXPECTED", "WORST CASE"), *((a, printable(m), f"${e}", f"${w}") for a, m, e, w in arms)]
    few = f" ({made.wanted:,} were wanted, there are no more)" if made.wanted > n_rows else ""
    again = " --sim" if sim else ""
    face.show(
        "canwait.benchmark_plan/1",
        value,
        f"{n_rows:,} rows for each arm{few}\n\n{table(lines, right=frozenset({2, 3}))}\n\n"
        f"at most {money(b.budget_micros)} together. Nothing was sent. Nothing was spent.\n"
        f"wrote {target}\nnext: read it, edit it, then   canwait benchmark run {target}{again}",
    )


@benchmark.command("run")
@click.argument("file", metavar="PLAN.YAML", type=click.Path(path_type=Path))
@click.option("--budget", "budget_usd", metavar="USD", help="The limit of all arms together, instead of the plan's.")
@click.option("--timeout", metavar="DURATION", callback=_duration, help="Stop watching after this long; it goes on.")
@simulated
@scenario_option
@options(spends=True)
def run(face: Face, file: Path, budget_usd: str | None, timeout: int | None, sim: bool, scenario: str | None) -> None:
    """Run every arm of a plan side by side, under one budget, or go on with them. Running again pays for nothing twice."""
    from dataclasses import replace

    from ..benchmark.plan import load_benchmark
    from ..benchmark.report import report
    from ..benchmark.run import run as run_benchmark

    planned, job, rows = load_benchmark(file)
    if budget_usd is not None:
        planned = replace(planned, budget_micros=usd_option(budget_usd, "--budget"))
    with opened(face, sim, scenario) as client:
        again = f"{file}{' --sim' if face.simulated else ''}"
        face.goes_on = (
            "interrupted; what was already sent goes on at the provider, and nothing is lost.\n"
            f"  go on:  canwait benchmark run {again}"
        )

        def approve(worst_micros: int, n_rows: int) -> bool:
            limit = money(planned.budget_micros)
            question = f"{len(planned.arms)} arms: worst case {money(worst_micros)} of {limit}. Send {n_rows} requests?"
            return face.ask(question, "--yes")

        until = None if timeout is None else client.clock.now() + timedelta(seconds=timeout)
        watch = _watch(face, client, f"{planned.name}.", len(planned.arms) * rows.num_rows)
        found = run_benchmark(client, planned, job, rows, approve=approve, until=until, watch=watch)
        made = report(client, planned, job, rows)
        value = {"report": as_json(made), "jobs": [told(client, f)[0] for f in found]}
        face.show("canwait.benchmark_run/1", value, text_of(made))
        if not made.finished:
            face.note(f"not finished; it goes on:   canwait benchmark run {again}")
        raise click.exceptions.Exit(0 if made.finished else 9)


def _watch(face: Face, client: Client, prefix: str, n_rows: int) -> Callable[[], None]:
    """Says on stderr how far the jobs of that prefix are, every ten seconds where it has changed."""
    said, due = "", client.clock.now() + _EVERY

    def watch() -> None:
        nonlocal said, due
        if (now := client.clock.now()) < due:
            return
        due = now + _EVERY
        found = [views.figures(client.ledger, job) for job in views.jobs(client.ledger) if job.startswith(prefix)]
        ended, spent = sum(f.rows - f.pending for f in found), sum(f.confirmed_micros for f in found)
        text = f"{ended:,} of {n_rows:,} answers have ended   {money(spent)} confirmed"
        if text != said:
            face.note(text)
        said = text

    return watch


@benchmark.command("report")
@click.argument("file", metavar="PLAN.YAML", type=click.Path(path_type=Path))
@simulated
@options()
def report(face: Face, file: Path, sim: bool) -> None:
    """Show what a benchmark has measured by now, with intervals, and what its rows are too few to tell."""
    from ..benchmark.plan import load_benchmark
    from ..benchmark.report import report as made_of

    planned, job, rows = load_benchmark(file)
    with opened(face, sim) as client:
        made = made_of(client, planned, job, rows)
    face.show("canwait.benchmark_report/1", {"report": as_json(made)}, text_of(made))


# --------------------------------------------------------------------------------------------------------- as JSON


def as_json(value: Any) -> Any:
    """A value of ours: micros become USD as decimal text (`spent_micros` -> `spent_usd`)."""
    if is_dataclass(value):
        return dict(_member(f.name, getattr(value, f.name)) for f in fields(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [as_json(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    return plain(value)


def _member(name: str, value: Any) -> tuple[str, Any]:
    if not name.endswith("_micros"):
        return name, as_json(value)
    usd = f"{value.scaleb(-6):.9f}" if isinstance(value, Decimal) else None if value is None else format_usd(value)
    return f"{name.removesuffix('_micros')}_usd", usd


# --------------------------------------------------------------------------------------------------------- as text


def text_of(made: Report) -> str:
    """The report for a person: every figure with the rows or batches it rests on."""
    return "\n".join(_lines(made)).rstrip()


def _lines(made: Report) -> Iterator[str]:
    state = "finished" if made.finished else "not finished: figures of what has ended by now"
    yield f"{made.name}   {made.rows:,} rows for each of {len(made.arms)} arms   {state}"
    yield f"spent {money(made.spent_micros)}, held {money(made.held_micros)}, of {money(made.budget_micros)}"
    right = "RIGHT (95 %)" if made.gold else "USABLE"
    yield from _section("ARMS", _ARM_COLUMNS | {right: _quality, "FOR EACH": _for_each}, made.arms)
    yield from _section("TURNAROUND of a batch; row by row, of a block of as many rows", _TURNAROUND_COLUMNS, made.arms)
    yield from _section("MONEY against the plan and the price book", _MONEY_COLUMNS, made.arms)
    for source in dict.fromkeys(f"{a.money.price_source}, {a.money.price_as_of}" for a in made.arms if a.ended):
        yield f"  prices: {printable(source)}"
    if made.comparisons:
        yield "\nCOMPARED on the same rows"
        for found in made.comparisons:
            yield from _compared(found)
    if made.cascade:
        yield "\nCASCADE"
        yield from _cascade(made)
    if made.notes:
        yield ""
    for note in made.notes:
        yield f"  note: {printable(note)}"


_Column = Mapping[str, "Callable[[ArmReport], str]"]


def _section(title: str, columns: _Column, arms: tuple[ArmReport, ...]) -> Iterator[str]:
    rows = [("", *columns), *((arm.arm, *(cell(arm) for cell in columns.values())) for arm in arms)]
    yield f"\n{title}"
    yield "\n".join(f"  {line}" for line in table(rows).splitlines())


def _quality(arm: ArmReport) -> str:
    if arm.right is None:
        return f"{arm.ok:,} of {arm.ended:,}"
    low, high = arm.right.interval
    return f"{arm.right.share:.1%} ({low:.1%}-{high:.1%}), n={arm.right.n:,}"


def _for_each(arm: ArmReport) -> str:
    """The cost of an accepted answer."""
    cost = arm.accepted_cost_micros
    return "-" if cost is None else f"${cost.scaleb(-6):.9f}"


def _failures(arm: ArmReport) -> str:
    causes = ", ".join(f"{printable(c)} {n:,}" for c, n in sorted(arm.causes.items(), key=lambda c: -c[1]))
    return f"{arm.ended - arm.ok:,} of {arm.ended:,}" + (f" ({causes})" if causes else "")


_ARM_COLUMNS: dict[str, Callable[[ArmReport], str]] = {
    "MODEL": lambda arm: printable(arm.model),
    "ENDED": lambda arm: f"{arm.ended:,} / {arm.rows:,}",
    "FAILED": _failures,
}
_TURNAROUND_COLUMNS: dict[str, Callable[[ArmReport], str]] = {
    "SENT": lambda arm: f"{arm.turnaround.n:,}",
    "BACK": lambda arm: f"{arm.turnaround.n_ended:,}",
    "NOT SEEN BACK": lambda arm: f"{arm.turnaround.n_censored:,}",
    "HALF BY": lambda arm: _time(arm.turnaround.median_s),
    "90 % BY": lambda arm: _time(arm.turnaround.p90_s),
    "NEXT, 90 %": lambda arm: _bound(arm.turnaround.next_90),
    "NEXT, 95 %": lambda arm: _bound(arm.turnaround.next_95),
    "WHOLE WAVE": lambda arm: _time(arm.turnaround.slowest_wave_s),
}
_MONEY_COLUMNS: dict[str, Callable[[ArmReport], str]] = {
    "CONFIRMED": lambda arm: money(arm.money.confirmed_micros),
    "OF PLAN": lambda arm: _times(arm.money.against_plan),
    "INVOICED": lambda arm: "not stated" if arm.money.invoiced_micros is None else money(arm.money.invoiced_micros),
    "OF BOOK": lambda arm: _times(arm.money.against_book),
    "A ROW": lambda arm: _row_cost(arm),
    "TOKENS IN": lambda arm: f"{arm.money.input_billed:,} of {arm.money.input_expected:,}",
    "OUT": lambda arm: f"{arm.money.output_billed:,} of {arm.money.output_expected:,}",
    "UNKNOWN": lambda arm: money(arm.money.unknown_micros),
}


def _row_cost(arm: ArmReport) -> str:
    mean, sd = arm.money.row_mean_micros, arm.money.row_sd_micros
    if mean is None:
        return "-"
    varies = "" if sd is None else f" +- {sd.scaleb(-6):.9f}"
    return f"${mean.scaleb(-6):.9f}{varies}, n={arm.money.n_row_bills:,}"


def _times(ratio: Decimal | None) -> str:
    return "-" if ratio is None else f"x {ratio:.3f}"


def _bound(bound: Bound) -> str:
    if bound.seconds is not None:
        return f"{_time(bound.seconds)}, n={bound.n:,}"
    return f"unknown (needs {bound.needs:,})" if bound.n < bound.needs else f"unknown ({bound.n_censored:,} out)"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not seen"
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def _compared(found: Comparison) -> Iterator[str]:
    same = f"{found.n_same / found.n:.1%} ({found.agreement.low:.1%}-{found.agreement.high:.1%})" if found.n else "-"
    yield f"  {found.candidate} against {found.reference}: answer alike on {same} of {found.n:,} rows"
    decision = found.decision
    if decision is None:
        return
    if decision.interval is not None and decision.loss is not None:
        low, high = decision.interval
        p = decision.pairs
        yield (
            f"    loses {decision.loss:+.1%} ({low:+.1%} to {high:+.1%}, 95 %): {p.only_large:,} rows right only in"
            f" {found.reference}, {p.only_small:,} only in {found.candidate}; McNemar p={decision.p_value:.3g}"
        )
    yield f"    {decision.words}"
    for stratum in found.strata:
        p = stratum.pairs
        loss = f"loses {p.loss:+.1%}" if p.n else "no rows"
        yield f"      {printable(stratum.value) or '(none)'}: {loss}, {p.n:,} rows"


def _cascade(made: Report) -> Iterator[str]:
    found = made.cascade
    assert found is not None
    t = found.threshold
    if t.score is None:
        yield (
            f"  nothing can be promised with {t.n:,} rows: escalate all to {found.large}, or benchmark more rows"
            f" (allowed is a loss of {t.epsilon:.1%}, {1 - t.delta:.0%} sure)"
        )
        return
    cost = "" if found.row_cost_micros is None else f"${found.row_cost_micros.scaleb(-6):.9f} a row"
    share = "" if found.against_large is None else f", {found.against_large:.0%} of {found.large} alone"
    yield f"  keep {found.small} where its score is {t.score:g} or more ({t.kept:.0%} of {t.n:,} rows), else {found.large}"
    sure = f"{1 - t.delta:.0%} sure that it loses at most {t.epsilon:.1%}"
    yield f"  {sure} (seen {t.loss:+.1%}, at most {t.upper:.1%}); {cost}{share}"
    if found.right is not None:
        yield (
            f"  right on {found.right:.1%} of them: {found.caught:.0%} of the wrong answers of {found.small} are asked again,"
            f" {found.passed:.0%} of its right ones are kept"
        )
