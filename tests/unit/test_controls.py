"""A control is of one baseline and for so many tokens: with another of either it is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import cli
from tests.support.tiny import TinyStudy

ARMS = [
    {"name": "no_kd", "objective": "mlm"},
    {"name": "soft_targets", "objective": "soft_targets"},
    {"name": "tinybert", "objective": "tinybert"},
]


def test_a_finished_study_that_declares_another_baseline_gets_its_controls_when_it_is_resumed(
    tiny: TinyStudy, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    place = out / "controls" / "equal_tokens" / "tinybert" / "seed-1"

    def run(baseline: str, *flags: str) -> dict[str, Any]:
        evaluation = {"main": "mlm.loss", "curve_points": 1, "mlm_blocks": 8, "readout": None}
        tree = {"arms": ARMS, "budget": "0.4 Gflop", "controls": ["equal_tokens"], "evaluation": evaluation}
        file = tiny.write(tmp_path / "study.yaml", baseline=baseline, **tree)
        assert cli.main(["run", "--study", str(file), "--out", str(out), *flags]) == 0
        return json.loads((place / "record.json").read_text())

    first = run("no_kd")
    assert first["control"]["arm"] == "no_kd"
    assert (place / "checkpoints-made").exists(), "it saved, and no checkpoint is left of it"
    (place / "of the old one").touch()
    second = run("soft_targets", "--resume")
    assert second["control"] == {**first["control"], "arm": "soft_targets"}
    assert not (place / "of the old one").exists()
    (place / "of this one").touch()
    assert run("soft_targets", "--resume") == second
    assert (place / "of this one").exists(), "what is made is left alone"
    (place / "record.json").unlink()
    (place / "of one that was begun").touch()
    third = run("no_kd", "--resume")
    assert third["control"] == first["control"], "a kill before the control's end, and then another baseline"
    assert not (place / "of one that was begun").exists()
    contestant = json.loads((out / "arms" / "tinybert" / "seed-1" / "record.json").read_text())
    assert second["tokens"] == contestant["tokens"]
