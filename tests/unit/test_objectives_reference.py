"""Every objective equals its paper's formula, value and gradient, in every number type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.objectives.base import discover

from .objective_cases import Case, directions, errors, make, shape
from .objective_references import REFERENCES

WIDE_TEACHER_OF_FOUR = shape(layers=4, hidden=20, heads=5)
WIDE_STUDENT, WIDE_TEACHER = shape(layers=3, hidden=12, heads=2), shape(layers=6, hidden=20, heads=5)

CASES = [
    Case("mlm"),
    Case("soft_targets"),
    Case("soft_targets", {"temperature": 1.0, "alpha": 0.9}),
    Case("soft_targets", {"positions": "tokens", "temperature": 3.0}),
    Case("soft_targets", {"alpha": 0.0}),
    Case("soft_targets", {"vocabulary": "mean"}, WIDE_STUDENT, WIDE_TEACHER),
    Case("distilbert"),
    Case("distilbert", {"soft": 0.0, "mlm": 0.0}),
    Case("distilbert", {"soft": 0.0, "cosine": 3.0}),
    Case("distilbert", {"cosine": 0.0, "temperature": 1.0}, WIDE_STUDENT, WIDE_TEACHER),
    Case("tinybert"),
    Case("tinybert", {"projection": "per_layer", "embedding": "none"}),
    Case("tinybert", {"scores": "head_average"}, WIDE_STUDENT, WIDE_TEACHER),
    Case("tinybert", {"embedding": "layer0_scores", "states": "last_unprojected", "state_index": "one_below"}),
    Case("tinybert", {"layers": {1: 2, 2: 3}, "score_layers": "last"}),
    Case("minilm"),
    Case("minilm", student=shape(layers=2, hidden=12, heads=2), teacher=shape(layers=3, hidden=20, heads=2)),
    Case("minilmv2"),
    Case("minilmv2", {"relation_heads": 4, "teacher_layer": 5}, WIDE_STUDENT, WIDE_TEACHER),
    Case("minilmv2", {"relation_heads": 2, "student_layer": 1, "query": 0.0, "value": 2.5}, WIDE_STUDENT, WIDE_TEACHER),
    Case("minilmv2", {"relation_heads": 2, "split": "heads_first", "pads": "included"}),
    Case("hidden"),
    Case("hidden", {"layers": {0: 0, 3: 5}}, WIDE_STUDENT, WIDE_TEACHER),
    Case("hidden", {"project": False}),
    Case("pkd", student=shape(layers=3, hidden=16, heads=2), teacher=shape(layers=6, hidden=16, heads=4)),
    Case("pkd", {"layers": "last"}),
]
# Causally once more, with keys and values that two heads or all of them share.
SHARED_STUDENT, SHARED_TEACHER = (
    shape(layers=2, hidden=24, heads=4, kv_heads=2), shape(layers=4, hidden=48, heads=4, kv_heads=1)
)  # fmt: skip
CAUSAL = [
    Case("clm", causal=True),
    *(replace(case, causal=True) for case in CASES if case.name != "mlm"),
    Case("tinybert", {}, SHARED_STUDENT, SHARED_TEACHER, causal=True),
    Case("tinybert", {"scores": "head_average"}, SHARED_STUDENT, WIDE_TEACHER_OF_FOUR, causal=True),
    Case("minilm", {}, SHARED_STUDENT, SHARED_TEACHER, causal=True),
    Case("minilmv2", {"relation_heads": 4}, SHARED_STUDENT, SHARED_TEACHER, causal=True),
    Case("minilmv2", {"relation_heads": 3, "query": 0.0, "key": 0.0}, SHARED_STUDENT, SHARED_TEACHER, causal=True),
]
BOTH = [c for case in [*CASES, *CAUSAL] for c in (case, case.with_pads())]

# Losses are computed in float32 or better whatever their inputs are, so a value errs by float32 rounding alone,
# unless a product of the objective's own (head, projection) runs in the inputs' type: its relative error is that
# type's eps. Gradients are returned in the inputs' type: half an eps, and the same for such products.
EPS = {d: torch.finfo(d).eps for d in (torch.float16, torch.bfloat16)}
HALF_VALUE, HALF_GRADIENT = 2.0, 4.0  # times eps


def test_every_objective_has_an_independent_reference() -> None:
    assert set(REFERENCES) == set(discover())
    assert {(case.name, case.causal) for case in [*CASES, *CAUSAL]} == {
        (n, c) for n in discover() for c in directions(n)
    }


@pytest.mark.parametrize("case", BOTH, ids=str)
def test_float64_equals_the_formula_within_1e_10(case: Case) -> None:
    value, gradient = errors(make(case), REFERENCES[case.name])
    assert value <= 1e-10
    assert gradient <= 1e-10


@pytest.mark.parametrize("case", BOTH, ids=str)
def test_float32_equals_the_formula_within_1e_5(case: Case) -> None:
    value, gradient = errors(make(case, dtype=torch.float32), REFERENCES[case.name])
    assert value <= 1e-5
    assert gradient <= 1e-5


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("case", BOTH, ids=str)
def test_half_inputs_equal_the_formula_within_their_own_rounding(case: Case, dtype: torch.dtype) -> None:
    value, gradient = errors(make(case, dtype=dtype), REFERENCES[case.name])
    assert value <= HALF_VALUE * EPS[dtype]
    assert gradient <= HALF_GRADIENT * EPS[dtype]


@pytest.mark.parametrize("case", [c for c in BOTH if discover()[c.name].needs_teacher], ids=str)
def test_a_half_teacher_beside_a_float32_student_costs_no_accuracy(case: Case) -> None:
    """What training on a CPU with bf16 hardware runs: the teacher's numbers are rounded, nothing else is."""
    world = make(case, dtype=torch.float32, teacher_dtype=torch.bfloat16)
    value, gradient = errors(world, REFERENCES[case.name])
    # The teacher's logits are a product in its own type.
    limit = 2 * EPS[torch.bfloat16] if world.teacher.head is not None else 1e-5
    assert value <= limit
    assert gradient <= limit


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    """Odd lengths, pads down to two tokens, unequal widths and heads wherever the method is defined for them."""
    name = draw(st.sampled_from(sorted(REFERENCES)))
    causal = draw(st.sampled_from(directions(name)))
    shallow, factor = draw(st.integers(2, 3)), draw(st.integers(1, 2))
    heads = draw(st.integers(1, 3))
    # Normalised vectors of one number have no gradient: nothing relative could be said of it.
    hidden = heads * draw(st.integers(2 if name in ("distilbert", "pkd") else 1, 5))
    heads_t, hidden_t, options = heads, hidden, {}
    if name in ("soft_targets", "minilmv2", "hidden", "mlm", "clm"):
        heads_t = draw(st.integers(1, 3))
        hidden_t = heads_t * draw(st.integers(1, 5))
    if name in ("tinybert", "minilm"):
        hidden_t = heads * draw(st.integers(1, 5))
    if name == "minilmv2":
        common = [n for n in range(1, 16) if hidden % n == 0 and hidden_t % n == 0]
        options = {"relation_heads": draw(st.sampled_from(common))}
    length = draw(st.integers(2, 9))
    lengths = tuple(draw(st.lists(st.integers(2, length), min_size=1, max_size=3)))
    student = shape(layers=shallow, hidden=hidden, heads=heads)
    teacher = shape(layers=shallow * factor, hidden=hidden_t, heads=heads_t)
    return Case(name, options, student, teacher, lengths, length, causal)


@given(case=drawn_cases(), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_drawn_shapes_equal_the_formula(case: Case, seed: int) -> None:
    value, gradient = errors(make(case, seed=seed), REFERENCES[case.name])
    assert value <= 1e-10
    assert gradient <= 1e-9
