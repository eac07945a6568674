"""fresh, read."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import publishing
from ..errors import NotFound, Problem, SpecError
from ..freshness import MAX_MISSED_RUNS, Contract, Stale, span
from ..price import format_usd
from .face import Face, money, options, printable, table
from .jobs import _named as named
from .jobs import opened, simulated

if TYPE_CHECKING:
    from ..client import Client
    from ..freshness import Publication


@click.command()
@click.argument("job", required=False)
@click.option("--reader", metavar="NAME", help="Say for this reader what it accepts; with --max-age.")
@click.option("--max-age", metavar="AGE", help="The oldest answer it accepts, like 24h, counted from the input.")
@click.option(
    "--on-stale", type=click.Choice(["serve", "block", "refresh"]), help="What it gets past that; block if left out."
)
@click.option(
    "--missed-runs",
    type=click.IntRange(0, MAX_MISSED_RUNS),
    help="Failed runs in a row that it must survive; 0 if left out.",
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

    Of a JOB it shows, too, which publications are kept, and everything its readers ever stated.

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
        made = publishing.publications(client.ledger, name) if name else []
        stated = publishing.contract_history(client.ledger, name) if name else []
        payload = {
            "sets": map(_json, found),
            "publications": map(_made_json, made),
            "stated": map(_stated_json, stated),
        }
        face.show("canwait.fresh/1", {k: list(v) for k, v in payload.items()}, "\n".join(_text(found, made, stated)))
        raise click.exceptions.Exit(8 if any(s.broken for s in found) else 0)


def _of_file(job: str, on_stale: str | None) -> tuple[str, str | None]:
    """What the job file's `freshness:` says readers accept."""
    if job != named(job):  # it is a file
        from ..spec import load_job

        if found := load_job(Path(job)).freshness:
            return f"{found.max_age_s}s", on_stale or found.on_stale
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
        published=publishing.newest(client.ledger, job, client.clock.now()) is not None, **terms,
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
    from ..fields import parse_duration

    try:
        return parse_duration(max_age)
    except ValueError as error:
        raise SpecError([Problem("--max-age", None, None, None, str(error))]) from error


def _text(found: list[publishing.Standing], made: list[Publication], stated: list[publishing.Stated]) -> Iterator[str]:
    if not found:
        yield "Nothing is published yet. `canwait run JOB.YAML` does."
        return
    head = ("SET", "READER", "CONTRACT", "AGE NOW", "p95 AGE READ", "STATE", "NEXT")
    yield table([head, *map(_row, found)])
    ended = {s.job: s.publication for s in found if s.publication and s.publication.effective_until}
    for job, publication in ended.items():
        yield f"\n{job}: its input is known to have changed at {_when(publication.effective_until)}"
    if notes := [f"  {s.job}: {s.cadence.arithmetic}" for s in found if s.cadence is not None and not s.cadence.holds]:
        yield "\n".join(["", "cannot be kept:", *notes])
    if made:
        kept = [p.version for p in made if p.kept]
        gone = f"; the rows of {len(made) - len(kept)} older ones are removed" if len(kept) < len(made) else ""
        yield f"\nkept: {len(kept)} of {len(made)} publications, the last is version {made[-1].version}{gone}"
        yield from (f"  version {p.version} is served no more: {printable(p.refused)}" for p in made if p.refused)
    if stated:
        yield "\nstated:\n" + table([_said(s) for s in stated])


def _said(s: publishing.Stated) -> tuple[str, ...]:
    arithmetic = s.cadence.arithmetic if s.cadence else ""
    return (
        _when(s.at),
        printable(s.contract.reader),
        f"{s.said} by {printable(s.who)}",
        _accepts(s.contract),
        arithmetic,
    )


def _when(at: datetime | None) -> str:
    return "-" if at is None else at.strftime("%Y-%m-%d %H:%M")


def _accepts(contract: Contract) -> str:
    missed = f", {contract.missed_runs} missed" if contract.missed_runs else ""
    return f"<= {span(timedelta(seconds=contract.max_age_s))}, {contract.on_stale}{missed}"


def _row(s: publishing.Standing) -> tuple[str, ...]:
    contract = _accepts(s.contract) if s.contract else "-"
    reader = printable(s.reader) if s.reader is not None else "(nobody)"
    following = "running" if s.refreshing else _when(s.next_at)
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
        "effective_until": s.publication and _iso(s.publication.effective_until),
        "gate": s.publication and s.publication.verdict,
        "age_s": seconds(s.age),
        "state": s.state,
        "late_s": seconds(s.late),
        "p95_age_read_s": seconds(s.p95_age),
        "last_read_at": _iso(s.last_read),
        "unread_usd": format_usd(s.unread_micros),
        "refreshing": s.refreshing,
        "next_at": _iso(s.next_at),
        "can_be_kept": s.cadence and s.cadence.holds,
        "arithmetic": s.cadence and s.cadence.arithmetic,
    }


def _made_json(p: Publication) -> dict[str, Any]:
    return {
        "version": p.version,
        "source_as_of": p.source_as_of.isoformat(),
        "produced_at": p.produced_at.isoformat(),
        "effective_until": _iso(p.effective_until),
        "rows": p.rows,
        "failed": p.failed,
        "cost_usd": format_usd(p.cost_micros),
        "gate": p.verdict,
        "kept": p.kept,
        "refused": p.refused,
    }


def _stated_json(s: publishing.Stated) -> dict[str, Any]:
    return {
        "reader": s.contract.reader,
        "said": s.said,
        "who": s.who,
        "at": s.at.isoformat(),
        "max_age_s": s.contract.max_age_s,
        "on_stale": s.contract.on_stale,
        "missed_runs": s.contract.missed_runs,
        "can_be_kept": s.cadence and s.cadence.holds,
        "arithmetic": s.cadence and s.cadence.arithmetic,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


@click.command()
@click.argument("job")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--as", "as_", metavar="NAME", required=True, help="Who reads, as in dash/support.")
@click.option(
    "--max-age", metavar="AGE", help="The oldest answer accepted, like 24h; else what `fresh` says of the reader."
)
@click.option(
    "--on-stale", type=click.Choice(["serve", "block"]), help="What to do past it; else what `fresh` says, or block."
)
@simulated
@options()
def read(
    face: Face, job: str, keys: tuple[str, ...], as_: str, max_age: str | None, on_stale: str | None, sim: bool
) -> None:
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
                "effective_until": _iso(hit.effective_until),
            }
            click.echo(json.dumps(value))
        if missing:
            raise NotFound(
                f"{missing} of these keys are not in what {job} has published.", what="row", name=job,
                hint="`canwait results` says what became of each row",
            )  # fmt: skip
