"""Laws of "one command to reproduce": what it says runs, it runs the whole study, and it tells nobody a secret."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness import cli
from harness.commands._study import typed
from harness.hosts import conceal
from harness.report import build_joined, build_report
from harness.report.reproduce import recorded
from harness.report.source import read
from harness.rundir import load_study
from harness.study import StudySpec, load

from .report_fakes import ARMS, ENVIRONMENT, write_study

# Without metrics, of two arms: quick to read.
TWO = (ARMS[0], ARMS[3])


def make(directory: Path, *, seeds: int = 2, **environment: Any) -> Path:
    write_study(directory, seeds=seeds, arms=TWO)
    for path in directory.glob("arms/*/*/metrics.jsonl"):
        path.write_text("")
    (directory / "environment.json").write_text(json.dumps({**ENVIRONMENT, **environment}))
    return directory


def commands(report: dict[str, Any]) -> list[list[str]]:
    """The words of each command in the line, as a shell would split it."""
    found: list[list[str]] = [[]]
    for word in shlex.split(report["reproduce"]):
        found.append([]) if word == "&&" else found[-1].append(word)
    return found


def study_of(words: list[str]) -> StudySpec:
    """The study that this command would run."""
    assert words[:2] == ["python", "launch.py"]
    options = cli.parse(words[2:])
    assert options.command == "run"
    assert not options.resume
    return load(options.study, assignments=options.assignments)


@pytest.mark.parametrize(
    "command",
    [
        "python launch.py run --study quickstart --out x --seeds 3",  # added to a finished run
        "python launch.py run --study quickstart --resume --out x --allow=code",
        "python launch.py job no_kd:1 --study x/study.yaml --out x",
        "python launch.py 'unbalanced",
        None,
    ],
)
def test_whatever_was_typed_last_the_command_runs_the_whole_study(command: str | None, tmp_path: Path) -> None:
    directory = make(tmp_path / "a study", command=command)
    (words,) = commands(build_report(directory))
    assert study_of(words) == load_study(directory)
    assert shlex.join(words) in (directory / "report.md").read_text()


def test_the_engine_that_was_given_is_given_again(tmp_path: Path) -> None:
    for engine, given_again in (
        ({"path": "ds configs/a.json", "resolved": {}}, "ds configs/a.json"),
        ({"path": None}, None),
    ):
        directory = make(tmp_path / "s", ds_config=engine)
        (words,) = commands(build_report(directory))
        assert cli.parse(words[2:]).ds_config == given_again


def test_joined_runs_are_run_one_by_one_and_joined(tmp_path: Path) -> None:
    parts = [make(tmp_path / name / "run", seeds=4) for name in "ab"]
    for part, seeds in zip(parts, ([1, 2], [3, 4]), strict=True):
        tree = yaml.safe_load((part / "study.yaml").read_text())
        (part / "study.yaml").write_text(yaml.safe_dump({**tree, "seeds": seeds}))
        for folder in part.glob("arms/*/seed-*"):
            if int(folder.name[5:]) not in seeds:
                (folder / "record.json").unlink()
                (folder / "metrics.jsonl").unlink()
                (folder / "ledger.jsonl").unlink()
                folder.rmdir()
    *runs, join = commands(build_joined(parts, tmp_path / "out"))
    assert [study_of(words) for words in runs] == [load_study(part) for part in parts]
    assert cli.parse(join[2:]).directories == [cli.parse(words[2:]).out for words in runs]
    assert len({cli.parse(words[2:]).out for words in runs}) == 2


def test_of_submitted_jobs_the_environment_names_the_command_that_asked_for_all(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", command="python launch.py job no_kd:1 --study x --out y")
    (directory / "jobs").mkdir()
    asked = "python launch.py submit --study paper --gpus-per-run 4"
    (directory / "jobs" / "graph.json").write_text(json.dumps({"command": asked}))
    assert build_report(directory)["environment"]["command"] == asked
    assert "job no_kd:1" not in (directory / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python launch.py run --study a --resume --out x", "python launch.py run --study a --out x"),
        (["launch.py", "--auto-resume", "--allow", "code,data", "--seeds", "1,2"], "launch.py --seeds 1,2"),
        ("launch.py --allow=code --set 'a.b={c: 1}'", "launch.py --set 'a.b={c: 1}'"),
        ("launch.py 'unbalanced", "launch.py 'unbalanced"),
        (None, ""),
    ],
)
def test_without_its_study_a_directory_has_the_command_that_was_given_begun_anew(
    command: Any, shown: str, tmp_path: Path
) -> None:
    """Where there is nothing to resume, a command that resumes is refused."""
    directory = make(tmp_path / "s", command=command)
    (directory / "study.yaml").unlink()
    assert recorded(read(directory)) == build_report(directory)["reproduce"] == shown
    assert ("Not known" in (directory / "report.html").read_text()) == (not shown)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("mlflow=https://me:hunter2@host/x", "mlflow=https://***@host/x"),
        ("mlflow=https://hunter2@host", "mlflow=https://***@host"),
        ("mlflow=https://me:p'hunter2\"x@host", "mlflow=https://***@host"),
        ("mlflow=https://me:p@hunter2@host", "mlflow=https://***@host"),
        ("https://host/?api_key=hunter2&run=3", "https://host/?api_key=***&run=3"),
        ("https://host/?a=1&access-token=hunter2", "https://host/?a=1&access-token=***"),
        ("data.sources=[{path: https://a/hunter2}, {path: b@c}]", None),
        ("mlflow=sqlite:///a@b", None),
        ("data.mask_token=hunter2", None),
        ("budget=2e9 tokens", None),
    ],
)
def test_logins_and_keys_of_addresses_are_kept_out_and_nothing_else_is(word: str, kept: str | None) -> None:
    assert conceal(word) == (word if kept is None else kept)
    line = typed(["run", "--study", "x", "--track", word])
    assert shlex.split(line) == ["python", "launch.py", "run", "--study", "x", "--track", kept or word]
    assert ("hunter2" in line) == (kept is None and "hunter2" in word)


@given(st.text(st.characters(exclude_characters="/@", exclude_categories=["Z", "C"]), min_size=1))
def test_no_password_survives_in_a_recorded_command(password: str) -> None:
    given_words = ["--track", f"mlflow=https://me:{password}@host"]
    assert shlex.split(typed(given_words))[-1] == "mlflow=https://***@host"
    # nor in one that an earlier version recorded
    assert shlex.split(conceal(shlex.join(given_words)))[-1].endswith("https://***@host")


def test_what_a_launcher_puts_among_the_words_is_no_part_of_the_command() -> None:
    words = ["--local_rank", "0", "submit", "--local", "--local-rank=1", "--seeds", "3"]
    assert typed(words) == "python launch.py submit --local --seeds 3"


def test_an_earlier_record_s_secret_reaches_no_reader(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", command="python launch.py run --track mlflow=https://me:hunter2@host")
    build_report(directory)
    written = [*directory.glob("report.*"), *directory.glob("tables/*.csv")]
    assert len(written) > 5
    assert [path.name for path in written if "hunter2" in path.read_text()] == []
