"""Raw output becomes results: by id and never by position, each row once, each micro once, whatever a provider sends."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.drills.histories import PRICE
from canwait.landing import MANIFEST, SCHEMA, Landed, ResultsWriter, checker, land, read_manifest, subset
from canwait.price import exact_micros
from canwait.types import Answer, Outcome, ShardFile, Usage

TOKEN = "c0123456789abcdef0123"
USAGE = Usage(100, 7)
COST = exact_micros(USAGE, PRICE)


def shard(n_rows: int) -> ShardFile:
    return ShardFile(TOKEN, Path("/nowhere"), n_rows, "/v1/chat/completions", "m", 86_400)


def line(
    number: int | str, text: str | None = "yes", *, cause: str | None = None, usage: Usage | None = USAGE
) -> bytes:
    """One line of output, as `decode` below reads it."""
    name = f"{TOKEN}-{number}" if isinstance(number, int) else number
    tokens = [usage.input_tokens, usage.output_tokens] if usage else None
    return json.dumps({"id": name, "text": text, "cause": cause, "usage": tokens}).encode()


def decode(raw: bytes) -> Answer:
    try:
        seen = json.loads(raw)
        usage = Usage(*seen["usage"]) if seen["usage"] else None
        outcome = Outcome.FAILED if seen["cause"] else Outcome.OK
        return Answer(seen["id"], outcome, seen["cause"], "words" * 200, seen["text"], usage, "m-2026")
    except (ValueError, KeyError, TypeError):
        return Answer("", Outcome.FAILED, "malformed", None, None, None, None)


def landed(
    folder: Path,
    lines: Sequence[bytes],
    n_rows: int = 3,
    *,
    schema: Any = None,
    root_lines: Sequence[int] | None = None,
) -> tuple[Landed, dict[str, list[Any]]]:
    """What `land` says, and the results file it wrote, by column."""
    path = folder / "results.parquet"
    writer = ResultsWriter(path, root_lines or range(n_rows))
    found = land(lines, shard(n_rows), decode=decode, check=checker(schema), price=PRICE, writer=writer)
    writer.close()
    return found, pq.read_table(path, schema=SCHEMA).to_pydict()


def outcomes(found: Landed) -> dict[int, tuple[str, str | None]]:
    return {number: (fate.outcome.name, fate.cause) for number, fate in found.fates.items()}


# -------------------------------------------------------------------------------------------------------------- joining


@given(data=st.data())
def test_whatever_comes_every_row_is_answered_once_and_paid_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """For any mix and order of answers, repeats, strangers and noise: fates are of the shard's rows, money is theirs."""
    n_rows = data.draw(st.integers(1, 6))
    rows = data.draw(st.lists(st.integers(0, n_rows - 1), max_size=12))
    noise = data.draw(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=4))
    strangers = [line(f"{TOKEN}-{n_rows + k}") for k in range(data.draw(st.integers(0, 3)))]
    lines = [*(line(row, data.draw(st.sampled_from(["yes", "no"]))) for row in rows), *strangers, *noise]
    random.Random(data.draw(st.integers(0, 99))).shuffle(lines)

    found, table = landed(tmp_path_factory.getbasetemp(), lines, n_rows)

    assert set(found.fates) == set(rows)
    assert found.exact_micros == COST * len(set(rows))
    assert found.usage == Usage(100 * len(set(rows)), 7 * len(set(rows)))
    assert found.n_strangers == len(strangers) + sum(bool(piece.strip()) for piece in noise)
    assert found.n_repeats == len(rows) - len(set(rows))
    assert set(table["line"]) == set(rows)
    useful = sum(fate.outcome is Outcome.OK for fate in found.fates.values())
    assert found.exact_micros - found.exact_wasted_micros == COST * useful


@pytest.mark.parametrize(
    "name",
    ["", "other-0", f"{TOKEN}-3", f"{TOKEN}-00", f"{TOKEN}--0", f"{TOKEN}-0 ", f" {TOKEN}-0", f"{TOKEN}-٠", TOKEN, "0"],
)
def test_an_id_that_is_not_ours_is_counted_and_never_joined(tmp_path: Path, name: str) -> None:
    """Another token, a line beyond the shard's end, or an id that only looks like ours answers nothing."""
    found, table = landed(tmp_path, [line(0), line(name)])
    assert outcomes(found) == {0: ("OK", None)}
    assert found.n_strangers == 1
    assert table["line"] == [0]


def test_results_are_lines_of_the_root(tmp_path: Path) -> None:
    """A shard that sends lines 4 and 9 of its root again records its answers under 4 and 9."""
    found, table = landed(tmp_path, [line(1, "nine"), line(0, "four")], 2, root_lines=[4, 9])
    assert set(found.fates) == {0, 1}
    assert dict(zip(table["line"], table["output"], strict=True)) == {9: "nine", 4: "four"}


def test_a_line_cut_off_at_the_end_is_a_missing_row(tmp_path: Path) -> None:
    """An output that ends in the middle of a line loses that row only; it is no answer and no crash."""
    found, _ = landed(tmp_path, [line(0), line(1)[:-10]])
    assert outcomes(found) == {0: ("OK", None)}
    assert found.n_strangers == 1


# ----------------------------------------------------------------------------------------------- one row, several lines


@pytest.mark.parametrize(
    ("lines", "fate", "text", "paid"),
    [
        ([line(0, "yes"), line(0, "yes")], ("OK", None), "yes", 1),
        ([line(0, "yes"), line(0, "no")], ("FAILED", "conflict"), None, 1),
        ([line(0, "yes"), line(0, "no"), line(0, "yes")], ("FAILED", "conflict"), None, 1),
        ([line(0, None, cause="server_error", usage=None), line(0, "yes")], ("OK", None), "yes", 1),
        ([line(0, "yes"), line(0, None, cause="server_error", usage=None)], ("OK", None), "yes", 1),
        ([line(0, None, cause="length"), line(0, None, cause="length")], ("FAILED", "length"), None, 1),
        ([line(0, None, cause="length"), line(0, "yes")], ("OK", None), "yes", 1),
    ],
)
def test_a_row_returned_several_times(
    tmp_path: Path, lines: list[bytes], fate: tuple[str, str | None], text: str | None, paid: int
) -> None:
    """Equal answers are one, different ones are a conflict, an answer beats an error; it is paid once. The last record counts."""
    found, table = landed(tmp_path, lines, 1)
    assert outcomes(found) == {0: fate}
    assert (table["outcome"][-1], table["output"][-1]) == (Outcome[fate[0]], text)
    assert found.exact_micros == COST * paid


# --------------------------------------------------------------------------------------------------------------- money


def test_a_cost_is_exact(tmp_path: Path) -> None:
    """A row's cost is kept unrounded, to the millionth of a micro; only a shard's sum is rounded, once."""
    found, table = landed(tmp_path, [line(0, usage=Usage(1, 0)), line(1, usage=Usage(3, 1)), line(2, usage=None)])
    assert table["cost_micros"] == [Decimal("0.0625"), Decimal("0.4375"), None]
    assert found.exact_micros == Decimal("0.5")
    assert table["input_tokens"] == [1, 3, None]


def test_what_is_paid_for_nothing_is_wasted(tmp_path: Path) -> None:
    """The cost of rows that cannot be used is counted apart: cut, conflicting, not fitting their schema."""
    lines = [line(0), line(1, None, cause="length"), line(2, "a"), line(2, "b")]
    found, _ = landed(tmp_path, lines)
    assert (found.exact_micros, found.exact_wasted_micros) == (3 * COST, 2 * COST)


@pytest.mark.parametrize(
    ("raw", "billed"),
    [
        (line(0), "stated"),
        (line(0, usage=None), "unknown"),
        (line(0, None, cause="length", usage=None), "unknown"),
        (line(0, None, cause="malformed", usage=None), "unknown"),
        (line(0, None, cause="server_error", usage=None), "nothing"),
        (line(0, None, cause="invalid_request", usage=None), "nothing"),
        (line(0, None, cause="server_error"), "stated"),
    ],
)
def test_a_row_without_a_bill_is_free_only_if_it_never_ran(tmp_path: Path, raw: bytes, billed: str) -> None:
    """An answer without usage may have been billed, so that is unknown and not zero; an error before it ran is nothing."""
    found, _ = landed(tmp_path, [raw])
    assert found.fates[0].billed == billed


# -------------------------------------------------------------------------------------------------------------- schemas

LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
    "required": ["label"],
}


WHOLE = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}, "unevaluatedProperties": False}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"label": "a", "n": 3}', None),
        ('{"label": "c"}', "label"),
        ("{}", "label"),
        ("not json", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"label": "a", "n": 1e400}', "not JSON"),
        ('{"label": "a", "n": 9223372036854775808}', "n"),
        ('{"label": "a"} trailing', "not JSON"),
        ('"a"', "answer"),
    ],
)
def test_an_answer_is_checked_against_its_schema(text: str, problem: str | None) -> None:
    """What fits is OK; anything else, however hostile, is one clear sentence that names the place."""
    found = checker(LABEL)(text)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize("n", [-(2**63), 2**63 - 1, 3.0, None, 0])
def test_an_integer_of_64_bits_fits(n: Any) -> None:
    """The bound is that of a column, to the last integer; a schema's own `allOf` and references hold beside it."""
    schema = {"$ref": "#/$defs/answer", "allOf": [{"required": ["n"]}], "$defs": {"answer": {"$defs": {}, **WHOLE}}}
    check = checker(schema)
    assert check(json.dumps({"n": n})) is None
    assert str(check(json.dumps({"n": 2**63}))).startswith("n: ")
    assert str(check(json.dumps({"n": -(2**63) - 1}))).startswith("n: ")
    assert "required" in str(check("{}"))
    assert "'other'" in str(check('{"n": 1, "other": 2}'))


def test_without_a_schema_every_text_is_an_answer() -> None:
    """Nothing is checked where nothing was asked for."""
    assert checker(None)("anything") is None


def test_a_failed_check_keeps_the_text_and_the_bill(tmp_path: Path) -> None:
    """An answer that does not fit is failed with cause schema, and what was said and paid is recorded (curator lost both)."""
    found, table = landed(tmp_path, [line(0, '{"label": "c"}')], schema=LABEL)
    assert outcomes(found) == {0: ("FAILED", "schema")}
    assert table["output"] == ['{"label": "c"}']
    assert found.exact_wasted_micros == COST


# ---------------------------------------------------------------------------------------------------------------- files


def test_results_have_their_schema_whatever_is_in_them(tmp_path: Path) -> None:
    """No row, one row or more than a chunk of them: the file has the documented columns and a detail of at most 500 characters."""
    for n_rows in (0, 1, 5000):
        found, table = landed(tmp_path, [line(number) for number in range(n_rows)], n_rows)
        assert list(table) == SCHEMA.names
        assert table["line"] == list(range(n_rows))
        assert len(found.fates) == n_rows
        assert all(len(detail) <= 500 for detail in table["detail"])


@given(n_lines=st.integers(0, 20), wanted=st.sets(st.integers(0, 19)).map(sorted))
def test_a_subset_is_the_wanted_lines_in_order(n_lines: int, wanted: list[int]) -> None:
    """The request file of a retry holds exactly the lines that are sent again, each ended by a newline."""
    lines = [b'{"n": %d}' % number for number in range(n_lines)]
    assert list(subset(lines, wanted)) == [lines[number] + b"\n" for number in wanted if number < n_lines]


def test_a_manifest_is_read_with_its_schema(tmp_path: Path) -> None:
    """A manifest comes back as it was written; a file with other columns is an error, not a guess."""
    rows = {
        "line": [0, 4],
        "identity": [b"a" * 16, b"b" * 16],
        "input_expected": [1, 2],
        "input_bound": [3, 4],
        "output_bound": [5, 6],
    }
    pq.write_table(pa.table(rows, schema=MANIFEST), tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet").to_pydict() == rows
    pq.write_table(pa.table({"line": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError, ValueError)):
        read_manifest(tmp_path / "other.parquet")
