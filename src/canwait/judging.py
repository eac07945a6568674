"""The ledger's part for gates: lots of answers, what people say of them, verdicts. Each function is one transaction.

A lot is the usable answers of a finished job's latest plan, before one gate. Its id is a digest over what they are and of
that gate, so answers that come later, and a stricter gate, make another lot, which is judged anew. A verdict is written
once, in the transaction of the judgement it follows from: whatever dies where, there is no lot that is decided and does not
say so.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from . import entries, halting
from .clock import to_us
from .codec import plain, quality_from_json, terms_from_json
from .db import Row, Tx
from .errors import AlreadyJudged, NotFound
from .gate import Inspection
from .gates import as_filed, as_strict, strictest
from .ledger import Ledger
from .lots import Judgement, Lot, Part, Verdict, Word, progress, verdict_of, verdict_words
from .stratified import Stratified
from .types import JobState, Outcome, Quality

_UNTOLD = "language not told"  # in the ledger it stands beside the rules that rows of a lot break


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands before a job's answers."""

    plan: str  # digest of the latest
    quality: Quality | None  # its gate; None: none
    lot_id: str  # of the answers as they are now
    is_whole: bool  # nothing is pending
    lot: Lot | None  # None: its sample is not drawn yet
    canary: str | None = None  # as of Lot

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


def quality_of(ledger: Ledger, job: str, plan: str) -> Quality | None:
    """The gate before a plan's answers; None: none."""
    with ledger.db.reading() as tx:
        return _quality(tx, job, plan)


def openness(ledger: Ledger) -> Callable[[str], bool]:
    """Whether the answers of a shard may be taken by other jobs: every gate they stand before has let all through.

    What it says of a plan is remembered.
    """
    seen: dict[tuple[str, str], bool] = {}

    def is_open(shard: str) -> bool:
        with ledger.db.reading() as tx:
            for row in tx.run("plans_of", shard=shard):
                plan = row["job"], row["digest"]
                if plan not in seen:
                    found = _standing(tx, *plan)
                    seen[plan] = found.quality is None or found.has_passed
                if not seen[plan]:
                    return False
        return True

    return is_open


# --------------------------------------------------------------------------------------------------------------- gates


def gate_for(ledger: Ledger, job: str, shards: Iterable[str], stated: Quality | None) -> Quality | None:
    """The gate of a new plan that older shards help to answer: no looser than the gates these have not passed yet."""
    with ledger.db.reading() as tx:
        plans = {row["digest"]: row for shard in shards for row in tx.run("plans_of", shard=shard) if row["job"] == job}
        return as_filed(_strictest(tx, stated, plans.values()), stated)


def put_gate(ledger: Ledger, job: str, plan: str, stated: Quality | None, now: datetime) -> None:
    """Before a plan is opened again: make its gate as strict as the job file, and as the gates that its answers have not
    passed in other plans of the job. It is never loosened; of a plan that was never opened nothing is to be done.

    Who chooses the rows that people look at is as the job file says, too, until somebody has judged one of them.
    """
    with ledger.db.transaction("put_gate") as tx:
        rows = tx.run("plan", job=job, digest=plan)
        if not rows:
            return
        terms = json.loads(rows[0]["terms"])
        kept = terms_from_json(terms).quality
        lot = _standing(tx, job, plan).lot
        has_begun = lot is not None and bool(lot.verdict or _judgements(tx, lot.id))
        keeps = has_begun and kept is not None and (stated is None or as_strict(kept, stated))
        both = strictest([g for g in ((kept, stated) if keeps else (stated, kept)) if g])
        merged = as_filed(_strictest(tx, both, tx.run("plans_beside", job=job, plan=plan)), stated)
        if merged is not None and merged != kept:
            tx.run("plan_terms", job=job, digest=plan, terms=entries.dumps({**terms, "quality": plain(merged)}))
            why = "the job file has a gate now" if kept is None else "the gate is stricter now"
            if kept is not None and as_strict(kept, merged):
                why = "the job file says otherwise how its gate is gone about"
            entries.journal(tx, now, job, None, "gate_put", why, plan=plan)


def _strictest(tx: Tx, gate: Quality | None, plans: Iterable[Row]) -> Quality | None:
    """With the gates of those plans that did not let all of their answers through."""
    for row in plans:
        other = terms_from_json(json.loads(row["terms"])).quality
        if other is None or (gate is not None and as_strict(gate, other)):
            continue
        if not _standing(tx, row["job"], row["digest"], other).has_passed:
            gate = strictest([other] if gate is None else [gate, other])
    return gate


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
            broken=entries.dumps({**lot.broken, **({_UNTOLD: lot.n_untold} if lot.n_untold else {})}),
            parts=json.dumps([asdict(part) for part in lot.parts]),
            sample_blob=lot.sample_blob,
            rows_blob=lot.rows_blob,
            at=to_us(now),
            reason=lot.reason,
            quality=entries.dumps(plain(lot.quality)),
            withdrawn=lot.withdrawn,
            canary=lot.canary,
            known=lot.known,
        )
        if drawn:
            places = sum(part.plan.most_rows for part in lot.parts)
            why = f"{lot.n_rows} answers{' of the canary' if lot.canary else ''} stand at the gate"
            facts = {
                "lot": lot.id,
                "rows": lot.n_rows,
                "broken": lot.n_broken,
                "untold": lot.n_untold,
                "places": places,
            }
            entries.journal(tx, now, lot.job, None, "lot_drawn", why, **facts)
            _decide(tx, lot.id, now)
        return lot_of(tx.run("lot", id=lot.id)[0])


def judge(ledger: Ledger, lot: str, place: int, word: Word, cause: str | None, who: str, now: datetime) -> Lot:
    """Say what one row is, and the verdict where that decides it. An unsure row that is not sure again is bad.

    Raises AlreadyJudged when it, or the lot, is decided already, and NotFound for a place that is not in the sample.
    """
    with ledger.db.transaction("judge") as tx:
        row = lot_of(tx.run("lot", id=lot)[0])
        row.part_of(place)
        if row.verdict is not None:
            raise AlreadyJudged(place=place, job=row.job, why=f"its lot is {row.verdict.value}")
        if row.awaits_judge:
            raise AlreadyJudged(place=place, job=row.job, why=row.reason)
        if _refused_since(tx, row):
            raise AlreadyJudged(
                place=place, job=row.job, why="its lot holds answers that were refused since: inspect it again"
            )
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
        return lot_of(tx.run("lot", id=lot)[0])


def hear(ledger: Ledger, lot: str, heard: str, by_word: Stratified | None, now: datetime) -> Lot:
    """Keep what came of asking a judge model, once: which rows people look at from here on; None: those of the plain plan."""
    with ledger.db.transaction("hear_judge") as tx:
        row = lot_of(tx.run("lot", id=lot)[0])
        if row.awaits_judge:
            parts = tuple(replace(part, heard=heard, sorted=by_word) for part in row.parts)
            tx.run("lot_heard", id=lot, parts=json.dumps([asdict(part) for part in parts]))
            entries.journal(tx, now, row.job, None, "judge_heard", heard, lot=lot)
            _decide(tx, lot, now)
        return lot_of(tx.run("lot", id=lot)[0])


def undo(ledger: Ledger, lot: str, who: str, now: datetime) -> bool:
    """Take back what this person said last; False where there is nothing. Raises AlreadyJudged once the lot is decided."""
    with ledger.db.transaction("undo_judgement") as tx:
        row = lot_of(tx.run("lot", id=lot)[0])
        if row.verdict is not None:
            raise AlreadyJudged(place="of the last judgement", job=row.job, why=f"its lot is {row.verdict.value}")
        undone = bool(tx.count("judgement_undo", lot=lot, who=who))
        if undone:
            entries.journal(tx, now, row.job, None, "judgement_undone", "a person took a word back", lot=lot, who=who)
            _decide(tx, lot, now)
        return undone


def stands(tx: Tx, lot: Lot) -> bool:
    """Whether a lot is still what its job has to read."""
    return (
        bool(tx.run("job", name=lot.job)[0]["plan"] == lot.plan) and _standing(tx, lot.job, lot.plan).lot_id == lot.id
    )


def is_still_open(tx: Tx, job: str, lot: Lot | None) -> bool:
    """Whether a job's answers stand behind nothing but this lot, which was accepted; None: behind no gate."""
    return _quality(tx, job, tx.run("job", name=job)[0]["plan"]) is None if lot is None else stands(tx, lot)


def look(ledger: Ledger, lot: str) -> tuple[Lot, dict[int, Judgement]]:
    """A lot, and what was said of its sample by place."""
    with ledger.db.reading() as tx:
        return lot_of(tx.run("lot", id=lot)[0]), _judgements(tx, lot)


def _decide(tx: Tx, lot_id: str, now: datetime) -> None:
    """Write the verdict where there is one by now, and where the job stands with it; else how far it is."""
    lot = lot_of(tx.run("lot", id=lot_id)[0])
    words = {place: judgement.word for place, judgement in _judgements(tx, lot_id).items()}
    verdict, taken = verdict_of(lot, words)
    if verdict is None:
        tx.run("lot_reason", id=lot_id, reason=progress(lot, words))
        return
    reason = verdict_words(lot, words, verdict, taken)
    if verdict is Verdict.REFUSED and lot.canary is None:
        reason += _following(tx, lot)
    names = {"verdict": verdict.value, "reason": reason, "taken": json.dumps(taken)}
    if not tx.count("lot_decide", id=lot_id, **names, decided=tx.run("events_end")[0]["seq"]):
        return
    kind = f"{'canary' if lot.canary else 'gate'}_{verdict.value}"
    entries.journal(tx, now, lot.job, None, kind, reason, lot=lot_id, parts=taken)
    decided = replace(lot, verdict=verdict, taken=tuple(taken))
    if verdict is Verdict.REFUSED or decided.n_left_out:
        _refuse_publications(tx, lot, reason, now)
    if lot.canary is not None:
        refused = reason if verdict is Verdict.REFUSED else None
        halting.judged(tx, lot.job, lot.plan, lot.canary, refused, now)
        return
    job = tx.run("job", name=lot.job)[0]
    if job["state"] == JobState.GATE.value and stands(tx, lot):  # else it is about answers that are others by now
        n_rows = json.loads(tx.run("plan", job=lot.job, digest=lot.plan)[0]["body"])["n_rows"]
        through = lot.n_rows - decided.n_left_out
        state = JobState.COMPLETED if through == n_rows else JobState.COMPLETED_WITH_FAILURES
        state = JobState.REFUSED if verdict is Verdict.REFUSED else state
        tx.run("job_state", name=lot.job, state=state.value, reason=reason)
        entries.journal(tx, now, lot.job, None, "job_state", reason, state=state.value)


def _following(tx: Tx, lot: Lot) -> str:
    """What becomes of a refused lot by itself."""
    plan = tx.run("plan", job=lot.job, digest=lot.plan)[0]
    if not is_rerun(plan):
        return ""
    return "; asked again once already, so that is its end" if plan["rerun"] else "; it will be asked again, once"


def is_rerun(plan: Row) -> bool:
    """Whether the job file has what is refused of a plan asked again."""
    gate = terms_from_json(json.loads(plan["terms"])).quality
    return gate is not None and gate.on_refuse == "rerun"


def _refuse_publications(tx: Tx, lot: Lot, reason: str, now: datetime) -> None:
    """Serve no more what holds refused answers, unless a gate as strict as this one has accepted it."""
    for row in tx.run("publications_beside", job=lot.job, plan=lot.plan):
        within = (shard["shard"] for shard in tx.run("plan_order", job=lot.job, plan=row["plan"]))
        if lot.canary is not None and lot.canary not in within:
            continue
        others = (one for one in map(lot_of, tx.run("lots_of", job=lot.job, plan=row["plan"])) if one.id != lot.id)
        lots = [other for other in others if other.canary is None]
        if not any(other.verdict is Verdict.ACCEPTED and as_strict(other.quality, lot.quality) for other in lots):
            why = f"its answers were published before they were judged, and were {reason}"
            tx.run("publication_refuse", job=lot.job, version=row["version"], why=why)
            words = f"version {row['version']} is served no more: {why}"
            entries.journal(tx, now, lot.job, None, "publication_refused", words, version=row["version"], lot=lot.id)


# -------------------------------------------------------------------------------------------------------------- rows


def _standing(tx: Tx, job: str, plan: str, gate: Quality | None = None) -> Standing:
    """`gate`: the one it is asked of, where that is known."""
    quality = gate or _quality(tx, job, plan)
    digest = hashlib.sha256(f"{job}\0{plan}\0{stated_in(quality) if quality else ''}".encode())
    is_whole = True
    for shard in tx.run("plan_shards", job=job, plan=plan):
        usable, is_ended = _usable(shard["vector"], shard["weights"])
        digest.update(f"\0{shard['shard']}\0".encode() + usable)
        is_whole = is_whole and is_ended
    for row in tx.run("lot_answers", job=job, plan=plan):
        digest.update(f"\0{row['root']}\0{row['results_blob']}".encode())
    lot_id = digest.hexdigest()
    while (lot := next(map(lot_of, tx.run("lot", id=lot_id)), None)) and (since := _refused_since(tx, lot)):
        lot_id = hashlib.sha256(f"{lot_id}\0{since}".encode()).hexdigest()
    return Standing(plan, quality, lot_id, is_whole, lot)


def _refused_since(tx: Tx, lot: Lot) -> str | None:
    """The first lot that refused some of a job's answers after an undecided one beside it was drawn, which then is drawn anew:
    among its answers may be some that it does not know to be refused. None: there is no such lot."""
    if lot.verdict is not None or lot.canary is not None or lot.known is None:
        return None
    beside = tx.run("lots_beside", job=lot.job, plan=lot.plan)
    later = [
        row for row in beside if row["id"] != lot.id and row["decided"] is not None and row["decided"] >= lot.known
    ]
    for other in map(lot_of, sorted(later, key=lambda row: row["decided"])):
        if other.refused({place: said.word for place, said in _judgements(tx, other.id).items()}):
            return other.id
    return None


def stated_in(gate: Quality) -> str:
    """What a gate asks of answers beyond the defaults: the same text for as long as it asks the same."""
    gate = replace(gate, canary="checked", on_refuse="quarantine" if gate.on_refuse == "rerun" else gate.on_refuse)
    asked = {f.name: getattr(gate, f.name) for f in fields(gate) if getattr(gate, f.name) != f.default}
    return entries.dumps({name: plain(value) for name, value in asked.items()})


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
    """A plan's gate. Where another job has asked answers again that this plan shares, also the gates those stand before."""
    kept = own = terms_from_json(json.loads(tx.run("plan", job=job, digest=plan)[0]["terms"])).quality
    for shard in tx.run("withdrawn_elsewhere", job=job, plan=plan):
        theirs = [row for row in tx.run("plans_of", shard=shard["root"]) if row["job"] == shard["job"]]
        kept = _strictest(tx, kept, theirs)
    return as_filed(kept, own)


def lot_of(row: Row) -> Lot:
    parts: list[dict[str, Any]] = json.loads(row["parts"])
    broken: dict[str, int] = json.loads(row["broken"])
    for part in parts:
        plan = part["plan"]
        part["plan"] = Inspection(**{**plan, "accept": tuple(plan["accept"]), "refuse": tuple(plan["refuse"])})
        if by_word := part.get("sorted"):
            part["sorted"] = Stratified(**{**by_word, "allowed": tuple(by_word["allowed"])})
    return Lot(
        id=row["id"],
        job=row["job"],
        plan=row["plan"],
        n_rows=row["n_rows"],
        n_untold=broken.pop(_UNTOLD, 0),
        broken=broken,
        parts=tuple(Part(**part) for part in parts),
        sample_blob=row["sample_blob"],
        rows_blob=row["rows_blob"],
        quality=quality_from_json(json.loads(row["quality"])),
        withdrawn=row["withdrawn"],
        verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        reason=row["reason"],
        taken=tuple(json.loads(row["taken"])),
        canary=row["canary"],
        known=row["known"],
    )


def _judgements(tx: Tx, lot: str) -> dict[int, Judgement]:
    rows = tx.run("judgements", lot=lot)
    return {r["place"]: Judgement(r["place"], Word(r["word"]), r["cause"], r["who"]) for r in rows}
