"""A study file says what it means, or the key that does not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import ConfigError
from harness.study import StudySpec, load, names, validate

MINIMAL = {"name": "s", "budget": "1e12 flop", "arms": [{"name": "a"}, {"name": "b"}]}


def test_every_shipped_study_is_valid() -> None:
    assert "quickstart" in names()
    for name in names():
        assert load(name).name == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgett": 1}, "budgett.*unknown key"),
        ({"budget": "-1 flop"}, "positive"),
        ({"student": {"hidden": 100, "heads": 3}}, "not divisible"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "listed twice"),
        ({"arms": [{"name": "../a"}]}, "arms.0.name"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"seeds": []}, "seeds"),
        ({"baseline": "zzz"}, "not one of the arms"),
        ({"accounting": {"charged": ["EVALUATION"]}}, "STUDENT_STEP must be charged"),
        ({"accounting": {"charged": ["STUDENT_STEP", "LOST"]}}, "reported, not charged"),
        ({"data": {"masking": {"fraction": 1.5}}}, "data.masking.fraction"),
        ({"data": {"masking": {"replace": 0.8, "random": 0.3}}}, "must not exceed 1"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        ({"arms": [{"name": "a", "differs": {"data.block_length": 8}}]}, "may differ in"),
        ({"arms": [{"name": "a", "differs": {"optimizer.lrr": 1}}]}, "unknown key"),
    ],
)
def test_a_bad_value_names_its_key_and_rule(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({**MINIMAL, **changes}, where="s")


def test_the_command_line_changes_keys_by_dotted_path(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    study = load(
        str(file),
        arms=["b"],
        seeds=[5, 6],
        budget="2e9tokens",
        assignments=["optimizer.lr=1e-4", "data.block_length=64"],
    )
    assert [arm.name for arm in study.arms] == ["b"]
    assert (study.seeds, study.budget, study.optimizer.lr, study.data.block_length) == ([5, 6], "2e9tokens", 1e-4, 64)


def test_assignments_reach_arms_by_name(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "arms": [{"name": "a", "objective": {"name": "soft_targets"}}]}))
    study = load(str(file), assignments=["arms.a.objective.temperature=4"])
    assert study.arms[0].objective == {"name": "soft_targets", "temperature": 4}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"arms": ["zzz"]}, "has the arms a, b"),
        ({"assignments": ["nonsense"]}, "KEY=VALUE"),
        ({"assignments": ["student.hiden=3"]}, "unknown key"),
        ({"assignments": ["arms.zzz.name=3"]}, "not an item"),
        ({"assignments": ["budget.x.y=3"]}, "single value|nothing lies below"),
    ],
)
def test_a_bad_command_line_change_is_refused(tmp_path: Path, kwargs: dict, message: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match=message):
        load(str(file), **kwargs)


def test_an_unknown_or_malformed_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown study"):
        load("no_such_study")
    with pytest.raises(ConfigError, match="no such file"):
        load(str(tmp_path / "absent.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="malformed YAML"):
        load(str(bad))
    bad.write_text("- just\n- a list")
    with pytest.raises(ConfigError, match="mapping"):
        load(str(bad))


def test_the_science_is_all_but_arms_seeds_and_evaluation() -> None:
    base = validate(MINIMAL, where="s")
    more = validate({**MINIMAL, "arms": [{"name": "c"}], "seeds": [7], "evaluation": {"curve_points": 0}}, where="s")
    other = validate({**MINIMAL, "batch": {"sequences": 64}}, where="s")
    assert base.fingerprint() == more.fingerprint() != other.fingerprint()


def test_the_same_limit_in_other_words_is_the_same_science() -> None:
    said, spelt = (validate({**MINIMAL, "budget": text}, where="s") for text in ("1.6 Tflop", "1.6e12flop"))
    assert said.fingerprint() == spelt.fingerprint()


def test_an_arm_differs_only_as_declared() -> None:
    study = validate({**MINIMAL, "arms": [{"name": "a"}, {"name": "b", "differs": {"optimizer.lr": 1e-3}}]}, where="s")
    plain, declared = (study.for_arm(arm) for arm in study.arms)
    assert isinstance(plain, StudySpec)
    assert declared.optimizer.lr == 1e-3
    assert declared.model_copy(update={"optimizer": plain.optimizer}) == plain


@pytest.mark.parametrize("block", ["optimizer", "student", "schedule", "batch", "teacher"])
def test_a_whole_block_cannot_take_the_place_of_the_shared_one(block: str) -> None:
    """It would set every key it leaves out back to its default, and declare none of that."""
    arms = [{"name": "a"}, {"name": "b", "differs": {block: {}}}]
    with pytest.raises(ConfigError, match=rf"arms.b.differs.{block}.*one key at a time"):
        validate({**MINIMAL, "arms": arms}, where="s")


def test_an_arm_with_another_teacher_inherits_its_settings_and_no_facts() -> None:
    shared = {"path": "builtin", "trained_on": "same", "training_flop": 5e18, "weights": "0" * 16, "dropout": 0.1}
    arms = [
        {"name": "same", "differs": {"teacher.path": "builtin"}},
        {"name": "other", "differs": {"teacher.path": "elsewhere"}},
        {"name": "told", "differs": {"teacher.trained_on": "superset", "teacher.path": "elsewhere"}},
    ]
    study = validate({**MINIMAL, "teacher": shared, "arms": arms}, where="s")
    same, other, told = (study.for_arm(arm).teacher for arm in study.arms)
    assert same == study.teacher
    assert other is not None
    assert (other.trained_on, other.training_flop, other.weights, other.dropout) == ("unknown", None, None, 0.1)
    assert told is not None
    assert told.trained_on == "superset"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"cost": "3e14 flop", "trials": 4}, "a.tuning has 5 trials, arms.b.tuning 4: tune every arm as often"),
        ("3e14 flop", "arms.b.tuning none that is counted"),
        (None, "arms.b.tuning none that is counted"),
        ({"cost": "3e14 flop"}, "trials.*Field required"),
        ({"cost": "3 parsecs", "trials": 5}, "unknown unit"),
    ],
    ids=str,
)
def test_arms_that_were_not_tuned_as_often_are_refused(other: Any, message: str) -> None:
    tuned = {"name": "a", "tuning": {"cost": "3e14 flop", "trials": 5}, "differs": {"optimizer.lr": 1e-3}}
    with pytest.raises(ConfigError, match=message):
        validate({**MINIMAL, "arms": [tuned, {"name": "b", "tuning": other}]}, where="s")
    alike = validate(
        {**MINIMAL, "arms": [tuned, {"name": "b", "tuning": {"cost": "1e14 flop", "trials": 5}}]}, where="s"
    )
    assert [(arm.trials, arm.tuning_cost) for arm in alike.arms] == [(5, ["3e14 flop"]), (5, ["1e14 flop"])]
