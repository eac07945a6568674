"""From when to when each log format has calls, so that two exports of the same calls are told: their ids are not the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

from .calls import Call
from .reading import Log

_MOST = 10_000  # sites with a model of one format whose times are kept
_TOLD = 3  # of each kind


_Found = dict[tuple[str, str], list[int]]  # of a site and a model: the first and the last start


class Spans:
    """When each format has calls."""

    def __init__(self) -> None:
        self._by_format: dict[str, _Found] = {}
        self._log: Log | None = None
        self._of_log: _Found = {}

    def of(self, log: Log) -> Callable[[Call], None]:
        """Notes the calls of a log, which is read before the next one is asked for."""
        self._keep()
        found: _Found = {}
        self._log, self._of_log = log, found

        def add(call: Call) -> None:
            start_us, key = call.start_us, (call.site, call.model)
            span = found.get(key)
            if span is None:
                if len(found) < _MOST:
                    found[key] = [start_us, start_us]
            elif start_us > span[1]:
                span[1] = start_us
            elif start_us < span[0]:
                span[0] = start_us

        return add

    def _keep(self) -> None:
        if self._log is not None:
            kept = self._by_format.setdefault(self._log.title, {})
            for key, span in self._of_log.items():
                before = kept.get(key, span)
                if key in kept or len(kept) < _MOST:
                    kept[key] = [min(before[0], span[0]), max(before[1], span[1])]
            self._log = None

    def notes(self) -> Iterator[str]:
        """Where two formats have calls of one site, or else of one model, at the same time."""
        for place, what in ((0, "of the site"), (1, "of the model")):
            found = self._overlaps(place)
            for name, (first, second) in list(found.items())[:_TOLD]:
                yield (
                    f"{first} and {second} have calls {what} {name!r} at the same time: calls that are in both are counted "
                    "twice, so give one of the two"
                )
            if len(found) > _TOLD:
                yield f"so it is with {len(found) - _TOLD:,} more"
            if found:
                return

    def _overlaps(self, place: int) -> dict[str, tuple[str, str]]:
        self._keep()
        spans: dict[str, dict[str, list[int]]] = {}  # of a name, by format
        for title, found in self._by_format.items():
            for key, (first_us, last_us) in found.items():
                span = spans.setdefault(key[place], {}).setdefault(title, [first_us, last_us])
                span[:] = min(span[0], first_us), max(span[1], last_us)
        overlaps: dict[str, tuple[str, str]] = {}
        for name, by_format in sorted(spans.items()):
            for (a, one), (b, other) in combinations(sorted(by_format.items()), 2):
                if name and one[0] <= other[1] and other[0] <= one[1]:
                    overlaps.setdefault(name, (a, b))
        return overlaps
