"""Laws of the Triton kernels under Triton's interpreter; run by test_triton_interpreted.py in a process of its own.

The interpreter must be chosen before triton is imported, and it is right for float32 and float16 only (tl.dot in
bfloat16 silently is not). Every buffer the kernels allocate is filled with NaN first: a number they forget to
write, or a pad they read, shows.

Tolerances. float32: roundings of a few hundred additions, 2^-24 each. float16: products and losses are float32's;
a gradient is rounded three times, as slope, when kept and when scaled, by 2^-11 each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.kernels import backend
from harness.kernels.attention_kl import op as attention_op
from harness.kernels.attention_kl import reference as attention_reference
from harness.kernels.attention_kl import triton_kernel as attention_triton
from harness.kernels.relation_kl import op as relation_op
from harness.kernels.relation_kl import reference as relation_reference
from harness.kernels.relation_kl import triton_kernel as relation_triton
from harness.kernels.score_mse import op as score_op
from harness.kernels.score_mse import reference as score_reference
from harness.kernels.score_mse import triton_kernel as score_triton
from harness.kernels.soft_cross_entropy import eager as soft_eager
from harness.kernels.soft_cross_entropy import op as soft_op
from harness.kernels.soft_cross_entropy import reference as soft_reference
from harness.kernels.soft_cross_entropy import triton_kernel as soft_triton

from .problems import (
    LiveBytes,
    Shape,
    heads,
    poisoned_buffers,
    relative_error,
    states,
    value_and_gradients,
    worst_error,
)

NAN = float("nan")
LOSS_ERROR = 5e-6
GRADIENT_ERROR = {torch.float32: 5e-6, torch.float16: 3 * 2**-11}
LOSSES = {
    "relation_kl": (relation_triton, relation_reference, relation_op),
    "attention_kl": (attention_triton, attention_reference, attention_op),
    "score_sse": (score_triton, score_reference, score_op),
}


@triton.jit
def count_to(out, limit):
    total = 0
    for _ in range(limit):
        total += 1
    tl.store(out, total)


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton_interpreted.py, which sets it"
    out = torch.zeros(1)
    try:
        count_to[(1,)](out, 3)
    except Exception as error:
        if "0-dimensional" not in str(error):
            raise
        pytest.skip("this interpreter cannot loop")
    assert out.item() == 3


@pytest.fixture(autouse=True)
def _poisoned_buffers() -> Iterator[None]:
    with poisoned_buffers():
        assert torch.empty(4).isnan().all()
        yield


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send every sequence through the kernels over blocks, with blocks small enough to have several."""

    def options(student: Tensor, constants: dict) -> dict:
        full = student.shape[-2] % 32 == 0 and not constants["HAS_LENGTHS"]
        return {"BLOCK": 32, "STEP": 16, "FULL": full, "num_warps": 4, **constants}

    monkeypatch.setattr(backend, "TILE", 0)
    for module in (relation_triton, attention_triton, score_triton):
        monkeypatch.setattr(module, "block_options", options)


def loss_of(name: str, module: ModuleType, shape: Shape) -> Callable[..., Tensor]:
    if name == "relation_kl":
        return lambda s, t: module.relation_kl(s, t, heads=shape.heads, **shape.options)
    return lambda *x: getattr(module, name)(*x, **shape.options)


def inputs_of(name: str, shape: Shape, **options: object) -> tuple[list[Tensor], int]:
    return (states(shape, **options), 1) if name == "relation_kl" else (heads(shape, **options), 2)


def check(name: str, shape: Shape, dtype: torch.dtype) -> None:
    kernel, reference, _ = LOSSES[name]
    inputs, trained = inputs_of(name, shape, dtype=dtype, poison=NAN if shape.lengths else 0.0)
    expected = value_and_gradients(loss_of(name, reference, shape), [x.double() for x in inputs], trained)
    actual = value_and_gradients(loss_of(name, kernel, shape), inputs, trained)
    loss_error, gradient_error = worst_error(actual, expected)
    assert loss_error < LOSS_ERROR
    assert gradient_error < GRADIENT_ERROR[dtype]
    for gradient in actual[1]:
        tokens = gradient if name == "relation_kl" else gradient.transpose(1, 2)
        for b, length in enumerate(shape.true_lengths):
            assert torch.equal(tokens[b, length:], torch.zeros_like(tokens[b, length:])), "a pad got a gradient"


TILES = [
    Shape(3, 13, 2, 12, 20, (13, 5, 1)),
    Shape(3, 13, 2, 12, 20, (13, 5, 1), causal=True),
    Shape(2, 1, 3, 16, 16),
    Shape(2, 16, 2, 16, 16),  # every number of the tile is real
    Shape(2, 16, 2, 16, 16, causal=True),
    Shape(2, 33, 1, 48, 5, (33, 20)),
    Shape(1, 40, 2, 3, 64, causal=True),
    Shape(2, 50, 1, 3, 64, (0, 50)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_one_tile_agrees_with_the_definition(name: str, shape: Shape, dtype: torch.dtype) -> None:
    check(name, shape, dtype)


BLOCKS = [
    Shape(2, 70, 1, 12, 20, (70, 31)),
    Shape(1, 64, 1, 16, 16),  # every block is full
    Shape(1, 64, 1, 16, 16, causal=True),
    Shape(2, 50, 1, 3, 40, (50, 0), causal=True),
    Shape(1, 33, 2, 20, 5),
]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_several_blocks_agree_with_the_definition(name: str, shape: Shape, dtype: torch.dtype) -> None:
    check(name, shape, dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_a_sequence_past_the_tile_goes_over_blocks_of_its_own_accord(name: str) -> None:
    check(name, Shape(1, backend.TILE + 3, 1, 12, 20, (backend.TILE + 2,)), torch.float16)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_of_any_size_overflow_nothing(name: str) -> None:
    """Scores of ±1000 and one key that takes everything: maxima are subtracted before exp2 on every path."""
    shape = Shape(1, 20, 1, 16, 16)
    kernel, reference, _ = LOSSES[name]
    inputs, trained = inputs_of(name, shape, dtype=torch.float32)
    inputs = [16 * x for x in inputs]
    expected = value_and_gradients(loss_of(name, reference, shape), [x.double() for x in inputs], trained)
    actual = value_and_gradients(loss_of(name, kernel, shape), inputs, trained)
    # Scores of 1000 carry roundings of 2^-14: probabilities, and so gradients, carry them too.
    assert max(worst_error(actual, expected)) < 2**-11


@pytest.mark.parametrize("name", LOSSES)
def test_float16_gradients_keep_their_digits_under_any_loss_scale(name: str) -> None:
    """The normaliser 1/(heads·length) is applied with the incoming gradient, in float32: nothing underflows before."""
    shape = Shape(1, 64, 16, 16, 16)
    kernel, reference, _ = LOSSES[name]
    inputs, trained = inputs_of(name, shape, dtype=torch.float16)
    # A nearly equal teacher, and heads · length = 1024: the plain gradient lies below float16's 6e-8.
    inputs = [
        *inputs[:trained],
        *[(x + 0.002 * y).half() for x, y in zip(inputs[:trained], inputs[trained:], strict=True)],
    ]
    scale = 1e-2 if name == "score_sse" else 2.0**16
    scaled = [lambda *x, m=m: scale * loss_of(name, m, shape)(*x) for m in (kernel, reference)]
    actual = value_and_gradients(scaled[0], inputs, trained)
    expected = value_and_gradients(scaled[1], [x.double() for x in inputs], trained)
    assert worst_error(actual, expected)[1] < 2**-6, "slopes near float16's smallest numbers lose a few digits, not all"


@pytest.mark.parametrize("name", LOSSES)
def test_views_of_a_fused_projection_are_read_where_they_lie(name: str) -> None:
    shape = Shape(2, 9, 2, 12, 12, (9, 4))
    kernel, reference, _ = LOSSES[name]
    fused = torch.randn(2, 9, 4 * 24, generator=torch.Generator().manual_seed(3))
    parts = fused.split(24, dim=-1)
    if name == "relation_kl":
        inputs, trained = list(parts[:2]), 1
    else:
        inputs, trained = [x.unflatten(-1, (2, 12)).transpose(1, 2) for x in parts], 2
    assert not inputs[0].is_contiguous()
    expected = value_and_gradients(loss_of(name, reference, shape), [x.double() for x in inputs], trained)
    assert max(worst_error(value_and_gradients(loss_of(name, kernel, shape), inputs, trained), expected)) < LOSS_ERROR


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_a_gradient_costs_none_and_a_backward_may_be_repeated(name: str) -> None:
    shape = Shape(2, 9, 2, 12, 20)
    inputs, trained = inputs_of(name, shape, dtype=torch.float32)
    loss = loss_of(name, LOSSES[name][0], shape)
    leaves = [x.requires_grad_() for x in inputs[:trained]]
    value = loss(*leaves, *inputs[trained:])
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        quiet = loss(*inputs)
    assert not quiet.requires_grad
    assert torch.equal(quiet, value)


@pytest.mark.parametrize("name", LOSSES)
def test_the_op_runs_triton_when_asked_and_auto_never_interprets(name: str) -> None:
    shape = Shape(2, 9, 2, 12, 20, (9, 3))
    inputs, trained = inputs_of(name, shape, dtype=torch.float32)
    _, reference, op = LOSSES[name]
    extra = {"heads": shape.heads} if name == "relation_kl" else {}
    actual = getattr(op, name)(*inputs, **extra, **shape.options, backend="triton")
    assert relative_error(actual, loss_of(name, reference, shape)(*inputs)) < LOSS_ERROR
    assert op.chosen(*inputs, **extra, backend="triton").backend == "triton"
    assert op.chosen(*inputs, **extra).backend == "eager"
    wide = [torch.cat([x] * 30, -1) for x in inputs]
    with pytest.raises(ValueError, match="do not fit on the chip"):
        op.chosen(*wide, **extra, backend="triton")
    mixed = [*[x.half() for x in inputs[:trained]], *inputs[trained:]]  # a float32 teacher is not rounded unasked
    with pytest.raises(ValueError, match="differ in type"):
        op.chosen(*mixed, **extra, backend="triton")


@pytest.mark.parametrize("name", LOSSES)
def test_a_teacher_of_another_half_type_is_taken_as_the_student_is(name: str) -> None:
    """An fp16 engine beside a bfloat16 teacher; numbers of bfloat16 in float16's range are exact in it."""
    shape = Shape(2, 9, 2, 12, 20, (9, 3))
    inputs, trained = inputs_of(name, shape, dtype=torch.float16)
    inputs = [*inputs[:trained], *[x.bfloat16() for x in inputs[trained:]]]
    loss = loss_through_op(name, shape, "triton")
    expected = value_and_gradients(loss_of(name, LOSSES[name][1], shape), [x.double() for x in inputs], trained)
    actual = value_and_gradients(loss, inputs, trained)
    assert all(x.dtype == torch.float16 for x in actual[1])
    loss_error, gradient_error = worst_error(actual, expected)
    assert loss_error < LOSS_ERROR
    assert gradient_error < GRADIENT_ERROR[torch.float16]


@pytest.mark.parametrize("name", LOSSES)
def test_float32_states_under_autocast_are_taken_as_its_products_take_them(name: str) -> None:
    """Llama's rotated queries and keys are float32 under autocast; their gradients are float32 again."""
    shape = Shape(2, 9, 2, 12, 20, (9, 3))
    inputs, trained = inputs_of(name, shape, dtype=torch.float16)
    rounded = [x.double() for x in inputs]
    mixed = [*[x.float() for x in inputs[:trained]], *inputs[trained:]]
    expected = value_and_gradients(loss_of(name, LOSSES[name][1], shape), rounded, trained)
    with torch.autocast("cpu", torch.float16):
        actual = value_and_gradients(loss_through_op(name, shape, "triton"), mixed, trained)
    assert all(x.dtype == torch.float32 for x in actual[1])
    loss_error, gradient_error = worst_error(actual, expected)
    assert loss_error < LOSS_ERROR
    assert gradient_error < GRADIENT_ERROR[torch.float16]


def loss_through_op(name: str, shape: Shape, backend: str) -> Callable[..., Tensor]:
    extra = {"heads": shape.heads} if name == "relation_kl" else {}
    return lambda *x: getattr(LOSSES[name][2], name)(*x, **extra, **shape.options, backend=backend)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_scaled_where_it_was_kept(name: str) -> None:
    """At its peak a loss and its backward hold one gradient of each input and a few numbers per row, nothing twice."""
    shape = Shape(2, 64, 4, 16, 16)
    inputs, trained = inputs_of(name, shape, dtype=torch.float16)
    leaves = [x.requires_grad_() for x in inputs[:trained]]
    with LiveBytes(inputs) as live:
        gradients = torch.autograd.grad(loss_of(name, LOSSES[name][0], shape)(*leaves, *inputs[trained:]), leaves)
    kept = sum(x.numel() * x.element_size() for x in gradients)
    per_head = 4 * shape.batch * shape.heads  # the losses that are summed, and scalars
    assert kept <= live.peak <= kept + 2 * per_head


@pytest.mark.parametrize(("label", "good"), [(9, False), (-1, False), (2**33, False), (8, True), (-100, True)])
@pytest.mark.parametrize("soft", [True, False])
def test_a_label_that_is_no_entry_stops_the_update(label: int, good: bool, soft: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    logits, teacher = (torch.randn(3, 9, generator=generator) for _ in range(2))
    labels = torch.tensor([1, label, 3])
    _, ce, slopes = soft_triton.chunk_losses(
        logits, teacher if soft else None, labels, 2.0 if soft else 1.0, [(0.5, 0.5)]
    )
    assert bool(ce.isfinite()) == good
    assert bool(slopes[0][1].isfinite().all()) == good
    assert slopes[0][[0, 2]].isfinite().all()


@pytest.mark.parametrize("vocabulary", [9, 5000])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("labels", [None, (1, -100, 8)])
def test_soft_cross_entropy_agrees_with_the_definition(
    vocabulary: int, temperature: float, labels: tuple[int, ...] | None
) -> None:
    generator = torch.Generator().manual_seed(4)
    student = [torch.randn(size, generator=generator) for size in ((3, 6), (vocabulary, 6), (vocabulary,))]
    teacher = [torch.randn(size, generator=generator) for size in ((3, 4), (vocabulary, 4), (vocabulary,))]
    logits = teacher[0] @ teacher[1].T + teacher[2]
    for by_logits in (True, False):
        for weights in (None, (0.3, 0.7)):

            def mixed(module, *x: Tensor, by_logits=by_logits, **options):
                names = ("teacher_hidden_NG", "teacher_weight_VG", "teacher_bias_V")
                given = {"teacher_logits_NV": logits} if by_logits else dict(zip(names, teacher, strict=True))
                targets = {name: t.to(x[0].dtype) for name, t in given.items()}
                labels_N = None if labels is None else torch.tensor(labels)
                kl, ce = module.soft_cross_entropy(
                    *x, **targets, labels_N=labels_N, temperature=temperature, chunk=2, **options
                )
                return 0.3 * kl + 0.7 * ce

            expected = value_and_gradients(lambda *x, f=mixed: f(soft_reference, *x), [x.double() for x in student], 3)
            actual = value_and_gradients(lambda *x, f=mixed, w=weights: f(soft_triton, *x, weights=w), student, 3)
            assert max(worst_error(actual, expected)) < LOSS_ERROR


@pytest.mark.parametrize("vocabulary", [7, 4097])
def test_a_chunk_of_float16_logits_gives_float32_losses_and_float16_slopes(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(5)
    logits, teacher = (3 * torch.randn(4, vocabulary, generator=generator) for _ in range(2))
    logits, teacher, labels = logits.half(), teacher.half(), torch.tensor([0, 3, -100, 6])
    mixtures = [(1.0, 0.0), (-0.5, 2.0)]
    expected = soft_eager.chunk_losses(logits.double(), teacher.double(), labels, 2.0, mixtures)
    kl, ce, slopes = soft_triton.chunk_losses(logits, teacher, labels, 2.0, mixtures)
    assert slopes[0] is logits, "the first derivative takes the logits' place"
    assert max(relative_error(kl, expected[0]), relative_error(ce, expected[1])) < LOSS_ERROR
    for actual, wanted in zip(slopes, expected[2], strict=True):
        assert actual.dtype == torch.float16
        assert relative_error(actual, wanted) < 2**-11


def test_masked_cross_entropy_agrees_and_reads_no_teacher() -> None:
    generator = torch.Generator().manual_seed(6)
    student = [torch.randn(size, generator=generator) for size in ((5, 6), (50, 6), (50,))]
    labels = torch.tensor([4, -100, 49, 0, 1])
    losses = [lambda *x, m=m: m.masked_cross_entropy(*x, labels) for m in (soft_triton, soft_reference)]
    expected = value_and_gradients(losses[1], [x.double() for x in student], 3)
    assert max(worst_error(value_and_gradients(losses[0], student, 3), expected)) < LOSS_ERROR
    through_op = soft_op.masked_cross_entropy(*student, labels, backend="triton")
    assert relative_error(through_op, expected[0]) < LOSS_ERROR
