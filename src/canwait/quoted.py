"""A plan and a job's money as Python values in USD, with their words."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from .forecast import Outlook
from .plan import explain
from .price import format_usd
from .types import Job, JudgeModel, Plan

if TYPE_CHECKING:
    from .changes import Since
    from .schedule import Ready
    from .views import Figures


@dataclass(frozen=True, slots=True)
class Cost:
    """A job's money in USD: what was paid since its first run, and what the new work of its latest plan costs in all."""

    confirmed: Decimal
    reserved: Decimal
    unknown: Decimal
    wasted: Decimal
    expected: Decimal
    likely: Decimal | None  # at most, 19 times in 20; None: nothing random is known yet
    guaranteed: Decimal | None  # at most, at least 95 times in 100
    cannot_exceed: Decimal
    basis: str  # what these rest on, or why one is missing


def cost_of(f: Figures, o: Outlook) -> Cost:
    return Cost(
        confirmed=usd(f.confirmed_micros),
        reserved=usd(f.reserved_micros),
        unknown=usd(f.unknown_micros),
        wasted=usd(f.wasted_micros),
        expected=usd(o.expected_micros),
        likely=optional_usd(o.likely_micros),
        guaranteed=optional_usd(o.guaranteed_micros),
        cannot_exceed=usd(o.cannot_exceed_micros),
        basis=o.basis,
    )


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A plan, with its money in USD and its words. Printing it shows the whole plan.

    Of a plan that runs already the four numbers are for all of its work, what is paid and what is still to be paid.
    """

    value: Plan
    job: Job
    outlook: Outlook
    since: Since | None = None  # what is different from the last publication; None: there is none, or it was not asked
    ready: Ready | None = None  # when its rows are back; None: nothing is known, or it was not asked
    late: str | None = None  # what is done about rows that are not back in time; None: they are waited for

    @property
    def id(self) -> str:
        return self.value.id

    @property
    def worst_usd(self) -> Decimal:
        """One attempt of every new row, input and output at their bounds."""
        return usd(self.value.worst_micros)

    @property
    def expected_usd(self) -> Decimal:
        return usd(self.outlook.expected_micros)

    @property
    def likely_usd(self) -> Decimal | None:
        return optional_usd(self.outlook.likely_micros)

    @property
    def guaranteed_usd(self) -> Decimal | None:
        return optional_usd(self.outlook.guaranteed_micros)

    @property
    def cannot_exceed_usd(self) -> Decimal:
        return usd(self.outlook.cannot_exceed_micros)

    @property
    def judge(self) -> JudgeModel | None:
        """Of its gate: a job of its own once this one has ended, under a limit that is in none of the other figures."""
        return self.job.quality.judge if self.job.quality else None

    @property
    def judge_usd(self) -> Decimal | None:
        """The limit of its judge model; None: it has none."""
        return None if self.judge is None else usd(self.judge.micros)

    def explain(self) -> str:
        ready = None if self.ready is None else self.ready.words.removeprefix("ready ")
        since = None if self.since is None else str(self.since)
        more = {"cost": str(self.outlook), "judge": self._judge(), "ready": ready, "late": self.late, "since": since}
        return explain(self.value, self.job, more | {"note": "; ".join(self.outlook.notes)})

    __str__ = __repr__ = explain

    def _judge(self) -> str | None:
        if (judge := self.judge) is None:
            return None
        rows = f"{judge.provider}/{judge.model} looks at {min(judge.rows, self.value.n_rows):,} rows at most"
        return f"${format_usd(judge.micros)} at most, besides: {rows}, as a job of its own once these have ended"


def usd(micros: int) -> Decimal:
    return Decimal(format_usd(micros))


def optional_usd(micros: int | None) -> Decimal | None:
    return None if micros is None else usd(micros)
