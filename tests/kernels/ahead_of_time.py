"""Compile every kernel for GPUs that are not here, exactly as its launcher would launch it; print what ptxas allotted.

    python -m tests.kernels.ahead_of_time [--all] [--for sm_80 sm_90 sm_100]

Launches are recorded, not guessed: the ops run on CPU tensors of the real shapes and types while triton's `run` is
replaced and the GPU is said to be the one compiled for, so a changed signature or launch option reaches the compiler
without anyone repeating it here.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from harness.kernels import backend
from harness.kernels.attention_kl.triton_kernel import attention_kl
from harness.kernels.backend import Gpu
from harness.kernels.relation_kl.triton_kernel import relation_kl
from harness.kernels.score_mse.triton_kernel import score_sse
from harness.kernels.soft_cross_entropy.triton_kernel import soft_cross_entropy

# A100; A10 and 3090; L4, L40S and 4090; H100 and H200; B200; 5090: what one block may have of an SM's shared memory.
GPUS = {
    "sm_80": Gpu((8, 0), 163 << 10), "sm_86": Gpu((8, 6), 99 << 10), "sm_89": Gpu((8, 9), 99 << 10),
    "sm_90": Gpu((9, 0), 227 << 10), "sm_100": Gpu((10, 0), 227 << 10), "sm_120": Gpu((12, 0), 99 << 10),
}  # fmt: skip

_POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its arguments' types, its compile-time arguments and options."""

    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]


@dataclass(frozen=True)
class Binary:
    """What ptxas made of a launch: registers and spilled bytes per thread, shared bytes per block."""

    case: str
    kernel: str
    architecture: str
    registers: int
    spilled: int
    shared: int

    def __str__(self) -> str:
        return (
            f"{self.case:44s} {self.kernel:18s} {self.architecture:7s} {self.registers:4d} registers "
            f"{self.spilled:5d} B spilled {self.shared / 1024:6.1f} KiB shared"
        )


@contextmanager
def recorded(architecture: str) -> Iterator[list[Launch]]:
    """Collect the launches this GPU would get instead of making them."""
    launches: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound = dict(zip(self.arg_names, args, strict=False))
        options = {name: value for name, value in kwargs.items() if name not in self.arg_names}
        bound.update((name, value) for name, value in kwargs.items() if name in self.arg_names)
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.params):
            value = bound[parameter.name]
            # As triton specialises a launch: a 1 is compiled in, multiples of 16 are promised.
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            if isinstance(value, Tensor):
                signature[parameter.name] = _POINTERS[value.dtype]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        launches.append(Launch(self, signature, constants, attributes, options))

    original, gpu_of = JITFunction.run, backend.gpu_of
    JITFunction.run, backend.gpu_of = record, lambda tensor: GPUS[architecture]
    try:
        yield launches
    finally:
        JITFunction.run, backend.gpu_of = original, gpu_of


def compiled(case: str, launch: Launch, architecture: str) -> Binary:
    """Compile a recorded launch and read the cubin's resources; an error of the compiler passes through."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    major, minor = GPUS[architecture].capability
    binary = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=launch.options)
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(item.split(":") for item in usage.split() if item.startswith(("REG:", "STACK:")))
    name = launch.kernel.fn.__name__
    return Binary(case, name, architecture, int(fields["REG"]), int(fields["STACK"]), binary.metadata.shared)


def relation(tokens: int, heads: int, sizes: tuple[int, int], *, pads: bool = False, causal: bool = False) -> None:
    """Run relation_kl's launcher, forward and backward, on zeros."""
    student, teacher = (torch.zeros(2, tokens, heads * size, dtype=torch.bfloat16) for size in sizes)
    lengths = torch.tensor([tokens, tokens]) if pads else None
    relation_kl(student.requires_grad_(), teacher, heads=heads, lengths_B=lengths, causal=causal).backward()


def scores(loss: Callable[..., Tensor], tokens: int, sizes: tuple[int, int], *, pads: bool = False) -> None:
    """Run attention_kl's or score_sse's launcher, forward and backward, on zeros."""
    inputs = [torch.zeros(2, 12, tokens, size, dtype=torch.bfloat16) for size in (sizes[0], *sizes, sizes[1])]
    inputs = [inputs[0].requires_grad_(), torch.zeros_like(inputs[0]).requires_grad_(), inputs[2], inputs[3]]
    loss(*inputs, lengths_B=torch.tensor([tokens, tokens]) if pads else None).backward()


def soft(vocabulary: int, temperature: float, weights: tuple[float, float] | None) -> None:
    """Run soft_cross_entropy's launcher on zeros."""
    hidden, weight = torch.zeros(4, 16, dtype=torch.bfloat16), torch.zeros(vocabulary, 16, dtype=torch.bfloat16)
    teacher = torch.zeros(4, vocabulary, dtype=torch.bfloat16)
    labels = torch.zeros(4, dtype=torch.int64)
    soft_cross_entropy(
        hidden.requires_grad_(), weight, teacher_logits_NV=teacher, labels_N=labels, temperature=temperature, weights=weights
    )  # fmt: skip


QUICK: dict[str, Callable[[], None]] = {
    "relation T64 R8 d16 e24": lambda: relation(64, 8, (16, 24)),
    "relation T160 d16 e16 padded": lambda: relation(160, 4, (16, 16), pads=True),
    "attention T32 d16": lambda: scores(attention_kl, 32, (16, 16)),
    "attention T160 d16 padded": lambda: scores(attention_kl, 160, (16, 16), pads=True),
    "scores T32 d16": lambda: scores(score_sse, 32, (16, 16)),
    "scores T160 d16 padded": lambda: scores(score_sse, 160, (16, 16), pads=True),
    "soft targets T=2": lambda: soft(30522, 2.0, (0.5, 0.5)),
}
# What takes the most shared memory, in one tile and over blocks.
WIDE: dict[str, Callable[[], None]] = {
    "relation T512 R6 d128 e128": lambda: relation(512, 6, (128, 128)),
    "relation T128 R4 d192 e256": lambda: relation(128, 4, (192, 256)),
    **{
        f"{name} T{tokens} d{size} e{other}": (lambda f=loss, t=tokens, s=(size, other): scores(f, t, s))
        for name, loss in (("attention", attention_kl), ("scores", score_sse))
        for tokens, size, other in ((128, 64, 64), (128, 128, 128), (512, 64, 64), (512, 192, 256))
    },
}
ALL: dict[str, Callable[[], None]] = {
    **QUICK,
    **{
        f"relation T{tokens} R{heads} d{sizes[0]} e{sizes[1]}{' padded' * pads}{' causal' * causal}": (
            lambda t=tokens, h=heads, s=sizes, p=pads, c=causal: relation(t, h, s, pads=p, causal=c)
        )
        for tokens, heads, sizes, pads, causal in (
            (128, 16, (48, 64), False, False), (128, 16, (48, 64), True, False), (128, 64, (12, 16), False, False),
            (128, 12, (64, 64), False, True), (128, 6, (128, 128), False, False), (128, 4, (192, 256), False, False),
            (32, 12, (64, 64), True, False), (512, 16, (48, 64), False, False), (512, 64, (12, 16), True, False),
            (512, 12, (64, 64), False, True), (512, 6, (128, 128), True, False),
        )
    },
    **{
        f"{name} T{tokens} d{size} e{other}": (lambda f=loss, t=tokens, s=(size, other): scores(f, t, s))
        for name, loss in (("attention", attention_kl), ("scores", score_sse))
        for tokens, size, other in ((64, 32, 64), (128, 64, 64), (512, 64, 64), (512, 128, 128))
    },
    "soft targets T=1": lambda: soft(30522, 1.0, (0.5, 0.5)),
    "soft targets T=2, nothing declared": lambda: soft(30522, 2.0, None),
}  # fmt: skip


def binaries(cases: dict[str, Callable[[], None]], architectures: list[str]) -> Iterator[Binary]:
    """Compile every distinct launch of the cases for each architecture, in order."""
    seen = set()
    for case, run in cases.items():
        for architecture in architectures:
            with recorded(architecture) as launches:
                run()
            for launch in launches:
                if (architecture, str(launch)) not in seen:
                    seen.add((architecture, str(launch)))
                    yield compiled(case, launch, architecture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="architectures", nargs="+", default=list(GPUS), choices=list(GPUS))
    parser.add_argument("--all", action="store_true", help="every shape, not only the quick ones (minutes)")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    for made in binaries(ALL if arguments.all else QUICK, arguments.architectures):
        print(made, flush=True)
