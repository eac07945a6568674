"""The embedded model behind the `own` tier: a server in a child process, started when needed, gone with this one."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import local_model
from ..errors import Rejected, Unreachable
from ..types import Batch, ShardFile
from . import Guard
from .own import Own

START_S = 120.0  # 1 s on a quiet machine with the file in the page cache
_STOP_S = 5.0


def local_from_env(env: Mapping[str, str], spool: Path) -> Local:
    """Starts nothing yet. Raises LocalMissing when `canwait local install` or `canwait[local]` is wanting."""
    return Local(Server(local_model.require(local_model.cache(env))), spool)


class Server:
    """The child process: started when its address is asked for, again when it has died; it never outlives this one."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._lock = threading.Lock()  # over the next three
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: Callable[[], object] = lambda: None
        self._url = ""

    def url(self) -> str:
        """Raises Unreachable with the engine's last words when it does not start."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._process, self._url = _started(self._model)
                self._stop = weakref.finalize(self, _stop, self._process)
            return f"{self._url}/v1"

    def close(self) -> None:
        with self._lock:
            self._stop()


class Local(Own):
    """`own` over the child process, with exact token counts."""

    def __init__(self, server: Server, spool: Path) -> None:
        super().__init__(server.url, None, spool, concurrency=2 * local_model.SLOTS, name="local")
        self._server = server

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        if shard.model != local_model.NAME:
            raise Rejected(f"local serves {local_model.NAME} and no {shard.model!r}; nothing was sent")
        return super().submit(shard, guard)

    def count_tokens(self, messages_list: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
        """Input tokens of each chat exactly as the server will bill them, its template included."""
        url = f"{self._server.url()}/chat/completions/input_tokens"
        counts = []
        for messages in messages_list:
            reply = self._client.post(url, json={"messages": list(messages)})
            counts.append(int(reply.raise_for_status().json()["input_tokens"]))
        return counts

    def close(self) -> None:
        self._server.close()


def _started(model: Path) -> tuple[subprocess.Popen[bytes], str]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "canwait.local_model", str(model)],
            stdin=subprocess.PIPE,  # its end tells the child to go; the kernel ends it also when this process is killed
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: the rows in flight are not lost by it
        )
        assert process.stdout
        with process.stdout as pipe:
            said = pipe.readline() if select.select([pipe], [], [], START_S)[0] else b""
        if said.startswith(b"http"):
            return process, said.decode().strip()
        process.kill()
        _stop(process)
        log.seek(0)
        words = log.read().decode(errors="replace").strip().splitlines()
    last = words[-1] if words else f"no address within {START_S:g} s"
    raise Unreachable(f"the local model's server did not start: {last}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
