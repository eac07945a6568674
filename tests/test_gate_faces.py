"""Nothing is readable before acceptance, by any face: each way to unaccepted answers is gone once, and all faces looked at.

The machine of test_gate_jobs.py looks for ways nobody has thought of. Here are those that somebody has, each with what may be
read and what must be: a gate that lets nothing through would be no gate.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from canwait import loading, reading
from canwait.client import Client, JobHandle
from canwait.errors import GatePending, GateRefused, NotBuilt, NotFound, SinkBusy
from canwait.spec import load_job
from gated import LABEL, client_of, inspection, judged, model
from simulated import changed

LABELS = re.compile(r"answer \d+ to [A-Za-z: ]+ \d+")
STRICT = {"refuse_if_bad_rate": "30%"}
LOOSE = {"refuse_if_bad_rate": "60%", "sure": "60%"}
RULED = {**LOOSE, "rules": ["why != 'odd'"]}
PARTS = {**LOOSE, "strata": "why", "on_refuse": "load_accepted_strata"}


class Stopped(Exception):
    """A test has seen enough."""


class World:
    """Jobs over rows `even 0`, `odd 1`, ...; every answer that is paid is another label, and its `why` is even or odd."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.paid: list[str] = []

    def job(self, name: str = "labels", rows: Any = range(6), **fields: Any) -> JobHandle:
        """The job as its file has it now."""
        texts = [f"{'odd' if n % 2 else 'even'} {n}" for n in rows]
        (self.folder / f"{name}.csv").write_text("id,text\n" + "".join(f"k{t[-1]},{t}\n" for t in texts), "utf-8")
        spec = {
            "version": 1, "name": name, "source": {"uri": f"{name}.csv", "key": "id"}, "model": "openai/gpt-6-luna",
            "prompt": "{{ text }}", "output": LABEL, "max_output_tokens": 40, "urgency": "batch", "budget": {"usd": 1},
            "load": f"{name}.parquet", "quality": STRICT,
        } | fields  # fmt: skip
        self.file(name).write_text(json.dumps({k: v for k, v in spec.items() if v is not None}), "utf-8")
        return self.handle(name)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def handle(self, name: str = "labels") -> JobHandle:
        return self.client.job(load_job(self.file(name)))

    def run(self, handle: JobHandle, only: str | None = None) -> set[str]:
        """Run it; the answers that were paid for it."""
        n_before = len(self.paid)
        handle.run(only=only)
        return set(self.paid[n_before:])

    def say(self, handle: JobHandle, is_good: Callable[[str], bool]) -> None:
        judged(inspection(handle), lambda _, answer: is_good(json.loads(answer)["why"]), self.client)

    def accept(self, handle: JobHandle) -> None:
        self.say(handle, lambda _: True)

    def refuse(self, handle: JobHandle) -> None:
        self.say(handle, lambda _: False)

    # ----------------------------------------------------------------------------------------------------- the faces

    def live(self, name: str = "labels") -> dict[str, set[str]]:
        """What can be read of a job's answers as they stand, by face; also what its other faces let slip."""
        handle = self.handle(name)
        table = pa.table({"id": [f"k{n}" for n in range(9)]})
        faces: dict[str, Callable[[], object]] = {
            "rows": lambda: list(handle.rows()),
            "results": lambda: list(handle.results().rows),
            "frame": lambda: JobHandle(self.client, handle.value, None, table, table).frame()["label"].to_pylist(),
            "canwait results": lambda: self.canwait("results", self.file(name)),
        }
        return {face: self.labels(read) for face, read in faces.items()}

    def slips(self, name: str = "labels") -> set[str]:
        """What stands in words that anybody may see."""
        verbs = [("status", name, "--json"), ("why", name, "--json"), ("fresh", name, "--json")]
        told = [self.canwait(*verb) for verb in verbs]
        return self.labels(lambda: [told, self.handle(name).failed, list(self.client.ledger.events(count=10_000))])

    def kept(self, name: str = "labels") -> dict[str, set[str]]:
        """What its readers get."""
        with reading.reader(name, as_="dash", max_age="30d", client=self.client) as reader:
            faces: dict[str, Callable[[], object]] = {
                "get": lambda: [reader.get(f"k{n}") for n in range(9)],
                "frame": lambda: reader.frame().to_pylist(),
                "batches": lambda: [batch.to_pylist() for batch in reader.batches()],
            }
            return {face: self.labels(read) for face, read in faces.items()}

    def target(self, name: str = "labels") -> set[str]:
        """What stands in its target, and beside it, after a load was tried in every way."""
        handle = self.handle(name)
        with suppress(GatePending, GateRefused, NotFound):
            handle.run() if handle.value.load is None else handle.load()  # without a target rows are published by a run
        self.canwait("load", self.file(name))
        return self.labels(lambda: [pq.read_table(path).to_pylist() for path in self.folder.glob(f"{name}*.parquet")])

    def labels(self, read: Callable[[], object]) -> set[str]:
        with suppress(GatePending, GateRefused, NotFound, NotBuilt):
            return set(LABELS.findall(str(read())))
        return set()

    def canwait(self, *args: object) -> str:
        from canwait.cli import main
        from canwait.cli.face import Face

        Face.current = None
        out = io.StringIO()
        env = {
            "CANWAIT_DB": f"sqlite:///{self.folder}/ledger.db",
            "CANWAIT_HOME": str(self.folder),
            "OPENAI_API_KEY": "key",
        }
        with changed(self.folder, env), redirect_stdout(out), redirect_stderr(out), suppress(SystemExit):
            main([str(arg) for arg in args])
        return out.getvalue()

    def reads(self, live: set[str], *, kept: set[str] | None = None, target: set[str] | None = None) -> None:
        """Exactly these can be read, by every face; of readers and the target the same unless it is said."""
        assert self.live() == dict.fromkeys(("rows", "results", "frame", "canwait results"), live)
        assert self.target() == (live if target is None else target)
        assert self.kept() == dict.fromkeys(("get", "frame", "batches"), live if kept is None else kept)
        assert self.slips() == set()


@contextmanager
def world_of(folder: Path) -> Iterator[World]:
    numbers = count()

    def answer(text: str) -> dict[str, str]:
        label = f"answer {next(numbers)} to {text}"
        world.paid.append(label)
        return {"label": label, "why": text.split()[-2]}

    with client_of(folder, answer) as client:
        world = World(client, folder)
        yield world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_of(tmp_path) as w:
        yield w


def evens(labels: set[str]) -> set[str]:
    return {label for label in labels if "even" in label}


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_without_a_gate_all_is_read(world: World) -> None:
    """The faces can read: what they do not show later stands behind a gate."""
    world.reads(world.run(world.job(quality=None)))


def test_nothing_before_the_verdict_and_all_after(world: World) -> None:
    """While its rows run, while its sample is judged, and once it is accepted."""
    handle = world.job()
    handle.open()
    world.reads(set())
    paid = world.run(handle)
    world.reads(set())
    at_gate = inspection(handle)
    from canwait.lots import Word

    at_gate.judge(0, Word.GOOD, None, world.client.clock.now())
    world.reads(set())
    world.accept(handle)
    world.reads(paid)


def test_nothing_while_rows_run(world: World) -> None:
    """Half of the answers are no lot: nobody can judge them, and what has come home is read by nobody."""
    handle = world.job(shard={"max_rows": 3})
    handle.open()

    def stop() -> None:
        if handle.figures().pending == 3:
            raise Stopped

    with pytest.raises(Stopped):
        world.client.engine.run("labels", watch=stop)
    world.reads(set())
    with pytest.raises(GatePending, match="has not finished"):
        inspection(world.handle())


def test_nothing_after_a_refusal(world: World) -> None:
    """By no face, however the file is changed, however often it is run; new answers are as unread until they are judged."""
    world.run(world.job())
    world.refuse(world.handle())
    world.reads(set())
    for fields in ({"quality": None}, {"quality": LOOSE}, {"rows": range(5)}, {"rows": range(7), "quality": None}):
        world.run(world.job(**fields))
        world.reads(set())
    world.accept(world.handle())  # what was refused before is no new chance: there is nothing to judge
    world.reads(set())
    new = world.run(world.job(prompt="Again: {{ text }}"))
    world.reads(set())
    world.accept(world.handle())
    world.reads(new)


@pytest.mark.parametrize("load", ["labels.parquet", None])
@pytest.mark.parametrize("quality", [RULED, PARTS])
def test_what_breaks_a_rule_or_is_of_a_refused_stratum_is_left_out(
    world: World, quality: Any, load: str | None
) -> None:
    """Of a lot that was accepted in part the rest is read by nobody, whether it is loaded or published alone."""
    paid = world.run(world.job(quality=quality, load=load))
    world.reads(set())
    world.say(world.handle(), lambda why: why == "even")
    world.reads(evens(paid), target=evens(paid) if load else set())


def test_rules_alone_open_and_close(world: World) -> None:
    """Where rules judge, they do so for every face."""
    rules = {"refuse_if_bad_rate": "60%", "by": "rule", "rules": ["why != 'odd'"]}
    world.reads(evens(world.run(world.job(quality=rules))))
    world.run(world.job(quality={**rules, "refuse_if_bad_rate": "50%"}))
    world.reads(set(), target=world.target())


def test_a_judged_canary_opens_nothing(world: World) -> None:
    """Its acceptance has the rest sent, and that is all: of no row anything is read before the job's own verdict."""
    fields = {"shard": {"max_rows": 3}, "quality": {**STRICT, "canary": "judged"}}
    canary = world.run(world.job(**fields))
    assert len(canary) == 3
    world.reads(set())
    world.accept(world.handle())
    world.reads(set())
    rest = world.run(world.handle())
    assert len(rest) == 3
    world.reads(set())
    assert not world.run(world.job("other", quality=None)) & (canary | rest)
    assert not set().union(*world.live("other").values()) & (canary | rest)
    world.accept(world.handle())
    world.reads(canary | rest)


def test_an_accepted_canary_heals_nothing(world: World) -> None:
    """Its answers, refused with the job's, stay refused however few rows are left beside them."""
    fields = {"shard": {"max_rows": 3}, "quality": {**LOOSE, "canary": "judged"}}
    world.run(world.job(**fields))
    world.accept(world.handle())
    world.run(world.handle())
    world.refuse(world.handle())
    world.run(world.job(rows=range(5), **fields))
    world.accept(world.handle())
    world.reads(set())


def test_what_is_asked_again_by_itself_is_judged_anew(world: World) -> None:
    """With `on_refuse: rerun` neither the refused answers nor those in their place are read before an acceptance."""
    old = world.run(world.job(quality={**STRICT, "on_refuse": "rerun"}))
    world.refuse(world.handle())
    world.reads(set())
    new = world.run(world.handle())
    assert (len(new), new & old) == (6, set())
    world.reads(set())
    world.accept(world.handle())
    world.reads(new)


# ---------------------------------------------------------------------------------------------------- gates that change


def test_a_gate_put_up_later_holds_for_what_was_paid(world: World) -> None:
    """At once for who reads answers as they stand; a publication from before is served until its answers are refused."""
    paid = world.run(world.job(quality=None))
    world.job()
    world.reads(set(), kept=paid, target=paid)
    assert world.run(world.handle()) == set()
    world.reads(set(), kept=paid, target=paid)
    world.refuse(world.handle())
    world.reads(set(), kept=set(), target=paid)


def test_a_stricter_gate_is_not_passed_by_an_old_verdict(world: World) -> None:
    """What a looser gate accepted is judged anew: at the file's change, after a run, and for good."""
    paid = world.run(world.job(quality=LOOSE))
    world.accept(world.handle())
    world.reads(paid)
    for stricter in (STRICT, {**STRICT, "rules": ["why != 'none'"]}, {**STRICT, "strata": "why"}):
        world.job(quality=stricter)
        world.reads(set(), kept=paid, target=paid)
        assert world.run(world.handle()) == set()
        world.reads(set(), kept=paid, target=paid)
    world.refuse(world.handle())
    world.reads(set(), kept=set(), target=paid)


BY_RULE = {"refuse_if_bad_rate": "60%", "sure": "60%", "by": "rule", "rules": ["why != 'none'"]}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LOOSE, {**LOOSE, "refuse_if_bad_rate": "50%"}),
        (LOOSE, {**LOOSE, "sure": "70%"}),
        (LOOSE, RULED),
        (LOOSE, {**LOOSE, "strata": "why"}),
        (LOOSE, {**LOOSE, "preset": "zero"}),
        (BY_RULE, {**BY_RULE, "by": "human"}),
        (PARTS, {**PARTS, "on_refuse": "quarantine"}),
    ],
)  # fmt: skip
def test_stricter_in_one_thing_is_stricter(world: World, before: Any, after: Any) -> None:
    """Whatever it is that the file's gate asks more of, answers that the older one let through wait for it; and it decides."""
    paid = world.run(world.job(quality=before))

    def is_good(why: str) -> bool:
        return before is not PARTS or why == "even"

    if before is not BY_RULE:
        world.say(world.handle(), is_good)
    read = evens(paid) if before is PARTS else paid
    world.reads(read)
    world.job(quality=after)
    assert set().union(*world.live().values()) == set()
    world.run(world.handle())
    world.reads(set(), kept=read, target=read)
    world.say(world.handle(), is_good)
    assert world.live()["rows"] == (evens(paid) if after is RULED or before is PARTS else paid)


def test_an_acceptance_by_a_looser_gate_heals_nothing(world: World) -> None:
    """An answer that a strict gate refused is not read for a looser one that had accepted it, or would."""
    paid = world.run(world.job(quality=LOOSE))
    world.accept(world.handle())
    world.reads(paid)
    world.run(world.job())
    world.refuse(world.handle())
    for quality in (LOOSE, None):
        world.run(world.job(quality=quality, rows=range(5)))
        world.accept(world.handle())
        world.reads(set(), kept=set(), target=paid)


def test_a_gate_as_strict_heals(world: World) -> None:
    """Refused by a loose gate after a strict one had accepted it: what the strict one let through can be read."""
    paid = world.run(world.job())
    world.accept(world.handle())
    world.run(world.job(quality=LOOSE))
    world.reads(paid)


def test_among_many_new_rows_a_refused_answer_is_left_out(world: World) -> None:
    """The new ones are accepted and read; the old ones stay refused."""
    old = world.run(world.job(rows=range(2), quality=LOOSE))
    world.refuse(world.handle())
    new = world.run(world.job(rows=range(9), quality=LOOSE))
    world.accept(world.handle())
    world.reads(new - old)


def test_answers_that_were_asked_again_and_refused_again_stay_refused(world: World) -> None:
    """That others were withdrawn for them before does not make them new."""
    world.run(world.job())
    world.refuse(world.handle())
    world.run(world.handle(), "rejected")
    world.refuse(world.handle())
    world.run(world.job(rows=range(5)))
    world.accept(world.handle())
    world.reads(set())


# -------------------------------------------------------------------------------------------------------- other jobs


def shared(world: World, quality: Any) -> set[str]:
    """What another job without a gate, or with this one, reads of a job's answers."""
    world.run(world.job("other", quality=quality))
    found = world.live("other")["rows"] | world.kept("other")["get"] | world.target("other")
    assert set(map(frozenset, world.live("other").values())) == {frozenset(world.live("other")["rows"])}
    return found


@pytest.mark.parametrize("quality", [STRICT, RULED, PARTS])
def test_other_jobs_take_only_what_passed_whole(world: World, quality: Any) -> None:
    """Before the verdict, after a refusal and after an acceptance in part another job pays for answers of its own."""
    paid = world.run(world.job(quality=quality))
    assert not shared(world, None) & paid
    world.say(world.handle(), lambda why: why == "even" and quality is not STRICT)
    other = world.job("third", quality=None)
    assert not world.run(other) & paid
    assert not world.live("third")["rows"] & paid


def test_other_jobs_take_what_passed_whole(world: World) -> None:
    """They pay nothing, and read the same answers."""
    paid = world.run(world.job())
    world.accept(world.handle())
    assert world.run(world.job("other", quality=None)) == set()
    assert shared(world, None) == paid


def test_answers_asked_again_by_their_owner_stand_at_his_gate_elsewhere(world: World) -> None:
    """A job that shares them reads the new ones only once the owner's gate has let them through."""
    paid = world.run(world.job(quality=LOOSE))
    world.accept(world.handle())
    assert shared(world, None) == paid
    world.run(world.job())
    world.refuse(world.handle())
    new = world.run(world.handle(), "rejected")
    assert new
    assert set().union(*world.live("other").values()) & new == set()
    world.accept(world.handle())
    world.reads(new, target=world.target())


# ------------------------------------------------------------------------------------------------ answers that change


@pytest.mark.parametrize("only", ["failed", "rejected"])
def test_answers_that_come_later_are_judged_anew(world: World, only: str) -> None:
    """Of rows that are sent again nothing is read while they run, nor before they are judged; what was published stays."""
    fault = {"text 0", "odd 1"} if only == "failed" else set[str]()
    model(world.client).failing = fault
    quality = LOOSE if only == "failed" else RULED
    paid = world.run(world.job(quality=quality))
    world.accept(world.handle())
    read = evens(paid) if only == "rejected" else {label for label in paid if "odd 1" not in label}
    world.reads(read)
    model(world.client).failing = set()
    new = world.run(world.handle(), only)
    assert new
    world.reads(set(), kept=read, target=read)
    world.refuse(world.handle())
    assert world.live()["rows"] == set()
    assert not world.kept()["get"] & new
    assert not world.target() & new


def test_what_changes_between_the_gate_and_the_rows_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody asks rows again, or puts up a gate, after the gate was asked and before its rows are opened."""
    from canwait import inspection as shell

    paid = world.run(world.job(quality=RULED))
    world.accept(world.handle())
    real, happens = shell.answers, [lambda: world.run(world.handle(), "rejected")]

    def answers(*args: Any) -> Any:
        while happens:
            happens.pop()()
        return real(*args)

    monkeypatch.setattr(shell, "answers", answers)
    assert world.labels(lambda: list(world.handle().rows())) == set()
    happens.append(lambda: world.job("free", quality=STRICT).open())
    free = world.job("free", rows=range(3, 6), prompt="Free: {{ text }}", quality=None)
    monkeypatch.setattr(shell, "answers", real)
    world.run(free)
    monkeypatch.setattr(shell, "answers", answers)
    world_free = world.client.job(free.value)
    happens[:] = [lambda: world.job("free", rows=range(3, 6), prompt="Free: {{ text }}", quality=STRICT).open()]
    assert world.labels(lambda: list(world_free.rows())) == set()
    assert paid


@pytest.mark.parametrize("load", ["labels.parquet", None])
@pytest.mark.parametrize(("before", "refused"), [(LOOSE, True), (LOOSE, False), (None, True)])
def test_what_is_refused_while_it_is_loaded_is_published_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch, load: str | None, before: Any, refused: bool
) -> None:
    """A stricter gate, or a first one, is put up behind the back of a load, and refuses, or has yet to be asked: what it loads
    is read by none, and the target is as it was."""
    older, real, happens = world.job(quality=before, load=load), loading.keeping, [True]
    if before is not None:
        world.run(older)
        world.accept(older)

    def keeping(*args: Any) -> Any:
        if happens:
            happens.clear()
            world.run(world.job(load=load))
            if refused:
                world.refuse(world.handle())
        return real(*args)

    monkeypatch.setattr(loading, "keeping", keeping)
    with suppress(SinkBusy, GatePending, GateRefused):
        older.run()
    assert not happens
    world.reads(set())
