"""How fast a study runs on the present hardware: a few real steps of every arm, on random weights and tokens.

The steps are the run's own: DeepSpeed's engine around student and objective, the teacher cut where the run cuts
it. Arms take turns, so that a machine whose speed drifts drifts for all, and in its turn an arm steps several times,
the first unseen: after another arm's step its weights are out of the caches, which in a run they are not. No weights are read.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.plan.machines import preset_of
from harness.plan.speed import POWER_SHARE, WRITE_BYTE_S, Pace, StepTime
from harness.units import Unit

if TYPE_CHECKING:
    from harness.models.shapes import Shape
    from harness.objectives.base import StepSize
    from harness.objectives.composition import Plan
    from harness.plan.outline import Sketch
    from harness.setting import ArmSetting

# Seconds that all timed steps may take together; how often arms take turns, and how many steps a turn has at least.
TIMED_S = 1.6
TURNS, FEWEST = 2, 2
# Without a GPU: a step of about a quarter of a second, and models that are built within a second.
CPU_FLOP = 1.5e10
CPU_WEIGHTS = 40_000_000
EVALUATION_BLOCKS = 64


@dataclass
class Stepper:
    """One arm in one phase, ready to step; `times` has (teacher, forward and backward, update) of every step."""

    key: tuple[str, int]
    scale: float
    step: Callable[[], tuple[float, float, float]]
    times: list[tuple[float, float, float]]

    def take_turn(self, seconds: float) -> None:
        """One step that is not timed, then timed ones until the seconds are over."""
        self.step()
        begun, seen = time.perf_counter(), 0
        while seen < FEWEST or time.perf_counter() - begun < seconds:
            self.times.append(self.step())
            seen += 1

    def result(self) -> StepTime:
        teacher, student, update = (median(column) for column in zip(*self.times, strict=True))
        return StepTime(student * self.scale, teacher * self.scale, update, 0.0)


def calibrated(found: Sketch, weights: dict[str, int]) -> Pace | None:
    """The pace here on one rank; None where the models are too large to try without a GPU.

    `weights` gives each arm's student and teacher together.

    Raises:
        ConfigError: several ranks run this, or the engine refuses the configuration.
    """
    import torch

    from harness.engine import connect, device_of
    from harness.hardware import has_cuda

    if not has_cuda() and sum(weights.values()) > CPU_WEIGHTS:
        return None
    ranks = connect()
    if ranks.world > 1:
        raise ConfigError(
            f"plan on {ranks.world} ranks", rule="a plan is made by one process", remedy="run it with plain python"
        )
    device = device_of(ranks)
    begun = time.perf_counter()
    drawn = _Drawn(device)
    steppers = [
        _stepper(found, arm, plan, phase, ranks, drawn)
        for arm in found.arms.values()
        for plan in [arm.plan()]
        for phase in range(len(plan.phases))
    ]
    startup = (time.perf_counter() - begun) / len(steppers)
    for _ in range(TURNS):
        for stepper in steppers:
            stepper.take_turn(TIMED_S / TURNS / len(steppers))
    first = next(iter(found.arms.values()))
    forward, tuning, head = _evaluation_speeds(found, first, drawn)
    name = torch.cuda.get_device_name(device) if has_cuda() else ""
    preset = preset_of(name) if name else None
    steps = min(len(stepper.times) for stepper in steppers)
    return Pace(
        {stepper.key: stepper.result() for stepper in steppers}, forward, tuning, head, tuning,
        POWER_SHARE * preset.watts if preset else None, startup, WRITE_BYTE_S,
        f"measured here: at least {steps} steps of every arm in turns, on {name or f'{torch.get_num_threads()} CPU threads'}",
        (f"checkpoints are written at {WRITE_BYTE_S / 1e9:.2g} GB/s",),
    )  # fmt: skip


class _Drawn:
    """Models with random weights, each drawn once: arms copy a student, which is faster, and share a teacher."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self._teachers: dict[Shape, Any] = {}
        self._students: dict[str, Any] = {}

    def student(self, arm: ArmSetting) -> Any:
        """A student of its own, on the CPU."""
        from harness.models.student import build_student

        key = arm.config.to_json_string()
        if key not in self._students:
            self._students[key] = build_student(arm.config, seed=0)
        return copy.deepcopy(self._students[key])

    def teacher(self, shape: Shape) -> Any:
        """A teacher that nobody changes."""
        if shape not in self._teachers:
            self._teachers[shape] = _random_teacher(shape, self.device)
        return self._teachers[shape]


def _stepper(found: Sketch, arm: ArmSetting, plan: Plan, phase: int, ranks: Any, drawn: _Drawn) -> Stepper:
    import torch

    from harness.engine import Engine
    from harness.models.signals import Signals, run
    from harness.trainee import Trainee, parameter_groups

    device = drawn.device
    sequences = _sequences(found, arm, plan, phase, device)
    size = type(arm.size)(sequences, arm.size.length, max(1, arm.size.masked * sequences // arm.size.sequences))
    batch = batch_of(size, arm.shape.vocab).to(device)
    trainee = Trainee(drawn.student(arm), arm.shape, plan, recompute=found.ds_config.activation_checkpointing)
    groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
    engine = Engine(
        trainee, groups.groups, found.ds_config, sequences=sequences, ranks=ranks, betas=arm.study.optimizer.betas,
        eps=arm.study.optimizer.eps, clip=arm.study.optimizer.clip,
    )  # fmt: skip
    engine.set_learning_rate(1e-6, active=groups.active[phase])
    needs = plan.teacher_needs(phase)
    teacher = drawn.teacher(arm.teacher.shape) if arm.teacher is not None and needs else None

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def step() -> tuple[float, float, float]:
        begun = now()
        signals = Signals()
        if teacher is not None:
            with torch.no_grad():
                signals = run(teacher, needs, input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N)
        taught = now()
        engine.backward(engine(batch, signals, phase)["total"])
        computed = now()
        engine.step()
        return taught - begun, computed - taught, now() - computed

    return Stepper((arm.arm.name, phase), arm.size.sequences / sequences, step, [])


def _sequences(found: Sketch, arm: ArmSetting, plan: Plan, phase: int, device: Any) -> int:
    """One micro-batch of the run, or on a CPU as much of it as fits into a short step."""
    micro = found.ds_config.micro_batch(sequences=arm.size.sequences, world=1)
    if device.type == "cuda" or found.ds_config.tree.get("train_micro_batch_size_per_gpu", "auto") != "auto":
        return micro
    flop = sum(c.amount for m in arm.analytic_meters(plan) for c in m.next_step(phase) if c.unit is Unit.FLOP)
    return max(1, min(micro, int(arm.size.sequences * CPU_FLOP / flop)))


def batch_of(size: StepSize, vocab: int) -> Any:
    """Random tokens, `size.masked` of them to be predicted."""
    import torch

    from harness.data.batch import Batch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (size.sequences, size.length), generator=generator)
    positions = torch.randperm(size.tokens, generator=generator)[: size.masked].sort().values
    return Batch(
        ids, positions, ids.flatten()[positions], float(size.masked), float(size.tokens), float(size.sequences)
    )


def _random_teacher(shape: Shape, device: Any) -> Any:
    """A teacher of the right sizes, in the precision a run would have it in; `run` goes as deep as is needed."""
    import torch

    from harness.hardware import bf16_in_hardware
    from harness.models import attention
    from harness.models.configs import auto_model
    from harness.models.families import family_of
    from harness.plan.blueprint import config_of_shape

    attention.register()
    with torch.random.fork_rng(devices=[]):
        model = auto_model(shape.family).from_config(config_of_shape(shape), attn_implementation=attention.NAME)
    dtype = torch.bfloat16 if bf16_in_hardware() else torch.float32
    return family_of(model.to(device=device, dtype=dtype).eval().requires_grad_(False), shape)


def _evaluation_speeds(found: Sketch, arm: ArmSetting, drawn: _Drawn) -> tuple[float, float, float]:
    """FLOP/s of frozen forwards, of fine-tuning and of a read-out's head, in fp32 as evaluations run."""
    import torch
    from torch.nn import functional

    from harness.evaluate.readout import ReadoutHead
    from harness.models.families import family_of
    from harness.models.signals import Needs, run
    from harness.study import ReadoutSpec

    device = drawn.device
    shape, length = arm.shape, arm.size.length
    needs = Needs(states=frozenset({shape.layers}))
    family = family_of(drawn.student(arm).to(device).eval(), shape)
    once = needs.forward_flops(shape, sequences=1, length=length, masked=0)
    blocks = EVALUATION_BLOCKS
    if device.type == "cpu":
        blocks = max(1, min(blocks, int(CPU_FLOP / once)))
    ids = torch.randint(0, shape.vocab, (blocks, length), device=device)
    tuned = ids[: max(1, blocks // 2)]

    def forward() -> None:
        with torch.no_grad():
            run(family, needs, input_ids_BT=ids, positions_N=None)

    def tuning() -> None:
        run(family, needs, input_ids_BT=tuned, positions_N=None).states[shape.layers].mean().backward()

    spec = found.study.evaluation.readout or ReadoutSpec()
    head = ReadoutHead(shape.hidden, shape.vocab).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    states = torch.randn(spec.positions, shape.hidden, device=device)
    labels = torch.randint(0, shape.vocab, (spec.positions,), device=device)

    def fit() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(head(states), labels).backward()
        optimizer.step()

    return (
        blocks * once / _seconds(forward, device),
        3 * len(tuned) * once / _seconds(tuning, device),
        3 * shape.head_flops(spec.positions) / _seconds(fit, device),
    )


def _seconds(action: Callable[[], None], device: Any) -> float:
    """The middle of three, after one that does not count."""
    import torch

    times = []
    for _ in range(4):
        begun = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[1]
