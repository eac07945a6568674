"""What the ledger saw, as values: which batches count as back, which were only watched, and how fast rows went one by one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from canwait import history
from canwait.turnaround import Past, Seen
from canwait.types import BatchStatus, MarkClass, Tier
from moving import ADAPTER, HOUR_S, SLOW, Moving
from world import EXPIRED, RUNS_S, End, World

FAILED = End(BatchStatus.FAILED, "invalid_request", "no")


def seen(world: World) -> list[Past]:
    return history.past(world.ledger, world.now)


def test_a_batch_that_came_back_took_so_long(tmp_path: Path) -> None:
    """From when it was sent until its end was seen, with its provider, model, tier and size."""
    w = World(tmp_path, sizes=(3, 2), ends=[End(), End(runs_s=HOUR_S)]).run()
    assert [p[:4] for p in seen(w)] == [("fake", "fake-1", Tier.BATCH, 3), ("fake", "fake-1", Tier.BATCH, 2)]
    assert [p.seen for p in seen(w)] == [Seen(RUNS_S), Seen(HOUR_S)]


@pytest.mark.parametrize("end", [End(BatchStatus.EXPIRED), End(BatchStatus.CANCELLED)])
def test_what_expired_or_was_cancelled_was_only_watched(tmp_path: Path, end: End) -> None:
    """It says that it takes longer than it was out, and not how long."""
    w = World(tmp_path, sizes=(1,), ends=[end], rows={0: [EXPIRED]}, attempts=1).run()
    assert [p.seen for p in seen(w)] == [Seen(RUNS_S, ended=False)]


def test_what_still_runs_is_watched_until_now(tmp_path: Path) -> None:
    """A batch that is out counts from its first minute on, or a slow day would look like a fast one."""
    w = World(tmp_path, ends=[SLOW])
    w.until("submitted")
    w.clock.sleep(100)
    assert [p.seen for p in seen(w)] == [Seen(100.0, ended=False)]


def test_a_batch_that_was_refused_tells_nothing(tmp_path: Path) -> None:
    """A batch that failed as a whole within a minute is no fast batch."""
    w = World(tmp_path, ends=[FAILED], attempts=1).run()
    assert seen(w) == []


def test_it_is_in_the_order_they_were_sent(tmp_path: Path) -> None:
    """Of all jobs and adapters together: the newest tell most of the next."""
    w = World(tmp_path, sizes=(1, 2, 3), ends=[End(runs_s=s) for s in (900, 30, 600)], mark=MarkClass.UNMARKED).run()
    assert [p.n_rows for p in seen(w)] == [1, 2, 3]


def test_only_the_last_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of years is not read as a whole."""
    monkeypatch.setattr(history, "MOST", 2)
    w = Moving(tmp_path, sizes=(1, 1, 2, 3), ends=[SLOW] * 4, micros=10_000).run()
    assert [len([p for p in seen(w) if p.tier is tier]) for tier in (Tier.BATCH, Tier.STANDARD)] == [2, 2]


def test_those_that_are_out_leave_room_for_those_that_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches of a job are on their way, what earlier ones took is still known."""
    monkeypatch.setattr(history, "MOST", 2)
    w = World(tmp_path, sizes=(1, 2, 3, 4, 5), ends=[End(), *[SLOW] * 4])
    w.until("submitted")
    w.clock.sleep(2 * RUNS_S)
    w.engine.tick()
    assert sorted(p.seen.ended for p in seen(w)) == [False, False, True]


def test_a_moved_batch_is_watched_and_its_redo_is_of_the_other_tier(tmp_path: Path) -> None:
    """A batch that was given up says that it takes longer; what was moved is of the provider it was moved at, on that tier."""
    w = Moving(tmp_path, sizes=(4,), ends=[SLOW], micros=1000).run()
    batch, redo = seen(w)
    assert (batch.provider, batch.tier, batch.seen.ended) == ("fake", Tier.BATCH, False)
    assert (redo.provider, redo.tier, redo.n_rows, redo.seen.ended) == ("fake", Tier.STANDARD, 2, True)


def test_the_longest_gap_is_what_its_polls_counted(tmp_path: Path) -> None:
    """Of a provider that counts rows, how long the count stood still; of one that does not, nothing."""
    w = World(tmp_path, ends=[End()]).run()
    assert [p.longest_gap for p in seen(w)] == [None]
    with w.ledger.db.transaction("counted") as tx:
        row = tx.run("shards", job="job")[0]
        tx.run("shard_batch", id=row["id"], fence=row["fence"], batch=row["batch"], progress="[2, 450.0, 300.0]", at=0)
    assert [p.longest_gap for p in seen(w)] == [Seen(300.0)]


# -------------------------------------------------------------------------------------------------------------- rates


def rated(tmp_path: Path, sizes: tuple[int, ...], rate: float) -> Moving:
    """A job all of whose rows are answered one by one."""
    return Moving(tmp_path, sizes=sizes, deadline_s=600, rate=rate, rows_per_s=rate, micros=1_000_000).run()


def test_a_run_is_all_that_was_out_together(tmp_path: Path) -> None:
    """Shards that were answered beside each other are one run: its rows over its time."""
    w = rated(tmp_path, (100, 100, 100), rate=2.0)
    [rate] = history.rates(w.ledger, ADAPTER, "fake-1")
    assert rate == pytest.approx(2.0, rel=0.05)


def test_two_accounts_show_what_neither_allows(tmp_path: Path) -> None:
    """Shards that were out together share what their account allows, whatever job they are of; of two accounts each has its
    own rate, and never the rate of both together."""
    w = rated(tmp_path, (250, 250), rate=2.0)
    [together] = history.rates(w.ledger, ADAPTER, "fake-1")
    one, _ = sorted(row["id"] for row in w.ledger.query("shards", job="job") if row["provider"] == ADAPTER)
    with w.ledger.db.transaction("other_account") as tx:
        tx.run("shard_account", id=one, account="another key")
    apart = history.rates(w.ledger, ADAPTER, "fake-1")
    assert len(apart) == 2
    assert max(apart) < together


def test_few_rows_tell_no_rate(tmp_path: Path) -> None:
    """A handful of rows shows how long one takes, and not how many go at once."""
    assert history.rates(rated(tmp_path, (20,), rate=2.0).ledger, ADAPTER, "fake-1") == []


def test_a_rate_is_of_one_adapter_and_model(tmp_path: Path) -> None:
    """What another model did, or the batches, tells nothing."""
    w = rated(tmp_path, (250,), rate=2.0)
    assert len(history.rates(w.ledger, ADAPTER, "fake-1")) == 1
    assert history.rates(w.ledger, ADAPTER, "fake-2") == []
    assert history.rates(w.ledger, "fake/flex", "fake-1") == []


def test_a_redo_that_was_seen_promises_the_next(tmp_path: Path) -> None:
    """Where the job file states no rate, one run on record is enough to move what is late, with its margin."""
    w = rated(tmp_path, (250,), rate=2.0)
    w.rows_per_s, w.deadline_s = None, 4 * HOUR_S
    w.provider.ends = [replace(SLOW)]
    w.clock.sleep(timedelta(days=1).total_seconds())
    w.shards = [[body + b" " for body in w.shards[0][:4]]]
    w.open(micros=1_000_000, revision=1)
    w.state(True)
    w.run()
    assert len(w.sent) == 1
    assert len(w.moved[-1]) == 2
    assert w.late_s < 0
