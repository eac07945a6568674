"""A judge model looks at a lot's sample before people do: as a job of its own, under its own limit, in the same ledger.

Its word decides which rows people look at and nothing else, so whatever it says, or does not say, opens no gate. Where it
cannot be heard people judge alone, and the verdict says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from . import judging
from .blobs import Blobs
from .checks import JUDGED
from .clock import Clock
from .codec import terms_from_json
from .errors import BudgetExceeded, HumanNeeded, KeyRefused, SourceError, SpecError, UnknownPrice
from .inspection import label_rows
from .ledger import Ledger
from .load import answers
from .lots import Lot, judge_name
from .sources import RowSource
from .sources.frames import from_frame
from .stratified import BAD, GOOD, NOTHING, UNSURE, Stratified, stratified
from .types import BudgetSpec, Job, Plan, Source, Urgency

_WORDS = {"good": GOOD, "bad": BAD, "unsure": UNSURE}
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": list(_WORDS)}
    },  # no reason: it would quote what nobody may read yet
    "required": ["verdict"],
    "additionalProperties": False,
}


def job_of(lot: Lot, owner: str | None, base_dir: Path) -> Job:
    """What is asked of the judge model: one word on every row of the sample, once."""
    judge = lot.quality.judge
    assert judge is not None
    return Job(
        name=judge_name(lot.job),
        source=Source("frame:", "key"),
        provider=judge.provider,
        model=judge.model,
        prompt=(("user", judge.prompt),),
        max_output_tokens=judge.max_output_tokens,
        urgency=Urgency.BATCH,
        budget=BudgetSpec(judge.micros, None, None),
        output_schema=_SCHEMA,
        tiers=(judge.tier,) if judge.tier else (),
        attempts=1,
        owner=owner,
        base_dir=base_dir,
    )


def rows_of(blobs: Blobs, lot: Lot) -> RowSource:
    """The sample by key: its order, which decides what people see first, is not the judge model's to know."""
    rows = sorted(map(json.loads, blobs.lines(lot.sample_blob)), key=lambda row: str(row["key"]))
    return from_frame(pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in sorted(JUDGED)}))


def hear(
    ledger: Ledger, blobs: Blobs, lot: Lot, begin: Callable[[], Plan], run: Callable[[], bool], clock: Clock
) -> None:
    """Ask the judge model, and keep what people are to look at. Safe to repeat; unheard while it has not ended.

    `begin` opens its job, having sent nothing; `run` goes on with it, and says whether nothing of it is open.
    """
    if (came := _asked(ledger, blobs, lot, begin, run)) is not None:
        judging.hear(ledger, lot.id, *came, clock.now())


def _asked(
    ledger: Ledger, blobs: Blobs, lot: Lot, begin: Callable[[], Plan], run: Callable[[], bool]
) -> tuple[str, Stratified | None] | None:
    """What came of it in words, and what people look at, if not the plain sample; None: it has not ended."""
    quality, n_rows, n_labels, name = lot.quality, lot.parts[0].n_rows, label_rows(lot.quality), judge_name(lot.job)
    if n_rows <= n_labels:
        return f"of {n_rows} rows people judge without a judge model", None
    if _is_taken(ledger, name):
        return f"people judge alone, for another job is called {name}", None
    try:
        plan = begin()
    except (BudgetExceeded, HumanNeeded, KeyRefused, SourceError, SpecError, UnknownPrice) as error:
        return f"people judge alone, for the judge model was not asked: {error}", None
    if not run():
        return None
    said = _said(ledger, blobs, lot, plan.digest)
    n_heard = len(said) - said.count(NOTHING)
    if 2 * n_heard < len(said):
        return f"people judge alone, for the judge model answered {n_heard} of {len(said)} rows", None
    chosen = stratified(n_rows, float(quality.refuse_if_bad_rate), float(quality.sure), said, n_labels)
    if chosen is None:
        return f"people judge alone, for {n_labels} rows that a judge model chose could not be so sure", None
    return f"the judge model flagged {len(said) - said.count(GOOD)} of {len(said)} rows", chosen


def _is_taken(ledger: Ledger, name: str) -> bool:
    """Whether somebody else's job has this name: it is not opened anew."""
    for job in ledger.query("job", name=name):
        for plan in ledger.query("plan", job=name, digest=job["plan"]):
            return terms_from_json(json.loads(plan["terms"])).output_schema != _SCHEMA
    return False


def _said(ledger: Ledger, blobs: Blobs, lot: Lot, plan: str) -> str:
    """A letter by place of the sample; nothing for rows without a usable answer, and where its job is about others by now."""
    words: dict[str, str] = {}
    if ledger.job(judge_name(lot.job))["plan"] == plan:
        with answers(ledger, blobs, judge_name(lot.job)) as found:
            words = {key: _WORDS[json.loads(text)["verdict"]] for key, text in found.texts()}
    return "".join(words.get(row["key"], NOTHING) for row in map(json.loads, blobs.lines(lot.sample_blob)))
