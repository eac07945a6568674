"""OpenTelemetry GenAI spans: OTLP JSON as the collector's file exporter and any OTLP/HTTP client writes it, and the flat
spans of the Python SDK's console exporter. Current attribute names (semantic conventions for generative AI), those they
replaced, and those of the instrumentations that came before them.

Only spans of one call of a model are calls: spans of agents, workflows and tools sum or surround them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from ...types import Tier
from ..calls import Asked, Call
from .bodies import hash_of, texts, version_of, within_cache
from .sites import DEADLINE, FIRST_USED, SITE_TAGS, TRIGGER, Declared, declared, site_of, trigger_of
from .values import (
    Faults,
    Fields,
    after_us,
    count,
    dollars,
    first_named,
    flag,
    items_of,
    json_of,
    limit_of,
    must_start,
    named,
    number,
    provider_of,
    tier_of,
    when_us,
)

_OPERATIONS = {
    "chat": "chat",
    "generate_content": "chat",
    "text_completion": "chat",
    "completion": "chat",
    "embeddings": "embeddings",
    "embedding": "embeddings",
    "responses": "responses",
}
_RENAMED = {  # names before the current ones; both may stand in one file, and on one span the current one counts
    "gen_ai.system": "gen_ai.provider.name",
    "gen_ai.usage.prompt_tokens": "gen_ai.usage.input_tokens",
    "gen_ai.usage.completion_tokens": "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.openai.request.service_tier": "openai.request.service_tier",
    "gen_ai.openai.response.service_tier": "openai.response.service_tier",
    "gen_ai.openai.request.user": "user.id",
    "gen_ai.request.is_stream": "gen_ai.request.stream",
    "llm.is_streaming": "gen_ai.request.stream",
    "llm.request.type": "gen_ai.operation.name",
    "llm.user": "user.id",
    "enduser.id": "user.id",
    "code.filepath": "code.file.path",
    "code.lineno": "code.line.number",
    "code.function": "code.function.name",
}
_OLD = frozenset(_RENAMED)
_SELDOM = frozenset(  # attributes that most spans do not have, so that one look spares looking for each
    (
        "gen_ai.prompt gen_ai.prompt.0.content gen_ai.prompt.name gen_ai.agent.name gen_ai.workflow.name "
        "gen_ai.input.messages gen_ai.system_instructions gen_ai.tool.definitions llm.request.functions.0.name "
        "gen_ai.usage.cost gen_ai.response.time_to_first_chunk openai.request.service_tier openai.response.service_tier "
        "traceloop.workflow.name user.id code.function.name faas.trigger faas.cron cicd.pipeline.name messaging.system "
        "http.route k8s.cronjob.name airflow.dag_id airflow.dag_run.run_type prefect.flow.name "
        f"{DEADLINE} {TRIGGER} {FIRST_USED} {' '.join(SITE_TAGS)}"
    ).split()
)
_AROUND = ("workflow", "task", "agent", "tool")  # traceloop.span.kind of spans that are no call of a model
_MESSAGES = ("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message", "gen_ai.tool.message")
_STARTS = ("startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime")
_ENDS = ("endTimeUnixNano", "end_time_unix_nano", "end_time", "endTime")
_FAILED = (2, "2", "STATUS_CODE_ERROR", "ERROR")
_RUN_TYPES = {
    "scheduled": "cron",
    "backfill": "backfill",
    "manual": "manual",
}  # of a run of Airflow; by hand is no schedule
MAX_NESTED = 32  # values inside values of an attribute


class OpenTelemetry:
    name = "otel"
    title = "OpenTelemetry GenAI spans"

    def claims(self, record: Mapping[str, object]) -> bool:
        if "resourceSpans" in record or "resource_spans" in record:
            return True
        return "attributes" in record and "name" in record and any(name in record for name in _STARTS)

    def items(self, record: Fields, asked: Asked) -> Iterator[Call]:
        exported = record.get("resourceSpans") or record.get("resource_spans")
        if exported is None:
            if call := _call(record, _sender(record, asked), asked):
                yield call
            return
        faults = []
        for span, sender in _spans(exported, asked):
            try:
                call = _call(span, sender, asked)
            except ValueError as error:
                faults.append(str(error))
            else:
                if call:
                    yield call
        if faults:
            raise Faults(faults)


class _Sender(NamedTuple):
    """What sent spans, and what it says of all of them."""

    attributes: Fields
    site: str  # by a tag
    service: str | None
    actor: str | None
    trigger: str | None
    said: Declared


def _sender(group: Fields, asked: Asked) -> _Sender:
    resource = group.get("resource")
    found = attributes(resource.get("attributes")) if type(resource) is dict else {}
    get, said = found.get, declared(found)
    return _Sender(
        found,
        site_of(asked, (found,)),
        first_named(get("service.name")),
        first_named(get("service.instance.id"), get("k8s.pod.name"), get("host.name"), get("service.name")),
        said.trigger or _trigger(get),
        said,
    )


def _spans(exported: object, asked: Asked) -> Iterator[tuple[Fields, _Sender]]:
    """Each span, with what sent it."""
    for group in _objects(exported, "resourceSpans"):
        sender = _sender(group, asked)
        scopes = group.get("scopeSpans") or group.get("scope_spans") or group.get("instrumentationLibrarySpans") or []
        for scope in _objects(scopes, "scopeSpans"):
            for span in _objects(scope.get("spans") or [], "spans"):
                yield span, sender


def _objects(value: object, what: str) -> list[dict[str, Any]]:
    if type(value) is not list or not all(type(x) is dict for x in value):
        raise ValueError(f"{what} is no array of objects")
    return value


def _call(span: Fields, sender: _Sender, asked: Asked) -> Call | None:
    found = attributes(span.get("attributes"))
    get = found.get
    operation, model = get("gen_ai.operation.name"), get("gen_ai.request.model") or get("gen_ai.response.model")
    kind = _OPERATIONS.get(operation) if type(operation) is str else None
    if kind is None:
        if operation or not model or get("traceloop.span.kind") in _AROUND:
            return None
        kind = "chat"
    start_us = must_start(_time(span, _STARTS), "start time")
    trace, own = _ids(span)
    failed, error = _failure(span, get)
    rest = _seldom(span, found, sender, asked, start_us) if not _SELDOM.isdisjoint(found) or "events" in span else None
    stream = get("gen_ai.request.stream")
    if rest is None:
        site = site_of(asked, (found, sender.attributes)) if asked.site_by else sender.site or _code(found)
        rest = _Seldom(site or ("" if asked.site_by else sender.service or ""), sender.said, trigger=sender.trigger)
    return Call(
        start_us,
        rest.site,
        named(model) or "",
        provider_of(get("gen_ai.provider.name")) or asked.provider,
        kind,
        f"{trace}/{own}" if trace and own else own or first_named(get("gen_ai.response.id")),
        _time(span, _ENDS),
        rest.first_token_us,
        rest.said.first_used_us,
        first_named(get("gen_ai.response.model")),
        *within_cache(
            count(get("gen_ai.usage.input_tokens"), "input tokens"),
            count(get("gen_ai.usage.cache_read.input_tokens"), "cached tokens"),
            count(get("gen_ai.usage.cache_creation.input_tokens"), "cache writes"),
            count(get("gen_ai.usage.output_tokens"), "output tokens"),
            count(get("gen_ai.usage.reasoning.output_tokens"), "reasoning tokens"),
        ).called(kind),
        limit_of(get("gen_ai.request.max_tokens")),
        rest.cost_usd,
        rest.tier,
        (True if rest.first_token_us is not None else None) if stream is None else flag(stream),
        failed,
        error,
        _finish(get("gen_ai.response.finish_reasons")),
        number(get("gen_ai.request.temperature")),
        rest.tools,
        rest.user,
        first_named(get("gen_ai.conversation.id"), get("session.id"), trace),
        sender.actor,
        rest.trigger,
        rest.said.deadline_s,
        rest.prompt,
        rest.text,
        rest.text_hash,
    )


class _Seldom(NamedTuple):
    """What most spans do not say."""

    site: str
    said: Declared
    trigger: str | None = None
    first_token_us: int | None = None
    cost_usd: Decimal | None = None
    tier: Tier | str | None = None
    tools: bool | None = None
    user: str | None = None
    prompt: str | None = None
    text: str | None = None
    text_hash: bytes | None = None


def _seldom(span: Fields, found: Fields, sender: _Sender, asked: Asked, start_us: int) -> _Seldom:
    get = found.get
    said = declared(found, sender.attributes)
    names = ("gen_ai.prompt.name", "gen_ai.agent.name", "gen_ai.workflow.name", "traceloop.workflow.name")
    site = site_of(asked, (found, sender.attributes), _code(found), *map(get, names), sender.service)
    text, text_hash = _request(span, found)
    return _Seldom(
        site,
        said,
        said.trigger or _trigger(get) or sender.trigger,
        after_us(start_us, number(get("gen_ai.response.time_to_first_chunk"))),
        dollars(get("gen_ai.usage.cost"), "cost"),
        tier_of(get("openai.response.service_tier")) or tier_of(get("openai.request.service_tier")),
        True if get("gen_ai.tool.definitions") or get("llm.request.functions.0.name") else None,
        first_named(get("user.id")),
        version_of(get("gen_ai.prompt.name"), get("gen_ai.prompt.version")),
        text,
        text_hash,
    )


def attributes(value: Any) -> Fields:
    """OTLP's list of keys and typed values, or a plain object of them, as one mapping with the current names.

    Text, numbers and truth are as they are (an integer is text); arrays and objects are for `opened`.
    """
    try:
        if type(value) is list:
            found = {entry["key"]: plain for entry in value for plain in entry["value"].values()}
        else:
            found = dict(value or ())
        "".join(found)  # the quickest way to be sure that every key is text
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError("attributes are no list of keys and values") from None
    if not _OLD.isdisjoint(found):
        for before, now in _RENAMED.items():
            if before in found and now not in found:
                found[now] = found[before]
    return found


def opened(value: object, nested: int = 0) -> Any:
    """An attribute's value as JSON has it: from OTLP's typed arrays and objects, or from text of JSON."""
    if nested > MAX_NESTED:
        raise ValueError("an attribute is nested too deeply")
    held = value.get("values") if type(value) is dict else None
    if type(held) is not list:
        return json_of(value)
    if all(type(one) is dict and "key" in one for one in held):
        return {str(one["key"]): _typed(one.get("value"), nested) for one in held}
    return [_typed(one, nested) for one in held]


def _typed(value: object, nested: int) -> Any:
    return opened(next(iter(value.values()), None), nested + 1) if type(value) is dict else None


def _time(span: Fields, names: Sequence[str]) -> int | None:
    for name in names:
        if (value := span.get(name)) is not None:
            if type(value) is str and len(value) == 19 and value.isdecimal():  # nanoseconds, as nearly all are
                value = int(value[:16])
            return when_us(value, name)
    return None


def _ids(span: Fields) -> tuple[str | None, str | None]:
    """Of the trace and of the span, which are named within it."""
    context = span.get("context")
    place = context if type(context) is dict else span
    trace, own = place.get("traceId") or place.get("trace_id"), place.get("spanId") or place.get("span_id")
    return named(trace), named(own)


def _code(found: Fields) -> str | None:
    """Where the call stands: file and line, else the function."""
    path, line = found.get("code.file.path"), found.get("code.line.number")
    if type(path) is str and path:
        path = path[-180:]
        return f"{path}:{line}" if type(line) in (int, str) and str(line)[:9].isdecimal() else path
    function, within = found.get("code.function.name"), found.get("code.namespace")
    if type(function) is not str or not function:
        return None
    return f"{within}.{function}" if type(within) is str and within else function


def _failure(span: Fields, get: Any) -> tuple[bool, str | None]:
    """Whether the span ended in an error, and its type."""
    status, error = span.get("status"), get("error.type")
    failed = bool(type(status) is dict and status and (status.get("code") or status.get("status_code")) in _FAILED)
    if not failed and error is None:
        return False, None
    if error is None:
        for event in items_of(span.get("events")):
            if type(event) is dict and event.get("name") == "exception":
                error = attributes(event.get("attributes")).get("exception.type")
    return True, first_named(error)


def _finish(value: object) -> str | None:
    """The first of the reasons: OTLP's array of typed values, a plain array, or text of one."""
    held = value.get("values") if type(value) is dict else json_of(value)
    first = held[0] if type(held) is list and held else held
    return first_named(next(iter(first.values()), None) if type(first) is dict else first)


def _trigger(get: Any) -> str | None:
    """What started the work, where functions, clusters, pipelines, schedulers or queues say it."""
    if (kind := get("faas.trigger")) and kind != "other":
        return trigger_of(kind)
    if get("faas.cron") or get("k8s.cronjob.name"):
        return "cron"
    run_type = get("airflow.dag_run.run_type")
    if type(run_type) is str and run_type in _RUN_TYPES:
        return _RUN_TYPES[run_type]
    if run_type or get("airflow.dag_id") or get("prefect.flow.name"):
        return "dag"  # which says that a task runs, and not what started it
    if get("cicd.pipeline.name"):
        return "ci"
    if get("messaging.system"):
        return "queue"
    return "http" if get("http.route") else None


# ---------------------------------------------------------------------------------------------------- what was asked


def _request(span: Fields, found: Fields) -> tuple[str | None, bytes | None]:
    """The text of a request, and its hash; both None where the span holds no messages."""
    system, messages = found.get("gen_ai.system_instructions"), found.get("gen_ai.input.messages")
    if messages is None:
        messages = _indexed(found) if "gen_ai.prompt.0.content" in found else found.get("gen_ai.prompt")
    if messages is None and span.get("events"):
        told, messages = _told(span)
        system = told if system is None else system
    if messages is None:
        return None, None
    read = (opened(system), opened(messages))
    settings = {k: v for k, v in found.items() if k.startswith("gen_ai.request.") and not k.endswith("stream")}
    text = "\n".join(piece for part in read for piece in texts(part))
    return text or None, hash_of((read, settings, opened(found.get("gen_ai.tool.definitions"))))


def _indexed(found: Fields) -> list[dict[str, Any]]:
    """Messages as attributes with numbers in their names."""
    messages: list[dict[str, Any]] = []
    while (content := found.get(f"gen_ai.prompt.{len(messages)}.content")) is not None:
        messages.append({"role": found.get(f"gen_ai.prompt.{len(messages)}.role"), "content": json_of(content)})
    return messages


def _told(span: Fields) -> tuple[Any, Any]:
    """System text and messages from a span's events, both None where no event holds any."""
    said: list[Any] = []
    for event in items_of(span.get("events")):
        if type(event) is not dict:
            continue
        held = attributes(event.get("attributes"))
        if event.get("name") in _MESSAGES:
            content = held.get("content", held.get("gen_ai.event.content"))
            said.append({"content": opened(content)})
        elif (messages := held.get("gen_ai.input.messages")) is not None:
            return held.get("gen_ai.system_instructions"), messages
        elif event.get("name") == "gen_ai.content.prompt":
            return None, held.get("gen_ai.prompt")
    return None, said or None
