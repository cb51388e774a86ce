"""Sweeps on real runs of tiny studies: what is shared, what is branched, what is reported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli
from harness.chaos.tiny import TinyStudy
from tests.unit.test_laws import same, weights

SCORES = {"curve_points": 0, "mlm_blocks": 16, "readout": {"steps": 5, "positions": 64, "blocks": 32}}
ARMS = [{"name": "no_kd", "objective": "mlm"}, {"name": "kd", "objective": "soft_targets"}]


def sweep(tiny: TinyStudy, folder: Path, **changes: Any) -> Path:
    tree = {**tiny.tree(arms=ARMS, evaluation=SCORES, baseline="no_kd", seeds=[1, 2], checkpoints=0), **changes}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def run(file: Path, out: Path, *flags: str, code: int = 0) -> Path:
    assert cli.main(["run", "--study", str(file), "--out", str(out), *flags]) == code
    return out


def record(point: Path, arm: str, seed: int = 1) -> dict[str, Any]:
    return json.loads((point / "arms" / arm / f"seed-{seed}" / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shares(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over who pays for a teacher that the sweep trains itself."""
    folder = tmp_path_factory.mktemp("shares")
    file = sweep(
        tiny, folder, budget="1 Gflop", teacher={"path": "@own", "trained_on": "same", "allow_worse": True},
        sweep={
            "kind": "amortise", "key": "accounting.teacher_training",
            "values": ["free", {"amortised_over": 4}, {"amortised_over": 2}],
            "teachers": [{"name": "own", "budget": "1 Gflop", "student": {"layers": 3}}],
        },
    )  # fmt: skip
    return run(file, folder / "out")


def test_students_pay_the_share_that_their_point_says(shares: Path) -> None:
    own = record(shares / "teachers" / "own", "teacher")["charged"]
    for point, k in (("free", None), ("amortised-over-4", 4), ("amortised-over-2", 2)):
        paid = record(shares / "points" / point, "kd")["accounts"]["TEACHER_TRAINING"]["flop"]
        charged = record(shares / "points" / point, "kd")["charged"]
        steps = sum(
            record(shares / "points" / point, "kd")["accounts"][name]["flop"]
            for name in ("STUDENT_STEP", "TEACHER_FORWARD")
        )
        assert charged == steps + (round(own / k) if k else 0)
        assert paid == (round(own / k) if k else own)


def test_what_points_would_train_alike_is_trained_once(shares: Path) -> None:
    for point in ("amortised-over-4", "amortised-over-2"):
        assert record(shares / "points" / point, "no_kd")["shared_with"] == "points/free/arms/no_kd/seed-1"
        assert "shared_with" not in record(shares / "points" / point, "kd")
        assert same(weights(shares / "points" / point, "no_kd"), weights(shares / "points" / "free", "no_kd"))


STEPS = ("STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE")


def booked(root: Path, accounts: tuple[str, ...] = STEPS) -> int:
    """FLOPs of these accounts over all trials that were trained here, less what a branch took over from its trunk."""
    total = 0
    for file in root.glob("*/*/arms/*/seed-*/record.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        if "shared_with" not in found:
            total += sum(found["accounts"].get(name, {}).get("flop", 0) for name in accounts)
            total -= (found.get("branched") or {}).get("spent", 0)
    return total


def planned(file: Path, capsys: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["plan", "--study", str(file), "--on", "1xh200", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_plan_counts_a_shared_trial_once_as_it_is_trained(shares: Path, capsys: Any) -> None:
    table = planned(shares / "sweep.yaml", capsys)
    totals = {label: plan["total"] for label, plan in table["plans"].items()}
    assert {label: total["trials"] for label, total in totals.items()} == {
        "teacher own": 1, "free": 4, "amortised_over 4": 2, "amortised_over 2": 2
    }  # fmt: skip
    assert {label: total["trials_made"] for label, total in totals.items()}["amortised_over 4"] == 2
    # The teacher's training is known to within one of its steps; the students' shares of it too.
    assert table["total"]["training_flop"] == pytest.approx(booked(shares), rel=0.02)
    assert table["total"]["evaluation_flop"] == pytest.approx(booked(shares, ("EVALUATION",)), rel=0.02)
    assert totals["free"]["reference_flop"] > totals["amortised_over 4"]["reference_flop"]


def test_the_report_is_one_offline_page_with_every_point(shares: Path) -> None:
    page = (shares / "report.html").read_text(encoding="utf-8")
    assert len(page) < 2_000_000
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<svg") == 2
    report = json.loads((shares / "report.json").read_text(encoding="utf-8"))
    assert [point["x"] for point in report["points"]] == [0.0, 0.25, 0.5]
    assert report["missing"] == []
    line = report["answer"]["lines"][0]
    scores = [point["scores"] for point in report["points"]]
    by_hand = [sum(s["no_kd"][k] - s["kd"][k] for k in ("1", "2")) / 2 for s in scores]
    assert line["along"]["mean"] == pytest.approx(by_hand)
    rows = (shares / "tables" / "points.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3 * 2


def test_a_finished_sweep_run_again_trains_nothing(shares: Path, capsys: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in shares.rglob("model.safetensors")}
    run(shares / "sweep.yaml", shares)
    assert {p: p.stat().st_mtime_ns for p in shares.rglob("model.safetensors")} == before
    assert cli.main(["status", str(shares)]) == 0


def test_an_unfinished_sweep_says_what_is_missing(shares: Path, tmp_path: Path) -> None:
    import shutil

    from harness.sweep.publish import build

    copy = tmp_path / "half"
    shutil.copytree(shares, copy)
    shutil.rmtree(copy / "points" / "amortised-over-2")
    shutil.rmtree(copy / "points" / "amortised-over-4")
    report = build(copy)
    assert report["missing"] == ["amortised_over 4: not begun", "amortised_over 2: not begun"]
    assert report["answer"]["headline"] == "Cannot tell yet"


def test_another_folder_than_a_sweeps_is_refused(tiny: TinyStudy, tmp_path: Path) -> None:
    file = sweep(tiny, tmp_path, sweep={"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    run(file, tmp_path / "out", code=2)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


COOLDOWN = {"warmup": 0.25, "decay": "cooldown", "cooldown": 0.25}


def test_a_branched_run_is_the_straight_one_bit_for_bit_and_priced_as_a_branch(
    tiny: TinyStudy, tmp_path: Path, capsys: Any
) -> None:
    """Budgets a factor of two apart: then both warm-ups are the same rates to the last bit."""
    ladder = {"kind": "crossover", "key": "budget", "values": ["2 Gflop", "4 Gflop"], "trunk": True}
    file = sweep(tiny, tmp_path, schedule=COOLDOWN, seeds=[1], sweep=ladder)
    branched = run(file, tmp_path / "branched")
    table = planned(file, capsys)
    points = [
        {"label": "2 Gflop", "set": {"budget": "2 Gflop"}},
        {"label": "4 Gflop", "set": {"budget": "4 Gflop", "schedule.warmup": 0.125}},
    ]
    apart = sweep(tiny, tmp_path, schedule=COOLDOWN, seeds=[1], sweep={"kind": "crossover", "points": points})
    straight = run(apart, tmp_path / "straight")
    for arm in ("no_kd", "kd"):
        mine, other = (record(root / "points" / "4-gflop", arm) for root in (branched, straight))
        assert mine["branched"]["from"] == f"points/2-gflop/arms/{arm}/seed-1"
        assert 0 < mine["branched"]["step"] < mine["steps"]
        assert other["branched"] is None
        for key in ("steps", "charged", "tokens", "algorithmic_flop"):
            assert mine[key] == other[key]
        assert same(weights(branched / "points" / "4-gflop", arm), weights(straight / "points" / "4-gflop", arm))
        lost = mine["accounts"].get("LOST", {})
        assert not lost, "nothing of the trunk's own cooldown is anybody's loss"
        assert mine["overrides"] == []
        begun = {row["name"]: row["trunk_steps"] for row in table["plans"]["2 Gflop"]["arms"]}
        assert begun[arm] == mine["branched"]["step"]
    assert table["total"]["training_flop"] == pytest.approx(booked(branched), abs=2), "to the last step"
    assert not list(branched.rglob("trunk")), "trunks go when the sweep is done"


def standing(root: Path) -> dict[str, bytes]:
    files = [*(root / name for name in ("sweep.yaml", "status.json", "report.json")), *root.glob("*/*/study.yaml")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_a_refused_sweep_leaves_a_finished_one_as_it_was(shares: Path, tmp_path: Path) -> None:
    """Its teacher refuses another learning rate: that sweep has not begun, and this one is still done."""
    before = standing(shares)
    mine = tmp_path / "sweep.yaml"
    mine.write_bytes(before["sweep.yaml"])
    run(mine, shares, "--set", "optimizer.lr=0.5", "--auto-resume", code=2)
    assert standing(shares) == before
    assert cli.main(["status", str(shares)]) == 0


def test_a_point_that_was_added_is_not_trained_before_another_is_refused(
    shares: Path, tmp_path: Path, capsys: Any
) -> None:
    before, mine = standing(shares), tmp_path / "sweep.yaml"
    tree = yaml.safe_load(before["sweep.yaml"])
    tree["sweep"]["values"].insert(0, {"amortised_over": 8})
    tree["arms"][1]["objective"] = "distilbert"  # its teacher is the same: only the points differ
    mine.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    capsys.readouterr()
    run(mine, shares, "--auto-resume", code=2)
    assert "arm kd differs" in capsys.readouterr().err
    assert standing(shares) == before
    assert len(list((shares / "points").iterdir())) == 3


def test_two_sweeps_never_work_in_one_directory(shares: Path, capsys: Any) -> None:
    from harness.rundir import RunDirectory

    before, first = standing(shares), RunDirectory(shares)
    first.lock()
    run(shares / "sweep.yaml", shares, "--auto-resume", code=2)
    assert f"another run is using it (process {os.getpid()}" in capsys.readouterr().err
    first.close()
    assert standing(shares) == before


def test_a_hang_in_a_point_is_the_last_word_of_the_sweep(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes end there: what is asked then, by a script that would start them again, is seen as they end."""
    import threading

    from harness import recorded, watchdog
    from harness.conduct import Conductor
    from harness.errors import Preempted

    file = sweep(tiny, tmp_path, sweep={"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"]})
    out, ended, seen = tmp_path / "out", threading.Event(), []

    def leave(code: int) -> None:
        seen.append((code, recorded.recorded_exit_code(out, after="before"), cli.main(["status", str(out)])))
        ended.set()

    def hang(*_: Any) -> None:
        assert ended.wait(60)
        raise Preempted("the test is over")

    monkeypatch.setattr(watchdog.os, "_exit", leave)
    monkeypatch.setattr(Conductor, "train", hang)
    run(file, out, "--hang-timeout", "0.5", code=75)
    assert seen == [(75, 75, 75)]
