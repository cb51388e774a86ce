"""The memory forms against real tensors: weights against autograd, activations against what it saves, model states
against a live engine."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from harness.ds_config import DsConfig
from harness.models.configs import config_of
from harness.models.families import family_of
from harness.models.shapes import FAMILIES, Shape, shape_of
from harness.models.signals import Needs, Signals, run
from harness.models.student import build_student
from harness.objectives.composition import Plan
from harness.plan import memory
from harness.plan.blueprint import all_needs, config_of_shape, on_meta, teacher_weights, weights_for
from harness.study import OptimizerSpec
from harness.trainee import Trainee, parameter_groups, tiny_batch, trained_names

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}


def small(family: str, *, layers: int = 2, hidden: int = 32, heads: int = 4, vocab: int = 100) -> tuple[Any, Shape]:
    config = config_of(
        family, layers=layers, hidden=hidden, heads=heads, intermediate=2 * hidden, vocab=vocab, length=64, init_std=0.02,
        dropout=0.0, special=SPECIAL,
    )  # fmt: skip
    return config, shape_of(config.to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_weights_are_those_that_autograd_finds(family: str) -> None:
    """Counted on the meta device from what an objective needs, against gradients of a real backward."""
    config, shape = small(family)
    _, teacher = small(family, layers=4, hidden=64)
    scratch = "clm" if shape.causal else "mlm"
    for objective in (
        scratch, "soft_targets", "tinybert", {"name": "tinybert", "layers": {1: 2}},
        {"name": "minilmv2", "relation_heads": 4}, {"name": "minilmv2", "relation_heads": 4, "student_layer": 1},
    ):  # fmt: skip
        plan = Plan(objective, student=shape, teacher=teacher)
        trainee = Trainee(build_student(config, seed=0), shape, plan)
        names = frozenset().union(*trained_names(trainee, teacher))
        found = {id(p): p.numel() for n, p in trainee.named_parameters() if n in names and n.startswith("student.")}
        counted = weights_for(config, shape, all_needs(plan, "student"))
        assert counted.trained == sum(found.values()), f"{family}, {objective}"
        assert counted.total == sum(p.numel() for p in trainee.student.parameters())


def test_a_large_model_is_counted_without_allocating_it() -> None:
    config = config_of(
        "bert", layers=24, hidden=1024, heads=16, intermediate=4096, vocab=30522, length=512, init_std=0.02, dropout=0.0,
        special=SPECIAL,
    )  # fmt: skip
    shape = shape_of(config.to_dict())
    family = on_meta(config, shape)
    assert all(parameter.device.type == "meta" for parameter in family.model.parameters())
    # BERT-large as its authors state it: 340 M with the pooler that a language model has not, 335 M without.
    assert weights_for(config, shape, Needs(logits="masked")).total == pytest.approx(335e6, rel=0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_teacher_holds_the_weights_that_a_run_keeps(family: str) -> None:
    """Against the cut itself, layer by layer."""
    from harness.models.teacher import Teacher, TeacherInfo

    _, shape = small(family, layers=3)
    for needs in (
        Needs(logits="masked"),
        Needs(states=frozenset({2})),
        Needs(qkv=frozenset({3})),
        Needs(states=frozenset({3})),
    ):
        teacher = Teacher.__new__(Teacher)
        teacher.info = TeacherInfo(path="made here", shape=shape)
        teacher.family = family_of(build_student(config_of_shape(shape), seed=0), shape)
        teacher.cut(needs)
        left = {id(p): p.numel() for p in teacher.family.model.parameters()}
        assert teacher_weights(shape, needs) == sum(left.values()), f"{family}, {needs}"


def saved(
    shape: Shape, config: Any, needs: Needs, precision: str, *, sequences: int, length: int, recompute: bool = False
) -> int:
    """Bytes that autograd keeps, weights and their casts left out by difference of two batch sizes."""

    def once(count: int) -> int:
        student = build_student(config, seed=0)
        if precision == "bf16":
            student = student.to(torch.bfloat16)
        weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights and tensor.is_floating_point():
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        ids = torch.randint(4, shape.vocab, (count, length), generator=torch.Generator().manual_seed(0))
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision.endswith("autocast"))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            signals = run(family_of(student, shape), needs, input_ids_BT=ids, positions_N=None, recompute=recompute)
        del signals
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    return once(2 * sequences) - once(sequences)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-autocast"])
@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm", "distilbert", "modernbert"])
def test_activations_are_what_autograd_saves(family: str, precision: str) -> None:
    """Within 10 % and never below by more than 2 %: the embeddings' share is an upper bound."""
    config, shape = small(family, layers=4, hidden=64)
    needs = Needs(states=frozenset({4}))
    sequences, length = 4, 32
    real = saved(shape, config, needs, precision, sequences=sequences, length=length)
    form = memory.saved_bytes(shape, needs, sequences=sequences, length=length, masked=0, precision=precision)
    assert 0.98 * real <= form <= 1.10 * real


def test_recomputing_keeps_inputs_and_one_layer() -> None:
    """What the forward keeps, and the one layer that the backward makes whole again on top."""
    config, shape = small("bert", layers=4, hidden=64)
    needs = Needs(states=frozenset({4}))
    sizes: dict[str, Any] = {"sequences": 4, "length": 32}
    real = saved(shape, config, needs, "fp32", recompute=True, **sizes)
    whole = memory.saved_bytes(shape, needs, masked=0, precision="fp32", **sizes)
    form = memory.saved_bytes(shape, needs, masked=0, precision="fp32", recompute=True, **sizes)
    one = whole - memory.saved_bytes(shape, Needs(states=frozenset({3})), masked=0, precision="fp32", **sizes)
    assert form < whole / 2
    assert 0.9 * real <= form - one <= 1.6 * real


def test_deeper_longer_and_larger_batches_hold_more() -> None:
    _, shape = small("bert")

    def form(layer: int, sequences: int, length: int) -> float:
        return memory.saved_bytes(
            shape, Needs(states=frozenset({layer})), sequences=sequences, length=length, masked=0, precision="bf16"
        )

    assert form(1, 4, 32) < form(2, 4, 32) < form(2, 8, 32) == pytest.approx(form(2, 4, 64))


def test_offloading_moves_bytes_and_loses_none() -> None:
    for stage in (1, 2, 3):
        plain, moved = (
            memory.model_states(
                DsConfig({"zero_optimization": {"stage": stage, **extra}, "bf16": {"enabled": True}}),
                total=1000, trained=900, world=4,
            )
            for extra in ({}, {"offload_optimizer": {"device": "cpu"}})
        )  # fmt: skip
        keys = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "host_bytes")
        assert sum(plain[key] for key in keys) == pytest.approx(sum(moved[key] for key in keys))
        assert moved["optimizer_bytes"] == 0 < plain["optimizer_bytes"]
        assert plain["host_bytes"] == 0 < moved["host_bytes"]


def test_every_stage_holds_less_on_more_devices_than_the_one_before() -> None:
    held = []
    for stage in range(4):
        states = memory.model_states(
            DsConfig({"zero_optimization": {"stage": stage, "reduce_bucket_size": 0}, "bf16": {"enabled": True}}),
            total=10**9, trained=10**9, world=8,
        )  # fmt: skip
        held.append(sum(states[key] for key in ("weights_bytes", "gradients_bytes", "optimizer_bytes")))
    assert held[1:] == sorted(held[1:], reverse=True)
    assert held[3] < held[2] < held[1] < held[0]


def live_bytes(before: list[torch.Tensor]) -> int:
    """Bytes of all tensors made since `before` was taken; it is kept alive, so that no address comes back."""
    known = {tensor.untyped_storage().data_ptr() for tensor in before}
    now = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors()}
    return sum(size for address, size in now.items() if address not in known)


def tensors() -> list[torch.Tensor]:
    gc.collect()
    return [
        o for o in gc.get_objects()
        if type(o) in (torch.Tensor, torch.nn.Parameter) and o.device.type == "cpu" and o.layout is torch.strided
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (2, "bf16-autocast"), (3, "bf16")],
)
def test_model_states_are_what_a_live_engine_holds(stage: int, precision: str) -> None:
    """All tensors alive after a backward of the second step, on one rank, within 2 %."""
    from harness.engine import Engine, connect

    tree: dict[str, Any] = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1000}}
    if stage == 3:
        tree["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
    if precision == "bf16":
        tree["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif precision == "bf16-autocast":
        tree["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    config, shape = small("bert", hidden=64, vocab=1000)
    ranks = connect()
    before = tensors()
    plan = Plan("mlm", student=shape, teacher=None)
    trainee = Trainee(build_student(config, seed=0), shape, plan)
    total = sum(p.numel() for p in trainee.parameters())
    groups = parameter_groups(trainee, None, OptimizerSpec())
    ds_config = DsConfig(tree)
    engine = Engine(trainee, groups.groups, ds_config, sequences=2, ranks=ranks, betas=(0.9, 0.98), eps=1e-6, clip=1.0)
    engine.set_learning_rate(1e-4, active=[True] * len(groups.groups))
    held = 0
    for step in range(2):
        loss = engine(tiny_batch(1000), Signals(), 0)["total"]
        engine.backward(loss)
        del loss
        held = live_bytes(before) if step else 0
        engine.step()
    form = memory.model_states(ds_config, total=total, trained=total, world=1)
    # In half precision the form also knows the fp32 gradients that exist while the update runs.
    updating = 4 * total if precision == "bf16" else 0
    expected = form["weights_bytes"] + form["gradients_bytes"] + form["optimizer_bytes"] - updating
    engine.close()
    assert held == pytest.approx(expected, rel=0.02)
