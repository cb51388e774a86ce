"""Probes on a frozen body read the layer that knows, choose it on held-out examples, and change nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.probes import Examples, ProbeData
from harness.evaluate import frozen, probes
from harness.evaluate.subject import Subject
from harness.study import ProbeSpec
from tests.unit.test_glue import config

HIDDEN = 16


class Layered:
    """A body whose state tells the label (the parity of the second token) in one layer only."""

    def __init__(self, *, knows: int) -> None:
        self.shape = SimpleNamespace(layers=3, hidden=HIDDEN)
        self.device = torch.device("cpu")
        self.knows = knows

    def signals(self, needs: Any, *, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> Any:
        generator = torch.Generator().manual_seed(int(input_ids_BT.sum()))
        size = (*input_ids_BT.shape, HIDDEN)
        states = {layer: torch.randn(size, generator=generator) for layer in needs.states}
        states[self.knows][..., 0] += 6.0 * (input_ids_BT[:, 1:2] % 2)
        # What stands at pads must not matter.
        return SimpleNamespace(states={k: v.masked_fill(~attention_mask_BT[..., None], 1e6) for k, v in states.items()})


def data(seed: int = 0) -> ProbeData:
    def part(count: int, offset: int) -> Examples:
        generator = np.random.default_rng(seed + offset)
        ids = generator.integers(10, 4000, (count, 8)).astype(np.int32)
        lengths = generator.integers(4, 9, count).astype(np.int32)
        return Examples(ids, lengths, (ids[:, 1] % 2).astype(np.int64))

    return ProbeData("parity", "?", ("even", "odd"), part(200, 1), part(100, 2), part(100, 3))


@pytest.mark.parametrize("knows", [1, 2, 3])
def test_the_layer_that_knows_is_found_and_scored(knows: int) -> None:
    accuracy, layer = frozen.evaluate(Layered(knows=knows), data())  # type: ignore[arg-type]
    assert layer == knows
    assert accuracy > 0.9


def test_a_body_that_knows_nothing_scores_chance_on_test() -> None:
    class Blank(Layered):
        def signals(self, needs: Any, **keys: Any) -> Any:
            keys["input_ids_BT"] = keys["input_ids_BT"] // 2 * 2
            return super().signals(needs, **keys)

    accuracy, _ = frozen.evaluate(Blank(knows=1), data())  # type: ignore[arg-type]
    assert abs(accuracy - 0.5) < 0.2


def test_a_frozen_probe_changes_no_weight_and_costs_one_forward_of_each_example() -> None:
    from harness.models.signals import Needs
    from harness.models.student import build_student

    subject = Subject(build_student(config(2), seed=1), device=torch.device("cpu"))
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    task = data()
    frozen.evaluate(subject, task)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    spec = ProbeSpec(tasks=["parity"], mode="frozen")
    body = Needs(states=frozenset({2}))
    expected = sum(
        body.forward_flops(subject.shape, sequences=1, length=int(length), masked=0)
        for part in (task.train, task.validation, task.test)
        for length in part.lengths
    )
    assert probes.flops(subject, task, spec=spec) == expected
