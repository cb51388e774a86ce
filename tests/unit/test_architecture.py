"""The architecture is checked, not hoped for: import arrows, the kernels name, the entry point's size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_imports_point_down(root: Path) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=root, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def test_only_the_engine_imports_deepspeed_and_one_module_pynvml(root: Path) -> None:
    """Lazy imports inside functions count too, which the contracts' graph also sees; this names the file."""
    for package, owner in (("deepspeed", "engine/"), ("pynvml", "meters/nvml.py")):
        pattern = re.compile(rf"^\s*(import {package}\b|from {package}\b)", re.MULTILINE)
        importers = {
            path.relative_to(root / "harness").as_posix()
            for path in (root / "harness").rglob("*.py")
            if pattern.search(path.read_text(encoding="utf-8"))
        }
        assert {path for path in importers if not path.startswith(owner)} == set()
        assert importers, package


def test_kernels_import_only_torch_and_triton(root: Path) -> None:
    allowed = {
        "torch",
        "triton",
        "__future__",
        "math",
        "collections",
        "typing",
        "dataclasses",
        "functools",
        "os",
        "contextlib",
    }
    for path in (root / "kernels").rglob("*.py"):
        for module in re.findall(r"^\s*(?:import|from) ([a-zA-Z_]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert module in allowed, f"{path.relative_to(root)} imports {module}"


def test_the_kernels_folder_does_not_shadow_the_hugging_face_package(root: Path) -> None:
    """`transformers` imports the package `kernels` when it is installed; ours has no __init__.py and gives way."""
    import importlib.util

    if importlib.util.find_spec("kernels") is None or "site-packages" not in str(importlib.util.find_spec("kernels")):
        pytest.skip("the Hugging Face package kernels is not installed")
    code = (
        "import kernels, transformers, launch, harness.conduct, harness.kernels.relation_kl.op as op;"
        "assert 'site-packages' in kernels.__file__, kernels.__file__;"
        "assert 'harness/kernels' in op.__file__.replace('\\\\', '/'), op.__file__;"
        "from kernels import get_kernel"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def test_the_entry_point_stays_small(root: Path) -> None:
    assert len((root / "launch.py").read_text().splitlines()) <= 60


def test_the_shipped_assets_stay_small(root: Path) -> None:
    assert sum(p.stat().st_size for p in (root / "harness" / "assets").rglob("*") if p.is_file()) <= 10 * 1024 * 1024
