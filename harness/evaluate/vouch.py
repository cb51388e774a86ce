"""Is a teacher better than the untrained student it is to teach? Asked before anything is spent.

A teacher with a broken head or with other special tokens loads without complaint and predicts worse than
random weights do; a study would then measure nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from harness import alarms
from harness.data.batch import Batch
from harness.errors import TeacherError
from harness.evaluate import mlm
from harness.evaluate.subject import Subject

# Held-out blocks: at T = 64 some 600 masked positions, enough to tell a teacher from random weights.
BLOCKS = 64


@dataclass(frozen=True)
class Voucher:
    """Held-out losses (nats) of a teacher and of the untrained student, and what finding out cost."""

    teacher_loss: float
    student_loss: float
    worse: bool
    flop: int
    seconds: float

    @property
    def weak(self) -> bool:
        """True when the teacher is better than random weights, but hardly more than counts of tokens would be."""
        return not self.worse and alarms.weak(self.teacher_loss, self.student_loss)


def loss_name(causal: bool) -> str:
    """What a student's own loss is called in a sentence."""
    return "a next-token loss" if causal else "an MLM loss"


def vouch(teacher: Subject, student: Subject, batches: Sequence[Batch], *, name: str, allow_worse: bool) -> Voucher:
    """Compare teacher and untrained student on the same blocks, masked or causal; neither is changed.

    Raises:
        TeacherError: the teacher's loss is not below the student's (or is no number), and no override was given.
    """
    begun = time.monotonic()
    blocks = list(batches)
    theirs, mine = (mlm.evaluate(subject, blocks)["mlm.loss"] for subject in (teacher, student))
    worse = not theirs < mine  # NaN is worse than anything
    if worse and not allow_worse:
        raise TeacherError(
            f"teacher {name} has {loss_name(student.shape.causal)} of {theirs:.3f} "
            f"where the untrained student has {mine:.3f}",
            rule="a teacher predicts better than random weights",
            remedy="check its tokenizer and its head, or set teacher.allow_worse: true",
        )
    cost = mlm.flops(teacher, blocks) + mlm.flops(student, blocks)
    return Voucher(theirs, mine, worse, cost, time.monotonic() - begun)
