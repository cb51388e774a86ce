"""One difference from the shipped step, and a whole step that has it: bare PyTorch, from the arm's first weights on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.bench.check import Step, taken, without_dropout
from harness.bench.timing import WARM_UP, wait
from harness.data.batch import Batch
from harness.engine import device_of
from harness.hardware import bf16_in_hardware, has_cuda
from harness.kernels.backend import Backend, prefer
from harness.lookahead import Lookahead
from harness.models import fp8
from harness.models.attention import written_out
from harness.models.signals import Needs, Signals
from harness.models.teacher import Backend as Teaching
from harness.models.teacher import Teacher
from harness.study import TeacherCacheSpec
from harness.teaching import remembered_teacher, teacher_dtype, whole_teacher
from harness.trainee import Trainee, parameter_groups

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.train import Trial

NOTHING, EVERYWHERE, LAST_LAYER = Needs(), Needs(logits="tokens"), Needs(logits="masked")
DEFINITION = "fused losses taken away"


@dataclass(frozen=True)
class Variation:
    """One difference from the shipped step; what `teacher` and `student` are asked beyond what the objective needs."""

    name: str
    kernels: Backend = "auto"
    teacher: Needs = NOTHING
    student: Needs = NOTHING
    dense_heads: bool = False
    written_out: bool = False
    padded: bool = False
    data_inside: bool = False
    other_precision: bool = False
    backend: Teaching = "plain"
    ahead: bool = False
    compiled_student: bool = False
    remembered: bool = False

    @property
    def teaches_otherwise(self) -> bool:
        """Whether its teacher's answers are rounded elsewhere than the shipped one's."""
        return self.other_precision or self.backend == "fp8"

    def asks(self, needs: Needs, more: Needs) -> Needs:
        """What a model is asked here instead of `needs`."""
        return needs | (EVERYWHERE if self.dense_heads and needs.logits == "masked" else more)

    def changes(self, taught: bool, student: Needs, teacher: Needs) -> bool:
        """Whether an arm's step differs from the shipped one."""
        if self.other_precision or self.backend != "plain" or self.ahead or self.remembered:
            return taught
        if self.dense_heads or self.teacher or self.student:
            asked = taught and self.asks(teacher, self.teacher) != teacher
            return asked or self.asks(student, self.student) != student or self.kernels != "auto"
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
        Variation("compiled teacher put in", backend="compiled"),
        *on_gpu,
        Variation("compiled student put in", compiled_student=True),
        Variation("teacher's cache put in, all logits", remembered=True),
    ]


def padded(batch: Batch, share: float, pad: int) -> Batch:
    """The same tokens and predictions in rows of which `share` is padding, rounded to whole tokens."""
    length = batch.input_ids_BT.shape[1]
    more = round(length * share / (1 - share))
    ids_BT = functional.pad(batch.input_ids_BT, (0, more), value=pad)
    mask_BT = functional.pad(torch.ones_like(batch.input_ids_BT), (0, more))
    rows_N = batch.positions_N // length
    return replace(batch, input_ids_BT=ids_BT, attention_mask_BT=mask_BT, positions_N=batch.positions_N + rows_N * more)


def _teacher(conductor: Conductor, arm: ArmSetting, plan: Any, variation: Variation, *, steps: int) -> Any:
    """The arm's teacher as this variation has it; None for an arm without one."""
    if arm.teacher is None or not plan.needs_teacher:
        return None
    if variation.remembered:
        speed = arm.study.speed.model_copy(update={"teacher_cache": TeacherCacheSpec(logits="all")})
        reading = replace(arm, study=arm.study.model_copy(update={"speed": speed}))
        return remembered_teacher(
            reading, conductor.setting.corpus, seed=0, ranks=conductor.ranks, stop=lambda: False,
            tell=conductor.tell.say, steps=WARM_UP + steps,
        )  # fmt: skip
    if variation.other_precision:
        dtype = torch.float32 if teacher_dtype() == torch.bfloat16 else torch.bfloat16
        teacher = Teacher(arm.teacher, device=device_of(conductor.ranks), dtype=dtype)
        teacher.cut(plan.teacher_needs(0))
        return teacher
    teacher = whole_teacher(arm, conductor.ranks)
    teacher.cut(variation.asks(plan.teacher_needs(0), variation.teacher))
    teacher.use(variation.backend)
    return teacher


class Stepper:
    """Whole steps of one variation, from the arm's first weights on."""

    def __init__(
        self, conductor: Conductor, arm: ArmSetting, trial: Trial, variation: Variation, *, steps: int, pads: float
    ) -> None:
        self._variation, self._trial, self._pads = variation, trial, pads
        self._device, self._half = trial.engine.device, conductor.setting.ds_config.precision != "fp32"
        torch.manual_seed(0)  # the objective's projections: the same in every variation
        self._trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
        groups = parameter_groups(self._trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
        self._trainee.to(self._device)
        self._trainee.compiled = variation.compiled_student
        self._optimizer = torch.optim.AdamW(groups.groups, lr=1e-6, fused=True)
        plan = self._plan = self._trainee.plan
        self._teacher = _teacher(conductor, arm, plan, variation, steps=steps)
        self._asked = variation.asks(plan.teacher_needs(0), variation.teacher)
        self._needs = variation.asks(plan.student_needs(0), variation.student)
        self._pad = conductor.setting.special["pad"]
        self._ahead = Lookahead(self._teacher, self._device) if variation.ahead else None
        dropping: list[torch.nn.Module] = [self._trainee] if arm.study.student.dropout else []
        if isinstance(self._teacher, Teacher) and self._teacher.family.model.training:
            dropping.append(self._teacher.family.model)
        self._dropping = dropping

    def first(self, batches: list[Batch]) -> Step:
        """Loss and gradient of the first step, without dropout and without an update; not timed."""
        prefer(self._variation.kernels)
        with without_dropout(*self._dropping):
            loss = self._all(self._given(batches), batches)
        return taken(self._trainee, loss)

    def __call__(self, steps: list[list[Batch]], number: int) -> float:
        """One whole step, given its batches and the next step's; returns its seconds."""
        prefer(self._variation.kernels)
        batches, coming = self._given(steps[0]), steps[1]
        wait(self._device)
        begun = time.perf_counter()
        if self._variation.data_inside:
            batches = [batch.to(self._device) for batch in self._trial.stream.step(number)]
        self._all(batches, coming)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        wait(self._device)
        return time.perf_counter() - begun

    def _given(self, batches: list[Batch]) -> list[Batch]:
        return [padded(batch, self._pads, self._pad) for batch in batches] if self._variation.padded else batches

    def _all(self, batches: list[Batch], coming: list[Batch]) -> torch.Tensor:
        """Forward and backward of every micro-batch; the mean loss."""
        loss = torch.zeros((), device=self._device)
        with written_out(self._variation.written_out):
            for batch, following in zip(batches, [*batches[1:], coming[0]], strict=True):
                loss += self._one(batch, following) / len(batches)
        return loss

    def _one(self, batch: Batch, following: Batch) -> torch.Tensor:
        plan, teacher, ahead = self._plan, self._teacher, self._ahead
        signals = (ahead.take if ahead else teacher)(batch, self._asked) if teacher is not None else Signals()
        if self._asked != plan.teacher_needs(0) and signals.head is not None:
            signals.head.logits()
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            seen = self._trainee.signals(batch, self._needs)
            if self._needs != plan.student_needs(0) and seen.head is not None:
                seen.head.logits()
            total = plan(0, seen, signals, batch)["total"]
        if ahead is not None:
            ahead.ask(following, self._asked)
        (total / self._trial.stream.accumulation).backward()
        return total.detach()
