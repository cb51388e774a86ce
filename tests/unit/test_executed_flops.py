"""Executed FLOPs are the closed form plus what is known to be recomputed, product by product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from harness.budget import Account
from harness.executed import FlopCount, executed_flop, executed_step_flop
from harness.kernels import backend
from harness.meters.flops import FlopMeter
from harness.objectives.base import StepSize
from harness.objectives.composition import Plan
from harness.trainee import Trainee

from . import model_zoo as zoo
from .objective_cases import use_plain_definitions

TOLERANCE = 0.005
SIZE = StepSize(6, 24, 18)
OBJECTIVES: dict[str, Any] = {
    "mlm": "mlm",
    "vanilla": "soft_targets",
    "minilmv2, both cut": {"name": "minilmv2", "relation_heads": 1},
    "tinybert": "tinybert",
}


def trainee(spec: Any) -> tuple[Trainee, Any, Any]:
    student, teacher = zoo.config("bert"), zoo.config("bert", layers=6, hidden=48, heads=3)
    plan = Plan(spec, student=zoo.shape(student), teacher=zoo.shape(teacher)).float()
    return Trainee(zoo.build(student).float(), zoo.shape(student), plan), zoo.shape(student), zoo.shape(teacher)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_executes_its_closed_form_and_half_an_attention_more(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused attention makes its scores again in the backward: one product of the two of a forward."""
    use_plain_definitions(monkeypatch)
    made, student, teacher = trainee(OBJECTIVES[objective])
    charges = FlopMeter(made.plan, student=student, teacher=teacher, size=SIZE).next_step(0)
    closed = sum(c.amount for c in charges if c.account is not Account.TEACHER_FORWARD)
    whole = made.plan.student_needs(0).full_layers(student)
    attention = sum(
        student.attention_flops(number, sequences=SIZE.sequences, length=SIZE.length) for number in range(1, whole + 1)
    )
    executed = executed_step_flop(made, teacher, 0, SIZE, autocast=None)
    assert executed == pytest.approx(closed + attention / 2, rel=TOLERANCE)


def test_counting_leaves_no_trace() -> None:
    """Neither gradients nor draws: the run that follows is the run without a count."""
    made, _, teacher = trainee("soft_targets")
    before = torch.get_rng_state()
    executed_step_flop(made, teacher, 0, SIZE, autocast=None)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in made.parameters())


def test_a_count_adds_what_kernels_register_and_products_in_place() -> None:
    backend.register_flop("earlier", 5)
    with FlopCount() as count:
        torch.zeros(3, 4).addmm_(torch.ones(3, 5), torch.ones(5, 4))
        backend.register_flop("a kernel", 1000)
    assert count.total == 1000 + 2 * 3 * 5 * 4


def test_activation_recomputation_is_executed_and_not_charged() -> None:
    """Every layer runs its forward once more; the closed form, and with it the cut, stays where it was."""
    plain, student, teacher = trainee("mlm")
    again = Trainee(plain.student, student, plain.plan, recompute=True)
    once, twice = (executed_step_flop(each, teacher, 0, SIZE, autocast=None) for each in (plain, again))
    layers = sum(
        student.layer_flops(number, sequences=SIZE.sequences, length=SIZE.length)
        for number in range(1, student.layers + 1)
    )
    assert twice - once == pytest.approx(layers, rel=TOLERANCE)
    meters = [FlopMeter(each.plan, student=student, teacher=teacher, size=SIZE) for each in (plain, again)]
    assert meters[0].next_step(0) == meters[1].next_step(0)


def test_a_count_that_fails_is_unknown_and_leaves_training_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an error nor a zero: the figure is only reported."""
    made, _, teacher = trainee("soft_targets")

    def broken(*_: Any, **__: Any) -> int:
        raise RuntimeError("no such shape\nat all")

    before = torch.get_rng_state()
    monkeypatch.setitem(flop_registry, torch.ops.aten.mm, broken)
    counted, why = executed_flop(made, teacher, SIZE, autocast=None)
    assert counted is None
    assert why.endswith("RuntimeError: no such shape")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in made.parameters())
    monkeypatch.undo()
    assert executed_flop(made, teacher, SIZE, autocast=None) == (
        [executed_step_flop(made, teacher, 0, SIZE, autocast=None)], "",
    )  # fmt: skip
