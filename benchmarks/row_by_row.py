"""The row-by-row tier against a trivial server on loopback: what a row costs us, and how long we keep it.

    python benchmarks/row_by_row.py --rows 20000 --runs 5

The server is another process, written by hand, whose reply of 1 KB never changes. Measured is all of ours from the shard
file on: reading it, the copy in the spool, asking, the envelope, and durable answers. Its baselines ask the same rows at
64 in flight and keep nothing: a bare loop over the same client (posting.py), and over httpx2.

CPU is over that of the same run with one row. The overhead of a row is what we see of its latency beyond the server's
constant service time, from the row being ready to its answer in the recorder's hands.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from measure import Measured, measured, ratio, table

IN_FLIGHT = 64
SERVICES_S = (0.05, 0.02)
_BAR_ROWS, _BAR_MS = 5_000, 10.0
_REPLY = json.dumps(
    {
        "id": "chatcmpl-0123456789", "object": "chat.completion", "created": 1_790_000_000, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 150}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 150, "total_tokens": 850},
    }
).encode()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    n = options.rows
    with tempfile.TemporaryDirectory() as folder:
        one, many = write_shard(Path(folder) / "one", 1), write_shard(Path(folder) / "many", n)
        with_httpx2 = min(n, 3_000)
        found: dict[str, tuple[int, Measured, Measured]] = {}
        for name, loop, rows in (("canwait", ours, n), ("bare loop", bare, n), ("httpx2", by_httpx2, with_httpx2)):
            with Server(0.0) as url:
                few = measured(loop, url, one, 1, folder, runs=options.runs)
                found[name] = rows, measured(loop, url, many, rows, folder, runs=options.runs), few
        paced = [(service_s, *_paced(service_s, many, n, folder, options.runs)) for service_s in SERVICES_S]
    cost = {name: (many.cpu_s - few.cpu_s) / rows for name, (rows, many, few) in found.items()}
    print(
        table(
            ("", "rows", "CPU s", "wall s", "peak MB", "us CPU a row", "rows a CPU s", "times bare", "times httpx2"),
            [
                (name, rows, many.cpu_s, many.wall_s, many.peak_mb, cost[name] * 1e6, round(1 / cost[name]),
                 cost[name] / cost["bare loop"], cost[name] / cost["httpx2"])
                for name, (rows, many, _) in found.items()
            ],
        )
    )  # fmt: skip
    ratio("row_by_row", "bare loop / canwait", cost["bare loop"] / cost["canwait"])
    ratio("row_by_row", "httpx2 / canwait", cost["httpx2"] / cost["canwait"])
    kept = "kept" if 1 / cost["canwait"] >= _BAR_ROWS else "NOT KEPT"
    print(f"bar: {_BAR_ROWS:,} rows a CPU second: {kept}\n")
    print(f"{IN_FLIGHT} in flight, ms beyond the server's service time; the bare loop shows what this machine adds now")
    head = (
        "service ms",
        "p50",
        "p99",
        "bare p50",
        "bare p99",
        "rows/s, durable",
        "rows/s, server",
        f"p99 <= {_BAR_MS:g}",
    )
    print(
        table(
            head,
            [
                (f"{service_s * 1e3:g}", *ours[:2], *bare, round(ours[2]), round(IN_FLIGHT / service_s),
                 "kept" if ours[1] <= _BAR_MS else "NOT KEPT")
                for service_s, ours, bare in paced
            ],
        )
    )  # fmt: skip


def _paced(service_s: float, shard: str, rows: int, folder: str, runs: int) -> tuple[list[float], list[float]]:
    """Medians of what `ours` and `bare` return, in turns."""
    with Server(service_s) as url:
        found = [
            measured(loop, url, shard, rows, folder, service_s).returned for _ in range(runs) for loop in (ours, bare)
        ]
    medians = [[statistics.median(column) for column in zip(*part, strict=True)] for part in (found[::2], found[1::2])]
    return medians[0], medians[1]


def write_shard(path: Path, n_rows: int) -> str:
    """A shard file of 2.9 KB chat requests, different in every row."""
    rng = random.Random(7)
    words = [f"{rng.randrange(36**6):06x}" for _ in range(4096)]
    with path.open("wb") as file:
        for _ in range(n_rows):
            text = " ".join(rng.choices(words, k=400))
            body = {"max_tokens": 256, "messages": [{"content": text, "role": "user"}], "model": "m"}
            file.write(json.dumps(body, separators=(",", ":")).encode() + b"\n")
    return str(path)


# --------------------------------------------------------------------------------------------------- what is measured


def ours(url: str, shard: str, rows: int, folder: str, service_s: float = 0.0) -> tuple[float, float, float]:
    """Latency beyond the service time in ms, at the median and the 99th percentile; rows a second."""
    from canwait.providers.crew import Ask, Told
    from canwait.providers.own import Own
    from canwait.providers.spool import Row
    from canwait.types import ShardFile

    took: list[float] = []

    class Timed(Own):
        def __init__(self, spool: Path) -> None:
            super().__init__(url, None, spool, concurrency=IN_FLIGHT)
            asking = self._crew._open_ask

            @asynccontextmanager
            async def open_ask() -> AsyncIterator[Ask]:
                async with asking() as ask:

                    async def timed(row: Row) -> Told:
                        start = time.perf_counter()
                        told = await ask(row)
                        took.append(time.perf_counter() - start)
                        return told

                    yield timed

            self._crew._open_ask = open_ask

    with tempfile.TemporaryDirectory(dir=folder) as spool:
        own = Timed(Path(spool))
        file = ShardFile("cw1", Path(shard), rows, "/v1/chat/completions", "m", 1)
        start = time.perf_counter()
        own.submit(file, lambda: None)
        while not (batch := own.poll("cw1")).status.ended:
            time.sleep(0.02)
        took_s = time.perf_counter() - start
        assert batch.n_done == rows
    return *_beyond(took, service_s), rows / took_s


def _beyond(took: list[float], service_s: float) -> tuple[float, float]:
    """Median and 99th percentile of latencies in s, as ms beyond the service time."""
    beyond = sorted(1e3 * (s - service_s) for s in took)
    return statistics.median(beyond), beyond[int(len(beyond) * 0.99)]


def bare(url: str, shard: str, rows: int, folder: str, service_s: float = 0.0) -> tuple[float, float]:
    from canwait.providers.posting import Connections

    took: list[float] = []

    async def run() -> None:
        connections = Connections({"content-type": "application/json"}, 60.0, 10.0)

        async def post(body: bytes) -> None:
            start = time.perf_counter()
            await connections.post(f"{url}/chat/completions", body)
            took.append(time.perf_counter() - start)

        await _drive(shard, post)
        await connections.close()

    asyncio.run(run())
    return _beyond(took, service_s)


def by_httpx2(url: str, shard: str, rows: int, folder: str) -> None:
    import httpx2

    async def run() -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=IN_FLIGHT)
        async with httpx2.AsyncClient(limits=limits, headers={"content-type": "application/json"}) as client:
            await _drive(shard, lambda body: client.post(f"{url}/chat/completions", content=body), rows)

    asyncio.run(run())


async def _drive(shard: str, post: Callable[[bytes], Awaitable[object]], rows: int | None = None) -> None:
    with open(shard, "rb") as file:
        lines = (line for _, line in zip(range(rows or 1 << 60), file, strict=False))

        async def work() -> None:
            for line in lines:
                await post(line[:-1])

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


# -------------------------------------------------------------------------------------------------------- the server


class Server:
    """A process that answers every request with the same reply, `service_s` after it has arrived."""

    def __init__(self, service_s: float) -> None:
        self._command = [sys.executable, __file__, "--serve", str(service_s)]

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()


class _Answering(asyncio.Protocol):
    service_s = 0.0
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_REPLY), _REPLY)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._read = transport, b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n") + 4) > 3:
            _, found, length = self._read[:end].lower().partition(b"content-length:")
            end += int(length.split(b"\r\n")[0]) if found else 0
            if len(self._read) < end:
                return
            self._read = self._read[end:]
            if self.service_s:
                asyncio.get_running_loop().call_later(self.service_s, self._transport.write, self.reply)
            else:
                self._transport.write(self.reply)


async def _serve(service_s: float) -> None:
    _Answering.service_s = service_s
    server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(_serve(float(sys.argv[2])))
    else:
        main()
