"""Promises of outlook.py and of the faces that show it: four numbers in order, from what is known and from nothing else."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gated
from canwait import forecast, views
from canwait import outlook as module
from canwait.client import Client, JobHandle
from canwait.drills.histories import TERMS, VirtualClock
from canwait.forecast import Outlook, before
from canwait.lines import read_lines
from canwait.outlook import outlook
from canwait.price import worst_micros
from canwait.providers.fake import FakeBatch, FakeProvider, RowFate
from canwait.settings import settings
from canwait.spec import job_from_dict
from canwait.types import Canary, Outcome, PriceStep, Rescue, ShardFile, Usage
from simulated import desk
from test_plan import PLAN

CAP, ROWS, SHARD_ROWS = 2000, 3000, 500


class Writer(FakeProvider):
    """Answers row `n length` with `length` output tokens. Its canary is back after 10 s, the shards one each 100 s, as they
    stand in the source. What happens to a row the first time it is sent is told by `meets`, by its number."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, random.Random(0), name="openai")
        self.meets: dict[int, RowFate] = {}
        self.states_usage = False
        self.n_input: Callable[[int], int] = lambda number: 30

    def usage(self, body: bytes) -> Usage:  # type: ignore[override]
        number, length = row_of(body)
        return Usage(self.n_input(number), length)

    def _create(self, shard: ShardFile, bodies: list[bytes]) -> FakeBatch:
        batch = super()._create(shard, bodies)
        numbers = [row_of(body)[0] for body in bodies]
        turn = 1 + sorted(numbers)[len(numbers) // 2] // 540 if len(numbers) > 200 else 0
        batch.ends_at = self.clock.now() + timedelta(seconds=10 + 100 * turn)
        batch.fates = [self.meets.pop(number, "ok") for number in numbers]
        batch.states_usage = self.states_usage
        return batch


def row_of(body: bytes) -> tuple[int, int]:
    request = json.loads(body)
    number, length = (request["input"] if "input" in request else request["messages"][-1]["content"]).split()[:2]
    return int(number), int(length)


LENGTHS = sorted(min(CAP, 1 + int(random.Random(n).lognormvariate(5, 0.8))) for n in range(ROWS))  # shortest first


@contextmanager
def office(folder: Path, url: str = "") -> Iterator[Client]:
    clock = VirtualClock()
    env = {"CANWAIT_DB": url or f"sqlite:///{folder}/ledger.db", "CANWAIT_HOME": str(folder), "OPENAI_API_KEY": "k"}
    with Client(settings(env | {"CANWAIT_POLL_S": "5"}), clock) as client:
        client.adopt(Writer(clock))
        yield client


def writer(client: Client) -> Writer:
    found = client.provider("openai")
    assert isinstance(found, Writer)
    return found


def job(client: Client, folder: Path, lengths: list[int] = LENGTHS, **fields: Any) -> JobHandle:
    rows = "".join(f"k{n},{n} {length}\n" for n, length in enumerate(lengths))
    (folder / "rows.csv").write_text("id,text\n" + rows, "utf-8")
    spec = {
        "version": 1, "name": "essays", "source": {"uri": "rows.csv", "key": "id"}, "model": "openai/gpt-6-luna",
        "prompt": "{{ text }}", "max_output_tokens": CAP, "urgency": "batch", "budget": {"usd": 100},
        "shard": {"max_rows": SHARD_ROWS},
    } | fields  # fmt: skip
    return client.job(job_from_dict(spec, base_dir=folder))


def after(handle: JobHandle, seconds: float) -> Outlook:
    """What is told when the job has run so much longer."""
    client = handle.client
    handle.run(until=client.clock.now() + timedelta(seconds=seconds))
    return outlook(client.ledger, client.blobs, handle.name)


def truth(client: Client) -> int:
    """What the whole job is billed in the end."""
    money = views.figures(client.ledger, "essays")
    assert money.finished
    return money.confirmed_micros


def in_order(o: Outlook) -> bool:
    numbers = [o.paid_micros, o.expected_micros, o.likely_micros, o.guaranteed_micros, o.cannot_exceed_micros]
    known = [n for n in numbers if n is not None]
    return known == sorted(known) and o.expected_micros <= o.finish_micros


# ------------------------------------------------------------------------------------------------------ while it goes on


def test_before_its_canary_a_job_is_worth_what_its_plan_says(tmp_path: Path) -> None:
    """Nothing random is known: likely and guaranteed are missing, never guessed, and it is said when they will be known."""
    with office(tmp_path) as client:
        planned = job(client, tmp_path).plan()
        assert planned.value.canary is not None
        told = after(job(client, tmp_path), 1)
        assert (told.likely_micros, told.guaranteed_micros, told.n_pilot) == (None, None, 0)
        assert told.basis == planned.outlook.basis == "known after the canary: 200 random rows"
        assert told.expected_micros == planned.value.expected_micros == planned.outlook.expected_micros
        assert told.cannot_exceed_micros == 3 * planned.value.worst_micros == planned.outlook.cannot_exceed_micros


def test_the_canary_tells_what_a_sorted_job_costs(tmp_path: Path) -> None:
    """Rows are sorted by length, so half of the shards cost far less than half; their lengths are never taken for the others'.

    At every look the guarantee and the likely bound hold, and the expectation is near the truth.
    """
    with office(tmp_path) as client:
        handle, seen = job(client, tmp_path), []
        for seconds in (20, 100, 100, 100, 100, 100):
            seen.append(after(handle, seconds))
        handle.run()
        whole = truth(client)
        assert [told.n_pending for told in seen] == [2800 - sum_of_homes(client, n) for n in range(6)]
        for told in seen:
            assert in_order(told)
            assert told.likely_micros is not None
            assert told.guaranteed_micros is not None
            assert abs(told.expected_micros - whole) < whole / 5
            assert whole <= told.likely_micros <= told.guaranteed_micros
        naive = seen[3].paid_micros * 3000 // (3000 - seen[3].n_pending)  # of the rows that have ended, in their order
        assert naive < 0.7 * whole
        assert seen[0].n_pilot > seen[3].n_pilot > 0
        last = outlook(client.ledger, client.blobs, "essays")
        assert (
            last.expected_micros == last.likely_micros == last.guaranteed_micros == last.cannot_exceed_micros == whole
        )
        assert (last.basis, str(last)) == ("every row has ended", f"{forecast.usd(whole)} in all")


def sum_of_homes(client: Client, n_shards: int) -> int:
    """Rows of the first shards in the source's order."""
    order = {
        row["ordinal"]: row["shard"] for row in client.ledger.query("plan_order", job="essays", plan=digest(client))
    }
    sizes = {row["id"]: row["n_lines"] for row in client.ledger.query("plan_money", job="essays", plan=digest(client))}
    canary = json.loads(client.ledger.query("plan", job="essays", digest=digest(client))[0]["body"])["canary"]["shard"]
    return sum([sizes[order[ordinal]] for ordinal in sorted(order) if order[ordinal] != canary][:n_shards])


def digest(client: Client) -> str:
    return str(client.ledger.job("essays")["plan"])


def test_a_canary_sent_again_tells_its_final_results(tmp_path: Path) -> None:
    """While lines of the canary are sent again nothing is told; then what their retry was billed stands for them."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path)
        drawn = canary_rows(handle)
        writer(client).meets = {drawn[0]: "error", drawn[1]: "expired", drawn[2]: "error"}
        assert after(handle, 16).likely_micros is None
        told = after(handle, 25)
        assert told.n_pilot == 200
        assert told.expected_micros == pytest.approx(mean_cost(client, drawn) * ROWS, rel=1e-3)


def test_rows_that_never_ran_are_no_lengths(tmp_path: Path) -> None:
    """Of a canary whose every third line expired for good, the others speak, and not as if those had cost nothing."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path, retry={"attempts": 1})
        drawn = canary_rows(handle)
        writer(client).meets = dict.fromkeys(drawn[::3], "expired")
        told = after(handle, 20)
        ran = [n for place, n in enumerate(drawn) if place % 3]
        assert told.n_pilot == len(ran) == 133
        assert told.expected_micros - told.paid_micros == pytest.approx(mean_cost(client, ran) * 2800, rel=1e-4)


def test_a_refused_row_costs_nothing_and_an_unusable_one_what_was_billed(tmp_path: Path) -> None:
    """The length of a line is what was billed for it, whatever came of it."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path, retry={"attempts": 1})
        drawn = canary_rows(handle)
        writer(client).meets = dict.fromkeys(drawn[:100], "error") | dict.fromkeys(drawn[100:150], "truncated")
        told = after(handle, 20)
        output = sum(LENGTHS[n] for n in drawn[100:])
        per_row = (Decimal(output) / 200 * client_price(client).output) + 30 * client_price(client).input
        assert told.n_pilot == 200
        assert told.expected_micros - told.paid_micros == pytest.approx(float(per_row * 2800), rel=1e-3)


def test_a_row_whose_bill_is_unknown_counts_with_its_bound(tmp_path: Path) -> None:
    """Rows the provider never returned may have been billed: their money counts as paid, their length as the longest."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path, retry={"attempts": 1})
        drawn = canary_rows(handle)
        writer(client).meets = dict.fromkeys(drawn[:20], "missing_billed")
        told = after(handle, 20)
        figures = handle.figures()
        assert told.paid_micros == figures.confirmed_micros + figures.unknown_micros > figures.confirmed_micros
        output = sum(LENGTHS[n] for n in drawn[20:]) + 20 * CAP
        still = (Decimal(output) / 200 * client_price(client).output) + 30 * client_price(client).input
        assert told.expected_micros - told.paid_micros == pytest.approx(float(still * 2800), rel=1e-3)


def test_of_few_rows_nothing_is_promised(tmp_path: Path) -> None:
    """A job too small for a canary expects what its plan did, and says that likely and guaranteed are not known."""
    with office(tmp_path) as client:
        told = after(job(client, tmp_path, LENGTHS[::10]), 1)
        assert (told.likely_micros, told.guaranteed_micros) == (None, None)
        assert told.basis == "unknown: no random sample is drawn of 300 new rows"
        assert told.expected_micros == job(client, tmp_path, LENGTHS[::10]).plan().expected_usd * 1_000_000


def test_output_that_is_not_there_needs_no_sample(tmp_path: Path) -> None:
    """Of embeddings all numbers are known before the first answer: their cost is their input's."""
    with office(tmp_path) as client:
        fields = {"endpoint": "embeddings", "model": "openai/text-embedding-3-small", "max_output_tokens": None}
        told = after(job(client, tmp_path, **fields), 1)
        assert told.likely_micros is not None
        assert told.guaranteed_micros is not None
        assert told.expected_micros == told.likely_micros <= told.guaranteed_micros <= told.cannot_exceed_micros
        assert told.basis == "its rows have no output"


def test_long_requests_are_never_promised_cheaper_than_they_are(tmp_path: Path) -> None:
    """Where a long request costs more, the guarantee prices what may be long at what it then costs, and still holds."""
    (tmp_path / "prices.toml").write_text(
        """
        [[price]]
        provider = "openai"
        model = "gpt-6-luna"
        tier = "batch"
        input = "1"
        output = "2"
        steps = [{ above_input_tokens = 50, input = "3", output = "9" }]
        since = 2026-01-01
        source = "a contract"
        """
    )
    with office(tmp_path) as client:
        writer(client).n_input = lambda number: 46 + number % 10
        handle, seen = job(client, tmp_path, prompt="{{ text }} please do tell us more"), []
        for seconds in (20, 200, 200):
            seen.append(after(handle, seconds))
        handle.run()
        whole = truth(client)
        for told in seen:
            assert in_order(told)
            assert told.guaranteed_micros is not None
            assert told.guaranteed_micros >= whole


# ---------------------------------------------------------------------------------------------------------- under a limit


def test_the_job_s_limit_is_hard(tmp_path: Path) -> None:
    """No number passes the limit; what finishing would take is told apart, with the words for it."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path, budget={"usd": 0.12, "on_exceed": "trim"})
        told = after(handle, 20)
        assert told.is_limited
        assert told.cannot_exceed_micros == 120_000
        assert in_order(told)
        assert told.finish_micros > 120_000
        assert told.finish_guaranteed_micros is not None
        assert told.finish_guaranteed_micros > told.guaranteed_micros == told.cannot_exceed_micros
        assert "the budget ends before the rows do" in told.notes[0]
        assert "within the budget" in str(told)


def test_what_another_plan_spent_is_not_left_for_this_one(tmp_path: Path) -> None:
    """The limit is the job's: rows added later can cost what earlier ones left of it, and their numbers are theirs alone."""
    with office(tmp_path) as client:
        job(client, tmp_path).run()
        spent = truth(client)
        longer = [*LENGTHS, *LENGTHS]
        handle = job(client, tmp_path, longer, budget={"usd": 1})
        quoted = handle.plan()
        assert quoted.value.n_new == ROWS
        assert quoted.outlook.cannot_exceed_micros == 1_000_000 - spent
        told = after(job(client, tmp_path, longer, budget={"usd": 1, "on_exceed": "trim"}), 1)
        assert (told.n_rows, told.paid_micros) == (ROWS, 0)
        assert told.cannot_exceed_micros == 1_000_000 - spent


def test_of_shards_that_come_from_an_earlier_plan_a_canary_says_nothing(tmp_path: Path) -> None:
    """Where prices changed, what an earlier plan did not send goes on in the latest: its canary never drew from that."""
    with office(tmp_path) as client:
        job(client, tmp_path, [CAP] * ROWS).open()
        (tmp_path / "prices.toml").write_text(
            '[[price]]\nprovider = "openai"\nmodel = "gpt-6-luna"\ntier = "batch"\ninput = "1"\noutput = "5"\n'
            'since = 2026-01-01\nsource = "a contract"\n'
        )
        told = after(job(client, tmp_path, [CAP] * ROWS + [1] * ROWS), 60)
        assert told.n_pending > 0
        assert told.guaranteed_micros is None


def test_rows_that_are_paid_again_are_in_the_guarantee(tmp_path: Path) -> None:
    """What was billed for answers that never came is no part of what the job must still cost, for those are asked again."""
    with office(tmp_path) as client:
        writer(client).states_usage = True
        handle = job(client, tmp_path)
        drawn = set(canary_rows(handle))
        told = after(handle, 20)
        writer(client).meets = {n: "missing_billed" for n in range(ROWS) if n % 3 and n not in drawn}
        for batch in writer(client).batches.values():
            if len(batch.bodies) > 200:
                batch.fates = [writer(client).meets.pop(row_of(body)[0], "ok") for body in batch.bodies]
        writer(client).meets.clear()
        while told.n_pending > SHARD_ROWS:
            told = after(handle, 100)
        handle.run()
        assert told.guaranteed_micros is not None
        assert truth(client) <= told.guaranteed_micros


# ------------------------------------------------------------------------------------------------------------------- faces


def test_every_face_says_the_same(tmp_path: Path, ledger_url: str) -> None:
    """Plan, handle and outlook of a job under way name the same four numbers, in dollars, on either database."""
    with office(tmp_path, ledger_url) as client:
        handle = job(client, tmp_path)
        told = after(handle, 20)
        planned, cost = handle.plan(), handle.cost
        assert planned.outlook == told
        assert cost.expected == planned.expected_usd == Decimal(told.expected_micros).scaleb(-6)
        assert cost.likely == planned.likely_usd == Decimal(told.likely_micros or 0).scaleb(-6)
        assert cost.guaranteed == planned.guaranteed_usd
        assert cost.cannot_exceed == planned.cannot_exceed_usd
        assert f"  cost       {told}\n" in planned.explain()


def test_every_verb_says_the_same(tmp_path: Path) -> None:
    """`run`, `status` and `why` print one cost and one report, in JSON and in words; `plan` says before what cannot be known."""
    with desk(tmp_path, "row_refusal=2") as d:
        d.write(12)
        planned = d.canwait("plan", "job.yaml", "--json").json
        assert (planned["likely_usd"], planned["guaranteed_usd"], planned["canary"]) == (None, None, None)
        assert planned["expected_usd"] <= planned["worst_usd"] <= planned["cannot_exceed_usd"]
        assert planned["basis"] == "unknown: no random sample is drawn of 11 new rows"
        assert "  cost       expected $" in d.canwait("plan", "job.yaml").out
        ran = d.run().json
        assert ran["report"]["waste_usd"] == {"refused": ran["wasted_usd"]}
        assert (
            ran["likely_usd"]
            == ran["guaranteed_usd"]
            == ran["cannot_exceed_usd"]
            == ran["confirmed_usd"]
            == d.bill_usd()
        )
        for job in (
            d.canwait("status", "labels", "--json").json["jobs"][0],
            d.canwait("why", "labels", "--json").json["job"],
        ):
            assert {name: job[name] for name in job if name in ran} == {name: ran[name] for name in job if name in ran}
        words = d.canwait("status", "labels").out
        assert (
            f"  came to   ${ran['report']['useful_usd']} useful, ${ran['wasted_usd']} wasted: ${ran['wasted_usd']} refused\n"
            in words
        )
        assert "  again     0.0% of the rows sent were sent again, 8.3% of the dataset are duplicates\n" in words
        assert " for each accepted row, 1.22 answers paid for it (1." in words
        assert "  cost  " not in words  # it has ended: what it cost is what was paid


def test_a_lower_bound_is_advised_with_what_it_does(tmp_path: Path) -> None:
    """A bound far above what the canary wrote is named, with what a lower one would cut and the rounds it would save."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path, max_output_tokens=20_000, budget={"usd": 1.1, "on_exceed": "trim"})
        told = after(handle, 20)
        assert told.advice is not None
        assert told.rounds is not None
        assert told.rounds > told.advice.bound_rounds == 1
        words = str(told.advice)
        assert words.startswith(
            "max_output_tokens is 102 times the mean answer of the canary: 1,024 would have cut none"
        )
        assert words.endswith(f"and bring {forecast.math.ceil(told.rounds)} rounds down to 1")
        assert told.notes[-1] == words


# -------------------------------------------------------------------------------------------------------- what it came to


def test_a_report_names_where_money_was_wasted(tmp_path: Path) -> None:
    """Useful and wasted are what was paid, the waste by cause; shares are of the rows sent and of the dataset."""
    with office(tmp_path) as client:
        handle = job(client, tmp_path, [100] * 40)
        (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text() + "again,0 100\nonce more,1 100\n")
        writer(client).meets = dict.fromkeys(range(4), "truncated") | {7: "error", 8: "expired"}
        handle.run(until=client.clock.now())
        assert views.report(client.ledger, "essays") is None
        handle.run()
        found = views.report(client.ledger, "essays")
        assert found is not None
        each = 100 * client_price(client).output + 30 * client_price(client).input
        assert found.paid_micros == truth(client) == found.useful_micros + found.wasted_micros
        assert found.waste == {"length": views.figures(client.ledger, "essays").wasted_micros}
        assert found.wasted_micros == pytest.approx(float(4 * each), abs=1)
        assert found.sent_again == (Decimal(2) / 42).quantize(Decimal("1e-6"))
        assert found.duplicates == (Decimal(2) / 42).quantize(Decimal("1e-6"))
        assert found.per_accepted_micros == (Decimal(found.paid_micros) / 36).quantize(Decimal("1e-6"))
        assert found.paid_attempts == (Decimal(40) / 36).quantize(Decimal("1e-6"))
        by_rates = forecast.paid_per_useful(2 / 42, 4 / 40, 4 / 6, 3)
        assert found.paid_attempts_by_failures == Decimal(f"{by_rates:.4f}")


def test_what_was_paid_twice_is_waste_with_a_name(tmp_path: Path) -> None:
    """Rows that were billed, never came back and were asked again stand in the waste, and beside it."""
    with office(tmp_path) as client:
        writer(client).states_usage = True
        writer(client).meets = dict.fromkeys(range(5), "missing_billed")
        job(client, tmp_path, [100] * 40).run()
        found = views.report(client.ledger, "essays")
        assert found is not None
        assert found.waste == {"missing": found.wasted_micros}
        assert found.paid_twice_micros == found.wasted_micros > 0


def test_nothing_useful_is_no_rate(tmp_path: Path) -> None:
    """Where no row was accepted, a cost for each of them is missing, not zero."""
    with office(tmp_path) as client:
        writer(client).meets = dict.fromkeys(range(40), "truncated")
        job(client, tmp_path, [100] * 40, retry={"attempts": 1}).run()
        found = views.report(client.ledger, "essays")
        assert found is not None
        assert (found.useful_micros, found.per_accepted_micros, found.paid_attempts) == (0, None, None)
        assert found.paid_attempts_by_failures is None


def test_what_the_gate_left_out_is_waste(tmp_path: Path) -> None:
    """While rows wait to be judged there is no report; rows that break a rule are waste by their share, a refused lot whole."""
    with gated.client_of(tmp_path) as client:
        handle = gated.job(client, tmp_path, quality={**gated.GATE, "rules": ["why != 'text 3'"]})
        handle.run()
        assert views.report(client.ledger, "labels") is None
        gated.judged(gated.inspection(handle), lambda asked, answer: True, client)
        found = views.report(client.ledger, "labels")
        assert found is not None
        assert found.waste == {"rule": -(-found.paid_micros // 100)}
        assert found.per_accepted_micros == (Decimal(found.paid_micros) / 99).quantize(Decimal("1e-6"))

        worse = gated.job(client, tmp_path, name="worse")
        worse.run()
        gated.judged(gated.inspection(worse), lambda asked, answer: False, client)
        found = views.report(client.ledger, "worse")
        assert found is not None
        assert (found.useful_micros, found.per_accepted_micros) == (0, None)
        assert found.waste["gate"] == found.paid_micros


# ------------------------------------------------------------------------------------------------------------------- laws

PRICE = PLAN.price
LONG = replace(PRICE, steps=(PriceStep(50, Decimal(3), Decimal(9), None, None),))


@st.composite
def under_way(draw: st.DrawFn) -> tuple[module._Planned, module._Work, module._Pilot | None, int | None]:
    """Any state a plan's shards may be in, with any canary, price and limit."""
    price = draw(st.sampled_from([PRICE, LONG]))
    terms = replace(TERMS, price=price, attempts=draw(st.integers(1, 3)))
    shards: list[dict[str, Any]] = []
    for n in range(draw(st.integers(1, 4))):
        n_lines = draw(st.integers(1, 30))
        ended = draw(st.integers(0, n_lines))
        vector = bytes([Outcome.OK] * ended + [Outcome.PENDING] * (n_lines - ended))
        bounds = [(draw(st.integers(0, 100)), CAP) for _ in range(n_lines)]
        paid = {"confirmed_micros": draw(st.integers(0, 10**5)), "output_tokens": draw(st.integers(0, ended * CAP))}
        blank = {
            "held_micros": 0,
            "redo_micros": 0,
            "twice_micros": 0,
            "provider": "fake",
            "attempt": 1,
            "role": "work",
            "input_tokens": 0,
        }
        whole = {
            "n_lines": n_lines,
            "worst_micros": worst_micros(bounds, price),
            "input_bound": sum(i for i, _ in bounds),
        }
        root = {**blank, **paid, **whole, "id": f"s{n}", "root": f"s{n}", "output_bound": n_lines * CAP}
        root |= {"state": "settled" if ended else "submitted", "vector": zlib.compress(vector)}
        shards.append(root)
        if 0 < ended < n_lines:
            rest = bounds[ended:]
            again = {
                "n_lines": len(rest),
                "worst_micros": worst_micros(rest, price),
                "input_bound": sum(i for i, _ in rest),
            }
            state = {
                "id": f"s{n}-1",
                "root": f"s{n}",
                "output_bound": len(rest) * CAP,
                "state": "planned",
                "vector": None,
            }
            shards.append({**blank, **again, **state, "attempt": 2, "confirmed_micros": 0, "output_tokens": 0})
    work = module._work(shards)  # type: ignore[arg-type]
    body = {"expected_micros": draw(st.integers(0, sum(s["worst_micros"] for s in shards if s["vector"])))}
    plan = module._planned(body | {"tokens_kind": draw(st.sampled_from(["bounded", "counted"]))}, terms, work)
    lengths = tuple(draw(st.lists(st.integers(0, CAP), min_size=2, max_size=30)))
    homes = tuple(f"s{draw(st.integers(0, 3))}" for _ in lengths)
    per_bound = draw(st.none() | st.fractions(0, 1, max_denominator=50))
    aside = tuple(draw(st.lists(st.tuples(st.sampled_from(["s0", "s1"]), st.integers(1, 9)), max_size=2)))
    pilot = draw(st.none() | st.just(module._Pilot(lengths[: plan.n_new], homes[: plan.n_new], per_bound, aside)))
    if pilot is not None and len(pilot.lengths) < 2:
        pilot = None
    return plan, work, pilot, draw(st.none() | st.integers(work.paid + work.held, work.paid + 10**6))


@given(under_way())
def test_the_numbers_stand_in_order_whatever_happens(
    state: tuple[module._Planned, module._Work, module._Pilot | None, int | None],
) -> None:
    """Paid <= expected <= likely <= guaranteed <= cannot exceed <= the limit; nothing open leaves nothing to be unsure of."""
    plan, work, pilot, ceiling = state
    told = module._told(plan, work, pilot, ceiling)
    assert in_order(told)
    assert ceiling is None or told.cannot_exceed_micros <= ceiling
    assert told.paid_micros == work.paid
    if not work.open:
        assert (
            told.expected_micros
            == told.likely_micros
            == told.guaranteed_micros
            == told.cannot_exceed_micros
            == work.paid
        )
    assert str(told)


def test_what_may_be_moved_may_cost_what_it_costs_there() -> None:
    """Where late rows go to a dearer tier, no more than both copies is what cannot be exceeded."""
    shard = {
        "n_lines": 10,
        "worst_micros": worst_micros([(100, CAP)] * 10, PRICE),
        "input_bound": 1000,
        "provider": "fake",
    }
    shard |= {"id": "s", "root": "s", "output_bound": 10 * CAP, "state": "submitted", "role": "work", "attempt": 3}
    shard |= {
        "vector": zlib.compress(bytes(10)),
        "redo_micros": 0,
        "twice_micros": 0,
        "confirmed_micros": 0,
        "held_micros": shard["worst_micros"],
    }
    work = module._work([shard])  # type: ignore[list-item]
    rescue = Rescue("fake/standard", replace(PRICE, output=PRICE.output * 3, input=PRICE.input * 3), None)
    for rescues, wanted in (((), 1), ((rescue,), 4)):
        terms = replace(TERMS, price=PRICE, attempts=3, rescues=rescues, rescue=rescue.adapter if rescues else None)
        told = module._told(module._planned({}, terms, work), work, None, None)
        assert told.cannot_exceed_micros == pytest.approx(wanted * shard["worst_micros"], abs=6)


def test_a_plan_counts_what_a_rescue_may_cost() -> None:
    """Before anything ran, too, a job whose late rows go to a dearer tier can cost both, at every attempt."""
    dearer = replace(PRICE, output=Decimal(20), steps=(PriceStep(50, Decimal(3), Decimal(30), None, None),))
    there = worst_micros([(PLAN.input_bound, PLAN.output_bound)], replace(PRICE, input=Decimal(3), output=Decimal(30)))
    assert before(PLAN, None, dearer).cannot_exceed_micros == PLAN.worst_micros + 3 * there
    assert before(PLAN, 1000, dearer).cannot_exceed_micros == 1000


@given(st.integers(0, 3), st.none() | st.integers(-5, 10**7))
def test_a_plan_s_numbers_stand_in_order(attempts: int, limit: int | None) -> None:
    """Before anything ran, also where the limit is spent already."""
    told = before(replace(PLAN, attempts=attempts + 1), limit)
    assert in_order(told)
    assert told.cannot_exceed_micros <= max(0, limit if limit is not None else told.cannot_exceed_micros)


def test_a_plan_names_its_canary() -> None:
    """What will be known, and when: after so many random rows."""
    told = before(replace(PLAN, canary=Canary("s", tuple(range(200)))), None)
    assert str(told) == (
        "expected $0.070000 · likely and guaranteed known after the canary: 200 random rows · "
        "cannot exceed $0.768768 (every row at max_output_tokens, 3 attempts)"
    )
    assert str(before(replace(PLAN, n_new=0, expected_micros=0, worst_micros=0), None)) == "$0.000000: nothing is new"


@pytest.mark.parametrize(
    ("micros", "words"), [(0, "$0.000000"), (999_999, "$0.999999"), (1_000_001, "$1.01"), (10**12, "$1,000,000.00")]
)
def test_amounts_in_a_sentence_are_rounded_up(micros: int, words: str) -> None:
    """At most a dollar and a bit is never written as a dollar."""
    assert forecast.usd(micros) == words


def mean_cost(client: Client, rows: list[int]) -> float:
    """Micros of one of these rows."""
    price = client_price(client)
    return float((sum(LENGTHS[n] for n in rows) * price.output / len(rows)) + 30 * price.input)


def client_price(client: Client) -> Any:
    from canwait.codec import terms_from_json

    kept = client.ledger.query("plan", job="essays", digest=client.ledger.job("essays")["plan"])[0]
    return terms_from_json(json.loads(kept["terms"])).price


def canary_rows(handle: JobHandle) -> list[int]:
    """Numbers of the rows in the canary, in its order."""
    plan = handle.plan().value
    assert plan.canary is not None
    shard = next(shard for shard in plan.shards if shard.id == plan.canary.shard)
    return [row_of(line)[0] for line in read_lines(handle.client.blobs.path(shard.requests_blob))]
