"""What goes wrong, as a value. Every misbehaviour the simulator knows is one field here, with its meaning."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from typing import Any

from ..errors import Problem, SpecError

Fault = int | float
"""An int n: the first n occasions. A float p: each occasion with probability p, drawn from the seed."""


def _fault(occasion: str, meaning: str) -> Any:
    return field(default=0, metadata={"kind": "fault", "occasion": occasion, "meaning": meaning})


def _setting(kind: str, default: object, meaning: str) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How the simulated provider behaves. `Scenario()` is a provider on a good day."""

    # the account
    bad_key: Fault = _fault("request", "401, the key is refused")
    # a create: nothing happened
    create_closed: Fault = _fault("create", "the connection is closed before the request is read")
    create_429: Fault = _fault("create", "429 with Retry-After")
    create_5xx_no_effect: Fault = _fault("create", "a 503 (Anthropic: 529), and nothing was created")
    create_out_of_credit: Fault = _fault("create", "refused: the prepaid credit is used up")
    create_spend_cap: Fault = _fault("create", "429 without Retry-After: a spend limit is enforced")
    create_token_limit: Fault = _fault("create", "400 token_limit_exceeded at once (Anthropic: 429)")
    # a create: the batch is live, the client does not learn its id
    lost_create_reply: Fault = _fault("create", "the batch is live; the connection is dropped without a reply")
    create_5xx_live: Fault = _fault("create", "the batch is live; the reply is a 500")
    create_not_json: Fault = _fault("create", "the batch is live; the reply is an HTML page with status 200")
    late_create_reply: Fault = _fault("create", "the batch is live; the reply comes after `hold`")
    # other requests
    upload_5xx: Fault = _fault("upload", "a 500, and the file is not kept")
    poll_429: Fault = _fault("poll", "429 with Retry-After")
    poll_5xx: Fault = _fault("poll", "a 500")
    poll_reset: Fault = _fault("poll", "the connection is reset")
    poll_not_json: Fault = _fault("poll", "an HTML page with status 200")
    list_5xx: Fault = _fault("list", "a 500")
    results_5xx: Fault = _fault("download", "a 500")
    results_cut: Fault = _fault("download", "the connection ends midway")
    sync_429: Fault = _fault("synchronous call", "429 with Retry-After")
    sync_5xx: Fault = _fault("synchronous call", "a 500, nothing billed")
    sync_reset: Fault = _fault("synchronous call", "the answer is billed; the connection is reset before the reply")
    # how a batch ends; at most one of these, the first that strikes
    bad_line: Fault = _fault("batch", "validation fails on a line drawn from the seed: counts 0/0/0, no files")
    token_limit_late: Fault = _fault("batch", "accepted, then failed with token_limit_exceeded")
    expiry: Fault = _fault("batch", "expires with part of its rows done")
    expiry_empty: Fault = _fault("batch", "expires with nothing done (OpenAI: and without any file)")
    never_ends: Fault = _fault("batch", "stays in progress, also past its window")
    all_failed: Fault = _fault("batch", "completed, and every row is an error: no output file")
    # how a batch is written
    shuffled: Fault = _fault("batch", "rows come out of order")
    truncated_last_line: Fault = _fault("batch", "the output ends in the middle of its last line")
    empty_file_ids: Fault = _fault("batch", 'absent file ids are "" instead of null')
    capitalised_status: Fault = _fault("batch", "the status is written with a capital letter")
    cancel_race: Fault = _fault("cancel", "counters go back to 0, and a row that was done is never returned")
    cancel_deaf: Fault = _fault("cancel", "accepted, and the batch goes on as if nobody had asked")
    cancel_5xx: Fault = _fault("cancel", "a 500, and the batch is being cancelled all the same")
    cancel_finishes: Fault = _fault("cancel", "rows go on running until the batch has ended")
    # what becomes of a row; at most one of these, the first that strikes
    row_400: Fault = _fault("row", "error: invalid request; not billed")
    row_429: Fault = _fault("row", "error: rate limit; not billed")
    row_500: Fault = _fault("row", "error: server; not billed")
    row_timeout: Fault = _fault("row", "error: timed out; not billed")
    row_out_of_credit: Fault = _fault("row", "error: out of credit; not billed")
    row_length: Fault = _fault("row", "cut at the output bound; billed to the bound")
    row_refusal: Fault = _fault("row", "the model declines; billed")
    row_content_filter: Fault = _fault("row", "stopped by the content filter; billed (Anthropic: a refusal)")
    row_empty: Fault = _fault("row", "an empty answer; billed")
    row_invalid_json: Fault = _fault("row", "an answer that is cut-off JSON, with a normal stop; billed")
    row_duplicate: Fault = _fault("row", "returned twice, equal; billed once")
    row_conflict: Fault = _fault("row", "returned twice, with different answers; billed once")
    row_unknown_id: Fault = _fault("row", "returned, and once more under an id nobody sent; billed once")
    row_missing: Fault = _fault("row", "ran and is billed, but never returned")
    row_dropped: Fault = _fault("row", "never ran, is not billed and never returned")
    overbill: Fault = _fault("row", "billed beyond any bound a client could have computed")
    cached_tokens: Fault = _fault("row", "part of the input counts as cached; differs between equal rows")
    # the surroundings
    listing_lag: timedelta = _setting("duration", timedelta(0), "a created batch is not listed for this long")
    late_release: timedelta = _setting("duration", timedelta(0), "an ended batch holds its enqueued tokens this long")
    retention: timedelta | None = _setting("duration", None, "files and results are gone this long after creation")
    turnaround: timedelta = _setting("duration", timedelta(minutes=30), "median time a batch runs")
    cancel_lag: timedelta | None = _setting("duration", None, "how long a cancel takes, drawn from 10 s to 10 min")
    retry_after: timedelta = _setting("duration", timedelta(seconds=1), "what Retry-After says")
    hold: timedelta = _setting("duration", timedelta(seconds=90), "real time that `late_create_reply` holds the reply")
    enqueued_limit: int = _setting("number", 0, "input tokens a model may have enqueued; 0: no limit (OpenAI)")
    fail_fast: bool = _setting("flag", False, "over the limit: 400 at create, not a failed batch later")
    old_style: bool = _setting("flag", False, "objects as of early 2025: no model, usage or file expiry (OpenAI)")

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """From `expiry=0.2,lost_create_reply=1,listing_lag=30s,429=2`.

        A whole number counts occasions, a decimal fraction is a probability, a bare name means once.
        Raises SpecError with every problem at once; it lists the known names.
        """
        known = {spec.name: spec for spec in fields(cls)}
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            given, _, value = (piece.strip() for piece in part.partition("="))
            name = ALIASES.get(given, given)
            if name not in known:
                near = difflib.get_close_matches(given, [*known, *ALIASES], 1)
                hint = f"did you mean {near[0]}? " if near else ""
                problems.append(_problem(given, f"is not known; {hint}known are {', '.join([*known, *ALIASES])}"))
            elif name in found:
                problems.append(_problem(given, "is given twice"))
            else:
                try:
                    found[name] = _value(known[name], value)
                except ValueError as error:
                    problems.append(_problem(given, f"{value!r} is not {error}"))
        if problems:
            raise SpecError(problems, hint="docs/simulator.md says what each name does")
        return cls(**found)


ALIASES = {
    "429": "poll_429",
    "5xx": "poll_5xx",
    "reset": "poll_reset",
    "stuck": "never_ends",
    "truncated": "truncated_last_line",
}

ENDINGS = ("bad_line", "token_limit_late", "expiry", "expiry_empty", "never_ends", "all_failed")
TRAITS = ("shuffled", "truncated_last_line", "empty_file_ids", "capitalised_status")
ROW_FAULTS = tuple(
    spec.name
    for spec in fields(Scenario)
    if spec.metadata.get("occasion") == "row" and spec.name != "cached_tokens"  # which may join any other
)


def strikes(fault: Fault, name: str, occasion: int, seed: int) -> bool:
    """Whether a fault strikes on its `occasion`, counted from 0."""
    return occasion < fault if isinstance(fault, int) else draw(seed, name, occasion) < fault


def row_fault(active: Sequence[tuple[str, Fault]], row: int, seed: int) -> str | None:
    """What goes wrong with a row, `row` being its place among all rows ever accepted. Counted faults take turns.

    `active`: `active_row_faults(scenario)`.
    """
    first = 0
    for name, fault in active:
        if isinstance(fault, int):
            if first <= row < first + fault:
                return name
            first += fault
        elif strikes(fault, name, row, seed):
            return name
    return None


def active_row_faults(scenario: Scenario) -> Sequence[tuple[str, Fault]]:
    return [(name, getattr(scenario, name)) for name in ROW_FAULTS if getattr(scenario, name)]


def draw(*what: object) -> float:
    """A number in [0, 1) that only depends on `what`."""
    text = "/".join(map(str, what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / (1 << 48)


def _value(spec: Field[Any], text: str) -> object:
    match spec.metadata["kind"]:
        case "duration":
            return duration(text)
        case "flag":
            if text.lower() not in ("", "true", "false"):
                raise ValueError("true or false")
            return text.lower() != "false"
        case "number":
            if not text.isascii() or not text.isdigit():
                raise ValueError("a whole number")
            return int(text)
    if not text:
        return 1
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("a count such as 2, or a probability such as 0.2")
    return share


_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> timedelta:
    """`30s`, `5m`, `2h`, `1d`; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text, re.ASCII)
    if not match:
        raise ValueError("a duration such as 30s, 5m, 2h or 1d")
    return timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])


def _problem(name: str, message: str) -> Problem:
    return Problem("--scenario", None, None, name, message)


def documented() -> Sequence[tuple[str, str, str]]:
    """(name, occasion or kind, meaning) of every field, as docs/simulator.md lists them."""
    return [
        (spec.name, spec.metadata.get("occasion", spec.metadata["kind"]), spec.metadata["meaning"])
        for spec in fields(Scenario)
    ]
