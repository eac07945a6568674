"""Words for what starts a call, in four kinds. A word that is in none says nothing of who waits. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

SCHEDULED = frozenset(
    "cron crontab schedule scheduled scheduler timer interval nightly hourly daily weekly monthly backfill batch".split()
)
TASK = frozenset("airflow dagster prefect dag".split())  # of a workflow, whatever started that
REQUEST = frozenset(
    "http https request api web websocket ws rpc grpc user chat ui interactive click message slack voice "
    "autocomplete".split()
)
BUILD = frozenset(
    "ci push pull pull_request pull-request merge merge_request merge-request commit build deploy release webhook".split()
)
_BY_HAND = frozenset("manual manually".split())
_WORD = re.compile("(?:pull|merge).?request|[a-z]+")


@lru_cache(1024)
def kind_of(trigger: str) -> frozenset[str] | None:
    """REQUEST, BUILD, SCHEDULED or TASK; None: none of them. A person who starts a workflow makes it none."""
    words = set(_WORD.findall(trigger[:200].lower()))
    found = next((kind for kind in (REQUEST, BUILD, SCHEDULED, TASK) if words & kind), None)
    return None if found is TASK and words & _BY_HAND else found
