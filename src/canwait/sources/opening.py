"""From what a job file says about its rows to a source that reads them."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from ..addresses import Unusable, database, fault_of, kind_of, local_path, shown
from ..compression import ENDINGS as CODECS
from ..compression import Codec, bare
from ..errors import Problem, SourceError
from ..objects import open_object
from ..types import Source
from . import RowSource
from .csv import CsvSource
from .files import CHUNK_BYTES, SourceFile
from .jsonl import JsonlSource
from .objects import fetched
from .parquet import ParquetSource
from .sql import SqlSource

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def open_source(
    source: Source, base_dir: Path, *, env: Mapping[str, str] = os.environ, scratch: Path | None = None
) -> RowSource:
    """The rows of a file, a query or an object; a relative path starts at `base_dir`.

    An object is copied into `scratch`, by default the system's folder for such. Raises SourceError when there is no
    such file, its format is not known, its header cannot be read, or a database or a store cannot be reached.
    """
    try:
        if source.sql is not None:
            return SqlSource(database(source.uri, base_dir, env), source.sql)
        if fault := fault_of(source.uri, database=False):
            raise Unusable(fault)
        if kind_of(source.uri) in ("sqlite", "postgres"):
            raise Unusable("a database needs `sql`, the query whose rows are wanted")
        kind, codec = _format(source)
        if (path := local_path(source.uri, base_dir)) is None:
            file = fetched(source.uri, open_object(source.uri), codec, scratch)
        else:
            _must_be_a_file(source.uri, path)
            file = SourceFile(source.uri, path, codec)
    except Unusable as error:
        raise _refused(shown(source.uri), str(error)) from None
    match kind:
        case "parquet":
            return ParquetSource(file)
        case "jsonl":
            return JsonlSource(file)
        case _:
            return CsvSource(file, "\t" if kind == "tsv" else ",")


def keep_stdin(source: Source, stdin: BinaryIO, folder: Path) -> Source:
    """The source "-" as a file in `folder`, as rows are read more than once. `source.format` must say what it is."""
    if source.format is None:
        raise _refused("-", f"standard input has no ending; expected `format`: {_known()}")
    path = folder.resolve() / f"stdin.{_format(source)[0]}"
    with path.open("wb") as file:
        shutil.copyfileobj(stdin, file, CHUNK_BYTES)
    return Source(str(path), source.key, source.format)


def _format(source: Source) -> tuple[str, Codec | None]:
    name, codec = bare(source.uri)
    ending = Path(name).suffix.lower() if source.format is None else f".{source.format.lower()}"
    if ending not in ENDINGS and source.format is not None:
        raise _refused(source.uri, f"unknown format {source.format!r}; expected one of: {_known()}")
    if ending not in ENDINGS:
        found = f"unknown ending {ending!r}" if ending else "no ending"
        expected = f"{', '.join(ENDINGS)}, also followed by {' or '.join(CODECS)}"
        raise _refused(source.uri, f"{found}; expected {expected}, or `format` set to one of: {_known()}")
    if codec and ENDINGS[ending] == "parquet":
        raise _refused(source.uri, f"a Parquet file inside {codec}; it is compressed as it is: unpack it")
    return ENDINGS[ending], codec


def _must_be_a_file(name: str, path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise _refused(name, "is a folder, expected a file")
    if path.exists():
        raise _refused(name, "is not a regular file, and rows are read more than once")
    if not path.parent.is_dir():
        raise _refused(name, f"no such file, and no folder {path.parent}")
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1, cutoff=0.5)
    raise _refused(name, f"no such file in {path.parent}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _known() -> str:
    return ", ".join(dict.fromkeys(ENDINGS.values()))


def _refused(name: str, why: str) -> SourceError:
    return SourceError(
        [Problem(name, None, None, "source", why)], hint="mend `source`, then plan again; nothing was sent"
    )
