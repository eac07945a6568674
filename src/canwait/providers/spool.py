"""A batch as a folder that outlives the process: what is to be asked, what has been answered, and who is asking.

spool/<token>/requests.jsonl   the rows, as lines of OpenAI's batch input; renamed into place whole, never changed
              answers.jsonl    the answers, as lines of OpenAI's batch output; only ever appended
              lock             held (flock) by the one process that asks; the kernel frees it when that process dies
              cancelled        its presence says that no further row is to be asked
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

COMMIT_ROWS, COMMIT_S = 100, 0.5  # one fsync for this many answers, or after this long
_TOKEN = re.compile(r"[a-z0-9-]{1,63}")
_ANSWER = re.compile(rb'\{"custom_id":"([a-z0-9-]+)-(\d{1,9})",[^\0]*\}\n')  # NUL: a page lost in a power cut
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    custom_id: str
    endpoint: str
    body: bytes


class Folder:
    """One batch on disk. `token` names the folder and begins every custom id."""

    def __init__(self, spool: Path, token: str) -> None:
        assert _TOKEN.fullmatch(token), token
        self.token = token
        self.path = spool / token
        self.answers = self.path / "answers.jsonl"
        self._requests = self.path / "requests.jsonl"
        self._cancelled = self.path / "cancelled"

    @classmethod
    def of(cls, spool: Path, batch_id: str) -> Folder | None:
        """The batch of that id, which may be anything, if there is one."""
        folder = cls(spool, batch_id) if _TOKEN.fullmatch(batch_id) else None
        return folder if folder and folder.exists() else None

    def exists(self) -> bool:
        return self._requests.exists()

    def create(self, lines: Iterable[bytes]) -> None:
        """Write the rows to be asked, all or none; when this returns they survive a power cut."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / "requests.tmp"
        try:
            with draft.open("wb") as file:
                file.writelines(line + b"\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._requests)
        finally:
            draft.unlink(missing_ok=True)
        for folder in (self.path, self.path.parent):
            _sync(folder)

    @cached_property
    def n_rows(self) -> int:
        with self._requests.open("rb") as file:
            return sum(1 for _ in file)

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(int(self._requests.stat().st_mtime), UTC)

    def answered(self) -> tuple[set[int], int]:
        """The lines that have an answer, and the bytes that hold them: what lies beyond was torn by a crash."""
        lines: set[int] = set()
        size = 0
        with suppress(FileNotFoundError), self.answers.open("rb") as file:
            for raw in file:
                match = _ANSWER.fullmatch(raw)
                if not match or match[1].decode() != self.token:
                    break
                lines.add(int(match[2]))
                size += len(raw)
        return lines, size

    def rows(self, answered: Set[int]) -> Iterator[Row]:
        """The rows that have no answer yet, in line order."""
        with self._requests.open("rb") as file:
            for line, raw in enumerate(file):
                if line not in answered:
                    head, _, body = raw.partition(b',"body":')
                    facts = json.loads(head + b"}")
                    yield Row(line, facts["custom_id"], facts["url"], body.removesuffix(b"}\n"))

    def output(self) -> Iterator[bytes]:
        """Every answer there is, in pieces."""
        with suppress(FileNotFoundError), self.answers.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    @property
    def cancelled(self) -> bool:
        return self._cancelled.exists()

    def cancel(self) -> None:
        self._cancelled.touch()
        _sync(self.path)

    def lock(self) -> BinaryIO | None:
        """Held until it is closed or this process dies; None while anybody else holds it, also in this process."""
        file = (self.path / "lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file


class Answers:
    """Appends to a batch whose lock is held, in group commits; mends a torn tail first. Raises OSError."""

    def __init__(self, folder: Folder) -> None:
        self.done, size = folder.answered()
        self._waiting: dict[int, bytes] = {}
        self._committed_at = time.monotonic()
        self._file = folder.answers.open("ab", buffering=0)
        self._file.truncate(size)
        _sync(folder.path)

    def add(self, line: int, answer: bytes) -> None:
        self._waiting[line] = answer

    @property
    def due(self) -> bool:
        return len(self._waiting) >= COMMIT_ROWS or time.monotonic() - self._committed_at >= COMMIT_S

    def commit(self) -> None:
        """Make what was added durable; only then does it count as done."""
        if not self._waiting:
            return
        left = memoryview(b"".join(self._waiting.values()))
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())
        self.done |= self._waiting.keys()
        self._waiting = {}
        self._committed_at = time.monotonic()

    def close(self) -> None:
        self._file.close()


def answer_line(
    row: Row, *, status: int | None = None, body: bytes = b"", error: Mapping[str, str] | None = None
) -> bytes:
    """A line of answers.jsonl: the status and the JSON of a reply, or the error of a row that got none."""
    response = b'{"status_code":%d,"body":%s}' % (status, body) if status is not None else b"null"
    parts = row.custom_id.encode(), response, json.dumps(error).encode()
    return b'{"custom_id":"%s","response":%s,"error":%s}\n' % parts


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
