"""Where things are and how fast they go, read from the environment once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import Pace
from .errors import Problem, SpecError


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one ledger, as the environment says."""

    db_url: str
    home: Path  # blobs and spools of this ledger
    pace: Pace
    settle_s: float | None
    ceiling_micros: int | None  # CANWAIT_BUDGET_USD: no job of this shell may go past it
    env: Mapping[str, str]
    simulated: bool = False

    @property
    def scratch(self) -> Path:
        """Where copies of objects lie while they are read or made; it need not be there yet."""
        return self.home / "scratch"


def settings(env: Mapping[str, str] = os.environ) -> Settings:
    """Settings of an environment. Raises SpecError naming every variable that cannot be understood."""
    from .fields import parse_usd

    problems: list[Problem] = []

    def read(name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(env[name]) if env.get(name) else None
        except ValueError as error:
            problems.append(Problem("environment", None, None, name, str(error)))
            return None

    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < 1e7:
            raise ValueError(f"{text!r} is not a time; expected seconds above 0, such as 0.5")
        return value

    home = Path(env.get("CANWAIT_HOME") or ".canwait")
    url = env.get("CANWAIT_DB") or f"sqlite:///{home / 'ledger.db'}"
    if url.startswith("sqlite:") and url.partition("://")[2].strip("/") in ("", ":memory:"):
        what = f"{url} names no file, and a ledger that is forgotten pays twice; expected sqlite:///FILE"
        problems.append(Problem("environment", None, None, "CANWAIT_DB", what))
    poll_s, settle_s = read("CANWAIT_POLL_S", seconds), read("CANWAIT_SETTLE_S", seconds)
    ceiling = read("CANWAIT_BUDGET_USD", parse_usd)
    if problems:
        raise SpecError(problems, hint="docs/cli.md lists the variables canwait reads")
    if url.startswith("sqlite:///") and not env.get("CANWAIT_HOME"):
        home = Path(url.removeprefix("sqlite:///")).parent
    return Settings(url, home, Pace(poll_s=poll_s), settle_s, ceiling, env)
