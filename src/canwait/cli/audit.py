"""audit, worth: which calls can wait, and what moving them is worth."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotFound, Problem, SpecError
from .face import Face, options

if TYPE_CHECKING:
    from ..audit.calls import Asked
    from ..audit.findings import Audit, Site

_HERE = Path()


@click.command()
@click.argument(
    "paths", metavar="LOGS_OR_CODE...", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True)
)
@click.option("--window", metavar="DURATION", help="Only calls of the last 7d, 24h, ..., counted from now.")
@click.option("--by", multiple=True, metavar="NAME", help="The tag, attribute or column that names a call site.")
@click.option(
    "--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="What a column of a plain table holds."
)
@click.option("--format", "format_", metavar="NAME", help="The log's format; else it is found out.")
@click.option("--provider", default="", metavar="NAME", help="Of calls whose log does not say.")
@click.option("--decisions", type=click.Path(path_type=Path), help="The owners' decisions; else audit-decisions.yaml.")
@click.option("--decide", multiple=True, metavar="SITE=NEEDS", help="Note an owner's decision in that file first.")
@click.option("--reason", metavar="TEXT", help="Why, for --decide.")
@click.option("--owner", metavar="NAME", help="Who decided, for --decide.")
@click.option("--deadline", metavar="DURATION", help="When its answers are needed, for --decide.")
@click.option("--site", "name", metavar="SITE", help="Show all there is to say about one call site.")
@click.option("--all", "every", is_flag=True, help="Show sites below $1 a day, too.")
@click.option(
    "--worksheet", type=click.Path(path_type=Path), help="With --site: what the logs say, for `canwait worth`."
)
@click.option(
    "--own-gpu",
    "slots",
    type=click.IntRange(1),
    metavar="SLOTS",
    help="With --worksheet: the logs are of own servers, each of which runs so many calls at once.",
)
@click.option("--at-least", type=click.IntRange(0), default=1, show_default=True, help="Servers that are kept anyway.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=_HERE,
              help="Folder for audit.json and audit.html; else here.")  # fmt: skip
@options()
def audit(
    face: Face, paths: tuple[Path, ...], window: str | None, by: tuple[str, ...], columns: tuple[str, ...],
    format_: str | None, provider: str, decisions: Path | None, decide: tuple[str, ...], reason: str | None,
    owner: str | None, deadline: str | None, name: str | None, every: bool, worksheet: Path | None,
    slots: int | None, at_least: int, output: Path,
) -> None:  # fmt: skip
    """Show which calls can wait, with proof, and what moving them would save. Reads logs and Python code."""
    from ..audit.calls import Asked
    from ..audit.decisions import DECISIONS
    from ..audit.page import as_html
    from ..audit.report import HIDE_BELOW, as_text, next_step, shown, site_text, to_json
    from ..audit.run import audit as audited
    from ..audit.run import prices_of
    from ..prices import find_overrides

    now = datetime.now(UTC)
    if worksheet is not None and name is None:
        raise SpecError(
            [Problem("--worksheet", None, None, None, "is of one call site")], hint="say which with --site SITE"
        )
    file = decisions or (Path(DECISIONS) if decide or Path(DECISIONS).is_file() else None)
    decided = _decisions(file, decide, reason, owner, deadline, now) if file else {}
    asked = Asked(by, _mapping(columns), format_, provider)
    since = now - timedelta(seconds=_duration("--window", window)) if window else None
    found = audited(
        paths, now=now, asked=asked, decisions=decided, since=since,
        price_of=prices_of(now.date(), find_overrides(_HERE, os.environ.get("CANWAIT_PRICES"))),
        progress=_progress(face),
    )  # fmt: skip
    value = {
        "read": {
            "paths": [str(path) if str(path) == "-" else str(path.resolve()) for path in paths], "by": list(by),
            "columns": dict(asked.columns), "format": format_, "provider": provider,
            "decisions": None if file is None else str(file.resolve()),
        },
        **to_json(found),
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "audit.json", json.dumps({"schema": "canwait.audit/1", "simulated": False, **value}, indent=1))
    _write(output / "audit.html", as_html(found))
    if name is not None:
        text = site_text(_site(found, name))
    else:
        text = as_text(found, hide_below=0 if every else HIDE_BELOW)
    if worksheet is not None and name is not None:
        site, known = _site(found, name), dict[str, Any]()
        if slots is not None:
            decision = decided.get(name)
            wait_s = decision.deadline_s if decision and decision.deadline_s else 86_400
            known, lines = _own_gpu(found, paths, asked, name, since, slots, at_least, wait_s)
            text = "\n".join([text, *(f"  {line}" for line in lines)])
        _write(worksheet, _worksheet(found, site, now, known))
        face.note(f"wrote {worksheet}; what is missing in it is for its owner: canwait worth {worksheet} --ask")
    face.show("canwait.audit/1", value, text)
    face.note(f"wrote {output / 'audit.json'}, {output / 'audit.html'}")
    if name is None and (first := next_step(found.sites)):
        face.note(f"next: canwait init --from-audit {_quoted(shown(first))}")


@click.command()
@click.argument("worksheet", metavar="WORKSHEET.YAML", type=click.Path(path_type=Path))
@click.option("--ask", is_flag=True, help="Ask for what is missing, and keep the answers in the worksheet.")
@click.option("--who", default="the owner", show_default=True, help="Who answers, kept as the source.")
@click.option("--seed", default=0, show_default=True, help="Of the draws over the stated ranges.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write it as Markdown.")
@options()
def worth(face: Face, worksheet: Path, ask: bool, who: str, seed: int, output: Path | None) -> None:
    """Show what moving a call site is worth: ranges, break-evens, and what could erase it."""
    from random import Random

    from ..audit.economics import assess, words
    from ..audit.worksheet import answered, one_line, questions, read_worksheet, write_markdown, write_yaml
    from ..codec import plain

    sheet = read_worksheet(worksheet)
    if ask:
        today = datetime.now(UTC).date()
        for question in questions(sheet):
            if face.no_input:
                break
            while text := click.prompt(
                f"{question.title}: {question.ask} (such as {question.example}; Enter: not known)", default="",
                show_default=False, err=True,
            ):  # fmt: skip
                try:
                    sheet = answered(sheet, question.name, text, source=who, as_of=today)
                except ValueError as error:
                    face.note(str(error))
                else:
                    break
        _write(worksheet, write_yaml(sheet))
    found = assess(sheet, Random(seed))
    lines = words(found)
    if output is not None:
        _write(output, write_markdown(sheet, lines))
        face.note(f"wrote {output}")
    value = {
        "worksheet": str(worksheet), "site": found.site, "case": found.case.value, "verdict": found.verdict,
        "known": {f"{n}_usd": _usd(getattr(found.known, n)) for n in ("low", "likely", "high")},
        "chance": None if found.chance is None else plain(found.chance),
        "tornado": [
            {"input": s.name, "at_bad_usd": _usd(s.at_bad), "at_good_usd": _usd(s.at_good),
             "break_even": None if s.break_even is None else str(s.break_even), "can_erase": s.can_erase}
            for s in found.tornado
        ],
        "missing": [
            {"input": gap.name, "title": gap.title, "limit": None if gap.limit is None else str(gap.limit), "ask": gap.ask}
            for gap in found.gaps
        ],
        "break_even_delay_h": None if found.delay_h is None else str(found.delay_h),
        "warnings": list(found.warnings),
    }  # fmt: skip
    face.show("canwait.worth/1", value, "\n".join([one_line(found.site), *(f"  {line}" for line in lines)]))


def load_audit(file: Path) -> Mapping[str, Any]:
    """An audit.json. Raises SpecError for a file that is none."""
    import jsonschema_rs

    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound(
            f"There is no {file}.", what="audit", name=str(file), hint="`canwait audit LOGS` writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise SpecError([Problem(str(file), None, None, None, f"cannot be read: {error}")]) from None
    schema = json.loads((Path(__file__).parent.parent / "schemas" / "audit.v1.json").read_text("utf-8"))
    if wrong := next(jsonschema_rs.Draft202012Validator(schema).iter_errors(value), None):
        problem = Problem(str(file), None, None, ".".join(map(str, wrong.instance_path)) or None, wrong.message[:300])
        raise SpecError([problem], hint="`canwait audit LOGS` writes it anew")
    assert isinstance(value, dict)
    return value


def _decisions(
    file: Path, decide: tuple[str, ...], reason: str | None, owner: str | None, deadline: str | None, now: datetime
) -> Mapping[str, Any]:
    from ..audit.decisions import load_decisions, needs_of, save_decisions
    from ..audit.verdict import Decision

    decided = load_decisions(file) if file.exists() or not decide else {}
    for text in decide:
        site, _, needs = text.rpartition("=")
        try:
            if not site:
                raise ValueError(f"found {text!r}; expected SITE=NEEDS")
            decision = Decision(
                needs_of(needs), _duration("--deadline", deadline) if deadline else None, owner, reason, now.date()
            )
        except ValueError as error:
            raise SpecError([Problem("--decide", None, None, None, str(error))]) from None
        decided = {**decided, site: decision}
    if decide:
        save_decisions(file, decided)
    return decided


def _own_gpu(
    found: Audit, paths: tuple[Path, ...], asked: Asked, name: str, since: datetime | None, slots: int, at_least: int,
    wait_s: int,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """What the site's calls hold of own servers: an input of its worksheet, and it all in lines of text."""
    from ..audit.capacity import Replica
    from ..audit.economics import warm_hours
    from ..audit.warm import told, trace_of

    since_us = None if since is None else round(since.timestamp() * 1e6)
    trace, replica = trace_of(paths, asked, name, since_us), Replica(slots, at_least)
    hours = warm_hours(trace, replica, source=_source(found), as_of=found.made_at.date())
    return {"warm_hours_avoided": hours}, told(trace, replica, wait_s)


def _worksheet(found: Audit, site: Site, now: datetime, known: dict[str, Any]) -> str:
    """The worksheet of a site; with warm hours in `known` it is of own servers, else of a price per token."""
    from ..audit.worksheet import Case, Stated, from_facts, usd, write_yaml

    if site.facts is None:
        raise SpecError([Problem("--worksheet", None, None, site.name, "stands in code only; no log holds its calls")])
    source, today, case = _source(found), now.date(), Case.OWN_GPU if known else Case.TOKENS
    if case is Case.TOKENS and site.spend.month:
        tier = next(
            (lever for lever in site.levers if site.verdict.tier and lever.kind == site.verdict.tier.value), None
        )
        moved = tier.move if tier else None
        known["realtime_cost"] = usd(moved.month if moved else site.spend.month, site.spend.basis or source, today)
        if tier and moved:
            known["batch_share"] = Stated(moved.low, moved.likely, moved.high, tier.basis or source, today)
    return write_yaml(from_facts(site.facts, case, source=source, as_of=today, known=known))


def _source(found: Audit) -> str:
    return f"canwait audit of {', '.join(file.file for file in found.files)}"[:200]


def _site(found: Audit, name: str) -> Site:
    from ..render import did_you_mean

    sites = {site.name: site for site in found.sites}
    if name not in sites:
        near = did_you_mean(name, list(sites))
        raise NotFound(
            f"No call site is named {name!r}{near}.", what="site", name=name, hint="leave --site out to see all"
        )
    return sites[name]


def _mapping(columns: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in columns]
    if wrong := next(
        (text for text, (field, _, column) in zip(columns, pairs, strict=True) if not (field and column)), None
    ):
        raise SpecError([Problem("--column", None, None, None, f"found {wrong!r}; expected FIELD=COLUMN")])
    return {field: column for field, _, column in pairs}


def _duration(flag: str, text: str) -> int:
    from ..fields import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise SpecError([Problem(flag, None, None, None, str(error))]) from None


def _progress(face: Face) -> Any:
    if face.quiet or not sys.stderr.isatty():
        return lambda n_calls: None
    return lambda n_calls: click.echo(f"\r{n_calls:,} calls read", err=True, nl=False)


def _write(path: Path, text: str) -> None:
    from ..sinks.atomic import replacing

    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))


def _usd(amount: Any) -> str:
    return f"{amount:.6f}"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
