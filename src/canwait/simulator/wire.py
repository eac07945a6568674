"""Reading what clients send without holding it: HTTP bodies, multipart forms, a JSON array inside an object."""

from __future__ import annotations

import codecs
import email
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from io import BufferedIOBase
from typing import Any

CHUNK = 1 << 16

Read = Callable[[int], bytes]
"""Up to n bytes; b"" at the end."""


class BadRequest(ValueError):
    """The request's bytes are not what its headers say."""


class RequestBody:
    """A request's body, read once, front to back, by Content-Length or in chunked transfer coding."""

    def __init__(self, stream: BufferedIOBase, headers: Message) -> None:
        self._stream = stream
        self._chunked = "chunked" in (headers.get("transfer-encoding") or "").lower()
        self.declared_bytes = _number(headers.get("content-length") or "0", 10)
        self._left = 0 if self._chunked else self.declared_bytes
        self._ended = not self._chunked and self._left == 0

    def read(self, size: int = CHUNK) -> bytes:
        if self._ended:
            return b""
        if self._left == 0:  # only in chunked coding: the next chunk's size
            self._left = _number(self._stream.readline(64).split(b";")[0].decode("latin-1").strip(), 16)
            if self._left == 0:
                while self._stream.readline(CHUNK).strip():
                    pass  # trailers
                self._ended = True
                return b""
        piece = self._stream.read(min(size, self._left))
        if not piece:
            raise BadRequest("the request ended early")
        self._left -= len(piece)
        if self._left == 0:
            if self._chunked:
                self._stream.readline(64)
            else:
                self._ended = True
        return piece

    def drain(self, most: int = 1 << 28) -> bool:
        """Skip what is left, so that the connection can carry the next request. False if it is too much."""
        while most > 0:
            piece = self.read()
            if not piece:
                return True
            most -= len(piece)
        return False

    def all(self, most: int) -> bytes:
        pieces, size = [], 0
        while piece := self.read():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise BadRequest(f"a body of more than {most} bytes")
        return b"".join(pieces)


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise BadRequest(f"{text!r} is not a length") from None


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    filename: str | None
    content: Iterator[bytes]  # to be read before the next part is asked for


def parts(read: Read, content_type: str) -> Iterator[Part]:
    """The parts of a multipart/form-data body. Holds one chunk at a time. Raises BadRequest."""
    boundary = email.message_from_string(f"Content-Type: {content_type}\n").get_boundary()
    if not boundary:
        raise BadRequest("a multipart body without a boundary")
    delimiter = b"\r\n--" + boundary.encode()
    buffer = b"\r\n"  # so that the first boundary looks like all others

    def fill() -> None:
        nonlocal buffer
        piece = read(CHUNK)
        if not piece:
            raise BadRequest("the multipart body ended early")
        buffer += piece

    def until(mark: bytes) -> Iterator[bytes]:
        nonlocal buffer
        while (found := buffer.find(mark)) < 0:
            sure = len(buffer) - len(mark) + 1  # beyond this the mark may have begun
            if sure > 0:
                piece, buffer = buffer[:sure], buffer[sure:]
                yield piece
            fill()
        piece, buffer = buffer[:found], buffer[found + len(mark) :]
        yield piece

    for _ in until(delimiter):
        pass
    while True:
        while len(buffer) < 2:
            fill()
        if buffer.startswith(b"--"):
            return
        head = email.message_from_string(b"".join(until(b"\r\n\r\n")).decode("utf-8", "replace").lstrip())
        content = until(delimiter)
        name = head.get_param("name", header="content-disposition")
        yield Part(str(name), head.get_filename(), content)
        for _ in content:
            pass


def array_items(read: Read, name: str) -> Iterator[Any]:
    """The items of the array `name` of a JSON object, one at a time. Raises BadRequest for anything else."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    parse = json.JSONDecoder().raw_decode
    text, at, ended = "", 0, False

    def more() -> bool:
        nonlocal text, at, ended
        if ended:
            return False
        piece = read(max(CHUNK, len(text) - at))  # doubling keeps a long value linear
        ended = not piece
        text, at = text[at:] + decode(piece, ended), 0
        return True

    def peek() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or not more():
                return text[at : at + 1]

    def expect(mark: str) -> None:
        nonlocal at
        if peek() != mark:
            raise BadRequest(f"expected {mark!r}, found {peek()!r}")
        at += 1

    def value() -> Any:
        nonlocal at
        peek()
        while True:
            try:
                found, end = parse(text, at)
            except json.JSONDecodeError as error:
                if not more():
                    raise BadRequest(str(error)) from None
                continue
            if end < len(text) or not more():  # a number at the very end may go on
                at = end
                return found

    def listed(close: str) -> Iterator[None]:
        """Once for each comma-separated thing before `close`."""
        nonlocal at
        while peek() != close:
            yield
            if peek() == close:
                break
            expect(",")
        expect(close)

    try:
        expect("{")
        for _ in listed("}"):
            key = value()
            expect(":")
            if key != name:
                value()
                continue
            expect("[")
            for _ in listed("]"):
                yield value()
    except UnicodeDecodeError as error:
        raise BadRequest(f"not UTF-8: {error}") from None
