"""Facts -> what a call site's readers need, with the proof: one ordered matrix, the first row that speaks decides. Pure.
Only where it says near real time, any row that says synchronous does.

Every row rests on something the log says, never on its silence, and counts a call of which the log does not say it as
one that says the opposite: a log that says less, of all calls or of any, leaves fewer rows, and no row becomes stronger.
Rows that find somebody waiting stand above all rows that find nobody, so that a conflict is resolved to the more urgent
need; where what is known of some calls may not hold for the others, such a row is a question, in the same place.
docs/audit.md holds the same table in words; a test keeps the two equal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from typing import NamedTuple

from ..types import Tier
from .facts import Arrivals, Group, Sample, SiteFacts
from .findings import Needs, Part, Proof, Reason, Smaller, Verdict
from .triggers import BUILD, REQUEST, SCHEDULED, TASK, kind_of

ENOUGH = 20  # calls; what fewer of them say is likely at most
SHARE = 0.05  # of the calls: fewer are exceptions
NEARLY_ALL = 0.95
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400

_URGENCY = (Needs.SYNC, Needs.NEAR_REAL_TIME, Needs.HYBRID, Needs.BATCH)


class _Said(NamedTuple):
    """What a row found."""

    n: int  # calls that say so
    text: str
    is_sure: bool = True  # False: the calls that do not say may say otherwise, so it is a question


_Found = _Said | None


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """What a benchmark found of smaller models."""

    file: str  # as the decisions file names it
    smaller: Mapping[str, Smaller]  # by the larger one: "provider/model"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the owner of a call site decided."""

    needs: Needs
    deadline_s: int | None = None
    owner: str | None = None
    reason: str | None = None
    date: date | None = None
    may_share: bool = False  # equal requests may have one answer
    benchmark: Benchmarked | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the matrix."""

    kind: str
    when: str  # in words, as docs/audit.md has it
    says: Needs
    proof: Proof
    speaks: Callable[[SiteFacts], _Found] | None  # None: what the code says


def judge(facts: SiteFacts | None, code: Sequence[Reason] = (), decision: Decision | None = None) -> Verdict:
    """The verdict on a site; `facts` is None for one that was found in code only.

    The owner's word stands above everything; it is `proved` only where the log proves the same. `tier` is left to
    whoever knows prices.
    """
    reasons = _reasons(facts, code)
    needs = reasons[0].says if reasons else Needs.ASK
    proof = _proof(needs, reasons)
    if decision is not None:
        n_calls = facts.n_calls if facts else 0
        needs = decision.needs
        proof = _proof(needs, reasons)  # unclear where the log itself says anything else
        if needs is not Needs.ASK and proof is Proof.UNCLEAR:
            proof = Proof.LIKELY
        reasons = (Reason("owner", needs, proof, _words_of(decision), n_calls), *reasons)
    movable = {Needs.BATCH: 1.0, Needs.NEAR_REAL_TIME: 1.0}.get(needs, 0.0)
    moves = _movable(facts) if needs is Needs.HYBRID and facts is not None else None
    if moves is not None and facts is not None:
        movable = moves.n_calls / facts.n_calls
    asks = _question(facts, reasons) if needs is Needs.ASK else None
    return Verdict(needs, proof, reasons, None, movable, decision is not None, asks, moves)


def contradicted(verdict: Verdict) -> str | None:
    """What the log proves against an owner who says that there is more time; the owner's word is kept all the same."""
    if not verdict.by_owner or verdict.needs not in _URGENCY:
        return None
    urgent = _URGENCY[: _URGENCY.index(verdict.needs)]
    against = [r for r in verdict.reasons if r.says in urgent and r.proof is Proof.PROVED and r.kind != "owner"]
    return f"decided as {verdict.needs.value}, but {against[0].text}" if against else None


def _reasons(facts: SiteFacts | None, code: Sequence[Reason]) -> tuple[Reason, ...]:
    found: list[Reason] = []
    for row in MATRIX:
        if row.speaks is None:
            found += [r for r in code if r.says is row.says and (r.proof is Proof.UNCLEAR) == (row.says is Needs.ASK)]
        elif facts is not None and (said := row.speaks(facts)):
            says, proof = (row.says, row.proof) if said.is_sure else (Needs.ASK, Proof.UNCLEAR)
            weak = proof is Proof.PROVED and said.n < ENOUGH
            found.append(Reason(row.kind, says, Proof.LIKELY if weak else proof, said.text, said.n))
    if found and found[0].says in (Needs.NEAR_REAL_TIME, Needs.ASK):
        found.sort(key=lambda r: r.says is not Needs.SYNC)
    return tuple(found)


def _proof(needs: Needs, reasons: Sequence[Reason]) -> Proof:
    """The strongest of the reasons that lead and say so: what stands below another need is contradicted."""
    found = {r.proof for r in takewhile(lambda r: r.says is needs, reasons)}
    if needs is Needs.ASK:
        return Proof.UNCLEAR
    return next((proof for proof in (Proof.PROVED, Proof.LIKELY) if proof in found), Proof.UNCLEAR)


def _words_of(decision: Decision) -> str:
    who = f"{decision.owner or 'the owner'} decided{f' on {decision.date}' if decision.date else ''}"
    deadline = f", answers due in {span(decision.deadline_s)}" if decision.deadline_s else ""
    return f"{who}: {decision.needs.value}{deadline}{f' ({decision.reason})' if decision.reason else ''}"


def _question(facts: SiteFacts | None, reasons: Sequence[Reason]) -> str:
    if facts is None:
        return "Who reads these answers, and how long after the call? No log shows it."
    asked = next((r for r in reasons if r.says is Needs.ASK), None)
    if asked is None:
        return "Who reads these answers, and how long after the call? The log does not say."
    if asked.kind == "first use":
        who = "; all that name no user are used more than an hour later" if _late_without_user(facts) else ""
        return (
            f"{asked.text[0].upper()}{asked.text[1:]}{who}: may all of them be late, or what tells the two kinds apart?"
        )
    if asked.kind == "schedule":
        return f"{asked.text[0].upper()}{asked.text[1:]}: how far apart do its runs begin?"
    if asked.kind == "clock":
        return f"{asked.text[0].upper()}{asked.text[1:]}: is one of the two clocks in another time zone?"
    return f"{asked.text[0].upper()}{asked.text[1:]}: does anybody wait for the answers, and for how long?"


# ------------------------------------------------------------------------------------------------------ the first use


@dataclass(frozen=True, slots=True)
class _Use:
    """When the answers of some calls were first used. What was not used within an hour of its call's start, and of which
    nobody knows when the answer was there, may have been used at once, or hours later: it speaks for neither."""

    n_calls: int
    n: int  # whose first use the log holds
    n_minute: int  # of these: surely used within a minute
    n_quarter: int
    n_soon: int  # within an hour, perhaps at once
    n_later: int  # surely after more than a minute
    n_late: int  # surely used more than an hour after the answer
    open_hour: float  # a share of `n`: used within an hour of the start, how soon after the answer nobody knows

    @property
    def minute(self) -> float:
        return self.n_minute / max(1, self.n)

    @property
    def soon(self) -> float:
        return self.n_soon / max(1, self.n)

    @property
    def is_late(self) -> bool:
        return self.n_late > 0 and self.soon <= SHARE

    @property
    def is_all_late(self) -> bool:
        return self.n_late >= NEARLY_ALL * self.n_calls and self.n_late > 0

    @property
    def is_split(self) -> bool:
        """Some are used within the hour, many may not be."""
        return self.soon > SHARE and 1 - self.soon >= 4 * SHARE

    @property
    def tells(self) -> bool:
        """Whether enough is known to ask who waits; less may come from few who are unlike the rest."""
        return self.n >= ENOUGH or 2 * self.n >= self.n_calls

    @property
    def is_at_once(self) -> bool:
        return self.tells and self.minute > SHARE and not self.is_split

    @property
    def is_soon(self) -> bool:
        hour = self.soon - self.open_hour
        return self.tells and self.minute <= SHARE < hour and self.open_hour <= SHARE and not self.is_split

    @property
    def few_are_late(self) -> bool:
        """Also if all those are of which nobody knows."""
        return self.n_soon > (1 - 4 * SHARE) * self.n_calls


def _use_of(groups: Iterable[Group]) -> _Use:
    groups = list(groups)
    n_used, n_hour = sum(g.n_used for g in groups), sum(g.n_within_hour for g in groups)
    n_minute, n_open = sum(g.n_within_minute for g in groups), sum(g.n_open_within_hour for g in groups)
    n = n_used + sum(g.n_open for g in groups)
    return _Use(
        n_calls=sum(g.n_calls for g in groups),
        n=n,
        n_minute=n_minute,
        n_quarter=sum(g.n_within_quarter for g in groups),
        n_soon=n_hour + n_open,
        n_later=n_used - n_minute,
        n_late=n_used - n_hour,
        open_hour=n_open / max(1, n),
    )


def _used_at_once(facts: SiteFacts) -> _Found:
    use = _use_of(facts.groups)
    if not use.is_at_once:
        return None
    is_sure = use.few_are_late and use.n_minute > SHARE * use.n_calls
    text = f"{_percent(use.minute)} of {_answers(use)} are used within a minute (p50 {_use_at(facts, 0.5)})"
    return _Said(use.n, text, is_sure)


def _used_soon(facts: SiteFacts) -> _Found:
    use = _use_of(facts.groups)
    if not use.is_soon:
        return None
    is_sure = use.few_are_late and use.n_later >= NEARLY_ALL * use.n_calls
    text = f"{_answers(use)} are used after {_use_at(facts, 0.05)} (p5), half of them within {_use_at(facts, 0.5)}"
    return _Said(use.n, text, is_sure)


def _answers(use: _Use) -> str:
    return "answers" if use.n == use.n_calls else f"the {use.n:,} of {use.n_calls:,} answers whose first use is known"


def _used_soon_or_late(facts: SiteFacts) -> _Found:
    use = _use_of(facts.groups)
    if use.soon <= SHARE or use.is_at_once or use.is_soon:
        return None
    if not use.tells:
        text = f"of {use.n:,} of {use.n_calls:,} answers the first use is known, and {_percent(use.soon)} of it is soon"
        return _Said(use.n, text)
    if use.open_hour > SHARE:
        text = (
            f"{_percent(use.soon)} of answers are used within an hour, and how soon after they were there is not known"
        )
        return _Said(use.n, text)
    quarter = use.n_quarter / max(1, use.n)
    share, within = next(
        found
        for found in ((use.minute, "a minute"), (quarter, "15 minutes"), (use.soon, "an hour"))
        if found[0] > SHARE
    )
    return _Said(
        use.n,
        f"{_percent(share)} of {_answers(use)} are used within {within}, {_percent(1 - use.soon)} after more than an hour",
    )


def _used_late(facts: SiteFacts) -> _Found:
    use = _use_of(facts.groups)
    return _Said(use.n, f"answers are used {_late_from(facts)} later (p5)") if use.is_all_late else None


def _some_used_late(facts: SiteFacts) -> _Found:
    """A question: those of which nobody knows may be used at once."""
    use = _use_of(facts.groups)
    unknown = use.n_calls - use.n_late - use.n_soon
    if use.n_late < max(ENOUGH, SHARE * use.n_calls) or use.is_all_late or not unknown:
        return None
    text = f"{use.n_late:,} answers are known to be used {_late_from(facts)} later (p5), and of {unknown:,} it is not known"
    return _Said(use.n_late, text)


def _late_from(facts: SiteFacts) -> str:
    late = [v for v in facts.first_use_s.values if v > HOUR_S]
    return span(late[len(late) // 20]) if late else "more than an hour"


def _late_without_user(facts: SiteFacts) -> bool:
    """A hint for whoever is asked and no evidence: that a call names no user is silence."""
    groups = [group for group in facts.groups if not group.with_user]
    return len(groups) < len(facts.groups) and bool(groups) and all(group.late for group in groups)


def _clock(facts: SiteFacts) -> _Found:
    """Readers who all come exactly some half hours later, within two minutes, are read by another clock."""
    use = _use_of(facts.groups)
    if not use.is_late:
        return None
    if facts.n_clock_skew > SHARE * facts.n_calls:
        return _skewed(facts)
    low, middle, high = (facts.first_use_s.quantile(q) for q in (0.25, 0.5, 0.75))
    if middle % 1800 <= 120 and high - low <= 120:
        return _Said(use.n, f"answers are used {span(round(middle / 1800) * 1800)} later almost to the minute")
    return None


def _clock_of_part(facts: SiteFacts) -> _Found:
    return _skewed(facts) if facts.n_clock_skew > SHARE * facts.n_calls and _told_apart(facts) else None


def _skewed(facts: SiteFacts) -> _Said:
    return _Said(facts.n_clock_skew, f"{facts.n_clock_skew:,} calls end, or are used, before they start")


def _told_apart(facts: SiteFacts) -> _Found:
    use, part = _use_of(facts.groups), _late_part(facts)
    if part is None or use.n_soon < ENOUGH or use.n_soon <= SHARE * use.n_calls:
        return None
    return _Said(
        part.n_calls + use.n_soon,
        f"`{part.by}` tells apart {_percent(part.n_calls / facts.n_calls)} of calls whose answers are used hours later; "
        f"{_percent(use.n_soon / use.n_calls)} of all are used within the hour",
    )


def _part_is_late(facts: SiteFacts) -> _Found:
    part = _late_part(facts)
    if part is None or _use_of(facts.groups).is_all_late:
        return None
    share = _percent(part.n_calls / facts.n_calls)
    text = f"`{part.by}` tells apart {share} of calls whose answers are used {_late_from(facts)} later (p5)"
    return _Said(part.n_calls, text)


_FIELDS: tuple[tuple[str, Callable[[Group], str | bool | None]], ...] = (
    ("trigger", lambda g: g.trigger),
    ("stream", lambda g: g.stream),
)


def _late_part(facts: SiteFacts) -> Part | None:
    """What tells most calls that can wait: nearly all that may have such a value are known to be used late, also if all that
    say nothing of the field, and are not, have it."""
    found = []
    for field, value_of in _FIELDS:
        n_calls, n_late, unsaid = Counter[str | bool](), Counter[str | bool](), 0
        for group in facts.groups:
            if (value := value_of(group)) is not None:
                n_calls[value] += group.n_calls
                n_late[value] += group.n_calls if group.late else 0
            elif not group.late:
                unsaid += group.n_calls
        late = {v for v, n in n_late.items() if n >= max(ENOUGH, NEARLY_ALL * (n_calls[v] + unsaid))}
        groups = tuple(group for group in facts.groups if group.late and value_of(group) in late)
        found.append(Part(field, tuple(sorted(late)), groups))
    most = max(found, key=lambda part: part.n_calls)
    return most if most.groups and most.n_calls >= SHARE * facts.n_calls else None


# -------------------------------------------------------------------------------------------------- a person, a request


def _streamed_to_a_user(facts: SiteFacts) -> _Found:
    n = sum(g.n_calls for g in facts.groups if g.stream and g.with_user)
    text = f"{_percent(n / facts.n_calls)} of calls stream to a named user"
    return _Said(n, text) if n > SHARE * facts.n_calls else None


def _streams(facts: SiteFacts) -> _Found:
    n = facts.n_stream
    return _Said(n, f"{_percent(n / facts.n_calls)} of calls stream") if n > SHARE * facts.n_calls else None


def _user_types(facts: SiteFacts) -> _Found:
    return _types(facts) if facts.n_with_user * 2 >= facts.n_calls else None


def _types(facts: SiteFacts) -> _Found:
    """A person needs seconds to minutes, and never twice the same; a program milliseconds, or its own rhythm."""
    gaps = facts.turn_gap_s
    if gaps.n_seen < ENOUGH:
        return None
    low, middle, high = (gaps.quantile(q) for q in (0.1, 0.5, 0.9))
    if 4 <= middle <= 1800 and low >= 1 and high >= 2 * low:
        text = f"the next call of a session follows {span(middle)} after an answer, as a person types"
        return _Said(gaps.n_seen, text, _sessions_are_whole(facts))
    return None


def _chained(facts: SiteFacts) -> _Found:
    """An agent, or a pipeline: an hour for each step would be a day for the whole. Loops over rows are longer."""
    gaps, turns = facts.turn_gap_s, facts.turns
    if gaps.n_seen < ENOUGH or not 4 <= turns.quantile(0.5) <= 100 or gaps.quantile(0.5) >= 4:
        return None
    text = f"sessions are chains of {turns.quantile(0.5):.0f} calls, each waiting for the answer before it"
    return _Said(gaps.n_seen, text, _sessions_are_whole(facts))


def _sessions_are_whole(facts: SiteFacts) -> bool:
    """Where one call does not say its session or its end, two gaps are one, or none: a chain may look like a person."""
    return facts.n_with_session == facts.latency_s.n_seen == facts.n_calls


def _users(facts: SiteFacts) -> _Found:
    n = facts.n_with_user
    if n > SHARE * facts.n_calls:
        return _Said(n, f"{_percent(n / facts.n_calls)} of calls name a user, {facts.n_users:,} different ones")
    return None


# ------------------------------------------------------------------------------------- what started it, what was declared


def _triggered_by(facts: SiteFacts, *kinds: frozenset[str]) -> int:
    return sum(n for trigger, n in facts.triggers.items() if kind_of(trigger) in kinds)


def _requested(facts: SiteFacts) -> _Found:
    n = _triggered_by(facts, REQUEST)
    return _Said(n, f"a request started {_percent(n / facts.n_calls)} of calls") if n > SHARE * facts.n_calls else None


def _built(facts: SiteFacts) -> _Found:
    n = _triggered_by(facts, BUILD)
    text = f"a build or an event that something waits on started {_percent(n / facts.n_calls)} of calls"
    return _Said(n, text) if n > SHARE * facts.n_calls else None


def _is_rare(arrivals: Arrivals | None) -> bool:
    """Whether runs begin an hour and more apart: several are seen, each is short, and calls fill it. Within a longer one, or
    one that is mostly holes, a schedule may start again and again."""
    return (
        arrivals is not None
        and not _is_often(arrivals)
        and (arrivals.apart_s or 0) >= HOUR_S
        and arrivals.run_s < HOUR_S
        and arrivals.run_busy >= 0.5
    )


def _is_often(arrivals: Arrivals | None) -> bool:
    """Whether calls come again within the hour, after pauses or all day."""
    if arrivals is None:
        return False
    begins = [s for s in (arrivals.apart_s, arrivals.period_s) if s is not None]
    all_day = arrivals.n_busy > 0.75 * arrivals.n_slots and arrivals.n_slots * arrivals.slot_s >= 86_400
    has_holes = arrivals.run_busy < 0.75 and arrivals.run_s >= HOUR_S
    return min(begins, default=HOUR_S) < HOUR_S or has_holes or all_day


def _scheduled(facts: SiteFacts) -> _Found:
    n = _triggered_by(facts, SCHEDULED)
    if n < 0.99 * facts.n_calls or not _is_rare(facts.arrivals):
        return None
    every = facts.arrivals and facts.arrivals.period_s
    started = "every call" if n == facts.n_calls else f"{_percent(n / facts.n_calls)} of calls"
    return _Said(n, f"a schedule starts {started}{f', every {span(every)}' if every else ''}")


def _scheduled_often(facts: SiteFacts) -> _Found:
    n = _triggered_by(facts, SCHEDULED, TASK)
    if n < 0.99 * facts.n_calls or not _is_often(facts.arrivals):
        return None
    return _Said(n, "a schedule starts it again within the hour, so its answers are wanted before")


def _task(facts: SiteFacts) -> _Found:
    n = _triggered_by(facts, SCHEDULED, TASK)
    if n < 0.99 * facts.n_calls or not _triggered_by(facts, TASK) or not _is_rare(facts.arrivals):
        return None
    return _Said(n, "a workflow starts it an hour or more apart; whether a schedule starts that the log does not say")


def _scheduled_somehow(facts: SiteFacts) -> _Found:
    n = _triggered_by(facts, SCHEDULED, TASK)
    if n < 0.99 * facts.n_calls or _is_rare(facts.arrivals) or _is_often(facts.arrivals):
        return None
    if facts.arrivals is None or facts.arrivals.apart_s is None:
        why = "one run of it is seen"
    else:
        why = "it runs for hours" if facts.arrivals.run_s >= HOUR_S else "its calls are far apart"
    return _Said(n, f"a schedule starts every call, and {why}, so how often it starts is not known")


def _partly_scheduled(facts: SiteFacts) -> _Found:
    """Only where every call says what started it: one that does not may be of the schedule, and start it within the hour."""
    n = _triggered_by(facts, SCHEDULED, TASK)
    if not SHARE * facts.n_calls <= n < 0.99 * facts.n_calls or sum(facts.triggers.values()) < facts.n_calls:
        return None
    if not _is_rare(facts.scheduled):
        return None
    return _Said(n, f"`trigger` tells apart {_percent(n / facts.n_calls)} of calls, which a schedule starts")


def _part_is_used_soon(facts: SiteFacts) -> _Found:
    use = _use_of(_started_alone(facts))
    if use.soon <= SHARE or not _partly_scheduled(facts):
        return None
    return _Said(use.n_soon, f"{use.n_soon:,} answers to calls that a schedule starts are used within an hour")


def _started_alone(facts: SiteFacts) -> tuple[Group, ...]:
    return tuple(g for g in facts.groups if g.trigger is not None and kind_of(g.trigger) in (SCHEDULED, TASK))


def _movable(facts: SiteFacts) -> Part | None:
    """The calls of a hybrid that can wait, by the row that stands first; else those that are known to, if an owner says that
    this is what tells them apart."""
    part, scheduled = _late_part(facts), _partly_scheduled(facts)
    if part and (_told_apart(facts) or not scheduled):
        return part
    if scheduled:
        groups = _started_alone(facts)
        return Part("trigger", tuple(sorted({g.trigger for g in groups if g.trigger})), groups)
    late = tuple(group for group in facts.groups if group.late)
    return Part("first use", (), late) if late else None


def _deadline(low_s: float, high_s: float) -> Callable[[SiteFacts], _Found]:
    def speaks(facts: SiteFacts) -> _Found:
        declared, n_calls = facts.deadline_s, facts.n_calls
        if not declared.n_seen or not low_s <= (p5 := declared.quantile(0.05)) < high_s:
            return None
        # Calls that declare none may declare less than `low_s`, or as much as they like.
        is_sure = not low_s or declared.n_seen - _n_below(declared, low_s) > NEARLY_ALL * n_calls
        if high_s < float("inf"):
            is_sure = is_sure and _n_below(declared, high_s) >= SHARE * n_calls
        elif not is_sure:
            return None
        return _Said(declared.n_seen, f"callers declare a deadline of {span(p5)} (p5)", is_sure)

    return speaks


def _some_have_time(facts: SiteFacts) -> _Found:
    declared = facts.deadline_s
    if not declared.n_seen or (p5 := declared.quantile(0.05)) < HOUR_S or _deadline(HOUR_S, float("inf"))(facts):
        return None
    text = f"{declared.n_seen:,} of {facts.n_calls:,} calls declare a deadline, of {span(p5)} (p5)"
    return _Said(declared.n_seen, text)


def _n_below(sample: Sample, value: float) -> float:
    """How many of all that were seen, from the share of the sample."""
    return sample.n_seen * bisect_left(sample.values, value) / len(sample.values)


# --------------------------------------------------------------------------------------------------- the shape of arrivals


def _already(facts: SiteFacts) -> _Found:
    n = sum(use.n_calls for use in facts.models if use.tier is Tier.BATCH)
    if n < NEARLY_ALL * facts.n_calls:
        return None
    return _Said(
        n, f"{'all' if n == facts.n_calls else _percent(n / facts.n_calls)} of its calls are sent in batches now"
    )


def _batch_shaped(facts: SiteFacts) -> _Found:
    """Nobody watches it being written, and either a pool of workers is kept full for an hour and more, so that whoever
    reads the whole waits that long now; or it is started every few hours, at night and on Sundays too; or at the same time of
    every day, which nobody does by hand."""
    arrivals = facts.arrivals
    unwatched = max(facts.n_stream_known - facts.n_stream, facts.operations.get("embeddings", 0))
    if arrivals is None or facts.n_calls < ENOUGH or unwatched < NEARLY_ALL * facts.n_calls:
        return None
    if arrivals.n_busy / arrivals.n_slots <= 0.5 and arrivals.run_s >= HOUR_S and (full := _full_pool(facts)):
        return _Said(
            facts.n_calls,
            f"runs of {span(arrivals.run_s)} that keep {full:.0f} calls of one caller in flight, and do not stream",
        )
    every = arrivals.period_s
    if every is not None and HOUR_S <= every <= DAY_S / 2 and arrivals.n_slots * arrivals.slot_s >= 24 * every:
        return _Said(facts.n_calls, f"runs every {span(every)}, day and night, that do not stream")
    apart = (arrivals.apart_least_s, arrivals.apart_most_s)
    if arrivals.n_runs >= 7 and all(s is not None and abs(s - DAY_S) <= arrivals.slot_s for s in apart):
        return _Said(facts.n_calls, "runs at one time of every day, Saturdays and Sundays too, that do not stream")
    return None


def _full_pool(facts: SiteFacts) -> float | None:
    """How many calls of one caller are in flight half of the time and never many more; None where they are not, or where a call
    does not say its caller or its end, for it may be the one too many."""
    at_once = facts.concurrency
    if not facts.n_with_actor == facts.latency_s.n_seen == facts.n_calls or at_once.n_seen < ENOUGH:
        return None
    full = at_once.quantile(1)
    return full if full >= 4 and 1 - at_once.share(0.9 * full - 1e-9) >= 0.5 else None


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def _use_at(facts: SiteFacts, q: float) -> str:
    return span(facts.first_use_s.quantile(q))


def span(seconds: float) -> str:
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit or (seconds >= unit and unit < 86_400):
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


_A, _N, _H, _B, _S = Needs.ASK, Needs.NEAR_REAL_TIME, Needs.HYBRID, Needs.BATCH, Needs.SYNC
_PROVED, _LIKELY, _UNCLEAR = Proof.PROVED, Proof.LIKELY, Proof.UNCLEAR

MATRIX: tuple[Row, ...] = (
    Row("clock", "the log's clocks disagree on calls that trigger or stream tells apart", _A, _UNCLEAR, _clock_of_part),
    Row(
        "first use",
        "trigger or stream tells calls used more than an hour later, and over 5 % of all are used within one",
        *(_H, _PROVED, _told_apart),
    ),
    Row("first use", "over 5 % of answers are used within a minute", _S, _PROVED, _used_at_once),
    Row("first use", "over 5 % of answers are used within an hour", _N, _PROVED, _used_soon),
    Row(
        "first use",
        "a schedule starts some calls, and over 5 % of these are used soon",
        _A,
        _UNCLEAR,
        _part_is_used_soon,
    ),
    Row(
        "trigger",
        "a schedule starts 5 % to 99 % of calls, and the log says what starts each of the rest",
        *(_H, _LIKELY, _partly_scheduled),
    ),
    Row("person", "over 5 % of calls stream to a named user", _S, _PROVED, _streamed_to_a_user),
    Row("person", "a named user's next call follows an answer as a person types", _S, _PROVED, _user_types),
    Row("person", "a session's next call follows an answer as a person types", _S, _LIKELY, _types),
    Row("trigger", "a request starts over 5 % of calls", _S, _LIKELY, _requested),
    Row("deadline", "callers declare less than a minute", _S, _LIKELY, _deadline(0, MINUTE_S)),
    Row("streaming", "over 5 % of calls stream", _S, _LIKELY, _streams),
    Row("session", "sessions are chains of calls, each waiting for the one before", _S, _LIKELY, _chained),
    Row("code", "the code answers a request", _S, _LIKELY, None),
    Row("deadline", "callers declare less than an hour", _N, _LIKELY, _deadline(MINUTE_S, HOUR_S)),
    Row("trigger", "a build or an event that something waits on starts over 5 % of calls", _N, _LIKELY, _built),
    Row("schedule", "a schedule starts every call, more than once an hour", _N, _LIKELY, _scheduled_often),
    Row("code", "the code waits for some minutes", _N, _LIKELY, None),
    Row(
        "first use",
        "over 5 % of answers are used within an hour, and nothing tells these from later ones, or how soon they are needed",
        *(_A, _UNCLEAR, _used_soon_or_late),
    ),
    Row("tier", "at least 95 % of calls are sent in batches now", _B, _PROVED, _already),
    Row(
        "schedule",
        "a schedule starts every call, in runs of less than an hour that begin an hour or more apart",
        *(_B, _PROVED, _scheduled),
    ),
    Row("schedule", "a workflow starts every call, in such runs", _B, _LIKELY, _task),
    Row("deadline", "over 95 % of calls declare an hour or more", _B, _LIKELY, _deadline(HOUR_S, float("inf"))),
    Row("code", "the code is a task of a schedule or a queue", _B, _LIKELY, None),
    Row("clock", "the log's clocks disagree, or answers are used exactly some half hours later", _A, _UNCLEAR, _clock),
    Row("first use", "95 % of all answers are known to be used more than an hour later", _B, _PROVED, _used_late),
    Row("person", "over 5 % of calls name a user", _A, _UNCLEAR, _users),
    Row(
        "arrivals",
        "calls that do not stream fill a pool of workers for an hour and more, or run every few hours day and night, or daily "
        "at one time",
        *(_B, _LIKELY, _batch_shaped),
    ),
    Row("first use", "trigger or stream tells calls used more than an hour later", _H, _LIKELY, _part_is_late),
    Row(
        "schedule",
        "a schedule starts every call, in runs so long, or so few, that how far apart they begin is not seen",
        *(_A, _UNCLEAR, _scheduled_somehow),
    ),
    Row("first use", "5 % of answers are known to be used more than an hour later", _A, _UNCLEAR, _some_used_late),
    Row("deadline", "some calls declare an hour or more", _A, _UNCLEAR, _some_have_time),
    Row("code", "the code does not show who waits", _A, _UNCLEAR, None),
)
