"""From what a job file says about its rows to a source that reads them."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path
from typing import BinaryIO

from ..errors import Problem, SourceError
from ..types import Source
from . import RowSource
from .csv import CsvSource
from .files import CHUNK_BYTES, SourceFile
from .jsonl import JsonlSource
from .parquet import ParquetSource

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def open_source(source: Source, base_dir: Path) -> RowSource:
    """The rows of a file; a relative path starts at `base_dir`.

    Raises SourceError when there is no such file, its format is not known, or its header cannot be read.
    """
    kind = _format(source)
    path = base_dir / source.uri
    _must_be_a_file(source.uri, path)
    file = SourceFile(source.uri, path)
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
    path = folder.resolve() / f"stdin.{_format(source)}"
    with path.open("wb") as file:
        shutil.copyfileobj(stdin, file, CHUNK_BYTES)
    return Source(str(path), source.key, source.format)


def _format(source: Source) -> str:
    if source.format is not None:
        kind = ENDINGS.get(f".{source.format.lower()}")
        if kind is None:
            raise _refused(source.uri, f"unknown format {source.format!r}; expected one of: {_known()}")
        return kind
    ending = Path(source.uri).suffix.lower()
    if ending not in ENDINGS:
        found = f"unknown ending {ending!r}" if ending else "no ending"
        raise _refused(source.uri, f"{found}; expected {', '.join(ENDINGS)}, or `format` set to one of: {_known()}")
    return ENDINGS[ending]


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
