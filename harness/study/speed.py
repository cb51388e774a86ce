"""How steps are computed: what changes their time, and never a loss beyond rounding.

The FLOPs charged stay as they are too. The exception is `teacher_cache`: a teacher that is asked once and remembered is paid
once, and one of whose logits only some are kept teaches with another loss, which the record says.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from harness.study.spec import Positive, Spec


class TeacherCacheSpec(Spec):
    """What is remembered of a teacher: signals as it computed them, or in half precision, and all of its logits or the largest.

    With a number, `logits` is how many of a position's logits are kept; all others are kept as one number, the mass they
    have together, and the divergence is then between distributions in which they are one outcome: another, smaller loss.
    """

    logits: Positive | Literal["all"] = "all"
    precision: Literal["computed", "half"] = "computed"


class SpeedSpec(Spec):
    """The same for every arm.

    `kernels` chooses the losses' implementation: `auto` takes Triton where it is right and faster, `eager` PyTorch with a
    hand-formed gradient, `reference` the definition in plain autograd. `teacher_backend` is how the teacher's forward is computed:
    `plain` layer by layer, `compiled` by torch.compile, `graphs` compiled and replayed as CUDA graphs, `fp8` with 8-bit products
    if its answers pass a gate; `auto` tries the first three on a GPU and takes the fastest that answers as plain does, and is
    `plain` elsewhere. `compile_student` runs the student's forward and backward through torch.compile. Compiling costs seconds
    at the start (STARTUP) and pays in runs of minutes. `overlap_teacher` asks for the next micro-batch while the
    student's backward runs. `teacher_cache` (true, or its options) writes what an objective asks of the teacher to disk, once
    for every sample, and reads it from there.
    """

    kernels: Literal["auto", "triton", "eager", "reference"] = "auto"
    teacher_backend: Literal["auto", "plain", "compiled", "graphs", "fp8"] = "auto"
    compile_student: bool = False
    overlap_teacher: bool = False
    teacher_cache: TeacherCacheSpec | None = None

    @field_validator("teacher_cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """`true` takes the defaults, `false` is none."""
        return TeacherCacheSpec() if value is True else None if value is False else value

    @model_validator(mode="after")
    def _one_teacher(self) -> SpeedSpec:
        """A teacher that is read from a cache is computed once, as itself, and nothing waits for it."""
        if self.teacher_cache is not None and self.teacher_backend == "fp8":
            raise ValueError("teacher_backend: fp8 is not remembered; choose it or teacher_cache")
        if self.teacher_cache is not None and self.overlap_teacher:
            raise ValueError("overlap_teacher: a remembered teacher is read, not asked; choose it or teacher_cache")
        return self
