"""GLUE made up: parquet folders in the layout, columns and features of the Hub's `nyu-mll/glue`, learnable by heart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from harness.data.glue_tasks import TASKS, Task

WORDS = "tensor batch layer weights gradient index model value function array string error class method".split()
SIGNS = ("returns", "raises", "expects")


def write_glue(
    folder: Path, *, tasks: tuple[str, ...] = tuple(TASKS), train: int = 120, judged: int = 40, seed: int = 0
) -> Path:
    """The tasks with `train` training examples; every label follows from one word of the last text. Test labels are -1."""
    for name in tasks:
        task = TASKS[name]
        splits = {"train": train, **dict.fromkeys(task.judged, judged)}
        for split, count in splits.items():
            write_split(folder, name, split, rows(task, count, f"{name} {split} {seed}"))
        hidden = rows(task, 5, f"{name} test {seed}")
        hidden["label"] = [-1] * 5 if task.classes else [-1.0] * 5
        for split in task.judged:
            write_split(folder, name, split.replace("validation", "test"), hidden)
    return folder


def rows(task: Task, count: int, key: str) -> dict[str, list[Any]]:
    generator = random.Random(key)
    table: dict[str, list[Any]] = {column: [] for column in (*task.columns, "label", "idx")}
    for number in range(count):
        label = number % task.outputs if task.classes else number % 6
        for column in task.columns:
            sign = SIGNS[label] if task.classes else "returns" if label > 2 else "raises"
            words = [*generator.choices(WORDS, k=generator.randint(2, 9)), sign, *generator.choices(WORDS, k=2)]
            table[column].append(" ".join(words))
        table["label"].append(label if task.classes else float(label))
        table["idx"].append(number)
    return table


def write_split(folder: Path, name: str, split: str, table: dict[str, list[Any]]) -> Path:
    """One split as the Hub's builder writes it: text columns, a ClassLabel or a float, and an idx."""
    from datasets import ClassLabel, Dataset, Features, Value

    task = TASKS[name]
    label = ClassLabel(names=list(task.classes)) if task.classes else Value("float32")
    features = {key: Value("string") for key in task.columns} | {"label": label, "idx": Value("int32")}
    kept = {key: feature for key, feature in features.items() if key in table}
    path = folder / name / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(table, features=Features(kept)).to_parquet(path)
    return path
