"""A published study at tiny size: its jobs, executed here in the order of their graph, end in the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import runs
from tests.support.tiny import TinyStudy

pytestmark = pytest.mark.slow


def test_the_papers_study_runs_from_its_job_files_to_the_report(root: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = [
        f"data={{sources: [{{path: {tiny.corpus}}}], block_length: 32}}", f"teacher={{path: {tiny.teacher}, allow_worse: true}}",
        "student={family: bert, layers: 2, hidden: 32, heads: 4}", "batch.sequences=8", "checkpoints=1",
        "arms.minilmv2.objective={name: minilmv2, relation_heads: 8}",
        "evaluation={main: readout.loss, curve_points: 1, mlm_blocks: 16, readout: {steps: 5, positions: 64, blocks: 32}}",
    ]  # fmt: skip
    words = [
        "submit", "--study", "paper_6l_1epoch", "--arms", "no_kd,minilmv2", "--seeds", "1", "--budget", "0.3 Gflop", "--out",
        str(out), "--ds_config", str(root / "ds_configs" / "zero1_fp32.json"), "--cpu", "--gpus-per-run", "2",
        "--gpus-per-node", "2", "--local", *(word for change in changes for word in ("--set", change)),
    ]  # fmt: skip
    said = subprocess.run([sys.executable, "launch.py", *words], cwd=root, capture_output=True, text=True, timeout=900)
    logs = "\n".join(file.read_text()[-1500:] for file in sorted((out / "jobs" / "logs").glob("*.log")))
    assert said.returncode == 0, said.stdout + said.stderr + logs
    order = [line.partition(":")[0] for line in said.stdout.splitlines() if ": task " in line]
    assert order == ["cache", "arms", "arms", "evaluation", "report"]
    found = runs.read(out)
    assert found.verdict == 0
    assert {job["job"]: [a["exit_code"] for a in job["attempts"]] for job in found.jobs} == {
        **{f"{kind}-{arm}-seed-1": [0] for kind in ("train", "evaluation") for arm in ("no_kd", "minilmv2")}, "report": [0],
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert {run["name"]: run["state"] for run in report["arms"]} == {"no_kd": "done", "minilmv2": "done"}
    assert all("readout.loss" in run["scores"] for run in report["arms"])

    # Submitted again, by hand: nothing is trained twice.
    weights = out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors"
    before = os.stat(weights)
    again = subprocess.run(
        ["bash", str(out / "jobs" / "arms.sbatch"), "0"], cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert os.stat(weights).st_mtime_ns == before.st_mtime_ns
    assert "done already" in (out / "jobs" / "logs" / "train-no_kd-seed-1.log").read_text()
