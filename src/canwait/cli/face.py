"""How the command line talks: data on stdout, everything else on stderr, no prompt where nobody can answer."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import click

from ..errors import CanwaitError, HumanNeeded, Problem, SpecError
from ..price import format_usd

F = TypeVar("F", bound=Callable[..., Any])


class Face:
    """One invocation's way of talking."""

    current: ClassVar[Face | None] = None

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, no_input: bool = False, yes: bool = False
    ) -> None:
        self.as_json, self.quiet, self.yes = as_json, quiet, yes
        self.no_input = no_input or bool(os.environ.get("CANWAIT_NO_INPUT")) or not sys.stdin.isatty()
        self.goes_on: str | None = None  # what Ctrl-C says about the job that is running
        self.simulated = False
        Face.current = self

    def show(self, schema: str, value: Mapping[str, Any], text: str) -> None:
        """The answer: one versioned object with --json, else the text."""
        if self.as_json:
            click.echo(json.dumps({"schema": schema, "simulated": self.simulated, **value}))
        else:
            click.echo(f"SIMULATED\n{text}" if self.simulated else text)

    def note(self, text: str) -> None:
        if not self.quiet:
            click.echo(f"SIMULATED  {text}" if self.simulated else text, err=True)

    def ask(self, question: str, flag: str) -> bool:
        """A yes or no from a person. Raises HumanNeeded, naming the flag, where there is none."""
        if self.yes:
            return True
        if self.no_input:
            raise HumanNeeded(f"{question} Nobody can answer here.", hint=f"say {flag} to approve it; nothing was sent")
        return click.confirm(question, default=False, err=True)

    @classmethod
    def interrupted(cls) -> None:
        face = cls.current
        click.echo(f"\n{face.goes_on}" if face and face.goes_on else "\ninterrupted", err=True)


def options(*, spends: bool = False) -> Callable[[F], F]:
    """The flags every verb has; the verb gets them as a `Face`."""

    def wrap(function: F) -> F:
        @click.option("--json", "as_json", is_flag=True, help="One versioned object on stdout.")
        @click.option("-q", "--quiet", is_flag=True, help="No progress and no hints.")
        @click.option("--no-input", is_flag=True, help="Never ask; fail with exit code 3 instead.")
        @functools.wraps(function)
        def called(*args: Any, as_json: bool, quiet: bool, no_input: bool, **kwargs: Any) -> Any:
            yes = kwargs.pop("yes", False) if spends else False
            return function(Face(as_json=as_json, quiet=quiet, no_input=no_input, yes=yes), *args, **kwargs)

        if spends:
            called = click.option("-y", "--yes", is_flag=True, help="Approve the plan without asking.")(called)
        return called  # type: ignore[return-value]

    return wrap


class Usage(CanwaitError):
    """{message}"""

    exit_code, code = 2, "usage"


def report(error: CanwaitError, *, as_json: bool = False) -> None:
    """An error on stderr: words and the way out, or RFC 9457 problem details with --json."""
    face = Face.current or Face()
    if as_json or face.as_json:
        click.echo(json.dumps(error.problem), err=True)
        return
    click.echo(f"{'SIMULATED  ' if face.simulated else ''}error: {_legible(str(error))}", err=True)
    if error.own_hint and not face.quiet:
        click.echo(f"hint: {_legible(error.own_hint)}", err=True)


def _legible(text: str) -> str:
    """Its lines, of what a terminal may show: words of an error may be a provider's or a row's."""
    return "\n".join(printable(line.replace("\t", " ")) for line in text.split("\n"))


def usd_option(text: str, flag: str) -> int:
    """The micros an option states in USD. Raises SpecError naming the flag."""
    from ..fields import parse_usd

    try:
        return parse_usd(text)
    except ValueError as error:
        raise SpecError([Problem(flag, None, None, None, str(error))]) from error


def percent_option(text: str, flag: str) -> Decimal:
    """The share an option states as a percentage. Raises SpecError naming the flag."""
    from ..fields import parse_percent

    try:
        return parse_percent(text)
    except ValueError as error:
        raise SpecError([Problem(flag, None, None, None, str(error))]) from error


def money(micros: int) -> str:
    return f"${format_usd(micros)}"


def table(rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as their widest cell; columns in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = (
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str | None) -> str:
    """Text from outside as a terminal may show it: no control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text or "")
