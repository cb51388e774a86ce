"""A Slurm of one node on this machine, for tests: munged, slurmctld and slurmd with their files in one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")


def missing() -> str:
    """Why no Slurm can be started here; "" when one can."""
    if os.geteuid() != 0:
        return "starting Slurm's daemons needs root"
    absent = [name for name in PROGRAMS if _program(name) is None]
    return f"no {absent[0]}: Slurm is not installed" if absent else ""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Slurm:
    """Starts the daemons on entry, stops them on exit; `environment` lets Slurm's commands find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "key").chmod(0o400)
        (self.folder / "slurm.conf").write_text(self._configuration(), encoding="ascii")
        # munged refuses a socket below a folder that others may write to; pytest's are private.
        self._start(
            "munged", "--foreground", "--force", f"--key-file={self.folder}/key", f"--socket={self.folder}/munge",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/seed",
        )  # fmt: skip
        self._until(lambda: (self.folder / "munge").exists(), "munged")
        self._start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._start("slurmd", "-D", "-f", str(self.folder / "slurm.conf"))
        self._until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%t"), "slurmd")
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--me")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, env=self.environment).stdout

    def jobs(self) -> list[str]:
        """Jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%i %j %t %r").splitlines()

    def wait(self, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while jobs := self.jobs():
            if time.monotonic() > deadline:
                raise TimeoutError("; ".join(jobs))
            time.sleep(0.5)

    def _start(self, name: str, *words: str) -> None:
        program = _program(name)
        assert program is not None
        with (self.folder / f"{name}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment
                )
            )

    def _until(self, ready: Callable[[], bool], who: str) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{who} does not answer: {(self.folder / f'{who}.out').read_text()[-1000:]}")
            time.sleep(0.2)

    def _configuration(self) -> str:
        host = socket.gethostname().partition(".")[0]
        rows = {
            "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root", "SlurmdUser": "root",
            "AuthType": "auth/munge", "AuthInfo": f"socket={self.folder}/munge", "CredType": "cred/munge",
            "StateSaveLocation": f"{self.folder}/state", "SlurmdSpoolDir": f"{self.folder}/spool",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid", "SlurmdPidFile": f"{self.folder}/slurmd.pid",
            "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core", "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none", "ReturnToService": 2, "MpiDefault": "none",
            "SlurmctldPort": _free_port(), "SlurmdPort": _free_port(), "MinJobAge": 300,
            # A requeued job waits this long before it may start again; the default is two minutes.
            "SchedulerParameters": "requeue_delay=1,sched_interval=1,bf_interval=1",
        }  # fmt: skip
        text = "".join(f"{key}={value}\n" for key, value in rows.items())
        node = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
        return text + node + "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO\n"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
