"""Tuning is fair: as many trials for every arm, chosen on text that no verdict is read from, and paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli, train
from harness.budget import Account
from harness.commands import evaluate
from harness.engine import Engine
from harness.errors import ConfigError
from harness.study import load, validate
from harness.sweep.expand import expand
from harness.sweep.tuning import as_sweep, grid
from tests.support.tiny import TinyStudy

ARMS = [
    {"name": "no_kd", "objective": "mlm"},
    {"name": "kd", "objective": "soft_targets", "differs": {"optimizer.lr": 3.0e-3}},
]


def test_the_grid_lies_around_the_studys_own_value() -> None:
    assert grid(1e-3, 5) == [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    assert grid(1e-3, 3) == [5e-4, 1e-3, 2e-3]
    with pytest.raises(ConfigError, match="neighbour"):
        grid(1e-3, 2)


def test_no_arm_keeps_a_rate_of_its_own_while_it_is_searched(tiny: TinyStudy, tmp_path: Path) -> None:
    study = load(str(tiny.write(tmp_path / "s.yaml", arms=ARMS)))
    tree = as_sweep(study, fraction=0.5, values=[1e-3, 2e-3, 4e-3], seeds=[1])
    assert all("optimizer.lr" not in arm["differs"] for arm in tree["arms"])
    assert tree["evaluation"]["split"] == "validation"
    assert tree["budget"] == "1000000000 flop"
    assert "optimizer.lr" in study.arms[1].differs, "the study itself is as it was"


def test_no_trial_pays_for_the_teacher(tiny: TinyStudy, tmp_path: Path) -> None:
    """The students to come pay it once: a search that paid it too would charge distilled arms once per trial."""
    own = {"accounting": {"teacher_training": {"amortised_over": 3}}, "arms": ARMS}
    study = load(str(tiny.write(tmp_path / "s.yaml", **own)))
    assert Account.TEACHER_TRAINING in study.charged
    sweep = expand(as_sweep(study, fraction=0.5, values=[1e-3, 2e-3, 4e-3], seeds=[1]), where="tune")
    for point in sweep.points:
        trial = point.study({})
        assert Account.TEACHER_TRAINING not in trial.charged
        assert trial.accounting.teacher_training == "free"


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_fraction_that_is_none_is_refused(tiny: TinyStudy, fraction: float) -> None:
    with pytest.raises(ConfigError, match="share of the budget"):
        as_sweep(validate(tiny.tree(), where="tiny"), fraction=fraction, values=[1, 2, 3], seeds=[1])


def test_a_search_of_many_values_is_priced_by_one_of_them(
    tiny: TinyStudy, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.plan import estimate as module

    calls: list[str] = []
    real = module.estimate
    monkeypatch.setattr(module, "estimate", lambda *args, **keys: calls.append("") or real(*args, **keys))
    file = tiny.write(tmp_path / "s.yaml", arms=ARMS, baseline="no_kd")
    flags = ["--study", str(file), "--fraction", "0.5", "--on", "1xh200", "--plan", "--json"]
    tables = []
    for trials in (4, 40):
        assert cli.main(["tune", *flags, "--trials", str(trials)]) == 0
        tables.append(json.loads(capsys.readouterr().out))
    assert len(calls) == 2 * 2, "the first value judges the references, the others do not"
    few, many = (table["total"] for table in tables)
    assert many["training_flop"] == 10 * few["training_flop"] > 0
    assert (few["trials"], many["trials"]) == (8, 80)
    assert many["reference_flop"] == few["reference_flop"] > 0


def test_a_search_ends_in_a_study_that_says_what_it_cost(tiny: TinyStudy, tmp_path: Path, capsys: Any) -> None:
    file = tiny.write(tmp_path / "s.yaml", arms=ARMS, baseline="no_kd", checkpoints=0)
    out = tmp_path / "out"
    flags = ["--fraction", "0.5", "--values", "5e-4,2e-3,8e-3", "--out", str(out)]
    assert cli.main(["tune", "--study", str(file), *flags]) == 0
    study = validate(yaml.safe_load((out / "tuned.yaml").read_text(encoding="utf-8")), where="tuned")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    best = {line["arm"]: line["best"] for line in report["answer"]["lines"]}
    for arm in study.arms:
        assert study.for_arm(arm).optimizer.lr == best[arm.name]
        records = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in out.glob(f"points/*/arms/{arm.name}/seed-1/record.json")
        ]
        assert len(records) == arm.trials == 3
        assert arm.tuning_cost == [
            f"{sum(record['charged'] for record in records)} flop",
            f"{sum(record['seconds'] for record in records)} gpu-second",
        ]
        scores = {point["x"]: point["scores"][arm.name]["1"] for point in report["points"]}
        assert min(scores, key=lambda x: scores[x]) == best[arm.name]
        edge = best[arm.name] in (5e-4, 8e-3)
        sentence = next(line["sentence"] for line in report["answer"]["lines"] if line["arm"] == arm.name)
        assert ("edge of the grid" in sentence) == edge
    assert study.budget == "2 Gflop"


# -- rates at which training breaks ----------------------------------------------------------------------
RATES = "5e-4,2e-3,1e-1"


def break_training(monkeypatch: pytest.MonkeyPatch, at: set[tuple[str, float]]) -> None:
    """From their third step on, no gradient of these (arm, rate) is a number."""
    broken: list[bool] = [False]
    step_of, backward_of = train.Trial._step, Engine.backward

    def stepping(trial: Any, *arguments: Any) -> Any:
        broken[0] = trial.progress.step >= 2 and (trial.directory.parent.name, trial.peak_lr) in at
        return step_of(trial, *arguments)

    monkeypatch.setattr(train.Trial, "_step", stepping)
    monkeypatch.setattr(
        Engine, "backward", lambda engine, loss: backward_of(engine, loss * float("nan") if broken[0] else loss)
    )


def searched(tiny: TinyStudy, folder: Path, *flags: str) -> int:
    file = tiny.write(
        folder / "s.yaml", arms=ARMS, baseline="no_kd", checkpoints=0, budget="6 Gflop", batch={"sequences": 2},
        evaluation={"curve_points": 0, "mlm_blocks": 16, "readout": {"steps": 5, "positions": 64, "blocks": 32}},
    )  # fmt: skip
    given = ["--fraction", "0.5", "--values", RATES, "--out", str(folder / "out")]
    return cli.main(["tune", "--study", str(file), *given, *flags])


def records(out: Path, arm: str) -> dict[str, dict[str, Any]]:
    """{point: record} of an arm's trials."""
    files = out.glob(f"points/*/arms/{arm}/seed-1/record.json")
    return {file.parents[3].name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def test_a_rate_at_which_training_diverges_is_a_trial_that_ranks_last_and_is_paid_and_not_run_again(
    tiny: TinyStudy, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both arms break at the largest rate, which leaves that point without any score, and one at the middle one."""
    break_training(monkeypatch, {("no_kd", 1e-1), ("kd", 1e-1), ("kd", 2e-3)})
    out = tmp_path / "out"
    assert searched(tiny, tmp_path) == 0
    said = capsys.readouterr().out
    assert "25 steps in a row had a non-finite gradient" in said
    kd, no_kd = records(out, "kd"), records(out, "no_kd")
    assert [kd[point]["state"] for point in ("0.0005", "0.002", "0.1")] == ["done", "diverged", "diverged"]
    assert [no_kd[point]["state"] for point in ("0.0005", "0.002", "0.1")] == ["done", "done", "diverged"]
    assert 0 < kd["0.1"]["charged"] < 3e9
    assert kd["0.1"]["steps"] == 2 + 25
    study = validate(yaml.safe_load((out / "tuned.yaml").read_text(encoding="utf-8")), where="tuned")
    spent = {arm.name: arm.tuning_cost for arm in study.arms}
    assert [arm.trials for arm in study.arms] == [3, 3]
    assert spent["kd"][0] == f"{kd['0.0005']['charged'] + 2 * 3_000_000_000} flop"
    assert spent["no_kd"][0] == f"{no_kd['0.0005']['charged'] + no_kd['0.002']['charged'] + 3_000_000_000} flop"
    assert study.for_arm(study.arms[1]).optimizer.lr == 5e-4
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    lines = {line["arm"]: line for line in report["answer"]["lines"]}
    assert (lines["kd"]["diverged"], lines["no_kd"]["diverged"]) == ([0.002, 0.1], [0.1])
    assert "Diverged at 0.002 and 0.1." in lines["kd"]["sentence"]
    assert report["missing"] == []
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "kd: diverged at 0.1" in page
    assert "dots on the upper edge: diverged" in page
    assert [row.get("diverged") for row in report["tables"]["points"]] == [None, None, None, 1, 1, 1]
    kept = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    tuned = (out / "tuned.yaml").read_bytes()
    assert searched(tiny, tmp_path, "--resume") == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")} == kept
    assert (out / "tuned.yaml").read_bytes() == tuned
    capsys.readouterr()
    assert cli.main(["status", str(out)]) == 0
    judged: list[str] = []
    monkeypatch.setattr(evaluate, "_evaluated", lambda place, options: judged.append(place.name))
    assert cli.main(["evaluate", str(out), "--glue", str(tmp_path), "--tasks", "cola", "--json"]) == 0
    assert judged == ["0.0005", "0.002"], "the third has no students"


def test_an_arm_that_diverges_at_every_rate_is_told_and_no_study_is_written(
    tiny: TinyStudy, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_training(monkeypatch, {("kd", 5e-4), ("kd", 2e-3), ("kd", 1e-1)})
    assert searched(tiny, tmp_path) == 2
    told = capsys.readouterr()
    assert "kd: no trial with a score. Diverged at 0.0005, 0.002 and 0.1." in told.err
    headline = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["answer"]["headline"]
    assert headline.startswith("no_kd is best at learning rate ")
    assert headline.endswith("; none can be named for kd")
    assert not (tmp_path / "out" / "tuned.yaml").exists()
    assert (tmp_path / "out" / "report.html").exists()
