"""An S3-compatible server on loopback: whole objects by HEAD, GET with ranges, PUT, multipart uploads and deletes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class Host:
    """Its objects, and what it was asked for. `before` is called with every request and may change the objects."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}  # by "/bucket/path"
        self.requests: list[str] = []
        self.before: Callable[[str], int | None] = lambda request: None  # a status answers in its place
        self.parts: dict[str, dict[int, bytes]] = {}
        self.numbers = count(1)


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


@contextmanager
def object_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host that the environment names as the endpoint of s3:// addresses."""
    host = Host()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"host": host})) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
        try:
            yield host
        finally:
            server.shutdown()
            thread.join()


def etag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    host: Host
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve(self._read)

    def do_GET(self) -> None:
        self._serve(self._read)

    def do_PUT(self) -> None:
        self._serve(self._put)

    def do_POST(self) -> None:
        self._serve(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self, answer: Callable[[str, dict[str, list[str]], bytes], Reply]) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {unquote(parts.path)}{'?' if parts.query else ''}{parts.query}"
        self.host.requests.append(request)
        if status := self.host.before(request):
            reply = Reply(status, b"<Error><Code>Injected</Code></Error>")
        else:
            reply = answer(unquote(parts.path), parse_qs(parts.query, keep_blank_values=True), body)
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _read(self, path: str, query: dict[str, list[str]], body: bytes) -> Reply:
        data = self.host.objects.get(path)
        if data is None:
            return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers.get("If-Match", etag(data)) != etag(data):
            return Reply(412)
        headers = {"ETag": etag(data), "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2]) + 1, len(data))
            return Reply(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})
        return Reply(200, data, headers)

    def _put(self, path: str, query: dict[str, list[str]], body: bytes) -> Reply:
        objects = self.host.objects
        if "uploadId" in query:
            self.host.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
            return Reply(200, headers={"ETag": etag(body)})
        wanted = self.headers.get("If-Match")
        if (self.headers.get("If-None-Match") == "*" and path in objects) or (
            wanted and (path not in objects or wanted != etag(objects[path]))
        ):
            return Reply(412)
        objects[path] = body
        return Reply(200, headers={"ETag": etag(body)})

    def _post(self, path: str, query: dict[str, list[str]], body: bytes) -> Reply:
        if "delete" in query:
            keys = re.findall("<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.host.objects.pop(f"{path.rstrip('/')}/{unquote(key)}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return Reply(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        if "uploads" in query:
            upload = str(next(self.host.numbers))
            self.host.parts[upload] = {}
            tag = "InitiateMultipartUploadResult"
            return Reply(200, f"<{tag}><UploadId>{upload}</UploadId></{tag}>".encode())
        parts = self.host.parts.pop(query["uploadId"][0])
        self.host.objects[path] = data = b"".join(parts[number] for number in sorted(parts))
        tag = "CompleteMultipartUploadResult"
        return Reply(200, f"<{tag}><ETag>{etag(data)}</ETag></{tag}>".encode())
