"""Is a teacher good enough to teach this student? Asked before anything is spent.

A teacher with a broken head or with other special tokens loads without complaint and predicts worse than
random weights do; a study would then measure nothing, so it is refused. One that predicts hardly better than counts
of tokens do is an alarm: any student learns those by itself, in its first steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.data.batch import Batch
from harness.data.corpus import Corpus
from harness.errors import TeacherError
from harness.evaluate import mlm
from harness.evaluate.subject import Subject

# Held-out blocks: at T = 64 some 600 masked positions, enough to tell a teacher from random weights.
BLOCKS = 64
# Training blocks whose tokens are counted: enough for a loss to the second decimal, a moment's work.
COUNTED = 4096


@dataclass(frozen=True)
class Voucher:
    """Held-out losses (nats) of a teacher, of the untrained student and of counts of tokens, and what finding out cost."""

    teacher_loss: float
    student_loss: float
    frequency_loss: float
    worse: bool
    flop: int
    seconds: float


def loss_name(causal: bool) -> str:
    """What a student's own loss is called in a sentence."""
    return "a next-token loss" if causal else "an MLM loss"


def frequency_loss(corpus: Corpus, batches: Sequence[Batch]) -> float:
    """Loss (nats) at the batches' predicted positions of a model that knows how often each token occurs, and no more.

    Counts, each raised by one, come from evenly spaced training blocks of every source, less their first and last token.
    """
    counts = np.ones(corpus.vocab_size)
    for source in corpus.sources:
        blocks = corpus.blocks("train", source)
        chosen = np.asarray(blocks[:: -(-len(blocks) // COUNTED)])[:, 1:-1] if len(blocks) else np.empty(0, np.int64)
        counts += np.bincount(chosen.reshape(-1), minlength=corpus.vocab_size)
    labels = np.concatenate([batch.labels_N.cpu().numpy() for batch in batches])
    return float(-np.log(counts / counts.sum())[labels].mean())


def vouch(
    teacher: Subject, student: Subject, batches: Sequence[Batch], *, frequency_loss: float, name: str, allow_worse: bool
) -> Voucher:  # fmt: skip
    """Compare teacher and untrained student on the same blocks, masked or causal; neither is changed.

    Raises:
        TeacherError: the teacher's loss is not below the student's (or is no number), and no override was given.
    """
    begun = time.monotonic()
    blocks = list(batches)
    theirs, mine = (mlm.evaluate(subject, blocks)["mlm.loss"] for subject in (teacher, student))
    worse = not theirs < mine  # NaN is worse than anything
    if worse and not allow_worse:
        raise TeacherError(
            f"teacher {name} has {loss_name(student.shape.causal)} of {theirs:.3f} "
            f"where the untrained student has {mine:.3f}",
            rule="a teacher predicts better than random weights",
            remedy="check its tokenizer and its head, or set teacher.allow_worse: true",
        )
    cost = mlm.flops(teacher, blocks) + mlm.flops(student, blocks)
    return Voucher(theirs, mine, frequency_loss, worse, cost, time.monotonic() - begun)
