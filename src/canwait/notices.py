"""What people are told: journal events and findings -> notices, each with its numbers and the command that comes next. Pure.

A notice's id follows from what it says, so the same thing is told once, whoever sees it first. It holds facts of jobs in our
own words. What a provider, a row or an answer says never gets in: a journal's reason does only where its form is one of ours.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Literal, get_args

from .freshness import span
from .types import Event, JobState
from .watching import Finding, Reached, key

Kind = Literal["done", "gate", "refused", "paused", "at_risk", "stuck", "stale", "unread", "budget"]
KINDS: tuple[str, ...] = get_args(Kind)
ENDS = frozenset({"done", "gate", "refused"})  # what whoever asked to be told of one job's end is told

Severity = Literal["info", "warning", "critical"]

_LATE = "(?:; late: (?:nothing is loaded|readers go on with publication \\d+))?"
_COUNTS = re.compile(rf"(\d+) ok, (\d+) failed, (\d+) missing of (\d+){_LATE}")
_BILL = re.compile(r"shard [!-~]{1,80} was billed \$[\d.]+ against \$[\d.]+ reserved")
_REFUSAL = re.compile(r"[^\n]{1,80} needs \$?[\d.]+( tokens)?; \$?[\d.]+ of \$?[\d.]+ are free in [!-~]{1,120}")


@dataclass(frozen=True, slots=True)
class Notice:
    id: str
    kind: str  # one of KINDS, or test
    type: str  # of the webhook event
    severity: Severity
    job: str | None  # None: of no single job
    at: datetime  # when what it tells happened
    title: str
    text: str
    command: str  # what to type next
    facts: Mapping[str, Any]  # its numbers, JSON-ready; money in micros


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger knows of a job when a notice of it is made."""

    spent_micros: int = 0
    held_micros: int = 0
    limit_micros: int | None = None
    n_loaded: int | None = None  # rows that the target had after the last load
    n_rows: int | None = None  # of the lot that stands at the gate
    n_judged: int = 0
    n_bad: int = 0


@dataclass(frozen=True, slots=True)
class Outdated:
    """What a reader would get is older than it accepts, or was taken from it."""

    kind: ClassVar[str] = "stale"
    job: str
    reader: str
    why: str

    @property
    def subject(self) -> str:
        return f"{self.job} {self.reader}"

    @property
    def words(self) -> str:
        return f"stale: {self.why}"


# -------------------------------------------------------------------------------------------------------------- events


def of_event(event: Event, standing: Standing) -> Notice | None:
    """The notice that an event of the journal is worth, if any."""
    match event.kind:
        case "job_state" if event.job is not None:
            return _of_state(event, event.job, standing)
        case "job_paused" if event.job is not None:
            text = "Nothing more is sent until somebody has looked; what is paid is kept."
            return _made(
                event, "paused", "job.paused", "critical", "is paused", text, f"canwait why {event.job}", standing
            )
        case "rescued" | "rescue_refused" | "deadline_missed" if event.job is not None:
            return _of_lateness(event, standing)
        case "budget_refused" if event.job is not None:
            why = event.reason.rstrip(".")
            text = f"{why if _REFUSAL.fullmatch(why) else 'Its budget does not hold its worst case'}. Nothing was sent."
            words = "is refused by its budget"
            return _made(event, "budget", "budget.refused", "critical", words, text, "canwait budget show", standing)
        case "budget_frozen":
            budget = str(event.facts["budget"])
            job = budget.removeprefix("job:") if budget.startswith("job:") else None
            why = event.reason if _BILL.fullmatch(event.reason) else "a bill was higher than what was reserved for it"
            text = f"{why[0].upper()}{why[1:]}. Nothing more is reserved in {budget} until a person thaws it."
            command = f"canwait budget thaw {shlex.quote(budget)}"
            return Notice(
                event.id, "budget", "budget.frozen", "critical", job, event.at, f"Budget {budget} is frozen", text, command,
                {"budget": budget},
            )  # fmt: skip
    return None


def _of_state(event: Event, job: str, s: Standing) -> Notice | None:
    state = event.facts.get("state")
    counts = _COUNTS.fullmatch(event.reason)
    rows = dict(zip(("ok", "failed", "missing", "rows"), map(int, counts.groups()), strict=True)) if counts else {}
    done = [event.reason] if counts else []
    if s.n_loaded is not None:
        done.append(f"{s.n_loaded} rows stand in its target")
    text = f"{'; '.join(done).capitalize()}. {_money(s)}" if done else _money(s)
    match state:
        case JobState.COMPLETED.value:
            return _made(event, "done", "job.completed", "info", "is done", text, f"canwait status {job}", s, **rows)
        case JobState.COMPLETED_WITH_FAILURES.value:
            words = "is done, some rows failed"
            return _made(
                event, "done", "job.completed_with_failures", "warning", words, text, f"canwait why {job}", s, **rows
            )
        case JobState.EXPIRED.value:
            return _made(event, "done", "job.expired", "critical", "has expired", text, f"canwait why {job}", s, **rows)
        case JobState.CANCELLED.value:
            return _made(
                event, "done", "job.cancelled", "info", "is cancelled", text, f"canwait status {job}", s, **rows
            )
        case JobState.GATE.value:
            waiting = (
                "" if s.n_rows is None else f"{s.n_rows} answers wait to be judged, {s.n_judged} of the sample are. "
            )
            text = f"{waiting}Nothing is loaded or can be read before. {_money(s)}"
            return _made(
                event, "gate", "gate.pending", "warning", "waits at its gate", text, f"canwait inspect {job}", s
            )
        case JobState.REFUSED.value:
            of = (
                "" if s.n_rows is None else f"{s.n_bad} of {s.n_judged} judged answers were bad, of {s.n_rows} in all. "
            )
            text = f"{of}Nothing is loaded or can be read. {_money(s)}"
            words = "was refused by its gate"
            return _made(event, "refused", "gate.refused", "critical", words, text, f"canwait inspect {job}", s)
    return None


_AT_DEADLINE = {
    None: "What is out is waited for.",
    "load_without": "What is out is stopped, and what is there is loaded.",
    "last_publication": "What is out is stopped, and readers go on with the last publication.",
    "fail": "What is out is stopped, and nothing is loaded.",
}


def _of_lateness(event: Event, s: Standing) -> Notice:
    facts, command = event.facts, f"canwait why {event.job}"
    if event.kind == "deadline_missed":
        text = f"{facts['n_open']} of its shards were not back. {_AT_DEADLINE[facts['at_deadline']]} {_money(s)}"
        words = "has missed its deadline"
        return _made(
            event, "at_risk", "job.deadline_missed", "critical", words, text, command, s, n_open=facts["n_open"]
        )
    rows, tier = facts["rows"], str(facts["to"]).partition("/")[2]
    most = f"at most +{_usd(facts['worst_micros'])}" if "worst_micros" in facts else "at a cost that is not known"
    if event.kind == "rescued":
        text = f"What would not be back in time is moved to {tier}; {rows} rows are the first, {most}. {_money(s)}"
        return _made(event, "at_risk", "job.rescued", "warning", "is moved to be in time", text, command, s, rows=rows)
    text = f"{rows} rows may be late: they cannot be moved to {tier}, {most}. Nothing is stopped. {_money(s)}"
    return _made(
        event, "at_risk", "job.rescue_refused", "critical", "cannot be moved to be in time", text, command, s, rows=rows
    )


def _made(
    event: Event, kind: Kind, type: str, severity: Severity, words: str, text: str, command: str, s: Standing, /,
    **facts: Any,
) -> Notice:  # fmt: skip
    """A notice of one job's event."""
    money = {"spent_micros": s.spent_micros, "held_micros": s.held_micros, "limit_micros": s.limit_micros}
    title = f"{event.job} {words}"
    return Notice(event.id, kind, type, severity, event.job, event.at, title, text, command, {**facts, **money})


def _money(s: Standing) -> str:
    held = f", {_usd(s.held_micros)} held" if s.held_micros else ""
    limit = f" of {_usd(s.limit_micros)}" if s.limit_micros is not None else ""
    return f"Spent {_usd(s.spent_micros)}{limit}{held}."


# ------------------------------------------------------------------------------------------------------------ findings

_ALARMS: dict[str, tuple[Kind, str, Severity, str]] = {  # kind of a finding -> what is made of it
    "at risk": ("at_risk", "job.at_risk", "warning", "may miss its deadline"),
    "stuck": ("stuck", "job.stuck", "warning", "is stuck"),
    "stale": ("stale", "result.stale", "warning", "is stale"),
    "unconsumed": ("unread", "result.unread", "info", "is not read"),
    "budget": ("budget", "budget.reached", "warning", "has used much of its budget"),
    "drift": ("budget", "budget.drift", "warning", "costs more than planned"),
}
ALARMS = frozenset(_ALARMS)


def of_finding(finding: Finding, job: str | None, since: datetime, ledger: str) -> Notice | None:
    """The notice of an alarm that was raised at `since`; None for a finding that is no alarm, such as slow."""
    if finding.kind not in _ALARMS:
        return None
    kind, type, severity, words = _ALARMS[finding.kind]
    identity = f"{ledger} {key(finding)} {since.isoformat()}"
    who = job or finding.subject
    if isinstance(finding, Reached):
        who = job or finding.budget
        words = "may need much of its budget" if finding.what == "guaranteed" else words
    fresh = f"canwait fresh {job}"
    commands = {
        "stale": fresh, "unconsumed": fresh, "budget": "canwait budget show", "drift": f"canwait status {job}",
    }  # fmt: skip
    return Notice(
        f"alm_{hashlib.sha256(identity.encode()).hexdigest()[:24]}", kind, type, severity, job, since, f"{who} {words}",
        finding.words, commands.get(finding.kind, f"canwait why {job}"), {"subject": finding.subject},
    )  # fmt: skip


def proof(id: str, at: datetime) -> Notice:
    """What is sent to see whether a target can be reached."""
    text = "Whoever reads this is told what happens to jobs. Nothing has happened now."
    return Notice(
        id,
        "test",
        "canwait.test",
        "info",
        None,
        at,
        "A test of canwait's notifications",
        text,
        "canwait notify --log",
        {},
    )


# --------------------------------------------------------------------------------------------------- as it is delivered


def letter(notice: Notice) -> str:
    """Its text for a person."""
    return f"{notice.text}\n\n    {notice.command}\n"


def payload(notice: Notice) -> dict[str, Any]:
    """Its webhook body, in the form that Standard Webhooks proposes."""
    data = {
        "id": notice.id,
        "kind": notice.kind,
        "severity": notice.severity,
        "job": notice.job,
        "title": notice.title,
        "text": notice.text,
        "command": notice.command,
        "facts": dict(notice.facts),
    }
    return {"type": notice.type, "timestamp": notice.at.isoformat(), "data": data}


def from_payload(body: Mapping[str, Any]) -> Notice:
    data = body["data"]
    same = {name: data[name] for name in ("id", "kind", "severity", "job", "title", "text", "command", "facts")}
    return Notice(type=body["type"], at=datetime.fromisoformat(body["timestamp"]), **same)


def _usd(micros: int) -> str:
    return (
        f"${Decimal(micros).scaleb(-6):,.2f}" if micros >= 10_000 or not micros else f"${Decimal(micros).scaleb(-6):f}"
    )


def _span(seconds: float) -> str:
    return span(timedelta(seconds=seconds))
