"""Stops a plan whose answers are bad, before more of it is paid (methods.md 5.3).

Of a job with a gate one shard goes first: the canary. It and every shard after it is tested when it settles, in the same
transaction: by answers that do not fit the schema, are empty, cut short or declined, and by rules over the answer alone.
All of its rows are looked at, and nothing is read twice. Whether an answer is right nobody knows yet; that is the gate's,
and where its canary is judged (canary_gate.py) what people say of that is written here.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from shlex import quote

from . import entries
from .db import Tx
from .errors import NotFound
from .gate import percent, tail
from .language import codes_of
from .ledger import Ledger
from .lifecycle import OPEN
from .price import format_usd
from .types import JobState, Outcome, Quality, Shard, Terms

CANARY_WAITS = "the canary waits to be judged"  # what the words of that question begin with

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
        self.broken: Counter[str] = Counter()  # by what they do: break a rule, or be in another language
        self.check = check
        if terms.quality is not None and terms.quality.rules:
            from .checks import Rules, is_of_the_answer

            rules = [rule for rule in terms.quality.rules if is_of_the_answer(rule)]
            schema = terms.output_schema
            self._rules, self._schema = Rules(rules, is_json=schema is not None, schema=schema), check
            self.check = self._counted

    def _counted(self, text: str) -> str | None:
        problem = self._schema(text)
        if problem is None and (rule := self._rules.broken("", text)) is not None:
            self.broken["in another language" if codes_of(self._rules.words[rule]) else "break a rule"] += 1
        return problem


def surely_bad(gate: Quality, tally: Mapping[str, int], broken: Mapping[str, int], n_before: int) -> str | None:
    """In words, that answers are surely bad; None where they may not be.

    `tally`: lines by cause, "ok" for none; `broken`: of the ok ones, as of Watch; `n_before`: tests before this one.
    Of plans that are never as bad as the gate refuses at most 1 - `sure` are stopped in vain, by all tests.
    """
    faults = {**{cause: n for cause, n in tally.items() if cause in FAULTS}, **broken}
    n_bad = sum(faults.values())
    n = n_bad + max(0, tally.get("ok", 0) - sum(broken.values()))
    doubt = (1 - float(gate.sure)) / ((n_before + 1) * (n_before + 2))
    if not n_bad or tail(n, n_bad, float(gate.refuse_if_bad_rate)) > doubt:
        return None
    most = ", ".join(f"{count} {cause}" for cause, count in sorted(faults.items(), key=lambda f: -f[1])[:3])
    return f"{n_bad} of {n} answers are bad by the free checks ({most}); {percent(gate.refuse_if_bad_rate)} are refused"


def halt(
    ledger: Ledger, shard: Shard, gate: Quality, tally: Mapping[str, int], broken: Mapping[str, int], micros: int
) -> str | None:
    """Why nothing more of its plan is sent once a shard has settled so; None: it goes on. `micros`: what it cost.

    Rows that are sent again are no fair sample; and where nothing is left to send nothing can be saved.
    """
    names = {"job": shard.job, "plan": shard.plan}
    left = ledger.query("to_be_sent", **names)[0]
    if (
        shard.role != "work"
        or shard.attempt > 1
        or not left["n_shards"]
        or ledger.query("plan", job=shard.job, digest=shard.plan)[0]["past"]
    ):
        return None
    why = surely_bad(gate, tally, broken, int(ledger.query("n_settled", **names)[0]["n"]))
    if why is None:
        return None
    return f"{why}. {_way_on(shard.n_lines, micros, int(left['micros']), ledger.job(shard.job)['file'])}"


def _way_on(n_rows: int, micros: int, left: int, file: str | None) -> str:
    """What was paid, what was not, and what can be done."""
    return (
        f"These {n_rows} rows cost ${format_usd(micros)}, the rest would cost at most ${format_usd(left)}: "
        f"mend the prompt and run it again, which makes another plan, or have this one go on all the same: "
        f"canwait run {quote(file) if file else 'JOB.YAML'} --past-canary"
    )


def stands(ledger: Ledger, shard: Shard) -> str | None:
    """Why a shard's plan was stopped, unless a person said that it goes on."""
    rows = ledger.query("halted", job=shard.job, plan=shard.plan)
    return str(rows[0]["halted"]) if rows else None


def is_left_behind(ledger: Ledger, shard: Shard) -> bool:
    """Whether the job's latest plan does not want a shard's rows."""
    plan = ledger.job(shard.job)["plan"]
    return not any(row["shard"] == shard.root for row in ledger.query("plan_order", job=shard.job, plan=plan))


def first(ledger: Ledger, shard: Shard, canary: str | None, *, whole: bool = False) -> tuple[str, str] | None:
    """The shard that a planned one of a gated job waits for, and why in words; None: it need not wait.

    That is the canary, or where none was drawn the plan's first shard. It is home once it was sent and most of its lines
    have ended; what is sent again of it is not waited for, unless it is to be judged `whole`.
    """
    if shard.id != shard.root:
        return None
    found = ledger.query("first_root", job=shard.job, plan=shard.plan)
    name = canary or (found[0]["id"] if found else shard.id)
    if name == shard.id or _is_home(ledger, name, whole=whole):
        return None
    n_lines = ledger.shard_row(name)["n_lines"]
    return name, f"waits for the canary: {n_lines} random rows" if canary else f"waits for the first {n_lines} rows"


def _is_home(ledger: Ledger, root: str, *, whole: bool) -> bool:
    out = [row for row in ledger.query("shards_of_root", root=root) if row["state"] in _OPEN]
    if whole or not out or any(row["attempt"] == 1 for row in out):
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


# ---------------------------------------------------------------------------------------------------- a judged canary


def ask(tx: Tx, shard: Shard, canary: str, now: datetime) -> str:
    """Send nothing more of a held shard's job before people have judged a canary; in words, with what to type."""
    n_rows, cost, left = _sums(tx, shard.job, shard.plan, canary)
    why = (
        f"{CANARY_WAITS}: its {n_rows} rows cost ${format_usd(cost)}, the rest would cost at most ${format_usd(left)}; "
        f"it goes on with: canwait inspect {shard.job}"
    )
    if tx.count("job_pause", name=shard.job, why=why):
        _state(tx, shard.job, JobState.GATE, why, now)
    return why


def is_asked(paused: str | None) -> bool:
    """Whether a job is paused for a canary that people must judge."""
    return paused is not None and paused.startswith(CANARY_WAITS)


def judged(tx: Tx, job: str, plan: str, canary: str, refused: str | None, now: datetime) -> None:
    """With the verdict on a canary: nothing more of its plan is sent, or all of it. `refused`: why in words, if it was."""
    row, why = tx.run("job", name=job)[0], "the canary was accepted, so the rest is sent"
    if refused is not None:
        why = f"the canary was {refused}. {_way_on(*_sums(tx, job, plan, canary), row['file'])}"
        tx.run("shard_halted", id=canary, why=why)
    if not is_asked(row["paused"]):  # something else holds it; or a canary of a plan that it has left behind was judged
        return
    tx.run("job_resume", name=job)
    if refused is None:
        entries.journal(tx, now, job, None, "job_resumed", why)
    else:
        tx.run("job_pause", name=job, why=why)
        entries.journal(tx, now, job, None, "job_paused", why)
    _state(tx, job, JobState.IN_PROGRESS, why, now)


def _sums(tx: Tx, job: str, plan: str, canary: str) -> tuple[int, int, int]:
    """The rows of a canary, the micros they cost, and those that the rest of the plan would cost at most."""
    cost = sum(row["confirmed_micros"] for row in tx.run("shards_of_root", root=canary))
    left = tx.run("to_be_sent", job=job, plan=plan)[0]["micros"]
    return tx.run("shard", id=canary)[0]["n_lines"], cost, int(left)


def _state(tx: Tx, job: str, state: JobState, why: str, now: datetime) -> None:
    row = tx.run("job", name=job)[0]
    if (row["state"], row["reason"]) != (state.value, why):
        tx.run("job_state", name=job, state=state.value, reason=why)
        entries.journal(tx, now, job, None, "job_state", why, state=state.value)
