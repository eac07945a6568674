"""fresh, read."""

from __future__ import annotations

import getpass
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import publishing
from ..errors import NotFound, Problem, SpecError
from ..freshness import Contract, Stale, span
from ..price import format_usd
from .face import Face, money, options, printable, table
from .jobs import _named as named
from .jobs import opened, simulated

if TYPE_CHECKING:
    from ..client import Client


@click.command()
@click.argument("job", required=False)
@click.option("--reader", metavar="NAME", help="Say for this reader what it accepts; with --max-age.")
@click.option("--max-age", metavar="AGE", help="The oldest answer it accepts, like 24h, counted from the input.")
@click.option(
    "--on-stale", type=click.Choice(["serve", "block", "refresh"]), help="What it gets past that; block if left out."
)
@click.option(
    "--missed-runs", type=click.IntRange(min=0), help="Failed runs in a row that it must survive; 0 if left out."
)
@click.option("--revise", is_flag=True, help="Change what was stated; who did, and when, is kept.")
@click.option("--withdraw", is_flag=True, help="The reader is gone, and accepts nothing any more.")
@click.option(
    "--odcs", "odcs_file", metavar="FILE", help="Write the contracts as an Open Data Contract Standard document."
)
@click.option("--from-odcs", metavar="FILE", help="State what such a document says; of --reader, where it names none.")
@simulated
@options()
def fresh(
    face: Face, job: str | None, reader: str | None, max_age: str | None, on_stale: str | None, missed_runs: int | None,
    revise: bool, withdraw: bool, odcs_file: str | None, from_odcs: str | None, sim: bool,
) -> None:  # fmt: skip
    """Show who reads what, how old it may be, and how old it is; or say what a reader accepts.

    Ends with 8 when a contract is broken now.
    """
    if (reader or odcs_file or from_odcs) and job is None:
        raise click.UsageError("name the JOB")
    if reader is None and (max_age or on_stale or missed_runs is not None or withdraw or (revise and not from_odcs)):
        raise click.UsageError("say --reader NAME: whose terms these are")
    if max_age is not None and (from_odcs or withdraw):
        raise click.UsageError("leave --max-age out: --from-odcs says what is accepted, and --withdraw that nothing is")
    if reader is not None and job is not None and max_age is None and not (from_odcs or withdraw):
        max_age, on_stale = _of_file(job, on_stale)
    with opened(face, sim) as client:
        name = named(job) if job else None
        if name is not None and from_odcs is not None:
            from ..odcs import read_odcs

            for contract in read_odcs(Path(from_odcs), name, reader):
                is_known = publishing.contract_of(client.ledger, name, contract.reader) is not None
                _state(client, contract, revise and is_known)
        if reader is not None and name is not None and max_age is not None:
            before = publishing.contract_of(client.ledger, name, reader) or Contract(name, reader, 1, "block")
            terms: dict[str, Any] = {"on_stale": on_stale, "missed_runs": missed_runs, "max_age_s": _seconds(max_age)}
            _state(client, replace(before, **{k: v for k, v in terms.items() if v is not None}), revise)
        if reader is not None and name is not None and withdraw:
            publishing.withdraw(client.ledger, name, reader, _who(), client.clock.now())
        if name is not None and odcs_file is not None:
            _write_odcs(client, name, Path(odcs_file))
            face.note(f"wrote {odcs_file}")
        found = publishing.standings(client.ledger, client.clock.now(), name)
        face.show("canwait.fresh/1", {"sets": [_json(s) for s in found]}, _text(found))
        raise click.exceptions.Exit(8 if any(s.broken for s in found) else 0)


def _of_file(job: str, on_stale: str | None) -> tuple[str, str | None]:
    """What the job file's `freshness:` says readers accept."""
    if job != named(job):  # it is a file
        from ..spec import load_job

        if found := load_job(Path(job)).freshness:
            told = found.on_stale if found.on_stale != "live" else None
            return f"{found.max_age_s}s", on_stale or told
    raise click.UsageError("say --max-age, or name a job file with `freshness: {max_age: 24h}`")


def _state(client: Client, contract: Contract, revise: bool) -> None:
    before = publishing.contract_of(client.ledger, contract.job, contract.reader)
    if before == contract:
        return
    if revise:
        publishing.revise(client.ledger, contract, _who(), client.clock.now())
    elif before is None:
        publishing.declare(client.ledger, contract, _who(), client.clock.now())
    else:
        accepts = span(timedelta(seconds=before.max_age_s))
        raise SpecError(
            [Problem("--reader", None, None, None, f"{contract.reader} accepts {accepts} of {contract.job}")],
            hint="say --revise to change that",
        )


def _write_odcs(client: Client, job: str, path: Path) -> None:
    from ..odcs import odcs_text, to_odcs
    from ..sinks.atomic import replacing

    contracts, version = publishing.statements(client.ledger, job)
    terms = publishing.terms_of(client.ledger, job)
    document = to_odcs(
        job, contracts, id=f"urn:canwait:{client.ledger.id}:{job}", version=version,
        published=publishing.newest(client.ledger, job) is not None, **terms,
    )  # fmt: skip
    with replacing(path) as file:
        file.write(odcs_text(document).encode())


def _who() -> str:
    """The person at this terminal."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def _seconds(max_age: str) -> int:
    from ..spec import parse_duration

    try:
        return parse_duration(max_age)
    except ValueError as error:
        raise SpecError([Problem("--max-age", None, None, None, str(error))]) from error


def _text(found: list[publishing.Standing]) -> str:
    if not found:
        return "Nothing is published yet. `canwait run JOB.YAML` does, where the job says `load:`."
    head = ("SET", "READER", "CONTRACT", "AGE NOW", "p95 AGE READ", "STATE", "NEXT")
    notes = [f"  {s.job}: {s.cadence.arithmetic}" for s in found if s.cadence is not None and not s.cadence.holds]
    return "\n".join([table([head, *map(_row, found)]), *(["", "cannot be kept:", *notes] if notes else [])])


def _row(s: publishing.Standing) -> tuple[str, ...]:
    c = s.contract
    contract = f"<= {span(timedelta(seconds=c.max_age_s))}, {c.on_stale}" if c else "-"
    reader = printable(s.reader) if s.reader is not None else "(nobody)"
    following = "running" if s.refreshing else s.next_at.strftime("%Y-%m-%d %H:%M") if s.next_at else "-"
    return s.job, reader, contract, _span(s.age), _span(s.p95_age), _standing(s), following


def _standing(s: publishing.Standing) -> str:
    late = f" by {span(s.late)}" if s.late is not None and s.late > timedelta(0) else ""
    unread = f"UNCONSUMED {money(s.unread_micros)}"
    words = {"stale": f"STALE{late}", "blocked": f"BLOCKED{late}", "never_built": "never built", "unconsumed": unread}
    return words.get(s.state, s.state)


def _span(time: timedelta | None) -> str:
    return "-" if time is None else span(time)


def _json(s: publishing.Standing) -> dict[str, Any]:
    def seconds(time: timedelta | None) -> int | None:
        return None if time is None else round(time.total_seconds())

    return {
        "job": s.job,
        "reader": s.reader,
        "max_age_s": s.contract and s.contract.max_age_s,
        "on_stale": s.contract and s.contract.on_stale,
        "missed_runs": s.contract and s.contract.missed_runs,
        "version": s.publication and s.publication.version,
        "source_as_of": s.publication and s.publication.source_as_of.isoformat(),
        "gate": s.publication and s.publication.verdict,
        "age_s": seconds(s.age),
        "state": s.state,
        "late_s": seconds(s.late),
        "p95_age_read_s": seconds(s.p95_age),
        "last_read_at": s.last_read and s.last_read.isoformat(),
        "unread_usd": format_usd(s.unread_micros),
        "refreshing": s.refreshing,
        "next_at": s.next_at and s.next_at.isoformat(),
        "can_be_kept": s.cadence and s.cadence.holds,
        "arithmetic": s.cadence and s.cadence.arithmetic,
    }


@click.command()
@click.argument("job")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--as", "as_", metavar="NAME", required=True, help="Who reads, as in dash/support.")
@click.option(
    "--max-age", metavar="AGE", help="The oldest answer accepted, like 24h; else what `fresh` says of the reader."
)
@click.option(
    "--on-stale", type=click.Choice(["serve", "block"]), default="block", show_default=True, help="What to do past it."
)
@simulated
@options()
def read(face: Face, job: str, keys: tuple[str, ...], as_: str, max_age: str | None, on_stale: str, sim: bool) -> None:
    """Print what a job has published, all rows or those of some keys, one JSON object a line.

    Ends with 8, having printed nothing, when it is older than the reader accepts.
    """
    from ..reading import reader

    with opened(face, sim) as client:
        labels = reader(named(job), as_=as_, max_age=max_age, on_stale=on_stale, client=client)
        hits = map(labels.get, keys) if keys else labels.rows()
        said = missing = 0
        for hit in hits:
            if hit is None:
                missing += 1
                continue
            if hit.stale and not said:
                outcome = labels.outcome
                face.note(f"stale: {outcome.why}" if isinstance(outcome, Stale) else "stale")
            said += 1
            value = {
                "schema": "canwait.read/1",
                "simulated": face.simulated,
                "key": hit.key,
                "value": hit.value,
                "age_s": round(hit.age.total_seconds()),
                "stale": hit.stale,
                "version": hit.version,
                "gate": hit.gate,
                "model": hit.model,
            }
            click.echo(json.dumps(value))
        if missing:
            raise NotFound(
                f"{missing} of these keys are not in what {job} has published.", what="row", name=job,
                hint="`canwait results` says what became of each row",
            )  # fmt: skip
