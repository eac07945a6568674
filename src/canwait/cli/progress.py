"""Progress on stderr: a bar where a person watches, a line a minute where nobody does."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import ceil
from typing import TYPE_CHECKING

from .. import views
from ..errors import CanwaitError, NotFound
from ..types import Tier
from .face import Face, money, printable

if TYPE_CHECKING:
    from ..client import Client

_WINDOW_S = 60.0  # over which a rate is told


@contextmanager
def progress(face: Face, client: Client, job: str) -> Iterator[Callable[[], None]]:
    """A function to call often; it looks at the ledger at most twice a second. What newly holds a job is said at once."""
    if face.quiet:
        yield lambda: None
        return
    bar = _bar() if sys.stderr.isatty() and not face.as_json else None
    last_look = 0.0
    last_line = time.monotonic()
    held: tuple[str, ...] = ()
    pace = Pace()

    def watch() -> None:
        nonlocal last_look, last_line, held
        now = time.monotonic()
        if now - last_look < 0.5:
            return
        last_look = now
        try:
            figures = views.figures(client.ledger, job)
        except NotFound:
            return  # not opened yet
        said = pace.of(figures, now)
        if bar:
            bar.draw(figures, said)
        elif set(figures.blocked) - set(held):
            face.note("waiting: " + "; ".join(printable(b) for b in figures.blocked if b not in held))
        elif now - last_line >= 60 and not face.as_json:
            last_line = now
            face.note(line(figures, said))
        held = figures.blocked

    try:
        yield watch
    finally:
        if bar and last_look:
            with suppress(CanwaitError):  # what went wrong is told by the error itself
                bar.draw(views.figures(client.ledger, job))
            bar.close()


class Pace:
    """How fast rows are settled, over the last minute, and when the last one will be at that rate.

    Only where rows are asked one by one: of a batch nothing can be told before it ends.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, f: views.Figures, now: float) -> str:
        """ "  123 rows/s, ready in 4 min"; empty while nothing can be told. `now` in seconds of a monotonic clock."""
        if f.tier not in (Tier.OWN, Tier.STANDARD, Tier.FLEX):
            return ""
        self._seen.append((now, f.rows - f.pending))
        while self._seen[0][0] < now - _WINDOW_S:
            self._seen.popleft()
        (then, before), (_, done) = self._seen[0], self._seen[-1]
        if done <= before:
            return ""
        rate = (done - before) / (now - then)
        left = f", ready in {duration(f.pending / rate)}" if f.pending else ""
        return f"  {rate:,.0f} rows/s{left}" if rate >= 10 else f"  {rate:.1f} rows/s{left}"


def duration(seconds: float) -> str:
    """To the unit that matters: "40 s", "4 min", "2 h 10 min"."""
    whole = ceil(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = ceil(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def line(f: views.Figures, pace: str = "") -> str:
    done = f.rows - f.pending
    held = f"  waiting: {printable(f.blocked[0])}" if f.blocked else ""
    return (
        f"{done} / {f.rows} rows{pace}  {money(f.confirmed_micros)} confirmed  {money(f.reserved_micros)} reserved  "
        f"forecast {money(f.expected_micros)}{held}"
    )


class _Line:
    """One line written over itself, where rich is not installed."""

    def draw(self, figures: views.Figures, pace: str = "") -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line(figures, pace)[:width]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr)


class _Bar:
    """rich's bar, with what a job's line says behind it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._progress = Progress(BarColumn(20), text, console=Console(stderr=True), auto_refresh=False)
        self._task = self._progress.add_task("", total=None)

    def draw(self, figures: views.Figures, pace: str = "") -> None:
        self._progress.start()
        done = figures.rows - figures.pending
        self._progress.update(
            self._task, total=figures.rows, completed=done, description=line(figures, pace), refresh=True
        )

    def close(self) -> None:
        self._progress.stop()


def _bar() -> _Bar | _Line:
    """rich where it is installed (`canwait[terminal]`)."""
    try:
        return _Bar()
    except ImportError:
        return _Line()
