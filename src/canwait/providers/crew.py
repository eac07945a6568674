"""Asks the rows of spooled batches, a bounded number at a time, the oldest batch first; every answer is written once.

One thread with an event loop. One task reads rows ahead of those that ask, commits answers in groups and closes what has
ended; the others ask one row after the other. The disk is written by a helper thread, so that no row waits for an fsync.
Memory holds the rows in flight, those about to be, and the answers of one commit.

Where rows are paid, which ones are about to be asked is on disk before they are. After a crash such a row without an
answer is never asked here again: it ends as lost, its money stays held, and whether to pay again is the engine's to decide.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar

from .pressure import Pressure
from .spool import Answers, Asked, Folder, Row, answer_line

T = TypeVar("T")

TRIES = 5  # of one row, in place
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
_TICK_S = 0.05
_AHEAD = 256  # rows read ahead of a free host's; of a paid one as many as are in flight

CANCELLED = {"code": "batch_cancelled", "message": "the batch was cancelled before this row was asked"}
LOST = {"code": "reply_lost", "message": "it may have been asked by a process that ended before its answer was kept"}


@dataclass(frozen=True, slots=True)
class Told:
    """What asking a row came to."""

    line: bytes  # what to keep of it
    again: bool = False  # certainly not carried out, or free: may be asked again, and `line` counts once it may not
    pressed: bool = False  # the host wants fewer rows
    wait_s: float | None = None  # the host said for how long nothing more is taken
    ends: bool = False  # no other row would be answered either: each ends like this one


Ask = Callable[[Row], Awaitable[Told]]
Open = Callable[[], AbstractAsyncContextManager[Ask]]


class Stopped(Exception):
    """Rows cannot be asked now, as `why` says; this one certainly was not."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


class Crew:
    """`open_ask` gives what asks a row, for the life of an event loop. What that raises stops every batch.

    A batch whose lock another process holds is left to it.
    """

    def __init__(self, open_ask: Open, pressure: Pressure, *, paid: bool, name: str) -> None:
        self._open_ask, self._pressure, self._paid, self._name = open_ask, pressure, paid, name
        self._mutex = threading.Lock()  # over what follows
        self._thread: threading.Thread | None = None
        self._queue: dict[str, Folder] = {}
        self._runs: dict[str, _Run] = {}  # changed by the thread alone
        self._stopped: dict[str, Exception] = {}
        # The thread's own:
        self._ready: deque[tuple[_Run, Row]] = deque()  # in the order they are asked
        self._n_asking = 0
        self._wake = asyncio.Event()

    def start(self, folder: Folder) -> None:
        """See that the rows without an answer are asked, unless that is being done."""
        with self._mutex:
            if self._has(folder):
                return
            self._queue[folder.token] = folder
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name=f"canwait-{self._name}", daemon=True)
                self._thread.start()

    def has(self, folder: Folder) -> bool:
        """Whether the batch is being asked here, or is about to be."""
        with self._mutex:
            return self._has(folder)

    def _has(self, folder: Folder) -> bool:
        return folder.token in self._runs or folder.token in self._queue

    @property
    def busy(self) -> bool:
        with self._mutex:
            return bool(self._runs)

    def done(self, folder: Folder) -> int:
        """How many rows have a durable answer."""
        with self._mutex:
            run = self._runs.get(folder.token)
        return len(run.answers.done if run else folder.answered()[0])

    def why_stopped(self, folder: Folder) -> Exception | None:
        """What stopped a batch before its end; told once."""
        with self._mutex:
            return self._stopped.pop(folder.token, None)

    # ------------------------------------------------------------------------------------------------ the one thread

    def _main(self) -> None:
        try:
            asyncio.run(self._work())
        except Exception as exc:  # a full disk, or a mistake of ours: whoever polls is told, nobody waits for ever
            why: Exception = exc
            while isinstance(why, ExceptionGroup):
                why = why.exceptions[0]
            with self._mutex:
                self._thread = None
                for run in self._runs.values():
                    with suppress(OSError):
                        run.close()
                self._stopped |= dict.fromkeys([*self._runs, *self._queue], why)
                self._runs.clear()
                self._queue.clear()

    async def _work(self) -> None:
        self._ready.clear()
        self._n_asking, self._wake = 0, asyncio.Event()
        async with self._open_ask() as ask, asyncio.TaskGroup() as tasks:
            while self._goes_on():
                self._wake.clear()
                await self._read_ahead()
                for _ in range(min(len(self._ready), self._pressure.room(self._n_asking, time.monotonic()))):
                    self._n_asking += 1
                    tasks.create_task(self._ask_on(ask))
                for run in list(self._runs.values()):
                    await self._see_to(run)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _TICK_S)

    def _goes_on(self) -> bool:
        with self._mutex:
            if self._runs or self._queue or self._n_asking:
                return True
            self._thread = None
            return False

    # ------------------------------------------------------------------------------------------------- reading ahead

    @property
    def _low(self) -> bool:
        """Whether more rows are to be read. Of paid ones no more than needed: after a crash each would count as lost."""
        return len(self._ready) <= (self._pressure.limit // 2 if self._paid else self._pressure.limit)

    async def _read_ahead(self) -> None:
        if not self._low:
            return
        most = self._pressure.limit if self._paid else self._pressure.limit + _AHEAD
        found = list(self._next(most - len(self._ready)))
        if self._paid:
            for run in dict.fromkeys(run for run, _ in found):
                await _on_disk(run.about_to, [row.line for whose, row in found if whose is run])
        self._ready.extend(found)

    def _next(self, most: int) -> Iterator[tuple[_Run, Row]]:
        """Rows of the oldest batches that have any."""
        for run in self._opened():
            while most and (row := run.next()):
                yield run, row
                most -= 1
            if not most:
                return

    def _opened(self) -> Iterator[_Run]:
        yield from list(self._runs.values())
        while self._queue:
            token, folder = next(iter(self._queue.items()))
            run = _Run.open(folder, paid=self._paid)
            with self._mutex:
                del self._queue[token]
                if run is not None:
                    self._runs[token] = run
            if run is not None:
                yield run

    # ------------------------------------------------------------------------------------------------------- asking

    async def _ask_on(self, ask: Ask) -> None:
        """Ask rows one after the other while there are any and the host takes so many."""
        try:
            while self._ready and self._pressure.room(self._n_asking - 1, time.monotonic()):
                run, row = self._ready.popleft()
                if self._low:
                    self._wake.set()
                if run.halted:
                    run.give_back(row)
                    continue
                await self._ask_one(ask, run, row)
        finally:
            self._n_asking -= 1
            self._wake.set()

    async def _ask_one(self, ask: Ask, run: _Run, row: Row) -> None:
        sent_at = time.monotonic()
        try:
            told = await ask(row)
        except Stopped as stopped:
            run.give_back(row)
            self._halt(stopped.why)
            return
        now = time.monotonic()
        wait_s = min(FIRST_WAIT_S * 2**row.tries, LONGEST_WAIT_S) if told.wait_s is None else told.wait_s
        if told.pressed:
            self._pressure.pressed(wait_s, sent_at, now)
        elif not told.again:
            self._pressure.taken()
            if told.wait_s:
                self._pressure.hold(told.wait_s, now)
        if told.again and run.halted:
            run.give_back(row)
        elif told.again and row.tries < TRIES - 1:
            run.later(row, wait_s, self._again)
        else:
            run.answered(row, told.line)
            if told.ends:
                run.end(told.line, row)
        if run.answers.due:
            self._wake.set()
        while run.answers.crowded and not run.closed:
            self._wake.set()
            await asyncio.sleep(_TICK_S / 10)

    def _again(self, run: _Run, row: Row) -> None:
        self._ready.append((run, replace(row, tries=row.tries + 1)))
        self._wake.set()

    def _halt(self, why: Exception) -> None:
        """Ask nothing more; what is in flight may still be answered."""
        with self._mutex:
            for run in self._runs.values():
                run.halt(why)
            self._stopped |= dict.fromkeys(self._queue, why)
            self._queue.clear()

    # ------------------------------------------------------------------------------------------------- what is due

    async def _see_to(self, run: _Run) -> None:
        if not run.halted and run.folder.cancelled:
            run.halt(None)
        if run.halted:
            for row in [row for whose, row in self._ready if whose is run]:
                run.give_back(row)
            self._ready = deque(item for item in self._ready if item[0] is not run)
        over = run.exhausted and not run.out
        if run.answers.due or over:
            await run.commit()
        if not over or run.out:
            return
        if run.folder.cancelled:
            await _on_disk(run.finish, lambda row: answer_line(row, error=CANCELLED))
        elif run.ended_by:
            await _on_disk(run.finish, run.ended_by)
        with self._mutex:
            run.close()
            del self._runs[run.folder.token]
            if run.why and len(run.answers.done) < run.folder.n_rows:
                self._stopped[run.folder.token] = run.why


class _Run:
    """A batch while this process asks it."""

    def __init__(self, folder: Folder, lock: BinaryIO, *, paid: bool) -> None:
        self.folder = folder
        self.why: Exception | None = None
        self.ended_by: Callable[[Row], bytes] | None = None
        self.halted = self.exhausted = self.closed = False
        self.out = 0  # rows handed out and not answered or given back
        self._lock = lock
        self._later: dict[int, tuple[asyncio.TimerHandle, Row]] = {}
        self._untouched: list[int] = []  # of a paid batch: announced on disk, and certainly not carried out
        with ExitStack() as stack:
            self.answers = Answers(folder)
            stack.callback(self.answers.close)
            self._asked = Asked(folder) if paid else None
            if self._asked is not None and (lost := self._asked.lines - self.answers.done):
                for row in folder.rows(frozenset(range(folder.n_rows)) - lost):
                    self.answers.add(row.line, answer_line(row, error=LOST))
                self.answers.commit()
            self._rows: Iterator[Row] = folder.rows(frozenset(self.answers.done))
            stack.pop_all()

    @classmethod
    def open(cls, folder: Folder, *, paid: bool) -> _Run | None:
        """None: another process is asking."""
        lock = folder.lock()
        if lock is None:
            return None
        try:
            return cls(folder, lock, paid=paid)
        except BaseException:
            lock.close()
            raise

    def next(self) -> Row | None:
        row = None if self.exhausted else next(self._rows, None)
        self.exhausted = row is None
        self.out += row is not None
        return row

    def about_to(self, lines: list[int]) -> None:
        assert self._asked is not None
        self._asked.about_to(lines)

    def answered(self, row: Row, line: bytes) -> None:
        self.out -= 1
        self.answers.add(row.line, line)

    def give_back(self, row: Row) -> None:
        self.out -= 1
        self._untouched.append(row.line)

    def later(self, row: Row, wait_s: float, again: Callable[[_Run, Row], None]) -> None:
        def due() -> None:
            del self._later[row.line]
            again(self, row)

        self._later[row.line] = (asyncio.get_running_loop().call_later(wait_s, due), row)

    def halt(self, why: Exception | None) -> None:
        self.why = self.why or why
        self.halted = self.exhausted = True
        for handle, row in self._later.values():
            handle.cancel()
            self.give_back(row)
        self._later.clear()

    def end(self, line: bytes, like: Row) -> None:
        """Nothing more is asked, and every row that was not ends with this line, but for its name."""
        rest = line.removeprefix(b'{"custom_id":"%s"' % like.custom_id.encode())
        self.ended_by = lambda row: b'{"custom_id":"%s"%s' % (row.custom_id.encode(), rest)
        self.halt(None)

    async def commit(self) -> None:
        if taken := self.answers.take():
            await _on_disk(self.answers.write, taken)
            self.answers.wrote(taken)

    def finish(self, line: Callable[[Row], bytes]) -> None:
        for row in self.folder.rows(frozenset(self.answers.done)):
            self.answers.add(row.line, line(row))
            if self.answers.due:
                self.answers.commit()
        self.answers.commit()

    def close(self) -> None:
        """Once: also where it could not be closed as it should be."""
        if self.closed:
            return
        self.closed = True
        with ExitStack() as stack:
            stack.callback(self._lock.close)
            stack.callback(self.answers.close)
            if self._asked is not None:
                stack.callback(self._asked.close)
                self._asked.were_not(sorted(set(self._untouched) - self.answers.done))


def cancel_unasked(folder: Folder, *, paid: bool) -> None:
    """End a cancelled batch that nobody is asking; one that is being asked is ended by whoever asks it."""
    run = _Run.open(folder, paid=paid)
    if run is not None:
        try:
            run.finish(lambda row: answer_line(row, error=CANCELLED))
        finally:
            run.close()


async def _on_disk(call: Callable[[T], None], what: T) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call, what)
