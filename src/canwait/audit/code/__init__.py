"""Calls to a model in Python source: where they stand, and what waits for their answer. Nothing in it is run or imported.

libraries.py  which dotted paths ask a model       modules.py  one file as scopes, bindings and uses
tree.py       the files that can matter            names.py    what an expression is, over files
waiting.py    what waits for a function            prompts.py  models, caps, names and prefixes in arguments
"""

from __future__ import annotations

import ast
import gc
from dataclasses import dataclass
from pathlib import Path

from ..calls import BadLine
from ..findings import CodeSite, Needs, Proof, Reason
from .libraries import METHODS, Api, api_of
from .modules import Use
from .names import Names, Outside
from .prompts import Prompts
from .tree import Tree
from .waiting import (
    AGENT,
    CRON,
    DAG,
    HANDLER,
    NOTEBOOK,
    QUEUE,
    SCRIPT,
    TEST,
    UNKNOWN,
    URGENCY,
    Wait,
    Waiting,
    repeats,
    text_of,
)


@dataclass(frozen=True, slots=True)
class CodeFindings:
    """What a folder of source holds."""

    sites: tuple[CodeSite, ...]  # by file, line and column
    unreadable: tuple[BadLine, ...]  # files that name a library, or could, and were not read
    n_files: int  # that were looked at
    logs: tuple[str, ...]  # files beside the code that may be logs, and were not read


def find_calls(root: Path) -> CodeFindings:
    """The calls to a model in a file, or in all *.py and *.ipynb of a folder.

    Hidden and installed folders, virtual environments, builds and symbolic links are left out. A file that names no
    library, and imports none that does, is not parsed, so it is not found to be unreadable either.
    """
    collects = gc.isenabled()
    gc.disable()  # trees of syntax stay until the end: looking through them for garbage doubles the time
    try:
        return _find(root)
    finally:
        if collects:
            gc.enable()


def _find(root: Path) -> CodeFindings:
    tree = Tree(root)
    tree.read()
    names = Names(tree.find)
    waiting, prompts = Waiting(tree, names), Prompts(names)
    found: dict[tuple[str, str, int, int], CodeSite] = {}
    for module in list(tree.modules):
        for method, uses in module.uses.items():
            for use in uses:
                if use.then or not (use.call or use.around.calls):
                    continue
                if method not in METHODS and not isinstance(use.node, ast.Name):
                    continue
                site = _site(use, names, waiting, prompts)
                if site:
                    found[site.file, use.scope.label, site.line, site.column] = site
    sites = sorted(
        found.values(), key=lambda s: (s.file, s.function if s.file.endswith(".ipynb") else "", s.line, s.column)
    )
    unreadable = sorted(tree.unreadable, key=lambda bad: (bad.file, bad.line))
    return CodeFindings(tuple(sites), tuple(unreadable), len(tree.files), tuple(tree.logs))


def _site(use: Use, names: Names, waiting: Waiting, prompts: Prompts) -> CodeSite | None:
    value = names.value(use.node, use.scope)
    call = use.call or use.around.calls[0]  # handed to something that calls it: to_thread(client.messages.create, ...)
    if not isinstance(value, Outside) or value.path.rpartition(".")[2] not in METHODS:
        return None
    arguments = {k.arg or "**" for k in call.keywords}
    api = api_of(value.path, arguments)
    if not api:
        return None
    said = prompts.said(call, use.scope, value.made)
    stream = True if api.stream else said.stream
    if stream is None and not arguments & {"stream", "**"}:
        stream = False
    wait, others = _waits(use, call, api, value, waiting)
    why = wait.why + "".join(f"; also {o.kind}: {o.why}" for o in others)
    around = use.around if use.call else use.around._replace(calls=use.around.calls[1:])
    return CodeSite(
        file=use.scope.module.file,
        line=use.node.lineno,
        column=use.node.col_offset + 1,
        library=api.library,
        call=text_of(use.node),
        function=use.scope.function,
        waits=wait.kind,
        why=why,
        stream=stream,
        model=said.model,
        max_output_tokens=said.max_output_tokens,
        in_loop=repeats(use.around) or waiting.in_loop(use.scope),
        is_async=api.is_async or around.awaited,
        is_batch=api.is_batch,
        lints=said.lints,
        labels=said.labels,
    )


def _waits(use: Use, call: ast.Call, api: Api, value: Outside, waiting: Waiting) -> tuple[Wait, tuple[Wait, ...]]:
    """The most urgent that waits, and the others."""
    found = list(waiting.of(use.scope))
    if loop := waiting.tool_loop(use.around, call, use.scope.module):
        found.append(loop)
    elif api.agent and waiting.has_tools(value):
        found.append(Wait(AGENT, f"an agent with tools at {use.scope.module.place(use.node)}"))
    found.sort(key=lambda w: URGENCY.index(w.kind))
    return found[0], tuple(found[1:])


_ASKS = {
    SCRIPT: "who runs it, and whether someone waits for it, is not in the code",
    NOTEBOOK: "someone may be sitting before it",
    QUEUE: "a queue starts it; someone may be asking for its result",
    TEST: "a test run waits for it",
    UNKNOWN: "what waits is not in the code",
}


def reasons_of(site: CodeSite) -> tuple[Reason, ...]:
    """What the code of a call speaks for. It never proves: it says what starts a call, not who reads the answer."""
    if site.is_batch:
        return (Reason("code", Needs.BATCH, Proof.LIKELY, f"{site.file}:{site.line} uses a batch API already", 0),)
    if site.waits == HANDLER:
        text = f"{'streams to a' if site.stream else 'a'} request handler: {site.why}"
        return (Reason("code", Needs.SYNC, Proof.LIKELY, text, 0),)
    if site.waits == AGENT:
        needs = Needs.SYNC if site.stream else Needs.NEAR_REAL_TIME
        return (Reason("code", needs, Proof.LIKELY, f"the next step waits for it: {site.why}", 0),)
    if site.waits in {CRON, DAG}:
        return (Reason("code", Needs.BATCH, Proof.LIKELY, f"a {site.waits} starts it: {site.why}", 0),)
    asks = _ASKS.get(site.waits, _ASKS[UNKNOWN])
    return (Reason("code", Needs.ASK, Proof.UNCLEAR, f"{site.waits}: {asks} ({site.why})", 0),)
