"""A mail, by the server that CANWAIT_SMTP_URL names: smtps://USER:${PASSWORD}@HOST, or smtp:// with STARTTLS.

A password never travels in the clear: without TLS it is not sent, and nothing else is either.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Mapping
from contextlib import suppress
from email.errors import MessageError
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

from ..addresses import Unusable, expanded
from ..environment import secret
from . import Message, Undelivered

SERVER, SENDER = "CANWAIT_SMTP_URL", "CANWAIT_SMTP_FROM"
TIMEOUT_S = 10.0  # of each exchange with the server


class Smtp:
    def __init__(self, to: str, env: Mapping[str, str], *, context: ssl.SSLContext | None = None) -> None:
        """`context`: whom TLS trusts; the system's authorities by default."""
        self._to, self._context = to, context
        try:
            url = secret(SERVER, env)
            if not url:
                raise Undelivered(f"{SERVER} is not set; it names the server that sends mail (docs/notifications.md)")
            parts = urlsplit(expanded(url, env)[0])
            self._host, self._port = parts.hostname or "", parts.port
        except (Unusable, ValueError) as error:
            raise Undelivered(str(error) if isinstance(error, Unusable) else f"{SERVER} cannot be understood") from None
        self._tls = parts.scheme == "smtps"
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._from = env.get(SENDER) or (self._user if "@" in self._user else "")
        if parts.scheme not in ("smtp", "smtps") or not self._host:
            raise Undelivered(f"{SERVER} names no server; expected smtps://HOST or smtp://HOST")
        if not self._from:
            raise Undelivered(f"{SENDER} is not set; it is the address that mail comes from")

    def send(self, message: Message) -> str:
        try:
            mail = self._mail(message)
            server = self._server()
            try:
                server.send_message(mail, self._from, [self._to])
                with suppress(smtplib.SMTPException, OSError):  # it has the mail, however it says goodbye
                    server.quit()
            finally:
                server.close()
        except smtplib.SMTPRecipientsRefused as error:
            code = next(iter(error.recipients.values()))[0]
            raise Undelivered(f"the mail server answered {code} to the address", again=code < 500) from None
        except smtplib.SMTPAuthenticationError as error:
            raise Undelivered(f"the mail server answered {error.smtp_code} to our password") from None
        except smtplib.SMTPResponseException as error:
            raise Undelivered(f"the mail server answered {error.smtp_code}") from None
        except ssl.SSLError:
            raise Undelivered("no TLS connection to the mail server that can be trusted") from None
        except (smtplib.SMTPException, OSError):
            raise Undelivered("the mail server cannot be reached, or hung up") from None
        except (MessageError, ValueError):  # also what cannot be written in a header
            raise Undelivered("it cannot be written as a mail", again=False) from None
        return "the mail server took it"

    def _server(self) -> smtplib.SMTP:
        """A connection, greeted and logged in. Raises smtplib's errors, OSError, Undelivered."""
        context = self._context or ssl.create_default_context()
        ours = self._from.rpartition("@")[2]  # as who we greet; smtplib would ask the network for our own name
        if self._tls:
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                self._host, self._port or 465, ours, timeout=TIMEOUT_S, context=context
            )
        else:
            server = smtplib.SMTP(self._host, self._port or 587, ours, timeout=TIMEOUT_S)
        try:
            server.ehlo_or_helo_if_needed()
            secure = self._tls
            if not secure and server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
                secure = True
            if self._password:
                if not secure:
                    raise Undelivered("the mail server offers no TLS, and a password never travels without")
                server.login(self._user, self._password)
        except BaseException:
            server.close()
            raise
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = message.title, self._from, self._to
        mail["Date"] = format_datetime(message.at)
        mail["Message-ID"] = f"<{message.id}@canwait.invalid>"  # the same in every try
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence answers it
        mail.set_content(message.text)
        return mail
