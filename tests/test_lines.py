"""Files of lines: packed or plain they read alike, and damage is told."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import BlobError
from canwait.lines import LinesFile, read_lines

LINE = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" "))


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@given(st.lists(st.lists(LINE, min_size=1, max_size=6), min_size=1, max_size=6), st.data())
def test_lines_come_back_and_can_be_taken_out(frames: list[list[bytes]], data: st.DataObject) -> None:
    """Whatever was appended is read back; what is cut off is returned, and the file goes on from there."""
    lines = [line for frame in frames for line in frame]
    keep = data.draw(st.integers(1, len(lines)))
    with TemporaryDirectory() as folder:
        file = LinesFile(Path(folder) / "lines")
        for frame in frames:
            file.append(joined(frame), len(frame))
        assert (list(read_lines(file.path)), file.n_lines) == (lines, len(lines))
        assert file.cut(keep) == lines[keep:]
        assert (list(read_lines(file.path)), file.n_lines) == (lines[:keep], keep)
        file.append(b"more\n", 1)
        assert list(read_lines(file.path)) == [*lines[:keep], b"more"]


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: not b.startswith(b"\x28\xb5\x2f\xfd")), max_size=5))
def test_plain_files_are_read_as_they_are(pieces: list[bytes]) -> None:
    """A file that is no zstd is split at newlines, its last line also when it has none."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plain"
        path.write_bytes(b"".join(pieces))
        whole = b"".join(pieces)
        assert list(read_lines(path)) == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: d[:20] + bytes([d[20] ^ 255]) + d[21:]])
def test_damage_is_told(tmp_path: Path, damage: object) -> None:
    """A packed file that was cut short or changed is an error, never fewer or other lines."""
    file = LinesFile(tmp_path / "lines")
    file.append(joined([b"%d" % n**5 for n in range(2_000)]), 2_000)
    file.path.write_bytes(damage(file.path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BlobError, match="damaged"):
        list(read_lines(file.path))


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path) -> None:
    """Lines of some megabytes come back whole."""
    lines = [b"a" * n for n in accumulate([1 << 20, 1, (1 << 20) - 2, 5])]
    file = LinesFile(tmp_path / "lines")
    file.append(joined(lines), len(lines))
    assert list(read_lines(file.path)) == lines
