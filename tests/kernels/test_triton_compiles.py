"""Every kernel compiles for the GPUs it is meant for, on machines that have none; registers and spills are printed.

Run with -s to see the table, or `python -m tests.kernels.ahead_of_time --all`.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed (optional: only the fused GPU kernels need it)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled in this process", allow_module_level=True)

from harness.kernels import backend

from . import ahead_of_time

KERNELS = {
    "relation_tile", "relation_gradient", "attention_tile", "attention_rows", "attention_queries", "attention_keys",
    "score_tile", "score_rows", "score_columns", "soft_rows", "scale_gradient",
}  # fmt: skip


# What a GPU may do without: an old Triton sends sequences of any length over blocks for Blackwell.
TILES = {"relation_tile", "attention_tile", "score_tile"}


def check(binary: ahead_of_time.Binary) -> None:
    print(binary)
    assert binary.shared <= ahead_of_time.GPUS[binary.architecture].shared_bytes, binary
    # Ampere and Ada keep accumulators and operands in the same registers; a hundred bytes (a kilobyte for heads of 128
    # numbers in one tile) go to the L1 cache there. Hopper and Blackwell must not spill.
    assert binary.spilled <= (1100 if binary.architecture in ("sm_80", "sm_86", "sm_89") else 0), binary


def test_every_kernel_compiles_for_hopper_without_spilling() -> None:
    made = list(ahead_of_time.binaries(ahead_of_time.QUICK, ["sm_90"]))
    for binary in made:
        check(binary)
    assert {binary.kernel for binary in made} == KERNELS


def test_short_sequences_compile_for_blackwell_with_the_installed_triton() -> None:
    """Over blocks where its tiles do not compile: nobody is sent to a kernel that is not there."""
    cases = {
        name: run for name, run in ahead_of_time.QUICK.items() if name in ("relation T64 R8 d16 e24", "scores T32 d16")
    }
    made = list(ahead_of_time.binaries(cases, ["sm_100"]))
    for binary in made:
        check(binary)
    assert len({binary.case for binary in made}) == len(cases) == 2


def test_wide_heads_fit_the_shared_memory_of_small_gpus() -> None:
    cases = {name: ahead_of_time.WIDE[name] for name in ("relation T512 R6 d128 e128", "scores T128 d128 e128")}
    made = list(ahead_of_time.binaries(cases, ["sm_89"]))
    for binary in made:
        check(binary)
    assert not TILES & {binary.kernel for binary in made}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "sm_120"])
def test_every_wide_shape_fits_the_shared_memory_of_small_gpus(architecture: str) -> None:
    made = list(ahead_of_time.binaries({**ahead_of_time.QUICK, **ahead_of_time.WIDE}, [architecture]))
    limit = ahead_of_time.GPUS[architecture].shared_bytes
    for binary in made:
        print(binary)
        assert binary.shared <= limit, binary
    assert {binary.kernel for binary in made} >= KERNELS - TILES


@pytest.mark.slow
def test_every_shape_compiles_for_ampere_hopper_and_blackwell() -> None:
    architectures = ["sm_80", "sm_90", "sm_100"]
    made = list(ahead_of_time.binaries(ahead_of_time.ALL, architectures))
    for binary in made:
        check(binary)
    for architecture in architectures:
        found = {binary.kernel for binary in made if binary.architecture == architecture}
        by_blocks = architecture == "sm_100" and backend._triton_version() < backend.COMPILES_FOR_BLACKWELL
        assert found == (KERNELS - TILES if by_blocks else KERNELS)
