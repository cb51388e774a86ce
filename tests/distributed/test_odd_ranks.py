"""A number of ranks that divides nothing evenly but the batch: the same samples, the same ledger, the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.chaos.faults import Fault
from harness.chaos.interrupted import engine_config
from harness.chaos.trial_runs import brief_study, charged_steps, launch, losses, record
from tests.support.seen_samples import note_samples, seen

SEQUENCES, TOLERANCE = 12, 1e-5


@pytest.mark.slow
def test_three_ranks_that_accumulate_see_and_learn_what_one_rank_does(tmp_path: Path) -> None:
    """ZeRO-1: the weights' elements divide by three no more than their number of tensors does."""
    file = brief_study(tmp_path, batch={"sequences": SEQUENCES}, checkpoints=0)
    config = engine_config(tmp_path, stage=1, train_micro_batch_size_per_gpu=2)
    outs = {ranks: tmp_path / f"{ranks}-ranks" for ranks in (1, 3)}
    for ranks, out in outs.items():
        noting = Fault(note_samples, (str(tmp_path / f"seen-{ranks}"),))
        run = launch(file, out, "--ds_config", config, faults=[noting], ranks=ranks)
        assert run.wait() == [0] * ranks, run.outputs()[-3000:]
    alone, three = outs[1], outs[3]
    steps = record(alone)["steps"]
    assert steps > 5
    whole = [list(range(step * SEQUENCES, (step + 1) * SEQUENCES)) for step in range(steps)]
    assert seen(tmp_path / "seen-1", steps=steps) == whole
    assert seen(tmp_path / "seen-3", steps=steps) == whole
    assert len(list((tmp_path / "seen-3").iterdir())) == 3
    assert charged_steps(three) == charged_steps(alone)
    assert losses(three) == pytest.approx(losses(alone), rel=TOLERANCE)
