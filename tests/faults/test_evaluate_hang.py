"""A hang in `evaluate` ends as one in `run` does: named, with its stack, and resumable."""

from __future__ import annotations

from pathlib import Path

from harness.chaos import workers
from harness.chaos.faults import Fault
from harness.chaos.trial_runs import enter
from tests.support.glue_worlds import write_glue
from tests.support.hanging import hang_in_fine_tuning
from tests.support.tiny import TinyStudy


def test_an_evaluation_that_hangs_is_left_and_says_where(tiny: TinyStudy, tmp_path: Path) -> None:
    glue, out = write_glue(tmp_path / "glue", tasks=("rte",), train=40), tmp_path / "out"
    words = [
        "evaluate",
        str(tiny.teacher),
        "--glue",
        str(glue),
        "--tasks",
        "rte",
        "--out",
        str(out),
        "--hang-timeout",
        "4",
    ]
    hanging = workers.start(enter, words, [Fault(hang_in_fine_tuning)], folder=tmp_path / "logs", ranks=1)
    assert hanging.wait(timeout_s=120) == [75], hanging.outputs()
    said = hanging.outputs()
    assert "nobody moved for 4 s" in said
    assert "fine-tuning" in said
    assert "waiting_for_ever" in said, "its stack"
    assert "continue with --resume" not in said, "evaluate continues by itself when it is asked again"
