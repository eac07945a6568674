"""Text of others as a scalar of YAML, whatever it holds: on one line, in double quotes, and nothing but itself."""

from __future__ import annotations

import json
import re

_UNREADABLE = re.compile("[\0\ud800-\udfff]")


def readable(text: str) -> str:
    """Text that every file can hold: NULs and half surrogates are replaced."""
    return _UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def quoted(text: str) -> str:
    """A string of JSON is one of YAML, but for pairs of surrogates, which are two characters there."""
    plain = json.dumps(readable(text), ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" if c <= "\uffff" else f"\\U{ord(c):08x}" for c in plain)
