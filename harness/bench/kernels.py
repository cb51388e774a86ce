"""The kernels' implementations side by side, beside the floor the hardware sets.

Forward and backward together, implementations taken in turn so that other load hits all alike; percentiles after a
warm-up. An implementation whose loss or gradient differs from the definition's gets no time. A GPU's floor is the
largest of products over the measured matrix peak, bytes over the measured bandwidth, and exponentials over 16 per clock
and multiprocessor; without a GPU no floor is claimed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.bench.peak import measured_bandwidth, measured_peak
from harness.bench.timing import percentiles, wait
from harness.kernels.attention_kl import op as attention
from harness.kernels.relation_kl import op as relation
from harness.kernels.score_mse import op as score
from harness.kernels.soft_cross_entropy import op as soft

# A bf16 or fp16 gradient is rounded to a share of 2⁻⁸ before it is summed; fp32 ones differ by the sums' order.
TOLERANCE = {True: 0.03, False: 1e-4}
WARM_UP = 3
EXPONENTIALS_PER_CLOCK = 16


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


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; below a norm of 0.001 the expected counts as noise around zero."""
    actual, expected = actual.double(), expected.double()
    error = float((actual - expected).norm()) / max(float(expected.norm()), 1e-3)
    # Infinite rather than NaN: every comparison with NaN is false, and max() would pass over it.
    return error if math.isfinite(error) else math.inf


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
                losses = [
                    relation.relation_kl(s, t, heads=heads, backend=backend)  # pyright: ignore[reportArgumentType]
                    for s, t in zip(leaves, teachers, strict=True)
                ]
                return torch.stack(losses).sum()
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


def floor_ms(work: Work, hardware: dict[str, float] | None) -> float | None:
    """The least time the hardware allows, in milliseconds; None on a CPU."""
    if hardware is None:
        return None
    bounds = (
        work.flops / hardware["flop_per_s"], work.bytes / hardware["bytes_per_s"],
        work.exponentials / hardware["exponentials_per_s"],
    )  # fmt: skip
    return 1e3 * max(bounds)


def hardware_bounds(device: torch.device) -> dict[str, float] | None:
    """What this GPU was measured to reach just now; None on a CPU."""
    if device.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(device)
    return {
        "flop_per_s": measured_peak(device, half=True)["flop_per_s"],
        "bytes_per_s": measured_bandwidth(device),
        "exponentials_per_s": EXPONENTIALS_PER_CLOCK * facts.multi_processor_count * 1e6 * _sm_mhz(),
    }


def _sm_mhz() -> float:
    """The clock under load, read after the peak was measured; the nominal one where NVML does not tell."""
    try:
        return float(torch.cuda.clock_rate())
    except (ModuleNotFoundError, RuntimeError):
        return 1700.0


def measure_kernels(device: torch.device, *, only: str, rounds: int) -> dict[str, Any]:
    """Time every problem whose name contains `only`.

    Returns one JSON object: the hardware's bounds and a row per problem and implementation, with `error` against the
    definition; a wrong implementation has no times.
    """
    bounds = hardware_bounds(device)
    rows = [
        row
        for problem in problems(device.type)
        if only in problem.name
        for row in _rows(problem, device, bounds, rounds)
    ]
    return {"bounds": bounds, "rule": f"{WARM_UP} warm-up rounds, then {rounds} timed, in turns", "rows": rows}


def _rows(
    problem: Problem, device: torch.device, bounds: dict[str, float] | None, rounds: int
) -> Iterator[dict[str, Any]]:
    """Check every implementation against the definition, then time the right ones in turn."""
    loss, gradients = problem.run("reference")
    rows: dict[str, dict[str, Any]] = {}
    for backend in problem.backends:
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        value, found = problem.run(backend)
        error = max(relative_error(value, loss), *(relative_error(a, e) for a, e in zip(found, gradients, strict=True)))
        rows[backend] = {
            "problem": problem.name,
            "backend": backend,
            "error": error,
            "right": error < TOLERANCE["float32" not in problem.name],
        }
        if device.type == "cuda":
            rows[backend]["extra_bytes"] = torch.cuda.max_memory_allocated() - before
    times: dict[str, list[float]] = {backend: [] for backend, row in rows.items() if row["right"]}
    for number in range(WARM_UP + rounds):
        for backend, seen in times.items():
            wait(device)
            begun = time.perf_counter()
            problem.run(backend)
            wait(device)
            if number >= WARM_UP:
                seen.append(time.perf_counter() - begun)
    for backend, row in rows.items():
        if backend in times:
            row |= percentiles(times[backend])
            floor = floor_ms(problem.work, bounds)
            row |= {"floor_ms": floor, "over_floor": row["p50_ms"] / floor if floor else None}
    for backend, row in rows.items():
        if backend in times:
            row["faster_than_reference"] = rows["reference"]["p50_ms"] / row["p50_ms"]
    yield from rows.values()


def show_kernels(table: dict[str, Any]) -> None:
    """Print one line per problem and implementation."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for problem in dict.fromkeys(row["problem"] for row in table["rows"]):
        view = Table(title=problem, title_justify="left")
        for heading in ("backend", "p50, ms", "p20–p80", "faster", "over floor", "error"):
            view.add_column(heading, justify="left" if heading == "backend" else "right", no_wrap=True)
        for row in (row for row in table["rows"] if row["problem"] == problem):
            times = (
                [f"{row['p50_ms']:.3f}", f"{row['p20_ms']:.3f}–{row['p80_ms']:.3f}"] if row["right"] else ["wrong", ""]
            )
            faster, over = row.get("faster_than_reference"), row.get("over_floor")
            shares = [f"{share:.1f}×" if share else "–" for share in (faster, over)]
            view.add_row(row["backend"], *times, *shares, f"{row['error']:.0e}")
        console.print(view)
    console.print(table["rule"], highlight=False)
