"""From an arm to the teacher that its trial asks: whole, cut to what the objective needs, divided between ranks, or remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.engine import device_of, divided, must_divide
from harness.hardware import bf16_in_hardware
from harness.models.signals import Needs
from harness.models.teacher import Teacher
from harness.remember import remember
from harness.watchdog import LONG_WORK, beat

if TYPE_CHECKING:
    from harness.data.corpus import Corpus
    from harness.ds_config import DsConfig
    from harness.objectives.composition import Plan
    from harness.ranks import Ranks
    from harness.setting import ArmSetting
    from harness.teacher_cache.shards import RememberedTeacher


def teacher_dtype() -> torch.dtype:
    """What teachers compute in here."""
    return torch.bfloat16 if bf16_in_hardware() else torch.float32


def whole_teacher(arm: ArmSetting, ranks: Ranks) -> Teacher:
    """The arm's teacher on this rank's device, before anything is cut."""
    assert arm.teacher is not None
    assert arm.study.teacher is not None
    return Teacher(arm.teacher, device=device_of(ranks), dtype=teacher_dtype(), dropout=arm.study.teacher.dropout)


def cut_teacher(arm: ArmSetting, plan: Plan, ranks: Ranks) -> Teacher:
    """The arm's teacher, whole on this rank, as far as its objective needs it."""
    teacher = whole_teacher(arm, ranks)
    needs = Needs()
    for phase in range(len(plan.phases)):
        needs |= plan.teacher_needs(phase)
    teacher.cut(needs)
    return teacher


def asked_teacher(arm: ArmSetting, plan: Plan, ds_config: DsConfig, ranks: Ranks) -> Teacher | None:
    """What a trial asks in every step, divided between the ranks where it must be; None for an arm without a teacher."""
    if arm.teacher is None or not plan.needs_teacher:
        return None
    beat(f"the teacher of {arm.arm.name}", patience=LONG_WORK)
    teacher = cut_teacher(arm, plan, ranks)
    if must_divide(teacher.weight_bytes, ds_config, ranks):
        teacher.divide(divided)
    return teacher


def remembered_teacher(
    arm: ArmSetting, corpus: Corpus, *, seed: int, ranks: Ranks, stop: Callable[[], bool], tell: Callable[[str], None],
    written: Callable[[int], None] = lambda there: None, steps: int | None = None, root: Path | None = None,
) -> RememberedTeacher | None:  # fmt: skip
    """What the arm's teacher says of every sample its budget buys, or of the first `steps`; None where it is asked.

    Written here, under `root` or the data cache, where it is not yet, before the trial's clocks start: its account holds
    what it took.
    """
    plan = arm.plan()
    if not arm.remembers(plan):
        return None
    beat(f"the teacher's cache of {arm.arm.name}", patience=LONG_WORK)

    def say(text: str) -> None:
        beat(text, patience=LONG_WORK)
        tell(text)

    return remember(
        arm, plan, corpus, seed=seed, dtype=teacher_dtype(), device=device_of(ranks), ranks=ranks,
        teacher=lambda: cut_teacher(arm, plan, ranks), stop=stop, tell=say, written=written, steps=steps, root=root,
    )  # fmt: skip
