"""Rows to shards: every good row is answered exactly once, every bad one is named, nothing is sent or half-written."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
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

from canwait import prepare as module
from canwait.blobs import Blobs
from canwait.clock import SystemClock
from canwait.errors import BlobError, NotFound, SourceError, UnknownPrice
from canwait.landing import read_manifest
from canwait.lines import read_lines
from canwait.plan import Earlier
from canwait.planned import Prepared, keep_plan, planned_file
from canwait.prepare import Known, prepare
from canwait.providers.fake import FakeProvider
from canwait.providers.openai import OpenAI
from canwait.render import compile_job
from canwait.sources import BATCH_ROWS, RowBatch, RowSource
from canwait.sources.opening import open_source
from canwait.types import BadRow, BudgetSpec, Job, Limits, MarkClass, Price, ShardSpec, Source, Tier, Urgency

LONGEST_ID = "c" + "0" * 20 + "-999999"
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

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        for start in range(0, len(self.rows), BATCH_ROWS):
            part = self.rows[start : start + BATCH_ROWS]
            lines = range(start + 2, start + 2 + len(part))
            yield RowBatch({name: [row.get(name) for row in part] for name in columns or self.columns}, lines)

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
    assert list(read_lines(blobs.path(shard.requests_blob))) == bodies
    # {"custom_id":"c00000000000000000000-999999","body":} and a newline are 53 bytes around each
    assert shard.n_bytes == sum(map(len, bodies)) + 3 * 53

    # 32 a request and 8 a message beside the bytes of "Sort." and "Text: ..."
    bounds = [32 + 8 + 5 + 8 + n for n in (11, 6, 9)]
    assert read_manifest(blobs.path(shard.manifest_blob)).select([0, 2, 3, 4]).to_pydict() == {
        "line": [0, 1, 2], "input_expected": bounds, "input_bound": bounds, "output_bound": [16] * 3,
    }  # fmt: skip
    assert (plan.input_expected, plan.input_bound, plan.output_expected, plan.output_bound) == (185, 185, 48, 48)
    assert (plan.tokens_kind, plan.tokens_by) == ("bounded", "UTF-8 bytes")
    assert plan.expected_micros == plan.worst_micros == shard.worst_micros == 189  # 92.5 + 96, rounded up
    assert (plan.standard_price, plan.standard_micros, plan.tier) == (None, None, Tier.BATCH)

    assert rows_of(blobs, prepared) == [
        ("007", shard.id, 0),
        ("7", shard.id, 0),
        ("x", shard.id, 1),
        ("abc", shard.id, 2),
    ]
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
        if tier is Tier.STANDARD:
            return replace(price_of(Tier.BATCH), tier=tier, input=Decimal(1), output=Decimal("4.1"))
        return price_of(tier)

    plan = planned(blobs, texts("a", "b"), replace(JOB, shard=ShardSpec(max_rows=1)), price_of=both).plan
    assert plan.expected_micros == 2 * (30 + 32)
    assert plan.standard_micros == 2 * (60 + 66)  # 16 x 4.1 is 65.6


def test_a_file_without_rows_is_a_plan_of_nothing(tmp_path: Path, blobs: Blobs) -> None:
    """A header alone costs nothing, has no shard, and its rows file can still be read."""
    (tmp_path / "tickets.csv").write_text("id,text\n")
    prepared = planned(blobs, open_source(JOB.source, tmp_path))
    assert (prepared.plan.n_rows, prepared.plan.worst_micros, prepared.plan.shards, prepared.answering) == (
        0,
        0,
        (),
        (),
    )
    assert rows_of(blobs, prepared) == []


def test_a_template_without_columns_is_one_request(blobs: Blobs) -> None:
    """Rows that all render alike are one request, and each of them waits for it."""
    job = replace(JOB, prompt=(("user", "Say something."),))
    prepared = planned(blobs, texts("a", "b", "c"), job)
    assert (prepared.plan.n_new, prepared.plan.n_duplicates) == (1, 2)
    assert [w for _, w in prepared.answering] == [array("I", [3]).tobytes()]


# ---------------------------------------------------------------------------------------------------------------- laws

some_text = st.text('ab\u00e9\U0001f600 \n"\\', min_size=0, max_size=6)
some_rows = st.lists(st.fixed_dictionaries({"text": some_text, "kind": st.sampled_from("xyz")}), max_size=60).map(
    lambda rows: Rows([{"id": f"{n:03}", **row} for n, row in enumerate(rows)])
)


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
        lines = {s.id: list(read_lines(blobs.path(s.requests_blob))) for s in plan.shards}
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

    kinds = {(shard, line): row["kind"] for row, (_, shard, line) in reversed([*zip(rows.rows, found, strict=True)])}
    for shard in plan.shards:
        manifest, sent = manifests[shard.id], [provider.encode(LONGEST_ID, b, plan.endpoint) for b in lines[shard.id]]
        assert manifest["line"] == list(range(shard.n_lines)) == list(range(len(sent)))
        assert shard.n_lines <= max_rows
        assert shard.n_bytes == sum(map(len, sent)) + len(sent) <= max_bytes
        assert shard.input_bound == sum(manifest["input_bound"])
        assert max_tokens is None or shard.input_bound <= max_tokens or shard.n_lines == 1
        assert 0 < shard.expected_micros <= shard.worst_micros
        assert by is None or {shard.by} == {kinds[shard.id, line] for line in range(shard.n_lines)}
    sizes = [s.n_lines for s in plan.shards]
    if mark is MarkClass.UNMARKED:
        for n in {n for n in sizes if sizes.count(n) > 1}:  # equal only where it could not be divided
            assert not [m for m in range(1, n) if m != n - m and m not in sizes and n - m not in sizes]
    assert len({s.id for s in plan.shards}) == len(plan.shards)


def test_shards_without_a_mark_are_told_by_their_size(blobs: Blobs) -> None:
    """For class C full shards shrink by one each, and a last one of a size already there is divided."""
    job = replace(JOB, shard=ShardSpec(max_rows=4))
    plan = planned(blobs, texts(*range(9)), job, tight(MarkClass.UNMARKED)).plan
    assert [shard.n_lines for shard in plan.shards] == [4, 3, 2]
    by_kind = Rows([{"id": f"{kind}{n}", "text": f"{kind}{n}", "kind": kind} for kind in "abc" for n in range(3)])
    plan = planned(blobs, by_kind, replace(JOB, shard=ShardSpec(4, "kind")), tight(MarkClass.UNMARKED)).plan
    assert sorted((shard.n_lines, shard.by) for shard in plan.shards) == [(1, "b"), (2, "b"), (3, "a"), (3, "c")]


def test_rows_follow_lines_that_moved_to_another_shard(blobs: Blobs) -> None:
    """Lines that went on into the next shard take their rows along, also those that came later."""
    narrow = tight(MarkClass.UNMARKED, max_bytes=2 * 180 + 64 + 1)  # two requests, but never three
    job = replace(JOB, shard=ShardSpec(max_rows=5))
    prepared = planned(blobs, texts("a", "b", "c", "d", "e", "d", "b"), job, narrow)
    first, second, third = prepared.plan.shard_ids
    assert [(shard.n_lines, shard.n_bytes) for shard in prepared.plan.shards] == [(2, 360), (1, 180), (2, 360)]
    assert rows_of(blobs, prepared) == [
        ("0", first, 0), ("1", first, 1), ("2", second, 0), ("3", third, 0), ("4", third, 1), ("5", third, 0), ("6", first, 1),
    ]  # fmt: skip
    assert [list(array("I", weights)) for _, weights in prepared.answering] == [[1, 2], [1], [2, 1]]


def test_rows_kept_together_are_shards_of_one_kind(blobs: Blobs) -> None:
    """With `shard.by` no shard mixes values, and rows without one are kept together too."""
    rows = [{"id": str(n), "text": f"t{n}", "kind": kind} for n, kind in enumerate(["x", "y", "x", None, "y", "x"])]
    plan = planned(blobs, Rows(rows), replace(JOB, shard=ShardSpec(2, "kind"))).plan
    assert sorted((shard.by, shard.n_lines) for shard in plan.shards) == [("", 1), ("x", 1), ("x", 2), ("y", 2)]


@settings(max_examples=60)
@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=60), st.integers(1, 9))
def test_kinds_share_their_sizes_where_a_batch_is_told_by_its_size(kinds: list[str], most: int) -> None:
    """However shards of several values are closed around each other, every row stands in one of its own value."""
    rows = [{"id": str(n), "text": f"t{n}", "kind": kind} for n, kind in enumerate(kinds)]
    with TemporaryDirectory() as folder:
        job = replace(JOB, shard=ShardSpec(most, "kind"))
        plan = planned(Blobs(Path(folder)), Rows(rows), job, tight(MarkClass.UNMARKED)).plan
    assert Counter({k: kinds.count(k) for k in set(kinds)}) == sum(
        (Counter({shard.by: shard.n_lines}) for shard in plan.shards), Counter()
    )


KINDS = [{"id": str(n), "text": f"t{n}", "kind": str(n)} for n in range(501)]


@pytest.mark.slow
def test_many_kinds_are_planned(blobs: Blobs) -> None:
    """500 values of `shard.by` are open at once, in one shard each."""
    plan = planned(blobs, Rows(KINDS[:500]), replace(JOB, shard=ShardSpec(by="kind"))).plan
    assert [shard.by for shard in plan.shards] == [str(n) for n in range(500)]


def test_too_many_kinds_are_refused(blobs: Blobs) -> None:
    """The 501st value of `shard.by` is an error that names the column."""
    with pytest.raises(SourceError, match="more than 500 different values of 'kind'"):
        planned(blobs, Rows(KINDS), replace(JOB, shard=ShardSpec(by="kind")))


def test_no_shard_has_more_lines_than_a_place_can_tell(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of our own may take any number of rows; a shard stays within what its lines' places have bits for."""
    monkeypatch.setattr(module, "MAX_LINES", 3)
    host = tight(max_rows=10**9)
    host.name = "own"
    job = replace(JOB, provider="own", shard=ShardSpec(max_rows=10**9))
    prepared = planned(
        blobs, texts(*range(7)), job, host, price_of=lambda tier: replace(price_of(Tier.BATCH), tier=tier)
    )
    assert [shard.n_lines for shard in prepared.plan.shards] == [3, 3, 1]
    assert [line for _, _, line in rows_of(blobs, prepared)] == [0, 1, 2, 0, 1, 2, 0]


def test_one_request_larger_than_the_queue_goes_alone(blobs: Blobs) -> None:
    """A bound above what a provider queues is no proof of the tokens: the row is a shard of its own."""
    plan = planned(blobs, texts("a", "b" * 300, "c"), provider=tight(max_enqueued_tokens=200)).plan
    assert [(shard.n_lines, shard.input_bound) for shard in plan.shards] == [(1, 60), (1, 359), (1, 60)]


def test_what_is_measured_is_what_a_provider_sends(blobs: Blobs) -> None:
    """The bytes planned for a shard are at least those of its lines under a real token, and no more than ids can differ."""
    provider = OpenAI("none")
    (shard,) = (plan := planned(blobs, texts("a", "b\u00e9"), provider=provider).plan).shards
    sent = [
        provider.encode(f"c{'f' * 20}-{n}", b, plan.endpoint)
        for n, b in enumerate(read_lines(blobs.path(shard.requests_blob)))
    ]
    assert 0 <= shard.n_bytes - sum(len(line) + 1 for line in sent) <= 5 * len(sent)


# --------------------------------------------------------------------------------------------------------- the same plan


def test_the_same_input_is_the_same_plan(tmp_path: Path) -> None:
    """Planned twice in two places, a plan has the same id, shards and blobs."""
    first = planned(Blobs(tmp_path / "a"), texts("a", "b", "a"))
    again = planned(Blobs(tmp_path / "b"), texts("a", "b", "a"))
    assert first == again


def test_another_input_is_another_plan(blobs: Blobs) -> None:
    """A row, a key, the order, the prompt, params, the price: any of them changed gives another id and fingerprint or price."""
    here = planned(blobs, texts("a", "b")).plan

    def dearer(tier: Tier) -> Price:
        return replace(price_of(tier), output=Decimal("2.1"))

    others = [
        planned(blobs, texts("a", "c")),
        planned(blobs, texts("b", "a")),
        planned(blobs, texts("a", "b", "b")),
        planned(blobs, Rows([{"id": "0", "text": "a"}, {"id": "2", "text": "b"}])),
        planned(blobs, texts("a", "b"), replace(JOB, prompt=(("user", "Text: {{ text }}"),))),
        planned(blobs, texts("a", "b"), replace(JOB, params={"temperature": 0})),
        planned(blobs, texts("a", "b"), replace(JOB, model="m-2")),
        planned(blobs, texts("a", "b"), price_of=dearer),
    ]
    assert len({here.id, *(other.plan.id for other in others)}) == 9
    assert len({here.source_fingerprint, *(other.plan.source_fingerprint for other in others)}) == 8  # not the price


# ---------------------------------------------------------------------------------------------------------------- reuse


def known_of(blobs: Blobs, prepared: Prepared, may_reuse: Callable[[int], bool] = lambda line: True) -> Known:
    return Known((s.id, blobs.path(s.manifest_blob), may_reuse) for s in prepared.plan.shards)


def test_what_is_paid_is_not_planned_again(blobs: Blobs) -> None:
    """A request that is known is answered where it was paid, and only new ones are new."""
    first = planned(blobs, texts("a", "b", "c"))
    again = planned(blobs, texts("c", "new", "a", "c"), known=known_of(blobs, first))
    (old,), (new,) = first.plan.shards, again.plan.shards
    assert (again.plan.n_reused, again.plan.n_duplicates, again.plan.n_new) == (2, 1, 1)
    assert again.plan.shard_ids == (old.id, new.id)
    assert rows_of(blobs, again) == [("0", old.id, 2), ("1", new.id, 0), ("2", old.id, 0), ("3", old.id, 2)]
    assert again.answering == ((old.id, array("I", [1, 0, 2]).tobytes()), (new.id, array("I", [1]).tobytes()))


def test_planning_again_after_all_is_paid_plans_nothing(blobs: Blobs) -> None:
    """The same rows once more are the same plan, and cost nothing."""
    first = planned(blobs, texts("a", "b"))
    again = planned(blobs, texts("a", "b"), known=known_of(blobs, first))
    assert (again.plan.id, again.plan.n_new, again.plan.worst_micros, again.plan.shards) == (first.plan.id, 0, 0, ())


def test_a_line_that_may_not_be_reused_is_asked_again(blobs: Blobs) -> None:
    """Only allowed lines answer, and the new shard's id is not that of the old one, though it asks the same."""
    first = planned(blobs, texts("a"))
    again = planned(blobs, texts("a"), known=known_of(blobs, first, lambda line: False))
    assert (again.plan.n_reused, again.plan.n_new) == (0, 1)
    assert again.plan.shards[0].requests_blob == first.plan.shards[0].requests_blob
    assert again.plan.shards[0].id != first.plan.shards[0].id


def test_sampling_jobs_share_no_answers(blobs: Blobs) -> None:
    """Without dedupe equal rows are different requests, and only the very same row of the same job is reused."""
    job = replace(JOB, dedupe=False)
    first = planned(blobs, texts("a", "a"), job)
    assert (first.plan.n_new, first.plan.n_duplicates) == (2, 0)
    again = planned(blobs, texts("a", "a", "a"), job, known=known_of(blobs, first))
    assert (again.plan.n_new, again.plan.n_reused) == (1, 2)
    other = planned(blobs, texts("a", "a"), replace(job, name="other"), known=known_of(blobs, first))
    assert (other.plan.n_new, other.plan.n_reused) == (2, 0)


# ------------------------------------------------------------------------------------------------------------- bad rows


def test_every_bad_row_is_named(blobs: Blobs) -> None:
    """Keys that are empty, missing, repeated or no key at all, unusable texts and requests too large: each by its line."""
    rows = [
        {"id": "ok", "text": "fine"}, {"id": "", "text": "x"}, {"id": None, "text": "x"}, {"id": 1.5, "text": "x"},
        {"id": "nul", "text": "a\0b"}, {"id": "ok", "text": "other"}, {"id": "long", "text": "x" * 1_000},
        {"id": 7, "text": "fine"}, {"id": "7", "text": "x"},
    ]  # fmt: skip
    plan = planned(blobs, Rows(rows), provider=tight(max_line_bytes=1_000)).plan
    assert (plan.n_rows, plan.n_new, plan.n_duplicates, plan.n_bad_rows) == (9, 1, 1, 7)
    assert [(bad.line, bad.key, bad.problem) for bad in plan.bad_rows] == [
        (3, None, "the key is empty"),
        (4, None, "the key is NoneType None; expected text or a whole number"),
        (5, None, "the key is float 1.5; expected text or a whole number"),
        (6, "nul", "column 'text' holds a NUL character"),
        (7, "ok", "the key stands on line 2 already; a key names one row"),
        (8, "long", "the request is 1,179 bytes long; fake takes at most 1,000"),
        (10, "7", "the key stands on line 9 already; a key names one row"),
    ]


def test_all_bad_rows_are_counted_and_the_first_thousand_kept(blobs: Blobs) -> None:
    """A file of bad rows only is told in full by number, and in part by name."""
    plan = planned(blobs, Rows([{"id": "", "text": "x"}] * 1_500)).plan
    assert (plan.n_bad_rows, len(plan.bad_rows), plan.bad_rows[-1].line, plan.n_new) == (1_500, 1_000, 1_001, 0)


def test_every_missing_column_is_named_at_once(tmp_path: Path, blobs: Blobs) -> None:
    """Key, template and shard columns that are not there are one error, each with the name that was probably meant."""
    (tmp_path / "tickets.csv").write_text("Id,texts,kind\n1,x,y\n")
    job = replace(JOB, shard=ShardSpec(by="colour"))
    with pytest.raises(SourceError) as raised:
        planned(blobs, open_source(JOB.source, tmp_path), job)
    assert [str(problem) for problem in raised.value.problems] == [
        "tickets.csv: source.key: there is no column 'id'; did you mean 'Id'?",
        "tickets.csv: shard.by: there is no column 'colour'",
        "tickets.csv: prompt: there is no column 'text'; did you mean 'texts'?",
    ]


def test_a_damaged_file_leaves_no_plan(tmp_path: Path, blobs: Blobs) -> None:
    """Rows that cannot be read end the planning, and no scratch file stays behind."""
    (tmp_path / "tickets.csv").write_text("id,text\n1,x\n2,y,z\n")
    with pytest.raises(SourceError, match=r"tickets\.csv:3: expected 2 fields"):
        planned(blobs, open_source(JOB.source, tmp_path))
    assert list((blobs.folder / "tmp").iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- keeping


def test_a_kept_plan_is_found_by_its_id(blobs: Blobs) -> None:
    """It is told which file it was made from; keeping it again replaces that."""
    plan = planned(blobs, texts("a", "b", "a")).plan
    for file in (Path("/jobs/a.yaml"), None):
        keep_plan(blobs, plan.id, file)
        assert planned_file(blobs, plan.id) == file


@pytest.mark.parametrize("name", ["p_000000000000", "../../secret", "p_0123", "P_000000000000", ""])
def test_an_id_that_names_no_plan_is_not_found(blobs: Blobs, name: str) -> None:
    """An unknown or malformed id is told so, and is never used as a path."""
    with pytest.raises(NotFound):
        planned_file(blobs, name)


@pytest.mark.parametrize("damage", ['{"job_f', "[]", "{}", '{"job_file": 7}'])
def test_a_damaged_plan_is_not_run(blobs: Blobs, damage: str) -> None:
    """What is kept of a plan and is no longer what was written is refused."""
    plan = planned(blobs, texts("a")).plan
    keep_plan(blobs, plan.id, Path("job.yaml"))
    (blobs.folder / "plans" / f"{plan.id}.json").write_text(damage)
    with pytest.raises(BlobError, match="damaged"):
        planned_file(blobs, plan.id)


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond this: what a full disk does, at a place the test chooses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [0, 100, 300, 1_000, 1_500, 2_000, 2_500, 8_000])
def test_a_full_disk_leaves_no_plan(blobs: Blobs, n_bytes: int) -> None:
    """Wherever the disk fills up, the error says so, no plan of that id exists, and no scratch file stays."""
    rows, job = texts(*[n % 40 for n in range(1_000)]), replace(JOB, shard=ShardSpec(max_rows=2))
    whole = planned(blobs, rows, job).plan
    with no_file_above(n_bytes), pytest.raises(BlobError, match="could not be written"):
        keep_plan(blobs, planned(blobs, rows, job).plan.id, Path("job.yaml"))
    with pytest.raises(NotFound):
        planned_file(blobs, whole.id)
    assert list((blobs.folder / "tmp").iterdir()) == []
    assert planned(blobs, rows, job).plan == whole
    keep_plan(blobs, whole.id, Path("job.yaml"))
    assert planned_file(blobs, whole.id) == Path("job.yaml")


def test_memory_is_bounded_by_slots_not_by_rows(blobs: Blobs) -> None:
    """Each further row of 10 kB takes less than 100 bytes more of what Python allocates."""

    def peak(n_rows: int) -> int:
        rows = _Wide(n_rows)
        tracemalloc.start()
        try:
            plan = planned(blobs, rows).plan
            assert (plan.n_new, plan.n_rows, plan.n_duplicates) == (n_rows, n_rows, 0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is loaded once is not counted
    assert peak(6 * BATCH_ROWS) - peak(3 * BATCH_ROWS) < 3 * BATCH_ROWS * 100


PLAN = """
import re, sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

from canwait.blobs import Blobs
from canwait.known import Known
from canwait.planned import keep_plan
from canwait.prepare import prepare
from canwait.providers.openai import OpenAI
from canwait.sources.opening import open_source
from canwait.types import BudgetSpec, Job, Price, Source, Urgency

folder, n_rows = Path(sys.argv[1]), int(sys.argv[2])
with (folder / f"{n_rows}.csv").open("w") as file:
    file.write("id,text\\n")
    for n in range(n_rows):
        file.write(f'{n},"a message of some length, as they are: {n * 7919 % n_rows} and {n % 1000}"\\n')
job = Job(
    "j", Source(f"{n_rows}.csv", "id"), "openai", "m", (("system", "Sort it."), ("user", "Text: {{ text }}")), 16,
    Urgency.BATCH, BudgetSpec(10**9, None, None), base_dir=folder,
)
prepared = prepare(
    job, source=open_source(job.source, folder), provider=OpenAI("none"), blobs=Blobs(folder / "blobs"), known=Known(),
    price_of=lambda tier: Price("openai", "m", tier, Decimal(1), Decimal(1), None, None, "test", date(2026, 11, 1)),
    earlier=None, now=datetime(2026, 11, 21, tzinfo=UTC),
)
keep_plan(Blobs(folder / "blobs"), prepared.plan.id, folder / "job.yaml")
assert (prepared.plan.n_new, prepared.plan.n_bad_rows) == (n_rows, 0)
# Not ru_maxrss: that starts with what the parent process had.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc")
def test_a_plan_of_ten_times_the_rows_takes_no_more_memory(tmp_path: Path) -> None:
    """The process that plans 200,000 rows takes what a full shard takes and some bytes a row more than one of 20,000."""

    def peak_kb(n_rows: int) -> int:
        command = [sys.executable, "-c", PLAN, str(tmp_path), str(n_rows)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak_kb(200_000) - peak_kb(20_000) < 24_000


def test_keys_that_stand_twice_are_named_wherever_they_stand(blobs: Blobs) -> None:
    """Of a key that stands on many rows, far apart, the first row is good; every other one names the first's line."""
    rows = [{"id": f"k{n % 1_500}", "text": f"t{n % 7}"} for n in range(3_100)]
    plan = planned(blobs, Rows(rows)).plan
    assert (plan.n_rows, plan.n_bad_rows, plan.n_new) == (3_100, 1_600, 7)
    assert plan.bad_rows[0] == BadRow(1_502, "k0", "the key stands on line 2 already; a key names one row")
    assert plan.bad_rows[999].line == 2_501


@dataclass(frozen=True)
class _Wide(Rows):
    """Many rows of 10 kB, made as they are asked for."""

    rows: int = 0  # type: ignore[assignment]
    columns: tuple[str, ...] = ("id", "text")

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        for start in range(0, self.rows, BATCH_ROWS):
            numbers = range(start, min(start + BATCH_ROWS, self.rows))
            yield RowBatch({"id": [str(n) for n in numbers], "text": [f"{n:010000}" for n in numbers]}, numbers)


def rows_of(blobs: Blobs, prepared: Prepared) -> list[tuple[str, str, int]]:
    """The rows file: key, shard id, line."""
    table = pq.read_table(blobs.path(prepared.plan.rows_blob)).to_pydict()
    return [
        (key, prepared.plan.shard_ids[shard], line)
        for key, shard, line in zip(table["key"], table["shard"], table["line"], strict=True)
    ]
