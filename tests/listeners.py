"""What the tests of notifications share: servers on loopback that take webhooks and mail, and a certificate of their own."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message as Mail
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from canwait.channels import Channel, Message

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
AT = datetime(2026, 11, 22, 7, tzinfo=UTC)


def message(**fields: Any) -> Message:
    body = {"type": "job.completed", "timestamp": AT.isoformat(), "data": {"job": "labels"}}
    return Message(**{"id": "msg_1", "at": AT, "title": "labels is done", "text": "3 ok.\n", "body": body, **fields})


@dataclass(frozen=True)
class Post:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Web:
    """A web server that answers what it is told to, the last answer for ever, and keeps what it got."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=lambda: [(204, {})])
    got: list[Post] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def web(*answers: int | tuple[int, dict[str, str]], tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    here = Web()
    if answers:
        here.answers = [(a, {}) if isinstance(a, int) else a for a in answers]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            here.got.append(Post(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers = here.answers.pop(0) if len(here.answers) > 1 else here.answers[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    here.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class MailServer:
    port: int = 0
    mails: list[tuple[str, list[str], Mail]] = field(default_factory=list)  # from, to, what
    said: list[str] = field(default_factory=list)  # every command


@contextmanager
def mail_server(
    *,
    tls: ssl.SSLContext | None = None,
    extensions: Sequence[str] = (),
    to_recipient: str = "250 ok",
    goodbye: str = "221 bye",
) -> Iterator[MailServer]:
    """An SMTP server; `to_recipient` and `goodbye`: what it answers to RCPT and QUIT."""
    here = MailServer()
    listening = socket.create_server(("127.0.0.1", 0))
    here.port = listening.getsockname()[1]

    def talk(connection: socket.socket) -> None:
        connection.settimeout(5)
        with connection, connection.makefile("rwb", buffering=0) as line:
            sender, to = "", list[str]()
            line.write(b"220 here\r\n")
            while command := line.readline().decode().strip():
                here.said.append(command)
                match command.split(" ")[0].upper().partition(":")[0]:
                    case "EHLO":
                        lines = ["here", *extensions]
                        line.write("".join(f"250{'-' if x is not lines[-1] else ' '}{x}\r\n" for x in lines).encode())
                    case "AUTH":
                        line.write(b"235 welcome\r\n")
                    case "MAIL":
                        sender = command.partition("<")[2].partition(">")[0]
                        line.write(b"250 ok\r\n")
                    case "RCPT":
                        to.append(command.partition("<")[2].partition(">")[0])
                        line.write(f"{to_recipient}\r\n".encode())
                    case "DATA":
                        line.write(b"354 go on\r\n")
                        text = b""
                        while (more := line.readline()) != b".\r\n":
                            text += more
                        here.mails.append((sender, to, message_from_bytes(text)))
                        line.write(b"250 taken\r\n")
                    case "QUIT":
                        line.write(f"{goodbye}\r\n".encode())
                        return
                    case _:
                        line.write(b"250 ok\r\n")

    def serve() -> None:
        while True:
            try:
                raw, _ = listening.accept()
            except OSError:
                return
            with suppress(OSError):
                talk(tls.wrap_socket(raw, server_side=True) if tls else raw)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(a server's, a client's) TLS: a certificate for hook.test and who trusts it."""
    folder: Path = tmp_path_factory.mktemp("tls")
    made = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hook.test",
        "-addext", "subjectAltName=DNS:hook.test", "-keyout", str(folder / "key"), "-out", str(folder / "cert"),
    ]  # fmt: skip
    try:
        subprocess.run(made, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl here to make a certificate with")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert", folder / "key")
    return server, ssl.create_default_context(cafile=str(folder / "cert"))


class Kept:
    """A channel that keeps what it is given; faults come first, then everything arrives."""

    def __init__(self, *faults: BaseException) -> None:
        self.faults, self.sent = list(faults), list[tuple[str, Message]]()

    def open(self, target: Any, env: Any) -> Channel:
        kept = self

        class To:
            def send(self, message: Message) -> str:
                kept.sent.append((target.to, message))
                if kept.faults:
                    raise kept.faults.pop(0)
                return "arrived here"

        return To()
