"""Stragglers: a rank is named when it is slower, twice in a row, by a margin; otherwise nobody is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.meters.pace import AGREEING, EVERY, FLOOR_S, MARGIN, Pace, Straggler, extend
from harness.ranks import Ranks

STEP_S = 0.2


@dataclass
class Told(Ranks):
    """Rank 0 of a run in which each rank's seconds alone are what the test says."""

    alone_s: list[float] = field(default_factory=list)

    def add(self, values: list[float]) -> list[float]:
        return [*self.alone_s, STEP_S * self.world]

    def gather(self, value: Any) -> list[Any]:
        return [f"node{rank}" for rank in range(self.world)]


def play(alone_s: list[float], steps: int) -> list[Straggler]:
    pace = Pace(Told(0, len(alone_s), alone_s=alone_s), cuda=False)
    return [found for step in range(1, steps + 1) if (found := pace.end_step(step)) is not None]


@given(st.integers(2, 16), st.data())
def test_the_slow_rank_is_named_within_twenty_steps(world: int, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, world - 1))
    found = play([0.05 + (0.3 if rank == slow else 0.0) for rank in range(world)], 20)
    assert found
    assert found[0].rank == slow
    assert found[0].to_step <= 20
    assert found[0].excess_s == pytest.approx(0.3)
    assert f"node{slow}" in str(found[0])


@given(st.lists(st.floats(0, 0.99 * max(FLOOR_S, MARGIN * STEP_S)), min_size=2, max_size=16))
def test_differences_below_the_margin_name_nobody(alone_s: list[float]) -> None:
    assert play(alone_s, 5 * EVERY) == []


def test_one_hiccup_names_nobody() -> None:
    told = Told(0, 2, alone_s=[0.0, 1.0])
    pace = Pace(told, cuda=False)
    for step in range(1, EVERY * AGREEING + 1):
        found = pace.end_step(step)
        told.alone_s = [0.0, 0.0]
        assert found is None


def test_a_run_of_one_rank_compares_nothing() -> None:
    pace = Pace(Ranks(), cuda=False)
    pace.start()
    pace.stop()
    assert all(pace.end_step(step) is None for step in range(1, 100))


def test_a_lasting_straggler_is_one_entry_and_its_mean_is_kept() -> None:
    rows: list[dict[str, Any]] = []
    assert extend(rows, Straggler(1, "b", 0, 16, 0.3))
    assert not extend(rows, Straggler(1, "b", 8, 24, 0.6))
    assert rows == [{"rank": 1, "host": "b", "from_step": 0, "to_step": 24, "excess_s": pytest.approx(0.4)}]
    assert extend(rows, Straggler(0, "a", 16, 32, 0.2)), "another rank is another entry"
    assert extend(rows, Straggler(1, "b", 100, 116, 0.2)), "and so is the same one later"
