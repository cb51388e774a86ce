"""What this machine offers to a study, what is missing, and what to do about it.

Every check is one function that returns findings; none raises, changes anything, or needs a GPU. Heavy
libraries are imported only inside the check that needs them, so importing this file costs nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import hardware
from harness.data.cache import cache_root
from harness.doctor_devices import check_cpu_precision, check_gpus
from harness.findings import Finding, print_findings, to_json
from harness.host import memory_bytes, stale_locks, thread_limit
from harness.meters.nvml import Nvml, NvmlUnavailable

__all__ = ["Finding", "diagnose", "print_findings", "to_json"]

Version = tuple[int, int]

# First and last (major, minor) that the test suite has run with, ends included.
TESTED: dict[str, tuple[Version, Version]] = {
    "torch": ((2, 11), (2, 13)),
    "transformers": ((5, 17), (5, 23)),
    "deepspeed": ((0, 19), (0, 19)),
    "datasets": ((4, 0), (5, 2)),
    "nvidia-ml-py": ((12, 535), (13, 615)),
}
TESTED_PYTHON = ((3, 11), (3, 12))

LAUNCHERS = {
    "torchrun": "comes with torch: use this environment's bin folder on PATH",
    "deepspeed": "comes with deepspeed: use this environment's bin folder on PATH",
    "srun": "only for Slurm clusters: run on a login or compute node",
    "sbatch": "only for Slurm clusters: run on a login or compute node",
    "mpirun": "only to launch with MPI: install Open MPI or MPICH",
    "pdsh": "only for `deepspeed --hostfile` over several machines: install pdsh",
}

_GIB = 1 << 30
_LITTLE_MEMORY = 4 * _GIB  # the quickstart's two ranks with their libraries, and some room


def diagnose(environ: Mapping[str, str] | None = None) -> list[Finding]:
    """Everything worth knowing before a study, in the order a person would ask. Never raises."""
    env = os.environ if environ is None else environ
    checks: dict[str, Callable[[], list[Finding]]] = {
        "versions": check_versions,
        "torch": check_torch,
        "gpus": lambda: check_gpus(env),
        "cpu precision": check_cpu_precision,
        "memory": check_memory,
        "threads": lambda: check_threads(env),
        "launchers": check_launchers,
        "extension locks": lambda: check_extension_locks(env),
        "packages": check_packages,
        "caches": lambda: check_caches(env),
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings += check()
        except Exception as error:  # a broken installation must not hide the other findings
            text = f"{type(error).__name__}: {error}"
            findings.append(
                Finding(f"check {name}", "warn", text, "repair what the message names; the other checks went on")
            )
    return findings


# -- software ------------------------------------------------------------------------------------------
def check_versions() -> list[Finding]:
    """Python and the packages whose behaviour the harness relies on, against the tested ranges."""
    findings = [_in_range("python", platform.python_version(), TESTED_PYTHON)]
    for package, tested in TESTED.items():
        found = _installed(package)
        absent = Finding(package, "missing", "not installed", f"pip install {package}")
        findings.append(absent if found is None else _in_range(package, found, tested))
    return findings


def _in_range(package: str, found: str, tested: tuple[Version, Version]) -> Finding:
    low, high = (".".join(map(str, end)) for end in tested)
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is not None and tested[0] <= (int(numbers[1]), int(numbers[2])) <= tested[1]:
        return Finding(package, "ok", found)
    return Finding(
        package, "warn", f"{found}, tested with {low} to {high}", "run the tests here, or install a tested version"
    )


def check_torch() -> list[Finding]:
    """Whether torch loads, and whether it can reach the GPUs that NVML sees."""
    try:
        import torch
    except Exception as error:  # a missing CUDA library surfaces as OSError
        return [Finding("torch devices", "missing", f"torch does not import: {error}", "pip install torch")]
    if torch.cuda.is_available():
        return [
            Finding("torch devices", "ok", f"{torch.cuda.device_count()} CUDA device(s), CUDA {torch.version.cuda}")
        ]
    gpus = _gpu_names()
    if not gpus:
        return [Finding("torch devices", "ok", "CPU only: every study runs, small ones in minutes")]
    built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    found = f"torch is built {built} and reaches none of {len(gpus)} GPU(s)"
    return [
        Finding(
            "torch devices", "warn", found, "install a CUDA build of torch that the driver supports; see nvidia-smi"
        )
    ]


def _gpu_names() -> list[str]:
    try:
        with Nvml.open() as nvml:
            return [device.name for device in nvml.devices()]
    except NvmlUnavailable:
        return []


def check_packages() -> list[Finding]:
    """Optional packages, and those known to get in the way."""
    triton, pynvml = _installed("triton"), _installed("pynvml")
    remedy = "only for the fused kernels on a GPU: pip install triton; plain PyTorch is used without it"
    absent = Finding("triton", "missing", "not installed", remedy)
    findings = [absent if triton is None else Finding("triton", "ok", triton), _hub_kernels()]
    # Until version 12 that distribution brought a module `pynvml` of its own; since then it uses nvidia-ml-py's.
    if pynvml is not None and int(pynvml.split(".")[0]) < 12:
        remedy = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
        findings.append(Finding("pynvml", "warn", f"pynvml {pynvml} replaces the module of nvidia-ml-py", remedy))
    return findings


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _hub_kernels() -> Finding:
    """Hugging Face's package `kernels`, which transformers imports, must not resolve to our folder of that name."""
    spec = importlib.util.find_spec("kernels")
    ours = Path(__file__).resolve().parent.parent / "kernels"
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent == ours:
        remedy = f"delete {spec.origin}: the folder must stay without __init__.py"
        return Finding(
            "kernels package", "warn", "this repository's kernels folder hides the Hub's package `kernels`", remedy
        )
    hub = _installed("kernels")
    found = (
        "the Hub's package is not installed, and not needed"
        if hub is None
        else f"the Hub's {hub} is installed and untouched"
    )
    return Finding("kernels package", "ok", found)


# -- resources -----------------------------------------------------------------------------------------
def check_memory() -> list[Finding]:
    """Main memory that this process may use, container limits included."""
    total, free = memory_bytes()
    if total is None or free is None:
        return [Finding("memory", "warn", "the system does not tell", "watch it yourself")]
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < _LITTLE_MEMORY:
        return [Finding("memory", "warn", found, "the quickstart wants 4 GiB: close other programs, or use one rank")]
    return [Finding("memory", "ok", found)]


def check_threads(environ: Mapping[str, str]) -> list[Finding]:
    """Cores, a container's share of them, and whether several ranks would fight over them."""
    cores, quota, threads = hardware.usable_cores(), thread_limit(), environ.get("OMP_NUM_THREADS")
    found = f"{cores} core(s), OMP_NUM_THREADS {threads or 'unset'}"
    if quota is not None and quota < cores:
        found += f", limited to {quota:g} cores' time by the container"
        return [
            Finding(
                "threads", "warn", found, f"set OMP_NUM_THREADS={max(1, int(quota))} divided by the ranks of this node"
            )
        ]
    if threads is None and cores > 1:
        # The DeepSpeed launcher leaves it unset: n ranks then run n × cores threads and crawl.
        return [Finding("threads", "ok", found, f"for n ranks on this node set OMP_NUM_THREADS to {cores} / n")]
    if threads is not None and (not threads.isdigit() or int(threads) > cores):
        return [Finding("threads", "warn", found, f"set OMP_NUM_THREADS to at most {cores}")]
    return [Finding("threads", "ok", found)]


def check_launchers() -> list[Finding]:
    """Launch programs on PATH, or present in this environment but not on PATH."""
    findings: list[Finding] = []
    for name, remedy in LAUNCHERS.items():
        found = shutil.which(name)
        beside = Path(sys.executable).parent / name
        if found is not None:
            findings.append(Finding(name, "ok", found))
        elif beside.exists():
            findings.append(Finding(name, "warn", f"{beside}, which is not on PATH", f"add {beside.parent} to PATH"))
        else:
            findings.append(Finding(name, "missing", "not on PATH", remedy))
    return findings


def check_extension_locks(environ: Mapping[str, str]) -> list[Finding]:
    """Locks that a killed compilation left behind; the next run would wait for them for ever, silently."""
    default = (
        Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache")
        / "torch_extensions"
    )
    root = Path(environ.get("TORCH_EXTENSIONS_DIR") or default)
    stale, held = stale_locks(root)
    findings = [
        Finding("extension lock", "warn", f"{lock} is held by nobody", f"rm {lock}: a run that needs it hangs")
        for lock in stale
    ]
    findings += [Finding("extension lock", "ok", f"{lock} is held by a compilation that is running") for lock in held]
    return findings or [Finding("extension locks", "ok", "none")]


def check_caches(environ: Mapping[str, str]) -> list[Finding]:
    """Whether the folders that a run writes to outside its own can be written."""
    home = Path(environ.get("HOME", "~")).expanduser()
    hub = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface")
    folders = {"data cache": (cache_root(), "ISOBUDGET_CACHE"), "hub cache": (hub, "HF_HOME")}
    return [_writable(topic, folder, variable) for topic, (folder, variable) in folders.items()]


def _writable(topic: str, folder: Path, variable: str) -> Finding:
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    try:
        # Asking for permission bits is not enough: root passes them on a read-only file system.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Finding(topic, "warn", f"{folder}: {error.strerror}", f"set {variable} to a folder you can write")
    return Finding(topic, "ok", f"{folder}, {shutil.disk_usage(nearest).free / _GIB:.0f} GiB free")
