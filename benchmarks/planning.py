"""Plans a CSV or Parquet file as the product does, for the benchmarks of planning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from canwait.planned import Prepared


def plan_into(
    folder: str, source: Path, model: str, prompt: Sequence[tuple[str, str]], max_output_tokens: int
) -> Prepared:
    """Durably: the blobs and the plan are in `folder` and synced."""
    from canwait.blobs import Blobs
    from canwait.known import Known
    from canwait.planned import keep_plan
    from canwait.prepare import prepare
    from canwait.providers.openai import OpenAI
    from canwait.sources.opening import open_source
    from canwait.types import BudgetSpec, Job, Price, Source, Tier, Urgency

    job = Job(
        "benchmark", Source(source.name, "id"), "openai", model, tuple(prompt), max_output_tokens, Urgency.BATCH,
        BudgetSpec(10**12, None, None), base_dir=source.parent,
    )  # fmt: skip

    def price_of(tier: Tier) -> Price:
        rates = Decimal("0.075"), Decimal("0.3"), None, None
        return Price("openai", model, tier, *rates, "stated for this benchmark", date(2026, 11, 21))

    blobs = Blobs(Path(folder))
    prepared = prepare(
        job, source=open_source(job.source, source.parent), provider=OpenAI("none"), blobs=blobs, known=Known(),
        price_of=price_of, earlier=None, now=datetime(2026, 11, 21, tzinfo=UTC),
    )  # fmt: skip
    keep_plan(blobs, prepared.plan.id, None)
    return prepared
