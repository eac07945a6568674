"""Everything apprise knows (Slack, Teams, ntfy, ...), by its own address, which a variable holds: it is a secret."""

from __future__ import annotations

import logging
from collections.abc import Mapping

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
        try:
            import apprise
        except ImportError:
            raise Undelivered("apprise is not installed: pip install 'canwait[notify]'") from None
        logging.getLogger("apprise").addHandler(logging.NullHandler())  # it logs addresses; on stderr if nobody listens
        self._all = apprise.Apprise()
        if not self._all.add(urls):
            raise Undelivered(f"{variable} holds an address that apprise does not know", again=False)

    def send(self, message: Message) -> str:
        if not self._all.notify(title=message.title, body=message.text):
            raise Undelivered("apprise could not deliver it")
        return "apprise delivered it"
