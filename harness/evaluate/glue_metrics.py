"""GLUE's metrics, computed by scikit-learn and scipy; a metric that has no value is 0 with a note, never NaN.

Matthews correlation (CoLA), accuracy, F1 of the positive class (MRPC, QQP), Pearson's and Spearman's correlation
(STS-B). A task with several is scored by their mean, as GLUE's leaderboard does; so is MNLI over its two splits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from harness.data.glue_tasks import Task

# These ask how two things vary together, which nothing constant does.
CORRELATIONS = ("matthews", "pearson", "spearman")

Array = npt.NDArray[np.float64]


def metrics(task: Task, predictions: Array, labels: Array) -> tuple[dict[str, float], list[str]]:
    """Every metric of a task on one split, and notes about those that had no value.

    `predictions` are class numbers, or similarities for the regression task.
    """
    if not np.isfinite(predictions).all():
        return dict.fromkeys(task.metrics, 0.0), ["the fine-tuned model predicts no finite numbers: scored 0"]
    found: dict[str, float] = {}
    notes: list[str] = []
    sides = {"predictions": predictions, "labels": labels}
    constant = [side for side, values in sides.items() if len(np.unique(values)) == 1]
    for name in task.metrics:
        if constant and name in CORRELATIONS:
            found[name] = 0.0
            notes.append(f"{name} has no value where all {' and all '.join(constant)} are equal: scored 0")
            continue
        found[name] = _metric(name, predictions, labels)
        if not math.isfinite(found[name]):
            found[name] = 0.0
            notes.append(f"{name} has no value for these predictions: scored 0")
    return found, notes


def _metric(name: str, predictions: Array, labels: Array) -> float:
    from scipy import stats
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of F1 without any positive, which is 0
        if name == "accuracy":
            return float(accuracy_score(labels, predictions))
        if name == "f1":
            return float(f1_score(labels, predictions))
        if name == "matthews":
            return float(matthews_corrcoef(labels, predictions))
        correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
        return float(correlate(predictions, labels)[0])


def score(by_split: Mapping[str, Mapping[str, float]]) -> float:
    """One number for a task: the mean of its metrics, over its splits."""
    values = [value for found in by_split.values() for value in found.values()]
    return math.fsum(values) / len(values)
