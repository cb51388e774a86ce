"""Held-out next-token prediction with the student's own head: nats per token, accuracy, bits per byte."""

from __future__ import annotations

import math

import torch

from harness.data.stream import Batch
from harness.evaluate import mlm
from harness.evaluate.subject import Subject

flops = mlm.flops


def evaluate(
    subject: Subject, batches: list[Batch], *, text_bytes: int, answers: list[torch.Tensor] | None = None
) -> dict[str, float]:
    """Mean cross-entropy (nats), accuracy, and bits per byte over all next tokens of the batches.

    Bits per byte is the sum of the nats, in bits, over the `text_bytes` bytes of original text that the scored
    tokens cover (`harness.data.text_bytes`): the end of a document is charged though it has no byte, and a block
    begins without context, as in training. It is comparable between models of one tokenizer; a tokenizer that
    lower-cases or knows few characters leaves out of its tokens what it does not predict, so its figure is no bound
    on a lossless code of the text. `answers` collects the most likely token at every position.
    """
    scores = mlm.evaluate(subject, batches, answers=answers)
    tokens = sum(batch.labels_N.numel() for batch in batches)
    bits = scores["mlm.loss"] * tokens / math.log(2)
    return {
        "clm.loss": scores["mlm.loss"],
        "clm.accuracy": scores["mlm.accuracy"],
        "clm.bits_per_byte": bits / text_bytes,
    }
