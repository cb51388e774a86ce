"""A sweep says what its sentences rest on: points that were measured, straight lines between them, one seed or several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_search_of_one_seed_says_what_one_seed_cannot_tell(tmp_path: Path, seeds: int) -> None:
    root = ladder(tmp_path / "s", {"no_kd": 10.0, "tinybert": 10.0})
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
    report = build(root)
    page = (root / "report.html").read_text()
    assert ("one seed does not tell" in report["answer"]["reason"]) == (seeds == 1)
    assert ("thin lines: single seeds" in page) == (seeds > 1)
    assert ">0.001<" in page.replace("\n", "").replace(" ", "")
    assert "0.00100" not in page
    # The fixture falls along its axis: the best of both arms is the last, the edge.
    assert report["answer"]["headline"].endswith("2 of 2 on the edge of the grid")
    assert all("edge of the grid" in line["sentence"] for line in report["answer"]["lines"])
