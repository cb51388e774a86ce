"""How long a step takes on hardware that is not here: a roofline with a stated share of the peak.

A student's step and a teacher's forward reach different shares. The teacher runs forward only, in half
precision, without gradients to keep, reduce or apply; a step also spends time on norms, softmax, activations,
the loss and the optimizer, which are no FLOPs of the ledger's. So the default for the teacher is higher.
Both are assumptions: what `bench` measures on the machine is better, and `--utilisation` takes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.budget import Account
from harness.errors import ConfigError
from harness.plan import scaling
from harness.plan.machines import Machine
from harness.units import Unit

if TYPE_CHECKING:
    from harness.plan.evaluation import Judging
    from harness.plan.memory import Held
    from harness.setting import ArmSetting

STUDENT_SHARE = 0.35
TEACHER_SHARE = 0.50
# fp32 outside tensor cores runs closer to its much lower peak.
EVALUATION_SHARE = 0.6
# Small work is bound by launches: seconds for one kernel, and kernels of one layer in the eager mode.
LAUNCH_S = 6e-6
FORWARD_KERNELS = 18
BACKWARD_KERNELS = 2 * FORWARD_KERNELS
# Host time of the engine and the loop around every optimizer step: hooks, buckets, the ledger.
ENGINE_S = 3e-3
# AdamW reads and writes weights, gradients and both moments: bytes moved for every weight it updates.
UPDATE_BYTES = 28
# Share of a card's rated power that a training run draws on average.
POWER_SHARE = 0.8
# What starting one trial and writing one checkpoint cost, where nobody has measured it.
STARTUP_S = 30.0
WRITE_BYTE_S = 0.5e9


@dataclass(frozen=True)
class StepTime:
    """Wall seconds of one optimizer step on every rank, by what they are spent on."""

    student_s: float
    teacher_s: float
    optimizer_s: float
    exposed_s: float

    @property
    def total_s(self) -> float:
        return self.student_s + self.teacher_s + self.optimizer_s + self.exposed_s

    def busy(self, account: Account) -> float:
        """As a run's ledger would book it: the optimizer and the waiting are part of the student's step."""
        if account is Account.TEACHER_FORWARD:
            return self.teacher_s
        return self.total_s - self.teacher_s if account is Account.STUDENT_STEP else 0.0


@dataclass(frozen=True)
class Pace:
    """How fast this study runs somewhere: seconds of a step by (arm, phase), and speeds of evaluation.

    Speeds are FLOP/s of one device: `forward_flop_s` of frozen models, `tuning_flop_s` of fine-tuning,
    `head_flop_s` of a read-out's head, `glue_flop_s` of GLUE's fine-tuning. `watts` is what one device draws, None where nobody knows.
    """

    steps: dict[tuple[str, int], StepTime]
    forward_flop_s: float
    tuning_flop_s: float
    head_flop_s: float
    glue_flop_s: float
    watts: float | None
    startup_s: float
    write_byte_s: float
    source: str
    assumptions: tuple[str, ...]


def judging_s(judging: Judging, pace: Pace) -> float:
    """Seconds of an evaluation on one device."""
    return (
        judging.forward / pace.forward_flop_s
        + judging.head / pace.head_flop_s
        + judging.tuning / pace.tuning_flop_s
        + judging.glue / pace.glue_flop_s
    )


@dataclass(frozen=True)
class Utilisation:
    """Shares of the data sheet's peak that a student's step and a teacher's forward reach."""

    student: float = STUDENT_SHARE
    teacher: float = TEACHER_SHARE

    @classmethod
    def parse(cls, text: str) -> Utilisation:
        """Read "0.4" (the teacher's share rises in proportion, to 1 at most) or "0.4,0.55".

        Raises:
            ConfigError: not one or two numbers above 0 and up to 1.
        """
        try:
            shares = [float(part) for part in text.split(",")]
        except ValueError:
            shares = []
        if not 1 <= len(shares) <= 2 or not all(0 < share <= 1 for share in shares):
            raise ConfigError(
                f"--utilisation {text}", rule="it is one or two shares of the peak, above 0 and up to 1",
                remedy="for example --utilisation 0.4, or 0.4,0.55 for student and teacher",
            )  # fmt: skip
        student = shares[0]
        teacher = shares[1] if len(shares) == 2 else min(1.0, student * TEACHER_SHARE / STUDENT_SHARE)
        return cls(student, teacher)


def modelled(
    arms: dict[str, ArmSetting], held: dict[str, Held], machine: Machine, used: Utilisation, *, ds_config: Any
) -> Pace:
    """The pace of every arm on a machine of the table; `held` gives each arm's numbers of weights."""
    preset = machine.preset
    steps: dict[tuple[str, int], StepTime] = {}
    for name, arm in arms.items():
        plan = arm.plan()
        for phase in range(len(plan.phases)):
            steps[name, phase] = step_time(arm, plan, phase, held[name], machine, used, ds_config)
    single = preset.single_flop_s * EVALUATION_SHARE
    assumed = (
        f"student step at {used.student:.0%} and teacher forward at {used.teacher:.0%} of {preset.half_flop_s / 1e12:,.0f} "
        f"TFLOP/s ({preset.source}); fp32 evaluation at {EVALUATION_SHARE:.0%} of {preset.single_flop_s / 1e12:,.1f} TFLOP/s",
        f"a kernel takes at least {LAUNCH_S * 1e6:.0f} µs to launch, {FORWARD_KERNELS} of them a layer; the engine adds "
        f"{ENGINE_S * 1e3:.0f} ms a step",
        f"rings reach {scaling.LINK_SHARE:.0%} of {preset.link_byte_s / 1e9:,.0f} GB/s inside a node"
        + (f" and of {preset.network_byte_s / 1e9:,.4g} GB/s between nodes" if machine.nodes > 1 else "")
        + f"; with overlap_comm {scaling.OVERLAPPED:.0%} of it hides behind the backward",
        f"power is {POWER_SHARE:.0%} of {preset.watts:,.0f} W a device, without hosts and cooling; "
        f"a trial starts in {STARTUP_S:.0f} s; checkpoints are written at {WRITE_BYTE_S / 1e9:.2g} GB/s",
    )
    # GLUE's products are made in bf16 where the hardware has it.
    glue = used.student * preset.half_flop_s if preset.bf16 else single
    return Pace(
        steps, single, single, single, glue, POWER_SHARE * preset.watts, STARTUP_S, WRITE_BYTE_S,
        f"assumed for {machine}", assumed,
    )  # fmt: skip


def step_time(
    arm: ArmSetting, plan: Any, phase: int, held: Held, machine: Machine, used: Utilisation, ds_config: Any
) -> StepTime:
    """One step: the larger of arithmetic and launches, the update's memory traffic, and the waiting for others."""
    preset, ranks = machine.preset, machine.devices
    micro = ds_config.micro_batch(sequences=arm.size.sequences, world=ranks)
    accumulation = arm.size.sequences // (micro * ranks)
    counted = (Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE)
    flop: dict[Account, float] = dict.fromkeys(counted, 0.0)
    for meter in arm.analytic_meters(plan):
        for charge in meter.next_step(phase):
            if charge.unit is not Unit.FLOP:
                continue
            if charge.account is Account.TEACHER_CACHE:
                # Its charge may be a share: what asking takes is what somebody's asking took.
                flop[Account.TEACHER_FORWARD] += arm.sample_flop(plan) * arm.size.sequences
            else:
                flop[charge.account] += charge.amount
    half = preset.half_flop_s
    student_peak = preset.single_flop_s if ds_config.precision == "fp32" else half
    teacher_peak = half if preset.bf16 else preset.single_flop_s
    layers = max(1, plan.student_needs(phase).full_layers(arm.shape))
    again = 4 / 3 if ds_config.activation_checkpointing else 1.0  # one more forward
    student = max(
        again * (flop[Account.STUDENT_STEP] + flop[Account.OBJECTIVE]) / ranks / (used.student * student_peak),
        accumulation * layers * (FORWARD_KERNELS + BACKWARD_KERNELS) * LAUNCH_S,
    )
    teacher = 0.0
    if arm.teacher is not None and plan.teacher_needs(phase):
        depth = max(1, plan.teacher_needs(phase).full_layers(arm.teacher.shape))
        teacher = max(
            flop[Account.TEACHER_FORWARD] / ranks / (used.teacher * teacher_peak),
            accumulation * depth * FORWARD_KERNELS * LAUNCH_S,
        )
    share = ranks if ds_config.stage else 1
    update = held.trained * UPDATE_BYTES / share / preset.memory_byte_s
    step = scaling.traffic(
        stage=ds_config.stage, gradient_bytes=held.trained * held.gradient_width,
        weight_bytes=held.trained * held.weight_width, accumulation=accumulation,
    )  # fmt: skip
    overlap = bool(ds_config.tree.get("zero_optimization", {}).get("overlap_comm", ds_config.stage == 3))
    waiting = scaling.exposed(scaling.seconds(step, scaling.fabric(machine)), student * 2 / 3, overlap=overlap)
    return StepTime(student, teacher, update + ENGINE_S, waiting)
