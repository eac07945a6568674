"""Calls -> facts, streamed: any number of calls in bounded memory, in roughly the order they were logged.

What is counted is exact; what is sampled says so, and shares its room with all other sites (sampling.py). There are at most
MAX_SITES of them: the calls of later ones are summed under OTHER_SITES.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from random import Random

from ..types import Tier, Usage
from .arriving import Slots
from .calls import Call
from .facts import Group, ModelUse, Prefix, Repeats, SiteFacts
from .prefixes import near_duplicates, prefix_of
from .sampling import Distinct, Equals, InFlight, Reservoir, Rooms, Seen, Sessions, Texts, name_hash
from .triggers import BUILD, REQUEST, SCHEDULED, TASK, kind_of

MAX_SITES = 5000
OTHER_SITES = "(other sites)"  # what stands for those beyond
MAX_NAMES = 32  # values of a field of a site that are told apart
OTHER = "(other)"  # what stands for those beyond
MAX_CELLS = 256  # of models in groups of a site; beyond them triggers are not told apart

_LOOK_EVERY = 256  # calls, between looks at how much room there is
_MINUTE_US, _QUARTER_US, _HOUR_US = 60_000_000, 900_000_000, 3_600_000_000
# Triggers beyond MAX_NAMES, by what they say of who waits.
_OTHER_TRIGGERS = {
    SCHEDULED: "(other schedule)",
    TASK: "(other dag)",
    REQUEST: "(other request)",
    BUILD: "(other build)",
    None: OTHER,
}
_CUT = frozenset({"length", "max_tokens", "MAX_TOKENS", "incomplete", "max_output_tokens"})  # finished at the cap


class Gatherer:
    """Folds calls into the facts of their sites. The same seed and calls give the same facts."""

    def __init__(self, seed: int = 0) -> None:
        self.n_calls = 0
        self.n_other_calls = 0  # summed under OTHER_SITES
        self.first_us: int | None = None
        self.last_us: int | None = None
        self._random = Random(seed)
        self._rooms = Rooms()
        self._seen = Seen()
        self._sites: dict[str, _Site] = {}

    @property
    def n_ids_forgotten(self) -> int:
        """Above zero, a second record of a call may have been counted as a call."""
        return self._seen.n_forgotten

    @property
    def names(self) -> list[str]:
        """Of the sites whose facts have not been told, in order."""
        return sorted(self._sites)

    def add(self, call: Call) -> bool:
        """Whether the call is new: False for a second record of one that was read before."""
        start_us = call.start_us
        # An id alone does not name a call: row numbers begin anew in every file.
        if call.record_id is not None and self._seen.again(hash((call.record_id, start_us))):
            return False
        self.n_calls += 1
        if self.first_us is None or self.last_us is None:
            self.first_us = self.last_us = start_us
        elif start_us > self.last_us:
            self.last_us = start_us
        elif start_us < self.first_us:
            self.first_us = start_us
        site = self._sites.get(call.site)
        if site is None:
            site = self._new_site(call.site)
        site.add(call)
        if not self.n_calls % _LOOK_EVERY and self._rooms.crowded():
            for site in self._sites.values():
                site.shrink()
        return True

    def facts(self) -> Iterator[SiteFacts]:
        """Of every site, by name; each is told once, for what was kept of it is then given up."""
        for name in self.names:
            yield self._sites.pop(name).facts(name)

    def _new_site(self, name: str) -> _Site:
        if len(self._sites) >= MAX_SITES and name != OTHER_SITES:
            self.n_other_calls += 1
            name = OTHER_SITES
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(self._random, self._rooms)
        return site


_Used = tuple[str, str, Tier | str | None, str]  # provider, model, tier, operation
_Kind = tuple[str | None, bool, bool | None, bool]  # trigger, with a user, streaming, used late


class _Cell:
    """What calls of one kind used of one model on one tier."""

    __slots__ = (
        *("n_calls", "n_unmetered", "n_reported", "reported_usd", "used", "failed"),
        *("n_used", "n_minute", "n_quarter", "n_hour", "n_open", "n_open_hour"),
    )

    def __init__(self) -> None:
        self.n_calls = self.n_unmetered = self.n_reported = 0
        self.n_used = self.n_minute = self.n_quarter = self.n_hour = self.n_open = self.n_open_hour = 0
        self.reported_usd = Decimal(0)
        self.used, self.failed = [0, 0, 0, 0], [0, 0, 0, 0]


class _Site:
    """What is kept of one call site."""

    __slots__ = (
        *("n_calls", "n_failed", "n_skewed", "n_cut", "n_hot", "n_tools", "first_us", "last_us", "cells", "uses"),
        *("n_with_session", "n_with_actor"),
        *("triggers", "prompts", "users", "slots", "scheduled", "sessions", "in_flight", "equals", "texts"),
        *("latency_s", "first_token_s", "first_use_s", "deadline_s", "input", "output", "max_output"),
    )

    def __init__(self, random: Random, rooms: Rooms) -> None:
        self.n_calls = self.n_failed = self.n_skewed = self.n_cut = self.n_hot = self.n_tools = 0
        self.n_with_session = self.n_with_actor = 0
        self.first_us = self.last_us = -1
        self.cells: dict[tuple[str, str, Tier | str | None, str, str | None, bool, bool | None, bool], _Cell] = {}
        self.uses: set[_Used] = set()
        self.triggers: set[str] = set()
        self.prompts: dict[str, int] = {}
        self.users = Distinct(rooms.distinct)
        self.slots, self.scheduled = Slots(rooms.slots), Slots(rooms.slots)  # a call is in one of the two
        self.sessions = Sessions(random, rooms)
        self.in_flight = InFlight(random, rooms)
        self.equals = Equals(rooms.requests)
        self.texts = Texts(random, rooms.text_bytes)
        (
            self.latency_s,
            self.first_token_s,
            self.first_use_s,
            self.deadline_s,
            self.input,
            self.output,
            self.max_output,
        ) = (Reservoir(random, rooms.values) for _ in range(7))

    def add(self, call: Call) -> None:
        start_us, end_us = call.start_us, call.end_us
        if self.n_calls == 0:
            self.first_us = self.last_us = start_us
        elif start_us > self.last_us:
            self.last_us = start_us
        elif start_us < self.first_us:
            self.first_us = start_us
        self.n_calls += 1
        trigger, used_us = call.trigger, call.first_used_us
        if trigger is not None and kind_of(trigger) in _STARTS_ALONE:
            self.scheduled.add(start_us)
        else:
            self.slots.add(start_us)

        ends_before, used_before = end_us is not None and end_us < start_us, used_us is not None and used_us < start_us
        if ends_before or used_before:
            self.n_skewed += 1
            end_us = None if ends_before else end_us
            used_us = None if used_before else used_us
        # Without an end nobody knows how late it was used: it may have taken hours.
        late = used_us is not None and end_us is not None and used_us - end_us > _HOUR_US
        model = call.model or call.model_served or ""
        key = call.provider, model, call.tier, call.operation, trigger, call.user is not None, call.stream, late
        cell = self.cells.get(key)
        if cell is None:
            cell = self._new_cell(key[:4], key[4:])
        usage = self._bill(call, cell)
        if used_us is not None:
            self._use(cell, start_us, end_us, used_us)
        self._times(call, start_us, end_us)
        self._request(call, usage)

    def _bill(self, call: Call, cell: _Cell) -> tuple[int, int, int, int]:
        """Count its tokens and what it cost; the tokens."""
        n_input, n_output = call.input_tokens, call.output_tokens
        usage = (n_input or 0, n_output or 0, call.cached_tokens or 0, call.cache_write_tokens or 0)
        cell.n_calls += 1
        if n_input is None or (n_output is None and call.operation != "embeddings"):
            cell.n_unmetered += 1
        else:
            sums = cell.used
            sums[0] += usage[0]
            sums[1] += usage[1]
            sums[2] += usage[2]
            sums[3] += usage[3]
            if call.failed:
                cell.failed = [a + b for a, b in zip(cell.failed, usage, strict=True)]
        if call.cost_usd is not None:
            cell.n_reported += 1
            cell.reported_usd += call.cost_usd
        if n_input is not None:
            self.input.add(n_input)
        if n_output is not None:
            self.output.add(n_output)
        return usage

    def _use(self, cell: _Cell, start_us: int, end_us: int | None, used_us: int) -> None:
        """Count when its answer was used. Without an end the time since the start is the most that it can have waited."""
        waited_us = (
            used_us - start_us if end_us is None else max(0, used_us - end_us)
        )  # below 0: read as it was written
        if end_us is None and waited_us > _MINUTE_US:
            cell.n_open += 1
            cell.n_open_hour += waited_us <= _HOUR_US
            return
        self.first_use_s.add(waited_us / 1e6)
        cell.n_used += 1
        if waited_us <= _HOUR_US:
            cell.n_hour += 1
            if waited_us <= _QUARTER_US:
                cell.n_quarter += 1
                if waited_us <= _MINUTE_US:
                    cell.n_minute += 1

    def _times(self, call: Call, start_us: int, end_us: int | None) -> None:
        if end_us is not None:
            self.latency_s.add((end_us - start_us) / 1e6)
        if call.actor is not None:
            self.n_with_actor += 1
            if end_us is not None:
                self.in_flight.add(name_hash(call.actor), start_us, end_us)
        if call.first_token_us is not None and call.first_token_us >= start_us:
            self.first_token_s.add((call.first_token_us - start_us) / 1e6)
        if call.user is not None:
            self.users.add(name_hash(call.user))
        if call.session is not None:
            self.n_with_session += 1
            self.sessions.add(name_hash(call.session), start_us, end_us)
        if call.deadline_s is not None:
            self.deadline_s.add(call.deadline_s)

    def _request(self, call: Call, usage: tuple[int, int, int, int]) -> None:
        if call.max_output_tokens is not None:
            self.max_output.add(call.max_output_tokens)
        if call.finish_reason in _CUT:
            self.n_cut += 1
        if call.temperature is None or call.temperature > 0:
            self.n_hot += 1
        if call.tools:
            self.n_tools += 1
        if call.failed:
            self.n_failed += 1
        if call.prompt is not None:
            _count(self.prompts, call.prompt)
        if call.text_hash is not None:
            self.equals.add(call.text_hash, call.failed, usage)
        if call.text:
            self.texts.add(call.text)

    def shrink(self) -> None:
        """To the room there is."""
        for part in (
            *(self.users, self.slots, self.scheduled, self.sessions, self.in_flight, self.equals, self.texts),
            *(self.latency_s, self.first_token_s, self.first_use_s, self.deadline_s),
            *(self.input, self.output, self.max_output),
        ):
            part.shrink()

    def _new_cell(self, use: _Used, kind: _Kind) -> _Cell:
        trigger, tier = kind[0], use[2]
        if use not in self.uses:
            if len(self.uses) >= MAX_NAMES:
                use = ("", OTHER, tier if tier is None or isinstance(tier, Tier) else OTHER, use[3])
            else:
                self.uses.add(use)
        if trigger is not None:
            if len(self.cells) >= MAX_CELLS or (trigger not in self.triggers and len(self.triggers) >= MAX_NAMES):
                trigger = _OTHER_TRIGGERS[kind_of(trigger)]
            else:
                self.triggers.add(trigger)
        key = (*use, trigger, *kind[1:])
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = _Cell()
        return cell

    # ------------------------------------------------------------------------------------------------------- as facts

    def facts(self, name: str) -> SiteFacts:
        operations, triggers = Counter[str](), Counter[str]()
        by_use: dict[_Used, list[_Cell]] = {}
        by_kind: dict[_Kind, dict[_Used, list[_Cell]]] = {}
        for key, cell in self.cells.items():
            use, kind = key[:4], key[4:]
            by_use.setdefault(use, []).append(cell)
            by_kind.setdefault(kind, {}).setdefault(use, []).append(cell)
            operations[use[3]] += cell.n_calls
            if kind[0] is not None:
                triggers[kind[0]] += cell.n_calls
        groups = sorted((_group(*item) for item in by_kind.items()), key=lambda g: (-g.n_calls, str(g)))
        prefix, n_near, n_near_compared = self._texts()
        return SiteFacts(
            site=name,
            n_calls=self.n_calls,
            first_us=self.first_us,
            last_us=self.last_us,
            models=_models(by_use),
            n_failed=self.n_failed,
            n_stream=sum(group.n_calls for group in groups if group.stream),
            n_stream_known=sum(group.n_calls for group in groups if group.stream is not None),
            n_with_user=sum(group.n_calls for group in groups if group.with_user),
            n_users=self.users.n,
            n_sessions=self.sessions.distinct.n,
            n_with_session=self.n_with_session,
            n_with_actor=self.n_with_actor,
            turns=self.sessions.all_turns(),
            turn_gap_s=self.sessions.gap_s.sample(),
            concurrency=self.in_flight.sample(),
            latency_s=self.latency_s.sample(),
            first_token_s=self.first_token_s.sample(),
            first_use_s=self.first_use_s.sample(),
            deadline_s=self.deadline_s.sample(),
            output_tokens=self.output.sample(),
            input_tokens=self.input.sample(),
            max_output_tokens=self.max_output.sample(),
            n_truncated=self.n_cut,
            n_sampled_hot=self.n_hot,
            n_tools=self.n_tools,
            triggers=dict(triggers),
            operations=dict(operations),
            prompts=dict(self.prompts),
            arrivals=self.slots.arrivals(self.scheduled),
            scheduled=self.scheduled.arrivals(),
            repeats=self._repeats(n_near, n_near_compared),
            prefix=prefix,
            n_clock_skew=self.n_skewed,
            groups=tuple(groups),
        )

    def _repeats(self, n_near: int, n_near_compared: int) -> Repeats | None:
        equals = self.equals
        if not equals.n:
            return None
        again = (equals.n, equals.n_again, equals.exact, equals.n_retries)
        return Repeats(*again, Usage(*equals.usage), n_near, n_near_compared)

    def _texts(self) -> tuple[Prefix | None, int, int]:
        """What the texts begin with alike, and how many are alike in what follows, of how many."""
        if not self.texts.kept:
            return None, 0, 0
        kept = [text.decode("utf-8", "ignore") for text in self.texts.kept]
        prefix = prefix_of(kept)
        mean_bytes = sum(self.texts.lengths) / len(kept)
        return prefix and replace(prefix, mean_bytes=mean_bytes), *near_duplicates(kept)


_STARTS_ALONE = (SCHEDULED, TASK)


def _group(kind: _Kind, by_use: Mapping[_Used, Iterable[_Cell]]) -> Group:
    cells = [cell for of_use in by_use.values() for cell in of_use]
    trigger, with_user, stream, late = kind
    return Group(
        trigger,
        with_user,
        stream,
        sum(cell.n_calls for cell in cells),
        sum(cell.n_used for cell in cells),
        sum(cell.n_minute for cell in cells),
        sum(cell.n_quarter for cell in cells),
        sum(cell.n_hour for cell in cells),
        late,
        sum(cell.n_open for cell in cells),
        sum(cell.n_open_hour for cell in cells),
        _models(by_use),
    )


def _models(by_use: Mapping[_Used, Iterable[_Cell]]) -> tuple[ModelUse, ...]:
    """What each model on each tier was used for, most calls first."""
    found = []
    for (provider, model, tier, operation), cells in by_use.items():
        cells = list(cells)
        found.append(
            ModelUse(
                provider=provider,
                model=model,
                tier=tier,
                n_calls=sum(cell.n_calls for cell in cells),
                n_unmetered=sum(cell.n_unmetered for cell in cells),
                usage=Usage(*map(sum, zip(*(cell.used for cell in cells), strict=True))),
                n_reported=sum(cell.n_reported for cell in cells),
                reported_usd=sum((cell.reported_usd for cell in cells), Decimal(0)),
                failed_usage=Usage(*map(sum, zip(*(cell.failed for cell in cells), strict=True))),
                operation=operation,
            )
        )
    return tuple(sorted(found, key=lambda use: (-use.n_calls, use.provider, use.model, str(use.tier), use.operation)))


def _count(counts: dict[str, int], name: str) -> None:
    if name not in counts and len(counts) >= MAX_NAMES:
        name = OTHER
    counts[name] = counts.get(name, 0) + 1
