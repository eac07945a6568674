"""Any OpenAI-compatible server of our own: rows asked one by one (rows.py), as often as it takes, for nothing is billed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2

from ..errors import Problem, SpecError
from ..types import Answer, Plain
from .http import is_near, read_key
from .openai import decode_line, plain_line
from .rows import Host, RowByRow
from .spool import Row, answer_line


def own_from_env(env: Mapping[str, str], spool: Path) -> Own:
    """OWN_BASE_URL; OWN_API_KEY or OWN_API_KEY_FILE where the server wants a key; CANWAIT_OWN_CONCURRENCY, default 16.

    Raises SpecError for an address or a number that is none, KeyRefused for a key that cannot be one.
    """
    base_url = env.get("OWN_BASE_URL", "").strip()
    concurrency, problems = concurrency_of(env, "CANWAIT_OWN_CONCURRENCY", 16)
    if not _is_address(base_url):
        what = f"{base_url!r} is not an address, expected one like http://host:8000/v1"
        problems.insert(0, Problem("OWN_BASE_URL", None, None, None, what))
    if problems:
        raise SpecError(problems, hint="correct the environment (docs/local.md)")
    wants_key = env.get("OWN_API_KEY") or env.get("OWN_API_KEY_FILE")
    key = read_key("OWN_API_KEY", env, provider="own") if wants_key else None
    return Own(base_url, key, spool, concurrency=concurrency)


def concurrency_of(env: Mapping[str, str], variable: str, usual: int) -> tuple[int, list[Problem]]:
    stated = env.get(variable) or str(usual)
    if stated.isascii() and stated.isdigit() and 0 < int(stated) <= 4096:
        return int(stated), []
    what = f"{stated!r} is not a number of requests, expected 1 to 4096"
    return usual, [Problem(variable, None, None, None, what)]


class OpenAIShape:
    """Lines of OpenAI's batch output."""

    def line(self, row: Row, status: int, body: bytes) -> bytes:
        return answer_line(row, status=status, body=body)

    def decode(self, line: bytes) -> Answer:
        return decode_line(line)

    def plain(self, line: bytes) -> Plain | None:
        return plain_line(line)


class Own(RowByRow):
    """`base_url` ends in /v1; a callable is asked for it whenever rows are about to be sent, and may start the server."""

    def __init__(
        self,
        base_url: str | Callable[[], str],
        key: str | None,
        spool: Path,
        *,
        concurrency: int = 16,
        settle_s: int = 1,
        max_rows: int = 500,
        name: str = "own",
        timeout_s: float = 600.0,
    ) -> None:
        url = None if callable(base_url) else httpx2.URL(base_url)
        near = url is None or is_near(url.host)
        host = Host(
            name=name,
            # On this machine the port is no part of it: a server here is often found at another one when started again.
            account=name if url is None else url.host if near else url.netloc.decode("ascii"),
            base_url=base_url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            shape=OpenAIShape(),
            variable="OWN_API_KEY",
            key=key,
            paid=False,
            start=concurrency,
            most=concurrency,
            max_rows=max_rows,
            settle_s=settle_s,
            timeout_s=timeout_s,
            near=near,
        )
        super().__init__(host, spool)


def _is_address(text: str) -> bool:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
