"""`--sim`: any job against the simulator, with a ledger of its own, so that rehearsed money never meets real money.

The simulator's state lies in a folder beside that ledger, so a rehearsal that is killed goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .client import Client
from .clock import SystemClock
from .providers.own import Own
from .settings import settings
from .simulator import AnswerFn, ScaledClock, Scenario, Simulator, schema_answer

SPEED = 14_400  # four hours of the provider's time are a second here


@contextmanager
def rehearsal(
    scenario: str = "", *, env: Mapping[str, str] = os.environ, seed: int = 0, answer: AnswerFn = schema_answer
) -> Iterator[Client]:
    """A client whose every provider is the simulator. Raises SpecError for a scenario that is not understood."""
    home = Path(env.get("CANWAIT_HOME") or ".canwait") / "sim"
    home.mkdir(parents=True, exist_ok=True)
    simulator = Simulator(
        seed=seed, clock=ScaledClock(SPEED), answer=answer, scenario=Scenario.parse(scenario), folder=home / "provider"
    )
    with simulator.serve() as url:
        inside = {
            **env,
            "CANWAIT_DB": f"sqlite:///{home / 'ledger.db'}",
            "CANWAIT_HOME": str(home),
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "simulated",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "simulated",
            "OWN_BASE_URL": f"{url}/v1",
            "CANWAIT_POLL_S": env.get("CANWAIT_POLL_S") or "0.2",
            "CANWAIT_SETTLE_S": env.get("CANWAIT_SETTLE_S") or "2",
        }
        with Client(replace(settings(inside), simulated=True), SystemClock()) as client:
            client.adopt(Own(f"{url}/v1", None, home / "spool", name="local"))
            yield client
