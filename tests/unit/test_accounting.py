"""What a study's accounting means: who pays for what, in which unit, and what is refused rather than guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import cli, controls, owed
from harness.budget import Account, Budget, Charge, Ledger
from harness.errors import ConfigError
from harness.models.shapes import Shape
from harness.models.teacher import TeacherInfo
from harness.study import StudySpec, validate
from harness.units import Unit
from tests.support.tiny import TinyStudy

TEACHER = TeacherInfo(
    "teacher",
    Shape("bert", 2, 8, 1, 8, 10, 8, 8),
    {
        "training_flop": 1e12,
        "tokens": 5000,
        "accounts": {"STUDENT_STEP": {"flop": 10**12, "gpu-second": 40.0}, "EVALUATION": {"gpu-second": 9.0}},
    },
)
STEPS = {"STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE"}
WAY = {"STARTUP", "EVALUATION", "CHECKPOINT"}


def study(budget: str = "1e13 flop", **changes: Any) -> StudySpec:
    tree = {"name": "s", "budget": budget, "teacher": {"path": "teacher"}, "arms": [{"name": "a"}, {"name": "b"}]}
    return validate({**tree, **changes}, where="s")


def posted(spec: StudySpec, *tuning: str) -> dict[tuple[str, str], float]:
    charges = owed.upfront(spec, TEACHER, tuning=tuning, arm="a")
    return {(c.account.value, c.unit.value): c.amount for c in charges}


# -- what is charged -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("1e13 flop", STEPS),
        ("1e6 tokens", STEPS),
        ("1 gpu-hour", STEPS),
        ("1 kWh", STEPS),
        ("1 allocated-gpu-hour", STEPS | WAY),
        ("90 min", STEPS | WAY),
    ],
)
def test_what_is_charged_by_default_follows_the_unit(budget: str, expected: set[str]) -> None:
    assert set(study(budget).accounting.charged) == expected
    dumped = study(budget).model_dump(mode="json")
    assert validate(dumped, where="s").accounting == study(budget).accounting, "a kept study means the same"


@pytest.mark.parametrize("account", sorted(WAY))
def test_what_is_known_only_afterwards_is_refused_in_counted_units(account: str) -> None:
    with pytest.raises(ConfigError, match=f"{account} cannot be charged to a budget in flops"):
        study(accounting={"charged": ["STUDENT_STEP", account]})
    assert account in study("1 gpu-h", accounting={"charged": ["STUDENT_STEP", account]}).accounting.charged


def test_carbon_is_no_part_of_the_science() -> None:
    assert study().fingerprint() == study(accounting={"grid_g_per_kwh": 380}).fingerprint()
    assert study().fingerprint() == study(controls=["equal_tokens"]).fingerprint()
    assert study().fingerprint() != study(accounting={"teacher_training": "full"}).fingerprint()


# -- the teacher's training ------------------------------------------------------------------------------
def test_a_free_teacher_is_reported_and_a_full_one_charged() -> None:
    assert posted(study()) == {("TEACHER_TRAINING", "flop"): 10**12}
    assert "TEACHER_TRAINING" not in study().accounting.charged
    full = study(accounting={"teacher_training": "full"})
    assert "TEACHER_TRAINING" in full.accounting.charged
    assert posted(full) == {**posted(study()), ("TEACHER_TRAINING", "gpu-second"): 40}, "as its card says"
    said = study(accounting={"charged": ["STUDENT_STEP", "TEACHER_TRAINING"]})
    assert said.accounting.teacher_training == "full", "charging it says who pays"


def test_a_shared_teacher_costs_each_student_its_share() -> None:
    spec = study(accounting={"teacher_training": {"amortised_over": 8}})
    assert posted(spec) == {("TEACHER_TRAINING", "flop"): 10**12 // 8, ("TEACHER_TRAINING", "gpu-second"): 5}
    told = owed.teacher_training(spec, TEACHER, Unit.FLOP).record()
    assert (told["full"], told["share"]) == (1e12, 1e12 / 8)


def test_of_a_range_the_lower_end_is_posted_and_both_are_told() -> None:
    spec = study(accounting={"teacher_training": {"range": ["2e11 flop", "4e12 flop"]}})
    assert posted(spec) == {("TEACHER_TRAINING", "flop"): 2 * 10**11}
    told = owed.teacher_training(spec, TEACHER, Unit.FLOP)
    assert (told.full, told.low, told.high) == (None, 2e11, 4e12)


def test_a_measured_budget_takes_the_teachers_cost_in_its_own_unit() -> None:
    """From the teacher's record, its evaluation left out; or as the study says it."""
    full = {"teacher_training": "full"}
    assert posted(study("1 gpu-hour", accounting=full))["TEACHER_TRAINING", "gpu-second"] == 40
    told = {"path": "teacher", "training_cost": ["2 Wh"]}
    assert posted(study("1 kWh", accounting=full, teacher=told))["TEACHER_TRAINING", "joule"] == 7200
    with pytest.raises(ConfigError, match="nobody knows what this teacher's training cost in joules"):
        posted(study("1 kWh", accounting=full))


def test_a_device_hour_of_other_devices_is_no_price_here(tiny: TinyStudy, tmp_path: Path, capsys: Any) -> None:
    """Refused before anything is spent; what the user says it would have taken here is taken."""
    teacher = shutil.copytree(tiny.teacher, tmp_path / "teacher")
    card = teacher / "isobudget.json"
    made = {"accounts": {"STUDENT_STEP": {"gpu-second": 2.0}}, "devices": ["A GPU of another kind"]}
    card.write_text(json.dumps(json.loads(card.read_text()) | made))
    told = {"path": str(teacher), "trained_on": "same", "allow_worse": True}
    for number, (more, code) in enumerate((({}, 2), ({"training_cost": ["1 gpu-second"]}, 0))):
        file = tiny.write(
            tmp_path / f"s{number}.yaml",
            budget="20 gpu-seconds",
            teacher=told | more,
            accounting={"teacher_training": "full"},
        )
        assert cli.main(["plan", "--study", str(file), "--json"]) == code
        if code:
            said = capsys.readouterr().err
            assert "its teacher was trained on A GPU of another kind, not on" in said
            assert "teacher.training_cost" in said


@pytest.mark.parametrize(
    ("accounting", "message"),
    [
        ({"teacher_training": {"range": ["4e12 flop", "2e11 flop"]}}, "lower and an upper end"),
        ({"teacher_training": {"range": ["1 Wh", "2 Wh"]}}, "not in the budget's unit"),
        ({"teacher_training": {"amortised_over": 0}}, "greater than 0"),
        ({"teacher_training": "cheap"}, "free"),
        ({"teacher_training": "free", "charged": ["STUDENT_STEP", "TEACHER_TRAINING"]}, "says free"),
        ({"teacher_training": "full", "charged": ["STUDENT_STEP"]}, "leaves out TEACHER_TRAINING"),
        ({"grid_g_per_kwh": -1}, "greater than or equal to 0"),
    ],
)
def test_an_accounting_that_contradicts_itself_is_refused(accounting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(accounting=accounting)


def test_tuning_is_posted_as_told_and_charged_only_when_it_is_known() -> None:
    assert posted(study(), "3e11 flop")["TUNING", "flop"] == 3 * 10**11
    both = posted(study(), "3e11 flop", "20 gpu-seconds")
    assert (both["TUNING", "flop"], both["TUNING", "gpu-second"]) == (3 * 10**11, 20), "the verdict is given in both"
    charged = study(accounting={"charged": ["STUDENT_STEP", "TUNING"]})
    with pytest.raises(ConfigError, match="does not say what its tuning cost in flops"):
        posted(charged)
    with pytest.raises(ConfigError, match="unknown unit"):
        study(arms=[{"name": "a", "tuning": "3 parsecs"}])


# -- resuming ----------------------------------------------------------------------------------------------
def test_a_resume_loses_what_is_done_again_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """The lines after a checkpoint's state: steps and a start are repeated, the checkpoint itself is not."""

    def opened() -> Ledger:
        return Ledger(
            Budget(100.0, Unit.SECOND), charged=frozenset(Account) - {Account.LOST}, path=tmp_path / "ledger.jsonl"
        )

    ledger = opened()
    ledger.post([Charge(Account.STUDENT_STEP, 10.0, Unit.SECOND, "measured")], step=1)
    state = json.loads(json.dumps(ledger.state()))
    for account, seconds in ((Account.CHECKPOINT, 2.0), (Account.STUDENT_STEP, 5.0), (Account.STARTUP, 3.0)):
        ledger.post([Charge(account, seconds, Unit.SECOND, "measured")], step=2)
    ledger.close()
    resumed = opened()
    resumed.restore(state, instead=resumed.lost_since(state), step=1)
    assert {a: u["second"] for a, u in resumed.accounts().items()} == {
        "STUDENT_STEP": 10, "CHECKPOINT": 2, "LOST": 8,
    }  # fmt: skip
    assert resumed.spent == 12, "what was lost is reported, never charged"


# -- controls ----------------------------------------------------------------------------------------------
def finish(root: Path, arm: str, tokens: int, *, seed: int = 1, state: str = "done") -> None:
    folder = root / "arms" / arm / f"seed-{seed}"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"state": state, "tokens": tokens}))


def test_every_other_finished_arm_gets_a_control_at_its_own_tokens(tmp_path: Path) -> None:
    arms = [{"name": name} for name in ("base", "dear", "equal", "unfinished")]
    spec = study(arms=arms, baseline="base", controls=["equal_tokens"])
    for name, tokens in (("base", 900), ("dear", 300), ("equal", 900)):
        finish(tmp_path, name, tokens)
    (control,) = controls.wanted(spec, tmp_path)
    assert control == controls.Control("base", "dear", 1, 300)
    assert control.ledger(None).budget == Budget(300, Unit.TOKEN)
    assert not controls.finished(control, tmp_path)
    folder = control.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"state": "done", "control": control.record()}))
    assert controls.finished(control, tmp_path)
    assert not controls.finished(controls.Control("base", "dear", 1, 301), tmp_path), "other tokens, another control"
    assert controls.wanted(study(arms=arms, baseline="base"), tmp_path) == [], "only where the study asks"


def test_a_lone_arm_has_nothing_to_control(tmp_path: Path) -> None:
    finish(tmp_path, "a", 900)
    assert controls.wanted(study(arms=[{"name": "a"}], controls=["equal_tokens"]), tmp_path) == []
