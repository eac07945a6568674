"""Read-only questions about the ledger, answered as frozen values. CLI, API, pages and metrics all print these."""

from __future__ import annotations

import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import compress
from typing import Any

from . import language, publishing
from .blobs import Blobs
from .clock import from_us
from .db import Row
from .forecast import paid_per_useful
from .judging import quality_of, standing
from .ledger import Ledger
from .lots import REFUSED_BEFORE, Verdict
from .types import JobState, Outcome, ShardState, Tier


@dataclass(frozen=True, slots=True)
class GateView:
    """What stands before a finished job's answers."""

    lot: str
    verdict: Verdict | None  # None: not decided yet
    reason: str  # the verdict with what it rests on, or how far the inspection is
    rows: int  # with a usable answer
    left_out: int  # of them: break a rule, or are of a stratum that was not accepted


@dataclass(frozen=True, slots=True)
class Figures:
    """A job since its first run. Row counts are of its latest plan's dataset: ok + failed + missing = rows."""

    job: str
    plan: str
    state: JobState
    reason: str | None
    rows: int
    ok: int
    failed: int  # with a cause; expired and cancelled ones among them, and those the gate left out
    missing: int  # the provider never returned them, or they are not ended yet
    pending: int  # of the missing: not ended yet
    expired: int  # of the failed
    cancelled: int  # of the failed
    duplicates: int
    reused: int
    submissions: int  # batches at the provider
    confirmed_micros: int
    reserved_micros: int
    unknown_micros: int  # sent, fate or bill not provable yet
    wasted_micros: int  # of the confirmed: paid for nothing usable
    booked_micros: int  # costs that are not a model's
    input_tokens: int
    output_tokens: int
    expected_micros: int  # what the plan said
    worst_micros: int
    limit_micros: int | None
    deadline: datetime
    paused: str | None
    blocked: tuple[str, ...]  # the named limits that hold shards now
    next_at: datetime | None
    loaded: Mapping[str, Any] | None
    tier: Tier  # of the latest plan
    gated: bool
    gate: GateView | None  # None: it is not gated, or its sample is not drawn yet
    given_up: str | None  # what was done when it missed its deadline: types.AtDeadline
    served: int | None  # the version of the publication that readers go on with, where that was done

    @property
    def withheld(self) -> bool:
        """Whether nothing of it is loaded, for it missed its deadline."""
        return self.given_up in ("last_publication", "fail")

    @property
    def finished(self) -> bool:
        return self.pending == 0

    @property
    def readable(self) -> bool:
        """Whether no gate stands before the answers."""
        return not self.gated or (self.gate is not None and self.gate.verdict is Verdict.ACCEPTED)


def figures(ledger: Ledger, job: str) -> Figures:
    """Raises NotFound."""
    row = ledger.job(job)
    found = ledger.query("plan", job=job, digest=row["plan"])[0]
    plan = json.loads(found["body"])
    rows = count_rows(ledger, job, row["plan"])
    money = ledger.query("job_money", job=job)[0]
    budget = ledger.query("budget", id=f"job:{job}")[0]
    gated = quality_of(ledger, job, row["plan"]) is not None
    gate = _gate(ledger, job) if gated and not rows[Outcome.PENDING] else None
    out = gate.left_out if gate else 0
    failed = rows[Outcome.FAILED] + rows[Outcome.EXPIRED] + rows[Outcome.CANCELLED] + out
    due, _ = ledger.next_due(job)
    # One that waits for its canary to be judged is paused; run again, it goes on until it is found to wait still.
    goes_on = row["state"] == JobState.GATE.value and rows[Outcome.PENDING] and not row["paused"]
    return Figures(
        job=job,
        plan=plan["id"],
        state=JobState.IN_PROGRESS if goes_on else JobState(row["state"]),
        reason=None
        if goes_on
        else gate.reason
        if gate is not None and row["state"] == JobState.GATE.value
        else row["reason"],
        rows=plan["n_rows"],
        ok=rows[Outcome.OK] - out,
        failed=failed,
        missing=rows[Outcome.MISSING] + rows[Outcome.PENDING],
        pending=rows[Outcome.PENDING],
        expired=rows[Outcome.EXPIRED],
        cancelled=rows[Outcome.CANCELLED],
        duplicates=plan["n_duplicates"],
        reused=plan["n_reused"],
        submissions=int(money["submissions"]),
        confirmed_micros=int(money["confirmed_micros"]),
        reserved_micros=int(money["reserved_micros"]),
        unknown_micros=int(money["unknown_micros"]),
        wasted_micros=int(money["wasted_micros"]),
        booked_micros=int(ledger.query("booked", budget=f"job:{job}")[0]["micros"]),
        input_tokens=int(money["input_tokens"]),
        output_tokens=int(money["output_tokens"]),
        expected_micros=plan["expected_micros"],
        worst_micros=plan["worst_micros"],
        limit_micros=budget["limit_micros"],
        deadline=from_us(row["deadline_us"]),
        paused=row["paused"],
        blocked=tuple(row["blocked"] for row in ledger.query("blocked_by", job=job)),
        next_at=due,
        loaded=json.loads(row["loaded"]) if row["loaded"] else None,
        tier=Tier(plan["tier"]),
        gated=gated,
        gate=gate,
        given_up=row["given_up"],
        served=_served(ledger, job) if row["given_up"] == "last_publication" else None,
    )


def _served(ledger: Ledger, job: str) -> int | None:
    """The version that readers went on with when it missed its deadline; None: there was none."""
    missed_us = ledger.query("missed_at", job=job)[0]["at_us"]
    found = publishing.newest(ledger, job, from_us(missed_us)) if missed_us else None
    return found.version if found else None


def _gate(ledger: Ledger, job: str) -> GateView | None:
    lot = standing(ledger, job).lot
    return None if lot is None else GateView(lot.id, lot.verdict, lot.reason, lot.n_rows, lot.n_left_out)


def is_open(shard: Row) -> bool:
    return shard["state"] in (
        ShardState.PLANNED.value,
        ShardState.SUBMITTING.value,
        ShardState.SUBMITTED.value,
        ShardState.ENDED.value,
    )


def count_rows(ledger: Ledger, job: str, plan: str) -> dict[Outcome, int]:
    """Rows of a plan's dataset by outcome: every line counted as often as rows wait for it."""
    counts = dict.fromkeys(Outcome, 0)
    for answering in ledger.query("plan_shards", job=job, plan=plan):
        for outcome, n in _counted(answering["vector"], answering["weights"]):
            counts[outcome] += n
    return counts


@lru_cache(1024)  # who watches a job asks twice a second, and few shards have changed by then
def _counted(packed_vector: bytes, packed_weights: bytes) -> Sequence[tuple[Outcome, int]]:
    """Rows that wait for one shard, by the outcomes of their lines."""
    vector = zlib.decompress(packed_vector)
    outcomes = [outcome for outcome in Outcome if outcome in vector]
    if packed_weights == _once(len(vector)):
        rare = {outcome: vector.count(outcome) for outcome in outcomes if outcome != vector[0]}  # most are as the first
        return [(outcome, rare.get(outcome, len(vector) - sum(rare.values()))) for outcome in outcomes]
    weights = array("I", zlib.decompress(packed_weights))
    lines = {o: vector.translate(bytes(byte == o for byte in range(256))) for o in outcomes}
    return [(outcome, sum(compress(weights, lines[outcome]))) for outcome in outcomes]


@lru_cache(256)
def _once(n_lines: int) -> bytes:
    """The weights of lines that one row each waits for, as the ledger packs them: most are, and need not be unpacked."""
    return zlib.compress(b"\1\0\0\0" * n_lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What the new work of a job's latest plan came to, once all of it has ended and its gate, if any, has decided.

    A share that has no meaning, such as a cost for each of no rows, is None. What readers did with it is not in here.
    """

    paid_micros: int  # confirmed
    waste: Mapping[str, int]  # of it, by cause: of lifecycle.CAUSES, `duplicate` for a second batch, `rule` and `gate`
    paid_twice_micros: int  # of the waste: for rows that were asked again, and then paid once more
    sent_again: Decimal | None  # of the rows sent, 0..1
    duplicates: Decimal | None  # of the dataset's rows, 0..1
    per_accepted_micros: Decimal | None  # paid, for each accepted row
    paid_attempts: Decimal | None  # billed answers for each useful one
    paid_attempts_by_failures: Decimal | None  # what its failure rates alone make them (methods.md 1.6)

    @property
    def wasted_micros(self) -> int:
        return sum(self.waste.values())

    @property
    def useful_micros(self) -> int:
        """Paid for rows that were accepted."""
        return self.paid_micros - self.wasted_micros


def report(ledger: Ledger, job: str) -> Report | None:
    """None while the job runs, or waits at its gate. Raises NotFound.

    What the gate left out has its share of what usable answers cost: answers are not priced one by one here.
    """
    digest, gate = ledger.job(job)["plan"], standing(ledger, job)
    rows = count_rows(ledger, job, digest)
    if rows[Outcome.PENDING] or (gate.quality is not None and (gate.lot is None or gate.lot.verdict is None)):
        return None
    kept = ledger.query("plan", job=job, digest=digest)[0]
    plan, attempts = json.loads(kept["body"]), json.loads(kept["terms"])["attempts"]
    shards = ledger.query("plan_money", job=job, plan=digest)
    facts = {row["shard"]: json.loads(row["facts"]) for row in ledger.query("settled_facts", job=job, plan=digest)}
    vectors = {shard["id"]: zlib.decompress(shard["vector"]) for shard in shards if shard["vector"]}
    answering = [row for row in ledger.query("plan_shards", job=job, plan=digest) if row["shard"] in vectors]
    n_ok = sum(vector.count(Outcome.OK) for vector in vectors.values())
    n_ok_rows = sum(n for a in answering for o, n in _counted(a["vector"], a["weights"]) if o is Outcome.OK)

    paid, waste = sum(shard["confirmed_micros"] for shard in shards), _waste(shards, facts)
    usable, passed = paid - waste.total(), Fraction(1)
    if gate.lot is not None and gate.lot.n_rows:
        out = {"rule": gate.lot.n_broken, "gate": gate.lot.n_left_out - gate.lot.n_broken}
        if gate.lot.verdict is Verdict.REFUSED:
            out = {"rule": 0, "gate": gate.lot.n_rows}
        n_out = sum(out.values())
        passed -= Fraction(n_out, gate.lot.n_rows)
        lost = usable - usable * passed.numerator // passed.denominator
        refused = lost * out["gate"] // n_out if n_out else 0
        waste += Counter(gate=refused, rule=lost - refused)
    tries = _tries([s for s in shards if s["batch_id"] and s["role"] == "work"], facts, vectors)
    return Report(
        paid_micros=paid,
        waste=dict(waste),
        paid_twice_micros=sum(shard["twice_micros"] for shard in shards),
        sent_again=_ratio(tries.again, tries.sent),
        duplicates=_ratio(plan["n_duplicates"], plan["n_rows"]),
        per_accepted_micros=_ratio(paid, passed * n_ok_rows),
        paid_attempts=None if tries.billed is None else _ratio(tries.billed, passed * n_ok),
        paid_attempts_by_failures=_by_failures(tries, n_ok, sum(map(len, vectors.values())), attempts),
    )


def _waste(shards: Sequence[Row], facts: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """Micros paid for nothing usable, by cause; to each shard's own sum."""
    waste: Counter[str] = Counter()
    for shard in shards:
        wasted = shard["wasted_micros"]
        if shard["role"] == "duplicate":
            waste["duplicate"] += wasted
            continue
        exact = {cause: Decimal(micros) for cause, micros in facts.get(shard["id"], {}).get("wasted", {}).items()}
        told = {cause: int(micros) for cause, micros in exact.items()}
        if exact and wasted - sum(told.values()) <= len(exact):  # what they lack of it was rounded
            told[max(exact, key=exact.__getitem__)] += wasted - sum(told.values())
        elif wasted:  # billed, and never came back
            told["missing"] = told.get("missing", 0) + wasted - sum(told.values())
        waste.update(told)
    return waste


@dataclass(frozen=True, slots=True)
class _Tries:
    """Lines of a plan, counted as often as they were sent."""

    sent: int
    again: int  # of them: not for the first time
    billed: int | None  # of them; None: some were settled by a version that did not count
    answered: int  # of them: with a usable answer


def _tries(sent: Sequence[Row], facts: Mapping[str, Mapping[str, Any]], vectors: Mapping[str, bytes]) -> _Tries:
    by_root: Counter[str] = Counter()
    for shard in sent:
        by_root[shard["root"]] += shard["n_lines"]
    again = sum(max(0, n - len(vectors.get(root, b""))) for root, n in by_root.items())
    found = [facts.get(shard["id"], {}) for shard in sent]
    billed = sum(f["n_billed"] for f in found) if all("n_billed" in f for f in found) else None
    return _Tries(by_root.total(), again, billed, sum(f.get("ok", 0) for f in found))


def _by_failures(tries: _Tries, n_ok: int, n_lines: int, attempts: int) -> Decimal | None:
    failed = tries.sent - tries.answered
    if tries.billed is None or not n_ok or not tries.sent:
        return None
    billed = max(0, tries.billed - tries.answered) / failed if failed else 0.0
    again, never = tries.again / tries.sent, (n_lines - n_ok) / n_lines
    return Decimal(f"{paid_per_useful(again, never, min(1.0, billed), attempts):.4f}")


def _ratio(n: int, of: int | Fraction) -> Decimal | None:
    """To six places; None of nothing."""
    return Decimal(round(Fraction(n) / of * 1_000_000)).scaleb(-6) if of else None


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard, as `why` tells it."""

    id: str
    state: ShardState
    attempt: int
    role: str
    n_lines: int
    batch_id: str | None
    provider_says: str | None  # hearsay
    blocked: str | None
    next_at: datetime
    held_micros: int
    confirmed_micros: int
    submitted_at: datetime | None
    fate_unknown: bool
    looked_at: datetime | None  # when its provider last said that it is still out
    n_done: int | None  # lines that it counted then; hearsay

    @property
    def is_out(self) -> bool:
        return self.state is ShardState.SUBMITTED


def shards(ledger: Ledger, job: str) -> list[ShardView]:
    ledger.job(job)
    views = []
    for row in ledger.query("shards", job=job):
        batch = json.loads(row["batch"]) if row["batch"] else {}
        open_intent = row["state"] == "submitting" and ledger.intent(row["token"])[0].open
        views.append(
            ShardView(
                id=row["id"],
                state=ShardState(row["state"]),
                attempt=row["attempt"],
                role=row["role"],
                n_lines=row["n_lines"],
                batch_id=row["batch_id"],
                provider_says=batch.get("status"),
                blocked=row["blocked"],
                next_at=from_us(row["next_us"]),
                held_micros=row["held_micros"],
                confirmed_micros=row["confirmed_micros"],
                submitted_at=from_us(row["submitted_us"]) if row["submitted_us"] else None,
                fate_unknown=open_intent,
                looked_at=from_us(row["looked_us"]) if row["looked_us"] else None,
                n_done=int(json.loads(row["progress"])[0]) if row["progress"] else None,
            )
        )
    return views


@dataclass(frozen=True, slots=True)
class BudgetView:
    """A limit and what stands under it."""

    id: str
    limit_micros: int | None
    limit_tokens: int | None
    spent_micros: int
    held_micros: int
    spent_tokens: int
    held_tokens: int
    frozen: str | None

    @property
    def free_micros(self) -> int | None:
        return None if self.limit_micros is None else max(0, self.limit_micros - self.spent_micros - self.held_micros)

    @property
    def free_tokens(self) -> int | None:
        return None if self.limit_tokens is None else max(0, self.limit_tokens - self.spent_tokens - self.held_tokens)


def budgets(ledger: Ledger) -> Iterator[BudgetView]:
    for row in ledger.query("budgets"):
        yield BudgetView(**{name: row[name] for name in BudgetView.__slots__})


def jobs(ledger: Ledger) -> list[str]:
    """Names of all jobs, newest first."""
    return [row["name"] for row in ledger.query("jobs")]


def causes(ledger: Ledger, blobs: Blobs, job: str) -> dict[str, int]:
    """Lines of a job's latest plan that ended without a usable answer, by cause; and rows that its gate left out."""
    from .resend import final_causes

    counts: dict[str, int] = {}
    for answering in ledger.query("plan_shards", job=job, plan=ledger.job(job)["plan"]):
        vector = zlib.decompress(answering["vector"])
        bad = [n for n, byte in enumerate(vector) if byte not in (Outcome.OK, Outcome.PENDING)]
        if bad:
            found = final_causes(ledger, blobs, answering["shard"])
            for line in bad:
                cause = found.get(line) or "unknown"
                counts[cause] = counts.get(cause, 0) + 1
    lot = standing(ledger, job).lot
    if lot is not None:
        by_rule = lot.n_broken - lot.broken.get(REFUSED_BEFORE, 0)
        foreign = sum(n for rule, n in lot.broken.items() if language.codes_of(rule))
        out = {"rule": by_rule - foreign, language.NAME: foreign, "gate": lot.n_left_out - by_rule}
        counts |= {cause: n for cause, n in out.items() if n}
    return counts
