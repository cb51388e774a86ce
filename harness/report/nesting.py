"""Fine-tuning seeds nested in pretraining seeds, and all arms in one model: where a score's variance comes from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness import nested
from harness.compare import higher_is_better
from harness.nested import MixedModel
from harness.report.source import Json, Run, mapping, number

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

GLUE = "glue."
GLUE_MEAN = "glue.mean"
# As their authors spell them.
NAMES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI",
    "rte": "RTE", "wnli": "WNLI",
}  # fmt: skip


@dataclass(frozen=True)
class Nesting:
    """The mixed model of one score."""

    metric: str
    model: MixedModel

    def as_json(self) -> Json:
        return {"metric": self.metric, **asdict(self.model)}


def nestings(analysis: Analysis) -> list[Nesting]:
    """Models of the deciding score and of every GLUE score that says more than the paired t does.

    That is where fine-tuning seeds are nested, or where three or more arms share their variance.
    """
    metrics = dict.fromkeys([analysis.main, *(m for m in analysis.metrics if m.startswith(GLUE))])
    tasks = common_tasks(analysis)
    found: list[Nesting] = []
    for metric in metrics:
        flagged = analysis.meaningless(metric)
        scores = {
            arm.name: {run.seed: values for run in arm.done if (values := fine_scores(run, metric, tasks))}
            for arm in analysis.arms
            if arm.name not in flagged
        }
        model = nested.fit(scores, higher_is_better=higher_is_better(metric))
        if model is not None and (model.fine > 1 or len(model.arms) > 2):
            found.append(Nesting(metric, model))
    return found


def common_tasks(analysis: Analysis) -> list[str]:
    """What every run that was fine-tuned was fine-tuned on: the tasks that `glue.mean` is over."""
    found = [tasks for arm in analysis.arms for run in arm.done if (tasks := tasks_of(run))]
    return [task for task in (found[0] if found else []) if all(task in tasks for tasks in found)]


def fine_scores(run: Run, metric: str, tasks: Sequence[str]) -> list[float]:
    """A run's score under each fine-tuning seed; its one score where nothing is nested. `glue.mean` is over `tasks`."""
    if metric == GLUE_MEAN:
        by_task = [by_fine_seed(run, task) for task in tasks]
        shared = set.intersection(*(set(row) for row in by_task)) if by_task else set()
        if shared:
            return [statistics.fmean(row[seed] for row in by_task) for seed in sorted(shared)]
    elif metric.startswith(GLUE) and (rows := by_fine_seed(run, metric.removeprefix(GLUE))):
        return [rows[seed] for seed in sorted(rows)]
    score = run.scores.get(metric)
    return [] if score is None else [score]


def tasks_of(run: Run) -> dict[str, Json]:
    """{task: what is recorded of it} of a run's GLUE; empty where it has none."""
    tasks = mapping(mapping(run.record.get("glue")).get("tasks"))
    return {str(name): mapping(row) for name, row in tasks.items() if isinstance(row, dict)}


def by_fine_seed(run: Run, task: str) -> dict[str, float]:
    """{fine-tuning seed: score} of one task, finite scores only."""
    rows = mapping(tasks_of(run).get(task, {}).get("by_seed"))
    return {str(seed): value for seed, row in rows.items() if (value := number(row)) is not None}


def missing_glue(analysis: Analysis) -> list[str]:
    """Runs that lack tasks which others were evaluated on: "no_kd, seed 3: CoLA and RTE"."""
    runs = [(arm, run) for arm in analysis.arms for run in arm.done]
    tasks = list(dict.fromkeys(task for _, run in runs for task in tasks_of(run)))
    found = []
    for arm, run in runs:
        lack = [NAMES.get(task, task) for task in tasks if task not in tasks_of(run)]
        if lack:
            found.append(f"{arm.name}, seed {run.seed}: {', '.join(lack)}")
    return found
