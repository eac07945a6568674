"""The two readers of CSV: where the fast one answers it is right, and whoever asks for a line gets the right one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.errors import SourceError
from canwait.sources import csv as module
from canwait.sources.csv import CsvSource
from canwait.sources.files import SourceFile

PIECE = st.text(alphabet='ab é\n",\r', max_size=4) | st.sampled_from(
    ["", "NA", "null", '"', '""', "\r\n", "🙂", "\0", " ", "\ufeff"]
)
QUOTED = PIECE.map(lambda text: '"' + text.replace('"', '""') + '"')
PLAIN = st.text(alphabet="ab é'\ufeff", max_size=4)
FIELD = st.one_of(QUOTED, PLAIN, QUOTED, PLAIN, PIECE)
RECORD = st.lists(FIELD, min_size=2, max_size=2).map(",".join) | st.lists(FIELD, max_size=3).map(",".join)
CONTENT = st.lists(st.tuples(RECORD, st.sampled_from(["\n", "\n", "\r\n", "\n\n", ""])), max_size=8)
DAMAGE = st.sampled_from([b"", b"", b"", b"\xff", b'"', b"\xed\xa0\x80"])


def read(path: Path) -> Any:
    """Lines and values of all rows, or the problems."""
    try:
        batches = list(CsvSource(SourceFile("f.csv", path), ",").batches())
    except SourceError as error:
        return str(error)
    return [row for batch in batches for row in zip(batch.lines, *batch.columns.values(), strict=True)]


@settings(max_examples=400)
@given(
    CONTENT,
    DAMAGE,
    st.sampled_from(["a,b\n", "a\n", '"a","b\nc"\r\n', "\ufeffa,b\n"]),
    st.sampled_from([1, 7, 40, 1 << 20]),
)
def test_both_readers_read_alike(content: list[tuple[str, str]], damage: bytes, header: str, block_bytes: int) -> None:
    """Whatever the file holds and wherever its blocks end: the same rows at the same lines, or the same problems."""
    data = (header + "".join(record + end for record, end in content)).encode() + damage
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "f.csv"
        path.write_bytes(data)
        patch.setattr(module, "_BLOCK_BYTES", block_bytes)
        fast = read(path)
        patch.setattr(module, "_arrow_rows", lambda *_: None)
        assert fast == read(path)


def test_ordinary_rows_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes, doubled quotes and line ends in fields are no reason for the slow reader."""
    path = tmp_path / "f.csv"
    path.write_bytes(b"a,b\n" + b'1,"x, ""y""\r\nz"\n"",\n' * 500)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(CsvSource, "_careful", None)
    rows = read_without_lines(path)
    assert rows == [("1", 'x, "y"\r\nz'), ("", "")] * 500


def read_without_lines(path: Path) -> list[tuple[str, ...]]:
    batches = CsvSource(SourceFile("f.csv", path), ",").batches()
    return [row for batch in batches for row in zip(*batch.columns.values(), strict=True)]


def test_a_record_longer_than_is_held_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that spans more than the fast reader holds is read whole, with the rows before and after it."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 50)
    monkeypatch.setattr(module, "_MOST_HELD_BYTES", 200)
    path = tmp_path / "f.csv"
    path.write_text('a\nbefore\n"' + "x\n" * 500 + '"\nafter\n')
    assert [(line, len(value)) for line, value in read(path)] == [(2, 6), (3, 1_000), (504, 5)]


def test_only_the_wanted_columns_are_given(tmp_path: Path) -> None:
    """Columns nobody asked for are not in the batches, whichever reader read them."""
    path = tmp_path / "f.csv"
    for content in ("a,b,c\n1,2,3\n", 'a,b,c\n1,2"x,3\n'):
        path.write_text(content)
        (batch,) = CsvSource(SourceFile("f.csv", path), ",").batches(["c", "a"])
        assert dict(batch.columns) == {"c": ["3"], "a": ["1"]}
