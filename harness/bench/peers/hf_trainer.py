"""Hugging Face's Trainer on masked language modelling: its loop, its data loader, its clipping."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from torch import nn

from harness.bench.peers._contest import Contest, dense, ticks
from harness.bench.timing import wait
from harness.data.batch import Batch

NAME = "Hugging Face Trainer"
OBJECTIVES = ("mlm",)
REQUIRES = ("accelerate",)


class TrainerRun:
    """Every call builds a Trainer around the same model and optimizer, because a Trainer trains to an end."""

    def __init__(self, contest: Contest) -> None:
        self.model: nn.Module = contest.student()
        self._contest = contest
        self._optimizer = contest.optimizer(self.model)

    def run(self, batches: list[Batch]) -> list[float]:
        from torch.utils.data import DataLoader
        from transformers import Trainer, TrainerCallback, TrainingArguments

        clock: list[float] = []
        device = self._contest.device

        class Clock(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                if not clock:
                    clock.append(time.perf_counter())

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                wait(device)
                clock.append(time.perf_counter())

        class Ordered(Trainer):
            def get_train_dataloader(self) -> DataLoader:
                # batch_size=None: the items are whole batches already, and stay in their order.
                return DataLoader([dense(batch) for batch in batches], batch_size=None)  # pyright: ignore[reportArgumentType]

        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder, max_steps=len(batches), max_grad_norm=self._contest.clip, save_strategy="no", report_to=[],
                disable_tqdm=True, logging_strategy="no", bf16=self._contest.half, use_cpu=device.type == "cpu",
            )  # fmt: skip
            constant = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: 1.0)
            trainer = Ordered(
                model=self.model, args=settings, optimizers=(self._optimizer, constant), callbacks=[Clock()],
                train_dataset=[0] * len(batches),  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            trainer.train()
        return list(ticks(clock))


def build(contest: Contest, objective: str) -> TrainerRun:
    return TrainerRun(contest)
