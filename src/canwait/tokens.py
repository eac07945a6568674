"""Texts of a request -> input tokens, each with how it is known: counted, bounded or estimated. Pure.

counted    the model's own published tokenizer over every text, plus the published overhead of a chat message
bounded    UTF-8 bytes: no byte-level tokenizer makes more tokens than bytes, and none is asked
estimated  learnt from answers already billed; nothing here makes these

Either way `bound` is what a reservation may rest on (methods.md 1.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any, Literal
from unicodedata import normalize

from .types import Tokens

Kind = Literal["counted", "bounded", "estimated"]

# Published for GPT-3.5 and GPT-4 (OpenAI cookbook; providers.md 8): 3 a message and 3 to prime the reply.
_MESSAGE, _REPLY = 3, 3
# What the bound allows instead, because templates of newer models are not published.
_MESSAGE_BOUND, _REQUEST_BOUND = 8, 32
# Text that a provider adds unseen. Anthropic explains a tool or an output format to the model: one small tool made
# 403 tokens of 14 (providers.md 8). A template on our own server may bring a system prompt: gpt-oss's has about 70.
_HIDDEN_WITH_SCHEMA = {"anthropic": 1024}
_HIDDEN_ALWAYS = {"own": 128}

_ENCODINGS = (  # tiktoken 0.14.0, model.py; it has no entry for gpt-6 or later, so those are bounded
    ("o200k_base", re.compile(r"(chatgpt-4o|gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|o1|o3|o4-mini)([-.:].*)?")),
    ("cl100k_base", re.compile(r"(gpt-4|gpt-3\.5)([-:].*)?")),
)

# Characters that toktok-rs 0.3.0 (Unicode 17) and tiktoken 0.14.0 (Unicode 16) class differently, so that they may
# cut a text differently: every code point was compared, the ranges here are a little wider. And the long s, which
# toktok does not read as the s of a contraction (performance.md 2, tokens).
_DISPUTED = re.compile("[\u017f\u088f\u0c5c\u0cdc\u1acf-\u1aeb\ua7ce-\ua7f1\U00010940-\U0001efff\U0002b73a-\U0003ffff]")


@dataclass(frozen=True, slots=True)
class Counter:
    """Measures requests for one provider and model."""

    kind: Literal["counted", "bounded"]
    by: str  # "o200k_base by toktok-rs 0.3.0" or "UTF-8 bytes"
    provider: str
    _sizes: Callable[[Sequence[str]], list[tuple[int, int]]]  # of each text: tokens expected, tokens at most

    def measure(self, texts: Sequence[Sequence[str]], fixed_bytes: int) -> list[Tokens]:
        """Tokens of each request, in order: an item of `texts` holds one request's message contents.

        `fixed_bytes` is the UTF-8 length of what else every request carries into the prompt (output schema, tools).
        It is bounded by its bytes and, where texts are counted, expected at 4 bytes a token. A text that UTF-8 cannot
        hold (a lone surrogate) raises UnicodeEncodeError: no request body can hold it either.
        """
        distinct = list(dict.fromkeys(chain.from_iterable(texts)))  # a prompt's fixed messages are measured once
        sizes = dict(zip(distinct, self._sizes(distinct), strict=True))
        fixed_expected = _REPLY + -(-fixed_bytes // 4)
        fixed_bound = _REQUEST_BOUND + fixed_bytes + _HIDDEN_ALWAYS.get(self.provider, 0)
        if fixed_bytes:
            fixed_bound += _HIDDEN_WITH_SCHEMA.get(self.provider, 0)
        counted = self.kind == "counted"
        measured = []
        for request in texts:
            expected, bound = fixed_expected, fixed_bound
            for text in request:
                e, b = sizes[text]
                expected += e + _MESSAGE
                bound += b + _MESSAGE_BOUND
            measured.append(Tokens(expected if counted else bound, bound, self.kind))
        return measured


def counter(provider: str, model: str) -> Counter:
    """Counts where the model's tokenizer is published and `canwait[tokens]` is installed; else bounds by bytes."""
    encoding = _encoding(provider, model)
    toktok = _toktok() if encoding else None
    if toktok is None:
        return Counter("bounded", "UTF-8 bytes", provider, lambda texts: [(n, n) for n in map(_bytes, texts)])

    def sizes(texts: Sequence[str]) -> list[tuple[int, int]]:
        # Special-token strings count as the ordinary text they are. One thread: on batches of this size more threads
        # cost more CPU and save no wall time.
        counts = toktok.batch_count(texts, encoding, threads=1, with_special=False)
        return [(n, n if _undisputed(t) else _bytes(t)) for t, n in zip(texts, counts, strict=True)]

    return Counter("counted", f"{encoding} by toktok-rs {toktok.__version__}", provider, sizes)


def merged(kinds: Iterable[Kind]) -> Kind:
    """What may be said of a sum: its weakest part. An empty sum is known exactly."""
    strength: tuple[Kind, ...] = ("counted", "bounded", "estimated")
    return max(kinds, key=strength.index, default="counted")


def _encoding(provider: str, model: str) -> str | None:
    if provider != "openai":
        return None
    base = model.removeprefix("ft:")  # a fine-tuned model keeps its base's tokenizer
    return next((name for name, models in _ENCODINGS if models.fullmatch(base)), None)


def _toktok() -> Any:
    """The optional tokenizer, or None where it is not installed. Loading its vocabulary takes 0.4 s of CPU, once."""
    try:
        return import_module("toktok")
    except ImportError:
        return None


def _undisputed(text: str) -> bool:
    return text.isascii() or _DISPUTED.search(text) is None


def _bytes(text: str) -> int:
    """At least the tokens of the text under any byte-level tokenizer, also one that normalises it first (NFKC)."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(normalize("NFKC", text).encode()))
