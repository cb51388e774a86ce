"""The plan adds up, says unknown where it knows nothing, and agrees with what recorded runs did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness import cli
from harness.ds_config import default
from harness.errors import ConfigError, DataError
from harness.plan import evaluation
from harness.plan.bill import Terms, bill
from harness.plan.estimate import estimate
from harness.plan.machines import parse_on
from harness.plan.outline import Sketch, sketch
from harness.plan.speed import Utilisation
from harness.study import StudySpec, load, validate
from harness.study.reading import STUDIES
from tests.support.tiny import TinyStudy


def silent(line: str) -> None:
    del line


def tiny_sketch(tiny: TinyStudy, *, world: int = 1, **changes: Any) -> Sketch:
    return sketch(validate(tiny.tree(**changes), where="test"), default(bf16=True), world=world, tell=silent)


def planned(found: Sketch, on: str = "h200", **options: Any) -> dict[str, Any]:
    return estimate(found, machine=parse_on(on), **options)


# -- arithmetic ----------------------------------------------------------------------------------------------
@given(
    busy=st.floats(0, 1e9),
    held=st.floats(0, 1e9),
    price=st.floats(0, 100),
    watts=st.floats(0, 2000),
    grid=st.floats(0, 1000),
)
def test_money_is_for_hours_held_and_carbon_for_energy_drawn(
    busy: float, held: float, price: float, watts: float, grid: float
) -> None:
    found = bill(busy, held, watts=watts, terms=Terms(price=price, grid_g_per_kwh=grid))
    assert found.money == pytest.approx(price * held / 3600)
    assert found.energy_j == pytest.approx(watts * busy)
    assert found.carbon_g == pytest.approx(watts * busy / 3.6e6 * grid)


def test_what_nobody_told_is_unknown_and_not_zero() -> None:
    found = bill(10.0, 20.0, watts=None, terms=Terms(grid_g_per_kwh=300.0))
    assert (found.energy_j, found.money, found.carbon_g) == (None, None, None)


def test_the_totals_are_the_sums_of_the_arms(tiny: TinyStudy) -> None:
    found = tiny_sketch(tiny, seeds=[1, 2, 3])
    table = planned(found, terms=Terms(price=2.0))
    assert table["total"]["trials"] == 12
    assert table["total"]["training_flop"] == 3 * sum(arm["training_flop"] for arm in table["arms"])
    assert table["total"]["evaluation_flop"] == 3 * sum(arm["flop"]["EVALUATION"] for arm in table["arms"])
    # One device judges one model after the other, the two references last.
    references = evaluation.of_references(found)
    assert set(references) == {"untrained", "teacher"}
    assert table["total"]["wall_s"] > 3 * sum(arm["seconds"] for arm in table["arms"])
    assert table["total"]["bill"]["money"] == pytest.approx(2.0 * table["total"]["wall_s"] / 3600)
    for arm in table["arms"]:
        assert arm["seconds"] == pytest.approx(arm["time"]["run_s"] + arm["time"]["after_s"])
        assert arm["training_flop"] == sum(
            v for k, v in arm["flop"].items() if k in ("STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE")
        )


def test_controls_at_equal_tokens_are_priced_as_runs_of_the_baseline(tiny: TinyStudy) -> None:
    plain, with_controls = (
        planned(tiny_sketch(tiny, seeds=[1, 2], controls=controls), terms=Terms(price=2.0))
        for controls in ([], ["equal_tokens"])
    )
    assert plain["total"]["controls"] is None
    controls, base = with_controls["total"]["controls"], with_controls["arms"][0]
    others = [arm for arm in with_controls["arms"][1:] if arm["steps"] != base["steps"]]
    assert others
    assert controls["trials"] == 2 * len(others)
    step = sum(cost["flop"] for cost in base["step_cost"].values())
    assert controls["training_flop"] == 2 * step * sum(arm["steps"] for arm in others)
    assert controls["evaluation_flop"] == controls["trials"] * base["flop"]["EVALUATION"]
    more = with_controls["total"]["wall_s"] - plain["total"]["wall_s"]
    assert more == pytest.approx(controls["run_s"] + controls["trials"] * controls["after_s"])
    assert with_controls["total"]["bill"]["money"] - plain["total"]["bill"]["money"] == pytest.approx(2 * more / 3600)
    assert with_controls["total"]["disk_left_bytes"] > plain["total"]["disk_left_bytes"]
    assert with_controls["arms"] == plain["arms"]


# -- the model of time ---------------------------------------------------------------------------------------
def test_time_falls_with_devices_and_utilisation_and_rises_with_the_budget(tiny: TinyStudy) -> None:
    def training(on: str, world: int, share: float, budget: str) -> float:
        found = tiny_sketch(
            tiny, world=world, budget=budget, student={"family": "bert", "layers": 2, "hidden": 1024, "heads": 16},
            arms=[{"name": "no_kd", "objective": "mlm"}], batch={"sequences": 512},
        )  # fmt: skip
        return planned(found, on, utilisation=Utilisation(share, share))["arms"][0]["time"]["training_s"]

    assert training("a100-80", 1, 0.3, "900 Tflop") > training("h200", 1, 0.3, "900 Tflop")
    assert training("h200", 1, 0.3, "900 Tflop") > training("h200", 1, 0.6, "900 Tflop")
    assert training("h200", 1, 0.3, "900 Tflop") > training("h200", 1, 0.3, "450 Tflop")
    assert training("v100", 1, 0.3, "900 Tflop") > training("8xv100", 8, 0.3, "900 Tflop")


@pytest.mark.parametrize("budget", ["20 s", "20 gpu-s", "160 allocated-gpu-s", "40 kJ"])
def test_a_budget_in_a_measured_unit_is_converted_by_the_price_of_a_step(tiny: TinyStudy, budget: str) -> None:
    found = tiny_sketch(
        tiny, world=8, budget=budget, accounting={"charged": ["STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE"]}
    )
    table = planned(found, "8xh200")
    limit = found.study.limit.limit
    for arm in table["arms"]:
        step = arm["step_s"]["total_s"]
        price = {"20 s": step, "20 gpu-s": 8 * step, "160 allocated-gpu-s": 8 * step, "40 kJ": 8 * step * 560}[budget]
        assert arm["charged_per_step"] == pytest.approx(price)
        assert arm["steps"] == int(limit // arm["charged_per_step"]) > 0


def test_clock_time_pays_for_start_up_and_validation_too(tiny: TinyStudy) -> None:
    """The default accounting of wall time charges what happens on the way."""
    with_way = planned(tiny_sketch(tiny, budget="60 s"))["arms"][0]
    steps_only = planned(
        tiny_sketch(tiny, budget="60 s", accounting={"charged": ["STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE"]})
    )["arms"][0]
    way = with_way["time"]["run_s"] - with_way["time"]["training_s"]
    lost = (steps_only["steps"] - with_way["steps"]) * with_way["charged_per_step"]
    assert way > 10
    assert lost == pytest.approx(way, abs=2 * with_way["charged_per_step"])


def test_an_energy_budget_without_a_known_power_is_refused(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--study", str(tiny.file), "--budget", "40 kJ"]) == 2
    said = capsys.readouterr().err.strip()
    assert "--watts" in said
    assert "\n" not in said


# -- memory and advice -----------------------------------------------------------------------------------------
def test_a_plan_warns_when_a_device_is_too_small_and_not_when_it_is_large_enough(tiny: TinyStudy) -> None:
    found = tiny_sketch(tiny)
    table = planned(found, "t4")
    assert not any("GB a device" in note for note in table["notes"])
    small = {**table, "machine": {**table["machine"], "memory_bytes": 1e9}}
    from harness.plan import advice

    assert sum("GB a device" in note for note in advice.notes(small, found)) == len(table["arms"])


def test_a_plan_warns_of_few_steps_many_passes_and_dear_evaluation(tiny: TinyStudy) -> None:
    dear = {"curve_points": 0, "mlm_blocks": 16, "readout": {"steps": 4000, "positions": 64, "blocks": 32}}
    notes = "\n".join(planned(tiny_sketch(tiny, evaluation=dear))["notes"])
    assert "below 1,000" in notes
    assert "costs more than training" in notes
    assert "the dearest item is readout" in notes
    many = "\n".join(planned(tiny_sketch(tiny, budget="600 Gflop"))["notes"])
    assert "times; beyond 4 passes" in many


# -- what is not here --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["paper_6l_1epoch", "paper_6l_6epochs", "paper_12l"])
def test_the_published_glue_protocol_is_one_line_in_the_file_and_a_departure_from_it_is_said(name: str) -> None:
    line = ["evaluation.glue.grid=paper", "evaluation.glue.select_on=validation"]
    file = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8")
    assert " ".join(f"--set {each}" for each in line) in file
    shipped, published = (
        planned(sketch(load(name, assignments=changes), default(bf16=True), world=8, tell=silent), "8xh200")
        for changes in ([], line)
    )
    assert any("the published protocol" in note for note in shipped["notes"])
    assert not any("the published protocol" in note for note in published["notes"])
    price = [table["arms"][0]["evaluation_flop"]["afterwards"]["glue"] for table in (shipped, published)]
    assert price[1] / price[0] == pytest.approx(2.2, abs=0.1), "as the file says"


@pytest.mark.parametrize("study", ["paper_6l_1epoch", "paper_6l_6epochs", "paper_12l"])
def test_the_papers_studies_are_planned_without_text_tokenizer_or_teacher(study: str) -> None:
    found = sketch(load(study), default(bf16=True), world=8, tell=silent)
    table = planned(found, "8xh200", terms=Terms(price=3.0))
    assert not found.complete
    assert all(arm["epochs"] is None for arm in table["arms"])
    assert any("epochs are unknown" in note for note in table["notes"])
    assert any("table of published configs" in note for note in table["notes"])
    hours = found.study.limit.limit / 3600
    for arm in table["arms"]:
        assert arm["time"]["run_s"] / 3600 == pytest.approx(hours, rel=0.01)
        assert arm["bill"]["money"] == pytest.approx(3.0 * arm["bill"]["held_s"] / 3600)
    pairs = {arm.name for arm in found.study.arms}
    assert {name for name in pairs if f"{name}_published" in pairs} == {"no_kd", "soft_targets", "tinybert", "minilmv2"}


def test_a_limit_on_tokens_tells_epochs_where_the_text_is_not_here() -> None:
    study = load("paper_6l_6epochs", assignments=["data.limit_tokens=1000000000"])
    table = planned(sketch(study, default(bf16=True), world=8, tell=silent), "8xh200")
    for arm in table["arms"]:
        assert arm["epochs"] == pytest.approx(arm["tokens"] / 1e9, rel=1e-3)


def test_a_limit_above_the_text_is_refused_by_a_plan_or_told_where_the_text_is_not_here(
    tiny: TinyStudy, tmp_path: Path
) -> None:
    tree = tiny.tree(data={**tiny.tree()["data"], "limit_tokens": 10**9})
    with pytest.raises(DataError, match=r"limit_tokens 1,000,000,000: .* its train text has [\d,]+ tokens"):
        sketch(validate(tree, where="tiny"), default(bf16=False), world=1, tell=silent)
    tree["teacher"] = {"path": "google-bert/bert-base-uncased", "trained_on": "unknown"}
    tree["arms"] = [{"name": "no_kd", "objective": "mlm"}]
    found = sketch(validate(tree, where="tiny"), default(bf16=False), world=1, tell=silent)
    assert not found.complete
    assert any("a run would refuse that" in note for note in found.notes)


def test_an_unbuilt_corpus_is_not_built_by_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path))
    found = sketch(load("quickstart"), default(bf16=False), world=1, tell=silent)
    assert not found.complete
    assert any("prefetch" in note for note in found.notes)
    assert not (tmp_path / "corpora").exists()


def test_an_unknown_teacher_is_refused_in_one_line(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--study", str(tiny.file), "--on", "h200", "--set", "teacher.path=nobody/such-model"]) == 3
    said = capsys.readouterr().err.strip()
    assert "nobody/such-model" in said
    assert "\n" not in said


# -- against recorded runs ------------------------------------------------------------------------------------------
def record_of(root: Path) -> tuple[StudySpec, dict[str, Any], Path]:
    folder = root / "records" / "2026-11-21_quickstart_2-core-cpu"
    study = validate(yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8")), where="record")
    return study, json.loads((folder / "environment.json").read_text(encoding="utf-8")), folder


def test_planned_steps_and_flops_are_those_of_the_recorded_run(root: Path) -> None:
    """Account by account, exactly, with the recorded corpus's sizes."""
    study, environment, folder = record_of(root)
    found = sketch(study, default(bf16=False), world=1, tell=silent)
    blocks = {label: facts["blocks"] for label, facts in environment["data"]["sources"].items()}
    found.train_blocks = {label: each["train"] for label, each in blocks.items()}
    found.evaluation_blocks |= {split: sum(each[split] for each in blocks.values()) for split in ("validation", "test")}
    for arm in planned(found)["arms"]:
        for seed in study.seeds:
            ran = json.loads((folder / f"{arm['name']}-seed-{seed}" / "record.json").read_text(encoding="utf-8"))
            assert arm["steps"] == ran["steps"]
            assert arm["tokens"] == ran["tokens"]
            assert arm["epochs"] == pytest.approx(ran["epochs"])
            for account in ("STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE", "TEACHER_TRAINING"):
                assert arm["flop"].get(account, 0) == ran["accounts"].get(account, {}).get("flop", 0)
            assert arm["evaluation_flop"]["in_training"] == ran["accounts"]["EVALUATION"]["flop_in_training"]


@pytest.mark.parametrize("on_curve", [False, True])
def test_planned_evaluation_is_what_a_run_books(tiny: TinyStudy, tmp_path: Path, on_curve: bool) -> None:
    """A real run, evaluation included: every account's FLOPs to the last digit."""
    readout = {"steps": 5, "positions": 64, "blocks": 32, "on_curve": on_curve}
    evaluation = {"curve_points": 2 if on_curve else 1, "mlm_blocks": 16, "readout": readout}
    file = tiny.write(tmp_path / "s.yaml", evaluation=evaluation)
    out = tmp_path / "run"
    assert cli.main(["--study", str(file), "--out", str(out)]) == 0
    table = planned(tiny_sketch(tiny, evaluation=evaluation))
    for arm in table["arms"]:
        folder = out / "arms" / arm["name"] / "seed-1"
        ran = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        assert arm["steps"] == ran["steps"]
        booked = {account: units["flop"] for account, units in ran["accounts"].items() if units.get("flop")}
        assert arm["flop"] == booked
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        read = [row for row in rows if "readout_loss" in row]
        assert len(read) == (2 if on_curve else 0)
        assert all(row["readout_layer"] == ran["scores"]["readout.layer"] for row in read), (
            "one layer for a whole curve"
        )
        assert not (folder / "snapshots").exists() or not list((folder / "snapshots").iterdir())


def test_utilisation_without_a_named_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--utilisation", "0.4"]) == 2
    assert "--on" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        Utilisation.parse("2")
