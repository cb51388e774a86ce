"""One difference from the shipped step, and which of them an arm has; `harness.bench.stepper` makes the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.hardware import bf16_in_hardware, has_cuda
from harness.kernels.backend import Backend
from harness.models import fp8
from harness.models.signals import Needs
from harness.models.teacher import Backend as Teaching

NOTHING, EVERYWHERE, LAST_LAYER = Needs(), Needs(logits="tokens"), Needs(logits="masked")
DEFINITION = "fused losses taken away"


@dataclass(frozen=True)
class Shipped:
    """What variations of an arm stand against: its trial's teacher, None without one, and what both models are asked."""

    backend: Teaching | None
    dropout: bool
    student: Needs
    teacher: Needs


@dataclass(frozen=True)
class Variation:
    """One difference from the shipped step; what `teacher` and `student` are asked beyond what the objective needs.

    `backend` None is the one that the arm's trial settled on.
    """

    name: str
    kernels: Backend = "auto"
    teacher: Needs = NOTHING
    student: Needs = NOTHING
    dense_heads: bool = False
    written_out: bool = False
    padded: bool = False
    data_inside: bool = False
    other_precision: bool = False
    backend: Teaching | None = None
    ahead: bool = False
    compiled_student: bool = False
    remembered: bool = False

    def teaches_otherwise(self, shipped: Shipped) -> bool:
        """Whether its teacher's answers are rounded elsewhere than the shipped one's."""
        return self.other_precision or (self.backend is not None and "fp8" in (self.backend, shipped.backend))

    def asks(self, needs: Needs, more: Needs) -> Needs:
        """What a model is asked here instead of `needs`."""
        return needs | (EVERYWHERE if self.dense_heads and needs.logits == "masked" else more)

    def changes(self, shipped: Shipped) -> bool:
        """Whether an arm's step differs from the shipped one, in a way that a study may ask for."""
        taught = shipped.backend is not None
        if self.backend is not None or self.ahead or self.remembered:
            # What drops out is computed layer by layer, in order, and never answers the same.
            return taught and not shipped.dropout and self.backend != shipped.backend and not (
                self.remembered and shipped.backend == "fp8"
            )  # fmt: skip
        if self.other_precision:
            return taught and shipped.backend != "fp8"
        if self.dense_heads or self.teacher or self.student:
            asked = taught and self.asks(shipped.teacher, self.teacher) != shipped.teacher
            return asked or self.asks(shipped.student, self.student) != shipped.student or self.kernels != "auto"
        return True


SHIPPED = Variation("as shipped")


def variations() -> list[Variation]:
    """The shipped step and every difference from it; the teacher's other precision depends on the hardware."""
    half = "half-precision teacher taken away" if bf16_in_hardware() else "half-precision teacher put in, emulated"
    on_gpu = []
    if has_cuda():
        on_gpu = [
            Variation("teacher as CUDA graphs put in", backend="graphs"),
            Variation("teacher ahead of the student's backward put in", ahead=True),
        ]
    if has_cuda() and not fp8.obstacle(torch.device("cuda")):
        on_gpu.append(Variation("fp8 teacher put in", backend="fp8"))
    return [
        SHIPPED,
        Variation(DEFINITION, kernels="reference"),
        Variation("heads at masked positions only taken away", dense_heads=True),
        Variation("teacher's cut taken away", teacher=LAST_LAYER),
        Variation("student's cut taken away", student=LAST_LAYER),
        Variation("all of these taken away", kernels="reference", teacher=EVERYWHERE, student=EVERYWHERE),
        Variation("fused attention taken away", written_out=True),
        Variation("packing taken away", padded=True),
        Variation("batches made ahead taken away", data_inside=True),
        Variation(half, other_precision=True),
        Variation("plain teacher put in", backend="plain"),
        Variation("compiled teacher put in", backend="compiled"),
        *on_gpu,
        Variation("compiled student put in", compiled_student=True),
        Variation("teacher's cache put in, all logits", remembered=True),
    ]
