"""Promises of checks.py: rules that are understood before anything is paid, and that no answer gets around."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.checks import Rules, function_of, rule_fault

FIELDS = ["label", "summary"]


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ('label in ["a", "b"]', None),
        ("summary|length < 400", None),
        ('key.startswith("x") or output.label', None),
        ('"}}" in summary', None),
        ("range(3)|list|length == 3", None),
        ("label ==", "not an expression: unexpected 'end of template'"),
        ("a) }} {{ (b", "not an expression: unexpected ')'"),
        ("labl == 'a'", "the answer has no field 'labl'; did you mean 'label'?"),
        ("label|uper == 'A'", "no filter is called 'uper'; did you mean 'upper'?"),
        ("label is sttring", "no test is called 'sttring'; did you mean 'string'?"),
        ("label.__class__", "`__class__` cannot be read in a rule"),
        ("cycler", "the answer has no field 'cycler'"),
        ("label|random", "no filter is called 'random'"),
        ("(" * 5000 + "label" + ")" * 5000, "not an expression: nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(rule: str, fault: str | None) -> None:
    """A rule that cannot be evaluated, or reads what no answer has, is found before anything is sent."""
    assert (rule_fault(rule, FIELDS) or "").startswith(fault or "")
    assert (fault is None) == (rule_fault(rule, FIELDS) is None)


def test_unknown_fields_pass_where_fields_are_not_known() -> None:
    """A schema that does not name its fields lets a rule read any."""
    assert rule_fault("labl == 'a'", None) is None


@pytest.mark.parametrize(("rule", "named"), [("mine.rules:short", ("mine.rules", "short")), ("label in ['a:b']", None)])
def test_a_function_is_named_by_its_module(rule: str, named: tuple[str, str] | None) -> None:
    """`package.module:function` is a function, everything else an expression."""
    assert function_of(rule) == named


@given(label=st.sampled_from(["a", "b", "c"]), summary=st.text(max_size=400), key=st.text(max_size=5))
def test_rules_say_what_python_says(label: str, summary: str, key: str) -> None:
    """The first broken rule is the first whose words are false of the answer, long or short, kept or not."""
    rules = Rules(["label in ['a', 'b']", "summary|length <= 300", "key|length > 1"], is_json=True)
    text = json.dumps({"label": label, "summary": summary})
    holds = [label in ("a", "b"), len(summary) <= 300, len(key) > 1]
    wanted = holds.index(False) if False in holds else None
    assert [rules.broken(key, text), rules.broken(key, text)] == [wanted, wanted]


@pytest.mark.parametrize("text", ['{"other": 1}', "[1, 2]", "null", '"text"', '{"label": null}', '{"label": {"x": 1}}'])
def test_an_answer_a_rule_cannot_be_asked_of_breaks_it(text: str) -> None:
    """A missing field, another type or another shape is a broken rule, never an error and never a pass."""
    assert Rules(["label|length < 3 and label < 'zz'"], is_json=True).broken("k", text) == 0


def test_a_rule_over_text_sees_the_whole_answer() -> None:
    """Without a schema `output` is the text."""
    rules = Rules(["output|length < 4"], is_json=False)
    assert (rules.broken("k", "abc"), rules.broken("k", "abcd")) == (None, 0)


def test_a_rule_reaches_nothing_but_its_answer() -> None:
    """The sandbox refuses what leads out of it, also where the fields are not known."""
    rules = Rules(["output.__init__.__globals__", "''.__class__.__mro__"], is_json=True)
    assert rules.broken("k", "{}") == 0
    assert Rules(["''.__class__.__mro__|length > 0"], is_json=True).broken("k", "{}") == 0


def test_a_function_judges_answer_and_key() -> None:
    """A function of the user's gets the answer and the row's key; what it raises is a broken rule."""
    seen: list[Any] = []

    def mine(answer: Any, key: str) -> bool:
        seen.append((answer, key))
        return bool(answer["label"] == key)

    rules = Rules(["mine:same"], {"mine:same": mine}, is_json=True)
    assert [rules.broken(key, '{"label": "a"}') for key in "ab"] == [None, 0]
    assert rules.broken("a", "{}") == 0
    assert seen == [({"label": "a"}, "a"), ({"label": "a"}, "b"), ({}, "a")]


def test_a_model_cannot_say_what_our_names_are() -> None:
    """`key` and `output` in a rule are the row's key and the whole answer, whatever fields the answer has."""
    hostile = '{"key": "admin", "output": {"label": "fine"}, "label": "bad"}'
    rules = Rules(["key != 'admin'", "output.label == 'bad'", "label == 'bad'"], is_json=True)
    assert rules.broken("k1", hostile) is None
    assert Rules(["key == 'admin'"], is_json=True).broken("k1", hostile) == 0
