"""What stands in the fields of a file people write: amounts with their units, models, lines of text; and as pydantic types.

Each parser says in one sentence what it found and what it expected; a file's reader adds where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, StringConstraints

LOCAL_MODEL = "smollm2-135m-instruct"

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(value: object) -> int:
    """`"24h"` -> seconds; the units are s, m, h, d and w. Raises ValueError."""
    if match := isinstance(value, str) and re.fullmatch(r"([0-9]{1,9}) ?([smhdw])", value):
        seconds = int(match[1]) * _SECONDS[match[2]]
        if not 0 < seconds <= 3650 * 86_400:
            raise ValueError(f"found {value}; expected more than nothing and at most 3650d")
        return seconds
    if is_number(value):
        raise ValueError(f"found the bare number {value}; a duration states its unit: {value}h, {value}m or {value}d")
    raise ValueError(f"found {as_found(value)}; expected a duration like 24h, 90m or 2d")


def parse_percent(value: object) -> Decimal:
    """`"10%"` -> 0.1. Raises ValueError."""
    if match := isinstance(value, str) and re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", value):
        share = Decimal(match[1]) / 100
        if share > 1:
            raise ValueError(f"found {value}; expected at most 100%")
        return share
    if is_number(value):
        raise ValueError(f"found the bare number {value}; a share states its unit: {value}%")
    raise ValueError(f"found {as_found(value)}; expected a percentage like 10%")


def parse_model(value: object) -> tuple[str, str]:
    """`"openai/NAME"` -> (provider, NAME as on the wire). Well-known names need no prefix. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"found {as_found(value)}; expected text")
    provider, slash, name = value.partition("/")
    if slash and provider in ("openai", "anthropic", "own", "local"):
        if not re.fullmatch(r"[!-~]+", name):
            raise ValueError(f"found '{value}'; expected a model's name after '{provider}/'")
        return provider, name
    if value == "local":
        return "local", LOCAL_MODEL
    if re.fullmatch(r"(gpt|chatgpt|o[0-9]|text-embedding)[!-.0-~]*", value):
        return "openai", value
    if re.fullmatch(r"claude[!-.0-~]*", value):
        return "anthropic", value
    raise ValueError(f"found '{value}'; expected openai/NAME, anthropic/NAME, own/NAME or local/NAME")


def parse_usd(value: object) -> int:
    """`40`, `"40.00"` or a Decimal -> micros, exactly. Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", value):
        value = Decimal(value)
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise ValueError(f"found {as_found(value)}; expected US dollars like 40 or 40.00")
    if not 0 <= value <= 1_000_000_000:
        raise ValueError(f"found {value}; expected 0 to 1,000,000,000 US dollars")
    if value % Decimal("0.000001"):
        raise ValueError(f"found {value}; expected at most 6 decimals: money is counted in millionths of a dollar")
    return int(value * 1_000_000)


# ------------------------------------------------------------------------------------------------------- pydantic types


def _one_line(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError(f"found {as_found(value)}; expected one line of text")
    return value


def matching(regex: str) -> Any:
    return Annotated[str, StringConstraints(pattern=regex)]


def in_short(at_length: Callable[[str], object], schema: Any) -> BeforeValidator:
    """A field that may be written as one text."""
    return BeforeValidator(lambda value: at_length(value) if isinstance(value, str) else value, schema)


def _some_text(value: str) -> str:
    if not value.strip():
        raise ValueError("found empty text; expected a query")
    return value


Query = Annotated[str, Strict(), AfterValidator(_some_text), Field(json_schema_extra={"pattern": r"\S"})]
Line = Annotated[str, Strict(), AfterValidator(_one_line), Field(json_schema_extra={"minLength": 1})]
Count = Annotated[int, Strict(), Field(gt=0, lt=2**53)]
Format = Literal["csv", "tsv", "jsonl", "parquet"]
Duration = Annotated[int, BeforeValidator(parse_duration, matching("^[0-9]{1,9} ?[smhdw]$"))]
Percent = Annotated[Decimal, BeforeValidator(parse_percent, matching(r"^[0-9]{1,3}(\.[0-9]{1,9})? ?%$"))]
Usd = Annotated[
    int, BeforeValidator(parse_usd, Annotated[float, Field(ge=0)] | matching(r"^[0-9]{1,18}(\.[0-9]{1,18})?$"))
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --------------------------------------------------------------------------------------------------------------- words


def as_found(value: object) -> str:
    match value:
        case None | "":
            return "nothing" if value is None else "empty text"
        case str():
            return f"'{value[:37]}...'" if len(value) > 40 else f"'{value}'"
        case bool():
            return str(value).lower()
        case int() | float() | Decimal():
            return str(value)[:40]
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "something else"


def is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
