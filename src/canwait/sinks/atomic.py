"""A file that takes another's place in one step, or leaves it alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..durable import sync_folder
from ..errors import SinkBusy


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that becomes `path`, durably, when the block ends well. On any error `path` is as it was.

    One writer at a time: a second one gets SinkBusy, in this process or another. After a kill the unfinished file
    (`.NAME.part`) lies beside the target until the next load of it, which takes it over.
    """
    part = path.with_name(f".{path.name}.part")
    with _claimed(part) as file:
        try:
            yield file
            file.flush()
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextmanager
def _claimed(part: Path) -> Iterator[BinaryIO]:
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SinkBusy(
                    "another load of this target is in progress", hint="run again when it has ended"
                ) from None
            if not _is_at(part, file):
                continue  # the writer before us finished in between and took the file away
            file.truncate(0)
            yield file
            return


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
