"""A student that is compiled is compiled before its clocks start: what it takes belongs to the start, not to a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.errors import ConfigError
from harness.models.signals import Signals

if TYPE_CHECKING:
    from harness.ds_config import DsConfig
    from harness.train import Trial


def refuse_to_compile(ds_config: DsConfig) -> None:
    """Refuse engines whose weights come and go, or whose layers run twice, while a compiled graph holds them.

    Raises:
        ConfigError: ZeRO-3, or activation checkpointing.
    """
    reason = "ZeRO-3 gathers weights layer by layer" if ds_config.stage == 3 else ""
    if ds_config.activation_checkpointing:
        reason = "activation checkpointing runs layers again"
    if reason:
        raise ConfigError(
            "speed.compile_student", rule=f"{reason}, which a compiled graph cannot", remedy="choose another ds_config, or leave it out"
        )  # fmt: skip


def compile_ahead(trial: Trial) -> None:
    """Compile forward and backward of every phase on the first micro-batch; no gradient and no random number is left.

    The engine stays out of it: its module is called directly, and gradients are asked for by name, so none is accumulated.
    """
    plan, precision = trial.trainee.plan, trial.engine.config.precision
    half = torch.bfloat16 if "bf16" in precision else torch.float16
    batch = trial.stream.step(trial.progress.step)[0].to(trial.engine.device)
    devices = [trial.engine.device] if trial.engine.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autocast(trial.engine.device.type, dtype=half, enabled="autocast" in precision),
    ):
        for phase in range(len(plan.phases)):
            needs = plan.teacher_needs(phase)
            signals = trial.teacher(batch, needs) if trial.teacher is not None and needs else Signals()
            total = trial.trainee(batch, signals, phase)["total"]
            trained = [p for p in trial.trainee.parameters() if p.requires_grad]
            torch.autograd.grad(total, trained, allow_unused=True)
