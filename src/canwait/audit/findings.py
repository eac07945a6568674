"""The audit as a value: what every report prints, and nothing that they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum

from ..types import Tier
from .calls import BadLine
from .facts import Group, SiteFacts


class Needs(str, Enum):
    """How soon the readers of a call site need its answers."""

    SYNC = "synchronous"  # a person or a request waits
    NEAR_REAL_TIME = "near real time"  # 1-15 minutes
    BATCH = "batch"  # hours
    HYBRID = "hybrid"  # some calls can wait and some cannot, and the log tells which
    ASK = "ask the owner"


class Proof(str, Enum):
    """How sure a verdict or a saving is."""

    PROVED = "proved"  # the log shows it: the answer was read hours later, or a schedule started the call
    LIKELY = "likely"  # declared or inferred: a deadline, batch-shaped arrivals
    UNCLEAR = "unclear"  # never counted as a saving


@dataclass(frozen=True, slots=True)
class Reason:
    """One piece of evidence."""

    kind: str  # streaming, first use, schedule, deadline, arrivals, person, code, owner ...
    says: Needs  # what it speaks for
    proof: Proof
    text: str  # in words, with its numbers
    n: int  # calls that say so


@dataclass(frozen=True, slots=True)
class Part:
    """The calls of a site that can wait, and what tells them from the others."""

    by: str  # trigger, stream; first use: nothing a caller knows beforehand
    values: tuple[
        str | bool, ...
    ]  # of that field, of every call that can wait and of nearly no other; of first use none
    groups: tuple[Group, ...]

    @property
    def n_calls(self) -> int:
        return sum(group.n_calls for group in self.groups)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a call site's readers need, and how sure that is."""

    needs: Needs
    proof: Proof
    reasons: tuple[Reason, ...]  # the decisive one first
    tier: Tier | None  # the cheapest that serves the need and has a price; None: stay, or ask
    movable_share: float  # of its calls: 1 for batch, below 1 for hybrid, 0 for synchronous
    by_owner: bool = False  # decided by the decisions file
    asks: str | None = None  # the question the owner is asked
    moves: Part | None = None  # of a hybrid: its calls that can wait


@dataclass(frozen=True, slots=True)
class Range:
    """Micros of a US dollar a month (30 days)."""

    low: int
    likely: int
    high: int

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def without(self, saved: Range) -> Range:
        """What is left when so much is saved: never less than nothing."""
        low, likely, high = self.low - saved.high, self.likely - saved.likely, self.high - saved.low
        return Range(max(0, low), max(0, likely), max(0, high))


@dataclass(frozen=True, slots=True)
class Spend:
    """What a site costs."""

    month: Range | None  # None: unknown, see `why`
    basis: str  # where the figure comes from: reported by the log, or a price with source and date
    n_unpriced: int  # calls without tokens, or of a model whose price nobody knows
    why: str | None = None  # what is missing
    warnings: tuple[str, ...] = ()  # reported and list prices differ, the window is short


@dataclass(frozen=True, slots=True)
class Smaller:
    """A model that a benchmark held against a larger one, on the owner's rows."""

    provider: str
    model: str
    accepted: bool  # surely good enough
    words: str  # the benchmark's verdict, with its rows
    source: str  # the report's file and date


@dataclass(frozen=True, slots=True)
class Moved:
    """What goes to a slower tier, and what it costs there without what is sent again."""

    month: Range  # what it costs now
    low: Decimal  # its cost there, as a share of that
    likely: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Lever:
    """One change and what it would save, alone."""

    kind: str  # batch, flex, dedupe, cached prefix, output cap, boilerplate, smaller model, own gpu
    title: str
    saves: Range | None  # a month, alone; None: cannot be said, see `why`
    proof: Proof
    why: str  # the evidence, with numbers
    needs: str | None = None  # what must be shown before it counts: a benchmark, an owner's word
    basis: str = ""  # prices with source and date
    after: Mapping[str, Range] = field(default_factory=dict)  # kind of a tier lever -> what it saves beyond that one,
    # where the two do not simply multiply
    move: Moved | None = None  # of a tier lever that counts


@dataclass(frozen=True, slots=True)
class Site:
    """One call site of an audit."""

    name: str
    facts: SiteFacts | None  # None: found in code only
    spend: Spend
    verdict: Verdict
    levers: tuple[Lever, ...]
    together: Range | None  # what its counted levers save when stacked; never more than it costs
    code: tuple[CodeSite, ...] = ()
    warnings: tuple[str, ...] = ()  # what could erase the saving
    proved: Range | None = None  # the part of `together` that is proved


@dataclass(frozen=True, slots=True)
class CodeSite:
    """A call to a model in source code."""

    file: str  # relative to the folder that was audited
    line: int
    column: int
    library: str  # openai, anthropic, google-genai, mistral, litellm, langchain, pydantic-ai, instructor
    call: str  # as written: client.chat.completions.create
    function: str  # qualified name it stands in; "" for the module
    waits: str  # request handler, agent loop, script, DAG task, cron, queue, notebook, test, unknown
    why: str  # what shows it: "@app.post at line 12"
    stream: bool | None  # None: not a literal
    model: str | None  # where it is a literal
    max_output_tokens: int | None = None  # where it is a literal
    in_loop: bool = False
    is_async: bool = False
    is_batch: bool = False  # a batch API already
    lints: tuple[str, ...] = ()  # what keeps its prompt out of a cache
    labels: tuple[str, ...] = ()  # literal names it gives itself: of a prompt, a span, in metadata


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file that was read."""

    file: str
    format: str  # its title
    n_calls: int
    n_buckets: int
    n_bad: int
    n_repeated: int  # records of a call already read
    bad: tuple[BadLine, ...]  # the first few


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything one audit found. Money is micros a month (30 days)."""

    made_at: datetime
    files: tuple[LogFile, ...]
    first_us: int | None  # of all calls
    last_us: int | None
    n_calls: int
    sites: tuple[Site, ...]  # dearest first
    total: Range  # of all priced sites
    proved: Range  # savings of proved levers, stacked
    likely: Range  # savings of likely ones, beyond the proved
    not_movable: Range
    unpriced_calls: int
    aggregates: Mapping[str, Range]  # provider/model -> spend, from buckets: sized, never judged
    notes: tuple[str, ...] = ()  # what the reader must know: aggregates prove nothing, clock skew, window under a week
