"""A study's directory under kills, refusals and full disks: no allowed change unrecorded, nothing half entered."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from harness import cli, recorded, rundir
from harness.budget import Account, Budget, Charge, Ledger
from harness.commands import job
from harness.errors import CheckpointError, ConfigError
from harness.jobs import JobDirectory, JobRecord, Work, open_alone
from harness.ranks import Ranks
from harness.rundir import RunDirectory, foreign
from harness.study import StudySpec, validate
from harness.units import Unit
from tests.support.tiny import TinyStudy

STUDY = {"name": "s", "budget": "1000 flop", "arms": [{"name": "a", "objective": "mlm"}], "seeds": [1, 2]}
CHANGED = {**STUDY, "optimizer": {"lr": 0.5}}
ALLOWED = frozenset({"study"})
NOW = {"code": {"source": "x"}}


def spec(tree: dict[str, Any]) -> StudySpec:
    return validate(tree, where="test")


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The directory of a finished study, which somebody has run."""
    root = tmp_path / "run"
    directory = RunDirectory(root)
    directory.open(spec(STUDY), resume=False)
    directory.admit(NOW, frozenset())
    directory.status("done")
    directory.close()
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file() and path.name != ".lock"}


def lr(root: Path) -> float:
    return yaml.safe_load((root / "study.yaml").read_text())["optimizer"]["lr"]


# kill -9 in the N-th flush of a file; the study in argv[2] is opened with every change allowed
KILLED = """
import json, os, sys
from pathlib import Path
from harness import rundir
from harness.study import validate

left, real = int(sys.argv[3]), rundir.sync

def sync(path):
    global left
    left -= path.is_file()
    if left == 0:
        os.kill(os.getpid(), 9)
    real(path)

rundir.sync = sync
directory = rundir.RunDirectory(Path(sys.argv[1]))
directory.open(validate(json.loads(sys.argv[2]), where="test"), resume=False, allowed=frozenset({"study"}))
os.kill(os.getpid(), 9)
"""


def killed_in_write(root: Path, tree: dict[str, Any], number: int, repository: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(root), json.dumps(tree), str(number)]
    ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("number", [1, 2, 3, 4], ids=["holder", "identity", "study", "after"])
def test_a_kill_at_any_write_of_an_allowed_change_leaves_no_study_that_changed_unrecorded(
    done: Path, number: int, root: Path
) -> None:
    killed_in_write(done, CHANGED, number, root)
    overrides = json.loads((done / "identity.json").read_text())["overrides"]
    assert ("optimizer.lr" in [each["key"] for each in overrides]) == (number > 2)
    again = RunDirectory(done)
    again.open(spec(CHANGED), resume=True, allowed=ALLOWED)
    assert [(each["key"], each["was"], each["now"]) for each in again.admit(NOW, ALLOWED)] == [
        ("optimizer.lr", spec(STUDY).optimizer.lr, 0.5)
    ]
    again.close()


@pytest.mark.parametrize("number", [1, 2, 3], ids=["holder", "study", "after"])
def test_a_kill_in_the_first_writes_of_a_directory_leaves_one_that_can_be_begun(
    tmp_path: Path, number: int, root: Path
) -> None:
    out = tmp_path / "new"
    killed_in_write(out, STUDY, number, root)
    left = [path.name for path in out.iterdir() if path.name.count(".") > 2]
    assert len(left) == (number < 3), "what was half written is still there"
    directory = RunDirectory(out)
    assert directory.open(spec(STUDY), resume=(out / "study.yaml").exists()) == spec(STUDY)
    directory.close()


def test_half_written_records_are_ours_and_other_hidden_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    ours = ["..holder.json.node-7.cluster.81", ".study.yaml.n.1", ".sweep.yaml.n.1", "jobs/.train-a-seed-1.json.n.7"]
    for name in ours:
        (tmp_path / name).touch()
    assert foreign(tmp_path) == []
    (tmp_path / ".bashrc.n.1").touch()
    (tmp_path / "jobs" / ".cv.pdf.n.1").touch()
    assert foreign(tmp_path) == [".bashrc.n.1", "jobs"]


def test_a_job_that_is_refused_at_its_trials_lock_changes_no_study(done: Path) -> None:
    (done / "jobs").mkdir()
    before = contents(done)
    with FileLock(done / "jobs" / "a-seed-1.lock"):
        with pytest.raises(ConfigError, match="another job is at work on it"):
            JobDirectory(done, [Work("train", "a", 1)]).open(spec(CHANGED), resume=True, allowed=ALLOWED)
        with pytest.raises(ConfigError, match="a job is at work"):
            open_alone(RunDirectory(done), spec(CHANGED), resume=True, allowed=ALLOWED)
    assert contents(done) == before
    entered = JobDirectory(done, [Work("train", "a", 1)])
    entered.open(spec(CHANGED), resume=True, allowed=ALLOWED)
    assert lr(done) == 0.5
    assert [each["key"] for each in entered.admit(NOW, ALLOWED)] == ["optimizer.lr"]
    entered.close()


def test_a_job_that_has_entered_takes_no_study_back_that_others_rely_on(done: Path) -> None:
    first, second = (JobDirectory(done, [Work("train", "a", seed)]) for seed in (1, 2))
    first.open(spec(CHANGED), resume=True, allowed=ALLOWED)
    second.open(spec(CHANGED), resume=True, allowed=ALLOWED)
    first.back_out()
    assert lr(done) == 0.5
    second.close()


@pytest.mark.parametrize("trial", ["arms/a/seed-2", "controls/equal_tokens/b/seed-1"])
@pytest.mark.parametrize("left", ["ledger.jsonl", "checkpoints/step-00000004/state.json"])
def test_what_a_job_began_in_a_finished_study_is_never_begun_again_unasked(done: Path, trial: str, left: str) -> None:
    """Its status says done until the job that gathers comes: a run without --resume would train the trial anew."""
    file = done / trial / left
    file.parent.mkdir(parents=True)
    file.touch()
    before = contents(done)
    with pytest.raises(ConfigError, match=rf"unfinished run \({trial}\); add --resume"):
        open_alone(RunDirectory(done), spec(STUDY), resume=False)
    assert contents(done) == before
    assert file.exists()
    open_alone(again := RunDirectory(done), spec(STUDY), resume=True)
    again.close()
    (done / trial / "record.json").write_text('{"state": "done"}')
    open_alone(again := RunDirectory(done), spec(STUDY), resume=False)
    again.close()


# -- refused between entering and working ----------------------------------------------------------------
@pytest.fixture
def beside_a_lost_teacher(tiny: TinyStudy, tmp_path: Path) -> Path:
    """A finished study with an arm whose teacher is gone: every merge with it fails."""
    root = tmp_path / "out"
    root.mkdir()
    arms = [
        {"name": "no_kd", "objective": "mlm"},
        {"name": "kd", "objective": "soft_targets", "differs": {"teacher.path": str(tmp_path / "gone")}},
    ]
    tiny.write(root / "study.yaml", arms=arms)
    RunDirectory(root).status("done")
    return root


def arguments(tiny: TinyStudy, out: Path) -> list[str]:
    return ["--study", str(tiny.file), "--arms", "no_kd", "--seeds", "2", "--out", str(out)]


def test_a_run_refused_after_it_entered_leaves_the_study_as_it_was_and_its_code(
    tiny: TinyStudy, beside_a_lost_teacher: Path
) -> None:
    root = beside_a_lost_teacher
    before = contents(root)
    assert cli.main([*arguments(tiny, root), "--auto-resume"]) == 3
    assert contents(root) == before
    assert recorded.recorded_exit_code(root) == 3


def test_a_job_refused_after_it_entered_leaves_its_code_and_no_lock(
    tiny: TinyStudy, beside_a_lost_teacher: Path
) -> None:
    root = beside_a_lost_teacher
    assert cli.main(["job", "no_kd:2", *arguments(tiny, root)]) == 3
    assert recorded.recorded_exit_code(root, job="train-no_kd-seed-2") == 3
    assert not (root / ".holder.json").exists()
    with FileLock(root / "jobs" / "no_kd-seed-2.lock", timeout=0):
        pass


# -- disks and records -----------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [1, 2, 3], ids=["holder", "identity", "study"])
def test_a_full_disk_at_any_write_of_an_entry_is_an_error_with_exit_code_4_and_frees_the_lock(
    done: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, files = rundir.sync, [0]

    def sync(path: Path) -> None:
        files[0] += path.is_file()
        if path.is_file() and files[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    before = contents(done)
    monkeypatch.setattr(rundir, "sync", sync)
    with pytest.raises(CheckpointError, match="No space left on device") as found:
        RunDirectory(done).open(spec(CHANGED), resume=True, allowed=ALLOWED)
    assert found.value.exit_code == 4
    assert contents(done) == before
    with FileLock(done / ".lock", timeout=0):
        pass


def test_a_ledger_on_a_full_disk_is_an_error_with_exit_code_4(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(Budget.parse("1000 flop"), charged=frozenset(Account), path=path)
    path.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl: the system refused it \(No space left on device\)"):
        ledger.post([Charge(Account.STUDENT_STEP, 1, Unit.FLOP)], step=1)
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl"):
        ledger.close()
    ledger.close()


def test_what_the_system_refuses_rank_0_reaches_every_rank_as_an_error(tmp_path: Path) -> None:
    ranks = Ranks()
    shared: list[Any] = []
    ranks.share = lambda value: shared.append(value) or value  # type: ignore[method-assign]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: the system refused it"):
        ranks.on_main(lambda: (tmp_path / "file").mkdir())
    assert len(shared) == 1, "others are told, and wait for nobody"


@pytest.mark.parametrize("flag", [[], ["--auto-resume"]])
def test_a_refusal_that_cannot_be_noted_keeps_its_code(tmp_path: Path, flag: list[str], tiny: TinyStudy) -> None:
    out = str(tmp_path / ("x" * 300))
    assert cli.main(["--study", "no_such_study", "--out", out, *flag]) == 2
    assert cli.main(["--study", str(tiny.file), "--arms", "no_kd", "--out", out, *flag]) == 2


def test_a_job_whose_record_holds_no_attempt_can_end(done: Path) -> None:
    (done / "jobs").mkdir()
    (done / "jobs" / "study.json").write_text('{"attempts": []}')
    JobRecord(done, "study").end("interrupted", exit_code=75, message="hang: x")
    (attempt,) = JobRecord(done, "study").attempts()
    assert (attempt["state"], attempt["exit_code"], attempt["pid"]) == ("interrupted", 75, os.getpid())
    assert recorded.recorded_exit_code(done) == 75


@pytest.mark.parametrize(("codes", "code"), [((None, 4), 4), ((None, None), 1), ((75, None), 1)])
def test_the_study_takes_its_code_from_attempts_that_have_one(
    done: Path, codes: tuple[int | None, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "show_report", lambda *_, **__: None)
    (done / "jobs").mkdir()
    for seed, each in enumerate(codes, 1):
        attempt = {"state": "failed", "started": 1.8e9, "host": "h", "pid": 7, "exit_code": each}
        (done / "jobs" / f"train-a-seed-{seed}.json").write_text(json.dumps({"attempts": [attempt]}))
    assert job.gather(RunDirectory(done), spec(STUDY), as_json=True) == code
