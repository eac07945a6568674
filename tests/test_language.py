"""Promises of language.py: an answer that is surely in another language is left out, and what cannot be told is said."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import gates, language
from canwait.checks import Rules, is_of_the_answer, rule_fault
from canwait.errors import CanwaitError, GateRefused, SpecError
from canwait.lots import Verdict
from canwait.outcomes import Failed, Ok
from canwait.spec import job_from_dict, load_job
from canwait.types import Quality
from gated import client_of, inspection, job, judged, model

EN, DE, EN_DE = (language.rule_of(codes) for codes in (["en"], ["de"], ["en", "de"]))
WRITTEN = {
    "en": "The customer wants his money back because the kettle arrived broken.",
    "de": "Der Kunde will sein Geld zurück, weil der Wasserkocher zerbrochen ankam.",
    "fr": "Le client veut être remboursé parce que la bouilloire est arrivée cassée.",
    "es": "El cliente quiere que le devuelvan el dinero porque el hervidor llegó roto.",
    "it": "Il cliente rivuole i suoi soldi perché il bollitore è arrivato rotto.",
    "nl": "De klant wil zijn geld terug omdat de waterkoker kapot aankwam.",
    "pl": "Klient chce zwrotu pieniędzy, ponieważ czajnik przyszedł zepsuty.",
    "ru": "Покупатель хочет вернуть деньги, потому что чайник пришёл разбитым.",
    "ja": "やかんが壊れて届いたので、お客様は返金を希望しています。",
}
UNCLEAR = [
    "",
    "ok",
    "refund",
    "AB-1234567890, 100.25 EUR",
    "x = 3y + 12z; 45 * 3 = 135",
    "Jean-Pierre Dubois, Marseille, Provence",
]


def said(text: str, *codes: str) -> tuple[bool, int]:
    """Whether a text keeps these languages, and how many texts could not be told."""
    rules = Rules([language.rule_of(codes)], is_json=False)
    return rules.broken("k", text) is None, rules.n_untold


# ------------------------------------------------------------------------------------------------------------ one text


@pytest.mark.parametrize(("written", "asked"), list(product(WRITTEN, WRITTEN)))
def test_a_sentence_is_told_from_every_other_language(written: str, asked: str) -> None:
    """A plain sentence keeps its own language, breaks each of the others, and of none it is said that it cannot be told."""
    assert said(WRITTEN[written], asked) == (written == asked, 0)


def test_any_of_several_languages_will_do() -> None:
    """Of a list of languages an answer may be in each."""
    assert [said(text, "de", "fr")[0] for text in WRITTEN.values()] == [code in ("de", "fr") for code in WRITTEN]


@pytest.mark.parametrize("text", UNCLEAR)
def test_what_cannot_be_told_passes_and_is_counted(text: str) -> None:
    """Short texts, numbers and names pass in whatever language is asked for; each is counted, also the second time."""
    rules = Rules([DE], is_json=False)
    assert [rules.broken("k", text), rules.broken("k", text)] == [None, None]
    assert rules.n_untold == 2


@pytest.mark.parametrize(("written", "asked"), [("nb", "no"), ("no", "nb"), ("hr", "sr"), ("id", "ms")])
def test_languages_that_no_detector_tells_apart_are_one(written: str, asked: str) -> None:
    """Who asks for Bokmål, Croatian or Malay is not refused for what is written alike."""
    texts = {
        "no": "Kunden vil ha pengene tilbake fordi vannkokeren kom fram ødelagt og ikke kan brukes.",
        "hr": "Kupac želi povrat novca jer je kuhalo za vodu stiglo razbijeno i ne radi.",
        "id": "Pelanggan ingin uangnya kembali karena ceret itu tiba dalam keadaan rusak.",
    }
    assert said(texts["no" if written == "nb" else written], asked)[0]


def test_the_beginning_of_a_long_text_decides() -> None:
    """However long an answer is, it is looked at no further than its first lines."""
    assert said(f"{WRITTEN['en']} {WRITTEN['en']} {WRITTEN['en']}" + WRITTEN["de"] * 10_000, "en") == (True, 0)


def test_half_a_character_is_no_error() -> None:
    """A lone surrogate in an answer does not make it one in another language."""
    assert said(f"\ud83d {WRITTEN['en']}", "en") == (True, 0)


@given(st.text(max_size=300), st.sampled_from(sorted(language.CODES)))
def test_no_text_is_an_error(text: str, code: str) -> None:
    """Whatever a model writes, it is kept, broken or counted; and what surely is in one language is not in two others."""
    kept, n_untold = said(text, code)
    assert n_untold in (0, 1)
    assert kept or not n_untold
    others = [said(text, other)[0] for other in ("en", "ja", "ru")]
    assert bool(said(text, "en")[1]) or sum(others) <= 1


def test_every_code_can_be_found() -> None:
    """What a job file may name is what the detector knows, or is written like it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = set(LanguageIdentifier.from_model_file(MODEL_FILE).labels)
    assert {label for label in known if len(label) == 2} | {"nb"} == language.CODES


@pytest.mark.parametrize("name", ["banking77_test.csv", "banking77_train.csv"])
def test_real_english_is_not_called_another_language(shared: Path, name: str) -> None:
    """Of English questions people asked a bank, at most 1 % are refused as another language; asked for German, 90 % are."""
    source = shared / "data" / "text" / name
    if not source.is_file():
        pytest.skip("no BANKING77 in the shared folder")
    with source.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][::10]
    english, german = Rules([EN], is_json=False), Rules([DE], is_json=False)
    assert sum(english.broken("k", text) is not None for text in texts) <= len(texts) / 100
    told = [text for text in texts if len(text) >= 25]
    assert sum(german.broken("k", text) is not None for text in told) >= len(told) * 9 / 10


# ---------------------------------------------------------------------------------------------------- answers in JSON


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "label": {"enum": ["a", "b"]},
        "kind": {"const": "x"},
        "day": {"type": "string", "format": "date"},
        "id": {"type": "string", "pattern": "^T-"},
        "summary": {"type": "string"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "mood": {"anyOf": [{"$ref": "#/$defs/Mood"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/Mood"}},
        "pair": {"type": "array", "prefixItems": [{"const": "p"}], "items": {"type": "string"}},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
        "loop": {"$ref": "#/$defs/Loop"},
    },
    "additionalProperties": {"type": "string"},
    "$defs": {
        "Mood": {"type": "string", "enum": ["glad", "sad"]},
        "Part": {"type": "object", "properties": {"text": {"type": "string"}, "parts": {"$ref": "#/properties/parts"}}},
        "Loop": {"$ref": "#/$defs/Loop"},
    },
}


@pytest.mark.parametrize(
    ("answer", "free"),
    [
        ({"label": "a", "kind": "x", "day": "2026-01-01", "id": "T-1", "summary": "one"}, ["one"]),
        ({"note": "one", "mood": "glad", "tags": ["sad"], "other": "two"}, ["one", "two"]),
        ({"note": None, "summary": 3, "pair": ["p", "one", "two"]}, ["one", "two"]),
        ({"parts": [{"text": "one", "parts": [{"text": "two"}]}, {"text": "three"}]}, ["one", "two", "three"]),
        ({"loop": "one"}, ["one"]),
        (["one", {"x": "two"}], ["one", "two"]),
        ("one", ["one"]),
        (None, []),
    ],
)
def test_free_texts_are_those_that_nothing_closes(answer: Any, free: list[str]) -> None:
    """Lists of values, constants, formats and patterns are not looked at, wherever the schema says so; all else is."""
    assert list(language.free_texts(answer, SCHEMA)) == free


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(part)


@given(VALUES)
def test_without_a_schema_all_texts_are_free(answer: Any) -> None:
    """In their order."""
    assert list(language.free_texts(answer, None)) == list(texts_in(answer))


def test_a_nested_answer_is_no_way_out() -> None:
    """An answer nested as deep as JSON may be is looked into all the same."""
    text = '{"a":' * 1000 + f'"{WRITTEN["de"]}"' + "}" * 1000
    assert Rules([EN], is_json=True, schema={"type": "object"}).broken("k", text) == 0


# ------------------------------------------------------------------------------------------------------------- rules


def test_a_language_stands_among_the_rules() -> None:
    """The first broken rule is told; the languages need nothing but the answer, and are no expression that a file could hold."""
    rules = Rules(["output|length < 200", EN], is_json=False)
    assert [rules.broken("k", text) for text in (WRITTEN["en"], WRITTEN["de"], "x" * 300)] == [None, 1, 0]
    assert is_of_the_answer(EN)
    assert rule_fault(EN, None) is not None


def gate(*rules: str) -> Quality:
    return Quality(Decimal("0.1"), Decimal("0.9"), "human", rules=rules)


@pytest.mark.parametrize(
    ("one", "other", "as_strict"),
    [
        ((EN,), (EN,), True), ((EN,), (EN_DE,), True), ((EN_DE,), (EN,), False), ((EN,), (DE,), False), ((EN,), (), True),
        ((), (EN,), False), ((EN, "label"), (EN_DE, "label"), True), ((EN,), (EN_DE, "label"), False),
    ],
)  # fmt: skip
def test_fewer_languages_are_stricter(one: tuple[str, ...], other: tuple[str, ...], as_strict: bool) -> None:
    """A gate that allows fewer languages is as strict as one that allows more of them, and not the other way round."""
    assert gates.as_strict(gate(*one), gate(*other)) is as_strict


@given(*[st.lists(st.sampled_from([EN, DE, EN_DE, "label"]), unique=True)] * 2)
def test_the_strictest_gate_is_as_strict_as_both(one: list[str], other: list[str]) -> None:
    """Of two gates with languages, what stands lets nothing through that either refuses."""
    found = gates.strictest([gate(*one), gate(*other)])
    assert found is not None
    assert all(gates.as_strict(found, each) for each in (gate(*one), gate(*other)))
    rules = [Rules(each.rules, is_json=False) for each in (found, gate(*one), gate(*other))]
    for text in WRITTEN.values():
        passes = [each.broken("k", text) is None for each in rules if "label" not in each.words]
        assert len(passes) < 3 or passes[0] == (passes[1] and passes[2])


# ------------------------------------------------------------------------------------------------------- the job file


SPEC: dict[str, Any] = {
    "version": 1, "name": "j", "source": {"uri": "rows.csv", "key": "id"}, "model": "openai/m", "prompt": "Say {{ x }}",
    "max_output_tokens": 20, "urgency": "batch", "budget": {"usd": "1"},
}  # fmt: skip


@pytest.mark.parametrize(("stated", "rule"), [("en", EN), (["en"], EN), (["de", "en"], EN_DE), (["en", "de"], EN_DE)])
def test_a_job_file_names_one_language_or_several(tmp_path: Path, stated: Any, rule: str) -> None:
    """As text or as a list; it is a rule of the gate behind the others, and may be the only one that judges."""
    quality = {"refuse_if_bad_rate": "10%", "by": "rule", "language": stated}
    found = job_from_dict({**SPEC, "quality": quality}, base_dir=tmp_path).quality
    assert found is not None
    assert found.rules == (rule,)
    ruled = job_from_dict({**SPEC, "quality": {**quality, "rules": ["output|length < 9"]}}, base_dir=tmp_path).quality
    assert ruled is not None
    assert ruled.rules == ("output|length < 9", rule)


@pytest.mark.parametrize(
    ("stated", "place", "words"),
    [
        ("en-US", "10:35: quality.language", "found 'en-US'; expected ISO 639-1; did you mean 'en'?"),
        ("[de, EN]", "10:40: quality.language[1]", "found 'EN'; expected ISO 639-1; did you mean 'en'?"),
        ("klingon", "10:35: quality.language", "found 'klingon'; expected ISO 639-1: af am an ar"),
    ],
)
def test_an_unknown_language_is_told_where_it_stands(tmp_path: Path, stated: str, place: str, words: str) -> None:
    """With what was meant, or all that there are."""
    lines = [*(f"{k}: {v}" for k, v in SPEC.items() if k != "source"), "source: {uri: rows.csv, key: id}"]
    file = tmp_path / "job.yaml"
    text = "\n".join([*lines, "", f"quality: {{preset: zero, language: {stated}}}"])
    file.write_text(text.replace("{'usd': '1'}", "{usd: 1}"), "utf-8")
    with pytest.raises(SpecError) as caught:
        load_job(file)
    assert f"{place}: {words}" in str(caught.value)


def test_an_embedding_has_no_language(tmp_path: Path) -> None:
    """A job for vectors that names a language is told so."""
    fields = {"endpoint": "embeddings", "max_output_tokens": None, "model": "openai/text-embedding-3-small"}
    with pytest.raises(SpecError, match="an embedding has no words; leave rules, language and strata out"):
        job_from_dict({**SPEC, **fields, "quality": {"preset": "zero", "language": "en"}}, base_dir=tmp_path)


def test_a_missing_extra_is_told_before_a_cent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library a plan is refused with exit code 2 and what to install; without a language it is not looked for."""
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._detector.cache_clear()
    with client_of(tmp_path) as client:
        handle = job(client, tmp_path, 3, quality={"refuse_if_bad_rate": "10%", "language": "en"})
        with pytest.raises(SpecError, match=r"py3langid is not installed: pip install 'canwait\[language\]'") as caught:
            handle.run()
        assert caught.value.exit_code == 2
        assert caught.value.problems[0].field == "quality.language"
        assert model(client).batches == {}
        with pytest.raises(CanwaitError, match="pip install"):
            Rules([EN], is_json=False)
        assert job(client, tmp_path, 3, name="free", load=None, quality=None).run().ok == 3


# ------------------------------------------------------------------------------------------------------------ the gate


def in_language(text: str) -> dict[str, str]:
    """Answers row n in German if its text says so, with a word alone if it says that, else in English."""
    why = WRITTEN["de"] if "german" in text else "refund" if "short" in text else WRITTEN["en"]
    return {"label": text, "why": why}


def test_an_answer_in_another_language_is_left_out(tmp_path: Path) -> None:
    """It is counted under its own cause, stands beside the failed rows, and the verdict says how many could not be told."""
    with client_of(tmp_path, in_language) as client:
        texts = [f"german {n}" for n in range(3)] + [f"short {n}" for n in range(7)] + [f"plain {n}" for n in range(50)]
        handle = job(client, tmp_path, texts, quality={"refuse_if_bad_rate": "20%", "language": "en"})
        handle.run()
        assert judged(inspection(handle), lambda *_: True, client) is Verdict.ACCEPTED
        figures = handle.run()
        assert figures.gate is not None
        assert figures.gate.reason.endswith(
            "; 3 of 60 rows break a rule (5%) and are left out; the language of 7 of 60 rows could not be told"
        )
        rows = list(handle.rows())
        assert {row.value["label"] for row in rows if isinstance(row, Ok)} == set(texts[3:])
        failed = [row for row in rows if isinstance(row, Failed)]
        assert [(row.key, row.cause, row.detail) for row in failed] == [
            (f"k{n}", "language", "it is surely in no language: en") for n in range(3)
        ]
        from canwait.views import causes

        assert causes(client.ledger, client.blobs, "labels") == {"language": 3}


def test_the_rows_in_another_language_can_be_asked_again(tmp_path: Path) -> None:
    """`--only rejected:language` sends those rows and no others; what then is in the right language is let through."""
    spoken = {"german": "de"}
    with client_of(tmp_path, lambda text: {"label": text, "why": WRITTEN[spoken.get(text[:6], "en")]}) as client:
        texts = [f"german {n}" for n in range(3)] + [f"plain {n}" for n in range(7)]
        handle = job(client, tmp_path, texts, quality={"refuse_if_bad_rate": "20%", "by": "rule", "language": "en"})
        handle.run()
        with pytest.raises(GateRefused, match="3 of 10 rows break a rule"):
            list(handle.rows())
        spoken.clear()
        handle.run(only="rejected:language")
        assert [len(batch.bodies) for batch in model(client).batches.values()] == [10, 3]
        assert sum(isinstance(row, Ok) for row in handle.rows()) == 10


def test_a_canary_in_another_language_stops_the_plan(tmp_path: Path, ledger_url: str) -> None:
    """Nothing but the first shard is paid, and the words say by what."""
    with client_of(tmp_path, lambda text: {"label": text, "why": WRITTEN["de"]}, url=ledger_url) as client:
        gate = {"refuse_if_bad_rate": "10%", "language": ["en", "fr"], "rules": ["label != 'text 7'"]}
        figures = job(client, tmp_path, 300, shard={"max_rows": 50}, quality=gate).run()
        assert figures.submissions == 1
        assert figures.paused is not None
        assert "50 of 50 answers are bad by the free checks (49 in another language, 1 break a rule)" in figures.paused
