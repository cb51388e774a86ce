"""The engine's module: what is trained, what rests, what is exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.batch import Batch
from harness.data.tokenizer import load_tokenizer
from harness.models.configs import auto_model
from harness.models.signals import Needs, Signals, run
from harness.models.student import build_student, export
from harness.objectives.base import discover
from harness.objectives.composition import Plan
from harness.study import OptimizerSpec
from harness.trainee import VALIDATION, Trainee, parameter_groups, stand_in_signals, tiny_batch, trained_names

from . import model_zoo as zoo
from .objective_cases import directions, signal_tensors

EVERY = pytest.mark.parametrize("name", zoo.ZOO)
MINILM = {"name": "minilmv2", "relation_heads": 4}


def trainee_of(spec: Any, *, name: str = "bert", teacher: Any = None) -> Trainee:
    made = zoo.config(name)
    return Trainee(
        zoo.build(made),
        zoo.shape(made),
        Plan(spec, student=zoo.shape(made), teacher=teacher or zoo.shape(made)).double(),
    )


def make_batch() -> Batch:
    ids = torch.randint(4, zoo.VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([2, 7, 13, 30])
    return Batch(ids, positions, ids.flatten()[positions], 4.0, 36.0, 3.0)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        (name, objective)
        for name in zoo.ZOO
        for objective in sorted(discover())
        if zoo.shape(zoo.config(name)).causal in directions(objective)
    ],
)
def test_stand_in_signals_have_the_shapes_of_real_ones(name: str, objective: str) -> None:
    spec = {"name": objective, **({"relation_heads": 4} if objective == "minilmv2" else {})}
    trainee = trainee_of(spec, name=name)
    batch, needs = tiny_batch(zoo.VOCAB), trainee.plan.teacher_needs(0)
    real = Signals() if not needs else run(
        zoo.walker(zoo.config(name)), needs, input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N
    )  # fmt: skip
    fake = stand_in_signals(trainee.shape, needs, sequences=2, length=8, masked=16)
    shapes = [{n: t.shape for n, t in signal_tensors(s).items() if n != "head bias"} for s in (real, fake)]
    assert shapes[0] == shapes[1]
    assert (real.head is None) == (fake.head is None)


def test_each_phase_trains_its_own_weights_and_the_others_rest() -> None:
    trainee = trainee_of({"phases": [{"until": 0.9, **MINILM}, {"name": "mlm", "restart": True}]})
    groups = parameter_groups(trainee, trainee.shape, OptimizerSpec())
    assert groups.untrained == [], "a head warm-up repairs a headless student"
    names = {id(p): n for n, p in trainee.named_parameters()}
    resting = {
        names[id(p)]
        for group, on in zip(groups.groups, groups.active[0], strict=True)
        if not on
        for p in group["params"]
    }
    assert any("predictions" in n for n in resting)
    assert any("layer.2.output.dense" in n for n in resting)
    assert not any("layer.1." in n or "layer.2.attention.self" in n for n in resting)
    assert all(groups.active[1])
    assert trainee.plan.trains_head


def test_decay_touches_matrices_only() -> None:
    trainee = trainee_of("tinybert")
    groups = parameter_groups(trainee, trainee.shape, OptimizerSpec(weight_decay=0.3))
    for group in groups.groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}
    assert any(p is w for w in trainee.plan.parameters() for g in groups.groups for p in g["params"]), (
        "projections learn"
    )


def test_asking_which_weights_learn_leaves_no_trace() -> None:
    trainee = trainee_of("hidden")
    before = {n: p.clone() for n, p in trainee.named_parameters()}
    first, second = (trained_names(trainee, trainee.shape) for _ in range(2))
    assert first == second
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in trainee.named_parameters())


@EVERY
def test_validation_is_the_whole_students_own_loss_whatever_is_trained(name: str) -> None:
    trainee, batch = trainee_of(MINILM, name=name), make_batch()
    causal = trainee.shape.causal
    if causal:
        batch = replace(batch, labels_N=batch.input_ids_BT.flatten()[batch.positions_N + 1])
    with torch.no_grad():
        sums = trainee(batch, Signals(), VALIDATION)
    labels = torch.full((36,), -100)
    labels[batch.positions_N + causal] = batch.labels_N  # transformers shifts a causal model's labels itself
    model: Any = zoo.build(zoo.config(name), implementation="sdpa")
    with torch.no_grad():
        expected = model(input_ids=batch.input_ids_BT, labels=labels.view(3, 12))
    assert sums["loss"].item() / 4 == pytest.approx(expected.loss.item(), rel=1e-6)
    hits = (expected.logits.flatten(0, 1)[batch.positions_N].argmax(-1) == batch.labels_N).sum()
    assert sums["hits"] == hits


def test_projections_are_trained_with_the_student_and_never_exported(tmp_path: Path) -> None:
    trainee = trainee_of("tinybert")
    learned = [n for n in trainee.state_dict() if n.startswith("plan.")]
    assert len(learned) == 2
    assert not any("projection" in n for n in trainee.student.state_dict())
    tokenizer, _ = load_tokenizer("builtin")
    export(zoo.config("bert"), trainee.student.state_dict(), tmp_path, tokenizer=tokenizer, card={"made_by": "test"})
    _, report = auto_model("bert").from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@EVERY
def test_a_student_exported_without_its_untrained_top_is_the_rest_of_it(name: str, tmp_path: Path) -> None:
    made = zoo.config(name)
    trainee = trainee_of(MINILM, name=name)
    assert trainee.plan.trained_layers(trainee.shape) == 2
    assert trainee_of("clm" if trainee.shape.causal else "mlm", name=name).plan.trained_layers(trainee.shape) == 3
    tokenizer, _ = load_tokenizer("builtin")
    export(made, trainee.student.state_dict(), tmp_path, tokenizer=tokenizer, card={}, layers=2)
    loaded: Any = auto_model(made.model_type).from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids, _ = zoo.tokens((9, 9))
    with torch.no_grad():
        walker = zoo.walker(made)
        below = run(walker, Needs(states=frozenset({2})), input_ids_BT=ids, positions_N=None).states[2]
        found = loaded.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, walker.final(below), rtol=1e-9, atol=1e-9)
    assert zoo.shape(loaded.config).layers == 2


def test_students_of_one_seed_are_equal_and_models_share_no_config() -> None:
    made = zoo.config("bert")
    first, again, other = (build_student(made, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first.config is not again.config
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    build_student(made, seed=3)
    assert torch.equal(torch.rand(1), before), "building a student draws nothing from the global generator"
