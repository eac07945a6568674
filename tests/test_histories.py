"""Random histories hold on both databases, and each lock that is taken out makes them fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

import postgres
from canwait import engine
from canwait.blobs import Blobs
from canwait.clock import to_us
from canwait.drills import histories
from canwait.drills.histories import History
from canwait.engine import Engine
from canwait.errors import Busy, CanwaitError, LeaseLost
from canwait.ledger import Ledger
from canwait.providers import Provider
from canwait.providers.fake import FakeProvider
from canwait.releasing import Bounds, Room, Stranded
from canwait.types import Batch, Price, Shard, ShardFile


def test_random_histories_on_sqlite() -> None:
    """Faults, kills, races, expiry, late callers: nothing is paid twice, lost or over a cap, and the books say the bill."""
    result = histories.run(240, seed=20_000)
    assert result.violations == Counter(), result.examples
    assert result.n_kills > 1000
    assert result.n_batches > 300


@pytest.mark.slow
def test_random_histories_on_postgres(postgres_server: str, tmp_path: Path) -> None:
    """The same on PostgreSQL, each history in a database of its own."""
    total = histories.Result()
    for seed in range(30_000, 30_015):
        with postgres.database(postgres_server) as url:
            total.add(History(seed, Blobs(tmp_path), url).play())
    assert total.violations == Counter(), total.examples
    assert total.n_kills > 100


# ------------------------------------------------------------------------------ take a lock out, and the drill must say so


def broken(
    tmp_path: Path, take_out: Callable[[History], None], wanted: Sequence[str], *, first: int = 0, most: int = 150
) -> Iterator[str]:
    """What breaks in histories whose lock was taken out, until one of the wanted words is among it."""
    for seed in range(first, first + most):
        history = History(seed, Blobs(tmp_path))
        take_out(history)
        try:
            kinds = [*history.play().violations]
        except CanwaitError as error:  # the database itself, or a table of moves, may be the first to object
            kinds = [type(error).__name__]
        yield from kinds
        if set(kinds) & set(wanted):
            return


def statements(history: History, **changed: str) -> None:
    """Replace parts of the SQL that this history's ledger runs."""
    history.ledger.db._statements = {**history.ledger.db._statements, **changed}


def test_without_the_budgets_compare_and_swap_a_cap_is_passed(tmp_path: Path) -> None:
    """With the condition of the reservation taken out, money is granted that is not free, and the drill says so."""

    def take_out(history: History) -> None:
        sql = history.ledger.db._statements["budget_reserve"]
        statements(history, budget_reserve=sql[: sql.index("WHERE")] + "WHERE id = :id")

    assert "over cap" in broken(tmp_path, take_out, ["over cap"])


def test_without_the_shards_compare_and_swap_two_callers_write(tmp_path: Path) -> None:
    """With fence and state taken out of the move, a caller that lost its shard writes all the same, and something breaks."""

    def take_out(history: History) -> None:
        sql = history.ledger.db._statements["shard_move"]
        statements(history, shard_move=sql[: sql.index("WHERE")] + "WHERE id = :id")
        history.ledger._hold = lambda tx, shard: tx.run("shard", id=shard.id)[0]  # type: ignore[method-assign]

    wanted = ["paid twice", "lost", "bill", "books", "over cap", "LedgerError"]
    assert set(wanted) & set(broken(tmp_path, take_out, wanted))


def test_without_asking_first_rows_are_paid_twice(tmp_path: Path) -> None:
    """With an engine that takes every lost reply as an absent batch, rows are paid twice, and the drill says so."""

    def take_out(history: History) -> None:
        history.provider = Deaf(
            history.clock, history.rng, temper=history.provider.temper, during_create=history._others_act
        )
        history.provider.account = f"fake:{history.seed}"

    assert "paid twice" in broken(tmp_path, take_out, ["paid twice"])


class Deaf(FakeProvider):
    def find(self, shard: ShardFile) -> Sequence[Batch]:
        return []


def test_releasing_because_something_raised_breaks_the_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that takes an ambiguous create as a failed one, money is released that is spent (batchata)."""
    monkeypatch.setattr(histories, "Engine", Careless)
    found = set(broken(tmp_path, lambda history: None, ["over cap", "bill", "paid twice"]))
    assert found & {"over cap", "bill", "paid twice"}


class Careless(Engine):
    def _unknown(self, shard: Shard, provider: Provider, error: CanwaitError) -> None:
        self._not_sent(shard, provider, Busy("it raised, so it did not happen"))


def test_without_the_guard_a_late_caller_sends_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no look at the lease between upload and create, a caller that overslept sends a second batch."""
    monkeypatch.setattr(Ledger, "sending", lambda self, shard, lease_s, now: None)
    monkeypatch.setattr(Ledger, "begin_try", _begin_late)
    assert set(broken(tmp_path, upload_slowly, ["paid twice", "lost", "bill"])) & {"paid twice", "lost", "bill"}


def test_with_the_guard_slow_uploads_break_nothing(tmp_path: Path) -> None:
    """Callers that oversleep during an upload leave, and whoever took the shard over sends it: nothing is paid twice."""
    assert [*broken(tmp_path, upload_slowly, [], most=80)] == []


def upload_slowly(history: History) -> None:
    history.provider.temper = replace(history.provider.temper, slow_upload=0.5)
    while len(history.engines) < 2:
        history.engines.append(history._engine(1))


def _begin_late(self: Ledger, shard: Shard, account: str, lease_s: float, now: datetime) -> None:
    with self.db.transaction("begin_try") as tx:
        if tx.run("shard", id=shard.id)[0]["state"] != shard.state.value:
            raise LeaseLost(shard=shard.id)
        tx.run("intent_try", token=shard.token, at=to_us(now))


def test_giving_up_what_does_not_fit_strands_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that ends a shard when it does not fit as a whole, rows end for want of money that is there."""

    def give_up(bounds: Bounds, price: Price, rooms: Sequence[Room], *, taken: object = None) -> Stranded:
        return Stranded(range(len(bounds)), "it does not fit")

    monkeypatch.setattr(engine, "release", give_up)
    assert "stranded" in broken(tmp_path, lambda history: None, ["stranded"])


def test_recording_after_the_create_pays_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the try recorded after the create and not before it, a crash in between pays twice (steadybatch)."""
    begin_try = Ledger.begin_try
    monkeypatch.setattr(Ledger, "begin_try", lambda *a: None)
    monkeypatch.setattr(Ledger, "sending", lambda *a: None)
    submitted = Ledger.submitted

    def after(self: Ledger, shard: Shard, batch: Batch, until: datetime, reason: str, now: datetime) -> None:
        begin_try(self, shard, shard.account, 10, now)
        submitted(self, shard, batch, until, reason, now)

    monkeypatch.setattr(Ledger, "submitted", after)
    found = set(broken(tmp_path, lambda history: None, ["paid twice", "lost"]))
    assert found & {"paid twice", "lost"}
