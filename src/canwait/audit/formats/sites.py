"""The name that calls are grouped by, and what a caller declares about a call, wherever a log keeps its tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..calls import Asked
from .values import Fields, ahead_s, first_named, named, when_us

SITE_TAGS = ("canwait.site", "call_site", "feature", "use_case", "task", "component", "app")  # looked for in this order
DEADLINE, TRIGGER, FIRST_USED = "canwait.deadline_s", "canwait.trigger", "canwait.first_used_at"

_KINDS = {  # words for what starts work, in ours; what is not here stays as it is
    "timer": "cron",
    "schedule": "cron",
    "scheduled": "cron",
    "pubsub": "queue",
    "datasource": "event",
    "request": "http",
}


def site_of(asked: Asked, places: Sequence[Fields], *otherwise: object) -> str:
    """The name of a call's site: by the names asked for, else by tags that name one, else by what the log has.

    `places` hold tags, attributes or columns; `otherwise` are names, the best first. Names asked for are the only ones.
    """
    for name in asked.site_by or SITE_TAGS:
        for place in places:
            if (value := place.get(name)) is not None and (found := named(value)):
                return found
    return "" if asked.site_by else first_named(*otherwise) or ""


class Declared(NamedTuple):
    deadline_s: float | None
    trigger: str | None
    first_used_us: int | None


_NOTHING = Declared(None, None, None)


def declared(*places: Fields) -> Declared:
    """What the caller says of a call in tags of ours. Raises ValueError for a time that is none."""
    for place in places:
        if DEADLINE in place or TRIGGER in place or FIRST_USED in place:
            break
    else:
        return _NOTHING
    deadline_s = next((s for place in places if (s := ahead_s(place.get(DEADLINE))) is not None), None)
    used = next((us for place in places if (us := when_us(place.get(FIRST_USED), FIRST_USED))), None)
    return Declared(deadline_s, trigger_of(*(place.get(TRIGGER) for place in places)), used)


def trigger_of(*values: object) -> str | None:
    """What started a call: cron, queue, http, event, ci, dag, or the log's own word."""
    found = first_named(*values)
    return _KINDS.get(found.lower(), found.lower()) if found else None
