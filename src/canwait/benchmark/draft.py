"""A benchmarking plan from a job: rows drawn, sizes for the margin asked, every arm priced, written as YAML to be edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from .. import views
from ..compare import power, rows_needed
from ..errors import Problem, SpecError
from ..fields import parse_model
from ..price import format_usd
from ..render import did_you_mean
from ..scalars import quoted
from ..turnaround import batches_needed
from ..types import Job, Plan, Tier
from .plan import Arm, Benchmark, CascadeAim, Gold, Role, answer_fields
from .rows import Drawn, draw, must_have
from .run import handles, plans

if TYPE_CHECKING:
    from ..client import Client

_CENT = 10_000  # micros
_NAME_CHARS = 34  # of a benchmark: an arm and a wave are added, and a job's name has 63
_SURE_SHARE = Decimal("0.95")  # of batches: what the turnaround's bound is asked for


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user wants to know."""

    small: str | None = None
    large: str | None = None
    gold: str | None = None
    field: str | None = None
    by: str | None = None
    score: str | None = None
    margin: Decimal = Decimal("0.05")
    discordant: Decimal = Decimal("0.15")
    n: int | None = None  # None: what the margin needs
    waves: int = 1
    every_s: int = 3600
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan and its rows, not written yet."""

    benchmark: Benchmark
    drawn: Drawn
    planned: Mapping[Arm, Sequence[Plan]]  # wave by wave
    wanted: int  # rows
    text: str

    def write(self, plan_file: Path, rows_file: Path) -> None:
        """The rows first: a plan that is there is whole."""
        import pyarrow.parquet as pq

        pq.write_table(self.drawn.table, rows_file)
        plan_file.write_text(self.text, encoding="utf-8")


def draft(client: Client, job_file: str | Path, asked: Asked, *, job: Path, rows: Path) -> Draft:
    """Draw rows and price every arm by the real planner. Never spends. `job` and `rows` are what the plan calls its files.

    Raises SpecError, SourceError and UnknownPrice as planning a job does.
    """
    handle = client.job(job_file)
    models, arms = arms_of(handle.value, asked.small, asked.large)
    aim = None
    if asked.score is not None:
        aim = CascadeAim(_field_of(handle.value, "--score", asked.score), Decimal("0.02"), Decimal("0.9"))
        if asked.gold is None or len(models) < 2:
            why = "a cascade needs labels and two models; expected --gold, and --small or --large"
            raise SpecError([Problem("--score", None, None, None, why)])
    for name, share in (("--margin", asked.margin), ("--discordant", asked.discordant)):
        if not 0 < share < 1:
            raise SpecError([Problem(name, None, None, None, f"found {share:%}; expected above 0% and below 100%")])
    must_have([name for name in (asked.gold, asked.by) if name is not None], handle.source)
    benchmark = Benchmark(
        name=_free_name(client, handle.name[:_NAME_CHARS]),
        job=job,
        rows=rows,
        models=models,
        arms=arms,
        budget_micros=0,
        gold=gold_for(handle.value, asked.gold, asked.field) if asked.gold is not None else None,
        by=asked.by,
        cascade=aim,
        margin=asked.margin,
        waves=asked.waves,
        every_s=asked.every_s,
    )
    wanted = asked.n or sample_size(asked.margin, asked.discordant)
    drawn = draw(handle.value, handle.source, wanted, seed=asked.seed, by=asked.by, gold=asked.gold)
    planned = plans(handles(client, benchmark, handle.value, drawn.table))
    worst = sum(plan.worst_micros for of_arm in planned.values() for plan in of_arm)
    benchmark = replace(benchmark, budget_micros=-(-worst // _CENT) * _CENT)
    text = text_of(benchmark, drawn, planned, seed=asked.seed, discordant=asked.discordant, wanted=wanted)
    return Draft(benchmark, drawn, planned, wanted, text)


def _free_name(client: Client, name: str) -> str:
    """The name, or the first of name-2, name-3 ... that no benchmark of this ledger has: its jobs are not to be mixed."""
    taken = {job.rsplit(".", 2)[0] for job in views.jobs(client.ledger) if job.count(".") > 1}
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return next(free for free in names if free not in taken)


def arms_of(job: Job, small: str | None, large: str | None) -> tuple[dict[Role, tuple[str, str]], tuple[Arm, ...]]:
    """The cells to measure: the job's model is the large one where a small one is named, and the other way round; each
    on batch and, for comparison, row by row. Raises SpecError."""
    models: dict[Role, tuple[str, str]] = {}
    asked: tuple[tuple[Role, str | None], ...] = (("small", small), ("large", large))
    for role, text in asked:
        if text is not None:
            try:
                models[role] = parse_model(text)
            except ValueError as error:
                raise SpecError([Problem(f"--{role}", None, None, None, str(error))]) from error
    if len(models) < 2:
        models.setdefault("small" if "large" in models else "large", (job.provider, job.model))
    arms = [
        Arm(role, tier)
        for role in ("small", "large")
        if role in models
        for tier in ((Tier.OWN,) if models[role][0] in ("own", "local") else (Tier.BATCH, Tier.STANDARD))
    ]
    return models, tuple(arms)


def sample_size(margin: Decimal, discordant: Decimal) -> int:
    """Rows to draw: enough to tell at this margin, and for one batch more than the turnaround's bound needs."""
    return max(rows_needed(margin, discordant), batches_needed(_SURE_SHARE) + 1)


def gold_for(job: Job, column: str, name: str | None) -> Gold:
    """The field of the answer that a gold column is held against: the one named, else the one called alike, else the only
    one. Raises SpecError."""
    fields = answer_fields(job)
    if name is None and fields:
        name = column if column in fields else fields[0] if len(fields) == 1 else None
        if name is None:
            why = f"which field of the answer is `{column}` held against? expected --field, one of {', '.join(fields)}"
            raise SpecError([Problem("--field", None, None, None, why)])
    return Gold(column, None if name is None else _field_of(job, "--field", name))


def _field_of(job: Job, option: str, name: str) -> str:
    fields = answer_fields(job)
    if name not in fields:
        why = f"the job's answers have no field '{name}'{did_you_mean(name, fields)}"
        raise SpecError([Problem(option, None, None, None, why)])
    return name


# ------------------------------------------------------------------------------------------------------ how it is written


def text_of(
    benchmark: Benchmark,
    drawn: Drawn,
    planned: Mapping[Arm, Sequence[Plan]],
    *,
    seed: int,
    discordant: Decimal,
    wanted: int,
) -> str:
    """The plan as YAML for a person to read and edit. Everything in it was counted or planned, or says that it is missing."""
    b, gold, aim = benchmark, benchmark.gold, benchmark.cascade
    promise = f"{{score: {_y(aim.score)}, loss: {_percent(aim.loss)}, sure: {_percent(aim.sure)}}}" if aim else "null"
    lines = [
        ("", "A benchmarking plan, drafted by `canwait benchmark plan`. Nothing was sent. Edit it, then:"),
        ("", "  canwait benchmark run THIS_FILE      every arm side by side, under the one budget below; safe to repeat"),
        ("", "  canwait benchmark report THIS_FILE   what came of it, also while it runs"),
        ("version: 1", ""),
        (f"name: {_y(b.name)}", f"its jobs are {b.name}.ARM.WAVE, their budget is project:{b.owner}"),
        (f"job: {_y(str(b.job))}", "prompt, schema, bounds and params of every arm"),
        (f"rows: {_y(str(b.rows))}", "the same for every arm:"),
        *(("", f"    {note}") for note in _sample(b, drawn, seed, discordant, wanted)),
        (f"by: {_y(b.by)}", "a column of the rows: figures for each of its values; null: none"),
        (
            "gold: " + (f"{{column: {_y(gold.column)}, field: {_y(gold.field)}}}" if gold else "null"),
            "what is right: a column against a field of the answer; null: only agreement of the arms is measured",
        ),
        ("models:", ""),
        *((f"  {role}: {_y('/'.join(model))}", "") for role, model in b.models.items()),
        ("arms:", "model/tier; leave out what you need not know"),
        *((f"  - {arm}", _planned(planned[arm])) for arm in b.arms),
        (f"margin: {_percent(b.margin)}", "how much worse the small model may be, in points of right answers"),
        (f"cascade: {promise}", "small first, large where its score is low: {score: FIELD, loss: 2%, sure: 90%}"),
        (f"batches: {b.batches}", "of each arm and wave: 9, 19, 99 that came back tell when 90, 95, 99 % are back"),
        (f"waves: {b.waves}", "parts of the rows sent apart: no provider is as fast at every hour"),
        (f"every: {_duration(b.every_s)}", "from wave to wave"),
        (f"budget: {{usd: {format_usd(b.budget_micros)}}}", "the hard limit of all arms together: each row once, at its worst"),
        ("stop:", ""),
        (f"  failed: {_percent(b.stop_failed)}", "an arm is stopped once surely more than this fails"),
        (f"  after: {_duration(b.stop_after_s)}", "what is still out then counts as that: not back yet (censored)"),
        ("costs:", "null: nobody has said, so it is in no figure"),
        (f"  check_usd: {_usd(b.check_micros)}", "checking one answer"),
        (f"  rejected_usd: {_usd(b.rejected_micros)}", "what a wrong answer costs further on"),
        ("billed: {}", "by arm, from the provider's invoice: {small/batch: 0.43}; missing: only tokens x price book"),
        ("", "Measured: turnaround of each batch, tokens and money against this plan, failures by cause, right answers by"),
        ("", "paired comparison with 95 % intervals, cost for each right answer."),
    ]  # fmt: skip
    return "".join(f"{text:<42}  # {note}\n" if text and note else f"{text or f'# {note}'}\n" for text, note in lines)


def _sample(b: Benchmark, drawn: Drawn, seed: int, discordant: Decimal, wanted: int) -> Iterator[str]:
    """What the rows are, and whether they are enough."""
    n, about = drawn.table.num_rows, "" if drawn.counted else "about "
    yield f"{n:,} of {about}{drawn.n_different:,} different requests, drawn at random (seed {seed})"
    if b.by:
        yield "by stratum: " + ", ".join(f"{_y(name[:40])} {k:,}" for name, k in drawn.strata.items())
    if drawn.n_unlabelled:
        yield f"left out: {drawn.n_unlabelled:,} rows without a gold label"
    if drawn.n_unusable:
        yield f"left out: {drawn.n_unusable:,} rows that cannot become requests"
    if n < wanted:
        yield f"{wanted:,} were wanted: there are no more, so the report may say that they are not enough to tell"
        tells = power(n, float(b.margin), float(discordant))
        yield f"with so many an equally good one passes {tells:.0%} of the time, if {_percent(discordant)} are right in one only"
    else:
        yield f"enough at this margin if at most {_percent(discordant)} of them are right in one arm only: a guess,"
        yield "and the report says what was seen"


def _planned(plans: Sequence[Plan]) -> str:
    """What an arm costs, over all its waves."""
    expected, worst = (sum(getattr(p, f"{name}_micros") for p in plans) for name in ("expected", "worst"))
    tokens, price = plans[0].tokens_kind, plans[0].price
    source = f"{_comment(price.source)}, {price.as_of}"
    return f"${format_usd(expected)} expected, ${format_usd(worst)} at worst ({tokens} tokens; {source})"


def _y(value: str | None) -> str:
    """Text as YAML."""
    return "null" if value is None else quoted(value)


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _usd(micros: int | None) -> str:
    return "null" if micros is None else format_usd(micros)


def _percent(share: Decimal) -> str:
    return f"{(share * 100).normalize():f}%"


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
