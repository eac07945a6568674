"""Free checks of every answer: the rules of a job, each an expression or a function of the user's. Pure.

An expression sees the fields of the answer, `output` (the whole answer) and `key`, in the sandbox that prompts run in. An
answer that a rule says no to breaks it, and so does one over which the rule cannot be evaluated. One rule is ours: the
languages of language.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from jinja2 import TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from . import language
from .render import Template, did_you_mean, prompt_faults, sandbox

Function = Callable[[Any, str], object]  # (answer, key) -> whether it is good

_FUNCTION = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
OURS = ("output", "key")  # what a rule calls the whole answer, and its row's key
JUDGED = frozenset({"input", "answer", "key"})  # what the prompt of a judge model may name
_KEPT, _KEPT_CHARS = 16_384, 256  # verdicts over short answers are kept: of labels there are few


def function_of(rule: str) -> tuple[str, str] | None:
    """The module and name of a rule that is `package.module:function`."""
    match = _FUNCTION.fullmatch(rule.strip())
    return (match[1], match[2]) if match else None


def rule_fault(rule: str, fields: Iterable[str] | None) -> str | None:
    """What is wrong with an expression, if anything is. `fields`: of the answer; None where they are not known."""
    environment = sandbox()
    try:
        tree = _parsed(rule)
        for node in tree.find_all(nodes.Getattr):
            if node.attr.startswith("__"):
                return f"`{node.attr}` cannot be read in a rule"
        for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
            for called in tree.find_all(kind):
                if (name := getattr(called, "name", "")) not in known:
                    return f"no {kind.__name__.lower()} is called '{name}'{did_you_mean(name, list(known))}"
        names = find_undeclared_variables(tree)
        environment.compile_expression(rule)
    except TemplateSyntaxError as error:
        return f"not an expression: {error.message}"
    except (SyntaxError, RecursionError):  # of the Python that Jinja makes of it
        return "not an expression: nested too deeply"
    if fields is not None:
        seen = [*fields, *OURS]
        for name in sorted(names.difference(seen, environment.globals)):
            return f"the answer has no field '{name}'{did_you_mean(name, seen)}"
    return None


def is_of_the_answer(rule: str) -> bool:
    """Whether a rule needs to know nothing but the answer."""
    if function_of(rule):
        return False
    return language.codes_of(rule) is not None or "key" not in find_undeclared_variables(_parsed(rule))


def judge_prompt(text: str) -> str:
    """The prompt of a judge model. Raises ValueError for one it cannot be asked by."""
    for fault in prompt_faults([("user", text)]):
        raise ValueError(fault.message)
    columns = Template(text).columns
    for name in sorted(columns - JUDGED):
        near = did_you_mean(name, sorted(JUDGED)) or "; expected answer, input, key"
        raise ValueError(f"no `{name}` is shown to a judge model{near}")
    if "answer" not in columns:
        raise ValueError("shows no answer; expected {{ answer }}, and {{ input }} for what was asked")
    return text


class Rules:
    """The rules of one job."""

    def __init__(
        self,
        rules: Sequence[str],
        functions: Mapping[str, Function] | None = None,
        *,
        is_json: bool,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """`functions`: those that rules name; `is_json`: answers have fields; `schema`: what is known of them."""
        self.words = tuple(rules)
        self.n_untold = 0  # answers so far that keep every rule, but whose language could not be told
        self._is_json = is_json
        self._rules = [(functions or {}).get(rule) or _language(rule, schema) or _expression(rule) for rule in rules]
        alike = all(map(is_of_the_answer, rules))
        self._of_short = lru_cache(_KEPT)(lambda text: self._seen("", text)) if alike else None

    def broken(self, key: str, text: str) -> int | None:
        """The first rule that an answer breaks, counted from 0."""
        if not self._rules:
            return None
        known = self._of_short if len(text) <= _KEPT_CHARS else None
        rule, is_untold = known(text) if known else self._seen(key, text)
        self.n_untold += is_untold
        return rule

    def _seen(self, key: str, text: str) -> tuple[int | None, bool]:
        """And whether it breaks none, and its language cannot be told."""
        try:
            answer = orjson.loads(text) if self._is_json else text
        except orjson.JSONDecodeError:  # of nothing can be said that it holds
            return 0, False
        is_untold = False
        for n, holds in enumerate(self._rules):
            if not (said := _said(holds, answer, key)):
                return n, False
            is_untold |= said is language.UNTOLD
        return None, is_untold


def _said(rule: Function, answer: Any, key: str) -> object:
    try:
        said = rule(answer, key)
        return said if said is language.UNTOLD else bool(said)
    except Exception:  # whatever a function of the user's raises, or an expression finds in the answer
        return False


def _language(rule: str, schema: Mapping[str, Any] | None) -> Function | None:
    codes = language.codes_of(rule)
    return None if codes is None else language.checker(codes, schema)


def _expression(rule: str) -> Function:
    holds = sandbox().compile_expression(rule, undefined_to_none=False)

    def evaluated(answer: Any, key: str) -> object:
        fields = answer if isinstance(answer, dict) else {}
        return holds({**fields, "output": answer, "key": key})  # a model cannot say what `key` is

    return evaluated


def _parsed(rule: str) -> nodes.Template:
    """Raises TemplateSyntaxError."""
    environment = sandbox()
    tree = nodes.Template([nodes.Output([Parser(environment, rule, state="variable").parse_expression()])])
    tree.set_environment(environment)
    return tree
