"""Responses and embeddings: jobs run to their end against the simulator, and what the official client makes of it."""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import openai
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.responses import Response

import canwait
from canwait.errors import SpecError
from canwait.landing import ResultsWriter, checker, land
from canwait.providers.openai import decode_line, plain_line
from canwait.simulator import Scenario, echo
from canwait.simulator.answers import embedding
from canwait.tokens import EMBEDDING, counter
from canwait.types import Answer, Outcome, Price, ShardFile, Tier
from simulated import LABEL, Desk, Simulated, desk, join, simulated

EMBED: dict[str, Any] = {
    "model": "text-embedding-3-small", "endpoint": "embeddings", "prompt": "{{ text }}", "output": None,
    "max_output_tokens": None, "load": "vectors.parquet", "params": {"dimensions": 8},
}  # fmt: skip


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """A provider on a good day."""
    with desk(tmp_path) as d:
        yield d


def numbers(vector: bytes) -> list[float]:
    return [float(number) for number in numpy.frombuffer(vector, "<f4")]


def written(office: Desk) -> dict[str, str]:
    """The rows that `Desk.write` wrote: key and text."""
    lines = (office.folder / "rows.csv").read_text("utf-8").splitlines()[1:]
    return dict(line.split(",", 1) for line in lines)


# ------------------------------------------------------------------------------------------------------- whole jobs


def test_an_embeddings_job_lands_its_vectors(office: Desk) -> None:
    """Each row gets its text's vector as a fixed-size list of 32-bit floats, equal rows pay once, output costs nothing."""
    office.write(**EMBED)
    said = office.run()
    assert (said.code, said.json["state"]) == (0, "completed"), said.err

    table = pq.read_table(office.folder / "vectors.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert table.column_names[:2] == ["id", "embedding"]
    found = dict(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    assert found == {key: numbers(embedding(text, 8)) for key, text in written(office).items()}
    assert set(table["_model"].to_pylist()) == {"text-embedding-3-small"}

    [line] = office.simulator.bill()
    assert (line.n_rows, line.usage.output_tokens, line.model) == (11, 0, "text-embedding-3-small")
    assert said.json["confirmed_usd"] == office.bill_usd()
    assert float(office.bill_usd()) > 0


@pytest.mark.parametrize("schema", [LABEL, None], ids=["schema", "text"])
def test_a_responses_job_lands_its_answers(office: Desk, schema: dict[str, Any] | None) -> None:
    """A job at the responses endpoint loads typed columns with a schema and the text without one, as chat does."""
    office.write(endpoint="responses", system="Be brief.", params={"reasoning": {"effort": "low"}}, output=schema)
    said = office.run()
    assert (said.code, said.json["state"]) == (0, "completed"), said.err

    table = pq.read_table(office.folder / "labels.parquet")
    assert table["id"].to_pylist() == list(written(office))
    if schema:
        assert set(table["label"].to_pylist()) <= {"billing", "bug", "account"}
        assert table.schema.field("urgency").type == pa.int64()
    else:
        assert all((text or "").strip() for text in table["output"].to_pylist())
    assert said.json["confirmed_usd"] == office.bill_usd()
    assert office.canwait("run", "job.yaml", "--yes", "--json").code == 0
    assert len(office.simulator.batches()) == 1, "a second run sends nothing"


def test_the_plan_of_embeddings_has_no_output(office: Desk) -> None:
    """Input is counted or bounded and priced; output is 0 at its bound, so the worst case is the input's."""
    office.write(**EMBED)
    plan = office.canwait("plan", "job.yaml", "--json").json
    assert (plan["endpoint"], plan["output_bound"], plan["output_expected"]) == ("/v1/embeddings", 0, 0)
    assert plan["output_basis"] == "an embedding has none"
    assert 0 < plan["input_expected"] <= plan["input_bound"]
    assert Decimal(plan["price"]["output"]) == 0


@pytest.mark.recorded
def test_the_input_of_a_recorded_batch_is_counted_as_it_was_billed(shared: Path) -> None:
    """An embedding is billed exactly the tokens of its text: nothing stands around it."""
    file = shared / "data" / "recorded" / "openai-batch-embeddings-2026.jsonl"
    if not file.is_file():
        pytest.skip("no recorded exchanges beside the repository")
    pytest.importorskip("toktok")
    exchanges = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    sent = [json.loads(line) for line in exchanges[0]["request"].splitlines() if line.startswith("{")]
    output = next(e["response"] for e in exchanges if e["url"].endswith("/content"))
    billed = {a.custom_id: a.usage for a in map(decode_line, output.encode().splitlines())}

    measured = counter("openai", "text-embedding-3-small").measure(
        [[row["body"]["input"]] for row in sent], 0, EMBEDDING
    )
    assert [(tokens.expected, tokens.kind) for tokens in measured] == [
        (usage.input_tokens, "counted") for row in sent if (usage := billed[row["custom_id"]])
    ]


def test_a_model_that_bills_output_makes_no_embeddings(office: Desk) -> None:
    """A chat model at the embeddings endpoint is refused before a row is read, at the field that is wrong."""
    office.write(**EMBED | {"model": "openai/gpt-4o-mini"})
    said = office.canwait("plan", "job.yaml", "--json")
    assert said.code == 2
    assert "endpoint" in said.err
    assert "openai/gpt-4o-mini bills output" in said.err


def test_spoilt_vectors_are_failed_rows_with_a_cause(tmp_path: Path) -> None:
    """A vector cut short and a missing one are paid, malformed, loaded beside the good ones, and never sent again."""
    with desk(tmp_path, "row_empty=1,row_invalid_json=1,row_400=1") as office:
        office.write(**EMBED)  # the last row repeats the first
        said = office.run()
        failed = pq.read_table(office.folder / "vectors.failed.parquet").to_pylist()
        causes = {row["id"]: row["_cause"] for row in failed}
        assert causes["000000"] == causes["000011"] == "invalid_request"
        assert sorted(causes.values()) == [*["invalid_request"] * 2, *["malformed"] * 2]
        assert pq.read_table(office.folder / "vectors.parquet").num_rows + len(failed) == 12
        assert len(office.simulator.batches()) == 1
        assert said.json["confirmed_usd"] == office.bill_usd()


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
def test_a_frame_gets_its_vectors(office: Desk, kind: str) -> None:
    """`map` embeds the rows of a frame and gives the same kind of frame back, with the column `embedding`."""
    rows = {"n": ["a", "b", "c"], "text": ["one", "two", "one"]}
    frame: Any = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table}[kind](rows)
    job: dict[str, Any] = {"model": "text-embedding-3-small", "key": "n", "prompt": "{{ text }}", "budget_usd": 1}
    job |= {"endpoint": "embeddings", "params": {"dimensions": 4}}
    with canwait.connect(f"sqlite:///{office.folder}/ledger.db", env=office.env) as client:
        handle = canwait.map(frame, "vectors", client=client, **job)
        answered = handle.run()
        values = {row.key: row.value for row in handle.rows() if isinstance(row, canwait.Ok)}
        with pytest.raises(SpecError, match="embedding"):
            canwait.map(pa.table({**rows, "embedding": rows["n"]}), "again", client=client, **job)
    assert type(answered) is type(frame)
    expected = [numbers(embedding(text, 4)) for text in rows["text"]]
    assert [list(vector or ()) for vector in pa.table(answered)["embedding"].to_pylist()] == expected
    assert [values[key] for key in rows["n"]] == [pytest.approx(vector, rel=1e-6) for vector in expected]


@pytest.mark.parametrize("endpoint", ["responses", "embeddings"])
def test_a_server_of_our_own_is_asked_at_the_endpoint(office: Desk, endpoint: str) -> None:
    """The row-by-row tier posts to the job's endpoint, and lands what comes back as a batch would, for nothing."""
    embeds = endpoint == "embeddings"
    fields = EMBED if embeds else {"endpoint": endpoint, "output": None}
    office.write(4, **fields | {"model": "own/text-embedding-3-small" if embeds else "own/m"})
    said = office.run()
    assert (said.code, said.json["state"]) == (0, "completed"), said.err
    table = pq.read_table(office.folder / f"{'vectors' if embeds else 'labels'}.parquet")
    found = dict(zip(table["id"].to_pylist(), table["embedding" if embeds else "output"].to_pylist(), strict=True))
    assert list(found) == list(written(office))
    if embeds:
        assert found == {key: numbers(embedding(text, 8)) for key, text in written(office).items()}
    assert Decimal(said.json["confirmed_usd"]) == 0


@pytest.mark.parametrize("key", ["embedding", "_model"])
def test_a_key_named_as_the_vectors_is_refused_before_anything_is_paid(office: Desk, key: str) -> None:
    """Two columns cannot have one name, so the job is not sent."""
    office.write(**EMBED | {"source": {"uri": "rows.csv", "key": key}})
    (office.folder / "rows.csv").write_text(f"{key},text\na,b\n", "utf-8")
    said = office.run()
    assert said.code == 2
    assert f"field {key} has the name" in said.err
    assert office.simulator.batches() == []


# ------------------------------------------------------------------------------------------------------------ landing


def vector_line(n: int, *found: float) -> bytes:
    data = [{"index": 0, "embedding": b64encode(struct.pack(f"<{len(found)}f", *found)).decode()}]
    return result_line(n, {"data": data, "model": "e", "usage": {"prompt_tokens": 3, "total_tokens": 3}})


def chat_line(n: int) -> bytes:
    choice = {"message": {"content": "Hi"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return result_line(n, {"choices": [choice], "model": "e", "usage": usage})


def result_line(n: int, body: dict[str, Any]) -> bytes:
    return json.dumps({"custom_id": f"tok-{n}", "response": {"status_code": 200, "body": body}}).encode()


def landed(folder: Path, endpoint: str, body: bytes, *lines: bytes) -> list[dict[str, Any]]:
    """The records of a shard whose output these lines are."""
    (folder / "tok.jsonl").write_bytes(body + b"\n")
    shard = ShardFile("tok", folder / "tok.jsonl", len(lines), endpoint, "e", 86_400)
    writer = ResultsWriter(folder / "results.parquet", range(len(lines)))
    price = Price("openai", "e", Tier.BATCH, Decimal(1), Decimal(0), None, None, "page", date(2026, 11, 1))
    land(lines, shard, decode=decode_line, plain=plain_line, check=checker(None), price=price, writer=writer)
    writer.close()
    return pq.read_table(folder / "results.parquet").to_pylist()


def test_vectors_of_another_length_are_failed_rows(tmp_path: Path) -> None:
    """Asked for two numbers a vector of three is no answer; what it cost is kept."""
    body = b'{"dimensions":2,"input":"x","model":"e"}'
    good, bad = landed(tmp_path, "/v1/embeddings", body, vector_line(0, 1, -0.5), vector_line(1, 1, 2, 3))
    assert (good["outcome"], good["vector"], good["output"]) == (Outcome.OK, struct.pack("<2f", 1, -0.5), None)
    assert (bad["outcome"], bad["cause"], bad["cost_micros"]) == (Outcome.FAILED, "schema", 3)


def test_an_answer_of_another_endpoint_is_a_failed_row(tmp_path: Path) -> None:
    """A text where a vector was asked for, or a vector where a text was, never counts as an answer."""
    good, bad = landed(tmp_path, "/v1/embeddings", b"{}", vector_line(0, 1), chat_line(1))
    assert (good["outcome"], bad["outcome"], bad["cause"]) == (Outcome.OK, Outcome.FAILED, "malformed")
    good, bad = landed(tmp_path, "/v1/chat/completions", b"{}", chat_line(0), vector_line(1, 1))
    assert (good["output"], bad["outcome"], bad["cause"], bad["vector"]) == ("Hi", Outcome.FAILED, "malformed", None)


# ------------------------------------------------------------------------------------------------- the official client


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Simulated]:
    with simulated(tmp_path, answer=echo) as running:
        yield running


def request_line(n: int, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": f"tok-{n}", "method": "POST", "url": url, "body": body}


def batch(sim: Simulated, endpoint: Any, *bodies: dict[str, Any]) -> Any:
    """The ended batch of these requests."""
    file = sim.upload(join([request_line(n, endpoint, body) for n, body in enumerate(bodies)]))
    sent = sim.openai.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h")
    assert sent.endpoint == endpoint
    return sim.finish(sent)


def response(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "input": [{"role": "user", "content": text}], "max_output_tokens": 64} | fields


def vector(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "text-embedding-3-small", "input": text} | fields


def answers(sim: Simulated, file_id: str | None) -> list[Answer]:
    return [decode_line(json.dumps(line).encode()) for line in sim.lines(file_id)]


def test_the_official_client_reads_batched_responses(sim: Simulated) -> None:
    """A response from a batch is one to the SDK, its text is what we decode, and the batch's bill is its rows'."""
    ended = batch(sim, "/v1/responses", response("Say hello."), response("And bye.", store=False))
    read = [Response.model_validate(line["response"]["body"]) for line in sim.lines(ended.output_file_id)]
    ours = answers(sim, ended.output_file_id)

    assert [r.output_text for r in read] == [a.text for a in ours] == ["Say hello.", "And bye."]
    assert [(r.status, r.to_dict()["store"]) for r in read] == [("completed", True), ("completed", False)]
    assert [a.usage and (a.usage.input_tokens, a.usage.output_tokens) for a in ours] == [
        (r.usage and (r.usage.input_tokens, r.usage.output_tokens)) for r in read
    ]
    assert ended.usage.total_tokens == sum(r.usage.total_tokens for r in read if r.usage)
    assert sim.openai.responses.create(model="gpt-4o-mini", input="Say hello.").output_text == "Say hello."


@pytest.mark.parametrize(
    ("fault", "cause", "reason"),
    [
        ("row_length", "length", "max_output_tokens"),
        ("row_content_filter", "content_filter", "content_filter"),
        ("row_refusal", "refused", None),
        ("row_empty", "empty", None),
    ],
)
def test_a_spoilt_response_has_the_causes_of_chat(tmp_path: Path, fault: str, cause: str, reason: str | None) -> None:
    """Cut, filtered, declined and empty responses are what they are at chat, billed all the same."""
    with simulated(tmp_path, Scenario.parse(fault)) as sim:
        ended = batch(sim, "/v1/responses", response("Tell me a story."))
        [line] = sim.lines(ended.output_file_id)
        read = Response.model_validate(line["response"]["body"])
        [ours] = answers(sim, ended.output_file_id)
    assert (ours.outcome, ours.cause) == (Outcome.FAILED, cause)
    assert ours.usage
    assert read.usage
    assert ours.usage.output_tokens == read.usage.output_tokens > 0
    assert (read.incomplete_details and read.incomplete_details.reason) == reason


def test_the_official_client_reads_batched_vectors(sim: Simulated) -> None:
    """Floats and base64 are the same vector to the SDK and to us, batched and synchronous, of length 1."""
    floats, packed = vector("Grüße", dimensions=16), vector("Grüße", dimensions=16, encoding_format="base64")
    ended = batch(sim, "/v1/embeddings", floats, packed)
    bodies = [line["response"]["body"] for line in sim.lines(ended.output_file_id)]
    stated = [CreateEmbeddingResponse.model_validate(bodies[0]).data[0].embedding]
    stated.append(numbers(b64decode(bodies[1]["data"][0]["embedding"])))
    stated.append(sim.openai.embeddings.create(**floats).data[0].embedding)
    stated += [numbers(a.vector or b"") for a in answers(sim, ended.output_file_id)]

    assert all(each == stated[0] for each in stated)
    assert numpy.linalg.norm(stated[0]) == pytest.approx(1, rel=1e-6)
    assert (ended.usage.output_tokens, ended.usage.input_tokens) == (0, 2 * bodies[0]["usage"]["prompt_tokens"])
    many = sim.openai.embeddings.create(**vector(["a", "b"]))
    assert [(e.index, len(e.embedding)) for e in many.data] == [(0, 1536), (1, 1536)]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", response("x", max_output_tokens=15)),
        ("/v1/responses", response("x", messages=[])),
        ("/v1/responses", response("", input=[])),
        ("/v1/responses", response("x", input=[{"role": "robot", "content": "x"}])),
        ("/v1/embeddings", vector("x", max_tokens=5)),
        ("/v1/embeddings", vector("")),
        ("/v1/embeddings", vector(["a", ""])),
        ("/v1/embeddings", vector("x", dimensions=1537)),
        ("/v1/embeddings", vector("x", encoding_format="hex")),
    ],
)
def test_parameters_an_endpoint_does_not_have_fail_the_row(sim: Simulated, endpoint: str, body: dict[str, Any]) -> None:
    """The simulated endpoints are as strict as OpenAI's, so a body of the wrong shape is noticed, unbilled."""
    ended = batch(sim, endpoint, body)
    [answer] = answers(sim, ended.error_file_id)
    assert (answer.outcome, answer.cause, answer.usage) == (Outcome.FAILED, "invalid_request", None)
    assert sim.simulator.bill_micros() == 0


def test_a_batch_is_of_one_endpoint(sim: Simulated) -> None:
    """A line for another endpoint fails the batch, and one nobody serves is refused at once."""
    file = sim.upload(join([request_line(0, "/v1/chat/completions", response("x"))]))
    ended = sim.finish(sim.openai.batches.create(input_file_id=file, endpoint="/v1/responses", completion_window="24h"))
    assert (ended.status, ended.errors.data[0].code) == ("failed", "invalid_url")
    with pytest.raises(openai.BadRequestError, match="serves /v1/chat/completions, /v1/responses, /v1/embeddings"):
        sim.openai.batches.create(input_file_id=file, endpoint="/v1/moderations", completion_window="24h")


def test_a_batch_holds_so_many_embedding_inputs(sim: Simulated) -> None:
    """The limit counts texts, not lines."""
    half = vector(["a"] * 25_001)
    ended = batch(sim, "/v1/embeddings", half, half)
    assert ended.status == "failed"
    assert "50000 embedding inputs" in ended.errors.data[0].message
