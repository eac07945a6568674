"""The database seam: two dialects, numbered migrations, and files that are not ours, damaged, unreadable or full."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import canwait
from canwait.db import _WORDS, connect, load_statements, migrations, redacted, split_script
from canwait.errors import LedgerError, LedgerUnreadable
from canwait.ledger import Ledger
from opened import NOW, TABLES, money, new_shard, over, plan_of, raw, reserved, settlement

LATEST = len(migrations())


def version(url: str) -> int:
    with raw(url) as connection:
        return int(connection.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()[0])


def layout(url: str) -> list[Any]:
    """Every column and index, as the database describes them."""
    with raw(url) as connection:
        if url.startswith("sqlite"):
            found = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        else:
            found = connection.execute(
                "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
                " WHERE table_schema = 'public' UNION ALL"
                " SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'"
            )
        return sorted(found.fetchall(), key=repr)


def made_at(url: str, number: int) -> None:
    """An empty ledger as an older canwait made it."""
    dialect = "sqlite" if url.startswith("sqlite") else "postgres"
    with raw(url) as connection:
        for script in migrations()[:number]:
            for statement in split_script(script.format(**_WORDS[dialect])):
                connection.execute(statement)
        connection.execute(f"UPDATE meta SET value = '{number}' WHERE name = 'version'")


# -------------------------------------------------------------------------------------------------------- migrations


def test_an_empty_database_becomes_a_ledger(ledger_url: str) -> None:
    """Connecting to nothing makes every table; connecting again changes nothing."""
    connect(ledger_url).close()
    once = layout(ledger_url)
    connect(ledger_url).close()
    assert version(ledger_url) == LATEST
    assert layout(ledger_url) == once
    with raw(ledger_url) as connection:
        assert all(connection.execute(f"SELECT * FROM {name}").fetchall() == [] for name in TABLES)


@pytest.mark.parametrize("older", range(1, LATEST))
def test_a_ledger_of_every_older_version_goes_on(ledger_url: str, older: int, tmp_path: Path) -> None:
    """An older ledger with a job on its way is brought up to date, keeps every row, and its job can be finished."""
    made_at(ledger_url, older)
    with raw(ledger_url) as connection:
        connection.execute("INSERT INTO meta (name, value) VALUES ('ledger_id', 'an older ledger')")
        connection.execute(
            "INSERT INTO budget (id, limit_micros, held_micros, held_tokens) VALUES ('job:old', 9, 0, 0)"
        )
    ledger = Ledger(connect(ledger_url))
    assert (ledger.id, version(ledger_url)) == ("an older ledger", LATEST)
    assert ledger.query("budget", id="job:old")[0]["limit_micros"] == 9
    ledger.open_plan(plan_of(new_shard("s1")), NOW)
    ledger.settle(over(ledger), settlement(), NOW)
    assert (money(ledger), ledger.check()) == ((0, 40), [])
    ledger.close()

    if ledger_url.startswith("sqlite"):
        fresh = f"sqlite:///{tmp_path}/fresh.db"
        connect(fresh).close()
        assert layout(ledger_url) == layout(fresh)


def test_a_newer_ledger_is_refused_and_left_alone(ledger_url: str) -> None:
    """A ledger that a newer canwait made is not opened, not changed, and both versions are named."""
    connect(ledger_url).close()
    with raw(ledger_url) as connection:
        connection.execute(f"UPDATE meta SET value = '{LATEST + 1}' WHERE name = 'version'")
    with pytest.raises(LedgerUnreadable, match=f"of version {LATEST + 1}, this canwait knows {LATEST}"):
        connect(ledger_url)
    assert version(ledger_url) == LATEST + 1


@pytest.mark.parametrize("table", ["customers", "meta", "job"])
def test_a_database_of_something_else_is_refused_and_left_alone(ledger_url: str, table: str) -> None:
    """A database with other tables, also one with a table of the same name, gets none of ours and stays as it is."""
    with raw(ledger_url) as connection:
        connection.execute(f"CREATE TABLE {table} (id INTEGER)")
    path = Path(ledger_url.removeprefix("sqlite:///"))
    before = path.read_bytes() if path.exists() else layout(ledger_url)
    with pytest.raises(LedgerUnreadable, match="a database of something else"):
        connect(ledger_url)
    assert (path.read_bytes() if path.exists() else layout(ledger_url)) == before


def test_a_migration_that_fails_leaves_the_older_version(ledger_url: str) -> None:
    """A process that dies while it migrates leaves the database as it found it, and the next one migrates it."""
    made_at(ledger_url, 1)
    before = layout(ledger_url)

    def die(where: str) -> None:
        raise KeyboardInterrupt(where)

    with pytest.raises(KeyboardInterrupt, match="before migrate"):
        connect(ledger_url, fault=die)
    assert (version(ledger_url), layout(ledger_url)) == (1, before)
    connect(ledger_url).close()
    assert version(ledger_url) == LATEST


def test_many_processes_may_open_a_new_ledger_at_once(ledger_url: str) -> None:
    """Eight processes that meet at an empty database make one ledger, with one name."""
    code = "import sys; from canwait.db import connect; from canwait.ledger import Ledger; print(Ledger(connect(sys.argv[1])).id)"
    run = [sys.executable, "-c", code, ledger_url]
    source = str(Path(__file__).parent.parent / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ["PYTHONPATH"]])}
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) for _ in range(8)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, said
    assert len({out for out, _ in said}) == 1


# ------------------------------------------------------------------------------------------------------ bad databases


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A file of something else is named, its bytes stay what they were, and nothing is written beside it."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"These are my notes, and they are longer than a page header would be. " * 20)
    before = path.read_bytes()
    with pytest.raises(LedgerUnreadable, match="file is not a database") as refused:
        connect(f"sqlite:///{path}")
    assert str(path) in str(refused.value)
    assert refused.value.own_hint is not None
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_damaged_ledger_is_a_clear_error(tmp_path: Path) -> None:
    """A ledger whose pages were overwritten is refused, not repaired and not started anew."""
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    ledger = Ledger(connect(url))
    ledger.open_plan(plan_of(*(new_shard(f"s{i}") for i in range(50))), NOW)
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(LedgerError):
        Ledger(connect(url)).query("jobs")
    assert path.stat().st_size == len(whole)


def test_an_unreadable_place_is_a_clear_error(tmp_path: Path) -> None:
    """A ledger that cannot be opened is refused with its path: here a folder stands where the file should be."""
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerUnreadable, match="unable to open database file") as refused:
        connect(f"sqlite:///{tmp_path}/ledger.db")
    assert refused.value.exit_code == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnreadable):
        connect(f"sqlite:///{tmp_path}/file/ledger.db")


@pytest.mark.parametrize("url", ["mysql://host/db", "ledger.db", ""])
def test_another_kind_of_database_is_refused(url: str) -> None:
    """An address that is neither SQLite's nor PostgreSQL's says what is expected."""
    with pytest.raises(LedgerUnreadable, match=r"expected sqlite:///FILE or postgresql://HOST/DATABASE"):
        connect(url)


def test_a_server_that_is_not_there_is_a_clear_error() -> None:
    """An unreachable PostgreSQL is named without the password in its address."""
    with pytest.raises(LedgerUnreadable) as refused:
        connect("postgresql://someone:secret@127.0.0.1:9/canwait")
    assert "secret" not in str(refused.value)
    assert "someone:***@127.0.0.1:9" in str(refused.value)


def test_a_password_is_never_shown() -> None:
    """Addresses are printed without their password, whatever stands around it."""
    assert redacted("postgres://u:p@h/db") == "postgres://u:***@h/db"
    assert redacted("postgres://u@h/db") == "postgres://u@h/db"
    assert redacted("sqlite:///a.db") == "sqlite:///a.db"


def test_a_full_disk_writes_all_or_nothing(tmp_path: Path) -> None:
    """When the disk is full a write raises with the way out, half of it is not there, and once there is room it goes on."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(connect(url))
    ledger.open_plan(plan_of(new_shard("s1")), NOW)
    connection: sqlite3.Connection = ledger.db._connection  # type: ignore[attr-defined]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")  # as full as a disk can be
    many = plan_of(*(new_shard(f"t{i}") for i in range(500)), digest="two", revision=1)

    with pytest.raises(LedgerError, match="full") as refused:
        ledger.open_plan(many, NOW)
    assert refused.value.own_hint is not None
    assert "free some space" in refused.value.own_hint
    assert [s["id"] for s in ledger.query("shards", job="job")] == ["s1"]
    assert (ledger.job("job")["plan"], ledger.check()) == ("digest", [])

    connection.execute("PRAGMA max_page_count = 1000000")
    assert ledger.open_plan(many, NOW)
    reserved(ledger)
    assert ledger.check() == []
    ledger.close()


def test_a_full_disk_at_the_start_leaves_no_half_ledger(tmp_path: Path) -> None:
    """A new ledger that does not fit is refused, and opening it again with room makes a whole one."""
    path = tmp_path / "ledger.db"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from canwait.db import connect; from canwait.errors import LedgerError\n"
        "try: connect(sys.argv[1])\n"
        "except LedgerError as error: sys.exit(7)"
    )
    source = str(Path(__file__).parent.parent / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ["PYTHONPATH"]])}
    assert subprocess.run([sys.executable, "-c", code, f"sqlite:///{path}"], env=env).returncode == 7
    Ledger(connect(f"sqlite:///{path}")).close()
    assert version(f"sqlite:///{path}") == LATEST


# ------------------------------------------------------------------------------------------------------- transactions


def test_a_transaction_is_all_or_nothing(ledger_url: str) -> None:
    """A block that is left by an exception, of whatever kind, has written nothing."""
    db = connect(ledger_url)

    def write(error: BaseException) -> None:
        with db.transaction("test") as tx:
            tx.run("budget_ensure", id="job:x")
            raise error

    for error in (ValueError("ours"), KeyboardInterrupt("theirs")):
        with pytest.raises(type(error)):
            write(error)
    with db.reading() as tx:
        assert tx.run("budgets") == []
    db.close()


def test_one_writer_at_a_time(ledger_url: str) -> None:
    """A second writer waits for the first one's end, so journal numbers are committed in order."""
    first, second = connect(ledger_url), connect(ledger_url)
    order: list[str] = []

    def write() -> None:
        with second.transaction("second") as tx:
            order.append("second begins")
            tx.run("budget_ensure", id="job:b")

    with first.transaction("first") as tx:
        tx.run("budget_ensure", id="job:a")
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first ends")
    thread.join()
    assert order == ["first ends", "second begins"]
    first.close()
    second.close()


def test_a_reader_sees_one_moment(ledger_url: str) -> None:
    """What is written while somebody reads is not seen before the next reading."""
    writer, reader = connect(ledger_url), connect(ledger_url)
    with reader.reading() as seen:
        assert seen.run("budgets") == []
        with writer.transaction("write") as tx:
            tx.run("budget_ensure", id="job:a")
        assert seen.run("budgets") == []
    with reader.reading() as seen:
        assert [row["id"] for row in seen.run("budgets")] == ["job:a"]
    writer.close()
    reader.close()


def test_every_statement_is_used() -> None:
    """`ledger.sql` holds no statement that nobody runs."""
    folders = Path(canwait.__file__).parent, Path(__file__).parent
    code = "".join(path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py"))
    assert [name for name in load_statements() if f'"{name}"' not in code] == []
