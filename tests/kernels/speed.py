"""Time the kernels' implementations side by side, beside the floor the hardware sets.

    python -m tests.kernels.speed                      # this CPU, the quickstart's shapes
    python -m tests.kernels.speed --device cuda        # a GPU, PERFORMANCE.md's shapes
    python -m tests.kernels.speed --json times.json --only relation

Forward and backward together, implementations taken in turn so that other load hits all alike; the first rounds are
dropped (--warmup), the 20th, 50th and 80th percentile of the rest reported. An implementation whose loss or gradient
differs from the definition's gets no time. A GPU's floor is the largest of matrix products over --tflops, bytes over
--bandwidth and exponentials over 16 per clock and SM; a CPU has none printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from harness.kernels.attention_kl import op as attention
from harness.kernels.relation_kl import op as relation
from harness.kernels.score_mse import op as score
from harness.kernels.soft_cross_entropy import op as soft

from .problems import worst_error


@dataclass(frozen=True)
class Work:
    """What a problem must cost at least, forward and backward: products, bytes of inputs and gradients, exponentials."""

    flops: float
    bytes: float
    exponentials: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A loss at one shape: `run(backend)` returns (loss, gradients)."""

    name: str
    work: Work
    backends: tuple[str, ...]
    run: Callable[[str], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Timing:
    """One row: milliseconds at three percentiles, the error against the definition, the peak of extra memory."""

    problem: str
    backend: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    error: float
    floor_ms: float | None
    extra_mib: float | None

    def __str__(self) -> str:
        floor = "" if self.floor_ms is None else f"  {self.p50_ms / self.floor_ms:5.1f} × floor {self.floor_ms:.3f} ms"
        memory = "" if self.extra_mib is None else f"  +{self.extra_mib:.0f} MiB"
        times = f"{self.p20_ms:8.3f} {self.p50_ms:8.3f} {self.p80_ms:8.3f} ms"
        return f"{self.problem:46s} {self.backend:10s} {times}  error {self.error:.0e}{floor}{memory}"


def with_gradients(loss: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run forward and backward once."""
    value = loss(*leaves)
    return value.detach(), list(torch.autograd.grad(value, leaves))


def pairs_problem(
    kind: str, batch: int, tokens: int, heads: int, sizes: tuple[int, int], dtype: torch.dtype, device: str
) -> Problem:
    """relation (three of them: queries, keys and values), attention or scores."""
    generator = torch.Generator(device).manual_seed(0)

    def make(count: int, size: int) -> list[Tensor]:
        shape = (batch, tokens, heads * size)
        return [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(count)]

    count = 3 if kind == "relation" else 2
    students = [x.requires_grad_() for x in make(count, sizes[0])]
    teachers = make(count, sizes[1])

    def run(backend: str) -> tuple[Tensor, list[Tensor]]:
        def loss(*leaves: Tensor) -> Tensor:
            if kind == "relation":
                return sum(
                    relation.relation_kl(s, t, heads=heads, backend=backend)  # pyright: ignore[reportArgumentType]
                    for s, t in zip(leaves, teachers, strict=True)
                )  # pyright: ignore[reportReturnType]
            split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (*leaves, *teachers)]
            function = attention.attention_kl if kind == "attention" else score.score_sse
            return function(*split, backend=backend)  # pyright: ignore[reportArgumentType]

        return with_gradients(loss, students)

    pairs = 2 * batch * tokens * tokens * heads
    # Products: student scores, teacher scores, and one per differentiated operand.
    products = pairs * (sizes[0] * (1 + (1 if kind == "relation" else 2)) + sizes[1])
    moved = batch * tokens * heads * (2 * sizes[0] + sizes[1]) * students[0].element_size() * count
    work = Work(
        products * (3 if kind == "relation" else 1), moved,
        0.0 if kind == "scores" else pairs * (3 if kind == "relation" else 1),
    )  # fmt: skip
    name = f"{kind} B{batch} T{tokens} heads {heads}×{sizes[0]}/{sizes[1]} {str(dtype)[6:]}"
    return Problem(name, work, ("reference", "eager", *(("triton",) if device == "cuda" else ())), run)


def soft_problem(
    positions: int, vocabulary: int, sizes: tuple[int, int], temperature: float, dtype: torch.dtype, device: str
) -> Problem:
    """The soft cross-entropy with labels, through both heads, its weights declared (the reference ignores them)."""
    generator = torch.Generator(device).manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) / shape[-1] ** 0.25

    leaves = [make(positions, sizes[0]), make(vocabulary, sizes[0]), make(vocabulary)]
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    hidden, weight, bias = (
        x.to(dtype) for x in (make(positions, sizes[1]), make(vocabulary, sizes[1]), make(vocabulary))
    )
    labels = torch.randint(0, vocabulary, (positions,), generator=generator, device=device)

    def run(backend: str) -> tuple[Tensor, list[Tensor]]:
        def loss(*student: Tensor) -> Tensor:
            kl, ce = soft.soft_cross_entropy(
                *student, teacher_hidden_NG=hidden, teacher_weight_VG=weight, teacher_bias_V=bias, labels_N=labels,
                temperature=temperature, weights=(0.5, 0.5), backend=backend,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            return 0.5 * kl + 0.5 * ce

        return with_gradients(loss, leaves)

    logits = positions * vocabulary
    moved = (2 * sum(x.numel() for x in leaves) + hidden.numel() + weight.numel()) * hidden.element_size()
    exponentials = logits * (2 if temperature == 1 else 3)
    name = (
        f"soft targets N{positions} V{vocabulary} H{sizes[0]}/{sizes[1]} temperature {temperature:g} {str(dtype)[6:]}"
    )
    work = Work(2 * logits * (3 * sizes[0] + sizes[1]), moved, exponentials)
    return Problem(name, work, ("reference", "eager", *(("triton",) if device == "cuda" else ())), run)


def problems(device: str) -> Iterator[Problem]:
    """The quickstart's shapes on a CPU, the paper's and PERFORMANCE.md's on a GPU."""
    if device == "cpu":
        for batch in (16, 32):
            yield pairs_problem("relation", batch, 64, 8, (16, 24), torch.float32, device)
            yield pairs_problem("attention", batch, 64, 4, (32, 48), torch.float32, device)
            yield pairs_problem("scores", batch, 64, 4, (32, 48), torch.float32, device)
            yield soft_problem(10 * batch, 4096, (128, 192), 1.0, torch.float32, device)
            yield soft_problem(10 * batch, 4096, (128, 192), 2.0, torch.float32, device)
        return
    for heads, sizes in ((16, (48, 64)), (64, (12, 16)), (12, (64, 64))):
        yield pairs_problem("relation", 256, 128, heads, sizes, torch.bfloat16, device)
    yield pairs_problem("relation", 64, 512, 16, (48, 64), torch.bfloat16, device)
    yield pairs_problem("relation", 256, 128, 16, (48, 64), torch.float16, device)
    for tokens, batch in ((128, 256), (512, 64)):
        yield pairs_problem("attention", batch, tokens, 12, (64, 64), torch.bfloat16, device)
        yield pairs_problem("scores", batch, tokens, 12, (64, 64), torch.bfloat16, device)
    yield soft_problem(4915, 30522, (768, 1024), 1.0, torch.bfloat16, device)
    yield soft_problem(4915, 30522, (768, 1024), 2.0, torch.bfloat16, device)


def floor_ms(work: Work, arguments: argparse.Namespace) -> float | None:
    """The least time the hardware allows, in milliseconds; None on a CPU."""
    if arguments.device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(0)
    exponentials_per_s = 16 * properties.multi_processor_count * arguments.clock_ghz * 1e9
    bounds = (
        work.flops / (arguments.tflops * 1e12), work.bytes / (arguments.bandwidth * 1e12),
        work.exponentials / exponentials_per_s,
    )  # fmt: skip
    return 1e3 * max(bounds)


def measure(problem: Problem, arguments: argparse.Namespace) -> Iterator[Timing]:
    """Check every implementation against the definition, then time the right ones in turn."""
    cuda = arguments.device == "cuda"
    expected = problem.run("reference")
    tolerance = 1e-4 if "float32" in problem.name else 0.03
    errors, memory = {}, {}
    for backend in problem.backends:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        errors[backend] = max(worst_error(problem.run(backend), expected))
        if cuda:
            memory[backend] = (torch.cuda.max_memory_allocated() - before) / 2**20
    right = [backend for backend in problem.backends if errors[backend] < tolerance]
    for backend in set(problem.backends) - set(right):
        print(f"{problem.name:46s} {backend:10s} WRONG: error {errors[backend]:.1e}, so no time is printed")
    times: dict[str, list[float]] = {backend: [] for backend in right}
    for index in range(arguments.warmup + arguments.rounds):
        for backend in right:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            problem.run(backend)
            if cuda:
                torch.cuda.synchronize()
            if index >= arguments.warmup:
                times[backend].append(1e3 * (time.perf_counter() - start))
    for backend in right:
        ordered = sorted(times[backend])
        p20, p50, p80 = (ordered[int(share * (len(ordered) - 1))] for share in (0.2, 0.5, 0.8))
        yield Timing(
            problem.name, backend, p20, p50, p80, errors[backend], floor_ms(problem.work, arguments), memory.get(backend)
        )  # fmt: skip


def main() -> None:
    """Print one row per problem and implementation, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tflops", type=float, default=790, help="matrix peak (default: measured on an H200)")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="memory, TB/s (default: measured on an H200)")
    parser.add_argument("--clock-ghz", type=float, default=1.7, help="SM clock under load")
    parser.add_argument("--json", help="write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hardware = (
        torch.cuda.get_device_name(0) if arguments.device == "cuda" else platform.processor() or platform.machine()
    )
    load = os.getloadavg()[0]
    print(
        f"{hardware}, torch {torch.__version__}, {arguments.threads} threads, load {load:.1f}; p20 p50 p80 of {arguments.rounds}"
    )
    rows = []
    for problem in problems(arguments.device):
        if arguments.only in problem.name:
            for timing in measure(problem, arguments):
                print(timing, flush=True)
                rows.append(asdict(timing))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"hardware": hardware, "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
