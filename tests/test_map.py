"""canwait.map: a frame goes in, the same kind of frame comes back with typed columns, and a second run costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel

import canwait
from canwait import errors
from canwait.client import Client
from simulated import Desk, desk


class Label(BaseModel):
    label: Literal["billing", "bug"]
    urgency: int
    sure: bool


ROWS = {"ticket": ["007", "008", "009", "010"], "body": ["refund?", "crash", "refund?", "login"]}
FRAMES: dict[str, Any] = {
    "pandas": lambda: pd.DataFrame(ROWS),
    "polars": lambda: pl.DataFrame(ROWS),
    "arrow": lambda: pa.table(ROWS),
    "reader": lambda: pa.table(ROWS).to_reader(),
}
JOB: dict[str, Any] = {
    "model": "openai/gpt-6-luna", "key": "ticket", "prompt": "Classify:\n{{ body }}", "max_output_tokens": 40,
    "budget_usd": "0.5", "output": Label,
}  # fmt: skip


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    """A provider on a good day."""
    with desk(tmp_path) as d:
        yield d


@pytest.fixture
def client(office: Desk) -> Iterator[Client]:
    with canwait.connect(f"sqlite:///{office.folder}/ledger.db", env=office.env) as c:
        yield c


@pytest.mark.parametrize("kind", FRAMES)
def test_the_same_kind_of_frame_comes_back(office: Desk, client: Client, kind: str) -> None:
    """pandas, polars, Arrow: what went in comes out, its rows in order, with the output's typed columns added."""
    frame = FRAMES[kind]()
    job = canwait.map(frame, "tickets", client=client, **JOB)
    assert "Nothing was spent" in repr(job.plan())
    assert office.simulator.batches() == []
    answered = job.run()
    assert type(answered) is type(frame)
    table = answered.read_all() if kind == "reader" else pa.table(answered)
    assert table.column_names == ["ticket", "body", "label", "urgency", "sure"]
    kinds = [str(table.schema.field(n).type) for n in ("label", "urgency", "sure")]
    assert [kind.removeprefix("large_").removesuffix("_view") for kind in kinds] == [
        "string", "int64", "bool",
    ]  # fmt: skip
    assert table["ticket"].to_pylist() == ROWS["ticket"]
    labels = table["label"].to_pylist()
    assert labels[0] == labels[2]
    assert set(labels) <= {"billing", "bug"}
    assert job.failed == []
    assert job.cost.confirmed == Decimal(office.bill_usd()) > 0


def test_running_the_cell_again_costs_nothing(office: Desk, client: Client) -> None:
    """The same name and rows are the same job, from whatever frame: the answers come back, nothing is sent."""
    first = canwait.map(FRAMES["pandas"](), "tickets", client=client, **JOB).run()
    again = canwait.map(FRAMES["polars"](), "tickets", client=client, **JOB)
    assert again.plan().value.n_new == 0
    assert again.run()["label"].to_list() == first["label"].tolist()
    assert len(office.simulator.batches()) == 1


def test_a_row_without_an_answer_holds_nulls(tmp_path: Path) -> None:
    """A failed row stays in the frame with nulls, integers stay integers, and `failed` says why."""
    with (
        desk(tmp_path, "row_refusal=1") as office,
        canwait.connect(env=office.env | {"CANWAIT_HOME": str(tmp_path)}) as client,
    ):
        job = canwait.map(FRAMES["pandas"](), "tickets", client=client, **JOB)
        frame = job.run()
        failed = {row.key: row.cause for row in job.failed}
        assert 0 < len(failed) < 4
        assert set(failed.values()) == {"refused"}
        assert set(frame[frame["label"].isna()]["ticket"]) == set(failed)
        assert str(frame["urgency"].dtype) == "Int64"


def test_a_job_that_has_not_ended_returns_no_frame(tmp_path: Path) -> None:
    """Out of credit or out of time `run` raises, and the next `run` goes on: a frame is returned whole or not at all."""
    env = {"CANWAIT_HOME": str(tmp_path)}
    with (
        desk(tmp_path, "create_out_of_credit=1", speed=1_500) as office,
        canwait.connect(env=office.env | env) as client,
    ):
        job = canwait.map(FRAMES["pandas"](), "tickets", client=client, **JOB)
        with pytest.raises(errors.JobPaused, match="quota"):
            job.run()
        with pytest.raises(errors.NotFinished):
            job.run(until=client.clock.now() + timedelta(seconds=0.3))
        assert job.run()["label"].notna().all()
        assert len(office.simulator.batches()) == 1


def test_free_text_is_one_column(office: Desk, client: Client) -> None:
    """Without `output` the answer is a text column called `output`."""
    frame = canwait.map(FRAMES["polars"](), "tickets", client=client, **(JOB | {"output": None})).run()
    assert frame.columns == ["ticket", "body", "output"]
    assert all(isinstance(text, str) and text for text in frame["output"])


def test_keys_need_not_be_text(office: Desk, client: Client) -> None:
    """Integer keys name rows too, and come back as the integers they were."""
    frame = pl.DataFrame({"id": [3, 1, 2], "body": ["a", "b", "c"]})
    answered = canwait.map(frame, "numbers", client=client, **(JOB | {"key": "id"})).run()
    assert answered["id"].to_list() == [3, 1, 2]
    assert answered["label"].null_count() == 0


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"key": "nope"}, errors.SourceError, "nope"),
        ({"prompt": "{{ boddy }}"}, errors.SourceError, "did you mean 'body'"),
        ({"budget_usd": "lots"}, errors.SpecError, "budget"),
        ({"max_output_tokens": 0}, errors.SpecError, "max_output_tokens"),
        ({"urgent": "yes"}, errors.SpecError, "urgent"),
        ({"budget_usd": 0.000001}, errors.BudgetExceeded, "needs"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    office: Desk, client: Client, change: dict[str, Any], error: type[Exception], word: str
) -> None:
    """A wrong field, column or budget raises a typed error that names it."""
    with pytest.raises(error, match=word):
        canwait.map(FRAMES["pandas"](), "tickets", client=client, **(JOB | change)).run()
    assert office.simulator.batches() == []


def test_a_budget_must_be_stated(client: Client) -> None:
    """There is no default budget: a call without one does not run."""
    with pytest.raises(TypeError, match="budget_usd"):
        canwait.map(FRAMES["pandas"](), "tickets", client=client, **{k: v for k, v in JOB.items() if k != "budget_usd"})


def test_answers_never_overwrite_the_frames_own_columns(office: Desk, client: Client) -> None:
    """A frame that has a column of an output field's name is refused, not half overwritten."""
    frame = pd.DataFrame(ROWS | {"label": ["mine"] * 4})
    with pytest.raises(errors.SpecError, match="label"):
        canwait.map(frame, "tickets", client=client, **JOB).run()


@pytest.mark.parametrize("frame", [None, [1, 2], {"ticket": ["1"]}, "rows.csv"])
def test_what_is_no_frame_is_refused(client: Client, frame: Any) -> None:
    """Anything that is no frame is refused by name."""
    with pytest.raises(errors.SourceError, match="expected a pandas or polars DataFrame"):
        canwait.map(frame, "tickets", client=client, **JOB)
