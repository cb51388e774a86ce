"""Real Slurm of one node, where it is installed: the submitted graph ends in a report, and a warned job comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import runs
from tests.support.slurm import Slurm, missing
from tests.support.tiny import TinyStudy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := missing():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def test_a_submitted_study_ends_in_its_report(root: Path, tiny: TinyStudy, slurm: Slurm, tmp_path: Path) -> None:
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] in ("no_kd", "tinybert")]
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="0.3 Gflop")
    out = tmp_path / "out"
    words = [
        "submit", "--study", str(study), "--out", str(out), "--cpu", "--gpus-per-run", "2", "--gpus-per-node", "2",
        "--ds_config", str(root / "ds_configs" / "zero1_fp32.json"), "--partition", "debug", "--time", "20:00",
    ]  # fmt: skip
    said = subprocess.run(
        [sys.executable, "launch.py", *words], cwd=root, capture_output=True, text=True, env=slurm.environment
    )
    assert said.returncode == 0, said.stderr
    slurm.wait(timeout_s=600)
    logs = "\n".join(file.read_text()[-1500:] for file in sorted((out / "jobs" / "logs").glob("*.log")))
    found = runs.read(out)
    assert found.verdict == 0, logs
    assert (out / "report.html").is_file()
    for arm in ("no_kd", "tinybert"):
        places = json.loads((out / "arms" / arm / "seed-1" / "environment.json").read_text())["ranks"]
        assert [place["rank"] for place in places] == [0, 1]
        (attempt,) = next(job["attempts"] for job in found.jobs if job["job"] == f"train-{arm}-seed-1")
        assert attempt["scheduler"]["slurm_job_id"].isdigit()


def test_a_warned_job_saves_is_requeued_and_ends_as_if_undisturbed(
    root: Path, tiny: TinyStudy, slurm: Slurm, tmp_path: Path
) -> None:
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] == "no_kd"]
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="30 Gflop", evaluation={
        "curve_points": 0, "mlm_blocks": 16, "readout": None, "main": "mlm.loss"})  # fmt: skip
    outs = [tmp_path / name for name in ("calm", "warned")]
    script = root / "launchers" / "slurm.sbatch"
    environment = {**slurm.environment, "PYTHON": sys.executable}
    numbers = []
    for out in outs:
        flags = ["--study", str(study), "--out", str(out), "--ds_config", str(root / "ds_configs" / "zero0_fp32.json")]
        resources = ["--ntasks-per-node=2", "--cpus-per-task=1", "--overcommit", f"--output={out}.log"]
        said = subprocess.run(
            ["sbatch", "--parsable", *resources, str(script), *flags],
            cwd=root,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert said.returncode == 0, said.stderr
        numbers.append(said.stdout.strip())
    ledger = outs[1] / "arms" / "no_kd" / "seed-1" / "ledger.jsonl"
    deadline = time.monotonic() + 300
    while not (ledger.exists() and len(ledger.read_text().splitlines()) > 30):
        assert time.monotonic() < deadline, slurm.jobs()
        time.sleep(0.1)
    slurm.run("scancel", "--batch", "--signal=USR1", numbers[1])
    slurm.wait(timeout_s=400)
    log = Path(f"{outs[1]}.log").read_text()
    assert "asking for another turn" in log
    found = runs.read(outs[1])
    assert found.verdict == 0, log[-3000:]
    (whole,) = [job["attempts"] for job in found.jobs if job["job"] == "study"]
    assert [attempt["exit_code"] for attempt in whole] == [75, 0]
    weights = [(out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors").read_bytes() for out in outs]
    assert weights[0] == weights[1]
    assert os.stat(ledger).st_size > 0
