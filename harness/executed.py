"""Executed FLOPs: what the processor multiplies, recomputation included, counted on one sequence.

The budget counts algorithmic FLOPs and never these. They differ by what fused attention recomputes in its
backward, by what kernels do more or less than the definition, and by activation recomputation; packed blocks
hold no padding. Products only, like the closed forms. A step's count is linear in its sequences, because every
block has as many masked positions as any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from harness.data.batch import Batch
from harness.kernels import backend
from harness.models.shapes import Shape
from harness.models.signals import Head, Signals
from harness.objectives.base import StepSize
from harness.trainee import Trainee, stand_in_signals

_aten = torch.ops.aten


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


def _added_product(total: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * left.numel() * right.shape[-1]


# torch counts fused attention on GPUs only, and no product that is added in place.
_UNCOUNTED = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    _aten.addmm_: _added_product,
    _aten.baddbmm_: _added_product,
}


class FlopCount(TorchDispatchMode):
    """Sums the products of every operator called inside it; kernels outside torch add what they registered."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0
        self._registered = 0

    @property
    def total(self) -> int:
        return self._seen + backend.registered_flop() - self._registered

    def __enter__(self) -> FlopCount:
        self._registered = backend.registered_flop()
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _UNCOUNTED:
            self._seen += _UNCOUNTED[packet](*args, **kwargs)
        elif packet in flop_registry:
            self._seen += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def executed_flop(
    trainee: Trainee, teacher: Shape | None, size: StepSize, *, autocast: torch.dtype | None
) -> tuple[list[int] | None, str]:
    """`executed_step_flop` of every phase and "", or None and the reason: what is only reported stops no training.

    An operator whose shapes torch's formulas do not expect, or too little memory beside the model, makes the figure
    unknown. A model or an objective that cannot run fails in the first step, with its own message.
    """
    phases = range(len(trainee.plan.phases))
    try:
        return [executed_step_flop(trainee, teacher, phase, size, autocast=autocast) for phase in phases], ""
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return None, f"executed FLOPs are unknown, counting them failed: {type(error).__name__}: {lines[0]}"


def executed_step_flop(
    trainee: Trainee, teacher: Shape | None, phase: int, size: StepSize, *, autocast: torch.dtype | None
) -> int:
    """FLOPs that the student and the objective execute in one step of this phase, on the trainee's device.

    The teacher's forward is not in it: without a backward it executes what its closed form says. Runs one
    sequence forward and backward; gradients are cleared again and the random generators put back.
    """
    device = next(trainee.parameters()).device
    masked = max(1, size.masked // size.sequences)
    needs = trainee.plan.teacher_needs(phase)
    one = _one_sequence(trainee.shape.vocab, size.length, masked).to(device)
    signals = Signals()
    if teacher is not None and needs:
        signals = _moved(stand_in_signals(teacher, needs, sequences=1, length=size.length, masked=masked), device)
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]), FlopCount() as count:
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss = trainee(one, signals, phase)["total"]
            loss.backward()
    finally:
        trainee.zero_grad(set_to_none=True)
    head = signals.head
    # A lazy teacher head is multiplied out by the loss; its product belongs to the teacher's forward.
    theirs = 0 if head is None else 2 * head.hidden_NE.shape[0] * head.weight_VE.numel()
    return (count.total - theirs) * size.sequences


def _one_sequence(vocab: int, length: int, masked: int) -> Batch:
    ids = (torch.arange(length) % vocab).view(1, length)
    positions = torch.arange(masked)
    return Batch(ids, positions, ids.flatten()[positions], float(masked), float(length), 1.0)


def _moved(signals: Signals, device: torch.device) -> Signals:
    head = signals.head
    return Signals(
        states={number: x.to(device) for number, x in signals.states.items()},
        qkv={number: tuple(x.to(device) for x in qkv) for number, qkv in signals.qkv.items()},  # pyright: ignore
        head=None if head is None else Head(head.hidden_NE.to(device), head.weight_VE.to(device), None, head.positions),
        parts={place: x.to(device) for place, x in signals.parts.items()},
    )
