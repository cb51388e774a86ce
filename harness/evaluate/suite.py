"""Which evaluations a study wants, which are missing, and who computes them.

A subject is a trained student, the untrained student, or the teacher. Each has `evaluations.json`:
item → {key, scores, flop, seconds}; an item whose key (what it depends on) is unchanged is not repeated.
Subjects are dealt over ranks; no rank waits in an exchange for another until all are done.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from harness import controls, kept
from harness.data.choices import unigram_accuracy
from harness.engine import device_of
from harness.errors import IsoBudgetError, Preempted, refusals
from harness.evaluate import agreement, choices, glue_study
from harness.evaluate.finetune import CONTINUE
from harness.evaluate.glue import Glue
from harness.evaluate.scoring import Scorer
from harness.evaluate.subject import Subject
from harness.models.student import build_student
from harness.models.teacher import resolve
from harness.progress import Silent
from harness.ranks import Ranks
from harness.rundir import CURVE_SCORE, EVALUATIONS, SNAPSHOTS, RunDirectory, read_json, write_json
from harness.units import Unit

if TYPE_CHECKING:
    from harness.setting import Setting

# How often a rank that is done looks whether the others are.
LOOK_EVERY_S = 0.5
# Ranks come here in the same order, so the n-th of each speaks of the same work.
_numbers = itertools.count()

HEADLESS = "{} loss is that of a head this objective never trains; compare arms by the read-out or by downstream scores"


@dataclass(frozen=True)
class Candidate:
    """One subject: where its evaluations are kept and how to load a fresh copy."""

    name: str
    folder: Path
    load: Callable[[], Subject]
    snapshots: bool = False


class Suite:
    """All evaluations of one study."""

    def __init__(
        self, setting: Setting, directory: RunDirectory, ranks: Ranks, tell: Silent, stop: Callable[[], bool]
    ) -> None:
        self.setting = setting
        self.spec = setting.study.evaluation
        self.scorer = Scorer(setting)
        self.directory = directory
        self.ranks = ranks
        self.tell = tell
        self.stop = stop
        self.device = device_of(ranks)

    def run(self, only: tuple[str, int] | None = None) -> None:
        """Compute what is missing, then write scores into records and references.

        With `only`, compute what is missing of this (arm, seed); another job will write it all down.
        """
        candidates = self.candidates()
        if only is not None:
            candidates = [c for c in candidates if c.folder == self.directory.trial(*only)]
        self.ranks.agree(self.deal(candidates))
        if only is None:
            self.ranks.on_main(lambda: self.publish(candidates))
        self.downstream(only)

    def downstream(self, only: tuple[str, int] | None) -> None:
        """Size and latency of every student, and GLUE where the study asks for it; with `only`, GLUE of that student."""
        study, plan = self.setting.study, self.setting.glue
        trials = [only] if only is not None else self.ranks.share(glue_study.trained(study, self.directory))
        if only is None:
            self.ranks.on_main(lambda: glue_study.measure_sizes(self.directory, trials, self.device))
        if plan is None:
            return
        config = next(iter(self.setting.arms.values())).config
        students = glue_study.students(study, self.directory, trials, config=config)
        glue = Glue(
            plan, students if only is None else students[:1], pad=self.setting.special["pad"], ranks=self.ranks,
            device=self.device, tell=self.tell, stop=self.stop,
        )  # fmt: skip
        glue_study.evaluate(glue, publish=only is None, directory=self.directory, trials=trials)

    def candidates(self) -> list[Candidate]:
        study = self.setting.study
        found: list[Candidate] = []
        for arm in self.setting.arms.values():
            for seed in study.seeds:
                folder = self.directory.trial(arm.arm.name, seed)
                if (self.directory.record(arm.arm.name, seed) or {}).get("state") != "done":
                    continue  # a job of its own has failed to train it, or it diverged; the report names it
                found.append(
                    Candidate(f"{arm.arm.name} · seed {seed}", folder, lambda f=folder: self._load(f / "student"), True)
                )
        for control in controls.wanted(study, self.directory.root):
            if controls.finished(control, self.directory.root):
                folder = control.folder(self.directory.root)
                name = f"{control.label} · seed {control.seed}"
                found.append(Candidate(name, folder, lambda f=folder: self._load(f / "student"), True))
        references = self.directory.root / "references"
        first = next(iter(self.setting.arms.values()))
        found.append(
            Candidate(
                "untrained student",
                references / "untrained",
                lambda: Subject(build_student(first.config, seed=study.seeds[0]), device=self.device),
            )
        )
        teacher = next((arm.teacher for arm in self.setting.arms.values() if arm.teacher is not None), None)
        if teacher is not None:
            found.append(Candidate("teacher", references / "teacher", lambda: self._load(resolve(teacher.path))))
        return found

    def _load(self, folder: Path) -> Subject:
        return Subject.load(folder, device=self.device)

    def deal(self, candidates: list[Candidate]) -> IsoBudgetError | None:
        """Evaluate this rank's share and sleep until every rank is through with its own; what went wrong here, if anything.

        Not in a collective: gloo gives up after a while, and another's share may take longer than that.
        """
        rank, world, word = self.ranks.rank, self.ranks.world, f"evaluated-{next(_numbers)}"
        failure: IsoBudgetError | None = None
        try:
            with refusals():
                for candidate in candidates[rank::world]:
                    self.evaluate(candidate)
        except IsoBudgetError as error:
            failure = error
        finally:
            self.ranks.tell_all(f"{word}-{rank}")  # of a crash too, or the others would wait for this one
        waiting = {other for other in range(world) if other != rank}
        while waiting := {other for other in waiting if not self.ranks.was_told(f"{word}-{other}")}:
            if self.stop():
                return failure or Preempted("stopped while other ranks evaluate", remedy=CONTINUE)
            time.sleep(LOOK_EVERY_S)
        return failure

    # -- one subject ---------------------------------------------------------------------------------
    def evaluate(self, candidate: Candidate) -> None:
        candidate.folder.mkdir(parents=True, exist_ok=True)
        file = candidate.folder / EVALUATIONS
        done: dict[str, Any] = read_json(file) or {}
        for item, key in self.scorer.items().items():
            if done.get(item, {}).get("key") == key:
                continue
            if self.stop():
                raise Preempted("stopped by a signal while evaluating", remedy=CONTINUE)
            begun = time.monotonic()
            subject = candidate.load()
            answers: list[torch.Tensor] = []
            scores, flop = self.scorer.score(item, subject, answers)
            if answers:
                agreement.keep(candidate.folder, item, torch.cat(answers))
            if item == "readout" and candidate.snapshots:
                flop += self.read_curve(candidate, subject, layer=int(scores["readout.layer"]))
            done[item] = {"key": key, "scores": scores, "flop": flop, "seconds": time.monotonic() - begun}
            write_json(file, done)
        self.tell.say(f"{candidate.name}: {self.brief(done)}")

    def read_curve(self, candidate: Candidate, subject: Subject, *, layer: int) -> int:
        """Read-outs, from `layer`, of the bodies kept along the way; appends them to the trial's metrics."""
        folder, metrics, flop = candidate.folder / SNAPSHOTS, candidate.folder / "metrics.jsonl", 0
        # A kill may have left a point that was told and not yet removed.
        rows = kept.whole_objects(metrics) if metrics.exists() else []
        told = {row.get("step") for row in rows if CURVE_SCORE in row}
        torn = metrics.exists() and not metrics.read_bytes().endswith(
            b"\n"
        )  # nothing may be written behind half a line
        for place in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            point, weights = read_json(place) or {}, place.with_suffix(".safetensors")
            if point.get("step") not in told:
                subject.model.load_state_dict(load_file(weights), strict=False)
                scores, cost = self.scorer.read_out(subject, layer=layer)
                flop += cost
                row = {**point, **{name.replace(".", "_"): value for name, value in scores.items()}}
                with metrics.open("a", encoding="utf-8") as file:
                    file.write("\n" * torn + json.dumps(row) + "\n")
                torn = False
            weights.unlink(missing_ok=True)
            place.unlink()
        return flop

    # -- results -------------------------------------------------------------------------------------
    def publish(self, candidates: list[Candidate]) -> None:
        """Merge evaluations into records and references.json. Rank 0 only."""
        items = self.scorer.items()
        before = read_json(self.directory.root / "references.json") or {}
        references: dict[str, Any] = {}
        for candidate in candidates:
            done = {k: v for k, v in (read_json(candidate.folder / EVALUATIONS) or {}).items() if k in items}
            scores = {name: value for row in done.values() for name, value in row["scores"].items()}
            if not candidate.snapshots:
                row = before.get(candidate.folder.name, {})
                references[candidate.folder.name] = {**row, "scores": scores | glue_study.only(row.get("scores", {}))}
                continue
            record = read_json(candidate.folder / "record.json") or {}
            record["scores"] = scores | glue_study.only(record.get("scores") or {})
            record["copied"] = agreement.copied(
                candidate.folder, self.directory.root / "references" / "teacher", labels=self.scorer.test_labels
            )
            during = record["accounts"].setdefault("EVALUATION", {})
            record["accounts"]["EVALUATION"] = {
                **during,
                Unit.FLOP.value: during.get("flop_in_training", during.get("flop", 0))
                + sum(row["flop"] for row in done.values())
                + during.get("flop_in_glue", 0),
                Unit.GPU_SECOND.value: during.get("gpu-second_in_training", during.get("gpu-second", 0.0))
                + sum(row["seconds"] for row in done.values())
                + during.get("gpu-second_in_glue", 0.0),
                "flop_in_training": during.get("flop_in_training", during.get("flop", 0)),
                "gpu-second_in_training": during.get("gpu-second_in_training", during.get("gpu-second", 0.0)),
            }
            if not record["head_trained"]:
                headless = HEADLESS.format("next-token" if self.setting.study.causal else "MLM")
                record["warnings"] = sorted({*record["warnings"], headless})
            write_json(candidate.folder / "record.json", record)
        if self.spec.probes is not None and self.spec.probes.tasks:
            tasks = {task: self.scorer.probe(task) for task in self.spec.probes.tasks}
            from harness.data.probes import bag_of_words_accuracy

            references["bag_of_words"] = {
                "scores": {f"probe.{t}": bag_of_words_accuracy(data) for t, data in tasks.items()}
            }
            references["probes"] = {
                t: {
                    "description": d.description,
                    "classes": list(d.classes),
                    "majority": d.majority_accuracy,
                    "test_examples": len(d.test),
                }
                for t, d in tasks.items()
            }
        if self.spec.choices is not None:
            rows = self.setting.choices.items()
            frequencies = {
                f"probe.{task}": unigram_accuracy(data, self.setting.corpus, normalise=self.spec.choices.normalise)
                for task, data in rows
            }
            references.setdefault("bag_of_words", {"scores": {}})["scores"] |= frequencies
            references.setdefault("probes", {}).update(
                {task: choices.describe(data, self.spec.choices) for task, data in rows}
            )
        teacher = next((arm for arm in self.setting.arms.values() if arm.teacher is not None), None)
        if teacher is not None and teacher.teacher is not None:
            references["teacher_training"] = {
                "flop": teacher.teacher.training_flop,
                "tokens": teacher.teacher.provenance.get("tokens"),
                "note": f"trained on: {teacher.study.teacher.trained_on if teacher.study.teacher else 'unknown'} data",
            }
        write_json(self.directory.root / "references.json", references)

    @staticmethod
    def brief(done: dict[str, Any]) -> str:
        scores = {name: value for row in done.values() for name, value in row["scores"].items()}
        return ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if not name.endswith(".layer"))
