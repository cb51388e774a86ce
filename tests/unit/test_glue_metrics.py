"""GLUE's metrics are scikit-learn's and scipy's, to the last digit, and have a value whatever a model predicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics as sk

from harness.data.glue_tasks import TASKS
from harness.evaluate.glue_metrics import metrics, score


@pytest.mark.parametrize("name", TASKS)
def test_metrics_equal_scikit_learns_and_scipys_on_the_same_predictions(name: str) -> None:
    task, generator = TASKS[name], np.random.default_rng(3)
    if task.classes:
        labels = generator.integers(0, len(task.classes), 300).astype(float)
        wrong = generator.random(300) < 0.3
        predictions = np.where(wrong, (labels + 1) % len(task.classes), labels)
    else:
        labels = generator.random(300) * 5
        predictions = labels + generator.normal(size=300)
    expected = {
        "matthews": lambda: sk.matthews_corrcoef(labels, predictions),
        "accuracy": lambda: sk.accuracy_score(labels, predictions),
        "f1": lambda: sk.f1_score(labels, predictions),
        "pearson": lambda: stats.pearsonr(labels, predictions).statistic,
        "spearman": lambda: stats.spearmanr(labels, predictions).statistic,
    }
    found, notes = metrics(task, predictions, labels)
    assert list(found) == list(task.metrics)
    assert notes == []
    for metric, value in found.items():
        assert value == pytest.approx(expected[metric](), abs=1e-12)
        assert abs(value) > 0.3, "the case tells a right formula from a constant"


@given(st.sampled_from(list(TASKS)), st.data())
def test_a_score_is_always_a_finite_number(name: str, data: st.DataObject) -> None:
    task = TASKS[name]
    count = data.draw(st.integers(1, 12))
    values = st.integers(0, len(task.classes) - 1) if task.classes else st.floats(-10, 10, width=32)
    predictions, labels = (data.draw(arrays(np.float64, count, elements=values)) for _ in range(2))
    found, notes = metrics(task, predictions, labels)
    assert all(math.isfinite(value) for value in found.values())
    if len(set(predictions.tolist())) == 1 and task.metrics[0] in ("matthews", "pearson"):
        assert set(found.values()) == {0.0}
        assert len(notes) == len(task.metrics)


def test_a_constant_prediction_is_scored_0_and_said() -> None:
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    found, notes = metrics(TASKS["cola"], np.ones(4), labels)
    assert found == {"matthews": 0.0}
    assert "all predictions are equal: scored 0" in notes[0]
    found, notes = metrics(TASKS["stsb"], np.full(4, 2.5), labels)
    assert found == {"pearson": 0.0, "spearman": 0.0}
    assert len(notes) == 2


def test_predictions_that_are_no_numbers_are_scored_0_and_said() -> None:
    for task in TASKS.values():
        found, notes = metrics(task, np.array([0.0, math.nan, 1.0]), np.array([0.0, 1.0, 1.0]))
        assert set(found.values()) == {0.0}
        assert "no finite numbers" in notes[0]


def test_a_tasks_score_is_the_mean_of_its_metrics_over_its_splits() -> None:
    assert score({"validation": {"accuracy": 0.8, "f1": 0.6}}) == pytest.approx(0.7)
    assert score({"validation_matched": {"accuracy": 0.8}, "validation_mismatched": {"accuracy": 0.7}}) == 0.75
