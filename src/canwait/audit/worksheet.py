"""What the economics of moving a call site rest on: each input is stated with its range, source and date, or missing.

Missing is never zero. A worksheet is filled from logs where they prove a figure, else from a file or from answers to
`questions`. Money is Decimal USD, times are seconds, shares 0..1, data gigabytes (10^9 bytes); a month is 30 days.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ..document import Document, Fault, Unreadable, read_document
from ..errors import Problem, SpecError
from ..scalars import quoted, readable
from .facts import Sample, SiteFacts
from .findings import Range

MONTH_S = 30 * 86_400
_LEAST_WINDOW_S = 86_400  # a log of less than a day says nothing about a month


class Case(str, Enum):
    """What realtime capacity is paid by."""

    TOKENS = "tokens"  # a provider's price per token
    OWN_GPU = "own gpu"  # the hours servers are kept warm


@dataclass(frozen=True, slots=True)
class Stated:
    """A figure somebody stands for, in the unit of its input: 0 <= low <= likely <= high < 10^15, to 12 places."""

    low: Decimal
    likely: Decimal
    high: Decimal
    source: str  # who or what says so
    as_of: date

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.likely <= self.high < 10**15:
            raise ValueError(f"{self.low}, {self.likely}, {self.high} do not rise from 0 on, or are too large")
        if not self.source.strip():
            raise ValueError("a figure names its source")
        for name in ("low", "likely", "high"):  # so that a file holds them exactly
            object.__setattr__(self, name, round(getattr(self, name), 12))


@dataclass(frozen=True, slots=True)
class Told:
    """An input that is words: who owns the operations, what the fallback is."""

    text: str
    source: str
    as_of: date

    def __post_init__(self) -> None:
        if not self.text.strip() or not self.source.strip():
            raise ValueError("words name their source")


@dataclass(frozen=True, slots=True)
class Missing:
    """An input nobody has stated."""

    why: str
    ask: str  # what to ask, and whom


Entry = Stated | Told | Missing


class Unit(Enum):
    """How a figure is written: what stands before the number, then after it with what that is worth."""

    USD = "$", {"": 1}
    USD_MONTH = "$", {"/month": 1, "/day": 30, "/year": Decimal(30) / 365}
    USD_HOUR = "$", {"/h": 1}
    USD_GB = "$", {"/GB": 1}
    HOURS_MONTH = "", {"h/month": 1, "h/day": 30, "h/week": Decimal(30) / 7, "h": 1}
    A_MONTH = "", {"/month": 1, "/day": 30, "/week": Decimal(30) / 7, "/year": Decimal(30) / 365}
    GB_MONTH = "", {"GB/month": 1, "MB/month": Decimal("1e-3"), "TB/month": 1000, "GB/day": 30, "GB": 1}
    SHARE = "", {"%": Decimal("0.01")}
    TIMES = "", {"%": Decimal("0.01"), "x": 1}
    TIME = "", {"s": 1, "ms": Decimal("1e-3"), "min": 60, "h": 3600, "d": 86_400}
    COUNT = "", {"": 1, "calls": 1}
    WORDS = ("",)

    def __init__(self, before: str, after: Mapping[str, Decimal | int] | None = None) -> None:
        self.before = before
        self.after = after or {}

    @property
    def written(self) -> str:
        """The ending a figure is written with; all others can be read, too."""
        return next(iter(self.after), "")


class Input(NamedTuple):
    """One line of the worksheet."""

    title: str
    unit: Unit
    example: str
    ask: str
    cases: frozenset[Case] = frozenset(Case)  # elsewhere it does not apply, which is not missing


_OWN, _TOKENS = frozenset({Case.OWN_GPU}), frozenset({Case.TOKENS})

INPUTS: Mapping[str, Input] = MappingProxyType(
    {
        "acceptable_delay": Input(
            "acceptable delay", Unit.TIME, "4-24 h", "How late may an answer come before its readers lose something?"
        ),
        "user_visible_latency": Input(
            "user-visible latency", Unit.TIME, "0.8-2-6 s", "How long does whoever asks wait for an answer today?"
        ),
        "queue_depth": Input("queue depth", Unit.COUNT, "3-12 calls", "How many calls are in flight at once?"),
        "batch_window": Input("batch window", Unit.TIME, "24 h", "Within what time does the provider end a batch?"),
        "retry_window": Input(
            "retry window", Unit.TIME, "1-24 h", "How much longer may it take to send failed rows again?"
        ),
        "realtime_cost": Input(
            "realtime cost", Unit.USD_MONTH, "$1,100-1,300/month",
            "What do these calls cost a month on the tier they use now?", _TOKENS,
        ),
        "batch_share": Input(
            "batch cost", Unit.TIMES, "50-60 %",
            "What share of the realtime cost would the same calls cost as batches, without what fails and is sent again?",
            _TOKENS,
        ),
        "warm_hours_avoided": Input(
            "warm hours avoided", Unit.HOURS_MONTH, "120-180 h/month",
            "How many replica-hours a month would no longer be kept warm (whole replicas, above the contract's minimum)?",
            _OWN,
        ),
        "hour_price": Input("hour price", Unit.USD_HOUR, "$2.60/h", "What does one replica cost an hour?", _OWN),
        "batch_cost": Input(
            "batch cost", Unit.USD_MONTH, "$550-650/month", "What would the same calls cost a month as batches?", _OWN
        ),
        "failure_rate": Input(
            "failure rate", Unit.SHARE, "0.5-1-3 %", "What share of rows fails and is paid for again?"
        ),
        "timeout_rate": Input(
            "timeout rate", Unit.SHARE, "0-1-5 %", "What share of rows is not done within the window and is paid for again?"
        ),
        "staging_volume": Input(
            "staging volume", Unit.GB_MONTH, "8-12 GB/month", "How much data is written and read a month to stage batches?"
        ),
        "staging_price": Input("staging price", Unit.USD_GB, "$0.02-0.10/GB", "What does staging one gigabyte cost?"),
        "storage_transfer": Input(
            "storage and transfer", Unit.USD_MONTH, "$5-20/month", "What do storage and transfer add a month?"
        ),
        "operations_hours": Input(
            "operations hours", Unit.HOURS_MONTH, "2-4-8 h/month", "How many hours a month does somebody look after it?"
        ),
        "operations_rate": Input("operations rate", Unit.USD_HOUR, "$80/h", "What does an hour of that person cost?"),
        "missed_rate": Input(
            "missed deadlines", Unit.A_MONTH, "0-0.5-2 /month", "How often a month would results come too late?"
        ),
        "missed_cost": Input("cost of a miss", Unit.USD, "$50-400", "What does one late delivery cost?"),
        "waiting_cost": Input(
            "cost of waiting", Unit.USD_HOUR, "$0.50-2/h",
            "What does it cost a month for each hour by which all answers come later?",
        ),
        "operations_owner": Input("operations owner", Unit.WORDS, "data platform team", "Who looks after it?"),
        "fallback_path": Input(
            "fallback path", Unit.WORDS, "standard tier from 04:00 on", "What happens when a batch does not arrive?"
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Worksheet:
    """The inputs of one call site; every input that applies to its case has an entry."""

    site: str
    case: Case
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strange := [name for name in self.entries if name not in applicable(self.case)]:
            raise ValueError(f"{', '.join(strange)}: no input of the {self.case.value} case")
        for name, entry in self.entries.items():
            if not isinstance(entry, Missing) and isinstance(entry, Told) != (INPUTS[name].unit is Unit.WORDS):
                raise ValueError(f"{name}: {entry}")
        rates = (self.entries.get(name) for name in ("failure_rate", "timeout_rate"))
        if sum(rate.high for rate in rates if isinstance(rate, Stated)) >= 1:
            raise ValueError("failure_rate and timeout_rate together reach 100 %: no row would ever arrive")
        gaps = {
            name: self.entries.get(name) or _missing(name, "nobody has stated it") for name in applicable(self.case)
        }
        object.__setattr__(self, "entries", MappingProxyType(gaps))

    def stated(self) -> dict[str, Stated]:
        return {name: entry for name, entry in self.entries.items() if isinstance(entry, Stated)}

    def missing(self) -> dict[str, Missing]:
        return {name: entry for name, entry in self.entries.items() if isinstance(entry, Missing)}


class Question(NamedTuple):
    """What an owner is asked."""

    name: str
    title: str
    ask: str
    example: str  # of an answer, with its unit
    why: str  # why it is asked


def applicable(case: Case) -> list[str]:
    """Names of the inputs that mean something there, in the worksheet's order."""
    return [name for name, line in INPUTS.items() if case in line.cases]


def questions(worksheet: Worksheet) -> list[Question]:
    """What is missing, in the worksheet's order."""
    return [
        Question(name, INPUTS[name].title, entry.ask, INPUTS[name].example, entry.why)
        for name, entry in worksheet.missing().items()
    ]


def answered(worksheet: Worksheet, name: str, text: str, *, source: str, as_of: date) -> Worksheet:
    """The worksheet with one answer in it. Raises ValueError saying what was found and what was expected."""
    if name not in applicable(worksheet.case):
        raise ValueError(f"{name}: no input of the {worksheet.case.value} case")
    entry = _entry_of(name, text.strip(), source, as_of)
    return replace(worksheet, entries={**worksheet.entries, name: entry})


def usd(range_: Range, source: str, as_of: date) -> Stated:
    """A range of micros a month, as an input."""
    low, likely, high = (Decimal(micros).scaleb(-6) for micros in (range_.low, range_.likely, range_.high))
    return Stated(low, likely, high, source, as_of)


# ------------------------------------------------------------------------------------------------ figures as text

_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,30})?|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]{1,30})?"
_FIGURE = re.compile(rf"(\$?) ?({_NUMBER})(?: ?[-–] ?\$?({_NUMBER}))?(?: ?[-–] ?\$?({_NUMBER}))? ?(%|[A-Za-z/]*)")


def read_figure(text: str, unit: Unit) -> tuple[Decimal, Decimal, Decimal]:
    """`"$1.20/h"`, `"120-180 h"` or `"2-4-8 %"` -> low, likely, high; of two numbers the middle is likely.

    Raises ValueError saying what was found and what was expected.
    """
    match = _FIGURE.fullmatch(text.strip())
    before, ending = (match[1], match[5]) if match else ("", "")
    if not match or before != unit.before or ending not in unit.after:
        endings = " or ".join(f"{unit.before}3{_space(unit, after)}{after}" for after in unit.after)
        raise ValueError(f"found {text[:60]!r}; expected a figure or a range like {endings}")
    numbers = [Decimal(number.replace(",", "")) * unit.after[ending] for number in match.group(2, 3, 4) if number]
    low, high = numbers[0], numbers[-1]
    likely = numbers[1] if len(numbers) == 3 else (low + high) / 2
    if not low <= likely <= high:
        raise ValueError(f"found {text[:60]!r}; expected numbers that rise: low-high or low-likely-high")
    if unit is Unit.SHARE and high > 1:
        raise ValueError(f"found {text[:60]!r}; expected at most 100 %")
    return low, likely, high


def write_figure(values: tuple[Decimal, Decimal, Decimal], unit: Unit) -> str:
    """The text that `read_figure` reads as exactly these values."""
    per = unit.after[unit.written]
    numbers = [_plain(value / per) for value in values]
    distinct = numbers[:1] if len(set(numbers)) == 1 else numbers
    return f"{unit.before}{'-'.join(distinct)}{_space(unit, unit.written)}{unit.written}"


def say(value: Decimal, unit: Unit) -> str:
    """One value for people: three digits, or all before the point, in a unit of a readable size."""
    per, ending = Decimal(unit.after[unit.written]), unit.written
    if unit is Unit.TIME:
        sizes = ((Decimal(86_400), "d"), (Decimal(3600), "h"), (Decimal(60), "min"))
        per, ending = next((size for size in sizes if value >= 2 * size[0]), (per, ending))
    number = abs(value / per)
    digits = format(round(number, max(0, 2 - number.adjusted())), ",f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{'-' if value < 0 else ''}{unit.before}{digits}{_space(unit, ending)}{ending}"


def _space(unit: Unit, ending: str) -> str:
    return "" if unit.before or not ending else " "


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


# ----------------------------------------------------------------------------------------------------- from the logs


def from_facts(
    facts: SiteFacts, case: Case, *, source: str, as_of: date, known: Mapping[str, Entry] | None = None
) -> Worksheet:
    """What the logs prove of a site; `known` is what others have found (prices, warm hours) and wins.

    Quantiles stand for ranges: the 5th, 50th and 95th of a hundred calls.
    """
    found: dict[str, Entry] = {}

    def quantiles(name: str, sample: Sample, what: str) -> None:
        values = [max(0.0, sample.quantile(q)) for q in (0.05, 0.5, 0.95)] if sample.values else []
        if values and values[-1] < 1e12:  # also what is no number is not below it
            low, likely, high = (Decimal(repr(float(value))) for value in values)
            said = f"{source}: {what}, p5, p50 and p95 of {sample.n_seen:,} calls"
            found[name] = Stated(low, likely, high, said, as_of)
        else:
            found[name] = _missing(name, f"the log does not hold {what}")

    quantiles("user_visible_latency", facts.latency_s, "latency")
    quantiles("queue_depth", facts.concurrency, "calls in flight at once")
    if facts.deadline_s.values:
        quantiles("acceptable_delay", facts.deadline_s, "deadlines that callers declared")
    else:
        quantiles("acceptable_delay", facts.first_use_s, "time from answer to first use")
    found["failure_rate"] = _failure_rate(facts, source, as_of)
    found["staging_volume"] = _staging_volume(facts, source, as_of)
    found |= known or {}
    rate, late = found["failure_rate"], found.get("timeout_rate")
    if isinstance(rate, Stated) and isinstance(late, Stated) and rate.high + late.high >= 1:
        found["failure_rate"] = _missing("failure_rate", f"{facts.n_calls:,} calls do not tell it")
    return Worksheet(readable(facts.site), case, found)


def _failure_rate(facts: SiteFacts, source: str, as_of: date) -> Entry:
    """Wilson's 95 % interval: no failure seen is not "never fails"."""
    n, n_failed, z2 = facts.n_calls, facts.n_failed, 1.96**2
    if not 2 * n_failed < n:
        return _missing("failure_rate", f"{n_failed:,} of {n:,} realtime calls failed, which is no rate to plan with")
    share = n_failed / n
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    ends = min(share, (middle - half) / (1 + z2 / n)), share, (middle + half) / (1 + z2 / n)
    low, likely, high = (Decimal(repr(round(max(0.0, end), 9))) for end in ends)
    said = f"{source}: {n_failed:,} of {n:,} realtime calls failed (95 % interval); a batch's rows may differ"
    return Stated(low, likely, high, said, as_of)


def _staging_volume(facts: SiteFacts, source: str, as_of: date) -> Entry:
    """Requests as logged, and answers at the requests' bytes a token."""
    texts, window_s = facts.prefix, facts.window_s
    if texts is None or not texts.n_texts:
        return _missing("staging_volume", "the log holds no texts")
    if window_s < _LEAST_WINDOW_S:
        return _missing("staging_volume", f"a log of {window_s / 3600:.1f} h does not tell a month")
    a_month = Decimal(facts.n_calls) * MONTH_S / Decimal(repr(window_s)) / 10**9
    request_bytes = Decimal(repr(float(texts.mean_bytes)))
    inputs, outputs = (Decimal(repr(_mean(sample))) for sample in (facts.input_tokens, facts.output_tokens))
    answer_bytes = request_bytes * outputs / inputs if inputs else Decimal(0)
    low, high = (round(a_month * size, 9) for size in (request_bytes, request_bytes + answer_bytes))
    counted = (
        "and answers at the same bytes a token" if answer_bytes else "without their answers, whose size is not logged"
    )
    said = f"{source}: mean bytes of {texts.n_texts:,} requests, {counted}, {facts.n_calls:,} calls in {window_s / 86_400:.1f} d"
    return Stated(low, high, high, said, as_of)


def _mean(sample: Sample) -> float:
    return math.fsum(sample.values) / len(sample.values) if sample.values else 0.0


def _missing(name: str, why: str) -> Missing:
    return Missing(why, INPUTS[name].ask)


# -------------------------------------------------------------------------------------------------------- as a file


def read_worksheet(path: Path, text: str | None = None) -> Worksheet:
    """A worksheet as `write_yaml` writes it, or as a person does; `text` stands in for the file's content.

    An input is a figure (`hour_price: $2.60/h`) whose source and date are the file's `source` and `as_of`, a mapping of
    `value`, `source` and `as_of`, or `missing`. Raises SpecError with every problem at once.
    """
    try:
        document = read_document(path, text)
    except Unreadable as error:
        line, column = error.at or (None, None)
        raise SpecError([Problem(str(path), line, column, None, str(error))], hint=_HINT) from None
    except RecursionError:
        raise SpecError([Problem(str(path), None, None, None, "is nested too deeply")], hint=_HINT) from None
    worksheet = _Reader(document).worksheet()
    if document.faults or worksheet is None:
        raise SpecError(document.problems(), hint=_HINT)
    return worksheet


_HINT = "docs/economics.md shows a worksheet"
_FIELDS = ("site", "case", "source", "as_of", "inputs")


class _Reader:
    """Reads a tree, and leaves a fault for everything that is wrong with it."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def worksheet(self) -> Worksheet | None:
        tree = self.document.tree
        if not isinstance(tree, dict):
            if not self.document.faults:
                self._fault((), f"found {_found(tree)}; expected the fields {', '.join(_FIELDS)}")
            return None
        self._names((), tree, _FIELDS)
        site, word = self._text(tree, ("site",)), self._text(tree, ("case",))
        case = next((case for case in Case if case.value == word), None)
        if word is not None and case is None:
            self._fault(("case",), f"found {word!r}; expected {' or '.join(repr(c.value) for c in Case)}")
        source = self._text(tree, ("source",), needed=False)
        as_of = self._date(tree, ("as_of",))
        inputs = tree.get("inputs")
        if not isinstance(inputs, dict):
            if "inputs" in tree and inputs is not None:
                self._fault(("inputs",), f"found {_found(inputs)}; expected a mapping of inputs")
            inputs = {}
        known = applicable(case) if case else list(INPUTS)
        self._names(("inputs",), inputs, known, elsewhere=INPUTS)
        entries = {name: self._entry(name, inputs[name], source, as_of) for name in known if name in inputs}
        if self.document.faults or site is None or case is None:
            return None
        try:
            return Worksheet(site, case, {name: entry for name, entry in entries.items() if entry})
        except ValueError as error:
            self._fault(("inputs", "timeout_rate"), str(error))
            return None

    def _entry(self, name: str, value: object, source: str | None, as_of: date | None) -> Entry | None:
        """An input; None where it is at fault."""
        loc = ("inputs", name)
        if value is None or value == "missing":
            return _missing(name, "nobody has stated it")
        if isinstance(value, dict) and "missing" in value:
            self._names(loc, value, ("missing", "ask"))
            why = self._text(value, (*loc, "missing"))
            ask = self._text(value, (*loc, "ask"), needed=False)
            return None if why is None else Missing(why, INPUTS[name].ask if ask is None else ask)
        at: tuple[str, ...] = loc
        if isinstance(value, dict):
            self._names(loc, value, ("value", "source", "as_of"))
            source = self._text(value, (*loc, "source"), needed=False) or source
            as_of = self._date(value, (*loc, "as_of")) or as_of
            if "value" not in value:
                self._fault((*loc, "value"), "is not given", absent=True)
                return None
            at, value = (*loc, "value"), value["value"]
        for field_, given in (("source", source), ("as_of", as_of)):
            if given is None and not any(f.loc in ((field_,), (*loc, field_)) for f in self.document.faults):
                self._fault(loc, f"has no {field_}: state it here, or once at the top for all inputs")
        try:
            return _entry_of(name, value, source or "nobody", as_of or date.min)
        except ValueError as error:
            self._fault(at, str(error))
            return None

    def _names(
        self, loc: tuple[str, ...], tree: Iterable[str], known: Collection[str], elsewhere: Collection[str] = ()
    ) -> None:
        for name in tree:
            if name in known:
                continue
            near = get_close_matches(name, known, n=1)
            if name in elsewhere:
                message = "does not apply to this case"
            else:
                message = f"is not known; did you mean {near[0]}?" if near else "is not known"
            self._fault((*loc, name), message, of_key=True)

    def _text(self, tree: Mapping[str, object], loc: tuple[str, ...], needed: bool = True) -> str | None:
        value = tree.get(loc[-1])
        if isinstance(value, str) and (value.strip() or loc[-1] != "source"):
            return value
        if loc[-1] in tree:
            self._fault(loc, f"found {_found(value)}; expected text")
        elif needed:
            self._fault(loc, "is not given", absent=True)
        return None

    def _date(self, tree: Mapping[str, object], loc: tuple[str, ...]) -> date | None:
        value = tree.get(loc[-1])
        try:
            return date.fromisoformat(value if isinstance(value, str) else "") if loc[-1] in tree else None
        except ValueError:
            self._fault(loc, f"found {_found(value)}; expected a date like 2026-11-22")
            return None

    def _fault(self, loc: tuple[str, ...], message: str, *, absent: bool = False, of_key: bool = False) -> None:
        self.document.faults.append(Fault(loc, message, absent=absent, of_key=of_key))


def _entry_of(name: str, value: object, source: str, as_of: date) -> Stated | Told:
    """What a file gives as an input. Raises ValueError saying what was found and what was expected."""
    line = INPUTS[name]
    if line.unit is Unit.WORDS:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"found {_found(value)}; expected words, like '{line.example}'")
        return Told(value, source, as_of)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        if line.unit is not Unit.COUNT:
            raise ValueError(f"found the bare number {value}; a figure states its unit, like '{line.example}'")
        value = format(value, "f")
    if not isinstance(value, str):
        raise ValueError(f"found {_found(value)}; expected a figure like '{line.example}'")
    return Stated(*read_figure(value, line.unit), source, as_of)


def _found(value: object) -> str:
    return (
        "nothing" if value is None else repr(value)[:60] if isinstance(value, str | int | Decimal) else "a collection"
    )


def write_yaml(worksheet: Worksheet) -> str:
    """The worksheet as a file that `read_worksheet` reads as the same, with the question above each input."""
    lines = [
        "# What moving this call site rests on. State what is missing: a figure with its unit, a range low-high, or",
        "# low-likely-high; `source` and `as_of` once at the top hold for all inputs that have none of their own.",
        f"site: {quoted(worksheet.site)}",
        f"case: {worksheet.case.value}",
        "inputs:",
    ]
    for name, entry in worksheet.entries.items():
        line = INPUTS[name]
        lines.append(f"  # {line.ask} For example: {line.example}")
        if isinstance(entry, Missing):
            ask = "" if entry.ask == line.ask else f", ask: {quoted(entry.ask)}"
            lines.append(f"  {name}: {{missing: {quoted(entry.why)}{ask}}}")
        else:
            text = entry.text if isinstance(entry, Told) else _figure(entry, line.unit)
            known = f"source: {quoted(entry.source)}, as_of: {entry.as_of}"
            lines.append(f"  {name}: {{value: {quoted(text)}, {known}}}")
    return "\n".join(lines) + "\n"


def write_markdown(worksheet: Worksheet, findings: Iterable[str] = ()) -> str:
    """The worksheet as a table for people, and below it what was found from it (`economics.words`)."""
    lines = [
        f"# Worksheet: {_cell(worksheet.site)}",
        "",
        "| input | low | likely | high | source | as of |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name, entry in worksheet.entries.items():
        line = INPUTS[name]
        if isinstance(entry, Missing):
            cells = ["missing", "missing", "missing", f"{_cell(entry.why)}. {_cell(entry.ask)}", ""]
        elif isinstance(entry, Told):
            cells = ["", _cell(entry.text), "", _cell(entry.source), str(entry.as_of)]
        else:
            figures = (say(value, line.unit) for value in (entry.low, entry.likely, entry.high))
            cells = [*figures, _cell(entry.source), str(entry.as_of)]
        lines.append(f"| {line.title} | {' | '.join(cells)} |")
    found = [f"- {_cell(line)}" for line in findings]
    return "\n".join([*lines, *([""] if found else []), *found]) + "\n"


def _figure(entry: Stated, unit: Unit) -> str:
    return write_figure((entry.low, entry.likely, entry.high), unit)


_UNPRINTABLE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _cell(text: str) -> str:
    """Text inside a table of Markdown: one line, and nothing in it that Markdown or HTML would act on."""
    return re.sub(r"[\\`*_\[\]<>|~&#:@$!]|(?<=www)\.", r"\\\g<0>", one_line(text), flags=re.IGNORECASE)


def one_line(text: str) -> str:
    """Text of others on one line, without what a terminal would act on."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())
