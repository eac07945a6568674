"""The end of a batch: every row answered, every line written, every token counted. Deterministic by seed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from ..types import Usage
from .answers import AnswerFn, Body, body_sha256
from .life import Batch
from .rows import Answered, NotAnswered, another, embed, run
from .scenario import Scenario, active_row_faults, draw, row_fault, strikes
from .shapes import Anthropic, OpenAI

Ident = Callable[..., str]
"""Makes an id out of what it names."""


class Stopped(Exception):
    """The simulator ends; the batch is settled by the next one on its folder."""


@dataclass(slots=True)
class Harvest:
    """What a batch came to."""

    tally: Counter[str] = field(default_factory=Counter)  # ok, failed, expired, cancelled, dropped: rows
    usages: dict[str, list[Usage]] = field(default_factory=dict)  # of each model's billed rows
    executed: Counter[str] = field(default_factory=Counter)  # body sha256 -> times it ran and is billed

    def usage(self) -> Usage:
        return sum((usage for requests in self.usages.values() for usage in requests), Usage(0, 0))


@dataclass(slots=True)
class Output:
    """An output file while it is written."""

    stream: BinaryIO
    n_lines: int = 0
    _last: int = 0  # where the last line begins

    def write(self, line: bytes) -> None:
        self._last = self.stream.tell()
        self.stream.write(line + b"\n")
        self.n_lines += 1

    def cut_last_line(self) -> None:
        self.stream.truncate(self._last + (self.stream.tell() - self._last) // 2)


@dataclass(frozen=True, slots=True)
class Model:
    """The simulated model: how a request is answered, and what goes wrong with it."""

    answer: AnswerFn
    scenario: Scenario
    seed: int

    def ask(self, shape: OpenAI | Anthropic, body: Body, place: int, fault: str | None) -> Answered | NotAnswered:
        """`place`: the row's place among all rows ever accepted."""
        if problem := shape.invalid(body):
            return NotAnswered("invalid", problem)
        if shape.embeds:
            return embed(shape.name, body, fault=fault)
        is_cached = strikes(self.scenario.cached_tokens, "cached_tokens", place, self.seed)
        return run(
            shape.name,
            body,
            self.answer,
            seed=self.seed,
            most=shape.most(body),
            fault=fault,
            cached=draw(self.seed, "cached share", place) if is_cached else 0,
        )

    def fault(self, place: int) -> str | None:
        return row_fault(active_row_faults(self.scenario), place, self.seed)

    def settle(
        self,
        batch: Batch,
        shape: OpenAI | Anthropic,
        requests: Path,
        output: Output,
        errors: Output,
        ident: Ident,
        stop: threading.Event,
    ) -> Harvest:
        """Run the rows of an ended batch; `requests` is its checked input. Raises Stopped once `stop` is set."""
        harvest = Harvest()
        active = active_row_faults(self.scenario)
        for number, raw in _lines(requests, self._order(batch)):
            if stop.is_set():
                raise Stopped
            custom_id, body = shape.unpack(orjson.loads(raw))
            place = batch.first_row + number
            fault = "row_missing" if number == batch.lost_line else row_fault(active, place, self.seed)
            result: Answered | NotAnswered
            if not batch.ran(number):
                result = NotAnswered("expired" if batch.cancel_us is None else "cancelled")
            elif fault == "row_dropped":
                harvest.tally["dropped"] += 1
                continue
            elif batch.ending == "all_failed":
                result = NotAnswered("invalid")
            else:
                result = self.ask(shape, body, place, fault)

            name = ident("row", batch.seq, number)
            if isinstance(result, NotAnswered):
                harvest.tally[result.kind if result.kind in ("expired", "cancelled") else "failed"] += 1
                errors.write(shape.pack(name, custom_id, None, result))
                continue
            harvest.tally["ok"] += 1
            harvest.usages.setdefault(str(body["model"]), []).append(result.usage)
            harvest.executed[body_sha256(body)] += 1
            for row_id, told_id, answered in self._returned(shape, body, result, fault, name, custom_id, ident):
                reply = shape.reply(row_id, body, answered, batch.over_us, "batch", old_style=self.scenario.old_style)
                output.write(shape.pack(row_id, told_id, reply, None))
        if "truncated_last_line" in batch.traits:
            (output if output.n_lines else errors).cut_last_line()
        return harvest

    def _returned(
        self,
        shape: OpenAI | Anthropic,
        body: Body,
        answered: Answered,
        fault: str | None,
        row_id: str,
        custom_id: str,
        ident: Ident,
    ) -> Iterator[tuple[str, str, Answered]]:
        """(row id, custom id, answer) of each line that tells of one answered row: mostly one."""
        if fault != "row_missing":
            yield row_id, custom_id, answered
        if fault == "row_duplicate":
            yield row_id, custom_id, answered
        elif fault == "row_conflict":
            other = another(body, self.answer, answered, seed=self.seed, most=shape.most(body))
            yield ident("other", row_id), custom_id, other
        elif fault == "row_unknown_id":
            yield ident("stray", row_id), f"stray-{ident('stray', row_id)}", answered

    def _order(self, batch: Batch) -> random.Random | None:
        return random.Random(f"{self.seed}/order/{batch.seq}") if "shuffled" in batch.traits else None


def _lines(path: Path, order: random.Random | None) -> Iterator[tuple[int, bytes]]:
    """(number from 0, line), in file order or shuffled."""
    with path.open("rb") as stream:
        if order is None:
            yield from enumerate(stream)
            return
        starts, at = [], 0
        for line in stream:
            starts.append(at)
            at += len(line)
        numbers = list(range(len(starts)))
        order.shuffle(numbers)
        for number in numbers:
            stream.seek(starts[number])
            yield number, stream.readline()
