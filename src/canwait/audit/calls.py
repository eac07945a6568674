"""One logged call, whatever wrote the log: the record that every format is read into.

Counts are as billed and mean the same everywhere: input includes what was read from or written to a cache, output
includes reasoning. A count the log does not hold is None, never zero. Everything textual is hostile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple, Protocol

from ..types import Tier


class Call(NamedTuple):
    """A tuple, because an audit makes millions of them. Times are microseconds since 1970, UTC."""

    start_us: int
    site: str  # the name calls are grouped by (`site_of`); "" when the log holds nothing to tell sites apart by
    model: str  # as asked for; "" when the log does not say
    provider: str = ""  # by canwait's names: openai, anthropic, bedrock ...; "" unknown
    operation: str = "chat"  # chat, responses, embeddings, other
    record_id: str | None = None  # the log's own; a second record of one id is the same call
    end_us: int | None = None  # when the whole answer was there
    first_token_us: int | None = None
    first_used_us: int | None = None  # when anything first read the answer
    model_served: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    max_output_tokens: int | None = None
    cost_usd: Decimal | None = None  # as the log reports it
    tier: Tier | str | None = None  # text: a tier that is none of ours, such as "priority"; None: the log does not say
    stream: bool | None = None
    failed: bool = False
    error: str | None = None  # its type
    finish_reason: str | None = None
    temperature: float | None = None
    tools: bool | None = None  # whether tools were offered
    user: str | None = None  # a person at the other end, as far as the log says
    session: str | None = None  # a conversation or trace that several calls belong to
    actor: str | None = None  # what made the call: key hash, service, host, worker
    trigger: str | None = None  # what started it, where the log says: cron, queue, http ...
    deadline_s: float | None = None  # declared by the caller
    prompt: str | None = None  # name and version
    text: str | None = None  # system text and messages in order, joined by newlines
    text_hash: bytes | None = None  # 16 bytes over the whole request where the log gives a hash or the request


@dataclass(frozen=True, slots=True)
class Bucket:
    """Spend over a time, summed by the provider: it sizes money and proves nothing about who waits."""

    start_us: int
    end_us: int
    provider: str
    model: str
    n_calls: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | None = None
    tier: Tier | str | None = None
    label: str = ""  # project, workspace, key


@dataclass(frozen=True, slots=True)
class BadLine:
    """Something in a log that is no call: counted, sampled in the report, never fatal."""

    file: str
    line: int  # from 1; for one JSON document the number of its record
    why: str


Item = Call | Bucket | BadLine


@dataclass(frozen=True, slots=True)
class Asked:
    """How a user wants a log read."""

    site_by: tuple[str, ...] = ()  # names of tags, attributes or columns that name a call site; the first found wins
    columns: Mapping[str, str] = field(default_factory=dict)  # field of Call -> column of a plain CSV or JSONL
    format: str | None = None  # None: found out by looking
    provider: str = ""  # of calls whose log does not say


class Format(Protocol):
    """One log format: a module of formats/ holds one."""

    name: str  # "otel", "litellm" ...
    title: str  # for people: "OpenTelemetry GenAI spans"

    def claims(self, record: Mapping[str, object]) -> bool:
        """Whether a record (a parsed line, a CSV row, or a whole JSON document) is of this format."""
        ...

    def items(self, record: Mapping[str, object], asked: Asked) -> Iterator[Call | Bucket]:
        """The calls of one record: none for a record that is about something else. Raises ValueError, saying why,
        for one that should hold a call and does not."""
        ...
