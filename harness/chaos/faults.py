"""Faults put into a rank before it starts: module-level functions, so that a forked rank finds them by name.

`Fault(function, arguments)` travels to every rank; most act on one rank only, named by its first argument.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A function called in every rank before the run, with these arguments."""

    install: Callable[..., None]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> None:
        self.install(*self.arguments)


def here(rank: int) -> bool:
    return int(os.environ["RANK"]) == rank


def only_train() -> None:
    """No evaluation and no report: what is compared is made by training."""
    import importlib

    from harness.evaluate.suite import Suite

    # By name: commands lie above this package, and a fault reaches up only in the rank it breaks.
    run: Any = importlib.import_module("harness.commands.run")
    Suite.run = lambda self, *_: None  # type: ignore[method-assign]
    run.show_report = lambda *_, **__: None


def allow_fp16() -> None:
    """Let DeepSpeed take fp16 on a CPU without instructions for it: PyTorch computes it all the same, slowly."""
    from harness.hardware import has_cuda

    if not has_cuda():
        from harness.engine import deepspeed_library  # the engine alone imports it

        deepspeed_library().accelerator.get_accelerator().is_fp16_supported = lambda: True


# Places inside a step at which a signal can come.
PLACES = ("before the step", "after backward", "after the update", "during a save")


def signal_at(rank: int, step: int, place: str, name: str, stamp: str = "") -> None:
    """One rank sends itself a signal in the step after `step` charged steps, or in the first save from then on.

    Args:
        stamp: a file that gets the monotonic time of the signal.
    """
    if not here(rank):
        return
    from harness import checkpoint, train
    from harness.engine import Engine

    at_step, sent = [-1], [False]
    step_of, backward_of, save_of = train.Trial._step, Engine.backward, checkpoint.save

    def send(now: str) -> None:
        due = at_step[0] >= step if place == PLACES[3] else at_step[0] == step
        if now == place and due and not sent[0]:
            sent[0] = True
            note(stamp)
            os.kill(os.getpid(), getattr(signal, name))

    def stepping(trial: Any, *arguments: Any) -> Any:
        at_step[0] = trial.progress.step
        send(PLACES[0])
        result = step_of(trial, *arguments)
        send(PLACES[2])
        return result

    def backward(engine: Any, *arguments: Any) -> Any:
        result = backward_of(engine, *arguments)
        send(PLACES[1])
        return result

    def save(root: Path, *, write: Callable[[Path], None], **rest: Any) -> None:
        def writing(folder: Path) -> None:
            write(folder)
            send(PLACES[3])

        save_of(root, write=writing, **rest)

    train.Trial._step = stepping  # type: ignore[method-assign]
    Engine.backward = backward  # type: ignore[method-assign]
    checkpoint.save = save


def note(stamp: str) -> None:
    """Write the monotonic time, the same for all processes of a machine, into a file."""
    if stamp:
        Path(stamp).write_text(repr(time.monotonic()), encoding="utf-8")


def to_worker_thread(rank: int, step: int, name: str, stamp: str) -> None:
    """Deliver the signal to the thread that prepares batches, not to the main thread."""
    if not here(rank):
        return
    from harness import train

    step_of = train.Trial._step

    def stepping(trial: Any, *arguments: Any) -> Any:
        if trial.progress.step == step:
            worker = next(t for t in threading.enumerate() if t.name == "prefetch" and t.ident is not None)
            note(stamp)
            signal.pthread_kill(worker.ident or 0, getattr(signal, name))
        return step_of(trial, *arguments)

    train.Trial._step = stepping  # type: ignore[method-assign]


def while_evaluating(rank: int, name: str, stamp: str, pause_s: float) -> None:
    """One rank gets a signal in its first evaluation; the others need `pause_s` for each of many small batches.

    Nothing here looks for the signal: whether it is heard is the evaluators' affair.
    """
    from harness.evaluate import scoring
    from harness.evaluate.subject import Subject

    score_of, signals_of, sent = scoring.Scorer.score, Subject.signals, [False]

    def score(self: Any, *arguments: Any) -> Any:
        if here(rank) and not sent[0]:
            sent[0] = True
            note(stamp)
            os.kill(os.getpid(), getattr(signal, name))
        return score_of(self, *arguments)

    def slowly(self: Any, *arguments: Any, **named: Any) -> Any:
        time.sleep(0 if here(rank) else pause_s)
        return signals_of(self, *arguments, **named)

    scoring.BATCH = 1
    scoring.Scorer.score = score  # type: ignore[method-assign]
    Subject.signals = slowly  # type: ignore[method-assign]


def slow_steps(rank: int, seconds: float) -> None:
    """One rank takes longer for every step."""
    if not here(rank):
        return
    from harness import train

    step_of = train.Trial._step

    def stepping(trial: Any, *arguments: Any) -> Any:
        time.sleep(seconds)
        return step_of(trial, *arguments)

    train.Trial._step = stepping  # type: ignore[method-assign]


def hang_in_step(rank: int, step: int, stamp: str) -> None:
    """One rank's main thread never comes back from a step, while its process lives."""
    if not here(rank):
        return
    from harness import train

    step_of = train.Trial._step

    def waiting_for_ever() -> None:
        note(stamp)
        while True:
            time.sleep(1)

    def stepping(trial: Any, *arguments: Any) -> Any:
        if trial.progress.step == step:
            waiting_for_ever()
        return step_of(trial, *arguments)

    train.Trial._step = stepping  # type: ignore[method-assign]


def poison_gradient(rank: int, first: int, last: int, report: str) -> None:
    """NaN in one rank's gradient in steps `first` to `last`; when a run ends, every rank says what weights it has.

    Args:
        report: `{report}-{rank}.json` in the trial's folder: whether weights are finite, their hash, steps skipped.
    """
    import hashlib
    import json

    from harness import train
    from harness.engine import Engine

    at_step = [-1]
    step_of, backward_of, run_of = train.Trial._step, Engine.backward, train.Trial.run

    def stepping(trial: Any, *arguments: Any) -> Any:
        at_step[0] = trial.progress.step
        return step_of(trial, *arguments)

    def backward(engine: Any, loss: Any) -> Any:
        poisoned = here(rank) and first <= at_step[0] <= last
        return backward_of(engine, loss * float("nan") if poisoned else loss)

    def running(trial: Any) -> Any:
        try:
            return run_of(trial)
        finally:
            weights = trial.engine.weights(trial.trainee.student)
            finite = all(bool(tensor.isfinite().all()) for tensor in weights.values())
            digest = hashlib.sha256()
            for name in sorted(weights):
                digest.update(weights[name].contiguous().numpy().tobytes())
            facts = {"finite": finite, "skipped": trial.progress.skipped, "step": trial.progress.step}
            place = trial.directory / f"{report}-{trial.ranks.rank}.json"
            place.write_text(json.dumps({**facts, "weights": digest.hexdigest()}), encoding="utf-8")

    train.Trial._step = stepping  # type: ignore[method-assign]
    Engine.backward = backward  # type: ignore[method-assign]
    train.Trial.run = running  # type: ignore[method-assign]


def jumping_wall_clock(seed: int, by_s: float) -> None:
    """time.time jumps to and fro by up to `by_s` at every call; the monotonic clocks stay as they are."""
    import random

    draw, real = random.Random(seed), time.time
    time.time = lambda: real() + draw.uniform(-by_s, by_s)


class SkewedTime:
    """The time module as a rank with a bad clock sees it: its own offset, rate and jitter."""

    def __init__(self, seed: int) -> None:
        import random

        self._draw = random.Random(seed)
        self._offset = self._draw.uniform(-1e4, 1e4)
        self._rate = self._draw.uniform(0.5, 2.0)
        self._last = 0

    def monotonic_ns(self) -> int:
        now = int((time.monotonic() * self._rate + self._offset + self._draw.uniform(0, 5e-3) + 2e4) * 1e9)
        self._last = max(self._last, now)
        return self._last

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def skewed_clocks(seed: int) -> None:
    """Every rank measures device time by a clock of its own."""
    from harness.meters import device_time

    device_time.time = SkewedTime(seed * 1009 + int(os.environ["RANK"]))  # type: ignore[assignment]


def each_rank_notes_its_end() -> None:
    """Every rank writes the step at which its training ended into the trial's folder."""
    from harness import train

    run_of = train.Trial.run

    def running(trial: Any) -> Any:
        progress = run_of(trial)
        note = trial.directory / f"ended-rank-{trial.ranks.rank}"
        note.write_text(str(progress.step), encoding="utf-8")
        return progress

    train.Trial.run = running  # type: ignore[method-assign]
