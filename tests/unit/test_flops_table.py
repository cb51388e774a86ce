"""The table of minimal KD costs in the project's performance goals, from configs alone: no weights are built.

FLOPs of a KD step over a No-KD step; 6L-768 student, T = 128, 15 % masked, BERT's vocabulary.
"""

from __future__ import annotations

import pytest

from harness.meters.flops import BACKWARD_AND_FORWARD, FlopMeter
from harness.models.shapes import Shape
from harness.models.signals import Needs
from harness.models.student import student_shape
from harness.objectives.base import StepSize
from harness.objectives.composition import Plan
from harness.study import MaskingSpec, ModelSpec

SEQUENCES, LENGTH = 256, 128
SIZE = StepSize(SEQUENCES, LENGTH, SEQUENCES * MaskingSpec().count(LENGTH))
SPECIAL = {"pad": 0, "cls": 101, "sep": 102, "mask": 103}


def bert(layers: int, hidden: int) -> Shape:
    spec = ModelSpec(layers=layers, hidden=hidden, heads=hidden // 64)
    return student_shape(spec, vocab=30522, special=SPECIAL, block_length=LENGTH)


STUDENT, BASE, LARGE = bert(6, 768), bert(12, 768), bert(24, 1024)
MASKED = Needs(logits="masked")
NOTHING = Needs()


def forward(needs: Needs, shape: Shape) -> int:
    return needs.forward_flops(shape, sequences=SEQUENCES, length=LENGTH, masked=SIZE.masked)


def step(objective: object, teacher: Shape | None, *, student: Needs = NOTHING, of_teacher: Needs = NOTHING) -> int:
    """FLOPs of a step; extra needs are work that the objective has no use for."""
    plan = Plan(objective, student=STUDENT, teacher=teacher)  # type: ignore[arg-type]
    exact = sum(c.amount for c in FlopMeter(plan, student=STUDENT, teacher=teacher, size=SIZE).next_step(0))
    wasted = BACKWARD_AND_FORWARD * (
        forward(plan.student_needs(0) | student, STUDENT) - forward(plan.student_needs(0), STUDENT)
    )
    if teacher is not None:
        wasted += forward(plan.teacher_needs(0) | of_teacher, teacher) - forward(plan.teacher_needs(0), teacher)
    return int(exact + wasted)


NO_KD = step("mlm", None)


def ratios(teacher: Shape, *, relation_heads: int, layer: int) -> list[float]:
    relations = {"name": "minilmv2", "relation_heads": relation_heads, "teacher_layer": layer}
    whole_student = Needs(states=frozenset({STUDENT.layers}))
    return [
        step({"name": "soft_targets", "positions": "tokens"}, teacher) / NO_KD,
        step("soft_targets", teacher) / NO_KD,
        step(relations, teacher, student=MASKED, of_teacher=MASKED) / NO_KD,
        step(relations, teacher, student=whole_student) / NO_KD,
        step(relations, teacher) / NO_KD,
    ]


def test_no_kd_with_a_masked_only_head_costs_283_5_mflop_per_token() -> None:
    assert NO_KD / SIZE.tokens == pytest.approx(283.5e6, rel=0.01)


@pytest.mark.parametrize(
    ("teacher", "relation_heads", "layer", "expected"),
    [(BASE, 48, 12, [2.22, 1.64, 1.65, 1.51, 1.39]), (LARGE, 64, 21, [3.83, 3.21, 3.22, 2.77, 2.65])],
    ids=["12L-768", "24L-1024"],
)
def test_kd_costs_what_the_table_says(teacher: Shape, relation_heads: int, layer: int, expected: list[float]) -> None:
    """Dense heads; vanilla with masked-only heads; MiniLM with the whole teacher; teacher cut; student cut too."""
    assert ratios(teacher, relation_heads=relation_heads, layer=layer) == pytest.approx(expected, rel=0.01)


def test_dense_kd_over_dense_no_kd_is_the_figure_beside_the_table() -> None:
    dense = step("mlm", None, student=Needs(logits="tokens"))
    for teacher, expected in ((BASE, 1.55), (LARGE, 2.68)):
        assert step({"name": "soft_targets", "positions": "tokens"}, teacher) / dense == pytest.approx(
            expected, rel=0.01
        )
