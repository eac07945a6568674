"""Runs a function of a script in fresh processes and says what it cost: the part that every benchmark here shares.

CPU is user + system of the process and its children, from its start; peak RSS is of that process alone (VmHWM, where
Linux tells it: what getrusage tells there is inherited from whoever started it).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over some runs."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    returned: Any  # by the last run, through JSON


def measured(function: Callable[..., Any], *args: object, runs: int = 1) -> Measured:
    """`function(*args)` of a script beside this one, each time in a process of its own. Arguments pass through JSON."""
    script = Path(sys.modules[function.__module__].__file__ or "").stem
    found = [_run(script, function.__name__, args) for _ in range(runs)]
    medians = (median(run[name] for run in found) for name in ("cpu_s", "wall_s", "peak_mb"))
    return Measured(*medians, returned=found[-1]["returned"])


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text columns, the first to the left and all others to the right."""
    cells = [list(headings), *([c if isinstance(c, str) else _number(c) for c in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )


def ratio(script: str, what: str, value: float) -> None:
    """Print a ratio of this run, higher being better, in the form that regress.py reads."""
    print(f"ratio {script}: {what} = {value:.2f}")


def _number(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _run(script: str, function: str, args: Sequence[object]) -> dict[str, Any]:
    command = [sys.executable, __file__, script, function, json.dumps(args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        raise SystemExit(f"{script}.{function} failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class _Absent:
    """Finds some modules not to be installed. None in sys.modules would do for Python, but not for modules of Cython."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in ("numpy", "pandas"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _here(script: str, function: str, args: str) -> None:
    # As in an install of canwait alone: where numpy and pandas are there, pyarrow loads them, for 0.3 s and idle threads.
    sys.meta_path.insert(0, _Absent())
    start = time.monotonic()
    returned = getattr(import_module(script), function)(*json.loads(args))
    wall_s = time.monotonic() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(u.ru_utime + u.ru_stime for u in used)
    print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "peak_mb": _peak_mb(), "returned": returned}))


if __name__ == "__main__":
    _here(*sys.argv[1:])
