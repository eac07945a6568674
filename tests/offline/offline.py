"""Refuses every connection and every name look-up beyond loopback, in this process, for good.

An audit hook sees what a patched `socket` module would miss: names bound earlier, `connect_ex`, datagrams, asyncio.
C libraries that open their own sockets (libpq) are not seen.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address
from typing import Any

# The argument of each audit event that says where to: a host, or an address whose first item is the host.
_EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}


class BeyondLoopback(BaseException):
    """Not an Exception: code under test must not turn it into an ordinary outage."""


def install() -> None:
    sys.addaudithook(_hook)


def is_local(where: Any) -> bool:
    """Whether an address as sockets take it stays on this machine: a host, (host, port, ...), a Unix socket's path."""
    host = where[0] if isinstance(where, tuple) else where
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost") or host[0] in "/\0":
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in _EVENTS and not is_local(args[_EVENTS[event]]):
        raise BeyondLoopback(f"{event} to {args[_EVENTS[event]]!r}: tests connect to loopback only")
