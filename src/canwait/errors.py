"""The errors of canwait. An error's docstring is its message, its fields are the facts, its hint is the way out.

CanwaitError                    exit  1
  SpecError                           2   a job file or an option is wrong; carries every problem at once
  SourceError                         2   rows cannot be read, or cannot become requests
  PlanStale                           2   the approved plan is no longer what would run
  UnknownPrice                        2   no dated, sourced price for this offer
  UnboundedRequest                    2   a request without a bound on its output
  NotFound                            2   no job, shard or plan of that name
  HumanNeeded                         3   approval or a decision is needed and input is off
  JobPaused                           3   out of credit or a spend cap at the provider
  GatePending                         3   finished, but the gate has not been passed
  AlreadyJudged                       3   somebody else judged this row meanwhile
  KeyRefused                          4   the provider's key is missing or refused
  BudgetExceeded                      5   a budget refused: nothing was sent
  BudgetFrozen                        5   a bill exceeded its reservation; a person must look
  GateRefused                         7   judged, and refused: nothing of it is loaded or can be read
  StaleResult                         8   older than its reader accepts: nothing was served
  NotBuilt                            8   nothing of the job was accepted yet
  NotFinished                         9   not finished before the timeout; the job goes on
  LedgerError                         1
    LedgerUnreadable                  1   the database cannot be opened or is not ours
    LeaseLost                         1   another caller took the shard over; nothing was written
    Crowded                           1   a provider's limit on what is in flight holds the shard
    InvalidMove                       1   our own mistake: a move lifecycle.py does not allow
  BlobError                           1   a blob is missing, damaged or cannot be written
  SinkError                           1   rows could not be loaded; the target is as it was
    SinkBusy                          1   another load of the target is in progress
  ProviderError                       1   base of what an adapter raises; says what is certain:
    Rejected                          1     certainly not accepted, and repeating will not help
      TooLarge                        1       as a whole; smaller files may be
    Busy                              1     certainly not accepted; repeating later may help
    OutOfCredit                       1     certainly not accepted; the account must be mended
    Unreachable                       1     certainly never arrived
    Ambiguous                         1     may have arrived
    CannotTell                        1     `find` cannot prove presence or absence
    BatchUnknown                      1     the provider does not know this batch
    Garbled                           1     the reply is not what the protocol says
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class CanwaitError(Exception):
    """{message}"""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "unexpected"
    hint: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, /, *, hint: str | None = None, **fields: Any) -> None:
        if message is not None:
            fields.setdefault("message", message)
        self.fields = fields
        text = message if message is not None else (type(self).__doc__ or "").format(**fields)
        self.own_hint = hint if hint is not None else (self.hint.format(**fields) if self.hint else None)
        super().__init__(text)

    @property
    def problem(self) -> dict[str, Any]:
        """RFC 9457 problem details of this error."""
        facts = {k: v for k, v in self.fields.items() if isinstance(v, str | int | float | bool | None)}
        return {
            "type": f"urn:canwait:error:{self.code}",
            "title": self.code.replace("_", " "),
            "detail": str(self),
            "code": self.code,
            "exit_code": self.exit_code,
            "hint": self.own_hint,
            **{k: v for k, v in facts.items() if k != "message"},
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one place of a file."""

    file: str
    line: int | None  # counted from 1
    column: int | None  # counted from 1
    field: str | None
    message: str  # what was found, what was expected, did you mean

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class _Problems(CanwaitError):
    def __init__(self, problems: list[Problem], /, *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)), hint=hint)

    @property
    def problem(self) -> dict[str, Any]:
        rows = [
            {"file": p.file, "line": p.line, "column": p.column, "field": p.field, "message": p.message}
            for p in self.problems
        ]
        return {**super().problem, "problems": rows}


class SpecError(_Problems):
    """Every problem of a job file or an option."""

    exit_code, code = 2, "spec"
    hint = "`canwait schema job` prints what a job file may hold"


class SourceError(_Problems):
    """Rows that cannot be read or cannot become requests."""

    exit_code, code = 2, "source"
    hint = "mend the rows, or the template, and plan again; nothing was sent"


class PlanStale(CanwaitError):
    """Plan {plan} is stale: {why}. Nothing was sent."""

    exit_code, code = 2, "plan_stale"
    hint = "`canwait plan {spec}` shows what would run now"


class UnknownPrice(CanwaitError):
    """No {tier} price is known for {provider}/{model}."""

    exit_code, code = 2, "unknown_price"
    hint = "state it, with its source, in prices.toml beside the job file (docs/prices.md), or choose another model"


class UnboundedRequest(CanwaitError):
    """{what} has no bound on its output, so its worst case is unknown."""

    exit_code, code = 2, "unbounded"
    hint = "set `max_output_tokens`"


class NotFound(CanwaitError):
    """No {what} named {name} in this ledger."""

    exit_code, code = 2, "not_found"
    hint = "`canwait status` lists what there is"


class HumanNeeded(CanwaitError):
    """{what} needs a person, and input is off."""

    exit_code, code = 3, "human_needed"


class JobPaused(CanwaitError):
    """Job {job} is paused: {why}. Nothing more is sent."""

    exit_code, code = 3, "paused"
    hint = "mend what it names, then run the job again: what is paid is kept"


class GatePending(CanwaitError):
    """Job {job} waits to be judged; nothing of it is loaded or can be read before."""

    exit_code, code = 3, "gate_pending"
    hint = "`canwait inspect {job}` shows rows to judge, once it has finished"


class AlreadyJudged(CanwaitError):
    """Row {place} of job {job} cannot be judged: {why}."""

    exit_code, code = 3, "already_judged"
    hint = "`canwait inspect {job}` shows what is left to judge"


class GateRefused(CanwaitError):
    """Job {job} was refused by its gate: {why}. Nothing of it is loaded or can be read."""

    exit_code, code = 7, "gate_refused"
    hint = (
        "`canwait inspect {job}` shows rows and causes; mend the prompt and run the job again, which makes another lot, or ask "
        "the refused rows again: `canwait run JOB.YAML --only rejected`"
    )


class KeyRefused(CanwaitError):
    """{provider} refused the key in {variable}: {why}"""

    exit_code, code = 4, "key_refused"
    hint = "set {variable} or {variable}_FILE, then run again; nothing was sent"


class BudgetExceeded(CanwaitError):
    """{what} needs ${needed}; ${free} of ${limit} are free in {budget}."""

    exit_code, code = 5, "budget_exceeded"
    hint = "raise the limit, or plan with fewer rows or a smaller `max_output_tokens`"


class BudgetFrozen(CanwaitError):
    """Budget {budget} is frozen: {why}"""

    exit_code, code = 5, "budget_frozen"
    hint = "look at `canwait budget show`, then `canwait budget thaw {budget}`"


class StaleResult(CanwaitError):
    """Version {version} of {job} is {why}. Nothing was served."""

    exit_code, code = 8, "stale"
    hint = "run the job again; `canwait fresh {job}` shows what its readers accept"


class NotBuilt(CanwaitError):
    """There is nothing of {job} to read: {why}."""

    exit_code, code = 8, "not_built"
    hint = "run the job; `canwait status {job}` shows where it stands"


class NotFinished(CanwaitError):
    """Job {job} has not finished; it goes on."""

    exit_code, code = 9, "not_finished"
    hint = "`canwait run` again goes on; `canwait cancel {job}` stops it"


class LedgerError(CanwaitError):
    """{message}"""

    code = "ledger"


class LedgerUnreadable(LedgerError):
    """The ledger at {url} cannot be used: {why}"""

    code = "ledger_unreadable"
    hint = "check CANWAIT_DB; a damaged file is never repaired in place: restore a backup"


class LeaseLost(LedgerError):
    """Shard {shard} is held by another caller now; nothing was written."""

    code = "lease_lost"


class Crowded(LedgerError):
    """{why}"""

    code = "crowded"


class InvalidMove(LedgerError):
    """Shard {shard} cannot go from {old} to {new}."""

    code = "invalid_move"


class BlobError(CanwaitError):
    """{message}"""

    code = "blob"


class SinkError(CanwaitError):
    """{message}"""

    code = "sink"


class SinkBusy(SinkError):
    """{message}"""

    code = "sink_busy"


class ProviderError(CanwaitError):
    """{message}"""

    code = "provider"


class Rejected(ProviderError):
    """{message}"""

    code = "rejected"


class TooLarge(Rejected):
    """{message}"""

    code = "too_large"


class Busy(ProviderError):
    """{message}"""

    code = "busy"

    def __init__(self, message: str, /, *, retry_after_s: float | None = None, **fields: Any) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, **fields)


class OutOfCredit(ProviderError):
    """{message}"""

    code = "out_of_credit"


class Unreachable(ProviderError):
    """{message}"""

    code = "unreachable"


class Ambiguous(ProviderError):
    """{message}"""

    code = "ambiguous"


class CannotTell(ProviderError):
    """{message}"""

    code = "cannot_tell"


class BatchUnknown(ProviderError):
    """{message}"""

    code = "batch_unknown"


class Garbled(ProviderError):
    """{message}"""

    code = "garbled"
