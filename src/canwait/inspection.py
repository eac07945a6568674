"""Between a lot and the people who judge it: draws the sample, shows its rows, keeps what is said, opens the gate.

Nobody can choose the sample: its order is fixed by the ledger's id, the job and which line of which shard answers a row,
before there is any answer. So an answer keeps its place in every plan that it belongs to. It is drawn in one streaming pass
over the answers, in which every one of them also meets the job's rules. An answer that a sample refused stays refused until
it is asked again: whatever rows come or go beside it.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import compress
from math import ceil
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from . import canary_gate, gate, gates, judging, landing, language, stratified
from .blobs import Blobs
from .checks import Function, Rules, function_of
from .codec import terms_from_json
from .errors import GatePending, GateRefused, NotFound, Problem, SpecError
from .gate import Inspection
from .importing import imported
from .judging import Standing
from .ledger import Ledger
from .lines import read_lines
from .load import Answers, answers
from .lots import REFUSED_BEFORE, Judgement, Lot, Part, Verdict, Word
from .stratified import BAD, GOOD, UNSURE, Stratified
from .types import Quality, Shard

pc: Any = pyarrow.compute  # its stubs do not know all of it

PRESETS: Mapping[str, tuple[float, float]] = {  # methods.md 5.1: (good, bad) rate
    "relaxed": (0.02, 0.08),
    "standard": (0.01, 0.05),
    "strict": (0.005, 0.02),
}
_MOST_PRESET_ROWS = 512  # a preset's sample of a lot of any size: `strict` asks for 390 of 5,000
_MOST_STRATA = 100
_REST = "(others)"  # the stratum of values beyond them: answers are not trusted to be few
_BATCH_ROWS = 8192
_CHARS = 20_000  # of an input or an answer that is shown


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row of the sample."""

    place: int
    part: str
    key: str
    input: str  # what was asked: the messages of the user
    answer: str


def opened(ledger: Ledger, blobs: Blobs, job: str, now: datetime, base_dir: Path = Path()) -> Lot | None:
    """The lot of a finished job, its sample drawn; None for a job without a gate. Raises NotFound, GatePending.

    `base_dir`: where functions that rules name are looked for. SpecError for one that cannot be found.
    """
    while True:
        found = judging.standing(ledger, job)
        if found.quality is None:
            return None
        if not found.is_whole:
            raise GatePending(f"Job {job} has not finished; its answers are judged when it has.", job=job)
        if found.lot is not None:
            return found.lot
        with answers(ledger, blobs, job) as rows:
            if judging.standing(ledger, job).lot_id == found.lot_id:  # what is read from here on is that lot
                return judging.draw(ledger, _drawn(ledger, blobs, job, found, rows, base_dir), now)


def canary(ledger: Ledger, blobs: Blobs, job: str, now: datetime, base_dir: Path = Path()) -> Lot | None:
    """The lot of a canary that holds back rows of a job, its sample drawn: judged by rules alone it may be accepted by that.

    None: none holds anything back. SpecError as `opened`.
    """
    while (found := canary_gate.waiting(ledger, job)) is not None and found.lot is None:
        with answers(ledger, blobs, job, found.plan) as rows:
            again = canary_gate.waiting(ledger, job)
            if again is not None and again.lot_id == found.lot_id:  # what is read from here on is that lot
                return judging.draw(ledger, _drawn(ledger, blobs, job, found, rows, base_dir), now)
    return found.lot if found else None


def passed(ledger: Ledger, blobs: Blobs, job: str, now: datetime, base_dir: Path = Path()) -> Lot | None:
    """The lot that its gate let through; None without a gate. Raises GatePending, GateRefused."""
    lot = opened(ledger, blobs, job, now, base_dir)
    if lot is None or lot.verdict is Verdict.ACCEPTED:
        return lot
    if lot.verdict is Verdict.REFUSED:
        raise GateRefused(job=job, why=lot.reason.removeprefix("refused: "))
    raise GatePending(f"Job {job} waits to be judged: {lot.reason}.", job=job)


class Through:
    """A job's answers behind its gate: those it let through, and beside the failed rows those it left out."""

    def __init__(self, rows: Answers, lot: Lot | None, blobs: Blobs) -> None:
        self.columns = rows.columns
        self._rows, self._lot = rows, lot
        self._parts: Any = None  # of every row with a usable answer, where something is left out
        if lot is not None and lot.n_left_out:
            self._parts = pq.read_table(blobs.path(lot.rows_blob))["part"].combine_chunks()
            judged = lot.verdict is Verdict.ACCEPTED
            kept = [n for n, part in enumerate(lot.parts) if not judged or part.name in lot.taken]
            self._kept = pc.is_in(self._parts, value_set=pa.array(kept, pa.int16()))

    def loaded(self) -> Iterator[pa.RecordBatch]:
        """Rows that may be loaded, as `Answers.loaded`."""
        at = 0
        for batch in self._rows.loaded():
            yield batch if self._parts is None else batch.filter(self._kept.slice(at, batch.num_rows))
            at += batch.num_rows

    def texts(self) -> Iterator[tuple[str, str]]:
        """Key and answer of every row that may be read."""
        return self._rows.texts() if self._parts is None else compress(self._rows.texts(), _listed(self._kept))

    def failed(self) -> Iterator[pa.RecordBatch]:
        """Rows without a usable answer, and after them those that the gate left out."""
        yield from self._rows.failed()
        if self._parts is None or self._lot is None:
            return
        rules = list(self._lot.broken)
        out = []
        keys = compress(self._rows.texts(), _listed(pc.invert(self._kept)))
        for (key, _), part in zip(keys, _listed(self._parts.filter(pc.invert(self._kept))), strict=True):
            out.append((key, "failed", *_why(rules[-1 - part] if part < 0 else None)))
            if len(out) == _BATCH_ROWS:
                yield self._failed(out)
                out = []
        if out:
            yield self._failed(out)

    def _failed(self, rows: Sequence[tuple[str, str, str, str]]) -> pa.RecordBatch:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=self.columns.failed)


def _why(rule: str | None) -> tuple[str, str]:
    """Cause and detail of a row that was left out for a rule, or with its stratum, whose name is part of an answer."""
    if rule is None:
        return "gate", "its stratum was refused"
    if language.codes_of(rule):
        return language.NAME, f"it is surely in no {rule}"
    return ("gate", rule) if rule == REFUSED_BEFORE else ("rule", rule)


def _listed(column: Any) -> Iterator[Any]:
    """The values of a column, some at a time."""
    for at in range(0, len(column), _BATCH_ROWS):
        yield from column.slice(at, _BATCH_ROWS).to_pylist()


@contextmanager
def let_through(ledger: Ledger, blobs: Blobs, job: str, now: datetime, base_dir: Path = Path()) -> Iterator[Through]:
    """The answers of a job's latest plan that anybody may read. Raises GatePending, GateRefused."""
    lot = passed(ledger, blobs, job, now, base_dir)
    with answers(ledger, blobs, job) as rows:
        after = judging.standing(ledger, job)  # another run may have changed what there is to read
        if lot is None and after.quality is not None:
            raise GatePending(job=job)
        if lot is not None and after.lot_id != lot.id:
            raise GatePending(f"Job {job} is running again; its answers are judged when it has finished.", job=job)
        yield Through(rows, lot, blobs)


@contextmanager
def left_out(ledger: Ledger, blobs: Blobs, job: str) -> Iterator[Through]:
    """The same for its `failed` rows alone, which hold no answer: also before the gate has opened, and while rows run."""
    before = judging.standing(ledger, job)
    with answers(ledger, blobs, job) as rows:
        after = judging.standing(ledger, job)
        yield Through(rows, after.lot if after.lot_id == before.lot_id else None, blobs)


def rejected(ledger: Ledger, blobs: Blobs, job: str, name: str) -> tuple[Lot, list[tuple[Shard, list[int]]]]:
    """What the gate of a job did not let through: the lot, and planned shards of the job with their lines, ascending.

    `name`: a refused stratum, a rule, or what rows of refused strata were judged to be; "": all of it. Rows of other jobs
    are left out: they are not this one's to ask again. Raises NotFound where nothing was refused, SpecError for a name
    of nothing.
    """
    lot = judging.standing(ledger, job).lot
    if lot is None or lot.verdict is None or not lot.n_rows:
        hint = f"`canwait inspect {job}` says how far the judging is"
        raise NotFound(what="verdict on job", name=job, hint=hint)
    said = judging.look(ledger, lot.id)[1]
    refused = lot.refused({place: judgement.word for place, judgement in said.items()})
    broken = [-1 - n for n, count in enumerate(lot.broken.values()) if count]
    names: dict[str, list[int]] = {"": refused + broken}
    for judgement in said.values():
        part = lot.parts.index(lot.part_of(judgement.place))
        if judgement.cause and part in refused and part not in names.setdefault(judgement.cause, []):
            names[judgement.cause].append(part)
    names |= {rule: [-1 - n] for n, (rule, count) in enumerate(lot.broken.items()) if count}
    if foreign := [n for rule in lot.broken if language.codes_of(rule) for n in names.get(rule, ())]:
        names[language.NAME] = foreign
    names |= {lot.parts[n].name: [n] for n in refused if lot.parts[n].name}
    if name not in names:
        found = ", ".join(f"rejected:{known}" for known in names if known)
        what = f"nothing was rejected as {name!r}; expected rejected" + (f", {found}" if found else "")
        raise SpecError([Problem("--only", None, None, None, what)])
    lines: dict[int, set[int]] = {}
    for ordinal, line in answers_in(blobs, lot, names[name]):
        lines.setdefault(ordinal, set()).add(line)
    shards = ledger.query("plan_shards", job=job, plan=lot.plan)
    ours = [row for row in shards if row["ordinal"] in lines and row["owner_job"] == job]
    return lot, [(ledger.shard(row["shard"]), sorted(lines[row["ordinal"]])) for row in ours]


class Inspecting:
    """The inspection of one lot: who judges, and what was said so far."""

    def __init__(self, ledger: Ledger, blobs: Blobs, lot: Lot, quality: Quality, who: str) -> None:
        self._ledger, self.lot, self.quality, self.who = ledger, lot, quality, who
        self.sample = [
            Sampled(place, *(record[name] for name in ("part", "key", "input", "answer")))
            for place, record in enumerate(map(json.loads, blobs.lines(lot.sample_blob)))
        ]
        self.said: dict[int, Judgement] = {}
        self.look()

    def look(self) -> None:
        """See what others have said meanwhile."""
        self.lot, self.said = judging.look(self._ledger, self.lot.id)

    @property
    def words(self) -> dict[int, Word]:
        return {place: judgement.word for place, judgement in self.said.items()}

    @property
    def next(self) -> Sampled | None:
        """The row to judge next; None: it is decided."""
        place = self.lot.next(self.words)
        return None if place is None else self.sample[place]

    @property
    def by_word(self) -> Stratified | None:
        """What chose the rows that people look at, where a judge model did."""
        return next((part.sorted for part in self.lot.parts), None)

    @property
    def looked_at(self) -> list[Sampled]:
        """The rows of the sample that people may be asked about; none while a judge model looks first."""
        if self.lot.awaits_judge:
            return []
        return [self.sample[place] for part in self.lot.parts for place in part.places]

    def model_word(self, place: int) -> str | None:
        """What the judge model said of a row, once a person has: before, it would lead them."""
        if self.by_word is None or place not in self.said:
            return None
        return {GOOD: "good", BAD: "bad", UNSURE: "unsure"}.get(self.by_word.said[place])

    def judge(self, place: int, word: Word, cause: str | None, now: datetime) -> Lot:
        """Raises AlreadyJudged, NotFound."""
        try:
            return judging.judge(self._ledger, self.lot.id, place, word, cause, self.who, now)
        finally:
            self.look()

    def undo(self, now: datetime) -> bool:
        """Take this person's last word back. Raises AlreadyJudged once the lot is decided."""
        try:
            return judging.undo(self._ledger, self.lot.id, self.who, now)
        finally:
            self.look()


def inspecting(
    ledger: Ledger, blobs: Blobs, job: str, who: str, now: datetime, base_dir: Path = Path()
) -> Inspecting | None:
    """The inspection of a job's lot, or of the canary that its other rows wait for; None for a job without a gate.

    Raises NotFound, GatePending.
    """
    lot = canary(ledger, blobs, job, now, base_dir) or opened(ledger, blobs, job, now, base_dir)
    return None if lot is None else Inspecting(ledger, blobs, lot, lot.quality, who)


def plan_for(quality: Quality, n_rows: int) -> Inspection:
    """How many of so many rows to judge, and what they must show."""
    bad, sure = float(quality.refuse_if_bad_rate), float(quality.sure)
    if quality.by == "rule":
        return Inspection(n_rows, bad, sure, (), ())
    if quality.preset == "zero":
        return gate.fixed(n_rows, gate.needed(bad, sure), 0, bad, sure)
    if quality.preset is not None:
        return gate.fixed(n_rows, *gate.smallest(n_rows, *PRESETS[quality.preset], sure), bad, sure)
    return gate.sequential(n_rows, bad, sure, most_rows(quality))


def most_rows(quality: Quality) -> int:
    """The most rows of one stratum that are judged, whatever its size."""
    needed = gate.needed(float(quality.refuse_if_bad_rate), float(quality.sure))
    if quality.preset is not None:
        return max(_MOST_PRESET_ROWS, needed)
    return quality.rows or max(gate.MOST_ROWS, needed)


def label_rows(quality: Quality) -> int:
    """How many rows people judge by a judge model's word."""
    needed = gate.needed(float(quality.refuse_if_bad_rate), float(quality.sure))
    return quality.rows or max(stratified.LABELS, ceil(needed / (1 - stratified.FLAGGED_SHARE)))


def _sample_rows(quality: Quality) -> int:
    """The most rows of one stratum that are drawn: people judge some of those that a judge model looks at."""
    if quality.by == "rule":
        return 0
    return max(most_rows(quality), quality.judge.rows if quality.judge else 0)


def rules_of(quality: Quality, base_dir: Path, job: str, schema: Mapping[str, Any] | None) -> Rules:
    """What every answer of a job is checked by. Raises SpecError for a function that cannot be found."""
    functions = _functions(quality.rules, base_dir, job)
    return Rules(quality.rules, functions, is_json=schema is not None, schema=schema)


# ----------------------------------------------------------------------------------------------------------- drawing


def _drawn(ledger: Ledger, blobs: Blobs, job: str, found: Standing, rows: Answers, base_dir: Path) -> Lot:
    """A lot with its sample, kept as blobs."""
    quality = found.quality
    assert quality is not None
    plan = ledger.query("plan", job=job, digest=found.plan)[0]
    terms = terms_from_json(json.loads(plan["terms"]))
    rules = rules_of(quality, base_dir, job, terms.output_schema)
    shards = ledger.query("plan_shards", job=job, plan=found.plan)
    rows_blob = json.loads(plan["body"])["rows_blob"]
    seed = hashlib.sha256("\0".join((ledger.id, job, *(["canary"] if found.canary else []))).encode()).digest()
    drawing = _Drawing(rules, quality.strata, seed, _sample_rows(quality))
    withdrawn, known = (int(ledger.query(end)[0]["seq"]) for end in ("withdrawals_end", "events_end"))
    refused = _refused(ledger, blobs, job, found, {row["shard"]: row["n_lines"] for row in shards})
    placed = _placed(rows.texts(), blobs.path(rows_blob), shards)
    drawing.see((row for row in placed if found.canary in (None, row.shard)), refused)
    parts, sample = drawing.done(quality)
    asked = _asked(ledger, blobs, job, found.plan, rows_blob, [key for _, key, _ in sample])
    records = (
        {"part": part, "key": key, "input": asked.get(key, "")[:_CHARS], "answer": text[:_CHARS]}
        for part, key, text in sample
    )
    with blobs.scratch() as folder:
        pq.write_table(drawing.table(), folder / "rows.parquet")
        answers_blob = blobs.adopt(folder / "rows.parquet")
    names = [*quality.rules, *([REFUSED_BEFORE] if drawing.broken[len(quality.rules)] else [])]
    return Lot(
        id=found.lot_id,
        job=job,
        plan=found.plan,
        n_rows=len(drawing.rows),
        broken={name: drawing.broken[n] for n, name in enumerate(names)},
        parts=parts,
        sample_blob=blobs.put_stream(json.dumps(record).encode() + b"\n" for record in records),
        rows_blob=answers_blob,
        quality=quality,
        withdrawn=withdrawn,
        verdict=None,
        reason="its sample is drawn",
        taken=(),
        canary=found.canary,
        known=known,
        n_untold=rules.n_untold,
    )


class _Answer(NamedTuple):
    """A row with a usable answer, and what answers it."""

    key: str
    text: str
    shard: str
    ordinal: int  # of the shard, in the plan
    line: int
    copy: int  # how many rows before it this line answers as well


def _placed(texts: Iterable[tuple[str, str]], rows: Path, shards: Sequence[Mapping[str, Any]]) -> Iterator[_Answer]:
    """Each row with its place. Memory: four bytes a line that answers several rows of a plan."""
    names = {row["ordinal"]: row["shard"] for row in shards}
    shared = {row["ordinal"]: array("I", zlib.decompress(row["weights"])) for row in shards}
    seen = {n: array("I", bytes(4 * len(weights))) for n, weights in shared.items() if max(weights, default=0) > 1}
    del shared
    file = pq.ParquetFile(rows, pre_buffer=False)
    places = (
        place
        for batch in file.iter_batches(_BATCH_ROWS, columns=["key", "shard", "line"])
        for place in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    for key, text in texts:  # in the order of the rows, of which some have no answer; a key names one row
        _, ordinal, line = next(place for place in places if place[0] == key)
        copy = 0
        if ordinal in seen:
            copy = seen[ordinal][line]
            seen[ordinal][line] += 1
        yield _Answer(key, text, names[ordinal], ordinal, line, copy)


def _refused(
    ledger: Ledger, blobs: Blobs, job: str, found: Standing, n_lines: Mapping[str, int]
) -> dict[str, bytearray]:
    """By shard, a byte a line: 1 where the answer it has now was refused in an earlier lot, and by no gate as strict as this
    one was ever accepted."""
    quality = found.quality
    assert quality is not None
    refused: dict[str, bytearray] = {}
    earlier = [judging.look(ledger, row["id"]) for row in ledger.query("lots_beside", job=job, plan=found.plan)]
    out = [(lot, lot.refused({place: said.word for place, said in words.items()})) for lot, words in earlier]
    for lot, parts in out:
        for shard, line in _lines(ledger, blobs, lot, parts, n_lines) if parts else ():
            refused.setdefault(shard, bytearray(n_lines[shard]))[line] = 1
    for lot, _ in earlier if refused else ():
        if lot.canary is None and lot.verdict is Verdict.ACCEPTED and gates.as_strict(lot.quality, quality):
            taken = [n for n, part in enumerate(lot.parts) if part.name in lot.taken]
            for shard, line in _lines(ledger, blobs, lot, taken, {name: n_lines[name] for name in refused}):
                refused[shard][line] = 0
    return refused


def _lines(
    ledger: Ledger, blobs: Blobs, lot: Lot, parts: Sequence[int], of: Container[str]
) -> Iterator[tuple[str, int]]:
    """Shard and line of the rows in these parts of a lot, whose answers have not been asked again since; of some shards."""
    names = {row["ordinal"]: row["shard"] for row in ledger.query("plan_shards", job=lot.job, plan=lot.plan)}
    again: dict[str, bytes] = {}
    for name in names.values():
        for row in ledger.query("withdrawals", root=name) if name in of else ():
            if row["seq"] > lot.withdrawn:
                lines = zlib.decompress(row["lines"])
                again[name] = bytes(map(or_, lines, again[name])) if name in again else lines
    for shard, line in answers_in(blobs, lot, parts):
        name = names[shard]
        if name in of and not (name in again and again[name][line]):
            yield name, line


def answers_in(blobs: Blobs, lot: Lot, parts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ordinal of the shard, and line, of a lot's rows in these parts; -1 - n: that break rule n."""
    wanted = pa.array(parts, pa.int16())
    for batch in pq.ParquetFile(blobs.path(lot.rows_blob), pre_buffer=False).iter_batches(_BATCH_ROWS):
        found = batch.filter(pc.is_in(batch["part"], value_set=wanted))
        yield from zip(found["shard"].to_pylist(), found["line"].to_pylist(), strict=True)


class _Drawing:
    """One pass over the answers of a lot. Memory: ten bytes a row, and the rows that may come to be judged."""

    def __init__(self, rules: Rules, strata: str | None, seed: bytes, most: int) -> None:
        self.rows = array("h")  # of every row: the number of its part, or -1 - the number of the rule it breaks
        self.places = array("i"), array("i")  # of every row: the ordinal of the shard that answers it, and the line
        self.broken: Counter[int] = Counter()  # by the number of the rule; behind the rules: refused before
        self._rules, self._strata, self._seed, self._most = rules, strata, seed, most
        self._parts: dict[str, int] = {}
        self._sizes: list[int] = []
        self._heaps: list[list[tuple[int, str, str]]] = []  # the rows of the smallest ranks, the greatest of them first

    def see(self, rows: Iterable[_Answer], refused: Mapping[str, bytearray]) -> None:
        """`refused`: as of `_refused`."""
        for row in rows:
            self.places[0].append(row.ordinal)
            self.places[1].append(row.line)
            if (rule := self._broken(row, refused)) is not None:
                self.broken[rule] += 1
                self.rows.append(-1 - rule)
                continue
            part = self._part(row.text)
            self.rows.append(part)
            self._sizes[part] += 1
            place = f"{row.shard}\0{row.line}\0{row.copy}"
            heap, order = self._heaps[part], -int.from_bytes(gate.rank(self._seed, place))
            if len(heap) < self._most:
                heapq.heappush(heap, (order, row.key, row.text))
            elif self._most and order > heap[0][0]:
                heapq.heapreplace(heap, (order, row.key, row.text))

    def _broken(self, row: _Answer, refused: Mapping[str, bytearray]) -> int | None:
        rule = self._rules.broken(row.key, row.text)
        if rule is None and row.shard in refused and refused[row.shard][row.line]:
            return len(self._rules.words)
        return rule

    def table(self) -> pa.Table:
        """What is known of every row, in source order."""
        shards, lines = (pa.array(column, pa.int32()) for column in self.places)
        return pa.table({"part": pa.array(self.rows, pa.int16()), "shard": shards, "line": lines})

    def _part(self, text: str) -> int:
        name = _stratum(text, self._strata) if self._strata else ""
        if name not in self._parts and len(self._parts) >= _MOST_STRATA:
            name = _REST
        if name not in self._parts:
            self._parts[name] = len(self._parts)
            self._sizes.append(0)
            self._heaps.append([])
        return self._parts[name]

    def done(self, quality: Quality) -> tuple[tuple[Part, ...], list[tuple[str, str, str]]]:
        """The parts, and by place the part, key and answer of the rows that may come to be judged."""
        parts: list[Part] = []
        sample: list[tuple[str, str, str]] = []
        for name, size, heap in zip(self._parts, self._sizes, self._heaps, strict=True):
            plan = plan_for(quality, size)
            parts.append(Part(name, size, len(sample), plan))
            n_drawn = max(plan.most_rows, quality.judge.rows if quality.judge else 0)
            sample += [(name, key, text) for _, key, text in sorted(heap, reverse=True)[:n_drawn]]
        return tuple(parts), sample


def _stratum(text: str, field: str) -> str:
    answer = orjson.loads(text)
    value = answer.get(field) if isinstance(answer, dict) else None
    return (value if isinstance(value, str) else orjson.dumps(value).decode())[:200]


def _functions(rules: Sequence[str], base_dir: Path, job: str) -> dict[str, Function]:
    functions: dict[str, Function] = {}
    for rule in rules:
        if named := function_of(rule):
            try:
                functions[rule] = getattr(imported(named[0], base_dir), named[1])
            except (ValueError, AttributeError) as error:
                hint = "name the job by its file, so that its functions are found beside it"
                raise SpecError([Problem(job, None, None, "quality.rules", str(error))], hint=hint) from None
    return functions


def _asked(ledger: Ledger, blobs: Blobs, job: str, plan: str, rows_blob: str, keys: Sequence[str]) -> dict[str, str]:
    """What was asked for these rows."""
    wanted = pa.array(keys, pa.string())
    places: dict[int, list[tuple[int, str]]] = {}  # by ordinal of the shard
    file = pq.ParquetFile(blobs.path(rows_blob), pre_buffer=False)
    for batch in file.iter_batches(65_536, columns=["key", "shard", "line"]) if keys else ():
        found = batch.filter(pc.is_in(batch["key"], value_set=wanted)).to_pydict()
        for key, shard, line in zip(found["key"], found["shard"], found["line"], strict=True):
            places.setdefault(shard, []).append((line, key))
    asked: dict[str, str] = {}
    for shard in ledger.query("plan_shards", job=job, plan=plan):
        lines = places.get(shard["ordinal"], [])
        requests = read_lines(blobs.path(ledger.shard_row(shard["shard"])["requests_blob"])) if lines else ()
        numbers = sorted({line for line, _ in lines})
        bodies = dict(zip(numbers, landing.subset(requests, numbers), strict=True))
        asked |= {key: _spoken(bodies[line]) for line, key in lines}
    return asked


def _spoken(body: bytes) -> str:
    """What a request says beside its system message."""
    request = orjson.loads(body)
    messages = request.get("messages") or request.get("input") or []
    if isinstance(messages, str):
        return messages
    return "\n\n".join(str(m.get("content", "")) for m in messages if m.get("role") != "system")
