"""`evaluate` and the glue block of a study: one result wherever it is asked for, and mistakes before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli
from harness.jobs import JobDirectory, Work
from harness.rundir import load_study
from tests.support.glue_worlds import write_glue
from tests.support.tiny import TinyStudy

GRID = "{lrs: [0.002], batches: [16], epochs: 1}"


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"), tasks=("cola", "sst2", "rte"), train=80)


@pytest.fixture(scope="module")
def trained(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two arms and two seeds, never evaluated on GLUE."""
    out = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--arms", "no_kd,minilmv2", "--seeds", "1,2", "--budget", "0.2 Gflop", "--out", str(out)]
    assert (
        cli.main(
            ["--study", str(tiny.file), *flags, "--set", "evaluation.readout=null", "--set", "evaluation.main=mlm.loss"]
        )
        == 0
    )
    return out


def record(run: Path, arm: str = "no_kd", seed: int = 1) -> dict[str, Any]:
    return json.loads((run / "arms" / arm / f"seed-{seed}" / "record.json").read_text())


def flags(glue: Path, *more: str) -> list[str]:
    return ["--glue", str(glue), "--tasks", "cola,sst2", "--set", f"grid={GRID}", *more]


def test_a_finished_run_gains_glue_scores_and_its_cost_is_evaluation(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = record(run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["students"]] == [
        "no_kd · seed 1", "no_kd · seed 2", "minilmv2 · seed 1", "minilmv2 · seed 2", "untrained student",
    ]  # fmt: skip
    after = record(run)
    assert {"glue.cola", "glue.sst2", "glue.mean"} <= set(after["scores"])
    assert {k: v for k, v in after["scores"].items() if not k.startswith("glue.")} == before["scores"]
    assert after["scores"]["glue.mean"] == pytest.approx(
        (after["scores"]["glue.cola"] + after["scores"]["glue.sst2"]) / 2
    )
    spent = after["accounts"]["EVALUATION"]["flop"] - before["accounts"]["EVALUATION"]["flop"]
    assert spent == after["glue"]["flop"] > 0
    assert after["accounts"]["STUDENT_STEP"] == before["accounts"]["STUDENT_STEP"]
    assert after["charged"] == before["charged"]
    assert after["model"]["parameters"] > after["model"]["parameters_without_embeddings"] > 0
    references = json.loads((run / "references.json").read_text())
    assert "glue.mean" in references["untrained"]["scores"]
    assert "GLUE: cola" in (run / "report.md").read_text()

    # asked again, nothing is repeated and nothing is charged twice; another task adds only its own
    assert cli.main(["evaluate", str(run), *flags(glue), "--json"]) == 0
    assert record(run)["accounts"]["EVALUATION"] == after["accounts"]["EVALUATION"]
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola,sst2,rte", "--json"]) == 0
    more = record(run)
    assert more["scores"]["glue.cola"] == after["scores"]["glue.cola"]
    assert len(list((run / "arms/no_kd/seed-1/glue").glob("*.json"))) == 3


def test_a_later_evaluation_by_the_same_recipe_adds_its_tasks_and_one_by_another_says_what_it_leaves_out(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola", "--json"]) == 0
    first = record(run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "rte", "--json"]) == 0
    both = record(run)
    assert list(both["glue"]["tasks"]) == both["glue"]["recipe"]["tasks"] == ["cola", "rte"]
    assert both["glue"]["tasks"]["cola"] == first["glue"]["tasks"]["cola"]
    cola, rte = (both["scores"][f"glue.{task}"] for task in ("cola", "rte"))
    assert cola == first["scores"]["glue.cola"]
    assert both["scores"]["glue.mean"] == pytest.approx((cola + rte) / 2)
    untrained = json.loads((run / "references.json").read_text())["untrained"]
    assert {"glue.cola", "glue.rte", "glue.mean"} <= set(untrained["scores"])
    report = (run / "report.md").read_text()
    assert "| Arm | CoLA | RTE |" in report
    table = report[report.index("| Arm | CoLA | RTE |") :]
    assert "| Untrained student |" in table[: table.index("## ")]

    capsys.readouterr()
    other = [*flags(glue), "--tasks", "sst2", "--set", "dropout=0.0"]
    assert cli.main(["evaluate", str(run), *other]) == 0
    assert "cola, rte had been evaluated by another recipe (dropout)" in " ".join(capsys.readouterr().out.split())
    assert list(record(run)["glue"]["tasks"]) == ["sst2"]
    assert "another recipe (dropout)" in (run / "report.md").read_text()
    # what was computed is kept: the first recipe again costs nothing and brings all of it back
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola,rte", "--set", "dropout=0.1"]) == 0
    assert record(run)["scores"] == both["scores"]


def test_a_seed_added_after_glue_leaves_what_is_there_and_says_what_is_missing(
    tiny: TinyStudy, trained: Path, glue: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola", "--json"]) == 0
    before = record(run)
    more = ["--arms", "no_kd,minilmv2", "--seeds", "1,2,3", "--budget", "0.2 Gflop", "--out", str(run)]
    sets = ["--set", "evaluation.readout=null", "--set", "evaluation.main=mlm.loss"]
    assert cli.main(["--study", str(tiny.file), *more, *sets]) == 0
    after = record(run)
    assert after["scores"] == before["scores"]
    assert after["accounts"]["EVALUATION"]["flop"] == before["accounts"]["EVALUATION"]["flop"]
    references = json.loads((run / "references.json").read_text())
    assert "glue.cola" in references["untrained"]["scores"]
    report = json.loads((run / "report.json").read_text())
    (row,) = [s for s in report["summary"] if s["name"] == "no_kd"]
    assert row["scores"]["glue.cola"]["n"] == 2
    assert "GLUE was not evaluated for no_kd, seed 3: CoLA; evaluate the run again." in report["warnings"]
    text = (run / "report.md").read_text()
    assert "Not evaluated yet: no_kd, seed 3: CoLA; minilmv2, seed 3: CoLA." in text
    assert "2 of 3 seeds" in text


def test_a_study_with_a_glue_block_ends_with_it(tiny: TinyStudy, trained: Path, glue: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    block = f"evaluation.glue={{path: {glue}, tasks: [cola, sst2], grid: {GRID}}}"
    study = ["--study", str(tiny.file), "--arms", "no_kd,minilmv2", "--seeds", "1,2", "--budget", "0.2 Gflop"]
    more = ["--set", "evaluation.readout=null", "--set", block, "--set", "evaluation.main=glue.mean", "--out", str(run)]
    assert cli.main([*study, *more]) == 0
    by_run = record(run)
    assert "glue.mean" in (run / "report.json").read_text()

    other = tmp_path / "other"
    shutil.copytree(trained, other)
    assert cli.main(["evaluate", str(other), *flags(glue), "--json"]) == 0
    scores = {k: v for k, v in record(other)["scores"].items() if k.startswith("glue.")}
    assert scores == {k: v for k, v in by_run["scores"].items() if k.startswith("glue.")}


def test_a_task_evaluated_alone_leaves_a_study_that_is_still_decided_as_it_said(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    study = yaml.safe_load((run / "study.yaml").read_text())
    block = {"path": str(glue), "tasks": ["cola", "rte"], "grid": yaml.safe_load(GRID)}
    study["evaluation"] |= {"main": "glue.rte", "glue": block}
    (run / "study.yaml").write_text(yaml.safe_dump(study))
    assert cli.main(["evaluate", str(run), "--tasks", "cola", "--json"]) == 0
    kept = load_study(run).evaluation
    assert (kept.main, kept.glue and kept.glue.tasks) == ("glue.rte", ["cola", "rte"])
    assert list(record(run)["glue"]["tasks"]) == ["cola"]

    # another recipe leaves out what the first was asked for, and with it the deciding score: refused, and nothing is changed
    capsys.readouterr()
    before = (run / "study.yaml").read_text()
    assert cli.main(["evaluate", str(run), "--tasks", "cola", "--set", "dropout=0.0"]) == 2
    assert "glue.rte" in capsys.readouterr().err
    assert (run / "study.yaml").read_text() == before
    assert cli.main(["evaluate", str(run), "--tasks", "cola,rte", "--set", "dropout=0.0"]) == 0

    # a cap that drops it is refused as `run` refuses it
    capsys.readouterr()
    low = min(_price(run, task) for task in ("cola", "rte"))
    dear = max(("cola", "rte"), key=lambda task: _price(run, task))
    study["evaluation"] |= {"main": f"glue.{dear}", "glue": block | {"max_flop": f"{low + 1} flop"}}
    (run / "study.yaml").write_text(yaml.safe_dump(study))
    assert cli.main(["evaluate", str(run)]) == 2
    assert "does not fit under evaluation.glue.max_flop" in capsys.readouterr().err


def test_a_reference_that_lacks_tasks_narrows_no_arms_mean(trained: Path, glue: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue, "--set", "references=[untrained]"), "--json"]) == 0
    more = [*flags(glue), "--tasks", "rte"]
    assert cli.main(["evaluate", str(run), *more, "--set", "references=[untrained,teacher]", "--json"]) == 0
    scores = record(run)["scores"]
    assert scores["glue.mean"] == pytest.approx(sum(scores[f"glue.{t}"] for t in ("cola", "sst2", "rte")) / 3)
    references = json.loads((run / "references.json").read_text())
    assert set(references["untrained"]["glue"]["tasks"]) == {"cola", "sst2", "rte"}
    assert "glue.mean" in references["untrained"]["scores"]
    assert {s for s in references["teacher"]["scores"] if s.startswith("glue.")} == {"glue.rte"}
    assert not any("glue.mean is over" in note for note in record(run)["glue"]["notes"])


def test_a_reference_that_is_not_asked_for_again_keeps_no_mean_of_other_tasks(
    trained: Path, glue: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola", "--json"]) == 0
    alone = [*flags(glue), "--tasks", "rte", "--set", "references=[]", "--json"]
    assert cli.main(["evaluate", str(run), *alone]) == 0
    untrained = json.loads((run / "references.json").read_text())["untrained"]
    assert "glue.cola" in untrained["scores"]
    assert "glue.mean" not in untrained["scores"]
    assert cli.main(["evaluate", str(run), *alone, "--set", "dropout=0.0"]) == 0
    untrained = json.loads((run / "references.json").read_text())["untrained"]
    assert not [name for name in untrained["scores"] if name.startswith("glue.")]


def test_a_mean_that_leaves_out_what_some_arms_lack_says_so(trained: Path, glue: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola", "--json"]) == 0
    file = run / "arms/minilmv2/seed-2/record.json"
    late = json.loads(file.read_text())
    del late["glue"]  # as a seed that was trained after that evaluation
    file.write_text(json.dumps(late))
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "rte", "--json"]) == 0
    for arm, seed in (("no_kd", 1), ("minilmv2", 2)):
        found = record(run, arm, seed)
        assert found["scores"]["glue.mean"] == found["scores"]["glue.rte"]
        assert any("glue.mean is over rte" in note and "evaluated on cola" in note for note in found["glue"]["notes"])
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola", "--json"]) == 0
    assert not any("glue.mean is over" in note for note in record(run)["glue"]["notes"])


def test_whoever_interrupts_an_evaluation_is_told_what_it_takes_to_go_on(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    student = run / "arms/no_kd/seed-1/student"
    monkeypatch.setattr("harness.stopping.StopFlag.__call__", lambda _self: True)
    for arguments in ([str(run), *flags(glue)], [str(student), *flags(glue), "--out", str(tmp_path / "out")]):
        assert cli.main(["evaluate", *arguments]) == 75
        error = capsys.readouterr().err
        assert "start the same command again" in error
        assert "--resume" not in error


def test_a_run_whose_jobs_are_at_work_is_not_evaluated_beside_them(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = (run / "study.yaml").read_text()
    job = JobDirectory(run, [Work("evaluation", "no_kd", 1)])
    job.open(load_study(run), resume=True)
    try:
        assert cli.main(["evaluate", str(run), *flags(glue)]) == 2
        assert "a job is at work on no_kd-seed-1" in capsys.readouterr().err
    finally:
        job.close()
    assert (run / "study.yaml").read_text() == before
    assert not list(run.rglob("glue/*.json"))


def test_the_untrained_reference_is_the_same_model_for_run_and_evaluate(
    tiny: TinyStudy, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that starts from its teacher's layers computes with its teacher's activation, before its first step too."""
    teacher = Path(shutil.copytree(tiny.teacher, tmp_path / "teacher"))
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"hidden_act": "relu", "layer_norm_eps": 1e-6}))
    tree = tiny.tree(
        student={"family": "bert", "layers": 2, "hidden": 64, "heads": 4, "init_from_teacher": "every_kth"},
        teacher={"path": str(teacher), "trained_on": "unknown", "allow_worse": True, "training_flop": 1e6},
        arms=[{"name": "no_kd", "objective": "mlm"}], budget="0.6 Gflop",
        evaluation={
            "main": "glue.mean", "curve_points": 0, "mlm_blocks": 8, "readout": None,
            "glue": {"path": str(glue), "tasks": ["cola"], "grid": yaml.safe_load(GRID)},
        },
    )  # fmt: skip
    file, run = tmp_path / "study.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert cli.main(["run", "--study", str(file), "--out", str(run)]) == 0
    shutil.rmtree(teacher)  # a run that was copied elsewhere
    assert cli.main(["evaluate", str(run), "--json"]) == 0
    assert len(list((run / "references/untrained/glue").glob("*.json"))) == 1


def test_a_model_folder_gets_what_it_gets_inside_its_run(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--json"]) == 0
    capsys.readouterr()
    student = run / "arms/no_kd/seed-1/student"
    before = sorted(p.name for p in student.iterdir())
    assert cli.main(["evaluate", str(student), *flags(glue), "--out", str(tmp_path / "out"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["students"][0]
    assert row["scores"] == {k: v for k, v in record(run)["scores"].items() if k.startswith("glue.")}
    assert sorted(p.name for p in student.iterdir()) == before, "a model folder is only read"


def test_a_sweep_is_evaluated_point_by_point_and_what_points_share_once(
    tiny: TinyStudy, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.evaluate import glue as module

    tree = tiny.tree(
        arms=[{"name": "no_kd", "objective": "mlm"}, {"name": "kd", "objective": "soft_targets"}], baseline="no_kd",
        seeds=[1], budget="0.6 Gflop", evaluation={"main": "mlm.loss", "curve_points": 0, "mlm_blocks": 8, "readout": None},
        teacher={"path": str(tiny.teacher), "trained_on": "same", "training_flop": 2e7, "allow_worse": True},
        sweep={"kind": "amortise", "key": "accounting.teacher_training", "values": ["free", "full"]},
    )  # fmt: skip
    file, run = tmp_path / "sweep.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert cli.main(["run", "--study", str(file), "--out", str(run)]) == 0
    done: list[str] = []
    real = module.finetune
    monkeypatch.setattr(module, "finetune", lambda *args, **keys: done.append("") or real(*args, **keys))
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), *flags(glue, "--json")]) == 0
    tables = json.loads(capsys.readouterr().out)["points"]
    assert [row["name"] for row in tables[1]["students"]] == ["no_kd · seed 1", "kd · seed 1", "untrained student"]
    free, full = run / "points/free", run / "points/full"
    assert record(full)["scores"]["glue.mean"] == record(free)["scores"]["glue.mean"]
    assert record(full, "kd")["scores"]["glue.mean"] == tables[1]["students"][1]["scores"]["glue.mean"]
    assert len(done) == 2 * (3 + 2), "two tasks; three students, then the two that the second point does not share"

    shutil.rmtree(full / "arms/kd")
    assert cli.main(["evaluate", str(run), *flags(glue)]) == 2
    assert "has not been trained" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_give_the_results_of_one_and_share_the_jobs(
    root: Path, trained: Path, glue: Path, tmp_path: Path
) -> None:
    found = []
    for world in (1, 2):
        run = tmp_path / f"world-{world}"
        shutil.copytree(trained, run)
        clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
        environment = {**clean, "OMP_NUM_THREADS": "1"}
        torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
        # Alone under plain python: torchrun would give a single rank all cores, and threads change sums.
        prefix = torchrun if world == 2 else [sys.executable]
        result = subprocess.run(
            [*prefix, "launch.py", "evaluate", str(run), *flags(glue, "--seeds", "1,2")], cwd=root, env=environment,
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        found.append(
            {
                str(p.relative_to(run)): {k: v for k, v in json.loads(p.read_text()).items() if k != "seconds"}
                for p in sorted(run.rglob("glue/*.json"))
            }
        )
        assert {arm: record(run, arm)["scores"]["glue.mean"] for arm in ("no_kd", "minilmv2")}
    assert found[0] == found[1]
    assert len(found[0]) == 5 * 2 * 2


BAD = [
    (["evaluate", "{nowhere}"], 2, "neither a study's directory, nor a sweep's, nor a model folder"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "colla"], 2, "unknown task 'colla'"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "cola", "--grid", "fast"], 2, "'paper', 'quick' or 'staged'"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "cola", "--seeds", "one"], 2, "whole numbers"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "cola", "--select-on", "test"], 2, "select_on"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "cola", "--max-flop", "1 flop"], 2, "the cheapest task"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "cola", "--max-flop", "3 tokens"], 2, "not in token"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "cola", "--set", "lr=1"], 2, "unknown key"),
    (["evaluate", "{run}", "--glue", "{glue}", "--tasks", "qnli"], 3, "no folder of that name"),
    (["evaluate", "{run}", "--glue", "{nowhere}", "--tasks", "cola"], 3, "no such folder"),
    (["evaluate", "{unfinished}", "--glue", "{glue}", "--tasks", "cola"], 2, "has not been trained"),
    (["plan", "--study", "{tiny}", "--set", "evaluation.glue={path: {glue}, tasks: [colla]}"], 2, "unknown task 'colla'"),
    (["plan", "--study", "{tiny}", "--set", "evaluation.glue={path: {glue}, tasks: [qnli]}"], 3, "no folder"),
    (["--study", "{tiny}", "--set", "evaluation.glue={path: {glue}, tasks: [qnli]}"], 3, "no folder"),
    (["--study", "{tiny}", "--set", "evaluation.main=glue.cola"], 2, "not a score this study makes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_a_mistake_is_one_line_and_costs_nothing(
    tiny: TinyStudy, trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained, unfinished)
    (unfinished / "arms/minilmv2/seed-2/record.json").unlink()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    places = {
        "{tiny}": tiny.file,
        "{run}": trained,
        "{glue}": glue,
        "{nowhere}": tmp_path / "absent",
        "{unfinished}": unfinished,
    }
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    capsys.readouterr()
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("isobudget:")]) == 1
    assert list(work.iterdir()) == []
    assert not list(trained.rglob("glue/*.json"))


def test_what_a_cap_drops_is_said_and_is_the_same_for_every_arm(
    trained: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola,rte", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["students"]
    prices = {task: _price(run, task) for task in rows[0]["glue"]["tasks"]}
    low = min(prices, key=lambda t: prices[t])
    cap = f"{prices[low] + 1} flop"
    assert cli.main(["evaluate", str(run), *flags(glue), "--tasks", "cola,rte", "--max-flop", cap, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["students"]
    assert {tuple(row["glue"]["tasks"]) for row in rows} == {(low,)}
    assert all(row["scores"].keys() == {f"glue.{low}", "glue.mean"} for row in rows)
    assert all(any("cheapest first" in note for note in row["glue"]["notes"]) for row in rows)


def _price(run: Path, task: str) -> int:
    return max(json.loads(p.read_text())["flop"] for p in run.rglob(f"glue/{task}-*.json"))


def test_plan_prices_glue_and_says_what_its_scores_cannot_show(
    tiny: TinyStudy, glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = f"evaluation.glue={{path: {glue}, tasks: [cola], grid: {GRID}, select_on: validation, seeds: [1, 2]}}"
    # On a named machine: times measured here vary by more than these fine-tunings take.
    base = ["plan", "--study", str(tiny.file), "--arms", "no_kd,minilmv2", "--on", "h200", "--json"]
    tables = []
    for more in ([], ["--set", block]):
        assert cli.main([*base, *more]) == 0
        tables.append(json.loads(capsys.readouterr().out))
    assert tables[1]["seconds"] > tables[0]["seconds"]
    notes = " ".join(tables[1]["notes"])
    assert "one pretraining seed gives no interval for GLUE" in notes
    assert "fine-tuning seeds do not replace them" in notes
    assert "optimistic" in notes


def _without_a_split(folder: Path) -> None:
    (folder / "rte" / "validation-00000-of-00001.parquet").unlink()


def _with_a_strange_label(folder: Path) -> None:
    """As another program may have written it: `datasets` itself would refuse to."""
    import pyarrow
    import pyarrow.parquet

    from harness.data.glue_tasks import TASKS
    from tests.support.glue_worlds import rows

    table = rows(TASKS["rte"], 40, "x")
    table["label"][7] = 2
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "rte" / "train-00000-of-00001.parquet")


@pytest.mark.parametrize("large", [False, True], ids=["small", "too large to tokenise for a plan"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_without_a_split, "has no validation split"), (_with_a_strange_label, "rte, train row 7: label 2")],
)
def test_broken_glue_data_is_refused_by_the_plan_however_much_of_it_there_is(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    large: bool, spoil: Any, message: str,
) -> None:  # fmt: skip
    folder = write_glue(tmp_path / "glue", tasks=("rte",), train=80)
    monkeypatch.setattr("harness.plan.glue.SMALL_BYTES", 0 if large else 10**6)
    arguments = [
        "plan",
        "--study",
        str(tiny.file),
        "--set",
        f"evaluation.glue={{path: {folder}, tasks: [rte]}}",
        "--json",
    ]
    assert cli.main(arguments) == 0
    spoil(folder)
    assert cli.main(arguments) == 3
    assert message in capsys.readouterr().err


def test_a_typo_in_the_place_of_glue_is_refused_by_the_plan(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.plan.glue.SMALL_BYTES", 0)
    block = f"evaluation.glue={{path: {tmp_path / 'gleu'}, tasks: [rte]}}"
    assert cli.main(["plan", "--study", str(tiny.file), "--set", block]) == 3
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seeds", "said"), [("1", "one seed gives no interval"), ("1,2", "12.7 standard errors"), ("1,2,3", "")]
)
def test_too_few_seeds_for_an_interval_are_said_by_the_plan(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], seeds: str, said: str
) -> None:
    assert cli.main(["plan", "--study", str(tiny.file), "--arms", "no_kd,minilmv2", "--seeds", seeds, "--json"]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    assert said in notes
    if not said:
        assert "interval" not in notes
