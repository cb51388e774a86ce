"""Throughput: what a step of each arm takes here, where the time goes, and what the engine costs.

Engine steps and bare PyTorch steps of the same student, objective, batches and optimizer alternate in one
process, so a machine whose speed drifts drifts for both. Percentiles are over steps after a warm-up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.budget import Account
from harness.environment import versions
from harness.hardware import describe
from harness.models.signals import Signals
from harness.trainee import Trainee, parameter_groups
from harness.units import Unit

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.train import Trial

WARM_UP = 3


def percentiles(times: list[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile in milliseconds."""
    ordered = sorted(times)
    return {f"p{p}_ms": 1e3 * ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))] for p in (20, 50, 80)}


def measure(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time `steps` steps of every arm.

    Returns one JSON object: machine, versions, and per arm the step's percentiles, tokens/s, algorithmic
    FLOP/s, the teacher's share, and the engine's step over the bare one.
    """
    arms = [_arm(conductor, arm, steps=steps) for arm in conductor.setting.arms.values()]
    return {
        "study": conductor.setting.study.name,
        "hardware": describe(),
        "versions": versions(),
        "world_size": conductor.ranks.world,
        "precision": conductor.setting.ds_config.precision,
        "zero_stage": conductor.setting.ds_config.stage,
        "rule": f"{WARM_UP} warm-up steps, then {steps} timed; engine and bare steps alternate",
        "arms": arms,
    }


def _arm(conductor: Conductor, arm: ArmSetting, *, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        trial = conductor.trial(arm, 0, Path(folder), lambda: False)
        trial.engine.set_learning_rate(1e-6, active=trial.groups.active[0])
        engine_step = _engine_stepper(trial)
        bare_step = _bare_stepper(conductor, arm, trial) if conductor.ranks.world == 1 else None
        engine_times, bare_times, teacher_times = [], [], []
        for step in range(WARM_UP + steps):
            elapsed, teaching = engine_step(step)
            bare = bare_step(step) if bare_step else 0.0
            if step >= WARM_UP:
                engine_times.append(elapsed)
                teacher_times.append(teaching)
                bare_times.append(bare)
        trial.engine.close()
    flop = sum(c.amount for meter in trial.meters for c in meter.next_step(0) if c.unit is Unit.FLOP)
    engine = percentiles(engine_times)
    seconds = engine["p50_ms"] * 1e-3
    row = {
        "name": arm.arm.name,
        "parameters": sum(p.numel() for p in trial.trainee.student.parameters()),
        "step": engine,
        "teacher_forward": percentiles(teacher_times),
        "tokens_per_s": trial.stream.tokens_per_step / seconds,
        "flop_per_s": flop / seconds,
        "micro_batch": trial.engine.micro_batch,
        "accumulation": trial.engine.accumulation,
    }
    if bare_step:
        bare_row = percentiles(bare_times)
        row |= {"bare_step": bare_row, "engine_over_bare": engine["p50_ms"] / bare_row["p50_ms"]}
    return row


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _engine_stepper(trial: Trial) -> Callable[[int], tuple[float, float]]:
    def step(number: int) -> tuple[float, float]:
        batches = [batch.to(trial.engine.device) for batch in trial.stream.step(number)]
        _wait(trial.engine.device)
        begun = time.perf_counter()
        trial._step(batches, 0)
        _wait(trial.engine.device)
        elapsed = time.perf_counter() - begun
        charges = {charge.account: charge.amount for charge in _drained(trial)}
        return elapsed, float(charges.get(Account.TEACHER_FORWARD, 0.0))

    return step


def _drained(trial: Trial) -> Iterator[Any]:
    trial.clock.drain(0)
    yield from trial.clock.flush()


def _bare_stepper(conductor: Conductor, arm: ArmSetting, trial: Trial) -> Callable[[int], float]:
    """The same step without DeepSpeed: forward, backward, clip, AdamW."""
    device = trial.engine.device
    trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
    groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
    trainee.to(device)
    optimizer = torch.optim.AdamW(
        groups.groups, lr=1e-6, betas=arm.study.optimizer.betas, eps=arm.study.optimizer.eps, fused=True
    )
    trained = [p for group in groups.groups for p in group["params"]]
    needs = trial.trainee.plan.teacher_needs(0)
    half = conductor.setting.ds_config.precision != "fp32"

    def step(number: int) -> float:
        batches = [batch.to(device) for batch in trial.stream.step(number)]
        _wait(device)
        begun = time.perf_counter()
        for batch in batches:
            signals = trial.teacher(batch, needs) if trial.teacher is not None else Signals()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                loss = trainee(batch, signals, 0)["total"] / len(batches)
            loss.backward()
        if arm.study.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, arm.study.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        return time.perf_counter() - begun

    return step


def show(table: dict[str, Any]) -> None:
    """Print the measurements for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    view = Table(
        title=f"{table['study']}: {table['precision']}, ZeRO-{table['zero_stage']}, {table['world_size']} ranks",
        title_justify="left",
    )
    for heading in ("arm", "step p50 (p20–p80)", "teacher", "tokens/s", "GFLOP/s", "engine / bare"):
        view.add_column(heading, justify="left" if heading == "arm" else "right")
    for row in table["arms"]:
        step = row["step"]
        view.add_row(
            row["name"],
            f"{step['p50_ms']:.1f} ms ({step['p20_ms']:.1f}–{step['p80_ms']:.1f})",
            f"{row['teacher_forward']['p50_ms']:.1f} ms",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['flop_per_s'] / 1e9:.0f}",
            f"{row['engine_over_bare']:.2f}×" if "engine_over_bare" in row else "–",
        )
    console.print(view)
    console.print(table["rule"], highlight=False)
