"""The Hub's `model-index` of a student: each score under the task and the data it was measured on.

The student's own scores are those of its corpus. GLUE's are those of copies that were fine-tuned, each on a task of
its own: they stand under that task's data, by the Hub's names of its metrics, and say how they were come by.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.report import numbers
from harness.report.nesting import GLUE, NAMES, tasks_of
from harness.report.source import Json, Run, mapping, number

# Ours: (the Hub's, in words).
METRICS = {
    "matthews": ("matthews_correlation", "Matthews correlation"), "accuracy": ("accuracy", "Accuracy"),
    "f1": ("f1", "F1"), "pearson": ("pearsonr", "Pearson correlation"), "spearman": ("spearmanr", "Spearman correlation"),
}  # fmt: skip


def model_index(run: Run, *, name: str, task: str, dataset: Json, scores: Iterable[str], source: str) -> list[Json]:
    """The header's entry; empty where nothing was scored.

    Args:
        scores: the student's own, which belong to `task` on `dataset`; GLUE's among them are left to their tasks.
        source: where GLUE came from, as a card may name it.
    """
    own = [
        {"type": metric, "name": numbers.label(metric), "value": value}
        for metric in scores
        if not metric.startswith(GLUE) and (value := run.scores.get(metric)) is not None
    ]
    results = [{"task": {"type": task}, "dataset": dataset, "metrics": own}] if own else []
    results += [each for name_, facts in tasks_of(run).items() for each in _fine_tuned(run, name_, facts, source)]
    return [{"name": name, "results": results}] if results else []


def fine_tuning(run: Run, facts: Json) -> str:
    """How a task's score was come by: "fine-tuned, lr 5e-05, batch 32, 3 epochs, mean of 2 seeds"."""
    told = [
        f"{word} {facts[key]:g}"
        for key, word in (("lr", "lr"), ("batch", "batch"))
        if number(facts.get(key)) is not None
    ]
    if number(facts.get("epochs")) is not None:
        told.append(f"{facts['epochs']:g} epochs")
    seeds = len(mapping(facts.get("by_seed")))
    told += [f"mean of {seeds} seeds"] if seeds > 1 else []
    chosen = mapping(mapping(run.record.get("glue")).get("recipe")).get("chosen_on")
    told += [f"chosen on {chosen}"] if chosen else []
    return ", ".join(["fine-tuned", *told])


def _fine_tuned(run: Run, task: str, facts: Json, source: str) -> Iterable[Json]:
    """One result per judged split of a task."""
    how = fine_tuning(run, facts)
    for split, found in mapping(facts.get("metrics")).items():
        metrics = []
        for metric, value in mapping(found).items():
            kind, words = METRICS.get(str(metric), (str(metric), str(metric)))
            if number(value) is not None:
                metrics.append({"type": kind, "name": f"{words}, {how}", "value": value})
        if metrics:
            data = {"name": f"GLUE {NAMES.get(task, task)}", "type": source, "config": task, "split": str(split)}
            label = f"Text classification, fine-tuned on {NAMES.get(task, task)}"
            yield {"task": {"type": "text-classification", "name": label}, "dataset": data, "metrics": metrics}
