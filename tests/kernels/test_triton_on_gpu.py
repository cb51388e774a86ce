"""What only a GPU can show of the Triton kernels: half-precision accuracy, races, memory, speed.

Run where a GPU is, with -s to see the figures: python -m pytest -s tests/kernels/test_triton_on_gpu.py
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from harness.bench.kernels import seconds_of_a_call
from harness.kernels.attention_kl import op as attention
from harness.kernels.relation_kl import op as relation
from harness.kernels.score_mse import op as score
from harness.kernels.soft_cross_entropy import op as soft

from .problems import Shape, heads, poisoned_buffers, states, value_and_gradients, worst_error

pytest.importorskip("triton", reason="triton is not installed (optional: only the fused GPU kernels need it)")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 runs kernels on the CPU"),
]

# A gradient is rounded as slope, when kept and when scaled; losses are float32 sums of exact half products.
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}
NAN = float("nan")
LOSSES = ("relation_kl", "attention_kl", "score_sse")
SHAPES = [
    Shape(4, 128, 16, 48, 64),
    Shape(4, 128, 4, 64, 64, (128, 77, 1, 0)),
    Shape(2, 128, 2, 128, 128, causal=True),
    Shape(3, 61, 3, 12, 16, (61, 30, 7)),
    Shape(3, 16, 3, 16, 16),
    Shape(2, 512, 4, 48, 64, (512, 300)),
    Shape(2, 384, 2, 64, 64, causal=True),
    Shape(2, 200, 2, 192, 256, (200, 129)),
]


def problem(
    name: str, shape: Shape, dtype: torch.dtype
) -> tuple[Callable[..., Callable[..., Tensor]], list[Tensor], int]:
    """(backend → loss, inputs on the GPU with NaN in their pads, how many are the student's)."""
    lengths = None if shape.lengths_B is None else shape.lengths_B.cuda()
    options = {"lengths_B": lengths, "causal": shape.causal}
    poison = NAN if shape.lengths else 0.0
    if name == "relation_kl":
        inputs = states(shape, dtype=dtype, poison=poison)
        return (
            lambda backend: lambda *x: relation.relation_kl(*x, heads=shape.heads, **options, backend=backend),
            [x.cuda() for x in inputs], 1,
        )  # fmt: skip
    function = attention.attention_kl if name == "attention_kl" else score.score_sse
    inputs = [x.cuda() for x in heads(shape, dtype=dtype, poison=poison)]
    return lambda backend: lambda *x: function(*x, **options, backend=backend), inputs, 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_agrees_with_float64(name: str, shape: Shape, dtype: torch.dtype) -> None:
    loss, inputs, trained = problem(name, shape, dtype)
    expected = value_and_gradients(loss("reference"), [x.double() for x in inputs], trained)
    actual = value_and_gradients(loss("triton"), inputs, trained)
    loss_error, gradient_error = worst_error(actual, expected)
    print(f"{name} {shape} {dtype}: loss {loss_error:.1e}, gradient {gradient_error:.1e}")
    # exp2 and log2 of the GPU are good to about 2^-22.
    assert loss_error < 1e-4
    assert gradient_error < 3 * ROUNDING[dtype]
    for gradient in actual[1]:
        tokens = gradient if name == "relation_kl" else gradient.transpose(1, 2)
        for b, length in enumerate(shape.true_lengths):
            assert not tokens[b, length:].any(), "a pad got a gradient"


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[5]], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_repetitions_agree_to_the_last_bit(name: str, shape: Shape) -> None:
    """A race, or a number of a buffer that no program writes, shows as a bit that changes between repetitions."""
    loss, inputs, trained = problem(name, shape, torch.bfloat16)
    first = value_and_gradients(loss("triton"), inputs, trained)
    for number in range(50):
        # In turns: filling buffers also keeps launches apart, and a race may need them close.
        with poisoned_buffers(warn_only=True) if number % 2 else nullcontext():
            again = value_and_gradients(loss("triton"), inputs, trained)
        assert torch.equal(again[0], first[0])
        assert all(torch.equal(a, b) for a, b in zip(again[1], first[1], strict=True))


def test_poison_reaches_buffers_of_every_size_on_the_gpu() -> None:
    inputs = torch.ones(4, device="cuda", dtype=torch.bfloat16)
    with poisoned_buffers():
        for size in (1, 64, 1 << 10, 1 << 22):
            assert inputs.new_empty(size, dtype=torch.float32).isnan().all()


def soft_problem(dtype: torch.dtype, positions: int = 300, vocabulary: int = 30522) -> tuple[Callable, list[Tensor]]:
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = ((positions, 128), (vocabulary, 128), (vocabulary,))
    student, teacher = (
        [(torch.randn(s, generator=generator, device="cuda") / s[-1] ** 0.25).to(dtype) for s in sizes]
        for _ in range(2)
    )
    labels = torch.randint(0, vocabulary, (positions,), generator=generator, device="cuda")
    labels[::7] = -100

    def mixed(backend: str) -> Callable[..., Tensor]:
        def loss(*x: Tensor) -> Tensor:
            kl, ce = soft.soft_cross_entropy(
                *x, teacher_hidden_NG=teacher[0].to(x[0].dtype), teacher_weight_VG=teacher[1].to(x[0].dtype),
                teacher_bias_V=teacher[2].to(x[0].dtype), labels_N=labels, temperature=2.0, weights=(0.5, 0.5),
                chunk=128, backend=backend,
            )  # fmt: skip
            return 0.5 * kl + 0.5 * ce

        return loss

    return mixed, student


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_soft_cross_entropy_agrees_with_float64(dtype: torch.dtype) -> None:
    loss, student = soft_problem(dtype)
    expected = value_and_gradients(loss("reference"), [x.double() for x in student], 3)
    actual = value_and_gradients(loss("triton"), student, 3)
    error, worst = worst_error(actual, expected)
    print(f"soft targets {dtype}: loss {error:.1e}, gradient {worst:.1e}")
    # Logits of order 3 are rounded once to half precision, and slopes are differences of two such softmaxes.
    assert error < 4 * ROUNDING[dtype]
    assert worst < 8 * ROUNDING[dtype]


def test_soft_cross_entropy_repeats_to_the_last_bit() -> None:
    loss, student = soft_problem(torch.bfloat16)
    first = value_and_gradients(loss("triton"), student, 3)
    for number in range(20):
        with poisoned_buffers(warn_only=True) if number % 2 else nullcontext():
            again = value_and_gradients(loss("triton"), student, 3)
        assert torch.equal(again[0], first[0])
        assert all(torch.equal(a, b) for a, b in zip(again[1], first[1], strict=True))


def extra_memory(run: Callable[[], object]) -> int:
    """Bytes a call needs at its peak beyond what was there before."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("name", LOSSES)
def test_scores_never_reach_memory(name: str) -> None:
    shape = Shape(64, 512, 12, 64, 64)
    loss, inputs, trained = problem(name, shape, torch.bfloat16)
    extra = extra_memory(lambda: value_and_gradients(loss("triton"), inputs, trained))
    one_score_tensor = shape.batch * shape.heads * shape.tokens**2 * 4
    student_bytes = sum(x.numel() * x.element_size() for x in inputs[:trained])
    # The gradients of the student's inputs (scaled where they were kept) and two log-sum-exps per row.
    assert extra < 1.2 * student_bytes + 16 * shape.batch * shape.heads * shape.tokens < one_score_tensor


def test_half_precision_on_a_gpu_chooses_triton_and_float32_says_why_not() -> None:
    student = torch.zeros(2, 8, 32, device="cuda", dtype=torch.bfloat16)
    assert str(relation.chosen(student, student, heads=2)) == "triton (half precision on a GPU)"
    assert "written for half precision" in relation.chosen(student.float(), student.float(), heads=2).reason
    # An fp16 engine beside a bfloat16 teacher; Llama's float32 queries under autocast.
    assert relation.chosen(student.half(), student, heads=2).backend == "triton"
    with torch.autocast("cuda", torch.bfloat16):
        assert relation.chosen(student.float(), student, heads=2).backend == "triton"
        assert soft.chosen(student[0].float(), student[0].float()).backend == "triton"


@pytest.mark.slow
@pytest.mark.parametrize(("relation_heads", "sizes", "goal"), [(16, (48, 64), 8.0), (64, (12, 16), 12.0)])
def test_the_fused_relation_loss_is_faster_than_plain_pytorch(
    relation_heads: int, sizes: tuple[int, int], goal: float
) -> None:
    """PERFORMANCE.md's goals at B=256, T=128, 768/1024, bf16; the exact figures come from `bench --kernels`."""
    shape = Shape(256, 128, relation_heads, *sizes)
    loss, inputs, trained = problem("relation_kl", shape, torch.bfloat16)

    def milliseconds(backend: str) -> float:
        def run() -> object:
            return value_and_gradients(loss(backend), inputs, trained)

        for _ in range(5):
            run()
        return 1e3 * statistics.median(seconds_of_a_call(run, torch.device("cuda")) for _ in range(20))

    plain, fused = milliseconds("reference"), milliseconds("triton")
    print(f"R={relation_heads}: plain {plain:.3f} ms, fused {fused:.3f} ms, {plain / fused:.1f} times faster")
    assert plain / fused > goal
