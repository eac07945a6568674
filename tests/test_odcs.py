"""Contracts as documents of the Open Data Contract Standard: valid by its own schema, and read back as they were."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import canwait
from canwait import errors, publishing
from canwait.freshness import Contract
from canwait.odcs import odcs_text, read_odcs, to_odcs
from simulated import LABEL, changed, desk

SCHEMA = json.loads(resources.files("open_data_contract_standard").joinpath("schema.json").read_text("utf-8"))
CHECK = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)  # the standard's own
WORDS = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=9)
KINDS = [
    {"type": "string"},
    {"type": "integer"},
    {"type": "array", "items": {}},
    {"anyOf": []},
    {"type": ["string", "null"]},
]

contracts = st.lists(
    st.builds(
        Contract, st.just("labels"), st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=9),
        st.integers(1, 10**8), st.sampled_from(["serve", "block", "refresh"]), st.integers(0, 3),
    ),
    unique_by=lambda c: c.reader, max_size=4,
)  # fmt: skip


def document(found: list[Contract], **terms: Any) -> dict[str, Any]:
    all_terms = {
        "id": "urn:canwait:x:labels", "version": 3, "published": True, "owner": "team:support", "schedule": "0 2 * * *",
        "key": "id", "output_schema": LABEL, **terms,
    }  # fmt: skip
    return to_odcs("labels", found, **all_terms)


@given(
    found=contracts,
    owner=st.none() | st.just("team"),
    schedule=st.sampled_from([None, "0 2 * * mon", "0 0 30 2 *"]),
    key=st.none() | st.just("id"),
    fields=st.none() | st.dictionaries(WORDS, st.sampled_from(KINDS), max_size=4),
    embeds=st.booleans(),
)
def test_every_document_is_valid_and_read_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, found: list[Contract], owner: str | None, schedule: str | None,
    key: str | None, fields: dict[str, Any] | None, embeds: bool,
) -> None:  # fmt: skip
    """Whatever the readers, columns and schedule: the standard's own schema accepts it, and the contracts are the same."""
    schema = None if fields is None else {"type": "object", "properties": fields}
    made = document(found, owner=owner, schedule=schedule, key=key, output_schema=schema, embeds=embeds)
    CHECK.validate(made)
    path = tmp_path_factory.mktemp("odcs") / "labels.odcs.yaml"
    path.write_text(odcs_text(made), "utf-8")
    assert read_odcs(path, "labels") == found
    assert yaml.safe_load(path.read_text("utf-8")) == made  # by YAML 1.1, too


def test_tools_that_know_no_readers_see_the_strictest_age_and_the_schedule() -> None:
    """`latency` in the largest whole unit, `frequency` as the longest gap with its cron expression, columns by their type."""
    made = document([Contract("labels", "dash", 86_400, "serve"), Contract("labels", "api", 5400, "block")])
    latency, frequency = made["slaProperties"]
    assert (latency["property"], latency["value"], latency["unit"], latency["element"]) == (
        "latency",
        90,
        "min",
        "labels",
    )
    assert (frequency["value"], frequency["unit"], frequency["schedule"]) == (1, "d", "0 2 * * *")
    columns = {c["name"]: c.get("logicalType") for c in made["schema"][0]["properties"]}
    assert columns == {"id": "string", "label": "string", "urgency": "integer"}


HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: x\nversion: '1'\nstatus: active\n"


@pytest.mark.parametrize(
    ("amount", "seconds"),
    [
        ("value: 24, unit: h", 86_400), ("value: 2, unit: days", 172_800), ("value: 1", 86_400), ("value: 1.5, unit: hr", 5400),
        ("value: '30', unit: Minutes", 1800), ("value: 1, unit: w", 604_800), ("value: 0.0001, unit: h", None),
        ("value: -1, unit: d", None), ("value: soon, unit: d", None), ("value: true, unit: d", None),
        ("value: 3, unit: fortnights", None), ("value: 'inf', unit: d", None),
        ("value: 3650, unit: d", 3650 * 86_400), ("value: 3651, unit: d", None), ("value: 9e15, unit: y", None),
    ],
)  # fmt: skip
def test_a_latency_of_another_tool_is_read_for_the_reader_that_is_named(
    tmp_path: Path, amount: str, seconds: int | None
) -> None:
    """In its units, rounded down; what is no length of time is refused at its line."""
    path = tmp_path / "theirs.yaml"
    path.write_text(f"{HEAD}slaProperties:\n- {{property: latency, {amount}}}\n", "utf-8")
    if seconds is not None:
        assert read_odcs(path, "labels", "dash") == [Contract("labels", "dash", seconds, "block")]
        with pytest.raises(errors.SpecError, match="say --reader NAME"):
            read_odcs(path, "labels")
    else:
        with pytest.raises(errors.SpecError, match=r"theirs.yaml:7:\d+: slaProperties\[0\]: expected a value above 0"):
            read_odcs(path, "labels", "dash")


OURS = "customProperties: [{property: canwaitReaders, value: "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: DataContract\napiVersion: v2.2.2\n", "expected `kind: DataContract`"),
        ("- 1\n", "expected `kind: DataContract`"),
        (HEAD, "there is no `latency`"),
        (f"{HEAD}{OURS}[{{reader: a, maxAgeSeconds: 0}}]}}]\n", "yaml:6:.*from 1"),
        (f"{HEAD}{OURS}[{{reader: a, maxAgeSeconds: true}}]}}]\n", "yaml:6:.*from 1"),
        (f"{HEAD}{OURS}[{{reader: '', maxAgeSeconds: 5}}]}}]\n", "yaml:6:.*from 1"),
        (f"{HEAD}{OURS}[{{reader: a, maxAgeSeconds: 5, onStale: maybe}}]}}]\n", "yaml:6:.*from 1"),
        (f"{HEAD}{OURS}[7]}}]\n", "yaml:6:.*from 1"),
        ("kind: [\n", "theirs.yaml:"),
    ],
)  # fmt: skip
def test_a_document_that_says_nothing_usable_is_refused_at_its_line(tmp_path: Path, text: str, says: str) -> None:
    """Another version, no age, a reader with impossible terms, or no YAML at all."""
    path = tmp_path / "theirs.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(errors.SpecError, match=says):
        read_odcs(path, "labels", "dash")


def test_contracts_go_out_and_come_in_on_the_command_line(tmp_path: Path) -> None:
    """`fresh --odcs` writes what `fresh --from-odcs` states; other terms of a known reader need --revise, and are kept."""
    with desk(tmp_path) as office:
        office.write(6, schedule="0 2 * * *", owner="team")
        office.run()
        assert office.canwait("fresh", "labels", "--reader", "dash", "--max-age", "48h", "--odcs", "out.yaml").code == 0
        path = office.folder / "out.yaml"
        made = yaml.safe_load(path.read_text("utf-8"))
        CHECK.validate(made)
        assert (made["status"], made["team"], made["version"]) == ("active", {"name": "team"}, "1")
        path.write_text(path.read_text("utf-8").replace("maxAgeSeconds: 172800", "maxAgeSeconds: 86400"), "utf-8")
        said = office.canwait("fresh", "labels", "--from-odcs", "out.yaml")
        assert (said.code, "say --revise" in said.err) == (2, True)
        assert office.canwait("fresh", "labels", "--from-odcs", "out.yaml", "--revise").code == 0
        assert office.canwait("fresh", "other", "--from-odcs", "out.yaml").code == 8  # it was never built
        with changed(office.folder, office.env), canwait.connect() as client:
            stated = [publishing.contract_of(client.ledger, job, "dash") for job in ("labels", "other")]
        assert stated == [Contract(job, "dash", 86_400, "block") for job in ("labels", "other")]
