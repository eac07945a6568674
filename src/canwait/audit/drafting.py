"""A call site of an audit -> a job file to start from, and its rows where the log holds them. `canwait init --from-audit`.

What the audit knows is filled in; what it cannot know (the answer's schema, where rows go) is left for a person, said in a
comment. Nothing of the log but the texts of this one site is copied, and those only into a file of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NotFound, Problem, SpecError
from ..render import did_you_mean
from ..scalars import quoted
from .calls import Asked, Call
from .findings import Needs
from .prefixes import prefix_of
from .reading import read_logs
from .report import shown, words_of

MOST_ROWS = 10_000  # of a draft's file of rows
_RUN = {"openai", "anthropic"}  # what this version runs; a site elsewhere moves with --model
_MOVABLE = {Needs.BATCH.value: "batch", Needs.NEAR_REAL_TIME.value: "near_real_time", Needs.HYBRID.value: "batch"}
_SAMPLE = 200  # texts that what all begin with is found from
_DAY_S, _HOUR_US = 86_400, 3_600_000_000

_JOB = """\
# yaml-language-server: $schema=job.v1.json        (canwait schema job > job.v1.json)
# Drafted from {audit}: {why}
{only}version: 1
name: {name}
source: {{uri: {source}, key: {key}}}
model: {model}
prompt: {prompt}
# output: schemas/answer.json             # JSON Schema of an answer: what it asks for becomes columns
{endpoint}{bound}urgency: {urgency}
deadline: {deadline}
budget: {{usd: {budget}, on_exceed: refuse}}
load: {{to: {target}, mode: merge}}
"""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a site of audit.json says about the job it could be."""

    site: str
    model: str
    urgency: str
    deadline: str
    endpoint: str
    max_output_tokens: int
    budget_usd: str
    why: str
    moves: Mapping[str, Any] | None  # of a hybrid site: what tells its calls that can wait
    only: str | None  # which of its calls can wait, in words; None: all


def draft_of(audit: Mapping[str, Any], name: str, file: str, model: str | None = None) -> Draft:
    """The draft of one site of an audit.json. Raises NotFound, and SpecError for a site that must not be moved."""
    sites = {site["name"]: site for site in audit["sites"]}
    if name not in sites and len(as_shown := [n for n in sites if shown(n) == name]) == 1:
        name = as_shown[0]  # what a terminal cannot show is copied from there as it was shown
    if name not in sites:
        near = did_you_mean(name, list(sites))
        raise NotFound(
            f"{file} has no call site {name!r}{near}.", what="site", name=name, hint="`canwait audit` lists them"
        )
    site = sites[name]
    if site["needs"] not in _MOVABLE:
        asks = f"; ask: {site['asks']}" if site["asks"] else ""
        hint = f"where its owner knows better: canwait audit ... --decide '{name}=batch', then again"
        raise SpecError([Problem(file, None, None, name, f"its readers need it {site['needs']}{asks}")], hint=hint)
    facts, moves = site["facts"], site["moves"]
    if site["needs"] == Needs.HYBRID.value and not moves:
        what = "some of its calls can wait, and the log does not tell which"
        raise SpecError([Problem(file, None, None, name, what)], hint="log what starts each call: canwait.trigger")
    used = max(_models(facts, moves), key=lambda use: use["n_calls"], default=None) if facts else None
    if model is None and (used is None or used["provider"] not in _RUN or not used["model"]):
        found = f"{used['provider'] or 'an unknown provider'}/{used['model']}" if used else "no model"
        what = f"it calls {found}; this version runs {' and '.join(sorted(_RUN))} and your own servers"
        raise SpecError(
            [Problem(file, None, None, name, what)], hint="say --model openai/NAME, anthropic/NAME or own/NAME"
        )
    assert used is not None or model is not None
    urgency = _MOVABLE[site["needs"]]
    said = site["reasons"][0]["text"] if site["reasons"] else site["needs"]
    return Draft(
        site=name,
        model=model or f"{used['provider']}/{used['model']}",  # type: ignore[index]
        urgency=urgency,
        deadline=_deadline(facts, urgency),
        endpoint=used["operation"] if used and used["operation"] in ("responses", "embeddings") else "chat",
        max_output_tokens=_bound(facts),
        budget_usd=_budget(site),
        why=f"{site['proof']}: {said}",
        moves=moves,
        only=f"{words_of(moves['by'], moves['values'])} ({site['movable_share']:.0%} of them)" if moves else None,
    )


def _models(facts: Mapping[str, Any], moves: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The models of the calls that move."""
    if moves is None:
        yield from facts["models"]
        return
    for group in facts["groups"]:
        if group["late"] if moves["by"] == "first use" else group[moves["by"]] in moves["values"]:
            yield from group["models"]


def job_text(draft: Draft, *, name: str, source: str, key: str, prompt: str, target: str, audit: str) -> str:
    """The job file. Every value that came from a log is written as a string that means only itself."""
    embeds = draft.endpoint == "embeddings"
    bound = f"max_output_tokens: {draft.max_output_tokens}                  # no bound, no worst case\n"
    return _JOB.format(
        audit=_comment(audit), why=_comment(draft.why), name=quoted(name), source=quoted(source),
        key=quoted(key), model=quoted(draft.model), prompt=quoted(prompt),
        endpoint=f"endpoint: {draft.endpoint}\n" if draft.endpoint != "chat" else "", bound="" if embeds else bound,
        only=f"# Only {_comment(draft.only)}: the others stay where they are.\n" if draft.only else "",
        urgency=draft.urgency, deadline=draft.deadline, budget=draft.budget_usd, target=quoted(target),
    )  # fmt: skip


def rows_of(
    read: Mapping[str, Any], site: str, file: str, moves: Mapping[str, Any] | None = None
) -> tuple[str, Iterator[dict[str, str]]]:
    """The prompt and the different texts of a site, read again from the logs an audit was made of; at most MOST_ROWS.

    Of a hybrid site only those of calls that can wait. Raises SpecError when the logs hold no text of it.
    """
    texts = _texts(read, site, moves)
    first = [text for text, _ in zip(texts, range(_SAMPLE), strict=False)]
    if not first:
        what = "the logs hold no texts of it"
        raise SpecError(
            [Problem(file, None, None, site, what)], hint="name a file of rows: canwait init ROWS --from-audit SITE"
        )
    shared, prompt = _shared(first)

    def rows() -> Iterator[dict[str, str]]:
        def different() -> Iterator[str]:
            yield from first
            yield from texts

        for n, text in enumerate(different(), 1):
            if n > MOST_ROWS:
                return
            rest = text.removeprefix(shared)
            # A text that begins otherwise is kept whole: then its prompt holds what all others share, too.
            yield {"id": str(n), "text": rest}

    return prompt, rows()


def _texts(read: Mapping[str, Any], site: str, moves: Mapping[str, Any] | None) -> Iterator[str]:
    """Texts of a site, each once."""
    asked = Asked(tuple(read["by"]), read["columns"], read["format"], read["provider"])
    seen: set[int] = set()
    for log in read_logs([Path(path) for path in read["paths"]], asked):
        for item in log:
            if not isinstance(item, Call) or item.site != site or not item.text or not _can_wait(item, moves):
                continue
            if hash(item.text) not in seen:
                if len(seen) > 4 * MOST_ROWS:
                    return
                seen.add(hash(item.text))
                yield item.text


def _can_wait(call: Call, moves: Mapping[str, Any] | None) -> bool:
    if moves is None:
        return True
    if moves["by"] != "first use":
        return (call.trigger if moves["by"] == "trigger" else call.stream) in moves["values"]
    end_us, used_us = call.end_us, call.first_used_us
    return end_us is not None and used_us is not None and used_us - max(end_us, call.start_us) > _HOUR_US


def _shared(texts: list[str]) -> tuple[str, str]:
    """What all texts begin with, up to a line's end, and the prompt that puts a row's text behind it."""
    found = prefix_of(texts)
    start = texts[0].encode()[: found.shared_bytes if found else 0].decode("utf-8", "ignore")
    shared = start[: start.rfind("\n") + 1]
    if not shared or not all(text.startswith(shared) for text in texts) or "endraw" in shared:
        return "", "{{ text }}"
    literal = f"{{% raw %}}{shared}{{% endraw %}}" if any(mark in shared for mark in ("{{", "{%", "{#")) else shared
    return shared, f"{literal}{{{{ text }}}}"


def _deadline(facts: Mapping[str, Any] | None, urgency: str) -> str:
    """What the readers' earliest need leaves, in whole hours or minutes."""
    dues = [facts[name]["p5"] for name in ("deadline_s", "first_use_s") if facts[name]] if facts else []
    if facts and facts["arrivals"] and facts["arrivals"]["period_s"]:
        dues.append(facts["arrivals"]["period_s"])
    if urgency == "near_real_time":
        return f"{max(1, min(15, int(min(dues, default=900) // 60)))}m"
    due_s = min([_DAY_S, *(due for due in dues if due >= 3600)])
    return f"{int(due_s // 3600)}h"


def _bound(facts: Mapping[str, Any] | None) -> int:
    """The bound the calls state; else twice what 99 % of answers needed, as a round number."""
    if facts and facts["max_output_tokens"]:
        return max(16, int(facts["max_output_tokens"]["p95"]))
    needed = int(2 * facts["output_tokens"]["p99"]) if facts and facts["output_tokens"] else 1024
    return max(64, 1 << (needed - 1).bit_length())


def _budget(site: Mapping[str, Any]) -> str:
    """Twice what a day of it costs once it is moved, at least a dollar: whole dollars."""
    month = site["would_cost_usd"] or (site["month"] and site["month"]["likely_usd"]) or "0"
    dollars = int(month.removeprefix("-").partition(".")[0])
    if site["moves"]:  # most of what is left is not moved
        dollars = int(dollars * site["movable_share"])
    return f"{max(1, -(-dollars // 15))}.00"


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:200]


def write_rows(rows: Iterable[Mapping[str, str]], out: Any) -> int:
    """One JSON object a line into a binary file; how many."""
    n = 0
    for row in rows:
        out.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        n += 1
    return n
