"""A webhook, signed as Standard Webhooks says, to an address that was checked and that is then the one connected to.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md: the headers webhook-id,
webhook-timestamp (seconds, of the try) and webhook-signature: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
410 means: no more. Redirects are not followed and no proxy is asked, for both lead where nobody has looked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from ..addresses import Unusable, expanded
from ..environment import secret
from ..types import Notify
from . import Message, Undelivered

SECRET = "CANWAIT_WEBHOOK_SECRET"  # noqa: S105 the variable, where a target names none
ALLOW_PRIVATE = "CANWAIT_WEBHOOK_ALLOW_PRIVATE"
TIMEOUT_S = 15.0  # of a whole try; the specification says 15 to 30
_LEAST_KEY = 24  # bytes, as the specification says
_AZURE = IPv4Address("168.63.129.16")  # a cloud's own service at a public address
_PROTOCOLS = IPv4Network("192.0.0.0/24")  # another's metadata is in the part of it that Python 3.11 calls public
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # where an IPv6-only network shows it an IPv4 host

Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address leads out into the internet, however it is written; a name is none."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is None:
            return ip in _UNICAST and ip.is_global
        ip = inner
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip == _AZURE or ip in _PROTOCOLS)


def signature(secrets: str, id: str, timestamp: int, body: bytes) -> str:
    """One `v1,...` for each of the secrets that stand side by side while one takes another's place. Raises ValueError."""
    signed = b".".join((id.encode(), str(timestamp).encode(), body))
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(_key(s), signed, hashlib.sha256)).decode() for s in secrets.split()
    )


def _key(whsec: str) -> bytes:
    try:
        key = base64.b64decode(whsec.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < _LEAST_KEY:
        raise ValueError(f"expected whsec_ and the base64 of at least {_LEAST_KEY} random bytes")
    return key


class Webhook:
    def __init__(
        self,
        target: Notify,
        env: Mapping[str, str],
        *,
        resolve: Resolve = resolve,
        context: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._resolve, self._context, self._timeout_s = resolve, context, timeout_s
        self._private = env.get(ALLOW_PRIVATE) == "1"
        name = target.secret or SECRET
        try:
            self._url, _ = expanded(target.to, env)
            self._secrets = secret(name, env)
        except (Unusable, ValueError) as error:
            raise Undelivered(str(error)) from None
        if not self._secrets:
            raise Undelivered(f"{name} is not set; it holds the secret that a webhook is signed with")
        try:
            signature(self._secrets, "", 0, b"")
        except ValueError as error:
            raise Undelivered(f"{name} is no secret of a webhook: {error}") from None

    def send(self, message: Message) -> str:
        try:
            parts = urlsplit(self._url)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise Undelivered("its address cannot be understood") from None
        if parts.scheme != "https" and not self._private:
            raise Undelivered(f"only https:// is asked; {ALLOW_PRIVATE}=1 allows more", again=False)
        body = json.dumps(message.body, sort_keys=True, separators=(",", ":")).encode()
        timestamp = int(message.at.timestamp())
        headers = {
            "host": parts.netloc.rpartition("@")[2],
            "content-type": "application/json",
            "user-agent": "canwait",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secrets, message.id, timestamp, body),
        }
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            status, after_s = self._post(parts.scheme == "https", host, port, path, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Undelivered(_words(error)) from None
        if 200 <= status < 300:
            return f"answered {status}"
        if status == 410:
            raise Undelivered("answered 410: it wants nothing more", gone=True)
        more = "; redirects are not followed" if 300 <= status < 400 else ""
        raise Undelivered(f"answered {status}{more}", after_s=after_s)

    def _post(
        self, tls: bool, host: str, port: int, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, float]:
        """The status, and the seconds that its Retry-After asks for. Raises OSError, HTTPException."""
        connection = http.client.HTTPConnection(host, port)
        raw = socket.create_connection((self._address(host, port), port), self._timeout_s)
        with raw, raw.dup() as handle:  # TLS takes `raw` over
            # Each operation has a timeout; one that sends a byte now and then must not hold us either.
            ender = threading.Timer(self._timeout_s, _end, [handle])
            ender.daemon = True
            ender.start()
            try:
                context = self._context or (ssl.create_default_context() if tls else None)
                connection.sock = context.wrap_socket(raw, server_hostname=host) if tls and context else raw
                connection.request("POST", path, body, dict(headers))
                reply = connection.getresponse()
                asked = reply.getheader("retry-after", "")
                return reply.status, float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 7 else 0.0
            finally:
                ender.cancel()
                connection.close()

    def _address(self, host: str, port: int) -> str:
        """What the name leads to, looked up once; all of it must be public. Raises Undelivered, OSError."""
        found = self._resolve(host, port)
        if not found:
            raise OSError("no address")
        if not self._private and not all(map(is_public, found)):
            raise Undelivered(
                f"its name leads to an address that is not public; {ALLOW_PRIVATE}=1 allows that", again=False
            )
        return found[0]


def _end(connected: socket.socket) -> None:
    with suppress(OSError):  # it is over already
        connected.shutdown(socket.SHUT_RDWR)


def _words(error: BaseException) -> str:
    """What went wrong, in no words of the other side's."""
    match error:
        case TimeoutError():
            return f"no answer within {TIMEOUT_S:g} s"
        case ssl.SSLCertVerificationError():
            return "its certificate cannot be trusted"
        case ssl.SSLError():
            return "no TLS connection could be made"
        case socket.gaierror():
            return "its name is not known"
        case ConnectionRefusedError():
            return "it refused the connection"
        case http.client.HTTPException() | ValueError() if not isinstance(error, ConnectionError):
            return "its answer, or its address, is no HTTP"
    return "the connection broke"
