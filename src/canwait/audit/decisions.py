"""The owner's word on call sites, as a file that later audits respect: audit-decisions.yaml.

sites:
  crm/summary.py:17:
    needs: batch              # synchronous, near real time, batch, hybrid, ask the owner
    deadline: 8h
    owner: ana@example.com
    reason: read the next morning
    date: 2026-11-22
    may_share: true           # equal requests may have one answer
    benchmark: small.json     # what `canwait benchmark report --json` said of a smaller model on this site's rows
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ..document import Document, Fault, Unreadable, read_document, read_text
from ..errors import Problem, SpecError
from ..fields import parse_duration
from ..render import Loc, did_you_mean
from ..scalars import quoted
from ..types import Urgency
from .findings import Needs, Smaller
from .verdict import Benchmarked, Decision

DECISIONS = "audit-decisions.yaml"
_HINT = "docs/audit.md says what a decisions file may hold"
_NEEDS = {n.value: n for n in Needs} | {
    Urgency.SYNC.value: Needs.SYNC,
    Urgency.NEAR_REAL_TIME.value: Needs.NEAR_REAL_TIME,
    "ask": Needs.ASK,
}
_WEIGHS = {"accept": 1, "refuse": 2}  # of two comparisons of the same models the one that counts
_LONGEST_KEY = 1000  # YAML wants the colon within 1024 characters of where a plain key begins
_FIELDS = ("needs", "deadline", "owner", "reason", "date", "may_share", "benchmark")
_HEAD = """\
# What the owners of call sites decided; `canwait audit` respects it. Edit it by hand, or let an audit add to it.
# needs: synchronous, near real time, batch, hybrid, or ask the owner
"""


def needs_of(text: str) -> Needs:
    """What `batch` or `near real time` says. Raises ValueError with what may be said."""
    if text not in _NEEDS:
        hint = did_you_mean(text, list(_NEEDS))
        raise ValueError(f"found {text!r}; expected one of: {', '.join(_NEEDS)}{hint}")
    return _NEEDS[text]


def load_decisions(path: Path) -> dict[str, Decision]:
    """The decision on each site. Raises SpecError with every problem at its place."""
    try:
        text = read_text(path)
        is_empty = all(line.lstrip()[:1] in ("", "#") for line in text.splitlines())
        document = read_document(path, "sites: {}" if is_empty else text)
    except Unreadable as error:
        line, column = error.at or (None, None)
        raise SpecError([Problem(str(path), line, column, None, str(error))], hint=_HINT) from None
    except RecursionError:
        raise SpecError([Problem(str(path), None, None, None, "nested too deeply")], hint=_HINT) from None
    decisions = _decisions(document)
    if problems := document.problems():
        raise SpecError(problems, hint=_HINT)
    return decisions


def save_decisions(path: Path, decisions: Mapping[str, Decision]) -> None:
    """Write the file anew, by site; comments in it are not kept. It is there as a whole or as it was before."""
    lines = [_HEAD, "sites:\n" if decisions else "sites: {}\n"]
    for site in sorted(decisions):
        decision = decisions[site]
        name = quoted(site)
        lines.append(f"  {name}:\n" if len(name) < _LONGEST_KEY else f"  ? {name}\n  :\n")
        lines.append(f"    needs: {decision.needs.value}\n")
        if decision.deadline_s is not None:
            lines.append(f"    deadline: {_duration(decision.deadline_s)}\n")
        for name in ("owner", "reason", "date"):
            if (value := getattr(decision, name)) is not None:
                lines.append(f"    {name}: {quoted(str(value))}\n")
        if decision.may_share:
            lines.append("    may_share: true\n")
        if decision.benchmark:
            lines.append(f"    benchmark: {quoted(decision.benchmark.file)}\n")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text("".join(lines), "utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _decisions(document: Document) -> dict[str, Decision]:
    tree = document.tree
    if not isinstance(tree, dict):
        document.faults.append(Fault((), "expected a mapping with `sites`"))
        return {}
    for name in tree:
        if name != "sites":
            document.faults.append(Fault((name,), f"unknown name{did_you_mean(name, ['sites'])}", of_key=True))
    sites = tree.get("sites")
    if sites is None:
        return {}
    if not isinstance(sites, dict):
        document.faults.append(Fault(("sites",), "expected a mapping of call sites"))
        return {}
    found = ((site, _decision(document, ("sites", site), held)) for site, held in sites.items())
    return {site: decision for site, decision in found if decision is not None}


def _decision(document: Document, loc: Loc, held: object) -> Decision | None:
    def fault(name: str, message: str) -> None:
        document.faults.append(Fault((*loc, name), message))

    if not isinstance(held, dict):
        document.faults.append(Fault(loc, f"expected a mapping with {', '.join(_FIELDS)}"))
        return None
    for name in held:
        if name not in _FIELDS:
            message = f"unknown name{did_you_mean(name, _FIELDS)}"
            document.faults.append(Fault((*loc, name), message, of_key=True))
    needs = held.get("needs")
    if not isinstance(needs, str) or needs not in _NEEDS:
        if "needs" in held:
            hint = did_you_mean(needs, list(_NEEDS)) if isinstance(needs, str) else ""
            fault("needs", f"found {needs!r}; expected one of: {', '.join(_NEEDS)}{hint}")
        else:
            document.faults.append(Fault((*loc, "needs"), "is missing", absent=True))
        return None
    values: dict[str, Any] = {}
    try:
        if held.get("deadline") is not None:
            values["deadline_s"] = parse_duration(held["deadline"])
    except ValueError as error:
        fault("deadline", str(error))
    for name in ("owner", "reason"):
        value = held.get(name)
        if value is not None and not isinstance(value, str):
            fault(name, "expected text")
        else:
            values[name] = value
    try:
        if held.get("date") is not None:
            values["date"] = date.fromisoformat(str(held["date"]))
    except ValueError:
        fault("date", f"found {held['date']!r}; expected a date like 2026-11-22")
    if not isinstance(may_share := held.get("may_share", False), bool):
        fault("may_share", "expected true or false")
    else:
        values["may_share"] = may_share
    if held.get("benchmark") is not None:
        try:
            values["benchmark"] = _benchmarked(document.base_dir, held["benchmark"])
        except ValueError as error:
            fault("benchmark", str(error))
    return Decision(_NEEDS[needs], **values)


def _benchmarked(folder: Path, file: object) -> Benchmarked:
    """What the report of a benchmark found of each smaller model. Raises ValueError."""
    if not isinstance(file, str):
        raise ValueError("expected the file of a report: canwait benchmark report PLAN.yaml --json > FILE")
    try:
        value = json.loads((folder / file).read_text("utf-8"))
        report = value["report"]
        models = {arm["arm"]: arm["model"] for arm in report["arms"]}
        found = [
            (models[c["reference"]], models[c["candidate"]], c["decision"]["verdict"], c["decision"]["words"])
            for c in report["comparisons"]
            if c["decision"] is not None
        ]
        source, simulated = f"{file}, {report['at'][:10]}", value["simulated"]
        pairs = [(*map(str, pair), *str(pair[1]).split("/", 1)) for pair in found if pair[0] != pair[1]]
        smaller = {
            large: Smaller(provider, model, verdict == "accept", words, source)
            for large, _, verdict, words, provider, model in sorted(pairs, key=lambda pair: _WEIGHS.get(pair[2], 0))
        }
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{file} is no report: canwait benchmark report PLAN.yaml --json > FILE") from None
    if simulated:
        raise ValueError(f"{file} is of a rehearsal, whose answers are no model's")
    if not smaller:
        raise ValueError(f"{file} compares no small with a large model on gold labels")
    return Benchmarked(file, smaller)


def _duration(seconds: int) -> str:
    return next(
        f"{seconds // n}{unit}" for unit, n in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % n == 0
    )
