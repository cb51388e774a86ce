"""Runs a sweep: checks every point, trains the teachers, runs the points, each in a run directory of its own.

A trial that two points would train alike is trained once: the from-scratch arm of a sweep over teachers, say.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness import branch, kept
from harness.budget import Account
from harness.errors import ConfigError, IsoBudgetError, Preempted
from harness.ranks import Ranks
from harness.rundir import STATUS, STUDY, SWEEP, RunDirectory, foreign, read_json, replace, write_json
from harness.study import read_yaml
from harness.sweep import stand_in
from harness.sweep.expand import Point, Sweep, expand
from harness.sweep.kinds import check_places

if TYPE_CHECKING:
    from harness.setting import ArmSetting, Setting
    from harness.study import StudySpec

# Where a student's fine-tunings are, as harness.evaluate writes them.
GLUE = "glue"
# Folders of stand-ins begin so.
STAND_INS = "isobudget-sweep-"
Before = Callable[["Setting", RunDirectory], None]
RunOne = Callable[["StudySpec", Path, Before], None]


def is_sweep(root: Path) -> bool:
    """True for the directory of a sweep."""
    return (Path(root) / SWEEP).is_file()


def load(root: Path) -> Sweep:
    """The sweep that a directory holds; ConfigError where its file cannot be read."""
    return expand(read_yaml(root / SWEEP), where=str(root / SWEEP))


def check(sweep: Sweep, try_out: Callable[[StudySpec], Any], *, complete: bool = True) -> list[Any]:
    """Try every teacher's study and every point, with stand-ins for teachers that are not trained yet.

    `complete` is False for a plan, which fetches nothing. Returns what `try_out` said, teachers first. Raises what it raises: nothing has been spent.
    """
    check_places(sweep)
    with tempfile.TemporaryDirectory(prefix=STAND_INS) as folder:
        places = {
            run.folder: str(stand_in.write(run, Path(folder) / run.folder, complete=complete)) for run in sweep.teachers
        }  # fmt: skip
        said = [try_out(run.study) for run in sweep.teachers]
        return said + [
            try_out(point.study({name: places[run.folder] for name, run in point.teachers.items()}))
            for point in sweep.points
        ]


@dataclass
class SweepConductor:
    """One sweep on these ranks; `run_one` trains, evaluates and reports one study in a directory.

    `opened` is called on the main rank when the sweep's directory is its own; `allowed` are the kinds of difference accepted.
    """

    sweep: Sweep
    root: Path
    ranks: Ranks
    run_one: RunOne
    tell: Callable[[str], None]
    opened: Callable[[], None] = lambda: None
    allowed: frozenset[str] = frozenset()
    trained: dict[str, Path] = field(default_factory=dict)
    _before: dict[Path, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._place = RunDirectory(self.root)

    def run(self) -> None:
        """Teachers, then points, in the order of the file.

        Raises:
            whatever one study raises; finished studies are kept, and running again goes on behind them. A finished
            sweep in which no study has changed stays the sweep that it was.
        """
        self.ranks.on_main(self._open)
        try:
            for run in self.sweep.teachers:
                if not (run.student(self.root) / "config.json").is_file() or not _done(self.root / run.folder):
                    self.tell(f"teacher {run.name}: {run.study.limit} of training")
                self.run_one(run.study, self.root / run.folder, lambda setting, directory: None)
            for number, point in enumerate(self.sweep.points, 1):
                self.tell(f"point {number} of {len(self.sweep.points)}: {point.label}")
                self.run_one(self._study(point), self.root / point.folder, self._share)
            self.ranks.on_main(lambda: branch.forget_trunks(self.root))
            self.ranks.on_main(lambda: self._status("done"))
        except BaseException as error:
            if self.ranks.is_main and not self._put_back():
                code = error.exit_code if isinstance(error, IsoBudgetError) else 1
                self._status("interrupted", str(error), exit_code=code)
            raise
        finally:
            self._place.close()

    def _study(self, point: Point) -> StudySpec:
        return point.study({name: str(run.student(self.root).resolve()) for name, run in point.teachers.items()})

    def _open(self) -> None:
        """Lock the directory, which must be new or a sweep's, and make it this sweep's.

        Raises:
            ConfigError: another sweep's place, or one of its studies is another now and `allowed` does not say so: a point that
                was added is not trained before.
        """
        if not is_sweep(self.root) and ((self.root / STUDY).exists() or foreign(self.root)):
            raise ConfigError(
                f"output directory {self.root}", rule="it holds something that is no sweep",
                remedy="choose an empty or new --out",
            )  # fmt: skip
        self._place.lock()
        try:
            if is_sweep(self.root) and _done(self.root):
                self._before = self._standing()
            studies = {run.folder: run.study for run in self.sweep.teachers}
            studies |= {point.folder: self._study(point) for point in self.sweep.points}
            for folder, study in studies.items():
                RunDirectory(self.root / folder).merged(study, self.allowed)
            replace(self.root / SWEEP, yaml.safe_dump(self.sweep.tree, sort_keys=False).encode())
            self.opened()
            self._status("running")
        except BaseException:
            self._place.close()
            raise

    def _standing(self) -> dict[Path, bytes]:
        """The files that say which sweep this is, how it stands, and what its studies are."""
        studies = [run.folder for run in (*self.sweep.teachers, *self.sweep.points)]
        files = [self.root / name for name in (SWEEP, STATUS, *(f"{folder}/{STUDY}" for folder in studies))]
        return {file: file.read_bytes() for file in files if file.is_file()}

    def _put_back(self) -> bool:
        """Leave a finished sweep as it was; False where it was none, or a study has changed."""
        own = {self.root / SWEEP, self.root / STATUS}
        if not self._before or {**self._standing(), **{f: self._before[f] for f in own}} != self._before:
            return False
        for file in own:
            replace(file, self._before[file])
        return True

    def hung(self, found: str) -> None:
        """Say of the whole sweep that one of its studies hung: its processes end before `run` could."""
        self._status("interrupted", f"hang: {found}", exit_code=Preempted.exit_code)

    def _status(self, state: str, message: str = "", *, exit_code: int = 0) -> None:
        write_json(
            self.root / STATUS, {"state": state, "exit_code": exit_code, "message": message, "time": time.time()}
        )

    def _share(self, setting: Setting, directory: RunDirectory) -> None:
        """Bring trials that an earlier point has trained exactly so; rank 0 copies, everyone waits."""
        wanted = [
            (trial_key(arm, seed), arm.arm.name, seed) for arm in setting.arms.values() for seed in setting.study.seeds
        ]

        references = {
            key: directory.root / "references" / name / "evaluations.json"
            for name, key in reference_keys(setting).items()
        }

        def bring() -> None:
            for key, arm, seed in wanted:
                place, donor = directory.trial(arm, seed), self.trained.get(key)
                if donor is not None and donor != place and not place.exists():
                    adopt(donor, place, name=donor.relative_to(self.root).as_posix())
                    self.tell(f"{arm} · seed {seed}: trained already, as {donor.relative_to(self.root)}")
            if self.sweep.spec.trunk:
                self._branch(setting, directory)
            for key, file in references.items():
                donor = self.trained.get(key)
                if donor is not None and donor != file and donor.is_file() and not file.exists():
                    # Its items carry what they depend on: one that differs here is made again.
                    shutil.copytree(donor.parent, file.parent, dirs_exist_ok=True)

        self.ranks.on_main(bring)
        for key, arm, seed in wanted:
            self.trained.setdefault(key, directory.trial(arm, seed))
        for key, file in references.items():
            self.trained.setdefault(key, file)

    def _branch(self, setting: Setting, directory: RunDirectory) -> None:
        """Let trials begin from the trunk of the largest smaller budget; an arm of several phases has none in common."""
        own = next(point for point in self.sweep.points if self.root / point.folder == directory.root)
        below = self.sweep.points[: self.sweep.points.index(own)]
        for arm in setting.arms.values():
            if len(arm.plan().phases) > 1:
                self.tell(f"{arm.arm.name}: its phases lie at fractions of the budget, so it is trained from the start")
                continue
            for seed in setting.study.seeds:
                place = directory.trial(arm.arm.name, seed)
                for point in reversed(below):
                    donor = self.root / point.folder / place.relative_to(directory.root)
                    if branch.begin(donor, place, name=donor.relative_to(self.root).as_posix()):
                        self.tell(f"{arm.arm.name} · seed {seed}: goes on from the trunk of {point.label}")
                        break


def adopt(donor: Path, place: Path, *, name: str) -> None:
    """Copy a finished trial; its record says whose it is. Nothing where the donor has not finished."""
    record = kept.read(donor / "record.json", kept.TrialRecord) or {}
    if record.get("state") != "done":
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.copytree(donor, temporary)
    write_json(temporary / "record.json", record | {"shared_with": name})
    os.replace(temporary, place)


def adopt_glue(root: Path, point: Path) -> None:
    """Copy the fine-tunings of trials that this point shares with another: they are named by what they depend on."""
    for file in point.glob("arms/*/seed-*/record.json"):
        donor = (read_json(file) or {}).get("shared_with")
        source = root / str(donor) / GLUE
        if donor is not None and source.is_dir():
            shutil.copytree(source, file.parent / GLUE, dirs_exist_ok=True)


def trial_key(arm: ArmSetting, seed: int) -> str:
    """The same for two trials that would be trained and measured alike: whoever teaches others is no part of it."""
    study = arm.study
    tree = study.science() | {"evaluation": study.evaluation.model_dump(mode="json"), "checkpoints": study.checkpoints}
    tree.pop("name")
    if arm.teacher is None:
        tree.pop("teacher")
        tree["accounting"]["charged"] = sorted(set(tree["accounting"]["charged"]) - {Account.TEACHER_TRAINING.value})
        tree["accounting"].pop("teacher_training")
    own = arm.arm.model_dump(mode="json", exclude={"name", "differs"})
    return hashlib.sha256(json.dumps([tree, own, seed], sort_keys=True).encode()).hexdigest()[:16]


def reference_keys(setting: Setting) -> dict[str, str]:
    """{name: key} of the references a point measures; equal keys, equal models."""
    first = next(iter(setting.arms.values()))
    untrained = [setting.corpus.fingerprint, first.config.to_dict(), setting.study.seeds[0]]
    found = {
        "untrained": "untrained:"
        + hashlib.sha256(json.dumps(untrained, sort_keys=True, default=str).encode()).hexdigest()
    }
    teacher = next((arm.teacher for arm in setting.arms.values() if arm.teacher is not None), None)
    if teacher is not None:
        found["teacher"] = f"teacher:{setting.corpus.fingerprint}:{teacher.path}"
    return found


def _done(folder: Path) -> bool:
    return (read_json(folder / "status.json") or {}).get("state") == "done"
