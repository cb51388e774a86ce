"""What each technique buys: the same step with one of them taken away, or one more put in, timed in turns.

Every variation starts from the same weights and sees the same batches in a bare loop; its first loss must be the
others', or it gets no time. `taken away` shows what the shipped step saves; `put in` what an option would save here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.bench.timing import WARM_UP, percentiles, wait
from harness.kernels.backend import Backend, prefer
from harness.models.signals import Needs, Signals
from harness.trainee import Trainee, parameter_groups

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.train import Trial

WHOLE = Needs(logits="tokens")
# Sums in another order, and a compiler's fused operations, in fp32; half precision rounds at 2⁻⁸.
AGREEMENT = {"fp32": 1e-4, "half": 2e-2}


@dataclass(frozen=True)
class Variation:
    """One difference from the shipped step."""

    name: str
    kernels: Backend = "auto"
    whole_teacher: bool = False
    whole_student: bool = False
    compiled_teacher: bool = False


SHIPPED = Variation("as shipped")
VARIATIONS = (
    SHIPPED,
    Variation("fused losses taken away", kernels="reference"),
    Variation("teacher's cut and masked-only head taken away", whole_teacher=True),
    Variation("student's cut and masked-only head taken away", whole_student=True),
    Variation("all of these taken away", kernels="reference", whole_teacher=True, whole_student=True),
    Variation("compiled teacher put in", compiled_teacher=True),
)


def ablate(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time `steps` steps of every arm in every variation that changes it.

    Returns {arm: [row, …]} and the rule; a row has the variation's name, p20/50/80, its time over the shipped step's,
    and `why` instead where its loss was another.
    """
    return {
        "rule": f"{WARM_UP} warm-up rounds, then {steps} timed, variations in turns; bare loops, no engine",
        "arms": {name: _arm(conductor, arm, steps=steps) for name, arm in conductor.setting.arms.items()},
    }


def _arm(conductor: Conductor, arm: ArmSetting, *, steps: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        trial = conductor.trial(arm, 0, Path(folder), lambda: False)
        taught = trial.teacher is not None
        wanted = [v for v in VARIATIONS if taught or not (v.whole_teacher or v.compiled_teacher)]
        steppers = {v.name: _stepper(conductor, arm, trial, v) for v in wanted}
        losses: dict[str, float] = {}
        times: dict[str, list[float]] = {name: [] for name in steppers}
        try:
            for number in range(WARM_UP + steps):
                batches = [batch.to(trial.engine.device) for batch in trial.stream.step(number)]
                for name, stepper in steppers.items():
                    loss, seconds = stepper(batches)
                    losses.setdefault(name, loss)
                    if number >= WARM_UP:
                        times[name].append(seconds)
        finally:
            prefer("auto")
            trial.engine.close()
    half = conductor.setting.ds_config.precision != "fp32"
    return _rows(losses, times, tolerance=AGREEMENT["half" if half else "fp32"])


def _rows(losses: dict[str, float], times: dict[str, list[float]], *, tolerance: float) -> list[dict[str, Any]]:
    expected, shipped = losses[SHIPPED.name], percentiles(times[SHIPPED.name])["p50_ms"]
    rows: list[dict[str, Any]] = []
    for name, loss in losses.items():
        row: dict[str, Any] = {"variation": name, "loss": loss}
        if abs(loss - expected) <= tolerance * abs(expected):
            step = percentiles(times[name])
            row |= {"step": step, "over_shipped": step["p50_ms"] / shipped}
        else:
            row["why"] = f"its loss {loss:.6g} is not the shipped step's {expected:.6g}"
        rows.append(row)
    return rows


def _stepper(
    conductor: Conductor, arm: ArmSetting, trial: Trial, variation: Variation
) -> Callable[[list[Any]], tuple[float, float]]:
    """One whole step of this variation; returns its loss and its seconds."""
    device, half = trial.engine.device, conductor.setting.ds_config.precision != "fp32"
    torch.manual_seed(0)  # the objective's projections: the same in every variation
    trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
    groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
    trainee.to(device)
    optimizer = torch.optim.AdamW(groups.groups, lr=1e-6, fused=True)
    plan, asked = trainee.plan, trainee.plan.teacher_needs(0)
    teacher = None
    if arm.teacher is not None and plan.needs_teacher:
        # The trial's own is cut already.
        teacher = conductor.teacher(arm, plan) if not variation.whole_teacher else conductor.whole_teacher(arm)
        if teacher is not None and variation.compiled_teacher:
            teacher.compile()

    def step(batches: list[Any]) -> tuple[float, float]:
        prefer(variation.kernels)
        wait(device)
        begun, loss = time.perf_counter(), torch.zeros((), device=device)
        for batch in batches:
            signals = Signals()
            if teacher is not None:
                signals = teacher(batch, asked | WHOLE if variation.whole_teacher else asked)
                if variation.whole_teacher and signals.head is not None:
                    signals.head.logits()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                needs = plan.student_needs(0)
                seen = trainee.signals(batch, needs | WHOLE if variation.whole_student else needs)
                if variation.whole_student and seen.head is not None:
                    seen.head.logits()
                total = plan(0, seen, signals, batch)["total"] / len(batches)
            total.backward()
            loss += total.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(device)
        return float(loss), time.perf_counter() - begun

    return step


def show_ablation(table: dict[str, Any]) -> None:
    """Print every arm's lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for arm, rows in table["arms"].items():
        view = Table(title=arm, title_justify="left")
        for heading in ("step", "p50, ms", "p20–p80", "over shipped"):
            view.add_column(heading, justify="left" if heading == "step" else "right")
        for row in rows:
            if "step" in row:
                times = row["step"]
                spread = f"{times['p20_ms']:.1f}–{times['p80_ms']:.1f}"
                view.add_row(row["variation"], f"{times['p50_ms']:.1f}", spread, f"{row['over_shipped']:.2f}×")
            else:
                view.add_row(row["variation"], row["why"], "", "")
        console.print(view)
    console.print(table["rule"], highlight=False)
