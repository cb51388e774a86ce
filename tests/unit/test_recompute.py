"""Activation checkpointing keeps less and changes no gradient."""

from __future__ import annotations

import pytest
import torch

from harness.models.signals import Signals
from harness.objectives.composition import Plan
from harness.trainee import Trainee, tiny_batch
from tests.unit import model_zoo as zoo


def gradients(family: str, *, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Every gradient of one MLM step, and how many bytes autograd kept for it."""
    made = zoo.config(family)
    shape = zoo.shape(made)
    torch.manual_seed(0)
    trainee = Trainee(zoo.build(made), shape, Plan("mlm", student=shape, teacher=None), recompute=recompute)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = trainee(tiny_batch(shape.vocab), Signals(), 0)["total"]
    total.backward()
    return {n: p.grad for n, p in trainee.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm", "distilbert", "modernbert"])
def test_recomputed_layers_give_the_same_gradients_bit_for_bit(family: str) -> None:
    plain, kept = gradients(family, recompute=False)
    again, kept_less = gradients(family, recompute=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert kept_less < kept
