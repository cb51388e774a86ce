"""The accounting block of a study: which costs the budget pays, and what is known of costs made elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from harness.budget import Account
from harness.study.spec import Positive, Spec
from harness.units import Unit, parse_quantity

STEPS = frozenset({Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE})
# What a study may charge in any unit: each is known before the step that pays for it.
KNOWN_BEFORE = STEPS | {Account.TEACHER_TRAINING, Account.TEACHER_CACHE, Account.TUNING}
# What happens on the way has a duration and an energy, but FLOPs only for evaluation, which differ by objective.
ON_THE_WAY = frozenset({Account.STARTUP, Account.EVALUATION, Account.CHECKPOINT})
CHARGEABLE = KNOWN_BEFORE | ON_THE_WAY


# A cache is written outside the clock of the runs that read it: what is known of it is its FLOPs and its device time.
UNITS_OF_A_CACHE = (Unit.FLOP, Unit.TOKEN, Unit.GPU_SECOND)


def default_charged(unit: Unit) -> frozenset[Account]:
    """Steps; and for clock time and allocated devices everything on the way, which is waited and billed for."""
    return STEPS | ON_THE_WAY if unit in (Unit.SECOND, Unit.ALLOCATED_GPU_SECOND) else STEPS


class Amortised(Spec):
    """The teacher will teach `amortised_over` students: each pays its share."""

    amortised_over: Positive


class CostRange(Spec):
    """What the teacher's training cost at least and at most: the lower end is charged, the upper one reported."""

    range: tuple[str, str]

    @model_validator(mode="after")
    def _rises(self) -> CostRange:
        low, high = (parse_quantity(text) for text in self.range)
        if low.unit is not high.unit or low.amount > high.amount:
            raise ValueError(f"range {self.range[0]} to {self.range[1]}: give a lower and an upper end in one unit")
        return self


def _kind(value: Any) -> str:
    """Which of the policies is meant, so that a mistake is reported for that one."""
    if isinstance(value, CostRange) or (isinstance(value, dict) and "range" in value):
        return "range"
    return "amortised_over" if isinstance(value, Amortised | dict) else "word"


TeacherPolicy = Annotated[
    Annotated[Literal["free", "full"], Tag("word")]
    | Annotated[Amortised, Tag("amortised_over")]
    | Annotated[CostRange, Tag("range")],
    Discriminator(_kind),
]


CachePolicy = Annotated[
    Annotated[Literal["full"], Tag("word")] | Annotated[Amortised, Tag("amortised_over")], Discriminator(_kind)
]


class AccountingSpec(Spec):
    """Which accounts are charged to the budget; all of them are reported.

    `teacher_training`: free (reported), full, shared by k students, or a range where it is unknown.
    `teacher_cache`: with speed.teacher_cache each run pays for every sample it is the first time it reads it (`full`), or its
    share where so many runs read the same cache.
    `grid_g_per_kwh`: grams of CO2 equivalent per kWh of the grid that the run drew from, as the user knows it;
    carbon is then reported beside energy.
    """

    charged: list[Account] = sorted(STEPS)
    teacher_training: TeacherPolicy = "free"
    teacher_cache: CachePolicy = "full"
    grid_g_per_kwh: Annotated[float, Field(ge=0)] | None = None

    @field_validator("charged")
    @classmethod
    def _chargeable(cls, accounts: list[Account]) -> list[Account]:
        if Account.STUDENT_STEP not in accounts:
            raise ValueError("STUDENT_STEP must be charged, or no run would ever end")
        refused = sorted(set(accounts) - CHARGEABLE)
        if refused:
            raise ValueError(f"{refused[0]} is reported, not charged; chargeable are {', '.join(sorted(CHARGEABLE))}")
        return sorted(set(accounts))

    @model_validator(mode="after")
    def _one_word_on_the_teacher(self) -> AccountingSpec:
        charged = Account.TEACHER_TRAINING in self.charged
        if charged != (self.teacher_training != "free"):
            raise ValueError(
                "TEACHER_TRAINING is charged, but teacher_training says free"
                if charged
                else f"teacher_training is {self.teacher_training}, but charged leaves out TEACHER_TRAINING"
            )
        return self

    def check(self, unit: Unit) -> None:
        """Raise ValueError when an account cannot be charged in this unit."""
        late = sorted(set(self.charged) & ON_THE_WAY) if unit.deterministic else []
        if late:
            raise ValueError(
                f"{late[0]} cannot be charged to a budget in {unit}s: it is known only when it has happened; "
                "give the budget in gpu-hours, allocated-gpu-hours, kWh or minutes, or leave it reported"
            )
        if Account.TEACHER_CACHE in self.charged and unit not in UNITS_OF_A_CACHE:
            raise ValueError(
                f"TEACHER_CACHE cannot be charged to a budget in {unit}s: the cache is written outside the runs that read it; "
                "give the budget in FLOPs, tokens or gpu-hours, or leave it reported (accounting.charged)"
            )
        policy = self.teacher_training
        if isinstance(policy, CostRange) and parse_quantity(policy.range[0]).unit is not unit:
            raise ValueError(f"teacher_training.range is not in the budget's unit ({unit})")


def completed(tree: object, unit: Unit, *, cached: bool = False) -> dict[str, object]:
    """An accounting block as the user wrote it, with what it leaves unsaid for a budget in this unit.

    A teacher that is `cached` is charged like one that is not: its account takes the place of TEACHER_FORWARD.
    """
    block: dict[str, object] = {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}
    charged = block.get("charged")
    if charged is None:
        policy = block.get("teacher_training", "free")
        accounts = default_charged(unit) | (set() if policy == "free" else {Account.TEACHER_TRAINING})
        accounts |= {Account.TEACHER_CACHE} if cached else set()
        block["charged"] = sorted(account.value for account in accounts)
    elif isinstance(charged, list) and "teacher_training" not in block and Account.TEACHER_TRAINING.value in charged:
        block["teacher_training"] = "full"
    return block
