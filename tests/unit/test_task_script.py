"""The script of a submitted stage, with stand-ins for its runs: no signal is lost, whenever it comes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.submit.graph import Machines, build
from harness.submit.scripts import Queue, scripts_of, write
from tests.unit.test_launch_scripts import stand_in, until
from tests.unit.test_submit import study

# A run that saves when it is warned; `status` knows what is in $MARKS.
RUN = """[[ " $* " != *" --progress "* ]] || { cat "$MARKS/progress" 2>/dev/null || echo 0; exit 0; }
[[ " $* " != *" status "* ]] || exit "$(cat "$MARKS/recorded" 2>/dev/null || echo 66)"
trap 'touch "$MARKS/saved-$3"; exit 75' USR1
touch "$MARKS/started-$3"
eval "$AT_START"
for i in {1..200}; do sleep 0.1; done"""


@pytest.fixture
def folder_of_scripts(tmp_path: Path) -> Path:
    """The stages of a study, two runs at a time, and `run` in place of launch.py."""
    stand_in(tmp_path / "bin", "run", RUN)
    found = build(study(), Machines(1, 2, gpus=False), out=str(tmp_path), study_file="s.yaml", ds_config=None)
    scripts = scripts_of(found, Machines(1, 2, gpus=False), Queue())
    write(found, scripts)
    for script in scripts.values():
        text = script.path.read_text()
        script.path.write_text(
            re.sub(r"^entry=.*$", f"entry=({tmp_path}/bin/run launch.py)", text, count=1, flags=re.MULTILINE)
        )
    return tmp_path / "jobs"


@pytest.fixture
def script(folder_of_scripts: Path) -> Path:
    """The arms."""
    return folder_of_scripts / "arms.sbatch"


@pytest.fixture
def cache(folder_of_scripts: Path) -> Path:
    """The stage that fetches: it has no answer to a warning, and records nothing."""
    return folder_of_scripts / "cache.sbatch"


def start(script: Path, **more: str) -> subprocess.Popen[bytes]:
    folder = script.parent.parent
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    caches = {"ISOBUDGET_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf")}
    environment = kept | caches | {"MARKS": str(folder), "PATH": path, "AT_START": ":"} | more
    return subprocess.Popen(["bash", str(script), "0"], env=environment)


def marks(script: Path, kind: str) -> list[str]:
    return sorted(p.name.removeprefix(f"{kind}-") for p in script.parent.parent.glob(f"{kind}-*"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warned_task_has_all_its_runs_save_and_asks_for_another_turn(script: Path, number: int) -> None:
    process = start(script)
    for name in ("a:1", "a:2"):
        until(script.parent.parent / f"started-{name}")
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert marks(script, "saved") == ["a:1", "a:2"]


def test_a_task_warned_before_its_first_run_starts_none_and_asks_for_another_turn(script: Path) -> None:
    """mkdir is the first program it calls."""
    stand_in(script.parent.parent / "bin", "mkdir", "kill -USR1 $PPID; sleep 0.2")
    assert start(script).wait(timeout=30) == 75
    assert marks(script, "started") == []


def test_a_task_warned_while_its_runs_start_leaves_none_running_on(script: Path) -> None:
    """The first run to start warns the script, which is starting the second: each is told, or does not begin."""
    begun = time.monotonic()
    assert start(script, AT_START="kill -USR1 $PPID").wait(timeout=30) == 75
    assert time.monotonic() - begun < 15, "a run that was not told would go on for 20 s"
    assert marks(script, "saved") == marks(script, "started") != []


def test_ranks_of_one_run_are_not_ended_by_the_first_that_leaves(script: Path) -> None:
    """Where a cluster's slurm.conf says KillOnBadExit=1, srun would end those that still save."""
    folder = script.parent.parent
    stand_in(folder / "bin", "srun", 'echo "$@" >> "$MARKS/srun"; exit 0')
    assert start(script, SLURM_JOB_ID="1").wait(timeout=30) == 0
    words = (folder / "srun").read_text().splitlines()
    assert len(words) == 2
    assert all("--kill-on-bad-exit=0" in line and "--wait=60" in line for line in words)


def queued(script: Path) -> dict[str, str]:
    """Under a Slurm whose srun becomes the run and whose scontrol writes down what it is asked."""
    folder = script.parent.parent
    stand_in(folder / "bin", "srun", 'while [[ $1 != */run ]]; do shift; done; exec "$@"')
    stand_in(folder / "bin", "scontrol", 'echo "$@" >> "$MARKS/scontrol"; exit "${REFUSES:-0}"')
    return {"SLURM_JOB_ID": "7"}


def test_a_hopeless_task_gets_no_more_turns_than_it_was_given(script: Path) -> None:
    """It hangs every time: 75 is recorded, and no step is new."""
    slurm, folder = queued(script), script.parent.parent
    (folder / "recorded").write_text("75")
    hang = slurm | {"AT_START": "exit 1", "TURNS": "3"}
    assert [start(script, **hang).wait(timeout=30) for _ in range(2)] == [75, 75]
    (folder / "progress").write_text("8")  # a new step gives it all its turns again
    assert [start(script, **hang).wait(timeout=30) for _ in range(4)] == [75, 75, 75, 1]
    assert len((folder / "scontrol").read_text().splitlines()) == 5
    assert start(script, **hang).wait(timeout=30) == 75, "who starts it again has looked"


def test_a_run_that_fell_back_and_goes_on_keeps_its_turns_and_one_that_stays_does_not(script: Path) -> None:
    """Its newest checkpoints were bad: it needs more than its idle turns until it is where it was."""
    slurm, folder = queued(script), script.parent.parent
    (folder / "recorded").write_text("75")

    def turn(progress: str) -> int:
        (folder / "progress").write_text(progress)
        return start(script, **slurm, AT_START="exit 1", TURNS="2").wait(timeout=30)

    assert [turn(step) for step in ("90", "30", "40", "50", "60", "70", "80", "90", "95")] == 9 * [75]
    assert turn("") == 75, "nobody could say"
    assert turn("95") == 1, "that was no step"


def test_a_warned_run_that_recorded_a_failure_is_not_asked_to_come_again(script: Path) -> None:
    slurm, folder = queued(script), script.parent.parent
    (folder / "recorded").write_text("1")
    process = start(script, **slurm, AT_START="trap 'exit 143' USR1")
    for name in ("a:1", "a:2"):
        until(folder / f"started-{name}")
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 1
    assert not (folder / "scontrol").exists()


def test_a_run_that_recorded_its_end_is_done_whatever_its_launcher_made_of_it(script: Path) -> None:
    """Else a teacher that is trained would cancel every stage behind it."""
    (script.parent.parent / "recorded").write_text("0")
    assert start(script, AT_START="exit 134").wait(timeout=30) == 0


@pytest.mark.parametrize("job", ["1", "797", "1276", "67043327"])
def test_ranks_never_meet_at_a_port_that_the_system_gives_to_others(script: Path, job: str) -> None:
    """From 32768 on connections that go out have theirs; a neighbouring job has others too."""
    folder = script.parent.parent
    stand_in(folder / "bin", "srun", 'echo "$MASTER_PORT" >> "$MARKS/ports-$SLURM_JOB_ID"; exit 0')
    jobs = (job, str(int(job) + 1))
    assert [start(script, SLURM_JOB_ID=each).wait(timeout=30) for each in jobs] == [0, 0]
    ports = [int(line) for each in jobs for line in (folder / f"ports-{each}").read_text().split()]
    assert len(set(ports)) == 4
    assert all(20000 <= port < 32768 for port in ports)


def test_a_warning_while_data_are_fetched_asks_for_another_turn_but_not_for_ever(cache: Path) -> None:
    """Else it would end with 138, and the queue would cancel all stages behind it."""
    slurm, folder = queued(cache), cache.parent.parent
    codes = []
    for _ in range(3):
        process = start(cache, **slurm, AT_START="trap - USR1; touch $MARKS/ready", TURNS="3")
        until(folder / "ready")
        (folder / "ready").unlink()
        process.send_signal(signal.SIGUSR1)
        codes.append(process.wait(timeout=30))
    assert codes == [75, 75, 1]
    assert (folder / "scontrol").read_text().splitlines() == 2 * ["requeue 7"]


def test_a_fetch_that_gets_on_keeps_its_turns_and_one_that_begins_anew_each_time_does_not(cache: Path) -> None:
    """A corpus appears by one rename; until then it lies under a name with a dot, and the next turn throws it away."""
    slurm, folder = queued(cache), cache.parent.parent

    def turn(place: str, content: str) -> int:
        write = f"mkdir -p {place}; printf {content} > {place}/file"
        process = start(cache, **slurm, AT_START=f"trap - USR1; {write}; touch $MARKS/ready", TURNS="2")
        until(folder / "ready")
        (folder / "ready").unlink()
        process.send_signal(signal.SIGUSR1)
        return process.wait(timeout=30)

    assert [turn(f"$HF_HOME/hub/{number}", "x") for number in range(2)] == [75, 75], "a download is kept"
    assert [turn(f"$ISOBUDGET_CACHE/corpora/{number}", "x") for number in range(3)] == [75, 75, 75]
    assert [turn("$ISOBUDGET_CACHE/corpora/.key-a", number * "x") for number in (1, 2)] == [75, 1]


def test_data_that_cannot_be_had_need_a_person(cache: Path) -> None:
    slurm, folder = queued(cache), cache.parent.parent
    (folder / "recorded").write_text("75")  # of another day: no fetch records anything
    assert start(cache, **slurm, AT_START="exit 3").wait(timeout=30) == 3
    assert not (folder / "scontrol").exists()


def test_a_queue_that_does_not_answer_does_not_hide_that_the_task_can_go_on(script: Path) -> None:
    slurm = queued(script)
    assert start(script, **slurm, AT_START="exit 75", REFUSES="1").wait(timeout=30) == 75


def test_a_signal_between_two_tasks_of_a_local_submission_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the process is started and not yet known to the handler."""
    from harness.submit import execute

    found = build(study(), Machines(1, 2, gpus=False), out=str(tmp_path), study_file="s.yaml", ds_config=None)
    scripts = scripts_of(found, Machines(1, 2, gpus=False), Queue())
    write(found, scripts)
    for script in scripts.values():
        script.path.write_text("exec sleep 30\n")

    class Hasty(subprocess.Popen):
        def __init__(self, *words: object, **more: object) -> None:
            super().__init__(*words, **more)  # type: ignore[call-overload]
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(execute.subprocess, "Popen", Hasty)
    begun = time.monotonic()
    assert execute.here(found, scripts, tell=lambda _: None) == execute.PREEMPTED
    assert time.monotonic() - begun < 15
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
