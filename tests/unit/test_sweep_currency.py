"""Laws of a sweep's second currency: ladders are compared at equal cost in it, from whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.errors import DataError
from harness.study.reading import load as load_study
from harness.study.reading import names, read
from harness.sweep import load
from harness.sweep.currency import Costs
from harness.sweep.expand import expand
from harness.sweep.gather import gather
from harness.sweep.publish import build, summary_lines
from harness.sweep.tuning import tuned
from harness.units import Unit

SEEDS = (1, 2, 3, 4)


FLOPS = ("0.3 Tflop", "0.6 Tflop", "1.2 Tflop", "2.4 Tflop")
MEASURED = ("3 gpu-seconds", "6 gpu-seconds", "12 gpu-seconds", "24 gpu-seconds")
MOVED = ("one", "one", "one", "another")


def ladder(
    root: Path,
    seconds: dict[str, float],
    *,
    devices: tuple[str, ...] = 4 * ("one",),
    values: tuple[str, ...] = FLOPS,
    **study_keys: Any,
) -> Path:
    """The shipped crossover on four rungs of its own, finished: arms fall by a nat per doubling, TinyBERT from where it is one lower.

    seconds: of each arm per Tflop; where the budget is measured, it is what is spent.
    """
    root.mkdir()
    tree = read("crossover")
    tree["sweep"] |= {"values": list(values), "trunk": values == FLOPS}
    (root / "sweep.yaml").write_text(yaml.safe_dump(tree | study_keys), encoding="utf-8")
    for point, device in zip(load(root).points, devices, strict=True):
        study = point.study({})
        folder = root / point.folder
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
        for arm, per_tflop in seconds.items():
            for seed in SEEDS:
                spent = float(study.limit.limit)
                tflop = spent / 1e12 if study.limit.unit is Unit.FLOP else spent / 10
                noise = 0.01 * float(np.random.default_rng([seed, len(arm)]).normal())
                record: dict[str, Any] = {
                    "identity": {"hardware": {"devices": [device]}, "world_size": {"ranks": 1}},
                    "name": arm, "seed": seed, "state": "done", "charged": spent, "seconds": per_tflop * tflop,
                    "scores": {"readout.loss": 6.0 - float(np.log2(tflop / 0.3)) - (arm == "tinybert") * 1.0 + noise},
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


# -- a measured budget -----------------------------------------------------------------------------------


def test_a_measured_budget_spent_on_unlike_machines_tells_nothing_of_the_sweep(tmp_path: Path) -> None:
    """Every rung is sound by itself; a line from one machine's seconds to another's is none."""
    seconds = {"no_kd": 10.0, "tinybert": 10.0}
    alike = build(ladder(tmp_path / "alike", seconds, values=MEASURED))
    assert alike["answer"]["headline"].startswith("No crossover")
    report = build(ladder(tmp_path / "moved", seconds, values=MEASURED, devices=MOVED))
    said = report["answer"]
    assert said["headline"] == "Cannot tell yet, run all arms on the same hardware"
    assert "the budget is measured, and " in said["reason"]
    assert said["reason"].endswith("12 gpu-seconds ran on one × 1 rank and 24 gpu-seconds on another × 1 rank")
    (line,) = said["lines"]
    assert line == {
        "arm": "tinybert",
        "sentence": "tinybert or no_kd: cannot tell yet, run all arms on the same hardware",
    }
    assert said["asides"] == []
    assert all("beats" in point["verdict"]["sentence"] for point in report["points"])
    pages = {name: (tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("alike", "moved")}
    assert ("<figure" in pages["alike"], "<figure" in pages["moved"]) == (True, False)


def test_a_point_whose_own_verdict_is_withheld_is_not_overruled_by_the_sweep(tmp_path: Path) -> None:
    root = ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0}, values=MEASURED)
    for file in root.glob("points/6-gpu-seconds/arms/tinybert/*/record.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        record["identity"]["hardware"]["devices"] = ["another"]
        file.write_text(json.dumps(record), encoding="utf-8")
    report = build(root)
    assert report["points"][1]["verdict"]["sentence"].endswith("run all arms on the same hardware")
    assert report["answer"]["headline"] == "Cannot tell yet, run all arms on the same hardware"
    assert "of seed 1, no_kd ran on one × 1 rank and tinybert on another" in report["answer"]["reason"]


def test_a_search_or_a_choice_of_teachers_on_unlike_machines_names_no_best_value(tmp_path: Path) -> None:
    for kind in ("tune", "teacher_size"):
        root = ladder(tmp_path / kind, {"no_kd": 10.0, "tinybert": 10.0}, values=MEASURED, devices=MOVED)
        tree = yaml.safe_load((root / "sweep.yaml").read_text(encoding="utf-8"))
        places = enumerate(tree["sweep"]["values"], start=1)
        points = [{"set": {"budget": value}, "label": value.replace(" ", "-"), "at": at} for at, value in places]
        tree["sweep"] = {"kind": kind, "points": points}
        (root / "sweep.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        said = build(root)["answer"]
        assert said["headline"] == "Cannot tell yet, run all arms on the same hardware", kind
        assert not any("best" in text["sentence"] for text in said["lines"] + said["asides"]), kind
        if kind == "tune":
            assert [line["arm"] for line in said["lines"]] == ["no_kd", "tinybert"]
            with pytest.raises(DataError, match="unlike machines"):
                tuned(load_study("quickstart"), gather(root))


# -- point by point --------------------------------------------------------------------------------------


def test_a_verdict_that_has_the_same_order_without_its_proof_does_not_hold_in_device_time(tmp_path: Path) -> None:
    """TinyBERT takes twice the time and is read half-way: there it is clearly ahead at one point, by chance at the others."""
    root = ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 20.0})
    tree = yaml.safe_load((root / "sweep.yaml").read_text(encoding="utf-8"))
    places = enumerate(tree["sweep"]["values"], start=1)
    points = [{"set": {"budget": value}, "label": value.replace(" ", "-").lower(), "at": at} for at, value in places]
    tree["sweep"] = {"kind": "repetition", "points": points}
    (root / "sweep.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    wide = {1: -0.9, 2: 0.9, 3: -0.5, 4: 0.7}
    for point in points:
        for seed in SEEDS:
            folder = root / "points" / point["label"] / "arms" / "tinybert" / f"seed-{seed}"
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            half = record["scores"]["readout.loss"] + 0.5 + (0.0 if point["at"] == 4 else wide[seed])
            row = {"spent": record["charged"] / 2, "fraction": 0.5, "readout_loss": half}
            (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    report = build(root)
    assert all(p["verdict"]["better"] == "tinybert" for p in report["points"])
    (line,) = report["answer"]["currencies"]
    assert line["sentence"] == (
        "In device time: the verdict holds at 4 tokens; cannot be told at 1 tokens, 2 tokens, 3 tokens"
    )
    told = report["tables"]["currencies"]
    assert [row["flip"] for row in told] == ["unknown", "unknown", "unknown", "no"]
    assert "cannot tell yet" in told[0]["in_this_currency"]
    assert "tinybert beats no_kd" in told[3]["in_this_currency"]


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
