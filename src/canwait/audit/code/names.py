"""What an expression is, followed through imports, assignments, annotations and returns, across the files of a tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .libraries import is_library, is_prompt, is_runnable
from .modules import Bound, Module, Scope, decorators, owner

_DEPTH = 60  # hops and attributes; what lies deeper is not followed
_PATH = 200  # characters


@dataclass(frozen=True, slots=True)
class Outside:
    """Something that no file of the tree defines, by the path it was come by. A leading `?`: from where is not known."""

    path: str
    made: tuple[ast.Call, Scope] | None = None  # the call that made the client, for what it was told


@dataclass(frozen=True, slots=True)
class Instance:
    """What a class of the tree makes."""

    of: Scope


Value = Outside | Instance | Scope
UNKNOWN = Outside("?")

# Calls that return what their first argument is, or what it returns.
_RETURN_ARGUMENT = {
    "typing.cast": 1,
    "contextlib.closing": 0,
    "asyncio.run": 0,
    "functools.partial": 0,
    "copy.copy": 0,
    "copy.deepcopy": 0,
    "streamlit.cache_resource": 0,
}
_CALL_ARGUMENT = {"fastapi.Depends", "fastapi.params.Depends", "fast_depends.Depends", "taskiq.TaskiqDepends"}
_ENTERS = {"enter_async_context", "enter_context"}
_PROPERTIES = {"property", "cached_property", "hybrid_property", "computed_field"}
_WRAPPERS = {"Optional", "Annotated", "Union", "Type", "ClassVar", "Final", "InitVar", "Iterator", "AsyncIterator"}
_WRAPPERS |= {"Generator", "AsyncGenerator", "Awaitable", "Coroutine"}


class Names:
    """Answers are remembered; a name that leads to itself is unknown."""

    def __init__(self, find: Callable[[tuple[str, ...], Module], Module | None]) -> None:
        """`find(dotted path, importing module)` is a module of the tree."""
        self.find = find
        self.named_before: dict[tuple[Scope, str], Value | None] = {}
        self.returned_before: dict[Scope, Value | None] = {}

    def value(self, node: ast.expr, scope: Scope, depth: int = 0) -> Value | None:
        """What an expression is; None for what is certainly no library's: text, numbers, displays."""
        if depth > _DEPTH:
            return UNKNOWN
        depth += 1
        match node:
            case ast.Name():
                return self.named(node.id, scope, depth)
            case ast.Attribute():
                return self.attribute(self.value(node.value, scope, depth) or UNKNOWN, node.attr, scope, depth)
            case ast.Call():
                return self.called(node, scope, depth)
            case ast.Await() | ast.NamedExpr() | ast.Starred():
                return self.value(node.value, scope, depth)
            case ast.BinOp(op=ast.BitOr()):
                return self.piped(node, scope, depth)
            case ast.BoolOp():
                return self.first(self.value(v, scope, depth) for v in node.values[:8])
            case ast.IfExp():
                return self.first(self.value(v, scope, depth) for v in (node.body, node.orelse))
            case ast.Subscript():
                base = self.value(node.value, scope, depth)
                generic = isinstance(base, Scope) or (isinstance(base, Outside) and "?" not in base.path)
                return base if generic else UNKNOWN
            case ast.Constant() | ast.JoinedStr() | ast.List() | ast.Dict() | ast.Tuple() | ast.Set() | ast.Lambda():
                return None
        return UNKNOWN

    def bound(self, node: ast.expr, scope: Scope) -> tuple[ast.expr, Scope] | None:
        """The expression that a name of the tree is set to, and where; None if it is set twice or to something else."""
        where: Scope | None = None
        if isinstance(node, ast.Name):
            name = node.id
            where = next((s for s in scope.outwards() if name in s.names and (s.kind != "class" or s is scope)), None)
        elif isinstance(node, ast.Attribute):
            name, base = node.attr, self.value(node.value, scope)
            where = base if isinstance(base, Scope) else base.of if isinstance(base, Instance) else None
        for _ in range(5):
            bounds = [b for b in where.names.get(name, ()) if b.kind != "typed"] if where else []
            if len(bounds) != 1:
                return None
            kind, what, there = bounds[0]
            if not isinstance(what, tuple):
                return (what, there) if kind == "value" and isinstance(what, ast.expr) else None
            module = self.find(what[:-1], there.module) if len(what) > 1 else None
            where, name = module.scope if module else None, what[-1]
        return None

    def named(self, name: str, scope: Scope, depth: int = 0) -> Value | None:
        """What a name is where it stands."""
        of = owner(scope, name)
        if of:
            return Instance(of)
        for around in scope.outwards():
            if around.kind == "class" and around is not scope:
                continue  # the names of a class are not those of its methods
            if name in around.names:
                return self.bound_to(around, name, depth)
        for path in scope.module.stars:
            module = self.find(path, scope.module)
            if module and module is not scope.module and name in module.scope.names:
                return self.bound_to(module.scope, name, depth)
        return Outside(f"?{name}")

    def bound_to(self, scope: Scope, name: str, depth: int) -> Value | None:
        """The first thing a name is bound to in this scope that is known."""
        key = (scope, name)
        if key not in self.named_before:
            self.named_before[key] = Outside(f"?{name}")
            found = self.first(self.of(bound, depth) for bound in scope.names[name][:20])
            if isinstance(found, Outside) and found.path == "?":
                found = Outside(f"?{name}")
            self.named_before[key] = found
        return self.named_before[key]

    def first(self, values: Iterator[Value | None]) -> Value | None:
        """The first known of them, else the first unknown, else None."""
        unknown = None
        for value in values:
            if isinstance(value, Outside) and value.path.startswith("?"):
                unknown = unknown or value
            elif value is not None:
                return value
        return unknown

    def of(self, bound: Bound, depth: int) -> Value | None:
        if depth > _DEPTH:
            return UNKNOWN
        what = bound.what
        if isinstance(what, Scope):
            return what
        if isinstance(what, tuple):
            return self.imported(what, bound.scope.module, depth)
        if isinstance(what, ast.arg):
            return self.typed(what.annotation, bound.scope, depth) if what.annotation else Outside(f"?{what.arg}")
        if bound.kind == "each":
            return UNKNOWN
        if bound.kind == "typed":
            return self.typed(what, bound.scope, depth)
        return self.value(what, bound.scope, depth)

    def imported(self, path: tuple[str, ...], importer: Module, depth: int) -> Value | None:
        """`path` as a module of the tree, or as a name of one, or as something outside."""
        module = self.find(path, importer)
        if module:
            return module.scope
        module = self.find(path[:-1], importer) if len(path) > 1 else None
        if module and module.scope.names.keys() & {path[-1]}:
            return self.bound_to(module.scope, path[-1], depth + 1)
        for star in module.stars if module else ():
            further = self.find(star, module) if module else None
            if further and path[-1] in further.scope.names:
                return self.bound_to(further.scope, path[-1], depth + 1)
        return Outside((".".join(path) if path[0].strip(".") else "?" + path[-1])[:_PATH])

    def typed(self, annotation: ast.expr, scope: Scope, depth: int) -> Value | None:
        """An instance of what an annotation names."""
        if depth > _DEPTH:
            return UNKNOWN
        match annotation:
            case ast.Constant(value=str(text)) if len(text) < _PATH:
                try:
                    return self.typed(ast.parse(text, mode="eval").body, scope, depth + 1)
                except (SyntaxError, ValueError, RecursionError, MemoryError):
                    return UNKNOWN
            case ast.Constant(value=None):
                return None
            case ast.BinOp(op=ast.BitOr()):
                return self.first(self.typed(side, scope, depth + 1) for side in (annotation.left, annotation.right))
            case ast.Subscript():
                name = annotation.value.attr if isinstance(annotation.value, ast.Attribute) else annotation.value
                name = name.id if isinstance(name, ast.Name) else name
                if name in _WRAPPERS:
                    inner = annotation.slice
                    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                    if name == "Annotated":  # Annotated[Client, Depends(get_client)]
                        return self.first(
                            (self.typed(p, scope, depth + 1) if n == 0 else self.value(p, scope, depth + 1))
                            for n, p in enumerate(parts[:4])
                        )
                    return self.first(self.typed(p, scope, depth + 1) for p in parts[:8])
        found = self.value(annotation, scope, depth + 1)
        if isinstance(found, Scope):
            return Instance(found) if found.kind == "class" else UNKNOWN
        if isinstance(found, Outside) and not found.path.startswith("?") and not found.path.endswith(")"):
            return Outside(found.path + "()", found.made)
        return found if isinstance(found, Instance) else UNKNOWN

    def called(self, node: ast.Call, scope: Scope, depth: int) -> Value | None:
        function = self.value(node.func, scope, depth)
        if isinstance(function, Scope):
            return Instance(function) if function.kind == "class" else self.returned(function, depth)
        if not isinstance(function, Outside):
            return UNKNOWN
        path, arguments = function.path, node.args
        if path in _RETURN_ARGUMENT and len(arguments) > _RETURN_ARGUMENT[path]:
            return self.value(arguments[_RETURN_ARGUMENT[path]], scope, depth)
        if path.rpartition(".")[2] in _ENTERS and arguments:
            return self.value(arguments[0], scope, depth)
        if path in _CALL_ARGUMENT and arguments:
            given = self.value(arguments[0], scope, depth)
            if isinstance(given, Scope):
                return Instance(given) if given.kind == "class" else self.returned(given, depth)
            return Outside(given.path + "()", given.made) if isinstance(given, Outside) else UNKNOWN
        if path.endswith(".pipe") and is_prompt(path[: -len(".pipe")]) and arguments:
            return self.value(arguments[0], scope, depth)
        if len(path) > _PATH:
            return UNKNOWN
        return Outside(path + "()", function.made or (node, scope))

    def returned(self, function: Scope, depth: int) -> Value | None:
        """What a function of the tree returns or yields."""
        if function not in self.returned_before:
            self.returned_before[function] = UNKNOWN
            found = self.first(self.value(r, function, depth) for r in function.returns[:20])
            annotation = getattr(function.node, "returns", None)
            if annotation and (found is None or (isinstance(found, Outside) and found.path.startswith("?"))):
                found = self.typed(annotation, function.parent or function, depth) or found
            self.returned_before[function] = found
        return self.returned_before[function]

    def attribute(self, base: Value, name: str, scope: Scope, depth: int) -> Value | None:
        if isinstance(base, Outside):
            path = f"{base.path}.{name}"
            if len(path) > _PATH:
                return UNKNOWN
            if "(" not in path and "?" not in path:  # `import app.clients` binds `app`
                module = self.find(tuple(path.split(".")), scope.module)
                if module:
                    return module.scope
            return Outside(path, base.made)
        if isinstance(base, Scope):
            if base.kind == "module":
                if name in base.names:
                    return self.bound_to(base, name, depth)
                return (
                    self.imported((*base.module.dotted, name), base.module, depth)
                    if base.module.is_package
                    else UNKNOWN
                )
            found = self.member(base, name, depth) if base.kind == "class" else None
            return found or UNKNOWN
        found = self.member(base.of, name, depth)
        if isinstance(found, Scope) and found.kind == "function" and _PROPERTIES & decorators(found):
            return self.returned(found, depth)
        return found or Outside(f"?{name}")

    def member(self, of: Scope, name: str, depth: int = 0) -> Value | None:
        """A name of a class of the tree, or of what it inherits from."""
        for kind in self.lineage(of, depth):
            if isinstance(kind, Outside):
                if is_library(kind.path):
                    return Outside(f"{kind.path}().{name}", kind.made)
            elif name in kind.names:
                return self.bound_to(kind, name, depth + 1)
        return None

    def lineage(self, of: Scope, depth: int = 0) -> Iterator[Scope | Outside]:
        """A class of the tree and all it inherits from, nearest first."""
        todo: list[Scope | Outside] = [of]
        seen: set[Scope | Outside] = set()
        while todo and len(seen) < 30:
            kind = todo.pop(0)
            if kind in seen:
                continue
            seen.add(kind)
            yield kind
            if isinstance(kind, Scope) and isinstance(kind.node, ast.ClassDef):
                bases = (self.value(b, kind.parent or kind, depth + 1) for b in kind.node.bases[:10])
                todo += [b for b in bases if isinstance(b, Outside) or (isinstance(b, Scope) and b.kind == "class")]

    def piped(self, node: ast.BinOp, scope: Scope, depth: int) -> Value | None:
        """`prompt | model | parser` is its model: the one part that asks."""
        sides = [self.value(side, scope, depth) for side in (node.left, node.right)]
        for side in sides:
            if isinstance(side, Outside) and is_runnable(side.path):
                return side
        left, right = sides
        if isinstance(left, Outside) and is_prompt(left.path):
            unknown = isinstance(right, Outside) and right.path.startswith("?")
            return Outside("langchain.LLM()") if unknown else left  # a prompt is piped into nothing but a model
        return right if isinstance(right, Outside) and is_prompt(right.path) else UNKNOWN
