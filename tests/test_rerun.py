"""Promises of asking.py: what a gate refused is asked again as the job file says, once for each plan, and loosens nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canwait import gates
from canwait.client import Client, JobHandle
from canwait.errors import GateRefused
from canwait.gates import as_strict
from canwait.lots import Verdict
from canwait.spec import job_from_dict
from canwait.types import JobState, Quality
from gated import GATE, client_of, inspection, job, judged, model, right
from simulated import desk
from world import Dead

RERUN = {**GATE, "on_refuse": "rerun"}


def wrong(text: str) -> dict[str, str]:
    return {"label": "wrong", "why": text}


def is_right(_: str, answer: str) -> bool:
    return bool(json.loads(answer)["label"] == "right")


def is_bad(*_: str) -> bool:
    return False


def refused(client: Client, folder: Path, **fields: Any) -> JobHandle:
    """A job whose answers people have refused."""
    handle = job(client, folder, **{"quality": RERUN, **fields})
    handle.run()
    assert judged(inspection(handle), is_bad, client) is Verdict.REFUSED
    return handle


def lines(client: Client) -> int:
    """Rows that were ever sent."""
    return sum(len(batch.bodies) for batch in model(client).batches.values())


def test_the_next_run_asks_what_was_refused_again(tmp_path: Path, ledger_url: str) -> None:
    """By itself, with words before and after; better answers are judged anew and load, worse ones are the end."""
    with client_of(tmp_path, wrong, url=ledger_url) as client:
        handle = refused(client, tmp_path)
        assert (handle.figures().reason or "").endswith("; it will be asked again, once")
        model(client).answer = right
        figures = handle.run()
        assert (figures.state, lines(client)) == (JobState.GATE, 200)
        assert handle.asked_again == "100 refused requests are sent again, as the job file says, this once"
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED
        assert handle.run().loaded == {"to": "labels.parquet", "rows": 100, "failed": 0}
        assert (handle.asked_again, lines(client)) == (None, 200)
        assert client.ledger.check() == []


def test_a_second_refusal_is_the_end(tmp_path: Path) -> None:
    """However often it is run, it is asked again once, and what was refused twice is quarantined."""
    with client_of(tmp_path, wrong) as client:
        handle = refused(client, tmp_path)
        handle.run()
        assert judged(inspection(handle), is_right, client) is Verdict.REFUSED
        for _ in range(2):
            figures = handle.run()
            assert (figures.state, lines(client)) == (JobState.REFUSED, 200)
            assert (figures.reason or "").endswith("; asked again once already, so that is its end")
        with pytest.raises(GateRefused):
            list(handle.rows())
        model(client).answer = right
        handle.run(only="rejected")  # a person may ask as often as they like
        assert lines(client) == 300


def test_rules_have_it_asked_again_in_the_same_run(tmp_path: Path) -> None:
    """With `by: rule` the verdict comes at once, and so do the rows that break a rule: these alone."""
    numbers = iter(range(10_000))

    def answer(text: str) -> Any:
        return wrong(text) if next(numbers) < 50 else right(text)

    with client_of(tmp_path, answer) as client:
        gate = {**RERUN, "by": "rule", "rules": ["label == 'right' or key == 'nobody'"]}
        figures = job(client, tmp_path, quality=gate).run()
        assert (figures.state, figures.ok, lines(client)) == (JobState.COMPLETED, 100, 150)


def test_only_refused_strata_are_asked_again_and_all_of_them(tmp_path: Path) -> None:
    """It waits until every stratum is judged; rows of those that were accepted keep their answers."""

    def answer(text: str) -> dict[str, str]:
        return {"label": "right" if int(text[5:]) % 3 == 0 else "wrong", "why": str(int(text[5:]) % 3)}

    with client_of(tmp_path, answer) as client:
        handle = job(client, tmp_path, 300, quality={**RERUN, "strata": "why"})
        handle.run()
        at_gate = inspection(handle)
        assert judged(at_gate, is_right, client) is Verdict.REFUSED
        assert sorted(at_gate.lot.parts[n].name for n in at_gate.lot.refused(at_gate.words)) == ["1", "2"]
        model(client).answer = lambda text: {**answer(text), "label": "right"}
        handle.run()
        assert lines(client) == 500
        assert judged(inspection(handle), is_right, client) is Verdict.ACCEPTED


@pytest.mark.parametrize("where", ["before add_shards", "after add_shards"])
def test_a_kill_around_it_asks_once(tmp_path: Path, where: str) -> None:
    """Withdrawing, asking again and that it was done are written together: it is lost with none of them, and never twice."""
    with client_of(tmp_path, wrong) as client:
        handle = refused(client, tmp_path)

        def kill(here: str) -> None:
            if here == where:
                client.ledger.db.fault = lambda _: None
                raise Dead(where)

        client.ledger.db.fault = kill
        with pytest.raises(Dead):
            handle.run()
        client.clock.sleep(60)
        for _ in range(3):
            handle.run()
            judged(inspection(handle), is_bad, client)
        assert lines(client) == 200
        assert client.ledger.check() == []


def test_two_runs_ask_once(tmp_path: Path) -> None:
    """Two processes that find the same refusal open the rows once."""
    with client_of(tmp_path, wrong) as client:
        handle = refused(client, tmp_path)
        with client.again() as other:
            handle.open()
            JobHandle(other, handle.value).run()
            handle.run()
        assert lines(client) == 200


def cancelled(client: Client, handle: JobHandle) -> None:
    client.cancel("labels")
    client.ledger.cancel_job("labels", client.clock.now())


def asked_by_hand(client: Client, handle: JobHandle) -> None:
    handle.run(only="rejected")
    judged(inspection(handle), is_bad, client)


@pytest.mark.parametrize(("what", "n_lines"), [(cancelled, 100), (asked_by_hand, 200)])
def test_where_nothing_is_asked_again(tmp_path: Path, what: Callable[[Client, JobHandle], None], n_lines: int) -> None:
    """A job that was given up stays so, and what a person had asked again already is not asked a third time."""
    with client_of(tmp_path, wrong) as client:
        handle = refused(client, tmp_path)
        what(client, handle)
        handle.run()
        assert lines(client) == n_lines


def test_the_job_file_may_take_it_back(tmp_path: Path) -> None:
    """It is what the file says when it is run: without it a refused lot stays refused, and nothing is judged anew for that."""
    with client_of(tmp_path, wrong) as client:
        lot = inspection(refused(client, tmp_path)).lot.id
        figures = job(client, tmp_path, quality=GATE).run()
        assert (figures.state, lines(client)) == (JobState.REFUSED, 100)
        assert inspection(job(client, tmp_path, quality=GATE)).lot.id == lot
        assert job(client, tmp_path, quality=RERUN).run().state is JobState.GATE
        assert lines(client) == 200


def test_without_room_in_the_budget_nothing_is_withdrawn(tmp_path: Path) -> None:
    """What is asked again is held at its worst case: where a limit has no room for that it is said, and done once there is."""
    with client_of(tmp_path, wrong) as client:
        spent = refused(client, tmp_path).figures().confirmed_micros
        tight = job(client, tmp_path, quality=RERUN, budget={"usd": f"{spent / 1e6:.6f}"})
        figures = tight.run()
        assert (figures.state, figures.ok, lines(client)) == (JobState.REFUSED, 100, 100)
        assert tight.asked_again is not None
        assert tight.asked_again.startswith("what was refused is not asked again by this run: it costs at most $")
        assert tight.asked_again.endswith("and $0.000000 are free in job:labels")
        assert job(client, tmp_path, quality=RERUN).run().state is JobState.GATE
        assert lines(client) == 200
        assert client.ledger.check() == []


def test_it_is_as_strict_as_quarantine(tmp_path: Path) -> None:
    """What is let through is the same either way, so that neither is a looser gate; and strata it may not load are not loaded."""
    spec: dict[str, Any] = {
        "version": 1, "name": "labels", "source": {"uri": "rows.csv", "key": "id"}, "model": "openai/gpt-6-luna",
        "prompt": "{{ text }}", "max_output_tokens": 40, "urgency": "batch", "budget": {"usd": 1},
    }  # fmt: skip

    def gate(**fields: Any) -> Quality:
        quality = job_from_dict({**spec, "quality": {**GATE, **fields}}, base_dir=tmp_path).quality
        assert quality is not None
        return quality

    kept, again, judged_first = gate(), gate(on_refuse="rerun"), gate(canary="judged")
    assert all(as_strict(a, b) for a in (kept, again, judged_first) for b in (kept, again, judged_first))
    loose = replace(kept, strata="label", on_refuse="load_accepted_strata")
    assert as_strict(replace(again, strata="label"), loose)
    assert not as_strict(loose, replace(again, strata="label"))
    both = gates.strictest([loose, replace(again, sure=loose.sure + loose.sure / 100)])
    assert both is not None
    assert both.on_refuse == "quarantine"


def test_the_command_line_says_so(tmp_path: Path) -> None:
    """`run` says that rows are asked again, and how many, beside its figures."""
    with desk(tmp_path) as office:
        gate = {"refuse_if_bad_rate": "1%", "by": "rule", "rules": ["urgency < 0"], "on_refuse": "rerun"}
        office.write(10, quality=gate)
        said = office.run()
        assert (said.code, said.json["submissions"]) == (7, 2)
        assert "refused requests are sent again, as the job file says, this once" in said.err
        assert "asked again once already" in said.json["reason"]
