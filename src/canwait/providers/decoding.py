"""How a line of a provider's output is read."""

from __future__ import annotations

from typing import Any

import orjson

from .http import parse


def read_line(raw: bytes) -> Any:
    """The JSON value of a line, or None. Lone surrogates, NaN and foreign encodings are left to the slower parser."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return parse(raw)
