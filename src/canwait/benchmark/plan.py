"""What a benchmark will measure, and how that is read from its file, with every problem at its place.

An arm is a cell of {small, large} x {batch, standard}: one model on one tier, over the same rows as every other arm. A
plan names its rows in a file beside it, so what is measured does not change when the job's own rows do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ..document import Document, Fault, Unreadable, read_document
from ..errors import Problem, SpecError
from ..fields import Count, Duration, Line, Percent, Section, Usd, parse_model
from ..render import did_you_mean
from ..spec import load_job
from ..types import BudgetSpec, Job, ShardSpec, Source, Tier, Urgency

if TYPE_CHECKING:
    import pyarrow as pa


Role = Literal["small", "large"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One model on one tier."""

    role: Role
    tier: Tier

    def __str__(self) -> str:
        return f"{self.role}/{self.tier.value}"

    @property
    def name(self) -> str:
        return f"{self.role}-{self.tier.value}"


@dataclass(frozen=True, slots=True)
class Gold:
    """What is right: a column of the rows against a field of the answer."""

    column: str
    field: str | None  # None: the whole answer, which is text


@dataclass(frozen=True, slots=True)
class CascadeAim:
    """The promise a cascade shall keep."""

    score: str  # a field of the answer: how sure the small model is; more is surer
    loss: Decimal  # at most, against the large model alone
    sure: Decimal


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmarking plan."""

    name: str
    job: Path
    rows: Path
    models: Mapping[Role, tuple[str, str]]  # provider and model as on the wire
    arms: tuple[Arm, ...]
    budget_micros: int
    gold: Gold | None = None
    by: str | None = None  # the column of the strata
    cascade: CascadeAim | None = None
    margin: Decimal = Decimal("0.05")
    batches: int = 20  # of each arm and wave
    waves: int = 1
    every_s: int = 3600  # from wave to wave
    stop_failed: Decimal = Decimal("0.2")
    stop_after_s: int = 26 * 3600
    check_micros: int | None = None  # what checking one answer costs; None: nobody has said
    rejected_micros: int | None = None  # what a wrong answer costs downstream; None: nobody has said
    billed_micros: Mapping[str, int] = field(default_factory=dict)  # by arm, from the provider's invoice

    @property
    def owner(self) -> str:
        """Whose budget all arms share: `project:OWNER`."""
        return f"benchmark-{self.name}"


@dataclass(frozen=True, slots=True)
class Run:
    """One arm in one wave: a job of its own, and its part of the rows."""

    arm: Arm
    wave: int  # from 1
    job: Job
    table: pa.Table


def runs(benchmark: Benchmark, job: Job, table: pa.Table) -> Iterator[Run]:
    """The jobs of a benchmark, wave by wave. They share nothing with each other or with the job: each row is paid anew."""
    n, waves = table.num_rows, min(benchmark.waves, max(1, table.num_rows))
    for wave in range(1, waves + 1):
        start, end = n * (wave - 1) // waves, n * wave // waves
        part = table.slice(start, end - start)
        for arm in benchmark.arms:
            provider, model = benchmark.models[arm.role]
            batch = arm.tier is Tier.BATCH
            yield Run(
                arm,
                wave,
                replace(
                    job,
                    name=f"{benchmark.name}.{arm.name}.{wave}",
                    source=Source("frame:", job.source.key),
                    provider=provider,
                    model=model,
                    tiers=(arm.tier,),
                    urgency=Urgency.BATCH if batch else Urgency.NEAR_REAL_TIME,
                    deadline_s=benchmark.stop_after_s,
                    budget=BudgetSpec(benchmark.budget_micros, None, None),
                    shard=ShardSpec(max_rows=max(1, -(-part.num_rows // benchmark.batches))),
                    dedupe=False,
                    load=None,
                    quality=None,
                    freshness=None,
                    schedule=None,
                    owner=benchmark.owner,
                ),
                part,
            )


# -------------------------------------------------------------------------------------------------------- how it is read


class GoldSection(Section):
    column: Line = Field(description="a column of the rows")
    field: Line | None = Field(None, description="a field of the answer; null: the whole answer")


class CascadeSection(Section):
    score: Line = Field(description="a field of the answer: more is surer")
    loss: Percent = Field(description="how much the cascade may lose, like 2%")
    sure: Percent = Field("90%", validate_default=True, description="how sure that must be")


class ModelsSection(Section):
    small: Annotated[tuple[str, str], BeforeValidator(parse_model)] | None = Field(None, description="a model")
    large: Annotated[tuple[str, str], BeforeValidator(parse_model)] | None = Field(None, description="a model")

    @model_validator(mode="after")
    def _names_one(self) -> ModelsSection:
        if self.small is None and self.large is None:
            raise ValueError("names no model; expected small, large or both")
        return self


class BudgetSection(Section):
    usd: Usd = Field(description="US dollars, the limit of all arms together")


class StopSection(Section):
    failed: Percent = Field("20%", validate_default=True, description="stop an arm of which surely more fails")
    after: Duration = Field("26h", validate_default=True, description="stop watching")


class CostsSection(Section):
    check_usd: Usd | None = Field(None, description="checking one answer")
    rejected_usd: Usd | None = Field(None, description="what a wrong answer costs further on")


def _arm(value: object) -> Arm:
    roles: tuple[Role, ...] = ("small", "large")
    for role in roles:
        for tier in Tier:
            if value == str(arm := Arm(role, tier)):
                return arm
    raise ValueError(
        f"found {str(value)[:40]!r}; expected small/batch, small/standard, large/batch, large/standard ..."
    )


def _inside(share: Decimal) -> Decimal:
    if not 0 < share < 1:
        raise ValueError(f"found {share:%}; expected more than 0% and less than 100%")
    return share


class BenchmarkFile(Section):
    """The same rows through several models and tiers, under one budget."""

    version: Literal[1] = Field(description="1, the version of this format")
    name: Annotated[str, Strict(), StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,38}$")] = Field(
        description="durable: running the same name again goes on with it"
    )
    job: Line = Field(description="the job file")
    rows: Line = Field(description="the rows, a .parquet file")
    by: Line | None = Field(None, description="a column of the rows")
    gold: GoldSection | None = Field(None, description="what is right")
    models: ModelsSection = Field(description="small, large or both")
    arms: Annotated[list[Annotated[Any, AfterValidator(_arm)]], Field(min_length=1)] = Field(description="model/tier")
    margin: Annotated[Percent, AfterValidator(_inside)] = Field(description="how much worse the small model may be")
    cascade: CascadeSection | None = Field(None, description="small first, large where its score is low")
    batches: Annotated[Count, Field(le=1000)] = Field(20, description="batches of each arm and wave")
    waves: Annotated[Count, Field(le=100)] = Field(1, description="parts of the rows that are sent apart")
    every: Duration = Field("1h", validate_default=True, description="from wave to wave")
    budget: BudgetSection = Field(description="the hard limit")
    stop: StopSection = StopSection.model_construct(failed=Decimal("0.2"), after=26 * 3600)
    costs: CostsSection = CostsSection.model_construct()
    billed: dict[str, Usd] = Field({}, description="by arm, from the provider's invoice")


def load_benchmark(path: Path) -> tuple[Benchmark, Job, pa.Table]:
    """A plan, its job and its rows. Raises SpecError with every problem at file:line:column."""
    try:
        document = read_document(path)
    except Unreadable as error:
        line, column = error.at or (None, None)
        hint = "`canwait benchmark plan JOB.yaml` writes one"
        raise SpecError([Problem(str(path), line, column, None, str(error))], hint=hint) from None
    except RecursionError:
        raise SpecError([Problem(str(path), None, None, None, "nested too deeply")]) from None
    try:
        read = BenchmarkFile.model_validate(document.tree)
    except ValidationError as error:
        document.faults += [_fault(details) for details in error.errors(include_url=False)]
        raise SpecError(document.problems()) from None
    benchmark = _benchmark(read, document)
    if not benchmark.job.is_file():
        document.faults.append(Fault(("job",), f"no such job file: {benchmark.job}"))
    table = _rows(benchmark.rows, document)
    if document.faults or table is None:
        raise SpecError(document.problems())
    job = load_job(benchmark.job)
    _check(benchmark, job, table.column_names, document)
    if document.faults:
        raise SpecError(document.problems())
    return benchmark, job, table


def _benchmark(read: BenchmarkFile, document: Document) -> Benchmark:
    models: dict[Role, tuple[str, str]] = {}
    if read.models.small:
        models["small"] = read.models.small
    if read.models.large:
        models["large"] = read.models.large
    for i, arm in enumerate(read.arms):
        if arm.role not in models:
            document.faults.append(Fault(("arms", i), f"there is no {arm.role} model under `models`"))
        if arm in read.arms[:i]:
            document.faults.append(Fault(("arms", i), "given twice"))
    for name in read.billed:
        if name not in map(str, read.arms):
            document.faults.append(Fault(("billed", name), "is no arm of this plan", of_key=True))
    gold, aim = read.gold, read.cascade
    return Benchmark(
        name=read.name,
        job=document.base_dir / read.job,
        rows=document.base_dir / read.rows,
        models=models,
        arms=tuple(read.arms),
        budget_micros=read.budget.usd,
        gold=Gold(gold.column, gold.field) if gold else None,
        by=read.by,
        cascade=CascadeAim(aim.score, aim.loss, aim.sure) if aim else None,
        margin=read.margin,
        batches=read.batches,
        waves=read.waves,
        every_s=read.every,
        stop_failed=read.stop.failed,
        stop_after_s=read.stop.after,
        check_micros=read.costs.check_usd,
        rejected_micros=read.costs.rejected_usd,
        billed_micros=dict(read.billed),
    )


def _rows(path: Path, document: Document) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else "no Parquet file"
        document.faults.append(Fault(("rows",), f"{why}: {path}; `canwait benchmark plan` draws the rows"))
        return None


def _check(benchmark: Benchmark, job: Job, columns: Sequence[str], document: Document) -> None:
    """What a plan names must be there: columns in its rows, fields in the answers."""
    gold, aim = benchmark.gold, benchmark.cascade
    wanted = [(("by",), benchmark.by), (("gold", "column"), gold.column if gold else None)]
    for loc, column in wanted:
        if column is not None and column not in columns:
            why = f"the rows have no column '{column}'{did_you_mean(column, list(columns))}"
            document.faults.append(Fault(loc, why))
    if job.source.key not in columns:
        document.faults.append(Fault(("rows",), f"have no column '{job.source.key}', the key of the job"))
    known = answer_fields(job)
    fields = [(("gold", "field"), gold.field if gold else None), (("cascade", "score"), aim.score if aim else None)]
    for loc, name in fields:
        if name is not None and name not in known:
            why = f"the job's answers have no field '{name}'{did_you_mean(name, known)}"
            document.faults.append(Fault(loc, why))
    if gold is not None and gold.field is None and known:
        document.faults.append(Fault(("gold",), f"`field` is required: one of {', '.join(known)}"))
    if aim is not None and {arm.role for arm in benchmark.arms} != {"small", "large"}:
        document.faults.append(Fault(("cascade",), "needs an arm of the small and one of the large model"))
    if aim is not None and gold is None:
        document.faults.append(Fault(("cascade",), "needs `gold`: without labels nothing can be promised"))
    if aim is not None and not (0 < aim.loss < 1 and Decimal("0.5") < aim.sure < 1):
        document.faults.append(Fault(("cascade",), "expected a loss inside 0% to 100%, and sure above 50%, below 100%"))


def answer_fields(job: Job) -> list[str]:
    """The fields of the job's output schema; none where an answer is text."""
    properties = (job.output_schema or {}).get("properties")
    return list(properties) if isinstance(properties, Mapping) else []


def _fault(error: ErrorDetails) -> Fault:
    """A finding of pydantic in our words."""
    loc, kind, context = error["loc"], error["type"], error.get("ctx", {})
    if kind == "missing":
        return Fault(loc, "is required", absent=True)
    if kind == "extra_forbidden":
        names = list(BenchmarkFile.model_fields)
        return Fault(loc, f"unknown field{did_you_mean(str(loc[-1]), names) if len(loc) == 1 else ''}", of_key=True)
    if kind == "value_error":
        return Fault(loc, str(context["error"]))
    return Fault(loc, f"found {json.dumps(error['input'], default=str)[:40]}; {_lower(error['msg'])}")


def _lower(message: str) -> str:
    message = re.sub("^Input should", "it should", message)
    return message[:1].lower() + message[1:]
