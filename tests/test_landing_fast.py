"""The fast way through an output is only faster: whatever the lines are, it lands what the careful way lands."""

from __future__ import annotations

import copy
import json
import math
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.landing import SCHEMA, Landed, ResultsWriter, checker, land
from canwait.price import exact_micros
from canwait.providers.anthropic import Anthropic
from canwait.providers.decoding import read_line
from canwait.providers.http import parse
from canwait.providers.openai import OpenAI
from canwait.types import Answer, Outcome, Price, PriceStep, ShardFile, Tier, Usage

TOKEN = "c0123456789abcdef0123"
LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
    "required": ["label"],
}
PROVIDERS = {"openai": OpenAI("none"), "anthropic": Anthropic("none")}
TEXTS = [
    '{"label":"a","n":3}', '{"label":"b"}', '{"label":"c"}', '{"label":"a","n":9223372036854775808}', "cut {", "", " \n",
    "é 漢 👩", "\ud83d",
]  # fmt: skip


def openai_line(number: int, text: str, usage: tuple[int, int, int]) -> dict[str, Any]:
    n_input, n_output, cached = usage
    tokens = {
        "prompt_tokens": n_input, "completion_tokens": n_output, "total_tokens": n_input + n_output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-x-2026", "usage": tokens,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
    response = {"status_code": 200, "request_id": "1", "body": body}
    return {"id": "batch_req_1", "custom_id": f"{TOKEN}-{number}", "response": response, "error": None}


def anthropic_line(number: int, text: str, usage: tuple[int, int, int]) -> dict[str, Any]:
    n_input, n_output, cached = usage
    tokens = {"input_tokens": n_input, "output_tokens": n_output, "cache_read_input_tokens": cached,
              "cache_creation_input_tokens": 0, "service_tier": "batch"}  # fmt: skip
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_sequence": None,
               "stop_reason": "end_turn", "usage": tokens, "content": [{"type": "text", "text": text}]}  # fmt: skip
    return {"custom_id": f"{TOKEN}-{number}", "result": {"type": "succeeded", "message": message}}


SHAPES = {"openai": openai_line, "anthropic": anthropic_line}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 200, 200.0, 500, 1.5, 2**31, 10**9 + 1, 2**63, 2**70, "", " ", "stop", "length",
    "end_turn", "max_tokens", "refusal", "batch_expired", "other", f"{TOKEN}-0", f"{TOKEN}-01", f"{TOKEN}-9", f"{TOKEN}-١",
    f"{TOKEN}--1", f"x{TOKEN}-1", [], {}, [None], ["text"], [{"type": "text", "text": "two"}], {"code": "batch_expired"},
    {"code": "x", "message": "y"}, {"type": "errored", "error": {"type": "api_error"}}, {"type": "expired"}, "\ud83d",
]  # fmt: skip
ADDED = ["error", "refusal", "finish_reason", "usage", "cache_write_tokens", "choices", "result", "response"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in inner for place in places(item, (*path, name)))]


@st.composite
def lines(draw: st.DrawFn, shape: str) -> bytes:
    """A line as the provider writes it, with up to two things in it changed, cut out, added or cut off."""
    usage = draw(st.sampled_from([(100, 7, 0), (100, 7, 60), (3, 1, 0), (0, 0, 0), (10, 1, 11), (300_000, 5, 0)]))
    line = SHAPES[shape](draw(st.integers(0, 5)), draw(st.sampled_from(TEXTS)), usage)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        path = draw(st.sampled_from(places(line)[1:]))
        within = line
        for name in path[:-1]:
            within = within[name]
        match draw(st.sampled_from(["change", "cut", "add"])):
            case "change":
                within[path[-1]] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "cut":
                del within[path[-1]]
            case "add" if isinstance(within, dict):
                name = draw(st.sampled_from(ADDED))
                within[name] = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not line:
            break
    raw = json.dumps(line, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.sampled_from([b"", b"\x00", b"\xff", b'"', b"}", b"NaN", b" "])) + raw[at + 1 :]
    return raw + draw(st.sampled_from([b"", b"\r", b"  "]))


def outputs(shape: str) -> st.SearchStrategy[list[bytes]]:
    return st.lists(lines(shape), max_size=12).flatmap(
        lambda found: (
            st.lists(st.sampled_from(found), max_size=3).map(lambda again: found + again) if found else st.just(found)
        )
    )


def price(*rates: str | None, steps: tuple[PriceStep, ...] = ()) -> Price:
    plain, output, cached, written = (None if rate is None else Decimal(rate) for rate in rates)
    assert plain is not None
    assert output is not None
    return Price("x", "m", Tier.BATCH, plain, output, cached, written, "this test", date(2026, 11, 21), steps)


LONG = PriceStep(200_000, Decimal("0.15"), Decimal("0.6"), None, None)
PRICES = [price("0.0625", "0.25", None, None), price("0.075", "0.3", "0.0075", "0.09", steps=(LONG,)),
          price("0.0333333333333333", "1", None, "0.1")]  # fmt: skip


def landed(
    path: Path, raw: Sequence[bytes], provider: Any, *, plain: bool, schema: Any = None, rates: Price = PRICES[0]
) -> tuple[Landed, list[dict[str, Any]]]:
    shard = ShardFile(TOKEN, Path("/nowhere"), 6, "/v1/chat/completions", "m", 86_400)
    writer = ResultsWriter(path, range(10, 16))
    ways: dict[str, Any] = {"plain": provider.plain} if plain else {}
    found = land(raw, shard, decode=provider.decode, check=checker(schema), price=rates, writer=writer, **ways)
    writer.close()
    return found, pq.read_table(path, schema=SCHEMA).to_pylist()


def facts(found: Landed) -> dict[str, Any]:
    return {
        "fates": dict(found.fates), "tally": found.fates.tally(), "outcomes": found.fates.outcomes(), "usage": found.usage,
        "exact": found.exact_micros, "wasted": found.exact_wasted_micros, "strangers": found.n_strangers,
        "repeats": found.n_repeats,
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
@settings(max_examples=200)
def test_the_fast_way_lands_what_the_careful_way_lands(
    tmp_path_factory: pytest.TempPathFactory, shape: str, data: st.DataObject
) -> None:
    """For any mix of ordinary, odd, broken, repeated and foreign lines: the same fates, money, counts and results file."""
    raw, provider = data.draw(outputs(shape)), PROVIDERS[shape]
    schema, rates = data.draw(st.sampled_from([None, LABEL])), data.draw(st.sampled_from(PRICES))
    path = tmp_path_factory.getbasetemp() / "results.parquet"

    fast, fast_records = landed(path, raw, provider, plain=True, schema=schema, rates=rates)
    careful, careful_records = landed(path, raw, provider, plain=False, schema=schema, rates=rates)

    assert facts(fast) == facts(careful)
    assert fast_records == careful_records


def tampered(shape: str) -> Iterator[bytes]:
    """The ordinary line with each of its places in turn cut out, or changed or added to by each odd value."""
    line = SHAPES[shape](3, "yes", (100, 7, 60))
    for path in places(line):
        for change in (*ODD, *((name, value) for name in ADDED for value in ODD), ...):
            whole = [copy.deepcopy(line)]
            within: Any = whole
            for name in (0, *path)[:-1]:
                within = within[name]
            last = path[-1] if path else 0
            if change is ...:
                del within[last]
            elif not isinstance(change, tuple):
                within[last] = change
            elif isinstance(within[last], dict):
                within[last][change[0]] = change[1]
            yield json.dumps(whole[0] if whole else "").encode()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plain_line_is_what_decode_says_of_it(shape: str) -> None:
    """Whatever one thing is odd: what is read in short is what decode says, with text and bill, or it is left to decode."""
    provider, n_plain = PROVIDERS[shape], 0
    for raw in tampered(shape):
        if (found := provider.plain(raw)) is not None:
            name, text, model, *tokens = found
            stop = {"openai": "stop", "anthropic": "end_turn"}[shape]
            assert provider.decode(raw) == Answer(name, Outcome.OK, None, None, text, Usage(*tokens), model, stop), raw
            n_plain += 1
    assert n_plain > 100


@pytest.mark.parametrize("shape", SHAPES)
def test_no_odd_line_keeps_a_shard_from_landing(tmp_path: Path, shape: str) -> None:
    """All tampered lines in one output are landed: what cannot be understood is a stranger or a failed row, and no crash."""
    raw = list(tampered(shape))
    fast, fast_records = landed(tmp_path / "a.parquet", raw, PROVIDERS[shape], plain=True, schema=LABEL)
    careful, careful_records = landed(tmp_path / "b.parquet", raw, PROVIDERS[shape], plain=False, schema=LABEL)
    assert facts(fast) == facts(careful)
    assert fast_records == careful_records
    assert fast.n_strangers > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ordinary_line_is_plain(shape: str) -> None:
    """The line that nearly all are goes the fast way; one without text, or cut at its bound, does not."""
    provider = PROVIDERS[shape]
    line = SHAPES[shape](3, "yes", (100, 7, 60))
    assert provider.plain(json.dumps(line).encode()) is not None
    assert provider.plain(json.dumps(SHAPES[shape](3, " ", (1, 1, 0))).encode()) is None
    assert (
        provider.plain(json.dumps(line).encode().replace(b'"stop"', b'"length"').replace(b"end_turn", b"max_tokens"))
        is None
    )
    assert provider.plain(b"") is None


@given(st.one_of(st.binary(max_size=40), lines("openai"), lines("anthropic")))
def test_the_fast_parser_reads_what_the_slow_one_reads(raw: bytes) -> None:
    """A line is the same value by either parser; only integers beyond 64 bits, which nothing here believes, are floats."""

    def small(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: small(item) for name, item in value.items()}
        if isinstance(value, list):
            return [small(item) for item in value]
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            return float(value)
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    assert small(read_line(raw)) == small(parse(raw))


# ------------------------------------------------------------------------------------------------------------------ money

RATE = st.decimals(0, 100, places=4).map(str) | st.sampled_from(["0.000000000001", "0.0000000000000333", "0"])
BILL = st.tuples(*[st.sampled_from([0, 1, 2, 499, 500, 501, 2_000, 2_001]) | st.integers(0, 10**9)] * 4)


@given(
    rates=st.tuples(RATE, RATE, RATE | st.none(), RATE | st.none()),
    above=st.lists(st.sampled_from([1, 500, 2_000]), unique=True, max_size=2),
    bills=st.lists(BILL | st.none(), max_size=6),
)
def test_costs_are_exact_at_every_price(
    tmp_path_factory: pytest.TempPathFactory, rates: Any, above: list[int], bills: list[Any]
) -> None:
    """A row's cost is the exact one to 12 places and their sum the exact sum, with steps, fine rates and absurd counts."""
    rung = price(*rates, steps=tuple(PriceStep(n, Decimal(k + 1), Decimal(7), None, None) for k, n in enumerate(above)))
    usages = [Usage(*bill) if bill else None for bill in bills]

    class Numbered:
        def decode(self, line: bytes) -> Answer:
            number = int(line)
            return Answer(f"{TOKEN}-{number}", Outcome.OK, None, None, "yes", usages[number], "m")

    path = tmp_path_factory.getbasetemp() / "results.parquet"
    found, records = landed(path, [b"%d" % n for n in range(len(bills))], Numbered(), plain=False, rates=rung)

    exact = [exact_micros(usage, rung) if usage else None for usage in usages]
    places_12 = Decimal("0.000000000001")
    assert [record["cost_micros"] for record in records] == [cost and cost.quantize(places_12) for cost in exact]
    assert found.exact_micros == sum((cost for cost in exact if cost), Decimal(0))


# -------------------------------------------------------------------------------------------------------------- embeddings


def vectors_landed(tmp_path: Path, vectors: Sequence[bytes], *, request: bytes = b"{}", first: bytes = b"") -> Any:
    class Embedding:
        def decode(self, line: bytes) -> Answer:
            number, vector = line.split(b" ")
            name = f"{TOKEN}-{number.decode()}"
            return Answer(name, Outcome.OK, None, None, None, Usage(3, 0), "e", None, bytes.fromhex(vector.decode()))

    requests = tmp_path / "requests.jsonl"
    requests.write_bytes((request + b"\n") * 6)
    shard = ShardFile(TOKEN, requests, 6, "/v1/embeddings", "m", 86_400)
    writer = ResultsWriter(tmp_path / "results.parquet", range(6))
    raw = [first, *(b"%d %s" % (number % 6, vector.hex().encode()) for number, vector in enumerate(vectors))]
    found = land(raw, shard, decode=Embedding().decode, check=checker(None), price=PRICES[0], writer=writer)
    writer.close()
    return found, pq.read_table(tmp_path / "results.parquet").to_pylist()


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_a_vector_lies_in_the_results_as_it_came(tmp_path: Path) -> None:
    """An embedding's bytes are kept; text and vector are two columns, and a text has no vector."""
    found, records = vectors_landed(tmp_path, [floats(0.5, -1), floats(0.25, 3e38)])
    assert [record["vector"] for record in records] == [floats(0.5, -1), floats(0.25, 3e38)]
    assert [record["output"] for record in records] == [None, None]
    assert found.fates.tally() == {"ok": 2}


@pytest.mark.parametrize(
    ("vector", "request_", "words"),
    [
        (floats(1, 2, 3), b"{}", "3 numbers, not 2"),
        (floats(1, 2), b'{"dimensions":3,"input":"x"}', "2 numbers, not 3"),
        (floats(1, math.nan), b"{}", "not finite"),
        (floats(math.inf, 1), b"{}", "not finite"),
        (floats(math.inf, -math.inf), b"{}", "not finite"),
        (floats(1, 2)[:-1], b"{}", "7 bytes"),
        (b"", b"{}", "0 bytes"),
    ],
)
def test_a_vector_that_does_not_fit_fails_its_row(tmp_path: Path, vector: bytes, request_: bytes, words: str) -> None:
    """Of another length than was asked for, or than the first one has; with NaN or an infinity; cut: schema, and it is paid."""
    found, records = vectors_landed(tmp_path, [floats(1, 2), vector], request=request_)
    assert found.fates[1].cause == "schema"
    assert words in records[1]["detail"]
    assert found.exact_micros == 2 * exact_micros(Usage(3, 0), PRICES[0])


def test_a_stranger_s_vector_sets_no_length(tmp_path: Path) -> None:
    """The length of a shard's embeddings is that of the first one that answers a row of it."""
    found, _ = vectors_landed(tmp_path, [floats(1, 2)], first=b"99 " + floats(1, 2, 3).hex().encode())
    assert (found.fates.tally(), found.n_strangers) == ({"ok": 1}, 1)


def test_a_vector_returned_twice_is_one_and_two_vectors_are_a_conflict(tmp_path: Path) -> None:
    """A repeat changes nothing; another vector for the row is FAILED/conflict without any."""
    found, _ = vectors_landed(tmp_path, [floats(1, 2)] * 7)
    assert (found.fates.tally(), found.n_repeats) == ({"ok": 6}, 1)
    found, records = vectors_landed(tmp_path, [*[floats(1, 2)] * 6, floats(2, 1)])
    assert (found.fates[0].cause, records[-1]["vector"]) == ("conflict", None)


# ------------------------------------------------------------------------------------------------------------------ memory

MEASURED = """
import sys, json
from pathlib import Path
from test_landing_fast import LABEL, PRICES, PROVIDERS, TOKEN, ShardFile, ResultsWriter, checker, land, openai_line
n, provider = int(sys.argv[1]), PROVIDERS["openai"]
text = '{"label":"a","n":3,"why":"' + "because " * 80 + '"}'
lines = (json.dumps(openai_line(i, text, (100, 7, 60))).encode() for i in range(n))
writer = ResultsWriter(Path(sys.argv[2]), range(n))
shard = ShardFile(TOKEN, Path("/nowhere"), n, "/v1/chat/completions", "m", 86_400)
found = land(lines, shard, decode=provider.decode, plain=provider.plain, check=checker(LABEL), price=PRICES[0], writer=writer)
writer.close()
assert len(found.fates) == n
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_a_few_bytes_a_line(tmp_path: Path) -> None:
    """The peak of landing 200,000 results of 1.2 kB is that of landing 20,000 of them, and at most 75 bytes a line more."""

    def peak_kb(n: int) -> int:
        command = [sys.executable, "-c", MEASURED, str(n), str(tmp_path / "results.parquet")]
        return int(
            subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
        )

    assert (peak_kb(200_000) - peak_kb(20_000)) * 1024 < 180_000 * 75
