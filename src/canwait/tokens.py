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
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Any, Literal, NamedTuple
from unicodedata import normalize

from .types import Tokens

Kind = Literal["counted", "bounded", "estimated"]
# The texts of many rows, a column for each message that is not constant -> tokens of each row, expected and at most.
# Where every message is constant there is no column, and the lists hold the one request that all rows are.
Measure = Callable[[Sequence[Sequence[str]]], tuple[list[int], list[int]]]


class Frame(NamedTuple):
    """What the template fixes of one message: every row's text is `head`, what the row brings, `tail`."""

    head: str
    tail: str
    constant: bool  # the text is `head` in all rows


class Overhead(NamedTuple):
    """Tokens that stand around the texts of a request; the default is that of a chat."""

    # Published for GPT-3.5 and GPT-4 (OpenAI cookbook; providers.md 8): 3 a message and 3 to prime the reply.
    message: int = 3
    request: int = 3
    # What the bound allows instead, because templates of newer models are not published.
    message_bound: int = 8
    request_bound: int = 32


CHAT = Overhead()
EMBEDDING = Overhead(message=0, request=0, message_bound=8, request_bound=0)  # one text, and no template around it
# An embedding's text stands alone: recorded batches bill exactly its tokens. A model of our own may mark its two ends.
# Text that a provider adds unseen. Anthropic explains a tool or an output format to the model: one small tool made
# 403 tokens of 14 (providers.md 8). A template on our own server may bring a system prompt: gpt-oss's has about 70.
_HIDDEN_WITH_SCHEMA = {"anthropic": 1024}
_HIDDEN_ALWAYS = {"own": 128}

_ENCODINGS = (  # tiktoken 0.14.0, model.py; it has no entry for gpt-6 or later, so those are bounded
    ("o200k_base", re.compile(r"(chatgpt-4o|gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|o1|o3|o4-mini)([-.:].*)?")),
    ("cl100k_base", re.compile(r"(gpt-4|gpt-3\.5)([-:].*)?|text-embedding-(ada-002|3-small|3-large)")),
)

# Characters that toktok-rs 0.3.0 (Unicode 17) and tiktoken 0.14.0 (Unicode 16) class differently, so that they may
# cut a text differently: every code point was compared, the ranges here are a little wider, for a provider may have
# another Unicode again. And the long s, which only tiktoken reads as the s of a contraction.
_DISPUTED = re.compile("[\u017f\u088f\u0c5c\u0cdc\u1acf-\u1aeb\ua7ce-\ua7f1\U00010940-\U0001efff\U0002b73a-\U0003ffff]")


@dataclass(frozen=True, slots=True)
class Counter:
    """Measures requests for one provider and model."""

    kind: Literal["counted", "bounded"]
    by: str  # "o200k_base by toktok-rs 0.3.0" or "UTF-8 bytes"
    provider: str
    _sizes: Callable[[Sequence[str]], tuple[list[int], list[int]]]  # tokens of each text: expected, at most

    def measure(self, texts: Sequence[Sequence[str]], fixed_bytes: int, overhead: Overhead = CHAT) -> list[Tokens]:
        """Tokens of each request, in order: an item of `texts` holds one request's message contents.

        `fixed_bytes` is the UTF-8 length of what else every request carries into the prompt (output schema, tools).
        It is bounded by its bytes and, where texts are counted, expected at 4 bytes a token. A text that UTF-8 cannot
        hold (a lone surrogate) raises UnicodeEncodeError: no request body can hold it either.
        """
        distinct = list(dict.fromkeys(chain.from_iterable(texts)))  # a prompt's fixed messages are measured once
        sizes = dict(zip(distinct, zip(*self._sizes(distinct), strict=True), strict=True))
        measured = []
        for request in texts:
            expected, bound = self._around(len(request), fixed_bytes, overhead)
            for text in request:
                e, b = sizes[text]
                expected += e
                bound += b
            measured.append(Tokens(expected if self.kind == "counted" else bound, bound, self.kind))
        return measured

    def measurer(self, frames: Sequence[Frame], fixed_bytes: int, overhead: Overhead = CHAT) -> Measure:
        """What `measure` finds for each row, with the fixed parts of the prompt measured once, here.

        The bound of a text that is cut is the sum of its parts' bounds. That differs from `measure` only where bytes are
        the bound of text that is not ASCII: then it is no less for a counter of bytes, and may be less for one of tokens.
        """
        fixed: list[str] = []
        ends: list[tuple[int, int]] = []  # of each column: how many characters are measured already, at its two ends
        for head, tail, constant in frames:
            if constant:
                fixed.append(head)
                continue
            start = max((cut.end() for cut in _CUT.finditer(head)), default=0)
            stop = next((cut.end() for cut in _CUT.finditer(tail)), len(tail))
            fixed += head[:start], tail[stop:]
            ends.append((start, len(tail) - stop))
        around = self._around(len(frames), fixed_bytes, overhead)
        expected_once, bound_once = (n + sum(sizes) for n, sizes in zip(around, self._sizes(fixed), strict=True))

        def measure(columns: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
            sizes = [self._sizes(_middles(texts, *cut)) for texts, cut in zip(columns, ends, strict=True)]
            bound = _totals(bound_once, [bounds for _, bounds in sizes])
            if self.kind == "bounded":
                return bound.copy(), bound
            return _totals(expected_once, [expected for expected, _ in sizes]), bound

        return measure

    def _around(self, n_messages: int, fixed_bytes: int, overhead: Overhead) -> tuple[int, int]:
        """Tokens of a request beside its texts: expected, at most."""
        expected = overhead.request + n_messages * overhead.message + -(-fixed_bytes // 4)
        bound = overhead.request_bound + n_messages * overhead.message_bound + fixed_bytes
        bound += _HIDDEN_ALWAYS.get(self.provider, 0)
        return expected, bound + (_HIDDEN_WITH_SCHEMA.get(self.provider, 0) if fixed_bytes else 0)


def counter(provider: str, model: str) -> Counter:
    """Counts where the model's tokenizer is published and `canwait[tokens]` is installed; else bounds by bytes."""
    encoding = _encoding(provider, model)
    toktok = _toktok() if encoding else None
    if encoding is None or toktok is None:
        return Counter("bounded", "UTF-8 bytes", provider, _byte_sizes)

    def count(texts: Sequence[str]) -> list[int]:
        # Special-token strings count as the ordinary text they are. One thread: on batches of this size more threads
        # cost more CPU and save no wall time.
        counts: list[int] = toktok.batch_count(texts, encoding, threads=1, with_special=False)
        return counts

    def sizes(texts: Sequence[str]) -> tuple[list[int], list[int]]:
        expected = count(texts)
        bounds = expected.copy()
        for i in _disputed(texts):
            expected[i], bounds[i] = _as_tiktoken(texts[i], encoding, count), _bytes(texts[i])
        return expected, bounds

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


# ---------------------------------------------------------------------------------------------------------------- bytes


def _byte_sizes(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    sizes = [len(text) if text.isascii() else _bytes(text) for text in texts]
    return sizes, sizes


def _bytes(text: str) -> int:
    """At least the tokens of the text under any byte-level tokenizer, also one that normalises it first (NFKC)."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(normalize("NFKC", text).encode()))


# ----------------------------------------------------------------------------------------------------------------- cuts

# Places where the tokens of a text are those of its two parts, whatever stands further away: before a space that
# follows no space, and between a line feed and what is neither a space nor a slash. docs/decisions/0009 has the proof.
_CUT = re.compile(r"(?<=\S)(?= )|(?<=\n)(?=[^\s/])")


def _middles(texts: Sequence[str], start: int, end: int) -> Sequence[str]:
    """The texts without their first `start` and last `end` characters."""
    if end:
        return [text[start:-end] for text in texts]
    return [text[start:] for text in texts] if start else texts


def _totals(once: int, columns: Sequence[Sequence[int]]) -> list[int]:
    if len(columns) == 1:
        return [once + n for n in columns[0]]
    return [once + sum(row) for row in zip(*columns, strict=True)] if columns else [once]


# ------------------------------------------------------------------------------------------------- disputed characters

_ASCII = bytes(range(128))


def _disputed(texts: Sequence[str]) -> list[int]:
    """Which of them hold a disputed character. Nearly none do, which all that is not ASCII in them tells together."""
    foreign = [i for i, text in enumerate(texts) if not text.isascii()]
    together = "".join([texts[i] for i in foreign]).encode().translate(None, _ASCII)
    return [i for i in foreign if _DISPUTED.search(texts[i])] if _DISPUTED.search(together.decode()) else []


# Disputed characters, by ranges, and what the first of each is counted as: a character of no dispute and of the class
# that tiktoken sees (no letter, mark, number or space), whose bytes make the same tokens next to any other
# (docs/decisions/0010; benchmarks/token_counting.py tries each beside all that tokens join to a part of it).
_STAND_INS = (
    (0x088F, 0x088F, 0x0FCF), (0x0C5C, 0x0C5C, 0x0F1C), (0x0CDC, 0x0CDC, 0x0F1C), (0x1ACF, 0x1ACF, 0x1A8F),
    (0x1AD0, 0x1AD7, 0x1390), (0x1AD9, 0x1AD9, 0x1399), (0x1ADA, 0x1ADD, 0x1B5A), (0x1AE0, 0x1AEB, 0x19E0),
    (0xA7CE, 0xA7CF, 0x234E), (0xA7D2, 0xA7D2, 0x2352), (0xA7D4, 0xA7D4, 0x2354), (0xA7F1, 0xA7F1, 0x2371),
    *(
        (first, last, 0x38000 | first & 0xFFF)  # the last two of their four bytes stay, no token knows the second
        for first, last in (
            (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x10EFA, 0x10EFB), (0x11B60, 0x11B67), (0x11DB0, 0x11DDB),
            (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF),
            (0x18D09, 0x18D1E), (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6F5), (0x1E6FE, 0x1E6FF),
            (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x32FFF), (0x33000, 0x33479),
        )
    ),
)  # fmt: skip
_LONG_S = re.compile("'\u017f")


def _as_tiktoken(text: str, encoding: str, count: Callable[[Sequence[str]], list[int]]) -> int:
    """What tiktoken counts in a text with disputed characters, found with toktok's `count`."""
    o200k = encoding == "o200k_base"
    # Under cl100k_base marks are of no dispute; under o200k_base this one has no stand-in as short as itself.
    n_more = text.count("\u1ad8") if o200k else 0
    text = text.translate(_stand_ins(o200k))
    pieces: list[str] = []
    cut = seen = 0
    for long_s in _LONG_S.finditer(text):
        # toktok does read an s there, and shows it: behind a contraction `tyle` stands alone, else it is `style`.
        at = text[seen : long_s.start()] + "'s"
        plain, longer, alone = count([at, at + "tyle", "tyle"])
        seen = long_s.start()
        if longer - plain == alone:
            pieces.append(text[cut : long_s.end()])
            cut = seen = long_s.end()
            n_more += o200k and pieces[-1].endswith(" I'\u017f")  # the only token of a letter and then an apostrophe
    return sum(count([*pieces, text[cut:]])) - n_more


@cache
def _stand_ins(o200k: bool) -> dict[int, int]:
    of = {first + i: other + i for first, last, other in _STAND_INS for i in range(last - first + 1)}
    return {**of, 0x1AD8: 0x38AD8} if o200k else of
