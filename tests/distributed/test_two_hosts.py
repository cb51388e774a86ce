"""Two hosts with an sshd each: the launch scripts give the ledger and the weights that one host gives.

Bit for bit: the same two ranks compute and reduce in the same order wherever they sit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny import TinyStudy
from tests.support.two_hosts import (
    ADDRESSES,
    FIRST,
    PORT,
    SECOND,
    TwoHosts,
    leftovers,
    missing,
    remove,
    remove_leftovers,
)

pytestmark = pytest.mark.slow  # eight launches of two ranks: about four minutes on a busy machine

ARMS = ("no_kd", "tinybert")
TIMEOUT_S = 400


@pytest.fixture(scope="module")
def study(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = [arm for arm in tiny.tree()["arms"] if arm["name"] in ARMS]
    return tiny.write(tmp_path_factory.mktemp("study") / "two.yaml", arms=arms, budget="3 Gflop", checkpoints=4)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What every rank sees; no launcher's words from whoever runs the tests."""
    unwanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in unwanted and not k.startswith(("NCCL", "MLFLOW", "PYTHON", "UCX", "MV2"))
    }
    scripts = Path(sys.executable).parent
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PATH": f"{scripts}{os.pathsep}{kept['PATH']}"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[TwoHosts]:
    if reason := missing():
        pytest.skip(reason)
    with TwoHosts(tmp_path_factory.mktemp("hosts"), environment) as made:
        yield made


def outcome(out: Path) -> dict[str, tuple[list, str]]:
    """Per arm: every analytic charge of every step, and the hash of the final weights."""
    found = {}
    for arm in ARMS:
        folder = out / "arms" / arm / "seed-1"
        rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
        charges = [[row["step"], [c for c in row["charges"] if c[3] == "analytic" and c[0] != "LOST"]] for row in rows]
        weights = hashlib.sha256((folder / "student" / "model.safetensors").read_bytes()).hexdigest()
        found[arm] = ([charge for charge in charges if charge[1]], weights)
    return found


def flags(root: Path, study: Path, out: Path) -> list[str]:
    return ["--study", str(study), "--ds_config", str(root / "ds_configs" / "zero1_fp32.json"), "--out", str(out)]


@pytest.fixture(scope="module")
def one_host(
    root: Path, study: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list, str]]:
    """The reference: two ranks on this machine, under the torchrun script."""
    out = tmp_path_factory.mktemp("one") / "run"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    result = subprocess.run(
        [root / "launchers" / "torchrun.sh", *flags(root, study, out)], capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**environment, "RANKS_PER_NODE": "2", "MASTER_PORT": port},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return outcome(out)


def places(out: Path) -> list[tuple[int, str, int]]:
    record = json.loads((out / "environment.json").read_text())
    assert record["hosts"] == sorted(ADDRESSES)
    return [(place["rank"], place["host"], place["local_rank"]) for place in record["ranks"]]


def start_torchrun(root: Path, study: Path, hosts: TwoHosts, out: Path, *, port: int) -> list[subprocess.Popen[bytes]]:
    words = [str(root / "launchers" / "torchrun.sh"), *flags(root, study, out)]
    common = {
        "NODES": "2", "RANKS_PER_NODE": "1", "MASTER_ADDR": ADDRESSES[FIRST], "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "eth0",
    }  # fmt: skip
    return [
        hosts.start(name, words, log=f"{out.name}-{rank}", names="hosts-loopback", NODE_RANK=str(rank), **common)
        for rank, name in enumerate((FIRST, SECOND))
    ]


def said(hosts: TwoHosts, out: Path) -> str:
    return "\n".join((hosts.folder / f"{out.name}-{rank}.log").read_text()[-3000:] for rank in (0, 1))


def test_torchrun_over_two_hosts_is_one_host(
    root: Path, study: Path, hosts: TwoHosts, one_host: dict, tmp_path: Path
) -> None:
    """Neither host knows a name but as its own loopback address."""
    out = tmp_path / "run"
    agents = start_torchrun(root, study, hosts, out, port=29511)
    codes = [agent.wait(timeout=TIMEOUT_S) for agent in agents]
    assert codes == [0, 0], said(hosts, out)
    assert outcome(out) == one_host
    assert places(out) == [(0, FIRST, 0), (1, SECOND, 0)]


def test_torchrun_restarts_two_hosts_after_a_rank_of_one_was_killed(
    root: Path, study: Path, hosts: TwoHosts, one_host: dict, tmp_path: Path
) -> None:
    """Both agents start all ranks anew, those meet each other and not the dead, and the run ends as if none had died."""
    out = tmp_path / "killed"
    agents = start_torchrun(root, study, hosts, out, port=29513)
    deadline = time.monotonic() + TIMEOUT_S
    while not list(out.glob(f"arms/{ARMS[0]}/seed-1/checkpoints/step-*/manifest.json")):
        assert [agent.poll() for agent in agents] == [None, None], said(hosts, out)
        assert time.monotonic() < deadline, said(hosts, out)
        time.sleep(0.01)
    sign = json.loads((out / ".ranks" / "rank-1.json").read_text())
    assert sign["host"] == SECOND
    os.kill(sign["pid"], signal.SIGKILL)
    codes = [agent.wait(timeout=TIMEOUT_S) for agent in agents]
    assert codes == [0, 0], said(hosts, out)
    attempts = json.loads((out / "jobs" / "study.json").read_text())["attempts"]
    assert [attempt["ranks"] for attempt in attempts] == [2, 2], "torchrun began anew, once"
    assert places(out) == [(0, FIRST, 0), (1, SECOND, 0)]
    assert outcome(out) == one_host


def test_deepspeed_with_a_hostfile_over_two_hosts_is_one_host(
    root: Path, study: Path, hosts: TwoHosts, one_host: dict, environment: dict[str, str], tmp_path: Path
) -> None:
    if shutil.which("pdsh") is None:
        pytest.skip("no pdsh on PATH")
    out = tmp_path / "run"
    (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in ADDRESSES), encoding="ascii")
    # pdsh drops the caller's environment; this file carries what ranks need.
    carried = {
        "PATH": environment["PATH"], "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "HF_HUB_OFFLINE": "1",
        "ISOBUDGET_CACHE": os.environ["ISOBUDGET_CACHE"],
    }  # fmt: skip
    (tmp_path / "env").write_text("".join(f"{k}={v}\n" for k, v in carried.items()), encoding="ascii")
    words = [str(root / "launchers" / "deepspeed_hostfile.sh"), *flags(root, study, out)]
    launcher = hosts.start(
        FIRST, words, log="deepspeed", HOSTFILE=str(tmp_path / "hostfile"), ENV_FILE=str(tmp_path / "env"), SSH_PORT=str(PORT),
        MASTER_ADDR=ADDRESSES[FIRST], MASTER_PORT="29512", PATH=f"{hosts.ssh()}{os.pathsep}{environment['PATH']}",
    )  # fmt: skip
    code = launcher.wait(timeout=TIMEOUT_S)
    assert code == 0, (hosts.folder / "deepspeed.log").read_text()[-4000:]
    assert outcome(out) == one_host
    assert places(out) == [(0, FIRST, 0), (1, SECOND, 0)]


def test_hosts_of_a_killed_test_are_removed_by_the_next() -> None:
    """Its namespaces and what runs in them; those of tests that live stay."""
    if reason := missing():
        pytest.skip(reason)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    killed, mine = f"isobudget-{gone.stdout.strip()}-a", f"isobudget-{os.getpid()}-probe"
    for name in (killed, mine):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = subprocess.Popen(["ip", "netns", "exec", killed, "sleep", "600"])
        assert leftovers() == [killed]
        remove_leftovers()
        assert inside.wait(timeout=10) == -9
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        names = {line.split()[0] for line in listed.splitlines() if line}
        assert killed not in names
        assert mine in names
    finally:
        remove(mine)
