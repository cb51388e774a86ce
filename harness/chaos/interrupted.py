"""A real run stopped after a few steps, with its checkpoints: what rows about resuming start from."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from harness.chaos.faults import PLACES, Fault, signal_at
from harness.chaos.trial_runs import launch, parts

# The default engine computes in bf16 where the CPU has it; rows that compare losses need fp32.
STOPPED_AT = 8


_kept: dict[tuple[str, tuple[str, ...], int, int], Path] = {}


def stopped(file: Path, out: Path, *flags: str, ranks: int = 2, step: int = STOPPED_AT) -> Path:
    """A run of the study that a SIGTERM ended after `step` steps; made once per study and process, then copied.

    Raises:
        RuntimeError: it did not leave as resumable.
    """
    key = (file.read_text(encoding="utf-8"), flags, ranks, step)
    if key in _kept:
        return Path(shutil.copytree(_kept[key], out))
    run = launch(file, out, *flags, faults=[Fault(signal_at, (0, step, PLACES[0], "SIGTERM"))], ranks=ranks)
    codes = run.wait()
    if codes != [75] * ranks:
        raise RuntimeError(f"the run to be interrupted left with {codes}: {run.outputs()[-300:]}")
    _kept[key] = Path(shutil.copytree(out, parts().folder / f"stopped-{len(_kept)}"))
    return out


def copy_of(out: Path, name: str) -> Path:
    """A copy of a run's directory beside it."""
    return Path(shutil.copytree(out, out.parent / name))


def checkpoints_of(out: Path) -> Path:
    return next(out.glob("arms/*/*/checkpoints"))


def engine_config(folder: Path, *, stage: int, **more: Any) -> str:
    """A ds_config in fp32 with this ZeRO stage, in a file of `folder`."""
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    file = folder / f"zero{stage}.json"
    file.write_text(json.dumps({"zero_optimization": zero, **more}), encoding="utf-8")
    return str(file)


def damage(path: Path, draw: random.Random) -> str:
    """Truncate a file or flip one of its bits; says which."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if draw.random() < 0.5:
        del content[place:]
        what = f"{path.name} cut at {place}"
    else:
        content[place] ^= 1 << draw.randrange(8)
        what = f"{path.name} flipped at {place}"
    path.write_bytes(bytes(content))
    return what
