"""What a step of every arm takes: engine, bare PyTorch and their parts, arms taking turns.

All arms step in rounds, and in each round the engine's step and a bare PyTorch step of the same student, objective
and batches follow each other, so a machine whose speed drifts drifts for all alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.bench.breakdown import breakdown
from harness.bench.peak import measured_link, measured_peak, memory_in_use
from harness.bench.timing import WARM_UP, percentiles, wait
from harness.budget import Account
from harness.data.stream import prefetched
from harness.environment import versions
from harness.hardware import describe
from harness.kernels.backend import choices
from harness.models.signals import Signals
from harness.models.teacher import Teacher
from harness.trainee import Trainee, parameter_groups
from harness.units import Unit

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.train import Trial

BREAKDOWN_STEPS = 5


class Contender:
    """One arm, its trial and its bare twin, with the times seen so far."""

    def __init__(self, conductor: Conductor, arm: ArmSetting, folder: Path, cleanup: ExitStack) -> None:
        self.arm = arm
        folder.mkdir()
        self.trial = conductor.trial(arm, 0, folder, lambda: False)
        cleanup.callback(self.trial.engine.close)
        self.trial.engine.set_learning_rate(1e-6, active=self.trial.groups.active[0])
        self.batches = prefetched(self.trial.stream, 0, self.trial.engine.device)
        cleanup.callback(self.batches.close)
        self.bare = _bare_stepper(conductor, arm, self.trial) if conductor.ranks.world == 1 else None
        self.times: dict[str, list[float]] = {"step": [], "bare": [], "input stall": [], "bookkeeping": []}

    def round(self, *, keep: bool) -> None:
        """One engine step and one bare step on the same batches."""
        device = self.trial.engine.device
        wait(device)
        begun = time.perf_counter()
        batches = next(self.batches)
        waited = time.perf_counter() - begun
        self.trial._step(batches, 0)
        wait(device)
        elapsed = time.perf_counter() - begun
        booked = self._bookkeeping()
        bare = self.bare(batches) if self.bare else 0.0
        if keep:
            seen = {"step": elapsed, "bare": bare, "input stall": waited, "bookkeeping": booked}
            for name, seconds in seen.items():
                self.times[name].append(seconds)

    def _bookkeeping(self) -> float:
        """What the loop does beside the step: predict, ask the ledger, post and write."""
        trial = self.trial
        begun = time.perf_counter()
        expected = [charge for meter in trial.meters for charge in meter.next_step(0)]
        trial.ledger.affords(expected)
        trial.ledger.price(expected)
        trial.ledger.post((c for meter in trial.meters for c in meter.drain(0)), step=0)
        return time.perf_counter() - begun


def measure(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time `steps` steps of every arm.

    Returns one JSON object: machine, versions, the measured peak of a matrix product, and per arm the step's
    percentiles, tokens/s, algorithmic FLOP/s, MFU, its parts, the engine's step over the bare one, and the step's
    time over the from-scratch arm's against the same ratio in FLOPs.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        contenders = [
            Contender(conductor, arm, Path(folder) / name, cleanup) for name, arm in conductor.setting.arms.items()
        ]
        device = contenders[0].trial.engine.device
        for step in range(WARM_UP + steps):
            for contender in contenders:
                contender.round(keep=step >= WARM_UP)
        peak = measured_peak(device, half=conductor.setting.ds_config.precision != "fp32")
        arms = [_row(c, peak=peak["flop_per_s"] * conductor.ranks.world) for c in contenders]
        memory = memory_in_use(device)
        link = measured_link(device, ranks=conductor.ranks.world)
    _over_scratch(arms, {name: arm.plan().needs_teacher for name, arm in conductor.setting.arms.items()})
    return {
        "study": conductor.setting.study.name,
        "hardware": describe(),
        "versions": versions(),
        "world_size": conductor.ranks.world,
        "precision": conductor.setting.ds_config.precision,
        "zero_stage": conductor.setting.ds_config.stage,
        "rule": f"{WARM_UP} warm-up rounds, then {steps} timed; arms, and in each the engine and a bare loop, take turns",
        "peak": peak,
        "memory": memory,
        "link": link,
        "kernels": choices(),
        "arms": arms,
    }


def _row(contender: Contender, *, peak: float) -> dict[str, Any]:
    trial, times = contender.trial, contender.times
    charges = [c for meter in trial.meters for c in meter.next_step(0) if c.unit is Unit.FLOP]
    flop = sum(c.amount for c in charges)
    step = percentiles(times["step"])
    seconds = step["p50_ms"] * 1e-3
    start = len(times["step"]) + WARM_UP
    parts = breakdown(trial, range(start, start + BREAKDOWN_STEPS))
    asked = sum(c.amount for c in charges if c.account is Account.TEACHER_FORWARD)
    alone = sum(ms for part, ms in parts.items() if part not in ("data", "teacher"))
    row = {
        "name": contender.arm.arm.name,
        "parameters": sum(p.numel() for p in trial.trainee.student.parameters()),
        "step": step,
        "breakdown_ms": parts,
        "tokens_per_s": trial.stream.tokens_per_step / seconds,
        "flop_per_step": flop,
        "flop_per_s": flop / seconds,
        "mfu": flop / seconds / peak,
        "teacher_mfu": asked / (1e-3 * parts["teacher"]) / peak if asked else None,
        "student_mfu": (flop - asked) / (1e-3 * alone) / peak,
        "teacher_backend": trial.teacher.backend if isinstance(trial.teacher, Teacher) else None,
        "input_stall": percentiles(times["input stall"])["p50_ms"] / step["p50_ms"],
        "bookkeeping": percentiles(times["bookkeeping"])["p50_ms"] / step["p50_ms"],
        "micro_batch": trial.engine.micro_batch,
        "accumulation": trial.engine.accumulation,
        "trained_parameters": sum(p.numel() for group in trial.groups.groups for p in group["params"]),
    }
    if contender.bare is not None:
        bare = percentiles(times["bare"])
        row |= {"bare_step": bare, "engine_over_bare": step["p50_ms"] / bare["p50_ms"]}
    return row


def _over_scratch(rows: list[dict[str, Any]], taught: dict[str, bool]) -> None:
    """Each distilled arm's step over the first from-scratch arm's, in time and in FLOPs."""
    scratch = next((row for row in rows if not taught[row["name"]]), None)
    if scratch is None:
        return
    for row in rows:
        if taught[row["name"]]:
            time_ratio = row["step"]["p50_ms"] / scratch["step"]["p50_ms"]
            flop_ratio = row["flop_per_step"] / scratch["flop_per_step"]
            row["over_scratch"] = {
                "against": scratch["name"], "time": time_ratio, "flop": flop_ratio, "time_over_flop": time_ratio / flop_ratio,
            }  # fmt: skip


def _bare_stepper(conductor: Conductor, arm: ArmSetting, trial: Trial) -> Callable[[Any], float]:
    """The same step without DeepSpeed: forward, backward, clip, AdamW; returns its seconds."""
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

    def step(batches: Any) -> float:
        wait(device)
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
        wait(device)
        return time.perf_counter() - begun

    return step
