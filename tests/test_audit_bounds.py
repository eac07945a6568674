"""What a log may not make an audit do: hold a line of any length, a site of any size, or say what a terminal acts on."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from canwait.audit.calls import Asked, BadLine, Call, Item
from canwait.audit.gather import Gatherer
from canwait.audit.reading import MAX_LINE_BYTES, MAX_VALUES, read_logs
from canwait.audit.sampling import Reservoir, Room, Rooms
from canwait.errors import SourceError

START_US = 1_760_918_400 * 10**6
GOOD = b'{"start_us": 1760918400000000, "site": "s", "model": "m", "input_tokens": 1, "output_tokens": 1}\n'


def items(path: Path) -> list[Item]:
    return [item for log in read_logs([path], Asked()) for item in log]


def peak_mb(path: Path) -> float:
    """Of a process that reads this log, above one that reads a log of one line."""
    script = (
        "import sys; from pathlib import Path; from canwait.audit.calls import Asked\n"
        "from canwait.audit.reading import read_logs\nfrom canwait.errors import SourceError\n"
        "try: n = sum(1 for log in read_logs([Path(sys.argv[1])], Asked()) for _ in log)\n"
        "except SourceError: pass\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    return int(said.stdout) / 1000


# ----------------------------------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: GOOD + b"{}," * 20_000_000,
        lambda: GOOD + b"[" + b"{}," * 20_000_000 + b"{}]",
        lambda: GOOD + b'{"data": [' + b"[]," * 20_000_000 + b"[]]}",
        lambda: b"[\n" + (b"{}," * 2_000 + b"\n") * 9_000 + b"]",
    ],
    ids=["a line", "an array", "a page", "a document"],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak from /proc")
def test_a_line_of_millions_of_objects_is_not_made_into_them(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    """60 MB that pack into a quarter of one are a bad line or no log; reading them takes less than half a gigabyte."""
    path = tmp_path / "calls.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bomb() + b"\n" + GOOD)
    assert peak_mb(path) < 450


def test_a_line_with_too_many_values_is_a_bad_line(tmp_path: Path) -> None:
    """The calls around it are read, and it says why it was not."""
    path = tmp_path / "calls.jsonl"
    path.write_bytes(GOOD + b"[" + b"{}," * MAX_VALUES + b"{}]\n" + GOOD)
    before, bad, after = items(path)
    assert (type(before), type(after)) == (Call, Call)
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.why) == (2, "holds more than 1,000,000 objects and arrays: expected one record a line")


def test_a_row_of_a_table_is_no_longer_than_a_line(tmp_path: Path) -> None:
    """A quoted cell, or thousands of them, that go on from line to line end where a line would; what follows is read."""
    path = tmp_path / "calls.csv"
    row = b"2026-09-21T10:00:00Z,m,1\n"
    cells = b'"' + b"x" * 1_000_000 + b'\n",'
    path.write_bytes(b"time,model,input_tokens\n" + row + cells * (MAX_LINE_BYTES // 1_000_000 + 2) + b'"\n' + row)
    found = items(path)
    assert [type(item) for item in (found[0], found[-1])] == [Call, Call]
    bad = [item for item in found if isinstance(item, BadLine)]
    assert bad[0].why == f"no row of a table: longer than {MAX_LINE_BYTES >> 20} MB"
    assert bad[0].line == 3
    assert len(bad) == len(found) - 2


# ----------------------------------------------------------------------------------------------------------------- sites


def full_site(n: int) -> list[Call]:
    """Calls of one site with a user, a session, an actor and a request of their own each, over years."""
    random, found = Random(1), []
    for i in range(n):
        at = START_US + i * 900 * 10**6
        who: dict[str, Any] = {"user": f"u{i}", "session": f"s{i}", "actor": f"a{i % 64}"}
        tokens: dict[str, Any] = {"input_tokens": i, "output_tokens": i, "max_output_tokens": i, "deadline_s": float(i)}
        times = {"end_us": at + 10**6, "first_token_us": at + 5}
        found.append(Call(at, "s", "m", text_hash=random.randbytes(16), **times, **who, **tokens))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_a_line_that_is_too_long_is_one_bad_line(tmp_path: Path, number: int) -> None:
    """However many times longer than the longest, it is counted once, and what follows is read."""
    lines = [GOOD, GOOD]
    lines.insert(number - 1, b'{"text": "' + b"x" * (2 * MAX_LINE_BYTES) + b'"}\n')
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"".join(lines))
    found = items(path)
    assert [item.line for item in found if isinstance(item, BadLine)] == [number]
    assert len(found) == 3


@pytest.mark.parametrize("kind", ["values", "distinct", "sessions", "actors", "requests", "slots"])
def test_all_sites_share_the_room_of_each_kind(kind: str) -> None:
    """However many sites there are, what is kept of a kind stays about what there is room for, and each site keeps some."""
    gatherer, calls = Gatherer(), full_site(600)
    room: Room = getattr(gatherer._rooms, kind)
    room.most = 2_000
    for n in range(60):
        for call in calls:
            gatherer.add(call._replace(site=f"s{n}"))
    most_of_a_look = 256 * 10
    assert 0 < room.taken <= room.most + most_of_a_look
    assert room.each >= 1
    for facts in gatherer.facts():
        assert facts.n_calls == 600
        assert facts.n_users >= room.each or kind != "distinct"
        assert facts.latency_s.n_seen == 600
        assert len(facts.latency_s.values) >= min(room.each, 16) or kind != "values"
        assert facts.arrivals is not None
        assert sum(facts.arrivals.hour_of_week) == 600


DEFAULTS = [room.each for room in vars(Rooms()).values()]


def test_what_is_taken_is_what_is_kept() -> None:
    """The room that a kind has taken is the number of things in it, also after it was halved again and again."""
    gatherer = Gatherer()
    for room in vars(gatherer._rooms).values():
        room.most //= 2_000
    for n in range(20):
        for call in full_site(300):
            gatherer.add(call._replace(site=f"s{n}", text="x" * 3000))
    rooms, sites = gatherer._rooms, gatherer._sites.values()
    assert all(room.each < each for room, each in zip(vars(rooms).values(), DEFAULTS, strict=True))
    assert rooms.slots.taken == sum(len(part._slots) for site in sites for part in (site.slots, site.scheduled))
    assert rooms.distinct.taken == sum(len(p._numbers) for site in sites for p in (site.users, site.sessions.distinct))
    assert rooms.sessions.taken == sum(len(site.sessions._followed) for site in sites)
    assert rooms.actors.taken == sum(len(site.in_flight._followed) for site in sites)
    assert rooms.requests.taken == sum(len(site.equals._failed) for site in sites)
    assert rooms.text_bytes.taken == sum(len(text) for site in sites for text in site.texts.kept)
    values = [*("latency_s", "first_token_s", "first_use_s", "deadline_s", "input", "output", "max_output")]
    assert rooms.values.taken == sum(
        len(part.values)
        for site in sites
        for part in (
            *(getattr(site, name) for name in values),
            *(site.sessions.turns, site.sessions.gap_s, site.in_flight.at_once),
        )
    )


def test_a_reservoir_that_shrinks_is_still_a_uniform_sample() -> None:
    """Halved midway, before or after it was full, the values kept have the mean and the spread of the whole stream."""
    for halve_at in (300, 3_000):
        random, means, lows = Random(7), [], []
        for _ in range(60):
            room = Room(512, 10**9)
            reservoir = Reservoir(random, room)
            for value in range(12_000):
                if value == halve_at:
                    room.each = 128
                    reservoir.shrink()
                reservoir.add(value)
            sample = reservoir.sample()
            assert (sample.n_seen, len(sample.values), room.taken) == (12_000, 128, 128)
            means.append(sum(sample.values) / 128)
            lows.append(sum(value < halve_at for value in sample.values) / 128)
        error = 12_000 / 12**0.5 / (128 * 60) ** 0.5
        assert abs(sum(means) / 60 - 5999.5) < 3.5 * error
        share = halve_at / 12_000
        assert abs(sum(lows) / 60 - share) < 3.5 * (share * (1 - share) / (128 * 60)) ** 0.5


def test_groups_of_a_site_are_bounded() -> None:
    """Any mix of triggers and models makes so many cells and no more; what is not told apart is never called a schedule."""
    gatherer = Gatherer()
    for i in range(20_000):
        held: dict[str, Any] = {"trigger": f"cron {i % 40}", "tier": f"t{i % 50}", "stream": (None, True, False)[i % 3]}
        gatherer.add(Call(START_US + i * 10**6, "s", f"m{i % 60}", input_tokens=1, output_tokens=1, **held))
    site = gatherer._sites["s"]
    assert len(site.cells) < 2_000
    (facts,) = gatherer.facts()
    assert sum(group.n_calls for group in facts.groups) == 20_000
    assert sum(use.n_calls for group in facts.groups for use in group.models) == 20_000
    assert sum(use.usage.input_tokens for use in facts.models) == 20_000
    assert sum(facts.triggers.values()) == 20_000


def test_a_folder_of_nothing_but_bombs_is_no_log(tmp_path: Path) -> None:
    """Where not one line can be read, that is said."""
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"[" + b"{}," * MAX_VALUES + b"{}]\n")
    with pytest.raises(SourceError, match="holds more than 1,000,000 objects"):
        items(path)
