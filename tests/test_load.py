"""Results become rows by position: the right answer at every row, in source order, each cent once, in little memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait import load
from canwait.blobs import Blobs
from canwait.clock import to_us
from canwait.codec import terms_to_json
from canwait.errors import SinkError
from canwait.landing import SCHEMA
from canwait.ledger import Ledger
from canwait.load import Answers
from canwait.sinks.opening import open_sink, read_back
from canwait.sinks.rows import field_types, fitted
from canwait.types import Load, Outcome, Price, Terms, Tier

NOW = datetime(2026, 11, 21, tzinfo=UTC)
PRICE = Price("fake", "m", Tier.BATCH, Decimal(1), Decimal(1), None, None, "this test", date(2026, 11, 21))
Record = tuple[int, Outcome, Any]  # line, outcome, text or vector
OUTCOMES = [Outcome.OK, Outcome.OK, Outcome.OK, Outcome.FAILED, Outcome.EXPIRED, Outcome.MISSING]


class Shelf:
    """A ledger of one job that has ended: what `Answers` asks of one."""

    def __init__(
        self,
        blobs: Blobs,
        rows: Sequence[tuple[int, int]],
        shards: Sequence[Shard],
        *,
        schema: Any,
        embeds: bool,
        again: Collection[tuple[int, int]] = (),
    ) -> None:
        endpoint = "/v1/embeddings" if embeds else "/v1/chat/completions"
        self.terms = Terms("fake", "m", endpoint, Tier.BATCH, PRICE, schema, 3, "id", True)
        columns = {
            "key": [f"k{n}" for n in range(len(rows))],
            "shard": pa.array([shard for shard, _ in rows], pa.int32()),
            "line": pa.array([line for _, line in rows], pa.int32()),
        }
        self.rows_blob = put(blobs, pa.table(columns))
        self.shards = [
            {
                "shard": f"s{n}",
                "n_lines": n_lines,
                "owner_job": "other" if foreign else "job",
                "vector": zlib.compress(bytes((n, line) not in again for line in range(n_lines))),
            }
            for n, (n_lines, foreign, _) in enumerate(shards)
        ]
        self.files = {
            f"s{n}": [
                {"results_blob": put(blobs, results(records)), "settled_us": to_us(settled_at(k)), "attempt": k}
                for k, records in enumerate(files)
            ]
            for n, (_, _, files) in enumerate(shards)
        }

    def job(self, name: str) -> Mapping[str, Any]:
        return {"plan": "digest"}

    def query(self, statement: str, **of: Any) -> list[Mapping[str, Any]]:
        match statement:
            case "plan":
                terms = json.dumps(terms_to_json(self.terms))
                return [{"body": json.dumps({"rows_blob": self.rows_blob}), "terms": terms}]
            case "plan_shards":
                return list(self.shards)
            case "withdrawals":
                return []
            case _:
                assert statement == "shards_of_root"
                sent = [{"id": str(n), **file} for n, file in enumerate(self.files[of["root"]])]
                return [*reversed(sent), {"id": "9", "results_blob": None, "settled_us": None, "attempt": 9}]


Shard = tuple[int, bool, Sequence[Sequence[Record]]]  # lines, paid by another job, results of each time it was sent


def put(blobs: Blobs, table: pa.Table) -> str:
    with blobs.scratch() as folder:
        pq.write_table(table, folder / "t.parquet", row_group_size=max(3, len(table) // 10))
        return blobs.adopt(folder / "t.parquet")


def results(records: Sequence[Record]) -> pa.Table:
    rows = [
        {
            "line": line, "outcome": int(outcome), "cause": None if outcome is Outcome.OK else outcome.name.lower(),
            "detail": f"detail {n}", "output": body if isinstance(body, str) else None, "model": f"m{n}",
            "cost_micros": cost_of(line, n), "vector": body if isinstance(body, bytes) else None,
        }
        for n, (line, outcome, body) in enumerate(records)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def cost_of(line: int, record: int) -> Decimal | None:
    return None if line == 1 else Decimal(f"{line + 1}.5") + record


def settled_at(attempt: int) -> datetime:
    return NOW + timedelta(hours=attempt)


def answers(
    folder: Path,
    rows: Sequence[tuple[int, int]],
    shards: Sequence[Shard],
    *,
    schema: Any = None,
    embeds: bool = False,
    again: Collection[tuple[int, int]] = (),
) -> Answers:
    """`again`: shard and line of those that are being sent again."""
    blobs, scratch = Blobs(folder / "blobs"), folder / "scratch"
    scratch.mkdir(exist_ok=True)
    shelf = Shelf(blobs, rows, shards, schema=schema, embeds=embeds, again=again)
    return Answers(cast(Ledger, shelf), blobs, "job", scratch)


def expected(rows: Sequence[tuple[int, int]], shards: Sequence[Shard]) -> tuple[list[Any], list[Any]]:
    """The same by the plainest means: loaded rows and failed rows."""
    final: dict[tuple[int, int], Any] = {}
    for shard, (_, _, files) in enumerate(shards):
        for attempt, records in enumerate(files):
            done = {place for place, found in final.items() if found[0] is Outcome.OK}
            for n, (line, outcome, text) in enumerate(records):
                if (shard, line) not in done:
                    final[shard, line] = outcome, n, text, attempt
    loaded, failed, charged = [], [], set()
    for number, place in enumerate(rows):
        if place not in final:
            continue
        outcome, n, text, attempt = final[place]
        if outcome is not Outcome.OK:
            failed.append((f"k{number}", outcome.name.lower(), outcome.name.lower(), f"detail {n}"))
            continue
        micros = cost_of(place[1], n)
        free = shards[place[0]][1] or place in charged
        charged.add(place)
        usd = Decimal(0) if free else None if micros is None else micros / 1_000_000
        loaded.append((f"k{number}", text, f"m{n}", "batch", usd, settled_at(attempt)))
    return loaded, failed


def flat(batches: Any) -> list[Any]:
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Shard]]:
    shards: list[Shard] = []
    for _ in range(draw(st.integers(1, 3))):
        n_lines = draw(st.integers(1, 6))
        record = st.tuples(
            st.integers(0, n_lines - 1), st.sampled_from(OUTCOMES), st.sampled_from(["a", "b", "漢" * 9])
        )
        files = draw(st.lists(st.lists(record, max_size=9), max_size=3))
        shards.append((n_lines, draw(st.booleans()), files))
    places = [(shard, line) for shard, (n_lines, _, _) in enumerate(shards) for line in range(n_lines)]
    return draw(st.lists(st.sampled_from(places), max_size=25)), shards


@given(job=jobs(), again=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 5))))
@settings(max_examples=50)
def test_a_row_that_is_being_sent_again_has_not_ended(
    tmp_path_factory: pytest.TempPathFactory, job: Any, again: set[tuple[int, int]]
) -> None:
    """What its last sending brought is not the last word: it is among neither the loaded nor the failed rows."""
    rows, shards = job
    found = answers(tmp_path_factory.mktemp("load"), rows, shards, again=again)
    waiting = {f"k{n}" for n, place in enumerate(rows) if place in again}
    loaded, failed = ([row for row in part if row[0] not in waiting] for part in expected(rows, shards))
    assert [row[0] for row in flat(found.loaded())] == [row[0] for row in loaded]
    assert [row[0] for row in flat(found.failed())] == [row[0] for row in failed]


@given(job=jobs(), stretch_rows=st.sampled_from([1, 2, 5, 100]), stretch_bytes=st.sampled_from([1, 20, 10**6]))
@settings(max_examples=300)
def test_every_row_gets_its_answer(
    tmp_path_factory: pytest.TempPathFactory, job: Any, stretch_rows: int, stretch_bytes: int
) -> None:
    """However rows share lines, lines are repeated or tried again and stretches are cut: the rows of the plain model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_STRETCH_ROWS", stretch_rows)
        patch.setattr(load, "_STRETCH_BYTES", stretch_bytes)
        patch.setattr(load, "_BATCH_ROWS", 2)
        found = answers(tmp_path_factory.mktemp("load"), *job)
        loaded, failed = expected(*job)
        assert flat(found.loaded()) == loaded
        assert flat(found.failed()) == failed
        assert list(found.texts()) == [row[:2] for row in loaded]


def test_answers_in_any_order_come_out_in_the_source_s(tmp_path: Path) -> None:
    """50,000 rows whose results came shuffled, over many stretches, are in source order and each has its own."""
    n, rng = 50_000, random.Random(0)
    lines = list(range(n))
    rng.shuffle(lines)
    rows = [(line % 2, line // 2) for line in range(n)]
    shards = [
        (n // 2, False, [[(line // 2, Outcome.OK, str(line)) for line in lines if line % 2 == k]]) for k in (0, 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_STRETCH_ROWS", 4_096)
        found = answers(tmp_path, rows, shards)
        assert [(row[0], row[1]) for row in flat(found.loaded())] == [(f"k{i}", str(i)) for i in range(n)]


def test_neighbouring_rows_are_joined_without_a_disk(tmp_path: Path) -> None:
    """Where each shard's rows lie together, in whatever order its results came, nothing of them is written anywhere."""
    rows = [(shard, line) for shard in range(4) for line in range(500)]
    lines = random.Random(0).sample(range(500), 500)
    shards = [(500, False, [[(line, Outcome.OK, f"{shard} {line}") for line in lines]]) for shard in range(4)]
    found = answers(tmp_path, rows, shards)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        loaded = flat(found.loaded())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [row[1] for row in loaded] == [f"{shard} {line}" for shard, line in rows]


# -------------------------------------------------------------------------------------------------------------- memory

MEASURED = """
import pickle, sys
from pathlib import Path
from canwait.sinks import formats
from test_load import Answers, Blobs, Load, load, open_sink
load._STRETCH_BYTES = formats.ROW_GROUP_BYTES = 2 << 20  # the smaller job has several of them too
folder = Path(sys.argv[1])
with (folder / "shelf").open("rb") as file:
    found = Answers(pickle.load(file), Blobs(folder / "blobs"), "job", folder)
print(open_sink(Load("out.parquet"), folder, "id").load(found.loaded(), found.columns.loaded))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_a_load_is_a_few_bytes_a_row(tmp_path: Path) -> None:
    """The peak of loading 200,000 rows, each seventh with another's answer, is that of 20,000 and at most 150 bytes a row."""

    def peak_bytes(n_rows: int) -> int:
        rng, folder = random.Random(0), tmp_path / f"{n_rows}"
        rows = [(n // 5_000, n % 5_000) for n in range(n_rows)]
        rows = [rows[rng.randrange(n)] if n % 7 == 6 else row for n, row in enumerate(rows)]
        lines = rng.sample(range(5_000), 5_000)
        shards = [
            (5_000, False, [[(line, Outcome.OK, f"{shard} {line}" + " because" * 100) for line in lines]])
            for shard in range(n_rows // 5_000)
        ]
        shelf = Shelf(Blobs(folder / "blobs"), rows, shards, schema=None, embeds=False)
        (folder / "shelf").write_bytes(pickle.dumps(shelf))
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # gives back what is free
        command = [sys.executable, "-c", MEASURED, str(folder)]
        here = Path(__file__).parent
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=here, env=environment)
        n_loaded, peak_kb = map(int, done.stdout.split())
        assert n_loaded == n_rows
        return peak_kb * 1024

    small, large = peak_bytes(20_000), peak_bytes(200_000)
    assert large - small < 180_000 * 150, (small, large)


# ------------------------------------------------------------------------------------------------------------- columns

FIELDS: dict[str, Any] = {
    "s": {"type": "string"}, "i": {"type": "integer"}, "f": {"type": "number"}, "b": {"type": "boolean"},
    "u": {"type": ["string", "integer"]}, "ls": {"type": "array", "items": {"type": "string"}},
    "li": {"type": "array", "items": {"type": "integer"}},
    "o": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "string"}}},
}  # fmt: skip
VALUES = {
    "s": ["", "a", None], "i": [1, 2.0, None, 2**62], "f": [1, 0.5, None, 2**60], "b": [True, False, None],
    "u": ["1", 1, None, {"z": 1}], "ls": [[], ["a", "b"], None, [None]], "li": [[1, 2.0], [], None],
    "o": [{"x": 1, "y": "b"}, {}, {"x": 2.0, "z": 0}, {"y": 5}, None],
}  # fmt: skip


@given(st.lists(st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in VALUES.items()}), max_size=8))
def test_fields_become_columns_as_each_value_would(tmp_path_factory: pytest.TempPathFactory, found: list[Any]) -> None:
    """A column taken at once holds what its values, fitted one by one, would be: integers written 2.0, text of what is none."""
    schema = {"properties": FIELDS}
    records = [(line, Outcome.OK, json.dumps(value)) for line, value in enumerate(found)] or [(0, Outcome.FAILED, None)]
    rows = [(0, line) for line in range(len(found))]
    columns = answers(tmp_path_factory.mktemp("load"), rows, [(8, False, [records])], schema=schema)
    table = pa.Table.from_batches(list(columns.loaded()), columns.columns.loaded)
    for name, kind in field_types(schema).items():
        assert table[name].to_pylist() == pa.array([fitted(v.get(name), kind) for v in found], kind).to_pylist()


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"s"', "{}"])
def test_an_answer_that_is_no_object_has_no_fields(tmp_path: Path, text: str) -> None:
    """Under a schema that lets other values through, such an answer is a row of nulls and no crash."""
    records = [(0, Outcome.OK, text), (1, Outcome.OK, '{"s":"a","i":1}')]
    found = answers(tmp_path, [(0, 0), (0, 1)], [(2, False, [records])], schema={"properties": FIELDS})
    assert [row[1:3] for row in flat(found.loaded())] == [(None, None), ("a", 1)]


@pytest.mark.parametrize(("name", "value"), [("i", 3.5), ("i", 2**63), ("li", [2**70])])
def test_a_value_that_no_column_can_hold_is_named(tmp_path: Path, name: str, value: Any) -> None:
    """A number beyond its type is an error that names the field, never cut to fit."""
    records = [(0, Outcome.OK, json.dumps({name: value}))]
    found = answers(tmp_path, [(0, 0)], [(1, False, [records])], schema={"properties": FIELDS})
    with pytest.raises(SinkError, match=f"field {name}"):
        list(found.loaded())


# ---------------------------------------------------------------------------------------------------------- embeddings


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def embeddings(tmp_path: Path) -> Answers:
    records = [(2, Outcome.OK, floats(0.5, -1)), (0, Outcome.OK, floats(0.1, 3e38)), (1, Outcome.FAILED, None)]
    return answers(tmp_path, [(0, 0), (0, 1), (0, 2), (0, 0)], [(3, False, [records])], embeds=True)


def test_embeddings_are_a_column_of_fixed_size_lists(tmp_path: Path) -> None:
    """Each row has its vector, bit by bit; rows that share one, too; a row without one is among the failed."""
    found = embeddings(tmp_path)
    assert found.columns.loaded.field("embedding").type == pa.list_(pa.float32(), 2)
    table = pa.Table.from_batches(list(found.loaded()), found.columns.loaded)
    vectors = table["embedding"].combine_chunks()
    assert [floats(*vector) for vector in vectors.to_pylist()] == [
        floats(0.1, 3e38),
        floats(0.5, -1),
        floats(0.1, 3e38),
    ]
    assert [row[0] for row in flat(found.failed())] == ["k1"]
    texts = dict(found.texts())
    assert {key: floats(*json.loads(text)) for key, text in texts.items()}["k2"] == floats(0.5, -1)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "tsv"])
def test_embeddings_lie_in_every_format(tmp_path: Path, ending: str) -> None:
    """A Parquet target has the list type, JSONL an array, CSV and TSV JSON text; loading again changes nothing."""
    path = tmp_path / f"vectors.{ending}"
    for _ in range(2):
        found = embeddings(tmp_path)
        assert open_sink(Load(path.name), tmp_path, "id").load(found.loaded(), found.columns.loaded) == 3
    vectors = read_back(path)["embedding"].to_pylist()
    if ending in ("csv", "tsv"):
        vectors = [json.loads(text) for text in vectors]
    assert [floats(*vector) for vector in vectors] == [floats(0.1, 3e38), floats(0.5, -1), floats(0.1, 3e38)]
    if ending == "parquet":
        assert pq.read_schema(path).field("embedding").type == pa.list_(pa.float32(), 2)


def test_embeddings_of_two_lengths_are_an_error_with_a_way_out(tmp_path: Path) -> None:
    """Shards whose vectors differ in length cannot be one column: the error says both lengths and what to do."""
    shards = [(1, False, [[(0, Outcome.OK, floats(*range(n)))]]) for n in (2, 3)]
    found = answers(tmp_path, [(0, 0), (1, 0)], shards, embeds=True)
    with pytest.raises(SinkError, match="of 2 and of 3 numbers") as caught:
        open_sink(Load("v.parquet"), tmp_path, "id").load(found.loaded(), found.columns.loaded)
    assert not (tmp_path / "v.parquet").exists()
    assert "dimensions" in str(caught.value.own_hint)


def test_no_embedding_at_all_loads_nothing(tmp_path: Path) -> None:
    """A job none of whose rows has a vector has a target without rows."""
    found = answers(tmp_path, [(0, 0)], [(1, False, [[(0, Outcome.FAILED, None)]])], embeds=True)
    assert open_sink(Load("v.parquet"), tmp_path, "id").load(found.loaded(), found.columns.loaded) == 0
