"""The terms of a contest between training loops: one student, one teacher, one list of batches, one optimizer.

A runner trains its own copy of the student on the batches in order. The masked-language-model loss on a batch held
out of them says afterwards whether it trained the same way: only then are its times shown.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.data.batch import Batch

if TYPE_CHECKING:
    from harness.setting import ArmSetting
    from harness.study import OptimizerSpec

TEMPERATURE = 2.0
ALPHA = 0.5
IGNORED = -100


class Runner(Protocol):
    """One contender in the middle of its training; `model` is its student."""

    model: nn.Module

    def run(self, batches: list[Batch]) -> list[float]:
        """Train on these batches, one step each; returns the seconds of the steps it could time."""
        ...


@dataclass(frozen=True)
class Contest:
    """What every runner starts from: stock transformers models under SDPA, on the device."""

    arm: ArmSetting
    recipe: OptimizerSpec
    initial: PreTrainedModel
    teacher: PreTrainedModel
    device: torch.device
    half: bool

    def student(self) -> PreTrainedModel:
        """A fresh copy of the student in training mode (its dropout is 0)."""
        return copy.deepcopy(self.initial).train()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with decay on matrices only, as in a study."""
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.lr, betas=self.recipe.betas, eps=self.recipe.eps, fused=True)

    @property
    def clip(self) -> float:
        """The bound of the gradient's norm; without one, a bound that nothing reaches."""
        return self.recipe.clip or float("inf")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)


def dense(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch as most code holds it: ids, a mask of ones, labels everywhere (−100 where nothing is asked)."""
    labels = torch.full_like(batch.input_ids_BT, IGNORED)
    labels.view(-1)[batch.positions_N] = batch.labels_N
    return {"input_ids": batch.input_ids_BT, "attention_mask": torch.ones_like(batch.input_ids_BT), "labels": labels}


def dense_kd_loss(student_BTV: torch.Tensor, teacher_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """α·T²·KL(p_T ‖ p_S) + (1 − α)·cross-entropy, both averaged over the masked positions of dense logits."""
    chosen = labels_BT != IGNORED
    s, t = student_BTV[chosen].float(), teacher_BTV[chosen].float()
    log_softmax = nn.functional.log_softmax
    kl = nn.functional.kl_div(
        log_softmax(s / TEMPERATURE, -1), log_softmax(t / TEMPERATURE, -1), reduction="batchmean", log_target=True
    )
    return ALPHA * TEMPERATURE**2 * kl + (1 - ALPHA) * nn.functional.cross_entropy(s, labels_BT[chosen])


def held_out_loss(model: Any, batch: Batch) -> float:
    """Masked cross-entropy of a transformers model on one batch, in its own precision."""
    model.eval()
    with torch.no_grad():
        loss = model(**dense(batch)).loss
    model.train()
    return float(loss)


def ticks(times_s: list[float]) -> Iterator[float]:
    """Durations between neighbouring clock readings."""
    return (later - earlier for earlier, later in pairwise(times_s))
