"""What no objective can do ends the command in one line, with its exit code, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import cli
from tests.support.tiny import TinyStudy, write_teacher

NARROW = {"family": "bert", "layers": 2, "hidden": 32, "heads": 2}


def only(objective: Any) -> list[dict[str, Any]]:
    return [{"name": "a", "objective": objective}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": only({"name": "minilmv2", "relation_heads": 7})}, "they must divide the student's width 32"),
        ({"arms": only({"name": "minilmv2", "relation_heads": 64})}, "they must divide the student's width 32"),
        ({"arms": only("minilm"), "student": NARROW}, "2 student heads and 4 teacher heads"),
        ({"arms": only("tinybert"), "student": NARROW}, "2 student heads and 4 teacher heads"),
        ({"arms": only({"name": "minilmv2", "relation_heads": 8, "teacher_layer": 9})}, "layer 9 of the teacher"),
        ({"arms": only({"name": "minilmv2", "relation_heads": 8, "student_layer": 3})}, "layer 3 of the student"),
        ({"arms": only({"name": "hidden", "layers": {5: 1}})}, "layer 5 of the student"),
        ({"arms": only({"name": "tinybert", "layers": {1: 6}})}, "layer 6 of the teacher"),
        ({"arms": only({"name": "soft_targets", "temperature": 0})}, "temperature = 0"),
        ({"arms": only({"name": "soft_targets", "temperature": -2.0})}, "temperature = -2.0"),
        ({"arms": only({"name": "distilbert", "temperature": 0, "cosine": 0})}, "temperature = 0"),
        ({"arms": only({"name": "mlm", "weight": 0})}, "the weights sum to nothing"),
        ({"arms": only({"terms": [{"name": "mlm", "weight": 0}, {"name": "hidden", "weight": 0}]})}, "sum to nothing"),
        ({"arms": only({"name": "minilmv2", "relation_heads": 8, "query": 0, "key": 0, "value": 0})}, "sum to nothing"),
        ({"arms": only({"name": "distilbert", "soft": 0, "mlm": 0, "cosine": 0})}, "sum to nothing"),
    ],
    ids=str,
)
def test_an_objective_that_cannot_be_computed_ends_in_one_line_with_exit_code_2(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    file = tiny.write(tmp_path / "s.yaml", **changes)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("isobudget:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.rglob("ledger.jsonl"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_causal_teacher_of_masked_students_ends_in_one_line_with_exit_code_3(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    """Even for an arm that would not ask it anything: the study names a teacher its students cannot have."""
    teacher = write_teacher(tmp_path / "teacher", family=family)
    for arms in (only("soft_targets"), only("mlm")):
        file = tiny.write(tmp_path / "s.yaml", arms=arms, teacher={"path": str(teacher), "allow_worse": True})
        assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 3
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("isobudget:")]
        assert len(lines) == 1
        assert f"teacher {teacher} is a causal model" in lines[0]
