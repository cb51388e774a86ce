"""A run that is refused before it enters its directory leaves its exit code there, and touches nothing else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from harness import cli, recorded, runs
from harness.errors import ConfigError
from harness.jobs import WHOLE, JobRecord
from harness.rundir import RunDirectory
from harness.study import validate
from harness.sweep.conduct import SweepConductor
from tests.support.tiny import TinyStudy
from tests.unit.test_sweep_run import sweep

STUDY = {"name": "s", "budget": "1000 flop", "arms": [{"name": "a", "objective": "mlm"}], "seeds": [1, 2]}


def refuse(*words: str) -> int:
    """Run the command line; argparse leaves by SystemExit."""
    try:
        return cli.main(list(words))
    except SystemExit as left:
        return int(left.code or 0)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The directory of a finished study."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    (out / "arms" / "a" / "seed-1").mkdir(parents=True)
    RunDirectory(out).status("done")
    return out


REFUSALS = [
    (["--study", "no_such_study"], 2),
    (["--study", "{tiny}", "--set", "teacher.path=/no/such/teacher"], 3),
    (["--study", "{tiny}", "--bugdet", "1 Gflop"], 2),
    (["--study", "{tiny}", "--seeds"], 2),
]


@pytest.mark.parametrize(("words", "code"), REFUSALS, ids=["study", "teacher", "flag", "value"])
def test_a_first_failure_under_a_scheduler_leaves_its_true_code(
    tiny: TinyStudy, tmp_path: Path, words: list[str], code: int
) -> None:
    out = tmp_path / "new" / "out"
    filled = [str(tiny.file) if word == "{tiny}" else word for word in words]
    assert refuse("--out", str(out), "--auto-resume", *filled) == code
    assert cli.main(["status", str(out), "--exit-code", "--after", "before"]) == code
    with pytest.raises(ConfigError, match=f"exit code {code}"):
        runs.read(out)
    # The corrected run finds a directory that it may use, and its own status is then the last word.
    directory = RunDirectory(out)
    directory.open(validate(STUDY, where="test"), resume=False)
    directory.status("running")
    directory.close()
    assert recorded.recorded_exit_code(out) == 1
    directory.status("done")
    assert recorded.recorded_exit_code(out) == 0


def test_a_person_who_mistypes_gets_no_directory(tiny: TinyStudy, tmp_path: Path) -> None:
    assert refuse("--study", "no_such_study", "--out", str(tmp_path / "out")) == 2
    assert refuse("--study", str(tiny.file), "--out", str(tmp_path / "out"), "--bugdet", "1") == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_among_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "cv.pdf").touch()
    assert refuse("--study", "no_such_study", "--out", str(tmp_path), "--auto-resume") == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["cv.pdf", "jobs", "thesis.tex"]


@pytest.mark.parametrize("flag", [[], ["--auto-resume"]])
def test_a_refused_run_rewrites_neither_study_nor_status_of_a_finished_one(finished: Path, flag: list[str]) -> None:
    before = {name: (finished / name).read_bytes() for name in ("study.yaml", "status.json")}
    assert refuse("--study", "no_such_study", "--out", str(finished), *flag) == 2
    assert {name: (finished / name).read_bytes() for name in before} == before
    assert recorded.recorded_exit_code(finished) == 2, "its launcher asks how this attempt ended"
    found = runs.read(finished)
    assert (found.state, found.exit_code) == ("done", 0)


def test_what_is_refused_after_it_opened_a_finished_study_is_not_taken_for_done(tmp_path: Path, finished: Path) -> None:
    """Its status is put back as it was: a new date on the file, the old content."""
    directory = RunDirectory(finished)
    before = recorded.mark(finished)
    directory.open(validate(STUDY, where="test"), resume=True)
    directory.refused()
    directory.close()
    assert recorded.recorded_exit_code(finished, after=before) == recorded.NOTHING_RECORDED


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_the_later_word_is_known_whatever_the_clock_said(
    finished: Path, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preemption recorded by a clock that is an hour off, then a refusal, then a preemption again."""
    real = time.time

    def preempted(jump_s: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        record = JobRecord(finished, WHOLE)
        record.begin(world=1)
        RunDirectory(finished).status("interrupted", exit_code=75)
        record.end("interrupted", exit_code=75)
        monkeypatch.setattr(time, "time", real)

    preempted(jump_s)
    assert recorded.recorded_exit_code(finished) == 75
    before = recorded.mark(finished)
    assert recorded.recorded_exit_code(finished, after=before) == recorded.NOTHING_RECORDED, "a crash within seconds"
    assert refuse("--study", "no_such_study", "--out", str(finished), "--auto-resume") == 2
    assert recorded.recorded_exit_code(finished, after=before) == recorded.recorded_exit_code(finished) == 2
    assert runs.read(finished).exit_code == 2
    preempted(-jump_s)
    assert recorded.recorded_exit_code(finished) == 75
    # A hang: the status is written by the watching thread, the attempt has no end.
    JobRecord(finished, WHOLE).begin(world=1)
    assert recorded.recorded_exit_code(finished, after=before) == recorded.NOTHING_RECORDED, "killed as it began"
    RunDirectory(finished).status("interrupted", exit_code=75, message="hang: rank 1")
    assert recorded.recorded_exit_code(finished, after=before) == 75


def test_the_mark_of_a_shell_is_the_mark_of_the_program(root: Path, finished: Path) -> None:
    words = f'source "{root}/harness/submit/turns.sh"; mark_of "$1/status.json" "$1/jobs/study.json"'
    for _ in range(2):
        said = subprocess.run(["bash", "-c", words, "bash", str(finished)], capture_output=True, text=True, check=True)
        assert said.stdout == recorded.mark(finished)
        assert refuse("--study", "no_such_study", "--out", str(finished), "--auto-resume") == 2


def test_a_refusal_behind_a_preemption_needs_a_person(finished: Path) -> None:
    RunDirectory(finished).status("interrupted", exit_code=75)
    ledger = finished / "arms" / "a" / "seed-1" / "ledger.jsonl"
    ledger.write_text('{"step": 1, "charges": [], "spent": 10}\n')
    assert runs.read(finished).verdict == 75
    assert refuse("--study", "no_such_study", "--out", str(finished), "--auto-resume") == 2
    found = runs.read(finished)
    assert (found.state, found.exit_code, found.verdict) == ("failed", 2, 1)
    assert "no_such_study" in found.runs[0].message


def test_a_refusal_beside_a_run_at_work_leaves_that_runs_record_alone(finished: Path) -> None:
    with FileLock(finished / ".lock"):
        assert refuse("--study", "no_such_study", "--out", str(finished), "--auto-resume") == 2
    assert not list(finished.glob("jobs/*.json"))
    (finished / "jobs").mkdir(exist_ok=True)
    with FileLock(finished / "jobs" / "a-seed-1.lock"):
        assert refuse("job", "a:1", "--study", "no_such_study", "--out", str(finished)) == 2
    assert not list(finished.glob("jobs/*.json"))


@pytest.mark.parametrize("work", ["a:1", "evaluation:a:1", "report"])
@pytest.mark.parametrize("words", [["--study", "no_such_study"], ["--bugdet", "x"]], ids=["study", "flag"])
def test_a_refused_job_is_an_attempt_with_its_code(finished: Path, work: str, words: list[str]) -> None:
    RunDirectory(finished).status("interrupted", exit_code=75)
    name = {"a:1": "train-a-seed-1", "evaluation:a:1": "evaluation-a-seed-1", "report": "report"}[work]
    assert refuse("job", work, "--out", str(finished), *words) == 2
    assert recorded.recorded_exit_code(finished, job=name, after="before") == 2
    (attempts,) = [job["attempts"] for job in runs.read(finished).jobs if job["job"] == name]
    assert [attempt["exit_code"] for attempt in attempts] == [2]
    if work == "a:1":
        assert runs.read(finished).runs[0].state == "failed"


@pytest.mark.parametrize("rank", [["--local_rank", "0"], ["--local_rank=0"], ["--local-rank", "0"]])
def test_a_job_is_known_behind_the_word_that_a_launcher_puts_before_it(finished: Path, rank: list[str]) -> None:
    assert refuse(*rank, "job", "a:1", "--out", str(finished), "--bugdet", "x") == 2
    assert recorded.recorded_exit_code(finished, job="train-a-seed-1") == 2


def test_a_refused_sweep_can_begin_where_it_was_refused_but_not_in_a_studys_directory(
    tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "sweep"
    assert refuse("--study", "no_such_study", "--out", str(out), "--auto-resume") == 2
    from types import SimpleNamespace
    from typing import Any

    def conductor(root: Path) -> SweepConductor:
        sweep: Any = SimpleNamespace(tree={"name": "s"}, teachers=[], points=[])
        ranks: Any = None
        return SweepConductor(sweep, root, ranks, lambda *_: None, lambda _: None)

    conductor(out)._open()
    assert (out / "sweep.yaml").is_file()
    for place in (finished, tmp_path):
        with pytest.raises(ConfigError, match="no sweep"):
            conductor(place)._open()


def test_a_sweep_refused_behind_a_preemption_needs_a_person(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tiny, tmp_path, sweep={"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"]})
    RunDirectory(tmp_path).status("interrupted", exit_code=75)
    assert cli.main(["status", str(tmp_path)]) == 75
    assert refuse("--study", "no_such_study", "--out", str(tmp_path), "--auto-resume") == 2
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path), "--exit-code"]) == 2
    assert cli.main(["status", str(tmp_path)]) == 1
    assert "no_such_study" in capsys.readouterr().out


# -- through torchrun.sh, with a stand-in that hides its ranks' exit codes as torchrun does --------------------
def launch(root: Path, folder: Path, *words: str) -> int:
    python = folder / "python"
    python.write_text(
        f"""#!/bin/bash
[[ $1 != -m ]] || {{ while [[ $1 != launch.py ]]; do shift; done; "{sys.executable}" "$@" || exit 1; exit 0; }}
exec "{sys.executable}" "$@"
""",
        encoding="utf-8",
    )
    python.chmod(0o755 | stat.S_IXUSR)
    theirs = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # left behind by runs in this process
    environment = {k: v for k, v in os.environ.items() if k not in theirs}
    environment |= {"PYTHON": str(python), "RANKS_PER_NODE": "1", "PYTHONPATH": str(root)}
    said = subprocess.run([root / "launchers" / "torchrun.sh", *words], env=environment, capture_output=True, text=True)
    print(said.stdout, said.stderr)
    return said.returncode


@pytest.mark.parametrize(
    ("words", "code"), [(["--study", "no_such_study"], 2), (["--bugdet", "1"], 2)], ids=["study", "flag"]
)
def test_the_true_code_of_a_first_failure_reaches_whoever_started_torchrun(
    root: Path, tmp_path: Path, words: list[str], code: int
) -> None:
    (tmp_path / "bin").mkdir()
    assert launch(root, tmp_path / "bin", "--out", str(tmp_path / "out"), *words) == code


def test_the_true_code_of_a_missing_teacher_reaches_whoever_started_torchrun(
    root: Path, tiny: TinyStudy, tmp_path: Path, finished: Path
) -> None:
    words = ["--study", str(tiny.file), "--set", "teacher.path=/no/such/teacher"]
    (tmp_path / "bin").mkdir()
    status = (finished / "status.json").read_bytes()
    assert launch(root, tmp_path / "bin", "--out", str(finished), *words) == 3
    assert (finished / "status.json").read_bytes() == status
