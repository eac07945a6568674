"""Places by identity, and keys that stand twice: exact, however many and however alike."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait import places as module
from canwait.places import LINE_BITS, MAX_LINES, MAX_SHARDS, Keys, Places


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with closing(Places(tmp_path / "places")) as made:
        yield made


# Identities that fall into one table and one slot, and differ in the low bits of that or only in the second half.
ALIKE = st.builds(
    lambda low, rest: bytes([low]) + bytes(4) + b"\xff\xff\xfe" + bytes([rest]) * 8,
    st.sampled_from([0, 64]),
    st.integers(0, 255),
)


@settings(max_examples=60)
@given(st.lists(st.lists(ALIKE | st.binary(min_size=16, max_size=16), max_size=40), max_size=8), st.randoms())
def test_places_are_those_a_dict_holds(batches: list[list[bytes]], rng: random.Random) -> None:
    """Identities that share every bit but the last are told apart, and each is found at the place it was given."""
    model: dict[bytes, int] = {}
    free = rng.sample(range(1000), 1000)
    with TemporaryDirectory() as folder, closing(Places(Path(folder) / "p")) as places:
        for batch in batches:
            found = [model.get(identity, -1) for identity in batch]
            assert places.find(batch) == (found, [n for n, place in enumerate(found) if place < 0])
            new = list(dict.fromkeys(identity for identity in batch if identity not in model))
            given_places = [free.pop() << LINE_BITS | rng.randrange(3) for _ in new]
            places.add(new, given_places)
            model |= zip(new, given_places, strict=True)
        assert places.find(list(model)) == (list(model.values()), [])


def test_tables_grow_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150,000 identities outgrow their tables in large steps and in small ones; all are found, and none not added."""
    monkeypatch.setattr(module, "_SLOTS", 512)
    monkeypatch.setattr(module, "_MANY", 50_000)
    with closing(Places(tmp_path / "grown")) as places:
        grow(places)


def grow(places: Places) -> None:
    rng = random.Random(0)
    identities = [rng.randbytes(16) for _ in range(150_000)]
    for start in range(0, len(identities), 1_000):
        places.add(identities[start : start + 1_000], list(range(start, start + 1_000)))
    assert places.find(identities) == (list(range(len(identities))), [])
    assert places.find([rng.randbytes(16) for _ in range(1_000)]) == ([-1] * 1_000, list(range(1_000)))


def test_the_last_place_of_all_is_one(places: Places) -> None:
    """The highest shard and line there can be are found again."""
    last = MAX_SHARDS - 1 << LINE_BITS | MAX_LINES - 1
    places.add([b"\xff" * 16, bytes(16)], [last, 0])
    assert places.find([bytes(16), b"\xff" * 16]) == ([0, last], [])


@given(st.lists(st.text(max_size=3), max_size=200))
def test_keys_that_stand_twice_are_suspects(keys: list[str]) -> None:
    """Every key that is there twice is suspected; with so few keys no other one is."""
    with TemporaryDirectory() as folder, closing(Keys(Path(folder) / "k")) as spool:
        spool.add(keys[:50])
        spool.add(keys[50:])
        assert spool.twice() == {hash(key) for key, n in Counter(keys).items() if n > 1}


def test_many_keys_are_looked_at_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than are sorted at a time: the ones that stand twice are found in whatever runs they fall."""
    monkeypatch.setattr(module, "_RUN_KEYS", 100)
    with closing(Keys(tmp_path / "k")) as spool:
        for start in range(0, 2_000, 50):
            spool.add([str(n) for n in range(start, start + 50)])
        spool.add(["7", "1999", "2000"])
        assert spool.twice() == {hash("7"), hash("1999")}
