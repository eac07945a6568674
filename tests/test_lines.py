"""Files of lines: packed or plain they read alike, and damage is told."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import BlobError
from canwait.lines import LinesFile, read_lines

LINE = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" "))


@given(st.lists(st.lists(LINE, min_size=1, max_size=6), min_size=1, max_size=6), LINE, LINE, st.data())
def test_lines_come_back_and_can_be_taken_out(
    frames: list[list[bytes]], before: bytes, after: bytes, data: st.DataObject
) -> None:
    """Whatever was appended is read back, between its ends; what is cut off is returned, and the file goes on from there."""
    middles = [middle for frame in frames for middle in frame]
    lines = [before + middle + after for middle in middles]
    keep = data.draw(st.integers(1, len(lines)))
    with TemporaryDirectory() as folder:
        file = LinesFile(Path(folder) / "lines", before, after)
        for frame in frames:
            file.append(frame)
        assert (list(read_lines(file.path)), file.n_lines) == (lines, len(lines))
        assert file.cut(keep) == middles[keep:]
        assert (list(read_lines(file.path)), file.n_lines) == (lines[:keep], keep)
        file.append([b"more"])
        assert list(read_lines(file.path)) == [*lines[:keep], before + b"more" + after]


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: not b.startswith(b"\x5c\x2a\x4d\x18")), max_size=5))
def test_plain_files_are_read_as_they_are(pieces: list[bytes]) -> None:
    """A file that is not packed is split at newlines, its last line also when it has none."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plain"
        path.write_bytes(b"".join(pieces))
        whole = b"".join(pieces)
        assert list(read_lines(path)) == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-3],
        lambda d: d.replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfc"),  # how a frame begins
        lambda d: d[:10],
        lambda d: d[:20],
        lambda d: d[:8] + b"\xff" + d[9:],
    ],
)
def test_damage_is_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A packed file that was cut short or changed is an error, never fewer or other lines."""
    file = LinesFile(tmp_path / "lines", b"before", b"after")
    file.append([b"%d" % n**5 for n in range(2_000)])
    file.path.write_bytes(damage(file.path.read_bytes()))
    with pytest.raises(BlobError, match="damaged"):
        list(read_lines(file.path))


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path) -> None:
    """Lines of some megabytes come back whole."""
    lines = [b"a" * n for n in accumulate([1 << 20, 1, (1 << 20) - 2, 5])]
    file = LinesFile(tmp_path / "lines")
    file.append(lines)
    assert list(read_lines(file.path)) == lines
