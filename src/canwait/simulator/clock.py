"""The simulator's time: real, faster than real, or moved by hand."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """Aware, UTC, never going back."""
        ...


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class ScaledClock:
    """Runs `speed` times as fast as the wall, from `start`; without it, from the moment of construction."""

    def __init__(self, speed: float = 600, start: datetime | None = None) -> None:
        self.speed = speed
        self._start = start or datetime.now(UTC)
        self._begun_s = time.monotonic()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=(time.monotonic() - self._begun_s) * self.speed)


class ManualClock:
    """Stands still until advanced."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime.now(UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time does not go back")
        with self._lock:
            self._now += timedelta(seconds=seconds)


def parse_clock(text: str) -> Clock:
    """`600x` runs that many times as fast as the wall, `wall` as fast, `manual` stands still."""
    if text == "wall":
        return WallClock()
    if text == "manual":
        return ManualClock()
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e6:
        raise ValueError(f"{text!r} is no clock; expected a speed such as 600x, or wall, or manual")
    return ScaledClock(speed)
