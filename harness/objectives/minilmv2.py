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
RELATIONS = ("query", "key", "value")


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
    """Σ over Q, K, V of KL(softmax(R_T R_Tᵀ/√d_r) ‖ softmax(R_S R_Sᵀ/√d_r)) / (relation heads · real length).

    Of causal models each token is related to its past. A relation of weight 0 is neither captured nor computed.
    Keys and values that several heads share (grouped-query attention) are re-split as narrow as they are.
    """

    name: ClassVar[str] = "minilmv2"
    paper_code: ClassVar[dict[str, Any]] = {"split": "heads_first", "pads": "included"}
    vanishes_with: ClassVar[dict[str, Any] | None] = {}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        theirs = self.teacher_shape
        if options.query + options.key + options.value <= 0:
            raise self.refuse("query + key + value = 0", rule="the weights sum to nothing", remedy="raise one")
        widths = {
            whose: [shape.widths[name[0]] for name in self.weights]
            for whose, shape in (("student", student), ("teacher", theirs))
        }
        common = math.gcd(*(width for several in widths.values() for width in several))
        for whose, several in widths.items():
            for width in several:
                if width % options.relation_heads:
                    raise self.refuse(
                        f"{options.relation_heads} relation heads",
                        rule=f"they must divide the {whose}'s width {width}",
                        remedy=f"choose a common divisor of both models' widths: {_divisors(common)}",
                    )
        self.student_layer = options.student_layer or student.layers
        self.teacher_layer = options.teacher_layer or theirs.layers
        self.student_needs, self.teacher_needs = self._needs(self.student_layer), self._needs(self.teacher_layer)

    def _needs(self, layer: int) -> Needs:
        if len(self.weights) == len(RELATIONS):
            return Needs(qkv=frozenset({layer}))
        return Needs(parts=frozenset((layer, name[0]) for name in self.weights))

    @property
    def weights(self) -> dict[str, float]:
        """The relations that are computed, and their weights."""
        found = {name: float(getattr(self.options, name)) for name in RELATIONS}
        return {name: weight for name, weight in found.items() if weight}

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        lengths = base.lengths_of(batch) if self.options.pads == "excluded" else None
        terms: dict[str, torch.Tensor] = {}
        for name, weight in self.weights.items():
            mine = student.part(self.student_layer, name[0])
            theirs = teacher.part(self.teacher_layer, name[0])
            loss = relation_kl(
                self.lay_out(mine), self.lay_out(theirs),
                heads=self.options.relation_heads, lengths_B=lengths, causal=self.causal,
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
        mine, theirs = self.student_shape.widths, self.teacher_shape.widths
        return sum(pair_products * (3 * mine[name[0]] + theirs[name[0]]) for name in self.weights)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
