"""What waits for the answer of a function: its decorators, its class, its file, or whatever calls it, over several hops."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .libraries import METHODS
from .modules import Around, Module, Scope, Use
from .names import Names, Outside
from .tree import Tree

HANDLER, AGENT, UNKNOWN, NOTEBOOK = "request handler", "agent loop", "unknown", "notebook"
SCRIPT, QUEUE, CRON, DAG, TEST = "script", "queue", "cron", "DAG task", "test"
# The most urgent first. A caller that is not known may be anything, so it outweighs all that says nobody waits.
URGENCY = (HANDLER, AGENT, UNKNOWN, NOTEBOOK, SCRIPT, QUEUE, CRON, DAG, TEST)
_HOPS = 12
_SHOWN = 80  # characters of a decorator


class Wait(NamedTuple):
    """Something that waits, or that starts the work when nobody does."""

    kind: str
    why: str


# Decorators, and calls that a function is handed to, by path. The first that matches counts.
_STARTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.VERBOSE))
    for kind, pattern in (
        (
            SCRIPT,
            r"""(?:click|typer|cyclopts|fire|invoke|argparse|asyncclick|rich_click|cloup|flask|quart|plac|docopt)\b.*
              \.(?:command|run|Fire|task|default|set_defaults|callback|main|call) |
              (?:click|typer|rich_click)\.command | fire\.Fire | typer\.run | \?(?:\w+\.)*(?:cli|\w+_cli)\.command""",
        ),
        (
            CRON,
            r"""apscheduler\..*\.(?:add_job|scheduled_job) | \?(?:\w+\.)*(?:\w*sched\w*)\.(?:add_job|scheduled_job) |
              schedule\..*\.do | schedule\.repeat | .*\.add_periodic_task | huey\..*\.periodic_task |
              aiocron\.crontab | fastapi_utils\..*repeat_every | discord\.ext\.tasks\.loop | arq\.cron(?:\.cron)? |
              azure\.functions\..*\.(?:timer_trigger|schedule) | firebase_functions\.scheduler_fn\.on_schedule |
              rocketry\..*\.(?:task|cond) | periodiq\.cron | dagster\.schedule""",
        ),
        (
            DAG,
            r"""airflow\..*(?:\b(?:task|dag|task_group)(?:\.\w+)? | Operator | Sensor) |
              dagster\.(?:asset|multi_asset|graph_asset|op|job|graph|sensor|asset_check|solid|pipeline) |
              prefect\.(?:flow|task|flows\.flow|tasks\.task) | metaflow\.step | kfp\..*(?:component|pipeline) |
              zenml\.(?:step|pipeline) | flytekit\.(?:task|workflow|dynamic) | kedro\.pipeline\.(?:\w+\.)?node |
              pyspark\.sql\.functions\.(?:udf|pandas_udf)""",
        ),
        (
            QUEUE,
            r"""celery\..*\.(?:task|on_after_configure\.connect) | celery\.(?:shared_task|task) |
              \?(?:\w+\.)*(?:celery\w*|\w*_celery|celery_app)\.task | dramatiq\.actor | dramatiq\..*\.actor |
              rq\.(?:decorators\.)?job | rq\..*\.(?:enqueue|enqueue_in|enqueue_at|enqueue_call) |
              huey\..*\.task | taskiq\..*\.task | procrastinate\..*\.task | faust\..*\.agent |
              temporalio\.(?:activity|workflow)\.(?:defn|run) | functions_framework\.cloud_event |
              (?:fastapi|starlette)\..*BackgroundTasks\(\)\.add_task | \?(?:\w+\.)*background_tasks\.add_task |
              azure\.functions\..*\.(?:queue_trigger|service_bus_\w+|event_grid_trigger|blob_trigger)""",
        ),
        (
            AGENT,
            r"""pydantic_ai\..*\.(?:tool|tool_plain|output_validator|output_function) | pydantic_ai\.(?:Tool|Agent) |
              lang(?:chain|graph)\w*\..*(?:\btool|\bTool|StructuredTool(?:\.\w+)?|\.add_node|create_\w*agent) |
              agents\.(?:function_tool|tool\.function_tool) | (?:mcp|fastmcp)\..*\.(?:tool|add_tool) |
              smolagents\.(?:\w+\.)*tool | crewai\..*\btool | google\.adk\..*(?:Agent|FunctionTool) |
              llama_index\..*(?:FunctionTool(?:\.\w+)?|Agent) | autogen\w*\..*(?:register_\w+|FunctionTool)""",
        ),
        (
            HANDLER,
            r"""(?:fastapi|starlette|flask|flask_\w+|quart|sanic|litestar|bottle|falcon|aiohttp|ninja|ninja_extra|robyn
              |blacksheep|connexion|apiflask|tornado|django|hug|emmett|microdot)\b.*
              \.(?:get|post|put|patch|delete|head|route|api_route|websocket|websocket_route|websocket_stream|view|page
              |add_url_rule|add_api_route|add_api_websocket_route|add_route|add_get|add_post|add_put|add_websocket_route
              |api_operation|Route|WebSocketRoute|URLRule|add_handlers|event|on) |
              django\.urls\.(?:path|re_path) | django\.conf\.urls\.url | django\.views\.decorators\..* |
              django\.contrib\.auth\.decorators\..* | rest_framework\.decorators\.(?:api_view|action) |
              slack_bolt\..*\.(?:event|message|command|action|shortcut|view|function|options|assistant|user_message) |
              discord\..*\.(?:event|command|listen|listener|slash_command|hybrid_command|context_menu|message_command) |
              chainlit\.(?!set_|cache)\w+ | streamlit\.(?!cache)\w+ | gradio\..* | nicegui\..* | reflex\..*event\w* |
              dash\..*callback | panel\.bind | telegram\.ext\.\w*Handler | aiogram\..*\.\w*(?:message|query|post) |
              telebot\..*handler | pyrogram\..*\.on_\w+ | telethon\..*\.on | interactions\..*command |
              socketio\..*\.(?:on|event) | websockets\..*\bserve | functions_framework\.http |
              firebase_functions\.https_fn\.\w+ | azure\.functions\..*\.route | chalice\..*\.route |
              modal\.(?:fastapi_endpoint|web_endpoint|asgi_app|wsgi_app) | strawberry\.(?:field|mutation|subscription) |
              ariadne\..*\.field | botbuilder\..* | bentoml\.api | ray\.serve\.(?:deployment|ingress)""",
        ),
        (TEST, r"pytest\.(?:fixture|mark\..*) | pytest_asyncio\.fixture | unittest\.mock\..* | hypothesis\.given"),
    )
)
_VERBS = re.compile(
    r"\??(?:[\w()]+\.)*(?:\w+_)?(?:app|api|router|bp|blueprint|routes|server|web|application|ns)\."
    r"(?:get|post|put|patch|delete|route|websocket|api_route|websocket_route)"
)

# What a method's class inherits from.
_CLASSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.VERBOSE))
    for kind, pattern in (
        (
            HANDLER,
            r"""django\.views\..* | rest_framework\.(?:views|viewsets|generics|mixins)\..* | flask\.views\..* |
              flask_rest\w*\.Resource | tornado\.(?:web|websocket)\..* | starlette\.endpoints\..* | aiohttp\.web\.View |
              channels\.(?:generic|consumer)\..* | http\.server\..* | socketserver\..* | litestar\.\w*\.?Controller |
              quart\.views\..* | sanic\.views\..* | discord\..*(?:Cog|Client|Bot|View|Modal) | .*Servicer |
              graphene\.(?:Mutation|ObjectType) | socketio\.\w*Namespace | botbuilder\..*""",
        ),
        (
            DAG,
            r"""luigi\..*Task\w* | luigi\.Task | metaflow\.FlowSpec | airflow\..*(?:Operator|Sensor)\w* |
              apache_beam\..*(?:DoFn|PTransform) | zenml\..*Step""",
        ),
        (QUEUE, r"celery\..*Task | celery\.Task"),
        (SCRIPT, r"django\.core\.management\.base\.\w*Command | cmd\.Cmd"),
        (TEST, r"unittest\..*Case | django\.test\..* | rest_framework\.test\..*"),
    )
)
_REQUESTS = re.compile(
    r"(?:django\.http|fastapi|starlette|aiohttp\.web|flask|sanic|quart|rest_framework|azure\.functions|litestar)\b.*"
    r"\.?(?:HttpRequest|Request|WebSocket|HTTPConnection)\(\)"
)
_QUEUED = {"delay", "apply_async", "s", "si", "signature", "send", "send_with_options", "enqueue", "kiq", "kicker"}
_QUEUED |= {"schedule", "defer", "defer_async", "enqueue_in", "enqueue_at"}
_CALLED = {"submit", "map", "remote", "spawn", "starmap", "with_options", "override", "partial", "expand", "run"}
_CALLED |= {"fn", "func", "invoke", "ainvoke", "local", "for_each", "__call__", "__wrapped__"}
_TOOL_WORDS = {"tool_calls", "tool_call", "tool_use", "tool_call_id", "function_call", "function_calls", "tool_result"}
_TOOL_ARGUMENTS = {"tools", "toolsets", "mcp_servers", "builtin_tools", "capabilities"}
_MANY = {
    "gather",
    "map",
    "imap",
    "imap_unordered",
    "starmap",
    "apply",
    "progress_apply",
    "map_elements",
    "as_completed",
}
_MANY |= {"map_batches", "map_async", "thread_map", "process_map", "Parallel", "parallel_apply", "map_partitions"}
_RETRIES = re.compile(r"attempt|retr|tries|\btry", re.IGNORECASE)


class Waiting:
    """Answers are remembered; functions that only call each other wait for nothing."""

    def __init__(self, tree: Tree, names: Names) -> None:
        self.tree, self.names = tree, names
        self.before: dict[Scope, tuple[Wait, ...]] = {}
        self.uses_before: dict[Scope, list[Use]] = {}
        self.targets: dict[str, dict[Scope | None, list[Use]]] = {}
        self.looped: dict[Scope, bool] = {}
        self.said: dict[ast.AST, tuple[set[str], set[str]]] = {}
        self.tooled: set[ast.Call] | None = None
        self.by_name: dict[str, list[Use]] = defaultdict(list)
        for module in tree.modules:
            for name, uses in module.uses.items():
                self.by_name[name] += uses
        functions = (s.last_name for m in tree.modules for s in m.scopes if s.kind == "function")
        self.n_called = Counter(functions)
        self.beats = {text: place for m in tree.modules for text, place in _beats(m)}

    def of(self, scope: Scope, hops: int = 0) -> tuple[Wait, ...]:
        """All that waits for a function, or starts it; the most urgent first, one of each kind."""
        scope = _named(scope)
        if scope not in self.before:
            if hops > _HOPS:
                return ()
            self.before[scope] = ()
            self.before[scope] = self._of(scope, hops)
        return self.before[scope]

    def _of(self, scope: Scope, hops: int) -> tuple[Wait, ...]:
        own = self.own(scope)
        if scope.kind == "module":
            return (own,) if own else ()
        found = [wait for use in self.uses(scope) for wait in self._from(use, hops)]
        if own and own.kind in {QUEUE, CRON}:  # a task: by itself it says that something starts it, its uses say what
            starts = [wait for wait in found if wait.kind in {QUEUE, CRON}]
            own = next((w for w in starts if w.kind == QUEUE), next(iter(starts), own))
        if own:
            return _most_urgent([own, *(wait for wait in found if wait.kind in {HANDLER, AGENT})])
        if not found and scope.parent and scope.parent.kind == "function":
            return self.of(scope.parent, hops + 1)
        return _most_urgent(found) or (Wait(UNKNOWN, f"nothing that calls {scope.last_name}() was found"),)

    def _from(self, use: Use, hops: int) -> Iterable[Wait]:
        """What waits for one use of a function."""
        place = use.scope.module.place(use.node)
        handed = use.call is None or use.then in _QUEUED or isinstance(use.scope.node, ast.Lambda)
        for call in use.around.calls if handed else ():
            registered = self._registered(call.func, call, use.scope)
            if registered:
                return (registered,)
        if loop := self.tool_loop(use.around, use.call, use.scope.module):
            return (loop,)
        if use.call is None and not use.around.calls:
            return (Wait(UNKNOWN, f"handed on at {place}"),)
        if use.then in _QUEUED:
            return (Wait(QUEUE, f".{use.then}() at {place}"),)
        caller = _named(use.scope)
        if use.call is None and caller.kind != "function" and not caller.module.is_notebook:
            return (Wait(UNKNOWN, f"handed on at {place}"),)
        by = f"called by {caller.last_name}() at {place}" if caller.name else f"called at {place}"
        return [Wait(wait.kind, f"{by}: {wait.why}") for wait in self.of(caller, hops + 1)]

    def uses(self, scope: Scope) -> list[Use]:
        """Where a function of the tree is called, started or handed to something."""
        if scope not in self.uses_before:
            self.uses_before[scope] = list(self._uses(scope))
        return self.uses_before[scope]

    def _uses(self, scope: Scope) -> Iterator[Use]:
        of = scope.parent if scope.parent and scope.parent.kind == "class" else None
        name = scope.last_name
        if of and name in {"__init__", "__new__", "__post_init__"}:
            yield from (use for use in self._by_target(of.last_name).get(of, ()) if use.call and not use.then)
            return
        targets = {scope: None}
        if of:  # a call of what it overrides may be a call of it
            for kind in self.names.lineage(of):
                if isinstance(kind, Scope):
                    targets |= {b.what: None for b in kind.names.get(name, ()) if isinstance(b.what, Scope)}
        found = self._by_target(name)
        for target in targets:
            yield from found.get(target, ())
        if of and self.n_called[name] == 1 and name not in METHODS and ("_" in name.strip("_") or len(name) >= 8):
            yield from found.get(None, ())

    def _by_target(self, name: str) -> dict[Scope | None, list[Use]]:
        """Uses of a name by what of the tree it is there; None: an attribute of something unknown."""
        if name not in self.targets:
            self.targets[name] = defaultdict(list)
            for use in self.by_name.get(name, ()):
                if use.then and use.then not in _QUEUED | _CALLED:
                    continue
                found = self.names.value(use.node, use.scope)
                if isinstance(found, Scope):
                    self.targets[name][found].append(use)
                elif isinstance(found, Outside) and found.path.startswith("?") and isinstance(use.node, ast.Attribute):
                    self.targets[name][None].append(use)
        return self.targets[name]

    def in_loop(self, scope: Scope) -> bool:
        """Whether a function is called in a loop anywhere."""
        if scope not in self.looped:
            self.looped[scope] = bool(scope.name) and any(repeats(use.around) for use in self.uses(_named(scope)))
        return self.looped[scope]

    def tool_loop(self, around: Around, call: ast.Call | None, module: Module) -> Wait | None:
        """The loop around a call in which answers lead to further calls: tools are handled, or messages grow."""
        for loop in around.loops:
            if not isinstance(loop, ast.While | ast.For | ast.AsyncFor):
                continue
            if loop not in self.said:
                self.said[loop] = _said(loop)
            words, grown = self.said[loop]
            if words & _TOOL_WORDS or (isinstance(loop, ast.While) and call and grown & _named_in(call)):
                kind = "while" if isinstance(loop, ast.While) else "for"
                return Wait(AGENT, f"{kind} loop with tools or growing messages at {module.place(loop)}")
        return None

    def has_tools(self, agent: Outside) -> bool:
        """Whether an agent can go on by itself. Without tools it is one request."""
        if not agent.path.startswith("pydantic_ai") or not agent.made:
            return True
        made, _ = agent.made
        if self.tooled is None:
            decorating = (u for name in ("tool", "tool_plain") for u in self.by_name.get(name, ()))
            found = (self.names.value(use.node, use.scope) for use in decorating)
            self.tooled = {v.made[0] for v in found if isinstance(v, Outside) and v.made}
        return made in self.tooled or bool({k.arg for k in made.keywords} & _TOOL_ARGUMENTS)

    # ------------------------------------------------------------------------------------------------ by itself

    def own(self, scope: Scope) -> Wait | None:
        """What shows in the function, class or module itself."""
        if scope.kind == "module":
            return self._file(scope)
        for node in getattr(scope.node, "decorator_list", ()):
            call = node if isinstance(node, ast.Call) else None
            wait = self._registered(call.func if call else node, call, scope.parent or scope, "@")
            if wait and wait.kind == QUEUE:
                return self._beat(scope, call) or wait
            if wait:
                return wait
        return self._class(scope) or self._parameters(scope) or self._test(scope) or self._command(scope)

    def _registered(self, function: ast.expr, call: ast.Call | None, scope: Scope, at: str = "") -> Wait | None:
        value = self.names.value(function, scope)
        if not isinstance(value, Outside):
            return None
        path = value.path
        shown = f"{at}{text_of(function)}{'' if at else '()'} at {scope.module.place(function)}"
        for kind, pattern in _STARTS:
            if pattern.fullmatch(path):
                return Wait(kind, shown)
        first = call.args[0] if call and call.args else None
        if _VERBS.fullmatch(path) and isinstance(first, ast.Constant) and str(first.value)[:1] in {"/", ""}:
            return Wait(HANDLER, shown)
        if call and any(k.arg == "python_callable" for k in call.keywords):
            return Wait(DAG, shown)
        if path.endswith(".click") and call and any(k.arg == "fn" for k in call.keywords):
            return Wait(HANDLER, shown)
        return None

    def _beat(self, scope: Scope, call: ast.Call | None) -> Wait | None:
        """The schedule that names a task of a queue."""
        given = [
            k.value.value
            for k in (call.keywords if call else ())
            if k.arg == "name" and isinstance(k.value, ast.Constant)
        ]
        dotted = ".".join((*scope.module.dotted, scope.name))
        for text, place in self.beats.items():
            if text in given or dotted == text or dotted.endswith("." + text) or text.endswith("." + dotted):
                return Wait(CRON, f"scheduled at {place}")
        return None

    def _class(self, scope: Scope) -> Wait | None:
        of = scope.parent
        if not of or of.kind != "class":
            return None
        for kind in self.names.lineage(of):
            if isinstance(kind, Outside):
                for wait, pattern in _CLASSES:
                    if pattern.fullmatch(kind.path):
                        shown = kind.path.rpartition(".")[2]
                        return Wait(wait, f"class {of.last_name}({shown}) at {of.module.place(of.node)}")
        return None

    def _parameters(self, scope: Scope) -> Wait | None:
        node = scope.node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        arguments = [*node.args.posonlyargs, *node.args.args]
        place = scope.module.place(node)
        for argument in arguments[:6]:
            if argument.annotation:
                found = self.names.typed(argument.annotation, scope.parent or scope, 0)
                if isinstance(found, Outside) and _REQUESTS.fullmatch(found.path):
                    return Wait(HANDLER, f"{argument.arg}: {text_of(argument.annotation)} at {place}")
                if isinstance(found, Outside) and found.path == "azure.functions.TimerRequest()":
                    return Wait(CRON, f"{argument.arg}: {text_of(argument.annotation)} at {place}")
        names = [a.arg for a in arguments]
        if "views" in scope.module.dotted[-2:] and "request" in names[:2]:
            return Wait(HANDLER, f"view {scope.last_name}({names[0]}) at {place}")
        if names[:2] == ["event", "context"] and "handler" in scope.last_name:
            return Wait(UNKNOWN, f"AWS Lambda handler at {place}: what calls it is not in the code")
        return None

    def _test(self, scope: Scope) -> Wait | None:
        if scope.last_name.startswith("test") and _is_test(scope.module):
            return Wait(TEST, f"{scope.last_name}() at {scope.module.place(scope.node)}")
        return None

    def _command(self, scope: Scope) -> Wait | None:
        dotted = ".".join(scope.module.dotted)
        for target, why in self.tree.started.items():
            module, colon, function = target.partition(":")
            if colon and function == scope.name and _ends_alike(module.split("."), dotted.split(".")):
                return Wait(SCRIPT, why)
        return None

    def _file(self, scope: Scope) -> Wait:
        module = scope.module
        if module.is_notebook:
            return Wait(NOTEBOOK, f"{module.file}, {scope.label}" if scope.label else module.file)
        if _is_test(module):
            return Wait(TEST, module.file)
        for bounds in scope.names.values():
            for bound in bounds:
                if isinstance(bound.what, tuple) and bound.what[0] == "streamlit":
                    return Wait(HANDLER, f"{module.file} is a Streamlit page")
        for target, why in self.tree.started.items():
            dotted = [*module.dotted]
            if ":" not in target and (
                _ends_alike(target.split("/"), dotted) or _ends_alike([*target.split("/"), "__main__"], dotted)
            ):
                return Wait(CRON, f"started by {why}")
        return Wait(SCRIPT, f"run with {module.file}")


def repeats(around: Around) -> bool:
    """Whether a call is made once for each of several things: not merely tried again."""
    for loop in around.loops:
        if isinstance(loop, ast.For) and isinstance(loop.target, ast.Name) and _RETRIES.search(loop.target.id):
            continue
        if isinstance(loop, ast.While) and _RETRIES.search(text_of(loop.test)):
            continue
        return True
    return any(_last(c.func) in _MANY for c in around.calls)


def text_of(node: ast.AST) -> str:
    """An expression as written, shortened: names, dots and calls."""
    parts: list[str] = []
    while len(parts) < 40:
        match node:
            case ast.Attribute():
                parts.append(f".{node.attr}")
                node = node.value
            case ast.Call():
                parts.append("()")
                node = node.func
            case ast.Subscript():
                parts.append("[]")
                node = node.value
            case ast.Await():
                node = node.value
            case ast.Name():
                parts.append(node.id)
                break
            case ast.Constant(value=str(text)):
                parts.append(text)
                break
            case ast.Compare():
                node = node.left
            case _:
                parts.append("...")
                break
    text = "".join(reversed(parts))
    return text if len(text) <= _SHOWN else "..." + text[-_SHOWN:]


def _named(scope: Scope) -> Scope:
    """The function around a lambda, the module around a class."""
    while scope.parent and (isinstance(scope.node, ast.Lambda) or scope.kind == "class"):
        scope = scope.parent
    return scope


def _most_urgent(waits: Iterable[Wait]) -> tuple[Wait, ...]:
    of_kind: dict[str, Wait] = {}
    for wait in waits:
        of_kind.setdefault(wait.kind, wait)
    return tuple(of_kind[kind] for kind in URGENCY if kind in of_kind)


def _last(node: ast.expr) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _said(loop: ast.AST) -> tuple[set[str], set[str]]:
    """All names and words in a loop, and the names of what grows in it."""
    words, grown = set(), set()
    for node in ast.walk(loop):
        match node:
            case ast.Attribute():
                words.add(node.attr)
                if node.attr in {"append", "extend"}:
                    grown.add(_last(node.value))
            case ast.Name():
                words.add(node.id)
            case ast.Constant(value=str(text)):
                words.add(text[:40])
            case ast.AugAssign():
                grown.add(_last(node.target))
    return words, grown


def _named_in(call: ast.Call) -> set[str]:
    given = [*call.args, *(k.value for k in call.keywords)]
    return {_last(n) for g in given for n in ast.walk(g) if isinstance(n, ast.Name | ast.Attribute)}


def _is_test(module: Module) -> bool:
    stem = module.dotted[-1] if module.dotted else ""
    return (
        stem.startswith("test_")
        or stem.endswith("_test")
        or stem == "conftest"
        or bool({"tests", "test"} & {*module.dotted})
    )


def _ends_alike(one: list[str], other: list[str]) -> bool:
    n = min(len(one), len(other))
    return n > 0 and one[-n:] == other[-n:]


def _beats(module: Module) -> Iterator[tuple[str, str]]:
    """Tasks that a schedule of Celery names, and where."""
    for name, bounds in module.scope.names.items():
        if name.lower().strip(".").endswith("beat_schedule"):
            for bound in bounds:
                if isinstance(bound.what, ast.Dict):
                    for entry in bound.what.values:
                        if isinstance(entry, ast.Dict):
                            for key, value in zip(entry.keys, entry.values, strict=True):
                                match key, value:
                                    case ast.Constant(value="task"), ast.Constant(value=str(text)):
                                        yield text, module.place(entry)
