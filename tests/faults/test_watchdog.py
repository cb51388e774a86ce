"""Hangs: who is let alone, who is ended, and who is named."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.ranks import Ranks
from harness.watchdog import SIGNS, Watchdog, beat

TIMEOUT_S = 0.6


@dataclass
class Pair(Ranks):
    """Rank 0 of two; the other exists only in the file that the test writes."""

    rank: int = 0
    world: int = 2

    def share(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def add(self, values: list[float]) -> list[float]:
        return values


class Ended:
    """What a watch that gave up said, and when."""

    def __init__(self) -> None:
        self.said = ""
        self.event = threading.Event()

    def __call__(self, found: str) -> None:
        self.said = found
        self.event.set()


def other(root: Path, *, moved: int, pulse: int, where: str = "step 7") -> None:
    (root / SIGNS).mkdir(exist_ok=True)
    sign = {"moved": moved, "where": where, "pulse": pulse, "host": "node2", "pid": 4711}
    (root / SIGNS / "rank-1.json").write_text(json.dumps(sign))


def test_a_rank_that_moves_is_let_alone(tmp_path: Path) -> None:
    ended = Ended()
    with Watchdog(tmp_path, Ranks(), timeout_s=TIMEOUT_S, give_up=ended):
        for step in range(12):
            beat(f"step {step}")
            time.sleep(TIMEOUT_S / 6)
    assert not ended.event.is_set()


def test_a_rank_that_stands_still_is_named_with_its_place_and_stack(tmp_path: Path) -> None:
    ended = Ended()
    with Watchdog(tmp_path, Ranks(), timeout_s=TIMEOUT_S, give_up=ended):
        beat("step 12")
        assert ended.event.wait(TIMEOUT_S + 10)
    assert "rank 0" in ended.said or "all 1 ranks" in ended.said
    assert "step 12" in ended.said
    assert "test_watchdog.py" in ended.said, "the main thread's stack"


def test_a_place_that_may_take_longer_is_given_longer(tmp_path: Path) -> None:
    ended = Ended()
    with Watchdog(tmp_path, Ranks(), timeout_s=TIMEOUT_S, give_up=ended):
        beat("a checkpoint", patience=20)
        assert not ended.event.wait(3 * TIMEOUT_S)


def test_waiting_for_a_rank_that_moves_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, ending = Ended(), threading.Event()
    monkeypatch.setattr(Watchdog, "_sees_all", lambda self: True)

    def moving() -> None:
        moved = 0
        while not ending.wait(TIMEOUT_S / 4):
            moved += 1
            other(tmp_path, moved=moved, pulse=moved)

    with Watchdog(tmp_path, Pair(), timeout_s=TIMEOUT_S, give_up=ended):
        mover = threading.Thread(target=moving)
        mover.start()
        assert not ended.event.wait(4 * TIMEOUT_S)
        ending.set()
        mover.join()
        assert ended.event.wait(TIMEOUT_S + 10), "once the other stands still too, it is one"


def test_the_rank_whose_process_is_silent_is_the_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Ended()
    monkeypatch.setattr(Watchdog, "_sees_all", lambda self: True)
    with Watchdog(tmp_path, Pair(), timeout_s=TIMEOUT_S, give_up=ended):
        beat("step 8")
        other(tmp_path, moved=9, pulse=3)  # further than rank 0, yet nothing of it moves any more
        assert ended.event.wait(TIMEOUT_S + 10)
    assert "rank 1 (host node2, process 4711) hangs: last seen at step 7" in ended.said
    assert "does not react" in ended.said
    assert "rank 0" not in ended.said


def test_ranks_that_do_not_share_the_directory_are_told_that_nobody_watches(tmp_path: Path) -> None:
    with Watchdog(tmp_path, Pair(), timeout_s=TIMEOUT_S, give_up=Ended()) as watch:
        assert "not shared" in watch.off


def test_nothing_is_left_behind_and_zero_turns_it_off(tmp_path: Path) -> None:
    with Watchdog(tmp_path, Ranks(), timeout_s=TIMEOUT_S, give_up=Ended()):
        assert (tmp_path / SIGNS).is_dir()
    assert not (tmp_path / SIGNS).exists()
    with Watchdog(tmp_path, Ranks(), timeout_s=0, give_up=Ended()) as watch:
        assert watch.off
        beat("anywhere")
    assert not (tmp_path / SIGNS).exists()
