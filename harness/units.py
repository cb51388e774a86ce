"""Units of cost, parsed from and printed for people.

A quantity is a number with a unit. FLOPs and tokens are counted (exact integers); seconds, device
seconds and joules are measured (floats). Nothing here converts one unit into another: a FLOP is not
a second, and the whole point of a study is to say in which currency a comparison was equal.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

from harness.errors import ConfigError


class Unit(StrEnum):
    """What a budget is counted in. The value is the base unit's name in every record."""

    FLOP = "flop"
    TOKEN = "token"
    GPU_SECOND = "gpu-second"
    ALLOCATED_GPU_SECOND = "allocated-gpu-second"
    JOULE = "joule"
    SECOND = "second"

    @property
    def deterministic(self) -> bool:
        """True when the cost of a step is known exactly before it runs."""
        return self in (Unit.FLOP, Unit.TOKEN)


# Spelling -> (unit, how many base units it is worth). Spellings are matched in lower case.
_SPELLINGS: dict[str, tuple[Unit, float]] = {}


def _spell(unit: Unit, names: str, factor: float = 1) -> None:
    for name in names.split():
        _SPELLINGS[name] = (unit, factor)


_spell(Unit.FLOP, "flop flops")
for _prefix, _factor in {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}.items():
    _spell(Unit.FLOP, f"{_prefix}flop {_prefix}flops", _factor)
_spell(Unit.TOKEN, "token tokens tok")
_spell(Unit.TOKEN, "ktoken ktokens", 1e3)
_spell(Unit.TOKEN, "mtoken mtokens", 1e6)
_spell(Unit.TOKEN, "gtoken gtokens btokens", 1e9)
for _device in ("gpu", "device"):
    for _word, _unit in ((_device, Unit.GPU_SECOND), (f"allocated-{_device}", Unit.ALLOCATED_GPU_SECOND)):
        _spell(_unit, f"{_word}-second {_word}-seconds {_word}-s")
        _spell(_unit, f"{_word}-minute {_word}-minutes {_word}-min", 60)
        _spell(_unit, f"{_word}-hour {_word}-hours {_word}-h", 3600)
_spell(Unit.JOULE, "joule joules j")
_spell(Unit.JOULE, "kj", 1e3)
_spell(Unit.JOULE, "mj", 1e6)
_spell(Unit.JOULE, "wh", 3.6e3)
_spell(Unit.JOULE, "kwh", 3.6e6)
_spell(Unit.JOULE, "mwh", 3.6e9)
_spell(Unit.SECOND, "s sec second seconds")
_spell(Unit.SECOND, "min minute minutes", 60)
_spell(Unit.SECOND, "h hour hours", 3600)

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+(?:[._]\d+)*\.?|\.\d+)(?:e[+-]?\d+)?)\s*([a-z][a-z-]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A positive, finite amount of one unit; an integer when the unit is counted."""

    amount: int | float
    unit: Unit

    def __str__(self) -> str:
        return format_amount(self.amount, self.unit)


def parse_quantity(text: str) -> Quantity:
    """Read "3e15 flop", "4 gpu-hours", "0.5kWh", "2e9 tokens", "90 min".

    Raises:
        ConfigError: no number, no unit, an unknown unit, or an amount that is not positive and finite.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"budget {text!r}",
            rule="a budget is a number and a unit",
            remedy='write for example "3e15 flop", "2e9 tokens", "4 gpu-hours", "0.5 kWh" or "90 min"',
        )
    number, word = match.groups()
    spelling = _SPELLINGS.get(word.lower())
    if spelling is None:
        raise ConfigError(
            f"budget {text!r}",
            rule=f"unknown unit {word!r}",
            remedy="use flop (kflop … Zflop), tokens, gpu-hours, allocated-gpu-hours, J/Wh/kWh, or s/min/h",
        )
    unit, factor = spelling
    amount = float(number.replace("_", "")) * factor
    if not (amount > 0 and math.isfinite(amount)):
        raise ConfigError(f"budget {text!r}", rule="a budget is positive and finite", remedy="give a larger number")
    if unit.deterministic:
        # Whole units only: a counted budget of 0.4 tokens affords nothing and would round to zero.
        whole = int(amount) if amount >= 2**53 else round(amount)
        if whole < 1:
            raise ConfigError(f"budget {text!r}", rule=f"less than one {unit}", remedy="give a larger number")
        return Quantity(whole, unit)
    return Quantity(amount, unit)


_SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    Unit.FLOP: (
        (1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"),
        (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1, "FLOP"),
    ),
    Unit.TOKEN: ((1e9, "B tokens"), (1e6, "M tokens"), (1e3, "k tokens"), (1, "tokens")),
    Unit.GPU_SECOND: ((3600, "device-hours"), (60, "device-min"), (1, "device-s")),
    Unit.ALLOCATED_GPU_SECOND: ((3600, "allocated device-hours"), (60, "allocated device-min"), (1, "allocated device-s")),
    Unit.JOULE: ((3.6e6, "kWh"), (3.6e3, "Wh"), (1, "J")),
    Unit.SECOND: ((3600, "h"), (60, "min"), (1, "s")),
}  # fmt: skip


# Beyond it twelve digits say nothing of decimals, and neither NaN nor infinity has any.
_READABLE = 1e12


def decimal(value: float, places: int) -> str:
    """A number with so many decimals; ties go away from zero, so that −1.25 and +1.25 are −1.3 and +1.3.

    A tie is one of the number as a person would read it: of its twelve significant digits, not of its binary tail.
    """
    if not abs(value) < _READABLE:
        return f"{value:.{places}f}"
    return f"{Decimal(f'{value:.12g}').quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):f}"


def format_amount(amount: float, unit: Unit) -> str:
    """Print an amount with three significant digits in the scale a person would choose."""
    for scale, name in _SCALES[unit]:
        if abs(amount) >= scale:
            scaled = amount / scale
            return f"{scaled:,.0f} {name}" if 1000 <= scaled < 1e6 else f"{scaled:.3g} {name}"
    return f"{amount:.3g} {_SCALES[unit][-1][1]}"
