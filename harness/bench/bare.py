"""An arm's student and objective in a loop without DeepSpeed: what the engine's step is compared with.

The same weights, projections, teacher, compilation and recomputation; forward, backward, clip, AdamW. Weights are fp32, and
products fp32 or, for any engine in half precision, under bf16 autocast: only an engine that computes so too is compared.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from harness.bench.check import Distance, Step, allowed, distance, taken, without_dropout
from harness.bench.timing import wait
from harness.conduct import PROJECTION_STREAM
from harness.data.batch import Batch
from harness.kernels.backend import prefer
from harness.models.signals import Signals
from harness.trainee import Trainee, parameter_groups

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.train import Trial


# Engines that compute as the bare loop does.
TWINS = ("fp32", "bf16-autocast")


def incomparable(precision: str, *, world: int) -> str | None:
    """Why an engine's step is not compared with a bare loop's; None where it is."""
    if world > 1:
        return "the bare loop is one rank's"
    return None if precision in TWINS else f"the bare loop computes in {' or '.join(TWINS)}, this engine in {precision}"


class Bare:
    """The twin of one trial at its start."""

    def __init__(self, conductor: Conductor, arm: ArmSetting, trial: Trial) -> None:
        self._arm, self._trial = arm, trial
        self._device = trial.engine.device
        self._half = conductor.setting.ds_config.precision != "fp32"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(PROJECTION_STREAM)
            plan = arm.plan()
        recompute = conductor.setting.ds_config.activation_checkpointing
        self.trainee = Trainee(arm.student(seed=0), arm.shape, plan, recompute=recompute)
        teacher = arm.teacher.shape if arm.teacher else None
        groups = parameter_groups(self.trainee, teacher, arm.study.optimizer)
        self.trainee.to(self._device)
        self.trainee.compiled = arm.study.speed.compile_student
        recipe = arm.study.optimizer
        self._optimizer = torch.optim.AdamW(groups.groups, lr=1e-6, betas=recipe.betas, eps=recipe.eps, fused=True)
        self._trained = [p for group in groups.groups for p in group["params"]]

    def step(self, batches: list[Batch]) -> float:
        """One optimizer step; returns its seconds."""
        wait(self._device)
        begun = time.perf_counter()
        for batch in batches:
            self._forward(batch, self._ask(batch), share=len(batches)).backward()
        if self._arm.study.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, self._arm.study.optimizer.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        wait(self._device)
        return time.perf_counter() - begun

    def check(self, batch: Batch) -> tuple[Distance, str | None]:
        """How far the step as it will run is from the definition on this batch, and what is wrong with it, if anything.

        The engine's loss counts too: its own weights, precision and wrapping. A teacher's backend is held against its
        plain forward where it is chosen, so both sides hear the same answers here.
        """
        signals, kernels, compiled = self._ask(batch), self._arm.study.speed.kernels, self.trainee.compiled
        with without_dropout(*([self.trainee] if self._arm.study.student.dropout else [])):
            found = self._once(batch, signals)
            try:
                prefer("reference")
                self.trainee.compiled = False
                expected = self._once(batch, signals)
            finally:
                prefer(kernels)
                self.trainee.compiled = compiled
        away = distance(found, expected)
        engine = float(self._trial.engine.evaluate(batch, signals, 0)["total"])
        away = Distance(max(away.loss, distance(Step(engine, []), Step(expected.loss, [])).loss), away.gradient)
        return away, away.why(allowed(half=self._half, layers=self.trainee.shape.layers))

    def _once(self, batch: Batch, signals: Signals) -> Step:
        loss = self._forward(batch, signals, share=1)
        loss.backward()
        return taken(self.trainee, loss.detach())

    def _forward(self, batch: Batch, signals: Signals, *, share: int) -> torch.Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            return self.trainee(batch, signals, 0)["total"] / share

    def _ask(self, batch: Batch) -> Signals:
        teacher, needs = self._trial.teacher, self._trial.trainee.plan.teacher_needs(0)
        return teacher(batch, needs) if teacher is not None else Signals()
