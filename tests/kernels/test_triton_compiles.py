"""Every kernel compiles for the GPUs it is meant for, on machines that have none; registers and spills are printed.

Run with -s to see the table, or `python -m tests.kernels.ahead_of_time --all`.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed (optional: only the fused GPU kernels need it)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled in this process", allow_module_level=True)

from . import ahead_of_time

KERNELS = {
    "relation_tile", "relation_gradient", "attention_tile", "attention_rows", "attention_queries", "attention_keys",
    "score_tile", "score_rows", "score_columns", "soft_rows", "scale_gradient",
}  # fmt: skip


def check(binary: ahead_of_time.Binary) -> None:
    print(binary)
    assert binary.shared <= ahead_of_time.SHARED_LIMIT[binary.architecture], binary
    # Ampere keeps accumulators and operands in the same registers; a hundred bytes (a kilobyte for heads of 128
    # numbers in one tile) go to the L1 cache there. Hopper and Blackwell must not spill.
    assert binary.spilled <= (1100 if binary.architecture == "sm_80" else 0), binary


def test_every_kernel_compiles_for_hopper_without_spilling() -> None:
    made = list(ahead_of_time.binaries(ahead_of_time.QUICK, ["sm_90"]))
    for binary in made:
        check(binary)
    assert {binary.kernel for binary in made} == KERNELS


@pytest.mark.slow
def test_every_shape_compiles_for_ampere_hopper_and_blackwell() -> None:
    made = list(ahead_of_time.binaries(ahead_of_time.ALL, list(ahead_of_time.ARCHITECTURES)))
    for binary in made:
        check(binary)
    wanted = {
        (kernel, a) for kernel in KERNELS for a in ahead_of_time.ARCHITECTURES if not ahead_of_time.refused(kernel, a)
    }
    assert {(binary.kernel, binary.architecture) for binary in made} == wanted
