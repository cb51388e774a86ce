"""Quantities are read as people write them, and nonsense is refused with the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.units import Unit, decimal, format_amount, parse_quantity


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("3e15 flop", 3 * 10**15, Unit.FLOP),
        ("2e11flop", 2 * 10**11, Unit.FLOP),
        ("2.4 Tflop", 24 * 10**11, Unit.FLOP),
        ("1.5PFLOPs", 15 * 10**14, Unit.FLOP),
        ("2e9 tokens", 2 * 10**9, Unit.TOKEN),
        ("4 gpu-hours", 4 * 3600, Unit.GPU_SECOND),
        ("4 allocated-gpu-hours", 4 * 3600, Unit.ALLOCATED_GPU_SECOND),
        ("0.5 kWh", 1.8e6, Unit.JOULE),
        ("90 min", 5400, Unit.SECOND),
        ("  7 s ", 7, Unit.SECOND),
    ],
)
def test_a_budget_is_read_with_or_without_the_space(text: str, amount: float, unit: Unit) -> None:
    quantity = parse_quantity(text)
    assert quantity.unit is unit
    assert quantity.amount == amount
    assert isinstance(quantity.amount, int) == unit.deterministic


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("3e15", "a number and a unit"),
        ("flop", "a number and a unit"),
        ("", "a number and a unit"),
        ("3 bananas", "unknown unit"),
        ("-2 flop", "positive"),
        ("0 gpu-hours", "positive"),
        ("1e999 flop", "positive"),
        ("0.2 tokens", "less than one"),
        ("3 flop; rm", "a number and a unit"),
    ],
)
def test_an_unreadable_budget_names_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse_quantity(text)


@given(st.integers(min_value=1, max_value=10**15), st.sampled_from(["flop", "tokens"]))
def test_counted_units_are_exact_integers(amount: int, unit: str) -> None:
    assert parse_quantity(f"{amount} {unit}").amount == amount


@given(st.floats(min_value=1e-3, max_value=1e24), st.sampled_from(list(Unit)))
def test_printed_amounts_keep_three_digits(amount: float, unit: Unit) -> None:
    number = format_amount(amount, unit).split()[0].replace(",", "")
    assert float(number) > 0
    assert len(format_amount(amount, unit)) < 40


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [(1.25, 1, "1.3"), (-1.25, 1, "-1.3"), (1.35, 1, "1.4"), (0.125, 2, "0.13"), (2.675, 2, "2.68"), (28.499999999999996, 0, "29"),
     (0.5, 0, "1"), (-0.04, 1, "-0.0"), (3.0, 2, "3.00"), (float("inf"), 1, "inf"), (1e30, 0, f"{1e30:.0f}")],
)  # fmt: skip
def test_a_tie_is_rounded_away_from_zero_whatever_its_sign(value: float, places: int, text: str) -> None:
    assert decimal(value, places) == text


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_a_number_and_its_negative_are_rounded_alike_and_to_the_nearest(value: float, places: int) -> None:
    assert decimal(-value, places).lstrip("-") == decimal(value, places).lstrip("-")
    assert abs(float(decimal(value, places)) - value) <= 0.5 * 10**-places + 1e-6 * abs(value)
