"""What a kill around a resume threw away stands under LOST, though no step of that attempt reached the ledger."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.chaos.faults import Fault
from harness.chaos.interrupted import stopped
from harness.chaos.trial_runs import brief_study, launch, record
from harness.meters.open_time import PERIOD_S
from tests.support.lost_ranks import die_after_its_resume, die_before_its_resume

SPENT_S = 3.0


@pytest.mark.parametrize(
    ("fault", "unnoticed_s"), [(die_before_its_resume, PERIOD_S), (die_after_its_resume, 0.0)], ids=["before", "after"]
)
def test_a_start_that_was_killed_is_lost_to_the_second(fault: object, unnoticed_s: float, tmp_path: Path) -> None:
    file = brief_study(tmp_path)
    out = stopped(file, tmp_path / "run", ranks=1)
    begun = time.monotonic()
    killed = launch(file, out, "--resume", faults=[Fault(fault, (SPENT_S,))], ranks=1)  # type: ignore[arg-type]
    assert killed.wait() == [-9], killed.outputs()
    assert launch(file, out, "--resume", ranks=1).wait() == [0]
    lost = record(out)["accounts"]["LOST"]
    assert SPENT_S - unnoticed_s <= lost["second"] <= time.monotonic() - begun
    assert lost["allocated-gpu-second"] == pytest.approx(lost["second"])
    assert not list(out.glob("arms/*/*/open-time.json")), "a trial that is done has nothing open"
