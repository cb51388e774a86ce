"""The read-out's loss on each kind of text by itself: sources of the mixture, and text that no student learns from.

One head, trained on the study's training mixture, judges all of them. In domain its loss is `readout.loss` taken
apart. Out of domain it measures what body and head together make of text that neither was trained on: a head of the
mixture's vocabulary habits is part of it, for every arm alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.data.stream import Batch
from harness.evaluate import readout
from harness.evaluate.subject import Subject
from harness.models.shapes import Shape
from harness.models.signals import Needs


def evaluate(
    subject: Subject, layer: int, head: readout.ReadoutHead, batches: Mapping[str, Sequence[Batch]]
) -> dict[str, float]:
    """`domain.<label>.loss` (nats) and `.accuracy` of every domain, `head` reading the states of `layer`."""
    scores: dict[str, float] = {}
    for label, blocks in batches.items():
        judged = readout.features(subject, list(blocks), [layer])
        loss, accuracy = readout.score(head, judged.states[layer], judged.labels_N)
        scores |= {f"domain.{label}.loss": loss, f"domain.{label}.accuracy": accuracy}
    return scores


def flops(shape: Shape, *, blocks: int, length: int, predicted: int) -> int:
    """Closed-form FLOPs of `blocks` blocks with `predicted` positions in all: the body's forwards and one head's."""
    body = Needs(states=frozenset({shape.layers}))
    return body.forward_flops(shape, sequences=blocks, length=length, masked=0) + shape.head_flops(predicted)
