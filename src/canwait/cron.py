"""A cron schedule as time: when it fires next, and the longest it ever waits. Five fields, in UTC. Pure.

A day matches by its number in the month or by its weekday where both are restricted, as cron has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise

_DAY_S = 86_400
_FIELDS = (  # name, lowest, highest, words for them
    (0, 59, ""),
    (0, 23, ""),
    (1, 31, ""),
    (1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    (0, 7, "sun mon tue wed thu fri sat"),
)
_FROM = date(2000, 1, 1)
_CYCLE_DAYS = 400 * 365 + 97  # after 400 years the calendar repeats itself, weekdays too


def next_fire(schedule: str, after: datetime) -> datetime | None:
    """The first time it fires after that moment; None for one that never does, as 30 February."""
    times = _times(schedule)
    start = after.astimezone(UTC).date()
    for day in _days(schedule, start, _CYCLE_DAYS):
        for second in times:
            at = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(seconds=second)
            if at > after:
                return at
    return None


@lru_cache(64)
def longest_gap_s(schedule: str) -> int | None:
    """The most seconds from one firing to the next, through leap years and centuries; None for one that never fires."""
    times = _times(schedule)
    days = [day.toordinal() for day in _days(schedule, _FROM, _CYCLE_DAYS)]
    if not days:
        return None
    apart = max(b - a for a, b in pairwise([*days, days[0] + _CYCLE_DAYS]))
    within = max((b - a for a, b in pairwise(times)), default=0)
    return max(within, apart * _DAY_S - times[-1] + times[0])


def _times(schedule: str) -> list[int]:
    """Seconds of a day at which it fires, rising."""
    minutes, hours, *_ = _sets(schedule)
    return [3600 * hour + 60 * minute for hour in sorted(hours) for minute in sorted(minutes)]


def _days(schedule: str, start: date, count: int) -> Iterator[date]:
    """The days on which it fires, of so many from `start`."""
    _, _, days, months, weekdays = _sets(schedule)
    texts = schedule.split()
    either = not (texts[2].startswith("*") or texts[4].startswith("*"))
    for n in range(count):
        day = start + timedelta(n)
        if day.month in months:
            by_number, by_weekday = day.day in days, day.isoweekday() % 7 in weekdays
            if (by_number or by_weekday) if either else (by_number and by_weekday):
                yield day


def _sets(schedule: str) -> list[set[int]]:
    """What each field of a valid schedule allows; Sunday is 0."""
    found = []
    for part, (low, high, words) in zip(schedule.lower().split(), _FIELDS, strict=True):
        named = {word: low + i for i, word in enumerate(words.split())}
        allowed: set[int] = set()
        for item in part.split(","):
            ends, slash, step = item.partition("/")
            first, dash, last = ends.partition("-")
            begin = low if ends == "*" else named[first] if first in named else int(first)
            end = named[last] if last in named else int(last) if dash else high if slash or ends == "*" else begin
            allowed.update(range(begin, end + 1, int(step or 1)))
        found.append(allowed)
    found[4] = {weekday % 7 for weekday in found[4]}
    return found
