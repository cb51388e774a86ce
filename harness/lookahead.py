"""The teacher's answer to the next micro-batch, computed while the student's backward of this one runs.

On a GPU it has a stream of its own; elsewhere it is computed on the spot, and nothing is gained. The answers are the same, in
the same order. What a trial posts to TEACHER_FORWARD is then the time the student waited for its teacher, so that the spans of
a step still add up to the step. An answer nobody takes, the last one before a signal, is a forward that no account holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.models.signals import Needs, Signals, TrainingBatch

if TYPE_CHECKING:
    from harness.models.teacher import Teacher


class Lookahead:
    """Asks one micro-batch ahead; at most one answer waits."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self._teacher = teacher
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waiting: tuple[TrainingBatch, Needs, Signals] | None = None

    def ask(self, batch: TrainingBatch, needs: Needs) -> None:
        """Begin with this micro-batch, behind what the device was given so far."""
        if self._stream is None:
            self._waiting = batch, needs, self._teacher(batch, needs)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._waiting = batch, needs, self._teacher(batch, needs)
        for given in (batch.input_ids_BT, batch.positions_N, batch.attention_mask_BT):
            if given is not None:
                given.record_stream(self._stream)

    def take(self, batch: TrainingBatch, needs: Needs) -> Signals:
        """The answer to this micro-batch: the one that waits, if it is to the same question, or a new one."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._stream is not None:
            # Also for an answer that is dropped: graphs of a teacher share memory, and may not replay on two streams at once.
            torch.cuda.current_stream().wait_stream(self._stream)
        if waiting is None or waiting[0] is not batch or waiting[1] != needs:
            return self._teacher(batch, needs)
        signals = waiting[2]
        if self._stream is not None:
            # Their memory is the other stream's: it must not be given away there while this one still reads it.
            for answer in signals.tensors().values():
                answer.record_stream(torch.cuda.current_stream())
        return signals
