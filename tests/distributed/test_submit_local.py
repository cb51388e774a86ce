"""The paper's study as jobs for 8 GPUs: what is submitted, executed here by a stand-in scheduler, ends in the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import runs
from harness.study import load
from tests.support.glue_worlds import write_glue
from tests.support.stand_in import StandIn
from tests.support.tiny import TinyStudy

pytestmark = pytest.mark.slow

STUDY = "paper_6l_1epoch"
EIGHT_GPUS = ["--gpus-per-run", "4", "--gpus-per-node", "8", "--nodes", "1"]
ARMS = ("no_kd", "tinybert_published", "minilmv2")
GRID = "{lrs: [0.002], batches: [16], epochs: 1}"


def submit(root: Path, scheduler: StandIn, out: Path, *words: str) -> str:
    said = subprocess.run(
        [sys.executable, "launch.py", "submit", "--study", STUDY, "--out", str(out), *words], cwd=root,
        capture_output=True, text=True, timeout=300, env=scheduler.environment,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def test_the_papers_study_fills_8_gpus(root: Path, tmp_path: Path) -> None:
    """As it is published, nothing changed: 24 runs of 4 GPUs, two at once on the one node."""
    scheduler = StandIn(tmp_path / "scheduler")
    submit(root, scheduler, tmp_path / "out", *EIGHT_GPUS)
    jobs = scheduler.jobs()
    assert [(job.name, job.tasks, job.needs) for job in jobs] == [
        ("cache", 1, {}), ("arms", 12, {1: "afterok"}), ("evaluation", 3, {2: "afterany"}), ("report", 1, {3: "afterany"}),
    ]  # fmt: skip
    script = jobs[1].script.read_text()
    assert "#SBATCH --array=0-11%1\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    stages = {stage["name"]: stage for stage in json.loads((tmp_path / "out/jobs/graph.json").read_text())["stages"]}
    study = load(STUDY)
    assert stages["arms"]["works"] == [f"{arm.name}:{seed}" for arm in study.arms for seed in study.seeds]
    assert (stages["arms"]["ranks"], stages["arms"]["slots"], stages["evaluation"]["slots"]) == (4, 2, 8)


def test_the_papers_study_runs_from_its_job_files_to_the_report(root: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    """Three arms and GLUE at one seed and tiny size: sizes, places and grids are set, everything else is the file's."""
    out, glue = tmp_path / "out", write_glue(tmp_path / "glue", tasks=("rte", "mrpc"), train=40)
    changes = [
        f"data={{sources: [{{path: {tiny.corpus}}}], block_length: 32}}",
        f"teacher.path={tiny.teacher}", "teacher.allow_worse=true",
        "student.layers=2", "student.hidden=32", "student.heads=4", "batch.sequences=8", "checkpoints=1",
        "arms.minilmv2.objective.relation_heads=8", "arms.minilmv2.objective.teacher_layer=4",
        "evaluation.curve_points=1", "evaluation.mlm_blocks=16", "evaluation.readout={steps: 5, positions: 64, blocks: 32}",
        f"evaluation.glue.path={glue}", "evaluation.glue.tasks=[rte, mrpc]", f"evaluation.glue.grid={GRID}",
    ]  # fmt: skip
    scheduler = StandIn(tmp_path / "scheduler")
    words = [
        *EIGHT_GPUS,
        "--seeds",
        "1",
        "--arms",
        ",".join(ARMS),
        "--budget",
        "0.3 Gflop",
        "--ds_config",
        str(root / "ds_configs" / "zero1_fp32.json"),
    ]
    submit(root, scheduler, out, *words, *(word for change in changes for word in ("--set", change)))
    recorded = json.loads((out / "jobs" / "graph.json").read_text())["command"]
    assert all(change in recorded for change in changes), "what was changed is on record"

    jobs = scheduler.run(timeout_s=3000)
    logs = "\n".join(
        f"{file.name}: {file.read_text()[-1500:]}"
        for folder in ("jobs", "jobs/logs")
        for file in sorted((out / folder).glob("*.*"))
        if file.suffix in (".log", ".out")
    )
    assert [(job.name, job.codes) for job in jobs] == [
        ("cache", [0]), ("arms", [0, 0]), ("evaluation", [0]), ("report", [0]),
    ], logs  # fmt: skip
    found = runs.read(out)
    assert found.verdict == 0
    assert {job["job"]: [a["exit_code"] for a in job["attempts"]] for job in found.jobs} == {
        **{f"{kind}-{arm}-seed-1": [0] for kind in ("train", "evaluation") for arm in ARMS}, "report": [0],
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert {run["name"]: run["state"] for run in report["arms"]} == dict.fromkeys(ARMS, "done")
    assert all({"readout.loss", "glue.mean"} <= run["scores"].keys() for run in report["arms"])
    assert (out / "report.html").is_file()
    places = json.loads((out / "arms" / "tinybert_published" / "seed-1" / "environment.json").read_text())["ranks"]
    assert [place["rank"] for place in places] == [0, 1, 2, 3]

    # Submitted again, by hand: nothing is trained twice.
    weights = out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors"
    before = os.stat(weights)
    again = subprocess.run(
        ["bash", str(out / "jobs" / "arms.sbatch"), "0"], cwd=tmp_path, capture_output=True, text=True,
        env=scheduler.environment,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert os.stat(weights).st_mtime_ns == before.st_mtime_ns
    assert "done already" in (out / "jobs" / "logs" / "train-no_kd-seed-1.log").read_text()


def test_a_teacher_that_its_own_study_trains_teaches_the_study(root: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    out, scheduler = tmp_path / "out", StandIn(tmp_path / "scheduler")
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] in ("no_kd", "soft_targets")]
    study = tiny.write(
        tmp_path / "study.yaml", arms=arms, budget="0.3 Gflop", teacher={"path": "./not-trained-yet", "allow_worse": True}
    )  # fmt: skip
    big = {"family": "bert", "layers": 3, "hidden": 32, "heads": 4}
    teacher = tiny.write(
        tmp_path / "teacher.yaml", name="teacher", teacher=None, arms=[{"name": "big", "objective": "mlm"}], student=big,
        budget="0.3 Gflop",
    )  # fmt: skip
    words = ["--study", str(study), "--teacher-study", str(teacher), "--out", str(out), "--cpu", "--gpus-per-node", "2"]
    words += ["--ds_config", str(root / "ds_configs" / "zero1_fp32.json")]

    def program(*words: str, **more: str) -> None:
        said = subprocess.run(
            [sys.executable, "launch.py", *words], cwd=root, capture_output=True, text=True, timeout=300,
            env=scheduler.environment | {"ISOBUDGET_CACHE": str(tmp_path / "cache")} | more,
        )  # fmt: skip
        assert said.returncode == 0, said.stdout + said.stderr

    program("submit", *words, "--dry-run")
    scripts = {f"jobs/{name}.sbatch" for name in ("cache", "teacher", "arms", "evaluation", "report")}
    read = {"study.yaml", "jobs/teacher.yaml", "jobs/ds_config.json", "jobs/graph.json"}
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert written == scripts | read | {".lock", "jobs/.submitting"}, "the jobs, and what they read"
    assert not (tmp_path / "cache").exists()
    program("submit", *words)
    scheduler.environment["ISOBUDGET_CACHE"] = str(tmp_path / "cache")
    jobs = scheduler.run(timeout_s=600)
    logs = "\n".join(file.read_text()[-1500:] for file in sorted((out / "jobs" / "logs").glob("*.log")))
    assert [(job.name, job.codes) for job in jobs] == [
        ("cache", [0]), ("teacher", [0]), ("arms", [0]), ("evaluation", [0]), ("report", [0]),
    ], logs  # fmt: skip
    assert runs.read(out).verdict == 0
    record = json.loads((out / "arms" / "soft_targets" / "seed-1" / "record.json").read_text())
    assert Path(record["teacher"]["path"]).is_relative_to(out.resolve() / "teacher")
    assert record["teacher"]["training_flop"] > 0, "what it took is known"
    # On a login node, before anything is trained: nothing is missing afterwards.
    before = ["--study", str(study), "--teacher-study", str(teacher)]
    program("prefetch", *before, ISOBUDGET_CACHE=str(tmp_path / "other"))


def test_without_a_scheduler_the_graph_runs_here_and_a_failed_stage_holds_up_what_needs_it(
    root: Path, tiny: TinyStudy, tmp_path: Path
) -> None:
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] == "no_kd"]
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="0.3 Gflop")

    def local(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "launch.py",
            "submit",
            "--study",
            str(study),
            "--out",
            str(out),
            "--cpu",
            "--local",
            *words,
        ]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)

    done = local(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    order = [line.partition(":")[0] for line in done.stdout.splitlines() if ": task " in line]
    assert order == ["cache", "arms", "evaluation", "report"]
    assert runs.read(tmp_path / "out").verdict == 0
    broken = local(tmp_path / "broken", "--set", "data.sources=[{path: ./nowhere}]")
    assert broken.returncode != 0
    assert "arms: left out, because cache did not succeed" in broken.stdout
