"""Which call in the code a name in a log means.

Logs name a call site as `etl/label.py:88`, `etl.label.run`, `Labeller.run`, `run`, or by the name of its prompt or span.
All are read as a path that ends in the most particular part, and meet the code from that end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from .findings import CodeSite

_FILE = re.compile(r"(?P<file>.+\.(?:py|ipynb))(?::+(?P<rest>.*))?", re.DOTALL)
_PARTS = re.compile(r"[/\\.:]+")
NEAR = 5  # lines: a call is longer than one, and a log may be older than the code
_LINE = re.compile(r"(\d{1,9})(?::\d+)?")


def join(code: Sequence[CodeSite], names: Sequence[str]) -> Mapping[str, tuple[CodeSite, ...]]:
    """The calls that each name means: those of one line, or of one function. A name that means none is not there, nor
    is one that may mean several functions: `possible` says which."""
    index = _Index(code)
    return {name: sites for name in names for sites, sure in (index.match(name),) if sure}


def possible(code: Sequence[CodeSite], names: Sequence[str]) -> Mapping[str, tuple[CodeSite, ...]]:
    """All calls that a name may mean, where that is not certain."""
    index = _Index(code)
    return {name: sites for name in names for sites, sure in (index.match(name),) if sites and not sure}


class _Index:
    def __init__(self, code: Iterable[CodeSite]) -> None:
        self.by_last: dict[str, list[tuple[tuple[str, ...], CodeSite]]] = defaultdict(list)  # of module.function
        self.by_file: dict[str, list[tuple[tuple[str, ...], CodeSite]]] = defaultdict(list)
        self.by_label: dict[str, list[CodeSite]] = defaultdict(list)
        for site in code:
            file = _file(site.file)
            self.by_file[file[-1]].append((file, site))
            function = site.function.rpartition(", ")[2].split(".") if site.function else []
            for parts in {tuple(function), tuple(function[-1:])}:  # logs may leave out the class
                if parts:
                    self.by_last[parts[-1]].append((file + parts, site))
            for label in set(site.labels):
                self.by_label[label].append(site)

    def match(self, name: str) -> tuple[tuple[CodeSite, ...], bool]:
        """The calls that match the longest part of a name, and whether it can mean nothing else."""
        name = name.strip()
        if name in self.by_label:
            return _judged(self.by_label[name])
        of_file = _FILE.fullmatch(name)
        if not of_file:
            parts = tuple(p for p in _PARTS.split(name) if p and p != "<locals>")
            sites = _longest(self.by_last, parts)
            return _judged(sites or (_longest(self.by_file, parts) if len(parts) > 1 else ()))
        file, rest = _file(of_file["file"]), of_file["rest"] or ""
        line = _LINE.fullmatch(rest)
        if not line:
            rest_parts = tuple(p for p in _PARTS.split(rest) if p)
            return _judged(_longest(self.by_last, file + rest_parts) if rest_parts else _longest(self.by_file, file))
        sites = _longest(self.by_file, file)
        distances = [abs(site.line - int(line[1])) for site in sites]
        near = [site for site, d in zip(sites, distances, strict=True) if d == min(distances) and d <= NEAR]
        return _judged(near) if near else (sites, False)


def _judged(sites: Sequence[CodeSite]) -> tuple[tuple[CodeSite, ...], bool]:
    return tuple(sites), len({(s.file, s.function) for s in sites}) == 1


def _longest(
    index: Mapping[str, Sequence[tuple[tuple[str, ...], CodeSite]]], wanted: tuple[str, ...]
) -> tuple[CodeSite, ...]:
    """The sites whose path and the wanted one have most at their ends; one of the two must be wholly in the other."""
    best, found = 0, dict[CodeSite, None]()
    for path, site in index.get(wanted[-1], ()) if wanted else ():
        common = 0
        for one, other in zip(reversed(path), reversed(wanted), strict=False):
            if one != other:
                break
            common += 1
        if common < min(len(path), len(wanted)) or common < best:
            continue
        if common > best:
            best, found = common, {}
        found[site] = None
    return tuple(found)


def _file(name: str) -> tuple[str, ...]:
    parts = [p for p in re.split(r"[/\\]", name) if p not in {"", "."}]
    stem = re.sub(r"\.(?:py|ipynb)$", "", parts[-1]) if parts else ""
    return tuple(parts[:-1]) if stem == "__init__" and len(parts) > 1 else (*parts[:-1], stem)
