"""Every evaluator looks for a request to stop, and says that it moved on, inside each of its loops."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import harness.evaluate
from harness import watchdog
from harness.data.choices import CHOICES, ChoiceData
from harness.data.probes import Examples, ProbeData
from harness.errors import Preempted
from harness.evaluate import choices, clm, domains, frozen, mlm, probes, readout
from harness.evaluate.subject import Subject
from harness.models.student import build_student
from harness.stopping import StopFlag
from harness.study import ProbeSpec, ReadoutSpec
from tests.unit.test_glue import config

LENGTH, BATCHES = 8, 3
READOUT = ReadoutSpec(steps=4, positions=4, blocks=8)


def batches() -> list[Any]:
    found = []
    for number in range(BATCHES):
        ids = torch.randint(10, 4000, (2, LENGTH), generator=torch.Generator().manual_seed(number))
        batch = SimpleNamespace(input_ids_BT=ids, positions_N=torch.arange(4), labels_N=ids.flatten()[:4])
        batch.to = lambda _, batch=batch: batch
        found.append(batch)
    return found


def probe() -> ProbeData:
    def part(count: int, seed: int) -> Examples:
        ids = np.random.default_rng(seed).integers(10, 4000, (count, LENGTH)).astype(np.int32)
        return Examples(ids, np.full(count, LENGTH, np.int32), (ids[:, 1] % 2).astype(np.int64))

    size = probes.EVALUATION_BATCH
    return ProbeData("parity", "?", ("even", "odd"), part(size + 1, 1), part(size + 1, 2), part(size + 1, 3))


def many_choices() -> ChoiceData:
    rows = -(-(2 * choices.BATCH + 1) // CHOICES) * CHOICES
    ids = np.random.default_rng(0).integers(10, 4000, (rows, LENGTH))
    prompts, lengths, sizes = (np.full(rows, n) for n in (2, LENGTH, 9))
    return ChoiceData("next_words", ids, prompts, lengths, sizes, np.zeros(rows // CHOICES, np.int64))


def head(subject: Subject) -> readout.ReadoutHead:
    return readout.ReadoutHead(subject.shape.hidden, subject.shape.vocab)


EVALUATORS: dict[str, Callable[[Subject], object]] = {
    "mlm": lambda subject: mlm.evaluate(subject, batches()),
    "clm": lambda subject: clm.evaluate(subject, batches(), text_bytes=9),
    "readout": lambda subject: (
        readout.learn(subject, train=batches(), validation=batches(), spec=READOUT),
        readout.evaluate(subject, 1, head(subject), test=batches()),
    ),
    "domains": lambda subject: domains.evaluate(subject, 1, head(subject), {"a": batches(), "b": batches()}),
    "choices": lambda subject: choices.evaluate(subject, many_choices(), choices.own_head(subject), normalise="none"),
    "probes": lambda subject: probes.evaluate(subject, probe(), spec=ProbeSpec(tasks=["parity"], epochs=1, batch=64)),
    "frozen": lambda subject: frozen.evaluate(subject, probe()),
}


def test_no_evaluator_is_forgotten_here() -> None:
    """`glue_study` is none: it hands fine-tunings to ranks, which stop in a way of their own (test_glue)."""
    names = [module.name for module in pkgutil.iter_modules(harness.evaluate.__path__)]
    found = {name for name in names if hasattr(importlib.import_module(f"harness.evaluate.{name}"), "evaluate")}
    assert found - {"glue_study"} == EVALUATORS.keys()


class Counted:
    """A subject that counts its forwards; at one of them a signal arrives."""

    def __init__(self, *, signal_at: int | None = None) -> None:
        self.subject = Subject(build_student(config(2), seed=1), device=torch.device("cpu"))
        self.forwards, self.signal_at = 0, signal_at
        self.stop: StopFlag | None = None
        self._signals = self.subject.signals
        self.subject.signals = self.signals  # type: ignore[method-assign]

    def signals(self, *given: Any, **named: Any) -> Any:
        self.forwards += 1
        if self.stop is not None and self.forwards == self.signal_at:
            self.stop.raised = True
        return self._signals(*given, **named)


@pytest.mark.parametrize("name", EVALUATORS)
def test_a_signal_at_any_forward_ends_an_evaluation_before_the_next(name: str) -> None:
    whole = Counted()
    EVALUATORS[name](whole.subject)
    assert whole.forwards >= BATCHES
    for number in range(1, whole.forwards):
        counted = Counted(signal_at=number)
        with StopFlag() as counted.stop, pytest.raises(Preempted, match="stopped by a signal"):
            EVALUATORS[name](counted.subject)
        assert counted.forwards == number, f"{name} went on after forward {number} of {whole.forwards}"


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluation_says_that_it_moved_on_at_every_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, beats = Counted(), list[int]()
    monkeypatch.setattr(watchdog, "beat", lambda *_, **__: beats.append(counted.forwards))
    EVALUATORS[name](counted.subject)
    assert set(range(counted.forwards)) <= set(beats)


def fitted(stop: StopFlag, monkeypatch: pytest.MonkeyPatch, of: Any, work: str) -> list[int]:
    """Counts calls of `of.work`, and lets a signal arrive in the second."""
    calls, original = list[int](), getattr(of, work)

    def counting(*given: Any, **named: Any) -> Any:
        calls.append(len(calls))
        stop.raised = len(calls) == 2
        return original(*given, **named)

    monkeypatch.setattr(of, work, counting)
    return calls


def test_a_signal_while_linear_classifiers_are_fitted_ends_a_frozen_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    with StopFlag() as stop:
        fits = fitted(stop, monkeypatch, LogisticRegression, "fit")
        with pytest.raises(Preempted, match="a frozen probe"):
            frozen.evaluate(Counted().subject, probe())
    assert len(fits) == 2


def test_a_signal_while_a_head_is_trained_ends_a_readout(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopFlag() as stop:
        steps = fitted(stop, monkeypatch, readout.ReadoutHead, "forward")
        with pytest.raises(Preempted, match="a read-out"):
            readout.learn(Counted().subject, train=batches(), validation=batches(), spec=READOUT)
    assert len(steps) == 2
