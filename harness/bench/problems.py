"""The losses' problems that are timed: their shapes, their implementations, and what they must cost at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.bench import liger
from harness.kernels.attention_kl import op as attention
from harness.kernels.relation_kl import op as relation
from harness.kernels.score_mse import op as score
from harness.kernels.soft_cross_entropy import op as soft


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
    positions: int,
    vocabulary: int,
    sizes: tuple[int, int],
    temperature: float,
    dtype: torch.dtype,
    device: str,
    *,
    bias: bool = True,
) -> Problem:
    """The soft cross-entropy with labels, through both heads, its weights declared (the reference ignores them).

    Without `bias` Liger's kernels compute it too, and stand beside ours where they can run.
    """
    generator = torch.Generator(device).manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) / shape[-1] ** 0.25

    leaves = [make(positions, sizes[0]), make(vocabulary, sizes[0]), *([make(vocabulary)] if bias else [])]
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    hidden, weight = (make(rows, sizes[1]).to(dtype) for rows in (positions, vocabulary))
    teacher_bias = make(vocabulary).to(dtype) if bias else None
    labels = torch.randint(0, vocabulary, (positions,), generator=generator, device=device)

    def run(backend: str) -> tuple[Tensor, list[Tensor]]:
        def loss(*student: Tensor) -> Tensor:
            if backend == liger.NAME:
                kl, ce = liger.soft_cross_entropy(
                    *student,
                    teacher_hidden_NG=hidden,
                    teacher_weight_VG=weight,
                    labels_N=labels,
                    temperature=temperature,
                )
                return 0.5 * kl + 0.5 * ce
            kl, ce = soft.soft_cross_entropy(
                *student, teacher_hidden_NG=hidden, teacher_weight_VG=weight, teacher_bias_V=teacher_bias, labels_N=labels,
                temperature=temperature, weights=(0.5, 0.5), backend=backend,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            return 0.5 * kl + 0.5 * ce

        return with_gradients(loss, leaves)

    logits = positions * vocabulary
    moved = (2 * sum(x.numel() for x in leaves) + hidden.numel() + weight.numel()) * hidden.element_size()
    exponentials = logits * (2 if temperature == 1 else 3)
    shape = f"N{positions} V{vocabulary} H{sizes[0]}/{sizes[1]}{'' if bias else ' no bias'}"
    name = f"soft targets {shape} temperature {temperature:g} {str(dtype)[6:]}"
    work = Work(2 * logits * (3 * sizes[0] + sizes[1]), moved, exponentials)
    ours = ("reference", "eager", *(("triton",) if device == "cuda" else ()))
    theirs = () if bias or liger.obstacle(torch.device(device)) else (liger.NAME,)
    return Problem(name, work, (*ours, *theirs), run)


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
    yield soft_problem(4915, 30522, (768, 1024), 2.0, torch.bfloat16, device, bias=False)
