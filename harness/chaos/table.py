"""The fault table: finds its rows, plays them, prints what each saw."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.chaos import rows
from harness.chaos.outcome import CannotRun, Outcome
from harness.errors import ConfigError

PASSED, FAILED, SKIPPED = "passed", "FAILED", "cannot run here"


@dataclass(frozen=True)
class Row:
    """One promise of the table."""

    number: int
    fault: str
    passes_when: str
    run: Callable[[int, bool, Path], Outcome]


@dataclass(frozen=True)
class Result:
    """What playing a row gave."""

    row: int
    fault: str
    passes_when: str
    saw: str
    seconds: float
    verdict: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_line(self) -> str:
        cells = (str(self.row), self.fault, self.passes_when, self.saw, f"{self.seconds:.1f}", self.verdict)
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


HEADER = "| # | fault | passes when | saw | seconds | verdict |\n|---|---|---|---|---|---|"


def discover() -> list[Row]:
    """Every row of the package, by number.

    Raises:
        ConfigError: two files claim one number.
    """
    found: dict[int, Row] = {}
    for module in pkgutil.iter_modules(rows.__path__):
        if not module.name.startswith("row_"):
            continue
        file = importlib.import_module(f"{rows.__name__}.{module.name}")
        if file.NUMBER in found:
            raise ConfigError(f"{module.name}.py", rule=f"row {file.NUMBER} exists already", remedy="renumber it")
        found[file.NUMBER] = Row(file.NUMBER, file.FAULT, file.PASSES_WHEN, file.run)
    return [found[number] for number in sorted(found)]


def chosen(text: str | None) -> list[Row]:
    """The rows named by "1,2,8"; all of them for None.

    Raises:
        ConfigError: no number, or no such row.
    """
    known = {row.number: row for row in discover()}
    if text is None:
        return list(known.values())
    numbers = [part.strip() for part in text.split(",")]
    if unknown := [number for number in numbers if not number.isdigit() or int(number) not in known]:
        raise ConfigError(
            f"--rows {unknown[0]!r}", rule=f"rows are {', '.join(map(str, known))}", remedy="for example --rows 1,2,8"
        )
    return [known[int(number)] for number in numbers]


def play(row: Row, *, seed: int, short: bool, folder: Path) -> Result:
    """Play one row in `folder / row-NN`; whatever it raises is a failure that says what was raised."""
    place = folder / f"row-{row.number:02d}"
    place.mkdir(parents=True)
    begun = time.monotonic()
    try:
        outcome = row.run(seed, short, place)
        saw, verdict = outcome.saw, PASSED if outcome.passed else FAILED
    except CannotRun as reason:
        saw, verdict = str(reason), SKIPPED
    except Exception as error:
        saw, verdict = f"{type(error).__name__}: {error}", FAILED
    return Result(row.number, row.fault, row.passes_when, saw, round(time.monotonic() - begun, 1), verdict)


def play_all(wanted: Iterable[Row], *, seed: int, short: bool, folder: Path) -> Iterator[Result]:
    """Play rows one after another, yielding each as it ends."""
    for row in wanted:
        yield play(row, seed=seed, short=short, folder=folder)
