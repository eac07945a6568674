"""`own`: rows asked one by one from a folder, against a real server on loopback that counts what it is asked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.errors import Busy, CanwaitError, KeyRefused, Rejected, SpecError, Unreachable
from canwait.providers import Provider
from canwait.providers.conformance import CHECKS, Check
from canwait.providers.crew import TRIES
from canwait.providers.own import Own, own_from_env
from canwait.providers.spool import Folder, Row, answer_line
from canwait.types import Answer, Batch, BatchStatus, MarkClass, Outcome, ShardFile
from provider_host import HANG_UP, TOKEN, Host, Reply, Seen, serving, shard_of

T = TypeVar("T")

NOBODY = "http://127.0.0.1:1/v1"
AT_ONCE = {"retry-after": "0"}


def chat(text: str = "fine") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


def content_of(seen: Seen) -> str:
    return str(seen.json["messages"][0]["content"])


def row_of(seen: Seen) -> int:
    """Which line of a shard made by `shard_of` a request was."""
    match = re.match(r"row (\d+)", content_of(seen))
    assert match
    return int(match[1])


def answering(reply: Callable[[Seen], Reply] = lambda seen: Reply(chat())) -> Callable[[Seen], Reply]:
    return lambda seen: Reply({"data": []}) if seen.method == "GET" else reply(seen)


def asked(host: Host) -> Counter[int]:
    """How often each row was asked."""
    return Counter(row_of(seen) for seen in list(host.seen) if seen.method == "POST")


def hold() -> None:
    """A guard that always holds."""


def ended(own: Provider, batch_id: str = TOKEN, within_s: float = 20.0) -> Batch:
    return until(lambda: batch if (batch := own.poll(batch_id)).status.ended else None, within_s)


def until(look: Callable[[], T | None], within_s: float = 20.0) -> T:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if (found := look()) is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to pass in time")


def stops_with(own: Own, error: type[CanwaitError]) -> CanwaitError:
    """Poll until that is raised."""

    def look() -> CanwaitError | None:
        try:
            own.poll(TOKEN)
        except error as exc:
            return exc
        return None

    return until(look)


def answers(own: Own, batch: Batch) -> dict[int, Answer]:
    lines = b"".join(own.results(batch)).split(b"\n")
    assert lines.pop() == b""
    decoded = [own.decode(line) for line in lines]
    assert len({answer.custom_id for answer in decoded}) == len(decoded)
    return {int(answer.custom_id.removeprefix(f"{batch.id}-")): answer for answer in decoded}


def causes(own: Own, batch: Batch) -> list[str | None]:
    return [answer.cause for _, answer in sorted(answers(own, batch).items())]


# ------------------------------------------------------------------------------------------- the promises of a provider


@dataclass
class Spooled:
    """A rig for the conformance suite."""

    provider: Provider
    folder: Path
    tokens: Iterator[str] = field(default_factory=lambda: (f"cw{n:016x}" for n in range(99)))

    def shard(self, rows: int) -> ShardFile:
        return shard_of(self.folder, rows, token=next(self.tokens), first_try=datetime.now(UTC))

    def finish(self) -> None:
        for path in self.spool.iterdir():
            ended(self.provider, path.name)

    def n_batches(self) -> int:
        return len(list(self.spool.iterdir())) if self.spool.exists() else 0

    def unreachable(self) -> Provider:
        return Own(NOBODY, None, self.folder / "elsewhere")

    @property
    def spool(self) -> Path:
        return self.folder / "spool"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_own_keeps_the_promises_of_a_provider(check: Check, tmp_path: Path) -> None:
    """What every provider promises holds for a server of one's own."""
    with serving(answering()) as host:
        check(Spooled(Own(f"{host.url}/v1", None, tmp_path / "spool"), tmp_path))


# ------------------------------------------------------------------------------------------------- asking and answering


def test_a_request_goes_over_the_wire_byte_for_byte(tmp_path: Path) -> None:
    """The bytes that were hashed and priced are the bytes the server gets, at its chat endpoint, with the key."""
    shard = shard_of(tmp_path, 3)
    with serving(answering()) as host:
        own = Own(f"{host.url}/v1/", "sk-own", tmp_path / "spool", concurrency=1)
        own.submit(shard, hold)
        ended(own)
    posts = [seen for seen in host.seen if seen.method == "POST"]
    assert [seen.body for seen in posts] == shard.path.read_bytes().splitlines()
    assert {(seen.path, seen.headers["authorization"]) for seen in posts} == {("/v1/chat/completions", "Bearer sk-own")}


def test_a_reply_of_many_lines_is_kept_whole_on_one(tmp_path: Path) -> None:
    """A reply laid out over many lines loses its layout and nothing of its text."""
    text = 'two\nlines, a tab\t, "quotes", \\ and \u2028'
    reply = json.dumps(chat(text), indent=2).replace("\n", "\r\n").encode()
    with serving(answering(lambda seen: Reply(reply))) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        own.submit(shard_of(tmp_path, 1), hold)
        assert answers(own, ended(own))[0].text == text


@pytest.mark.parametrize(
    ("reply", "outcome", "cause", "times"),
    [
        (
            Reply({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400),
            "FAILED",
            "invalid_request",
            1,
        ),
        (Reply({"error": {"message": "no such model"}}, 404), "FAILED", "not_found", 1),
        (Reply(b"<html>it works!</html>"), "FAILED", "malformed", 1),
        (Reply(b"\xff\xfe"), "FAILED", "malformed", 1),
        (Reply({"error": "busy"}, 503, AT_ONCE), "FAILED", "server_error", TRIES),
        (Reply(b"<html>bad gateway</html>", 502, AT_ONCE), "FAILED", "server_error", TRIES),
        (Reply({"error": {"message": "slow down"}}, 429, AT_ONCE), "FAILED", "rate_limit", TRIES),
    ],
)
def test_a_failed_row_says_why_and_takes_no_other_with_it(
    reply: Reply, outcome: str, cause: str, times: int, tmp_path: Path
) -> None:
    """Passing trouble is met again a few times in place, a wrong request never; the other rows are answered."""
    with serving(answering(lambda seen: reply if row_of(seen) == 1 else Reply(chat()))) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        own.submit(shard_of(tmp_path, 3), hold)
        found = answers(own, ended(own))
    assert (found[1].outcome.name, found[1].cause) == (outcome, cause)
    assert [found[0].outcome, found[2].outcome] == [Outcome.OK, Outcome.OK]
    assert asked(host) == {0: 1, 1: times, 2: 1}


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path) -> None:
    """A row whose connection broke is asked again and answered."""
    with serving(answering(lambda seen: HANG_UP if len(host.seen) < 3 else Reply(chat()))) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        own.submit(shard_of(tmp_path, 1), hold)
        assert causes(own, ended(own)) == [None]
    assert asked(host) == {0: 2}


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    """A server that asks for a second of patience gets it."""
    times: list[float] = []

    def reply(seen: Seen) -> Reply:
        times.append(time.monotonic())
        return Reply({}, 429, {"retry-after": "1"}) if len(times) == 1 else Reply(chat())

    with serving(answering(reply)) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        own.submit(shard_of(tmp_path, 1), hold)
        assert causes(own, ended(own)) == [None]
    assert times[1] - times[0] >= 1.0


def test_a_row_that_takes_too_long_is_a_timeout(tmp_path: Path) -> None:
    """A row without an answer in time fails as a timeout, once, and the batch ends."""
    with serving(answering(slowly)) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool", timeout_s=0.02)
        own.submit(shard_of(tmp_path, 1), hold)
        assert causes(own, ended(own)) == ["timeout"]
    assert asked(host) == {0: 1}


def test_a_chat_without_messages_is_refused_whole(tmp_path: Path) -> None:
    """Nothing is sent and nothing is left behind of a shard with a chat that has no messages."""
    shard = shard_of(tmp_path, 3)
    lines = shard.path.read_bytes().splitlines(keepends=True)
    shard.path.write_bytes(b"".join([*lines[:2], b'{"messages":[],"model":"m"}\n']))
    with serving(answering()) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        with pytest.raises(Rejected, match="request 2 of"):
            own.submit(shard, hold)
        assert own.find(shard) == []
    assert host.count("POST", "/v1/chat/completions") == 0


def test_rows_in_flight_stay_within_the_bound_over_all_batches(tmp_path: Path) -> None:
    """However many batches are open, the server never has more rows at once than was allowed, and is kept as busy."""
    here, most, lock = 0, 0, threading.Lock()

    def reply(seen: Seen) -> Reply:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        time.sleep(0.01)
        with lock:
            here -= 1
        return Reply(chat())

    tokens = [f"cw{n}" for n in range(6)]
    with serving(answering(reply)) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool", concurrency=4)
        for token in tokens:
            own.submit(shard_of(tmp_path, 7, token=token), hold)
        done = [ended(own, token) for token in tokens]
    assert [batch.status for batch in done] == [BatchStatus.COMPLETED] * 6
    assert most == 4
    assert asked(host) == dict.fromkeys(range(7), 6)


# ---------------------------------------------------------------------------------------------------- crash and resume

CHILD = """
import resource, sys, time
from pathlib import Path
from canwait.providers.own import Own
from canwait.types import ShardFile
url, spool, path, rows, file_bytes = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_bytes), resource.RLIM_INFINITY))  # a disk that is full there
own = Own(url, None, Path(spool), concurrency=4)
shard = ShardFile(token=Path(path).stem, path=Path(path), n_rows=int(rows), endpoint="/v1/chat/completions", model="m", window_s=1)
own.submit(shard, lambda: None)
while not own.poll(shard.token).status.ended:
    time.sleep(0.01)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts another process that runs a shard to its end."""
    with ExitStack() as stack:

        def start(url: str, shard: ShardFile, file_bytes: int = 2**30) -> subprocess.Popen[bytes]:
            facts = f"{url}/v1", tmp_path / "spool", shard.path, shard.n_rows, file_bytes
            command = [sys.executable, "-c", CHILD, *map(str, facts)]
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE))
            stack.callback(process.kill)
            return process

        yield start


def slowly(seen: Seen) -> Reply:
    time.sleep(0.05)
    return Reply(chat())


def test_after_a_kill_no_answered_row_is_asked_again(
    tmp_path: Path, child: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The process is killed in the middle; another goes on: answers on disk are kept, the other rows are asked."""
    shard = shard_of(tmp_path, 120)
    folder = Folder(tmp_path / "spool", TOKEN)
    with serving(answering(slowly)) as host:
        process = child(host.url, shard)
        until(lambda: True if len(folder.answered()[0]) >= 30 else None)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = folder.answered()[0]
        assert len(kept) < 120
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        batch = ended(own)
    times = asked(host)
    assert {times[line] for line in kept} == {1}
    assert set(times) == set(range(120))
    assert max(times.values()) <= 2
    assert set(answers(own, batch)) == set(range(120))
    assert batch.status is BatchStatus.COMPLETED


def test_one_process_at_a_time_asks_a_batch(tmp_path: Path, child: Callable[..., subprocess.Popen[bytes]]) -> None:
    """While one process asks a batch, another that submits and polls it only watches; every row is asked once."""
    shard = shard_of(tmp_path, 60)
    with serving(answering(slowly)) as host:
        process = child(host.url, shard)
        until(lambda: True if asked(host) else None)
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        own.submit(shard, hold)
        batch = ended(own)
        assert process.wait(20) == 0
    assert asked(host) == dict.fromkeys(range(60), 1)
    assert (batch.n_rows, batch.n_done) == (60, 60)


def test_a_torn_last_line_is_dropped_and_its_row_asked_again(tmp_path: Path) -> None:
    """A crash in the middle of a write costs the torn row a second question, and no other."""
    with serving(answering()) as host:
        first = Own(f"{host.url}/v1", None, tmp_path / "spool")
        first.submit(shard_of(tmp_path, 5), hold)
        ended(first)
        folder = Folder(tmp_path / "spool", TOKEN)
        until(folder_is_free(folder))
        whole = folder.answers.read_bytes()
        torn = int(re.findall(rb'"custom_id":"\w+-(\d+)"', whole)[-1])
        os.truncate(folder.answers, len(whole) - 10)
        host.seen.clear()
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        assert own.poll(TOKEN).n_done == 4
        assert causes(own, ended(own)) == [None] * 5
    assert asked(host) == {torn: 1}


def folder_is_free(folder: Folder) -> Callable[[], bool | None]:
    def look() -> bool | None:
        lock = folder.lock()
        if lock:
            lock.close()
        return True if lock else None

    return look


WHOLE = b"".join(answer_line(Row(n, f"{TOKEN}-{n}", "", b""), status=200, body=b'{"a":"}"}') for n in range(4))


@given(cut=st.integers(0, len(WHOLE)), lost=st.sampled_from([b"", b"\0" * 9, b"\0" * 9 + b"}\n"]))
def test_only_whole_answers_count_wherever_a_crash_cut(
    cut: int, lost: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut at any byte, with pages behind it that a power cut lost, the whole lines before it count and nothing else."""
    folder = Folder(tmp_path_factory.getbasetemp(), TOKEN)
    folder.path.mkdir(exist_ok=True)
    folder.answers.write_bytes(WHOLE[:cut] + lost)
    n_whole = WHOLE[:cut].count(b"\n")
    assert folder.answered() == (set(range(n_whole)), len(WHOLE) // 4 * n_whole)


# --------------------------------------------------------------------------------------------- what stops all the rows


def test_a_host_that_goes_away_fails_no_row(tmp_path: Path) -> None:
    """Rows stop when the host has gone, poll says so each time, and they go on where they were when it is back."""
    url = ""
    gone = threading.Event()
    own = Own(lambda: url, None, tmp_path / "spool", concurrency=2)
    with serving(answering(lambda seen: HANG_UP if gone.is_set() else slowly(seen))) as host:
        url = f"{host.url}/v1"
        own.submit(shard_of(tmp_path, 40), hold)
        until(lambda: True if len(asked(host)) > 8 else None)
        gone.set()
    for _ in range(2):
        stops_with(own, Unreachable)
    kept = Folder(tmp_path / "spool", TOKEN).answered()[0]
    assert 0 < len(kept) < 40
    with serving(answering()) as host:
        url = f"{host.url}/v1"
        assert causes(own, ended(own)) == [None] * 40
    assert set(asked(host)) == set(range(40)) - kept


def test_a_host_that_never_answered_gets_nothing(tmp_path: Path) -> None:
    """A batch for a host where nobody listens leaves no folder behind, so that nothing is asked later unasked."""
    own = Own(NOBODY, None, tmp_path / "spool")
    with pytest.raises(Unreachable):
        own.submit(shard_of(tmp_path, 2), hold)
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("where", ["GET", "POST"])
def test_a_refused_key_stops_the_rows_and_is_not_told(where: str, tmp_path: Path) -> None:
    """A wrong key is said by submit, or by poll where only the rows need it; rows stay unanswered; the key stays secret."""
    refusal = Reply({"error": {"message": "sk-secret is not a key"}}, 401)
    with serving(lambda seen: refusal if seen.method == where else Reply({"data": []})) as host:
        own = Own(f"{host.url}/v1", "sk-secret", tmp_path / "spool")
        if where == "GET":
            with pytest.raises(KeyRefused) as caught:
                own.submit(shard_of(tmp_path, 3), hold)
            error: CanwaitError = caught.value
        else:
            own.submit(shard_of(tmp_path, 3), hold)
            error = stops_with(own, KeyRefused)
            assert Folder(tmp_path / "spool", TOKEN).answered()[0] == set()
    assert "sk-secret" not in str(error) + str(error.problem) + str(own.account)
    assert "OWN_API_KEY" in str(error)


def test_a_server_that_is_still_loading_is_busy(tmp_path: Path) -> None:
    """A server that says 503 before anything was sent has certainly accepted nothing; its Retry-After is passed on."""
    with serving(lambda seen: Reply({"error": {"message": "Loading model"}}, 503, {"retry-after": "7"})) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        with pytest.raises(Busy, match="Loading model") as caught:
            own.submit(shard_of(tmp_path, 1), hold)
    assert caught.value.retry_after_s == 7


def test_a_full_disk_stops_the_rows_and_they_go_on_later(
    tmp_path: Path, child: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Where answers cannot be written any more poll says why, those that were written stay, and the rest is asked later."""
    shard = shard_of(tmp_path, 60)
    folder = Folder(tmp_path / "spool", TOKEN)
    with serving(answering()) as host:
        process = child(host.url, shard, file_bytes=shard.path.stat().st_size * 2)
        said = process.communicate()[1].decode()
        kept = folder.answered()[0]
        assert "Busy: own:" in said
        assert "File too large" in said
        assert 0 < len(kept) < 60
        first = asked(host)
        host.seen.clear()
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        assert causes(own, ended(own)) == [None] * 60
    assert set(asked(host)) == set(range(60)) - kept
    assert set(first) >= kept


# --------------------------------------------------------------------------------------------------------------- cancel


def test_cancel_keeps_what_is_answered_and_asks_no_more(tmp_path: Path) -> None:
    """Rows in flight are answered, the rest are cancelled, every row has an end, and the server hears of no other row."""
    with serving(answering(slowly)) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool", concurrency=2)
        own.submit(shard_of(tmp_path, 50), hold)
        until(lambda: True if len(asked(host)) >= 5 else None)
        own.cancel(TOKEN)
        batch = ended(own)
        assert batch.status is BatchStatus.CANCELLED
        found = answers(own, batch)
    assert set(found) == set(range(50))
    assert {line for line, answer in found.items() if answer.outcome is Outcome.OK} == set(asked(host))
    assert {answer.outcome for line, answer in found.items() if line not in asked(host)} == {Outcome.CANCELLED}


def test_cancel_needs_no_server_and_outlives_the_process(tmp_path: Path) -> None:
    """A batch nobody is asking is cancelled without its server, also when the cancel itself was cut short."""
    for token, cut_short in [("cw1", False), ("cw2", True)]:
        shard = shard_of(tmp_path, 3, token=token)
        own = Own(NOBODY, None, tmp_path / "spool")
        folder = Folder(tmp_path / "spool", token)
        folder.create(own.encode(shard.custom_id(n), b"{}", shard.endpoint) for n in range(3))
        if cut_short:
            folder.cancel()
        else:
            own.cancel(token)
        batch = own.poll(token)
        assert batch.status is BatchStatus.CANCELLED
        assert causes(own, batch) == ["cancelled"] * 3


def test_an_ended_batch_is_not_cancelled(tmp_path: Path) -> None:
    """A cancel that comes after the end changes nothing."""
    with serving(answering()) as host:
        own = Own(f"{host.url}/v1", None, tmp_path / "spool")
        own.submit(shard_of(tmp_path, 2), hold)
        ended(own)
        own.cancel(TOKEN)
        assert own.poll(TOKEN).status is BatchStatus.COMPLETED


@pytest.mark.parametrize("batch_id", ["../x", "cw1/../../x", "", "CW1", "a" * 300])
def test_a_batch_id_is_never_a_path(batch_id: str, tmp_path: Path) -> None:
    """An id that is not one of our tokens names no folder."""
    assert Folder.of(tmp_path, batch_id) is None


# ---------------------------------------------------------------------------------------------------- the environment


def test_own_is_opened_from_the_environment(tmp_path: Path) -> None:
    """Address, key file and concurrency come from the environment; a server without a key needs none."""
    (tmp_path / "key").write_text("sk-from-file\n")
    env = {
        "OWN_BASE_URL": "http://gpu-box:8000/v1",
        "OWN_API_KEY_FILE": str(tmp_path / "key"),
        "CANWAIT_OWN_CONCURRENCY": "64",
    }
    own = own_from_env(env, tmp_path)
    assert (own.name, own.account, own.mark) == ("own", "gpu-box:8000", MarkClass.IDEMPOTENT)
    assert own_from_env({"OWN_BASE_URL": "http://gpu-box:8000/v1"}, tmp_path).limits("m").max_rows == 500


@pytest.mark.parametrize(
    ("env", "field"),
    [
        ({}, "OWN_BASE_URL"),
        ({"OWN_BASE_URL": "gpu-box:8000"}, "OWN_BASE_URL"),
        ({"OWN_BASE_URL": "http://[::1"}, "OWN_BASE_URL"),
        ({"OWN_BASE_URL": "http://x/v1", "CANWAIT_OWN_CONCURRENCY": "0"}, "CANWAIT_OWN_CONCURRENCY"),
        ({"OWN_BASE_URL": "http://x/v1", "CANWAIT_OWN_CONCURRENCY": "many"}, "CANWAIT_OWN_CONCURRENCY"),
    ],
)
def test_a_bad_setting_is_named(env: dict[str, str], field: str, tmp_path: Path) -> None:
    """A setting that cannot be used is named with what was expected, before anything is opened."""
    with pytest.raises(SpecError) as caught:
        own_from_env(env, tmp_path)
    assert [problem.file for problem in caught.value.problems] == [field]
