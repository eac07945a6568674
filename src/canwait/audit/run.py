"""The audit itself: logs and code in, one value out. Reads each log once; what it knows of a price it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from io import BufferedReader
from pathlib import Path

from ..errors import UnknownPrice
from ..prices import lookup
from ..types import Price, Tier
from .calls import Asked, BadLine, Bucket, Call
from .code import CodeFindings, find_calls, reasons_of
from .facts import SiteFacts
from .findings import Audit, CodeSite, LogFile, Needs, Proof, Range, Site, Spend, Verdict
from .gather import OTHER_SITES, Gatherer
from .joining import join, possible
from .levers import levers_of, proved_and_likely, together
from .reading import Log, read_logs
from .spans import Spans
from .spend import Prices, Sized, aggregates, batch_share, percent, sized, spend_of
from .verdict import Decision, contradicted, judge, span

_CODE_ENDINGS = (".py", ".ipynb")
_TIERS = {tier.value: tier for tier in Tier}
_NOTHING = Range(0, 0, 0)
_NO_SPEND = Spend(None, "", 0, "found in code only: no log holds its calls")
_MIXED = Verdict(Needs.ASK, Proof.UNCLEAR, (), None, 0.0, asks="By what name are these calls to be told apart?")
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_DAY_S = 86_400


def audit(
    paths: Sequence[Path],
    *,
    now: datetime,
    price_of: Prices,
    asked: Asked | None = None,
    decisions: Mapping[str, Decision] | None = None,
    since: datetime | None = None,
    seed: int = 0,
    stdin: BufferedReader | None = None,
    progress: Callable[[int], None] = lambda n_calls: None,
) -> Audit:
    """What the logs and the code at these paths say about who can wait, and what it is worth.

    A Python file, and a folder that holds one, is code; all else is logs, "-" is standard input. `since`: calls before
    are left out. `progress` is told the number of calls now and then. Raises SourceError for a path that is neither.
    """
    looked = {path: find_calls(path) for path in paths if path.is_dir() or path.suffix in _CODE_ENDINGS}
    code = {path: found for path, found in looked.items() if found.n_files}
    logs = [path for path in paths if path not in code]
    gatherer, files, spans = Gatherer(seed), list[LogFile](), Spans()
    # Calls go to the gatherer on the way to the buckets, so each log is read once.
    sums = sized(_buckets(read_logs(logs, asked or Asked(), stdin), gatherer, files, spans, since, progress), price_of)
    sites = _sites(gatherer, [site for found in code.values() for site in found.sites], price_of, decisions or {})

    saved = [proved_and_likely(site.levers, site.spend) for site in sites]
    total = sum((site.spend.month for site in sites if site.spend.month), _NOTHING)
    proved, likely = (sum(ranges, _NOTHING) for ranges in ([p for p, _ in saved], [more for _, more in saved]))
    unreadable = [bad for found in code.values() for bad in found.unreadable]
    return Audit(
        made_at=now,
        files=tuple(files),
        first_us=gatherer.first_us,
        last_us=gatherer.last_us,
        n_calls=gatherer.n_calls,
        sites=tuple(sites),
        total=total,
        proved=proved,
        likely=likely,
        not_movable=total.without(proved + likely),
        unpriced_calls=sum(site.spend.n_unpriced for site in sites),
        aggregates=aggregates(sums),
        notes=(*spans.notes(), *_unread(code, logs), *_notes(gatherer, sites, unreadable, decisions or {}, sums=sums)),
    )


def _unread(code: Mapping[Path, CodeFindings], logs: Iterable[Path]) -> Iterator[str]:
    """Files beside code that may have been meant as logs."""
    read = {log.resolve() for log in logs}
    for path, found in code.items():
        left = [name for name in found.logs if (path / name).resolve() not in read]
        if left and path.is_dir():
            files = f"{left[0]} was" if len(left) == 1 else f"{len(left):,} files like {left[0]} were"
            yield f"{path} holds code, so it is read as code: {files} not read; name logs beside the folder"


def prices_of(today: date, overrides: Path | None = None) -> Prices:
    """Prices that hold today, each looked up once."""

    @cache
    def price_of(provider: str, model: str, tier: Tier) -> Price | str:
        try:
            return lookup(provider, model, tier, today=today, overrides=overrides)
        except UnknownPrice as error:
            return str(error)

    return price_of


def _buckets(
    logs: Iterable[Log],
    gatherer: Gatherer,
    files: list[LogFile],
    spans: Spans,
    since: datetime | None,
    progress: Callable[[int], None],
) -> Iterator[Bucket]:
    """The buckets of logs. Their calls are gathered, `files` gets what became of each log, and `spans` when it has calls."""
    since_us = None if since is None else round((since - _EPOCH) / _MICROSECOND)
    for log in logs:
        n_repeated, spanned = 0, spans.of(log)
        for item in log:
            if type(item) is Call:
                if since_us is not None and item.start_us < since_us:
                    continue
                spanned(item)
                n_repeated += not gatherer.add(item)
                if not gatherer.n_calls % 10_000:
                    progress(gatherer.n_calls)
            elif type(item) is Bucket and (since_us is None or item.end_us > since_us):
                yield item
        files.append(log.summary(n_repeated))


def _sites(
    gatherer: Gatherer, code: Sequence[CodeSite], price_of: Prices, decisions: Mapping[str, Decision]
) -> list[Site]:
    """Every call site, dearest first; of unknown cost and of code only last."""
    names = gatherer.names
    joined, unsure = join(code, names), possible(code, names)
    logged = {site for sites in joined.values() for site in sites}
    window_s = ((gatherer.last_us or 0) - (gatherer.first_us or 0)) / 1e6
    sites = []
    for facts in gatherer.facts():
        spend = spend_of(facts, price_of, window_s, start_us=gatherer.first_us)
        judged = _site(facts, spend, joined.get(facts.site, ()), price_of, decisions.get(facts.site))
        if several := unsure.get(facts.site):
            places = ", ".join(f"{code.file}:{code.line}" for code in several[:3])
            more = f" or {len(several) - 3:,} more" if several[3:] else ""
            warning = (
                f"its name may mean {places}{more} in the code, so none of them says who waits: log the file and line"
            )
            judged = replace(judged, warnings=(*judged.warnings, warning))
        sites.append(judged)
    for site in code:
        if site not in logged:
            name = f"{site.file}:{site.line}"
            verdict = judge(None, reasons_of(site), decisions.get(name))
            sites.append(Site(name, None, _NO_SPEND, verdict, (), None, (site,)))
    return sorted(sites, key=lambda s: (s.facts is None, -(s.spend.month.likely if s.spend.month else -1), s.name))


def _site(
    facts: SiteFacts, spend: Spend, code: tuple[CodeSite, ...], price_of: Prices, decision: Decision | None
) -> Site:
    verdict = _MIXED if facts.site == OTHER_SITES else judge(facts, [r for c in code for r in reasons_of(c)], decision)
    levers = levers_of(
        facts,
        verdict,
        spend,
        price_of,
        may_share=decision is not None and decision.may_share,
        smaller=decision.benchmark.smaller if decision and decision.benchmark else None,
        lints=[lint for c in code for lint in c.lints],
    )
    tiers = [lever for lever in levers if lever.kind in _TIERS and lever.proof is not Proof.UNCLEAR]
    best = max(tiers, key=lambda lever: lever.saves.likely if lever.saves else 0, default=None)
    if best and best.saves and best.saves.likely > 0:
        verdict = replace(verdict, tier=_TIERS[best.kind])
    warnings = (*spend.warnings, contradicted(verdict), _due_before_the_window(facts, verdict, decision))
    return Site(
        facts.site,
        facts,
        spend,
        verdict,
        levers,
        together(levers, spend),
        code,
        tuple(warning for warning in warnings if warning),
        proved_and_likely(levers, spend)[0],
    )


def _due_before_the_window(facts: SiteFacts, verdict: Verdict, decision: Decision | None) -> str | None:
    """The tightest time that anybody named or that the log shows, where a batch may take longer."""
    if verdict.tier is not Tier.BATCH:
        return None
    dues: list[tuple[float, str]] = []
    if decision and decision.deadline_s:
        dues.append((decision.deadline_s, "the owner's deadline"))
    if facts.deadline_s.values:
        dues.append((facts.deadline_s.quantile(0.05), "the declared deadline (p5)"))
    late = (
        [v for v in facts.first_use_s.values if v > 3600] if verdict.needs is Needs.HYBRID else facts.first_use_s.values
    )
    if late:
        dues.append((late[len(late) // 20], "the first use (p5)"))
    if facts.arrivals and facts.arrivals.period_s:
        dues.append((facts.arrivals.period_s, "the next run"))
    due_s, what = min(dues, default=(_DAY_S, ""))
    if due_s >= _DAY_S:
        return None
    return f"a batch may take 24 h, and {what} is {span(due_s)} after the call: make that the job's deadline"


def _notes(
    gatherer: Gatherer,
    sites: Sequence[Site],
    unreadable: Sequence[BadLine],
    decisions: Mapping[str, Decision],
    *,
    sums: Sequence[Sized],
) -> Iterator[str]:
    """What a reader must know about the audit as a whole."""
    if sums:
        yield "usage and cost reports size what was spent; they do not show who waits, so nothing of them is counted as a saving"
    if (batch := batch_share(sums)) is not None:
        yield f"of what these reports size, {percent(batch)} is on the batch tier already"
    unsized = [s for s in sums if s.month is None and s.counted]
    for s in unsized[:5]:
        yield f"{s.provider}/{s.model}: {s.n_calls:,} calls of a report have no cost: {s.why}"
    if len(unsized) > 5:
        yield f"{len(unsized) - 5:,} more models of reports have no cost"
    if gatherer.n_calls and (gatherer.last_us or 0) - (gatherer.first_us or 0) < 7 * _DAY_S * 1_000_000:
        yield "the logs cover less than a week: what happens on the other days of the week is not known"
    if gatherer.n_other_calls:
        yield f"{gatherer.n_other_calls:,} calls of ever more call sites are summed under {OTHER_SITES}: group by another name"
    if any(site.name == "" for site in sites):
        yield "some calls name no call site: say what does, or they are judged as one"
    if gatherer.n_ids_forgotten:
        yield "there are more record ids than are kept: a call that is in the logs twice may be counted twice"
    skewed = sum(site.facts.n_clock_skew for site in sites if site.facts)
    if skewed:
        yield f"{skewed:,} calls end, or are used, before they start: the clocks that wrote the logs disagree"
    for bad in unreadable[:5]:
        yield f"{bad.file}:{bad.line}: not read: {bad.why}"
    if len(unreadable) > 5:
        yield f"{len(unreadable) - 5:,} more files of code were not read"
    names = {site.name for site in sites}
    for unknown in sorted(decisions.keys() - names):
        meant = get_close_matches(unknown, names, n=1)
        yield f"decided, but not found: {unknown!r}{f'; is it now {meant[0]!r}?' if meant else ''}"
