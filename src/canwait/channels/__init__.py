"""The ways to tell somebody: a signed webhook, a mail, and everything apprise knows. One file a channel.

A channel sends one message once and says by the error it raises what is certain. It repeats nothing and records nothing:
when to try again is notifying.py's, which hands the same `Message.id` in every time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..addresses import reference

_MAIL = re.compile(r"mailto:[^\s@<>,;:\"?&%]+@[^\s@<>,;:\"?&%]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
EXPECTED = "expected https://HOST/PATH, mailto:NAME@HOST or apprise:VARIABLE"


@dataclass(frozen=True, slots=True)
class Message:
    """What is told. Nothing in it is a row's or a secret."""

    id: str  # the same in every try: who gets it twice can tell
    at: datetime  # of this try
    title: str  # one line
    text: str
    body: Mapping[str, Any]  # the same for machines, JSON-ready


class Channel(Protocol):
    def send(self, message: Message) -> str:
        """Send it once; what the other side said, in our words. Raises Undelivered."""
        ...


class Undelivered(Exception):
    """It did not arrive, as far as is known; why, without secrets and without the other side's own words."""

    def __init__(self, why: str, *, again: bool = True, after_s: float = 0.0, gone: bool = False) -> None:
        self.again = again and not gone  # whether sending it later may help
        self.after_s = after_s  # not before, as the other side asks
        self.gone = gone  # the other side wants nothing more at all
        super().__init__(why)


def fault_of(to: str) -> str | None:
    """Why nobody can be told there, if so."""
    scheme, _, rest = to.partition(":")
    match scheme:
        case "mailto":
            return (
                None if _MAIL.fullmatch(to) else f"'{to}' is no mail address; expected mailto:NAME@HOST, and only one"
            )
        case "apprise":
            known = _VARIABLE.fullmatch(rest)
            return (
                None
                if known
                else "expected apprise:VARIABLE: the variable that holds apprise's address, for it is secret"
            )
        case "https" | "http":
            return _web_fault(to)
    return f"this is no way to tell somebody; {EXPECTED}"  # not what was found: an address may be a secret


def _web_fault(url: str) -> str | None:
    bare = reference.sub("x", url)  # what a variable holds is looked at when it is sent
    try:
        parts = urlsplit(bare)
        usable = bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"[!-~]+", bare)
    except ValueError:
        usable = False
    if not usable:
        return f"'{shown(url)}' is no address of a webhook; {EXPECTED}"
    if "@" in parts.netloc:
        return "a webhook is signed and has no user or password in its address"
    return "an address ends before its #" if parts.fragment or bare.endswith("#") else None


def shown(to: str) -> str:
    """A target as logs and screens show it: of a webhook its host, for its path may be a secret."""
    scheme, separator, rest = to.partition("://")
    if not separator:
        return to if scheme.startswith(("mailto:", "apprise:")) else "an address without its scheme"
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0].rpartition("@")[2]
    return f"{scheme}://{host}/..." if len(host) < len(rest.rstrip("/")) else f"{scheme}://{host}"
