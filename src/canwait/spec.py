"""A job file, or the same as a Python mapping -> a Job. Every problem at once, each with its place.

YAML, JSON and TOML hold one model, and document.py reads them. Its numbers with a point are decimals, so `usd: 0.1` is
exactly ten cents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jsonschema_rs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from . import language, types
from .addresses import fault_of, kind_of, local_path, shown
from .channels import fault_of as target_fault
from .checks import OURS, function_of, judge_prompt, rule_fault
from .document import Document, Fault, Unreadable, document_of, read_document, read_text
from .errors import Problem, SpecError
from .fields import (
    Count,
    Duration,
    Format,
    Line,
    Percent,
    Query,
    Section,
    Usd,
    as_found,
    in_short,
    is_number,
    parse_model,
)
from .gate import needed
from .importing import imported
from .notices import KINDS
from .render import ROLES, Loc, bound_fault, did_you_mean, dotted, endpoint_fault, nearest, params_faults, prompt_faults
from .structured import structured_output
from .types import Endpoint

SCHEMA_ID = "urn:canwait:schema:job:1"


def load_job(path: Path, text: str | None = None, *, output: type[BaseModel] | None = None) -> types.Job:
    """The job of a .yaml, .json or .toml file. Raises SpecError.

    `text` stands in for the file's content (a job from stdin); `output` replaces the file's own.
    """
    try:
        return _job(read_document(path, text), output)
    except Unreadable as error:
        line, column = error.at or (None, None)
        raise SpecError([Problem(str(path), line, column, None, str(error))]) from None
    except RecursionError:
        raise SpecError([Problem(str(path), None, None, None, "nested too deeply")]) from None


def job_from_dict(d: Mapping[str, Any], *, name_of_file: str = "<job>", base_dir: Path) -> types.Job:
    """The same model from Python; `output` may also be a pydantic model. Raises SpecError."""
    output = d.get("output")
    if isinstance(output, type) and issubclass(output, BaseModel):
        return _job(document_of({**d, "output": None}, name_of_file, base_dir), output)
    return _job(document_of(d, name_of_file, base_dir), None)


def problems_at(file: Path | None, field: str, messages: Iterable[str]) -> list[Problem]:
    """What was found wrong with a field after its file had been read, at its place there; `file`: None for a job without.

    `field`: with a dot for a field of a section.
    """
    if file is None:
        return [Problem("<job>", None, None, field, message) for message in messages]
    document = read_document(file)
    document.faults = [Fault(tuple(field.split(".")), message) for message in messages]
    return document.problems()


def job_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a job file, as published in schemas/job.v1.json."""
    schema = JobFile.model_json_schema(schema_generator=_Untitled)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}


def _job(document: Document, output: type[BaseModel] | None) -> types.Job:
    if output is not None and isinstance(document.tree, dict):
        document.tree["output"] = output
    unusable = [fault.loc for fault in document.faults if not fault.of_key]
    try:
        job = JobFile.model_validate(document.tree, context=document)
    except ValidationError as error:
        found = [_fault(details) for details in error.errors(include_url=False)]
        meant = {(*fault.loc[:-1], fault.meant) for fault in found if fault.meant}  # what is misspelt is not missing
        follow = {loc[: n + 1] for loc in unusable for n in range(len(loc))}  # what is unusable is not also wrong
        document.faults += [f for f in found if f.loc not in follow and not (f.absent and f.loc in meant)]
    if document.faults:
        raise SpecError(document.problems())
    return job.to_job(document.base_dir)


# ------------------------------------------------------------------------------------------------------------ the model


class _Untitled(GenerateJsonSchema):
    """Without a title that repeats the name of every field."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def _document(info: ValidationInfo) -> Document:
    assert isinstance(info.context, Document)
    return info.context


def _beside_a_database(name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of what holds where this field is given."""
    given = {"properties": {name: {"type": "string"}}, "required": [name]}
    return {"if": given, "then": {"properties": dict(properties)}}


def _address(uri: str, beside: str, info: ValidationInfo) -> str:
    """Raises ValueError. `beside`: what a database needs and nothing else takes."""
    if not info.data.get(beside) and kind_of(uri) in ("sqlite", "postgres"):
        raise ValueError(f"'{shown(uri)}' is a database; expected `{beside}` beside it")
    if fault := fault_of(uri, database=bool(info.data.get(beside))):
        raise ValueError(fault)
    return uri


def _of_a_file(format: str | None, beside: str, info: ValidationInfo) -> str | None:
    if format is not None and info.data.get(beside):
        raise ValueError(f"rows of a database have no format; leave it out beside `{beside}`")
    return format


class SourceSection(Section):
    model_config = ConfigDict(json_schema_extra=_beside_a_database("sql", {"format": {"type": "null"}}))

    sql: Query | None = Field(None, description="a query, if uri is a database: one SELECT or WITH")
    uri: Line = Field(description="a path from the job file, - for standard input, or an address (docs/rows.md)")
    key: Line | None = Field(None, description="the column that names a row")
    format: Format | None = Field(None, description="by the name's ending when left out")

    @field_validator("uri")
    @classmethod
    def _leads_somewhere(cls, uri: str, info: ValidationInfo) -> str:
        return _address(uri, "sql", info)

    @field_validator("format")
    @classmethod
    def _is_of_a_file(cls, format: str | None, info: ValidationInfo) -> str | None:
        return _of_a_file(format, "sql", info)


class MessageSection(Section):
    role: Annotated[str, Strict()] = Field(description="who speaks", json_schema_extra={"enum": list(ROLES)})
    content: Annotated[str, Strict()] = Field(description="a Jinja template, or the path of a file that holds one")


class RetrySection(Section):
    attempts: Annotated[int, Strict(), Field(ge=1, le=10)] = Field(3, description="how often one row may be sent")


class ShardSection(Section):
    max_rows: Count | None = Field(None, description="rows of one provider batch, at most")
    by: Line | None = Field(None, description="a column whose values are kept together")


class BudgetSection(Section):
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [unit]} for unit in ("usd", "tokens", "rows")]})

    usd: Usd | None = Field(None, description="US dollars, at most 6 decimals")
    tokens: Count | None = Field(None, description="input and output tokens together")
    rows: Count | None = Field(None, description="rows that may be sent")
    on_exceed: Literal["refuse", "trim", "ask"] = Field("refuse", description="what becomes of a larger plan")
    tell_at: tuple[Percent, ...] = Field((), description="shares of usd at which it is told; 80% and 100% if left out")

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetSection:
        if self.usd is None and self.tokens is None and self.rows is None:
            raise ValueError("limits nothing; expected usd, tokens or rows")
        if self.tell_at and self.usd is None:
            raise ValueError("tell_at is of a limit in US dollars; expected usd beside it")
        return self


class JudgeBudget(Section):
    usd: Usd = Field(description="US dollars, at most 6 decimals")


class LoadSection(Section):
    model_config = ConfigDict(
        json_schema_extra=_beside_a_database(
            "table", {"format": {"type": "null"}, "mode": {"enum": ["merge", "replace"]}}
        )
    )

    table: Line | None = Field(None, description="TABLE or SCHEMA.TABLE, if `to` is a database")
    to: Line = Field(description="a path from the job file, or an address (docs/rows.md)")
    mode: Literal["merge", "append", "replace"] = Field("merge", description="merge: by the key, safe to repeat")
    format: Format | None = Field(None, description="by the name's ending when left out")

    @field_validator("to")
    @classmethod
    def _leads_somewhere(cls, to: str, info: ValidationInfo) -> str:
        return _address(to, "table", info)

    @field_validator("mode")
    @classmethod
    def _fits_a_table(cls, mode: str, info: ValidationInfo) -> str:
        if mode == "append" and info.data.get("table"):
            raise ValueError("a table has one row per key; expected merge or replace")
        return mode

    @field_validator("format")
    @classmethod
    def _is_of_a_file(cls, format: str | None, info: ValidationInfo) -> str | None:
        return _of_a_file(format, "table", info)


_PRESETS = {  # methods.md 5.1: the bad rate that is refused, and how surely
    "relaxed": (Decimal("0.08"), Decimal("0.90")),
    "standard": (Decimal("0.05"), Decimal("0.90")),
    "strict": (Decimal("0.02"), Decimal("0.90")),
    "zero": (Decimal("0.05"), Decimal("0.95")),
}


def _language(code: str) -> str:
    if code in language.CODES:
        return code
    known = sorted(language.CODES)
    meant = re.split("[-_]", code.lower())[0]
    hint = f"; did you mean '{meant}'?" if meant in known else did_you_mean(code, known)
    raise ValueError(f"found {as_found(code)}; expected ISO 639-1{hint or ': ' + ' '.join(known)}")


_CODES = {"pattern": f"^({'|'.join(sorted(language.CODES))})$"}
Language = Annotated[str, Strict(), AfterValidator(_language), Field(json_schema_extra=_CODES)]


class JudgeSection(Section):
    model: Annotated[tuple[str, str], BeforeValidator(parse_model, Line)] = Field(description="as `model` of the job")
    prompt: Annotated[str, Strict(), AfterValidator(judge_prompt)] = Field(description="shows `input`, `answer`, `key`")
    max_output_tokens: Count = Field(64, description="the bound of one verdict")
    budget: JudgeBudget = Field(description="its own limit, below those of the project and the month")
    tier: types.Tier | None = Field(None, description="what is bought; the provider's own default when left out")
    rows: Annotated[int, Strict(), Field(ge=100, le=5_000)] = Field(2_000, description="what it looks at, at most")


class QualitySection(Section):
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [k]} for k in ("refuse_if_bad_rate", "preset")]}
    )

    preset: Literal["relaxed", "standard", "strict", "zero"] | None = Field(
        None, description="a sample of fixed size instead: 2/8%, 1/5%, .5/2% good/bad rows, or no bad row at all"
    )
    refuse_if_bad_rate: Percent | None = Field(
        None, description="results with this share of bad rows are refused, like 10%"
    )
    sure: Percent | None = Field(None, description="how often such results must be caught; 90% when left out")
    by: Literal["human", "rule", "judge"] = Field("human", description="who judges: people a sample, rules every row")
    judge: JudgeSection | None = Field(None, description="the judge model, by: judge; its word opens no gate")
    rows: Annotated[int, Strict(), Field(ge=1, le=10_000)] | None = Field(
        None, description="rows a person is asked to judge at most, of each stratum; 60 when left out"
    )
    strata: Line | None = Field(None, description="a field of the answer, each value of which is judged for itself")
    on_refuse: Literal["quarantine", "load_accepted_strata", "rerun"] = Field(
        "quarantine",
        description="a refused lot: none of it is loaded, its accepted strata are, or it is asked again once",
    )
    rules: Annotated[list[Line], Field(max_length=100)] = Field(
        [], description="what every answer must hold: expressions over its fields, or package.module:function"
    )
    language: Annotated[tuple[Language, ...], in_short(lambda text: [text], Language | list[Language])] = Field(
        (), description="what answers must be written in: en, or a list like [en, de]; needs canwait[language]"
    )
    canary: Literal["checked", "judged"] = Field(
        "checked", description="the first shard: freely checked, or accepted by whoever judges before more is sent"
    )

    @field_validator("refuse_if_bad_rate", "sure")
    @classmethod
    def _inside(cls, share: Decimal | None) -> Decimal | None:
        if share is not None and not 0 < share < 1:
            raise ValueError(f"found {share:%}; expected more than 0% and less than 100%")
        return share

    @model_validator(mode="after")
    def _holds_together(self) -> QualitySection:
        if self.refuse_if_bad_rate is None and self.preset is None:
            raise ValueError("says not what it refuses; expected refuse_if_bad_rate, like 10%, or a preset")
        if self.preset not in (None, "zero") and (self.refuse_if_bad_rate or self.sure):
            raise ValueError(f"the preset '{self.preset}' says what it refuses; leave refuse_if_bad_rate and sure out")
        if self.preset and self.rows:
            raise ValueError(f"the preset '{self.preset}' says how many rows are judged; leave rows out")
        if self.by == "rule" and not (self.rules or self.language):
            raise ValueError("nothing judges: by: rule needs `rules` or `language`")
        if self.by == "rule" and (self.rows or self.strata or self.preset):
            raise ValueError("rules judge every row; leave rows, strata and preset out, or say by: human")
        if (self.by == "judge") != (self.judge is not None):
            raise ValueError("by: judge and `judge` go together: who chooses the rows that people look at")
        if self.judge and (self.strata or self.preset or (self.rows or 0) > 500):
            raise ValueError("a judge model's word is the stratum; leave strata, preset and rows over 500 out")
        if self.on_refuse == "load_accepted_strata" and not self.strata:
            raise ValueError("there are no strata to accept; expected `strata`")
        gate = self.to_quality()
        least = needed(float(gate.refuse_if_bad_rate), float(gate.sure))
        if self.rows and self.rows < least:
            raise ValueError(f"{self.rows} rows cannot be {gate.sure:%} sure; expected rows of at least {least}")
        return self

    def to_quality(self) -> types.Quality:
        rate, sure = _PRESETS[self.preset] if self.preset else (None, Decimal("0.90"))
        refused = self.refuse_if_bad_rate or rate
        assert refused is not None
        j = self.judge
        judge = types.JudgeModel(*j.model, j.prompt, j.max_output_tokens, j.budget.usd, j.tier, j.rows) if j else None
        rules = (*self.rules, *([language.rule_of(self.language)] if self.language else []))
        return types.Quality(
            refused, self.sure or sure, self.by, self.rows, self.preset, self.strata, self.on_refuse,
            rules, judge, self.canary,
        )  # fmt: skip


class FreshnessSection(Section):
    max_age: Duration = Field(description="how old an answer may be, counted from its input, like 24h")
    on_stale: Literal["serve", "block", "live"] = Field("block", description="what a reader gets past it")


class FallbackSection(Section):
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [k]} for k in ("rescue", "at_deadline")]})

    rescue: Literal["standard", "flex"] | None = Field(
        None, description="the tier that what would be late is moved to, before the deadline"
    )
    rows_per_s: Annotated[float, BeforeValidator(lambda value: _rate(value), Annotated[float, Field(gt=0)])] | None = (
        Field(None, description="rows a second that the account's limit allows there; past runs tell it too")
    )
    at_deadline: types.AtDeadline | None = Field(
        None, description="what is done with a job that is not done by then; what is out is waited for when left out"
    )

    @model_validator(mode="after")
    def _does_something(self) -> FallbackSection:
        if self.rescue is None and self.at_deadline is None:
            raise ValueError("does nothing; expected rescue, a tier, or at_deadline")
        if self.rescue is None and self.rows_per_s is not None:
            raise ValueError("rows_per_s is of a rescue; expected `rescue` beside it")
        return self

    def to_fallback(self) -> types.Fallback:
        return types.Fallback(types.Tier(self.rescue) if self.rescue else None, self.rows_per_s, self.at_deadline)


class NotifySection(Section):
    to: Line = Field(description="https://HOST/PATH, mailto:NAME@HOST or apprise:VARIABLE (docs/notifications.md)")
    secret: Annotated[str, Strict(), StringConstraints(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="the variable that holds the secret a webhook is signed with; CANWAIT_WEBHOOK_SECRET if left out",
    )
    kinds: list[Annotated[str, Strict(), Field(json_schema_extra={"enum": list(KINDS)})]] = Field(
        [], description="what of; everything when left out"
    )

    @model_validator(mode="before")
    @classmethod
    def in_short(cls, value: object) -> object:
        return {"to": value} if isinstance(value, str) else value

    @field_validator("to")
    @classmethod
    def _can_be_told(cls, to: str) -> str:
        if fault := target_fault(to):
            raise ValueError(fault)
        return to

    @field_validator("secret")
    @classmethod
    def _signs(cls, secret: str | None, info: ValidationInfo) -> str | None:
        if secret is not None and not str(info.data.get("to", "http")).startswith("http"):
            raise ValueError("only a webhook is signed; leave it out")
        return secret

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: list[str]) -> list[str]:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(
                f"found '{unknown[0]}'; expected {', '.join(KINDS)}{did_you_mean(unknown[0], list(KINDS))}"
            )
        return kinds


class JobFile(Section):
    """LLM work that can wait: rows, a prompt, a model, a deadline and a budget, under a durable name."""

    model_config = ConfigDict(
        title="canwait job",
        json_schema_extra={
            "anyOf": [
                {"required": ["key"]},
                {"required": ["source"], "properties": {"source": {"type": "object", "required": ["key"]}}},
            ],
            "if": {"properties": {"endpoint": {"const": "embeddings"}}, "required": ["endpoint"]},
            "then": {"properties": {key: {"type": "null"} for key in ("max_output_tokens", "system", "output")}},
            "else": {"required": ["max_output_tokens"], "properties": {"max_output_tokens": {"type": "integer"}}},
        },
    )

    editor: Line | None = Field(None, alias="$schema", description="for editors; not read")
    version: Literal[1] = Field(description="1, the version of this format")
    name: Annotated[str, Strict(), StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = Field(
        description="durable: running the same name again goes on with it"
    )
    source: Annotated[SourceSection, in_short(lambda text: {"uri": text}, Line | SourceSection)] = Field(
        description="where rows come from"
    )
    key: Line | None = Field(None, validate_default=True, description="the column that names a row, if not source.key")
    model: Annotated[tuple[str, str], BeforeValidator(parse_model, Line)] = Field(
        description="openai/NAME, anthropic/NAME, own/NAME or local/NAME"
    )
    endpoint: Endpoint = Field(Endpoint.CHAT, description="what is asked for: chat, responses or embeddings")
    system: Annotated[str, Strict()] | None = Field(None, description="a system message in front of the prompt")
    prompt: Annotated[
        tuple[MessageSection, ...],
        in_short(
            lambda text: [{"role": "user", "content": text}], str | Annotated[list[MessageSection], Field(min_length=1)]
        ),
    ] = Field(description="a Jinja template over the row, the path of a file that holds one, or a list of messages")
    output: dict[str, Any] | None = Field(
        None, description="JSON Schema of an answer: inline, the path of a .json file, or package.module:PydanticModel"
    )
    tier: Annotated[tuple[types.Tier, ...], in_short(lambda text: [text], types.Tier | list[types.Tier])] = Field(
        (), description="what may be bought, tried in this order"
    )
    deadline: Duration = Field("24h", validate_default=True, description="when answers are needed, like 24h")
    urgency: types.Urgency = Field(description="how long readers can wait: near_real_time or batch")
    max_output_tokens: Count | None = Field(
        None, validate_default=True, description="the bound of one answer; without it there is no worst case"
    )
    params: dict[str, Any] = Field({}, description="further fields of the request body: temperature, seed, ...")
    retry: RetrySection = RetrySection.model_construct()
    shard: ShardSection = ShardSection.model_construct()
    budget: BudgetSection = Field(description="the hard limit: usd, tokens or rows")
    dedupe: Annotated[bool, Strict()] = Field(True, description="equal requests are sent once; false for sampling")
    load: Annotated[LoadSection | None, in_short(lambda text: {"to": text}, Line | LoadSection | None)] = Field(
        None, description="where accepted rows go"
    )
    quality: QualitySection | None = Field(None, description="the check of a sample before anything is loaded")
    freshness: FreshnessSection | None = Field(None, description="what readers accept")
    schedule: Annotated[Line, AfterValidator(lambda text: _cron(text))] | None = Field(
        None, description="cron: minute hour day month weekday"
    )
    owner: Line | None = Field(None, description="who answers for it")
    fallback: Annotated[
        FallbackSection | None, in_short(lambda text: {"at_deadline": text}, types.AtDeadline | FallbackSection | None)
    ] = Field(None, description="what is done about rows that are not back in time")
    notify: Annotated[tuple[NotifySection, ...], in_short(lambda text: [text], Line | list[Line | NotifySection])] = (
        Field((), description="who is told what happens to the job")
    )

    @field_validator("urgency")
    @classmethod
    def _can_wait(cls, urgency: types.Urgency) -> types.Urgency:
        if urgency is types.Urgency.SYNC:
            raise ValueError(
                "found 'sync': somebody waits for each answer, and a job is work that can wait; "
                "say near_real_time (minutes) or batch (hours), or ask the provider without canwait"
            )
        return urgency

    @field_validator("key")
    @classmethod
    def _key_is_given_once(cls, key: str | None, info: ValidationInfo) -> str | None:
        if source := info.data.get("source"):
            if key is None and source.key is None:
                why = "is required, here or at the top: the column that names a row"
                _document(info).faults.append(Fault(("source", "key"), why, absent=True))
            if key is not None and source.key not in (None, key):
                raise ValueError(f"found '{key}', but source.key is '{source.key}'")
        return key

    @field_validator("endpoint")
    @classmethod
    def _is_served(cls, endpoint: Endpoint, info: ValidationInfo) -> Endpoint:
        if (model := info.data.get("model")) and (unserved := endpoint_fault(model[0], endpoint)):
            raise ValueError(unserved)
        return endpoint

    @field_validator("max_output_tokens")
    @classmethod
    def _bounds_what_has_output(cls, most: int | None, info: ValidationInfo) -> int | None:
        endpoint = info.data.get("endpoint")
        if endpoint in (Endpoint.CHAT, Endpoint.RESPONSES) and most is None:
            raise PydanticCustomError("missing", "required")  # as where every endpoint needs it
        if endpoint and (model := info.data.get("model")) and (why := bound_fault(model[0], endpoint, most or 0)):
            raise ValueError(why)
        return most

    @field_validator("prompt")
    @classmethod
    def _read_prompt(cls, prompt: tuple[MessageSection, ...], info: ValidationInfo) -> tuple[MessageSection, ...]:
        """The messages with their templates read from their files, the system message among them."""
        if not prompt:
            raise ValueError("found an empty list; expected messages")
        document = _document(info)
        written: list[tuple[Loc, str, str]] = [(("prompt", i), m.role, m.content) for i, m in enumerate(prompt)]
        if (system := info.data.get("system")) is not None:
            written.insert(0, (("system",), "system", system))
        read = [(loc, role, *_read_template(text, (*loc, "content"), document)) for loc, role, text in written]
        messages = [(role, text) for _, role, text, _ in read]
        for (i, *rest), message, line in prompt_faults(messages, info.data.get("endpoint", Endpoint.CHAT)):
            assert isinstance(i, int)
            loc, _, _, file = read[i]
            document.faults.append(Fault((*loc, *rest), message, file, line))
        return tuple(MessageSection(role=role, content=text) for role, text in messages)

    @field_validator("output", mode="before", json_schema_input_type=Line | dict[str, Any] | None)
    @classmethod
    def _read_output(cls, value: object, info: ValidationInfo) -> object:
        if value is None:
            return None
        schema = _read_schema(value, _document(info).base_dir)
        try:
            jsonschema_rs.Draft202012Validator(schema, offline=True)
        except jsonschema_rs.ValidationError as error:
            if not isinstance(value, dict):
                raise ValueError(f"not a JSON Schema: {dotted(tuple(error.instance_path))}: {error.message}") from None
            loc = ("output", *error.instance_path)
            _document(info).faults.append(Fault(loc, f"not a JSON Schema: {error.message}"))
            return schema
        if schema.get("type") != "object" and "$ref" not in schema:
            raise ValueError("an answer is an object, its properties become columns; expected `type: object`")
        if model := info.data.get("model"):
            structured_output(model[0], schema, info.data.get("endpoint", Endpoint.CHAT))
        return schema

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        params = _floats(params)
        _document(info).faults += [Fault(("params", *fault.path), fault.message) for fault in params_faults(params)]
        return params

    @field_validator("load")
    @classmethod
    def _load_elsewhere(cls, load: LoadSection | None, info: ValidationInfo) -> LoadSection | None:
        source = info.data.get("source")
        if load and source and _is_same_file(_document(info).base_dir, load.to, source.uri):
            raise ValueError(f"'{load.to}' is the source itself; expected another file")
        return load

    @field_validator("quality")
    @classmethod
    def _judges_answers(cls, quality: QualitySection | None, info: ValidationInfo) -> QualitySection | None:
        if quality is None or "output" not in info.data:
            return quality
        document, output = _document(info), info.data["output"]
        fields = None if output is None else output.get("properties")
        if info.data.get("endpoint") is Endpoint.EMBEDDINGS and (quality.rules or quality.language or quality.strata):
            raise ValueError("an embedding has no words; leave rules, language and strata out")
        if quality.strata and quality.strata not in (fields or ()):
            known = f"; expected {', '.join(fields)}" if fields else "; without `output` there are no fields"
            why = f"the answer has no field '{quality.strata}'" + (
                did_you_mean(quality.strata, list(fields or ())) or known
            )
            document.faults.append(Fault(("quality", "strata"), why))
        for name in OURS if quality.rules else ():
            if name in (fields or ()):
                ours = "the whole answer" if name == "output" else "the row's key"
                document.faults.append(
                    Fault(("quality", "rules"), f"`{name}` is {ours}; call the answer's field otherwise")
                )
        for number, rule in enumerate(quality.rules):
            if fault := _rule_fault(rule, fields or () if output is None or fields else None, document.base_dir):
                document.faults.append(Fault(("quality", "rules", number), fault))
        return quality

    def to_job(self, base_dir: Path) -> types.Job:
        provider, model = self.model
        budget, quality, freshness, load = self.budget, self.quality, self.freshness, self.load
        return types.Job(
            name=self.name,
            source=types.Source(
                self.source.uri, self.key or self.source.key or "", self.source.format, self.source.sql
            ),
            provider=provider,
            model=model,
            prompt=tuple((message.role, message.content) for message in self.prompt),
            max_output_tokens=self.max_output_tokens or 0,
            urgency=self.urgency,
            budget=types.BudgetSpec(budget.usd, budget.tokens, budget.rows, budget.on_exceed, budget.tell_at),
            output_schema=self.output,
            tiers=self.tier,
            deadline_s=self.deadline,
            params=self.params,
            attempts=self.retry.attempts,
            shard=types.ShardSpec(self.shard.max_rows, self.shard.by),
            dedupe=self.dedupe,
            load=types.Load(load.to, load.mode, load.format, load.table) if load else None,
            quality=quality.to_quality() if quality else None,
            freshness=types.Freshness(freshness.max_age, freshness.on_stale) if freshness else None,
            schedule=self.schedule,
            owner=self.owner,
            fallback=self.fallback.to_fallback() if self.fallback else None,
            base_dir=base_dir,
            endpoint=self.endpoint,
            notify=tuple(types.Notify(n.to, n.secret, tuple(n.kinds)) for n in self.notify),
        )


# ------------------------------------------------------------------------------------------- what fields point to


def _read_template(text: str, loc: Loc, document: Document) -> tuple[str, str | None]:
    """The template and the file it was read from: one line that ends like a template's name is a path."""
    if "\n" in text or "{" in text or not text.endswith((".md", ".txt", ".j2", ".jinja")):
        return text, None
    path = document.base_dir / text
    try:
        return read_text(path), str(path)
    except Unreadable as error:
        hint = "a prompt that is no path goes in a block: `prompt: |`"
        document.faults.append(Fault(loc, f"'{path}' {error}; {hint}"))
        return "unread", None


def _read_schema(value: object, base_dir: Path) -> dict[str, Any]:
    """The JSON Schema that `output` states or points to. Raises ValueError."""
    if isinstance(value, dict):
        schema: object = _floats(value)
    elif isinstance(value, type) and issubclass(value, BaseModel):
        schema = _closed(value.model_json_schema())
    elif isinstance(value, str) and (match := re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", value)):
        schema = _closed(_import_model(match[1], match[2], base_dir).model_json_schema())
    elif isinstance(value, str) and value.endswith(".json"):
        path = base_dir / value
        try:
            schema = json.loads(read_text(path))
        except Unreadable as error:
            raise ValueError(f"'{path}' {error}") from None
        except (JSONDecodeError, RecursionError) as error:
            raise ValueError(f"'{path}' is not JSON: {error}") from None
    else:
        raise ValueError(f"found {as_found(value)}; expected {_EXPECTED_IN['output']}")
    if not isinstance(schema, dict):
        raise ValueError(f"found {as_found(schema)}; expected a JSON Schema, which is a mapping")
    return schema


def _rule_fault(rule: str, fields: Iterable[str] | None, base_dir: Path) -> str | None:
    """What is wrong with a rule of the gate, if anything is."""
    if (named := function_of(rule)) is None:
        return rule_fault(rule, fields)
    try:
        module = imported(named[0], base_dir)
    except ValueError as error:
        return str(error)
    if not callable(getattr(module, named[1], None)):
        functions = [name for name, value in vars(module).items() if callable(value)]
        return f"'{named[0]}' has no function '{named[1]}'{did_you_mean(named[1], functions)}"
    return None


def _import_model(module_name: str, name: str, base_dir: Path) -> type[BaseModel]:
    """Raises ValueError, also for whatever the user's module raises."""
    module = imported(module_name, base_dir)
    model = getattr(module, name, None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        models = [n for n, m in vars(module).items() if isinstance(m, type) and issubclass(m, BaseModel)]
        raise ValueError(f"'{module_name}' has no pydantic model '{name}'{did_you_mean(name, models)}")
    return model


def _closed(schema: Any) -> Any:
    """A pydantic model's schema in which an object that says nothing of further properties has none.

    Nothing beyond the model is asked for, and providers enforce only closed schemas.
    """
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {k: v if k in ("default", "examples", "enum", "const") else _closed(v) for k, v in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _is_same_file(base_dir: Path, a: str, b: str) -> bool:
    first, second = local_path(a, base_dir), local_path(b, base_dir)
    if "-" in (a, b) or first is None or second is None:
        return False
    return first.resolve() == second.resolve() or (first.exists() and second.exists() and first.samefile(second))


_CRON_FIELDS = (
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day", 1, 31, ""),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    ("weekday", 0, 7, "sun mon tue wed thu fri sat"),
)


def _cron(schedule: str) -> str:
    """Raises ValueError. Five fields of numbers, names, lists, ranges and steps."""
    parts = schedule.split()
    if len(parts) != len(_CRON_FIELDS):
        raise ValueError(f"found {len(parts)} fields; expected 5: minute hour day month weekday")
    for part, (name, low, high, words) in zip(parts, _CRON_FIELDS, strict=True):
        named = {word: low + i for i, word in enumerate(words.split())}
        for item in part.lower().split(","):
            ends, slash, step = item.partition("/")
            numbers = [] if ends == "*" else [str(named.get(end, end)) for end in ends.split("-")]
            span = [int(n) if re.fullmatch("[0-9]{1,2}", n) else -1 for n in numbers]
            ordered = len(numbers) <= 2 and [low, *span, high] == sorted([low, *span, high])
            if not ordered or (slash and not re.fullmatch("[1-9][0-9]?", step)):
                raise ValueError(f"found '{item}' as {name}; expected *, {low} to {high}, a range, a list or a step")
    return schedule


def _floats(value: Any) -> Any:
    """Decimals as the floats that JSON bodies hold."""
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(v) for v in value]
    return float(value) if isinstance(value, Decimal) else value


# ----------------------------------------------------------------------------------------------------- what was wrong


def _fault(error: ErrorDetails) -> Fault:
    """A finding of pydantic in our words: what was found, what was expected, did you mean."""
    loc, kind, context = error["loc"], error["type"], error.get("ctx", {})
    section = _section(loc[:-1])
    if kind == "missing":
        return Fault(loc, f"is required: {section.model_fields[str(loc[-1])].description}", absent=True)
    if kind == "extra_forbidden":
        names = [f.alias or n for n, f in section.model_fields.items()]
        word = _ours(str(loc[-1]), names)
        hint = did_you_mean(word, names) or ("" if section is JobFile else f"; expected {', '.join(names)}")
        return Fault(loc, f"unknown field{hint}", of_key=True, meant=nearest(word, names))
    if kind == "value_error":
        return Fault(loc, str(context["error"]))
    found = f"found {as_found(error['input'])}"
    if kind in ("literal_error", "enum"):
        words = re.findall("'([^']+)'", context["expected"])
        hint = did_you_mean(_ours(str(error["input"]), words), words)
        return Fault(loc, f"{found}; expected {context['expected']}{hint}")
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else error["msg"]
    if len(loc) == 1:
        expected = _EXPECTED_IN.get(loc[0], expected)
    quotes = "; put it in quotes" if kind == "string_type" and isinstance(error["input"], int | Decimal) else ""
    return Fault(loc, f"{found}; expected {expected}{quotes}")


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "at most 63 lower-case letters, digits, '.', '_' and '-', a letter or digit first",
}
_EXPECTED_IN: dict[str | int, str] = {
    "source": "a path or a mapping",
    "prompt": "text or a list of messages",
    "tier": "a tier or a list of tiers",
    "output": "a JSON Schema, the path of a .json file, or package.module:PydanticModel",
    "load": "a path or a mapping",
    "notify": "a target or a list of targets",
    "fallback": "last_publication, load_without, fail or a mapping",
}


def _section(loc: Loc) -> type[Section]:
    """The model of the mapping at `loc`."""
    model: type[Section] = JobFile
    for name in map(str, loc):
        kind = model.model_fields[name].annotation if name in model.model_fields else model
        model = next(k for k in (kind, *get_args(kind), model) if isinstance(k, type) and issubclass(k, Section))
    return model


def _ours(word: str, words: list[str]) -> str:
    """Our word for another tool's, or an earlier draft's, where ours is one of `words`."""
    ours = _OURS.get(word)
    return ours if ours in words else word


_OURS = {"route": "tier", "live": "standard", "cap": "budget", "attempts": "retry", "cron": "schedule"}
_OURS |= {"input": "source", "dataset": "source", "messages": "prompt", "template": "prompt", "schema": "output"}
_OURS |= dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_output_tokens")


def _rate(value: object) -> float:
    """Raises ValueError."""
    if not is_number(value) or not 0 < value <= 1_000_000:  # type: ignore[operator]
        raise ValueError(f"found {as_found(value)}; expected rows a second, above 0, like 20 or 0.5")
    return float(value)  # type: ignore[arg-type]
