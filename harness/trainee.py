"""The engine's module: a student and its objective, one forward from batch to loss terms.

The objective's projections and its use of the head's weights live inside this module, because ZeRO-3
partitions every weight that forward touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.models.families import family_of
from harness.models.shapes import Shape
from harness.models.signals import Head, Needs, Signals, TrainingBatch, run
from harness.objectives.composition import Plan

if TYPE_CHECKING:
    from harness.study import OptimizerSpec


# The phase that runs the whole student and its own head, whatever the objective trains.
VALIDATION = -1
VALIDATION_NEEDS = Needs(logits="masked")


class Trainee(nn.Module):
    """Student plus objective; `forward` returns the named loss terms of one micro-batch."""

    def __init__(self, student: PreTrainedModel, shape: Shape, plan: Plan, *, recompute: bool = False) -> None:
        """With `recompute`, activations inside the student's layers are computed again instead of kept."""
        super().__init__()
        self.student = student
        self.plan = plan
        self.shape = shape
        self.recompute = recompute
        self.compiled = False
        self._walks: dict[Needs, Callable[..., Signals]] = {}

    def forward(self, batch: TrainingBatch, teacher: Signals, phase: int) -> dict[str, torch.Tensor]:
        """Loss terms of a training phase, or sums over predicted positions when `phase` is VALIDATION.

        Validation enters here too, because ZeRO-3 gathers weights for the engine module's forward only.
        """
        if phase == VALIDATION:
            return self._validation_sums(batch)
        signals = self.signals(batch, self.plan.student_needs(phase))
        return self.plan(phase, signals, teacher, batch)

    def _validation_sums(self, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        head = self.signals(batch, VALIDATION_NEEDS).head
        assert head is not None
        logits = head.logits().float()
        return {
            "loss": nn.functional.cross_entropy(logits, batch.labels_N, reduction="sum"),
            "hits": (logits.argmax(-1) == batch.labels_N).sum(),
        }

    def signals(self, batch: TrainingBatch, needs: Needs) -> Signals:
        # Compiled for training alone: a validation is a few batches of another size.
        walk = self._compiled_walk(needs) if self.compiled and torch.is_grad_enabled() else self._walk(needs)
        return walk(
            input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N, attention_mask_BT=batch.attention_mask_BT
        )

    def _walk(self, needs: Needs) -> Callable[..., Signals]:
        return partial(run, family_of(self.student, self.shape), needs, recompute=self.recompute)

    def _compiled_walk(self, needs: Needs) -> Callable[..., Signals]:
        """The student's forward through torch.compile; compiled at its first call, its backward at the first of those."""
        if needs not in self._walks:
            walk = self._walk(needs)

            def compiled(**inputs: torch.Tensor | None) -> Signals:
                return walk(**inputs)

            self._walks[needs] = torch.compile(compiled, dynamic=False)
        return self._walks[needs]


@dataclass
class _TinyBatch:
    """Two short sequences with every token predicted: enough to see which weights get a gradient."""

    input_ids_BT: torch.Tensor
    positions_N: torch.Tensor
    labels_N: torch.Tensor
    attention_mask_BT: torch.Tensor | None = None
    masked_count: float = 16.0
    token_count: float = 16.0
    sequence_count: float = 2.0


def tiny_batch(vocab: int) -> _TinyBatch:
    ids = (torch.arange(16) % vocab).view(2, 8)
    return _TinyBatch(ids, torch.arange(16), ids.flatten())


def stand_in_signals(shape: Shape, needs: Needs, *, sequences: int, length: int, masked: int) -> Signals:
    """Signals of the right shapes without a teacher, from a fixed generator."""
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    signals = Signals()
    for number in sorted(needs.states):
        signals.states[number] = noise(sequences, length, shape.hidden)
    for number in sorted(needs.attended):
        qkv = {
            part: noise(sequences, width // shape.head_dim, length, shape.head_dim)
            for part, width in shape.widths.items()
        }
        signals.keep(number, qkv, needs)
    if needs.logits != "none":
        rows = needs.positions(tokens=sequences * length, masked=masked)
        signals.head = Head(noise(rows, shape.embedding), noise(shape.vocab, shape.embedding), None, needs.logits)
    return signals


def trained_names(trainee: Trainee, teacher: Shape | None) -> list[frozenset[str]]:
    """For each phase, the names of the weights that receive a gradient: found by asking autograd."""
    batch = tiny_batch(trainee.shape.vocab)
    found: list[frozenset[str]] = []
    for phase in range(len(trainee.plan.phases)):
        signals = Signals()
        if teacher is not None:
            signals = stand_in_signals(teacher, trainee.plan.teacher_needs(phase), sequences=2, length=8, masked=16)
        trainee.zero_grad(set_to_none=True)
        trainee(batch, signals, phase)["total"].backward()
        found.append(frozenset(n for n, p in trainee.named_parameters() if p.grad is not None))
    trainee.zero_grad(set_to_none=True)
    return found


@dataclass(frozen=True)
class Groups:
    """AdamW groups of the weights some phase trains, and in which phases each group is active."""

    groups: list[dict[str, Any]]
    active: list[list[bool]]
    untrained: list[str]


def parameter_groups(trainee: Trainee, teacher: Shape | None, optimizer: OptimizerSpec) -> Groups:
    """Split trained weights by (phases that train them, decayed or not); freeze the others.

    A weight without gradient must not reach the optimizer: AdamW would decay it. Decay applies to
    matrices only. The order is that of `named_parameters`, so it is the same on every rank.
    """
    by_phase = trained_names(trainee, teacher)
    buckets: dict[tuple[tuple[bool, ...], bool], list[nn.Parameter]] = {}
    untrained: list[str] = []
    for name, parameter in trainee.named_parameters():
        phases = tuple(name in names for names in by_phase)
        if not any(phases):
            parameter.requires_grad_(False)
            untrained.append(name)
            continue
        buckets.setdefault((phases, parameter.ndim >= 2), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": optimizer.weight_decay if decay else 0.0}
        for (_, decay), parameters in buckets.items()
    ]
    active = [[phases[phase] for phases, _ in buckets] for phase in range(len(by_phase))]
    return Groups(groups=groups, active=active, untrained=untrained)
