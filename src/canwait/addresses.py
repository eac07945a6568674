"""Addresses beyond plain files: databases and object stores. What they keep secret comes from the environment.

A password is never part of an address that is written down. It stands there as `${NAME}` and is what the variable NAME
holds, or the file that NAME_FILE names; no message shows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from .environment import secret as read_secret

if TYPE_CHECKING:
    import psycopg

Kind = Literal["file", "sqlite", "postgres", "object"]

_KINDS: dict[str, Kind] = {"file": "file", "sqlite": "sqlite", "postgresql": "postgres", "postgres": "postgres"}
_KINDS |= {"s3": "object", "gs": "object", "az": "object"}

reference = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_userinfo = re.compile(r"(?<=://)([^:/?#]*):(.*)@", re.S)
_secret_parameter = re.compile(r"((?:ssl)?password=)([^&]*)")


class Unusable(Exception):
    """An address that leads nowhere: what is wrong with it, without its secrets."""


def kind_of(uri: str) -> Kind | None:
    """What an address leads to; None for a scheme that is not known, and for one that is all in the environment."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return None if reference.match(uri) else "file"
    return _KINDS.get(scheme.lower())


def shown(uri: str) -> str:
    """An address as messages show it. What is no `${NAME}` in the place of a password is hidden."""
    uri = _userinfo.sub(lambda m: m[0] if reference.fullmatch(m[2]) else f"{m[1]}:***@", uri)
    return _secret_parameter.sub(lambda m: m[0] if reference.fullmatch(m[2]) else f"{m[1]}***", uri)


def fault_of(uri: str, *, database: bool) -> str | None:
    """Why an address may not be written so, if it may not; `database`: a query or a table stands beside it."""
    kind = kind_of(uri)
    if shown(uri) != uri:
        return "a password stands in the address; expected ${NAME} there, which the environment holds"
    if database and kind not in ("sqlite", "postgres") and not reference.match(uri):
        return f"'{uri}' is no database; expected sqlite:///FILE or postgresql://HOST/DATABASE"
    if kind is None and not database:
        known = ", ".join(f"{scheme}://" for scheme in _KINDS)
        return f"'{shown(uri)}' is no address that is known; expected a path, or one that begins with {known}"
    if kind == "object" and not re.fullmatch(r"\w+://[^/@?#]+/[^?#]*[^/?#]", uri):
        return f"'{uri}' names no object; expected {uri.partition('://')[0]}://BUCKET/PATH"
    return None


def local_path(uri: str, base_dir: Path) -> Path | None:
    """Where a path or a file:// address leads; a relative path starts at `base_dir`. None for all else."""
    if kind_of(uri) != "file":
        return None
    return base_dir / (unquote(uri.partition("://")[2]) if "://" in uri else uri)


# ------------------------------------------------------------------------------------------------------------ databases


@dataclass(frozen=True, slots=True)
class Database:
    name: str  # as the user wrote it
    kind: Literal["sqlite", "postgres"]
    target: str = field(repr=False)  # the path of SQLite's file, or a URL with its password
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def words(self, error: BaseException) -> str:
        """What an error says in one line, without secrets."""
        diagnosis = getattr(error, "diag", None)
        parts = [diagnosis.message_primary, diagnosis.message_detail, diagnosis.context] if diagnosis else []
        text = " ".join(": ".join(part for part in parts if part).split() or str(error).split())
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text[:500]


def database(uri: str, base_dir: Path, env: Mapping[str, str] = os.environ) -> Database:
    """The database at an address. Raises Unusable, also for a variable that is not set; nothing is opened yet."""
    if fault := fault_of(uri, database=True):
        raise Unusable(fault)
    url, secrets = expanded(uri, env)
    match kind_of(url), url.partition("://")[2]:
        case "sqlite", rest:
            if not rest.startswith("/") or rest in ("/", "/:memory:"):
                raise Unusable(f"{uri} names no file; expected sqlite:///FILE")
            return Database(uri, "sqlite", str(base_dir / rest[1:]), secrets)
        case "postgres", _:
            return Database(uri, "postgres", url, secrets)
    raise Unusable(f"{uri} holds no database; expected sqlite:///FILE or postgresql://HOST/DATABASE")


def connect_postgres(db: Database) -> psycopg.Connection[tuple[Any, ...]]:
    """Raises Unusable."""
    try:
        import psycopg
    except ImportError:
        raise Unusable("psycopg is not installed: pip install 'canwait[postgres]'") from None
    try:
        return psycopg.connect(db.target, connect_timeout=10, client_encoding="utf8", application_name="canwait")
    except psycopg.Error as error:
        raise Unusable(db.words(error)) from None  # its context holds the address


def expanded(uri: str, env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The address with what its variables hold, and what must never be shown of it."""
    secrets: list[str] = []

    def value(match: re.Match[str]) -> str:
        secret = _variable(match[1], env)
        whole = match.start() == 0  # more than a part of an address: it is quoted already
        text = secret if whole else quote(secret, safe="")
        secrets.extend((secret, text))
        return text

    url = reference.sub(value, uri)
    for found in [m[2] for pattern in (_userinfo, _secret_parameter) if (m := pattern.search(url))]:
        secrets += [found, unquote(found)]
    return url, tuple(sorted({s for s in secrets if s}, key=len, reverse=True))


def _variable(name: str, env: Mapping[str, str]) -> str:
    try:
        value = read_secret(name, env)
    except ValueError as error:
        raise Unusable(str(error)) from None
    if not value:
        raise Unusable(f"{name} is not set; the address needs it, or {name}_FILE")
    return value
