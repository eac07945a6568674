"""One SQL text, two databases: SQLite (WAL, synchronous=FULL) and PostgreSQL. Everything dialect-specific stands here.

Statements live in `ledger.sql` and are run by name with named parameters. `transaction()` is the only way to write; on
both databases one writer runs at a time (SQLite by its write lock, PostgreSQL by an advisory lock), so the journal's
sequence numbers are committed in order and a reader's cursor never skips a change.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from .errors import LedgerError, LedgerUnreadable

Row = Mapping[str, Any]
Fault = Callable[[str], None]  # told "before NAME" / "after NAME" around every commit; drills kill the process here

_ADVISORY_LOCK = 7_236_001
_WORDS = {"sqlite": {"blob": "BLOB", "serial": "INTEGER PRIMARY KEY AUTOINCREMENT"},
          "postgres": {"blob": "BYTEA", "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}}  # fmt: skip
_TABLES = {"sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
           "postgres": "SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema()"}  # fmt: skip
_OURS = frozenset({"meta", "budget", "entry", "job", "plan", "shard", "intent", "journal"})


class Tx(Protocol):
    """An open transaction."""

    def run(self, name: str, /, **params: Any) -> list[Row]:
        """Run a named statement; its rows, empty for none."""
        ...

    def count(self, name: str, /, **params: Any) -> int:
        """Run a named statement; how many rows it changed."""
        ...


class Db:
    """A connection to the ledger's database, safe to share between threads: one transaction at a time."""

    dialect: str

    def __init__(self, url: str, fault: Fault | None = None) -> None:
        self.url = url
        self.fault = fault or (lambda where: None)
        self._lock = threading.RLock()
        self._statements = load_statements()

    @contextmanager
    def transaction(self, name: str) -> Iterator[Tx]:
        """One transaction: all of it or nothing. When the block has been left it has happened."""
        raise NotImplementedError

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        """A consistent view of the ledger; writes nothing."""
        raise NotImplementedError

    def migrate(self) -> None:
        """Bring an empty or older database to this version. Raises LedgerUnreadable for a newer or a foreign one."""
        scripts = migrations()
        with self.transaction("migrate"):
            found = self._version()
            if found > len(scripts):
                raise LedgerUnreadable(
                    url=redacted(self.url), why=f"it is of version {found}, this canwait knows {len(scripts)}"
                )
            for number, script in enumerate(scripts[found:], found + 1):
                for statement in split_script(script.format(**_WORDS[self.dialect])):
                    self._script(statement)
                self._script(f"UPDATE meta SET value = '{number}' WHERE name = 'version'")  # noqa: S608 our own number

    def _version(self) -> int:
        """The last migration it has seen, 0 for an empty database. Raises LedgerUnreadable for what is no ledger."""
        tables = {row["name"] for row in self._script(_TABLES[self.dialect])} - {"sqlite_sequence"}
        if not tables:
            return 0
        if not tables >= _OURS:
            raise LedgerUnreadable(url=redacted(self.url), why="it is a database of something else")
        return int(self._script("SELECT value FROM meta WHERE name = 'version'")[0]["value"])

    def _script(self, statement: str) -> list[Row]:
        """Run a statement that is not in ledger.sql."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def connect(url: str, fault: Fault | None = None) -> Db:
    """Open `sqlite:///path`, `sqlite://` (memory), `postgresql://…` or `postgres://…` and migrate it."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        db: Db = _Sqlite(url, rest.removeprefix("/") if rest else ":memory:", fault)
    elif scheme in ("postgresql", "postgres"):
        db = _Postgres(url, fault)
    else:
        raise LedgerUnreadable(url=redacted(url), why="expected sqlite:///FILE or postgresql://HOST/DATABASE")
    try:
        db.migrate()
    except BaseException:
        db.close()
        raise
    return db


def redacted(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def load_statements() -> dict[str, str]:
    """`ledger.sql` by name. A statement starts at `-- name: NAME`, its purpose stands on the next line."""
    text = resources.files("canwait").joinpath("ledger.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.M)[1:]
    return {name: body.strip().rstrip(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}


def migrations() -> list[str]:
    folder = resources.files("canwait").joinpath("migrations")
    return [f.read_text("utf-8") for f in sorted(folder.iterdir(), key=lambda f: f.name) if f.name.endswith(".sql")]


def split_script(script: str) -> list[str]:
    bare = re.sub(r"--[^\n]*", "", script)
    return [s.strip() for s in bare.split(";") if s.strip()]


class _Sqlite(Db):
    dialect = "sqlite"

    def __init__(self, url: str, path: str, fault: Fault | None) -> None:
        super().__init__(url, fault)
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._version()  # before the first pragma that writes: what is not ours stays as it is
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
        except (sqlite3.Error, OSError) as error:
            raise LedgerUnreadable(url=url, why=str(error)) from error

    @contextmanager
    def transaction(self, name: str) -> Iterator[Tx]:
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield _SqliteTx(self._connection, self._statements)
                self.fault(f"before {name}")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self.fault(f"after {name}")

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        with self._lock, self._errors():
            self._connection.execute("BEGIN")
            try:
                yield _SqliteTx(self._connection, self._statements)
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            full = "disk" in str(error) or "full" in str(error)
            hint = "free some space, then run the same command again: nothing was lost" if full else None
            raise LedgerError(f"the ledger at {self.url} could not be written: {error}", hint=hint) from error
        except sqlite3.DatabaseError as error:
            raise LedgerUnreadable(url=self.url, why=str(error)) from error

    def _script(self, statement: str) -> list[Row]:
        return [dict(row) for row in self._connection.execute(statement)]

    def close(self) -> None:
        self._connection.close()


class _SqliteTx:
    def __init__(self, connection: sqlite3.Connection, statements: Mapping[str, str]) -> None:
        self._connection, self._statements = connection, statements

    def run(self, name: str, /, **params: Any) -> list[Row]:
        return [dict(row) for row in self._connection.execute(self._statements[name], params)]

    def count(self, name: str, /, **params: Any) -> int:
        return self._connection.execute(self._statements[name], params).rowcount


class _Postgres(Db):
    dialect = "postgres"

    def __init__(self, url: str, fault: Fault | None) -> None:
        super().__init__(url, fault)
        try:
            import psycopg
            from psycopg.rows import dict_row
        except ImportError as error:
            raise LedgerUnreadable(
                url=redacted(url), why="psycopg is not installed: pip install 'canwait[postgres]'"
            ) from error
        self._psycopg = psycopg
        self._statements = {k: re.sub(r":(\w+)", r"%(\1)s", v.replace("%", "%%")) for k, v in self._statements.items()}
        try:
            self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=10)
        except psycopg.Error as error:
            raise LedgerUnreadable(url=redacted(url), why=str(error).splitlines()[0]) from error

    @contextmanager
    def transaction(self, name: str) -> Iterator[Tx]:
        with self._lock, self._errors(), self._connection.transaction():
            self._connection.execute(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            yield _PostgresTx(self._connection, self._statements)
            self.fault(f"before {name}")
        self.fault(f"after {name}")

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        with self._lock, self._errors(), self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield _PostgresTx(self._connection, self._statements)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise LedgerError(f"the ledger at {redacted(self.url)} could not be used: {words}") from error

    def _script(self, statement: str) -> list[Row]:
        cursor = self._connection.execute(statement)
        rows: list[Row] = [*cursor.fetchall()] if cursor.description else []
        return rows

    def close(self) -> None:
        self._connection.close()


class _PostgresTx:
    def __init__(self, connection: Any, statements: Mapping[str, str]) -> None:
        self._connection, self._statements = connection, statements

    def run(self, name: str, /, **params: Any) -> list[Row]:
        cursor = self._connection.execute(self._statements[name], params)
        return cursor.fetchall() if cursor.description else []

    def count(self, name: str, /, **params: Any) -> int:
        return int(self._connection.execute(self._statements[name], params).rowcount)
