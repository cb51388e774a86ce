"""A study as jobs: the graph respects what waits for what, packing fills nodes, scripts are what Slurm and bash read."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import cli, runs
from harness.errors import ConfigError
from harness.jobs import Work
from harness.study import StudySpec, validate
from harness.submit.graph import Machines, build
from harness.submit.scripts import Queue, check_path, scripts_of, write
from tests.support.tiny import TinyStudy

BASE = {
    "name": "s",
    "budget": "1 Gflop",
    "teacher": {"path": "builtin"},
    "arms": [
        {"name": "a", "objective": "mlm"},
        {"name": "b", "objective": "tinybert"},
        {"name": "c", "objective": "mlm"},
    ],
    "seeds": [1, 2, 3],
}


def study(**changes: object) -> StudySpec:
    return validate({**BASE, **changes}, where="test")


def graph(machines: Machines, **changes: object):
    return build(study(**changes), machines, out="/shared/o", study_file="/shared/o/study.yaml", ds_config=None)


def test_stages_come_in_the_order_that_their_needs_allow() -> None:
    found = graph(Machines(4, 8))
    assert [stage.name for stage in found.stages] == ["cache", "arms", "evaluation", "report"]
    seen: set[str] = set()
    for stage in found.stages:
        assert set(stage.needs) <= seen
        seen.add(stage.name)
    needs = {stage.name: stage.needs for stage in found.stages}
    assert needs == {
        "cache": {}, "arms": {"cache": "afterok"}, "evaluation": {"arms": "afterany"}, "report": {"evaluation": "afterany"},
    }  # fmt: skip
    assert "builtin" in found.left_out["teacher"]


def test_a_study_without_a_teacher_says_so_and_one_with_controls_has_their_stage() -> None:
    assert "no arm" in graph(Machines(1), teacher=None, arms=BASE["arms"][:1]).left_out["teacher"]
    found = graph(Machines(4, 8), controls=["equal_tokens"])
    stages = {stage.name: stage for stage in found.stages}
    assert stages["controls"].works == [f"control:{a}:{s}" for a in "bc" for s in (1, 2, 3)]
    assert stages["evaluation"].needs == {"controls": "afterany"}


def test_a_teacher_to_be_trained_comes_first() -> None:
    spec = validate({"name": "t", "budget": "1 Gflop", "arms": [{"name": "big", "objective": "mlm"}]}, where="test")
    found = build(
        study(),
        Machines(4, 8),
        out="/o",
        study_file="/o/study.yaml",
        ds_config=None,
        teacher=(spec, "/o/t.yaml", "/o/teacher"),
    )
    assert [stage.name for stage in found.stages][:3] == ["cache", "teacher", "arms"]
    assert [stage.needs for stage in found.stages[:3]] == [{}, {"cache": "afterok"}, {"teacher": "afterok"}]
    assert found.stages[0].flags == ["--study", "/o/study.yaml", "--teacher-study", "/o/t.yaml"], "its jobs ask nobody"
    with pytest.raises(ConfigError):
        build(
            study(), Machines(1), out="/o", study_file="f", ds_config=None, teacher=(study(), "/o/t.yaml", "/o/teacher")
        )


@given(
    per_run=st.integers(1, 16), per_node=st.integers(1, 16), arms=st.integers(1, 5), seeds=st.integers(1, 7),
)  # fmt: skip
def test_every_run_is_in_exactly_one_slot_and_no_node_is_overfull(
    per_run: int, per_node: int, arms: int, seeds: int
) -> None:
    try:
        machines = Machines(per_run, per_node)
    except ConfigError:
        assert per_run > per_node
        assert per_run % per_node
        return
    found = graph(
        machines,
        arms=[{"name": f"a{i}", "objective": "mlm"} for i in range(arms)],
        seeds=list(range(seeds)),
        teacher=None,
    )
    stage = next(stage for stage in found.stages if stage.name == "arms")
    assert sorted(stage.works) == sorted(f"a{i}:{s}" for i in range(arms) for s in range(seeds))
    assert stage.slots * stage.ranks <= stage.nodes * per_node
    assert (stage.tasks - 1) * stage.slots < len(stage.works) <= stage.tasks * stage.slots
    # No idle half: one more run would not fit beside the others.
    assert stage.nodes > 1 or (stage.slots + 1) * stage.ranks > per_node


def test_what_cannot_be_packed_is_refused() -> None:
    for bad in (
        {"gpus_per_run": 0},
        {"gpus_per_run": 12},
        {"gpus_per_run": 16, "nodes": 1},
        {"gpus_per_run": 1, "nodes": 0},
    ):
        with pytest.raises(ConfigError):
            Machines(**bad)


@pytest.mark.parametrize(
    "option",
    ["--array=0-9", "--wrap=id", "--dependency=after:1", "--no-requeue", "--signal=B:USR1@1", "--time=2:00", "--time-min=2:00",
     "--arra=0-9"],
)  # fmt: skip
def test_options_that_the_jobs_depend_on_are_refused(option: str) -> None:
    """A smaller array would do part of the work and leave with 0; sbatch knows a name by its beginning."""
    with pytest.raises(ConfigError, match="the jobs depend on what submit itself says"):
        Queue(options=[option])


def test_an_option_that_is_only_spelt_alike_is_taken() -> None:
    assert Queue(options=["--gpus=8", "--nodelist=n1"]).options == ["--gpus=8", "--nodelist=n1"]


@pytest.mark.parametrize(
    "queue",
    [{"partition": "gpu; rm -rf /"}, {"partition": "--wrap=x"}, {"account": "a\n#SBATCH --wrap=x"}, {"time": "12h"},
     {"partition": "a,b;c"}, {"partition": "a,"}, {"partition": ""}, {"partition": "a, b"}, {"account": "a,b"},
     {"options": ["--comment=a b"]}, {"options": ["-p x"]}, {"options": ["--x=$(touch y)"]}, {"options": ["--x\n--y"]}],
)  # fmt: skip
def test_hostile_queue_words_are_refused(queue: dict) -> None:
    with pytest.raises(ConfigError):
        Queue(**queue)


@pytest.mark.parametrize(
    "time", ["0", "90", "90:00", "90:5", "100:00:00", "1:2:3", "2-0", "2-23", "2-5:30", "2-05:30:59", "10-00:00:00"]
)
def test_the_times_that_slurm_documents_are_taken(time: str) -> None:
    assert Queue("gpu,gpu-long", time=time).time == time


@pytest.mark.parametrize(
    "time", ["00:99:99", "1:60", "5:60:00", "5:00:60", "1-24", "1-5:60", "1-1-1", "1:2:3:4", "1-", ":30", "5:", "", "-1", "1.5", "٣"],
)  # fmt: skip
def test_times_that_slurm_refuses_or_reads_as_others_are_refused(time: str) -> None:
    with pytest.raises(ConfigError, match="minutes and seconds end at 59"):
        Queue(time=time)


@pytest.mark.parametrize("path", ["/a b", "/a'b", "/a$(x)", "/a%j", "/a\nb", "/a;b"])
def test_paths_that_mean_something_to_a_script_are_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        check_path(Path(path), what="--out")


def test_scripts_say_what_slurm_must_know_and_parse(tmp_path: Path) -> None:
    machines = Machines(4, 8, nodes=2)
    found = build(study(), machines, out=str(tmp_path), study_file=f"{tmp_path}/study.yaml", ds_config=None)
    queue = Queue("gpu", "me", "12:00:00", ["--constraint=h100"])
    scripts = scripts_of(found, machines, queue)
    assert not any(tmp_path.iterdir()), "nothing is written yet"
    write(found, scripts)
    for script in scripts.values():
        (output,) = re.findall(r"^#SBATCH --output=(.*)$", script.path.read_text(), re.MULTILINE)
        assert Path(output).parent.is_dir(), "Slurm fails a job whose output it cannot open"
    text = scripts["arms"].path.read_text()
    for line in ("--array=0-4%2", "--gpus-per-node=8", "--nodes=1", "--partition=gpu", "--account=me", "--time=12:00:00",
                 "--signal=B:USR1@120", "--requeue", "--exclusive", "--constraint=h100"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    # sbatch stops reading options at the first command
    first = re.search(r"^[^#\n]", text, re.MULTILINE)
    assert first is not None
    assert "#SBATCH" not in text[first.start() :]
    assert "#SBATCH --gpus-per-node" not in scripts["cache"].path.read_text()
    assert "#SBATCH --array" not in scripts["report"].path.read_text()
    assert json.loads((tmp_path / "jobs" / "graph.json").read_text())["stages"][1]["tasks"] == 5
    for script in scripts.values():
        assert subprocess.run(["bash", "-n", script.path]).returncode == 0
        if shutil.which("shellcheck"):
            said = subprocess.run(["shellcheck", script.path], capture_output=True, text=True)
            assert said.returncode == 0, said.stdout


def test_work_is_read_as_it_is_written_and_nothing_else_is() -> None:
    spec = study(arms=[{"name": "control", "objective": "mlm"}, {"name": "a.b-c", "objective": "mlm"}])
    assert Work.parse("control:1", spec) == Work("train", "control", 1)
    assert Work.parse("control:a.b-c:2", spec) == Work("control", "a.b-c", 2)
    assert Work.parse("evaluation:control:3", spec) == Work("evaluation", "control", 3)
    assert Work.parse("report", spec).name == "report"
    for bad in ("", "a", "a:1", "control:9", "control:x", "../a:1", "control:1\n", "evaluation:control", "report:1"):
        with pytest.raises(ConfigError):
            Work.parse(bad, spec)


# -- a stand-in for sbatch, that numbers jobs and remembers how it was called ------------------------------
@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"
    (folder / "sbatch").write_text(
        f'#!/bin/bash\necho "$@" >> {log}\necho $((100 + $(wc -l < {log})))\n', encoding="ascii"
    )
    (folder / "squeue").write_text("#!/bin/bash\n", encoding="ascii")
    for program in ("sbatch", "squeue"):
        (folder / program).chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def test_submit_hands_the_graph_to_sbatch_with_its_dependencies(
    tiny: TinyStudy, tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        cli.main(["submit", "--study", str(tiny.file), "--gpus-per-run", "4", "--out", str(out), "--seeds", "1,2"]) == 0
    )
    calls = sbatch.read_text().splitlines()
    assert [Path(call.split()[-1]).stem for call in calls] == ["cache", "arms", "evaluation", "report"]
    assert "--dependency" not in calls[0]
    for call, waits in zip(calls[1:], ("afterok:101", "afterany:102", "afterany:103"), strict=True):
        assert f"--dependency={waits} " in call
    assert json.loads((out / "jobs" / "submitted.json").read_text())["arms"]["job"] == "102"
    said = capsys.readouterr().out
    assert "8 × 4 GPU, 2 at once per task, 4 tasks" in said
    assert "teacher: left out" in said
    # Again: the same files, and nothing in the study's directory is in the way.
    assert (
        cli.main(
            [
                "submit",
                "--study",
                str(tiny.file),
                "--gpus-per-run",
                "4",
                "--out",
                str(out),
                "--dry-run",
                "--seeds",
                "1,2",
            ]
        )
        == 0
    )
    assert len(sbatch.read_text().splitlines()) == 4, "a dry run submits nothing"


# -- submitting twice ---------------------------------------------------------------------------------------
class Scheduler:
    """sbatch and squeue over one folder; sbatch fails from the `fails_from`-th job on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "slurm"
        (self.folder / "bin").mkdir(parents=True)
        self.queue = self.folder / "queue"
        self.queue.touch()
        self.stub(
            "sbatch",
            f"""n=$(cat {self.folder}/number 2>/dev/null || echo 100)
if [[ -e {self.folder}/full ]] && [[ $n -ge $(cat {self.folder}/full) ]]; then echo "QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
n=$((n + 1)); echo "$n" > {self.folder}/number
script="${{@: -1}}"; name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
[[ ! -e {self.folder}/slow ]] || {{ touch {self.folder}/asked; sleep "$(cat {self.folder}/slow)"; }}
echo "$n $name $*" >> {self.folder}/calls; echo "$n $script" >> {self.queue}; echo "$n;cluster" """,
        )
        self.stub("squeue", f"cat {self.queue}")
        monkeypatch.setenv("PATH", f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def stub(self, name: str, body: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(f"#!/bin/bash\n{body}\n", encoding="ascii")
        file.chmod(0o755)

    def full_from(self, number: int | None) -> None:
        (self.folder / "full").unlink(missing_ok=True)
        if number is not None:
            (self.folder / "full").write_text(str(number))

    def ended(self, *numbers: int) -> None:
        rows = self.queue.read_text().splitlines(keepends=True)
        self.queue.write_text("".join(row for row in rows if int(row.split()[0]) not in numbers))

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    return Scheduler(tmp_path, monkeypatch)


def again(tiny: TinyStudy, out: Path, *words: str) -> int:
    return cli.main(["submit", "--study", str(tiny.file), "--gpus-per-run", "4", "--out", str(out), *words])


def contents(out: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def stages(calls: list[list[str]]) -> list[str]:
    return [Path(call[-1]).stem for call in calls]


def test_a_submission_that_failed_half_way_goes_on_without_a_job_twice(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    scheduler.full_from(102)
    assert again(tiny, out) == 2
    assert "scancel 101 102" in capsys.readouterr().err
    assert stages(scheduler.calls()) == ["cache", "arms"]
    scheduler.full_from(None)
    scheduler.ended(101)  # meanwhile the first has run
    assert again(tiny, out) == 0
    assert stages(scheduler.calls()) == ["cache", "arms", "evaluation", "report"]
    assert [call[4] for call in scheduler.calls()[2:]] == ["--dependency=afterany:102", "--dependency=afterany:103"]
    assert again(tiny, out) == 0, "all are there: nothing is left to hand over"
    assert len(scheduler.calls()) == 4
    submitted = json.loads((out / "jobs" / "submitted.json").read_text())
    assert {name: job["job"] for name, job in submitted.items()} == {
        "cache": "101", "arms": "102", "evaluation": "103", "report": "104",
    }  # fmt: skip


def test_a_study_whose_jobs_have_all_ended_is_submitted_anew(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler
) -> None:
    assert again(tiny, tmp_path / "out") == 0
    scheduler.ended(101, 102, 103, 104)
    assert again(tiny, tmp_path / "out", "--time", "1:00:00") == 0
    assert stages(scheduler.calls()) == 2 * ["cache", "arms", "evaluation", "report"]


def test_jobs_in_the_queue_with_other_flags_are_named_and_none_is_added(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(tiny, tmp_path / "out") == 0
    scheduler.ended(101)
    before = contents(tmp_path / "out")
    assert again(tiny, tmp_path / "out", "--time", "1:00:00") == 2
    assert contents(tmp_path / "out") == before, "its scripts and its study are those of the jobs in the queue"
    assert "scancel 102 103 104" in capsys.readouterr().err
    assert len(scheduler.calls()) == 4


def test_jobs_in_the_queue_never_go_on_under_a_study_that_changed(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    """They read it when they begin; its scripts are the same but for the study's digest."""
    out = tmp_path / "out"
    words = ["--allow", "study", "--set", "optimizer.lr=0.5"]
    assert again(tiny, out, "--allow", "study") == 0
    before = contents(out)
    capsys.readouterr()
    assert again(tiny, out, *words) == 2
    assert contents(out) == before
    assert "scancel 101 102 103 104" in capsys.readouterr().err
    scheduler.ended(101, 102, 103, 104)
    assert again(tiny, out, *words) == 0
    assert again(tiny, out, *words) == 0, "the same study again"
    assert len(scheduler.calls()) == 8


def test_an_edited_ds_config_changes_no_job_and_is_refused_while_one_is_queued(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of one study would be trained in two precisions."""
    out, mine = tmp_path / "out", tmp_path / "my.json"
    was = (root / "ds_configs" / "zero1_fp32.json").read_text()
    mine.write_text(was)
    assert again(tiny, out, "--ds_config", str(mine)) == 0
    mine.write_text((root / "ds_configs" / "zero1_bf16.json").read_text())
    pinned = out.resolve() / "jobs" / "ds_config.json"
    for stage in ("arms", "evaluation", "report"):
        assert f"--ds_config {pinned}" in (out / "jobs" / f"{stage}.sbatch").read_text()
    assert json.loads(pinned.read_text()) == json.loads(was)
    assert runs.read(out).verdict == 75, "it is no job's record"
    before = contents(out)
    capsys.readouterr()
    assert again(tiny, out, "--ds_config", str(mine)) == 2
    assert "scancel 101 102 103 104" in capsys.readouterr().err
    assert contents(out) == before
    scheduler.ended(101, 102, 103, 104)
    assert again(tiny, out, "--ds_config", str(mine)) == 0
    assert json.loads(pinned.read_text()) == json.loads(mine.read_text())


@pytest.mark.parametrize("how", ["--dry-run", "--local"])
def test_nothing_is_rewritten_under_queued_jobs_by_a_submit_that_submits_nothing(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert again(tiny, out) == 0
    before = contents(out)
    capsys.readouterr()
    assert again(tiny, out, how, "--seeds", "1,2") == 2
    assert "scancel 101 102 103 104" in capsys.readouterr().err
    assert contents(out) == before
    assert again(tiny, out, "--dry-run") == 0, "they read what it writes anyway"
    scheduler.ended(101, 102, 103, 104)
    assert again(tiny, out, "--dry-run", "--seeds", "1,2") == 0
    assert contents(out) != before


def test_where_the_queue_cannot_be_asked_it_is_said(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert again(tiny, out) == 0
    (scheduler.folder / "bin" / "squeue").unlink()
    monkeypatch.setenv("PATH", str(scheduler.folder / "bin"))
    capsys.readouterr()
    assert again(tiny, out, "--dry-run") == 0
    assert "no squeue here" in capsys.readouterr().out
    assert again(tiny, out) == 2, "jobs that are there already would be submitted twice"
    assert "squeue is not on PATH" in capsys.readouterr().err
    assert len(scheduler.calls()) == 4


def test_a_script_is_replaced_and_never_written_in_place(tiny: TinyStudy, tmp_path: Path) -> None:
    """A bash that is at work in the old one reads on where it was, byte for byte."""
    out = tmp_path / "out"
    assert again(tiny, out, "--dry-run") == 0
    script = out / "jobs" / "arms.sbatch"
    with script.open() as at_work:
        old = script.read_text()
        assert again(tiny, out, "--dry-run", "--seeds", "1,2") == 0
        assert os.fstat(at_work.fileno()).st_ino != script.stat().st_ino
        assert at_work.read() == old != script.read_text()
    assert os.access(script, os.X_OK)
    assert not [file for file in script.parent.iterdir() if file.name.startswith(".arms")]


def test_no_submit_writes_while_another_runs_its_jobs_here(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor while a job goes on that such a submit left behind when it was killed."""
    from harness.submit import execute

    machines = Machines(4, 8)
    found = build(study(), machines, out=str(tmp_path), study_file=f"{tmp_path}/study.yaml", ds_config=None)
    scripts = scripts_of(found, machines, Queue())
    write(found, scripts)
    went_on = tmp_path / "went-on"
    for script in scripts.values():
        script.path.write_text(f"( while [[ ! -e {went_on} ]]; do sleep 0.05; done ) &\n")
    with execute.alone(found, scripts, slurm=False, tell=lambda _: None) as standing:
        assert execute.here(found, scripts, tell=lambda _: None, lock=standing.lock) == 0
    before = contents(tmp_path)
    assert again(tiny, tmp_path, "--dry-run") == 2
    assert contents(tmp_path) == before
    went_on.touch()
    deadline = time.monotonic() + 30
    while again(tiny, tmp_path, "--dry-run") == 2 and "at work here" in capsys.readouterr().err:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_is_submitted_while_the_queue_cannot_be_seen(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(tiny, tmp_path / "out") == 0
    scheduler.stub("squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    assert again(tiny, tmp_path / "out") == 2
    assert "Unable to contact" in capsys.readouterr().err
    (tmp_path / "out" / "jobs" / "submitted.json").write_text('{"cache": 1')
    assert again(tiny, tmp_path / "out") == 2
    assert len(scheduler.calls()) == 4


def test_a_directory_spelt_through_a_link_is_the_same_directory(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert again(tiny, tmp_path / "link" / "out") == 0
    assert {str(Path(call[-1]).parent) for call in scheduler.calls()} == {str(tmp_path.resolve() / "out" / "jobs")}
    assert again(tiny, tmp_path / "out") == 0
    assert len(scheduler.calls()) == 4, "all of them are in the queue"
    # Somebody submitted a file by hand, under the other name.
    scheduler.queue.write_text(f"104 {tmp_path}/link/out/jobs/report.sbatch\n")
    assert again(tiny, tmp_path / "link" / "out") == 0
    assert len(scheduler.calls()) == 4


def test_a_number_that_another_study_has_now_is_not_taken_for_ours(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler
) -> None:
    assert again(tiny, tmp_path / "out") == 0
    scheduler.queue.write_text("104 /elsewhere/jobs/report.sbatch\n")
    assert again(tiny, tmp_path / "out") == 0
    assert len(scheduler.calls()) == 8


def test_new_work_of_a_stage_that_has_ended_is_never_dropped(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert again(tiny, out, "--seeds", "1") == 0
    scheduler.ended(101, 102, 103)
    capsys.readouterr()
    before = contents(out)
    assert again(tiny, out, "--seeds", "1,2") == 2
    said = capsys.readouterr().err
    assert "arms" in said
    assert "scancel 104" in said
    # A stage that the first submission did not have.
    assert again(tiny, out, "--seeds", "1", "--allow", "study", "--set", 'controls=["equal_tokens"]') == 2
    assert contents(out) == before
    assert len(scheduler.calls()) == 4
    scheduler.ended(104)
    assert again(tiny, out, "--seeds", "1,2") == 0
    assert len(scheduler.calls()) >= 8


def test_a_submission_that_was_killed_while_sbatch_was_at_work_puts_no_job_into_the_queue_twice(
    tiny: TinyStudy, tmp_path: Path, scheduler: Scheduler, root: Path
) -> None:
    out = tmp_path / "out"
    (scheduler.folder / "slow").write_text("3")
    words = ["submit", "--study", str(tiny.file), "--gpus-per-run", "4", "--out", str(out)]
    process = subprocess.Popen([sys.executable, str(root / "launch.py"), *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (scheduler.folder / "asked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert again(tiny, out) == 2, "its sbatch is still at it"
    while not scheduler.calls():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    (scheduler.folder / "slow").unlink()
    assert again(tiny, out) == 0
    assert stages(scheduler.calls()) == ["cache", "arms", "evaluation", "report"]
    assert scheduler.calls()[1][4] == "--dependency=afterok:101"
    assert json.loads((out / "jobs" / "submitted.json").read_text())["cache"]["job"] == "101"


@pytest.mark.parametrize("time", ["1", "2", "5:59", "0:5:59", "00:02:00", "0-0:3", "0-0:5:59"])
def test_a_time_that_is_warned_before_a_run_can_begin_is_refused(time: str) -> None:
    with pytest.raises(ConfigError, match="warned 120 s before"):
        Queue(time=time)


@pytest.mark.parametrize("time", ["0", "6", "6:00", "0:6:00", "0-1", "0-0:6", "1-0"])
def test_a_time_in_which_a_run_can_begin_is_taken(time: str) -> None:
    assert Queue(time=time).time == time


def test_submit_refuses_before_it_writes(tiny: TinyStudy, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out"
    for flags in (["--gpus-per-run", "0"], ["--gpus-per-run", "12"], ["--partition", "a b"], ["--time", "soon"]):
        assert cli.main(["submit", "--study", str(tiny.file), "--out", str(out), *flags]) == 2
    engine = ["--ds_config", str(root / "ds_configs" / "zero1_fp32.json")]
    for flags in ([], engine):
        assert cli.main(["submit", "--study", str(tiny.file), "--out", str(out), "--gpus-per-run", "3", *flags]) == 2
    # 8 sequences over 4 ranks divide, and the teacher's 6 do not.
    arms = [{"name": "big", "objective": "mlm"}]
    teacher = tiny.write(tmp_path / "teacher.yaml", arms=arms, teacher=None, batch={"sequences": 6})
    assert again(tiny, out, "--dry-run", "--teacher-study", str(teacher)) == 2
    assert cli.main(["submit", "--study", str(tiny.file), "--out", str(tmp_path / "a b")]) == 2
    assert not out.exists()
