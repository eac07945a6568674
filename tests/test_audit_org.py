"""A synthetic organisation with known truth: what the audit finds in it, and what it never says."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import audit_org
from audit_org import Site, all_calls, organisation, write_log
from canwait.audit.calls import Call
from canwait.audit.decisions import load_decisions, save_decisions
from canwait.audit.findings import Audit, Needs, Proof, Verdict
from canwait.audit.gather import Gatherer
from canwait.audit.run import audit, prices_of
from canwait.audit.verdict import Decision, judge
from canwait.errors import SourceError
from canwait.types import Price, Tier

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SEEDS = range(24)
STRENGTH = [Proof.UNCLEAR, Proof.LIKELY, Proof.PROVED]
MOVES = (Needs.BATCH, Needs.HYBRID)
PART = {Needs.BATCH: Needs.HYBRID, Needs.HYBRID: Needs.SYNC}  # less of it waits for hours
# What a log may leave out, and what a call is then.
OPTIONAL: dict[str, Any] = {
    name: Call._field_defaults[name]
    for name in Call._fields
    if name not in {"start_us", "site", "model", "provider", "record_id", "failed"}
}


def price_of(provider: str, model: str, tier: Tier) -> Price | str:
    """Every token costs a micro, in a batch half, at flex three quarters."""
    rate = {Tier.STANDARD: "1", Tier.BATCH: "0.5", Tier.FLEX: "0.75"}.get(tier)
    if rate is None or provider != "openai":
        return f"no {tier.value} price"
    return Price(provider, model, tier, Decimal(rate), Decimal(rate), None, None, "a test", date(2026, 11, 1))


@cache
def sites_of(seed: int) -> tuple[Site, ...]:
    return organisation(seed)


def judged(sites: Sequence[Site], seed: int = 0) -> Mapping[str, Verdict]:
    gatherer = Gatherer(seed)
    for call in all_calls(sites):
        gatherer.add(call)
    return {facts.site: judge(facts) for facts in gatherer.facts()}


@cache
def verdicts_of(seed: int) -> Mapping[str, Verdict]:
    return judged(sites_of(seed))


def test_the_organisation_is_what_was_asked_for() -> None:
    """Forty call sites over two weeks, of which some wait and some do not; a seed makes one."""
    sites = sites_of(0)
    assert len(sites) == len({site.truth.site for site in sites}) == 40
    calls = all_calls(sites)
    assert 12 <= (max(c.start_us for c in calls) - min(c.start_us for c in calls)) / 86_400e6 <= 15
    assert sum(site.truth.is_interactive for site in sites) >= 15
    assert sum(site.truth.deferrable > 0 for site in sites) >= 12
    assert organisation(0) == sites != organisation(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_interactive_site_is_ever_called_batch(seed: int) -> None:
    """Where somebody waits, no call is said to be movable for hours, whatever the log leaves out of it."""
    for site in sites_of(seed):
        if site.truth.is_interactive:
            assert verdicts_of(seed)[site.truth.site].needs not in MOVES, site.truth


@pytest.mark.parametrize("seed", SEEDS)
def test_most_of_the_deferrable_spend_is_found(seed: int) -> None:
    """At least 90 % of what could wait is proved or likely, and nothing that could not."""
    could = found = 0.0
    for site in sites_of(seed):
        verdict = verdicts_of(seed)[site.truth.site]
        could += site.spend * site.truth.deferrable
        if verdict.needs in MOVES:
            assert verdict.proof is not Proof.UNCLEAR
            assert site.truth.deferrable == pytest.approx(verdict.movable_share, abs=0.02), site.truth
            found += site.spend * verdict.movable_share
    assert found / could >= 0.9


@settings(max_examples=60, deadline=None)
@given(seed=st.sampled_from(SEEDS), dropped=st.sets(st.sampled_from(sorted(OPTIONAL)), min_size=1))
def test_removing_evidence_only_moves_a_verdict_towards_ask(seed: int, dropped: set[str]) -> None:
    """A log that leaves fields out says the same of a site, or asks, or hears only the part that waits; never batch."""
    less = [
        Site(site.truth, tuple(call._replace(**{name: OPTIONAL[name] for name in dropped}) for call in site.calls))
        for site in sites_of(seed)
    ]
    for name, after in judged(less).items():
        before = verdicts_of(seed)[name]
        if before.needs is Needs.HYBRID:
            assert after.needs in (Needs.HYBRID, Needs.SYNC, Needs.ASK)
        else:
            assert after.needs in (before.needs, Needs.ASK)
        assert STRENGTH.index(after.proof) <= STRENGTH.index(before.proof)
        if after.needs in MOVES:
            assert after.movable_share == pytest.approx(before.movable_share)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    dropped=st.sets(st.sampled_from(sorted(OPTIONAL)), min_size=1),
    share=st.floats(0.02, 0.98),
    chance=st.integers(0, 10**6),
)
def test_a_log_that_says_less_of_some_calls_moves_towards_ask(
    seed: int, dropped: set[str], share: float, chance: int
) -> None:
    """Calls that lose fields by chance, some or nearly all of them, leave the same verdict, a part of it, or a question."""
    random = Random(chance)
    less = [
        Site(
            site.truth,
            tuple(
                call._replace(**{name: OPTIONAL[name] for name in dropped}) if random.random() < share else call
                for call in site.calls
            ),
        )
        for site in sites_of(seed)
    ]
    interactive = {site.truth.site for site in less if site.truth.is_interactive}
    for name, after in judged(less).items():
        before = verdicts_of(seed)[name]
        towards = {before.needs, Needs.ASK, PART[before.needs]} if before.needs in PART else {before.needs, Needs.ASK}
        assert after.needs in towards, (name, before.needs, after.needs, after.reasons)
        assert STRENGTH.index(after.proof) <= STRENGTH.index(before.proof)
        if after.needs in MOVES:
            assert name not in interactive
            assert after.movable_share <= before.movable_share + 1e-9


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_fields_that_some_calls_lack_prove_nothing_new(share: float) -> None:
    """Calls that lose fields one by one, at random, leave a site the same verdict, a part of it, or a question."""
    random = Random(11)
    for seed in SEEDS[:8]:
        sites = [
            Site(
                site.truth,
                tuple(c._replace(**{k: v for k, v in OPTIONAL.items() if random.random() < share}) for c in site.calls),
            )
            for site in sites_of(seed)
        ]
        for name, after in judged(sites).items():
            before = verdicts_of(seed)[name]
            towards = (
                {before.needs, Needs.ASK, PART[before.needs]} if before.needs in PART else {before.needs, Needs.ASK}
            )
            assert after.needs in towards, (name, before.needs, after.reasons)
            assert STRENGTH.index(after.proof) <= STRENGTH.index(before.proof)
            assert after.movable_share <= before.movable_share + 1e-9


# ---------------------------------------------------------------------------------------------------- the whole audit


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(all_calls(sites_of(0)), tmp_path_factory.mktemp("org") / "calls.jsonl")


@pytest.fixture(scope="module")
def audited(log: Path) -> Audit:
    return audit([log], now=NOW, price_of=price_of)


def test_an_audit_of_the_log_finds_the_money(audited: Audit) -> None:
    """From the file to the sums: halving what can wait saves what it should, each dollar in one place."""
    sites = {site.truth.site: site for site in sites_of(0)}
    assert audited.n_calls == sum(len(site.calls) for site in sites.values())
    assert {site.name for site in audited.sites} == set(sites)
    scale = 30 / 14
    spend = sum(site.spend for site in sites.values()) * scale
    could = sum(site.spend * site.truth.deferrable for site in sites.values()) * scale
    assert audited.total.likely == pytest.approx(spend, rel=0.05)
    for site in audited.sites:
        assert site.spend.month is not None
        if site.verdict.needs in MOVES:
            assert site.verdict.tier is Tier.BATCH
        if sites[site.name].truth.is_interactive:
            assert site.verdict.tier in (None, Tier.FLEX)
    batches = [lever for site in audited.sites for lever in site.levers if lever.kind == "batch" and lever.saves]
    counted = sum(lever.saves.likely for lever in batches if lever.proof is not Proof.UNCLEAR and lever.saves)
    assert 0.9 * could / 2 * 0.95 <= counted <= could / 2 * 1.05
    assert audited.proved.likely > 0 < audited.likely.likely
    saved = audited.proved.likely + audited.likely.likely
    assert audited.not_movable.likely == audited.total.likely - saved
    assert audited.unpriced_calls == 0


def test_proved_and_likely_never_overlap(audited: Audit) -> None:
    """A site's tier lever has one proof, and no site saves more than it costs."""
    for site in audited.sites:
        proofs = {lever.proof for lever in site.levers if lever.kind in ("batch", "flex", "background")}
        assert len(proofs) <= 1
        if site.together and site.spend.month:
            assert site.together.high <= site.spend.month.high
    together = sum(site.together.likely for site in audited.sites if site.together)
    assert audited.proved.likely + audited.likely.likely <= together + len(audited.sites)
    assert together <= audited.total.likely


def test_sites_are_listed_dearest_first(audited: Audit) -> None:
    """Whoever reads only the first lines has read of most of the money."""
    months = [site.spend.month.likely for site in audited.sites if site.spend.month]
    assert months == sorted(months, reverse=True)


def test_a_log_that_is_read_twice_is_counted_once(log: Path, tmp_path: Path, audited: Audit) -> None:
    """A copy of a log adds nothing but a count of repeated records, and a broken line nothing but a note."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(log.read_bytes() + b"{broken\n")
    twice = audit([log, copy], now=NOW, price_of=price_of)
    assert twice.sites == audited.sites
    assert [file.n_repeated for file in twice.files] == [0, audited.n_calls]
    assert [file.n_bad for file in twice.files] == [0, 1]


def test_since_leaves_out_what_was_before(log: Path, audited: Audit) -> None:
    """A window begins where it is said to."""
    start = datetime.fromtimestamp(audit_org.START_S, UTC) + timedelta(days=7)
    week = audit([log], now=NOW, price_of=price_of, since=start)
    assert week.first_us is not None
    assert week.first_us >= round(start.timestamp() * 1e6)
    assert 0 < week.n_calls < audited.n_calls
    assert week.last_us == audited.last_us


def test_decisions_are_respected_by_later_audits(log: Path, tmp_path: Path, audited: Audit) -> None:
    """What an owner decided is kept, warned about where the log proves otherwise, and told where the site is gone."""
    chat = next(s.name for s in audited.sites if s.verdict.needs is Needs.SYNC and s.verdict.proof is Proof.PROVED)
    misc = next(s.name for s in audited.sites if s.name.startswith("misc/"))
    path = tmp_path / "audit-decisions.yaml"
    save_decisions(
        path, {chat: Decision(Needs.BATCH), misc: Decision(Needs.BATCH, 4 * 3600), "gone/x.py:1": Decision(Needs.SYNC)}
    )
    decided = audit([log], now=NOW, price_of=price_of, decisions=load_decisions(path))
    found = {site.name: site for site in decided.sites}
    assert found[misc].verdict.by_owner
    assert (found[misc].verdict.needs, found[misc].verdict.tier) == (Needs.BATCH, Tier.BATCH)
    assert any("the owner's deadline is 4 h" in warning for warning in found[misc].warnings)
    assert any("decided as batch, but" in warning for warning in found[chat].warnings)
    assert any("gone/x.py:1" in note for note in decided.notes)
    assert decided.likely.likely > audited.likely.likely


def test_code_alone_is_listed_without_money(tmp_path: Path) -> None:
    """A folder of source holds call sites, verdicts that are likely at most, and not one invented price."""
    (tmp_path / "job.py").write_text(
        "from openai import OpenAI\nfrom airflow.decorators import task\n\n@task\ndef label():\n"
        "    return OpenAI().responses.create(model='m', input='x')\n",
        "utf-8",
    )
    found = audit([tmp_path], now=NOW, price_of=price_of)
    (site,) = found.sites
    assert site.name == "job.py:6"
    assert (site.verdict.needs, site.verdict.proof) == (Needs.BATCH, Proof.LIKELY)
    assert (site.facts, site.spend.month, site.levers, found.total.high) == (None, None, (), 0)


def test_code_and_log_of_one_site_are_one(tmp_path: Path) -> None:
    """A logged site that names a line of the code carries what the code says of it."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "reply.py").write_text(
        "from fastapi import FastAPI\nfrom openai import OpenAI\napp = FastAPI()\n\n@app.post('/reply')\ndef reply(q: str):\n"
        "    return OpenAI().responses.create(model='m', input=q)\n",
        "utf-8",
    )
    random = Random(2)
    calls = [
        Call(
            audit_org.START_S * 10**6 + i * 86_400 * 10**6,
            "reply.py:7",
            "m",
            "openai",
            input_tokens=random.randrange(9),
            output_tokens=1,
        )
        for i in range(50)
    ]
    path = write_log(calls, tmp_path / "calls.jsonl")
    (site,) = audit([tmp_path / "src", path], now=NOW, price_of=price_of).sites
    assert site.verdict.needs is Needs.SYNC
    assert [code.file for code in site.code] == ["reply.py"]


def test_what_has_no_price_is_no_saving(log: Path) -> None:
    """Without prices the verdicts stand, the money is unknown, and nothing is zero that is missing."""
    found = audit([log], now=NOW, price_of=lambda provider, model, tier: "nobody knows")
    assert {site.spend.month for site in found.sites} == {None}
    assert found.unpriced_calls == found.n_calls
    assert {site.verdict.tier for site in found.sites} == {None}
    assert len(found.sites) == 40


def test_a_price_nobody_knows_is_a_reason() -> None:
    """The price book's answer for a model it does not know is told in words."""
    assert "no-such-model" in str(prices_of(date(2026, 11, 22))("openai", "no-such-model", Tier.BATCH))


def test_a_file_that_is_no_log_is_told(tmp_path: Path) -> None:
    """A picture is no log, and the audit says so before it reads anything."""
    picture = tmp_path / "chart.png"
    picture.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SourceError, match="PNG image"):
        audit([picture], now=NOW, price_of=price_of)


def test_standard_input_is_a_log(log: Path, audited: Audit) -> None:
    """`-` reads what is piped in."""
    piped = audit([Path("-")], now=NOW, price_of=price_of, stdin=io.BufferedReader(io.BytesIO(log.read_bytes())))  # type: ignore[arg-type]
    assert piped.sites == audited.sites
