"""Go on with a killed job: from process start to the first request the provider sees.

    python benchmarks/resume.py [--rows 1000000] [--shards 20] [--runs 5]

A job is run in a process of its own, which dies by SIGKILL outside a submit: right after a batch was accepted (the next
effect is an upload), or after a few were settled (the next effect is a poll). Then `canwait run` is started on the ledger
as the kill left it, until the simulator sees its first request. Wall is from the start of the process; CPU is user + system
of that process. The baseline takes away what is kept beside the plan, so that the rows are read and planned again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measure import ratio

KILLS = {"the 8th batch is accepted": "after submitted #8", "the 3rd shard is settled": "after settle #3"}
BEFORES = {
    "nothing changed": lambda home: None,
    "rows.csv touched": lambda home: (home / "rows.csv").touch(),
    "planned again (baseline)": lambda home: forget(home),
}
DAY_S = 86_400


class Took(NamedTuple):
    wall_s: float
    cpu_s: float
    rss_mb: float
    effect: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    parser.add_argument("--die", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.die:
        run_and_die(args.die)
        return
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as name:
        compare(Path(name), args.rows, args.shards, args.runs)


def compare(folder: Path, n_rows: int, n_shards: int, n_runs: int) -> None:
    print(f"{n_rows:,} rows in {n_shards} shards, medians of {n_runs} runs")
    print(f"{'killed when':27}{'then':26}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}  first effect")
    for killed, point in KILLS.items():
        home = folder / point.replace(" ", "-")
        write(home, n_rows, -(-n_rows // n_shards))
        with provider(folder / f"{home.name}-provider") as (url, seen):
            kill(home, url, point)
            kept = snapshot(home)
            medians: dict[str, float] = {}
            for then, change in BEFORES.items():
                runs = []
                for _ in range(n_runs):
                    restore(home, kept)
                    change(home)
                    runs.append(go_on(home, url, seen))
                wall, cpu, rss = (median(r[i] for r in runs) for i in range(3))
                medians[then] = wall
                print(f"{killed:27}{then:26}{wall:>8.2f}{cpu:>8.2f}{rss:>9.0f}  {runs[0].effect}")
            first, *_, last = medians.values()
            ratio("resume", f"planned again / nothing changed, {killed}", last / first)


def write(home: Path, n_rows: int, max_rows: int) -> None:
    """A job file and its rows, of which some repeat others."""
    home.mkdir()
    rng = random.Random(0)
    with (home / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows([f"{n:07}", f"message {n if n % 7 else rng.randrange(n + 1)}"] for n in range(n_rows))
    job = {
        "version": 1, "name": "big", "source": {"uri": "rows.csv", "key": "id"}, "model": "openai/gpt-6-luna",
        "prompt": "Classify: {{ text }}", "max_output_tokens": 16, "urgency": "batch", "budget": {"usd": 1_000_000},
        "shard": {"max_rows": max_rows}, "load": "labels.parquet",
    }  # fmt: skip
    (home / "job.yaml").write_text(json.dumps(job), "utf-8")
    os.utime(home / "rows.csv")
    time.sleep(3)  # a file changed a moment ago is not trusted


@contextmanager
def provider(folder: Path) -> Iterator[tuple[str, list[tuple[float, str]]]]:
    """The simulator's URL, and when it saw which request."""
    from canwait.simulator import ScaledClock, Scenario, Simulator, core

    seen: list[tuple[float, str]] = []
    serving = core.serving

    def noting(api: Any, port: int) -> Any:
        def app(request: Any) -> Any:
            seen.append((time.monotonic(), f"{request.method} {request.path.partition('/batch_')[0]}"))
            arrived.set()
            return api(request)

        return serving(app, port)

    core.serving = noting
    simulator = Simulator(seed=0, clock=ScaledClock(4_000), scenario=Scenario(), folder=folder)
    with simulator.serve() as url:
        yield url, seen
    simulator.close()
    core.serving = serving


arrived = threading.Event()


def started(home: Path, url: str, command: list[str]) -> subprocess.Popen[bytes]:
    env = {
        **os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "key", "CANWAIT_POLL_S": "0.2",
        "CANWAIT_HOME": str(home / ".canwait"),
    }  # fmt: skip
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, *command], cwd=home, env=env, stdin=quiet, stdout=quiet)


def kill(home: Path, url: str, point: str) -> None:
    """Run the job until it dies at a point."""
    if started(home, url, [__file__, "--die", point]).wait() != -signal.SIGKILL:
        raise SystemExit("the job ended before it was killed")


def run_and_die(point: str) -> None:
    """In a process of its own: `canwait run`, killed by SIGKILL right after a commit."""
    from functools import partial

    from canwait import client
    from canwait.cli import main
    from canwait.db import connect

    name, _, times = point.partition(" #")
    passed = 0

    def fault(where: str) -> None:
        nonlocal passed
        passed += where == name
        if passed == int(times):
            os.kill(os.getpid(), signal.SIGKILL)

    client.connect_db = partial(connect, fault=fault)
    main(["run", "job.yaml", "--yes", "--quiet"])


def go_on(home: Path, url: str, seen: list[tuple[float, str]]) -> Took:
    """Start the job again, and kill it at the first request."""
    seen.clear()
    arrived.clear()
    began = time.monotonic()
    process = started(home, url, ["-m", "canwait", "run", "job.yaml", "--yes", "--json"])
    if not arrived.wait(600):
        raise SystemExit("no request came")
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    at, effect = seen[0]
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return Took(at - began, used.ru_utime + used.ru_stime, peak, effect)


def snapshot(home: Path) -> Path:
    """The ledger as the kill left it."""
    kept = home / "kept"
    kept.mkdir()
    for path in (home / ".canwait").glob("ledger.db*"):
        shutil.copy(path, kept)
    return kept


def restore(home: Path, kept: Path) -> None:
    for path in (home / ".canwait").glob("ledger.db*"):
        path.unlink()
    for path in kept.iterdir():
        shutil.copy(path, home / ".canwait")


def forget(home: Path) -> None:
    """Take away what lets a plan be gone on with."""
    with closing(sqlite3.connect(home / ".canwait" / "ledger.db")) as db, db:
        assert db.execute("UPDATE plan SET body = json_remove(body, '$.grounds')").rowcount == 1


if __name__ == "__main__":
    main()
