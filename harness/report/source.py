"""Read a study directory as it lies, finished or not; whatever is missing or unreadable becomes a problem in words.

Nothing here raises for a gap: an interrupted run leaves half a line, an absent file, an empty folder, and
the report must still say what is known. Only a directory that holds no study at all is an error.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError
from harness.hosts import conceal
from harness.kept import DIVERGED
from harness.report.ledger_path import Json, LedgerPath, read_path
from harness.rundir import JOBS

# A metrics row with one of these prefixes is an evaluation; a row with a training loss is a step.
CURVES = ("readout_", "mlm_", "clm_", "probe_")
FOLDERS = ("arms/*/seed-*", "controls/*/*/seed-*", "*-seed-*")
CHARGED = ("STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE")


@dataclass(frozen=True)
class Run:
    """One arm under one seed: its record (empty until it is written), training rows and evaluation rows."""

    arm: str
    seed: int
    record: Json
    folder: Path
    steps: list[Json]
    evaluations: list[Json]
    path: LedgerPath = field(default_factory=LedgerPath)

    @property
    def posted(self) -> Json | None:
        """The last posting of the ledger."""
        return self.path.last

    @property
    def control(self) -> Json | None:
        """What this run is a control for; None for a contestant."""
        declared = self.record.get("control")
        return declared if isinstance(declared, dict) and declared else None

    @property
    def done(self) -> bool:
        return self.record.get("state") == "done"

    @property
    def diverged(self) -> bool:
        """True of a trial of a search that was given up: it has no score and will get none."""
        return self.record.get("state") == DIVERGED

    @property
    def scores(self) -> dict[str, float | None]:
        """Finite scores as floats; a score that diverged or is absent is None."""
        return {str(k): number(v) for k, v in mapping(self.record.get("scores")).items()}

    @property
    def warnings(self) -> list[str]:
        """What the run itself warned of."""
        listed = self.record.get("warnings")
        return [str(text) for text in listed] if isinstance(listed, list) else []


@dataclass(frozen=True)
class Source:
    """Everything a report is made of."""

    directory: Path
    study: Json
    environment: Json
    status: Json
    references: Json
    runs: list[Run]
    problems: list[str] = field(default_factory=list)
    controls: list[Run] = field(default_factory=list)
    """Runs that answer another question, such as equal tokens: no contestants, and in no verdict."""
    parts: list[Source] = field(default_factory=list)
    """What was joined; empty for one directory."""


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: Any) -> Json:
    """A mapping, or an empty one where the file holds something else."""
    return value if isinstance(value, dict) else {}


def read(directory: Path) -> Source:
    """Read DIR.

    Raises:
        ConfigError: there is no such directory, or neither a study nor an arm in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(
            f"run directory {str(directory)!r}", rule="no such directory", remedy="give the directory of a run"
        )
    problems: list[str] = []
    study = mapping(_yaml(directory / "study.yaml", problems))
    # A run's own layout, and the flatter one of a kept record.
    folders = sorted(folder for pattern in FOLDERS for folder in directory.glob(pattern))
    if not study and not folders:
        raise ConfigError(
            f"run directory {str(directory)!r}",
            rule="holds neither study.yaml nor runs",
            remedy="give the directory that a run has written",
        )
    files = {
        name: mapping(_json(directory / f"{name}.json", problems, optional=name == "references"))
        for name in ("environment", "status", "references")
    }
    # Each of a submission's jobs wrote down its own command; the one that asked for all of them is with their graph.
    asked = mapping(_json(directory / JOBS / "graph.json", problems, optional=True)).get("command")
    command = asked or files["environment"].get("command")
    if isinstance(command, str):
        files["environment"] |= {"command": conceal(command)}
    charged = charged_accounts(study)
    runs = [run for folder in folders if folder.is_dir() and (run := _run(folder, problems, charged)) is not None]
    order = {arm.get("name"): i for i, arm in enumerate(arms_of(study))}
    runs.sort(key=lambda run: (order.get(run.arm, len(order)), run.arm, run.seed))
    # An unfinished control has no record yet; its folder tells it from a contestant.
    controls = [run for run in runs if run.control]
    runs = [run for run in runs if not run.control and "controls" not in run.folder.parts[-4:]]
    named = (files["environment"], files["status"], files["references"])
    return Source(directory, study, *named, runs, problems, controls)


def arms_of(study: Json) -> list[Json]:
    """The arms as the study lists them."""
    return [arm for arm in study.get("arms") or [] if isinstance(arm, dict) and arm.get("name")]


def charged_accounts(study: Json) -> list[str]:
    """The accounts that a study charges to its budget; what every study charges where the file does not say."""
    listed = mapping(study.get("accounting")).get("charged")
    return [str(account) for account in listed] if isinstance(listed, list) and listed else list(CHARGED)


def _run(folder: Path, problems: list[str], charged: list[str]) -> Run | None:
    kept, _, suffix = folder.name.rpartition("seed-")
    if not suffix.isdigit():
        problems.append(f"{_place(folder)} is not a seed's folder and was left out.")
        return None
    record = mapping(_json(folder / "record.json", problems, optional=(folder / "metrics.jsonl").exists()))
    rows = _jsonl(folder / "metrics.jsonl", problems)
    path = read_path(folder / "ledger.jsonl", charged)
    if path.broken:
        problems.append(_unreadable_lines(folder / "ledger.jsonl", path.broken))
    name = record.get("name")
    return Run(
        arm=name if isinstance(name, str) and name else kept.rstrip("-") or folder.parent.name,
        seed=int(suffix),
        record=record,
        folder=folder,
        steps=[row for row in rows if "loss" in row],
        evaluations=[row for row in rows if any(str(key).startswith(CURVES) for key in row)],
        path=path,
    )


def _place(path: Path) -> str:
    """A file's place inside the study directory, for a reader."""
    parts = path.parts
    start = next((i for i, part in enumerate(parts) if part in ("arms", "controls")), None)
    return path.name if start is None else "/".join(parts[start:])


def _yaml(path: Path, problems: list[str]) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        problems.append(f"{path.name} is unreadable.")
    return None


def _json(path: Path, problems: list[str], *, optional: bool = False) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not optional:
            problems.append(f"{_place(path)} is missing.")
    except (OSError, ValueError):
        problems.append(f"{_place(path)} is unreadable.")
    return None


def _jsonl(path: Path, problems: list[str]) -> list[Json]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows: list[Json] = []
    broken = 0
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            broken += 1
    if broken:
        problems.append(_unreadable_lines(path, broken))
    return rows


def _unreadable_lines(path: Path, count: int) -> str:
    return f"{_place(path)} has {count} unreadable line{'s' if count > 1 else ''}, left out here."
