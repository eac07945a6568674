"""What an ended batch means for its rows and its money. Pure: decisions with their reasons, carried out by the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .lifecycle import Retry, retry
from .types import Answer, Batch, BatchStatus, Outcome, Usage

# Codes of a batch that was refused while it was checked, before any row ran (providers.md 3.1, 3.2).
_CONTENT = frozenset(
    "invalid_json_line duplicate_custom_id missing_required_parameter mismatched_model model_mismatch invalid_url url_mismatch "
    "model_not_found invalid_request streaming_unsupported too_many_tasks empty_file empty_batch input_modified "
    "input_no_permissions".split()
)
_QUEUE_FULL = "token_limit_exceeded"

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to record for each line, and which are sent again."""

    outcomes: Mapping[int, Outcome]  # PENDING for lines that are sent again
    again: tuple[int, ...]
    attempt: int  # of the shard that sends them again
    pause: str | None


def decide(fates: Mapping[int, Fate], batch: Batch, *, attempt: int, attempts: int, sending: bool) -> Verdict:
    """Which lines of an ended shard are sent again, by cause. `sending`: the job may still send at all."""
    pause = next(
        (f"row refused: {f.detail or f.cause}" for f in fates.values() if retry(f.outcome, f.cause) is Retry.PAUSE),
        None,
    )
    untried = was_never_run(batch)
    again: list[int] = []
    tried = False  # whether sending again is another attempt; after a full queue or an empty account it is the same one
    outcomes: dict[int, Outcome] = {}
    for line, fate in fates.items():
        rule = retry(fate.outcome, fate.cause)
        may = rule is Retry.PAUSE or (rule is Retry.AGAIN and (untried or attempt < attempts))
        if may and sending:
            again.append(line)
            tried |= rule is Retry.AGAIN and not untried
            outcomes[line] = Outcome.PENDING
        else:
            outcomes[line] = fate.outcome
    return Verdict(outcomes, tuple(again), attempt + tried, pause)


def batch_usage_counts(batch: Batch, rows: Usage) -> bool:
    """Whether the batch's own bill can stand for the rows it did not return: it covers at least what the rows state."""
    total = batch.usage
    return total is not None and total.input_tokens >= rows.input_tokens and total.output_tokens >= rows.output_tokens
