"""Random histories in which rows move to another tier: they hold, and each lock of a move that is taken out makes them fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import postgres
from canwait import entries, rescue
from canwait.blobs import Blobs
from canwait.drills import histories
from canwait.drills.histories import History
from canwait.engine import Engine
from canwait.errors import CanwaitError
from canwait.ledger import NewShard

SEEDS = range(80_000, 80_400)


def moving(tmp_path: Path, n: int) -> Iterator[History]:
    """Histories of which the job file names a rescue, and whose budgets may have room for it."""
    found = 0
    for seed in SEEDS:
        history = History(seed, Blobs(tmp_path))
        if history.rows_per_s is not None:
            yield history
            found += 1
        if found == n:
            return


def test_histories_with_moves_hold(tmp_path: Path) -> None:
    """Cancels that lag, are lost or not heard, callers that die, budgets without room: no row is lost or paid twice unsaid."""
    total = histories.Result()
    for history in moving(tmp_path, 40):
        total.add(history.play())
    assert total.violations == Counter(), total.examples
    assert total.n_moved > 20


@pytest.mark.slow
def test_histories_with_moves_hold_on_postgres(postgres_server: str, tmp_path: Path) -> None:
    """The same on PostgreSQL, each history in a database of its own."""
    total = histories.Result()
    for seed in range(30_100, 30_125):
        with postgres.database(postgres_server) as url:
            total.add(History(seed, Blobs(tmp_path), url).play())
    assert total.violations == Counter(), total.examples
    assert total.n_moved > 0


def broken(tmp_path: Path, wanted: set[str], most: int = 80) -> set[str]:
    """What breaks in histories with moves, until something of what is wanted does."""
    kinds: set[str] = set()
    for history in moving(tmp_path, most):
        try:
            kinds |= {*history.play().violations}
        except CanwaitError as error:
            kinds.add(type(error).__name__)
        except AssertionError:
            kinds.add("assertion")
        if kinds & wanted:
            return kinds
    return kinds


def test_without_the_reservation_of_the_redo_a_cap_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a redo that is held without asking the budgets, money is granted that is not free, and the drill says so."""
    reserve = entries.reserve

    def granted(tx: Any, now: Any, budgets: Any, job: Any, shard: Any, /, *, micros: int, tokens: int) -> None:
        for budget in budgets:
            entries.move(tx, now, budget, job, shard, "reserve", "unasked", held_micros=micros, held_tokens=tokens)

    def careless(*args: Any, **kwargs: Any) -> bool:
        monkeypatch.setattr(entries, "reserve", granted)
        try:
            return move(*args, **kwargs)
        finally:
            monkeypatch.setattr(entries, "reserve", reserve)

    move = rescue._move
    monkeypatch.setattr(rescue, "_move", careless)
    assert "over cap" in broken(tmp_path, {"over cap"})


def test_without_the_harvest_rows_are_paid_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every line of a cancelled batch asked again, answered ones too, rows are paid twice, and the drill says so."""
    moved: Callable[..., Iterator[NewShard]] = Engine._moved

    def all_of_them(self: Engine, shard: Any, manifest: Any, lines: Any, attempt: int, terms: Any) -> Any:
        return moved(self, shard, manifest, range(shard.n_lines) if lines else lines, attempt, terms)

    monkeypatch.setattr(Engine, "_moved", all_of_them)
    assert "paid twice" in broken(tmp_path, {"paid twice"})


def test_a_redo_that_does_not_wait_for_the_end_is_paid_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows sent to the other tier while their batch still runs, both answer, and the drill says so."""
    poll = Engine._poll

    def hasty(self: Engine, shard: Any) -> None:
        if shard.moving and shard.id == shard.root:
            from canwait import landing

            manifest = landing.read_manifest(self.blobs.path(shard.manifest_blob))
            terms = self.ledger.terms(shard)
            with self.ledger.db.transaction("hasty") as tx:
                from canwait.ledger import _insert_shard

                for new in self._moved(shard, manifest, range(shard.n_lines), 1, terms):
                    if not tx.run("shard", id=new.id):
                        _insert_shard(tx, shard.job, shard.plan, new)
        poll(self, shard)

    monkeypatch.setattr(Engine, "_poll", hasty)
    assert "paid twice" in broken(tmp_path, {"paid twice"})


def test_a_second_bill_that_is_not_told_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With settlements that do not say what was billed for rows that are asked again, the drill says so."""
    monkeypatch.setattr(Engine, "_settlement", _silent(Engine._settlement))
    assert "unreported" in broken(tmp_path, {"unreported"})


def _silent(settlement: Any) -> Any:
    from dataclasses import replace

    return lambda *args: replace(settlement(*args), twice_micros=0)
