"""Every noun of canwait, frozen, units in the names. Read this file first.

Money is an integer of micros: millionths of a US dollar. Prices are Decimal USD per million tokens, which is the
same number as micros per token. Times are timezone-aware UTC. Token counts say how they were obtained (`Tokens.kind`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal


class Urgency(str, Enum):
    """What the user perceives; stated in every job, never inferred from convenience."""

    SYNC = "sync"  # a person or a request waits
    NEAR_REAL_TIME = "near_real_time"  # minutes
    BATCH = "batch"  # hours


class Tier(str, Enum):
    """What is bought."""

    BATCH = "batch"
    BACKGROUND = "background"
    FLEX = "flex"
    STANDARD = "standard"
    OWN = "own"  # our own servers, one row at a time


class Endpoint(str, Enum):
    """What a request asks for. Anthropic's messages are its chat."""

    CHAT = "chat"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"  # one text in, one vector out, no output tokens


class MarkClass(str, Enum):
    """How a batch whose create reply was lost can be found again (providers.md 5)."""

    IDEMPOTENT = "A"  # the same create twice is one batch: repeat it
    FINDABLE = "B"  # our token stands on the batch: list and compare
    UNMARKED = "C"  # nothing of ours on the batch: time and exact row count, confirmed by custom ids at the end


class Outcome(IntEnum):
    """What became of one line of a shard: one byte of its state vector."""

    PENDING = 0  # no result yet
    OK = 1  # a valid answer
    FAILED = 2  # answered with an error, or the answer is unusable; the cause says which
    EXPIRED = 3  # the provider's window closed before the row ran; not billed
    CANCELLED = 4  # cancelled before the row ran; not billed
    MISSING = 5  # the batch ended and the provider never returned the row; what it cost is not provable


class ShardState(str, Enum):
    """States of a shard; allowed moves are in lifecycle.py."""

    PLANNED = "planned"  # written, nothing reserved
    SUBMITTING = "submitting"  # money reserved, intent recorded; the create may or may not have arrived
    SUBMITTED = "submitted"  # the provider named the batch
    ENDED = "ended"  # the provider says it is over; output not settled yet
    SETTLED = "settled"  # results, cost and release recorded: terminal
    REFUSED = "refused"  # certainly never arrived and will not be sent again; money released: terminal
    CANCELLED = "cancelled"  # given up before anything was sent: terminal


class JobState(str, Enum):
    """States of a job."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    GATE = "gate"  # finished, waiting to be judged before it may be loaded
    REFUSED = "refused"  # judged, and its gate lets nothing through
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


# ---------------------------------------------------------------------------------------------- requests and tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """Input tokens of one request, with their provenance (methods.md 1.1)."""

    expected: int  # what we believe the provider will bill
    bound: int  # what it cannot exceed; reservations use this
    kind: Literal["counted", "bounded", "estimated"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Billed tokens. Input includes cached and cache-written tokens; output includes reasoning."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


# --------------------------------------------------------------------------------------------------- price and offers


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens of one provider, model and tier (= micros per token), dated and sourced."""

    provider: str
    model: str
    tier: Tier
    input: Decimal
    output: Decimal
    cached_input: Decimal | None  # None: no published rate; then cached tokens are priced as input
    cache_write: Decimal | None  # None: no published rate; then written tokens are priced as input
    source: str  # who says so
    as_of: date  # when they were last known to say so
    steps: tuple[PriceStep, ...] = ()  # long-context rates: the highest step a request reaches prices all of it


@dataclass(frozen=True, slots=True)
class PriceStep:
    """Rates of a whole request whose input is longer than `above_input_tokens`."""

    above_input_tokens: int
    input: Decimal
    output: Decimal
    cached_input: Decimal | None
    cache_write: Decimal | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider accepts in one batch, and how long things take there."""

    max_rows: int
    max_bytes: int  # of the whole request file
    max_line_bytes: int
    max_enqueued_tokens: int | None  # None: read from the account only; a refusal then means wait
    window_s: int  # the provider gives up on a batch after this long
    settle_s: int  # create timeout + listing lag: a batch not listed by then certainly does not exist
    create_timeout_s: int  # shorter than settle_s
    source: str
    poll_s: float = 30.0  # how often it is worth asking
    max_in_flight: int | None = None  # batches of one account at a time


@dataclass(frozen=True, slots=True)
class Offer:
    """Something that can be bought for a job."""

    provider: str
    model: str
    tier: Tier
    price: Price | None  # None: no rate is known, so it cannot be chosen
    limits: Limits
    chosen: bool
    reason: str  # why it was chosen, or why not


# ---------------------------------------------------------------------------------------------------------- the batch


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard as a provider receives it."""

    token: str  # our mark: names the file, rides in metadata where there is any, prefixes every custom id
    path: Path  # request bodies, one canonical JSON a line, in line order
    n_rows: int
    endpoint: str  # "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"
    model: str  # as on the wire
    window_s: int  # the completion window asked for
    first_try: datetime | None = None  # when this shard was first sent, for `find`
    known: frozenset[str] = frozenset()  # batch ids other shards own: `find` never returns them

    def custom_id(self, line: int) -> str:
        """The row id on the wire: safe for every provider (`^[a-z][a-z0-9-]{0,62}$`, providers.md 2)."""
        return f"{self.token}-{line}"

    def line(self, custom_id: str) -> int | None:
        """The line a custom id names, or None if it is not one of ours."""
        prefix, _, number = custom_id.rpartition("-")
        if prefix != self.token or not (number.isascii() and number.isdigit()) or (number != "0" and number[0] == "0"):
            return None
        return int(number) if len(number) < 10 and int(number) < self.n_rows else None


class BatchStatus(str, Enum):
    """A provider's batch, in our words. Only result rows are truth; the status only says whether to look."""

    RUNNING = "running"  # accepted; validating, queued, running or finalizing
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (BatchStatus.RUNNING, BatchStatus.CANCELLING)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a provider says about one batch. Counts are hearsay and never used for money or rows."""

    id: str
    status: BatchStatus
    created_at: datetime
    n_rows: int | None = None  # as the provider counts it
    n_done: int | None = None
    usage: Usage | None = None  # the batch's own bill, where the provider states one
    outputs: tuple[str, ...] = ()  # provider's names of the output files, opaque
    error_code: str | None = None  # why the whole batch failed
    error: str | None = None  # the provider's words; hostile text
    retry_after_s: float | None = None  # when the provider asks to be polled next


@dataclass(frozen=True, slots=True)
class Answer:
    """One decoded line of a provider's output."""

    custom_id: str
    outcome: Outcome  # OK, FAILED, EXPIRED or CANCELLED
    cause: str | None  # one of lifecycle.CAUSES, None when OK
    detail: str | None  # the provider's words; hostile text
    text: str | None  # the answer
    usage: Usage | None  # None: the provider billed nothing or did not say
    model: str | None  # the model that served it
    finish_reason: str | None = None
    vector: bytes | None = None  # an embedding: little-endian float32, every one finite; then there is no text


# An answer that is OK, with text and a stated bill, in short: custom id, text, model, and its tokens in `Usage`'s order.
# A tuple, for one is made of nearly every line: `Answer` and `Usage` would cost as much as reading the line does.
Plain = tuple[str, str, str, int, int, int, int]


# ------------------------------------------------------------------------------------------------------------ the job


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from."""

    uri: str  # path relative to the job file, an address, or "-" ; a frame's rows have uri "frame:"
    key: str  # the column that names a row
    format: str | None = None  # csv tsv jsonl parquet; None: by the name's ending
    sql: str | None = None  # the query whose rows they are; `uri` is then a database


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """The job's own limit; at least one is stated."""

    micros: int | None
    tokens: int | None
    rows: int | None
    on_exceed: Literal["refuse", "trim", "ask"] = "refuse"
    tell_at: tuple[
        Decimal, ...
    ] = ()  # shares of the limit in USD, 0..1, at which it is told; empty: 80 % and all of it


@dataclass(frozen=True, slots=True)
class ShardSpec:
    max_rows: int | None = None
    by: str | None = None  # a column whose values are kept together


@dataclass(frozen=True, slots=True)
class Load:
    """Where accepted rows go."""

    to: str  # path relative to the job file, or an address
    mode: Literal["merge", "append", "replace"] = "merge"
    format: str | None = None
    table: str | None = None  # TABLE or SCHEMA.TABLE; `to` is then a database


@dataclass(frozen=True, slots=True)
class JudgeModel:
    """A model whose word on a row of the sample chooses what people look at; it opens no gate (stratified.py)."""

    provider: str
    model: str  # as on the wire
    prompt: str  # a template over `input`, `answer` and `key`
    max_output_tokens: int
    micros: int  # its own limit, below those of the project and the month
    tier: Tier | None = None  # None: the provider's own default
    rows: int = 2_000  # that it looks at, at most


@dataclass(frozen=True, slots=True)
class Quality:
    """What answers must show before they are loaded (gate.py)."""

    refuse_if_bad_rate: Decimal  # 0..1
    sure: Decimal  # 0..1
    by: Literal["human", "rule", "judge"]  # judge: people, and a judge model chooses their rows
    rows: int | None = None  # judged at most, of each stratum; None: 60, or as many as it takes to be that sure
    preset: Literal["relaxed", "standard", "strict", "zero"] | None = None
    strata: str | None = None  # a field of the answer; rows of each value are judged for themselves
    on_refuse: Literal["quarantine", "load_accepted_strata", "rerun"] = "quarantine"  # rerun: once, then quarantine
    rules: tuple[str, ...] = ()  # expressions over every answer, package.module:function, or language.rule_of
    judge: JudgeModel | None = None  # where `by` says so
    canary: Literal["checked", "judged"] = "checked"  # judged: it is accepted before more of its plan is sent


@dataclass(frozen=True, slots=True)
class Freshness:
    max_age_s: int
    on_stale: Literal["serve", "block", "live"]


AtDeadline = Literal["last_publication", "load_without", "fail"]


@dataclass(frozen=True, slots=True)
class Fallback:
    """What is done about rows that are not back in time; at least one is stated."""

    rescue: Tier | None = None  # what would be late is moved there, before the deadline
    rows_per_s: float | None = None  # what the account's limit allows there; None: past runs say it, or nobody
    at_deadline: AtDeadline | None = None  # None: what is out then is waited for


@dataclass(frozen=True, slots=True)
class Notify:
    """Somebody to be told, and of what."""

    to: str  # https://HOST/PATH, mailto:NAME@HOST or apprise:VARIABLE; what is secret in it stands there as ${NAME}
    secret: str | None = None  # the variable that holds the secret a webhook is signed with
    kinds: tuple[str, ...] = ()  # of notices.KINDS; empty: all


@dataclass(frozen=True, slots=True)
class Job:
    """dataset + prompt + model + deadline + budget + gate + contract, under a durable name."""

    name: str
    source: Source
    provider: str  # "openai", "anthropic", "own", "local"
    model: str  # as on the wire
    prompt: tuple[tuple[str, str], ...]  # (role, template) messages
    max_output_tokens: int  # of one answer; 0 for embeddings, which have no output tokens
    urgency: Urgency
    budget: BudgetSpec
    output_schema: Mapping[str, Any] | None = None  # JSON Schema 2020-12 of one answer
    tiers: tuple[Tier, ...] = ()  # tried in this order; empty: the provider's own default
    deadline_s: int = 86_400
    params: Mapping[str, Any] = field(default_factory=dict)  # temperature, seed, ...: sent as they are
    attempts: int = 3
    shard: ShardSpec = ShardSpec()
    dedupe: bool = True
    load: Load | None = None
    quality: Quality | None = None
    freshness: Freshness | None = None
    schedule: str | None = None
    owner: str | None = None
    fallback: Fallback | None = None
    base_dir: Path = Path(".")  # relative paths start here
    endpoint: Endpoint = Endpoint.CHAT
    notify: tuple[Notify, ...] = ()


# ----------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a request."""

    line: int  # of the source file, counted from 1; for frames the row number from 1
    key: str | None
    problem: str  # what was found and what was expected


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """The rows sent as one provider batch; the unit of submission, money and retry."""

    id: str
    n_lines: int  # requests in it
    n_bytes: int
    requests_blob: str  # canonical bodies, one a line
    manifest_blob: str  # Parquet: line, request_key, input_expected, input_bound, max_output_tokens
    input_expected: int
    input_bound: int
    output_bound: int
    expected_micros: int
    worst_micros: int
    by: str | None = None  # the value of `shard.by` all its rows share


@dataclass(frozen=True, slots=True)
class Canary:
    """A random sample of a plan's new requests, sent first, as a shard of its own: what the others will cost, and whether
    they are worth asking."""

    shard: str
    homes: tuple[int, ...]  # by line, in random order: the place in `Plan.shard_ids` of the shard it was drawn from
    aside: tuple[
        tuple[int, int], ...
    ] = ()  # from such a place: how many were in the sample for a while, and go last now


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job would do and cost, as a value; approving it means running exactly it."""

    id: str  # "p_" + the first 12 hex digits of the digest
    digest: str  # sha256 over rows, prompt, model, params and prices
    job: str
    provider: str
    model: str
    tier: Tier
    endpoint: str
    price: Price
    standard_price: Price | None
    n_rows: int
    n_duplicates: int  # rows whose request another row of this dataset already has
    n_reused: int  # rows answered from what was already paid or is already on its way
    n_new: int  # requests this plan pays for
    bad_rows: tuple[BadRow, ...]  # the first 1,000
    n_bad_rows: int
    input_expected: int
    input_bound: int
    output_expected: int
    output_bound: int
    tokens_kind: Literal["counted", "bounded", "estimated"]
    tokens_by: str  # which counter, or "UTF-8 bytes"
    output_basis: str  # where output_expected comes from
    expected_micros: int
    worst_micros: int  # every output at its bound, one attempt of every row
    standard_micros: int | None  # what the expected tokens would cost at the standard tier
    attempts: int
    shards: tuple[PlannedShard, ...]
    offers: tuple[Offer, ...]
    rows_blob: str  # Parquet: key, shard index, line; one record a dataset row, in source order
    shard_ids: tuple[str, ...]  # what the shard index in rows_blob points to; new shards and older ones
    source_fingerprint: str  # sha256 of the source's bytes and of everything else that decides the rows
    source_as_of: datetime  # when the input was read
    created_at: datetime
    canary: Canary | None = None  # of few rows none is drawn


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the ledger knows it."""

    id: str
    job: str
    state: ShardState
    root: str  # the planned shard whose lines it answers; its own id unless it is a retry
    attempt: int  # 1 for the first time its rows are sent
    role: Literal["work", "duplicate"]  # duplicate: a second batch of one token, kept only to account for its bill
    n_lines: int
    requests_blob: str
    manifest_blob: str
    input_bound: int
    output_bound: int
    worst_micros: int
    token: str | None
    batch_id: str | None
    fence: int
    next_at: datetime
    blocked: str | None  # the named limit that holds it
    raw_blobs: tuple[str, ...]
    results_blob: str | None
    held_micros: int
    confirmed_micros: int
    provider: str
    account: str
    plan: str  # digest of the plan whose terms it runs under
    batch: str | None  # JSON: what the provider last said
    cancel_asked: bool
    moving: bool = False  # what of it is unanswered goes to another tier


@dataclass(frozen=True, slots=True)
class Intent:
    """The record that a shard is about to be sent; it stands or falls with its reservation."""

    token: str
    shard: str
    tries: int  # creates begun so far, each recorded before it was sent
    first_try: datetime | None
    last_try: datetime | None
    open: bool  # the last create's fate is not known


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal."""

    seq: int  # grows; the cursor of `canwait events --since`
    id: str  # stable across readings
    at: datetime
    job: str | None
    shard: str | None
    kind: str
    reason: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rescue:
    """Where rows are moved that would not be back in time, and what they cost there."""

    adapter: str  # as in `Shard.provider`
    price: Price
    rows_per_s: float | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan's shards run under; kept with the plan, so that a job file edited later changes nothing on its way."""

    provider: str
    model: str
    endpoint: str
    tier: Tier
    price: Price
    output_schema: Mapping[str, Any] | None
    attempts: int
    key: str  # the key column's name
    dedupe: bool
    quality: Quality | None = None  # the gate before its answers
    ask: bool = False  # whether a person must be asked, after the canary, unless the job's limit surely covers the rest
    rescues: tuple[Rescue, ...] = ()  # every one that shards of the plan may be on
    rescue: str | None = None  # the adapter of the one that stands; None: nothing is moved
    at_deadline: AtDeadline | None = None

    @property
    def is_canary_judged(self) -> bool:
        """Whether its canary must be accepted before more of the plan is sent."""
        return self.quality is not None and self.quality.canary == "judged"

    def price_of(self, adapter: str) -> Price:
        """What rows cost on the adapter they were sent by."""
        return next((rescue.price for rescue in self.rescues if rescue.adapter == adapter), self.price)
