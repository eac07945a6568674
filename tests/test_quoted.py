"""Promises of quoted.py: what a plan says of money that is not its rows'."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from gated import client_of, job
from simulated import desk
from test_cli import valid

GATE = {
    "refuse_if_bad_rate": "10%",
    "by": "judge",
    "judge": {"model": "openai/gpt-6-luna", "prompt": "Good? {{ answer }}", "budget": {"usd": "1.50"}, "rows": 400},
}


def test_the_judge_model_of_a_gate_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    """Its limit is told before a cent is spent; the four numbers, the worst case and the id stay those of the rows."""
    with client_of(tmp_path) as client:
        people, judge = (
            job(client, tmp_path, 1500, quality=gate).plan() for gate in ({"refuse_if_bad_rate": "10%"}, GATE)
        )
    assert (people.judge_usd, judge.judge_usd) == (None, Decimal("1.50"))
    assert "judge" not in people.explain()
    line = "$1.500000 at most, besides: openai/gpt-6-luna looks at 400 rows at most, as a job of its own once these have ended"
    assert f"  judge      {line}" in judge.explain().splitlines()
    assert (people.outlook, people.worst_usd, people.id) == (judge.outlook, judge.worst_usd, judge.id)


def test_it_looks_at_no_more_rows_than_there_are(tmp_path: Path) -> None:
    """Of 100 rows a judge model of 400 sees 100."""
    with client_of(tmp_path) as client:
        assert "looks at 100 rows at most" in job(client, tmp_path, 100, quality=GATE).plan().explain()


def test_scripts_are_told_of_the_judge_model_too(tmp_path: Path) -> None:
    """In JSON, by its published schema; null where a gate has none."""
    with desk(tmp_path) as office:
        for gate, told in ((None, None), (GATE, ("openai", "gpt-6-luna", "1.500000", 12))):
            office.write(12, quality=gate)
            judge = valid(office.canwait("plan", "job.yaml", "--json"))["judge"]
            assert (judge and tuple(judge.values())) == told
