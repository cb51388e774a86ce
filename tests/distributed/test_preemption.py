"""SIGTERM under torchrun.sh and mpirun.sh with two ranks: both save the same step, 75 reaches the shell, and the end is bit-identical."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli
from tests.support.tiny import TinyStudy

pytestmark = pytest.mark.slow


SCRIPTS = ("torchrun.sh", "mpirun.sh")


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    if request.param == "mpirun.sh" and shutil.which("mpirun") is None:
        pytest.skip("no mpirun on PATH")
    return request.param


def start(
    root: Path, script: str, study: Path, out: Path, *more: str, largest_file: int | None = None
) -> subprocess.Popen[bytes]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    unwanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "HOSTFILE")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "MASTER_PORT": port, "MAX_RESTARTS": "1"}
    environment |= {"RANKS_PER_NODE": "2"} if script == "torchrun.sh" else {"RANKS": "2"}
    engine = str(root / "ds_configs" / "zero1_fp32.json")
    words = [str(root / "launchers" / script), "--study", str(study), "--ds_config", engine, "--out", str(out), *more]
    words += ["--auto-resume"] if script == "mpirun.sh" else []  # torchrun.sh says it itself: it restarts
    with out.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=root)
    if largest_file is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    return process


def charges(out: Path) -> list:
    rows = map(json.loads, (out / "arms" / "no_kd" / "seed-1" / "ledger.jsonl").read_text().splitlines())
    kept = [[row["step"], [c for c in row["charges"] if c[3] == "analytic" and c[0] != "LOST"]] for row in rows]
    return [row for row in kept if row[1]]


def test_a_preempted_launch_ends_with_75_and_resumes_bit_identically(
    root: Path, script: str, tiny: TinyStudy, tmp_path: Path
) -> None:
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] == "no_kd"]
    evaluation = {"curve_points": 0, "mlm_blocks": 16, "readout": None, "main": "mlm.loss"}
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="20 Gflop", evaluation=evaluation, checkpoints=0)
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    assert start(root, script, study, calm).wait(timeout=400) == 0, calm.with_suffix(".log").read_text()[-3000:]

    agent = start(root, script, study, stopped)
    ledger = stopped / "arms" / "no_kd" / "seed-1" / "ledger.jsonl"
    deadline = time.monotonic() + 300
    while not (ledger.exists() and len(ledger.read_text().splitlines()) > 20):
        assert agent.poll() is None, stopped.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    agent.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert agent.wait(timeout=60) == 75, stopped.with_suffix(".log").read_text()[-3000:]
    assert time.monotonic() - begun < 40
    status = json.loads((stopped / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    posted = len(charges(stopped))
    assert posted < len(charges(calm)), "it was stopped on its way"
    (checkpoint,) = (stopped / "arms" / "no_kd" / "seed-1" / "checkpoints").glob("step-*")
    assert (
        int(checkpoint.name.removeprefix("step-")) == posted - 1 or int(checkpoint.name.removeprefix("step-")) == posted
    )

    assert start(root, script, study, stopped).wait(timeout=400) == 0, stopped.with_suffix(".log").read_text()[-3000:]
    assert charges(stopped) == charges(calm)
    weights = [
        (out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors").read_bytes() for out in (calm, stopped)
    ]
    assert weights[0] == weights[1]


def test_a_refused_first_run_ends_with_its_own_code(root: Path, script: str, tiny: TinyStudy, tmp_path: Path) -> None:
    """torchrun itself says 1, whatever its ranks said."""
    out = tmp_path / "refused"
    code = start(root, script, tiny.file, out, "--set", "teacher.path=/no/such/teacher").wait(timeout=300)
    assert code == 3, out.with_suffix(".log").read_text()[-3000:]
    assert not (out / "study.yaml").exists()


def test_a_ledger_that_one_rank_cannot_write_ends_all_ranks_with_4(
    root: Path, script: str, tiny: TinyStudy, tmp_path: Path
) -> None:
    """Only rank 0 writes it; the others learn of it at the end of the step."""
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] == "no_kd"]
    evaluation = {"curve_points": 0, "mlm_blocks": 16, "readout": None, "main": "mlm.loss"}
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="20 Gflop", evaluation=evaluation, checkpoints=0)
    assert cli.main(["prefetch", "--study", str(study)]) == 0, "else the corpus would be too large a file"
    out = tmp_path / "full"
    process = start(root, script, study, out, largest_file=24_000)
    code = process.wait(timeout=400)
    log = out.with_suffix(".log").read_text()
    assert code == 4, log[-3000:]
    assert json.loads((out / "status.json").read_text())["exit_code"] == 4
    ledger = out / "arms" / "no_kd" / "seed-1" / "ledger.jsonl"
    assert 23_000 < ledger.stat().st_size <= 24_000, "it was the ledger that was full"
    assert not [line for line in alive() if str(out) in line]


def alive() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def test_torchrun_restarts_after_a_rank_was_killed_and_the_run_ends_as_if_none_had_been(
    root: Path, tiny: TinyStudy, tmp_path: Path
) -> None:
    """No signal asks for a save: the restart continues from the last checkpoint, and what was repeated is LOST."""
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] == "no_kd"]
    evaluation = {"curve_points": 0, "mlm_blocks": 16, "readout": None, "main": "mlm.loss"}
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="20 Gflop", evaluation=evaluation, checkpoints=10)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert start(root, "torchrun.sh", study, calm).wait(timeout=400) == 0, calm.with_suffix(".log").read_text()[-3000:]

    agent = start(root, "torchrun.sh", study, killed)
    folder = killed / "arms" / "no_kd" / "seed-1"
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoints/step-*/manifest.json")):
        assert agent.poll() is None, killed.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = json.loads((killed / "environment.json").read_text())["ranks"]
    signs = {rank["rank"]: json.loads((killed / ".ranks" / f"rank-{rank['rank']}.json").read_text()) for rank in ranks}
    os.kill(signs[1]["pid"], signal.SIGKILL)
    assert agent.wait(timeout=400) == 0, killed.with_suffix(".log").read_text()[-3000:]

    attempts = json.loads((killed / "jobs" / "study.json").read_text())["attempts"]
    assert [attempt["ranks"] for attempt in attempts] == [2, 2], "torchrun began anew, once"
    assert attempts[-1]["state"] == "done"
    assert charges(killed) == charges(calm)
    weights = [
        (out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors").read_bytes() for out in (calm, killed)
    ]
    assert weights[0] == weights[1]
