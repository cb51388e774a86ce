"""A teacher that one of two ranks cannot compute as the study wants."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.engine import connect
from harness.errors import IsoBudgetError, TeacherError
from harness.models import fp8
from harness.models.signals import Needs
from harness.models.teacher import Teacher, inspect
from harness.teacher_backends import settle
from harness.trainee import tiny_batch


def settle_where_one_cannot(path: str, folder: str) -> int:
    """Rank 1's teacher refuses eight bits when it is asked to use them; the exit code of what each rank meets."""
    ranks = connect(timeout_s=30.0, control_s=30.0)
    fp8.obstacle = lambda device: ""
    if ranks.rank == 1:

        def refuse(self: Teacher, backend: str) -> None:
            raise TeacherError(f"teacher {self.info.path}", rule=f"no {backend} on this rank")

        Teacher.use = refuse  # type: ignore[method-assign]
    teacher = Teacher(inspect(path), device=torch.device("cpu"), dtype=torch.float32)
    batch = tiny_batch(teacher.info.shape.vocab)
    try:
        settle(
            teacher, "fp8", first=lambda: batch, needs=[Needs(states=frozenset({2}))], folder=Path(folder), ranks=ranks,
            device=torch.device("cpu"),
        )  # fmt: skip
    except IsoBudgetError as error:
        print(error, flush=True)
        return error.exit_code
    return 0
