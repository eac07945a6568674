"""HTTP/1.1 on a loopback socket, with a real network's bad manners: reset connections, replies cut midway."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from .wire import CHUNK, BadRequest, RequestBody


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Message  # names are found in any case
    body: RequestBody
    host: str  # as the client reached us: "http://127.0.0.1:1234"


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes | Path
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: bool = False  # half of the body, then the connection ends


class Dropped(Exception):
    """The connection is reset instead of a reply."""


def json_reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, orjson.dumps(body), headers or {})


App = Callable[[Request], Reply]
"""Raises Dropped; reads as much of the body as it likes."""


@contextmanager
def serving(app: App, port: int = 0) -> Iterator[str]:
    """The URL of a server on 127.0.0.1. When the block ends every connection ends, kept-alive ones too."""
    server = _Server(("127.0.0.1", port), _handler(app))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join()


_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own also looks our name up
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET)) == _RESET:
            self.close_request(request)  # without the orderly end that the base class sends first
        else:
            super().shutdown_request(request)

    def hang_up(self) -> None:
        with self._guard:
            for connection in self._open:
                with suppress(OSError):  # the client was first
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event; a fault of ours is printed by the base class."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _handler(app: App) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = CHUNK

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            try:
                body = RequestBody(self.rfile, self.headers)
                url = urlsplit(self.path)
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                host = f"http://{self.headers.get('host', 'localhost')}"
                reply = app(Request(self.command, url.path, query, self.headers, body, host))
            except Dropped:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self.close_connection = True
                return
            except BadRequest as error:
                reply = json_reply({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
                self.close_connection = True
            else:
                if not body.drain():
                    self.close_connection = True
            self._send(reply)

        do_POST = do_DELETE = do_PUT = do_PATCH = do_GET

        def _send(self, reply: Reply) -> None:
            size = len(reply.body) if isinstance(reply.body, bytes) else reply.body.stat().st_size
            self.send_response(reply.status)
            self.send_header("content-type", reply.content_type)
            self.send_header("content-length", str(size))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("connection", "close")
            self.end_headers()
            left = size // 2 if reply.cut else size
            for piece in _pieces(reply.body):
                self.wfile.write(piece[:left])
                left -= len(piece[:left])
            self.close_connection = self.close_connection or reply.cut

    return Handler


def _pieces(body: bytes | Path) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with body.open("rb") as stream:
        while piece := stream.read(CHUNK):
            yield piece
