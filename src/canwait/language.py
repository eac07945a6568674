"""Whether an answer is surely in another language than it should be: one of the free checks. Pure.

Languages are a rule among the rules of a gate, `language: de, en`, which is no expression, so that nobody else can write it:
of two gates both rules hold, and an answer must be in a language that each of them allows. What py3langid is not sure of
passes and is counted; docs/decisions/0015-language.md says why it is that library, and what it was measured at.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from .errors import CanwaitError

NAME = "language"
UNTOLD: Final = object()  # of an answer that is too short, or not surely in any language
_MISSING = "py3langid is not installed: pip install 'canwait[language]'"

# ISO 639-1, as far as py3langid 0.4 knows them; it has no `nb` of its own.
CODES = frozenset(
    "af am an ar as az ba be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fo fr fy ga gd gl gu ha he hi hr ht hu hy id "
    "ig is it ja jv ka kk km kn ko ku ky la lb lg ln lo lt lv mg mk ml mn mr ms mt my nb ne nl nn no oc om or pa pl ps pt qu ro "
    "ru rw sa se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz vi vo wa xh yo zh zu".split()
)
# Written so much alike that no detector tells them apart.
_ALIKE = frozenset({"nb", "nn", "no"}), frozenset({"bs", "hr", "sr"}), frozenset({"id", "ms"})
_SURE = 0.6  # of py3langid's probability
_LETTERS = 20  # fewer say nothing; in bytes, for a Chinese letter says as much as three
_CHARS = 200  # are looked at
_CLOSED = frozenset({"enum", "const", "format", "pattern"})  # what makes a text no free one


def rule_of(codes: Iterable[str]) -> str:
    return f"{NAME}: {', '.join(sorted({*codes}))}"


def codes_of(rule: str) -> frozenset[str] | None:
    """The languages of a rule; None: it is about something else."""
    name, _, codes = rule.partition(": ")
    return frozenset(codes.split(", ")) if name == NAME and codes else None


def implies(rule: str, other: str) -> bool:
    """Whether an answer that keeps a rule keeps the other."""
    narrow, wide = codes_of(rule), codes_of(other)
    return rule == other or (narrow is not None and wide is not None and narrow <= wide)


def fault_of(rules: Iterable[str]) -> str | None:
    """Why these rules cannot be asked here, if that is so: the extra is missing."""
    asked = any(map(codes_of, rules))
    return _MISSING if asked and importlib.util.find_spec("py3langid") is None else None


def checker(codes: Iterable[str], schema: Mapping[str, Any] | None) -> Callable[[Any, str], object]:
    """(answer, key) -> whether it is in one of these languages: False where it surely is not, UNTOLD where that cannot be told.

    Of an answer in JSON its free texts are looked at: those that its schema neither lists nor gives a format or pattern.
    Raises CanwaitError where the extra is missing.
    """
    allowed = frozenset(codes).union(*(alike for alike in _ALIKE if alike.intersection(codes)))
    detect = _detector()

    def holds(answer: Any, key: str) -> object:
        text = " ".join(_first(free_texts(answer, schema)))[:_CHARS]
        if len("".join(filter(str.isalpha, text)).encode()) < _LETTERS:
            return UNTOLD
        found, sure = detect(text)
        return found in allowed if found in CODES and sure >= _SURE else UNTOLD

    return holds


def free_texts(answer: Any, schema: Mapping[str, Any] | None) -> Iterator[str]:
    """The texts of an answer that nothing in its schema closes, in their order."""
    root = schema or {}
    left: list[tuple[Any, list[Any]]] = [(answer, [root])]
    while left:  # answers are nested as deep as a model likes
        value, said = left.pop()
        if not isinstance(value, str | list | dict):
            continue
        schemas = list(_all_of(said, root))
        if isinstance(value, str):
            if not any(_CLOSED & part.keys() for part in schemas):
                yield value
        elif isinstance(value, list):
            left += [(item, [_of_item(part, n) for part in schemas]) for n, item in reversed([*enumerate(value)])]
        else:
            left += [(item, [_of_field(part, name) for part in schemas]) for name, item in reversed(value.items())]


def _all_of(said: Sequence[Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What is said of a value, each alternative for itself."""
    left, seen = list(said), set[int]()
    while left:
        part = left.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(path := part.get("$ref"), str):
            left.append(_referred(path, root))
        for alternatives in (part.get(word) for word in ("anyOf", "oneOf", "allOf")):
            left += alternatives if isinstance(alternatives, list) else []


def _referred(path: str, root: Mapping[str, Any]) -> Any:
    place: Any = root
    for step in path.split("/")[1:] if path.startswith("#") else ():
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def _of_field(schema: Mapping[str, Any], name: str) -> Any:
    fields = schema.get("properties")
    if isinstance(fields, Mapping) and name in fields:
        return fields[name]
    return schema.get("additionalProperties")


def _of_item(schema: Mapping[str, Any], n: int) -> Any:
    first = schema.get("prefixItems")
    return first[n] if isinstance(first, list) and n < len(first) else schema.get("items")


def _first(texts: Iterator[str]) -> Iterator[str]:
    """As many as are looked at."""
    n = 0
    for text in texts:
        yield text[:_CHARS]
        if (n := n + len(text)) >= _CHARS:
            return


@cache
def _detector() -> Callable[[str], tuple[str, float]]:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise CanwaitError(f"The language of answers cannot be checked here: {_MISSING}") from None
    detect: Callable[[str], tuple[str, float]] = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True
    ).classify
    return detect
