"""`canwait audit`, `worth` and `init --from-audit` as people use them: no key, no network, nothing sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from audit_org import all_calls, organisation, write_log
from simulated import Desk, Said, desk

LOGS = Path(__file__).parent / "audit_logs"
_MODELS = {"small-1": "gpt-4o-mini", "large-1": "gpt-4o"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weeks of a synthetic organisation, with models that have a price."""
    calls = [call._replace(model=_MODELS.get(call.model, call.model)) for call in all_calls(organisation(5))]
    texts = (
        call._replace(text=f"Summarise this.\nTake care of {{{{ braces }}}}.\nmail number {n}")
        if call.site.startswith("report")
        else call
        for n, call in enumerate(calls)
    )
    return write_log(list(texts), tmp_path_factory.mktemp("log") / "calls.jsonl")


@pytest.fixture
def office(tmp_path: Path, log: Path) -> Iterator[Desk]:
    """A folder with that log in it."""
    with desk(tmp_path) as d:
        shutil.copy(log, d.folder / "calls.jsonl")
        yield d


def valid(said: Said, code: int = 0) -> Any:
    """The object on stdout, which fits the schema it names."""
    assert said.code == code, said
    value = json.loads(said.out)
    name = value["schema"].removeprefix("canwait.").partition("/")[0]
    schema = Path(__file__).parents[1] / "src" / "canwait" / "schemas" / f"{name}.v1.json"
    jsonschema_rs.Draft202012Validator(json.loads(schema.read_text("utf-8")), validate_formats=True).validate(value)
    return value


def sites(value: Any, needs: str) -> list[str]:
    return [site["name"] for site in value["sites"] if site["needs"] == needs]


def test_an_audit_prints_and_keeps_the_same(office: Desk) -> None:
    """The JSON on stdout, audit.json and the page are of one audit; the JSON fits its schema, and nothing was sent."""
    value = valid(office.canwait("audit", "calls.jsonl", "--json", "-o", "out"))
    kept = json.loads((office.folder / "out" / "audit.json").read_text("utf-8"))
    assert kept == value
    assert len(value["sites"]) == 40
    assert value["proved"]["likely_usd"] > "0"
    page = (office.folder / "out" / "audit.html").read_text("utf-8")
    assert all(site["name"] in page for site in value["sites"])
    assert office.simulator.batches() == []


def test_the_table_says_what_to_do_next(office: Desk) -> None:
    """On a terminal: the sites, the sums, the files written, and the next command, which works."""
    said = office.canwait("audit", "calls.jsonl", "--all")
    assert said.code == 0
    assert "READER WAITS?" in said.out
    assert "a month: proved $" in said.out
    command = next(line for line in said.err.splitlines() if line.startswith("next: "))
    assert command.startswith("next: canwait init --from-audit ")


@pytest.mark.parametrize("file", sorted(path.name for path in LOGS.iterdir()))
def test_every_format_is_audited_from_the_command_line(office: Desk, file: str) -> None:
    """Each log format is found out and read, and its JSON fits the schema."""
    value = valid(office.canwait("audit", LOGS / file, "--json"))
    assert value["files"][0]["calls"] + value["files"][0]["buckets"] > 0


def test_code_alone_and_code_beside_logs(office: Desk) -> None:
    """Source code is audited without a log, without money; beside a log its call sites join those of the same name."""
    source = office.folder / "src" / "etl"
    source.mkdir(parents=True)
    (source / "label.py").write_text(
        "from openai import OpenAI\n\nclient = OpenAI()\n\n\ndef label(text):\n"
        "    return client.chat.completions.create(model='gpt-4o-mini', messages=[{'role': 'user', 'content': text}])\n"
    )
    alone = valid(office.canwait("audit", "src", "--json"))
    assert (alone["window"], alone["calls"], len(alone["sites"])) == (None, 0, 1)
    assert (alone["sites"][0]["code"][0]["line"], alone["sites"][0]["month"]) == (7, None)
    call = {"start_us": 1, "site": "etl/label.py:7", "model": "gpt-4o-mini", "input_tokens": 10, "output_tokens": 2}
    (office.folder / "own.jsonl").write_text(
        "".join(json.dumps(call | {"start_us": n * 10**6}) + "\n" for n in range(30))
    )
    both = valid(office.canwait("audit", "src", "own.jsonl", "--json"))
    assert [(site["name"], len(site["code"])) for site in both["sites"]] == [("etl/label.py:7", 1)]


def test_an_owner_decides_and_later_audits_respect_it(office: Desk) -> None:
    """`--decide` writes the decisions file, which every later audit in this folder reads; its reason is shown."""
    (unclear, *_) = sites(valid(office.canwait("audit", "calls.jsonl", "--json")), "ask the owner")
    decided = ["--decide", f"{unclear}=batch", "--reason", "read on Mondays", "--owner", "ana", "--deadline", "20h"]
    value = valid(office.canwait("audit", "calls.jsonl", "--json", *decided))
    assert unclear in sites(value, "batch")
    later = valid(office.canwait("audit", "calls.jsonl", "--json"))
    site = next(s for s in later["sites"] if s["name"] == unclear)
    assert (site["needs"], site["by_owner"], site["proof"]) == ("batch", True, "likely")
    assert "read on Mondays" in site["reasons"][0]["text"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["calls.jsonl", "--decide", "a=soon"], "found 'soon'; expected one of: "),
        (["calls.jsonl", "--decide", "batch"], "expected SITE=NEEDS"),
        (["calls.jsonl", "--column", "model"], "expected FIELD=COLUMN"),
        (["calls.jsonl", "--window", "7"], "--window: "),
        (["calls.jsonl", "--worksheet", "w.yaml"], "say which with --site SITE"),
        (["nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_a_wrong_flag_is_named(office: Desk, args: list[str], words: str) -> None:
    """Exit code 2, the flag or file and what was expected; no audit is written."""
    said = office.canwait("audit", *args)
    assert said.code == 2, said
    assert words in said.err
    assert not (office.folder / "audit.json").exists()


def test_a_draft_of_a_call_site_can_be_planned(office: Desk) -> None:
    """`init --from-audit` writes a job with the site's model and what its readers need; `plan` prices it."""
    name = next(
        n for n in sites(valid(office.canwait("audit", "calls.jsonl", "--json")), "batch") if n.startswith("etl")
    )
    (office.folder / "mail.csv").write_text("id,body\n1,hello\n2,good morning\n")
    assert valid(office.canwait("init", "mail.csv", "--from-audit", name, "--column", "body", "--json"))["key"] == "id"
    text = (office.folder / "mail.yaml").read_text("utf-8")
    assert 'model: "openai/gpt-4o' in text
    assert "urgency: batch" in text
    assert valid(office.canwait("plan", "mail.yaml", "--json"))["n_rows"] == 2


def test_without_rows_the_texts_of_the_log_are_the_rows(office: Desk) -> None:
    """Texts of the site become rows, what all begin with becomes the prompt, and each request is what was logged."""
    value = valid(office.canwait("audit", "calls.jsonl", "--json"))
    name = next(name for name in sites(value, "batch") if name.startswith("report"))
    said = office.canwait("init", "--from-audit", name, "-o", "draft.yaml")
    assert said.code == 0, said
    rows = [json.loads(line) for line in (office.folder / "draft.rows.jsonl").read_text("utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == len(rows) > 100
    assert all(row["text"].startswith("mail number ") for row in rows)
    plan = valid(office.canwait("plan", "draft.yaml", "--json"))
    assert (plan["n_rows"], plan["n_bad_rows"]) == (len(rows), 0)
    blob = next(
        path for path in office.folder.rglob("*") if path.is_file() and path.name == plan["shards"][0]["requests_blob"]
    )
    from canwait.lines import read_lines

    first = json.loads(next(iter(read_lines(blob))))
    assert first["messages"][0]["content"].startswith("Summarise this.\nTake care of {{ braces }}.\nmail number ")


def logged(office: Desk, text: str, site: str = "etl/label.py:1", n: int = 60) -> None:
    """A log of one site that a schedule starts every two hours, each call with a text."""
    calls = (
        {"start_us": (1_760_918_400 + 7200 * i) * 10**6, "site": site, "provider": "openai", "model": "gpt-4o-mini",
         "input_tokens": 100, "output_tokens": 10, "trigger": "cron", "text": f"{text}\nmail {i}"}
        for i in range(n)
    )  # fmt: skip
    (office.folder / "own.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls), "utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "Be kind \N{SMILING FACE WITH SMILING EYES}.",
        "\x00\x1b[31m \u2028 \ufeff half",
        "\N{LINEAR B SYLLABLE B008 A}:\t'\"{{",
    ],
)
def test_any_prompt_can_be_drafted(office: Desk, text: str) -> None:
    """Emoji, control characters and half surrogates that all texts begin with become a prompt that can be planned."""
    logged(office, text)
    valid(office.canwait("audit", "own.jsonl", "--json"))
    said = office.canwait("init", "--from-audit", "etl/label.py:1", "-o", "draft.yaml")
    assert said.code == 0, said
    assert (office.folder / "draft.yaml").exists()
    assert len((office.folder / "draft.rows.jsonl").read_text("utf-8").splitlines()) == 60


def mixed(office: Desk, **night: Any) -> str:
    """A log of one site: forty texts are asked for by a page, sixty by something else every two hours."""
    calls = [
        {
            "start_us": (1_760_918_400 + 7200 * i) * 10**6, "end_us": (1_760_918_402 + 7200 * i) * 10**6,
            "site": "crm.py:7", "provider": "openai", "model": "gpt-4o" if i < 40 else "gpt-4o-mini",
            "input_tokens": 100, "output_tokens": 10, "text": f"Sort this\n{'page' if i < 40 else 'night'} {i}",
            **({"trigger": "http", "user": "ana"} if i < 40 else night),
        }
        for i in range(100)
    ]  # fmt: skip
    for call in calls:
        if "used_s" in call:
            call["first_used_us"] = call["end_us"] + call.pop("used_s") * 10**6
    (office.folder / "own.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls), "utf-8")
    return "crm.py:7"


def test_of_a_hybrid_site_only_what_can_wait_is_drafted(office: Desk) -> None:
    """The rows are texts of the calls that the evidence marks, the model is theirs, and the job says which they are."""
    name = mixed(office, trigger="cron")
    (site,) = valid(office.canwait("audit", "own.jsonl", "--json"))["sites"]
    assert (site["needs"], site["moves"]) == ("hybrid", {"by": "trigger", "values": ["cron"], "calls": 60})
    assert "can wait       calls whose trigger is cron" in office.canwait("audit", "own.jsonl", "--site", name).out
    said = office.canwait("init", "--from-audit", name, "-o", "draft.yaml")
    assert "only calls whose trigger is cron (60% of them): the others stay where they are" in said.out
    text = (office.folder / "draft.yaml").read_text("utf-8")
    assert "# Only calls whose trigger is cron (60% of them)" in text
    assert 'model: "openai/gpt-4o-mini"' in text
    rows = [json.loads(line) for line in (office.folder / "draft.rows.jsonl").read_text("utf-8").splitlines()]
    assert {row["text"].split()[0] for row in rows} == {"night"}
    assert valid(office.canwait("plan", "draft.yaml", "--json"))["n_rows"] == 60


def test_what_an_owner_calls_hybrid_is_drafted_by_its_late_answers_or_not_at_all(office: Desk) -> None:
    """Where an owner says hybrid, the calls known to be used late are the part; where none is known, nothing is drafted."""
    name = mixed(office)
    value = valid(office.canwait("audit", "own.jsonl", "--json", "--decide", f"{name}=hybrid"))
    assert value["sites"][0]["moves"] is None
    said = office.canwait("init", "--from-audit", name, "-o", "draft.yaml")
    assert said.code == 2
    assert "the log does not tell which" in said.err
    assert list(office.folder.glob("draft*")) == []

    mixed(office, used_s=30_000)
    value = valid(office.canwait("audit", "own.jsonl", "--json"))
    assert value["sites"][0]["moves"] == {"by": "first use", "values": [], "calls": 60}
    assert office.canwait("init", "--from-audit", name, "-o", "draft.yaml").code == 0
    rows = (office.folder / "draft.rows.jsonl").read_text("utf-8")
    assert (rows.count("night"), rows.count("page")) == (60, 0)
    assert valid(office.canwait("plan", "draft.yaml", "--json"))["n_rows"] == 60


def test_a_draft_that_fails_leaves_nothing_behind(office: Desk) -> None:
    """Both files are written or none: a job that cannot be planned leaves no rows beside it."""
    logged(office, "Sort this")
    valid(office.canwait("audit", "own.jsonl", "--json"))
    said = office.canwait("init", "--from-audit", "etl/label.py:1", "--model", "nobody", "-o", "draft.yaml")
    assert said.code == 2, said
    assert list(office.folder.glob("draft*")) == []


def test_what_a_site_is_called_reaches_no_terminal_unescaped(office: Desk) -> None:
    """A name with an escape sequence is shown without it: in the table, in the next command, and by `worth`."""
    logged(office, "Sort this", "evil\x1b]0;owned\x07\x1b[31m")
    said = office.canwait("audit", "own.jsonl", "--site", "evil\x1b]0;owned\x07\x1b[31m", "--worksheet", "w.yaml")
    assert said.code == 0, said
    worth, again = office.canwait("worth", "w.yaml"), office.canwait("audit", "own.jsonl", "--all")
    assert "next: canwait init --from-audit" in again.err
    assert "evil" in worth.out
    for text in (said.out, said.err, worth.out, worth.err, again.out, again.err):
        assert all(c.isprintable() or c == "\n" for c in text), text


def test_batch_cost_is_a_share_of_what_moves(office: Desk) -> None:
    """A worksheet of tokens says what the calls that move cost, and which share of it they cost as batches: half."""
    logged(office, "Sort this")
    assert office.canwait("audit", "own.jsonl", "--site", "etl/label.py:1", "--worksheet", "w.yaml").code == 0
    text = (office.folder / "w.yaml").read_text("utf-8")
    assert 'batch_share: {value: "50%"' in text or 'batch_share: {value: "50 %"' in text, text
    swings = {swing["input"] for swing in valid(office.canwait("worth", "w.yaml", "--json"))["tornado"]}
    assert {"batch_share", "failure_rate"} <= swings


def test_a_benchmark_of_a_smaller_model_is_evidence(office: Desk) -> None:
    """A report that the decisions file names counts for its site if it says good enough; a rehearsal's is refused."""
    logged(office, "Sort this")
    decision = {"verdict": "accept", "words": "good enough: 95 % sure (600 rows)"}
    report = {
        "at": "2026-11-20T10:00:00Z",
        "arms": [
            {"arm": "small/batch", "model": "openai/gpt-4.1-nano"},
            {"arm": "large/batch", "model": "openai/gpt-4o-mini"},
        ],
        "comparisons": [{"candidate": "small/batch", "reference": "large/batch", "decision": decision}],
    }
    (office.folder / "small.json").write_text(json.dumps({"simulated": False, "report": report}))
    decided = office.folder / "audit-decisions.yaml"
    decided.write_text("sites:\n  etl/label.py:1:\n    needs: batch\n    benchmark: small.json\n")
    value = valid(office.canwait("audit", "own.jsonl", "--json"))
    lever = next(x for x in value["sites"][0]["levers"] if x["kind"] == "smaller model")
    assert (lever["proof"], lever["saves"]["likely_usd"] > "0") == ("likely", True)
    assert "good enough: 95 % sure (600 rows)" in lever["why"]
    assert "small.json, 2026-11-20" in lever["basis"]
    assert office.canwait("audit", "own.jsonl", "--decide", "other=batch").code == 0
    assert 'benchmark: "small.json"' in decided.read_text("utf-8")

    (office.folder / "small.json").write_text(json.dumps({"simulated": True, "report": report}))
    said = office.canwait("audit", "own.jsonl")
    assert said.code == 2
    assert "small.json is of a rehearsal" in said.err
    (office.folder / "small.json").write_text("{}")
    assert "small.json is no report" in office.canwait("audit", "own.jsonl").err
    (office.folder / "small.json").unlink()
    assert "small.json cannot be read" in office.canwait("audit", "own.jsonl").err


def test_a_site_whose_reader_waits_is_not_drafted(office: Desk) -> None:
    """A synchronous site gives no job file; the error says why and what its owner can do. So does an unknown one."""
    name = sites(valid(office.canwait("audit", "calls.jsonl", "--json")), "synchronous")[0]
    said = office.canwait("init", "--from-audit", name)
    assert (said.code, list(office.folder.glob("*.yaml"))) == (2, [])
    assert "its readers need it synchronous" in said.err
    assert "--decide" in said.err
    assert "has no call site 'nowhere'" in office.canwait("init", "--from-audit", "nowhere").err
    (office.folder / "audit.json").write_text("{}")
    assert "audit.json" in office.canwait("init", "--from-audit", name).err


def test_a_worksheet_is_filled_from_the_log_and_tells_what_is_missing(office: Desk) -> None:
    """`--worksheet` writes what the log proves; `worth` gives ranges, and says what may erase or is missing."""
    name = sites(valid(office.canwait("audit", "calls.jsonl", "--json")), "batch")[0]
    assert office.canwait("audit", "calls.jsonl", "--site", name, "--worksheet", "w.yaml").code == 0
    value = valid(office.canwait("worth", "w.yaml", "--json", "-o", "w.md"))
    assert value["site"] == name
    assert value["verdict"].startswith("cannot say: ")
    assert {gap["input"] for gap in value["missing"]}
    assert "missing" in (office.folder / "w.md").read_text("utf-8")
    assert office.canwait("worth", "w.yaml", "--json").out == office.canwait("worth", "w.yaml", "--json").out


def test_own_servers_are_simulated_from_the_log(office: Desk) -> None:
    """With --own-gpu the hours come from the log's own arrivals, with the queue before and after in words."""
    name = sites(valid(office.canwait("audit", "calls.jsonl", "--json")), "batch")[0]
    args = ["--site", name, "--worksheet", "gpu.yaml", "--own-gpu", "2", "--at-least", "1"]
    said = office.canwait("audit", "calls.jsonl", *args)
    assert said.code == 0, said
    for words in ("replicas of 2 slots before", "calls that stay: wait ", "by Erlang's C", "in the slack of replicas"):
        assert words in said.out
    assert "warm_hours_avoided" in (office.folder / "gpu.yaml").read_text("utf-8")
    assert valid(office.canwait("worth", "gpu.yaml", "--json"))["case"] == "own gpu"
