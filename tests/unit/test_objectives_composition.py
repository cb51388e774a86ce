"""What a study may write under `objective`: weighted terms, phases by fraction, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.models.signals import Needs
from harness.objectives.base import StepSize
from harness.objectives.composition import Plan, parse

from .objective_cases import STUDENT, TEACHER, shape

LARGE = shape(layers=4, hidden=64, heads=8)


def plan(spec: Any, *, student: Any = STUDENT, teacher: Any = TEACHER) -> Plan:
    return Plan(spec, student=student, teacher=teacher)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quantum", "known are .*mlm"),
        (17, "known are"),
        ({"weight": 1.0}, "known are"),
        ({"name": "soft_targets", "temperature": 0}, "temperature = 0"),
        ({"name": "soft_targets", "temperature": -1.0}, "temperature"),
        ({"name": "soft_targets", "alpha": 1.5}, "alpha"),
        ({"name": "soft_targets", "positions": "all"}, "positions"),
        ({"name": "mlm", "weight": 0}, "sum to nothing"),
        ({"name": "mlm", "weight": -1}, "numbers ≥ 0"),
        ({"name": "mlm", "weight": float("nan")}, "numbers ≥ 0"),
        ({"name": "mlm", "weight": True}, "numbers ≥ 0"),
        ({"phases": [{"until": True, "name": "mlm"}]}, "ends rise within"),
        ({"name": "distilbert", "soft": 0, "mlm": 0, "cosine": 0}, "sum to nothing"),
        ({"name": "distilbert", "soft": 0, "cosine": 0}, "nothing is asked of the teacher"),
        ({"name": "minilmv2", "query": 0, "key": 0, "value": 0}, "sum to nothing"),
        (
            {"name": "minilmv2", "relation_heads": 7},
            "must divide the student's width 48.*1, 2, 3, 4, 6, 8, 12, 16, 24, 48",
        ),
        ({"name": "minilmv2", "relation_heads": 0}, "relation_heads"),
        ({"name": "minilmv2", "teacher_layer": 5}, "layer 5 of the teacher: it has layers 1 to 4"),
        ({"name": "minilmv2", "student_layer": 3}, "layer 3 of the student: it has layers 1 to 2"),
        ({"name": "minilmv2", "teacher_layer": 0}, "teacher_layer"),
        ({"name": "hidden", "layers": {3: 1}}, "layer 3 of the student"),
        ({"name": "hidden", "layers": {1: 9}}, "layer 9 of the teacher"),
        ({"name": "hidden", "layers": {}}, "no state is compared"),
        ({"name": "tinybert", "layers": {1: -1}}, "layer -1 of the teacher"),
        ({"name": "tinybert", "layers": {}}, "no layer is compared"),
        ({"terms": []}, "terms is a list"),
        ({"terms": ["mlm", "mlm"]}, "listed twice"),
        ({"terms": ["mlm"], "weight": 2}, "stands alone"),
        ({"terms": [{"name": "mlm", "weight": 0}, {"name": "soft_targets", "weight": 0}]}, "sum to nothing"),
        ({"phases": []}, "phases is a list"),
        ({"phases": [{"until": 0.5, "name": "mlm"}]}, "ends at 1.0"),
        ({"phases": [{"until": 0.7, "name": "mlm"}, {"until": 0.7, "name": "hidden"}]}, "rise"),
        ({"phases": [{"until": 1.5, "name": "mlm"}]}, "rise within"),
        ({"phases": [{"until": "soon", "name": "mlm"}]}, "rise within"),
        ({"phases": [{"until": 0.5, "name": "mlm"}, {"name": "hidden", "restart": 1}]}, "true or false"),
        ({"phases": ["mlm"]}, "a phase is a mapping"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_is_spent(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        plan(spec)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "teacher", "message"),
    [
        ("minilm", LARGE, "4 student heads and 8 teacher heads.*minilmv2"),
        ("tinybert", LARGE, "4 student heads and 8 teacher heads.*head_average"),
        ("distilbert", LARGE, "hidden sizes 48 and 64"),
        ("pkd", LARGE, "hidden sizes 48 and 64"),
        ({"name": "hidden", "project": False}, LARGE, "hidden sizes 48 and 64"),
        ({"name": "tinybert", "states": "last_unprojected", "scores": "head_average"}, LARGE, "hidden sizes 48 and 64"),
        ({"name": "minilmv2", "relation_heads": 48}, LARGE, "the teacher's width 64.*1, 2, 4, 8, 16"),
        ("tinybert", shape(layers=5, hidden=48, heads=4), "5 teacher layers over 2 student layers"),
        ("hidden", shape(layers=3, hidden=48, heads=4), "3 teacher layers over 2 student layers"),
        ("pkd", shape(layers=1, hidden=48, heads=4), "2 student layers for 1"),
    ],
    ids=str,
)
def test_shapes_a_method_is_not_defined_for_are_refused_with_the_reason(spec: Any, teacher: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(spec, teacher=teacher)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "minilmv2", "relation_heads": 16}, {"name": "tinybert", "scores": "head_average"}, "hidden", "soft_targets",
        {"name": "tinybert", "layers": {1: 1, 2: 4}, "scores": "head_average"},
    ],
    ids=str,
)  # fmt: skip
def test_unequal_widths_heads_and_depths_work_where_the_method_is_defined(spec: Any) -> None:
    assert plan(spec, teacher=LARGE).needs_teacher


def test_terms_unite_what_they_need() -> None:
    both = plan({"terms": [{"name": "minilmv2", "weight": 2}, "mlm", {"name": "hidden", "layers": {0: 0, 1: 3}}]})
    assert both.student_needs(0) == Needs(logits="masked", states=frozenset({0, 1}), qkv=frozenset({2}))
    assert both.teacher_needs(0) == Needs(states=frozenset({0, 3}), qkv=frozenset({4}))
    assert [weight for weight, _ in both.objectives(0)] == [2.0, 1.0, 1.0]


def test_a_phase_begins_where_the_one_before_ends() -> None:
    staged = plan({"phases": [{"until": 0.7, "name": "mlm"}, {"until": 1.0, "name": "minilmv2"}]})
    assert [staged.phase_at(f) for f in (0.0, 0.699, 0.7, 0.99, 1.0)] == [0, 0, 1, 1, 1]
    assert not staged.teacher_needs(0)
    assert staged.needs_teacher
    assert staged.trains_head


def test_a_method_that_returns_keeps_its_projections_and_one_with_other_options_gets_its_own() -> None:
    staged = plan(
        {
            "phases": [
                {"until": 0.3, "name": "tinybert"},
                {"until": 0.6, "terms": ["mlm", {"name": "tinybert", "weight": 0.5}]},
                {"name": "tinybert", "projection": "per_layer"},
            ]
        }
    )
    first, second, third = (staged.objectives(phase)[-1][1] for phase in range(3))
    assert first is second
    assert third is not first
    # One shared projection, three of their own; a shared weight is counted and trained once.
    assert sum(p.numel() for p in staged.parameters()) == 4 * (48 * 48 + 48)


def test_the_schedule_runs_through_unless_a_phase_restarts_it() -> None:
    phases = [{"until": 0.5, "name": "minilmv2"}, {"until": 0.9, "name": "hidden"}, {"name": "mlm"}]
    through = plan({"phases": phases})
    assert [through.schedule_progress(f) for f in (0.0, 0.3, 0.95, 1.0)] == [0.0, 0.3, 0.95, 1.0]
    phases[2]["restart"] = True
    again = plan({"phases": phases})
    found = [again.schedule_progress(f) for f in (0.0, 0.45, 0.8999999, 0.9, 0.95, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.5, 1.0], abs=1e-6)


@given(
    ends=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(sorted),
    restarts=st.lists(st.booleans(), min_size=5, max_size=5),
    fraction=st.floats(0, 1),
)
def test_schedule_progress_stays_within_0_and_1_and_ends_at_1(
    ends: list[float], restarts: list[bool], fraction: float
) -> None:
    items = [{"until": end, "name": "mlm", "restart": r} for end, r in zip([*ends, 1.0], restarts, strict=False)]
    staged = Plan({"phases": items}, student=STUDENT, teacher=None)
    assert 0 <= staged.schedule_progress(fraction) <= 1
    assert staged.schedule_progress(1.0) == 1.0
    assert staged.schedule_progress(0.0) == 0.0


def test_what_is_parsed_is_what_was_written() -> None:
    (phase,) = parse({"terms": ["mlm", {"name": "soft_targets", "weight": 3, "temperature": 4}]})
    assert (phase.until, phase.restart) == (1.0, False)
    assert [(t.name, t.weight, t.options) for t in phase.terms] == [
        ("mlm", 1.0, {}),
        ("soft_targets", 3.0, {"temperature": 4}),
    ]


def test_a_term_that_weighs_nothing_is_neither_computed_nor_paid_for() -> None:
    """Its zeros would be gradients: weights that nothing trains would enter the optimizer, which decays them."""
    spec = {"terms": [{"name": "soft_targets", "weight": 0}, {"name": "minilmv2"}]}
    both, alone = (Plan(s, student=STUDENT, teacher=TEACHER) for s in (spec, "minilmv2"))
    assert both.student_needs(0) == alone.student_needs(0)
    assert both.teacher_needs(0) == alone.teacher_needs(0)
    assert not both.trains_head
    size = StepSize(2, 8, 4)
    assert both.flops(0, size) == alone.flops(0, size)
    with pytest.raises(ConfigError, match="listed twice"):
        parse({"terms": [{"name": "mlm", "weight": 0}, "mlm"]})
