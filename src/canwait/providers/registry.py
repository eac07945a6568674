"""Which provider a job's `model: PROVIDER/NAME` means, opened from the environment; its adapter is imported then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import NotFound
from ..types import Tier
from . import Provider

Factory = Callable[[Mapping[str, str], Path, float | None], Provider]


def open_provider(name: str, env: Mapping[str, str], *, spool: Path, settle_s: float | None = None) -> Provider:
    """The provider of that name. Raises NotFound, KeyRefused for a key that is missing, SpecError for a bad address.

    `spool` is where a provider without a server of its own keeps its rows; `settle_s` overrides the provider's figure.
    """
    base, _, tier = name.partition("/")
    if base not in PROVIDERS or (tier and tier not in ROW_BY_ROW.get(base, ())):
        raise NotFound(
            f"No provider is named {name}.", what="provider", name=name, hint=f"one of {', '.join(PROVIDERS)}"
        )
    provider = PROVIDERS[base](env, spool, settle_s)
    if not tier:
        return provider
    from .anthropic import Anthropic
    from .openai import OpenAI
    from .paid import paid_rows

    assert isinstance(provider, OpenAI | Anthropic)
    return paid_rows(provider, Tier(tier), env, spool)


def name_of(provider: str, tier: Tier) -> str:
    """What `open_provider` opens for a tier: "openai", or "openai/flex" where rows are asked one by one and paid."""
    return f"{provider}/{tier.value}" if tier in (Tier.FLEX, Tier.STANDARD) else provider


def _openai(env: Mapping[str, str], spool: Path, settle_s: float | None) -> Provider:
    from .http import read_key
    from .openai import BASE_URL, OpenAI

    return OpenAI(
        read_key("OPENAI_API_KEY", env, provider="openai"),
        env.get("OPENAI_BASE_URL") or BASE_URL,
        settle_s=settle_s,
        organization=env.get("OPENAI_ORG_ID"),
        project=env.get("OPENAI_PROJECT_ID"),
    )


def _anthropic(env: Mapping[str, str], spool: Path, settle_s: float | None) -> Provider:
    from .anthropic import BASE_URL, Anthropic, Variable
    from .http import read_key

    has_key = env.get("ANTHROPIC_API_KEY") or env.get("ANTHROPIC_API_KEY_FILE")
    has_token = env.get("ANTHROPIC_AUTH_TOKEN") or env.get("ANTHROPIC_AUTH_TOKEN_FILE")
    variable: Variable = "ANTHROPIC_AUTH_TOKEN" if has_token and not has_key else "ANTHROPIC_API_KEY"
    return Anthropic(
        read_key(variable, env, provider="anthropic"),
        env.get("ANTHROPIC_BASE_URL") or BASE_URL,
        settle_s=settle_s,
        variable=variable,
    )


def _own(env: Mapping[str, str], spool: Path, settle_s: float | None) -> Provider:
    from .own import own_from_env

    return own_from_env(env, spool)


def _local(env: Mapping[str, str], spool: Path, settle_s: float | None) -> Provider:
    from .local import local_from_env

    return local_from_env(env, spool)


ROW_BY_ROW = {"openai": ("flex", "standard"), "anthropic": ("standard",)}
PROVIDERS: dict[str, Factory] = {"openai": _openai, "anthropic": _anthropic, "own": _own, "local": _local}
