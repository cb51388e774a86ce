"""Long legitimate work is told to the watch on hangs before it begins, with the time it may take."""

from __future__ import annotations

from pathlib import Path

from harness.chaos.faults import Fault
from harness.chaos.interrupted import engine_config, stopped
from harness.chaos.trial_runs import brief_study, launch
from harness.watchdog import LONG_WORK
from tests.support.stillness import note_long_works, noted

ARMS = [{"name": "no_kd", "objective": "mlm"}, {"name": "soft_targets", "objective": "soft_targets"}]


def test_nothing_long_begins_under_the_patience_of_what_was_before(tmp_path: Path) -> None:
    """Reading and converting a checkpoint, teachers loaded and compared, students measured."""
    file, folder = brief_study(tmp_path, arms=ARMS), tmp_path / "noted"
    folder.mkdir()
    flags = ("--ds_config", engine_config(tmp_path, stage=1))
    out = stopped(file, tmp_path / "run", *flags, ranks=1)
    noting = Fault(note_long_works, (str(folder),))
    again = launch(
        file, out, *flags, "--resume", "--allow", "world_size", faults=[noting], evaluate=True, ranks=2
    )  # fmt: skip
    assert again.wait() == [0, 0], again.outputs()[-3000:]
    main, other = noted(folder, 0), noted(folder, 1)
    for work in ("newest", "make_universal", "vouch"):
        said = [(where, patience) for name, where, patience in main if name == work]
        assert said, f"{work} never began"
        assert all(patience == LONG_WORK for _, patience in said), said
    for rank in (main, other):  # a rank judges the others by its own patience
        for work in ("load_from_other_world", "_restore"):
            said = [(where, patience) for name, where, patience in rank if name == work]
            assert said
            assert all(patience == LONG_WORK for _, patience in said), said
    before = {name: where for name, where, _ in main}
    assert before["make_universal"] != before["_restore"], "one patience for each of the two"
    measured = [where for name, where, _ in main if name == "measure"]
    assert measured == [f"the size of {arm['name']}, seed 1" for arm in ARMS]
