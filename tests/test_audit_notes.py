"""What an audit says beside its figures: calls that stand in two exports, names that may mean several calls of the code."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.audit.run import audit
from canwait.document import read_document
from canwait.scalars import quoted
from canwait.types import Price, Tier

NOW = datetime(2026, 11, 22, tzinfo=UTC)
START_S = 1_760_918_400


def price_of(provider: str, model: str, tier: Tier) -> Price | str:
    return Price(provider, model, tier, Decimal(1), Decimal(1), None, None, "a test", date(2026, 11, 1))


def recorded(path: Path, site: str, model: str = "gpt-4o", *, from_day: int = 0, n: int = 40) -> Path:
    """canwait's own record of a week."""
    calls = (
        {
            "start_us": (START_S + from_day * 86_400 + i * 10_000) * 10**6,
            "site": site,
            "model": model,
            "input_tokens": 9,
        }
        for i in range(n)
    )
    path.write_text("".join(json.dumps(call | {"output_tokens": 1}) + "\n" for call in calls))
    return path


def tabled(path: Path, site: str, model: str = "gpt-4o", n: int = 40) -> Path:
    """The same as another tool has it."""
    rows = [f"{START_S + i * 10_000},{site},{model},9,1" for i in range(n)]
    path.write_text("time,feature,model,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return path


def told(*paths: Path) -> list[str]:
    return [note for note in audit(paths, now=NOW, price_of=price_of).notes if "counted twice" in note]


def test_two_exports_of_one_site_are_told(tmp_path: Path) -> None:
    """Two tools' logs of the same calls double them, and no id shows it: the site and the two formats are named."""
    (note,) = told(recorded(tmp_path / "a.jsonl", "chat"), tabled(tmp_path / "b.csv", "chat"))
    assert note.startswith("canwait's own record and plain columns have calls of the site 'chat' at the same time")


def test_two_exports_that_name_their_sites_otherwise_are_told_by_the_model(tmp_path: Path) -> None:
    """Tools seldom name a call alike; the model is the same."""
    (note,) = told(recorded(tmp_path / "a.jsonl", "chat"), tabled(tmp_path / "b.csv", "gateway"))
    assert "of the model 'gpt-4o' at the same time" in note


def test_logs_among_code_are_not_overlooked_in_silence(tmp_path: Path) -> None:
    """A folder with code in it is read as code; a log in it is named as one that was not read."""
    (tmp_path / "app.py").write_text("import openai\nopenai.OpenAI().responses.create(model='m', input='x')\n")
    recorded(tmp_path / "calls.jsonl", "app")
    found = audit([tmp_path], now=NOW, price_of=price_of)
    assert found.n_calls == 0
    assert any("calls.jsonl was not read" in note for note in found.notes)
    both = audit([tmp_path, tmp_path / "calls.jsonl"], now=NOW, price_of=price_of)
    assert both.n_calls == 40
    assert not any("not read" in note for note in both.notes)


def test_logs_of_different_times_or_of_one_format_are_no_copies(tmp_path: Path) -> None:
    """A tool that was replaced, and the parts of one tool's export, count what they hold."""
    assert told(recorded(tmp_path / "a.jsonl", "chat", from_day=30), tabled(tmp_path / "b.csv", "chat")) == []
    assert told(recorded(tmp_path / "c.jsonl", "chat"), recorded(tmp_path / "d.jsonl", "chat")) == []
    assert told(recorded(tmp_path / "e.jsonl", "chat"), tabled(tmp_path / "f.csv", "other", "gpt-4o-mini")) == []


def test_a_name_that_may_mean_several_calls_is_told(tmp_path: Path) -> None:
    """Two files have a function of that name: neither is believed, and both are named beside the site."""
    source = tmp_path / "src"
    source.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.py").write_text(
            "from openai import OpenAI\n\n\ndef label(text):\n    return OpenAI().responses.create(model='m', input=text)\n"
        )
    found = audit([source, recorded(tmp_path / "calls.jsonl", "label")], now=NOW, price_of=price_of)
    site = next(site for site in found.sites if site.name == "label")
    assert site.code == ()
    assert any("its name may mean a.py:5, b.py:5 in the code" in warning for warning in site.warnings)


@given(st.text())
def test_any_text_is_one_scalar_of_yaml(text: str) -> None:
    """Whatever a log calls something, the file that holds it is read as that; NULs and half surrogates are replaced."""
    line = quoted(text)
    assert all(c.isprintable() for c in line)
    read = read_document(Path("x.yaml"), f"a: {line}\n").tree["a"]
    assert read == "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


@pytest.mark.parametrize(
    "text", ["\N{SMILING FACE WITH SMILING EYES}", "\x85\u2028\ufeff", "\U000e0001\U0010ffff", "a: b # c"]
)
def test_emoji_and_what_nobody_sees_are_written_as_they_are(text: str) -> None:
    """One character beyond the first plane is one, and no invisible one ends a line."""
    assert read_document(Path("x.yaml"), f"a: {quoted(text)}\n").tree == {"a": text}
