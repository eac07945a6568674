"""A whole job over rows that are no plain file: from a query or an object into a table or an object."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import canwait
from canwait.compression import compressing
from object_host import object_host
from simulated import Desk, changed, desk


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """One row of twelve is refused, and its duplicate with it."""
    with desk(tmp_path, "row_refusal=1") as d:
        yield d


def test_a_job_from_a_query_into_a_table(office: Desk, postgres_url: str) -> None:
    """Rows come from PostgreSQL, answers go into it, failed ones beside them; the ledger never has the address."""
    with psycopg.connect(postgres_url, autocommit=True) as base:
        base.execute("CREATE TABLE tickets (id uuid DEFAULT gen_random_uuid(), body text)")
        base.execute("INSERT INTO tickets (body) SELECT 'message ' || n FROM generate_series(1, 9) n")
        source = {"uri": "${WAREHOUSE}", "sql": "SELECT id, body AS text FROM tickets ORDER BY id", "key": "id"}
        path = office.write_job(source=source, load={"to": "${WAREHOUSE}", "table": "labels"})
        for _ in range(2):
            done = office.run(path, WAREHOUSE=postgres_url)
            assert (done.code, done.json["ok"], done.json["failed"]) == (6, 8, 1)
        joined = "SELECT count(*), count(label), sum(_cost_usd) > 0 FROM tickets t JOIN labels l ON t.id::text = l.id"
        assert base.execute(joined).fetchall() == [(8, 8, True)]
        assert base.execute("SELECT _cause, count(*) FROM labels_failed GROUP BY 1").fetchall() == [("refused", 1)]
        assert len(office.simulator.batches()) == 1

        base.execute("INSERT INTO tickets (body) VALUES ('message new')")
        assert office.run(path, WAREHOUSE=postgres_url).json["rows"] == 10
    kept = b"".join(f.read_bytes() for f in (office.folder / ".canwait").rglob("*") if f.is_file())
    assert b"postgresql://" not in kept


def test_a_job_within_sqlite(office: Desk) -> None:
    """A path in the address starts at the job file's folder; source and target may be one database."""
    with closing(sqlite3.connect(office.folder / "a.db", isolation_level=None)) as base:
        base.execute("CREATE TABLE rows (id TEXT, text TEXT)")
        base.executemany("INSERT INTO rows VALUES (?, ?)", [(f"{n:03}", f"message {n}") for n in range(6)])
        office.write_job(
            source={"uri": "sqlite:///a.db", "sql": "SELECT * FROM rows ORDER BY id", "key": "id"},
            load={"to": "sqlite:///a.db", "table": "labels"},
        )
        assert office.run().json["ok"] == 5
        assert base.execute("SELECT count(*) FROM labels JOIN rows USING (id)").fetchone() == (5,)
        assert base.execute("SELECT count(*) FROM labels_failed").fetchone() == (1,)


def test_a_handle_that_runs_again_reads_again(office: Desk) -> None:
    """Rows that came since this handle last ran are in its next run, from a database and from a file alike."""
    path = office.folder / "job.yaml"
    with closing(sqlite3.connect(office.folder / "a.db", isolation_level=None)) as base:
        base.execute("CREATE TABLE rows (id TEXT, text TEXT)")
        base.executemany("INSERT INTO rows VALUES (?, ?)", [(f"{n:03}", f"message {n}") for n in range(4)])
        office.write_job(
            source={"uri": "sqlite:///a.db", "sql": "SELECT * FROM rows ORDER BY id", "key": "id"}, load=None
        )
        with changed(office.folder, office.env), canwait.connect() as client:
            job = client.job(path)
            assert job.run().rows == 4
            base.executemany("INSERT INTO rows VALUES (?, ?)", [(f"n{n:03}", f"message n{n}") for n in range(4)])
            assert job.run().rows == 8
    office.write(4)
    with changed(office.folder, office.env), canwait.connect() as client:
        job = client.job(path)
        assert job.run().rows == 4
        office.write(6)
        assert job.run().rows == 6


def test_a_target_that_cannot_be_reached_is_refused_before_anything_is_paid(office: Desk) -> None:
    """A wrong password or a server that is down is a problem of the plan, and says nothing of the password."""
    office.write(4, load={"to": "postgresql://u:${PW}@127.0.0.1:9/db", "table": "labels"})
    done = office.run(PW="hunter2")
    assert done.code == 2
    assert "load: postgresql://u:${PW}@127.0.0.1:9/db labels: " in done.problem["detail"]
    assert "hunter2" not in done.err + done.out
    assert office.simulator.batches() == []


def test_a_job_from_an_object_into_an_object(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are fetched once a plan, packed or not, answers are put in one step, and no copy is left behind."""
    pytest.importorskip("obstore", reason="the extra `objects` is not installed")
    with object_host(monkeypatch) as host:
        office.write(9)
        packed = office.folder / "rows.csv.gz"
        with packed.open("wb") as out, compressing(out, "gzip") as text:
            text.write((office.folder / "rows.csv").read_bytes())
        host.objects["/lake/in/rows.csv.gz"] = packed.read_bytes()
        office.write_job(source={"uri": "s3://lake/in/rows.csv.gz", "key": "id"}, load="s3://lake/out/labels.jsonl.zst")
        first = office.run()
        assert (first.code, first.json["ok"], first.json["failed"]) == (6, 7, 2)
        assert set(host.objects) == {
            "/lake/in/rows.csv.gz", "/lake/out/labels.jsonl.zst", "/lake/out/labels.failed.jsonl.zst"
        }  # fmt: skip
        before = dict(host.objects)
        assert office.run().json["ok"] == 7
        assert host.objects == before
        assert len(office.simulator.batches()) == 1
        assert list((office.folder / ".canwait" / "scratch").iterdir()) == []
