"""Everything apprise knows (Slack, Teams, ntfy, ...), by its own address, which a variable holds: it is a secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..environment import secret
from . import Message, Undelivered


class Apprise:
    def __init__(self, variable: str, env: Mapping[str, str]) -> None:
        try:
            urls = secret(variable, env).split()
        except ValueError as error:
            raise Undelivered(str(error)) from None
        if not urls:
            raise Undelivered(f"{variable} is not set; it holds apprise's address of who is told")
        if len(urls) > 1:  # one that fails would have the others told again
            raise Undelivered(f"{variable} holds {len(urls)} addresses; give each a variable of its own", again=False)
        try:
            import apprise
        except ImportError:
            raise Undelivered("apprise is not installed: pip install 'canwait[notify]'") from None
        self._apprise = apprise.Apprise()
        with _unlogged():
            is_known = self._apprise.add(urls)
        if not is_known:
            raise Undelivered(f"{variable} holds an address that apprise does not know", again=False)

    def send(self, message: Message) -> str:
        with _unlogged():
            has_arrived = self._apprise.notify(title=message.title, body=message.text)
        if not has_arrived:
            raise Undelivered("apprise could not deliver it")
        return "apprise delivered it"


@contextmanager
def _unlogged() -> Iterator[None]:
    """It logs addresses, and what is secret in them, to whatever log the program has."""
    log = logging.getLogger("apprise")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before
