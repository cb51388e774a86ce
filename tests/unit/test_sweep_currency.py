"""Laws of a sweep's second currency: ladders are compared at equal cost in it, from whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.study.reading import load as load_study
from harness.study.reading import names, read
from harness.sweep import load
from harness.sweep.currency import Costs
from harness.sweep.expand import expand
from harness.sweep.publish import build, summary_lines

SEEDS = (1, 2, 3, 4)


def ladder(
    root: Path, seconds: dict[str, float], *, devices: tuple[str, ...] = 4 * ("one",), **study_keys: Any
) -> Path:
    """The shipped crossover on four rungs of its own, finished: both arms fall by a nat per doubling, the second from where it is one lower."""
    root.mkdir()
    tree = read("crossover")
    tree["sweep"]["values"] = ["0.3 Tflop", "0.6 Tflop", "1.2 Tflop", "2.4 Tflop"]
    (root / "sweep.yaml").write_text(yaml.safe_dump(tree | study_keys), encoding="utf-8")
    for point, device in zip(load(root).points, devices, strict=True):
        study = point.study({})
        folder = root / point.folder
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
        for arm, per_tflop in seconds.items():
            for seed in SEEDS:
                spent = float(study.limit.limit)
                noise = 0.01 * float(np.random.default_rng([seed, len(arm)]).normal())
                record: dict[str, Any] = {
                    "identity": {"hardware": {"devices": [device]}, "world_size": {"ranks": 1}},
                    "name": arm, "seed": seed, "state": "done", "charged": spent, "seconds": per_tflop * spent / 1e12,
                    "scores": {"readout.loss": 6.0 - float(np.log2(spent / 3e11)) - (arm == "tinybert") * 1.0 + noise},
                }  # fmt: skip
                place = folder / "arms" / arm / f"seed-{seed}"
                place.mkdir(parents=True)
                (place / "record.json").write_text(json.dumps(record), encoding="utf-8")
                (place / "metrics.jsonl").write_text("", encoding="utf-8")
    return root


def test_scores_are_read_on_straight_lines_over_the_logarithm_of_the_cost() -> None:
    costs = Costs(np.array([10.0, 40.0, 160.0]), np.array([[5.0, 5.2], [4.0, 4.2], [3.0, 3.2]]))
    assert costs.read(np.array([10.0, 20.0, 80.0, 160.0])) == pytest.approx(
        np.array([[5.0, 5.2], [4.5, 4.7], [3.5, 3.7], [3.0, 3.2]])
    )


@pytest.mark.parametrize(("dearer", "winner", "by"), [(1.0, "tinybert", 1.0), (4.0, "no_kd", 1.0)])
def test_a_ladder_is_compared_at_equal_device_time_from_whole_runs(
    tmp_path: Path, dearer: float, winner: str, by: float
) -> None:
    """An arm that is a nat better per FLOP and four times as slow is two doublings, two nats, behind in time."""
    report = build(ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0 * dearer}))
    (line,) = report["answer"]["currencies"]
    assert report["answer"]["headline"].startswith("No crossover")
    assert line["sentence"].startswith("In device time: no crossover from ")
    assert f"{winner} beats" in line["sentence"]
    assert np.abs(line["mean"]) == pytest.approx(by, abs=0.05)
    assert (line["x"][0], line["x"][-1]) == pytest.approx((3.0 * dearer, 24.0))  # where both arms have runs
    page, text = ((tmp_path / "s" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "In device time: no crossover" in text
    assert '<p class="small">In device time</p>' in page
    assert "set evaluation" not in page + text
    assert any("In device time" in text for text in summary_lines(report))


def test_rungs_that_ran_on_other_devices_are_not_joined_by_a_line(tmp_path: Path) -> None:
    """No rung mixes devices, so no rung by itself has anything to refuse."""
    report = build(ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0}, devices=("one", "one", "one", "another")))
    (line,) = report["answer"]["currencies"]
    assert line["sentence"].startswith("In device time: tinybert or no_kd: cannot tell, ")
    assert "ran on one × 1 rank and" in line["sentence"]
    assert line["sentence"].endswith("on another × 1 rank")
    assert report["answer"]["headline"].startswith("No crossover"), "in FLOPs they are comparable"


def test_a_teacher_that_is_paid_in_flops_alone_is_no_gift_in_device_time(tmp_path: Path) -> None:
    root = ladder(
        tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0}, accounting={"teacher_training": {"amortised_over": 900}}
    )
    for file in root.glob("points/*/arms/tinybert/*/record.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(record | {"accounts": {"TEACHER_TRAINING": {"flop": 10**10}}}), encoding="utf-8")
    (line,) = build(root)["answer"]["currencies"]
    assert "cannot tell, teacher training is charged and nobody said what it cost in device time" in line["sentence"]


def test_costs_that_do_not_overlap_are_said_and_not_compared(tmp_path: Path) -> None:
    report = build(ladder(tmp_path / "s", {"no_kd": 1.0, "tinybert": 50.0}))
    (line,) = report["answer"]["currencies"]
    assert line["sentence"].endswith("cannot tell, what the arms took in device time does not overlap")


def test_every_study_whose_costs_are_known_in_device_time_has_its_read_out_on_the_curve() -> None:
    """Sweeps of budgets have it from their ladder; of the built-in teacher nobody knows what its training took here."""
    small = [load_study(n) for n in names() if not n.startswith("paper_") and not n.endswith("_teacher")]
    for name in ("repetition", "teacher_size", "teacher_budget"):
        small += [p.study(dict.fromkeys(p.teachers, "builtin")) for p in expand(read(name), where=name).points]
    assert {study.name for study in small} == {
        "quickstart", "quickstart_causal", "split", "domains", "repetition", "teacher_size", "teacher_budget",
    }  # fmt: skip
    large = [load_study(n) for n in names() if n.startswith("paper_") and n != "paper_code_ablation"]
    for name in ("paper_repetition", "paper_teacher_size", "paper_teacher_budget"):
        large += [p.study(dict.fromkeys(p.teachers, "builtin")) for p in expand(read(name), where=name).points]
    assert len({study.name for study in large}) == 8
    for study in small + large:
        assert study.evaluation.main == "readout.loss" or study in large
        assert study.evaluation.readout is not None
        assert study.evaluation.readout.on_curve, study.name
        assert study.evaluation.curve_points >= 1, study.name  # between the untrained student and the end
