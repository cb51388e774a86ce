"""Runs of the tiny study by forked ranks, and what two runs must have in common."""

from __future__ import annotations

import atexit
import json
import runpy
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.budget import Account
from harness.chaos import workers
from harness.chaos.faults import Fault, only_train
from harness.chaos.tiny import TinyStudy

# A study of one arm that trains in a second: what is broken is the run, not the science.
BRIEF: dict[str, Any] = {
    "arms": [{"name": "no_kd", "objective": "mlm"}],
    "budget": "1.4 Gflop",  # 18 steps
    "evaluation": {"main": "mlm.loss", "curve_points": 1, "mlm_blocks": 8, "readout": None},
    "checkpoints": 6,
}


def enter(arguments: list[str], faults: Sequence[Fault] = ()) -> None:
    """What every launcher starts, in this process, with the faults in place. Exits with the run's code."""
    for fault in faults:
        fault()
    sys.argv = ["launch.py", *arguments]
    runpy.run_module("harness", run_name="__main__")


def enter_each(several: list[list[str]], faults: Sequence[Fault] = ()) -> int:
    """Several runs one after another in this process; their codes are in their status.json. Returns the worst."""
    worst = 0
    for number, arguments in enumerate(several):
        try:
            enter(arguments, faults if number == 0 else ())
        except SystemExit as left:
            worst = max(worst, int(left.code or 0))
    return worst


def run_arguments(file: Path, out: Path, *flags: str) -> list[str]:
    return ["run", "--study", str(file), "--out", str(out), *flags]


def launch(
    file: Path,
    out: Path,
    *flags: str,
    faults: Sequence[Fault] = (),
    evaluate: bool = False,
    ranks: int = 2,
    environment: dict[str, str] | None = None,
) -> workers.Launch:
    """Start `run --study file --out out` on forked ranks; their output is kept beside `out`.

    Args:
        evaluate: also evaluate and report; most rows only train.
    """
    arguments = run_arguments(file, out, *flags)
    faults = list(faults) if evaluate else [Fault(only_train), *faults]
    return workers.start(enter, arguments, faults, folder=logs(out), ranks=ranks, environment=environment)


def logs(out: Path) -> Path:
    return out.parent / f"{out.name}-logs"


_references: dict[tuple[str, tuple[str, ...], bool], Path] = {}


def uninterrupted(file: Path, out: Path, *flags: str, evaluate: bool = False) -> Path:
    """A run that nothing happens to, what interrupted ones are compared with; made once per study and process.

    Raises:
        RuntimeError: it did not end well, so nothing can be compared.
    """
    key = (file.read_text(encoding="utf-8"), flags, evaluate)
    known = _references.get(key)
    if known is not None and known.is_dir():
        return known
    run = launch(file, out, *flags, evaluate=evaluate)
    codes = run.wait()
    if any(codes):
        raise RuntimeError(f"the undisturbed run left with {codes}: {last_words(run.outputs())}")
    _references[key] = out
    return out


def last_words(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


@cache
def parts() -> TinyStudy:
    """Corpus and teacher, made once per process and removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="isobudget-parts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return TinyStudy.make(folder)


def brief_study(folder: Path, **changes: Any) -> Path:
    """A file of one short arm in `folder`; `changes` replace the study's top-level keys."""
    return parts().write(folder / "brief.yaml", **{**BRIEF, **changes})


def record(out: Path, arm: str = "no_kd", seed: int = 1) -> dict[str, Any]:
    return json.loads((out / "arms" / arm / f"seed-{seed}" / "record.json").read_text(encoding="utf-8"))


def status(out: Path) -> dict[str, Any]:
    return json.loads((out / "status.json").read_text(encoding="utf-8"))


def charged_steps(out: Path, arm: str = "no_kd", seed: int = 1) -> list[Any]:
    """The deterministic part of a ledger as it stands after its last line: (step, analytic charges, spent).

    Work posted as LOST was posted twice, once in vain; of every step the last posting counts.
    """
    steps: dict[int, Any] = {}
    lines = (out / "arms" / arm / f"seed-{seed}" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        charges = [c for c in row["charges"] if c[3] == "analytic" and c[0] != Account.LOST.name]
        if charges:
            steps[row["step"]] = [row["step"], charges, row["spent"]]
    return [steps[step] for step in sorted(steps)]


def losses(out: Path, arm: str = "no_kd", seed: int = 1) -> dict[int, float]:
    """The training loss of every logged step."""
    lines = (out / "arms" / arm / f"seed-{seed}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


def weights_of(out: Path, arm: str = "no_kd", seed: int = 1) -> bytes:
    """The exported student, byte for byte."""
    return (out / "arms" / arm / f"seed-{seed}" / "student" / "model.safetensors").read_bytes()


def differences(mine: Path, theirs: Path) -> list[str]:
    """In what a run differs from the uninterrupted one, LOST and measured seconds apart; empty when in nothing."""
    found = []
    if weights_of(mine) != weights_of(theirs):
        found.append("weights")
    if charged_steps(mine) != charged_steps(theirs):
        found.append("ledger")
    a, b = record(mine), record(theirs)
    found += [key for key in ("steps", "skipped_steps", "tokens", "charged", "scores") if a[key] != b[key]]
    for account in sorted({*a["accounts"], *b["accounts"]} - {Account.LOST.name}):
        for unit in ("flop", "token"):
            if a["accounts"].get(account, {}).get(unit) != b["accounts"].get(account, {}).get(unit):
                found.append(f"{account} in {unit}")
    return found


def saved_steps(out: Path) -> list[int]:
    """Steps of the published checkpoints."""
    return sorted(int(p.name[5:13]) for p in out.glob("arms/*/*/checkpoints/step-*"))
