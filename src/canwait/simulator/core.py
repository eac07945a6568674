"""The simulator as its users see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..clock import from_us
from ..errors import UnknownPrice
from .answers import AnswerFn, schema_answer
from .api import Api
from .bill import BilledBatch
from .clock import Clock, WallClock
from .scenario import Scenario
from .server import serving
from .state import State

_GOOD_DAY = Scenario()


@dataclass(frozen=True, slots=True)
class AcceptedBatch:
    """One create that had an effect."""

    id: str
    shape: str  # "openai" or "anthropic"
    token: str  # what the custom ids begin with
    n_rows: int  # of a batch that fails validation: those before the bad line
    created_at: datetime
    status: str  # OpenAI's words, for both shapes


class Simulator:
    """OpenAI's Files and Batches and Anthropic's Message Batches on a loopback socket, with a bill and a bad side.

    Everything it knows is in `folder`: another simulator on the same folder goes on where this one was, also after
    SIGKILL. One process at a time. `keys`: API key -> account; accounts do not see each other's batches. None lets
    everybody in, as one account.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        answer: AnswerFn | None = None,
        scenario: Scenario = _GOOD_DAY,
        folder: Path,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self._clock = clock or WallClock()
        self._state = State(folder, self._clock, seed, scenario, answer or schema_answer)
        self._keys = keys

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """The base URL while the block runs; OpenAI's API is at URL + "/v1", Anthropic's at URL."""
        api = Api(self._state, self._clock, self._keys)
        with serving(api, port) as url:
            try:
                yield url
            finally:
                api.close()

    def now(self) -> datetime:
        """The provider's time: the clock's, or later where an earlier process on this folder was ahead."""
        return self._state.now()

    def bill(self) -> list[BilledBatch]:
        """What is billed by now, oldest first: every ended batch and every synchronous call."""
        return self._state.bill()

    def bill_micros(self) -> int:
        """Raises UnknownPrice where a billed model has no known price."""
        total = 0
        for line in self.bill():
            if line.micros is None:
                raise UnknownPrice(tier=line.tier.value, provider=line.provider, model=line.model)
            total += line.micros
        return total

    def batches(self) -> list[AcceptedBatch]:
        """Every batch that was accepted, oldest first, deleted ones too."""
        return [
            AcceptedBatch(
                batch.id,
                batch.shape,
                batch.token,
                batch.n_rows,
                from_us(batch.created_us),
                batch.phase(self._state.now_us()),
            )
            for batch in reversed(self._state.batches(deleted=True))
        ]

    def executed(self) -> Mapping[str, int]:
        """sha256 (hex) of a request body, as sent and compact -> how often it ran and was billed, by now."""
        return self._state.executed()

    def close(self) -> None:
        self._state.close()
