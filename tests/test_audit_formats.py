"""Every log format is read into the same record, streamed, and nothing in a log can stop the reading of the rest."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.audit.calls import Asked, BadLine, Bucket, Call, Item
from canwait.audit.findings import LogFile
from canwait.audit.formats import FORMATS
from canwait.audit.formats.bodies import counts_of, texts
from canwait.audit.formats.values import count, dollars, named, when_us
from canwait.audit.reading import ENDINGS, read_logs
from canwait.compression import compressing
from canwait.errors import SourceError
from canwait.types import Tier

LOGS = Path(__file__).parent / "audit_logs"
FIXTURES = sorted(LOGS.iterdir())
ASKED = Asked()


def read(*paths: Path, asked: Asked = ASKED, stdin: Any = None) -> tuple[list[Item], list[LogFile]]:
    items: list[Item] = []
    files = []
    for log in read_logs(paths, asked, stdin):
        items += log
        files.append(log.summary())
    return items, files


def calls(name: str, asked: Asked = ASKED) -> list[Call]:
    return [item for item in read(LOGS / name, asked=asked)[0] if type(item) is Call]


def us(text: str) -> int:
    moment = datetime.fromisoformat(f"2026-09-{text}").replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ------------------------------------------------------------------------------------------------- what a log says

# Fixture, number of its call, and what that call must say; the rest of a line tells the odd case.
SAYS: list[tuple[str, int, dict[str, Any]]] = [
    # current names; cached and reasoning tokens inside the totals; the response's tier before the request's
    (
        "otel.jsonl",
        0,
        {
            "start_us": us("21 14:13:20"),
            "end_us": us("21 14:13:21.5"),
            "site": "etl/label.py:88",
            "model": "gpt-6-luna",
            "model_served": "gpt-6-luna-2026-08-01",
            "provider": "openai",
            "input_tokens": 1200,
            "cached_tokens": 1024,
            "output_tokens": 80,
            "reasoning_tokens": 16,
            "max_output_tokens": 256,
            "temperature": 0.0,
            "finish_reason": "stop",
            "tier": Tier.STANDARD,
            "actor": "web-1",
            "stream": None,
            "text": None,
        },
    ),
    # previous names of everything, in the same file; streamed
    (
        "otel.jsonl",
        1,
        {
            "site": "chat/reply.py:52",
            "provider": "openai",
            "input_tokens": 300,
            "output_tokens": 40,
            "cached_tokens": None,
            "tier": Tier.FLEX,
            "stream": True,
            "text": "Say hello",
        },
    ),
    # cached tokens beside the input, which only more of them than of input can show; tools; a person
    (
        "otel.jsonl",
        2,
        {
            "site": "concierge",
            "input_tokens": 2150,
            "cached_tokens": 2000,
            "cache_write_tokens": 100,
            "first_token_us": us("21 14:13:40.25"),
            "stream": True,
            "tools": True,
            "user": "u-7",
            "session": "conv_1",
            "text": "You are kind.\nWeather in Paris?\nrainy, 57F",
        },
    ),
    # an error without usage: unknown, not zero
    (
        "otel.jsonl",
        3,
        {"failed": True, "error": "openai.RateLimitError", "provider": "azure", "input_tokens": None, "site": "shop"},
    ),
    # what the caller declares
    (
        "otel.jsonl",
        4,
        {
            "site": "nightly",
            "deadline_s": 86_400.0,
            "trigger": "cron",
            "first_used_us": us("22 09:00:00"),
            "failed": False,
        },
    ),
    # embeddings have no output; a clock that ran back is kept as it is; a cron job of a cluster
    (
        "otel.jsonl",
        5,
        {
            "operation": "embeddings",
            "output_tokens": 0,
            "input_tokens": 512,
            "end_us": us("21 14:13:59"),
            "start_us": us("21 14:14:00"),
            "trigger": "cron",
        },
    ),
    # messages in events; the answer's is none of them
    ("otel.jsonl", 6, {"text": "Be brief.\nHi", "actor": "embed-7"}),
    # messages in numbered attributes
    ("otel.jsonl", 8, {"text": "Classify.\nA cat", "site": "labels", "input_tokens": 7, "provider": "openai"}),
    ("otel_console.json", 1, {"site": "summaries.nightly", "provider": "google", "input_tokens": 200, "actor": "crm"}),
    (
        "litellm.jsonl",
        0,
        {
            "site": "tagging",
            "input_tokens": 1200,
            "cached_tokens": 1024,
            "output_tokens": 80,
            "reasoning_tokens": 16,
            "cost_usd": Decimal("0.00031"),
            "stream": False,
            "first_token_us": None,
            "user": None,
            "text": None,
        },
    ),
    # LiteLLM's totals of Anthropic include its cache; streamed
    (
        "litellm.jsonl",
        1,
        {
            "site": "web/haiku",
            "model": "claude-haiku-5-5",
            "provider": "anthropic",
            "input_tokens": 2150,
            "cached_tokens": 2000,
            "cache_write_tokens": 100,
            "stream": True,
            "first_token_us": us("22 10:00:05.4"),
            "max_output_tokens": 300,
            "user": "u-7",
            "tools": True,
            "text": "You are kind.\nHello",
        },
    ),
    # zeros of a failed call are the table's default, not counts
    ("litellm.jsonl", 2, {"failed": True, "error": "RateLimitError", "input_tokens": None, "site": "weekly-report"}),
    # answered by the proxy's cache: nothing was billed
    ("litellm.jsonl", 3, {"input_tokens": 0, "output_tokens": 0, "cost_usd": Decimal(0)}),
    (
        "litellm.jsonl",
        4,
        {"operation": "embeddings", "output_tokens": 0, "deadline_s": 604_800.0, "site": "search/embed.py:31"},
    ),
    ("litellm.csv", 0, {"site": "etl/cheap", "cached_tokens": 1024, "start_us": us("22 10:00:00.123")}),
    # parts that exclude each other
    (
        "langfuse.json",
        0,
        {
            "site": "tagger",
            "prompt": "tagger@7",
            "input_tokens": 1200,
            "cached_tokens": 1024,
            "output_tokens": 80,
            "reasoning_tokens": 16,
            "cost_usd": Decimal("0.00031"),
            "temperature": 0.0,
            "max_output_tokens": 256,
            "text": "Tag.\nA cat",
        },
    ),
    # the same call as an integration sent it that counts parts twice, which the total shows
    (
        "langfuse.json",
        1,
        {
            "site": "chat",
            "input_tokens": 1200,
            "cached_tokens": 1024,
            "output_tokens": 80,
            "reasoning_tokens": 16,
            "stream": True,
            "user": "u-7",
            "session": "sess-1",
        },
    ),
    (
        "langfuse.json",
        2,
        {"site": "weekly-report", "failed": True, "error": "openai.RateLimitError", "deadline_s": 3600.0},
    ),
    ("langfuse.json", 3, {"operation": "embeddings", "input_tokens": 512, "output_tokens": 0}),
    ("langfuse.json", 4, {"input_tokens": 2150, "cached_tokens": 2000, "cache_write_tokens": 100, "output_tokens": 20}),
    ("langfuse_export.jsonl", 0, {"site": "summary", "first_used_us": us("22 19:00:00"), "temperature": 0.2}),
    # the answer's own usage before the columns
    (
        "helicone.jsonl",
        0,
        {
            "site": "tagging",
            "input_tokens": 1200,
            "cached_tokens": 1024,
            "finish_reason": "length",
            "max_output_tokens": 64,
            "text": "Tag: a cat",
            "end_us": us("22 10:00:01.5"),
        },
    ),
    # columns of Anthropic's: without the cache
    (
        "helicone.jsonl",
        1,
        {
            "site": "support",
            "input_tokens": 2150,
            "stream": True,
            "first_token_us": us("22 10:00:02.25"),
            "tools": True,
        },
    ),
    ("helicone.jsonl", 2, {"failed": True, "error": "rate_limit_exceeded", "input_tokens": None}),
    # an exporter that doubles quotes twice
    ("helicone.csv", 0, {"site": "tagging", "trigger": "cron", "input_tokens": 1200}),
    (
        "openai.jsonl",
        0,
        {
            "site": "etl/label.py:88",
            "start_us": us("22 10:00:00.25"),
            "end_us": us("22 10:00:01.75"),
            "input_tokens": 1200,
            "cached_tokens": 1024,
            "output_tokens": 80,
            "stream": False,
            "tier": Tier.STANDARD,
            "user": "u-1",
            "text": "Tag.\nA cat",
        },
    ),
    # xAI states reasoning beside the output, which the total shows
    ("openai.jsonl", 1, {"output_tokens": 40, "reasoning_tokens": 30}),
    (
        "openai.jsonl",
        2,
        {"provider": "anthropic", "input_tokens": 2150, "tier": Tier.BATCH, "user": "u-7", "finish_reason": "tool_use"},
    ),
    # Gemini's output is candidates and thoughts
    (
        "openai.jsonl",
        3,
        {"provider": "google", "model": "gemini-3.8-flash", "output_tokens": 35, "cached_tokens": 60, "text": "Hello"},
    ),
    ("openai.jsonl", 4, {"failed": True, "error": "RateLimitError", "input_tokens": None}),
    ("openai.jsonl", 5, {"failed": False, "input_tokens": None, "output_tokens": None}),
    ("openai.jsonl", 6, {"operation": "embeddings", "input_tokens": 2, "output_tokens": 0, "text": "a\nb"}),
    # a listing of what was stored holds no messages, so nothing to compare calls by
    ("openai_stored.json", 0, {"site": "summaries", "tier": Tier.FLEX, "text": None, "text_hash": None}),
    (
        "openai_stored.json",
        1,
        {
            "operation": "responses",
            "tier": Tier.BACKGROUND,
            "end_us": us("22 12:00:01"),
            "cached_tokens": 30,
            "cache_write_tokens": 4,
            "reasoning_tokens": 64,
            "session": "conv_1",
            "prompt": "pmpt_9@2",
            "text_hash": None,
        },
    ),
    ("openai_stored.json", 2, {"finish_reason": "max_output_tokens", "failed": False}),
    ("openai_stored.json", 3, {"failed": True, "error": "server_error", "input_tokens": None}),
    (
        "bedrock.json",
        0,
        {
            "site": "tagging",
            "provider": "bedrock",
            "input_tokens": 2135,
            "cached_tokens": 2000,
            "cache_write_tokens": 100,
            "output_tokens": 446,
            "end_us": us("22 10:00:01.5"),
            "stream": False,
            "tools": True,
            "deadline_s": 7200.0,
            "max_output_tokens": 512,
            "text": "You are kind.\nHello",
        },
    ),
    # the pieces of a stream
    (
        "bedrock.json",
        1,
        {
            "site": "ann",
            "model": "us.anthropic.claude-haiku-5-5-v1:0",
            "input_tokens": 8,
            "output_tokens": 100,
            "first_token_us": us("22 10:00:05.3"),
            "finish_reason": "max_tokens",
            "stream": True,
        },
    ),
    ("bedrock.json", 2, {"operation": "embeddings", "failed": True, "error": "ThrottlingException", "site": "etl"}),
    ("bedrock.json", 3, {"record_id": "b-4", "stream": True, "text": None}),  # as CloudWatch wraps it
    (
        "vertex.jsonl",
        0,
        {
            "site": "tagging",
            "input_tokens": 5,
            "output_tokens": 60,
            "reasoning_tokens": 10,
            "tier": Tier.STANDARD,
            "text": "Tag.\nA cat",
        },
    ),
    # Claude on Vertex, JSON columns as text
    ("vertex.jsonl", 1, {"model": "claude-haiku-5-5", "input_tokens": 28, "stream": True, "text": "Hi"}),
    ("vertex.jsonl", 2, {"tier": Tier.FLEX, "output_tokens": 64, "finish_reason": "MAX_TOKENS", "stream": True}),
    (
        "canwait.jsonl",
        0,
        {
            "first_used_us": us("22 19:00:00"),
            "tier": Tier.FLEX,
            "deadline_s": 86_400.0,
            "trigger": "cron",
            "text_hash": bytes.fromhex("00112233445566778899aabbccddeeff"),
            "cost_usd": Decimal("0.00031"),
            "tools": False,
        },
    ),
    ("canwait.jsonl", 1, {"failed": True, "error": "RateLimitError", "start_us": us("22 08:00:02")}),
    ("plain.csv", 0, {"site": "tagging", "input_tokens": 1200, "end_us": us("22 10:00:01.5"), "user": None}),
    ("plain.csv", 1, {"input_tokens": 2050, "cached_tokens": 2000, "cost_usd": None}),
    ("plain.csv", 2, {"failed": True, "error": "429", "input_tokens": None}),
]


@pytest.mark.parametrize(("name", "nth", "says"), SAYS, ids=[f"{name}-{nth}" for name, nth, _ in SAYS])
def test_a_call_says_what_its_log_says(name: str, nth: int, says: dict[str, Any]) -> None:
    """Counts, times, names and texts of each format are those of its documentation, in the one meaning of Call."""
    call = calls(name)[nth]._asdict()
    assert {field: call[field] for field in says} == says


# What each fixture holds: calls, buckets, and the lines that are neither, with a word of why.
HOLDS: dict[str, tuple[int, int, list[tuple[int, str]]]] = {
    "anthropic_costs.json": (0, 1, [(1, "not in US dollars")]),
    "anthropic_usage.json": (0, 1, []),
    "bedrock.json": (4, 0, [(5, "no timestamp"), (6, "no ModelInvocationLog")]),
    "canwait.jsonl": (2, 0, []),
    "helicone.csv": (1, 0, []),
    "helicone.jsonl": (3, 0, [(4, "'fine'")]),
    "langfuse.json": (5, 0, [(7, "no startTime"), (8, "found a string")]),
    "langfuse_export.jsonl": (1, 0, []),
    "litellm.csv": (1, 0, [(3, "expected 19 fields, found 3")]),
    "litellm.jsonl": (5, 0, [(6, "spend is -1"), (7, "'yesterday'")]),
    "openai.jsonl": (7, 0, [(8, "no time"), (9, "neither a request nor an answer")]),
    "openai_costs.json": (0, 2, []),
    "openai_stored.json": (4, 0, []),
    "openai_usage.json": (0, 2, []),
    "otel.jsonl": (9, 0, [(3, "input tokens is 'many'"), (4, "not JSON")]),
    "otel_console.json": (2, 0, []),
    "plain.csv": (4, 0, [(5, "Prompt Tokens is 'many'")]),
    "vertex.jsonl": (3, 0, [(4, "'soon'")]),
}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.name)
def test_every_bad_line_is_counted_and_none_is_fatal(path: Path) -> None:
    """A line that is no call is counted, with its number and why, and all the others are read."""
    items, (file,) = read(path)
    n_calls, n_buckets, bad = HOLDS[path.name]
    assert (file.n_calls, file.n_buckets, file.n_bad) == (n_calls, n_buckets, len(bad))
    found = [item for item in items if isinstance(item, BadLine)]
    assert [(b.line, why in b.why) for b, (_, why) in zip(found, bad, strict=True)] == [(line, True) for line, _ in bad]
    assert file.bad == tuple(found)
    assert all(b.file == str(path) for b in found)


def test_every_format_has_a_fixture() -> None:
    """No format is without a log that is recognised as its own."""
    titles = {file.format for path in FIXTURES for file in read(path)[1]}
    assert titles == {f.title for f in FORMATS.values()}
    assert [f.name for f in FORMATS.values()] == list(FORMATS)


def test_aggregates_are_buckets_with_the_cache_in_their_input() -> None:
    """Usage and cost reports are spend over a time: OpenAI's input includes the cache, Anthropic's is made to."""
    day = (us("22 00:00:00"), us("23 00:00:00"))
    assert read(LOGS / "anthropic_usage.json")[0] == [
        Bucket(*day, "anthropic", "claude-haiku-5-5", None, 3200, 200, 1500, 500, None, Tier.BATCH, "wrkspc_1")
    ]
    assert read(LOGS / "anthropic_costs.json")[0][0] == Bucket(
        *day, "anthropic", "claude-haiku-5-5", cost_usd=Decimal("1.2378912"), tier=Tier.STANDARD, label="wrkspc_1"
    )
    assert read(LOGS / "openai_usage.json")[0] == [
        Bucket(*day, "openai", "gpt-6-luna", 3200, 1_000_000, 400_000, None, 90_000, None, Tier.STANDARD, "proj_1"),
        Bucket(*day, "openai", "gpt-6-luna", 1600, 500_000, 0, None, 45_000, None, Tier.BATCH, "proj_1"),
    ]
    costs = [item for item in read(LOGS / "openai_costs.json")[0] if isinstance(item, Bucket)]
    assert [(b.model, b.cost_usd, b.label) for b in costs] == [
        ("gpt-6-astra", Decimal("12.34"), "proj_1"),
        ("", Decimal("0.06"), ""),
    ]


def test_a_second_record_of_a_call_has_its_id() -> None:
    """A span that was exported twice has one id, by which whoever gathers calls can tell."""
    ids = [call.record_id for call in calls("otel.jsonl")]
    assert (ids[0] == ids[7], len(set(ids))) == (True, 8)


def test_requests_are_compared_by_what_a_model_reads() -> None:
    """A retry has the hash of the request it repeats; who asked, streaming and the tier make no other request."""
    _, _, _, _, failed, again, _ = calls("openai.jsonl")
    assert failed.text_hash == again.text_hash != None  # noqa: E711
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    record = {"timestamp": 1_790_000_000, "request": body, "response": {"id": "1"}}

    def hashed(**changed: Any) -> bytes | None:
        (call,) = FORMATS["openai"].items({**record, "request": {**body, **changed}}, ASKED)
        assert isinstance(call, Call)
        return call.text_hash

    assert hashed(user="u", stream=True, service_tier="flex", metadata={"a": 1}) == hashed()
    assert len({hashed(), hashed(model="n"), hashed(temperature=1), hashed(tools=[{"name": "t"}])}) == 4


@pytest.mark.parametrize(
    ("attribute", "value", "trigger"),
    [
        ("faas.trigger", "timer", "cron"),
        ("faas.trigger", "pubsub", "queue"),
        ("faas.trigger", "http", "http"),
        ("faas.trigger", "other", None),
        ("faas.cron", "0/5 * * * ? *", "cron"),
        ("k8s.cronjob.name", "nightly", "cron"),
        ("airflow.dag_run.run_type", "scheduled", "cron"),
        ("airflow.dag_id", "weekly_report", "dag"),
        ("prefect.flow.name", "weekly-report", "dag"),
        ("cicd.pipeline.name", "evals", "ci"),
        ("messaging.system", "kafka", "queue"),
        ("http.route", "/reply/{id}", "http"),
        ("canwait.trigger", "Schedule", "cron"),
    ],
)
def test_what_started_a_call_is_read_from_span_and_resource(attribute: str, value: str, trigger: str | None) -> None:
    """Attributes of functions, clusters, schedulers, pipelines and queues say what started a call, wherever they stand."""
    span: dict[str, Any] = {"name": "chat", "start_time": "2026-09-22T10:00:00Z", "attributes": {}}
    asks = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    on_span = {**span, "attributes": {**asks, attribute: value}}
    on_resource = {**span, "attributes": asks, "resource": {"attributes": {attribute: value}}}
    found = [item for record in (on_span, on_resource) for item in FORMATS["otel"].items(record, ASKED)]
    assert [item.trigger for item in found if isinstance(item, Call)] == [trigger, trigger]


# ---------------------------------------------------------------------------------------------------- naming sites


def test_a_site_is_named_as_asked() -> None:
    """Names of tags, attributes or columns that the user gives are the only ones, and the first that is there wins."""
    by_service = calls("otel.jsonl", Asked(site_by=("gen_ai.agent.name", "service.name")))
    assert [c.site for c in by_service[:3]] == ["shop", "shop", "concierge"]
    assert [c.site for c in calls("litellm.jsonl", Asked(site_by=("user_api_key_alias",)))][:3] == ["etl", "web", ""]
    assert [c.site for c in calls("plain.csv", Asked(site_by=("User",)))][:2] == ["", "u-7"]
    assert [c.site for c in calls("bedrock.json", Asked(site_by=("region",)))][:1] == ["us-east-1"]


def test_a_provider_that_no_log_names_is_the_one_asked_for() -> None:
    """`provider` fills what a log leaves open and never overrules it."""
    found = [c.provider for c in calls("openai.jsonl", Asked(provider="azure"))]
    assert found == ["azure"] * 7
    assert {c.provider for c in calls("litellm.jsonl", Asked(provider="azure"))} == {"openai", "anthropic"}


# --------------------------------------------------------------------------------------------------- plain columns


def test_columns_are_mapped_as_stated(tmp_path: Path) -> None:
    """A table with names of its own is read by the columns that are stated, and others by their names."""
    path = write(tmp_path / "calls.tsv", "wann\twer\tmodell\tein\taus\tstream\n1790071200\tx\tm-1\t7\t3\ttrue\n")
    columns = {"start": "wann", "site": "wer", "model": "modell", "input_tokens": "ein", "output_tokens": "aus"}
    (call,), _ = read(path, asked=Asked(columns=columns))
    assert call == Call(us("22 10:00:00"), "x", "m-1", input_tokens=7, output_tokens=3, stream=True)


def test_a_stated_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A misspelt column is refused with the names there are: a column read as nothing would be a lie."""
    path = write(tmp_path / "calls.csv", "when,model\n1790071200,m\n")
    with pytest.raises(SourceError, match=r"has no column 'whem'; its columns are 'when', 'model'"):
        read(path, asked=Asked(columns={"start": "whem"}))
    with pytest.raises(SourceError, match="a call has no field 'begin'"):
        read(path, asked=Asked(columns={"begin": "when"}))


def test_a_parquet_table_is_read_with_its_types(tmp_path: Path) -> None:
    """Timestamps, decimals, whole numbers kept as floats and nested usage of a Parquet file are what they say."""
    path = tmp_path / "calls.parquet"
    rows = [
        {"timestamp": datetime(2026, 9, 22, 10, tzinfo=UTC), "model": "m", "input_tokens": 7.0, "cost": Decimal("0.5")},
        {"timestamp": datetime(2026, 9, 22, 11, tzinfo=UTC), "model": "m", "input_tokens": None, "cost": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    items, (file,) = read(path)
    first, second = (item for item in items if type(item) is Call)
    assert (first.start_us, first.input_tokens, first.cost_usd) == (us("22 10:00:00"), 7, Decimal("0.5"))
    assert (second.input_tokens, second.cost_usd, file.format) == (None, None, "plain columns")


# ------------------------------------------------------------------------------------------------ files and folders


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compressed_logs_are_read_as_they_are(tmp_path: Path, codec: Any) -> None:
    """gzip and zstd are known by their first bytes, whatever the file is called."""
    path = tmp_path / "log"
    with path.open("wb") as file, compressing(file, codec) as out:
        out.write((LOGS / "bedrock.json").read_bytes())
    assert [i for i in read(path)[0] if type(i) is Call] == calls("bedrock.json")


def test_a_compressed_log_that_ends_too_early_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """What can be read of a damaged file is read, and the damage is a bad line."""
    line = (LOGS / "canwait.jsonl").read_bytes().splitlines(keepends=True)[0]
    lines = b"".join(line.replace(b"c-1", b"c-%d" % i) for i in range(5_000))
    items, (file,) = read(write(tmp_path / "a.gz", gzip.compress(lines)[:-2_000]))
    assert 0 < file.n_calls < 5_000
    assert "gzip data is cut off" in file.bad[-1].why
    assert type(items[-1]) is BadLine


def test_a_folder_is_searched_for_logs(tmp_path: Path) -> None:
    """A folder's logs are read by name, its own before those of its folders; one that is no log is a bad line."""
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    (tmp_path / "a" / "1.json.gz").write_bytes(gzip.compress((LOGS / "bedrock.json").read_bytes()))
    write(tmp_path / "a" / ".hidden" / "2.json", (LOGS / "bedrock.json").read_bytes())
    write(tmp_path / "b.jsonl", (LOGS / "canwait.jsonl").read_bytes())
    write(tmp_path / "c.json", '{"some": "settings"}')
    write(tmp_path / "readme.txt", "no log")
    _, files = read(tmp_path)
    assert [(Path(f.file).name, f.format, f.n_calls, f.n_bad) for f in files] == [
        ("b.jsonl", "canwait's own record", 2, 0),
        ("c.json", "not a log", 0, 1),
        ("1.json.gz", "Bedrock invocation logs", 4, 2),
    ]


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    """A folder in which nothing is a log is refused with what was looked for."""
    write(tmp_path / "c.json", '{"some": "settings"}')
    with pytest.raises(SourceError, match=r"is a folder without a log: expected files ending in \.json"):
        read(tmp_path)
    assert ".parquet" in ENDINGS


def test_standard_input_is_a_log_too() -> None:
    """ "-" reads standard input, which cannot be read twice."""
    stdin = io.BufferedReader(io.BytesIO((LOGS / "canwait.jsonl").read_bytes()))
    items, (file,) = read(Path("-"), stdin=stdin)
    assert (len(items), file.file) == (2, "standard input")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """What a shell hands over as a file and cannot be read twice is a log like any other."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[(LOGS / "canwait.jsonl").read_bytes()], daemon=True)
    writer.start()
    assert read(pipe)[1][0].n_calls == 2


def test_a_table_of_wrapped_events_is_read(tmp_path: Path) -> None:
    """CSV as CloudWatch Logs Insights exports it: the event is JSON in a column, whatever its length."""
    event = json.dumps(json.loads((LOGS / "bedrock.json").read_text().splitlines()[0]))
    quoted = event.replace('"', '""')
    path = write(tmp_path / "logs.csv", f'@timestamp,@message\n2026-09-22 10:00:00.000,"{quoted}"\n')
    assert read(path)[0] == calls("bedrock.json")[:1]


def test_a_quote_that_is_never_closed_is_a_bad_line(tmp_path: Path) -> None:
    """A table that ends inside a quoted field says so: what follows the quote is not silently a value."""
    items, (file,) = read(write(tmp_path / "calls.csv", 'timestamp,model\n1790071200,m\n1790071201,"m\n1790071202,m\n'))
    assert (type(items[0]), file.n_calls, file.bad[0].line, file.bad[0].why) == (
        Call,
        1,
        3,
        "no row of a table: unexpected end of data",
    )


def test_a_named_file_that_is_no_log_is_found_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong file among many is refused at once, not after hours of reading the first."""
    wrong = write(tmp_path / "x.png", b"\x89PNG\r\n\x1a\n")
    logs = read_logs([LOGS / "canwait.jsonl", wrong], ASKED)
    with pytest.raises(SourceError, match="looks like a PNG image"):
        next(logs)


LINES = [json.dumps({"start_us": 1_790_071_200_000_000 + i, "model": "m", "site": f"s{i}"}) for i in range(3)]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(LINES),
        "\ufeff" + "\n\n".join(LINES) + "\n",
        "\r\n".join(LINES) + "\r\n",
        f"[{','.join(LINES)}]",
        "[\n" + ",\n".join(LINES) + "\n]\n",
        json.dumps([json.loads(x) for x in LINES], indent=2),
        json.dumps({"data": [json.loads(x) for x in LINES], "has_more": False}),
        json.dumps({"data": [json.loads(x) for x in LINES]}, indent=4),
        "\n".join(json.dumps(json.loads(x), indent=2) for x in LINES),
        "\n".join(json.dumps({"data": [json.loads(x)]}) for x in LINES),
    ],
    ids="lines mark crlf array array-of-lines pretty page pretty-page documents pages".split(),
)
def test_records_are_found_however_json_is_laid_out(tmp_path: Path, text: str) -> None:
    """Lines, arrays, pages of an API and pretty printed documents hold the same records."""
    items, _ = read(write(tmp_path / "log.json", text))
    assert [getattr(item, "site", item) for item in items] == ["s0", "s1", "s2"]


# ------------------------------------------------------------------------------------------------ files of other kinds

WRONG = {
    "image.png": (b"\x89PNG\r\n\x1a\n0000", "a PNG image"),
    "sheet.xlsx": (b"PK\x03\x04....", "a ZIP archive, such as a spreadsheet"),
    "invoice.pdf": (b"%PDF-1.7\n", "a PDF, such as an invoice"),
    "code.py": (b"from x import y\nprint(1, 2, 3)\n", "Python source"),
    "page.html": (b"<!doctype html><p>a, b</p>", "HTML or XML"),
    "notes.md": (b"# Notes\n\nof, a, kind\n", "Markdown"),
    "job.yaml": (b"name: x\nmodel: y\n", "YAML"),
    "wide.json": ("{}".encode("utf-16"), "UTF-16 text"),
    "raw.bin": (b"abc\0\0\0", "binary data"),
    "prose.txt": (b"hello world\n", "text"),
    "table.csv": (b"city,people\nRome,3\n", "records with the fields 'city', 'people'"),
    "invoice.csv": (b"invoice_id,total\n1,2\n", "an invoice"),
    "focus.csv": (b"BilledCost,ChargePeriodStart\n1,2026-09-01\n", "a cost export in FOCUS columns"),
    "batch.jsonl": (b'{"id":"b","custom_id":"r-1","response":{"body":{}},"error":null}\n', "the output of a batch job"),
    "anthropic.jsonl": (b'{"custom_id":"r-1","result":{"type":"succeeded"}}\n', "the output of a batch job"),
    "requests.jsonl": (b'{"custom_id":"r-1","method":"POST","body":{"messages":[]}}\n', "the requests of a batch job"),
    "bedrock.jsonl": (b'{"recordId":"1","modelInput":{},"modelOutput":{}}\n', "the output of a batch job"),
    "gemini.jsonl": (b'{"key":"1","response":{"candidates":[]}}\n', "the output of a batch job"),
    "vertex.jsonl": (
        b'{"status":"","processed_time":"2026-09-22T10:00:00Z","request":{"contents":[]},"response":{}}\n',
        "the output of a batch job",
    ),
    "metrics.jsonl": (b'{"resourceMetrics":[]}\n', "OpenTelemetry metrics"),
    "book.ipynb": (b'{"nbformat":4,"cells":[]}', "a notebook"),
    "settings.json": (b'{\n  "a": {"b": 1}\n}\n', "records with the fields 'a'"),
}


@pytest.mark.parametrize(("name", "content", "kind"), [(n, c, k) for n, (c, k) in WRONG.items()], ids=list(WRONG))
def test_a_file_of_another_kind_is_named_as_such(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    """What is no log is refused with what it looks like and the command that would read a table."""
    with pytest.raises(SourceError) as caught:
        read(write(tmp_path / name, content))
    assert f"{name}: looks like {kind}" in str(caught.value)
    assert "expected a log of calls" in str(caught.value)
    assert "--column start=COLUMN" in (caught.value.own_hint or "")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "is empty"), (b"[]", "holds no records"), (b"{oops\n{oops\n", "no line of it can be read"), (b"a,b\n", "")],
)
def test_a_file_without_a_record_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """An empty file, an empty page and a file of nonsense are told apart."""
    with pytest.raises(SourceError, match=why or "holds no records"):
        read(write(tmp_path / "x.json", content))


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """A Parquet file that holds no calls is named by its columns; one that is damaged, as such."""
    pq.write_table(pa.table({"city": ["Rome"]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="looks like records with the fields 'city'"):
        read(tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="is not a Parquet file that can be read"):
        read(write(tmp_path / "y.parquet", b"PAR1 and no more"))


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    """What cannot be opened, and a format that does not exist, are said before anything is read."""
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(SourceError, match="unknown log format 'otlp'; expected one of: otel, litellm"):
        read(LOGS / "otel.jsonl", asked=Asked(format="otlp"))


def test_a_document_that_does_not_fit_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON document beyond the limit is not held in memory: the error says how to write it as lines."""
    monkeypatch.setattr("canwait.audit.reading.MAX_DOCUMENT_BYTES", 1_000)
    path = write(tmp_path / "x.json", json.dumps([json.loads(x) for x in LINES * 20], indent=2))
    with pytest.raises(SourceError, match="one JSON document of more than") as caught:
        read(path)
    assert "jq -c" in (caught.value.own_hint or "")


def test_memory_does_not_grow_with_a_log(tmp_path: Path) -> None:
    """Ten times the lines take the same memory: a line is held at a time."""
    line = (LOGS / "otel.jsonl").read_bytes().splitlines(keepends=True)[0]

    def peak_bytes(n_lines: int) -> int:
        path = write(tmp_path / f"{n_lines}.jsonl", line * n_lines)
        tracemalloc.start()
        n_calls = sum(1 for log in read_logs([path], ASKED) for _ in log)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert n_calls == 5 * n_lines
        return peak

    peak_bytes(20)  # what is kept for ever
    assert peak_bytes(2_000) < peak_bytes(200) + 100_000  # the file is 9 MB longer


# ------------------------------------------------------------------------------------------------------------- laws

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "{", "[1]", '{"a": [1]}', "-1", "1e400", "9" * 400, "2026-09-22T10:00:00Z", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def records() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in FIXTURES:
        for log in read_logs([path], ASKED):
            with log._opened() as stream:
                format, found = log._recognised(log._records(stream))
                yield from [(format.name, dict(r)) for _, r in found if not isinstance(r, str)]


RECORDS = list(records())


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a record stands."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield from places(held, (*at, key))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_value_of_a_record_breaks_a_format(data: st.DataObject) -> None:
    """Whatever stands in place of any values of a record, a format raises nothing but ValueError."""
    name, record = data.draw(st.sampled_from(RECORDS))
    broken = orjson.loads(orjson.dumps(record))
    for _ in range(data.draw(st.integers(1, 4))):
        *way, last = data.draw(st.sampled_from(list(places(broken))))
        holder = broken
        for key in way:
            holder = holder[key]
        holder[last] = data.draw(JSON)
    for format in FORMATS.values():
        format.claims(broken)
        with suppress(ValueError):
            for item in format.items(broken, ASKED):
                assert type(item) in (Call, Bucket)
    assert name in FORMATS


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a file holds, it is read or refused with SourceError."""
    path = write(tmp_path_factory.getbasetemp() / "any.log", content)
    with suppress(SourceError):
        items, (file,) = read(path)
        assert len(items) == file.n_calls + file.n_buckets + file.n_bad > 0


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_input_includes_its_cache_in_every_dialect(fresh: int, read_tokens: int, written: int, output: int) -> None:
    """One call has the same counts in the words of OpenAI, Anthropic, Bedrock and Gemini."""
    total = fresh + read_tokens + written
    openai = {"prompt_tokens": total, "completion_tokens": output}
    openai |= {"prompt_tokens_details": {"cached_tokens": read_tokens, "cache_write_tokens": written}}  # type: ignore[dict-item]
    anthropic = {"input_tokens": fresh, "output_tokens": output}
    anthropic |= {"cache_read_input_tokens": read_tokens, "cache_creation_input_tokens": written}
    bedrock = {"inputTokens": fresh, "outputTokens": output}
    bedrock |= {"cacheReadInputTokens": read_tokens, "cacheWriteInputTokens": written}
    gemini = {"promptTokenCount": total, "cachedContentTokenCount": read_tokens, "candidatesTokenCount": output}
    for usage in (openai, anthropic, bedrock):
        assert counts_of(usage)[:4] == (total, read_tokens, written, output)
    assert counts_of(gemini)[:4] == (total, read_tokens, None, output)


@given(st.integers(us("01 00:00:00") - 10**14, us("01 00:00:00") + 10**14))
def test_a_time_is_the_same_in_every_notation(at_us: int) -> None:
    """ISO 8601 with and without a zone, and epochs in ns, us, ms and s, name one moment."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    plain = at.replace(tzinfo=None)
    same = [at, plain, at.isoformat(), f"{plain} UTC", str(plain), at_us * 1000, str(at_us * 1000), at_us]
    assert {when_us(notation, "t") for notation in same} == {at_us}
    assert when_us(at_us // 1000, "t") == at_us // 1000 * 1000
    assert when_us(at_us // 1_000_000, "t") == at_us // 1_000_000 * 1_000_000


@pytest.mark.parametrize("value", [None, "", " ", "nan", "NULL", "N/A", float("nan")])
def test_what_tables_write_for_nothing_is_missing(value: Any) -> None:
    """Nothing is None: neither zero nor an error."""
    assert (count(value, "n"), when_us(value, "t"), dollars(value, "$")) == (None, None, None)


@pytest.mark.parametrize("value", [True, -1, 1.5, "1.5", "x", [], {}, 2**53, "9" * 5000, float("inf"), "1e9", "²"])
def test_what_is_no_count_is_an_error(value: Any) -> None:
    """A count that is there and cannot be read is never taken for another, or for none."""
    with pytest.raises(ValueError, match="expected a count"):
        count(value, "n")


@pytest.mark.parametrize("value", ["1e999999999", "-0.1", "Infinity", True, [], "free", 10**12])
def test_what_is_no_amount_is_an_error(value: Any) -> None:
    """No number that a log can write makes money that cannot be added."""
    with pytest.raises(ValueError, match="expected US dollars"):
        dollars(value, "cost")


def test_names_and_texts_have_bounds() -> None:
    """A name is a key of tables, so its length is bounded; a message's parts are followed only so deep."""
    assert named("x" * 10_000) == "x" * 200
    nested: Any = "deep"
    for _ in range(500):
        nested = [nested]
    assert list(texts(nested)) == []
