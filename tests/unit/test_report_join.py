"""Laws of joining: runs of one study count once each, and whatever makes them incomparable is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli
from harness.errors import ConfigError
from harness.report import build_joined, build_report

from .report_fakes import ARMS, edit_record, write_study

MACHINE = {"hardware": {"devices": ["H200"]}, "world_size": {"ranks": 1}}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """One study of two arms and four seeds, without metrics: quick to read."""
    directory = write_study(tmp_path / "whole", seeds=4, arms=(ARMS[0], ARMS[3]))
    for path in directory.glob("arms/*/*/metrics.jsonl"):
        path.write_text("")
    return directory


def part(whole: Path, name: str, *, seeds: tuple[int, ...] = (1, 2, 3, 4), arms: tuple[str, ...] = ()) -> Path:
    """A copy that holds only these seeds and arms, and says so in its study."""
    target = Path(shutil.copytree(whole, whole.parent / name))
    study = yaml.safe_load((target / "study.yaml").read_text())
    study["seeds"] = list(seeds)
    study["arms"] = [arm for arm in study["arms"] if not arms or arm["name"] in arms]
    (target / "study.yaml").write_text(yaml.safe_dump(study))
    for folder in target.glob("arms/*/seed-*"):
        if int(folder.name[5:]) not in seeds or (arms and folder.parent.name not in arms):
            shutil.rmtree(folder)
    return target


def change(directory: Path, **keys: Any) -> None:
    file = directory / "study.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **keys}))


@pytest.mark.parametrize("split", [{"seeds": ((1, 2), (3, 4))}, {"arms": (("no_kd",), ("tinybert",))}])
def test_the_joined_report_is_the_report_of_the_whole(whole: Path, tmp_path: Path, split: dict[str, Any]) -> None:
    (key, (one, two)) = next(iter(split.items()))
    parts = [part(whole, "a", **{key: one}), part(whole, "b", **{key: two})]
    joined, expected = build_joined(parts, tmp_path / "out"), build_report(whole)
    for what in ("verdict", "comparisons", "summary", "arms", "budget", "baseline", "missing"):
        assert joined[what] == expected[what]
    assert (tmp_path / "out" / "report.html").exists()
    assert joined["environment"]["joined"] == [str(path) for path in parts]


def test_the_command_joins_and_refuses_with_exit_code_2(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part(whole, "a", seeds=(1, 2)), part(whole, "b", seeds=(3, 4))]
    assert cli.main(["report", *map(str, parts)]) == 0
    assert (whole.parent / "joined" / "report.html").exists()
    assert "tinybert" in capsys.readouterr().out
    change(parts[1], budget="11 TFLOP")
    assert cli.main(["report", *map(str, parts)]) == 2
    assert "science differs in budget" in capsys.readouterr().err
    assert cli.main(["report", str(parts[0]), "--out", "x"]) == 2


@pytest.mark.parametrize(("keys", "named"), [
    ({"optimizer": {"lr": 1e-4}}, "optimizer.lr"), ({"batch": {"sequences": 64}}, "batch.sequences"),
    ({"evaluation": {"main": "mlm.loss"}}, "main"),
    ({"arms": [{"name": "no_kd", "objective": "mlm", "differs": {"optimizer.lr": 1e-3}}]}, "arm no_kd"),
])  # fmt: skip
def test_another_study_is_refused_with_the_difference(whole: Path, keys: dict[str, Any], named: str) -> None:
    parts = [part(whole, "a", seeds=(1, 2)), part(whole, "b", seeds=(3, 4))]
    change(parts[1], **keys)
    with pytest.raises(ConfigError) as refused:
        build_joined(parts, whole.parent / "out")
    assert named in str(refused.value)
    assert not (whole.parent / "out").exists()


def test_a_run_that_two_directories_hold_is_refused(whole: Path) -> None:
    parts = [part(whole, "a", seeds=(1, 2)), part(whole, "b", seeds=(2, 3))]
    with pytest.raises(ConfigError, match="seed 2"):
        build_joined(parts, whole.parent / "out")
    with pytest.raises(ConfigError, match="counts once"):
        build_joined([parts[0], parts[0]], whole.parent / "out")


def test_runs_on_other_text_are_refused(whole: Path) -> None:
    parts = [part(whole, "a", seeds=(1, 2)), part(whole, "b", seeds=(3, 4))]
    for path, corpus in zip(parts, ("aaaa", "bbbb"), strict=True):
        for folder in path.glob("arms/*/*"):
            edit_record(folder, corpus=corpus)
    with pytest.raises(ConfigError, match="corpus differs"):
        build_joined(parts, whole.parent / "out")


@pytest.mark.parametrize("unit", ["flop", "gpu-second"])
def test_other_hardware_is_refused_under_a_measured_budget_only(tmp_path: Path, unit: str) -> None:
    whole = write_study(tmp_path / "whole", seeds=2, arms=(ARMS[0], ARMS[3]), unit=unit)
    parts = [part(whole, "a", seeds=(1,)), part(whole, "b", seeds=(2,))]
    for path, device in zip(parts, ("H200", "A100"), strict=True):
        for folder in path.glob("arms/*/*"):
            edit_record(folder, identity={**MACHINE, "hardware": {"devices": [device]}})
    if unit == "flop":
        assert build_joined(parts, tmp_path / "out")["verdict"]
    else:
        with pytest.raises(ConfigError, match="measured budget on H200"):
            build_joined(parts, tmp_path / "out")


def test_a_run_s_own_report_is_never_overwritten_by_a_joined_one(whole: Path) -> None:
    parts = [part(whole, "a", seeds=(1, 2)), part(whole, "b", seeds=(3, 4))]
    with pytest.raises(ConfigError, match="a report of its own"):
        build_joined(parts, whole)


def test_what_is_missing_anywhere_stays_missing(whole: Path, tmp_path: Path) -> None:
    parts = [part(whole, "a", seeds=(1, 2)), part(whole, "b", seeds=(3, 4))]
    shutil.rmtree(parts[1] / "arms" / "tinybert" / "seed-4")
    (parts[1] / "status.json").write_text(json.dumps({"state": "interrupted"}))
    report = build_joined(parts, tmp_path / "out")
    assert report["missing"] == ["tinybert, seed 4: not started"]
    assert report["state"]["state"] == "interrupted"


RECIPE = {"grid": "quick", "precision": "fp32", "path": "here", "references": ["untrained"], "max_flop": None}


def fine_tune(directory: Path, *tasks: str, **recipe: Any) -> Path:
    """Every run of the directory as fine-tuned on these tasks: RTE tells the arms apart, CoLA does not."""
    for folder in directory.glob("arms/*/*"):
        value = {"rte": 0.5 if folder.parent.name == "no_kd" else 0.6, "cola": 0.2}
        rows = {task: {"score": value[task], "by_seed": {"1": value[task]}} for task in tasks}
        scores = json.loads((folder / "record.json").read_text())["scores"]
        scores |= {f"glue.{task}": value[task] for task in tasks}
        scores["glue.mean"] = sum(value[task] for task in tasks) / len(tasks)
        edit_record(folder, scores=scores, glue={"tasks": rows, "recipe": {**RECIPE, **recipe}})
    change(directory, evaluation={"main": "glue.mean", "glue": {"tasks": [tasks[-1]]}})
    return directory


def test_arms_that_were_fine_tuned_on_other_tasks_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    """The studies may say the same: each names the tasks it was last asked for."""
    one = fine_tune(part(whole, "a", arms=("no_kd",)), "cola", "rte")
    other = fine_tune(part(whole, "b", arms=("tinybert",)), "rte")
    for pair in ([one, other], [other, one]):
        with pytest.raises(ConfigError, match=rf"evaluated on cola:.*first: evaluate {other} --tasks cola"):
            build_joined(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fine_tune(other, "cola", "rte")
    assert build_joined([one, other], tmp_path / "out")["verdict"]


@pytest.mark.parametrize(("key", "value"), [("precision", "bf16"), ("grid", "paper")])
def test_arms_that_were_fine_tuned_by_another_recipe_are_refused(
    whole: Path, tmp_path: Path, key: str, value: str
) -> None:
    """`precision: auto` comes to bf16 on a GPU and to fp32 elsewhere, whatever both studies say."""
    one = fine_tune(part(whole, "a", arms=("no_kd",)), "rte")
    other = fine_tune(part(whole, "b", arms=("tinybert",)), "rte", **{key: value})
    with pytest.raises(ConfigError, match=f"GLUE's recipe differs in {key}"):
        build_joined([one, other], tmp_path / "out")


def test_where_glue_lay_what_it_might_cost_and_what_stood_beside_it_keep_no_runs_apart(
    whole: Path, tmp_path: Path
) -> None:
    beside = {"path": "there", "references": [], "max_flop": "1e18 flop"}
    one = fine_tune(part(whole, "a", arms=("no_kd",)), "rte")
    other = fine_tune(part(whole, "b", arms=("tinybert",)), "rte", **beside)
    change(other, evaluation={"main": "glue.mean", "glue": {"tasks": ["rte"], **beside}})
    report = build_joined([one, other], tmp_path / "out")
    assert {row["name"]: row["scores"]["glue.mean"]["mean"] for row in report["summary"]} == {
        "no_kd": pytest.approx(0.5), "tinybert": pytest.approx(0.6),
    }  # fmt: skip
