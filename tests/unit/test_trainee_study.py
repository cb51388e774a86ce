"""Arms that differ in more than their objective: declared, carried out, charged and recorded; or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness import cli
from harness.errors import ConfigError, TeacherError
from harness.study import validate
from tests.support.tiny import TinyStudy

RELATIONS = {"name": "minilmv2", "relation_heads": 8}
LIKE_TEACHER = {"student.hidden": 64, "student.init_from_teacher": "every_kth"}
ARMS: list[dict[str, Any]] = [
    {"name": "plain", "objective": RELATIONS},
    {"name": "trimmed", "objective": RELATIONS, "differs": {"student.untrained_top": "drop"}},
    {"name": "warmed", "objective": {"phases": [{"until": 0.7, **RELATIONS}, {"name": "mlm", "restart": True}]}},
    {"name": "published", "objective": {"name": "soft_targets", "vocabulary": "mean"}, "differs": {"teacher.dropout": 0.1}},
    {"name": "from_layers", "objective": "mlm", "differs": LIKE_TEACHER},
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of five arms, each with its own declared difference."""
    folder = tmp_path_factory.mktemp("arms")
    data = {"sources": [{"path": str(tiny.corpus)}], "block_length": 32}
    evaluation = {"curve_points": 0, "mlm_blocks": 16, "readout": None, "main": "mlm.loss"}
    file = tiny.write(
        folder / "arms.yaml", arms=ARMS, budget="4 Gflop", data=data, evaluation=evaluation, checkpoints=0
    )
    assert cli.main(["run", "--study", str(file), "--out", str(folder / "run")]) == 0
    return folder / "run"


def record(run: Path, arm: str) -> dict[str, Any]:
    return json.loads((run / "arms" / arm / "seed-1" / "record.json").read_text())


def test_declared_differences_reach_record_and_report(finished: Path) -> None:
    for arm in ARMS:
        assert record(finished, arm["name"])["differs"] == arm.get("differs", {})
    report = (finished / "report.html").read_text()
    for key in ("student.untrained_top", "teacher.dropout", "student.init_from_teacher"):
        assert key in report


def test_dropping_the_untrained_top_exports_a_smaller_student_of_the_same_training(finished: Path) -> None:
    plain, trimmed = (record(finished, arm) for arm in ("plain", "trimmed"))
    assert (plain["exported_layers"], trimmed["exported_layers"]) == (2, 1)
    assert plain["charged"] == trimmed["charged"]
    a, b = (
        load_file(finished / "arms" / arm / "seed-1" / "student" / "model.safetensors") for arm in ("plain", "trimmed")
    )
    assert set(b) < set(a)
    assert all((a[n] == b[n]).all() for n in b)
    assert any("1 of 2 layers" in text for text in trimmed["warnings"])
    # What travels with the student speaks of the weights in its folder.
    folder = finished / "arms" / "trimmed" / "seed-1" / "student"
    told = json.loads((folder / "isobudget.json").read_text())["untrained_parameters"]
    dropped = set(trimmed["untrained_parameters"]) - set(told)
    assert dropped
    assert dropped.isdisjoint(b)
    assert trimmed["model"]["parameters"] < plain["model"]["parameters"]
    assert "layers 1," in (folder / "README.md").read_text()
    assert not any(name in (folder / "README.md").read_text() for name in dropped)
    assert not plain["head_trained"]
    assert plain["untrained_parameters"]


def test_a_head_warm_up_is_charged_and_leaves_nothing_untrained(finished: Path) -> None:
    warmed, plain = record(finished, "warmed"), record(finished, "plain")
    assert warmed["head_trained"]
    assert warmed["untrained_parameters"] == []
    assert warmed["charged"] <= 4_000_000_000
    # Seven tenths of the budget for relations: fewer teacher forwards than the arm that spends all of it so.
    spent = warmed["accounts"]["TEACHER_FORWARD"]["flop"] / plain["accounts"]["TEACHER_FORWARD"]["flop"]
    assert 0.6 < spent < 0.8
    rows = [json.loads(x) for x in (finished / "arms" / "warmed" / "seed-1" / "metrics.jsonl").read_text().splitlines()]
    rates = [(row["fraction"], row["lr"]) for row in rows if "lr" in row]
    before = min(lr for fraction, lr in rates if 0.5 < fraction <= 0.72)
    after = max(lr for fraction, lr in rates if fraction > 0.72)
    assert after > 3 * before, "the schedule begins anew"


def test_published_variants_are_named_beside_the_result(finished: Path) -> None:
    published = record(finished, "published")
    assert published["paper_code"] == ["soft_targets.vocabulary = mean"]
    assert published["teacher"]["dropout"] == 0.1
    assert any("vocabulary = mean" in text for text in published["warnings"])
    assert any("dropout 0.1" in text for text in published["warnings"])
    assert record(finished, "plain")["paper_code"] == []


def test_an_arm_that_inherits_a_teachers_layers_owes_for_its_training(finished: Path) -> None:
    inherited = record(finished, "from_layers")
    assert inherited["accounts"]["TEACHER_TRAINING"] == {"flop": 1_000_000_000}
    assert "TEACHER_FORWARD" not in inherited["accounts"]


def test_the_record_says_who_taught_and_how_it_compared_before_step_1(finished: Path) -> None:
    teacher = record(finished, "plain")["teacher"]
    assert teacher["trained_on"] == "unknown"
    assert teacher["allow_worse"] is True
    assert len(teacher["weights"]) == 16
    before = teacher["before_training"]
    assert before["worse"] is not (before["teacher_loss"] < before["student_loss"])
    accounts = record(finished, "plain")["accounts"]
    assert accounts["EVALUATION"]["flop"] >= before["flop"] > 0
    first = json.loads((finished / "arms" / "plain" / "seed-1" / "ledger.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["spent"]) == (0, 0), "asking is not charged"


def test_a_teacher_worse_than_the_untrained_student_ends_the_run_before_step_1(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "harness.evaluate.mlm.evaluate", lambda subject, _, **__: {"mlm.loss": float(subject.shape.layers)}
    )
    teacher = {"path": str(tiny.teacher), "trained_on": "unknown"}
    file = tiny.write(tmp_path / "s.yaml", teacher=teacher)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 3
    error = capsys.readouterr().err
    assert "MLM loss of 4.000 where the untrained student has 2.000" in error
    assert "teacher.allow_worse" in error
    # Not even the arm that needs no teacher has begun.
    assert not list((tmp_path / "run").rglob("ledger.jsonl"))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 3


def test_a_teacher_is_compared_with_random_weights_also_where_the_student_starts_from_its_layers(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student of all its layers has its very loss: the teacher would be refused as no better than random weights."""
    seen: list[bool] = []

    def look(teacher: Any, student: Any, *_: Any, **__: Any) -> None:
        theirs = teacher.model.state_dict()
        seen.append(any(torch.equal(v, theirs[k]) for k, v in student.model.state_dict().items() if v.ndim == 2))
        raise TeacherError("seen enough")

    monkeypatch.setattr("harness.conduct.vouch", look)
    arms = [
        {
            "name": "a",
            "objective": "soft_targets",
            "differs": {**LIKE_TEACHER, "student.layers": 4, "student.init_from_teacher": [1, 2, 3, 4]},
        }
    ]
    file = tiny.write(tmp_path / "s.yaml", arms=arms)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 3
    assert seen == [False]


def test_a_teacher_that_lost_its_weights_ends_the_run_before_step_1(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "teacher"
    shutil.copytree(tiny.teacher, folder)
    (folder / "model.safetensors").unlink()
    file = tiny.write(tmp_path / "s.yaml", teacher={"path": str(folder), "allow_worse": True})
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 3
    assert "safetensors" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("ledger.jsonl"))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([{"name": "a", "optimizer": {"lr": 1e-3}}], "optimizer is shared by all arms; declare .*differs"),
        ([{"name": "a", "student": {"layers": 3}}], "student is shared by all arms"),
        ([{"name": "a", "seed": 3}], "arms.0.seed.*unknown key"),
        ([{"name": "a", "differs": {"seeds": [9]}}], "may differ in student"),
        ([{"name": "a", "differs": {"evaluation.mlm_blocks": 9}}], "may differ in student"),
        ([{"name": "a", "differs": {"accounting.charged": []}}], "may differ in student"),
        ([{"name": "a", "differs": {"student.layerz": 3}}], "unknown key"),
    ],
    ids=str,
)
def test_an_undeclared_difference_is_refused(arms: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({"name": "s", "budget": "1 Tflop", "arms": arms}, where="s")


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"student": {"hidden": 32, "layers": 1, "heads": 4, "untrained_top": "drop"}, "arms": ARMS[:1]}, 2, "no layer of this student"),
        ({"student": {"hidden": 32, "layers": 2, "heads": 4, "init_from_teacher": [1, 2]}}, 2, "hidden 32 of the student and 64"),
        ({"teacher": None, "student": {"hidden": 64, "layers": 2, "heads": 4, "init_from_teacher": [1, 2]},
          "arms": [{"name": "a", "objective": "mlm"}]}, 2, "no teacher"),
        ({"arms": [{"name": "a", "objective": {**RELATIONS, "teacher_layer": 5}}]}, 2, "layer 5 of the teacher"),
    ],
    ids=["nothing left", "widths differ", "no teacher", "no such layer"],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_the_run(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, code: int, message: str
) -> None:
    file = tiny.write(tmp_path / "s.yaml", **changes)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("ledger.jsonl"))


def test_a_teacher_declared_disjoint_but_trained_on_this_corpus_is_refused(
    finished: Path, tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student's card names its corpus, so one taught by it cannot claim other text."""
    student = finished / "arms" / "plain" / "seed-1" / "student"
    arms = [{"name": "a", "objective": RELATIONS}]
    file = tiny.write(tmp_path / "s.yaml", teacher={"path": str(student), "trained_on": "disjoint"}, arms=arms)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 3
    assert "names this very corpus" in capsys.readouterr().err
