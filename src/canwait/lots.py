"""Lots: the usable answers of a job before one gate, what people say of them, and what that comes to, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil

from .errors import NotFound
from .gate import Decision, Inspection, good_rate, interval, mean_rows, passes, percent
from .stratified import BAD as SAID_BAD
from .stratified import Stratified
from .types import Quality

CAUSES = ("wrong", "format", "unsafe", "input", "unsure")  # why a judged row is bad
REFUSED_BEFORE = "refused before, and not asked again"  # stands among the rules that rows of a lot may break


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


def verdict_of(lot: Lot, words: Mapping[int, Word]) -> tuple[Verdict | None, list[str]]:
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


def verdict_words(lot: Lot, words: Mapping[int, Word], verdict: Verdict, taken: Sequence[str]) -> str:
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
