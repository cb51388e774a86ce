"""Laws of relation_kl, attention_kl and score_sse on the CPU, for the definition and for the fast eager path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.kernels import backend
from harness.kernels.attention_kl import eager as attention_eager
from harness.kernels.attention_kl import op as attention_op
from harness.kernels.attention_kl import reference as attention_reference
from harness.kernels.relation_kl import eager as relation_eager
from harness.kernels.relation_kl import op as relation_op
from harness.kernels.relation_kl import reference as relation_reference
from harness.kernels.score_mse import eager as score_eager
from harness.kernels.score_mse import op as score_op
from harness.kernels.score_mse import reference as score_reference

from . import formulas
from .problems import Shape, Watch, heads, poisoned_buffers, relative_error, states, value_and_gradients, worst_error

MODULES = {
    "reference": (relation_reference, attention_reference, score_reference),
    "eager": (relation_eager, attention_eager, score_eager),
}
LOSSES = ("relation_kl", "attention_kl", "score_sse", "score_sse_averaged")

# float64 against float64: what differs is the order of at most a few thousand additions.
EXACT = 1e-11


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    padded = draw(st.booleans())
    lengths = tuple(draw(st.integers(0, tokens)) for _ in range(batch)) if padded else None
    sizes = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return Shape(batch, tokens, draw(st.integers(1, 3)), *sizes, lengths, causal=draw(st.booleans()))


def problem(
    name: str, modules: tuple[ModuleType, ...], shape: Shape, **options: object
) -> tuple[Callable, list[Tensor], int]:
    """(the loss as a function of its tensors, the tensors, how many of them are the student's)."""
    relation, attention, score = modules
    if name == "relation_kl":
        return lambda s, t: relation.relation_kl(s, t, heads=shape.heads, **shape.options), states(shape, **options), 1
    if name == "attention_kl":
        return lambda *x: attention.attention_kl(*x, **shape.options), heads(shape, **options), 2
    averaged = name.endswith("averaged")
    return lambda *x: score.score_sse(*x, head_average=averaged, **shape.options), heads(shape, **options), 2


def formula(name: str, shape: Shape) -> Callable[..., Tensor]:
    if name == "relation_kl":
        return lambda s, t: formulas.relation_kl(s, t, shape.heads, shape.true_lengths, shape.causal)
    if name == "attention_kl":
        return lambda *x: formulas.attention_kl(*x, shape.true_lengths, shape.causal)
    averaged = name.endswith("averaged")
    return lambda *x: formulas.score_sse(*x, shape.true_lengths, shape.causal, averaged)[0]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=12, deadline=None)
@given(shape=shapes())
def test_a_loss_and_its_gradient_are_the_papers_formula(name: str, kind: str, shape: Shape) -> None:
    loss, inputs, trained = problem(name, MODULES[kind], shape)
    expected = value_and_gradients(
        lambda *x: formula(name, shape)(*x) + 0 * x[0].sum() + 0 * x[1].sum(), inputs, trained
    )
    actual = value_and_gradients(loss, inputs, trained)
    assert max(worst_error(actual, expected)) < EXACT


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("causal", [False, True])
def test_what_pads_hold_never_matters(name: str, kind: str, causal: bool) -> None:
    shape = Shape(4, 7, 2, 3, 5, lengths=(7, 3, 1, 0), causal=causal)
    clean = value_and_gradients(*problem(name, MODULES[kind], shape))
    for poison in (float("nan"), float("inf"), 1e30):
        loss, inputs, trained = problem(name, MODULES[kind], shape, poison=poison)
        poisoned = value_and_gradients(loss, inputs, trained)
        assert torch.equal(poisoned[0], clean[0])
        for actual, expected in zip(poisoned[1], clean[1], strict=True):
            assert torch.equal(actual, expected)
            tokens = actual if name == "relation_kl" else actual.transpose(1, 2)
            for b, length in enumerate(shape.true_lengths):
                assert not tokens[b, length:].any(), "a pad got a gradient"
                assert not length or tokens[b, :length].any() or (length == 1 and "kl" in name)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_student_equal_to_its_teacher_loses_nothing_and_is_pulled_nowhere(name: str, kind: str) -> None:
    shape = Shape(2, 6, 2, 4, 4, lengths=(6, 4))
    loss, inputs, trained = problem(name, MODULES[kind], shape, dtype=torch.float32)
    value, gradients = value_and_gradients(loss, [*inputs[:trained], *inputs[:trained]], trained)
    # Zero but for the order of additions: squares of roundings for the sum of squares, roundings of scores for the KL.
    assert abs(float(value)) < 1e-6
    assert all(float(g.abs().max()) < 1e-6 for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", LOSSES)
def test_half_inputs_are_accumulated_in_float32(name: str, kind: str, dtype: torch.dtype) -> None:
    shape = Shape(3, 40, 2, 12, 20, lengths=(40, 17, 33))
    loss, inputs, trained = problem(name, MODULES[kind], shape, dtype=dtype)
    value, gradients = value_and_gradients(loss, inputs, trained)
    exact = value_and_gradients(loss, [x.double() for x in inputs], trained)
    assert value.dtype == torch.float32
    assert all(g.dtype == dtype for g in gradients)
    error, worst = worst_error((value, gradients), exact)
    assert error < 2e-6, "sums of 40 float32 numbers round to 40 · 2^-24"
    # One rounding to the input's type at the end: 2^-11 or 2^-8 of each number at most.
    assert worst < (2**-11 if dtype == torch.float16 else 2**-8)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", LOSSES)
def test_an_outer_autocast_changes_no_bit(name: str, kind: str) -> None:
    loss, inputs, trained = problem(name, MODULES[kind], Shape(2, 9, 2, 8, 8), dtype=torch.float32)

    def under_autocast(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(*tensors)

    expected = value_and_gradients(loss, inputs, trained)
    assert worst_error(value_and_gradients(under_autocast, inputs, trained), expected) == (0.0, 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_eager_gives_the_same_loss_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = problem(name, MODULES["eager"], Shape(5, 9, 2, 3, 5, lengths=(9, 2, 5, 0, 7)))
    whole = value_and_gradients(*arguments)
    for scores in (1, 9 * 9 * 2 * 2, 9 * 9 * 2 * 3):
        monkeypatch.setattr(attention_eager, "CHUNK_SCORES", {"cpu": scores})
        assert max(worst_error(value_and_gradients(*arguments), whole)) < EXACT


@pytest.mark.parametrize("name", LOSSES)
def test_eager_never_holds_the_scores_of_a_whole_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(64, 32, 2, 4, 4)
    monkeypatch.setattr(attention_eager, "CHUNK_SCORES", {"cpu": 4 * 2 * 32 * 32})
    arguments = problem(name, MODULES["eager"], shape, dtype=torch.float32)
    with Watch() as watch:
        value_and_gradients(*arguments)
    # Four buffers of a chunk's scores, or the states themselves; a batch's scores are eight times as many.
    assert watch.largest <= max(4 * 4 * 2 * 32 * 32, 64 * 32 * 8) < 64 * 2 * 32 * 32


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_is_formed_where_none_can_be_asked_for(name: str) -> None:
    loss, inputs, trained = problem(name, MODULES["eager"], Shape(2, 8, 2, 4, 4))
    leaves = [x.requires_grad_() for x in inputs[:trained]]
    with Watch() as watch, torch.no_grad():
        quiet = loss(*leaves, *inputs[trained:])
    assert watch.products == 2, "student and teacher scores"
    assert not quiet.requires_grad
    assert torch.equal(quiet, loss(*leaves, *inputs[trained:]).detach())


@pytest.mark.parametrize("kind", MODULES)
def test_relations_are_attention_of_heads_with_themselves(kind: str) -> None:
    shape = Shape(3, 8, 4, 3, 5, lengths=(8, 5, 2))
    relation, attention, _ = MODULES[kind]
    student, teacher = states(shape)
    q_s, q_t = (x.unflatten(-1, (shape.heads, -1)).transpose(1, 2) for x in (student, teacher))
    expected = attention.attention_kl(q_s, q_s, q_t, q_t, **shape.options)
    actual = relation.relation_kl(student, teacher, heads=shape.heads, **shape.options)
    assert relative_error(actual, expected) < EXACT


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), average=st.booleans())
def test_the_count_is_the_number_of_summed_elements(shape: Shape, average: bool) -> None:
    inputs = heads(shape)
    expected = formulas.score_sse(*inputs, shape.true_lengths, shape.causal, average)[1]
    assert int(score_op.score_count(inputs[0], head_average=average, **shape.options)) == expected


def test_averaged_scores_compare_models_of_unequal_head_counts() -> None:
    student, teacher = heads(Shape(2, 5, 2, 3, 3)), heads(Shape(2, 5, 3, 4, 4), seed=5)
    mixed = [*student[:2], *teacher[2:]]
    expected = formulas.score_sse(*mixed, [5, 5], False, True)[0]
    for module in (score_reference, score_eager):
        assert relative_error(module.score_sse(*mixed, head_average=True), expected) < EXACT
    with pytest.raises(ValueError, match="2 student heads and 3 teacher heads"):
        score_reference.score_sse(*mixed)


@pytest.mark.parametrize("name", LOSSES)
def test_the_op_gives_the_definitions_loss_by_every_backend(name: str) -> None:
    shape = Shape(3, 7, 2, 3, 5, lengths=(7, 4, 1))
    expected = value_and_gradients(*problem(name, MODULES["reference"], shape))
    for chosen in ("auto", "eager", "reference"):
        _, inputs, trained = problem(name, MODULES["reference"], shape)
        averaged = {"head_average": True} if name.endswith("averaged") else {}
        if name == "relation_kl":
            averaged = {"heads": shape.heads}
        function = getattr(
            {"r": relation_op, "a": attention_op, "s": score_op}[name[0]], name.removesuffix("_averaged")
        )
        actual = value_and_gradients(
            lambda *x, f=function, b=chosen, a=averaged: f(*x, **a, **shape.options, backend=b), inputs, trained
        )
        assert max(worst_error(actual, expected)) < EXACT


def test_impossible_shapes_and_lengths_are_refused_with_the_value_and_the_rule() -> None:
    student, teacher = states(Shape(2, 5, 2, 3, 5))
    with pytest.raises(ValueError, match=r"4 relation heads.*student's size 6.*common divisor of 6 and 10"):
        relation_op.relation_kl(student, teacher, heads=4)
    with pytest.raises(ValueError, match=r"one batch"):
        relation_op.relation_kl(student[:1], teacher, heads=2)
    with pytest.raises(ValueError, match=r"\[9, 5\].*0 … 5"):
        relation_op.relation_kl(student, teacher, heads=2, lengths_B=torch.tensor([9, 5]))
    with pytest.raises(ValueError, match=r"one integer per sequence"):
        relation_op.relation_kl(student, teacher, heads=2, lengths_B=torch.tensor([1.0, 2.0]))
    q_s, k_s, q_t, k_t = heads(Shape(2, 5, 2, 3, 5))
    with pytest.raises(ValueError, match=r"student queries .* and keys"):
        attention_op.attention_kl(q_s, k_s[:, :, :3], q_t, k_t)
    with pytest.raises(ValueError, match=r"batch and tokens must be equal"):
        attention_op.attention_kl(q_s, k_s, q_t[:1], k_t[:1])


def test_the_choice_of_a_backend_is_named_with_its_reason() -> None:
    student, teacher = states(Shape(2, 5, 2, 3, 5), dtype=torch.float32)
    choice = relation_op.chosen(student, teacher, heads=2)
    assert (choice.backend, str(choice)) == ("eager", "eager (the tensors are on cpu)")
    assert str(relation_op.chosen(student, teacher, heads=2, backend="reference")) == "reference (asked for)"
    with pytest.raises(ValueError, match=r"kernels 'triton': the tensors are on cpu"):
        relation_op.relation_kl(student, teacher, heads=2, backend="triton")
    with pytest.raises(ValueError, match=r"kernels 'fast'.*auto, triton, eager, reference"):
        relation_op.chosen(student, teacher, heads=2, backend="fast")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("capability", "tokens", "installed", "tile"),
    [
        ((10, 0), 128, "3.7.1", False), ((12, 0), 64, "3.6.0", False), ((10, 0), 128, "3.8.0", True),
        ((10, 0), 128, "3.10.0", True), ((10, 0), 129, "3.8.0", False), ((9, 0), 128, "3.7.1", True),
    ],
)  # fmt: skip
def test_a_tile_that_an_old_triton_cannot_compile_for_blackwell_goes_over_blocks(
    capability: tuple[int, int], tokens: int, installed: str, tile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m tests.kernels.ahead_of_time --all` finds them; the kernels over blocks compile everywhere."""
    monkeypatch.setattr(backend, "gpu_of", lambda tensor: backend.Gpu(capability, 227 << 10))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=installed))
    head = torch.zeros(2, 4, tokens, 64)
    assert backend.one_tile(head, head) == tile


def test_a_gpu_whose_blocks_have_too_little_shared_memory_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = torch.zeros(2, 4, 128, 64)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for shared, says in ((64 << 10, "64 KiB of shared memory"), (99 << 10, "where Triton only interprets")):
        monkeypatch.setattr(backend, "gpu_of", lambda tensor, shared=shared: backend.Gpu((8, 6), shared))
        assert says in str(backend.head_choice("auto", (head,), (head,)))


def test_a_preference_holds_for_the_process_and_what_ran_is_kept_for_the_record() -> None:
    student, teacher = states(Shape(2, 5, 2, 3, 5), dtype=torch.float32)
    backend.prefer("reference")
    try:
        relation_op.relation_kl(student, teacher, heads=2)
        assert relation_op.chosen(student, teacher, heads=2).backend == "reference"
        assert relation_op.chosen(student, teacher, heads=2, backend="eager").backend == "eager"
        backend.prefer("triton")
        with pytest.raises(ValueError, match="the tensors are on cpu"):
            relation_op.relation_kl(student, teacher, heads=2)
    finally:
        backend.prefer("auto")
    relation_op.relation_kl(student, teacher, heads=2)
    ran = backend.choices()["relation_kl"]
    assert "eager (the tensors are on cpu)" in ran
    assert "reference (asked for)" in ran
    with pytest.raises(ValueError, match="kernels 'fast'"):
        backend.prefer("fast")  # pyright: ignore[reportArgumentType]


def test_an_empty_batch_costs_nothing_and_has_a_gradient() -> None:
    for modules in MODULES.values():
        for name in LOSSES:
            value, gradients = value_and_gradients(*problem(name, modules, Shape(0, 5, 2, 3, 5)))
            assert float(value) == 0
            assert gradients[0].numel() == 0


def test_poison_reaches_every_way_in_which_kernels_make_a_buffer() -> None:
    """And ends with its block: the laws of the interpreted kernels and of those on a GPU stand on it."""
    inputs = torch.ones(3, dtype=torch.bfloat16)
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_buffers():
        made = torch.empty(5), inputs.new_empty((2, 3), dtype=torch.float32), torch.empty_like(inputs)
        assert all(buffer.isnan().all() for buffer in made)
    assert torch.are_deterministic_algorithms_enabled() == before
