"""The stages of a study, what each waits for, and how its pieces of work are packed onto nodes. Pure: no files."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.errors import ConfigError
from harness.study import StudySpec


@dataclass(frozen=True)
class Machines:
    """What one run takes and one node has. Without `gpus` they count processes."""

    gpus_per_run: int
    gpus_per_node: int = 8
    gpus: bool = True
    nodes: int | None = None
    """At most so many nodes at once; None leaves it to the scheduler."""

    def __post_init__(self) -> None:
        small = min(self.gpus_per_run, self.gpus_per_node, self.nodes or 1)
        if small < 1:
            raise ConfigError(
                f"{small} GPUs or nodes", rule="counts are whole numbers above 0", remedy="correct the flag"
            )
        if self.gpus_per_run > self.gpus_per_node and self.gpus_per_run % self.gpus_per_node:
            raise ConfigError(
                f"--gpus-per-run {self.gpus_per_run}", rule=f"a run over several nodes fills them, and a node has {self.gpus_per_node}",
                remedy=f"give a multiple of {self.gpus_per_node}, or correct --gpus-per-node",
            )  # fmt: skip
        if self.nodes is not None and self.nodes_per_run > self.nodes:
            raise ConfigError(
                f"--nodes {self.nodes}", rule=f"one run takes {self.nodes_per_run} nodes", remedy="raise it, or lower --gpus-per-run"
            )  # fmt: skip

    @property
    def nodes_per_run(self) -> int:
        return math.ceil(self.gpus_per_run / self.gpus_per_node)

    def at_once(self, ranks: int) -> int:
        """Pieces of work of so many ranks that one task (the nodes of one run) holds at once."""
        return max(1, self.gpus_per_node // ranks)

    @property
    def tasks_at_once(self) -> int | None:
        return None if self.nodes is None else max(1, self.nodes // self.nodes_per_run)


@dataclass(frozen=True)
class Stage:
    """One job, or one array of jobs: task i does the i-th slice of `works`, `slots` at a time side by side.

    `needs` maps an earlier stage to "afterok" (it must have succeeded) or "afterany" (it must have ended).
    """

    name: str
    verb: str
    flags: list[str]
    out: str
    works: list[str]
    names: list[str]
    ranks: int = 1
    nodes: int = 1
    slots: int = 1
    gpus: bool = False
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> int:
        return math.ceil(len(self.works) / self.slots)


@dataclass(frozen=True)
class Graph:
    """A study's stages in an order that respects `needs`, and why others were left out."""

    study: str
    digest: str
    """Of the whole study, its teacher's where that is trained too, and the ds_config: jobs read them when they begin."""
    out: str
    stages: list[Stage]
    left_out: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        stages = [{**asdict(stage), "tasks": stage.tasks} for stage in self.stages]
        return {
            "study": self.study,
            "digest": self.digest,
            "out": self.out,
            "stages": stages,
            "left_out": self.left_out,
        }


def build(
    study: StudySpec, machines: Machines, *, out: str, study_file: str, ds_config: str | None,
    engine_tree: dict[str, Any] | None = None, evaluation_ranks: int = 1, teacher: tuple[StudySpec, str, str] | None = None,
    allow: str | None = None, hang_timeout_s: float | None = None,
) -> Graph:  # fmt: skip
    """The graph cache → teacher → arms → evaluation → report, without the stages this study does not need.

    Args:
        study_file: where compute nodes read the study.
        ds_config: where they read the engine's facts, and `engine_tree` what these are; None for the default's.
        teacher: the study that trains the teacher, its file, and its directory; None where the teacher exists.
        evaluation_ranks: processes that evaluate one student; one is enough, students are evaluated side by side.
        allow: kinds of differences, for the stages that train: they alone compare with what is there.
        hang_timeout_s: for every stage whose ranks wait for each other.
    """
    common = ["--study", study_file]
    engine = ["--ds_config", ds_config] if ds_config else []
    engine += [f"--hang-timeout={hang_timeout_s}"] if hang_timeout_s is not None else []
    read = [*common, "--out", out, *engine]
    train = [*read, *(["--allow", allow] if allow else [])]
    stages: list[Stage] = []
    left_out: dict[str, str] = {}
    pack = {"nodes": machines.nodes_per_run, "gpus": machines.gpus}
    # First, and for both: the jobs behind it ask nobody.
    fetched = [*common, *(["--teacher-study", teacher[1]] if teacher is not None else [])]
    stages.append(Stage("cache", "prefetch", fetched, out, [""], ["cache"]))
    if teacher is not None:
        spec, file, folder = teacher
        arm, seed = only_trial(spec)
        flags = ["--study", file, "--out", folder, *engine, *(["--allow", allow] if allow else [])]
        stages.append(
            Stage(
                "teacher", "job", flags, folder, [f"{arm}:{seed}"], [f"train-{arm}-seed-{seed}"],
                ranks=machines.gpus_per_run, needs={"cache": "afterok"}, **pack,
            )
        )  # fmt: skip
    elif study.teacher is None:
        left_out["teacher"] = "no arm of this study has one"
    else:
        left_out["teacher"] = f"{study.teacher.path} exists already; the cache stage checks it"
    # Arm by arm: runs that share a node have the same price, so they end at about the same time.
    trials = [(arm.name, seed) for arm in study.arms for seed in study.seeds]
    stages.append(
        Stage(
            "arms", "job", train, out, [f"{a}:{s}" for a, s in trials], [f"train-{a}-seed-{s}" for a, s in trials],
            ranks=machines.gpus_per_run, slots=machines.at_once(machines.gpus_per_run), needs={stages[-1].name: "afterok"}, **pack,
        )
    )  # fmt: skip
    before = "arms"
    if "equal_tokens" in study.controls:
        base = study.baseline or study.arms[0].name
        repeated = [(arm, seed) for arm, seed in trials if arm != base]
        stages.append(
            Stage(
                "controls", "job", train, out, [f"control:{a}:{s}" for a, s in repeated],
                [f"control-{a}-seed-{s}" for a, s in repeated], ranks=machines.gpus_per_run,
                slots=machines.at_once(machines.gpus_per_run), needs={"arms": "afterany"}, **pack,
            )
        )  # fmt: skip
        before = "controls"
    else:
        left_out["controls"] = "the study asks for none"
    # One run that failed does not keep the others from being evaluated and reported.
    stages.append(
        Stage(
            "evaluation", "job", read, out, [f"evaluation:{a}:{s}" for a, s in trials],
            [f"evaluation-{a}-seed-{s}" for a, s in trials], ranks=evaluation_ranks,
            slots=machines.at_once(evaluation_ranks), gpus=machines.gpus, needs={before: "afterany"},
        )
    )  # fmt: skip
    # What no single student's job computes is dealt over the ranks of this one: GLUE, when the study has it.
    wide = (
        {"ranks": machines.gpus_per_run, "nodes": machines.nodes_per_run} if study.evaluation.glue is not None else {}
    )
    stages.append(
        Stage(
            "report",
            "job",
            read,
            out,
            ["report"],
            ["report"],
            gpus=machines.gpus,
            needs={"evaluation": "afterany"},
            **wide,
        )
    )
    studies = [study, *([teacher[0]] if teacher is not None else [])]
    return Graph(study.name, _digest(studies, engine_tree), out, stages, left_out)


def only_trial(spec: StudySpec) -> tuple[str, int]:
    """Arm and seed of a study that trains a teacher; ConfigError where it has several."""
    if len(spec.arms) != 1 or len(spec.seeds) != 1:
        raise ConfigError(
            f"teacher study {spec.name}", rule="it trains one arm at one seed", remedy="pick one in its file"
        )
    return spec.arms[0].name, spec.seeds[0]


def _digest(studies: list[StudySpec], engine: dict[str, Any] | None) -> str:
    """Equal for equal studies and engines, whatever files or flags they came from; seeds stand among the stages' works."""
    trees = [study.model_dump(mode="json", exclude={"seeds"}) for study in studies]
    return hashlib.sha256(json.dumps([trees, engine], sort_keys=True).encode()).hexdigest()[:16]
