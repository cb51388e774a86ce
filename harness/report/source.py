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

Json = dict[str, Any]
# A metrics row with one of these prefixes is an evaluation; a row with a training loss is a step.
CURVES = ("readout_", "mlm_", "probe_")


@dataclass(frozen=True)
class Run:
    """One arm under one seed: its record (empty until it is written), training rows and evaluation rows."""

    arm: str
    seed: int
    record: Json
    steps: list[Json]
    evaluations: list[Json]
    posted: Json | None = None
    """The last posting of the ledger."""

    @property
    def done(self) -> bool:
        return self.record.get("state") == "done"

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
    folders = sorted(directory.glob("arms/*/seed-*"))
    if not study and not folders:
        raise ConfigError(
            f"run directory {str(directory)!r}",
            rule="holds neither study.yaml nor arms/",
            remedy="give the directory that a run has written",
        )
    files = {
        name: mapping(_json(directory / f"{name}.json", problems, optional=name == "references"))
        for name in ("environment", "status", "references")
    }
    runs = [run for folder in folders if folder.is_dir() and (run := _run(folder, problems)) is not None]
    order = {arm.get("name"): i for i, arm in enumerate(arms_of(study))}
    runs.sort(key=lambda run: (order.get(run.arm, len(order)), run.arm, run.seed))
    return Source(directory, study, files["environment"], files["status"], files["references"], runs, problems)


def arms_of(study: Json) -> list[Json]:
    """The arms as the study lists them."""
    return [arm for arm in study.get("arms") or [] if isinstance(arm, dict) and arm.get("name")]


def _run(folder: Path, problems: list[str]) -> Run | None:
    suffix = folder.name.removeprefix("seed-")
    if not suffix.isdigit():
        problems.append(f"{_place(folder)} is not a seed's folder and was left out.")
        return None
    record = mapping(_json(folder / "record.json", problems, optional=(folder / "metrics.jsonl").exists()))
    rows = _jsonl(folder / "metrics.jsonl", problems)
    ledger = _jsonl(folder / "ledger.jsonl", problems)
    name = record.get("name")
    return Run(
        arm=name if isinstance(name, str) and name else folder.parent.name,
        seed=int(suffix),
        record=record,
        steps=[row for row in rows if "loss" in row],
        evaluations=[row for row in rows if any(str(key).startswith(CURVES) for key in row)],
        posted=ledger[-1] if ledger else None,
    )


def _place(path: Path) -> str:
    """A file's place inside the study directory, for a reader."""
    parts = path.parts
    return "/".join(parts[parts.index("arms") :]) if "arms" in parts else path.name


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
        problems.append(f"{_place(path)} has {broken} unreadable line{'s' if broken > 1 else ''}, left out here.")
    return rows
