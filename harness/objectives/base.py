"""What an objective is, how objectives are found, and what their formulas share.

An `Objective` declares which signals it needs from the student and from the teacher, returns named
loss terms, and states the FLOPs its own products cost. `harness.objectives.composition` weighs and
schedules objectives.

Every term is a sum divided by the batch's global mean count (masked positions, tokens or sequences),
so accumulation and world size do not change it; sums accumulate in fp32 or better.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

import harness.objectives
from harness.errors import ConfigError, TeacherError
from harness.models.shapes import Shape
from harness.models.signals import Head, Needs, Positions, Signals, TopLogits, TrainingBatch


@dataclass(frozen=True)
class StepSize:
    """What one forward covers; `masked` counts the predicted positions of all sequences, masked ones or next tokens."""

    sequences: int
    length: int
    masked: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


class Options(BaseModel):
    """Options of one objective as a study writes them; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Objective(nn.Module):
    """One distillation method between two shapes. Subclasses set `name`, `Options`, and the needs."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    needs_teacher: ClassVar[bool] = True
    # The models this method is defined for: those that see both sides of a token, those that see its past, or either.
    reads: ClassVar[Literal["either", "masked", "causal"]] = "either"
    # Options under which this method computes what the published code of Bui et al. (2024) computed instead.
    paper_code: ClassVar[dict[str, Any]] = {}
    # Options under which loss and gradient are zero when student and teacher give the same signals (a learned
    # projection being the identity); None where the definition implies no such thing.
    vanishes_with: ClassVar[dict[str, Any] | None] = None
    student_needs: Needs = Needs()
    teacher_needs: Needs = Needs()
    # The temperature at which it compares logits, where it can do so with the largest of a teacher's alone.
    temperature: float | None = None

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__()
        self.options = options
        self.student_shape = student
        if teacher is None and self.needs_teacher:
            raise ConfigError(
                f"objective {self.name}", rule="it needs a teacher", remedy="add a teacher block to the study"
            )
        self._teacher_shape = teacher
        if self.reads != "either" and student.causal != (self.reads == "causal"):
            other = "mlm" if self.reads == "causal" else "clm"
            raise self.refuse(
                f"a {student.family} student", rule=f"it is defined for {self.reads} language models",
                remedy=f"use {other}, or a student of another family",
            )  # fmt: skip
        if teacher is not None and self.needs_teacher and teacher.causal != student.causal:
            raise opposite_teacher(student, teacher, name=f"a {teacher.family} model")

    @property
    def causal(self) -> bool:
        """True when tokens see their past only: relations and scores are compared there."""
        return self.student_shape.causal

    @property
    def teacher_shape(self) -> Shape:
        assert self._teacher_shape is not None
        return self._teacher_shape

    def forward(self, student: Signals, teacher: Signals, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        """Named loss terms, already weighted within the method; their sum is the objective."""
        raise AssertionError(f"{self.name} defines no terms")

    def flops(self, size: StepSize) -> int:
        """FLOPs of the objective's own matrix products, forward and backward, teacher side included."""
        return 0

    def refuse(self, value: str, rule: str, remedy: str) -> ConfigError:
        return ConfigError(f"objective {self.name}: {value}", rule=rule, remedy=remedy)


def opposite_teacher(student: Shape, teacher: Shape, *, name: str) -> TeacherError:
    """The refusal of a teacher that predicts another kind of token than the student."""
    kinds = {True: "causal", False: "masked"}
    return TeacherError(
        f"teacher {name} is a {kinds[teacher.causal]} model",
        rule=f"a {kinds[student.causal]} student needs a {kinds[student.causal]} teacher",
        remedy=f"choose a {kinds[student.causal]} teacher, or another student.family",
    )


def discover() -> dict[str, type[Objective]]:
    """Every objective, by name: each module of this package that defines one."""
    found: dict[str, type[Objective]] = {}
    for module in pkgutil.iter_modules(harness.objectives.__path__):
        if module.name in ("base", "composition"):
            continue
        for value in vars(importlib.import_module(f"harness.objectives.{module.name}")).values():
            if (
                isinstance(value, type)
                and issubclass(value, Objective)
                and value is not Objective
                and "name" in vars(value)
            ):
                found[value.name] = value
    return found


# -- shared pieces -----------------------------------------------------------------------------------


def lengths_of(batch: TrainingBatch) -> torch.Tensor | None:
    """Real tokens of each sequence (B,), or None where nothing is padded."""
    return None if batch.attention_mask_BT is None else batch.attention_mask_BT.sum(dim=1)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 for half inputs, unchanged otherwise."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def token_rows(states_BTH: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
    """The rows (N, H) of all real tokens; pads never enter, whatever they hold."""
    flat = states_BTH.flatten(0, 1)
    return flat if batch.attention_mask_BT is None else flat[batch.attention_mask_BT.flatten().bool()]


def target_rows(states_BTH: torch.Tensor, batch: TrainingBatch, *, like: torch.Tensor) -> torch.Tensor:
    """A teacher's rows of all real tokens (N, H): a constant, in the type they are compared in."""
    return wide(token_rows(states_BTH.detach(), batch)).to(like.dtype)


def last_rows(states_BTH: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
    """The state of each sequence's last real token (B, H): the one that has seen all of it, in a causal model."""
    lengths = lengths_of(batch)
    if lengths is None:
        return states_BTH[:, -1]
    return states_BTH[torch.arange(len(states_BTH), device=states_BTH.device), lengths - 1]


def masked_rows(batch: TrainingBatch) -> torch.Tensor:
    """Where the masked positions lie among the rows of all real tokens (N,)."""
    if batch.attention_mask_BT is None:
        return batch.positions_N
    ranks = batch.attention_mask_BT.flatten().long().cumsum(0) - 1
    return ranks[batch.positions_N]


def top_at(top: TopLogits, positions: Positions, batch: TrainingBatch) -> TopLogits:
    """`head_at` for remembered logits."""
    if top.positions == positions:
        return top
    assert (top.positions, positions) == ("tokens", "masked")
    rows = masked_rows(batch)
    rests = {temperature: rest.index_select(0, rows) for temperature, rest in top.rests.items()}
    return TopLogits(top.ids_NK.index_select(0, rows), top.logits_NK.index_select(0, rows), rests, positions)


def head_at(head: Head, positions: Positions, batch: TrainingBatch) -> Head:
    """The head at the positions one objective needs, where another of its phase needs all tokens."""
    if head.positions == positions:
        return head
    assert (head.positions, positions) == ("tokens", "masked")
    return replace(head, hidden_NE=head.hidden_NE.index_select(0, masked_rows(batch)), positions=positions)


def evenly_spaced(objective: Objective) -> int:
    """k, when the teacher has k layers for every student layer; ConfigError otherwise."""
    deep, shallow = objective.teacher_shape.layers, objective.student_shape.layers
    if deep % shallow:
        raise objective.refuse(
            f"{deep} teacher layers over {shallow} student layers",
            rule="the teacher's depth must be a multiple of the student's",
            remedy="choose depths that divide",
        )
    return deep // shallow
