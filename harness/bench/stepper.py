"""A whole step that has one difference from the shipped one: bare PyTorch, from the arm's first weights on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.bench.check import Step, taken, without_dropout
from harness.bench.timing import WARM_UP, wait
from harness.bench.variation import Shipped, Variation
from harness.data.batch import Batch
from harness.engine import device_of
from harness.kernels.backend import prefer
from harness.lookahead import Lookahead
from harness.models.attention import written_out
from harness.models.signals import Signals
from harness.models.teacher import Teacher
from harness.study import TeacherCacheSpec
from harness.teacher_cache.content import Content
from harness.teaching import remembered_teacher, teacher_dtype, whole_teacher
from harness.trainee import Trainee, parameter_groups

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.teacher_cache.shards import RememberedTeacher
    from harness.train import Trial

REMEMBERED = TeacherCacheSpec(logits="all")
# A cache that is written to be timed and then deleted; all logits of a large batch take a hundred times as much.
MOST_CACHE_BYTES = 4_000_000_000


def shipped(trial: Trial) -> Shipped:
    """What this trial's step is, as far as variations ask."""
    plan, teacher = trial.trainee.plan, trial.teacher
    asked = teacher if isinstance(teacher, Teacher) else None
    return Shipped(
        backend=asked.backend if asked else None, dropout=asked is not None and asked.family.model.training,
        student=plan.student_needs(0), teacher=plan.teacher_needs(0),
    )  # fmt: skip


def obstacle(variation: Variation, conductor: Conductor, arm: ArmSetting, *, steps: int) -> str | None:
    """Why this variation is not worth a try here, in words; None where nothing is against it.

    Raises:
        ConfigError: a cache for an objective that cannot be remembered.
    """
    if not variation.remembered or arm.teacher is None:
        return None
    if conductor.ranks.world > 1:
        return "left out: its cache is a temporary one of one process; run on one rank"
    content = Content.of(arm.plan(), arm.teacher.shape, arm.size, REMEMBERED, arm=arm.arm.name)
    need = content.row_bytes(teacher_dtype().itemsize) * (WARM_UP + steps) * arm.size.sequences
    if need <= MOST_CACHE_BYTES:
        return None
    return (
        f"left out: the cache of {WARM_UP + steps} steps would take {need / 1e9:.3g} GB, more than {MOST_CACHE_BYTES / 1e9:g}; "
        "fewer --steps or a smaller batch take less"
    )


def padded(batch: Batch, share: float, pad: int) -> Batch:
    """The same tokens and predictions in rows of which `share` is padding, rounded to whole tokens."""
    length = batch.input_ids_BT.shape[1]
    more = round(length * share / (1 - share))
    ids_BT = functional.pad(batch.input_ids_BT, (0, more), value=pad)
    mask_BT = functional.pad(torch.ones_like(batch.input_ids_BT), (0, more))
    rows_N = batch.positions_N // length
    return replace(batch, input_ids_BT=ids_BT, attention_mask_BT=mask_BT, positions_N=batch.positions_N + rows_N * more)


def _teacher(
    conductor: Conductor, arm: ArmSetting, trial: Trial, variation: Variation, *, steps: int, cache: Path
) -> Teacher | RememberedTeacher | None:
    """The arm's teacher as this variation has it, the trial's own where it is no other; None for an arm without one."""
    taught = trial.teacher
    if not isinstance(taught, Teacher) or arm.teacher is None or arm.study.teacher is None:
        return None
    if variation.remembered:
        speed = arm.study.speed.model_copy(update={"teacher_cache": REMEMBERED})
        reading = replace(arm, study=arm.study.model_copy(update={"speed": speed}))
        return remembered_teacher(
            reading, conductor.setting.corpus, seed=0, ranks=conductor.ranks, stop=lambda: False,
            tell=conductor.tell.say, steps=WARM_UP + steps, root=cache,
        )  # fmt: skip
    needs = trial.trainee.plan.teacher_needs(0)
    asked = variation.asks(needs, variation.teacher)
    if variation.other_precision:
        dtype = torch.float32 if teacher_dtype() == torch.bfloat16 else torch.bfloat16
        dropout = arm.study.teacher.dropout
        teacher = Teacher(arm.teacher, device=device_of(conductor.ranks), dtype=dtype, dropout=dropout)
    elif variation.backend is None and asked == needs and taught.placement != "divided":
        return taught
    else:
        teacher = whole_teacher(arm, conductor.ranks)
    teacher.cut(asked)
    teacher.use(variation.backend or taught.backend)
    return teacher


class Stepper:
    """Whole steps of one variation, from the arm's first weights on."""

    def __init__(
        self, conductor: Conductor, arm: ArmSetting, trial: Trial, variation: Variation, *, steps: int, pads: float,
        cache: Path,
    ) -> None:  # fmt: skip
        """`cache` is a folder for what a remembered teacher writes; its owner deletes it."""
        self._variation, self._trial, self._pads = variation, trial, pads
        self._device, self._half = trial.engine.device, conductor.setting.ds_config.precision != "fp32"
        torch.manual_seed(0)  # the objective's projections: the same in every variation
        self._trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
        groups = parameter_groups(self._trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
        self._trainee.to(self._device)
        self._trainee.compiled = variation.compiled_student
        self._optimizer = torch.optim.AdamW(groups.groups, lr=1e-6, fused=True)
        plan = self._plan = self._trainee.plan
        self._teacher = _teacher(conductor, arm, trial, variation, steps=steps, cache=cache)
        self._asked = variation.asks(plan.teacher_needs(0), variation.teacher)
        self._needs = variation.asks(plan.student_needs(0), variation.student)
        self._pad = conductor.setting.special["pad"]
        asked = self._teacher if isinstance(self._teacher, Teacher) else None
        self._ahead = Lookahead(asked, self._device) if asked and variation.ahead else None
        dropping: list[torch.nn.Module] = [self._trainee] if arm.study.student.dropout else []
        if asked and asked.family.model.training:
            dropping.append(asked.family.model)
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
        if self._variation.other_precision:
            # Losses in Triton take a teacher of no more bytes than the student: they are to be the shipped ones here.
            signals = signals.to(teacher_dtype())
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
