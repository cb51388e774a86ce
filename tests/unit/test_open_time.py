"""Seconds that no ledger line holds yet: a kill hides none of them, and none is counted twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.budget import Account, Budget, Charge, Ledger
from harness.meters.open_time import FILE, OpenTime
from harness.meters.wall_time import WallClock
from harness.units import Unit

HELD = 2


@dataclass
class Attempt:
    """One process of a trial, on a clock that the test moves."""

    folder: Path
    now: list[float] = field(default_factory=lambda: [100.0])

    def __post_init__(self) -> None:
        self.ledger = Ledger(Budget(1000, Unit.FLOP), charged=frozenset(), path=self.folder / "ledger.jsonl")
        self.wall = WallClock(counts=True, held=HELD, clock=self.clock)
        self.note = OpenTime(self.folder, ledger=self.ledger, wall=self.wall, held=HELD, clock=self.clock)

    @property
    def clock(self) -> Callable[[], float]:
        return lambda: self.now[0]

    def lives(self, seconds: float) -> None:
        """Time passes, and the note is written at its end."""
        self.now[0] += seconds
        self.note.note()

    def posts(self) -> None:
        self.ledger.post(self.wall.charges(self.wall.local(), 0), step=0)


def behind(folder: Path) -> dict[Unit, float]:
    return {charge.unit: charge.amount for charge in Attempt(folder).note.left_behind()}


def test_what_a_killed_start_had_spent_is_left_behind_for_the_next(tmp_path: Path) -> None:
    assert behind(tmp_path) == {}
    Attempt(tmp_path).lives(7.0)
    assert behind(tmp_path) == {Unit.SECOND: 7.0, Unit.ALLOCATED_GPU_SECOND: 7.0 * HELD}
    Attempt(tmp_path).lives(5.0)
    assert behind(tmp_path)[Unit.SECOND] == 12.0, "two starts killed one after the other"


def test_only_what_came_after_the_ledgers_last_seconds_is_left_behind(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    attempt.lives(7.0)
    attempt.posts()
    assert behind(tmp_path) == {}, "posted a moment ago: the older note counts for nothing"
    attempt.ledger.post([Charge(Account.STUDENT_STEP, 10, Unit.FLOP)], step=1)
    attempt.lives(2.0)
    assert behind(tmp_path)[Unit.SECOND] == 2.0
    attempt.posts()
    assert behind(tmp_path) == {}


def test_what_was_left_behind_is_posted_once_however_often_it_is_killed(tmp_path: Path) -> None:
    killed = Attempt(tmp_path)
    killed.posts()
    state = killed.ledger.state()
    killed.lives(3.0)
    for _ in range(3):  # each continues, posts, and is killed before another note
        again = Attempt(tmp_path)
        again.lives(1.0)
        start = [Charge(Account.LOST, sum(again.wall.local()), Unit.SECOND, "measured")]
        again.ledger.restore(state, instead=[*again.ledger.lost_since(state), *again.note.left_behind(), *start])
    assert behind(tmp_path) == {}
    assert again.ledger.amount(Account.LOST, Unit.SECOND) == pytest.approx(3.0 + 3 * 1.0)


def test_a_rank_without_the_ledger_and_a_full_disk_keep_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(tmp_path)
    other = OpenTime(None, ledger=attempt.ledger, wall=attempt.wall, held=HELD)
    with other:
        other.note()
    assert other.left_behind() == []
    assert list(tmp_path.iterdir()) == []
    attempt.lives(4.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    attempt.lives(1.0)
    assert [file.name for file in tmp_path.iterdir()] == [FILE], "the older note stays, nothing half written"
    assert behind(tmp_path)[Unit.SECOND] == 4.0


def test_an_attempt_that_ends_well_leaves_no_note_and_one_that_does_not_its_last(tmp_path: Path) -> None:
    with Attempt(tmp_path).note:
        assert (tmp_path / FILE).exists()
    assert not (tmp_path / FILE).exists()
    attempt = Attempt(tmp_path)

    def interrupted() -> None:
        with attempt.note:
            attempt.now[0] += 9.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert behind(tmp_path)[Unit.SECOND] == 9.0


@pytest.mark.parametrize(
    "torn", ["", "{", "[]", '{"after": 0}', '{"after": 0, "second": "x", "allocated-gpu-second": 1}']
)
def test_a_torn_note_says_nothing(tmp_path: Path, torn: str) -> None:
    (tmp_path / FILE).write_text(torn)
    assert behind(tmp_path) == {}
