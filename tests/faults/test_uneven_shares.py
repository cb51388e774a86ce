"""A rank that is through with its evaluations waits for the others for as long as they take."""

from __future__ import annotations

from pathlib import Path

from harness.chaos import workers
from tests.support.uneven_shares import evaluate_unevenly, evaluate_unevenly_and_be_stopped


def test_a_share_that_takes_longer_than_an_exchange_may_is_waited_for(tmp_path: Path) -> None:
    run = workers.start(evaluate_unevenly, folder=tmp_path)
    assert run.wait() == [0, 0], run.outputs()


def test_a_rank_that_waits_passes_a_signal_on_to_those_at_work(tmp_path: Path) -> None:
    run = workers.start(evaluate_unevenly_and_be_stopped, folder=tmp_path)
    assert run.wait() == [75, 75], run.outputs()
