"""A job file, or the same as a Python mapping -> a Job. Every problem at once, each with its place.

YAML is read by the 1.2 core schema: only true and false are booleans, so `[yes, no]` stays text. JSON and TOML hold the
same model. Numbers with a point are read as decimals, from their text, so `usd: 0.1` is exactly ten cents.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jsonschema_rs
import yaml
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
from pydantic_core import ErrorDetails

from . import types
from .errors import Problem, SpecError
from .render import ROLES, Loc, did_you_mean, dotted, params_faults, prompt_faults, structured_output

SCHEMA_ID = "urn:canwait:schema:job:1"
LOCAL_MODEL = "smollm2-135m-instruct"


def load_job(path: Path, text: str | None = None, *, output: type[BaseModel] | None = None) -> types.Job:
    """The job of a .yaml, .json or .toml file. Raises SpecError.

    `text` stands in for the file's content (a job from stdin); `output` replaces the file's own.
    """
    document = _Document(str(path), path.parent)
    try:
        tree = _READERS.get(path.suffix.lower(), _read_yaml)(_read_text(path) if text is None else text, document)
        return _job(tree, document, output)
    except _Unreadable as error:
        line, column = error.at or (None, None)
        raise SpecError([Problem(str(path), line, column, None, str(error))]) from None
    except RecursionError:
        raise SpecError([Problem(str(path), None, None, None, "nested too deeply")]) from None


def job_from_dict(d: Mapping[str, Any], *, name_of_file: str = "<job>", base_dir: Path) -> types.Job:
    """The same model from Python; `output` may also be a pydantic model. Raises SpecError."""
    output = d.get("output")
    if isinstance(output, type) and issubclass(output, BaseModel):
        return _job({**d, "output": None}, _Document(name_of_file, base_dir), output)
    return _job(d, _Document(name_of_file, base_dir), None)


def job_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a job file, as published in schemas/job.v1.json."""
    schema = JobFile.model_json_schema(schema_generator=_Untitled)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(value: object) -> int:
    """`"24h"` -> seconds; the units are s, m, h, d and w. Raises ValueError."""
    if match := isinstance(value, str) and re.fullmatch(r"([0-9]{1,9}) ?([smhdw])", value):
        seconds = int(match[1]) * _SECONDS[match[2]]
        if not 0 < seconds <= 3650 * 86_400:
            raise ValueError(f"found {value}; expected more than nothing and at most 3650d")
        return seconds
    if _is_number(value):
        raise ValueError(f"found the bare number {value}; a duration states its unit: {value}h, {value}m or {value}d")
    raise ValueError(f"found {_found(value)}; expected a duration like 24h, 90m or 2d")


def parse_percent(value: object) -> Decimal:
    """`"10%"` -> 0.1. Raises ValueError."""
    if match := isinstance(value, str) and re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", value):
        share = Decimal(match[1]) / 100
        if share > 1:
            raise ValueError(f"found {value}; expected at most 100%")
        return share
    if _is_number(value):
        raise ValueError(f"found the bare number {value}; a share states its unit: {value}%")
    raise ValueError(f"found {_found(value)}; expected a percentage like 10%")


def parse_model(value: object) -> tuple[str, str]:
    """`"openai/NAME"` -> (provider, NAME as on the wire). Well-known names need no prefix. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"found {_found(value)}; expected text")
    provider, slash, name = value.partition("/")
    if slash and provider in ("openai", "anthropic", "own", "local"):
        if not re.fullmatch(r"[!-~]+", name):
            raise ValueError(f"found '{value}'; expected a model's name after '{provider}/'")
        return provider, name
    if value == "local":
        return "local", LOCAL_MODEL
    if re.fullmatch(r"(gpt|chatgpt|o[0-9])[!-.0-~]*", value):
        return "openai", value
    if re.fullmatch(r"claude[!-.0-~]*", value):
        return "anthropic", value
    raise ValueError(f"found '{value}'; expected openai/NAME, anthropic/NAME, own/NAME or local/NAME")


def parse_usd(value: object) -> int:
    """`40`, `"40.00"` or a Decimal -> micros, exactly. Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", value):
        value = Decimal(value)
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise ValueError(f"found {_found(value)}; expected US dollars like 40 or 40.00")
    if not 0 <= value <= 1_000_000_000:
        raise ValueError(f"found {value}; expected 0 to 1,000,000,000 US dollars")
    if value % Decimal("0.000001"):
        raise ValueError(f"found {value}; expected at most 6 decimals: money is counted in millionths of a dollar")
    return int(value * 1_000_000)


def _job(tree: object, document: _Document, output: type[BaseModel] | None) -> types.Job:
    tree = _plain(tree, (), document)
    unusable = [fault.loc for fault in document.faults if not fault.of_key]
    if output is not None and isinstance(tree, dict):
        tree["output"] = output
    try:
        job = JobFile.model_validate(tree, context=document)
    except ValidationError as error:
        found = [_fault(details) for details in error.errors(include_url=False)]
        meant = {(*fault.loc[:-1], fault.meant) for fault in found if fault.meant}
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


def _one_line(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError(f"found {_found(value)}; expected one line of text")
    return value


def _pattern(regex: str) -> Any:
    return Annotated[str, StringConstraints(pattern=regex)]


def _in_short(at_length: Callable[[str], object], schema: Any) -> BeforeValidator:
    """A field that may be written as one text."""
    return BeforeValidator(lambda value: at_length(value) if isinstance(value, str) else value, schema)


Line = Annotated[str, Strict(), AfterValidator(_one_line), Field(json_schema_extra={"minLength": 1})]
Count = Annotated[int, Strict(), Field(gt=0, lt=2**53)]
Format = Literal["csv", "tsv", "jsonl", "parquet"]
Duration = Annotated[int, BeforeValidator(parse_duration, _pattern("^[0-9]{1,9} ?[smhdw]$"))]
Percent = Annotated[Decimal, BeforeValidator(parse_percent, _pattern(r"^[0-9]{1,3}(\.[0-9]{1,9})? ?%$"))]
Usd = Annotated[
    int,
    BeforeValidator(parse_usd, Annotated[float, Field(ge=0)] | _pattern(r"^[0-9]{1,18}(\.[0-9]{1,18})?$")),
]


def _document(info: ValidationInfo) -> _Document:
    assert isinstance(info.context, _Document)
    return info.context


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSection(Section):
    uri: Line = Field(description="a path from the job file, or - for standard input")
    key: Line | None = Field(None, description="the column that names a row")
    format: Format | None = Field(None, description="by the name's ending when left out")


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

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetSection:
        if self.usd is None and self.tokens is None and self.rows is None:
            raise ValueError("limits nothing; expected usd, tokens or rows")
        return self


class LoadSection(Section):
    to: Line = Field(description="a path from the job file")
    mode: Literal["merge", "append", "replace"] = Field("merge", description="merge: by the key, safe to repeat")
    format: Format | None = Field(None, description="by the name's ending when left out")


class QualitySection(Section):
    refuse_if_bad_rate: Percent = Field(description="results with this share of bad rows are refused, like 10%")
    sure: Percent = Field("90%", validate_default=True, description="how often such results must be caught")
    by: Literal["human", "judge", "rule"] = Field("human", description="who judges the sample")

    @field_validator("refuse_if_bad_rate", "sure")
    @classmethod
    def _inside(cls, share: Decimal) -> Decimal:
        if not 0 < share < 1:
            raise ValueError(f"found {share:%}; expected more than 0% and less than 100%")
        return share


class FreshnessSection(Section):
    max_age: Duration = Field(description="how old an answer may be, counted from its input, like 24h")
    on_stale: Literal["serve", "block", "live"] = Field("block", description="what a reader gets past it")


class JobFile(Section):
    """LLM work that can wait: rows, a prompt, a model, a deadline and a budget, under a durable name."""

    model_config = ConfigDict(
        title="canwait job",
        json_schema_extra={
            "anyOf": [
                {"required": ["key"]},
                {"required": ["source"], "properties": {"source": {"type": "object", "required": ["key"]}}},
            ]
        },
    )

    editor: Line | None = Field(None, alias="$schema", description="for editors; not read")
    version: Literal[1] = Field(description="1, the version of this format")
    name: Annotated[str, Strict(), StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = Field(
        description="durable: running the same name again goes on with it"
    )
    source: Annotated[SourceSection, _in_short(lambda text: {"uri": text}, Line | SourceSection)] = Field(
        description="where rows come from"
    )
    key: Line | None = Field(None, validate_default=True, description="the column that names a row, if not source.key")
    model: Annotated[tuple[str, str], BeforeValidator(parse_model, Line)] = Field(
        description="openai/NAME, anthropic/NAME, own/NAME or local/NAME"
    )
    system: Annotated[str, Strict()] | None = Field(None, description="a system message in front of the prompt")
    prompt: Annotated[
        tuple[MessageSection, ...],
        _in_short(
            lambda text: [{"role": "user", "content": text}], str | Annotated[list[MessageSection], Field(min_length=1)]
        ),
    ] = Field(description="a Jinja template over the row, the path of a file that holds one, or a list of messages")
    output: dict[str, Any] | None = Field(
        None, description="JSON Schema of an answer: inline, the path of a .json file, or package.module:PydanticModel"
    )
    tier: Annotated[tuple[types.Tier, ...], _in_short(lambda text: [text], types.Tier | list[types.Tier])] = Field(
        (), description="what may be bought, tried in this order"
    )
    deadline: Duration = Field("24h", validate_default=True, description="when answers are needed, like 24h")
    urgency: types.Urgency = Field(description="who waits: sync, near_real_time or batch")
    max_output_tokens: Count = Field(description="the bound of one answer; without it there is no worst case")
    params: dict[str, Any] = Field({}, description="further fields of the request body: temperature, seed, ...")
    retry: RetrySection = RetrySection.model_construct()
    shard: ShardSection = ShardSection.model_construct()
    budget: BudgetSection = Field(description="the hard limit: usd, tokens or rows")
    dedupe: Annotated[bool, Strict()] = Field(True, description="equal requests are sent once; false for sampling")
    load: Annotated[LoadSection | None, _in_short(lambda text: {"to": text}, Line | LoadSection | None)] = Field(
        None, description="where accepted rows go"
    )
    quality: QualitySection | None = Field(None, description="the check of a sample before anything is loaded")
    freshness: FreshnessSection | None = Field(None, description="what readers accept")
    schedule: Annotated[Line, AfterValidator(lambda text: _cron(text))] | None = Field(
        None, description="cron: minute hour day month weekday"
    )
    owner: Line | None = Field(None, description="who answers for it")
    fallback: Line | None = Field(None, description="what callers do without an answer; kept and shown")

    @field_validator("key")
    @classmethod
    def _key_is_given_once(cls, key: str | None, info: ValidationInfo) -> str | None:
        if source := info.data.get("source"):
            if key is None and source.key is None:
                why = "is required, here or at the top: the column that names a row"
                _document(info).faults.append(_Fault(("source", "key"), why, absent=True))
            if key is not None and source.key not in (None, key):
                raise ValueError(f"found '{key}', but source.key is '{source.key}'")
        return key

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
        read = [_read_template(content, (*loc, "content"), document) for loc, _, content in written]
        messages = [(role, text) for (_, role, _), (text, _) in zip(written, read, strict=True)]
        for (i, *rest), message, line in prompt_faults(messages):
            assert isinstance(i, int)
            document.faults.append(_Fault((*written[i][0], *rest), message, read[i][1], line))
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
            _document(info).faults.append(_Fault(loc, f"not a JSON Schema: {error.message}"))
            return schema
        if schema.get("type") != "object" and "$ref" not in schema:
            raise ValueError("an answer is an object, its properties become columns; expected `type: object`")
        if model := info.data.get("model"):
            structured_output(model[0], schema)
        return schema

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        params = _floats(params)
        _document(info).faults += [_Fault(("params", *fault.path), fault.message) for fault in params_faults(params)]
        return params

    @field_validator("load")
    @classmethod
    def _load_elsewhere(cls, load: LoadSection | None, info: ValidationInfo) -> LoadSection | None:
        source = info.data.get("source")
        if load and source and _is_same_file(_document(info).base_dir, load.to, source.uri):
            raise ValueError(f"'{load.to}' is the source itself; expected another file")
        return load

    def to_job(self, base_dir: Path) -> types.Job:
        provider, model = self.model
        budget, quality, freshness, load = self.budget, self.quality, self.freshness, self.load
        return types.Job(
            name=self.name,
            source=types.Source(self.source.uri, self.key or self.source.key or "", self.source.format),
            provider=provider,
            model=model,
            prompt=tuple((message.role, message.content) for message in self.prompt),
            max_output_tokens=self.max_output_tokens,
            urgency=self.urgency,
            budget=types.BudgetSpec(budget.usd, budget.tokens, budget.rows, budget.on_exceed),
            output_schema=self.output,
            tiers=self.tier,
            deadline_s=self.deadline,
            params=self.params,
            attempts=self.retry.attempts,
            shard=types.ShardSpec(self.shard.max_rows, self.shard.by),
            dedupe=self.dedupe,
            load=types.Load(load.to, load.mode, load.format) if load else None,
            quality=types.Quality(quality.refuse_if_bad_rate, quality.sure, quality.by) if quality else None,
            freshness=types.Freshness(freshness.max_age, freshness.on_stale) if freshness else None,
            schedule=self.schedule,
            owner=self.owner,
            fallback=self.fallback,
            base_dir=base_dir,
        )


# ------------------------------------------------------------------------------------------- what fields point to


def _read_template(text: str, loc: Loc, document: _Document) -> tuple[str, str | None]:
    """The template and the file it was read from: one line that ends like a template's name is a path."""
    if "\n" in text or "{" in text or not text.endswith((".md", ".txt", ".j2", ".jinja")):
        return text, None
    path = document.base_dir / text
    try:
        return _read_text(path), str(path)
    except _Unreadable as error:
        hint = "a prompt that is no path goes in a block: `prompt: |`"
        document.faults.append(_Fault(loc, f"'{path}' {error}; {hint}"))
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
            schema = json.loads(_read_text(path))
        except _Unreadable as error:
            raise ValueError(f"'{path}' {error}") from None
        except (JSONDecodeError, RecursionError) as error:
            raise ValueError(f"'{path}' is not JSON: {error}") from None
    else:
        raise ValueError(f"found {_found(value)}; expected {_EXPECTED_IN['output']}")
    if not isinstance(schema, dict):
        raise ValueError(f"found {_found(schema)}; expected a JSON Schema, which is a mapping")
    return schema


def _import_model(module_name: str, name: str, base_dir: Path) -> type[BaseModel]:
    """Raises ValueError, also for whatever the user's module raises."""
    sys.path.insert(0, str(base_dir.resolve()))
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's code, and may raise anything
        raise ValueError(f"'{module_name}' cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(base_dir.resolve()))
    here = base_dir.joinpath(*module_name.split(".")).with_suffix(".py")
    if here.exists() and not (module.__file__ and here.samefile(module.__file__)):
        raise ValueError(f"'{module_name}' is already imported from {module.__file__}, so {here} cannot be")
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
    if "-" in (a, b) or "://" in a or "://" in b:
        return False
    first, second = base_dir / a, base_dir / b
    if first.resolve() == second.resolve():
        return True
    return first.exists() and second.exists() and first.samefile(second)


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


class _Fault(NamedTuple):
    loc: Loc  # field names and list indices from the top
    message: str
    file: str | None = None  # None: the job file
    line: int | None = None  # of that file, or of the template at `loc`
    at: tuple[int, int] | None = None  # the line and column, where `loc` does not say them
    of_key: bool = False  # the name of the field is wrong, not its value
    absent: bool = False
    meant: str | None = None


class _Place(NamedTuple):
    """Lines and columns of a document, counted from 1."""

    key: tuple[int, int] | None
    value: tuple[int, int] | None
    is_block: bool = False  # a literal block: its first line is the one below


@dataclass
class _Document:
    """A job file while it is read."""

    file: str
    base_dir: Path
    places: dict[Loc, _Place] = field(default_factory=dict)
    faults: list[_Fault] = field(default_factory=list)
    locate: Callable[[], None] = lambda: None  # fills `places` where that costs enough to wait until it is needed

    def problems(self) -> list[Problem]:
        """Every fault with its place, in the order of the file."""
        self.locate()
        problems = [self._problem(fault) for fault in self.faults]
        return sorted(problems, key=lambda p: (p.file != self.file, p.file, p.line or 0, p.column or 0))

    def _problem(self, fault: _Fault) -> Problem:
        loc, message = fault.loc, fault.message
        while loc and loc not in self.places:
            loc = loc[:-1]
        place = self.places.get(loc)
        name = dotted(fault.loc if fault.absent else loc) or None  # `prompt`, not the `prompt[0].content` it stands for
        if fault.file:
            return Problem(fault.file, fault.line, None, name, message)
        if fault.line and place and place.value and place.is_block:
            return Problem(self.file, place.value[0] + fault.line, None, name, message)
        if fault.line and fault.line > 1:
            message = f"line {fault.line} of the template: {message}"
        at = fault.at or (place and ((fault.of_key and place.key) or place.value))
        line, column = at or (None, None)
        return Problem(self.file, line, column, name, message)


# Words of other tools and of earlier drafts.
_MEANT = {"route": "tier", "live": "standard", "cap": "budget", "attempts": "retry", "cron": "schedule"}
_MEANT |= {"input": "source", "dataset": "source", "messages": "prompt", "template": "prompt", "schema": "output"}
_MEANT |= dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_output_tokens")
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
}


def _fault(error: ErrorDetails) -> _Fault:
    """A finding of pydantic in our words: what was found, what was expected, did you mean."""
    loc, kind, context = error["loc"], error["type"], error.get("ctx", {})
    section = _section(loc[:-1])
    if kind == "missing":
        return _Fault(loc, f"is required: {section.model_fields[str(loc[-1])].description}", absent=True)
    if kind == "extra_forbidden":
        names = [f.alias or n for n, f in section.model_fields.items()]
        meant, hint = _meant(str(loc[-1]), names)
        expected = "" if meant or section is JobFile else f"; expected {', '.join(names)}"
        return _Fault(loc, f"unknown field{hint}{expected}", of_key=True, meant=meant)
    if kind == "value_error":
        return _Fault(loc, str(context["error"]))
    found = f"found {_found(error['input'])}"
    if kind in ("literal_error", "enum"):
        expected = str(context["expected"])
        hint = _meant(str(error["input"]), re.findall("'([^']+)'", expected))[1]
        return _Fault(loc, f"{found}; expected {expected}{hint}")
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else error["msg"]
    if len(loc) == 1:
        expected = _EXPECTED_IN.get(loc[0], expected)
    quotes = "; put it in quotes" if kind == "string_type" and isinstance(error["input"], int | Decimal) else ""
    return _Fault(loc, f"{found}; expected {expected}{quotes}")


def _section(loc: Loc) -> type[Section]:
    """The model of the mapping at `loc`."""
    kind = JobFile.model_fields[str(loc[0])].annotation if loc else JobFile
    return next(k for k in (kind, *get_args(kind), JobFile) if isinstance(k, type) and issubclass(k, Section))


def _meant(word: str, words: list[str]) -> tuple[str | None, str]:
    """The word that was probably meant, and the question after it."""
    other = _MEANT.get(word)
    hint = f"; did you mean '{other}'?" if other in words else did_you_mean(word, words)
    return (hint.split("'")[1] if hint else None), hint


def _found(value: object) -> str:
    match value:
        case None | "":
            return "nothing" if value is None else "empty text"
        case str():
            return f"'{value[:37]}...'" if len(value) > 40 else f"'{value}'"
        case bool():
            return str(value).lower()
        case int() | float() | Decimal():
            return str(value)[:40]
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "something else"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


# --------------------------------------------------------------------------------------------------- reading documents


class _Unreadable(Exception):
    def __init__(self, message: str, at: tuple[int, int] | None = None) -> None:
        self.at = at
        super().__init__(message)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _Unreadable(f"is not UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}") from None


def _plain(value: object, loc: Loc, document: _Document) -> Any:
    """The value in dicts, lists, text, ints, Decimals, bools and None; what does not fit becomes a fault."""
    document.places.setdefault(loc, _Place(None, None))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        if not re.search("[\0\ud800-\udfff]", text):
            return text
        problem = "holds a NUL character or half of a surrogate pair"
    elif isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return int(value)
        problem = "is too large a number"
    elif isinstance(value, float | Decimal):
        number = Decimal(repr(float(value))) if isinstance(value, float) else value
        if number.is_finite() and abs(number.adjusted()) < 300:
            return number
        problem = f"found {value}; expected a number of reasonable size"
    elif isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                document.faults.append(_Fault(loc, f"found the name {key!r}; expected text", of_key=True))
        return {k: _plain(v, (*loc, k), document) for k, v in value.items() if isinstance(k, str)}
    elif isinstance(value, list | tuple):
        return [_plain(v, (*loc, i), document) for i, v in enumerate(value)]
    elif isinstance(value, os.PathLike):
        return os.fsdecode(value)
    else:
        problem = f"found a {type(value).__name__}; expected text, a number, true or false, a list or a mapping"
    document.faults.append(_Fault(loc, problem))
    return None


_TAG = "tag:yaml.org,2002:"
_CORE_FORMS = {
    "null": "^(~|null|Null|NULL|)$",
    "bool": "^(true|True|TRUE|false|False|FALSE)$",
    "int": "^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$",
    "float": r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}


class _Core(yaml.SafeLoader):
    """YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), without aliases."""

    yaml_implicit_resolvers = {None: [(_TAG + kind, re.compile(form)) for kind, form in _CORE_FORMS.items()]}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "an alias; write the value out", event.start_mark)
        return super().compose_node(parent, index)


def _read_yaml(text: str, document: _Document) -> object:
    try:
        loader = _Core(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else None
        raise _Unreadable(f"not YAML: {', '.join(filter(None, (error.context, error.problem)))}", at) from None
    except yaml.reader.ReaderError as error:
        at = _line_and_column(text, error.position)
        raise _Unreadable(f"not YAML: the character U+{ord(text[error.position]):04X}", at) from None
    if root is None:
        raise _Unreadable("is empty; `canwait init` writes a job file to start from")
    return _yaml_value(root, (), None, document)


def _yaml_value(node: yaml.Node, loc: Loc, key: tuple[int, int] | None, document: _Document) -> object:
    # A block collection begins on the line below its key, and a reader looks for the key.
    is_below = isinstance(node, yaml.CollectionNode) and not node.flow_style
    is_block = isinstance(node, yaml.ScalarNode) and node.style == "|"
    document.places[loc] = _Place(key, (is_below and key) or _mark(node), is_block)
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _yaml_mapping(node, loc, document)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_yaml_value(item, (*loc, i), None, document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            return _SCALARS[kind](node.value)
        except (ValueError, InvalidOperation):
            document.faults.append(_Fault(loc, f"found '{node.value[:40]}', which is no {kind}"))
            return None
    document.faults.append(_Fault(loc, f"has the tag {node.tag}; expected plain YAML"))
    return None


def _yaml_mapping(node: yaml.MappingNode, loc: Loc, document: _Document) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key, item in node.value:
        at = _mark(key)
        if not isinstance(key, yaml.ScalarNode):
            document.faults.append(_Fault(loc, "a list or mapping as a name; expected text", at=at, of_key=True))
            continue
        here = (*loc, key.value)
        if key.value in mapping:
            document.faults.append(_twice(here, at, document))
            continue
        mapping[key.value] = _yaml_value(item, here, at, document)
    return mapping


def _twice(loc: Loc, at: tuple[int, int], document: _Document) -> _Fault:
    first = document.places[loc].key
    return _Fault(loc, f"given twice, first on line {first[0] if first else '?'}", at=at, of_key=True)


_SCALARS: dict[str, Any] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    "float": lambda text: Decimal(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _read_json(text: str, document: _Document) -> object:
    try:
        _JSON.decode(text)
    except ValueError as error:  # also a number of thousands of digits, which has no place
        at = (error.lineno, error.colno) if isinstance(error, JSONDecodeError) else None
        raise _Unreadable(f"not JSON: {error.msg if isinstance(error, JSONDecodeError) else error}", at) from None
    return _json_value(text, _space(text, 0), (), None, document)[0]


_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=Decimal)


def _json_value(text: str, i: int, loc: Loc, key: tuple[int, int] | None, document: _Document) -> tuple[object, int]:
    """The value at `i` of text that is known to be JSON, and where it ends."""
    document.places[loc] = _Place(key, _line_and_column(text, i))
    if text[i] == "[":
        items: list[object] = []
        i = _space(text, i + 1)
        while text[i] != "]":
            item, i = _json_value(text, i, (*loc, len(items)), None, document)
            items.append(item)
            i = _space(text, i, ",")
        return items, i + 1
    if text[i] == "{":
        mapping: dict[str, object] = {}
        i = _space(text, i + 1)
        while text[i] != "}":
            at = _line_and_column(text, i)
            name, i = _JSON.raw_decode(text, i)
            here = (*loc, name)
            if name in mapping:
                document.faults.append(_twice(here, at, document))
                _, i = _JSON.raw_decode(text, _space(text, i, ":"))
            else:
                mapping[name], i = _json_value(text, _space(text, i, ":"), here, at, document)
            i = _space(text, i, ",")
        return mapping, i + 1
    return _JSON.raw_decode(text, i)


def _space(text: str, i: int, and_also: str = "") -> int:
    while i < len(text) and text[i] in " \t\r\n" + and_also:
        i += 1
    return i


def _line_and_column(text: str, i: int) -> tuple[int, int]:
    return text.count("\n", 0, i) + 1, i - text.rfind("\n", 0, i)


def _read_toml(text: str, document: _Document) -> object:
    try:
        tree = tomllib.loads(text, parse_float=Decimal)
    except ValueError as error:
        match = re.fullmatch(r"(.*?)(?: \(at line ([0-9]+), column ([0-9]+)\)| \(at end of document\))?", str(error))
        at = (int(match[2]), int(match[3])) if match and match[2] else None
        raise _Unreadable(f"not TOML: {match[1] if match else error}", at) from None
    document.locate = lambda: _place_toml(text, document)
    return tree


def _place_toml(text: str, document: _Document) -> None:
    """tomllib keeps no places: what a longer piece of the file adds stands where the piece before it ended."""
    lines = text.splitlines(keepends=True)
    places: dict[Loc, _Place] = {(): _Place(None, (1, 1))}
    start = 0
    for end in range(1, len(lines) + 1):
        piece = "".join(lines[:end])
        if piece.count('"""') % 2 or piece.count("'''") % 2:  # only to save time inside a long text
            continue
        try:
            tree = tomllib.loads(piece)
        except tomllib.TOMLDecodeError:
            continue
        at = start + 1, len(lines[start]) - len(lines[start].lstrip()) + 1
        places = dict.fromkeys(_locs(tree, ()), _Place(at, at)) | places
        start = end
    document.places |= places


def _locs(value: Any, loc: Loc) -> Iterator[Loc]:
    yield loc
    for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _locs(part, (*loc, name))


_READERS = {".json": _read_json, ".toml": _read_toml}
