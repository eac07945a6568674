"""demo: a job runs, is killed on purpose, and goes on; then its books are compared with the bill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import click

from .. import views
from ..errors import CanwaitError, NotFound
from .face import Face, options

_SCENARIO = "expiry=0.5,lost_create_reply=1,row_500=0.02,shuffled=1"
_BALANCED = "0 rows paid twice, 0 lost; run a third time: nothing sent, nothing spent"
_SIMULATED_MODEL = "openai/gpt-6-luna"


@click.command()
@click.option(
    "--local", "on_local", is_flag=True, help="For real, by the local model, instead of against the simulator."
)
@options()
def demo(face: Face, on_local: bool) -> None:
    """Watch a job run, crash and resume: no key, no network, no cost.

    Support messages are classified in batch form under a budget; one process is killed on purpose and run again.
    """
    started = time.monotonic()
    face.simulated = not on_local
    with _folder(on_local) as folder:
        job = folder / "support.yaml"
        _say(
            face,
            f"support messages in {folder}; "
            + ("the local model answers" if on_local else "every provider is SIMULATED"),
        )
        _say(face, _canwait(folder, ["plan", str(job)], on_local).rstrip())
        killed_at = _run_and_kill(face, folder, job, on_local)
        _say(face, f"\nprocess killed on purpose after {killed_at} ... run again, the same command:\n")
        done = json.loads(_canwait(folder, ["run", str(job), "--yes", "--json"], on_local, codes=(0, 6)))
        again = json.loads(_canwait(folder, ["run", str(job), "--yes", "--json"], on_local, codes=(0, 6)))
        checked = _checked(done, again, None if on_local else _bill(folder))
        value = {**checked, "seconds": round(time.monotonic() - started, 1)}
        face.show("canwait.demo/1", value, _words(value, folder))
        raise click.exceptions.Exit(0 if value["ok"] else 1)


@contextmanager
def _folder(on_local: bool) -> Iterator[Path]:
    """A folder of the demo's own, made anew each time, so that every run is a real one."""
    home = Path(os.environ.get("CANWAIT_HOME") or ".canwait").absolute()
    folder = home / ("demo-local" if on_local else "demo")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = resources.files("canwait") / "demo"
    (folder / "support_messages.csv").write_bytes((source / "support_messages.csv").read_bytes())
    job = (source / "support.yaml").read_text("utf-8")
    if not on_local:
        lines = (f"model: {_SIMULATED_MODEL}" if line.startswith("model:") else line for line in job.splitlines())
        job = "\n".join([*lines, "shard: {max_rows: 60}", ""])
    (folder / "support.yaml").write_text(job, encoding="utf-8")
    yield folder


def _env(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CANWAIT_")}
    return {**kept, "CANWAIT_HOME": str(folder / "state"), "CANWAIT_POLL_S": "0.3", "CANWAIT_NO_INPUT": "1"}


def _command(args: list[str], on_local: bool) -> list[str]:
    sim = [] if on_local else ["--scenario", _SCENARIO] if args[0] == "run" else ["--sim"]
    return [sys.executable, "-m", "canwait", *args, *sim]


def _canwait(folder: Path, args: list[str], on_local: bool, codes: tuple[int, ...] = (0,)) -> str:
    found = subprocess.run(_command(args, on_local), env=_env(folder), capture_output=True, text=True, check=False)
    if found.returncode not in codes:
        raise CanwaitError(f"`canwait {args[0]}` ended with {found.returncode}:\n{found.stderr}{found.stdout}")
    return found.stdout


def _run_and_kill(face: Face, folder: Path, job: Path, on_local: bool) -> str:
    """Start the job in a process of its own and kill it once something is under way; what was under way."""
    with subprocess.Popen(
        _command(["run", str(job), "--yes", "--quiet"], on_local),
        env=_env(folder),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as child:
        seen = _wait_for(_under_way(folder, on_local), child)
        child.send_signal(signal.SIGKILL)
        child.wait()
    return seen


def _wait_for(under_way: Callable[[], str | None], child: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if seen := under_way():
            return seen
        if child.poll() is not None:
            said = child.stderr.read().decode("utf-8", "replace") if child.stderr else ""
            raise CanwaitError(f"the job ended before it could be killed, with {child.returncode}: {said}")
        time.sleep(0.05)
    raise CanwaitError("the job did not get under way within two minutes")


def _under_way(folder: Path, on_local: bool) -> Callable[[], str | None]:
    """What is on its way, once the provider has accepted a batch (simulated) or answered some rows (local)."""

    def look() -> str | None:
        if on_local:
            spools = list((folder / "state" / "spool").glob("*/answers.jsonl"))
            answered = sum(path.read_bytes().count(b"\n") for path in spools)
            return f"{answered} answers" if answered >= 40 else None
        try:
            figures = _figures(folder)
        except (NotFound, CanwaitError):
            return None
        return f"{figures.submissions} batches were sent" if figures and figures.submissions >= 2 else None

    return look


def _figures(folder: Path) -> views.Figures | None:
    from ..db import connect
    from ..ledger import Ledger

    path = folder / "state" / "sim" / "ledger.db"
    if not path.exists():
        return None
    ledger = Ledger(connect(f"sqlite:///{path}"))
    try:
        return views.figures(ledger, "support-demo")
    finally:
        ledger.close()


def _bill(folder: Path) -> int:
    """What the simulated provider would invoice, in micros."""
    from ..simulator import Simulator

    return Simulator(folder=folder / "state" / "sim" / "provider").bill_micros()


def _checked(done: dict[str, Any], again: dict[str, Any], bill: int | None) -> dict[str, Any]:
    from ..price import format_usd

    same = all(done[k] == again[k] for k in ("ok", "failed", "missing", "confirmed_usd", "submissions"))
    complete = done["ok"] + done["failed"] + done["missing"] == done["rows"]
    billed = None if bill is None else format_usd(bill)
    balanced = None if billed is None else billed == done["confirmed_usd"]  # our own server sends no bill
    return {
        "run": {k: v for k, v in done.items() if k not in ("schema", "simulated")},
        "bill_usd": billed,
        "ledger_equals_bill": balanced,
        "every_row_accounted_for": complete,
        "rerun_cost_nothing": same,
        "ok": same and complete and balanced is not False,
    }


def _words(value: dict[str, Any], folder: Path) -> str:
    bill = f"; the provider's bill says ${value['bill_usd']}" if value["bill_usd"] is not None else ""
    run = value["run"]
    return "\n".join(
        [
            f"  rows     {run['rows']}: {run['ok']} ok, {run['failed']} failed, {run['missing']} missing"
            f"   ({run['duplicates']} duplicates merged)",
            f"  money    ${run['confirmed_usd']} confirmed, ${run['unknown_usd']} unknown{bill}",
            f"  crash    {_BALANCED if value['ok'] else 'THE BOOKS DO NOT BALANCE'}",
            f"  loaded   {run['loaded']['rows']} rows in {folder / run['loaded']['to']}",
            f"  took     {value['seconds']} s",
            "",
            "Use your own rows:   canwait init ROWS.csv",
        ]
    )


def _say(face: Face, text: str) -> None:
    if not face.as_json:
        click.echo(text)
