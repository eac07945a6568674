"""The canary: a simple random sample of a plan's new requests, as a shard of its own that goes first."""

from __future__ import annotations

import json
import random
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait import canary as sampling
from canwait import prepare as module
from canwait.blobs import Blobs
from canwait.canary import CANARY_ROWS, FEW_ROWS
from canwait.client import _new_shards
from canwait.codec import plan_from_json, plan_to_json
from canwait.db import connect
from canwait.drills.histories import TERMS
from canwait.drills.small import SmallJob, plan_small
from canwait.landing import read_manifest
from canwait.ledger import Ledger
from canwait.lines import read_lines
from canwait.plan import explain
from canwait.render import compile_job
from canwait.types import Canary, Endpoint, MarkClass, PlannedShard, ShardSpec
from test_prepare import (
    JOB,
    LONGEST_ID,
    NOW,
    Rows,
    _Wide,
    known_of,
    planned,
    price_of,
    rows_of,
    some_text,
    texts,
    tight,
)

EMBEDDINGS = replace(
    JOB, endpoint=Endpoint.EMBEDDINGS, prompt=(("user", "{{ text }}"),), max_output_tokens=0, model="e-1"
)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@contextmanager
def scaled(n_rows: int, few: int, piece_bytes: int = 2 << 20) -> Iterator[None]:
    """A canary of at most `n_rows` where there are more than `few`, and requests that are made so many bytes at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CANARY_ROWS", n_rows)
        patch.setattr(module, "FEW_ROWS", few)
        patch.setattr(module, "_PIECE_BYTES", piece_bytes)
        patch.setattr(module, "_FIRST_PIECE_ROWS", 3)
        patch.setattr(module, "_FRAME_BYTES", piece_bytes)
        yield


@contextmanager
def without() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "has_canary", lambda job: False)
        yield


def identities(blobs: Blobs, shard: PlannedShard) -> list[bytes]:
    return read_manifest(blobs.path(shard.manifest_blob))["identity"].to_pylist()


def bodies(blobs: Blobs, shard: PlannedShard) -> list[bytes]:
    return list(read_lines(blobs.path(shard.requests_blob)))


# ---------------------------------------------------------------------------------------------------------------- laws

some_rows = st.lists(some_text | st.text("abcdefgh", min_size=2, max_size=9), max_size=120).map(
    lambda many: texts(*many)
)


@settings(max_examples=100, deadline=None)
@given(
    rows=some_rows,
    mark=st.sampled_from(MarkClass),
    n_canary=st.integers(1, 8),
    more=st.integers(0, 15),
    piece_bytes=st.integers(1, 400),
    max_rows=st.integers(1, 40),
    max_bytes=st.integers(500, 9_000),
    max_tokens=st.none() | st.integers(60, 2_000),
    dedupe=st.booleans(),
    n_known=st.integers(0, 40),
    rng=st.randoms(use_true_random=False),
)
def test_the_smallest_identities_go_first_and_every_row_is_answered(
    rows: Rows, mark: MarkClass, n_canary: int, more: int, piece_bytes: int, max_rows: int, max_bytes: int,
    max_tokens: int | None, dedupe: bool, n_known: int, rng: random.Random,
) -> None:  # fmt: skip
    """Whatever the order, duplicates, reuse, pieces and limits: the canary is right, and so are rows, weights and shards."""
    job, few = replace(JOB, shard=ShardSpec(max_rows), dedupe=dedupe), n_canary + more
    provider = tight(mark, max_bytes=max_bytes, max_line_bytes=max_bytes, max_enqueued_tokens=max_tokens)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder, scaled(n_canary, few, piece_bytes):
        blobs = Blobs(Path(folder))
        with without():
            known = known_of(blobs, planned(blobs, Rows(rows.rows[:n_known]), job, provider))
        prepared = planned(blobs, rows, job, provider, known=known)
        plan = prepared.plan
        older = {shard: n for shard, n in known.n_lines.items() if shard in plan.shard_ids}
        sent = {s.id: bodies(blobs, s) for s in plan.shards}
        manifests = {s.id: read_manifest(blobs.path(s.manifest_blob)).to_pydict() for s in plan.shards}
        found = rows_of(blobs, prepared)
        shuffled = Rows(rng.sample(list(rows.rows), len(rows.rows)))
        other = planned(blobs, shuffled, job, provider, known=known).plan
        others = identities(blobs, other.shards[0]) if other.canary else []

    # Every row points to the line that holds its own request.
    render = compile_job(job).render
    assert [key for key, _, _ in found] == [row["id"] for row in rows.rows]
    for (_, shard, line), row in zip(found, rows.rows, strict=True):
        assert shard in older or sent[shard][line] == render(row).body
    waiting = Counter((shard, line) for _, shard, line in found)
    weights = {(s, line): n for s, w in prepared.answering for line, n in enumerate(array("I", w)) if n}
    assert weights == dict(waiting)
    assert sum(weights.values()) == len(rows.rows) == plan.n_new + plan.n_reused + plan.n_duplicates
    assert [shard for shard, _ in prepared.answering] == list(plan.shard_ids)
    assert {s.id for s in plan.shards} | set(older) == set(plan.shard_ids)
    assert len(set(plan.shard_ids)) == len(plan.shard_ids)

    # Every shard fits every limit.
    for s in plan.shards:
        manifest, wire = manifests[s.id], [provider.encode(LONGEST_ID, b, plan.endpoint) for b in sent[s.id]]
        assert 0 < s.n_lines == len(wire) == len(manifest["line"]) <= max_rows
        assert s.n_bytes == sum(map(len, wire)) + len(wire) <= max_bytes
        assert s.input_bound == sum(manifest["input_bound"])
        assert max_tokens is None or s.input_bound <= max_tokens or s.n_lines == 1
    sizes = [s.n_lines for s in plan.shards]
    assert sum(sizes) == plan.n_new
    if mark is MarkClass.UNMARKED:
        for n in {n for n in sizes if sizes.count(n) > 1}:  # equal only where it could not be divided
            assert not [m for m in range(1, n) if m != n - m and m not in sizes and n - m not in sizes]

    # The canary is as many of the smallest identities as fit one shard.
    assert (plan.canary is not None) == (plan.n_new > few)
    if plan.canary is None:
        return
    first, rest = plan.shards[0], plan.shards[1:]
    assert first.id == plan.canary.shard
    drawn = manifests[first.id]["identity"]
    lines = sorted(
        (identity, len(provider.encode(LONGEST_ID, body, plan.endpoint)) + 1, bound)
        for s in plan.shards
        for identity, body, bound in zip(manifests[s.id]["identity"], sent[s.id], manifests[s.id]["input_bound"], strict=True)
    )  # fmt: skip
    assert drawn == [identity for identity, _, _ in lines[: len(drawn)]]
    fits = 1
    while fits < min(n_canary, max_rows) and (
        sum(n for _, n, _ in lines[: fits + 1]) <= max_bytes - 64
        and (max_tokens is None or sum(n for _, _, n in lines[: fits + 1]) <= max_tokens)
    ):
        fits += 1
    if mark is MarkClass.UNMARKED:  # or smaller, so that no other shard has as many lines
        assert set(range(len(drawn) + 1, fits + 1)) <= {s.n_lines for s in rest}
    else:
        assert (len(drawn), others) == (fits, drawn)

    # Homes are other new shards, and follow each other as the rows do.
    assert len(plan.canary.homes) == len(drawn)
    assert {plan.shard_ids[home] for home in plan.canary.homes} <= {s.id for s in rest}
    asked = {(shard, line): n for n, (_, shard, line) in reversed([*enumerate(found)])}
    in_order = [
        plan.canary.homes[line] for _, line in sorted((asked[first.id, line], line) for line in range(len(drawn)))
    ]
    assert in_order == sorted(in_order)


@settings(max_examples=60, deadline=None)
@given(
    rows=some_rows,
    mark=st.sampled_from(MarkClass),
    max_rows=st.integers(1, 40),
    piece_bytes=st.integers(1, 400),
    n_known=st.integers(0, 40),
)
def test_few_requests_are_planned_as_if_there_were_no_canary(
    rows: Rows, mark: MarkClass, max_rows: int, piece_bytes: int, n_known: int
) -> None:
    """Of so few that none goes first the shards, their ids, the rows' lines and the weights are those without one."""
    job = replace(JOB, shard=ShardSpec(max_rows))
    with TemporaryDirectory() as folder, scaled(2, len(rows.rows), piece_bytes):
        blobs = Blobs(Path(folder))
        with without():
            known = known_of(blobs, planned(blobs, Rows(rows.rows[:n_known]), job, tight(mark)))
            plain = planned(blobs, rows, job, tight(mark), known=known)
        prepared = planned(blobs, rows, job, tight(mark), known=known)
        assert prepared.plan.canary is None
        assert rows_of(blobs, prepared) == rows_of(blobs, plain)
        assert sorted(prepared.answering) == sorted(plain.answering)
        new = dict(rows_blob="", shard_ids=())
        assert replace(prepared.plan, **new) == replace(plain.plan, **new)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("n_new", "sizes"), [(1_000, [1_000]), (1_001, [200, 801]), (5_201, [200, 5_000, 1])])
def test_more_than_a_thousand_new_requests_have_a_canary(blobs: Blobs, n_new: int, sizes: list[int]) -> None:
    """Of 1,001 new requests 200 go first, of 1,000 none; duplicates are not counted."""
    rows = texts(*[n // 2 for n in range(2 * n_new)])
    plan = planned(blobs, rows).plan
    assert (FEW_ROWS, CANARY_ROWS) == (1_000, 200)
    assert ([s.n_lines for s in plan.shards], plan.n_new, plan.n_duplicates) == (sizes, n_new, n_new)
    assert (plan.canary is None) == (len(sizes) == 1)


def test_reused_requests_are_not_drawn(blobs: Blobs) -> None:
    """What is answered already counts for nothing: 1,000 new ones beside it have no canary, one more has one."""
    paid = planned(blobs, texts(*range(1_500)))
    known = known_of(blobs, paid)
    assert planned(blobs, texts(*range(2_500)), known=known).plan.canary is None
    plan = planned(blobs, texts(*range(2_501)), known=known).plan
    assert (plan.n_reused, [s.n_lines for s in plan.shards]) == (1_500, [200, 801])
    drawn = set(identities(blobs, plan.shards[0]))
    assert drawn.isdisjoint(identity for s in paid.plan.shards for identity in identities(blobs, s))


def test_rows_kept_together_have_no_canary(blobs: Blobs) -> None:
    """`shard.by` keeps values together, so none is taken out of them."""
    rows = Rows([{"id": str(n), "text": str(n), "kind": "xyz"[n % 3]} for n in range(1_200)])
    plan = planned(blobs, rows, replace(JOB, shard=ShardSpec(by="kind"))).plan
    assert (plan.canary, [s.n_lines for s in plan.shards]) == (None, [400] * 3)


def test_embeddings_have_no_canary(blobs: Blobs) -> None:
    """What an embedding costs is known, and nobody can judge it."""
    plan = planned(
        blobs, texts(*range(1_200)), EMBEDDINGS, price_of=lambda tier: replace(price_of(tier), output=Decimal(0))
    ).plan
    assert (plan.canary, [s.n_lines for s in plan.shards]) == (None, [1_200])


def test_a_canary_is_no_larger_than_a_shard_may_be(blobs: Blobs) -> None:
    """Where 200 requests are too many rows, bytes or tokens for one shard, fewer go first."""
    rows = texts(*[f"{n:04}" for n in range(1_100)])
    tokens, line_bytes = 63, 183
    for limits, most in (
        ({"max_rows": 70}, 70),
        ({"max_bytes": 64 + 50 * line_bytes}, 50),
        ({"max_enqueued_tokens": 40 * tokens}, 40),
    ):
        plan = planned(blobs, rows, provider=tight(**limits)).plan
        assert plan.shards[0].n_lines == most == max(s.n_lines for s in plan.shards)
        assert plan.canary is not None
        assert len(plan.canary.homes) == most


def test_a_request_too_large_for_any_queue_may_be_the_canary(blobs: Blobs) -> None:
    """Where no two requests fit one shard, the canary is the one of smallest identity."""
    with scaled(10, 50):
        plan = planned(blobs, texts(*range(60)), provider=tight(max_enqueued_tokens=10)).plan
    assert [s.n_lines for s in plan.shards] == [1] * 60
    assert identities(blobs, plan.shards[0]) == [min(i for s in plan.shards for i in identities(blobs, s))]


# ------------------------------------------------------------------------------------------------------------- chance


def test_every_place_of_the_source_is_drawn_alike(blobs: Blobs) -> None:
    """Of five jobs over 4,000 rows, sampled 200 each, no tenth of the source has more than chance gives it (chi-square)."""
    counts: Counter[int] = Counter()
    orders: list[float] = []
    for n in range(5):
        prepared = planned(blobs, texts(*range(4_000)), replace(JOB, prompt=(("user", f"{n}: {{{{ text }}}}"),)))
        (first, *_), found = prepared.plan.shards, rows_of(blobs, prepared)
        lines = {line: row for row, (_, shard, line) in enumerate(found) if shard == first.id}
        counts.update(row // 400 for row in lines.values())
        orders += [lines[line] / 4_000 for line in range(100)]  # the first half of each
    assert sum(counts.values()) == 5 * CANARY_ROWS
    assert sum((counts[part] - 100) ** 2 / 100 for part in range(10)) < 27.9  # 9 degrees of freedom, 99.9 %
    assert abs(sum(orders) / 500 - 0.5) < 3.3 * (1 / 12 / 500) ** 0.5  # its lines are in random order, too


def test_a_line_comes_from_the_shard_whose_rows_stand_around_it(blobs: Blobs) -> None:
    """A home is where the row would stand; rows that were drawn for a while stand there again, or in the last shard."""
    prepared = planned(blobs, texts(*range(10_000)), replace(JOB, shard=ShardSpec(1_000)))
    plan, rows = prepared.plan, {shard: {} for shard in prepared.plan.shard_ids}  # type: ignore[var-annotated]
    for n, (_, shard, line) in enumerate(rows_of(blobs, prepared)):
        rows[shard][line] = n
    canary, *others = plan.shards
    assert plan.canary is not None
    starts, ends = ([end(rows[s.id].values()) for s in others[:-1]] for end in (min, max))
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    for line, home in enumerate(plan.canary.homes):
        at = [s.id for s in others].index(plan.shard_ids[home])
        assert at == 0 or ends[at - 1] < rows[canary.id][line]
        assert at + 1 >= len(starts) or rows[canary.id][line] < starts[at + 1]
    n_elsewhere = sum(row < ends[-1] for row in rows[others[-1].id].values())
    assert 0 < n_elsewhere < CANARY_ROWS * 2.31  # 200 ln(10,000 / 1,000)
    for home, n in plan.canary.aside:  # and the plan says of which shards they are rows
        at = [s.id for s in others].index(plan.shard_ids[home])
        after, before = ends[at - 1] if at else -1, starts[at + 1] if at + 1 < len(starts) else ends[-1] + 1
        assert n == sum(after < row < before for row in rows[others[-1].id].values())
    assert n_elsewhere == sum(n for _, n in plan.canary.aside)


# ------------------------------------------------------------------------------------------------- the same plan, again


def test_the_same_rows_are_the_same_plan(tmp_path: Path) -> None:
    """Planned twice in two places, a plan with a canary has the same id, shards, homes and blobs."""
    rows = texts(*[n % 2_000 for n in range(3_000)])
    first, again = (planned(Blobs(tmp_path / name), rows) for name in "ab")
    assert first.plan.canary is not None
    assert first == again


def test_planning_again_reuses_the_canary_too(blobs: Blobs) -> None:
    """Once all is paid the same rows are the same plan and cost nothing: each is answered by the line it had."""
    rows = texts(*[n % 1_500 for n in range(2_000)])
    first = planned(blobs, rows)
    again = planned(blobs, rows, known=known_of(blobs, first))
    assert (again.plan.id, again.plan.n_new, again.plan.canary) == (first.plan.id, 0, None)
    assert rows_of(blobs, again) == rows_of(blobs, first)
    assert sorted(again.answering) == sorted(first.answering)


def test_a_key_that_stands_twice_leaves_the_sample_as_it_is(blobs: Blobs) -> None:
    """Rows that are read a second time, to name the bad ones, are planned as without those."""
    rows = [{"id": str(n), "text": str(n)} for n in range(1_300)]
    good, bad = planned(blobs, Rows(rows)), planned(blobs, Rows([*rows, {"id": "7", "text": "other"}]))
    assert (bad.plan.n_bad_rows, bad.plan.n_new, bad.plan.canary is not None) == (1, 1_300, True)
    assert identities(blobs, bad.plan.shards[0]) == identities(blobs, good.plan.shards[0])


def test_a_canary_is_kept_with_its_plan(blobs: Blobs) -> None:
    """JSON and back it is the same; a plan that an older version kept has none."""
    plan = planned(blobs, texts(*range(1_001))).plan
    raw = json.loads(json.dumps(plan_to_json(plan)))
    assert plan_from_json(raw) == plan
    del raw["canary"]
    assert plan_from_json(raw) == replace(plan, canary=None)


def test_a_plan_says_what_goes_first(blobs: Blobs) -> None:
    """The number of shards is followed by how many requests go first, where some do."""

    def shards_line(n_rows: int) -> str:
        text = explain(planned(blobs, texts(*range(n_rows))).plan, JOB)
        return next(line for line in text.splitlines() if line.startswith("  shards"))

    assert shards_line(5_201) == "  shards     3, of at most 5,000 requests; 200 random ones go first"
    assert shards_line(1_000) == "  shards     1, of at most 1,000 requests"


# ------------------------------------------------------------------------------------------------------------ sent first


@pytest.fixture
def opened(blobs: Blobs, ledger_url: str) -> Iterator[tuple[Ledger, str]]:
    """A plan of 23 shards, and the id of its canary, the last of them in the alphabet."""
    plan = planned(blobs, texts(*range(1_100)), replace(JOB, shard=ShardSpec(50))).plan
    assert plan.canary is not None
    first = replace(plan.shards[0], id="t" + plan.shards[0].id[1:])
    plan = replace(plan, shards=(first, *plan.shards[1:]), canary=Canary(first.id, plan.canary.homes))
    small = plan_small(blobs, SmallJob("job", [[b'{"row":0}']], TERMS, lambda _: (1, 1), "account"), NOW)
    new = _new_shards(plan, "fake", "account", NOW)
    answering = [(shard.id, array("I", [1] * shard.n_lines).tobytes()) for shard in new]
    ledger = Ledger(connect(ledger_url))
    assert ledger.open_plan(replace(small, new=new, answering=answering), NOW)
    yield ledger, first.id
    ledger.close()


def test_the_canary_is_claimed_first(opened: tuple[Ledger, str]) -> None:
    """Of all shards of a plan the canary is due first, whatever the names of the others."""
    ledger, first = opened
    claimed = ledger.claim("caller", NOW, 10, "job")
    assert claimed is not None
    assert claimed.id == first


def test_a_canary_that_was_crowded_out_is_still_claimed_first(opened: tuple[Ledger, str]) -> None:
    """Where an account takes no more batches all shards wait, and the canary is the first to ask again."""
    ledger, first = opened
    for n in range(3):
        now = NOW + timedelta(seconds=60 * n)
        claimed = ledger.claim("caller", now, 10, "job")
        assert claimed is not None
        assert claimed.id == first
        ledger.crowded(claimed, now + timedelta(seconds=60), "full", now)
        assert ledger.claim("caller", now + timedelta(seconds=59), 10, "job") is None


# ---------------------------------------------------------------------------------------------------------------- memory


def test_what_left_the_sample_lies_on_disk(blobs: Blobs) -> None:
    """From 5,000 to 10,000 rows of 10 kB some 140 more leave a sample of 200, and none of them stays in memory."""
    job = replace(JOB, shard=ShardSpec(200))

    def peak(n_rows: int) -> int:
        tracemalloc.start()
        try:
            assert planned(blobs, _Wide(n_rows), job).plan.canary is not None
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1_001)  # what is loaded once is not counted
    assert peak(10_000) - peak(5_000) < 5_000 * 100
