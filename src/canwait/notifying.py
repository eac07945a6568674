"""Tells people, once, and knows whether it arrived: the ledger's part for notices, and the loop that empties its outbox.

One transaction makes the notices of new journal events, moves the cursor and puts a delivery into the outbox for everybody
who is to be told. Another claims a delivery and notes that it is being sent; a third, what came of it. A process that dies
between the two leaves a try without an outcome, and the delivery goes out again under the same id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from .blobs import Blobs
from .channels import Channel, Message, Undelivered, fault_of
from .channels.opening import open_channel
from .clock import Clock, from_us, to_us
from .db import Row, Tx
from .entries import journal
from .errors import CanwaitError, Problem, SpecError
from .knowing import Looking
from .ledger import Ledger
from .notices import ALARMS, ENDS, KINDS, Notice, Standing, from_payload, letter, of_event, of_finding, payload, proof
from .types import Event, Job, Notify
from .watching import SHARES, Drift, Finding, Reached, budget_alarms, fresh_alarms, key

EVERYONE = "CANWAIT_NOTIFY"  # whom every job of this environment tells
MOST_TRIES = 12  # with the waits below: for about two days
_FIRST_S, _FACTOR, _LONGEST_S = 5.0, 5.0, 12 * 3600.0
_LEASE_S = 180.0  # longer than a channel takes
_LOOK_S = 60.0  # between two looks of a run at its own job
_MOST_S = 20.0  # for which a run waits for its news

Opened = Callable[[Notify, Mapping[str, str]], Channel]
Findings = Iterable[tuple[str | None, Finding]]  # each with the job it is about, where it is about one

_log = logging.getLogger("canwait")


def targets(text: str, source: str) -> tuple[Notify, ...]:
    """Targets that stand in one text with space between them. Raises SpecError; `source`: where it stands."""
    found = text.split()
    if faults := [fault for to in found if (fault := fault_of(to))]:
        raise SpecError([Problem(source, None, None, None, fault) for fault in faults], hint="docs/notifications.md")
    return tuple(map(Notify, found))


# ---------------------------------------------------------------------------------------------------- who is to be told


def listen(ledger: Ledger, job: str, named: Sequence[Notify], now: datetime) -> None:
    """Tell these from now on, as the job's file says, and nobody whom it no longer names."""
    with ledger.db.reading() as tx:
        if not named and not tx.run("audience_of", job=job):
            return
    with ledger.db.transaction("listen") as tx:
        _note(tx, ledger.id, now)  # what happened before is not news to them
        since = tx.run("notices_end")[0]["seq"]
        for row in tx.run("audience_of", job=job):
            if row["target"] not in {n.to for n in named}:
                tx.run("audience_delete", job=job, target=row["target"], once=0)
        for n in named:
            _add(tx, job, n, since)


def tell(ledger: Ledger, job: str, asked: Sequence[Notify], now: datetime) -> None:
    """Tell these of the job's next end, each once: what somebody asked for who started it."""
    if asked:
        with ledger.db.transaction("tell") as tx:
            _note(tx, ledger.id, now)
            since = tx.run("notices_end")[0]["seq"]
            for n in asked:
                _add(tx, job, n, since, once=1)


def _add(tx: Tx, job: str, n: Notify, since: int, *, once: int = 0) -> None:
    tx.run("audience_insert", job=job, target=n.to, once=once, secret=n.secret, kinds=json.dumps(n.kinds), since=since)


def refused(ledger: Ledger, env: Mapping[str, str], clock: Clock, job: Job, why: str) -> None:
    """Tell that a budget does not hold what a job would do, so that it did not begin: once for the same reason. Raises nothing."""
    if not job.notify and not env.get(EVERYONE):
        return
    now = clock.now()
    with _quietly(job.name):
        listen(ledger, job.name, job.notify, now)
        with ledger.db.transaction("refused_run") as tx:
            if not tx.count("alarm_insert", name=f"refused {job.name} {why}", kind="refused", job=job.name):
                return
            journal(tx, now, job.name, None, "budget_refused", why)
    after_run(ledger, env, clock, job.name, ended=False)


# ------------------------------------------------------------------------------------------------- what there is to tell


def note(
    ledger: Ledger,
    now: datetime,
    *,
    everyone: Sequence[Notify] = (),
    ended: str | None = None,
    found: Findings | None = None,
    kinds: Collection[str] = ALARMS,
    of: str | None = None,
    stood: Collection[str] | None = None,
) -> int:
    """Make the notices of new events, and of findings that are new, and put them into the outbox; how many deliveries.

    `everyone`: whom every job tells. `ended`: a job that this process brought to its end, whatever the journal says of it.
    `found`: everything of these `kinds` that is so now of this job, None: of all; None: nobody looked. `stood`: the alarms
    that stood when the look for it began (alarms), for others may have been told since; None: those that stand now.
    """
    with ledger.db.transaction("note") as tx:
        since = tx.run("notices_end")[0]["seq"]
        for n in everyone:
            _add(tx, "", n, since)
        _note(tx, ledger.id, now)
        if found is not None:
            _alarms(tx, ledger.id, found, kinds, of, stood, now)
        made = _hand_out(tx, {n.to for n in everyone}, now)
        return made + (_ended(tx, ledger.id, ended, now) if ended else 0)


def _note(tx: Tx, ledger: str, now: datetime) -> None:
    """The notices of the events since the last time."""
    done, end = tx.run("noticed")[0]["seq"], tx.run("events_end")[0]["seq"]
    if end == done:
        return
    for row in tx.run("events_of_note", since=done):
        _insert(tx, _of_row(tx, ledger, row))
    tx.run("noticed_set", seq=end)


def _of_row(tx: Tx, ledger: str, row: Row) -> Notice | None:
    event = Event(
        row["seq"], f"evt_{ledger[:12]}_{row['seq']}", from_us(row["at_us"]), row["job"], row["shard"], row["kind"],
        row["reason"], json.loads(row["facts"]),
    )  # fmt: skip
    return of_event(event, _standing(tx, event.job) if event.job else Standing())


def _standing(tx: Tx, name: str) -> Standing:
    jobs, budgets = tx.run("job", name=name), tx.run("budget", id=f"job:{name}")
    lots = tx.run("lot_judged", job=name)
    spent, held, limit = (budgets[0][f"{what}_micros"] if budgets else None for what in ("spent", "held", "limit"))
    loaded = json.loads(jobs[0]["loaded"])["rows"] if jobs and jobs[0]["loaded"] else None
    lot = (int(lots[0]["n_rows"]), int(lots[0]["n_judged"]), int(lots[0]["n_bad"] or 0)) if lots else (None, 0, 0)
    return Standing(spent or 0, held or 0, limit, loaded, *lot)


def _insert(tx: Tx, notice: Notice | None) -> None:
    if notice is not None:
        body = json.dumps(payload(notice), ensure_ascii=False)
        tx.run("notice_insert", id=notice.id, job=notice.job, kind=notice.kind, body=body, at=to_us(notice.at))


def _alarms(
    tx: Tx,
    ledger: str,
    found: Findings,
    kinds: Collection[str],
    of: str | None,
    stood: Collection[str] | None,
    now: datetime,
) -> None:
    """An alarm is told once, until it has ceased."""
    pairs = [*found]
    jobs = {key(finding): job for job, finding in pairs}
    rows = [row for row in tx.run("alarms") if row["kind"] in kinds]
    before = {row["name"]: row["job"] for row in rows}
    alarms = fresh_alarms(before, (finding for _, finding in pairs if finding.kind in kinds))
    for finding in alarms.fresh:
        job = jobs[key(finding)]
        _insert(tx, of_finding(finding, job, now, ledger))
        tx.run("alarm_insert", name=key(finding), kind=finding.kind, job=job)
    for name in sorted(before.keys() - alarms.standing):
        if of in (None, before[name]) and (stood is None or name in stood):
            tx.run("alarm_delete", name=name)


def _hand_out(tx: Tx, everyone: Collection[str], now: datetime) -> int:
    """Into the outbox what somebody has not been told of."""
    silenced = {row["target"] for row in tx.run("silenced")}
    told_once: set[tuple[str, str]] = set()
    made = 0
    for row in tx.run("audience_due"):
        if row["of_job"] == "" and row["target"] not in everyone:  # whom only another environment tells
            continue
        who = {"job": row["of_job"], "target": row["target"], "once": row["is_once"]}
        kinds = ENDS if row["is_once"] else json.loads(row["kinds"]) or KINDS
        if row["kind"] in kinds and (row["of_job"], row["target"]) not in told_once:
            made += row["target"] not in silenced and _deliver(tx, row["id"], row, now)
            if row["is_once"]:
                told_once.add((row["of_job"], row["target"]))
                tx.run("audience_delete", **who)
                continue
        tx.run("audience_since", since=row["seq"], **who)
    return made


def _ended(tx: Tx, ledger: str, job: str, now: datetime) -> int:
    """Whoever still waits for the end of a job that was at its end already, and so has not changed."""
    waiting, states = tx.run("audience_once", job=job), tx.run("event_of_state", job=job)
    notice = _of_row(tx, ledger, states[0]) if waiting and states else None
    if notice is None or notice.kind not in ENDS:
        return 0
    _insert(tx, notice)
    made = 0
    for row in waiting:
        made += _deliver(tx, notice.id, row, now)
        tx.run("audience_delete", job=job, target=row["target"], once=1)
    return made


def _deliver(tx: Tx, notice: str, to: Row, now: datetime) -> int:
    """Into the outbox, unless it has been there: one notice goes to one target once, however many named it."""
    return tx.count(
        "delivery_insert", id=_delivery_id(notice, to["target"]), notice=notice, target=to["target"],
        secret=to["secret"], at=to_us(now),
    )  # fmt: skip


def _delivery_id(notice: str, target: str) -> str:
    return f"msg_{hashlib.sha256(f'{notice} {target}'.encode()).hexdigest()[:24]}"


def alarms(ledger: Ledger) -> set[str]:
    """The alarms that stand: told, and not ceased."""
    return {row["name"] for row in ledger.query("alarms")}


def findings(
    ledger: Ledger, now: datetime, blobs: Blobs | None = None, of: str | None = None
) -> list[tuple[str | None, Finding]]:
    """What is so now and may be worth an alarm: of batches that are out, of readers and their sets, of budgets.

    `blobs`: for what a job will cost; None: that is not asked. `of`: one job and its own budget; None: everything.
    """
    looking, before = Looking(ledger, now, of), alarms(ledger)
    drifts = _drifts(ledger, looking, blobs, before) if blobs else ()
    return [*looking.alarms(), *_budgets(ledger, looking, blobs, of, before), *drifts]


def _shares(tell_at: str | None) -> Sequence[Decimal]:
    return tuple(map(Decimal, json.loads(tell_at))) if tell_at else SHARES


def _drifts(ledger: Ledger, looking: Looking, blobs: Blobs, before: Collection[str]) -> Iterator[tuple[str, Finding]]:
    """Jobs whose answers are longer than planned."""
    from .outlook import drifted

    for job in looking.unfinished:
        if found := drifted(ledger, blobs, job, stands=f"{Drift.kind} {job}" in before):
            yield job, found


def _budgets(
    ledger: Ledger, looking: Looking, blobs: Blobs | None, of: str | None, before: Collection[str]
) -> Iterator[tuple[str | None, Finding]]:
    """Shares of caps that are reached: by what is spent; by what is held, too, where jobs share a budget, for a job's own
    holds what its plan said; and by what a job costs at most, 95 times in 100, where that is known."""
    for row in ledger.query("budgets"):
        job = row["id"][4:] if row["id"].startswith("job:") else None
        if row["limit_micros"] and of in (None, job):
            spent, held = row["spent_micros"], row["held_micros"]
            guaranteed = _guaranteed(ledger, blobs, job, spent) if blobs and job in looking.unfinished else None
            found = budget_alarms(
                row["id"], row["limit_micros"], spent_micros=spent, held_micros=0 if job else spent + held,
                guaranteed_micros=guaranteed, shares=_shares(row["tell_at"]), standing=before,
            )  # fmt: skip
            yield from (
                (job, each) for each in found if key(each) in before or not any(_says(other, each) for other in found)
            )


def _says(other: Reached, each: Reached) -> bool:
    """Whether one alarm says another, too: then it is told alone."""
    if other.what == each.what:
        return other.share > each.share
    return other.what == "spent" and other.share >= each.share


def _guaranteed(ledger: Ledger, blobs: Blobs, job: str, spent: int) -> int | None:
    """What all of a job costs at most, 95 times in 100, if every row is finished; None before its canary is known."""
    from .outlook import outlook

    rest = outlook(ledger, blobs, job)
    if rest.finish_guaranteed_micros is None:
        return None
    unknown = int(ledger.query("job_money", job=job)[0]["unknown_micros"])
    return max(0, spent + unknown - rest.paid_micros) + rest.finish_guaranteed_micros


# -------------------------------------------------------------------------------------------------------- the outbox


@dataclass(frozen=True, slots=True)
class Try:
    number: int  # from 1
    at: datetime
    outcome: str | None  # arrived, later, failed; None: on its way, or its process died
    words: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notice to one target, and what came of it."""

    id: str  # the webhook-id
    notice: Notice
    target: str
    state: str  # waiting, arrived, failed
    next_at: datetime
    tries: tuple[Try, ...]


def deliver(
    ledger: Ledger,
    env: Mapping[str, str],
    clock: Clock,
    *,
    job: str | None = None,
    only: str | None = None,
    until: datetime | None = None,
    opened: Opened = open_channel,
) -> list[str]:
    """Send what is due, of one job or of all, or one delivery; the ids of what was tried, each once a call.

    No fault of a target's is raised: it is in the log. `until`: nothing new is begun after it.
    """
    tried: list[str] = []
    started = clock.now()
    while until is None or clock.now() < until:
        claimed = _claim(ledger, started, clock.now(), job, only)
        if claimed is None:
            break
        tried.append(claimed["id"])
        _try(ledger, claimed, env, clock, opened)
    return tried


def _claim(ledger: Ledger, due: datetime, now: datetime, job: str | None, only: str | None) -> Row | None:
    """A delivery that was due then; this caller sends it, and its next try is in the log."""
    with ledger.db.transaction("claim_delivery") as tx:
        rows = tx.run("delivery_due", now=to_us(due), job=job or "", id=only or "")
        if not rows:
            return None
        row = {**rows[0], "number": rows[0]["n_tries"] + 1}
        tx.run("delivery_claim", id=row["id"], lease=to_us(now + timedelta(seconds=_LEASE_S)))
        tx.run("try_begin", delivery=row["id"], number=row["number"], at=to_us(now))
        return row


def _try(ledger: Ledger, row: Row, env: Mapping[str, str], clock: Clock, opened: Opened) -> None:
    notice = from_payload(json.loads(row["body"]))
    message = Message(row["id"], clock.now(), notice.title, letter(notice), payload(notice))
    gone, after_s = False, 0.0
    try:
        state, words = "arrived", opened(Notify(row["target"], row["secret"]), env).send(message)
    except Undelivered as error:
        state, words, gone, after_s = "waiting" if error.again else "failed", str(error), error.gone, error.after_s
    except Exception as error:  # a channel's own mistake is no reason for a run to fail
        state, words = "waiting", f"our own mistake: {type(error).__name__}"
    if state == "waiting" and (row["number"] >= MOST_TRIES or notice.kind == "test"):
        state = "failed"
    now = clock.now()
    next_at = now + timedelta(seconds=wait_s(row["id"], row["number"], after_s))
    with ledger.db.transaction("delivered") as tx:
        tx.run("try_end", delivery=row["id"], number=row["number"], outcome=_OUTCOMES.get(state, state), words=words)
        tx.run("delivery_end", id=row["id"], number=row["number"], state=state, next=to_us(next_at))
        if gone:
            tx.run("silence", target=row["target"], at=to_us(now))
            tx.run("delivery_give_up", target=row["target"])
        elif state == "arrived":
            tx.run("unsilence", target=row["target"])


_OUTCOMES = {"waiting": "later"}


def wait_s(delivery: str, number: int, after_s: float = 0.0) -> float:
    """How long after its `number`-th try a delivery waits: 5 s, 25 s, ... 12 h, or as long as it was asked for within that.

    Each waits between half of that and all of it, by chance that its id and number decide: what failed together does not
    come back together.
    """
    longest: float = min(_LONGEST_S, _FIRST_S * _FACTOR ** (number - 1))
    chance = random.Random(f"{delivery} {number}").random()
    return max(longest * (1 + chance) / 2, min(after_s, _LONGEST_S))


def deliveries(ledger: Ledger, count: int = 100, only: str | None = None) -> list[Delivery]:
    """The delivery log, the latest notices first; or one delivery."""
    with ledger.db.reading() as tx:
        return [
            Delivery(
                row["id"], from_payload(json.loads(row["body"])), row["target"], row["state"], from_us(row["next_us"]),
                tuple(
                    Try(t["number"], from_us(t["at_us"]), t["outcome"], t["words"]) for t in tx.run("tries", delivery=row["id"])
                ),
            )
            for row in tx.run("deliveries", count=count, id=only or "")
        ]  # fmt: skip


def ping(
    ledger: Ledger, target: Notify, env: Mapping[str, str], clock: Clock, opened: Opened = open_channel
) -> Delivery:
    """Send one message now, to see whether a target can be reached; it is tried once."""
    now = clock.now()
    notice = proof(f"tst_{hashlib.sha256(f'{ledger.id} {target.to} {to_us(now)}'.encode()).hexdigest()[:24]}", now)
    with ledger.db.transaction("test_notice") as tx:
        _insert(tx, notice)
        _deliver(tx, notice.id, {"target": target.to, "secret": target.secret}, now)
    found = _delivery_id(notice.id, target.to)
    deliver(ledger, env, clock, only=found, opened=opened)
    return deliveries(ledger, 1, found)[0]


def pass_once(ledger: Ledger, env: Mapping[str, str], clock: Clock, blobs: Blobs | None = None) -> list[Delivery]:
    """Look at everything, tell what there is to tell, and what came of it. Raises SpecError for a wrong CANWAIT_NOTIFY."""
    everyone, now, stood = targets(env.get(EVERYONE, ""), EVERYONE), clock.now(), alarms(ledger)
    note(ledger, now, everyone=everyone, found=findings(ledger, now, blobs), stood=stood)
    return [delivery for id in deliver(ledger, env, clock) for delivery in deliveries(ledger, 1, id)]


@contextmanager
def feeding(
    ledger: Ledger,
    blobs: Blobs,
    env: Mapping[str, str],
    clock: Clock,
    job: str,
    watch: Callable[[], None] = lambda: None,
    opened: Opened = open_channel,
) -> Iterator[Callable[[], None]]:
    """As `watch`, a function to call often while a job runs, that also looks once a minute; what there is to tell is sent
    beside the run, which waits for no target."""
    look_at = clock.now() + timedelta(seconds=_LOOK_S)
    sending: threading.Thread | None = None

    def send(now: datetime) -> None:
        with _quietly(job):
            deliver(ledger, env, clock, job=job, until=now + timedelta(seconds=_MOST_S), opened=opened)

    def look() -> None:
        nonlocal look_at, sending
        watch()
        now = clock.now()
        if now < look_at or (sending is not None and sending.is_alive()):
            return
        look_at = now + timedelta(seconds=_LOOK_S)
        with _quietly(job):
            everyone, stood = targets(env.get(EVERYONE, ""), EVERYONE), alarms(ledger)
            note(ledger, now, everyone=everyone, found=findings(ledger, now, blobs, job), of=job, stood=stood)
            sending = threading.Thread(target=send, args=(now,), daemon=True, name=f"news of {job}")
            sending.start()

    try:
        yield look
    finally:
        if sending is not None:
            sending.join(_MOST_S)


def after_run(
    ledger: Ledger, env: Mapping[str, str], clock: Clock, job: str, *, ended: bool, blobs: Blobs | None = None
) -> None:
    """Tell what a run, or a person, brought, and with `blobs` also what there is to be seen. Raises nothing, and begins
    nothing after 20 s: a run is worth more than its news."""
    with _quietly(job):
        everyone, now, stood = targets(env.get(EVERYONE, ""), EVERYONE), clock.now(), alarms(ledger)
        found = findings(ledger, now, blobs, job) if blobs else None
        note(ledger, now, everyone=everyone, ended=job if ended else None, found=found, of=job, stood=stood)
        deliver(ledger, env, clock, job=job, until=now + timedelta(seconds=_MOST_S))


@contextmanager
def _quietly(job: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _log.warning(
            "nobody was told of %s: %s", job, error if isinstance(error, CanwaitError) else type(error).__name__
        )
