"""Held-out masked language modelling with the student's own head."""

from __future__ import annotations

import torch
from torch.nn import functional

from harness.data.stream import Batch
from harness.evaluate.subject import Subject
from harness.models.signals import Needs
from harness.stopping import poll

NEEDS = Needs(logits="masked")


@torch.no_grad()
def evaluate(subject: Subject, batches: list[Batch], *, answers: list[torch.Tensor] | None = None) -> dict[str, float]:
    """Mean cross-entropy (nats) and accuracy over all masked positions of the batches.

    `answers` collects the most likely token at every position.
    """
    loss, hits, count = 0.0, 0, 0
    for batch in batches:
        poll("masked language modelling")
        batch = batch.to(subject.device)
        head = subject.signals(NEEDS, input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N).head
        assert head is not None
        logits = head.logits().float()
        loss += functional.cross_entropy(logits, batch.labels_N, reduction="sum").item()
        best = logits.argmax(-1)
        hits += int((best == batch.labels_N).sum())
        if answers is not None:
            answers.append(best.cpu())
        count += batch.labels_N.numel()
    return {"mlm.loss": loss / count, "mlm.accuracy": hits / count}


def flops(subject: Subject, batches: list[Batch]) -> int:
    """Closed-form FLOPs of one evaluation."""
    return sum(
        NEEDS.forward_flops(
            subject.shape, sequences=b.input_ids_BT.shape[0], length=b.input_ids_BT.shape[1], masked=b.labels_N.numel()
        )
        for b in batches
    )
