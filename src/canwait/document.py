"""YAML, JSON, TOML or a Python mapping -> one tree of plain values, and where each part of it stands.

YAML is read by the 1.2 core schema: only true and false are booleans, so `[yes, no]` stays text. Numbers with a point
are read as decimals, from their text. What is wrong with a part is a Fault, and the rest is read on; only where nothing
can be read at all is Unreadable raised.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import Problem
from .render import Loc, dotted

Mark = tuple[int, int]  # line and column, counted from 1


class Fault(NamedTuple):
    """Something wrong with the part of a document at `loc`."""

    loc: Loc  # names and list indices from the top
    message: str
    file: str | None = None  # where it stands, if not in the document itself
    line: int | None = None  # of that file, or of the template at `loc`
    at: Mark | None = None  # where `loc` does not say it
    of_key: bool = False  # the name is wrong, not its value
    absent: bool = False  # `loc` is what ought to be there
    meant: str | None = None  # the name that was probably meant


class Unreadable(Exception):
    """No document: what was found, and where if that is known."""

    def __init__(self, message: str, at: Mark | None = None) -> None:
        self.at = at
        super().__init__(message)


class Place(NamedTuple):
    """Where a name and its value begin, if they stand in a text."""

    key: Mark | None = None
    value: Mark | None = None
    is_block: bool = False  # a literal block: its first line is the one below


@dataclass
class Document:
    """What was read, and what is wrong with it: the reader's faults, and those its user adds to them."""

    file: str
    base_dir: Path  # relative paths in it start here
    tree: Any = None  # dicts, lists, text, ints, Decimals, bools and None
    faults: list[Fault] = field(default_factory=list)
    places: dict[Loc, Place] = field(default_factory=dict)  # of every part of the tree
    locate: Callable[[], None] = lambda: None  # fills `places` where that costs enough to wait until it is needed

    def problems(self) -> list[Problem]:
        """Every fault with its place, in the order of the file."""
        self.locate()
        problems = [self._problem(fault) for fault in self.faults]
        return sorted(problems, key=lambda p: (p.file != self.file, p.file, p.line or 0, p.column or 0))

    def _problem(self, fault: Fault) -> Problem:
        loc, message = fault.loc, fault.message
        while loc and loc not in self.places:
            loc = loc[:-1]
        place = self.places.get(loc, Place())
        name = dotted(fault.loc if fault.absent else loc) or None  # `prompt`, not the `prompt[0].content` it stands for
        if fault.file:
            return Problem(fault.file, fault.line, None, name, message)
        if fault.line and place.value and place.is_block:
            return Problem(self.file, place.value[0] + fault.line, None, name, message)
        if fault.line and fault.line > 1:
            message = f"line {fault.line} of the template: {message}"
        line, column = fault.at or (fault.of_key and place.key) or place.value or (None, None)
        return Problem(self.file, line, column, name, message)


def read_document(path: Path, text: str | None = None) -> Document:
    """A .json or .toml file, or else YAML; `text` stands in for its content. Raises Unreadable and RecursionError."""
    read = {".json": _read_json, ".toml": _read_toml}.get(path.suffix.lower(), _read_yaml)
    document = Document(str(path), path.parent)
    document.tree = _plain(read(read_text(path) if text is None else text, document), (), document)
    return document


def document_of(value: object, file: str, base_dir: Path) -> Document:
    """What was made in Python, without places; `file` is what its problems call it."""
    document = Document(file, base_dir)
    document.tree = _plain(value, (), document)
    return document


def read_text(path: Path) -> str:
    """Raises Unreadable."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}") from None


def _plain(value: object, loc: Loc, document: Document) -> Any:
    """The value in the types of a tree; what does not fit becomes a fault and None."""
    document.places.setdefault(loc, Place())
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        if not re.search("[\0\ud800-\udfff]", text):
            return text
        problem = "holds a NUL character or half of a surrogate pair"
    elif isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return int(value)
        problem = "is too large a number"
    elif isinstance(value, float | Decimal):
        number = Decimal(repr(float(value))) if isinstance(value, float) else value
        if number.is_finite() and abs(number.adjusted()) < 300:
            return number
        problem = f"found {value}; expected a number of reasonable size"
    elif isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                document.faults.append(Fault(loc, f"found the name {key!r}; expected text", of_key=True))
        return {k: _plain(v, (*loc, k), document) for k, v in value.items() if isinstance(k, str)}
    elif isinstance(value, list | tuple):
        return [_plain(v, (*loc, i), document) for i, v in enumerate(value)]
    elif isinstance(value, os.PathLike):
        return os.fsdecode(value)
    else:
        problem = f"found a {type(value).__name__}; expected text, a number, true or false, a list or a mapping"
    document.faults.append(Fault(loc, problem))
    return None


def _twice(loc: Loc, at: Mark, document: Document) -> Fault:
    first = document.places[loc].key
    assert first is not None
    return Fault(loc, f"given twice, first on line {first[0]}", at=at, of_key=True)


# --------------------------------------------------------------------------------------------------------------- YAML

_TAG = "tag:yaml.org,2002:"
_CORE_FORMS = {
    "null": "^(~|null|Null|NULL|)$",
    "bool": "^(true|True|TRUE|false|False|FALSE)$",
    "int": "^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$",
    "float": r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}
_SCALARS: dict[str, Callable[[str], object]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    "float": lambda text: Decimal(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}


class _Core(yaml.SafeLoader):
    """YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), without aliases."""

    yaml_implicit_resolvers = {None: [(_TAG + kind, re.compile(form)) for kind, form in _CORE_FORMS.items()]}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "an alias; write the value out", event.start_mark)
        return super().compose_node(parent, index)


def _read_yaml(text: str, document: Document) -> object:
    try:
        loader = _Core(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        at = _mark(error.problem_mark) if error.problem_mark else None
        raise Unreadable(f"not YAML: {', '.join(filter(None, (error.context, error.problem)))}", at) from None
    except yaml.reader.ReaderError as error:
        at = _mark_at(text, error.position)
        raise Unreadable(f"not YAML: the character U+{ord(text[error.position]):04X}", at) from None
    except (OverflowError, ValueError):  # PyYAML hands an escape to chr() unchecked
        raise Unreadable("not YAML: an escape beyond Unicode") from None
    if root is None:
        raise Unreadable("is empty; `canwait init` writes a job file to start from")
    return _yaml_value(root, (), None, document)


def _yaml_value(node: yaml.Node, loc: Loc, key: Mark | None, document: Document) -> object:
    # A block collection begins on the line below its key, and a reader looks for the key.
    is_below = isinstance(node, yaml.CollectionNode) and not node.flow_style
    is_block = isinstance(node, yaml.ScalarNode) and node.style == "|"
    document.places[loc] = Place(key, (is_below and key) or _mark(node.start_mark), is_block)
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _yaml_mapping(node, loc, document)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_yaml_value(item, (*loc, i), None, document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            return _SCALARS[kind](node.value)
        except (ValueError, InvalidOperation):
            document.faults.append(Fault(loc, f"found '{node.value[:40]}', which is no {kind}"))
            return None
    document.faults.append(Fault(loc, f"has the tag {node.tag}; expected plain YAML"))
    return None


def _yaml_mapping(node: yaml.MappingNode, loc: Loc, document: Document) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key, item in node.value:
        at = _mark(key.start_mark)
        here = (*loc, key.value)
        if not isinstance(key, yaml.ScalarNode):
            document.faults.append(Fault(loc, "a list or mapping as a name; expected text", at=at, of_key=True))
        elif key.value in mapping:
            document.faults.append(_twice(here, at, document))
        else:
            mapping[key.value] = _yaml_value(item, here, at, document)
    return mapping


def _mark(mark: yaml.Mark) -> Mark:
    return mark.line + 1, mark.column + 1


# --------------------------------------------------------------------------------------------------------------- JSON

_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=Decimal)


def _read_json(text: str, document: Document) -> object:
    try:
        _JSON.decode(text)
    except ValueError as error:  # also a number of thousands of digits, which has no place
        at = (error.lineno, error.colno) if isinstance(error, JSONDecodeError) else None
        raise Unreadable(f"not JSON: {error.msg if isinstance(error, JSONDecodeError) else error}", at) from None
    return _json_value(text, _next(text, 0), (), None, document)[0]


def _json_value(text: str, i: int, loc: Loc, key: Mark | None, document: Document) -> tuple[object, int]:
    """The value at `i` of text that is known to be JSON, and where it ends."""
    document.places[loc] = Place(key, _mark_at(text, i))
    if text[i] == "[":
        items: list[object] = []
        i = _next(text, i + 1)
        while text[i] != "]":
            item, i = _json_value(text, i, (*loc, len(items)), None, document)
            items.append(item)
            i = _next(text, i)
        return items, i + 1
    if text[i] == "{":
        mapping: dict[str, object] = {}
        i = _next(text, i + 1)
        while text[i] != "}":
            at = _mark_at(text, i)
            name, i = _JSON.raw_decode(text, i)
            here = (*loc, name)
            if name in mapping:
                document.faults.append(_twice(here, at, document))
                _, i = _JSON.raw_decode(text, _next(text, i))
            else:
                mapping[name], i = _json_value(text, _next(text, i), here, at, document)
            i = _next(text, i)
        return mapping, i + 1
    return _JSON.raw_decode(text, i)


def _next(text: str, i: int) -> int:
    """Where the next name, value or closing bracket begins."""
    while text[i] in " \t\r\n:,":
        i += 1
    return i


def _mark_at(text: str, i: int) -> Mark:
    return text.count("\n", 0, i) + 1, i - text.rfind("\n", 0, i)


# --------------------------------------------------------------------------------------------------------------- TOML


def _read_toml(text: str, document: Document) -> object:
    try:
        tree = tomllib.loads(text, parse_float=Decimal)
    except ValueError as error:
        match = re.fullmatch(r"(.*?)(?: \(at line ([0-9]+), column ([0-9]+)\)| \(at end of document\))?", str(error))
        at = (int(match[2]), int(match[3])) if match and match[2] else None
        raise Unreadable(f"not TOML: {match[1] if match else error}", at) from None
    document.locate = lambda: _place_toml(text, document)
    return tree


def _place_toml(text: str, document: Document) -> None:
    """tomllib keeps no places: what a longer piece of the file adds stands where the piece before it ended."""
    lines = text.splitlines(keepends=True)
    places: dict[Loc, Place] = {(): Place(None, (1, 1))}
    start = 0
    for end in range(1, len(lines) + 1):
        piece = "".join(lines[:end])
        if piece.count('"""') % 2 or piece.count("'''") % 2:  # only to save time inside a long text
            continue
        try:
            tree = tomllib.loads(piece)
        except tomllib.TOMLDecodeError:
            continue
        at = start + 1, len(lines[start]) - len(lines[start].lstrip()) + 1
        places = dict.fromkeys(_locs(tree, ()), Place(at, at)) | places
        start = end
    document.places |= places


def _locs(value: Any, loc: Loc) -> Iterator[Loc]:
    yield loc
    for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _locs(part, (*loc, name))
