"""MiniLMv2's relation loss in plain PyTorch: whole T × T relations through autograd, teacher and student whole."""

from __future__ import annotations

import time

import torch
from torch import nn

from harness.bench.peers._contest import Contest
from harness.bench.timing import wait
from harness.data.batch import Batch
from harness.kernels.backend import prefer
from harness.models.signals import Needs
from harness.models.teacher import Teacher
from harness.trainee import Trainee

NAME = "naive relation loss"
OBJECTIVES = ("minilmv2",)
REQUIRES: tuple[str, ...] = ()
WHOLE = Needs(logits="tokens")


class Naive:
    """The study's own objective with its definition for a kernel, in a bare loop that cuts neither model."""

    def __init__(self, contest: Contest) -> None:
        torch.manual_seed(0)
        arm = contest.arm
        assert arm.teacher is not None
        self._trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan()).to(contest.device)
        self.model: nn.Module = self._trainee.student
        self._teacher = Teacher(arm.teacher, device=contest.device, dtype=contest.teacher.dtype)
        self._contest = contest
        self._optimizer = contest.optimizer(self._trainee)

    def run(self, batches: list[Batch]) -> list[float]:
        prefer("reference")
        try:
            return [self._step(batch) for batch in batches]
        finally:
            prefer("auto")

    def _step(self, batch: Batch) -> float:
        contest = self._contest
        wait(contest.device)
        begun = time.perf_counter()
        with contest.autocast():
            plan = self._trainee.plan
            taught = self._teacher(batch, plan.teacher_needs(0) | WHOLE)
            seen = self._trainee.signals(batch, plan.student_needs(0) | WHOLE)
            for signals in (taught, seen):
                assert signals.head is not None
                signals.head.logits()  # what a stock forward computes, asked for or not
            total = plan(0, seen, taught, batch)["total"]
        total.backward()
        if contest.recipe.clip is not None:
            nn.utils.clip_grad_norm_([p for p in self._trainee.parameters() if p.grad is not None], contest.recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        wait(contest.device)
        return time.perf_counter() - begun


def build(contest: Contest, objective: str) -> Naive:
    return Naive(contest)
