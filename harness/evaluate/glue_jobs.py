"""The work list of GLUE: one job is one fine-tuning, named by everything its result depends on.

The list, the prices and who does what are functions of the study alone, so every rank knows all of it without a word.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.glue import TaskData
from harness.data.glue_price import GluePlan, Stage, full_steps, job_flop
from harness.evaluate.encoders import Encoder, Untrained
from harness.evaluate.finetune import Recipe

# Changing how a fine-tuning is done changes this number, so that old results are not taken for new ones.
VERSION = 1
FOLDER = "glue"
Point = tuple[float, int]


@dataclass(frozen=True)
class Student:
    """A model to fine-tune, and the folder below which its results are kept."""

    name: str
    folder: Path
    model: Encoder | Untrained


@dataclass(frozen=True)
class Job:
    """One student fine-tuned once. `last` says that its score counts and is not only chosen by."""

    student: Student
    data: TaskData
    recipe: Recipe
    last: bool
    price: int
    key: str

    @property
    def task(self) -> str:
        return self.data.task.name

    @property
    def point(self) -> Point:
        return self.recipe.lr, self.recipe.batch

    @property
    def file(self) -> Path:
        return self.student.folder / FOLDER / f"{self.task}-{self.key}.json"

    def describe(self) -> dict[str, Any]:
        return {"student": self.student.name, "task": self.task, **asdict(self.recipe)}


def job(plan: GluePlan, student: Student, task: str, point: Point, seed: int, stage: Stage, precision: str) -> Job:
    """One job of one stage of the search."""
    data, spec = plan.data[task], plan.spec
    lr, batch = point
    full = full_steps(data, batch=batch, epochs=spec.points.epochs)
    steps = stage.steps(full)
    recipe = Recipe(
        lr=lr, batch=batch, epochs=spec.points.epochs, steps=steps, seed=seed, dropout=spec.dropout, warmup=spec.warmup,
        weight_decay=spec.weight_decay, precision=precision,
    )  # fmt: skip
    depends_on = [VERSION, student.model.fingerprint, student.model.segments, data.fingerprint, asdict(recipe)]
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    price = job_flop(student.model.shape, data, batch=batch, epochs=recipe.epochs, steps=steps)
    return Job(student, data, recipe, steps == full, price, key)


def assign(jobs: list[Job], world: int) -> list[list[Job]]:
    """The jobs of every rank: the dearest first, each to the rank with the least so far."""
    shares: list[list[Job]] = [[] for _ in range(world)]
    load = [0] * world
    for each in sorted(jobs, key=lambda j: (-j.price, j.key, str(j.file))):
        rank = load.index(min(load))
        shares[rank].append(each)
        load[rank] += each.price
    return shares
