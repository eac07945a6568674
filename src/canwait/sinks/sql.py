"""Rows into a table of SQLite or PostgreSQL: merge or replace by the key, in one transaction."""

# ruff: noqa: S608  names are quoted by _quoted, values are parameters

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from ..addresses import Database, Unusable, connect_postgres
from ..errors import SinkBusy, SinkError
from .formats import as_text

if TYPE_CHECKING:
    import psycopg

FAILED = "_failed"
_STAGE = '"canwait rows"'  # a temporary table, of a name no target has: the new rows, before they touch it
_SENT = '"canwait key"'
_PATIENCE_S = 30.0  # for a writer of anything else in SQLite's file
_AGAIN = "mend it and run again: what is paid is kept"
_MAX_NAME_BYTES = 63  # PostgreSQL cuts longer names, silently
_is_table = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?").fullmatch


class SqlSink:
    """Readers see the table as it was until all rows are in it.

    merge    a row whose key is new is added; any other has its columns of ours replaced
    replace  the table holds exactly the new rows; it stays the same table, with its indexes and rights

    A table that is not there is made, its primary key the key column. One that lacks a column is refused.
    """

    def __init__(self, db: Database, table: str, mode: Literal["merge", "append", "replace"], key: str) -> None:
        self.name = f"{db.name} {table}"
        self._db = db
        self._mode = mode
        self._key = key
        self._parts = table.split(".")
        self._target = ".".join(map(_quoted, self._parts))
        longest = max(len(part.encode()) for part in self._parts) + len(FAILED)
        if not _is_table(table) or longest > _MAX_NAME_BYTES:
            what = f"at most {_MAX_NAME_BYTES - len(FAILED)} letters, digits and _, as in labels or sales.labels"
            raise SinkError(f"{self.name}: {table!r} is no name of a table", hint=f"expected {what}")
        if db.kind == "sqlite" and len(self._parts) > 1:
            raise SinkError(f"{self.name}: SQLite has no schemas", hint=f"write `table: {self._parts[-1]}`")
        if mode == "append":
            raise SinkError(f"{self.name}: a table has one row per key", hint="use `mode: merge` or `mode: replace`")

    def check(self) -> None:
        """Raises SinkError when the database cannot be reached, or its table has no such key. Writes nothing."""
        with self._transaction(writes=False) as tx:
            names = tx.columns(self._parts)
            if names and self._key not in names:
                raise self._misfit([self._key])

    def load(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
        columns, key = ", ".join(map(_quoted, schema.names)), _quoted(self._key)
        with self._transaction(writes=True) as tx:
            if too_long := [name for name in schema.names if len(name.encode()) > _MAX_NAME_BYTES]:
                raise SinkError(f"column {too_long[0]!r} has more than {_MAX_NAME_BYTES} bytes in its name")
            if not (there := tx.columns(self._parts)):
                kinds = ", ".join(f"{_quoted(f.name)} {tx.column_type(f.type)}" for f in schema)
                tx.run(f"CREATE TABLE {self._target} ({kinds}, PRIMARY KEY ({key}))")
            elif missing := [name for name in schema.names if name not in there]:
                raise self._misfit(missing)
            # Of the target's own types, so that the database says which value does not fit.
            staged = f"{columns}, CAST({key} AS TEXT) AS {_SENT}"
            tx.run(f"CREATE TEMPORARY TABLE {_STAGE} {tx.ends_with_it} AS SELECT {staged} FROM {self._target} LIMIT 0")
            tx.run(f'CREATE UNIQUE INDEX {tx.in_temporary}"canwait keys" ON {_STAGE} ({key})')
            rows = (row for batch in batches for row in self._rows(batch))
            tx.fill(f"{columns}, {_SENT}", rows, len(schema.names) + 1)
            for kept, sent in tx.run(
                f"SELECT CAST({key} AS TEXT), {_SENT} FROM {_STAGE} WHERE CAST({key} AS TEXT) <> {_SENT} LIMIT 1"
            ):  # '007' in a column of numbers would be the row of '7'
                what = f"the column {self._key!r} keeps the key {sent!r} as {kept!r}, which may be another row's"
                raise SinkError(what, hint="load into a table whose key column is text, or name keys as it keeps them")
            if self._mode == "replace":
                tx.run(f"DELETE FROM {self._target}")
            changes = ", ".join(f"{n} = excluded.{n}" for n in map(_quoted, schema.names) if n != key)
            tx.run(
                f"INSERT INTO {self._target} ({columns}) SELECT {columns} FROM {_STAGE} WHERE true "
                f"ON CONFLICT ({key}) DO {f'UPDATE SET {changes}' if changes else 'NOTHING'}"
            )
            return int(tx.run(f"SELECT count(*) FROM {self._target}")[0][0])

    def _rows(self, batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
        """The rows as the database takes them, and behind each its key as it stands."""
        keys = batch.column(self._key).to_pylist()
        if not all(keys):
            raise SinkError("a key is missing in the rows to load")
        columns = [list(map(_writer(self._db.kind, c.type), c.to_pylist())) for c in batch.columns]
        return zip(*columns, keys, strict=True)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[_Tx]:
        opened = _sqlite if self._db.kind == "sqlite" else _postgres
        try:
            with opened(self._db, self._parts, writes) as tx:
                yield tx
        except Unusable as error:
            unique = f"CREATE UNIQUE INDEX ON {self._target} ({_quoted(self._key)}): a merge needs one row per key"
            hint = unique if "ON CONFLICT" in str(error) else _AGAIN
            raise SinkError(f"{self.name}: {error}; the target is as it was", hint=hint) from None
        except SinkError as error:
            raise type(error)(f"{self.name}: {error}", hint=error.own_hint) from error

    def _misfit(self, missing: Sequence[str]) -> SinkError:
        hint = "add them with ALTER TABLE, or load into another table; canwait changes no table that is there"
        return SinkError(f"the table has no column {', '.join(map(repr, missing))}", hint=hint)


class _Tx(Protocol):
    """An open transaction."""

    ends_with_it: str  # makes a temporary table that goes with the transaction
    in_temporary: str  # stands before the name of an index on one

    def run(self, statement: str) -> list[tuple[Any, ...]]: ...

    def columns(self, table: Sequence[str]) -> set[str]:
        """Of an existing table; none where there is none."""
        ...

    def column_type(self, kind: pa.DataType) -> str:
        """Raises SinkError where there is none for it."""
        ...

    def fill(self, columns: str, rows: Iterable[tuple[Any, ...]], n_columns: int) -> None:
        """Rows into the temporary table."""
        ...


# --------------------------------------------------------------------------------------------------------------- SQLite


@contextmanager
def _sqlite(db: Database, table: Sequence[str], writes: bool) -> Iterator[_Tx]:
    path = Path(db.target)
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Nothing is made by looking: a database that is not there yet is an empty one in memory.
        place = path if writes or path.exists() else ":memory:"
        with closing(sqlite3.connect(place, isolation_level=None, timeout=_PATIENCE_S)) as connection:
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield _SqliteTx(connection)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT" if writes else "ROLLBACK")
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise SinkBusy("another writer holds the database", hint="run again when it has ended") from error
        raise Unusable(db.words(error)) from error
    except sqlite3.Error as error:
        raise Unusable(db.words(error)) from error
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from error


class _SqliteTx:
    ends_with_it = ""  # it goes with the connection
    in_temporary = "temp."

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement).fetchall()

    def columns(self, table: Sequence[str]) -> set[str]:
        return {name for (name,) in self._connection.execute("SELECT name FROM pragma_table_info(?)", [table[-1]])}

    def column_type(self, kind: pa.DataType) -> str:
        match _family(kind):
            case "integer" | "boolean":
                return "INTEGER"
            case "float":
                return "REAL"
            case "bytes":
                return "BLOB"
        return "TEXT"  # decimals and times, too: exact, and in their order as far as ISO 8601 has it

    def fill(self, columns: str, rows: Iterable[tuple[Any, ...]], n_columns: int) -> None:
        places = ", ".join("?" * n_columns)
        self._connection.executemany(f"INSERT INTO {_STAGE} ({columns}) VALUES ({places})", rows)


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


@contextmanager
def _postgres(db: Database, table: Sequence[str], writes: bool) -> Iterator[_Tx]:
    with closing(connect_postgres(db)) as connection:
        import psycopg

        try:
            connection.read_only = not writes
            tx = _PostgresTx(connection)
            if writes and not tx.is_alone(table):
                raise SinkBusy("another load of this target is in progress", hint="run again when it has ended")
            yield tx
        except psycopg.Error as error:
            raise Unusable(db.words(error)) from error
        try:
            connection.commit()
        except psycopg.OperationalError as error:
            why = f"{db.words(error)}; whether the rows are in it cannot be told"
            raise SinkError(why, hint="run again: loading the same rows twice changes nothing") from error
        except psycopg.Error as error:
            raise Unusable(db.words(error)) from error


class _PostgresTx:
    ends_with_it = "ON COMMIT DROP"
    in_temporary = ""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def is_alone(self, table: Sequence[str]) -> bool:
        """Whether no other load of this table is in progress; from now on none begins."""
        lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 7236002))"
        row = self._connection.execute(lock, ["canwait load " + ".".join(table)]).fetchone()
        return bool(row and row[0])

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def columns(self, table: Sequence[str]) -> set[str]:
        wanted = "attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        name = ".".join(map(_quoted, table))
        return {n for (n,) in self._connection.execute(f"SELECT attname FROM pg_attribute WHERE {wanted}", [name])}

    def column_type(self, kind: pa.DataType) -> str:
        if isinstance(kind, pa.TimestampType):
            return "timestamptz" if kind.tz else "timestamp"
        if isinstance(kind, pa.Decimal128Type):
            return f"numeric({kind.precision}, {kind.scale})"
        names = {"text": "text", "integer": "bigint", "float": "double precision", "boolean": "boolean"}
        names |= {"decimal": "numeric", "date": "date", "json": "jsonb", "bytes": "bytea"}
        return names[_family(kind)]

    def fill(self, columns: str, rows: Iterable[tuple[Any, ...]], n_columns: int) -> None:
        import psycopg

        with self._connection.cursor() as cursor, cursor.copy(f"COPY {_STAGE} ({columns}) FROM STDIN".encode()) as copy:
            for row in rows:
                try:
                    copy.write_row(row)
                except psycopg.DataError as error:  # a NUL, which PostgreSQL has no place for
                    raise SinkError(f"key {row[0]!r}: {error}", hint="load into a file or into SQLite") from error


# --------------------------------------------------------------------------------------------------------------- values

_FAMILIES: list[tuple[Callable[[Any], bool], str]] = [
    (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), "text"),
    (pa.types.is_integer, "integer"),
    (pa.types.is_floating, "float"),
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_decimal, "decimal"),
    (pa.types.is_timestamp, "time"),
    (pa.types.is_date, "date"),
    (lambda kind: pa.types.is_nested(kind), "json"),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "bytes"),
]


def _family(kind: pa.DataType) -> str:
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    for belongs, family in _FAMILIES:
        if belongs(kind):
            return family
    raise SinkError(f"a table has no column for {kind}", hint="load into a .parquet file")


def _writer(database: Literal["sqlite", "postgres"], kind: pa.DataType) -> Callable[[Any], Any]:
    """From a Python value to one the database takes: JSON is text, and so is in SQLite what it has no type for."""
    family = _family(kind)
    if family == "json" or (database == "sqlite" and family in ("decimal", "time", "date")):
        return lambda value: None if value is None else as_text(value)
    return lambda value: value


def _quoted(name: str) -> str:
    if "\0" in name:
        raise SinkError(f"{name!r} cannot be the name of a column")
    return '"' + name.replace('"', '""') + '"'
