"""GLUE and sizes of a whole study: every trained student and the references, their scores written into the records.

Needs the exported students and the study file, not the corpus: a directory copied from elsewhere can be evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.budget import Account
from harness.evaluate import size
from harness.evaluate.encoders import Encoder, Untrained
from harness.evaluate.glue import Glue, scores, spent
from harness.evaluate.glue_jobs import Student
from harness.models.teacher import resolve
from harness.rundir import RunDirectory, read_json, write_json
from harness.study import StudySpec
from harness.units import Unit

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PREFIX = "glue."
REFERENCES = "references"


def trained(study: StudySpec, directory: RunDirectory) -> list[tuple[str, int]]:
    """Every (arm, seed) whose student is there."""
    return [
        (arm.name, seed)
        for arm in study.arms
        for seed in study.seeds
        if (directory.record(arm.name, seed) or {}).get("state") == "done"
    ]


def students(
    study: StudySpec, directory: RunDirectory, trials: list[tuple[str, int]], *, config: PretrainedConfig
) -> list[Student]:
    """What is fine-tuned: the trials' students and the references that the study asks for.

    `config` is the first arm's student's; with the study's first seed it makes the untrained reference.
    """
    spec = study.evaluation.glue
    assert spec is not None
    found = []
    for arm, seed in trials:
        folder = directory.trial(arm, seed)
        found.append(Student(f"{arm} · seed {seed}", folder, Encoder(folder / "student")))
    home = directory.root / REFERENCES
    if "untrained" in spec.references:
        found.append(Student("untrained student", home / "untrained", Untrained(config, study.seeds[0])))
    if "teacher" in spec.references and study.teacher is not None:
        found.append(Student("teacher", home / "teacher", Encoder(resolve(study.teacher.path))))
    return found


def evaluate(glue: Glue, *, publish: bool, directory: RunDirectory, trials: list[tuple[str, int]]) -> None:
    """Fine-tune what is missing; with `publish`, rank 0 writes scores, costs and choices into records and references."""
    summaries = glue.run()
    if publish and glue.ranks.is_main:
        write(directory, trials, glue, summaries)
    glue.ranks.barrier()


def write(
    directory: RunDirectory, trials: list[tuple[str, int]], glue: Glue, summaries: dict[str, dict[str, Any]]
) -> None:
    """Merge GLUE into records and references.json, in place of what earlier evaluations said. Rank 0 only."""
    found = scores(summaries)
    by_folder = {student.folder: student.name for student in glue.students}
    for arm, seed in trials:
        folder = directory.trial(arm, seed)
        record = read_json(folder / "record.json")
        merge(record, found[by_folder[folder]], summaries[by_folder[folder]], folder)
        write_json(folder / "record.json", record)
    file = directory.root / "references.json"
    references = read_json(file) or {}
    for student in glue.students:
        if student.folder.parent == directory.root / REFERENCES:
            row = references.setdefault(student.folder.name, {"scores": {}})
            row["scores"] = without(row["scores"]) | found[student.name]
            row["glue"] = summaries[student.name]
    write_json(file, references)


def merge(record: dict[str, Any], found: dict[str, float], summary: dict[str, Any], folder: Path) -> None:
    """GLUE in one record: scores, how they were come by, and their cost, which belongs to EVALUATION."""
    record["scores"] = without(record["scores"]) | found
    flop, seconds = spent(folder)
    record["glue"] = {**summary, "flop": flop, "seconds": seconds}
    account = record["accounts"].setdefault(Account.EVALUATION.value, {})
    for unit, amount in ((Unit.FLOP.value, flop), (Unit.GPU_SECOND.value, seconds)):
        before = account.get(f"{unit}_in_glue", 0)
        account[unit] = account.get(unit, 0) - before + amount
        account[f"{unit}_in_glue"] = amount


def without(row: dict[str, float]) -> dict[str, float]:
    """Scores other than GLUE's."""
    return {name: value for name, value in row.items() if not name.startswith(PREFIX)}


def measure_sizes(directory: RunDirectory, trials: list[tuple[str, int]], device: torch.device) -> None:
    """Size and latency of every student that has none from this kind of device yet. Rank 0 only, the others idle."""
    here = size.device_name(device)
    for arm, seed in trials:
        folder = directory.trial(arm, seed)
        record = read_json(folder / "record.json")
        if (record.get("model") or {}).get("latency", {}).get("device") == here:
            continue
        record["model"] = size.measure(folder / "student", device=device)
        write_json(folder / "record.json", record)
