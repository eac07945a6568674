"""The rows of a query, from SQLite or PostgreSQL, in the order the query gives them; a line is the row's number from 1.

Every pass is one query in one read-only transaction, streamed. A pass that is complete says what the rows were; a later
one that finds others raises, so a fingerprint is always of the rows that were read.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..addresses import Database, Unusable, connect_postgres
from ..errors import Problem, SourceError
from . import BATCH_ROWS, RowBatch
from .digest import RowDigest

_KINDS = frozenset({str, int, float, bool, type(None), Decimal, date, datetime, time, timedelta, bytes, list, dict})
_is_query = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/|\()*(select|with)\b", re.I | re.S).match

Rows = Iterator[list[tuple[Any, ...]]]  # BATCH_ROWS at a time


class SqlSource:
    def __init__(self, db: Database, query: str) -> None:
        self.name = db.name
        self._db = db
        self._query = query
        self._seen: str | None = None  # the fingerprint of a complete pass
        if not _is_query(query):
            raise self._refused("source.sql: expected one query that begins with SELECT or WITH")
        with self._rows() as (names, _):
            self.columns = names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise self._refused(*(f"column {name!r} stands twice in the query" for name in twice))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        wanted = self.columns if columns is None else tuple(columns)
        digest = RowDigest(self.columns)
        first = 1
        with self._rows() as (names, chunks):
            if names != self.columns:
                raise self._changed()
            for chunk in chunks:
                values = dict(zip(names, map(list, zip(*chunk, strict=True)), strict=True))
                self._check_kinds(values, first)
                digest.add(values.values())
                yield RowBatch({name: values[name] for name in wanted}, range(first, first + len(chunk)))
                first += len(chunk)
        if self._seen not in (None, digest.hexdigest()):
            raise self._changed()
        self._seen = digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over names and values, of the pass that was made if there was one: equal to that of an equal frame."""
        if self._seen is None:
            for _ in self.batches(()):
                pass
        assert self._seen is not None
        return self._seen

    def _check_kinds(self, values: dict[str, list[Any]], first: int) -> None:
        for name, column in values.items():
            if strange := set(map(type, column)) - _KINDS:
                row = next(i for i, value in enumerate(column) if type(value) in strange)
                kind = type(column[row]).__name__
                why = f"column {name!r} holds a {kind}; cast it in the query, as in CAST({name} AS text)"
                raise SourceError([Problem(self.name, first + row, None, None, why)])

    @contextmanager
    def _rows(self) -> Iterator[tuple[tuple[str, ...], Rows]]:
        """The names of the columns, and the rows."""
        reading = _sqlite if self._db.kind == "sqlite" else _postgres
        try:
            with reading(self._db, self._query) as found:
                yield found
        except Unusable as error:
            raise self._refused(str(error)) from None

    def _refused(self, *why: str) -> SourceError:
        hint = "mend `source`, then plan again; nothing was sent"
        return SourceError([Problem(self.name, None, None, None, what) for what in why], hint=hint)

    def _changed(self) -> SourceError:
        return SourceError(
            [Problem(self.name, None, None, None, "the query gives other rows, or another order, than it gave before")],
            hint="give it an ORDER BY that leaves no two rows equal, and plan when nothing writes; nothing was sent",
        )


@contextmanager
def _sqlite(db: Database, query: str) -> Iterator[tuple[tuple[str, ...], Rows]]:
    if not Path(db.target).is_file():
        raise Unusable(f"no such file: {db.target}")
    try:
        with closing(
            sqlite3.connect(f"file:{quote(db.target)}?mode=ro", uri=True, timeout=30, check_same_thread=False)
        ) as connection:
            connection.execute("PRAGMA query_only = ON")
            cursor = connection.execute(query)
            yield tuple(d[0] for d in cursor.description), iter(lambda: cursor.fetchmany(BATCH_ROWS), [])
    except (sqlite3.Error, sqlite3.Warning) as error:  # a Warning: a second statement
        raise Unusable(db.words(error)) from error


@contextmanager
def _postgres(db: Database, query: str) -> Iterator[tuple[tuple[str, ...], Rows]]:
    with closing(connect_postgres(db)) as connection:
        import psycopg
        from psycopg.types.string import TextLoader

        connection.adapters.register_loader("uuid", TextLoader)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        try:
            connection.execute("SET LOCAL synchronize_seqscans = off")  # else a large table begins anywhere
            with connection.cursor(name="canwait") as cursor:
                cursor.execute(query.encode())  # one statement: DECLARE goes over the extended protocol
                names = tuple(d.name for d in cursor.description or ())
                yield names, iter(lambda: cursor.fetchmany(BATCH_ROWS), [])
        except psycopg.Error as error:
            raise Unusable(db.words(error)) from error
