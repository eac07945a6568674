"""Rows to shards: every good row is answered exactly once, every bad one is named, nothing is sent or half-written."""

from __future__ import annotations

import json
import random
import resource
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canwait.blobs import Blobs
from canwait.clock import SystemClock
from canwait.errors import BlobError, NotFound, SourceError, UnknownPrice
from canwait.landing import read_manifest
from canwait.plan import Earlier
from canwait.prepare import Known, Prepared, load_plan, prepare, save_plan
from canwait.providers.fake import FakeProvider
from canwait.providers.openai import OpenAI
from canwait.render import compile_job
from canwait.sources import BATCH_ROWS, RowBatch, RowSource
from canwait.sources.opening import open_source
from canwait.types import BadRow, BudgetSpec, Job, Limits, MarkClass, Price, ShardSpec, Source, Tier, Urgency

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
JOB = Job(
    "tickets", Source("tickets.csv", "id"), "openai", "m-1", (("system", "Sort."), ("user", "Text: {{ text }}")), 16,
    Urgency.BATCH, BudgetSpec(2_000_000, None, None),
)  # fmt: skip


@dataclass(slots=True)
class Tight(FakeProvider):
    """The provider in memory with other limits. Its token counter is UTF-8 bytes, for nobody publishes its tokenizer."""

    tight: dict[str, int] = field(default_factory=dict)

    def limits(self, model: str) -> Limits:
        return replace(FakeProvider.limits(self, model), **self.tight)


def tight(mark: MarkClass = MarkClass.FINDABLE, **limits: int) -> Tight:
    return Tight(SystemClock(), random.Random(0), mark=mark, tight=limits)


@dataclass(frozen=True)
class Rows:
    """A source in memory; line numbers as in a CSV file with a header."""

    rows: Sequence[dict[str, Any]]
    columns: tuple[str, ...] = ("id", "text", "kind")
    name: str = "rows"

    def batches(self) -> Iterator[RowBatch]:
        for start in range(0, len(self.rows), BATCH_ROWS):
            part = self.rows[start : start + BATCH_ROWS]
            lines = range(start + 2, start + 2 + len(part))
            yield RowBatch({name: [row.get(name) for row in part] for name in self.columns}, lines)

    def fingerprint(self) -> str:
        return f"{hash(repr(self.rows)):064x}"


def texts(*values: object) -> Rows:
    return Rows([{"id": str(n), "text": value} for n, value in enumerate(values)])


def price_of(tier: Tier) -> Price:
    if tier is Tier.BATCH:
        return Price("fake", "m-1", tier, Decimal("0.5"), Decimal("2"), None, None, "vendor page", date(2026, 11, 1))
    raise UnknownPrice(provider="fake", model="m-1", tier=tier.value)


def planned(
    blobs: Blobs, source: RowSource, job: Job = JOB, provider: Tight | OpenAI | None = None, *, known: Known | None = None,
    price_of: Callable[[Tier], Price] = price_of, earlier: Earlier | None = None,
) -> Prepared:  # fmt: skip
    return prepare(
        job, source=source, provider=provider or tight(), blobs=blobs, known=known or Known(), price_of=price_of,
        earlier=earlier, now=NOW,
    )  # fmt: skip


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


# ------------------------------------------------------------------------------------------------------ what is planned


def test_a_small_file_by_hand(tmp_path: Path, blobs: Blobs) -> None:
    """Every figure of a plan of five rows, worked out by hand."""
    (tmp_path / "tickets.csv").write_text("id,text\n007,hello\n7,hello\nx,\nabc,h\u00e9\nabc,again\n", encoding="utf-8")
    prepared = planned(blobs, open_source(JOB.source, tmp_path))
    plan, (shard,) = prepared.plan, prepared.plan.shards

    assert (plan.n_rows, plan.n_new, plan.n_duplicates, plan.n_reused, plan.n_bad_rows) == (5, 3, 1, 0, 1)
    assert plan.bad_rows == (BadRow(6, "abc", "the key stands on line 5 already; a key names one row"),)

    bodies = [
        b'{"max_completion_tokens":16,"messages":[{"content":"Sort.","role":"system"},'
        b'{"content":"Text: %b","role":"user"}],"model":"m-1"}' % text
        for text in (b"hello", b"", "hé".encode())
    ]
    assert list(blobs.lines(shard.requests_blob)) == bodies
    # {"custom_id":"c00000000000000000000-999999","body":} and a newline are 52 bytes around each
    assert shard.n_bytes == sum(map(len, bodies)) + 3 * 52

    # 32 a request and 8 a message beside the bytes of "Sort." and "Text: ..."
    bounds = [32 + 8 + 5 + 8 + n for n in (11, 6, 9)]
    assert read_manifest(blobs.path(shard.manifest_blob)).select([0, 2, 3, 4]).to_pydict() == {
        "line": [0, 1, 2], "input_expected": bounds, "input_bound": bounds, "output_bound": [16] * 3,
    }  # fmt: skip
    assert (plan.input_expected, plan.input_bound, plan.output_expected, plan.output_bound) == (185, 185, 48, 48)
    assert (plan.tokens_kind, plan.tokens_by) == ("bounded", "UTF-8 bytes")
    assert plan.expected_micros == plan.worst_micros == shard.worst_micros == 189  # 92.5 + 96, rounded up
    assert (plan.standard_price, plan.standard_micros, plan.tier) == (None, None, Tier.BATCH)

    assert rows_of(blobs, prepared) == [("007", shard.id, 0), ("7", shard.id, 0), ("x", shard.id, 1), ("abc", shard.id, 2)]
    assert prepared.answering == ((shard.id, array("I", [2, 1, 1]).tobytes()),)
    assert (plan.source_as_of, plan.created_at, plan.attempts) == (NOW, NOW, 3)


def test_earlier_rows_make_expectations_smaller_than_bounds(blobs: Blobs) -> None:
    """What earlier rows cost narrows the expected figures; the worst case stays at the bounds."""
    before = planned(blobs, texts("a", "b")).plan
    after = planned(blobs, texts("a", "b"), earlier=Earlier(50, Decimal("1.25"), Decimal("0.3"))).plan
    assert (after.input_expected, after.input_bound) == (2 * 18, 2 * 60)  # .3 x 60
    assert (after.output_expected, after.output_bound, after.tokens_kind) == (3, 32, "estimated")
    assert (after.expected_micros, after.worst_micros) == (24, before.worst_micros)
    assert after.id == before.id


def test_the_standard_price_stands_beside(blobs: Blobs) -> None:
    """Where the standard price is known, the expected tokens are priced at it too, rounded up once a shard."""

    def both(tier: Tier) -> Price:
        return replace(price_of(Tier.BATCH), tier=tier, input=Decimal(1), output=Decimal("4.1")) if tier is not Tier.BATCH else price_of(tier)

    plan = planned(blobs, texts("a", "b"), replace(JOB, shard=ShardSpec(max_rows=1)), price_of=both).plan
    assert plan.expected_micros == 2 * (30 + 32)
    assert plan.standard_micros == 2 * (60 + 66)  # 16 x 4.1 is 65.6


def test_a_file_without_rows_is_a_plan_of_nothing(tmp_path: Path, blobs: Blobs) -> None:
    """A header alone costs nothing, has no shard, and its rows file can still be read."""
    (tmp_path / "tickets.csv").write_text("id,text\n")
    prepared = planned(blobs, open_source(JOB.source, tmp_path))
    assert (prepared.plan.n_rows, prepared.plan.worst_micros, prepared.plan.shards, prepared.answering) == (0, 0, (), ())
    assert rows_of(blobs, prepared) == []


def test_a_template_without_columns_is_one_request(blobs: Blobs) -> None:
    """Rows that all render alike are one request, and each of them waits for it."""
    job = replace(JOB, prompt=(("user", "Say something."),))
    prepared = planned(blobs, texts("a", "b", "c"), job)
    assert (prepared.plan.n_new, prepared.plan.n_duplicates) == (1, 2)
    assert [w for _, w in prepared.answering] == [array("I", [3]).tobytes()]


# ---------------------------------------------------------------------------------------------------------------- laws

some_text = st.text("ab\u00e9\U0001f600 \n\"\\", min_size=0, max_size=6)
some_rows = st.lists(
    st.fixed_dictionaries({"text": some_text, "kind": st.sampled_from("xyz")}), max_size=60
).map(lambda rows: Rows([{"id": f"{n:03}", **row} for n, row in enumerate(rows)]))


@settings(max_examples=60)
@given(
    rows=some_rows,
    mark=st.sampled_from(MarkClass),
    max_rows=st.integers(1, 12),
    max_bytes=st.integers(500, 3_000),
    max_tokens=st.none() | st.integers(60, 400),
    by=st.none() | st.just("kind"),
    dedupe=st.booleans(),
)
def test_every_row_is_answered_once_within_every_limit(
    rows: Rows, mark: MarkClass, max_rows: int, max_bytes: int, max_tokens: int | None, by: str | None, dedupe: bool
) -> None:
    """Each good row points to the one line that holds its own request, and every shard fits all limits at once."""
    job = replace(JOB, shard=ShardSpec(max_rows, by), dedupe=dedupe)
    provider = tight(mark, max_bytes=max_bytes, max_line_bytes=max_bytes, max_enqueued_tokens=max_tokens)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        blobs = Blobs(Path(folder))
        prepared = planned(blobs, rows, job, provider)
        plan = prepared.plan
        lines = {s.id: list(blobs.lines(s.requests_blob)) for s in plan.shards}
        manifests = {s.id: read_manifest(blobs.path(s.manifest_blob)).to_pydict() for s in plan.shards}
        found = rows_of(blobs, prepared)

    render = compile_job(job).render
    assert [key for key, _, _ in found] == [row["id"] for row in rows.rows]
    assert [lines[shard][line] for _, shard, line in found] == [render(row).body for row in rows.rows]
    waiting = Counter((shard, line) for _, shard, line in found)
    weights = {(s, line): n for s, w in prepared.answering for line, n in enumerate(array("I", w))}
    assert weights == dict(waiting)
    assert sum(weights.values()) == len(rows.rows) == plan.n_new + plan.n_duplicates
    assert plan.n_new == len({render(row).body for row in rows.rows} if dedupe else rows.rows)

    for shard in plan.shards:
        manifest = manifests[shard.id]
        assert shard.n_lines == len(lines[shard.id]) == len(manifest["line"]) <= max_rows
        assert manifest["line"] == list(range(shard.n_lines))
        assert shard.n_bytes == sum(len(provider.encode("c" + "0" * 20 + "-999999", b, plan.endpoint)) + 1 for b in lines[shard.id])
        assert shard.n_bytes <= max_bytes
        assert max_tokens is None or shard.input_bound <= max_tokens or shard.n_lines == 1
        assert shard.input_bound == sum(manifest["input_bound"]) >= shard.input_expected == sum(manifest["input_expected"])
        assert shard.worst_micros >= shard.expected_micros > 0
        assert by is None or {shard.by} == {r["kind"] for r, (_, s, _) in zip(rows.rows, found, strict=True) if s == shard.id and not dedupe} or dedupe
    sizes = [s.n_lines for s in plan.shards]
    if mark is MarkClass.UNMARKED:
        for n in {n for n in sizes if sizes.count(n) > 1}:  # equal only where it could not be divided
            assert not [m for m in range(1, n) if m != n - m and m not in sizes and n - m not in sizes]
    assert len({s.id for s in plan.shards}) == len(plan.shards)
