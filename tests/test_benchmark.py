"""`canwait benchmark`: rows drawn fairly, a plan people can edit, arms under one budget, and a report that is the truth."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import views
from canwait.benchmark.draft import Asked, text_of
from canwait.benchmark.plan import Arm, Benchmark, CascadeAim, Gold, load_benchmark, runs
from canwait.benchmark.report import same
from canwait.benchmark.rows import Drawn, allocate, draw
from canwait.errors import SourceError, SpecError
from canwait.simulator.answers import last_user_text
from canwait.sources.frames import from_frame
from canwait.spec import job_from_dict
from canwait.types import Tier
from simulated import Desk, desk
from test_cli import valid

LABELS = ("billing", "bug", "account")
ANSWER = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": list(LABELS)}, "sure": {"type": "number"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}
N = 90


def gold(i: int) -> str:
    return LABELS[i % 3]


def small_is_right(i: int) -> bool:
    return i % 5 != 0  # 18 of 90 are wrong


def large_is_right(i: int) -> bool:
    return i % 15 != 0  # 6 of 90, all among those


def answer(body: Mapping[str, Any], rng: random.Random) -> str:
    """Two models whose mistakes are known, and that are less sure where they are wrong."""
    text = last_user_text(body)
    i = int(re.findall("[0-9]+", text)[-1])
    right = small_is_right(i) if "luna" in str(body["model"]) else large_is_right(i)
    if "broken" in text and "luna" in str(body["model"]):
        raise RuntimeError("the small model is down")
    return json.dumps({"label": gold(i) if right else gold(i + 1), "sure": 0.9 if right else 0.4})


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """Rows with gold labels in two languages, and a provider that has the two models."""
    with desk(tmp_path, answer=answer) as d:
        write(d)
        yield d


def write(office: Desk, text: str = "message", **fields: Any) -> None:
    lines = [f"{i:04d},{text} {i},{'de' if i % 4 == 0 else 'en'},{gold(i)}" for i in range(N)]
    (office.folder / "rows.csv").write_text("id,text,lang,truth\n" + "\n".join(lines) + "\n", "utf-8")
    job = {"model": "openai/gpt-6-sol", "prompt": "Classify: {{ text }}", "output": ANSWER, "load": None}
    office.write_job(**(job | fields))


def drafted(office: Desk, *args: object, edit: Mapping[str, str] | None = None) -> Path:
    """A plan, and what a person changed in it: fields of one line, by name."""
    asked = args or ("--small", "openai/gpt-6-luna", "--gold", "truth", "--field", "label", "--by", "lang")
    said = office.canwait("benchmark", "plan", "job.yaml", *asked, "--json")
    assert said.code == 0, said
    path = office.folder / valid(said)["plan"]
    change(path, {"batches": "9"} | dict(edit or {}))
    return path


def change(path: Path, edit: Mapping[str, str]) -> None:
    text = path.read_text("utf-8")
    for name, value in edit.items():
        text, n = re.subn(rf"(?m)^( *){name}: .*$", lambda m, v=f"{name}: {value}": m[1] + v, text)
        assert n == 1, name
    path.write_text(text, "utf-8")


def ran(office: Desk, path: Path, *args: object, code: int = 0) -> dict[str, Any]:
    said = office.canwait("benchmark", "run", path.name, "--yes", "--json", *args)
    assert said.code == code, said
    return dict(valid(said))


def arm(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(dict(a) for a in value["report"]["arms"] if a["arm"] == name)


def compared(value: Mapping[str, Any], candidate: str, reference: str) -> dict[str, Any]:
    found = [c for c in value["report"]["comparisons"] if (c["candidate"], c["reference"]) == (candidate, reference)]
    return dict(found[0])


def spent_matches_the_bill(office: Desk, report: Mapping[str, Any], n_calls: int) -> None:
    """Not a row is paid twice: the provider rounds up each of its calls, we each block of them."""
    more = Decimal(office.bill_usd()) - Decimal(report["spent_usd"])
    assert 0 <= more * 1_000_000 < n_calls


# ---------------------------------------------------------------------------------------------------------------- rows


def job(**fields: Any) -> Any:
    spec = {
        "version": 1, "name": "j", "source": {"uri": "frame:", "key": "id"}, "model": "openai/gpt-6-sol",
        "prompt": "{{ text }}", "max_output_tokens": 10, "urgency": "batch", "budget": {"usd": 1},
    }  # fmt: skip
    return job_from_dict(spec | fields, base_dir=Path())


def frame(texts: Sequence[str], by: Sequence[str] | None = None) -> pa.Table:
    columns: dict[str, Any] = {"id": [f"{i}" for i in range(len(texts))], "text": list(texts)}
    return pa.table(columns | ({"by": list(by)} if by else {}))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_sample_is_of_different_requests(numbers: list[int], n: int, rng: random.Random) -> None:
    """Each request is drawn at most once, as many as asked for or there are, and the rows' order makes no difference."""
    texts = [f"t{i}" for i in numbers]
    drawn = draw(job(), from_frame(frame(texts)), n, seed=3)
    taken = drawn.table["text"].to_pylist()
    assert len(taken) == len(set(taken)) == min(n, len(set(texts)))
    again = draw(job(), from_frame(frame(rng.sample(texts, len(texts)))), n, seed=3)
    assert again.table["text"].to_pylist() == taken
    if drawn.counted:
        assert drawn.n_different == len(set(texts))


def test_every_request_is_as_likely() -> None:
    """Over 400 seeds each of 40 requests is drawn about as often, also one that stands in the file a hundred times."""
    texts = [f"t{i}" for i in range(40)] + ["t7"] * 100
    source, times = from_frame(frame(texts)), dict.fromkeys(texts, 0)
    for seed in range(400):
        for text in draw(job(), source, 10, seed=seed).table["text"].to_pylist():
            times[text] += 1
    assert sum(times.values()) == 4000
    assert all(60 <= n <= 140 for n in times.values()), times  # 100 expected, sd 8.7


def test_strata_are_drawn_in_proportion() -> None:
    """Of 900 English and 100 German requests, a sample of 50 holds 45 and 5, in random order."""
    texts, by = [f"t{i}" for i in range(1000)], ["de" if i % 10 == 0 else "en" for i in range(1000)]
    drawn = draw(job(), from_frame(frame(texts, by)), 50, seed=1, by="by")
    assert abs(drawn.strata["de"] - 5) <= 1
    assert sum(drawn.strata.values()) == drawn.table.num_rows == 50
    values = drawn.table["by"].to_pylist()
    assert [values.count(name) for name in drawn.strata] == list(drawn.strata.values())
    assert "de" in values[:40]


def test_how_many_are_different_is_told_without_keeping_them() -> None:
    """Of 20,000 rows with 5,000 different requests, a sample of 400 tells the number within a sixth, and says about."""
    texts = [f"t{i % 5000}" for i in range(20_000)]
    drawn = draw(job(), from_frame(frame(texts)), 400, seed=1)
    assert not drawn.counted
    assert drawn.n_different == pytest.approx(5000, rel=1 / 6)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), min_size=1, max_size=8), st.integers(1, 500))
def test_allocation_is_exact(sizes: dict[str, int], n: int) -> None:
    """Strata get exactly the rows there are to give, each within one of its share, none more than it has."""
    given, total = allocate(sizes, n), sum(sizes.values())
    assert sum(given.values()) == min(n, total)
    assert all(0 <= given[name] <= size for name, size in sizes.items())
    if total > n:
        assert all(abs(given[name] - n * size / total) < 1 for name, size in sizes.items())


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """Rows without a label and rows that make no request are left out and counted; none left is an error that says so."""
    table = pa.table({"id": ["a", "b", "c"], "text": ["x", "", "y"], "truth": ["1", "2", None]})
    drawn = draw(job(), from_frame(table), 10, seed=0, gold="truth")
    assert (drawn.table["id"].to_pylist(), drawn.n_rows, drawn.n_unusable, drawn.n_unlabelled) == (["a"], 3, 1, 1)
    with pytest.raises(SourceError, match="1 have no label, 1 cannot become requests"):
        draw(job(), from_frame(table.slice(1)), 10, seed=0, gold="truth")
    with pytest.raises(SourceError, match="no such column; did you mean 'truth'"):
        draw(job(), from_frame(table), 10, seed=0, gold="truht")
    many = pa.table({"id": [str(i) for i in range(200)], "text": [str(i) for i in range(200)]})
    with pytest.raises(SpecError, match="more than 100 different values"):
        draw(job(), from_frame(many), 10, seed=0, by="text")


# ------------------------------------------------------------------------------------------------------------ the plan


def test_a_drafted_plan_is_what_the_planner_says(office: Desk) -> None:
    """Sizes for the margin, four arms, each priced by the real planner, the budget their worst case; nothing is spent."""
    path = drafted(office)
    text = path.read_text("utf-8")
    assert "90 of 90 different requests" in text
    assert "372 were wanted: there are no more" in text
    assert 'by stratum: "de" 23, "en" 67' in text
    benchmark, loaded, table = load_benchmark(path)
    assert [str(a) for a in benchmark.arms] == ["small/batch", "small/standard", "large/batch", "large/standard"]
    assert (benchmark.gold, benchmark.by, table.num_rows) == (Gold("truth", "label"), "lang", 90)
    shown = re.findall(
        r"- (\S+) +# \$([0-9.]+) expected, \$([0-9.]+) at worst \(bounded tokens; \S+ .*20..-..-..\)", text
    )
    worst = 0
    for run, (name, expected_usd, worst_usd) in zip(runs(benchmark, loaded, table), shown, strict=True):
        fields: dict[str, Any] = {"model": f"openai/{run.job.model}", "tier": run.job.tiers[0].value, "dedupe": False}
        fields |= {"shard": {"max_rows": run.job.shard.max_rows}, "urgency": run.job.urgency.value}
        write(office, name=run.job.name, **fields)
        planned = office.canwait("plan", f"{run.job.name}.yaml", "--json").json
        worst += planned["worst_micros"]
        assert name == str(run.arm)
        assert float(expected_usd) == pytest.approx(float(planned["expected_usd"]), abs=2e-5)  # rounded up by shard
        assert float(worst_usd) == pytest.approx(float(planned["worst_usd"]), abs=2e-5)
    assert worst - 100 <= benchmark.budget_micros < worst + 10_100
    assert office.money() == (0, 0)
    assert office.simulator.batches() == []


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)
words = words.filter(lambda text: text.isprintable() and text.strip() != "")  # as every name in a job file


@given(
    column=words, name=words, by=st.none() | words, score=st.none() | words,
    margin=st.integers(1, 99).map(lambda i: Decimal(i) / 100), every_s=st.integers(1, 10**6), waves=st.integers(1, 9),
    micros=st.integers(0, 10**9),
)  # fmt: skip
def test_a_plan_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, column: str, name: str, by: str | None, score: str | None,
    margin: Decimal, every_s: int, waves: int, micros: int,
) -> None:  # fmt: skip
    """Whatever columns and fields are called, the drafted file says the same when it is read."""
    folder = tmp_path_factory.mktemp("plan")
    fields = {"version": 1, "name": "j", "source": {"uri": "x.csv", "key": "id"}, "model": "openai/gpt-6-sol"}
    fields |= {"prompt": "hi", "max_output_tokens": 10, "urgency": "batch", "budget": {"usd": 1}}
    fields["output"] = {"type": "object", "properties": {f: {"type": "string"} for f in {name, score} - {None}}}
    (folder / "job.yaml").write_text(json.dumps(fields, ensure_ascii=False), "utf-8")
    table = pa.table({c: ["x"] for c in {"id", column, by} - {None}})
    pq.write_table(table, folder / "rows.parquet")
    aim = CascadeAim(score, Decimal("0.02"), Decimal("0.9")) if score else None
    arms = tuple(Arm(role, Tier.BATCH) for role in ("small", "large"))
    benchmark = Benchmark(
        "j", Path("job.yaml"), Path("rows.parquet"), {"small": ("openai", "a"), "large": ("anthropic", "b")}, arms,
        micros, Gold(column, name), by, aim, margin, waves=waves, every_s=every_s,
    )  # fmt: skip
    planned: Any = {a: [Planned()] for a in arms}
    drawn = Drawn(table, {"": 1}, 1, 1, True, 0, 0)
    (folder / "b.yaml").write_text(
        text_of(benchmark, drawn, planned, seed=0, discordant=Decimal("0.15"), wanted=1), "utf-8"
    )
    read, _, _ = load_benchmark(folder / "b.yaml")
    assert replace(read, job=benchmark.job, rows=benchmark.rows) == benchmark


class Planned:
    """The part of a plan that a comment shows."""

    expected_micros, worst_micros, tokens_kind = 1, 2, "counted"

    class price:
        source, as_of = "a page\n- of: ours", "2026-11-01"


def test_every_problem_of_a_plan_has_its_place(office: Desk) -> None:
    """An edited plan with many mistakes names each at file:line:column, all at once, and runs nothing."""
    edit = {"margin": "5", "batches": "0", "waves": "many", "failed": "120%"}
    path = drafted(office, edit=edit)
    change(path, {"budget": "{usd: 1, eur: 2}"})
    said = office.canwait("benchmark", "run", path.name, "--yes")
    assert said.code == 2
    lines = path.read_text("utf-8").splitlines()
    for name in edit:
        line = next(i for i, text in enumerate(lines, 1) if text.strip().startswith(f"{name}:"))
        assert re.search(rf"job\.benchmark\.yaml:{line}:[0-9]+: \S*{name}", said.err), said.err
    assert "budget.eur: unknown field" in said.err
    assert office.simulator.batches() == []


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"by": "land"}, "by: the rows have no column 'land'; did you mean 'lang'?"),
        ({"gold": "{column: truth, field: lable}"}, "no field 'lable'; did you mean 'label'?"),
        ({"gold": "{column: truth}"}, "`field` is required: one of label, sure"),
        ({"rows": "other.parquet"}, "rows: no such file"),
        ({"job": "other.yaml"}, "job: no such job file"),
        ({"small": "null"}, "there is no small model under `models`"),
        ({"billed": "{small/flex: 1}"}, "is no arm of this plan"),
        ({"gold": "null", "cascade": "{score: sure, loss: 2%}"}, "needs `gold`"),
        ({"name": "Nice Name"}, "name:"),
        ({"version": "2"}, "version:"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(office: Desk, edit: dict[str, str], says: str) -> None:
    """Columns, fields, files, models and arms that a plan names must exist; else exit code 2 with the place and nearest."""
    said = office.canwait("benchmark", "run", drafted(office, edit=edit).name, "--yes")
    assert (said.code, said.out) == (2, "")
    assert says in said.err, said.err
    assert re.search(r"job\.benchmark\.yaml:[0-9]+:[0-9]+: ", said.err)
    assert office.simulator.batches() == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--gold", "truht"), "did you mean 'truth'"),
        (("--gold", "truth"), "expected --field, one of label, sure"),
        (("--gold", "truth", "--field", "lable"), "did you mean 'label'"),
        (("--score", "sure"), "a cascade needs labels and two models"),
        (("--margin", "5"), "--margin"),
        (("--margin", "0%"), "--margin"),
        (("--small", "luna"), "expected openai/NAME"),
    ],
)
def test_what_cannot_be_drafted_is_said(office: Desk, args: tuple[str, ...], says: str) -> None:
    """A column, field, model or share that does not exist: exit code 2, and no file is written."""
    said = office.canwait("benchmark", "plan", "job.yaml", *args)
    assert (said.code, said.out) == (2, "")
    assert says in said.err, said.err
    assert list(office.folder.glob("*benchmark*")) == []


def test_a_draft_overwrites_nothing(office: Desk) -> None:
    """A plan that a person may have edited is never written over."""
    drafted(office)
    said = office.canwait("benchmark", "plan", "job.yaml")
    assert said.code == 2
    assert "exists already" in said.err


# ------------------------------------------------------------------------------------------------------ run and report


@dataclass(frozen=True)
class Measured:
    """A benchmark that has run to its end."""

    office: Desk
    path: Path
    value: dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Two models on two tiers, with gold labels, strata and a cascade, under half a dollar."""
    with desk(tmp_path_factory.mktemp("measured"), answer=answer) as office:
        write(office)
        asked = (
            "--small",
            "openai/gpt-6-luna",
            "--gold",
            "truth",
            "--field",
            "label",
            "--by",
            "lang",
            "--score",
            "sure",
        )
        path = drafted(office, *asked, edit={"cascade": "{score: sure, loss: 5%, sure: 90%}"})
        yield Measured(office, path, ran(office, path, "--budget", "0.5"))


def test_the_report_is_what_the_models_did(measured: Measured) -> None:
    """Four arms side by side: right answers, losses, agreement, money and batches are exactly what the provider knows."""
    office, value = measured.office, measured.value
    report = value["report"]
    small, large = sum(map(small_is_right, range(N))), sum(map(large_is_right, range(N)))
    for name, right in (("small/batch", small), ("small/standard", small), ("large/batch", large)):
        found = arm(value, name)
        assert (found["rows"], found["ended"], found["ok"], found["right"]["right"]) == (N, N, N, right)
        low, high = found["right"]["interval"]["low"], found["right"]["interval"]["high"]
        assert low < right / N == found["right"]["share"] < high
        cost = Decimal(found["money"]["confirmed_usd"]) / right
        assert Decimal(found["accepted_cost_usd"]) == pytest.approx(cost, abs=Decimal("0.000000001"))
        assert (found["money"]["n_row_bills"], found["money"]["n_batch_bills_differ"]) == (N, 0)
    sizes = compared(value, "small/batch", "large/batch")
    only_large = sum(large_is_right(i) and not small_is_right(i) for i in range(N))
    both = sum(large_is_right(i) and small_is_right(i) for i in range(N))
    assert sizes["decision"]["pairs"] == {"both": both, "only_large": only_large, "only_small": 0, "neither": N - large}
    assert sizes["n_same"] == N - only_large
    assert sum(s["pairs"]["both"] for s in sizes["strata"]) == both
    tiers = compared(value, "small/batch", "small/standard")
    assert (tiers["n_same"], tiers["decision"]["loss"], tiers["decision"]["verdict"]) == (N, 0, "accept")
    spent_matches_the_bill(office, report, n_calls=2 * N)
    assert Decimal(arm(value, "small/batch")["money"]["confirmed_usd"]) * 2 == pytest.approx(
        Decimal(arm(value, "small/standard")["money"]["confirmed_usd"]), abs=Decimal("0.00003")
    )
    assert sum(arm(value, f"{m}/batch")["turnaround"]["n"] for m in ("small", "large")) == len(
        office.simulator.batches()
    )
    with closing(office.ledger()) as ledger:
        assert ledger.check() == []


def test_a_finished_benchmark_costs_nothing_more(measured: Measured) -> None:
    """Running it again sends nothing, pays nothing and reports the same; so does `report`."""
    office, path = measured.office, measured.path
    bill, batches = office.bill_usd(), len(office.simulator.batches())
    again = ran(office, path, "--budget", "0.5")
    said = office.canwait("benchmark", "report", path.name, "--json")
    assert (office.bill_usd(), len(office.simulator.batches())) == (bill, batches)
    changing = {"at": "", "budget_usd": ""}
    for later in (again, valid(said)):
        assert later["report"] | changing == measured.value["report"] | changing


def test_words_carry_their_rows(measured: Measured) -> None:
    """The text says for each figure how many rows or batches it rests on, what is missing, and what is too little to tell."""
    text = measured.office.canwait("benchmark", "report", measured.path.name).out
    assert "80.0% (70.2%-87.7%), n=90" in text
    assert "12 rows right only in large/batch, 0 only in small/batch" in text
    assert "loses +13.3%" in text
    assert re.search(r"small/batch +9 +9 +0 +\S+ s", text)
    assert "unknown (needs 19)" in text
    for said in ("not stated", "is in no figure", "one wave", "prices: genai-prices"):
        assert said in text


def test_too_few_rows_are_said_to_be_too_few(office: Desk) -> None:
    """Thirty rows at a margin of 2 % tell nothing: the report says how many it takes, and no arm is called good enough."""
    path = drafted(
        office, "--small", "openai/gpt-6-luna", "--gold", "truth", "--field", "label", "--rows", "30", "--margin", "2%"
    )
    decision = compared(ran(office, path), "small/batch", "large/batch")["decision"]
    assert decision["verdict"] != "accept"
    if decision["verdict"] == "not enough rows":
        assert decision["needs"] > 30
        assert f"not enough rows to tell (needs {decision['needs']:,})" in decision["words"]


def test_without_labels_only_agreement_is_measured(office: Desk) -> None:
    """Nobody says what is right: arms are compared by agreement, nothing is called right, and the report says so."""
    value = ran(office, drafted(office, "--small", "openai/gpt-6-luna", "--rows", "40"))
    assert all(a["right"] is None and a["accepted"] == 40 for a in value["report"]["arms"])
    found = compared(value, "small/standard", "large/standard")
    assert found["decision"] is None
    assert 0 < found["n_same"] < 40
    assert any("no proof" in note for note in value["report"]["notes"])


def test_one_model_is_batch_against_realtime(office: Desk) -> None:
    """Without another model the job's own is measured on both tiers, on the same rows."""
    value = ran(office, drafted(office, "--gold", "truth", "--field", "label"))
    assert [a["arm"] for a in value["report"]["arms"]] == ["large/batch", "large/standard"]
    assert [(c["candidate"], c["reference"]) for c in value["report"]["comparisons"]] == [
        ("large/batch", "large/standard")
    ]


def test_the_cascade_comes_with_its_promise(measured: Measured) -> None:
    """A small model that knows when it is wrong: its sure answers are kept, and the loss stays within the promise."""
    found = measured.value["report"]["cascade"]
    assert (found["threshold"]["score"], found["threshold"]["kept"]) == (0.9, pytest.approx(72 / 90))
    assert found["threshold"]["loss"] == 0 < found["threshold"]["upper"] <= 0.05
    assert Decimal(found["against_large"]) < Decimal("0.4")
    text = measured.office.canwait("benchmark", "report", measured.path.name).out
    assert "keep small/batch where its score is 0.9 or more (80% of 90 rows), else large/batch" in text
    assert (found["right"], found["caught"], found["passed"]) == (pytest.approx(84 / 90), 1, 1)
    assert "right on 93.3% of them: 100% of the wrong answers of small/batch are asked again, 100% of its right" in text


def test_the_invoice_is_held_against_the_price_book(measured: Measured) -> None:
    """What the user read from the invoice is compared with tokens x price book, and is what an accepted answer costs."""
    confirmed = Decimal(arm(measured.value, "small/batch")["money"]["confirmed_usd"])
    path = measured.path.with_name("invoiced.yaml")
    path.write_text(measured.path.read_text("utf-8"), "utf-8")
    change(path, {"billed": f"{{small/batch: {confirmed * 2}}}", "rejected_usd": "0.5"})
    found = arm(valid(measured.office.canwait("benchmark", "report", path.name, "--json")), "small/batch")
    assert Decimal(found["money"]["against_book"]) == 2
    each = (confirmed * 2 + Decimal("0.5") * 18) / 72
    assert Decimal(found["accepted_cost_usd"]) == pytest.approx(each, abs=Decimal("0.000000001"))


# ---------------------------------------------------------------------------------------------------- money and failing


def test_a_budget_too_small_sends_nothing(office: Desk) -> None:
    """If the worst case of all arms together does not fit, nothing is sent: exit code 5."""
    path = drafted(office)
    said = office.canwait("benchmark", "run", path.name, "--yes", "--budget", "0.05")
    assert said.code == 5
    assert "project:benchmark-labels" in said.err
    assert office.simulator.batches() == []
    assert [money for money in office.money() if money] == []


def test_all_arms_share_one_budget(measured: Measured) -> None:
    """The arms' reservations stand in one budget that holds the limit, and no row is taken from another arm's answers."""
    with closing(measured.office.ledger()) as ledger:
        shared = next(b for b in views.budgets(ledger) if b.id == "project:benchmark-labels")
        jobs = {name: views.figures(ledger, name) for name in views.jobs(ledger)}
    assert (shared.limit_micros, shared.held_micros) == (500_000, 0)
    assert shared.spent_micros == sum(f.confirmed_micros for f in jobs.values())
    assert sorted(jobs) == [f"labels.{m}-{t}.1" for m in ("large", "small") for t in ("batch", "standard")]
    assert all(f.reused == 0 and f.submissions > 0 for f in jobs.values())


def test_nothing_is_sent_unapproved(office: Desk) -> None:
    """Without --yes and without anybody to ask, nothing is sent: exit code 3."""
    said = office.canwait("benchmark", "run", drafted(office).name)
    assert (said.code, "--yes" in said.err) == (3, True)
    assert office.simulator.batches() == []


def test_an_arm_that_fails_is_stopped(tmp_path: Path) -> None:
    """An arm of which surely more fails than the plan allows is given up: no further wave of it is sent, the others go on."""
    with desk(tmp_path, answer=answer) as office:
        write(office, "broken message", retry={"attempts": 1})
        path = drafted(office, edit={"waves": "2", "every": "1h"})
        for _ in range(10):
            value = ran(office, path, "--timeout", "3s", code=9)
            if all(a["stopped"] or a["ok"] == N // 2 for a in value["report"]["arms"]):
                break
        assert {f["job"].rpartition(".")[2] for f in value["jobs"]} == {"1"}  # the second wave waits for its hour
        change(path, {"every": "1s"})
        value = ran(office, path)
        assert value["report"]["finished"]
        for name in ("small/batch", "small/standard"):
            found = arm(value, name)
            assert (found["stopped"], found["ok"], found["right"]["right"]) == (True, 0, 0)
            assert found["causes"]
            assert any(f"{name} was stopped" in note for note in value["report"]["notes"])
        assert all(arm(value, name)["ok"] == N for name in ("large/batch", "large/standard"))
        assert {f["job"] for f in value["jobs"] if f["job"].endswith(".2")} == {
            "labels.large-batch.2",
            "labels.large-standard.2",
        }


def test_cancelled_rows_are_neither_failed_nor_wrong(tmp_path: Path) -> None:
    """Who gives an arm up midway has fewer rows of it, not worse ones: it is not stopped as failing, and nothing is wrong."""
    with desk(tmp_path, "turnaround=6h", answer=answer, speed=5000) as office:
        write(office)
        path = drafted(office)
        ran(office, path, "--timeout", "2s", code=9)
        cancelled = office.canwait("cancel", "labels.small-batch.1")
        assert cancelled.code == 0, cancelled
        value = ran(office, path)
        found = arm(value, "small/batch")
        assert found["left_out"] > 0
        assert found["ended"] + found["left_out"] == N
        assert (found["ok"], found["causes"], found["stopped"]) == (found["ended"], {}, False)
        assert found["right"] is None or found["right"]["n"] == found["ended"]
        assert value["report"]["finished"]
        assert any("cancelled or never came back" in note for note in value["report"]["notes"])


def test_what_is_still_out_is_censored(tmp_path: Path) -> None:
    """Who stops watching early sees batches that are not back counted as such, and goes on later where it was."""
    with desk(tmp_path, "turnaround=6h", answer=answer, speed=5000) as office:  # half come back within 4 s
        write(office)
        path = drafted(office)
        early = ran(office, path, "--timeout", "3s", code=9)
        assert not early["report"]["finished"]
        found = arm(early, "small/batch")["turnaround"]
        assert found["n_censored"] == found["n"] - found["n_ended"] > 0
        assert found["slowest_wave_s"] is None
        assert found["next_90"]["seconds"] is None
        assert any("not finished" in note for note in early["report"]["notes"])
        n_batches = len(office.simulator.batches())
        assert n_batches > 0
        late = ran(office, path)
        assert late["report"]["finished"]
        spent_matches_the_bill(office, late["report"], n_calls=2 * N)
        assert arm(late, "large/batch")["turnaround"]["n_ended"] > 0


def test_a_rehearsal_needs_nothing(office: Desk) -> None:
    """With --sim the whole benchmark is rehearsed: no key, no waiting between waves, and every screen says SIMULATED."""
    path = drafted(office, "--small", "openai/gpt-6-luna", "--rows", "30", "--waves", "2", "--every", "6h")
    said = office.canwait("benchmark", "run", path.name, "--sim", "--yes", OPENAI_API_KEY=None)
    assert said.code == 0, said
    assert said.out.startswith("SIMULATED\nlabels   30 rows for each of 4 arms   finished")
    assert office.simulator.batches() == []


def test_another_plan_has_another_name(office: Desk) -> None:
    """A second plan of a job that has been benchmarked gets a name of its own, so their money is never mixed."""
    ran(office, drafted(office, "--rows", "20"))
    said = office.canwait("benchmark", "plan", "job.yaml", "-o", "second.yaml", "--json")
    assert load_benchmark(office.folder / valid(said)["plan"])[0].name == "labels-2"


def test_hostile_labels_stay_text(office: Desk) -> None:
    """Control characters in a stratum or a label reach no terminal and no comment of the plan."""
    evil = "\x1b[31mred\u202e\u2028x"
    rows = [{"id": str(i), "text": f"message {i}", "lang": evil, "truth": gold(i)} for i in range(12)]
    (office.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    write(office, source={"uri": "rows.jsonl", "key": "id"})
    path = drafted(office)
    ran(office, path)
    text = office.canwait("benchmark", "report", path.name).out
    assert "red" in text
    for shown in (text, path.read_text("utf-8")):
        assert all(c.isprintable() or c == "\n" for c in shown)


@pytest.mark.parametrize(
    ("said", "label", "equal"),
    [
        ("Bug", " bug ", True),
        (1, "1.0", True),
        (True, "true", True),
        (True, 1, False),
        (None, None, False),
        ("nan", "nan", True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ("bug", "billing", False),
        (["a"], ["a", "b"], False),
    ],
)
def test_what_counts_as_the_same(said: object, label: object, equal: bool) -> None:
    """Labels of a CSV file are text: numbers are equal by value, text without regard to case, and nothing equals missing."""
    assert same(said, label) is equal


def test_asking_needs_no_more_than_a_job() -> None:
    """What a user may leave out has the defaults that the options show."""
    asked = Asked()
    assert (asked.margin, asked.discordant, asked.waves, asked.every_s) == (Decimal("0.05"), Decimal("0.15"), 1, 3600)
