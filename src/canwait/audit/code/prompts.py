"""What a call says in its arguments: literals, its names in a log, and text that varies where a cache needs it not to."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from .modules import Scope
from .names import Names, Outside
from .waiting import text_of

LONG = 400  # characters of constant text worth a remark when text that varies stands before it
_DEPTH = 12
_PIECES = 500  # of one argument: names can be nested to any number of them
_LABELS = 20
_TEXTS = ("tools", "system", "system_instruction", "instructions", "prompt", "messages", "input", "contents")
_NESTED = ("config", "generation_config", "extra_body", "model_settings", "optional_params")
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample", "max_new_tokens")
_MODELS = ("model", "model_name", "model_id", "azure_deployment", "deployment_name")
_SPECS = re.compile(r"%(?:\(\w*\))?[-+ #0-9.*]*[sdrifgxeoc]")
_TIMES = re.compile(
    r"(?:datetime|time|pendulum|arrow|date)\b.*(?:now|today|time|ctime|utc|strftime|isoformat)\b.*|.*\.timezone\.now\(\).*"
)
_CHANCE = re.compile(r"(?:uuid|secrets|random|ulid|nanoid|shortuuid)\b.*")
_KEPT = {"strip", "dedent", "cleandoc", "lstrip", "rstrip", "removeprefix"}
_NAMED_BY = {
    "get_prompt",
    "start_as_current_span",
    "start_span",
    "start_as_current_observation",
    "start_as_current_generation",
}
_NAMED_BY |= {"generation", "span", "trace", "create_prompt"}


@dataclass(frozen=True, slots=True)
class Said:
    """What is certain about a call's arguments."""

    model: str | None
    max_output_tokens: int | None
    stream: bool | None  # None: not said
    labels: tuple[str, ...]
    lints: tuple[str, ...]


class Prompts:
    def __init__(self, names: Names) -> None:
        self.names = names
        self.labels: dict[Scope, tuple[str, ...]] = {}

    def said(self, call: ast.Call, scope: Scope, made: tuple[ast.Call, Scope] | None) -> Said:
        """`made` is the call that made the client, which may have been told the model."""
        arguments = dict(self._arguments(call, scope))
        makers = dict(self._arguments(made[0], made[1])) if made else {}
        model = self._text(arguments, _MODELS) or self._text(makers, _MODELS) or self._first(made or (call, scope))
        stream = self._constant(*arguments["stream"]) if "stream" in arguments else None
        return Said(
            model,
            self._number(arguments, _CAPS) or self._number(makers, _CAPS),
            stream if isinstance(stream, bool) else None,
            tuple(dict.fromkeys(self._labels(arguments, scope)))[:_LABELS],
            tuple(self._lints(arguments, scope)),
        )

    def _arguments(self, call: ast.Call, scope: Scope, depth: int = 0) -> Iterator[tuple[str, tuple[ast.expr, Scope]]]:
        """Named arguments, those of `**` a display, and those of a configuration among them."""
        for k in call.keywords:
            yield from self._argument(k.arg, k.value, scope, depth)

    def _argument(
        self, name: str | None, value: ast.expr, scope: Scope, depth: int
    ) -> Iterator[tuple[str, tuple[ast.expr, Scope]]]:
        if name and name not in _NESTED:
            yield name, (value, scope)
            return
        value, scope = self._followed(value, scope)
        if depth < 4 and isinstance(value, ast.Call):
            yield from self._arguments(value, scope, depth + 1)
        elif depth < 4 and isinstance(value, ast.Dict):
            for key, v in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield from self._argument(key.value, v, scope, depth + 1)
                elif key is None:
                    yield from self._argument(None, v, scope, depth + 1)

    def _followed(self, value: ast.expr, scope: Scope) -> tuple[ast.expr, Scope]:
        """What a name stands for, where it was set only once."""
        for _ in range(_DEPTH):
            bound = self.names.bound(value, scope)
            if not bound:
                break
            value, scope = bound
        return value, scope

    def _constant(self, value: ast.expr, scope: Scope) -> object:
        value, _ = self._followed(value, scope)
        return value.value if isinstance(value, ast.Constant) else None

    def _text(self, arguments: dict[str, tuple[ast.expr, Scope]], wanted: tuple[str, ...]) -> str | None:
        found = (self._constant(*arguments[name]) for name in wanted if name in arguments)
        return next((v for v in found if isinstance(v, str) and v), None)

    def _number(self, arguments: dict[str, tuple[ast.expr, Scope]], wanted: tuple[str, ...]) -> int | None:
        found = (self._constant(*arguments[name]) for name in wanted if name in arguments)
        return next((v for v in found if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)

    def _first(self, call: tuple[ast.Call, Scope]) -> str | None:
        """A model given by place: Agent("openai:..."), GenerativeModel("..."), completion("...")."""
        text = self._constant(call[0].args[0], call[1]) if call[0].args else None
        return text if isinstance(text, str) and re.fullmatch(r"[\w.:/@-]{2,100}", text) else None

    def _labels(self, arguments: dict[str, tuple[ast.expr, Scope]], scope: Scope) -> Iterator[str]:
        """Names that this call has in a log."""
        for name in ("name", "generation_name", "prompt_name", "span_name"):
            if name in arguments and isinstance(text := self._constant(*arguments[name]), str):
                yield text
        for name in ("metadata", "extra_headers"):
            if name in arguments:
                value, where = self._followed(*arguments[name])
                if isinstance(value, ast.Dict):
                    yield from (t for v in value.values if isinstance(t := self._constant(v, where), str))
        if scope not in self.labels:
            self.labels[scope] = tuple(islice(_labels_around(scope), _LABELS))
        yield from self.labels[scope]

    # --------------------------------------------------------------------------------- the prefix that a cache needs

    def _lints(self, arguments: dict[str, tuple[ast.expr, Scope]], scope: Scope) -> Iterator[str]:
        varies: tuple[str, ast.expr, Scope] | None = None
        constant = 0
        for name in _TEXTS:
            if name in arguments:
                for piece, where in islice(self._pieces(*arguments[name], 0), _PIECES):
                    if isinstance(piece, int):
                        constant += piece if varies else 0
                    elif varies is None:
                        varies = (self._looks(piece, where), piece, where)
        if varies and constant >= LONG:
            what, node, where = varies
            place = where.module.place(node)
            yield f"{what} at {place} stands before {constant:,} characters that never change: no cache can use them"

    def _pieces(self, node: ast.expr, scope: Scope, depth: int) -> Iterator[tuple[int | ast.expr, Scope]]:
        """The text of a prompt in its order: lengths of what is constant, expressions for what is not."""
        node, scope = self._followed(node, scope)
        yield 0, scope
        if depth > _DEPTH:
            yield node, scope
            return
        depth += 1
        match node:
            case ast.Constant():
                yield len(node.value) if isinstance(node.value, str) else 0, scope
            case ast.JoinedStr():
                for part in node.values:
                    yield from self._pieces(part, scope, depth)
            case ast.FormattedValue() | ast.Starred():
                yield from self._pieces(node.value, scope, depth)
            case ast.BinOp(op=ast.Add()):
                for term in _terms(node):
                    yield from self._pieces(term, scope, depth)
            case ast.BinOp(op=ast.Mod(), left=template):
                constant = self._constant(template, scope)
                if isinstance(constant, str):
                    for n, literal in enumerate(_SPECS.split(constant)):
                        if n:
                            yield node.right, scope
                        yield len(literal), scope
                else:
                    yield node, scope
            case ast.List() | ast.Tuple():
                for item in node.elts:
                    yield from self._pieces(item, scope, depth)
            case ast.Dict():
                for key, value in zip(node.keys, node.values, strict=True):
                    if not (isinstance(key, ast.Constant) and key.value in {"role", "type", "cache_control"}):
                        yield from self._pieces(value, scope, depth)
            case ast.Call(func=ast.Attribute(value=template, attr="format")):
                yield from self._formatted(node, template, scope, depth)
            case ast.Call(func=ast.Attribute(value=kept, attr=name)) if name in _KEPT and not node.args:
                yield from self._pieces(kept, scope, depth)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[kept]) if name in _KEPT:
                yield from self._pieces(kept, scope, depth)
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str()), attr="join"), args=[ast.List() as parts]):
                yield from self._pieces(parts, scope, depth)
            case ast.Call(keywords=[_, *_]) if {k.arg for k in node.keywords} & {"content", "text", "parts"}:
                for k in node.keywords:  # a message as an object
                    if k.arg in {"content", "text", "parts"}:
                        yield from self._pieces(k.value, scope, depth)
            case _:
                yield node, scope

    def _formatted(
        self, call: ast.Call, template: ast.expr, scope: Scope, depth: int
    ) -> Iterator[tuple[int | ast.expr, Scope]]:
        text = self._constant(template, scope)
        if not isinstance(text, str):
            yield call, scope
            return
        named = {k.arg: k.value for k in call.keywords}
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError:
            yield call, scope
            return
        for n, (literal, field, _, _) in enumerate(parts):
            yield len(literal), scope
            if field is not None:
                number = int(field) if field.isdecimal() and len(field) < 4 else n
                given = named.get(field) or (
                    call.args[number] if number < len(call.args) and field not in named else None
                )
                if given is None:
                    yield call, scope
                else:
                    yield from self._pieces(given, scope, depth)

    def _looks(self, node: ast.expr, scope: Scope) -> str:
        """What kind of text varies, for people."""
        for part in islice(ast.walk(node), 50):
            if isinstance(part, ast.Call):
                value = self.names.value(part, scope)
                if isinstance(value, Outside) and _TIMES.fullmatch(value.path):
                    return f"the time ({text_of(part)})"
                if isinstance(value, Outside) and _CHANCE.fullmatch(value.path):
                    return f"an id or chance ({text_of(part)})"
        return f"text that varies ({text_of(node)})"


def _terms(node: ast.expr) -> list[ast.expr]:
    """What is added up, in its order."""
    terms = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(node.right)
        node = node.left
    return [node, *reversed(terms)]


def _labels_around(scope: Scope) -> Iterator[str]:
    """Names in the decorators of a function and of those around it, and of prompts and spans that it opens."""
    for around in scope.outwards():
        for decorator in getattr(around.node, "decorator_list", ()):
            if isinstance(decorator, ast.Call):
                yield from _literal(*(k.value for k in decorator.keywords if k.arg == "name"))
    for name in sorted(_NAMED_BY & scope.module.uses.keys()):
        for use in scope.module.uses[name]:
            if use.call and use.scope is scope:
                yield from _literal(*use.call.args[:1], *(k.value for k in use.call.keywords if k.arg == "name"))


def _literal(*nodes: ast.expr) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
