"""A job's request bodies, many rows at a time: the bytes that `Renderer.render` gives, several times as fast. Pure.

The bodies of one job differ only where a message depends on the row. What stands before the first such text and after
the last is encoded once, and hashed once before the first; each row's body is `head`, a `middle` of its own, and `tail`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import contains
from typing import Any, NamedTuple

import orjson

from .render import UNFILLABLE, Renderer
from .tokens import Frame


class Middles(NamedTuple):
    middles: list[bytes]  # of each row: its body without `head` and `tail`
    texts: list[list[str]]  # of each message that depends on the row: the rows' texts


class Bodies:
    """Made for one job; keeps nothing of its rows."""

    def __init__(self, renderer: Renderer) -> None:
        self.variable = [t for _, t in renderer.templates if not t.is_constant]
        self.frames = tuple(Frame(t.head, t.tail, t.is_constant) for _, t in renderer.templates)
        pieces, self._order = _cut(renderer)
        self.head, self._between, self.tail = pieces[0], pieces[1:-1], pieces[-1] if self._order else b""

    def render(self, columns: Mapping[str, Sequence[Any]], n_rows: int) -> Middles | None:
        """None when there is a row that cannot become a request; `Renderer.render` says which and why."""
        if not self.variable:
            return Middles([b""] * n_rows, [])
        try:
            texts = [template.render_all(columns) for template in self.variable]
            if any(_is_blank(part) or any(map(contains, part, repeat("\0"))) for part in texts):
                return None
            encoded = [list(map(orjson.dumps, texts[i])) for i in self._order]
        except UNFILLABLE:  # among them what orjson raises for half of a surrogate pair
            return None
        if len(encoded) == 1:
            return Middles(encoded[0], texts)
        parts = [encoded[0]]
        for piece, part in zip(self._between, encoded[1:], strict=True):
            parts += [piece] * n_rows, part
        return Middles([b"".join(row) for row in zip(*parts, strict=True)], texts)

    def middle(self, body: bytes) -> bytes:
        """The same of one body."""
        return body[len(self.head) : len(body) - len(self.tail)]

    def varying(self, texts: Sequence[str]) -> list[str]:
        """Of the messages of a row those that depend on it."""
        return [text for text, frame in zip(texts, self.frames, strict=True) if not frame.constant]


def _cut(renderer: Renderer) -> tuple[list[bytes], list[int]]:
    """What stands around the texts that depend on the row, and the order in which those stand in a body."""
    variable = [i for i, (_, template) in enumerate(renderer.templates) if not template.is_constant]
    for salt in range(100):
        texts = [template.head for _, template in renderer.templates]
        marks = [f"~{salt}:{n}~" for n in range(len(variable))]
        for i, mark in zip(variable, marks, strict=True):
            texts[i] = mark
        body = renderer.body(tuple(texts))
        quoted = [orjson.dumps(mark) for mark in marks]
        if all(body.count(mark) == 1 for mark in quoted):  # or a text of the job has it, too
            break
    else:
        raise AssertionError("a body does not hold the text of each message once")
    if not quoted:
        return [body], []
    pieces = re.split(b"(" + b"|".join(map(re.escape, quoted)) + b")", body)
    return pieces[::2], [quoted.index(mark) for mark in pieces[1::2]]


def _is_blank(texts: Sequence[str]) -> bool:
    return not all(texts) or any(map(str.isspace, texts))
