"""Where a step's time goes: the parts run one after the other, the device waited for between them.

The waiting costs what overlap would have saved, so the parts may add up to more than a step; shares are of their
own sum. The vocabulary head runs inside the objective, because only there it meets the teacher's logits.
Collectives are waited for one by one and taken out of the backward and the optimizer that called them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from harness.bench.timing import Stopwatch, wait
from harness.models.signals import Signals

if TYPE_CHECKING:
    from harness.train import Trial

PARTS = ("data", "teacher", "student forward", "objective", "backward", "optimizer", "communication")
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce", "reduce_scatter", "reduce_scatter_tensor",
    "broadcast", "all_to_all_single",
)  # fmt: skip


def breakdown(trial: Trial, steps: range) -> dict[str, float]:
    """Mean milliseconds of each part of a step, over these steps."""
    watch = Stopwatch(trial.engine.device)
    sums: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    with (
        _timed(trial.trainee, "signals", watch, "student forward"),
        _timed(trial.trainee.plan, "forward", watch, "objective"),
    ):
        for number in steps:
            for part, seconds in _step(trial, number, watch).items():
                sums[part] += seconds
    return {part: 1e3 * seconds / len(steps) for part, seconds in sums.items()}


def _step(trial: Trial, number: int, watch: Stopwatch) -> dict[str, float]:
    needs = trial.trainee.plan.teacher_needs(0)
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    with watch.span("data"):
        batches = [batch.to(trial.engine.device) for batch in trial.stream.step(number)]
    for batch in batches:
        signals = Signals()
        if trial.teacher is not None and needs:
            with watch.span("teacher"):
                signals = trial.teacher(batch, needs)
        terms = trial.engine(batch, signals, 0)
        for part, call in (
            ("backward", partial(trial.engine.backward, terms["total"])),
            ("optimizer", trial.engine.step),
        ):
            with _collectives(watch) as talking, watch.span(part):
                call()
            parts[part] -= talking[0]
            parts["communication"] += talking[0]
    for part, seconds in watch.take().items():
        parts[part] += seconds
    return parts


@contextmanager
def _timed(owner: Any, method: str, watch: Stopwatch, part: str) -> Iterator[None]:
    """While this lasts, calls of the object's method count as this part."""
    original = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch.span(part):
            return original(*args, **kwargs)

    setattr(owner, method, timed)
    try:
        yield
    finally:
        delattr(owner, method)


@contextmanager
def _collectives(watch: Stopwatch) -> Iterator[list[float]]:
    """Seconds inside torch.distributed's collectives while this lasts, each finished before it returns."""
    total, depth = [0.0], [0]
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if depth[0]:
                return original(*args, **kwargs)
            depth[0] += 1
            wait(watch.device)
            begun = time.perf_counter()
            try:
                work = original(*args, **kwargs)
                if work is not None:
                    work.wait()
                wait(watch.device)
                return work
            finally:
                total[0] += time.perf_counter() - begun
                depth[0] -= 1

        return call

    for name, original in originals.items():
        setattr(dist, name, timed(original))
    try:
        yield total
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
