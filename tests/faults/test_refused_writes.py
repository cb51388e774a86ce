"""What the system refuses rank 0, it refuses the run: every rank leaves at once, with 4 and one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import manifest
from harness.chaos.faults import Fault
from harness.chaos.interrupted import checkpoints_of
from harness.chaos.trial_runs import brief_study, differences, launch, status, uninterrupted
from tests.support import refusing_disk

# Far below any time-out of ours or of gloo's, and enough for a busy machine.
AT_ONCE_S = 240.0
CURVE = {"curve_points": 2, "mlm_blocks": 8, "main": "mlm.loss", "readout": {"steps": 2, "positions": 8, "blocks": 8, "on_curve": True}}  # fmt: skip


def refused(folder: Path, fault: Fault, *, evaluate: bool = False, **changes: Any) -> Path:
    """The directory of a run that this fault ended, on both ranks alike."""
    file, out = brief_study(folder, **changes), folder / "run"
    run = launch(file, out, faults=[fault], evaluate=evaluate)
    codes = run.wait(timeout_s=AT_ONCE_S)
    assert codes == [4, 4], run.outputs()[-2000:]
    assert (status(out)["state"], status(out)["exit_code"]) == ("failed", 4)
    said = [line for line in run.outputs().splitlines() if line.startswith("isobudget: CheckpointError: ")]
    assert len(said) == 1, "rank 0 speaks for all"
    assert "the system refused it" in said[0]
    assert "Traceback" not in run.outputs()
    return out


def test_a_ledger_that_cannot_be_flushed_ends_a_save_on_all_ranks_and_leaves_the_one_before(tmp_path: Path) -> None:
    """Rank 0 alone has the file: the others must not wait for it in a barrier of DeepSpeed's."""
    out = refused(tmp_path, Fault(refusing_disk.ledger_sync, (2,)))
    (kept,) = checkpoints_of(out).iterdir()
    assert kept.name.startswith("step-")
    assert manifest.fault(kept) is None


def test_a_ledger_that_cannot_be_written_ends_all_ranks_and_resumes_as_if_nothing_had_been(tmp_path: Path) -> None:
    out = refused(tmp_path, Fault(refusing_disk.ledger_line, (12,)))
    file = tmp_path / "brief.yaml"
    again = launch(file, out, "--resume")
    assert again.wait() == [0, 0], again.outputs()[-2000:]
    assert differences(out, uninterrupted(file, tmp_path / "uninterrupted")) == []


def test_a_ledger_that_refuses_its_first_line_ends_all_ranks(tmp_path: Path) -> None:
    """The first posting of a run: a rank that skipped it and went on would be a step behind the others for good."""
    out = refused(tmp_path, Fault(refusing_disk.ledger_line, (1,)))
    assert not list(out.rglob("step-*"))


@pytest.mark.parametrize("what", ["metrics_row", "snapshot", "snapshot_weights", "export"])
def test_whatever_else_a_trial_cannot_write_ends_all_ranks(what: str, tmp_path: Path) -> None:
    refused(tmp_path, Fault(getattr(refusing_disk, what)), evaluation=CURVE)


@pytest.mark.parametrize("what", ["answers", "publication", "report"])
def test_what_an_evaluation_or_a_report_cannot_write_ends_all_ranks(what: str, tmp_path: Path) -> None:
    refused(tmp_path, Fault(getattr(refusing_disk, what)), evaluate=True)
