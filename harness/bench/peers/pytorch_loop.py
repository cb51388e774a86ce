"""The loop most people write: stock models, dense heads, autocast, AdamW."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from harness.bench.peers._contest import Contest, dense, dense_kd_loss
from harness.bench.timing import wait
from harness.data.batch import Batch

NAME = "plain PyTorch loop"
OBJECTIVES = ("mlm", "soft_targets")
REQUIRES: tuple[str, ...] = ()


class Loop:
    """Forward, loss, backward, clip, update; `compiled` runs both models through torch.compile."""

    def __init__(self, contest: Contest, objective: str, *, compiled: bool = False) -> None:
        self.model: nn.Module = contest.student()
        self._contest = contest
        self._taught = objective == "soft_targets"
        self._optimizer = contest.optimizer(self.model)
        self._student: Any = torch.compile(self.model) if compiled else self.model
        self._teacher: Any = torch.compile(contest.teacher) if compiled else contest.teacher

    def run(self, batches: list[Batch]) -> list[float]:
        return [self._step(batch) for batch in batches]

    def _step(self, batch: Batch) -> float:
        device = self._contest.device
        wait(device)
        begun = time.perf_counter()
        inputs = dense(batch)
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with self._contest.autocast():
            if self._taught:
                with torch.no_grad():
                    taught = self._teacher(**asked).logits
                loss = dense_kd_loss(self._student(**asked).logits, taught, inputs["labels"])
            else:
                loss = self._student(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._contest.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        wait(device)
        return time.perf_counter() - begun


def build(contest: Contest, objective: str) -> Loop:
    return Loop(contest, objective)
