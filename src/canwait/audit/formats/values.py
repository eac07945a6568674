"""Values as logs hold them, made into what a Call holds. Everything is hostile: what is no such value raises ValueError.

What is missing (absent, null, an empty text) is None. A count, a time or an amount that is there and cannot be read is an
error, for a log read wrongly sizes money wrongly; anything else that cannot be read is only evidence that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from math import isfinite
from typing import Any

import orjson

from ...types import Tier

Fields = Mapping[str, Any]

MAX_NAME = 200  # characters of a name that are kept: names are keys of tables

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_FIRST_US = 946_684_800_000_000  # 2000-01-01: what is earlier is no time of a call
_LAST_US = 4_102_444_800_000_000  # 2100-01-01
_MOST = 1 << 53  # of a count: more is not exact in JSON
_NOTHING: Fields = {}

_MISSING = frozenset(("", "nan", "null", "none", "na", "n/a", "-", "\\n"))  # what tables write for nothing
_TRUE = frozenset(("true", "t", "1", "yes"))
_FALSE = frozenset(("false", "f", "0", "no"))

_TIERS: Mapping[str, Tier] = {
    "default": Tier.STANDARD,
    "standard": Tier.STANDARD,
    "standard_only": Tier.STANDARD,
    "on_demand": Tier.STANDARD,
    "batch": Tier.BATCH,
    "batches": Tier.BATCH,
    "flex": Tier.FLEX,
    "background": Tier.BACKGROUND,
    "own": Tier.OWN,
}  # what is not here (priority, scale, provisioned_throughput) is not one of our tiers, and has its own price
_NO_TIER = _MISSING | {"auto", "traffic_type_unspecified"}

_PROVIDERS: Mapping[str, str] = {
    "openai": "openai",
    "azure": "azure",
    "azure_ai": "azure",
    "azure_text": "azure",
    "az_ai_openai": "azure",
    "az_ai_inference": "azure",
    "azure_ai_openai": "azure",
    "azure_ai_inference": "azure",
    "anthropic": "anthropic",
    "aws": "bedrock",
    "aws_bedrock": "bedrock",
    "bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "gcp": "google",
    "gcp_gemini": "google",
    "gcp_gen_ai": "google",
    "gcp_vertex_ai": "google",
    "gemini": "google",
    "google": "google",
    "google_genai": "google",
    "vertex_ai": "google",
    "vertexai": "google",
    "mistral": "mistral",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "x_ai": "xai",
    "together_ai": "together",
    "togetherai": "together",
    "fireworks_ai": "fireworks",
    "cohere_chat": "cohere",
    "hosted_vllm": "own",
    "vllm": "own",
    "ollama": "own",
    "ollama_chat": "own",
}  # a name that is not here stays as it is


class Faults(ValueError):
    """Several things wrong in one record, whose other calls were read."""

    def __init__(self, whys: Sequence[str]) -> None:
        self.whys = tuple(whys)
        super().__init__("; ".join(whys[:3]))


def count(value: Any, what: str) -> int | None:
    """A count of tokens or calls, as a number or as text."""
    kind = type(value)
    if value is None:
        return None
    if kind is int:
        if 0 <= value < _MOST:
            return int(value)
    elif kind is str and len(value) < 16 and value.isdecimal():
        return int(value)
    elif is_missing(value):
        return None
    elif kind is float or kind is Decimal:
        if 0 <= value < _MOST and value == int(value):
            return int(value)
    elif kind is str and len(value) < 20 and value.isascii():
        digits = value.strip().removesuffix(".0")  # as tables write a whole number that could be missing
        if digits.isdecimal():
            return count(int(digits), what)
    raise ValueError(f"{what} is {shown(value)}, expected a count")


def when_us(value: Any, what: str) -> int | None:
    """Microseconds since 1970: from ISO 8601 (UTC where it names no zone), or from an epoch number in s, ms, us or ns.

    Which of the four is told by its size, which is certain for times of this century. Zero and before is missing.
    """
    if type(value) is int and _FIRST_US <= value < _LAST_US:
        return value
    if is_missing(value):
        return None
    us: float | None = None
    try:
        if type(value) is str:
            text = value[:41].strip()
            if text[:4].isdigit() and "-" in text[4:8]:
                us = _us_of(datetime.fromisoformat(text.removesuffix(" UTC")))
            else:
                us = _epoch_us(float(text) if "." in text else int(text))
        elif type(value) is int or type(value) is float:
            us = _epoch_us(value)
        elif isinstance(value, datetime):
            us = _us_of(value)
        elif isinstance(value, date):
            us = _us_of(datetime(value.year, value.month, value.day, tzinfo=UTC))
    except (ValueError, OverflowError):
        pass  # said below
    if us is not None and us <= 0:  # also 0001-01-01, which some languages write for no time
        return None
    if us is None or not _FIRST_US <= us < _LAST_US:
        raise ValueError(f"{what} is {shown(value)}, expected a time of this century")
    return int(us)


def must_start(us: int | None, what: str) -> int:
    """The time of a call, which has to have one."""
    if us is None:
        raise ValueError(f"no {what}: a call without a time")
    return us


def after_us(start_us: int, seconds: float | None) -> int | None:
    """That many seconds later, where they are known and make sense."""
    if seconds is None or not -1e8 < seconds < 1e8:
        return None
    return start_us + round(seconds * 1_000_000)


def dollars(value: Any, what: str) -> Decimal | None:
    """An amount of US dollars, exactly as the log writes it."""
    if is_missing(value):
        return None
    if isinstance(value, int | float | str | Decimal) and not isinstance(value, bool):
        try:
            amount = value if isinstance(value, Decimal) else Decimal(str(value)[:40])
        except InvalidOperation:
            amount = Decimal("NaN")
        if amount.is_finite() and 0 <= amount < 1_000_000_000:
            return amount if amount.adjusted() > -20 else Decimal(0)
    raise ValueError(f"{what} is {shown(value)}, expected US dollars")


def is_missing(value: Any) -> bool:
    """Whether a log writes nothing there."""
    if type(value) is str:
        return len(value) < 8 and value.strip().lower() in _MISSING
    return value is None or (value != value and type(value) in (float, Decimal))


def number(value: object) -> float | None:
    """A finite number."""
    if value is None or (type(value) is float and isfinite(value)):
        return value
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and isfinite(found) else None


def limit_of(value: Any) -> int | None:
    """A bound on the output, where it is one."""
    if type(value) is str and len(value) < 10 and value.isdecimal():
        return int(value) or None
    found = number(value)
    return int(found) if found is not None and 0 < found < 1e9 else None


def ahead_s(value: object) -> float | None:
    """A length of time in seconds: of nothing negative."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int):
        text = str(value).strip().lower() if isinstance(value, str) or value in (0, 1) else ""
        return True if text in _TRUE else False if text in _FALSE else None
    return None


def named(value: object) -> str | None:
    """A name: text of some length, or a whole number."""
    if type(value) is str:
        return value[:MAX_NAME].strip() or None
    return str(value) if type(value) is int and -_MOST < value < _MOST else None


def first_named(*values: object) -> str | None:
    """The first that is a name."""
    for value in values:
        if value is not None and (found := named(value)):
            return found
    return None


def fields_of(value: object) -> Fields:
    """A JSON object, also as text; empty where it is none."""
    if type(value) is dict:
        return value
    if type(value) is str and value[:1] == "{":
        found = _parsed(value)
        if found is None and '""' in value:  # one exporter doubles its quotes twice
            found = _parsed(value.replace('""', '"'))
        return found if type(found) is dict else _NOTHING
    return value if isinstance(value, Mapping) else _NOTHING


def items_of(value: object) -> Sequence[Any]:
    """A JSON array, also as text; empty where it is none."""
    if type(value) is list:
        return value
    if type(value) is str and value[:1] == "[":
        found = _parsed(value)
        return found if type(found) is list else ()
    return ()


def json_of(value: object) -> Any:
    """What a text of JSON holds, or the value as it is."""
    if type(value) is str and value[:1] in ("{", "["):
        found = _parsed(value)
        return value if found is None else found
    return value


def tags_of(values: Iterable[object]) -> Fields:
    """Tags written `name:value` or `name=value`; one of neither form is called "tag", and the first of those counts."""
    tags: dict[str, str] = {}
    for value in values:
        if type(value) is not str:
            continue
        colon, equals = value.find(":"), value.find("=")
        at = equals if colon < 1 or 0 < equals < colon else colon
        key, rest = (value[:at], value[at + 1 :]) if at > 0 else ("tag", value)
        tags.setdefault(key.strip(), rest.strip())
    return tags


def tier_of(value: object) -> Tier | str | None:
    """A provider's service tier in our words, else in its own: "priority" is not standard. None: it names none, as "auto"."""
    if type(value) is dict:  # Bedrock: {"type": "flex"}
        value = value.get("type")
    if type(value) is not str:
        return None
    word = value[:40].strip().lower()
    return _TIERS.get(word) or (None if word in _NO_TIER else word)


def provider_of(value: object) -> str:
    """canwait's name of a provider; "" unknown. A name it does not know stays as it is."""
    return _provider(value[:MAX_NAME]) if type(value) is str else ""


@lru_cache(1024)
def _provider(text: str) -> str:
    name = text.strip().lower()
    return _PROVIDERS.get(name.replace(".", "_").replace("-", "_"), name)


def shown(value: object) -> str:
    """A value in an error: short, and never more than a line."""
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _epoch_us(number: float) -> float:
    if number < 1e11:
        return round(number * 1_000_000)
    return number * 1_000 if number < 1e14 else number if number < 1e17 else number // 1_000


def _us_of(moment: datetime) -> int:
    return (moment - _EPOCH) // _US if moment.tzinfo else (moment.replace(tzinfo=UTC) - _EPOCH) // _US


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return None
