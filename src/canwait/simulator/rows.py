"""One row: asked, answered, measured."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..tokens import CHAT, EMBEDDING, Overhead, counter
from ..types import Usage
from .answers import AnswerFn, Body, compact, embedding, full_length, texts

Kind = Literal["invalid", "rate_limit", "server_error", "timeout", "out_of_credit", "expired", "cancelled"]
"""Why a row has no answer."""

Finish = Literal["stop", "length", "refusal", "content_filter"]

REFUSAL = "I'm sorry, but I can't help with that."
_ERRORS: dict[str, Kind] = {
    "row_400": "invalid",
    "row_429": "rate_limit",
    "row_500": "server_error",
    "row_timeout": "timeout",
    "row_out_of_credit": "out_of_credit",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and what it is billed."""

    text: str
    finish: Finish
    usage: Usage
    vectors: tuple[bytes, ...] = ()  # embeddings, one for each text; then `text` is empty


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """An error; nothing is billed."""

    kind: Kind
    message: str | None = None  # None: the provider's usual words


def run(
    provider: str,
    body: Body,
    answer: AnswerFn,
    *,
    seed: int,
    most: int | None,
    fault: str | None = None,
    cached: float = 0,
) -> Answered | NotAnswered:
    """Answer one valid request.

    `most`: the bound on its output; `fault`: one of scenario.ROW_FAULTS; `cached`: share of its input, 0 to 1.
    """
    if fault in _ERRORS:
        return NotAnswered(_ERRORS[fault])
    try:
        text = answer(body, seeded(seed, body))
    except Exception as error:  # whatever a person's answer function raises is this row's failure, not the provider's
        return NotAnswered("server_error", f"{type(error).__name__}: {error}")
    if fault == "row_empty":
        text = ""
    elif fault in ("row_refusal", "row_content_filter"):
        text = REFUSAL if fault == "row_refusal" else ""
    elif fault == "row_invalid_json":
        text = text[: len(text) // 2] if text[:1] in "{[" and len(text) > 1 else '{"label": "'
    text, output, cut = bounded(text, most, force=fault == "row_length")
    finish: Finish = "length" if cut else "stop"
    if fault in ("row_refusal", "row_content_filter"):
        finish = "refusal" if fault == "row_refusal" else "content_filter"
    tokens = input_tokens(provider, body)
    usage = Usage(tokens, output, int(tokens * cached))
    if fault == "overbill":
        usage = replace(usage, input_tokens=2 * input_bound(texts(body)), output_tokens=output + (most or output))
    return Answered(text, finish, usage)


def embed(provider: str, body: Body, *, fault: str | None = None) -> Answered | NotAnswered:
    """The vectors of one valid request. A fault of answers that are text is none here."""
    if fault in _ERRORS:
        return NotAnswered(_ERRORS[fault])
    tokens = input_tokens(provider, body, EMBEDDING)
    vectors = _vectors(texts(body), body)
    if fault == "row_empty":
        vectors = ()
    elif fault == "row_invalid_json":
        vectors = tuple(vector[:-2] for vector in vectors)
    elif fault == "overbill":
        tokens = 2 * input_bound(texts(body))
    return Answered("", "stop", Usage(tokens, 0), vectors)


def _vectors(spoken: Sequence[str], body: Body) -> tuple[bytes, ...]:
    return tuple(embedding(text, body.get("dimensions") or full_length(body)) for text in spoken)


def another(body: Body, answer: AnswerFn, first: Answered, *, seed: int, most: int | None) -> Answered:
    """A different answer to the same request."""
    if first.vectors:
        return replace(first, vectors=_vectors([f"{text} (once more)" for text in texts(body)], body))
    for other in range(1, 9):
        try:
            text = answer(body, random.Random(f"{seed}/{other}/{first.text}"))
        except Exception:  # as in `run`; the fallback below differs in any case
            break
        if text != first.text:
            return replace(first, text=bounded(text, most)[0])
    return replace(first, text=first.text + " (once more)")


def seeded(seed: int, body: Body) -> random.Random:
    return random.Random(hashlib.sha256(b"%d/" % seed + compact(body)).digest())


# ---------------------------------------------------------------------------------------------------------- tokens


def input_bound(spoken: Sequence[str]) -> int:
    """What a client may take as the most these texts are billed: UTF-8 bytes, 8 a message, 32 a request."""
    return sum(map(_n_bytes, spoken)) + 8 * len(spoken) + 32


def input_tokens(provider: str, body: Body, overhead: Overhead = CHAT) -> int:
    """Counted where the model's tokenizer is known, else a quarter of the bytes; never above `input_bound`."""
    model, spoken = str(body.get("model")), texts(body)
    beside = {name: body[name] for name in ("response_format", "text", "output_config", "tools") if name in body}
    fixed_bytes = len(compact(beside)) if beside else 0
    known = counter(provider, model)
    if known.kind == "counted":
        tokens = known.measure([spoken], fixed_bytes, overhead)[0].expected
    else:
        around = 4 * len(spoken) + 3 if overhead is CHAT else 0
        tokens = -(-(sum(map(_n_bytes, spoken)) + fixed_bytes) // 4) + around
    return min(tokens, input_bound(spoken))


def output_tokens(text: str) -> int:
    return max(1, -(-_n_bytes(text) // 4))


def bounded(text: str, most: int | None, *, force: bool = False) -> tuple[str, int, bool]:
    """(text, tokens, whether it was cut) with at most `most` tokens; `force` cuts even what would fit."""
    tokens = output_tokens(text)
    if force:
        return text[: max(1, len(text) // 2)], most or tokens, True
    if most is None or tokens <= most:
        return text, tokens, False
    return text.encode()[: 4 * most].decode("utf-8", "ignore"), most, True


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
