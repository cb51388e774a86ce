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

Array = npt.NDArray[np.float64]


def metrics(task: Task, predictions: Array, labels: Array) -> tuple[dict[str, float], list[str]]:
    """Every metric of a task on one split, and notes about those that had no value.

    `predictions` are class numbers, or similarities for the regression task.
    """
    if not np.isfinite(predictions).all():
        return dict.fromkeys(task.metrics, 0.0), ["the fine-tuned model predicts no finite numbers: scored 0"]
    found: dict[str, float] = {}
    notes: list[str] = []
    constant = {
        what: len(np.unique(values)) == 1 for what, values in (("predictions", predictions), ("labels", labels))
    }
    for name in task.metrics:
        value = _metric(name, predictions, labels)
        flat = [what for what, is_flat in constant.items() if is_flat]
        if not math.isfinite(value) or (flat and name in ("matthews", "pearson", "spearman")):
            notes.append(f"{name} has no value where all {' and all '.join(flat) or 'values'} are equal: scored 0")
            value = 0.0
        found[name] = value
    return found, notes


def _metric(name: str, predictions: Array, labels: Array) -> float:
    from scipy import stats
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of constant input: correlations of it are noted by the caller, an F1 of none is 0
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
