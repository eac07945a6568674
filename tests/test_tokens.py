"""Texts of a request -> input tokens, each with how it is known."""

from __future__ import annotations

import sys
from itertools import product
from time import process_time
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.tokens import Counter, Kind, counter, merged
from canwait.types import Tokens

BYTES = counter("anthropic", "claude-haiku-5-5")
texts = st.text(st.characters(exclude_categories=["Cs"]))
requests = st.lists(st.lists(texts, max_size=4), max_size=4)


@pytest.fixture(scope="module")
def o200k() -> Counter:
    pytest.importorskip("toktok", reason="the extra `tokens` is not installed")
    return counter("openai", "gpt-4o-mini")


def test_bytes_bound_what_is_not_counted() -> None:
    """Without a tokenizer a request is bounded by its UTF-8 bytes, 8 a message, 32, and what else it carries."""
    assert BYTES.measure([["Be brief.", "Grüße, 世界"]], 0) == [Tokens(*[9 + 15 + 16 + 32] * 2, "bounded")]
    assert counter("openai", "gpt-6-luna").measure([["a"]], 100) == [Tokens(*[1 + 8 + 32 + 100] * 2, "bounded")]
    assert (BYTES.kind, BYTES.by) == ("bounded", "UTF-8 bytes")


def test_a_normalising_tokenizer_cannot_exceed_the_bound() -> None:
    """Text that NFKC makes longer is bounded by the longer form."""
    ligature = "\ufdfa"  # 3 bytes; 33 after NFKC
    [tokens] = BYTES.measure([[ligature]], 0)
    assert len(normalize("NFKC", ligature).encode()) == 33
    assert tokens.bound == 33 + 8 + 32


def test_what_a_provider_adds_unseen_is_inside_the_bound() -> None:
    """Anthropic's hidden text beside a schema, and a server's own system prompt, are allowed for."""
    [with_schema] = BYTES.measure([["x"]], 300)
    assert with_schema.bound - BYTES.measure([["x"]], 0)[0].bound - 300 >= 403 - 14
    assert counter("own", "openai/gpt-oss-20b").measure([["x"]], 0)[0].bound >= 1 + 8 + 70


@given(requests, st.integers(0, 5_000))
def test_bytes_are_a_bound_for_any_text(texts: list[list[str]], fixed_bytes: int) -> None:
    """Nothing expected exceeds its bound, and no bound is below the bytes."""
    measured = BYTES.measure(texts, fixed_bytes)
    assert len(measured) == len(texts)
    for request, tokens in zip(texts, measured, strict=True):
        assert tokens.bound >= tokens.expected >= sum(len(text.encode()) for text in request) + fixed_bytes


@given(requests, st.integers(0, 5_000))
def test_counted_tokens_are_within_their_bound(o200k: Counter, texts: list[list[str]], fixed_bytes: int) -> None:
    """A count never exceeds the bytes, and what is expected never exceeds its bound, on any text."""
    bounds = counter("openai", "gpt-6-luna").measure(texts, fixed_bytes)
    for request, tokens, bytes_bound in zip(texts, o200k.measure(texts, fixed_bytes), bounds, strict=True):
        assert tokens.kind == "counted"
        assert tokens.expected <= tokens.bound <= bytes_bound.bound
        n = tokens.expected - 3 - 3 * len(request) - -(-fixed_bytes // 4)
        assert 0 <= n <= sum(len(text.encode()) for text in request)


@pytest.mark.parametrize(
    ("text", "n"),
    [  # o200k_base, ids checked with tiktoken 0.14.0
        ("", 0),
        ("hello world", 2),
        ("I don't know what I'm doing here.", 8),
        ("Grüße aus Köln, 世界!", 8),
        ("<|endoftext|>", 7),  # ordinary text: one special token would be 1
        ("def f(x):\n    return x + 1\n", 11),
        ("👩‍👩‍👧", 8),
    ],
)
def test_a_count_is_the_tokenizers(o200k: Counter, text: str, n: int) -> None:
    """A message of known tokens counts as such, with 3 for itself and 3 for the reply; its bound has 8 and 32."""
    assert o200k.measure([[text]], 0) == [Tokens(n + 3 + 3, n + 8 + 32, "counted")]


def test_a_schema_is_expected_at_four_bytes_a_token(o200k: Counter) -> None:
    """What every request carries beside its texts is expected at a quarter of its bytes and bounded by all of them."""
    assert o200k.measure([["hello world"]], 101) == [Tokens(2 + 6 + 26, 2 + 40 + 101, "counted")]


@pytest.mark.parametrize("disputed", ["it'\u017f", "a\U00016ebb's", "x\u088fy", "\U000323b0"])
def test_disputed_characters_are_bounded_by_bytes(o200k: Counter, disputed: str) -> None:
    """Where tokenizers of different Unicode versions cut a text differently, its bytes are the bound."""
    [tokens] = o200k.measure([[disputed]], 0)
    assert tokens.bound == len(disputed.encode()) + 8 + 32
    [common] = o200k.measure([["👍 Ω 世界 café"]], 0)
    assert common.bound < len("👍 Ω 世界 café".encode()) + 40


def test_a_message_shared_by_all_rows_counts_in_each(o200k: Counter) -> None:
    """Measuring a text once for all its uses does not change any row."""
    rows = [["You are terse.", f"row {n % 7}"] for n in range(50)]
    assert o200k.measure(rows, 12) == [tokens for row in rows for tokens in o200k.measure([row], 12)]


@pytest.mark.parametrize(
    ("model", "by"),
    [
        *product(["gpt-4o", "gpt-4o-mini-2024-07-18", "gpt-4.1-nano", "gpt-5", "gpt-5.5"], ["o200k_base"]),
        *product(["o1", "o3-mini", "o4-mini", "chatgpt-4o-latest", "ft:gpt-4.1:acme::7"], ["o200k_base"]),
        *product(["gpt-4", "gpt-4-0613", "gpt-4-turbo", "gpt-3.5-turbo", "ft:gpt-3.5-turbo:acme"], ["cl100k_base"]),
        *product(["gpt-6-luna", "gpt-6.1-terra", "gpt-50", "o10", "gpt-4.7", "gpt-4omni", "small", ""], ["UTF-8"]),
    ],
)
def test_only_published_tokenizers_count(o200k: Counter, model: str, by: str) -> None:
    """A model is counted by the encoding tiktoken maps it to; a model it does not map is bounded, never guessed."""
    assert counter("openai", model).by.split()[0] == by
    assert counter("own", model).by == "UTF-8 bytes"


def test_without_the_extra_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer installed: the same jobs plan, with wider bounds that say so."""
    monkeypatch.setitem(sys.modules, "toktok", None)
    assert counter("openai", "gpt-4o").measure([["hello world"]], 0) == [Tokens(51, 51, "bounded")]


def test_a_lone_surrogate_is_no_text() -> None:
    """What UTF-8 cannot hold no body can hold, and it is not measured as if it could."""
    with pytest.raises(UnicodeEncodeError):
        BYTES.measure([["\ud800"]], 0)


@pytest.mark.parametrize(
    ("kinds", "weakest"),
    [
        ([], "counted"),
        (["counted", "counted"], "counted"),
        (["counted", "bounded"], "bounded"),
        (["bounded", "estimated", "counted"], "estimated"),
    ],
)
def test_a_sum_is_as_good_as_its_weakest_part(kinds: list[Kind], weakest: Kind) -> None:
    """One bounded row makes a plan's total bounded."""
    assert merged(kinds) == weakest


def test_a_hundred_thousand_short_rows_are_counted_quickly(o200k: Counter) -> None:
    """Counting 100,000 short rows, in chunks as they stream, stays within a second of CPU on any machine of today."""
    rows = [
        ["Classify the message.", f"Message {n}: my card was charged twice, what now? " * 2] for n in range(100_000)
    ]
    start = process_time()
    measured = [tokens for at in range(0, len(rows), 1024) for tokens in o200k.measure(rows[at : at + 1024], 200)]
    assert process_time() - start < 1
    assert len(measured) == len(rows)
