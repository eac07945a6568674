"""Progress on stderr: a bar where a person watches, a line a minute where nobody does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .. import views
from ..errors import NotFound
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
            bar(figures)
        elif set(figures.blocked) - set(held):
            face.note("waiting: " + "; ".join(printable(b) for b in figures.blocked if b not in held))
        elif now - last_line >= 60 and not face.as_json:
            last_line = now
            face.note(line(figures))
        held = figures.blocked

    try:
        yield watch
    finally:
        if bar:
            sys.stderr.write("\n")


def line(f: views.Figures) -> str:
    done = f.rows - f.pending
    held = f"  waiting: {printable(f.blocked[0])}" if f.blocked else ""
    return (
        f"{done} / {f.rows} rows  {money(f.confirmed_micros)} confirmed  {money(f.reserved_micros)} reserved  "
        f"forecast {money(f.expected_micros)}{held}"
    )


def _bar() -> Callable[[views.Figures], None]:
    """rich where it is installed (`canwait[terminal]`), else one line written over itself."""
    try:
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table
    except ImportError:
        return lambda f: print(f"\r\x1b[K{line(f)[:150]}", end="", file=sys.stderr, flush=True)
    console = Console(stderr=True)

    def draw(f: views.Figures) -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            ProgressBar(total=max(1, f.rows), completed=f.rows - f.pending, width=28), line(f).replace("[", "(")
        )
        sys.stderr.write("\r\x1b[K")
        console.print(grid, end="", overflow="ellipsis", no_wrap=True, markup=False)
        sys.stderr.write("\x1b[1A\r" if console.width < 20 else "\r")

    return draw
