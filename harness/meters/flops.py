"""FLOPs: closed-form algorithmic cost of a step, the exact truth behind a FLOP budget.

A student step is three forwards' worth: one forward, and a backward of two products per product. The
teacher's forward and the objective's own products are priced as the needs of the objective say,
masked-only heads and cuts included. Kernels, compilation and recomputation never change these numbers.
"""

from __future__ import annotations

from harness.budget import Account, Charge
from harness.models.shapes import Shape
from harness.objectives.base import StepSize
from harness.objectives.composition import Plan
from harness.units import Unit

BACKWARD_AND_FORWARD = 3


class FlopMeter:
    """Exact by construction: what it predicts is what it charges."""

    unit = Unit.FLOP
    source = "analytic"

    def __init__(self, plan: Plan, *, student: Shape, teacher: Shape | None, size: StepSize) -> None:
        """`teacher` is None for a teacher that is remembered, not asked: its forward is no part of a step."""
        self._by_phase = [self._price(plan, phase, student, teacher, size) for phase in range(len(plan.phases))]

    @staticmethod
    def _price(plan: Plan, phase: int, student: Shape, teacher: Shape | None, size: StepSize) -> tuple[Charge, ...]:
        def forward(needs_of: str, shape: Shape) -> int:
            needs = plan.student_needs(phase) if needs_of == "student" else plan.teacher_needs(phase)
            return needs.forward_flops(shape, sequences=size.sequences, length=size.length, masked=size.masked)

        amounts = {Account.STUDENT_STEP: BACKWARD_AND_FORWARD * forward("student", student)}
        if teacher is not None and plan.teacher_needs(phase):
            amounts[Account.TEACHER_FORWARD] = forward("teacher", teacher)
        amounts[Account.OBJECTIVE] = plan.flops(phase, size)
        return tuple(Charge(account, amount, Unit.FLOP) for account, amount in amounts.items() if amount)

    def next_step(self, phase: int) -> tuple[Charge, ...]:
        return self._by_phase[phase]

    def drain(self, phase: int) -> tuple[Charge, ...]:
        return self._by_phase[phase]
