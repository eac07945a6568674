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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from enum import Enum
from functools import lru_cache
from math import ceil
from typing import Any

from . import entries, halting
from .clock import to_us
from .codec import plain, quality_from_json, terms_from_json
from .db import Row, Tx
from .errors import AlreadyJudged, NotFound
from .gate import Decision, Inspection, good_rate, interval, mean_rows, needed, passes, percent
from .language import implies
from .ledger import Ledger
from .stratified import BAD as SAID_BAD
from .stratified import Stratified
from .types import JobState, Outcome, Quality

CAUSES = ("wrong", "format", "unsafe", "input", "unsure")  # why a judged row is bad
REFUSED_BEFORE = "refused before, and not asked again"  # stands among the rules that rows of a lot may break
_UNTOLD = "language not told"  # stands beside them in the ledger: rows that break none of them


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
    heard: str | None = None  # what came of asking a judge model; None: nothing yet, or none is asked
    sorted: Stratified | None = None  # what people look at by its word, instead of `plan`

    @property
    def places(self) -> Sequence[int]:
        """What people look at, in this order, until it is decided."""
        return range(self.first, self.first + self.plan.most_rows) if self.sorted is None else self.sorted.places

    def standing(self, words: Mapping[int, Word]) -> tuple[Decision, int | None]:
        """What was said of its rows so far comes to, and the place to judge next.

        An unsure row is a bad one; but where only that would refuse, it is the place to judge next.
        """
        careful, k = self._walk(words, unsure_is_bad=True)
        kind, _ = self._walk(words, unsure_is_bad=False)
        if careful is Decision.GO_ON:
            return careful, self.places[k]
        if careful is kind:
            return careful, None
        return Decision.GO_ON, next(p for p in self.places[:k] if words[p] is Word.UNSURE)

    def _walk(self, words: Mapping[int, Word], *, unsure_is_bad: bool) -> tuple[Decision, int]:
        """Along the places that were judged without a gap: the decision, and after how many rows."""
        bad = {Word.BAD, Word.UNSURE} if unsure_is_bad else {Word.BAD}
        places, seen = self.places, list[bool]()
        while (decision := self._decide(seen)) is Decision.GO_ON and places[len(seen)] in words:
            seen.append(words[places[len(seen)]] in bad)
        return decision, len(seen)

    def _decide(self, bad: Sequence[bool]) -> Decision:
        return self.plan.decide(len(bad), sum(bad)) if self.sorted is None else self.sorted.decide(bad)

    def counts(self, words: Mapping[int, Word]) -> tuple[int, int, int]:
        """Rows judged, bad ones (unsure ones among them) and unsure ones; of a decided part those that decided it."""
        decision, k = self._walk(words, unsure_is_bad=True)
        places = self.places if decision is Decision.GO_ON else self.places[:k]
        said = [words[place] for place in places if place in words]
        return len(said), len(said) - said.count(Word.GOOD), said.count(Word.UNSURE)


@dataclass(frozen=True, slots=True)
class Lot:
    """The usable answers of a plan, as its gate knows them."""

    id: str
    job: str
    plan: str  # digest
    n_rows: int
    broken: Mapping[str, int]  # by rule: rows that break it, and that nothing loads; also REFUSED_BEFORE
    parts: tuple[Part, ...]  # of the other rows
    sample_blob: str  # JSON lines by place: key, part, input, answer
    rows_blob: str  # Parquet: of every row in source order the number of its part, or -1 - that of its broken rule; shard, line
    quality: Quality  # what it is judged by
    withdrawn: int  # the last withdrawal of answers that it knows of
    verdict: Verdict | None
    reason: str  # the verdict, or how far it is
    taken: tuple[str, ...]  # the parts that were accepted
    canary: str | None = None  # the planned shard that it is alone of: then its verdict opens nothing
    n_untold: int = 0  # rows that break no rule, but whose language could not be told
    known: int | None = (
        None  # the journal's last event before it was drawn; None: of a ledger from before that was kept
    )

    @property
    def n_broken(self) -> int:
        return sum(self.broken.values())

    def refused(self, words: Mapping[int, Word]) -> list[int]:
        """The numbers of the parts whose sample refuses them."""
        return [n for n, part in enumerate(self.parts) if part.standing(words)[0] is Decision.REFUSE]

    @property
    def n_left_out(self) -> int:
        """Rows that are not loaded though the lot is accepted, or would not be."""
        refused = [p for p in self.parts if self.verdict is Verdict.ACCEPTED and p.name not in self.taken]
        return self.n_broken + sum(p.n_rows for p in refused)

    def part_of(self, place: int) -> Part:
        """Raises NotFound for a place that is not in the sample."""
        for part in self.parts:
            if place in part.places:
                return part
        raise NotFound(f"No row {place} is in the sample of job {self.job}.", what="row", name=place)

    @property
    def awaits_judge(self) -> bool:
        """Whether a judge model is to look at its sample before people do."""
        return self.verdict is None and self.quality.by == "judge" and any(part.heard is None for part in self.parts)

    def next(self, words: Mapping[int, Word]) -> int | None:
        """The place to judge next; None: it is decided, or a judge model looks first."""
        if self.verdict or self.awaits_judge:
            return None
        places = (part.standing(words)[1] for part in self.parts)
        return next((place for place in places if place is not None), None)


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
        return _as_filed(_strictest(tx, stated, plans.values()), stated)


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
        merged = _as_filed(_strictest(tx, both, tx.run("plans_beside", job=job, plan=plan)), stated)
        if merged is not None and merged != kept:
            tx.run("plan_terms", job=job, digest=plan, terms=entries.dumps({**terms, "quality": plain(merged)}))
            why = "the job file has a gate now" if kept is None else "the gate is stricter now"
            if kept is not None and as_strict(kept, merged):
                why = "the job file says otherwise how its gate is gone about"
            entries.journal(tx, now, job, None, "gate_put", why, plan=plan)


def unlike(kept: Quality | None, stated: Quality | None) -> str | None:
    """In words: the gate that stands is not the one that the job file states, for it is not loosened."""
    if kept is None or kept == stated:
        return None
    if stated is None:
        return f"the job file states no gate; its answers stay behind theirs: {_gist(kept)}"
    if as_strict(stated, kept):  # they differ in nothing that makes a gate stricter
        asked = "people have begun to judge these answers by what another said of them"
        is_new = (kept.by, kept.judge) != (stated.by, stated.judge)
        return f"the job file's `judge` holds for the next answers: {asked}" if is_new else None
    return f"the job file's gate ({_gist(stated)}) is not all that holds: answers stay behind {_gist(kept)}"


def _gist(gate: Quality) -> str:
    rules = f", {len(gate.rules)} rules" if gate.rules else ""
    return f"{percent(gate.refuse_if_bad_rate)} bad refused, {percent(gate.sure)} sure, by {gate.by}{rules}"


def as_strict(gate: Quality, other: Quality) -> bool:
    """Whether whatever a gate lets through, another would let through as surely.

    How many rows are judged makes no gate stricter: it is as sure with fewer, and only less kind to good answers. Nor does
    what is sent when, or again: a canary that is judged first, a refused lot that is asked once more and judged anew.
    """
    return (
        gate.refuse_if_bad_rate <= other.refuse_if_bad_rate
        and gate.sure >= other.sure
        and (gate.by != "rule" or other.by == "rule")
        and all(any(implies(rule, wanted) for rule in gate.rules) for wanted in other.rules)
        and other.strata in (None, gate.strata)
        and (gate.on_refuse != "load_accepted_strata" or other.on_refuse == "load_accepted_strata")
        and (gate.preset == "zero" or other.preset != "zero")
    )


def strictest(gates: Sequence[Quality]) -> Quality | None:
    """A gate as sure as any of these at the lowest of their rates, with the rules of all; None of none.

    The first that is as strict as all of them is taken as it is, so that nothing is judged anew for a looser one.
    """
    for gate in gates:
        if all(as_strict(gate, other) for other in gates):
            return gate
    if not gates:
        return None
    rate, sure = min(g.refuse_if_bad_rate for g in gates), max(g.sure for g in gates)
    rows = max(g.rows or 0 for g in gates)
    return Quality(
        refuse_if_bad_rate=rate,
        sure=sure,
        by="human" if any(g.by != "rule" for g in gates) else "rule",
        rows=rows if rows >= needed(float(rate), float(sure)) else None,
        preset="zero" if any(g.preset == "zero" for g in gates) else None,
        strata=next((g.strata for g in gates if g.strata), None),
        on_refuse="quarantine" if any(g.on_refuse != "load_accepted_strata" for g in gates) else "load_accepted_strata",
        rules=tuple(dict.fromkeys(rule for g in gates for rule in g.rules)),
    )


def _as_filed(gate: Quality | None, stated: Quality | None) -> Quality | None:
    """A gate that stands, with what the job file says by now of sending, which lets nothing through."""
    if gate is None:
        return None
    on_refuse = gate.on_refuse
    if on_refuse != "load_accepted_strata":
        on_refuse = "rerun" if stated and stated.on_refuse == "rerun" else "quarantine"
    return replace(gate, on_refuse=on_refuse, canary=stated.canary if stated else gate.canary)


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
    verdict, taken = _verdict(lot, words)
    if verdict is None:
        tx.run("lot_reason", id=lot_id, reason=progress(lot, words))
        return
    reason = _words(lot, words, verdict, taken)
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


def _verdict(lot: Lot, words: Mapping[int, Word]) -> tuple[Verdict | None, list[str]]:
    """And the parts that are accepted."""
    quality = lot.quality
    if lot.canary is not None and not lot.n_rows:  # nothing that speaks for sending the rest
        return Verdict.REFUSED, []
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
    if quality.on_refuse == "rerun":  # once every stratum is judged: what is refused is asked again together
        return Verdict.REFUSED, []
    return (Verdict.ACCEPTED, taken) if taken else (Verdict.REFUSED, [])


def progress(lot: Lot, words: Mapping[int, Word]) -> str:
    """How far an inspection is."""
    if lot.awaits_judge:
        return f"a judge model looks at its sample first, as job {judge_name(lot.job)}"
    judged, bad, unsure = (sum(n) for n in zip(*(p.counts(words) for p in lot.parts), strict=True))
    most = sum(len(part.places) for part in lot.parts)
    doubt = f", {unsure} of them unsure" if unsure else ""
    return f"{judged} of at most {most} rows judged, {bad} bad{doubt}"


def _words(lot: Lot, words: Mapping[int, Word], verdict: Verdict, taken: Sequence[str]) -> str:
    """A verdict with what it rests on, and its risk."""
    quality, again = lot.quality, lot.broken.get(REFUSED_BEFORE, 0)
    if lot.canary is not None and not lot.n_rows:
        return "refused: none of its rows has a usable answer"
    counted = [(lot.n_broken - again, "break a rule"), (again, f"were {REFUSED_BEFORE}")]
    broken = ", ".join(f"{n} of {lot.n_rows} rows {what} ({percent(n / lot.n_rows)})" for n, what in counted if n)
    if lot.n_broken and lot.n_broken >= quality.refuse_if_bad_rate * lot.n_rows:
        return f"refused: {broken}"
    aside = f"; {broken} and are left out" if lot.n_broken else ""
    aside += f"; the language of {lot.n_untold} of {lot.n_rows} rows could not be told" if lot.n_untold else ""
    if quality.by == "rule":
        return f"accepted: every row was checked by {len(quality.rules)} rules{aside}"
    if not lot.parts:
        return f"accepted: there is no row to judge{aside}"
    named = [_named(n, part, len(lot.parts), taken) for n, part in enumerate(lot.parts, 1)]
    said = [n + _said(p, words) for n, p in zip(named, lot.parts, strict=True) if p.standing(words)[1] is None]
    some = "" if len(taken) in (0, len(lot.parts)) else f" in part ({len(taken)} of {len(lot.parts)} strata)"
    return f"{verdict.value}{some}: {'; '.join(said)}{aside}"


def _named(number: int, part: Part, of: int, taken: Sequence[str]) -> str:
    """A stratum's name is a part of its answers: of refused ones it is told to those who judge, and to nobody else."""
    if of == 1:
        return ""
    return f"{part.name}: " if part.name in taken else f"stratum {number} of {of}: "


def _said(part: Part, words: Mapping[int, Word]) -> str:
    judged, bad, _ = part.counts(words)
    if part.sorted is not None:
        seen = [words[place] is not Word.GOOD for place in part.places[:judged]]
        return _sorted_words(part.sorted, seen)
    low, high = interval(part.plan, judged, bad)
    span = f"at most {percent(high)}" if low == 0 else f"{percent(low)} to {percent(high)}"
    return f"{bad} of {judged} judged rows bad, so of {part.n_rows} rows {span} (95 times in 100)" + (
        f"; {part.heard}" if part.heard else ""
    )


def _sorted_words(plan: Stratified, bad: Sequence[bool]) -> str:
    """The report of methods.md 5.4."""
    alone = f"the judge model alone would have said {percent(plan.said.count(SAID_BAD) / len(plan.said))}"
    checked = f"{len(bad)} rows checked by people, {sum(bad)} of them bad"
    if (found := plan.estimated(bad)) is None:
        return f"{checked}, so of {plan.n_lot} rows at least {percent(plan.at_least(bad, 0.05))} (95 times in 100); {alone}"
    span = f"{percent(found.low)} to {percent(found.high)}, 95 times in 100"
    saved = round(100 * found.explained)
    worth = f"it saved about {saved}% of the labels" if saved >= 5 else "it adds nothing"
    return f"estimated bad rows {percent(found.rate)} of {plan.n_lot} ({span}); {checked}; {alone}; {worth}"


def judge_name(job: str) -> str:
    """What the judge model of a job's gate runs as."""
    return f"{job}.judge"


def risk(part: Part) -> str:
    """What a verdict on a part may miss."""
    if part.sorted is not None:
        return (
            f"If you accept, rows of which {percent(part.plan.bad_rate)} are bad would slip through at most "
            f"{_in_100(part.sorted.missed)} times in 100, whatever the judge model says."
        )
    missed = passes(part.plan, ceil(part.plan.bad_rate * part.n_rows - 1e-9))
    return (
        f"If you accept, rows of which {percent(part.plan.bad_rate)} are bad would slip through "
        f"at most {_in_100(missed)} times in 100."
    )


def _in_100(risk: float) -> int:
    return max(1, ceil(100 * risk - 1e-9))


def kindness(part: Part) -> str:
    """What a plan of inspection asks of good answers."""
    if part.sorted is not None:
        flagged, passed = part.sorted.n_flagged, part.sorted.n_passed
        return f"{flagged + passed} rows are judged: {flagged} that the judge model flags and {passed} that it passes, mixed."
    few, most = round(mean_rows(part.plan, 0)), part.plan.most_rows
    return (
        f"Rows of which {percent(good_rate(part.plan))} are bad still pass 95 times in 100. Where none is bad about {few} are "
        f"judged, at most {most}."
    )


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
    return _as_filed(kept, own)


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
