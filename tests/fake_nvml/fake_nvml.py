"""Builds the fake library and runs a function of `in_process.py` against it, in a process of its own.

The real nvidia-ml-py loads it: a fresh process finds our libnvidia-ml.so.1 through LD_LIBRARY_PATH, so the
test process and everything else in it never see a GPU that is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCENARIOS = HERE / "scenarios"


@lru_cache
def _build_folder() -> Path:
    return Path(mkdtemp(prefix="isobudget-fake-nvml-"))


def remove_builds() -> None:
    """Delete what `library` compiled; each test file calls it through the `fake_nvml_builds` fixture."""
    if _build_folder.cache_info().currsize:
        shutil.rmtree(_build_folder(), ignore_errors=True)
        _build_folder.cache_clear()
        library.cache_clear()


@lru_cache
def library(*defines: str) -> Path:
    """The folder of a compiled libnvidia-ml.so.1; skips the test, with the reason, where nothing compiles."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the fake NVML with")
    folder = _build_folder() / ("-".join(defines) or "full")
    folder.mkdir(parents=True)
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    command = [
        compiler,
        *flags,
        *(f"-D{d}" for d in defines),
        str(HERE / "fake_nvml.c"),
        "-o",
        str(folder / "libnvidia-ml.so.1"),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.fail(f"the fake NVML does not compile: {built.stderr}")
    return folder


def run(
    function: str,
    scenario: str,
    *,
    defines: tuple[str, ...] = (),
    folder: Path | None = None,
    timeout_s: float = 60,
    **arguments: Any,
) -> Any:
    """Call `in_process.<function>(**arguments)` under a scenario (a file's stem, or its text) and return its result."""
    where = library(*defines) if folder is None else folder
    path = SCENARIOS / f"{scenario}.txt"
    if "\n" in scenario:
        path = where / f"scenario-{abs(hash(scenario))}.txt"
        path.write_text(scenario, encoding="utf-8")
    # A run in the test process has left its ranks' rendezvous there: a run of the child's has its own.
    left = ("CUDA_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left)}
    environment = {
        **kept,
        "LD_LIBRARY_PATH": str(where),
        "FAKE_NVML_SCENARIO": str(path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "in_process.py"), function, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
