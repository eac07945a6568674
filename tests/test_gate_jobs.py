"""The gate around whole jobs: no path reads what was not accepted; the command line; a real data set, right and wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pty
import random
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from canwait import gates, judging, load, publishing, reading
from canwait.cli.inspect import judge_by
from canwait.client import Client, JobHandle
from canwait.drills.small import scratch_folder
from canwait.errors import AlreadyJudged, GatePending, GateRefused, NotBuilt, NotFound, PlanStale, SpecError
from canwait.lots import Verdict, Word
from canwait.outcomes import Ok
from canwait.simulator.answers import last_user_text
from canwait.types import Quality
from gated import client_of, inspection, job, judged, model
from simulated import Desk, desk
from test_cli import valid

NAMES = ("labels", "renamed")
GATES: dict[str, Any] = {
    "none": None,
    "loose": {"refuse_if_bad_rate": "60%", "sure": "60%"},
    "strict": {"refuse_if_bad_rate": "30%"},
    "ruled": {"refuse_if_bad_rate": "60%", "sure": "60%", "rules": ["why != 'broken'"]},
    "by rule": {"refuse_if_bad_rate": "60%", "by": "rule", "rules": ["why != 'broken'"]},
    "strata": {"refuse_if_bad_rate": "60%", "sure": "60%", "strata": "why", "on_refuse": "load_accepted_strata"},
    "canary": {"refuse_if_bad_rate": "60%", "sure": "60%", "canary": "judged"},
    "rerun": {"refuse_if_bad_rate": "60%", "sure": "60%", "strata": "why", "on_refuse": "rerun"},
    "judge": {
        "refuse_if_bad_rate": "60%", "sure": "60%", "by": "judge", "rows": 3,
        "judge": {"model": "openai/gpt-6-luna", "prompt": "JUDGE {{ answer }}", "budget": {"usd": 1}},
    },
}  # fmt: skip


class GateMachine(RuleBasedStateMachine):
    """Jobs whose files change at any time, people who judge, and readers at every face.

    Every answer that is ever paid for is another text. One that was asked for by a file with a gate may be read only once a
    gate has accepted it; whichever job, file or face reads. One that a job's gate has refused is read through that job only
    where a gate of its as strict accepted it: whatever was paid before there was a gate, is asked again, or shared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        self.folder = self.exits.enter_context(scratch_folder())
        self.numbers = count()
        self.client: Client = self.exits.enter_context(client_of(self.folder, self.answer))
        self.under_gate = False
        self.is_broken = False  # the model: nothing it says can be used
        self.refusals: dict[tuple[str, str], list[Quality]] = {}  # by job and answer
        self.acceptances: dict[tuple[str, str], list[Quality]] = {}
        self.restricted: set[str] = set()
        self.accepted: set[str] = set()
        self.seen: set[str] = set()  # lots
        self.files: dict[str, dict[str, Any]] = {}

    def teardown(self) -> None:
        self.exits.close()

    def answer(self, text: str) -> dict[str, str]:
        number = next(self.numbers)
        if self.is_broken:
            return {"lable": text}
        if text.startswith("JUDGE"):
            return {"verdict": "bad" if number % 3 else "good"}
        label = f"answer {number}"
        if self.under_gate:
            self.restricted.add(label)
        return {"label": label, "why": "broken" if number % 7 == 3 else "fine"}

    def handle(self, name: str) -> JobHandle:
        return job(self.client, self.folder, name=name, **self.files[name])

    @initialize(gates=st.tuples(*[st.sampled_from(list(GATES))] * 2), max_rows=st.sampled_from([3, 100]))
    def begin(self, gates: tuple[str, str], max_rows: int) -> None:
        shared = {"texts": 6, "prompt": "{{ text }}", "shard": {"max_rows": max_rows}}
        self.files = {name: {**shared, "quality": GATES[gate]} for name, gate in zip(NAMES, gates, strict=True)}

    # -------------------------------------------------------------------------------------------------- what happens

    @rule(
        name=st.sampled_from(NAMES),
        gate=st.sampled_from(["none", "none", "none", *GATES]),
        texts=st.integers(5, 7),
        prompt=st.sampled_from(["{{ text }}", "{{ text }}", "Again: {{ text }}"]),
    )
    def edit(self, name: str, gate: str, texts: int, prompt: str) -> None:
        self.files[name] |= {"quality": GATES[gate], "texts": texts, "prompt": prompt}

    @rule(is_broken=st.booleans())
    def change_the_model(self, is_broken: bool) -> None:
        self.is_broken = is_broken

    @rule(
        name=st.sampled_from(NAMES),
        failing=st.sets(st.sampled_from(["text 0", "text 1", "Again: text 2"])),
        past=st.booleans(),
    )
    def run(self, name: str, failing: set[str], past: bool) -> None:
        model(self.client).failing = failing
        self.under_gate = self.files[name]["quality"] is not None
        with suppress(NotFound):
            self.handle(name).run(past_canary=past)
        self.read_target(name)

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(["", ":wrong", ":why != 'broken'", ":fine", ":broken"]))
    def run_rejected(self, name: str, what: str) -> None:
        self.under_gate = True
        with suppress(NotFound, PlanStale, SpecError):
            self.handle(name).run(only=f"rejected{what}")
        self.read_target(name)

    @rule(name=st.sampled_from(NAMES))
    def open(self, name: str) -> None:
        self.handle(name).open()

    @rule(name=st.sampled_from(NAMES))
    def run_failed(self, name: str) -> None:
        model(self.client).failing = set()
        self.under_gate = self.files[name]["quality"] is not None
        with suppress(NotFound, PlanStale):
            self.handle(name).run(only="failed")
        self.read_target(name)

    @rule(name=st.sampled_from(NAMES), words=st.lists(st.sampled_from([*Word, Word.GOOD, Word.GOOD]), max_size=8))
    def judge(self, name: str, words: list[Word]) -> None:
        with suppress(NotFound, GatePending, AlreadyJudged, SpecError):
            at_gate = self.handle(name).inspect("ann")
            for word in words:
                if at_gate is not None and (row := at_gate.next) is not None:
                    at_gate.judge(row.place, word, "wrong" if word is Word.BAD else None, self.client.clock.now())

    def decide(self, name: str, is_good: bool) -> None:
        with suppress(NotFound, GatePending):
            at_gate = self.handle(name).inspect("bob")
            if at_gate is not None:
                judged(at_gate, lambda *_: is_good, self.client)

    def go_around(self, name: str, gate: str, texts: int, is_good: bool, again: bool) -> None:
        """All that may be done between two readings, at once."""
        self.files[name] |= {"quality": GATES[gate], "texts": texts}
        self.run(name, set(), False)
        self.decide(name, is_good)
        self.note_verdicts()
        if again:
            self.run_rejected(name, "")
        self.read(name, "rows", False)
        self.read_the_publication(name)

    @rule(name=st.sampled_from(NAMES), is_good=st.booleans())
    def run_and_decide(self, name: str, is_good: bool) -> None:
        self.is_broken = False
        self.run(name, set(), False)
        self.decide(name, is_good)

    @rule(name=st.sampled_from(NAMES))
    def undo(self, name: str) -> None:
        with suppress(NotFound, GatePending, AlreadyJudged):
            at_gate = self.handle(name).inspect("ann")
            if at_gate is not None:
                at_gate.undo(self.client.clock.now())

    @rule(name=st.sampled_from(NAMES))
    def cancel(self, name: str) -> None:
        with suppress(NotFound):
            self.client.cancel(name)

    # --------------------------------------------------------------------------------------------------------- readers

    @rule(name=st.sampled_from(NAMES))
    def load(self, name: str) -> None:
        with suppress(NotFound, GatePending, GateRefused):
            self.handle(name).load()
        self.read_target(name)

    @rule(name=st.sampled_from(NAMES), face=st.sampled_from(["rows", "results", "frame", "reader"]), runs=st.booleans())
    def read(self, name: str, face: str, runs: bool) -> None:
        if runs:
            self.run(name, set(), False)
        handle = self.handle(name)
        faces: dict[str, Callable[[], set[str]]] = {
            "rows": lambda: {row.value["label"] for row in handle.rows() if isinstance(row, Ok)},
            "results": lambda: {row.value["label"] for row in handle.results().rows if isinstance(row, Ok)},
            "frame": lambda: self.framed(handle),
            "reader": lambda: self.served_to(name),
        }
        with suppress(NotFound, NotBuilt, GatePending, GateRefused):
            labels = faces[face]()
            self.saw(labels)
            self.served(name, labels)

    @rule(name=st.sampled_from(NAMES))
    def read_the_publication(self, name: str) -> None:
        if newest := publishing.newest(self.client.ledger, name, self.client.clock.now()):
            labels = set(map(str, pq.read_table(self.client.blobs.path(newest.blob))["label"].to_pylist()))
            self.saw(labels)
            self.served(name, labels)

    def served_to(self, name: str) -> set[str]:
        with reading.reader(name, as_="dash", max_age="30d", client=self.client) as reader:
            labels = set(map(str, reader.frame()["label"].to_pylist()))
            assert labels == {hit.value["label"] for n in range(8) if (hit := reader.get(f"k{n}"))}
            return labels

    def framed(self, handle: JobHandle) -> set[str]:
        table = pa.table({"id": [f"k{n}" for n in range(8)]})
        of_frame = JobHandle(self.client, handle.value, None, table, table)
        return {label for label in of_frame.frame()["label"].to_pylist() if label is not None}

    def read_target(self, name: str) -> None:
        if (self.folder / f"{name}.parquet").exists():
            self.saw({str(label) for label in pq.read_table(self.folder / f"{name}.parquet")["label"].to_pylist()})

    def saw(self, labels: set[str]) -> None:
        self.note_verdicts()
        assert labels & self.restricted <= self.accepted

    def served(self, name: str, labels: set[str]) -> None:
        assert not {label for label in labels if self.is_refused(name, label)}

    def is_refused(self, name: str, label: str) -> bool:
        """Whether a gate of a job refused an answer, and none as strict has accepted it there."""
        accepted = self.acceptances.get((name, label), [])
        refusals = self.refusals.get((name, label), [])
        return not all(any(gates.as_strict(other, gate) for other in accepted) for gate in refusals)

    @invariant()
    def note_verdicts(self) -> None:
        """What gates have accepted by now, read past them."""
        for name in NAMES if self.files else ():
            with suppress(NotFound):
                found = judging.standing(self.client.ledger, name)
                if found.lot is None or found.lot.id in self.seen or found.lot.verdict is None:
                    continue
                self.seen.add(found.lot.id)
                said = judging.look(self.client.ledger, found.lot.id)[1]
                refused = found.lot.refused({place: judgement.word for place, judgement in said.items()})
                names = {found.lot.parts[n].name for n in refused}
                with load.answers(self.client.ledger, self.client.blobs, name) as rows:
                    answers = [json.loads(text) for _, text in rows.texts()]
                quality = found.quality
                assert quality is not None
                out = {"broken"} if quality.rules else set()
                for answer in answers:
                    of = name, answer["label"]
                    if answer["why"] not in out and (answer["why"] if quality.strata else "") in names:
                        self.refusals.setdefault(of, []).append(quality)
                out |= {"broken", "fine"} - set(found.lot.taken) if quality.strata else set()
                for answer in answers if found.lot.verdict is Verdict.ACCEPTED else ():
                    if answer["why"] not in out and not self.is_refused(name, answer["label"]):
                        self.accepted.add(answer["label"])
                        self.acceptances.setdefault((name, answer["label"]), []).append(quality)


def test_no_path_reads_what_was_not_accepted() -> None:
    """Whatever is opened, run, judged, undone, sent again, edited, renamed, cancelled or loaded, by any face."""
    run_state_machine_as_test(
        GateMachine, settings=settings(max_examples=25, stateful_step_count=25, suppress_health_check=list(HealthCheck))
    )


ways = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["none", "loose", "strict"]),
    st.integers(5, 7),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ways, min_size=2, max_size=5))
def test_no_way_around_a_refusal(steps: list[tuple[str, str, int, bool, bool]]) -> None:
    """Gates put up, made stricter and taken away, rows that come and go, two jobs that share them, rows asked again."""
    machine = GateMachine()
    try:
        machine.begin(("none", "none"), 100)
        for step in steps:
            machine.go_around(*step)
    finally:
        machine.teardown()


def test_a_lot_that_waits_learns_of_refusals_beside_it(tmp_path: Path) -> None:
    """Of two plans that share rows one waits to be judged while the other's are refused: it is drawn anew, with these as
    refused, and nobody who has the old sample before him can accept it."""
    with client_of(tmp_path) as client:
        quality = {"refuse_if_bad_rate": "60%", "sure": "60%"}
        six = job(client, tmp_path, 6, quality=quality)
        six.run()
        stale = six.inspect("ann")
        assert stale is not None
        assert stale.next is not None
        five = job(client, tmp_path, 5, quality=quality)
        five.run()
        at_gate = five.inspect("bob")
        assert at_gate is not None
        judged(at_gate, lambda *_: False, client)
        with pytest.raises(AlreadyJudged, match="refused since"):
            stale.judge(stale.next.place, Word.GOOD, None, client.clock.now())
        six = job(client, tmp_path, 6, quality=quality)
        six.run()
        with pytest.raises(GateRefused, match="5 of 6 rows were refused before"):
            six.load()


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as d:
        yield d


def accepts(n: int) -> list[object]:
    return [word for place in range(n) for word in ("--accept", place)]


def test_a_script_judges_and_loads(office: Desk) -> None:
    """`inspect --json` shows the rows, `--accept` and `--reject` judge them, and once accepted `run` and `load` load."""
    office.write(40, quality={"refuse_if_bad_rate": "10%"})
    said = office.run()
    assert (said.code, valid(said)["gate"]["verdict"]) == (3, None)
    seen = office.canwait("inspect", "labels", "--json")
    value = valid(seen)
    assert (seen.code, value["next"], value["sample"][0]["input"][:9]) == (3, 0, "Classify:")
    assert office.canwait("results", "job.yaml").code == 3
    half = office.canwait("inspect", "job.yaml", "--accept", 1, "--as", "ann", "--json")
    assert (half.code, half.json["reason"]) == (3, "1 of at most 40 rows judged, 0 bad")
    assert half.json["sample"][1]["who"] == "ann"
    assert valid(office.canwait("status", "labels", "--json"))["jobs"][0]["reason"] == half.json["reason"]
    done = office.canwait("inspect", "labels", "--accept", 0, *accepts(40)[4:], "--json")
    assert (done.code, valid(done)["verdict"]) == (0, "accepted")
    assert "were not needed" in done.err
    assert valid(office.canwait("load", "job.yaml", "--json"))["loaded"]["rows"] == 40
    assert office.canwait("results", "job.yaml").code == 0


def test_a_refusal_has_its_exit_code(office: Desk) -> None:
    """Judged bad, `inspect`, `run`, `load` and `results` end with 7, say why, and nothing is loaded."""
    office.write(40, quality={"refuse_if_bad_rate": "10%"})
    office.run()
    rejects = [word for place in range(20) for word in ("--reject", f"{place}=wrong")]
    said = office.canwait("inspect", "labels", *rejects)
    assert (said.code, "was refused by its gate" in said.err) == (7, True)
    assert "rejected: wrong" in said.out
    for verb in (("run", "job.yaml", "--yes"), ("load", "job.yaml"), ("results", "job.yaml")):
        assert (verb, office.canwait(*verb).code) == (verb, 7)
    assert valid(office.canwait("why", "labels", "--json"))["job"]["state"] == "refused"
    assert not (office.folder / "labels.parquet").exists()


def test_words_that_say_nothing_are_refused(office: Desk) -> None:
    """A cause nobody knows, a place outside the sample, a job without a gate: each is said, and nothing is judged."""
    office.write(40, quality={"refuse_if_bad_rate": "10%"})
    office.run()
    assert office.canwait("inspect", "labels", "--reject", "3").code == 2
    assert "wrong, format, unsafe, input" in office.canwait("inspect", "labels", "--reject", "3=ugly").err
    assert "No row 40 is in the sample" in office.canwait("inspect", "labels", "--accept", 40).err
    office.write_job("free", quality=None, load=None)
    office.run("free.yaml")
    assert "has no gate" in office.canwait("inspect", "free.yaml").err
    assert office.canwait("inspect", "labels", "--json").json["reason"] == "0 of at most 40 rows judged, 0 bad"


def test_a_broken_rule_is_told(office: Desk) -> None:
    """`why` counts the rows that the gate left out, and a run that left some out ends with 6."""
    quality = {"refuse_if_bad_rate": "99%", "sure": "50%", "by": "rule", "rules": ["urgency < 50"]}
    office.write(40, quality=quality)
    said = office.run()
    assert said.code == 6
    causes = valid(office.canwait("why", "labels", "--json"))["causes"]
    assert causes == {"rule": said.json["failed"]}
    assert said.json["loaded"] == {"to": "labels.parquet", "rows": 40 - causes["rule"], "failed": causes["rule"]}


def test_one_row_after_another_at_the_keyboard(tmp_path: Path) -> None:
    """a, r with its cause, s, u and q do what they say; who quits goes on later where they were."""
    with client_of(tmp_path) as client:
        handle = job(client, tmp_path)
        handle.run()
        at_gate = inspection(handle)
        shown: list[str] = []
        pressed = iter("a" + "rw" + "rx" + "s" + "u" + "u" + "?" + "q")
        judge_by(at_gate, lambda: next(pressed), shown.append, client.clock.now)
        assert {place: (said.word, said.cause) for place, said in at_gate.said.items()} == {0: (Word.GOOD, None)}
        assert "row 1:" in shown[-1]
        again = inspection(handle)
        assert again.next is not None
        assert again.next.place == 1
        judge_by(again, lambda: "a", shown.append, client.clock.now)
        assert again.lot.verdict is Verdict.ACCEPTED


def test_a_terminal_is_asked(tmp_path: Path) -> None:
    """`canwait inspect JOB` at a terminal reads single keys, and ends with the verdict's exit code."""
    with client_of(tmp_path) as client:
        job(client, tmp_path).run()
    ours, theirs = pty.openpty()
    env = os.environ | {"CANWAIT_DB": f"sqlite:///{tmp_path}/ledger.db"}
    command = [sys.executable, "-m", "canwait", "inspect", "labels"]
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        told = b""
        for key in "aaq":
            while b"[q] quit" not in told:
                told += os.read(ours, 65_536)
            while termios.tcgetattr(ours)[3] & termios.ICANON:  # what comes before single keys are read is thrown away
                time.sleep(0.005)
            told = b""
            os.write(ours, key.encode())
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, "2 of at most 60 rows judged, 0 bad" in out) == (3, True)


def test_what_a_model_says_does_not_steer_the_terminal(tmp_path: Path) -> None:
    """Control characters of an answer or an input are shown as what they are not: nothing."""
    with client_of(tmp_path, lambda text: {"label": "\x1b[2Jgone\x07"}) as client:
        handle = job(client, tmp_path, 20)
        handle.run()
        shown: list[str] = []
        judge_by(inspection(handle), lambda: "q", shown.append, client.clock.now)
        assert "\x1b" not in "".join(shown)
        assert "\x07" not in "".join(shown)


# --------------------------------------------------------------------------------------------------------- a data set


@pytest.mark.parametrize(("wrong", "code"), [(0.0, 0), (0.2, 7)])
def test_banking77_right_and_wrong(tmp_path: Path, shared: Path, wrong: float, code: int) -> None:
    """A model that is wrong on 20 % of BANKING77 is refused and nothing is loaded; one that is right is accepted, and loads."""
    source = shared / "data" / "text" / "banking77_test.csv"
    if not source.is_file():
        pytest.skip("no BANKING77 in the shared folder")
    with source.open(encoding="utf-8", newline="") as file:
        truth = {row["text"].strip(): row["category"] for row in csv.DictReader(file)}
    labels = sorted(set(truth.values()))

    def answer(body: Any, rng: random.Random) -> str:
        text = last_user_text(body)
        is_wrong = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < wrong * 2**32
        label = truth[text]
        return json.dumps({"label": labels[labels.index(label) - 1] if is_wrong else label})

    schema = {
        "type": "object",
        "properties": {"label": {"enum": labels}},
        "required": ["label"],
        "additionalProperties": False,
    }
    with desk(tmp_path, answer=answer) as office:
        texts = list(truth)
        with (office.folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *((f"{n:05d}", text) for n, text in enumerate(texts))])
        office.write_job(prompt="{{ text }}", output=schema, quality={"refuse_if_bad_rate": "10%"})
        assert office.run().code == 3
        while (seen := office.canwait("inspect", "labels", "--json").json)["next"] is not None:
            words: list[object] = []
            for row in seen["sample"][seen["next"] : seen["next"] + 30]:
                good = json.loads(row["answer"])["label"] == truth[row["input"]]
                words += ["--accept", row["place"]] if good else ["--reject", f"{row['place']}=wrong"]
            office.canwait("inspect", "labels", *words)
        assert office.run().code == code
        if code:
            assert not (office.folder / "labels.parquet").exists()
        else:
            table = pq.read_table(office.folder / "labels.parquet")
            assert table["label"].to_pylist() == [truth[text] for text in texts]
