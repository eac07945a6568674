"""What the gate's tests share: a client whose model a test writes down, in memory, and time that jumps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canwait.client import Client, JobHandle
from canwait.drills.histories import VirtualClock
from canwait.inspection import Inspecting
from canwait.lots import Verdict, Word
from canwait.providers.fake import FakeProvider, RowFate
from canwait.settings import settings
from canwait.spec import job_from_dict
from canwait.types import Outcome

LABEL = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "why": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}
GATE = {"refuse_if_bad_rate": "10%"}


class Model(FakeProvider):
    """Answers every row by a function of its text; a text in `failing` comes back as an error until it is taken out."""

    def __init__(self, clock: VirtualClock, answer: Callable[[str], Any]) -> None:
        super().__init__(clock, random.Random(0), name="openai")
        self.answer = answer
        self.failing: set[str] = set()
        self.cause = "invalid_request"  # of what fails

    def _lines(self, custom_id: str, body: bytes, fate: RowFate) -> list[bytes]:
        text = json.loads(body)["messages"][-1]["content"]
        failed = text in self.failing or fate != "ok"
        usage = self.usage(body)
        return [
            json.dumps(
                {
                    "custom_id": custom_id,
                    "outcome": int(Outcome.FAILED if failed else Outcome.OK),
                    "cause": self.cause if failed else None,
                    "text": None if failed else json.dumps(self.answer(text)),
                    "usage": [usage.input_tokens, usage.output_tokens],
                }
            ).encode()
        ]


def right(text: str) -> Mapping[str, str]:
    return {"label": "right", "why": text}


@contextmanager
def client_of(folder: Path, answer: Callable[[str], Any] = right, *, url: str = "") -> Iterator[Client]:
    clock = VirtualClock()
    env = {"CANWAIT_DB": url or f"sqlite:///{folder}/ledger.db", "CANWAIT_HOME": str(folder), "OPENAI_API_KEY": "key"}
    with Client(settings(env), clock) as client:
        client.adopt(Model(clock, answer))
        yield client


def model(client: Client) -> Model:
    found = client.provider("openai")
    assert isinstance(found, Model)
    return found


def failing_canary(client: Client, handle: JobHandle, n_rows: int = 10) -> None:
    """Open a job and send its canary, of which so many rows fail in passing, however often they are sent."""
    handle.open()
    client.engine.tick(handle.name)
    canary = next(iter(model(client).batches.values()))
    model(client).failing = {json.loads(body)["messages"][-1]["content"] for body in canary.bodies[:n_rows]}
    model(client).cause = "server_error"


def job(client: Client, folder: Path, texts: list[str] | int = 100, **fields: Any) -> JobHandle:
    """A gated job over rows with these texts, or that many, whose keys are k0, k1, ..."""
    texts = [f"text {n}" for n in range(texts)] if isinstance(texts, int) else texts
    rows = "".join(f"k{n},{text}\n" for n, text in enumerate(texts))
    name = fields.get("name", "labels")
    (folder / f"{name}.csv").write_text("id,text\n" + rows, "utf-8")
    spec = {
        "version": 1, "name": name, "source": {"uri": f"{name}.csv", "key": "id"}, "model": "openai/gpt-6-luna",
        "prompt": "{{ text }}", "output": LABEL, "max_output_tokens": 40, "urgency": "batch", "budget": {"usd": 1},
        "load": f"{name}.parquet", "quality": GATE,
    } | fields  # fmt: skip
    return client.job(job_from_dict({k: v for k, v in spec.items() if v is not None}, base_dir=folder))


def judged(at_gate: Inspecting, is_good: Callable[[str, str], bool], client: Client) -> Verdict:
    """Judge row after row by (input, answer) until it is decided."""
    while (row := at_gate.next) is not None:
        good = is_good(row.input, row.answer)
        at_gate.judge(row.place, Word.GOOD if good else Word.BAD, None if good else "wrong", client.clock.now())
    assert at_gate.lot.verdict is not None
    return at_gate.lot.verdict


def inspection(handle: JobHandle, who: str = "ann") -> Inspecting:
    found = handle.inspect(who)
    assert found is not None
    return found
