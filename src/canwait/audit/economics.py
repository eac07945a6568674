"""What moving a call site is worth, in the direction it points: ranges in, ranges out, and what could erase it.

    saving = realtime capacity avoided - batch processing, retried rows included - staging - storage and transfer
             - operations - missed deadlines                                           USD a month (30 days)

Where both capacities are priced by the token, batch processing is a share of the realtime cost: the two rise together.
Each input is stated as a range or missing (worksheet.py). What is missing stays out of every figure and is named beside it;
its break-even says how much it may be. Money is Decimal USD; only shares of draws are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from random import Random

from .capacity import TARGET, Replica, Target, Trace, warm_capacity
from .worksheet import INPUTS, Case, Missing, Stated, Unit, Worksheet, applicable, one_line, say

N_DRAWS = 20_000
_DAY_S = 86_400
_LARGEST = Decimal(10) ** 15  # where the search for a break-even ends; a share's ends where no row would ever arrive

# The more of them, the more is saved: of the realtime cost while batches leave something of it.
GAINS = frozenset({"realtime_cost", "warm_hours_avoided", "hour_price"})
COSTS = ("batch_share", "batch_cost", "failure_rate", "timeout_rate", "storage_transfer")
# What counts only together. With one factor missing that one is asked for, with both missing the product is.
PRODUCTS = {
    "realtime capacity avoided": ("warm_hours_avoided", "hour_price"),
    "staging": ("staging_volume", "staging_price"),
    "operations": ("operations_hours", "operations_rate"),
    "missed deadlines": ("missed_rate", "missed_cost"),
}
_IN_THE_SUM = frozenset({"realtime_cost", *COSTS}).union(*PRODUCTS.values())


@dataclass(frozen=True, slots=True)
class Interval:
    """USD a month."""

    low: Decimal  # every input at its worse end
    likely: Decimal
    high: Decimal  # every input at its better end


@dataclass(frozen=True, slots=True)
class Chance:
    """The share of draws that save. It means nothing without what it was given, so it prints with it."""

    saves: float
    n_draws: int
    given: str

    def __str__(self) -> str:
        return f"{self.saves:.0%} of {self.n_draws:,} draws save, {self.given}"


@dataclass(frozen=True, slots=True)
class Swing:
    """One stated input, with all others at likely."""

    name: str
    at_bad: Decimal  # the saving at its worse end, USD a month
    at_good: Decimal
    break_even: Decimal | None  # where the saving is nothing, in the input's unit; None: nowhere
    rises: bool  # the more of it, the more is saved

    @property
    def can_erase(self) -> bool:
        return self.at_bad < 0


@dataclass(frozen=True, slots=True)
class Gap:
    """Something missing that the saving depends on."""

    name: str  # of the input, or of the product both of whose factors are missing
    title: str
    unit: Unit  # of `limit`
    gains: bool  # the more of it, the more is saved
    limit: (
        Decimal | None
    )  # where the saving is nothing, all else missing left out and the rest at likely; None: nowhere
    ask: str


@dataclass(frozen=True, slots=True)
class Economics:
    """The answer for one call site."""

    site: str
    case: Case
    known: Interval  # of what is stated; while there are gaps it is no saving, only what is known of one
    chance: Chance | None  # None: what would be gained is missing
    tornado: tuple[Swing, ...]  # the widest first
    gaps: tuple[Gap, ...]
    verdict: str
    warnings: tuple[str, ...]  # what the sum does not hold
    delay_h: Decimal | None = None  # hours that answers may come later before waiting costs what is likely saved


def assess(worksheet: Worksheet, rng: Random, *, n_draws: int = N_DRAWS) -> Economics:
    """What a worksheet says of moving its call site. The same worksheet and seed give the same answer."""
    stated = {name: entry for name, entry in worksheet.stated().items() if name in _IN_THE_SUM}
    known = Interval(saving(_at(stated, 1)), saving(_at(stated, 0)), saving(_at(stated, -1)))
    tornado = _tornado(stated)
    gaps = tuple(_gaps(worksheet, stated))
    return Economics(
        worksheet.site,
        worksheet.case,
        known,
        None if any(gap.gains for gap in gaps) else _chance(stated, gaps, rng, n_draws),
        tornado,
        gaps,
        _cannot_say(known, gaps) if gaps else _stated_verdict(known, tornado, stated),
        tuple(_warnings(worksheet)),
        _delay_h(worksheet, known, gaps),
    )


def saving(inputs: Mapping[str, Decimal]) -> Decimal:
    """USD a month. It never rises in a cost, and never falls in a gain but for a realtime cost that batches exceed.

    A product that lacks an input is not in the sum, so while one is missing the result is not the saving.
    """

    def of(name: str) -> Decimal:
        return inputs.get(name, Decimal(0))

    gained = of("realtime_cost") + of("warm_hours_avoided") * of("hour_price")
    batch = of("realtime_cost") * of("batch_share") + of("batch_cost")
    return (
        gained
        - batch / (1 - _paid_again(inputs))
        - of("storage_transfer")
        - sum(of(a) * of(b) for a, b in PRODUCTS.values() if a not in GAINS)
    )


def _paid_again(inputs: Mapping[str, Decimal]) -> Decimal:
    """The share of rows, each time they are sent."""
    return inputs.get("failure_rate", Decimal(0)) + inputs.get("timeout_rate", Decimal(0))


def _delay_h(worksheet: Worksheet, known: Interval, gaps: Sequence[Gap]) -> Decimal | None:
    cost = worksheet.stated().get("waiting_cost")
    if cost is None or not cost.likely or gaps or known.likely <= 0:
        return None
    return round(known.likely / cost.likely, 3)


def words(economics: Economics) -> list[str]:
    """The answer in lines of text."""
    known, without = economics.known, _without(economics.gaps)
    lines = [
        economics.verdict,
        f"stated: {_usd(known.low)} to {_usd(known.high)}, likely {_usd(known.likely)}{without}",
    ]
    if economics.chance:
        lines.append(str(economics.chance))
    if economics.delay_h is not None:
        lines.append(
            f"answers may come {say(economics.delay_h * 3600, Unit.TIME)} later before waiting costs what is likely saved"
        )
    for swing in economics.tornado:
        unit = INPUTS[swing.name].unit
        turns = "never alone" if swing.break_even is None else say(swing.break_even, unit)
        erases = "; can erase it" if swing.can_erase else ""
        line = f"{_usd(swing.at_bad)} to {_usd(swing.at_good)}, break-even {turns}{erases}"
        lines.append(f"{INPUTS[swing.name].title}: {line}")
    for gap in economics.gaps:
        limit = (
            f": {'at least' if gap.gains else 'at most'} {_per(gap.limit, gap.unit)}" if gap.limit is not None else ""
        )
        lines.append(f"missing: {gap.title}{limit}. {one_line(gap.ask)}")
    return [*lines, *economics.warnings]


# ------------------------------------------------------------------------------------------------ over the ranges


def _at(stated: Mapping[str, Stated], shift: Decimal | int) -> dict[str, Decimal]:
    """All inputs at likely, shifted together: 1 is every one at its worse end, -1 at its better end."""
    moved: dict[str, Decimal] = {}
    for name, x in sorted(
        stated.items(), key=lambda item: item[0] == "realtime_cost"
    ):  # last: the others say where it hurts
        gains = name in GAINS
        if name == "realtime_cost":
            gains = moved.get("batch_share", Decimal(0)) <= 1 - _paid_again(moved)
        end = x.low if (shift > 0) == gains else x.high
        moved[name] = x.likely + abs(Decimal(shift)) * (end - x.likely)
    return {name: moved[name] for name in stated}


def _tornado(stated: Mapping[str, Stated]) -> tuple[Swing, ...]:
    likely, swings = _at(stated, 0), []
    for name, x in stated.items():
        at_low, at_high = (saving({**likely, name: end}) for end in (x.low, x.high))
        rises = at_low < at_high or (at_low == at_high and name in GAINS)
        swing = Swing(name, min(at_low, at_high), max(at_low, at_high), _break_even(likely, name), rises)
        if (
            at_low != at_high or swing.break_even is not None
        ):  # else nothing hangs on it, or what it counts with is missing
            swings.append(swing)
    return tuple(sorted(swings, key=lambda swing: swing.at_bad - swing.at_good))


def _break_even(likely: Mapping[str, Decimal], name: str) -> Decimal | None:
    """The value of one input at which the saving is nothing, all others at likely."""
    most = _LARGEST
    if INPUTS[name].unit is Unit.SHARE:
        rates = sum(value for other, value in likely.items() if INPUTS[other].unit is Unit.SHARE and other != name)
        most = (1 - rates) * (1 - Decimal("1e-12"))
    return _root(lambda value: saving({**likely, name: value}), Decimal(0), most)


def _root(f: Callable[[Decimal], Decimal], low: Decimal, high: Decimal) -> Decimal | None:
    """Where a monotone function is 0, to 9 places; None if nowhere between the two, or everywhere."""
    at_low, at_high = f(low), f(high)
    if at_low == at_high or at_low * at_high > 0:
        return None
    while high - low > Decimal("1e-12") * max(Decimal(1), abs(low)):
        middle = (low + high) / 2
        at_middle = f(middle)
        if at_middle == 0:
            return round(middle, 9)
        low, high = (middle, high) if (at_middle > 0) == (at_low > 0 or at_high < 0) else (low, middle)
    return round((low + high) / 2, 9)


def _chance(stated: Mapping[str, Stated], gaps: Sequence[Gap], rng: Random, n_draws: int) -> Chance:
    fixed = {name: x.likely for name, x in stated.items() if x.low == x.high}
    drawn = [(name, float(x.low), float(x.high), float(x.likely)) for name, x in stated.items() if x.low != x.high]
    saves = 0
    for _ in range(n_draws):
        inputs = {name: Decimal(rng.triangular(low, high, mode)) for name, low, high, mode in drawn}
        saves += saving({**fixed, **inputs}) > 0
    return Chance(
        saves / n_draws, n_draws, f"given the stated ranges, each drawn on its own (triangular){_without(gaps)}"
    )


# ------------------------------------------------------------------------------------------------ what is missing


def _gaps(worksheet: Worksheet, stated: Mapping[str, Stated]) -> Iterable[Gap]:
    """What is missing and matters: a factor of something that is nothing anyhow does not."""
    names, missing = set(applicable(worksheet.case)), worksheet.missing()
    likely = _at(stated, 0)
    nothing_sent = any(_is_nothing(stated.get(name)) for name in ("batch_cost", "batch_share", "realtime_cost"))
    for name in ("realtime_cost", *COSTS):
        of_what_is_sent = INPUTS[name].unit is Unit.SHARE or name == "batch_share"
        if name in missing and not (of_what_is_sent and nothing_sent):
            yield _gap(name, missing[name], likely)
    for title, factors in PRODUCTS.items():
        lacking = [name for name in factors if name in names & missing.keys()]
        if len(lacking) == 2:
            gains = lacking[0] in GAINS
            known = saving(likely)
            limit = -known if gains else known
            yield Gap(title, title, Unit.USD_MONTH, gains, limit if limit >= 0 else None, missing[lacking[0]].ask)
        elif lacking and not any(_is_nothing(stated.get(name)) for name in factors):
            yield _gap(lacking[0], missing[lacking[0]], likely)


def _gap(name: str, entry: Missing, likely: Mapping[str, Decimal]) -> Gap:
    return Gap(name, INPUTS[name].title, INPUTS[name].unit, name in GAINS, _break_even(likely, name), entry.ask)


def _is_nothing(entry: Stated | None) -> bool:
    return entry is not None and entry.high == 0


def _without(gaps: Sequence[Gap]) -> str:
    return f"; not in it, because missing: {', '.join(gap.title for gap in gaps)}" if gaps else ""


# ------------------------------------------------------------------------------------------------------ in words


def _cannot_say(known: Interval, gaps: Sequence[Gap]) -> str:
    gained = [gap for gap in gaps if gap.gains]
    if not gained and known.high <= 0:
        return "loses in every stated case"  # what is missing can only cost
    missing = f"cannot say: {', '.join(gap.title for gap in gaps)} missing"
    if len(gained) == 1 and gained[0].limit is not None:
        which = "it" if len(gaps) == 1 else gained[0].title
        return f"{missing}; {which} must be at least {_per(gained[0].limit, gained[0].unit)}"
    if gained:
        return missing
    if known.likely <= 0:
        return f"{missing}; at the likely values it loses {_usd(-known.likely)} even without"
    if len(gaps) == 1 and gaps[0].limit is not None:
        return f"{missing}; it may be at most {_per(gaps[0].limit, gaps[0].unit)}"
    return f"{missing}; together they may be at most {_usd(known.likely)}"


def _stated_verdict(known: Interval, tornado: Sequence[Swing], stated: Mapping[str, Stated]) -> str:
    if known.low > 0:
        return "saves in every stated case"
    if known.high <= 0:
        return "loses in every stated case"
    if known.likely > 0:
        limits = " or ".join(_limit(swing) for swing in tornado if swing.can_erase and swing.break_even is not None)
        loses = ""
    else:  # one that is better than its limit is enough
        limits = " and ".join(_limit(swing) for swing in tornado if swing.at_good > 0 and swing.break_even is not None)
        loses = f"; at the likely values it loses {_usd(-known.likely)}"
    if not limits:
        shift = _root(lambda shift: saving(_at(stated, shift)), Decimal(-1), Decimal(1)) or Decimal(0)
        limits = (
            f"all inputs together > {shift:.0%} of the way to their worse ends"
            if shift >= 0
            else f"all inputs together < {-shift:.0%} of the way to their better ends"
        )
    return f"saves unless {limits}{loses}"


def _limit(swing: Swing) -> str:
    assert swing.break_even is not None
    sign = "<" if swing.rises else ">"
    return f"{INPUTS[swing.name].title} {sign} {_per(swing.break_even, INPUTS[swing.name].unit)}"


def _warnings(worksheet: Worksheet) -> Iterable[str]:
    stated = worksheet.stated()
    delay, window, retry = (stated.get(name) for name in ("acceptable_delay", "batch_window", "retry_window"))
    if delay and window:
        longest = window.high + (retry.high if retry else 0)
        if longest > delay.low:
            what = f"A batch{' and its retries' if retry else ''} may take {say(longest, Unit.TIME)}"
            yield f"{what}, and answers may be wanted within {say(delay.low, Unit.TIME)}."
    for name in ("operations_owner", "fallback_path"):
        if name in worksheet.missing():
            yield f"No {INPUTS[name].title} is named."


def _usd(value: Decimal) -> str:
    return _per(value, Unit.USD_MONTH)


def _per(value: Decimal, unit: Unit) -> str:
    return say(value, unit).replace("/month", " per month")


# --------------------------------------------------------------------------------------- where the inputs come from


def warm_hours(trace: Trace, replica: Replica, target: Target = TARGET, *, source: str, as_of: date) -> Stated:
    """Replica-hours a month that need not be warm, simulated: over the whole trace, and from its worst to its best day.

    Raises ValueError for no calls.
    """
    overall = warm_capacity(trace, replica, target).hours_avoided
    start_s = trace.at_s[0]
    n_days = int((trace.at_s[-1] - start_s) // _DAY_S)  # whole ones
    days = (trace.between(start_s + day * _DAY_S, start_s + (day + 1) * _DAY_S) for day in range(n_days))
    of_days = [warm_capacity(day, replica, target).hours_avoided for day in days if len(day)]
    said = (
        f"{source}: {len(trace):,} calls simulated, at most {target.late:.1%} wait longer than {target.wait_s:g} s, "
        f"{replica.slots} slots a replica, at least {replica.at_least} kept"
    )
    low, high = min([overall, *of_days]), max([overall, *of_days])
    return Stated(Decimal(low), Decimal(overall), Decimal(high), said, as_of)
