"""A target -> the channel that leads there; its library is loaded then and not before."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import Notify
from . import Channel, Undelivered, fault_of


def open_channel(target: Notify, env: Mapping[str, str]) -> Channel:
    """The way to a target. Raises Undelivered for one that this environment does not know enough of."""
    if fault := fault_of(target.to):
        raise Undelivered(fault, again=False)
    scheme = target.to.partition(":")[0]
    if scheme == "mailto":
        from .smtp import Smtp

        return Smtp(target.to.removeprefix("mailto:"), env)
    if scheme == "apprise":
        from .apprise import Apprise

        return Apprise(target.to.removeprefix("apprise:"), env)
    from .webhook import Webhook

    return Webhook(target, env)
