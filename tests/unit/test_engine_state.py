"""What DeepSpeed's files hold can be read again as tensors and numbers, whatever Python wrote them."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, IntEnum

import torch

from harness.engine.files import plain


class Stage(int, Enum):
    """Like DeepSpeed's own: a number by another name."""

    gradients = 2


class Plain(IntEnum):
    one = 1


def test_enumerations_become_their_values_at_any_depth() -> None:
    state = {"a": OrderedDict(stage=Stage.gradients, rest=[1, (Plain.one, "x")]), "b": torch.ones(2)}
    found = plain(state)
    assert type(found["a"]["stage"]) is int
    assert found["a"] == OrderedDict(stage=2, rest=[1, (1, "x")])
    assert type(found["a"]) is OrderedDict
    assert type(found["a"]["rest"][1][0]) is int
    assert state["a"]["stage"] is Stage.gradients


def test_what_holds_no_enumeration_is_the_same_object() -> None:
    state = {"weights": torch.ones(2), "nested": {"list": [1, 2.0, None]}}
    assert plain(state) is state
