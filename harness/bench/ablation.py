"""What each technique buys: the same step with one of them taken away, or one more put in, timed in turns.

Every variation starts from the same weights and sees the same batches in a bare loop; its first loss must be the
others', or it gets no time. `taken away` shows what the shipped step saves; `put in` what an option would save here.
A variation that changes nothing for an arm is left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.bench.timing import WARM_UP, percentiles, wait
from harness.data.batch import Batch
from harness.engine import device_of
from harness.hardware import bf16_in_hardware, has_cuda
from harness.kernels.backend import Backend, prefer
from harness.lookahead import Lookahead
from harness.models import fp8
from harness.models.attention import written_out
from harness.models.signals import Needs, Signals
from harness.models.teacher import Backend as Teaching
from harness.models.teacher import Teacher
from harness.study import TeacherCacheSpec
from harness.teaching import remembered_teacher, teacher_dtype, whole_teacher
from harness.trainee import Trainee, parameter_groups

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting
    from harness.train import Trial

NOTHING, EVERYWHERE, LAST_LAYER = Needs(), Needs(logits="tokens"), Needs(logits="masked")
# Sums in another order, and a compiler's fused operations, in fp32; half precision rounds at 2⁻⁸.
AGREEMENT = {"fp32": 1e-4, "half": 2e-2}


@dataclass(frozen=True)
class Variation:
    """One difference from the shipped step; what `teacher` and `student` are asked beyond what the objective needs."""

    name: str
    kernels: Backend = "auto"
    teacher: Needs = NOTHING
    student: Needs = NOTHING
    dense_heads: bool = False
    written_out: bool = False
    padded: bool = False
    data_inside: bool = False
    other_precision: bool = False
    backend: Teaching = "plain"
    ahead: bool = False
    compiled_student: bool = False
    remembered: bool = False

    def asks(self, needs: Needs, more: Needs) -> Needs:
        """What a model is asked here instead of `needs`."""
        return needs | (EVERYWHERE if self.dense_heads and needs.logits == "masked" else more)

    def changes(self, taught: bool, student: Needs, teacher: Needs) -> bool:
        """Whether an arm's step differs from the shipped one."""
        if self.other_precision or self.backend != "plain" or self.ahead or self.remembered:
            return taught
        if self.dense_heads or self.teacher or self.student:
            asked = taught and self.asks(teacher, self.teacher) != teacher
            return asked or self.asks(student, self.student) != student or self.kernels != "auto"
        return True


SHIPPED = Variation("as shipped")


def variations() -> list[Variation]:
    """The shipped step and every difference from it; the teacher's other precision depends on the hardware."""
    half = "half-precision teacher taken away" if bf16_in_hardware() else "half-precision teacher put in, emulated"
    on_gpu = []
    if has_cuda():
        on_gpu = [
            Variation("teacher as CUDA graphs put in", backend="graphs"),
            Variation("teacher ahead of the student's backward put in", ahead=True),
        ]
    if has_cuda() and not fp8.obstacle(torch.device("cuda")):
        on_gpu.append(Variation("fp8 teacher put in", backend="fp8"))
    return [
        SHIPPED,
        Variation("fused losses taken away", kernels="reference"),
        Variation("heads at masked positions only taken away", dense_heads=True),
        Variation("teacher's cut taken away", teacher=LAST_LAYER),
        Variation("student's cut taken away", student=LAST_LAYER),
        Variation("all of these taken away", kernels="reference", teacher=EVERYWHERE, student=EVERYWHERE),
        Variation("fused attention taken away", written_out=True),
        Variation("packing taken away", padded=True),
        Variation("batches made ahead taken away", data_inside=True),
        Variation(half, other_precision=True),
        Variation("compiled teacher put in", backend="compiled"),
        *on_gpu,
        Variation("compiled student put in", compiled_student=True),
        Variation("teacher's cache put in, all logits", remembered=True),
    ]


def ablate(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time `steps` steps of every arm in every variation that changes it.

    Returns {arm: [row, …]} and the rule; a row has the variation's name, p20/50/80, its time over the shipped step's,
    and `why` instead where its loss was another. `pads` is the share of padding without packing.
    """
    share = pads_without_packing(conductor)
    return {
        "rule": f"{WARM_UP} warm-up rounds, then {steps} timed, variations in turns; bare loops, no engine",
        "pads": share,
        "arms": {name: _arm(conductor, arm, steps=steps, pads=share) for name, arm in conductor.setting.arms.items()},
    }


def pads_without_packing(conductor: Conductor) -> float:
    """The share of padding if every document, cut to blocks, had blocks of its own: of this corpus's held-out text."""
    setting = conductor.setting
    length = setting.corpus.block_length
    real = blocks = 0
    for document in setting.corpus.documents("validation"):
        tokens = len(setting.tokenizer(document.text, add_special_tokens=False)["input_ids"])
        own = max(1, -(-tokens // (length - 2)))
        real, blocks = real + tokens + 2 * own, blocks + own
    return 1 - real / (blocks * length)


def padded(batch: Batch, share: float, pad: int) -> Batch:
    """The same tokens and predictions in rows of which `share` is padding, rounded to whole tokens."""
    length = batch.input_ids_BT.shape[1]
    more = round(length * share / (1 - share))
    ids_BT = functional.pad(batch.input_ids_BT, (0, more), value=pad)
    mask_BT = functional.pad(torch.ones_like(batch.input_ids_BT), (0, more))
    rows_N = batch.positions_N // length
    return replace(batch, input_ids_BT=ids_BT, attention_mask_BT=mask_BT, positions_N=batch.positions_N + rows_N * more)


def _arm(conductor: Conductor, arm: ArmSetting, *, steps: int, pads: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        trial = conductor.trial(arm, 0, Path(folder), lambda: False)
        plan = trial.trainee.plan
        needs = plan.student_needs(0), plan.teacher_needs(0)
        wanted = [v for v in variations() if v == SHIPPED or v.changes(trial.teacher is not None, *needs)]
        steppers = {v.name: _stepper(conductor, arm, trial, v, steps=steps, pads=pads) for v in wanted}
        losses: dict[str, float] = {}
        times: dict[str, list[float]] = {name: [] for name in steppers}
        try:
            made = [
                [batch.to(trial.engine.device) for batch in trial.stream.step(n)] for n in range(WARM_UP + steps + 1)
            ]
            for number in range(WARM_UP + steps):
                for name, stepper in steppers.items():
                    loss, seconds = stepper(made[number : number + 2], number)
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
        allowed = AGREEMENT["half"] if "half-precision" in name or "fp8" in name else tolerance
        if abs(loss - expected) <= allowed * abs(expected):
            step = percentiles(times[name])
            row |= {"step": step, "over_shipped": step["p50_ms"] / shipped}
        else:
            row["why"] = f"its loss {loss:.6g} is not the shipped step's {expected:.6g}"
        rows.append(row)
    return rows


def _teacher(conductor: Conductor, arm: ArmSetting, plan: Any, variation: Variation, *, steps: int) -> Any:
    """The arm's teacher as this variation has it; None for an arm without one."""
    if arm.teacher is None or not plan.needs_teacher:
        return None
    if variation.remembered:
        speed = arm.study.speed.model_copy(update={"teacher_cache": TeacherCacheSpec(logits="all")})
        reading = replace(arm, study=arm.study.model_copy(update={"speed": speed}))
        return remembered_teacher(
            reading, conductor.setting.corpus, seed=0, ranks=conductor.ranks, stop=lambda: False,
            tell=conductor.tell.say, steps=WARM_UP + steps,
        )  # fmt: skip
    if variation.other_precision:
        dtype = torch.float32 if teacher_dtype() == torch.bfloat16 else torch.bfloat16
        teacher = Teacher(arm.teacher, device=device_of(conductor.ranks), dtype=dtype)
        teacher.cut(plan.teacher_needs(0))
        return teacher
    teacher = whole_teacher(arm, conductor.ranks)
    teacher.cut(variation.asks(plan.teacher_needs(0), variation.teacher))
    teacher.use(variation.backend)
    return teacher


def _stepper(
    conductor: Conductor, arm: ArmSetting, trial: Trial, variation: Variation, *, steps: int, pads: float
) -> Callable[[list[list[Batch]], int], tuple[float, float]]:
    """One whole step of this variation, given its batches and the next step's; returns its loss and its seconds."""
    device, half = trial.engine.device, conductor.setting.ds_config.precision != "fp32"
    torch.manual_seed(0)  # the objective's projections: the same in every variation
    trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
    groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
    trainee.to(device)
    trainee.compiled = variation.compiled_student
    optimizer = torch.optim.AdamW(groups.groups, lr=1e-6, fused=True)
    plan = trainee.plan
    teacher = _teacher(conductor, arm, plan, variation, steps=steps)
    asked = variation.asks(plan.teacher_needs(0), variation.teacher)
    needs = variation.asks(plan.student_needs(0), variation.student)
    special = conductor.setting.special
    ahead = Lookahead(teacher, device) if variation.ahead else None

    def step(steps: list[list[Batch]], number: int) -> tuple[float, float]:
        prefer(variation.kernels)
        batches, coming = steps
        if variation.padded:
            batches = [padded(batch, pads, special["pad"]) for batch in batches]
        wait(device)
        begun, loss = time.perf_counter(), torch.zeros((), device=device)
        if variation.data_inside:
            batches = [batch.to(device) for batch in trial.stream.step(number)]
        with written_out(variation.written_out):
            for batch, following in zip(batches, [*batches[1:], coming[0]], strict=True):
                loss += one(batch, following) / len(batches)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(device)
        return float(loss), time.perf_counter() - begun

    def one(batch: Batch, following: Batch) -> torch.Tensor:
        signals = (ahead.take if ahead else teacher)(batch, asked) if teacher is not None else Signals()
        if asked != plan.teacher_needs(0) and signals.head is not None:
            signals.head.logits()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            seen = trainee.signals(batch, needs)
            if needs != plan.student_needs(0) and seen.head is not None:
                seen.head.logits()
            total = plan(0, seen, signals, batch)["total"]
        if ahead is not None:
            ahead.ask(following, asked)
        (total / trial.stream.accumulation).backward()
        return total.detach()

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
