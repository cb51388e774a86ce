"""The decide command: a pilot within its share, teachers paid when the rest is spent, an answer that can be resumed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import cli
from harness.budget import Account, Budget
from harness.chaos.tiny import TinyStudy, write_teacher
from harness.commands.decide import share_of
from harness.errors import ConfigError, DataError
from harness.ladder.decision import decide
from harness.ladder.scaling import validated
from harness.ladder.words import Words
from harness.sweep import decided, expand
from harness.sweep.gather import gather
from harness.sweep.pilot import Pilot, recommend, rungs_of, tree_of
from harness.sweep.publish import build
from tests.unit.test_sweep_currency import MEASURED, MOVED, ladder

SCORES = {"curve_points": 0, "mlm_blocks": 16, "readout": {"steps": 5, "positions": 64, "blocks": 32}}
ARMS = [{"name": "no_kd", "objective": "mlm"}, {"name": "kd", "objective": "soft_targets"}]


def tree(tiny: TinyStudy, **changes: Any) -> dict[str, Any]:
    own = tiny.tree(arms=ARMS, evaluation=SCORES, baseline="no_kd", seeds=[1, 2], checkpoints=0)
    return {**own, **changes}


def study(tiny: TinyStudy, folder: Path, **changes: Any) -> str:
    file = folder / "study.json.yaml"
    file.write_text(json.dumps(tree(tiny, **changes)), encoding="utf-8")
    return str(file)


# -- the ladder ------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["3e15 flop", "256 gpu-hours", "2e9 tokens", "0.5 kWh", "90 min"]),
    st.floats(0.01, 0.9),
    st.integers(2, 40),
    st.integers(2, 6),
)
def test_a_pilot_doubles_its_rungs_and_costs_its_share_at_most(
    budget: str, share: float, trials: int, rungs: int
) -> None:
    purse = Budget.parse(budget)
    found = rungs_of(purse, share, trials=trials, rungs=rungs)
    cost = trials * sum(found)
    assert len(found) == rungs
    assert cost <= share * purse.limit * (1 + 1e-9)
    assert cost >= 0.98 * share * purse.limit
    for below, above in pairwise(found):
        assert above / below == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("share", "rungs", "says"),
    [(0.0, 4, "part of the budget"), (1.0, 4, "part"), (0.1, 1, "two rungs"), (0.1, 60, "double")],
)
def test_a_pilot_that_is_none_or_everything_is_refused(share: float, rungs: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rungs_of(Budget.parse("1e15 flop"), share, trials=4, rungs=rungs)


def test_shares_are_read_as_per_cent_or_as_a_number() -> None:
    assert share_of("5%") == share_of("0.05") == 0.05
    with pytest.raises(ConfigError, match="share"):
        share_of("five")


def test_k_students_pay_a_kth_of_their_own_teacher_each_out_of_what_the_pilot_left() -> None:
    pilot = Pilot(Budget.parse("1e6 tokens"), 0.1, 4, (10_000.0, 15_000.0), 4, {"kd": 200_000.0})
    assert (pilot.cost, pilot.rest, pilot.left()) == (100_000, 900_000, {"kd": 850_000})
    assert "kd: 50 k tokens of what the pilot leaves for its teacher, 4 students sharing it" in pilot.lines()
    free = Pilot(Budget.parse("1e6 tokens"), 0.1, None, (10_000.0, 15_000.0), 4, {})
    assert free.left() == {}


def test_an_arm_whose_tuning_is_charged_pays_it_once_out_of_what_the_pilot_left() -> None:
    pilot = Pilot(
        Budget.parse("1e6 tokens"), 0.1, 4, (10_000.0, 15_000.0), 4, {"kd": 200_000.0}, {"no_kd": 5e3, "kd": 6e3}
    )
    assert pilot.left() == {"kd": 844_000, "no_kd": 895_000}
    assert "kd: 6 k tokens of what the pilot leaves for its tuning, paid once" in pilot.lines()
    assert "no_kd: 5 k tokens of what the pilot leaves for its tuning, paid once" in pilot.lines()


def test_a_tuned_studys_pilot_pays_for_no_search_and_its_answer_does(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What finding the rates cost is larger than any rung, and is told and taken once, from what the pilot left."""
    charged = ["STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE", "TUNING"]
    arms = [{**arm, "tuning": {"cost": ["3.6e12 flop"], "trials": 3}} for arm in ARMS]
    file = study(tiny, tmp_path, arms=arms, accounting={"charged": charged})
    flags = ["decide", "--study", file, "--budget", "40 Tflop", "--pilot", "10%", "--plan", "--json", "--on", "1xh200"]
    assert cli.main(flags) == 0
    pilot = json.loads(capsys.readouterr().out)["pilot"]
    assert max(pilot["rungs"]) < 3.6e12
    assert pilot["tuning"] == {"no_kd": 3.6e12, "kd": 3.6e12}
    assert pilot["left"] == dict.fromkeys(("no_kd", "kd"), pilot["rest"] - 3.6e12)
    (point, *_) = expand(
        tree_of(json.loads(Path(file).read_text()), Budget.parse("40 Tflop"), (1e9, 2e9)), where="x"
    ).points
    assert Account.TUNING not in point.study({}).charged
    assert cli.main([*flags, "--set", "accounting.charged=[STUDENT_STEP]"]) == 0
    assert json.loads(capsys.readouterr().out)["pilot"]["left"] == {}, "tuning that is reported alone is not paid"
    assert cli.main([*flags[:4], "40 gpu-hours", *flags[5:]]) == 2
    assert "it does not say what its tuning cost in gpu-seconds" in capsys.readouterr().err


def test_a_budget_that_its_tuning_uses_up_is_refused_by_that_name(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [{**arm, "tuning": "3.6e12 flop"} for arm in ARMS]
    file = study(tiny, tmp_path, arms=arms, accounting={"charged": ["STUDENT_STEP", "TUNING"]}, budget="1 Tflop")
    assert cli.main(["run", "--study", file, "--out", str(tmp_path / "out")]) == 2
    assert "after 3.6e+12 for the arm's tuning;" in capsys.readouterr().err


def test_the_pilots_studies_differ_from_the_study_in_budget_and_sunk_teachers_alone(tiny: TinyStudy) -> None:
    own = tree(tiny, accounting={"teacher_training": {"amortised_over": 2}})
    sweep = expand(tree_of(own, Budget.parse("1e12 flop"), (1e9, 2e9)), where="here")
    studies = [point.study({}) for point in sweep.points]
    assert [each.limit.limit for each in studies] == [1_000_000_000, 2_000_000_000]
    assert all(each.accounting.teacher_training == "free" for each in studies)
    assert {arm.name for arm in studies[0].arms} == {"no_kd", "kd"}
    assert own["accounting"] == {"teacher_training": {"amortised_over": 2}}
    assert sweep.question == f"Which arm of {own['name']} should get what a pilot leaves of 1 TFLOP?"


# -- refused before anything is spent --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no --budget"),
        (["--budget", "1 Tflop", "--pilot", "150%"], "part of the budget"),
        (["--budget", "1 Tflop", "--seeds", "1"], "two seeds"),
        (["--budget", "1 Tflop", "--arms", "kd"], "two arms"),
        (["--budget", "1 Tflop", "--students", "0"], "one or more"),
        (["--budget", "1 gpu-hour", "--students", "3"], "nobody knows what its training cost"),
        (["--budget", "1 Tflop", "--students", "3", "--set", "teacher.training_flop=9e12"], "leaves its student less"),
        (["--budget", "1 Tflop", "--resume"], "--resume without --out"),
    ],
)
def test_decisions_that_cannot_be_made_are_refused_with_their_reason(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert cli.main(["decide", "--study", study(tiny, tmp_path), *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_rung_that_buys_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is left for the lowest"):
        rungs_of(Budget.parse("100 flop"), 0.1, trials=6, rungs=4)


def test_another_teacher_brings_its_tokenizer_along(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped tokenizer is the shipped teacher's: with another one the students read what it reads."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    words = [f"w{n}" for n in range(40)]
    own = AutoTokenizer.from_pretrained(tiny.teacher).train_new_from_iterator([words] * 50, vocab_size=120)
    teacher = write_teacher(tmp_path / "teacher")
    model = AutoModelForMaskedLM.from_pretrained(teacher)
    model.resize_token_embeddings(len(own))
    model.save_pretrained(teacher)
    own.save_pretrained(teacher)
    flags = ["--budget", "1 Tflop", "--teacher", str(teacher), "--plan", "--json", "--on", "1xh200"]
    file = study(tiny, tmp_path)
    assert cli.main(["decide", "--study", file, *flags]) == 0
    capsys.readouterr()
    assert cli.main(["decide", "--study", file, *flags, "--set", "data.tokenizer=builtin"]) == 3
    assert "its tokenizer is not builtin's" in capsys.readouterr().err


def test_what_is_set_of_another_teacher_holds_for_it(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--teacher` forgets what the study says of its own, and nothing that the command line says."""
    flags = ["--budget", "1 Tflop", "--students", "3", "--teacher", str(tiny.teacher), "--plan", "--json"]
    costs = ["teacher.trained_on=unknown", "teacher.allow_worse=true", "teacher.training_flop=3e9"]
    sets = [word for cost in costs for word in ("--set", cost)]
    file = study(tiny, tmp_path, teacher={"path": "builtin", "training_flop": 1e15})
    assert cli.main(["decide", "--study", file, *flags, *sets]) == 0
    assert set(json.loads(capsys.readouterr().out)["pilot"]["teachers"].values()) == {3e9}


# -- the report's first section --------------------------------------------------------------------------


def decided_in(folder: Path, slopes: dict[str, float], *, noise: float, bent: bool = False) -> dict[str, Any]:
    """A decision on arms that fall along power laws, kept as the command keeps it."""
    x = (1e12, 2e12, 4e12, 8e12)
    rng = np.random.default_rng(1)
    scores = {}
    for arm, slope in slopes.items():
        mean = 4.0 + np.array([(rung / 1e12) ** -slope for rung in x])
        mean[-1] += 2.0 * (bent and arm == "kd")
        scores[arm] = mean[:, None] + noise * rng.normal(size=(4, 3))
    words = Words("nats", 1.0, "flop")
    found = decide(x, scores, budget=1e14, higher_is_better=False, words=words)
    tried = [validated(x, scores[arm], arm=arm, words=words) for arm in scores]
    answer = {"decision": found.as_json(), "validation": [each.as_json() for each in tried]}
    (folder / decided.FILE).write_text(json.dumps(answer), encoding="utf-8")
    return answer


def test_a_decision_is_told_with_its_probability_its_regret_and_the_price_of_knowing_better(tmp_path: Path) -> None:
    answer = decided_in(tmp_path, {"no_kd": 0.3, "kd": 0.35}, noise=0.02)["decision"]
    told = decided.read(tmp_path, arms={"no_kd": 0, "kd": 1})
    assert told is not None
    assert told.headline == f"Choose {answer['recommendation']} at 100 TFLOP"
    assert told.reason.startswith("Best with probability ")
    assert "expected regret" in told.reason
    assert told.words[0].startswith("If another arm is better, then by ")
    outlooks, further = told.tables
    assert [row[0].text for row in outlooks.rows] == ["no_kd", "kd"]
    assert sum(record["probability_best"] for record in outlooks.records) == pytest.approx(1.0)
    assert [record["recommended"] for record in outlooks.records].count(True) == 1
    assert len(further.rows) == len(answer["further"]) == 2
    assert all(record["regret_before"] == answer["expected_regret"] for record in further.records)


def test_a_decision_that_recommends_nothing_is_told_as_that(tmp_path: Path) -> None:
    answer = decided_in(tmp_path, {"no_kd": 0.3, "kd": 0.35}, noise=0.005, bent=True)["decision"]
    told = decided.read(tmp_path, arms={})
    assert told is not None
    assert answer["contradicted"] == ["kd"]
    assert told.headline == "Cannot tell yet at 100 TFLOP"
    outlooks, further = told.tables
    assert not any(record["recommended"] for record in outlooks.records)
    assert any("recommend nothing" in note for note in outlooks.notes)
    assert further.rows == further.records == []
    assert any("outside" in text for text in told.words)


def test_what_an_arm_paid_before_its_first_step_stands_below_its_outlook(tmp_path: Path) -> None:
    answer = decided_in(tmp_path, {"no_kd": 0.3, "kd": 0.35}, noise=0.02)
    paid = Pilot(Budget.parse("1e14 flop"), 0.1, None, (1e12,), 4, {}, {"kd": 3.6e12}).taken()
    (tmp_path / decided.FILE).write_text(json.dumps({**answer, "taken": paid}), encoding="utf-8")
    told = decided.read(tmp_path, arms={})
    assert told is not None
    assert (
        "Paid before the first step: kd: 3.6 TFLOP of what the pilot leaves for its tuning, paid once."
        in told.tables[0].notes
    )


def test_without_a_decision_a_sweep_has_no_such_section(tmp_path: Path) -> None:
    assert decided.read(tmp_path, arms={}) is None


def test_a_pilot_reads_no_curves_for_its_ladder_compares_arms_in_both_currencies(tiny: TinyStudy) -> None:
    readout = {**SCORES["readout"], "on_curve": True}
    own = tree(tiny, evaluation={**SCORES, "readout": readout})
    (point, _) = expand(tree_of(own, Budget.parse("1e12 flop"), (1e9, 2e9)), where="here").points
    assert point.study({}).evaluation.readout.on_curve is False
    assert readout["on_curve"] is True


# -- unlike machines -------------------------------------------------------------------------------------


def test_a_pilot_that_was_resumed_on_another_machine_recommends_nothing(tmp_path: Path) -> None:
    """Every rung ran on one machine, and its seconds are another currency than the last one's."""
    pilot = Pilot(Budget.parse("1000 gpu-seconds"), 0.4, None, (3.0, 6.0, 12.0, 24.0), 8, {})
    seconds = {"no_kd": 10.0, "tinybert": 10.0}
    decision, _ = recommend(gather(ladder(tmp_path / "alike", seconds, values=MEASURED)), pilot)
    assert decision.recommendation == "tinybert"
    moved = ladder(tmp_path / "moved", seconds, values=MEASURED, devices=MOVED)
    with pytest.raises(DataError, match="ran on one × 1 rank and 24 gpu-seconds on another") as refused:
        recommend(gather(moved), pilot)
    assert "on the same hardware" in str(refused.value)
    # Nor does the report tell a decision that was kept before.
    decided_in(moved, {"no_kd": 0.3, "kd": 0.35}, noise=0.02)
    build(moved)
    assert (
        (moved / "report.md")
        .read_text(encoding="utf-8")
        .startswith("# Cannot tell yet, run all arms on the same hardware")
    )
    counted = ladder(tmp_path / "counted", seconds, devices=MOVED)
    flops = Pilot(Budget.parse("100 Tflop"), 0.4, None, (3e11, 6e11, 12e11, 24e11), 8, {})
    assert recommend(gather(counted), flops)[0].recommendation == "tinybert", "FLOPs are the same on any machine"


# -- a real pilot ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pilot_runs_answers_and_goes_on_where_it_was(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pilot"
    flags = [
        "--study",
        study(tiny, tmp_path),
        "--out",
        str(out),
        "--budget",
        "100 Gflop",
        "--pilot",
        "10%",
        "--rungs",
        "3",
    ]
    flags += ["--students", "2", "--set", "teacher.training_flop=2e9", "--json"]
    assert cli.main(["decide", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == json.loads((out / "decision.json").read_text(encoding="utf-8"))
    begun = answer["decision"]["sentence"].partition(": ")[0]
    page, text = ((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert page.index(begun[1:]) < page.index("What the pilot found")
    assert text.startswith(f"# {begun[:1].upper()}{begun[1:]}")
    assert (out / "tables" / "decision.csv").read_text(encoding="utf-8").count("\n") == 1 + len(ARMS)
    pilot, found = answer["pilot"], answer["decision"]
    assert pilot["cost"] <= 10e9
    assert {o["arm"]: o["budget"] for o in found["outlooks"]} == {"no_kd": pilot["rest"], "kd": pilot["rest"] - 1e9}
    assert found["recommendation"] in ("no_kd", "kd")
    assert sum(o["probability_best"] for o in found["outlooks"]) == pytest.approx(1)
    assert len(answer["validation"]) == 2
    spent = [
        json.loads(record.read_text(encoding="utf-8"))["charged"]
        for record in sorted(out.glob("points/*/arms/*/seed-*/record.json"))
    ]
    assert len(spent) == 3 * 2 * 2
    assert sum(spent) <= pilot["cost"]
    # Everything is there: nothing is trained again, and the answer is the same.
    stamps = {file: file.stat().st_mtime_ns for file in out.glob("points/*/arms/*/seed-*/student/model.safetensors")}
    assert len(stamps) == 12
    assert cli.main(["decide", *flags, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    # Other terms are another pilot.
    assert cli.main(["decide", *flags, "--resume", "--students", "5"]) == 2
    assert "other terms (students, left)" in capsys.readouterr().err
