"""Stops a plan whose answers are surely bad by the free checks, before more of it is paid (methods.md 5.3).

Of a job with a gate one shard goes first: the canary. It and every shard after it is tested when it settles, in the same
transaction: by answers that do not fit the schema, are empty, cut short or declined, and by rules over the answer alone.
All of its rows are looked at, and nothing is read twice. Whether an answer is right nobody knows yet; that is the gate's.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from datetime import datetime
from shlex import quote

from . import entries
from .errors import NotFound
from .gate import tail
from .judging import percent
from .ledger import Ledger
from .lifecycle import OPEN
from .price import format_usd
from .types import Outcome, Quality, Shard, Terms

# What a prompt, a schema or a model does to a row; the others are passing trouble, ours or the account's.
FAULTS = frozenset(
    "length content_filter refused empty malformed schema conflict invalid_request not_found permission too_large "
    "validation".split()
)
_OPEN = frozenset(state.value for state in OPEN)


class Watch:
    """Counts answers that break a rule while they land."""

    def __init__(self, check: Callable[[str], str | None], terms: Terms) -> None:
        """`check`: as of landing.land."""
        self.n_broken = 0
        self.check = check
        if terms.quality is not None and terms.quality.rules:
            from .checks import Rules, is_of_the_answer

            rules = [rule for rule in terms.quality.rules if is_of_the_answer(rule)]
            self._rules, self._schema = Rules(rules, is_json=terms.output_schema is not None), check
            self.check = self._counted

    def _counted(self, text: str) -> str | None:
        problem = self._schema(text)
        if problem is None:
            self.n_broken += self._rules.broken("", text) is not None
        return problem


def surely_bad(gate: Quality, tally: Mapping[str, int], n_broken: int, n_before: int) -> str | None:
    """In words, that answers are surely bad; None where they may not be.

    `tally`: lines by cause, "ok" for none; `n_broken`: of the ok ones, those that break a rule; `n_before`: tests before
    this one. Of plans that are never as bad as the gate refuses at most 1 - `sure` are stopped in vain, by all tests.
    """
    faults = {cause: n for cause, n in tally.items() if cause in FAULTS}
    if n_broken:
        faults["break a rule"] = n_broken
    n_bad = sum(faults.values())
    n = n_bad + max(0, tally.get("ok", 0) - n_broken)
    doubt = (1 - float(gate.sure)) / ((n_before + 1) * (n_before + 2))
    if not n_bad or tail(n, n_bad, float(gate.refuse_if_bad_rate)) > doubt:
        return None
    most = ", ".join(f"{count} {cause}" for cause, count in sorted(faults.items(), key=lambda f: -f[1])[:3])
    return f"{n_bad} of {n} answers are bad by the free checks ({most}); {percent(gate.refuse_if_bad_rate)} are refused"


def halt(
    ledger: Ledger, shard: Shard, gate: Quality, tally: Mapping[str, int], n_broken: int, micros: int
) -> str | None:
    """Why nothing more of its plan is sent once a shard has settled so; None: it goes on. `micros`: what it cost.

    Rows that are sent again are no fair sample; and where nothing is left to send nothing can be saved.
    """
    names = {"job": shard.job, "plan": shard.plan}
    left = ledger.query("to_be_sent", **names)[0]["micros"]
    if (
        shard.role != "work"
        or shard.attempt > 1
        or not left
        or ledger.query("plan", job=shard.job, digest=shard.plan)[0]["past"]
    ):
        return None
    why = surely_bad(gate, tally, n_broken, int(ledger.query("n_settled", **names)[0]["n"]))
    if why is None:
        return None
    file = ledger.job(shard.job)["file"]
    spec = quote(file) if file else "JOB.YAML"
    return (
        f"{why}. These {shard.n_lines} rows cost ${format_usd(micros)}, the rest would cost at most ${format_usd(int(left))}: "
        f"mend the prompt and run it again, which makes another plan, or have this one go on all the same: "
        f"canwait run {spec} --past-canary"
    )


def stands(ledger: Ledger, shard: Shard) -> str | None:
    """Why a shard's plan was stopped, unless a person said that it goes on."""
    rows = ledger.query("halted", job=shard.job, plan=shard.plan)
    return str(rows[0]["halted"]) if rows else None


def is_left_behind(ledger: Ledger, shard: Shard) -> bool:
    """Whether the job's latest plan does not want a shard's rows."""
    plan = ledger.job(shard.job)["plan"]
    return not any(row["shard"] == shard.root for row in ledger.query("plan_shards", job=shard.job, plan=plan))


def first(ledger: Ledger, shard: Shard, canary: str | None) -> tuple[str, str] | None:
    """The shard that a planned one of a gated job waits for, and why in words; None: it need not wait.

    That is the canary, or where none was drawn the plan's first shard. It is home once it was sent and most of its lines
    have ended; what is sent again of it is not waited for.
    """
    if shard.id != shard.root:
        return None
    found = ledger.query("first_root", job=shard.job, plan=shard.plan)
    name = canary or (found[0]["id"] if found else shard.id)
    if name == shard.id or _is_home(ledger, name):
        return None
    n_lines = ledger.shard_row(name)["n_lines"]
    return name, f"waits for the canary: {n_lines} random rows" if canary else f"waits for the first {n_lines} rows"


def _is_home(ledger: Ledger, root: str) -> bool:
    out = [row for row in ledger.query("shards_of_root", root=root) if row["state"] in _OPEN]
    if not out or any(row["attempt"] == 1 for row in out):
        return not out
    vector = zlib.decompress(ledger.shard_row(root)["vector"])
    return 2 * vector.count(Outcome.PENDING) < len(vector)


def go_past(ledger: Ledger, job: str, who: str, now: datetime) -> None:
    """A person has a stopped job go on all the same. Raises NotFound where nothing was stopped."""
    with ledger.db.transaction("go_past") as tx:
        if not tx.count("plan_past", job=job, who=who):
            raise NotFound(what="job that was stopped for its answers", name=job)
        tx.run("job_resume", name=job)
        entries.journal(tx, now, job, None, "canary_passed", f"{who} says that it goes on all the same", who=who)
