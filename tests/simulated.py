"""What tests against the simulator share: it runs, and its official clients or the command line talk to it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anthropic
import httpx2
import openai

from canwait.db import connect
from canwait.ledger import Ledger
from canwait.price import format_usd
from canwait.simulator import AnswerFn, ManualClock, ScaledClock, Scenario, Simulator

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY_S = 86_400


@dataclass
class Simulated:
    """A simulator being served, and everything that talks to it."""

    simulator: Simulator
    clock: ManualClock
    url: str
    openai: openai.OpenAI
    anthropic: anthropic.Anthropic
    http: httpx2.Client

    def upload(self, content: bytes, name: str = "tok.jsonl") -> str:
        return self.openai.files.create(file=(name, content), purpose="batch").id

    def submit(self, content: bytes | int = 3) -> Any:
        """A batch of these lines, or of this many rows."""
        lines = chat_lines(content) if isinstance(content, int) else content
        return self.openai.batches.create(
            input_file_id=self.upload(lines),
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"canwait_token": "tok"},
        )

    def finish(self, batch: Any, seconds: float = DAY_S) -> Any:
        """The batch after so much more virtual time."""
        self.clock.advance(seconds)
        return self.openai.batches.retrieve(batch.id)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id
        return [json.loads(line) for line in self.openai.files.content(file_id).text.splitlines()]

    def submit_messages(self, n: int = 3, **params: Any) -> Any:
        requests: Any = [{"custom_id": f"tok-{i}", "params": message(i, **params)} for i in range(n)]
        return self.anthropic.messages.batches.create(requests=requests)

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        reply = self.http.get(f"/v1/messages/batches/{batch_id}/results")
        assert reply.status_code == 200, reply.text
        return [json.loads(line) for line in reply.text.splitlines()]


@contextmanager
def simulated(
    folder: Path,
    scenario: Scenario | None = None,
    *,
    seed: int = 0,
    clock: ManualClock | None = None,
    answer: AnswerFn | None = None,
    keys: dict[str, str] | None = None,
) -> Iterator[Simulated]:
    clock = clock or ManualClock(START)
    simulator = Simulator(
        seed=seed, clock=clock, answer=answer, scenario=scenario or Scenario(), folder=folder, keys=keys
    )
    with simulator.serve() as url:
        clients = (
            openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0),
            anthropic.Anthropic(base_url=url, api_key="key", max_retries=0),
            httpx2.Client(base_url=url, headers={"authorization": "Bearer key"}, timeout=30),
        )
        yield Simulated(simulator, clock, url, *clients)
        for client in clients:
            client.close()
    simulator.close()


def chat(i: int, **params: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Classify."}, {"role": "user", "content": f"message {i}"}]
    return {"model": "gpt-4o-mini", "messages": messages, "max_completion_tokens": 64} | params


def message(i: int, **params: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"message {i}"}]
    return {"model": "claude-haiku-5-5", "max_tokens": 64, "system": "Classify.", "messages": messages} | params


def chat_lines(n: int, **params: Any) -> bytes:
    return join([line(i, **params) for i in range(n)])


def line(i: int, **params: Any) -> dict[str, Any]:
    return {"custom_id": f"tok-{i}", "method": "POST", "url": "/v1/chat/completions", "body": chat(i, **params)}


def join(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# ------------------------------------------------------------------------------- the command line against a simulator


LABEL = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["billing", "bug", "account"]}, "urgency": {"type": "integer"}},
    "required": ["label", "urgency"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Said:
    """What one `canwait` ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value: dict[str, Any] = json.loads(self.out)
        return value

    @property
    def problem(self) -> dict[str, Any]:
        """The problem details, which are the last line of stderr."""
        value: dict[str, Any] = json.loads(self.err.splitlines()[-1])
        return value


@dataclass
class Desk:
    """A folder with jobs in it, a simulator to run them against, and the command line: `canwait` in this process."""

    folder: Path
    simulator: Simulator
    url: str
    env: dict[str, str]

    def canwait(self, *args: object, **env: str | None) -> Said:
        """Run the command line here, without a terminal. `env` adds variables, or takes them away with None."""
        from canwait.cli import main
        from canwait.cli.face import Face

        out, err = io.StringIO(), io.StringIO()
        Face.current = None
        with (
            changed(self.folder, self.env | env),
            patch.object(sys, "stdin", io.StringIO()),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main([str(a) for a in args])
            except SystemExit as end:
                return Said(int(end.code or 0), out.getvalue(), err.getvalue())
        raise AssertionError("`main` always exits")

    def run(self, *args: object, **env: str | None) -> Said:
        return self.canwait("run", *(args or ("job.yaml",)), "--yes", "--json", **env)

    def start(self, *args: object, **env: str) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        command = [sys.executable, "-m", "canwait", *map(str, args)]
        pipe = subprocess.PIPE
        full = os.environ | self.env | env
        return subprocess.Popen(
            command, cwd=self.folder, env=full, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def write(self, n: int = 12, name: str = "job", **fields: Any) -> Path:
        """A job file, NAME.yaml, and `n` rows, of which the last repeats the first; a field of None is left out.

        The job is called `labels` if it is the only one, else as its file.
        """
        text = [f"{i:06d},message {i % (n - 1) if n > 1 else i} with “quotes”\n" for i in range(n)]
        (self.folder / "rows.csv").write_text("id,text\n" + "".join(text), encoding="utf-8")
        return self.write_job(name, **fields)

    def write_job(self, name: str = "job", **fields: Any) -> Path:
        job = {
            "version": 1,
            "name": "labels" if name == "job" else name,
            "source": {"uri": "rows.csv", "key": "id"},
            "model": "openai/gpt-6-luna",
            "prompt": "Classify: {{ text }}",
            "output": LABEL,
            "max_output_tokens": 40,
            "urgency": "batch",
            "budget": {"usd": 1},
            "load": "labels.parquet",
        } | fields
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({k: v for k, v in job.items() if v is not None}, ensure_ascii=False), "utf-8")
        return path

    def bill_usd(self) -> str:
        return format_usd(self.simulator.bill_micros())

    def ledger(self) -> Ledger:
        """The ledger of these jobs, for looking; the caller closes it."""
        return Ledger(connect(f"sqlite:///{self.folder / '.canwait' / 'ledger.db'}"))

    def money(self) -> tuple[int, int]:
        """Rows of the tables that hold money: budgets and their entries."""
        with closing(self.ledger()) as ledger:
            entries = sum(len(ledger.query("entries", budget=b["id"])) for b in ledger.query("budgets"))
            return len(ledger.query("budgets")), entries


@contextmanager
def desk(
    folder: Path, scenario: str = "", *, speed: float = 40_000, seed: int = 0, answer: AnswerFn | None = None,
    keys: dict[str, str] | None = None,
) -> Iterator[Desk]:  # fmt: skip
    """A simulator whose day takes two seconds, and an environment that leads to it."""
    simulator = Simulator(
        seed=seed, clock=ScaledClock(speed), answer=answer, scenario=Scenario.parse(scenario),
        folder=folder / "provider", keys=keys,
    )  # fmt: skip
    home = folder / "desk"
    home.mkdir(parents=True)
    with simulator.serve() as url:
        env = {
            "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "key", "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "key",
            "OWN_BASE_URL": f"{url}/v1", "CANWAIT_POLL_S": "0.05", "CANWAIT_SETTLE_S": "1.5",
        }  # fmt: skip
        yield Desk(home, simulator, url, env)
    simulator.close()


@contextmanager
def changed(folder: Path, env: Mapping[str, str | None]) -> Iterator[None]:
    """This process in another folder and environment."""
    here, before = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
