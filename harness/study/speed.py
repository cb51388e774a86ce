"""How steps are computed: what changes their time, never the FLOPs charged and never a loss beyond rounding."""

from __future__ import annotations

from typing import Literal

from harness.study.spec import Spec


class SpeedSpec(Spec):
    """The same for every arm.

    `kernels` chooses the losses' implementation: `auto` takes Triton where it is right and faster, `eager` PyTorch with a
    hand-formed gradient, `reference` the definition in plain autograd. `compile_teacher` runs the teacher's forward through
    torch.compile, which costs seconds at the start (STARTUP) and pays in long runs.
    """

    kernels: Literal["auto", "triton", "eager", "reference"] = "auto"
    compile_teacher: bool = False
