"""Calls -> facts, streamed: any number of calls in bounded memory, in roughly the order they were logged.

What is counted is exact; what is sampled says so (sampling.py). A site holds a few hundred KB at most, and there are at
most MAX_SITES of them: the calls of later ones are summed under OTHER_SITES.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from random import Random

from ..types import Tier, Usage
from .arriving import Slots
from .calls import Call
from .facts import Group, ModelUse, Prefix, Repeats, SiteFacts
from .prefixes import near_duplicates, prefix_of
from .sampling import ALL_TEXT_BYTES, Distinct, Equals, InFlight, Reservoir, Room, Seen, Sessions, Texts, name_hash

MAX_SITES = 5000
OTHER_SITES = "(other sites)"  # what stands for those beyond
MAX_NAMES = 32  # values of a field of a site that are told apart
OTHER = "(other)"  # what stands for those beyond

_MINUTE_US, _QUARTER_US, _HOUR_US = 60_000_000, 900_000_000, 3_600_000_000
_CUT = frozenset({"length", "max_tokens", "MAX_TOKENS", "incomplete", "max_output_tokens"})  # finished at the cap


class Gatherer:
    """Folds calls into the facts of their sites. The same seed and calls give the same facts."""

    def __init__(self, seed: int = 0) -> None:
        self.n_calls = 0
        self.n_other_calls = 0  # summed under OTHER_SITES
        self.first_us: int | None = None
        self.last_us: int | None = None
        self._random = Random(seed)
        self._room = Room()
        self._seen = Seen()
        self._sites: dict[str, _Site] = {}

    @property
    def n_ids_forgotten(self) -> int:
        """Above zero, a second record of a call may have been counted as a call."""
        return self._seen.n_forgotten

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
        if self._room.n_bytes > ALL_TEXT_BYTES:
            self._room.each //= 2
            self._room.n_bytes = 0
            for site in self._sites.values():
                site.texts.shorten()
        return True

    def facts(self) -> tuple[SiteFacts, ...]:
        """Of every site, by name. More calls may be added afterwards."""
        return tuple(self._sites[name].facts(name) for name in sorted(self._sites))

    def _new_site(self, name: str) -> _Site:
        if len(self._sites) >= MAX_SITES and name != OTHER_SITES:
            self.n_other_calls += 1
            name = OTHER_SITES
        return self._sites.setdefault(name, _Site(self._random, self._room))


class _Use:
    """What a model on a tier was used for."""

    __slots__ = ("failed", "n_calls", "n_reported", "n_unmetered", "reported_usd", "used")

    def __init__(self) -> None:
        self.n_calls = self.n_unmetered = self.n_reported = 0
        self.reported_usd = Decimal(0)
        self.used, self.failed = [0, 0, 0, 0], [0, 0, 0, 0]


class _Site:
    """What is kept of one call site."""

    def __init__(self, random: Random, room: Room) -> None:
        self.n_calls = self.n_failed = self.n_skewed = self.n_cut = self.n_hot = self.n_tools = 0
        self.first_us = self.last_us = -1
        self.uses: dict[tuple[str, str, Tier | None, str], _Use] = {}
        self.groups: dict[tuple[str | None, bool, bool | None], list[int]] = {}
        self.triggers: set[str] = set()
        self.prompts: dict[str, int] = {}
        self.users = Distinct()
        self.slots = Slots()
        self.sessions = Sessions(random)
        self.in_flight = InFlight(random)
        self.equals = Equals()
        self.texts = Texts(random, room)
        self.latency_s, self.first_token_s, self.first_use_s = Reservoir(random), Reservoir(random), Reservoir(random)
        self.deadline_s, self.input, self.output = Reservoir(random), Reservoir(random), Reservoir(random)
        self.max_output = Reservoir(random)

    def add(self, call: Call) -> None:
        start_us, end_us, n_input, n_output = call.start_us, call.end_us, call.input_tokens, call.output_tokens
        user, stream, failed = call.user, call.stream, call.failed
        if self.n_calls == 0:
            self.first_us = self.last_us = start_us
        elif start_us > self.last_us:
            self.last_us = start_us
        elif start_us < self.first_us:
            self.first_us = start_us
        self.n_calls += 1
        self.slots.add(start_us)

        usage = (n_input or 0, n_output or 0, call.cached_tokens or 0, call.cache_write_tokens or 0)
        key = (call.provider, call.model or call.model_served or "", call.tier, call.operation)
        use = self.uses.get(key)
        if use is None:
            use = self._new_use(key)
        use.n_calls += 1
        if n_input is None or (n_output is None and call.operation != "embeddings"):
            use.n_unmetered += 1
        else:
            sums = use.used
            sums[0] += usage[0]
            sums[1] += usage[1]
            sums[2] += usage[2]
            sums[3] += usage[3]
            if failed:
                use.failed = [a + b for a, b in zip(use.failed, usage, strict=True)]
        if call.cost_usd is not None:
            use.n_reported += 1
            use.reported_usd += call.cost_usd

        is_skewed = end_us is not None and end_us < start_us
        if is_skewed:
            end_us = None
        trigger = call.trigger
        if trigger is not None and trigger not in self.triggers:
            trigger = self._new_trigger(trigger)
        group = self.groups.get((trigger, user is not None, stream))
        if group is None:
            group = self.groups[trigger, user is not None, stream] = [0] * 5
        group[0] += 1
        if end_us is not None:
            self.latency_s.add((end_us - start_us) / 1e6)
            if call.first_used_us is not None:
                waited_us = call.first_used_us - end_us
                if waited_us < 0 and call.first_used_us < start_us:
                    is_skewed = True
                else:
                    self.first_use_s.add(max(0, waited_us) / 1e6)  # below 0: read while it was written
                    group[1] += 1
                    if waited_us <= _HOUR_US:
                        group[4] += 1
                        if waited_us <= _QUARTER_US:
                            group[3] += 1
                            if waited_us <= _MINUTE_US:
                                group[2] += 1
            if call.actor is not None:
                self.in_flight.add(name_hash(call.actor), start_us, end_us)
        if is_skewed:
            self.n_skewed += 1
        if call.first_token_us is not None and call.first_token_us >= start_us:
            self.first_token_s.add((call.first_token_us - start_us) / 1e6)
        if user is not None:
            self.users.add(name_hash(user))
        if call.session is not None:
            self.sessions.add(name_hash(call.session), start_us, end_us)
        if call.deadline_s is not None:
            self.deadline_s.add(call.deadline_s)

        if n_input is not None:
            self.input.add(n_input)
        if n_output is not None:
            self.output.add(n_output)
        if call.max_output_tokens is not None:
            self.max_output.add(call.max_output_tokens)
        if call.finish_reason in _CUT:
            self.n_cut += 1
        if call.temperature is None or call.temperature > 0:
            self.n_hot += 1
        if call.tools:
            self.n_tools += 1
        if failed:
            self.n_failed += 1
        if call.prompt is not None:
            _count(self.prompts, call.prompt)
        if call.text_hash is not None:
            self.equals.add(call.text_hash, failed, usage)
        if call.text:
            self.texts.add(call.text)

    def facts(self, name: str) -> SiteFacts:
        operations: dict[str, int] = {}
        for (_, _, _, operation), use in self.uses.items():
            operations[operation] = operations.get(operation, 0) + use.n_calls
        triggers: dict[str, int] = {}
        for (trigger, _, _), group in self.groups.items():
            if trigger is not None:
                triggers[trigger] = triggers.get(trigger, 0) + group[0]
        prefix, n_near, n_near_compared = self._texts()
        repeats = None
        if self.equals.n:
            repeats = Repeats(
                self.equals.n,
                self.equals.n_again,
                self.equals.exact,
                self.equals.n_retries,
                Usage(*self.equals.usage),
                n_near,
                n_near_compared,
            )
        return SiteFacts(
            site=name,
            n_calls=self.n_calls,
            first_us=self.first_us,
            last_us=self.last_us,
            models=tuple(
                ModelUse(
                    provider=provider,
                    model=model,
                    tier=tier,
                    n_calls=use.n_calls,
                    n_unmetered=use.n_unmetered,
                    usage=Usage(*use.used),
                    n_reported=use.n_reported,
                    reported_usd=use.reported_usd,
                    failed_usage=Usage(*use.failed),
                    operation=operation,
                )
                for (provider, model, tier, operation), use in sorted(
                    self.uses.items(), key=lambda item: (-item[1].n_calls, str(item[0]))
                )
            ),
            n_failed=self.n_failed,
            n_stream=sum(group[0] for (_, _, stream), group in self.groups.items() if stream),
            n_stream_known=sum(group[0] for (_, _, stream), group in self.groups.items() if stream is not None),
            n_with_user=sum(group[0] for (_, with_user, _), group in self.groups.items() if with_user),
            n_users=len(self.users.numbers),
            n_sessions=len(self.sessions.distinct.numbers),
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
            triggers=triggers,
            operations=operations,
            prompts=dict(self.prompts),
            arrivals=self.slots.arrivals(),
            repeats=repeats,
            prefix=prefix,
            n_clock_skew=self.n_skewed,
            groups=tuple(
                Group(trigger, with_user, stream, *group)
                for (trigger, with_user, stream), group in sorted(
                    self.groups.items(), key=lambda item: (-item[1][0], str(item[0]))
                )
            ),
        )

    def _texts(self) -> tuple[Prefix | None, int, int]:
        """What the texts begin with alike, and how many are alike in what follows, of how many."""
        if not self.texts.kept:
            return None, 0, 0
        kept = [text.decode("utf-8", "ignore") for text in self.texts.kept]
        prefix = prefix_of(kept)
        mean_bytes = sum(self.texts.lengths) / len(kept)
        return prefix and replace(prefix, mean_bytes=mean_bytes), *near_duplicates(kept)

    def _new_use(self, key: tuple[str, str, Tier | None, str]) -> _Use:
        if len(self.uses) >= MAX_NAMES:
            key = ("", OTHER, *key[2:])
        return self.uses.setdefault(key, _Use())

    def _new_trigger(self, trigger: str) -> str:
        if len(self.triggers) >= MAX_NAMES:
            return OTHER
        self.triggers.add(trigger)
        return trigger


def _count(counts: dict[str, int], name: str) -> None:
    if name not in counts and len(counts) >= MAX_NAMES:
        name = OTHER
    counts[name] = counts.get(name, 0) + 1
