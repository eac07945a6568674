"""Nouns to JSON and back, for what the ledger and the plan blob keep. Decimals and dates are text, nothing is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

from .types import (
    BadRow,
    Batch,
    BatchStatus,
    Canary,
    JudgeModel,
    Limits,
    Offer,
    Plan,
    PlannedShard,
    Price,
    PriceStep,
    Quality,
    Rescue,
    Terms,
    Tier,
    Usage,
)


def plain(value: Any) -> Any:
    """A noun as JSON values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal | Path):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value


def batch_to_json(batch: Batch) -> dict[str, Any]:
    return {**plain(batch), "usage": asdict(batch.usage) if batch.usage else None}


def batch_from_json(raw: Mapping[str, Any]) -> Batch:
    return Batch(
        **{
            **raw,
            "status": BatchStatus(raw["status"]),
            "created_at": datetime.fromisoformat(raw["created_at"]),
            "usage": Usage(**raw["usage"]) if raw["usage"] else None,
            "outputs": tuple(raw["outputs"]),
        }
    )


def price_from_json(raw: Mapping[str, Any]) -> Price:
    return Price(
        **{
            **raw,
            **_rates(raw),
            "tier": Tier(raw["tier"]),
            "as_of": date.fromisoformat(raw["as_of"]),
            "steps": tuple(PriceStep(**{**step, **_rates(step)}) for step in raw["steps"]),
        }
    )


def _rates(raw: Mapping[str, Any]) -> dict[str, Decimal | None]:
    names = ("input", "output", "cached_input", "cache_write")
    return {n: None if raw[n] is None else Decimal(raw[n]) for n in names}


def terms_to_json(terms: Terms) -> dict[str, Any]:
    return dict(plain(terms))


def terms_from_json(raw: Mapping[str, Any]) -> Terms:
    quality = raw.get("quality")  # of a plan that an older version opened there is none
    gate = {"quality": quality_from_json(quality) if quality else None}
    rescues = tuple(Rescue(**{**r, "price": price_from_json(r["price"])}) for r in raw.get("rescues", ()))
    prices = {"tier": Tier(raw["tier"]), "price": price_from_json(raw["price"]), "rescues": rescues}
    return Terms(**{**raw, **prices, **gate})


def quality_from_json(raw: Mapping[str, Any]) -> Quality:
    shares = {name: Decimal(raw[name]) for name in ("refuse_if_bad_rate", "sure")}
    judge = raw.get("judge")  # none in what an older version kept
    tier = {"tier": Tier(judge["tier"]) if judge["tier"] else None} if judge else {}
    asked = {"judge": JudgeModel(**{**judge, **tier}) if judge else None}
    return Quality(**{**raw, **shares, **asked, "rules": tuple(raw["rules"])})


def plan_to_json(plan: Plan) -> dict[str, Any]:
    return dict(plain(plan))


def plan_from_json(raw: Mapping[str, Any]) -> Plan:
    def price(value: Mapping[str, Any] | None) -> Price | None:
        return None if value is None else price_from_json(value)

    offers = tuple(
        Offer(**{**o, "tier": Tier(o["tier"]), "price": price(o["price"]), "limits": Limits(**o["limits"])})
        for o in raw["offers"]
    )
    return Plan(
        **{
            **raw,
            "tier": Tier(raw["tier"]),
            "price": price_from_json(raw["price"]),
            "standard_price": price(raw["standard_price"]),
            "bad_rows": tuple(BadRow(**b) for b in raw["bad_rows"]),
            "shards": tuple(PlannedShard(**s) for s in raw["shards"]),
            "offers": offers,
            "shard_ids": tuple(raw["shard_ids"]),
            "source_as_of": datetime.fromisoformat(raw["source_as_of"]),
            "created_at": datetime.fromisoformat(raw["created_at"]),
            "canary": canary_from_json(raw["canary"]) if raw.get("canary") else None,
        }
    )


def canary_from_json(raw: Mapping[str, Any]) -> Canary:
    return Canary(raw["shard"], tuple(raw["homes"]), tuple((place, n) for place, n in raw.get("aside", ())))
