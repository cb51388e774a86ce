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
from harness.evaluate.glue import Glue, common_tasks, row_of, spent
from harness.evaluate.glue_jobs import Student
from harness.models.teacher import resolve
from harness.rundir import RunDirectory, read_json, write_json
from harness.study import StudySpec
from harness.study.glue import NAMES, unlike
from harness.units import Unit
from harness.watchdog import beat

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
    if publish:
        glue.ranks.on_main(lambda: write(directory, trials, glue, summaries))


def write(
    directory: RunDirectory, trials: list[tuple[str, int]], glue: Glue, summaries: dict[str, dict[str, Any]]
) -> None:
    """Merge GLUE into records and references.json, with what earlier evaluations by the same recipe found. Rank 0 only."""
    file = directory.root / "references.json"
    references = read_json(file) or {}
    summaries = {
        student.name: joined(_before(student.folder, directory.root, references), summaries[student.name])
        for student in glue.students
    }
    by_folder = {student.folder: summaries[student.name] for student in glue.students}
    measured = [by_folder[directory.trial(*trial)] for trial in trials]
    common = common_tasks(measured)
    beside = [task for task in NAMES if any(task in summary["tasks"] for summary in measured) and task not in common]
    for arm, seed in trials:
        folder = directory.trial(arm, seed)
        record = directory.record(arm, seed)
        assert record is not None
        summary = by_folder[folder]
        if beside:
            summary = {**summary, "notes": [*summary["notes"], _narrowed(common, beside)]}
        merge(record, summary, common, folder)
        write_json(folder / "record.json", record)
    for student in glue.students:
        if student.folder.parent == directory.root / REFERENCES:
            references.setdefault(student.folder.name, {"scores": {}})["glue"] = summaries[student.name]
    # Those that were not asked for this time too: what stands below the arms is of their recipe, its mean over their tasks.
    recipe = glue.recipe() | _OWN
    for row in references.values():
        if (summary := row.get("glue")) is not None:
            row["scores"] = without(row["scores"])
            if unlike(summary["recipe"] | _OWN, recipe):
                del row["glue"]
            else:
                row["scores"] |= row_of(summary, common)
    write_json(file, references)


# What a recipe says of the model, in which a reference may differ from the arms.
_OWN = {"segments": None, "pooling": None}


def _narrowed(common: list[str], beside: list[str]) -> str:
    over = f"glue.mean is over {', '.join(common)}" if common else "there is no glue.mean"
    return f"{over}: not every arm and seed has been evaluated on {', '.join(beside)}; evaluate again with these tasks"


def merge(record: dict[str, Any], summary: dict[str, Any], common: list[str], folder: Path) -> None:
    """GLUE in one record: scores, how they were come by, and their cost, which belongs to EVALUATION."""
    record["scores"] = without(record["scores"]) | row_of(summary, common)
    flop, seconds = spent(folder)
    record["glue"] = {**summary, "flop": flop, "seconds": seconds}
    account = record["accounts"].setdefault(Account.EVALUATION.value, {})
    for unit, amount in ((Unit.FLOP.value, flop), (Unit.GPU_SECOND.value, seconds)):
        before = account.get(f"{unit}_in_glue", 0)
        account[unit] = account.get(unit, 0) - before + amount
        account[f"{unit}_in_glue"] = amount


def _before(folder: Path, root: Path, references: dict[str, Any]) -> dict[str, Any]:
    """What is known of a student's GLUE from earlier evaluations."""
    if folder.parent == root / REFERENCES:
        return references.get(folder.name, {}).get("glue") or {}
    return (read_json(folder / "record.json") or {}).get("glue") or {}


def joined(before: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """A student's summary with the tasks it was evaluated on before by the same recipe.

    Those of another recipe are left out, and a note says so: a mean over unlike recipes would be no score.
    """
    # What this evaluation's cap dropped is dropped for every student, evaluated before or not.
    known = {*summary["tasks"], *summary["dropped"]}
    earlier = {task: facts for task, facts in before.get("tasks", {}).items() if task not in known}
    if not earlier:
        return summary
    if differs := unlike(summary["recipe"], before.get("recipe", {})):
        note = (
            f"{', '.join(earlier)} had been evaluated by another recipe ({', '.join(differs)}) and {'are' if len(earlier) > 1 else 'is'} "
            "left out: evaluate again by this one"
        )
        return {**summary, "notes": [*summary["notes"], note]}
    merged = {**earlier, **summary["tasks"]}
    tasks = {task: merged[task] for task in NAMES if task in merged}
    notes = [note for note in before.get("notes", []) if note.partition(":")[0].partition(",")[0] in earlier]
    return {
        **summary, "tasks": tasks, "recipe": {**summary["recipe"], "tasks": list(tasks)},
        "notes": [*notes, *summary["notes"]],
    }  # fmt: skip


def only(row: dict[str, float]) -> dict[str, float]:
    """GLUE's scores, which another evaluation than GLUE leaves as they are."""
    return {name: value for name, value in row.items() if name.startswith(PREFIX)}


def without(row: dict[str, float]) -> dict[str, float]:
    """Scores other than GLUE's."""
    return {name: value for name, value in row.items() if not name.startswith(PREFIX)}


def measure_sizes(directory: RunDirectory, trials: list[tuple[str, int]], device: torch.device) -> None:
    """Size and latency of every student that has none from this kind of device yet. Rank 0 only, the others idle."""
    here = size.device_name(device)
    for arm, seed in trials:
        folder = directory.trial(arm, seed)
        record = directory.record(arm, seed)
        assert record is not None
        if (record.get("model") or {}).get("latency", {}).get("device") == here:
            continue
        beat(f"the size of {arm}, seed {seed}")
        record["model"] = size.measure(folder / "student", device=device)
        write_json(folder / "record.json", record)
