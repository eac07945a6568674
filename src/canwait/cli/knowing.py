"""How `status` and `why` tell what is known of a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import views
from ..knowing import Choice, Knowing
from ..price import format_usd
from ..watching import State
from .face import Face, money, printable, table


def listing(face: Face, found: Sequence[views.Figures], known: Sequence[Knowing]) -> str:
    """All jobs, a line each, with what is so and what to type next."""
    if not found:
        return "No jobs yet. `canwait init` writes a job file, `canwait demo` shows one running."
    rows = [
        (
            k.word,
            f.job,
            f"{f.ok:,} / {f.rows:,}",
            f"{money(f.confirmed_micros)} / {money(f.limit_micros) if f.limit_micros is not None else '-'}",
            _short(printable(k.words)),
            typed(face, k.command) if k.command else "",
        )
        for f, k in zip(found, known, strict=True)
    ]
    return table([("STATE", "JOB", "ROWS", "SPENT / CAP", "NOTE", "NEXT"), *rows])


def now(face: Face, f: views.Figures, known: Knowing) -> str:
    """What is so of one job beside its figures; empty for one that has ended and asks for nothing."""
    if f.finished and known.word != "unconsumed":
        return ""
    note = f": {printable(known.words)}" if known.words else ""
    following = f"\n  next      {typed(face, known.command)}" if known.command else ""
    return f"\n  now       {known.word}{note}{following}"


def diagnosis(face: Face, known: Knowing) -> Iterator[str]:
    """Sentences, and the choices with their prices and commands."""
    yield from (f"  {printable(sentence)}" for sentence in known.sentences)
    if known.choices:
        yield ""
        cells = [(f"  {c.what}", c.price, printable(c.then), typed(face, c.command)) for c in known.choices]
        yield table([("  CHOICE", "PRICE", "WHAT IT BRINGS", "COMMAND"), *cells])


def typed(face: Face, command: str) -> str:
    """A command as it is typed here."""
    return f"{command} --sim" if face.simulated else command


def known_json(face: Face, known: Knowing) -> dict[str, Any]:
    ready = known.ready
    return {
        "job": known.job,
        "word": known.word,
        "words": known.words,
        "next": typed(face, known.command) if known.command else None,
        "findings": [{**finding_json(each.finding), "batches": each.n} for each in known.found],
        "unread": [
            {"reader": late.reader, "words": late.words, "cost_usd": format_usd(late.cost_micros)}
            for late in known.unread
        ],
        "ready": ready
        and {
            "p50": ready.p50.isoformat() if ready.p50 else None,
            "p95": ready.p95.isoformat() if ready.p95 else None,
            "words": ready.words,
        },
    }


def diagnosis_json(face: Face, known: Knowing) -> dict[str, Any]:
    choices = [_choice_json(face, choice) for choice in known.choices]
    return {**known_json(face, known), "sentences": list(known.sentences), "choices": choices}


def shard_json(s: views.ShardView, batches: Mapping[str, Sequence[State]]) -> dict[str, Any]:
    """What is known of one shard while it is out."""
    return {
        "submitted_at": s.submitted_at.isoformat() if s.submitted_at else None,
        "looked_at": s.looked_at.isoformat() if s.looked_at else None,
        "lines_done": s.n_done,
        "findings": [finding_json(state) for state in batches.get(s.id, ())],
    }


def finding_json(state: State) -> dict[str, Any]:
    """`odds`: of being in time, and the earlier cases they rest on."""
    odds, n_like = getattr(state, "odds", None), getattr(state, "n_like", None)
    return {"kind": state.kind, "words": state.words, "odds": odds, "cases": None if odds is None else n_like}


def _choice_json(face: Face, choice: Choice) -> dict[str, Any]:
    most = None if choice.micros is None else format_usd(choice.micros)
    command = typed(face, choice.command)
    return {"what": choice.what, "price": choice.price, "most_usd": most, "then": choice.then, "command": command}


def _short(words: str, most: int = 100) -> str:
    return words if len(words) <= most else f"{words[: most - 3]}..."
