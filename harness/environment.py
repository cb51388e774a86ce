"""What produced a result: versions, hardware, commit, fingerprints. Nothing from the environment's variables."""

from __future__ import annotations

import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import hardware
from harness.identity import source_hash
from harness.models.teacher import weights_fingerprint

if TYPE_CHECKING:
    from harness.ranks import Ranks
    from harness.setting import ArmSetting, Setting

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


# The packages whose arithmetic a training step runs.
COMPUTING = ("torch", "deepspeed", "transformers", "triton")


def identity(setting: Setting, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """What a resumed run must share with the one it continues, by kind; ranks call it together.

    Hardware is every rank's device, so that one node of another type is seen. Threads count on CPUs only,
    where they change the order of sums.
    """
    here = hardware.describe()
    cuda = bool(here["gpus"])
    device = here["gpus"][min(ranks.local_rank, len(here["gpus"]) - 1)] if cuda else here["cpu"]
    threads = None if cuda else here["threads_per_rank"]
    devices = ranks.gather((device, threads))
    packages = versions()
    return {
        "data": {"corpus": setting.corpus.fingerprint, "tokenizer": setting.tokenizer_fingerprint},
        "code": {
            "source": source_hash(),
            "commit": ranks.share(commit() if ranks.is_main else None),
            **{name: packages.get(name) for name in COMPUTING},
        },
        "hardware": {
            "devices": sorted({name for name, _ in devices}),
            "threads_per_rank": max(t for _, t in devices) if not cuda else None,
        },
        "world_size": {"ranks": ranks.world},
    }


def trial_identity(
    shared: dict[str, dict[str, Any]], arm: ArmSetting, seed: int, engine: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The identity of one trial: the study as its arm sees it, its teacher's weights, its engine."""
    teacher = weights_fingerprint(arm.teacher.path) if arm.teacher is not None else None
    return {
        "study": {**arm.study.science(), "arm": arm.arm.model_dump(mode="json"), "seed": seed},
        **shared,
        "data": {**shared["data"], "teacher": teacher},
        "engine": engine,
    }


def topology(ranks: Ranks) -> list[dict[str, Any]]:
    """Where every rank runs, in the order of ranks: host, local rank, device; ranks call it together."""
    here = hardware.describe()
    gpus = here["gpus"]
    device = gpus[min(ranks.local_rank, len(gpus) - 1)] if gpus else here["cpu"]
    return ranks.gather(
        {
            "rank": ranks.rank, "host": socket.gethostname(), "local_rank": ranks.local_rank, "device": device,
            "cores": here["cores"], "threads": here["threads_per_rank"],
        }
    )  # fmt: skip


def record(
    setting: Setting,
    ranks: Ranks,
    *,
    command: str,
    resolved_engine: dict[str, Any] | None,
    places: list[dict[str, Any]],
) -> dict[str, Any]:
    """The environment block of a run record; `places` is what `topology` found."""
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
        "hosts": sorted({place["host"] for place in places}),
        "ranks": places,
        "precision": setting.ds_config.precision,
        "ds_config": {"path": setting.ds_config.path, "resolved": resolved_engine},
        "data": setting.corpus.describe()
        | ({"domains": {k: d.describe() for k, d in setting.domains.items()}} if setting.domains else {}),
        "tokenizer_fingerprint": setting.tokenizer_fingerprint,
        "teachers": teachers,
    }
