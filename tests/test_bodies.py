"""Bodies made many at a time are, byte for byte, those made one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.bodies import Bodies
from canwait.render import RowProblem, compile_job, endpoint, keyed
from canwait.types import BudgetSpec, Endpoint, Job, Source, Urgency

JOB = Job(
    "j", Source("s.csv", "id"), "openai", "m", (("user", "{{ a }}"),), 16, Urgency.BATCH, BudgetSpec(1, None, None)
)
TEXT = st.text(max_size=6) | st.sampled_from(["", " ", "\0", "\ud800", '"\\', "~0:0~", "é🙂", "%s", "{{ a }}", "</a>"])
VALUE = TEXT | st.none() | st.integers() | st.floats(allow_nan=False) | st.lists(TEXT, max_size=2)
TEMPLATES = st.sampled_from(
    ["{{ a }}", "x {{ a }}", "{{ a }} y", "100 % {{ a }}{{ b }}", "only text", "~0:0~ {{ b }}", "{{ a | upper }}!",
     "{% if b %}{{ a }}{% endif %}", "{{ row['a'] }}\n{{ b }}\n", "> {% for x in a %}{{ x }}{% endfor %} <", '"{{ a }}"']
)  # fmt: skip
PROMPTS = st.one_of(
    TEMPLATES.map(lambda t: (("user", t),)),
    st.tuples(TEMPLATES, TEMPLATES).map(lambda t: (("system", t[0]), ("user", t[1]))),
    st.tuples(TEMPLATES, TEMPLATES, TEMPLATES).map(lambda t: (("user", t[0]), ("assistant", t[1]), ("user", t[2]))),
)
KINDS = st.sampled_from(
    [("openai", Endpoint.CHAT), ("openai", Endpoint.RESPONSES), ("anthropic", Endpoint.CHAT), ("own", Endpoint.CHAT)]
)


@settings(max_examples=300)
@given(KINDS, PROMPTS, st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=5))
def test_many_bodies_are_the_single_ones(
    kind: tuple[str, Endpoint], prompt: tuple[tuple[str, str], ...], rows: list[tuple[Any, Any]]
) -> None:
    """Head, middle and tail are the body of each row, its texts are its messages, and None is said only of a bad row."""
    job = replace(JOB, provider=kind[0], endpoint=kind[1], prompt=prompt, params={"temperature": 0, "tools": []})
    renderer = compile_job(job)
    bodies = Bodies(renderer)
    columns = {name: [row[n] for row in rows] for n, name in enumerate("ab")}
    many = bodies.render(columns, len(rows))
    try:
        single = [renderer.render({"a": a, "b": b}) for a, b in rows]
    except RowProblem:
        assert many is None
        return
    assert many is not None
    assert [bodies.head + middle + bodies.tail for middle in many.middles] == [made.body for made in single]
    for n, made in enumerate(single):
        assert bodies.middle(made.body) == many.middles[n]
        assert bodies.varying(made.texts) == [column[n] for column in many.texts]
        for text, frame in zip(made.texts, bodies.frames, strict=True):
            assert text.startswith(frame.head)
            assert text == frame.head if frame.constant else text.endswith(frame.tail)
            assert frame.constant or len(text) >= len(frame.head) + len(frame.tail)
        key = keyed(job.model, endpoint(job), bodies.head)
        key.update(many.middles[n] + bodies.tail)
        assert key.digest() == keyed(job.model, endpoint(job), made.body).digest()


def test_an_embedding_is_made_many_at_a_time() -> None:
    """The one text of an embedding stands between what all of them share."""
    bodies = Bodies(compile_job(replace(JOB, endpoint=Endpoint.EMBEDDINGS, max_output_tokens=0)))
    many = bodies.render({"a": ["x", 'y"']}, 2)
    assert many is not None
    assert bodies.head == b'{"encoding_format":"base64","input":'
    assert (many.middles, bodies.tail) == ([b'"x"', b'"y\\""'], b',"model":"m"}')


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_missing_column_is_a_bad_row(missing: str) -> None:
    """Without a column that a template needs no body is made."""
    columns = {name: ["v"] for name in "ab" if name != missing}
    assert Bodies(compile_job(replace(JOB, prompt=(("user", "{{ a }}{{ b }}"),)))).render(columns, 1) is None
