"""What a sweep's runs have found so far: every point's analysis at its place on the axis."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.compare import Scores
from harness.report.analysis import Analysis, analyse
from harness.report.arms import Arm
from harness.report.checks import check
from harness.report.noise import hardware_of
from harness.report.source import Run, read
from harness.rundir import STUDY, read_json
from harness.sweep.conduct import load
from harness.sweep.expand import Point, Sweep, TeacherRun
from harness.sweep.kinds import KINDS, Kind, place, unit_of


@dataclass(frozen=True)
class At:
    """One point with what its study found."""

    point: Point
    x: float
    analysis: Analysis

    @property
    def scores(self) -> Scores:
        """{arm: {seed: score}} of the deciding score."""
        return self.analysis.scores.get(self.analysis.main, {})

    def diverged(self, arm: str) -> list[Run]:
        """The trials of this arm here that were given up; with any of them the arm ranks last among its values."""
        return [run for each in self.analysis.arms if each.name == arm for run in each.runs if run.diverged]


@dataclass
class Found:
    """A sweep as far as it has come. `at` is sorted along the axis; `missing` says what is not there."""

    root: Path
    sweep: Sweep
    kind: Kind
    unit: str
    status: dict[str, Any]
    at: list[At] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    teachers: list[tuple[TeacherRun, dict[str, Any]]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        return self.at[0].analysis.main if self.at else "readout.loss"

    @property
    def arms(self) -> list[Arm]:
        return self.at[0].analysis.arms if self.at else []

    @property
    def baseline(self) -> Arm | None:
        return self.at[0].analysis.baseline if self.at else None

    @property
    def challengers(self) -> list[Arm]:
        return [arm for arm in self.arms if not arm.baseline]

    @property
    def meaningless(self) -> dict[str, str]:
        """{arm: why the deciding score says nothing of it} at any of the points: what joins them needs all of them."""
        return {arm: why for each in reversed(self.at) for arm, why in each.analysis.meaningless(self.metric).items()}

    @property
    def judged(self) -> list[Arm]:
        """The challengers that the deciding score measures: the family that is corrected for."""
        return [arm for arm in self.challengers if arm.name not in self.meaningless]

    @property
    def unlike_hardware(self) -> str:
        """Why measured costs cannot be compared along the axis, or nothing: all runs must be of one machine's kind.

        Every point may be so by itself and the whole not: a sweep that was interrupted goes on where it is resumed.
        """
        if why := next((a.analysis.unlike_hardware for a in self.at if a.analysis.unlike_hardware), ""):
            return why
        machines = {
            hardware_of(run): each.point.label for each in self.at for arm in each.analysis.arms for run in arm.done
        }
        machines.pop("", None)
        if len(machines) < 2:
            return ""
        (one, first), (other, second) = list(machines.items())[:2]
        return f"{first} ran on {one} and {second} on {other}"

    @property
    def withheld(self) -> str:
        """Why nothing is told of this sweep, or nothing: its budget is measured, and was spent on unlike machines."""
        budget = self.at[0].analysis.budget if self.at else None
        if budget is None or budget.unit.deterministic or not self.unlike_hardware:
            return ""
        return f"the budget is measured, and {self.unlike_hardware}"

    @property
    def ladder(self) -> list[Scores]:
        """The deciding scores, point by point."""
        return [each.scores for each in self.at]

    @property
    def x(self) -> list[float]:
        return [each.x for each in self.at]


def gather(root: Path) -> Found:
    """Read a sweep's directory; a point that has not begun, or has no finished trial, is missing.

    Raises:
        ConfigError: no sweep lies there, or its file cannot be read.
    """
    root = Path(root)
    sweep = load(root)
    found = Found(root, sweep, KINDS[sweep.spec.kind], unit_of(sweep), read_json(root / "status.json") or {})
    for run in sweep.teachers:
        record = read_json(run.student(root).parent / "record.json")
        if record is None:
            found.missing.append(f"teacher {run.name}: not trained yet")
        else:
            found.teachers.append((run, record))
    for point in sweep.points:
        folder = root / point.folder
        x = place(sweep, point, root)
        if x is None or not (folder / STUDY).is_file():
            found.missing.append(f"{point.label}: not begun")
            continue
        analysis = analyse(read(folder))
        check(analysis)
        found.missing += [f"{point.label}: {text}" for text in analysis.missing]
        at = At(point, x, analysis)
        if any(at.scores.values()) or any(at.diverged(arm.name) for arm in analysis.arms):
            found.at.append(at)
    found.at.sort(key=lambda each: each.x)
    return found
