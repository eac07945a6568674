"""What readers accept of a job, as an Open Data Contract Standard document (3.1), and back.

`latency` is the standard's word for the age of data at its reader; it holds the strictest age that any reader accepts, for
tools that know nothing of readers. Who they are, and what each accepts, stands in the custom property `canwaitReaders`.
Structure and words: the standard's JSON Schema v3.1.0, section `slaProperties` of its documentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from .cron import longest_gap_s
from .document import Fault, Unreadable, read_document
from .errors import Problem, SpecError
from .freshness import MAX_AGE_S, MAX_MISSED_RUNS, Contract, OnStale

_READERS = "canwaitReaders"
_LATENCY = ("latency", "ly", "freshness")  # the standard's word, its code, and the word of older documents
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_WORDS = {
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "minute", "minutes"), "min"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("week", "weeks"), "w"),
    **dict.fromkeys(("yr", "year", "years"), "y"),
}
_NOT_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_SCALARS = ("string", "integer", "number", "boolean")


def to_odcs(
    job: str,
    contracts: Sequence[Contract],
    *,
    id: str,
    version: int,
    published: bool,
    owner: str | None,
    schedule: str | None,
    key: str | None,
    output_schema: Mapping[str, Any] | None,
    embeds: bool = False,
) -> dict[str, Any]:
    """`version`: of these terms. `key`: the key column, None for a job that never ran."""
    document: dict[str, Any] = {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": id,
        "name": job,
        "version": str(version),
        "status": "active" if published else "draft",
    }
    if owner is not None:
        document["team"] = {"name": owner}
    if key is not None:
        columns = [
            {"name": key, "logicalType": "string", "primaryKey": True, "primaryKeyPosition": 1, "required": True}
        ]
        document["schema"] = [
            {"name": job, "logicalType": "object", "properties": [*columns, *_columns(output_schema, embeds)]}
        ]
    document["slaProperties"] = list(_promises(job, contracts, schedule))
    readers = [
        {"reader": c.reader, "maxAgeSeconds": c.max_age_s, "onStale": c.on_stale, "missedRuns": c.missed_runs}
        for c in contracts
    ]
    document["customProperties"] = [{"property": _READERS, "value": readers}]
    return document


def _columns(output_schema: Mapping[str, Any] | None, embeds: bool) -> Iterator[dict[str, Any]]:
    if embeds:
        yield {"name": "embedding", "logicalType": "array", "items": {"logicalType": "number"}}
        return
    if not output_schema:
        yield {"name": "output", "logicalType": "string"}
        return
    for name, field in (output_schema.get("properties") or {}).items():
        required = name in (output_schema.get("required") or ())
        yield {"name": name, "logicalType": _logical(field), "required": required}


def _logical(field: Any) -> str:
    """As the column is: what has no single type, or no stated shape, is text."""
    kinds = field.get("type") if isinstance(field, Mapping) else None
    kinds = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
    kind = kinds[0] if len(kinds) == 1 else None
    shaped = {"array": "items", "object": "properties"}.get(kind) if isinstance(kind, str) else None
    is_told = kind in _SCALARS or (shaped is not None and field.get(shaped))
    return str(kind) if is_told else "string"


def _promises(job: str, contracts: Sequence[Contract], schedule: str | None) -> Iterator[dict[str, Any]]:
    if contracts:
        strictest = min(contracts, key=lambda c: c.max_age_s)
        words = f"age counted from when the input was read; the strictest reader is {strictest.reader}"
        yield {"property": "latency", **_amount(strictest.max_age_s), "element": job, "description": words}
    if schedule is not None and (gap_s := longest_gap_s(schedule)) is not None:
        yield {"property": "frequency", **_amount(gap_s), "element": job, "scheduler": "cron", "schedule": schedule}


def _amount(seconds: int) -> dict[str, Any]:
    """In the largest unit of which it is a whole number."""
    unit = next(u for u in ("d", "h", "min", "s") if seconds % _UNITS[u] == 0)
    return {"value": seconds // _UNITS[unit], "unit": unit}


def odcs_text(document: Mapping[str, Any]) -> str:
    """As YAML that every version of YAML reads alike: what is not a plain word is quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        plain = value.isascii() and value.isalpha() and value.lower() not in _NOT_WORDS
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    Dumper.add_representer(str, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_odcs(path: Path, job: str, reader: str | None = None) -> list[Contract]:
    """The contracts in a document: of the readers it names, or, where it names none, of `reader` with its latency.

    A document with several latencies is read by the strictest. Raises SpecError with every fault at its line.
    """
    try:
        document = read_document(path)
    except Unreadable as error:
        line, column = error.at or (None, None)
        raise SpecError([Problem(str(path), line, column, None, str(error))]) from None
    tree = document.tree if isinstance(document.tree, dict) else {}
    faults = document.faults
    if tree.get("kind") != "DataContract" or not str(tree.get("apiVersion", "")).startswith("v3."):
        faults.append(Fault((), "expected `kind: DataContract` and `apiVersion: v3.1.0`"))
    customs, promises = (_list(tree.get(name)) for name in ("customProperties", "slaProperties"))
    places = [n for n, custom in enumerate(customs) if custom.get("property") == _READERS]
    found: list[Contract] = []
    for n in places:
        for i, item in enumerate(_list(customs[n].get("value"))):
            contract = _contract(job, item)
            if contract is None:
                why = (
                    f"expected reader, maxAgeSeconds from 1 to {MAX_AGE_S}, onStale (serve, block, refresh, live) and "
                    f"missedRuns from 0 to {MAX_MISSED_RUNS}"
                )
                faults.append(Fault(("customProperties", n, "value", i), why))
            else:
                found.append(contract)
    if not places and not faults:
        ages = []
        for n, promise in enumerate(promises):
            if promise.get("property") in _LATENCY:
                age = _seconds(promise)
                if age is None:
                    most = f"at most {MAX_AGE_S // _UNITS['d']} d"
                    what = f"expected a value above 0, and {most}, in one of {', '.join(_UNITS)}"
                    faults.append(Fault(("slaProperties", n), what))
                else:
                    ages.append(age)
        if not faults and not ages:
            faults.append(Fault(("slaProperties",), "there is no `latency`, so it does not say how old data may be"))
        elif reader is None:
            faults.append(Fault((), "it names no reader: say --reader NAME"))
        elif not faults:
            found.append(Contract(job, reader, min(ages), "block"))
    if faults:
        raise SpecError(document.problems())
    return found


def _list(value: object) -> list[dict[str, Any]]:
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []


def _contract(job: str, item: Mapping[str, Any]) -> Contract | None:
    reader, on_stale = item.get("reader"), item.get("onStale", "block")
    age, missed = item.get("maxAgeSeconds"), item.get("missedRuns", 0)
    if not (isinstance(reader, str) and reader and on_stale in get_args(OnStale)):
        return None
    if not (type(age) is int and 1 <= age <= MAX_AGE_S and type(missed) is int and 0 <= missed <= MAX_MISSED_RUNS):
        return None
    return Contract(job, reader, age, on_stale, missed)


def _seconds(promise: Mapping[str, Any]) -> int | None:
    """Whole seconds, rounded down: a reader is never promised more than was agreed."""
    unit = str(promise.get("unit") or "d").lower()
    each = _UNITS.get(_WORDS.get(unit, unit))
    try:
        value = float(str(promise.get("value")))
    except ValueError:
        return None
    if each is None or not math.isfinite(value) or isinstance(promise.get("value"), bool):
        return None
    seconds = math.floor(min(value * each, MAX_AGE_S + 1))
    return seconds if 1 <= seconds <= MAX_AGE_S else None
