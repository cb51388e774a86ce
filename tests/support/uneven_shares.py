"""Ranks with unequal shares of an evaluation: module-level functions, so that a forked rank finds them by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

# gloo's patience in these tests, instead of half an hour; and the share of rank 1, which is more than that, in batches.
EXCHANGE_S, SHARE_S = 5.0, 12.0
BATCH_S = 0.05
SIGNAL_AFTER_S = 1.0


class Slow:
    """A subject that takes a while over every batch."""

    device = "cpu"

    def signals(self, *_: Any, **__: Any) -> Any:
        import torch

        time.sleep(BATCH_S)
        return SimpleNamespace(head=SimpleNamespace(logits=lambda: torch.zeros(4, 8)))


def batch_of(*, tokens: int) -> Any:
    import torch

    batch = SimpleNamespace(input_ids_BT=None, positions_N=None, labels_N=torch.zeros(tokens, dtype=torch.long))
    batch.to = lambda _: batch
    return batch


def evaluate_unevenly(*, signalled: bool = False) -> int:
    """Rank 0 has nothing to do and rank 1 much; with `signalled` rank 0 gets a SIGTERM meanwhile. The exit code."""
    import torch.distributed as dist

    from harness.engine import connect
    from harness.errors import IsoBudgetError
    from harness.evaluate import mlm
    from harness.evaluate.suite import Suite
    from harness.stopping import StopFlag

    ranks = connect()
    ranks.control = dist.new_group(backend="gloo", timeout=timedelta(seconds=EXCHANGE_S))
    ranks.barrier()

    def evaluate(share_s: float) -> None:
        """Whether a signal is heard meanwhile is the evaluator's affair."""
        batches = [batch_of(tokens=4)] * int(share_s / BATCH_S)
        if batches:
            mlm.evaluate(Slow(), batches)  # type: ignore[arg-type]

    suite: Any = object.__new__(Suite)
    suite.candidates = lambda: [0.0, SHARE_S]
    suite.evaluate, suite.publish, suite.downstream = evaluate, lambda _: None, lambda _: None
    suite.ranks, suite.directory = ranks, SimpleNamespace()
    begun = time.monotonic()
    with StopFlag(ranks) as stop:
        suite.stop = stop
        if signalled and ranks.is_main:
            threading.Timer(SIGNAL_AFTER_S, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        try:
            suite.run()
        except IsoBudgetError as error:
            print(f"left after {time.monotonic() - begun:.1f} s: {error}", flush=True)
            assert time.monotonic() - begun < SHARE_S, "the evaluation was not left before its end"
            return error.exit_code
    print(f"done after {time.monotonic() - begun:.1f} s", flush=True)
    return 0


def evaluate_unevenly_and_be_stopped() -> int:
    return evaluate_unevenly(signalled=True)
