"""A host on loopback that answers as a test says: whole replies, broken ones, or none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from canwait.types import ShardFile

TOKEN = "cw0123456789abcdef"


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    connection: tuple[str, int]  # tells connections apart

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    body: Any = b""  # bytes as they are, anything else as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # close the connection after that many bytes of the body, although all were promised
    raw: bytes | None = None  # instead of an HTTP reply: these bytes, then the connection closes

    @property
    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


HANG_UP = Reply(raw=b"")  # the request was read, the connection closes without a word


class Host:
    """`answer` decides; `seen` is every request, in order."""

    def __init__(self, answer: Callable[[Seen], Reply]) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.url = ""

    def count(self, method: str, path: str) -> int:
        return sum((seen.method, seen.path) == (method, path) for seen in self.seen)


@contextmanager
def serving(answer: Callable[[Seen], Reply]) -> Iterator[Host]:
    host = Host(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65_537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, url.path, query, headers, body, self.client_address)
            host.seen.append(seen)
            reply = host.answer(seen)
            self.reply(reply)
            self.close_connection = reply.raw is not None or reply.cut is not None

        def reply(self, reply: Reply) -> None:
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                return
            self.send_response_only(reply.status)
            for name, value in {"content-length": str(len(reply.payload)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.payload[: reply.cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that has gone away is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    host.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()


def shard_of(
    folder: Path, rows: int = 3, *, token: str = TOKEN, endpoint: str = "/v1/chat/completions", **facts: Any
) -> ShardFile:
    """A shard of short requests, with text in them that breaks careless line handling."""
    path = folder / f"{token}.jsonl"
    contents = [f'row {n}: "quoted"\nnext\u2028line \x85 ünï 😀 \\' for n in range(rows)]
    bodies = [
        {"max_completion_tokens": 99, "messages": [{"content": text, "role": "user"}], "model": "m"}
        for text in contents
    ]
    lines = [json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for body in bodies]
    path.write_bytes(b"".join(lines))
    return ShardFile(token=token, path=path, n_rows=rows, endpoint=endpoint, model="m", window_s=86_400, **facts)
