"""A provider that speaks the real wire formats and misbehaves on purpose, with a virtual clock (docs/simulator.md)."""

from __future__ import annotations

from .answers import AnswerFn, echo, openai_upstream, replay, schema_answer
from .bill import BilledBatch
from .clock import Clock, ManualClock, ScaledClock, WallClock, parse_clock
from .core import AcceptedBatch, Simulator
from .scenario import Fault, Scenario

__all__ = [
    "AcceptedBatch",
    "AnswerFn",
    "BilledBatch",
    "Clock",
    "Fault",
    "ManualClock",
    "ScaledClock",
    "Scenario",
    "Simulator",
    "WallClock",
    "echo",
    "openai_upstream",
    "parse_clock",
    "replay",
    "schema_answer",
]
