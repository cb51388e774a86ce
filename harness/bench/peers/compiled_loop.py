"""The same loop with both models through torch.compile; compiling happens in the warm-up and is not timed."""

from __future__ import annotations

from harness.bench.peers._contest import Contest
from harness.bench.peers.pytorch_loop import Loop

NAME = "compiled PyTorch loop"
OBJECTIVES = ("mlm", "soft_targets")
REQUIRES: tuple[str, ...] = ()


def build(contest: Contest, objective: str) -> Loop:
    return Loop(contest, objective, compiled=True)
