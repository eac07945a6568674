"""inspect: judge a sample at the keyboard, or by a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from .. import notifying
from ..errors import AlreadyJudged, GatePending, GateRefused, Problem, SpecError
from .face import Face, options, printable, report
from .jobs import opened, simulated

if TYPE_CHECKING:
    from ..client import Client
    from ..inspection import Inspecting, Sampled
    from ..lots import Lot, Part

_KEYS = {"w": "wrong", "f": "format", "u": "unsafe", "i": "input"}  # what a bad row is, by the key pressed


@click.command()
@click.argument("job")
@click.option("--accept", "accepted", metavar="PLACE", type=int, multiple=True, help="This row of the sample is good.")
@click.option("--reject", "rejected", metavar="PLACE=CAUSE", multiple=True,
              help="This one is not: wrong, format, unsafe or input.")  # fmt: skip
@click.option("--as", "who", metavar="NAME", help="Who judges; else your account here.")
@simulated
@options()
def inspect(
    face: Face, job: str, accepted: tuple[int, ...], rejected: tuple[str, ...], who: str | None, sim: bool
) -> None:
    """Judge a random sample of a finished job's answers, or of its canary's. Nothing can be read before the job's passes.

    One row at a time, until it is decided: a accept, r reject, s skip (unsure), u undo, q quit. It goes on where it was.
    """
    said = [(place, None) for place in accepted] + [_bad(text) for text in rejected]
    with opened(face, sim) as client:
        at_gate = _opened(client, job, who)
        for n, (place, cause) in enumerate(said):
            if n and at_gate.lot.verdict:
                face.note(f"decided after {n} of these rows; the others were not needed")
                break
            _judge(client, at_gate, place, cause)
        if not said and not face.no_input and not face.as_json and at_gate.next is not None:
            _at_the_keyboard(face, client, at_gate)
        if not face.simulated:
            name, env = at_gate.lot.job, client.settings.env
            notifying.after_run(client.ledger, env, client.clock, name, ended=False, blobs=client.blobs)
        face.show("canwait.inspect/1", inspect_json(at_gate), _report(at_gate))
        raise click.exceptions.Exit(_ending(at_gate))


def _opened(client: Client, job: str, who: str | None) -> Inspecting:
    from pathlib import Path

    is_file = Path(job).suffix in (".yaml", ".yml", ".json", ".toml") and Path(job).is_file()
    found = client.job(job).inspect(who) if is_file else client.inspect(job, who)
    if found is None:
        hint = "add `quality: {refuse_if_bad_rate: 10%}` to the job file, and run it again: that costs nothing"
        raise SpecError(
            [Problem(job, None, None, "quality", "the job has no gate, so there is nothing to judge")], hint=hint
        )
    return found


def _bad(text: str) -> tuple[int, str]:
    place, equals, cause = text.partition("=")
    if not (place.isascii() and place.isdigit() and equals and cause in _KEYS.values()):
        causes = ", ".join(_KEYS.values())
        raise SpecError(
            [Problem("--reject", None, None, None, f"found '{text}'; expected PLACE=CAUSE, one of {causes}")]
        )
    return int(place), cause


def _judge(client: Client, at_gate: Inspecting, place: int, cause: str | None) -> None:
    from ..lots import Word

    at_gate.judge(place, Word.BAD if cause else Word.GOOD, cause, client.clock.now())


def _ending(at_gate: Inspecting) -> int:
    from ..lots import Verdict

    match at_gate.lot.verdict:
        case Verdict.ACCEPTED:
            return 0
        case Verdict.REFUSED:
            report(_refusal(at_gate.lot))
            return GateRefused.exit_code
    hint = f"canwait inspect {at_gate.lot.job} at a terminal, or with --accept PLACE and --reject PLACE=CAUSE"
    if at_gate.lot.awaits_judge:
        hint = "`canwait run JOB.YAML` has the judge model look, or goes on with it"
    what = f"{'The canary of job' if at_gate.lot.canary else 'Job'} {at_gate.lot.job}"
    report(GatePending(f"{what} waits to be judged: {at_gate.lot.reason}.", job=at_gate.lot.job, hint=hint))
    return GatePending.exit_code


def _refusal(lot: Lot) -> GateRefused:
    why = lot.reason.removeprefix("refused: ")
    if lot.canary is None:
        return GateRefused(job=lot.job, why=why)
    words = f"The canary of job {lot.job} was refused: {why}. Nothing more of its plan is sent."
    return GateRefused(words, job=lot.job, hint=f"`canwait status {lot.job}` says what can be done")


# -------------------------------------------------------------------------------------------------------- the keyboard


def _at_the_keyboard(face: Face, client: Client, at_gate: Inspecting) -> None:
    face.goes_on = f"interrupted; every word is kept.\n  go on:  canwait inspect {at_gate.lot.job}"
    click.echo("\n".join(_head(at_gate)), err=True)
    judge_by(at_gate, click.getchar, lambda text: click.echo(text, err=True), client.clock.now)


def judge_by(at_gate: Inspecting, key: Callable[[], str], say: Callable[[str], None], now: Callable[[], Any]) -> None:
    """One row after another, by single keys, until the lot is decided or somebody leaves."""
    from ..lots import Word

    while (row := at_gate.next) is not None:
        say(f"\n{at_gate.lot.reason}\n{_shown(row)}\n[a] accept   [r] reject   [s] skip: unsure   [u] undo   [q] quit")
        try:
            match key().lower():
                case "a":
                    at_gate.judge(row.place, Word.GOOD, None, now())
                case "r":
                    say(f"why?  {'   '.join(f'[{k}] {cause}' for k, cause in _KEYS.items())}   any other key: back")
                    if cause := _KEYS.get(key().lower()):
                        at_gate.judge(row.place, Word.BAD, cause, now())
                case "s":
                    at_gate.judge(row.place, Word.UNSURE, None, now())
                case "u":
                    say("taken back" if at_gate.undo(now()) else "there is nothing of yours to take back")
                case "q" | "\x03" | "\x04" | "":
                    return
        except AlreadyJudged as error:  # by somebody else, at this moment
            say(str(error))
        if theirs := at_gate.model_word(row.place):
            say(f"the judge model said {theirs}")


def _shown(row: Sampled) -> str:
    part = f"   stratum {printable(row.part)}" if row.part else ""
    return f"row {row.place}: {printable(row.key)}{part}\n{_block('INPUT', row.input)}\n{_block('OUTPUT', row.answer)}"


def _block(name: str, text: str) -> str:
    lines = [printable(line) for line in text.splitlines() or [""]]
    return "\n".join(f"  {name if n == 0 else '':<7} {line}" for n, line in enumerate(lines))


# ------------------------------------------------------------------------------------------------------- what it shows


def _head(at_gate: Inspecting) -> Iterator[str]:
    from ..lots import kindness, risk

    lot = at_gate.lot
    of = "  its canary, before the rest is sent:" if lot.canary else " "
    yield f"INSPECT {lot.job} {of} {lot.n_rows} rows with an answer"
    for part in lot.parts[:1]:
        if part.plan.most_rows and not lot.awaits_judge:
            yield risk(part)
            yield kindness(part)


def _report(at_gate: Inspecting) -> str:
    from ..gate import drawing

    lot = at_gate.lot
    verdict = lot.verdict.value if lot.verdict else "not yet"
    lines = [*_head(at_gate), f"  verdict   {verdict}", f"  because   {printable(lot.reason)}"]
    lines += [f"  {n} rows break the rule {printable(rule)}" for rule, n in lot.broken.items() if n]
    if len(lot.parts) > 1:
        lines += [f"  stratum   {printable(p.name)}: {_counted(p, at_gate)}" for p in lot.parts]
    causes = [j.cause or "" for j in at_gate.said.values() if j.cause]
    lines += [f"  {causes.count(cause)} rejected: {cause}" for cause in dict.fromkeys(causes)]
    if at_gate.by_word is None and lot.parts and lot.parts[0].plan.most_rows and not lot.awaits_judge:
        lines += [
            "",
            "  how often rows would be let through, by how many of them are bad:",
            *drawing(lot.parts[0].plan),
        ]
    if (row := at_gate.next) is not None:
        lines += ["", _shown(row)]
    elif lot.verdict and lot.verdict.value == "accepted":
        lines += ["", f"  next      canwait {'run JOB.YAML sends the rest' if lot.canary else 'load JOB.YAML'}"]
    elif lot.verdict and lot.canary:
        lines += ["", "  next      mend the prompt and run it again, or have it go on all the same:"]
        lines += ["            canwait run JOB.YAML --past-canary"]
    elif lot.verdict:
        lines += ["", "  next      mend the prompt and run it again, or ask these rows again as they are:"]
        lines += [f"            canwait run JOB.YAML --only {quote(name)}" for name in rejections(at_gate)]
    return "\n".join(lines)


def rejections(at_gate: Inspecting) -> list[str]:
    """What `run --only` takes of a refused lot."""
    lot, names = at_gate.lot, ["rejected"]
    refused = [lot.parts[n] for n in lot.refused(at_gate.words)]
    names += [f"rejected:{part.name}" for part in refused if part.name]
    names += [f"rejected:{rule}" for rule, n in lot.broken.items() if n]
    return [printable(name) for name in names[:10]]


def _counted(part: Part, at_gate: Inspecting) -> str:
    judged, bad, _ = part.counts(at_gate.words)
    return f"{bad} of {judged} judged rows bad: {part.standing(at_gate.words)[0].value}"


def inspect_json(at_gate: Inspecting) -> dict[str, Any]:
    """An inspection as JSON. Shares are decimals of 1 as text, as the job file states them."""
    from ..lots import risk

    lot, words, following = at_gate.lot, at_gate.words, at_gate.next
    parts = []
    for part in lot.parts:
        judged, bad, unsure = part.counts(words)
        parts.append(
            {
                "name": part.name,
                "rows": part.n_rows,
                "judged": judged,
                "bad": bad,
                "unsure": unsure,
                "most": len(part.places),
                "decision": part.standing(words)[0].value,
                "risk": risk(part) if part.plan.most_rows else None,
            }
        )
    sample = []
    for row in at_gate.looked_at:
        said = at_gate.said.get(row.place)
        sample.append(
            {
                "place": row.place,
                "part": row.part,
                "key": row.key,
                "input": row.input,
                "answer": row.answer,
                "word": said.word.value if said else None,
                "cause": said.cause if said else None,
                "who": said.who if said else None,
                "judge_model": at_gate.model_word(row.place),
            }
        )
    return {
        "job": lot.job,
        "lot": lot.id,
        "of": "canary" if lot.canary else "job",
        "verdict": lot.verdict.value if lot.verdict else None,
        "reason": lot.reason,
        "refuse_if_bad_rate": str(at_gate.quality.refuse_if_bad_rate),
        "sure": str(at_gate.quality.sure),
        "by": at_gate.quality.by,
        "rows": lot.n_rows,
        "left_out": lot.n_left_out,
        "broken": [{"rule": rule, "rows": n} for rule, n in lot.broken.items()],
        "parts": parts,
        "next": None if following is None else following.place,
        "sample": sample,
    }
