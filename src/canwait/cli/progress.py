"""Progress on stderr: a bar where a person watches, a line a minute where nobody does."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .. import views
from ..errors import CanwaitError, NotFound
from .face import Face, money, printable

if TYPE_CHECKING:
    from ..client import Client


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
        if bar:
            bar.draw(figures)
        elif set(figures.blocked) - set(held):
            face.note("waiting: " + "; ".join(printable(b) for b in figures.blocked if b not in held))
        elif now - last_line >= 60 and not face.as_json:
            last_line = now
            face.note(line(figures))
        held = figures.blocked

    try:
        yield watch
    finally:
        if bar and last_look:
            with suppress(CanwaitError):  # what went wrong is told by the error itself
                bar.draw(views.figures(client.ledger, job))
            bar.close()


def line(f: views.Figures) -> str:
    done = f.rows - f.pending
    held = f"  waiting: {printable(f.blocked[0])}" if f.blocked else ""
    return (
        f"{done} / {f.rows} rows  {money(f.confirmed_micros)} confirmed  {money(f.reserved_micros)} reserved  "
        f"forecast {money(f.expected_micros)}{held}"
    )


class _Line:
    """One line written over itself, where rich is not installed."""

    def draw(self, figures: views.Figures) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line(figures)[:width]}", end="", file=sys.stderr, flush=True)

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

    def draw(self, figures: views.Figures) -> None:
        self._progress.start()
        done = figures.rows - figures.pending
        self._progress.update(self._task, total=figures.rows, completed=done, description=line(figures), refresh=True)

    def close(self) -> None:
        self._progress.stop()


def _bar() -> _Bar | _Line:
    """rich where it is installed (`canwait[terminal]`)."""
    try:
        return _Bar()
    except ImportError:
        return _Line()
