"""What the logs say about one call site: counts and samples, nothing concluded yet.

Everything a verdict or a lever may rest on stands here, with how many calls said it. None and empty mean the log does
not say; nothing missing is a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from ..types import Tier, Usage


@dataclass(frozen=True, slots=True)
class Sample:
    """A uniform sample of values that were seen, sorted."""

    n_seen: int
    values: Sequence[float]  # of one that was gathered an array: there are thousands

    def quantile(self, q: float) -> float:
        """The smallest value with at least a share `q` of the sample at or below it. Raises ValueError when empty."""
        if not self.values:
            raise ValueError("nothing was seen")
        return self.values[min(len(self.values) - 1, max(0, -int(-q * len(self.values) // 1) - 1))]

    def share(self, at_most: float) -> float:
        """The share of the sample at or below a value."""
        return sum(v <= at_most for v in self.values) / len(self.values)


EMPTY = Sample(0, ())


@dataclass(frozen=True, slots=True)
class ModelUse:
    """One model on one tier at a call site."""

    provider: str
    model: str
    tier: Tier | str | None  # text: none of ours, so its price is not known; None: not said, and priced as standard
    n_calls: int
    n_unmetered: int  # calls whose tokens the log does not hold
    usage: Usage  # of the metered ones
    n_reported: int  # calls whose cost the log holds
    reported_usd: Decimal  # their sum
    failed_usage: Usage  # the part of `usage` that failed calls are
    operation: str = "chat"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When calls came."""

    slot_s: int  # width of a slot
    n_slots: int  # of the window, from first to last call
    n_busy: int  # with any call
    hour_of_week: tuple[int, ...]  # 168 counts, Monday 00:00 UTC first
    busiest_share: float  # of all calls, in the busiest tenth of the window's slots
    period_s: float | None  # the period that runs repeat at; None: none was found
    period_share: float  # of calls that lie in a run of that period
    n_runs: int  # stretches of calls with pauses between them
    longest_pause_s: float
    night_share: float  # 22:00-06:00 UTC
    weekend_share: float
    run_s: float = 0.0  # half of the calls lie in runs that last at least this long
    apart_s: float | None = None  # between the beginnings of runs, the median; None: one run was seen
    run_busy: float = 1.0  # share of the slots within runs that hold a call
    apart_least_s: float | None = None  # the least and the most between the beginnings of two runs
    apart_most_s: float | None = None


@dataclass(frozen=True, slots=True)
class Repeats:
    """Requests that were sent more than once."""

    n_hashed: int  # calls that could be compared
    n_duplicates: int  # of them, equal to an earlier one in every byte
    exact: bool  # False: an estimate from a sample of hashes
    n_retries: int  # duplicates that follow a failure of the same request
    duplicate_usage: Usage  # of the duplicates that are no retries
    n_near: int  # of the compared sample, alike but not equal
    n_near_compared: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the texts of a site begin with alike."""

    n_texts: int  # sampled
    mean_bytes: float  # of a text
    shared_bytes: int  # the longest prefix that at least 90 % of them share
    shared_later_bytes: int  # text that is alike but stands after text that varies: a cache cannot use it
    broken_by: str | None  # what the first varying text looks like: time, id, number, text
    at_byte: int | None  # where it stands


@dataclass(frozen=True, slots=True)
class Group:
    """Calls of a site that are alike in what started them, in who is there, and in whether their answers are known to be used
    late; when they were used; and what they were billed."""

    trigger: str | None
    with_user: bool
    stream: bool | None
    n_calls: int
    n_used: int  # calls whose first use the log holds; the next three are of these
    n_within_minute: int
    n_within_quarter: int  # 15 minutes
    n_within_hour: int
    late: bool = False  # each of its answers was used more than an hour after it was there
    n_open: int = 0  # more, used over a minute after the start of the call, whose answer was there nobody knows when
    n_open_within_hour: int = 0  # of these, within an hour of the start, so of the answer too
    models: tuple[ModelUse, ...] = ()  # as those of the site, whose parts they are


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """One call site."""

    site: str
    n_calls: int
    first_us: int
    last_us: int
    models: tuple[ModelUse, ...]
    n_failed: int
    n_stream: int  # calls that streamed
    n_stream_known: int  # calls whose log says whether they did
    n_with_user: int
    n_users: int  # different ones; at least
    n_sessions: int  # different ones; at least
    n_with_session: int = 0
    n_with_actor: int = 0
    turns: Sample = EMPTY  # calls of a session
    turn_gap_s: Sample = EMPTY  # from an answer to the next call of its session: seconds when a person types
    concurrency: Sample = EMPTY  # calls of one actor in flight at once, in the middle of each call
    latency_s: Sample = EMPTY
    first_token_s: Sample = EMPTY
    first_use_s: Sample = EMPTY  # from the whole answer to its first use
    deadline_s: Sample = EMPTY
    output_tokens: Sample = EMPTY
    input_tokens: Sample = EMPTY
    max_output_tokens: Sample = EMPTY
    n_truncated: int = 0
    n_sampled_hot: int = 0  # calls with a temperature above 0, or none stated
    n_tools: int = 0
    triggers: Mapping[str, int] = field(default_factory=dict)
    operations: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)
    arrivals: Arrivals | None = None  # None: fewer than two calls
    scheduled: Arrivals | None = None  # of the calls that a schedule or a workflow starts; None: fewer than two
    repeats: Repeats | None = None  # None: the log holds nothing to compare
    prefix: Prefix | None = None  # None: the log holds no texts
    n_clock_skew: int = 0  # calls that end, or are used, before they start
    groups: tuple[Group, ...] = ()  # largest first; every call is in one, and beyond many a trigger is called "(other)"

    @property
    def window_s(self) -> float:
        return (self.last_us - self.first_us) / 1e6
