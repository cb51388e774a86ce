"""Saves and points of the curve lie at fixed fractions of the budget, also where a resume asks for other numbers of them."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from harness import cli, interruption, kept, train
from harness.budget import parse_postings
from harness.evaluate.suite import Candidate, Suite
from harness.train import milestones
from tests.support.tiny import TinyStudy

STOPPED_AFTER = 10


@given(st.integers(0, 40), st.lists(st.floats(0, 1), min_size=1).map(sorted))
def test_every_point_is_passed_once_and_the_last_lies_before_the_end(count: int, fractions: list[float]) -> None:
    passed = [milestones(fraction, count) for fraction in fractions]
    assert passed == sorted(passed)
    assert (milestones(0.0, count), milestones(1.0, count)) == (0, count)
    for number in range(1, count + 1):
        assert milestones(number / (count + 1), count) == number
        assert milestones(math.nextafter(number / (count + 1), 0), count) == number - 1


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps at which a checkpoint was saved."""
    steps, save_of = list[int](), interruption.save

    def save(trial: train.Trial, *place: str) -> None:
        save_of(trial, *place)
        steps.append(trial.progress.step)

    monkeypatch.setattr(interruption, "save", save)
    return steps


def study(tiny: TinyStudy, folder: Path) -> Path:
    evaluation = {
        "curve_points": 0, "mlm_blocks": 8, "main": "mlm.loss",
        "readout": {"steps": 1, "positions": 8, "blocks": 4, "on_curve": True},
    }  # fmt: skip
    return tiny.write(folder / "s.yaml", arms=[{"name": "a", "objective": "mlm"}], teacher=None, evaluation=evaluation)


def stopped(monkeypatch: pytest.MonkeyPatch, words: list[str], *, step_s: float = 0.0) -> None:
    """A run that is told to stop in its STOPPED_AFTERth step, which is about half of it."""
    step_of = train.Trial._step

    def stepping(trial: train.Trial, *given: Any) -> Any:
        if trial.progress.step == STOPPED_AFTER - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(step_s)
        return step_of(trial, *given)

    with monkeypatch.context() as patched:
        patched.setattr(train.Trial, "_step", stepping)
        assert cli.main(words) == 75


def due(trial: Path, count: int) -> list[int]:
    """The first step at or beyond every milestone, by the ledger."""
    rows = parse_postings((trial / "ledger.jsonl").read_text(encoding="utf-8"))
    # A posting says at which step it was made; this one's charges are those of the step after.
    spent = {row["step"] + 1: row["spent"] for row in rows if any(c[0] == "STUDENT_STEP" and c[2] == "flop" for c in row["charges"])}  # fmt: skip
    points = [number / (count + 1) for number in range(1, count + 1)]
    return [min(step for step, amount in spent.items() if amount >= 2_000_000_000 * point) for point in points]


@pytest.mark.parametrize(("before", "after"), [(6, 3), (20, 5), (2, 20), (3, 3), (4, 0)])
def test_a_resume_that_asks_for_another_number_of_saves_gets_them_at_their_places(
    before: int, after: int, saved: list[int], tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", "--study", str(study(tiny, tmp_path)), "--out", str(tmp_path / "run")]
    stopped(monkeypatch, [*words, "--set", f"checkpoints={before}"])
    assert saved.pop() == STOPPED_AFTER, "because of the signal"
    earlier, saved[:] = list(saved), []
    assert cli.main([*words, "--set", f"checkpoints={after}", "--resume"]) == 0
    trial = tmp_path / "run" / "arms" / "a" / "seed-1"
    assert earlier == [step for step in due(trial, before) if step <= STOPPED_AFTER]
    assert saved == [step for step in due(trial, after) if step > STOPPED_AFTER]
    if after == 3:
        assert len(saved) in (1, 2), "one at three quarters, at the least"
    assert max(Counter(saved).values(), default=1) == 1


@pytest.mark.parametrize(("before", "after"), [(9, 4), (4, 9), (2, 2)])
def test_a_resume_that_asks_for_another_number_of_curve_points_misses_none_and_makes_none_twice(
    before: int, after: int, tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", "--study", str(study(tiny, tmp_path)), "--out", str(tmp_path / "run")]
    stopped(monkeypatch, [*words, "--set", f"evaluation.curve_points={before}"])
    assert cli.main([*words, "--set", f"evaluation.curve_points={after}", "--resume"]) == 0
    trial = tmp_path / "run" / "arms" / "a" / "seed-1"
    expected = [step for step in due(trial, before) if step <= STOPPED_AFTER]
    expected += [step for step in due(trial, after) if step > STOPPED_AFTER]
    rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for score in ("mlm_loss", "readout_loss"):
        assert [row["step"] for row in rows if score in row] == expected


def test_points_beyond_the_checkpoint_that_is_resumed_from_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for step, kind in itertools.product((5, 10, 15), ("json", "safetensors")):
        (folder / f"{step:08d}.{kind}").touch()
    (tmp_path / "metrics.jsonl").write_bytes(b"1\n2\n3\n")
    interruption.forget_points(tmp_path, rows=2, step=10)
    assert sorted(file.name for file in folder.glob("*.json")) == ["00000005.json", "00000010.json"]
    assert len(list(folder.iterdir())) == 4
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"1\n2\n"


@pytest.mark.parametrize("left", [("json", "safetensors"), ("json",)])
def test_a_point_that_was_told_before_a_kill_is_not_told_twice(tmp_path: Path, left: tuple[str, ...]) -> None:
    (tmp_path / "snapshots").mkdir()
    for step, kinds in ((5, left), (10, ("json", "safetensors"))):
        (tmp_path / "snapshots" / f"{step:08d}.json").write_text(json.dumps({"step": step, "fraction": step / 10}))
        if "safetensors" in kinds:
            save_file({"weight": torch.zeros(1, 1)}, tmp_path / "snapshots" / f"{step:08d}.safetensors")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 5, "loss": 1.0}\n{"step": 5, "readout_loss": 2.5}\n{"step": 10, "re'
    )
    suite = SimpleNamespace(scorer=SimpleNamespace(read_out=lambda subject, layer: ({"readout.loss": 2.0}, 7)))
    subject = SimpleNamespace(model=torch.nn.Linear(1, 1, bias=False))
    candidate = Candidate("a", tmp_path, lambda: pytest.fail("the subject is given"), snapshots=True)
    assert Suite.read_curve(cast(Any, suite), candidate, cast(Any, subject), layer=1) == 7
    rows = kept.whole_objects(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["readout_loss"]) for row in rows if "readout_loss" in row] == [(5, 2.5), (10, 2.0)]
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_checkpoint_knows_the_time_until_its_own_step(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only until the last logged row: the seconds between would be gone from the record of a resumed run."""
    monkeypatch.setattr(train, "LOG_POINTS", 1)  # after its first step, a run logs at the end
    words = ["run", "--study", str(study(tiny, tmp_path)), "--out", str(tmp_path / "run")]
    stopped(monkeypatch, words, step_s=0.05)
    (state,) = (tmp_path / "run").glob("arms/a/seed-1/checkpoints/*10/state.json")
    assert json.loads(state.read_text(encoding="utf-8"))["progress"]["seconds"] >= STOPPED_AFTER * 0.05
