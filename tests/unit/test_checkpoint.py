"""A checkpoint is complete or invisible, and no altered byte is ever loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import checkpoint, manifest, resume, rundir
from harness.engine.files import make_universal
from harness.errors import CheckpointError
from harness.ranks import Ranks
from harness.study import validate


def write(folder: Path) -> None:
    (folder / "engine").mkdir()
    (folder / "engine" / "weights.pt").write_bytes(bytes(range(256)) * 8)
    (folder / "rng-0.pt").write_bytes(b"random state")


def save(root: Path, step: int) -> None:
    checkpoint.save(root, step=step, state={"step": step}, ranks=Ranks(), write=write)


def test_the_newest_complete_checkpoint_is_found_without_a_pointer(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1] == {"step": 100}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"], (
        "keeps two, leaves no temporary"
    )


def test_no_checkpoint_is_none_but_only_bad_ones_are_an_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    (tmp_path / "step-00000002" / "rng-0.pt").write_bytes(b"short")
    with pytest.raises(
        CheckpointError, match=r"step-00000002: rng-0.pt has 5 bytes.*step-00000001: no readable manifest"
    ):
        checkpoint.newest(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_byte_or_a_truncation_falls_back_to_the_older_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("c")
    save(root, 1)
    save(root, 2)
    files = sorted(p for p in (root / "step-00000002").rglob("*") if p.is_file())
    victim = data.draw(st.sampled_from(files))
    content = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    victim.write_bytes(bytes(content))
    found = checkpoint.newest(root)
    assert found is not None
    assert found[1] == {"step": 1}
    assert [reason.partition(":")[0] for reason in found.passed_over] == ["step-00000002"], "never silently"


def test_a_failed_write_leaves_the_previous_checkpoint_and_no_rest(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def full_disk(folder: Path) -> None:
        (folder / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left.*previous checkpoint is intact"):
        checkpoint.save(tmp_path, step=2, state={}, ranks=Ranks(), write=full_disk)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.newest(tmp_path) is not None


def test_a_file_the_manifest_does_not_know_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "engine" / "extra.pt").write_bytes(b"planted")
    with pytest.raises(CheckpointError, match="extra.pt is not in its manifest"):
        checkpoint.newest(tmp_path)


def test_a_manifest_that_was_rewritten_without_its_seal_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"].pop("rng-0.pt")
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="manifest was altered"):
        checkpoint.newest(tmp_path)


def test_a_second_save_at_one_step_stands_beside_the_first_and_is_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 4)
    checkpoint.save(tmp_path, step=4, state={"step": 4, "again": True}, ranks=Ranks(), write=write)
    assert [p.name for p in checkpoint.candidates(tmp_path)] == ["step-00000004-2", "step-00000004"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1] == {"step": 4, "again": True}


def test_what_a_crash_left_half_written_or_half_removed_goes_with_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for leftover in (".writing-00000007", ".removing-step-00000001"):
        (tmp_path / leftover).mkdir()
    assert checkpoint.newest(tmp_path) is not None
    save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_run_that_lost_all_it_saved_is_refused_and_one_that_never_saved_is_not(tmp_path: Path) -> None:
    assert resume.newest(tmp_path) is None
    save(tmp_path / "checkpoints", 1)
    resume.note_made(tmp_path)
    assert resume.newest(tmp_path) is not None
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="none is left"):
        resume.newest(tmp_path)


def test_a_rank_that_writes_where_rank_0_does_not_see_it_fails_the_save_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    ranks = Ranks()
    # Two machines with disks of their own: what rank 1 lists is not what rank 0 lists.
    monkeypatch.setattr(
        ranks, "gather", lambda value: [value, ["rng-1.pt"]] if isinstance(value, list) else [value, value]
    )
    with pytest.raises(CheckpointError, match=r"rank 0 does not see rng-1\.pt of rank 1: all ranks must share"):
        checkpoint.save(tmp_path, step=2, state={}, ranks=ranks, write=write)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


class Disk:
    """What was flushed and renamed, in order: names of files and folders, "a > b" for a rename."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        replace, flush = os.replace, manifest.sync

        def renaming(a: Path, b: Path) -> None:
            self.order.append(f"{'aside' if Path(a).name.startswith('.') else Path(a).name} > {Path(b).name}")
            replace(a, b)

        def flushing(path: Path) -> None:
            self.order.append("aside" if path.name.startswith(".") else path.name)
            flush(path)

        monkeypatch.setattr(os, "replace", renaming)
        for module in (manifest, rundir, resume):
            monkeypatch.setattr(module, "sync", flushing)


def test_what_replaces_a_file_is_on_the_disk_before_it_does_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    rundir.write_json(tmp_path / "record.json", {"state": "done"})
    assert disk.order == ["aside", "aside > record.json", tmp_path.name]
    assert json.loads((tmp_path / "record.json").read_text()) == {"state": "done"}


def test_a_new_directory_and_its_study_are_on_the_disk_when_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, root = Disk(monkeypatch), tmp_path / "runs" / "mine"
    study = {"name": "s", "budget": "1 Gflop", "arms": [{"name": "a", "objective": "mlm"}]}
    directory = rundir.RunDirectory(root)
    directory.open(validate(study, where="test"), resume=False)
    directory.close()
    assert disk.order[:2] == ["runs", tmp_path.name], "the folders' own names"
    assert disk.order[-3:] == ["aside", "aside > study.yaml", "mine"]


def test_the_first_checkpoint_of_a_trial_is_on_the_disk_with_every_folder_above_it_and_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, trial = Disk(monkeypatch), tmp_path / "seed-1"
    trial.mkdir()
    save(trial / "checkpoints", 5)
    resume.note_made(trial)
    published = disk.order.index("aside > step-00000005")
    assert disk.order[0] == "seed-1", "that checkpoints/ exists"
    assert disk.order[published - 1] == "seed-1", "what stands beside the checkpoints, such as the ledger, comes first"
    assert disk.order[published + 1 :] == ["checkpoints", "checkpoints-made", "seed-1"]


def test_old_checkpoints_that_cannot_be_removed_fail_no_save_and_are_removed_by_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    replace = os.replace

    def busy(a: Path, b: Path) -> None:
        if Path(b).name.startswith(".removing"):
            raise OSError(16, "Device or resource busy")
        replace(a, b)

    monkeypatch.setattr(os, "replace", busy)
    told = [
        checkpoint.save(tmp_path, step=step, state={"step": step}, ranks=Ranks(), write=write) for step in (3, 4)
    ]  # fmt: skip
    assert "Device or resource busy" in told[0]
    assert told[0] == told[1], "the same words each time: they are said once"
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.state == {"step": 4}
    monkeypatch.undo()
    assert checkpoint.save(tmp_path, step=5, state={}, ranks=Ranks(), write=write) == ""
    assert [p.name for p in checkpoint.candidates(tmp_path)] == ["step-00000005", "step-00000004"]


def test_a_conversion_that_was_killed_does_not_stop_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds_to_universal = pytest.importorskip("deepspeed.checkpoint.ds_to_universal")
    seen: list[list[str]] = []

    def convert(wanted: Any) -> None:
        seen.append([p.name for p in Path(wanted.output_folder).iterdir()])

    monkeypatch.setattr(ds_to_universal, "main", convert)
    target = tmp_path / ".removing-universal-step-00000001" / "engine"
    target.mkdir(parents=True)
    (target / "half").write_bytes(b"")
    make_universal(tmp_path / "step-00000001" / "engine", target, stage=1)
    assert seen == [[]], "an empty folder to write in"


def test_a_save_after_a_fallback_keeps_what_it_went_on_from_and_what_it_saved(tmp_path: Path) -> None:
    """Bad checkpoints that are newer must not push the good ones out of the few that are kept."""
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step=step, state={"step": step}, ranks=Ranks(), write=lambda folder: None, keep=3)
    for step in (20, 30):
        (tmp_path / f"step-{step:08d}" / checkpoint.STATE).write_text("{}", encoding="utf-8")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.state["step"], len(found.passed_over)) == (10, 2)
    checkpoint.set_aside(tmp_path, found.folder)
    checkpoint.save(tmp_path, step=15, state={"step": 15}, ranks=Ranks(), write=lambda folder: None)
    assert [path.name for path in checkpoint.candidates(tmp_path)] == ["step-00000015", "step-00000010"]
    assert sorted(path.name for path in tmp_path.glob("bad-*")) == ["bad-step-00000020", "bad-step-00000030"]
    again = checkpoint.newest(tmp_path)
    assert again is not None
    assert again.state["step"] == 15
