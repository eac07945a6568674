"""Blobs: named by content, whole or not there, and no name leads out of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.blobs import Blobs
from canwait.errors import BlobError

EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def files(blobs: Blobs) -> list[str]:
    """Every file in the folder, also half-written ones."""
    return sorted(str(path.relative_to(blobs.folder)) for path in blobs.folder.rglob("*") if path.is_file())


def test_a_blob_is_named_by_its_content(blobs: Blobs) -> None:
    """The name is the sha256 of the bytes, so the same bytes are stored once, whoever stores them."""
    names = {blobs.put(b"some bytes"), blobs.put_stream([b"some ", b"", b"bytes"])}
    assert names == {hashlib.sha256(b"some bytes").hexdigest()}
    (name,) = names
    assert files(blobs) == [f"{name[:2]}/{name}"]
    assert blobs.read(name) == b"some bytes"


@given(pieces=st.lists(st.binary(max_size=50), max_size=20))
def test_any_bytes_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    """However a stream is cut into pieces, its bytes come back, and its lines are those that a newline ends."""
    blobs = Blobs(tmp_path_factory.getbasetemp() / "any")
    whole = b"".join(pieces)
    name = blobs.put_stream(pieces)
    assert blobs.read(name) == whole
    assert list(blobs.lines(name)) == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


def test_only_a_newline_ends_a_line(blobs: Blobs) -> None:
    """Carriage returns, separators and NUL bytes inside a JSON text do not cut it; a last line needs no newline."""
    lines = [b"a\r", '{"t": "\u2028\u2029\x85\x0b\x0c"}'.encode(), b"", b"nul \0 inside", b"last"]
    assert list(blobs.lines(blobs.put(b"\n".join(lines)))) == lines


def test_nothing_is_left_of_a_stream_that_breaks_off(blobs: Blobs) -> None:
    """When a piece cannot be had there is no blob, no half of one and no temporary file."""

    def pieces() -> Iterator[bytes]:
        yield b"half of it"
        raise ConnectionError("the download broke off")

    with pytest.raises(ConnectionError):
        blobs.put_stream(pieces())
    assert files(blobs) == []


def test_a_blob_is_not_there_before_it_is_whole(blobs: Blobs) -> None:
    """While it is written a blob has no name that anybody could find."""
    with blobs.writer() as out:
        out.write(b"whole")
        with pytest.raises(BlobError):
            blobs.path(out.name)
        assert [file for file in files(blobs) if not file.startswith("tmp/")] == []
    assert blobs.read(out.name) == b"whole"
    assert out.size == 5


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "/etc/passwd", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "٣" * 64, "..", "a" * 64 + "/x"],
)
def test_no_name_leads_out_of_the_folder(blobs: Blobs, name: str) -> None:
    """Only 64 hex digits are a name; anything else is refused before the disk is touched."""
    for use in (blobs.path, blobs.read, lambda n: list(blobs.lines(n))):
        with pytest.raises(BlobError, match="is not the name of a blob"):
            use(name)


def test_a_missing_blob_is_a_clear_error(blobs: Blobs) -> None:
    """A blob the ledger refers to and the folder does not hold names both, and the way out."""
    with pytest.raises(BlobError, match=f"blob {EMPTY} is missing from {blobs.folder}") as missing:
        blobs.path(EMPTY)
    assert "backup" in str(missing.value.own_hint)


def test_a_damaged_blob_is_not_used(blobs: Blobs) -> None:
    """Bytes that do not match their name are refused."""
    name = blobs.put(b"paid for")
    blobs.path(name).write_bytes(b"tampered")
    with pytest.raises(BlobError, match="is damaged"):
        blobs.read(name)


def test_a_finished_file_can_be_taken_in(blobs: Blobs) -> None:
    """Adopting moves a file in under the name of its content and leaves no copy."""
    with blobs.scratch() as folder:
        path = folder / "results.parquet"
        path.write_bytes(b"x" * 3_000_000)
        name = blobs.adopt(path)
        assert name == hashlib.sha256(b"x" * 3_000_000).hexdigest()
        assert not path.exists()
    assert blobs.path(name).stat().st_size == 3_000_000


def test_many_may_store_the_same_blob_at_once(blobs: Blobs) -> None:
    """Writers of equal bytes do not disturb each other, and a reader never sees half."""
    content = os.urandom(1 << 20)
    name = hashlib.sha256(content).hexdigest()
    blobs.put(content)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(5):
            if blobs.put_stream([content[:1000], content[1000:]]) != name or blobs.read(name) != content:
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert files(blobs) == [f"{name[:2]}/{name}"]


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A write that the system refuses is an error that names the folder, with no blob and no temporary file left."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from canwait.blobs import Blobs\n"
        "from canwait.errors import BlobError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: Blobs(Path(sys.argv[1])).put(b'x' * 3_000_000)\n"
        "except BlobError as error: print(error); sys.exit(7)"
    )
    source = str(Path(__file__).parent.parent / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ["PYTHONPATH"]])}
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "blobs")], env=env, capture_output=True, text=True)
    assert run.returncode == 7, run.stderr
    assert f"{tmp_path}/blobs could not be written" in run.stdout
    assert files(Blobs(tmp_path / "blobs")) == []


def test_a_scratch_file_that_the_disk_refuses_is_a_clear_error(tmp_path: Path) -> None:
    """Whatever is written in a scratch folder: a full disk is told with what to do, and the folder goes."""
    blobs = Blobs(tmp_path / "blobs")
    with pytest.raises(BlobError, match="No space left") as error, blobs.scratch():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in str(error.value.own_hint)
    assert list((tmp_path / "blobs" / "tmp").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """Where the folder cannot be, because a file is there, the error names it."""
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(BlobError, match="could not be written"):
        Blobs(tmp_path / "blobs").put(b"bytes")
