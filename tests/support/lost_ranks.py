"""Faults for a rank that is killed around a resume, at a moment that its ledger has not reached yet."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def die(*, resumed: bool, after_s: float) -> None:
    """Every rank kills itself `after_s` seconds after its trial was made, before its resume or right after it."""
    from harness import train

    resume_of = train.Trial.resume

    def resuming(trial: Any) -> bool:
        time.sleep(after_s)
        if resumed:
            assert resume_of(trial)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    train.Trial.resume = resuming  # type: ignore[method-assign]


def die_before_its_resume(after_s: float) -> None:
    die(resumed=False, after_s=after_s)


def die_after_its_resume(after_s: float) -> None:
    die(resumed=True, after_s=after_s)
