"""A job file becomes a Job, or every problem of it at once with its place."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import jsonschema_rs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from canwait.errors import SpecError
from canwait.fields import parse_duration, parse_model, parse_percent, parse_usd
from canwait.render import compile_job
from canwait.spec import job_from_dict, job_schema, load_job
from canwait.types import BudgetSpec, Fallback, Freshness, Job, Load, Quality, ShardSpec, Source, Tier, Urgency

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "src/canwait/schemas/job.v1.json"
PAGE = ROOT / "docs/job-file.md"
MINIMAL = {
    "version": 1,
    "name": "j",
    "source": {"uri": "rows.csv", "key": "id"},
    "model": "openai/m",
    "prompt": "Sort {{ body }}",
    "max_output_tokens": 20,
    "urgency": "batch",
    "budget": {"usd": "1"},
}
EMBED: dict[str, Any] = {"endpoint": "embeddings", "max_output_tokens": ...}
FULL = """
version: 1
name: classify-tickets
source: {uri: tickets.data, key: ticket_id, format: jsonl}
model: anthropic/claude-x
system: You sort messages.
prompt: prompts/classify.md
output:
  type: object
  properties: {label: {enum: [yes, no], type: string}, share: {type: number, maximum: 0.5}}
  required: [label]
tier: [batch, own]
deadline: 36h
urgency: near_real_time
max_output_tokens: 140
params: {temperature: 0.25, top_p: 1}
retry: {attempts: 5}
shard: {max_rows: 1000, by: language}
budget: {usd: 40.10, tokens: 9000000, rows: 50000, on_exceed: ask, tell_at: [50%, 99.5%]}
dedupe: false
load: {to: out/labels.parquet, mode: append, format: parquet}
quality: {refuse_if_bad_rate: 2.5%, sure: 95%, by: human, rows: 150, strata: label, on_refuse: load_accepted_strata,
  rules: ["share < 0.4 or label == 'no'"]}
freshness: {max_age: 2d, on_stale: serve}
schedule: "0 22 * * mon-fri"
owner: team:support
fallback: {rescue: standard, rows_per_s: 20, at_deadline: load_without}
"""


class Label(BaseModel):
    why: str
    label: Literal["yes", "no"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/classify.md").write_text("Sort:\n{{ body }}\n", "utf-8")
    return tmp_path


def load(folder: Path, text: str, name: str = "job.yaml", **options: Any) -> Job:
    path = folder / name
    path.write_text(dedent(text), "utf-8")
    return load_job(path, **options)


def problems(folder: Path, text: str, name: str = "job.yaml") -> list[str]:
    """What is wrong with the file, its folder left out."""
    with pytest.raises(SpecError) as caught:
        load(folder, text, name)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def changed(**fields: Any) -> dict[str, Any]:
    """The minimal job with these fields; a field given as `...` is left out."""
    return {k: v for k, v in {**MINIMAL, **fields}.items() if v is not ...}


def problems_of(folder: Path, **fields: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        job_from_dict(changed(**fields), base_dir=folder)
    return [f"{problem.field}: {problem.message}" for problem in caught.value.problems]


# ------------------------------------------------------------------------------------------------------- what is read


def test_every_field_becomes_its_noun(folder: Path) -> None:
    """Each field of a job file arrives in the Job, in its unit."""
    assert load(folder, FULL) == Job(
        name="classify-tickets",
        source=Source("tickets.data", "ticket_id", "jsonl"),
        provider="anthropic",
        model="claude-x",
        prompt=(("system", "You sort messages."), ("user", "Sort:\n{{ body }}\n")),
        max_output_tokens=140,
        urgency=Urgency.NEAR_REAL_TIME,
        budget=BudgetSpec(40_100_000, 9_000_000, 50_000, "ask", (Decimal("0.5"), Decimal("0.995"))),
        output_schema={
            "type": "object",
            "properties": {
                "label": {"enum": ["yes", "no"], "type": "string"},
                "share": {"type": "number", "maximum": 0.5},
            },
            "required": ["label"],
        },
        tiers=(Tier.BATCH, Tier.OWN),
        deadline_s=36 * 3600,
        params={"temperature": 0.25, "top_p": 1},
        attempts=5,
        shard=ShardSpec(1000, "language"),
        dedupe=False,
        load=Load("out/labels.parquet", "append", "parquet"),
        quality=Quality(
            Decimal("0.025"),
            Decimal("0.95"),
            "human",
            150,
            None,
            "label",
            "load_accepted_strata",
            ("share < 0.4 or label == 'no'",),
        ),
        freshness=Freshness(2 * 86_400, "serve"),
        schedule="0 22 * * mon-fri",
        owner="team:support",
        fallback=Fallback(Tier.STANDARD, 20.0, "load_without"),
        base_dir=folder,
    )


def test_defaults_are_the_nouns_own(folder: Path) -> None:
    """What a job file leaves out is what `types.Job` says it is."""
    assert job_from_dict(MINIMAL, base_dir=folder) == Job(
        name="j",
        source=Source("rows.csv", "id"),
        provider="openai",
        model="m",
        prompt=(("user", "Sort {{ body }}"),),
        max_output_tokens=20,
        urgency=Urgency.BATCH,
        budget=BudgetSpec(1_000_000, None, None),
        base_dir=folder,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.yaml", yaml.safe_dump(MINIMAL)),
        ("job.yml", "\ufeff" + json.dumps(MINIMAL)),
        ("job.json", "\ufeff" + json.dumps(MINIMAL, indent="\t")),
        (
            "job.toml",
            """
            version = 1
            name = "j"
            model = "openai/m"
            prompt = 'Sort {{ body }}'
            max_output_tokens = 20
            urgency = "batch"
            budget.usd = "1"
            [source]
            uri = "rows.csv"
            key = "id"
            """,
        ),
    ],
)
def test_yaml_json_toml_and_python_hold_one_model(folder: Path, name: str, text: str) -> None:
    """The same job in four spellings is the same Job."""
    assert load(folder, text, name) == job_from_dict(MINIMAL, base_dir=folder)


def test_a_job_can_come_without_a_file(folder: Path) -> None:
    """Text stands in for the file; paths still start at its folder."""
    assert load_job(folder / "-", json.dumps(changed(prompt="prompts/classify.md"))).prompt == (
        ("user", "Sort:\n{{ body }}\n"),
    )


@pytest.mark.parametrize("fields", [{"source": "rows.csv", "key": "id"}, {"key": "id"}, {"tier": "batch"}])
def test_short_spellings(folder: Path, fields: dict[str, Any]) -> None:
    """A source, a load and a tier may be one word, and the key may stand at the top."""
    job = job_from_dict(changed(**fields, load="out.csv"), base_dir=folder)
    assert (job.source, job.load) == (Source("rows.csv", "id"), Load("out.csv"))
    assert job.tiers == ((Tier.BATCH,) if "tier" in fields else ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("Y", "Y"), ("true", True), ("FALSE", False),
        ("~", None), ("1_000", "1_000"), ("0o17", 15), ("0x1F", 31), ("017", 17), ("1e3", 1000.0), (".5", 0.5),
        ("12:30", "12:30"), ("2026-01-02", "2026-01-02"), ("<<", "<<"), ("'1'", "1"), ("!!str 1", "1"),
    ],
)  # fmt: skip
def test_yaml_is_read_by_its_core_schema(folder: Path, text: str, value: object) -> None:
    """Only what YAML 1.2's core schema calls a boolean, number or null is one; all else is text."""
    rest = yaml.safe_dump(changed())
    assert load(folder, f"{rest}\nparams: {{x: {text}}}\n").params == {"x": value}


@given(st.integers(0, 10**15))
def test_dollars_are_exact(micros: int) -> None:
    """Any amount of micros survives as a YAML number, as JSON, as text and as a Decimal, to the micro."""
    amount = f"{micros // 10**6}.{micros % 10**6:06}"
    text = json.dumps(MINIMAL).replace('"usd": "1"', f'"usd": {amount}')
    for name in ("job.yaml", "job.json"):
        assert load_job(Path(name), text).budget.micros == micros
    assert parse_usd(amount) == parse_usd(Decimal(amount)) == micros


@pytest.mark.parametrize(
    ("value", "micros"), [(40, 40_000_000), (0, 0), ("40.00", 40_000_000), (Decimal("0.1"), 10**5)]
)
def test_dollars_are_read(value: object, micros: int) -> None:
    """Whole and decimal dollars become micros."""
    assert parse_usd(value) == micros


@pytest.mark.parametrize("value", [-1, "0.0000001", Decimal("1e-30"), "$40", "1e3", True, None, "", "١", 10**10, 0.5])
def test_dollars_that_are_not_exact_are_refused(value: object) -> None:
    """What is no amount in whole micros is refused, a binary float among them."""
    with pytest.raises(ValueError, match="found"):
        parse_usd(value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86_400), ("90m", 5400), ("2d", 172_800), ("1s", 1), ("2w", 1_209_600), ("5 m", 300)]
)
def test_durations(text: str, seconds: int) -> None:
    """A duration is a whole number and its unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("value", [24, "24", "h", "0h", "-1h", "1.5h", "1h30m", "24 hours", "99999d", None, True, "٢h"])
def test_durations_that_are_none(value: object) -> None:
    """Anything else is refused; a bare number is told of its missing unit."""
    with pytest.raises(ValueError, match="states its unit: 24h" if value == 24 else "expected"):
        parse_duration(value)


@pytest.mark.parametrize(("text", "share"), [("10%", "0.1"), ("2.5 %", "0.025"), ("0%", "0"), ("100%", "1")])
def test_percentages(text: str, share: str) -> None:
    """A percentage becomes an exact share."""
    assert parse_percent(text) == Decimal(share)


@pytest.mark.parametrize("value", [10, 0.1, "10", "101%", "-1%", "%", None])
def test_percentages_that_are_none(value: object) -> None:
    """Anything else is refused; a bare number is told of its missing unit."""
    with pytest.raises(ValueError, match="states its unit: 10%" if value == 10 else "found"):
        parse_percent(value)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("openai/gpt-x", ("openai", "gpt-x")),
        ("own/Qwen/Qwen3-8B", ("own", "Qwen/Qwen3-8B")),
        ("openai/ft:gpt-4o:acme::id", ("openai", "ft:gpt-4o:acme::id")),
        ("anthropic/claude-x", ("anthropic", "claude-x")),
        ("local/other", ("local", "other")),
        ("gpt-6-luna", ("openai", "gpt-6-luna")),
        ("o3-mini", ("openai", "o3-mini")),
        ("chatgpt-4o-latest", ("openai", "chatgpt-4o-latest")),
        ("text-embedding-3-small", ("openai", "text-embedding-3-small")),
        ("claude-haiku-5", ("anthropic", "claude-haiku-5")),
        ("local", ("local", "smollm2-135m-instruct")),
    ],
)
def test_models_name_their_provider(text: str, model: tuple[str, str]) -> None:
    """A prefix, or a name everybody knows, says who serves the model."""
    assert parse_model(text) == model


@pytest.mark.parametrize("text", ["small-2", "openai/", "opnai/x", "gpt/4", "o", "openai/a b", "", "OpenAI/x", 5])
def test_models_without_a_provider_are_refused(text: object) -> None:
    """No provider is guessed."""
    with pytest.raises(ValueError, match="expected"):
        parse_model(text)


# ------------------------------------------------------------------------------------------------ what fields point to


def test_prompts_come_as_text_file_or_messages(folder: Path) -> None:
    """One line that ends like a template's name is a path; everything else is the template itself."""

    def prompt(value: Any) -> tuple[tuple[str, str], ...]:
        return job_from_dict(changed(prompt=value), base_dir=folder).prompt

    assert prompt("prompts/classify.md") == (("user", "Sort:\n{{ body }}\n"),)
    assert prompt("Sum up\nnotes.txt") == (("user", "Sum up\nnotes.txt"),)
    assert prompt("Sum up notes.txt\n") == (("user", "Sum up notes.txt\n"),)
    assert prompt("{{ name }}.txt") == (("user", "{{ name }}.txt"),)
    messages = [
        {"role": "system", "content": "prompts/classify.md"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert prompt(messages) == (("system", "Sort:\n{{ body }}\n"), ("user", "a"), ("assistant", "b"))


def test_output_comes_as_schema_file_or_model(folder: Path) -> None:
    """An inline schema, a file, a model by name and a model itself say the same; a model's objects are closed."""
    schema = {
        "type": "object",
        "properties": {"why": {"type": "string"}, "label": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["why", "label"],
        "additionalProperties": False,
    }
    (folder / "label.json").write_text(json.dumps(schema), "utf-8")

    def of(output: Any) -> Any:
        return job_from_dict(changed(output=output), base_dir=folder).output_schema

    def untitled(schema: Any) -> Any:
        parts = {name: {k: v for k, v in p.items() if k != "title"} for name, p in schema["properties"].items()}
        return {k: v for k, v in {**schema, "properties": parts}.items() if k != "title"}

    assert of(schema) == of("label.json") == untitled(of(Label)) == schema
    job = load(folder, json.dumps(changed(output="nothing.json")), output=Label)
    assert untitled(job.output_schema) == schema
    assert b'"strict":true' in compile_job(job).render({"body": "x"}).body


@pytest.fixture
def modules() -> Iterator[None]:
    """Modules that a test imports are forgotten after it."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


MODELS = "from pydantic import BaseModel\nclass Label(BaseModel):\n    {field}: str\nnumber = 5\n"


@pytest.mark.usefixtures("modules")
def test_output_names_a_model_beside_the_job(folder: Path) -> None:
    """package.module:Model is found from the job file's folder, and never taken from another folder's module."""
    (folder / "models_of_test.py").write_text(MODELS.format(field="one"), "utf-8")
    job = job_from_dict(changed(output="models_of_test:Label"), base_dir=folder)
    assert job.output_schema is not None
    assert list(job.output_schema["properties"]) == ["one"]

    other = folder / "other"
    other.mkdir()
    (other / "models_of_test.py").write_text(MODELS.format(field="two"), "utf-8")
    (problem,) = problems_of(other, output="models_of_test:Label")
    assert "already imported" in problem


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("models_of_test:Lable", "no pydantic model 'Lable'; did you mean 'Label'?"),
        ("models_of_test:number", "no pydantic model 'number'"),
        ("no_such_module:Label", "cannot be imported: ModuleNotFoundError"),
        ("broken_of_test:Label", "cannot be imported: ZeroDivisionError"),
        ("none.json", "cannot be read"),
        ("list.json", "found a list; expected a JSON Schema"),
        ("half.json", "is not JSON"),
        ("wrong.json", "not a JSON Schema: properties.a.type"),
        ("label", "expected a JSON Schema, the path of a .json file, or package.module:PydanticModel"),
        (5, "found 5; expected a JSON Schema"),
        ({"type": "objekt"}, "output.type: not a JSON Schema"),
        ({"type": "object", "properties": {"a": {"minimum": "1"}}}, "output.properties.a.minimum: not a JSON Schema"),
        ({"type": "object", "$ref": "http://127.0.0.1:9/x"}, "Retrieval is disabled"),
        ({"type": "string"}, "expected `type: object`"),
    ],
)
def test_an_output_that_is_no_schema_is_a_problem(folder: Path, output: Any, message: str) -> None:
    """What cannot be read, imported or used as a schema is named, and nothing is fetched."""
    (folder / "models_of_test.py").write_text(MODELS.format(field="one"), "utf-8")
    (folder / "broken_of_test.py").write_text("1 / 0", "utf-8")
    (folder / "list.json").write_text("[]", "utf-8")
    (folder / "half.json").write_text("{", "utf-8")
    (folder / "wrong.json").write_text('{"type": "object", "properties": {"a": {"type": 5}}}', "utf-8")
    (problem,) = problems_of(folder, output=output)
    assert problem.startswith("output")
    assert message in problem


# ------------------------------------------------------------------------------------------------------------- problems


def test_every_problem_of_a_file_comes_at_once(folder: Path) -> None:
    """Syntax, unknown and missing fields, wrong values, templates and files: all together, each at its place."""
    text = """\
        version: 2
        name: Bad Name
        source: rows.csv
        model: small-2
        prompt: prompts/none.md
        system: |
          hello
          {{ x | uper }}
        route: batch
        dedupe: yes
        deadline: 24
        buget: {usd: 3}
        tier: [batch, live]
        max_output_tokens: "5"
        max_output_tokens: 5
        params: {n: 2, stream: true}
        retry: {attempts: 11, backoff: 3}
        shard:
          max_row: 5
        quality: {refuse_if_bad_rate: 10, sure: 100%}
        load: ./prompts/../rows.csv
        output: {type: objekt}
        freshness:
          on_stale: warn
        schedule: "0 25 * * *"
        owner: 5
        """
    assert problems(folder, text) == [
        "job.yaml:1:1: urgency: is required: how long readers can wait: near_real_time or batch",
        "job.yaml:1:10: version: found 2; expected 1",
        "job.yaml:2:7: name: found 'Bad Name'; expected at most 63 lower-case letters, digits, '.', '_' and '-', "
        "a letter or digit first",
        "job.yaml:3:9: source.key: is required, here or at the top: the column that names a row",
        "job.yaml:4:8: model: found 'small-2'; expected openai/NAME, anthropic/NAME, own/NAME or local/NAME",
        "job.yaml:5:9: prompt: 'prompts/none.md' cannot be read: No such file or directory; "
        "a prompt that is no path goes in a block: `prompt: |`",
        "job.yaml:8: system: no filter is called 'uper'; did you mean 'upper'?",
        "job.yaml:9:1: route: unknown field; did you mean 'tier'?",
        "job.yaml:10:9: dedupe: found 'yes'; expected true or false",
        "job.yaml:11:11: deadline: found the bare number 24; a duration states its unit: 24h, 24m or 24d",
        "job.yaml:12:1: buget: unknown field; did you mean 'budget'?",
        "job.yaml:13:15: tier[1]: found 'live'; expected 'batch', 'background', 'flex', 'standard' or 'own'; "
        "did you mean 'standard'?",
        "job.yaml:14:20: max_output_tokens: found '5'; expected a whole number",
        "job.yaml:15:1: max_output_tokens: given twice, first on line 14",
        "job.yaml:16:13: params.n: found 2; a row is one answer, and each further one is paid",
        "job.yaml:16:24: params.stream: a batch does not stream",
        "job.yaml:17:19: retry.attempts: found 11; expected at most 10",
        "job.yaml:17:23: retry.backoff: unknown field; expected attempts",
        "job.yaml:19:3: shard.max_row: unknown field; did you mean 'max_rows'?",
        "job.yaml:20:31: quality.refuse_if_bad_rate: found the bare number 10; a share states its unit: 10%",
        "job.yaml:20:41: quality.sure: found 100%; expected more than 0% and less than 100%",
        "job.yaml:21:7: load: './prompts/../rows.csv' is the source itself; expected another file",
        'job.yaml:22:16: output.type: not a JSON Schema: "objekt" is not valid under any of the schemas listed in '
        "the 'anyOf' keyword",
        "job.yaml:23:1: freshness.max_age: is required: how old an answer may be, counted from its input, like 24h",
        "job.yaml:24:13: freshness.on_stale: found 'warn'; expected 'serve', 'block' or 'live'",
        "job.yaml:25:11: schedule: found '25' as hour; expected *, 0 to 23, a range, a list or a step",
        "job.yaml:26:8: owner: found 5; expected text; put it in quotes",
    ]


def test_problems_of_a_prompt_file_name_that_file(folder: Path) -> None:
    """A fault of a template stands at its own file and line."""
    (folder / "prompts/classify.md").write_text("ok\n{{ a|uper }}\n{{ b", "utf-8")
    (problem,) = problems(folder, FULL)
    assert problem.startswith("prompts/classify.md:3: prompt: not a template")


def test_problems_of_json_have_places(folder: Path) -> None:
    """JSON files are told of duplicates and wrong values at line and column too."""
    text = """\
        {
        \t"version": 1, "name": "x", "version": 2, "urgency": "batch", "model": "openai/m",
        \t"source": {"uri": "a.csv", "kei": "id"}, "key": "i\\ud800", "max_output_tokens": 1e400,
        \t"budget": {"usd": 0.0000001, "tokens": true}, "params": {"top_p": NaN},
        \t"prompt": [{"role": "sistem", "content": "x"}, {"role": "system", "content": "{{ a"}]
        }
        """
    assert problems(folder, text, "job.json") == [
        "job.json:2:29: version: given twice, first on line 2",
        "job.json:3:29: source.kei: unknown field; did you mean 'key'?",
        "job.json:3:50: key: holds a NUL character or half of a surrogate pair",
        "job.json:3:82: max_output_tokens: found 1E+400; expected a number of reasonable size",
        "job.json:4:20: budget.usd: found 1E-7; expected at most 6 decimals: money is counted in millionths of a "
        "dollar",
        "job.json:4:41: budget.tokens: found true; expected a whole number",
        "job.json:4:68: params.top_p: found NaN; expected a number of reasonable size",
        "job.json:5:22: prompt[0].role: found 'sistem'; expected system, user, assistant; did you mean 'system'?",
        "job.json:5:58: prompt[1].role: a system message comes first, and only once",
        "job.json:5:58: prompt[1].role: expected a message of the user",
        "job.json:5:79: prompt[1].content: not a template: unexpected end of template, expected 'end of print "
        "statement'.",
    ]


def test_problems_of_toml_have_lines(folder: Path) -> None:
    """TOML files are told the line of each statement, tables and long texts included."""
    text = '''\
        # a job
        version = 1
        name = "X"
        model = "own/x"
        prompt = """
        model = 5 {{ x | foo }}
        """
        urgency = "batch"
        max_output_tokens = 5.5
        key = 1979-05-27

        [source]
        uri = "x.csv"
        kei = 5
        [budget]
          usd = 40.0000001
        [[load]]
        to = "5"
        '''
    assert problems(folder, text, "job.toml") == [
        "job.toml:3:1: name: found 'X'; expected at most 63 lower-case letters, digits, '.', '_' and '-', "
        "a letter or digit first",
        "job.toml:5:1: prompt: no filter is called 'foo'",
        "job.toml:9:1: max_output_tokens: found 5.5; expected a whole number",
        "job.toml:10:1: key: found a date; expected text, a number, true or false, a list or a mapping",
        "job.toml:14:1: source.kei: unknown field; did you mean 'key'?",
        "job.toml:16:3: budget.usd: found 40.0000001; expected at most 6 decimals: money is counted in millionths of a "
        "dollar",
        "job.toml:17:1: load: found a list; expected a path or a mapping",
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.yaml", b"a: [1\nb: 2", "a.yaml:2:2: not YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("a.yaml", b"a: &x 1\nb: *x", "a.yaml:2:4: not YAML: an alias; write the value out"),
        ("a.yaml", b"a: 1\n---\nb: 2", "a.yaml:2:1: not YAML: expected a single document in the stream, but found"),
        ("a.yaml", b"# nothing\n", "a.yaml: is empty"),
        ("a.yaml", b"- 1", "a.yaml:1:1: found a list; expected a mapping"),
        ("a.yaml", b"a\0b", "a.yaml:1:2: not YAML: the character U+0000"),
        ("a.yaml", b'a: "\\UFFFFFFFF"', "a.yaml: not YAML: an escape beyond Unicode"),
        ("a.yaml", b"a: \xff", "a.yaml: is not UTF-8: byte 4 is 0xff"),
        ("a.yaml", b"[" * 100_000, "a.yaml: nested too deeply"),
        ("a.yaml", b"a: " + b"{a: " * 500 + b"1" + b"}" * 500, "a.yaml: nested too deeply"),
        ("a.json", b'{"a": 1,}', "a.json:1:9: not JSON: "),
        ("a.json", b'{"a":' * 700 + b"1" + b"}" * 700, "a.json: nested too deeply"),
        ("a.json", b'{"a": ' + b"9" * 5000 + b"}", "a.json: not JSON: Exceeds the limit"),
        ("a.toml", b"a = ", "a.toml: not TOML: Invalid value"),
        ("a.toml", b"a = 1\na = 2", "a.toml: not TOML: Cannot overwrite a value"),
        ("a.toml", b"a = " + b"9" * 5000, "a.toml: not TOML: Exceeds the limit"),
        ("a.yaml", None, "a.yaml: cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_problem(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    """Text that is no document is a problem at its place, never a traceback."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_job(tmp_path / name)
    (found,) = caught.value.problems
    assert str(found).replace(f"{tmp_path}/", "").startswith(problem)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("owner: !!python/object:os.system x", "job.yaml:1:8: owner: has the tag"),
        ('owner: !!int "x"', "job.yaml:1:8: owner: found 'x', which is no int"),
        ("? [a]\n: b", "job.yaml:1:3: a list or mapping as a name; expected text"),
        ('owner: "a\\0b"', "job.yaml:1:8: owner: holds a NUL character"),
        ("params: {seed: 99999999999999999999}", "job.yaml:1:16: params.seed: is too large a number"),
        ("params: {top_p: 1e-99999999}", "job.yaml:1:17: params.top_p: found 1E-99999999"),
    ],
)
def test_awkward_yaml_is_one_problem_at_its_place(folder: Path, line: str, problem: str) -> None:
    """Tags, odd keys, NULs and numbers beyond reason are named, once each."""
    (found,) = problems(folder, f"{line}\n{yaml.safe_dump(MINIMAL)}")
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": ...}, "name: is required"),
        ({"version": "1"}, "version: found '1'; expected 1"),
        ({"name": "a/b"}, "name: found 'a/b'"),
        ({"name": "a" * 64}, "name: found"),
        ({"source": 5}, "source: found 5; expected a path or a mapping"),
        ({"source": {"key": "id"}}, "source.uri: is required"),
        ({"source": {"uri": "", "key": "id"}}, "source.uri: found empty text; expected one line of text"),
        ({"source": {"uri": "a", "key": "id", "format": "xlsx"}}, "source.format: found 'xlsx'; expected 'csv'"),
        ({"key": "other"}, "key: found 'other', but source.key is 'id'"),
        ({"prompt": 5}, "prompt: found 5; expected text or a list of messages"),
        ({"prompt": []}, "prompt: found an empty list; expected messages"),
        ({"prompt": "   "}, "prompt: is empty"),
        ({"prompt": [{"role": "user"}]}, "prompt[0].content: is required"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "prompt[0].role: expected a message of the user"),
        ({"system": "x", "prompt": [{"role": "system", "content": "y"}, {"role": "user", "content": "z"}]},
         "prompt[0].role: a system message comes first, and only once"),
        ({"system": ""}, "system: is empty"),
        ({"model": 5}, "model: found 5; expected text"),
        ({"max_output_tokens": 0}, "max_output_tokens: found 0; expected more than 0"),
        ({"max_output_tokens": 5.0}, "max_output_tokens: found 5.0; expected a whole number"),
        ({"urgency": "sync"}, "urgency: found 'sync': somebody waits for each answer"),
        ({"urgency": "bach"}, "urgency: found 'bach'; expected 'sync', 'near_real_time' or 'batch'; did you mean"),
        ({"budget": {}}, "budget: limits nothing; expected usd, tokens or rows"),
        ({"budget": {"rows": 9, "tell_at": ["50%"]}}, "budget: tell_at is of a limit in US dollars; expected usd beside it"),
        ({"budget": {"usd": -1}}, "budget.usd: found -1"),
        ({"budget": {"usd": "1.0000001"}}, "budget.usd: found 1.0000001; expected at most 6 decimals"),
        ({"budget": {"rows": 0}}, "budget.rows: found 0; expected more than 0"),
        ({"budget": {"usd": 1, "on_exceed": "warn"}}, "budget.on_exceed: found 'warn'; expected 'refuse', 'trim' or"),
        ({"budget": {"dollars": 1}}, "budget.dollars: unknown field; expected usd, tokens, rows, on_exceed"),
        ({"budget": 40}, "budget: found 40; expected a mapping"),
        ({"retry": {"attempts": 0}}, "retry.attempts: found 0; expected at least 1"),
        ({"dedupe": 1}, "dedupe: found 1; expected true or false"),
        ({"tier": ["batch", 5]}, "tier[1]: found 5; expected 'batch'"),
        ({"deadline": 24}, "deadline: found the bare number 24"),
        ({"params": []}, "params: found a list; expected a mapping"),
        ({"params": {"x": {1, 2}}}, "params.x: found a set"),
        ({"params": {5: 1}}, "params: found the name 5; expected text"),
        ({"load": {"mode": "merge"}}, "load.to: is required"),
        ({"load": "rows.csv"}, "load: 'rows.csv' is the source itself"),
        ({"owner": "a\nb"}, "owner: found 'a\nb'; expected one line of text"),
        ({"schedule": "daily"}, "schedule: found 1 fields; expected 5"),
        ({"schedule": "*-5 * * * *"}, "schedule: found '*-5' as minute"),
        ({"schedule": "0 5-1 * * *"}, "schedule: found '5-1' as hour"),
        ({"schedule": "0 0 * * mon,"}, "schedule: found '' as weekday"),
        ({"schedule": "*/0 * * * *"}, "schedule: found '*/0' as minute"),
        ({"messages": []}, "messages: unknown field; did you mean 'prompt'?"),
        ({"zzz": 1}, "zzz: unknown field"),
        ({"model": "claude-x", "output": {"type": "object"}}, "output: anthropic takes only objects"),
        ({"endpoint": "embedding"}, "endpoint: found 'embedding'; expected 'chat', 'responses' or 'embeddings'; did"),
        ({"model": "claude-x", "endpoint": "responses"}, "endpoint: found 'responses'; Anthropic serves its messages"),
        ({"model": "local", "endpoint": "responses"}, "endpoint: found 'responses'; the built-in model chats only"),
        ({"endpoint": "responses", "max_output_tokens": ...}, "max_output_tokens: is required: the bound of one"),
        ({"max_output_tokens": None}, "max_output_tokens: is required: the bound of one answer"),
        ({"endpoint": "responses", "max_output_tokens": 15}, "max_output_tokens: found 15; OpenAI's responses take 16"),
        ({"endpoint": "embeddings"}, "max_output_tokens: an embedding has no output tokens; leave it out"),
        (EMBED | {"system": "x"}, "system: what is embedded is one text: a single message of the user"),
        (EMBED | {"prompt": [{"role": "user", "content": "x"}] * 2}, "prompt[1].role: what is embedded is one text"),
        (EMBED | {"output": {"type": "object"}}, "output: an embedding is a vector and has no schema"),
        (EMBED | {"params": {"dimensions": 0}}, "params.dimensions: found 0; expected a whole number above 0"),
        (EMBED | {"params": {"encoding_format": "hex"}}, "params.encoding_format: found 'hex'; expected base64"),
        ({"params": {"input": "x"}}, "params.input: is the job's `prompt`"),
        ({"params": {"previous_response_id": "r"}}, "params.previous_response_id: earlier turns are input that was"),
        ({"params": {"prompt_cache_options": {"ttl": "12h"}}}, "params.prompt_cache_options.ttl: keeping a cache for"),
        ({"params": {"text": {"format": {}}}}, "params.text: expected a mapping without `format`"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_sentence(folder: Path, fields: dict[str, Any], expected: str) -> None:
    """One mistake is one problem: what was found, what was expected, what was probably meant."""
    (problem,) = problems_of(folder, **fields)
    assert problem.startswith(expected)


def test_a_misspelt_required_field_is_one_problem(folder: Path) -> None:
    """`buget` is not also a missing budget."""
    assert problems_of(folder, budget=..., buget={"usd": 1}) == ["buget: unknown field; did you mean 'budget'?"]
    unknown = "max_tokens: unknown field; did you mean 'max_output_tokens'?"
    assert problems_of(folder, max_output_tokens=..., max_tokens=5) == [unknown]


def test_a_hard_link_is_the_source_too(folder: Path) -> None:
    """Loading into the source is refused by the file it is, not by its name."""
    (folder / "rows.csv").write_text("id\n", "utf-8")
    (folder / "same.csv").hardlink_to(folder / "rows.csv")
    (problem,) = problems_of(folder, load="same.csv")
    assert "is the source itself" in problem


@pytest.mark.parametrize("schedule", ["0 22 * * *", "*/5 0-6 1,15 jan-mar 0,7", "0 0 1 * MON-fri/2"])
def test_schedules_are_kept_as_written(folder: Path, schedule: str) -> None:
    """Lists, ranges, steps and names are cron's own."""
    assert job_from_dict(changed(schedule=schedule), base_dir=folder).schedule == schedule


# --------------------------------------------------------------------------------------------------------- the schema


def test_the_published_schema_is_the_model() -> None:
    """schemas/job.v1.json is what the model says, and is itself a valid JSON Schema."""
    assert json.loads(SCHEMA.read_text("utf-8")) == job_schema()
    assert jsonschema_rs.meta.is_valid(job_schema())


def test_the_page_describes_every_field(folder: Path) -> None:
    """docs/job-file.md has a line for each field, and its examples are jobs."""
    page = PAGE.read_text("utf-8")
    assert [field for field in job_schema()["properties"] if f"\n| `{field}` |" not in page] == []
    examples = re.findall("```yaml\n(.*?)```", page, re.S)
    assert [load(folder, example).name for example in examples] == ["classify-tickets", "embed-articles"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        yaml.safe_load(FULL.replace("yes, no", "'yes', 'no'")),
        {"source": "rows.csv", "key": "id"},
        {"tier": "batch", "load": "out.csv", "$schema": "job.schema.json"},
        {"prompt": [{"role": "user", "content": "x"}], "output": "label.json", "budget": {"usd": 40.5}},
        {"endpoint": "responses"},
        {"source": {"uri": "${DB}", "sql": "SELECT 1", "key": "id", "format": None}},
        {"source": {"uri": "s3://b/a.csv.gz", "key": "id"}, "load": "gs://b/a.parquet"},
        {"load": {"to": "postgresql://u:${PW}@h/db", "table": "sales.labels", "mode": "replace"}},
        EMBED | {"params": {"dimensions": 8}},
    ],
)
def test_the_schema_takes_what_the_model_takes(folder: Path, fields: dict[str, Any]) -> None:
    """A job that loads is valid by the published schema, so an editor does not object to it."""
    (folder / "label.json").write_text('{"type": "object"}', "utf-8")
    job_from_dict(changed(**fields), base_dir=folder)
    jsonschema_rs.Draft202012Validator(job_schema()).validate(changed(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"budget": {}}, {"budget": ...}, {"urgency": ...}, {"max_output_tokens": ...}, {"source": "rows.csv"},
        {"deadline": 24}, {"deadline": "24"}, {"tier": "live"}, {"buget": 1}, {"name": "A"}, {"version": 2},
        {"budget": {"usd": "$4"}}, {"prompt": [{"role": "robot", "content": "x"}]}, {"prompt": []},
        {"quality": {"refuse_if_bad_rate": 10}}, {"retry": {"attempts": 11}}, {"max_output_tokens": 0},
        {"endpoint": "images"}, {"endpoint": "embeddings"}, {"endpoint": "responses", "max_output_tokens": ...},
        {"source": {"uri": "sqlite:///a.db", "sql": "SELECT 1", "key": "id", "format": "csv"}},
        {"source": {"uri": "sqlite:///a.db", "sql": " ", "key": "id"}},
        {"load": {"to": "sqlite:///a.db", "table": "t", "mode": "append"}},
        {"load": {"to": "sqlite:///a.db", "table": "t", "format": "csv"}},
        EMBED | {"system": "x"}, EMBED | {"output": {"type": "object"}}, {"max_output_tokens": None},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_model_refuses(folder: Path, fields: dict[str, Any]) -> None:
    """What an editor can see without reading files, it marks."""
    with pytest.raises(SpecError):
        job_from_dict(changed(**fields), base_dir=folder)
    assert not jsonschema_rs.Draft202012Validator(job_schema()).is_valid(changed(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": {"uri": "postgresql://h/db", "key": "id"}},
            "source.uri: 'postgresql://h/db' is a database; expected `sql` beside it",
        ),
        ({"load": "sqlite:///a.db"}, "load: 'sqlite:///a.db' is a database; expected `table` beside it"),
        (
            {"source": {"uri": "rows.csv", "sql": "SELECT 1", "key": "id"}},
            "source.uri: 'rows.csv' is no database; expected sqlite:///FILE or postgresql://HOST/DATABASE",
        ),
        (
            {"load": {"to": "postgresql://u:hunter2@h/db", "table": "t"}},
            "load.to: a password stands in the address; expected ${NAME} there, which the environment holds",
        ),
        (
            {"source": {"uri": "s3://bucket", "key": "id"}},
            "source.uri: 's3://bucket' names no object; expected s3://BUCKET/PATH",
        ),
        ({"load": "ftp://h/a.csv"}, "load: 'ftp://h/a.csv' is no address that is known; expected a path, or one"),
    ],
)
def test_an_address_is_checked_where_it_is_written(folder: Path, fields: dict[str, Any], message: str) -> None:
    """What an address lacks, or should not hold, is a problem of the job file; a password is not repeated."""
    with pytest.raises(SpecError) as caught:
        job_from_dict(changed(**fields), base_dir=folder)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_queries_and_tables_reach_the_job(folder: Path) -> None:
    """The job has what the file says; what the environment holds is not in it."""
    source = {"uri": "${DB}", "sql": "SELECT *\nFROM t", "key": "id"}
    job = job_from_dict(changed(source=source, load={"to": "${DB}", "table": "labels"}), base_dir=folder)
    assert job.source == Source("${DB}", "id", sql="SELECT *\nFROM t")
    assert job.load == Load("${DB}", table="labels")
