"""What need not be paid again is found: exactly, first shard first, from an index that may be lost at any time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait import known
from canwait.errors import BlobError
from canwait.known import Known
from canwait.landing import MANIFEST

Shards = Sequence[Sequence[bytes]]
MayReuse = Callable[[int], bool]


def identity(n: int, prefix: int | None = None) -> bytes:
    """16 bytes; those of one prefix agree in their first eight."""
    spread = n * 0x9E3779B97F4A7C15 % (1 << 64) if prefix is None else prefix
    return spread.to_bytes(8, "little") + n.to_bytes(8, "little")


def always(line: int) -> bool:
    return True


def written(folder: Path, shards: Shards) -> list[Path]:
    """A manifest of each shard's identities, named by what it holds as a blob is."""
    paths = []
    for lines in shards:
        path = folder / sha256(b"".join(lines)).hexdigest()
        zeros = pa.array([0] * len(lines), pa.int64())
        columns = [pa.array(range(len(lines)), pa.int32()), pa.array(lines, pa.binary(16)), zeros, zeros, zeros]
        pq.write_table(pa.Table.from_arrays(columns, schema=MANIFEST), path, row_group_size=3)
        paths.append(path)
    return paths


def given_shards(folder: Path, shards: Shards, may_reuse: MayReuse = always) -> list[tuple[str, Path, MayReuse]]:
    return [(f"s{n}", path, may_reuse) for n, path in enumerate(written(folder, shards))]


def runs(folder: Path) -> dict[str, int]:
    """The kept runs, by size."""
    return {path.name: path.stat().st_size for path in folder.glob("*.run")}


def of(*ranges: range) -> list[list[bytes]]:
    return [[identity(n) for n in numbers] for numbers in ranges]


# -------------------------------------------------------------------------------------------------------------- the law


identities = st.builds(
    identity, st.integers(0, 30), st.sampled_from([None, 0, 1, (1 << 64) - 1, 0x8000_0000_0000_0000])
)
shards_with_reuse = st.lists(
    st.lists(identities, min_size=1, max_size=12).flatmap(
        lambda lines: st.tuples(st.just(lines), st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    ),
    max_size=8,
)


@given(shards_with_reuse, st.lists(identities, max_size=40), st.integers(0, 8), st.booleans())
@settings(max_examples=150, deadline=None)
def test_it_answers_as_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[tuple[list[bytes], list[bool]]],
    asked: list[bytes],
    n_before: int,
    in_memory: bool,
) -> None:
    """For any shards, repeats, colliding prefixes and lines not to be reused, the first line that may answer does."""
    folder = tmp_path_factory.mktemp("known")
    paths = written(folder, [lines for lines, _ in shards])
    whole = [(f"s{n}", path, may.__getitem__) for n, (path, (_, may)) in enumerate(zip(paths, shards, strict=True))]
    model: dict[bytes, tuple[str, int]] = {}
    for n, (lines, may) in enumerate(shards):
        for line, wanted in enumerate(lines):
            if may[line]:
                model.setdefault(wanted, (f"s{n}", line))
    if not in_memory:
        Known(whole[:n_before], folder / "index")
    index = Known(whole, None if in_memory else folder / "index")
    asked += [wanted for lines, _ in shards for wanted in lines]
    assert index.find(asked) == [model.get(wanted) for wanted in asked]
    assert [index.find([wanted])[0] for wanted in asked[:3]] == [model.get(wanted) for wanted in asked[:3]]
    assert index.n_lines == {f"s{n}": len(lines) for n, (lines, _) in enumerate(shards)}
    assert bool(index) == bool(shards)


def test_the_order_of_the_shards_is_the_askers(tmp_path: Path) -> None:
    """Of two shards with one request the first one given answers, whichever was indexed first."""
    shards = given_shards(tmp_path, of(range(5), range(4, 9)))
    for order in (shards, shards[::-1]):
        assert Known(order, tmp_path / "index").find([identity(4)])[0] == (order[0][0], 4 if order[0][0] == "s0" else 0)


def test_two_shards_may_have_one_manifest(tmp_path: Path) -> None:
    """Two jobs that asked the same before either was answered share a manifest; the one that may answer does."""
    (path,) = written(tmp_path, of(range(3)))
    shards = [("mine", path, lambda line: line == 0), ("other", path, lambda line: line < 2)]
    index = Known(shards, tmp_path / "index")
    assert index.find([identity(n) for n in range(3)]) == [("mine", 0), ("other", 1), None]


def test_reuse_is_asked_about_found_lines_only(tmp_path: Path) -> None:
    """Whether a line may be reused is asked only of lines that were found, and of none behind the first that may."""
    asked: list[tuple[str, int]] = []

    def asking(shard: str) -> MayReuse:
        return lambda line: asked.append((shard, line)) or True  # type: ignore[func-returns-value]

    paths = written(tmp_path, of(range(100), range(50, 150)))
    index = Known([("a", paths[0], asking("a")), ("b", paths[1], asking("b"))], tmp_path / "index")
    assert index.find([identity(60), identity(120), identity(999)]) == [("a", 60), ("b", 70), None]
    assert asked.count(("a", 60)) == asked.count(("b", 70)) == 1
    assert set(asked) <= {("a", 60), ("b", 70), ("b", 10)}


def test_nothing_known_is_nothing_made(tmp_path: Path) -> None:
    """Without shards there is no index, no folder, and nothing is found."""
    index = Known([], tmp_path / "index")
    assert (bool(index), index.find([identity(1)]), index.find([identity(1)])[0]) == (False, [None], None)
    assert not (tmp_path / "index").exists()


# ---------------------------------------------------------------------------------------------------------- how it grows


def test_it_is_kept_for_the_next_plan(tmp_path: Path) -> None:
    """What is indexed is not read again: the next plan opens the index though the manifests are unreadable."""
    shards = given_shards(tmp_path, of(range(10), range(10, 20)))
    Known(shards, tmp_path / "index")
    for _, path, _ in shards:
        path.write_bytes(b"")
    index = Known(shards, tmp_path / "index")
    assert index.find([identity(15)])[0] == ("s1", 5)
    assert index.n_lines == {"s0": 10, "s1": 10}


def test_runs_stay_few_as_shards_come(tmp_path: Path) -> None:
    """A shard a plan, two hundred times: runs are merged, and every line stays where it was."""
    shards = given_shards(tmp_path, of(*(range(7 * n, 7 * n + 7) for n in range(200))))
    most = 0
    for n in range(1, 201):
        index = Known(shards[:n], tmp_path / "index")
        most = max(most, len(runs(tmp_path / "index")))
    assert 1 < most <= 8
    assert index.find([identity(n) for n in range(1_500)]) == [
        (f"s{n // 7}", n % 7) if n < 1_400 else None for n in range(1_500)
    ]


def test_runs_longer_than_a_part_are_merged_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting a part of the prefixes at a time gives one sorted run, so building needs no memory for the whole."""
    monkeypatch.setattr(known, "_SORTED_ROWS", 16)
    shards = given_shards(tmp_path, of(*(range(20 * n, 20 * n + 20) for n in range(12))))
    index = Known(shards, tmp_path / "index")
    assert len(runs(tmp_path / "index")) == 1
    assert index.find([identity(n) for n in range(240)]) == [(f"s{n // 20}", n % 20) for n in range(240)]


def test_another_ledgers_shards_do_not_answer(tmp_path: Path) -> None:
    """An index that holds more than was asked for, as where two ledgers share their blobs, answers for what was asked."""
    shards = given_shards(tmp_path, of(range(10), range(5, 15)))
    Known(shards, tmp_path / "index")
    assert Known(shards[1:], tmp_path / "index").find([identity(2), identity(7)]) == [None, ("s1", 2)]


# -------------------------------------------------------------------------------------------------------- how it is lost


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(8))


def flip(at: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return change


def swap_bytes(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8][::-1] + content[8:])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut": cut,
    "longer": grow,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "no header": lambda path: path.write_bytes(b"canwait1") and None,
    "magic": flip(0),
    "header's length": flip(9),
    "header's checksum": flip(12),
    "header": flip(20),
    "of another machine": swap_bytes,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_run_is_made_again(tmp_path: Path, how: str) -> None:
    """A run that is cut, garbled, gone or of another machine is replaced by the same one, made from the manifests."""
    shards = given_shards(tmp_path, of(range(50), range(50, 80)))
    Known(shards, tmp_path / "index")
    before = runs(tmp_path / "index")
    (path,) = (tmp_path / "index").glob("*.run")
    content = path.read_bytes()
    DAMAGE[how](path)
    index = Known(shards, tmp_path / "index")
    assert index.find([identity(49), identity(50), identity(80)]) == [("s0", 49), ("s1", 0), None]
    assert runs(tmp_path / "index") == before
    assert path.read_bytes() == content


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    """Half a file, and a run whose lines were merged into another one already, go at the next plan."""
    shards = given_shards(tmp_path, of(range(10), range(10, 25)))
    folder = tmp_path / "index"
    Known(shards[:1], folder)
    ((name, _),) = runs(folder).items()
    small = (folder / name).read_bytes()
    Known(shards, folder)
    (folder / name).write_bytes(small)
    (folder / "abc.part").write_bytes(b"half")
    assert Known(shards, folder).find([identity(3)])[0] == ("s0", 3)
    assert (name in runs(folder), (folder / "abc.part").exists(), len(runs(folder))) == (False, False, 1)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A manifest that is damaged before it was indexed is a BlobError with its name, and nothing of it is kept."""
    shards = given_shards(tmp_path, of(range(10)))
    shards[0][1].write_bytes(b"PAR1 no")
    with pytest.raises(BlobError, match=shards[0][1].name):
        Known(shards, tmp_path / "index")
    assert runs(tmp_path / "index") == {}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Where the index cannot be kept the plan says so, as for any other blob."""
    (tmp_path / "index").write_text("a file")
    with pytest.raises(BlobError, match="could not be written"):
        Known(given_shards(tmp_path, of(range(3))), tmp_path / "index")


# ------------------------------------------------------------------------------------------------------------- together


def _plan_often(shards: list[tuple[str, Path]], folder: Path, offset: int, failed: Any) -> None:
    """In a process of its own: index ever more shards, and look every line up each time."""
    try:
        for n in range(1, len(shards) + 1):
            mine = [(shard, path, always) for shard, path in (shards[offset:] + shards[:offset])[:n]]
            index = Known(mine, folder)
            numbers = {shard: int(shard[1:]) for shard, _, _ in mine}
            for shard, number in numbers.items():
                lines = range(10 * number, 10 * number + 10)
                assert index.find([identity(i) for i in lines]) == [(shard, i) for i in range(10)]
    except BaseException as error:
        failed.put(repr(error))
        raise


def test_processes_that_plan_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Four processes index other shards in other orders into one folder; each finds its own, and the end holds all once."""
    shards = [
        (shard, path) for shard, path, _ in given_shards(tmp_path, of(*(range(10 * n, 10 * n + 10) for n in range(24))))
    ]
    spawn = multiprocessing.get_context("forkserver")
    failed = spawn.Queue()
    processes = [spawn.Process(target=_plan_often, args=(shards, tmp_path / "index", 6 * n, failed)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0] * 4, failed.get()
    index = Known([(shard, path, always) for shard, path in shards], tmp_path / "index")
    assert index.find([identity(n) for n in range(240)]) == [(f"s{n // 10}", n % 10) for n in range(240)]
    assert sum(run.n for run in known._kept(tmp_path / "index")) == 240
    assert {p.suffix for p in (tmp_path / "index").iterdir()} == {".run", ""}


def test_an_open_index_outlives_its_files(tmp_path: Path) -> None:
    """A plan that is being made goes on when another one merges the runs it reads."""
    shards = given_shards(tmp_path, of(range(10), range(10, 25)))
    first = Known(shards[:1], tmp_path / "index")
    before = runs(tmp_path / "index")
    Known(shards, tmp_path / "index")
    assert before.keys().isdisjoint(runs(tmp_path / "index"))
    assert first.find([identity(3), identity(20)]) == [("s0", 3), None]
