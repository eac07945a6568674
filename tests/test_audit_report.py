"""What an audit looks like: on a terminal, as JSON, as a page that loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from canwait.audit.calls import BadLine
from canwait.audit.facts import Arrivals, ModelUse, Sample, SiteFacts
from canwait.audit.findings import Audit, CodeSite, Lever, LogFile, Needs, Proof, Range, Reason, Site, Spend, Verdict
from canwait.audit.page import as_html
from canwait.audit.report import as_text, dollars, next_step, site_text, to_json
from canwait.types import Tier, Usage

DAY_US = 86_400_000_000
USD = 1_000_000
HOSTILE = "<script>alert(1)</script>\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}&amp;"


def usd(low: int, likely: int | None = None, high: int | None = None) -> Range:
    return Range(low * USD, (low if likely is None else likely) * USD, (low if high is None else high) * USD)


def facts(name: str, n_calls: int = 7_000) -> SiteFacts:
    use = ModelUse("openai", "gpt-6-luna", None, n_calls, 0, Usage(10, 5), 0, Decimal(0), Usage(0, 0))
    arrivals = Arrivals(300, 2016, 100, (*range(167), 0), 0.5, 86_400.0, 0.9, 7, 80_000.0, 0.8, 0.1)
    return SiteFacts(
        name, n_calls, 0, 7 * DAY_US, (use,), 3, 0, n_calls, 0, 0, 0, first_use_s=Sample(40, (30_000.0, 33_000.0)),
        arrivals=arrivals,
    )  # fmt: skip


def site(
    name: str,
    needs: Needs,
    proof: Proof,
    month: int | None,
    saves: int | None = None,
    text: str = "read 9 h later (p5)",
) -> Site:
    reason = Reason("first use", needs, proof, text, 40)
    tier = Tier.BATCH if needs is Needs.BATCH else None
    verdict = Verdict(
        needs, proof, (reason,), tier, 1.0 if tier else 0.0, asks="Who reads it?" if needs is Needs.ASK else None
    )
    lever = Lever(
        "batch",
        "Batch tier",
        usd(saves or 0) if saves is not None else None,
        proof,
        "half the price",
        basis="prices of today",
    )
    spend = Spend(
        usd(month) if month is not None else None,
        "priced",
        7_000,
        0,
        None if month is not None else "no price is known",
    )
    together = usd(saves) if saves is not None else None
    return Site(
        name, facts(name), spend, verdict, (lever,), together, proved=together if proof is Proof.PROVED else None
    )


def audit(*sites: Site) -> Audit:
    return Audit(
        datetime(2026, 11, 22, 12, tzinfo=UTC),
        (LogFile("traces.jsonl", "OpenTelemetry GenAI spans", 7_000, 0, 2, 1, (BadLine("traces.jsonl", 3, HOSTILE),)),),
        0, 7 * DAY_US, 7_000, sites, usd(4310), usd(810), usd(532), usd(2968), 12, {"openai/gpt-6-luna": usd(5, 6, 7)},
        notes=(f"less than a week: {HOSTILE}",),
    )  # fmt: skip


EXAMPLE = audit(
    site("etl/label.py:88", Needs.BATCH, Proof.PROVED, 1210, 605),
    site("chat/reply.py:52", Needs.SYNC, Proof.PROVED, 1720, None, "a person waits (p50 2 s)"),
    site("crm/summary.py:17", Needs.ASK, Proof.UNCLEAR, 330, None, "12 % opened within 4 min"),
    site("search/embed.py:31", Needs.BATCH, Proof.LIKELY, 640, 320, "deadline 7 d"),
    site(HOSTILE, Needs.HYBRID, Proof.LIKELY, None, None, HOSTILE),
)


def test_the_terminal_shows_cost_need_tier_and_proof_of_each_site() -> None:
    """One line a site: what it costs, whether its reader waits, its tier, what it would cost, and the proof."""
    lines = as_text(EXAMPLE).splitlines()
    assert lines[0] == "5 call sites, 7,000 calls in 7 days, $4,310 a month"
    cells = [re.split(r"\s{2,}", line) for line in lines[2:8]]
    assert cells[0] == ["CALL SITE", "CALLS/DAY", "$/MONTH", "READER WAITS?", "TIER", "WOULD COST", "PROOF"]
    assert cells[1] == ["etl/label.py:88", "1,000", "1,210", "no", "batch", "605", "proved: read 9 h later (p5)"]
    assert cells[2] == [
        "chat/reply.py:52",
        "1,000",
        "1,720",
        "YES",
        "as it is",
        "1,720",
        "proved: a person waits (p50 2 s)",
    ]
    assert cells[3] == ["crm/summary.py:17", "1,000", "330", "unclear", "ask owner", "?", "12 % opened within 4 min"]
    assert "a month: proved $810 · likely $532 · not movable $2,968 · 12 calls have no price" in lines


def test_cheap_sites_are_hidden_from_the_table_alone() -> None:
    """Sites below a threshold are counted and left out of the table, unless all are; the JSON has every one."""
    shown = as_text(EXAMPLE, hide_below=700 * USD)
    assert shown.splitlines()[0].endswith("$4,310 a month; 2 cheaper ones not shown")
    assert "etl/label.py:88" in shown
    assert "search/embed.py:31" not in shown
    assert "search/embed.py:31" in as_text(audit(*EXAMPLE.sites[:4]), hide_below=10**12)
    assert len(to_json(EXAMPLE)["sites"]) == 5


def test_what_is_unclear_has_no_saving_anywhere() -> None:
    """A site whose owner must be asked shows no cost after moving, in no report."""
    shown = to_json(EXAMPLE)["sites"][2]
    assert (shown["needs"], shown["would_cost_usd"]) == ("ask the owner", None)
    assert "cannot be said" in site_text(EXAMPLE.sites[2])


def test_hostile_text_reaches_no_terminal_and_no_page_as_it_is() -> None:
    """Names and messages from logs are printed without control characters, and escaped in HTML."""
    assert all(c.isprintable() or c == "\n" for c in as_text(EXAMPLE) + site_text(EXAMPLE.sites[4]))
    html = as_html(EXAMPLE)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not {c for c in html if not c.isprintable()} - {"\n"}


class Page(HTMLParser):
    """What a page loads, and whether its parts are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unclosed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)


def test_the_page_stands_alone() -> None:
    """The page loads nothing and runs nothing: no script, no link, no image, no address but its own anchors."""
    page = Page(as_html(EXAMPLE))
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    } == set()
    assert (page.open, page.unclosed) == ([], [])
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert all((attrs[name] or "").startswith("#") for name in ("href", "src", "xlink:href") if name in attrs)
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_can_be_read_without_seeing_it() -> None:
    """Language, title, captions and header cells are there; every drawing has a name and its figures in a table."""
    text = as_html(EXAMPLE)
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert dict(page.tags)["html"] == {"lang": "en"}
    assert (tags.count("title") >= 1, tags.count("h1"), tags.count("main")) == (True, 1, 1)
    assert tags.count("table") == tags.count("caption")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    for tag, attrs in page.tags:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs.get("aria-label") or attrs.get("aria-labelledby")
        if "tabindex" in attrs:
            assert attrs["role"] == "region"
            assert attrs["aria-label"]
    for figure in ("$1,210", "$605", ">166<"):  # a bar and an hour of the week, as text
        assert figure in text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_every_figure_of_the_json_is_text_or_a_count() -> None:
    """Money is decimal text in US dollars; the JSON holds no NaN and can be read back."""
    value = json.loads(json.dumps(to_json(EXAMPLE), allow_nan=False))
    assert value["total"] == {"low_usd": "4310.000000", "likely_usd": "4310.000000", "high_usd": "4310.000000"}
    assert value["sites"][0]["facts"]["first_use_s"] == {
        "n": 40,
        "p5": 30000.0,
        "p50": 30000.0,
        "p95": 33000.0,
        "p99": 33000.0,
    }
    assert value["sites"][4]["month"] is None


def test_an_audit_of_code_alone_shows_no_money() -> None:
    """Without a log nothing has a price and nothing is proved, and the headline says so."""
    code = CodeSite(
        "etl/label.py", 88, 4, "openai", "client.chat.completions.create", "label", "DAG task", "@task", False, None
    )
    verdict = Verdict(Needs.BATCH, Proof.LIKELY, (), Tier.BATCH, 1.0)
    alone = Site("etl/label.py:88", None, Spend(None, "", 0, 0, "no log was read"), verdict, (), None, (code,))
    empty = replace(audit(alone), first_us=None, last_us=None, n_calls=0)
    assert as_text(empty).startswith("1 call site found in code; no log, so no money and no proof")
    assert "Spent a month" not in as_html(empty)


def test_a_cost_nobody_knows_is_not_nothing() -> None:
    """Where no call has a price, neither terminal nor page shows $0 for what is unknown."""
    unknown = replace(EXAMPLE, unpriced_calls=EXAMPLE.n_calls, total=Range(0, 0, 0))
    text = as_text(unknown)
    assert text.startswith("5 call sites, 7,000 calls in 7 days, cost not known")
    assert "a month: not known · 7,000 calls have no price" in text
    assert "Spent a month" not in as_html(unknown)


def test_reports_without_calls_show_what_they_size() -> None:
    """Usage and cost reports alone: their spend by model, no sums of savings, and no word of code."""
    sized = {"openai/a": Range(5, 10**6, 2 * 10**6), "openai/b": Range(0, 3 * 10**6, 3 * 10**6)}
    alone = replace(EXAMPLE, sites=(), first_us=None, last_us=None, n_calls=0, unpriced_calls=0, aggregates=sized)
    lines = as_text(alone).splitlines()
    assert lines[0] == "no calls, but reports that size $4.00 (<$0.01 to $5.00) a month"
    assert lines[2:4] == [
        "reports size openai/b: $3.00 ($0.00 to $3.00) a month",
        "reports size openai/a: $1.00 (<$0.01 to $2.00) a month",
    ]
    assert not [line for line in lines if "proved" in line or "CALL SITE" in line]


def test_a_file_that_was_not_read_is_no_line() -> None:
    """One bad line, several, and a file as a whole are told apart."""
    bad = BadLine("calls.jsonl", 4, "why")
    file = LogFile("calls.jsonl", "plain", 5, 0, 1, 0, (bad,))
    whole = replace(file, bad=(replace(bad, line=0),))
    text = as_text(replace(EXAMPLE, files=(file, replace(file, n_bad=2), whole)))
    assert "note: calls.jsonl: line 4 is no call: why" in text
    assert "note: calls.jsonl: 2 lines are no calls; the first is 4: why" in text
    assert "note: calls.jsonl: not read: why" in text


def test_the_next_step_is_the_dearest_proved_saving() -> None:
    """What is suggested first is the largest proved saving, else the largest likely one, else nothing."""
    assert next_step(EXAMPLE.sites) == "etl/label.py:88"
    assert next_step(EXAMPLE.sites[3:]) == "search/embed.py:31"
    assert next_step(EXAMPLE.sites[1:3]) is None


@pytest.mark.parametrize(
    ("micros", "shown"),
    [(0, "$0.00"), (9_999, "<$0.01"), (10_000, "$0.01"), (12_345_678, "$12.35"), (99_994_999, "$99.99"),
     (99_995_000, "$100"), (1_210_000_000, "$1,210"), (-5_000_000, "-$5.00"), (-4_000, "$0.00")],
)  # fmt: skip
def test_amounts_read_as_people_write_them(micros: int, shown: str) -> None:
    """Cents below a hundred dollars, whole dollars above, and less than a cent is never shown as nothing."""
    assert dollars(micros) == shown
