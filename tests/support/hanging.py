"""A rank that evaluates and never comes back."""

from __future__ import annotations

import time
from typing import Any


def hang_in_fine_tuning() -> None:
    from harness.evaluate import glue, size

    def waiting_for_ever(*_: Any, **__: Any) -> None:
        while True:
            time.sleep(1)

    size.measure = lambda *_, **__: {}  # takes seconds on a busy machine, and moves nobody
    glue.finetune = waiting_for_ever  # type: ignore[assignment]
