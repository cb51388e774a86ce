"""Secrets in the environment, and names that are HTML: neither may come out the way it went in."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from harness.chaos.outcome import CannotRun, Outcome
from harness.chaos.rows.row_23_shell import SCRIPT, put, surroundings
from harness.chaos.trial_runs import BRIEF, launch, logs, parts

NUMBER = 24
FAULT = "secrets in the environment; `<script>` in run and model names"
PASSES_WHEN = "0 leaks in logs, records, report, argv; 0 unescaped"

VARIABLES = (
    "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "AZURE_CLIENT_SECRET",
    "GOOGLE_API_KEY", "SLURM_JWT", "DATABASE_URL", "MY_PASSWORD", "NCCL_SECRET",
)  # fmt: skip
REPOSITORY = Path(__file__).parents[3]
HTML = "<script>alert(1)</script>"
# As it must not stand in a page: the text of a name inside an element or an attribute.
FOLDER = "teacher<script>alert(1)<"


# Of another machine's, only what it is told is kept: DeepSpeed asks whether it is there, for its address, and then starts.
TOLD_SSH = """#!/bin/sh
printf '%s\\n' "$0 $*" >> {called}
echo 127.0.0.1
"""
# What DeepSpeed's launcher would write into those machines' command lines: by their names, by their values, by a file.
FORWARDED = {"NCCL_SECRET": "{}", "MLFLOW_TRACKING_TOKEN": "{}", "MLFLOW_TRACKING_URI": "https://me:{}@mlflow.example"}
LISTED = "HF_TOKEN"


class CommandLines:
    """Every command line of this machine's processes while it is watched."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.wait(0.2):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(file.read_bytes())
                except OSError:
                    continue  # it has ended


def told_to_others(planted: dict[str, str], study: Path, folder: Path) -> tuple[int, list[str]]:
    """How many launches over a hostfile were refused, and what is wrong: a secret that ssh or pdsh were told, or a verdict."""
    fakes, told = folder / "bin", folder / "told"
    fakes.mkdir()
    put(TOLD_SSH, fakes, told)
    (folder / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n", encoding="utf-8")
    clean = surroundings(fakes, folder / "hostfile")
    harmless = {name: value for name, value in planted.items() if name not in FORWARDED}
    canary = planted["NCCL_SECRET"]
    (folder / "env").write_text(f"{LISTED}={canary}\n", encoding="ascii")
    cases = {name: {name: form.format(canary)} for name, form in FORWARDED.items()}
    cases |= {f"{LISTED} in ENV_FILE": {"ENV_FILE": str(folder / "env")}, "": {}}
    refused, wrong = 0, []
    for name, added in cases.items():
        command = ["bash", str(SCRIPT), "--study", str(study)]
        done = subprocess.run(
            command, env={**clean, **harmless, **added}, capture_output=True, text=True, cwd=folder, timeout=120
        )
        lines = told.read_text(encoding="utf-8") if told.exists() else ""
        wrong += [f"{secret} told to another machine" for secret, value in planted.items() if value in lines]
        refused += done.returncode == 2 and not lines
        if not name and (done.returncode or "deepspeed.launcher.launch" not in lines):
            wrong.append(f"a launch without secrets to hand on did not reach pdsh (exit {done.returncode})")
        told.unlink(missing_ok=True)
    return refused, wrong


def run(seed: int, short: bool, folder: Path) -> Outcome:
    if not SCRIPT.is_file():
        raise CannotRun("launchers/ are in the source tree, and this is an installed wheel")
    planted = {name: f"canary-{secrets.token_hex(12)}" for name in VARIABLES}
    teacher = Path(shutil.copytree(parts().teacher, folder / FOLDER))
    changes = {**BRIEF, "arms": [{"name": "no_kd", "objective": "mlm"}, {"name": "kd", "objective": "soft_targets"}]}
    changes["budget"] = "0.6 Gflop"
    study = parts().write(
        folder / "study.yaml", **changes, question=f"What of {HTML}?",
        teacher={"path": str(teacher), "allow_worse": True},
    )  # fmt: skip
    out = folder / "run"
    with CommandLines() as lines:
        codes = launch(study, out, evaluate=True, environment=planted).wait()
        kept_back, wrong = told_to_others(planted, study, folder)
    if codes != [0, 0]:
        return Outcome(False, f"the ranks left with {codes}")
    files = [p for place in (out, logs(out)) for p in place.rglob("*") if p.is_file()]
    leaks = [
        f"{name} in {p.name}" for p in files for name, value in planted.items() if value.encode() in p.read_bytes()
    ]
    leaks += [f"{name} in an argv" for name, value in planted.items() for line in lines.seen if value.encode() in line]
    pages = [p for p in files if p.suffix == ".html"]
    raw = [p.name for p in pages if "<script>alert" in p.read_text(encoding="utf-8")]
    told = any("&lt;script&gt;alert" in p.read_text(encoding="utf-8") for p in pages)
    refused = 0
    for flags in (["name=" + HTML], ["arms=[{name: '" + HTML + "', objective: mlm}]"]):
        command = [sys.executable, "-m", "harness", "plan", "--study", str(study), "--set", *flags]
        refused += subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120).returncode == 2
    saw = f"{len(planted)} secrets, {len(leaks)} leaks in {len(files)} files and {len(lines.seen)} command lines; "
    launches = len(FORWARDED) + 1
    saw += f"{kept_back}/{launches} launches that would hand one to other machines refused; "
    saw += (
        f"{len(raw)} of {len(pages)} pages unescaped (escaped name present: {told}); {refused}/2 hostile names refused"
    )
    passed = not leaks and not wrong and kept_back == launches and not raw and told and bool(pages) and refused == 2
    return Outcome(passed, "; ".join([saw, *leaks[:3], *wrong[:3]]))
