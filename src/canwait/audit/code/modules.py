"""One file of Python as scopes, what their names are bound to, and where names are used. Nothing in it is ever run."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal, NamedTuple

from .libraries import is_library

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(eq=False, slots=True)
class Scope:
    """A module, a class or a function: where names live. What methods set on `self` are names of their class."""

    kind: Literal["module", "class", "function"]
    node: ast.AST
    module: Module
    parent: Scope | None
    name: str  # qualified; "" for the module
    label: str = ""  # of a notebook's cell
    names: dict[str, list[Bound]] = field(default_factory=dict)
    returns: list[ast.expr] = field(default_factory=list)  # what it returns or yields
    not_local: set[str] = field(default_factory=set)  # named by `global`

    @property
    def last_name(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def function(self) -> str:
        """For people: cell 3, or Service.reply."""
        return ", ".join(filter(None, (self.label, self.name)))

    def outwards(self) -> Iterator[Scope]:
        """This scope and those around it, innermost first."""
        scope: Scope | None = self
        while scope:
            yield scope
            scope = scope.parent


class Bound(NamedTuple):
    """One thing a name is bound to: what to look at, and where its own names live. `each`: to one after the other."""

    kind: Literal["value", "typed", "entered", "defined", "imported", "parameter", "each"]
    what: ast.expr | ast.arg | Scope | tuple[str, ...]  # imported: the dotted path, with a leading "." for each level
    scope: Scope


class Around(NamedTuple):
    """What a use stands in: the calls whose arguments hold it and the loops of its function, innermost first."""

    calls: tuple[ast.Call, ...] = ()
    loops: tuple[ast.AST, ...] = ()
    awaited: bool = False


class Use(NamedTuple):
    """A name or a dotted chain that is read: `call` is the call whose function it is, if it is one's."""

    node: ast.expr
    call: ast.Call | None
    scope: Scope
    around: Around
    then: str = ""  # the attribute that is read off it: `delay` of label.delay(row)


@dataclass(eq=False, slots=True)
class Module:
    """A file that was read."""

    file: str  # for people, relative to the root, in characters that can be printed
    dotted: tuple[str, ...]  # folders and stem; a package is its folder
    is_package: bool = False
    is_notebook: bool = False
    scope: Scope = field(init=False)
    scopes: list[Scope] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)  # by the last name of the chain
    stars: list[tuple[str, ...]] = field(default_factory=list)  # modules all of whose names are imported

    def place(self, node: ast.AST) -> str:
        return f"{self.file}:{getattr(node, 'lineno', 1)}"


def module_of(
    file: str, dotted: tuple[str, ...], cells: Sequence[tuple[str, ast.Module]], *, is_package: bool, is_notebook: bool
) -> Module:
    """A module from its text: one tree of a file, or a labelled one of each cell of a notebook."""
    module = Module(file, dotted, is_package, is_notebook)
    first = cells[0][1] if cells else ast.Module([], [])
    module.scope = Scope("module", first, module, None, "")
    module.scopes.append(module.scope)
    for label, tree in cells:
        scope = module.scope
        if label:
            scope = Scope("module", tree, module, None, "", label, names=module.scope.names)
        _Reader(module).read(tree.body, scope)
        tree.body = []
    for scope in module.scopes:  # what nothing refers to need not be kept: a tree is a thousand bytes a line
        if isinstance(scope.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope.node.body = []
    return module


# What a name of a library, or an attribute of any client of one, is called.
_CHAINS = {"completions", "messages", "responses", "embeddings", "batches", "generate_content", "models", "chat"}


def leading(module: Module, hot: Mapping[str, Set[str]]) -> set[tuple[str, str]]:
    """Names that may lead to a model, each with the last part of its module's path: the module's own that name a
    library, what `hot` holds of other modules, or one another; and what its classes that do inherit from. For choosing
    what to read, so too many rather than too few."""
    words = set(_CHAINS)
    names: dict[str, set[str]] = {}  # word in its value -> names of the module that are set to it
    for scope in module.scopes:
        for name, bounds in scope.names.items():
            for bound in bounds:
                what = bound.what
                if isinstance(what, tuple):
                    hot_there = hot.get(what[-2], ()) if len(what) > 1 else ()
                    if is_library(".".join(what)) or hot.get(what[-1]) or what[-1] in hot_there:
                        words.add(name)
                elif scope.kind == "module" and isinstance(what, ast.expr):
                    for node in ast.walk(what):
                        if isinstance(node, ast.Name | ast.Attribute):
                            names.setdefault(node.attr if isinstance(node, ast.Attribute) else node.id, set()).add(name)
    starred = {name for path in module.stars for name in hot.get(path[-1], ())}
    found = words & module.scope.names.keys() | starred  # imported ones too: others may import them from here
    todo = words | starred
    while todo:
        word = todo.pop()
        for use in module.uses.get(word, ()):
            top = next((s for s in use.scope.outwards() if s.parent and s.parent.kind == "module"), None)
            if top and top.name not in found:
                found.add(top.name)
                todo.add(top.name)
        new = names.get(word, set()) - found
        found |= new
        todo |= new
    last = module.dotted[-1] if module.dotted else ""
    pairs = {(last, name) for name in found}
    for scope in module.scopes:
        if isinstance(scope.node, ast.ClassDef) and scope.name in found:  # whoever holds its base may hold it
            for base in scope.node.bases:
                name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
                paths = [b.what for b in module.scope.names.get(name, ()) if isinstance(b.what, tuple)]
                pairs.update((path[-2], path[-1]) for path in paths if len(path) > 1)
                pairs.add((last, name))
    return pairs


_NOTHING = Around()
_BUILTINS = frozenset(dir(builtins))  # as bare names they lead to no model
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_UNREAD = frozenset({"ctx", "op", "ops", "type_comment", "kind", "type_params"})
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {}


class _Reader:
    """Walks a tree once, in the order of the text, without recursion: text decides how deep it is."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.todo: list[tuple[ast.AST, Scope, Around]] = []

    def read(self, body: Sequence[ast.AST], scope: Scope) -> None:
        self.later(body, scope, _NOTHING)
        visits = {
            ast.Name: self.name,
            ast.Attribute: self.attribute,
            ast.Call: self.call,
            ast.Assign: self.assign,
            ast.AnnAssign: self.annotated,
            ast.NamedExpr: self.walrus,
            ast.FunctionDef: self.function,
            ast.AsyncFunctionDef: self.function,
            ast.Lambda: self.lambda_,
            ast.ClassDef: self.class_,
            ast.Import: self.import_,
            ast.ImportFrom: self.import_from,
            ast.With: self.with_,
            ast.AsyncWith: self.with_,
            ast.Return: self.returned,
            ast.Yield: self.returned,
            ast.Global: self.global_,
            ast.Await: self.await_,
            ast.For: self.loop,
            ast.AsyncFor: self.loop,
            ast.While: self.loop,
            ast.AugAssign: self.augmented,
            **dict.fromkeys(_COMPREHENSIONS, self.comprehension),
        }
        todo = self.todo
        while todo:
            node, scope, around = todo.pop()
            visit = visits.get(type(node))
            if visit:
                visit(node, scope, around)  # type: ignore[operator]
            else:
                self.children(node, scope, around)

    def later(self, nodes: Sequence[ast.AST | None], scope: Scope, around: Around) -> None:
        self.todo.extend((n, scope, around) for n in reversed(nodes) if n is not None)

    def children(self, node: ast.AST, scope: Scope, around: Around) -> None:
        kind = type(node)
        fields = _FIELDS.get(kind)
        if fields is None:
            fields = _FIELDS[kind] = tuple(f for f in reversed(kind._fields) if f not in _UNREAD)
        todo = self.todo
        for name in fields:
            child = getattr(node, name, None)
            if child.__class__ is list:
                for c in reversed(child):
                    if isinstance(c, ast.AST):
                        todo.append((c, scope, around))
            elif isinstance(child, ast.AST) and child.__class__ is not ast.Constant:
                todo.append((child, scope, around))

    # ---------------------------------------------------------------------------------------------------- uses

    def name(self, node: ast.Name, scope: Scope, around: Around) -> None:
        if isinstance(node.ctx, ast.Load) and node.id not in _BUILTINS:
            self.used(node.id, Use(node, None, scope, around))

    def attribute(self, node: ast.Attribute, scope: Scope, around: Around) -> None:
        if isinstance(node.ctx, ast.Load):
            self.chain(node, None, scope, around)
        else:
            self.later([node.value], scope, around)

    def call(self, node: ast.Call, scope: Scope, around: Around) -> None:
        inside = around._replace(calls=(node, *around.calls[:7]), awaited=False)
        self.later([*node.args, *(k.value for k in node.keywords)], scope, inside)
        if isinstance(node.func, ast.Attribute):
            self.chain(node.func, node, scope, around)
        elif isinstance(node.func, ast.Name):
            if node.func.id not in _BUILTINS:
                self.used(node.func.id, Use(node.func, node, scope, around))
        else:
            self.later([node.func], scope, around)

    def chain(self, node: ast.Attribute, call: ast.Call | None, scope: Scope, around: Around) -> None:
        """A use under its last name, and under the one before: `label.delay()` uses `label`."""
        self.used(node.attr, Use(node, call, scope, around))
        base = node.value
        if isinstance(base, ast.Attribute | ast.Name):
            self.used(
                base.attr if isinstance(base, ast.Attribute) else base.id, Use(base, call, scope, around, node.attr)
            )
        while isinstance(base, ast.Attribute):
            base = base.value
        if not isinstance(base, ast.Name):
            self.later([base], scope, around._replace(awaited=False))

    def used(self, name: str, use: Use) -> None:
        self.module.uses.setdefault(name, []).append(use)

    def await_(self, node: ast.Await, scope: Scope, around: Around) -> None:
        self.later([node.value], scope, around._replace(awaited=True))

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, scope: Scope, around: Around) -> None:
        inside = around._replace(loops=(node, *around.loops[:7]))
        self.later([*node.body, *node.orelse], scope, inside)
        if isinstance(node, ast.While):
            self.later([node.test], scope, inside)
        else:
            self.target(node.target, Bound("each", node.iter, scope), scope)
            self.later([node.iter], scope, around._replace(awaited=isinstance(node, ast.AsyncFor)))

    def comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, scope: Scope, around: Around
    ) -> None:
        inside = around._replace(loops=(node, *around.loops[:7]))
        for part in node.generators:
            self.target(part.target, Bound("each", part.iter, scope), scope)
            self.later([part.iter], scope, around)
            self.later(part.ifs, scope, inside)
        self.later([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt], scope, inside)

    # ------------------------------------------------------------------------------------------------ bindings

    def bind(self, name: str, bound: Bound, scope: Scope) -> None:
        if name in scope.not_local:
            scope = self.module.scope
        scope.names.setdefault(name, []).append(bound)

    def target(self, target: ast.expr, bound: Bound, scope: Scope) -> None:
        if isinstance(target, ast.Name):
            self.bind(target.id, bound, scope)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            of = owner(scope, target.value.id)
            if of:
                of.names.setdefault(target.attr, []).append(bound)
        elif isinstance(target, ast.Attribute):  # of something else: under a name that no name has
            self.module.scope.names.setdefault(f".{target.attr}", []).append(bound)
        elif isinstance(target, ast.Tuple | ast.List):
            values = bound.what.elts if bound.kind == "value" and isinstance(bound.what, ast.Tuple | ast.List) else []
            for t, value in zip_longest(target.elts, values[: len(target.elts)]):
                self.target(t, bound._replace(what=value) if value else bound._replace(kind="each"), scope)
        elif isinstance(target, ast.Starred):
            self.target(target.value, bound._replace(kind="each"), scope)

    def assign(self, node: ast.Assign, scope: Scope, around: Around) -> None:
        for target in node.targets:
            self.target(target, Bound("value", node.value, scope), scope)
        self.later([*node.targets, node.value], scope, around)

    def annotated(self, node: ast.AnnAssign, scope: Scope, around: Around) -> None:
        if node.value:
            self.target(node.target, Bound("value", node.value, scope), scope)
        self.target(node.target, Bound("typed", node.annotation, scope), scope)
        self.later([node.target, node.value], scope, around)

    def augmented(self, node: ast.AugAssign, scope: Scope, around: Around) -> None:
        self.target(node.target, Bound("each", node.value, scope), scope)
        self.later([node.target, node.value], scope, around)

    def walrus(self, node: ast.NamedExpr, scope: Scope, around: Around) -> None:
        self.target(node.target, Bound("value", node.value, scope), scope)
        self.later([node.value], scope, around)

    def with_(self, node: ast.With | ast.AsyncWith, scope: Scope, around: Around) -> None:
        self.later(node.body, scope, around)
        inside = around._replace(awaited=isinstance(node, ast.AsyncWith))
        for item in node.items:
            if item.optional_vars:
                self.target(item.optional_vars, Bound("entered", item.context_expr, scope), scope)
            self.later([item.context_expr], scope, inside)

    def returned(self, node: ast.Return | ast.Yield, scope: Scope, around: Around) -> None:
        if node.value:
            scope.returns.append(node.value)
            self.later([node.value], scope, around)

    def global_(self, node: ast.Global, scope: Scope, around: Around) -> None:
        scope.not_local.update(node.names)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope, around: Around) -> None:
        inner = self.inner("function", node, node.name, scope)
        self.bind(node.name, Bound("defined", inner, scope), scope)
        self.parameters(node.args, inner, scope)
        self.later(node.body, inner, _NOTHING)
        self.later([*node.decorator_list, *node.args.defaults, *node.args.kw_defaults], scope, around)

    def lambda_(self, node: ast.Lambda, scope: Scope, around: Around) -> None:
        inner = Scope(
            "function", node, self.module, scope, scope.name, scope.label
        )  # no name: its calls are its maker's
        self.parameters(node.args, inner, scope)
        inner.returns.append(node.body)
        self.later([node.body], inner, around)

    def parameters(self, args: ast.arguments, inner: Scope, outer: Scope) -> None:
        for a in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
            if a:
                inner.names.setdefault(a.arg, []).append(Bound("parameter", a, outer))
        positional = [*args.posonlyargs, *args.args]
        defaults = zip(positional[len(positional) - len(args.defaults) :], args.defaults, strict=True)
        for a, default in [*defaults, *zip(args.kwonlyargs, args.kw_defaults, strict=True)]:
            if default:
                inner.names[a.arg].append(Bound("value", default, outer))

    def class_(self, node: ast.ClassDef, scope: Scope, around: Around) -> None:
        inner = self.inner("class", node, node.name, scope)
        self.bind(node.name, Bound("defined", inner, scope), scope)
        self.later(node.body, inner, _NOTHING)
        self.later([*node.decorator_list, *node.bases, *(k.value for k in node.keywords)], scope, around)

    def inner(self, kind: Literal["class", "function"], node: ast.AST, name: str, scope: Scope) -> Scope:
        name = f"{scope.name}.{name}" if scope.name else name
        inner = Scope(kind, node, self.module, scope, name, scope.label)
        self.module.scopes.append(inner)
        return inner

    def import_(self, node: ast.Import, scope: Scope, around: Around) -> None:
        for alias in node.names:
            path = tuple(alias.name.split("."))
            self.bind(alias.asname or path[0], Bound("imported", path if alias.asname else path[:1], scope), scope)

    def import_from(self, node: ast.ImportFrom, scope: Scope, around: Around) -> None:
        base = ("." * node.level, *(node.module or "").split(".")) if node.level else (node.module or "",)
        path = tuple(p for part in base for p in (part.split(".") if part.strip(".") else [part]) if p)
        for alias in node.names:
            if alias.name == "*":
                self.module.stars.append(path)
            else:
                self.bind(alias.asname or alias.name, Bound("imported", (*path, alias.name), scope), scope)


def owner(scope: Scope, name: str) -> Scope | None:
    """The class whose instance or self `name` is here: the first argument of a method around."""
    for function in scope.outwards():
        node = function.node
        if (
            function.parent
            and function.parent.kind == "class"
            and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            first = [*node.args.posonlyargs, *node.args.args][:1]
            is_self = first and first[0].arg == name and "staticmethod" not in decorators(function)
            return function.parent if is_self else None
    return None


def decorators(function: Scope) -> set[str]:
    """Last names of a function's decorators."""
    found = set()
    for node in getattr(function.node, "decorator_list", ()):
        node = node.func if isinstance(node, ast.Call) else node
        found.add(getattr(node, "attr", getattr(node, "id", "")))
    return found
