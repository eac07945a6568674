"""notify."""

from __future__ import annotations

from typing import Any

import click

from .. import notifying
from ..channels import shown
from ..errors import Problem, SpecError
from ..types import Notify
from .face import Face, options, table
from .jobs import opened

_EVERY_S = 30.0


@click.command()
@click.option("--once", is_flag=True, help="Tell what there is to tell by now, and end: for cron.")
@click.option(
    "--test", "target", metavar="TARGET", help="Send one message there now; ends with 1 if it does not arrive."
)
@click.option(
    "--secret", metavar="VARIABLE", help="The variable that holds the secret a --test webhook is signed with."
)
@click.option("--log", is_flag=True, help="Show what was sent to whom, every try, and whether it arrived.")
@click.option("--limit", default=100, show_default=True, help="At most this many, of the --log.")
@options()
def notify(face: Face, once: bool, target: str | None, secret: str | None, log: bool, limit: int) -> None:
    """Tell people what has happened to jobs, and try again what did not arrive; until Ctrl-C, or --once."""
    if once + log + (target is not None) > 1:
        raise click.UsageError("say one of --once, --test and --log")
    if secret is not None and target is None:
        raise click.UsageError("--secret is of a --test")
    with opened(face) as client:
        ledger, env, clock = client.ledger, client.settings.env, client.clock
        if log:
            _show(face, notifying.deliveries(ledger, limit), "Nothing was sent yet.")
        elif target is not None:
            found = notifying.targets(target, "--test")
            if len(found) != 1:
                raise SpecError([Problem("--test", None, None, None, "expected one target")])
            sent = notifying.ping(ledger, Notify(found[0].to, secret), env, clock)
            _show(face, [sent], "")
            raise click.exceptions.Exit(0 if sent.state == "arrived" else 1)
        elif once:
            tried = notifying.pass_once(ledger, env, clock, client.blobs)
            if tried or face.as_json or not face.quiet:  # cron mails whatever is printed
                _show(face, tried, "Nothing to tell.")
        else:
            face.goes_on = "stopped; `canwait notify` goes on where it was"
            while True:
                if tried := notifying.pass_once(ledger, env, clock, client.blobs):
                    _show(face, tried, "")
                clock.sleep(_EVERY_S)


def _show(face: Face, found: list[notifying.Delivery], nothing: str) -> None:
    head = ("AT", "STATE", "TO", "TRIES", "WHAT", "NOTE")
    text = table([head, *map(_row, found)]) if found else nothing
    face.show("canwait.notify/1", {"deliveries": [_json(d) for d in found]}, text)


def _row(d: notifying.Delivery) -> tuple[str, ...]:
    again = f"; again at {d.next_at:%H:%M:%S}" if d.state == "waiting" else ""
    words = (d.tries[-1].words or "on its way") if d.tries else "not sent yet"
    return f"{d.notice.at:%Y-%m-%d %H:%M}", d.state, shown(d.target), str(len(d.tries)), d.notice.title, words + again


def _json(d: notifying.Delivery) -> dict[str, Any]:
    return {
        "id": d.id,
        "notice": d.notice.id,
        "type": d.notice.type,
        "kind": d.notice.kind,
        "severity": d.notice.severity,
        "job": d.notice.job,
        "at": d.notice.at.isoformat(),
        "title": d.notice.title,
        "text": d.notice.text,
        "command": d.notice.command,
        "target": shown(d.target),
        "state": d.state,
        "next_at": d.next_at.isoformat() if d.state == "waiting" else None,
        "tries": [
            {"number": t.number, "at": t.at.isoformat(), "outcome": t.outcome, "words": t.words} for t in d.tries
        ],
    }
