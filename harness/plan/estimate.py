"""The plan: what every arm, and the whole study with its evaluation, will take. One JSON object."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.budget import Account
from harness.plan import advice, evaluation
from harness.plan.bill import Bill, Terms, bill
from harness.plan.disk import Disk, disk
from harness.plan.machines import Machine
from harness.plan.memory import Held, held
from harness.plan.outline import Sketch, epochs
from harness.plan.remembered import Remembered, remembered, steps_of
from harness.plan.remembered import row as row_of
from harness.plan.speed import Pace, Utilisation, judging_s, modelled
from harness.plan.steps import Stretch, overheads, step_price, stretches
from harness.plan.total import Made, total
from harness.units import Unit

if TYPE_CHECKING:
    from harness.objectives.composition import Plan
    from harness.plan.evaluation import Evaluation
    from harness.setting import ArmSetting


@dataclass(frozen=True)
class Clock:
    """Wall seconds of one trial by what they are spent on; `after_s` is its evaluation, on one device."""

    startup_s: float
    vouching_s: float
    training_s: float
    validation_s: float
    checkpoints_s: float
    after_s: float

    @property
    def run_s(self) -> float:
        """Until the student is written: every device of the run is held for so long."""
        return self.startup_s + self.vouching_s + self.training_s + self.validation_s + self.checkpoints_s


@dataclass(frozen=True)
class Expected:
    """One arm: its steps by phase, its evaluation, its time (None where nobody knows the speed)."""

    arm: ArmSetting
    plan: Plan
    parts: list[Stretch]
    judged: Evaluation
    clock: Clock | None
    held: Held
    cache: Remembered | None

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    def step_flops(self, phase: int) -> dict[str, int | float]:
        """FLOPs of one step by account."""
        charges = [c for meter in self.arm.analytic_meters(self.plan) for c in meter.next_step(phase)]
        return {c.account.value: c.amount for c in charges if c.unit is Unit.FLOP}

    def training_flops(self) -> dict[str, int | float]:
        """FLOPs of all steps by account."""
        flop: dict[str, int | float] = {}
        for part in self.parts:
            for account, amount in self.step_flops(part.phase).items():
                flop[account] = flop.get(account, 0) + part.steps * amount
        if self.cache is not None:
            flop[Account.TEACHER_CACHE.value] = self.cache.share_flop
        return flop

    def trunk_steps(self) -> int:
        """Steps before the cooldown: where a larger budget's trial begins on this one's trunk. 0 where it keeps none.

        The loop's rule: the trunk is saved before the first step whose middle lies in the cooldown.
        """
        schedule = self.arm.study.schedule
        if not schedule.keep_trunk or len(self.parts) > 1:
            return 0
        ledger = self.arm.ledger()
        constant = (1 - schedule.cooldown) * ledger.budget.limit - ledger.price(self.arm.upfront())
        return max(0, min(self.steps, math.floor(constant / self.parts[0].price - 0.5) + 1))

    def disk(self, found: Sketch) -> Disk:
        """What this arm's trials write."""
        spec = found.study.evaluation
        snapshots = spec.curve_points if spec.readout is not None and spec.readout.on_curve else 0
        return disk(self.held, found.ds_config, student=_student(self.arm, self.held), snapshots=snapshots)


def estimate(
    found: Sketch, *, machine: Machine | None, utilisation: Utilisation | None = None, terms: Terms | None = None,
    made: Made | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything a plan says, as plain JSON; amounts in base units (FLOP, tokens, bytes, seconds, joules).

    `made`: what another study of the same sweep makes for this one. The total leaves it out; an arm's row is a whole trial's.

    Raises:
        ConfigError: the budget is in a unit whose cost per step nobody knows here, or does not pay for one step.
    """
    terms = terms or Terms()
    if terms.grid_g_per_kwh is None:
        terms = Terms(terms.price, terms.currency, terms.watts, found.study.accounting.grid_g_per_kwh)
    memory = {
        name: held(arm, found.ds_config, world=found.world, half_teacher=_half_teacher(machine))
        for name, arm in found.arms.items()
    }
    pace = _pace(found, memory, machine, utilisation or Utilisation())
    watts = terms.watts if terms.watts is not None or pace is None else pace.watts
    expected = [_arm(found, arm, memory[name], pace, watts) for name, arm in found.arms.items()]
    rows = [_row(found, each, pace, watts, terms) for each in expected]
    table: dict[str, Any] = {
        "study": found.study.name,
        "budget": {"unit": found.study.limit.unit.value, "limit": found.study.limit.limit},
        "seeds": found.study.seeds,
        "machine": _machine(machine),
        "world": found.world,
        "engine": {"precision": found.ds_config.precision, "zero_stage": found.ds_config.stage},
        "speed": {"source": pace.source, "assumptions": list(pace.assumptions)} if pace else None,
        "watts_per_device": watts,
        "price_per_gpu_hour": terms.price,
        "currency": terms.currency,
        "grid_g_per_kwh": terms.grid_g_per_kwh,
        "arms": rows,
    }
    table["total"] = total(found, expected, pace, watts, terms, made or Made())
    table["seconds"] = table["total"]["wall_s"]
    table["notes"] = [*found.notes, *advice.notes(table, found), *_glue_notes(found)]
    return table


def _half_teacher(machine: Machine | None) -> bool:
    from harness.hardware import bf16_in_hardware

    return bf16_in_hardware() if machine is None else machine.preset.bf16


def _pace(found: Sketch, memory: dict[str, Held], machine: Machine | None, utilisation: Utilisation) -> Pace | None:
    if machine is not None:
        return modelled(found.arms, memory, machine, utilisation, ds_config=found.ds_config)
    from harness.plan.calibrate import calibrated

    return calibrated(found, {name: int(h.total + h.teacher_bytes // 2) for name, h in memory.items()})


def _arm(found: Sketch, arm: ArmSetting, memory: Held, pace: Pace | None, watts: float | None) -> Expected:
    plan = arm.plan()
    judged = evaluation.of_trial(found, arm, plan)
    clock = _overhead_clock(found, arm, memory, judged, pace)
    on_the_way = 0.0
    if clock is not None:
        seconds = {
            Account.STARTUP: clock.startup_s,
            Account.EVALUATION: clock.vouching_s + clock.validation_s,
            Account.CHECKPOINT: clock.checkpoints_s,
        }
        on_the_way = overheads(arm, seconds, world=found.world, watts=watts)
    times = [pace.steps[arm.arm.name, phase] if pace else None for phase in range(len(plan.phases))]
    prices = [step_price(arm, plan, phase, time, world=found.world, watts=watts) for phase, time in enumerate(times)]
    parts = stretches(arm, plan, prices=prices, on_the_way=on_the_way)
    if arm.remembers(plan) and len(plan.phases) == 1 and found.study.limit.unit.deterministic:
        ledger = arm.ledger()
        steps = steps_of(found, arm, plan, ledger.budget.limit - ledger.price(arm.upfront()))
        parts = [Stretch(0, steps, prices[0])]
    cache = remembered(found, arm, plan, sum(part.steps for part in parts), times[0], half_teacher=memory.half_teacher)
    if clock is not None and cache is not None:
        # Writing is no part of the run; reading takes the place of asking.
        asked = sum(part.steps * time.teacher_s for part, time in zip(parts, times, strict=True) if time is not None)
        training = sum(part.steps * time.total_s for part, time in zip(parts, times, strict=True) if time is not None)
        clock = Clock(**{**asdict(clock), "training_s": training - asked + (cache.reading_s or 0.0)})
    elif clock is not None:
        training = sum(part.steps * time.total_s for part, time in zip(parts, times, strict=True) if time is not None)
        clock = Clock(**{**asdict(clock), "training_s": training})
    return Expected(arm, plan, parts, judged, clock, memory, cache)


def _overhead_clock(
    found: Sketch, arm: ArmSetting, memory: Held, judged: Evaluation, pace: Pace | None
) -> Clock | None:
    """The clock of a trial whose training time is still to be filled in."""
    if pace is None:
        return None
    written = disk(memory, found.ds_config, student=_student(arm, memory), snapshots=0)
    saving = found.study.checkpoints * written.checkpoint_bytes / pace.write_byte_s
    # One rank vouches for the teacher while the others wait; validation is shared; each model is judged by one rank.
    return Clock(
        startup_s=pace.startup_s, vouching_s=judging_s(judged.before, pace), training_s=0.0,
        validation_s=judging_s(judged.during, pace) / found.world, checkpoints_s=saving,
        after_s=judging_s(judged.afterwards, pace),
    )  # fmt: skip


def _student(arm: ArmSetting, memory: Held) -> int:
    """Weights of the student without the objective's projections."""
    return memory.total - sum(parameter.numel() for parameter in arm.plan().parameters())


def _row(found: Sketch, each: Expected, pace: Pace | None, watts: float | None, terms: Terms) -> dict[str, Any]:
    arm, plan = each.arm, each.plan
    flop = each.training_flops()
    training_flop = sum(flop.values())
    flop[Account.EVALUATION.value] = each.judged.flop
    for charge in arm.upfront():
        if charge.unit is Unit.FLOP:
            flop[charge.account.value] = charge.amount
    written = each.disk(found)
    row: dict[str, Any] = {
        "name": arm.arm.name,
        "step_cost": _by_unit(each.step_flops(0)),
        "charged_per_step": each.parts[0].price,
        "steps": each.steps,
        "trunk_steps": each.trunk_steps(),
        "tokens": each.steps * arm.size.tokens,
        "epochs": epochs(found, arm.size.sequences, each.steps),
        "flop": flop,
        "training_flop": training_flop,
        "evaluation_flop": {
            "in_training": each.judged.in_training.flop,
            "afterwards": {item: judging.flop for item, judging in each.judged.after.items()},
        },
        "upfront": {c.account.value: {c.unit.value: c.amount} for c in arm.upfront()},
        "teacher_training": _teacher_training(each),
        "teacher_cache": row_of(each.cache),
        "memory": memory_row(each.held, found),
        "disk": {**asdict(written), "peak_bytes": written.peak_bytes(found.study.checkpoints)},
    }
    if len(plan.phases) > 1:
        row["phases"] = [
            {
                "until": plan.phases[part.phase].until, "steps": part.steps,
                "step_cost": _by_unit(each.step_flops(part.phase)),
            }
            for part in each.parts
        ]  # fmt: skip
    if each.clock is None or pace is None:
        return row | dict.fromkeys(("step_s", "time", "bill", "seconds", "training_seconds", "evaluation_seconds"))
    step = pace.steps[arm.arm.name, 0]
    clock = each.clock
    billed = _bill(clock, found.world, watts, terms)
    return row | {
        "step_s": {**asdict(step), "total_s": step.total_s},
        "time": {**asdict(clock), "run_s": clock.run_s},
        "bill": asdict(billed),
        "seconds": clock.run_s + clock.after_s,
        "training_seconds": clock.training_s,
        "evaluation_seconds": clock.vouching_s + clock.validation_s + clock.after_s,
    }


def _by_unit(flops: dict[str, int | float]) -> dict[str, dict[str, int | float]]:
    return {account: {Unit.FLOP.value: amount} for account, amount in flops.items()}


def _bill(clock: Clock, world: int, watts: float | None, terms: Terms) -> Bill:
    """One trial with its evaluation: all devices while it runs, one while it is judged."""
    busy = (clock.training_s + clock.validation_s) * world + clock.vouching_s + clock.after_s
    return bill(busy, clock.run_s * world + clock.after_s, watts=watts, terms=terms)


def _teacher_training(each: Expected) -> dict[str, Any] | None:
    from harness.owed import teacher_training

    arm = each.arm
    if arm.teacher is None or not each.plan.needs_teacher:
        return None
    told = teacher_training(arm.study, arm.teacher, Unit.FLOP)
    return {**told.record(), "charged": Account.TEACHER_TRAINING in arm.study.charged}


def memory_row(held_: Held, found: Sketch) -> dict[str, Any]:
    """A device's memory by part, and what DeepSpeed's own estimator says of the weights' part."""
    from harness.engine import zero_estimate

    zero = found.ds_config.tree.get("zero_optimization", {})
    theirs = zero_estimate(
        stage=found.ds_config.stage, weights=held_.trained, largest_layer=held_.largest_layer, devices=found.world,
        offload_optimizer="offload_optimizer" in zero, offload_param="offload_param" in zero,
    )  # fmt: skip
    parts = {
        key: getattr(held_, key)
        for key in (
            "weights_bytes", "gradients_bytes", "optimizer_bytes", "buckets_bytes", "activations_bytes", "teacher_bytes",
            "signals_bytes", "host_bytes", "total_bytes",
        )
    }  # fmt: skip
    return {**parts, "student_weights": held_.total, "trained_weights": held_.trained, "deepspeed_states_bytes": theirs}


def _machine(machine: Machine | None) -> dict[str, Any]:
    if machine is not None:
        preset = machine.preset
        return {
            "name": str(machine), "devices": machine.devices, "nodes": machine.nodes, "memory_bytes": preset.memory_bytes,
            "source": preset.source,
        }  # fmt: skip
    import torch

    from harness.hardware import describe, has_cuda

    facts = describe()
    if has_cuda():
        memory = float(torch.cuda.get_device_properties(0).total_memory)
        return {"name": facts["gpus"][0], "devices": 1, "nodes": 1, "memory_bytes": memory, "source": "this machine"}
    return {
        "name": f"{facts['cpu']}, {facts['threads_per_rank']} threads", "devices": 1, "nodes": 1,
        "memory_bytes": _host_memory(), "source": "this machine",
    }  # fmt: skip


def _host_memory() -> float | None:
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None


def _glue_notes(found: Sketch) -> list[str]:
    """What fine-tuning leaves out, what its scores cannot show, and how it departs from the published protocol."""
    from harness.data.glue_price import plan_notes
    from harness.study.glue import departure

    spec = found.study.evaluation.glue
    if spec is None or found.glue is None:
        return []
    said = departure(spec.grid, spec.select_on)
    return [*([said] if said else []), *found.glue.notes, *plan_notes(found.glue.plan, found.study)]
