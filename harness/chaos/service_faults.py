"""Faults of what a run uses and does not own: energy counters, trackers, the Hub.

Module-level functions, put into a rank before it starts; see `faults`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def fake_nvml(library: str, scenario: str, uuid: str, step: int, mishap_s: float) -> None:
    """Every rank computes on a GPU that only a fake NVML knows, and whose time begins with each trial.

    Args:
        library: the compiled fake, "" for none: then NVML is absent.
        step: from this step on, its time is `mishap_s`, at which the scenario lets something happen.
    """
    import ctypes

    from harness import train
    from harness.meters import node
    from harness.meters.trial import Instruments

    node.own_uuid = lambda ranks: uuid
    if not library:
        return
    os.environ["FAKE_NVML_SCENARIO"] = scenario
    fake = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    fake.fake_set_time(ctypes.c_double(0.0))
    enter_of = Instruments.__enter__

    def entering(instruments: Any) -> Any:
        fake.fake_set_time(ctypes.c_double(0.0))
        fake.fake_run(ctypes.c_double(1.0))
        return enter_of(instruments)

    step_of = train.Trial._step

    def stepping(trial: Any, *arguments: Any) -> Any:
        if trial.progress.step == step and mishap_s:
            fake.fake_set_time(ctypes.c_double(mishap_s))
            fake.fake_run(ctypes.c_double(1.0))
        return step_of(trial, *arguments)

    Instruments.__enter__ = entering  # type: ignore[method-assign]
    train.Trial._step = stepping  # type: ignore[method-assign]


class FailingTracker:
    """A tracker whose every call fails; each leaves a mark in a file, so that attempts can be counted."""

    def __init__(self, marks: Path, error: OSError) -> None:
        self._marks = marks
        self._error = error

    def log(self, *_: Any) -> None:
        with self._marks.open("a", encoding="utf-8") as file:
            file.write(".")
        raise self._error

    def close(self) -> None:
        raise self._error


def services_down(marks: str, endpoint: str, read_only: str) -> None:
    """Trackers fail for ever, the Hub does not answer and its cache takes no file."""
    import errno

    import huggingface_hub.constants as hub

    from harness import trackers

    hub.ENDPOINT, hub.HF_HUB_OFFLINE, hub.HF_HUB_CACHE = endpoint, False, read_only
    down = FailingTracker(Path(f"{marks}.down"), ConnectionRefusedError("nobody listens"))
    full = FailingTracker(Path(f"{marks}.read-only"), OSError(errno.EROFS, "Read-only file system"))
    trackers.openers = lambda *_: [("down", lambda: down), ("read-only", lambda: full)]
