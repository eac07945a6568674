"""What a log's own words mean: counts beside a cache, tiers that are none of ours, what started a run, what is no hash."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from canwait.audit.calls import Asked, Bucket, Call
from canwait.audit.formats import FORMATS
from canwait.audit.formats.bodies import hash_of
from canwait.audit.formats.values import tier_of
from canwait.types import Tier

AT = "2026-09-21T10:00:00Z"


def only(format: str, record: dict[str, Any]) -> Call:
    (call,) = FORMATS[format].items(record, Asked())
    assert isinstance(call, Call)
    return call


# ---------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(("written", "total"), [(0, 1035), (200, 1235)])
def test_what_bedrock_leaves_to_the_body_is_beside_its_input(written: int, total: int) -> None:
    """The log's input is without the cache, also where only the answer says how much was read from it or written to it."""
    usage = {"input_tokens": 35, "output_tokens": 7, "cache_read_input_tokens": 1000}
    record = {
        "schemaType": "ModelInvocationLog", "timestamp": AT, "modelId": "anthropic.claude-x",
        "input": {"inputTokenCount": 35},
        "output": {
            "outputTokenCount": 7, "outputBodyJson": {"usage": usage | {"cache_creation_input_tokens": written}}
        },
    }  # fmt: skip
    call = only("bedrock", record)
    assert (call.input_tokens, call.cached_tokens, call.cache_write_tokens, call.output_tokens) == (
        total,
        1000,
        written,
        7,
    )


@pytest.mark.parametrize(
    ("columns", "total"),
    [
        ({"input_tokens": 500, "cache_read_input_tokens": 400}, 900),
        ({"input_tokens": 500, "cache_read_input_tokens": 400, "provider": "anthropic"}, 900),
        ({"input_tokens": 500, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 100}, 600),
        ({"prompt_tokens": 500, "cache_read_input_tokens": 400, "provider": "anthropic"}, 500),  # LiteLLM's totals
        ({"input_tokens": 500, "cache_read_input_tokens": 400, "provider": "openai"}, 500),
        ({"input_tokens": 500, "cached_tokens": 400, "provider": "anthropic"}, 500),  # canwait's own words
    ],
)
def test_columns_named_as_anthropic_names_them_mean_what_they_mean_there(columns: dict[str, Any], total: int) -> None:
    """Its input_tokens are without the cache; whoever puts the same names beside a total, or is another, means a part."""
    assert only("plain", {"time": AT, "model": "m", "output_tokens": 1, **columns}).input_tokens == total


@pytest.mark.parametrize(
    ("details", "total"),
    [
        ({"input": 76, "cache_read_input_tokens": 1124, "output": 50, "total": 126}, 1200),
        ({"input": 1200, "cache_read_input_tokens": 1124, "output": 50, "total": 1250}, 1200),
        ({"input": 1200, "cache_read_input_tokens": 1124, "output": 50, "total": 2374}, 2324),
    ],
)
def test_more_cache_than_input_is_beside_it_whatever_the_total_says(details: dict[str, int], total: int) -> None:
    """A total of input and output does not put 1,124 cached tokens inside 76; inside 1,200 it does."""
    record = {"id": "1", "type": "GENERATION", "traceId": "t", "startTime": AT, "model": "m", "usageDetails": details}
    assert only("langfuse", record).input_tokens == total


# ----------------------------------------------------------------------------------------------------------------- tiers


@pytest.mark.parametrize(
    ("word", "tier"),
    [
        ("priority", "priority"), ("Scale", "scale"), ({"type": "reserved"}, "reserved"), ("standard_only", Tier.STANDARD),
        ("auto", None), ("", None), (None, None), (7, None), ("Flex", Tier.FLEX), ("x" * 99, "x" * 40),
    ],
)  # fmt: skip
def test_a_tier_that_is_none_of_ours_keeps_its_word(word: object, tier: object) -> None:
    """Priority is no standard tier that a log failed to name; only `auto` names nothing."""
    assert tier_of(word) == tier


@pytest.mark.parametrize(
    ("kind", "tier"),
    [
        ("ON_DEMAND", Tier.STANDARD), ("ON_DEMAND_FLEX", Tier.FLEX), ("ON_DEMAND_PRIORITY", "priority"),
        ("PROVISIONED_THROUGHPUT", "provisioned_throughput"), ("TRAFFIC_TYPE_UNSPECIFIED", None),
    ],
)  # fmt: skip
def test_vertex_traffic_is_a_tier(kind: str, tier: object) -> None:
    """Provisioned throughput is paid by the hour: it keeps its name, and is no standard call."""
    answer = {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "trafficType": kind}}
    assert only("vertex", {"logging_time": AT, "model": "m", "full_response": answer}).tier == tier


def test_a_usage_report_keeps_tiers_apart() -> None:
    """What was bought as priority is no standard spend, in a provider's own sums as in calls."""
    result = {"uncached_input_tokens": 5, "output_tokens": 1, "model": "m", "service_tier": "priority"}
    record = {"starting_at": AT, "ending_at": "2026-09-22T10:00:00Z", "results": [result]}
    (bucket,) = FORMATS["anthropic-usage"].items(record, Asked())
    assert isinstance(bucket, Bucket)
    assert bucket.tier == "priority"


# -------------------------------------------------------------------------------------------------------------- triggers


@pytest.mark.parametrize(
    ("attributes", "trigger"),
    [
        ({"airflow.dag_id": "d", "airflow.dag_run.run_type": "scheduled"}, "cron"),
        ({"airflow.dag_id": "d", "airflow.dag_run.run_type": "backfill"}, "backfill"),
        ({"airflow.dag_id": "d", "airflow.dag_run.run_type": "manual"}, "manual"),
        ({"airflow.dag_id": "d", "airflow.dag_run.run_type": "asset_triggered"}, "dag"),
        ({"airflow.dag_id": "d", "airflow.dag_run.run_type": ["manual"]}, "dag"),
        ({"airflow.dag_id": "d"}, "dag"),
        ({"prefect.flow.name": "f"}, "dag"),
    ],
)
def test_a_task_of_a_workflow_is_scheduled_only_where_a_schedule_started_it(
    attributes: dict[str, object], trigger: str
) -> None:
    """Airflow says what started a run: a schedule, a backfill, a person; a name of a DAG or a flow says nothing of it."""
    held = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", **attributes}
    span = {"name": "chat", "startTimeUnixNano": "1760918400000000000", "attributes": held}
    assert only("otel", span).trigger == trigger


# ---------------------------------------------------------------------------------------------------------------- hashes


@pytest.mark.parametrize("column", ["prompt_hash", "input_hash"])
def test_a_hash_of_a_prompt_is_none_of_a_request(column: str) -> None:
    """Equal prompts may be asked of different texts: only a hash of the whole request shows a duplicate."""
    record = {"time": AT, "model": "m", column: "ab" * 16}
    assert only("plain", record).text_hash is None
    assert only("plain", {"time": AT, "model": "m", "request_hash": "ab" * 16}).text_hash == bytes.fromhex("ab" * 16)


def test_what_is_nested_too_deeply_has_no_hash() -> None:
    """A request a thousand levels deep is a call like any other that cannot be compared; it ends nothing."""
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert hash_of(deep) is None
    line = b'{"time":"%s","request":{"model":"m","messages":[{"content":"hi"}],"x":%s},"response":{"id":"1"}}' % (
        AT.encode(),
        b"[" * 900 + b"]" * 900,
    )
    call = only("openai", orjson.loads(line))
    assert (call.text, call.model) == ("hi", "m")
