"""Promises of the sources: exact values, true line numbers, every problem at once, bounded memory."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import SourceError
from canwait.sinks.opening import open_sink
from canwait.sources import BATCH_ROWS, RowSource
from canwait.sources.digest import RowDigest
from canwait.sources.frames import from_frame, to_frame_like
from canwait.sources.opening import keep_stdin, open_source
from canwait.types import Load, Source


def source(folder: Path, name: str, content: bytes, format: str | None = None) -> RowSource:
    (folder / name).write_bytes(content)
    return open_source(Source(name, "id", format), folder)


def rows(of: RowSource) -> list[tuple[int, dict[str, Any]]]:
    """Every row with its line, in order."""
    found = []
    for batch in of.batches():
        assert 0 < len(batch.lines) <= BATCH_ROWS
        assert tuple(batch.columns) == of.columns
        for place, line in enumerate(batch.lines):
            found.append((line, {name: values[place] for name, values in batch.columns.items()}))
    return found


def problems(folder: Path, name: str, content: bytes) -> list[str]:
    """What opening and reading the file complains about."""
    with pytest.raises(SourceError) as caught:
        rows(source(folder, name, content))
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


# -------------------------------------------------------------------------------------------------------- CSV and TSV


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_csv_values_are_text_exactly_as_they_stand(tmp_path: Path, bom: bytes, end: bytes) -> None:
    """Leading zeros, spaces, emptiness, scripts and number-like text come through untouched; a BOM does not."""
    lines = ["id,body", "000123, two spaces ", "٤٢,مرحبا", '"a,b","say ""hi"""', "NA,", '1e5,👩\u200d🚀 5" disk']
    read = rows(source(tmp_path, "a.csv", bom + end.join(line.encode() for line in lines) + end))

    assert [tuple(row.values()) for _, row in read] == [
        ("000123", " two spaces "),
        ("٤٢", "مرحبا"),
        ("a,b", 'say "hi"'),
        ("NA", ""),
        ("1e5", '👩\u200d🚀 5" disk'),
    ]
    assert [line for line, _ in read] == [2, 3, 4, 5, 6]
    assert read[0][1].keys() == {"id", "body"}


def test_csv_lines_are_those_an_editor_shows(tmp_path: Path) -> None:
    r"""A row's line is where it starts, past newlines in quotes and blank lines; a lone \r in quotes ends no line."""
    content = b'id,body\n1,"a\nb\r\nc"\n\n2,"x\ry"\n3,z'
    assert rows(source(tmp_path, "a.csv", content)) == [
        (2, {"id": "1", "body": "a\nb\r\nc"}),
        (6, {"id": "2", "body": "x\ry"}),
        (7, {"id": "3", "body": "z"}),
    ]


def test_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    """A TSV's commas are text."""
    assert rows(source(tmp_path, "a.tsv", b"id\tbody\n1\ta,b\n")) == [(2, {"id": "1", "body": "a,b"})]


def test_a_header_alone_is_no_rows(tmp_path: Path) -> None:
    """A CSV that has only its header is a source with columns and without rows."""
    empty = source(tmp_path, "a.csv", b"id,body")
    assert empty.columns == ("id", "body")
    assert rows(empty) == []


def test_every_problem_of_a_csv_is_reported_at_once(tmp_path: Path) -> None:
    """Each bad row is named with its line, what was expected and what was found; good rows are read on the way."""
    content = b'id,body\n1\n2,b,c\n3,ok\n4,caf\xe9 x\n5,a\0b\n6,"x"y\n7,a\rb\n8,"never\nclosed\n'
    bad = source(tmp_path, "a.csv", content)
    reading = bad.batches()
    assert list(next(reading).columns["id"]) == ["3"]
    with pytest.raises(SourceError) as caught:
        next(reading)
    assert str(caught.value).splitlines() == [
        "a.csv:2: expected 2 fields (id, body), found 1",
        "a.csv:3: expected 2 fields (id, body), found 3",
        "a.csv:5:6: invalid UTF-8: byte 0xe9; expected UTF-8 text",
        "a.csv:6:4: a NUL character, expected text",
        'a.csv:7: text after a closing quote; a quote inside a quoted field is written twice: ""',
        r"a.csv:8: a carriage return outside quotes; rows end with \n or \r\n",
        "a.csv:9: a quote opened in this row is never closed: the file ends inside it",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a.csv: empty file, expected a header that names the columns"),
        (b"\n\n", "a.csv: empty file, expected a header that names the columns"),
        (b"a,b,a\n1,2,3\n", "a.csv:1: column 'a' stands twice in the header: fields 1 and 3"),
        (b"\xff\xfea\0", "a.csv:1: UTF-16 text, expected UTF-8: save it as UTF-8"),
        (b"a,b\n1,2\n3", "a.csv:3: expected 2 fields (a, b), found 1; the file ends inside this line: is it cut off?"),
        (b"a,b\n1,2\n3,\xe2\x82", "a.csv:3:3: invalid UTF-8: byte 0xe2; expected UTF-8 text"),
        (b'a,"b\n', "a.csv:1: a quote opened in this row is never closed: the file ends inside it"),
        (
            b'a,b\n1,"\n"x\n',
            'a.csv:2: text after a closing quote on line 3; a quote inside a quoted field is written twice: ""',
        ),
    ],
    ids=["empty", "blank", "duplicate", "utf-16", "cut", "cut in a character", "header", "later line"],
)
def test_a_csv_that_cannot_be_read_says_where(tmp_path: Path, content: bytes, expected: str) -> None:
    """One wrong place is one problem, with its line."""
    assert problems(tmp_path, "a.csv", content) == [expected]


def test_a_bad_header_does_not_hide_bad_rows(tmp_path: Path) -> None:
    """A duplicate column and a short row are reported together."""
    assert len(problems(tmp_path, "a.csv", b"a,a\n1\n")) == 2


def test_a_thousand_problems_are_enough(tmp_path: Path) -> None:
    """The first 1,000 problems are listed and the others counted."""
    found = problems(tmp_path, "a.csv", b"a,b\n" + b"1\n" * 2_500)
    assert len(found) == 1_001
    assert found[999].startswith("a.csv:1001: ")
    assert found[1_000] == "a.csv: ... and 1,500 more"


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=2, max_size=2)
    )
)
def test_a_csv_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, written: list[list[str]]) -> None:
    """Whatever Python's own writer puts into a file comes back, and each row's line is where its bytes start."""
    text, starts = io.StringIO(newline=""), []
    writer = csv.writer(text)
    writer.writerow(["id", "body"])
    for row in written:
        starts.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    read = rows(source(tmp_path_factory.mktemp("csv"), "a.csv", text.getvalue().encode()))

    assert [list(row.values()) for _, row in read] == written
    assert [line for line, _ in read] == starts


def test_a_field_may_be_longer_than_pythons_limit(tmp_path: Path) -> None:
    """A field of a megabyte is read whole."""
    body = "x" * 1_000_000
    assert rows(source(tmp_path, "a.csv", f"id,body\n1,{body}\n".encode())) == [(2, {"id": "1", "body": body})]


# -------------------------------------------------------------------------------------------------------------- JSONL


def test_jsonl_keeps_values_and_lines(tmp_path: Path) -> None:
    """Types, big integers and text are exact, blank lines only count as lines, a missing field is None."""
    big = 2**200 + 1
    lines = [
        '{"id":"000123","n":1}',
        "",
        f'{{"n":{big},"x":[1,{{"y":null}}]}}',
        "  ",
        f'{{"n":{-(2**63) - 1}}}',
        '{"n":1.5}',
    ]
    read = rows(source(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + "\r\n".join(lines).encode()))
    assert read == [
        (1, {"id": "000123", "n": 1, "x": None}),
        (3, {"id": None, "n": big, "x": [1, {"y": None}]}),
        (5, {"id": None, "n": -(2**63) - 1, "x": None}),
        (6, {"id": None, "n": 1.5, "x": None}),
    ]


def test_jsonl_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    """A field that first appears after a thousand rows is a column of every batch."""
    content = b'{"id":1}\n' * (3 * BATCH_ROWS) + b'{"id":2,"late":true}\n'
    late = source(tmp_path, "a.ndjson", content)
    assert late.columns == ("id", "late")
    assert rows(late)[-1] == (3 * BATCH_ROWS + 1, {"id": 2, "late": True})


def test_every_problem_of_a_jsonl_is_reported_at_once(tmp_path: Path) -> None:
    """Each bad line is named with line and column, counted in characters; good rows are read on the way."""
    lines = [b'{"a":1}', b'{"\xc3\xa9":1,,"b":2}', b"[1]", b"null", b"3", b'"x"', b'{"a":"\xff"}', b'{"a":"\0"}']
    lines += [b'{"a":NaN}', b'{"a":"\\ud800"}', b'{"a":2}', b'{"a":']
    content = b"\n".join(lines)
    assert problems(tmp_path, "a.jsonl", content) == [
        "a.jsonl:2:8: not JSON: unexpected character, expected a string key",
        "a.jsonl:3: found an array, expected one JSON object a line",
        "a.jsonl:4: found null, expected one JSON object a line",
        "a.jsonl:5: found a number, expected one JSON object a line",
        "a.jsonl:6: found a string, expected one JSON object a line",
        "a.jsonl:7:7: invalid UTF-8: byte 0xff; expected UTF-8 text",
        "a.jsonl:8:7: a NUL character, expected text",
        "a.jsonl:9:6: not JSON: unexpected character, expected a JSON value",
        "a.jsonl:10:7: not JSON: no low surrogate in string",
        "a.jsonl:12:6: not JSON: unexpected end of data; the file ends inside this line: is it cut off?",
    ]


def test_numbers_no_machine_can_hold_are_problems(tmp_path: Path) -> None:
    """Hundreds of digits, or a long number under a thousand brackets, are a bad row and not a crash."""
    deep = b'{"a":%s%s%s}' % (b"[" * 1_010, b"1" * 20, b"]" * 1_010)
    assert problems(tmp_path, "a.jsonl", b'{"a":%s}\n%s\n{"a":1}\n' % (b"9" * 400, deep)) == [
        "a.jsonl:1:6: not JSON: number is infinity when parsed as double",
        "a.jsonl:2: nested too deeply to be read",
    ]


def test_names_that_are_data_are_refused(tmp_path: Path) -> None:
    """A file whose field names never end is refused instead of filling the memory."""
    lines = b"".join(b'{"%d":1}\n' % n for n in range(10_001))
    assert problems(tmp_path, "a.jsonl", lines) == ["a.jsonl:10001: the 10,001th different field name, '10000'"]


def test_an_empty_jsonl_is_no_rows(tmp_path: Path) -> None:
    """JSONL needs no header, so an empty file is an empty data set."""
    assert rows(source(tmp_path, "a.jsonl", b"")) == []


# ------------------------------------------------------------------------------------------------------------ Parquet


def test_parquet_keeps_types(tmp_path: Path) -> None:
    """Values come as Python values of their type, dictionaries decoded, nanoseconds cut to microseconds."""
    now = datetime(2026, 8, 1, 12, 0, 0, 123456, tzinfo=UTC)
    table = pa.table(
        {
            "id": ["000123", "٤٢"],
            "cat": pa.array(["x", None]).dictionary_encode(),
            "n": pa.array([2**63 - 1, None], pa.int64()),
            "usd": pa.array([Decimal("1.50"), None]),
            "at": pa.array([now, None], pa.timestamp("ns", "UTC")),
            "tags": [["a", "b"], []],
            "raw": [b"\0\xff", None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    read = rows(open_source(Source("a.parquet", "id"), tmp_path))
    assert read == [
        (
            1,
            {
                "id": "000123",
                "cat": "x",
                "n": 2**63 - 1,
                "usd": Decimal("1.50"),
                "at": now,
                "tags": ["a", "b"],
                "raw": b"\0\xff",
            },
        ),
        (2, {"id": "٤٢", "cat": None, "n": None, "usd": None, "at": None, "tags": [], "raw": None}),
    ]
    assert type(read[0][1]["at"]) is datetime


def test_a_damaged_parquet_says_so(tmp_path: Path) -> None:
    """A file cut off, and one with a damaged page, are errors with the place, not a crash."""
    pq.write_table(pa.table({"id": [str(n) * 50 for n in range(20_000)]}), tmp_path / "a.parquet", row_group_size=5_000)
    whole = (tmp_path / "a.parquet").read_bytes()
    assert problems(tmp_path, "cut.parquet", whole[:1000])[0].startswith("cut.parquet: is not a Parquet file")

    start = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0).dictionary_page_offset
    damaged = whole[:start] + bytes(5_000) + whole[start + 5_000 :]
    assert problems(tmp_path, "bad.parquet", damaged)[0].startswith("bad.parquet: cannot be read after row ")


# ------------------------------------------------------------------------------------------------------------- frames

AT = datetime(2026, 8, 1, 12, tzinfo=UTC)
COLUMNS: dict[str, list[Any]] = {"id": ["007", "x"], "n": [1, 2], "body": ["a", None], "at": [AT, AT]}
FRAMES = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "arrow": lambda: pa.table(COLUMNS),
    "reader": lambda: pa.table(COLUMNS).to_reader(max_chunksize=1),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frames_rows_are_its_values(kind: str) -> None:
    """Every kind of frame gives the same Python values, the same row numbers and the same fingerprint."""
    of = from_frame(FRAMES[kind]())
    expected = [{name: values[i] for name, values in COLUMNS.items()} for i in range(2)]
    assert rows(of) == [(1, expected[0]), (2, expected[1])]
    assert rows(of) == rows(of)  # also a stream is read twice
    assert of.name == "frame"
    assert of.fingerprint() == from_frame(pa.table(COLUMNS)).fingerprint()


def test_a_frames_fingerprint_is_its_content() -> None:
    """One changed value, name or order changes the fingerprint; how a table is chunked does not."""
    one = pa.table({"a": ["1", "2"], "b": ["x", "y"]})
    others = [
        one.set_column(0, "a", pa.array(["1", "3"])),
        one.set_column(0, "a", pa.array([1, 2])),
        one.set_column(0, "a", pa.array(["1", None])),
        one.rename_columns(["a", "c"]),
        one.select(["b", "a"]),
        one.take([1, 0]),
        one.slice(0, 1),
    ]
    prints = [from_frame(table).fingerprint() for table in [one, *others]]
    assert len(set(prints)) == len(prints)
    assert from_frame(pa.concat_tables([one.slice(0, 1), one.slice(1)])).fingerprint() == prints[0]


@pytest.mark.parametrize("kind", FRAMES)
def test_the_frame_type_that_went_in_comes_out(kind: str) -> None:
    """Results come back as the user's own kind of frame, with values unchanged, integers with gaps included."""
    frame = FRAMES[kind]()
    back = to_frame_like(frame, pa.table({"id": ["007", "x"], "n": [2**53 + 1, None], "ok": [None, True]}))
    assert type(back) is type(frame)
    values = {name: values for batch in from_frame(back).batches() for name, values in batch.columns.items()}
    assert values == {"id": ["007", "x"], "n": [2**53 + 1, None], "ok": [None, True]}


def test_a_named_pandas_index_is_a_column() -> None:
    """A key that stands in the index can be used; a plain index is not a column."""
    assert set(from_frame(pd.DataFrame({"a": [1]}, index=pd.Index(["k"], name="id"))).columns) == {"a", "id"}
    assert from_frame(pd.DataFrame({"a": [1]})).columns == ("a",)


@pytest.mark.parametrize(
    "frame",
    [
        [{"id": 1}],
        pd.DataFrame({"a": [1, "x"]}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
    ids=["a list", "mixed types", "pandas twice", "arrow twice"],
)
def test_a_frame_that_cannot_be_rows_is_refused(frame: Any) -> None:
    """What is not a frame, mixes types in a column, or names a column twice is a SourceError that says which."""
    with pytest.raises(SourceError, match=r"list|column a|Duplicate|'a' stands twice"):
        from_frame(frame)


def test_frames_need_no_library_but_their_own() -> None:
    """Where neither pandas nor polars is installed, Arrow tables are read and given back."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("pandas", "polars", "numpy"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import pyarrow as pa
from canwait.sources.frames import from_frame, to_frame_like
table = pa.table({"id": ["1"]})
source = from_frame(table)
assert [batch.columns for batch in source.batches()] == [{"id": ["1"]}]
assert source.fingerprint() and to_frame_like(table, table) is table
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------------ opening


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_fingerprint_is_of_the_bytes(tmp_path: Path, name: str) -> None:
    """The fingerprint of a file is the sha256 anybody can compute."""
    if name == "a.parquet":
        pq.write_table(pa.table({"id": ["1"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b'{"id":1}\n')
    expected = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert open_source(Source(name, "id"), tmp_path).fingerprint() == expected


def a_csv(path: Path) -> None:
    path.write_text("id\n" + "".join(f"{n}\n" for n in range(3 * BATCH_ROWS)))


def a_jsonl(path: Path) -> None:
    path.write_text("".join(f'{{"id":{n}}}\n' for n in range(3 * BATCH_ROWS)))


def a_parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": list(range(3 * BATCH_ROWS))}), path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def exchange(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


@pytest.mark.parametrize("change", [grow, exchange, Path.unlink], ids=["grown", "exchanged", "removed"])
@pytest.mark.parametrize("write", [a_csv, a_jsonl, a_parquet])
def test_a_file_that_changes_under_the_reader_is_an_error(tmp_path: Path, write: Any, change: Any) -> None:
    """Rows of two states of a file never make one data set; a fingerprint is of the state whose rows were read."""
    path = tmp_path / f"a.{write.__name__[2:]}"
    write(path)
    of = open_source(Source(path.name, "id"), tmp_path)
    reading = of.batches()
    next(reading)
    change(path)
    with pytest.raises(SourceError, match="changed while it was read"):
        list(reading)
    with pytest.raises(SourceError, match=r"changed while it was read|No such file"):
        of.fingerprint()


@pytest.mark.parametrize(
    ("given_source", "message"),
    [
        (Source("tikets.csv", "id"), "tikets.csv: source: no such file in FOLDER; did you mean 'tickets.csv'?"),
        (Source("zzz.parquet", "id"), "zzz.parquet: source: no such file in FOLDER"),
        (Source("no/tickets.csv", "id"), "no/tickets.csv: source: no such file, and no folder FOLDER/no"),
        (Source("folder.csv", "id"), "folder.csv: source: is a folder, expected a file"),
        (
            Source("tickets.xlsx", "id"),
            "tickets.xlsx: source: unknown ending '.xlsx'; expected .csv, .tsv, .jsonl, .ndjson, .parquet, "
            "also followed by .gz or .zst, or `format` set to one of: csv, tsv, jsonl, parquet",
        ),
        (
            Source("tickets.csv", "id", "xml"),
            "tickets.csv: source: unknown format 'xml'; expected one of: csv, tsv, jsonl, parquet",
        ),
    ],
    ids=lambda value: value.uri if isinstance(value, Source) else "",
)
def test_a_source_that_is_not_there_says_what_is(tmp_path: Path, given_source: Source, message: str) -> None:
    """A wrong name, ending or format is answered with what was looked for and what would be right."""
    (tmp_path / "tickets.csv").write_text("id\n")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SourceError) as caught:
        open_source(given_source, tmp_path)
    assert str(caught.value) == message.replace("FOLDER", str(tmp_path))


def test_the_format_overrules_the_ending(tmp_path: Path) -> None:
    """A file of any name is read as the format the job file states."""
    assert rows(source(tmp_path, "a.txt", b'{"id":1}', format="jsonl")) == [(1, {"id": 1})]


def test_standard_input_is_kept_to_be_read_twice(tmp_path: Path) -> None:
    """What is piped in is a file like any other from then on; its format has to be stated."""
    kept = keep_stdin(Source("-", "id", "csv"), io.BytesIO(b"id\n1\n"), tmp_path)
    piped = open_source(kept, Path("/elsewhere"))
    assert rows(piped) == rows(piped) == [(2, {"id": "1"})]
    with pytest.raises(SourceError, match="no ending"):
        keep_stdin(Source("-", "id"), io.BytesIO(), tmp_path)


def test_real_files_are_read_whole(shared: Path) -> None:
    """The data sets of the project have the rows their description says."""
    data = shared / "data"
    if not data.is_dir():
        pytest.skip("no ../shared/data")
    counts = {
        "text/banking77_test.csv": 3_080,
        "text/banking77_train.csv": 10_003,
        "traces/azure_llm_2023_code.csv": 8_819,
        "traces/mooncake_conversation.jsonl": 12_031,
        "traces/vidur_arxiv_summarization_lengths.csv": 28_257,
    }
    for name, count in counts.items():
        of = open_source(Source(name, "id"), data)
        assert sum(len(batch.lines) for batch in of.batches()) == count, name


MEASURE = r"""
import re, sys
from pathlib import Path
from canwait.sources.opening import open_source
from canwait.types import Load, Source
path = Path(sys.argv[1])
n = sum(len(batch.lines) for batch in open_source(Source(path.name, "id"), path.parent).batches())
# Not ru_maxrss: that starts with what the parent process had.
print(n, re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_mib(path: Path, expected_rows: int) -> float:
    # Arrow's own allocator keeps what was freed, by tens of MiB more or less from run to run.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", MEASURE, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    n_rows, kib = map(int, answer.stdout.split())
    assert n_rows == expected_rows
    return kib / 1024


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, ending: str) -> None:
    """Reading 200,000 rows takes at most a few MiB more than reading 20,000."""
    peaks = []
    for n_rows in (20_000, 200_000):
        path = tmp_path / f"{n_rows}.{ending}"
        body = "text of a message, " * 20
        if ending == "csv":
            path.write_text("id,body\n" + "".join(f'{n},"{body}{n}"\n' for n in range(n_rows)))
        elif ending == "jsonl":
            path.write_text("".join(json.dumps({"id": n, "body": f"{body}{n}"}) + "\n" for n in range(n_rows)))
        else:
            table = pa.table({"id": list(range(n_rows)), "body": [f"{body}{n}" for n in range(n_rows)]})
            pq.write_table(table, path, row_group_size=10_000)
        peaks.append(peak_mib(path, n_rows))
    assert peaks[1] - peaks[0] < 16, peaks  # the rows themselves are 72 MiB more


@pytest.mark.parametrize("kind", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.parquet", "frame", "query"])
def test_only_the_columns_that_are_asked_for_come(tmp_path: Path, kind: str) -> None:
    """Any columns in any order, or none; lines and the fingerprint are those of all of them."""
    table = pa.table({"a": ["1", "2"], "a.b": ["x", "y"], "b": ["p", "q"]})
    of: RowSource
    if kind == "frame":
        of = from_frame(table)
    elif kind == "query":
        (tmp_path / "a.db").touch()
        query = """SELECT '1' AS a, 'x' AS "a.b", 'p' AS b UNION ALL SELECT '2', 'y', 'q'"""
        of = open_source(Source("sqlite:///a.db", "a", sql=query), tmp_path)
    else:
        sink = open_sink(Load(kind), tmp_path, "a")
        sink.load(table.to_batches(), table.schema)
        of = open_source(Source(kind, "a"), tmp_path)
    lines = [line for batch in of.batches() for line in batch.lines]
    fingerprint = of.fingerprint()
    for wanted in ([], ["b"], ["a.b"], ["b", "a"], ["a", "a.b", "b"]):
        found = list(of.batches(wanted))
        assert [list(batch.columns) for batch in found] == [wanted]
        assert [list(found[0].columns[name]) for name in wanted] == [table.column(name).to_pylist() for name in wanted]
        assert [line for batch in found for line in batch.lines] == lines
    assert of.fingerprint() == fingerprint


@given(
    st.lists(st.tuples(st.none() | st.text(), st.none() | st.integers() | st.text()), max_size=4),
    st.lists(st.tuples(st.none() | st.text(), st.none() | st.integers() | st.text()), max_size=4),
)
def test_a_digest_tells_rows_apart(one: list[Any], two: list[Any]) -> None:
    """Two batches have one digest exactly when they are equal: no value runs into the next, and None is not empty text."""

    def digest(rows: list[Any]) -> str:
        found = RowDigest(("a", "b"))
        found.add([[row[0] for row in rows], [row[1] for row in rows]])
        return found.hexdigest()

    assert (digest(one) == digest(two)) == (one == two)


def test_a_digest_knows_where_text_ends() -> None:
    """The same characters cut elsewhere are other rows."""
    found = set()
    for columns in ([["ab", "c"]], [["a", "bc"]], [["abc", None]], [["abc", ""]], [["abc"], [""]], [["ab"], ["c"]]):
        digest = RowDigest(("a",))
        digest.add(columns)
        found.add(digest.hexdigest())
    assert len(found) == 6
