"""What one device must hold while an arm trains: closed forms, checked against tensors counted in a live engine.

Weights, gradients and optimizer follow from ZeRO stage, precision and offload; activations from the saved
tensors of each layer; the teacher from where it is cut. DeepSpeed's own estimators are reported beside it: they
know neither teacher nor activations nor the precision, and assume half-precision weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.ds_config import DsConfig
from harness.plan.blueprint import all_needs, teacher_weights, weights_for

if TYPE_CHECKING:
    from harness.models.shapes import Shape
    from harness.models.signals import Needs
    from harness.setting import ArmSetting

# DeepSpeed's own defaults, for what a ds_config leaves unsaid: elements of a bucket of gradients or weights.
BUCKET_ELEMENTS = 500_000_000
# What the CUDA context, cuBLAS and NCCL take before the first tensor, and what the allocator cannot use.
CONTEXT_BYTES = 1.0e9
FRAGMENTATION = 0.05
# Logits that the loss holds at a time on a GPU, in fp32 and twice: student's and teacher's, or theirs and the gradient.
CHUNK_LOGITS = 1 << 25


@dataclass(frozen=True)
class Held:
    """Bytes of one device by what they hold; `host_bytes` is what offloading moves to the node's memory, per rank.

    total and trained count the student's weights and the objective's; widths are bytes of one element.
    """

    total: int
    trained: int
    weight_width: int
    gradient_width: int
    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    buckets_bytes: float
    activations_bytes: float
    teacher_bytes: float
    signals_bytes: float
    host_bytes: float
    largest_layer: int
    half_teacher: bool

    @property
    def states_bytes(self) -> float:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> float:
        """Everything, the context and what fragmentation wastes included."""
        tensors = (
            self.states_bytes + self.buckets_bytes + self.activations_bytes + self.teacher_bytes + self.signals_bytes
        )
        return tensors * (1 + FRAGMENTATION) + CONTEXT_BYTES


def held(arm: ArmSetting, ds_config: DsConfig, *, world: int, half_teacher: bool) -> Held:
    """What this arm holds on each of `world` devices, in its hungriest phase."""
    plan = arm.plan()
    weights = weights_for(arm.config, arm.shape, all_needs(plan, "student"))
    objective = sum(parameter.numel() for parameter in plan.parameters())
    total, trained = weights.total + objective, weights.trained + objective
    states = model_states(ds_config, total=total, trained=trained, world=world)
    micro = ds_config.micro_batch(sequences=arm.size.sequences, world=world)
    masked = arm.size.masked * micro // arm.size.sequences
    activations = signals = 0.0
    for phase in range(len(plan.phases)):
        needs = plan.student_needs(phase)
        activations = max(
            activations,
            saved_bytes(
                arm.shape, needs, sequences=micro, length=arm.size.length, masked=masked, precision=ds_config.precision
            ),
        )
        if arm.teacher is not None:
            signals = max(
                signals,
                passing_bytes(
                    arm.teacher.shape, plan.teacher_needs(phase), sequences=micro, length=arm.size.length, masked=masked,
                    width=2 if half_teacher else 4,
                ),
            )  # fmt: skip
    teacher = 0.0
    if arm.teacher is not None and plan.needs_teacher and not arm.remembers(plan):
        teacher = teacher_weights(arm.teacher.shape, all_needs(plan, "teacher")) * (2.0 if half_teacher else 4.0)
        if ds_config.teacher_divided:
            teacher /= world
    return Held(
        total=total, trained=trained, activations_bytes=activations, teacher_bytes=teacher, signals_bytes=signals,
        largest_layer=weights.largest_layer, half_teacher=half_teacher, **states,
    )  # fmt: skip


def model_states(ds_config: DsConfig, *, total: int, trained: int, world: int) -> dict[str, Any]:
    """Bytes of weights, gradients, optimizer and buckets on one device, after the backward and before the update.

    Stage 0 in fp32 (autocast too) steps plain weights; every other engine keeps an fp32 copy beside Adam's two
    moments. In half precision a stage above 0 turns its share of the gradients into fp32 for the update.
    """
    stage, half = ds_config.stage, ds_config.precision in ("bf16", "fp16")
    zero = ds_config.tree.get("zero_optimization", {})
    width = 2 if half else 4
    share = {0: (1, 1, 1), 1: (1, 1, world), 2: (1, world, world), 3: (world, world, world)}[stage]
    copied = half or stage > 0
    weights = width * total / share[0]
    gradients = width * trained / share[1]
    optimizer = (8 + 4 * copied) * trained / share[2]
    updating = 4 * trained / share[2] if half else 0.0
    buckets = 0.0
    if stage:
        elements = min(_elements(zero, "reduce_bucket_size"), BUCKET_ELEMENTS)
        doubled = 2 if zero.get("overlap_comm", stage == 3) and stage < 3 else 1
        buckets = float(elements * width * doubled) if zero.get("contiguous_gradients", True) else 0.0
    if stage == 3:
        # Weights gathered for the layers at hand.
        buckets += float(min(_elements(zero, "stage3_prefetch_bucket_size", 50_000_000), total) * width)
    host = 0.0
    if _offloaded(zero, "offload_optimizer"):
        host += optimizer + updating
        optimizer = updating = 0.0
    if stage == 3 and _offloaded(zero, "offload_param"):
        host += weights
        weights = 0.0
    return {
        "weight_width": width, "gradient_width": width, "weights_bytes": weights, "gradients_bytes": gradients + updating,
        "optimizer_bytes": optimizer, "buckets_bytes": buckets, "host_bytes": host,
    }  # fmt: skip


def _elements(zero: dict[str, Any], key: str, default: int = BUCKET_ELEMENTS) -> int:
    value = zero.get(key, default)
    return default if isinstance(value, str) else int(value)


def _offloaded(zero: dict[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") != "none"


def saved_bytes(
    shape: Shape, needs: Needs, *, sequences: int, length: int, masked: int, precision: str, recompute: bool = False
) -> float:
    """What a student's forward keeps for its backward.

    A layer saves the inputs of its norms, of its projections and of its activation: 8 H + 2 I elements a token
    (plain), 10 H + 4 I (gated: its two halves, the activation and their product). Under autocast half of the
    H-wide ones stay fp32. The attention's log-sum and the norms' statistics add 4 A + 16 bytes. The layer that is
    cut after Q, K, V saves its input (and the norm's); the embeddings up to two states. With `recompute` a layer
    keeps its input, unless its Q, K or V are asked for, and one layer at a time is whole again in the backward.
    """
    tokens = sequences * length
    width = 2 if precision in ("bf16", "fp16") else 4
    hidden, intermediate = shape.hidden, shape.intermediate
    if precision.endswith("autocast"):
        layer = 24 * hidden + (8 if shape.gated else 4) * intermediate
    else:
        layer = width * ((10 if shape.gated else 8) * hidden + (4 if shape.gated else 2) * intermediate)
    layer += 4 * shape.heads + 16
    full = needs.full_layers(shape)
    whole = full
    if recompute:
        asked = sum(1 for number in needs.attended if number <= full)
        whole = min(full, asked + 1)
    total = tokens * (whole * layer + (full - whole) * width * hidden + 2 * width * hidden)
    if needs.cut_layer(shape) is not None:
        total += tokens * width * (2 * hidden + hidden + 2 * shape.kv_width)
    positions = needs.positions(tokens=tokens, masked=masked)
    if positions:
        # The head's transform keeps about four E-wide rows; logits exist a chunk of them at a time.
        total += positions * 4 * width * shape.embedding + 2 * 4 * min(positions * shape.vocab, CHUNK_LOGITS)
    return float(total)


def passing_bytes(shape: Shape, needs: Needs, *, sequences: int, length: int, masked: int, width: int) -> float:
    """What a teacher's forward holds at most: the signals it gives out and the layer it is in."""
    if not needs:
        return 0.0
    tokens = sequences * length
    states = len(needs.states) * shape.hidden
    attention = sum(shape.widths[part] for number in needs.attended for part in needs.parts_of(number))
    working = (4 if shape.gated else 3) * shape.hidden + (3 if shape.gated else 2) * shape.intermediate
    positions = needs.positions(tokens=tokens, masked=masked)
    logits = positions * shape.embedding * width + 4 * min(positions * shape.vocab, CHUNK_LOGITS)
    return float(tokens * width * (states + attention + working) + logits)
