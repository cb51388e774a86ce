"""GLUE for every student: a search over one grid per task, spread over all ranks, each fine-tuning done once.

A result is one file below its student's folder, written whole when the job is done: what is there is never done
again, whoever asks and however the last attempt ended. All ranks must see the students' folders.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from harness.data.glue_price import GluePlan, points, stages
from harness.errors import IsoBudgetError, Preempted
from harness.evaluate import glue_metrics
from harness.evaluate.finetune import CONTINUE, finetune, pooling
from harness.evaluate.glue_jobs import FOLDER, Job, Point, Student, assign, job
from harness.progress import Silent
from harness.ranks import Ranks
from harness.rundir import read_json, write_file
from harness.study.glue import NAMES
from harness.units import Unit, format_amount
from harness.watchdog import beat

HELD_OUT = "held_out"
# How often a rank without work looks for the others' results, and how often any asks whether another failed.
LOOK_EVERY_S = 0.5
ASK_EVERY_S = 0.5
# Ranks come here in the same order, so the n-th of each speaks of the same work.
_numbers = itertools.count()

Result = dict[str, Any]


class Glue:
    """All fine-tunings of a plan for some students."""

    def __init__(
        self, plan: GluePlan, students: list[Student], *, pad: int, ranks: Ranks, device: torch.device, tell: Silent,
        stop: Callable[[], bool], again: str = CONTINUE,
    ) -> None:  # fmt: skip
        """`again`: what a user who stopped it is told to do."""
        self.plan = plan
        self.students = students
        self.pad = pad
        self.ranks = ranks
        self.device = device
        self.tell = tell
        self._stop = stop
        self.again = again
        self._word = f"glue-failed-{next(_numbers)}"
        self._asked_at = 0.0
        self._failed = False
        wanted = plan.spec.precision
        if wanted == "auto":
            on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            wanted = "bf16" if on_gpu else "fp32"
        self.precision = ranks.share(wanted)

    def run(self) -> dict[str, dict[str, Any]]:
        """{student: its summary}, the same on every rank.

        Raises:
            Preempted: a signal asked to stop; finished jobs are kept.
            DataError: a student cannot be loaded.
            CheckpointError: a result cannot be written, as on a full disk.
        """
        spec, results = self.plan.spec, {}
        survivors = {(s.name, task): points(spec) for s in self.students for task in self.plan.data}
        rounds = {task: stages(spec, len(data.train)) for task, data in self.plan.data.items()}
        last = max(len(each) for each in rounds.values())
        for number in range(last):
            jobs = [
                job(self.plan, student, task, point, seed, rounds[task][number], self.precision)
                for student in self.students
                for task in self.plan.data
                for point in survivors[student.name, task]
                for seed in spec.seeds
            ]
            results |= self.perform(jobs, f"GLUE round {number + 1} of {last}" if last > 1 else "GLUE")
            for place, rivals in survivors.items():
                mine = [j for j in jobs if (j.student.name, j.task) == place]
                survivors[place] = best(mine, rivals, results)[: rounds[place[1]][number].keep]
        return {s.name: self.summary(s, jobs, survivors, results) for s in self.students}

    # -- doing the work ------------------------------------------------------------------------------
    def perform(self, jobs: list[Job], label: str) -> dict[str, Result]:
        """{file: result} of all these jobs; does those that no file answers yet, spread over all ranks."""
        done = self.ranks.share({str(j.file): found for j in jobs if (found := kept(j)) is not None})
        missing = [j for j in jobs if str(j.file) not in done]
        if missing:
            price = format_amount(sum(j.price for j in missing), Unit.FLOP)
            known = f", {len(done)} done before" if done else ""
            self.tell.say(f"{label}: {len(missing)} fine-tunings, {price}{known}")
        failure: IsoBudgetError | None = None
        mine: dict[str, Result] = {}
        try:
            for each in assign(missing, self.ranks.world)[self.ranks.rank]:
                mine[str(each.file)] = self.do(each)
            self.wait_for([j.file for j in missing])
        except IsoBudgetError as error:
            failure = error
            self.ranks.tell_all(self._word)
        except BaseException:
            self.ranks.tell_all(self._word)  # or the others would wait for results that never come
            raise
        self.ranks.agree(failure)
        for theirs in self.ranks.gather(mine):
            done |= theirs
        return done

    def do(self, each: Job) -> Result:
        """Fine-tune once and keep the result."""
        data, task = each.data, each.data.task
        splits = dict(data.judged) if each.last or data.selection is None else {}
        if data.selection is not None:
            splits[HELD_OUT] = data.selection
        model = each.student.model

        def stop() -> bool:
            beat(f"fine-tuning {each.student.name} on {task.name}")
            return self.halted()

        if stop():
            raise Preempted("stopped before a fine-tuning", remedy=self.again)
        outcome = finetune(
            model.load(device=self.device, dropout=each.recipe.dropout), data, each.recipe, pad=self.pad,
            segments=model.segments, splits=splits, stop=stop, again=self.again,
        )  # fmt: skip
        found, notes = {}, []
        for split, predictions in outcome.predictions.items():
            found[split], said = glue_metrics.metrics(task, predictions, splits[split].labels_E)
            notes += [f"{task.name}, {split}: {note}" for note in said]
        judged = {split: found[split] for split in data.judged if split in found}
        chosen_by = {HELD_OUT: found[HELD_OUT]} if HELD_OUT in found else judged
        result: Result = {
            "key": each.key, "job": each.describe(), "chosen_by": glue_metrics.score(chosen_by), "metrics": found,
            "score": glue_metrics.score(judged) if each.last else None, "diverged": outcome.diverged,
            "loss": outcome.loss, "notes": notes, "flop": outcome.flop, "seconds": outcome.seconds,
        }  # fmt: skip
        predictions = {split: spelt(values, bool(task.classes)) for split, values in outcome.predictions.items()}
        keep(each.file, {**result, "predictions": predictions})
        recipe = each.recipe
        self.tell.say(
            f"{each.student.name}, {task.name}, lr {recipe.lr:g}, batch {recipe.batch}, seed {recipe.seed}, "
            f"{outcome.steps} steps: {result['chosen_by']:.3f}{' (diverged)' if outcome.diverged else ''}, "
            f"{outcome.seconds:.1f} s"
        )
        return result

    def wait_for(self, files: list[Path]) -> None:
        """Sleep until every result is there.

        Not in a collective: gloo gives up after a while, and a fine-tuning may take longer than that.
        """
        waiting = set(files) if self.ranks.world > 1 else set()
        while waiting:
            waiting = {file for file in waiting if not file.exists()}
            if waiting and self.halted():
                raise Preempted("stopped while other ranks fine-tune", remedy=self.again)
            if waiting:
                time.sleep(LOOK_EVERY_S)

    def halted(self) -> bool:
        """Whether this rank was asked to stop, or another failed."""
        now = time.monotonic()
        if not self._failed and now - self._asked_at >= ASK_EVERY_S:
            self._asked_at = now
            self._failed = self.ranks.was_told(self._word)
        return self._failed or self._stop()

    # -- what came of it -----------------------------------------------------------------------------
    def summary(
        self,
        student: Student,
        jobs: list[Job],
        survivors: dict[tuple[str, str], list[Point]],
        results: dict[str, Result],
    ) -> dict[str, Any]:
        """The scores of a student and how they were come by; `jobs` are those of the last round."""
        spec, tasks = self.plan.spec, {}
        notes = list(self.plan.notes)
        for task, data in self.plan.data.items():
            lr, batch = survivors[student.name, task][0]
            winners = [j for j in jobs if j.student.name == student.name and j.task == task and j.point == (lr, batch)]
            won = [results[str(j.file)] for j in winners]
            rates = spec.points.lrs
            edge = len(rates) > 2 and lr in (min(rates), max(rates))
            if edge:
                notes.append(
                    f"{task}: the best learning rate, {lr:g}, is the grid's {'lowest' if lr == min(rates) else 'highest'}"
                )
            notes += sorted({note for row in won for note in row["notes"]})
            tasks[task] = {
                "score": fmean(row["score"] for row in won),
                "by_seed": {str(j.recipe.seed): row["score"] for j, row in zip(winners, won, strict=True)},
                "metrics": {
                    split: {name: fmean(row["metrics"][split][name] for row in won) for name in data.task.metrics}
                    for split in data.judged
                },
                "chosen_by": fmean(row["chosen_by"] for row in won),
                "lr": lr, "batch": batch, "epochs": spec.points.epochs, "at_edge": edge, "examples": data.facts(), "majority": data.majority(),
                "results": [j.file.name for j in winners],
            }  # fmt: skip
        own = {"segments": student.model.segments, "pooling": pooling(student.model.shape.causal)}
        return {"recipe": self.recipe() | own, "tasks": tasks, "dropped": self.plan.dropped, "notes": notes}

    def recipe(self) -> dict[str, Any]:
        """What every student is fine-tuned by, with what `auto` and the models' longest input came to."""
        spec = self.plan.spec
        return {
            **spec.model_dump(mode="json"), "points": spec.points.model_dump(mode="json"), "length": self.plan.length,
            "precision": self.precision,
            "chosen_on": "the reported split" if spec.select_on == "validation" else "a held-out part of train",
        }  # fmt: skip


def best(jobs: list[Job], rivals: list[Point], results: dict[str, Result]) -> list[Point]:
    """The grid points from best to worst by the mean over fine-tuning seeds; a diverged run puts its point last."""

    def value(point: Point) -> float:
        rows = [results[str(j.file)] for j in jobs if j.point == point]
        return float("-inf") if any(row["diverged"] for row in rows) else fmean(row["chosen_by"] for row in rows)

    return sorted(rivals, key=lambda point: -value(point))


def kept(each: Job) -> Result | None:
    """The result of a finished job without its predictions, or None."""
    found = read_json(each.file)
    if not isinstance(found, dict) or found.get("key") != each.key:
        return None
    found.pop("predictions", None)
    return found


def keep(file: Path, result: Result) -> None:
    """Write a result so that a reader sees all of it or nothing.

    Raises:
        CheckpointError: the system does not let it, as on a full disk.
    """
    write_file(file, (json.dumps(result) + "\n").encode())


def spelt(values: Any, classes: bool) -> str:
    """Predictions as text: whole numbers for classes, nine digits for similarities, all that fp32 has."""
    return " ".join(f"{v:.0f}" if classes else f"{v:.9g}" for v in values)


def spent(folder: Path) -> tuple[int, float]:
    """(FLOPs, device seconds) of every fine-tuning ever finished for a student, whatever it was for."""
    rows = [row for file in sorted((folder / FOLDER).glob("*.json")) if isinstance(row := read_json(file), dict)]
    return sum(int(row.get("flop", 0)) for row in rows), sum(float(row.get("seconds", 0.0)) for row in rows)


def common_tasks(summaries: Collection[dict[str, Any]]) -> list[str]:
    """The tasks that all of these have, in GLUE's order."""
    return [task for task in NAMES if summaries and all(task in summary["tasks"] for summary in summaries)]


def row_of(summary: dict[str, Any], common: list[str]) -> dict[str, float]:
    """The glue.* scores of one model. `glue.mean` is over the common tasks; one that lacks any of them has no mean."""
    tasks = summary["tasks"]
    row = {f"glue.{task}": facts["score"] for task, facts in tasks.items()}
    if common and all(task in tasks for task in common):
        row["glue.mean"] = fmean(tasks[task]["score"] for task in common)
    return row
