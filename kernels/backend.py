"""Which implementation of a kernel runs, and why: said once, so that a run record can quote it.

`triton` runs on the GPU. `eager` is PyTorch with a hand-formed gradient and runs anywhere. `reference` is the
definition in plain autograd. A kernel changes time and memory, never the loss and never the budget's FLOPs.
"""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "eager", "reference"]

# A study says once what its kernels are (`prefer`); what then ran is kept for its record (`choices`).
_preferred: Backend = "auto"
_ran: dict[str, set[str]] = {}
# Products made by kernels of ours, which no counter of PyTorch's operators sees.
_flop: dict[str, int] = {}

# Two float32 score tiles of 128 × 128 are 128 KiB, half of an SM's registers: the longest sequence of one tile.
TILE = 128
# The widest head of a sequence in one tile: beyond it operands do not fit shared memory, the smaller one of small GPUs.
TILE_HEAD_SIZE, SMALL_TILE_HEAD_SIZE = 128, 64
# Older Triton's compiler gives up on one tile's kernel for Blackwell: 3.6.0 and 3.7.1 do, 3.8.0 and 3.9.0 compile it.
# The kernels over blocks compile everywhere.
BLACKWELL, COMPILES_FOR_BLACKWELL = (10, 0), (3, 8)

# tl.dot's tiles are at least 16 wide, and beyond 256 numbers per head a tile no longer fits on the chip.
MAX_HEAD_SIZE = 256
# What one block may have of an SM's shared memory: 163 KiB and more on A100, H100 and B200, 99 KiB on A10, L4, L40S and
# the 3090, 4090 and 5090, where wide heads take smaller steps and no tile. Compiled for either (tests/kernels/ahead_of_time.py).
ROOMY_BYTES, LEAST_BYTES = 160 << 10, 99 << 10


@dataclass(frozen=True)
class Gpu:
    """What of a GPU decides how a kernel is launched there; shared_bytes: what one block may have."""

    capability: tuple[int, int]
    shared_bytes: int


def gpu_of(tensor: Tensor) -> Gpu | None:
    """The tensor's GPU; None on a CPU, where kernels are interpreted and everything fits."""
    if not tensor.is_cuda:
        return None
    found = torch.cuda.get_device_properties(tensor.device)
    # AMD's properties have no such limit above the plain one.
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    return Gpu((found.major, found.minor), shared)


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, and the reason, one sentence for the run record."""

    backend: Literal["triton", "eager", "reference"]
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


def prefer(backend: Backend) -> None:
    """From now on `auto` means this in the whole process; `prefer("auto")` takes it back.

    Raises:
        ValueError: an unknown backend.
    """
    global _preferred
    _check(backend)
    _preferred = backend


def choices() -> dict[str, str]:
    """What has run in this process, op by op, with the reasons: for the run record."""
    return {op: "; ".join(sorted(ran)) for op, ran in sorted(_ran.items())}


def forget() -> None:
    """Start a new account of what runs: before a trial, whose record then names its own kernels only."""
    _ran.clear()


def ran(op: str, choice: Choice) -> Choice:
    """Note that `op` runs by this choice, and return it."""
    _ran.setdefault(op, set()).add(str(choice))
    return choice


def register_flop(op: str, amount: int) -> None:
    """Tell that `op` executes this many FLOPs outside PyTorch's operators, recomputation included."""
    _flop[op] = _flop.get(op, 0) + amount


def register_pairs(
    op: str, student: tuple[int, ...], teacher: tuple[int, ...], *, with_gradient: tuple[int, int]
) -> None:
    """Tell the products of a kernel over pairs of tokens; shapes are (B, T, width of all heads).

    `with_gradient` counts products per pair, (student's, teacher's), as the kernel's README derives them; without
    a gradient there are the scores alone.
    """
    mine, theirs = with_gradient if torch.is_grad_enabled() else (1, 1)
    sequences, length, width = student
    register_flop(op, 2 * sequences * length * length * (mine * width + theirs * teacher[-1]))


def registered_flop() -> int:
    """All that was registered in this process so far."""
    return sum(_flop.values())


def choose(backend: Backend, tensor: Tensor, *, refusal: str | None = None) -> Choice:
    """Decide what runs for tensors like this one; `refusal` is the op's own reason against its Triton kernel.

    Raises:
        ValueError: an unknown backend, or `triton` asked for (or preferred) where it cannot run. Nothing falls
            back silently: only `auto` chooses, and it says why.
    """
    _check(backend)
    if backend == "auto":
        backend = _preferred
    if backend == "reference":
        return Choice("reference", "asked for")
    if backend == "eager":
        return Choice("eager", "asked for")
    obstacle = _obstacle(tensor) or refusal
    if backend == "triton":
        if obstacle is not None:
            raise ValueError(f"kernels 'triton': {obstacle}; ask for 'auto' or 'eager'")
        return Choice("triton", "asked for")
    if obstacle is None and tensor.device.type != "cuda":
        obstacle = f"the tensors are on {tensor.device.type}, where Triton only interprets"
    return Choice("triton", "half precision on a GPU") if obstacle is None else Choice("eager", obstacle)


def kernel_dtype(*student: Tensor) -> torch.dtype:
    """What the kernels take the student's tensors as: autocast's type where it is on, as its own products would."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in student))
    device = student[0].device.type
    autocast = dtype == torch.float32 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else dtype


def head_choice(
    backend: Backend, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], *, refusal: str | None = None
) -> Choice:
    """What runs for these (…, T, d) heads, which the Triton kernels take as `kernel_dtype` of the student; see `choose`.

    The teacher, a constant, is cast to it too, unless it has more bytes a number: a float32 teacher is not rounded.
    """
    dtype = kernel_dtype(*student)
    refusal = refusal or _head_refusal(student, teacher, dtype)
    return choose(backend, student[0].new_empty(0, dtype=dtype), refusal=refusal)


def _head_refusal(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], dtype: torch.dtype) -> str | None:
    size = max(x.shape[-1] for x in (*student, *teacher))
    if size > MAX_HEAD_SIZE:
        return f"heads of {size} numbers do not fit on the chip (at most {MAX_HEAD_SIZE})"
    theirs = max((x.dtype for x in teacher), key=lambda each: each.itemsize)
    if theirs.itemsize > dtype.itemsize:
        names = sorted(str(each).removeprefix("torch.") for each in (dtype, theirs))
        return f"student and teacher differ in type ({' and '.join(names)})"
    gpu = gpu_of(student[0])
    if gpu is not None and gpu.shared_bytes < LEAST_BYTES:
        return f"a block has {gpu.shared_bytes >> 10} KiB of shared memory here; the kernels take {LEAST_BYTES >> 10}"
    return None


def one_tile(student: Tensor, teacher: Tensor) -> bool:
    """Whether a sequence of these (…, T, d) heads is one tile of one program, and not several blocks."""
    widest = TILE_HEAD_SIZE if roomy(student) else SMALL_TILE_HEAD_SIZE
    if student.shape[-2] > TILE or max(student.shape[-1], teacher.shape[-1]) > widest:
        return False
    gpu = gpu_of(student)
    return gpu is None or gpu.capability < BLACKWELL or _triton_version() >= COMPILES_FOR_BLACKWELL


def roomy(tensor: Tensor) -> bool:
    """Whether a block has the shared memory of the large GPUs."""
    gpu = gpu_of(tensor)
    return gpu is None or gpu.shared_bytes >= ROOMY_BYTES


def _triton_version() -> tuple[int, int]:
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def differentiated(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors, detached under `no_grad`.

    An autograd.Function that forms its gradient in the forward would else form it in evaluations too: its
    `needs_input_grad` looks at the tensors, not at the mode.
    """
    return tensors if torch.is_grad_enabled() else tuple(None if x is None else x.detach() for x in tensors)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one: Triton launches on the current device, wherever its arguments are."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _check(backend: str) -> None:
    if backend not in get_args(Backend):
        raise ValueError(f"kernels {backend!r}: one of {', '.join(get_args(Backend))} is needed")


def _obstacle(tensor: Tensor) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if tensor.device.type != "cuda" and not interpreted:
        return f"the tensors are on {tensor.device.type}"
    # Exact float32 products spill thousands of bytes per thread (compiled for sm_80, sm_90 and sm_100).
    written = (torch.float16, torch.bfloat16, *((torch.float32,) if interpreted else ()))
    if tensor.dtype not in written:
        return f"the kernels are written for half precision, not {str(tensor.dtype).removeprefix('torch.')}"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return "the kernels are compiled for compute capability 8.0 and newer"
    return None
