"""The denominators: what a large matrix product reaches on this device, and what memory is in use."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from harness.bench.timing import wait

# Large enough that launching and reading the operands no longer count; a second on either kind of device.
SIDE = {"cuda": 8192, "cpu": 1024}
ROUNDS = {"cuda": 30, "cpu": 20}


def product_dtype(precision: str) -> torch.dtype:
    """What an engine of this precision (`DsConfig.precision`) multiplies in."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.removesuffix("-autocast")]


def measured_peak(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """FLOP/s of the fastest of several square matrix products, a multiply-add as two; dtype and side are named."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    best = float("inf")
    with torch.no_grad():
        for _ in range(ROUNDS[device.type]):
            wait(device)
            begun = time.perf_counter()
            torch.mm(a, b, out=product)
            wait(device)
            best = min(best, time.perf_counter() - begun)
    return {
        "flop_per_s": 2 * side**3 / best,
        "of": f"fastest of {ROUNDS[device.type]} products of {side} × {side} {str(dtype).removeprefix('torch.')} matrices",
    }


def measured_bandwidth(device: torch.device) -> float:
    """Bytes per second of the fastest of several copies of a large buffer, reads and writes both counted."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**25, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(ROUNDS[device.type]):
        wait(device)
        begun = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * source.numel() * source.element_size() / best


def measured_link(device: torch.device, *, ranks: int) -> dict[str, float] | None:
    """Bytes per second over a link of the ring that these ranks make, and seconds of a round however small its message.

    From all-reduces of one number and of a large buffer, the fastest of several, solved for a ring's 2 (n − 1) rounds;
    None for a lone rank. Ranks call it together.
    """
    if ranks == 1:
        return None
    import torch.distributed as dist

    def fastest(numbers: int) -> float:
        buffer, best = torch.zeros(numbers, device=device), float("inf")
        for _ in range(ROUNDS[device.type]):
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(buffer)
            wait(device)
            best = min(best, time.perf_counter() - begun)
        return best

    numbers = 1 << (26 if device.type == "cuda" else 22)
    small, large = fastest(1), fastest(numbers)
    rounds = 2 * (ranks - 1)
    return {"round_s": small / rounds, "byte_s": rounds * 4 * numbers / ranks / max(large - small, 1e-9)}


def memory_in_use(device: torch.device) -> dict[str, Any]:
    """The peak so far: of the device's allocator on a GPU, of the process without one."""
    if device.type == "cuda":
        return {
            "bytes": torch.cuda.max_memory_allocated(device),
            "of": "PyTorch's allocator on this GPU, all arms loaded",
        }
    return {
        "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "of": "resident memory, all arms loaded",
    }
