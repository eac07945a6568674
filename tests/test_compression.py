"""Promises of compressed text: the rows of the plain file, streamed, deterministic, and damage is named."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.compression import bare, compressing, decompressed, reading
from canwait.errors import SinkError, SourceError
from canwait.sinks.opening import open_sink, read_back
from canwait.sources.opening import open_source
from canwait.types import Load, Source

ENDINGS = ["csv.gz", "csv.zst", "tsv.gz", "jsonl.zst", "ndjson.gz"]
SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string())])
LINES = b"".join(
    b'{"id":"%d","label":"%s"}\n' % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(9_000)
)


def packed(text: bytes, codec: Any) -> bytes:
    out = io.BytesIO()
    with compressing(out, codec) as file:
        file.write(text)
    return out.getvalue()


def batch(*rows: tuple[str, str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def load(path: Path, *rows: tuple[str, str | None], mode: Any = "merge") -> int:
    return open_sink(Load(path.name, mode), path.parent, "id").load([batch(*rows)], SCHEMA)


def rows(folder: Path, name: str, format: str | None = None) -> list[tuple[Any, ...]]:
    batches = open_source(Source(name, "id", format), folder).batches()
    return [(line, *row) for b in batches for line, *row in zip(b.lines, *b.columns.values(), strict=True)]


@given(st.lists(st.binary(max_size=50)), st.sampled_from(["gzip", "zstd"]))
def test_any_text_comes_back_from_any_number_of_members(parts: list[bytes], codec: Any) -> None:
    """Files put end to end, as `cat a.gz b.gz` makes them, are read whole, and the same text is the same bytes."""
    stored = b"".join(packed(part, codec) for part in parts)
    assert stored == b"".join(packed(part, codec) for part in parts)
    assert decompressed(io.BytesIO(stored), codec).read() == b"".join(parts)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_compressed_file_is_the_rows_and_lines_of_the_plain_one(tmp_path: Path, ending: str) -> None:
    """Rows, their lines and their problems are those of the text; the fingerprint is of the bytes as stored."""
    plain, codec = bare(f"a.{ending}")
    delimiter = b"\t" if "tsv" in ending else b","
    text = LINES if "json" in ending else b'id%slabel\n1%s"a\nb"\n\n2%sx\n' % (delimiter, delimiter, delimiter)
    half = len(text) // 2
    stored = packed(text[:half], codec) + packed(text[half:], codec)
    (tmp_path / plain).write_bytes(text)
    (tmp_path / f"a.{ending}").write_bytes(stored)
    (tmp_path / "a.dat.gz").write_bytes(packed(text, "gzip"))
    assert rows(tmp_path, f"a.{ending}") == rows(tmp_path, plain) == rows(tmp_path, "a.dat.gz", plain.partition(".")[2])
    found = open_source(Source(f"a.{ending}", "id"), tmp_path)
    assert found.fingerprint() == hashlib.sha256(stored).hexdigest()


def test_a_bad_row_is_named_by_its_line_in_the_text(tmp_path: Path) -> None:
    """Line and column are where an editor shows them once the file is unpacked."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id":1}\n' * 5_000 + b'{"id":\n'))
    with pytest.raises(SourceError, match=r"^a\.jsonl\.gz:5001:\d+: not JSON"):
        rows(tmp_path, "a.jsonl.gz")


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "other"])
def test_damage_is_named_with_the_place_it_begins(tmp_path: Path, codec: Any, damage: str) -> None:
    """A file that is cut off, changed, followed by something else or not compressed is an error with a line, no rows."""
    ending = "gz" if codec == "gzip" else "zst"
    stored = b"".join(packed(LINES[start : start + 100_000], codec) for start in range(0, len(LINES), 100_000))
    middle = len(stored) // 2
    broken = {
        "cut": stored[:middle],
        "flipped": stored[:middle] + bytes(b ^ 0xFF for b in stored[middle : middle + 40]) + stored[middle + 40 :],
        "garbage": stored + b"more",
        "other": LINES,
    }[damage]
    (tmp_path / f"a.jsonl.{ending}").write_bytes(broken)
    with pytest.raises(SourceError) as caught:
        rows(tmp_path, f"a.jsonl.{ending}")
    found = re.match(
        rf"a\.jsonl\.{ending}:(\d+): the {codec} data is cut off or damaged after ([\d,]+) bytes of text: ",
        str(caught.value),
    )
    assert found
    n_bytes = int(found[2].replace(",", ""))
    assert int(found[1]) == LINES[:n_bytes].count(b"\n") + 1
    if damage in ("cut", "flipped"):
        assert 0.3 * len(LINES) < n_bytes < 0.7 * len(LINES)
    else:
        assert 0 <= (len(LINES) if damage == "garbage" else 0) - n_bytes < 64


@pytest.mark.parametrize("mode", ["merge", "append"])
@pytest.mark.parametrize("ending", ["csv.gz", "jsonl.zst"])
def test_a_damaged_target_keeps_its_bytes(tmp_path: Path, ending: str, mode: str) -> None:
    """A load into a file that cannot be read whole says so and leaves it alone."""
    path = tmp_path / f"a.{ending}"
    load(path, ("1", "a"), ("2", "b"))
    path.write_bytes(path.read_bytes()[:-6])
    before = path.read_bytes()
    with pytest.raises(SinkError, match=rf"a\.{ending}: line \d: the (gzip|zstd) data is cut off or damaged"):
        load(path, ("3", "c"), mode=mode)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sink_does_with_compressed_files_what_it_does_with_plain_ones(tmp_path: Path, ending: str) -> None:
    """Merge, append and replace leave the text they would leave in a plain file, and the same bytes every time."""
    path, plain = tmp_path / f"a.{ending}", tmp_path / bare(f"a.{ending}")[0]
    for mode, new in (("merge", [("1", "a"), ("2", "ü")]), ("merge", [("2", None), ("3", "x,\ty")]),
                      ("append", [("3", "x,\ty"), ("4", "d")])):  # fmt: skip
        assert load(path, *new, mode=mode) == load(plain, *new, mode=mode)
        once = path.read_bytes()
        load(path, *new, mode=mode)
        assert path.read_bytes() == once
    with reading(path) as file:
        assert file.read() == plain.read_bytes()
    assert read_back(path).to_pylist() == read_back(plain).to_pylist()
    load(path, ("9", "z"), mode="replace")
    assert [row[1:] for row in rows(tmp_path, path.name)] == [("9", "z")]
    if ending.endswith("gz"):
        assert path.read_bytes()[4:8] == bytes(4)  # no time of writing
        assert gzip.decompress(path.read_bytes()).count(b"\n") in (1, 2)


@pytest.mark.parametrize("ending", ["csv.gz", "jsonl.zst"])
def test_a_full_disk_leaves_a_compressed_target_as_it_was(tmp_path: Path, ending: str) -> None:
    """Whichever write fails, the target keeps its bytes and nothing is left beside it."""
    path = tmp_path / f"a.{ending}"
    load(path, ("1", "a"))
    before = path.read_bytes()
    new = [(str(n), hashlib.sha256(b"%d" % n).hexdigest()) for n in range(2_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed, n_bytes = 0, 0
    while True:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            load(path, *new)
            break
        except SinkError as error:
            assert "File too large; the target is as it was" in str(error)  # noqa: PT017
            assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        n_bytes, failed = n_bytes + 9_973, failed + 1
    assert failed > 5


def test_a_compressed_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Its identity is that of the stored file, whatever has been unpacked."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed(LINES, "zstd"))
    batches = open_source(Source(path.name, "id"), tmp_path).batches()
    next(batches)
    path.write_bytes(packed(LINES + b'{"id":"new"}\n', "zstd"))
    with pytest.raises(SourceError, match=r"a\.jsonl\.zst: changed while it was read"):
        list(batches)


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.parquet.zst"])
def test_parquet_is_not_packed_again(tmp_path: Path, name: str) -> None:
    """Parquet needs seeks and is compressed as it is: both ways say so."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match="it is compressed as it is"):
        open_source(Source(name, "id"), tmp_path)
    with pytest.raises(SinkError, match="Parquet is compressed as it is"):
        open_sink(Load(name), tmp_path, "id")


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_bomb_is_no_memory_problem(tmp_path: Path, codec: Any) -> None:
    """A few hundred kilobytes that unpack to 300 MB of rows are streamed."""
    ending = "gz" if codec == "gzip" else "zst"
    line = b'{"id":"' + b" " * 9_990 + b'"}\n'
    with (tmp_path / f"a.jsonl.{ending}").open("wb") as out, compressing(out, codec) as file:
        for _ in range(30_000):
            file.write(line)
    code = """
import re, sys
from pathlib import Path
from canwait.sources.opening import open_source
from canwait.types import Source
for batch in open_source(Source(sys.argv[1], "id"), Path()).batches(()):
    pass
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    command = [sys.executable, "-c", code, f"a.jsonl.{ending}"]
    peak = int(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout) / 1024
    assert peak < 160
