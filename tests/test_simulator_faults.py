"""Every misbehaviour the simulator knows, seen on the wire."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from canwait.simulator import Scenario
from canwait.simulator.answers import texts
from canwait.simulator.rows import input_bound
from simulated import DAY_S, Simulated, chat, chat_lines, message, simulated

Begin = Callable[..., Simulated]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a simulator with these faults; it ends with the test."""
    running: list[Any] = []

    def start(**faults: Any) -> Simulated:
        seed = faults.pop("seed", 0)
        context = simulated(tmp_path / str(len(running)), Scenario(**faults), seed=seed)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


def test_every_fault_has_a_test() -> None:
    """No field of a scenario goes unseen: each is named in this file or in the tests of its settings."""
    seen = "".join((Path(__file__).parent / name).read_text() for name in ("test_simulator.py", Path(__file__).name))
    assert [spec.name for spec in fields(Scenario) if spec.name not in seen] == []


# -------------------------------------------------------------------------------------------------------------- creates


def _creates(sim: Simulated) -> list[tuple[Callable[[], Any], Any]]:
    file_id = sim.upload(chat_lines(2))
    create: Any = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return [(lambda: sim.openai.batches.create(**create), openai), (lambda: sim.submit_messages(2), anthropic)]


@pytest.mark.parametrize(
    ("fault", "live", "status"),
    [
        ("create_closed", False, None),
        ("create_429", False, {429}),
        ("create_5xx_no_effect", False, {503, 529}),
        ("create_out_of_credit", False, {429, 400}),
        ("create_spend_cap", False, {429}),
        ("create_token_limit", False, {400, 429}),
        ("lost_create_reply", True, None),
        ("create_5xx_live", True, {500}),
    ],
)
def test_a_create_that_fails_has_an_effect_or_none(
    begin: Begin, fault: str, live: bool, status: set[int] | None
) -> None:
    """The client sees an error or a lost connection; only a listing tells whether the batch is there."""
    for number in range(2):
        sim = begin(**{fault: 1})
        create, sdk = _creates(sim)[number]
        with pytest.raises(sdk.APIError) as failed:
            create()
        if status is None:
            assert isinstance(failed.value, sdk.APIConnectionError)
        else:
            assert failed.value.status_code in status
        listed = [*sim.openai.batches.list(), *sim.anthropic.messages.batches.list()]
        assert len(listed) == len(sim.simulator.batches()) == live
        assert create().id  # the fault struck once
        assert len(sim.simulator.batches()) == live + 1


def test_out_of_credit_and_spend_caps_are_told_by_their_codes(begin: Begin) -> None:
    """The codes by which a client stops instead of retrying; a spend cap names no time to retry after."""
    sim = begin(create_out_of_credit=2, create_spend_cap=2, create_429=2, retry_after=timedelta(seconds=7))
    told = []
    for create, sdk in _creates(sim):
        for _ in range(2):
            with pytest.raises(sdk.APIStatusError) as failed:
                create()
            told.append((failed.value.response.headers.get("retry-after"), failed.value.response.json()["error"]))
    assert [after for after, _ in told] == ["7", "7", None, None]

    sim = begin(create_out_of_credit=1, create_spend_cap=1)
    create, _ = _creates(sim)[0]
    codes = []
    for _ in range(2):
        with pytest.raises(openai.RateLimitError) as limited:
            create()
        codes.append((limited.value.type, limited.value.code))
        assert "retry-after" not in limited.value.response.headers
    assert codes == [
        ("insufficient_quota", "credit_balance_exhausted"),
        ("insufficient_quota", "organization_spend_limit_exceeded"),
    ]

    sim = begin(create_spend_cap=1)
    with pytest.raises(anthropic.RateLimitError) as capped:
        sim.submit_messages(1)
    assert capped.value.response.json()["error"]["details"] == {"error_code": "enforced_spend_limit_reached"}
    assert "retry-after" not in capped.value.response.headers


def test_a_create_may_answer_with_a_page(begin: Begin) -> None:
    """A reply that is not JSON hides a live batch."""
    sim = begin(create_not_json=1)
    reply = sim.http.post("/v1/messages/batches", json={"requests": [{"custom_id": "a", "params": message(0)}]})
    assert reply.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()
    assert len(sim.simulator.batches()) == 1


def test_a_create_may_be_held_past_the_clients_timeout(begin: Begin) -> None:
    """The client gives up; the batch is live."""
    sim = begin(late_create_reply=1, hold=timedelta(seconds=30))
    with pytest.raises(anthropic.APITimeoutError):
        sim.anthropic.with_options(timeout=0.3).messages.batches.create(
            requests=[{"custom_id": "a", "params": message(0)}]  # type: ignore[typeddict-item]
        )
    assert len(list(sim.anthropic.messages.batches.list())) == 1


def test_a_batch_is_listed_late(begin: Begin) -> None:
    """Until the listing lag is over a batch is found by its id, but in no list."""
    sim = begin(listing_lag=timedelta(seconds=30))
    ours, theirs = sim.submit(1), sim.submit_messages(1)
    sim.clock.advance(29)
    assert [*sim.openai.batches.list(), *sim.anthropic.messages.batches.list()] == []
    assert sim.openai.batches.retrieve(ours.id).id == ours.id
    sim.clock.advance(1)
    assert [b.id for b in sim.openai.batches.list()] == [ours.id]
    assert [b.id for b in sim.anthropic.messages.batches.list()] == [theirs.id]


# -------------------------------------------------------------------------------------------------- polls and transfers


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
def test_polls_fail_and_recover(begin: Begin, shape: str) -> None:
    """429 with Retry-After, 500, a reset and a page, each as often as asked; then the batch again."""
    sim = begin(poll_429=2, poll_5xx=1, poll_reset=1, poll_not_json=1)
    batch = sim.submit(1) if shape == "openai" else sim.submit_messages(1)
    path = f"/v1/batches/{batch.id}" if shape == "openai" else f"/v1/messages/batches/{batch.id}"

    seen: list[object] = []
    for _ in range(6):
        try:
            reply = sim.http.get(path)
        except httpx2.TransportError as error:
            seen.append(type(error))
        else:
            kind = reply.headers["content-type"]
            seen.append((reply.status_code, kind, "retry-after" in reply.headers and reply.status_code == 429))
    json_, html = "application/json", "text/html"
    assert seen[:3] == [(429, json_, True), (429, json_, True), (500, json_, False)]
    assert isinstance(seen[3], type)
    assert seen[4:] == [(200, html, False), (200, json_, False)]


def test_the_other_requests_fail_too(begin: Begin) -> None:
    """A refused key, a failed upload and a failed listing, once each."""
    sim = begin(bad_key=1, upload_5xx=1, list_5xx=1)
    with pytest.raises(openai.AuthenticationError):
        sim.openai.models.list()
    with pytest.raises(openai.InternalServerError):
        sim.upload(chat_lines(1))
    assert list(sim.openai.files.list()) == []
    with pytest.raises(openai.InternalServerError):
        sim.openai.batches.list()
    assert list(sim.openai.batches.list()) == []


def test_downloads_fail_midway(begin: Begin) -> None:
    """A download answers 500, then ends after half its bytes, then works; nothing is lost."""
    sim = begin(results_5xx=1, results_cut=1)
    batch = sim.finish(sim.submit(50))
    path = f"/v1/files/{batch.output_file_id}/content"

    assert sim.http.get(path).status_code == 500
    received = bytearray()
    with sim.http.stream("GET", path) as reply, pytest.raises(httpx2.RemoteProtocolError):
        deque(map(received.extend, reply.iter_bytes()), maxlen=0)
    whole = sim.http.get(path).content
    assert received == whole[: len(whole) // 2]


def test_synchronous_calls_fail(begin: Begin) -> None:
    """429 and 500 cost nothing; a reset after the answer has cost it."""
    sim = begin(sync_429=1, sync_5xx=1, sync_reset=1)
    body: Any = chat(0)
    for error in (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError):
        assert sim.simulator.bill() == []
        with pytest.raises(error):
            sim.openai.chat.completions.create(**body)
    assert len(sim.simulator.bill()) == 1
    assert sim.openai.chat.completions.create(**body).choices


def test_results_are_gone_past_their_retention(begin: Begin) -> None:
    """Files after 30 days, Anthropic's results after 29, or after what the scenario says: 404."""
    for retention, days in ((None, (29, 30)), (timedelta(days=2), (2, 2))):
        sim = begin(retention=retention)
        batch, theirs = sim.submit(1), sim.submit_messages(1)
        sim.clock.advance(DAY_S)
        done = sim.openai.batches.retrieve(batch.id)
        sim.clock.advance((days[0] - 1) * DAY_S - 10)
        assert sim.results(theirs.id)
        assert sim.lines(done.output_file_id)
        sim.clock.advance(2 * DAY_S)
        with pytest.raises(openai.NotFoundError):
            sim.openai.files.content(done.output_file_id or "")
        assert sim.http.get(f"/v1/messages/batches/{theirs.id}/results").status_code == 404
        archived = sim.anthropic.messages.batches.retrieve(theirs.id)
        assert (archived.archived_at is not None, archived.results_url) == (True, None)


# -------------------------------------------------------------------------------------------------------------- endings


def test_a_good_line_may_be_called_bad(begin: Begin) -> None:
    """Validation fails on some line k: counts 0/0/0, no files, nothing billed."""
    sim = begin(bad_line=1)
    batch = sim.finish(sim.submit(10))
    assert (batch.status, batch.request_counts.total, batch.output_file_id) == ("failed", 0, None)
    assert 1 <= batch.errors.data[0].line <= 10
    assert sim.simulator.bill_micros() == 0
    assert sim.finish(sim.submit(10)).status == "completed"


def test_the_queue_may_be_full_after_the_create(begin: Begin) -> None:
    """The create succeeds, validation then fails with token_limit_exceeded."""
    batch = (sim := begin(token_limit_late=1)).submit()
    assert batch.status == "validating"
    assert sim.finish(batch).errors.data[0].code == "token_limit_exceeded"


def test_enqueued_tokens_are_a_ledger(begin: Begin) -> None:
    """A model's live batches share its limit; an ended one gives its tokens back, late if so set."""
    sim = begin(enqueued_limit=200, late_release=timedelta(hours=1))
    first, second, other = sim.submit(10), sim.submit(10), sim.submit(chat_lines(10, model="gpt-6-luna"))
    sim.clock.advance(60)
    failed = sim.openai.batches.retrieve(second.id)
    assert (failed.status, failed.errors.data[0].code) == ("failed", "token_limit_exceeded")  # type: ignore[union-attr, index]
    assert sim.openai.batches.retrieve(other.id).status == "in_progress"
    while sim.openai.batches.retrieve(first.id).status != "completed":
        sim.clock.advance(60)
    assert sim.finish(sim.submit(10), 60).status == "failed"
    sim.clock.advance(3600)
    assert sim.finish(sim.submit(10), 60).status == "in_progress"


def test_a_full_queue_may_refuse_at_once(begin: Begin) -> None:
    """With fail_fast a create over the limit is a 400 and no batch."""
    sim = begin(enqueued_limit=200, fail_fast=True)
    sim.submit(10)
    with pytest.raises(openai.BadRequestError, match="Enqueued token limit") as refused:
        sim.submit(10)
    assert refused.value.code == "token_limit_exceeded"
    assert len(sim.simulator.batches()) == 1


def test_expiry_keeps_and_bills_what_was_done(begin: Begin) -> None:
    """An expired batch returns its finished rows, names the others batch_expired, and bills the finished ones."""
    sim = begin(expiry=1)
    batch = sim.finish(sim.submit(40), DAY_S - 1)
    assert batch.status == "in_progress"
    batch = sim.finish(batch, 1)
    done, rest = sim.lines(batch.output_file_id), sim.lines(batch.error_file_id)
    assert (batch.status, len(done) + len(rest)) == ("expired", 40)
    assert done
    assert {(row["response"], row["error"]["code"]) for row in rest} == {(None, "batch_expired")}
    assert sim.simulator.bill()[0].n_rows == len(done) == batch.request_counts.completed


def test_expiry_at_anthropic_is_told_by_row(begin: Begin) -> None:
    """The batch has ended; some results are expired and cost nothing."""
    sim = begin(expiry=1)
    batch = sim.submit_messages(40)
    sim.clock.advance(DAY_S)
    kinds = Counter(result["result"]["type"] for result in sim.results(batch.id))
    assert set(kinds) == {"succeeded", "expired"}
    assert sim.simulator.bill()[0].n_rows == kinds["succeeded"]


def test_expiry_may_leave_nothing(begin: Begin) -> None:
    """Expired without any file at OpenAI; every result expired at Anthropic; nothing billed."""
    sim = begin(expiry_empty=2)
    theirs = sim.submit_messages(3)
    batch = sim.finish(sim.submit())
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("expired", None, None)
    assert {result["result"]["type"] for result in sim.results(theirs.id)} == {"expired"}
    assert sim.simulator.bill_micros() == 0


def test_a_batch_may_never_end(begin: Begin) -> None:
    """It stays in progress long past its window; a cancel still ends it, with what it has done."""
    sim = begin(never_ends=2)
    batch, theirs = sim.submit(30), sim.submit_messages(3)
    assert sim.finish(batch, 5 * DAY_S).status == "in_progress"
    assert sim.anthropic.messages.batches.retrieve(theirs.id).processing_status == "in_progress"
    sim.openai.batches.cancel(batch.id)
    cancelled = sim.finish(batch, 601)
    assert cancelled.status == "cancelled"
    assert len(sim.lines(cancelled.output_file_id)) + len(sim.lines(cancelled.error_file_id)) == 30


def test_completed_may_mean_that_every_row_failed(begin: Begin) -> None:
    """Status completed, no output file, all rows in the error file, nothing billed."""
    sim = begin(all_failed=1)
    batch = sim.finish(sim.submit())
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert {row["response"]["status_code"] for row in sim.lines(batch.error_file_id)} == {400}
    assert batch.request_counts.failed == 3
    assert sim.simulator.bill_micros() == 0


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
def test_a_cancel_may_not_be_heard(begin: Begin, shape: str) -> None:
    """It is answered like any other, and the batch runs to its end; the next one is heard."""
    sim = begin(cancel_deaf=1, never_ends=2)
    batch = sim.submit(10) if shape == "openai" else sim.submit_messages(10)
    api: Any = sim.openai.batches if shape == "openai" else sim.anthropic.messages.batches
    sim.clock.advance(60)
    status = "status" if shape == "openai" else "processing_status"
    assert getattr(api.cancel(batch.id), status) == "in_progress"
    sim.clock.advance(601)
    assert getattr(api.retrieve(batch.id), status) == "in_progress"
    assert getattr(api.cancel(batch.id), status) in ("cancelling", "canceling")


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
def test_a_cancels_reply_may_be_an_error(begin: Begin, shape: str) -> None:
    """It answers 500, and the batch is being cancelled all the same, for as long as the scenario says."""
    sim = begin(cancel_5xx=1, cancel_lag=timedelta(seconds=400))
    batch = sim.submit(10) if shape == "openai" else sim.submit_messages(10)
    api: Any = sim.openai.batches if shape == "openai" else sim.anthropic.messages.batches
    sim.clock.advance(60)
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
        api.cancel(batch.id)
    status = "status" if shape == "openai" else "processing_status"
    sim.clock.advance(399)
    assert getattr(api.retrieve(batch.id), status) in ("cancelling", "canceling")
    sim.clock.advance(2)
    assert getattr(api.retrieve(batch.id), status) in ("cancelled", "ended")


def test_rows_may_finish_while_a_batch_is_cancelled(begin: Begin) -> None:
    """Of a batch that is cancelled rows go on being answered, and billed, until it has ended."""
    counts = []
    for finishes in (0, 1):
        sim = begin(cancel_finishes=finishes, cancel_lag=timedelta(minutes=10))
        batch = sim.submit(100)
        sim.clock.advance(300)
        sim.openai.batches.cancel(batch.id)
        ended = sim.finish(batch, 601)
        assert ended.status == "cancelled"
        counts.append(ended.request_counts.completed)
        assert sum(sim.simulator.executed().values()) == counts[-1]
    assert counts[0] + 10 < counts[1] <= 100


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
def test_a_cancel_may_lose_a_row(begin: Begin, shape: str) -> None:
    """A finished row is never returned though it is billed; OpenAI's counters go back to 0."""
    sim = begin(cancel_race=1)
    batch = sim.submit(100) if shape == "openai" else sim.submit_messages(100)
    sim.clock.advance(900)
    api: Any = sim.openai.batches if shape == "openai" else sim.anthropic.messages.batches
    api.cancel(batch.id)
    if shape == "openai":
        assert api.retrieve(batch.id).request_counts.completed == 0
    sim.clock.advance(601)
    if shape == "openai":
        ended = api.retrieve(batch.id)
        assert (ended.request_counts.completed, ended.request_counts.total) == (0, 100)
        returned = sim.lines(ended.output_file_id) + sim.lines(ended.error_file_id)
        answered = sum(row["error"] is None for row in returned)
    else:
        returned = sim.results(batch.id)
        answered = sum(row["result"]["type"] == "succeeded" for row in returned)
    assert len(returned) == 99
    assert sim.simulator.bill()[0].n_rows == answered + 1


# -------------------------------------------------------------------------------------------------------------- writing


def test_rows_may_come_in_any_order(begin: Begin) -> None:
    """Shuffled, and still every row once."""
    sim = begin(shuffled=2)
    ours, theirs = sim.submit(50), sim.submit_messages(50)
    ids = [row["custom_id"] for row in sim.lines(sim.finish(ours).output_file_id)]
    expected = [f"tok-{i}" for i in range(50)]
    assert ids != expected
    assert sorted(ids) == sorted(expected)
    assert sorted(row["custom_id"] for row in sim.results(theirs.id)) == sorted(expected)


def test_the_last_line_may_be_cut(begin: Begin) -> None:
    """The output ends within its last line, at every download."""
    sim = begin(truncated_last_line=1)
    batch = sim.finish(sim.submit(3))
    *whole, last = sim.openai.files.content(batch.output_file_id).text.split("\n")
    assert [json.loads(line)["custom_id"] for line in whole] == ["tok-0", "tok-1"]
    assert last
    with pytest.raises(json.JSONDecodeError):
        json.loads(last)


def test_absent_files_may_be_empty_text_and_statuses_capitalised(begin: Begin) -> None:
    """The quirks of compatible hosts: "" instead of null, "Completed" instead of "completed"."""
    sim = begin(empty_file_ids=1, capitalised_status=1)
    batch = sim.submit()
    assert (batch.output_file_id, batch.status) == ("", "Validating")
    done = sim.finish(batch)
    assert (done.error_file_id, done.status) == ("", "Completed")


def test_objects_may_be_old_style(begin: Begin) -> None:
    """Without model and usage, as before September 2025."""
    batch = (sim := begin(old_style=True)).submit()
    assert not {"model", "usage"} & sim.finish(batch).to_dict().keys()


# ----------------------------------------------------------------------------------------------------------------- rows


def _openai_row(sim: Simulated, **params: Any) -> tuple[dict[str, Any], bool]:
    """(the first of two rows, whether it stands in the error file)."""
    batch = sim.finish(sim.submit(chat_lines(2, **params)))
    if batch.error_file_id:
        [row] = sim.lines(batch.error_file_id)
        return row, True
    return sim.lines(batch.output_file_id)[0], False


def _anthropic_row(sim: Simulated, **params: Any) -> dict[str, Any]:
    batch = sim.submit_messages(2, **params)
    sim.clock.advance(DAY_S)
    result: dict[str, Any] = sim.results(batch.id)[0]["result"]
    return result


@pytest.mark.parametrize(
    ("fault", "status", "code", "theirs"),
    [
        ("row_400", 400, None, "invalid_request_error"),
        ("row_429", 429, "rate_limit_exceeded", "rate_limit_error"),
        ("row_500", 500, None, "api_error"),
        ("row_timeout", None, "request_timeout", "timeout_error"),
        ("row_out_of_credit", 429, "credit_balance_exhausted", "invalid_request_error"),
    ],
)
def test_a_row_may_fail(begin: Begin, fault: str, status: int | None, code: str | None, theirs: str) -> None:
    """OpenAI: a line of the error file; Anthropic: an errored result; the other row is answered; only it is billed."""
    sim = begin(**{fault: 1})
    row, in_error_file = _openai_row(sim)
    assert in_error_file
    if status is None:
        assert (row["response"], row["error"]["code"]) == (None, code)
    else:
        assert (row["error"], row["response"]["status_code"]) == (None, status)
        assert row["response"]["body"]["error"]["code"] == code
    sim2 = begin(**{fault: 1})
    assert _anthropic_row(sim2)["error"]["error"]["type"] == theirs
    for each in (sim, sim2):
        assert [entry.n_rows for entry in each.simulator.bill()] == [1]


@pytest.mark.parametrize(
    ("fault", "finish", "stop"),
    [
        ("row_length", "length", "max_tokens"),
        ("row_refusal", "stop", "refusal"),
        ("row_content_filter", "content_filter", "refusal"),
        ("row_empty", "stop", "end_turn"),
        ("row_invalid_json", "stop", "end_turn"),
    ],
)
def test_an_answer_may_be_paid_and_useless(begin: Begin, fault: str, finish: str, stop: str) -> None:
    """The row counts as answered and is billed; only its content tells."""
    schema = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
    sim = begin(**{fault: 1})
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    row, in_error_file = _openai_row(sim, response_format=form)
    assert not in_error_file
    choice, usage = row["response"]["body"]["choices"][0], row["response"]["body"]["usage"]
    assert choice["finish_reason"] == finish
    text = choice["message"]["content"]
    if fault == "row_refusal":
        assert (text, bool(choice["message"]["refusal"])) == (None, True)
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
    if fault == "row_length":
        assert usage["completion_tokens"] == 64
    sim2 = begin(**{fault: 1})
    reply = _anthropic_row(sim2, output_config={"format": {"type": "json_schema", "schema": schema}})["message"]
    assert reply["stop_reason"] == stop
    for each in (sim, sim2):
        assert [entry.n_rows for entry in each.simulator.bill()] == [2]


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("fault", "returned", "billed"),
    [
        ("row_duplicate", ["tok-0", "tok-0", "tok-1"], 2),
        ("row_conflict", ["tok-0", "tok-0", "tok-1"], 2),
        ("row_unknown_id", ["tok-0", "stray", "tok-1"], 2),
        ("row_missing", ["tok-1"], 2),
        ("row_dropped", ["tok-1"], 1),
    ],
)
def test_rows_may_come_twice_or_never(begin: Begin, shape: str, fault: str, returned: list[str], billed: int) -> None:
    """Returned twice (equal or not), under an id nobody sent, or not at all; each is billed at most once."""
    sim = begin(**{fault: 1})
    if shape == "openai":
        batch = sim.finish(sim.submit(2))
        rows = sim.lines(batch.output_file_id)
        answers = [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows]
        assert batch.usage.output_tokens == sim.simulator.bill()[0].usage.output_tokens
    else:
        batch = sim.submit_messages(2)
        sim.clock.advance(DAY_S)
        rows = sim.results(batch.id)
        answers = [row["result"]["message"]["content"][0]["text"] for row in rows]
    assert [row["custom_id"].removesuffix(row["custom_id"][5:]) for row in rows] == returned
    assert sim.simulator.bill()[0].n_rows == sum(sim.simulator.executed().values()) == billed
    if fault == "row_duplicate":
        assert rows[0] == rows[1]
    if fault == "row_conflict":
        assert answers[0] != answers[1]


def test_cached_tokens_differ_between_equal_rows(begin: Begin) -> None:
    """With the fault on, equal requests report different cached shares, within the input they include."""
    same = [{"role": "user", "content": "the same words again and again " * 20}]
    sim = begin(cached_tokens=1.0)
    batch, theirs = sim.submit(chat_lines(10, messages=same)), sim.submit_messages(10, messages=same)
    usages = [row["response"]["body"]["usage"] for row in sim.lines(sim.finish(batch).output_file_id)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert len(set(cached)) > 1
    assert all(0 <= n <= usages[0]["prompt_tokens"] for n in cached)
    told = [row["result"]["message"]["usage"] for row in sim.results(theirs.id)]
    assert len({usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in told}) == 1
    assert len({usage["cache_read_input_tokens"] for usage in told}) > 1
    assert sim.simulator.bill()[0].usage.cached_input_tokens == sum(cached)


def test_a_row_may_be_billed_beyond_every_bound(begin: Begin) -> None:
    """Input above what its bytes allow, output above its bound; the bill says the same."""
    sim = begin(overbill=1)
    row, _ = _openai_row(sim)
    usage = row["response"]["body"]["usage"]
    assert usage["prompt_tokens"] > input_bound(texts(chat(0)))
    assert usage["completion_tokens"] > 64
    assert sim.simulator.bill()[0].usage.input_tokens > usage["prompt_tokens"]


def test_row_faults_reach_synchronous_calls(begin: Begin) -> None:
    """A row fault that an HTTP reply can tell strikes a synchronous call as that reply."""
    sim = begin(row_429=1, row_refusal=1)
    body: Any = chat(0)
    with pytest.raises(openai.RateLimitError):
        sim.openai.chat.completions.create(**body)
    assert sim.openai.chat.completions.create(**body).choices[0].message.refusal


# --------------------------------------------------------------------------------------------------------------- chance


def test_probabilities_are_drawn_from_the_seed(begin: Begin) -> None:
    """A share of rows fails: about that share, the same rows for the same seed, others for another."""

    def failed(seed: int) -> set[str]:
        sim = begin(seed=seed, row_500=0.2)
        return {row["custom_id"] for row in sim.lines(sim.finish(sim.submit(500)).error_file_id)}

    first, again, other = failed(1), failed(1), failed(2)
    assert first == again != other
    assert 60 <= len(first) <= 140


def test_turnaround_is_a_median(begin: Begin) -> None:
    """Batches take about as long as the scenario says, each its own time."""
    sim = begin(turnaround=timedelta(hours=2))
    batches = [sim.submit(1) for _ in range(41)]
    sim.clock.advance(DAY_S)
    times = sorted((done := sim.openai.batches.retrieve(b.id)).completed_at - done.created_at for b in batches)  # type: ignore[operator]
    assert 3600 < times[20] < 4 * 3600
    assert len(set(times)) > 30


def test_counted_faults_strike_once_also_over_a_restart(tmp_path: Path) -> None:
    """What happens n times happens n times in the folder's life, not in the process's."""
    scenario = Scenario(lost_create_reply=1, row_500=1)
    with simulated(tmp_path, scenario) as sim, pytest.raises(openai.APIConnectionError):
        sim.submit(2)
    with simulated(tmp_path, scenario) as sim:
        second = sim.finish(sim.submit(2))
        first = sim.openai.batches.retrieve(sim.simulator.batches()[0].id)
        assert [batch.request_counts.failed for batch in (first, second) if batch.request_counts] == [1, 0]
