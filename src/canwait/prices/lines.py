"""Price lines in TOML, ours and the user's (docs/prices.md): dated, sourced, superseded and never edited."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..errors import Problem, SpecError
from ..types import Price, PriceStep, Tier

_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,12})?")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*price[ \t]*\]\]", re.MULTILINE)


def current(lines: Iterable[Line], provider: str, model: str, tier: Tier, today: date) -> Line | None:
    """The youngest line about this offer that has begun."""
    begun = [x for x in lines if (x.provider, x.model, x.tier) == (provider, model, tier) and x.since <= today]
    return max(begun, key=lambda line: line.since, default=None)


def read(path: Path) -> tuple[Line, ...]:
    """Every line of a file. Raises SpecError with all its problems, each with its place."""
    try:
        text = path.read_text(encoding="utf-8")
        return tuple(_File.model_validate(tomllib.loads(text)).price)
    except OSError as error:
        problems = [Problem(str(path), None, None, None, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError:
        problems = [Problem(str(path), None, None, None, "is not UTF-8")]
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"at line (\d+), column (\d+)", str(error))
        line, column = (int(place[1]), int(place[2])) if place else (text.count("\n") + 1, None)
        problems = [Problem(str(path), line, column, None, str(error))]
    except ValidationError as error:
        problems = [_problem(path, text, dict(found)) for found in error.errors()]
    raise SpecError(problems, hint="docs/prices.md shows what a price line may hold")


def _decimal(value: object) -> Decimal:
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return Decimal(value)
    raise ValueError(f'found {value!r}, expected plain digits in quotes, which keep it exact, as in "1.25"')


def _day(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise ValueError(f"found {value!r}, expected a day, without quotes, as in 2026-11-21")


def _tier(value: object) -> Tier:
    if value in list(Tier):
        return Tier(value)
    raise ValueError(f"found {value!r}, expected one of {', '.join(Tier)}")


def _list(value: object) -> object:
    if isinstance(value, list):
        return value
    raise ValueError("expected [[price]], with two brackets, before every line")


_Rate = Annotated[Decimal, BeforeValidator(_decimal)]  # USD per million tokens
_RateOrNone = Annotated[Decimal | None, BeforeValidator(_decimal)]
_Day = Annotated[date, BeforeValidator(_day)]
_DayOrNone = Annotated[date | None, BeforeValidator(_day)]
_Text = Annotated[str, StringConstraints(strict=True, min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Strict):
    """Rates of a whole request with more input tokens than that."""

    above_input_tokens: Annotated[int, Field(strict=True, gt=0)]
    input: _Rate
    output: _Rate
    cached_input: _RateOrNone = None
    cache_write: _RateOrNone = None


class Line(_Strict):
    """What holds for one provider, model and tier from a day on: rates, or a factor on the rates of the layer below."""

    provider: _Text
    model: _Text
    tier: Annotated[Tier, BeforeValidator(_tier)]
    since: _Day
    checked: _DayOrNone = None  # last seen to hold; None: on `since`
    source: _Text
    multiplier: _RateOrNone = None
    input: _RateOrNone = None
    output: _RateOrNone = None
    cached_input: _RateOrNone = None
    cache_write: _RateOrNone = None
    steps: tuple[Step, ...] = ()

    @model_validator(mode="after")
    def _rates_or_factor(self) -> Line:
        rates = self.input, self.output, self.cached_input, self.cache_write
        if self.multiplier is None:
            if self.input is None or self.output is None:
                raise ValueError("expected `input` and `output`, or a `multiplier`")
        elif self.steps or any(rate is not None for rate in rates):
            raise ValueError("found rates and a `multiplier`, expected one or the other")
        elif not self.multiplier:
            raise ValueError('found the multiplier 0, expected more; a free model has the rates "0"')
        if len({step.above_input_tokens for step in self.steps}) < len(self.steps):
            raise ValueError("found two steps above the same number of tokens")
        return self

    @property
    def as_of(self) -> date:
        return self.checked or self.since

    @property
    def price(self) -> Price | None:
        """The line's own rates; None where it has a multiplier."""
        if self.input is None or self.output is None:
            return None
        steps = (PriceStep(s.above_input_tokens, s.input, s.output, s.cached_input, s.cache_write) for s in self.steps)
        return Price(
            self.provider,
            self.model,
            self.tier,
            self.input,
            self.output,
            self.cached_input,
            self.cache_write,
            self.source,
            self.as_of,
            tuple(steps),
        )


class _File(_Strict):
    price: Annotated[tuple[Line, ...], BeforeValidator(_list)] = ()

    @model_validator(mode="after")
    def _each_day_once(self) -> _File:
        seen: dict[tuple[str, str, Tier, date], int] = {}
        for n, line in enumerate(self.price, 1):
            first = seen.setdefault((line.provider, line.model, line.tier, line.since), n)
            if first != n:
                offer = f"{line.provider}/{line.model} {line.tier.value}"
                raise ValueError(f"[[price]] {first} and {n} both give {offer} since {line.since}")
        return self


def _problem(path: Path, text: str, found: dict[str, Any]) -> Problem:
    """A pydantic error, said of the file."""
    place = found["loc"]  # ("price", 3, "input") or ("price", 3, "steps", 0, "input"), or the start of one
    field = ".".join(map(str, place[2:] if len(place) > 1 else place)) or None
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "missing":
        message = "is missing"
    elif found["type"] == "extra_forbidden":
        known = _File if len(place) == 1 else Line if len(place) == 3 else Step
        near = get_close_matches(str(place[-1]), list(known.model_fields), n=1)
        message = f"is not known here; did you mean `{near[0]}`?" if near else "is not known here"
    return Problem(str(path), _line_number(text, place), None, field, message)


def _line_number(text: str, place: tuple[str | int, ...]) -> int | None:
    """The line of a field, else of its [[price]]; None where the file's form does not tell."""
    start, end = 0, len(text)
    if len(place) > 1:
        headers = [match.start() for match in _HEADER.finditer(text)]
        n = int(place[1])
        if n >= len(headers):  # not written as [[price]] but as one inline array
            return None
        start, end = [*headers, end][n : n + 2]
    name = place[2] if len(place) > 2 else place[0] if len(place) == 1 else None
    if name is None:
        return text.count("\n", 0, start) + 1 if place else None
    key = re.compile(rf"^[ \t]*[\[\"']*{re.escape(str(name))}\b", re.MULTILINE).search(text, start, end)
    return text.count("\n", 0, key.start() if key else start) + 1
