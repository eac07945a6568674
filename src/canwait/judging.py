"""The ledger's part for gates: lots of answers, what people say of them, verdicts. Each function is one transaction.

A lot is the usable answers of a finished job's latest plan. Its id is a digest over what they are, so answers that come
later make another lot, which is judged anew. A verdict is written once, in the transaction of the judgement it follows
from: whatever dies where, there is no lot that is decided and does not say so.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from math import ceil
from typing import Any

from . import entries
from .clock import to_us
from .codec import plain, terms_from_json
from .db import Row, Tx
from .errors import AlreadyJudged, NotFound
from .gate import Decision, Inspection, interval, passes
from .ledger import Ledger
from .types import JobState, Outcome, Quality

CAUSES = ("wrong", "format", "unsafe", "input", "unsure")  # why a judged row is bad


class Word(str, Enum):
    """What somebody says of a row."""

    GOOD = "good"
    BAD = "bad"
    UNSURE = "unsure"  # bad, unless somebody says better while it matters


class Verdict(str, Enum):
    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Part:
    """A stratum of a lot, judged for itself; a lot without strata is one part without a name."""

    name: str
    n_rows: int
    first: int  # the place of its first row
    plan: Inspection

    def standing(self, words: Mapping[int, Word]) -> tuple[Decision, int | None]:
        """What was said of its rows so far comes to, and the place to judge next.

        An unsure row is a bad one; but where only that would refuse, it is the place to judge next.
        """
        careful, k = self._walk(words, unsure_is_bad=True)
        kind, _ = self._walk(words, unsure_is_bad=False)
        if careful is Decision.GO_ON:
            return careful, self.first + k
        if careful is kind:
            return careful, None
        return Decision.GO_ON, next(p for p in range(self.first, self.first + k) if words[p] is Word.UNSURE)

    def _walk(self, words: Mapping[int, Word], *, unsure_is_bad: bool) -> tuple[Decision, int]:
        """Along the places that were judged without a gap: the decision, and after how many rows."""
        bad = {Word.BAD, Word.UNSURE} if unsure_is_bad else {Word.BAD}
        k = n_bad = 0
        while (decision := self.plan.decide(k, n_bad)) is Decision.GO_ON and self.first + k in words:
            n_bad += words[self.first + k] in bad
            k += 1
        return decision, k

    def counts(self, words: Mapping[int, Word]) -> tuple[int, int, int]:
        """Rows judged, bad ones (unsure ones among them) and unsure ones; of a decided part those that decided it."""
        decision, k = self._walk(words, unsure_is_bad=True)
        places = range(self.first, self.first + (k if decision is not Decision.GO_ON else self.plan.most_rows))
        said = [words[place] for place in places if place in words]
        return len(said), len(said) - said.count(Word.GOOD), said.count(Word.UNSURE)


@dataclass(frozen=True, slots=True)
class Lot:
    """The usable answers of a plan, as its gate knows them."""

    id: str
    job: str
    plan: str  # digest
    n_rows: int
    broken: Mapping[str, int]  # by rule: rows that break it, and that nothing loads
    parts: tuple[Part, ...]  # of the other rows
    sample_blob: str  # JSON lines by place: key, part, input, answer
    rows_blob: (
        str  # Parquet: of every row in source order the number of its part, or -1 - the number of its broken rule
    )
    verdict: Verdict | None
    reason: str  # the verdict, or how far it is
    taken: tuple[str, ...]  # the parts that were accepted

    @property
    def n_broken(self) -> int:
        return sum(self.broken.values())

    @property
    def n_left_out(self) -> int:
        """Rows that are not loaded though the lot is accepted, or would not be."""
        refused = [p for p in self.parts if self.verdict is Verdict.ACCEPTED and p.name not in self.taken]
        return self.n_broken + sum(p.n_rows for p in refused)

    def part_of(self, place: int) -> Part:
        """Raises NotFound for a place that is not in the sample."""
        for part in self.parts:
            if part.first <= place < part.first + part.plan.most_rows:
                return part
        raise NotFound(f"No row {place} is in the sample of job {self.job}.", what="row", name=place)

    def next(self, words: Mapping[int, Word]) -> int | None:
        """The place to judge next; None: it is decided."""
        places = (part.standing(words)[1] for part in self.parts)
        return None if self.verdict else next((place for place in places if place is not None), None)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was said of one row."""

    place: int
    word: Word
    cause: str | None
    who: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands before a job's answers."""

    plan: str  # digest of the latest
    quality: Quality | None  # its gate; None: none
    lot_id: str  # of the answers as they are now
    is_whole: bool  # nothing is pending
    lot: Lot | None  # None: its sample is not drawn yet

    @property
    def has_passed(self) -> bool:
        """Whether the gate let every answer through."""
        return self.lot is not None and self.lot.verdict is Verdict.ACCEPTED and not self.lot.n_left_out


def standing(ledger: Ledger, job: str) -> Standing:
    """What stands before the answers of a job's latest plan. Raises NotFound."""
    with ledger.db.reading() as tx:
        rows = tx.run("job", name=job)
        if not rows:
            raise NotFound(what="job", name=job)
        return _standing(tx, job, rows[0]["plan"])


def is_open(ledger: Ledger, job: str, plan: str) -> bool:
    """Whether an opened plan has no gate, or all of its answers have passed it."""
    with ledger.db.reading() as tx:
        found = _standing(tx, job, plan)
    return found.quality is None or found.has_passed


def gate_for(ledger: Ledger, job: str, shards: Iterable[str], stated: Quality | None) -> Quality | None:
    """The gate of a new plan that older shards help to answer: no looser than the gates these have not passed yet."""
    gates = {stated} - {None}
    seen: dict[str, Quality | None] = {}
    with ledger.db.reading() as tx:
        for shard in shards:
            for row in tx.run("gates_of", shard=shard):
                if row["job"] == job and row["digest"] not in seen:
                    found = _standing(tx, job, row["digest"])
                    seen[row["digest"]] = None if found.has_passed else found.quality
    return strictest([g for g in (*gates, *seen.values()) if g is not None])


def strictest(gates: Sequence[Quality]) -> Quality | None:
    """A gate as sure as any of these at the lowest of their rates, with the rules of all; None of none."""
    if len(set(gates)) <= 1:
        return gates[0] if gates else None
    return Quality(
        refuse_if_bad_rate=min(g.refuse_if_bad_rate for g in gates),
        sure=max(g.sure for g in gates),
        by="human" if any(g.by == "human" for g in gates) else "rule",
        strata=next((g.strata for g in gates if g.strata), None),
        rules=tuple(dict.fromkeys(rule for g in gates for rule in g.rules)),
    )


def put_gate(ledger: Ledger, job: str, plan: str, quality: Quality, now: datetime) -> None:
    """Put a gate before an opened plan that has none. One that has one keeps it."""
    with ledger.db.transaction("put_gate") as tx:
        terms = json.loads(tx.run("plan", job=job, digest=plan)[0]["terms"])
        if terms.get("quality") is None:
            tx.run("plan_terms", job=job, digest=plan, terms=entries.dumps({**terms, "quality": plain(quality)}))
            entries.journal(tx, now, job, None, "gate_put", "the job file has a gate now", plan=plan)


# ---------------------------------------------------------------------------------------------------- lots, verdicts


def draw(ledger: Ledger, lot: Lot, now: datetime) -> Lot:
    """Keep a lot whose sample was drawn, and its verdict where it needs no judging; the one that was kept first."""
    with ledger.db.transaction("draw_lot") as tx:
        drawn = tx.count(
            "lot_insert",
            id=lot.id,
            job=lot.job,
            plan=lot.plan,
            n_rows=lot.n_rows,
            broken=entries.dumps(lot.broken),
            parts=json.dumps([asdict(part) for part in lot.parts]),
            sample_blob=lot.sample_blob,
            rows_blob=lot.rows_blob,
            at=to_us(now),
            reason=lot.reason,
        )
        if drawn:
            places = sum(part.plan.most_rows for part in lot.parts)
            why = f"{lot.n_rows} answers stand at the gate"
            facts = {"lot": lot.id, "rows": lot.n_rows, "broken": lot.n_broken, "places": places}
            entries.journal(tx, now, lot.job, None, "lot_drawn", why, **facts)
            _decide(tx, lot.id, now)
        return _lot(tx.run("lot", id=lot.id)[0])


def judge(ledger: Ledger, lot: str, place: int, word: Word, cause: str | None, who: str, now: datetime) -> Lot:
    """Say what one row is, and the verdict where that decides it. An unsure row that is not sure again is bad.

    Raises AlreadyJudged when it, or the lot, is decided already, and NotFound for a place that is not in the sample.
    """
    with ledger.db.transaction("judge") as tx:
        row = _lot(tx.run("lot", id=lot)[0])
        row.part_of(place)
        if row.verdict is not None:
            raise AlreadyJudged(place=place, job=row.job, why=f"its lot is {row.verdict.value}")
        said = _judgements(tx, lot)
        if place in said and said[place].word is Word.UNSURE and word is Word.UNSURE:
            word, cause = Word.BAD, "unsure"
        if not tx.count("judge", lot=lot, place=place, word=word.value, cause=cause, who=who, at=to_us(now)):
            raise AlreadyJudged(place=place, job=row.job, why=f"{said[place].who} says it is {said[place].word.value}")
        why = f"row {place} is {word.value}"
        entries.journal(
            tx, now, row.job, None, "judged", why, lot=lot, place=place, word=word.value, cause=cause, who=who
        )
        _decide(tx, lot, now)
        return _lot(tx.run("lot", id=lot)[0])


def undo(ledger: Ledger, lot: str, who: str, now: datetime) -> bool:
    """Take back what this person said last; False where there is nothing. Raises AlreadyJudged once the lot is decided."""
    with ledger.db.transaction("undo_judgement") as tx:
        row = _lot(tx.run("lot", id=lot)[0])
        if row.verdict is not None:
            raise AlreadyJudged(place="of the last judgement", job=row.job, why=f"its lot is {row.verdict.value}")
        undone = bool(tx.count("judgement_undo", lot=lot, who=who))
        if undone:
            entries.journal(tx, now, row.job, None, "judgement_undone", "a person took a word back", lot=lot, who=who)
            _decide(tx, lot, now)
        return undone


def look(ledger: Ledger, lot: str) -> tuple[Lot, dict[int, Judgement]]:
    """A lot, and what was said of its sample by place."""
    with ledger.db.reading() as tx:
        return _lot(tx.run("lot", id=lot)[0]), _judgements(tx, lot)


def _decide(tx: Tx, lot_id: str, now: datetime) -> None:
    """Write the verdict where there is one by now, and where the job stands with it; else how far it is."""
    lot = _lot(tx.run("lot", id=lot_id)[0])
    quality = _quality(tx, lot.job, lot.plan)
    assert quality is not None
    words = {place: judgement.word for place, judgement in _judgements(tx, lot_id).items()}
    verdict, taken = _verdict(lot, quality, words)
    if verdict is None:
        tx.run("lot_reason", id=lot_id, reason=progress(lot, words))
        return
    reason = _words(lot, quality, words, verdict, taken)
    if not tx.count("lot_decide", id=lot_id, verdict=verdict.value, reason=reason, taken=json.dumps(taken)):
        return
    entries.journal(tx, now, lot.job, None, f"gate_{verdict.value}", reason, lot=lot_id, parts=taken)
    job = tx.run("job", name=lot.job)[0]
    if job["state"] == JobState.GATE.value and job["plan"] == lot.plan:
        n_rows = json.loads(tx.run("plan", job=lot.job, digest=lot.plan)[0]["body"])["n_rows"]
        through = lot.n_rows - replace(lot, verdict=verdict, taken=tuple(taken)).n_left_out
        state = JobState.COMPLETED if through == n_rows else JobState.COMPLETED_WITH_FAILURES
        state = JobState.REFUSED if verdict is Verdict.REFUSED else state
        tx.run("job_state", name=lot.job, state=state.value, reason=reason)
        entries.journal(tx, now, lot.job, None, "job_state", reason, state=state.value)


def _verdict(lot: Lot, quality: Quality, words: Mapping[int, Word]) -> tuple[Verdict | None, list[str]]:
    """And the parts that are accepted."""
    if lot.n_broken and lot.n_broken >= quality.refuse_if_bad_rate * lot.n_rows:
        return Verdict.REFUSED, []
    if quality.by == "rule":
        return Verdict.ACCEPTED, [part.name for part in lot.parts]
    said = {part.name: part.standing(words)[0] for part in lot.parts}
    taken = [name for name, decision in said.items() if decision is Decision.ACCEPT]
    if len(taken) == len(said):
        return Verdict.ACCEPTED, taken
    if quality.on_refuse == "quarantine":
        return (Verdict.REFUSED, []) if Decision.REFUSE in said.values() else (None, [])
    if Decision.GO_ON in said.values():
        return None, []
    return (Verdict.ACCEPTED, taken) if taken else (Verdict.REFUSED, [])


def progress(lot: Lot, words: Mapping[int, Word]) -> str:
    """How far an inspection is."""
    judged, bad, unsure = (sum(n) for n in zip(*(p.counts(words) for p in lot.parts), strict=True))
    most = sum(part.plan.most_rows for part in lot.parts)
    doubt = f", {unsure} of them unsure" if unsure else ""
    return f"{judged} of at most {most} rows judged, {bad} bad{doubt}"


def _words(lot: Lot, quality: Quality, words: Mapping[int, Word], verdict: Verdict, taken: Sequence[str]) -> str:
    """A verdict with what it rests on, and its risk."""
    broken = f"{lot.n_broken} of {lot.n_rows} rows break a rule ({percent(lot.n_broken / max(1, lot.n_rows))})"
    if lot.n_broken and lot.n_broken >= quality.refuse_if_bad_rate * lot.n_rows:
        return f"refused: {broken}"
    aside = f"; {broken} and are left out" if lot.n_broken else ""
    if quality.by == "rule":
        return f"accepted: every row was checked by {len(quality.rules)} rules{aside}"
    if not lot.parts:
        return f"accepted: there is no row to judge{aside}"
    said = [_said(part, words, named=len(lot.parts) > 1) for part in lot.parts if part.standing(words)[1] is None]
    some = "" if len(taken) in (0, len(lot.parts)) else f" in part ({len(taken)} of {len(lot.parts)} strata)"
    return f"{verdict.value}{some}: {'; '.join(said)}{aside}"


def _said(part: Part, words: Mapping[int, Word], *, named: bool) -> str:
    judged, bad, _ = part.counts(words)
    low, high = interval(part.plan, judged, bad)
    span = f"at most {percent(high)}" if low == 0 else f"{percent(low)} to {percent(high)}"
    name = f"{part.name}: " if named else ""
    return f"{name}{bad} of {judged} judged rows bad, so of {part.n_rows} rows {span} (95 times in 100)"


def risk(part: Part) -> str:
    """What a verdict on a part may miss."""
    missed = passes(part.plan, ceil(part.plan.bad_rate * part.n_rows - 1e-9))
    return (
        f"If you accept, rows of which {percent(part.plan.bad_rate)} are bad would slip through "
        f"at most {max(1, round(100 * missed))} times in 100."
    )


def percent(rate: float) -> str:
    places = Decimal("0.1") if rate >= 0.001 else Decimal("0.001")
    return f"{Decimal(100 * rate).quantize(places).normalize():f}%"


# -------------------------------------------------------------------------------------------------------------- rows


def _standing(tx: Tx, job: str, plan: str) -> Standing:
    digest = hashlib.sha256(f"{job}\0{plan}".encode())
    is_whole = True
    for shard in tx.run("plan_shards", job=job, plan=plan):
        usable, is_ended = _usable(shard["vector"], shard["weights"])
        digest.update(f"\0{shard['shard']}\0".encode() + usable)
        is_whole = is_whole and is_ended
    for row in tx.run("lot_answers", job=job, plan=plan):
        digest.update(f"\0{row['root']}\0{row['results_blob']}".encode())
    kept = tx.run("lot", id=digest.hexdigest())
    return Standing(plan, _quality(tx, job, plan), digest.hexdigest(), is_whole, _lot(kept[0]) if kept else None)


@lru_cache(1024)  # who watches a job asks twice a second, and few shards have changed by then
def _usable(packed_vector: bytes, packed_weights: bytes) -> tuple[bytes, bool]:
    """A digest over the lines of a shard that have a usable answer and rows that want it; whether no such row waits."""
    vector, raw = zlib.decompress(packed_vector), zlib.decompress(packed_weights)
    if raw != b"\1\0\0\0" * len(vector):  # what no row wants is as good as never asked
        wanted = (byte if weight else Outcome.CANCELLED for byte, weight in zip(vector, array("I", raw), strict=True))
        vector = bytes(wanted)
    usable = vector.translate(bytes(byte == Outcome.OK for byte in range(256)))
    return hashlib.sha256(usable).digest(), Outcome.PENDING not in vector


def _quality(tx: Tx, job: str, plan: str) -> Quality | None:
    return terms_from_json(json.loads(tx.run("plan", job=job, digest=plan)[0]["terms"])).quality


def _lot(row: Row) -> Lot:
    parts: list[dict[str, Any]] = json.loads(row["parts"])
    for part in parts:
        plan = part["plan"]
        part["plan"] = Inspection(**{**plan, "accept": tuple(plan["accept"]), "refuse": tuple(plan["refuse"])})
    return Lot(
        id=row["id"],
        job=row["job"],
        plan=row["plan"],
        n_rows=row["n_rows"],
        broken=json.loads(row["broken"]),
        parts=tuple(Part(**part) for part in parts),
        sample_blob=row["sample_blob"],
        rows_blob=row["rows_blob"],
        verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        reason=row["reason"],
        taken=tuple(json.loads(row["taken"])),
    )


def _judgements(tx: Tx, lot: str) -> dict[int, Judgement]:
    rows = tx.run("judgements", lot=lot)
    return {r["place"]: Judgement(r["place"], Word(r["word"]), r["cause"], r["who"]) for r in rows}
