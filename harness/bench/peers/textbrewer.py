"""TextBrewer's GeneralDistiller: soft targets at the masked positions plus the student's own loss, dense logits."""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
from typing import Any

import torch
from torch import nn

from harness.bench.peers._contest import ALPHA, IGNORED, TEMPERATURE, Contest, dense, ticks
from harness.bench.timing import wait
from harness.data.batch import Batch

NAME = "TextBrewer"
OBJECTIVES = ("soft_targets",)
REQUIRES = ("textbrewer", "tensorboard")


class Distiller:
    """A distiller is built for every call, around the same model and optimizer."""

    def __init__(self, contest: Contest) -> None:
        self.model: nn.Module = contest.student()
        self._contest = contest
        self._optimizer = contest.optimizer(self.model)

    def run(self, batches: list[Batch]) -> list[float]:
        # By name: this file is called like the package it imports.
        textbrewer: Any = importlib.import_module("textbrewer")

        logging.getLogger("Distillation").setLevel(logging.ERROR)
        clock: list[float] = []

        def tick(batch: Any) -> Any:
            wait(self._contest.device)
            clock.append(time.perf_counter())
            return batch

        def of_teacher(batch: dict[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
            return {"logits": [outputs.logits], "logits_mask": [(batch["labels"] != IGNORED).float()]}

        def of_student(batch: dict[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
            return {"losses": [outputs.loss], **of_teacher(batch, outputs)}

        with tempfile.TemporaryDirectory() as folder:
            # Its soft loss lacks the temperature's square; the weight restores it. Cross-entropy and KL have one gradient.
            distiller = textbrewer.GeneralDistiller(
                textbrewer.TrainingConfig(output_dir=folder, log_dir=folder, device=str(self._contest.device)),
                textbrewer.DistillationConfig(
                    temperature=TEMPERATURE, kd_loss_type="ce", kd_loss_weight=ALPHA * TEMPERATURE**2,
                    hard_label_weight=1 - ALPHA,
                ),
                self._contest.teacher, self.model, of_teacher, of_student,
            )  # fmt: skip
            with self._contest.autocast(), distiller:
                distiller.train(
                    self._optimizer, [dense(batch) for batch in batches], num_epochs=1, max_grad_norm=self._contest.clip,
                    batch_postprocessor=tick,
                )  # fmt: skip
        # The last step is not timed: the file it writes at its end would count.
        return list(ticks(clock))


def build(contest: Contest, objective: str) -> Distiller:
    return Distiller(contest)
