"""What two forked ranks ask of a teacher that is whole on each and of one whose weights they share."""

from __future__ import annotations

from typing import Any

import torch

from harness.engine import connect, divided
from harness.models.signals import Needs, Signals
from harness.models.teacher import Teacher, inspect
from harness.trainee import tiny_batch

QUESTIONS = (
    Needs(logits="masked", states=frozenset({0, 2, 4}), qkv=frozenset({1})),
    Needs(states=frozenset({1}), qkv=frozenset({3})),
    Needs(logits="tokens"),
)


def tensors(signals: Signals) -> list[torch.Tensor]:
    found = [*signals.states.values(), *(part for qkv in signals.qkv.values() for part in qkv)]
    if signals.head is not None:
        found += [signals.head.hidden_NE, signals.head.logits()]
    return found


def compare(path: str, dtype: str) -> int:
    """0 when every signal is the same to the bit and the shares are smaller than the whole."""
    ranks = connect(timeout_s=60.0, control_s=60.0)
    info = inspect(path)
    made: dict[str, Any] = {"device": torch.device("cpu"), "dtype": getattr(torch, dtype)}
    for needs in QUESTIONS:
        whole, shared = Teacher(info, **made), Teacher(info, **made)
        for teacher in (whole, shared):
            teacher.cut(needs)
        before = shared.weight_bytes
        shared.divide(divided)
        held = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in shared.family.model.parameters())
        for _ in range(3):
            batch = tiny_batch(info.shape.vocab)
            mine, theirs = tensors(shared(batch, needs)), tensors(whole(batch, needs))
            assert len(mine) == len(theirs) > 0
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), needs
        assert held <= 0.6 * before, (held, before)
        print(f"rank {ranks.rank} holds {held} of {before} bytes", flush=True)
    return 0
