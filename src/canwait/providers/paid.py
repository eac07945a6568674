"""`standard` and `flex`: a provider's synchronous endpoints, row by row, on the account its batches run on.

The account's name ends in the spool's own, for only the spool knows which rows were asked: on another machine the engine
finds another account, and sends nothing of a shard whose fate it cannot tell there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson

from ..errors import SpecError
from ..types import Tier
from .anthropic import Anthropic
from .http import error_of, parse
from .openai import OpenAI
from .own import OpenAIShape, concurrency_of
from .rows import Host, RowByRow, Shape
from .spool import Row, spool_id

_CONCURRENCY = 64  # at most; how many the account takes is found out
_START = 8
_MAX_ROWS = 500  # money is reserved for a block at a time (design.md 5a)
_TIMEOUT_S = 900.0  # what OpenAI advises for flex (providers.md 3.2)


def paid_rows(provider: OpenAI | Anthropic, tier: Tier, env: Mapping[str, str], spool: Path) -> RowByRow:
    """`CANWAIT_CONCURRENCY` rows in flight at most, 64 unless stated. Raises SpecError."""
    most, problems = concurrency_of(env, "CANWAIT_CONCURRENCY", _CONCURRENCY)
    if problems:
        raise SpecError(problems, hint="correct the environment (docs/providers.md)")
    wire = provider._wire
    shape: Shape = AnthropicShape(provider) if isinstance(provider, Anthropic) else OpenAIShape()
    host = Host(
        name=provider.name,
        account=f"{provider.account}@{spool_id(spool)}",
        base_url=f"{wire.base_url}/v1" if isinstance(provider, Anthropic) else wire.base_url,
        headers=wire.headers,
        shape=shape,
        variable=wire.variable,
        key=wire.key,
        paid=True,
        start=_START,
        most=most,
        max_rows=_MAX_ROWS,
        adds=b',"service_tier":"flex"' if tier is Tier.FLEX else b"",
        timeout_s=_TIMEOUT_S,
    )
    return RowByRow(host, spool)


class AnthropicShape:
    """Lines of Anthropic's batch results."""

    def __init__(self, provider: Anthropic) -> None:
        self.decode, self.plain = provider.decode, provider.plain

    def line(self, row: Row, status: int, body: bytes) -> bytes:
        name = row.custom_id.encode()
        if status == 200:
            return b'{"custom_id":"%s","result":{"type":"succeeded","message":%s}}\n' % (name, body)
        if not error_of(parse(body)).get("type"):  # a gateway's words: the status says what kind of error it is
            kind = _KINDS.get(status, b"api_error" if status >= 500 else b"invalid_request_error")
            body = b'{"error":{"type":"%s","message":%s}}' % (kind, _quoted(body))
        return b'{"custom_id":"%s","result":{"type":"errored","error":%s}}\n' % (name, body)


_KINDS = {408: b"timeout_error", 429: b"rate_limit_error", 529: b"overloaded_error"}


def _quoted(body: bytes) -> bytes:
    return orjson.dumps(body.decode("utf-8", "replace")[:500])
