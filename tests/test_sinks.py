"""Promises of the sinks: all rows or none, a load repeated changes nothing, every value comes back as it was."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import SinkError
from canwait.places import Keys
from canwait.sinks.atomic import replacing
from canwait.sinks.opening import failed_rows, open_sink, read_back
from canwait.sinks.rows import field_types, fitted
from canwait.sources.opening import open_source
from canwait.types import Load, Source

ENDINGS = ["csv", "tsv", "jsonl", "parquet"]
MODES = ["merge", "append", "replace"]
AT = datetime(2026, 8, 1, 12, 0, 0, 250_000, tzinfo=UTC)
SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string()), ("score", pa.int64())])
AWKWARD = [
    "000123", "", " spaces ", "a,b\tc", 'say "hi"', '"', "two\nlines", "cr\rlf\r\nend\n", "مرحبا بالعالم",
    "👩\u200d🚀 ñ 漢字",
    "=1+1", "NULL", "\\N", "1e5", "\ufeffbom", "\u2028", "nul\0", "true", "[1]",
]  # fmt: skip


def batch(*rows: tuple[Any, ...], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def load(path: Path, *batches: pa.RecordBatch, mode: Any = "merge") -> int:
    sink = open_sink(Load(path.name, mode), path.parent, "id")
    return sink.load(iter(batches), batches[0].schema)


def ids(path: Path) -> list[str]:
    keys: list[str] = read_back(path).column("id").to_pylist()
    return keys


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_awkward_text_comes_back_exactly(tmp_path: Path, ending: str, mode: str) -> None:
    """Keys and values survive sink, repeated load and source; only CSV has no null and no numbers."""
    path = tmp_path / f"a.{ending}"
    rows = [(text or "empty", text, n) for n, text in enumerate(AWKWARD)]
    for _ in range(2):
        assert load(path, batch(*rows, ("null", None, None)), mode=mode) == len(rows) + 1
    back = read_back(path).to_pylist()
    nothing = "" if ending in ("csv", "tsv") else None
    number = str if ending in ("csv", "tsv") else int
    assert [tuple(row.values()) for row in back] == [
        *((key, text, number(n)) for key, text, n in rows),
        ("null", nothing, nothing),
    ]
    if ending not in ("csv", "tsv"):  # a source of text refuses NUL
        assert [dict(zip(b.columns, v, strict=True)) for b in open_source(Source(path.name, "id"), tmp_path).batches()
                for v in zip(*b.columns.values(), strict=True)] == back  # fmt: skip


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True), st.sampled_from(ENDINGS))
def test_any_text_is_a_key(tmp_path_factory: pytest.TempPathFactory, keys: list[str], ending: str) -> None:
    """Whatever the keys are, they come back, and a merge finds each of them again."""
    path = tmp_path_factory.mktemp("sink") / f"a.{ending}"
    keys = [key or "k" * 40 for key in keys]  # a source's key is never empty
    for score in (1, 2):
        load(path, batch(*((key, key, score) for key in keys)))
    table = read_back(path)
    if keys:
        assert table.column("id").to_pylist() == keys
        assert set(map(str, table.column("score").to_pylist())) == {"2"}


def test_text_formats_hold_values_as_documented(tmp_path: Path) -> None:
    """Decimals stand in full, times as ISO 8601 in UTC, nested values as JSON, and formulas as they are."""
    schema = pa.schema([
        ("id", pa.string()), ("ok", pa.bool_()), ("x", pa.float64()), ("tags", pa.list_(pa.string())),
        ("_cost_usd", pa.decimal128(18, 9)), ("_produced_at", pa.timestamp("us", "UTC")),
    ])  # fmt: skip
    rows = batch(("=1+1", True, 0.1, ["a", "ü"], Decimal("0.00000123"), AT), schema=schema)
    load(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_text() == (
        'id,ok,x,tags,_cost_usd,_produced_at\n=1+1,true,0.1,"[""a"",""ü""]",0.000001230,2026-08-01T12:00:00.250000Z\n'
    )
    load(tmp_path / "a.jsonl", rows)
    assert (tmp_path / "a.jsonl").read_text() == (
        '{"id":"=1+1","ok":true,"x":0.1,"tags":["a","ü"],"_cost_usd":"0.000001230",'
        '"_produced_at":"2026-08-01T12:00:00.250000Z"}\n'
    )
    load(tmp_path / "a.parquet", rows)
    assert pq.read_schema(tmp_path / "a.parquet") == schema
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows.to_pylist()


def test_other_readers_understand_the_csv(tmp_path: Path) -> None:
    """Python's csv reader finds the same fields in what the sink wrote."""
    rows = [(text or "empty", text, n) for n, text in enumerate(AWKWARD)]
    load(tmp_path / "a.csv", batch(*rows))
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file, strict=True))[1:] == [[key, text, str(n)] for key, text, n in rows]


# ------------------------------------------------------------------------------------------ merge, append and replace


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_merge_replaces_in_place_and_adds_at_the_end(tmp_path: Path, ending: str) -> None:
    """Rows of known keys change where they stand, other rows stay, new keys come last in their own order."""
    path = tmp_path / f"a.{ending}"
    load(path, batch(("1", "a", 1), ("2", "b", 2), ("3", "c", 3)))
    assert load(path, batch(("9", "z", 9), ("3", "C", 30)), batch(("1", None, 10), ("4", "d", 4))) == 5
    rows = [(row["id"], row["label"] or "", int(row["score"])) for row in read_back(path).to_pylist()]
    assert rows == [("1", "", 10), ("2", "b", 2), ("3", "C", 30), ("9", "z", 9), ("4", "d", 4)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_append_adds_what_is_not_there_yet(tmp_path: Path, ending: str) -> None:
    """A row equal in every column is not added again; another answer for a known key is, and replaces nothing."""
    path = tmp_path / f"a.{ending}"
    first = batch(("1", "a", 1), ("2", None, None))
    for _ in range(2):
        assert load(path, first, mode="append") == 2
    for _ in range(2):
        assert load(path, batch(("1", "a", 1), ("1b", "a", 1), ("2", "b", None)), mode="append") == 4
    assert ids(path) == ["1", "2", "1b", "2"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_replace_leaves_exactly_the_new_rows(tmp_path: Path, ending: str) -> None:
    """Nothing of the old target survives a replace, whatever it was."""
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"not what it says")
    assert load(path, batch(("1", "a", 1)), mode="replace") == 1
    assert load(path, batch(("2", "b", 2)), mode="replace") == 1
    assert ids(path) == ["2"]


row_lists = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"), st.sampled_from([None, "x", "y,\n", "0"]), st.sampled_from([None, 0, 2**53 + 1])
    ),
    unique_by=lambda row: row[0],
    max_size=8,
)


@given(st.sampled_from(ENDINGS), st.sampled_from(MODES), row_lists, row_lists, st.integers(1, 4))
def test_loading_twice_is_loading_once(
    tmp_path_factory: pytest.TempPathFactory, ending: str, mode: Any, before: list[Any], rows: list[Any], size: int
) -> None:
    """In every format and mode a repeated load leaves the same bytes, and a merge is what a dict's update would be."""
    path = tmp_path_factory.mktemp("sink") / f"a.{ending}"
    load(path, batch(*before))
    parts = [batch(*rows[i : i + size]) for i in range(0, len(rows), size)] or [batch()]
    counted = load(path, *parts, mode=mode)
    once = path.read_bytes()
    assert load(path, *parts, mode=mode) == counted
    assert path.read_bytes() == once
    if mode == "merge":
        expected = {row[0]: row for row in before} | {row[0]: row for row in rows}
        found = [
            tuple(str(v) if v not in (None, "") else None for v in row.values()) for row in read_back(path).to_pylist()
        ]
        assert found == [tuple(str(v) if v is not None else None for v in row) for row in expected.values()]
        assert counted == len(expected)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_other_columns_are_kept_by_a_merge(tmp_path: Path, ending: str) -> None:
    """When the output's fields change, old and new columns stand side by side, provenance last, gaps null."""
    path = tmp_path / f"a.{ending}"
    old = pa.schema([("id", pa.string()), ("label", pa.string()), ("_tier", pa.string())])
    new = pa.schema([("id", pa.string()), ("urgency", pa.string()), ("_tier", pa.string())])
    load(path, batch(("1", "a", "batch"), ("2", "b", "batch"), schema=old))
    for mode in ("merge", "append"):
        load(path, batch(("2", "high", "flex"), ("3", "low", "flex"), schema=new), mode=mode)
    assert read_back(path).column_names == ["id", "label", "urgency", "_tier"]
    rows = [tuple(value or "-" for value in row.values()) for row in read_back(path).to_pylist()]
    assert rows == [("1", "a", "-", "batch"), ("2", "-", "high", "flex"), ("3", "-", "low", "flex")]


def test_lines_of_a_jsonl_that_a_load_does_not_concern_keep_their_bytes(tmp_path: Path) -> None:
    """Spacing, order, other fields and big numbers of foreign lines survive a merge."""
    path = tmp_path / "a.jsonl"
    foreign = '{ "n": 123456789012345678901234567890, "id" : "1" , "x": 1.10 }'
    path.write_text(f'{foreign}\n\n{{"id": "2"}}')
    assert load(path, batch(("2", "b", 2), ("3", "c", 3))) == 3
    assert path.read_text().splitlines() == [
        foreign,
        '{"id":"2","label":"b","score":2}',
        '{"id":"3","label":"c","score":3}',
    ]


def test_a_parquet_of_other_tools_can_be_merged_into(tmp_path: Path) -> None:
    """Dictionary columns, required fields, wide strings and narrower numbers are no obstacle."""
    path = tmp_path / "a.parquet"
    schema = pa.schema([
        ("label", pa.dictionary(pa.int8(), pa.string())),
        pa.field("id", pa.large_string(), nullable=False),
        ("score", pa.int8()),
    ])  # fmt: skip
    pq.write_table(pa.table({"label": ["x"], "id": ["1"], "score": [1]}, schema=schema), path)
    assert load(path, batch(("1", None, None), ("2", "b", 2**40))) == 2
    assert read_back(path).to_pylist() == [
        {"id": "1", "label": None, "score": None},
        {"id": "2", "label": "b", "score": 2**40},
    ]


def test_a_large_merge_finds_every_row(tmp_path: Path) -> None:
    """Rows of many row groups are each replaced by the row of their own key, in whatever order they come."""
    path = tmp_path / "a.parquet"
    n_rows = 150_000
    load(path, batch(*((str(n), "old", n) for n in range(n_rows))))
    new = [(str(n), "new", -n) for n in range(n_rows + 10, -1, -3)]
    assert load(path, *(batch(*new[i : i + 7_000]) for i in range(0, len(new), 7_000))) == n_rows + 10 // 3 + 1
    expected = {str(n): (str(n), "old", n) for n in range(n_rows)} | {row[0]: row for row in new}
    assert [tuple(row.values()) for row in read_back(path).to_pylist()] == list(expected.values())
    assert pq.ParquetFile(path).metadata.num_row_groups <= 4


# ----------------------------------------------------------------------------------------------------------- or none


class Lost(Exception):
    """The rows stopped coming."""


@pytest.mark.parametrize("n_good", [0, 1, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_that_stop_coming_leave_the_target_as_it_was(tmp_path: Path, ending: str, mode: Any, n_good: int) -> None:
    """Whatever is raised while rows are read, the target keeps its bytes and nothing is left beside it."""
    path = tmp_path / f"a.{ending}"
    load(path, batch(("1", "a", 1)))
    before = files(tmp_path)

    def rows() -> Iterator[pa.RecordBatch]:
        for n in range(n_good):
            yield batch((str(n), "b", n))
        raise Lost

    with pytest.raises(Lost):
        open_sink(Load(path.name, mode), tmp_path, "id").load(rows(), SCHEMA)
    assert files(tmp_path) == before
    assert load(path, batch(("2", "b", 2)), mode=mode) in (1, 2)


@contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_disk_that_fills_up_leaves_the_target_as_it_was(tmp_path: Path, ending: str, mode: Any) -> None:
    """Whichever write fails, the target keeps its bytes, nothing is left beside it, and the error says so."""
    path = tmp_path / f"a.{ending}"
    load(path, batch(("1", "a", 1)))
    before = files(tmp_path)
    rows = batch(*((f"{n:05}", f"{n * 7919 % 65_536:x}" * 9, n) for n in range(1_000)))
    n_bytes, failed = 0, 0
    while True:
        try:
            with disk_of(n_bytes):
                load(path, rows, mode=mode)
            break
        except SinkError as error:
            assert "File too large; the target is as it was" in str(error)  # noqa: PT017
            assert files(tmp_path) == before
        n_bytes, failed = n_bytes + 997, failed + 1
    assert failed > 5
    assert len(read_back(path)) >= 1_000
    assert list(files(tmp_path)) == [path.name]


def test_a_killed_load_leaves_the_target_and_does_not_block_the_next(tmp_path: Path) -> None:
    """After SIGKILL in the middle of a load the target is whole, and the next load cleans up behind it."""
    path = tmp_path / "a.csv"
    load(path, batch(("1", "a", 1)))
    whole = path.read_bytes()
    code = (
        "import os, signal, sys; from pathlib import Path; from canwait.sinks.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half a'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.read_bytes() == whole
    assert load(path, batch(("2", "b", 2))) == 2
    assert list(files(tmp_path)) == ["a.csv"]


def test_two_loads_at_once_do_not_lose_rows(tmp_path: Path) -> None:
    """While one load of a target is in progress another is refused, instead of one undoing the other."""
    path = tmp_path / "a.csv"

    def rows() -> Iterator[pa.RecordBatch]:
        yield batch(("1", "a", 1))
        with pytest.raises(SinkError, match=r"a\.csv: another load"):
            load(path, batch(("2", "b", 2)))
        load(tmp_path / "other.csv", batch(("3", "c", 3)))

    assert open_sink(Load("a.csv"), tmp_path, "id").load(rows(), SCHEMA) == 1
    assert load(path, batch(("2", "b", 2))) == 2


def test_a_target_keeps_its_mode_and_a_link_stays_a_link(tmp_path: Path) -> None:
    """Replacing a file changes neither who may read it nor where a link points."""
    real = tmp_path / "real.csv"
    load(real, batch(("1", "a", 1)))
    real.chmod(0o640)
    (tmp_path / "link.csv").symlink_to(real)
    load(tmp_path / "link.csv", batch(("2", "b", 2)))
    assert (tmp_path / "link.csv").is_symlink()
    assert ids(real) == ["1", "2"]
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_file_appears_whole(tmp_path: Path) -> None:
    """While it is written, a new file cannot be seen under its name."""
    path = tmp_path / "a"
    with replacing(path) as file:
        file.write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"key,label\n1,a\n", "a.csv: no column 'id' to merge on; it has key, label"),
        ("a.csv", b"id,id\n1,2\n", "a.csv: column 'id' stands twice"),
        ("a.csv", b"id,label\n1\n", "a.csv: line 2: expected 2 fields, found 1"),
        ("a.csv", b'id,label\n1,"a\n', "a.csv: line 2: unexpected end of data"),
        ("a.csv", b"id,label\n1,\xff\n", "a.csv: line 2: invalid UTF-8"),
        ("a.csv", b"id,label\n3,a\n3,b\n", "a.csv: key '3' stands twice"),
        ("a.jsonl", b'{"key":"1"}\n', "a.jsonl: line 1: no column 'id' to merge on; it has key"),
        ("a.jsonl", b'\n{"id":1}\n', "a.jsonl: line 2: key 1 is not text"),
        ("a.jsonl", b'{"id":"1"}\n{"id":', "a.jsonl: line 2: not JSON"),
        ("a.jsonl", b"[]\n", "a.jsonl: line 1: expected one JSON object a line"),
        ("a.jsonl", b'{"id":"3"}\n{"id":"3"}\n', "a.jsonl: key '3' stands twice"),
        ("a.parquet", b"not Parquet", "a.parquet: Parquet"),
        ("a.parquet", {"key": ["1"]}, "a.parquet: no column 'id' to merge on; it has key"),
        ("a.parquet", {"id": [1]}, "a.parquet: key column 'id' is int64, not text"),
        ("a.parquet", {"id": ["1"], "score": ["x"]}, "a.parquet: Unable to merge: Field score"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_and_left_alone(
    tmp_path: Path, name: str, content: bytes | dict[str, Any], message: str
) -> None:
    """A file without the key, damaged, or of other types is named with the place, and keeps its bytes."""
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(pa.table(content), tmp_path / name)
    before = files(tmp_path)
    with pytest.raises(SinkError) as caught:
        load(tmp_path / name, batch(("3", "c", 3)))
    assert str(caught.value).startswith(message)
    assert files(tmp_path) == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "rows", [[("1", "a", 1), ("1", "b", 2)], [(None, "a", 1)], [("", "a", 1)]], ids=["twice", "null", "empty"]
)
def test_rows_without_a_key_of_their_own_are_refused(tmp_path: Path, mode: Any, rows: list[Any]) -> None:
    """Two rows of one key, or a row without one, would not be found again: nothing is loaded."""
    with pytest.raises(SinkError, match=r"a\.csv: (key '1' stands twice|a key is missing) in the rows to load"):
        load(tmp_path / "a.csv", *(batch(row) for row in rows), mode=mode)
    assert files(tmp_path) == {}


class Wary(Keys):
    """Takes every key for one that may stand twice."""

    def add(self, keys: Sequence[str]) -> None:
        super().add([*keys, *keys])


def test_different_keys_whose_hashes_are_alike_are_two_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hashes cannot tell apart the keys do: only one that really stands twice is refused."""
    monkeypatch.setattr("canwait.sinks.files.Keys", Wary)
    assert load(tmp_path / "a.jsonl", batch(("1", "a", 1)), batch(("2\n", "b", 2), ("3", "c", 3))) == 3
    with pytest.raises(SinkError, match="key '2' stands twice"):
        load(tmp_path / "b.jsonl", batch(("1", "a", 1), ("2", "a", 1)), batch(("3", "b", 2), ("2", "c", 3)))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.binary())], ids=["bytes", "nested bytes"])
def test_what_text_cannot_hold_is_refused(tmp_path: Path, ending: str, kind: pa.DataType) -> None:
    """Bytes have no place in a text format: the error says where to load them instead."""
    schema = pa.schema([("id", pa.string()), ("raw", kind)])
    value = b"\xff" if kind == pa.binary() else [b"\xff"]
    with pytest.raises(SinkError, match=f"a.{ending}: a value cannot be written as text") as caught:
        load(tmp_path / f"a.{ending}", batch(("1", value), schema=schema))
    assert caught.value.own_hint == "load into a .parquet file"


def test_an_empty_file_is_an_empty_target(tmp_path: Path) -> None:
    """A file somebody only touched can be loaded into."""
    for ending in ENDINGS:
        (tmp_path / f"a.{ending}").touch()
        assert load(tmp_path / f"a.{ending}", batch(("1", "a", 1))) == 1


def test_a_load_without_rows_is_a_file_without_rows(tmp_path: Path) -> None:
    """Nothing to load is no error, and it can be loaded into later."""
    for ending in ENDINGS:
        assert load(tmp_path / f"a.{ending}", batch()) == 0
        assert load(tmp_path / f"a.{ending}", batch(("1", "a", 1))) == 1


@pytest.mark.parametrize(
    ("to", "format", "message"),
    [
        ("folder.csv", None, "folder.csv is not a file"),
        ("in.csv", None, "in.csv would overwrite the source"),
        ("./sub/../in.csv", None, "in.csv would overwrite the source"),
        ("link.csv", None, "link.csv would overwrite the source"),
        ("out.xlsx", None, "out.xlsx: unknown ending '.xlsx'"),
        ("out", None, "out: unknown ending ''"),
        ("in.csv/sub/out.csv", None, "in.csv is not a folder"),
        ("out.csv", "xml", "out.csv: unknown format 'xml'"),
        ("postgres://warehouse/labels", None, "postgres://warehouse/labels: a database needs `table`"),
        ("ftp://a/b.csv", None, "'ftp://a/b.csv' is no address that is known"),
        ("out.parquet.gz", None, "out.parquet.gz: Parquet is compressed as it is"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_paid(
    tmp_path: Path, to: str, format: str | None, message: str
) -> None:
    """Opening a sink writes nothing and finds what would fail at the end."""
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "in.csv").write_text("id\n1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    with pytest.raises(SinkError) as caught:
        open_sink(Load(to, format=format), tmp_path, "id", source=tmp_path / "in.csv")
    assert message in str(caught.value)
    assert caught.value.own_hint


def test_failed_rows_do_not_overwrite_the_source_either(tmp_path: Path) -> None:
    """A source that has the name of the failed rows' file is found before anything is written."""
    with pytest.raises(SinkError, match="would overwrite the source"):
        open_sink(Load("labels.csv"), tmp_path, "id", source=tmp_path / "labels.failed.csv")


def test_failed_rows_go_beside_the_target() -> None:
    """The sibling keeps folder and endings, and replaces what was there."""
    beside = {
        "out/labels.parquet": "out/labels.failed.parquet",
        "labels": "labels.failed",
        "labels.csv.gz": "labels.failed.csv.gz",
        "s3://bucket/a.b/labels.jsonl.zst": "s3://bucket/a.b/labels.failed.jsonl.zst",
    }
    for to, failed in beside.items():
        assert failed_rows(Load(to, format="csv")) == Load(failed, "replace", "csv")
    table = Load("sqlite:///a.db", table="labels")
    assert failed_rows(table) == Load("sqlite:///a.db", "replace", table="labels_failed")


def test_folders_of_a_target_are_made(tmp_path: Path) -> None:
    """A target in a folder that does not exist yet is written, and the stated format overrules the ending."""
    open_sink(Load("new/sub/a.txt", format="jsonl"), tmp_path, "id").load([batch(("1", "a", 1))], SCHEMA)
    assert json.loads((tmp_path / "new/sub/a.txt").read_text()) == {"id": "1", "label": "a", "score": 1}


# ------------------------------------------------------------------------------------------------- from answers to rows


def test_fields_have_the_types_of_the_output_schema() -> None:
    """Optional, nested and referenced fields keep a type, as pydantic writes them; what has no one type is text."""
    properties: dict[str, Any] = {
        "label": {"enum": ["bug", "billing"]},
        "urgency": {"type": "integer"},
        "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "sure": {"type": ["boolean", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "who": {"$ref": "#/$defs/Person"},
        "either": {"type": ["string", "integer"]},
        "open": {"type": "object"},
        "any": True,
    }
    person = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    assert field_types({"type": "object", "properties": properties, "$defs": {"Person": person}}) == {
        "label": pa.string(),
        "urgency": pa.int64(),
        "score": pa.float64(),
        "sure": pa.bool_(),
        "tags": pa.list_(pa.string()),
        "who": pa.struct([("name", pa.string()), ("age", pa.int64())]),
        "either": pa.string(),
        "open": pa.string(),
        "any": pa.string(),
    }
    assert field_types(None) == field_types({"type": "array"}) == field_types({"$ref": "#/none"}) == {}


def test_a_schema_that_contains_itself_ends() -> None:
    """A recursive schema has a type of bounded depth, with JSON text below, and values of any depth fit it."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    kind = field_types({"properties": {"first": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}})["first"]
    value: Any = {"next": None}
    for _ in range(50):
        value = {"next": value}
    assert '"next":' in str(pa.array([fitted(value, kind)], kind)[0])


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        ("as it is", pa.string(), "as it is"),
        ([1, "ü"], pa.string(), '[1,"ü"]'),
        (5, pa.string(), "5"),
        (3.0, pa.int64(), 3),
        (None, pa.int64(), None),
        ([["x"], None], pa.list_(pa.string()), ['["x"]', None]),
        ({"n": 2.0, "more": 1}, pa.struct([("n", pa.int64()), ("m", pa.bool_())]), {"n": 2, "m": None}),
    ],
)
def test_a_value_fits_its_column(value: Any, kind: pa.DataType, stored: Any) -> None:
    """Arrow stores what `fitted` makes of an answer's value."""
    assert pa.array([fitted(value, kind)], kind).to_pylist() == [stored]


def test_no_number_is_cut_to_an_integer() -> None:
    """A number with a fraction in an integer's column is an error, not another number."""
    with pytest.raises(pa.ArrowInvalid, match=r"3\.5 is no integer"):
        fitted(3.5, pa.int64())


@pytest.mark.slow
def test_memory_of_a_merge_does_not_grow_with_the_target(tmp_path: Path) -> None:
    """Merging a few rows into a large target takes memory for chunks, not for the target."""
    code = """
import re, sys
from pathlib import Path
import pyarrow as pa
from canwait.sinks.opening import open_sink
from canwait.types import Load
path = Path(sys.argv[1])
schema = pa.schema([("id", pa.string()), ("label", pa.string())])
new = pa.RecordBatch.from_pydict({"id": ["5", "new"], "label": ["x", "y"]}, schema)
open_sink(Load(path.name), path.parent, "id").load([new], schema)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    for ending in ENDINGS:
        peaks = []
        # A row group of Parquet is a chunk, so the smaller target has two of them.
        for n_rows in (140_000, 420_000) if ending == "parquet" else (20_000, 160_000):
            path = tmp_path / f"{n_rows}.{ending}"
            text = "text of an answer, " * 20
            columns = {"id": [str(n) for n in range(n_rows)], "label": [f"{text}{n}" for n in range(n_rows)]}
            load(path, *pa.table(columns).to_batches(10_000), mode="replace")
            environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
            command = [sys.executable, "-c", code, str(path)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            peaks.append(int(answer.stdout) / 1024)
        # The rows themselves are 53 MiB more, in Parquet 105; threads that decode Parquet fragment the heap by some 30.
        assert peaks[1] - peaks[0] < (64 if ending == "parquet" else 24), (ending, peaks)
