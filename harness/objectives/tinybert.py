"""`tinybert`: attention scores and hidden states, layer by layer (Jiao et al. 2020, §3.1, general stage)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from harness.kernels.score_mse.op import score_sse
from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base


class Options(base.Options):
    """`embedding: layer0_scores` and `states: last_unprojected` are `paper_code` variants."""

    scores: Literal["per_head", "head_average"] = "per_head"
    projection: Literal["shared", "per_layer"] = "shared"
    embedding: Literal["states", "layer0_scores", "none"] = "states"
    states: Literal["every", "last_unprojected"] = "every"


class TinyBert(base.Objective):
    """Σ_layers MSE of pre-softmax scores + Σ_states MSE(W·h_S, h_T), the embeddings being state 0.

    Student layer i learns from teacher layer i·k. Each MSE is a mean over real (query, key) pairs and
    heads, or over real tokens and the teacher's hidden size.
    """

    name: ClassVar[str] = "tinybert"
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        theirs = self.teacher_shape
        self.stride = base.evenly_spaced(self)
        if student.heads != theirs.heads and options.scores == "per_head":
            raise self.refuse(
                f"{student.heads} student heads and {theirs.heads} teacher heads",
                rule="scores are compared head by head",
                remedy="use equal head counts, or scores: head_average",
            )
        layers = range(1, student.layers + 1)
        self.layer_map = {i: i * self.stride for i in layers}
        if options.states == "last_unprojected":
            if student.hidden != theirs.hidden:
                raise self.refuse(
                    f"hidden sizes {student.hidden} and {theirs.hidden}",
                    rule="states: last_unprojected compares states without a projection",
                    remedy="use equal hidden sizes, or states: every",
                )
            self.state_map = {student.layers: theirs.layers}
        else:
            first = 0 if options.embedding == "states" else 1
            self.state_map = {i: i * self.stride for i in range(first, student.layers + 1)}
        self.student_needs = Needs(states=frozenset(self.state_map), qkv=frozenset(self.layer_map))
        self.teacher_needs = Needs(
            states=frozenset(self.state_map.values()), qkv=frozenset(self.layer_map.values()) | self._first_layer()
        )
        self.projections = nn.ModuleDict()
        if options.states == "every":
            keys = ["shared"] if options.projection == "shared" else [str(i) for i in self.state_map]
            for key in keys:
                self.projections[key] = nn.Linear(student.hidden, theirs.hidden)

    def _first_layer(self) -> frozenset[int]:
        return frozenset({1}) if self.options.embedding == "layer0_scores" else frozenset()

    def project(self, number: int, states_NH: torch.Tensor) -> torch.Tensor:
        if not len(self.projections):
            return states_NH
        key = "shared" if self.options.projection == "shared" else str(number)
        return self.projections[key](states_NH)

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        lengths = base.lengths_of(batch)
        average = self.options.scores == "head_average"
        length = batch.input_ids_BT.shape[1]
        if lengths is None:
            pairs = batch.sequence_count * length * length
        else:
            pairs = (lengths.double() ** 2).sum().item()
        heads = 1 if average else self.student_shape.heads

        def score_error(mine: int, theirs: int) -> torch.Tensor:
            q_s, k_s, _ = student.qkv[mine]
            q_t, k_t, _ = teacher.qkv[theirs]
            return score_sse(q_s, k_s, q_t, k_t, lengths_B=lengths, head_average=average) / (pairs * heads)

        scores = sum(score_error(mine, theirs) for mine, theirs in self.layer_map.items())
        width = self.teacher_shape.hidden
        states: torch.Tensor | float = 0.0
        for mine, theirs in self.state_map.items():
            projected = base.wide(self.project(mine, base.token_rows(student.states[mine], batch)))
            target = base.wide(base.token_rows(teacher.states[theirs], batch)).to(projected.dtype)
            states = states + (projected - target).square().sum() / (batch.token_count * width)
        terms = {"scores": scores, "states": states}
        if self.options.embedding == "layer0_scores":
            terms["layer0_scores"] = score_error(1, 1)
        return terms  # type: ignore[return-value]

    def flops(self, size: base.StepSize) -> int:
        pair_products = 2 * size.tokens * size.length
        layers = len(self.layer_map) + len(self._first_layer())
        # Student scores forward and their two gradient products; teacher scores forward.
        scores = layers * pair_products * (3 * self.student_shape.hidden + self.teacher_shape.hidden)
        projections = 3 * 2 * size.tokens * self.student_shape.hidden * self.teacher_shape.hidden
        return scores + (len(self.state_map) * projections if len(self.projections) else 0)
