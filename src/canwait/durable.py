"""Files that stay: names that survive a power cut, and full disks told in one way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BlobError


def sync_folder(folder: Path) -> None:
    """When this returns, the names in the folder are on the disk; a rename alone may not be."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path, then: str = "run the same command again: nothing was lost") -> Iterator[None]:
    """Raises BlobError for whatever the disk refuses in the block; `then` is what to do once there is room."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"free some space, then {then}" if full else None
        raise BlobError(f"{folder} could not be written: {error.strerror or error}", hint=hint) from error
