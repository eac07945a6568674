"""Promises about cost drift: told when answers are surely longer than planned, and hardly ever by chance."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import notifying
from canwait.client import Client, JobHandle
from canwait.notices import Notice
from canwait.types import Usage
from canwait.watching import Lengths, drift, most_planned
from test_outlook import CAP, LENGTHS, ROWS, job, office, writer

TRACES = Path(__file__).parent.parent.parent / "shared" / "data" / "traces"
with_traces = pytest.mark.skipif(not TRACES.exists(), reason="../shared/data/traces is missing")

SHARDS, PILOT, N = 10, 200, 5_000


def seen(rows: Sequence[int], drawn: Sequence[int], n_ended: int) -> Lengths:
    """Of a job whose canary are these rows, when so many of its ten shards have ended in the source's order."""
    size = len(rows) // SHARDS
    near = tuple(rows[i] for i in drawn if i >= n_ended * size)
    known = sum(rows[: n_ended * size]) + sum(near)
    return Lengths(
        canary=tuple(rows[i] for i in drawn), n_rows=len(rows), n_ended=n_ended * size + len(near), known=known, near=near,
        n_near=len(rows) - n_ended * size - len(near),
    )  # fmt: skip


def told_at(
    rows: Sequence[int], seed: int, expected: int | None, looks: Sequence[int], before: Sequence[int] | None = None
) -> int | None:
    """After how many shards it is told; None: never. `before`: as long as the rows were while the canary was answered."""
    drawn, cap = Random(seed).sample(range(len(rows)), PILOT), max(rows)
    now = [*rows]
    if before is not None:
        for i in drawn:
            now[i] = before[i]
    planned = most_planned([now[i] for i in drawn], len(rows), Random(seed), expected)
    return next((n for n in looks if drift("j", seen(now, drawn, n), cap, planned, "b")), None)


# ------------------------------------------------------------------------------------------------- on real lengths


@cache
def real(name: str) -> list[int]:
    """Output tokens of real answers."""
    if name == "conversation":
        with (TRACES / "mooncake_conversation.jsonl").open() as file:
            return [json.loads(line)["output_length"] for line in file]
    files = {"code": "azure_llm_2023_code.csv", "summaries": "vidur_arxiv_summarization_lengths.csv"}
    columns = {"code": "GeneratedTokens", "summaries": "num_decode_tokens"}
    with (TRACES / files[name]).open() as file:
        return [int(float(row[columns[name]])) for row in csv.DictReader(file)]


@with_traces
@pytest.mark.parametrize("planned", ["nothing", "by earlier rows"])
@pytest.mark.parametrize("order", ["as it came", "sorted"])
@pytest.mark.parametrize("name", ["code", "conversation", "summaries"])
def test_false_alarms_on_real_lengths(name: str, order: str, planned: str) -> None:
    """Of 300 jobs whose answers are as long as those before at most 5 % are said to drift, over all looks at a job, in whatever
    order its source stands."""
    lengths, alarms = real(name), 0
    for seed in range(300):
        start = Random(seed).randrange(len(lengths) - N)
        rows = lengths[start : start + N] if planned == "nothing" else Random(seed).sample(lengths, N)
        expected = None if planned == "nothing" else sum(Random(-seed - 1).sample(lengths, PILOT)) * N // PILOT
        alarms += told_at(sorted(rows) if order == "sorted" else rows, seed, expected, (0, 9)) is not None
    assert alarms <= 15


@with_traces
@pytest.mark.parametrize("name", ["code", "conversation", "summaries"])
def test_longer_answers_are_found_on_real_lengths(name: str) -> None:
    """Answers that need 1.5 times what was likely at most are found in every job before its last shard: by earlier rows, and by
    its canary where they were not that long yet when that was answered."""
    lengths = real(name)
    for seed in range(30):
        rows = Random(seed).sample(lengths, N)
        canary, usual = Random(seed).sample(rows, PILOT), sum(rows)
        for expected, before in ((usual, None), (None, rows)):
            likely = most_planned(canary, N, Random(seed), expected)
            longer = [round(1.5 * likely / usual * row) for row in rows]
            assert told_at(longer, seed, expected, range(SHARDS), before) is not None


# ----------------------------------------------------------------------------------------------------------- laws


@given(st.integers(0, 10**6), st.integers(0, SHARDS - 1), st.floats(0.3, 1.2))
def test_a_drift_is_never_less_than_what_is_known(seed: int, n_ended: int, spread: float) -> None:
    """What a job surely needs is no less than what has ended, and is told only above what was planned; what stands stays until
    it is below nine tenths of that."""
    rng = random.Random(seed)
    rows = [1 + int(rng.lognormvariate(4, spread)) for _ in range(1_000)]
    lengths = seen(rows, rng.sample(range(1_000), 60), n_ended)
    planned = rng.randrange(1, 2 * sum(rows))
    told = drift("j", lengths, max(rows), planned, "b")
    stands = drift("j", lengths, max(rows), planned, "b", stands=True)
    if told is not None:
        assert told.at_least > told.planned == planned
        assert told.at_least >= lengths.known
        assert stands == told
    elif stands is not None:
        assert 0.9 * stands.planned < stands.at_least <= stands.planned


def test_two_random_rows_are_the_least() -> None:
    """One answer says nothing of the others."""
    alone = Lengths(canary=(100,), n_rows=10_000, n_ended=1, known=100)
    assert drift("j", alone, 100, 1, "b") is None


# ------------------------------------------------------------------------------------------------------ in a job


def told(handle: JobHandle, seconds: float) -> list[Notice]:
    """What is told of drift while the job runs so much longer."""
    c = handle.client
    before = {d.id for d in notifying.deliveries(c.ledger)}
    handle.run(until=c.clock.now() + timedelta(seconds=seconds))
    new = [d.notice for d in notifying.deliveries(c.ledger) if d.id not in before]
    return [notice for notice in new if notice.type == "budget.drift"]


def listening(client: Client, folder: Path, lengths: list[int] = LENGTHS, **fields: Any) -> JobHandle:
    return job(client, folder, lengths, notify=["mailto:me@example.com"], **fields)


def test_a_job_that_needs_more_than_its_last_run_is_told_once(tmp_path: Path) -> None:
    """Rows like those of the run before are as long as planned; when they come back twice as long the canary shows it, and it is
    told once with its numbers, though the shards are sorted by length."""
    with office(tmp_path) as client:
        assert told(listening(client, tmp_path), 10_000) == []
        assert told(listening(client, tmp_path, prompt="{{ text }} again"), 10_000) == []
        longer = [min(CAP, 2 * length) for length in LENGTHS]
        handle = listening(client, tmp_path, longer, prompt="{{ text }} now")
        (notice,) = told(handle, 100)
        assert (notice.title, notice.command) == ("essays costs more than planned", "canwait status essays")
        assert f"({200} rows have ended)" in notice.text
        assert notice.text.endswith(f"by {2 * ROWS:,} earlier rows")
        assert told(handle, 250) == told(handle, 10_000) == []


def test_a_first_run_is_measured_by_its_own_canary(tmp_path: Path) -> None:
    """Where nothing ran before and the rows are what their canary said, nothing is told; where what comes after it is twice as
    long, it is told before the job has ended, and never of a job at its end."""
    with office(tmp_path) as client:
        first = listening(client, tmp_path)
        assert told(first, 60) == []
        provider, usage = writer(client), writer(client).usage
        provider.usage = lambda body: Usage(30, min(CAP, 3 * usage(body).output_tokens))  # type: ignore[method-assign]
        (notice,) = told(first, 500)
        assert notice.text.endswith(" by its canary")
        assert told(first, 10_000) == []
        assert client.ledger.query("alarms") == []
