"""No content of a file in a run directory ends in a traceback, and none is taken for what it is not."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import cli, kept, recorded, runs
from harness.budget import Account, Budget, Ledger, parse_postings
from harness.commands.status import show
from harness.errors import CheckpointError, IsoBudgetError
from harness.jobs import JobRecord
from harness.rundir import RunDirectory, holder, read_json
from harness.train import Progress
from harness.units import Unit
from tests.support.tiny import TinyStudy

STUDY = {
    "name": "s", "budget": "1000 flop", "arms": [{"name": "a", "objective": "mlm"}], "seeds": [1, 2],
}  # fmt: skip
ATTEMPT = {
    "state": "running", "started": 1.8e9, "host": socket.gethostname(), "pid": os.getpid(), "ranks": 1, "scheduler": {},
}  # fmt: skip
POSTING = {"step": 5, "charges": [["STUDENT_STEP", 250, "flop", "analytic"]], "spent": 250}
ROW = {"step": 5, "fraction": 0.25, "spent": 250, "seconds": 10.0, "tokens": 1280, "loss": 1.0}
TRIAL = "arms/a/seed-1"
# Every kind of file that is read again, with a content that is right.
FILES: dict[str, Any] = {
    "status.json": {"state": "running", "exit_code": 0, "message": "", "time": 1.8e9},
    ".holder.json": {"host": "elsewhere", "pid": 7, "since": 1.8e9},
    "identity.json": {"identity": {"code": {"source": "x"}}, "overrides": []},
    "jobs/study.json": {"job": "study", "attempts": [ATTEMPT]},
    "jobs/train-a-seed-1.json": {"job": "train-a-seed-1", "attempts": [ATTEMPT]},
    "jobs/report.json": {"job": "report", "attempts": [ATTEMPT]},
    "jobs/graph.json": {"stages": [{"name": "teacher", "works": ["a:1"]}]},
    f"{TRIAL}/record.json": {"state": "done", "steps": 7, "tokens": 64, "charged": 990, "engine": {}, "control": None},
    f"{TRIAL}/ledger.jsonl": POSTING,
    f"{TRIAL}/metrics.jsonl": ROW,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, -1, "done", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def write(root: Path, **instead: bytes) -> Path:
    """A whole run directory; `instead` replaces files by what the tests make of them."""
    (root / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    for name, content in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(instead.get(name, (json.dumps(content) + "\n").encode()))
    return root


def everything_that_reads(root: Path) -> list[Callable[[], object]]:
    directory, budget = RunDirectory(root), Budget(1000, Unit.FLOP)

    def resumed() -> None:
        ledger = Ledger(budget, charged=frozenset({Account.STUDENT_STEP}), path=root / TRIAL / "ledger.jsonl")
        state = {**ledger.state(), "postings": 1, "spent": 250}
        ledger.unreadable_since(state)
        ledger.restore(state, instead=ledger.lost_since(state))

    return [
        lambda: directory.record("a", 1),
        lambda: directory.admit({"code": {"source": "x"}}, frozenset()),
        lambda: holder(root),
        lambda: JobRecord(root, "train-a-seed-1").attempts(),
        lambda: recorded.recorded_exit_code(root),
        lambda: recorded.recorded_exit_code(root, job="study"),
        lambda: kept.whole_objects(root / TRIAL / "metrics.jsonl"),
        resumed,
    ]


def changed(content: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Right but for one place, at any depth; what an arbitrary value seldom is."""

    def at(value: Any) -> st.SearchStrategy[Any]:
        if isinstance(value, dict) and value:
            return st.sampled_from(sorted(value)).flatmap(
                lambda key: st.one_of(JSON, at(value[key])).map(lambda new: {**value, key: new})
            ) | st.sampled_from(sorted(value)).map(lambda key: {k: v for k, v in value.items() if k != key})
        if isinstance(value, list) and value:
            return at(value[0]).map(lambda new: [new, *value[1:]])
        return JSON

    return at(content)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_content_of_any_file_ends_in_a_traceback(
    name: str, data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arbitrary JSON, the right file with one value changed or missing, and arbitrary bytes."""
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    as_json = st.one_of(JSON, changed(FILES[name])).map(lambda value: (json.dumps(value) + "\n").encode())
    content = data.draw(st.one_of(as_json, st.binary(max_size=40), as_json.map(lambda text: text[: len(text) // 2])))
    root = write(tmp_path, **{name: content})
    found = runs.read(root)
    show(found)
    print(json.dumps(found.as_json()))
    assert found.verdict in (0, 1, 75)
    capsys.readouterr()
    met: list[IsoBudgetError] = []
    for look in everything_that_reads(root):
        try:
            look()
        except IsoBudgetError as error:
            met.append(error)
    assert all(error.exit_code == 4 for error in met)
    # Another identity is another run, and refused for that.
    assert all(name in str(error) or "must be the uninterrupted one" in str(error) for error in met)


WRONG = {
    "a list": b"[1]\n",
    "half a file": b'{"state": "do',
    "latin-1": '{"state": "ä"}\n'.encode("latin-1"),
    "nested without end": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("name", [name for name in FILES if name not in (".holder.json", "identity.json")])
def test_status_names_the_file_and_shows_the_other_runs(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_line = name.endswith(".jsonl")  # half a line at the end of a file of lines is still being written
    root = write(tmp_path, **{name: content.rstrip(b"\n") + b"\n" if whole_line else content})
    (root / "arms/a/seed-2").mkdir(parents=True)
    (root / "arms/a/seed-2/record.json").write_text(json.dumps({"state": "done", "charged": 990, "steps": 7}))
    assert cli.main(["status", str(root)]) == 1, "it needs a person"
    said = capsys.readouterr().out
    assert f"{root / name}: its content is unreadable" in said
    assert any(line.split()[:4] == ["a", "·", "2", "done"] for line in said.splitlines())
    assert cli.main(["status", str(root), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    named = told["unreadable"] + told["runs"][0]["unreadable"]
    assert len(named) == 1
    assert str(root / name) in named[0]
    assert told["runs"][1]["unreadable"] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("status.json", {"exit_code": "bad"}),
        ("jobs/train-a-seed-1.json", {"attempts": [{**ATTEMPT, "pid": 10**30}]}),
        ("jobs/train-a-seed-1.json", {"attempts": [{**ATTEMPT, "exit_code": [75]}]}),
        (f"{TRIAL}/ledger.jsonl", {"spent": "a"}),
        (f"{TRIAL}/record.json", {"charged": float("inf")}),
        (f"{TRIAL}/record.json", {"state": None}),
    ],
)
def test_one_wrong_value_makes_a_file_unreadable(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    found = runs.read(write(tmp_path, **{name: (json.dumps({**FILES[name], **change}) + "\n").encode()}))
    (named,) = [*found.unreadable, *found.runs[0].unreadable]
    assert name in named
    assert next(iter(change)) in named
    assert found.verdict == 1


def test_a_row_of_metrics_without_seconds_hides_the_speed_and_nothing_else(tmp_path: Path) -> None:
    row = {k: v for k, v in ROW.items() if k != "seconds"}
    root = write(tmp_path, **{f"{TRIAL}/metrics.jsonl": (json.dumps(row) + "\n").encode() * 3})
    first = runs.read(root).runs[0]
    assert (first.state, first.step, first.tokens_per_s) == ("done", 7, None)
    assert "metrics.jsonl: its content is unreadable (line 1: seconds" in first.unreadable[0]


@pytest.mark.parametrize(
    "text", [b"name: [s\n", "name: ä\n".encode("latin-1"), b"- 1\n", b"[" * 5000, b"a: &x [*x]\n", b""]
)
def test_an_unreadable_study_is_a_configuration_error_for_status_and_for_a_resume(
    text: bytes, tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_bytes(text)
    assert cli.main(["status", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "ConfigError" in said
    assert str(tmp_path / "study.yaml") in said
    assert cli.main(["run", "--study", str(tiny.file), "--out", str(tmp_path), "--resume"]) == 2
    said = capsys.readouterr().err
    assert "ConfigError" in said
    assert str(tmp_path / "study.yaml") in said
    assert (tmp_path / "study.yaml").read_bytes() == text, "it is left for whoever mends it"


@pytest.mark.parametrize("name", ["identity.json", "jobs/study.json", "arms/no_kd/seed-1/record.json"])
def test_a_resume_beside_an_unreadable_file_is_refused_and_leaves_the_directory_as_it_was(
    name: str, tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in a file that cannot be read may be all that is left of a trial: it is not trained over."""
    tree = tiny.tree(arms=[{"name": "no_kd", "objective": "mlm"}])
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / "status.json").write_text(json.dumps({"state": "interrupted", "exit_code": 75, "message": ""}))
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[1]")
    assert cli.main(["run", "--study", str(tmp_path / "study.yaml"), "--out", str(tmp_path), "--resume"]) == 4
    assert f"CheckpointError: {file}: its content is unreadable" in capsys.readouterr().err
    assert file.read_text() == "[1]"
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


@settings(max_examples=150, deadline=None)
@given(value=JSON)
@example(value={"step": 0, "charges": [["STUDENT_STEP", 1, "flop"]], "spent": 1})
@example(value={"step": 0, "charges": [["NOBODY", 1, "flop", "analytic"]], "spent": 1})
@example(value={"step": 0, "charges": [["STUDENT_STEP", -1, "flop", "analytic"]], "spent": 1})
@example(value={"step": 0, "charges": 7, "spent": True})
def test_only_postings_are_postings(value: Any) -> None:
    line = json.dumps(POSTING)
    assert parse_postings(f"{line}\n{json.dumps(value)}\n{line}\n") == [POSTING]


def test_a_line_that_a_checkpoint_vouches_for_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(Budget(1000, Unit.FLOP), charged=frozenset({Account.STUDENT_STEP}), path=path)
    state = {**ledger.state(), "postings": 3, "spent": 250}
    line = json.dumps(POSTING) + "\n"
    path.write_text(f"{line}[1]\n{line}")
    for use in (ledger.lost_since, ledger.restore):
        with pytest.raises(CheckpointError, match="has 1 postings, then line 2 is none: the checkpoint vouches for 3"):
            use(state)
    state["postings"] = 1
    assert ledger.unreadable_since(state) == 1
    assert [charge.amount for charge in ledger.lost_since(state)] == [250], "what can be read is lost all the same"


def test_fields_that_a_checkpoint_should_not_have_are_named(tmp_path: Path) -> None:
    right = {**vars(Progress(step=3)), "steps_by_phase": {"0": 3}}
    assert kept.build(Progress, right, of=tmp_path).step == 3
    for wrong in ({"step": "3"}, {"nobody": 1}, {"warnings": [1]}):
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            kept.build(Progress, {**right, **wrong}, of=tmp_path)
    ledger = Ledger(Budget(10, Unit.FLOP), charged=frozenset({Account.LOST})).state()
    state = {"ledger": ledger, "progress": right, "identity": {"world_size": {"ranks": 2}}, "overrides": []}
    kept.check(json.loads(json.dumps(state)), kept.CheckpointState, of=tmp_path)
    with pytest.raises(CheckpointError, match="ledger.postings"):
        kept.check({**state, "ledger": {**ledger, "postings": -1}}, kept.CheckpointState, of=tmp_path)


@pytest.mark.parametrize(
    "content", [*WRONG.values(), b'{"moved": "a"}', b'{"second": 1e999, "after": 0}', b'{"backend": [1]}']
)
def test_notes_of_ranks_that_are_no_notes_are_taken_for_missing(content: bytes, tmp_path: Path) -> None:
    """A sign of life, the open time of a killed attempt, the choice of a backend: none may end a run."""
    from harness.meters.open_time import FILE as OPEN_TIME
    from harness.meters.open_time import OpenTime
    from harness.meters.wall_time import WallClock
    from harness.ranks import Ranks
    from harness.teacher_backends import FILE as BACKEND
    from harness.teacher_backends import _begun_with
    from harness.watchdog import Watchdog

    watchdog = Watchdog(tmp_path, Ranks(), timeout_s=600.0, give_up=pytest.fail)
    for file in (tmp_path / OPEN_TIME, tmp_path / BACKEND, watchdog._sign_file(0)):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    ledger = Ledger(Budget(10, Unit.FLOP), charged=frozenset({Account.LOST}))
    clock = WallClock(counts=True, held=1, started=0.0)
    assert OpenTime(tmp_path, ledger=ledger, wall=clock, held=1).left_behind() == []
    assert watchdog._read(0) is None
    assert _begun_with(tmp_path, "fp8") is None


def test_what_can_be_made_again_is_taken_for_missing(tmp_path: Path) -> None:
    for content in WRONG.values():
        (tmp_path / "evaluations.json").write_bytes(content)
        assert read_json(tmp_path / "evaluations.json") is None
