"""Hostile names: whatever a hostfile, an environment or a name holds, no shell of another machine acts on it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.chaos.outcome import CannotRun, Outcome
from harness.chaos.trial_runs import brief_study, last_words, parts

NUMBER = 23
FAULT = "hostfile, environment or run name with `$(touch x)`, `;`, newline, `-oProxyCommand`, `../`"
PASSES_WHEN = "0 canaries on a fake ssh; exit 2"

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "launchers" / "deepspeed_hostfile.sh"
# A remote shell that would do anything it is told, and says that it was called.
FAKE_SSH = """#!/bin/sh
touch {called}
for word in "$@"; do sh -c "$word"; done
"""
# One that only says that it was called.
QUIET_SSH = """#!/bin/sh
touch {called}
exit 1
"""


@dataclass
class Launch:
    """One hostile launch: what differs from a good one."""

    what: str
    hostfile: str = "node1 slots=1\nnode2 slots=1\n"
    environment: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    study_name: str = "good"


def hostile(canary: Path) -> list[str]:
    return [
        f"$(touch {canary})",
        f"`touch {canary}`",
        f"x;touch {canary};",
        f"x\ntouch {canary}",
        f"-oProxyCommand=touch {canary}",
        f"../../{canary.name}",
        f"x|touch {canary}",
        f"x&&touch {canary}",
        f"x' ; touch {canary} ; '",
    ]


def cases(canary: Path, *, short: bool) -> Iterator[Launch]:
    words = hostile(canary)
    every: list[Launch] = []
    for word in words:
        every += [
            Launch(f"host {word!r}", hostfile=f"{word} slots=1\nnode2 slots=1\n"),
            Launch(f"slots {word!r}", hostfile=f"node1 slots=1{word}\nnode2 slots=1\n"),
            Launch(f"study name {word!r}", study_name=word),
            Launch(f"MASTER_ADDR {word!r}", environment={"MASTER_ADDR": word}),
            Launch(f"MASTER_PORT {word!r}", environment={"MASTER_PORT": word}),
            Launch(f"LAUNCHER {word!r}", environment={"LAUNCHER": word}),
        ]
        if not word.startswith(("../", "-oProxy")):  # harmless as a value: no shell gives it a meaning
            every += [
                Launch(f"NCCL_DEBUG {word!r}", environment={"NCCL_DEBUG": word}),
                Launch(f"--out {word!r}", flags=["--out", word]),
            ]
    yield from every[:: len(every) // 5] if short else every


def run(seed: int, short: bool, folder: Path) -> Outcome:
    if not SCRIPT.is_file():
        raise CannotRun("launchers/ are in the source tree, and this is an installed wheel")
    canary, called = folder / "canary", folder / "ssh-was-called"
    fakes = folder / "bin"
    fakes.mkdir()
    good = brief_study(folder)
    played, wrong = list(cases(canary, short=short)), []
    # A harmless launch reaches ssh: otherwise nothing below would prove that a hostile one does not.
    put(QUIET_SSH, fakes, called)
    (folder / "hostfile").write_text(Launch("").hostfile, encoding="utf-8")
    environment = surroundings(fakes, folder / "hostfile")
    subprocess.run(
        ["bash", str(SCRIPT), "--study", str(good)], env=environment, capture_output=True, cwd=folder, timeout=120
    )
    if not called.exists():
        wrong.append("a harmless launch did not reach ssh")
    called.unlink(missing_ok=True)
    put(FAKE_SSH, fakes, called)
    for number, case in enumerate(played):
        hostfile = folder / f"hostfile-{number}"
        hostfile.write_text(case.hostfile, encoding="utf-8")
        study = good
        if case.study_name != "good":
            study = parts().write(folder / f"named-{number}.yaml", name=case.study_name)
        environment = {**surroundings(fakes, hostfile), **case.environment}
        # A bad study's name is refused by the run itself: no machine needs to be reached for it.
        command = ["bash", str(SCRIPT), "--study", str(study), *case.flags]
        if case.study_name != "good":
            command = [sys.executable, str(REPOSITORY / "launch.py"), "plan", "--study", str(study)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=120)
        if done.returncode != 2 or called.exists() or canary.exists():
            reached = " ssh was called;" if called.exists() else ""
            wrong.append(f"{case.what}: exit {done.returncode};{reached} {last_words(done.stderr)}")
            called.unlink(missing_ok=True)
    canaries = len(list(itertools.chain(folder.rglob("canary"), folder.parent.glob("canary"))))
    saw = f"{canaries} canaries, {max(0, len(played) - len(wrong))}/{len(played)} hostile launches refused with exit 2 before any ssh"
    saw += "" if wrong else ", which a harmless launch reaches"
    return Outcome(not wrong and not canaries, "; ".join([saw, *wrong[:3]]))


def put(text: str, fakes: Path, called: Path) -> None:
    """Fakes of every program that starts something on another machine."""
    for name in ("ssh", "pdsh", "mpirun", "srun"):
        fake = fakes / name
        fake.write_text(text.format(called=called), encoding="utf-8")
        fake.chmod(0o755)


def surroundings(fakes: Path, hostfile: Path) -> dict[str, str]:
    """The variables of a launch that finds the fakes first."""
    return {
        **os.environ, "PATH": f"{fakes}{os.pathsep}{os.environ['PATH']}", "HOSTFILE": str(hostfile),
        "PYTHON": sys.executable,
    }  # fmt: skip
