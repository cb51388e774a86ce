"""The nine tasks of GLUE (Wang et al., 2019): columns, classes, splits and what each is scored by. Pure Python.

Names are those of the Hub's `nyu-mll/glue`. The tenth, the diagnostic set `ax`, has no training data and hidden labels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task. `classes` in the order of the Hub's labels; none for the regression on similarity from 0 to 5."""

    name: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    judged: tuple[str, ...] = ("validation",)

    @property
    def outputs(self) -> int:
        """Width of the classifier."""
        return len(self.classes) or 1

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest label, both allowed."""
        return (0.0, float(len(self.classes) - 1)) if self.classes else (0.0, 5.0)


_ENTAILMENT = ("entailment", "not_entailment")
_SIMILAR = ("not_equivalent", "equivalent")
_PAIR = ("sentence1", "sentence2")
_ALL = (
    Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
    Task("mrpc", _PAIR, _SIMILAR, ("accuracy", "f1")),
    Task("stsb", _PAIR, (), ("pearson", "spearman")),
    Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    Task(
        "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
        judged=("validation_matched", "validation_mismatched"),
    ),
    Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
    Task("rte", _PAIR, _ENTAILMENT, ("accuracy",)),
    Task("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
