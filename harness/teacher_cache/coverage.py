"""How many samples a run will read: what its budget buys, in closed form, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.budget import Account
from harness.units import Unit

if TYPE_CHECKING:
    from harness.data.repeats import Repeats


def most_steps(limit: float, *, price: float, sample_price: float, distinct: Callable[[int], int]) -> int:
    """The largest n with n · price + sample_price · distinct(n) ≤ limit; `distinct` never falls."""
    low, high = 0, int(limit // price)
    while low < high:
        middle = (low + high + 1) // 2
        if middle * price + sample_price * distinct(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def steps_to_cover(
    limit: float, unit: Unit, *, price: float, sample_price: float, repeats: Repeats, sequences: int
) -> int | None:
    """Steps whose samples a cache must hold; None, for all there are, where the budget is measured.

    `price` and `sample_price` are what a step and a new sample take from the budget. The answer is no less than
    what the run will do: amounts that are shared are rounded down, by less than a step's price altogether.
    """
    if not unit.deterministic:
        return None
    return 1 + most_steps(
        limit, price=price, sample_price=sample_price, distinct=lambda n: sum(repeats.distinct(n * sequences))
    )  # fmt: skip


def sample_price(flop: int, *, shared_by: int, unit: Unit, charged: frozenset[Account]) -> float:
    """What a new sample takes from a counted budget."""
    return flop / shared_by if unit is Unit.FLOP and Account.TEACHER_CACHE in charged else 0.0
