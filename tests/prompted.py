"""What tests of live answers share: a model that answers at once, in batches or row by row, and says what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from canwait.client import Client
from canwait.drills.histories import VirtualClock
from canwait.providers.fake import FakeBatch
from canwait.types import ShardFile
from gated import Model


class Prompt(Model):
    """A model that answers after `delay_s`, and keeps what it was asked."""

    delay_s = 0.3

    def __init__(self, clock: VirtualClock, answer: Callable[[str], Any], account: str) -> None:
        super().__init__(clock, answer)
        self.account = account
        self.asked: list[str] = []

    def _create(self, shard: ShardFile, bodies: list[bytes]) -> FakeBatch:
        made = super()._create(shard, bodies)
        made.ends_at = made.created_at + timedelta(seconds=self.delay_s)
        self.asked += [json.loads(body)["messages"][-1]["content"] for body in bodies]
        return made


def adopted(client: Client, answer: Callable[[str], Any], name: str) -> Prompt:
    """The model behind `openai`, or `openai/standard`, which is opened by that name and called as its provider."""
    assert isinstance(client.clock, VirtualClock)
    made = Prompt(client.clock, answer, name)
    made.name = name
    client.adopt(made)
    made.name = "openai"
    return made
