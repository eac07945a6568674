"""A batch as a folder that outlives the process: what is to be asked, what has been answered, and who is asking.

spool/<token>/requests.jsonl   the rows, as lines of OpenAI's batch input; renamed into place whole, never changed
              answers.jsonl    the answers, one a line that begins with its custom id; only ever appended
              asked            where a row is paid: which ones are about to be asked; only ever appended
              lock             held (flock) by the one process that asks; the kernel frees it when that process dies
              cancelled        its presence says that no further row is to be asked
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ..durable import sync_folder

COMMIT_ROWS, COMMIT_S = 256, 0.05  # one fsync for this many answers, or after this long
MOST_WAITING_ROWS, MOST_WAITING_BYTES = 4 * COMMIT_ROWS, 64 << 20  # a disk slower than this slows the asking
_TOKEN = re.compile(r"[a-z0-9-]{1,63}")
_ANSWER = re.compile(rb'\{"custom_id":"([a-z0-9-]+)-(\d{1,9})",[^\0]*\}\n')  # NUL: a page lost in a power cut
_ASKED = re.compile(rb"(?:(\d{1,9})-|-)(\d{1,9})\n")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    custom_id: str
    endpoint: str
    body: bytes
    tries: int = 0  # before this one


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
            sync_folder(folder)

    @property
    def n_rows(self) -> int:
        return _n_lines(self._requests, self._requests.stat().st_mtime_ns)

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
        endpoint = ""
        with self._requests.open("rb", buffering=_PIECE_BYTES) as file:
            for line, raw in enumerate(file):
                if line not in answered:
                    head, _, body = raw.partition(b',"body":')
                    endpoint = endpoint or json.loads(head + b"}")["url"]  # the same for every row
                    yield Row(line, f"{self.token}-{line}", endpoint, body.removesuffix(b"}\n"))

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
        sync_folder(self.path)

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
    """Appends to a batch whose lock is held, in group commits; mends a torn tail first. Raises OSError.

    `take`, `write` and `wrote` are one commit; only `write` touches the disk, so it may be another thread's.
    """

    def __init__(self, folder: Folder) -> None:
        self.done, size = folder.answered()
        self._waiting: dict[int, bytes] = {}
        self._n_bytes = 0
        self._since = 0.0  # when the first of those was added
        self._file = folder.answers.open("ab", buffering=0)
        self._file.truncate(size)
        sync_folder(folder.path)

    def add(self, line: int, answer: bytes) -> None:
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting[line] = answer
        self._n_bytes += len(answer)

    @property
    def due(self) -> bool:
        return len(self._waiting) >= COMMIT_ROWS or (bool(self._waiting) and time.monotonic() - self._since >= COMMIT_S)

    @property
    def crowded(self) -> bool:
        return len(self._waiting) >= MOST_WAITING_ROWS or self._n_bytes >= MOST_WAITING_BYTES

    def take(self) -> dict[int, bytes]:
        taken, self._waiting, self._n_bytes = self._waiting, {}, 0
        return taken

    def write(self, taken: Mapping[int, bytes]) -> None:
        _append(self._file, b"".join(taken.values()))

    def wrote(self, taken: Mapping[int, bytes]) -> None:
        """They are durable; only now do they count as done."""
        self.done |= taken.keys()

    def commit(self) -> None:
        if taken := self.take():
            self.write(taken)
            self.wrote(taken)

    def close(self) -> None:
        self._file.close()


class Asked:
    """Which rows of a paid batch may have been asked: recorded before they are, taken back where they certainly were not.

    "12-75" on a line of its own: those rows are about to be asked. "-12": that row was not, or was refused unread.
    """

    def __init__(self, folder: Folder) -> None:
        self.lines: set[int] = set()  # may have been asked
        size = 0
        path = folder.path / "asked"
        with suppress(FileNotFoundError), path.open("rb") as file:
            for raw in file:
                match = _ASKED.fullmatch(raw)
                if not match:
                    break
                first, last = int(match[1] or match[2]), int(match[2])
                if match[1] is None:
                    self.lines.discard(last)
                else:
                    self.lines.update(range(first, last + 1))
                size += len(raw)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(size)
        sync_folder(folder.path)

    def about_to(self, lines: Sequence[int]) -> None:
        """Durable when this returns. `lines` ascend."""
        runs: list[list[int]] = []
        for line in lines:
            if runs and runs[-1][1] == line - 1:
                runs[-1][1] = line
            else:
                runs.append([line, line])
        _append(self._file, b"".join(b"%d-%d\n" % (first, last) for first, last in runs))

    def were_not(self, lines: Iterable[int]) -> None:
        if words := b"".join(b"-%d\n" % line for line in lines):
            _append(self._file, words)

    def close(self) -> None:
        self._file.close()


def answer_line(
    row: Row, *, status: int | None = None, body: bytes = b"", error: Mapping[str, str] | None = None
) -> bytes:
    """A line of answers.jsonl: the status and the JSON of a reply, or the error of a row that got none."""
    if status is None:
        return b'{"custom_id":"%s","response":null,"error":%s}\n' % (row.custom_id.encode(), json.dumps(error).encode())
    parts = row.custom_id.encode(), status, body
    return b'{"custom_id":"%s","response":{"status_code":%d,"body":%s},"error":null}\n' % parts


@lru_cache(1024)
def _n_lines(path: Path, changed_ns: int) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _append(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def spool_id(spool: Path) -> str:
    """A name of this folder's own, made once: what tells the spools of two machines apart."""
    path = spool / ".id"
    if not path.exists():
        spool.mkdir(parents=True, exist_ok=True)
        draft = spool / f".id-{os.getpid()}-{uuid4().hex}"
        with draft.open("wb", buffering=0) as file:
            _append(file, uuid4().hex[:12].encode())
        with suppress(FileExistsError):
            path.hardlink_to(draft)  # whoever is first names it
        draft.unlink()
        sync_folder(spool)
    return path.read_text("ascii")
