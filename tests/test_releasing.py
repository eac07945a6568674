"""Release under a cap: how much of a shard is sent when the money left cannot hold it all, and what a job that asks waits for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait import holding
from canwait.drills.histories import PRICE
from canwait.forecast import Outlook
from canwait.price import cost_micros, worst_micros
from canwait.releasing import LAST_MILE, Bounds, Part, Room, Stranded, Wait, release
from canwait.types import MarkClass
from simulated import Desk, desk
from world import LOST, End, World, body_of

Line = tuple[int, int]
ONE = (8, 6)  # a line that may cost 2 micros

BOUNDS: st.SearchStrategy[list[Line]] = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 60)), min_size=1, max_size=40
)


def money(left: int, *, limit: int = 100, coming: bool = False, budget: str = "job:job") -> Room:
    return Room(budget, "micros", limit, left, coming)


@st.composite
def rooms(draw: st.DrawFn) -> list[Room]:
    """Limits above a shard, money and tokens, with and without something on its way."""
    units = draw(st.lists(st.sampled_from(["micros", "tokens"]), min_size=1, max_size=4))
    found = []
    for unit in units:
        left = draw(st.integers(-5, 500 if unit == "micros" else 8000))
        limit = draw(st.integers(1, 4)) * max(1, left)
        found.append(Room("b", "micros" if unit == "micros" else "tokens", limit, left, draw(st.booleans())))
    return found


def fits(bounds: Bounds, every: Sequence[Room]) -> bool:
    """Said once more, from the definition."""
    needed = {"micros": worst_micros(bounds, PRICE), "tokens": sum(map(sum, bounds))}
    return all(needed[room.unit] <= room.left for room in every)


# ------------------------------------------------------------------------------------------------------ the decision


@given(BOUNDS, rooms())
def test_a_part_is_the_longest_that_fits(bounds: list[Line], every: list[Room]) -> None:
    """What is sent fits every limit at its worst, one line more would not, and what is not sent now is not given up."""
    match release(bounds, PRICE, every):
        case Part(n):
            assert 1 <= n <= len(bounds)
            assert fits(bounds[:n], every)
            assert n == len(bounds) or not fits(bounds[: n + 1], every)


@given(BOUNDS, rooms())
def test_nothing_waits_for_money_that_does_not_come(bounds: list[Line], every: list[Room]) -> None:
    """A shard waits only while less than a quarter of it fits, and money of a limit that is short may come back."""
    found = release(bounds, PRICE, every)
    n = sum(fits(bounds[:k], every) for k in range(1, len(bounds) + 1))
    if isinstance(found, Wait):
        assert 4 * n < len(bounds)
        assert any(room.coming and not fits(bounds[: n + 1], [room]) for room in every)
    if 4 * n >= len(bounds):
        assert found == Part(n)


@given(BOUNDS, rooms())
def test_only_rows_that_never_fit_end(bounds: list[Line], every: list[Room]) -> None:
    """A row ends unsent where a limit of which nothing comes back cannot hold it alone, or has no more than its last mile."""
    fixed = [room for room in every if not room.coming]
    last = [room for room in fixed if room.left * LAST_MILE < room.limit]
    match release(bounds, PRICE, every):
        case Stranded(lines, _):
            assert list(lines) == sorted(set(lines)) != []
            assert last or not any(fits([bounds[line]], fixed) for line in lines)
            assert last or all(fits([bound], fixed) for n, bound in enumerate(bounds) if n not in lines)


@pytest.mark.parametrize(
    ("n_lines", "left", "coming", "found"),
    [
        (20, 10, True, Part(5)),  # a quarter is no sliver
        (20, 9, True, Wait()),
        (20, 9, False, Part(4)),
        (20, 2, False, Part(1)),
        (4, 2, True, Part(1)),
        (20, 40, True, Part(20)),  # what was short has come back meanwhile
    ],
)
def test_no_slivers_while_money_comes_back(n_lines: int, left: int, coming: bool, found: Wait | Part) -> None:
    """Less than a quarter of a shard waits while money is on its way, and is sent when none is."""
    assert release([ONE] * n_lines, PRICE, [money(left, coming=coming)]) == found


def test_the_narrowest_of_nested_limits_decides() -> None:
    """Money that comes back to one limit is no reason to wait where another, of which none comes, is as short."""
    job, month = money(4, coming=True), money(4, limit=1000, budget="month:2026-11")
    assert release([ONE] * 20, PRICE, [job, replace(month, left=1000)]) == Wait()
    assert release([ONE] * 20, PRICE, [job, month]) == Part(2)
    assert release([ONE] * 20, PRICE, [job, replace(month, left=6)]) == Wait()  # a third row may fit then
    tokens = Room("project:team", "tokens", 1000, 14 * 3, coming=False)
    assert release([ONE] * 20, PRICE, [money(100), tokens]) == Part(3)


def test_the_last_mile_is_not_trickled_away() -> None:
    """Below a 400th of a limit slivers end with what is left in words; what is a quarter of a shard is sent all the same."""
    left = money(2, limit=2 * LAST_MILE)
    assert release([ONE] * 9, PRICE, [left]) == Part(1)
    found = release([ONE] * 9, PRICE, [replace(left, limit=2 * LAST_MILE + 1)])
    assert isinstance(found, Stranded)
    assert list(found.lines) == list(range(9))
    assert found.why == "$0.000002 of $0.000801 is left in job:job: too little to go on with, row by row"
    assert release([ONE] * 4, PRICE, [replace(left, limit=10**6)]) == Part(1)


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (
            money(410_000, limit=60_000_000),
            "$0.410000 of $60.000000 is left in job:job; the cheapest row may cost $0.520000",
        ),
        (
            Room("month:2026-11", "tokens", 60_000_000, 1_300_000, coming=False),
            "1,300,000 of 60,000,000 tokens are left in month:2026-11; the cheapest row may need 2,080,000 tokens",
        ),
        (money(-3, limit=60), "$0.000000 of $0.000060 is left in job:job; the cheapest row may cost $0.520000"),
    ],
)
def test_what_is_stranded_is_said(room: Room, words: str) -> None:
    """The words name what is left, of which limit, and what the cheapest row may take of it."""
    assert release([(0, 4_000_000), (0, 2_080_000)], PRICE, [room]) == Stranded([0, 1], words)


@given(BOUNDS, st.integers(1, 400), st.sets(st.integers(0, 40)))
def test_parts_are_told_from_other_batches(bounds: list[Line], left: int, taken: set[int]) -> None:
    """Where only the number of lines tells batches apart, part and rest have numbers nobody has, if there are such."""
    plain = release(bounds, PRICE, [money(left)])
    told = release(bounds, PRICE, [money(left)], taken=taken)
    if not isinstance(plain, Part) or plain.n_lines == len(bounds):
        assert told == plain
        return
    assert isinstance(told, Part)
    n, rest = told.n_lines, len(bounds) - told.n_lines
    free = {n for n in range(1, plain.n_lines + 1) if not {n, len(bounds) - n} & taken and 2 * n != len(bounds)}
    assert n == max(free, default=plain.n_lines)
    assert not free or (n != rest and not {n, rest} & taken)


# ------------------------------------------------------------------------------------------------------ in the engine


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    return partial(World, tmp_path)


def limited(w: World, micros: int | None, *, tokens: int | None = None, budget: str = "job:job") -> World:
    w.ledger.set_budget(budget, micros=micros, tokens=tokens, now=w.now)
    return w


def truly(w: World) -> int:
    """What all rows cost when each runs once, in micros."""
    return cost_micros([w.provider.usage(body) for shard in w.shards for body in shard], PRICE)


def ended(w: World) -> list[tuple[str | None, str | None]]:
    """Cause and detail of each row's last result, in order."""
    found = []
    for root in w.ledger.query("plan_shards", job="job", plan=w.ledger.job("job")["plan"]):
        tried = [s for s in w.ledger.query("shards_of_root", root=root["shard"]) if s["results_blob"]]
        last = {}
        for shard in sorted(tried, key=lambda s: s["settled_us"]):
            records = pq.read_table(w.blobs.path(shard["results_blob"])).to_pylist()
            last.update({r["line"]: (r["cause"], r["detail"]) for r in records})
        found += [last[line] for line in sorted(last)]
    return found


def never_over(w: World) -> None:
    """No limit was passed at any moment, by the entries in the order they were made; and the books say the bill."""
    for budget in w.ledger.query("budgets"):
        for unit in ("micros", "tokens"):
            limit, entries = budget[f"limit_{unit}"], w.ledger.query("entries", budget=budget["id"])
            sums = accumulate(entry[f"held_{unit}"] + entry[f"spent_{unit}"] for entry in entries)
            assert limit is None or max(sums, default=0) <= limit, budget
    assert w.money == (0, w.billed)
    assert set(w.executed.values()) <= {1}


def test_the_last_shards_shrink(world: Callable[..., World]) -> None:
    """A job whose worst case is far above its limit is done a part at a time, where the limit truly pays for it."""
    w = world(sizes=(8, 8, 8))
    micros = truly(w) * 5 // 4
    assert 3 * w.worst(*range(8)) > micros
    limited(w, micros).run()
    assert w.outcomes == ["OK"] * 24
    assert len(w.sent) > 3
    never_over(w)


def test_money_ends_before_the_rows_do(world: Callable[..., World]) -> None:
    """What is spent at the end is the limit but for less than one row's worst case; the others say how much is stranded."""
    w = limited(world(sizes=(10, 10)), 37).run()
    left = 37 - w.money[1]
    assert left < w.worst(0)
    words = f"$0.00000{left} of $0.000037 is left in job:job; the cheapest row may cost $0.000005"
    assert Counter(ended(w)) == {(None, None): w.outcomes.count("OK"), ("budget", words): w.outcomes.count("FAILED")}
    never_over(w)


def test_a_part_keeps_its_attempt_and_its_place(world: Callable[..., World]) -> None:
    """The part goes next, the rest after it; nothing was tried, so no attempt is lost; and the journal says how many fit."""
    w = world(sizes=(6, 6, 6))
    limited(w, w.worst(*range(9))).run()
    parts = [s for s in w.ledger.query("shards", job="job") if s["id"] != s["root"]]
    assert {s["attempt"] for s in parts} == {1}
    assert w.sent[:2] == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert next(e.reason for e in w.ledger.events() if e.kind == "settled").startswith("3 rows fit: shard")
    never_over(w)


def test_a_budget_of_tokens_shrinks_shards_too(world: Callable[..., World]) -> None:
    """Where tokens are what is short, as many rows go as their tokens at worst allow."""
    w = world(sizes=(6,))
    row = sum(w.ledger.query("shards", job="job")[0][f"{kind}_bound"] for kind in ("input", "output")) // 6
    w = limited(w, None, tokens=2 * row + 1, budget="project:team").run()
    assert w.sent[0] == [0, 1]
    never_over(w)


def test_a_row_that_never_fits_keeps_no_other_back(world: Callable[..., World]) -> None:
    """A row that may cost more than all that is left ends alone; those behind it in its shard are sent."""
    w = world(sizes=())
    w.shards = [[b'{"row": 0, "text": "' + b"y" * 400 + b'"}', body_of(1), body_of(2)]]
    w.open(revision=1)
    w = limited(w, 12).run()
    assert w.outcomes == ["FAILED", "OK", "OK"]
    assert w.sent == [[1, 2]]
    never_over(w)


def test_batches_that_only_their_size_tells_apart_differ(world: Callable[..., World]) -> None:
    """Of an unmarked provider, a part never has as many lines as a batch that is on its way: neither waits for the other."""
    w = world(sizes=(4, 9), mark=MarkClass.UNMARKED)
    limited(w, w.worst(*range(8))).run()
    first, second = [*w.provider.batches.values()][:2]
    assert (len(first.bodies), len(second.bodies)) == (4, 3)  # a fourth row would have fitted
    assert second.created_at < first.ends_at
    never_over(w)


@pytest.mark.parametrize("where", ["rooms", "dropped", "begin_submit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_caller_killed_while_it_shrinks_a_shard(world: Callable[..., World], where: str, when: str) -> None:
    """Killed before or after any write of it, every row is answered in the end, once, and no limit was passed."""
    w = world(sizes=(8, 8))
    limited(w, truly(w) * 5 // 4)
    w.dies_at(f"{when} {where}")
    w.run()
    assert w.outcomes == ["OK"] * 16
    never_over(w)


def test_money_nobody_can_account_for_is_not_waited_for(world: Callable[..., World]) -> None:
    """What is held for rows of unknown fate does not come back, so the rest is sent within what else there is."""
    w = limited(world(sizes=(2, 8), rows={0: [LOST]}, ends=[End(states_usage=False)], attempts=1), 40).run()
    assert w.outcomes[0] == "MISSING"
    assert w.outcomes[2:] == ["OK"] * 8


# ----------------------------------------------------------------------------------------------- two processes at once


def test_two_processes_under_one_limit_never_pass_it(tmp_path: Path) -> None:
    """Two jobs of one owner, run by two processes at once under less than both cost, stay below its limit at every entry."""
    with desk(tmp_path) as office:
        office.write(40)
        parts = {"shard": {"max_rows": 8}, "owner": "team", "load": None, "dedupe": False}
        plans = []
        for name in ("one", "two"):
            office.write_job(name, budget={"usd": 1, "on_exceed": "trim"}, **parts)
            plans.append(office.canwait("plan", f"{name}.yaml", "--json").json)
        limit = int(sum(plan["worst_micros"] for plan in plans) // 5)
        assert office.canwait("budget", "set", "project:team", "--usd", f"{limit / 1e6:.6f}").code == 0
        running = [office.start("run", f"{name}.yaml", "--yes", "--json") for name in ("one", "two")]
        for process in running:
            _, problem = process.communicate(timeout=300)
            assert process.returncode in (0, 6), problem
        with closing(office.ledger()) as ledger:
            assert ledger.check() == []
            entries = ledger.query("entries", budget="project:team")
            assert max(accumulate(e["held_micros"] + e["spent_micros"] for e in entries)) <= limit
            spent = ledger.query("budget", id="project:team")[0]["spent_micros"]
            assert (
                len({e["shard"] for e in entries if e["job"] == "one"})
                > 1
                < len({e["shard"] for e in entries if e["job"] == "two"})
            )
        assert spent == office.simulator.bill_micros() <= limit
        assert spent > 0.85 * limit


# ------------------------------------------------------------------------------------------------------- a job that asks


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Desk]:
    """1,300 different rows whose answers take 1 to 199 of the 400 tokens they may."""
    with desk(tmp_path, answer=lambda body, rng: "four" * rng.randrange(1, 200)) as office:
        office.write(1301, output=None, max_output_tokens=400)
        yield office


def budget(office: Desk, share: str) -> str:
    """Limit the job to a share of its worst case, and have it ask; the limit in USD."""
    office.write_job(output=None, max_output_tokens=400)
    worst = office.canwait("plan", "job.yaml", "--json").json["worst_usd"]
    usd = f"{Decimal(worst) * Decimal(share):.6f}"
    office.write_job(output=None, max_output_tokens=400, budget={"usd": usd, "on_exceed": "ask"})
    return usd


def batches(office: Desk) -> list[int]:
    return [batch.n_rows for batch in office.simulator.batches()]


def test_a_job_that_asks_sends_its_canary_and_then_asks(asking: Desk) -> None:
    """Where the limit does not surely cover the plan, the canary is sent and no more; the question has its numbers."""
    usd = budget(asking, ".2")
    said = asking.run()
    assert (said.code, said.problem["code"]) == (3, "paused")
    assert batches(asking) == [200]
    expected, likely, guaranteed = (said.json[f"{name}_usd"] for name in ("expected", "likely", "guaranteed"))
    assert expected == likely == guaranteed == usd  # as far as the limit lets it go
    pattern = (
        r"expected to cost \$(0\.\d+), guaranteed \(95 %\) at most \$(0\.\d+); the limit is \$(0\.\d+); "
        r"it goes on with: canwait run \S+/job\.yaml --budget (0\.\d+)$"
    )
    found = re.search(pattern, said.json["paused"])
    assert found is not None, said.json["paused"]
    finish, most, limit, enough = map(Decimal, found.groups())
    assert finish < most == enough
    assert limit == Decimal(usd) < enough
    assert "trim" in said.problem["hint"]


def test_a_larger_budget_answers_the_question(asking: Desk) -> None:
    """Asked again under the same limit nothing is sent; under one that surely covers the rest it goes on, paying nothing twice."""
    budget(asking, ".2")
    enough = asking.run().json["paused"].rpartition(" ")[2]
    assert (asking.run().code, batches(asking)) == (3, [200])
    almost = f"{Decimal(enough) - Decimal('0.000001'):.6f}"
    assert (asking.run("job.yaml", "--budget", almost).code, batches(asking)) == (3, [200])
    done = asking.run("job.yaml", "--budget", enough)
    assert (done.code, done.json["ok"]) == (0, 1301)
    assert done.json["confirmed_usd"] == asking.bill_usd()
    assert Decimal(asking.bill_usd()) <= Decimal(enough)
    assert set(asking.simulator.executed().values()) == {1}


def test_a_limit_that_surely_covers_the_plan_raises_no_question(asking: Desk) -> None:
    """After the canary a limit far below the worst case may be enough; then the rest follows it unasked, under the cap."""
    usd = budget(asking, ".8")
    done = asking.run()
    assert (done.code, done.json["ok"]) == (0, 1301)
    assert batches(asking)[0] == 200
    assert Decimal(asking.bill_usd()) <= Decimal(usd)
    with closing(asking.ledger()) as ledger:
        kinds = [event.kind for event in ledger.events()]
        held = [event for event in ledger.events() if event.kind == "blocked" and "canary comes first" in event.reason]
    assert kinds.index("settled") < kinds.index("budget_answered")
    assert len(held) == 1


def test_all_shards_but_the_canary_wait_together(tmp_path: Path) -> None:
    """While the canary is out every other shard of its plan says that it waits for it, and none is sent."""
    with desk(tmp_path, speed=600, answer=lambda body, rng: "four") as office:
        office.write(1301, output=None, max_output_tokens=400, shard={"max_rows": 300})
        worst = Decimal(office.canwait("plan", "job.yaml", "--json").json["worst_usd"])
        ask = {"usd": f"{worst / 2:.6f}", "on_exceed": "ask"}
        office.write_job(output=None, max_output_tokens=400, shard={"max_rows": 300}, budget=ask)
        assert office.run("job.yaml", "--timeout", "1s").code == 9
        with closing(office.ledger()) as ledger:
            shards = ledger.query("shards", job="labels")
        assert batches(office) == [200]
        planned = [shard for shard in shards if shard["state"] == "planned"]
        assert len(planned) == len(shards) - 1 > 2
        assert {shard["blocked"] for shard in planned} == {
            "the canary comes first: it says what the other rows will cost"
        }


def test_a_job_file_that_asks_no_more_goes_as_far_as_the_money(asking: Desk) -> None:
    """With `trim` in the place of `ask` the question is gone: what the limit pays for is sent, and it is not passed."""
    usd = budget(asking, ".2")
    assert asking.run().code == 3
    asking.write_job(output=None, max_output_tokens=400, budget={"usd": usd, "on_exceed": "trim"})
    done = asking.run()
    assert done.code == 6
    assert 200 < done.json["ok"] < 1301
    assert Decimal(usd) * Decimal("0.99") < Decimal(asking.bill_usd()) <= Decimal(usd)


def test_a_canary_that_does_not_fit_is_asked_about_before(asking: Desk) -> None:
    """Where the limit cannot hold even the canary, a person is asked before anything is sent."""
    budget(asking, ".1")
    said = asking.run()
    assert (said.code, said.problem["code"], batches(asking)) == (3, "human_needed", [])


def known(finish: int, likely: int, guaranteed: int | None, *, limit: int, paid: int = 10) -> Outlook:
    within = [min(n, limit) for n in (finish, likely)]
    most = None if guaranteed is None else min(guaranteed, limit)
    return Outlook(*within, most, limit, finish, guaranteed, paid, 100, 90, 10, 3, "10 random rows", True)


@pytest.mark.parametrize(
    ("outlook", "left", "file", "words"),
    [
        (known(60, 70, 90, limit=90), 80, None, None),
        (known(60, 70, 91, limit=90), 80, "a b.yaml", "all of it is expected to cost $0.000060, likely at most $0.000070, "
         "guaranteed (95 %) at most $0.000091; the limit is $0.000090; it goes on with: canwait run 'a b.yaml' --budget 0.000091"),
        (known(60, 95, 99, limit=90), 75, None, "all of it is expected to cost $0.000060, guaranteed (95 %) at most $0.000099; "
         "the limit is $0.000090; it goes on with: a budget of 0.000104 USD"),  # other plans have spent 5 of it
        (known(60, 70, None, limit=90), 80, "j.yaml", "what the rest costs is not known, at worst $0.000200; the limit is "
         "$0.000090; it goes on with: canwait run j.yaml --budget 0.000210"),
        (None, 80, "j.yaml", "what the rest costs is not known, at worst $0.000200; the limit is $0.000090; it goes on with: "
         "canwait run j.yaml --budget 0.000210"),
        (None, 200, None, None),
        (known(60, 70, 900, limit=90), 200, None, None),
    ],
)  # fmt: skip
def test_the_question(outlook: Outlook | None, left: int, file: str | None, words: str | None) -> None:
    """It is asked unless what the rest surely costs fits what is left, and names the limit that would do."""
    said = holding.question(outlook, money(left, limit=90), 200, file)
    assert said == (None if words is None else f"the canary is back: {words}")
