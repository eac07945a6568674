"""Asks the rows of spooled batches, a bounded number at a time, the oldest batch first; every answer is written once.

One thread hands out rows and writes answers; each row in flight has a thread of its own (0.1 ms to start, against a
request of 10 ms and more). All are daemons: a process that ends drops what is in flight, and the folder says the rest.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import BinaryIO

from .spool import COMMIT_S, Answers, Folder, Row, answer_line

_CANCELLED = {"code": "batch_cancelled", "message": "the batch was cancelled before this row was asked"}

Ask = Callable[[Row, threading.Event], bytes | None]


class Crew:
    """`ask` returns a row's answer line, or None if it was stopped first; what it raises stops every batch.

    A batch whose lock another process holds is left to it.
    """

    def __init__(self, ask: Ask, *, concurrency: int, name: str) -> None:
        self._ask, self._concurrency, self._name = ask, concurrency, name
        self._told: SimpleQueue[tuple[_Run, Row, bytes | Exception | None]] = SimpleQueue()
        self._mutex = threading.Lock()  # over what follows
        self._thread: threading.Thread | None = None
        self._queue: deque[Folder] = deque()
        self._runs: dict[str, _Run] = {}  # changed by the thread alone
        self._stopped: dict[str, Exception] = {}

    def start(self, folder: Folder) -> None:
        """See that the rows without an answer are asked, unless that is being done."""
        with self._mutex:
            if self._has(folder):
                return
            self._queue.append(folder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"canwait-{self._name}", daemon=True)
                self._thread.start()

    def has(self, folder: Folder) -> bool:
        """Whether the batch is being asked here, or is about to be."""
        with self._mutex:
            return self._has(folder)

    def _has(self, folder: Folder) -> bool:
        return folder.token in self._runs or any(folder.token == queued.token for queued in self._queue)

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

    def _work(self) -> None:
        try:
            while self._goes_on():
                self._hand_out()
                self._take_in()
                for run in list(self._runs.values()):
                    self._see_to(run)
        except Exception as exc:  # a full disk, or a mistake of ours: whoever polls is told, nobody waits for ever
            with self._mutex:
                self._thread = None
                for run in self._runs.values():
                    run.halt(exc)
                    run.close()
                self._stopped |= dict.fromkeys([*self._runs, *(folder.token for folder in self._queue)], exc)
                self._runs.clear()
                self._queue.clear()

    def _goes_on(self) -> bool:
        with self._mutex:
            if self._runs or self._queue:
                return True
            self._thread = None
            return False

    def _hand_out(self) -> None:
        while sum(run.in_flight for run in self._runs.values()) < self._concurrency and (found := self._next()):
            run, row = found
            run.in_flight += 1
            threading.Thread(target=self._ask_one, args=(run, row), daemon=True).start()

    def _next(self) -> tuple[_Run, Row] | None:
        """The next row of the oldest batch that has one."""
        for run in self._runs.values():
            if row := run.next():
                return run, row
        while self._queue:
            opened = _Run.open(self._queue[0])
            with self._mutex:
                folder = self._queue.popleft()
                if opened is not None:
                    self._runs[folder.token] = opened
            if opened is not None and (row := opened.next()):
                return opened, row
        return None

    def _ask_one(self, run: _Run, row: Row) -> None:
        try:
            told: bytes | Exception | None = self._ask(row, run.stop)
        except Exception as exc:
            told = exc
        self._told.put((run, row, told))

    def _take_in(self) -> None:
        if not any(run.in_flight for run in self._runs.values()):
            return
        try:
            run, row, told = self._told.get(timeout=COMMIT_S)
        except Empty:
            return
        run.in_flight -= 1
        if run is not self._runs.get(run.folder.token):
            return  # it was given up while this row was in flight
        if isinstance(told, bytes):
            run.answers.add(row.line, told)
        elif told is not None:
            self._halt(told)

    def _halt(self, why: Exception) -> None:
        """Ask nothing more; what is in flight may still be answered."""
        with self._mutex:
            for run in self._runs.values():
                run.halt(why)
            self._stopped |= dict.fromkeys((folder.token for folder in self._queue), why)
            self._queue.clear()

    def _see_to(self, run: _Run) -> None:
        if run.folder.cancelled:
            run.halt(None)
        if run.answers.due:
            run.answers.commit()
        if run.in_flight or not run.exhausted:
            return
        run.answers.commit()
        if run.folder.cancelled:
            run.cancel_the_rest()
        run.close()
        with self._mutex:
            del self._runs[run.folder.token]
            if run.why and len(run.answers.done) < run.folder.n_rows:
                self._stopped[run.folder.token] = run.why


class _Run:
    """A batch while this process asks it."""

    def __init__(self, folder: Folder, lock: BinaryIO) -> None:
        self.folder = folder
        self.answers = Answers(folder)
        self.stop = threading.Event()  # wakes the rows that wait to try again
        self.why: Exception | None = None
        self.in_flight = 0
        self.exhausted = False
        self._lock = lock
        self._rows: Iterator[Row] = folder.rows(frozenset(self.answers.done))

    @classmethod
    def open(cls, folder: Folder) -> _Run | None:
        """None: another process is asking."""
        lock = folder.lock()
        if lock is None:
            return None
        try:
            return cls(folder, lock)
        except BaseException:
            lock.close()
            raise

    def next(self) -> Row | None:
        row = None if self.exhausted else next(self._rows, None)
        self.exhausted = row is None
        return row

    def halt(self, why: Exception | None) -> None:
        self.why = self.why or why
        self.exhausted = True
        self.stop.set()

    def cancel_the_rest(self) -> None:
        for row in self.folder.rows(self.answers.done):
            self.answers.add(row.line, answer_line(row, error=_CANCELLED))
        self.answers.commit()

    def close(self) -> None:
        self.answers.close()
        self._lock.close()


def cancel_unasked(folder: Folder) -> None:
    """End a cancelled batch that nobody is asking; one that is being asked is ended by whoever asks it."""
    run = _Run.open(folder)
    if run is not None:
        try:
            run.cancel_the_rest()
        finally:
            run.close()
