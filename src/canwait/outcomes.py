"""What became of a job and of its rows, as Python values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .halting import is_asked
from .lots import Verdict
from .types import JobState

if TYPE_CHECKING:
    from .inspection import Through
    from .views import Figures


@dataclass(frozen=True, slots=True)
class Ok:
    """A row with a usable answer: `value` is the output model, a mapping of the output's fields, or plain text."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """A row without one: `cause` as in lifecycle.CAUSES, `detail` in the provider's words.

    Also one that its gate left out: `cause` is `rule`, and `detail` the rule that the answer breaks, `language`, or `gate`.
    """

    key: str
    cause: str | None
    outcome: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class Results:
    """What a job has by now. While it runs that is a part, and every row in it is final."""

    state: JobState
    n_rows: int  # of the dataset
    n_ended: int  # of them: with an answer, or with a cause why not
    rows: Iterator[Ok | Failed]  # the ended ones in source order; those that ended meanwhile too

    @property
    def complete(self) -> bool:
        return self.n_ended == self.n_rows

    @property
    def share(self) -> float:
        """Of the rows that have ended, 0 to 1."""
        return self.n_ended / self.n_rows if self.n_rows else 1.0


def failed_rows(rows: Through) -> Iterator[Failed]:
    for batch in rows.failed():
        for record in batch.to_pylist():
            yield Failed(record[rows.columns.key], record["_cause"], record["_outcome"], record["_detail"])


def standing(figures: Figures, *, cancelled: bool) -> tuple[JobState, str]:
    """Where a job stands, and why."""
    words = f"{figures.ok} ok, {figures.failed} failed, {figures.missing} missing of {figures.rows}"
    if not figures.finished:
        if figures.paused and is_asked(figures.paused):
            return JobState.GATE, figures.paused
        return JobState.IN_PROGRESS, figures.paused or (figures.blocked[0] if figures.blocked else "shards are open")
    if cancelled:
        return JobState.CANCELLED, words
    if figures.withheld:
        served = figures.served and f"readers go on with publication {figures.served}"
        return JobState.EXPIRED, f"{words}; late: {served or 'nothing is loaded'}"
    if figures.gate is not None and figures.gate.verdict is not Verdict.ACCEPTED:
        return (JobState.REFUSED if figures.gate.verdict else JobState.GATE), figures.gate.reason
    if figures.ok == figures.rows:
        return JobState.COMPLETED, words
    return (JobState.EXPIRED if figures.ok == 0 and figures.expired else JobState.COMPLETED_WITH_FAILURES), words
