"""The life of a batch: drawn once when it is created, then a pure function of time (microseconds since 1970)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .scenario import draw

SECOND = 1_000_000
Phase = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED: frozenset[Phase] = frozenset({"failed", "completed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One accepted batch, as the state keeps it."""

    seq: int  # from 0, over all accounts
    id: str
    shape: str  # "openai" or "anthropic"
    account: str
    endpoint: str
    input_file: str  # name in the folder: one request a line
    input_file_id: str | None
    metadata: Mapping[str, str] | None
    model: str | None  # None: rows of several models, or no row could be read
    token: str  # what the custom ids begin with
    n_rows: int
    first_row: int  # place of line 0 among all rows ever accepted
    enqueued_tokens: int
    problem: Mapping[str, Any] | None  # why validation fails: {code, line, message, param}
    ending: str | None  # one of scenario.ENDINGS
    traits: tuple[str, ...]  # of scenario.TRAITS, and "cancel_race"
    n_done: int  # rows that have run when it ends
    offset: int  # rows run in line order, beginning here
    created_us: int
    validated_us: int
    finalizing_us: int | None  # None: never
    ended_us: int | None
    expires_us: int
    cancel_us: int | None = None
    cancelled_us: int | None = None
    outcome: Mapping[str, Any] | None = None  # counts, usage, files; set once when it has ended
    deleted: bool = False

    def phase(self, now_us: int) -> Phase:
        """By the clock alone; OpenAI's words, which Anthropic's are a coarser form of."""
        if self.cancelled_us is not None:
            return "cancelled" if now_us >= self.cancelled_us else "cancelling"
        if now_us < self.validated_us:
            return "validating"
        if self.problem:
            return "failed"
        if self.finalizing_us is None or self.ended_us is None or now_us < self.finalizing_us:
            return "in_progress"
        if now_us < self.ended_us:
            return "finalizing"
        return "expired" if self.ending in ("expiry", "expiry_empty") else "completed"

    @property
    def terminal_us(self) -> int | None:
        """When it ends; None: never."""
        if self.cancelled_us is not None:
            return self.cancelled_us
        return self.validated_us if self.problem else self.ended_us

    @property
    def over_us(self) -> int:
        """When its rows were over, for the time stamps in them."""
        return self.terminal_us or self.expires_us

    def rows_run(self, now_us: int) -> int:
        """How many rows have run by now, evenly over the time it is in progress."""
        until_us = self.finalizing_us or self.expires_us
        if self.cancel_us is not None:
            return self.n_done
        if now_us < self.validated_us or self.problem:
            return 0
        return min(self.n_done, self.n_done * (now_us - self.validated_us) // max(1, until_us - self.validated_us))

    def ran(self, line: int) -> bool:
        """Whether the row of `line` (from 0) has run when the batch has ended."""
        return (line + self.offset) % self.n_rows < self.n_done

    @property
    def lost_line(self) -> int | None:
        """The row a cancel race loses: the first that ran."""
        return -self.offset % self.n_rows if "cancel_race" in self.traits and self.n_done else None

    def cancelled(
        self, now_us: int, seed: int, race: bool, *, lag_us: int | None = None, finishes: bool = False
    ) -> Batch:
        """Asked to stop now: it takes `lag_us`, up to ten minutes unless stated, and the rows that have run stay.

        `finishes`: until then rows go on running.
        """
        over_us = now_us + (int((10 + 590 * draw(seed, "cancel", self.seq)) * SECOND) if lag_us is None else lag_us)
        return replace(
            self,
            n_done=self.rows_run(over_us if finishes else now_us),
            cancel_us=now_us,
            cancelled_us=over_us,
            traits=(*self.traits, "cancel_race") if race else self.traits,
        )


@dataclass(frozen=True, slots=True)
class Course:
    """The drawn part of a batch's life."""

    n_done: int
    offset: int
    validated_us: int
    finalizing_us: int | None
    ended_us: int | None


def draw_course(
    rng: random.Random, *, ending: str | None, n_rows: int, created_us: int, expires_us: int, median_us: int, sync: bool
) -> Course:
    """`sync`: rows are checked at create, so that validation takes no time."""
    validated_us = created_us + (0 if sync else int(rng.uniform(2, 30) * SECOND))
    run_us = int(median_us * rng.lognormvariate(0, 0.5))
    finalizing_us = min(validated_us + run_us, expires_us - 60 * SECOND)
    ended_us = finalizing_us + int(rng.uniform(1, 8) * SECOND)
    offset = rng.randrange(n_rows) if n_rows else 0
    some = min(n_rows - 1, max(1, int(n_rows * rng.uniform(0.2, 0.9)))) if n_rows > 1 else 0
    match ending:
        case "expiry":
            return Course(some, offset, validated_us, expires_us, expires_us)
        case "expiry_empty":
            return Course(0, offset, validated_us, expires_us, expires_us)
        case "never_ends":
            return Course(some, offset, validated_us, None, None)
    return Course(n_rows, offset, validated_us, finalizing_us, ended_us)
