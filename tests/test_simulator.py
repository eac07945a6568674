"""The simulator as a well-behaved provider: the official clients, its bill, its memory, its wire format."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import jsonschema
import openai
import orjson
import pytest
import yaml

from canwait.errors import UnknownPrice
from canwait.price import cost_micros
from canwait.prices import lookup
from canwait.simulator import ManualClock, Scenario, Simulator, openai_upstream
from canwait.tokens import counter
from canwait.types import Tier, Usage
from simulated import DAY_S, START, Simulated, chat, chat_lines, join, line, message, simulated

LABELS = {"type": "object", "properties": {"label": {"enum": ["a", "b", "c"]}}, "required": ["label"]}
CHAT_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": LABELS, "strict": True}}


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Simulated]:
    with simulated(tmp_path) as running:
        yield running


# ---------------------------------------------------------------------------------------------------------- round trips


def test_a_batch_goes_through_every_state_of_openai(sim: Simulated) -> None:
    """A batch validates, runs, is finalized and completes, with counts and times that only ever grow."""
    batch = sim.submit(200)
    seen, done = [batch.status], [0]
    while batch.status != "completed":
        batch = sim.finish(batch, 1)
        if batch.status != seen[-1]:
            seen.append(batch.status)
        done.append(batch.request_counts.completed)

    assert seen == ["validating", "in_progress", "finalizing", "completed"]
    assert done == sorted(done)
    assert batch.request_counts.total == batch.request_counts.completed == 200
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.metadata == {"canwait_token": "tok"}
    assert batch.error_file_id is None


def test_every_row_comes_back_with_the_answer_to_its_schema(sim: Simulated) -> None:
    """Each custom id is answered once, by an instance of the schema that was asked for."""
    batch = sim.finish(sim.submit(chat_lines(30, response_format=CHAT_FORMAT)))
    lines = sim.lines(batch.output_file_id)

    assert [row["custom_id"] for row in lines] == [f"tok-{i}" for i in range(30)]
    labels = [json.loads(row["response"]["body"]["choices"][0]["message"]["content"])["label"] for row in lines]
    assert set(labels) == {"a", "b", "c"}


def test_a_batch_goes_through_every_state_of_anthropic(sim: Simulated) -> None:
    """Results are 404 until the batch has ended; then every request has one."""
    batch = sim.submit_messages(3, output_config={"format": {"type": "json_schema", "schema": LABELS}})
    assert (batch.processing_status, batch.request_counts.processing, batch.results_url) == ("in_progress", 3, None)
    assert sim.http.get(f"/v1/messages/batches/{batch.id}/results").status_code == 404
    polled = sim.http.get(f"/v1/messages/batches/{batch.id}")
    assert polled.headers["retry-after"] == "10"

    sim.clock.advance(DAY_S)
    ended = sim.anthropic.messages.batches.retrieve(batch.id)
    results = list(sim.anthropic.messages.batches.results(batch.id))
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 3)
    assert [result.custom_id for result in results] == ["tok-0", "tok-1", "tok-2"]
    for result in results:
        assert result.result.type == "succeeded"
        assert json.loads(result.result.message.content[0].text)["label"] in "abc"  # type: ignore[union-attr]


def test_lists_are_newest_first_and_paged(sim: Simulated) -> None:
    """Walking the pages of either provider shows every batch once, newest first."""
    ours = [sim.submit(1).id for _ in range(5)]
    theirs = [sim.submit_messages(1).id for _ in range(5)]

    assert [batch.id for batch in sim.openai.batches.list(limit=2)] == ours[::-1]
    assert [batch.id for batch in sim.anthropic.messages.batches.list(limit=2)] == theirs[::-1]
    page = sim.anthropic.messages.batches.list(before_id=theirs[0], limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == ([theirs[2], theirs[1]], True)
    assert sim.http.get("/v1/batches", params={"limit": 101}).status_code == 400


def test_files_are_kept_listed_and_deleted(sim: Simulated) -> None:
    """An uploaded file comes back byte for byte, is listed by purpose, and is gone when deleted."""
    content = chat_lines(2) + '{"not": "ascii: ü"}\r\n--x'.encode()
    file_id = sim.upload(content, "tök.jsonl")

    assert sim.openai.files.content(file_id).content == content
    stored = sim.openai.files.retrieve(file_id)
    assert (stored.bytes, stored.purpose, stored.expires_at) == (len(content), "batch", stored.created_at + 30 * DAY_S)
    assert [file.id for file in sim.openai.files.list(purpose="batch")] == [file_id]
    assert list(sim.openai.files.list(purpose="vision")) == []
    assert sim.openai.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError):
        sim.openai.files.retrieve(file_id)


def test_a_file_expires_when_its_uploader_said(sim: Simulated) -> None:
    """`expires_after` of an upload decides when the file is gone."""
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    file = sim.openai.files.create(file=b"{}\n", purpose="batch", expires_after=expires)
    assert file.expires_at == file.created_at + 3600
    sim.clock.advance(3601)
    with pytest.raises(openai.NotFoundError):
        sim.openai.files.content(file.id)


def test_cancelling_keeps_and_bills_what_has_run(sim: Simulated) -> None:
    """A cancelled batch returns the finished rows, names the rest, and bills exactly the finished ones."""
    batch = sim.submit(200)
    running = sim.finish(batch, 900)
    assert 0 < running.request_counts.completed < 200
    assert sim.openai.batches.cancel(batch.id).status == "cancelling"
    cancelled = sim.finish(batch, 601)

    answered, rest = sim.lines(cancelled.output_file_id), sim.lines(cancelled.error_file_id)
    assert (cancelled.status, len(answered) + len(rest)) == ("cancelled", 200)
    assert len(answered) == running.request_counts.completed == sim.simulator.bill()[0].n_rows
    assert {row["error"]["code"] for row in rest} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        sim.openai.batches.cancel(sim.finish(sim.submit(1)).id)


def test_cancelling_at_anthropic_names_the_rest(sim: Simulated) -> None:
    """After a cancel some results are succeeded, the rest canceled; cancelling what has ended is refused."""
    batch = sim.submit_messages(100)
    sim.clock.advance(900)
    assert sim.anthropic.messages.batches.cancel(batch.id).processing_status == "canceling"
    with pytest.raises(anthropic.BadRequestError):
        sim.anthropic.messages.batches.delete(batch.id)
    sim.clock.advance(601)

    kinds = Counter(result["result"]["type"] for result in sim.results(batch.id))
    counts = sim.anthropic.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.canceled) == (kinds["succeeded"], kinds["canceled"])
    assert kinds["succeeded"] > 0
    assert kinds["succeeded"] + kinds["canceled"] == 100
    assert sim.anthropic.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sim.anthropic.messages.batches.retrieve(batch.id)


def test_errors_are_those_of_the_providers(tmp_path: Path) -> None:
    """A wrong key, an unknown batch and an unknown file are the errors both clients know."""
    with simulated(tmp_path, keys={"good": "ours"}) as sim:
        with pytest.raises(openai.AuthenticationError) as refused:
            sim.openai.models.list()
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(anthropic.AuthenticationError):
            sim.anthropic.messages.batches.list()
        good = sim.openai.with_options(api_key="good")
        with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
            good.batches.retrieve("batch_x")
        with pytest.raises(openai.BadRequestError):
            good.batches.create(input_file_id="file-x", endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(anthropic.NotFoundError):
            sim.anthropic.with_options(api_key="good").messages.batches.retrieve("msgbatch_x")


def test_accounts_do_not_see_each_other(tmp_path: Path) -> None:
    """A key only reaches the batches and files of its own account."""
    with simulated(tmp_path, keys={"key": "a", "other": "b"}) as sim:
        batch = sim.submit()
        other = sim.openai.with_options(api_key="other")
        assert [*other.batches.list(), *other.files.list()] == []
        with pytest.raises(openai.NotFoundError):
            other.batches.retrieve(batch.id)


def test_synchronous_calls_are_answered_and_billed(sim: Simulated) -> None:
    """Both providers answer at once, at the standard tier, deterministically; counting tokens is free."""
    body: Any = chat(1)
    first, second = (sim.openai.chat.completions.create(**body) for _ in range(2))
    ask: Any = message(1)
    reply = sim.anthropic.messages.create(**ask)

    assert first.choices[0].message.content == second.choices[0].message.content
    assert [(entry.tier, entry.n_rows) for entry in sim.simulator.bill()] == [(Tier.STANDARD, 1)] * 3
    del ask["max_tokens"]
    assert sim.anthropic.messages.count_tokens(**ask).input_tokens == reply.usage.input_tokens
    assert len(sim.simulator.bill()) == 3
    assert sim.openai.models.list().data
    assert sim.anthropic.models.list().data


def test_a_real_model_can_answer(tmp_path: Path) -> None:
    """`openai_upstream` forwards every row of either shape to an OpenAI-compatible server."""
    with simulated(tmp_path / "model", answer=lambda body, rng: body["messages"][-1]["content"].upper()) as model:
        with simulated(tmp_path / "front", answer=openai_upstream(f"{model.url}/v1")) as sim:
            batch = sim.finish(sim.submit(2))
            texts = [r["response"]["body"]["choices"][0]["message"]["content"] for r in sim.lines(batch.output_file_id)]
            theirs = sim.submit_messages(1)
            sim.clock.advance(DAY_S)
            [result] = sim.results(theirs.id)
        assert texts == ["MESSAGE 0", "MESSAGE 1"]
        assert result["result"]["message"]["content"][0]["text"] == "MESSAGE 0"
        assert len(model.simulator.bill()) == 3


# ----------------------------------------------------------------------------------------------------------- validation


def _mutated(**changes: Any) -> dict[str, Any]:
    return line(1) | changes


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"{not json\n", "invalid_json_line"),
        (b"\xef\xbb\xbf{}\n", "invalid_json_line"),
        (join([_mutated(custom_id="tok-0")]), "duplicate_custom_id"),
        (join([_mutated(custom_id=None)]), "missing_required_parameter"),
        (join([_mutated(method="GET")]), "missing_required_parameter"),
        (join([_mutated(url="/v1/embeddings")]), "invalid_url"),
        (join([_mutated(body=chat(1) | {"model": "gpt-6-luna"})]), "mismatched_model"),
        (join([_mutated(body={})]), "missing_required_parameter"),
        (join([_mutated(body=chat(1) | {"stream": True})]), "streaming_unsupported"),
    ],
)
def test_validation_stops_at_the_first_bad_line(sim: Simulated, bad: bytes, code: str) -> None:
    """A line that cannot be run fails the whole batch: its number, counts 0/0/0, no files, no bill."""
    batch = sim.finish(sim.submit(chat_lines(1) + bad + b"{also bad\n"))

    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 2)]
    assert batch.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert sim.simulator.bill_micros() == 0


def test_an_empty_file_and_one_of_too_many_rows_fail(sim: Simulated) -> None:
    """OpenAI takes 1 to 50,000 rows in a batch."""
    assert sim.finish(sim.submit(b"")).status == "failed"
    small = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n'
    batch = sim.finish(sim.submit(b"".join(small % i for i in range(50_001))))
    assert (batch.status, batch.errors.data[0].line) == ("failed", 50_001)


@pytest.mark.parametrize("custom_id", ["", "a b", "ü", "x" * 65, None])
def test_anthropic_refuses_a_bad_custom_id_at_once(sim: Simulated, custom_id: str | None) -> None:
    """An id outside ^[a-zA-Z0-9_-]{1,64}$ is a 400 and no batch."""
    requests = [{"custom_id": custom_id, "params": message(0)}]
    assert sim.http.post("/v1/messages/batches", json={"requests": requests}).status_code == 400
    assert sim.simulator.batches() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"requests": []}', b'{"requests": [{"custom_id": "a"', b"{}"])
def test_anthropic_refuses_a_body_that_is_no_batch(sim: Simulated, body: bytes) -> None:
    """A body that is not JSON, or holds no request, is a 400 and no batch; the connection stays usable."""
    assert sim.http.post("/v1/messages/batches", content=body).status_code == 400
    assert sim.simulator.batches() == []
    assert sim.submit_messages(1).id


def test_anthropic_tells_a_duplicate_id_at_once_and_bad_params_later(sim: Simulated) -> None:
    """Custom ids are checked at create; params become errored rows, which cost nothing."""
    twice = [{"custom_id": "a", "params": message(0)}] * 2
    assert sim.http.post("/v1/messages/batches", json={"requests": twice}).status_code == 400
    batch = sim.submit_messages(1, max_tokens=0)
    sim.clock.advance(DAY_S)
    [result] = sim.results(batch.id)
    assert result["result"]["error"]["error"]["type"] == "invalid_request_error"
    assert sim.simulator.bill_micros() == 0


# -------------------------------------------------------------------------------------------------------- money, tokens


def test_the_bill_equals_the_rows(sim: Simulated) -> None:
    """Each batch is billed the sum of its rows' usage at the dated price, rounded up once; so says its own usage."""
    batch = sim.finish(sim.submit(50))
    usages = []
    for row in sim.lines(batch.output_file_id):
        usage = row["response"]["body"]["usage"]
        usages.append(Usage(usage["prompt_tokens"], usage["completion_tokens"]))
    price = lookup("openai", "gpt-4o-mini", Tier.BATCH, today=START.date())

    [billed] = sim.simulator.bill()
    assert billed.usage == sum(usages, Usage(0, 0))
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (
        billed.usage.input_tokens,
        billed.usage.output_tokens,
    )
    assert billed.micros == cost_micros(usages, price) == sim.simulator.bill_micros() > 0
    assert (billed.token, billed.model, billed.n_rows) == ("tok", "gpt-4o-mini", 50)
    shown = sim.http.get("/sim/bill").json()
    assert (shown["micros"], shown["batches"][0]["id"]) == (billed.micros, batch.id)


def test_a_model_without_a_price_is_not_free(sim: Simulated) -> None:
    """What no price is known for makes the total unknown, never smaller."""
    sim.finish(sim.submit(chat_lines(1, model="nobody-knows")))
    assert sim.http.get("/sim/bill").json()["micros"] is None
    with pytest.raises(UnknownPrice):
        sim.simulator.bill_micros()


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-6-luna"])
def test_input_never_exceeds_what_a_client_can_bound(sim: Simulated, model: str) -> None:
    """Billed input stays within UTF-8 bytes + 8 a message + 32, counted where the tokenizer is known."""
    texts = ["", "a", "é" * 50, "🙂🙃" * 20, "word " * 200, "\x00\ufeff", "漢字" * 30]
    lines = [line(i, model=model, messages=[{"role": "user", "content": t}] * 3) for i, t in enumerate(texts)]
    batch = sim.finish(sim.submit(join(lines)))

    for text, row in zip(texts, sim.lines(batch.output_file_id), strict=True):
        billed = row["response"]["body"]["usage"]["prompt_tokens"]
        assert 0 < billed <= 3 * (len(text.encode()) + 8) + 32
        measured = counter("openai", model)
        if measured.kind == "counted":
            assert billed == measured.measure([[text] * 3], 0)[0].expected


def test_output_is_cut_at_its_bound(sim: Simulated) -> None:
    """An answer longer than the bound is cut, says so, and is billed the bound."""
    batch = sim.finish(sim.submit(chat_lines(5, max_completion_tokens=2)))
    for row in sim.lines(batch.output_file_id):
        body = row["response"]["body"]
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 2)
        assert len(body["choices"][0]["message"]["content"]) <= 8


def test_what_ran_is_counted_by_the_bytes_sent(sim: Simulated) -> None:
    """`executed` names each body by the sha256 of its compact JSON, once for each time it was paid."""
    bodies = [orjson.dumps(chat(i)) for i in (0, 1, 0)]
    raw = [
        b'{"custom_id":"t-%d","method":"POST","url":"/v1/chat/completions","body":%s}\n' % pair
        for pair in enumerate(bodies)
    ]
    sim.finish(sim.submit(b"".join(raw)))
    assert sim.simulator.executed() == Counter(hashlib.sha256(body).hexdigest() for body in bodies)


def test_equal_seeds_make_equal_worlds(tmp_path: Path) -> None:
    """Two simulators with one seed, clock and input write the same bytes; another seed answers differently."""

    def output(folder: str, seed: int) -> bytes:
        with simulated(tmp_path / folder, seed=seed) as sim:
            return sim.openai.files.content(sim.finish(sim.submit(20)).output_file_id).content

    assert output("a", 1) == output("b", 1) != output("c", 2)


# --------------------------------------------------------------------------------------------------------------- memory


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    """A second simulator on the folder knows the files, the batches, the bill and the time of the first."""
    with simulated(tmp_path) as sim:
        done, open_ = sim.submit(5), sim.submit(7)
        before = sim.finish(done, 3 * 3600)
        answers = sim.lines(before.output_file_id)
        bill, now = sim.simulator.bill(), sim.simulator.now()

    with simulated(tmp_path, clock=ManualClock(START)) as sim:  # a clock that begins where the first began
        assert sim.simulator.now() >= now
        assert sim.openai.batches.retrieve(done.id) == before
        assert sim.lines(before.output_file_id) == answers
        assert sim.simulator.bill()[: len(bill)] == bill
        assert sim.finish(open_).status == "completed"
        assert [batch.id for batch in sim.simulator.batches()] == [done.id, open_.id]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Any]:
    """Starts `python -m canwait.simulator` on one folder, as often as it is called; (process, url)."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "canwait.simulator", "--folder", str(tmp_path / "sim"), *options]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        return child, child.stdout.readline().strip()

    yield start
    for child in started:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def test_a_killed_process_is_resumed(process: Any) -> None:
    """After SIGKILL another process on the folder finishes and bills the batch; SIGTERM ends it cleanly."""
    first, url = process("--clock", "manual", "--seed", "3")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        file = client.files.create(file=("t.jsonl", chat_lines(4)), purpose="batch")
        create: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.batches.create(input_file_id=file.id, **create)
    first.send_signal(signal.SIGKILL)
    first.wait()

    second, url = process("--clock", "manual", "--seed", "3")
    assert httpx2.post(f"{url}/sim/advance", json={"seconds": DAY_S}).status_code == 200
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        assert client.batches.retrieve(batch.id).status == "completed"
    assert [entry["rows"] for entry in httpx2.get(f"{url}/sim/bill").json()["batches"]] == [4]
    second.terminate()
    assert second.wait(10) == 0


def test_the_process_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """An unknown fault or clock ends the process with 2 and the known names."""
    for option, value in (("--scenario", "nonsense=1"), ("--clock", "soon")):
        command = [sys.executable, "-m", "canwait.simulator", "--folder", str(tmp_path), option, value]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 2
        assert value.partition("=")[0] in ended.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_large_upload_is_not_held_in_memory(process: Any) -> None:
    """Accepting 50,000 rows (over 60 MB) of either shape raises the process's peak memory by less than 60 MB."""
    child, url = process("--clock", "manual")
    asked = [{"role": "user", "content": "x" * 1100}]
    row = b'{"custom_id":"t-%d","method":"POST","url":"/v1/chat/completions","body":%s}\n'
    lines = b"".join(row % (i, orjson.dumps(chat(i, messages=asked))) for i in range(50_000))
    requests = [{"custom_id": f"t-{i}", "params": message(i, messages=asked)} for i in range(50_000)]
    assert len(lines) > 60_000_000

    def peak_kib() -> int:
        status = Path(f"/proc/{child.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    with httpx2.Client(base_url=url, timeout=120) as client:
        client.get("/v1/models")
        before = peak_kib()
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": lines}).json()
        create = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert client.post("/v1/batches", json=create).json()["status"] == "validating"
        inline = client.post("/v1/messages/batches", content=orjson.dumps({"requests": requests})).json()
        grown_kib = peak_kib() - before
    assert (file["bytes"], inline["request_counts"]["processing"]) == (len(lines), 50_000)
    assert grown_kib < 60 * 1024


def test_an_upload_in_chunks_is_read(sim: Simulated) -> None:
    """A multipart body of unknown length, in any pieces, gives the same file."""
    content = chat_lines(50)
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    head += b'Content-Disposition: form-data; name="file"; filename="t.jsonl"\r\n\r\n'
    whole = head + content + b"\r\n--b--\r\n"

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(whole), 7):
            yield whole[at : at + 7]

    reply = sim.http.post("/v1/files", content=pieces(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert sim.openai.files.content(reply.json()["id"]).content == content


# ---------------------------------------------------------------------------------------------------------- wire format


def _exchanges(shared: Path, name: str) -> list[dict[str, Any]]:
    with (shared / "data" / "recorded" / name).open() as lines:
        return [json.loads(line) for line in lines]


def _shape(value: Any) -> Any:
    """Keys and types, recursively; the items of a list count as alike."""
    if isinstance(value, Mapping):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(value[0])] if value else []
    return type(value).__name__


def test_openai_replies_look_like_the_recorded_ones(shared: Path, tmp_path: Path) -> None:
    """Fed the recorded three-row upload and create, every reply has the recording's keys and value types."""
    recorded = _exchanges(shared, "openai-batch-3-rows.jsonl")
    with simulated(tmp_path, Scenario(old_style=True)) as sim:
        upload, create = recorded[0], recorded[2]
        boundary = upload["request"].split("\r\n")[0][2:]
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        file = sim.http.post("/v1/files", content=upload["request"].encode(), headers=kind).json()
        assert _shape(file) == _shape(json.loads(upload["response"]))
        assert file["bytes"] == json.loads(upload["response"])["bytes"]
        assert _shape(sim.http.get(f"/v1/files/{file['id']}").json()) == _shape(json.loads(recorded[1]["response"]))

        asked = json.loads(create["request"]) | {"input_file_id": file["id"]}
        batch = sim.http.post("/v1/batches", json=asked).json()
        assert _shape(batch) == _shape(json.loads(create["response"]))
        theirs = {(o := json.loads(e["response"]))["status"]: o for e in recorded if "/batches/" in e["url"]}
        ours = {}
        for _ in range(DAY_S):
            polled = sim.http.get(f"/v1/batches/{batch['id']}").json()
            ours[polled["status"]] = polled
            if polled["status"] == "completed":
                break
            sim.clock.advance(1)
        assert ours.keys() == theirs.keys()
        for status in ours:
            assert _shape(ours[status]) == _shape(theirs[status]), status

        output = sim.http.get(f"/v1/files/{ours['completed']['output_file_id']}/content")
        assert output.headers["content-type"] == "application/octet-stream"
        told = [json.loads(line) for line in recorded[-1]["response"].splitlines()]
        assert [_shape(json.loads(line)) for line in output.text.splitlines()] == [_shape(line) for line in told]


def test_anthropic_replies_look_like_the_recorded_ones(shared: Path, tmp_path: Path) -> None:
    """Fed the recorded three-row create, every reply has the recording's keys and value types."""
    recorded = _exchanges(shared, "anthropic-batch-3-rows.jsonl")
    with simulated(tmp_path, Scenario(old_style=True)) as sim:
        created = sim.http.post("/v1/messages/batches", content=recorded[0]["request"].encode())
        assert _shape(created.json()) == _shape(json.loads(recorded[0]["response"]))
        url = f"/v1/messages/batches/{created.json()['id']}"
        assert _shape(sim.http.get(url).json()) == _shape(json.loads(recorded[1]["response"]))
        sim.clock.advance(DAY_S)
        assert _shape(sim.http.get(url).json()) == _shape(json.loads(recorded[-2]["response"]))
        told = [json.loads(line) for line in recorded[-1]["response"].splitlines()]
        assert [_shape(row) for row in sim.results(created.json()["id"])] == [_shape(line) for line in told]


def test_openai_objects_of_2026_carry_model_and_usage(shared: Path, tmp_path: Path) -> None:
    """The keys of a batch object are those recorded in August 2026."""
    recorded = [e for e in _exchanges(shared, "openai-batch-responses-2026.jsonl") if "/batches" in e["url"]]
    with simulated(tmp_path) as sim:
        batch = sim.submit()
        done = sim.finish(batch)
        for ours, theirs in ((batch, recorded[0]), (done, recorded[-1])):
            told = json.loads(theirs["response"])
            assert ours.to_dict().keys() == told.keys()
            assert _shape(ours.to_dict()["usage"]) == _shape(told["usage"])
            assert type(ours.model) is type(told["model"])


def _without_nulls(value: Any) -> Any:
    """The specification's optional fields are absent; real replies, and ours, say null."""
    return {key: item for key, item in value.items() if item is not None}


def test_openai_objects_fit_the_specification(shared: Path, tmp_path: Path) -> None:
    """Files, batches in every state, and both lists validate against OpenAI's own OpenAPI schemas."""
    spec = yaml.safe_load((shared / "data" / "specs" / "openai-files-batches.subset.yaml").read_text())

    def check(name: str, value: Any) -> None:
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": spec["components"]})

    with simulated(tmp_path, Scenario(bad_line=1, expiry=1)) as sim:
        batches = [sim.submit(20) for _ in range(4)]
        for seconds in (0, 900, 0, DAY_S):
            for batch in batches:
                check("Batch", _without_nulls(sim.finish(batch, seconds / len(batches)).to_dict()))
            sim.openai.batches.cancel(batches[3].id) if seconds == 900 else None
        seen = {sim.openai.batches.retrieve(batch.id).status for batch in batches}
        assert seen == {"failed", "expired", "completed", "cancelled"}
        for path, name in (("/v1/batches", "ListBatchesResponse"), ("/v1/files", "ListFilesResponse")):
            page = sim.http.get(path).json()
            check(name, page | {"data": [_without_nulls(item) for item in page["data"]]})


def test_anthropic_objects_fit_the_schemas(shared: Path, tmp_path: Path) -> None:
    """Batches and all four kinds of result validate against the official SDK's schemas."""
    name = "anthropic-sdk-2.12.0.message-batches.schema.json"
    schemas = json.loads((shared / "data" / "specs" / name).read_text())
    kinds: set[str] = set()
    with simulated(tmp_path, Scenario(expiry=1, row_500=1, row_refusal=1)) as sim:
        batches = [sim.submit_messages(20) for _ in range(2)]
        sim.clock.advance(600)
        sim.anthropic.messages.batches.cancel(batches[1].id)
        for seconds in (0, DAY_S):
            sim.clock.advance(seconds)
            for batch in batches:
                shown = sim.http.get(f"/v1/messages/batches/{batch.id}").json()
                jsonschema.validate(shown, schemas["MessageBatch"])
        for batch in batches:
            for result in sim.results(batch.id):
                jsonschema.validate(result, schemas["MessageBatchIndividualResponse"])
                kinds.add(result["result"]["type"])
        deleted = sim.http.delete(f"/v1/messages/batches/{batches[0].id}").json()
        jsonschema.validate(deleted, schemas["DeletedMessageBatch"])
    assert kinds == {"succeeded", "errored", "canceled", "expired"}


def test_the_recorded_error_lines_are_ours(shared: Path, tmp_path: Path) -> None:
    """The out-of-credit row, the expired row and the quota error quoted in public issues have our shape."""
    with (shared / "data" / "recorded" / "quoted-lines.jsonl").open() as lines:
        quoted = [json.loads(line)["line"] for line in lines]
    credit = next(line for line in quoted if "result" in line)
    quota = next(line for line in quoted if line.get("code") == "token_limit_exceeded")
    expired = next(line for line in quoted if isinstance(line.get("error"), dict))
    with simulated(tmp_path, Scenario(row_out_of_credit=1, token_limit_late=1, expiry_empty=0, expiry=1)) as sim:
        failed, part = sim.submit(3), sim.submit(3)
        batch = sim.submit_messages(1)
        sim.clock.advance(DAY_S)
        problem = sim.openai.batches.retrieve(failed.id).errors.data[0].to_dict()  # type: ignore[union-attr, index]
        assert _shape(problem) == _shape(quota)
        rest = sim.lines(sim.openai.batches.retrieve(part.id).error_file_id)
        assert expired["error"] in [row["error"] for row in rest]
        assert batch.id
    with simulated(tmp_path / "credit", Scenario(row_out_of_credit=1)) as sim:
        batch = sim.submit_messages(1)
        sim.clock.advance(DAY_S)
        [result] = sim.results(batch.id)
        assert result["result"]["error"]["error"]["message"] == credit["result"]["error"]["error"]["message"]


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """When the block ends the port is closed, kept-alive connections too."""
    simulator = Simulator(folder=tmp_path, clock=ManualClock(START))
    with httpx2.Client() as client:
        with simulator.serve() as url:
            assert client.get(f"{url}/v1/models").status_code == 200
        with pytest.raises(httpx2.TransportError):
            client.get(f"{url}/v1/models")
    simulator.close()
