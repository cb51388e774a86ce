"""The recipe blocks of a study: optimizer, schedule, batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.study.spec import Fraction, Positive, Spec


class OptimizerSpec(Spec):
    """AdamW; weight decay touches matrices only, never biases and norms; `clip` bounds the global gradient norm."""

    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class ScheduleSpec(Spec):
    """Learning rate over the fraction of the budget spent: linear warm-up, then decay.

    `decay: cooldown` keeps the rate constant and lets it fall linearly over the last `cooldown` of the budget
    (Hägele et al. 2024, arXiv 2405.18392). `keep_trunk` then saves a checkpoint where the fall begins, for runs at
    larger budgets to go on from.
    """

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    decay: Literal["linear", "cosine", "constant", "cooldown"] = "linear"
    cooldown: Annotated[float, Field(gt=0, lt=1)] = 0.2
    keep_trunk: bool = False

    @model_validator(mode="after")
    def _trunk(self) -> ScheduleSpec:
        if self.keep_trunk and self.decay != "cooldown":
            raise ValueError(f"keep_trunk: decay {self.decay} has no constant part to branch from; use decay: cooldown")
        if self.decay == "cooldown" and self.warmup + self.cooldown > 1:
            raise ValueError(f"warmup {self.warmup:g} and cooldown {self.cooldown:g} overlap")
        return self


class BatchSpec(Spec):
    """The global batch of one optimizer step; the engine's micro-batch must divide it."""

    sequences: Positive = 256
