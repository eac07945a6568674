"""A row and a job's templates -> the canonical body of one request. Pure.

A body is compact UTF-8 JSON with sorted keys, so equal requests have equal bytes. One thing keeps the order it was
written in: what lies inside an output schema and inside `tools`. Models write the fields of an answer in the order of
its schema (reasons before the label, or after it), so there another order is another request.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from .errors import Problem, SpecError
from .structured import structured_output
from .types import Endpoint, Job

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

ROLES = ("system", "user", "assistant")

Loc = tuple[str | int, ...]  # a place in a prompt, params or a job: (0, "content"), ("tools", 1)


class RowProblem(ValueError):
    """A row that cannot become a request; the message says what was found."""


class Rendered(NamedTuple):
    body: bytes  # the whole request body, without custom_id
    texts: tuple[str, ...]  # the contents of its messages, in order


class Fault(NamedTuple):
    """Something wrong with a prompt or with params."""

    path: Loc  # within them
    message: str
    line: int | None = None  # of the template, counted from 1


_PATHS = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.RESPONSES: "/v1/responses",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}


def endpoint(job: Job) -> str:
    """The path requests are posted to."""
    return "/v1/messages" if job.provider == "anthropic" else _PATHS[job.endpoint]


def compile_job(job: Job) -> Renderer:
    """Raises SpecError with every problem of the prompt, the params and the schema at once."""
    unserved = {
        "endpoint": endpoint_fault(job.provider, job.endpoint),
        "max_output_tokens": bound_fault(job.provider, job.endpoint, job.max_output_tokens),
    }
    faults = [
        *(Fault((name,), why) for name, why in unserved.items() if why),
        *(fault._replace(path=("prompt", *fault.path)) for fault in prompt_faults(job.prompt, job.endpoint)),
        *(fault._replace(path=("params", *fault.path)) for fault in params_faults(job.params)),
    ]
    structured: Mapping[str, Any] = {}
    if job.output_schema is not None:
        try:
            structured = structured_output(job.provider, job.output_schema, job.endpoint)
        except ValueError as error:
            faults.append(Fault(("output",), str(error)))
    if faults:
        raise SpecError([Problem(f"job {job.name}", f.line, None, dotted(f.path), f.message) for f in faults])
    return Renderer(job, structured)


class Renderer:
    """Renders the rows of one job. Made by `compile_job`."""

    def __init__(self, job: Job, structured: Mapping[str, Any]) -> None:
        self.templates = tuple((role, Template(text)) for role, text in job.prompt)
        self._anthropic = job.provider == "anthropic"
        self._endpoint = job.endpoint
        self.columns: frozenset[str] = frozenset().union(*(t.columns for _, t in self.templates))

        given = {k: _canonical(v, as_written=k == "tools") for k, v in job.params.items()}
        for name, value in structured.items():  # output_config and text may also come from params, without a format
            given[name] = _canonical(dict(sorted({**job.params.get(name, {}), **value}.items())), as_written=True)
        # What a provider puts before the model is its secret, so every param counts that is not known to stay outside.
        self.fixed_bytes: int = sum(len(k) + len(v) for k, v in given.items() if k not in _UNREAD)

        self._fixed: dict[str, Any] = _always(job)
        self._fixed |= {k: orjson.Fragment(v) for k, v in given.items()} | {"model": job.model}

    def missing(self, available: Sequence[str]) -> list[tuple[str, str | None]]:
        """Columns the templates need and the source does not have, each with the nearest name it does have."""
        return [(c, nearest(c, available)) for c in sorted(self.columns.difference(available))]

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """Raises RowProblem."""
        try:
            texts = tuple([template.render(row) for _, template in self.templates])
        except RowProblem:
            raise
        except UNFILLABLE as error:
            raise RowProblem(f"the template cannot be filled: {error}") from error
        for (role, _), text in zip(self.templates, texts, strict=True):
            if not text or text.isspace():
                raise RowProblem(f"the {role} message is empty")
            if "\0" in text:
                raise RowProblem(f"{self._where(row, text, _has_nul)} holds a NUL character")

        try:
            return Rendered(self.body(texts), texts)
        except orjson.JSONEncodeError:
            text = next(filter(_has_surrogate, texts))
            raise RowProblem(f"{self._where(row, text, _has_surrogate)} holds half of a surrogate pair") from None

    def body(self, texts: tuple[str, ...]) -> bytes:
        """The canonical body of these message contents. Raises orjson.JSONEncodeError for half of a surrogate pair."""
        if self._endpoint is Endpoint.EMBEDDINGS:
            (text,) = texts
            return _canonical({**self._fixed, "input": text})
        messages = [{"role": role, "content": text} for (role, _), text in zip(self.templates, texts, strict=True)]
        body = {**self._fixed, "input" if self._endpoint is Endpoint.RESPONSES else "messages": messages}
        if self._anthropic and messages[0]["role"] == "system":
            body |= {"system": texts[0], "messages": messages[1:]}
        return _canonical(body)

    def _where(self, row: Mapping[str, Any], text: str, bad: Callable[[str], bool]) -> str:
        columns = (c for c in sorted(self.columns) if c in row and bad(str(row[c])))
        return next((f"column {c!r}" for c in columns), f"the message {text[:40]!a}")


def _always(job: Job) -> dict[str, Any]:
    """What every body of a job holds beside its params, which may say otherwise, its model and its messages."""
    match job.endpoint:
        case Endpoint.EMBEDDINGS:
            return {"encoding_format": "base64"}  # float32 as it is, in a quarter of the bytes of decimal text
        case Endpoint.RESPONSES:
            return {"max_output_tokens": job.max_output_tokens, "store": False}  # results are kept here, not there
    return {"max_completion_tokens" if job.provider == "openai" else "max_tokens": job.max_output_tokens}


def keyed(model: str, endpoint: str, head: bytes) -> Hash:
    """The hash of every request key of this model and endpoint whose body begins with `head`, so far.

    Only the body, which comes last, has no length before it, so no two requests share their bytes.
    """
    digest = sha256()
    for part in (model.encode(), endpoint.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    digest.update(head)
    return digest


def key_text(value: object) -> str:
    """A row's key as text: text as it is, whole numbers in decimal.

    Raises ValueError for everything else: a float, a date or a bool has more than one spelling, and a key has one.
    """
    if type(value) is not bool and isinstance(value, Integral):
        return str(int(value))
    if not isinstance(value, str):
        raise ValueError(f"the key is {type(value).__name__} {value!r}; expected text or a whole number")
    if not value:
        raise ValueError("the key is empty")
    if _has_nul(value) or _has_surrogate(value):
        raise ValueError(f"the key {value!a} holds a NUL character or half of a surrogate pair")
    return str.__str__(value)


# ------------------------------------------------------------------------------------------ what is wrong with a job


def endpoint_fault(provider: str, endpoint: Endpoint) -> str | None:
    """Why a provider cannot be asked at an endpoint, if it cannot."""
    if endpoint is not Endpoint.CHAT and provider in ("anthropic", "local"):
        serves = "Anthropic serves its messages" if provider == "anthropic" else "the built-in model chats"
        return f"found '{endpoint.value}'; {serves} only, which is `chat`"
    return None


def bound_fault(provider: str, endpoint: Endpoint, max_output_tokens: int) -> str | None:
    """Why an endpoint does not take this bound, if it does not."""
    if endpoint is Endpoint.EMBEDDINGS and max_output_tokens:
        return "an embedding has no output tokens; leave it out"
    if endpoint is Endpoint.RESPONSES and provider == "openai" and max_output_tokens < _LEAST_RESPONSE:
        return f"found {max_output_tokens}; OpenAI's responses take {_LEAST_RESPONSE} or more"
    return None


_LEAST_RESPONSE = 16  # below it: 400 integer_below_min_value (github.com/earendil-works/pi/issues/6265)


def prompt_faults(prompt: Sequence[tuple[str, str]], endpoint: Endpoint = Endpoint.CHAT) -> list[Fault]:
    """Everything wrong with (role, template) messages."""
    faults = []
    for i, (role, text) in enumerate(prompt):
        if endpoint is Endpoint.EMBEDDINGS and (role != "user" or any(earlier == "user" for earlier, _ in prompt[:i])):
            faults.append(Fault((i, "role"), "what is embedded is one text: a single message of the user"))
        elif role not in ROLES:
            faults.append(Fault((i, "role"), f"found '{role}'; expected {', '.join(ROLES)}{did_you_mean(role, ROLES)}"))
        elif role == "system" and i:
            faults.append(Fault((i, "role"), "a system message comes first, and only once"))
        if not text.strip():
            faults.append(Fault((i, "content"), "is empty"))
        faults += [Fault((i, "content"), message, line) for line, message in _template_faults(text)]
    if not any(role == "user" for role, _ in prompt):
        faults.append(Fault((max(len(prompt) - 1, 0), "role"), "expected a message of the user"))
    return faults


def params_faults(params: Mapping[str, Any]) -> list[Fault]:
    """Params the job already states elsewhere, or whose cost the worst case does not hold."""
    return [fault for name, value in params.items() for fault in _param_faults(name, value)]


def _param_faults(name: str, value: object) -> Iterator[Fault]:
    if name in _STATED:
        yield Fault((name,), _STATED[name])
    elif name in _UNBOUNDED:
        yield Fault((name,), f"{_UNBOUNDED[name]}, so the worst case would not hold")
    elif name in ("n", "best_of") and not (type(value) is int and value == 1):
        yield Fault((name,), f"found {value!r}; a row is one answer, and each further one is paid")
    elif name == "dimensions" and not (type(value) is int and value > 0):
        yield Fault((name,), f"found {value!r}; expected a whole number above 0")
    elif name == "encoding_format" and value not in ("base64", "float"):
        yield Fault((name,), f"found {value!r}; expected base64, which is the default, or float")
    elif name == "prompt_cache_options" and isinstance(value, Mapping) and value.get("ttl", "30m") != "30m":
        yield Fault((name, "ttl"), "keeping a cache for longer costs more to write, so the worst case would not hold")
    elif name in ("output_config", "text") and not (isinstance(value, Mapping) and "format" not in value):
        yield Fault((name,), "expected a mapping without `format`, which is made from the job's `output`")
    elif name == "tools" and not (isinstance(value, list | tuple) and all(isinstance(t, Mapping) for t in value)):
        yield Fault((name,), "expected a list of mappings")
    elif name == "tools" and isinstance(value, list | tuple):
        for i, tool in enumerate(value):
            if tool.get("type", "custom") not in ("custom", "function"):
                yield Fault((name, i), f"'{tool['type']}' runs at the provider, at a price of its own")
            if "cache_control" in tool:
                yield Fault((name, i, "cache_control"), _UNBOUNDED["cache_control"])
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        yield Fault((name,), f"cannot be sent as JSON: {error}")


_STATED = {
    "model": "is the job's `model`",
    "messages": "is the job's `prompt`",
    "input": "is the job's `prompt`",
    "system": "is the job's `system`",
    "instructions": "is the job's `system`",
    "max_tokens": "is the job's `max_output_tokens`",
    "max_completion_tokens": "is the job's `max_output_tokens`",
    "max_output_tokens": "belongs beside `params`, not in it",
    "response_format": "is made from the job's `output`",
    "output_format": "is made from the job's `output`",
    "service_tier": "is the job's `tier`",
    "background": "is the job's `tier`",
    "background_options": "is the job's `tier`",
    "stream": "a batch does not stream",
    "stream_options": "a batch does not stream",
}
_UNBOUNDED = {
    "cache_control": "writing a cache costs more than input",
    "audio": "audio is billed at other rates",
    "modalities": "audio is billed at other rates",
    "web_search_options": "searches are billed beside tokens",
    "prediction": "rejected predictions are billed as output beyond `max_output_tokens`",
    "mcp_servers": "tools at the provider are billed beside tokens",
    "container": "containers are billed beside tokens",
    "speed": "it changes the price",
    "inference_geo": "it changes the price",
    "prompt": "a prompt kept at the provider is input that was not counted",
    "conversation": "earlier turns are input that was not counted",
    "previous_response_id": "earlier turns are input that was not counted",
    "context_management": "a summary of the input is billed beside the answer",
}


# Params that steer the sampling or the bookkeeping; the model does not read them.
_UNREAD = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", "frequency_penalty", "presence_penalty"}
    | {"repetition_penalty", "logit_bias", "logprobs", "top_logprobs", "stop", "stop_sequences", "user", "metadata"}
    | {"safety_identifier", "prompt_cache_key", "store", "include", "truncation", "dimensions", "encoding_format"}
)


def dotted(path: Loc) -> str:
    """`("prompt", 0, "role")` -> `prompt[0].role`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The word that was probably meant."""
    folded = {w.casefold(): w for w in reversed(words)}
    match = get_close_matches(word.casefold(), folded, n=1)
    return folded[match[0]] if match else None


def did_you_mean(word: str, words: Sequence[str]) -> str:
    meant = nearest(word, words)
    return f"; did you mean '{meant}'?" if meant else ""


# --------------------------------------------------------------------------------------------------------- templates

_RESERVED = frozenset({"row", "self", "range"})
_ELSEWHERE = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
# What the expressions of a template raise over a row they were not written for.
UNFILLABLE = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


class Template:
    """One template without faults: the columns it needs, and `render(row)`.

    A template of text and plain slots, which most are, becomes a Python format: the same text, ten times as fast.
    """

    def __init__(self, text: str) -> None:
        environment = sandbox()
        tree = environment.parse(text)
        items = {_row_item(node) for node in tree.find_all(nodes.Getitem)}
        self.columns = frozenset(find_undeclared_variables(tree) - _RESERVED | {c for c in items if c is not None})
        self.head, self.tail = _ends(tree)  # what every text of it begins and ends with
        self._jinja = self._fill = None
        self._names: tuple[str, ...] = tuple(self.columns)
        if (slots := _slots(tree)) is None:
            self._jinja = environment.from_string(tree)
        else:
            pieces, self._names = slots
            self._fill = _filler(pieces)
        self.is_constant = not self._names and self._jinja is None

    def render(self, row: Mapping[str, Any]) -> str:
        """Raises RowProblem for a missing column, and one of `UNFILLABLE` for what the template finds in the row."""
        if self._jinja is not None:
            return self._jinja.render({c: row[c] for c in self.columns if c in row}, row=row)
        try:
            return self.render_all({name: (row[name],) for name in self._names})[0] if self._names else self.head
        except KeyError as error:
            raise RowProblem(f"the row has no column {error}") from None

    def render_all(self, columns: Mapping[str, Sequence[Any]]) -> list[str]:
        """The same, column by column, of a template that is not constant. Raises KeyError or one of `UNFILLABLE`."""
        rows = zip(*[columns[name] for name in self._names], strict=True)
        if self._fill is not None:
            return self._fill(rows)
        return [self.render(dict(zip(self._names, row, strict=True))) for row in rows]


def sandbox() -> ImmutableSandboxedEnvironment:
    """Where templates and rules run: they reach nothing but their row, and never chance."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.globals = {"range": safe_range}
    del environment.filters["random"]  # the same row is the same request
    environment.filters["tojson"] = _tojson  # Jinja's own escapes <, > and & for HTML
    return environment


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=indent)


def _slots(tree: nodes.Template) -> tuple[list[str], tuple[str, ...]] | None:
    """The text around slots, and the columns that fill them; None for a template that holds more than text and slots."""
    pieces = [""]
    names: list[str] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                pieces[-1] += node.data
                continue
            column = node.name if isinstance(node, nodes.Name) else _row_item(node)
            if column is None:
                return None
            pieces.append("")
            names.append(column)
    return pieces, tuple(names)


def _filler(pieces: Sequence[str]) -> Callable[[Iterable[tuple[Any, ...]]], list[str]]:
    """`lambda rows: [f"...{v0!s}...{v1!s}..." for v0, v1 in rows]`, made as a syntax tree: no text is ever read as code."""
    names = [f"v{n}" for n in range(len(pieces) - 1)]
    parts: list[ast.expr] = [ast.Constant(pieces[0])]
    for name, piece in zip(names, pieces[1:], strict=True):
        parts += [ast.FormattedValue(ast.Name(name, ast.Load()), conversion=ord("s")), ast.Constant(piece)]
    target = ast.Tuple([ast.Name(name, ast.Store()) for name in names], ast.Store())
    loop = ast.comprehension(target=target, iter=ast.Name("rows", ast.Load()), ifs=[], is_async=0)
    given = ast.arguments(posonlyargs=[], args=[ast.arg("rows")], kwonlyargs=[], kw_defaults=[], defaults=[])
    made = ast.Expression(ast.Lambda(given, ast.ListComp(ast.JoinedStr(parts), [loop])))
    filler: Callable[[Iterable[tuple[Any, ...]]], list[str]]
    filler = eval(compile(ast.fix_missing_locations(made), "<template>", "eval"), {"__builtins__": {}})  # noqa: S307
    return filler


def _ends(tree: nodes.Template) -> tuple[str, str]:
    """The text before the first and after the last thing in a template that is not text."""
    parts = [node for s in tree.body for node in (s.nodes if isinstance(s, nodes.Output) else [s])]
    is_text = [isinstance(part, nodes.TemplateData) for part in parts]
    if all(is_text):
        return "".join(part.data for part in parts), ""  # type: ignore[attr-defined]
    first, last = is_text.index(False), len(parts) - is_text[::-1].index(False)
    return "".join(p.data for p in parts[:first]), "".join(p.data for p in parts[last:])  # type: ignore[attr-defined]


def _row_item(node: nodes.Node) -> str | None:
    """The column of `row['Ticket ID']`, which is how a column is named that is no identifier."""
    match node:
        case nodes.Getitem(node=nodes.Name(name="row"), arg=nodes.Const(value=str(column))):
            return column
    return None


def _template_faults(text: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of a template, counted from 1."""
    if _has_nul(text) or _has_surrogate(text):
        yield 1, "holds a NUL character or half of a surrogate pair"
        return
    environment = sandbox()
    try:
        tree = environment.parse(text)
    except TemplateSyntaxError as error:
        yield error.lineno, f"not a template: {error.message}"
        return
    except RecursionError:
        yield 1, "not a template: nested too deeply"
        return

    faults: list[tuple[int, str]] = []
    allowed = {id(item.node) for item in tree.find_all(nodes.Getitem) if _row_item(item) is not None}
    allowed |= {id(call.node) for call in tree.find_all(nodes.Call) if getattr(call.node, "name", None) == "range"}
    for name in tree.find_all(nodes.Name):
        if name.name in _RESERVED and name.ctx == "load" and id(name) not in allowed:
            faults.append((name.lineno, f"`{name.name}` is reserved; a column of that name is row['{name.name}']"))
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("__"):
            faults.append((attribute.lineno, f"`{attribute.attr}` cannot be read in a template"))
    for elsewhere in tree.find_all(_ELSEWHERE):
        faults.append((elsewhere.lineno, "a prompt stands alone: it cannot include, import or extend"))
    for called in tree.find_all((nodes.Filter, nodes.Test)):
        is_filter = isinstance(called, nodes.Filter)
        names = list(environment.filters if is_filter else environment.tests)
        if called.name not in names:
            what = f"no {'filter' if is_filter else 'test'} is called '{called.name}'"
            faults.append((called.lineno, what + did_you_mean(called.name, names)))
    if not faults:
        try:
            environment.compile(tree)
        except TemplateSyntaxError as error:
            faults.append((error.lineno, f"not a template: {error.message}"))
        except (SyntaxError, RecursionError):  # of the Python that Jinja makes of it
            faults.append((1, "not a template: nested too deeply"))
    yield from sorted(faults)


def _canonical(value: object, *, as_written: bool = False) -> bytes:
    return orjson.dumps(value, option=0 if as_written else orjson.OPT_SORT_KEYS)


def _has_nul(text: str) -> bool:
    return "\0" in text


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)
