"""Which of two gates is stricter, and the one that is as strict as both. Pure.

A gate is never loosened: answers that were asked for under one stay behind it (judging.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .gate import needed, percent
from .language import implies
from .types import Quality


def unlike(kept: Quality | None, stated: Quality | None) -> str | None:
    """In words: the gate that stands is not the one that the job file states, for it is not loosened."""
    if kept is None or kept == stated:
        return None
    if stated is None:
        return f"the job file states no gate; its answers stay behind theirs: {_gist(kept)}"
    if as_strict(stated, kept):  # they differ in nothing that makes a gate stricter
        asked = "people have begun to judge these answers by what another said of them"
        is_new = (kept.by, kept.judge) != (stated.by, stated.judge)
        return f"the job file's `judge` holds for the next answers: {asked}" if is_new else None
    return f"the job file's gate ({_gist(stated)}) is not all that holds: answers stay behind {_gist(kept)}"


def _gist(gate: Quality) -> str:
    rules = f", {len(gate.rules)} rules" if gate.rules else ""
    return f"{percent(gate.refuse_if_bad_rate)} bad refused, {percent(gate.sure)} sure, by {gate.by}{rules}"


def as_strict(gate: Quality, other: Quality) -> bool:
    """Whether whatever a gate lets through, another would let through as surely.

    How many rows are judged makes no gate stricter: it is as sure with fewer, and only less kind to good answers. Nor does
    what is sent when, or again: a canary that is judged first, a refused lot that is asked once more and judged anew.
    """
    return (
        gate.refuse_if_bad_rate <= other.refuse_if_bad_rate
        and gate.sure >= other.sure
        and (gate.by != "rule" or other.by == "rule")
        and all(any(implies(rule, wanted) for rule in gate.rules) for wanted in other.rules)
        and other.strata in (None, gate.strata)
        and (gate.on_refuse != "load_accepted_strata" or other.on_refuse == "load_accepted_strata")
        and (gate.preset == "zero" or other.preset != "zero")
    )


def strictest(gates: Sequence[Quality]) -> Quality | None:
    """A gate as sure as any of these at the lowest of their rates, with the rules of all; None of none.

    The first that is as strict as all of them is taken as it is, so that nothing is judged anew for a looser one.
    """
    for gate in gates:
        if all(as_strict(gate, other) for other in gates):
            return gate
    if not gates:
        return None
    rate, sure = min(g.refuse_if_bad_rate for g in gates), max(g.sure for g in gates)
    rows = max(g.rows or 0 for g in gates)
    return Quality(
        refuse_if_bad_rate=rate,
        sure=sure,
        by="human" if any(g.by != "rule" for g in gates) else "rule",
        rows=rows if rows >= needed(float(rate), float(sure)) else None,
        preset="zero" if any(g.preset == "zero" for g in gates) else None,
        strata=next((g.strata for g in gates if g.strata), None),
        on_refuse="quarantine" if any(g.on_refuse != "load_accepted_strata" for g in gates) else "load_accepted_strata",
        rules=tuple(dict.fromkeys(rule for g in gates for rule in g.rules)),
    )


def as_filed(gate: Quality | None, stated: Quality | None) -> Quality | None:
    """A gate that stands, with what the job file says by now of sending, which lets nothing through."""
    if gate is None:
        return None
    on_refuse = gate.on_refuse
    if on_refuse != "load_accepted_strata":
        on_refuse = "rerun" if stated and stated.on_refuse == "rerun" else "quarantine"
    return replace(gate, on_refuse=on_refuse, canary=stated.canary if stated else gate.canary)
