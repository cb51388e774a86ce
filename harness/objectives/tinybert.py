"""`tinybert`: attention scores and hidden states, layer by layer (Jiao et al. 2020, §3.1, general stage)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from harness.kernels.score_mse.op import score_sse
from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base
from harness.objectives.minilm import per_head


class Options(base.Options):
    """How layers are paired and what is compared; `layers` maps student to teacher layers, every k-th by default.

    `paper_code` variants: `embedding: layer0_scores` compares the first layers' scores, pads included, where
    the embeddings belong; `states: last_unprojected` keeps the last state alone; `state_index: one_below`
    reads teacher states with the attention layers' indices; `score_layers: last` is the published scripts'
    own selection.
    """

    layers: dict[int, int] | None = None
    scores: Literal["per_head", "head_average"] = "per_head"
    score_layers: Literal["every", "last"] = "every"
    projection: Literal["shared", "per_layer"] = "shared"
    embedding: Literal["states", "layer0_scores", "none"] = "states"
    states: Literal["every", "last_unprojected"] = "every"
    state_index: Literal["aligned", "one_below"] = "aligned"


class TinyBert(base.Objective):
    """Σ_layers MSE of pre-softmax scores + Σ_states MSE(W·h_S, h_T), the embeddings being state 0.

    Student layer i learns from teacher layer i·k. Each MSE is a mean over real (query, key) pairs and
    heads, or over real tokens and the teacher's hidden size. Of causal models a token's pairs are those with its past.
    """

    name: ClassVar[str] = "tinybert"
    paper_code: ClassVar[dict[str, Any]] = {
        "embedding": "layer0_scores", "states": "last_unprojected", "state_index": "one_below", "score_layers": "last",
    }  # fmt: skip
    vanishes_with: ClassVar[dict[str, Any] | None] = {}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        theirs = self.teacher_shape
        if student.heads != theirs.heads and options.scores == "per_head":
            raise self.refuse(
                f"{student.heads} student heads and {theirs.heads} teacher heads",
                rule="scores are compared head by head",
                remedy="use equal head counts, or scores: head_average",
            )
        pairs = self._pairs()
        last = max(pairs)
        self.layer_map = pairs if options.score_layers == "every" else {last: pairs[last]}
        self.state_map = self._states(pairs)
        first_layers = frozenset({1}) if options.embedding == "layer0_scores" else frozenset()
        self.student_needs = Needs(states=frozenset(self.state_map), qkv=frozenset(self.layer_map) | first_layers)
        self.teacher_needs = Needs(
            states=frozenset(self.state_map.values()), qkv=frozenset(self.layer_map.values()) | first_layers
        )
        self.projections = nn.ModuleDict()
        if options.states == "every":
            keys = ["shared"] if options.projection == "shared" else [str(i) for i in self.state_map]
            for key in keys:
                self.projections[key] = nn.Linear(student.hidden, theirs.hidden)

    def _pairs(self) -> dict[int, int]:
        """Student layer → teacher layer."""
        if self.options.layers is None:
            stride = base.evenly_spaced(self)
            return {i: i * stride for i in range(1, self.student_shape.layers + 1)}
        if not self.options.layers:
            raise self.refuse("layers = {}", rule="no layer is compared", remedy="map at least one, or leave it out")
        return dict(sorted(self.options.layers.items()))

    def _states(self, pairs: dict[int, int]) -> dict[int, int]:
        """Student state → teacher state."""
        shift = 1 if self.options.state_index == "one_below" else 0
        if self.options.states == "every":
            embeddings = {0: 0} if self.options.embedding == "states" else {}
            return embeddings | {mine: theirs - shift for mine, theirs in pairs.items()}
        if self.student_shape.hidden != self.teacher_shape.hidden:
            raise self.refuse(
                f"hidden sizes {self.student_shape.hidden} and {self.teacher_shape.hidden}",
                rule="states: last_unprojected compares states without a projection",
                remedy="use equal hidden sizes, or states: every",
            )
        last = max(pairs)
        return {last: pairs[last] - shift}

    def project(self, number: int, states_NH: torch.Tensor) -> torch.Tensor:
        if not len(self.projections):
            return states_NH
        key = "shared" if self.options.projection == "shared" else str(number)
        return self.projections[key](states_NH)

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        lengths = base.lengths_of(batch)
        average = self.options.scores == "head_average"
        heads = 1 if average else self.student_shape.heads
        width = batch.input_ids_BT.shape[1]
        every_pair = batch.sequence_count * (width * (width + 1) // 2 if self.causal else width * width)
        real_pairs: Any = every_pair
        if lengths is not None:
            real_pairs = (lengths * (lengths + 1) // 2 if self.causal else lengths.square()).sum()

        def score_error(mine: int, theirs: int, *, pads: bool = False) -> torch.Tensor:
            q_s, k_s, _ = per_head(student.qkv[mine])
            q_t, k_t, _ = per_head(teacher.qkv[theirs])
            sse = score_sse(
                q_s, k_s, q_t, k_t, lengths_B=None if pads else lengths, head_average=average, causal=self.causal
            )
            return sse / (every_pair if pads else real_pairs) / heads

        terms = {"scores": _total([score_error(mine, theirs) for mine, theirs in self.layer_map.items()])}
        count = batch.token_count * self.teacher_shape.hidden
        errors = []
        for mine, theirs in self.state_map.items():
            projected = base.wide(self.project(mine, base.token_rows(student.states[mine], batch)))
            target = base.target_rows(teacher.states[theirs], batch, like=projected)
            errors.append((projected - target).square().sum() / count)
        terms["states"] = _total(errors)
        if self.options.embedding == "layer0_scores":
            terms["layer0_scores"] = score_error(1, 1, pads=True)
        return terms

    def flops(self, size: base.StepSize) -> int:
        pair_products = 2 * size.tokens * size.length
        layers = len(self.layer_map) + (self.options.embedding == "layer0_scores")
        # Student scores forward and their two gradient products; teacher scores forward.
        scores = layers * pair_products * (3 * self.student_shape.hidden + self.teacher_shape.hidden)
        projections = 3 * 2 * size.tokens * self.student_shape.hidden * self.teacher_shape.hidden
        return scores + (len(self.state_map) * projections if len(self.projections) else 0)


def _total(losses: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(losses).sum()
