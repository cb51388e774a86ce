"""The Triton kernels' arithmetic without a GPU: interpreted_laws.py in a process that sets TRITON_INTERPRET=1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_interpreted_kernels_keep_their_laws(root: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed (optional: only the fused GPU kernels need it)")
    laws = Path(__file__).with_name("interpreted_laws.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-rs", "-p", "no:cacheprovider", str(laws)],
        cwd=root, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "this interpreter cannot loop" in result.stdout:
        pytest.skip("triton 3.6's interpreter cannot loop under numpy 2.4: take numpy < 2.4 or a newer triton")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
