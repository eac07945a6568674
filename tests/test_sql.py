"""Promises of rows in databases: exact values, one query and one transaction, and no password is ever shown."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canwait.addresses import fault_of, shown
from canwait.errors import SinkBusy, SinkError, SourceError
from canwait.sinks.opening import discard, failed_rows, open_sink
from canwait.sinks.sql import SqlSink
from canwait.sources import BATCH_ROWS, RowSource
from canwait.sources.frames import from_frame
from canwait.sources.opening import open_source
from canwait.types import Load, Source

SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string()), ("score", pa.int64())])
AT = datetime(2026, 8, 1, 12, 0, 0, 250_000, tzinfo=UTC)
MODES = ["merge", "replace"]


class Base:
    """A database of one kind, seen from outside canwait."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._folder = url, folder

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        if self.url.startswith("sqlite"):
            with closing(sqlite3.connect(self._folder / "a b.db", isolation_level=None)) as connection:
                return connection.execute(statement, values).fetchall()
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.replace("?", "%s").encode(), values)
            return cursor.fetchall() if cursor.description else []

    def read(self, query: str) -> RowSource:
        return open_source(Source(self.url, "id", sql=query), self._folder)

    def sink(self, mode: Any = "merge", table: str = "labels") -> SqlSink:
        found = open_sink(Load(self.url, mode, table=table), self._folder, "id")
        assert isinstance(found, SqlSink)
        return found

    def load(self, *rows: tuple[Any, ...], mode: str = "merge", table: str = "labels") -> int:
        return self.sink(mode, table).load([batch(*rows)], SCHEMA)


@pytest.fixture(params=["sqlite", "postgres"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    if request.param == "sqlite":
        return Base("sqlite:///a b.db", tmp_path)
    return Base(request.getfixturevalue("postgres_url"), tmp_path)


def batch(*rows: tuple[Any, ...], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def rows(of: RowSource, *columns: str) -> list[tuple[Any, ...]]:
    found = of.batches(columns or None)
    return [(line, *row) for b in found for line, *row in zip(b.lines, *b.columns.values(), strict=True)]


# ---------------------------------------------------------------------------------------------------------------- rows


def test_a_query_is_rows_in_its_order(base: Base) -> None:
    """Values are Python's, lines are row numbers, and only the columns that are asked for come."""
    base.run("CREATE TABLE t (id text, n bigint, x double precision, note text)")
    for row in [("b", 2**62, 0.5, None), ("a", -1, 1e300, "ü\n'; --"), ("000", 0, 0.0, "")]:
        base.run("INSERT INTO t VALUES (?, ?, ?, ?)", *row)
    of = base.read("-- newest first\nWITH w AS (SELECT * FROM t) SELECT * FROM w ORDER BY n DESC;")
    assert of.columns == ("id", "n", "x", "note")
    assert rows(of) == [(1, "b", 2**62, 0.5, None), (2, "000", 0, 0.0, ""), (3, "a", -1, 1e300, "ü\n'; --")]
    assert rows(of, "note", "id") == [(1, None, "b"), (2, "", "000"), (3, "ü\n'; --", "a")]


def test_rows_stream_in_batches(base: Base) -> None:
    """However many rows there are, a batch is of bounded size and lines go on counting; no row is no batch."""
    base.run("CREATE TABLE t (id text)")
    n = BATCH_ROWS * 2 + 1
    numbers = f"WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {n}) SELECT id FROM n"
    found = list(base.read(numbers).batches())
    assert [len(b.lines) for b in found] == [BATCH_ROWS, BATCH_ROWS, 1]
    assert (
        [line for b in found for line in b.lines] == [v for b in found for v in b.columns["id"]] == [*range(1, n + 1)]
    )
    assert list(base.read("SELECT 1 AS id WHERE 1 = 0").batches()) == []


def test_postgres_types_are_python_values(postgres_url: str, tmp_path: Path) -> None:
    """Exact numbers, times, bytes, arrays and JSON keep their types; a uuid is its text, so that it can be a key."""
    query = """SELECT '6ecd8c99-4036-403d-bf84-cf8400f67836'::uuid AS id, 1.10::numeric AS usd, true AS ok,
        timestamptz '2026-08-01 12:00:00.25+00' AS at, date '2026-08-01' AS day, '\\x00ff'::bytea AS raw,
        ARRAY[1, NULL] AS n, '{"a": [1, null]}'::jsonb AS j, 'x'::char(3) AS c, 'a%sb' AS pct, NULL::int AS none"""
    read = rows(Base(postgres_url, tmp_path).read(query))[0]
    assert read == (
        1, "6ecd8c99-4036-403d-bf84-cf8400f67836", Decimal("1.10"), True, AT, date(2026, 8, 1), b"\0\xff", [1, None],
        {"a": [1, None]}, "x  ", "a%sb", None,
    )  # fmt: skip
    assert str(read[2]) == "1.10"


def test_a_type_that_is_no_value_is_named(postgres_url: str, tmp_path: Path) -> None:
    """What has no Python value of its own is an error with row and column and a way out."""
    of = Base(postgres_url, tmp_path).read("SELECT n AS id, int4range(n, 5) AS r FROM generate_series(1, 2) n")
    with pytest.raises(
        SourceError, match=r":1: column 'r' holds a Range; cast it in the query, as in CAST\(r AS text\)"
    ):
        rows(of)


def test_fingerprints_follow_the_rows(base: Base) -> None:
    """Equal rows are equal fingerprints, whether they were read before, and whether a frame or a query gives them."""
    base.run("CREATE TABLE t (id text, n bigint)")
    base.run("INSERT INTO t VALUES ('a', 1), ('b', NULL)")
    of, again = base.read("SELECT * FROM t ORDER BY id"), base.read("SELECT id, n FROM t ORDER BY 1")
    rows(of, "id")
    first = of.fingerprint()
    assert first == again.fingerprint() == from_frame(pa.table({"id": ["a", "b"], "n": [1, None]})).fingerprint()
    base.run("UPDATE t SET n = 2 WHERE id = 'a'")
    assert base.read("SELECT * FROM t ORDER BY id").fingerprint() != first


def test_a_query_that_gives_other_rows_is_refused(base: Base) -> None:
    """A pass that finds other rows, another order or other columns than the last one is an error, never a mixture."""
    base.run("CREATE TABLE t (id text)")
    base.run("INSERT INTO t VALUES ('a')")
    of = base.read("SELECT * FROM t")
    rows(of)
    base.run("INSERT INTO t VALUES ('b')")
    with pytest.raises(SourceError, match="gives other rows, or another order, than it gave before") as caught:
        rows(of)
    assert "ORDER BY" in str(caught.value.own_hint)
    base.run("ALTER TABLE t ADD COLUMN more text")
    with pytest.raises(SourceError, match="gives other rows"):
        rows(of)


def test_one_pass_sees_one_state(base: Base) -> None:
    """Rows that are written while a query is read are not in it: neither half of them nor all."""
    base.run("CREATE TABLE t (id bigint PRIMARY KEY, note text)")
    base.run("WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 5000) "
             "INSERT INTO t SELECT id, 'old' FROM n")  # fmt: skip
    if base.url.startswith("sqlite"):
        base.run("PRAGMA journal_mode = WAL")  # without it a writer waits for the reader
    batches = base.read("SELECT * FROM t ORDER BY id").batches()
    first = next(batches)
    base.run("UPDATE t SET note = 'new'")
    base.run("DELETE FROM t WHERE id > 4000")
    assert [n for b in [first, *batches] for n in b.columns["note"]] == ["old"] * 5000


@pytest.mark.parametrize(
    "query",
    ["DELETE FROM t", "SELECT 1; DELETE FROM t", "SELECT 1; COMMIT; DROP TABLE t", "", "PRAGMA writable_schema = on",
     "WITH gone AS (DELETE FROM t RETURNING id) SELECT * FROM gone", "EXPLAIN SELECT 1", "INSERT INTO t VALUES ('b')",
     "WITH x(id) AS (SELECT 'b') INSERT INTO t SELECT id FROM x", "/* SELECT */ DROP TABLE t"],
)  # fmt: skip
def test_a_source_writes_nothing(base: Base, query: str) -> None:
    """Whatever the text is, the database is as it was: only one SELECT is run, and read-only."""
    base.run("CREATE TABLE t (id text)")
    base.run("INSERT INTO t VALUES ('a')")
    with pytest.raises(SourceError):
        rows(base.read(query))
    assert base.run("SELECT id FROM t") == [("a",)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT nope FROM t", "nope"),
        ("SELECT 1 AS a, 2 AS a", "column 'a' stands twice in the query"),
        ("SELECT * FROM missing", "missing"),
    ],
)
def test_a_query_that_fails_says_what_the_database_says(base: Base, query: str, words: str) -> None:
    """The database's own words, with the source they are about."""
    base.run("CREATE TABLE t (id text)")
    with pytest.raises(SourceError, match=words) as caught:
        base.read(query)
    assert str(caught.value).startswith(base.url)


def test_a_database_file_is_never_made_by_reading(tmp_path: Path) -> None:
    """A wrong path is an error, not an empty database."""
    with pytest.raises(SourceError, match="no such file"):
        open_source(Source("sqlite:///nope.db", "id", sql="SELECT 1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    """A file that is no database says so."""
    (tmp_path / "a.db").write_bytes(b"no database at all, but long enough to be looked at as one" * 20)
    with pytest.raises(SourceError, match=r"sqlite:///a\.db: .*not a database"):
        open_source(Source("sqlite:///a.db", "id", sql="SELECT * FROM t"), tmp_path)


def test_a_lost_connection_is_an_error(postgres_url: str, tmp_path: Path) -> None:
    """A server that goes away in the middle of the rows is no end of the rows."""
    base = Base(postgres_url, tmp_path)
    batches = base.read("SELECT n AS id FROM generate_series(1, 10000) n").batches()
    next(batches)
    others = "pid <> pg_backend_pid() AND application_name = 'canwait' AND datname = current_database()"
    base.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    with pytest.raises(SourceError, match="terminat"):
        list(batches)


# -------------------------------------------------------------------------------------------------------------- secrets


def test_a_password_comes_from_the_environment_and_is_never_shown(postgres_url: str, tmp_path: Path) -> None:
    """Address or password are what a variable or its file holds; no error and no traceback has the password."""
    secret = "p@ss/w:rd?1"
    rest = postgres_url.partition("@")[2]
    query = "SELECT 1 AS id"
    (tmp_path / "key").write_text(postgres_url + "\n")
    for env in ({"DB": postgres_url}, {"DB_FILE": str(tmp_path / "key")}):
        of = open_source(Source("${DB}", "id", sql=query), tmp_path, env=env)
        assert (of.name, rows(of)) == ("${DB}", [(1, 1)])
    given = Source(f"postgresql://postgres:${{PW}}@{rest}", "id", sql=query)
    assert rows(open_source(given, tmp_path, env={"PW": secret})) == [(1, 1)]  # trusted: quoting is what is shown

    wrong = {"PW": secret, "DB": f"postgresql://u:{secret}@localhost:1/x", "ODD": f"postgresql://u:{secret}%zz@h/x"}
    for uri in (f"postgresql://nobody:${{PW}}@{rest}", "${DB}", "${ODD}"):
        for open_it in (lambda u: open_source(Source(u, "id", sql=query), tmp_path, env=wrong),
                        lambda u: open_sink(Load(u, table="t"), tmp_path, "id", env=wrong)):  # fmt: skip
            with pytest.raises((SourceError, SinkError)) as caught:
                open_it(uri)
            said = "".join(traceback.format_exception(caught.value, chain=True)) + repr(caught.value.problem)
            assert "p@ss" not in said
            assert "p%40ss" not in said


@pytest.mark.parametrize(
    "uri",
    ["postgresql://u:secret@h/db", "postgresql://u@h/db?password=secret", "postgres://u:a${B}secret@h/db",
     "postgresql://u:se/c@ret@h/db"],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_hidden(tmp_path: Path, uri: str) -> None:
    """A job file is shared: a password in it is an error that does not repeat it."""
    assert "expected ${NAME}" in str(fault_of(uri, database=True))
    assert "***" in shown(uri)
    assert "secret" not in shown(uri)
    assert "ret@" not in shown(uri)
    for open_it in (lambda: open_source(Source(uri, "id", sql="SELECT 1"), tmp_path),
                    lambda: open_sink(Load(uri, table="t"), tmp_path, "id")):  # fmt: skip
        with pytest.raises((SourceError, SinkError), match=r"expected \$\{NAME\}") as caught:
            open_it()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "env", "words"),
    [
        ("${DB}", {}, "DB is not set; the address needs it, or DB_FILE"),
        ("${DB}", {"DB_FILE": "nowhere"}, "the file named by DB_FILE cannot be used: No such file"),
        (
            "${DB}",
            {"DB": "mysql://h/x"},
            "${DB} holds no database; expected sqlite:///FILE or postgresql://HOST/DATABASE",
        ),
        ("a.db", {}, "'a.db' is no database; expected sqlite:///FILE"),
        ("sqlite://", {}, "sqlite:// names no file; expected sqlite:///FILE"),
    ],
)
def test_an_address_that_is_no_database_says_so(tmp_path: Path, uri: str, env: dict[str, str], words: str) -> None:
    """What is missing or wrong about an address is said before anything is opened."""
    with pytest.raises(SourceError) as caught:
        open_source(Source(uri, "id", sql="SELECT 1"), tmp_path, env=env)
    assert words in str(caught.value)


def test_a_database_without_a_query_or_a_table_is_refused(tmp_path: Path) -> None:
    """The address alone does not say which rows."""
    with pytest.raises(SourceError, match="a database needs `sql`"):
        open_source(Source("sqlite:///a.db", "id"), tmp_path)
    with pytest.raises(SinkError, match="a database needs `table`"):
        open_sink(Load("postgresql://h/a"), tmp_path, "id")


# -------------------------------------------------------------------------------------------------------------- tables


def test_values_lie_in_a_table_as_documented(base: Base) -> None:
    """PostgreSQL keeps every type; SQLite has text for what it has no type for, exact and as files have it."""
    schema = pa.schema([
        ("id", pa.string()), ("ok", pa.bool_()), ("x", pa.float64()), ("n", pa.int64()), ("tags", pa.list_(pa.string())),
        ("who", pa.struct([("name", pa.string())])), ("v", pa.list_(pa.float32(), 2)), ("raw", pa.binary()),
        ("_cost_usd", pa.decimal128(24, 12)), ("_produced_at", pa.timestamp("us", "UTC")), ("no", pa.string()),
    ])  # fmt: skip
    usd = Decimal("0.000001230000")
    row = ("1", True, 0.1, 2**62, ["a", 'ü"'], {"name": "b"}, [0.5, 1.0], b"\0\xff", usd, AT, None)
    for _ in range(2):
        assert base.sink().load([batch(row, schema=schema)], schema) == 1
    found = base.run("SELECT * FROM labels")[0]
    if base.url.startswith("sqlite"):
        assert found == (
            "1", 1, 0.1, 2**62, '["a","ü\\""]', '{"name":"b"}', "[0.5,1.0]", b"\0\xff", "0.000001230000",
            "2026-08-01T12:00:00.250000Z", None,
        )  # fmt: skip
        assert base.run("SELECT json_extract(tags, '$[0]'), datetime(_produced_at) FROM labels") == [
            ("a", "2026-08-01 12:00:00")
        ]
    else:
        assert found == row
        assert base.run("SELECT data_type FROM information_schema.columns WHERE column_name = 'tags'") == [("jsonb",)]


def test_a_merge_replaces_by_key_and_a_replace_leaves_the_new_rows(base: Base) -> None:
    """Known keys change, other rows and other columns stay, and loading twice is loading once."""
    assert base.load(("1", "a", 1), ("2", "b", 2)) == 2
    base.run("ALTER TABLE labels ADD COLUMN mine text DEFAULT 'kept'")
    for _ in range(2):
        assert base.load(("2", None, 20), ("3", "c", 3)) == 3
    read = "SELECT * FROM labels ORDER BY id"
    assert base.run(read) == [("1", "a", 1, "kept"), ("2", None, 20, "kept"), ("3", "c", 3, "kept")]
    assert base.load(("9", "z", 9), mode="replace") == 1
    assert base.run(read) == [("9", "z", 9, "kept")]
    assert base.load(mode="replace") == 0


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
                            st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
                  unique_by=lambda row: row[0], max_size=6),
)  # fmt: skip
def test_any_text_survives_a_table(base: Base, rows: list[tuple[str, str | None]]) -> None:
    """Keys and values come back as they were, quotes, backslashes and controls included."""
    base.load(*((key, label, 1) for key, label in rows), mode="replace")
    assert dict(base.run("SELECT id, label FROM labels")) == dict(rows)


def test_awkward_names_are_only_names(base: Base) -> None:
    """Columns are quoted: a name that looks like SQL, or is a keyword, is a column and nothing else."""
    names = ["id", "select", 'a"b', "x); DROP TABLE labels; --", "Ü %s ?"]
    schema = pa.schema([(name, pa.string()) for name in names])
    for _ in range(2):
        assert base.sink().load([batch(("1", "a", "b", "c", "d"), schema=schema)], schema) == 1
    assert base.run("SELECT * FROM labels") == [("1", "a", "b", "c", "d")]


@pytest.mark.parametrize("table", ['a"b', "a b", "a.b.c", "", "1a", "a;--", "ä" * 40, "a.", "x" * 57])
def test_a_table_is_a_plain_name(base: Base, table: str) -> None:
    """A table's name is checked before anything is opened."""
    with pytest.raises(SinkError, match="is no name of a table"):
        base.sink(table=table)


def test_a_schema_is_postgresqls(postgres_url: str, tmp_path: Path) -> None:
    """SCHEMA.TABLE is honoured there, and refused for SQLite."""
    base = Base(postgres_url, tmp_path)
    base.run("CREATE SCHEMA sales")
    base.load(("1", "a", 1), table="sales.labels")
    assert base.run("SELECT id FROM sales.labels") == [("1",)]
    with pytest.raises(SinkError, match="SQLite has no schemas"):
        Base("sqlite:///a b.db", tmp_path).sink(table="sales.labels")


def test_failed_rows_have_a_table_of_their_own(base: Base) -> None:
    """They replace those of the load before; without any the table stays, empty."""
    failed = failed_rows(Load(base.url, table="labels"))
    sink = open_sink(failed, base._folder, "id")
    assert sink.load([batch(("1", "a", 1))], SCHEMA) == 1
    assert sink.load([], SCHEMA) == 0
    discard(failed, base._folder)
    assert base.run("SELECT count(*) FROM labels_failed") == [(0,)]


@pytest.mark.parametrize(
    ("table", "words", "hint"),
    [
        ("CREATE TABLE labels (id text PRIMARY KEY, label text)", "the table has no column 'score'", "ALTER TABLE"),
        ("CREATE TABLE labels (id text, label text, score bigint)", "ON CONFLICT", "CREATE UNIQUE INDEX"),
        (
            "CREATE TABLE labels (id text PRIMARY KEY, label text, score bigint, more text NOT NULL)",
            "(?i)not.null",
            "run again",
        ),
        (
            "CREATE TABLE labels (id text PRIMARY KEY, label text CHECK (label <> 'no'), score bigint)",
            "(?i)check",
            "run again",
        ),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_table_that_does_not_fit_is_refused_and_left_alone(
    base: Base, mode: str, table: str, words: str, hint: str
) -> None:
    """A missing column, a key that is not unique, a constraint: the error names it, and no row has changed."""
    base.run(table)
    with pytest.raises(SinkError, match=words) as caught:
        base.load(("1", "a", 1), ("2", "no", 2), mode=mode)
    assert hint in str(caught.value.own_hint)
    assert base.run("SELECT count(*) FROM labels") == [(0,)]


def test_a_table_without_the_key_is_refused_before_anything_is_paid(base: Base) -> None:
    """Opening a sink looks at the table, and writes nothing."""
    base.run("CREATE TABLE labels (other text)")
    with pytest.raises(SinkError, match="the table has no column 'id'"):
        base.sink()
    base.sink(table="not_there_yet")
    with pytest.raises(SinkError, match="a table has one row per key"):
        base.sink("append", "not_there_yet")
    with pytest.raises((sqlite3.Error, psycopg.Error)):
        base.run("SELECT * FROM not_there_yet")


def test_opening_makes_no_database_file(tmp_path: Path) -> None:
    """A plan that checks its target leaves no file; the load makes it, and its folder."""
    sink = open_sink(Load("sqlite:///new/a.db", table="labels"), tmp_path, "id")
    assert list(tmp_path.iterdir()) == []
    assert sink.load([batch(("1", "a", 1))], SCHEMA) == 1


@pytest.mark.parametrize(("kept", "sent"), [("7", "007"), ("10", "1e1"), ("7", " 7")])
def test_a_key_that_the_table_keeps_otherwise_is_refused(base: Base, kept: str, sent: str) -> None:
    """In a column of numbers '007' would become the row of '7': nothing is loaded, and the row of '7' stays."""
    base.run("CREATE TABLE labels (id integer PRIMARY KEY, label text, score integer)")
    assert base.load((kept, "old", 1), ("12", "x", 2)) == 2  # keys that it keeps as they are
    with pytest.raises(SinkError, match=r"another row|integer"):
        base.load((sent, "new", 1))
    assert base.run("SELECT label FROM labels WHERE id = ?", int(kept)) == [("old",)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([("1", "a", 1), ("1", "b", 2)], "(?i)unique"),
        ([(None, "a", 1)], "a key is missing"),
        ([("", "a", 1)], "a key is"),
    ],
    ids=["twice", "null", "empty"],
)
def test_rows_without_a_key_of_their_own_are_refused(base: Base, mode: str, bad: list[Any], words: str) -> None:
    """Two rows of one key, or one without, would not be found again: nothing is loaded."""
    base.load(("7", "old", 7))
    with pytest.raises(SinkError, match=words):
        base.load(*bad, mode=mode)
    assert base.run("SELECT * FROM labels") == [("7", "old", 7)]


def test_a_nul_has_no_place_in_postgresql(postgres_url: str, tmp_path: Path) -> None:
    """The row is named; SQLite takes it."""
    with pytest.raises(SinkError, match=r"key 'k1': .*NUL") as caught:
        Base(postgres_url, tmp_path).load(("k1", "a\0b", 1))
    assert "SQLite" in str(caught.value.own_hint)
    lite = Base("sqlite:///a b.db", tmp_path)
    lite.load(("k1", "a\0b", 1))
    assert lite.run("SELECT label FROM labels") == [("a\0b",)]


# -------------------------------------------------------------------------------------------------------- all or none


class Lost(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("there", [True, False])
def test_rows_that_stop_coming_leave_the_table_as_it_was(base: Base, mode: str, there: bool) -> None:
    """Whatever is raised while rows are read, a table keeps its rows and a new one is not there."""
    if there:
        base.load(("1", "old", 1))

    def stopping() -> Iterator[pa.RecordBatch]:
        for n in range(3):
            yield batch((str(n), "new", n))
        raise Lost

    with pytest.raises(Lost):
        base.sink(mode).load(stopping(), SCHEMA)
    if there:
        assert base.run("SELECT * FROM labels") == [("1", "old", 1)]
    else:
        with pytest.raises((sqlite3.Error, psycopg.Error)):
            base.run("SELECT * FROM labels")


def test_readers_see_the_old_rows_until_all_new_ones_are_there(postgres_url: str, tmp_path: Path) -> None:
    """A replace in progress shows nothing of itself, and does not hold readers up."""
    base = Base(postgres_url, tmp_path)
    base.load(("1", "old", 1))

    def watched() -> Iterator[pa.RecordBatch]:
        yield batch(("2", "new", 2))
        assert base.run("SELECT id FROM labels") == [("1",)]

    assert base.sink("replace").load(watched(), SCHEMA) == 1
    assert base.run("SELECT id FROM labels") == [("2",)]


def test_two_loads_at_once_do_not_lose_rows(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one load of a table is in progress another is refused as busy, and merges when it runs again."""
    monkeypatch.setattr("canwait.sinks.sql._PATIENCE_S", 0.1)
    base.load(("0", "z", 0))

    def rows() -> Iterator[pa.RecordBatch]:
        yield batch(("1", "a", 1))
        with pytest.raises(SinkBusy, match="labels: another"):
            base.load(("2", "b", 2))

    assert base.sink().load(rows(), SCHEMA) == 2
    assert base.load(("2", "b", 2)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_fills_up_leaves_the_sqlite_table_as_it_was(tmp_path: Path, mode: str) -> None:
    """Whichever write fails, the old rows are there afterwards, and the next load works."""
    base = Base("sqlite:///a b.db", tmp_path)
    base.load(*((f"{n}", "old", n) for n in range(50)))
    new = [(f"{n:05}", f"{n * 7919 % 65_536:x}" * 9, n) for n in range(1_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    n_bytes, failed = 0, 0
    while True:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            base.load(*new, mode=mode)
            break
        except SinkError as error:
            assert "the target is as it was" in str(error)  # noqa: PT017
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert base.run("SELECT count(*), min(label), max(label) FROM labels") == [(50, "old", "old")]
        n_bytes, failed = n_bytes + 9_973, failed + 1
    assert failed > 5


@pytest.mark.parametrize("mode", MODES)
def test_a_full_or_lost_server_leaves_the_table_as_it_was(postgres_url: str, tmp_path: Path, mode: str) -> None:
    """A disk that fills at the server, or a connection that goes, in the middle: the old rows are there afterwards."""
    base = Base(postgres_url, tmp_path)
    base.load(("0", "old", 0))
    base.run("""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.id = '7' THEN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
        END IF; RETURN NEW; END $$""")
    base.run("CREATE TRIGGER full_disk BEFORE INSERT ON labels FOR EACH ROW EXECUTE FUNCTION fail()")
    with pytest.raises(SinkError, match=r"No space left on device.*; the target is as it was"):
        base.load(*((str(n), "new", n) for n in range(1, 10)), mode=mode)
    assert base.run("SELECT * FROM labels") == [("0", "old", 0)]

    def cut() -> Iterator[pa.RecordBatch]:
        yield batch(("1", "new", 1))
        others = "pid <> pg_backend_pid() AND application_name = 'canwait' AND datname = current_database()"
        base.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        yield from (batch(*((f"{n}.{i}", "x" * 1000, n) for i in range(1000))) for n in range(2, 30))

    with pytest.raises(SinkError, match="the target is as it was"):
        base.sink(mode).load(cut(), SCHEMA)
    assert base.run("SELECT * FROM labels") == [("0", "old", 0)]


def test_a_killed_load_leaves_the_table_and_does_not_block_the_next(base: Base) -> None:
    """After SIGKILL in the middle of a load the old rows are there, and the next load works."""
    base.load(("1", "old", 1))
    code = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from canwait.sinks.opening import open_sink
from canwait.types import Load
schema = pa.schema([("id", pa.string()), ("label", pa.string()), ("score", pa.int64())])
def rows():
    yield pa.RecordBatch.from_pylist([{"id": str(n), "label": "new" * 99, "score": n} for n in range(20_000)], schema)
    os.kill(os.getpid(), signal.SIGKILL)
open_sink(Load(sys.argv[1], "replace", table="labels"), Path(sys.argv[2]), "id").load(rows(), schema)
"""
    command = [sys.executable, "-c", code, base.url, str(base._folder)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert base.run("SELECT * FROM labels") == [("1", "old", 1)]
    assert base.load(("2", "b", 2)) == 2
