"""What produced a result: versions, hardware, commit, fingerprints. Nothing from the environment's variables."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import hardware

if TYPE_CHECKING:
    from harness.ranks import Ranks
    from harness.setting import Setting

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy", "scipy", "scikit-learn", "triton")


def versions() -> dict[str, str]:
    found = {"isobudget": harness.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the code that runs, with "+changes" when the tree is dirty; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def record(setting: Setting, ranks: Ranks, *, command: str, resolved_engine: dict[str, Any] | None) -> dict[str, Any]:
    """The environment block of a run record."""
    teachers = {
        name: {"path": arm.teacher.path, "provenance": arm.teacher.provenance}
        for name, arm in setting.arms.items()
        if arm.teacher is not None
    }
    return {
        "versions": versions(),
        "platform": platform.platform(terse=True),
        "hardware": hardware.describe(),
        "git_commit": commit(),
        "command": command,
        "world_size": ranks.world,
        "precision": setting.ds_config.precision,
        "ds_config": {"path": setting.ds_config.path, "resolved": resolved_engine},
        "data": setting.corpus.describe(),
        "tokenizer_fingerprint": setting.tokenizer_fingerprint,
        "teachers": teachers,
    }
