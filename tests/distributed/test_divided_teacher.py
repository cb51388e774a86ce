"""A teacher shared out among ranks says what a whole one says, and takes less of each; all ranks use it or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import engine, teacher_backends
from harness.chaos import workers
from harness.ds_config import DsConfig
from harness.ranks import Ranks
from tests.support import backend_ranks, teacher_ranks
from tests.support.tiny import write_teacher


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_signals_are_equal_to_the_bit(dtype: str, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    launch = workers.start(teacher_ranks.compare, str(teacher), dtype, folder=tmp_path / "logs")
    assert launch.wait(timeout_s=200.0) == [0, 0], launch.outputs()[-3000:]


class TwoRanks(Ranks):
    """Two ranks of which the other has no room."""

    def gather(self, value: object) -> list[object]:
        return [value, True]


def test_only_zero_3_divides_and_one_rank_without_room_is_enough() -> None:
    three = {"zero_optimization": {"stage": 3}}
    two_ranks = TwoRanks(world=2)
    assert engine.must_divide(1, DsConfig(three), two_ranks)
    assert not engine.must_divide(10**15, DsConfig(three), Ranks(world=1))
    assert not engine.must_divide(10**15, DsConfig({"zero_optimization": {"stage": 2}}), two_ranks)
    assert not engine.must_divide(10**15, DsConfig({**three, "teacher": {"divided": False}}), two_ranks)
    assert engine.must_divide(1, DsConfig({**three, "teacher": {"divided": True}}), two_ranks)


@pytest.mark.parametrize("kept", [False, True], ids=["tried", "kept from before"])
def test_a_teacher_that_one_rank_cannot_use_is_refused_by_all(kept: bool, tmp_path: Path) -> None:
    """With exit code 3 and its reason; a rank that left alone would leave the other waiting."""
    if kept:
        told = {"wanted": "fp8", "backend": "fp8", "tried": []}
        (tmp_path / teacher_backends.FILE).write_text(json.dumps(told), encoding="utf-8")
    launch = workers.start(
        backend_ranks.settle_where_one_cannot, "builtin", str(tmp_path), folder=tmp_path / "logs"
    )  # fmt: skip
    assert launch.wait(timeout_s=60.0) == [3, 3], launch.outputs()[-3000:]
    for rank in (0, 1):
        assert "no fp8 on this rank" in launch.output(rank)
