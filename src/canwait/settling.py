"""What an ended batch means for its rows and its money. Pure: decisions with their reasons, carried out by the engine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from itertools import compress
from typing import Literal

from .lifecycle import Retry, retry
from .types import Answer, Batch, BatchStatus, Outcome, Shard, Usage

# Codes of a batch that was refused while it was checked, before any row ran (providers.md 3.1, 3.2).
_CONTENT = frozenset(
    "invalid_json_line duplicate_custom_id missing_required_parameter mismatched_model model_mismatch invalid_url url_mismatch "
    "model_not_found invalid_request streaming_unsupported too_many_tasks empty_file empty_batch input_modified "
    "input_no_permissions".split()
)
_QUEUE_FULL = "token_limit_exceeded"
_QUEUE_LIMIT = re.compile(r"limit: ([1-9][\d,]{0,19}) enqueued tokens", re.IGNORECASE | re.ASCII)  # providers.md 3.1

# Causes under which the model ran: the answer is unusable, yet it is billed.
_RAN = frozenset({"length", "content_filter", "refused", "empty", "malformed", "schema", "conflict", "missing"})


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a line."""

    outcome: Outcome
    cause: str | None
    detail: str | None
    billed: Literal["stated", "nothing", "unknown"]


def fate_of(answer: Answer) -> Fate:
    """What one decoded line means. An answer without usage may have been billed: that is unknown, not zero."""
    if answer.usage is not None:
        billed: Literal["stated", "nothing", "unknown"] = "stated"
    elif answer.outcome is Outcome.OK or answer.cause in _RAN:
        billed = "unknown"
    else:
        billed = "nothing"
    return Fate(answer.outcome, answer.cause, answer.detail, billed)


def fate_of_absent(batch: Batch) -> Fate:
    """What it means that an ended batch did not return a line.

    A batch refused while it was checked ran nothing. In every other case the row may have run and been billed.
    """
    if batch.status is BatchStatus.FAILED and not batch.outputs:
        detail = f"{batch.error_code}: {batch.error}" if batch.error_code else batch.error
        if batch.error_code == _QUEUE_FULL:
            return Fate(Outcome.FAILED, "rate_limit", detail, "nothing")
        if batch.error_code in _CONTENT:
            return Fate(Outcome.FAILED, "validation", detail, "nothing")
        return Fate(Outcome.FAILED, "server_error", detail or "the provider failed the whole batch", "unknown")
    return Fate(Outcome.MISSING, "missing", f"the batch ended {batch.status.value} without this row", "unknown")


def was_never_run(batch: Batch) -> bool:
    """Whether a batch ended only because the queue was full: then its rows were not tried, and nothing was spent."""
    return batch.status is BatchStatus.FAILED and batch.error_code == _QUEUE_FULL and not batch.outputs


def never_fits(shard: Shard, said: str | None) -> bool:
    """Whether a queue said that it takes fewer tokens in all than a shard may have: then no waiting helps, halves do.

    A limit below one row of the shard is not believed, for no half would fit it.
    """
    found = _QUEUE_LIMIT.search(said or "")
    return found is not None and (
        shard.input_bound <= int(found[1].replace(",", "")) * shard.n_lines < shard.input_bound * shard.n_lines
    )


class Fates(MutableMapping[int, Fate]):
    """The fates of a shard's lines, in one byte a line. Of the details of like fates only the first is kept."""

    def __init__(self, n_lines: int) -> None:
        self.codes = bytearray(n_lines)  # by line: which of `kinds`; 0: no fate yet
        self.kinds = [Fate(Outcome.PENDING, None, None, "nothing")]
        self._code: dict[tuple[Outcome, str | None, str], int] = {}

    def code(self, fate: Fate) -> int:
        """The code of such a fate."""
        like = fate.outcome, fate.cause, fate.billed
        if (code := self._code.get(like)) is None:
            code = self._code[like] = len(self.kinds)
            self.kinds.append(fate)
        return code

    def lines(self, wanted: Callable[[Fate], bool]) -> list[int]:
        """The lines, ascending, with a fate of the wanted kinds."""
        chosen = bytes(code > 0 and wanted(kind) for code, kind in enumerate(self.kinds)).ljust(256, b"\0")
        return list(compress(range(len(self.codes)), self.codes.translate(chosen)))

    def absent(self) -> list[int]:
        """The lines, ascending, without a fate."""
        return [line for line, code in enumerate(self.codes) if not code] if 0 in self.codes else []

    def outcomes(self) -> bytes:
        """One byte a line: its outcome."""
        return bytes(self.codes.translate(bytes(kind.outcome for kind in self.kinds).ljust(256, b"\0")))

    def tally(self) -> dict[str, int]:
        """How many lines ended for each cause; "ok" for none."""
        counts: Counter[str] = Counter()
        for code, kind in enumerate(self.kinds[1:], 1):
            counts[kind.cause or "ok"] += self.codes.count(code)
        return {cause: n for cause, n in counts.items() if n}

    def __getitem__(self, line: int) -> Fate:
        if line not in self:
            raise KeyError(line)
        return self.kinds[self.codes[line]]

    def __setitem__(self, line: int, fate: Fate) -> None:
        self.codes[line] = self.code(fate)

    def __delitem__(self, line: int) -> None:
        self.codes[line] = 0

    def __contains__(self, line: object) -> bool:
        return isinstance(line, int) and 0 <= line < len(self.codes) and self.codes[line] > 0

    def __iter__(self) -> Iterator[int]:
        return (line for line, code in enumerate(self.codes) if code)

    def __len__(self) -> int:
        return len(self.codes) - self.codes.count(0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to record for each line, and which are sent again."""

    outcomes: bytes  # by line; PENDING for those that are sent again
    again: tuple[int, ...]  # ascending
    attempt: int  # of the shard that sends them again
    pause: str | None
    moved: tuple[int, ...] = ()  # ascending: sent again too, and that is no attempt of theirs


_CUT_OFF = frozenset({Outcome.EXPIRED, Outcome.CANCELLED, Outcome.MISSING})


def decide(fates: Fates, batch: Batch, *, attempt: int, attempts: int, sending: bool, moving: bool = False) -> Verdict:
    """Which lines of an ended shard are sent again, by cause. `sending`: the job may still send at all; `moving`: the batch
    was given up to have its rows answered elsewhere, so those it did not come to are no worse for it."""
    untried = was_never_run(batch)
    pause: str | None = None
    tried = False  # whether sending again is another attempt; after a full queue or an empty account it is the same one
    going: set[Fate] = set()
    cut_off: set[Fate] = set()
    for code, fate in enumerate(fates.kinds):
        rule = retry(fate.outcome, fate.cause)
        if rule is Retry.NEVER or code not in fates.codes:
            continue
        if rule is Retry.PAUSE and pause is None:
            pause = f"row refused: {fate.detail or fate.cause}"
        if sending and moving and fate.outcome in _CUT_OFF:
            cut_off.add(fate)
        elif sending and (rule is Retry.PAUSE or untried or attempt < attempts):
            going.add(fate)
            tried |= rule is Retry.AGAIN and not untried
    again, moved = fates.lines(going.__contains__), fates.lines(cut_off.__contains__)
    outcomes = bytearray(fates.outcomes())
    for line in (*again, *moved):
        outcomes[line] = Outcome.PENDING
    return Verdict(bytes(outcomes), tuple(again), attempt + tried, pause, tuple(moved))


def batch_usage_counts(batch: Batch, rows: Usage) -> bool:
    """Whether the batch's own bill can stand for the rows it did not return: it covers at least what the rows state."""
    total = batch.usage
    return total is not None and total.input_tokens >= rows.input_tokens and total.output_tokens >= rows.output_tokens
