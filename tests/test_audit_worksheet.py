"""The worksheet: what is stated with its source, what is missing, and that a file holds exactly that."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.audit.facts import EMPTY, Prefix, Sample, SiteFacts
from canwait.audit.findings import Range
from canwait.audit.worksheet import (
    INPUTS,
    Case,
    Entry,
    Missing,
    Stated,
    Told,
    Unit,
    Worksheet,
    answered,
    applicable,
    from_facts,
    questions,
    read_figure,
    read_worksheet,
    say,
    usd,
    write_figure,
    write_markdown,
    write_yaml,
)
from canwait.errors import SpecError

TODAY = date(2026, 11, 22)
FILE = Path("worksheet.yaml")

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
said = texts.filter(str.strip)
dates = st.dates(date(1900, 1, 1))


def figures(most: int) -> st.SearchStrategy[list[Decimal]]:
    number = st.decimals(0, most, places=9, allow_nan=False)
    return st.lists(number, min_size=3, max_size=3).map(sorted)


def entries(name: str) -> st.SearchStrategy[Entry]:
    unit = INPUTS[name].unit
    missing = st.builds(Missing, texts, texts)
    if unit is Unit.WORDS:
        return missing | st.builds(Told, said, said, dates)
    numbers = figures(10**14).map(lambda x: [n.scaleb(-15) / 3 for n in x] if unit is Unit.SHARE else x)
    return missing | st.builds(lambda x, source, at: Stated(*x, source, at), numbers, said, dates)


@st.composite
def worksheets(draw: st.DrawFn) -> Worksheet:
    case = draw(st.sampled_from(Case))
    names = draw(st.sets(st.sampled_from(applicable(case))))
    return Worksheet(draw(texts), case, {name: draw(entries(name)) for name in names})


# -------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("text", "unit", "values"),
    [
        ("$1.20/h", Unit.USD_HOUR, ("1.2", "1.2", "1.2")),
        ("4 h/month", Unit.HOURS_MONTH, ("4", "4", "4")),
        ("3 %", Unit.SHARE, ("0.03", "0.03", "0.03")),
        ("120-180 h", Unit.HOURS_MONTH, ("120", "150", "180")),
        ("$1,100-1,300/month", Unit.USD_MONTH, ("1100", "1200", "1300")),
        ("$0.02 - $0.10/GB", Unit.USD_GB, ("0.02", "0.06", "0.1")),
        ("2–4–8 h/month", Unit.HOURS_MONTH, ("2", "4", "8")),
        ("2 h/day", Unit.HOURS_MONTH, ("60", "60", "60")),
        ("0.5/day", Unit.A_MONTH, ("15", "15", "15")),
        ("500 MB/month", Unit.GB_MONTH, ("0.5", "0.5", "0.5")),
        ("90 min", Unit.TIME, ("5400", "5400", "5400")),
        ("3-12 calls", Unit.COUNT, ("3", "7.5", "12")),
        ("$50-400", Unit.USD, ("50", "225", "400")),
    ],
)
def test_figures_are_read_with_their_units(text: str, unit: Unit, values: tuple[str, ...]) -> None:
    """A figure, a range or a range with its likely value, in any unit of its input."""
    assert read_figure(text, unit) == tuple(map(Decimal, values))


@pytest.mark.parametrize(
    ("text", "unit", "problem"),
    [
        ("3", Unit.SHARE, "like 3 %"),
        ("1.20/h", Unit.USD_HOUR, r"like \$3/h"),
        ("$1.20", Unit.USD_HOUR, r"like \$3/h"),
        ("€2/h", Unit.USD_HOUR, r"like \$3/h"),
        ("-3 %", Unit.SHARE, "like 3 %"),
        ("1e3 h", Unit.HOURS_MONTH, "like 3 h/month or 3 h/day"),
        ("nan h", Unit.HOURS_MONTH, "like 3 h/month"),
        ("4-3 h", Unit.HOURS_MONTH, "rise"),
        ("1-9-3 h", Unit.HOURS_MONTH, "rise"),
        ("50-101 %", Unit.SHARE, "at most 100 %"),
        ("1,00 h", Unit.HOURS_MONTH, "like 3 h"),
        ("٣ %", Unit.SHARE, "like 3 %"),
        ("", Unit.COUNT, "like 3 or 3 calls"),
    ],
)
def test_what_is_no_figure_says_what_would_be(text: str, unit: Unit, problem: str) -> None:
    """No unit is guessed, and no number is read that was not written plainly."""
    with pytest.raises(ValueError, match=problem):
        read_figure(text, unit)


@given(st.sampled_from([unit for unit in Unit if unit is not Unit.WORDS and unit is not Unit.SHARE]), figures(10**14))
def test_a_written_figure_is_read_as_the_same(unit: Unit, values: list[Decimal]) -> None:
    """Writing loses no digit."""
    low, likely, high = values
    assert read_figure(write_figure((low, likely, high), unit), unit) == (low, likely, high)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        ("216.4", Unit.USD_MONTH, "$216/month"),
        ("-1231", Unit.USD_MONTH, "-$1,231/month"),
        ("6.7051", Unit.HOURS_MONTH, "6.71 h/month"),
        ("0.0123", Unit.SHARE, "1.23 %"),
        ("0", Unit.COUNT, "0"),
        ("90", Unit.TIME, "90 s"),
        ("86400", Unit.TIME, "24 h"),
        ("172800", Unit.TIME, "2 d"),
        ("0.00001234", Unit.USD_GB, "$0.0000123/GB"),
    ],
)
def test_figures_are_said_in_three_digits(value: str, unit: Unit, said: str) -> None:
    """People read three digits, and every whole one."""
    assert say(Decimal(value), unit) == said


# ------------------------------------------------------------------------------------------------------- the sheet


def test_what_nobody_stated_is_missing_and_never_zero() -> None:
    """A worksheet has an entry for each input of its case, and what was not given is missing."""
    worksheet = Worksheet("a", Case.TOKENS, {"realtime_cost": Stated(*[Decimal(9)] * 3, "invoice", TODAY)})
    assert list(worksheet.entries) == applicable(Case.TOKENS)
    assert worksheet.stated().keys() == {"realtime_cost"}
    assert worksheet.missing().keys() == set(applicable(Case.TOKENS)) - {"realtime_cost"}
    assert "hour_price" not in worksheet.entries  # it does not apply, which is not missing


@pytest.mark.parametrize("values", [(2, 1, 3), (1, 3, 2), (-1, 0, 1), (0, 0, 10**15)])
def test_a_range_rises_from_zero(values: tuple[int, int, int]) -> None:
    """A range that falls, is negative or beyond reason is refused."""
    with pytest.raises(ValueError, match="do not rise"):
        Stated(*map(Decimal, values), "x", TODAY)


@pytest.mark.parametrize(
    "entries",
    [
        {"hour_price": Stated(*[Decimal(9)] * 3, "invoice", TODAY)},
        {"realtime_cost": Told("a lot", "Ana", TODAY)},
        {"operations_owner": Stated(*[Decimal(9)] * 3, "invoice", TODAY)},
        {name: Stated(*[Decimal("0.5")] * 3, "log", TODAY) for name in ("failure_rate", "timeout_rate")},
    ],
)
def test_an_entry_that_means_nothing_is_refused(entries: dict[str, Entry]) -> None:
    """No input of another case, no words for a figure, and no rates at which no row would arrive."""
    with pytest.raises(ValueError, match=r"no input|: (Told|Stated)|100 %"):
        Worksheet("a", Case.TOKENS, entries)


def test_questions_ask_for_what_is_missing_and_answers_end_them() -> None:
    """Each missing input is asked for once, with an example that is an answer to it."""
    for case in Case:
        worksheet = Worksheet("a", case)
        asked = questions(worksheet)
        assert [question.name for question in asked] == applicable(case)
        for question in asked:
            worksheet = answered(worksheet, question.name, question.example, source="Ana", as_of=TODAY)
        assert questions(worksheet) == []
        assert {entry.source for entry in worksheet.entries.values()} == {"Ana"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("realtime_cost", "30", "expected a figure"),
        ("fallback_path", " ", "expected words"),
        ("hour_price", "$1/h", "no input of the tokens case"),
        ("xyz", "1", "no input"),
    ],
)
def test_an_answer_that_is_none_changes_nothing(name: str, text: str, problem: str) -> None:
    """What cannot be read is refused with what was expected."""
    with pytest.raises(ValueError, match=problem):
        answered(Worksheet("a", Case.TOKENS), name, text, source="Ana", as_of=TODAY)


def test_a_range_of_micros_is_an_input() -> None:
    """What others priced a month becomes USD, exactly."""
    assert usd(Range(1, 2_000_000, 3_500_000), "invoice", TODAY) == Stated(
        Decimal("0.000001"), Decimal(2), Decimal("3.5"), "invoice", TODAY
    )


# -------------------------------------------------------------------------------------------------------- as a file


@given(worksheets())
def test_a_written_worksheet_is_read_as_the_same(worksheet: Worksheet) -> None:
    """Whatever stands in it: figures to the last digit, hostile text, and what is missing."""
    assert read_worksheet(FILE, write_yaml(worksheet)) == worksheet


SHEET = """\
site: etl/label.py:88
case: own gpu
source: Ana, platform team
as_of: 2026-11-22
inputs:
  hour_price: $2.60/h
  warm_hours_avoided: {value: 120-180 h/month, source: "simulated, 14 d", as_of: 2026-11-20}
  operations_hours:
    value: 2-4-8 h/month
  queue_depth: 12
  storage_transfer: missing
  missed_cost: {missing: the team is away, ask: Ask Bo on Monday.}
  operations_owner: data platform team
"""


def test_a_worksheet_of_a_person_is_read() -> None:
    """Source and date once at the top hold for what has none of its own, and missing says so in three ways."""
    worksheet = read_worksheet(FILE, SHEET)
    assert (worksheet.site, worksheet.case) == ("etl/label.py:88", Case.OWN_GPU)
    assert worksheet.stated() == {
        "hour_price": Stated(*[Decimal("2.6")] * 3, "Ana, platform team", TODAY),
        "warm_hours_avoided": Stated(Decimal(120), Decimal(150), Decimal(180), "simulated, 14 d", date(2026, 11, 20)),
        "operations_hours": Stated(Decimal(2), Decimal(4), Decimal(8), "Ana, platform team", TODAY),
        "queue_depth": Stated(*[Decimal(12)] * 3, "Ana, platform team", TODAY),
    }
    assert worksheet.entries["operations_owner"] == Told("data platform team", "Ana, platform team", TODAY)
    assert worksheet.entries["missed_cost"] == Missing("the team is away", "Ask Bo on Monday.")
    assert isinstance(worksheet.entries["storage_transfer"], Missing)
    assert isinstance(worksheet.entries["batch_cost"], Missing)


def test_every_problem_of_a_worksheet_has_its_place() -> None:
    """All at once, each with line and column, what was found and what was expected."""
    text = """\
site: 5
case: own gpu
as_of: 2026-13-01
owner: me
inputs:
  hour_price: 3
  ops_hours: 4 h/month
  realtime_cost: $5/month
  queue_depth: {value: 3-1, source: a, as_of: 2026-01-01, x: 1}
  failure_rate: {source: log, as_of: 2026-01-01}
  operations_owner: {value: [a], source: a, as_of: 2026-01-01}
  missed_cost: {missing: 3}
"""
    with pytest.raises(SpecError) as caught:
        read_worksheet(FILE, text)
    assert str(caught.value).splitlines() == [
        "worksheet.yaml:1:7: site: found 5; expected text",
        "worksheet.yaml:3:8: as_of: found '2026-13-01'; expected a date like 2026-11-22",
        "worksheet.yaml:4:1: owner: is not known",
        "worksheet.yaml:6:15: inputs.hour_price: has no source: state it here, or once at the top for all inputs",
        "worksheet.yaml:6:15: inputs.hour_price: found the bare number 3; a figure states its unit, like '$2.60/h'",
        "worksheet.yaml:7:3: inputs.ops_hours: is not known; did you mean operations_hours?",
        "worksheet.yaml:8:3: inputs.realtime_cost: does not apply to this case",
        "worksheet.yaml:9:24: inputs.queue_depth.value: found '3-1'; expected numbers that rise: low-high or low-likely-high",
        "worksheet.yaml:9:59: inputs.queue_depth.x: is not known",
        "worksheet.yaml:10:17: inputs.failure_rate.value: is not given",
        "worksheet.yaml:11:29: inputs.operations_owner.value: found a collection; expected words, like 'data platform team'",
        "worksheet.yaml:12:26: inputs.missed_cost.missing: found 3; expected text",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "worksheet.yaml:1:1: found a collection; expected the fields site, case"),
        ("site: a\ncase: gpu", "worksheet.yaml:2:7: case: found 'gpu'; expected 'tokens' or 'own gpu'"),
        ("site: a\ncase: tokens\ninputs: 3", "worksheet.yaml:3:9: inputs: found 3; expected a mapping of inputs"),
        ("case: tokens", "site: is not given"),
        ("a: [", "worksheet.yaml:1:5: not YAML"),
        ("[" * 5000, "nested too deeply"),
        (
            "site: a\ncase: tokens\nsource: log\nas_of: 2026-11-22\n"
            "inputs:\n  failure_rate: 50 %\n  timeout_rate: 50 %",
            "worksheet.yaml:7:17: inputs.timeout_rate: failure_rate and timeout_rate together reach 100 %",
        ),
    ],
)
def test_what_is_no_worksheet_says_so(text: str, problem: str) -> None:
    """A file of another kind or shape is named with its place."""
    with pytest.raises(SpecError, match=re.escape(problem)):
        read_worksheet(FILE, text)


class Tags(HTMLParser):
    """Collects tags, for a second opinion on what is escaped."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


@given(worksheets())
def test_the_table_is_one_line_an_input_whatever_the_text(worksheet: Worksheet) -> None:
    """Six cells a line, and no text from a log opens a tag, a link, a code span or another cell."""
    title, _, *lines = write_markdown(worksheet).splitlines()
    assert len(lines) == 2 + len(worksheet.entries)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 7 for line in lines)
    theirs = re.sub(r"\\.", "", title + "".join(lines[2:]))
    assert re.search(r"[<>`\[\]*_&]|(?i:www\.)|://", theirs) is None


def test_hostile_text_in_the_table_is_only_text() -> None:
    """A site named like markup, a table cell and a link stays a name."""
    text = "<script>x</script> | [a](http://e.example) `b` www.e.example\n# c &lt; \u2028 $x$"
    table = write_markdown(Worksheet(text, Case.TOKENS))
    assert table.splitlines()[0] == (
        r"# Worksheet: \<script\>x\</script\> \| \[a\](http\://e.example) \`b\` www\.e.example \# c \&lt; \$x\$"
    )
    parser = Tags()
    parser.feed(table.replace(r"\<", "&lt;"))
    assert parser.found == []


# ----------------------------------------------------------------------------------------------------- from the logs

WEEK_US = 7 * 86_400 * 10**6


def facts(**known: object) -> SiteFacts:
    fields = dict(site="a", n_calls=700, first_us=0, last_us=WEEK_US, models=(), n_failed=7)
    return SiteFacts(**(fields | dict(n_stream=0, n_stream_known=0, n_with_user=0, n_users=0, n_sessions=0) | known))


def sheet(of: SiteFacts, **known: Entry) -> Worksheet:
    return from_facts(of, Case.TOKENS, source="calls.jsonl", as_of=TODAY, known=known)


def test_a_log_without_evidence_proves_nothing() -> None:
    """Only the failure rate follows from counts; all else stays missing, with the reason."""
    worksheet = sheet(facts())
    assert worksheet.stated().keys() == {"failure_rate"}
    missing = worksheet.missing()
    assert missing["user_visible_latency"].why == "the log does not hold latency"
    assert missing["staging_volume"].why == "the log holds no texts"
    assert missing["timeout_rate"].why == "nobody has stated it"
    assert "failure_rate" not in sheet(facts(n_calls=0, n_failed=0)).stated()


def test_logs_fill_what_they_prove() -> None:
    """Latency, calls in flight, delay and bytes come from the log, each with its source and date."""
    hundred = Sample(5000, tuple(float(n) for n in range(1, 101)))
    worksheet = sheet(
        facts(
            latency_s=hundred,
            concurrency=hundred,
            first_use_s=hundred,
            prefix=Prefix(40, 2000.0, 0, 0, None, None),
            input_tokens=Sample(700, (400.0, 600.0)),
            output_tokens=Sample(700, (50.0,)),
        )
    )
    stated = worksheet.stated()
    for name in ("user_visible_latency", "queue_depth", "acceptable_delay"):
        found = stated[name]
        assert (found.low, found.likely, found.high, found.as_of) == (5, 50, 95, TODAY)
        assert found.source.startswith("calls.jsonl: ")
        assert "5,000 calls" in found.source
    # 3,000 calls a month of 2,000 bytes at 4 bytes a token, and answers of 50 tokens: 6 MB and .6 MB
    volume = stated["staging_volume"]
    assert (volume.low, volume.likely, volume.high) == (Decimal("0.006"), Decimal("0.0066"), Decimal("0.0066"))


def test_a_declared_deadline_is_stronger_than_a_first_use() -> None:
    """What callers declare is the acceptable delay, not when the answers happened to be read."""
    worksheet = sheet(facts(deadline_s=Sample(2, (3600.0, 7200.0)), first_use_s=Sample(1, (9.0,))))
    found = worksheet.stated()["acceptable_delay"]
    assert (found.low, found.high) == (3600, 7200)
    assert "declared" in found.source


@given(st.integers(1, 10**6), st.data())
def test_no_failure_seen_is_not_no_failure(n_calls: int, data: st.DataObject) -> None:
    """The failure rate is an interval around what was seen, and its high end is never zero and never all."""
    n_failed = data.draw(st.integers(0, (n_calls - 1) // 2)) if data.draw(st.booleans()) else 0
    found = sheet(facts(n_calls=n_calls, n_failed=n_failed)).stated()["failure_rate"]
    assert found.low <= found.likely < found.high < 1
    assert round(float(found.likely) * n_calls) == n_failed


@pytest.mark.parametrize("known", [dict(n_calls=4, n_failed=2), dict(deadline_s=Sample(1, (1e300,)))])
def test_a_log_beyond_reason_leaves_inputs_missing(known: dict[str, object]) -> None:
    """A site that mostly fails, or a deadline after the end of the world, is no figure and no crash."""
    name = "acceptable_delay" if "deadline_s" in known else "failure_rate"
    assert name in sheet(facts(**known)).missing()


def test_failures_have_wilsons_interval() -> None:
    """Known answer: 7 of 700 is 0.49 % to 2.05 %; none of 200 is at most 1.88 %."""
    found = sheet(facts()).stated()["failure_rate"]
    assert [round(float(x), 4) for x in (found.low, found.likely, found.high)] == [0.0049, 0.01, 0.0205]
    assert round(float(sheet(facts(n_calls=200, n_failed=0)).stated()["failure_rate"].high), 4) == 0.0188


def test_an_hour_of_logs_does_not_tell_a_month() -> None:
    """Bytes a month are missing where the log is shorter than a day."""
    of = facts(last_us=3600 * 10**6, prefix=Prefix(4, 9.0, 0, 0, None, None))
    assert sheet(of).missing()["staging_volume"].why == "a log of 1.0 h does not tell a month"


def test_what_others_found_wins() -> None:
    """A stated input replaces what the log says."""
    rate = Stated(*[Decimal("0.5")] * 3, "batch history", TODAY)
    assert sheet(facts(), failure_rate=rate).entries["failure_rate"] is rate


def test_one_call_tells_no_rate() -> None:
    """What is too little to rule out that nothing ever arrives is missing."""
    late = Stated(*[Decimal("0.3")] * 3, "batch history", TODAY)
    assert sheet(facts(n_calls=1, n_failed=0)).stated()["failure_rate"].high > Decimal("0.7")
    assert "failure_rate" in sheet(facts(n_calls=1, n_failed=0), timeout_rate=late).missing()


def test_what_was_found_stands_below_the_table() -> None:
    """One line each, escaped like the cells: a worksheet's own words may be in it."""
    table = write_markdown(Worksheet("a", Case.TOKENS), ["saves $5", "missing: x. \x1b[31m<b>\nask|Bo"])
    assert table.endswith("\n\n- saves \\$5\n- missing\\: x. \\[31m\\<b\\> ask\\|Bo\n")


def test_a_hostile_site_name_can_be_written() -> None:
    """A name with characters that no file can hold is kept readable."""
    rate = Stated(*[Decimal(0)] * 3, "caf\udce9.jsonl", TODAY)
    assert '"caf\ufffd.jsonl"' in write_yaml(sheet(facts(), timeout_rate=rate))
    worksheet = sheet(facts(site="a\0\ud800b", latency_s=EMPTY))
    assert worksheet.site == "a\ufffd\ufffdb"
    assert read_worksheet(FILE, write_yaml(worksheet)) == worksheet
