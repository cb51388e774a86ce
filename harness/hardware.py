"""What this machine offers to training: device, cores, and the half precision it computes in hardware."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the first core, empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((row for row in text.splitlines() if row.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def bf16_in_hardware() -> bool:
    """True where bf16 matrix products are faster than fp32; emulated bf16 is slower and gains nothing."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


# How threads wait for one another between parallel regions: read by OpenMP when PyTorch loads it, and never again.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Turns of the waiting loop before a thread sleeps, a fraction of a millisecond: longer than one waits for a sibling that
# has its core, and far shorter than for one that does not.
SPINS = "10000"


def spin_briefly() -> None:
    """Let waiting threads sleep soon, unless the environment says how they wait; to be called before torch is imported.

    By default they spin for milliseconds, and so keep a sibling that shares its core with another program from the core
    they hold themselves (docs/speed.md has the figures).
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(*, local_world: int) -> int:
    """Memory a rank can still take on its device: the GPU's, or its share of the host's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // local_world


def device_names() -> list[str]:
    """The kinds of device that train here, each once: this machine's GPUs, else its CPU."""
    here = describe()
    return sorted(set(here["gpus"])) or [here["cpu"]]


def describe() -> dict[str, Any]:
    """For the run record."""
    import torch

    cpu = ""
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), "")
    except OSError:
        cpu = platform.processor()
    facts: dict[str, Any] = {
        "cpu": cpu or platform.machine(),
        "cores": usable_cores(),
        "threads_per_rank": torch.get_num_threads(),
        "thread_waiting": {name: os.environ[name] for name in WAITING if name in os.environ},
        "bf16_in_hardware": bf16_in_hardware(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if has_cuda() else [],
    }
    return facts
