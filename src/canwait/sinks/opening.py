"""From what a job file says about its target to a sink."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from ..addresses import Unusable, database, fault_of, kind_of, local_path, shown
from ..compression import Codec, bare
from ..errors import SinkError
from ..objects import open_object
from ..types import Load
from . import Sink
from .files import FileSink
from .formats import ENDINGS, FORMATS, Format
from .objects import ObjectSink
from .sql import FAILED, SqlSink


def open_sink(
    load: Load,
    base_dir: Path,
    key: str,
    *,
    source: Path | None = None,
    env: Mapping[str, str] = os.environ,
    scratch: Path | None = None,
) -> Sink:
    """The target of a job; a relative path starts at `base_dir`. Nothing is written yet, so that a plan can check it.

    What becomes an object is made in `scratch`, by default the system's folder for such. Raises SinkError when its
    format is not known, it is a folder, it or its failed rows would overwrite `source`, or it cannot be reached.
    """
    try:
        if load.table is not None:
            table = SqlSink(database(load.to, base_dir, env), load.table, load.mode, key)
            table.check()
            return table
        if fault := fault_of(load.to, database=False):
            raise Unusable(fault)
        if kind_of(load.to) in ("sqlite", "postgres"):
            raise Unusable("a database needs `table`, the name of the table to load into")
        format, codec = _format(load.to, load.format)
        if (path := local_path(load.to, base_dir)) is None:
            to, local = load.to, partial(FileSink, load.to, format=format, mode=load.mode, key=key, codec=codec)
            stored = ObjectSink(to, open_object(to), local, load.mode, scratch)
            stored.check()
            return stored
    except Unusable as error:
        raise SinkError(f"{shown(load.to)}: {error}", hint="mend `load`; docs/rows.md has the addresses") from None
    path = path.resolve()  # a link is written through, not replaced
    if path.exists() and not path.is_file():
        raise SinkError(f"{load.to} is not a file", hint="name a file in it, such as labels.parquet")
    for target in (path, local_path(failed_rows(load).to, base_dir)):
        if source is not None and target is not None and source.resolve() == target.resolve():
            raise SinkError(f"{load.to} would overwrite the source {source}", hint="load into another file")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SinkError(f"{load.to}: {folder} is not a folder that can be written to", hint="load into another folder")
    return FileSink(load.to, path, format, load.mode, key, codec)


def failed_rows(load: Load) -> Load:
    """Where the rows that failed go: beside the target, labels.csv.gz -> labels.failed.csv.gz, labels -> labels_failed."""
    if load.table is not None:
        return replace(load, table=load.table + FAILED, mode="replace")
    folder, slash, name = load.to.rpartition("/")
    stem = Path(bare(name)[0]).stem
    return replace(load, to=f"{folder}{slash}{stem}.failed{name.removeprefix(stem)}", mode="replace")


def discard(load: Load, base_dir: Path) -> None:
    """Take a target without rows away; a table stays, empty. Raises SinkError."""
    if load.table is not None:
        return
    if (path := local_path(load.to, base_dir)) is not None:
        path.unlink(missing_ok=True)
        return
    try:
        open_object(load.to).delete()
    except Unusable as error:
        raise SinkError(f"{load.to}: {error}; it is without rows", hint="take it away, or load again") from error


def read_back(path: Path, format: str | None = None) -> pa.Table:
    """What a target holds, as a reader sees it: text columns from CSV and TSV, inferred types from JSONL.

    All of it, in memory. Raises SinkError for a file that cannot be read.
    """
    try:
        return _format(str(path), format)[0].table(path)
    except (pa.ArrowException, OSError) as error:
        raise SinkError(f"{path}: {error}") from error


def _format(to: str, format: str | None) -> tuple[Format, Codec | None]:
    name, codec = bare(to)
    ending = f".{format.lower()}" if format is not None else Path(name).suffix.lower()
    if ending not in ENDINGS:
        found = f"unknown format {format!r}" if format is not None else f"unknown ending {ending!r}"
        raise SinkError(
            f"{to}: {found}", hint=f"expected {', '.join(ENDINGS)}, or `format` set to one of: {', '.join(FORMATS)}"
        )
    if codec and ENDINGS[ending] == "parquet":
        raise SinkError(f"{to}: Parquet is compressed as it is", hint=f"load into {name}")
    return FORMATS[ENDINGS[ending]], codec
