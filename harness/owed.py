"""What an arm owes before its first step: its teacher's training, and the search for its settings.

Posted once, at step 0. Charged or only reported as the study's accounting says; in FLOPs wherever they are known, in
the budget's own unit where that is another, and a teacher's training that is charged in device time too: the verdict
is given in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.budget import Account, Charge
from harness.errors import ConfigError
from harness.study import StudySpec
from harness.study.accounting import STEPS, Amortised, CostRange
from harness.units import Unit, parse_quantity

if TYPE_CHECKING:
    from harness.models.teacher import TeacherInfo


@dataclass(frozen=True)
class TeacherTraining:
    """What a teacher's training cost in one unit, and what of it this arm is told to pay.

    full: the whole cost, None where nobody knows it. low and high bound it; share is what is posted: all of
    it, a k-th, or the lower end of a range.
    """

    unit: Unit
    policy: str
    full: float | None
    share: float | None
    low: float | None
    high: float | None

    def record(self) -> dict[str, Any]:
        """For the run record."""
        return {**vars(self), "unit": self.unit.value}


def teacher_training(study: StudySpec, teacher: TeacherInfo, unit: Unit) -> TeacherTraining:
    """The cost of this teacher's training in `unit`: as the study says it, else as its own record does."""
    policy = study.accounting.teacher_training
    if isinstance(policy, CostRange):
        low, high = (parse_quantity(text) for text in policy.range)
        if low.unit is unit:
            words = f"between {low} and {high}: the lower end is posted"
            return TeacherTraining(unit, words, None, low.amount, low.amount, high.amount)
    full = known_cost(study, teacher, unit)
    if isinstance(policy, Amortised):
        k = policy.amortised_over
        return TeacherTraining(unit, f"shared by {k} students", full, None if full is None else full / k, full, full)
    words = policy if isinstance(policy, str) else "reported"
    return TeacherTraining(unit, words, full, full, full, full)


def measured_on(study: StudySpec, teacher: TeacherInfo, unit: Unit) -> list[str] | None:
    """The devices whose time or energy a teacher's training took, where that is measured and its card's.

    None where the unit is counted, where the study says what it cost, and where the card names no device.
    """
    assert study.teacher is not None
    told = any(parse_quantity(text).unit is unit for text in study.teacher.training_cost)
    devices = teacher.provenance.get("devices")
    return None if unit.deterministic or told or not isinstance(devices, list) else list(map(str, devices))


def known_cost(study: StudySpec, teacher: TeacherInfo, unit: Unit) -> float | None:
    """The whole training's cost in `unit`; None where neither the study nor the teacher's record tells."""
    assert study.teacher is not None
    told = {quantity.unit: float(quantity.amount) for quantity in map(parse_quantity, study.teacher.training_cost)}
    if unit in told:
        return told[unit]
    if unit is Unit.FLOP:
        said = study.teacher.training_flop
        return teacher.training_flop if said is None else said
    if unit is Unit.TOKEN:
        tokens = teacher.provenance.get("tokens")
        return None if tokens is None else float(tokens)
    return _from_accounts(teacher.provenance.get("accounts"), unit)


def _from_accounts(accounts: Any, unit: Unit) -> float | None:
    """The steps of a training that this harness made, from its card."""
    if not isinstance(accounts, Mapping):
        return None
    amounts = [
        units.get(unit.value) for name, units in accounts.items() if name in STEPS and isinstance(units, Mapping)
    ]
    known = [float(amount) for amount in amounts if amount is not None]
    return sum(known) if known else None


def upfront(study: StudySpec, teacher: TeacherInfo | None, *, tuning: Sequence[str] = (), arm: str) -> list[Charge]:
    """Everything to post at step 0.

    Raises:
        ConfigError: the accounting charges a cost that nobody knows in the budget's unit.
    """
    unit = study.limit.unit
    charges: list[Charge] = []
    for each in units_of(study):
        if teacher is not None:
            share = teacher_training(study, teacher, each).share
            if share is not None:
                charges.append(_charge(Account.TEACHER_TRAINING, share, each))
            elif each is unit and Account.TEACHER_TRAINING in study.charged:
                raise ConfigError(
                    f"arm {arm}: TEACHER_TRAINING is charged",
                    rule=f"nobody knows what this teacher's training cost in {unit}s",
                    remedy="set teacher.training_cost (teacher.training_flop for FLOPs), give a range, or do not charge it",
                )
    for quantity in map(parse_quantity, tuning):
        charges.append(_charge(Account.TUNING, quantity.amount, quantity.unit))
    if Account.TUNING in study.charged:
        charged_tuning(tuning, unit, arm=arm)
    return charges


def charged_tuning(tuning: Sequence[str], unit: Unit, *, arm: str) -> float:
    """What of these costs is in the budget's unit.

    Raises:
        ConfigError: none is.
    """
    found = next((float(each.amount) for each in map(parse_quantity, tuning) if each.unit is unit), None)
    if found is None:
        raise ConfigError(
            f"arm {arm}: TUNING is charged", rule=f"it does not say what its tuning cost in {unit}s",
            remedy=f'set arms.{arm}.tuning, a quantity such as "3e14 flop", or do not charge it',
        )  # fmt: skip
    return found


def units_of(study: StudySpec) -> list[Unit]:
    """In which units a teacher's training is posted, where it is known in them."""
    ranged = isinstance(study.accounting.teacher_training, CostRange)  # in the budget's unit alone
    charged = [Unit.GPU_SECOND] if Account.TEACHER_TRAINING in study.charged and not ranged else []
    return list(dict.fromkeys((Unit.FLOP, study.limit.unit, *charged)))


def _charge(account: Account, amount: float, unit: Unit) -> Charge:
    return Charge(account, round(amount) if unit.deterministic else amount, unit)
