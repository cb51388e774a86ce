"""What a plan knows of GLUE before a run: which tasks fit under the cap, and how long their examples are.

Read whole where it is small or tokenised already. Larger, the lengths of a sample of every split stand for the rest: a plan
takes seconds. Not on this machine, every example is as long as allowed: an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.data import glue, glue_files, glue_price
from harness.data.glue import Frame, Part, TaskData
from harness.data.glue_price import GluePlan
from harness.data.glue_tasks import TASKS
from harness.models.shapes import Shape
from harness.units import Unit, format_amount

if TYPE_CHECKING:
    from harness.setting import Setting
    from harness.study import GlueSpec

# (train, judged) examples of each task in the published splits; MNLI is judged on two splits.
GLUE_SIZES = {
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "qqp": (363846, 40430),
    "mnli": (392702, 19647), "qnli": (104743, 5463), "rte": (2490, 277), "wnli": (635, 71),
}  # fmt: skip
# Tokenised while the user waits: a second or two.
SMALL_BYTES = 1_000_000
# Examples of a split that stand for all of it: the mean length is known to about one percent.
SAMPLE = 2000


@dataclass(frozen=True)
class GlueOutlook:
    """`plan`: the tasks that a run may take, and the most that each costs. `notes`: how that is known, and what is not."""

    plan: GluePlan
    notes: list[str]

    def flop(self, shape: Shape) -> int:
        """The most that fine-tuning a model of this shape costs. The cap is kept by all that is no dearer than the dearest arm."""
        spec = self.plan.spec
        total = sum(glue_price.task_flop(shape, task, spec) for task in self.plan.data.values())
        capped = spec.cap is not None and total <= sum(self.plan.flop.values())
        return min(total, spec.cap) if capped and spec.cap is not None else total


def outlook(setting: Setting) -> GlueOutlook | None:
    """What is known here of the study's GLUE; None where the study has none. Nothing is downloaded.

    Raises:
        ConfigError: the cap leaves no task, or not the one that decides; where GLUE is not here, only if it surely does.
        DataError: the data that is here is not as it must be.
    """
    study, spec = setting.study, setting.study.evaluation.glue
    if spec is None:
        return None
    shapes = list(dict.fromkeys(arm.shape for arm in setting.arms.values()))
    teachers = [arm.teacher.shape for arm in setting.arms.values() if arm.teacher is not None]
    longest = min(shape.max_length for shape in [*shapes, *(teachers if "teacher" in spec.references else [])])
    folder = glue_files.at_hand(spec.path, spec.tasks)
    if folder is not None:
        glue_files.check(folder, spec.tasks)
    if folder is None or setting.tokenizer is None:
        where = "is not on this machine" if folder is None else "cannot be tokenised here"
        return _bounded(spec, shapes, longest, study.evaluation.main, where)
    size = sum(file.stat().st_size for task in spec.tasks for file in (folder / task).glob("*.parquet"))
    known = {"tokenizer_fingerprint": setting.tokenizer_fingerprint, "longest": longest}
    notes = []
    if size <= SMALL_BYTES or glue.is_tokenised(spec, folder, **known):
        data = glue.prepare(spec.model_copy(update={"path": str(folder)}), setting.tokenizer, **known)
    else:
        data = {
            task: _sampled(spec, folder, task, Frame.of(setting.tokenizer, min(spec.length, longest)))
            for task in spec.tasks
        }
        notes.append(
            f"GLUE is priced at the lengths of {SAMPLE:,} examples of every split, to about a percent; a run reads all"
        )
    plan = glue_price.plan(spec, data, shapes, longest=longest)
    glue_price.decided_by(plan, study.evaluation.main)
    return GlueOutlook(plan, notes)


def _sampled(spec: GlueSpec, folder: Path, name: str, frame: Frame) -> TaskData:
    lengths = {}
    for split, paths in glue_files.files(folder, TASKS[name]).items():
        count, texts = glue_files.sample(paths, TASKS[name], most=SAMPLE)
        some = np.array([len(ids) for ids, _ in frame.sequences(texts)], dtype=np.int64)
        lengths[split] = _spread(some, count)
    return _of_lengths(spec, name, lengths)


def _of_lengths(spec: GlueSpec, name: str, lengths: dict[str, npt.NDArray[np.int64]]) -> TaskData:
    """A task of which nothing is known but how long its examples are."""
    task, available = TASKS[name], len(lengths["train"])
    train = _spread(lengths["train"], min(available, spec.train_examples or available))
    aside = glue.held_out(spec, task, len(train))
    selection = _part(_spread(train, aside)) if aside else None
    judged = {split: _part(lengths[split]) for split in task.judged}
    return TaskData(task, _part(_spread(train, len(train) - aside)), selection, judged, "", available)


def _spread(lengths_E: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """So many lengths, of which each stands for those around it."""
    return lengths_E[np.arange(count) * len(lengths_E) // max(1, count)]


def _part(lengths_E: npt.NDArray[np.int64]) -> Part:
    none = np.zeros(len(lengths_E), dtype=np.int64)
    return Part(np.zeros(0, dtype=np.int32), none, lengths_E, none, none.astype(np.float64))


def _published(spec: GlueSpec, *, lengths: dict[str, int]) -> dict[str, TaskData]:
    """The tasks at their published sizes, all examples of a task of one length."""
    found = {}
    for name in spec.tasks:
        train, judged = GLUE_SIZES[name]
        splits = TASKS[name].judged
        parts = {split: judged * (i + 1) // len(splits) - judged * i // len(splits) for i, split in enumerate(splits)}
        counts = {"train": train, **parts}
        found[name] = _of_lengths(
            spec, name, {split: np.full(n, lengths[name], dtype=np.int64) for split, n in counts.items()}
        )
    return found


def _bounded(spec: GlueSpec, shapes: list[Shape], longest: int, main: str, where: str) -> GlueOutlook:
    """Between examples of no words, which tell what surely does not fit, and examples as long as allowed."""
    length = min(spec.length, longest)
    empty = {name: len(TASKS[name].columns) + 1 for name in spec.tasks}
    full = _published(spec, lengths=dict.fromkeys(spec.tasks, length))
    low, high = (
        {name: max(glue_price.task_flop(shape, task, spec) for shape in shapes) for name, task in data.items()}
        for data in (_published(spec, lengths=empty), full)
    )
    surely = [name for name in low if spec.cap is not None and low[name] > spec.cap]
    if len(surely) == len(low):
        raise glue_price.too_low(spec, low, costs="costs at least")
    plan = GluePlan(
        spec=spec, data={name: task for name, task in full.items() if name not in surely}, length=length,
        flop={name: price for name, price in high.items() if name not in surely},
        dropped={name: high[name] for name in surely},
    )  # fmt: skip
    glue_price.decided_by(plan, main)
    fits = glue_price.fitting(high, spec.cap)
    notes = [f"GLUE {where}: it is priced at its published sizes, every example at full length, an upper bound"]
    if unsure := [f"{name} ({format_amount(plan.flop[name], Unit.FLOP)})" for name in plan.flop if name not in fits]:
        notes.append(
            f"GLUE is capped at {format_amount(spec.cap or 0, Unit.FLOP)} per student: at full length these would not fit: "
            f"{', '.join(unsure)}; a run takes tasks cheapest first as far as their real lengths let it"
        )
    return GlueOutlook(plan, notes)
