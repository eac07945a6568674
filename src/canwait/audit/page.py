"""An audit as one HTML file that loads nothing: no script, no font, no image from elsewhere. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from .facts import Arrivals
from .findings import Audit, Proof, Site
from .report import WAITS, dollars, headline, proof_of, shown, spread, tier_of, window_days, would_cost

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_BARS = 20
_BAR_WIDTH = 420  # of the dearest site, in units of the drawing
_LABEL = 34  # characters
_DETAILED = 100  # sites that are shown one by one: the page stays readable, audit.json has all


def as_html(audit: Audit) -> str:
    """The whole page."""
    from jinja2 import Environment, StrictUndefined

    text = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    return page.from_string(text).render(
        headline=headline(audit),
        made_at=f"{audit.made_at:%Y-%m-%d %H:%M} UTC",
        money=audit.n_calls > audit.unpriced_calls,
        total=spread(audit.total),
        proved=spread(audit.proved),
        likely=spread(audit.likely),
        not_movable=spread(audit.not_movable),
        notes=audit.notes,
        sites=[_site(site, window_days(audit)) for site in audit.sites],
        n_detailed=_DETAILED,
        bars=_bars(audit),
        aggregates=[(name, spread(amount)) for name, amount in audit.aggregates.items()],
        files=[
            {"file": f.file, "format": f.format, "calls": f"{f.n_calls:,}", "repeated": f"{f.n_repeated:,}",
             "bad": f"{f.n_bad:,}", "bad_lines": f.bad}
            for f in audit.files
        ],
    )  # fmt: skip


def _shown(value: object) -> object:
    return shown(value) if isinstance(value, str) else value


def _site(site: Site, days: float | None) -> Mapping[str, Any]:
    verdict, month, cost, facts = site.verdict, site.spend.month, would_cost(site), site.facts
    return {
        "name": site.name,
        "per_day": f"{facts.n_calls / max(days, 1 / 24):,.0f}" if facts and days is not None else "unknown",
        "month": dollars(month.likely) if month else "unknown",
        "waits": WAITS[verdict.needs],
        "tier": tier_of(verdict),
        "would_cost": "unknown" if cost is None else dollars(cost),
        "proof": proof_of(verdict),
        "needs": verdict.needs.value,
        "proof_class": verdict.proof.value,
        "by_owner": verdict.by_owner,
        "cost": f"Costs {spread(month)} a month ({site.spend.basis})." if month else f"Cost unknown: {site.spend.why}.",
        "asks": verdict.asks,
        "reasons": [{"text": r.text, "kind": r.kind, "calls": f"{r.n:,}"} for r in verdict.reasons],
        "levers": [
            {"title": x.title, "saves": spread(x.saves) if x.saves else "cannot be said", "why": x.why,
             "proof": x.proof.value if x.proof is not Proof.UNCLEAR else "unclear, not counted", "needs": x.needs,
             "basis": x.basis}
            for x in site.levers
        ],
        "together": spread(site.together) if site.together else None,
        "code": site.code,
        "warnings": site.warnings,
        "week": _week(facts.arrivals) if facts and facts.arrivals else None,
    }  # fmt: skip


def _bars(audit: Audit) -> list[Mapping[str, Any]]:
    """The dearest sites, as widths of a drawing."""
    dearest = [site for site in audit.sites if site.spend.month and site.spend.month.likely > 0][:_BARS]
    most = max((site.spend.month.likely for site in dearest if site.spend.month), default=0)
    bars: list[Mapping[str, Any]] = []
    for site in dearest:
        assert site.spend.month
        month, saves = site.spend.month.likely, max(site.together.likely, 0) if site.together else 0
        proved = min(saves, max(site.proved.likely, 0)) if site.proved else 0
        likely = saves - proved
        bars.append(
            {"name": site.name, "label": site.name if len(site.name) <= _LABEL else f"...{site.name[3 - _LABEL :]}",
             "month": dollars(month), "proved_usd": dollars(proved), "likely_usd": dollars(likely)}
            | {name: part * _BAR_WIDTH // most for name, part in
               (("stay", month - saves), ("proved", proved), ("likely", likely))}
        )  # fmt: skip
    return bars


def _week(arrivals: Arrivals) -> list[Mapping[str, Any]]:
    most = max(arrivals.hour_of_week) or 1
    return [
        {"name": name, "hours": [{"calls": n, "shade": f"{n / most:.2f}"} for n in arrivals.hour_of_week[24 * d : 24 * d + 24]]}
        for d, name in enumerate(_DAYS)
    ]  # fmt: skip
