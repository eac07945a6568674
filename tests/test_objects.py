"""Promises of rows in object stores: one version is read, one step writes, nothing of another writer is lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("obstore", reason="the extra `objects` is not installed")

from obstore.store import MemoryStore

from canwait import objects
from canwait.addresses import Unusable
from canwait.errors import SinkBusy, SinkError, SourceError
from canwait.objects import Changed, Object
from canwait.sinks.opening import discard, failed_rows, open_sink, read_back
from canwait.sources.opening import open_source
from canwait.types import Load, Source
from object_host import Host, object_host

ENDINGS = ["csv", "csv.gz", "jsonl.zst", "parquet"]
SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string())])


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with object_host(monkeypatch) as running:
        yield running


def batch(*rows: tuple[str, str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def load(to: str, *rows: tuple[str, str], mode: Any = "merge", scratch: Path | None = None) -> int:
    return open_sink(Load(to, mode), Path(), "id", scratch=scratch).load([batch(*rows)], SCHEMA)


def rows(to: str) -> list[tuple[Any, ...]]:
    return [
        row for b in open_source(Source(to, "id"), Path()).batches() for row in zip(*b.columns.values(), strict=True)
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_go_into_an_object_and_come_back(host: Host, ending: str) -> None:
    """Merge, append and replace do in a store what they do in a folder, and a source reads what a sink wrote."""
    to = f"s3://bucket/a b/ü.{ending}"
    assert load(to, ("1", "a"), ("2", "b")) == 2
    assert list(host.objects) == [f"/bucket/a b/ü.{ending}"]
    assert load(to, ("2", "B"), ("3", "c")) == 3
    assert rows(to) == [("1", "a"), ("2", "B"), ("3", "c")]
    assert load(to, ("3", "c"), ("4", "d"), mode="append") == 4
    once = dict(host.objects)
    assert load(to, ("4", "d")) == 4
    assert host.objects == once
    assert load(to, ("9", "z"), mode="replace") == 1
    assert rows(to) == [("9", "z")]


def test_a_large_object_moves_in_parts(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one request does not carry goes and comes in several, and is the same bytes."""
    monkeypatch.setattr(objects, "PART_BYTES", 1_000_000)
    data = bytes(range(256)) * 50_000
    (tmp_path / "a").write_bytes(data)
    stored = objects.open_object("s3://bucket/big")
    stored.upload(tmp_path / "a")
    assert host.objects == {"/bucket/big": data}
    stored.download(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert sum(request.startswith("GET") for request in host.requests) == 13
    assert sum("partNumber" in request for request in host.requests) == 3


def test_a_source_is_one_version_of_its_object(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that is written while it is fetched is refused; one that is written afterwards changes no row."""
    monkeypatch.setattr(objects, "PART_BYTES", 10)
    host.objects["/bucket/a.csv"] = b"id,label\n1,a\n2,b\n"

    def rewrite(request: str) -> None:
        if request.startswith("GET") and sum(r.startswith("GET") for r in host.requests) == 2:
            host.objects["/bucket/a.csv"] = b"id,label\n1,X\n2,Y\n"

    host.before = rewrite
    with pytest.raises(SourceError, match=r"s3://bucket/a\.csv: changed while it was read"):
        open_source(Source("s3://bucket/a.csv", "id"), tmp_path, scratch=tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []

    host.before = lambda request: None
    of = open_source(Source("s3://bucket/a.csv", "id"), tmp_path, scratch=tmp_path / "s")
    seen = of.fingerprint()
    host.objects["/bucket/a.csv"] = b"id,label\n"
    assert [list(b.columns["label"]) for b in of.batches()] == [["X", "Y"]]
    assert of.fingerprint() == seen
    assert len(list((tmp_path / "s").iterdir())) == 1
    del of
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("there", [True, False], ids=["changed", "appeared"])
def test_another_writer_loses_nothing(host: Host, there: bool) -> None:
    """A load that finds another version than the one it began with is refused as busy, and merges when it runs again."""
    if there:
        load("s3://bucket/a.csv", ("1", "a"))

    def rewrite(request: str) -> None:
        if request == "PUT /bucket/a.csv":
            host.objects["/bucket/a.csv"] = b"id,label\n7,theirs\n"

    host.before = rewrite
    with pytest.raises(SinkBusy, match=r"s3://bucket/a\.csv: another writer changed it"):
        load("s3://bucket/a.csv", ("2", "b"))
    host.before = lambda request: None
    assert rows("s3://bucket/a.csv") == [("7", "theirs")]
    load("s3://bucket/a.csv", ("2", "b"))
    assert rows("s3://bucket/a.csv") == [("7", "theirs"), ("2", "b")]


@pytest.mark.parametrize("mode", ["merge", "append", "replace"])
def test_a_store_that_refuses_leaves_the_object_as_it_was(host: Host, tmp_path: Path, mode: str) -> None:
    """A refused or full store is said, without secrets, and neither the object nor the scratch folder has changed."""
    load("s3://bucket/a.csv", ("1", "a"))
    before = dict(host.objects)
    host.before = lambda request: 403 if request.startswith(("PUT", "POST")) else None
    with pytest.raises(SinkError, match="the target is as it was") as caught:
        load("s3://bucket/a.csv", ("2", "b"), mode=mode, scratch=tmp_path / "s")
    assert "never-shown" not in str(caught.value)
    assert host.objects == before
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_disk_that_fills_up_is_said_and_leaves_the_object(host: Host, tmp_path: Path, mode: Any) -> None:
    """Whichever write to the scratch folder fails, the object is as it was; so for the copy a source makes."""
    load("s3://bucket/a.jsonl", *((str(n), "x" * 50) for n in range(100)))
    before = dict(host.objects)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for n_bytes in range(0, 12_000, 1_500):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            new = [(str(n), "y" * 100) for n in range(100)]
            with pytest.raises(SinkError, match="File too large; the target is as it was"):
                load("s3://bucket/a.jsonl", *new, mode=mode, scratch=tmp_path / "s")
            if n_bytes < len(before["/bucket/a.jsonl"]):
                with pytest.raises(SourceError, match="no room for a copy: File too large"):
                    open_source(Source("s3://bucket/a.jsonl", "id"), tmp_path, scratch=tmp_path / "s")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert host.objects == before
        assert list((tmp_path / "s").iterdir()) == []


def test_failed_rows_lie_beside_the_object_until_there_are_none(host: Host) -> None:
    """The sibling is an object, too, and is taken away when no row is in it; taking it away twice is no error."""
    beside = failed_rows(Load("s3://bucket/labels.csv.gz"))
    open_sink(beside, Path(), "id").load([batch(("1", "a"))], SCHEMA)
    assert list(host.objects) == ["/bucket/labels.failed.csv.gz"]
    for _ in range(2):
        discard(beside, Path())
        assert host.objects == {}


@pytest.mark.parametrize(
    ("status", "words"), [(403, "s3://bucket/a.csv: .*permission|forbidden"), (404, "no such object")]
)
def test_an_object_that_cannot_be_read_says_why(host: Host, status: int, words: str) -> None:
    """A missing object and a missing right are told apart."""
    host.before = lambda request: status
    with pytest.raises(SourceError, match=f"(?i){words}"):
        open_source(Source("s3://bucket/a.csv", "id"), Path())


def test_a_target_that_may_not_be_seen_is_refused_before_anything_is_paid(host: Host) -> None:
    """Opening a sink asks the store once, and writes nothing."""
    open_sink(Load("s3://bucket/a.csv"), Path(), "id")
    assert host.requests == ["HEAD /bucket/a.csv"]
    host.before = lambda request: 403
    with pytest.raises(SinkError, match=r"s3://bucket/a\.csv: "):
        open_sink(Load("s3://bucket/a.csv"), Path(), "id")


def test_an_exchange_is_of_the_version_it_was_told(tmp_path: Path) -> None:
    """A version that is not there any more, or not yet, is never written over, in any store."""
    stored = Object(MemoryStore(), "a/b")
    path = tmp_path / "x"
    assert stored.download(path) is None
    assert not path.exists()
    (one, nothing) = tmp_path / "one", tmp_path / "nothing"
    one.write_bytes(b"one")
    nothing.touch()
    stored.exchange(one, None)
    version = stored.download(path)
    assert path.read_bytes() == b"one"
    with pytest.raises(Changed):
        stored.exchange(nothing, None)
    stored.exchange(nothing, version)
    with pytest.raises(Changed):
        stored.exchange(one, version)
    stored.download(path)
    assert path.read_bytes() == b""
    assert stored.exists()
    stored.delete()
    assert not stored.exists()


def test_what_one_request_cannot_carry_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge beyond what stores take in one step says what to do instead of writing without a guard."""
    monkeypatch.setattr(objects, "MAX_CONDITIONAL_BYTES", 2)
    (tmp_path / "x").write_bytes(b"one")
    with pytest.raises(Unusable, match="use `mode: replace`"):
        Object(MemoryStore(), "a").exchange(tmp_path / "x", None)


def test_file_addresses_are_paths(tmp_path: Path) -> None:
    """file:/// leads to a file as its path does, needs nothing installed, and has the sibling beside it."""
    to = f"{tmp_path.as_uri()}/a%20b.csv"
    assert load(to, ("1", "a")) == 1
    assert read_back(tmp_path / "a b.csv").to_pylist() == [{"id": "1", "label": "a"}]
    assert rows(to) == [("1", "a")]
    open_sink(failed_rows(Load(to)), Path(), "id").load([batch(("1", "a"))], SCHEMA)
    assert (tmp_path / "a b.failed.csv").exists()
    discard(failed_rows(Load(to)), Path())
    assert not (tmp_path / "a b.failed.csv").exists()
    with pytest.raises(SinkError, match="would overwrite the source"):
        open_sink(Load(to), Path(), "id", source=tmp_path / "a b.csv")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://key:secret@bucket/a.csv", "s3://b/a.csv?x=1"])
def test_an_address_that_names_no_object_is_refused(uri: str) -> None:
    """A bucket, credentials or a query in the address are answered with what is expected; no secret is repeated."""
    with pytest.raises(SourceError) as caught:
        open_source(Source(uri, "id", "csv"), Path())
    assert "expected" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    """Where obstore is not installed an object's address says what to install, and plain files do without it."""
    code = """
import sys
sys.modules["obstore"] = None
from pathlib import Path
from canwait.sources.opening import open_source
from canwait.types import Source
Path("a.csv").write_text("id\\n1\\n")
print(open_source(Source("a.csv", "id"), Path()).columns)
try:
    open_source(Source("s3://bucket/a.csv", "id"), Path())
except Exception as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said.startswith("('id',)")
    assert "pip install 'canwait[objects]'" in said
