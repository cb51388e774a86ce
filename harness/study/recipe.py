"""The recipe blocks of a study: optimizer, schedule, batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.study.spec import Fraction, Positive, Spec


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
