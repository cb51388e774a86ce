"""Our layer-by-layer forward is transformers' own, for every family; a cut forward is the whole one, cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.models.signals import Needs, run
from harness.objectives.composition import Plan
from harness.study import OptimizerSpec
from harness.trainee import Trainee, parameter_groups, tiny_batch

from . import model_zoo as zoo

EVERY = pytest.mark.parametrize("name", zoo.ZOO)
PADDED = pytest.mark.parametrize("lengths", [(13, 13), (13, 7, 2)], ids=["packed", "pads"])


def needs_of_everything(layers: int) -> Needs:
    return Needs(logits="tokens", states=frozenset(range(layers + 1)), qkv=frozenset(range(1, layers + 1)))


@EVERY
@PADDED
def test_the_forward_is_that_of_transformers(name: str, lengths: tuple[int, ...]) -> None:
    made = zoo.config(name)
    ids, mask = zoo.tokens(lengths)
    theirs: Any = zoo.build(made, implementation="sdpa")
    ours = zoo.walker(made)
    packed = len(set(lengths)) == 1
    close = {"rtol": 1e-9, "atol": 1e-9}
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        found = run(
            ours, needs_of_everything(3), input_ids_BT=ids, positions_N=None, attention_mask_BT=None if packed else mask
        )
    real = mask.flatten().bool()
    assert found.head is not None
    torch.testing.assert_close(found.head.logits(), expected.logits.flatten(0, 1)[real], **close)
    last = theirs.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found.states[3].flatten(0, 1)[real], last.flatten(0, 1)[real], **close)
    for number in (0, 1, 2):  # state 3 in transformers' list lacks the final norm in some versions and families
        torch.testing.assert_close(
            found.states[number].flatten(0, 1)[real], expected.hidden_states[number].flatten(0, 1)[real], **close
        )


@EVERY
@PADDED
def test_scores_from_captured_q_and_k_are_those_the_model_attends_with(name: str, lengths: tuple[int, ...]) -> None:
    made = zoo.config(name)
    ids, mask = zoo.tokens(lengths)
    ours = zoo.walker(made)
    ours.model.float()
    with torch.no_grad():
        # In float32, because ModernBert's eager softmax is, whatever its weights are in.
        expected = zoo.build(made, implementation="eager").float()(
            input_ids=ids, attention_mask=mask, output_attentions=True
        )
        found = run(ours, needs_of_everything(3), input_ids_BT=ids, positions_N=None, attention_mask_BT=mask)
    for number in (1, 2, 3):
        q, k, _ = found.qkv[number]
        weights = expected.attentions[number - 1]
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(weights == 0, -torch.inf)
        real = mask.bool()[:, None].expand(-1, q.shape[1], -1)
        torch.testing.assert_close(scores.softmax(-1)[real], weights[real], rtol=1e-4, atol=1e-5)


@EVERY
@PADDED
@pytest.mark.parametrize("number", [1, 2, 3])
def test_q_k_v_of_a_cut_layer_equal_the_captured_ones(name: str, lengths: tuple[int, ...], number: int) -> None:
    ours = zoo.walker(zoo.config(name))
    ids, mask = zoo.tokens(lengths)
    cut = Needs(qkv=frozenset({number}))
    assert cut.cut_layer(ours.shape) == number
    with torch.no_grad():
        short, whole = (
            run(ours, needs, input_ids_BT=ids, positions_N=None, attention_mask_BT=mask).qkv[number]
            for needs in (cut, needs_of_everything(3))
        )
    for a, b in zip(short, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@EVERY
def test_a_forward_runs_no_layer_beyond_the_deepest_need(name: str) -> None:
    ours = zoo.walker(zoo.config(name))
    ran: list[int] = []
    for index, layer in enumerate(ours.layers):
        layer.register_forward_hook(lambda *_, n=index + 1: ran.append(n))
    ids, _ = zoo.tokens((9, 9))
    for needs, expected in (
        (Needs(states=frozenset({1})), [1]),
        (Needs(qkv=frozenset({2})), [1]),
        (Needs(qkv=frozenset({1}), states=frozenset({2})), [1, 2]),
        (Needs(states=frozenset({0})), []),
        (Needs(logits="masked"), [1, 2, 3]),
    ):
        ran.clear()
        signals = run(ours, needs, input_ids_BT=ids, positions_N=torch.tensor([1, 4]))
        assert ran == expected
        assert set(signals.states) == set(needs.states)
        assert set(signals.qkv) == set(needs.qkv)
        assert (signals.head is not None) == (needs.logits != "none")


@EVERY
def test_a_cut_student_gets_the_whole_students_gradient(name: str) -> None:
    """Only what cannot influence the loss is left out: gradients are equal weight by weight."""
    made = zoo.config(name)
    teacher = zoo.shape(zoo.config(name))
    ids, _ = zoo.tokens((10, 10))
    batch = tiny_batch(zoo.VOCAB)
    batch.input_ids_BT, batch.positions_N, batch.labels_N = ids, torch.tensor([1, 5, 12]), torch.tensor([7, 8, 9])
    gradients: list[dict[str, torch.Tensor]] = []
    for whole in (False, True):
        plan = Plan({"name": "minilmv2", "relation_heads": 4}, student=zoo.shape(made), teacher=teacher)
        trainee = Trainee(zoo.build(made), zoo.shape(made), plan)
        needs = plan.student_needs(0) | (needs_of_everything(3) if whole else Needs())
        signals = trainee.signals(batch, needs)
        target = run(zoo.walker(made, seed=5), plan.teacher_needs(0), input_ids_BT=ids, positions_N=None)
        plan(0, signals, target, batch)["total"].backward()
        gradients.append({n: p.grad for n, p in trainee.named_parameters() if p.grad is not None})
    cut, full = gradients
    assert set(cut) == set(full)
    for key in full:
        torch.testing.assert_close(cut[key], full[key], rtol=1e-10, atol=1e-14)


@EVERY
def test_weights_without_gradient_stay_out_of_the_optimizer(name: str) -> None:
    made, optimizer = zoo.config(name), OptimizerSpec(weight_decay=0.1)
    trainee = Trainee(
        zoo.build(made),
        zoo.shape(made),
        Plan({"name": "minilmv2", "relation_heads": 4}, student=zoo.shape(made), teacher=zoo.shape(made)),
    )
    before = {n: p.detach().clone() for n, p in trainee.named_parameters()}
    groups = parameter_groups(trainee, zoo.shape(made), optimizer)
    chosen = {id(p) for group in groups.groups for p in group["params"]}
    named = dict(trainee.named_parameters())
    assert {n for n, p in named.items() if id(p) not in chosen} == set(groups.untrained)
    assert all(not named[n].requires_grad for n in groups.untrained)
    # The head and what lies behind the last layer's Q, K, V; never an embedding, never a lower layer.
    family = zoo.walker(made)
    layers = [f".{n}." for n in range(3)]
    assert not any(layers[0] in n or layers[1] in n or "embeddings" in n for n in groups.untrained)
    assert any(layers[2] in n for n in groups.untrained)
    assert sum(p.numel() for n, p in named.items() if n not in groups.untrained) < sum(
        p.numel() for p in named.values()
    )
    adamw = torch.optim.AdamW(groups.groups, lr=0.1)
    batch = tiny_batch(zoo.VOCAB)
    target = run(
        zoo.walker(made, seed=5), trainee.plan.teacher_needs(0), input_ids_BT=batch.input_ids_BT, positions_N=None
    )
    trainee(batch, target, 0)["total"].backward()
    adamw.step()
    moved = {n for n, p in trainee.named_parameters() if not torch.equal(p, before[n])}
    assert moved.isdisjoint(groups.untrained)
    assert moved == set(named) - set(groups.untrained)
    del family


@EVERY
def test_whole_model_training_leaves_nothing_out_but_what_the_head_never_reads(name: str) -> None:
    made = zoo.config(name)
    own = "clm" if zoo.shape(made).causal else "mlm"
    trainee = Trainee(zoo.build(made), zoo.shape(made), Plan(own, student=zoo.shape(made), teacher=None))
    assert parameter_groups(trainee, None, OptimizerSpec()).untrained == []


@EVERY
def test_pads_do_not_influence_real_tokens(name: str) -> None:
    ours = zoo.walker(zoo.config(name))
    ids, mask = zoo.tokens((13, 7))
    with torch.no_grad():
        padded = run(ours, needs_of_everything(3), input_ids_BT=ids, positions_N=None, attention_mask_BT=mask)
        alone = run(ours, needs_of_everything(3), input_ids_BT=ids[1:, :7], positions_N=None)
    assert padded.head is not None
    assert alone.head is not None
    torch.testing.assert_close(padded.head.logits()[13:], alone.head.logits(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded.states[3][1:, :7], alone.states[3], rtol=1e-9, atol=1e-9)


def test_masked_logits_are_rows_of_the_dense_ones() -> None:
    ours = zoo.walker(zoo.config("bert"))
    ids, mask = zoo.tokens((9, 5))
    positions = torch.tensor([2, 8, 10])
    with torch.no_grad():
        some = run(ours, Needs(logits="masked"), input_ids_BT=ids, positions_N=positions, attention_mask_BT=mask).head
        dense = run(ours, Needs(logits="tokens"), input_ids_BT=ids, positions_N=None, attention_mask_BT=mask).head
    assert some is not None
    assert dense is not None
    torch.testing.assert_close(some.logits(), dense.logits()[[2, 8, 10]], rtol=1e-12, atol=1e-12)
