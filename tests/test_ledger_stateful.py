"""Random sequences of ledger calls, by callers that hold their shards and by callers that lost them long ago."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from canwait.clock import to_us
from canwait.db import Row, connect
from canwait.errors import BudgetExceeded, BudgetFrozen, Crowded, InvalidMove, LeaseLost, NotFound
from canwait.ledger import Ledger, NewShard, Settlement
from canwait.lifecycle import allowed
from canwait.types import BatchStatus, Event, MarkClass, Outcome, Shard, ShardState
from opened import LIMITS, after, new_shard, plan_of, running

S = ShardState
JOBS = ("j1", "j2")
BUDGETS = ("job:j1", "job:j2", "project:team", "month:2026-11", "month")
ENDS = {S.REFUSED, S.SETTLED, S.CANCELLED}
LATE = (
    "begin_submit", "begin_try", "sending", "submitted", "not_arrived", "give_back", "wait", "ended", "fetched", "settle",
    "settle twice", "refused", "dropped", "duplicate", "resolve_absent", "resolve_billed", "add_shards",
)  # fmt: skip
PERSON = ("set_budget", "book", "thaw", "pause", "resume", "cancel")

amounts = st.integers(0, 250)  # micros; a shard's worst case is 100
four_outcomes = st.lists(
    st.sampled_from([Outcome.OK, Outcome.FAILED, Outcome.EXPIRED, Outcome.MISSING]), min_size=4, max_size=4
)


class LedgerMachine(RuleBasedStateMachine):
    """Two jobs of one project; a handle is a shard as some caller claimed it, perhaps long ago."""

    url = "sqlite://"
    handles: Bundle[Shard] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(connect(self.url))
        self.seconds = 0
        self.n = 0  # makes names
        self.answered: set[tuple[str, int]] = set()
        self.ended: dict[str, ShardState] = {}
        self.excused: set[str] = set()  # budgets a person has taken past their limit, and not yet back under it
        self.entries: list[Row] = []
        self.events: list[Event] = []

    def teardown(self) -> None:
        self.ledger.close()

    # -------------------------------------------------------------------------------------------------- what happens

    @initialize(limits=st.tuples(st.none() | st.integers(100, 900), st.none() | st.integers(100, 900)))
    def begin(self, limits: tuple[int | None, int | None]) -> None:
        for job, limit in zip(JOBS, limits, strict=True):
            self.open(job, [4, 3, 1], limit)

    @rule(
        job=st.sampled_from(JOBS), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), limit=st.none() | amounts
    )
    def open(self, job: str, sizes: list[int], limit: int | None) -> None:
        self.n += 1
        revision = next((row["revision"] for row in self.ledger.query("job", name=job)), 0)
        shards = [new_shard(f"{job}-{self.n}-{i}", n_lines=size) for i, size in enumerate(sizes)]
        plan = plan_of(*shards, job=job, digest=str(self.n), micros=limit, revision=revision)
        self.excused.add(f"job:{job}")
        assert self.ledger.open_plan(plan, self.now)

    @rule(seconds=st.integers(0, 100))
    def time_passes(self, seconds: int) -> None:
        self.seconds += seconds

    @rule(what=st.sampled_from(PERSON), job=st.sampled_from(JOBS), budget=st.sampled_from(BUDGETS), limit=st.none() | amounts,
          tokens=st.none() | st.integers(0, 300))  # fmt: skip
    def person(self, what: str, job: str, budget: str, limit: int | None, tokens: int | None) -> None:
        match what:
            case "set_budget":
                self.excused |= {budget, "month:2026-11"} if budget == "month" else {budget}
                self.ledger.set_budget(budget, micros=limit, tokens=tokens, now=self.now)
            case "book":
                self.excused |= set(BUDGETS)
                self.ledger.book(job, limit or 1, "a store", self.now)
            case "thaw":
                with suppress(NotFound):
                    self.ledger.thaw(budget, self.now)
                    self.excused.add(budget)
            case "pause":
                self.ledger.pause_job(job, "a reason", self.now)
            case "resume":
                self.ledger.resume_job(job, self.now)
            case "cancel":
                self.ledger.cancel_job(job, self.now)

    @rule(
        target=handles,
        job=st.none() | st.sampled_from(JOBS),
        steps=st.integers(0, 6),
        bill=st.integers(0, 105),  # now and then above what was held
        outcomes=four_outcomes,
    )
    def walk(self, job: str | None, steps: int, bill: int, outcomes: list[Outcome]) -> Any:
        """A caller takes shards forward as the engine does, and claims one more; any of its handles may be used late."""
        left = []
        for step in range(steps + 1):
            shard = self.ledger.claim("walker", self.now, 10, job)
            if shard is None:
                break
            left.append(shard)
            if step == steps:
                break
            match shard.state:
                case S.PLANNED:
                    self.write("begin_submit", shard, bill, outcomes)
                case S.SUBMITTING:
                    self.write("begin_try", shard, bill, outcomes)
                    self.write("submitted", shard, bill, outcomes)
                case S.SUBMITTED:
                    self.write("ended", shard, bill, outcomes)
                case S.ENDED:
                    self.write("settle", shard, bill, outcomes)
        return multiple(*left)

    @rule(what=st.sampled_from(LATE), shard=handles, amount=amounts, outcomes=four_outcomes, yes=st.booleans())
    def write(self, what: str, shard: Shard, amount: int, outcomes: list[Outcome], yes: bool = True) -> None:
        """Some caller writes what it has to say of a shard, whether it still holds it or not."""
        ledger, now = self.ledger, self.now
        match what:
            case "begin_submit":
                self._reserve(shard, MarkClass.FINDABLE if yes else MarkClass.UNMARKED)
            case "begin_try" if shard.state is S.SUBMITTING:
                self._write(shard, None, lambda: ledger.begin_try(shard, "acct", 10, now), lease=True)
            case "sending" if shard.state is S.SUBMITTING:
                self._write(shard, None, lambda: ledger.sending(shard, 10, now), lease=True)
            case "submitted":
                self.n += 1
                self._write(shard, S.SUBMITTED, lambda: ledger.submitted(shard, running(f"b{self.n}"), now, "ok", now))
            case "not_arrived" if shard.state is S.SUBMITTING:
                self._write(shard, None, lambda: ledger.not_arrived(shard, now, "refused", now))
            case "give_back":
                self._write(
                    shard, S.PLANNED, lambda: ledger.give_back(shard, now, "credit", "why" if yes else None, now)
                )
            case "wait":
                self._write(shard, None, lambda: ledger.wait(shard, after(self.seconds + amount), "a limit", now))
            case "ended":
                batch = running(shard.batch_id or "b", BatchStatus.COMPLETED)
                self._write(shard, S.ENDED, lambda: ledger.ended(shard, batch, now))
            case "fetched" if shard.state is S.ENDED:
                self._write(shard, None, lambda: ledger.fetched(shard, ["raw"], now))
            case "settle":
                self._settle(shard, self._settlement(shard, outcomes, amount, again=yes))
            case "settle twice":
                self._settle(shard, self._settlement(shard, outcomes, amount, again=False))
                before = self._books()
                with pytest.raises((LeaseLost, InvalidMove)):
                    ledger.settle(shard, self._settlement(shard, outcomes, amount + 1, again=False), now)
                assert self._books() == before
            case "refused":
                self._settle(shard, self._settlement(shard, [Outcome.FAILED] * 4, 0, again=False), S.REFUSED)
            case "dropped" if shard.state is not S.SUBMITTING:  # what may have been sent is refused, never dropped
                self._settle(shard, self._settlement(shard, [Outcome.CANCELLED] * 4, 0, again=False), S.CANCELLED)
            case "duplicate" if shard.role == "work" and ledger.shard(shard.id).batch_id:
                self.n += 1
                ledger.duplicate(shard, running(f"b{self.n}"), now)
            case "resolve_absent":
                with suppress(NotFound, LeaseLost):
                    ledger.resolve_absent(shard.id, now)
            case "resolve_billed":
                with suppress(NotFound):
                    ledger.resolve_billed(shard.id, amount, now)
            case "add_shards":
                self._again(shard, [line for line in range(4) if amount >> line & 1])

    # ---------------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def the_books_balance(self) -> None:
        assert self.ledger.check() == []

    @invariant()
    def no_limit_is_passed(self) -> None:
        """Unless a person lowered it or booked past it, or the budget is frozen and says so."""
        for name, row in self._books().items():
            if not _over(row):
                self.excused.discard(name)
            assert not _over(row) or name in self.excused or row["frozen"], row

    @invariant()
    def an_answer_stays(self) -> None:
        for shard, line in self.answered:
            assert self._vector(shard)[line] == Outcome.OK

    @invariant()
    def an_end_stays(self) -> None:
        """No shard leaves a terminal state, and only settled ones have cost or still hold anything."""
        for job in JOBS:
            for row in self.ledger.query("shards", job=job):
                state = S(row["state"])
                assert self.ended.get(row["id"], state) is state
                if state in ENDS:
                    self.ended[row["id"]] = state
                assert state is S.SETTLED or row["confirmed_micros"] == 0
                assert row["held_micros"] == 0 or state not in (S.PLANNED, S.REFUSED, S.CANCELLED)

    @invariant()
    def what_is_written_stays(self) -> None:
        """Entries and events are only ever appended; sequence numbers grow, ids are stable and unique."""
        entries = [entry for budget in self._books() for entry in self.ledger.query("entries", budget=budget)]
        entries.sort(key=lambda entry: int(entry["seq"]))
        events = self.ledger.events(count=100_000)
        assert entries[: len(self.entries)] == self.entries
        assert events[: len(self.events)] == self.events
        assert all(one.seq < two.seq for one, two in pairwise(events))
        assert len({event.id for event in events}) == len(events)
        self.entries, self.events = entries, events

    # --------------------------------------------------------------------------------------------------------- the parts

    @property
    def now(self) -> datetime:
        return after(self.seconds)

    def _reserve(self, shard: Shard, mark: MarkClass) -> None:
        """Granted within every limit, or refused without a trace."""
        before = self._books()
        try:
            done = self._write(shard, S.SUBMITTING, lambda: self.ledger.begin_submit(shard, LIMITS, mark, self.now))
        except (BudgetExceeded, BudgetFrozen, Crowded):
            assert self._books() == before
            return
        if done:
            for budget in self._chain(shard):
                row = self._books()[budget]
                assert not _over(row)
                assert row["frozen"] is None

    def _write(self, shard: Shard, new: ShardState | None, act: Callable[[], object], *, lease: bool = False) -> bool:
        """It succeeds for the holder of the fence; for anybody else it is refused without a trace. Whether it did."""
        row = self.ledger.shard_row(shard.id)
        holds = row["fence"] == shard.fence and row["state"] == shard.state.value
        holds = holds and (not lease or row["lease_us"] > to_us(self.now))
        before = self._books(), self.ledger.events(count=100_000)
        if holds and (new is None or allowed(shard.state, new)):
            act()
            assert new is None or self.ledger.shard(shard.id).state is new
            return True
        with pytest.raises(LeaseLost if new is None or allowed(shard.state, new) else InvalidMove):
            act()
        assert (self._books(), self.ledger.events(count=100_000)) == before
        assert self.ledger.shard_row(shard.id) == row
        return False

    def _settle(self, shard: Shard, what: Settlement, new: ShardState = S.SETTLED) -> None:
        held = self.ledger.shard_row(shard.id)["held_micros"]
        act = {S.SETTLED: self.ledger.settle, S.REFUSED: self.ledger.refused, S.CANCELLED: self.ledger.dropped}[new]
        if self._write(shard, new, lambda: act(shard, what, self.now)):
            self.answered |= {(shard.root, line) for line, outcome in what.outcomes.items() if outcome is Outcome.OK}
            if what.confirmed_micros > held:
                assert all(self._books()[budget]["frozen"] for budget in self._chain(shard))

    def _settlement(self, shard: Shard, outcomes: list[Outcome], bill: int, *, again: bool) -> Settlement:
        """`again`: rows without an answer are sent again; a bill may be above what is held, part of it unknown."""
        vector = self._vector(shard.root)
        lines = [line for line, outcome in enumerate(vector) if outcome == Outcome.PENDING]
        ends = dict(zip(lines[: shard.n_lines], outcomes, strict=False)) if shard.role == "work" else {}
        failed = [line for line, outcome in ends.items() if outcome is not Outcome.OK]
        retries: tuple[NewShard, ...] = ()
        if again and failed:
            self.n += 1
            retry = replace(new_shard(f"{shard.root}-{self.n}", n_lines=len(failed), root=shard.root), attempt=2)
            retries = (retry,)
            ends |= dict.fromkeys(failed, Outcome.PENDING)
        unknown = bill // 3 if again else 0
        return Settlement(
            ends, "results", bill, 0, unknown, bill // 2, 0, unknown, retries, None, "batch completed", {}
        )

    def _again(self, shard: Shard, lines: list[int]) -> None:
        """A person asks for rows again; an answered or pending one among them keeps the whole shard from being opened."""
        before = self._vector(shard.root)
        wanted = [line for line in lines if line < len(before)]
        if wanted:
            self.n += 1
            new = replace(new_shard(f"{shard.root}-{self.n}", n_lines=len(wanted), root=shard.root), attempt=2)
            self.ledger.add_shards(shard.job, [(new, wanted)], "a person asked", self.now)
            may = all(before[line] not in (Outcome.OK, Outcome.PENDING) for line in wanted)
            assert bool(self.ledger.query("shard", id=new.id)) is may

    def _books(self) -> dict[str, Row]:
        return {row["id"]: row for row in self.ledger.query("budgets")}

    def _chain(self, shard: Shard) -> tuple[str, str, str]:
        return f"job:{shard.job}", "project:team", "month:2026-11"

    def _vector(self, root: str) -> bytes:
        return zlib.decompress(self.ledger.shard_row(root)["vector"])


def _over(row: Row) -> bool:
    return any(
        row[f"limit_{unit}"] is not None and row[f"spent_{unit}"] + row[f"held_{unit}"] > row[f"limit_{unit}"]
        for unit in ("micros", "tokens")
    )


def test_any_sequence_of_calls_keeps_the_promises_on_sqlite() -> None:
    """Whatever callers, late callers and people do in whatever order, money and answers stay what they must be."""
    some = settings(max_examples=80, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(LedgerMachine, settings=some)


@pytest.mark.slow
def test_any_sequence_of_calls_keeps_the_promises_on_postgres(postgres_url: str) -> None:
    """The same on PostgreSQL."""

    class OnPostgres(LedgerMachine):
        url = postgres_url

        def __init__(self) -> None:
            with psycopg.connect(postgres_url, autocommit=True) as admin:
                admin.execute("DROP SCHEMA public CASCADE")
                admin.execute("CREATE SCHEMA public")
            super().__init__()

    some = settings(max_examples=12, stateful_step_count=30, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(OnPostgres, settings=some)
