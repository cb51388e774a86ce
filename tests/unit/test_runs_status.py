"""`status` tells a run that needs time from one that needs a person, from files alone."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli, recorded, runs
from harness.errors import ConfigError
from harness.evaluate import suite
from harness.jobs import JobDirectory, JobRecord, Work, open_alone
from harness.rundir import CACHE_SHARDS, RunDirectory, write_json
from harness.study import load, validate
from harness.watchdog import SIGNS
from tests.support.tiny import TinyStudy

STUDY = {
    "name": "s", "budget": "1000 flop", "arms": [{"name": "a", "objective": "mlm"}], "seeds": [1, 2],
}  # fmt: skip
NOW = 1_800_000_000.0


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return tmp_path


def trial(out: Path, seed: int = 1, *, spent: int = 250, moved_s_ago: float = 10.0) -> Path:
    folder = out / "arms" / "a" / f"seed-{seed}"
    folder.mkdir(parents=True)
    ledger = folder / "ledger.jsonl"
    whole = [{"step": 4, "charges": [], "spent": 200}, {"step": 5, "charges": [], "spent": spent}]
    torn = '{"step":6,"cha'
    ledger.write_text("".join(json.dumps(row) + "\n" for row in whole) + torn)
    rows = [
        {
            "step": step,
            "fraction": step / 20,
            "spent": step * 50,
            "seconds": 2.0 * step,
            "tokens": 256 * step,
            "loss": 1.0,
        }
        for step in range(1, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(ledger, (NOW - moved_s_ago, NOW - moved_s_ago))
    return folder


def attempt(out: Path, state: str, *, host: str = "elsewhere", pid: int = 1, **more: object) -> None:
    record = JobRecord(out, "train-a-seed-1")
    record._write([{"state": state, "started": NOW - 3600, "host": host, "pid": pid, **more}])


def gone() -> int:
    """The number of a process of this machine that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_run_shows_its_budget_step_speed_and_time_left(out: Path) -> None:
    trial(out)
    attempt(out, "running")
    found = runs.read(out, now=NOW)
    first, second = found.runs
    assert (first.state, first.step, first.fraction) == ("running", 5, 0.25)
    assert first.tokens_per_s == pytest.approx(128)
    assert first.eta_s == pytest.approx(0.75 / 0.025)
    assert first.heartbeat_age_s == pytest.approx(10)
    assert second.state == "waiting"
    assert found.verdict == 75


def test_a_run_that_stands_still_is_silent_and_needs_a_person(out: Path) -> None:
    trial(out, moved_s_ago=301)
    attempt(out, "running")
    found = runs.read(out, now=NOW)
    assert found.runs[0].state == "silent"
    assert found.verdict == 1
    assert runs.read(out, now=NOW, silent_s=400).runs[0].state == "running"


def test_a_run_that_fills_its_teachers_cache_is_not_silent_until_that_stands_still(out: Path) -> None:
    folder = out / "arms" / "a" / "seed-1"
    folder.mkdir(parents=True)
    write_json(folder / CACHE_SHARDS, {"shards": 3})
    attempt(out, "running")
    for seconds, state in ((100, "running"), (301, "silent")):
        os.utime(folder / CACHE_SHARDS, (NOW - seconds, NOW - seconds))
        found = runs.read(out, now=NOW).runs[0]
        assert (found.state, found.heartbeat_age_s, found.step) == (state, pytest.approx(seconds), 0)


def test_a_run_that_has_just_begun_again_is_not_silent(out: Path) -> None:
    trial(out, moved_s_ago=9000)
    attempt(out, "running", started=NOW - 20)
    assert runs.read(out, now=NOW).runs[0].state == "running"


def test_a_process_that_is_gone_from_this_machine_has_died(out: Path) -> None:
    trial(out)
    attempt(out, "running", host=socket.gethostname(), pid=gone())
    assert runs.read(out, now=NOW).runs[0].state == "died"


@pytest.mark.parametrize(("state", "code", "verdict"), [("interrupted", 75, 75), ("failed", 5, 1)])
def test_how_an_attempt_ended_decides_who_must_act(out: Path, state: str, code: int, verdict: int) -> None:
    trial(out)
    attempt(out, state, exit_code=code, message="because")
    found = runs.read(out, now=NOW)
    assert found.runs[0].exit_codes == [code]
    assert found.verdict == verdict
    assert recorded.recorded_exit_code(out, job="train-a-seed-1") == code


def test_done_is_done_only_with_every_run_and_the_report(out: Path) -> None:
    for seed in (1, 2):
        folder = trial(out, seed)
        (folder / "record.json").write_text(json.dumps({"state": "done", "charged": 990, "steps": 7}))
    assert runs.read(out, now=NOW).verdict == 75, "no report yet"
    RunDirectory(out).status("done")
    found = runs.read(out, now=NOW)
    assert found.verdict == 0
    assert {(run.state, run.fraction, run.step) for run in found.runs} == {("done", 1.0, 7)}


def test_the_recorded_exit_code_survives_launchers_and_a_kill_reads_as_1(out: Path) -> None:
    assert recorded.recorded_exit_code(out) == 1
    directory = RunDirectory(out)
    directory.status("running")
    assert recorded.recorded_exit_code(out) == 1
    directory.status("interrupted", exit_code=75)
    assert cli.main(["status", str(out), "--exit-code"]) == 75
    directory.status("done")
    assert cli.main(["status", str(out), "--exit-code"]) == 0


def test_the_command_prints_a_table_or_json_and_refuses_what_is_no_study(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial(out)
    attempt(out, "failed", exit_code=5, message="training has diverged")
    assert cli.main(["status", str(out)]) == 1
    said = capsys.readouterr().out
    assert "a · 1" in said
    assert "training has diverged" in said
    assert cli.main(["status", str(out), "--json"]) == 1
    table = json.loads(capsys.readouterr().out)
    assert table["runs"][0]["exit_codes"] == [5]
    assert cli.main(["status", str(tmp_path / "absent")]) == 2


# -- the study as a whole ----------------------------------------------------------------------------------
def finish(out: Path) -> None:
    for seed in (1, 2):
        (trial(out, seed) / "record.json").write_text(json.dumps({"state": "done", "charged": 990, "steps": 7}))


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What is recorded from here on is recorded then."""
    monkeypatch.setattr(time, "time", lambda: NOW + seconds)


def test_a_report_that_failed_before_it_gathered_needs_a_person(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(out)
    record = JobRecord(out, "report")
    at(monkeypatch, -100)
    record.begin(world=1)
    assert runs.read(out, now=NOW).verdict == 75, "it is at it"
    record.end("failed", exit_code=3, message="no teacher there")
    found = runs.read(out, now=NOW)
    assert (found.state, found.exit_code, found.message, found.verdict) == ("failed", 3, "no teacher there", 1)
    assert cli.main(["status", str(out)]) == 1
    assert "no teacher there" in capsys.readouterr().out
    at(monkeypatch, -90)
    record.begin(world=1)
    record.end("interrupted", exit_code=75)
    assert runs.read(out, now=NOW).verdict == 75, "it comes again"
    at(monkeypatch, -80)
    record.begin(world=1)
    RunDirectory(out).status("done")
    record.end("done")
    assert runs.read(out, now=NOW).verdict == 0
    at(monkeypatch, -70)
    record.refused("failed", exit_code=2, message="a misspelt flag", since=0.0)
    assert runs.read(out, now=NOW).verdict == 0, "a finished study stays finished"


def test_a_report_that_failed_behind_its_gathering_is_not_done(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(out)
    record = JobRecord(out, "report")
    at(monkeypatch, -100)
    record.begin(world=1)
    RunDirectory(out).status("done")
    at(monkeypatch, -99)
    record.end("failed", exit_code=5, message="the disk is full")
    found = runs.read(out, now=NOW)
    assert (found.state, found.message, found.verdict) == ("failed", "the disk is full", 1)


def test_a_report_whose_process_is_gone_has_died(out: Path) -> None:
    finish(out)
    JobRecord(out, "report")._write([{"state": "running", "started": NOW, "host": socket.gethostname(), "pid": gone()}])
    found = runs.read(out, now=NOW)
    assert (found.state, found.verdict) == ("died", 1)


def test_a_failed_study_that_was_submitted_again_waits_for_its_report(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial(out)
    report = JobRecord(out, "report")
    at(monkeypatch, -500)
    attempt(out, "interrupted", exit_code=75, host="elsewhere")
    report.begin(world=1)
    at(monkeypatch, -490)
    RunDirectory(out).status("failed", exit_code=1, message="2 of 2 runs unfinished")
    at(monkeypatch, -489)
    report.end("failed", exit_code=1)
    found = runs.read(out, now=NOW)
    assert (found.state, found.message, found.verdict) == ("failed", "2 of 2 runs unfinished", 1)
    attempt(out, "running", started=NOW - 60)
    found = runs.read(out, now=NOW)
    assert (found.state, found.exit_code, found.verdict) == ("waiting", 0, 75)
    attempt(out, "failed", started=NOW - 60, exit_code=5)
    assert runs.read(out, now=NOW).verdict == 1, "now the trial has failed"
    attempt(out, "done", started=NOW - 60, exit_code=0)
    at(monkeypatch, -50)
    report.begin(world=1)
    report.end("failed", exit_code=3, message="no teacher there")
    assert runs.read(out, now=NOW).message == "no teacher there"


# -- the teacher that is trained for it --------------------------------------------------------------------
def test_the_run_that_trains_the_teacher_is_shown_and_its_directory_can_be_done(out: Path) -> None:
    folder = out / "teacher"
    stage = {"name": "teacher", "works": ["big:7"]}
    (out / "jobs").mkdir()
    write_json(out / "jobs" / "graph.json", {"stages": [stage, {"name": "cache", "works": [""]}]})
    teacher = runs.read(out, now=NOW).teacher
    assert teacher is not None
    assert (teacher.arm, teacher.seed, teacher.state) == ("teacher: big", 7, "waiting")
    job = Work("train", "big", 7).name
    (folder / "jobs").mkdir(parents=True)
    JobRecord(folder, job).begin(world=1)
    JobRecord(folder, job).end("failed", exit_code=3, message="no such data")
    found = runs.read(out, now=NOW)
    assert found.teacher is not None
    assert (found.teacher.state, found.teacher.message, found.verdict) == ("failed", "no such data", 1)
    assert found.all_runs[0] == found.teacher
    (folder / "study.yaml").write_text(
        yaml.safe_dump({**STUDY, "arms": [{"name": "big", "objective": "mlm"}], "seeds": [7]})
    )
    trained = folder / "arms" / "big" / "seed-7"
    trained.mkdir(parents=True)
    assert runs.read(folder, now=NOW).verdict == 1
    (trained / "record.json").write_text(json.dumps({"state": "done"}))
    assert (runs.read(folder, now=NOW).state, runs.read(folder, now=NOW).verdict) == ("done", 0)
    found = runs.read(out, now=NOW)
    assert found.teacher is not None
    assert (found.teacher.state, found.verdict) == ("done", 75)
    finish(out)
    RunDirectory(out).status("done")
    shutil.rmtree(folder)
    assert runs.read(out, now=NOW).verdict == 0, "a finished study needs its teacher's run no longer"


# -- a run of the whole study ------------------------------------------------------------------------------
def whole(out: Path, started: float) -> None:
    RunDirectory(out).status("running")
    JobRecord(out, "study")._write(
        [{"state": "running", "started": started, "host": "elsewhere", "pid": 1, "ranks": 2}]
    )


@pytest.mark.parametrize("state", ["failed", "interrupted", "done"])
def test_a_whole_run_that_goes_on_with_a_jobs_trial_has_it(out: Path, state: str) -> None:
    trial(out)
    attempt(out, state, exit_code=5, message="diverged")
    whole(out, NOW - 1800)
    found = runs.read(out, now=NOW)
    assert (found.runs[0].state, found.runs[0].message, found.verdict) == ("running", "", 75)
    attempt(out, "failed", started=NOW - 900, exit_code=5, message="diverged")
    assert (runs.read(out, now=NOW).runs[0].state, runs.read(out, now=NOW).verdict) == ("failed", 1), "the job is later"


def test_a_refused_whole_run_takes_no_trial_from_the_job_that_trains_it(out: Path) -> None:
    trial(out)
    attempt(out, "running")
    JobRecord(out, "study").refused("failed", exit_code=2, message="a job is at work", since=0.0)
    assert runs.read(out, now=NOW).runs[0].state == "running"


def test_a_whole_run_is_silent_only_when_none_of_its_trials_moved(out: Path) -> None:
    trial(out, seed=2, moved_s_ago=9000)
    whole(out, NOW - 1000)
    assert [run.state for run in runs.read(out, now=NOW).runs] == ["waiting", "silent"]
    first = trial(out, seed=1, moved_s_ago=10)
    found = runs.read(out, now=NOW)
    assert [run.state for run in found.runs] == ["running", "waiting"]
    assert found.verdict == 75
    os.utime(first / "ledger.jsonl", (NOW - 301, NOW - 301))
    found = runs.read(out, now=NOW)
    assert [run.state for run in found.runs] == ["silent", "waiting"]
    (first / "record.json").write_text(json.dumps({"state": "done"}))
    os.utime(first / "ledger.jsonl", (NOW - 200, NOW - 200))
    assert [run.state for run in runs.read(out, now=NOW).runs] == ["done", "running"], "it has just come to the second"


@pytest.mark.parametrize("of_whole", [False, True], ids=["job", "whole run"])
def test_what_loads_before_its_first_step_is_not_silent_while_its_watch_lives(out: Path, of_whole: bool) -> None:
    folder = trial(out, moved_s_ago=9000)
    if of_whole:
        whole(out, NOW - 1000)
    else:
        attempt(out, "running", started=NOW - 1000)
    sign = (out if of_whole else out / "jobs" / "train-a-seed-1") / SIGNS / "rank-0.json"
    sign.parent.mkdir(parents=True)
    sign.touch()
    for sign_s, stepped_s, state in (
        (4, 9000, "running"),
        (301, 9000, "silent"),
        (4, 400, "silent"),
        (4, 299, "running"),
    ):
        os.utime(sign, (NOW - sign_s, NOW - sign_s))
        os.utime(folder / "ledger.jsonl", (NOW - stepped_s, NOW - stepped_s))
        assert runs.read(out, now=NOW).runs[0].state == state, (sign_s, stepped_s)


# -- many jobs, one directory ----------------------------------------------------------------------------
def spec():
    return validate(STUDY, where="test")


def test_two_jobs_share_a_directory_but_not_a_trial(tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = JobDirectory(root, [Work("train", "a", 1)])
    first.open(spec(), resume=True)
    second = JobDirectory(root, [Work("train", "a", 2)])
    second.open(spec(), resume=True)
    for kind in ("train", "evaluation"):
        with pytest.raises(ConfigError, match="another job is at work"):
            JobDirectory(root, [Work(kind, "a", 1)]).open(spec(), resume=True)
    with pytest.raises(ConfigError, match="a job is at work"):
        open_alone(RunDirectory(root), spec(), resume=True)
    first.close()
    JobDirectory(root, [Work("evaluation", "a", 1)]).open(spec(), resume=True)
    second.close()


def test_no_job_enters_while_the_whole_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.jobs.ENTER_S", 0.2)
    whole = RunDirectory(tmp_path / "run")
    open_alone(whole, spec(), resume=False)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="another run is using it"):
        JobDirectory(tmp_path / "run", [Work("train", "a", 1)]).open(spec(), resume=True)
    assert time.monotonic() - begun < 5
    whole.close()
    JobDirectory(tmp_path / "run", [Work("train", "a", 1)]).open(spec(), resume=True)


def test_a_job_of_another_study_is_refused(tmp_path: Path) -> None:
    JobDirectory(tmp_path / "run", [Work("train", "a", 1)]).open(spec(), resume=True)
    other = validate({**STUDY, "budget": "2000 flop"}, where="test")
    with pytest.raises(ConfigError, match="budget"):
        JobDirectory(tmp_path / "run", [Work("train", "a", 2)]).open(other, resume=True)


def test_attempts_are_kept_in_order_with_the_schedulers_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    record = JobRecord(tmp_path, "train-a-seed-1")
    record.begin(world=4)
    record.end("interrupted", exit_code=75)
    record.begin(world=4)
    record.end("done")
    assert [(a["state"], a["exit_code"]) for a in record.attempts()] == [("interrupted", 75), ("done", 0)]
    assert record.attempts()[0]["scheduler"]["slurm_job_id"] == "4711"


def test_the_shipped_studies_can_be_submitted_dry(tmp_path: Path) -> None:
    from harness.study import names

    for name in names():
        study = load(name)
        assert (
            cli.main(["submit", "--study", name, "--out", str(tmp_path / name), "--dry-run", "--gpus-per-run", "4"])
            == 0
        )
        graph = json.loads((tmp_path / name / "jobs" / "graph.json").read_text())
        arms = next(stage for stage in graph["stages"] if stage["name"] == "arms")
        assert len(arms["works"]) == len(study.arms) * len(study.seeds)


@pytest.mark.parametrize(("ended", "code"), [([5, 75], 5), ([75, 75], 1), ([0, 2], 2)])
def test_an_unfinished_study_is_reported_with_the_code_of_what_failed_and_never_asks_for_another_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int], code: int
) -> None:
    from harness.commands import job

    monkeypatch.setattr(job, "show_report", lambda *_, **__: None)
    directory = RunDirectory(tmp_path)
    for seed, last in zip((1, 2), ended, strict=True):
        record = JobRecord(tmp_path, f"train-a-seed-{seed}")
        record.begin(world=1)
        record.end("failed", exit_code=last)
    assert job.gather(directory, spec(), as_json=False) == code
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert "a seed 1, a seed 2" in status["message"]


@pytest.fixture
def uncontrolled(tmp_path: Path) -> Path:
    """A study whose trials are done, and whose one control has failed."""
    tree = {
        **STUDY, "arms": [{"name": "a", "objective": "mlm"}, {"name": "b", "objective": "mlm"}], "seeds": [1],
        "baseline": "a", "controls": ["equal_tokens"],
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for arm, tokens in (("a", 300), ("b", 200)):
        folder = tmp_path / "arms" / arm / "seed-1"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"state": "done", "tokens": tokens}))
    record = JobRecord(tmp_path, "control-b-seed-1")
    record.begin(world=1)
    record.end("failed", exit_code=5, message="training has diverged")
    return tmp_path


def write_control(root: Path, tokens: int) -> None:
    folder = root / "controls" / "equal_tokens" / "b" / "seed-1"
    folder.mkdir(parents=True, exist_ok=True)
    control = {"kind": "equal_tokens", "arm": "a", "of": "b", "tokens": tokens}
    (folder / "record.json").write_text(json.dumps({"state": "done", "tokens": tokens, "control": control}))


def test_a_study_whose_control_failed_is_not_done(uncontrolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.commands import job

    monkeypatch.setattr(job, "show_report", lambda *_, **__: None)
    study = load(str(uncontrolled / "study.yaml"))
    assert job.gather(RunDirectory(uncontrolled), study, as_json=False) == 5
    status = json.loads((uncontrolled / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert status["message"] == "1 of 3 runs unfinished: control of b seed 1"
    write_control(uncontrolled, tokens=200)
    assert job.gather(RunDirectory(uncontrolled), study, as_json=False) == 0
    assert runs.read(uncontrolled).verdict == 0


def test_status_shows_every_control_and_none_is_overlooked(
    uncontrolled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory(uncontrolled).status("done")
    found = runs.read(uncontrolled)
    assert [(each.arm, each.state, each.exit_codes) for each in found.controls] == [
        ("control: a at b's tokens", "failed", [5])
    ]
    assert found.verdict == 1
    assert cli.main(["status", str(uncontrolled)]) == 1
    assert "control: a at b's tokens · 1: training has diverged" in capsys.readouterr().out
    # Its job came when there was nothing to do yet, and then was run for other tokens.
    JobRecord(uncontrolled, "control-b-seed-1").end("done")
    assert runs.read(uncontrolled).controls[0].state == "waiting"
    write_control(uncontrolled, tokens=199)
    assert (runs.read(uncontrolled).controls[0].state, runs.read(uncontrolled).verdict) == ("waiting", 75)
    write_control(uncontrolled, tokens=200)
    assert runs.read(uncontrolled).verdict == 0


def test_what_was_not_trained_is_not_evaluated_and_what_is_done_is_not_done_again(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--study", str(tiny.file), "--out", str(tmp_path)]
    assert cli.main(["job", "evaluation:no_kd:1", *words]) == 2
    assert "not been trained" in capsys.readouterr().err
    folder = tmp_path / "arms" / "no_kd" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"state": "done"}')
    assert cli.main(["job", "no_kd:1", *words]) == 0
    assert "done already" in capsys.readouterr().out
    assert cli.main(["job", "nobody:1", *words]) == 2


@pytest.mark.parametrize("job", [None, "train-a-seed-1"])
def test_what_an_earlier_attempt_recorded_is_not_this_ones(out: Path, job: str | None) -> None:
    """An attempt that fails before it can record anything, after one that was preempted, must not be asked to come again."""
    trial(out)
    attempt(out, "interrupted", exit_code=75, message="preempted")
    RunDirectory(out).status("interrupted", exit_code=75)
    before = recorded.mark(out, job=job)
    assert recorded.recorded_exit_code(out, job=job) == 75
    assert recorded.recorded_exit_code(out, job=job, after=before) == recorded.NOTHING_RECORDED
    assert (
        recorded.recorded_exit_code(out, job="nobody", after=recorded.mark(out, job="nobody"))
        == recorded.NOTHING_RECORDED
    )
    if job is None:
        RunDirectory(out).status("interrupted", exit_code=75)
    else:
        attempt(out, "interrupted", exit_code=75, message="preempted again")
    assert recorded.recorded_exit_code(out, job=job, after=before) == 75
    # A crash that records 1 is an end; one that records nothing is none.
    if job is None:
        RunDirectory(out).status("failed", exit_code=1)
        assert recorded.recorded_exit_code(out, after=before) == 1
        RunDirectory(out).status("running")
    else:
        attempt(out, "failed", exit_code=1)
        assert recorded.recorded_exit_code(out, job=job, after=before) == 1
        attempt(out, "running")
    assert recorded.recorded_exit_code(out, job=job, after=before) == recorded.NOTHING_RECORDED


def save(folder: Path, step: int) -> None:
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")


def test_progress_grows_with_kept_steps_and_results_and_with_nothing_else(out: Path) -> None:
    def now(job: str | None) -> int:
        return recorded.progress(out, job=job)

    def all_now() -> dict[str | None, int]:
        return {job: now(job) for job in (None, "train-a-seed-1", "evaluation-a-seed-1")}

    def post(step: int) -> None:
        with (folder / "ledger.jsonl").open("w") as ledger:
            ledger.write(json.dumps({"step": step, "charges": [], "spent": 50 * step}) + "\n")

    assert now("train-a-seed-1") == 0
    folder = trial(out)
    before = all_now()
    assert before["train-a-seed-1"] > now("train-a-seed-2") == 0
    attempt(out, "interrupted", exit_code=75, message="hang: rank 1")
    (folder / "checkpoints" / ".writing-00000009").mkdir(parents=True)
    (folder / "checkpoints" / ".writing-00000009" / "manifest.json").write_text("{}")
    (out / ".ranks").mkdir()
    (out / ".ranks" / "rank-0.json").write_text("{}")
    post(9)
    assert all_now() == before, "a turn that hung before it saved did nothing: the next does its steps again"
    save(folder, 5)
    save(folder, 8)
    assert all_now() == {job: value + 8 for job, value in before.items()}
    post(12)  # the end: the record is written, and then the checkpoints go
    (folder / "record.json").write_text('{"state": "done"}')
    shutil.rmtree(folder / "checkpoints")
    assert all_now() == {job: value + 12 + 1 for job, value in before.items()}
    (folder / "evaluation.json").write_text("{}")
    assert all_now() == {job: value + 12 + 2 for job, value in before.items()}


def test_progress_grows_with_every_item_and_point_that_an_evaluation_keeps(tiny: TinyStudy, tmp_path: Path) -> None:
    """What an evaluation keeps before it is stopped again counts; that it removes snapshots as it reads them does not."""
    evaluation = {
        "curve_points": 3, "mlm_blocks": 8, "main": "mlm.loss",
        "readout": {"steps": 2, "positions": 8, "blocks": 8, "on_curve": True},
    }  # fmt: skip
    study = tiny.write(
        tmp_path / "s.yaml", arms=[{"name": "a", "objective": "mlm"}], evaluation=evaluation, teacher=None
    )
    out, job = tmp_path / "run", "evaluation-a-seed-1"
    words = ["--study", str(study), "--out", str(out)]
    assert cli.main(["job", "a:1", *words]) == 0
    assert len(list((out / "arms" / "a" / "seed-1" / "snapshots").glob("*.json"))) == 3
    seen = [recorded.progress(out, job=job)]

    def looking(action: Callable[..., None]) -> Callable[..., None]:
        def and_looked(*given: Any, **named: Any) -> None:
            action(*given, **named)
            seen.append(recorded.progress(out, job=job))

        return and_looked

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite, "write_json", looking(suite.write_json))
        patched.setattr(Path, "unlink", looking(Path.unlink))
        assert cli.main(["job", job.removesuffix("-a-seed-1") + ":a:1", *words]) == 0
    kept = [after - before for before, after in itertools.pairwise(seen)]
    assert [step for step in kept if step] == [2, 1, 1, 1, 1], (
        "a file with an item, three points, and the item they belong to"
    )
