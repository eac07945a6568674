"""Bad input gets a clear error that names the place, the next command and a documented exit code; nothing is sent."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from canwait import errors
from canwait.cli.face import report
from simulated import Desk, Said, desk


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """A provider on a good day."""
    with desk(tmp_path) as d:
        yield d


def refused(office: Desk, said: Said, code: int, *words: str) -> None:
    """It ended with this code, said these words, printed no answer and no traceback, and sent nothing."""
    assert said.code == code, said
    for word in words:
        assert word in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert office.simulator.batches() == []


# ----------------------------------------------------------------------------------------------------- what is written


def test_every_problem_of_a_job_file_is_named_at_once(office: Desk) -> None:
    """A wrong job file: exit code 2, and each problem with file, line, column, field and a suggestion."""
    path = office.write(4)
    path.write_text("version: 1\nname: Bad Name\nsource: {uri: rows.csv, key: id}\nmodel: openai/gpt-6-luna\nprompt: hi\n"
                    "max_output_tokens: 5\nurgency: soon\nbuget: {usd: 1}\n")  # fmt: skip
    said = office.canwait("run", "job.yaml", "--yes")
    refused(office, said, 2, "job.yaml:2:7: name:", "job.yaml:7:10: urgency:", "job.yaml:8:1: buget:", "did you mean")
    problems = office.run().problem["problems"]
    assert {(p["line"], p["field"]) for p in problems} >= {(2, "name"), (7, "urgency"), (8, "buget")}


def test_every_bad_row_is_named(office: Desk) -> None:
    """Rows that cannot be sent: exit code 2, each with file and line, and nothing is sent or held."""
    office.write(4)
    (office.folder / "rows.csv").write_text('id,text\n1,fine\n,no key\n3,"two\nlines"\n1,again\n5,\n')
    office.write_job(prompt="{{ text }}")
    said = office.run()
    refused(office, said, 2)
    found = {p["line"]: p["message"] for p in said.problem["problems"]}
    assert set(found) == {3, 6, 7}
    assert "line 2 already" in found[6]
    assert office.money() == (0, 0)
    plan = office.canwait("plan", "job.yaml", "--json")
    assert (plan.code, [b["line"] for b in plan.json["bad_rows"]]) == (2, [3, 6, 7])
    assert "rows.csv:6" in office.canwait("run", "job.yaml", "--yes").err


def test_a_cut_last_line_is_named(office: Desk) -> None:
    """A source whose last line is cut short is refused with its place, in CSV and in JSONL."""
    office.write(4)
    (office.folder / "rows.csv").write_text('id,text\n1,fine\n2,"cut sho')
    refused(office, office.canwait("run", "job.yaml", "--yes"), 2, "rows.csv:3")
    (office.folder / "rows.jsonl").write_text('{"id": "1", "text": "fine"}\n{"id": "2", "te')
    office.write_job(source={"uri": "rows.jsonl", "key": "id"})
    refused(office, office.canwait("run", "job.yaml", "--yes"), 2, "rows.jsonl:2")


def test_a_missing_column_is_a_planning_error(office: Desk) -> None:
    """A prompt, key or shard column that the rows do not have is refused by `plan` and `run`, with a suggestion."""
    office.write(4, prompt="{{ txet }}", source={"uri": "rows.csv", "key": "idd"}, shard={"by": "team"})
    for verb in ("plan", "run"):
        said = office.canwait(verb, "job.yaml")
        refused(office, said, 2, "no column 'txet'", "did you mean 'text'", "no column 'idd'", "no column 'team'")


@pytest.mark.parametrize(
    ("load", "word"),
    [
        ("out.xlsx", ".xlsx"),
        ("rows.csv", "source"),
        ("ftp://bucket/x.parquet", "no address"),
        ("sqlite:///a.db", "`table`"),
        ("rows.csv/x.csv", "folder"),
    ],
)
def test_a_target_that_cannot_be_loaded_is_refused_before_money(office: Desk, load: str, word: str) -> None:
    """A target rows could not be loaded into is refused when planning, with 2, not after paying."""
    office.write(4, load=load)
    refused(office, office.canwait("plan", "job.yaml"), 2, "load", word)
    refused(office, office.run(), 2, word)


def test_an_output_field_may_not_take_the_keys_name(office: Desk) -> None:
    """An output field called as the key column is refused when planning."""
    output = {
        "type": "object",
        "properties": {"id": {"type": "string"}},
        "required": ["id"],
        "additionalProperties": False,
    }
    office.write(4, output=output)
    refused(office, office.canwait("plan", "job.yaml"), 2, "field id")


def test_what_is_not_there_is_named(office: Desk) -> None:
    """A job file, a job, a plan, a schema or a shard that does not exist: exit code 2 and where to look."""
    office.write(4)
    for args, word in [
        (("run", "nope.yaml"), "canwait init"),
        (("plan", "."), "no such job file"),
        (("status", "nope"), "canwait status"),
        (("why", "nope"), "nope"),
        (("cancel", "nope"), "nope"),
        (("run", "--plan", "p_000000000000"), "canwait plan"),
        (("run", "--plan", "../../etc"), "canwait plan"),
        (("load", "job.yaml"), "labels"),
        (("schema", "nope"), "run"),
        (("resolve", "nope", "--absent"), "nope"),
        (("budget", "thaw", "job:nope"), "job:nope"),
        (("budget", "book", "nope", "--usd", "1", "--reason", "x"), "nope"),
        (("budget", "set", "job:x", "--usd", "1"), "project:OWNER"),
        (("budget", "set", "month", "--usd", "much"), "--usd"),
        (("budget", "set", "month", "--usd", "1", "--tell-at", "0.5"), "--tell-at"),
        (("budget", "set", "month", "--tell-at", "50%"), "--usd"),
        (("run", "job.yaml", "--timeout", "5"), "--timeout"),
        (("run", "job.yaml", "--budget", "-3"), "--budget"),
        (("run", "job.yaml", "--scenario", "nonsense=1"), "nonsense"),
        (("resolve", "x"), "--absent"),
        (("run",), "--plan"),
        (("run", "job.yaml", "--budgt", "1"), "--budget"),
        (("rnu",), "run"),
    ]:
        refused(office, office.canwait(*args), 2, word)


@pytest.mark.parametrize("selector", ["ok", "failed:", "failed:nonsense", "missing:length", "FAILED"])
def test_a_selector_that_selects_nothing_is_refused(office: Desk, selector: str) -> None:
    """`--only` takes what it knows, and a nonsense selector opens no plan either."""
    office.write(4)
    refused(office, office.run("job.yaml", "--only", selector), 2, "selects nothing")
    assert office.money() == (0, 0)


def test_only_sends_nothing_else(office: Desk) -> None:
    """`--only` before a first run, without failed rows, or after the rows have changed is refused: it sends nothing new."""
    office.write(4)
    assert office.run("job.yaml", "--only", "failed").code == 2
    assert office.money() == (0, 0)
    assert office.run().code == 0
    assert office.run("job.yaml", "--only", "failed").problem["code"] == "not_found"
    office.write(9)
    assert office.run("job.yaml", "--only", "failed").problem["code"] == "plan_stale"
    assert len(office.simulator.batches()) == 1


def test_a_usage_error_is_an_object_with_json(office: Desk) -> None:
    """With --json also a usage error is RFC 9457 on stderr, with the code that the process ends with."""
    said = office.canwait("run", "--json", "--nonsense")
    assert (said.code, said.problem["exit_code"], said.problem["code"]) == (2, 2, "usage")


@pytest.mark.parametrize("name", ["CANWAIT_POLL_S", "CANWAIT_SETTLE_S", "CANWAIT_BUDGET_USD"])
@pytest.mark.parametrize("value", ["soon", "-1", "nan", "1e99"])
def test_a_variable_that_means_nothing_is_refused(office: Desk, name: str, value: str) -> None:
    """An environment variable that cannot be understood is named, with 2."""
    office.write(4)
    refused(office, office.canwait("run", "job.yaml", "--yes", **{name: value}), 2, name)


def test_no_time_at_all_is_no_time(office: Desk) -> None:
    """A poll or settle time of 0 is refused: it would hammer the host, or prove absence by not looking."""
    office.write(4)
    for name in ("CANWAIT_POLL_S", "CANWAIT_SETTLE_S"):
        refused(office, office.canwait("plan", "job.yaml", **{name: "0"}), 2, name)


# ---------------------------------------------------------------------------------------------------------- the account


def test_a_wrong_key_holds_nothing(tmp_path: Path) -> None:
    """A key the provider refuses: exit code 4, the variable named, the key not shown, nothing held; mended, it runs."""
    with desk(tmp_path, keys={"right-key": "acct"}) as office:
        office.write(4)
        said = office.run(OPENAI_API_KEY="sk-wrong-key-secret")
        refused(office, said, 4, "OPENAI_API_KEY")
        assert "sk-wrong-key-secret" not in said.err
        held = {b["id"]: b["held_usd"] for b in office.canwait("budget", "show", "--json").json["budgets"]}
        assert set(held.values()) == {"0.000000"}
        assert office.run(OPENAI_API_KEY="right-key").json["ok"] == 4


def test_a_missing_key_is_named(office: Desk) -> None:
    """Without a key `run` ends with 4 and names the variable; a key in a file will do."""
    office.write(4)
    refused(office, office.run(OPENAI_API_KEY=None), 4, "OPENAI_API_KEY")
    (office.folder / "key").write_text("key\n")
    assert office.run(OPENAI_API_KEY=None, OPENAI_API_KEY_FILE="key").code == 0


def test_an_unreachable_host_is_waited_for(office: Desk) -> None:
    """While a host cannot be reached the job says so, waits, and holds what the plan said; when it is back, it ends."""
    office.write(4)
    worst = office.canwait("plan", "job.yaml", "--json").json["worst_usd"]
    said = office.run("job.yaml", "--timeout", "2s", OPENAI_BASE_URL=f"http://127.0.0.1:{free_port()}/v1")
    assert said.code == 9, said
    assert "never arrived" in said.err
    value = said.json
    assert (value["reserved_usd"], value["unknown_usd"], value["confirmed_usd"]) == (worst, "0.000000", "0.000000")
    assert (office.run().json["ok"], len(office.simulator.batches())) == (4, 1)


def test_a_host_that_does_not_speak_json_is_never_trusted(office: Desk) -> None:
    """A host that answers HTML: nothing is believed or sent twice, the money stays held, `--timeout` ends with 9."""
    office.write(4)
    with html() as (url, asked):
        said = office.run("job.yaml", "--timeout", "2s", OPENAI_BASE_URL=f"{url}/v1")
        assert said.code == 9, said
        assert "waiting:" in said.err
        assert said.json["confirmed_usd"] == "0.000000" < said.json["reserved_usd"]
        assert asked.count("/v1/batches") == 0  # the upload was not believed, so no batch was asked for


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/v1", "http://", "http://host:99999/v1"])
def test_an_address_that_is_none_is_refused(office: Desk, url: str) -> None:
    """OPENAI_BASE_URL that is no address: exit code 2 and the variable's name, also when planning."""
    office.write(4)
    for verb in ("plan", "run"):
        refused(office, office.canwait(verb, "job.yaml", OPENAI_BASE_URL=url), 2, "OPENAI_BASE_URL")


# ------------------------------------------------------------------------------------------------- the disk, the ledger


def test_a_foreign_database_is_left_alone(office: Desk) -> None:
    """A database of something else, a file that is none, and a scheme nobody knows are named and not touched."""
    office.write(4)
    with closing(sqlite3.connect(office.folder / "other.db")) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
    (office.folder / "noise.db").write_bytes(b"not a database at all" * 100)
    (office.folder / "folder.db").mkdir()
    before = {p.name: p.read_bytes() for p in office.folder.glob("*.db") if p.is_file()}
    for url in ("sqlite:///other.db", "sqlite:///noise.db", "sqlite:///folder.db", "mysql://host/db", "postgresql:///"):
        said = office.canwait("run", "job.yaml", "--yes", CANWAIT_DB=url)
        refused(office, said, 1, "cannot be used", "CANWAIT_DB")
    assert {p.name: p.read_bytes() for p in office.folder.glob("*.db") if p.is_file()} == before


def test_the_ledger_lies_where_it_is_told_to(office: Desk) -> None:
    """CANWAIT_DB=sqlite:/// and CANWAIT_HOME place ledger and blobs; a password in a URL is never shown."""
    office.write(4)
    assert office.run(CANWAIT_DB="sqlite:///deep/er/my.db").code == 0
    assert (office.folder / "deep" / "er" / "blobs").is_dir()
    assert not (office.folder / ".canwait").exists()
    home = office.folder / "home"
    assert office.canwait("status", "--json", CANWAIT_HOME=str(home)).json["jobs"] == []
    assert (home / "ledger.db").is_file()
    said = office.canwait("status", CANWAIT_DB="postgresql://me:secret@127.0.0.1:1/db")
    assert said.code == 1
    assert "secret" not in said.err


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_ledger_that_is_forgotten_is_refused(office: Desk, url: str) -> None:
    """A ledger in memory would pay again at the next run: exit code 2."""
    office.write(4)
    refused(office, office.canwait("run", "job.yaml", "--yes", CANWAIT_DB=url), 2, "CANWAIT_DB", "sqlite:///FILE")


def test_a_full_disk_is_an_error_and_not_an_end(office: Desk) -> None:
    """When files cannot grow, the error is clear and the command can be run again when there is room: paid once."""
    office.write(300, shard={"max_rows": 100})
    full = [0, 4_096, 20_000, 60_000, 140_000]
    for size in full:
        said = limited(office, size)
        assert said.returncode != 0
        assert "Traceback" not in said.stderr, (size, said.stderr)
        assert "error: " in said.stderr
    done = office.run().json
    assert (done["ok"], done["confirmed_usd"]) == (300, office.bill_usd())
    assert set(office.simulator.executed().values()) == {1}


def limited(office: Desk, n_bytes: int) -> subprocess.CompletedProcess[str]:
    """`canwait run` in a process none of whose files may grow past a size."""

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    command = [sys.executable, "-m", "canwait", "run", "job.yaml", "--yes", "-q"]
    return subprocess.run(
        command, cwd=office.folder, env=os.environ | office.env, preexec_fn=limit, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def test_a_damaged_ledger_is_not_repaired_in_place(office: Desk) -> None:
    """A ledger overwritten in the middle is an error that says to restore a backup; nothing is sent by it."""
    office.write(4)
    assert office.run().code == 0
    path = office.folder / ".canwait" / "ledger.db"
    with closing(sqlite3.connect(path)) as whole:
        whole.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = bytearray(path.read_bytes())
    raw[4096:-4096] = b"\xff" * (len(raw) - 8192)
    path.write_bytes(raw)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    said = office.run()
    assert said.code == 1
    assert "backup" in said.problem["hint"]
    assert len(office.simulator.batches()) == 1


def test_a_target_of_another_kind_is_left_alone(office: Desk) -> None:
    """When the target cannot be merged into, it keeps its bytes, the error says so, and a later load brings the rows."""
    office.write(4)
    (office.folder / "labels.parquet").write_bytes(b"not parquet")
    said = office.run()
    assert (said.code, said.problem["code"]) == (1, "sink")
    assert (office.folder / "labels.parquet").read_bytes() == b"not parquet"
    (office.folder / "labels.parquet").unlink()
    assert office.canwait("load", "job.yaml").code == 0
    assert pq.read_table(office.folder / "labels.parquet").num_rows == 4
    assert office.simulator.bill_micros() > 0
    assert len(office.simulator.batches()) == 1


def test_a_job_that_must_be_judged_is_not_loaded(office: Desk) -> None:
    """With `quality:` a job stops at the gate: exit code 3, nothing loaded, and `load` refuses with 3 too."""
    office.write(4, quality={"refuse_if_bad_rate": "10%"})
    said = office.run()
    assert (said.code, said.json["state"], said.json["loaded"]) == (3, "gate", None)
    assert said.problem["code"] == "gate_pending"
    assert not (office.folder / "labels.parquet").exists()
    assert office.canwait("load", "job.yaml").code == 3


# ------------------------------------------------------------------------------------------------------------ odd input


def test_no_rows_are_no_problem(office: Desk) -> None:
    """A source with a header alone is a job of no rows: nothing is sent, exit code 0."""
    office.write(4)
    (office.folder / "rows.csv").write_text("id,text\n")
    done = office.run()
    assert (done.code, done.json["rows"], done.json["state"]) == (0, 0, "completed")
    assert office.simulator.batches() == []


def test_rows_may_come_from_a_pipe(office: Desk) -> None:
    """`source: -` reads standard input, and says so when its format is not stated."""
    office.write(4, source={"uri": "-", "key": "id"})
    piped = [sys.executable, "-m", "canwait", "run", "job.yaml", "--yes", "--json"]
    rows = "id,text\n1,one\n2,two\n"

    def pipe() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            piped,
            cwd=office.folder,
            env=os.environ | office.env,
            input=rows,
            capture_output=True,
            text=True,
            check=False,
        )

    said = pipe()
    assert (said.returncode, json.loads(said.stderr)["code"]) == (2, "source")
    office.write_job(source={"uri": "-", "key": "id", "format": "csv"})
    said = pipe()
    assert (said.returncode, json.loads(said.stdout)["ok"]) == (0, 2)


def test_awkward_text_survives(office: Desk) -> None:
    """Keys keep their zeros and blanks; control characters and other scripts reach the model and come back."""
    office.write(4, output=None, prompt="{{ text }}", load="labels.jsonl")
    rows = '﻿id,text\n" 007 ",كيف حالك\n0,"a ""quoted"", one"\n日本,\U0001f600\x07\n'
    (office.folder / "rows.csv").write_text(rows, "utf-8")
    with desk(office.folder.parent / "other", answer=lambda body, rng: body["messages"][-1]["content"]) as echo:
        said = office.run(**echo.env)
    assert said.code == 0, said
    loaded = [json.loads(line) for line in (office.folder / "labels.jsonl").read_text("utf-8").splitlines()]
    assert [(r["id"], r["output"]) for r in loaded] == [
        (" 007 ", "كيف حالك"),
        ("0", 'a "quoted", one'),
        ("日本", "\U0001f600\x07"),
    ]


def test_words_of_a_provider_do_not_steer_a_terminal(tmp_path: Path) -> None:
    """Control characters in what a provider or a job says are not printed as they are."""
    with desk(tmp_path) as office:
        office.write(4)
        office.run()
        said = office.canwait("budget", "book", "labels", "--usd", "1", "--reason", "store\x1b[2J")
        assert said.code == 0
        assert "\x1b" not in said.out


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def html() -> Iterator[tuple[str, list[str]]]:
    """A host that answers every request with a page, and what it was asked for."""
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b"<html><body>Welcome to our proxy</body></html>"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_error_prints_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    """Words of a provider or a row in an error reach the terminal as text, whatever they would do there."""
    report(errors.GateRefused(job="labels", why="\x1b]0;pwned\x07 bad\r\nand \u202ebad"))
    said = capsys.readouterr().err
    assert "bad" in said
    assert all(c.isprintable() for line in said.splitlines() for c in line)
