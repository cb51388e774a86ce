"""SIGTERM under torchrun with two ranks: both save the same step, 75 reaches the shell, and the end is bit-identical."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tiny import TinyStudy

pytestmark = pytest.mark.slow


def start(root: Path, study: Path, out: Path) -> subprocess.Popen[bytes]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    unwanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "RANKS_PER_NODE": "2", "MASTER_PORT": port}
    engine = str(root / "ds_configs" / "zero1_fp32.json")
    words = [str(root / "launchers" / "torchrun.sh"), "--study", str(study), "--ds_config", engine, "--out", str(out)]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=root)


def charges(out: Path) -> list:
    rows = map(json.loads, (out / "arms" / "no_kd" / "seed-1" / "ledger.jsonl").read_text().splitlines())
    kept = [[row["step"], [c for c in row["charges"] if c[3] == "analytic" and c[0] != "LOST"]] for row in rows]
    return [row for row in kept if row[1]]


def test_a_preempted_torchrun_ends_with_75_and_resumes_bit_identically(
    root: Path, tiny: TinyStudy, tmp_path: Path
) -> None:
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] == "no_kd"]
    evaluation = {"curve_points": 0, "mlm_blocks": 16, "readout": None, "main": "mlm.loss"}
    study = tiny.write(tmp_path / "study.yaml", arms=arms, budget="20 Gflop", evaluation=evaluation, checkpoints=0)
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    assert start(root, study, calm).wait(timeout=400) == 0, calm.with_suffix(".log").read_text()[-3000:]

    agent = start(root, study, stopped)
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

    assert start(root, study, stopped).wait(timeout=400) == 0, stopped.with_suffix(".log").read_text()[-3000:]
    assert charges(stopped) == charges(calm)
    weights = [
        (out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors").read_bytes() for out in (calm, stopped)
    ]
    assert weights[0] == weights[1]
