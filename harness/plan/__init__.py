"""What a study will cost before anything is spent: FLOPs exactly, time from a short calibration here.

The calibration runs a few real steps of every arm on random weights, so no weights are needed: neither
the teacher's nor anyone's. Time is for this machine, this number of threads and one rank.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.budget import Account
from harness.units import Unit, format_amount

if TYPE_CHECKING:
    from harness.models.shapes import Shape
    from harness.objectives.composition import Plan
    from harness.setting import ArmSetting, Setting

# Sequences of a calibration step: enough to run at speed, few enough to answer within seconds.
CALIBRATION_SEQUENCES = 32
CALIBRATION_FLOP = 3e11
FEW_STEPS = 1000


@dataclass(frozen=True)
class Stretch:
    """Steps of one phase."""

    phase: int
    steps: int


def stretches(arm: ArmSetting, plan: Plan, *, step_seconds: list[float]) -> list[Stretch]:
    """How many steps each phase gets: the loop's own rule, in closed form."""
    ledger = arm.ledger()
    ledger.post(arm.upfront(), step=0)
    limit, spent = ledger.budget.limit, ledger.spent
    found: list[Stretch] = []
    for number, phase in enumerate(plan.phases):
        if ledger.budget.unit is Unit.GPU_SECOND:
            price: float = step_seconds[number]
        else:
            price = ledger.price(c for meter in arm.analytic_meters(plan) for c in meter.next_step(number))
        affordable = int((limit - spent) // price)
        begun_in_phase = math.ceil((phase.until * limit - spent) / price) if phase.until < 1 else affordable
        steps = max(0, min(affordable, begun_in_phase))
        spent += steps * price
        found.append(Stretch(number, steps))
    return found


def estimate(setting: Setting) -> dict[str, Any]:
    """The plan as one JSON object: study, budget and arms, with notes a reader should not miss."""
    study = setting.study
    arms, notes = [], []
    for arm in setting.arms.values():
        plan = arm.plan()
        seconds_by_phase = [step_seconds(arm, plan, phase) for phase in range(len(plan.phases))]
        parts = stretches(arm, plan, step_seconds=seconds_by_phase)
        steps = sum(part.steps for part in parts)
        ledger = arm.ledger()
        costs = [[c for m in arm.analytic_meters(plan) for c in m.next_step(p)] for p in range(len(plan.phases))]
        price = ledger.price(costs[0])
        training = sum(part.steps * seconds_by_phase[part.phase] for part in parts)
        flop_per_step = sum(c.amount for c in costs[0] if c.unit is Unit.FLOP)
        speed = flop_per_step / seconds_by_phase[0]
        evaluation = evaluation_flop(setting, arm.shape, curve=plan.trains_head) / speed
        tokens = steps * arm.size.tokens
        row: dict[str, Any] = {
            "name": arm.arm.name,
            "step_cost": {c.account.value: {"flop": c.amount} for c in costs[0] if c.unit is Unit.FLOP},
            "charged_per_step": price if price else seconds_by_phase[0],
            "steps": steps,
            "tokens": tokens,
            "epochs": epochs(setting, arm, steps),
            "seconds": training + evaluation,
            "training_seconds": training,
            "evaluation_seconds": evaluation,
            "upfront": {c.account.value: {"flop": c.amount} for c in arm.upfront()},
        }
        if len(plan.phases) > 1:
            row["phases"] = [
                {
                    "until": plan.phases[part.phase].until,
                    "steps": part.steps,
                    "step_cost": {
                        c.account.value: {"flop": c.amount} for c in costs[part.phase] if c.unit is Unit.FLOP
                    },
                }
                for part in parts
            ]
        if steps < FEW_STEPS:
            notes.append(f"{arm.arm.name} gets {steps} steps; below {FEW_STEPS:,} a small difference is hard to see")
        arms.append(row)
    seeds = len(study.seeds)
    return {
        "study": study.name,
        "budget": {"unit": study.limit.unit.value, "limit": study.limit.limit},
        "seeds": study.seeds,
        "arms": arms,
        "seconds": seeds * sum(row["seconds"] for row in arms) + reference_flop(setting) / speed,
        "notes": notes,
    }


def step_seconds(arm: ArmSetting, plan: Plan, phase: int) -> float:
    """Seconds of one optimizer step on this machine, measured on a few sequences and scaled by FLOPs."""
    import torch

    from harness.models.signals import Signals, run
    from harness.models.student import build_student
    from harness.objectives.base import StepSize
    from harness.trainee import Trainee

    flop = sum(c.amount for m in arm.analytic_meters(plan) for c in m.next_step(phase) if c.unit is Unit.FLOP)
    fitting = int(arm.size.sequences * CALIBRATION_FLOP / flop)
    sequences = max(1, min(arm.size.sequences, CALIBRATION_SEQUENCES, fitting))
    masked = arm.size.masked * sequences // arm.size.sequences
    size = StepSize(sequences, arm.size.length, max(1, masked))
    batch = _batch(size, arm.shape.vocab)
    trainee = Trainee(build_student(arm.config, seed=0), arm.shape, plan)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=1e-6, fused=True)
    teacher = _random_teacher(arm) if plan.teacher_needs(phase) else None
    needs = plan.teacher_needs(phase)

    def step() -> None:
        signals = Signals()
        if teacher is not None:
            with torch.no_grad():
                signals = run(teacher, needs, input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N)
        trainee(batch, signals, phase)["total"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return sorted(times)[1] * arm.size.sequences / sequences


def _batch(size: Any, vocab: int) -> Any:
    import torch

    from harness.data.stream import Batch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (size.sequences, size.length), generator=generator)
    positions = torch.randperm(size.tokens, generator=generator)[: size.masked].sort().values
    return Batch(
        ids, positions, ids.flatten()[positions], float(size.masked), float(size.tokens), float(size.sequences)
    )


def _random_teacher(arm: ArmSetting) -> Any:
    import torch
    from transformers import AutoConfig

    from harness.models import attention
    from harness.models.configs import auto_model
    from harness.models.families import family_of
    from harness.models.teacher import resolve

    assert arm.teacher is not None
    attention.register()
    with torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(resolve(arm.teacher.path), local_files_only=True, trust_remote_code=False)
        model = auto_model(arm.teacher.shape.family).from_config(config, attn_implementation=attention.NAME)
    return family_of(model.float().eval().requires_grad_(False), arm.teacher.shape)


def epochs(setting: Setting, arm: ArmSetting, steps: int) -> float:
    """Passes over the most repeated source: the number a run's record gives."""
    from harness.data.stream import SampleStream

    sequences = arm.size.sequences
    stream = SampleStream(setting.corpus, seed=0, sequences=sequences, micro_batch=sequences)
    return max(stream.epochs(steps).values())


def reference_flop(setting: Setting) -> int:
    """Closed-form FLOPs of evaluating the untrained student and the teacher, once a study."""
    shapes = [next(iter(setting.arms.values())).shape]
    shapes += [arm.teacher.shape for arm in setting.arms.values() if arm.teacher is not None][:1]
    return sum(evaluation_flop(setting, shape, curve=False) for shape in shapes)


def evaluation_flop(setting: Setting, shape: Shape, *, curve: bool) -> int:
    """Closed-form FLOPs of evaluating one model; probes at their longest."""
    from harness.models.signals import Needs

    spec, length = setting.study.evaluation, setting.study.data.block_length
    masked = setting.predicted_per_block

    def forward(sequences: int, needs: Needs) -> int:
        return needs.forward_flops(shape, sequences=sequences, length=length, masked=sequences * masked)

    body, head = Needs(states=frozenset({shape.layers})), Needs(logits="masked")
    flop = forward(spec.mlm_blocks * (1 + (spec.curve_points if curve else 0)), head)
    if spec.readout is not None:
        once = forward(setting.readout_blocks + 2 * spec.mlm_blocks, body)
        once += 2 * 3 * shape.head_flops(spec.readout.steps * spec.readout.positions)
        flop += once * (1 + (spec.curve_points if spec.readout.on_curve else 0))
    if spec.choices is not None:
        flop += sum(forward(len(data.lengths_N), body) for data in setting.choices.values())
    if spec.probes is not None:
        examples = 3 * spec.probes.train_examples + 2 * spec.probes.test_examples
        flop += len(spec.probes.tasks) * spec.probes.epochs * forward(examples, body)
    return flop


def show(table: dict[str, Any]) -> None:
    """Print the plan for a person."""
    from rich.console import Console
    from rich.table import Table

    unit = Unit(table["budget"]["unit"])
    console = Console()
    view = Table(
        title=f"{table['study']}: {format_amount(table['budget']['limit'], unit)} for every arm", title_justify="left"
    )
    for heading in (
        "arm",
        "student step",
        "teacher forward",
        "objective",
        "steps",
        "tokens",
        "epochs",
        "time per seed",
    ):
        view.add_column(heading, justify="left" if heading == "arm" else "right")
    for row in table["arms"]:
        costs = [
            row["step_cost"].get(a.value, {}).get("flop", 0)
            for a in (Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE)
        ]
        view.add_row(
            row["name"], *(format_amount(c, Unit.FLOP) if c else "–" for c in costs), f"{row['steps']:,}",
            format_amount(row["tokens"], Unit.TOKEN), f"{row['epochs']:.2f}", _duration(row["seconds"]),
        )  # fmt: skip
    console.print(view)
    console.print(
        f"all {len(table['seeds'])} seeds with evaluation: about {_duration(table['seconds'])} on this machine",
        highlight=False,
    )
    for note in table["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
