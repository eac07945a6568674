"""init, local, doctor, sim, drill, schema."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import CanwaitError, NotFound, Problem, SpecError
from .face import Face, options, table

_JOB = """\
# yaml-language-server: $schema=job.v1.json        (canwait schema job > job.v1.json)
version: 1
name: {name}
source: {{uri: {source}, key: {key}}}      # key: names a row; the same key and request are never paid twice
model: {model}
prompt: |
  Classify this message as one of: question, complaint, praise.
  {{{{ {place} }}}}
output:
  type: object
  properties: {{label: {{type: string, enum: [question, complaint, praise]}}}}
  required: [label]
  additionalProperties: false
max_output_tokens: 64                      # no bound, no worst case
urgency: batch                             # near_real_time | batch
deadline: 24h
budget: {{usd: 1.00, on_exceed: refuse}}     # refuse | trim | ask
load: {{to: {target}, mode: merge}}
"""


@click.command()
@click.argument("source", metavar="ROWS", required=False, type=click.Path(path_type=Path))
@click.option("--key", help="The column that names a row; else the first one.")
@click.option("--column", help="The column the prompt reads; else the second one.")
@click.option("--model", help="openai/NAME, anthropic/NAME, own/NAME or local; else local, or what the audit found.")
@click.option(
    "--from-audit", "site", metavar="SITE", help="A call site of an audit; without ROWS the texts of its log."
)
@click.option(
    "--audit",
    "audit_file",
    default="audit.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where that audit was written.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write it; else ROWS.yaml beside the rows."
)
@options()
def init(
    face: Face, source: Path | None, key: str | None, column: str | None, model: str | None, site: str | None,
    audit_file: Path, output: Path | None,
) -> None:  # fmt: skip
    """Write a first job file beside your rows (.csv .tsv .jsonl .parquet), or from an audit."""
    if site is not None:
        _init_from_audit(face, site, audit_file, source, key, column, model, output)
        return
    if source is None:
        raise click.UsageError("Missing argument 'ROWS', or --from-audit SITE.")
    from ..spec import load_job

    key, column = _columns(source, key, column)
    target = _new_file(output or source.with_suffix(".yaml"))
    name = _name(source.stem)
    text = _JOB.format(
        name=json.dumps(name),
        source=json.dumps(os.path.relpath(source, target.parent)),
        key=json.dumps(key),
        place=_place(column),
        model=model or "local",
        target=json.dumps(f"{source.stem}.answers.parquet"),
    )
    load_job(target, text)  # what is written can be planned
    target.write_text(text, encoding="utf-8")
    value = {"job": str(target), "key": key, "column": column}
    face.show("canwait.init/1", value, f"wrote {target}\nnext: canwait plan {target}")


def _init_from_audit(
    face: Face, site: str, audit_file: Path, source: Path | None, key: str | None, column: str | None, model: str | None,
    output: Path | None,
) -> None:  # fmt: skip
    from ..audit.drafting import draft_of, job_text, rows_of, write_rows
    from ..audit.report import shown
    from ..sinks.atomic import replacing
    from ..spec import load_job
    from .audit import load_audit

    found = load_audit(audit_file)
    draft = draft_of(found, site, str(audit_file), model)
    name = _name(site)
    target = _new_file(output or (source.with_suffix(".yaml") if source else Path(f"{name}.yaml")))
    if source is not None:
        key, column = _columns(source, key, column)
        rows, prompt, n_rows = source, f"{{{{ {_place(column)} }}}}", None
    else:
        rows, key, column = _new_file(target.with_suffix(".rows.jsonl")), "id", "text"
        prompt, texts = rows_of(found["read"], draft.site, str(audit_file), draft.moves)
    text = job_text(
        draft, name=name, source=os.path.relpath(rows, target.parent), key=key, prompt=prompt,
        target=f"{name}.answers.parquet", audit=audit_file.name,
    )  # fmt: skip
    load_job(target, text)  # what is written can be planned
    with replacing(target) as file:
        file.write(text.encode())
        if source is None:  # both files are there, or none
            with replacing(rows) as beside:
                n_rows = write_rows(texts, beside)
    wrote = f"wrote {target}" if n_rows is None else f"wrote {target}, and {n_rows:,} rows of the log to {rows}"
    value = {"job": str(target), "key": key, "column": column}
    only = f"\nonly {shown(draft.only)}: the others stay where they are" if draft.only else ""
    face.show("canwait.init/1", value, f"{wrote}{only}\nnext: canwait plan {target}")


def _columns(source: Path, key: str | None, column: str | None) -> tuple[str, str]:
    """The key and the column a prompt reads. Raises SpecError for one that is not there."""
    from ..sources.opening import open_source
    from ..types import Source

    columns = open_source(Source(source.name, key or ""), source.parent).columns
    for name in (key, column):
        if name is not None and name not in columns:
            raise SpecError([Problem(str(source), 1, None, name, f"no such column; there are {', '.join(columns)}")])
    key = key or columns[0]
    return key, column or next((c for c in columns if c != key), key)


def _new_file(path: Path) -> Path:
    if path.exists():
        raise SpecError([Problem(str(path), None, None, None, "exists already")], hint="name another file with -o")
    return path


def _name(text: str) -> str:
    """A job's name that reminds of a text."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")[-60:].strip("-") or "job"


def _place(column: str) -> str:
    """How a template names a column."""
    return column if column.isidentifier() and column not in ("row", "self", "range") else f"row[{column!r}]"


@click.group()
def local() -> None:
    """The local model: no key, no account, no cost."""


@local.command()
@options()
def install(face: Face) -> None:
    """Fetch SmolLM2-135M-Instruct once, check it and keep it in your cache."""
    from ..local_model import install as fetch

    path = fetch()
    face.show("canwait.local/1", {"model": str(path)}, f"installed: {path}")


@click.command()
@options()
def doctor(face: Face) -> None:
    """Check keys, ledger, disk, clock and prices; one line per fault, with the way out."""
    checks = [_check(name, check) for name, check in _CHECKS.items()]
    rows = [("ok" if c["ok"] else "FAULT", c["check"], c["found"]) for c in checks]
    hints = [f"hint: {c['hint']}" for c in checks if c["hint"]]
    face.show("canwait.doctor/1", {"checks": checks}, "\n".join([table(rows), *hints]))
    raise click.exceptions.Exit(0 if all(c["ok"] for c in checks) else 1)


def _check(name: str, check: Callable[[Mapping[str, str]], str]) -> dict[str, Any]:
    try:
        return {"check": name, "ok": True, "found": check(os.environ), "hint": None}
    except CanwaitError as error:
        return {"check": name, "ok": False, "found": str(error), "hint": error.own_hint}


def _ledger(env: Mapping[str, str]) -> str:
    from ..client import connect
    from ..db import redacted

    with connect(env=env) as client:
        broken = client.ledger.check()
        if broken:
            raise CanwaitError("; ".join(broken), hint="do not send anything more; keep a copy of the ledger")
        return f"{redacted(client.settings.db_url)}: the books balance"


def _disk(env: Mapping[str, str]) -> str:
    from ..settings import settings

    home = settings(env).home
    place = next(p for p in (home, *home.absolute().parents) if p.exists())
    free_gb = shutil.disk_usage(place).free / 1e9
    if free_gb < 1:
        raise CanwaitError(f"{free_gb:.1f} GB free at {place}", hint="free some space, or set CANWAIT_HOME")
    return f"{free_gb:.0f} GB free at {place}"


def _keys(env: Mapping[str, str]) -> str:
    names = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OWN_API_KEY")
    found = [n if env.get(n) else f"{n}_FILE" for n in names if env.get(n) or env.get(f"{n}_FILE")]
    return f"set: {', '.join(found)}" if found else "none set; `local` and the simulator need none"


def _prices(env: Mapping[str, str]) -> str:
    from ..prices import book

    name, version, as_of = book()
    return f"{name} {version}, as of {as_of}"


def _clock(env: Mapping[str, str]) -> str:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    if now.year < 2026:
        raise CanwaitError(
            f"the clock says {now:%Y-%m-%d}", hint="set the machine's clock: deadlines and prices are dated"
        )
    return f"{now:%Y-%m-%d %H:%M:%S} UTC"


def _local_model(env: Mapping[str, str]) -> str:
    from ..local_model import locate

    path = locate()
    return f"installed: {path}" if path else "not installed; `canwait local install` fetches it"


_CHECKS: dict[str, Callable[[Mapping[str, str]], str]] = {
    "ledger": _ledger,
    "disk": _disk,
    "keys": _keys,
    "prices": _prices,
    "clock": _clock,
    "local model": _local_model,
}


@click.group()
def sim() -> None:
    """The simulator: OpenAI's and Anthropic's wire formats, a bill, and every fault on request."""


@sim.command(context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def serve(args: tuple[str, ...]) -> None:
    """Serve it on a local port: --port, --seed, --clock 600x, --scenario FAULTS, --folder PATH."""
    from ..simulator.__main__ import main

    sys.exit(main(list(args)))


@click.group()
def drill() -> None:
    """Prove here what canwait promises."""


def _drill(face: Face, result: Mapping[str, Any]) -> None:
    face.show("canwait.drill/1", result, str(result["words"]))
    raise click.exceptions.Exit(0 if result["ok"] else 1)


@drill.command()
@options()
def crash(face: Face) -> None:
    """Kill a real process at every ledger write and around every effect, then run it again."""
    from ..drills import crash as drill_crash

    _drill(face, drill_crash.run())


@drill.command()
@click.option("-n", "n", default=300, show_default=True, help="How many random histories.")
@click.option("--seed", default=0, show_default=True)
@options()
def cap(face: Face, n: int, seed: int) -> None:
    """Random histories of faults, kills and races: no budget is passed, nothing is paid twice or lost."""
    from ..drills import cap as drill_cap

    _drill(face, drill_cap.run(n, seed=seed))


@drill.command()
@options()
def expiry(face: Face) -> None:
    """Batches that expire in part: finished rows are kept, only the rest is sent again."""
    from ..drills import expiry as drill_expiry

    _drill(face, drill_expiry.run())


@click.command()
@click.argument("name", required=False)
@options()
def schema(face: Face, name: str | None) -> None:
    """Print a published JSON Schema; without a name, the names."""
    found = dict(_schemas())
    if name is None:
        face.show("canwait.schemas/1", {"schemas": sorted(found)}, "\n".join(sorted(found)))
        return
    if name not in found:
        raise NotFound(
            f"No schema is named {name}.", what="schema", name=name, hint=f"one of {', '.join(sorted(found))}"
        )
    click.echo(found[name].rstrip())


def _schemas() -> Iterator[tuple[str, str]]:
    from importlib import resources

    for file in resources.files("canwait").joinpath("schemas").iterdir():
        if file.name.endswith(".v1.json"):
            yield file.name.removesuffix(".v1.json"), file.read_text("utf-8")
