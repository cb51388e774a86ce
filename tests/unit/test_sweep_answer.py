"""A sweep says what its sentences rest on: points that were measured, straight lines between them, one seed or several."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from harness.compare import mean_interval
from harness.study.reading import read
from harness.sweep.figures import charts
from harness.sweep.gather import gather
from harness.sweep.publish import build
from tests.unit.test_sweep_currency import ladder


def shifted(root: Path, by: dict[str, float]) -> Path:
    """TinyBERT's scores at every point so much above from scratch's of the same seed."""
    for point, amount in by.items():
        for seed in (1, 2, 3, 4):
            arms = root / "points" / point / "arms"
            base = json.loads((arms / f"no_kd/seed-{seed}/record.json").read_text())["scores"]["readout.loss"]
            file = arms / f"tinybert/seed-{seed}/record.json"
            record = json.loads(file.read_text())
            record["scores"]["readout.loss"] = base + amount + 0.01 * seed
            file.write_text(json.dumps(record))
    return root


def test_a_flip_names_the_points_it_was_read_off_between(tmp_path: Path) -> None:
    root = shifted(
        ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0}),
        {"0.3-tflop": 0.5, "0.6-tflop": 0.4, "1.2-tflop": -0.6, "2.4-tflop": -0.7},
    )
    report = build(root)
    assert "flips at" in report["answer"]["headline"]
    (aside,) = [each for each in report["answer"]["asides"] if "nothing was measured" in each["sentence"]]
    assert (aside["below"], aside["above"]) == (6e11, 1.2e12)
    for text in ((root / "report.md").read_text(), (root / "report.html").read_text()):
        assert "between 600 GFLOP and 1.2 TFLOP, where tinybert changes places, nothing was measured" in text


def test_two_points_at_one_place_have_a_report_without_a_line_along_them(tmp_path: Path) -> None:
    """As teachers of one size leave them in a sweep from before they were refused."""
    root = ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0})
    tree = yaml.safe_load((root / "sweep.yaml").read_text())
    keys = ("set", "label", "at")
    budgets = tree["sweep"]["values"]
    tree["sweep"] = {
        "kind": "teacher_size",
        "points": [dict(zip(keys, ({"budget": each}, each, 5e6), strict=True)) for each in budgets],
    }
    (root / "sweep.yaml").write_text(yaml.safe_dump(tree))
    report = build(root)
    assert len(report["points"]) == len(budgets)
    assert "rungs are finite and increase" in report["answer"]["lines"][0]["sentence"]
    assert "Difference to no_kd" not in (root / "report.html").read_text()


def test_where_no_order_flips_nothing_is_said_of_lines_between_points(tmp_path: Path) -> None:
    report = build(ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0}))
    assert not any("nothing was measured" in each["sentence"] for each in report["answer"]["asides"])


def search(root: Path, *, seeds: int) -> Path:
    """Two arms at four rates; the fixture falls along its axis: the best of both arms is the last."""
    root = ladder(root, {"no_kd": 10.0, "tinybert": 10.0})
    tree = yaml.safe_load((root / "sweep.yaml").read_text())
    rates = {"0.3-tflop": 0.001, "0.6-tflop": 0.002, "1.2-tflop": 0.004, "2.4-tflop": 0.008}
    tree |= {"budget": "1 Tflop", "seeds": list(range(1, seeds + 1))}
    tree["sweep"] = {"kind": "tune", "key": "optimizer.lr", "values": list(rates.values())}
    (root / "sweep.yaml").write_text(yaml.safe_dump(tree))
    for point, rate in rates.items():
        folder = (root / "points" / point).rename(root / "points" / f"{rate:g}")
        study = yaml.safe_load((folder / "study.yaml").read_text())
        (folder / "study.yaml").write_text(yaml.safe_dump(study | {"seeds": tree["seeds"]}))
        for seed in range(seeds + 1, 5):
            for place in folder.glob(f"arms/*/seed-{seed}"):
                shutil.rmtree(place)
    return root


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_search_of_one_seed_says_what_one_seed_cannot_tell(tmp_path: Path, seeds: int) -> None:
    root = search(tmp_path / "s", seeds=seeds)
    report = build(root)
    page = (root / "report.html").read_text()
    assert ("one seed does not tell" in report["answer"]["reason"]) == (seeds == 1)
    assert ("thin lines: single seeds" in page) == (seeds > 1)
    assert ">0.001<" in page.replace("\n", "").replace(" ", "")
    assert "0.00100" not in page
    assert report["answer"]["headline"].endswith("2 of 2 on the edge of the grid")
    assert all("edge of the grid" in line["sentence"] for line in report["answer"]["lines"])


def test_a_rate_at_which_one_seed_diverged_ranks_last_however_the_others_score(tmp_path: Path) -> None:
    """The mean of the seeds that held would be the luckiest of a rate that breaks every fourth run."""
    root = search(tmp_path / "s", seeds=4)
    file = root / "points/0.008/arms/tinybert/seed-2/record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"state": "diverged", "diverged": "25 steps in a row", "scores": {}}))
    report = build(root)
    lines = {line["arm"]: line for line in report["answer"]["lines"]}
    assert (lines["tinybert"]["best"], lines["tinybert"]["edge"]) == (0.004, False)
    assert lines["tinybert"]["sentence"].endswith("Diverged at 0.008.")
    assert (lines["no_kd"]["best"], lines["no_kd"]["diverged"]) == (0.008, [])
    (row,) = [row for row in report["tables"]["points"] if row.get("diverged")]
    assert (row["x"], row["arm"], row["diverged"]) == (0.008, "tinybert", 1)
    assert "1 of 4 seeds" in (root / "report.html").read_text()
    assert report["missing"] == []


# -- scores that do not measure an arm -------------------------------------------------------------------

POINTS = ("0.3-tflop", "0.6-tflop", "1.2-tflop", "2.4-tflop")
THREE = [
    {"name": "no_kd", "objective": "mlm"},
    {"name": "tinybert", "objective": "tinybert"},
    {"name": "minilmv2", "objective": "minilmv2"},
]


def judged_by_own_head(root: Path, headless: str, seconds: dict[str, float] | None = None) -> Path:
    """The fixture's ladder decided by the students' own loss; one arm never trained the head and scores by chance."""
    arms = seconds or {"no_kd": 10.0, "tinybert": 10.0, "minilmv2": 10.0}
    evaluation = read("crossover")["evaluation"] | {"main": "mlm.loss"}
    ladder(root, arms, arms=[arm for arm in THREE if arm["name"] in arms], evaluation=evaluation)
    for file in root.glob("points/*/arms/*/*/record.json"):
        record = json.loads(file.read_text())
        lost = record["name"] == headless
        loss = 8.3 + 0.01 * record["seed"] ** 2 if lost else record["scores"]["readout.loss"]
        record |= {"head_trained": not lost, "scores": {"mlm.loss": loss}}
        file.write_text(json.dumps(record))
    return root


def test_an_arm_that_the_score_does_not_measure_has_no_effect_in_table_chart_or_family(tmp_path: Path) -> None:
    report = build(root := judged_by_own_head(tmp_path / "s", "minilmv2"))
    alone = build(judged_by_own_head(tmp_path / "t", "nobody", {"no_kd": 10.0, "tinybert": 10.0}))
    with (root / "tables" / "points.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "minilmv2"]
    assert len(rows) == 4
    assert all(row["effect"] == row["effect_low_95"] == row["effect_high_95"] == "" for row in rows)
    assert {row["comparable"] for row in rows} == {"False"}
    # The honest arm's intervals are those of a study without the other: it is in no family.
    ours, theirs = ([r for r in each["tables"]["points"] if r["arm"] == "tinybert"] for each in (report, alone))
    assert [r["effect_low_95"] for r in ours] == [r["effect_low_95"] for r in theirs]
    (line, _), (same,) = report["answer"]["lines"], alone["answer"]["lines"]
    assert (line["family"], line["low"], line["high"]) == (1, same["low"], same["high"])
    assert report["answer"]["lines"][1]["sentence"] == (
        "minilmv2 or no_kd: cannot tell by this score: minilmv2 never trained an MLM head"
    )
    (timed, untold), (sole,) = report["answer"]["currencies"], alone["answer"]["currencies"]
    assert (timed["family"], timed["low"]) == (1, sole["low"])
    assert "never trained an MLM head" in untold["sentence"]
    drawn = {line.arm for chart in charts(gather(root)) for line in [*chart.lines, *chart.areas]}
    assert drawn == {0, 1}
    text = (root / "report.md").read_text()
    assert "† Meaningless as a comparison: minilmv2 never trained an MLM head." in text
    assert text.count(" †") == 4


def test_a_baseline_that_the_score_does_not_measure_is_held_against_nothing(tmp_path: Path) -> None:
    report = build(root := judged_by_own_head(tmp_path / "s", "no_kd"))
    said = report["answer"]
    assert said["headline"].endswith("cannot tell by this score: no_kd never trained an MLM head")
    assert len(said["currencies"]) == 2
    for line in said["currencies"]:
        assert line["sentence"].endswith("or no_kd: cannot tell, no_kd never trained an MLM head")
    assert not any("beats" in line["sentence"] for line in [*said["lines"], *said["currencies"]])
    assert all(row["effect"] is None and row["effect_low_95"] is None for row in report["tables"]["points"])
    assert [chart.zero for chart in charts(gather(root))] == [None]  # the scores alone


# -- pictures --------------------------------------------------------------------------------------------


def test_every_arms_curve_has_the_interval_of_its_mean_over_seeds(tmp_path: Path) -> None:
    root = ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0})
    found = gather(root)
    _, scores = charts(found)
    assert "band: 95 % interval of each arm's mean over seeds, unpaired" in scores.detail
    assert [area.arm for area in scores.areas] == [0, 1]
    height = {tick.text: tick.at for tick in scores.y_ticks}
    (one, top), (two, low) = ((float(text), at) for text, at in list(height.items())[:2])
    for area, arm in zip(scores.areas, found.arms, strict=True):
        corners = [tuple(map(float, pair.split())) for pair in area.path.removeprefix("M").split("L")]
        values = [one + (y - top) * (two - one) / (low - top) for _, y in corners]
        bounds = [mean_interval(list(each.scores[arm.name].values())) for each in found.at]
        wanted = [bound[1] for bound in bounds if bound] + [bound[0] for bound in reversed(bounds) if bound]
        assert values == pytest.approx(wanted, abs=2e-3)
    for seed in (2, 3, 4):
        for folder in root.glob(f"points/*/arms/no_kd/seed-{seed}"):
            shutil.rmtree(folder)
    _, scores = charts(gather(root))
    assert [area.arm for area in scores.areas] == [1], "one seed has no interval"


def test_a_band_of_two_seeds_leaves_the_curves_legible(tmp_path: Path) -> None:
    """Two seeds' interval is nine standard deviations wide on either side: the scale stays that of what was measured."""
    root = ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0})
    for file in root.glob("points/0.3-tflop/arms/no_kd/*/record.json"):
        record = json.loads(file.read_text())
        if record["seed"] > 2:
            shutil.rmtree(file.parent)
            continue
        record["scores"]["readout.loss"] += 0.5 * (-1) ** record["seed"]
        file.write_text(json.dumps(record))
    _, scores = charts(gather(root))
    ys = [dot.y for line in scores.lines for dot in line.dots]
    assert max(ys) - min(ys) > 40
    corners = [float(pair.split()[1]) for area in scores.areas for pair in area.path.removeprefix("M").split("L")]
    assert min(corners) >= 0
    assert max(corners) <= 100
