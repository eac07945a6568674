"""The simulator's parts by themselves: scenarios, clocks, answers, and reading what clients send."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import Message
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import SpecError
from canwait.simulator import ManualClock, ScaledClock, Scenario, WallClock, echo, parse_clock, replay, schema_answer
from canwait.simulator.life import Batch, draw_course
from canwait.simulator.rows import bounded, output_tokens
from canwait.simulator.scenario import ROW_FAULTS, active_row_faults, documented, duration, row_fault
from canwait.simulator.wire import BadRequest, RequestBody, array_items, parts

ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------------------------------------------------- scenario


def test_a_scenario_is_written_in_one_line() -> None:
    """Counts, probabilities, durations, flags, bare names and aliases."""
    text = "expiry=0.2, lost_create_reply=1,listing_lag=30s,429=2,stuck,old_style,enqueued_limit=5000,retention=2d"
    assert Scenario.parse(text) == Scenario(
        expiry=0.2,
        lost_create_reply=1,
        listing_lag=timedelta(seconds=30),
        poll_429=2,
        never_ends=1,
        old_style=True,
        enqueued_limit=5000,
        retention=timedelta(days=2),
    )
    assert Scenario.parse("") == Scenario()


def test_every_mistake_in_a_scenario_is_told_at_once() -> None:
    """Unknown names with the nearest known one, bad values, and what is given twice."""
    with pytest.raises(SpecError) as wrong:
        Scenario.parse("expirey=1,row_500=2.5,hold=soon,row_400=1,row_400=2,fail_fast=perhaps,enqueued_limit=-1")
    assert [problem.field for problem in wrong.value.problems] == [
        "expirey",
        "row_500",
        "hold",
        "row_400",
        "fail_fast",
        "enqueued_limit",
    ]
    assert "did you mean expiry?" in str(wrong.value)
    assert all(name in str(wrong.value) for name, _, _ in documented())


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("1.5", 1.5)])
def test_durations(text: str, seconds: float) -> None:
    """A number and its unit; seconds where there is none."""
    assert duration(text) == timedelta(seconds=seconds)


def test_the_page_names_every_fault() -> None:
    """docs/simulator.md lists each field of a scenario with its meaning, as the code has it."""
    page = (ROOT / "docs" / "simulator.md").read_text()
    missing = [name for name, kind, meaning in documented() if f"| `{name}` | {kind} | {meaning} |" not in page]
    assert missing == []


def test_counted_row_faults_take_turns() -> None:
    """Two counted faults strike different rows, so each is seen as often as asked."""
    active = active_row_faults(Scenario(row_400=2, row_429=1, row_500=1))
    struck = [row_fault(active, row, 0) for row in range(6)]
    assert struck == ["row_400", "row_400", "row_429", "row_500", None, None]


@given(st.sampled_from(ROW_FAULTS), st.integers(0, 10**6), st.integers(0, 99))
def test_certain_and_impossible_faults(name: str, row: int, seed: int) -> None:
    """Probability 1.0 strikes every row, 0.0 and 0 none."""
    faults: dict[str, Any] = {name: 1.0}
    assert row_fault(active_row_faults(Scenario(**faults)), row, seed) == name
    faults = {name: 0.0}
    assert row_fault(active_row_faults(Scenario(**faults)), row, seed) is None


# ----------------------------------------------------------------------------------------------------------------- time


def test_clocks() -> None:
    """A clock is aware UTC; a scaled one runs faster than the wall, a manual one only when told."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    manual, scaled = ManualClock(start), ScaledClock(1e6, start)
    manual.advance(1.5)
    assert manual.now() == start + timedelta(seconds=1.5)
    with pytest.raises(ValueError, match="back"):
        manual.advance(-1)
    assert start < scaled.now() < scaled.now()
    assert abs(WallClock().now() - datetime.now(UTC)) < timedelta(seconds=5)
    speedy = parse_clock("600x")
    assert isinstance(speedy, ScaledClock)
    assert speedy.speed == 600
    assert isinstance(parse_clock("wall"), WallClock)
    for wrong in ("0x", "-1", "soon", "nan"):
        with pytest.raises(ValueError, match="is no clock"):
            parse_clock(wrong)


ENDINGS = st.sampled_from([None, "expiry", "expiry_empty", "never_ends", "all_failed"])
ORDER = ("validating", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled")


@given(
    ending=ENDINGS,
    n_rows=st.integers(1, 50),
    seed=st.integers(0, 999),
    times=st.lists(st.integers(0, 100_000), min_size=1, max_size=8),
    cancel_s=st.none() | st.integers(0, 90_000),
)
def test_a_life_only_goes_forward(
    ending: str | None, n_rows: int, seed: int, times: list[int], cancel_s: int | None
) -> None:
    """Phases never go back, rows that have run never become unrun, and exactly those rows are the ones that ran."""
    course = draw_course(
        random.Random(seed),
        ending=ending,
        n_rows=n_rows,
        created_us=0,
        expires_us=86_400_000_000,
        median_us=1_800_000_000,
        sync=False,
    )
    batch = _batch(course, ending, n_rows)
    phases, run = [], [0]
    for now_s in sorted(times):
        if cancel_s is not None and batch.cancel_us is None and now_s >= cancel_s:
            at_us = cancel_s * 1_000_000
            if batch.phase(at_us) in ("validating", "in_progress", "finalizing"):
                batch = batch.cancelled(at_us, seed, race=False)
        phases.append(ORDER.index(batch.phase(now_s * 1_000_000)))
        run.append(batch.rows_run(now_s * 1_000_000))
    assert phases == sorted(phases)
    assert run == sorted(run)
    assert sum(batch.ran(line) for line in range(n_rows)) == batch.n_done
    assert replace(batch, n_done=0).lost_line is None


def _batch(course: Any, ending: str | None, n_rows: int) -> Batch:
    return Batch(
        seq=0,
        id="b",
        shape="openai",
        account="",
        endpoint="",
        input_file="",
        input_file_id=None,
        metadata=None,
        model=None,
        token="",
        n_rows=n_rows,
        first_row=0,
        enqueued_tokens=0,
        problem=None,
        ending=ending,
        traits=(),
        n_done=course.n_done,
        offset=course.offset,
        created_us=0,
        validated_us=course.validated_us,
        finalizing_us=course.finalizing_us,
        ended_us=course.ended_us,
        expires_us=86_400_000_000,
    )


# -------------------------------------------------------------------------------------------------------------- answers

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"label": {"enum": ["a", "b"]}, "why": {"type": "string"}}, "required": ["label"]},
    {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 5}, "minItems": 2, "maxItems": 4},
    {"type": ["string", "null"], "maxLength": 12, "minLength": 3},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 60},
    {"type": "string", "format": "date"},
    {"anyOf": [{"const": 1}, {"type": "boolean"}]},
    {"allOf": [{"$ref": "#/$defs/p"}, {"properties": {"x": {"const": 1}}, "required": ["x"]}],
     "$defs": {"p": {"type": "object", "properties": {"y": {"type": "null"}}, "required": ["y"]}}},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["value"], "properties": {
        "value": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_answers_fit_their_schema(schema: dict[str, Any]) -> None:
    """Whatever the seed, the answer is an instance of the schema asked for, recursive ones too."""
    body = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    for seed in range(30):
        answer = schema_answer(body, random.Random(seed))
        jsonschema.validate(json.loads(answer), schema, format_checker=jsonschema.FormatChecker())


def test_replay_finds_an_answer_by_text_or_digest(tmp_path: Path) -> None:
    """By the last user message or the body's sha256, from a file or a mapping; anything else goes to the fallback."""
    known = {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}]}]}
    hashed = {"messages": [{"role": "user", "content": "two"}], "seed": 1}
    other = {"messages": [{"role": "user", "content": "three"}]}
    file = tmp_path / "answers.jsonl"
    digest = hashlib.sha256(orjson.dumps(hashed)).hexdigest()
    file.write_text(
        json.dumps({"match": "one", "text": "1"}) + "\n" + json.dumps({"match": digest, "text": "2"}) + "\n"
    )
    rng = random.Random(0)
    for answer in (replay(file, otherwise=echo), replay({"one": "1", digest: "2"}, otherwise=echo)):
        assert [answer(body, rng) for body in (known, hashed, other)] == ["1", "2", "three"]


@given(st.text(), st.none() | st.integers(1, 50))
def test_answers_stay_within_their_bound(text: str, most: int | None) -> None:
    """A cut answer is a prefix of at most `most` tokens; an uncut one is untouched."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    kept, tokens, cut = bounded(text, most)
    assert text.startswith(kept)
    assert tokens >= 1
    assert (kept == text) or cut
    assert most is None or (tokens <= most and output_tokens(kept) <= most)


# ----------------------------------------------------------------------------------------------------------------- wire


class Trickle:
    """Bytes that arrive a few at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = BytesIO(data), size

    def read(self, size: int) -> bytes:
        return self._data.read(min(size, self._size))


@given(
    contents=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    noise=st.lists(st.sampled_from([b"\r\n--", b"\r\n--bound", b"--boundary", b"\r\n", b"\r"]), max_size=4),
    size=st.integers(1, 64),
)
def test_multipart_in_any_pieces(contents: list[bytes], noise: list[bytes], size: int) -> None:
    """However a form arrives, each part comes out byte for byte, also with almost-boundaries inside."""
    sent = [content + b"".join(noise) for content in contents]
    if any(b"\r\n--boundary" in content for content in sent):
        return
    form = b"preamble"
    for number, content in enumerate(sent):
        form += b'\r\n--boundary\r\nContent-Disposition: form-data; name="p%d"\r\n\r\n' % number + content
    form += b"\r\n--boundary--\r\nepilogue"

    read = [
        (part.name, b"".join(part.content))
        for part in parts(Trickle(form, size).read, "multipart/form-data; boundary=boundary")
    ]
    assert read == [(f"p{number}", content) for number, content in enumerate(sent)]


@pytest.mark.parametrize("form", [b"", b"--b\r\n", b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\nhalf"])
def test_half_a_form_is_told(form: bytes) -> None:
    """A form that ends early is an error, not a short file."""
    with pytest.raises(BadRequest):
        [b"".join(part.content) for part in parts(BytesIO(form).read, "multipart/form-data; boundary=b")]
    with pytest.raises(BadRequest):
        next(parts(BytesIO(form).read, "multipart/form-data"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=6), JSON, st.integers(1, 40), st.sampled_from([None, 2]))
def test_an_array_is_read_item_by_item(items: list[Any], beside: Any, size: int, indent: int | None) -> None:
    """Whatever stands beside it and however it arrives, the items are those that were sent."""
    sent = json.dumps({"before": beside, "requests": items, "after": beside}, indent=indent).encode()
    assert list(array_items(Trickle(sent, size).read, "requests")) == items


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "{", '{"requests": [1 2]}', '{"requests": [1,', '{"requests"}', "\xff"]
)
def test_what_is_no_object_is_told(text: str) -> None:
    """Anything that is not a JSON object, or ends early, is an error."""
    with pytest.raises(BadRequest):
        list(array_items(BytesIO(text.encode("latin-1")).read, "requests"))


def test_bodies_end_where_their_headers_say() -> None:
    """By length or in chunks; what follows belongs to the next request; a body that ends early is an error."""

    def body(data: bytes, **headers: str) -> RequestBody:
        message = Message()
        for name, value in headers.items():
            message[name.replace("_", "-")] = value
        return RequestBody(BufferedReader(BytesIO(data)), message)

    assert body(b"abcdef", content_length="4").all(99) == b"abcd"
    assert body(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nt: 1\r\n\r\nnext", transfer_encoding="chunked").all(99) == b"abcde"
    assert body(b"abc").all(99) == b""
    for short in (body(b"ab", content_length="4"), body(b"4\r\nab", transfer_encoding="chunked")):
        with pytest.raises(BadRequest):
            short.all(99)
    with pytest.raises(BadRequest):
        body(b"", content_length="many")
    with pytest.raises(BadRequest):
        body(b"abcd", content_length="4").all(3)
