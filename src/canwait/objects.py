"""An object of S3, Google Cloud Storage or Azure as a file that comes and goes whole (obstore; extra `objects`)."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .addresses import Unusable, fault_of

if TYPE_CHECKING:
    from obstore import GetOptions, UpdateVersion
    from obstore.store import ClientConfig, ObjectStore

PART_BYTES = 64 << 20  # of one request to read; a dropped connection costs no more
CHUNK_BYTES = 4 << 20
MAX_CONDITIONAL_BYTES = 5_000_000_000  # one request to write; S3 takes 5 GiB, Azure 5,000 MiB


class Changed(Unusable):
    """Somebody else wrote the object in between."""


@dataclass(frozen=True, slots=True)
class Object:
    store: ObjectStore
    place: str

    def download(self, path: Path) -> UpdateVersion | None:
        """All of one version of the object into a file; which one. None, and no file, where there is no object.

        Raises Unusable, Changed when it is written meanwhile, and OSError for the file.
        """
        import obstore

        with _errors():
            try:
                meta = obstore.head(self.store, self.place)
            except FileNotFoundError:
                return None
        with path.open("wb") as file:
            for start in range(0, meta["size"], PART_BYTES):
                options: GetOptions = {"range": (start, min(start + PART_BYTES, meta["size"]))}
                if meta["e_tag"] is not None:
                    options["if_match"] = meta["e_tag"]
                with _errors():
                    part = obstore.get(self.store, self.place, options=options).stream(CHUNK_BYTES)
                while True:
                    with _errors():
                        chunk = next(part, None)
                    if chunk is None:
                        break
                    file.write(chunk)
            if file.tell() != meta["size"]:
                raise Unusable(f"{file.tell():,} of {meta['size']:,} bytes came")
        return _version(meta["e_tag"], meta["version"])

    def exists(self) -> bool:
        """Raises Unusable, also where we may not know."""
        import obstore

        with _errors():
            try:
                obstore.head(self.store, self.place)
            except FileNotFoundError:
                return False
        return True

    def upload(self, path: Path) -> None:
        """The file in the object's place, in one step, whatever is there. Raises Unusable."""
        import obstore

        with _errors():
            obstore.put(self.store, self.place, path, mode="overwrite")

    def exchange(self, path: Path, old: UpdateVersion | None) -> None:
        """The file in the place of this version, None for none. Raises Changed where another one is there, Unusable.

        It goes in one request; what is sent is mapped, not held.
        """
        import obstore

        if (n_bytes := path.stat().st_size) > MAX_CONDITIONAL_BYTES:
            raise Unusable(f"{n_bytes:,} bytes are more than a store takes in one step; use `mode: replace`")
        with path.open("rb") as file, _errors():
            body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if n_bytes else b""
            obstore.put(self.store, self.place, body, mode=old or "create", use_multipart=False)

    def delete(self) -> None:
        """Raises Unusable; none for an object that is not there."""
        import obstore

        with _errors(), suppress(FileNotFoundError):
            obstore.delete(self.store, self.place)


def open_object(uri: str) -> Object:
    """The object at s3://BUCKET/PATH and the like; credentials are the environment's. Raises Unusable."""
    if fault := fault_of(uri, database=False):
        raise Unusable(fault)
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise Unusable("obstore is not installed: pip install 'canwait[objects]'") from None
    folder, _, name = uri.rpartition("/")
    options: ClientConfig = {
        "timeout": "1h",  # of a whole request, and one may hold gigabytes
        "connect_timeout": "10s",
        "allow_http": _may_use_http(uri),  # options that are given replace those of the environment
    }
    try:
        return Object(from_url(folder, client_options=options, retry_config={"max_retries": 6}), unquote(name))
    except (BaseError, ValueError) as error:
        raise Unusable(_words(error)) from None


def _may_use_http(uri: str) -> bool:
    vendor = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[uri.partition("://")[0].lower()]
    return os.environ.get(f"{vendor}_ALLOW_HTTP", "").lower() in ("true", "1")


def _version(e_tag: str | None, version: str | None) -> UpdateVersion:
    known: UpdateVersion = {}
    if e_tag is not None:
        known["e_tag"] = e_tag
    if version is not None:
        known["version"] = version
    return known


@contextmanager
def _errors() -> Iterator[None]:
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError) as error:
        raise Changed("another writer changed it meanwhile") from error
    except BaseError as error:
        raise Unusable(_words(error)) from error


def _words(error: Exception) -> str:
    """A store's error in one line: no query strings, which may hold signatures, and nothing that is for debugging."""
    text = " ".join(str(error).partition("Debug source:")[0].split())
    return re.sub(r"\?\S+", "?...", text)[:500]
