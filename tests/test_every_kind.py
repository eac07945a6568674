"""Every kind of notice is fed by something real: the command line against the simulator, and one webhook that is told once."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from canwait import publishing
from canwait.clock import SystemClock
from canwait.freshness import Contract
from canwait.notices import KINDS
from listeners import SECRET, Web, web
from simulated import Desk, desk

pytestmark = pytest.mark.slow


@dataclass
class Told:
    """A desk whose every notice goes to one webhook."""

    office: Desk
    hook: Web

    @property
    def env(self) -> dict[str, str]:
        allowed = {"CANWAIT_WEBHOOK_SECRET": SECRET, "CANWAIT_WEBHOOK_ALLOW_PRIVATE": "1"}
        return {"CANWAIT_NOTIFY": self.hook.url, **allowed}

    def run(self, *args: str) -> int:
        return self.office.run(*args, **self.env).code

    def look(self) -> None:
        """As cron does."""
        assert self.office.canwait("notify", "--once", "-q", **self.env).code == 0

    def until(self, type: str, seconds: float = 20) -> dict[str, Any]:
        """The data of the first message of a type."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for post in self.hook.got:
                if (body := json.loads(post.body))["type"] == type:
                    return dict(body["data"])
            time.sleep(0.1)
            self.look()
        raise AssertionError(f"{type} was not told: {self.types}")

    @property
    def types(self) -> Counter[str]:
        return Counter(json.loads(post.body)["type"] for post in self.hook.got)

    def titles(self, type: str) -> Counter[str]:
        bodies = [json.loads(post.body) for post in self.hook.got]
        return Counter(body["data"]["title"] for body in bodies if body["type"] == type)

    def wait(self, name: str, **fields: Any) -> None:
        """Send a job of three rows that stays out, and leave it."""
        self.office.write(3, name, load=None, prompt=f"{name}: {{{{ text }}}}", **fields)
        assert self.run(f"{name}.yaml", "--timeout", "1s") == 9


def done(t: Told) -> str:
    t.office.write(6)
    assert t.run() == 0
    return "job.completed"


def gate(t: Told) -> str:
    t.office.write(6, quality={"refuse_if_bad_rate": "20%"})
    assert t.run() == 3
    return "gate.pending"


def refused(t: Told) -> str:
    t.office.write(30, quality={"refuse_if_bad_rate": "20%", "rows": 12})
    assert t.run() == 3
    rejected = [word for place in range(12) for word in ("--reject", f"{place}=wrong")]
    assert t.office.canwait("inspect", "labels", *rejected, **t.env).code == 7
    return "gate.refused"


def paused(t: Told) -> str:
    t.office.write(3)
    assert t.run("job.yaml", "--timeout", "5s") == 3
    return "job.paused"


def at_risk(t: Told) -> str:
    t.wait("late", deadline="6s")
    return "job.at_risk"


def missed(t: Told) -> str:
    t.office.write(3, "late", load=None, deadline="2s")
    assert t.run("late.yaml", "--timeout", "4s") == 9
    return "job.deadline_missed"


def stuck(t: Told) -> str:
    t.office.write(25, "past", load=None, shard={"max_rows": 1})
    assert t.run("past.yaml") == 0
    with desk(t.office.folder / "frozen", "never_ends=1.0") as frozen:
        t.office.env["OPENAI_BASE_URL"] = frozen.env["OPENAI_BASE_URL"]
        t.wait("frozen", deadline="24h", shard={"max_rows": 1})
        with closing(t.office.ledger()) as ledger:
            longest = max(row["ended_us"] - row["submitted_us"] for row in ledger.query("shards", job="past")) / 1e6
        end = time.monotonic() + longest + 5
        while time.monotonic() < end and not t.types["job.stuck"]:  # of a time in which nobody asks nothing is claimed
            t.run("frozen.yaml", "--timeout", "1s")
            t.look()
    return "job.stuck"


def contract(t: Told) -> None:
    t.office.write(6, load=None)
    assert t.run() == 0
    clock = SystemClock()
    with closing(t.office.ledger()) as ledger:
        publishing.declare(ledger, Contract("labels", "dash", 1, "block"), "dash", clock.now())
    time.sleep(1.1)


def stale(t: Told) -> str:
    contract(t)
    return "result.stale"


def unread(t: Told) -> str:
    contract(t)
    return "result.unread"


def budget(t: Told) -> str:
    t.office.write(6, budget={"usd": 1, "tell_at": ["0.0001%"]})
    assert t.run() == 0
    return "budget.reached"


def too_small(t: Told) -> str:
    t.office.write(6, budget={"usd": "0.000001"})
    assert t.run() == 5
    return "budget.refused"


def frozen_budget(t: Told) -> str:
    t.office.write(12, output=None, shard={"max_rows": 4}, budget={"usd": 50})
    t.run("job.yaml", "--timeout", "5s")
    return "budget.frozen"


WALKS: list[tuple[str, Callable[[Told], str], str]] = [
    ("done", done, ""), ("gate", gate, ""), ("refused", refused, ""), ("paused", paused, "create_out_of_credit=1.0"),
    ("at_risk", at_risk, "never_ends=1.0"), ("at_risk", missed, "never_ends=1.0"), ("stuck", stuck, ""),
    ("stale", stale, ""), ("unread", unread, ""), ("budget", budget, ""), ("budget", too_small, ""),
    ("budget", frozen_budget, "overbill=4"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "walk", "scenario"), WALKS, ids=[walk.__name__ for _, walk, _ in WALKS])
def test_it_is_told_once_with_its_numbers(
    tmp_path: Path, kind: str, walk: Callable[[Told], str], scenario: str
) -> None:
    """What happens arrives under its kind, says what to type next, holds a number, and is not told again at later looks."""
    with desk(tmp_path, scenario) as office, web() as hook:
        t = Told(office, hook)
        t.look()
        type = walk(t)
        data = t.until(type)
        assert data["kind"] == kind
        assert data["command"].startswith("canwait ")
        assert data["facts"]
        assert any(letter.isdigit() for letter in data["text"] + json.dumps(data["facts"]))
        for _ in range(3):
            t.look()
        assert set(t.titles(type).values()) == {1}  # a bill freezes each budget that it is in, and each is a title


def test_every_kind_is_walked() -> None:
    """No kind is promised that nothing feeds; drift is fed in test_drift.py, a moved job in test_rescue_jobs.py."""
    assert {kind for kind, _, _ in WALKS} == set(KINDS)
