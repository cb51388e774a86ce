"""`status` tells a run that needs time from one that needs a person, from files alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from harness import cli, recorded, runs
from harness.errors import ConfigError
from harness.jobs import JobDirectory, JobRecord, Work, open_alone
from harness.rundir import CACHE_SHARDS, RunDirectory, write_json
from harness.study import load, validate
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
    child = subprocess.Popen(["true"])
    child.wait()
    gone = child.pid
    trial(out)
    attempt(out, "running", host=socket.gethostname(), pid=gone)
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
