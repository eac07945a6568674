"""A synthetic organisation: 40 call sites over two weeks, with what is true of each. A seed makes one.

Each site's log holds what a site of its kind plausibly logs, which is not all that is true of it: some interactive
sites say nothing about people at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import log
from pathlib import Path
from random import Random

from canwait.audit.calls import Call

DAYS = 14
START_S = 1_760_918_400  # Monday 2025-10-20, 00:00 UTC
HOUR_S, DAY_S = 3600, 86_400
USD_PER_TOKEN_MICROS = 1  # every token of every model costs one micro: spend is a count of tokens


@dataclass(frozen=True)
class Truth:
    """What is true of a site, whatever its log says."""

    site: str
    is_interactive: bool  # somebody waits for every answer
    deferrable: float = 0.0  # the share of its calls that can wait for hours
    is_known: bool = True  # whether the log can show it


@dataclass(frozen=True)
class Site:
    truth: Truth
    calls: tuple[Call, ...]  # in the order in which they end, as logs are written

    @property
    def spend(self) -> int:
        return sum((c.input_tokens or 0) + (c.output_tokens or 0) for c in self.calls)


def organisation(seed: int, size: int = 1) -> tuple[Site, ...]:
    """`size` multiplies the calls of a site; one is about 300."""
    sites = []
    for number, (kind, make) in enumerate(_SITES):
        random = Random(f"{seed} {number}")
        truth, calls = make(_Maker(random, f"{kind}/{number}.py:{random.randrange(10, 300)}", size))
        sites.append(Site(truth, tuple(sorted(calls, key=lambda c: c.end_us or c.start_us))))
    return tuple(sites)


def all_calls(sites: Sequence[Site]) -> list[Call]:
    """As one log has them."""
    return sorted((call for site in sites for call in site.calls), key=lambda c: c.end_us or c.start_us)


def write_log(calls: Sequence[Call], path: Path) -> Path:
    """As canwait's own record: JSON lines of what each call holds."""
    with path.open("w", encoding="utf-8") as file:
        for call in calls:
            held = {name: value for name, value in call._asdict().items() if value is not None and name != "text_hash"}
            file.write(json.dumps(held) + "\n")
    return path


@dataclass
class _Maker:
    random: Random
    site: str
    size: int

    def call(self, at_s: float, **held: object) -> Call:
        """A call with tokens and an end; `used_s` is how long after that its answer is used."""
        latency_s = held.pop("latency_s", None) or self.random.uniform(0.5, 6)
        used_s = held.pop("used_s", None)
        start_us = int((START_S + at_s) * 1e6)
        end_us = start_us + int(float(str(latency_s)) * 1e6)
        if used_s is not None:
            held["first_used_us"] = end_us + int(float(str(used_s)) * 1e6)
        defaults: dict[str, object] = {
            "model": self.random.choice(("large-1", "small-1")),
            "provider": "openai",
            "end_us": end_us,
            "input_tokens": self.random.randrange(200, 3000),
            "output_tokens": self.random.randrange(20, 400),
            "record_id": f"{self.random.getrandbits(64):x}",
        }
        return Call(start_us, self.site, **(defaults | held))  # type: ignore[arg-type]

    def truth(self, *, interactive: bool, deferrable: float = 0.0, known: bool = True) -> Truth:
        return Truth(self.site, interactive, deferrable, known)

    def office(self, n: int) -> list[float]:
        """Times at which people work: weekdays, from eight to six, with a lunch; a few at night."""
        found: list[float] = []
        while len(found) < n * self.size:
            day, hour = self.random.randrange(DAYS), self.random.gauss(13, 2.6)
            if self.random.random() < 0.03:
                hour = self.random.uniform(0, 24)
            if 0 <= hour < 24 and (day % 7 < 5 or self.random.random() < 0.1) and not 12.2 < hour < 12.8:
                found.append(day * DAY_S + hour * HOUR_S)
        return sorted(found)

    def pool(self, at_s: float, n: int, workers: int, latency_s: float) -> Iterator[tuple[float, float]]:
        """Start and latency of the calls of a pool of workers that is kept full."""
        free = [at_s + worker * 0.05 for worker in range(workers)]
        for _ in range(n * self.size):
            worker = min(range(workers), key=free.__getitem__)
            took = self.random.uniform(0.5, 1.5) * latency_s
            yield free[worker], took
            free[worker] += took + 0.001

    def reading(self) -> float:
        """Seconds until a person sees an answer."""
        return min(50.0, -log(1 - self.random.random()) * 4)

    def next_morning(self, at_s: float) -> float:
        """Seconds from then until somebody comes in after eight."""
        wait = (8 * HOUR_S - at_s) % DAY_S
        return wait + self.random.uniform(0, 3 * HOUR_S) + (DAY_S if wait < 2 * HOUR_S else 0)


_Made = tuple[Truth, list[Call]]


# ------------------------------------------------------------------------------------------------- somebody waits


def _chat(maker: _Maker, *, user: bool = True, stream: bool | None = True, used: bool = True) -> _Made:
    r, calls = maker.random, []
    for at in maker.office(90):
        who = f"user{r.randrange(60)}"
        session = f"{who}-{at:.0f}"
        for _ in range(r.randrange(1, 7)):
            calls.append(
                maker.call(
                    at,
                    user=who if user else None,
                    session=session,
                    stream=stream,
                    used_s=maker.reading() if used else None,
                )
            )
            at += 6 + r.lognormvariate(3.2, 0.9)
    return maker.truth(interactive=True), calls


def _copilot(maker: _Maker) -> _Made:
    r = maker.random
    says_who = r.random() < 0.5
    calls = [
        maker.call(at + burst * 3.1, stream=True, output_tokens=r.randrange(4, 30), latency_s=r.uniform(0.1, 0.6))
        for at in maker.office(100)
        for burst in range(r.randrange(1, 5))
    ]
    return maker.truth(interactive=True), [c._replace(user=f"dev{r.randrange(30)}") if says_who else c for c in calls]


def _agent(maker: _Maker) -> _Made:
    r, calls = maker.random, []
    trigger = r.choice((None, "user", "http"))
    for at in maker.office(40):
        session = f"run{at:.0f}"
        for _ in range(r.randrange(4, 15)):
            call = maker.call(at, session=session, tools=True, stream=False, trigger=trigger, actor="agents")
            calls.append(call)
            at += (call.end_us or 0) / 1e6 - call.start_us / 1e6 + r.uniform(0.05, 2.5)
    return maker.truth(interactive=True), calls


def _silent(maker: _Maker) -> _Made:
    """Nothing is logged about who is there."""
    return maker.truth(interactive=True), [maker.call(at, actor="gateway") for at in maker.office(300)]


def _plain_bot(maker: _Maker) -> _Made:
    """Answers come as a whole, through one key, in office hours."""
    return maker.truth(interactive=True), [maker.call(at, actor="bot", stream=False) for at in maker.office(300)]


def _classroom(maker: _Maker) -> _Made:
    """Thirty pupils begin at nine sharp every weekday, and no field says so."""
    r = maker.random
    lessons = [day * DAY_S + 9 * HOUR_S for day in range(DAYS) if day % 7 < 5]
    ats = [at + r.uniform(0, 2700) for at in lessons for _ in range(40 * maker.size)]
    return maker.truth(interactive=True), [maker.call(at, actor="school", stream=False) for at in ats]


def _search(maker: _Maker) -> _Made:
    """A query is embedded while its asker looks at the screen."""
    calls = [
        maker.call(at, operation="embeddings", output_tokens=0, input_tokens=12, latency_s=0.08, actor="search")
        for at in maker.office(400)
    ]
    return maker.truth(interactive=True), calls


def _poller(maker: _Maker) -> _Made:
    """A schedule looks into a mailbox every five minutes and answers customers."""
    r = maker.random
    ats = [slot * 300 + r.uniform(0, 4) for slot in range(DAYS * 288) if r.random() < 0.9]
    return maker.truth(interactive=True), [maker.call(at, trigger="cron", stream=False) for at in ats]


# -------------------------------------------------------------------------------------------------- minutes, or unclear


def _ci(maker: _Maker) -> _Made:
    """A build waits half an hour for it."""
    r, calls = maker.random, []
    says = r.choice(("deadline", "trigger", "both"))
    for at in maker.office(4):
        for start, took in maker.pool(at, 80, 8, 20):
            calls.append(
                maker.call(
                    start,
                    latency_s=took,
                    stream=False,
                    actor="ci",
                    deadline_s=1800.0 if says != "trigger" else None,
                    trigger="ci push" if says != "deadline" else None,
                )
            )
    return maker.truth(interactive=False), calls


def _summary(maker: _Maker) -> _Made:
    """Some are opened within four minutes, most the next day; nothing tells which."""
    r = maker.random
    calls = [
        maker.call(
            at,
            stream=False,
            trigger="queue",
            used_s=r.uniform(70, 240) if r.random() < 0.12 else maker.next_morning(at % DAY_S),
        )
        for at in maker.office(300)
    ]
    return maker.truth(interactive=False), calls


# ------------------------------------------------------------------------------------------------------ nobody waits


def _nightly(maker: _Maker, *, cron: bool, used: bool) -> _Made:
    r, calls = maker.random, []
    for day in range(DAYS):
        for start, took in maker.pool(day * DAY_S + 2 * HOUR_S + r.uniform(0, 120), 40, 12, 30):
            call = maker.call(
                start,
                latency_s=took,
                actor="etl",
                stream=False,
                temperature=0.0,
                trigger="airflow scheduled" if cron else None,
                used_s=maker.next_morning(start % DAY_S) if used else None,
                text_hash=sha256(f"{maker.site} {r.randrange(500)}".encode()).digest()[:16],
                failed=r.random() < 0.05,
            )
            calls.append(call)
            if call.failed:
                retry = {
                    "failed": False,
                    "record_id": f"{call.record_id}-retry",
                    "start_us": call.start_us + 60_000_000,
                }
                calls.append(call._replace(**retry, end_us=(call.end_us or 0) + 60_000_000))  # type: ignore[arg-type]
    return maker.truth(interactive=False, deferrable=1), calls


def _hourly(maker: _Maker, *, cron: bool) -> _Made:
    r, calls = maker.random, []
    for hour in range(DAYS * 24):
        at = hour * HOUR_S + 300 + r.uniform(0, 60)
        for _ in range(3 * maker.size):
            trigger = "cron" if cron else None
            calls.append(
                maker.call(at, operation="embeddings", output_tokens=0, latency_s=0.5, trigger=trigger, actor="index")
            )
            at += 1
    return maker.truth(interactive=False, deferrable=1), calls


def _weekly(maker: _Maker, *, deadline: bool) -> _Made:
    calls = [
        maker.call(
            start,
            latency_s=took,
            stream=False,
            deadline_s=2.0 * DAY_S if deadline else None,
            trigger=None if deadline else "dagster schedule",
        )
        for week in range(2)
        for start, took in maker.pool(week * 7 * DAY_S + 5 * DAY_S, 120, 4, 10)
    ]
    return maker.truth(interactive=False, deferrable=1), calls


def _backfill(maker: _Maker, *, deadline: bool) -> _Made:
    """By hand, now and then, for some hours; the pool is full."""
    r = maker.random
    calls = [
        maker.call(start, latency_s=took, stream=False, actor="backfill", deadline_s=5.0 * DAY_S if deadline else None)
        for day in r.sample(range(DAYS), 2)
        for start, took in maker.pool(day * DAY_S + r.uniform(8, 15) * HOUR_S, 300, 16, 300)
    ]
    return maker.truth(interactive=False, deferrable=1), calls


def _hybrid(maker: _Maker, *, by: str) -> _Made:
    """One function, called by a page and by the night."""
    r, calls = maker.random, []
    for at in maker.office(100):
        calls.append(
            maker.call(
                at,
                trigger="http" if by == "trigger" else None,
                user=f"user{r.randrange(40)}" if by == "user" else None,
                used_s=maker.reading() if by == "user" else None,
            )
        )
    for day in range(DAYS):
        for start, took in maker.pool(day * DAY_S + 3 * HOUR_S, 15, 5, 20):
            calls.append(
                maker.call(
                    start,
                    latency_s=took,
                    trigger="cron" if by == "trigger" else None,
                    used_s=maker.next_morning(start % DAY_S) if by == "user" else None,
                )
            )
    n_night = DAYS * 15 * maker.size
    return maker.truth(interactive=False, deferrable=n_night / len(calls)), calls


def _unknown(maker: _Maker) -> _Made:
    """It could wait, and no log shows it."""
    calls = [maker.call(at, actor="worker") for at in maker.office(60)]
    return maker.truth(interactive=False, deferrable=1, known=False), calls


_SITES: tuple[tuple[str, Callable[[_Maker], _Made]], ...] = (
    *[("chat", _chat)] * 3,
    *[("chat", lambda m: _chat(m, user=False))] * 2,
    *[("chat", lambda m: _chat(m, stream=None, used=False))] * 2,
    ("chat", lambda m: _chat(m, user=False, stream=False, used=False)),
    *[("copilot", _copilot)] * 3,
    *[("agent", _agent)] * 3,
    *[("silent", _silent)] * 2,
    *[("bot", _plain_bot)] * 2,
    ("school", _classroom),
    ("search", _search),
    ("mail", _poller),
    *[("ci", _ci)] * 2,
    *[("summary", _summary)] * 2,
    *[("etl", lambda m: _nightly(m, cron=True, used=False))] * 2,
    ("etl", lambda m: _nightly(m, cron=True, used=True)),
    ("etl", lambda m: _nightly(m, cron=False, used=True)),
    ("etl", lambda m: _nightly(m, cron=False, used=False)),
    *[("embed", lambda m: _hourly(m, cron=True))] * 2,
    ("embed", lambda m: _hourly(m, cron=False)),
    ("report", lambda m: _weekly(m, deadline=True)),
    ("report", lambda m: _weekly(m, deadline=False)),
    ("backfill", lambda m: _backfill(m, deadline=True)),
    ("backfill", lambda m: _backfill(m, deadline=False)),
    ("hybrid", lambda m: _hybrid(m, by="trigger")),
    ("hybrid", lambda m: _hybrid(m, by="user")),
    ("misc", _unknown),
)
