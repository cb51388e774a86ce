"""torchdistill's DistillationBox: its hooks, forward and post-forward processes around a soft-target loss on dense logits."""

from __future__ import annotations

import importlib
import re
import sys
import time
from typing import Any

import torch
from torch import nn

from harness.bench.peers._contest import Contest, dense, dense_kd_loss
from harness.bench.timing import wait
from harness.data.batch import Batch

NAME = "torchdistill"
OBJECTIVES = ("soft_targets",)
REQUIRES = ("torchdistill", "torchvision")
_LOSS = "IsoBudgetSoftTargets"
_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")


class Box:
    def __init__(self, contest: Contest) -> None:
        _import()
        box: Any = importlib.import_module("torchdistill.core.distillation").DistillationBox

        self.model: nn.Module = contest.student()
        self._device = contest.device
        self._autocast = contest.autocast
        side = {"forward_proc": "forward_batch_only_as_kwargs"}
        recipe = contest.recipe
        self._box: Any = box(
            contest.teacher, self.model, {},
            {
                "num_epochs": 1,
                "teacher": {**side, "requires_grad": False},
                "student": side,
                "optimizer": {
                    "key": "AdamW", "max_grad_norm": recipe.clip,
                    "kwargs": {
                        "lr": recipe.lr, "betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay,
                        "fused": True,
                    },
                },
                "criterion": {
                    "key": "WeightedSumLoss",
                    "kwargs": {"sub_terms": {"kd": {"criterion": {"key": _LOSS, "kwargs": {}}, "weight": 1.0}}},
                },
            },
            contest.device, None, False, 1.0,
        )  # fmt: skip

    def run(self, batches: list[Batch]) -> list[float]:
        return [self._step(batch) for batch in batches]

    def _step(self, batch: Batch) -> float:
        wait(self._device)
        begun = time.perf_counter()
        inputs = dense(batch)
        labels = inputs.pop("labels")
        with self._autocast():
            loss = self._box.forward_process(inputs, labels)
        self._box.post_forward_process(loss)
        wait(self._device)
        return time.perf_counter() - begun


def _import() -> None:
    """Import it and register the contest's loss with it.

    It imports torchvision, whose wheels cannot load their operators beside a CPU build of PyTorch and then fail on the
    operators' names; none of them is ever called here, so the names alone are made known.
    """
    while True:
        try:
            importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            name = _MISSING.search(str(error))
            if name is None:
                raise
            _LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))
            _LIBRARY[-1].define(f"{name[1]}() -> ()")
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
    losses: Any = importlib.import_module("torchdistill.losses.registry")
    if _LOSS not in losses.MIDDLE_LEVEL_LOSS_DICT:
        losses.register_mid_level_loss(key=_LOSS)(_SoftTargets)


# A library's definitions live as long as the object does.
_LIBRARY: list[torch.library.Library] = []


class _SoftTargets(nn.Module):
    def forward(self, student: dict[str, Any], teacher: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
        logits = [side["."]["output"].logits for side in (student, teacher)]
        return dense_kd_loss(logits[0], logits[1], targets)


def build(contest: Contest, objective: str) -> Box:
    return Box(contest)
