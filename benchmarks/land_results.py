"""Land a job's results and load them: what a row costs against a naive path and against reading the output at all.

    python benchmarks/land_results.py [--rows 1000000] [--runs 5] [--shards 20] [--profile]

A result is about 1.4 kB in OpenAI's shape, its answer JSON of seven fields under a JSON Schema. Each shard's lines are
shuffled; 0.5 % are HTTP 500, 0.2 % other errors, 2 % answers that are cut off or do not fit the schema. Measured are the
engine's own steps over a real ledger: the stored output is decoded, checked, written as results and settled; then the
answers are joined to the rows and loaded into a Parquet file. Every run is a process of its own, on a ledger of its own.

The naive path, on a twentieth of the rows: json.loads, jsonschema, a dict by id, a table from a list of dicts, written.
The floor reads the same lines and decodes each of them and its answer with orjson, keeping nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from measure import measured, ratio, table

if TYPE_CHECKING:
    from canwait.engine import Engine

NOW = datetime(2026, 11, 21, tzinfo=UTC)
JOB, MODEL = "land", "gpt-4o-mini"
LABELS = "account billing bug delivery refund other".split()
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": LABELS},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "priority": {"type": "integer", "minimum": 1, "maximum": 5},
        "language": {"type": "string", "pattern": "^[a-z]{2}$"},
        "summary": {"type": "string", "maxLength": 2000},
        "tags": {"type": "array", "items": {"type": "string"}},
        "escalate": {"type": "boolean"},
    },
    "required": ["label", "score", "priority", "language", "summary", "tags", "escalate"],
    "additionalProperties": False,
}
WORDS = (
    "the invoice I was charged twice for my account cannot log in since update app crashes when opening settings help "
    "please refund password reset email never arrives order number delivery late broken screen button does nothing"
).split()
NAIVE_PART = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="only where the time of one run goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as folder:
        measured(make, folder, args.rows, args.shards)
        if not args.profile:
            compare(folder, args.rows, args.runs)
        stages = measured(profiled, folder).returned
        print(table(["stage", "CPU us/row"], [[name, cpu_s / args.rows * 1e6] for name, cpu_s in stages.items()]))


def compare(folder: str, n_rows: int, n_runs: int) -> None:
    ours = measured(land, folder, runs=n_runs)
    floor_ = measured(floor, folder, runs=n_runs)
    naive_ = measured(naive, folder, runs=min(n_runs, 3))
    naive_cpu_s = naive_.cpu_s * n_rows / naive_.returned
    print(f"{n_rows:,} results, medians of {n_runs} runs; naive: {naive_.returned:,} rows, scaled")
    print(ours.returned)
    rows: list[list[object]] = [
        [name, cpu_s, wall_s, peak_mb, n_rows / cpu_s, naive_cpu_s / cpu_s, cpu_s / floor_.cpu_s]
        for name, cpu_s, wall_s, peak_mb in (
            ("land + load", ours.cpu_s, ours.wall_s, ours.peak_mb),
            ("naive", naive_cpu_s, "", naive_.peak_mb),
            ("floor", floor_.cpu_s, floor_.wall_s, floor_.peak_mb),
        )
    ]
    print(table(["", "CPU s", "wall s", "peak MB", "rows/CPU s", "naive / it", "it / floor"], rows))
    ratio("land_results", "naive / ours", naive_cpu_s / ours.cpu_s)
    ratio("land_results", "floor / ours", floor_.cpu_s / ours.cpu_s)


# --------------------------------------------------------------------------------------------------------- what is run


def land(folder: str) -> dict[str, int]:
    """Land every shard and load the job; how many rows were loaded, and how many had failed."""
    copy = Path(folder) / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(Path(folder) / "job", copy, copy_function=_linked)
    try:
        return _land(copy)
    finally:
        shutil.rmtree(copy)


def _land(folder: Path) -> dict[str, int]:
    from canwait.load import answers
    from canwait.sinks.opening import open_sink
    from canwait.types import Load

    engine = _engine(folder, NOW + timedelta(hours=1))
    while engine.tick(JOB):
        pass
    with answers(engine.ledger, engine.blobs, JOB) as rows:
        n_loaded = open_sink(Load("out.parquet"), folder, "id").load(rows.loaded(), rows.columns.loaded)
        n_failed = open_sink(Load("failed.parquet", "replace"), folder, "id").load(rows.failed(), rows.columns.failed)
    size = (folder / "out.parquet").stat().st_size
    return {"n_loaded": n_loaded, "n_failed": n_failed, "n_bytes": size}


def floor(folder: str) -> None:
    for line in _output(folder):
        try:
            body = orjson.loads(line)["response"]["body"]
            orjson.loads(body["choices"][0]["message"]["content"])
        except (ValueError, KeyError, TypeError):
            pass


def naive(folder: str) -> int:
    """The first shard alone; how many rows it has."""
    import jsonschema
    import pyarrow as pa
    import pyarrow.parquet as pq

    validator = jsonschema.Draft202012Validator(SCHEMA)
    wanted = json.loads((Path(folder) / "first.json").read_text())  # custom id -> key
    found = {}
    for line in _output(folder, shards=1):
        answer = json.loads(line)
        try:
            value = json.loads(answer["response"]["body"]["choices"][0]["message"]["content"])
            validator.validate(value)
        except (ValueError, KeyError, TypeError, jsonschema.ValidationError):
            continue
        found[answer["custom_id"]] = value
    rows = [{"id": key, **found[custom_id]} for custom_id, key in wanted.items() if custom_id in found]
    pq.write_table(pa.Table.from_pylist(rows), Path(folder) / "naive.parquet", compression="zstd")
    return len(wanted)


# ---------------------------------------------------------------------------------------------------------- the stages


def profiled(folder: str) -> dict[str, float]:
    """CPU seconds of each stage of one run, without what the stages it calls took."""
    from canwait import landing, load
    from canwait.ledger import Ledger
    from canwait.sinks.files import FileSink

    spent: dict[str, float] = {}
    running: list[str] = []
    since = time.process_time()

    def switch(push: str | None) -> None:
        nonlocal since
        now = time.process_time()
        stage = running[-1] if running else "everything else"
        spent[stage] = spent.get(stage, 0.0) + now - since
        since = now
        if push is None:
            running.pop()
        else:
            running.append(push)

    def timed(owner: Any, name: str, stage: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        @wraps(call)
        def inner(*args: Any, **kwargs: Any) -> Any:
            switch(stage)
            try:
                return call(*args, **kwargs)
            finally:
                switch(None)

        setattr(owner, name, inner)

    def timed_steps(owner: Any, name: str, stage: str) -> None:
        call: Callable[..., Iterator[Any]] = getattr(owner, name)

        @wraps(call)
        def inner(*args: Any, **kwargs: Any) -> Iterator[Any]:
            steps = call(*args, **kwargs)
            while True:
                switch(stage)
                try:
                    step = next(steps, None)
                finally:
                    switch(None)
                if step is None:
                    return
                yield step

        setattr(owner, name, inner)

    timed(landing, "land", "decode, validate, classify")
    timed(landing.ResultsWriter, "write", "write results")
    timed(landing.ResultsWriter, "close", "write results")
    timed(Ledger, "settle", "settle")
    timed(load.Answers, "__init__", "join")
    timed_steps(load.Answers, "_joined", "join")
    timed_steps(load.Answers, "loaded", "answers to columns")
    timed(FileSink, "load", "write the target")
    land(folder)
    return spent


# ------------------------------------------------------------------------------------------------------------ the data


def make(folder: str, n_rows: int, n_shards: int) -> None:
    """A job whose batches have ended and whose output is stored: what is left is to land it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from canwait.drills.small import SmallJob, plan_small
    from canwait.types import Price, ShardState, Terms, Tier

    home, rng = Path(folder) / "job", random.Random(0)
    home.mkdir()
    engine = _engine(home, NOW)
    rates = Decimal("0.075"), Decimal("0.3"), None, None
    price = Price("openai", MODEL, Tier.BATCH, *rates, "stated for this benchmark", date(2026, 11, 21))
    terms = Terms("openai", MODEL, "/v1/chat/completions", Tier.BATCH, price, SCHEMA, 1, "id", True)
    cuts = [n_rows * i // n_shards for i in range(n_shards + 1)]
    shards = [[b"%d" % row for row in range(start, end)] for start, end in pairwise(cuts)]
    job = SmallJob(JOB, shards, terms, lambda body: (1_000, 500), "https://api.openai.com/v1", 10**15)
    opened = plan_small(engine.blobs, job, NOW)
    columns = {
        "key": pa.array([_key(row) for row in range(n_rows)]),
        "shard": pa.array([i for i, shard in enumerate(shards) for _ in shard], pa.int32()),
        "line": pa.array([line for shard in shards for line in range(len(shard))], pa.int32()),
    }
    pq.write_table(pa.table(columns), Path(folder) / "rows.parquet", compression="zstd", row_group_size=65_536)
    rows_blob = engine.blobs.put((Path(folder) / "rows.parquet").read_bytes())
    engine.ledger.open_plan(replace(opened, body={**opened.body, "rows_blob": rows_blob}), NOW)
    order = [new.id for new in opened.new]
    while shard := engine.ledger.claim("maker", NOW, 60.0):
        if shard.state is not ShardState.ENDED:
            engine.advance(shard)
            continue
        number = order.index(shard.id)
        lines = [
            line for row in range(*cuts[number : number + 2]) if (line := _line(rng, shard.token, row, cuts[number]))
        ]
        rng.shuffle(lines)
        raw = engine.blobs.put_stream(lines)
        engine.ledger.fetched(shard, [raw], NOW)
        (Path(folder) / f"{number}.raw").hardlink_to(engine.blobs.path(raw))
        if number == 0:
            ids = {f"{shard.token}-{line}": _key(line) for line in range(cuts[1])}
            (Path(folder) / "first.json").write_text(json.dumps(ids))


def _key(row: int) -> str:
    return f"ticket-{row:08}"


def _line(rng: random.Random, token: str | None, row: int, first: int) -> bytes:
    """One line of output in OpenAI's shape."""
    luck = rng.random()
    custom_id = f"{token}-{row - first}"
    error: Any = None
    usage = {
        "prompt_tokens": rng.randrange(500, 700), "completion_tokens": rng.randrange(90, 200), "total_tokens": 800,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                      "rejected_prediction_tokens": 0},
    }  # fmt: skip
    choice = {"index": 0, "message": {"role": "assistant", "content": _answer(rng, luck), "refusal": None, "annotations": []},
              "logprobs": None, "finish_reason": "stop"}  # fmt: skip
    body: Any = {"id": f"chatcmpl-{rng.getrandbits(112):028x}", "object": "chat.completion", "created": 1_790_000_000,
                 "model": f"{MODEL}-2024-07-18", "choices": [choice], "usage": usage, "service_tier": "default",
                 "system_fingerprint": "fp_560af6e559"}  # fmt: skip
    status = 200
    if luck < 0.005:
        status, body = 500, {"error": {"message": "The server had an error", "type": "server_error", "code": None}}
    response: Any = {"status_code": status, "request_id": f"{rng.getrandbits(128):032x}", "body": body}
    if 0.005 <= luck < 0.007:
        response, error = None, {"code": "unknown_error", "message": "The request could not be processed"}
    line = {"id": f"batch_req_{rng.getrandbits(96):024x}", "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(line) + b"\n"


def _answer(rng: random.Random, luck: float) -> str:
    answer = {
        "label": rng.choice(LABELS) if not 0.007 <= luck < 0.017 else "unheard of", "score": rng.random(),
        "priority": rng.randrange(1, 6), "language": "en", "summary": " ".join(rng.choices(WORDS, k=80)),
        "tags": rng.choices(WORDS, k=3), "escalate": luck > 0.9,
    }  # fmt: skip
    text = orjson.dumps(answer).decode()
    return text[: len(text) // 2] if 0.017 <= luck < 0.027 else text


def _output(folder: str, shards: int | None = None) -> Iterator[bytes]:
    """The stored output, line by line."""
    for path in sorted(Path(folder).glob("*.raw"), key=lambda path: int(path.stem))[:shards]:
        with path.open("rb") as file:
            yield from file


def _engine(folder: Path, now: datetime) -> Engine:
    from canwait.blobs import Blobs
    from canwait.db import connect
    from canwait.engine import Engine, Pace
    from canwait.ledger import Ledger
    from canwait.providers.openai import OpenAI
    from canwait.types import Batch, BatchStatus

    class Stopped:
        def now(self) -> datetime:
            return now

        def sleep(self, seconds: float) -> None:
            raise AssertionError("nothing is waited for")

    class AtOnce(OpenAI):
        """Every batch has ended when it is first asked about."""

        def submit(self, shard: Any, guard: Callable[[], None]) -> Batch:
            guard()
            return Batch(f"batch_{shard.token}", BatchStatus.RUNNING, now)

        def poll(self, batch_id: str) -> Batch:
            return Batch(batch_id, BatchStatus.COMPLETED, now, outputs=("output",))

    provider = AtOnce("none")
    ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.db'}"))
    pace = Pace(poll_s=0.0, heartbeat=False)
    return Engine(ledger, Blobs(folder / "blobs"), lambda name: provider, Stopped(), holder="benchmark", pace=pace)


def _linked(source: str, target: str) -> None:
    """Blobs never change, so a copy of them may be the same file; the ledger does."""
    if "blobs" in Path(source).parts:
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
