"""`minilmv2`: Q–Q, K–K and V–V relations of one layer over re-split heads (Wang et al. 2021, §3)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from harness.kernels.relation_kl.op import relation_kl
from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base
from harness.objectives.minilm import concatenate_heads

Weight = Annotated[float, Field(ge=0)]


class Options(base.Options):
    """`split: heads_first` (mixes positions) and `pads: included` are `paper_code` variants."""

    relation_heads: Annotated[int, Field(gt=0)] = 48
    teacher_layer: Annotated[int, Field(gt=0)] | None = None
    student_layer: Annotated[int, Field(gt=0)] | None = None
    query: Weight = 1.0
    key: Weight = 1.0
    value: Weight = 1.0
    split: Literal["concatenated", "heads_first"] = "concatenated"
    pads: Literal["excluded", "included"] = "excluded"


class MiniLmV2(base.Objective):
    """Σ over Q, K, V of KL(softmax(R_T R_Tᵀ/√d_r) ‖ softmax(R_S R_Sᵀ/√d_r)) / (relation heads · real length)."""

    name: ClassVar[str] = "minilmv2"
    paper_code: ClassVar[dict[str, Any]] = {"split": "heads_first", "pads": "included"}
    vanishes_with: ClassVar[dict[str, Any] | None] = {}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        theirs = self.teacher_shape
        widths = {"student": (student.hidden, student.kv_width), "teacher": (theirs.hidden, theirs.kv_width)}
        common = math.gcd(*(width for both in widths.values() for width in both))
        for whose, both in widths.items():
            for width in both:
                if width % options.relation_heads:
                    raise self.refuse(
                        f"{options.relation_heads} relation heads",
                        rule=f"they must divide the {whose}'s width {width}",
                        remedy=f"choose a common divisor of both models' widths: {_divisors(common)}",
                    )
        if options.query + options.key + options.value <= 0:
            raise self.refuse("query + key + value = 0", rule="the weights sum to nothing", remedy="raise one")
        self.student_layer = options.student_layer or student.layers
        self.teacher_layer = options.teacher_layer or theirs.layers
        self.student_needs = Needs(qkv=frozenset({self.student_layer}))
        self.teacher_needs = Needs(qkv=frozenset({self.teacher_layer}))

    @property
    def weights(self) -> dict[str, float]:
        return {"query": self.options.query, "key": self.options.key, "value": self.options.value}

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        lengths = base.lengths_of(batch) if self.options.pads == "excluded" else None
        mine, theirs = student.qkv[self.student_layer], teacher.qkv[self.teacher_layer]
        terms: dict[str, torch.Tensor] = {}
        for (name, weight), student_BATd, teacher_BATd in zip(self.weights.items(), mine, theirs, strict=True):
            if weight:
                loss = relation_kl(
                    self.lay_out(student_BATd), self.lay_out(teacher_BATd),
                    heads=self.options.relation_heads, lengths_B=lengths,
                )  # fmt: skip
                terms[name] = weight * loss / batch.sequence_count
        return terms

    def lay_out(self, tensor_BATd: torch.Tensor) -> torch.Tensor:
        """(B, T, width) whose last axis `relation_kl` cuts into relation heads."""
        if self.options.split == "concatenated":
            return concatenate_heads(tensor_BATd)
        # The paper's code reinterprets (B, A, T, d) memory as (B, relation heads, T, d_r): with other head
        # counts than the model's own, rows of different tokens end up in one relation vector.
        batch, _, length, _ = tensor_BATd.shape
        mixed = tensor_BATd.contiguous().view(batch, self.options.relation_heads, length, -1)
        return concatenate_heads(mixed)

    def flops(self, size: base.StepSize) -> int:
        pair_products = 2 * size.tokens * size.length
        relations = sum(1 for weight in self.weights.values() if weight)
        return relations * pair_products * (3 * self.student_shape.hidden + self.teacher_shape.hidden)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
