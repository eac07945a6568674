"""How many rows a host is given at a time: fewer as soon as it says so, more again slowly; none while it asked to wait."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from .http import retry_after_s

_DURATION = re.compile(
    r"(?:(\d{1,4})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_LONGEST_S = 3600.0


class Pressure:
    """Halves on a refusal, at most once for all that was sent before; grows by one for every `limit` rows taken.

    Until the first refusal it doubles that fast instead, from `start` to `most`. Times are seconds of one monotonic clock.
    """

    def __init__(self, *, start: int, most: int) -> None:
        self.limit, self.most = min(start, most), most
        self._found = start >= most  # whether the host has shown how much it takes
        self._n_taken = 0
        self._held_until = 0.0
        self._cut_at = 0.0

    def room(self, n_asking: int, now: float) -> int:
        """How many more may be asked now."""
        return 0 if now < self._held_until else max(0, self.limit - n_asking)

    def taken(self) -> None:
        """A row was answered."""
        self._n_taken += 1
        if self._n_taken >= self.limit < self.most:
            self._n_taken = 0
            self.limit = min(self.most, self.limit + 1 if self._found else 2 * self.limit)

    def pressed(self, wait_s: float, sent_at: float, now: float) -> None:
        """A row sent at `sent_at` was refused because there are too many."""
        self._held_until = max(self._held_until, now + wait_s)
        if sent_at >= self._cut_at:
            self._found, self._n_taken, self._cut_at = True, 0, now
            self.limit = max(1, self.limit // 2)

    def hold(self, wait_s: float, now: float) -> None:
        """The host said that nothing is left until then."""
        self._held_until = max(self._held_until, now + wait_s)


def used_up_s(headers: Mapping[str, str]) -> float:
    """For how long a host has nothing left by its rate limit headers (OpenAI's and Anthropic's); 0: it does not say."""
    waits = [0.0]
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}") == "0":
            waits.append(_duration_s(headers.get(f"x-ratelimit-reset-{what}", "")))
        if headers.get(f"anthropic-ratelimit-{what}-remaining") == "0":
            waits.append(_until_s(headers.get(f"anthropic-ratelimit-{what}-reset", ""), headers))
    return min(max(waits), _LONGEST_S)


def _duration_s(text: str) -> float:
    """ "6m0s", "1s", "20ms" """
    match = _DURATION.fullmatch(text)
    hours, minutes, seconds, ms = (float(part or 0) for part in match.groups()) if match else (0.0,) * 4
    return hours * 3600 + minutes * 60 + seconds + ms / 1000


def _until_s(text: str, headers: Mapping[str, str]) -> float:
    """RFC 3339, counted from the reply's own Date."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    if at.tzinfo is None:
        return 0.0
    date = at.strftime("%a, %d %b %Y %H:%M:%S %z")  # what Retry-After may say too
    return retry_after_s({"retry-after": date, "date": headers.get("date", "")}) or 0.0
