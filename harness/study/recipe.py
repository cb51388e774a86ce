"""The recipe blocks of a study: optimizer, schedule, batch, and which accounts the budget pays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.budget import Account
from harness.study.spec import Fraction, Positive, Spec

# Accounts whose cost is known before it is spent; the others are always reported.
CHARGEABLE = frozenset({Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE, Account.TEACHER_TRAINING})


class OptimizerSpec(Spec):
    """AdamW; weight decay touches matrices only, never biases and norms; `clip` bounds the global gradient norm."""

    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class ScheduleSpec(Spec):
    """Learning rate over the fraction of the budget spent: linear warm-up, then decay."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    decay: Literal["linear", "cosine", "constant"] = "linear"


class BatchSpec(Spec):
    """The global batch of one optimizer step; the engine's micro-batch must divide it."""

    sequences: Positive = 256


class AccountingSpec(Spec):
    """Which accounts are charged to the budget; all of them are reported."""

    charged: list[Account] = sorted([Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE])

    @field_validator("charged")
    @classmethod
    def _chargeable(cls, accounts: list[Account]) -> list[Account]:
        if Account.STUDENT_STEP not in accounts:
            raise ValueError("STUDENT_STEP must be charged, or no run would ever end")
        refused = sorted(set(accounts) - CHARGEABLE)
        if refused:
            raise ValueError(f"{refused[0]} is reported, not charged; chargeable are {', '.join(sorted(CHARGEABLE))}")
        return sorted(set(accounts))
