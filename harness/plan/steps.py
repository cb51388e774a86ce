"""How many steps a budget pays for: the loop's own rule, phase by phase, in whatever unit the budget has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import ConfigError
from harness.plan.speed import StepTime
from harness.study.accounting import STEPS
from harness.units import Unit

if TYPE_CHECKING:
    from harness.budget import Account
    from harness.objectives.composition import Plan
    from harness.setting import ArmSetting


@dataclass(frozen=True)
class Stretch:
    """Steps of one phase, and what each takes from the budget, in its unit."""

    phase: int
    steps: int
    price: float


def step_price(
    arm: ArmSetting, plan: Plan, phase: int, time: StepTime | None, *, world: int, watts: float | None
) -> float:
    """What one step takes from the budget: exact for FLOPs and tokens, from the predicted time for the others.

    Raises:
        ConfigError: the unit needs a time or a power that nobody knows here.
    """
    ledger = arm.ledger()
    unit = ledger.budget.unit
    if unit.deterministic:
        return ledger.price(charge for meter in arm.analytic_meters(plan) for charge in meter.next_step(phase))
    if time is None:
        raise ConfigError(
            f"budget {arm.study.budget!r}", rule="how many steps it pays for depends on how long one takes here, unknown",
            remedy="name the machine with --on, for example --on 8xh200",
        )  # fmt: skip
    charged = sum(time.busy(account) for account in ledger.charged & STEPS)
    if unit is Unit.SECOND:
        return charged
    if unit is Unit.JOULE:
        return charged * world * known_watts(watts, arm.study.budget)
    return charged * world


def known_watts(watts: float | None, budget: str) -> float:
    """Raises ConfigError where a budget in energy meets a machine whose power nobody knows."""
    if watts is None:
        raise ConfigError(
            f"budget {budget!r}", rule="nobody knows what a device draws here",
            remedy="give --watts, the watts of one device, or --on with a preset",
        )  # fmt: skip
    return watts


def stretches(arm: ArmSetting, plan: Plan, *, prices: Sequence[float], on_the_way: float) -> list[Stretch]:
    """Steps of every phase. `on_the_way` is what start-up, validation and checkpoints take from the budget."""
    ledger = arm.ledger()
    ledger_spent = ledger.price(arm.upfront()) + on_the_way
    limit, spent = ledger.budget.limit, ledger_spent
    found: list[Stretch] = []
    for number, phase in enumerate(plan.phases):
        price = prices[number]
        affordable = int((limit - spent) // price)
        begun = math.ceil((phase.until * limit - spent) / price) if phase.until < 1 else affordable
        steps = max(0, min(affordable, begun))
        spent += steps * price
        found.append(Stretch(number, steps, price))
    return found


def overheads(arm: ArmSetting, seconds: dict[Account, float], *, world: int, watts: float | None) -> float:
    """What accounts outside steps take from the budget: nothing for counted units, wall time for the others."""
    unit = arm.study.limit.unit
    if unit.deterministic:
        return 0.0
    charged = sum(amount for account, amount in seconds.items() if account in arm.study.charged)
    if unit is Unit.SECOND:
        return charged
    return charged * world * (known_watts(watts, arm.study.budget) if unit is Unit.JOULE else 1.0)
