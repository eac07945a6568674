"""An audit as text for a terminal and as JSON. Computes nothing but layout: every figure stands in findings.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from ..codec import plain
from ..price import format_usd
from ..types import Tier
from .facts import Sample, SiteFacts
from .findings import Audit, Lever, LogFile, Needs, Proof, Range, Site, Verdict

WAITS = {
    Needs.SYNC: "YES",
    Needs.NEAR_REAL_TIME: "minutes",
    Needs.BATCH: "no",
    Needs.HYBRID: "some",
    Needs.ASK: "unclear",
}
HIDE_BELOW = 30_000_000  # micros a month: a dollar a day
_AGGREGATES = 10  # models of reports that a terminal shows
_QUANTILES = (0.05, 0.5, 0.95, 0.99)


def dollars(micros: int) -> str:
    """An amount as a person reads it: cents below $100, whole dollars above; less than a cent is said so."""
    if 0 < micros < 10_000:
        return "<$0.01"
    cents = (abs(micros) + 5_000) // 10_000
    whole = f"{cents // 100:,}" if cents >= 10_000 else f"{cents // 100}.{cents % 100:02d}"
    return f"{'-' if micros < 0 and cents else ''}${whole}"


def spread(amount: Range) -> str:
    """An amount with its range, where it has one."""
    if amount.low == amount.high:
        return dollars(amount.likely)
    return f"{dollars(amount.likely)} ({dollars(amount.low)} to {dollars(amount.high)})"


def when(us: int) -> datetime:
    return datetime.fromtimestamp(us // 1_000_000, UTC)


def window_days(audit: Audit) -> float | None:
    """None where no call was read."""
    if audit.first_us is None or audit.last_us is None:
        return None
    return (audit.last_us - audit.first_us) / 86_400e6


def would_cost(site: Site) -> int | None:
    """A month's micros with its counted levers; None where the cost or the verdict is not known."""
    if site.spend.month is None or site.verdict.needs is Needs.ASK:
        return None
    return site.spend.month.likely - (site.together.likely if site.together else 0)


def tier_of(verdict: Verdict) -> str:
    if verdict.needs is Needs.ASK:
        return "ask owner"
    if verdict.tier is None:
        return "as it is"
    return "own GPU" if verdict.tier is Tier.OWN else verdict.tier.value


def words_of(by: str, values: Sequence[str | bool]) -> str:
    """Which calls of a hybrid site can wait."""
    if by == "stream":
        return f"calls that {'stream' if True in values else 'do not stream'}"
    if by == "trigger":
        return f"calls whose trigger is {' or '.join(map(str, values))}"
    return "calls whose answers were used more than an hour later"


def proof_of(verdict: Verdict) -> str:
    """The proof class and the decisive piece of evidence."""
    said = verdict.reasons[0].text if verdict.reasons else "the log says nothing of it"
    if verdict.needs is Needs.ASK:
        return said
    return f"{verdict.proof.value}: {said}"


def headline(audit: Audit) -> str:
    days, sites = window_days(audit), _counted(len(audit.sites), "call site")
    if days is None and audit.sites:
        return f"{sites} found in code; no log, so no money and no proof"
    if days is None:
        sized = sum(audit.aggregates.values(), Range(0, 0, 0))
        return f"no calls, but reports that size {spread(sized)} a month" if audit.aggregates else "no call was read"
    return f"{sites}, {_counted(audit.n_calls, 'call')} in {_span(days)}, {_month(audit)}"


def as_text(audit: Audit, *, hide_below: int = 0) -> str:
    """The table of sites, the sums and what the reader must know.

    Sites that cost less than `hide_below` micros a month are left out of the table, unless all do.
    """
    sites = [s for s in audit.sites if s.spend.month is None or s.spend.month.high >= hide_below] or audit.sites
    n_hidden = len(audit.sites) - len(sites)
    head = ("CALL SITE", "CALLS/DAY", "$/MONTH", "READER WAITS?", "TIER", "WOULD COST", "PROOF")
    rows = [head, *(_row(audit, site) for site in sites)]
    hidden = f"; {n_hidden:,} cheaper ones not shown" if n_hidden else ""
    lines = [f"{headline(audit)}{hidden}", ""]
    lines += [*_columns(rows), ""] if sites else []
    lines += [sums(audit)] if audit.n_calls else []
    dearest = sorted(audit.aggregates.items(), key=lambda item: -item[1].likely)
    lines += [f"reports size {shown(name)}: {spread(amount)} a month" for name, amount in dearest[:_AGGREGATES]]
    lines += [f"reports size {len(dearest) - _AGGREGATES:,} more models"] if dearest[_AGGREGATES:] else []
    lines += [f"note: {shown(note)}" for note in audit.notes]
    lines += [f"note: {shown(file.file)}: {shown(_bad(file))}" for file in audit.files if file.n_bad]
    return "\n".join(lines)


def sums(audit: Audit) -> str:
    """What counts, and what does not."""
    unpriced = f"{_counted(audit.unpriced_calls, 'call')} {'has' if audit.unpriced_calls == 1 else 'have'} no price"
    if audit.unpriced_calls == audit.n_calls:
        return f"a month: not known · {unpriced}"
    return (
        f"a month: proved {spread(audit.proved)} · likely {spread(audit.likely)} · not movable {spread(audit.not_movable)}"
        f"{f' · {unpriced}' if audit.unpriced_calls else ''}"
    )


def _month(audit: Audit) -> str:
    return "cost not known" if audit.unpriced_calls == audit.n_calls else f"{spread(audit.total)} a month"


def _bad(file: LogFile) -> str:
    first = file.bad[0]
    if not first.line:  # the file as a whole
        return f"not read: {first.why}"
    if file.n_bad == 1:
        return f"line {first.line} is no call: {first.why}"
    return f"{file.n_bad:,} lines are no calls; the first is {first.line}: {first.why}"


def _counted(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def site_text(site: Site) -> str:
    """Everything about one site."""
    verdict = site.verdict
    lines = [
        shown(site.name),
        f"  reader waits   {WAITS[verdict.needs]} ({verdict.needs.value}), {verdict.proof.value}"
        f"{', decided by the owner' if verdict.by_owner else ''}",
        *(f"                 - {shown(reason.text)} ({reason.kind}, {reason.n:,} calls)" for reason in verdict.reasons),
    ]
    if verdict.moves:
        lines.append(f"  can wait       {shown(words_of(verdict.moves.by, verdict.moves.values))}")
    if verdict.asks:
        lines.append(f"  ask            {shown(verdict.asks)}")
    month = site.spend.month
    lines.append(
        f"  cost           {spread(month) + ' a month' if month else 'unknown'}; {shown(site.spend.why or site.spend.basis)}"
    )
    for lever in site.levers:
        lines.append(f"  {lever.kind:<14} {_saving(lever)}; {lever.proof.value}: {shown(lever.why)}")
        lines += [f"                 needs {shown(lever.needs)}"] if lever.needs else []
    if site.together:
        lines.append(f"  together       saves {spread(site.together)} a month")
    lines += [
        f"  code           {shown(code.file)}:{code.line} {shown(code.call)}, {code.waits}: {shown(code.why)}"
        for code in site.code
    ]
    lines += [f"  warning        {shown(text)}" for text in site.warnings]
    return "\n".join(lines)


def to_json(audit: Audit) -> dict[str, Any]:
    """The audit as schemas/audit.v1.json has it. Money is decimal text in US dollars a month."""
    return {
        "made_at": plain(audit.made_at),
        "window": None if audit.first_us is None or audit.last_us is None else {
            "first": plain(when(audit.first_us)), "last": plain(when(audit.last_us)), "days": window_days(audit),
        },
        "calls": audit.n_calls,
        "unpriced_calls": audit.unpriced_calls,
        "total": _range(audit.total),
        "proved": _range(audit.proved),
        "likely": _range(audit.likely),
        "not_movable": _range(audit.not_movable),
        "files": [
            {"file": f.file, "format": f.format, "calls": f.n_calls, "buckets": f.n_buckets, "bad": f.n_bad,
             "repeated": f.n_repeated, "bad_lines": [{"line": b.line, "why": b.why} for b in f.bad]}
            for f in audit.files
        ],
        "aggregates": {name: _range(amount) for name, amount in audit.aggregates.items()},
        "notes": list(audit.notes),
        "sites": [_site(site) for site in audit.sites],
    }  # fmt: skip


def _site(site: Site) -> dict[str, Any]:
    verdict, cost, moves = site.verdict, would_cost(site), site.verdict.moves
    return {
        "name": site.name,
        "needs": verdict.needs.value,
        "proof": verdict.proof.value,
        "tier": verdict.tier and verdict.tier.value,
        "movable_share": verdict.movable_share,
        "moves": moves and {"by": moves.by, "values": list(moves.values), "calls": moves.n_calls},
        "by_owner": verdict.by_owner,
        "asks": verdict.asks,
        "reasons": [
            {"kind": r.kind, "says": r.says.value, "proof": r.proof.value, "text": r.text, "calls": r.n}
            for r in verdict.reasons
        ],
        "month": _range(site.spend.month),
        "would_cost_usd": None if cost is None else format_usd(cost),
        "basis": site.spend.basis,
        "unknown": site.spend.why,
        "unpriced_calls": site.spend.n_unpriced,
        "levers": [
            {"kind": x.kind, "title": x.title, "saves": _range(x.saves), "proof": x.proof.value, "why": x.why,
             "needs": x.needs, "basis": x.basis}
            for x in site.levers
        ],
        "together": _range(site.together),
        "proved": _range(site.proved),
        "code": [plain(code) for code in site.code],
        "warnings": list(site.warnings),
        "facts": _facts(site.facts),
    }  # fmt: skip


def _facts(facts: SiteFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    told = {name: value for name, value in plain(facts).items() if name not in ("site", "models")}
    for name in ("turns", "turn_gap_s", "concurrency", "latency_s", "first_token_s", "first_use_s", "deadline_s",
                 "output_tokens", "input_tokens", "max_output_tokens"):  # fmt: skip
        told[name] = _sample(getattr(facts, name))
    told["models"] = [plain(use) for use in facts.models]
    return told


def _sample(sample: Sample) -> dict[str, Any] | None:
    if not sample.values:
        return None
    return {"n": sample.n_seen, **{f"p{round(q * 100)}": sample.quantile(q) for q in _QUANTILES}}


def _range(amount: Range | None) -> dict[str, str] | None:
    if amount is None:
        return None
    return {f"{name}_usd": format_usd(getattr(amount, name)) for name in ("low", "likely", "high")}


def _row(audit: Audit, site: Site) -> tuple[str, ...]:
    cost, month, days = would_cost(site), site.spend.month, window_days(audit)
    per_day = f"{site.facts.n_calls / max(days, 1 / 24):,.0f}" if site.facts and days is not None else "?"
    return (
        shown(site.name), per_day, "?" if month is None else dollars(month.likely).replace("$", ""),
        WAITS[site.verdict.needs], tier_of(site.verdict), "?" if cost is None else dollars(cost).replace("$", ""),
        shown(proof_of(site.verdict)),
    )  # fmt: skip


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows of text in columns; numbers to the right, the last as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.rjust(w) if i in (1, 2, 5) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def _saving(lever: Lever) -> str:
    if lever.saves is None:
        return "cannot be said"
    counted = "" if lever.proof is not Proof.UNCLEAR else ", not counted"
    return f"saves {spread(lever.saves)} a month{counted}"


def _span(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"


def shown(text: str) -> str:
    """Text from a log or from code as a terminal or a page may show it: no control characters, no turned direction."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def next_step(sites: Sequence[Site]) -> str | None:
    """The site that is worth moving first: the dearest whose saving is proved, else likely."""
    for proof in (Proof.PROVED, Proof.LIKELY):
        movable = [s for s in sites if s.verdict.proof is proof and s.together and s.together.likely > 0]
        if movable:
            return max(movable, key=lambda s: s.together.likely if s.together else 0).name
    return None
