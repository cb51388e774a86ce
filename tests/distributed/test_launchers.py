"""One study under every launcher and ZeRO stage: the same ledger, and losses equal within 1e-5; under every launcher of two
ranks with one engine, the same weights to the bit.

Law 2 (all ranks stop at the same step) is implied: a rank that stopped elsewhere would hang its partner.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import TinyStudy

SCRIPTS = Path(sys.executable).parent


def port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def launch(root: Path, tiny: TinyStudy, out: Path, *prefix: str, ds_config: str | None = None) -> dict[str, list]:
    """Run the tiny study and return what must not depend on the launcher."""
    flags = ["--study", str(tiny.file), "--out", str(out)]
    if ds_config:
        flags += ["--ds_config", str(root / "ds_configs" / ds_config)]
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
    }
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [*prefix, "launch.py", *flags], cwd=root, capture_output=True, text=True, timeout=400, env=environment
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found = {}
    for arm in ("no_kd", "soft_targets", "minilmv2", "tinybert"):
        folder = out / "arms" / arm / "seed-1"
        postings = [
            [row["step"], [c for c in row["charges"] if c[3] == "analytic"], row["spent"]]
            for row in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())
        ]
        losses = [
            row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row
        ]
        weights = hashlib.sha256((folder / "student" / "model.safetensors").read_bytes()).hexdigest()
        found[arm] = [[p for p in postings if p[1]], losses, weights]
    return found


@pytest.fixture(scope="module")
def alone(root: Path, tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """The study under plain python: one process, ZeRO-0, fp32."""
    return launch(root, tiny, tmp_path_factory.mktemp("alone") / "run", sys.executable, ds_config="zero0_fp32.json")


def agree(mine: dict[str, list], theirs: dict[str, list]) -> None:
    for arm, (ledger, losses, _) in theirs.items():
        assert mine[arm][0] == ledger, f"{arm}: the ledger depends on the launch"
        assert mine[arm][1] == pytest.approx(losses, rel=1e-5), f"{arm}: the losses depend on the launch"


def torchrun(root: Path, tiny: TinyStudy, out: Path, *, stage: int) -> dict[str, list]:
    prefix = ["torchrun", "--nproc-per-node", "2", "--master-port", port()]
    return launch(root, tiny, out, *prefix, ds_config=f"zero{stage}_fp32.json")


@pytest.fixture(scope="module")
def two_ranks(root: Path, tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """The study under torchrun: two processes, ZeRO-0, fp32."""
    return torchrun(root, tiny, tmp_path_factory.mktemp("two") / "run", stage=0)


def test_torchrun_with_two_ranks(two_ranks: dict, alone: dict) -> None:
    agree(two_ranks, alone)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_torchrun_with_two_ranks_and_any_zero_stage(
    root: Path, tiny: TinyStudy, alone: dict, tmp_path: Path, stage: int
) -> None:
    agree(torchrun(root, tiny, tmp_path / "run", stage=stage), alone)


def test_deepspeed_launcher_with_two_ranks_is_torchrun_to_the_bit(
    root: Path, tiny: TinyStudy, two_ranks: dict, tmp_path: Path
) -> None:
    prefix = ["deepspeed", "--num_gpus", "2", "--master_port", port()]
    assert launch(root, tiny, tmp_path / "run", *prefix, ds_config="zero0_fp32.json") == two_ranks


def test_mpirun_with_two_ranks_is_torchrun_to_the_bit(
    root: Path, tiny: TinyStudy, two_ranks: dict, tmp_path: Path
) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun on PATH")
    prefix = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "-x", "OMP_NUM_THREADS", sys.executable]
    assert launch(root, tiny, tmp_path / "run", *prefix, ds_config="zero0_fp32.json") == two_ranks
