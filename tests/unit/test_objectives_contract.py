"""Laws every discovered objective keeps; a new file in harness/objectives inherits them all."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.data.batch import Batch
from harness.errors import ConfigError, TeacherError
from harness.models.signals import Signals
from harness.objectives.base import StepSize, discover
from harness.objectives.composition import Plan

from .objective_cases import (
    STUDENT,
    TEACHER,
    Case,
    World,
    directions,
    errors,
    every_case,
    make,
    make_batch,
    map_signals,
    relative_error,
    shape,
    signal_tensors,
    use_plain_definitions,
)
from .objective_references import REFERENCES

NAMES = sorted(discover())
PACKED, PADDED = every_case(), [case.with_pads() for case in every_case()]
EVERY = pytest.mark.parametrize("case", PACKED + PADDED, ids=str)
EVERY_PACKED = pytest.mark.parametrize("case", PACKED, ids=str)


@EVERY
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    # Head size 1 is enough to see a wrong derivative, and keeps the number of perturbed inputs small.
    small = replace(
        case,
        options=_smaller(case),
        student=shape(layers=2, hidden=4, heads=2),
        teacher=shape(layers=4, hidden=4, heads=2),
    )
    world = make(small)
    leaves = world.leaves
    tensors = list(leaves.values())
    for tensor in tensors:
        tensor.requires_grad_()
    loss = world.loss()
    exact = world.gradients(loss)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in leaves.items():
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        step = 1e-6
        with torch.no_grad():
            tensor += step * direction
            above = world.loss()
            tensor -= 2 * step * direction
            below = world.loss()
            tensor += step * direction
        slope = ((above - below) / (2 * step)).item()
        assert (exact[name] * direction).sum().item() == pytest.approx(slope, rel=2e-6, abs=2e-9), name


def _smaller(case: Case) -> dict[str, Any]:
    return {"relation_heads": 2} if "relation_heads" in discover()[case.name].Options.model_fields else {}


@EVERY
def test_the_teacher_gets_no_gradient(case: Case) -> None:
    world = make(case)
    for tensor in signal_tensors(world.teacher).values():
        tensor.requires_grad_()
    torch.autograd.backward(
        [t for t in world.objective(world.student, world.teacher, world.batch).values() if t.requires_grad]
    )
    touched = [n for n, t in signal_tensors(world.teacher).items() if t.grad is not None and t.grad.abs().max() > 0]
    assert touched == []


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_what_pads_hold_changes_nothing(case: Case) -> None:
    clean, poisoned = make(case, dtype=torch.float32), make(case, dtype=torch.float32)
    for signals in (poisoned.student, poisoned.teacher):
        with torch.no_grad():
            for name, tensor in signal_tensors(signals).items():
                for b, n in enumerate(case.lengths):
                    if name.startswith("state"):
                        tensor[b, n:] = torch.nan
                    elif name[0] in "qkv":
                        tensor[b, :, n:] = torch.nan
    value, expected = poisoned.loss(), clean.loss()
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    found, wanted = poisoned.gradients(value), clean.gradients(expected)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


@pytest.mark.parametrize("case", [c for c in PACKED + PADDED if discover()[c.name].vanishes_with is not None], ids=str)
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(case: Case) -> None:
    same = shape(layers=3, hidden=48, heads=4)
    options = discover()[case.name].vanishes_with
    assert options is not None
    world = make(replace(case, options=options, student=same, teacher=same))
    for module in world.objective.modules():
        if isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
            nn.init.zeros_(module.bias)
    world.teacher = map_signals(world.student, lambda t: t.detach().clone())
    loss = world.loss()
    assert abs(loss.item()) <= 1e-12
    for gradient_name, gradient in world.gradients(loss).items():
        assert gradient.abs().max() <= 1e-12, gradient_name


@EVERY_PACKED
def test_fp16_sums_of_256_sequences_of_128_tokens_do_not_overflow(case: Case) -> None:
    """Defect 6 of the published code: 3·10⁴ rows summed in fp16 pass 65,504."""
    heads = 2
    tiny = shape(layers=2, hidden=2 * heads, heads=heads)
    case = replace(case, options=_smaller(case), student=tiny, teacher=tiny, lengths=(128,) * 256, length=128)
    world = make(case, dtype=torch.float16, scale=4.0)
    exact = world.in_float64()
    value, truth = world.loss(), exact.loss()
    assert relative_error(value.detach(), truth.detach()) <= 2e-3
    gradients, wanted = world.gradients(value * 256), exact.gradients(truth * 256)
    for leaf, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), leaf
        assert relative_error(gradient, wanted[leaf]) <= 8e-3, leaf


@EVERY_PACKED
def test_splitting_a_batch_into_micro_batches_changes_nothing(case: Case) -> None:
    """A micro-batch's sums are divided by the global mean counts: the mean over micro-batches is the batch."""
    world = make(replace(case, lengths=(7, 7, 7, 7)))
    whole = world.loss()
    halves = [_part(world, slice(0, 2)), _part(world, slice(2, 4))]
    parts = [half.loss() for half in halves]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=1e-12)


def _part(world: World, rows: slice) -> World:
    batch, count = world.batch, len(world.batch.input_ids_BT)
    ids = batch.input_ids_BT[rows]
    length = ids.shape[1]
    kept = (batch.positions_N >= rows.start * length) & (batch.positions_N < rows.stop * length)
    share = len(ids) / count
    part = Batch(
        ids, batch.positions_N[kept] - rows.start * length, batch.labels_N[kept],
        batch.masked_count * share, batch.token_count * share, batch.sequence_count * share,
    )  # fmt: skip

    def cut(signals: Signals) -> Signals:
        head = signals.head
        if head is not None:
            tokens = torch.arange(count * length) // length
            inside = kept if head.positions == "masked" else (tokens >= rows.start) & (tokens < rows.stop)
            head = replace(head, hidden_NE=head.hidden_NE[inside])
        return Signals(
            {n: s[rows] for n, s in signals.states.items()},
            {n: tuple(x[rows] for x in qkv) for n, qkv in signals.qkv.items()},  # type: ignore[misc]
            head,
        )

    return World(world.objective, cut(world.student), cut(world.teacher), part)


@EVERY_PACKED
def test_the_order_of_sequences_does_not_matter(case: Case) -> None:
    case = replace(case, lengths=(7, 5, 6))
    world = make(case)
    flipped = copy.copy(world)
    batch = world.batch
    order = torch.tensor([2, 0, 1])
    place = {int(old): new for new, old in enumerate(order)}
    width = case.length
    moved = sorted(((place[int(p) // width] * width + int(p) % width, i) for i, p in enumerate(batch.positions_N)))
    rows = torch.tensor([i for _, i in moved])
    starts = [0, *torch.tensor(case.lengths).cumsum(0).tolist()]
    spans = list(pairwise(starts))
    tokens = torch.cat([torch.arange(*spans[int(old)]) for old in order])
    mask = batch.attention_mask_BT
    flipped.batch = replace(
        batch, input_ids_BT=batch.input_ids_BT[order], positions_N=torch.tensor([p for p, _ in moved]),
        labels_N=batch.labels_N[rows], attention_mask_BT=None if mask is None else mask[order],
    )  # fmt: skip

    def reorder(signals: Signals) -> Signals:
        head = signals.head
        if head is not None:
            head = replace(head, hidden_NE=head.hidden_NE[rows if head.positions == "masked" else tokens])
        return Signals(
            {n: s[order] for n, s in signals.states.items()},
            {n: tuple(x[order] for x in qkv) for n, qkv in signals.qkv.items()},  # type: ignore[misc]
            head,
        )

    flipped.student, flipped.teacher = reorder(world.student), reorder(world.teacher)
    torch.testing.assert_close(flipped.loss(), world.loss(), rtol=1e-12, atol=1e-12)


@EVERY_PACKED
def test_the_stated_flops_are_the_products_of_the_plain_definition(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the head's, which student and teacher pay: counted on the reference backend, forward and backward."""
    use_plain_definitions(monkeypatch)
    case = replace(case, lengths=(16,) * 3, length=16)
    world = make(case, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        loss = world.loss()
        world.gradients(loss)
    size = StepSize(3, 16, int(world.batch.masked_count))
    head = 0
    if world.student.head is not None:
        rows = len(world.student.head.hidden_NE)
        decoder = 2 * rows * STUDENT.embedding * STUDENT.vocab
        head = 3 * decoder + (decoder if world.teacher.head is not None else 0)
    assert counter.get_total_flops() == head + world.objective.flops(size)


@EVERY_PACKED
def test_an_unknown_option_is_refused_by_name(case: Case) -> None:
    student, teacher = case.shapes
    with pytest.raises(ConfigError, match=r"colour"):
        Plan({"name": case.name, "colour": "red"}, student=student, teacher=teacher)


@pytest.mark.parametrize("name", [n for n in NAMES if len(directions(n)) == 1])
def test_a_method_of_one_kind_of_model_refuses_the_other_and_names_what_to_use(name: str) -> None:
    (causal,) = directions(name)
    with pytest.raises(ConfigError, match=f"use {'mlm' if causal else 'clm'}") as error:
        Plan(name, student=replace(STUDENT, causal=not causal), teacher=None)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("case", [c for c in PACKED if discover()[c.name].needs_teacher], ids=str)
def test_a_teacher_of_the_other_kind_is_refused(case: Case) -> None:
    student, teacher = case.shapes
    with pytest.raises(TeacherError, match="student needs a") as error:
        Plan(case.name, student=student, teacher=replace(teacher, causal=not teacher.causal))
    assert error.value.exit_code == 3


@pytest.mark.parametrize("name", [n for n in NAMES if discover()[n].needs_teacher])
def test_a_method_that_needs_a_teacher_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match="needs a teacher"):
        Plan(name, student=STUDENT, teacher=None)


@EVERY_PACKED
def test_a_weight_scales_the_total_and_leaves_the_logged_terms_alone(case: Case) -> None:
    world, (student, teacher) = make(case), case.shapes
    specs = ({"name": case.name, "weight": w} for w in (1.0, 3.0))
    once, thrice = (Plan(spec, student=student, teacher=teacher).double() for spec in specs)
    thrice.load_state_dict(once.state_dict())
    a, b = (p(0, world.student, world.teacher, world.batch) for p in (once, thrice))
    assert b["total"].item() == pytest.approx(3 * a["total"].item(), rel=1e-12)
    assert {k: v.item() for k, v in a.items() if k != "total"} == {k: v.item() for k, v in b.items() if k != "total"}


@EVERY_PACKED
def test_terms_are_finite_numbers_that_sum_to_the_objective(case: Case) -> None:
    world, (student, teacher) = make(case, dtype=torch.float32), case.shapes
    terms = Plan(case.name, student=student, teacher=teacher)
    terms.load_state_dict({f"parts.0.{case.name}.{k}": v for k, v in world.objective.state_dict().items()})
    found = terms(0, world.student, world.teacher, world.batch)
    parts = [v for k, v in found.items() if k != "total"]
    assert all(v.ndim == 0 and torch.isfinite(v) and not v.requires_grad for v in parts)
    assert found["total"].item() == pytest.approx(sum(v.item() for v in parts), rel=1e-6)


def test_two_methods_in_one_phase_share_one_head_at_different_positions() -> None:
    """MLM beside soft targets over all tokens: each reads its own rows of the one head."""
    case = Case("soft_targets", {"positions": "tokens"}).with_pads()
    world = make(case)
    plan = Plan(
        {"terms": [{"name": "soft_targets", "positions": "tokens", "alpha": 1.0}, {"name": "mlm", "weight": 0.5}]},
        student=STUDENT, teacher=TEACHER,
    )  # fmt: skip
    assert plan.student_needs(0).logits == "tokens"
    total = plan(0, world.student, world.teacher, world.batch)["total"]
    # α = ⅔ is the same mixture of the two terms, up to a factor.
    reference = make(replace(case, options={"positions": "tokens", "alpha": 2 / 3}))
    assert total.item() == pytest.approx(1.5 * reference.loss().item(), rel=1e-9)


def test_references_know_the_padded_batch_the_cases_make() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(Case("mlm").with_pads(), generator)
    assert batch.attention_mask_BT is not None
    assert batch.attention_mask_BT.sum().item() == batch.token_count == 10


@EVERY_PACKED
def test_a_wrong_factor_of_two_would_be_seen(case: Case) -> None:
    """The references can fail: a doubled loss errs by one, not by rounding."""
    world = make(case)
    value, gradient = errors(world, lambda *args: 2 * REFERENCES[case.name](*args))
    assert value == pytest.approx(0.5, rel=1e-6)
    assert gradient == pytest.approx(0.5, rel=1e-6)
