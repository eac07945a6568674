"""What may follow what: the moves of a shard, and what each cause of a failed row allows. Two tables, no logic elsewhere."""

from __future__ import annotations

from enum import Enum

from .types import Outcome, ShardState

S = ShardState

MOVES: dict[ShardState, frozenset[ShardState]] = {
    S.PLANNED: frozenset({S.SUBMITTING, S.CANCELLED}),
    S.SUBMITTING: frozenset({S.SUBMITTED, S.PLANNED, S.REFUSED, S.CANCELLED}),  # PLANNED: certainly not arrived
    S.SUBMITTED: frozenset({S.ENDED}),
    S.ENDED: frozenset({S.SETTLED}),
    S.SETTLED: frozenset(),
    S.REFUSED: frozenset(),
    S.CANCELLED: frozenset(),
}

OPEN = frozenset({S.PLANNED, S.SUBMITTING, S.SUBMITTED, S.ENDED})


class Retry(Enum):
    """What may be done about a failed row without asking anybody."""

    AGAIN = "again"  # send it again while attempts last
    NEVER = "never"  # the same request will fail the same way
    PAUSE = "pause"  # send it again, but only after somebody has looked at the account


CAUSES: dict[str, Retry] = {
    # the row never ran
    "expired": Retry.AGAIN,
    "cancelled": Retry.AGAIN,  # by the provider; after our own cancel nothing is sent again
    "missing": Retry.AGAIN,
    # passing trouble at the provider
    "rate_limit": Retry.AGAIN,
    "overloaded": Retry.AGAIN,
    "server_error": Retry.AGAIN,
    "timeout": Retry.AGAIN,
    # the request or the permission is wrong
    "invalid_request": Retry.NEVER,
    "not_found": Retry.NEVER,
    "permission": Retry.NEVER,
    "too_large": Retry.NEVER,
    "validation": Retry.NEVER,  # the provider refused the whole batch over its content
    # answered, paid, unusable
    "length": Retry.NEVER,  # only a higher bound helps
    "content_filter": Retry.NEVER,
    "refused": Retry.NEVER,  # the model declined
    "empty": Retry.NEVER,
    "malformed": Retry.NEVER,  # the line is not what the protocol says
    "schema": Retry.NEVER,  # the answer does not fit the output schema
    "conflict": Retry.NEVER,  # two different answers for one row
    # the account
    "out_of_credit": Retry.PAUSE,
    # ours
    "budget": Retry.NEVER,  # sending it again did not fit the budget
    "deadline": Retry.NEVER,
    "unknown": Retry.NEVER,
}


def retry(outcome: Outcome, cause: str | None) -> Retry:
    """What may be done about a row that ended so. An OK row is never sent again."""
    if outcome is Outcome.OK:
        return Retry.NEVER
    return CAUSES.get(cause or "unknown", Retry.NEVER)


def allowed(old: ShardState, new: ShardState) -> bool:
    return new in MOVES[old]
