"""Own servers in a log: which calls hold them, and what happens to them when one call site can wait."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

from ..errors import Problem, SpecError
from .calls import Asked, Call
from .capacity import (
    TARGET,
    Replica,
    Target,
    Trace,
    Waiting,
    Work,
    avoided,
    hybrid,
    load_by_step,
    staffing,
    warm_capacity,
)
from .reading import read_logs

STEP_S = 600.0  # of the load that valleys are filled in


def trace_of(paths: Sequence[Path], asked: Asked, site: str, since_us: int | None = None) -> Trace:
    """Every call of the logs that says when it ended; those of `site` can wait. Reads the logs again, 17 bytes a call.

    Raises SpecError when the logs were read from standard input, or no call says how long it held its server.
    """
    if any(str(path) == "-" for path in paths):
        raise SpecError([Problem("--own-gpu", None, None, None, "reads the logs twice; standard input is read once")])
    at_s, held_s, leaves = array("d"), array("d"), bytearray()
    for log in read_logs(paths, asked):
        for item in log:
            if isinstance(item, Call) and item.end_us is not None and (since_us is None or item.start_us >= since_us):
                at_s.append(item.start_us / 1e6)
                held_s.append(max(0, item.end_us - item.start_us) / 1e6)
                leaves.append(item.site == site)
    if not at_s:
        what = "no call of these logs says when it ended, so none says how long it held a server"
        raise SpecError([Problem("--own-gpu", None, None, None, what)])
    return Trace.of(map(Work, at_s, held_s), map(bool, leaves))


def told(trace: Trace, replica: Replica, wait_s: float, target: Target = TARGET) -> list[str]:
    """What moving the waiting calls does to the servers and to the calls that stay, in lines of text."""
    found = warm_capacity(trace, replica, target)
    lines = [
        f"servers: {found.replicas_before} replicas of {replica.slots} slots before, {found.replicas_after} after "
        f"({found.slots_before} and {found.slots_after} slots needed so that at most {target.late:.0%} wait "
        f"longer than {target.wait_s:g} s); {found.hours_avoided:,} warm replica-hours a month avoided",
        f"calls that stay: wait {_queue(found.queue_before)} now, {_queue(found.queue_after)} on the same servers without "
        f"the waiting calls, {_queue(found.queue_shrunk)} on the servers of after",
    ]
    if trace.at_s[-1] > trace.at_s[0]:
        needs = staffing(trace, target)
        lines.append(
            f"check: {needs.simulated} slots simulated, {needs.erlang} by Erlang's C, {needs.square_root:.1f} by the "
            f"square-root rule; {needs.offered:.1f} are busy on average"
        )
    held_s = array("d", (0.0 if leaves else held for held, leaves in zip(trace.service_s, trace.can_wait, strict=True)))
    total, online = (load_by_step(t, STEP_S) for t in (trace, Trace(trace.at_s, held_s, trace.can_wait)))
    online += [0.0] * (len(total) - len(online))
    deferred = [max(0.0, both - stays) for both, stays in zip(total, online, strict=True)]
    steps = max(1, round(wait_s / STEP_S))
    valley = avoided(online, deferred, steps)
    slack = hybrid(online, deferred, steps, replica_load=replica.slots, at_least=replica.at_least)
    lines.append(
        f"of the peak: {valley.moved_off:.0%} avoided when the work leaves, {valley.within_log:.0%} when the same servers "
        f"do it within {wait_s / 3600:g} h, {valley.sustained:.0%} if that goes on for ever"
    )
    lines.append(
        f"in the slack of replicas that run anyway: {slack.saved:.0%} of replica-hours saved, {slack.fitted:.0%} of the "
        "waiting work fits"
    )
    return lines


def _queue(waiting: Waiting) -> str:
    return f"{waiting.p99_s:.1f} s (p99, {waiting.late:.1%} late)" if waiting.n_calls else "nothing"
