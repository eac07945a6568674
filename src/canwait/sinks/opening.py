"""From what a job file says about its target to a sink."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from ..errors import SinkError
from ..types import Load
from . import Sink
from .files import FileSink
from .formats import ENDINGS, FORMATS


def open_sink(load: Load, base_dir: Path, key: str, *, source: Path | None = None) -> Sink:
    """The target of a job; a relative path starts at `base_dir`. Nothing is written yet, so that a plan can check it.

    Raises SinkError when its format is not known, it is a folder, or it or its failed rows would overwrite `source`.
    """
    kind = _format(load.to, load.format)
    path = (base_dir / load.to).resolve()  # a link is written through, not replaced
    if path.exists() and not path.is_file():
        raise SinkError(f"{load.to} is not a file", hint="name a file in it, such as labels.parquet")
    for target in (path, (base_dir / failed_path(load)).resolve()):
        if source is not None and source.resolve() == target:
            raise SinkError(f"{load.to} would overwrite the source {source}", hint="load into another file")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SinkError(f"{load.to}: {folder} is not a folder that can be written to", hint="load into another folder")
    return FileSink(load.to, path, FORMATS[kind], load.mode, key)


def failed_path(load: Load) -> str:
    """Where the rows that failed go: beside the target, labels.parquet -> labels.failed.parquet."""
    path = Path(load.to)
    return str(path.with_name(f"{path.stem}.failed{path.suffix}"))


def read_back(path: Path, format: str | None = None) -> pa.Table:
    """What a target holds, as a reader sees it: text columns from CSV and TSV, inferred types from JSONL.

    All of it, in memory. Raises SinkError for a file that cannot be read.
    """
    try:
        return FORMATS[_format(str(path), format)].table(path)
    except (pa.ArrowException, OSError) as error:
        raise SinkError(f"{path}: {error}") from error


def _format(to: str, format: str | None) -> str:
    if "://" in to:
        raise SinkError(
            f"{to}: rows can be loaded into files only", hint=f"name a file that ends with {', '.join(ENDINGS)}"
        )
    ending = f".{format.lower()}" if format is not None else Path(to).suffix.lower()
    if ending not in ENDINGS:
        found = f"unknown format {format!r}" if format is not None else f"unknown ending {ending!r}"
        raise SinkError(
            f"{to}: {found}", hint=f"expected {', '.join(ENDINGS)}, or `format` set to one of: {', '.join(FORMATS)}"
        )
    return ENDINGS[ending]
