"""Rows become requests: canonical bytes, sandboxed templates, and every fault of a template before a row is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy
import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from canwait.errors import SpecError
from canwait.render import Renderer, RowProblem, compile_job, endpoint, key_text, keyed, nearest
from canwait.structured import structured_output
from canwait.types import BudgetSpec, Endpoint, Job, Source, Urgency

LABEL = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "label": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["why", "label"],
    "additionalProperties": False,
}


def job(*prompt: tuple[str, str] | str, provider: str = "openai", **fields: Any) -> Job:
    return Job(
        name="j",
        source=Source("rows.csv", "id"),
        provider=provider,
        model="m",
        prompt=tuple(("user", p) if isinstance(p, str) else p for p in prompt),
        max_output_tokens=_BOUNDS[fields.get("endpoint", Endpoint.CHAT)],
        urgency=Urgency.BATCH,
        budget=BudgetSpec(1, None, None),
        **fields,
    )


_BOUNDS = {Endpoint.CHAT: 7, Endpoint.RESPONSES: 16, Endpoint.EMBEDDINGS: 0}


def compiled(*prompt: tuple[str, str] | str, **fields: Any) -> Renderer:
    return compile_job(job(*prompt, **fields))


def body_of(renderer: Renderer, row: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(renderer.render(row).body)
    return body


# ------------------------------------------------------------------------------------------------------------- bodies


def test_one_template_is_one_user_message() -> None:
    """A template becomes the only message, its slots filled, the output bounded."""
    rendered = compiled("Sort {{ body }}").render({"body": "café", "id": 1})
    assert rendered.texts == ("Sort café",)
    assert rendered.body.decode() == (
        '{"max_completion_tokens":7,"messages":[{"content":"Sort café","role":"user"}],"model":"m"}'
    )


@pytest.mark.parametrize(
    ("provider", "path", "bound"),
    [
        ("openai", "/v1/chat/completions", "max_completion_tokens"),
        ("own", "/v1/chat/completions", "max_tokens"),
        ("local", "/v1/chat/completions", "max_tokens"),
        ("anthropic", "/v1/messages", "max_tokens"),
    ],
)
def test_each_provider_gets_its_own_wire_words(provider: str, path: str, bound: str) -> None:
    """The endpoint and the name of the output bound are the provider's."""
    body = body_of(compiled("Hi", provider=provider), {})
    assert (endpoint(job("Hi", provider=provider)), body) == (
        path,
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], bound: 7},
    )


def test_a_response_takes_its_messages_as_input() -> None:
    """The responses endpoint has its own words for messages and bound, and keeps nothing at the provider."""
    prompt = ("system", "Be {{ how }}."), ("user", "Hi")
    made = job(*prompt, endpoint=Endpoint.RESPONSES, params={"reasoning": {"effort": "low"}})
    rendered = compile_job(made).render({"how": "brief"})
    assert (endpoint(made), rendered.texts) == ("/v1/responses", ("Be brief.", "Hi"))
    assert rendered.body.decode() == (
        '{"input":[{"content":"Be brief.","role":"system"},{"content":"Hi","role":"user"}],"max_output_tokens":16,'
        '"model":"m","reasoning":{"effort":"low"},"store":false}'
    )
    kept = compiled("Hi", endpoint=Endpoint.RESPONSES, provider="own", params={"store": True})
    assert body_of(kept, {})["store"] is True


def test_a_response_is_asked_for_the_schema_beside_the_params_of_its_text() -> None:
    """`text.format` holds the schema as written, and what params say of the text stands beside it."""
    renderer = compiled("Hi", endpoint=Endpoint.RESPONSES, params={"text": {"verbosity": "low"}}, output_schema=LABEL)
    text = body_of(renderer, {})["text"]
    assert text == {
        "format": {"name": "answer", "schema": LABEL, "strict": True, "type": "json_schema"},
        "verbosity": "low",
    }
    assert list(text["format"]["schema"]["properties"]) == ["why", "label"]
    assert renderer.fixed_bytes == len("text") + len(orjson.dumps(text))


def test_an_embedding_takes_one_text() -> None:
    """The one message is the input; no bound is sent, no param is read by the model, and vectors come as base64."""
    made = job("{{ title }}\n{{ body }}", endpoint=Endpoint.EMBEDDINGS, params={"dimensions": 8})
    renderer = compile_job(made)
    rendered = renderer.render({"title": "A", "body": 'say "b"'})
    assert (endpoint(made), rendered.texts, renderer.fixed_bytes) == ("/v1/embeddings", ('A\nsay "b"',), 0)
    assert rendered.body.decode() == (
        '{"dimensions":8,"encoding_format":"base64","input":"A\\nsay \\"b\\"","model":"m"}'
    )
    plain = compiled("Hi", endpoint=Endpoint.EMBEDDINGS, provider="own", params={"encoding_format": "float"})
    assert body_of(plain, {}) == {"encoding_format": "float", "input": "Hi", "model": "m"}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"provider": "anthropic", "endpoint": Endpoint.RESPONSES}, "endpoint"),
        ({"provider": "local", "endpoint": Endpoint.EMBEDDINGS}, "endpoint"),
        ({"endpoint": Endpoint.EMBEDDINGS, "output_schema": LABEL}, "output"),
        ({"endpoint": Endpoint.RESPONSES, "params": {"tools": [{"type": "web_search"}]}}, "params.tools[0]"),
        ({"endpoint": Endpoint.RESPONSES, "params": {"background": True}}, "params.background"),
        ({"endpoint": Endpoint.RESPONSES, "params": {"context_management": []}}, "params.context_management"),
    ],
)
def test_what_an_endpoint_does_not_serve_is_a_fault(fields: dict[str, Any], where: str) -> None:
    """A job by value is told at its place what its endpoint cannot be asked for."""
    with pytest.raises(SpecError) as caught:
        compiled("Hi", **fields)
    assert [problem.field for problem in caught.value.problems] == [where]


@pytest.mark.parametrize(
    ("endpoint", "bound", "message"),
    [
        (Endpoint.RESPONSES, 15, "found 15; OpenAI's responses take 16 or more"),
        (Endpoint.EMBEDDINGS, 7, "an embedding has no output tokens; leave it out"),
    ],
)
def test_a_bound_the_endpoint_does_not_take_is_a_fault(endpoint: Endpoint, bound: int, message: str) -> None:
    """What the provider would refuse row by row is said before any row is read."""
    with pytest.raises(SpecError) as caught:
        compile_job(replace(job("Hi", endpoint=endpoint), max_output_tokens=bound))
    assert [(p.field, p.message) for p in caught.value.problems] == [("max_output_tokens", message)]


def test_anthropic_takes_the_system_message_beside_the_others() -> None:
    """Messages has no system role: the system text stands at the top, and `texts` still holds it first."""
    rendered = compiled(("system", "Be {{ how }}."), ("user", "Hi"), provider="anthropic").render({"how": "brief"})
    assert rendered.texts == ("Be brief.", "Hi")
    assert json.loads(rendered.body) == {
        "model": "m",
        "max_tokens": 7,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hi"}],
    }


@given(
    st.dictionaries(st.sampled_from(["temperature", "seed", "stop", "metadata", "logit_bias"]), st.integers(0, 9)),
    st.dictionaries(st.text("abc", min_size=1), st.text("xyz", min_size=1), min_size=1),
    st.randoms(use_true_random=False),
)
def test_bytes_do_not_depend_on_the_order_of_keys(params: dict[str, int], row: dict[str, str], random: Any) -> None:
    """Equal requests have equal bytes, whatever order params and columns came in; the bytes are canonical JSON."""

    def shuffled(d: dict[str, Any]) -> dict[str, Any]:
        return dict(random.sample(list(d.items()), len(d)))

    template = " ".join(f"{{{{ {column} }}}}" for column in row)
    nested = {"metadata": shuffled(row), **params}
    one = compiled(template, params=nested, output_schema=LABEL).render(row)
    other = compiled(template, params=shuffled(nested), output_schema=LABEL).render(shuffled(row))
    assert one == other
    loose = json.loads(one.body)
    del loose["response_format"]
    plain = compiled(template, params=nested).render(row).body
    assert plain == orjson.dumps(loose, option=orjson.OPT_SORT_KEYS)


def test_the_order_of_an_output_schema_is_kept() -> None:
    """Models write fields in schema order, so `why` before `label` is another request than the reverse."""
    turned = {**LABEL, "properties": dict(reversed(LABEL["properties"].items()))}  # type: ignore[attr-defined]
    one, other = (compiled("Hi", output_schema=s).render({}).body for s in (LABEL, turned))
    assert one != other
    assert one.index(b'"why":') < one.index(b'"label":')
    assert other.index(b'"label":') < other.index(b'"why":')


def test_params_are_sent_as_they_are() -> None:
    """Params stand in the body unchanged, and those a model may read are counted as input."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    sampling = compiled("Hi", params={"temperature": 0.5, "stop": ["\n"], "n": 1})
    reading = compiled("Hi", params={"temperature": 0.5, "tools": [tool]})
    assert body_of(sampling, {})["temperature"] == 0.5
    assert body_of(reading, {})["tools"] == [tool]
    assert sampling.fixed_bytes == 0
    assert reading.fixed_bytes >= len(orjson.dumps([tool]))


# -------------------------------------------------------------------------------------------------- structured output


def test_openai_is_asked_for_the_schema() -> None:
    """The schema rides in response_format, and its bytes count as input."""
    renderer = compiled("Hi", output_schema=LABEL)
    assert body_of(renderer, {})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": LABEL},
    }
    assert renderer.fixed_bytes >= len(orjson.dumps(LABEL))


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (LABEL, True),
        ({**LABEL, "$schema": "https://json-schema.org/draft/2020-12/schema"}, True),
        ({**LABEL, "additionalProperties": True}, False),
        ({k: v for k, v in LABEL.items() if k != "additionalProperties"}, False),
        ({**LABEL, "required": ["why"]}, False),
        ({**LABEL, "allOf": []}, False),
        ({**LABEL, "properties": {"why": {"type": "string", "minLength": 1}, "label": {"type": "string"}}}, False),
        ({**LABEL, "properties": {"why": {"type": "string", "format": "regex"}, "label": {"type": "null"}}}, False),
        ({**LABEL, "properties": {"why": {"type": "array", "items": {"type": "object"}}, "label": LABEL}}, False),
        ({**LABEL, "properties": {"why": {"type": "array", "items": LABEL}, "label": {"anyOf": [LABEL]}}}, True),
        ({**LABEL, "properties": {"why": {"anyOf": [{"type": "object"}]}, "label": LABEL}}, False),
        ({**LABEL, "properties": {"why": {"$ref": "#/$defs/a"}, "label": LABEL}, "$defs": {"a": LABEL}}, True),
        ({**LABEL, "properties": {"why": {"$ref": "#/$defs/a", "title": "x"}, "label": LABEL}}, False),
        ({**LABEL, "properties": {"why": True, "label": LABEL}}, False),
        ({**LABEL, "properties": {"why": {}, "label": LABEL}}, False),
        ({**LABEL, "$defs": {"a": {"type": "object"}}}, False),
    ],
)
def test_strict_only_where_openai_takes_it(schema: dict[str, Any], strict: bool) -> None:
    """strict is asked only of a schema that keeps OpenAI's rules all the way down: else every row would be refused."""
    assert structured_output("openai", schema)["response_format"]["json_schema"]["strict"] is strict


def test_anthropic_is_asked_in_its_own_words(shared: Path) -> None:
    """output_config fits the anthropic SDK's own schema: objects closed, what it does not take told in words."""
    schema = {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "minimum": 1, "description": "of five"},
            "kind": {"oneOf": [{"const": "a"}, {"type": "null"}]},
            "at": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
            "part": {"$ref": "#/$defs/part", "title": "dropped beside a $ref"},
        },
        "$defs": {"part": {"type": "object", "properties": {"x": {"type": "string"}}}},
        "required": ["score"],
    }
    renderer = compiled("Hi", provider="anthropic", output_schema=schema, params={"output_config": {"effort": "low"}})
    body = body_of(renderer, {})
    assert body["output_config"] == {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {
                    "score": {"type": "integer", "description": 'of five\n\n{"minimum": 1}'},
                    "kind": {"anyOf": [{"const": "a"}, {"type": "null"}]},
                    "at": {"type": "string", "format": "date"},
                    "tags": {
                        "type": "array",
                        "items": {"type": "string"},
                        "minItems": 1,
                        "description": '{"maxItems": 3}',
                    },
                    "part": {"$ref": "#/$defs/part"},
                },
                "$defs": {
                    "part": {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": False}
                },
                "required": ["score"],
                "additionalProperties": False,
            },
        },
    }
    specs = json.loads((shared / "data/specs/anthropic-sdk-2.12.0.message-batches.schema.json").read_text("utf-8"))
    batch = {"requests": [{"custom_id": "a-0", "params": body}]}
    jsonschema_rs.Draft202012Validator(specs["BatchCreateParams"], offline=True).validate(batch)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {**LABEL, "properties": {"why": True, "label": {"type": "string"}}},
        {**LABEL, "properties": {"why": {"description": "anything"}, "label": {"type": "string"}}},
        {**LABEL, "definitions": {}},
    ],
)
def test_a_schema_anthropic_cannot_be_asked_for_is_a_fault(schema: dict[str, Any]) -> None:
    """What would come back empty or refused for every row is refused before the first."""
    with pytest.raises(SpecError, match="job j: output: anthropic"):
        compiled("Hi", provider="anthropic", output_schema=schema)


# --------------------------------------------------------------------------------------------------------- templates

JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.decimals(), st.text(st.characters(codec="utf-8")),
    st.lists(st.integers()), st.dictionaries(st.text("ab"), st.none()),
)  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="{}\0"))


@given(
    st.lists(st.tuples(TEXT, st.sampled_from(["{{ a }}", "{{b}}", "{{- a }}", "{{ b -}}", "{# note #}", "\r\n"]))),
    TEXT,
    VALUES,
    VALUES,
)
@example([("100% %s %(a)s ", "{{ a }}")], "\n", "%d", None)
def test_the_fast_path_is_jinja(parts: list[tuple[str, str]], end: str, a: object, b: object) -> None:
    """A template of text and slots renders to exactly what Jinja makes of it, for values of every type."""
    template = "x{{ a }}" + "".join(text + slot for text, slot in parts) + end
    row = {"a": a, "b": b}
    expected = JINJA.from_string(template).render(row)
    assume("\0" not in expected)
    assert compiled(template).render(row).texts == (expected,)


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("{{ a }} {{ b|upper }}", {"a", "b"}),
        ("{% for x in xs %}{{ x }}{{ loop.index }}{% endfor %}", {"xs"}),
        ("{% set y = a %}{{ y }}", {"a"}),
        ("{{ a.b.c }}", {"a"}),
        ("{{ row['Ticket ID'] }} {{ a }}", {"Ticket ID", "a"}),
        ("{% for i in range(3) %}{{ a }}{% endfor %}", {"a"}),
        ("{% raw %}{{ a }}{% endraw %}", set()),
        ("no slot", set()),
    ],
)
def test_columns_are_what_the_templates_read(template: str, columns: set[str]) -> None:
    """The columns a job needs are found without a row."""
    assert compiled(template).columns == columns


def test_a_missing_column_is_found_with_its_likely_name() -> None:
    """Planning can name each missing column, and what was probably meant."""
    renderer = compiled(("system", "{{ Body }}"), "{{ ticket_id }} {{ zzz }} {{ id }}")
    assert renderer.missing(["body", "id", "ticketid"]) == [("Body", "body"), ("ticket_id", "ticketid"), ("zzz", None)]


def test_awkward_column_names_can_be_read() -> None:
    """`row[...]` reads a column that is no identifier, on the fast path and through filters."""
    row = {"Ticket ID": "7%", "items": "i", "row": "r"}
    assert compiled("{{ row['Ticket ID'] }} {{ row['items'] }} {{ row['row'] }}").render(row).texts == ("7% i r",)
    assert compiled("{{ row['Ticket ID'] }} {{ row['items'] | upper }}").render(row).texts == ("7% I",)


def test_templates_do_what_prompts_need() -> None:
    """Conditions, defaults, filters and loops work; JSON is not escaped for HTML; the last newline stays."""
    template = "{% if a %}{{ a|tojson }}{% endif %}{{ b|default('-') }}{% for x in xs %} {{ x }}{% endfor %}\n"
    assert compiled(template).render({"a": {"t": "<é>"}, "xs": [1, 2]}).texts == ('{"t": "<é>"}- 1 2\n',)


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("a\n{{ b", 2, "not a template"),
        ("{{ b|uper }}", 1, "no filter is called 'uper'; did you mean 'upper'?"),
        ("{% if b %}\n{{ b|nope }}{% endif %}", 2, "no filter is called 'nope'"),
        ("{{ b is evn }}", 1, "no test is called 'evn'; did you mean 'even'?"),
        ("{{ b|random }}", 1, "no filter is called 'random'"),
        ("\n{{ b.__class__ }}", 2, "`__class__` cannot be read"),
        ("{% include 'x' %}", 1, "stands alone"),
        ("{% import 'x' as y %}", 1, "stands alone"),
        ("{% extends 'x' %}", 1, "stands alone"),
        ("{{ row }}", 1, "row['row']"),
        ("{{ self }}", 1, "row['self']"),
        ("{{ range }}", 1, "row['range']"),
        ("{{ " + "(" * 4000 + "b" + ")" * 4000 + " }}", 1, "nested too deeply"),
        ("{% for x in b %}" * 30 + "{% endfor %}" * 30, 1, "nested too deeply"),
        (" \n", None, "is empty"),
        ("a\0{{ b }}", 1, "NUL"),
        ("a\ud800", 1, "surrogate"),
    ],
)
def test_a_wrong_template_is_a_fault_before_any_row(template: str, line: int | None, message: str) -> None:
    """Each mistake a template can hold is found when it is compiled, at its line."""
    with pytest.raises(SpecError) as caught:
        compiled(template)
    (problem,) = caught.value.problems
    assert (problem.field, problem.line) == ("prompt[0].content", line)
    assert message in problem.message


def test_all_faults_of_a_job_come_at_once() -> None:
    """Prompt, params and schema are all read before anything is raised."""
    with pytest.raises(SpecError) as caught:
        compiled(
            ("assistant", "{{ a|x }} {{ b|y }}"),
            ("system", "late"),
            ("robot", "hi"),
            provider="anthropic",
            params={"n": 3, "stream": True},
            output_schema={"type": "object"},
        )
    fields = [problem.field for problem in caught.value.problems]
    assert fields == [
        *["prompt[0].content"] * 2, "prompt[1].role", "prompt[2].role", "prompt[2].role", "params.n", "params.stream",
        "output",
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- params


@pytest.mark.parametrize(
    "params",
    [
        {"model": "m"},
        {"messages": []},
        {"system": "s"},
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"stream": False},
        {"response_format": {"type": "json_object"}},
        {"output_config": {"format": {}}},
        {"output_config": 3},
        {"service_tier": "priority"},
        {"n": 2},
        {"n": True},
        {"n": 1.0},
        {"best_of": 2},
        {"cache_control": {"type": "ephemeral"}},
        {"web_search_options": {}},
        {"prediction": {}},
        {"speed": "fast"},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}}]},
        {"tools": {"type": "function"}},
        {"stop": {1, 2}},
        {"user": "\ud800"},
    ],
)
def test_params_cannot_break_the_worst_case(params: dict[str, Any]) -> None:
    """A param the job states elsewhere, or that costs beyond input and bounded output, is refused by name."""
    (name,) = params
    with pytest.raises(SpecError, match=rf"params\.{name}"):
        compiled("Hi", params=params)


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        ("{{ a }}", {}, "the row has no column 'a'"),
        ("{{ a|upper }}", {}, "'a' is undefined"),
        ("{{ a }}", {"a": ""}, "the user message is empty"),
        ("{{ a }}\n", {"a": " \u2003"}, "the user message is empty"),
        ("x {{ a }}", {"a": "b\0"}, "column 'a' holds a NUL"),
        ("x {{ a }}", {"a": "b\udc00"}, "column 'a' holds half of a surrogate pair"),
        ("{{ a|int + 'x' }}", {"a": "1"}, "cannot be filled"),
        ("{{ 1 / a }}", {"a": 0}, "cannot be filled"),
        ("{% for i in range(a) %}x{% endfor %}", {"a": 10**9}, "Range too big"),
        ("{{ a['_' ~ '_class__']['mro'] }}", {"a": "x"}, "cannot be filled"),
        ("{{ a|attr('__class__') }}", {"a": "x"}, "cannot be filled"),
        ("{{ a.append(1) }}", {"a": [1]}, "cannot be filled"),
    ],
)
def test_a_row_that_cannot_be_sent_says_why(template: str, row: dict[str, Any], message: str) -> None:
    """A row without a request names its column or its mistake, and the sandbox holds."""
    with pytest.raises(RowProblem, match=message):
        compiled(template).render(row)


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text() | st.none() | st.integers()))
def test_a_row_is_a_request_or_a_row_problem(row: dict[str, Any]) -> None:
    """Whatever a row holds, rendering gives UTF-8 JSON whose messages are the texts, or a RowProblem."""
    try:
        rendered = compiled(("system", "{{ a }}"), "{{ b|string }}").render(row)
    except RowProblem:
        return
    assert [m["content"] for m in json.loads(rendered.body)["messages"]] == list(rendered.texts)
    assert all(text.strip() and "\0" not in text for text in rendered.texts)


# ---------------------------------------------------------------------------------------------------------------- keys


@given(*[st.tuples(st.binary(), st.text(st.characters(codec="utf-8")), st.text("/v1"))] * 2)
@example((b"c", "a", "b"), (b"", "a", "bc"))
@example((b"c", "ab", ""), (b"c", "a", "b"))
def test_request_keys_differ_when_requests_do(one: tuple[bytes, str, str], other: tuple[bytes, str, str]) -> None:
    """Two requests have one key only if body, model and endpoint are all equal: nothing slides between the parts."""
    keys = [keyed(model, endpoint, body).digest() for body, model, endpoint in (one, other)]
    assert len(keys[0]) == 32
    assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.parametrize(
    ("value", "text"),
    [("000123", "000123"), (" a ", " a "), (7, "7"), (-12, "-12"), (10**30, "1" + "0" * 30), (numpy.int64(5), "5")],
)
def test_keys_survive_exactly(value: object, text: str) -> None:
    """Text stays as it is, whole numbers are decimal."""
    assert key_text(value) == text


@pytest.mark.parametrize("value", ["", None, True, 1.0, Decimal(1), numpy.bool_(True), b"a", "a\0", "\ud800", ["a"]])
def test_a_key_with_two_spellings_is_refused(value: object) -> None:
    """What has no one exact text is no key."""
    with pytest.raises(ValueError, match="the key"):
        key_text(value)


def test_nearest_prefers_the_first_of_equals() -> None:
    """Suggestions ignore case and do not invent."""
    assert (nearest("BODY", ["text", "body"]), nearest("q", ["text", "body"])) == ("body", None)
