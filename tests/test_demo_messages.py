"""The demo's own rows and job: varied, awkward on purpose, and inside the budget that is stated."""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources

from canwait.spec import load_job

FOLDER = resources.files("canwait") / "demo"
TEXT = (FOLDER / "support_messages.csv").read_bytes().decode()
ROWS = list(csv.DictReader(TEXT.splitlines(keepends=True)))


def test_the_messages_are_many_and_some_are_exact_duplicates() -> None:
    """A few hundred messages under unique ids that are text, about one in twelve of them said before."""
    messages = Counter(row["message"] for row in ROWS)
    assert len(ROWS) >= 240
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert all(row["id"].startswith("0") and row["id"].isdigit() and len(row["id"]) == 6 for row in ROWS)
    assert 0.06 < 1 - len(messages) / len(ROWS) < 0.10


def test_the_messages_are_awkward() -> None:
    """What breaks careless tools is in there: quotes, commas, line ends, tabs, templates, markup, many scripts."""
    together = "\0".join(row["message"] for row in ROWS)
    marks = ['"', ",", "\n", "\r\n", "\t", "\\", "'", ";", "{{ ", "{% raw %}", "<script>", "=HYPERLINK", "DROP TABLE"]
    scripts = ["請", "靴", "호", "ي", "ח", "д", "ந", "ö", "Ñ", "£"]
    unseen = ["\u200d", "\u200b", "\u202e", "\u0301", "\ufffd", "👍"]
    assert [mark for mark in marks + scripts + unseen if mark not in together] == []


def test_the_job_is_a_job() -> None:
    """The job file is valid, bounds its answers and its budget, and asks the local model."""
    with resources.as_file(FOLDER / "support.yaml") as path:
        job = load_job(path)
    assert (job.name, job.provider, job.source.uri, job.source.key) == (
        "support-demo",
        "local",
        "support_messages.csv",
        "id",
    )
    assert job.max_output_tokens <= 16
    assert (job.budget.micros, bool(job.budget.tokens)) == (1_000_000, True)
