"""What an audit of call logs costs: reading, gathering, judging and pricing a million calls, against a naive count.

    python benchmarks/audit_logs.py [--rows N] [--runs N] [--sites N] [--format NAME ...]

The naive one does the least that a script would: json.loads of each line (csv.DictReader for CSV), and calls and tokens
summed per site and model in a dict. The ratio is its CPU over ours: how much of our time is what any reader pays.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

from measure import measured, ratio, table

SITES, USERS, SPANS_A_LINE = 40, 3000, 50
RULES = " ".join(f"Rule {i}: answer in one word." for i in range(16))  # what the texts of all calls begin with
START_S = 1_760_918_400  # a Monday in October 2025


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sites", type=int, default=SITES)
    parser.add_argument("--format", nargs="*", choices=FORMATS, default=[*FORMATS])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.format:
            path = Path(folder, f"{name}.jsonl")
            write(name, path, args.rows, args.sites)
            ours = measured(audit_file, str(path), runs=args.runs)
            naive = measured(count_naively, name, str(path), runs=args.runs)
            size_mb = path.stat().st_size / 1e6
            for what, m in ((f"{name}, audit", ours), (f"{name}, naive count", naive)):
                assert m.returned == args.rows, m.returned
                rows.append(
                    (what, size_mb, m.cpu_s, m.wall_s, m.cpu_s / args.rows * 1e6, args.rows / m.cpu_s, m.peak_mb)
                )
            ratio("audit_logs", f"{name}, naive / audit CPU", naive.cpu_s / ours.cpu_s)
            path.unlink()
    print(f"\n{args.rows:,} calls of {args.sites:,} sites, medians of {args.runs} runs")
    print(table(("", "file MB", "CPU s", "wall s", "CPU us/call", "calls/CPU s", "peak MB"), rows))


def audit_file(path: str) -> int:
    from canwait.audit.run import audit
    from canwait.types import Price, Tier

    def price_of(provider: str, model: str, tier: Tier) -> Price | str:
        rate = Decimal(1) if tier is Tier.STANDARD else Decimal("0.5")
        return Price(provider, model, tier, rate, rate * 4, None, None, "stated for this benchmark", date(2026, 11, 21))

    found = audit([Path(path)], now=datetime(2026, 11, 21, tzinfo=UTC), price_of=price_of)
    assert {site.verdict.needs.name for site in found.sites} == {"SYNC", "BATCH", "ASK"}
    return found.n_calls


def count_naively(name: str, path: str) -> int:
    sums: dict[Any, list[int]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file) if name == "csv" else map(json.loads, file):
            for site, model, n_input, n_output in PARTS.get(name, _of_columns)(record):
                counts = sums.setdefault((site, model), [0, 0, 0])
                counts[0] += 1
                counts[1] += int(n_input)
                counts[2] += int(n_output)
    return sum(counts[0] for counts in sums.values())


# --------------------------------------------------------------------------------------------------------------- the logs


def write(name: str, path: Path, n: int, sites: int) -> None:
    """Two weeks: a third of the sites stream to users in sessions, a third run from a schedule, a third say nothing."""
    with path.open("w", encoding="utf-8") as file:
        for line in FORMATS[name](calls(n, sites)):
            file.write(line + "\n")


def calls(n: int, sites: int) -> Iterator[dict[str, Any]]:
    random = Random(1)
    for i in range(n):
        kind, start_us = i % 3, START_S * 10**6 + i * (14 * 86_400 * 10**6 // n)
        told: dict[str, Any] = {"user": None, "session": None, "stream": None, "trigger": None}
        if kind == 0:
            user = random.randrange(USERS)
            told |= {"user": f"user-{user}", "session": f"s-{user}-{i // 30_000}", "stream": True}
        elif kind == 1:
            told |= {"trigger": "cron", "stream": False}
            start_us -= start_us % (6 * 3600 * 10**6) * 9 // 10  # runs of half an hour, four a day
        yield {
            "site": f"app/{i % sites // 3 * 3 + kind}.py:12",
            "id": f"{random.getrandbits(64):016x}",
            "start_us": start_us,
            "end_us": start_us + random.randrange(300_000, 9_000_000),
            "model": f"model-{random.randrange(3)}",
            "input": random.randrange(50, 4000),
            "output": random.randrange(5, 600),
            **told,
        }


def as_canwait(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    for call in found:
        record = {
            **{k: v for k, v in call.items() if v is not None and k not in ("id", "input", "output")},
            "provider": "openai", "record_id": call["id"],
            "input_tokens": call["input"], "output_tokens": call["output"],
        }  # fmt: skip
        yield json.dumps(record)


def as_otel(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    spans: list[dict[str, Any]] = []
    for call in found:
        held = {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": call["model"],
            "gen_ai.usage.input_tokens": call["input"], "gen_ai.usage.output_tokens": call["output"],
            "call_site": call["site"], "user.id": call["user"], "gen_ai.conversation.id": call["session"],
            "gen_ai.request.stream": call["stream"], "canwait.trigger": call["trigger"],
        }  # fmt: skip
        attributes = [{"key": key, "value": _otel(value)} for key, value in held.items() if value is not None]
        span = {"traceId": call["id"] * 2, "spanId": call["id"], "name": f"chat {call['model']}", "kind": 3}
        times = {"startTimeUnixNano": f"{call['start_us']}000", "endTimeUnixNano": f"{call['end_us']}000"}
        spans.append({**span, **times, "attributes": attributes, "status": {}})
        if len(spans) == SPANS_A_LINE:
            yield _exported(spans)
            spans = []
    if spans:
        yield _exported(spans)


def _otel(value: object) -> dict[str, object]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def _exported(spans: list[dict[str, Any]]) -> str:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "app"}}]}
    return json.dumps(
        {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "x"}, "spans": spans}]}]}
    )


def _of_otel(line: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for resource in line["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                held = {a["key"]: a["value"] for a in span["attributes"]}
                n_input, n_output = (held[f"gen_ai.usage.{k}_tokens"]["intValue"] for k in ("input", "output"))
                yield held["call_site"]["stringValue"], held["gen_ai.request.model"]["stringValue"], n_input, n_output


def as_texts(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    """canwait's own record, each with what was asked: rules that are alike, then some hundred bytes that are not."""
    random = Random(2)
    for line in as_canwait(found):
        text = f"{RULES}\n{random.randbytes(80 + random.randrange(80)).hex()}"
        yield f"{line[:-1]}, {json.dumps({'text': text})[1:]}"


def as_litellm(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    for call in found:
        start, end = (datetime.fromtimestamp(call[f"{name}_us"] / 1e6, UTC).isoformat() for name in ("start", "end"))
        tags = [f"call_site:{call['site']}", *(["canwait.trigger:cron"] if call["trigger"] else [])]
        first = call["start_us"] / 1e6 + 0.1 if call["stream"] else call["end_us"] / 1e6
        record = {
            "request_id": call["id"], "call_type": "acompletion", "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05",
            "spend": 0.0001, "prompt_tokens": call["input"], "completion_tokens": call["output"],
            "total_tokens": call["input"] + call["output"], "startTime": start, "endTime": end,
            "completionStartTime": datetime.fromtimestamp(first, UTC).isoformat(), "model": call["model"],
            "model_group": call["model"], "custom_llm_provider": "openai", "cache_hit": "False", "request_tags": tags,
            "end_user": call["user"], "session_id": call["session"], "status": "success", "messages": {}, "response": {},
            "metadata": {"user_api_key_alias": "app", "usage_object": {
                "prompt_tokens": call["input"], "completion_tokens": call["output"],
                "prompt_tokens_details": {"cached_tokens": 0}}},
        }  # fmt: skip
        yield json.dumps(record)


def _of_litellm(line: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield line["request_tags"][0], line["model"], line["prompt_tokens"], line["completion_tokens"]


_COLUMNS = ("start_us", "end_us", "site", "id", "model", "input", "output", "user", "session", "stream", "trigger")


def as_csv(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield "start,end,site,request_id,model,input_tokens,output_tokens,user_id,session_id,stream,trigger,provider"
    for call in found:
        values = ("" if call[name] is None else str(call[name]) for name in _COLUMNS)
        yield f"{','.join(values)},openai"


def _of_columns(line: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield line["site"], line["model"], line["input_tokens"], line["output_tokens"]


FORMATS: dict[str, Callable[[Iterator[dict[str, Any]]], Iterator[str]]] = {
    "otel": as_otel,
    "canwait": as_canwait,
    "texts": as_texts,
    "litellm": as_litellm,
    "csv": as_csv,
}
PARTS: dict[str, Callable[[dict[str, Any]], Iterator[tuple[Any, ...]]]] = {"otel": _of_otel, "litellm": _of_litellm}


if __name__ == "__main__":
    main()
