"""Needs are questions that can be united, checked and priced; capturing Q, K, V changes no model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.models import attention
from harness.models.signals import Needs, run

from . import model_zoo as zoo
from .objective_cases import shape

SHAPE = shape(layers=5, hidden=16, heads=2)
NEEDS = st.builds(
    Needs, logits=st.sampled_from(["none", "masked", "tokens"]), states=st.frozensets(st.integers(0, 5), max_size=3),
    qkv=st.frozensets(st.integers(1, 5), max_size=3),
)  # fmt: skip


def price(needs: Needs) -> int:
    return needs.forward_flops(SHAPE, sequences=3, length=8, masked=4)


@given(a=NEEDS, b=NEEDS)
def test_uniting_needs_asks_for_both_and_costs_no_more_than_both(a: Needs, b: Needs) -> None:
    both = a | b
    assert both == b | a
    assert both | a == both
    assert both.states >= a.states | b.states
    assert both.qkv >= a.qkv | b.qkv
    assert max(price(a), price(b)) <= price(both) <= price(a) + price(b)


@given(needs=NEEDS)
def test_a_forward_ends_at_the_deepest_need(needs: Needs) -> None:
    full, cut = needs.full_layers(SHAPE), needs.cut_layer(SHAPE)
    assert full <= SHAPE.layers
    assert all(n <= full for n in needs.states)
    assert all(n <= full or n == cut for n in needs.qkv)
    assert cut is None or cut == full + 1
    assert (full == SHAPE.layers) or needs.logits == "none"


@given(needs=NEEDS)
def test_nothing_needed_costs_nothing_and_something_costs_something(needs: Needs) -> None:
    assert bool(needs) == (needs != Needs())
    free = needs.logits == "none" and not needs.qkv and needs.states <= {0}
    assert (price(needs) == 0) == free


@pytest.mark.parametrize("needs", [Needs(states=frozenset({6})), Needs(qkv=frozenset({0})), Needs(states=frozenset({-1})), Needs(qkv=frozenset({6}))], ids=str)  # fmt: skip
def test_a_layer_that_does_not_exist_is_refused(needs: Needs) -> None:
    with pytest.raises(ConfigError, match="of the student: it has layers 1 to 5"):
        needs.check(SHAPE, whose="student")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_our_attention_inside_transformers_own_forward_changes_nothing(name: str) -> None:
    """With pads: a mask that was not registered would be dropped in silence."""
    made = zoo.config(name)
    ids, mask = zoo.tokens((11, 4))
    if zoo.shape(made).causal:
        ids, mask = ids.flip(1), mask.flip(1)  # pads behind a token are its future: only those before it need a mask
    with torch.no_grad():
        ours: Any = zoo.build(made)(input_ids=ids, attention_mask=mask)
        theirs: Any = zoo.build(made, implementation="sdpa")(input_ids=ids, attention_mask=mask)
        unmasked: Any = zoo.build(made)(input_ids=ids)
    real = mask.bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(unmasked.logits[real], theirs.logits[real], rtol=1e-3)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_watching_captures_every_layer_once_and_nothing_afterwards(name: str) -> None:
    model: Any = zoo.build(zoo.config(name))
    ids, _ = zoo.tokens((7, 7))
    with attention.watched() as seen:
        model(input_ids=ids)
        with attention.watched() as inner:
            model(input_ids=ids)
    assert (len(seen), len(inner)) == (3, 3)
    model(input_ids=ids)
    assert len(seen) == 3
    shared = 1 if name == "llama-grouped" else 3
    for q, k, v in seen:
        assert q.shape == (2, 3, 7, 8)
        assert k.shape == v.shape == (2, shared, 7, 8)
        assert q.requires_grad


def test_watching_ends_even_when_the_model_fails() -> None:
    model: Any = zoo.build(zoo.config("bert"))
    with pytest.raises((IndexError, RuntimeError)), attention.watched():
        model(input_ids=torch.full((1, 3), zoo.VOCAB + 7))
    with attention.watched() as seen:
        pass
    model(input_ids=torch.zeros(1, 3, dtype=torch.long))
    assert seen == []


def test_the_gradient_through_captured_q_and_k_reaches_the_layers_below() -> None:
    ours = zoo.walker(zoo.config("bert"))
    ids, _ = zoo.tokens((7, 7))
    q, k, _ = run(ours, Needs(qkv=frozenset({2}), states=frozenset({3})), input_ids_BT=ids, positions_N=None).qkv[2]
    (q @ k.mT).sum().backward()
    reached = {n for n, p in ours.model.named_parameters() if p.grad is not None}
    assert any("layer.0.output.dense" in n for n in reached)
    assert not any("layer.1.output" in n or "layer.2." in n for n in reached)
